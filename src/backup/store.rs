//! Storage backends for backups, which store bytes under names.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{lock, staged};

/// Largest object that is read, in bytes. Larger than any manifest or piece.
pub const OBJECT_BYTES_MAX: u64 = 256 << 20;

/// File that reserves space for writing the lock, so that backups can be pruned on a full disk. Several blocks on any
/// file system.
const RESERVE: &str = "reserve";
const RESERVE_BYTES: usize = 64 << 10;

/// Error of a store operation.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The object does not exist.
    #[error("{0} does not exist; check the place with `gravwell-logctl backup list PLACE`")]
    Missing(String),
    /// An object of that name exists already.
    #[error("{0} already exists")]
    Exists(String),
    /// The store rejects the request or cannot be reached.
    #[error("{name}: {reason}; check that the place is correct, reachable, writable and has free space, then retry")]
    Failed {
        /// Object or location of the request.
        name: String,
        /// Cause of the failure.
        reason: String,
    },
    /// Another process holds the lock.
    #[error("{name}: locked by {who}; wait, or remove the lock if that process no longer exists")]
    Busy {
        /// Name of the lock.
        name: String,
        /// Holder of the lock.
        who: String,
    },
    /// The store has no space.
    #[error("{0}: no space left; free some space, for example with `gravwell-logctl backup prune`, then retry")]
    Full(String),
}

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Name of the object, relative to the store.
    pub name: String,
    /// Size of the object in bytes.
    pub bytes: u64,
}

/// A storage backend for backups. Names are relative paths with `/`.
pub trait Store: Send + Sync {
    /// Writes an object atomically and durably, replacing one of the same name.
    ///
    /// # Errors
    /// Returns an error if it was not written.
    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError>;

    /// Writes an object unless one of that name exists.
    ///
    /// # Errors
    /// Returns [`StoreError::Exists`] if it exists, and other errors if it was not written.
    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError>;

    /// Reads an object.
    ///
    /// # Errors
    /// Returns an error if it does not exist, is too large, or cannot be read.
    fn get(&self, name: &str) -> Result<Vec<u8>, StoreError>;

    /// Lists the objects whose names start with `prefix`, which ends in `/`, ordered by name.
    ///
    /// # Errors
    /// Returns an error if they cannot be listed.
    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError>;

    /// Removes an object. Succeeds if it does not exist.
    ///
    /// # Errors
    /// Returns an error if it cannot be removed.
    fn remove(&self, name: &str) -> Result<(), StoreError>;

    /// Removes unfinished objects of terminated processes. The caller holds the lock.
    ///
    /// # Errors
    /// Returns an error if they cannot be found or removed.
    fn tidy(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Reserves space for [`Store::give_room`]. Does nothing if there is no space now.
    fn keep_room(&self) {}

    /// Releases the reserved space, and removes unfinished objects that were abandoned long ago. Returns whether any
    /// space was freed.
    fn give_room(&self) -> bool {
        false
    }

    /// Returns the location for messages to users.
    fn place(&self) -> String;
}

/// Opens the store at `place`: a directory, `file://…`, or `s3://bucket/prefix`.
///
/// # Errors
/// Returns an error if the place is invalid, or its settings are missing.
pub fn open(place: &str) -> Result<Box<dyn Store>, StoreError> {
    if place.starts_with("s3://") {
        return Ok(Box::new(super::s3::S3Store::open(place)?));
    }
    match directory(place) {
        None => Err(StoreError::Failed {
            name: place.to_owned(),
            reason: "invalid place for backups; use a directory or s3://bucket/prefix".into(),
        }),
        Some(root) => Ok(Box::new(LocalStore { root })),
    }
}

/// Returns the directory at `place`; `None` if it is not a directory.
#[must_use]
pub fn directory(place: &str) -> Option<PathBuf> {
    let path = place.strip_prefix("file://").unwrap_or(place);
    (!path.contains("://")).then(|| path.into())
}

/// A store in a local directory.
pub struct LocalStore {
    root: PathBuf,
}

impl LocalStore {
    /// Creates a store in a directory, which is created with the first object.
    #[must_use]
    pub fn new(root: &Path) -> LocalStore {
        LocalStore { root: root.to_owned() }
    }

    fn failed(&self, name: &str) -> impl Fn(io::Error) -> StoreError {
        let name = self.root.join(name).display().to_string();
        move |error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::Missing(name.clone()),
            io::ErrorKind::AlreadyExists => StoreError::Exists(name.clone()),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full(name.clone()),
            _ => StoreError::Failed { name: name.clone(), reason: error.to_string() },
        }
    }

    fn sync_parent(path: &Path) -> io::Result<()> {
        fs::File::open(gravwell_env::fs::parent_dir(path))?.sync_all()
    }
}

