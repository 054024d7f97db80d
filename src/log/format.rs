//! Layouts of all on-disk structures except the record frame: file header, footer, head slot. See `log-format.md`.
//!
//! Pure conversions between bytes and structures. Every structure ends in a CRC-32C over all its preceding bytes,
//! padding included, so every flipped bit is detected.

use gravwell_model::codec::error::DecodeError;
use gravwell_model::codec::frame::array_at;
use gravwell_model::{Chain, Digest, Generation, Lineage, LineageEntry, LogId, Seq};

/// Magic number at the start of a segment or journal file.
pub const HEADER_MAGIC: [u8; 4] = *b"GLS1";
/// Magic number at the start of a footer.
pub const FOOTER_MAGIC: [u8; 4] = *b"GLF1";
/// Magic number at the start of a head slot.
pub const HEAD_MAGIC: [u8; 4] = *b"GLH1";
/// Version of all layouts here, except where [`WIDE`] applies.
pub const FORMAT: u8 = 1;
/// Version of file headers and head slots that contain a generation of more than 32 bits. All others are written in
/// the first version, so that earlier programs can read a log that was never restored.
pub const WIDE: u8 = 2;

/// Length of a file header in bytes.
pub const HEADER_BYTES: usize = 96;
/// Length of a footer in bytes.
pub const FOOTER_BYTES: usize = 128;
/// Length of a head slot in bytes; the head file has two.
pub const SLOT_BYTES: usize = 4096;
/// Maximum number of generations of a log.
pub const LINEAGE_MAX: usize = (AT_SLOT_CRC - AT_SLOT_LINEAGE) / WIDE_ENTRY_BYTES;
/// Maximum number of generations in a head slot of the first version.
pub const NARROW_LINEAGE_MAX: usize = (AT_SLOT_CRC - AT_SLOT_LINEAGE) / NARROW_ENTRY_BYTES;
const NARROW_ENTRY_BYTES: usize = 12;
const WIDE_ENTRY_BYTES: usize = 16;

/// Flag of a file header: a compacted segment.
pub const FLAG_COMPACTED: u16 = 1;
/// Flag of a file header: a journal, not a segment.
pub const FLAG_JOURNAL: u16 = 2;
/// Flag of a file header: a journal that has a head file.
pub const FLAG_HEADED: u16 = 4;
/// Flag of a file header: a segment of a log whose oldest segments are removed whole.
pub const FLAG_TRIMMED: u16 = 8;

/// File header: version.
pub const AT_FORMAT: usize = 4;
/// File header: flags.
pub const AT_FLAGS: usize = 6;
/// File header: log id.
pub const AT_LOG_ID: usize = 8;
/// File header: generation, 4 bytes, or 8 in the second version.
pub const AT_GENERATION: usize = 24;
/// File header: first sequence covered.
pub const AT_FIRST: usize = 32;
/// File header: last sequence covered, 0 if not yet known.
pub const AT_COVERED_LAST: usize = 40;
/// File header: chain before the first sequence.
pub const AT_CHAIN_BEFORE: usize = 48;
/// File header: checksum.
pub const AT_HEADER_CRC: usize = 92;

/// Footer: number of frames.
pub const AT_COUNT: usize = 8;
/// Footer: last sequence covered.
pub const AT_LAST: usize = 16;
/// Footer: chain of the last frame of the file.
pub const AT_FRAME_CHAIN: usize = 24;
/// Footer: chain of the log at the last sequence.
pub const AT_CHAIN_AFTER: usize = 40;
/// Footer: commit time of the first frame.
pub const AT_TIME_FIRST: usize = 56;
/// Footer: commit time of the last frame.
pub const AT_TIME_LAST: usize = 64;
/// Footer: bytes of all frames.
pub const AT_FRAMES_BYTES: usize = 72;
/// Footer: sum of the digests of the live objects, compacted segments only.
pub const AT_DIGEST: usize = 80;
/// Footer: one more than the sequence after which the deletions are complete; 0 if deletions may be missing up to the end.
pub const AT_DELETIONS: usize = 112;
/// Footer: checksum.
pub const AT_FOOTER_CRC: usize = 124;

