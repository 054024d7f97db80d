//! One segment file: its metadata and the scan that checks it.

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError, RwLock};

use super::cursor::{FrameCursor, RawFrame};
use super::error::Damage;
use super::format::{FOOTER_BYTES, FileHeader, Footer, HEADER_BYTES};
use gravwell_env::fs::{File, read_exact_at};
use gravwell_model::codec::error::DecodeError;
use gravwell_model::codec::frame;
use gravwell_model::codec::payload::peek_time;
use gravwell_model::{Chain, Seq};

/// Minimum distance between two points of the sparse index.
const INDEX_STEP_BYTES: u64 = 32 << 10;

/// Start of a frame and the chain value before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IndexPoint {
    pub seq: Seq,
    pub offset: u64,
    pub chain_before: Chain,
}

/// Sparse map from sequences to offsets.
#[derive(Clone, Debug, Default)]
pub(super) struct SparseIndex(Vec<IndexPoint>);

impl SparseIndex {
    /// Adds the position of the next frame if the last point is far enough away.
    pub(super) fn note(&mut self, point: IndexPoint) {
        if self.0.last().is_none_or(|last| point.offset >= last.offset + INDEX_STEP_BYTES) {
            self.0.push(point);
        }
    }

    /// Returns the last point at or before `seq`.
    pub(super) fn before(&self, seq: Seq) -> Option<IndexPoint> {
        let count = self.0.partition_point(|point| point.seq <= seq);
        count.checked_sub(1).map(|index| self.0[index])
    }
}

/// A segment available to readers. The file stays readable after it is renamed or replaced.
#[derive(Debug)]
pub(super) struct Segment {
    pub name: String,
    pub file: Arc<dyn File>,
    pub header: FileHeader,
    /// `None` for the open segment.
    pub footer: Option<Footer>,
    pub index: RwLock<SparseIndex>,
    /// Bytes that the last compaction found superseded but did not remove.
    pub garbage: AtomicU64,
}

impl Segment {
    pub(super) fn first(&self) -> Seq {
        self.header.first
    }

    /// Returns the end of the frames of a sealed segment.
    pub(super) fn frames_end(&self) -> Option<u64> {
        self.footer.map(|footer| HEADER_BYTES as u64 + footer.frames_bytes)
    }

    pub(super) fn file_bytes(&self) -> Option<u64> {
        self.frames_end().map(|end| end + FOOTER_BYTES as u64)
    }

    /// Returns the sequence after which this segment contains every deletion of an object that is absent.
    pub(super) fn deletions_after(&self) -> Seq {
        match self.footer {
            Some(footer) if self.header.is_compacted() => footer.deletions_after.unwrap_or(footer.last),
            _ => Seq::ZERO,
        }
    }

    /// Returns the position at which to start reading for `seq`, with the chain value there.
    pub(super) fn seek(&self, seq: Seq) -> IndexPoint {
        let start =
            IndexPoint { seq: self.header.first, offset: HEADER_BYTES as u64, chain_before: self.header.chain_before };
        self.index.read().unwrap_or_else(PoisonError::into_inner).before(seq).unwrap_or(start)
    }

    pub(super) fn note(&self, point: IndexPoint) {
        self.index.write().unwrap_or_else(PoisonError::into_inner).note(point);
    }
}

/// Result of a scan up to the point where it ended.
#[derive(Clone, Debug, Default)]
pub(super) struct Scan {
    pub count: u64,
    pub last: Seq,
    pub chain: Chain,
    pub end: u64,
    pub time_first: u64,
    pub time_last: u64,
    pub index: SparseIndex,
    /// The error at `end`, if the scan did not reach the end of its range.
    pub stopped: Option<DecodeError>,
}

impl Scan {
    /// Creates the initial state of a scan of a file with this header.
    pub(super) fn new(header: &FileHeader) -> Scan {
        Scan {
            last: Seq(header.first.0.saturating_sub(1)),
            chain: header.chain_before,
            end: HEADER_BYTES as u64,
            ..Scan::default()
        }
    }

