//! Results as text, JSON and CSV, block by block.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::de::{Deserializer as _, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::pick::{Fields, Picked};
use super::results::{Results, ResultsError};
use super::row::Row;
use gravwell_objects::Timestamp;

/// Maximum number of columns found by scanning all rows, and maximum total length of their names in bytes.
const COLUMNS_MAX: usize = 500;
const NAMES_BYTES_MAX: usize = 256 << 10;

/// Output format of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One line per row: strings unquoted, everything else as JSON.
    Text,
    /// Array of objects with time, tag and data.
    Json,
    /// One line per row, with a header; cells that a spreadsheet would evaluate are marked as text.
    Csv,
    /// CSV with unmodified cells.
    RawCsv,
    /// The results file itself.
    Archive,
}

impl Format {
    /// Format names used by clients.
    pub const NAMES: [&'static str; 5] = ["text", "json", "csv", "csv-raw", "archive"];

    /// Returns the format with this name.
    ///
    /// # Errors
    /// Returns a message that lists the available formats.
    pub fn wanted(name: &str) -> Result<Format, String> {
        let given = Format::NAMES.join(", ");
        Format::named(name).ok_or_else(|| match name {
            "pcap" | "lookupdata" | "ipexist" => {
                format!("format {name} is not supported because rows are JSON; use one of {given}")
            }
            _ => format!("unknown format {name:?}; use one of {given}"),
        })
    }

    /// Returns the format with this name, if it exists.
    #[must_use]
    pub fn named(name: &str) -> Option<Format> {
        match name.to_ascii_lowercase().as_str() {
            "text" => Some(Format::Text),
            "json" => Some(Format::Json),
            "csv" => Some(Format::Csv),
            "csv-raw" => Some(Format::RawCsv),
            "archive" => Some(Format::Archive),
            _ => None,
        }
    }

    /// Returns the MIME type.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Text => "text/plain; charset=utf-8",
            Format::Json => "application/json",
            Format::Csv | Format::RawCsv => "text/csv; charset=utf-8",
            Format::Archive => "application/octet-stream",
        }
    }

    /// Returns the file name extension.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Format::Text => "txt",
            Format::Json => "json",
            Format::Csv | Format::RawCsv => "csv",
            Format::Archive => "gwresult",
        }
    }

    fn is_csv(self) -> bool {
        matches!(self, Format::Csv | Format::RawCsv)
    }
}

/// Properties of results that are not part of the rows.
#[derive(Clone, Debug)]
pub struct About {
    /// Names of the tags; rows refer to them by index.
    pub tags: Vec<String>,
    /// Columns, if the query defines them.
    pub columns: Option<Vec<String>>,
    /// Time range in nanoseconds, end exclusive; rows outside it are omitted.
    pub range: Option<(i64, i64)>,
}

/// Renders results in one format, block by block.
pub struct Rendering {
    results: Arc<Results>,
    about: About,
    format: Format,
    columns: Columns,
    /// Set while the columns are being collected.
    looking: Option<Looking>,
    next: usize,
    is_first: bool,
}

/// Collects the columns of rows that are not a table: the names of all fields, in alphabetical order.
#[derive(Default)]
struct Looking {
    names: BTreeSet<String>,
    name_bytes: usize,
    next: usize,
}

impl Looking {
    /// Scans the next block; returns false past the last one.
    fn step(&mut self, results: &Results) -> Result<bool, ResultsError> {
        let Some(rows) = results.block(self.next)? else { return Ok(false) };
        self.next += 1;
        for row in rows {
            match row.data.trim_ascii_start().first() {
                Some(b'{') => {
                    // The names before an error, or before there are too many, are noted.
                    let _ = serde_json::Deserializer::from_slice(&row.data).deserialize_map(Names(self));
                }
                _ => self.note(String::new()),
            }
            if self.is_over() {
                return Err(std::io::Error::other(format!(
                    "rows have more than {COLUMNS_MAX} different fields, or very long ones; select fields with | table"
                ))
                .into());
            }
        }
        Ok(true)
    }

    fn note(&mut self, name: String) {
        let bytes = name.len();
        if self.names.insert(name) {
            self.name_bytes += bytes;
        }
    }

    fn is_over(&self) -> bool {
        self.names.len() > COLUMNS_MAX || self.name_bytes > NAMES_BYTES_MAX
    }
}

/// Notes the names of the fields of a row.
struct Names<'l>(&'l mut Looking);

