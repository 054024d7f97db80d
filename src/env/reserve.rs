//! A file that keeps space for hard times: given back on a full disk, made again when there is room.

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
    /// The reserve of `bytes` at `path`; 0: there is none.
    #[must_use]
    pub fn new(fs: Arc<dyn Fs>, path: PathBuf, bytes: u64) -> Reserve {
        Reserve { fs, path, bytes }
    }

    /// Whether there is one to give back.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.bytes > 0 && self.fs.exists(&self.path).unwrap_or(false)
    }

    /// Gives the reserved space back to the disk. False when there was none.
    pub fn give_back(&self) -> bool {
        self.fs.remove(&self.path).is_ok()
    }

    /// Makes the reserve again when there is room for it and as much again. True when it is there.
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
            // Half a reserve is worse than none: it takes space and gives too little back.
            self.give_back();
        }
        made.is_ok()
    }
}
