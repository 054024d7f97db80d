//! Interprets bytes as a sequence of choices, and generates transactions over a few objects.

use bytes::Bytes;

use gravwell_model::{Collection, Condition, Key, Op, Origin, OriginCounter, Seq, Txn, TxnId};

/// Few names, so that transactions conflict; some names are prefixes of others.
const COLLECTIONS: [&str; 2] = ["c", "cc"];
const KEYS: [&str; 5] = ["a", "ab", "b", "ba", "\u{e4}"];

/// Choices, one byte each. After the last byte, every choice is the first option.
#[derive(Debug)]
pub struct Steps<'a>(&'a [u8]);

impl<'a> Steps<'a> {
    /// Reads choices from `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Steps<'a> {
        Steps(bytes)
    }

    /// Returns whether all bytes are used up.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns a number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        u64::from(*first) % bound.max(1)
    }

    /// Returns true with a probability of one in `of`.
    pub fn one_in(&mut self, of: u64) -> bool {
        self.below(of) == of - 1
    }

    /// Returns one of a few origins.
    pub fn origin(&mut self) -> Origin {
        let number = u8::try_from(self.below(3)).unwrap_or_default();
        Origin([number + 1; 16])
    }

    /// Returns the name of one of a few objects.
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
        match self.below(5) {
            0 => Condition::Absent { collection, key },
            3 => Condition::absent_since(collection, key, Seq(head.0.saturating_sub(self.below(4)))),
            1 => Condition::Present { collection, key },
            2 => {
                let id = TxnId { origin: self.origin(), counter: OriginCounter(1 + self.below(6)) };
                Condition::written_by(collection, key, id)
            }
            _ => Condition::Version { collection, key, version: Seq(head.0.saturating_sub(self.below(4))) },
        }
    }

    /// Creates a transaction `id`, as if created when the head of the log was `head`.
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

/// Returns the names of all objects.
pub fn names() -> impl Iterator<Item = (Collection, Key)> {
    (0..COLLECTIONS.len()).flat_map(|collection| (0..KEYS.len()).map(move |key| name_at(collection, key)))
}
