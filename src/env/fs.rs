//! What the log needs of a file system, and nothing more.
//!
//! Object-safe, so that one `Arc<dyn Fs>` serves the log, its readers and its compaction. A file is addressed by
//! offset only; there is no cursor to share. What was written is durable after [`File::sync_data`]; what was created,
//! renamed or removed is durable after [`Fs::sync_dir`] of its directory.

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open file. Stays readable after it was renamed, replaced or removed.
pub trait File: Send + Sync + Debug {
    /// Current length.
    ///
    /// # Errors
    /// As the operating system reports them; so for every method here.
    fn len(&self) -> io::Result<u64>;

    /// Whether the length is 0.
    ///
    /// # Errors
    /// See [`File::len`].
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads up to `buffer.len()` bytes at `offset`; 0 means end of file.
    ///
    /// # Errors
    /// See [`File::len`].
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes` at `offset`. After an error any part of them may have been written.
    ///
    /// # Errors
    /// See [`File::len`].
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes contents and length durable.
    ///
    /// # Errors
    /// See [`File::len`]. After an error nothing is known about what was written since the last success.
    fn sync_data(&self) -> io::Result<()>;

    /// Cuts or extends (with zeros) to `length`.
    ///
    /// # Errors
    /// See [`File::len`].
    fn set_len(&self, length: u64) -> io::Result<()>;

    /// Reserves disk space so that the file has at least `length` bytes; new bytes read as zeros.
    ///
    /// # Errors
    /// See [`File::len`]; `Unsupported` where the file system cannot do it.
    fn allocate(&self, length: u64) -> io::Result<()>;
}

/// Held as long as it lives.
pub trait Lock: Send + Sync + Debug {}

/// A file system.
pub trait Fs: Send + Sync + Debug {
    /// Opens an existing file for reading, and for writing where permissions allow it.
    ///
    /// # Errors
    /// As the operating system reports them; so for every method here.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Creates an empty file, replacing one of the same name.
    ///
    /// # Errors
    /// See [`Fs::open`].
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Renames, replacing the target, atomically.
    ///
    /// # Errors
    /// See [`Fs::open`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// See [`Fs::open`].
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes creations, renames and removals in `directory` durable.
    ///
    /// # Errors
    /// See [`Fs::open`].
    fn sync_dir(&self, directory: &Path) -> io::Result<()>;

    /// Names of the files (not directories) in `directory`, sorted.
    ///
    /// # Errors
    /// See [`Fs::open`].
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;

    /// Creates a directory and its parents; one that exists is fine.
    ///
    /// # Errors
    /// See [`Fs::open`].
    fn create_dir_all(&self, directory: &Path) -> io::Result<()>;

    /// Whether a file or directory of this name exists.
    ///
    /// # Errors
    /// See [`Fs::open`].
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Bytes that this process may still use on the file system of `directory`.
    ///
    /// # Errors
    /// See [`Fs::open`].
    fn free_space(&self, directory: &Path) -> io::Result<u64>;

    /// Takes an exclusive lock on a file, created when missing.
    ///
    /// # Errors
    /// `WouldBlock` when another holder exists.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>>;
}

/// Fills `buffer` from `offset` on; fails with `UnexpectedEof` when the file ends before.
///
/// # Errors
/// See [`File::read_at`].
pub fn read_exact_at(file: &dyn File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                buffer = &mut buffer[count..];
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether an error says that the disk (or the quota) is full.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

/// Writes the first `length` bytes of a file again as they are read, and syncs them.
///
/// After a failed sync Linux takes what it could not write for clean: it is read back as if it were there, a later sync
/// says that all is well, and a power cut shows that it never was. Who opens a file after a process that ended in an
/// unknown way, and wants to build on what it reads, has to write it again.
///
/// # Errors
/// See [`File::len`].
pub fn write_again(file: &dyn File, length: u64) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < length {
        let piece = usize::try_from(length - at).unwrap_or(usize::MAX).min(buffer.len());
        read_exact_at(file, &mut buffer[..piece], at)?;
        file.write_at(&buffer[..piece], at)?;
        at += piece as u64;
    }
    file.sync_data()
}

/// Replaces a small file whole: writes beside it, syncs, renames, syncs the directory.
///
/// # Errors
/// See [`Fs::open`].
pub fn replace_file(fs: &dyn Fs, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    let beside = std::path::PathBuf::from(beside);
    let file = fs.create(&beside)?;
    file.write_at(bytes, 0)?;
    file.sync_data()?;
    fs.rename(&beside, path)?;
    fs.sync_dir(parent_dir(path))
}

/// The first of the names for 1, 2, 3 ... that nothing has yet; for what is put aside and must overwrite nothing.
#[must_use]
pub fn first_free(name: impl Fn(u32) -> PathBuf) -> Option<PathBuf> {
    (1..u32::MAX).map(name).find(|name| !name.exists())
}

/// The directory of a file: of a bare name, the current one. [`Path::parent`] gives an empty path for it, which no call takes.
#[must_use]
pub fn parent_dir(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_has_a_directory() {
        for (path, parent) in [("a", "."), ("./a", "."), ("a/b", "a"), ("/a", "/"), ("/", "/"), ("a/", ".")] {
            assert_eq!(parent_dir(Path::new(path)), Path::new(parent), "{path}");
        }
    }
}
