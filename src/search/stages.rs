//! Stages of a query as iterators: each consumes the rows of the previous one and buffers as little as possible.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap, HashMap};

use bytes::Bytes;
use serde_json::Value;

use super::pick::{Fields, Held, Picked};
use super::query::Field;
use super::row::{ROW_BYTES_MAX, Row};

/// Maximum number of groups of `count by`.
pub const GROUPS_MAX: usize = 100_000;
/// Maximum memory in bytes of the rows and keys that a stage keeps.
pub const HELD_BYTES_MAX: usize = 48 << 20;
/// Memory of a row or group that a stage keeps, in addition to its data and keys.
const ENTRY_BYTES: usize = 256;

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

fn values_of(row: &Row, fields: &Fields) -> Result<Vec<Picked>, Failure> {
    fields.values(&row.data).map_err(not_json)
}

fn not_json(error: String) -> Failure {
    Failure::Broken(format!("row is not JSON: {error}"))
}

fn memory(values: &[Picked]) -> usize {
    values.iter().map(Picked::memory).sum()
}

fn too_much(stage: &str, advice: &str) -> Failure {
    Failure::Broken(format!("{stage} needs more than {} MiB; {advice}", HELD_BYTES_MAX >> 20))
}

/// Names of columns in alphabetical order, as JSON, with the numbers of their values.
struct Columns(Vec<(String, usize)>);

impl Columns {
    fn new(names: impl Iterator<Item = String>) -> Columns {
        let sorted: BTreeMap<String, usize> = names.zip(0..).collect();
        Columns(sorted.into_iter().map(|(name, number)| (format!("{}:", Value::String(name)), number)).collect())
    }

    /// Returns the size of the names in a row.
    fn bytes(&self) -> usize {
        self.0.iter().map(|(name, _)| name.len() + 1).sum()
    }

    /// Returns a row as JSON; `value` returns the JSON of a value by its number.
    ///
    /// # Errors
    /// If the row is too large.
    fn row(&self, value: impl Fn(usize) -> String) -> Result<Bytes, Failure> {
        let mut row = String::from("{");
        for (name, number) in &self.0 {
            if row.len() > 1 {
                row.push(',');
            }
            row.push_str(name);
            row.push_str(&value(*number));
            if row.len() >= ROW_BYTES_MAX {
                return Err(Failure::Broken(format!("a row has more than {} MiB", ROW_BYTES_MAX >> 20)));
            }
        }
        row.push('}');
        Ok(row.into())
    }
}

/// Passes on the first `limit` rows and requests no more than those.
#[must_use]
pub fn limited(rows: Rows, limit: u64) -> Rows {
    Box::new(rows.take(usize::try_from(limit).unwrap_or(usize::MAX)))
}

