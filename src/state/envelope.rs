//! Envelope of every row: table number before the key; format version and checksum before the value.
//!
//! Value layout: 0 format `u8` = 1 | 1 CRC-32C `u32` LE over the whole key, the format byte and the rest | 5 contents.
//! The key is part of the checksum, so a row found under the key of another row counts as damaged, too.

use super::engine::Slice;
use super::error::StateError;
use gravwell_model::fault_injection::{self, Bug};

/// Tables with their number on disk; numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Table {
    Position = 1,
    Sums = 2,
    Origins = 3,
    Objects = 4,
    Makers = 5,
    Deletions = 6,
    Withheld = 7,
}

impl Table {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Table::Position => "position",
            Table::Sums => "sums",
            Table::Origins => "origins",
            Table::Objects => "objects",
            Table::Makers => "makers",
            Table::Deletions => "deletions",
            Table::Withheld => "withheld",
        }
    }

    /// Returns the number that keys of this table start with.
    pub(crate) fn number(self) -> u8 {
        self as u8
    }

    /// Returns the error for a row of this table with wrong contents.
    pub(crate) fn damaged(self, key: &[u8], what: impl Into<String>) -> StateError {
        let shown = String::from_utf8_lossy(key.get(1..).unwrap_or_default()).replace('\0', "/");
        StateError::Damaged { table: self.name(), key: format!("{shown:?}"), what: what.into() }
    }
}

/// The only format version.
const FORMAT: u8 = 1;
/// Number of bytes before the contents.
pub(crate) const HEADER_BYTES: usize = 5;

fn checksum(key: &[u8], contents: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(key), &[FORMAT]), contents)
}

/// Returns a buffer with room for the header; [`seal`] fills it in.
pub(crate) fn begin(contents_bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + contents_bytes);
    out.extend_from_slice(&[FORMAT, 0, 0, 0, 0]);
    out
}

/// Fills in the header.
pub(crate) fn seal(key: &[u8], mut value: Vec<u8>) -> Slice {
    let sum = checksum(key, &value[HEADER_BYTES..]);
    value[1..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    Slice::from(value)
}

/// Verifies a row and returns its contents.
pub(crate) fn open<'a>(table: Table, key: &[u8], value: &'a [u8]) -> Result<&'a [u8], StateError> {
    let Some((header, contents)) = value.split_first_chunk::<HEADER_BYTES>() else {
        return Err(table.damaged(key, "the row is truncated"));
    };
    let [format, sum @ ..] = *header;
    if format != FORMAT {
        return Err(table.damaged(key, format!("format {format} is unknown to this program")));
    }
    if u32::from_le_bytes(sum) != checksum(key, contents) && !fault_injection::is(Bug::IgnoreChecksum) {
        return Err(table.damaged(key, "the checksum does not match"));
    }
    Ok(contents)
}
