//! Reads a log while it is being written. Readers see durable records only, never write, and hold no lock while they read: each
//! takes a snapshot of the segment list, and the files of the snapshot stay open as long as a reader uses them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::cursor::{FrameCursor, RawFrame};
use super::error::{Damage, IoFailure, ReadError};
use super::segment::Segment;
use super::shared::{LogState, Tip};
use gravwell_env::damage::DamageRecord;
use gravwell_env::fs::read_exact_at;
use gravwell_model::codec::error::DecodeError;
use gravwell_model::codec::frame::{self, decode_frame};
use gravwell_model::codec::payload::decode_entry;
use gravwell_model::{Chain, Entry, EntryBody, Generation, Lineage, LogId, Origin, OriginRow, Seq};

/// A sequence of whole frames as stored on disk.
#[derive(Clone, Debug)]
pub struct FrameBlock {
    /// First sequence.
    pub first: Seq,
    /// Last sequence.
    pub last: Seq,
    /// The frames.
    pub bytes: Bytes,
    /// Chain value before the first frame.
    pub prev_chain: Chain,
    /// Chain value after the last frame.
    pub last_chain: Chain,
}

/// One record as stored on disk.
#[derive(Clone, Debug)]
pub struct RecordAt {
    /// Name of the segment file.
    pub file: String,
    /// Offset of its frame.
    pub offset: u64,
    /// The whole frame.
    pub bytes: Bytes,
}

/// Metadata of one segment, for display and for planning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// File name.
    pub file: String,
    /// First sequence covered.
    pub first: Seq,
    /// Last sequence covered.
    pub last: Seq,
    /// Bytes of the file that are in use.
    pub bytes: u64,
    /// Number of records.
    pub records: u64,
    /// Whether the segment is compacted.
    pub compacted: bool,
    /// Whether the segment is sealed; a sealed segment is never appended to.
    pub sealed: bool,
    /// Commit time of the first record; 0 when unknown.
    pub first_time_ms: u64,
    /// Commit time of the last record; 0 when unknown.
    pub last_time_ms: u64,
    /// Bytes that the last compaction in this process found superseded but did not remove.
    pub garbage_bytes: u64,
}

/// Position of the base and the rows it contains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// The horizon.
    pub seq: Seq,
    /// Chain value at `seq`.
    pub chain: Chain,
    /// Commit time at `seq`, in milliseconds.
    pub time_ms: u64,
    /// The base contains every deletion after this sequence of an object that is absent at the horizon.
    pub deletions_after: Seq,
    /// Rows of all origins at `seq`.
    pub origins: BTreeMap<Origin, OriginRow>,
}

/// Consistent snapshot of a log at one point in time.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub segments: Arc<Vec<Arc<Segment>>>,
    pub tip: Tip,
    pub horizon: Seq,
}

impl View {
    pub(super) fn end_of(&self, segment: &Segment) -> u64 {
        segment.frames_end().unwrap_or(self.tip.end)
    }

    pub(super) fn last_of(&self, segment: &Segment) -> Seq {
        segment.footer.map_or(self.tip.seq, |footer| footer.last)
    }

    /// Returns the index of the segment that covers `seq`.
    fn locate(&self, seq: Seq) -> Option<usize> {
        let index = self.segments.partition_point(|segment| self.last_of(segment) < seq);
        self.segments.get(index).filter(|segment| segment.first() <= seq).map(|_| index)
    }

    /// Returns the index of the first segment above the horizon.
    fn base_end(&self) -> usize {
        self.segments.partition_point(|segment| self.last_of(segment) <= self.horizon && segment.footer.is_some())
    }
}

/// Reads a log. Cheap to clone; shares the segment list with the writer.
#[derive(Clone, Debug)]
pub struct LogReader {
    shared: Arc<LogState>,
}

fn damage(segment: &Segment, offset: u64, error: &DecodeError) -> ReadError {
    ReadError::Damaged(Damage::decode(&segment.name, offset, error))
}

impl LogReader {
    pub(super) fn new(shared: Arc<LogState>) -> LogReader {
        LogReader { shared }
    }

