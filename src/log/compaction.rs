//! Compaction: drops what is no longer needed at the horizon, in slices, beside the writer and its readers.
//!
//! Phases, each in slices: *advance* the [`LivenessIndex`] to the new horizon; *measure* every segment below it;
//! *plan* (pure); *rewrite* group by group in rising order, each verified from the disk before it is swapped in. See
//! `log-format.md`, "Compaction", for why every crash in between leaves a good log. Faults it survives: a crash at any
//! point, a full disk, a wrong index.

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::cursor::FrameCursor;
use super::directory::{SegmentName, UNFINISHED};
use super::error::{Damage, IoFailure, ReadError};
use super::format::{FLAG_COMPACTED, FOOTER_BYTES, FileHeader, Footer, HEADER_BYTES};
use super::liveness::{BaseChanges, FjallLiveness, LivenessIndex, row_digest};
use super::reader::{Entries, LogReader, SegmentInfo};
use super::segment::{Scan, Segment, SparseIndex, check_footer, scan_frames};
use crate::codec::error::EncodeError;
use crate::codec::frame::{check_chain, flag};
use crate::codec::payload::{decode_entry, encode_entry};
use crate::env::fs::{File, is_full};
use crate::model::{Chain, Collection, Digest, Entry, EntryBody, Key, Op, Seq, Txn};

/// Entries handled in one step: some milliseconds of work.
const SLICE_ENTRIES: usize = 2048;
/// Output is written in pieces of about this size.
const WRITE_BYTES: usize = 1 << 20;

/// How to compact.
#[derive(Clone, Debug, PartialEq)]
pub struct CompactionOptions {
    /// Segments with a smaller share of garbage (0 to 1) are left alone.
    pub garbage_ratio: f64,
    /// Length up to which neighbours are merged.
    pub segment_bytes: u64,
    /// Only tell what would be done.
    pub dry_run: bool,
}

impl Default for CompactionOptions {
    fn default() -> Self {
        CompactionOptions { garbage_ratio: 0.3, segment_bytes: 64 << 20, dry_run: false }
    }
}

/// Why a compaction ended early. The log is whole, and a later compaction goes on.
#[derive(Debug, thiserror::Error)]
pub enum CompactionError {
    /// Another one runs.
    #[error("a compaction is running already")]
    Busy,
    /// No room for the new segment.
    #[error("compaction needs {needed} bytes of free space for its next segment: free some and try again")]
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
    #[error("the index of compaction failed: {0}")]
    Index(io::Error),
    /// The index does not describe the log even after it was rebuilt.
    #[error("compaction found {found} live objects in the log where its index has {expected}; nothing was changed")]
    IndexWrong {
        /// Objects in the index.
        expected: u64,
        /// Objects found.
        found: u64,
    },
    /// What was written does not read back as what was kept; the old segments stay.
    #[error("the compacted segment {file} does not read back as written; the old segments stay in use")]
    Mismatch {
        /// Name of the new segment.
        file: String,
    },
    /// A record does not fit a frame.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// What a compaction did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompactionReport {
    /// The horizon afterwards.
    pub horizon: Seq,
    /// Whether nothing was written.
    pub dry_run: bool,
    /// Segments replaced.
    pub segments_before: usize,
    /// Segments in their place.
    pub segments_after: usize,
    /// Bytes of the segments replaced.
    pub bytes_before: u64,
    /// Bytes in their place; an estimate in a dry run.
    pub bytes_after: u64,
    /// Segments left alone.
    pub segments_skipped: usize,
    /// Records kept in rewritten segments.
    pub records_kept: u64,
    /// Records dropped.
    pub records_dropped: u64,
}

impl CompactionReport {
    /// Bytes given back to the disk.
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
    /// Nothing is left to do.
    Done(CompactionReport),
}

