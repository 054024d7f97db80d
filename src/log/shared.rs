//! State shared by the writer, the readers and compaction. Locks are held briefly, never while data is written.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::LogOptions;
use super::directory::RESERVE;
use super::format::HeadSlot;
use super::head::HeadFile;
use super::segment::Segment;
use gravwell_env::damage::DamageRecord;
use gravwell_env::fs::Fs;
use gravwell_env::reserve::Reserve;
use gravwell_model::{Chain, Generation, Lineage, LogId, Seq};

/// End of the durable records. Offsets and counts refer to the open segment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tip {
    pub seq: Seq,
    pub chain: Chain,
    pub end: u64,
    pub count: u64,
    pub time_first: u64,
    pub time_last: u64,
}

#[derive(Clone, Debug)]
pub(super) struct State {
    /// In ascending order of range; the last one may be open.
    pub segments: Arc<Vec<Arc<Segment>>>,
    pub horizon: Seq,
    pub tip: Tip,
    pub generation: Generation,
    pub lineage: Lineage,
}

#[derive(Debug)]
pub(super) struct LogState {
    pub fs: Arc<dyn Fs>,
    pub dir: PathBuf,
    pub log_id: LogId,
    reserve: Reserve,
    state: RwLock<State>,
    head: Mutex<HeadFile>,
    /// Set while a compaction runs; only one may run at a time.
    pub compacting: AtomicBool,
    /// Damage found by reads of this log.
    pub damage: DamageRecord,
}

impl LogState {
    pub(super) fn new(fs: Arc<dyn Fs>, dir: PathBuf, options: &LogOptions, state: State, head: HeadFile) -> LogState {
        let log_id = head.current().log_id;
        let reserve = Reserve::new(Arc::clone(&fs), dir.join(RESERVE), options.reserve_bytes, options.free_bytes_min);
        LogState {
            fs,
            dir,
            log_id,
            reserve,
            state: RwLock::new(state),
            head: Mutex::new(head),
            compacting: AtomicBool::new(false),
            damage: DamageRecord::default(),
        }
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn head(&self) -> MutexGuard<'_, HeadFile> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self) -> HeadSlot {
        let state = self.read();
        HeadSlot {
            counter: 0,
            log_id: self.log_id,
            generation: state.generation,
            seq: state.tip.seq,
            chain: state.tip.chain,
            horizon: state.horizon,
            lineage: state.lineage.clone(),
        }
    }

    /// Writes the current durable position to the head file.
    pub(super) fn write_head(&self) -> io::Result<()> {
        let mut head = self.head();
        head.write(self.slot())
    }

    /// Raises the horizon durably before it becomes visible to readers.
    pub(super) fn raise_horizon(&self, horizon: Seq) -> io::Result<()> {
        let mut head = self.head();
        let mut slot = self.slot();
        slot.horizon = slot.horizon.max(horizon);
        head.write(slot)?;
        let mut state = self.write();
        state.horizon = state.horizon.max(horizon);
        Ok(())
    }

    /// Replaces generation and lineage durably, in both slots.
    pub(super) fn set_lineage(&self, generation: Generation, lineage: Lineage) -> io::Result<()> {
        let mut head = self.head();
        head.write_both(HeadSlot { generation, lineage: lineage.clone(), ..self.slot() })?;
        let mut state = self.write();
        (state.generation, state.lineage) = (generation, lineage);
        Ok(())
    }

    /// See [`Reserve::is_there`].
    pub(super) fn has_reserve(&self) -> bool {
        self.reserve.is_there()
    }

    /// See [`Reserve::give_back`].
    pub(super) fn drop_reserve(&self) -> bool {
        self.reserve.give_back()
    }

    /// See [`Reserve::restore`].
    pub(super) fn restore_reserve(&self) -> bool {
        self.reserve.restore()
    }
}
