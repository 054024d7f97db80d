//! A consistent copy of a log that is being written and compacted: the files at one point in time, and the valid
//! length of each.

use std::path::Path;
use std::sync::Arc;

use super::LogReader;
use super::backup_stream_check::{PIECE_BYTES, PieceSum};
use super::cursor::FrameCursor;
use super::directory::SegmentName;
use super::error::{Damage, IoFailure, ReadError};
use super::format::{FOOTER_BYTES, FileHeader, HEADER_BYTES, HeadSlot};
use super::head::HeadFile;
use super::segment::{Segment, hex, read_header};
use gravwell_env::damage::DamageRecord;
use gravwell_env::fs::{Fs, read_exact_at};
use gravwell_model::codec::frame::{CHAIN_START, check_chain};
use gravwell_model::codec::json_lines::timestamp;
use gravwell_model::codec::payload::peek_time;
use gravwell_model::{Chain, Generation, Lineage, LogId, Seq};

/// A log at one point in time. Compaction may replace the files; the file handles held here stay readable.
pub struct LogCopy {
    /// Id of the log.
    pub log_id: LogId,
    /// Generation of the log.
    pub generation: Generation,
    /// Descent of the generations.
    pub lineage: Lineage,
    /// Lowest sequence after which every record is present.
    pub horizon: Seq,
    /// Last durable sequence.
    pub seq: Seq,
    /// Chain value at `seq`.
    pub chain: Chain,
    /// The segments, oldest first.
    pub segments: Vec<SegmentCopy>,
}

/// One segment file of a copy.
pub struct SegmentCopy {
    /// Name of the file.
    pub name: String,
    /// Number of valid bytes.
    pub bytes: u64,
    /// Hash of the file header; distinguishes files with different headers.
    pub header: String,
    /// Hash of header and footer, which contains the chain; distinguishes sealed files. Empty for the open segment.
    pub mark: String,
    /// Whether the segment is compacted. Segments that are not compacted only grow.
    pub is_compacted: bool,
    segment: Arc<Segment>,
    /// Damage record of the log.
    damage: DamageRecord,
}

impl SegmentCopy {
    /// Reads `bytes.len()` bytes at `offset`, within [`SegmentCopy::bytes`].
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(&self, bytes: &mut [u8], offset: u64) -> Result<(), IoFailure> {
        let read = read_exact_at(&*self.segment.file, bytes, offset).map_err(IoFailure::at("read", &self.name));
        self.damage.checked(read, IoFailure::is_damage)
    }

    /// Returns the [`PieceSum`] of the first `bytes` bytes, which must be whole pieces within [`SegmentCopy::bytes`].
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn sum(&self, bytes: u64) -> Result<String, IoFailure> {
        let mut sum = PieceSum::default();
        let mut piece = vec![0; usize::try_from(PIECE_BYTES).unwrap_or_default()];
        for number in 0..bytes / PIECE_BYTES {
            self.read(&mut piece, number * PIECE_BYTES)?;
            sum.add(&piece);
        }
        Ok(sum.text())
    }

    /// Reads and checks every record, so that damage is not copied.
    ///
    /// # Errors
    /// If a record is damaged or cannot be read.
    pub fn check(&self) -> Result<(), ReadError> {
        let end = self.segment.frames_end().unwrap_or(self.bytes);
        let mut cursor = FrameCursor::new(Arc::clone(&self.segment.file), HEADER_BYTES as u64, end);
        let mut chain = self.segment.header.chain_before;
        let mut step = || {
            let at = cursor.offset();
            let damaged = |error| ReadError::Damaged(Damage::decode(&self.name, at, &error));
            let raw = cursor.next().map_err(IoFailure::at("read", &self.name))?.map_err(damaged)?;
            let Some(raw) = raw else { return Ok(false) };
            chain = check_chain(&raw.bytes, &chain).map_err(damaged)?;
            Ok(true)
        };
        while self.damage.checked(step(), ReadError::is_damage)? {}
        Ok(())
    }
}

pub(super) fn short_hash(parts: &[&[u8]]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

impl LogReader {
    /// Returns the log as of now.
    #[must_use]
    pub fn copy(&self) -> LogCopy {
        // Generation and lineage change only while no other task has the log open.
        let view = self.view();
        let segments = view.segments.iter().map(|segment| {
            let header = segment.header.encode();
            let mark = segment.footer.map_or_else(String::new, |footer| short_hash(&[&header, &footer.encode()]));
            SegmentCopy {
                name: segment.name.clone(),
                bytes: segment.file_bytes().unwrap_or(view.tip.end),
                header: short_hash(&[&header]),
                mark,
                is_compacted: segment.header.is_compacted(),
                segment: Arc::clone(segment),
                damage: self.damage().clone(),
            }
        });
        LogCopy {
            log_id: self.log_id(),
            generation: self.generation(),
            lineage: self.lineage(),
            horizon: view.horizon,
            seq: view.tip.seq,
            chain: view.tip.chain,
            segments: segments.collect(),
        }
    }
}

/// Requested end of a copied log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Ends at this sequence.
    Seq(Seq),
    /// Ends at the last record committed at or before this time, in milliseconds since 1970-01-01 UTC.
    Time(u64),
}

