//! Tracks in which history something was read: a process that leaves a lost history for a new log has read in both.

use std::sync::{PoisonError, RwLock};

use gravwell_model::codec::admin::SeenVersion;
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::{Condition, Reason, Seq};
use gravwell_protocol::rebase::Lost;

/// One of the histories that a process has followed, one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct History(usize);

/// For each history that was left, the last sequence that it shares with the next one.
#[derive(Debug, Default)]
pub(super) struct Histories(RwLock<Vec<Seq>>);

impl Histories {
    /// Returns the present history. Call this before reading: the data is then of this history or a later one. At worst
    /// a write based on it is rejected as one of the earlier history.
    pub(super) fn present(&self) -> History {
        History(self.0.read().unwrap_or_else(PoisonError::into_inner).len())
    }

    /// Starts another history, which is the same up to `shared_to`.
    pub(super) fn leave(&self, shared_to: Seq) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).push(shared_to);
    }

    /// Returns what the log has lost since a read; `None` if nothing.
    fn lost_since(&self, read_in: History) -> Option<Lost> {
        if fault_injection::is(Bug::ReadsNotTranslated) {
            return None;
        }
        let left = self.0.read().unwrap_or_else(PoisonError::into_inner);
        left.get(read_in.0..)?.iter().min().copied().map(Lost::after)
    }

    /// Translates conditions made in a history that was left since; `None` if it was not left.
    pub(super) fn translated(&self, conditions: &[Condition], read_in: Option<History>) -> Option<Vec<Condition>> {
        let lost = read_in.and_then(|read_in| self.lost_since(read_in))?;
        Some(lost.conditions(conditions))
    }

    /// Returns a rejection for the first condition that names a lost write, so that the present history cannot
    /// satisfy it.
    pub(super) fn refusal(&self, conditions: &[Condition], read_in: Option<History>) -> Option<Reason> {
        let lost = read_in.and_then(|read_in| self.lost_since(read_in))?;
        let is_lost = |condition: &&Condition| !condition.is_upon_lost() && lost.condition(condition).is_upon_lost();
        let condition = conditions.iter().find(is_lost)?.to_string();
        Some(Reason::ConditionFailed { condition, found: None })
    }

    /// Returns the condition for a retry, after the author has seen the versions `seen` in history `read_in`. A version
    /// that was lost since does not match the present object.
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
    use gravwell_model::{Collection, Key};

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
        let judged = histories.translated(&both, Some(first)).expect("history changed");
        assert!(judged[0] == both[0] && judged[1].is_upon_lost(), "{judged:?}");
        let refusal = histories.refusal(&both, Some(first)).expect("is rejected");
        assert!(refusal.to_string().contains("version 12"), "the refusal names the requested version: {refusal}");
        assert_eq!(histories.translated(&both, Some(second)), None, "read in the present history");
        assert_eq!(histories.translated(&both, None), None);
        histories.leave(Seq(5));
        let judged = histories.translated(&both, Some(first)).expect("history changed");
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