    pub(super) fn view(&self) -> View {
        let state = self.shared.read();
        View { segments: Arc::clone(&state.segments), tip: state.tip, horizon: state.horizon }
    }

    pub(super) fn shared(&self) -> &Arc<LogState> {
        &self.shared
    }

    /// Returns the damage that any reader of this log has found since it was opened.
    #[must_use]
    pub fn damage(&self) -> &DamageRecord {
        &self.shared.damage
    }

    fn checked<T>(&self, result: Result<T, ReadError>) -> Result<T, ReadError> {
        self.shared.damage.checked(result, ReadError::is_damage)
    }

    fn walk_over(
        &self,
        view: View,
        segments: std::ops::Range<usize>,
        from: Seq,
        to: Seq,
        refused: Option<ReadError>,
    ) -> Entries {
        Entries::new(view, segments, from, to, refused, self.shared.damage.clone())
    }

    /// Returns the last durable sequence and its chain value.
    #[must_use]
    pub fn head(&self) -> (Seq, Chain) {
        let state = self.shared.read();
        (state.tip.seq, state.tip.chain)
    }

    /// Returns the lowest sequence from which a tail can start.
    #[must_use]
    pub fn horizon(&self) -> Seq {
        self.shared.read().horizon
    }

    /// Returns the id of the log.
    #[must_use]
    pub fn log_id(&self) -> LogId {
        self.shared.log_id
    }

