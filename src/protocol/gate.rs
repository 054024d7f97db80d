//! What may be pushed: a transaction that names chunks waits until the datastore has them.
//!
//! ```text
//!   held --- the datastore has every chunk ---> open --- the datastore misses some, after all ---> held
//!     \----- chunks are lost here, too ------> forsaken: pushed with that word, so that it is decided
//! ```
//!
//! A transaction that waits holds back those that were made on top of it, see [`super::lanes`]; all others go on. It waits for
//! nothing that cannot come: what is lost here is for the datastore to decide.

use std::collections::HashMap;

use crate::codec::content;
use crate::model::{Origin, OriginCounter, Txn, TxnId};

/// What a transaction may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// It waits for chunks to be sent.
    Held,
    /// It may be pushed.
    Open,
    /// It may be pushed as one whose chunks are lost here.
    Forsaken,
}

/// The state of all transactions that name chunks. Everything begins anew with a new connection, whose datastore may have
/// lost chunks meanwhile.
#[derive(Debug, Default)]
pub struct Gate {
    passages: HashMap<TxnId, Passage>,
    has_chunks: bool,
}

impl Gate {
    /// A gate; `has_chunks` says whether there is a store from which chunks can be sent. Without one, the datastore's word
    /// alone counts.
    #[must_use]
    pub fn new(has_chunks: bool) -> Gate {
        Gate { passages: HashMap::new(), has_chunks }
    }

    /// Whether a transaction may be pushed.
    #[must_use]
    pub fn passage(&self, txn: &Txn) -> Passage {
        match self.passages.get(&txn.id) {
            Some(passage) => *passage,
            None if self.has_chunks && content::names_chunks(&txn.ops) => Passage::Held,
            None => Passage::Open,
        }
    }

    /// The datastore has every chunk that a transaction names.
    pub fn handle_sent(&mut self, id: TxnId) {
        self.passages.insert(id, Passage::Open);
    }

    /// Chunks that a transaction names are lost here.
    pub fn handle_lost(&mut self, id: TxnId) {
        self.passages.insert(id, Passage::Forsaken);
    }

    /// The datastore did not take a transaction for want of chunks.
    pub fn handle_missing(&mut self, id: TxnId) {
        self.passages.insert(id, if self.has_chunks { Passage::Held } else { Passage::Forsaken });
    }

    /// Everything of an origin up to a counter is decided.
    pub fn handle_decided(&mut self, origin: Origin, up_to: OriginCounter) {
        self.passages.retain(|id, _| id.origin != origin || id.counter > up_to);
    }

    /// A connection has ended.
    pub fn handle_disconnected(&mut self) {
        self.passages.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ChunkId, Collection, Key, Op};
    use bytes::Bytes;

    fn txn(counter: u64, collection: &str) -> Txn {
        let id = TxnId { origin: Origin([1; 16]), counter: OriginCounter(counter) };
        let value = Bytes::from(format!(r#"{{"size":1,"index":["{}"]}}"#, ChunkId([9; 32])));
        let key = Key::new("k").expect("key");
        let op = Op::Put { collection: Collection::new(collection).expect("collection"), key, value };
        Txn { id, settled: OriginCounter(0), time_ms: 0, note: Bytes::new(), conditions: vec![], ops: vec![op] }
    }

    #[test]
    fn chunks_come_before_the_transaction_that_names_them() {
        let mut gate = Gate::new(true);
        let (names, other) = (txn(1, "contents"), txn(2, "dashboards"));
        assert_eq!((gate.passage(&names), gate.passage(&other)), (Passage::Held, Passage::Open));
        gate.handle_sent(names.id);
        assert_eq!(gate.passage(&names), Passage::Open);
        gate.handle_missing(names.id);
        assert_eq!(gate.passage(&names), Passage::Held, "the datastore has the last word");
        gate.handle_sent(names.id);
        gate.handle_disconnected();
        assert_eq!(gate.passage(&names), Passage::Held, "another datastore's life may lack what this one had");
    }

    #[test]
    fn nothing_waits_for_what_cannot_come() {
        let mut gate = Gate::new(true);
        let names = txn(1, "contents");
        gate.handle_lost(names.id);
        assert_eq!(gate.passage(&names), Passage::Forsaken);
        gate.handle_decided(names.id.origin, names.id.counter);
        assert_eq!(gate.passage(&names), Passage::Held, "what is decided is forgotten");
        let mut without = Gate::new(false);
        assert_eq!(without.passage(&names), Passage::Open);
        without.handle_missing(names.id);
        assert_eq!(without.passage(&names), Passage::Forsaken);
    }

    #[test]
    fn taking_contents_away_waits_for_nothing() {
        let mut delete = txn(1, "contents");
        let Op::Put { collection, key, .. } = delete.ops.remove(0) else { panic!("a put") };
        delete.ops.push(Op::Delete { collection, key });
        assert_eq!(Gate::new(true).passage(&delete), Passage::Open);
    }
}
