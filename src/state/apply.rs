//! Converts entries into a single batch of row changes.
//!
//! Contributions to the sums cancel out: the contribution of an object version between two writes in the same batch is
//! added and subtracted again. So each object that a batch changes is read once and written once, however often it
//! changes in between.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use super::engine::{Batch, Engine, Slice};
use super::error::StateError;
use super::withheld::{self, WithheldObject};
use super::{authors, meta, objects, origins};
use gravwell_model::digest::CollectionSum;
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::{Collection, Digest, DigestSet, Entry, EntryBody, Key, Op, Origin, OriginRow, Seq, Withheld};

/// The changed rows, and the sums of the affected collections.
pub(super) struct Changes {
    pub(super) batch: Batch,
    /// Sums after the change, of affected collections only, and the digest of the origins.
    sums: DigestSet,
    /// Every affected collection with its sum before the change.
    before: HashMap<Collection, Option<CollectionSum>>,
}

/// The last operation of a batch on one object.
struct Last<'a> {
    word: Word<'a>,
    version: Seq,
    time_ms: u64,
}

#[derive(Clone, Copy)]
enum Word<'a> {
    Op(&'a Op),
    Withheld(&'a Withheld),
}

impl<'a> Word<'a> {
    fn name(self) -> (&'a Collection, &'a Key) {
        match self {
            Word::Op(op) => (op.collection(), op.key()),
            Word::Withheld(object) => (&object.collection, &object.key),
        }
    }

    fn is_delete(self) -> bool {
        matches!(self, Word::Op(Op::Delete { .. }))
    }
}

/// The state to change.
#[derive(Clone, Copy)]
pub(super) struct Whole<'a> {
    pub(super) engine: &'a dyn Engine,
    pub(super) digests: &'a DigestSet,
    /// Whether this is a redacted state, from which values are withheld.
    pub(super) is_redacted: bool,
}

/// Computes the changes made by `entries`. Rows of origins are not changed if `with_origins` is false.
pub(super) fn stage(state: Whole<'_>, entries: &[Entry], with_origins: bool) -> Result<Changes, StateError> {
    let is_redacted = |entry: &&Entry| matches!(entry.body, EntryBody::Redacted { .. });
    if let Some(entry) = entries.iter().find(is_redacted).filter(|_| !state.is_redacted) {
        return Err(StateError::RedactedEntry { seq: entry.seq });
    }
    let last = last_words(entries);
    let sums = DigestSet { origins: state.digests.origins, ..DigestSet::default() };
    let mut changes = Changes { batch: Vec::with_capacity(last.len() + 8), sums, before: HashMap::new() };
    for last in last {
        changes.object(state, &last)?;
    }
    if with_origins {
        changes.origins(state.engine, entries)?;
        authors::stage(state.engine, entries, &mut changes.batch)?;
    }
    Ok(changes)
}

fn last_words(entries: &[Entry]) -> Vec<Last<'_>> {
    let mut places = HashMap::<(&str, &str), usize>::new();
    let mut words = Vec::<Last<'_>>::new();
    for entry in entries {
        let Some((txn, withheld)) = entry.body.committed() else { continue };
        for word in txn.ops.iter().map(Word::Op).chain(withheld.iter().map(Word::Withheld)) {
            let last = Last { word, version: entry.seq, time_ms: entry.time_ms };
            let (collection, key) = word.name();
            match places.entry((collection.as_str(), key.as_str())) {
                Slot::Occupied(place) => words[*place.get()] = last,
                Slot::Vacant(place) => {
                    place.insert(words.len());
                    words.push(last);
                }
            }
        }
    }
    // In key order, neighbouring rows share blocks of the engine.
    words.sort_unstable_by_key(|last| last.word.name());
    words
}

