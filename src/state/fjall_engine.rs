//! [`Engine`] on fjall: one database, one keyspace.
//!
//! fjall panics on empty keys, allows one process to open a database, and is poisoned permanently after a failed
//! write; the latter becomes [`StateError::Stopped`]. Every batch is passed to the operating system before it becomes
//! visible, so the end of the process alone loses nothing; the caller decides when to sync.
//!
//! Aborts of the process during opening are counted, see [`super::aborts`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use ::fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};

use super::aborts::{self, ABORTS_MAX, Watch};
use super::engine::{Batch, End, Engine, EngineSnapshot, Rows, Slice};
use super::error::StateError;
use super::{fjall_journal, view};

const KEYSPACE: &str = "state";
/// Writes are buffered in memory up to this size; the journal contains them.
const MEMTABLE_BYTES_MAX: u64 = 16 << 20;
/// One thread can flush while the other compacts.
const WORKERS: usize = 2;

/// Timeout of reads that wait for descriptors or other missing resources.
const WANT_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
const WANT_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

pub(crate) struct FjallEngine {
    database: Database,
    rows: Keyspace,
}

impl FjallEngine {
    /// Opens a database or creates one if there is none.
    pub(crate) fn open(dir: &Path, cache_bytes: u64) -> Result<FjallEngine, StateError> {
        check_aborts(dir)?;
        let watch = Watch::begin(dir);
        let opened = open_files(dir, dir, cache_bytes);
        watch.returned();
        opened
    }

    /// Opens the contents of the database in `dir` in the new directory `scratch`; `dir` is not changed.
    pub(crate) fn open_view(dir: &Path, scratch: &Path, cache_bytes: u64) -> Result<FjallEngine, StateError> {
        check_aborts(dir)?;
        view::make(dir, scratch).map_err(|error| refused(dir, &error))?;
        open_files(scratch, dir, cache_bytes)
    }

    /// Like `open_view`, as a step towards opening `dir` itself: aborts are counted in `dir`.
    pub(crate) fn try_view(dir: &Path, scratch: &Path, cache_bytes: u64) -> Result<FjallEngine, StateError> {
        check_aborts(dir)?;
        let watch = Watch::begin(dir);
        let made = view::make(dir, scratch).map_err(|error| refused(dir, &error));
        let opened = made.and_then(|()| open_files(scratch, dir, cache_bytes));
        watch.returned();
        opened
    }
}

fn unreadable(dir: &Path, cause: impl Into<String>) -> StateError {
    StateError::Unreadable { dir: dir.to_path_buf(), cause: cause.into() }
}

/// Converts an error of the operating system. It proves nothing about the database in `dir` if the process lacks a resource.
fn refused(dir: &Path, error: &std::io::Error) -> StateError {
    let cause = error.to_string();
    if is_want(error) { StateError::Unavailable { dir: dir.to_path_buf(), cause } } else { unreadable(dir, cause) }
}

fn check_aborts(dir: &Path) -> Result<(), StateError> {
    let aborted = aborts::count(dir);
    if aborted < ABORTS_MAX {
        return Ok(());
    }
    Err(unreadable(dir, format!("the process aborted in each of the last {aborted} attempts")))
}

/// Opens the database in `files`; messages contain `dir`.
fn open_files(files: &Path, dir: &Path, cache_bytes: u64) -> Result<FjallEngine, StateError> {
    let mut opened = attempt(files, cache_bytes);
    // With debug assertions fjall panics instead of returning an error.
    if matches!(&opened, Err(_) | Ok(Err(::fjall::Error::JournalRecovery(_)))) {
        let cut = fjall_journal::truncate_disordered_end(files).map_err(|error| refused(dir, &error))?;
        if let Some(cut) = cut {
            let (journal, at) = (cut.journal.display(), cut.at);
            tracing::warn!(%journal, at, "truncated the disordered end of a journal; the state is at an earlier \
                                          position");
            opened = attempt(files, cache_bytes);
        }
    }
    match opened {
        Ok(Ok(engine)) => Ok(engine),
        Ok(Err(::fjall::Error::Locked)) => Err(StateError::Locked { dir: dir.to_path_buf() }),
        Ok(Err(error)) if is_want(&error) => {
            Err(StateError::Unavailable { dir: dir.to_path_buf(), cause: error.to_string() })
        }
        Ok(Err(error)) => Err(unreadable(dir, error.to_string())),
        Err(_) => Err(unreadable(dir, "the storage engine panicked on its files")),
    }
}

