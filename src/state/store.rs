//! The handle of a state: read from any thread, written from one.
//!
//! [`StateStore::apply`] is the only function that changes data and position of a finished state; it does so in one batch.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::apply;
use super::authors;
use super::deletions;
use super::engine::{Engine, Slice};
use super::error::StateError;
use super::fjall_engine::FjallEngine;
use super::loader::Loader;
use super::memory_engine::MemoryEngine;
use super::meta::{self, StateMeta};
use super::objects::{self, Object};
use super::origins;
use super::snapshot::StateSnapshot;
use super::unavailable_engine::UnavailableEngine;
use super::withheld::{self, WithheldObject};
use gravwell_env::damage::DamageRecord;
use gravwell_model::deletions::{Changed, Deleted, Deletions};
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::position::Chain;
use gravwell_model::{
    Collection, Digest, DigestSet, Entry, Generation, Key, Lineage, LogId, Maker, Origin, OriginRow, Position, Seq,
};

/// A state; clones are handles of the same state.
#[derive(Clone)]
pub struct StateStore(Arc<Inner>);

struct Inner {
    engine: Box<dyn Engine>,
    /// The recent deletions. Locked while a change is computed and written. A panic in that time leaves engine and
    /// cache in an unknown state, so a poisoned lock prevents all further writes.
    writer: Mutex<Deletions>,
    meta: Mutex<Option<Arc<StateMeta>>>,
    /// Damage found by reads of this state and of its snapshots.
    damage: DamageRecord,
}

/// Result of [`StateStore::check`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Number of rows read.
    pub rows: u64,
    /// The damage found; empty if the state is intact.
    pub damage: Vec<StateDamage>,
}

/// One finding of damage in a state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateDamage {
    /// A row or the engine is damaged; the scan ended there.
    #[error("{0}")]
    Row(StateError),
    /// The objects of a collection do not add up.
    #[error(
        "collection {collection}: {objects_found} objects with digest {found}, expected {objects_expected} with \
         {expected}"
    )]
    Collection {
        /// Name of the collection.
        collection: Collection,
        /// The stored digest.
        expected: Digest,
        /// Digest of the rows.
        found: Digest,
        /// The stored number of objects.
        objects_expected: u64,
        /// Number of rows.
        objects_found: u64,
    },
    /// The origins do not add up.
    #[error("origins: digest {found}, expected {expected}")]
    Origins {
        /// The stored digest.
        expected: Digest,
        /// Digest of the rows.
        found: Digest,
    },
}