/// What measuring found of one segment.
#[derive(Clone, Debug, Default)]
pub struct Measure {
    /// Bytes of all frames.
    pub frames_bytes: u64,
    /// Estimate of the bytes that stay.
    pub live_bytes: u64,
    /// Records in it.
    pub records: u64,
    /// Records that stay, if only in part.
    pub live_records: u64,
    /// It holds a rejection that its origin has settled since: replaying it would bring that back.
    pub must_rewrite: bool,
    /// Objects that are gone but of which it still holds a put.
    pub(super) ghosts: HashSet<(Collection, Key)>,
}

impl Measure {
    fn garbage_bytes(&self) -> u64 {
        self.frames_bytes.saturating_sub(self.live_bytes)
    }

    fn wants_rewrite(&self, garbage_ratio: f64) -> bool {
        let garbage = self.garbage_bytes();
        self.must_rewrite || (garbage > 0 && garbage as f64 >= garbage_ratio * self.frames_bytes as f64)
    }
}

/// Runs of neighbouring segments (by index) that are each rewritten as one. Segments outside all runs stay.
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

/// The highest end of a sealed segment that is not above `target`: the horizon that compaction can reach.
#[must_use]
pub fn reachable_horizon(segments: &[SegmentInfo], target: Seq) -> Seq {
    let ends = segments.iter().filter(|segment| segment.sealed && segment.last <= target);
    ends.map(|segment| segment.last).max().unwrap_or_default()
}

enum Phase {
    Advance(Box<Entries>),
    Measure { walk: Option<Walk>, live: (u64, Digest) },
    Rewrite { group: usize, output: Option<Box<Output>> },
    Done,
}

/// Position within the list of segments.
struct Walk {
    segment: usize,
    cursor: FrameCursor,
    chain: Chain,
}

/// A new segment that is being written.
struct Output {
    name: String,
    file: Arc<dyn File>,
    header: FileHeader,
    buffer: Vec<u8>,
    written: u64,
    footer: Footer,
    deletes: u64,
    walk: Option<Walk>,
}

/// One compaction. Call [`Compaction::step`] until it says done; dropping it in between is like a crash: harmless.
pub struct Compaction<'a> {
    reader: LogReader,
    index: &'a mut dyn LivenessIndex,
    options: CompactionOptions,
    horizon: Seq,
    segments: Vec<Arc<Segment>>,
    measures: Vec<Measure>,
    groups: Vec<Range<usize>>,
    pub(super) ghosts: HashSet<(Collection, Key)>,
    rebuilt: bool,
    phase: Phase,
    report: CompactionReport,
}

impl std::fmt::Debug for Compaction<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compaction").field("horizon", &self.horizon).finish_non_exhaustive()
    }
}

impl Drop for Compaction<'_> {
    fn drop(&mut self) {
        if let Phase::Rewrite { output: Some(output), .. } = &self.phase {
            // If this fails, opening the log removes it.
            let _ = self.reader.shared().fs.remove(&self.reader.shared().dir.join(&output.name));
        }
        self.reader.shared().compacting.store(false, Ordering::Release);
    }
}

/// What is left of an entry.
struct Kept {
    entry: Entry,
    partial: bool,
    digest: Digest,
    deletes: u64,
}

