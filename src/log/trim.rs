//! Removes whole segments from the start of a log as their records age. Remaining segments are not rewritten, so the
//! chain can be verified from the first of them: its header contains the chain value before it.
//!
//! The horizon is raised durably in the head file before any file is removed. A crash in between leaves files below the horizon,
//! which are removed when the log is opened. As in every log, a first segment missing above the horizon is damage.

use std::path::Path;
use std::sync::Arc;

use super::directory::SegmentName;
use super::error::IoFailure;
use super::format::{FLAG_TRIMMED, HeadSlot};
use super::segment::read_header;
use super::{Log, LogOptions};
use gravwell_env::fs::{File, Fs};
use gravwell_model::codec::frame::CHAIN_START;
use gravwell_model::{Chain, Seq};

/// Start of the first segment above the horizon.
pub(super) struct Start {
    /// Sequence before its first record.
    pub seq: Seq,
    /// Chain value at `seq`, from the segment header.
    pub chain: Chain,
    /// Older segments left by an interrupted [`Log::trim`].
    pub leftover: Vec<SegmentName>,
}

/// Returns the segment flags for a log with these options.
pub(super) fn flags(options: &LogOptions) -> u16 {
    if options.is_trimmed { FLAG_TRIMMED } else { 0 }
}

/// Returns the start of a log the oldest segments of which may have been removed, and removes the segments below its horizon from
/// the sorted list `names`. Returns `None` for a log that is not trimmed and if the first segment cannot be read.
pub(super) fn start(
    fs: &dyn Fs,
    dir: &Path,
    head: &HeadSlot,
    names: &mut Vec<SegmentName>,
) -> Result<Option<Start>, IoFailure> {
    let is_old = |name: &SegmentName| name.last.is_some_and(|last| last <= head.horizon);
    let Some(first) = names.iter().find(|name| !is_old(name)) else { return Ok(None) };
    let file = fs.open(&dir.join(first.to_string())).map_err(IoFailure::at("open", first))?;
    let Ok(header) = read_header(&*file).map_err(IoFailure::at("read", first))? else { return Ok(None) };
    if header.flags & FLAG_TRIMMED == 0 {
        return Ok(None);
    }
    let leftover = names.iter().filter(|name| is_old(name)).copied().collect();
    names.retain(|name| !is_old(name));
    let chain = if head.horizon == Seq::ZERO { CHAIN_START } else { header.chain_before };
    Ok(Some(Start { seq: head.horizon, chain, leftover }))
}

/// Returns the first sequence of a log and the chain value before it, from the first file that is not below the horizon.
pub(super) fn begin(file: &dyn File, head: Option<&HeadSlot>) -> (Seq, Chain) {
    let horizon = head.map_or(Seq::ZERO, |head| head.horizon);
    match read_header(file) {
        Ok(Ok(header)) if header.flags & FLAG_TRIMMED != 0 && horizon > Seq::ZERO => {
            (horizon.next(), header.chain_before)
        }
        _ => (Seq(1), CHAIN_START),
    }
}

impl Log {
    /// Removes the sealed segments that end at or before `to` and returns how many were removed. Readers inside one of
    /// them can finish. Removes nothing from a log without [`LogOptions::is_trimmed`].
    ///
    /// # Errors
    /// If the head file cannot be written; then nothing is removed. If a file cannot be removed; it is removed when
    /// the log is opened next.
    pub fn trim(&mut self, to: Seq) -> Result<usize, IoFailure> {
        let (old, last) = {
            let state = self.shared.read();
            let is_old = |footer: super::format::Footer| footer.last <= to;
            let old: Vec<_> =
                state.segments.iter().take_while(|segment| segment.footer.is_some_and(is_old)).cloned().collect();
            let last = old.last().and_then(|segment| segment.footer).map(|footer| footer.last);
            (old, last)
        };
        let Some(last) = last.filter(|_| self.options.is_trimmed) else { return Ok(0) };
        let write = || IoFailure::at("write", super::directory::HEAD);
        self.shared.raise_horizon(last).map_err(write())?;
        // Written to both slots: with a slot that has the former horizon, the removed files would count as missing.
        self.shared.set_lineage(self.generation(), self.lineage()).map_err(write())?;
        {
            let mut state = self.shared.write();
            state.segments = Arc::new(state.segments.iter().skip(old.len()).cloned().collect());
        }
        for segment in &old {
            self.shared
                .fs
                .remove(&self.shared.dir.join(&segment.name))
                .map_err(IoFailure::at("remove", &segment.name))?;
        }
        self.shared.fs.sync_dir(&self.shared.dir).map_err(IoFailure::at("sync", self.shared.dir.display()))?;
        Ok(old.len())
    }
}
