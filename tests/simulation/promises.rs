//! Promises that are judged from the moment on at which they are kept.

/// A reader refuses writes, or answers them as any other replica does.
pub const READER_WRITES: bool = false;
/// A replica whose state was lost or went back says so until it was level once.
pub const LOST_STATE_SAYS_SO: bool = false;
/// An outbox journal that is missing or ends early is damage.
pub const JOURNAL_HAS_HEAD: bool = false;
/// An index or a register that is beyond the log is the proof of a loss.
pub const WITNESSES_ARE_ASKED: bool = false;
