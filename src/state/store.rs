//! The handle on a state: read from any thread, written from one.
//!
//! [`StateStore::apply`] is the only place that changes data and position of a finished state, in one batch.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::absent::Absent;
use super::apply;
use super::deletions;
use super::engine::{Engine, Slice};
use super::error::StateError;
use super::fjall::FjallEngine;
use super::loader::Loader;
use super::makers;
use super::memory::MemoryEngine;
use super::meta::{self, StateMeta};
use super::objects::{self, Object};
use super::origins;
use super::snapshot::StateSnapshot;
use super::withheld::{self, WithheldObject};
use crate::env::damage::DamageRecord;
use crate::model::deletions::{Changed, Deletions};
use crate::model::position::Chain;
use crate::model::{
    Collection, Digest, DigestSet, Entry, Generation, Key, Lineage, LogId, Maker, Origin, OriginRow, Position, Seq,
};
use crate::planted::{self, Bug};

/// A state; clones are handles on the same one.
#[derive(Clone)]
pub struct StateStore(Arc<Inner>);

struct Inner {
    engine: Box<dyn Engine>,
    /// Held while a change is worked out and written, with the recent deletions. A panic while it is held leaves engine and
    /// cache in doubt, so a poisoned lock stops all writing.
    writer: Mutex<Deletions>,
    meta: Mutex<Option<Arc<StateMeta>>>,
    /// What reads of this state, and of its snapshots, found damaged.
    damage: DamageRecord,
}

/// What [`StateStore::check`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Rows that were read.
    pub rows: u64,
    /// What is wrong; empty when the state is sound.
    pub damage: Vec<StateDamage>,
}

/// One thing that is wrong with a state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateDamage {
    /// A row or the engine under it is damaged; the scan ended there.
    #[error("{0}")]
    Row(StateError),
    /// The objects of a collection do not add up.
    #[error(
        "collection {collection}: {objects_found} objects with digest {found}, not {objects_expected} with {expected}"
    )]
    Collection {
        /// Which.
        collection: Collection,
        /// Digest that is on record.
        expected: Digest,
        /// Digest of the rows.
        found: Digest,
        /// Number of objects on record.
        objects_expected: u64,
        /// Number of rows.
        objects_found: u64,
    },
    /// The origins do not add up.
    #[error("origins: digest {found}, expected {expected}")]
    Origins {
        /// Digest that is on record.
        expected: Digest,
        /// Digest of the rows.
        found: Digest,
    },
}

