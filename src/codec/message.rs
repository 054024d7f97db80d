//! Messages of the replication protocol. See `docs/protocol.md`, which is normative.
//!
//! On a stream every message is `length: u32 LE` (of what follows), `kind: u8`, body. Bodies are postcard, except
//! where a kind says otherwise. Numbers of kinds are never reused. TLS protects the bytes in flight; log frames carry
//! their own checksums and chain besides.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::{Chain, Digest, Generation, Lineage, LogId, OriginCounter, Position, Reason, Seq, TxnId, Verdict};
use crate::model::{Collection, Key, Maker, Origin, OriginRow, Withheld};

/// Oldest protocol version that this program speaks.
pub const VERSION_MIN: u16 = 1;
/// Newest protocol version that this program speaks.
pub const VERSION_MAX: u16 = 4;
/// Version from which on [`Open::StateAndDeletions`] is served.
pub const VERSION_DELETIONS: u16 = 2;
/// Version from which on [`Open::WholeState`] is served.
pub const VERSION_MAKERS: u16 = 3;
/// Version from which on a reader is not given values that are withheld from readers; it must speak it.
pub const VERSION_REDACTED: u16 = 4;
/// From this version on a generation may have more than 32 bits.
pub const WIDE_GENERATIONS: u16 = 2;
/// Longest message body; a block of frames may hold one largest transaction, redacted, and little more.
pub const MESSAGE_BYTES_MAX: usize =
    crate::model::limits::HARD.txn_bytes_max + super::frame::REDACTION_BYTES_MAX + (1 << 20);
/// Bytes before the body of each message.
pub const HEADER_BYTES: usize = 5;

/// Kinds of messages. The number is the byte on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// First message of every stream: [`Open`].
    Open = 1,
    /// Client, control stream: [`Hello`].
    Hello = 2,
    /// Server, control stream: [`Welcome`].
    Welcome = 3,
    /// Server, any stream: [`Refused`]; the stream or connection ends after it.
    Refused = 4,
    /// Client, control stream: [`Subscribe`].
    Subscribe = 5,
    /// Client, control stream: [`Progress`].
    Progress = 6,
    /// Server, control stream: [`Heartbeat`].
    Heartbeat = 7,
    /// Server, control stream: [`Compacted`].
    Compacted = 8,
    /// Server, tail stream: raw log frames, one or more whole.
    Frames = 9,
    /// Server, tail stream: [`Bookmark`].
    Bookmark = 10,
    /// Client, push stream: one transaction as [`super::txn::encode_txn`] writes it.
    Push = 11,
    /// Server, push stream: [`Outcome`].
    Outcome = 12,
    /// Server, snapshot stream: [`SnapshotBegin`].
    SnapshotBegin = 13,
    /// Server, snapshot stream: `Vec<Row>`.
    Rows = 14,
    /// Server, snapshot stream: [`SnapshotEnd`].
    SnapshotEnd = 15,
    /// Client, renewal stream: a certificate signing request, DER.
    Renew = 16,
    /// Server, renewal stream: the new certificate, DER.
    Renewed = 17,
    /// Administration: a request, JSON.
    AdminRequest = 18,
    /// Administration: one item of an answer, JSON.
    AdminItem = 19,
    /// Administration: the answer is complete, JSON.
    AdminEnd = 20,
    /// Administration: the request failed, JSON.
    AdminError = 21,
    /// Client, control stream: [`Announce`].
    Announce = 22,
    /// Server, control stream: who may speak with whom, JSON as [`crate::trust::Roster`] writes it.
    Roster = 23,
    /// Client, chunk stream: [`super::chunks::Asked`].
    ChunksAsked = 24,
    /// Server, chunk stream: [`super::chunks::Lacking`].
    ChunksLacking = 25,
    /// Client, chunk stream: [`super::chunks::Wanted`].
    ChunksWanted = 26,
    /// Chunk stream, both ways: a chunk as [`super::chunks::encode_chunk`] writes it.
    Chunk = 27,
    /// Server, chunk stream: a wanted chunk is not there; its name.
    ChunkAbsent = 28,
    /// Client, chunk stream: make durable what I have sent.
    ChunksSent = 29,
    /// Server, chunk stream: [`super::chunks::Kept`].
    ChunksKept = 30,
    /// Client, push stream: as [`Kind::Push`], but chunks that it names are lost here. When the datastore lacks them as
    /// well, it rejects the transaction instead of waiting for them.
    PushForsaken = 31,
    /// Server, snapshot stream, behind the beginning: what was deleted lately, as [`super::deletions::encode`] writes it.
    Deletions = 32,
    /// Control stream, both ways: a signed position, as [`crate::trust::Proof`] writes it. The datastore sends each new one; a member
    /// that the datastore's log contradicts shows the last one that it has.
    Proof = 33,
    /// Server, control stream: [`Revocations`]. Members that do not know it ignore it.
    Revocations = 34,
}

