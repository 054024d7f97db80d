//! Where backups are kept: names and bytes, nothing more.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{lock, staged};

/// Largest object that is read: more than any manifest or piece.
pub const OBJECT_BYTES_MAX: u64 = 256 << 20;

/// What keeps room for taking the lock, so that a full disk can be pruned: some blocks of any file system.
const RESERVE: &str = "reserve";
const RESERVE_BYTES: usize = 64 << 10;

/// Why the store does not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such object.
    #[error("{0} is not there; check the place, and see `gravwell-logctl backup list PLACE`")]
    Missing(String),
    /// An object of that name is there already.
    #[error("{0} is there already")]
    Exists(String),
    /// The store refuses, or cannot be reached.
    #[error(
        "{name}: {reason}; see that the place is right, can be reached and written, and has room, then run the command again"
    )]
    Failed {
        /// What was asked for.
        name: String,
        /// Why it is not had.
        reason: String,
    },
    /// The store has no room.
    #[error(
        "{0}: there is no room for it; make room there, for one by `gravwell-logctl backup prune`, then run the command again"
    )]
    Full(String),
}

/// An object as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// A place for backups. Names are relative paths with `/`.
pub trait Store: Send + Sync {
    /// Writes an object, whole and durably, in the place of one of the same name.
    ///
    /// # Errors
    /// When it was not written.
    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError>;

    /// Writes an object unless one of that name is there.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when it is; others when it was not written.
    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError>;

    /// Reads an object.
    ///
    /// # Errors
    /// When it is not there, too large, or cannot be read.
    fn get(&self, name: &str) -> Result<Vec<u8>, StoreError>;

    /// The objects whose names start with `prefix`, which ends in `/`, in order.
    ///
    /// # Errors
    /// When they cannot be listed.
    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError>;

    /// Removes an object; one that is not there is no error.
    ///
    /// # Errors
    /// When it cannot be removed.
    fn remove(&self, name: &str) -> Result<(), StoreError>;

    /// Removes what processes that are gone have left unfinished. The caller holds the lock.
    ///
    /// # Errors
    /// When it cannot be looked for or removed.
    fn tidy(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Keeps some room in hand for [`Store::give_room`]; none where the store has no room for it now.
    fn keep_room(&self) {}

    /// Gives back the room that was kept, and that of what processes that are gone have left long ago. Says whether there was any.
    fn give_room(&self) -> bool {
        false
    }

    /// For people: where it is.
    fn place(&self) -> String;
}

/// Opens the store that `place` names: a directory, `file://…`, or `s3://bucket/prefix`.
///
/// # Errors
/// When the place means nothing, or lacks its settings.
pub fn open(place: &str) -> Result<Box<dyn Store>, StoreError> {
    if place.starts_with("s3://") {
        return Ok(Box::new(super::s3::S3Store::open(place)?));
    }
    match directory(place) {
        None => Err(StoreError::Failed {
            name: place.to_owned(),
            reason: "this is not a place for backups: use a directory or s3://bucket/prefix".into(),
        }),
        Some(root) => Ok(Box::new(LocalStore { root })),
    }
}

/// The directory that `place` names; `None`: it is none.
#[must_use]
pub fn directory(place: &str) -> Option<PathBuf> {
    let path = place.strip_prefix("file://").unwrap_or(place);
    (!path.contains("://")).then(|| path.into())
}

/// A directory.
pub struct LocalStore {
    root: PathBuf,
}

impl LocalStore {
    /// The store in a directory, which is made when something is written.
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
        fs::File::open(crate::env::fs::parent_dir(path))?.sync_all()
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
        // Both times are those of the file system's own clock.
        let since = fs::metadata(self.root.join(lock::NAME)).and_then(|lock| lock.modified());
        let swept = since.and_then(|since| staged::sweep(&self.root, since)).map_err(self.failed(lock::NAME))?;
        if swept > 0 {
            tracing::info!(place = self.place(), bytes = swept, "removed what was left unfinished");
        }
        Ok(())
    }

    fn keep_room(&self) {
        let path = self.root.join(RESERVE);
        if path.exists() {
            return;
        }
        // A file system that compresses would keep nothing of zeros.
        let mut bytes = vec![0; RESERVE_BYTES];
        let made = getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()));
        let made = made.and_then(|()| fs::rename(staged::write(&path, &bytes)?, &path));
        if let Err(error) = made {
            tracing::info!(place = self.place(), %error, "no room is kept for a full disk");
        }
    }

    fn give_room(&self) -> bool {
        let had_reserve = fs::remove_file(self.root.join(RESERVE)).is_ok();
        // Without the lock only what is long over is nobody's.
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
        assert!(store.list("pieces/").expect("lists").is_empty(), "nothing is there, which is no error");
        assert!(matches!(store.get("x"), Err(StoreError::Missing(_))));
        store.put("pieces/ab/1", b"one").expect("writes");
        store.put("pieces/ab/1", b"two").expect("replaces");
        assert!(matches!(store.put_new("pieces/ab/1", b"three"), Err(StoreError::Exists(_))));
        store.put_new("pieces/cd/2", b"").expect("writes");
        let names: Vec<_> = store.list("pieces/").expect("lists").into_iter().map(|listed| listed.name).collect();
        assert_eq!(names, ["pieces/ab/1", "pieces/cd/2"]);
        assert_eq!(store.get("pieces/ab/1").expect("reads"), b"two");
        store.remove("pieces/ab/1").expect("removes");
        store.remove("pieces/ab/1").expect("is not there, which is no error");
        assert!(open("ftp://host/x").is_err());
    }
}
