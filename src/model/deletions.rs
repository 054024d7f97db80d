//! Recent deletions: for each object that a committed transaction deleted and that is absent now, the sequence of its deletion.
//!
//! The absence of an object does not show whether it ever existed. A state therefore keeps recent deletions within
//! fixed limits. If there are more, the oldest are dropped, and the state records the sequence after which its
//! deletions are complete. Deletions are not part of the state digest, because equal states may have kept different
//! numbers of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::ids::Seq;
use super::txn::{Collection, Entry, Key, Op};

/// Maximum number of deletions.
pub const ROWS_MAX: usize = 1 << 16;
/// Maximum total length of their collection names and keys in bytes.
pub const BYTES_MAX: usize = 4 << 20;

/// Collection and key of an object.
pub type Named = (Collection, Key);
/// Changed rows: the sequence of the object's deletion, or `None` if the row was removed.
pub type Changed = HashMap<Named, Option<Seq>>;

/// Time of the last deletion of an absent object, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deleted {
    /// At this sequence.
    At(Seq),
    /// Not after this sequence; whether it ever was is not known.
    NotAfter(Seq),
}

impl Deleted {
    /// The sequence after which it was not deleted.
    #[must_use]
    pub fn latest(self) -> Seq {
        match self {
            Deleted::At(seq) | Deleted::NotAfter(seq) => seq,
        }
    }
}

/// Summary of recent deletions, to detect missing or changed rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// All deletions after this sequence are known.
    pub complete_after: Seq,
    /// Number of deletions.
    pub rows: u64,
    /// Sum of the digests of all deletions.
    pub digest: Digest,
}

/// Recent deletions of one history, up to its current position.
#[derive(Clone, Debug)]
pub struct Deletions {
    complete_after: Seq,
    by_name: HashMap<Collection, HashMap<Key, Seq>>,
    by_seq: BTreeMap<Seq, BTreeSet<Named>>,
    rows: usize,
    bytes: usize,
    digest: Digest,
    rows_max: usize,
    bytes_max: usize,
}

impl Default for Deletions {
    fn default() -> Self {
        Deletions::bounded(ROWS_MAX, BYTES_MAX)
    }
}

impl Deletions {
    /// Creates an empty set in which the deletions up to `seq` are unknown.
    #[must_use]
    pub fn after(seq: Seq) -> Deletions {
        Deletions { complete_after: seq, ..Deletions::default() }
    }

    /// Creates the deletions of an empty history with the given limits.
    #[must_use]
    pub fn bounded(rows_max: usize, bytes_max: usize) -> Deletions {
        Deletions {
            complete_after: Seq::ZERO,
            by_name: HashMap::new(),
            by_seq: BTreeMap::new(),
            rows: 0,
            bytes: 0,
            digest: Digest::ZERO,
            rows_max,
            bytes_max,
        }
    }

