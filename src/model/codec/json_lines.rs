//! Transactions, entries and objects as JSON lines: the format of `import`, `export` and `tail`.
//!
//! A value is stored as the text received, without white space between tokens. Numbers keep their digits and objects
//! the order of their fields, so every member of a fleet prints the same bytes.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::limits::{JSON_DEPTH_MAX, json_depth};
use crate::{Collection, Condition, Entry, EntryBody, Key, Op, Seq, Txn, Withheld};

/// Maximum length of a line: a transaction of maximum length with every byte escaped.
pub const LINE_BYTES_MAX: usize = 6 * crate::limits::HARD.txn_bytes_max;

/// A line that is not a transaction.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct BadLine(String);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    ops: Option<Vec<OpForm>>,
    #[serde(rename = "if", default)]
    conditions: Vec<ConditionForm>,
    // An object, as `export` writes it.
    collection: Option<Collection>,
    key: Option<Key>,
    #[serde(default, deserialize_with = "present")]
    value: Option<Box<RawValue>>,
    bytes: Option<Base64>,
}

/// Distinguishes the value `null` from an absent field.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum OpForm {
    Put {
        collection: Collection,
        key: Key,
        #[serde(default, deserialize_with = "present")]
        value: Option<Box<RawValue>>,
        bytes: Option<Base64>,
    },
    Delete {
        collection: Collection,
        key: Key,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Base64 {
    base64: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum ConditionForm {
    Absent { collection: Collection, key: Key },
    Present { collection: Collection, key: Key },
    Version { collection: Collection, key: Key, version: Seq },
}

/// Parses a line of `import`: a transaction, or an object as `export` writes it.
///
/// # Errors
/// Returns a description of the problem, with the column if the line is not JSON or does not have the expected form.
pub fn parse_line(line: &str) -> Result<(Vec<Op>, Vec<Condition>), BadLine> {
    if line.len() > LINE_BYTES_MAX {
        return Err(BadLine(format!("the line has {} bytes, but at most {LINE_BYTES_MAX} are allowed", line.len())));
    }
    let mut form: Line = serde_json::from_str(line).map_err(|error| {
        let hint = r#"; a line looks like {"ops":[{"put":{"collection":"c","key":"k","value":1}}]}"#;
        BadLine(format!("{error}{hint}"))
    })?;
    let conditions = std::mem::take(&mut form.conditions).into_iter().map(condition).collect();
    let ops = match form {
        Line { ops: Some(ops), collection: None, key: None, value: None, bytes: None, .. } => ops,
        Line { ops: None, collection: Some(collection), key: Some(key), value, bytes, .. } => {
            vec![OpForm::Put { collection, key, value, bytes }]
        }
        Line { ops: None, collection: None, key: None, .. } => return Err(BadLine("missing field `ops`".into())),
        Line { ops: None, .. } => return Err(BadLine("an object needs `collection` and `key`".into())),
        Line { .. } => return Err(BadLine("a line is either a transaction (`ops`) or an object, not both".into())),
    };
    if ops.is_empty() {
        return Err(BadLine("`ops` is empty: a transaction needs at least one operation".into()));
    }
    let ops = ops.into_iter().map(op).collect::<Result<_, _>>()?;
    Ok((ops, conditions))
}

/// Rejects new values that other JSON readers cannot parse. [`parse_line`] still accepts them, because they may be
/// stored already.
///
/// # Errors
/// Returns an error that names the depth and the limit.
pub fn check_depth(ops: &[Op]) -> Result<(), BadLine> {
    let depth = ops.iter().filter_map(Op::value).map(|value| json_depth(value)).max().unwrap_or(0);
    if depth <= JSON_DEPTH_MAX {
        return Ok(());
    }
    let limit = format!("`json_depth_max` allows {JSON_DEPTH_MAX}");
    Err(BadLine(format!("a value is nested {depth} levels deep, but the limit {limit}")))
}

fn op(form: OpForm) -> Result<Op, BadLine> {
    match form {
        OpForm::Delete { collection, key } => Ok(Op::Delete { collection, key }),
        OpForm::Put { collection, key, value: Some(value), bytes: None } => {
            Ok(Op::Put { collection, key, value: Bytes::from(compact(value.get())) })
        }
        OpForm::Put { collection, key, value: None, bytes: Some(Base64 { base64 }) } => {
            let value = STANDARD.decode(&base64);
            let value = value.map_err(|error| BadLine(format!("`bytes` of {collection}/{key}: {error}")))?;
            Ok(Op::Put { collection, key, value: Bytes::from(value) })
        }
        OpForm::Put { collection, key, .. } => {
            Err(BadLine(format!("put {collection}/{key} needs either `value` or `bytes`, and not both")))
        }
    }
}

fn condition(form: ConditionForm) -> Condition {
    match form {
        ConditionForm::Absent { collection, key } => Condition::Absent { collection, key },
        ConditionForm::Present { collection, key } => Condition::Present { collection, key },
        ConditionForm::Version { collection, key, version } => Condition::Version { collection, key, version },
    }
}

/// Removes white space between the tokens of valid JSON.
#[must_use]
pub fn compact(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let (mut in_string, mut escaped) = (false, false);
    for character in json.chars() {
        if in_string {
            out.push(character);
            in_string = escaped || character != '"';
            escaped = !escaped && character == '\\';
        } else if !matches!(character, ' ' | '\t' | '\n' | '\r') {
            out.push(character);
            in_string = character == '"';
        }
    }
    out
}

/// Validates JSON text and converts it to the form in which values are stored.
///
/// # Errors
/// If it is not JSON.
pub fn parse_value(json: &str) -> Result<Bytes, BadLine> {
    let raw: &RawValue = serde_json::from_str(json).map_err(|error| BadLine(error.to_string()))?;
    Ok(Bytes::from(compact(raw.get())))
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

/// Returns `"value":…` if the bytes are JSON without white space between tokens ([`compact`]), otherwise `"bytes":{"base64":"…"}`.
#[must_use]
pub fn value_member(value: &[u8]) -> String {
    let text = std::str::from_utf8(value).ok().filter(|text| {
        !text.contains(['\n', '\r']) && serde_json::from_str::<&RawValue>(text).is_ok_and(|raw| raw.get() == *text)
    });
    match text {
        Some(text) => format!("\"value\":{text}"),
        None => format!("\"bytes\":{{\"base64\":\"{}\"}}", STANDARD.encode(value)),
    }
}

fn name(collection: &Collection, key: &Key) -> String {
    format!("\"collection\":{},\"key\":{}", quoted(collection.as_str()), quoted(key.as_str()))
}

/// Parses a line of `export`.
///
/// # Errors
/// Returns a description of the problem.
pub fn parse_object_line(line: &str) -> Result<(Collection, Key, Bytes), BadLine> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Object {
        collection: Collection,
        key: Key,
        #[serde(default, deserialize_with = "present")]
        value: Option<Box<RawValue>>,
        bytes: Option<Base64>,
    }
    if line.len() > LINE_BYTES_MAX {
        return Err(BadLine(format!("the line has {} bytes, but at most {LINE_BYTES_MAX} are allowed", line.len())));
    }
    let Object { collection, key, value, bytes } =
        serde_json::from_str(line).map_err(|error| BadLine(error.to_string()))?;
    match op(OpForm::Put { collection, key, value, bytes })? {
        Op::Put { collection, key, value } => Ok((collection, key, value)),
        Op::Delete { .. } => Err(BadLine("an object requires a value".into())),
    }
}

/// Returns an object as `export` prints it.
#[must_use]
pub fn object_line(collection: &Collection, key: &Key, value: &[u8]) -> String {
    format!("{{{},{}}}", name(collection, key), value_member(value))
}

fn op_form(op: &Op) -> String {
    let name = name(op.collection(), op.key());
    match op {
        Op::Put { value, .. } => format!("{{\"put\":{{{name},{}}}}}", value_member(value)),
        Op::Delete { .. } => format!("{{\"delete\":{{{name}}}}}"),
    }
}

fn withheld_form(object: &Withheld) -> String {
    let (name, bytes) = (name(&object.collection, &object.key), object.value_bytes);
    format!("{{\"put\":{{{name},\"bytes\":{bytes}}}}}")
}

fn condition_form(condition: &Condition) -> String {
    let name = name(condition.collection(), condition.key());
    match condition {
        Condition::Absent { .. } => format!("{{\"absent\":{{{name}}}}}"),
        Condition::Present { .. } => format!("{{\"present\":{{{name}}}}}"),
        Condition::Version { version, .. } => format!("{{\"version\":{{{name},\"version\":{version}}}}}"),
    }
}

fn list<T>(items: &[T], form: fn(&T) -> String) -> String {
    items.iter().map(form).collect::<Vec<_>>().join(",")
}

/// Returns operations and conditions in the format of `import`.
#[must_use]
pub fn txn_line(ops: &[Op], conditions: &[Condition]) -> String {
    if conditions.is_empty() {
        return format!("{{\"ops\":[{}]}}", list(ops, op_form));
    }
    format!("{{\"ops\":[{}],\"if\":[{}]}}", list(ops, op_form), list(conditions, condition_form))
}

/// Returns a transaction as a JSON value in the format of `import`.
#[must_use]
pub fn txn_to_json(txn: &Txn) -> serde_json::Value {
    serde_json::from_str(&txn_line(&txn.ops, &txn.conditions)).unwrap_or_else(|_| {
        // Some JSON cannot be parsed here, such as deep nesting. Its text shows it completely, too.
        let line =
            format!("{{\"ops\":[{}],\"if\":[{}]}}", list(&txn.ops, op_as_text), list(&txn.conditions, condition_form));
        serde_json::from_str(&line).unwrap_or_else(|error| error.to_string().into())
    })
}

/// Like [`op_form`], with the value as a string.
fn op_as_text(op: &Op) -> String {
    match op.value().and_then(|value| std::str::from_utf8(value).ok()) {
        Some(text) => format!("{{\"put\":{{{},\"text\":{}}}}}", name(op.collection(), op.key()), quoted(text)),
        None => op_form(op),
    }
}

/// Returns an entry as `tail` prints it.
#[must_use]
pub fn entry_line(entry: &Entry) -> String {
    let mut line = format!("{{\"seq\":{},\"time\":\"{}\"", entry.seq, timestamp(entry.time_ms));
    let mut add = |text: std::fmt::Arguments<'_>| {
        let _ = line.write_fmt(text);
    };
    if let Some(id) = entry.body.id() {
        add(format_args!(",\"origin\":\"{}\",\"counter\":{}", id.origin, id.counter));
    }
    add(format_args!(",\"member\":{}", quoted(entry.member.as_str())));
    match &entry.body {
        EntryBody::Commit(txn) | EntryBody::Redacted { txn, .. } => {
            add(format_args!(",\"ops\":[{}]", list(&txn.ops, op_form)));
            if let EntryBody::Redacted { withheld, .. } = &entry.body {
                add(format_args!(",\"withheld\":[{}]", list(withheld, withheld_form)));
            }
            if !txn.conditions.is_empty() {
                add(format_args!(",\"if\":[{}]", list(&txn.conditions, condition_form)));
            }
            if !txn.note.is_empty() {
                let note = value_member(&txn.note);
                add(format_args!(",\"note\":{{{note}}}"));
            }
        }
        EntryBody::Reject { reason, .. } => {
            add(format_args!(",\"rejected\":{},\"ops\":[]", quoted(&reason.to_string())));
        }
        EntryBody::Unknown { kind, payload } => {
            add(format_args!(",\"kind\":{kind},\"payload\":\"{}\",\"ops\":[]", STANDARD.encode(payload)));
        }
    }
    line.push('}');
    line
}

/// Formats milliseconds since 1970-01-01 UTC as RFC 3339 with milliseconds.
#[must_use]
pub fn timestamp(time_ms: u64) -> String {
    let seconds = i64::try_from(time_ms / 1000).unwrap_or(0);
    let at = time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        time_ms % 1000
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_transaction_is_shown_however_deep_its_values_are() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        for (value, shown) in [(deep.as_str(), deep.as_str()), (r#""\ud800""#, r#""\ud800""#)] {
            let (collection, key) = (Collection::new("c").expect("name"), Key::new("k").expect("key"));
            let id = crate::TxnId { origin: crate::Origin([1; 16]), counter: crate::OriginCounter(1) };
            let op = Op::Put { collection, key, value: Bytes::from(value.to_owned()) };
            let settled = crate::OriginCounter(0);
            let txn = Txn { id, settled, time_ms: 0, note: Bytes::new(), conditions: vec![], ops: vec![op] };
            assert_eq!(txn_to_json(&txn)["ops"][0]["put"]["text"], shown);
        }
        let line = format!(r#"{{"ops":[{{"put":{{"collection":"c","key":"k","value":{deep}}}}}]}}"#);
        let (ops, _) = parse_line(&line).expect("is valid");
        assert!(check_depth(&ops).expect_err("is too deep").to_string().contains("json_depth_max"));
    }

    #[test]
    fn the_documented_line_is_read() {
        let line = r#"{"ops":[{"put":{"collection":"c","key":"k","value": {"a": [1.50, "x y"]}}},{"delete":{"collection":"c","key":"k2"}},{"put":{"collection":"c","key":"b","bytes":{"base64":"AAE="}}}],"if":[{"absent":{"collection":"c","key":"k"}},{"version":{"collection":"c","key":"v","version":7}}]}"#;
        let (ops, conditions) = parse_line(line).expect("parses");
        assert_eq!(ops[0].value().expect("value").as_ref(), br#"{"a":[1.50,"x y"]}"#);
        assert_eq!(ops[2].value().expect("value").as_ref(), [0, 1]);
        assert_eq!(conditions.len(), 2);
        assert_eq!(parse_line(&txn_line(&ops, &conditions)), Ok((ops, conditions)));
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("", "EOF"),
            ("{}", "missing field `ops`"),
            (r#"{"collection":"c","value":1}"#, "needs `collection` and `key`"),
            (r#"{"collection":"c","key":"k"}"#, "either `value` or `bytes`"),
            (r#"{"ops":[],"collection":"c"}"#, "not both"),
            (r#"{"ops":[]}"#, "at least one operation"),
            (r#"{"ops":[{"put":{"collection":"c","key":"k"}}]}"#, "either `value` or `bytes`"),
            (r#"{"ops":[{"put":{"collection":"c","key":"","value":1}}]}"#, "must not be empty"),
            (r#"{"ops":[{"drop":{"collection":"c","key":"k"}}]}"#, "unknown variant `drop`"),
            (r#"{"ops":[{"delete":{"collection":"c","key":"k"}}],"iff":[]}"#, "unknown field `iff`"),
            (r#"{"ops":[{"put":{"collection":"c","key":"k","bytes":{"base64":"?"}}}]}"#, "`bytes` of c/k"),
        ];
        for (line, what) in cases {
            let error = parse_line(line).expect_err(line).to_string();
            assert!(error.contains(what), "{line}: {error}");
        }
    }

    #[test]
    fn time_is_utc_with_milliseconds() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
    }

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        use serde_json::Value;
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "\\PC{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            let object = prop::collection::btree_map("\\PC{0,4}", inner.clone(), 0..4);
            let object = object.prop_map(|members| Value::Object(members.into_iter().collect()));
            prop_oneof![prop::collection::vec(inner, 0..4).prop_map(Value::from), object]
        })
    }

    proptest! {
        #[test]
        fn any_value_round_trips(value in prop::collection::vec(any::<u8>(), 0..40), json in any_json()) {
            let (collection, key) = (Collection::new("c").expect("name"), Key::new("k\"\\é").expect("key"));
            let json = Bytes::from(serde_json::to_vec(&json).expect("json"));
            let ops: Vec<Op> = [Bytes::from(value), json]
                .into_iter()
                .map(|value| Op::Put { collection: collection.clone(), key: key.clone(), value })
                .collect();
            prop_assert_eq!(&parse_line(&txn_line(&ops, &[])).expect("parses").0, &ops);
            for op in &ops {
                let value = op.value().expect("a put");
                let line = object_line(op.collection(), op.key(), value);
                prop_assert_eq!(&parse_line(&line).expect("parses").0, std::slice::from_ref(op));
                prop_assert_eq!(&parse_object_line(&line).expect("parses").2, value);
            }
        }
    }
}
