//! Rows of a resource: CSV lines become objects, JSON lines are passed on unchanged, other lines become strings. All rows
//! have the time at which the resource was last modified, so a time range does not select among them.

use std::io::{self, BufRead, BufReader, Read, Write};

use csv_core::ReadRecordResult;
use serde::de::IgnoredAny;

use super::{Output, Range, Source, SourceContext, SourceFuture};
use crate::row::ROW_BYTES_MAX;
use gravwell_objects::Store;
use gravwell_objects::blobs;
use gravwell_objects::resources::{self, Resource};

/// Number of bytes used to detect the format.
const LOOK_BYTES: usize = 64 << 10;

/// Maximum number of fields of a CSV record.
const CSV_FIELDS_MAX: usize = 64 << 10;

/// Source of the rows of a resource.
pub struct Rows {
    store: Store,
    resource: Resource,
}

impl Rows {
    /// Opens the resource to which a name resolves for the principal.
    ///
    /// # Errors
    /// If there is no such resource that the principal may read.
    pub fn open(around: &SourceContext, name: &str) -> Result<Rows, String> {
        let found = resources::resolve(&around.store, &around.person, name).map_err(|error| error.to_string())?;
        let found = found.ok_or_else(|| format!("there is no resource called {name} that you may read"))?;
        Ok(Rows { store: around.store.clone(), resource: found.value })
    }
}

/// Format of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Json,
    Csv,
    Text,
}

/// Detects the format by name, then by content: JSON if the first line is an object; CSV if the first line has several
/// columns and the second one has as many.
fn form(name: &str, begin: &[u8]) -> Form {
    let is_named = |suffixes: &[&str]| suffixes.iter().any(|suffix| name.to_ascii_lowercase().ends_with(suffix));
    if is_named(&[".csv"]) {
        return Form::Csv;
    }
    if is_named(&[".json", ".jsonl", ".ndjson"]) {
        return Form::Json;
    }
    if is_named(&[".txt", ".log"]) {
        return Form::Text;
    }
    let first = begin.split(|byte| *byte == b'\n').next().unwrap_or_default();
    if first.trim_ascii_start().starts_with(b"{") && serde_json::from_slice::<IgnoredAny>(first).is_ok() {
        return Form::Json;
    }
    let mut records = Records::new(begin);
    let mut widths = Vec::new();
    while widths.len() < 2
        && let Ok(true) = records.next()
    {
        let is_text = records.fields().all(|field| std::str::from_utf8(field).is_ok());
        widths.extend(is_text.then(|| records.fields().count()));
    }
    if matches!(widths[..], [head, second] if head > 1 && head == second) { Form::Csv } else { Form::Text }
}

fn too_long() -> String {
    format!("a row has more than {} MiB", ROW_BYTES_MAX >> 20)
}

/// CSV records, each of which is bounded while it is read: a quotation mark that is not closed makes one record of all
/// that follows.
struct Records<R> {
    reader: R,
    csv: csv_core::Reader,
    bytes: Vec<u8>,
    /// End of each field in `bytes`, of which the first `count` are those of the current record.
    ends: Vec<usize>,
    count: usize,
}

impl<R: BufRead> Records<R> {
    fn new(reader: R) -> Records<R> {
        Records { reader, csv: csv_core::Reader::new(), bytes: vec![0; 1024], ends: vec![0; 32], count: 0 }
    }

    /// Skips a byte order mark at the start.
    fn skip_mark(&mut self) -> Result<(), String> {
        let begin = self.reader.fill_buf().map_err(|error| error.to_string())?;
        if begin.starts_with(b"\xef\xbb\xbf") {
            self.reader.consume(3);
        }
        Ok(())
    }

