//! Failures after which a process must stop.

use std::fmt;

/// Continuing could lose acknowledged transactions or show wrong data. The process must stop; the next start determines
/// the state of the disk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {cause}")]
pub struct Fatal {
    /// The operation that failed.
    pub what: &'static str,
    /// Error message of the cause.
    pub cause: String,
}

impl Fatal {
    /// Returns a closure for `map_err` that creates an error for `what`.
    pub fn of<E: fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Fatal {
        move |error| Fatal { what, cause: error.to_string() }
    }
}
