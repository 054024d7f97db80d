//! The tables of `docs/protocol.md` against the code.

use std::collections::BTreeMap;
use std::path::Path;

use gravwell_log::format::LINEAGE_MAX;
use gravwell_model::codec::admin::Request;
use gravwell_model::codec::message::{Kind, MESSAGE_BYTES_MAX, Row, TxnOutcome, VERSION_MAX, VERSION_MIN};
use gravwell_model::limits::HARD;
use gravwell_model::visibility::SECRET;
use gravwell_model::{Collection, Condition, Key, Limits, Op, Reason, Seq};
use gravwell_transport::endpoint::{CLOSE_LEFT_BEHIND, CLOSE_NOT_A_MEMBER, CLOSE_REVOKED};
use gravwell_transport::trust::tls::{ALPN_CHUNKS, ALPN_JOIN, ALPN_LOG, ALPN_PEER, SERVER_NAME};
use serde::Serialize;

use super::samples;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the root")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn document() -> String {
    read("docs/protocol.md")
}

/// The cells of all rows of the tables between a heading and the next one.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let text = document();
    let lines = text.lines().skip_while(|line| *line != heading).skip(1);
    let section = lines.take_while(|line| !line.starts_with('#')).filter(|line| line.starts_with("| "));
    let cells = |line: &str| {
        let cells = line.trim_matches('|').split('|').map(|cell| cell.trim_matches([' ', '`']).to_owned());
        cells.collect::<Vec<_>>()
    };
    let found: Vec<_> = section.map(cells).filter(|cells| !cells[0].starts_with("---")).collect();
    assert!(!found.is_empty(), "no table below {heading}");
    found
}

/// Rows `| number | name | …` below a heading.
fn numbered(heading: &str) -> BTreeMap<u64, String> {
    let row = |cells: Vec<String>| Some((cells.first()?.parse().ok()?, cells.get(1)?.clone()));
    let found = rows(heading).into_iter().filter_map(row).collect::<Vec<_>>();
    let count = found.len();
    let found: BTreeMap<_, _> = found.into_iter().collect();
    assert_eq!(found.len(), count, "{heading}: duplicate number");
    found
}

/// Number of a variant on the wire, and its name.
fn variant<T: Serialize + std::fmt::Debug>(value: &T) -> (u64, String) {
    let bytes = postcard::to_stdvec(value).expect("encodes");
    let shown = format!("{value:?}");
    let name = shown.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    (bytes[0].into(), name.to_owned())
}

fn check_variants<T: Serialize + std::fmt::Debug>(heading: &str, values: &[T]) {
    assert_eq!(numbered(heading), values.iter().map(variant).collect(), "{heading}");
}

#[test]
fn the_tables_of_kinds_and_variants_are_those_of_the_code() {
    let kinds = (0..=u8::MAX).filter_map(Kind::from_byte).map(|kind| (kind as u64, format!("{kind:?}")));
    assert_eq!(numbered("### Kinds"), kinds.collect());
    check_variants("### Streams", &samples::OPENS.map(|(open, _)| open));
    check_variants("### RefusalCode", &samples::CODES);
    check_variants("### Verdict", &samples::VERDICTS);
    check_variants("### Role", &samples::ROLES);
    check_variants("### Reason", &samples::reasons());
    check_variants("### TxnOutcome", &samples::fates().into_iter().map(|(fate, _)| fate).collect::<Vec<_>>());
    check_variants("### Row", &samples::rows().into_iter().map(|(row, ..)| row).collect::<Vec<_>>());
    let place = || (Collection::new("c").expect("a collection"), Key::new("k").expect("a key"));
    let absent = |(collection, key)| Condition::Absent { collection, key };
    let present = |(collection, key)| Condition::Present { collection, key };
    let version = |(collection, key)| Condition::Version { collection, key, version: Seq(1) };
    check_variants("### Condition", &[absent(place()), present(place()), version(place())]);
    let put = |(collection, key)| Op::Put { collection, key, value: bytes::Bytes::new() };
    let delete = |(collection, key)| Op::Delete { collection, key };
    check_variants("### Op", &[put(place()), delete(place())]);
    // What follows the last variant is none: the tables lack nothing.
    assert!(postcard::from_bytes::<gravwell_model::codec::message::Open>(&[10]).is_err());
    assert!(postcard::from_bytes::<gravwell_model::codec::message::RefusalCode>(&[10]).is_err());
    assert!(postcard::from_bytes::<gravwell_model::Verdict>(&[6]).is_err());
    assert!(postcard::from_bytes::<gravwell_transport::trust::Role>(&[4]).is_err());
}