impl Kind {
    const ALL: [Kind; 34] = [
        Kind::Open,
        Kind::Hello,
        Kind::Welcome,
        Kind::Refused,
        Kind::Subscribe,
        Kind::Progress,
        Kind::Heartbeat,
        Kind::Compacted,
        Kind::Frames,
        Kind::Bookmark,
        Kind::Push,
        Kind::Outcome,
        Kind::SnapshotBegin,
        Kind::Rows,
        Kind::SnapshotEnd,
        Kind::Renew,
        Kind::Renewed,
        Kind::AdminRequest,
        Kind::AdminItem,
        Kind::AdminEnd,
        Kind::AdminError,
        Kind::Announce,
        Kind::Roster,
        Kind::ChunksAsked,
        Kind::ChunksLacking,
        Kind::ChunksWanted,
        Kind::Chunk,
        Kind::ChunkAbsent,
        Kind::ChunksSent,
        Kind::ChunksKept,
        Kind::PushForsaken,
        Kind::Deletions,
        Kind::Proof,
        Kind::Revocations,
    ];

    /// The kind of a byte on the wire.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Open {
    /// Both ways, one per connection, opened by the client first.
    Control,
    /// Server to client: frames and bookmarks.
    Tail,
    /// Both ways: transactions up, outcomes down, in order.
    Push,
    /// Both ways: the client asks by opening it, the server sends its state.
    Snapshot,
    /// Both ways: one renewal.
    Renew,
    /// Both ways: one administrative request.
    Admin,
    /// Both ways, to the datastore and between members: chunks of contents.
    Chunks,
    /// Both ways, between members: searches.
    Search,
    /// As [`Open::Snapshot`], with what was deleted lately; from [`VERSION_DELETIONS`] on.
    StateAndDeletions,
    /// As [`Open::StateAndDeletions`], with the makers of origins; from [`VERSION_MAKERS`] on.
    WholeState,
}

impl Open {
    /// How a state is asked for from a peer with which `version` was agreed on.
    #[must_use]
    pub fn state(version: u16) -> Open {
        match version {
            VERSION_MAKERS.. => Open::WholeState,
            VERSION_DELETIONS.. => Open::StateAndDeletions,
            _ => Open::Snapshot,
        }
    }
}

/// A client introduces itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest version it speaks.
    pub version_min: u16,
    /// Newest version it speaks.
    pub version_max: u16,
    /// Name and version of the software, for people.
    pub software: String,
    /// Where it stands; `None`: it has never seen a log.
    pub position: Option<Position>,
    /// Where other webservers reach it.
    pub external_addr: Option<String>,
}

/// Where other members reach a client, said after [`Hello`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announce {
    /// UDP port on which it listens to other members.
    pub port: u16,
    /// Names and addresses of its host, best first. The datastore adds the address from which the client reaches it.
    pub hosts: Vec<String>,
}

/// Certificates that no longer count, the latest [`REVOCATIONS_MAX`] of them. It says nothing that the roster does not say; it
/// is there for when that cannot be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocations {
    /// BLAKE3 of each certificate.
    pub certificates: Vec<[u8; 32]>,
}

/// Most certificates in [`Revocations`], so that it stays a small message.
pub const REVOCATIONS_MAX: usize = 1024;

/// A server's answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that both will speak.
    pub version: u16,
    /// Name and version of the software, for people.
    pub software: String,
    /// Name under which the client is enrolled.
    pub member: String,
    /// The client's role, in words.
    pub role: String,
    /// Identity of the log.
    pub log_id: LogId,
    /// Its generation.
    pub generation: Generation,
    /// How its generations descend from each other.
    pub lineage: Lineage,
    /// Last committed sequence.
    pub head: Seq,
    /// Lowest sequence from which a tail can start.
    pub horizon: Seq,
    /// What the client's position is to the server; `None` when the client has none.
    pub verdict: Option<Verdict>,
    /// Rhythm of heartbeats, both ways, in milliseconds.
    pub heartbeat_ms: u64,
    /// Largest transaction accepted, in bytes.
    pub txn_bytes_max: u64,
    /// Largest inline value accepted, in bytes.
    pub value_bytes_max: u64,
    /// Longest key accepted, in bytes.
    pub key_bytes_max: u64,
}