    /// Returns the generation of the log.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.shared.read().generation
    }

    /// Returns the descent of the generations.
    #[must_use]
    pub fn lineage(&self) -> Lineage {
        self.shared.read().lineage.clone()
    }

    /// Returns the commit time of the last record; 0 if unknown.
    #[must_use]
    pub fn last_time_ms(&self) -> u64 {
        self.shared.read().tip.time_last
    }

    /// Returns the fully checked entries after `from` up to and including `to` or the head, whichever comes first.
    pub fn entries(&self, from: Seq, to: Seq) -> Entries {
        let view = self.view();
        let first = view.segments.partition_point(|segment| view.last_of(segment) <= from);
        let refused = (from < view.horizon).then_some(ReadError::Compacted { from, horizon: view.horizon });
        let count = view.segments.len();
        self.walk_over(view, first..count, from, to, refused)
    }

    /// Returns the remaining entries up to the horizon in order. Applying them and then `entries(horizon, …)` produces
    /// the state; [`LogReader::history`] does both from one snapshot.
    pub fn base_entries(&self) -> Entries {
        let view = self.view();
        let (base, to) = (0..view.base_end(), view.horizon);
        self.walk_over(view, base, Seq::ZERO, to, None)
    }

    /// Returns all entries that make up the state at `to` or at the head, whichever comes first: the base, then all
    /// entries above the horizon.
    pub fn history(&self, to: Seq) -> Entries {
        let view = self.view();
        let refused = (to < view.horizon).then_some(ReadError::Compacted { from: to, horizon: view.horizon });
        let count = view.segments.len();
        self.walk_over(view, 0..count, Seq::ZERO, to, refused)
    }

    /// Returns [`LogReader::entries`] with the chain value at each entry.
    pub fn chained_entries(
        &self,
        from: Seq,
        to: Seq,
    ) -> impl Iterator<Item = Result<(Entry, Chain), ReadError>> + Send + use<> {
        let mut entries = self.entries(from, to);
        std::iter::from_fn(move || {
            let item = entries.next()?;
            Some(item.map(|entry| (entry, entries.chain)))
        })
    }

    /// Returns the position of the base and the rows of all origins at it. Reads the whole base.
    ///
    /// # Errors
    /// If the records of the base are damaged or cannot be read.
    pub fn base(&self) -> Result<Base, ReadError> {
        let entries = self.base_entries();
        let chain = match entries.view.segments[..entries.segments.end].last() {
            Some(segment) => segment.footer.map_or(segment.header.chain_before, |footer| footer.chain_after),
            None => frame::CHAIN_START,
        };
        let times = entries.view.segments[..entries.segments.end].iter().filter_map(|segment| segment.footer);
        let time_ms = times.map(|footer| footer.time_last).max().unwrap_or(0);
        let deletions_after =
            entries.view.segments[..entries.segments.end].iter().map(|segment| segment.deletions_after());
        let deletions_after = deletions_after.max().unwrap_or_default();
        let seq = entries.view.horizon;
        let mut base = Base { seq, chain, time_ms, deletions_after, origins: BTreeMap::new() };
        for entry in entries {
            let entry = entry?;
            let (id, settled, reason) = match entry.body {
                EntryBody::Commit(txn) => (txn.id, txn.settled, None),
                EntryBody::Reject { id, settled, reason } => (id, settled, Some(reason)),
                EntryBody::Redacted { .. } | EntryBody::Unknown { .. } => continue,
            };
            base.origins.entry(id.origin).or_default().record(entry.seq, id.counter, settled, reason);
        }
        Ok(base)
    }

    /// Returns whole frames after `from`: at least one, otherwise at most `bytes_max` bytes; `None` if `from` is the
    /// head. Checksums are verified; the chain has to be verified by the caller that decodes the frames.
    ///
    /// # Errors
    /// If the frames are compacted, past the head, damaged or cannot be read.
    pub fn frames(&self, from: Seq, bytes_max: usize) -> Result<Option<FrameBlock>, ReadError> {
        self.checked(self.read_frames(from, bytes_max))
    }

    fn read_frames(&self, from: Seq, bytes_max: usize) -> Result<Option<FrameBlock>, ReadError> {
        let view = self.view();
        if from < view.horizon {
            return Err(ReadError::Compacted { from, horizon: view.horizon });
        }
        if from >= view.tip.seq {
            let beyond = ReadError::Beyond { seq: from, head: view.tip.seq };
            return if from == view.tip.seq { Ok(None) } else { Err(beyond) };
        }
        let segment = match view.locate(from.next()) {
            Some(index) => &view.segments[index],
            None => return Err(ReadError::Beyond { seq: from.next(), head: view.tip.seq }),
        };
        let point = segment.seek(from.next());
        let end = view.end_of(segment);
        let rest = usize::try_from(end - point.offset).unwrap_or(usize::MAX);
        // The requested frame is within one step of the index. A frame longer than the buffer is read again in full.
        let mut length = rest.min(bytes_max.saturating_add(64 << 10));
        loop {
            let mut bytes = vec![0; length];
            read_exact_at(&*segment.file, &mut bytes, point.offset).map_err(IoFailure::at("read", &segment.name))?;
            match cut_block(segment, &Bytes::from(bytes), point, from, bytes_max)? {
                Cut::Block(block) => return Ok(Some(block)),
                Cut::NeedMore(_) if length == rest => {
                    let error = DecodeError::new("frame", 0, "a whole frame", "the end of the segment");
                    return Err(damage(segment, end, &error));
                }
                Cut::NeedMore(wanted) => length = rest.min(wanted.max(length * 2)),
            }
        }
    }

    /// Returns the chain value at a sequence; `None` below the horizon and past the head.
    ///
    /// # Errors
    /// If the records there are damaged or cannot be read.
    pub fn chain_at(&self, seq: Seq) -> Result<Option<Chain>, ReadError> {
        let view = self.view();
        if seq == view.tip.seq {
            return Ok(Some(view.tip.chain));
        }
        if seq < view.horizon || seq > view.tip.seq {
            return Ok(None);
        }
        if let Some(next) = view.locate(seq.next()).map(|index| &view.segments[index])
            && next.first() == seq.next()
        {
            return Ok(Some(next.header.chain_before));
        }
        Ok(self.find(&view, seq)?.map(|(_, raw)| raw.header.chain))
    }

    /// Returns the raw record of a sequence; `None` if it was compacted away or is past the head.
    ///
    /// # Errors
    /// If the records there are damaged or cannot be read.
    pub fn read_record(&self, seq: Seq) -> Result<Option<RecordAt>, ReadError> {
        let view = self.view();
        let found = self.find(&view, seq)?;
        Ok(found.map(|(file, raw)| RecordAt { file, offset: raw.offset, bytes: raw.bytes }))
    }

    /// Returns the entry of a sequence; `None` if it was compacted away or is past the head.
    ///
    /// # Errors
    /// If the records there are damaged or cannot be read.
    pub fn entry(&self, seq: Seq) -> Result<Option<Entry>, ReadError> {
        let Some((file, raw)) = self.find(&self.view(), seq)? else { return Ok(None) };
        let damaged = |error| ReadError::Damaged(Damage::decode(&file, raw.offset, &error));
        self.checked(decode_entry(&raw.header, &raw.payload()).map(Some).map_err(damaged))
    }

    fn find(&self, view: &View, seq: Seq) -> Result<Option<(String, RawFrame)>, ReadError> {
        self.checked(read_one(view, seq))
    }

    /// Returns all segments, oldest first.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentInfo> {
        let view = self.view();
        let info = |segment: &Arc<Segment>| {
            let (times, records) = match segment.footer {
                Some(footer) => ((footer.time_first, footer.time_last), footer.count),
                None if view.tip.count == 0 => ((0, 0), 0),
                None => ((view.tip.time_first, view.tip.time_last), view.tip.count),
            };
            SegmentInfo {
                file: segment.name.clone(),
                first: segment.first(),
                last: view.last_of(segment),
                bytes: segment.file_bytes().unwrap_or(view.tip.end),
                records,
                compacted: segment.header.is_compacted(),
                sealed: segment.footer.is_some(),
                first_time_ms: times.0,
                last_time_ms: times.1,
                garbage_bytes: segment.garbage.load(Ordering::Relaxed),
            }
        };
        view.segments.iter().map(info).collect()
    }
}

