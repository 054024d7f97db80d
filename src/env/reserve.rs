//! The disk reserve: a file that is removed when the disk is full and created again when there is space.

use std::path::PathBuf;
use std::sync::Arc;

use super::fs::Fs;

/// The reserve of one directory.
#[derive(Debug)]
pub struct Reserve {
    fs: Arc<dyn Fs>,
    path: PathBuf,
    bytes: u64,
}

impl Reserve {
    /// Creates the handle of a reserve of `bytes` at `path`; 0 means no reserve.
    #[must_use]
    pub fn new(fs: Arc<dyn Fs>, path: PathBuf, bytes: u64) -> Reserve {
        Reserve { fs, path, bytes }
    }

    /// Returns whether the reserve exists.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.bytes > 0 && self.fs.exists(&self.path).unwrap_or(false)
    }

    /// Frees the reserved disk space. Returns false if there was none.
    pub fn give_back(&self) -> bool {
        self.fs.remove(&self.path).is_ok()
    }

    /// Creates the reserve again if there is space for twice its size. Returns whether the reserve exists.
    pub fn restore(&self) -> bool {
        if self.bytes == 0 || self.fs.exists(&self.path).unwrap_or(false) {
            return true;
        }
        let free = self.fs.free_space(super::fs::parent_dir(&self.path)).ok();
        if free.unwrap_or(0) < 2 * self.bytes {
            return false;
        }
        let made = self.fs.create(&self.path).and_then(|file| file.allocate(self.bytes));
        if made.is_err() {
            // Half a reserve is worse than none: it uses space and frees too little.
            self.give_back();
        }
        made.is_ok()
    }
}
