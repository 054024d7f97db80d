//! Removing the oldest segments of a log whole, as its records get old. Nothing of what stays is rewritten, so its chain can be
//! checked from the first segment that is left: the header of that segment has the chain before it.
//!
//! The horizon is raised durably in the head file before any file goes. A crash in between leaves files below the horizon, which
//! opening removes; a first segment that is missing above the horizon is damage, as in every log.

use std::path::Path;
use std::sync::Arc;

use super::directory::SegmentName;
use super::error::IoFailure;
use super::format::{FLAG_TRIMMED, HeadSlot};
use super::segment::read_header;
use super::{Log, LogOptions};
use crate::codec::frame::CHAIN_START;
use crate::env::fs::{File, Fs};
use crate::model::{Chain, Seq};

/// Where the first segment that counts begins.
pub(super) struct Start {
    /// Sequence before its first record.
    pub seq: Seq,
    /// Chain there, as its header has it.
    pub chain: Chain,
    /// Files of older segments, which an interrupted [`Log::trim`] left.
    pub leftover: Vec<SegmentName>,
}

/// Flags of segments that a log with these options makes.
pub(super) fn flags(options: &LogOptions) -> u16 {
    if options.is_trimmed { FLAG_TRIMMED } else { 0 }
}

/// Where a log begins whose oldest segments may have been removed; takes what is below its horizon out of `names`, which are
/// sorted. `None` for any other log, and where the first segment cannot be read.
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

/// First sequence of a log and the chain before it, from its first file that counts.
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
    /// Removes the closed segments that end at or before `to`. Readers that are in one of them finish. Returns the number of
    /// segments that were removed. Of a log without [`LogOptions::is_trimmed`] nothing is removed.
    ///
    /// # Errors
    /// When the head file cannot be written: nothing is removed then. When a file cannot be removed: opening the log removes it.
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
        // In both slots: a former horizon says that the removed files have to be there.
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
