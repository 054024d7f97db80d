//! Opening a datastore: claim the directory, recover the log, bring the state index level with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::chunks::{ChunkError, ChunkStore, StoreOptions};
use crate::config::datastore::DatastoreConfig;
use crate::env::SystemClock;
use crate::env::real::RealFs;
use crate::log::{Log, LogOptions, LogReader, RecoveryReport};
use crate::model::{Chain, Entry, Seq};
use crate::planted::{self, Bug};
use crate::state::rebuild::{self, Action, LogView};
use crate::state::{OriginTable, StateError, StateStore, Target};

/// Why a datastore cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The log is damaged or cannot be read; the message names file and offset.
    #[error("{0}")]
    Log(#[from] crate::log::OpenError),
    /// An entry of the log cannot be read.
    #[error("{0}")]
    Read(#[from] crate::log::ReadError),
    /// The state index, even after it was rebuilt.
    #[error("{0}")]
    State(#[from] StateError),
    /// The chunk store.
    #[error("the chunk store: {0}")]
    Chunks(#[from] ChunkError),
    /// The rebuild failed.
    #[error("rebuilding the state index failed: {0}")]
    Rebuild(String),
    /// The operating system refuses.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Log and state of one directory, level with each other.
pub struct Opened {
    /// The log's writer.
    pub log: Log,
    /// The state index.
    pub state: StateStore,
    /// What recovery found and did.
    pub recovery: RecoveryReport,
}

fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { path, source }
}

/// Directory of the chunk store within the data directory.
pub const CHUNKS: &str = "chunks";

/// Opens the chunk store of a data directory, which this process has claimed.
///
/// # Errors
/// When it cannot be read or written. What is damaged counts as missing, and is fetched again from members.
pub fn open_chunks(data_dir: &Path) -> Result<ChunkStore, ChunkError> {
    let (fs, clock) = (Arc::new(RealFs), Arc::new(SystemClock));
    let (store, report) = ChunkStore::open(&data_dir.join(CHUNKS), fs, clock, StoreOptions::default())?;
    report.damages.iter().for_each(|damage| tracing::warn!(%damage, "the chunk store"));
    Ok(store)
}

/// How the configuration wants its log.
#[must_use]
pub fn log_options(config: &DatastoreConfig) -> LogOptions {
    LogOptions { segment_bytes: config.segment_bytes, reserve_bytes: config.reserve_bytes, ..LogOptions::default() }
}

/// Opens log and state in `path`, whose lock the caller holds. `progress` is told about long work.
///
/// # Errors
/// When the log is damaged: nothing is skipped, and nothing is changed but an unfinished tail. The state index is
/// rebuilt rather than complained about.
pub fn open(path: &Path, config: &DatastoreConfig, progress: &mut dyn FnMut(&str)) -> Result<Opened, OpenError> {
    super::repair::finish(path)?;
    let (log, recovery) = Log::open(Arc::new(RealFs), &path.join("log"), log_options(config))?;
    super::repair::clean(path);
    let reader = log.reader();
    let side = path.join("state.rebuild");
    if side.exists() {
        fs::remove_dir_all(&side).map_err(io_error(&side))?;
    }
    let state_path = path.join("state");
    let state = match open_state(&state_path, config.cache_bytes, &reader) {
        Ok(state) => state,
        Err(reason) => {
            tracing::warn!(reason, "the state index is rebuilt from the log");
            progress(&format!("rebuilding the state index: {reason}"));
            rebuild_state(&side, config.cache_bytes, &reader, reader.head().0, progress)?;
            if state_path.exists() {
                fs::remove_dir_all(&state_path).map_err(io_error(&state_path))?;
            }
            fs::rename(&side, &state_path).map_err(io_error(&side))?;
            StateStore::open(&state_path, config.cache_bytes)?
        }
    };
    if state.meta().is_some_and(|meta| meta.generation != log.generation()) {
        state.set_generation(log.generation(), reader.lineage())?;
    }
    Ok(Opened { log, state, recovery })
}

/// Opens the index and applies what it lacks; an error says why it must be rebuilt.
fn open_state(path: &Path, cache_bytes: u64, log: &LogReader) -> Result<StateStore, String> {
    let state = StateStore::open(path, cache_bytes).map_err(|error| error.to_string())?;
    level(&state, log)?;
    Ok(state)
}

/// Brings an index level with its log, and reads all of it before it is believed.
///
/// # Errors
/// Says why it must be rebuilt instead.
pub fn level(state: &StateStore, log: &LogReader) -> Result<(), String> {
    if state.meta().is_none() && log.head().0 == Seq::ZERO {
        state.init(log.log_id(), log.generation(), log.lineage()).map_err(|error| error.to_string())?;
        return Ok(());
    }
    let chain_at = |seq| log.chain_at(seq).ok().flatten();
    let view = LogView {
        log_id: log.log_id(),
        generation: log.generation(),
        horizon: log.horizon(),
        head: log.head().0,
        chain_at: &chain_at,
    };
    match rebuild::verify_against(state.meta().as_deref(), &view) {
        Action::Use => {}
        Action::CatchUp { .. } if planted::is(Bug::SkipCatchUp) => {}
        Action::CatchUp { from } => catch_up(state, log, from)?,
        Action::Rebuild { reason } => return Err(reason.to_string()),
    }
    let report = state.check().map_err(|error| error.to_string())?;
    match report.damage.first() {
        Some(damage) => Err(format!("it does not add up: {damage}")),
        None => Ok(()),
    }
}

fn catch_up(state: &StateStore, log: &LogReader, from: Seq) -> Result<(), String> {
    let mut batch: Vec<Entry> = Vec::new();
    let mut chain = Chain::default();
    for entry in log.chained_entries(from, log.head().0) {
        let (entry, after) = entry.map_err(|error| error.to_string())?;
        chain = after;
        batch.push(entry);
        if batch.len() >= 4096 {
            state.apply(&batch, chain).map_err(|error| error.to_string())?;
            batch.clear();
        }
    }
    if !batch.is_empty() {
        state.apply(&batch, chain).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Builds the state as of `to` from the log alone, in the new directory `side`.
///
/// # Errors
/// When the log is damaged or the directory cannot be written.
pub fn rebuild_state(
    side: &Path,
    cache_bytes: u64,
    log: &LogReader,
    to: Seq,
    progress: &mut dyn FnMut(&str),
) -> Result<StateStore, OpenError> {
    fs::create_dir_all(side).map_err(io_error(side))?;
    let mut told = Instant::now();
    let mut tell = |seq: Seq| {
        if told.elapsed() > Duration::from_millis(500) {
            told = Instant::now();
            progress(&format!("sequence {seq} of {to}"));
        }
    };
    build(&StateStore::open(side, cache_bytes)?, log, to, &mut tell)
}

/// Fills an empty state with what the log adds up to at `to`. `progress` is told how far it is.
///
/// # Errors
/// When the log is damaged or the state cannot be written.
pub fn build(
    state: &StateStore,
    log: &LogReader,
    to: Seq,
    progress: &mut dyn FnMut(Seq),
) -> Result<StateStore, OpenError> {
    let base = log.base()?;
    let origins: OriginTable = base.origins.into_iter().collect();
    let target = Target {
        log_id: log.log_id(),
        generation: log.generation(),
        lineage: log.lineage(),
        seq: base.seq,
        chain: base.chain,
        time_ms: base.time_ms,
        digest: None,
    };
    let tail = log.chained_entries(base.seq, to);
    rebuild::rebuild(state, log.base_entries(), &origins, target, tail, None, progress)
        .map_err(|error| OpenError::Rebuild(error.to_string()))
}
