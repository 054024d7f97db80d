//! Resource limits and privileges of this process.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};

/// Number of descriptors assumed if the system reports no limit.
const UNBOUNDED: u64 = 1 << 20;
/// Number of descriptors that client connections leave free; half of all descriptors if that is less.
const RESERVE_MAX: u64 = 1024;
/// Timeout of the wait for a free descriptor.
const DESCRIPTOR_PATIENCE: Duration = Duration::from_secs(10);
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(20);

static CONNECTIONS: AtomicU64 = AtomicU64::new(0);

/// Restricts all files created from now on to the user of this process, including files created by libraries.
pub fn restrict_file_modes() {
    umask(Mode::RWXG | Mode::RWXO);
}

/// Raises the descriptor limit of this process to the maximum permitted without privileges.
pub fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum && setrlimit(Resource::Nofile, raised).is_err() {
        tracing::debug!("failed to raise the descriptor limit");
    }
}

/// Returns the maximum number of client connections: descriptors for storage, other members and searches stay free.
#[must_use]
pub fn places_max() -> usize {
    usize::try_from(connections_max()).unwrap_or(usize::MAX)
}

fn connections_max() -> u64 {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(UNBOUNDED);
    descriptors - RESERVE_MAX.min(descriptors / 2)
}

/// A slot for a client connection; released when dropped.
#[derive(Debug)]
pub struct ConnectionSlot(());

impl ConnectionSlot {
    /// Acquires a slot, unless another connection could use a descriptor that storage may need.
    #[must_use]
    pub fn take() -> Option<ConnectionSlot> {
        let taken = ConnectionSlot(());
        // Counted before the comparison, so that concurrent callers cannot all get the last slot.
        (CONNECTIONS.fetch_add(1, Ordering::Relaxed) < connections_max()).then_some(taken)
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns the number of bytes of memory that this process can still allocate; `None` if unknown.
#[must_use]
pub fn memory_left() -> Option<u64> {
    let of_system = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| kib_in(&text, "MemAvailable:"));
    let limit = getrlimit(Resource::As).current;
    let used = std::fs::read_to_string("/proc/self/status").ok().and_then(|text| kib_in(&text, "VmSize:"));
    let of_process = limit.zip(used).map(|(limit, used)| limit.saturating_sub(used));
    of_system.into_iter().chain(of_process).min()
}

/// Reads a number of KiB from a text of the kernel and converts it to bytes.
fn kib_in(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Returns whether an error means that the process or the system currently has no descriptor left.
#[must_use]
pub fn lacks_descriptors(error: &io::Error) -> bool {
    let found = Errno::from_io_error(error);
    matches!(found, Some(Errno::MFILE | Errno::NFILE))
}

/// Runs an operation that needs a descriptor, and retries until a timeout while there is none. A lack of descriptors
/// proves nothing about a file.
///
/// # Errors
/// Returns the error of `open`.
pub fn with_descriptor<T>(open: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let started = Instant::now();
    loop {
        match open() {
            Err(error) if lacks_descriptors(&error) && started.elapsed() < DESCRIPTOR_PATIENCE => {
                std::thread::sleep(DESCRIPTOR_PAUSE);
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_descriptor_is_waited_for() {
        let left = Cell::new(3);
        let open = || match left.replace(left.get() - 1) {
            0 => Ok("open"),
            1 => Err(Errno::NFILE.into()),
            _ => Err(Errno::MFILE.into()),
        };
        assert_eq!(with_descriptor(open).expect("opens"), "open");
        let missing = with_descriptor(|| Err::<(), _>(io::Error::from(Errno::NOENT)));
        assert_eq!(missing.expect_err("is missing").kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn places_end_before_descriptors_do() {
        let max = connections_max();
        CONNECTIONS.fetch_add(max - 1, Ordering::Relaxed);
        let last = ConnectionSlot::take().expect("the last place");
        assert!(ConnectionSlot::take().is_none());
        drop(last);
        assert!(ConnectionSlot::take().is_some());
        CONNECTIONS.fetch_sub(max - 1, Ordering::Relaxed);
    }
}
