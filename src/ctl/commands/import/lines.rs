//! Lines of bounded length from a stream of unbounded length.

use std::io::{self, BufRead};

/// Byte order mark, which some editors write at the start of a file.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// Result of reading one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Bytes consumed from the stream, including the line break.
    pub bytes: u64,
    /// Whether the line is too long: only its first bytes were kept, and the rest was skipped up to the line break.
    pub is_too_long: bool,
}

/// Reads the next line into `line`, without its line break; returns `None` at the end. Keeps at most `max` bytes and
/// skips the rest, so that no part of a longer line is mistaken for a line.
pub(super) fn next_line(reader: &mut dyn BufRead, line: &mut Vec<u8>, max: usize) -> io::Result<Option<Piece>> {
    line.clear();
    let mut piece = Piece { bytes: 0, is_too_long: false };
    loop {
        let buffer = match reader.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if buffer.is_empty() {
            return Ok((piece.bytes > 0).then_some(piece));
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let found = end.unwrap_or(buffer.len());
        let kept = found.min(max - line.len());
        line.extend_from_slice(&buffer[..kept]);
        piece.is_too_long |= kept < found;
        let taken = end.map_or(buffer.len(), |end| end + 1);
        piece.bytes += taken as u64;
        reader.consume(taken);
        if end.is_some() {
            return Ok(Some(piece));
        }
    }
}

/// Returns the first line of a file without its byte order mark.
pub(super) fn without_mark(line: &[u8]) -> &[u8] {
    line.strip_prefix(MARK).unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(text: &[u8], max: usize, buffer: usize) -> Vec<(Vec<u8>, bool)> {
        let (mut reader, mut line, mut found) = (io::BufReader::with_capacity(buffer, text), Vec::new(), Vec::new());
        let mut total = 0;
        while let Some(piece) = next_line(&mut reader, &mut line, max).expect("reads") {
            assert!(line.len() <= max);
            total += piece.bytes;
            found.push((line.clone(), piece.is_too_long));
        }
        assert_eq!(total, text.len() as u64, "every byte is accounted for");
        found
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_to_its_end() {
        let text = b"ab\nabcd-the rest is {no} line\n\ncd";
        let found = all(text, 4, 3);
        let expected: [(&[u8], bool); 4] = [(b"ab", false), (b"abcd", true), (b"", false), (b"cd", false)];
        assert_eq!(found.iter().map(|(line, long)| (line.as_slice(), *long)).collect::<Vec<_>>(), expected);
    }

    proptest! {
        #[test]
        fn lines_are_those_of_the_text_whatever_the_bounds(
            text in prop::collection::vec(prop::sample::select(b"ab{}\n\"".to_vec()), 0..60),
            max in 0..8usize,
            buffer in 1..9usize,
        ) {
            let mut expected: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
            if expected.last().is_some_and(|last| last.is_empty()) {
                expected.pop();
            }
            let found = all(&text, max, buffer);
            prop_assert_eq!(found.len(), expected.len());
            for ((line, is_too_long), expected) in found.iter().zip(expected) {
                prop_assert_eq!(line.as_slice(), &expected[..expected.len().min(max)]);
                prop_assert_eq!(*is_too_long, expected.len() > max);
            }
        }
    }
}
