//! At least one message of every kind, with a value in every field.

use bytes::Bytes;
use gravwell_model::codec::admin::{
    AdminError, CopyHave, ExportEnd, GenerationCause, GenerationInfo, Request, SeenVersion, Status,
};
use gravwell_model::codec::audit::Act;
use gravwell_model::codec::authority::{EscrowInfo, RootInfo, RootsInfo, RotationStep};
use gravwell_model::codec::block::decode_block;
use gravwell_model::codec::chunks::{
    ChunkData, ChunkRequest, MissingChunks, MissingQuery, RequestedChunk, StoredChunks, decode_chunk, encode_chunk,
};
use gravwell_model::codec::frame::CHAIN_START;
use gravwell_model::codec::message::*;
use gravwell_model::codec::payload::encode_entry;
use gravwell_model::codec::redacted_frame::redact_frames;
use gravwell_model::codec::{deletions, txn};
use gravwell_model::*;
use gravwell_transport::join::{JoinRequest, Joined};
use gravwell_transport::trust::{Proof, Role, Roster, RosterCertificate, RosterMember};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Encoding of a body, which decides what may follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// No bytes may follow.
    Closed,
    /// JSON: unknown fields are ignored.
    Json,
    /// Bytes that the protocol does not interpret, or that end with the message.
    Opaque,
}

type Check = Box<dyn Fn(&Bytes) -> Result<(), String>>;

/// A message with the expected properties of its body.
pub struct Sample {
    /// First protocol version that may send it.
    pub version: u16,
    /// Name of its golden file.
    pub name: &'static str,
    /// The bytes on the stream.
    pub bytes: Vec<u8>,
    pub encoding: Encoding,
    /// Returns whether a body decodes to the value that the message was encoded from.
    pub check: Check,
}

impl Sample {
    fn since(self, version: u16) -> Sample {
        Sample { version, ..self }
    }
}

fn same<T: PartialEq + std::fmt::Debug>(found: Result<T, String>, expected: &T) -> Result<(), String> {
    let found = found?;
    if found == *expected { Ok(()) } else { Err(format!("{found:?} instead of {expected:?}")) }
}

