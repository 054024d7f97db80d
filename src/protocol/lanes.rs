//! Two lanes from an outbox to the datastore: small transactions do not wait behind contents that are being sent.
//!
//! ```text
//!   names chunks, or concerns a key or an origin of one that waits in the bulk lane ---> bulk
//!   everything else ---------------------------------------------------------------> express
//! ```
//!
//! A transaction of the express lane depends on no key that one of the bulk lane before it writes, and writes none that it writes, or of
//! which it names a version. So it may overtake them: what comes of both is the same in either order. The one exception is meant: what
//! only has to be there, or not to be there, when contents are named (their owner, the right of their author) is asked when
//! that is decided, so whoever takes a right away does not wait for what was made with it. One of the bulk lane is pushed only when everything of the express lane before
//! it is decided, because it may rely on that. Counters of an origin have no gaps at the datastore, so all of an origin
//! stays behind what waits of it.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use crate::codec::content;
use crate::model::{Collection, Condition, Key, Op, Origin, Txn};

use super::outbox::Place;

/// The pending transactions of the bulk lane.
#[derive(Debug, Default)]
pub struct Bulk {
    places: BTreeSet<Place>,
    /// How many of them write a key.
    written: HashMap<(Collection, Key), usize>,
    /// How many of them name a version of a key.
    compared: HashMap<(Collection, Key), usize>,
    /// How many of them an origin has.
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

impl Bulk {
    /// Whether a transaction of these operations and conditions would rely on, or undo, one of the lane.
    #[must_use]
    pub fn concerns(&self, ops: &[Op], conditions: &[Condition]) -> bool {
        let undoes = |key: (Collection, Key)| self.written.contains_key(&key) || self.compared.contains_key(&key);
        let relies = |key: (Collection, Key)| self.written.contains_key(&key);
        !self.places.is_empty() && (written(ops).any(undoes) || named(conditions).any(relies))
    }

    /// Whether a transaction that comes now belongs into the lane.
    #[must_use]
    pub fn takes(&self, txn: &Txn) -> bool {
        content::names_chunks(&txn.ops)
            || self.origins.contains_key(&txn.id.origin)
            || self.concerns(&txn.ops, &txn.conditions)
    }

    /// Takes in a transaction.
    pub(super) fn insert(&mut self, place: Place, txn: &Txn) {
        self.places.insert(place);
        written(&txn.ops).for_each(|key| *self.written.entry(key).or_insert(0) += 1);
        compared(&txn.conditions).for_each(|key| *self.compared.entry(key).or_insert(0) += 1);
        *self.origins.entry(txn.id.origin).or_insert(0) += 1;
    }

    /// A transaction is pending no more.
    pub(super) fn remove(&mut self, place: Place, txn: &Txn) {
        if self.places.remove(&place) {
            written(&txn.ops).for_each(|key| release(&mut self.written, key));
            compared(&txn.conditions).for_each(|key| release(&mut self.compared, key));
            release(&mut self.origins, txn.id.origin);
        }
    }

    /// Whether the transaction at a place is in the lane.
    #[must_use]
    pub(super) fn contains(&self, place: Place) -> bool {
        self.places.contains(&place)
    }

    /// The places of the lane from one on, in order.
    pub(super) fn from(&self, start: Place) -> impl Iterator<Item = Place> {
        self.places.range(start..).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ChunkId, OriginCounter, TxnId};
    use bytes::Bytes;

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
    fn what_relies_on_contents_waits_with_them_and_nothing_else_does() {
        let mut bulk = Bulk::default();
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
        assert!(bulk.takes(&txn(2, vec![put("users", "1")], vec![])), "the counters before it wait");
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
        let as_read = Condition::Version { collection, key, version: crate::model::Seq(3) };
        let conditions = vec![by_right.clone(), while_open.clone(), as_read];
        let upload = txn(1, vec![put("contents", "a")], conditions);
        let mut bulk = Bulk::default();
        bulk.insert(1, &upload);
        let (collection, key) = place("admins");
        let demoted = Op::Delete { collection, key };
        assert!(!bulk.takes(&txn(2, vec![demoted, put("locks", "7")], vec![])));
        assert!(!bulk.takes(&txn(2, vec![put("passwords", "8")], vec![by_right, while_open])), "the same right");
        assert!(bulk.takes(&txn(2, vec![put("users", "7")], vec![])), "what it compares with stays before it");
        bulk.remove(1, &upload);
        assert!(bulk.compared.is_empty() && bulk.written.is_empty());
    }
}
