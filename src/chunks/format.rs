//! Bytes and names of the files of packs, see `log-format.md`, *Chunk packs*.

use super::cut::CHUNK_BYTES_MAX;
use crate::codec::error::DecodeError;
use crate::codec::frame::array_at;
use crate::model::ChunkId;

/// Version of all layouts here.
pub const FORMAT: u8 = 1;
/// First bytes of a pack.
pub const PACK_MAGIC: [u8; 4] = *b"GCP1";
/// First bytes of a frame.
pub const FRAME_MAGIC: [u8; 4] = *b"GCF1";
/// First bytes of the index of a pack.
pub const TABLE_MAGIC: [u8; 4] = *b"GCX1";

/// Bytes of a pack's header.
pub const PACK_HEADER_BYTES: usize = 32;
/// Offset of the version, in every header.
pub const AT_FORMAT: usize = 4;
/// Offset of a pack's number.
pub const AT_PACK_NUMBER: usize = 8;
/// Offset of a pack's time of making.
pub const AT_PACK_CREATED: usize = 16;
/// Offset of the checksum.
pub const AT_PACK_CRC: usize = 28;

/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 64;
/// Offset of the encoding.
pub const AT_ENCODING: usize = 5;
/// Offset of the stored length.
pub const AT_STORED: usize = 8;
/// Offset of the raw length.
pub const AT_RAW: usize = 12;
/// Offset of the pack's number.
pub const AT_FRAME_PACK: usize = 16;
/// Offset of what was durable when the frame was written.
pub const AT_DURABLE: usize = 20;
/// Offset of the chunk's name.
pub const AT_ID: usize = 24;
/// Offset of the checksum of what is stored.
pub const AT_STORED_CRC: usize = 56;
/// Offset of the header's checksum.
pub const AT_FRAME_CRC: usize = 60;

/// Bytes of an index before its rows.
pub const TABLE_HEADER_BYTES: usize = 32;
/// Offset of the number of rows.
pub const AT_COUNT: usize = 12;
/// Offset of how many bytes of the pack the index covers.
pub const AT_COVERED: usize = 24;
/// Bytes of one row.
pub const ROW_BYTES: usize = 44;
/// Offset in a row of the frame's place.
pub const AT_ROW_OFFSET: usize = 32;
/// Offset in a row of the stored length.
pub const AT_ROW_STORED: usize = 36;
/// Offset in a row of the raw length.
pub const AT_ROW_RAW: usize = 40;
/// Bytes of the checksum behind the rows.
pub const TABLE_CRC_BYTES: usize = 4;

/// How the bytes of a chunk are stored. Numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As they are.
    Raw = 0,
    /// One Zstandard frame.
    Zstd = 1,
}

/// Header of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackHeader {
    /// The number in its name.
    pub number: u32,
    /// When it was made, in milliseconds since 1970; ties the index to it.
    pub created_ms: u64,
}

/// Header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// How the chunk is stored.
    pub encoding: Encoding,
    /// Stored bytes behind the header.
    pub stored: u32,
    /// Raw length of the chunk.
    pub raw: u32,
    /// Number of the pack.
    pub pack: u32,
    /// So many bytes of the pack were durable when the frame was written.
    pub durable: u32,
    /// The chunk.
    pub id: ChunkId,
    /// CRC-32C of the stored bytes.
    pub stored_crc: u32,
}

/// One row of an index: where a chunk's frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The chunk.
    pub id: ChunkId,
    /// Offset of its frame.
    pub offset: u32,
    /// Stored bytes behind the frame's header.
    pub stored: u32,
    /// Raw length.
    pub raw: u32,
}

/// The index of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Which pack.
    pub pack: PackHeader,
    /// Frames of the first so many bytes are in it, and those bytes were durable when it was written.
    pub covered: u64,
    /// In the order of their offsets.
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

/// Length, magic, checksum and version, in this order.
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
    /// The bytes.
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
    /// When the bytes are too few, damaged or of another version.
    pub fn decode(bytes: &[u8]) -> Result<PackHeader, DecodeError> {
        check(bytes, "header of a pack", PACK_MAGIC, PACK_HEADER_BYTES, AT_PACK_CRC)?;
        Ok(PackHeader { number: u32_at(bytes, AT_PACK_NUMBER), created_ms: u64_at(bytes, AT_PACK_CREATED) })
    }
}

impl FrameHeader {
    /// The bytes.
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
    /// When the bytes are too few, damaged, of another version or out of bounds.
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

    /// Bytes of header and stored chunk.
    #[must_use]
    pub fn frame_bytes(&self) -> u64 {
        frame_bytes(self.stored)
    }
}

/// Bytes of a frame with so many stored bytes.
#[must_use]
pub fn frame_bytes(stored: u32) -> u64 {
    FRAME_HEADER_BYTES as u64 + u64::from(stored)
}

impl Table {
    /// The bytes.
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
    /// When the bytes are not exactly one table, damaged or of another version.
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

/// Name of a pack.
#[must_use]
pub fn pack_name(number: u32) -> String {
    format!("pack-{number:010}.chunks")
}

/// Name of the index of a pack.
#[must_use]
pub fn table_name(number: u32) -> String {
    format!("pack-{number:010}.index")
}

/// What a file name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// A pack.
    Pack(u32),
    /// An index.
    Table(u32),
}

impl Name {
    /// Reads a file name; `None` when it is none of ours.
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
