//! Errors of encoding and decoding.

use std::fmt;

/// Bytes that cannot be decoded: the field, its offset, the expected and the found value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {offset}: expected {expected}, found {found}")]
pub struct DecodeError {
    /// The field or structure.
    pub what: &'static str,
    /// Offset within the decoded bytes.
    pub offset: usize,
    /// Expected value.
    pub expected: String,
    /// Value found.
    pub found: String,
}

impl DecodeError {
    /// Creates an error.
    pub fn new(what: &'static str, offset: usize, expected: impl fmt::Display, found: impl fmt::Display) -> Self {
        DecodeError { what, offset, expected: expected.to_string(), found: found.to_string() }
    }

    /// Creates an error for a wrong checksum. `offset` is the start of the bytes that it covers.
    #[must_use]
    pub fn checksum(what: &'static str, offset: usize, computed: u32, stored: u32) -> Self {
        DecodeError::new(what, offset, format_args!("{computed:08x}"), format_args!("{stored:08x}"))
    }
}

/// An entry that cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record {seq} would have a payload of {found} bytes, but a frame holds at most {allowed}")]
pub struct EncodeError {
    /// Sequence of the entry.
    pub seq: u64,
    /// Length of its payload.
    pub found: usize,
    /// Maximum length of a payload.
    pub allowed: usize,
}
