//! Runs the compactions of one log one after another.

use std::path::{Path, PathBuf};

use super::{Compaction, CompactionError, CompactionOptions, CompactionProgress, CompactionReport};
use crate::liveness::FjallLiveness;
use crate::reader::LogReader;
use gravwell_model::Seq;

/// Result of one call of [`Compactor::run`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The horizon afterwards.
    pub horizon: Seq,
    /// Number of segments rewritten (in a dry run, to be rewritten).
    pub segments: u64,
    /// Number of bytes freed (in a dry run, to be freed).
    pub bytes_freed: u64,
    /// The full report.
    pub report: CompactionReport,
}

/// Runs the compactions of one log one after another and keeps the liveness index in a separate directory.
#[derive(Debug)]
pub struct Compactor {
    reader: LogReader,
    base: PathBuf,
    index: Option<FjallLiveness>,
    segment_bytes: u64,
}

impl Compactor {
    /// Creates a compactor with the index in directory `base`. The index is opened at the first run.
    #[must_use]
    pub fn new(reader: LogReader, base: &Path) -> Compactor {
        Compactor {
            reader,
            base: base.to_owned(),
            index: None,
            segment_bytes: CompactionOptions::default().segment_bytes,
        }
    }

    /// Sets the length up to which neighbouring segments are merged.
    #[must_use]
    pub fn segment_bytes(mut self, segment_bytes: u64) -> Compactor {
        self.segment_bytes = segment_bytes;
        self
    }

    /// Compacts up to `target` at most. Segments with a garbage share below `garbage_percent_min` are left unchanged.
    /// `progress` receives (sequences handled, total sequences) after each slice of work.
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
            let step = compaction.step().inspect_err(|_| {
                // It may have been given up for the output, which is gone now.
                self.reader.shared().restore_reserve();
            });
            match step? {
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
