//! Counts aborts of the process while a state is being opened, in a file next to the state.
//!
//! A flipped bit can make the storage engine request more memory than is available, which aborts the process: it would
//! be started and abort again forever. So the handler of the abort signal appends one byte to a file, and a state of
//! which [`ABORTS_MAX`] openings were aborted is no longer tried. Only aborts count: a process that is killed, exceeds
//! a time limit, or lacks space, descriptors or memory proves nothing about the files. (The failure of a small
//! allocation is an abort as well.)

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use signal_hook::SigId;
use signal_hook::consts::SIGABRT;
use signal_hook::low_level::{pipe, unregister};

use gravwell_env::process;

/// Number of aborts after which the state is assumed to be the cause.
pub(super) const ABORTS_MAX: u64 = 3;
/// Maximum age of the last abort; older counts are ignored.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// With less memory left than this, an abort proves nothing about the files.
const MEMORY_MIN: u64 = 128 << 20;
const FILE: &str = "aborts";
/// Name of the counter file of earlier versions, which counted kills as well.
const FORMER_FILE: &str = "openings";

/// Registration of the handler that ends the process as an unhandled abort would. It runs after the handler that counts.
static ENDING: Mutex<Option<SigId>> = Mutex::new(None);

/// Returns how many of the latest openings of the state in `dir` were aborted.
pub(super) fn count(dir: &Path) -> u64 {
    let Ok(metadata) = fs::metadata(dir.join(FILE)) else { return 0 };
    let is_old = metadata.modified().ok().and_then(|at| at.elapsed().ok()).is_some_and(|age| age > REMEMBERED);
    if is_old { 0 } else { metadata.len() }
}

/// Returns whether an opening of the state in `dir` was aborted, however long ago.
#[must_use]
pub fn is_suspect(dir: &Path) -> bool {
    fs::metadata(dir.join(FILE)).is_ok_and(|metadata| metadata.len() > 0)
}

/// Counts an abort for as long as it exists.
pub(super) struct Watch {
    file: PathBuf,
    writing: Option<SigId>,
}

impl Watch {
    /// Starts to count aborts of the opening of the state in `dir`. If that is not possible (disk full, no
    /// descriptors), an abort is not counted, which costs one more attempt.
    pub(super) fn begin(dir: &Path) -> Watch {
        Watch::begin_with(dir, process::memory_left())
    }

    fn begin_with(dir: &Path, memory_left: Option<u64>) -> Watch {
        if count(dir) == 0 {
            let _ = fs::remove_file(dir.join(FILE));
        }
        let _ = fs::remove_file(dir.join(FORMER_FILE));
        let file = dir.join(FILE);
        if memory_left.is_some_and(|bytes| bytes < MEMORY_MIN) {
            return Watch { file, writing: None };
        }
        let opened = fs::create_dir_all(dir).and_then(|()| OpenOptions::new().create(true).append(true).open(&file));
        let writing = opened.and_then(|opened| pipe::register(SIGABRT, opened)).ok();
        if writing.is_some() {
            let always = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
            let ending = signal_hook::flag::register_conditional_default(SIGABRT, always).ok();
            let mut former = ENDING.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(former) = std::mem::replace(&mut *former, ending) {
                unregister(former);
            }
        }
        Watch { file, writing }
    }

    /// Records that the opening has returned, so the files did not cause the earlier aborts.
    pub(super) fn returned(self) {
        let _ = fs::remove_file(&self.file);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.writing.take().map(unregister);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p13_only_aborts_count_and_an_opening_that_returns_forgets_them() {
        let temp = tempfile::tempdir().expect("temp dir");
        for _ in 0..6 {
            // A killed process does not get any further.
            std::mem::forget(Watch::begin(temp.path()));
        }
        assert_eq!(count(temp.path()), 0);
        fs::write(temp.path().join(FILE), "XXX").expect("writes");
        assert_eq!(count(temp.path()), 3);
        Watch::begin(temp.path()).returned();
        assert_eq!(count(temp.path()), 0);
        fs::write(temp.path().join(FILE), "XXX").expect("writes");
        let long_ago = std::time::SystemTime::now() - 2 * REMEMBERED;
        let file = OpenOptions::new().write(true).open(temp.path().join(FILE)).expect("opens");
        file.set_modified(long_ago).expect("sets");
        assert_eq!(count(temp.path()), 0);
        let lacking = Watch::begin_with(temp.path(), Some(MEMORY_MIN - 1));
        assert!(lacking.writing.is_none(), "an abort for lack of memory is not counted");
        assert!(Watch::begin_with(temp.path(), None).writing.is_some());
    }
}
