//! Stages of a query as iterators: each consumes the rows of the previous one and buffers as little as possible.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use bytes::Bytes;
use serde_json::{Map, Value};

use super::query::Field;
use super::row::{Row, cell, member};
use crate::objects::depth;

/// Maximum number of groups of `count by`.
pub const GROUPS_MAX: usize = 100_000;
/// Maximum number of bytes that `sort` buffers.
pub const SORT_BYTES_MAX: usize = 48 << 20;

/// Reason why a search ended early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The search was stopped; its results so far are kept.
    #[error("stopped")]
    Stopped,
    /// The search failed with this reason.
    #[error("{0}")]
    Broken(String),
}

/// Stream of rows between stages.
pub type Rows = Box<dyn Iterator<Item = Result<Row, Failure>> + Send>;

fn value_of(row: &Row) -> Result<Value, Failure> {
    serde_json::from_slice(&row.data).or_else(|error| match std::str::from_utf8(&row.data) {
        // Valid JSON, but nested too deeply to parse: no field of it can be selected.
        Ok(text) if depth::is_deep(&row.data) => Ok(Value::String(text.to_owned())),
        _ => Err(Failure::Broken(format!("row is not JSON: {error}"))),
    })
}

/// Returns the values of the given fields. Without fields the row is not parsed.
fn values_of(row: &Row, fields: &[Field]) -> Result<Vec<Value>, Failure> {
    if fields.is_empty() {
        return Ok(Vec::new());
    }
    let value = value_of(row)?;
    let part = |field: &Field| value.get(field.join(".")).unwrap_or_else(|| member(&value, field)).clone();
    Ok(fields.iter().map(part).collect())
}

fn data_of(value: &Value) -> Bytes {
    value.to_string().into()
}

/// Passes on the first `limit` rows and requests no more than those.
#[must_use]
pub fn limited(rows: Rows, limit: u64) -> Rows {
    Box::new(rows.take(usize::try_from(limit).unwrap_or(usize::MAX)))
}

/// Replaces each row by an object of the given fields, keyed by path.
#[must_use]
pub fn tabled(rows: Rows, fields: Vec<Field>) -> Rows {
    let names: Vec<String> = fields.iter().map(|field| field.join(".")).collect();
    Box::new(rows.map(move |row| {
        let mut row = row?;
        let value = value_of(&row)?;
        let mut shown = Map::new();
        for (name, field) in names.iter().zip(&fields) {
            // Columns of a previous stage have dots in their names.
            let found = value.get(name).unwrap_or_else(|| member(&value, field));
            shown.insert(name.clone(), found.clone());
        }
        row.data = data_of(&Value::Object(shown));
        Ok(row)
    }))
}

/// Creates a stage that needs all rows before it returns the first.
fn gathered(gather: impl FnOnce() -> Result<Vec<Row>, Failure> + Send + 'static) -> Rows {
    let mut gather = Some(gather);
    let mut ready: std::vec::IntoIter<Row> = Vec::new().into_iter();
    Box::new(std::iter::from_fn(move || {
        if let Some(gather) = gather.take() {
            match gather() {
                Ok(rows) => ready = rows.into_iter(),
                Err(failure) => return Some(Err(failure)),
            }
        }
        ready.next().map(Ok)
    }))
}

#[derive(Clone, Copy)]
struct Group {
    count: u64,
    time: i64,
    tag: u16,
}

/// Counts all rows, or rows whose fields are equal, most frequent first.
#[must_use]
pub fn counted(rows: Rows, by: Vec<Field>) -> Rows {
    gathered(move || {
        let mut groups: HashMap<Vec<Value>, Group> = HashMap::new();
        for row in rows {
            let row = row?;
            let key = values_of(&row, &by)?;
            if groups.len() >= GROUPS_MAX && !groups.contains_key(&key) {
                return Err(Failure::Broken(format!(
                    "count finds more than {GROUPS_MAX} groups; filter rows first, or use coarser fields"
                )));
            }
            let group = groups.entry(key).or_insert(Group { count: 0, time: row.time, tag: row.tag });
            group.count += 1;
            group.time = group.time.max(row.time);
        }
        if by.is_empty() && groups.is_empty() {
            groups.insert(Vec::new(), Group { count: 0, time: 0, tag: 0 });
        }
        let mut groups: Vec<(Vec<Value>, Group)> = groups.into_iter().collect();
        let order = |a: &(Vec<Value>, Group), b: &(Vec<Value>, Group)| {
            b.1.count.cmp(&a.1.count).then_with(|| compare_all(&a.0, &b.0))
        };
        groups.sort_by(order);
        let shown = |(key, group): (Vec<Value>, Group)| {
            let names = by.iter().map(|field| field.join("."));
            let mut fields: Map<String, Value> = names.zip(key).collect();
            fields.insert("count".into(), group.count.into());
            Row { time: group.time, tag: group.tag, data: data_of(&Value::Object(fields)) }
        };
        Ok(groups.into_iter().map(shown).collect())
    })
}

/// Compares values in the order of jq: null, false, true, numbers, strings, arrays, objects.
#[must_use]
pub fn compare(a: &Value, b: &Value) -> Ordering {
    let rank = |value: &Value| match value {
        Value::Null => 0,
        Value::Bool(false) => 1,
        Value::Bool(true) => 2,
        Value::Number(_) => 3,
        Value::String(_) => 4,
        Value::Array(_) => 5,
        Value::Object(_) => 6,
    };
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => a.cmp(&b),
            _ => a.as_f64().unwrap_or(0.0).total_cmp(&b.as_f64().unwrap_or(0.0)),
        },
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Array(a), Value::Array(b)) => compare_all(a, b),
        (Value::Object(_), Value::Object(_)) => cell(a).cmp(&cell(b)),
        _ => rank(a).cmp(&rank(b)),
    }
}

