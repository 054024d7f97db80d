//! A temporary directory that is removed together with its handle.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

/// Beginning of the names of directories; sixteen hexadecimal digits follow.
const PREFIX: &str = "gravwell-";
/// Age from which a directory that no process has locked is the leftover of a killed one. Processes of earlier versions
/// lock none, and no command of theirs runs as long.
const LEFTOVER_AGE: Duration = Duration::from_secs(2 * 86_400);

/// A private temporary directory, accessible only to the current user. Dropping it removes the directory and its contents.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    /// Holds the lock that shows other processes that the directory is in use.
    _lock: File,
}

impl Scratch {
    /// Creates a new directory in the system's directory for temporary files.
    ///
    /// # Errors
    /// If the operating system reports an error.
    pub fn new() -> io::Result<Scratch> {
        Scratch::within(&std::env::temp_dir())
    }

    /// Creates a new directory in `base`. Removes directories there that processes of the same user have left when they
    /// were killed: they may contain decrypted data.
    ///
    /// # Errors
    /// If the operating system reports an error.
    pub fn within(base: &Path) -> io::Result<Scratch> {
        remove_leftovers(base, LEFTOVER_AGE);
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        Scratch::create(base.join(format!("{PREFIX}{:016x}", u64::from_le_bytes(random))))
    }

    /// Creates the directory `path`; leftovers of an earlier process there are removed.
    ///
    /// # Errors
    /// If the operating system reports an error.
    pub fn at(path: PathBuf) -> io::Result<Scratch> {
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Scratch::create(path),
        }
    }

    fn create(path: PathBuf) -> io::Result<Scratch> {
        DirBuilder::new().mode(0o700).create(&path)?;
        let lock = File::open(&path)?;
        // Some network file systems lock no directories. Nobody else can lock this one there, either.
        let _ = flock(&lock, FlockOperation::NonBlockingLockExclusive);
        Ok(Scratch { path, _lock: lock })
    }

    /// Returns the path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes directories of killed processes that are older than `age`. Errors leave them where they are.
fn remove_leftovers(base: &Path, age: Duration) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten().filter(|entry| is_scratch_name(&entry.file_name().to_string_lossy())) {
        let path = entry.path();
        // Neither follows symbolic links.
        let Ok(meta) = entry.metadata() else { continue };
        let is_old = meta.modified().is_ok_and(|at| at.elapsed().is_ok_and(|elapsed| elapsed >= age));
        if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() || !is_old {
            continue;
        }
        let Ok(directory) = File::open(&path) else { continue };
        if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok() {
            match fs::remove_dir_all(&path) {
                Ok(()) => tracing::info!(path = %path.display(), "removed the temporary directory of a killed process"),
                Err(error) => tracing::warn!(path = %path.display(), %error, "failed to remove a temporary directory"),
            }
        }
    }
}

fn is_scratch_name(name: &str) -> bool {
    let rest = name.strip_prefix(PREFIX).unwrap_or_default();
    // Earlier versions named those of `backup verify` differently.
    let digits = rest.strip_prefix("verify-").unwrap_or(rest);
    digits.len() == 16 && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_killed_processes_are_removed() {
        let base = tempfile::tempdir().expect("directory");
        let in_use = Scratch::within(base.path()).expect("creates");
        let of_killed =
            ["gravwell-0123456789abcdef", "gravwell-verify-0123456789abcdef"].map(|name| base.path().join(name));
        of_killed.iter().for_each(|path| fs::create_dir_all(path.join("log")).expect("creates"));
        let others =
            ["gravwell-0123456789abcde", "gravwell-0123456789abcdeg", "other"].map(|name| base.path().join(name));
        others.iter().for_each(|path| fs::create_dir(path).expect("creates"));
        let file = base.path().join("gravwell-0123456789abcde0");
        fs::write(&file, "").expect("writes");
        drop(Scratch::within(base.path()).expect("creates"));
        assert!(of_killed.iter().all(|path| path.exists()), "too young");
        remove_leftovers(base.path(), Duration::ZERO);
        assert!(!of_killed.iter().any(|path| path.exists()) && in_use.path().exists() && file.exists());
        assert!(others.iter().all(|path| path.exists()));
    }
}