    /// Adds a stored row.
    ///
    /// # Errors
    /// If the row cannot have been stored: it is a duplicate, precedes the complete range or exceeds a limit.
    pub fn restore(&mut self, name: Named, seq: Seq) -> Result<(), &'static str> {
        if seq <= self.complete_after {
            return Err("a deletion precedes the known range");
        }
        if self.get(&name.0, &name.1).is_some() {
            return Err("duplicate deletion");
        }
        self.insert(name, seq);
        if self.is_too_large() { Err("too many deletions") } else { Ok(()) }
    }

    /// Returns the sequence after which all deletions are known.
    #[must_use]
    pub fn complete_after(&self) -> Seq {
        self.complete_after
    }

    /// Returns the number of deletions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Returns whether there are no deletions.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Returns the summary.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary { complete_after: self.complete_after, rows: self.rows as u64, digest: self.digest }
    }

    /// Returns the sequence at which an object was deleted; `None` if it exists, was never deleted, or the deletion was dropped.
    #[must_use]
    pub fn get(&self, collection: &Collection, key: &Key) -> Option<Seq> {
        self.by_name.get(collection)?.get(key).copied()
    }

    /// Returns when an absent object was last deleted, as far as that is known.
    #[must_use]
    pub fn deleted(&self, collection: &Collection, key: &Key) -> Deleted {
        self.get(collection, key).map_or(Deleted::NotAfter(self.complete_after), Deleted::At)
    }

    /// Returns all deletions, ordered by sequence.
    pub fn rows(&self) -> impl Iterator<Item = (Seq, &Named)> {
        self.by_seq.iter().flat_map(|(seq, names)| names.iter().map(|name| (*seq, name)))
    }

    /// Applies the next entry; adds the rows that change to `changed`.
    pub fn take(&mut self, entry: &Entry, changed: &mut Changed) {
        let Some((txn, withheld)) = entry.body.committed() else { return };
        for object in withheld {
            if self.remove(&object.collection, &object.key).is_some() {
                changed.insert((object.collection.clone(), object.key.clone()), None);
            }
        }
        for op in &txn.ops {
            let former = if self.is_empty() { None } else { self.remove(op.collection(), op.key()) };
            if matches!(op, Op::Delete { .. }) && entry.seq > self.complete_after {
                let name = (op.collection().clone(), op.key().clone());
                changed.insert(name.clone(), Some(entry.seq));
                self.insert(name, entry.seq);
                while self.is_too_large() {
                    self.forget_oldest(changed);
                }
            } else if former.is_some() {
                changed.insert((op.collection().clone(), op.key().clone()), None);
            }
        }
    }

    /// Drops the deletions up to `seq`.
    pub fn forget_to(&mut self, seq: Seq, changed: &mut Changed) {
        while self.by_seq.first_key_value().is_some_and(|(oldest, _)| *oldest <= seq) {
            self.forget_oldest(changed);
        }
        self.complete_after = self.complete_after.max(seq);
    }

    fn is_too_large(&self) -> bool {
        self.rows > self.rows_max || self.bytes > self.bytes_max
    }

    fn forget_oldest(&mut self, changed: &mut Changed) {
        let Some((seq, names)) = self.by_seq.first_key_value().map(|(seq, names)| (*seq, names.clone())) else {
            return;
        };
        for name in names {
            self.remove(&name.0, &name.1);
            changed.insert(name, None);
        }
        self.complete_after = self.complete_after.max(seq);
    }

    fn insert(&mut self, name: Named, seq: Seq) {
        self.rows += 1;
        self.bytes += bytes_of(&name.0, &name.1);
        self.digest = self.digest.plus(Digest::of_object(&name.0, &name.1, seq, b""));
        match self.by_name.get_mut(&name.0) {
            Some(keys) => keys.insert(name.1.clone(), seq),
            None => self.by_name.entry(name.0.clone()).or_default().insert(name.1.clone(), seq),
        };
        self.by_seq.entry(seq).or_default().insert(name);
    }

    fn remove(&mut self, collection: &Collection, key: &Key) -> Option<Seq> {
        let keys = self.by_name.get_mut(collection)?;
        let seq = keys.remove(key)?;
        if keys.is_empty() {
            self.by_name.remove(collection);
        }
        if let Some(names) = self.by_seq.get_mut(&seq) {
            names.remove(&(collection.clone(), key.clone()));
            if names.is_empty() {
                self.by_seq.remove(&seq);
            }
        }
        self.rows -= 1;
        self.bytes -= bytes_of(collection, key);
        self.digest = self.digest.minus(Digest::of_object(collection, key, seq, b""));
        Some(seq)
    }
}

impl PartialEq for Deletions {
    fn eq(&self, other: &Self) -> bool {
        self.complete_after == other.complete_after && self.by_name == other.by_name
    }
}

impl Eq for Deletions {}

