//! Locks of data directories, and atomic replacement of small files.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::file_modes;
use super::real_fs::create_dirs;

/// How long a starting service waits for a tool that inspects its directory.
pub const PATIENCE: Duration = Duration::from_secs(5);

const LOCK: &str = "lock";
const ROLE: &str = "role";

/// A data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The operating system reports an error.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// Another process uses the directory.
    #[error("{path} is in use by another process; stop it first, or connect to it", path = path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The directory belongs to another role.
    #[error("{path} is a {found}'s directory, not a {expected}'s; choose another one", path = path.display())]
    OtherRole {
        /// The directory.
        path: PathBuf,
        /// Role that the directory belongs to.
        found: String,
        /// Role that it should belong to.
        expected: &'static str,
    },
    /// Other users of the host can access the directory, and this process may not change that.
    #[error("{path} is open to all users of this host (mode {mode:03o}) and owned by another user; run `chmod 700 \
             {path}` as its owner, or choose another one", path = path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Mode of the directory.
        mode: u32,
    },
}

/// Creates a directory and its missing parents, accessible only to the user of this process. An existing directory is not changed.
///
/// # Errors
/// If the operating system reports an error.
pub fn create(path: &Path) -> Result<(), DirectoryError> {
    create_dirs(path, 0o700).map_err(io_error(path))
}

/// Removes the access of other users of the host to the data directory of a service and to everything in it.
///
/// # Errors
/// If other users can access the directory and this process may not change that.
pub fn restrict_to_owner(path: &Path) -> Result<(), DirectoryError> {
    let meta = fs::metadata(path).map_err(io_error(path))?;
    let mode = meta.mode() & 0o7777;
    let is_shared = mode & 0o1000 != 0;
    let user = rustix::process::geteuid();
    if !is_shared && (user.is_root() || meta.uid() == user.as_raw()) {
        return file_modes::narrow(path);
    }
    // Access by a group is the decision of the administrator.
    if mode & 0o007 == 0 { Ok(()) } else { Err(DirectoryError::Open { path: path.to_owned(), mode }) }
}

/// Returns a closure for `map_err` that adds the path.
pub fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> DirectoryError {
    let path = path.to_owned();
    move |source| DirectoryError::Io { path, source }
}

/// Returns whether a process has marked the directory with a role.
#[must_use]
pub fn is_claimed(path: &Path) -> bool {
    path.join(ROLE).exists()
}

/// Creates `path` if needed, locks it for this process and marks it with `role`. While another process holds the lock,
/// retries for up to `patience`: a tool that inspects the files holds the lock only briefly.
///
/// # Errors
/// If the directory is in use, belongs to another role, or the operating system reports an error.
pub fn claim(path: &Path, role: &'static str, patience: Duration) -> Result<File, DirectoryError> {
    create(path)?;
    let lock_path = path.join(LOCK);
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    let lock = options.open(&lock_path).map_err(io_error(&lock_path))?;
    hold(path, &lock, patience)?;
    if !is_of(path, role)? {
        replace_file(&path.join(ROLE), format!("{role}\n").as_bytes())?;
    }
    Ok(lock)
}

/// Removes the mark set by [`claim`], for a command that failed before it wrote anything else. `was_there` states
/// whether the directory existed before.
pub fn unclaim(path: &Path, was_there: bool) {
    let _ = fs::remove_file(path.join(ROLE));
    if !was_there {
        let _ = fs::remove_file(path.join(LOCK));
        // Removes only an empty directory.
        let _ = fs::remove_dir(path);
    }
}

/// Like [`claim`], for a command that only reads: creates and writes nothing. Returns `None` if the directory has no
/// lock file, which means that no process uses it.
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

/// Returns whether the directory is marked with `role`; false if it has no mark.
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
/// If the operating system reports an error; the old contents are kept.
pub fn replace_file(path: &Path, contents: &[u8]) -> Result<(), DirectoryError> {
    super::fs::replace_file(&super::RealFs, path, contents).map_err(io_error(path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_wide_directory_is_closed_and_one_that_all_share_is_refused() {
        let temp = tempfile::tempdir().expect("temp dir");
        let (path, mode) =
            (temp.path().join("above/data"), |path: &Path| fs::metadata(path).expect("exists").mode() & 0o7777);
        create(&path).expect("creates");
        assert_eq!((mode(&path), mode(&temp.path().join("above"))), (0o700, 0o700));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("opens");
        restrict_to_owner(&path).expect("closes");
        assert_eq!(mode(&path), 0o700);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o1777)).expect("opens");
        let refused = restrict_to_owner(&path).expect_err("a place like /tmp").to_string();
        assert!(refused.contains("chmod 700"), "{refused}");
        assert_eq!(mode(&path), 0o1777);
    }
}
