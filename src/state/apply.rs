//! From entries to the one batch that they become.
//!
//! Sums cancel: what an object was worth between two writes in the same batch is added and taken away again. So each
//! object that a batch touches is read once and written once, however often it changes in between.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use super::engine::{Batch, Engine, Slice};
use super::error::StateError;
use super::{makers, meta, objects, origins};
use crate::model::digest::CollectionSum;
use crate::model::{Collection, Digest, DigestSet, Entry, EntryBody, Op, Origin, OriginRow, Seq};
use crate::planted::{self, Bug};

/// The rows that change, and the sums of the collections concerned.
pub(super) struct Changes {
    pub(super) batch: Batch,
    /// Sums after the change, of touched collections only; and the origins' digest.
    sums: DigestSet,
    /// Every touched collection with its sum before.
    before: HashMap<Collection, Option<CollectionSum>>,
}

/// The last word of a batch on one object.
struct Last<'a> {
    op: &'a Op,
    version: Seq,
    time_ms: u64,
}

/// Works out what `entries` change. Origins are left alone when `with_origins` is false.
pub(super) fn stage(
    engine: &dyn Engine,
    entries: &[Entry],
    digests: &DigestSet,
    with_origins: bool,
) -> Result<Changes, StateError> {
    let last = last_words(entries);
    let sums = DigestSet { origins: digests.origins, ..DigestSet::default() };
    let mut changes = Changes { batch: Vec::with_capacity(last.len() + 8), sums, before: HashMap::new() };
    for last in last {
        changes.object(engine, digests, &last)?;
    }
    if with_origins {
        changes.origins(engine, entries)?;
        makers::stage(engine, entries, &mut changes.batch)?;
    }
    Ok(changes)
}

fn last_words(entries: &[Entry]) -> Vec<Last<'_>> {
    let ops = entries.iter().filter_map(|entry| match &entry.body {
        EntryBody::Commit(txn) => Some((entry, txn)),
        EntryBody::Reject { .. } | EntryBody::Unknown { .. } => None,
    });
    let mut places = HashMap::<(&str, &str), usize>::new();
    let mut words = Vec::<Last<'_>>::new();
    for (entry, txn) in ops {
        for op in &txn.ops {
            let word = Last { op, version: entry.seq, time_ms: entry.time_ms };
            match places.entry((op.collection().as_str(), op.key().as_str())) {
                Slot::Occupied(place) => words[*place.get()] = word,
                Slot::Vacant(place) => {
                    place.insert(words.len());
                    words.push(word);
                }
            }
        }
    }
    // In key order, neighbours share the engine's blocks.
    words.sort_unstable_by_key(|word| (word.op.collection(), word.op.key()));
    words
}

impl Changes {
    fn object(&mut self, engine: &dyn Engine, digests: &DigestSet, last: &Last<'_>) -> Result<(), StateError> {
        let (collection, key) = (last.op.collection(), last.op.key());
        let row_key = objects::key(collection.as_str(), key.as_str());
        let old = engine.get(&row_key)?.map(|row| objects::decode(&row_key, row)).transpose()?;
        if old.is_none() && last.op.value().is_none() {
            return Ok(());
        }
        if !self.before.contains_key(collection) {
            let sum = digests.collections.get(collection).copied();
            self.before.insert(collection.clone(), sum);
            if let Some(sum) = sum {
                self.sums.collections.insert(collection.clone(), sum);
            }
        }
        let kept = planted::is(Bug::DigestWithoutDelete) && last.op.value().is_none();
        if let Some(old) = old.filter(|_| !kept) {
            self.sums.remove_object(collection, key, old.version, old.value());
        }
        let row = last.op.value().map(|value| {
            self.sums.add_object(collection, key, last.version, value);
            objects::encode(&row_key, last.version, last.time_ms, value)
        });
        self.batch.push((Slice::from(row_key), row));
        Ok(())
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

    /// The origins' digest after the change.
    pub(super) fn origins_digest(&self) -> Digest {
        self.sums.origins
    }

    /// The digest over everything after the change, given the one before.
    pub(super) fn overall(&self, before: Digest, origins_before: Digest) -> Digest {
        let taken = self.before.values().flatten().fold(before.minus(origins_before), |d, sum| d.minus(sum.digest));
        self.sums.collections.values().fold(taken.plus(self.sums.origins), |d, sum| d.plus(sum.digest))
    }

    /// Adds the rows of the touched sums to the batch.
    pub(super) fn push_sums(&mut self) {
        for collection in self.before.keys() {
            meta::push_sum(&mut self.batch, collection, self.sums.collections.get(collection));
        }
    }

    /// Brings a full set of sums up to date.
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
