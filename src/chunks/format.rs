//! File names and byte layouts of packs, see `log-format.md`, *Chunk packs*.

use super::chunking::CHUNK_BYTES_MAX;
use gravwell_model::ChunkId;
use gravwell_model::codec::error::DecodeError;
use gravwell_model::codec::frame::array_at;

/// Version of all layouts in this module.
pub const FORMAT: u8 = 1;
/// Magic bytes at the start of a pack.
pub const PACK_MAGIC: [u8; 4] = *b"GCP1";
/// Magic bytes at the start of a frame.
pub const FRAME_MAGIC: [u8; 4] = *b"GCF1";
/// Magic bytes at the start of a pack index.
pub const TABLE_MAGIC: [u8; 4] = *b"GCX1";

/// Length of a pack header.
pub const PACK_HEADER_BYTES: usize = 32;
/// Offset of the format version, in every header.
pub const AT_FORMAT: usize = 4;
/// Offset of the pack number in a pack header.
pub const AT_PACK_NUMBER: usize = 8;
/// Offset of the creation time in a pack header.
pub const AT_PACK_CREATED: usize = 16;
/// Offset of the checksum in a pack header.
pub const AT_PACK_CRC: usize = 28;

/// Length of a frame header.
pub const FRAME_HEADER_BYTES: usize = 64;
/// Offset of the encoding in a frame header.
pub const AT_ENCODING: usize = 5;
/// Offset of the stored length in a frame header.
pub const AT_STORED: usize = 8;
/// Offset of the raw length in a frame header.
pub const AT_RAW: usize = 12;
/// Offset of the pack number in a frame header.
pub const AT_FRAME_PACK: usize = 16;
/// Offset of [`FrameHeader::durable`].
pub const AT_DURABLE: usize = 20;
/// Offset of the chunk ID in a frame header.
pub const AT_ID: usize = 24;
/// Offset of the checksum of the stored bytes.
pub const AT_STORED_CRC: usize = 56;
/// Offset of the checksum of the frame header.
pub const AT_FRAME_CRC: usize = 60;

/// Length of an index header, which precedes the rows.
pub const TABLE_HEADER_BYTES: usize = 32;
/// Offset of the number of rows.
pub const AT_COUNT: usize = 12;
/// Offset of [`Table::covered`].
pub const AT_COVERED: usize = 24;
/// Length of one row.
pub const ROW_BYTES: usize = 44;
/// Offset of the frame offset in a row.
pub const AT_ROW_OFFSET: usize = 32;
/// Offset of the stored length in a row.
pub const AT_ROW_STORED: usize = 36;
/// Offset of the raw length in a row.
pub const AT_ROW_RAW: usize = 40;
/// Length of the checksum that follows the rows.
pub const TABLE_CRC_BYTES: usize = 4;

/// Encoding of the stored bytes of a chunk. Values are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// The raw bytes.
    Raw = 0,
    /// One Zstandard frame.
    Zstd = 1,
}

/// Header of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackHeader {
    /// Pack number, as in the file name.
    pub number: u32,
    /// Creation time in milliseconds since 1970. The index repeats it to identify its pack.
    pub created_ms: u64,
}

/// Header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Encoding of the stored bytes.
    pub encoding: Encoding,
    /// Number of stored bytes that follow the header.
    pub stored: u32,
    /// Raw length of the chunk.
    pub raw: u32,
    /// Number of the pack that contains the frame.
    pub pack: u32,
    /// Number of bytes of the pack that were durable when the frame was written.
    pub durable: u32,
    /// ID of the chunk.
    pub id: ChunkId,
    /// CRC-32C of the stored bytes.
    pub stored_crc: u32,
}

/// One row of an index: the location of a chunk's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// ID of the chunk.
    pub id: ChunkId,
    /// Offset of its frame in the pack.
    pub offset: u32,
    /// Number of stored bytes that follow the frame header.
    pub stored: u32,
    /// Raw length of the chunk.
    pub raw: u32,
}

/// The index of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Header of the pack that the index describes.
    pub pack: PackHeader,
    /// Length of the pack prefix of which the index lists all frames. That prefix was durable when the index was written.
    pub covered: u64,
    /// Rows, ordered by offset.
    pub rows: Vec<Row>,
}

fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

fn put_crc(bytes: &mut [u8], at: usize) {
    let crc = crc32c::crc32c(&bytes[..at]);
    put(bytes, at, &crc.to_le_bytes());
}

/// Checks length, magic, checksum and version, in this order.
fn check(bytes: &[u8], what: &'static str, magic: [u8; 4], length: usize, at_crc: usize) -> Result<(), DecodeError> {
    if bytes.len() < length {
        return Err(DecodeError::new(what, 0, format_args!("{length} bytes"), bytes.len()));
    }
    if bytes[..4] != magic {
        let expected = String::from_utf8_lossy(&magic).into_owned();
        return Err(DecodeError::new(what, 0, expected, format_args!("{:02x?}", &bytes[..4])));
    }
    let (stored, computed) = (u32_at(bytes, at_crc), crc32c::crc32c(&bytes[..at_crc]));
    if stored != computed {
        return Err(DecodeError::checksum(what, 0, computed, stored));
    }
    if bytes[AT_FORMAT] != FORMAT {
        return Err(DecodeError::new(what, AT_FORMAT, FORMAT, bytes[AT_FORMAT]));
    }
    Ok(())
}

impl PackHeader {
    /// Encodes the header.
    #[must_use]
    pub fn encode(&self) -> [u8; PACK_HEADER_BYTES] {
        let mut bytes = [0; PACK_HEADER_BYTES];
        put(&mut bytes, 0, &PACK_MAGIC);
        bytes[AT_FORMAT] = FORMAT;
        put(&mut bytes, AT_PACK_NUMBER, &self.number.to_le_bytes());
        put(&mut bytes, AT_PACK_CREATED, &self.created_ms.to_le_bytes());
        put_crc(&mut bytes, AT_PACK_CRC);
        bytes
    }

    /// Inverse of [`PackHeader::encode`].
    ///
    /// # Errors
    /// If the input is too short, corrupt or of another version.
    pub fn decode(bytes: &[u8]) -> Result<PackHeader, DecodeError> {
        check(bytes, "header of a pack", PACK_MAGIC, PACK_HEADER_BYTES, AT_PACK_CRC)?;
        Ok(PackHeader { number: u32_at(bytes, AT_PACK_NUMBER), created_ms: u64_at(bytes, AT_PACK_CREATED) })
    }
}

impl FrameHeader {
    /// Encodes the header.
    #[must_use]
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        put(&mut bytes, 0, &FRAME_MAGIC);
        bytes[AT_FORMAT] = FORMAT;
        bytes[AT_ENCODING] = self.encoding as u8;
        put(&mut bytes, AT_STORED, &self.stored.to_le_bytes());
        put(&mut bytes, AT_RAW, &self.raw.to_le_bytes());
        put(&mut bytes, AT_FRAME_PACK, &self.pack.to_le_bytes());
        put(&mut bytes, AT_DURABLE, &self.durable.to_le_bytes());
        put(&mut bytes, AT_ID, &self.id.0);
        put(&mut bytes, AT_STORED_CRC, &self.stored_crc.to_le_bytes());
        put_crc(&mut bytes, AT_FRAME_CRC);
        bytes
    }

    /// Inverse of [`FrameHeader::encode`].
    ///
    /// # Errors
    /// If the input is too short, corrupt, of another version or contains a length out of range.
    pub fn decode(bytes: &[u8]) -> Result<FrameHeader, DecodeError> {
        check(bytes, "header of a frame", FRAME_MAGIC, FRAME_HEADER_BYTES, AT_FRAME_CRC)?;
        let encoding = match bytes[AT_ENCODING] {
            0 => Encoding::Raw,
            1 => Encoding::Zstd,
            found => return Err(DecodeError::new("encoding", AT_ENCODING, "0 or 1", found)),
        };
        let header = FrameHeader {
            encoding,
            stored: u32_at(bytes, AT_STORED),
            raw: u32_at(bytes, AT_RAW),
            pack: u32_at(bytes, AT_FRAME_PACK),
            durable: u32_at(bytes, AT_DURABLE),
            id: ChunkId(array_at(bytes, AT_ID)),
            stored_crc: u32_at(bytes, AT_STORED_CRC),
        };
        for (what, at, found) in [("stored length", AT_STORED, header.stored), ("raw length", AT_RAW, header.raw)] {
            if found as usize > CHUNK_BYTES_MAX {
                return Err(DecodeError::new(what, at, format_args!("at most {CHUNK_BYTES_MAX}"), found));
            }
        }
        Ok(header)
    }

    /// Returns the length of the header and the stored bytes.
    #[must_use]
    pub fn frame_bytes(&self) -> u64 {
        frame_bytes(self.stored)
    }
}

