//! The on-disk log: segments of checksummed, chained records with one writer and any number of readers.
//!
//! `log-format.md` is the specification. The code is synchronous: no threads, no tokio. Its callers are the commit
//! pipeline (the only owner of [`Log`]), subscribers and tools ([`LogReader`]), and one background compaction.

// Both panic if the output cannot be written; see `src/runtime/telemetry/output.rs`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod backup_stream;
pub mod backup_stream_check;
pub mod compaction;
mod cursor;
pub mod directory;
pub mod error;
pub mod format;
pub mod generations;
mod head;
pub mod journal;
mod journal_head;
pub mod liveness;
pub mod reader;
pub mod recovery;
pub mod repair;
pub mod salvage;
mod segment;
mod shared;
mod trim;
pub mod verify;
mod writer;

#[cfg(test)]
mod tests;

/// For programs that read a log: they depend on this crate alone.
pub use gravwell_env as env;
pub use gravwell_model as model;

pub use compaction::{
    Compaction, CompactionError, CompactionOptions, CompactionProgress, CompactionReport, Compactor, Outcome,
};
pub use directory::exists;
pub use error::{AppendError, Damage, IoFailure, OpenError, REPAIR_REMEDY, ReadError, SyncError, further};
pub use liveness::{FjallLiveness, LivenessIndex, MemoryLiveness};
pub use reader::{Base, Entries, FrameBlock, LogReader, RecordAt, SegmentInfo};
pub use recovery::{RecoveryAction, RecoveryPlan, RecoveryReport};
pub use verify::{VerifyReport, verify};
pub use writer::{AppendedBatch, Durable, Log};

/// Options of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// Maximum length of a segment: it is sealed before a batch would exceed this.
    pub segment_bytes: u64,
    /// Whether disk space is allocated ahead of the data, which makes syncs cheaper.
    pub preallocate: bool,
    /// Disk space held back for deletes and compaction on a full disk; 0 for none.
    pub reserve_bytes: u64,
    /// Free space that the owner of the log keeps; the reserve is created only above it.
    pub free_bytes_min: u64,
    /// Whether the oldest segments are removed whole (see [`Log::trim`]) instead of being compacted. The flag is
    /// written into every segment, so a log without it is never mistaken for a trimmed one.
    pub is_trimmed: bool,
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions {
            segment_bytes: 64 << 20,
            preallocate: true,
            reserve_bytes: 4 << 20,
            free_bytes_min: 0,
            is_trimmed: false,
        }
    }
}
