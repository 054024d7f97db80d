//! Rows of a search: JSON with a time and a tag.

use bytes::Bytes;
use serde_json::Value;

/// Maximum size of a row, in bytes.
pub const ROW_BYTES_MAX: usize = 8 << 20;

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Nanoseconds since 1970-01-01 UTC.
    pub time: i64,
    /// Index of its tag in the query.
    pub tag: u16,
    /// One JSON value, without line breaks.
    pub data: Bytes,
}

/// Size of the header before the data of an encoded row.
pub const ROW_HEAD_BYTES: usize = 14;

impl Row {
    /// Appends the row to `to`, in the encoding of results files and filter processes: time i64, tag u16, length u32,
    /// data; numbers are little-endian.
    pub fn write(&self, to: &mut Vec<u8>) {
        write_head(self.time, self.tag, self.data.len(), to);
        to.extend_from_slice(&self.data);
    }

    /// Removes a row from the front of `from`, sharing its memory; returns `None` if `from` does not start with a
    /// complete row.
    #[must_use]
    pub fn take(from: &mut Bytes) -> Option<Row> {
        let (time, tag, length) = read_head(from)?;
        if from.len() < ROW_HEAD_BYTES + length {
            return None;
        }
        let data = from.split_to(ROW_HEAD_BYTES + length).slice(ROW_HEAD_BYTES..);
        Some(Row { time, tag, data })
    }
}

/// Writes the header of a row with `length` bytes of data; `length` is never much more than [`ROW_BYTES_MAX`].
pub fn write_head(time: i64, tag: u16, length: usize, to: &mut Vec<u8>) {
    to.extend_from_slice(&time.to_le_bytes());
    to.extend_from_slice(&tag.to_le_bytes());
    to.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
}

/// Reads the header of a row: time, tag, length of the data.
#[must_use]
pub fn read_head(from: &[u8]) -> Option<(i64, u16, usize)> {
    let (time, rest) = from.split_first_chunk()?;
    let (tag, rest) = rest.split_first_chunk()?;
    let length = u32::from_le_bytes(*rest.first_chunk()?);
    Some((i64::from_le_bytes(*time), u16::from_le_bytes(*tag), usize::try_from(length).ok()?))
}

/// Returns the member of a value at a path such as `a.b`; `null` if there is none.
#[must_use]
pub fn member<'a>(value: &'a Value, path: &[String]) -> &'a Value {
    let mut found = value;
    for name in path {
        found = match found {
            Value::Object(fields) => fields.get(name).unwrap_or(&Value::Null),
            Value::Array(items) => name.parse::<usize>().ok().and_then(|at| items.get(at)).unwrap_or(&Value::Null),
            _ => return &Value::Null,
        };
    }
    found
}

/// Formats a value for a table cell: strings without quotation marks, nothing for `null`, JSON for all other values.
#[must_use]
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_members() {
        let row = Row { time: -5, tag: 2, data: Bytes::from_static(br#"{"a":"\t"}"#) };
        let mut written = Vec::new();
        row.write(&mut written);
        row.write(&mut written);
        let mut bytes = Bytes::from(written.clone());
        assert_eq!((Row::take(&mut bytes), Row::take(&mut bytes), bytes.len()), (Some(row.clone()), Some(row), 0));
        for end in 1..written.len() / 2 {
            assert_eq!(Row::take(&mut Bytes::copy_from_slice(&written[..end])), None, "{end}");
        }
        let value = serde_json::json!({ "a": { "b": [null, "x"] } });
        let path = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(cell(member(&value, &path("a.b.1"))), "x");
        assert_eq!(cell(member(&value, &path("a.c.d"))), "");
        assert_eq!(cell(member(&value, &path("a.b"))), r#"[null,"x"]"#);
    }
}
