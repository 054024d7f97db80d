//! [`Engine`] on fjall: one database, one keyspace.
//!
//! fjall's keys must not be empty (it panics), one process may open a database, and after a failed write it is
//! poisoned for good: that becomes [`StateError::Stopped`]. Every batch is handed to the operating system before it
//! becomes visible, so the end of the process alone loses nothing; syncing is the caller's decision.
//!
//! A flipped bit can make fjall ask for more memory than there is while it opens, which aborts the process: it would
//! be started, abort and be started for ever. So openings are counted in a file that a successful one removes, and
//! after [`OPENINGS_MAX`] that never returned the database is [`StateError::Unreadable`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use ::fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};

use super::engine::{Batch, End, Engine, EngineSnapshot, Rows, Slice};
use super::error::StateError;
use super::journal;

/// Openings that may end with the process before the files are blamed: more than a few kills in a row will hit.
const OPENINGS_MAX: u64 = 3;
const OPENINGS_FILE: &str = "openings";
const KEYSPACE: &str = "state";
/// Writes are gathered in memory up to this size; the journal covers them.
const MEMTABLE_BYTES_MAX: u64 = 16 << 20;
/// One for flushing while the other compacts.
const WORKERS: usize = 2;

pub(crate) struct FjallEngine {
    database: Database,
    rows: Keyspace,
}

impl FjallEngine {
    /// Opens a database, or makes a new one where there is none.
    pub(crate) fn open(dir: &Path, cache_bytes: u64) -> Result<FjallEngine, StateError> {
        let unreadable = |cause: String| StateError::Unreadable { dir: dir.to_path_buf(), cause };
        let openings = dir.join(OPENINGS_FILE);
        let before = count_opening(&openings).map_err(|error| unreadable(error.to_string()))?;
        if before >= OPENINGS_MAX {
            return Err(unreadable(format!("the process ended in each of the last {before} attempts")));
        }
        let mut opened = attempt(dir, cache_bytes);
        // With debug assertions fjall panics where it would return an error.
        if matches!(&opened, Err(_) | Ok(Err(::fjall::Error::JournalRecovery(_)))) {
            let cut = journal::cut_disordered_end(dir).map_err(|error| unreadable(error.to_string()))?;
            if let Some(cut) = cut {
                let (journal, at) = (cut.journal.display(), cut.at);
                tracing::warn!(%journal, at, "cut a journal's disordered end; the state is at an earlier position");
                opened = attempt(dir, cache_bytes);
            }
        }
        // Left behind, the file costs a rebuild at worst; not worth refusing a database that is open.
        let _ = std::fs::remove_file(&openings);
        match opened {
            Ok(Ok(engine)) => Ok(engine),
            Ok(Err(::fjall::Error::Locked)) => Err(StateError::Locked { dir: dir.to_path_buf() }),
            Ok(Err(error)) if is_want(&error) => {
                Err(StateError::Unavailable { dir: dir.to_path_buf(), cause: error.to_string() })
            }
            Ok(Err(error)) => Err(unreadable(error.to_string())),
            Err(_) => Err(unreadable("the storage engine panicked on its files".into())),
        }
    }
}

/// Whether an error says that the process lacks something, and nothing of the files: descriptors, memory, rights, space.
fn is_want(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            use std::io::ErrorKind::{OutOfMemory, PermissionDenied, ReadOnlyFilesystem, StorageFull};
            // Too many open files, of the process or of the system.
            let is_full = matches!(io.raw_os_error(), Some(23 | 24));
            return is_full || matches!(io.kind(), OutOfMemory | PermissionDenied | ReadOnlyFilesystem | StorageFull);
        }
        next = error.source();
    }
    false
}

/// Damaged files can make fjall panic; opening is where such a panic can still be told from a bug of ours.
fn attempt(dir: &Path, cache_bytes: u64) -> std::thread::Result<::fjall::Result<FjallEngine>> {
    catch_unwind(AssertUnwindSafe(|| {
        let database = Database::builder(dir).cache_size(cache_bytes).worker_threads(WORKERS).open()?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES_MAX);
        let rows = database.keyspace(KEYSPACE, options)?;
        Ok(FjallEngine { database, rows })
    }))
}

/// Adds one to the openings that have begun since the last that returned, and tells how many there were before.
fn count_opening(file: &Path) -> std::io::Result<u64> {
    use std::io::Write as _;

    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(file)?;
    let before = file.metadata()?.len();
    file.write_all(b".")?;
    Ok(before)
}

#[cfg(test)]
impl FjallEngine {
    /// Moves all rows from memory and journal to tables, as happens by itself when there are enough of them.
    pub(crate) fn flush_to_tables(&self) {
        self.rows.rotate_memtable_and_wait().expect("flush");
    }
}

fn read_error(error: &::fjall::Error) -> StateError {
    let cause = error.to_string();
    match error {
        ::fjall::Error::Poisoned => StateError::Stopped { cause },
        _ => StateError::ReadFailed { cause },
    }
}

fn write_error(error: &::fjall::Error) -> StateError {
    StateError::Stopped { cause: error.to_string() }
}

impl Engine for FjallEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Slice>, StateError> {
        self.rows.get(key).map_err(|error| read_error(&error))
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
        self.view.get(&self.rows, key).map_err(|error| read_error(&error))
    }

    fn range(&self, low: End, high: End) -> Rows {
        let rows = self.view.range(&self.rows, (low, high));
        Box::new(rows.map(|guard| guard.into_inner().map_err(|error| read_error(&error))))
    }
}