impl<'a> Compaction<'a> {
    /// Prepares a compaction up to `target` at most: the lowest of the members' floor and the history window. It
    /// reaches the last end of a sealed segment below; the writer can [`seal`](super::Log::seal) first.
    ///
    /// # Errors
    /// When one runs already.
    pub fn new(
        reader: LogReader,
        index: &'a mut dyn LivenessIndex,
        target: Seq,
        options: CompactionOptions,
    ) -> Result<Compaction<'a>, CompactionError> {
        if reader.shared().compacting.swap(true, Ordering::AcqRel) {
            return Err(CompactionError::Busy);
        }
        let horizon = reachable_horizon(&reader.segments(), target).max(reader.horizon());
        let view = reader.view();
        let below = |segment: &&Arc<Segment>| segment.footer.is_some_and(|footer| footer.last <= horizon);
        let segments = view.segments.iter().filter(below).cloned().collect();
        let report = CompactionReport { horizon, dry_run: options.dry_run, ..CompactionReport::default() };
        let mut compaction = Compaction {
            reader,
            index,
            options,
            horizon,
            segments,
            measures: Vec::new(),
            groups: Vec::new(),
            ghosts: HashSet::new(),
            rebuilt: false,
            phase: Phase::Done,
            report,
        };
        compaction.phase = compaction.first_phase()?;
        Ok(compaction)
    }

    /// Where the index has to be fed from to describe the log at the new horizon.
    fn first_phase(&mut self) -> Result<Phase, CompactionError> {
        let position = self.index.summary().map_err(CompactionError::Index)?.position;
        if position >= self.reader.horizon() && position <= self.horizon && position > Seq::ZERO {
            return Ok(Phase::Advance(Box::new(self.reader.entries(position, self.horizon))));
        }
        // Below the horizon entries are missing in part; beyond the target liveness at the target is not known.
        self.index.reset().map_err(CompactionError::Index)?;
        Ok(Phase::Advance(Box::new(self.reader.history(self.horizon))))
    }

    /// Does one slice of work.
    ///
    /// # Errors
    /// When it cannot go on. What was swapped in before stays; the log is whole.
    pub fn step(&mut self) -> Result<CompactionProgress, CompactionError> {
        let (name, seq) = match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::Advance(entries) => ("advance", self.advance(entries)?),
            Phase::Measure { walk, live } => ("measure", self.measure(walk, live)?),
            Phase::Rewrite { group, output } => ("rewrite", self.rewrite(group, output)?),
            Phase::Done => {
                self.reader.shared().restore_reserve();
                return Ok(CompactionProgress::Done(self.report.clone()));
            }
        };
        Ok(CompactionProgress::Working { phase: name, seq })
    }

    /// Steps until it is done.
    ///
    /// # Errors
    /// See [`Compaction::step`].
    pub fn run(mut self) -> Result<CompactionReport, CompactionError> {
        loop {
            if let CompactionProgress::Done(report) = self.step()? {
                return Ok(report);
            }
        }
    }

    fn advance(&mut self, mut entries: Box<Entries>) -> Result<Seq, CompactionError> {
        let mut changes = BaseChanges::begin(self.index).map_err(CompactionError::Index)?;
        let mut ended = true;
        for entry in entries.by_ref().take(SLICE_ENTRIES) {
            changes.take(self.index, &entry?).map_err(CompactionError::Index)?;
            ended = false;
        }
        if ended {
            // The last entries before the horizon may have been compacted away.
            changes.summary.position = self.horizon;
        }
        let position = changes.summary.position;
        self.index.commit(changes).map_err(CompactionError::Index)?;
        self.phase = if ended {
            self.measures.clear();
            Phase::Measure { walk: None, live: (0, Digest::ZERO) }
        } else {
            Phase::Advance(entries)
        };
        Ok(position)
    }

    fn walk(&self, segment: usize) -> Option<Walk> {
        let found = self.segments.get(segment)?;
        let end = found.frames_end().unwrap_or(0);
        let cursor = FrameCursor::new(Arc::clone(&found.file), HEADER_BYTES as u64, end);
        Some(Walk { segment, cursor, chain: found.header.chain_before })
    }

    /// The next entry of a segment with its flags and length; `None` at its end.
    fn next_entry(&self, walk: &mut Walk) -> Result<Option<(Entry, u16, u64)>, CompactionError> {
        let segment = &self.segments[walk.segment];
        let at = walk.cursor.offset();
        let damaged = |error| ReadError::Damaged(Damage::decode(&segment.name, at, &error));
        let next = walk.cursor.next().map_err(IoFailure::at("read", &segment.name))?;
        let Some(raw) = next.map_err(damaged)? else { return Ok(None) };
        walk.chain = check_chain(&raw.bytes, &walk.chain).map_err(damaged)?;
        let entry = decode_entry(&raw.header, &raw.payload()).map_err(damaged)?;
        Ok(Some((entry, raw.header.flags, raw.bytes.len() as u64)))
    }

    fn measure(&mut self, walk: Option<Walk>, mut live: (u64, Digest)) -> Result<Seq, CompactionError> {
        let Some(mut walk) = walk.or_else(|| self.walk(self.measures.len())) else {
            return self.measured(live);
        };
        let fresh = self.measures.len() == walk.segment;
        let mut measure = if fresh { Measure::default() } else { self.measures.pop().unwrap_or_default() };
        let mut seq = self.segments[walk.segment].first();
        for _ in 0..SLICE_ENTRIES {
            let Some((entry, _, bytes)) = self.next_entry(&mut walk)? else {
                self.measures.push(measure);
                self.phase = Phase::Measure { walk: None, live };
                return Ok(seq);
            };
            seq = entry.seq;
            self.measure_entry(&entry, bytes, &mut measure, &mut live).map_err(CompactionError::Index)?;
        }
        self.measures.push(measure);
        self.phase = Phase::Measure { walk: Some(walk), live };
        Ok(seq)
    }

    fn measure_entry(
        &self,
        entry: &Entry,
        bytes: u64,
        measure: &mut Measure,
        live: &mut (u64, Digest),
    ) -> io::Result<()> {
        measure.frames_bytes += bytes;
        measure.records += 1;
        let mut dead = 0;
        let mut live_ops = 0;
        if let EntryBody::Commit(txn) = &entry.body {
            let last = last_ops(txn);
            for (index, op) in txn.ops.iter().enumerate() {
                let version = self.index.version(op.collection(), op.key())?;
                if is_live_put(op, version, entry.seq) && last.is_last(index, op) {
                    live.0 += 1;
                    live.1 = live.1.plus(row_digest(op.collection(), op.key(), entry.seq));
                    live_ops += 1;
                    continue;
                }
                if version.is_none() && op.value().is_some() {
                    measure.ghosts.insert((op.collection().clone(), op.key().clone()));
                }
                dead += op_bytes(op);
            }
        }
        if live_ops > 0 || self.keeps_origin(entry)? {
            measure.live_records += 1;
            measure.live_bytes += bytes.saturating_sub(dead);
        } else if matches!(entry.body, EntryBody::Reject { .. }) {
            measure.must_rewrite = true;
        }
        Ok(())
    }

    /// Checks the index against what was found, then decides what to rewrite.
    fn measured(&mut self, live: (u64, Digest)) -> Result<Seq, CompactionError> {
        let summary = self.index.summary().map_err(CompactionError::Index)?;
        if (summary.objects, summary.digest) != live {
            if self.rebuilt {
                return Err(CompactionError::IndexWrong { expected: summary.objects, found: live.0 });
            }
            self.rebuilt = true;
            self.index.reset().map_err(CompactionError::Index)?;
            self.phase = Phase::Advance(Box::new(self.reader.history(self.horizon)));
            return Ok(Seq::ZERO);
        }
        self.groups = plan_groups(&self.measures, &self.options);
        let grouped: HashSet<usize> = self.groups.iter().cloned().flatten().collect();
        for (index, measure) in self.measures.iter_mut().enumerate() {
            let ghosts = std::mem::take(&mut measure.ghosts);
            if grouped.contains(&index) {
                self.report.segments_before += 1;
                self.report.bytes_before += self.segments[index].file_bytes().unwrap_or(0);
                self.report.bytes_after += if self.options.dry_run { measure.live_bytes } else { 0 };
                self.report.records_kept += measure.live_records;
                self.report.records_dropped += measure.records - measure.live_records;
            } else {
                self.report.segments_skipped += 1;
                self.segments[index].garbage.store(measure.garbage_bytes(), Ordering::Relaxed);
                self.ghosts.extend(ghosts);
            }
        }
        if self.options.dry_run {
            self.report.segments_after = self.groups.len();
            return Ok(self.horizon);
        }
        // Before the first file changes: from here on nobody may start a tail below, whatever happens.
        let raised = self.reader.shared().raise_horizon(self.horizon);
        raised.map_err(IoFailure::at("write", super::directory::HEAD))?;
        (self.report.records_kept, self.report.records_dropped) = (0, 0);
        self.phase = Phase::Rewrite { group: 0, output: None };
        Ok(self.horizon)
    }

    /// Whether an entry is needed for the row of its origin, or because its kind is unknown.
    fn keeps_origin(&self, entry: &Entry) -> io::Result<bool> {
        let Some(id) = entry.body.id() else { return Ok(true) };
        let Some(row) = self.index.origin(id.origin)? else { return Ok(true) };
        let rejection = matches!(entry.body, EntryBody::Reject { .. })
            && row.rejection(id.counter).is_some_and(|(seq, _)| seq == entry.seq);
        Ok(rejection || row.last_seq == entry.seq)
    }

    fn keep(&self, entry: Entry) -> io::Result<Option<Kept>> {
        let keeps_origin = self.keeps_origin(&entry)?;
        let mut kept = Kept { entry, partial: false, digest: Digest::ZERO, deletes: 0 };
        let EntryBody::Commit(txn) = &mut kept.entry.body else {
            return Ok(keeps_origin.then_some(kept));
        };
        let mut ops = Vec::new();
        let last = last_ops(txn);
        for (index, op) in txn.ops.iter().enumerate().filter(|(index, op)| last.is_last(*index, op)) {
            let _ = index;
            let version = self.index.version(op.collection(), op.key())?;
            if is_live_put(op, version, kept.entry.seq) {
                let value = op.value().map_or(&[][..], |value| value);
                kept.digest = kept.digest.plus(Digest::of_object(op.collection(), op.key(), kept.entry.seq, value));
            } else if op.value().is_none() && version.is_none() && self.is_ghost(op) {
                kept.deletes += 1;
            } else {
                continue;
            }
            ops.push(op.clone());
        }
        kept.partial = ops.len() < txn.ops.len() || !txn.conditions.is_empty();
        drop(last);
        txn.conditions.clear();
        let needed = keeps_origin || !ops.is_empty();
        txn.ops = ops;
        Ok(needed.then_some(kept))
    }

    /// Whether a segment that stays still holds a put of an object that is gone: its delete must stay, too.
    fn is_ghost(&self, op: &Op) -> bool {
        !self.ghosts.is_empty() && self.ghosts.contains(&(op.collection().clone(), op.key().clone()))
    }

    fn rewrite(&mut self, group: usize, output: Option<Box<Output>>) -> Result<Seq, CompactionError> {
        let Some(range) = self.groups.get(group).cloned() else { return Ok(self.horizon) };
        let mut output = match output {
            Some(output) => output,
            None => Box::new(self.begin_output(&range)?),
        };
        let outcome = self.fill_output(&range, &mut output);
        let (seq, complete) = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                let shared = self.reader.shared();
                // If this fails, opening the log removes it.
                let _ = shared.fs.remove(&shared.dir.join(&output.name));
                return Err(error);
            }
        };
        self.phase = if complete {
            let segment = self.finish_output(*output)?;
            self.swap(&range, segment)?;
            Phase::Rewrite { group: group + 1, output: None }
        } else {
            Phase::Rewrite { group, output: Some(output) }
        };
        Ok(seq)
    }

    fn begin_output(&mut self, range: &Range<usize>) -> Result<Output, CompactionError> {
        let shared = self.reader.shared();
        let (oldest, newest) = (&self.segments[range.start], &self.segments[range.end - 1]);
        let last = newest.footer.map_or(newest.first(), |footer| footer.last);
        let chain_after = newest.footer.map_or(newest.header.chain_before, |footer| footer.chain_after);
        let live: u64 = self.measures[range.clone()].iter().map(|measure| measure.live_bytes).sum();
        let needed = live + (HEADER_BYTES + FOOTER_BYTES) as u64;
        if shared.fs.free_space(&shared.dir).unwrap_or(u64::MAX) < needed + WRITE_BYTES as u64 {
            shared.drop_reserve();
        }
        let name = SegmentName { first: oldest.first(), last: Some(last) }.to_string() + UNFINISHED;
        let file =
            shared.fs.create(&shared.dir.join(&name)).map_err(|error| full_or(error, "create", &name, needed))?;
        let header = FileHeader {
            flags: FLAG_COMPACTED,
            covered_last: last,
            generation: newest.header.generation,
            ..oldest.header
        };
        Ok(Output {
            name,
            file,
            header,
            buffer: header.encode().to_vec(),
            written: 0,
            footer: Footer { last, frame_chain: header.chain_before, chain_after, ..Footer::default() },
            deletes: 0,
            walk: self.walk(range.start),
        })
    }

    /// Adds one slice to the output; says the last sequence seen and whether the group is complete.
    fn fill_output(&mut self, range: &Range<usize>, output: &mut Output) -> Result<(Seq, bool), CompactionError> {
        let mut seq = Seq::ZERO;
        for _ in 0..SLICE_ENTRIES {
            let Some(walk) = &mut output.walk else { return Ok((output.footer.last, true)) };
            let Some((entry, flags, _)) = self.next_entry(walk)? else {
                let next = walk.segment + 1;
                output.walk = if next < range.end { self.walk(next) } else { None };
                continue;
            };
            seq = entry.seq;
            match self.keep(entry).map_err(CompactionError::Index)? {
                Some(kept) => {
                    self.report.records_kept += 1;
                    output.add(&kept, flags)?;
                    output.flush(WRITE_BYTES)?;
                }
                None => self.report.records_dropped += 1,
            }
        }
        Ok((seq, false))
    }

    /// Writes the footer, syncs, reads everything back from the disk and compares.
    fn finish_output(&mut self, mut output: Output) -> Result<Segment, CompactionError> {
        let frames_end = output.written + output.buffer.len() as u64;
        output.footer.frames_bytes = frames_end - HEADER_BYTES as u64;
        let footer = output.footer.encode();
        output.buffer.extend_from_slice(&footer);
        output.flush(0)?;
        output.file.sync_data().map_err(IoFailure::at("sync", &output.name))?;
        let (mut digest, mut deletes, mut bad) = (Digest::ZERO, 0, false);
        let scan =
            scan_frames(&output.file, true, true, frames_end, Scan::new(&output.header), |raw| {
                match decode_entry(&raw.header, &raw.payload()) {
                    Ok(Entry { seq, body: EntryBody::Commit(txn), .. }) => {
                        for op in &txn.ops {
                            match op.value() {
                                Some(v) => digest = digest.plus(Digest::of_object(op.collection(), op.key(), seq, v)),
                                None => deletes += 1,
                            }
                        }
                    }
                    Ok(_) => {}
                    Err(_) => bad = true,
                }
            });
        let scan = scan.map_err(IoFailure::at("read", &output.name))?;
        let name = output.name.trim_end_matches(UNFINISHED).to_owned();
        let wrong_footer = check_footer(&name, &output.header, &output.footer, &scan).is_some();
        let wrong = bad || scan.stopped.is_some() || wrong_footer;
        if wrong || (digest, deletes) != (output.footer.digest, output.deletes) {
            return Err(CompactionError::Mismatch { file: name });
        }
        let index: SparseIndex = scan.index;
        Ok(Segment {
            name,
            file: output.file,
            header: output.header,
            footer: Some(output.footer),
            index: index.into(),
            garbage: 0.into(),
        })
    }

    /// Puts the new segment in the place of the old ones: on the disk, then for readers, then the old files go.
    fn swap(&mut self, range: &Range<usize>, segment: Segment) -> Result<(), CompactionError> {
        let shared = self.reader.shared();
        let dir = &shared.dir;
        let unfinished = dir.join(segment.name.clone() + UNFINISHED);
        let (name, bytes) = (segment.name.clone(), segment.file_bytes().unwrap_or(0));
        shared.fs.rename(&unfinished, &dir.join(&name)).map_err(IoFailure::at("rename", &name))?;
        shared.fs.sync_dir(dir).map_err(IoFailure::at("sync", dir.display()))?;
        let (first, last) = (segment.first(), segment.header.covered_last);
        {
            let mut state = shared.write();
            let mut segments = Vec::clone(&state.segments);
            let start = segments.partition_point(|old| old.first() < first);
            let end = segments.partition_point(|old| old.first() <= last);
            segments.splice(start..end, [Arc::new(segment)]);
            state.segments = Arc::new(segments);
        }
        for old in &self.segments[range.clone()] {
            if old.name != name {
                shared.fs.remove(&dir.join(&old.name)).map_err(IoFailure::at("remove", &old.name))?;
            }
        }
        self.report.segments_after += 1;
        self.report.bytes_after += bytes;
        Ok(())
    }
}

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