    /// Reads the next record; returns false after the last one.
    fn next(&mut self) -> Result<bool, String> {
        let mut length = 0;
        self.count = 0;
        loop {
            let input = self.reader.fill_buf().map_err(|error| error.to_string())?;
            let (to, ends) = (self.bytes.get_mut(length..), self.ends.get_mut(self.count..));
            let (result, read, written, ended) =
                self.csv.read_record(input, to.unwrap_or_default(), ends.unwrap_or_default());
            self.reader.consume(read);
            length += written;
            self.count += ended;
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull if self.bytes.len() >= ROW_BYTES_MAX => return Err(too_long()),
                ReadRecordResult::OutputFull => self.bytes.resize((2 * self.bytes.len()).min(ROW_BYTES_MAX), 0),
                ReadRecordResult::OutputEndsFull if self.ends.len() >= CSV_FIELDS_MAX => {
                    return Err(format!("a row has more than {CSV_FIELDS_MAX} fields"));
                }
                ReadRecordResult::OutputEndsFull => self.ends.resize((2 * self.ends.len()).min(CSV_FIELDS_MAX), 0),
                ReadRecordResult::Record => return Ok(true),
                ReadRecordResult::End => return Ok(false),
            }
        }
    }

    /// Returns the fields of the current record.
    fn fields(&self) -> impl Iterator<Item = &[u8]> {
        let mut begin = 0;
        self.ends.iter().take(self.count).map(move |end| {
            let field = self.bytes.get(begin..*end).unwrap_or_default();
            begin = *end;
            field
        })
    }
}

