//! Filling a new store from rows or from compacted entries, in batches of bounded size.
//!
//! The store gets its position last, and only when the rows add up to the digest that was promised; until then it is
//! unfinished, and whoever finds it so discards it.

use super::apply;
use super::deletions;
use super::engine::{Batch, Slice};
use super::error::StateError;
use super::makers;
use super::meta::StateMeta;
use super::objects::{self, Object};
use super::origins;
use super::store::StateStore;
use super::withheld::{self, WithheldObject};
use crate::model::deletions::{Changed, Deletions};
use crate::model::position::Chain;
use crate::model::{
    Collection, Digest, DigestSet, Entry, Generation, Key, Lineage, LogId, Maker, Origin, OriginRow, Seq,
};

/// Rows are written in batches of about this size.
const BATCH_BYTES: usize = 1 << 20;

/// The position that a filled store will stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which log.
    pub log_id: LogId,
    /// Which generation of it.
    pub generation: Generation,
    /// How the generations descend from each other.
    pub lineage: Lineage,
    /// Last entry that the rows include.
    pub seq: Seq,
    /// Chain at that entry.
    pub chain: Chain,
    /// When that entry was committed.
    pub time_ms: u64,
    /// Every deletion after this sequence is among the rows or entries; `None`: what was deleted up to `seq` is not known.
    pub deletions_after: Option<Seq>,
    /// What the rows must add up to; `None` only where no digest is known, as when the log itself is the source.
    pub digest: Option<Digest>,
}

/// A store being filled. Dropping it leaves the store unfinished.
pub struct Loader {
    store: StateStore,
    digests: DigestSet,
    deletions: Deletions,
    batch: Batch,
    batch_bytes: usize,
    rows: u64,
    is_redacted: bool,
}

impl Loader {
    pub(super) fn new(store: StateStore) -> Loader {
        let (digests, deletions) = (DigestSet::default(), Deletions::default());
        Loader { store, digests, deletions, batch: Vec::new(), batch_bytes: 0, rows: 0, is_redacted: false }
    }

    /// Rows taken in so far.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Takes in an object. Each may come once; one that comes twice makes the digest wrong.
    ///
    /// # Errors
    /// When the store cannot write.
    pub fn object(&mut self, collection: &Collection, key: &Key, object: &Object) -> Result<(), StateError> {
        self.digests.add_object(collection, key, object.version, &object.value);
        let row_key = objects::key(collection.as_str(), key.as_str());
        let row = objects::encode(&row_key, object.version, object.time_ms, &object.value);
        self.push(Slice::from(row_key), row)
    }

    /// Makes this a state from which values are withheld, also when it has no such object yet.
    pub fn redact(&mut self) {
        self.is_redacted = true;
    }

    /// Takes in an object whose value is withheld. Each may come once.
    ///
    /// # Errors
    /// Before [`Loader::redact`], and when the store cannot write.
    pub fn withheld(&mut self, object: &WithheldObject) -> Result<(), StateError> {
        if !self.is_redacted {
            return Err(StateError::Redacted);
        }
        self.digests.add_withheld(&object.object);
        let row_key = withheld::key(&object.object.collection, &object.object.key);
        let row = withheld::encode(&row_key, object);
        self.push(Slice::from(row_key), row)
    }

    /// Takes in an origin's row. Each may come once.
    ///
    /// # Errors
    /// When the store cannot write.
    pub fn origin(&mut self, origin: Origin, row: &OriginRow) -> Result<(), StateError> {
        self.digests.replace_origin(origin, None, Some(row));
        let row_key = origins::key(origin);
        let value = origins::encode(&row_key, row);
        self.push(Slice::from(row_key), value)
    }

    /// Takes in who made the transactions of an origin. Makers are part of no digest.
    ///
    /// # Errors
    /// When the store cannot write.
    pub fn maker(&mut self, origin: Origin, maker: &Maker) -> Result<(), StateError> {
        let (key, row) = makers::row(origin, maker);
        self.push(key, row)
    }

    /// Takes in what was deleted lately, all at once.
    ///
    /// # Errors
    /// When the store cannot write.
    pub fn deletions(&mut self, deletions: Deletions) -> Result<(), StateError> {
        let rows = deletions.rows().map(|(seq, name)| (name.clone(), Some(seq)));
        deletions::push(&mut self.batch, rows.collect());
        self.deletions = deletions;
        self.write()
    }

    fn push(&mut self, key: Slice, row: Slice) -> Result<(), StateError> {
        self.rows += 1;
        self.batch_bytes += key.len() + row.len();
        self.batch.push((key, Some(row)));
        if self.batch_bytes >= BATCH_BYTES { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<(), StateError> {
        self.batch_bytes = 0;
        self.store.engine().write(std::mem::take(&mut self.batch))
    }

    /// Takes in entries of compacted segments, in the order of their sequences; gaps are expected. Operations that
    /// later ones replace do no harm. Origins are not touched: their rows come by [`Loader::origin`]. Of makers it takes in
    /// their names: what their last transactions held is not in a base. Of deletions it takes in what
    /// [`Target::deletions_after`] vouches for.
    ///
    /// # Errors
    /// When the store cannot read or write.
    pub fn base(&mut self, entries: &[Entry]) -> Result<(), StateError> {
        if !self.batch.is_empty() {
            self.write()?;
        }
        let whole = apply::Whole { engine: self.store.engine(), digests: &self.digests, is_redacted: false };
        let mut changes = apply::stage(whole, entries, false)?;
        let mut batch = std::mem::take(&mut changes.batch);
        self.rows += batch.len() as u64;
        let mut deleted = Changed::new();
        entries.iter().for_each(|entry| self.deletions.take(entry, &mut deleted));
        deletions::push(&mut batch, deleted);
        makers::of_base(entries, &mut batch);
        self.store.engine().write(batch)?;
        changes.merge_into(&mut self.digests);
        Ok(())
    }

    /// Checks the digest, gives the store its position and makes it durable.
    ///
    /// # Errors
    /// [`StateError::DigestMismatch`] when the rows are not those that were promised; the store stays unfinished.
    pub fn finish(mut self, target: Target) -> Result<StateStore, StateError> {
        self.write()?;
        let found = self.digests.overall();
        if let Some(expected) = target.digest
            && expected != found
        {
            return Err(StateError::DigestMismatch { expected, found });
        }
        let Target { log_id, generation, lineage, seq, chain, time_ms, deletions_after, .. } = target;
        let mut forgotten = Changed::new();
        self.deletions.forget_to(deletions_after.unwrap_or(seq), &mut forgotten);
        deletions::push(&mut self.batch, forgotten);
        self.write()?;
        deletions::check(&*self.store.engine().snapshot(), &self.deletions, seq)?;
        let (digests, is_redacted) = (self.digests, self.is_redacted);
        let meta = StateMeta { log_id, generation, lineage, seq, chain, time_ms, digests, digest: found, is_redacted };
        self.store.finish(meta, self.deletions)?;
        Ok(self.store)
    }
}
