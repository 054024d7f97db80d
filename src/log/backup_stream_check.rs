//! Checks a copied segment while its bytes arrive: every checksum, the order, the chain from its header to its last
//! record, the footer.
//!
//! A check can resume from the beginning of an earlier copy. That beginning is identified by its hash ([`PieceSum`])
//! and by the state of the check at its end ([`Standing`]), so a copy that has only grown is verified completely
//! without being sent again from the start.

use bytes::{Buf, BytesMut};
use serde::{Deserialize, Serialize};

use super::cursor::RawFrame;
use super::directory::SegmentName;
use super::error::Damage;
use super::format::{FOOTER_BYTES, FileHeader, Footer, HEADER_BYTES};
use super::segment::{Scan, check_footer, hex};
use gravwell_model::Seq;
use gravwell_model::codec::error::DecodeError;
use gravwell_model::codec::frame::{self, decode_frame, decode_header};

/// Copies are divided into pieces of this size, from the beginning of each file.
pub const PIECE_BYTES: u64 = 1 << 20;

/// Hash of consecutive whole pieces: 32 zero bytes for no piece, then BLAKE3 of the hash so far and the BLAKE3 hash of
/// the next piece.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PieceSum([u8; 32]);

impl PieceSum {
    /// Adds the next piece.
    pub fn add(&mut self, piece: &[u8]) {
        self.add_hash(&blake3::hash(piece));
    }

    fn add_hash(&mut self, piece: &blake3::Hash) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0).update(piece.as_bytes());
        self.0 = *hasher.finalize().as_bytes();
    }

    /// Returns the hash as hexadecimal digits.
    #[must_use]
    pub fn text(&self) -> String {
        hex(&self.0)
    }
}

fn bytes_of<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes().chunks(2);
    let bytes = digits.map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()));
    bytes.collect::<Option<Vec<u8>>>()?.try_into().ok()
}

/// State of the check of an open segment at the end of its whole pieces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Number of bytes in the whole pieces.
    pub bytes: u64,
    /// [`PieceSum`] of the whole pieces.
    pub sum: String,
    /// The file header, in hexadecimal.
    pub header: String,
    /// End of the last frame that is completely inside the whole pieces.
    pub at: u64,
    /// Number of frames up to `at`.
    pub count: u64,
    /// Sequence of the last of these frames.
    pub last: Seq,
    /// Chain value at `last`, in hexadecimal.
    pub chain: String,
}

/// Result of the check of a whole segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Last sequence that the segment covers.
    pub last: Seq,
    /// Chain value of the log before the first sequence of the segment, in hexadecimal.
    pub before: String,
    /// Chain value of the log at `last`, in hexadecimal.
    pub after: String,
    /// State from which the check of an open segment can be resumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standing: Option<Standing>,
}

/// A check that has finished without damage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The result of the check.
    pub checked: Checked,
    /// Hash of the file header; compare [`super::backup_stream::SegmentCopy::header`].
    pub header: String,
    /// Hash of header and footer; compare [`super::backup_stream::SegmentCopy::mark`].
    pub mark: String,
}

/// Checks one segment while its bytes arrive; see the module documentation.
pub struct SegmentCheck {
    name: String,
    is_open: bool,
    frames_end: u64,
    /// Number of bytes received.
    read: u64,
    header: Option<FileHeader>,
    scan: Scan,
    /// Received bytes of the next, still incomplete structure.
    buffer: BytesMut,
    sum: PieceSum,
    piece: blake3::Hasher,
    standing: Option<Standing>,
}

impl SegmentCheck {
    /// Creates the check of a file with this name and length.
    #[must_use]
    pub fn new(name: &str, bytes: u64, is_open: bool) -> SegmentCheck {
        let footer = if is_open { 0 } else { FOOTER_BYTES as u64 };
        SegmentCheck {
            name: name.to_owned(),
            is_open,
            frames_end: bytes.saturating_sub(footer).max(HEADER_BYTES as u64),
            read: 0,
            header: None,
            scan: Scan::default(),
            buffer: BytesMut::new(),
            sum: PieceSum::default(),
            piece: blake3::Hasher::new(),
            standing: None,
        }
    }

    /// Resumes where the check of an earlier copy stopped; `rest` contains the bytes from [`Standing::at`] to
    /// [`Standing::bytes`]. Returns `None` if `standing` is malformed or does not match `rest`.
    #[must_use]
    pub fn resume(name: &str, bytes: u64, is_open: bool, standing: &Standing, rest: &[u8]) -> Option<SegmentCheck> {
        let header = FileHeader::decode(&bytes_of::<HEADER_BYTES>(&standing.header)?).ok()?;
        if standing.at.checked_add(rest.len() as u64) != Some(standing.bytes)
            || !standing.bytes.is_multiple_of(PIECE_BYTES)
        {
            return None;
        }
        let (count, last, chain) = (standing.count, standing.last, bytes_of(&standing.chain)?);
        Some(SegmentCheck {
            read: standing.bytes,
            header: Some(header),
            scan: Scan { count, last, chain, end: standing.at, ..Scan::new(&header) },
            buffer: BytesMut::from(rest),
            sum: PieceSum(bytes_of(&standing.sum)?),
            standing: Some(standing.clone()),
            ..SegmentCheck::new(name, bytes, is_open)
        })
    }

