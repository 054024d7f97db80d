//! Writers that a log does not name, known by what they wrote.
//!
//! A log that begins anew from the state of a member has the objects, but of most of them not which transaction wrote them.
//! What was made upon such a transaction would be rejected, although nobody came in between. The member that made the
//! transaction pushes it again; it was decided, so nothing is committed, but what it writes is seen: an object that reads like
//! that is as its maker left it. Whoever builds upon it has seen just that value, so nothing is overwritten unseen.

use std::collections::{BTreeSet, HashMap};

use crate::model::{Collection, Condition, Key, Op, Seq, Txn};

use super::sequencer::Versions;

/// Objects of which it is remembered who wrote them. Of more than that everything is forgotten: what depends on it is rejected.
const OBJECTS_MAX: usize = 4096;

/// Versions of objects, with the marks of transactions that wrote what they hold.
#[derive(Debug, Default)]
pub(super) struct Recognized(HashMap<(Collection, Key), (Seq, BTreeSet<Seq>)>);

impl Recognized {
    /// Takes in a transaction that was committed before: objects without a known writer that read as it left them are its own.
    pub(super) fn take<V: Versions>(
        &mut self,
        txn: &Txn,
        versions: &V,
        version: impl Fn(&Collection, &Key) -> Result<Option<Seq>, V::Error>,
    ) -> Result<(), V::Error> {
        let mut later = BTreeSet::new();
        // What one transaction wrote has one version: its writer is looked up once.
        let mut looked_up = None;
        for op in txn.ops.iter().rev() {
            let (collection, key) = (op.collection(), op.key());
            let is_last = later.insert((collection, key));
            let Some(value) = op.value().filter(|_| is_last) else { continue };
            let Some(found) = version(collection, key)? else { continue };
            if looked_up.is_none_or(|(seq, _)| seq != found) {
                // Counters begin at 1: another one stands for a writer that is not known.
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

    /// Whether the transaction that a condition names wrote the version `found` of its object.
    pub(super) fn holds(&self, condition: &Condition, found: Seq) -> bool {
        let Some(mark) = condition.mark().filter(|_| !self.0.is_empty()) else { return false };
        let known = self.0.get(&(condition.collection().clone(), condition.key().clone()));
        known.is_some_and(|(version, marks)| *version == found && marks.contains(&mark))
    }
}
