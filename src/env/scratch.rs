//! A temporary directory that is removed together with its handle.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// A private temporary directory, accessible only to the current user. Dropping it removes the directory and its contents.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Creates a new directory in the system's directory for temporary files.
    ///
    /// # Errors
    /// If the operating system reports an error.
    pub fn new() -> io::Result<Scratch> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let name = format!("gravwell-{:016x}", u64::from_le_bytes(random));
        Scratch::create(std::env::temp_dir().join(name))
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
        Ok(Scratch(path))
    }

    /// Returns the path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
