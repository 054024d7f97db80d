//! What a search is about: rows of JSON with a time and a tag.

use bytes::Bytes;
use serde_json::Value;

/// Largest row, in bytes.
pub const ROW_BYTES_MAX: usize = 8 << 20;

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Nanoseconds since 1970-01-01 UTC.
    pub time: i64,
    /// Place of its tag in the query.
    pub tag: u16,
    /// One JSON value, without a line break.
    pub data: Bytes,
}

/// Splits a line of the form `TIME TAG` tab JSON, as rows travel to a filter and back.
#[must_use]
pub fn parse_line(line: &Bytes) -> Option<Row> {
    let tab = line.iter().position(|byte| *byte == b'\t')?;
    let (time, tag) = std::str::from_utf8(&line[..tab]).ok()?.split_once(' ')?;
    Some(Row { time: time.parse().ok()?, tag: tag.parse().ok()?, data: line.slice(tab + 1..) })
}

/// The member of a value that a path such as `a.b` names; `null` when there is none.
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

/// A value as it stands in a cell: text without quotation marks, nothing for `null`, JSON for the rest.
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
    fn lines_and_members() {
        let row = parse_line(&Bytes::from_static(b"-5 2\t{\"a\":\"\\t\"}")).expect("a row");
        assert_eq!((row.time, row.tag, &row.data[..]), (-5, 2, &br#"{"a":"\t"}"#[..]));
        for bad in ["", "1\t{}", "1 x\t{}", "1 70000\t{}", "1 2 {}"] {
            assert_eq!(parse_line(&Bytes::from_static(bad.as_bytes())), None, "{bad}");
        }
        let value = serde_json::json!({ "a": { "b": [null, "x"] } });
        let path = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(cell(member(&value, &path("a.b.1"))), "x");
        assert_eq!(cell(member(&value, &path("a.c.d"))), "");
        assert_eq!(cell(member(&value, &path("a.b"))), r#"[null,"x"]"#);
    }
}
