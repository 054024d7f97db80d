//! Failures after which a process must stop.

use std::fmt;

/// Going on could lose what was acknowledged, or show what is not true: stop, and let the next start find out what
/// the disk holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {cause}")]
pub struct Fatal {
    /// What cannot be done any more.
    pub what: &'static str,
    /// Why.
    pub cause: String,
}

impl Fatal {
    /// A failure of `what`, for use with `map_err`.
    pub fn of<E: fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Fatal {
        move |error| Fatal { what, cause: error.to_string() }
    }
}
