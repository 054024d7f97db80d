//! Messages for rejected changes.

use gravwell_model::{Condition, Reason};

/// Returns the singular noun for an object of a collection.
fn thing(collection: &str) -> &'static str {
    match collection {
        "users" | "user-names" => "user",
        "groups" | "group-names" => "group",
        "dashboards" => "dashboard",
        "resources" => "resource",
        "tokens" | "token-epochs" => "token",
        "notifications" => "notification",
        "sessions" | "session-epochs" => "session",
        "searches" => "search",
        "passwords" => "password",
        "second-factors" | "second-factor-setups" => "second factor",
        "recovery-codes" => "set of recovery codes",
        "preferences" => "set of preferences",
        "capabilities" | "tag-access" => "list of grants",
        "contents" | "chunks" => "contents of the resource",
        _ => "object",
    }
}

/// Returns why a transaction with these conditions was rejected, as a message for its author.
#[must_use]
pub fn rejection_message(conditions: &[Condition], reason: &Reason) -> String {
    let Reason::ConditionFailed { condition, found } = reason else { return reason.to_string() };
    let meant = conditions.iter().find(|known| known.to_string() == *condition);
    match meant {
        Some(Condition::Absent { collection, .. } | Condition::Version { collection, .. })
            if collection.as_str() == "second-factor-steps" =>
        {
            "the code of the second factor was also used at another webserver".into()
        }
        Some(Condition::Absent { collection, .. }) if collection.as_str() == "second-factors" => {
            "a second factor was set up at another webserver and was not used here".into()
        }
        Some(Condition::Absent { collection, .. }) if collection.as_str() == "locks" => {
            "the account of its author was locked".into()
        }
        Some(Condition::Present { collection, .. }) if collection.as_str() == "admins" => {
            "its author is no longer an administrator".into()
        }
        Some(Condition::Present { collection, key }) if collection.as_str() == "memberships" => {
            let gid = key.as_str().split('/').nth(1).unwrap_or_default();
            format!("its author is no longer a member of group {gid}")
        }
        Some(condition) if ["session-epochs", "token-epochs"].contains(&condition.collection().as_str()) => {
            "the session or token with which it was made has ended".into()
        }
        Some(condition) if condition.since().is_some() && found.is_none() => {
            format!("the {} was deleted in the meantime", thing(condition.collection().as_str()))
        }
        Some(Condition::Absent { collection, key }) => match collection.as_str() {
            "user-names" | "group-names" => format!("a {} called {key} already exists", thing(collection.as_str())),
            // Objects without a separate number.
            name @ ("passwords" | "preferences" | "capabilities" | "tag-access") => {
                format!("the {} was changed by another user", thing(name))
            }
            name => format!("the ID or name {key} was assigned to another {} first", thing(name)),
        },
        Some(condition @ Condition::Version { collection, .. })
            if ["user-names", "group-names"].contains(&collection.as_str())
                && condition.mark().is_some()
                && !condition.is_upon_lost() =>
        {
            format!("the {} was renamed or deleted, or its creation was rejected", thing(collection.as_str()))
        }
        Some(Condition::Present { collection, .. } | Condition::Version { collection, .. })
            if ["user-names", "group-names"].contains(&collection.as_str()) =>
        {
            format!("the {} was renamed or deleted in the meantime", thing(collection.as_str()))
        }
        Some(Condition::Present { collection, .. }) => {
            format!("the {} was deleted, or its creation was rejected", thing(collection.as_str()))
        }
        Some(condition @ Condition::Version { collection, .. }) if condition.is_upon_lost() => format!(
            "the {} that was changed here was lost with part of the log before this change was sent",
            thing(collection.as_str())
        ),
        Some(condition @ Condition::Version { collection, .. }) if condition.mark().is_some() => format!(
            "the {} was changed by another user, or an earlier change that this one builds on was rejected",
            thing(collection.as_str())
        ),
        Some(Condition::Version { collection, .. }) => {
            format!("the {} was changed by another user", thing(collection.as_str()))
        }
        None => reason.to_string(),
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
        ];
        for (condition, wanted) in cases {
            let reason = Reason::ConditionFailed { condition: condition.to_string(), found: None };
            assert_eq!(rejection_message(&[condition], &reason), wanted);
        }
        let limit = Reason::LimitExceeded { message: "too large".into() };
        assert_eq!(rejection_message(&[], &limit), "too large");
    }
}