/// The JSON of a row while it is written.
#[derive(Default)]
struct Line(Vec<u8>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > ROW_BYTES_MAX {
            return Err(io::Error::other(too_long()));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Line {
    fn add(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.write_all(bytes).map_err(|error| error.to_string())
    }

    /// Appends a text as a JSON string.
    fn add_string(&mut self, text: &[u8]) -> Result<(), String> {
        serde_json::to_writer(self, &String::from_utf8_lossy(text)).map_err(|error| error.to_string())
    }
}

fn csv_rows(reader: impl BufRead, mut row: impl FnMut(&[u8]) -> Result<(), String>) -> Result<(), String> {
    let mut records = Records::new(reader);
    records.skip_mark()?;
    let mut line = Line::default();
    // The names, each as it is written in a row.
    let (mut names, mut ends) = (Line::default(), Vec::new());
    if records.next()? {
        for name in records.fields() {
            names.add_string(name)?;
            ends.push(names.0.len());
        }
    }
    while records.next()? {
        line.0.clear();
        let mut begin = 0;
        for (at, field) in records.fields().enumerate() {
            line.add(if at == 0 { b"{" } else { b"," })?;
            match ends.get(at) {
                Some(end) => {
                    line.add(names.0.get(begin..*end).unwrap_or_default())?;
                    begin = *end;
                }
                None => line.add(format!("\"column{}\"", at + 1).as_bytes())?,
            }
            line.add(b":")?;
            line.add_string(field)?;
        }
        line.add(b"}")?;
        row(&line.0)?;
    }
    Ok(())
}

fn lines(
    mut reader: impl BufRead,
    is_json: bool,
    mut row: impl FnMut(&[u8]) -> Result<(), String>,
) -> Result<(), String> {
    let (mut number, mut line, mut quoted) = (0u64, Vec::new(), Line::default());
    loop {
        line.clear();
        let limit = ROW_BYTES_MAX as u64 + 2;
        let read = reader.by_ref().take(limit).read_until(b'\n', &mut line).map_err(|error| error.to_string())?;
        if read == 0 {
            return Ok(());
        }
        number += 1;
        let line = line.trim_ascii_end();
        if is_json && line.is_empty() {
            continue;
        }
        if !is_json {
            quoted.0.clear();
            quoted.add_string(line)?;
            row(&quoted.0)?;
        } else if serde_json::from_slice::<IgnoredAny>(line).is_ok() {
            row(line)?;
        } else {
            return Err(format!("line {number} is not JSON"));
        }
    }
}

impl Rows {
    fn read(&self, out: &mut Output) -> Result<(), String> {
        let reader = blobs::reader(&self.store, &self.resource.content).map_err(|error| error.to_string())?;
        let mut reader = BufReader::with_capacity(LOOK_BYTES, reader);
        let begin = reader.fill_buf().map_err(|error| error.to_string())?;
        let form = form(&self.resource.resource_name, begin);
        let time = self.resource.last_modified.ns();
        let row = |data: &[u8]| match out.push(time, data)? {
            true => out.flush_blocking(),
            false => Ok(()),
        };
        let read = match form {
            Form::Csv => csv_rows(reader, row),
            Form::Json => lines(reader, true, row),
            Form::Text => lines(reader, false, row),
        };
        // Rows before an error are still delivered.
        out.flush_blocking().and(read)
    }
}

impl Source for Rows {
    fn name(&self) -> String {
        format!("resource {}", self.resource.resource_name)
    }

    fn label(&self) -> String {
        "resource".into()
    }

    fn tell(self: Box<Self>, _: Range, mut out: Output) -> SourceFuture {
        Box::pin(async move {
            if self.resource.content.is_empty() {
                return Ok(());
            }
            // The thread ends when its rows are no longer wanted.
            let reading = tokio::task::spawn_blocking(move || self.read(&mut out));
            reading.await.map_err(|error| error.to_string())?
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(run: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), String>) -> Result<(), String>) -> Vec<String> {
        let mut found = Vec::new();
        run(&mut |row| {
            found.push(String::from_utf8_lossy(row).into_owned());
            Ok(())
        })
        .expect("reads");
        found
    }

    #[test]
    fn forms_are_recognised() {
        let cases: [(&str, &str, Form); 7] = [
            ("r", "{\"a\":1}\n{", Form::Json),
            ("r", "a,b\n1,\"2\n3\"\n", Form::Csv),
            ("r", "a, b and c\nd\n", Form::Text),
            ("r", "one\ntwo\n", Form::Text),
            ("r.CSV", "one\ntwo\n", Form::Csv),
            ("r.log", "a,b\n1,2\n", Form::Text),
            ("r", "", Form::Text),
        ];
        for (name, begin, wanted) in cases {
            assert_eq!(form(name, begin.as_bytes()), wanted, "{name} {begin}");
        }
    }

    #[test]
    fn rows_of_every_form() {
        let given = "name,n\n\"a \"\"b\"\"\",1\nc\nd,2,3\n";
        let rows = all(|row| csv_rows(given.as_bytes(), row));
        assert_eq!(rows, [r#"{"name":"a \"b\"","n":"1"}"#, r#"{"name":"c"}"#, r#"{"name":"d","n":"2","column3":"3"}"#]);
        let rows = all(|row| lines("{\"n\":1.50}\r\n\n[1]\n".as_bytes(), true, row));
        assert_eq!(rows, [r#"{"n":1.50}"#, "[1]"]);
        assert_eq!(all(|row| lines("a \"b\"\n\nc".as_bytes(), false, row)), [r#""a \"b\"""#, "\"\"", "\"c\""]);
        let marked = all(|row| csv_rows("\u{feff}a,b\r\n\"1\n2\",\r\n".as_bytes(), row));
        assert_eq!(marked, [r#"{"a":"1\n2","b":""}"#]);
        assert_eq!(lines("{}\n{\n".as_bytes(), true, |_| Ok(())), Err("line 2 is not JSON".into()));
    }

    /// A reader that counts what was read from it.
    struct Counted<'a, R>(R, &'a std::cell::Cell<usize>);

    impl<R: Read> Read for Counted<'_, R> {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            let read = self.0.read(to)?;
            self.1.set(self.1.get() + read);
            Ok(read)
        }
    }

    #[test]
    fn p15_a_record_is_bounded_while_it_is_read() {
        let open = |begin: &'static str, rest: &'static [u8]| {
            let count = std::cell::Cell::new(0);
            let rest = std::iter::repeat_n(rest, 64 << 10).collect::<Vec<_>>().concat();
            let given = io::Cursor::new(begin).chain(io::Cursor::new(rest));
            let error = csv_rows(BufReader::new(Counted(given, &count)), |_| Ok(())).expect_err("is refused");
            (error, count.get())
        };
        let (error, read) = open("a,b\n1,\"", &[b'x'; 1024]);
        assert!(error.contains("8 MiB") && read < 9 << 20, "{error}, {read} bytes");
        let (error, read) = open("\"", &[b'x'; 1024]);
        assert!(error.contains("8 MiB") && read < 9 << 20, "{error}, {read} bytes");
        let (error, read) = open("a\n", b",,");
        assert!(error.contains("fields") && read < 1 << 20, "{error}, {read} bytes");
        // A record that is short, but whose row is not.
        let (error, _) = open("a\n\"", &[1; 25]);
        assert!(error.contains("8 MiB"), "{error}");
    }
}
