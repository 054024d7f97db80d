//! Which history was read: a process that leaves a lost history for the log that goes on has read in both.

use std::sync::{PoisonError, RwLock};

use crate::codec::admin::SeenVersion;
use crate::model::{Condition, Reason, Seq};
use crate::planted::{self, Bug};
use crate::protocol::rebase::Lost;

/// One of the histories that a process has followed one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct History(usize);

/// Up to where each history that was left is the same as the one that came after it.
#[derive(Debug, Default)]
pub(super) struct Histories(RwLock<Vec<Seq>>);

impl Histories {
    /// The present one. Whoever reads asks before reading: what was read is of this history or of a later one, and taken for one
    /// of the earlier it is refused at worst.
    pub(super) fn present(&self) -> History {
        History(self.0.read().unwrap_or_else(PoisonError::into_inner).len())
    }

    /// Another one begins, which is the same up to `shared_to`.
    pub(super) fn leave(&self, shared_to: Seq) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).push(shared_to);
    }

    /// What was lost since something was read; `None`: nothing.
    fn lost_since(&self, read_in: History) -> Option<Lost> {
        if planted::is(Bug::ReadsNotTranslated) {
            return None;
        }
        let left = self.0.read().unwrap_or_else(PoisonError::into_inner);
        left.get(read_in.0..)?.iter().min().copied().map(Lost::after)
    }

    /// Conditions that were made in a history which was left since, for the present one; `None`: it was not left.
    pub(super) fn translated(&self, conditions: &[Condition], read_in: Option<History>) -> Option<Vec<Condition>> {
        let lost = read_in.and_then(|read_in| self.lost_since(read_in))?;
        Some(lost.conditions(conditions))
    }

    /// The first of the conditions that the present history cannot satisfy, because what they name was lost.
    pub(super) fn refusal(&self, conditions: &[Condition], read_in: Option<History>) -> Option<Reason> {
        let lost = read_in.and_then(|read_in| self.lost_since(read_in))?;
        let is_lost = |condition: &&Condition| !condition.is_upon_lost() && lost.condition(condition).is_upon_lost();
        let condition = conditions.iter().find(is_lost)?.to_string();
        Some(Reason::ConditionFailed { condition, found: None })
    }

    /// A condition of a rejected transaction, on an object of which its author has seen a version in a history. A version that was
    /// lost since is not what is there now.
    pub(super) fn raised(&self, condition: &Condition, seen: &[SeenVersion], read_in: History) -> Condition {
        let (collection, key) = (condition.collection(), condition.key());
        let found = seen.iter().find(|seen| seen.collection == *collection && seen.key == *key);
        match (condition, found) {
            (Condition::Version { .. } | Condition::Absent { .. }, Some(seen)) => {
                let (collection, key) = (collection.clone(), key.clone());
                let raised = Condition::Version { collection, key, version: seen.version };
                self.lost_since(read_in).map_or_else(|| raised.clone(), |lost| lost.condition(&raised))
            }
            _ => condition.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Collection, Key};

    #[test]
    fn p08_what_was_read_in_a_history_that_was_left_names_no_write_of_the_present_one() {
        let version = |version| {
            let (collection, key) = (Collection::new("c").expect("name"), Key::new("k").expect("key"));
            Condition::Version { collection, key, version: Seq(version) }
        };
        let histories = Histories::default();
        let first = histories.present();
        let both = [version(7), version(12)];
        assert_eq!(histories.translated(&both, Some(first)), None);
        assert_eq!(histories.refusal(&both, Some(first)), None);
        histories.leave(Seq(10));
        let second = histories.present();
        let judged = histories.translated(&both, Some(first)).expect("it was left");
        assert!(judged[0] == both[0] && judged[1].is_upon_lost(), "{judged:?}");
        let refusal = histories.refusal(&both, Some(first)).expect("is refused");
        assert!(refusal.to_string().contains("version 12"), "it names what was asked for: {refusal}");
        assert_eq!(histories.translated(&both, Some(second)), None, "what was read since");
        assert_eq!(histories.translated(&both, None), None);
        histories.leave(Seq(5));
        let judged = histories.translated(&both, Some(first)).expect("it was left");
        assert!(judged.iter().all(Condition::is_upon_lost), "{judged:?}");
        let seen = |version| {
            let (collection, key) = (Collection::new("c").expect("name"), Key::new("k").expect("key"));
            [SeenVersion { collection, key, version: Seq(version) }]
        };
        assert_eq!(histories.raised(&version(1), &seen(9), histories.present()), version(9));
        assert!(histories.raised(&version(1), &seen(9), second).is_upon_lost());
        assert_eq!(histories.raised(&version(1), &seen(5), first), version(5));
    }
}