impl StateStore {
    /// Opens the state in `dir`, or makes a new one there. A new one has no meta; see [`StateStore::init`] and
    /// [`StateStore::loader`].
    ///
    /// # Errors
    /// When another process has it open, or its files are damaged.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<StateStore, StateError> {
        StateStore::with_engine(Box::new(FjallEngine::open(dir, cache_bytes)?))
    }

    /// Opens a view of the state in `dir`, whose files are left as they are: what the storage engine has to change
    /// is in `scratch`, a new directory that the caller removes after the state was dropped.
    ///
    /// # Errors
    /// As [`StateStore::open`].
    pub fn open_view(dir: &Path, scratch: &Path, cache_bytes: u64) -> Result<StateStore, StateError> {
        StateStore::with_engine(Box::new(FjallEngine::open_view(dir, scratch, cache_bytes)?))
    }

    /// As [`StateStore::open_view`], for a process that goes on to open `dir` itself when the state is found sound. Aborts
    /// of the storage engine are counted in `dir`.
    ///
    /// # Errors
    /// As [`StateStore::open`].
    pub fn try_view(dir: &Path, scratch: &Path, cache_bytes: u64) -> Result<StateStore, StateError> {
        StateStore::with_engine(Box::new(FjallEngine::try_view(dir, scratch, cache_bytes)?))
    }

    /// A state that lives in memory only.
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

    /// What takes the place of this state while it is opened again: it stands where this one stood, and every read and write
    /// fails with `reason`.
    #[must_use]
    pub fn stand_in(&self, reason: StateError) -> StateStore {
        let (engine, meta) = (Box::new(Absent(reason)), Mutex::new(self.meta()));
        StateStore(Arc::new(Inner { engine, writer: Mutex::default(), meta, damage: self.0.damage.clone() }))
    }

    /// A state on any engine.
    ///
    /// # Errors
    /// When what the engine holds already is damaged.
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

    /// What reads of this state have found damaged since it was opened.
    #[must_use]
    pub fn damage(&self) -> &DamageRecord {
        &self.0.damage
    }

    fn checked<T>(&self, result: Result<T, StateError>) -> Result<T, StateError> {
        self.0.damage.checked(result, StateError::is_damage)
    }

    /// The row under a key, decoded; every read of one row.
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

    /// Where the state stands; `None` when it is new or unfinished.
    #[must_use]
    pub fn meta(&self) -> Option<Arc<StateMeta>> {
        self.meta_lock().clone()
    }

    /// The position of [`StateStore::meta`].
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.meta_lock().as_ref().map(|meta| meta.position())
    }

    /// Fails unless the store holds nothing at all.
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

    /// Makes a new store the empty state of a log.
    ///
    /// # Errors
    /// When the store is not new.
    pub fn init(&self, log_id: LogId, generation: Generation, lineage: Lineage) -> Result<(), StateError> {
        let deletions = self.writer()?;
        self.check_new()?;
        let (seq, chain, time_ms, digest) = (Seq::ZERO, Chain::default(), 0, Digest::ZERO);
        let (digests, is_redacted) = (DigestSet::default(), false);
        let meta = StateMeta { log_id, generation, lineage, seq, chain, time_ms, digests, digest, is_redacted };
        self.replace_meta(meta, &deletions)
    }

    /// Records that the log went on to another generation; the history up to here is shared.
    ///
    /// # Errors
    /// When the store has no meta or cannot write.
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

    /// Writes the rows of a whole meta and makes it current; the loader's last step. The rows of `deletions` are there.
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

    /// Applies the entries that follow the state, whole and atomically. `chain` is the log's chain at the last of them.
    ///
    /// # Errors
    /// [`StateError::OutOfOrder`] when they do not follow; nothing is changed then. See [`StateError::remedy`].
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
        if planted::is(Bug::PositionApart) {
            self.0.engine.write(std::mem::take(&mut batch))?;
        }
        meta::push_position(&mut batch, &place, origins, deletions.summary());
        if planted::is(Bug::SplitTransaction) && batch.len() > 1 {
            let rest = batch.split_off(1);
            self.0.engine.write(std::mem::replace(&mut batch, rest))?;
        }
        self.0.engine.write(batch)?;
        let mut guard = self.meta_lock();
        if let Some(current) = guard.as_mut() {
            // Copies the sums only when someone holds on to the meta of before.
            let current = Arc::make_mut(current);
            changes.merge_into(&mut current.digests);
            (current.seq, current.chain) = (place.seq, place.chain);
            (current.time_ms, current.digest) = (place.time_ms, place.digest);
        }
        Ok(())
    }

    /// The object under a key, as of the last batch.
    ///
    /// # Errors
    /// When its row cannot be read.
    pub fn get(&self, collection: &Collection, key: &Key) -> Result<Option<Object>, StateError> {
        let row = self.row(&objects::key(collection.as_str(), key.as_str()), objects::decode)?;
        Ok(row.map(objects::ObjectRow::into_object))
    }

    /// The version of the object under a key; `None` when there is no such object.
    ///
    /// # Errors
    /// When its row cannot be read.
    pub fn version(&self, collection: &Collection, key: &Key) -> Result<Option<Seq>, StateError> {
        let row = self.row(&objects::key(collection.as_str(), key.as_str()), objects::decode)?;
        Ok(row.map(|row| row.version))
    }

    /// The object under a key whose value is withheld from this state.
    ///
    /// # Errors
    /// When its row cannot be read.
    pub fn withheld(&self, collection: &Collection, key: &Key) -> Result<Option<WithheldObject>, StateError> {
        if !self.meta().is_some_and(|meta| meta.is_redacted) {
            return Ok(None);
        }
        self.checked(withheld::get(self.engine(), withheld::key(collection, key)))
    }

    /// What is remembered of an origin.
    ///
    /// # Errors
    /// When its row cannot be read.
    pub fn origin(&self, origin: Origin) -> Result<Option<OriginRow>, StateError> {
        self.row(&origins::key(origin), |row_key, row| origins::decode(row_key, &row))
    }

    /// Who made the transactions of an origin; `None` where that is not known.
    ///
    /// # Errors
    /// When its row cannot be read.
    pub fn maker(&self, origin: Origin) -> Result<Option<Maker>, StateError> {
        self.row(&makers::key(origin), |row_key, row| makers::decode(row_key, &row))
    }

    /// A consistent view of this instant. Old rows are kept for as long as it lives, so it should not live long.
    ///
    /// # Errors
    /// When the position cannot be read.
    pub fn snapshot(&self) -> Result<StateSnapshot, StateError> {
        let view = self.0.engine.snapshot();
        let cached = self.meta();
        let place = self.checked(meta::load_place(&*view))?;
        let cached_place = cached.as_ref().map(|meta| (meta.seq, meta.chain, meta.generation));
        // A batch may have become visible that the cache does not show yet, or the other way round.
        let meta = if place == cached_place { cached } else { self.checked(meta::load(&*view))?.map(Arc::new) };
        Ok(StateSnapshot::new(Arc::from(view), meta, self.0.damage.clone()))
    }

    /// Begins to fill a new store with rows.
    ///
    /// # Errors
    /// When the store is not new.
    pub fn loader(&self) -> Result<Loader, StateError> {
        let _writing = self.writer()?;
        self.check_new()?;
        Ok(Loader::new(self.clone()))
    }

    /// Reads every row and adds everything up anew.
    ///
    /// # Errors
    /// [`StateError::Uninitialised`] when there is nothing to compare with. Damage is no error but part of the report.
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

    /// Bytes on disk.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.0.engine.disk_bytes()
    }
}
