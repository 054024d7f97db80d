//! A process's claim to its data directory, and small files replaced whole.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a service that starts waits for a tool that looks at its directory.
pub const PATIENCE: Duration = Duration::from_secs(5);

const LOCK: &str = "lock";
const ROLE: &str = "role";

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The operating system refuses.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process uses it.
    #[error("{path} is in use by another process: talk to that process, or stop it first", path = path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// It belongs to something else.
    #[error("{path} is a {found}'s directory, not a {expected}'s: choose another one", path = path.display())]
    OtherRole {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: &'static str,
    },
}

/// For `map_err`: names the path.
pub fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> DirectoryError {
    let path = path.to_owned();
    move |source| DirectoryError::Io { path, source }
}

/// Creates `path` if needed, locks it for this process and marks whose it is. While another process holds it, tries
/// for as long as `patience`: a tool that looks at the files holds them for a moment only.
///
/// # Errors
/// When it is in use, belongs to another role, or the operating system refuses.
pub fn claim(path: &Path, role: &'static str, patience: Duration) -> Result<File, DirectoryError> {
    fs::create_dir_all(path).map_err(io_error(path))?;
    let lock_path = path.join(LOCK);
    let lock =
        OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path).map_err(io_error(&lock_path))?;
    hold(path, &lock, patience)?;
    if !is_of(path, role)? {
        replace_file(&path.join(ROLE), format!("{role}\n").as_bytes())?;
    }
    Ok(lock)
}

/// As [`claim`] for a command that only reads: nothing is created or written. `None` when the directory has no lock file:
/// no process uses it then.
///
/// # Errors
/// See [`claim`].
pub fn claim_to_read(path: &Path, role: &'static str, patience: Duration) -> Result<Option<File>, DirectoryError> {
    let lock_path = path.join(LOCK);
    let lock = match File::open(&lock_path) {
        Ok(lock) => Some(lock),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(source) => return Err(DirectoryError::Io { path: lock_path, source }),
    };
    lock.as_ref().map_or(Ok(()), |lock| hold(path, lock, patience))?;
    is_of(path, role)?;
    Ok(lock)
}

fn hold(path: &Path, lock: &File, patience: Duration) -> Result<(), DirectoryError> {
    let started = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(fs::TryLockError::WouldBlock) if started.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(fs::TryLockError::WouldBlock) => return Err(DirectoryError::InUse { path: path.to_owned() }),
            Err(fs::TryLockError::Error(source)) => return Err(DirectoryError::Io { path: path.join(LOCK), source }),
        }
    }
}

/// Whether the directory is marked as `role`'s; false when it is not marked at all.
fn is_of(path: &Path, role: &'static str) -> Result<bool, DirectoryError> {
    let role_path = path.join(ROLE);
    match fs::read_to_string(&role_path) {
        Ok(found) if found.trim() == role => Ok(true),
        Ok(found) => {
            Err(DirectoryError::OtherRole { path: path.to_owned(), found: found.trim().to_owned(), expected: role })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(DirectoryError::Io { path: role_path, source }),
    }
}

/// Replaces a small file atomically and durably.
///
/// # Errors
/// When the operating system refuses; the old contents stay then.
pub fn replace_file(path: &Path, contents: &[u8]) -> Result<(), DirectoryError> {
    super::fs::replace_file(&super::RealFs, path, contents).map_err(io_error(path))
}
