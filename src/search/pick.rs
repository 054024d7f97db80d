//! Fields of rows, read without decoding the rest of a row, and the memory of what stages keep.
//!
//! Rows are JSON that users write. Decoded as a whole, a row takes up to a hundred times the memory of its text. So only
//! the named fields are read, and a long array or object remains text.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer as _, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

/// Maximum length in bytes of an array or object that is decoded; a longer one is compared by its text.
const DECODED_BYTES_MAX: usize = 4 << 10;
/// Maximum number of names in a path: rows are not decoded deeper than that.
const LEVELS_MAX: usize = 127;
/// Memory of an object with fields, and of each of its fields in addition to name and value: a tree whose nodes may be
/// half full.
const OBJECT_BYTES: usize = 640;
const FIELD_BYTES: usize = 128;

/// Memory of what a stage or a response keeps.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    bytes: usize,
    most: usize,
}

impl Held {
    /// Starts with nothing; `most` is the limit in bytes.
    #[must_use]
    pub fn new(most: usize) -> Held {
        Held { bytes: 0, most }
    }

    /// Counts more bytes. Returns whether they are within the limit.
    pub fn take(&mut self, bytes: usize) -> bool {
        self.bytes = self.bytes.saturating_add(bytes);
        self.bytes <= self.most
    }

    /// Counts bytes as no longer kept.
    pub fn release(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// Value of a field.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Picked {
    /// Decoded value.
    Value(Value),
    /// JSON text that is too long to be decoded.
    Text(Box<str>),
}

impl Picked {
    /// Reads the JSON text of a value; `None` is read as `null`.
    #[must_use]
    pub fn of(text: Option<&str>) -> Picked {
        let Some(text) = text else { return Picked::Value(Value::Null) };
        let is_long = text.starts_with(['{', '[']) && text.len() > DECODED_BYTES_MAX;
        let value = if is_long { None } else { serde_json::from_str(text).ok() };
        value.map_or_else(|| Picked::Text(text.into()), Picked::Value)
    }

    /// Returns the JSON text.
    #[must_use]
    pub fn json(&self) -> String {
        match self {
            Picked::Value(value) => value.to_string(),
            Picked::Text(text) => text.to_string(),
        }
    }

    /// Formats the value for a table cell: strings without quotation marks, nothing for `null`, JSON for all other
    /// values.
    #[must_use]
    pub fn cell(self) -> String {
        match self {
            Picked::Value(Value::Null) => String::new(),
            Picked::Value(Value::String(text)) => text,
            other => other.json(),
        }
    }

    /// Estimates the memory of the value, in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        size_of::<Picked>()
            + match self {
                Picked::Value(value) => heap(value),
                Picked::Text(text) => text.len(),
            }
    }

    /// Compares values in the order of jq: null, false, true, numbers, strings, arrays, objects. Among arrays and among
    /// objects, long ones are last.
    #[must_use]
    pub fn compare(&self, other: &Picked) -> Ordering {
        match (self, other) {
            (Picked::Value(a), Picked::Value(b)) => compare(a, b),
            (Picked::Text(a), Picked::Text(b)) if self.rank() == other.rank() => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }

    fn rank(&self) -> (u8, bool) {
        match self {
            Picked::Value(value) => (rank(value), false),
            Picked::Text(text) if text.starts_with('[') => (ARRAY, true),
            Picked::Text(text) if text.starts_with('{') => (OBJECT, true),
            Picked::Text(_) => (STRING, true),
        }
    }
}

fn heap(value: &Value) -> usize {
    match value {
        Value::String(text) => text.capacity(),
        Value::Array(items) => items.capacity() * size_of::<Value>() + items.iter().map(heap).sum::<usize>(),
        Value::Object(fields) if fields.is_empty() => 0,
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| FIELD_BYTES + name.capacity() + heap(value);
            OBJECT_BYTES + fields.iter().map(field).sum::<usize>()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

const STRING: u8 = 4;
const ARRAY: u8 = 5;
const OBJECT: u8 = 6;

fn rank(value: &Value) -> u8 {
    match value {
        Value::Null => 0,
        Value::Bool(false) => 1,
        Value::Bool(true) => 2,
        Value::Number(_) => 3,
        Value::String(_) => STRING,
        Value::Array(_) => ARRAY,
        Value::Object(_) => OBJECT,
    }
}

fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => a.cmp(&b),
            _ => a.as_f64().unwrap_or(0.0).total_cmp(&b.as_f64().unwrap_or(0.0)),
        },
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Array(a), Value::Array(b)) => {
            let differing = a.iter().zip(b).map(|(a, b)| compare(a, b)).find(|order| order.is_ne());
            differing.unwrap_or_else(|| a.len().cmp(&b.len()))
        }
        (Value::Object(_), Value::Object(_)) => a.to_string().cmp(&b.to_string()),
        _ => rank(a).cmp(&rank(b)),
    }
}

