//! Where backups are kept: names and bytes, nothing more.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Largest object that is read: more than any manifest or piece.
pub const OBJECT_BYTES_MAX: u64 = 256 << 20;

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
            _ => StoreError::Failed { name: name.clone(), reason: error.to_string() },
        }
    }

    /// Writes and syncs a file under a name of its own.
    fn stage(&self, path: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
        let parent = crate::env::fs::parent_dir(path);
        fs::create_dir_all(parent)?;
        let staged = path.with_extension(format!("{}.next", std::process::id()));
        // What is not encrypted is for nobody else either.
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(staged)
    }

    fn sync_parent(path: &Path) -> io::Result<()> {
        fs::File::open(crate::env::fs::parent_dir(path))?.sync_all()
    }
}

impl Store for LocalStore {
    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.root.join(name);
        let written = self.stage(&path, bytes).and_then(|staged| fs::rename(staged, &path));
        written.and_then(|()| Self::sync_parent(&path)).map_err(self.failed(name))
    }

    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.root.join(name);
        let written = self.stage(&path, bytes).and_then(|staged| {
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
                } else if !name.ends_with(".next") {
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