/// Returns whether an error is due to resources that the process lacks (descriptors, memory, permissions, space) and
/// not to the files.
fn is_want(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            use std::io::ErrorKind::{OutOfMemory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
            // `ENFILE` and `EMFILE`: too many open files in the system or in the process.
            let is_full = matches!(io.raw_os_error(), Some(23 | 24));
            let lacks = [OutOfMemory, PermissionDenied, ReadOnlyFilesystem, StorageFull, QuotaExceeded];
            return is_full || lacks.contains(&io.kind());
        }
        next = error.source();
    }
    false
}

/// Damaged files can make fjall panic. During opening such a panic can still be distinguished from a bug in this program.
fn attempt(dir: &Path, cache_bytes: u64) -> std::thread::Result<::fjall::Result<FjallEngine>> {
    catch_unwind(AssertUnwindSafe(|| {
        let database = Database::builder(dir).cache_size(cache_bytes).worker_threads(WORKERS).open()?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES_MAX);
        let rows = database.keyspace(KEYSPACE, options)?;
        Ok(FjallEngine { database, rows })
    }))
}

#[cfg(test)]
impl FjallEngine {
    /// Moves all rows from memory and journal to tables, which otherwise happens only when there are enough of them.
    pub(crate) fn flush_to_tables(&self) {
        self.rows.rotate_memtable_and_wait().expect("flush");
    }
}

/// Reads, and retries until a timeout while the process lacks a descriptor for the file of a table.
fn waited_for<T>(read: impl Fn() -> ::fjall::Result<T>) -> ::fjall::Result<T> {
    let started = std::time::Instant::now();
    loop {
        match read() {
            Err(error) if is_want(&error) && started.elapsed() < WANT_PATIENCE => std::thread::sleep(WANT_PAUSE),
            other => return other,
        }
    }
}

fn read_error(error: &::fjall::Error) -> StateError {
    let cause = error.to_string();
    match error {
        ::fjall::Error::Poisoned => StateError::Stopped { cause },
        // A lack of resources concerns the process, not the files: the state is unchanged.
        error if is_want(error) => StateError::Stopped { cause },
        _ => StateError::ReadFailed { cause },
    }
}

fn write_error(error: &::fjall::Error) -> StateError {
    StateError::Stopped { cause: error.to_string() }
}

impl Engine for FjallEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Slice>, StateError> {
        waited_for(|| self.rows.get(key)).map_err(|error| read_error(&error))
    }

    fn write(&self, batch: Batch) -> Result<(), StateError> {
        let mut writes = ::fjall::OwnedWriteBatch::with_capacity(self.database.clone(), batch.len())
            .durability(Some(PersistMode::Buffer));
        for (key, value) in batch {
            match value {
                Some(value) => writes.insert(&self.rows, key, value),
                None => writes.remove(&self.rows, key),
            }
        }
        writes.commit().map_err(|error| write_error(&error))
    }

    fn persist(&self) -> Result<(), StateError> {
        self.database.persist(PersistMode::SyncAll).map_err(|error| write_error(&error))
    }

    fn snapshot(&self) -> Box<dyn EngineSnapshot> {
        Box::new(FjallSnapshot { view: self.database.snapshot(), rows: self.rows.clone() })
    }

    fn disk_bytes(&self) -> u64 {
        self.database.disk_space().unwrap_or(0)
    }
}

struct FjallSnapshot {
    view: Snapshot,
    rows: Keyspace,
}

impl EngineSnapshot for FjallSnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Slice>, StateError> {
        waited_for(|| self.view.get(&self.rows, key)).map_err(|error| read_error(&error))
    }

    fn range(&self, low: End, high: End) -> Rows {
        let rows = self.view.range(&self.rows, (low, high));
        Box::new(rows.map(|guard| guard.into_inner().map_err(|error| read_error(&error))))
    }
}