/// Why a stream or connection is refused. Codes are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalCode {
    /// No common protocol version.
    Version,
    /// Not enrolled, revoked, or certificate expired.
    NotAMember,
    /// The role does not allow it.
    Forbidden,
    /// A message that makes no sense here.
    Protocol,
    /// Too many of something; try later.
    Busy,
    /// The server cannot write: its disk is full. Try later.
    DiskFull,
    /// The server is stopping.
    Stopping,
    /// The positions do not fit: see the verdict.
    Diverged,
    /// The server failed; its log says more.
    Internal,
    /// Chunks that a transaction names are not at the datastore: send them first.
    ChunksMissing,
}

/// A refusal with its reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// Stable code.
    pub code: RefusalCode,
    /// For people: what, why, and what to do.
    pub message: String,
}

/// Asks for the tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribe {
    /// The first entry wanted is the one after this.
    pub from: Seq,
}

/// A client's state, sent after progress and at every heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Durably applied.
    pub applied: Seq,
    /// Transactions waiting to be pushed.
    pub outbox: u64,
    /// Rejected transactions waiting for a person.
    pub rejected: u64,
    /// Whether it serves; otherwise the reason.
    pub unhealthy: Option<String>,
}

/// A server's sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Last committed sequence.
    pub head: Seq,
    /// Lowest sequence durably applied by all members that count.
    pub floor: Seq,
    /// The server's clock, milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
}

/// The tail cannot start where it was asked for: the client must take a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compacted {
    /// Lowest sequence from which a tail can start.
    pub horizon: Seq,
}

/// The server's digest at a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bookmark {
    /// The sequence.
    pub seq: Seq,
    /// Digest of the state there.
    pub digest: Digest,
}

/// What became of a pushed transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The transaction.
    pub id: TxnId,
    /// Its fate.
    pub fate: Fate,
}

/// Fate of a pushed transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// Committed and durable at this sequence.
    Committed(Seq),
    /// Rejected, durably, at this sequence.
    Rejected(Seq, Reason),
    /// It was decided earlier, at or before this sequence; the tail or snapshot tells how.
    Decided(Seq),
    /// Not taken: counters of an origin must not have gaps. The expected one follows.
    Gap(OriginCounter),
    /// Not taken for now (disk full, overload); it may be pushed again later.
    Deferred(Refused),
    /// Durable in a replica's outbox, not yet decided. Only answered on the local socket of a replica.
    Queued,
}

/// Start of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotBegin {
    /// Where the state stands.
    pub position: Position,
    /// How its generations descend from each other.
    pub lineage: Lineage,
    /// Commit time of the last entry, milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// Objects that will follow.
    pub objects: u64,
    /// Bytes of keys and values that will follow, for progress.
    pub bytes: u64,
}

/// One row of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Row {
    /// An object.
    Object {
        /// Where.
        collection: Collection,
        /// Which.
        key: Key,
        /// Sequence of its last write.
        version: Seq,
        /// Commit time of its last write.
        time_ms: u64,
        /// Contents.
        value: Bytes,
    },
    /// What the state remembers of an origin.
    Origin {
        /// Which.
        origin: Origin,
        /// The row.
        row: OriginRow,
    },
    /// Who made the transactions of an origin; only where [`Open::WholeState`] was asked for, behind that origin's row.
    Maker {
        /// Which.
        origin: Origin,
        /// Who, and what the last one was.
        maker: Maker,
    },
    /// An object whose value is withheld from the member; from [`VERSION_REDACTED`] on, and to readers only.
    Withheld {
        /// Sequence of its last write.
        version: Seq,
        /// Commit time of its last write.
        time_ms: u64,
        /// Which, and what it adds to the digest.
        object: Withheld,
    },
}

/// End of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotEnd {
    /// Rows sent.
    pub rows: u64,
    /// Digest of the state; equals the one of [`SnapshotBegin::position`].
    pub digest: Digest,
    /// Chain at the snapshot's sequence.
    pub chain: Chain,
}

/// Bytes that are not a message.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadMessage {
    /// The length is out of bounds.
    #[error("a message announces {found} bytes; between 1 and {max} are allowed")]
    Length {
        /// Announced length.
        found: usize,
        /// Bound.
        max: usize,
    },
    /// Not a kind of message.
    #[error("a message has the unknown kind {0}")]
    UnknownKind(u8),
    /// A kind that does not belong here.
    #[error("expected a message {expected}, found {found:?}")]
    Unexpected {
        /// What was expected, in words.
        expected: &'static str,
        /// What came.
        found: Kind,
    },
    /// The body does not decode.
    #[error("the body of a message {kind:?} does not decode: {reason}")]
    Body {
        /// Kind of the message.
        kind: Kind,
        /// What the decoder says.
        reason: String,
    },
}