impl<'de> Visitor<'de> for Names<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key()? {
            self.0.note(name);
            if self.0.is_over() {
                return Err(A::Error::custom("too many names"));
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

/// Result of one step of a rendering.
pub enum Step {
    /// The next bytes; may be empty.
    Bytes(Vec<u8>),
    /// The next block has not been written yet.
    Wait,
    /// The rendering is complete.
    End,
}

fn wanted(about: &About, row: &Row) -> bool {
    about.range.is_none_or(|(since, until)| (since..until).contains(&row.time))
}

fn quoted(text: &str, line: &mut String) {
    if text.contains(['"', ',', ';', '\t', '\n', '\r']) {
        line.push('"');
        line.push_str(&text.replace('"', "\"\""));
        line.push('"');
    } else {
        line.push_str(text);
    }
}

/// Returns whether a spreadsheet would evaluate a cell as a formula (see OWASP, CSV Injection). Numbers are not formulas.
fn is_formula(text: &str) -> bool {
    let is_number = text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b)) && text.parse::<f64>().is_ok();
    text.starts_with(['=', '+', '-', '@', '\t', '\r']) && !is_number
}

/// Characters that start a new cell in a spreadsheet that separates by semicolons or tabs. Quoting does not help there,
/// because such a spreadsheet does not see the quote at the start of the cell.
const SEPARATORS: [char; 4] = [';', '\t', '\n', '\r'];

/// Returns a cell text of which no part is evaluated as a formula.
fn marked(text: &str) -> Cow<'_, str> {
    let begins = |part: &str| is_formula(part.trim_start_matches(['"', ' ']));
    if !text.split(SEPARATORS).any(begins) && !is_formula(text) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    // A leading tab or line break makes the text itself a formula.
    let mut is_marked = is_formula(text);
    safe.push_str(if is_marked { "'" } else { "" });
    for part in text.split_inclusive(SEPARATORS) {
        if !is_marked && begins(part.trim_end_matches(SEPARATORS)) {
            safe.push('\'');
        }
        is_marked = false;
        safe.push_str(part);
    }
    Cow::Owned(safe)
}

fn csv_line<'a>(cells: impl Iterator<Item = Cow<'a, str>>, format: Format, to: &mut Vec<u8>) {
    let mut line = String::new();
    for (number, text) in cells.enumerate() {
        if number > 0 {
            line.push(',');
        }
        if format == Format::Csv {
            quoted(&marked(&text), &mut line);
        } else {
            quoted(&text, &mut line);
        }
    }
    line.push_str("\r\n");
    to.extend_from_slice(line.as_bytes());
}

/// Formats a row as a line of text.
#[must_use]
pub fn text_of(data: &[u8]) -> Vec<u8> {
    match data.first() {
        Some(b'"') => serde_json::from_slice::<String>(data).map_or_else(|_| data.to_vec(), String::into_bytes),
        _ => data.to_vec(),
    }
}

/// Columns whose cells are read from rows.
pub struct Columns {
    names: Vec<String>,
    fields: Fields,
}

impl Columns {
    /// Prepares columns. The column without a name shows rows that are not objects; a repeated name shows nothing.
    #[must_use]
    pub fn new(names: &[String]) -> Columns {
        Columns { names: names.to_owned(), fields: Fields::named(names) }
    }

    /// Returns the cells of a row.
    #[must_use]
    pub fn cells(&self, row: &Row) -> Vec<String> {
        if row.data.trim_ascii_start().first() == Some(&b'{') {
            let texts = self.fields.texts(&row.data).unwrap_or_else(|_| vec![None; self.names.len()]);
            return texts.into_iter().map(|text| Picked::of(text).cell()).collect();
        }
        let mut cells = vec![String::new(); self.names.len()];
        let whole = self.names.iter().position(String::is_empty).and_then(|at| cells.get_mut(at));
        if let (Some(whole), Ok(text)) = (whole, std::str::from_utf8(&row.data)) {
            *whole = Picked::of(Some(text)).cell();
        }
        cells
    }
}

impl Rendering {
    /// Starts a rendering. CSV without columns in the query needs complete results, because all rows are scanned first:
    /// see [`Rendering::must_be_complete`].
    #[must_use]
    pub fn new(results: Arc<Results>, about: About, format: Format) -> Rendering {
        let columns = Columns::new(about.columns.as_deref().unwrap_or_default());
        let looking = (about.columns.is_none() && format.is_csv()).then(Looking::default);
        Rendering { results, about, format, columns, looking, next: 0, is_first: true }
    }

    /// Returns the size in bytes of the block that the next step reads.
    #[must_use]
    pub fn next_block_bytes(&self) -> usize {
        self.results.block_bytes(self.looking.as_ref().map_or(self.next, |looking| looking.next))
    }

    /// Returns whether a format requires complete results.
    #[must_use]
    pub fn must_be_complete(about: &About, format: Format) -> bool {
        format == Format::Archive || (format.is_csv() && about.columns.is_none())
    }

