//! Reading a pack frame by frame, when there is no index to tell what is in it. Never writes.

use std::io;

use super::format::{FRAME_HEADER_BYTES, FRAME_MAGIC, FrameHeader, Row};
use crate::env::fs::{File, read_exact_at};
use crate::model::ChunkId;

/// Bytes read at once.
const WINDOW_BYTES: u64 = 1 << 20;

/// What is in a range of a pack.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    /// Intact frames, in their order.
    pub rows: Vec<Row>,
    /// Stretches that are no frames.
    pub gaps: Vec<Gap>,
    /// Where the last intact frame ends.
    pub end: u64,
}

/// A stretch without an intact frame.
#[derive(Debug)]
pub(super) struct Gap {
    pub offset: u64,
    pub bytes: u64,
    /// Whether a later frame says that these bytes were durable: then they are damaged, else perhaps never finished.
    pub was_durable: bool,
    /// The chunk that was there, when its header is intact.
    pub id: Option<ChunkId>,
    pub what: String,
}

/// Reads the frames of a pack between two offsets; steps over what is none.
pub(super) fn scan(file: &dyn File, pack: u32, from: u64, to: u64) -> io::Result<Scanned> {
    let mut window = Window { file, to, start: 0, bytes: Vec::new() };
    let mut scanned = Scanned { end: from, ..Scanned::default() };
    let mut at = from;
    while at < to {
        match frame(&mut window, pack, at)? {
            Ok(header) => {
                for gap in &mut scanned.gaps {
                    gap.was_durable |= gap.offset < u64::from(header.durable);
                }
                let offset = u32::try_from(at).unwrap_or(u32::MAX);
                scanned.rows.push(Row { id: header.id, offset, stored: header.stored, raw: header.raw });
                at += header.frame_bytes();
                scanned.end = at;
            }
            Err(bad) => {
                let next = match bad.header {
                    Some(header) => at + header.frame_bytes(),
                    None => find(&mut window, pack, at + 1)?,
                };
                let id = bad.header.map(|header| header.id);
                scanned.gaps.push(Gap { offset: at, bytes: next - at, was_durable: false, id, what: bad.what });
                at = next;
            }
        }
    }
    Ok(scanned)
}

/// Not an intact frame; with its header when that is intact and its end lies within the pack.
struct Bad {
    header: Option<FrameHeader>,
    what: String,
}

fn frame(window: &mut Window<'_>, pack: u32, at: u64) -> io::Result<Result<FrameHeader, Bad>> {
    let bad = |what: String| Ok(Err(Bad { header: None, what }));
    let head = window.get(at, FRAME_HEADER_BYTES as u64)?;
    let header = match FrameHeader::decode(head) {
        Ok(header) => header,
        Err(error) => return bad(error.to_string()),
    };
    if header.pack != pack {
        return bad(format!("a frame of pack {}", header.pack));
    }
    let stored = window.get(at + FRAME_HEADER_BYTES as u64, u64::from(header.stored))?;
    if stored.len() as u64 != u64::from(header.stored) {
        return bad(format!("{} of {} bytes of a chunk", stored.len(), header.stored));
    }
    let computed = crc32c::crc32c(stored);
    if computed != header.stored_crc {
        let what = format!("checksum of a chunk: expected {:08x}, found {computed:08x}", header.stored_crc);
        return Ok(Err(Bad { header: Some(header), what }));
    }
    Ok(Ok(header))
}

/// The next offset, from `at` on, at which an intact frame begins; the end when there is none.
fn find(window: &mut Window<'_>, pack: u32, mut at: u64) -> io::Result<u64> {
    while at < window.to {
        let ahead = window.get(at, WINDOW_BYTES)?;
        let Some(found) = ahead.windows(FRAME_MAGIC.len()).position(|four| four == FRAME_MAGIC) else {
            // The magic may lie across the end of what was looked at.
            let passed = (ahead.len() as u64).saturating_sub(FRAME_MAGIC.len() as u64 - 1).max(1);
            at += passed;
            continue;
        };
        at += found as u64;
        if frame(window, pack, at)?.is_ok() {
            return Ok(at);
        }
        at += 1;
    }
    Ok(window.to)
}

/// A stretch of the file in memory.
struct Window<'a> {
    file: &'a dyn File,
    to: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// So many bytes from `offset` on, fewer at the end.
    fn get(&mut self, offset: u64, length: u64) -> io::Result<&[u8]> {
        let end = (offset + length).min(self.to);
        let held = self.start..self.start + self.bytes.len() as u64;
        if offset < held.start || end > held.end {
            let length = WINDOW_BYTES.max(length).min(self.to.saturating_sub(offset));
            self.bytes.resize(usize::try_from(length).unwrap_or(0), 0);
            self.start = offset;
            read_exact_at(self.file, &mut self.bytes, offset)?;
        }
        let within = |at: u64| usize::try_from(at.saturating_sub(self.start)).unwrap_or(usize::MAX);
        Ok(self.bytes.get(within(offset)..within(end)).unwrap_or_default())
    }
}
