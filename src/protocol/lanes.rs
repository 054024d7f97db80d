//! Priority lanes from an outbox to the datastore: small transactions do not wait while chunks of blobs are sent.
//!
//! ```text
//!   references chunks, or concerns a key or an origin of a transaction in the bulk lane ---> bulk
//!   everything else ---------------------------------------------------------------------> express
//! ```
//!
//! An express transaction depends on no key that an earlier bulk transaction writes. It also writes no key that such a
//! transaction writes or of which it compares the version. So it may bypass them: the result is the same in either order.
//!
//! There is one intended exception. The existence conditions of a transaction that references chunks (owner of the
//! blob, permission of the author) are evaluated when that transaction is sequenced. Revoking a permission therefore
//! does not wait for uploads that were made with it.
//!
//! A bulk transaction is pushed only when all express transactions before it are resolved, because it may depend on
//! them. The datastore accepts no gaps in the counters of an origin, so all later transactions of an origin stay behind
//! its transactions in the bulk lane.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use gravwell_model::codec::blob_manifest;
use gravwell_model::{Collection, Condition, Key, Op, Origin, Txn};

use super::outbox::QueuePosition;

/// Pending transactions of the bulk lane.
#[derive(Debug, Default)]
pub struct BulkLane {
    places: BTreeSet<QueuePosition>,
    /// Number of bulk transactions that write a key.
    written: HashMap<(Collection, Key), usize>,
    /// Number of bulk transactions that compare the version of a key.
    compared: HashMap<(Collection, Key), usize>,
    /// Number of bulk transactions of an origin.
    origins: HashMap<Origin, usize>,
}

fn written(ops: &[Op]) -> impl Iterator<Item = (Collection, Key)> {
    ops.iter().map(|op| (op.collection().clone(), op.key().clone()))
}

fn named(conditions: &[Condition]) -> impl Iterator<Item = (Collection, Key)> {
    conditions.iter().map(|condition| (condition.collection().clone(), condition.key().clone()))
}

fn compared(conditions: &[Condition]) -> impl Iterator<Item = (Collection, Key)> {
    let versions = conditions.iter().filter(|condition| matches!(condition, Condition::Version { .. }));
    versions.map(|condition| (condition.collection().clone(), condition.key().clone()))
}

fn release<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: K) {
    if let std::collections::hash_map::Entry::Occupied(mut count) = counts.entry(key) {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }
}

impl BulkLane {
    /// Returns whether a transaction with these operations and conditions depends on, or conflicts with, one in the lane.
    #[must_use]
    pub fn concerns(&self, ops: &[Op], conditions: &[Condition]) -> bool {
        let undoes = |key: (Collection, Key)| self.written.contains_key(&key) || self.compared.contains_key(&key);
        let relies = |key: (Collection, Key)| self.written.contains_key(&key);
        !self.places.is_empty() && (written(ops).any(undoes) || named(conditions).any(relies))
    }

    /// Returns whether a new transaction belongs in the lane.
    #[must_use]
    pub fn takes(&self, txn: &Txn) -> bool {
        blob_manifest::references_chunks(&txn.ops)
            || self.origins.contains_key(&txn.id.origin)
            || self.concerns(&txn.ops, &txn.conditions)
    }

    pub(super) fn insert(&mut self, place: QueuePosition, txn: &Txn) {
        self.places.insert(place);
        written(&txn.ops).for_each(|key| *self.written.entry(key).or_insert(0) += 1);
        compared(&txn.conditions).for_each(|key| *self.compared.entry(key).or_insert(0) += 1);
        *self.origins.entry(txn.id.origin).or_insert(0) += 1;
    }

    pub(super) fn remove(&mut self, place: QueuePosition, txn: &Txn) {
        if self.places.remove(&place) {
            written(&txn.ops).for_each(|key| release(&mut self.written, key));
            compared(&txn.conditions).for_each(|key| release(&mut self.compared, key));
            release(&mut self.origins, txn.id.origin);
        }
    }

    #[must_use]
    pub(super) fn contains(&self, place: QueuePosition) -> bool {
        self.places.contains(&place)
    }

    /// Returns the positions of the lane from `start` on, in order.
    pub(super) fn from(&self, start: QueuePosition) -> impl Iterator<Item = QueuePosition> {
        self.places.range(start..).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use gravwell_model::{ChunkId, OriginCounter, TxnId};

    fn put(collection: &str, key: &str) -> Op {
        let value = Bytes::from(format!(r#"{{"size":1,"index":["{}"]}}"#, ChunkId([9; 32])));
        Op::Put {
            collection: Collection::new(collection).expect("collection"),
            key: Key::new(key).expect("key"),
            value,
        }
    }

    fn txn(origin: u8, ops: Vec<Op>, conditions: Vec<Condition>) -> Txn {
        let id = TxnId { origin: Origin([origin; 16]), counter: OriginCounter(1) };
        Txn { id, settled: OriginCounter(0), time_ms: 0, note: Bytes::new(), conditions, ops }
    }

    #[test]
    fn only_transactions_that_depend_on_contents_wait_with_them() {
        let mut bulk = BulkLane::default();
        let upload = txn(1, vec![put("contents", "a"), put("resources", "r")], vec![]);
        assert!(bulk.takes(&upload));
        bulk.insert(4, &upload);
        let renamed = txn(2, vec![put("resources", "r")], vec![]);
        let present = |key: &str| Condition::Present {
            collection: Collection::new("resources").expect("collection"),
            key: Key::new(key).expect("key"),
        };
        assert!(bulk.takes(&renamed));
        bulk.insert(5, &renamed);
        assert!(bulk.takes(&txn(2, vec![put("users", "1")], vec![])), "the preceding counters are pending");
        assert!(bulk.takes(&txn(3, vec![put("users", "1")], vec![present("r")])));
        assert!(!bulk.takes(&txn(3, vec![put("users", "1")], vec![present("other")])));
        assert_eq!(bulk.from(0).collect::<Vec<_>>(), [4, 5]);
        bulk.remove(4, &upload);
        assert!(bulk.takes(&renamed) && !bulk.takes(&txn(1, vec![put("users", "1")], vec![])));
        bulk.remove(5, &renamed);
        assert!(!bulk.takes(&renamed) && bulk.written.is_empty() && bulk.origins.is_empty());
    }

    #[test]
    fn p11_who_takes_a_right_away_does_not_wait_for_contents_that_were_named_with_it() {
        let place = |collection: &str| (Collection::new(collection).expect("name"), Key::new("7").expect("key"));
        let (collection, key) = place("admins");
        let by_right = Condition::Present { collection, key };
        let (collection, key) = place("locks");
        let while_open = Condition::Absent { collection, key };
        let (collection, key) = place("users");
        let as_read = Condition::Version { collection, key, version: gravwell_model::Seq(3) };
        let conditions = vec![by_right.clone(), while_open.clone(), as_read];
        let upload = txn(1, vec![put("contents", "a")], conditions);
        let mut bulk = BulkLane::default();
        bulk.insert(1, &upload);
        let (collection, key) = place("admins");
        let demoted = Op::Delete { collection, key };
        assert!(!bulk.takes(&txn(2, vec![demoted, put("locks", "7")], vec![])));
        assert!(!bulk.takes(&txn(2, vec![put("passwords", "8")], vec![by_right, while_open])), "the same right");
        assert!(bulk.takes(&txn(2, vec![put("users", "7")], vec![])), "the compared object is changed before it");
        bulk.remove(1, &upload);
        assert!(bulk.compared.is_empty() && bulk.written.is_empty());
    }
}