/// Fields to read, as a tree of their names.
#[derive(Debug, Default)]
struct Node {
    /// Places of the result in which the value is stored.
    places: Vec<usize>,
    members: HashMap<String, Node>,
    /// Members whose names are indices of array elements.
    elements: BTreeMap<usize, Vec<String>>,
}

impl Node {
    fn child(&mut self, name: &str) -> &mut Node {
        if !self.members.contains_key(name)
            && let Ok(index) = name.parse()
        {
            self.elements.entry(index).or_default().push(name.to_owned());
        }
        self.members.entry(name.to_owned()).or_default()
    }

    /// Stores a value, and the values within it that belong to members.
    fn note<'a>(&self, text: &'a str, found: &mut [Option<&'a str>]) -> serde_json::Result<()> {
        for place in &self.places {
            if let Some(place) = found.get_mut(*place) {
                *place = Some(text);
            }
        }
        if self.members.is_empty() {
            return Ok(());
        }
        // Of a name that is repeated, the last value counts, with its members.
        self.members.values().for_each(|member| member.clear(found));
        self.look(text, found)
    }

    /// Forgets the values of this member and of those within it.
    fn clear(&self, found: &mut [Option<&str>]) {
        for place in &self.places {
            if let Some(place) = found.get_mut(*place) {
                *place = None;
            }
        }
        self.members.values().for_each(|member| member.clear(found));
    }

    /// Looks for the members in the text of a value.
    fn look<'a>(&self, text: &'a str, found: &mut [Option<&'a str>]) -> serde_json::Result<()> {
        let mut reader = serde_json::Deserializer::from_str(text);
        match text.trim_ascii_start().bytes().next() {
            Some(b'{') => reader.deserialize_map(Looking { node: self, found })?,
            Some(b'[') => reader.deserialize_seq(Looking { node: self, found })?,
            _ => drop(reader.deserialize_any(IgnoredAny)?),
        }
        reader.end()
    }
}

struct Looking<'n, 'f, 'a> {
    node: &'n Node,
    found: &'f mut [Option<&'a str>],
}

impl<'a> Visitor<'a> for Looking<'_, '_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a row")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(member) = map.next_key_seed(Member(self.node))? {
            match member {
                None => drop(map.next_value::<IgnoredAny>()?),
                Some(member) => {
                    let text = map.next_value::<&RawValue>()?.get();
                    member.note(text, self.found).map_err(A::Error::custom)?;
                }
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut items: A) -> Result<(), A::Error> {
        for index in 0usize.. {
            let Some(names) = self.node.elements.get(&index) else {
                if items.next_element::<IgnoredAny>()?.is_none() {
                    break;
                }
                continue;
            };
            let Some(item) = items.next_element::<&RawValue>()? else { break };
            for member in names.iter().filter_map(|name| self.node.members.get(name)) {
                member.note(item.get(), self.found).map_err(A::Error::custom)?;
            }
        }
        Ok(())
    }
}

/// Reads a name and returns the node for it, if there is one.
struct Member<'n>(&'n Node);