fn read_one(view: &View, seq: Seq) -> Result<Option<(String, RawFrame)>, ReadError> {
    let Some(segment) = view.locate(seq).map(|index| &view.segments[index]) else { return Ok(None) };
    let point = segment.seek(seq);
    let mut cursor = FrameCursor::new(Arc::clone(&segment.file), point.offset, view.end_of(segment));
    loop {
        let at = cursor.offset();
        match cursor.next().map_err(IoFailure::at("read", &segment.name))? {
            Err(error) => return Err(damage(segment, at, &error)),
            Ok(Some(raw)) if raw.header.seq < seq => {}
            Ok(Some(raw)) if raw.header.seq == seq => return Ok(Some((segment.name.clone(), raw))),
            Ok(_) => return Ok(None),
        }
    }
}

enum Cut {
    Block(FrameBlock),
    /// The buffer ends inside the first requested frame; the value is the length to read.
    NeedMore(usize),
}

fn cut_block(
    segment: &Segment,
    bytes: &Bytes,
    point: super::segment::IndexPoint,
    from: Seq,
    bytes_max: usize,
) -> Result<Cut, ReadError> {
    let (mut at, mut chain, mut expected) = (0, point.chain_before, point.seq);
    let mut block: Option<(usize, Seq, Chain)> = None;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let start = block.map_or(at, |(start, ..)| start);
        let header = match decode_frame(rest) {
            Ok((header, _)) => header,
            // The end of the buffer, not damage.
            Err(_) if rest.len() < frame::HEADER_BYTES => break,
            Err(error) => match frame::decode_header(rest) {
                Ok(header) if header.frame_bytes() > rest.len() => {
                    let wanted = at + header.frame_bytes();
                    if block.is_none() {
                        return Ok(Cut::NeedMore(wanted));
                    }
                    break;
                }
                _ => return Err(damage(segment, point.offset + at as u64, &error)),
            },
        };
        if header.seq != expected {
            let error = DecodeError::new("sequence", frame::AT_SEQ, expected, header.seq);
            return Err(damage(segment, point.offset + at as u64, &error));
        }
        let end = at + header.frame_bytes();
        if block.is_some() && end - start > bytes_max {
            break;
        }
        if block.is_none() && header.seq > from {
            block = Some((at, header.seq, chain));
        }
        (at, chain, expected) = (end, header.chain, header.seq.next());
    }
    Ok(match block {
        Some((start, first, prev_chain)) => Cut::Block(FrameBlock {
            first,
            last: Seq(expected.0 - 1),
            bytes: bytes.slice(start..at),
            prev_chain,
            last_chain: chain,
        }),
        None => Cut::NeedMore(bytes.len() * 2 + frame::HEADER_BYTES),
    })
}

