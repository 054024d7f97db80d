//! Chooses the segments to rewrite from measurements alone. Also defines options, errors and reports of compaction.

use std::collections::HashSet;
use std::io;
use std::ops::Range;

use crate::error::{IoFailure, ReadError};
use crate::reader::SegmentInfo;
use gravwell_model::codec::error::EncodeError;
use gravwell_model::{Collection, Key, Seq};

/// Options of a compaction.
#[derive(Clone, Debug, PartialEq)]
pub struct CompactionOptions {
    /// Segments with a smaller share of garbage (0 to 1) are left unchanged.
    pub garbage_ratio: f64,
    /// Length in bytes up to which neighbouring segments are merged.
    pub segment_bytes: u64,
    /// Dry run: report the plan without changing anything.
    pub dry_run: bool,
}

impl Default for CompactionOptions {
    fn default() -> Self {
        CompactionOptions { garbage_ratio: 0.3, segment_bytes: 64 << 20, dry_run: false }
    }
}

/// Compaction stopped early. The log is intact, and a later compaction continues.
#[derive(Debug, thiserror::Error)]
pub enum CompactionError {
    /// Another compaction is running.
    #[error("a compaction is already running")]
    Busy,
    /// There is no room for the new segment.
    #[error("compaction needs {needed} bytes of free space for its next segment; free some and try again")]
    Full {
        /// Bytes of the segment that could not be written.
        needed: u64,
    },
    /// The log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A file cannot be written.
    #[error(transparent)]
    Io(#[from] IoFailure),
    /// The index cannot be used.
    #[error("the compaction index failed: {0}")]
    Index(io::Error),
    /// The index does not match the log, even after it was rebuilt.
    #[error("compaction found {found} live objects in the log, but its index has {expected}; nothing was changed")]
    IndexWrong {
        /// Objects in the index.
        expected: u64,
        /// Objects found.
        found: u64,
    },
    /// The new segment does not read back as written; the old segments are kept.
    #[error("the compacted segment {file} does not read back as written; the old segments are kept")]
    Mismatch {
        /// Name of the new segment.
        file: String,
    },
    /// A record does not fit into a frame.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// Result of a compaction, or the plan in a dry run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompactionReport {
    /// The horizon afterwards.
    pub horizon: Seq,
    /// Whether nothing was written.
    pub dry_run: bool,
    /// Number of segments replaced.
    pub segments_before: usize,
    /// Number of segments that replace them.
    pub segments_after: usize,
    /// Bytes of the replaced segments.
    pub bytes_before: u64,
    /// Bytes of the new segments; an estimate in a dry run.
    pub bytes_after: u64,
    /// Number of segments left unchanged.
    pub segments_skipped: usize,
    /// Records kept in rewritten segments.
    pub records_kept: u64,
    /// Records dropped from rewritten segments.
    pub records_dropped: u64,
}

impl CompactionReport {
    /// Returns the number of bytes freed.
    #[must_use]
    pub fn bytes_freed(&self) -> u64 {
        self.bytes_before.saturating_sub(self.bytes_after)
    }
}

/// Outcome of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompactionProgress {
    /// There is more to do.
    Working {
        /// Name of the phase.
        phase: &'static str,
        /// Last sequence handled in this phase.
        seq: Seq,
    },
    /// The compaction is complete.
    Done(CompactionReport),
}

/// Measurements of one segment.
#[derive(Clone, Debug, Default)]
pub struct Measure {
    /// Bytes of all frames.
    pub frames_bytes: u64,
    /// Estimate of the bytes that are kept.
    pub live_bytes: u64,
    /// Number of records in the segment.
    pub records: u64,
    /// Number of records that are kept at least in part.
    pub live_records: u64,
    /// Whether the segment holds a rejection that its origin has acknowledged since: replaying it would restore the rejection.
    pub must_rewrite: bool,
    /// Deleted objects for which the segment still holds a put.
    pub(crate) ghosts: HashSet<(Collection, Key)>,
}

impl Measure {
    pub(super) fn garbage_bytes(&self) -> u64 {
        self.frames_bytes.saturating_sub(self.live_bytes)
    }

    pub(super) fn wants_rewrite(&self, garbage_ratio: f64) -> bool {
        let garbage = self.garbage_bytes();
        self.must_rewrite || (garbage > 0 && garbage as f64 >= garbage_ratio * self.frames_bytes as f64)
    }
}

/// Returns groups of neighbouring segments (by index); each group is rewritten as one segment. Segments outside the
/// groups are left unchanged.
#[must_use]
pub fn plan_groups(measures: &[Measure], options: &CompactionOptions) -> Vec<Range<usize>> {
    let mut groups = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    let mut close = |range: Range<usize>| {
        let worthwhile =
            range.len() > 1 || measures[range.clone()].iter().any(|m| m.wants_rewrite(options.garbage_ratio));
        if !range.is_empty() && worthwhile {
            groups.push(range);
        }
    };
    for (index, measure) in measures.iter().enumerate() {
        let small = measure.live_bytes < options.segment_bytes / 2;
        if !small && !measure.wants_rewrite(options.garbage_ratio) {
            close(start..index);
            (start, bytes) = (index + 1, 0);
            continue;
        }
        if index > start && bytes + measure.live_bytes > options.segment_bytes {
            close(start..index);
            (start, bytes) = (index, 0);
        }
        bytes += measure.live_bytes;
    }
    close(start..measures.len());
    groups
}

/// Returns the highest end of a sealed segment that is not above `target`: the horizon that compaction can reach.
#[must_use]
pub fn reachable_horizon(segments: &[SegmentInfo], target: Seq) -> Seq {
    let ends = segments.iter().filter(|segment| segment.sealed && segment.last <= target);
    ends.map(|segment| segment.last).max().unwrap_or_default()
}