impl<'de, 'n> DeserializeSeed<'de> for Member<'n> {
    type Value = Option<&'n Node>;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_str(self)
    }
}

impl<'n> Visitor<'_> for Member<'n> {
    type Value = Option<&'n Node>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.members.get(name))
    }
}

/// Fields that are read from rows.
#[derive(Debug)]
pub struct Fields {
    root: Node,
    count: usize,
}

impl Fields {
    /// Reads fields at paths such as `a.b`. A field of the row with that whole name, as columns of a previous stage have
    /// it, comes first.
    #[must_use]
    pub fn at(paths: &[Vec<String>]) -> Fields {
        let mut root = Node::default();
        for (number, path) in paths.iter().enumerate().filter(|(_, path)| path.len() <= LEVELS_MAX) {
            root.child(&path.join(".")).places.push(2 * number);
            path.iter().fold(&mut root, |node, name| node.child(name)).places.push(2 * number + 1);
        }
        Fields { root, count: paths.len() }
    }

    /// Reads fields of the row itself. Of equal names only the first one gets the value.
    #[must_use]
    pub fn named(names: &[String]) -> Fields {
        let mut root = Node::default();
        for (number, name) in names.iter().enumerate() {
            let node = root.child(name);
            if node.places.is_empty() {
                node.places.push(2 * number);
            }
        }
        Fields { root, count: names.len() }
    }

    /// Returns the JSON text of each field; `None` for those that a row does not have.
    ///
    /// # Errors
    /// If the row is not JSON.
    pub fn texts<'a>(&self, row: &'a [u8]) -> Result<Vec<Option<&'a str>>, String> {
        let text = std::str::from_utf8(row).map_err(|error| error.to_string())?;
        let mut found = vec![None; 2 * self.count];
        self.root.look(text, &mut found).map_err(|error| error.to_string())?;
        Ok(found.chunks(2).map(|found| found.iter().copied().flatten().next()).collect())
    }

    /// Returns the value of each field; `null` for those that a row does not have. Without fields the row is not read.
    ///
    /// # Errors
    /// If the row is not JSON.
    pub fn values(&self, row: &[u8]) -> Result<Vec<Picked>, String> {
        if self.count == 0 {
            return Ok(Vec::new());
        }
        Ok(self.texts(row)?.into_iter().map(Picked::of).collect())
    }
}

/// Returns the fields of a row by name, at most `most`; none for a row that is not an object.
#[must_use]
pub fn members(row: &[u8], most: usize) -> BTreeMap<String, Picked> {
    let mut found = BTreeMap::new();
    // The fields before an error, or before there are too many, are returned.
    let _ = serde_json::Deserializer::from_slice(row).deserialize_map(Members { found: &mut found, most });
    found
}

struct Members<'f> {
    found: &'f mut BTreeMap<String, Picked>,
    most: usize,
}