    /// Checks that `frame` follows the last one and records it.
    pub(super) fn take(&mut self, frame: &RawFrame, compacted: bool, deep: bool) -> Result<(), DecodeError> {
        let seq = frame.header.seq;
        let follows = if compacted { seq > self.last } else { seq == self.last.next() };
        if !follows {
            let expected = format!("{}{}", self.last.next(), if compacted { " or later" } else { "" });
            return Err(DecodeError::new("sequence", frame::AT_SEQ, expected, seq));
        }
        if deep {
            frame::check_chain(&frame.bytes, &self.chain)?;
        }
        self.index.note(IndexPoint { seq, offset: frame.offset, chain_before: self.chain });
        if let Some(time) = peek_time(&frame.header, &frame.bytes[frame::HEADER_BYTES..]) {
            self.time_last = time;
            if self.time_first == 0 {
                self.time_first = time;
            }
        }
        (self.last, self.chain, self.end) = (seq, frame.header.chain, frame.end());
        self.count += 1;
        Ok(())
    }
}

/// Scans all frames from the position of `scan` up to `end`. Checks checksums and order and, with `deep`, the chain as
/// well. Calls `visit` for every valid frame.
pub(super) fn scan_frames(
    file: &Arc<dyn File>,
    compacted: bool,
    deep: bool,
    end: u64,
    mut scan: Scan,
    mut visit: impl FnMut(&RawFrame),
) -> io::Result<Scan> {
    let mut cursor = FrameCursor::new(Arc::clone(file), scan.end, end);
    loop {
        match cursor.next()? {
            Ok(None) => return Ok(scan),
            Ok(Some(raw)) => match scan.take(&raw, compacted, deep) {
                Ok(()) => visit(&raw),
                Err(error) => {
                    scan.stopped = Some(error);
                    return Ok(scan);
                }
            },
            Err(error) => {
                scan.stopped = Some(error);
                return Ok(scan);
            }
        }
    }
}

/// Reads and checks the header of a file.
pub(super) fn read_header(file: &dyn File) -> io::Result<Result<FileHeader, DecodeError>> {
    let mut bytes = [0; HEADER_BYTES];
    match read_exact_at(file, &mut bytes, 0) {
        Ok(()) => Ok(FileHeader::decode(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Ok(Err(DecodeError::new("file header", 0, format_args!("{HEADER_BYTES} bytes"), file.len()?)))
        }
        Err(error) => Err(error),
    }
}

/// Reads and checks the footer at `offset`.
pub(super) fn read_footer(file: &dyn File, offset: u64) -> io::Result<Result<Footer, DecodeError>> {
    let mut bytes = [0; FOOTER_BYTES];
    match read_exact_at(file, &mut bytes, offset) {
        Ok(()) => Ok(Footer::decode(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Ok(Err(DecodeError::new("footer", 0, format_args!("{FOOTER_BYTES} bytes"), "end of file")))
        }
        Err(error) => Err(error),
    }
}

/// Compares the result of a scan with the footer.
pub(super) fn check_footer(name: &str, header: &FileHeader, footer: &Footer, scan: &Scan) -> Option<Damage> {
    let at = HEADER_BYTES as u64 + footer.frames_bytes;
    let last = if header.is_compacted() { header.covered_last } else { scan.last };
    let wrong = |what: &str, expected: String, found: String| Some(Damage::new(name, at, what, expected, found));
    if footer.count != scan.count {
        return wrong("footer: number of frames", scan.count.to_string(), footer.count.to_string());
    }
    if footer.last != last {
        return wrong("footer: last sequence", last.to_string(), footer.last.to_string());
    }
    if footer.frame_chain != scan.chain {
        return wrong("footer: chain", hex(&scan.chain), hex(&footer.frame_chain));
    }
    if !header.is_compacted() && footer.chain_after != scan.chain {
        return wrong("footer: chain after", hex(&scan.chain), hex(&footer.chain_after));
    }
    None
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