/// Copied files do not form a log.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// A file cannot be read or written.
    #[error(transparent)]
    Io(#[from] IoFailure),
    /// A file is damaged.
    #[error("{0}")]
    Damaged(Damage),
    /// The requested end is in the compacted prefix, where records are missing.
    #[error("all records are kept only from sequence {horizon} on: {wanted} cannot be restored from this backup")]
    BelowHorizon {
        /// Sequence from which records are complete.
        horizon: Seq,
        /// The requested end.
        wanted: String,
    },
    /// The clock was wrong for some time, so the time does not determine a unique end.
    #[error(
        "commit times go back, because a clock was temporarily wrong: at {wanted} the log may end at sequence {early} \
         or at {late}; nothing was changed; examine both with `gravwell-logctl tail`, and choose one with --at SEQUENCE"
    )]
    TimesGoBack {
        /// The requested time.
        wanted: String,
        /// Last sequence before the first record that is later than the requested time.
        early: Seq,
        /// Last sequence that is not later than the requested time.
        late: Seq,
    },
    /// The requested end is past the last record.
    #[error("the files end at sequence {last} and do not include {wanted}")]
    Beyond {
        /// Last sequence in the files.
        last: Seq,
        /// The requested sequence.
        wanted: Seq,
    },
    /// The log would be empty.
    #[error(
        "{wanted} precedes the first record ({first}), so the log would be empty; nothing was changed; choose a later \
         sequence or time, or pass --at-empty to restore an empty log"
    )]
    BeforeFirst {
        /// The requested end.
        wanted: String,
        /// Sequence of the first record and, if known, its commit time.
        first: String,
    },
    /// The lineage has the maximum number of entries.
    #[error("a log has at most {} generations", super::format::LINEAGE_MAX)]
    LineageFull,
}

/// Metadata of the log that the files in a directory form.
#[derive(Clone, Debug)]
pub struct Cut {
    /// Id of the log.
    pub log_id: LogId,
    /// The new generation of the log.
    pub generation: Generation,
    /// Descent of that generation without its own entry, which is added.
    pub lineage: Lineage,
    /// Horizon of the log.
    pub horizon: Seq,
    /// Whether the log may end before the first record.
    pub may_be_empty: bool,
}

/// Turns the segment files in `dir` into a log that ends at `end`, in a new generation; durable on return. Files after the end
/// are removed and the file that contains the end is truncated. Returns the last sequence and the chain value there.
///
/// # Errors
/// If a file is damaged or the end is not among the records. The directory is unusable then.
pub fn cut(fs: &dyn Fs, dir: &Path, cut: Cut, end: End) -> Result<(Seq, Chain), CutError> {
    let files = fs.list(dir).map_err(IoFailure::at("list", dir.display()))?;
    let mut names: Vec<SegmentName> = files.iter().filter_map(|file| SegmentName::parse(file)).collect();
    names.sort();
    let end = match end {
        End::Time(time) => end_at(fs, dir, &names, time)?,
        end @ End::Seq(_) => end,
    };
    let first_ms = names.first().map(|name| first_time(fs, dir, *name)).transpose()?.flatten();
    let mut last = (Seq::ZERO, CHAIN_START);
    let mut is_over = false;
    for name in names {
        if is_over || matches!(end, End::Seq(seq) if name.first > seq && name.first > Seq(1)) {
            fs.remove(&dir.join(name.to_string())).map_err(IoFailure::at("remove", name))?;
            continue;
        }
        (last, is_over) = cut_segment(fs, dir, name, end, last)?;
    }
    if last.0 == Seq::ZERO && !cut.may_be_empty {
        return Err(before_first(end, first_ms));
    }
    match end {
        End::Seq(seq) if last.0 < seq => return Err(CutError::Beyond { last: last.0, wanted: seq }),
        End::Seq(seq) if seq < cut.horizon => return Err(below_horizon(cut.horizon, seq)),
        _ => {}
    }
    let mut lineage = cut.lineage;
    if lineage.len() >= super::format::LINEAGE_MAX {
        return Err(CutError::LineageFull);
    }
    lineage.push(gravwell_model::LineageEntry { generation: cut.generation, shared_to: last.0 });
    let slot = HeadSlot {
        counter: 1,
        log_id: cut.log_id,
        generation: cut.generation,
        seq: last.0,
        chain: last.1,
        horizon: cut.horizon,
        lineage,
    };
    HeadFile::create(fs, dir, slot).map_err(IoFailure::at("write", super::directory::HEAD))?;
    fs.sync_dir(dir).map_err(IoFailure::at("sync", dir.display()))?;
    Ok(last)
}