impl Store for LocalStore {
    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.root.join(name);
        let written = staged::write(&path, bytes).and_then(|staged| {
            let renamed = fs::rename(&staged, &path);
            renamed.inspect_err(|_| drop(fs::remove_file(&staged)))
        });
        written.and_then(|()| Self::sync_parent(&path)).map_err(self.failed(name))
    }

    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.root.join(name);
        let written = staged::write(&path, bytes).and_then(|staged| {
            let linked = fs::hard_link(&staged, &path);
            fs::remove_file(&staged)?;
            linked
        });
        written.and_then(|()| Self::sync_parent(&path)).map_err(self.failed(name))
    }

    fn get(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        let path = self.root.join(name);
        let length = fs::metadata(&path).map_err(self.failed(name))?.len();
        if length > OBJECT_BYTES_MAX {
            return Err(StoreError::Failed { name: name.to_owned(), reason: format!("it has {length} bytes") });
        }
        fs::read(&path).map_err(self.failed(name))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        let mut found = Vec::new();
        let mut open = vec![prefix.trim_end_matches('/').to_owned()];
        while let Some(directory) = open.pop() {
            let entries = match fs::read_dir(self.root.join(&directory)) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(self.failed(&directory)(error)),
            };
            for entry in entries {
                let entry = entry.map_err(self.failed(&directory))?;
                let name = format!("{directory}/{}", entry.file_name().to_string_lossy());
                let metadata = entry.metadata().map_err(self.failed(&name))?;
                if metadata.is_dir() {
                    open.push(name);
                } else if !name.ends_with(staged::END) {
                    found.push(Listed { name, bytes: metadata.len() });
                }
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        match fs::remove_file(self.root.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed(name)(error)),
            _ => Ok(()),
        }
    }

    fn tidy(&self) -> Result<(), StoreError> {
        // Both times come from the clock of the file system.
        let since = fs::metadata(self.root.join(lock::NAME)).and_then(|lock| lock.modified());
        let swept = since.and_then(|since| staged::sweep(&self.root, since)).map_err(self.failed(lock::NAME))?;
        if swept > 0 {
            tracing::info!(place = self.place(), bytes = swept, "removed unfinished files");
        }
        Ok(())
    }

    fn keep_room(&self) {
        let path = self.root.join(RESERVE);
        if fs::metadata(&path).is_ok_and(|found| found.len() == RESERVE_BYTES as u64) {
            return;
        }
        // A compressing file system would reserve no space for zeros.
        let mut bytes = vec![0; RESERVE_BYTES];
        let made = getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()));
        let made = made.and_then(|()| fs::rename(staged::write(&path, &bytes)?, &path));
        if let Err(error) = made {
            tracing::info!(place = self.place(), %error, "failed to create disk reserve");
        }
    }

    fn give_room(&self) -> bool {
        let had_reserve = fs::remove_file(self.root.join(RESERVE)).is_ok();
        // Without the lock, only files that were abandoned long ago may be removed.
        let long_ago = SystemTime::now().checked_sub(staged::STALE);
        let swept = long_ago.and_then(|long_ago| staged::sweep(&self.root, long_ago).ok()).unwrap_or_default();
        had_reserve || swept > 0
    }

    fn place(&self) -> String {
        self.root.display().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_whole_objects_under_their_names() {
        let temp = tempfile::tempdir().expect("temp dir");
        let store = LocalStore::new(&temp.path().join("backups"));
        assert!(store.list("pieces/").expect("lists").is_empty(), "a missing directory is no error");
        assert!(matches!(store.get("x"), Err(StoreError::Missing(_))));
        store.put("pieces/ab/1", b"one").expect("writes");
        store.put("pieces/ab/1", b"two").expect("replaces");
        assert!(matches!(store.put_new("pieces/ab/1", b"three"), Err(StoreError::Exists(_))));
        store.put_new("pieces/cd/2", b"").expect("writes");
        let names: Vec<_> = store.list("pieces/").expect("lists").into_iter().map(|listed| listed.name).collect();
        assert_eq!(names, ["pieces/ab/1", "pieces/cd/2"]);
        assert_eq!(store.get("pieces/ab/1").expect("reads"), b"two");
        store.remove("pieces/ab/1").expect("removes");
        store.remove("pieces/ab/1").expect("a missing object is no error");
        assert!(open("ftp://host/x").is_err());
        // A reserve that was cut short reserves too little.
        let reserve = temp.path().join("backups").join(RESERVE);
        for length in [0, RESERVE_BYTES / 2] {
            fs::write(&reserve, vec![1; length]).expect("writes");
            store.keep_room();
            assert_eq!(fs::metadata(&reserve).expect("is there").len(), RESERVE_BYTES as u64);
        }
    }
}