fn full_or(error: io::Error, action: &'static str, name: &str, needed: u64) -> CompactionError {
    if is_full(&error) { CompactionError::Full { needed } } else { IoFailure::at(action, name)(error).into() }
}

impl Output {
    fn add(&mut self, kept: &Kept, flags: u16) -> Result<(), CompactionError> {
        let flags = if kept.partial { flags | flag::PARTIAL } else { flags };
        let chain = encode_entry(&kept.entry, &self.footer.frame_chain, 0, flags, &mut self.buffer)?;
        let footer = &mut self.footer;
        footer.frame_chain = chain;
        footer.count += 1;
        footer.digest = footer.digest.plus(kept.digest);
        self.deletes += kept.deletes;
        if kept.entry.time_ms > 0 {
            footer.time_last = kept.entry.time_ms;
            if footer.time_first == 0 {
                footer.time_first = kept.entry.time_ms;
            }
        }
        Ok(())
    }

    /// Writes the buffer once it has `bytes_min`.
    fn flush(&mut self, bytes_min: usize) -> Result<(), CompactionError> {
        if self.buffer.len() >= bytes_min.max(1) {
            let needed = self.buffer.len() as u64;
            let written = self.file.write_at(&self.buffer, self.written);
            written.map_err(|error| full_or(error, "write", &self.name, needed))?;
            self.written += needed;
            self.buffer.clear();
        }
        Ok(())
    }
}

fn is_live_put(op: &Op, version: Option<Seq>, seq: Seq) -> bool {
    op.value().is_some() && version == Some(seq)
}

/// Rough size of an operation within a payload.
fn op_bytes(op: &Op) -> u64 {
    (op.collection().as_str().len() + op.key().len() + op.value().map_or(0, bytes::Bytes::len) + 4) as u64
}

/// Index of the last operation on each object of a transaction: only that one can matter.
struct LastOps<'a>(Option<HashMap<(&'a Collection, &'a Key), usize>>);

impl LastOps<'_> {
    fn is_last(&self, index: usize, op: &Op) -> bool {
        self.0.as_ref().is_none_or(|map| map.get(&(op.collection(), op.key())) == Some(&index))
    }
}

fn last_ops(txn: &Txn) -> LastOps<'_> {
    let map = || txn.ops.iter().enumerate().map(|(index, op)| ((op.collection(), op.key()), index)).collect();
    LastOps((txn.ops.len() > 1).then(map))
}
