//! Bytes as a sequence of choices, and a small world to make transactions in.

use bytes::Bytes;

use crate::model::{Collection, Condition, Key, Op, Origin, OriginCounter, Seq, Txn, TxnId};

/// Names of the small world: few, so that transactions meet; one begins like the other.
const COLLECTIONS: [&str; 2] = ["c", "cc"];
const KEYS: [&str; 5] = ["a", "ab", "b", "ba", "\u{e4}"];

/// Choices, one byte each. When the bytes are used up, every choice is the first one.
#[derive(Debug)]
pub struct Steps<'a>(&'a [u8]);

impl<'a> Steps<'a> {
    /// Reads choices from `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Steps<'a> {
        Steps(bytes)
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.0.is_empty()
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        u64::from(*first) % bound.max(1)
    }

    /// Whether something with a chance of one in `of` happens.
    pub fn one_in(&mut self, of: u64) -> bool {
        self.below(of) == of - 1
    }

    /// One of a few origins.
    pub fn origin(&mut self) -> Origin {
        let number = u8::try_from(self.below(3)).unwrap_or_default();
        Origin([number + 1; 16])
    }

    /// The name of one of a few objects.
    pub fn name(&mut self) -> (Collection, Key) {
        let (collections, keys) = (COLLECTIONS.len() as u64, KEYS.len() as u64);
        let mut pick = |of: u64| usize::try_from(self.below(of)).unwrap_or_default();
        name_at(pick(collections), pick(keys))
    }

    fn op(&mut self) -> Op {
        let (collection, key) = self.name();
        match self.below(4) {
            0 => Op::Delete { collection, key },
            value => Op::Put { collection, key, value: Bytes::from(vec![b'0'; usize::try_from(value).unwrap_or(1)]) },
        }
    }

    fn condition(&mut self, head: Seq) -> Condition {
        let (collection, key) = self.name();
        match self.below(4) {
            0 => Condition::Absent { collection, key },
            1 => Condition::Present { collection, key },
            2 => {
                let id = TxnId { origin: self.origin(), counter: OriginCounter(1 + self.below(6)) };
                Condition::written_by(collection, key, id)
            }
            _ => Condition::Version { collection, key, version: Seq(head.0.saturating_sub(self.below(4))) },
        }
    }

    /// A transaction of `id` made when the log stood at `head`.
    pub fn txn(&mut self, id: TxnId, head: Seq) -> Txn {
        let ops = (0..=self.below(3)).map(|_| self.op()).collect();
        let conditions = (0..self.below(3)).map(|_| self.condition(head)).collect();
        let settled = if self.one_in(4) { OriginCounter(self.below(6)) } else { OriginCounter(0) };
        Txn { id, settled, time_ms: 0, note: Bytes::new(), conditions, ops }
    }
}

fn name_at(collection: usize, key: usize) -> (Collection, Key) {
    let collection = Collection::new(COLLECTIONS[collection]).expect("invariant: a valid name");
    (collection, Key::new(KEYS[key]).expect("invariant: a valid key"))
}

/// All objects of the small world.
pub fn names() -> impl Iterator<Item = (Collection, Key)> {
    (0..COLLECTIONS.len()).flat_map(|collection| (0..KEYS.len()).map(move |key| name_at(collection, key)))
}
