//! Gate in front of the push stream: a transaction that references chunks waits until the datastore has them.
//!
//! ```text
//!   held --- the datastore has every chunk ---> open --- the datastore lacks some of them ---> held
//!     \----- the replica lacks chunks, too ---> forsaken: pushed with that information, to be resolved
//! ```
//!
//! A waiting transaction delays those that depend on it, see [`super::lanes`], and no others. It does not wait for
//! chunks that the replica has lost: the datastore resolves it in that case.

use std::collections::HashMap;

use gravwell_model::codec::blob_manifest;
use gravwell_model::{Origin, OriginCounter, Txn, TxnId};

/// State of a transaction at the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// Waits until its chunks are sent.
    Held,
    /// May be pushed.
    Open,
    /// May be pushed as a transaction whose chunks the replica has lost.
    Forsaken,
}

/// State of all transactions that reference chunks. It is reset for each connection, because the datastore may have
/// lost chunks in the meantime.
#[derive(Debug, Default)]
pub struct BlobGate {
    passages: HashMap<TxnId, Passage>,
    has_chunks: bool,
}

impl BlobGate {
    /// Creates a gate. `has_chunks` states whether the replica has a store from which it can send chunks. Without one,
    /// every transaction is pushed, and the datastore determines whether chunks are missing.
    #[must_use]
    pub fn new(has_chunks: bool) -> BlobGate {
        BlobGate { passages: HashMap::new(), has_chunks }
    }

    /// Returns whether a transaction may be pushed.
    #[must_use]
    pub fn passage(&self, txn: &Txn) -> Passage {
        match self.passages.get(&txn.id) {
            Some(passage) => *passage,
            None if self.has_chunks && blob_manifest::references_chunks(&txn.ops) => Passage::Held,
            None => Passage::Open,
        }
    }

    /// Records that the datastore has all chunks that a transaction references.
    pub fn handle_sent(&mut self, id: TxnId) {
        self.passages.insert(id, Passage::Open);
    }

    /// Records that the replica has lost chunks that a transaction references.
    pub fn handle_lost(&mut self, id: TxnId) {
        self.passages.insert(id, Passage::Forsaken);
    }

    /// Records that the datastore did not accept a transaction because chunks are missing.
    pub fn handle_missing(&mut self, id: TxnId) {
        self.passages.insert(id, if self.has_chunks { Passage::Held } else { Passage::Forsaken });
    }

    /// Removes the transactions of an origin that are resolved, up to a counter.
    pub fn handle_decided(&mut self, origin: Origin, up_to: OriginCounter) {
        self.passages.retain(|id, _| id.origin != origin || id.counter > up_to);
    }

    /// Resets the gate after a connection has ended.
    pub fn handle_disconnected(&mut self) {
        self.passages.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use gravwell_model::{ChunkId, Collection, Key, Op};

    fn txn(counter: u64, collection: &str) -> Txn {
        let id = TxnId { origin: Origin([1; 16]), counter: OriginCounter(counter) };
        let value = Bytes::from(format!(r#"{{"size":1,"index":["{}"]}}"#, ChunkId([9; 32])));
        let key = Key::new("k").expect("key");
        let op = Op::Put { collection: Collection::new(collection).expect("collection"), key, value };
        Txn { id, settled: OriginCounter(0), time_ms: 0, note: Bytes::new(), conditions: vec![], ops: vec![op] }
    }

    #[test]
    fn chunks_come_before_the_transaction_that_names_them() {
        let mut gate = BlobGate::new(true);
        let (names, other) = (txn(1, "contents"), txn(2, "dashboards"));
        assert_eq!((gate.passage(&names), gate.passage(&other)), (Passage::Held, Passage::Open));
        gate.handle_sent(names.id);
        assert_eq!(gate.passage(&names), Passage::Open);
        gate.handle_missing(names.id);
        assert_eq!(gate.passage(&names), Passage::Held, "the datastore's report takes precedence");
        gate.handle_sent(names.id);
        gate.handle_disconnected();
        assert_eq!(gate.passage(&names), Passage::Held, "another incarnation of the datastore may lack these chunks");
    }

    #[test]
    fn waits_fail_when_the_result_cannot_arrive() {
        let mut gate = BlobGate::new(true);
        let names = txn(1, "contents");
        gate.handle_lost(names.id);
        assert_eq!(gate.passage(&names), Passage::Forsaken);
        gate.handle_decided(names.id.origin, names.id.counter);
        assert_eq!(gate.passage(&names), Passage::Held, "resolved transactions are forgotten");
        let mut without = BlobGate::new(false);
        assert_eq!(without.passage(&names), Passage::Open);
        without.handle_missing(names.id);
        assert_eq!(without.passage(&names), Passage::Forsaken);
    }

    #[test]
    fn removing_contents_waits_for_nothing() {
        let mut delete = txn(1, "contents");
        let Op::Put { collection, key, .. } = delete.ops.remove(0) else { panic!("a put") };
        delete.ops.push(Op::Delete { collection, key });
        assert_eq!(BlobGate::new(true).passage(&delete), Passage::Open);
    }
}
