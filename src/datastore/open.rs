//! Opening a datastore: claims the directory, recovers the log, and replays it into the state index.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gravwell_chunks::{ChunkError, ChunkStore, StoreOptions};
use gravwell_config::datastore::{DatastoreConfig, Recovery};
use gravwell_env::SystemClock;
use gravwell_env::fs::Fs;
use gravwell_env::real_fs::{RealFs, create_dirs};
use gravwell_env::view_fs::ViewFs;
use gravwell_log::{Log, LogOptions, LogReader, RecoveryReport};
use gravwell_model::Seq;
use gravwell_state::rebuild::{self, RebuildError};
use gravwell_state::{OriginTable, StateError, StateStore, Target};

use super::{index, install_marker};

pub use super::index::{IndexMismatch, STATE, kept, level};

/// Error of opening a datastore.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The log is corrupt or cannot be read; the message names file and offset.
    #[error("{0}")]
    Log(#[from] gravwell_log::OpenError),
    /// An entry of the log cannot be read.
    #[error("{0}")]
    Read(#[from] gravwell_log::ReadError),
    /// The state index cannot be used, even after it was rebuilt.
    #[error("{0}")]
    State(#[from] StateError),
    /// The file that records why generations started cannot be used.
    #[error(transparent)]
    Notes(#[from] gravwell_log::generations::NotesError),
    /// The chunk store cannot be opened.
    #[error("cannot open the chunk store: {0}")]
    Chunks(#[from] ChunkError),
    /// A read-only command found no log.
    #[error("{path} holds no log; the datastore creates one at its first start", path = .0.display())]
    NoLog(PathBuf),
    /// Acknowledged entries are missing from the log.
    #[error(
        "{0}: acknowledged entries are missing from the log, and the index may be the last copy of their effects; \
         nothing was changed; restore the newest `log` directory; or, with the datastore stopped, run `gravwell-logctl \
         repair --from` with this datastore's `state` directory or with a member's directory; or `restore` a backup; \
         to give up the data that only the index has, start the datastore with --recovery off"
    )]
    Loss(String),
    /// A command that was to replace the log was interrupted.
    #[error("{0}")]
    Unfinished(String),
    /// The rebuild of the state index failed.
    #[error("rebuilding the state index failed: {0}")]
    Rebuild(String),
    /// An operation of the file system failed.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Path of the file or directory.
        path: PathBuf,
        /// Underlying error.
        source: std::io::Error,
    },
}

/// Log and state of one directory, at the same position.
pub struct Opened {
    /// Writer of the log.
    pub log: Log,
    /// The state index.
    pub state: StateStore,
    /// Findings and actions of the log recovery.
    pub recovery: RecoveryReport,
}

pub(super) fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { path, source }
}

/// Directory of the log within the data directory.
pub(super) use gravwell_log::repair::LOG;
/// Directory of the chunk store within the data directory.
pub const CHUNKS: &str = "chunks";

/// Opens the chunk store of a data directory, which this process has claimed.
///
/// # Errors
/// Returns an error if the store cannot be read or written. Corrupt chunks count as missing and are re-fetched
/// from members.
pub fn open_chunks(data_dir: &Path) -> Result<ChunkStore, ChunkError> {
    open_chunks_on(Arc::new(RealFs), data_dir)
}

fn open_chunks_on(fs: Arc<dyn Fs>, data_dir: &Path) -> Result<ChunkStore, ChunkError> {
    let clock = Arc::new(SystemClock);
    let (store, report) = ChunkStore::open(&data_dir.join(CHUNKS), fs, clock, StoreOptions::default())?;
    report.damages.iter().for_each(|damage| tracing::warn!(%damage, "chunk store is damaged"));
    Ok(store)
}

/// Returns the log options that the configuration specifies.
#[must_use]
pub fn log_options(config: &DatastoreConfig) -> LogOptions {
    LogOptions {
        segment_bytes: config.segment_bytes,
        reserve_bytes: config.reserve_bytes,
        free_bytes_min: config.min_free_bytes,
        ..LogOptions::default()
    }
}