/// A variant that is new does not compile here without a look at the tables and at the golden messages.
#[test]
fn every_variant_with_fields_has_a_golden_message() {
    let of_fate = |fate: &TxnOutcome| match fate {
        TxnOutcome::Committed(_) => 0,
        TxnOutcome::Rejected(..) => 1,
        TxnOutcome::Decided(_) => 2,
        TxnOutcome::Gap(_) => 3,
        TxnOutcome::Deferred(_) => 4,
        TxnOutcome::Queued => 5,
    };
    let of_row = |row: &Row| match row {
        Row::Object { .. } => 0,
        Row::Origin { .. } => 1,
        Row::Maker { .. } => 2,
        Row::Withheld { .. } => 3,
    };
    let of_reason = |reason: &Reason| match reason {
        Reason::ConditionFailed { .. } => 0,
        Reason::LimitExceeded { .. } => 1,
        Reason::Forbidden { .. } => 2,
        Reason::IdentityReused => 3,
        Reason::ChunksLost { .. } => 4,
    };
    assert_eq!(samples::fates().iter().map(|(fate, _)| of_fate(fate)).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(samples::rows().iter().map(|(row, ..)| of_row(row)).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(samples::reasons().iter().map(of_reason).collect::<Vec<_>>(), [0, 0, 0, 1, 2, 3, 4]);
}

/// Name and type of the fields of a structure, as the document writes them.
fn fields(path: &str, name: &str) -> Vec<(String, String)> {
    let text = read(path);
    let starts = |line: &&str| {
        let rest = line.trim_start_matches("pub(super) ").trim_start_matches("pub ").strip_prefix("struct ");
        rest.and_then(|rest| rest.strip_prefix(name)).is_some_and(|rest| rest.starts_with([' ', '<']))
    };
    let lines = text.lines().skip_while(|line| !starts(line)).skip(1).take_while(|line| *line != "}");
    let field = |line: &str| {
        let (name, kind) = line.trim().trim_start_matches("pub ").strip_suffix(',')?.split_once(": ")?;
        let is_name = name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        is_name.then(|| (name.to_owned(), described(kind)))
    };
    let found: Vec<_> = lines.filter_map(field).collect();
    assert!(!found.is_empty(), "{path} has no structure {name}");
    found
}

/// A type of the code as the document calls it.
fn described(code: &str) -> String {
    let within = |head: &str| code.strip_prefix(head).and_then(|rest| rest.strip_suffix('>'));
    if let Some(inner) = within("Option<") {
        return format!("option of {}", described(inner));
    }
    if let Some(inner) = within("Vec<").filter(|inner| *inner != "u8") {
        return format!("list of {}", described(inner));
    }
    if let Some(inner) = code.strip_prefix("Cow<'a, [").and_then(|rest| rest.strip_suffix("]>")) {
        return if inner == "u8" { "bytes".into() } else { format!("list of {inner}") };
    }
    if let Some(inner) = code.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
        return format!("({})", inner.split(", ").map(described).collect::<Vec<_>>().join(", "));
    }
    match code {
        "String" => "text",
        "Bytes" | "Vec<u8>" => "bytes",
        "Seq" => "sequence",
        "OriginCounter" => "counter",
        "Generation" => "generation",
        "LogId" => "log id",
        "Origin" => "origin",
        "Chain" => "chain",
        "Digest" => "digest",
        "ChunkId" => "chunk name",
        "Fingerprint" | "[u8; 32]" => "[u8; 32]",
        "MemberName" => "member name",
        "Collection" => "collection",
        "Key" => "key",
        "Lineage" => "list of LineageEntry",
        other => other,
    }
    .to_owned()
}

#[test]
fn the_fields_of_every_body_are_those_of_the_code() {
    let message = "src/model/codec/message.rs";
    let mut bodies: Vec<(&str, &str, &str)> = [
        "Hello",
        "Welcome",
        "Refused",
        "Subscribe",
        "Progress",
        "Heartbeat",
        "Compacted",
        "Bookmark",
        "Announce",
        "Revocations",
        "Outcome",
        "SnapshotBegin",
        "SnapshotEnd",
    ]
    .map(|name| (name, message, name))
    .into();
    let chunks = ["MissingQuery", "MissingChunks", "ChunkRequest", "RequestedChunk", "StoredChunks"];
    bodies.extend(chunks.map(|name| (name, "src/model/codec/chunks.rs", name)));
    bodies.extend(["TxnId", "OriginRow", "Maker"].map(|name| (name, "src/model/txn.rs", name)));
    bodies.extend(["Position", "LineageEntry"].map(|name| (name, "src/model/position.rs", name)));
    bodies.extend(["JoinRequest", "Joined"].map(|name| (name, "src/transport/join.rs", name)));
    bodies.push(("Transaction", "src/model/codec/txn.rs", "TxnV1"));
    bodies.push(("Withheld", "src/model/redaction.rs", "Withheld"));
    bodies.push(("Deletions", "src/model/deletions.rs", "Summary"));
    bodies.push(("Token", "src/transport/trust/token.rs", "Token"));
    for (heading, path, name) in bodies {
        let written = rows(&format!("### {heading}")).into_iter().skip(1);
        let written = written.map(|cells| (cells[0].clone(), cells[1].replace("fingerprint", "[u8; 32]")));
        assert_eq!(written.collect::<Vec<_>>(), fields(path, name), "{heading}");
    }
}

/// The name on the wire. A request that is new does not compile without one.
fn name(request: &Request) -> &'static str {
    match request {
        Request::Status => "status",
        Request::Members => "members",
        Request::Presence => "presence",
        Request::Backends => "backends",
        Request::Collections => "collections",
        Request::Segments => "segments",
        Request::Get { .. } => "get",
        Request::List { .. } => "list",
        Request::Export { .. } => "export",
        Request::Tail { .. } => "tail",
        Request::History { .. } => "history",
        Request::Record { .. } => "record",
        Request::Submit { .. } => "submit",
        Request::OriginStatus { .. } => "origin_status",
        Request::Verify => "verify",
        Request::Compact { .. } => "compact",
        Request::Enroll { .. } => "enroll",
        Request::Revoke { .. } => "revoke",
        Request::Outbox => "outbox",
        Request::Retry { .. } => "retry",
        Request::Dismiss { .. } => "dismiss",
        Request::BlobList => "blob_list",
        Request::BlobStats => "blob_stats",
        Request::BlobVerify => "blob_verify",
        Request::BlobCollect { .. } => "blob_collect",
        Request::Generations => "generations",
        Request::Proof => "proof",
        Request::Escrow { .. } => "escrow",
        Request::Roots { .. } => "roots",
        Request::RotateAuthority { .. } => "rotate_authority",
        Request::Copy { .. } => "copy",
        Request::CopyChunks { .. } => "copy_chunks",
        Request::Upstream => "upstream",
        Request::Audit { .. } => "audit",
        Request::AuditVerify { .. } => "audit_verify",
        Request::AuditActs { .. } => "audit_acts",
        Request::Deletions { .. } => "deletions",
        Request::Barrier { .. } => "barrier",
        Request::AuditAcknowledge { .. } => "audit_acknowledge",
    }
}

