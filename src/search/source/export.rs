//! Converts journal entries in systemd's export format into JSON rows.
//!
//! A field is either a line `NAME=value`, or a line `NAME` followed by the length of the value as u64 in little-endian,
//! the value and a line break. An entry ends with an empty line. This format costs the gateway a third of the work of its
//! JSON format.
//!
//! In a row every field is a string. Bytes that are not valid UTF-8 become an array of numbers, and a repeated field
//! becomes an array. A value in the second form that is longer than [`VALUE_BYTES_MAX`] becomes `null` and is
//! not buffered.

use std::ops::Range;

use memchr::memchr;

use crate::row::ROW_BYTES_MAX;

/// Maximum length of a value in the second form, in bytes: such values may be whole core dumps.
pub(super) const VALUE_BYTES_MAX: usize = 256 << 10;
/// Maximum length of a field name, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// A field of the current entry, as ranges of the buffer.
struct Field {
    name: Range<usize>,
    /// `None` if the value is too long.
    value: Option<Range<usize>>,
}

/// Incremental decoder of entries.
#[derive(Default)]
pub(super) struct Entries {
    buffer: Vec<u8>,
    /// Start of the current entry.
    begin: usize,
    /// Start of the next field.
    at: usize,
    /// The line that starts at `at` has no line break before this offset.
    looked: usize,
    /// Number of bytes of an oversized value still to skip.
    skip: u64,
    fields: Vec<Field>,
}

fn moved(range: &Range<usize>, back: usize) -> Range<usize> {
    range.start - back..range.end - back
}

/// Result of scanning for the next field.
enum Found {
    Field(Field),
    Skipped(Field, u64),
    End,
    Nothing,
}

