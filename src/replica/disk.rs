//! Free space on a replica's disk. Below a minimum the replica only reads, and releases its reserve.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gravwell_env::reserve::Reserve;
use gravwell_env::{Fs, RealFs};
use gravwell_runtime::telemetry;

/// Shortest interval between two measurements.
const EVERY: Duration = Duration::from_millis(250);
const RESERVE: &str = "reserve";

/// Message for users while the disk is full.
pub(super) const FULL: &str = "the disk is full: less space is free than `Webserver-Min-Free-MB` requires; free some \
                               space. Reads continue, and deletes while there is space for them; everything else \
                               resumes automatically";

/// The disk of one replica.
pub(super) struct Disk {
    directory: PathBuf,
    free_min: AtomicU64,
    reserve: Reserve,
    is_full: AtomicBool,
    /// Whether it was full since `take_was_full` was last called.
    was_full: AtomicBool,
    measured: Mutex<Measured>,
}

#[derive(Default)]
struct Measured {
    at: Option<Instant>,
    free: u64,
    is_reserve_given: bool,
}

impl Disk {
    /// Returns the disk of `directory`. It is full below `free_min` free bytes; `reserve_bytes` are kept for that case.
    pub(super) fn new(directory: &Path, free_min: u64, reserve_bytes: u64) -> Disk {
        let reserve = Reserve::new(Arc::new(RealFs), directory.join(RESERVE), reserve_bytes, free_min);
        let is_full = AtomicBool::new(false);
        // The first measurement creates the reserve if it is missing.
        let measured = Mutex::new(Measured { is_reserve_given: !reserve.is_there(), ..Measured::default() });
        let was_full = AtomicBool::new(false);
        let free_min = AtomicU64::new(free_min);
        Disk { directory: directory.to_owned(), free_min, reserve, is_full, was_full, measured }
    }

    fn free_min(&self) -> u64 {
        self.free_min.load(Ordering::Relaxed)
    }

    /// Makes the disk appear full, or roomy again.
    #[cfg(test)]
    pub(super) fn set_free_min(&self, free_min: u64) {
        self.free_min.store(free_min, Ordering::Relaxed);
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        measured.at = None;
        self.is_full.store(false, Ordering::Relaxed);
    }

    /// Returns a disk that is never full.
    pub(super) fn unbounded() -> Disk {
        Disk::new(Path::new("/"), 0, 0)
    }

    /// Returns whether less than the minimum is free.
    pub(super) fn is_full(&self) -> bool {
        if self.free_min() > 0 {
            self.measure();
        }
        self.is_full.load(Ordering::Relaxed)
    }

    /// Returns whether there is room for deletes, which free space: less than what releasing the reserve makes free.
    pub(super) fn takes_deletes(&self) -> bool {
        !self.is_full() || self.measured.lock().unwrap_or_else(PoisonError::into_inner).free >= self.free_min() / 8
    }

    /// Returns whether an operation may have failed for lack of space: the disk is full, or was since the last call.
    pub(super) fn take_was_full(&self) -> bool {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner).at = None;
        let is_full = self.is_full();
        self.was_full.swap(false, Ordering::Relaxed) || is_full
    }

    fn measure(&self) {
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        if measured.at.is_some_and(|at| at.elapsed() < EVERY) {
            return;
        }
        measured.at = Some(Instant::now());
        let Ok(free) = RealFs.free_space(&self.directory) else { return };
        measured.free = free;
        telemetry::metrics::disk_free(free);
        let is_full = free < self.free_min();
        self.was_full.fetch_or(is_full, Ordering::Relaxed);
        let was_full = self.is_full.swap(is_full, Ordering::Relaxed);
        match (was_full, is_full) {
            (false, true) => tracing::error!(free, minimum = self.free_min(), "{FULL}"),
            (true, false) => tracing::info!(free, "disk has free space; resuming writes"),
            _ => {}
        }
        if is_full && !measured.is_reserve_given {
            self.reserve.give_back();
            measured.is_reserve_given = true;
        } else if !is_full && measured.is_reserve_given {
            measured.is_reserve_given = !self.reserve.restore();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p07_the_reserve_is_there_while_there_is_room_and_given_back_when_there_is_none() {
        let temp = tempfile::tempdir().expect("temp dir");
        let reserve = temp.path().join(RESERVE);
        let roomy = Disk::new(temp.path(), 1, 4096);
        assert!(!roomy.is_full() && roomy.takes_deletes() && reserve.exists());
        let full = Disk::new(temp.path(), u64::MAX, 4096);
        assert!(full.is_full() && !full.takes_deletes() && !reserve.exists());
        assert!(!Disk::unbounded().is_full());
    }
}
