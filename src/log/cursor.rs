//! Reads the frames of one file in large chunks and verifies every checksum; never writes.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use gravwell_env::fs::File;
use gravwell_model::codec::error::DecodeError;
use gravwell_model::codec::frame::{FrameHeader, HEADER_BYTES, decode_frame, decode_header};

const CHUNK_BYTES_MIN: usize = 64 << 10;
const CHUNK_BYTES_MAX: usize = 1 << 20;

/// One frame and its position in the file.
#[derive(Clone, Debug)]
pub(super) struct RawFrame {
    pub offset: u64,
    pub header: FrameHeader,
    /// Header and payload.
    pub bytes: Bytes,
}

impl RawFrame {
    pub(super) fn payload(&self) -> Bytes {
        self.bytes.slice(HEADER_BYTES..)
    }

    pub(super) fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

/// Iterates over the frames of one file; see the module documentation.
#[derive(Debug)]
pub(super) struct FrameCursor {
    file: Arc<dyn File>,
    at: u64,
    end: u64,
    buffer: Bytes,
    chunk_bytes: usize,
}

impl FrameCursor {
    /// Creates a cursor over the frames from `at` to `end` (exclusive).
    pub(super) fn new(file: Arc<dyn File>, at: u64, end: u64) -> FrameCursor {
        FrameCursor { file, at, end, buffer: Bytes::new(), chunk_bytes: CHUNK_BYTES_MIN }
    }

    pub(super) fn offset(&self) -> u64 {
        self.at
    }

    /// Buffers at least `wanted` bytes, or all bytes up to the end.
    fn fill(&mut self, wanted: usize) -> io::Result<()> {
        let rest = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let wanted = wanted.min(rest);
        if self.buffer.len() >= wanted {
            return Ok(());
        }
        let length = wanted.max(self.chunk_bytes).min(rest);
        self.chunk_bytes = (self.chunk_bytes * 2).min(CHUNK_BYTES_MAX);
        let mut bytes = vec![0; length];
        let mut filled = self.buffer.len();
        bytes[..filled].copy_from_slice(&self.buffer);
        while filled < length {
            match self.file.read_at(&mut bytes[filled..], self.at + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(filled);
        self.buffer = Bytes::from(bytes);
        Ok(())
    }

    /// Returns the next frame, or the error in the bytes at [`FrameCursor::offset`]; `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Result<Option<RawFrame>, DecodeError>> {
        if self.at >= self.end {
            return Ok(Ok(None));
        }
        self.fill(HEADER_BYTES)?;
        let header = match decode_header(&self.buffer) {
            Ok(header) => header,
            Err(error) => return Ok(Err(error)),
        };
        self.fill(header.frame_bytes())?;
        Ok(decode_frame(&self.buffer).map(|(header, payload)| {
            let frame = RawFrame { offset: self.at, header, bytes: self.buffer.split_to(payload.end) };
            self.at = frame.end();
            Some(frame)
        }))
    }
}

/// Returns the offset of the first intact frame in `from..end` that `wanted` accepts, trying every byte offset.
pub(super) fn find_frame(
    file: &dyn File,
    from: u64,
    end: u64,
    mut wanted: impl FnMut(&FrameHeader) -> bool,
) -> io::Result<Option<(u64, FrameHeader)>> {
    let mut at = from;
    let mut window = vec![0; CHUNK_BYTES_MAX];
    while at + HEADER_BYTES as u64 <= end {
        let count = file.read_at(&mut window, at)?;
        let usable = count.min(usize::try_from(end - at).unwrap_or(usize::MAX));
        if usable < HEADER_BYTES {
            break;
        }
        for index in 0..=usable - HEADER_BYTES {
            if window[index] != b'G' {
                continue;
            }
            let Ok(header) = decode_header(&window[index..usable]) else { continue };
            let place = at + index as u64;
            if wanted(&header) && payload_is_intact(file, place, end, &header)? {
                return Ok(Some((place, header)));
            }
        }
        at += (usable - HEADER_BYTES + 1) as u64;
    }
    Ok(None)
}

fn payload_is_intact(file: &dyn File, place: u64, end: u64, header: &FrameHeader) -> io::Result<bool> {
    if place + header.frame_bytes() as u64 > end {
        return Ok(false);
    }
    let mut payload = vec![0; header.payload_bytes as usize];
    match gravwell_env::fs::read_exact_at(file, &mut payload, place + HEADER_BYTES as u64) {
        Ok(()) => Ok(crc32c::crc32c(&payload) == header.payload_crc),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns the offset after the last non-zero byte of `from..end`, or `from` if all bytes are zero.
pub(super) fn zeros_from(file: &dyn File, from: u64, end: u64) -> io::Result<u64> {
    let (mut at, mut last) = (from, from);
    let mut window = vec![0; CHUNK_BYTES_MAX];
    while at < end {
        let count = file.read_at(&mut window, at)?.min(usize::try_from(end - at).unwrap_or(usize::MAX));
        if count == 0 {
            break;
        }
        if let Some(index) = window[..count].iter().rposition(|byte| *byte != 0) {
            last = at + index as u64 + 1;
        }
        at += count as u64;
    }
    Ok(last)
}
