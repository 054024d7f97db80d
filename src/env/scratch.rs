//! A directory for work whose traces nobody needs, removed with its handle.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// A directory of its own, open to nobody else. Dropping it removes it and what is in it.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new directory where the system keeps temporary files.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn new() -> io::Result<Scratch> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let name = format!("gravwell-{:016x}", u64::from_le_bytes(random));
        Scratch::create(std::env::temp_dir().join(name))
    }

    /// The new directory `path`; what a process that ended has left there is removed.
    ///
    /// # Errors
    /// When the operating system refuses.
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

    /// Where it is.
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