impl Entries {
    /// Appends received bytes.
    ///
    /// # Errors
    /// If an entry is larger than a row may be.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<(), String> {
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
        self.skip -= skipped as u64;
        self.forget();
        self.buffer.extend_from_slice(&bytes[skipped..]);
        match self.buffer.len() > ROW_BYTES_MAX + bytes.len() {
            true => Err(format!("an entry has more than {} MiB", ROW_BYTES_MAX >> 20)),
            false => Ok(()),
        }
    }

    /// Drops the entries that were read.
    fn forget(&mut self) {
        let begin = std::mem::take(&mut self.begin);
        if begin > 0 {
            self.buffer.drain(..begin);
            self.at -= begin;
            self.looked = self.looked.saturating_sub(begin);
            for field in &mut self.fields {
                field.name = moved(&field.name, begin);
                field.value = field.value.as_ref().map(|value| moved(value, begin));
            }
        }
    }

    /// Returns whether no part of another entry has been received.
    pub(super) fn is_between(&self) -> bool {
        self.fields.is_empty() && self.skip == 0 && self.buffer[self.at..].trim_ascii().is_empty()
    }

    /// Writes the next entry to `row`, replacing its content, and returns its time in nanoseconds since 1970-01-01 UTC.
    /// Returns `None` if more bytes are needed.
    ///
    /// # Errors
    /// If the bytes are not a valid entry.
    pub(super) fn next(&mut self, row: &mut Vec<u8>) -> Result<Option<i64>, String> {
        while self.skip == 0 {
            match self.find()? {
                Found::Nothing => return Ok(None),
                Found::Field(field) => self.fields.push(field),
                Found::Skipped(field, beyond) => {
                    self.fields.push(field);
                    self.skip = beyond;
                }
                Found::End if self.fields.is_empty() => self.begin = self.at,
                Found::End => {
                    let time = self.time()?;
                    self.write(row).map_err(|error| error.to_string())?;
                    self.fields.clear();
                    self.begin = self.at;
                    return Ok(Some(time));
                }
            }
        }
        Ok(None)
    }

    fn find(&mut self) -> Result<Found, String> {
        let from = self.looked.max(self.at);
        let Some(end) = memchr(b'\n', &self.buffer[from..]).map(|end| from + end) else {
            self.looked = self.buffer.len();
            return Ok(Found::Nothing);
        };
        let (at, line) = (self.at, &self.buffer[self.at..end]);
        if line.is_empty() {
            self.at = end + 1;
            return Ok(Found::End);
        }
        if let Some(equals) = memchr(b'=', line) {
            self.at = end + 1;
            return Ok(Found::Field(Field { name: at..at + equals, value: Some(at + equals + 1..end) }));
        }
        if line.len() > NAME_BYTES_MAX {
            return Err("malformed journal export entry: line is not FIELD=value".into());
        }
        // The line is parsed again once there are more bytes.
        self.looked = end;
        let begin = end + 9;
        let Some(length) = self.buffer.get(end + 1..begin).and_then(|bytes| bytes.try_into().ok()) else {
            return Ok(Found::Nothing);
        };
        let length = u64::from_le_bytes(length);
        let left = (self.buffer.len() - begin) as u64;
        if length > VALUE_BYTES_MAX as u64 {
            // Includes the line break.
            let whole = length.checked_add(1).ok_or("malformed journal export entry: value is too long")?;
            let here = usize::try_from(whole.min(left)).unwrap_or(usize::MAX);
            self.buffer.drain(begin..begin + here);
            self.at = begin;
            return Ok(Found::Skipped(Field { name: at..end, value: None }, whole - here as u64));
        }
        let value = begin..begin + usize::try_from(length).unwrap_or(usize::MAX);
        match self.buffer.get(value.end) {
            None => Ok(Found::Nothing),
            Some(b'\n') => {
                self.at = value.end + 1;
                Ok(Found::Field(Field { name: at..end, value: Some(value) }))
            }
            Some(_) => Err("malformed journal export entry: wrong value length".into()),
        }
    }

    fn name(&self, field: &Field) -> &[u8] {
        &self.buffer[field.name.clone()]
    }

    fn time(&self) -> Result<i64, String> {
        let field = self.fields.iter().find(|field| self.name(field) == b"__REALTIME_TIMESTAMP");
        let text = field.and_then(|field| std::str::from_utf8(&self.buffer[field.value.clone()?]).ok());
        let micros: Option<i64> = text.and_then(|text| text.parse().ok());
        micros
            .map(|micros| micros.saturating_mul(1000))
            .ok_or_else(|| "journal export entry has no __REALTIME_TIMESTAMP".into())
    }

    fn write(&self, row: &mut Vec<u8>) -> serde_json::Result<()> {
        row.clear();
        for (number, field) in self.fields.iter().enumerate() {
            let name = self.name(field);
            let is_same = |other: &&Field| self.name(other) == name;
            if self.fields[..number].iter().any(|other| is_same(&other)) {
                continue;
            }
            row.push(if row.is_empty() { b'{' } else { b',' });
            serde_json::to_writer(&mut *row, &String::from_utf8_lossy(name))?;
            row.push(b':');
            let mut others = self.fields[number + 1..].iter().filter(is_same).peekable();
            if others.peek().is_none() {
                self.write_value(field, row)?;
                continue;
            }
            row.push(b'[');
            self.write_value(field, row)?;
            for other in others {
                row.push(b',');
                self.write_value(other, row)?;
            }
            row.push(b']');
        }
        row.push(b'}');
        Ok(())
    }

    fn write_value(&self, field: &Field, row: &mut Vec<u8>) -> serde_json::Result<()> {
        let bytes = field.value.clone().map(|value| &self.buffer[value]);
        match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
            None => row.extend_from_slice(b"null"),
            Some((_, Ok(text))) => serde_json::to_writer(row, text)?,
            Some((bytes, Err(_))) => serde_json::to_writer(row, bytes)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(name: &str, length: usize, bytes: &[u8]) -> Vec<u8> {
        [name.as_bytes(), b"\n", &(length as u64).to_le_bytes(), bytes, b"\n"].concat()
    }

    fn all(bytes: &[u8], piece: usize) -> Result<Vec<(i64, String)>, String> {
        let (mut entries, mut row, mut found) = (Entries::default(), Vec::new(), Vec::new());
        for piece in bytes.chunks(piece) {
            entries.add(piece)?;
            while let Some(time) = entries.next(&mut row)? {
                found.push((time, String::from_utf8(row.clone()).expect("text")));
            }
        }
        assert!(entries.is_between(), "all entries were read");
        Ok(found)
    }

    #[test]
    fn entries_of_every_form_in_pieces_of_every_size() {
        let large = vec![b'x'; VALUE_BYTES_MAX + 1];
        let given = [
            b"__REALTIME_TIMESTAMP=17\nMESSAGE=a \"b\"=c\nX=1\n".to_vec(),
            value("LINES", 5, b"a\nb\n\n"),
            b"X=2\n".to_vec(),
            value("BYTES", 3, &[0xff, 0, 10]),
            value("CORE", large.len(), &large),
            b"E=\n\n\n__REALTIME_TIMESTAMP=18\n\n".to_vec(),
        ]
        .concat();
        let first = r#"{"__REALTIME_TIMESTAMP":"17","MESSAGE":"a \"b\"=c","X":["1","2"],"LINES":"a\nb\n\n","BYTES":[255,0,10],"CORE":null,"E":""}"#;
        let wanted = [(17_000, first.to_owned()), (18_000, r#"{"__REALTIME_TIMESTAMP":"18"}"#.to_owned())];
        for piece in [1, 2, 3, 7, 64, 4096, given.len()] {
            assert_eq!(all(&given, piece).as_deref(), Ok(&wanted[..]), "{piece}");
        }
    }

    #[test]
    fn what_is_no_entry_is_refused_and_what_is_too_long_not_held() {
        assert!(all(b"MESSAGE=x\n\n", 5).is_err(), "no time");
        assert!(all(b"__REALTIME_TIMESTAMP=x\n\n", 5).is_err(), "invalid time");
        assert!(all(&value("A", 2, b"abc"), 3).is_err(), "a wrong length");
        assert!(all(&value("A", usize::MAX, b"abc"), 3).is_err(), "no length");
        let mut entries = Entries::default();
        entries.add(&value("A", 1 << 30, b"")).expect("fits");
        assert_eq!(entries.next(&mut Vec::new()), Ok(None));
        for _ in 0..64 {
            entries.add(&[b'x'; 1 << 20]).expect("is discarded");
            assert!(entries.buffer.capacity() < 1 << 20);
        }
        let mut entries = Entries::default();
        assert!((0..20).any(|_| entries.add(&[b'x'; 1 << 20]).is_err()), "an unterminated line");
    }
}