    /// Checks the next bytes of the file.
    ///
    /// # Errors
    /// If the bytes are damaged.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), Damage> {
        while !bytes.is_empty() {
            let to_end = usize::try_from(PIECE_BYTES - self.read % PIECE_BYTES).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(to_end.min(bytes.len()));
            self.piece.update(now);
            self.buffer.extend_from_slice(now);
            self.read += now.len() as u64;
            self.advance().map_err(|(at, error)| Damage::decode(&self.name, at, &error))?;
            if self.read.is_multiple_of(PIECE_BYTES) {
                self.sum.add_hash(&self.piece.finalize());
                self.piece.reset();
                self.standing = self.stands();
            }
            bytes = later;
        }
        Ok(())
    }

    fn stands(&self) -> Option<Standing> {
        let header = self.header.filter(|header| self.is_open && !header.is_compacted())?;
        let Scan { end: at, count, last, chain, .. } = self.scan;
        let (sum, header, chain) = (self.sum.text(), hex(&header.encode()), hex(&chain));
        Some(Standing { bytes: self.read, sum, header, at, count, last, chain })
    }

    /// Checks every structure that has arrived completely.
    fn advance(&mut self) -> Result<(), (u64, DecodeError)> {
        let header = match self.header {
            Some(header) => header,
            None if self.buffer.len() < HEADER_BYTES => return Ok(()),
            None => {
                let header = FileHeader::decode(&self.buffer).map_err(|error| (0, error))?;
                self.buffer.advance(HEADER_BYTES);
                self.scan = Scan::new(&header);
                *self.header.insert(header)
            }
        };
        while self.scan.end < self.frames_end {
            let (at, rest) = (self.scan.end, self.frames_end - self.scan.end);
            let there = self.buffer.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
            if there < frame::HEADER_BYTES && (there as u64) < rest {
                return Ok(());
            }
            let length = decode_header(&self.buffer[..there]).map_err(|error| (at, error))?.frame_bytes();
            if length > there && (there as u64) < rest {
                return Ok(());
            }
            let (header_of, payload) = decode_frame(&self.buffer[..there]).map_err(|error| (at, error))?;
            let bytes = self.buffer.split_to(payload.end).freeze();
            let raw = RawFrame { offset: at, header: header_of, bytes };
            self.scan.take(&raw, header.is_compacted(), true).map_err(|error| (at, error))?;
        }
        Ok(())
    }

    /// Checks the end of the file after every byte was received.
    ///
    /// # Errors
    /// If the file is damaged or incomplete.
    pub fn finish(self) -> Result<Ended, Damage> {
        let name = self.name.as_str();
        let wrong = |at: u64, what: &str, expected: &dyn std::fmt::Display, found: &dyn std::fmt::Display| {
            Err(Damage::new(name, at, what, expected, found))
        };
        let Some(header) = self.header else { return wrong(0, "file header", &HEADER_BYTES, &self.read) };
        let scan = &self.scan;
        if scan.end != self.frames_end {
            return wrong(scan.end, "length of the frames", &self.frames_end, &scan.end);
        }
        let named = SegmentName::parse(name);
        if named.is_none_or(|named| named.first != header.first || named.last.is_none() != self.is_open) {
            return wrong(0, "file header: first sequence", &name, &header.first);
        }
        let (before, encoded) = (hex(&header.chain_before), header.encode());
        let hash = super::backup_stream::short_hash(&[&encoded]);
        if self.is_open {
            if !self.buffer.is_empty() {
                return wrong(scan.end, "end of file", &scan.end, &self.read);
            }
            let checked = Checked { last: scan.last, before, after: hex(&scan.chain), standing: self.standing };
            return Ok(Ended { checked, header: hash, mark: String::new() });
        }
        let footer = Footer::decode(&self.buffer).map_err(|error| Damage::decode(name, self.frames_end, &error))?;
        let frames_bytes = self.frames_end - HEADER_BYTES as u64;
        if footer.frames_bytes != frames_bytes || self.buffer.len() != FOOTER_BYTES {
            return wrong(self.frames_end, "footer: length", &frames_bytes, &footer.frames_bytes);
        }
        if named.and_then(|named| named.last) != Some(footer.last) {
            return wrong(self.frames_end, "footer: last sequence", &name, &footer.last);
        }
        if let Some(damage) = check_footer(name, &header, &footer, scan) {
            return Err(damage);
        }
        let mark = super::backup_stream::short_hash(&[&encoded, &footer.encode()]);
        let checked = Checked { last: footer.last, before, after: hex(&footer.chain_after), standing: None };
        Ok(Ended { checked, header: hash, mark })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Log;
    use super::super::backup_stream::SegmentCopy;
    use super::super::tests::{entry, fill, open, options, put};
    use super::*;
    use gravwell_env::memory_fs::MemoryFs;

    fn read(segment: &SegmentCopy) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(segment.bytes).expect("fits")];
        segment.read(&mut bytes, 0).expect("reads");
        bytes
    }

    fn check(segment: &SegmentCopy, bytes: &[u8], step: usize) -> Result<Ended, Damage> {
        let mut check = SegmentCheck::new(&segment.name, bytes.len() as u64, segment.mark.is_empty());
        bytes.chunks(step).try_for_each(|bytes| check.push(bytes))?;
        check.finish()
    }

    /// Appends records of 100 KB.
    fn append(log: &mut Log, count: u64, letter: u8) {
        for seq in (log.head().0.0 + 1..).take(usize::try_from(count).expect("fits")) {
            log.append(&[entry(seq, vec![put(&format!("k{seq}"), vec![letter; 100_000])])]).expect("appends");
            log.sync().expect("syncs");
        }
    }

    #[test]
    fn p10_a_copy_is_checked_whole_and_any_byte_that_differs_is_found() {
        let fs = MemoryFs::new();
        let (mut log, _) = open(&fs, options(4096)).expect("creates");
        fill(&mut log, 150);
        let segments = log.reader().copy().segments;
        assert!(segments.len() > 2);
        let mut before: Option<String> = None;
        for segment in &segments {
            let bytes = read(segment);
            for step in [1, 95, 97, 4096] {
                let ended = check(segment, &bytes, step).expect("is valid");
                assert_eq!((&ended.header, &ended.mark), (&segment.header, &segment.mark), "{}", segment.name);
                assert!(before.iter().all(|before| *before == ended.checked.before));
            }
            before = Some(check(segment, &bytes, 4096).expect("is valid").checked.after);
            for at in 0..bytes.len() {
                let mut bad = bytes.clone();
                bad[at] ^= 1;
                assert!(check(segment, &bad, 512).is_err(), "{}, byte {at}", segment.name);
            }
            for length in [0, 50, 96, 97, bytes.len() - 1] {
                let is_empty_log = length == 96 && segment.mark.is_empty();
                assert_eq!(check(segment, &bytes[..length], 512).is_err(), !is_empty_log, "cut at {length}");
            }
        }
        assert_eq!(before, Some(hex(&log.head().1)));
    }

    #[test]
    fn p10_a_check_goes_on_where_an_earlier_one_stood_and_only_behind_the_same_bytes() {
        let fs = MemoryFs::new();
        let (mut log, _) = open(&fs, options(64 << 20)).expect("creates");
        append(&mut log, 15, b'a');
        let earlier = log.reader().copy().segments.remove(0);
        let standing = check(&earlier, &read(&earlier), 70_000).expect("is valid").checked.standing.expect("stands");
        assert_eq!(standing.bytes, PIECE_BYTES);
        assert_eq!(earlier.sum(standing.bytes).expect("reads"), standing.sum);
        append(&mut log, 20, b'b');
        let later = log.reader().copy().segments.remove(0);
        let bytes = read(&later);
        let [at, whole] = [standing.at, standing.bytes].map(|at| usize::try_from(at).expect("fits"));
        let resume = |rest: &[u8], sent: &[u8]| {
            let mut check = SegmentCheck::resume(&later.name, later.bytes, true, &standing, rest)?;
            let pushed = sent.chunks(300_000).try_for_each(|bytes| check.push(bytes));
            Some(pushed.and_then(|()| check.finish()))
        };
        let resumed = resume(&bytes[at..whole], &bytes[whole..]).expect("fits").expect("is valid");
        assert_eq!(resumed, check(&later, &bytes, 1 << 20).expect("is valid"));
        assert_eq!(resumed.checked.standing.expect("stands").bytes, 3 * PIECE_BYTES);
        assert!(resume(&bytes[at + 1..whole], &bytes[whole..]).is_none());

        // Another history with the same header: neither its remaining bytes nor its end may continue this check.
        let other = MemoryFs::new();
        let (mut log, _) = open(&other, options(64 << 20)).expect("creates");
        append(&mut log, 12, b'x');
        append(&mut log, 23, b'b');
        let other = log.reader().copy().segments.remove(0);
        assert_ne!(other.sum(standing.bytes).expect("reads"), standing.sum);
        let foreign = read(&other);
        assert!(resume(&bytes[at..whole], &foreign[whole..]).expect("fits").is_err());
        let mut wrong = bytes[at..whole].to_vec();
        wrong[0] ^= 1;
        assert!(resume(&wrong, &bytes[whole..]).expect("fits").is_err());
    }
}