impl<'de> Visitor<'de> for Members<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
            if self.found.len() >= self.most {
                return Err(A::Error::custom("too many fields"));
            }
            self.found.insert(name, Picked::of(Some(value.get())));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Vec<String> {
        text.split('.').map(str::to_owned).collect()
    }

    fn cells(row: &str, paths: &[&str]) -> Vec<String> {
        let paths: Vec<_> = paths.iter().map(|text| path(text)).collect();
        Fields::at(&paths).values(row.as_bytes()).expect("reads").into_iter().map(Picked::cell).collect()
    }

    #[test]
    fn fields_are_found_by_path_index_and_whole_name() {
        let row = r#"{"a":{"b":[null,"x",{"c":1.50}]},"a.d":7,"e\u0066":true}"#;
        let paths = ["a.b.1", "a.c.d", "a.b", "a.b.2.c", "a.b.02.c", "a.d", "ef", "a.b.0", "a.b.9"];
        let wanted = ["x", "", r#"[null,"x",{"c":1.5}]"#, "1.5", "1.5", "7", "true", "", ""];
        assert_eq!(cells(row, &paths), wanted);
        assert_eq!(cells("[1,{\"a\":2}]", &["0", "1.a", "a"]), ["1", "2", ""]);
        assert_eq!(cells("\"text\"", &["a"]), [""]);
        assert_eq!(cells(r#"{"a.b":1,"a":{"b":2}}"#, &["a.b"]), ["1"], "the whole name comes first");
        assert_eq!(
            cells(r#"{"a":{"b":1},"a":{"c":2}}"#, &["a.b", "a.c"]),
            ["", "2"],
            "the last value of a name counts"
        );
        assert_eq!(cells(r#"{"a":{"b":1},"a":5}"#, &["a.b", "a"]), ["", "5"]);
        assert!(Fields::at(&[path("a")]).values(b"{\"a\":1").is_err());
        let names = ["b".to_owned(), "b".to_owned(), "a.c".to_owned()];
        let texts = Fields::named(&names);
        assert_eq!(texts.texts(br#"{"b":1,"a.c":[]}"#), Ok(vec![Some("1"), None, Some("[]")]));
    }

    #[test]
    fn p15_few_members_of_a_row_are_returned() {
        let row = format!("{{{}\"z\":[]}}", (0..100_000).map(|n| format!("\"{n}\":0,")).collect::<String>());
        assert_eq!(members(row.as_bytes(), 10).len(), 10);
        let all = members(br#"{"b":1,"a":"x"}"#, 10);
        assert_eq!(
            all.into_iter().map(|(name, value)| (name, value.cell())).collect::<Vec<_>>(),
            [("a".into(), "x".into()), ("b".into(), "1".into())] as [(String, String); 2]
        );
        assert!(members(b"[1]", 10).is_empty() && members(b"1", 10).is_empty());
    }

    #[test]
    fn a_row_of_any_depth_is_read() {
        let deep = format!("{{\"a\":1,\"b\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(cells(&deep, &["a"]), ["1"]);
        assert_eq!(cells(&deep, &["b"])[0].len(), 200_000);
        let long = vec!["a".to_owned(); 8000];
        assert_eq!(Fields::at(&[long]).values(b"{}"), Ok(vec![Picked::Value(Value::Null)]));
    }

    #[test]
    fn p15_a_long_array_stays_text_and_is_counted() {
        let long = format!("[{}0]", "{\"b\":0},".repeat(100_000));
        let picked = Picked::of(Some(&long));
        assert!(matches!(picked, Picked::Text(_)));
        assert!((long.len()..long.len() + 100).contains(&picked.memory()));
        assert_eq!(picked.json(), long);
        let short = Picked::of(Some(&long[..8]));
        assert!(matches!(short, Picked::Text(_)), "text that is not JSON stays text");
        let decoded = Picked::of(Some("[{\"b\":0},{\"b\":0}]"));
        assert!(decoded.memory() > 2 * (OBJECT_BYTES + FIELD_BYTES));
        let mut held = Held::new(100);
        assert!(held.take(60) && !held.take(60));
        held.release(60);
        assert!(held.take(40) && !held.take(usize::MAX));
    }

    #[test]
    fn values_are_in_the_order_of_jq() {
        let long = |begin: &str, end: &str| format!("{begin}{}{end}", " ".repeat(DECODED_BYTES_MAX));
        let texts = ["null", "false", "true", "-1", "2.5", "10", "\"a\"", "\"b\"", "[]", "[0]", "[0,1]"];
        let mut texts: Vec<String> = texts.map(str::to_owned).to_vec();
        texts.extend([long("[", "]"), "{\"a\":1}".into(), "{}".into(), long("{", "}")]);
        let values: Vec<Picked> = texts.iter().map(|text| Picked::of(Some(text))).collect();
        for (a, one) in values.iter().enumerate() {
            for (b, other) in values.iter().enumerate() {
                assert_eq!(one.compare(other), a.cmp(&b), "{} {}", one.json(), other.json());
            }
        }
    }
}
