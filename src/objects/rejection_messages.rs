//! Messages for rejected changes.

use super::kinds::{self, Taken};
use super::record::Stored;
use super::second_factors::{Factor, LastStep};
use super::sessions::Epoch;
use super::tokens::TokenEpoch;
use super::users::{Admin, Lock, Membership};
use gravwell_model::{Condition, Reason};

/// Returns why a transaction with these conditions was rejected, as a message for its author.
#[must_use]
pub fn rejection_message(conditions: &[Condition], reason: &Reason) -> String {
    let Reason::ConditionFailed { condition, found } = reason else { return reason.to_string() };
    let Some(meant) = conditions.iter().find(|known| known.to_string() == *condition) else {
        return reason.to_string();
    };
    of_right(meant).unwrap_or_else(|| of_object(meant, found.is_some()))
}

/// Returns the message for a condition on the rights of the author.
fn of_right(condition: &Condition) -> Option<String> {
    let text = match (condition, condition.collection().as_str()) {
        (Condition::Absent { .. } | Condition::Version { .. }, LastStep::COLLECTION) => {
            "the code of the second factor was also used at another webserver"
        }
        (Condition::Absent { .. }, Factor::COLLECTION) => {
            "a second factor was set up at another webserver and was not used here"
        }
        (Condition::Absent { .. }, Lock::COLLECTION) => "the account of its author was locked",
        (Condition::Present { .. }, Admin::COLLECTION) => "its author is no longer an administrator",
        (Condition::Present { key, .. }, Membership::COLLECTION) => {
            let gid = key.as_str().split('/').nth(1).unwrap_or_default();
            return Some(format!("its author is no longer a member of group {gid}"));
        }
        (_, Epoch::COLLECTION | TokenEpoch::COLLECTION) => "the session or token with which it was made has ended",
        _ => return None,
    };
    Some(text.to_owned())
}

/// Returns the message for a condition on an object; `is_there`: the object exists.
fn of_object(condition: &Condition, is_there: bool) -> String {
    let collection = condition.collection().as_str();
    let (thing, taken) = (kinds::singular(collection), kinds::of(collection).map_or(Taken::Id, |kind| kind.taken));
    let is_name = taken == Taken::Name;
    match condition {
        _ if condition.since().is_some() && !is_there => format!("the {thing} was deleted in the meantime"),
        Condition::Absent { key, .. } => match taken {
            Taken::Name => format!("a {thing} called {key} already exists"),
            Taken::Changed => format!("the {thing} was changed by another user"),
            Taken::Id => format!("the ID or name {key} was assigned to another {thing} first"),
        },
        Condition::Version { .. } if is_name && condition.mark().is_some() && !condition.is_upon_lost() => {
            format!("the {thing} was renamed or deleted, or its creation was rejected")
        }
        Condition::Present { .. } | Condition::Version { .. } if is_name => {
            format!("the {thing} was renamed or deleted in the meantime")
        }
        Condition::Present { .. } => format!("the {thing} was deleted, or its creation was rejected"),
        Condition::Version { .. } if condition.is_upon_lost() => {
            format!("the {thing} that was changed here was lost with part of the log before this change was sent")
        }
        Condition::Version { .. } if condition.mark().is_some() => {
            format!(
                "the {thing} was changed by another user, or an earlier change that this one builds on was rejected"
            )
        }
        Condition::Version { .. } => format!("the {thing} was changed by another user"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gravwell_model::{Collection, Key, Seq};

    #[test]
    fn rejection_messages_use_the_terms_of_users() {
        let place = |collection: &str, key: &str| {
            (Collection::new(collection).expect("collection"), Key::new(key).expect("key"))
        };
        let absent = |(collection, key)| Condition::Absent { collection, key };
        let present = |(collection, key)| Condition::Present { collection, key };
        let version = |(collection, key)| Condition::Version { collection, key, version: Seq(3) };
        let since = |(collection, key)| Condition::absent_since(collection, key, Seq(3));
        let cases = [
            (absent(place("user-names", "carol")), "a user called carol already exists"),
            (version(place("user-names", "carol")), "the user was renamed or deleted in the meantime"),
            (present(place("group-names", "g")), "the group was renamed or deleted in the meantime"),
            (
                Condition::written_by(
                    place("user-names", "carol").0,
                    place("user-names", "carol").1,
                    gravwell_model::TxnId { counter: gravwell_model::OriginCounter(1), ..Default::default() },
                ),
                "the user was renamed or deleted, or its creation was rejected",
            ),
            (absent(place("users", "7")), "the ID or name 7 was assigned to another user first"),
            (present(place("groups", "7")), "the group was deleted, or its creation was rejected"),
            (absent(place("capabilities", "u/7")), "the list of grants was changed by another user"),
            (
                version(place("second-factor-steps", "7")),
                "the code of the second factor was also used at another webserver",
            ),
            (
                absent(place("second-factors", "7")),
                "a second factor was set up at another webserver and was not used here",
            ),
            (version(place("second-factors", "7")), "the second factor was changed by another user"),
            (absent(place("locks", "7")), "the account of its author was locked"),
            (present(place("admins", "7")), "its author is no longer an administrator"),
            (present(place("memberships", "7/3")), "its author is no longer a member of group 3"),
            (absent(place("session-epochs", "7")), "the session or token with which it was made has ended"),
            (version(place("token-epochs", "7")), "the session or token with which it was made has ended"),
            (version(place("dashboards", "7")), "the dashboard was changed by another user"),
            (since(place("dashboards", "7")), "the dashboard was deleted in the meantime"),
            (since(place("user-names", "carol")), "the user was deleted in the meantime"),
            (absent(place("of-a-later-version", "7")), "the ID or name 7 was assigned to another object first"),
        ];
        for (condition, wanted) in cases {
            let reason = Reason::ConditionFailed { condition: condition.to_string(), found: None };
            assert_eq!(rejection_message(&[condition], &reason), wanted);
        }
        let limit = Reason::LimitExceeded { message: "too large".into() };
        assert_eq!(rejection_message(&[], &limit), "too large");
    }
}