/// Returns the length of a frame with `stored` stored bytes.
#[must_use]
pub fn frame_bytes(stored: u32) -> u64 {
    FRAME_HEADER_BYTES as u64 + u64::from(stored)
}

impl Table {
    /// Encodes the index.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; TABLE_HEADER_BYTES];
        put(&mut bytes, 0, &TABLE_MAGIC);
        bytes[AT_FORMAT] = FORMAT;
        put(&mut bytes, AT_PACK_NUMBER, &self.pack.number.to_le_bytes());
        put(&mut bytes, AT_COUNT, &u32::try_from(self.rows.len()).unwrap_or(u32::MAX).to_le_bytes());
        put(&mut bytes, AT_PACK_CREATED, &self.pack.created_ms.to_le_bytes());
        put(&mut bytes, AT_COVERED, &self.covered.to_le_bytes());
        bytes.reserve(self.rows.len() * ROW_BYTES + TABLE_CRC_BYTES);
        for row in &self.rows {
            bytes.extend_from_slice(&row.id.0);
            [row.offset, row.stored, row.raw].iter().for_each(|field| bytes.extend_from_slice(&field.to_le_bytes()));
        }
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Inverse of [`Table::encode`].
    ///
    /// # Errors
    /// If the input is not exactly one index, is corrupt or is of another version.
    pub fn decode(bytes: &[u8]) -> Result<Table, DecodeError> {
        let what = "index of a pack";
        let least = TABLE_HEADER_BYTES + TABLE_CRC_BYTES;
        check(bytes, what, TABLE_MAGIC, least, bytes.len().saturating_sub(TABLE_CRC_BYTES))?;
        let count = u32_at(bytes, AT_COUNT) as usize;
        let expected = count.checked_mul(ROW_BYTES).map(|rows| rows + least);
        if expected != Some(bytes.len()) {
            return Err(DecodeError::new(what, AT_COUNT, format_args!("{expected:?} bytes"), bytes.len()));
        }
        let rows = bytes[TABLE_HEADER_BYTES..bytes.len() - TABLE_CRC_BYTES].chunks_exact(ROW_BYTES);
        let row = |row: &[u8]| Row {
            id: ChunkId(array_at(row, 0)),
            offset: u32_at(row, AT_ROW_OFFSET),
            stored: u32_at(row, AT_ROW_STORED),
            raw: u32_at(row, AT_ROW_RAW),
        };
        Ok(Table {
            pack: PackHeader { number: u32_at(bytes, AT_PACK_NUMBER), created_ms: u64_at(bytes, AT_PACK_CREATED) },
            covered: u64_at(bytes, AT_COVERED),
            rows: rows.map(row).collect(),
        })
    }
}

/// Returns the file name of a pack.
#[must_use]
pub fn pack_name(number: u32) -> String {
    format!("pack-{number:010}.chunks")
}

/// Returns the file name of a pack index.
#[must_use]
pub fn table_name(number: u32) -> String {
    format!("pack-{number:010}.index")
}

/// File of a store, as recognized by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// A pack with its number.
    Pack(u32),
    /// The index of the pack with this number.
    Table(u32),
}

impl Name {
    /// Parses a file name; returns `None` if it is not the name of a pack or an index.
    #[must_use]
    pub fn parse(name: &str) -> Option<Name> {
        let (digits, extension) = name.strip_prefix("pack-")?.split_once('.')?;
        let number =
            (digits.len() == 10 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok());
        match (extension, number.flatten()?) {
            ("chunks", number) => Some(Name::Pack(number)),
            ("index", number) => Some(Name::Table(number)),
            _ => None,
        }
    }
}