/// Replaces each row by an object of the given fields, keyed by path.
#[must_use]
pub fn tabled(rows: Rows, fields: Vec<Field>) -> Rows {
    let columns = Columns::new(fields.iter().map(|field| field.join(".")));
    let fields = Fields::at(&fields);
    Box::new(rows.map(move |row| {
        let mut row = row?;
        let texts = fields.texts(&row.data).map_err(not_json)?;
        row.data = columns.row(|number| Picked::of(texts.get(number).copied().flatten()).json())?;
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
        let columns = Columns::new(by.iter().map(|field| field.join(".")).chain(["count".to_owned()]));
        let fields = Fields::at(&by);
        let (mut groups, mut held) = (HashMap::<Vec<Picked>, Group>::new(), Held::new(HELD_BYTES_MAX));
        for row in rows {
            let row = row?;
            let key = values_of(&row, &fields)?;
            if let Some(group) = groups.get_mut(&key) {
                group.count += 1;
                group.time = group.time.max(row.time);
                continue;
            }
            if groups.len() >= GROUPS_MAX {
                return Err(Failure::Broken(format!(
                    "count finds more than {GROUPS_MAX} groups; filter rows first, or use coarser fields"
                )));
            }
            // Each group becomes a row, which has the names as well.
            if !held.take(memory(&key) + columns.bytes() + ENTRY_BYTES) {
                return Err(too_much("count", "filter rows first, or use coarser fields"));
            }
            groups.insert(key, Group { count: 1, time: row.time, tag: row.tag });
        }
        if by.is_empty() && groups.is_empty() {
            groups.insert(Vec::new(), Group { count: 0, time: 0, tag: 0 });
        }
        let mut groups: Vec<(Vec<Picked>, Group)> = groups.into_iter().collect();
        let order = |a: &(Vec<Picked>, Group), b: &(Vec<Picked>, Group)| {
            b.1.count.cmp(&a.1.count).then_with(|| compare_all(&a.0, &b.0))
        };
        groups.sort_by(order);
        let shown = |(key, group): (Vec<Picked>, Group)| {
            let value = |number: usize| key.get(number).map_or_else(|| group.count.to_string(), Picked::json);
            Ok(Row { time: group.time, tag: group.tag, data: columns.row(value)? })
        };
        groups.into_iter().map(shown).collect()
    })
}

fn compare_all(a: &[Picked], b: &[Picked]) -> Ordering {
    let differing = a.iter().zip(b).map(|(a, b)| a.compare(b)).find(|order| order.is_ne());
    differing.unwrap_or_else(|| a.len().cmp(&b.len()))
}

/// A row with its sort keys. The greatest is the row that would come last.
struct Ranked {
    keys: Vec<Picked>,
    number: u64,
    descending: bool,
    row: Row,
}

impl Ranked {
    /// Returns its memory.
    fn memory(&self) -> usize {
        self.row.data.len() + memory(&self.keys) + ENTRY_BYTES
    }
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
        let (mut heap, mut held) = (BinaryHeap::new(), Held::new(HELD_BYTES_MAX));
        let fields = Fields::at(&by);
        for (number, row) in (0u64..).zip(rows) {
            let mut row = row?;
            // A shared slice would keep the rest of its batch in memory.
            row.data = Bytes::copy_from_slice(&row.data);
            let ranked = Ranked { keys: values_of(&row, &fields)?, number, descending, row };
            let mut is_within = held.take(ranked.memory());
            heap.push(ranked);
            if limit.is_some_and(|limit| heap.len() as u64 > limit) {
                held.release(heap.pop().map_or(0, |ranked| ranked.memory()));
                is_within = held.take(0);
            }
            if !is_within {
                return Err(too_much("sort", "filter rows or fields first, or add a limit after it"));
            }
        }
        Ok(heap.into_sorted_vec().into_iter().map(|ranked| ranked.row).collect())
    })
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

    /// Rows, each of which is made when it is asked for.
    fn many(count: usize, row: impl Fn(usize) -> String + Send + 'static) -> Rows {
        Box::new((0..count).map(move |number| Ok(Row { time: 0, tag: 0, data: row(number).into() })))
    }

    #[track_caller]
    fn is_refused(mut rows: Rows, reason: &str) {
        match rows.next() {
            Some(Err(Failure::Broken(found))) => assert!(found.contains(reason), "{found}"),
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn p15_keys_are_counted_among_what_a_stage_keeps() {
        let large = |number: usize| format!("{{\"a\":\"{}{number}\"}}", "x".repeat(60_000));
        is_refused(counted(many(1000, large), vec![path("a")]), "count needs more than 48 MiB");
        assert_eq!(texts(counted(many(1000, |_| "{\"a\":1}".into()), vec![path("a")])).len(), 1);
        // The names are in every row that results.
        let names: Vec<Field> = (0..2000).map(|number| path(&format!("field{number}"))).collect();
        is_refused(counted(many(10_000, |number| format!("{{\"field0\":{number}}}")), names), "count needs more");
        // The keys of a row take more than its text.
        let objects = |number: usize| format!("{{\"a\":[{number}{}]}}", ",{\"b\":0}".repeat(400));
        is_refused(sorted(many(1000, objects), vec![path("a")], false, None), "sort needs more than 48 MiB");
        assert_eq!(texts(sorted(many(1000, objects), vec![path("a")], false, Some(3))).len(), 3);
    }

    #[test]
    fn p15_a_column_is_no_longer_than_its_row() {
        let row = format!("{{\"a\":[{}0]}}", "{\"b\":0},".repeat(500_000));
        let [first, rest @ ..] = &*texts(tabled(rows(&[&row]), vec![path("a")])) else { panic!("a row") };
        assert!(first.len() == row.len() && rest.is_empty());
        let nested = (1..200).map(|levels| vec!["a".to_owned(); levels]).collect();
        let row = format!("{}\"{}\"{}", "{\"a\":".repeat(100), "x".repeat(1 << 20), "}".repeat(100));
        is_refused(tabled(rows(&[&row]), nested), "a row has more than 8 MiB");
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
        let large = format!("\"{}\"", "x".repeat(HELD_BYTES_MAX));
        assert!(matches!(sorted(rows(&[&large]), vec![], true, None).next(), Some(Err(Failure::Broken(_)))));
    }

    #[test]
    fn columns() {
        let given = [r#"{"a":{"b":1},"c":"x","d":2}"#, r#"{"a.b":7}"#];
        let shown = texts(tabled(rows(&given), vec![path("a.b"), path("c")]));
        assert_eq!(shown, [r#"{"a.b":1,"c":"x"}"#, r#"{"a.b":7,"c":null}"#]);
    }
}
