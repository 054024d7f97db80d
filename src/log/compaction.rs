//! Compaction: drops records that are no longer needed at the horizon, in slices, while the writer and its readers are active.
//!
//! The phases are: *advance* the [`LivenessIndex`] to the new horizon; *measure* every segment below it; *plan*
//! (pure); *rewrite* group by group in ascending order, each verified from the disk before it is swapped in.
//! `log-format.md`, "Compaction", explains why a crash at any point leaves an intact log. Compaction survives a crash
//! at any point, a full disk and a wrong index.

mod compactor;
mod output;
mod plan;

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use self::output::{Output, RetainedEntry, full_or};
use super::cursor::FrameCursor;
use super::directory::{SegmentName, UNFINISHED};
use super::error::{Damage, IoFailure, ReadError};
use super::format::{FLAG_COMPACTED, FOOTER_BYTES, FileHeader, Footer, HEADER_BYTES};
use super::liveness::{BaseChanges, BaseSummary, LivenessIndex, row_digest};
use super::reader::{Entries, LogReader};
use super::segment::Segment;
use gravwell_model::codec::frame::check_chain;
use gravwell_model::codec::payload::decode_entry;
use gravwell_model::deletions::{Changed, Deletions};
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::{Chain, Collection, Digest, Entry, EntryBody, Key, Op, Origin, OriginRow, Seq, Txn};

pub use self::compactor::{Compactor, Outcome};
pub use self::plan::{
    CompactionError, CompactionOptions, CompactionProgress, CompactionReport, Measure, plan_groups, reachable_horizon,
};

/// Entries handled in one step: a few milliseconds of work.
const SLICE_ENTRIES: usize = 2048;
/// Approximate size of a record without its operations.
const RECORD_BYTES: u64 = 110;
/// Approximate size of one write.
const WRITE_BYTES: usize = 1 << 20;

enum Phase {
    Advance(Box<Entries>),
    Measure { walk: Option<Walk>, live: Measured },
    Rewrite { group: usize, output: Option<Box<Output>> },
    Done,
}

/// Sums over the rows that the segments below the horizon result in, to be compared with those of the index.
#[derive(Default)]
struct Measured {
    objects: u64,
    digest: Digest,
    origins: HashMap<Origin, OriginRow>,
}

impl Measured {
    /// Records the outcome of an entry for its origin.
    fn take_origin(&mut self, entry: &Entry) {
        let (id, settled, reason) = match &entry.body {
            EntryBody::Commit(txn) => (txn.id, txn.settled, None),
            EntryBody::Reject { id, settled, reason } => (*id, *settled, Some(reason.clone())),
            EntryBody::Redacted { .. } | EntryBody::Unknown { .. } => return,
        };
        self.origins.entry(id.origin).or_default().record(entry.seq, id.counter, settled, reason);
    }

    fn is_of(&self, summary: &BaseSummary) -> bool {
        let sum = |sum: Digest, (origin, row): (&Origin, &OriginRow)| sum.plus(Digest::of_origin(*origin, row));
        (summary.objects, summary.digest) == (self.objects, self.digest)
            && summary.origins == self.origins.iter().fold(Digest::ZERO, sum)
    }
}

struct Walk {
    segment: usize,
    cursor: FrameCursor,
    chain: Chain,
}

/// One compaction. Call [`Compaction::step`] until it returns `Done`. Dropping it earlier is as harmless as a crash.
pub struct Compaction<I: LivenessIndex> {
    reader: LogReader,
    index: I,
    options: CompactionOptions,
    horizon: Seq,
    segments: Vec<Arc<Segment>>,
    measures: Vec<Measure>,
    groups: Vec<Range<usize>>,
    pub(super) ghosts: HashSet<(Collection, Key)>,
    /// Recent deletions as of the new horizon.
    deletions: Deletions,
    rebuilt: bool,
    phase: Phase,
    report: CompactionReport,
}

impl<I: LivenessIndex> std::fmt::Debug for Compaction<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compaction").field("horizon", &self.horizon).finish_non_exhaustive()
    }
}