/// Converts a time into the sequence of the last record that is not later. Skips compacted segments, in which records are missing.
fn end_at(fs: &dyn Fs, dir: &Path, names: &[SegmentName], time: u64) -> Result<End, CutError> {
    let (mut before, mut early, mut late, mut is_later) = (Seq::ZERO, None, None, false);
    for name in names {
        let file = fs.open(&dir.join(name.to_string())).map_err(IoFailure::at("open", name))?;
        let header = read_header(&*file).map_err(IoFailure::at("read", name))?;
        if header.is_ok_and(|header| header.is_compacted()) {
            before = name.last.unwrap_or_default();
            continue;
        }
        let length = file.len().map_err(IoFailure::at("measure", name))?;
        let frames_end = if name.last.is_some() { length.saturating_sub(FOOTER_BYTES as u64) } else { length };
        let mut cursor = FrameCursor::new(file, HEADER_BYTES as u64, frames_end);
        // Damage is found and reported when the segments are cut.
        while let Ok(Some(raw)) = cursor.next().map_err(IoFailure::at("read", name))? {
            // A record without a time counts as late as the preceding one.
            is_later = peek_time(&raw.header, &raw.payload()).map_or(is_later, |made| made > time);
            match is_later {
                true => early = early.or(Some(before)),
                false => late = Some(raw.header.seq),
            }
            before = raw.header.seq;
        }
    }
    match (early, late) {
        (Some(early), Some(late)) if early < late => {
            Err(CutError::TimesGoBack { wanted: timestamp(time), early, late })
        }
        (_, Some(late)) => Ok(End::Seq(late)),
        (_, None) => Ok(End::Time(time)),
    }
}

fn before_first(end: End, first_ms: Option<u64>) -> CutError {
    let wanted = match end {
        End::Seq(seq) => format!("sequence {seq}"),
        End::Time(time) => timestamp(time),
    };
    let first = first_ms.map_or_else(|| "sequence 1".to_owned(), |ms| format!("sequence 1, of {}", timestamp(ms)));
    CutError::BeforeFirst { wanted, first }
}

/// Returns the commit time of the first record of a file, if the record has one.
fn first_time(fs: &dyn Fs, dir: &Path, name: SegmentName) -> Result<Option<u64>, CutError> {
    let file = fs.open(&dir.join(name.to_string())).map_err(IoFailure::at("open", name))?;
    let length = file.len().map_err(IoFailure::at("measure", name))?;
    let mut cursor = FrameCursor::new(file, HEADER_BYTES as u64, length);
    let first = cursor.next().map_err(IoFailure::at("read", name))?;
    Ok(first.ok().flatten().and_then(|raw| peek_time(&raw.header, &raw.payload())))
}

fn below_horizon(horizon: Seq, wanted: impl std::fmt::Display) -> CutError {
    CutError::BelowHorizon { horizon, wanted: wanted.to_string() }
}

/// Truncates one file after `end` if it extends past it. Returns the last position in the file and whether it contains the end.
fn cut_segment(
    fs: &dyn Fs,
    dir: &Path,
    name: SegmentName,
    end: End,
    before: (Seq, Chain),
) -> Result<((Seq, Chain), bool), CutError> {
    let path = dir.join(name.to_string());
    let file = fs.open(&path).map_err(IoFailure::at("open", name))?;
    let length = file.len().map_err(IoFailure::at("measure", name))?;
    let damaged = |error: &_| CutError::Damaged(Damage::decode(name.to_string(), 0, error));
    let header: FileHeader =
        read_header(&*file).map_err(IoFailure::at("read", name))?.map_err(|error| damaged(&error))?;
    let frames_end = if name.last.is_some() { length.saturating_sub(FOOTER_BYTES as u64) } else { length };
    if header.is_compacted() {
        // Compacted segments are below the horizon and are never truncated.
        let footer = super::segment::read_footer(&*file, frames_end).map_err(IoFailure::at("read", name))?;
        let footer = footer.map_err(|error| damaged(&error))?;
        if matches!(end, End::Time(time) if footer.time_last > time) {
            return Err(below_horizon(footer.last, "that time"));
        }
        return Ok(((footer.last, footer.chain_after), false));
    }
    let mut cursor = FrameCursor::new(Arc::clone(&file), HEADER_BYTES as u64, frames_end);
    let mut last = before;
    let mut at = HEADER_BYTES as u64;
    let is_over = loop {
        let raw = match cursor.next().map_err(IoFailure::at("read", name))? {
            Ok(None) => break false,
            Ok(Some(raw)) => raw,
            Err(error) => return Err(CutError::Damaged(Damage::decode(name.to_string(), cursor.offset(), &error))),
        };
        let is_behind = match end {
            End::Seq(seq) => raw.header.seq > seq,
            End::Time(time) => peek_time(&raw.header, &raw.payload()).is_some_and(|made| made > time),
        };
        if is_behind {
            break true;
        }
        (last, at) = ((raw.header.seq, raw.header.chain), raw.end());
    };
    if !is_over {
        return Ok((last, matches!(end, End::Seq(seq) if last.0 >= seq)));
    }
    file.set_len(at).and_then(|()| file.sync_data()).map_err(IoFailure::at("cut", name))?;
    if name.last.is_some() {
        let open = SegmentName { last: None, ..name };
        fs.rename(&path, &dir.join(open.to_string())).map_err(IoFailure::at("rename", name))?;
    }
    Ok((last, true))
}

/// Formats a chain value as hexadecimal digits.
#[must_use]
pub fn chain_text(chain: &Chain) -> String {
    hex(chain)
}