/// A message with a postcard body.
fn body<T>(name: &'static str, kind: Kind, value: T) -> Sample
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug + 'static,
{
    let bytes = encode(kind, &value);
    let check = move |body: &Bytes| same(decode::<T>(kind, body).map_err(|error| error.to_string()), &value);
    Sample { version: 1, name, bytes, encoding: Encoding::Closed, check: Box::new(check) }
}

fn json<T>(name: &'static str, kind: Kind, value: T) -> Sample
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug + 'static,
{
    let bytes = encode_raw(kind, &serde_json::to_vec(&value).expect("encodes"));
    let check = move |body: &Bytes| same(serde_json::from_slice::<T>(body).map_err(|error| error.to_string()), &value);
    Sample { version: 1, name, bytes, encoding: Encoding::Json, check: Box::new(check) }
}

fn raw(
    name: &'static str,
    kind: Kind,
    body: &[u8],
    encoding: Encoding,
    check: impl Fn(&Bytes) -> Result<(), String> + 'static,
) -> Sample {
    Sample { version: 1, name, bytes: encode_raw(kind, body), encoding, check: Box::new(check) }
}

/// A body that is passed on unchanged.
fn opaque(name: &'static str, kind: Kind, bytes: &'static [u8]) -> Sample {
    raw(name, kind, bytes, Encoding::Opaque, move |body| same(Ok(body.to_vec()), &bytes.to_vec()))
}

fn collection(name: &str) -> Collection {
    Collection::new(name).expect("a collection")
}

fn key() -> Key {
    Key::new("käte").expect("a key")
}

fn member() -> MemberName {
    MemberName::new("web-1.example").expect("a name")
}

fn id(counter: u64) -> TxnId {
    TxnId { origin: Origin([0xa1; 16]), counter: OriginCounter(counter) }
}

fn wide() -> Generation {
    Generation((1_795_000_000_123 << 11) | 0x345)
}

fn lineage(last: Generation) -> Lineage {
    let entry = |generation, shared_to| LineageEntry { generation, shared_to: Seq(shared_to) };
    vec![entry(Generation(1), 0), entry(last, 300)]
}

fn position(generation: Generation) -> Position {
    let digest = Digest::from_bytes([0x33; 32]);
    Position { log_id: LogId([0x10; 16]), generation, seq: Seq(4711), chain: [0x22; 16], digest }
}

/// Every variant of a rejection's reason.
pub fn reasons() -> Vec<Reason> {
    let failed =
        |found: Option<u64>| Reason::ConditionFailed { condition: "absent users/käte".into(), found: found.map(Seq) };
    let message = || "why".to_owned();
    vec![
        failed(None),
        failed(Some(300)),
        failed(Some(1 << 63)),
        Reason::LimitExceeded { message: message() },
        Reason::Forbidden { message: message() },
        Reason::IdentityReused,
        Reason::ChunksLost { message: message() },
    ]
}

/// A row of an origin that has every reason.
pub fn origin_row() -> OriginRow {
    let rejected = reasons().into_iter().zip(7..).map(|(reason, n)| (OriginCounter(n), Seq(1000 + n), reason));
    OriginRow { last_counter: OriginCounter(300), last_seq: Seq(4711), rejected: rejected.collect() }
}

fn transaction() -> Txn {
    let (collection, key) = (collection("users"), key());
    let place = || (collection.clone(), key.clone());
    let absent = |(collection, key)| Condition::Absent { collection, key };
    let present = |(collection, key)| Condition::Present { collection, key };
    let version = |(collection, key)| Condition::Version { collection, key, version: Seq(300) };
    let put = |(collection, key)| Op::Put { collection, key, value: Bytes::from_static(b"{\"id\":300}") };
    let delete = |(collection, key)| Op::Delete { collection, key };
    Txn {
        id: id(300),
        settled: OriginCounter(299),
        time_ms: 1_700_000_000_000,
        note: Bytes::from_static(b"admin from 192.0.2.1"),
        conditions: vec![absent(place()), present(place()), version(place())],
        ops: vec![put(place()), delete(place())],
    }
}

/// A commit of a value that is withheld from readers, a rejection, and a record of an unknown kind.
fn entries() -> Vec<Entry> {
    let mut txn = transaction();
    let value = Bytes::from_static(b"$argon2id$");
    txn.ops.push(Op::Put { collection: collection("passwords"), key: key(), value });
    let at = |seq, body| Entry { seq: Seq(seq), time_ms: 1_700_000_000_000 + seq, member: member(), body };
    let reject = EntryBody::Reject { id: id(301), settled: OriginCounter(0), reason: Reason::IdentityReused };
    let unknown = EntryBody::Unknown { kind: 9, payload: Bytes::from_static(b"of a later version") };
    let unknown = Entry { seq: Seq(3), time_ms: 0, member: MemberName::unknown(), body: unknown };
    vec![at(1, EntryBody::Commit(txn)), at(2, reject), unknown]
}

fn frames(name: &'static str, is_redacted: bool) -> Sample {
    let (mut bytes, mut chain) = (Vec::new(), CHAIN_START);
    for entry in entries() {
        chain = encode_entry(&entry, &chain, 0, 0, &mut bytes).expect("encodes");
    }
    let redaction = Redaction::default();
    let (sent, expected) = match is_redacted {
        true => {
            let redacted = entries().into_iter().map(|entry| redaction.redact(entry)).collect();
            (redact_frames(&redaction, bytes.into()).expect("redacts"), redacted)
        }
        false => (bytes.into(), entries()),
    };
    let check = move |body: &Bytes| {
        let found = decode_block(body.clone(), CHAIN_START, is_redacted).map_err(|error| error.to_string())?;
        let is_last = found.last().is_some_and(|(_, found)| *found == chain);
        assert!(is_last || body.is_empty(), "the chain");
        same(Ok(found.into_iter().map(|(entry, _)| entry).collect::<Vec<_>>()), &expected)
    };
    raw(name, Kind::Frames, &sent, Encoding::Closed, check)
}

fn push(name: &'static str, kind: Kind) -> Sample {
    let mut body = Vec::new();
    txn::encode_txn(&transaction(), &mut body);
    let check = |body: &Bytes| same(txn::decode_txn(body).map_err(|error| error.to_string()), &transaction());
    raw(name, kind, &body, Encoding::Closed, check)
}

fn hello(generation: Generation) -> Hello {
    Hello {
        version_min: 1,
        version_max: 300,
        software: "gravwell 0.1.0".into(),
        position: Some(position(generation)),
        external_addr: Some("web1.example.net:443".into()),
    }
}

fn welcome(generation: Generation, verdict: Option<Verdict>) -> Welcome {
    Welcome {
        version: 1,
        software: "gravwell 0.1.0".into(),
        member: member().to_string(),
        role: Role::Webserver.to_string(),
        log_id: LogId([0x10; 16]),
        generation,
        lineage: lineage(generation),
        head: Seq(5000),
        horizon: Seq(4000),
        verdict,
        heartbeat_ms: 5000,
        txn_bytes_max: 4 << 20,
        value_bytes_max: 1 << 20,
        key_bytes_max: 1024,
    }
}

/// Every code of a refusal.
pub const CODES: [RefusalCode; 10] = [
    RefusalCode::Version,
    RefusalCode::NotAMember,
    RefusalCode::Forbidden,
    RefusalCode::Protocol,
    RefusalCode::Busy,
    RefusalCode::DiskFull,
    RefusalCode::Stopping,
    RefusalCode::Diverged,
    RefusalCode::Internal,
    RefusalCode::ChunksMissing,
];

/// Every verdict.
pub const VERDICTS: [Verdict; 6] =
    [Verdict::Same, Verdict::Behind, Verdict::Ahead, Verdict::Forked, Verdict::Foreign, Verdict::Empty];

/// Every purpose of a stream, with its golden file.
pub const OPENS: [(Open, &str); 10] = [
    (Open::Control, "open-control"),
    (Open::Tail, "open-tail"),
    (Open::Push, "open-push"),
    (Open::Snapshot, "open-snapshot"),
    (Open::Renew, "open-renew"),
    (Open::Admin, "open-admin"),
    (Open::Chunks, "open-chunks"),
    (Open::Search, "open-search"),
    (Open::StateAndDeletions, "open-state-and-deletions"),
    (Open::WholeState, "open-whole-state"),
];

/// Every role.
pub const ROLES: [Role; 4] = [Role::Webserver, Role::Reader, Role::Admin, Role::Balancer];

fn opens() -> Vec<Sample> {
    let of = |(open, name)| {
        let version = match open {
            Open::Control
            | Open::Tail
            | Open::Push
            | Open::Snapshot
            | Open::Renew
            | Open::Admin
            | Open::Chunks
            | Open::Search => 1,
            Open::StateAndDeletions => VERSION_DELETIONS,
            Open::WholeState => VERSION_MAKERS,
        };
        body(name, Kind::Open, open).since(version)
    };
    OPENS.into_iter().map(of).collect()
}

/// Every fate, with its golden file.
pub fn fates() -> Vec<(TxnOutcome, &'static str)> {
    let refused = Refused { code: RefusalCode::DiskFull, message: "no room".into() };
    vec![
        (TxnOutcome::Committed(Seq(300)), "outcome-committed"),
        (TxnOutcome::Rejected(Seq(301), reasons().remove(1)), "outcome-rejected"),
        (TxnOutcome::Decided(Seq(302)), "outcome-decided"),
        (TxnOutcome::Gap(OriginCounter(303)), "outcome-gap"),
        (TxnOutcome::Deferred(refused), "outcome-deferred"),
        (TxnOutcome::Queued, "outcome-queued"),
    ]
}

/// Rows of every variant, with the first protocol version that may send them, and their golden file.
pub fn rows() -> Vec<(Row, u16, &'static str)> {
    let (version, time_ms, origin) = (Seq(300), 1_700_000_000_000, Origin([0xa1; 16]));
    let value = Bytes::from_static(b"{\"id\":300}");
    let object = Row::Object { collection: collection("users"), key: key(), version, time_ms, value };
    let maker = Maker { member: member(), counter: OriginCounter(300), hash: Some([0x44; 16]) };
    let withheld = Withheld::of(collection("passwords"), key(), version, b"$argon2id$");
    vec![
        (object, 1, "rows-object"),
        (Row::Origin { origin, row: origin_row() }, 1, "rows-origin"),
        (Row::Maker { origin, maker }, VERSION_MAKERS, "rows-maker"),
        (Row::Withheld { version, time_ms, object: withheld }, VERSION_REDACTED, "rows-withheld"),
    ]
}

fn deleted() -> Sample {
    let mut some = Deletions::after(Seq(300));
    some.restore((collection("users"), key()), Seq(301)).expect("a row");
    some.restore((collection("tokens"), key()), Seq(302)).expect("a row");
    let bytes = deletions::encode(&some);
    let check = move |body: &Bytes| same(deletions::decode(body), &some);
    raw("deletions", Kind::Deletions, &bytes, Encoding::Closed, check).since(VERSION_DELETIONS)
}

fn chunk(name: &'static str, bases: Vec<ChunkId>) -> Sample {
    let sent = ChunkData { id: ChunkId([7; 32]), bases, bytes: Bytes::from_static(b"the bytes of a chunk") };
    let bytes = encode_chunk(&sent).concat();
    let check = move |body: &Bytes| same(decode_chunk(body).map_err(|error| error.to_string()), &sent);
    Sample { version: 1, name, bytes, encoding: Encoding::Opaque, check: Box::new(check) }
}

fn roster() -> Roster {
    let certificates = vec![RosterCertificate { fingerprint: "07".repeat(32), expires_ms: 1_800_000_000_000 }];
    let of = |name: &str, role| RosterMember {
        name: MemberName::new(name).expect("a name"),
        role,
        certificates: certificates.clone(),
        peer_addresses: vec!["web1.example.net:9406".into(), "[2001:db8::1]:9406".into()],
        external_addr: (role == Role::Webserver).then(|| "web1.example.net:443".into()),
    };
    let members = [("web1", ROLES[0]), ("read1", ROLES[1]), ("admin", ROLES[2]), ("lb", ROLES[3])];
    Roster { members: members.map(|(name, role)| of(name, role)).into(), ..Roster::default() }
}

/// A position without a valid signature; `tests/protocol/main.rs` has a signed one.
fn unsigned() -> Sample {
    let json = serde_json::json!({ "position": position(wide()), "time_ms": 7, "signature": "AAAA" });
    let proof: Proof = serde_json::from_value(json).expect("a signed position");
    let text = proof.to_text();
    let check = move |body: &Bytes| same(Proof::from_bytes(body), &proof);
    raw("proof-unsigned", Kind::Proof, text.as_bytes(), Encoding::Opaque, check).since(WIDE_GENERATIONS)
}

/// Every request once.
pub fn requests() -> Vec<Request> {
    let (collection, key, seq) = (|| collection("users"), key, || Some(Seq(300)));
    let seen = SeenVersion { collection: collection(), key: key(), version: Seq(300) };
    let (is_checked, sum) = (false, String::new());
    let have = CopyHave { header: "07".repeat(32), mark: String::new(), bytes: 300, is_checked, whole: 0, sum };
    let act = Act { kind: "login-failed".into(), user: "käte".into(), count: 3, ..Act::default() };
    let step = RotationStep::Finish { without: vec![member()] };
    let (ids, addresses, acts) = (vec![ChunkId([7; 32])], vec!["192.0.2.1:9405".into()], vec![act]);
    vec![
        Request::Status,
        Request::Members,
        Request::Presence,
        Request::Backends,
        Request::Collections,
        Request::Segments,
        Request::Get { collection: collection(), key: key(), at: seq() },
        Request::List { collection: collection(), prefix: "k".into(), limit: Some(10) },
        Request::Export { at: seq(), is_check: true },
        Request::Tail { from: Seq(300), to: seq(), follow: true },
        Request::History { collection: collection(), key: key() },
        Request::Record { seq: Seq(300) },
        Request::Submit { wait: true },
        Request::OriginStatus { origin: Origin([0xa1; 16]) },
        Request::Verify,
        Request::Compact { dry_run: true, history_ops: Some(10) },
        Request::Enroll { name: member(), role: "reader".into(), ttl_s: 60, addresses, replace: true },
        Request::Revoke { name: member(), remove: true },
        Request::Outbox,
        Request::Retry { id: Some(id(300)), upon: vec![seen] },
        Request::Dismiss { id: Some(id(300)) },
        Request::BlobList,
        Request::BlobStats,
        Request::BlobVerify,
        Request::BlobCollect { dry_run: true, grace_s: Some(60) },
        Request::Generations,
        Request::Proof,
        Request::Escrow { known: Some("stamp".into()), seen: None },
        Request::Roots { known: vec!["07".repeat(32)], certificate: "08".repeat(32) },
        Request::RotateAuthority { step },
        Request::Copy { of: Some((LogId([0x10; 16]), wide())), have: vec![have] },
        Request::CopyChunks { ids },
        Request::Upstream,
        Request::Audit { from: Seq(300), since_ms: 1, until_ms: 2 },
        Request::AuditVerify { at: seq() },
        Request::AuditActs { acts },
        Request::Deletions { after: Seq(300) },
        Request::Barrier { seq: seq(), timeout_ms: 1000 },
        Request::AuditAcknowledge { to: Seq(300) },
    ]
}

fn items() -> Vec<Sample> {
    let item = Kind::AdminItem;
    let generation =
        GenerationInfo { generation: wide(), shared_to: Seq(300), beginning: GenerationCause::Recovered, time_ms: 7 };
    let root = RootInfo { certificate: "AAAA".into(), word: "AAAA".into() };
    vec![
        json("item-status", item, Status::default()),
        json("item-generation", item, generation).since(WIDE_GENERATIONS),
        json("item-roots", item, RootsInfo { roots: vec![root], issuing: Some("07".repeat(32)) }),
        json("item-escrow", item, EscrowInfo { stamp: "stamp".into(), text: Some("text".into()), continues: false }),
        json("item-export-end", item, ExportEnd { seq: Seq(300), digest: Digest::from_bytes([0x33; 32]) }),
    ]
}

fn wanted() -> ChunkRequest {
    let want = |bases: &[u8]| RequestedChunk {
        id: ChunkId([7; 32]),
        bases: bases.iter().map(|n| ChunkId([*n; 32])).collect(),
    };
    ChunkRequest { is_urgent: true, chunks: vec![want(&[]), want(&[1, 2, 3, 4])] }
}

/// Every request in a separate message.
fn all_requests() -> Vec<Sample> {
    let of = |request: Request| {
        let tag = serde_json::to_value(&request).expect("encodes")["request"].as_str().map(str::to_owned);
        let name: &'static str = format!("request-{}", tag.expect("a tag").replace('_', "-")).leak();
        let sample = json(name, Kind::AdminRequest, request.clone());
        // It contains a generation of more than 32 bits.
        if matches!(request, Request::Copy { .. }) { sample.since(WIDE_GENERATIONS) } else { sample }
    };
    requests().into_iter().map(of).collect()
}

/// Samples of a kind, in both directions. A new kind does not compile without one.
pub fn of(kind: Kind) -> Vec<Sample> {
    match kind {
        Kind::Open => opens(),
        Kind::Hello => {
            let new = Hello { position: None, external_addr: None, ..hello(Generation(1)) };
            let wide = body("hello-wide", kind, hello(wide())).since(WIDE_GENERATIONS);
            vec![body("hello", kind, hello(Generation(300))), body("hello-new", kind, new), wide]
        }
        Kind::Welcome => {
            let names = [
                "welcome-same",
                "welcome-behind",
                "welcome-ahead",
                "welcome-forked",
                "welcome-foreign",
                "welcome-empty",
            ];
            let of = |(name, verdict)| body(name, kind, welcome(Generation(300), Some(verdict)));
            let mut all: Vec<Sample> = names.into_iter().zip(VERDICTS).map(of).collect();
            all.push(body("welcome-new", kind, welcome(Generation(300), None)));
            all.push(body("welcome-wide", kind, welcome(wide(), None)).since(WIDE_GENERATIONS));
            all
        }
        Kind::Refused => {
            let names: [&'static str; 10] = CODES.map(|code| &*format!("refused-{code:?}").to_lowercase().leak());
            let of = |(name, code)| body(name, kind, Refused { code, message: "what, why, and what to do".into() });
            names.into_iter().zip(CODES).map(of).collect()
        }
        Kind::Subscribe => vec![body("subscribe", kind, Subscribe { from: Seq(300) })],
        Kind::Progress => {
            let unhealthy = Some("the state differs".into());
            vec![body("progress", kind, Progress { applied: Seq(300), outbox: 301, rejected: 2, unhealthy })]
        }
        Kind::Heartbeat => {
            vec![body("heartbeat", kind, Heartbeat { head: Seq(300), floor: Seq(200), time_ms: 1_700_000_000_000 })]
        }
        Kind::Compacted => vec![body("compacted", kind, Compacted { horizon: Seq(300) })],
        Kind::Frames => vec![frames("frames", false), frames("frames-redacted", true).since(VERSION_REDACTED)],
        Kind::Bookmark => {
            vec![body("bookmark", kind, Bookmark { seq: Seq(1024), digest: Digest::from_bytes([0x33; 32]) })]
        }
        Kind::Push => vec![push("push", kind)],
        Kind::Outcome => {
            fates().into_iter().map(|(fate, name)| body(name, kind, Outcome { id: id(300), fate })).collect()
        }
        Kind::SnapshotBegin => {
            let of = |generation| SnapshotBegin {
                position: position(generation),
                lineage: lineage(generation),
                time_ms: 1_700_000_000_000,
                objects: 300,
                bytes: 70_000,
            };
            let wide = body("snapshot-begin-wide", kind, of(wide())).since(WIDE_GENERATIONS);
            vec![body("snapshot-begin", kind, of(Generation(300))), wide]
        }
        Kind::Rows => {
            rows().into_iter().map(|(row, version, name)| body(name, kind, vec![row]).since(version)).collect()
        }
        Kind::SnapshotEnd => {
            let end = SnapshotEnd { rows: 300, digest: Digest::from_bytes([0x33; 32]), chain: [0x22; 16] };
            vec![body("snapshot-end", kind, end)]
        }
        Kind::Renew => {
            let request = JoinRequest { name: member(), secret: [9; 32], request_der: b"request".to_vec() };
            vec![opaque("renew", kind, b"request"), body("join-request", kind, request)]
        }
        Kind::Renewed => {
            let names = ["joined-webserver", "joined-reader", "joined-admin", "joined-balancer"];
            let (certificate_der, authority_der) = (b"certificate".to_vec(), b"authority".to_vec());
            let of = |(name, role)| {
                let (certificate_der, authority_der) = (certificate_der.clone(), authority_der.clone());
                body(name, kind, Joined { certificate_der, authority_der, role })
            };
            let mut all: Vec<Sample> = names.into_iter().zip(ROLES).map(of).collect();
            all.push(opaque("renewed", kind, b"certificate"));
            all
        }
        Kind::AdminRequest => all_requests(),
        Kind::AdminItem => items(),
        Kind::AdminEnd => vec![json("end", kind, serde_json::json!({}))],
        Kind::AdminError => vec![json("error", kind, AdminError { message: "no".into(), exit: 3 })],
        Kind::Announce => {
            let hosts = vec!["web1.example.net".into(), "2001:db8::1".into()];
            vec![body("announce", kind, Announce { port: 9406, hosts })]
        }
        Kind::Roster => vec![json("roster", kind, roster())],
        Kind::ChunksQuery => {
            let ids = vec![ChunkId([7; 32]), ChunkId([8; 32])];
            vec![body("chunks-asked", kind, MissingQuery { ids, are_indexes: true })]
        }
        Kind::ChunksMissing => {
            vec![body("chunks-lacking", kind, MissingChunks { ids: vec![ChunkId([7; 32])], more: true })]
        }
        Kind::ChunksRequest => vec![body("chunks-wanted", kind, wanted())],
        Kind::Chunk => {
            vec![chunk("chunk", Vec::new()), chunk("chunk-difference", vec![ChunkId([1; 32]), ChunkId([2; 32])])]
        }
        Kind::ChunkAbsent => vec![body("chunk-absent", kind, ChunkId([7; 32]))],
        Kind::ChunksSent => vec![body("chunks-sent", kind, ())],
        Kind::ChunksStored => vec![body("chunks-kept", kind, StoredChunks { refused: vec![ChunkId([7; 32])] })],
        Kind::PushLostBlobs => vec![push("push-forsaken", kind)],
        Kind::Deletions => vec![deleted()],
        Kind::Proof => vec![unsigned()],
        Kind::Revocations => {
            vec![body("revocations", kind, Revocations { certificates: vec![[7; 32], [8; 32]] })]
        }
    }
}