/// Head slot: write counter.
pub const AT_SLOT_COUNTER: usize = 8;
/// Head slot: log id.
pub const AT_SLOT_LOG_ID: usize = 16;
/// Head slot of the first version: generation, 4 bytes.
pub const AT_SLOT_GENERATION: usize = 32;
/// Head slot: number of lineage entries.
pub const AT_SLOT_LINEAGE_COUNT: usize = 36;
/// Head slot: a durable sequence.
pub const AT_SLOT_SEQ: usize = 40;
/// Head slot: chain at that sequence.
pub const AT_SLOT_CHAIN: usize = 48;
/// Head slot: horizon.
pub const AT_SLOT_HORIZON: usize = 64;
/// Head slot of the second version: generation, 8 bytes.
pub const AT_SLOT_WIDE_GENERATION: usize = 72;
/// Head slot: lineage, 12 bytes per entry, or 16 in the second version.
pub const AT_SLOT_LINEAGE: usize = 96;
/// Head slot: checksum.
pub const AT_SLOT_CRC: usize = SLOT_BYTES - 4;

fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

fn put_crc(bytes: &mut [u8], at: usize) {
    let crc = crc32c::crc32c(&bytes[..at]);
    put(bytes, at, &crc.to_le_bytes());
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

/// Checks length, magic, checksum and version, in that order. Returns the version.
fn check(bytes: &[u8], what: &'static str, magic: [u8; 4], length: usize, versions: &[u8]) -> Result<u8, DecodeError> {
    if bytes.len() < length {
        return Err(DecodeError::new(what, 0, format_args!("{length} bytes"), bytes.len()));
    }
    if bytes[..4] != magic {
        return Err(DecodeError::new(what, 0, format_args!("{magic:02x?}"), format_args!("{:02x?}", &bytes[..4])));
    }
    let at = length - 4;
    let (computed, stored) = (crc32c::crc32c(&bytes[..at]), u32_at(bytes, at));
    if computed != stored {
        return Err(DecodeError::checksum(what, 0, computed, stored));
    }
    if !versions.contains(&bytes[AT_FORMAT]) {
        return Err(DecodeError::new(what, AT_FORMAT, format_args!("format {versions:?}"), bytes[AT_FORMAT]));
    }
    Ok(bytes[AT_FORMAT])
}

fn wide_generation(bytes: &[u8], what: &'static str, at: usize) -> Result<Generation, DecodeError> {
    let number = u64_at(bytes, at);
    Generation::try_from(number)
        .map_err(|_| DecodeError::new(what, at, format_args!("generation up to {}", Generation::MAX), number))
}

fn narrow_generation(bytes: &[u8], at: usize) -> Generation {
    Generation(u64::from(u32_at(bytes, at)))
}

/// Header of a segment or journal file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileHeader {
    /// See [`FLAG_COMPACTED`], [`FLAG_JOURNAL`], [`FLAG_TRIMMED`].
    pub flags: u16,
    /// The log to which the file belongs.
    pub log_id: LogId,
    /// Generation in which the file was started.
    pub generation: Generation,
    /// First sequence covered.
    pub first: Seq,
    /// Last sequence covered; 0 for a file that is not compacted (the footer has it).
    pub covered_last: Seq,
    /// Chain value of the log before `first`.
    pub chain_before: Chain,
}

impl FileHeader {
    /// Returns whether the file is a compacted segment, in which records may be missing.
    #[must_use]
    pub fn is_compacted(&self) -> bool {
        self.flags & FLAG_COMPACTED != 0
    }

    /// Encodes the header.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        put(&mut bytes, 0, &HEADER_MAGIC);
        bytes[AT_FORMAT] = if self.generation.narrow().is_some() { FORMAT } else { WIDE };
        put(&mut bytes, AT_FLAGS, &self.flags.to_le_bytes());
        put(&mut bytes, AT_LOG_ID, &self.log_id.0);
        put(&mut bytes, AT_GENERATION, &self.generation.0.to_le_bytes());
        put(&mut bytes, AT_FIRST, &self.first.0.to_le_bytes());
        put(&mut bytes, AT_COVERED_LAST, &self.covered_last.0.to_le_bytes());
        put(&mut bytes, AT_CHAIN_BEFORE, &self.chain_before);
        put_crc(&mut bytes, AT_HEADER_CRC);
        bytes
    }

    /// Inverse of [`FileHeader::encode`].
    ///
    /// # Errors
    /// If the bytes are too few, damaged or of an unknown version.
    pub fn decode(bytes: &[u8]) -> Result<FileHeader, DecodeError> {
        let generation = match check(bytes, "file header", HEADER_MAGIC, HEADER_BYTES, &[FORMAT, WIDE])? {
            WIDE => wide_generation(bytes, "file header", AT_GENERATION)?,
            _ => narrow_generation(bytes, AT_GENERATION),
        };
        Ok(FileHeader {
            flags: u16::from_le_bytes(array_at(bytes, AT_FLAGS)),
            log_id: LogId(array_at(bytes, AT_LOG_ID)),
            generation,
            first: Seq(u64_at(bytes, AT_FIRST)),
            covered_last: Seq(u64_at(bytes, AT_COVERED_LAST)),
            chain_before: array_at(bytes, AT_CHAIN_BEFORE),
        })
    }
}

