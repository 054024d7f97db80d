//! Rows of a resource: CSV lines become objects, JSON lines are passed on unchanged, other lines become strings. All rows
//! have the time at which the resource was last modified, so a time range does not select among them.

use std::io::{BufRead, BufReader, Read};

use serde_json::{Map, Value};

use super::{Output, Range, Source, Surroundings, Telling};
use crate::objects::Store;
use crate::objects::contents;
use crate::objects::resources::{self, Resource};
use crate::search::row::ROW_BYTES_MAX;

/// Number of bytes used to detect the format.
const LOOK_BYTES: usize = 64 << 10;

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
    pub fn open(around: &Surroundings, name: &str) -> Result<Rows, String> {
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
    if first.trim_ascii_start().starts_with(b"{") && serde_json::from_slice::<Map<String, Value>>(first).is_ok() {
        return Form::Json;
    }
    let mut reader = csv::ReaderBuilder::new().flexible(true).has_headers(false).from_reader(begin);
    let widths: Vec<usize> = reader.records().take(2).filter_map(Result::ok).map(|record| record.len()).collect();
    if matches!(widths[..], [head, second] if head > 1 && head == second) { Form::Csv } else { Form::Text }
}

fn csv_rows(reader: impl Read, mut row: impl FnMut(&[u8]) -> Result<(), String>) -> Result<(), String> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(reader);
    let wrong = |error: csv::Error| format!("not CSV: {error}");
    let head: Vec<String> = reader.byte_headers().map_err(wrong)?.iter().map(text).collect();
    let (mut record, mut line) = (csv::ByteRecord::new(), Vec::new());
    while reader.read_byte_record(&mut record).map_err(wrong)? {
        line.clear();
        line.push(b'{');
        for (at, field) in record.iter().enumerate() {
            if at > 0 {
                line.push(b',');
            }
            let beyond;
            let name = match head.get(at) {
                Some(name) => name,
                None => {
                    beyond = format!("column{}", at + 1);
                    &beyond
                }
            };
            let written = serde_json::to_writer(&mut line, name).and_then(|()| {
                line.push(b':');
                serde_json::to_writer(&mut line, &String::from_utf8_lossy(field))
            });
            written.map_err(|error| error.to_string())?;
        }
        line.push(b'}');
        row(&line)?;
    }
    Ok(())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn lines(
    mut reader: impl BufRead,
    is_json: bool,
    mut row: impl FnMut(&[u8]) -> Result<(), String>,
) -> Result<(), String> {
    let (mut number, mut line, mut quoted) = (0u64, Vec::new(), Vec::new());
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
            quoted.clear();
            serde_json::to_writer(&mut quoted, &String::from_utf8_lossy(line)).map_err(|error| error.to_string())?;
            row(&quoted)?;
        } else if serde_json::from_slice::<serde::de::IgnoredAny>(line).is_ok() {
            row(line)?;
        } else {
            return Err(format!("line {number} is not JSON"));
        }
    }
}

impl Rows {
    fn read(&self, out: &mut Output) -> Result<(), String> {
        let reader = contents::reader(&self.store, &self.resource.content).map_err(|error| error.to_string())?;
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

    fn tell(self: Box<Self>, _: Range, mut out: Output) -> Telling {
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
            found.push(text(row));
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
        assert_eq!(lines("{}\n{\n".as_bytes(), true, |_| Ok(())), Err("line 2 is not JSON".into()));
    }
}