/// Encodes a message whose body is postcard.
#[must_use]
pub fn encode<T: Serialize>(kind: Kind, body: &T) -> Vec<u8> {
    let mut start = Vec::with_capacity(64);
    start.extend_from_slice(&[0, 0, 0, 0, kind as u8]);
    let mut out = postcard::to_extend(body, start).expect("invariant: encoding into memory cannot fail");
    finish_header(&mut out);
    out
}

/// Encodes a message whose body is already bytes.
#[must_use]
pub fn encode_raw(kind: Kind, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + body.len());
    out.extend_from_slice(&header(kind, body.len()));
    out.extend_from_slice(body);
    out
}

/// Header of a message whose body has `body_bytes` bytes.
#[must_use]
pub fn header(kind: Kind, body_bytes: usize) -> [u8; HEADER_BYTES] {
    let length = u32::try_from(body_bytes + 1).expect("invariant: bodies are bounded by MESSAGE_BYTES_MAX");
    let [a, b, c, d] = length.to_le_bytes();
    [a, b, c, d, kind as u8]
}

fn finish_header(message: &mut [u8]) {
    let length = u32::try_from(message.len() - 4).expect("invariant: bodies are bounded by MESSAGE_BYTES_MAX");
    message[..4].copy_from_slice(&length.to_le_bytes());
}

/// Reads a header: the kind and the length of the body.
///
/// # Errors
/// When the length is out of bounds or the kind is unknown.
pub fn decode_header(header: [u8; HEADER_BYTES], body_bytes_max: usize) -> Result<(Kind, usize), BadMessage> {
    let (kind, length) = decode_any_header(header, body_bytes_max)?;
    Ok((kind.ok_or(BadMessage::UnknownKind(header[4]))?, length))
}

/// [`decode_header`] where a newer version may say more: `None` for a kind that is not known.
///
/// # Errors
/// When the length is out of bounds.
pub fn decode_any_header(
    header: [u8; HEADER_BYTES],
    body_bytes_max: usize,
) -> Result<(Option<Kind>, usize), BadMessage> {
    let [a, b, c, d, kind] = header;
    let found = u32::from_le_bytes([a, b, c, d]) as usize;
    if found == 0 || found - 1 > body_bytes_max {
        return Err(BadMessage::Length { found, max: body_bytes_max + 1 });
    }
    Ok((Kind::from_byte(kind), found - 1))
}

/// Decodes a postcard body that fills `body`.
///
/// # Errors
/// When it does not decode or bytes follow it.
pub fn decode<T: DeserializeOwned>(kind: Kind, body: &[u8]) -> Result<T, BadMessage> {
    let bad = |reason: String| BadMessage::Body { kind, reason };
    let (value, rest) = postcard::take_from_bytes(body).map_err(|error| bad(error.to_string()))?;
    if rest.is_empty() { Ok(value) } else { Err(bad(format!("{} bytes follow it", rest.len()))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_bounded() {
        let message = encode(Kind::Subscribe, &Subscribe { from: Seq(300) });
        let header: [u8; HEADER_BYTES] = message[..HEADER_BYTES].try_into().expect("header");
        let (kind, length) = decode_header(header, 64).expect("header");
        assert_eq!((kind, length), (Kind::Subscribe, message.len() - HEADER_BYTES));
        let body: Subscribe = decode(kind, &message[HEADER_BYTES..]).expect("body");
        assert_eq!(body.from, Seq(300));
        assert!(decode_header([255, 255, 255, 255, 1], 64).is_err());
        assert!(decode_header([0, 0, 0, 0, 1], 64).is_err());
        assert_eq!(decode_header([1, 0, 0, 0, 99], 64), Err(BadMessage::UnknownKind(99)));
        assert!(decode::<Subscribe>(kind, &[1, 2]).is_err());
    }

    #[test]
    fn p12_an_earlier_version_is_asked_as_it_understands() {
        assert_eq!(
            (Open::state(1), Open::state(2), Open::state(3)),
            (Open::Snapshot, Open::StateAndDeletions, Open::WholeState)
        );
        assert_eq!(encode(Kind::Open, &Open::Snapshot)[HEADER_BYTES..], [3]);
        assert_eq!(encode(Kind::Open, &Open::StateAndDeletions)[HEADER_BYTES..], [8]);
        assert_eq!(encode(Kind::Open, &Open::WholeState)[HEADER_BYTES..], [9]);
    }

    #[test]
    fn kinds_are_numbered_without_repeats() {
        for (index, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index + 1);
        }
    }
}