/// Footer of a sealed segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footer {
    /// Number of frames.
    pub count: u64,
    /// Last sequence covered.
    pub last: Seq,
    /// Chain field of the last frame; the header's `chain_before` if there is no frame.
    pub frame_chain: Chain,
    /// Chain value of the log at `last`; equals `frame_chain` unless the segment is compacted.
    pub chain_after: Chain,
    /// Commit time of the first frame; 0 if there is none.
    pub time_first: u64,
    /// Commit time of the last frame; 0 if there is none.
    pub time_last: u64,
    /// Total bytes of all frames.
    pub frames_bytes: u64,
    /// Sum of `Digest::of_object` over the puts kept by compaction; zero in other segments.
    pub digest: Digest,
    /// Compacted segments: the segment contains every deletion of an absent object after this sequence. `None` if any
    /// deletion may be missing, as in segments of earlier versions.
    pub deletions_after: Option<Seq>,
}

impl Footer {
    /// Encodes the footer.
    #[must_use]
    pub fn encode(&self) -> [u8; FOOTER_BYTES] {
        let mut bytes = [0; FOOTER_BYTES];
        put(&mut bytes, 0, &FOOTER_MAGIC);
        bytes[AT_FORMAT] = FORMAT;
        put(&mut bytes, AT_COUNT, &self.count.to_le_bytes());
        put(&mut bytes, AT_LAST, &self.last.0.to_le_bytes());
        put(&mut bytes, AT_FRAME_CHAIN, &self.frame_chain);
        put(&mut bytes, AT_CHAIN_AFTER, &self.chain_after);
        put(&mut bytes, AT_TIME_FIRST, &self.time_first.to_le_bytes());
        put(&mut bytes, AT_TIME_LAST, &self.time_last.to_le_bytes());
        put(&mut bytes, AT_FRAMES_BYTES, &self.frames_bytes.to_le_bytes());
        put(&mut bytes, AT_DIGEST, &self.digest.to_bytes());
        let deletions = self.deletions_after.map_or(0, |after| after.0.saturating_add(1));
        put(&mut bytes, AT_DELETIONS, &deletions.to_le_bytes());
        put_crc(&mut bytes, AT_FOOTER_CRC);
        bytes
    }

    /// Inverse of [`Footer::encode`].
    ///
    /// # Errors
    /// If the bytes are too few, damaged or of an unknown version.
    pub fn decode(bytes: &[u8]) -> Result<Footer, DecodeError> {
        check(bytes, "footer", FOOTER_MAGIC, FOOTER_BYTES, &[FORMAT])?;
        Ok(Footer {
            count: u64_at(bytes, AT_COUNT),
            last: Seq(u64_at(bytes, AT_LAST)),
            frame_chain: array_at(bytes, AT_FRAME_CHAIN),
            chain_after: array_at(bytes, AT_CHAIN_AFTER),
            time_first: u64_at(bytes, AT_TIME_FIRST),
            time_last: u64_at(bytes, AT_TIME_LAST),
            frames_bytes: u64_at(bytes, AT_FRAMES_BYTES),
            digest: Digest::from_bytes(array_at(bytes, AT_DIGEST)),
            deletions_after: u64_at(bytes, AT_DELETIONS).checked_sub(1).map(Seq),
        })
    }
}

