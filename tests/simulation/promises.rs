//! Promises that are judged from the moment on at which they are kept.

/// A reader refuses writes, or answers them as any other replica does.
pub const READER_WRITES: bool = false;
/// The state of a replica alone is replaced by an old copy. What is pending meanwhile is not modelled exactly yet.
pub const STATE_GOES_BACK: bool = false;
/// An outbox journal that is missing or ends early is damage.
pub const JOURNAL_HAS_HEAD: bool = false;