    /// Returns the next bytes, possibly none; each step reads one block. Blocks.
    ///
    /// # Errors
    /// If the results are corrupt.
    pub fn step(&mut self) -> Result<Step, ResultsError> {
        let mut out = Vec::new();
        if let Some(looking) = &mut self.looking {
            if looking.step(&self.results)? {
                return Ok(Step::Bytes(out));
            }
            self.columns = Columns::new(&std::mem::take(&mut looking.names).into_iter().collect::<Vec<_>>());
            self.looking = None;
        }
        if self.next == 0 && self.is_first {
            self.begin(&mut out);
        }
        let is_finished = self.results.progress().is_finished;
        match self.results.block(self.next)? {
            Some(rows) => {
                self.next += 1;
                let about = &self.about;
                let rows: Vec<Row> = rows.into_iter().filter(|row| wanted(about, row)).collect();
                rows.iter().for_each(|row| self.row(row, &mut out));
                Ok(Step::Bytes(out))
            }
            None if !is_finished => Ok(if out.is_empty() { Step::Wait } else { Step::Bytes(out) }),
            None if self.next == usize::MAX => Ok(Step::End),
            None => {
                self.next = usize::MAX;
                if self.format == Format::Json {
                    out.extend_from_slice(if self.is_first { b"[]\n" } else { b"\n]\n" });
                }
                Ok(Step::Bytes(out))
            }
        }
    }

    fn begin(&mut self, out: &mut Vec<u8>) {
        if self.format.is_csv() {
            let own = ["timestamp", "tag"].into_iter().filter(|_| self.about.columns.is_none());
            let name = |name: &'_ String| if name.is_empty() { "data".to_owned() } else { name.clone() };
            let columns = self.columns.names.iter().map(name).map(Cow::Owned);
            csv_line(own.map(Cow::Borrowed).chain(columns), self.format, out);
            self.is_first = false;
        }
    }

    fn tag(&self, row: &Row) -> &str {
        self.about.tags.get(usize::from(row.tag)).map_or("", String::as_str)
    }

