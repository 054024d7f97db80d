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
    free_min: u64,
}

impl Reserve {
    /// Creates the handle of a reserve of `bytes` at `path`; 0 means no reserve.
    #[must_use]
    pub fn new(fs: Arc<dyn Fs>, path: PathBuf, bytes: u64, free_min: u64) -> Reserve {
        Reserve { fs, path, bytes, free_min }
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
        if free.unwrap_or(0) < self.free_min.saturating_add(self.bytes.saturating_mul(2)) {
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::memory_fs::MemoryFs;

    #[test]
    fn p07_a_reserve_never_makes_a_disk_full_that_is_not() {
        let bytes = 4096;
        for (free_min, spare, is_made) in [(0, 0, true), (60_000, 0, true), (60_000, 1, false)] {
            let fs = MemoryFs::new();
            fs.create_dir_all(Path::new("/d")).expect("creates");
            fs.set_capacity(Some(free_min + 2 * bytes - spare));
            let reserve = Reserve::new(Arc::new(fs.clone()), "/d/reserve".into(), bytes, free_min);
            let free = fs.free_space(Path::new("/d")).expect("measures");
            assert_eq!(reserve.restore(), is_made, "{free} bytes are free, {free_min} are the minimum");
            assert_eq!(reserve.is_there(), is_made);
            let left = fs.free_space(Path::new("/d")).expect("measures");
            assert!(!is_made || left >= free_min, "{left} bytes are left");
        }
    }
}