#[test]
fn the_table_of_requests_is_that_of_the_code() {
    let mut written: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for cells in rows("## Administration").into_iter().skip(1) {
        let fields = cells[1].split(", ").filter(|field| !field.is_empty()).map(str::to_owned);
        written.insert(cells[0].clone(), fields.collect());
    }
    let mut found = BTreeMap::new();
    for request in samples::requests() {
        let serde_json::Value::Object(mut json) = serde_json::to_value(&request).expect("encodes") else {
            panic!("a request is an object")
        };
        assert_eq!(json.remove("request"), Some(name(&request).into()));
        // JSON objects are sorted here, and their order means nothing.
        found.insert(name(&request).to_owned(), json.keys().cloned().collect::<Vec<_>>());
    }
    written.values_mut().for_each(|fields| fields.sort());
    assert_eq!(written, found);
}

/// Every `const CLOSE_… = N` and every literal code that a connection is closed with.
fn close_codes(dir: &Path, found: &mut BTreeMap<u64, Vec<String>>) {
    for entry in std::fs::read_dir(dir).expect("lists").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            close_codes(&entry, found);
            continue;
        }
        let text = std::fs::read_to_string(&entry).unwrap_or_default();
        for line in text.lines() {
            let constant = line.split_once("const CLOSE_").and_then(|(_, rest)| rest.split_once(": u32 = "));
            let literal = line.split_once(".close(").and_then(|(_, rest)| rest.split_once("u32.into()"));
            let number = constant.map(|(_, number)| number.trim_end_matches(';')).or(literal.map(|(code, _)| code));
            if let Some(code) = number.and_then(|number| number.parse().ok()) {
                found.entry(code).or_default().push(format!("{}: {}", entry.display(), line.trim()));
            }
        }
    }
}

#[test]
fn the_close_codes_are_those_of_the_code() {
    let mut found = BTreeMap::new();
    close_codes(&root().join("src"), &mut found);
    let written = numbered("### Closing");
    assert_eq!(written.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>(), "{found:#?}");
    let named = [(CLOSE_NOT_A_MEMBER, "not a member"), (CLOSE_REVOKED, "revoked"), (CLOSE_LEFT_BEHIND, "left behind")];
    for (code, name) in named {
        assert_eq!(written.get(&u64::from(code)).map(String::as_str), Some(name));
    }
}