    fn row(&mut self, row: &Row, out: &mut Vec<u8>) {
        match self.format {
            Format::Text | Format::Archive => {
                match row.data.first() {
                    Some(b'"') => out.extend(text_of(&row.data)),
                    _ => out.extend_from_slice(&row.data),
                }
                out.push(b'\n');
            }
            Format::Json => {
                out.extend_from_slice(if self.is_first { b"[\n" } else { b",\n" });
                let (time, tag) = (Timestamp::from_ns(row.time).text(), Value::from(self.tag(row)));
                out.extend_from_slice(format!("{{\"TS\":\"{time}\",\"Tag\":{tag},\"Data\":").as_bytes());
                out.extend_from_slice(&row.data);
                out.push(b'}');
            }
            Format::Csv | Format::RawCsv => {
                let own = match self.about.columns {
                    Some(_) => Vec::new(),
                    None => vec![Timestamp::from_ns(row.time).text(), self.tag(row).to_owned()],
                };
                let cells = own.into_iter().chain(self.columns.cells(row)).map(Cow::Owned);
                csv_line(cells, self.format, out);
            }
        }
        self.is_first = false;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::results::Writer;

    fn rendered(rows: &[&str], columns: Option<&[&str]>, format: Format) -> String {
        let temp = tempfile::tempdir().expect("temp dir");
        let mut writer = Writer::create(&temp.path().join("r"), (0, 1)).expect("creates");
        for (time, row) in (0i64..).zip(rows) {
            let data = Bytes::copy_from_slice(row.as_bytes());
            writer.push(&Row { time: time * 1_000_000_000, tag: 0, data }).expect("writes");
        }
        let results = writer.results();
        writer.finish().expect("finishes");
        let columns = columns.map(|columns| columns.iter().map(|&name| name.to_owned()).collect());
        let about = About { tags: vec!["a".into()], columns, range: None };
        let mut rendering = Rendering::new(results, about, format);
        let mut all = Vec::new();
        loop {
            match rendering.step().expect("renders") {
                Step::Bytes(bytes) => all.extend(bytes),
                Step::Wait => panic!("nothing to wait for"),
                Step::End => return String::from_utf8(all).expect("text"),
            }
        }
    }

    #[test]
    fn every_form() {
        let rows = [r#"{"n":1.50,"t":"a \"b\", c"}"#, "\"a\\nb\"", r#"{"x":[null]}"#];
        assert_eq!(rendered(&rows, None, Format::Text), format!("{}\na\nb\n{}\n", rows[0], rows[2]));
        let json = rendered(&rows, None, Format::Json);
        assert!(json.starts_with("[\n{\"TS\":\"1970-01-01T00:00:00Z\",\"Tag\":\"a\",\"Data\":{\"n\":1.50,"), "{json}");
        assert_eq!(serde_json::from_str::<Vec<Value>>(&json).expect("JSON")[1]["Data"], "a\nb");
        let csv = rendered(&rows, None, Format::Csv);
        assert_eq!(
            csv,
            "timestamp,tag,data,n,t,x\r\n1970-01-01T00:00:00Z,a,,1.5,\"a \"\"b\"\", c\",\r\n\
             1970-01-01T00:00:01Z,a,\"a\nb\",,,\r\n1970-01-01T00:00:02Z,a,,,,[null]\r\n"
        );
        assert_eq!(rendered(&rows, Some(&["t", "no"]), Format::Csv), "t,no\r\n\"a \"\"b\"\", c\",\r\n,\r\n,\r\n");
        assert_eq!(rendered(&[], None, Format::Json), "[]\n");
        assert_eq!(rendered(&[], Some(&["t"]), Format::Csv), "t\r\n");
        assert_eq!(rendered(&[], None, Format::Text), "");
    }

    #[test]
    fn p15_columns_are_looked_for_one_block_at_a_time_and_are_few_and_short() {
        let temp = tempfile::tempdir().expect("temp dir");
        let written = |name: &str, rows: &[String]| {
            let mut writer = Writer::create(&temp.path().join(name), (0, 1)).expect("creates");
            for row in rows {
                writer.push(&Row { time: 0, tag: 0, data: row.clone().into() }).expect("writes");
                writer.show().expect("writes");
            }
            let about = About { tags: vec!["a".into()], columns: None, range: None };
            Rendering::new(writer.results(), about, Format::Csv)
        };
        let named = |name: String| format!("{{\"{name}\":1}}");
        let mut few = written("few", &["b", "a", "b"].map(|name| named(name.into())));
        for number in 0..3 {
            assert_eq!(few.looking.as_ref().map(|looking| looking.next), Some(number));
            assert!(few.next_block_bytes() > 0);
            assert!(matches!(few.step(), Ok(Step::Bytes(bytes)) if bytes.is_empty()));
        }
        assert!(matches!(few.step(), Ok(Step::Bytes(bytes)) if bytes.starts_with(b"timestamp,tag,a,b\r\n")));
        let many: Vec<String> = (0..=COLUMNS_MAX).map(|number| named(number.to_string())).collect();
        let long: Vec<String> = (0..3).map(|number| named(number.to_string().repeat(100 << 10))).collect();
        for mut rendering in [written("many", &many), written("long", &long)] {
            let error = loop {
                if let Err(error) = rendering.step() {
                    break error;
                }
            };
            assert!(error.to_string().contains("| table"), "{error}");
        }
    }

    #[test]
    fn csv_marks_what_a_spreadsheet_would_calculate_unless_it_is_raw() {
        for text in ["=cmd|'/c calc'!A0", "@SUM(1)", "+1+2", "-1-2", "-", "\t=1", "\r=1", "--1", "+1e", "-inf", "+NaN"]
        {
            assert!(is_formula(text), "{text:?}");
        }
        for text in ["-3.5", "+49", "-1e-7", "1+2", "a=b", "", "'=1", "0"] {
            assert!(!is_formula(text), "{text:?}");
        }
        let apart = [
            ("x;=1+1", "x;'=1+1"),
            ("x;-1;-a", "x;-1;'-a"),
            ("x\t@a", "x\t'@a"),
            ("x\n=1", "x\n'=1"),
            ("x;\"=1\"", "x;'\"=1\""),
            ("x; =1", "x;' =1"),
            ("\t=1", "'\t'=1"),
            ("=1;=2", "'=1;'=2"),
        ];
        for (text, safe) in apart {
            assert_eq!(marked(text), safe);
        }
        for text in ["a, -b", "x;y", "x;-1", "a\nb"] {
            assert!(matches!(marked(text), Cow::Borrowed(_)), "{text:?}");
        }
        assert_eq!(rendered(&["{\"a\":\"x;y\"}"], Some(&["a"]), Format::RawCsv), "a\r\n\"x;y\"\r\n");
        let rows = [r#"{"=a":"=cmd|'/c calc'!A0","b":-3.5,"c":"@SUM(1,2)","d":"\r=1"}"#];
        let marked =
            "timestamp,tag,'=a,b,c,d\r\n1970-01-01T00:00:00Z,a,'=cmd|'/c calc'!A0,-3.5,\"'@SUM(1,2)\",\"'\r'=1\"\r\n";
        assert_eq!(rendered(&rows, None, Format::Csv), marked);
        assert_eq!(
            rendered(&rows, None, Format::RawCsv),
            marked.replace("'=", "=").replace("'@", "@").replace("'\r", "\r")
        );
        assert_eq!(Format::wanted("CSV-Raw"), Ok(Format::RawCsv));
    }
}