fn bytes_of(collection: &Collection, key: &Key) -> usize {
    collection.as_str().len() + key.len()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::{EntryBody, MemberName, OriginCounter, Txn, TxnId};

    fn name(key: u8) -> Named {
        (Collection::new(format!("c{}", key % 2)).expect("name"), Key::new(format!("k{key}")).expect("key"))
    }

    fn entry(seq: u64, ops: &[(u8, bool)]) -> Entry {
        let op = |(key, is_put): &(u8, bool)| {
            let (collection, key) = name(*key);
            match is_put {
                true => Op::Put { collection, key, value: Bytes::new() },
                false => Op::Delete { collection, key },
            }
        };
        let (id, ops) = (TxnId::default(), ops.iter().map(op).collect());
        let txn = Txn { id, settled: OriginCounter(0), time_ms: 0, note: Bytes::new(), conditions: vec![], ops };
        let member = MemberName::new("m").expect("name");
        Entry { seq: Seq(seq), time_ms: 0, member, body: EntryBody::Commit(txn) }
    }

    proptest! {
        #[test]
        fn p04_every_deletion_after_the_oldest_that_is_known_is_known_and_nothing_else(
            txns in prop::collection::vec(prop::collection::vec((0u8..12, prop::bool::weighted(0.4)), 0..6), 0..60),
            rows_max in 1usize..9,
            bytes_max in 4usize..40,
        ) {
            let (mut kept, mut rows) = (Deletions::bounded(rows_max, bytes_max), HashMap::new());
            let mut last = HashMap::<Named, (Seq, bool)>::new();
            for (seq, ops) in (1..).zip(&txns) {
                let before = kept.complete_after();
                let mut changed = Changed::new();
                kept.take(&entry(seq, ops), &mut changed);
                for (name, row) in changed {
                    match row {
                        Some(seq) => rows.insert(name, seq),
                        None => rows.remove(&name),
                    };
                }
                last.extend(ops.iter().map(|(key, is_put)| (name(*key), (Seq(seq), *is_put))));
                let expected: HashMap<Named, Seq> = last
                    .iter()
                    .filter(|(_, (seq, is_put))| !is_put && *seq > kept.complete_after())
                    .map(|(name, (seq, _))| (name.clone(), *seq))
                    .collect();
                prop_assert_eq!(&rows, &expected, "the written rows");
                let found: HashMap<Named, Seq> = kept.rows().map(|(seq, name)| (name.clone(), seq)).collect();
                prop_assert_eq!(&found, &expected);
                prop_assert!(kept.len() <= rows_max && kept.bytes <= bytes_max && kept.complete_after() >= before);
                prop_assert!(kept.rows().is_sorted());
                let mut again = Deletions { complete_after: kept.complete_after(), ..Deletions::bounded(rows_max, bytes_max) };
                for (name, seq) in found {
                    prop_assert_eq!(again.restore(name, seq), Ok(()));
                }
                prop_assert_eq!(again.summary(), kept.summary());
                prop_assert_eq!(again, kept.clone());
            }
        }
    }

    #[test]
    fn p15_rows_that_were_never_written_are_refused() {
        let mut kept = Deletions { complete_after: Seq(5), ..Deletions::bounded(2, 100) };
        assert!(kept.restore(name(1), Seq(5)).is_err());
        assert_eq!(kept.restore(name(1), Seq(6)), Ok(()));
        assert!(kept.restore(name(1), Seq(7)).is_err());
        assert_eq!(kept.restore(name(2), Seq(6)), Ok(()));
        assert!(kept.restore(name(3), Seq(7)).is_err());
    }

    #[test]
    fn deletions_dropped_on_purpose_make_the_list_incomplete() {
        let mut kept = Deletions::default();
        kept.take(&entry(1, &[(1, false)]), &mut Changed::new());
        kept.take(&entry(2, &[(2, false)]), &mut Changed::new());
        let mut changed = Changed::new();
        kept.forget_to(Seq(1), &mut changed);
        assert_eq!((kept.complete_after(), kept.len(), changed.len()), (Seq(1), 1, 1));
        kept.forget_to(Seq(9), &mut changed);
        assert_eq!((kept.complete_after(), kept.len(), kept.summary().digest), (Seq(9), 0, Digest::ZERO));
    }
}