/// Opens log and state in `path`; the caller holds its lock. Calls `progress` during long work.
///
/// # Errors
/// Returns an error if the log is corrupt. Nothing is skipped then, and only an unfinished tail is changed. Also
/// returns an error if the state index shows that the log lost entries; both are kept. A corrupt index is rebuilt.
pub fn open(path: &Path, config: &DatastoreConfig, progress: &mut dyn FnMut(&str)) -> Result<Opened, OpenError> {
    super::repair::finish(path)?;
    let directory = path.join(LOG);
    if !gravwell_log::exists(&RealFs, &directory).map_err(io_error(&directory))? {
        install_marker::judge(path, None, config.recovery).map_err(OpenError::Unfinished)?;
        index::check_without_log(path, config)?;
    }
    let (log, recovery) = Log::open(Arc::new(RealFs), &directory, log_options(config))?;
    let found = (log.head().0, log.generation());
    install_marker::judge(path, Some(found), config.recovery).map_err(OpenError::Unfinished)?;
    install_marker::complete(path);
    super::repair::clean(path);
    gravwell_log::generations::upgrade(path)?;
    let reader = log.reader();
    let state = index::open(path, config, &reader, progress)?;
    if state.meta().is_some_and(|meta| meta.generation != log.generation()) {
        state.set_generation(log.generation(), reader.lineage())?;
    }
    Ok(Opened { log, state, recovery })
}

/// Like [`open`] and [`open_chunks`], for a command that only reads. Nothing in `path` is changed, whatever its
/// condition. Files that must be created go to the directory `scratch`.
///
/// # Errors
/// Like [`open`]; also returns an error if there is no log.
pub fn open_to_read(
    path: &Path,
    scratch: &Path,
    config: &DatastoreConfig,
    progress: &mut dyn FnMut(&str),
) -> Result<(Opened, ChunkStore), OpenError> {
    let (fs, directory) = (Arc::new(ViewFs::default()), path.join(LOG));
    if !gravwell_log::exists(&*fs, &directory).map_err(io_error(&directory))? {
        // Read-only commands report a loss even if recovery is off.
        let config = DatastoreConfig { recovery: Recovery::Auto, ..config.clone() };
        install_marker::judge(path, None, config.recovery).map_err(OpenError::Unfinished)?;
        index::check_without_log(path, &config)?;
        return Err(OpenError::NoLog(directory));
    }
    let (log, recovery) = Log::open(Arc::clone(&fs) as Arc<dyn Fs>, &directory, log_options(config))?;
    let found = (log.head().0, log.generation());
    install_marker::judge(path, Some(found), Recovery::Auto).map_err(OpenError::Unfinished)?;
    gravwell_log::generations::all(path, log.log_id())?;
    let state = index::open_to_read(path, scratch, config, &log.reader(), progress)?;
    if state.meta().is_some_and(|meta| meta.generation != log.generation()) {
        state.set_generation(log.generation(), log.lineage())?;
    }
    Ok((Opened { log, state, recovery }, open_chunks_on(fs, path)?))
}

/// Builds the state as of `to` from the log alone, in the new directory `side`.
///
/// # Errors
/// Returns an error if the log is corrupt or the directory cannot be written.
pub fn rebuild_state(
    side: &Path,
    cache_bytes: u64,
    log: &LogReader,
    to: Seq,
    progress: &mut dyn FnMut(&str),
) -> Result<StateStore, OpenError> {
    create_dirs(side, 0o700).map_err(io_error(side))?;
    let mut told = Instant::now();
    let mut tell = |seq: Seq| {
        if told.elapsed() > Duration::from_millis(500) {
            told = Instant::now();
            progress(&format!("sequence {seq} of {to}"));
        }
    };
    build(&StateStore::open(side, cache_bytes)?, log, to, &mut tell)
}

/// Fills an empty state from the log up to `to`. Calls `progress` with the sequence reached.
///
/// # Errors
/// Returns an error if the log is corrupt or the state cannot be written.
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
        deletions_after: Some(base.deletions_after),
        digest: None,
    };
    let tail = log.chained_entries(base.seq, to);
    rebuild::rebuild(state, log.base_entries(), &origins, target, tail, None, progress).map_err(|error| match error {
        // Neither is caused by corruption of the log.
        RebuildError::Source(error) if !error.is_damage() => error.into(),
        RebuildError::State(error) if !error.is_damage() => error.into(),
        error => OpenError::Rebuild(error.to_string()),
    })
}