fn compare_all(a: &[Value], b: &[Value]) -> Ordering {
    let differing = a.iter().zip(b).map(|(a, b)| compare(a, b)).find(|order| order.is_ne());
    differing.unwrap_or_else(|| a.len().cmp(&b.len()))
}

/// A row with its sort keys. The greatest is the row that would come last.
struct Ranked {
    keys: Vec<Value>,
    number: u64,
    descending: bool,
    row: Row,
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        let order = match self.keys.is_empty() {
            true => self.row.time.cmp(&other.row.time),
            false => compare_all(&self.keys, &other.keys),
        };
        let order = if self.descending { order.reverse() } else { order };
        order.then(self.number.cmp(&other.number))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Ranked {}

/// Sorts rows; the sort is stable. If a `limit` follows, it buffers no more rows than that.
#[must_use]
pub fn sorted(rows: Rows, by: Vec<Field>, descending: bool, limit: Option<u64>) -> Rows {
    gathered(move || {
        let (mut heap, mut bytes) = (BinaryHeap::new(), 0);
        for (number, row) in (0u64..).zip(rows) {
            let mut row = row?;
            // A shared slice would keep the rest of its batch in memory.
            row.data = Bytes::copy_from_slice(&row.data);
            let keys = values_of(&row, &by)?;
            bytes += cost(&row);
            heap.push(Ranked { keys, number, descending, row });
            if limit.is_some_and(|limit| heap.len() as u64 > limit) {
                bytes -= heap.pop().map_or(0, |ranked| cost(&ranked.row));
            }
            if bytes > SORT_BYTES_MAX {
                let limit = SORT_BYTES_MAX >> 20;
                return Err(Failure::Broken(format!(
                    "sort needs more than {limit} MiB; filter rows or fields first, or add a limit after it"
                )));
            }
        }
        Ok(heap.into_sorted_vec().into_iter().map(|ranked| ranked.row).collect())
    })
}

/// Returns the memory of a buffered row, including a rough estimate for its keys.
fn cost(row: &Row) -> usize {
    row.data.len() + 256
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(texts: &[&str]) -> Rows {
        let rows: Vec<Row> = (0i64..)
            .zip(texts)
            .map(|(time, text)| Row { time, tag: 0, data: Bytes::copy_from_slice(text.as_bytes()) })
            .collect();
        Box::new(rows.into_iter().map(Ok))
    }

    fn texts(rows: Rows) -> Vec<String> {
        rows.map(|row| String::from_utf8(row.expect("a row").data.to_vec()).expect("text")).collect()
    }

    fn path(text: &str) -> Field {
        text.split('.').map(str::to_owned).collect()
    }

    #[test]
    fn counting() {
        let people = [r#"{"u":{"n":"a"}}"#, r#"{"u":{"n":"b"}}"#, r#"{"u":{"n":"b"}}"#, r#"{"v":1}"#];
        let found = texts(counted(rows(&people), vec![path("u.n")]));
        assert_eq!(found, [r#"{"count":2,"u.n":"b"}"#, r#"{"count":1,"u.n":null}"#, r#"{"count":1,"u.n":"a"}"#]);
        assert_eq!(texts(counted(rows(&people), vec![])), [r#"{"count":4}"#]);
        assert_eq!(texts(counted(rows(&[]), vec![])), [r#"{"count":0}"#]);
        let many: Vec<String> = (0..=GROUPS_MAX).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let all = counted(rows(&many), vec![path("x")]);
        assert_eq!(texts(all).len(), 1, "numbers have no fields");
    }

    #[test]
    fn too_many_groups_are_refused() {
        let many: Vec<String> = (0..=GROUPS_MAX).map(|n| format!("{{\"x\":{n}}}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let first = counted(rows(&many), vec![path("x")]).next().expect("an answer");
        assert!(matches!(first, Err(Failure::Broken(_))));
    }

    #[test]
    fn sorting_and_limits() {
        let given = [r#"{"n":2}"#, r#"{"n":"x"}"#, r#"{"n":10,"i":1}"#, r#"{"n":10,"i":2}"#, "{}"];
        let sort = |descending, limit| texts(sorted(rows(&given), vec![path("n")], descending, limit));
        assert_eq!(sort(false, None), ["{}", given[0], given[2], given[3], given[1]]);
        assert_eq!(sort(true, None), [given[1], given[2], given[3], given[0], "{}"]);
        assert_eq!(sort(true, Some(2)), [given[1], given[2]]);
        let latest = texts(sorted(rows(&given), vec![], true, Some(1)));
        assert_eq!(latest, ["{}"]);
        assert_eq!(texts(limited(rows(&given), 2)), given[..2]);
        let large = format!("\"{}\"", "x".repeat(SORT_BYTES_MAX));
        assert!(matches!(sorted(rows(&[&large]), vec![], true, None).next(), Some(Err(Failure::Broken(_)))));
    }

    #[test]
    fn columns() {
        let given = [r#"{"a":{"b":1},"c":"x","d":2}"#, r#"{"a.b":7}"#];
        let shown = texts(tabled(rows(&given), vec![path("a.b"), path("c")]));
        assert_eq!(shown, [r#"{"a.b":1,"c":"x"}"#, r#"{"a.b":7,"c":null}"#]);
    }
}
