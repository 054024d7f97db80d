//! What the operating system lets this process do.

use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};

/// Descriptors where the system names no bound.
const UNBOUNDED: u64 = 1 << 20;

/// Whatever this process makes from now on is for its own user alone, also what libraries make.
pub fn close_files_to_others() {
    umask(Mode::RWXG | Mode::RWXO);
}

/// Allows this process as many descriptors as the system permits without asking.
pub fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum && setrlimit(Resource::Nofile, raised).is_err() {
        tracing::debug!("the number of descriptors stays as it is");
    }
}

/// How many descriptors this process may have open at this moment.
#[must_use]
pub fn descriptors_max() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(UNBOUNDED)
}
