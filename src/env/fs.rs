//! The file system interface of the log, limited to the operations it needs.
//!
//! Object-safe, so that one `Arc<dyn Fs>` serves the log, its readers and its compaction. Files are addressed by
//! offset only; there is no shared cursor. Written data is durable after [`File::sync_data`]; created, renamed and
//! removed files are durable after [`Fs::sync_dir`] of their directory.

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open file. It stays readable after it was renamed, replaced or removed.
pub trait File: Send + Sync + Debug {
    /// Returns the current length.
    ///
    /// # Errors
    /// As reported by the operating system; the same holds for every method here.
    fn len(&self) -> io::Result<u64>;

    /// Returns whether the length is 0.
    ///
    /// # Errors
    /// See [`File::len`].
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads up to `buffer.len()` bytes at `offset` and returns their number; 0 means end of file.
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
    /// See [`File::len`]. After an error it is unknown which writes since the last success are durable.
    fn sync_data(&self) -> io::Result<()>;

    /// Truncates the file or extends it with zeros to `length`.
    ///
    /// # Errors
    /// See [`File::len`].
    fn set_len(&self, length: u64) -> io::Result<()>;

    /// Reserves disk space so that the file has at least `length` bytes; new bytes read as zeros.
    ///
    /// # Errors
    /// See [`File::len`]; `Unsupported` if the file system cannot do it.
    fn allocate(&self, length: u64) -> io::Result<()>;
}

/// A lock, held until it is dropped.
pub trait Lock: Send + Sync + Debug {}

/// A file system.
pub trait Fs: Send + Sync + Debug {
    /// Opens an existing file for reading, and for writing where permissions allow it.
    ///
    /// # Errors
    /// As reported by the operating system; the same holds for every method here.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Creates an empty file, replacing one of the same name.
    ///
    /// # Errors
    /// See [`Fs::open`].
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Renames a file or directory atomically and replaces the target.
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

    /// Returns the sorted names of the files (not directories) in `directory`.
    ///
    /// # Errors
    /// See [`Fs::open`].
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;

    /// Creates a directory and its parents; succeeds if it exists.
    ///
    /// # Errors
    /// See [`Fs::open`].
    fn create_dir_all(&self, directory: &Path) -> io::Result<()>;

    /// Returns whether a file or directory of this name exists.
    ///
    /// # Errors
    /// See [`Fs::open`].
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Returns the number of bytes that this process may still use on the file system of `directory`.
    ///
    /// # Errors
    /// See [`Fs::open`].
    fn free_space(&self, directory: &Path) -> io::Result<u64>;

    /// Acquires an exclusive lock on a file, which is created if missing.
    ///
    /// # Errors
    /// `WouldBlock` if the lock is already held.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>>;
}

/// Copies `bytes` bytes of `source` from `offset` on to the start of `target`, and syncs them.
///
/// # Errors
/// If reading, writing or syncing fails, or `source` ends before that.
pub fn copy_range(source: &dyn File, offset: u64, bytes: u64, target: &dyn File) -> io::Result<()> {
    let mut piece = vec![0; 1 << 20];
    let mut at = 0;
    while at < bytes {
        let length = usize::try_from(bytes - at).unwrap_or(usize::MAX).min(piece.len());
        read_exact_at(source, &mut piece[..length], offset + at)?;
        target.write_at(&piece[..length], at)?;
        at += length as u64;
    }
    target.sync_data()
}

/// Fills `buffer` from `offset` on; fails with `UnexpectedEof` if the file ends before that.
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

/// Returns whether an error means that the disk or the quota is full.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

/// Rewrites the first `length` bytes of a file with the same data and syncs them.
///
/// After a failed sync Linux marks the pages it could not write as clean: they can still be read, a later sync reports
/// success, and a power cut loses them. So if the previous process ended in an unknown way, the data it left must be
/// rewritten before anything builds on it.
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

/// Replaces a small file atomically: writes a temporary file next to it, syncs, renames, syncs the directory.
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

/// Returns the first of the names for 1, 2, 3 … that does not exist; used to move a file away without overwriting another one.
#[must_use]
pub fn first_free(name: impl Fn(u32) -> PathBuf) -> Option<PathBuf> {
    (1..u32::MAX).map(name).find(|name| !name.exists())
}

/// Returns the directory of a file; the current one for a bare name. [`Path::parent`] returns an empty path in that
/// case, which no system call accepts.
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