impl<I: LivenessIndex> Drop for Compaction<I> {
    fn drop(&mut self) {
        if let Phase::Rewrite { output: Some(output), .. } = &self.phase {
            // If this fails, the file is removed when the log is opened.
            let _ = self.reader.shared().fs.remove(&self.reader.shared().dir.join(&output.name));
        }
        self.reader.shared().compacting.store(false, Ordering::Release);
    }
}

impl<I: LivenessIndex> Compaction<I> {
    /// Prepares a compaction up to `target` at most, the lower of the members' floor and the history window. It
    /// reaches the last end of a sealed segment at or below `target`; the writer can [`seal`](super::Log::seal) the
    /// open segment first.
    ///
    /// # Errors
    /// If a compaction is already running.
    pub fn new(
        reader: LogReader,
        index: I,
        target: Seq,
        options: CompactionOptions,
    ) -> Result<Compaction<I>, CompactionError> {
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
            deletions: Deletions::default(),
            rebuilt: false,
            phase: Phase::Done,
            report,
        };
        compaction.phase = compaction.first_phase()?;
        Ok(compaction)
    }

    /// Returns the phase that feeds the index with the entries it lacks to describe the log at the new horizon.
    fn first_phase(&mut self) -> Result<Phase, CompactionError> {
        let BaseSummary { position, chain, .. } = self.index.summary().map_err(CompactionError::Index)?;
        let is_between = position >= self.reader.horizon() && position <= self.horizon && position > Seq::ZERO;
        // After a restore, or when files were put back, the index may have been made from another history of this log.
        let is_of_this_history = || Ok::<_, ReadError>(chain.is_some() && self.reader.chain_at(position)? == chain);
        if is_between && is_of_this_history()? {
            return Ok(Phase::Advance(Box::new(self.reader.entries(position, self.horizon))));
        }
        // Below the horizon some entries are missing; above the target, the index no longer shows liveness at the target.
        self.index.reset().map_err(CompactionError::Index)?;
        Ok(Phase::Advance(Box::new(self.reader.history(self.horizon))))
    }

    /// Does one slice of work.
    ///
    /// # Errors
    /// If compaction cannot continue. Segments that were already swapped in stay in use; the log is intact.
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

    /// Runs all steps until the compaction is complete.
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
        let mut changes = BaseChanges::begin(&self.index).map_err(CompactionError::Index)?;
        let mut ended = true;
        for entry in entries.by_ref().take(SLICE_ENTRIES) {
            changes.take(&self.index, &entry?).map_err(CompactionError::Index)?;
            ended = false;
        }
        if ended {
            // The last entries before the horizon may have been compacted away.
            changes.summary.position = self.horizon;
        }
        let position = changes.summary.position;
        changes.summary.chain = self.reader.chain_at(position)?;
        self.index.commit(changes).map_err(CompactionError::Index)?;
        self.phase = if ended {
            self.measures.clear();
            self.deletions = Deletions::default();
            Phase::Measure { walk: None, live: Measured::default() }
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

    /// Returns the next entry of a segment with its flags and length; `None` at the end of the segment.
    fn next_entry(&self, walk: &mut Walk) -> Result<Option<(Entry, u16, u64)>, CompactionError> {
        let read = self.read_entry(walk);
        Ok(self.reader.damage().checked(read, ReadError::is_damage)?)
    }

    fn read_entry(&self, walk: &mut Walk) -> Result<Option<(Entry, u16, u64)>, ReadError> {
        let segment = &self.segments[walk.segment];
        let at = walk.cursor.offset();
        let damaged = |error| ReadError::Damaged(Damage::decode(&segment.name, at, &error));
        let next = walk.cursor.next().map_err(IoFailure::at("read", &segment.name))?;
        let Some(raw) = next.map_err(damaged)? else { return Ok(None) };
        walk.chain = check_chain(&raw.bytes, &walk.chain).map_err(damaged)?;
        let entry = decode_entry(&raw.header, &raw.payload()).map_err(damaged)?;
        Ok(Some((entry, raw.header.flags, raw.bytes.len() as u64)))
    }

    fn measure(&mut self, walk: Option<Walk>, mut live: Measured) -> Result<Seq, CompactionError> {
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
            self.deletions.take(&entry, &mut Changed::new());
        }
        self.measures.push(measure);
        self.phase = Phase::Measure { walk: Some(walk), live };
        Ok(seq)
    }

    fn measure_entry(&self, entry: &Entry, bytes: u64, measure: &mut Measure, live: &mut Measured) -> io::Result<()> {
        measure.frames_bytes += bytes;
        measure.records += 1;
        live.take_origin(entry);
        let mut dead = 0;
        let mut live_ops = 0;
        if let EntryBody::Commit(txn) = &entry.body {
            let last = last_ops(txn);
            for (index, op) in txn.ops.iter().enumerate() {
                let version = self.index.version(op.collection(), op.key())?;
                if is_live_put(op, version, entry.seq) && last.is_last(index, op) {
                    live.objects += 1;
                    live.digest = live.digest.plus(row_digest(op.collection(), op.key(), entry.seq));
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

    /// Compares the index with the measured segments, then plans the rewrite.
    fn measured(&mut self, live: Measured) -> Result<Seq, CompactionError> {
        let summary = self.index.summary().map_err(CompactionError::Index)?;
        if !live.is_of(&summary) {
            if self.rebuilt {
                return Err(CompactionError::IndexWrong { expected: summary.objects, found: live.objects });
            }
            self.rebuilt = true;
            self.index.reset().map_err(CompactionError::Index)?;
            self.phase = Phase::Advance(Box::new(self.reader.history(self.horizon)));
            return Ok(Seq::ZERO);
        }
        self.measure_deletions();
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
        // Raised before the first file changes: from here on no reader may start a tail below the horizon, whatever happens.
        let raised = self.reader.shared().raise_horizon(self.horizon);
        raised.map_err(IoFailure::at("write", super::directory::HEAD))?;
        (self.report.records_kept, self.report.records_dropped) = (0, 0);
        self.phase = Phase::Rewrite { group: 0, output: None };
        Ok(self.horizon)
    }

    /// Counts the retained deletions as live.
    fn measure_deletions(&mut self) {
        let known_after = self.segments.iter().map(|segment| segment.deletions_after()).max().unwrap_or_default();
        self.deletions.forget_to(known_after, &mut Changed::new());
        let mut record = Seq::ZERO;
        for (seq, (collection, key)) in self.deletions.rows() {
            let index = self.segments.partition_point(|segment| segment.footer.is_some_and(|footer| footer.last < seq));
            let Some(measure) = self.measures.get_mut(index) else { continue };
            let around = if seq == record { 0 } else { RECORD_BYTES };
            let bytes = name_bytes(collection, key) + around;
            measure.live_bytes = (measure.live_bytes + bytes).min(measure.frames_bytes);
            record = seq;
        }
    }

    /// Returns whether an entry is needed for the row of its origin, or must be kept because its kind is unknown.
    fn keeps_origin(&self, entry: &Entry) -> io::Result<bool> {
        let Some(id) = entry.body.id() else { return Ok(true) };
        if fault_injection::is(Bug::CompactDropsOrigins) {
            return Ok(false);
        }
        let Some(row) = self.index.origin(id.origin)? else { return Ok(true) };
        let rejection = matches!(entry.body, EntryBody::Reject { .. })
            && row.rejection(id.counter).is_some_and(|(seq, _)| seq == entry.seq);
        Ok(rejection || row.last_seq == entry.seq)
    }

    fn keep(&self, entry: Entry) -> io::Result<Option<RetainedEntry>> {
        let keeps_origin = self.keeps_origin(&entry)?;
        let mut kept = RetainedEntry { entry, partial: false, digest: Digest::ZERO, deletes: 0 };
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
            } else if op.value().is_none() && version.is_none() && self.keeps_delete(op, kept.entry.seq) {
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

    /// Returns whether the delete of an absent object must be kept: because it is recent, or because a segment that is
    /// not rewritten still holds a put of the object.
    fn keeps_delete(&self, op: &Op, seq: Seq) -> bool {
        let is_recent = self.deletions.get(op.collection(), op.key()) == Some(seq);
        let is_ghost = || self.ghosts.contains(&(op.collection().clone(), op.key().clone()));
        (is_recent && !fault_injection::is(Bug::CompactDropsTombstones)) || (!self.ghosts.is_empty() && is_ghost())
    }

    fn rewrite(&mut self, group: usize, output: Option<Box<Output>>) -> Result<Seq, CompactionError> {
        let Some(range) = self.groups.get(group).cloned() else { return Ok(self.horizon) };
        let mut output = match output {
            Some(output) => output,
            None => Box::new(self.start_output(&range)?),
        };
        let outcome = self.fill_output(&range, &mut output);
        let (seq, complete) = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                self.discard(&output.name);
                return Err(error);
            }
        };
        self.phase = if complete {
            let name = output.name.clone();
            let segment = output.finish().inspect_err(|_| self.discard(&name))?;
            self.swap(&range, segment)?;
            Phase::Rewrite { group: group + 1, output: None }
        } else {
            Phase::Rewrite { group, output: Some(output) }
        };
        Ok(seq)
    }

    /// Removes an unfinished segment file. If this fails, the file is removed when the log is opened.
    fn discard(&self, name: &str) {
        let shared = self.reader.shared();
        let _ = shared.fs.remove(&shared.dir.join(name));
    }

    fn start_output(&mut self, range: &Range<usize>) -> Result<Output, CompactionError> {
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
            footer: Footer {
                last,
                frame_chain: header.chain_before,
                chain_after,
                deletions_after: Some(self.deletions.complete_after()),
                ..Footer::default()
            },
            deletes: 0,
            walk: self.walk(range.start),
        })
    }

    /// Adds one slice to the output. Returns the last sequence read and whether the group is complete.
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

    /// Replaces the old segments by the new one: first on the disk, then for readers; then removes the old files.
    fn swap(&mut self, range: &Range<usize>, segment: Segment) -> Result<(), CompactionError> {
        let shared = self.reader.shared();
        let dir = &shared.dir;
        let unfinished = dir.join(segment.name.clone() + UNFINISHED);
        let (name, bytes) = (segment.name.clone(), segment.file_bytes().unwrap_or(0));
        if let Err(error) = shared.fs.rename(&unfinished, &dir.join(&name)) {
            let _ = shared.fs.remove(&unfinished);
            return Err(IoFailure::at("rename", &name)(error).into());
        }
        let (first, last) = (segment.first(), segment.header.covered_last);
        {
            let mut state = shared.write();
            let mut segments = Vec::clone(&state.segments);
            let start = segments.partition_point(|old| old.first() < first);
            let end = segments.partition_point(|old| old.first() <= last);
            segments.splice(start..end, [Arc::new(segment)]);
            state.segments = Arc::new(segments);
        }
        // The new segment is in use from the rename on, so that later steps build on the contents of the directory.
        // The old files are kept until the rename is durable, at the latest until the next start.
        shared.fs.sync_dir(dir).map_err(IoFailure::at("sync", dir.display()))?;
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

fn is_live_put(op: &Op, version: Option<Seq>, seq: Seq) -> bool {
    if fault_injection::is(Bug::CompactDropsTombstones) {
        // As if no delete below the horizon had ever happened.
        return op.value().is_some() && version.is_none_or(|version| version == seq);
    }
    if fault_injection::is(Bug::CompactKeepsOldest) {
        return op.value().is_some() && version.is_some_and(|version| version >= seq);
    }
    op.value().is_some() && version == Some(seq)
}

/// Approximate size of an operation within a payload.
fn op_bytes(op: &Op) -> u64 {
    name_bytes(op.collection(), op.key()) + op.value().map_or(0, bytes::Bytes::len) as u64
}

fn name_bytes(collection: &Collection, key: &Key) -> u64 {
    (collection.as_str().len() + key.len() + 4) as u64
}

/// Index of the last operation on each object of a transaction; earlier operations on the same object have no effect.
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
