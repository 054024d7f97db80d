//! Fills a new store with rows or with compacted entries, in batches of bounded size.
//!
//! The store gets its position last, and only if the rows add up to the expected digest; until then it is unfinished
//! and has to be discarded.

use super::apply;
use super::authors;
use super::deletions;
use super::engine::{Batch, Slice};
use super::error::StateError;
use super::meta::StateMeta;
use super::objects::{self, Object};
use super::origins;
use super::store::StateStore;
use super::withheld::{self, WithheldObject};
use gravwell_model::deletions::{Changed, Deletions};
use gravwell_model::position::Chain;
use gravwell_model::{
    Collection, Digest, DigestSet, Entry, Generation, Key, Lineage, LogId, Maker, Origin, OriginRow, Seq,
};

/// Approximate size of the batches in which rows are written.
const BATCH_BYTES: usize = 1 << 20;

/// The position of the finished store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Id of the log.
    pub log_id: LogId,
    /// Generation of the log.
    pub generation: Generation,
    /// Descent of the generations.
    pub lineage: Lineage,
    /// Last entry that the rows include.
    pub seq: Seq,
    /// Chain value at that entry.
    pub chain: Chain,
    /// Commit time of that entry, in milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// Every deletion after this sequence is among the rows or entries; `None` if the deletions up to `seq` are unknown.
    pub deletions_after: Option<Seq>,
    /// Expected digest of the rows; `None` only if no digest is known, for example when the log itself is the source.
    pub digest: Option<Digest>,
}

/// A store that is being filled. Dropping it leaves the store unfinished.
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

    /// Returns the number of rows added so far.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Adds an object. Each object may be added once; a second time makes the digest wrong.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn object(&mut self, collection: &Collection, key: &Key, object: &Object) -> Result<(), StateError> {
        self.digests.add_object(collection, key, object.version, &object.value);
        let row_key = objects::key(collection.as_str(), key.as_str());
        let row = objects::encode(&row_key, object.version, object.time_ms, &object.value);
        self.push(Slice::from(row_key), row)
    }

    /// Marks this as a redacted state, even if it has no object with a withheld value yet.
    pub fn redact(&mut self) {
        self.is_redacted = true;
    }

    /// Adds an object with a withheld value. Each object may be added once.
    ///
    /// # Errors
    /// If [`Loader::redact`] was not called before, or if the store cannot be written.
    pub fn withheld(&mut self, object: &WithheldObject) -> Result<(), StateError> {
        if !self.is_redacted {
            return Err(StateError::Redacted);
        }
        self.digests.add_withheld(&object.object);
        let row_key = withheld::key(&object.object.collection, &object.object.key);
        let row = withheld::encode(&row_key, object);
        self.push(Slice::from(row_key), row)
    }

    /// Adds the row of an origin. Each origin may be added once.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn origin(&mut self, origin: Origin, row: &OriginRow) -> Result<(), StateError> {
        self.digests.replace_origin(origin, None, Some(row));
        let row_key = origins::key(origin);
        let value = origins::encode(&row_key, row);
        self.push(Slice::from(row_key), value)
    }

    /// Adds the author of the transactions of an origin. Makers are not part of any digest.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn maker(&mut self, origin: Origin, maker: &Maker) -> Result<(), StateError> {
        let (key, row) = authors::row(origin, maker);
        self.push(key, row)
    }

    /// Adds all recent deletions at once.
    ///
    /// # Errors
    /// If the store cannot be written.
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

    /// Adds entries of compacted segments in ascending order of sequence; gaps are expected. Operations that later
    /// ones replace do no harm. Rows of origins are not changed: they are added by [`Loader::origin`]. Of the makers
    /// only the member names are added, because a base does not contain the hashes of their last transactions. Of the
    /// deletions, those covered by [`Target::deletions_after`] are added.
    ///
    /// # Errors
    /// If the store cannot be read or written.
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
        authors::of_base(entries, &mut batch);
        self.store.engine().write(batch)?;
        changes.merge_into(&mut self.digests);
        Ok(())
    }

    /// Checks the digest, sets the position of the store and makes it durable.
    ///
    /// # Errors
    /// [`StateError::DigestMismatch`] if the rows do not have the expected digest; the store stays unfinished.
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
