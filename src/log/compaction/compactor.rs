//! Compactions of one log, one after the other.

use std::path::{Path, PathBuf};

use super::{Compaction, CompactionError, CompactionOptions, CompactionProgress, CompactionReport};
use crate::log::liveness::FjallLiveness;
use crate::log::reader::LogReader;
use crate::model::Seq;

/// What one call of [`Compactor::run`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The horizon afterwards.
    pub horizon: Seq,
    /// Segments that were, or would be, rewritten.
    pub segments: u64,
    /// Bytes that were, or would be, given back.
    pub bytes_freed: u64,
    /// Everything else.
    pub report: CompactionReport,
}

/// Runs compactions of one log, one after the other, with the index in a directory of its own.
#[derive(Debug)]
pub struct Compactor {
    reader: LogReader,
    base: PathBuf,
    index: Option<FjallLiveness>,
    segment_bytes: u64,
}

impl Compactor {
    /// Opens nothing yet: `base` is the directory of the index, opened at the first run.
    #[must_use]
    pub fn new(reader: LogReader, base: &Path) -> Compactor {
        Compactor {
            reader,
            base: base.to_owned(),
            index: None,
            segment_bytes: CompactionOptions::default().segment_bytes,
        }
    }

    /// Length up to which neighbours are merged.
    #[must_use]
    pub fn segment_bytes(mut self, segment_bytes: u64) -> Compactor {
        self.segment_bytes = segment_bytes;
        self
    }

    /// Compacts up to `target` at most. Segments with a smaller share of garbage than `garbage_percent_min` stay.
    /// `progress` gets (sequences handled, sequences in all); time passes between two calls of it in slices.
    ///
    /// # Errors
    /// See [`Compaction::step`].
    pub fn run(
        &mut self,
        target: Seq,
        garbage_percent_min: u8,
        dry_run: bool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Outcome, CompactionError> {
        let index = match &mut self.index {
            Some(index) => index,
            None => {
                let opened = FjallLiveness::open(&self.base, self.reader.log_id());
                self.index.insert(opened.map_err(CompactionError::Index)?)
            }
        };
        let garbage_ratio = f64::from(garbage_percent_min) / 100.0;
        let options = CompactionOptions { garbage_ratio, segment_bytes: self.segment_bytes, dry_run };
        let mut compaction = Compaction::new(self.reader.clone(), index, target, options)?;
        let total = compaction.horizon.0 * 3;
        loop {
            match compaction.step()? {
                CompactionProgress::Working { phase, seq } => {
                    let before = match phase {
                        "advance" => 0,
                        "measure" => compaction.horizon.0,
                        _ => 2 * compaction.horizon.0,
                    };
                    progress((before + seq.0).min(total), total);
                }
                CompactionProgress::Done(report) => {
                    let (horizon, segments) = (report.horizon, report.segments_before as u64);
                    return Ok(Outcome { horizon, segments, bytes_freed: report.bytes_freed(), report });
                }
            }
        }
    }
}