/// One slot of the head file: the position known to be durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeadSlot {
    /// Increases with every write; of two valid slots the one with the higher counter is current.
    pub counter: u64,
    /// The log to which the slot belongs.
    pub log_id: LogId,
    /// Generation of the log.
    pub generation: Generation,
    /// Durable sequence: every record up to it is on the disk.
    pub seq: Seq,
    /// Chain value at `seq`.
    pub chain: Chain,
    /// Records up to this sequence may be compacted.
    pub horizon: Seq,
    /// Descent of the generations.
    pub lineage: Lineage,
}

impl HeadSlot {
    /// Returns whether every generation of the slot fits into 32 bits.
    fn is_narrow(&self) -> bool {
        self.generation.narrow().is_some() && self.lineage.iter().all(|entry| entry.generation.narrow().is_some())
    }

    /// Encodes the slot. Lineage entries past [`LINEAGE_MAX`] do not fit; writers reject them beforehand.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let is_narrow = self.is_narrow();
        let mut bytes = vec![0; SLOT_BYTES];
        put(&mut bytes, 0, &HEAD_MAGIC);
        bytes[AT_FORMAT] = if is_narrow { FORMAT } else { WIDE };
        put(&mut bytes, AT_SLOT_COUNTER, &self.counter.to_le_bytes());
        put(&mut bytes, AT_SLOT_LOG_ID, &self.log_id.0);
        put(&mut bytes, AT_SLOT_SEQ, &self.seq.0.to_le_bytes());
        put(&mut bytes, AT_SLOT_CHAIN, &self.chain);
        put(&mut bytes, AT_SLOT_HORIZON, &self.horizon.0.to_le_bytes());
        // Numbers are little-endian, so a narrow one is the first half of a wide one.
        let (at, width, most) = match is_narrow {
            true => (AT_SLOT_GENERATION, 4, NARROW_LINEAGE_MAX),
            false => (AT_SLOT_WIDE_GENERATION, 8, LINEAGE_MAX),
        };
        put(&mut bytes, at, &self.generation.0.to_le_bytes()[..width]);
        let mut count = 0u32;
        for (entry, at) in self.lineage.iter().zip((AT_SLOT_LINEAGE..).step_by(width + 8)).take(most) {
            put(&mut bytes, at, &entry.generation.0.to_le_bytes()[..width]);
            put(&mut bytes, at + width, &entry.shared_to.0.to_le_bytes());
            count += 1;
        }
        put(&mut bytes, AT_SLOT_LINEAGE_COUNT, &count.to_le_bytes());
        put_crc(&mut bytes, AT_SLOT_CRC);
        bytes
    }

    /// Inverse of [`HeadSlot::encode`].
    ///
    /// # Errors
    /// If the bytes are too few, damaged or of an unknown version.
    pub fn decode(bytes: &[u8]) -> Result<HeadSlot, DecodeError> {
        let what = "head slot";
        let is_wide = check(bytes, what, HEAD_MAGIC, SLOT_BYTES, &[FORMAT, WIDE])? == WIDE;
        let (at, entry_bytes, most) = match is_wide {
            true => (AT_SLOT_WIDE_GENERATION, WIDE_ENTRY_BYTES, LINEAGE_MAX),
            false => (AT_SLOT_GENERATION, NARROW_ENTRY_BYTES, NARROW_LINEAGE_MAX),
        };
        let count = u32_at(bytes, AT_SLOT_LINEAGE_COUNT) as usize;
        if count > most {
            let expected = format!("at most {most}");
            return Err(DecodeError::new("lineage count", AT_SLOT_LINEAGE_COUNT, expected, count));
        }
        let generation = |at| match is_wide {
            true => wide_generation(bytes, what, at),
            false => Ok(narrow_generation(bytes, at)),
        };
        let entry = |at| {
            let shared_to = Seq(u64_at(bytes, at + entry_bytes - 8));
            Ok(LineageEntry { generation: generation(at)?, shared_to })
        };
        Ok(HeadSlot {
            counter: u64_at(bytes, AT_SLOT_COUNTER),
            log_id: LogId(array_at(bytes, AT_SLOT_LOG_ID)),
            generation: generation(at)?,
            seq: Seq(u64_at(bytes, AT_SLOT_SEQ)),
            chain: array_at(bytes, AT_SLOT_CHAIN),
            horizon: Seq(u64_at(bytes, AT_SLOT_HORIZON)),
            lineage: (0..count)
                .map(|i| entry(AT_SLOT_LINEAGE + entry_bytes * i))
                .collect::<Result<_, DecodeError>>()?,
        })
    }
}