/// The value of a constant, durations in milliseconds.
fn constant(path: &str, name: &str) -> u64 {
    match (path, name) {
        ("model/codec/message.rs", "MESSAGE_BYTES_MAX") => return MESSAGE_BYTES_MAX as u64,
        ("log/format.rs", "LINEAGE_MAX") => return LINEAGE_MAX as u64,
        _ => {}
    }
    let text = read(&format!("src/{path}"));
    let head = format!("const {name}: ");
    let line = text.lines().find(|line| line.contains(&head)).unwrap_or_else(|| panic!("{path} has no {name}"));
    let (_, value) = line.split_once(" = ").expect("a value");
    value_of(path, value.trim_end_matches(';'))
}

fn value_of(path: &str, text: &str) -> u64 {
    let call = |head: &str| text.strip_prefix(head).and_then(|rest| rest.strip_suffix(')'));
    if let Some(seconds) = call("Duration::from_secs(") {
        return 1000 * value_of(path, seconds);
    }
    if let Some(milliseconds) = call("Duration::from_millis(") {
        return value_of(path, milliseconds);
    }
    if let Some((left, right)) = text.split_once(" << ") {
        return value_of(path, left) << value_of(path, right);
    }
    if let Some((left, right)) = text.split_once(" / ") {
        return value_of(path, left) / value_of(path, right);
    }
    text.replace('_', "").parse().unwrap_or_else(|_| constant(path, text))
}

#[test]
fn the_bounds_are_those_of_the_code() {
    let bounds: Vec<_> = rows("## Bounds and timeouts").into_iter().skip(1).collect();
    assert!(bounds.len() > 70, "{}", bounds.len());
    for cells in bounds {
        let [bound, value, place] = &cells[..] else { panic!("{cells:?}") };
        let (number, unit) = value.split_once(' ').unwrap_or((value, ""));
        let number: u64 = number.replace(',', "").parse().unwrap_or_else(|_| panic!("{bound}: {value}"));
        let (path, name) = place.split_once("` `").unwrap_or_else(|| panic!("{bound}: {place}"));
        let number = if unit == "s" { 1000 * number } else { number };
        assert_eq!(number, constant(path, name), "{bound}: {place}");
    }
    let text = document();
    let grouped = |number: usize| {
        let digits = number.to_string();
        let groups = digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).expect("digits"));
        groups.collect::<Vec<_>>().join(",")
    };
    let limits = format!(
        "{}, {} and {}",
        grouped(HARD.key_bytes_max),
        grouped(HARD.value_bytes_max),
        grouped(HARD.txn_bytes_max)
    );
    assert!(text.contains(&limits), "{limits}");
    let rows = format!("{} operations and conditions together", grouped(Limits::default().ops_max));
    assert!(text.contains(&rows), "{rows}");
    let pushed = Limits::default().of_pushed();
    let rows = format!("{} operations and conditions", grouped(pushed.ops_max));
    assert!(text.contains(&rows), "{rows}");
}

#[test]
fn the_names_and_versions_are_those_of_the_code() {
    let text = document();
    for name in [ALPN_LOG, ALPN_CHUNKS, ALPN_JOIN, ALPN_PEER] {
        let name = std::str::from_utf8(name).expect("text");
        assert!(rows("## Transport").iter().any(|cells| cells[0] == name), "{name}");
    }
    assert_eq!(rows("## Transport").len(), 5, "a header row and four protocols");
    assert!(text.contains(&format!("`{SERVER_NAME}`")));
    let secret = SECRET.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    assert!(text.replace('\n', " ").contains(&secret), "{secret}");
    let versions: Vec<u64> = numbered("## Versions").into_keys().collect();
    let spoken: Vec<u64> = (u64::from(VERSION_MIN)..=u64::from(VERSION_MAX)).collect();
    assert_eq!(versions, spoken);
    assert!(text.contains(&format!("A program speaks {VERSION_MIN} to {VERSION_MAX}.")));
    let format = read("log-format.md");
    let row = format.lines().find(|line| line.starts_with("| wire protocol ")).expect("a row");
    assert!(row.contains(&format!("| {VERSION_MIN} to {VERSION_MAX} |")), "{row}");
}

/// Whether the table of texts has the text of each of these.
pub fn check_texts(reasons: &[Reason]) {
    let texts: Vec<String> = rows("### Digests").into_iter().skip(1).map(|cells| cells[1].clone()).collect();
    for reason in reasons {
        let shown = reason.to_string();
        let general = shown.replace("absent users/käte", "CONDITION").replace("version 300", "version VERSION");
        let is_message = shown == "why" && texts.iter().any(|text| text == "the message");
        assert!(is_message || texts.contains(&general), "{general}");
    }
}
