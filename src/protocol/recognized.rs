//! Recognition of the writers of objects by the values that they wrote.
//!
//! A log that is restarted from the state of a member has the objects, but for most of them not the transaction that
//! wrote them. A transaction that depends on such a write would be rejected although no other write came in between.
//! The member that made the write therefore pushes it again. It is already resolved, so nothing is committed, but its
//! values are compared: an object that still has the written value is attributed to it. An author who depends on that
//! write has seen exactly this value, so nothing is overwritten unseen.

use std::collections::{BTreeSet, HashMap};

use gravwell_model::{Collection, Condition, Key, Op, Seq, Txn};

use super::sequencer::Versions;

/// Maximum number of objects with recognized writers. If it is exceeded, all of them are forgotten, and transactions
/// that depend on them are rejected.
const OBJECTS_MAX: usize = 4096;

/// Versions of objects, with the marks of transactions that wrote the values of these versions.
#[derive(Debug, Default)]
pub(super) struct Recognized(HashMap<(Collection, Key), (Seq, BTreeSet<Seq>)>);

impl Recognized {
    /// Attributes objects without a known writer to a committed transaction if they still have the values it wrote.
    pub(super) fn take<V: Versions>(
        &mut self,
        txn: &Txn,
        versions: &V,
        version: impl Fn(&Collection, &Key) -> Result<Option<Seq>, V::Error>,
    ) -> Result<(), V::Error> {
        let mut later = BTreeSet::new();
        // All writes of one transaction have the same version, so its writer is looked up once.
        let mut looked_up = None;
        for op in txn.ops.iter().rev() {
            let (collection, key) = (op.collection(), op.key());
            let is_last = later.insert((collection, key));
            let Some(value) = op.value().filter(|_| is_last) else { continue };
            let Some(found) = version(collection, key)? else { continue };
            if looked_up.is_none_or(|(seq, _)| seq != found) {
                // Counters start at 1, so counter 0 means that the writer is unknown.
                looked_up = Some((found, versions.author(found).is_none_or(|id| id.counter.0 == 0)));
            }
            if looked_up != Some((found, true)) {
                continue;
            }
            if versions.value(collection, key)?.is_some_and(|there| there == (found, value.clone())) {
                self.note(op, found, txn);
            }
        }
        Ok(())
    }

    fn note(&mut self, op: &Op, found: Seq, txn: &Txn) {
        if self.0.len() >= OBJECTS_MAX {
            self.0.clear();
        }
        let known = self.0.entry((op.collection().clone(), op.key().clone())).or_default();
        if known.0 != found {
            *known = (found, BTreeSet::new());
        }
        known.1.insert(txn.id.mark());
    }

    /// Returns whether the transaction in a condition wrote the version `found` of its object.
    pub(super) fn holds(&self, condition: &Condition, found: Seq) -> bool {
        let Some(mark) = condition.mark().filter(|_| !self.0.is_empty()) else { return false };
        let known = self.0.get(&(condition.collection().clone(), condition.key().clone()));
        known.is_some_and(|(version, marks)| *version == found && marks.contains(&mark))
    }
}