impl StateStore {
    /// Opens the state in `dir`, or creates a new one there. A new state has no meta; see [`StateStore::init`] and
    /// [`StateStore::loader`].
    ///
    /// # Errors
    /// If another process has the state open, or its files are damaged.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<StateStore, StateError> {
        StateStore::with_engine(Box::new(FjallEngine::open(dir, cache_bytes)?))
    }

    /// Opens a view of the state in `dir` without changing its files. Everything that the storage engine has to write
    /// is in `scratch`, a new directory that the caller removes after it has dropped the state.
    ///
    /// # Errors
    /// See [`StateStore::open`].
    pub fn open_view(dir: &Path, scratch: &Path, cache_bytes: u64) -> Result<StateStore, StateError> {
        StateStore::with_engine(Box::new(FjallEngine::open_view(dir, scratch, cache_bytes)?))
    }

    /// Like [`StateStore::open_view`], for a process that will open `dir` itself if the state is found intact. Aborts
    /// of the storage engine are counted in `dir`.
    ///
    /// # Errors
    /// See [`StateStore::open`].
    pub fn try_view(dir: &Path, scratch: &Path, cache_bytes: u64) -> Result<StateStore, StateError> {
        StateStore::with_engine(Box::new(FjallEngine::try_view(dir, scratch, cache_bytes)?))
    }

    /// Creates a state that exists in memory only.
    #[must_use]
    pub fn in_memory() -> StateStore {
        let engine = Box::<MemoryEngine>::default();
        StateStore(Arc::new(Inner {
            engine,
            writer: Mutex::default(),
            meta: Mutex::new(None),
            damage: DamageRecord::default(),
        }))
    }

    /// Returns a stand-in for this state while it is being reopened: it has the same position, and every read and
    /// write fails with `reason`.
    #[must_use]
    pub fn stand_in(&self, reason: StateError) -> StateStore {
        let (engine, meta) = (Box::new(UnavailableEngine(reason)), Mutex::new(self.meta()));
        StateStore(Arc::new(Inner { engine, writer: Mutex::default(), meta, damage: self.0.damage.clone() }))
    }

    /// Opens a state on any engine.
    ///
    /// # Errors
    /// If the rows in the engine are damaged.
    pub fn with_engine(engine: Box<dyn Engine>) -> Result<StateStore, StateError> {
        let view = engine.snapshot();
        let meta = meta::load(&*view)?.map(Arc::new);
        let summary = meta::load_deletions(&*view)?;
        let at = meta.as_ref().map(|meta| meta.seq).unwrap_or_default();
        let deletions = deletions::load(&*view, summary, at)?;
        if meta.is_some() && summary.is_none() {
            let mut left = Vec::new();
            deletions::discard(&*view, &mut left)?;
            if !left.is_empty() {
                engine.write(left)?;
            }
        }
        let (writer, meta, damage) = (Mutex::new(deletions), Mutex::new(meta), DamageRecord::default());
        Ok(StateStore(Arc::new(Inner { engine, writer, meta, damage })))
    }

    fn writer(&self) -> Result<MutexGuard<'_, Deletions>, StateError> {
        let in_doubt = |_| StateError::Stopped { cause: "an earlier change of the state panicked".into() };
        self.0.writer.lock().map_err(in_doubt)
    }

    fn meta_lock(&self) -> MutexGuard<'_, Option<Arc<StateMeta>>> {
        self.0.meta.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the damage that reads of this state have found since it was opened.
    #[must_use]
    pub fn damage(&self) -> &DamageRecord {
        &self.0.damage
    }

    fn checked<T>(&self, result: Result<T, StateError>) -> Result<T, StateError> {
        self.0.damage.checked(result, StateError::is_damage)
    }

    /// Reads and decodes one row. All reads of single rows use this function.
    fn row<T>(
        &self,
        row_key: &[u8],
        decode: impl FnOnce(&[u8], Slice) -> Result<T, StateError>,
    ) -> Result<Option<T>, StateError> {
        let read = self.0.engine.get(row_key);
        self.checked(read.and_then(|row| row.map(|row| decode(row_key, row)).transpose()))
    }

    pub(super) fn engine(&self) -> &dyn Engine {
        &*self.0.engine
    }

    /// Damages the row of an origin.
    #[cfg(any(test, feature = "testing"))]
    pub fn damage_origin(&self, origin: Origin) {
        let row_key = Slice::from(super::origins::key(origin));
        self.engine().write(vec![(row_key, Some(Slice::from(*b"\x01junk")))]).expect("writes");
    }

    /// Returns the position and sums of the state; `None` if it is new or unfinished.
    #[must_use]
    pub fn meta(&self) -> Option<Arc<StateMeta>> {
        self.meta_lock().clone()
    }

    /// Returns the position of [`StateStore::meta`].
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.meta_lock().as_ref().map(|meta| meta.position())
    }

    /// Returns an error unless the store is completely empty.
    fn check_new(&self) -> Result<(), StateError> {
        if let Some(meta) = self.meta() {
            return Err(StateError::AlreadyInitialised { seq: meta.seq });
        }
        let (low, high) = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
        match self.0.engine.snapshot().range(low, high).next() {
            None => Ok(()),
            Some(row) => row.and(Err(StateError::Unfinished)),
        }
    }

    /// Initialises a new store as the empty state of a log.
    ///
    /// # Errors
    /// If the store is not new.
    pub fn init(&self, log_id: LogId, generation: Generation, lineage: Lineage) -> Result<(), StateError> {
        let deletions = self.writer()?;
        self.check_new()?;
        let (seq, chain, time_ms, digest) = (Seq::ZERO, Chain::default(), 0, Digest::ZERO);
        let (digests, is_redacted) = (DigestSet::default(), false);
        let meta = StateMeta { log_id, generation, lineage, seq, chain, time_ms, digests, digest, is_redacted };
        self.replace_meta(meta, &deletions)
    }

    /// Records that the log has a new generation; the history up to the current position is shared.
    ///
    /// # Errors
    /// If the store has no meta or cannot be written.
    pub fn set_generation(&self, generation: Generation, lineage: Lineage) -> Result<(), StateError> {
        let deletions = self.writer()?;
        let meta = self.meta().ok_or(StateError::Uninitialised)?;
        self.replace_meta(StateMeta { generation, lineage, ..(*meta).clone() }, &deletions)
    }

    fn replace_meta(&self, meta: StateMeta, deletions: &Deletions) -> Result<(), StateError> {
        let mut batch = Vec::new();
        meta::push_position(&mut batch, &meta, meta.digests.origins, deletions.summary());
        self.0.engine.write(batch)?;
        *self.meta_lock() = Some(Arc::new(meta));
        Ok(())
    }

    /// Writes the rows of a complete meta and makes it current; the last step of the loader. The rows of `deletions`
    /// must already be written.
    pub(super) fn finish(&self, meta: StateMeta, deletions: Deletions) -> Result<(), StateError> {
        let mut current = self.writer()?;
        let mut batch = Vec::new();
        for (collection, sum) in &meta.digests.collections {
            meta::push_sum(&mut batch, collection, Some(sum));
        }
        if meta.is_redacted {
            withheld::push_marker(&mut batch);
        }
        meta::push_position(&mut batch, &meta, meta.digests.origins, deletions.summary());
        self.0.engine.write(batch)?;
        self.0.engine.persist()?;
        *current = deletions;
        *self.meta_lock() = Some(Arc::new(meta));
        Ok(())
    }

    /// Applies the entries that follow the state, all of them atomically. `chain` is the chain value of the log at the last one.
    ///
    /// # Errors
    /// [`StateError::OutOfOrder`] if they do not follow; then nothing is changed. See [`StateError::remedy`].
    pub fn apply(&self, entries: &[Entry], chain: Chain) -> Result<(), StateError> {
        let Some(last) = entries.last() else { return Ok(()) };
        let mut deletions = self.writer()?;
        let meta = self.meta().ok_or(StateError::Uninitialised)?;
        let mut expected = meta.seq;
        for entry in entries {
            expected = expected.next();
            if entry.seq != expected {
                return Err(StateError::OutOfOrder { expected, found: entry.seq });
            }
        }
        let whole = apply::Whole { engine: self.engine(), digests: &meta.digests, is_redacted: meta.is_redacted };
        let mut changes = self.checked(apply::stage(whole, entries, true))?;
        changes.push_sums();
        let digest = changes.overall(meta.digest, meta.digests.origins);
        let origins = changes.origins_digest();
        let place = StateMeta {
            seq: last.seq,
            chain,
            time_ms: last.time_ms,
            digest,
            lineage: meta.lineage.clone(),
            digests: DigestSet::default(),
            ..*meta
        };
        drop(meta);
        let mut batch = std::mem::take(&mut changes.batch);
        let mut deleted = Changed::new();
        entries.iter().for_each(|entry| deletions.take(entry, &mut deleted));
        deletions::push(&mut batch, deleted);
        if fault_injection::is(Bug::PositionApart) {
            self.0.engine.write(std::mem::take(&mut batch))?;
        }
        meta::push_position(&mut batch, &place, origins, deletions.summary());
        if fault_injection::is(Bug::SplitTransaction) && batch.len() > 1 {
            let rest = batch.split_off(1);
            self.0.engine.write(std::mem::replace(&mut batch, rest))?;
        }
        self.0.engine.write(batch)?;
        let mut guard = self.meta_lock();
        if let Some(current) = guard.as_mut() {
            // Copies the sums only if a caller still holds the previous meta.
            let current = Arc::make_mut(current);
            changes.merge_into(&mut current.digests);
            (current.seq, current.chain) = (place.seq, place.chain);
            (current.time_ms, current.digest) = (place.time_ms, place.digest);
        }
        Ok(())
    }

    /// Returns the object under a key as of the last batch.
    ///
    /// # Errors
    /// If its row cannot be read.
    pub fn get(&self, collection: &Collection, key: &Key) -> Result<Option<Object>, StateError> {
        let row = self.row(&objects::key(collection.as_str(), key.as_str()), objects::decode)?;
        Ok(row.map(objects::ObjectRow::into_object))
    }

    /// Returns when an absent object was last deleted, as far as that is known.
    ///
    /// # Errors
    /// When the state is in doubt.
    pub fn deleted(&self, collection: &Collection, key: &Key) -> Result<Deleted, StateError> {
        Ok(self.writer()?.deleted(collection, key))
    }

    /// Returns the version of the object under a key; `None` if the object does not exist.
    ///
    /// # Errors
    /// If its row cannot be read.
    pub fn version(&self, collection: &Collection, key: &Key) -> Result<Option<Seq>, StateError> {
        let row = self.row(&objects::key(collection.as_str(), key.as_str()), objects::decode)?;
        Ok(row.map(|row| row.version))
    }

    /// Returns the object under a key if its value is withheld from this state.
    ///
    /// # Errors
    /// If its row cannot be read.
    pub fn withheld(&self, collection: &Collection, key: &Key) -> Result<Option<WithheldObject>, StateError> {
        if !self.meta().is_some_and(|meta| meta.is_redacted) {
            return Ok(None);
        }
        self.checked(withheld::get(self.engine(), withheld::key(collection, key)))
    }

    /// Returns the row of an origin.
    ///
    /// # Errors
    /// If its row cannot be read.
    pub fn origin(&self, origin: Origin) -> Result<Option<OriginRow>, StateError> {
        self.row(&origins::key(origin), |row_key, row| origins::decode(row_key, &row))
    }

    /// Returns the author of the transactions of an origin; `None` if unknown.
    ///
    /// # Errors
    /// If its row cannot be read.
    pub fn maker(&self, origin: Origin) -> Result<Option<Maker>, StateError> {
        self.row(&authors::key(origin), |row_key, row| authors::decode(row_key, &row))
    }

    /// Returns a consistent view of the current state. It prevents the removal of old rows, so it should be short-lived.
    ///
    /// # Errors
    /// If the position cannot be read.
    pub fn snapshot(&self) -> Result<StateSnapshot, StateError> {
        let view = self.0.engine.snapshot();
        let cached = self.meta();
        let place = self.checked(meta::load_place(&*view))?;
        let cached_place = cached.as_ref().map(|meta| (meta.seq, meta.chain, meta.generation));
        // A batch may be visible in the view but not yet in the cache, or vice versa.
        let meta = if place == cached_place { cached } else { self.checked(meta::load(&*view))?.map(Arc::new) };
        Ok(StateSnapshot::new(Arc::from(view), meta, self.0.damage.clone()))
    }

    /// Starts to fill a new store with rows.
    ///
    /// # Errors
    /// If the store is not new.
    pub fn loader(&self) -> Result<Loader, StateError> {
        let _writing = self.writer()?;
        self.check_new()?;
        Ok(Loader::new(self.clone()))
    }

    /// Reads every row and recomputes all sums.
    ///
    /// # Errors
    /// [`StateError::Uninitialised`] if there are no sums to compare with. Damage is not an error but part of the report.
    pub fn check(&self) -> Result<CheckReport, StateError> {
        self.snapshot()?.check()
    }

    /// Makes everything applied so far survive a power cut.
    ///
    /// # Errors
    /// Any error means that the process must stop.
    pub fn persist(&self) -> Result<(), StateError> {
        self.0.engine.persist()
    }

    /// Returns the number of bytes on disk.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.0.engine.disk_bytes()
    }
}
