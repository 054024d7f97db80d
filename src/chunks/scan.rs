//! Scanning of a pack frame by frame, if there is no usable index. Never writes, and never fails: unreadable ranges are
//! reported as gaps.

use std::io;

use super::format::{FRAME_HEADER_BYTES, FRAME_MAGIC, FrameHeader, Row};
use gravwell_env::fs::{File, read_exact_at};
use gravwell_model::ChunkId;

/// Number of bytes read at once.
const WINDOW_BYTES: u64 = 1 << 20;
/// Step size when the medium cannot return any bytes.
const UNREADABLE_BYTES: u64 = 4 << 10;

/// Contents of a range of a pack.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    /// Intact frames, ordered by offset.
    pub rows: Vec<Row>,
    /// Ranges without an intact frame.
    pub gaps: Vec<Gap>,
    /// End of the last intact frame.
    pub end: u64,
}

/// A range without an intact frame.
#[derive(Debug)]
pub(super) struct Gap {
    pub offset: u64,
    pub bytes: u64,
    /// Whether a later frame states that these bytes were durable. If so, they are corrupt; otherwise they may be an
    /// incomplete write.
    pub was_durable: bool,
    /// The chunk in this range, if its frame header is intact.
    pub id: Option<ChunkId>,
    pub what: String,
}

/// Reads the frames of a pack between two offsets and skips other bytes.
pub(super) fn scan(file: &dyn File, pack: u32, from: u64, to: u64) -> Scanned {
    let mut window = Window { file, to, start: 0, bytes: Vec::new() };
    let mut scanned = Scanned { end: from, ..Scanned::default() };
    let mut at = from;
    while at < to {
        match frame(&mut window, pack, at) {
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
                    None => find(&mut window, pack, at + 1),
                };
                let id = bad.header.map(|header| header.id);
                scanned.gaps.push(Gap { offset: at, bytes: next - at, was_durable: false, id, what: bad.what });
                at = next;
            }
        }
    }
    scanned
}

/// An invalid frame, with its header if that is intact and the frame ends within the pack.
struct Bad {
    header: Option<FrameHeader>,
    what: String,
}

fn frame(window: &mut Window<'_>, pack: u32, at: u64) -> Result<FrameHeader, Bad> {
    let bad = |what: String| Bad { header: None, what };
    let head = window.get(at, FRAME_HEADER_BYTES as u64).map_err(|error| bad(format!("cannot be read: {error}")))?;
    let header = FrameHeader::decode(head).map_err(|error| bad(error.to_string()))?;
    if header.pack != pack {
        return Err(bad(format!("a frame of pack {}", header.pack)));
    }
    if at + header.frame_bytes() > window.to {
        return Err(bad(format!("a chunk of {} bytes that ends past the end of the file", header.stored)));
    }
    let lost = |what: String| Bad { header: Some(header), what };
    let stored = window.get(at + FRAME_HEADER_BYTES as u64, u64::from(header.stored));
    let stored = stored.map_err(|error| lost(format!("cannot be read: {error}")))?;
    let computed = crc32c::crc32c(stored);
    if computed != header.stored_crc {
        return Err(lost(format!("checksum of a chunk: expected {:08x}, found {computed:08x}", header.stored_crc)));
    }
    Ok(header)
}

/// Returns the offset of the next intact frame at or after `at`; the end if there is none.
fn find(window: &mut Window<'_>, pack: u32, mut at: u64) -> u64 {
    while at < window.to {
        let Ok(ahead) = window.get(at, WINDOW_BYTES) else {
            at += UNREADABLE_BYTES;
            continue;
        };
        let Some(found) = ahead.windows(FRAME_MAGIC.len()).position(|four| four == FRAME_MAGIC) else {
            // The magic may extend past the end of the bytes searched.
            at += (ahead.len() as u64).saturating_sub(FRAME_MAGIC.len() as u64 - 1).max(1);
            continue;
        };
        at += found as u64;
        if frame(window, pack, at).is_ok() {
            return at;
        }
        at += 1;
    }
    window.to
}

/// A range of the file in memory.
struct Window<'a> {
    file: &'a dyn File,
    to: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// Returns up to `length` bytes from `offset` on, fewer at the end of the range.
    fn get(&mut self, offset: u64, length: u64) -> io::Result<&[u8]> {
        let end = (offset + length).min(self.to);
        let held = self.start..self.start + self.bytes.len() as u64;
        if offset < held.start || end > held.end {
            // An unreadable block further on must not hide the readable bytes before it.
            self.load(offset, WINDOW_BYTES.max(length)).or_else(|_| self.load(offset, length))?;
        }
        let within = |at: u64| usize::try_from(at.saturating_sub(self.start)).unwrap_or(usize::MAX);
        Ok(self.bytes.get(within(offset)..within(end)).unwrap_or_default())
    }

    fn load(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let length = length.min(self.to.saturating_sub(offset));
        self.start = offset;
        self.bytes.resize(usize::try_from(length).unwrap_or(0), 0);
        let read = read_exact_at(self.file, &mut self.bytes, offset);
        if read.is_err() {
            self.bytes.clear();
        }
        read
    }
}