/// Iterator over entries of one snapshot of the log; checks checksums, order and chain. Ends after an error.
#[derive(Debug)]
pub struct Entries {
    view: View,
    segments: std::ops::Range<usize>,
    from: Seq,
    to: Seq,
    refused: Option<ReadError>,
    current: Option<Walk>,
    /// Chain value at the entry returned last.
    chain: Chain,
    /// Damage record of the log.
    damage: DamageRecord,
}

#[derive(Debug)]
struct Walk {
    segment: Arc<Segment>,
    cursor: FrameCursor,
    chain: Chain,
    last: Seq,
}

impl Entries {
    fn new(
        view: View,
        segments: std::ops::Range<usize>,
        from: Seq,
        to: Seq,
        refused: Option<ReadError>,
        damage: DamageRecord,
    ) -> Entries {
        let to = to.min(view.tip.seq);
        Entries { view, segments, from, to, refused, current: None, chain: frame::CHAIN_START, damage }
    }

    /// Returns the last sequence that the iterator can return.
    #[must_use]
    pub fn to(&self) -> Seq {
        self.to
    }

    fn finish(&mut self) {
        (self.segments, self.current) = (0..0, None);
    }

    fn walk(&self, segment: Arc<Segment>) -> Walk {
        let point = segment.seek(self.from.next());
        let cursor = FrameCursor::new(Arc::clone(&segment.file), point.offset, self.view.end_of(&segment));
        Walk { segment, cursor, chain: point.chain_before, last: Seq(point.seq.0.saturating_sub(1)) }
    }

    fn advance(&mut self) -> Result<Option<Entry>, ReadError> {
        loop {
            let Some(walk) = &mut self.current else {
                let Some(index) = self.segments.next() else { return Ok(None) };
                if self.view.segments[index].first() > self.to {
                    return Ok(None);
                }
                self.current = Some(self.walk(Arc::clone(&self.view.segments[index])));
                continue;
            };
            match walk.step(self.from)? {
                Some(entry) if entry.seq > self.to => return Ok(None),
                Some(entry) if entry.seq > self.from => {
                    self.chain = walk.chain;
                    return Ok(Some(entry));
                }
                Some(_) => {}
                None => self.current = None,
            }
        }
    }
}

impl Walk {
    /// Returns the next entry after `from`. Earlier entries are checked but not decoded.
    fn step(&mut self, from: Seq) -> Result<Option<Entry>, ReadError> {
        loop {
            let at = self.cursor.offset();
            let next = self.cursor.next().map_err(IoFailure::at("read", &self.segment.name))?;
            let Some(raw) = next.map_err(|error| damage(&self.segment, at, &error))? else { return Ok(None) };
            let seq = raw.header.seq;
            let follows = if self.segment.header.is_compacted() { seq > self.last } else { seq == self.last.next() };
            if !follows {
                let error = DecodeError::new("sequence", frame::AT_SEQ, self.last.next(), seq);
                return Err(damage(&self.segment, at, &error));
            }
            self.chain = frame::check_chain(&raw.bytes, &self.chain).map_err(|e| damage(&self.segment, at, &e))?;
            self.last = seq;
            if seq > from {
                let entry = decode_entry(&raw.header, &raw.payload()).map_err(|e| damage(&self.segment, at, &e))?;
                return Ok(Some(entry));
            }
        }
    }
}

impl Iterator for Entries {
    type Item = Result<Entry, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.refused.take() {
            self.finish();
            return Some(Err(error));
        }
        let advanced = self.advance();
        let item = self.damage.checked(advanced, ReadError::is_damage).transpose();
        if !matches!(item, Some(Ok(_))) {
            self.finish();
        }
        item
    }
}
