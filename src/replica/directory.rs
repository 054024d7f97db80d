//! A replica's directory: which state directory is current, and how another one takes its place.
//!
//! `current` names the state directory in one checksummed line; it is replaced by write, fsync, rename, fsync of the
//! directory. A state directory that `current` does not name is unfinished or old and is removed at open.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::env::data_dir::{DirectoryError, claim, io_error, replace_file};

/// Where the state of a replica has its place, and how another one takes it.
pub trait Home: Send {
    /// Makes the state in `path` the current one, atomically and durably.
    ///
    /// # Errors
    /// When the storage refuses; the former one stays current then.
    fn make_current(&mut self, path: &Path) -> Result<(), String>;

    /// Whether the state in `path` is the one that the next start would open.
    fn is_current(&self, path: &Path) -> bool;

    /// Removes every state but the one in `keep`.
    ///
    /// # Errors
    /// When the storage refuses.
    fn remove_others(&mut self, keep: &Path) -> Result<(), String>;
}

impl Home for Directory {
    fn make_current(&mut self, path: &Path) -> Result<(), String> {
        Directory::make_current(self, path).map_err(|error| error.to_string())
    }

    fn is_current(&self, path: &Path) -> bool {
        names(&self.path, path)
    }

    fn remove_others(&mut self, keep: &Path) -> Result<(), String> {
        Directory::remove_others(self, keep).map_err(|error| error.to_string())
    }
}

/// An open, locked directory.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Opens and locks a replica's directory.
    ///
    /// # Errors
    /// See [`claim`].
    pub fn open(path: &Path, patience: Duration) -> Result<Directory, DirectoryError> {
        let lock = claim(path, "replica", patience)?;
        Ok(Directory { path: path.to_owned(), _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Path of the outbox journal's directory.
    #[must_use]
    pub fn outbox(&self) -> PathBuf {
        self.path.join("outbox")
    }

    /// The current state directory. A `current` that is missing or damaged yields a fresh one: the state can be
    /// fetched again, and the outbox lies elsewhere.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn current_state(&self) -> Result<PathBuf, DirectoryError> {
        let named = fs::read_to_string(self.path.join("current")).ok().and_then(|line| parse_current(&line));
        let state = match named.map(|name| self.path.join(name)).filter(|path| path.is_dir()) {
            Some(state) => state,
            None => {
                let state = self.new_state()?;
                self.make_current(&state)?;
                state
            }
        };
        self.remove_others(&state)?;
        Ok(state)
    }

    /// A new, empty state directory beside the current one.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn new_state(&self) -> Result<PathBuf, DirectoryError> {
        new_state_in(&self.path)
    }

    /// Makes `state` the current one, atomically and durably.
    ///
    /// # Errors
    /// When the operating system refuses. The former one stays current then, unless all but the last sync was done: ask
    /// [`Home::is_current`].
    pub fn make_current(&self, state: &Path) -> Result<(), DirectoryError> {
        let name = state.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let line = format!("{name} {}\n", checksum(name));
        replace_file(&self.path.join("current"), line.as_bytes())
    }

    /// Removes every state directory but `keep`.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn remove_others(&self, keep: &Path) -> Result<(), DirectoryError> {
        for other in states_in(&self.path)?.into_iter().filter(|path| path != keep) {
            fs::remove_dir_all(&other).map_err(io_error(&other))?;
        }
        Ok(())
    }
}

/// Whether `current` in the directory `home` names the state in `path`.
pub(super) fn names(home: &Path, path: &Path) -> bool {
    let named = fs::read_to_string(home.join("current")).ok().and_then(|line| parse_current(&line));
    named.is_some_and(|name| home.join(name) == path)
}

/// A new, empty state directory in a replica's directory at `path`.
///
/// # Errors
/// When the operating system refuses.
pub(super) fn new_state_in(path: &Path) -> Result<PathBuf, DirectoryError> {
    let last = states_in(path)?.iter().filter_map(|path| number(path)).max().unwrap_or(0);
    let state = path.join(format!("state-{:04}", last + 1));
    fs::create_dir(&state).map_err(io_error(&state))?;
    Ok(state)
}

fn states_in(path: &Path) -> Result<Vec<PathBuf>, DirectoryError> {
    let entries = fs::read_dir(path).map_err(io_error(path))?;
    Ok(entries.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| number(path).is_some()).collect())
}

fn number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix("state-")?.parse().ok()
}

fn checksum(name: &str) -> String {
    blake3::hash(name.as_bytes()).to_hex()[..16].to_owned()
}

/// The name of a state directory in a line of `current`; `None` when the line is damaged.
#[must_use]
pub fn parse_current(line: &str) -> Option<String> {
    let (name, sum) = line.trim_end().split_once(' ')?;
    (checksum(name) == sum && !name.contains('/') && number(Path::new(name)).is_some()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_is_atomic_and_leftovers_go() {
        let temp = tempfile::tempdir().expect("temp dir");
        let directory = Directory::open(temp.path(), Duration::ZERO).expect("opens");
        let first = directory.current_state().expect("first");
        let second = directory.new_state().expect("second");
        assert_eq!(directory.current_state().expect("still first"), first);
        assert!(!second.exists(), "an unfinished state is removed");
        let second = directory.new_state().expect("second");
        directory.make_current(&second).expect("swap");
        assert_eq!(directory.current_state().expect("second now"), second);
        assert!(!first.exists());
        assert!(matches!(Directory::open(temp.path(), Duration::ZERO), Err(DirectoryError::InUse { .. })));
    }

    #[test]
    fn a_directory_belongs_to_one_role() {
        let temp = tempfile::tempdir().expect("temp dir");
        drop(claim(temp.path(), "datastore", Duration::ZERO).expect("claims"));
        assert!(matches!(Directory::open(temp.path(), Duration::ZERO), Err(DirectoryError::OtherRole { .. })));
    }
}