impl Changes {
    fn object(&mut self, state: Whole<'_>, last: &Last<'_>) -> Result<(), StateError> {
        let (collection, key) = last.word.name();
        let row_key = objects::key(collection.as_str(), key.as_str());
        let old = state.engine.get(&row_key)?.map(|row| objects::decode(&row_key, row)).transpose()?;
        let withheld_key = state.is_redacted.then(|| withheld::key(collection, key));
        let old_withheld = withheld_key.clone().map(|key| withheld::get(state.engine, key)).transpose()?.flatten();
        if old.is_none() && old_withheld.is_none() && last.word.is_delete() {
            return Ok(());
        }
        self.touch(collection, state.digests);
        let kept = fault_injection::is(Bug::DigestWithoutDelete) && last.word.is_delete();
        if let Some(old) = old.as_ref().filter(|_| !kept) {
            self.sums.remove_object(collection, key, old.version, old.value());
        }
        if let Some(old) = old_withheld.as_ref().filter(|_| !kept) {
            self.sums.remove_withheld(&old.object);
        }
        let (mut row, mut withheld_row) = (None, None);
        match last.word {
            Word::Op(op) => {
                row = op.value().map(|value| {
                    self.sums.add_object(collection, key, last.version, value);
                    objects::encode(&row_key, last.version, last.time_ms, value)
                });
            }
            Word::Withheld(object) => {
                self.sums.add_withheld(object);
                let (version, time_ms) = (last.version, last.time_ms);
                let object = WithheldObject { version, time_ms, object: object.clone() };
                withheld_row = withheld_key.as_ref().map(|key| withheld::encode(key, &object));
            }
        }
        self.batch.push((Slice::from(row_key), row));
        if let Some(key) = withheld_key.filter(|_| old_withheld.is_some() || withheld_row.is_some()) {
            self.batch.push((Slice::from(key), withheld_row));
        }
        Ok(())
    }

    /// Records the sum of a collection that is about to change.
    fn touch(&mut self, collection: &Collection, digests: &DigestSet) {
        if self.before.contains_key(collection) {
            return;
        }
        let sum = digests.collections.get(collection).copied();
        self.before.insert(collection.clone(), sum);
        if let Some(sum) = sum {
            self.sums.collections.insert(collection.clone(), sum);
        }
    }

    fn origins(&mut self, engine: &dyn Engine, entries: &[Entry]) -> Result<(), StateError> {
        let mut rows = HashMap::<Origin, (Option<OriginRow>, OriginRow)>::new();
        for entry in entries {
            let Some((origin, counter, settled, rejected)) = origins::outcome(entry) else { continue };
            let (_, row) = match rows.entry(origin) {
                Slot::Occupied(slot) => slot.into_mut(),
                Slot::Vacant(slot) => {
                    let row_key = origins::key(origin);
                    let old = engine.get(&row_key)?.map(|row| origins::decode(&row_key, &row)).transpose()?;
                    let new = old.clone().unwrap_or_default();
                    slot.insert((old, new))
                }
            };
            row.record(entry.seq, counter, settled, rejected.cloned());
        }
        for (origin, (old, new)) in rows {
            let row_key = origins::key(origin);
            self.sums.replace_origin(origin, old.as_ref(), Some(&new));
            self.batch.push((Slice::from(row_key), Some(origins::encode(&row_key, &new))));
        }
        Ok(())
    }

    /// Returns the digest of the origins after the change.
    pub(super) fn origins_digest(&self) -> Digest {
        self.sums.origins
    }

    /// Returns the overall digest after the change, given the one before.
    pub(super) fn overall(&self, before: Digest, origins_before: Digest) -> Digest {
        let taken = self.before.values().flatten().fold(before.minus(origins_before), |d, sum| d.minus(sum.digest));
        self.sums.collections.values().fold(taken.plus(self.sums.origins), |d, sum| d.plus(sum.digest))
    }

    /// Adds the rows of the affected sums to the batch.
    pub(super) fn push_sums(&mut self) {
        for collection in self.before.keys() {
            meta::push_sum(&mut self.batch, collection, self.sums.collections.get(collection));
        }
    }

    pub(super) fn merge_into(mut self, digests: &mut DigestSet) {
        digests.origins = self.sums.origins;
        for collection in self.before.into_keys() {
            match self.sums.collections.remove(&collection) {
                Some(sum) => digests.collections.insert(collection, sum),
                None => digests.collections.remove(&collection),
            };
        }
    }
}
