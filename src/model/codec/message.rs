//! Messages of the replication protocol. See `docs/protocol.md`, which is normative.
//!
//! On a stream, every message is `length: u32 LE` (of the remaining message), `kind: u8`, body. Bodies are postcard,
//! unless stated otherwise for a kind. Values of kinds are never reused. TLS protects the bytes in transit; log frames
//! also have their own checksums and chain.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Chain, Digest, Generation, Lineage, LogId, OriginCounter, Position, Reason, Seq, TxnId, Verdict};
use crate::{Collection, Key, Maker, Origin, OriginRow, Withheld};

/// Oldest supported protocol version.
pub const VERSION_MIN: u16 = 1;
/// Newest supported protocol version.
pub const VERSION_MAX: u16 = 4;
/// First version with [`Open::StateAndDeletions`].
pub const VERSION_DELETIONS: u16 = 2;
/// First version with [`Open::WholeState`].
pub const VERSION_MAKERS: u16 = 3;
/// First version in which values are withheld from readers. Readers must support it.
pub const VERSION_REDACTED: u16 = 4;
/// First version in which a generation may have more than 32 bits.
pub const WIDE_GENERATIONS: u16 = 2;
/// Maximum length of a message body. A block of frames holds at least one redacted transaction of maximum length.
pub const MESSAGE_BYTES_MAX: usize = crate::limits::HARD.txn_bytes_max + super::frame::REDACTION_BYTES_MAX + (1 << 20);
/// Length of the header, which precedes the body.
pub const HEADER_BYTES: usize = 5;

/// Kind of a message. The value is the byte on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// First message of every stream: [`Open`].
    Open = 1,
    /// Client, control stream: [`Hello`].
    Hello = 2,
    /// Server, control stream: [`Welcome`].
    Welcome = 3,
    /// Server, any stream: [`Refused`]. The stream or connection is closed after it.
    Refused = 4,
    /// Client, control stream: [`Subscribe`].
    Subscribe = 5,
    /// Client, control stream: [`Progress`].
    Progress = 6,
    /// Server, control stream: [`Heartbeat`].
    Heartbeat = 7,
    /// Server, control stream: [`Compacted`].
    Compacted = 8,
    /// Server, tail stream: one or more complete log frames.
    Frames = 9,
    /// Server, tail stream: [`Bookmark`].
    Bookmark = 10,
    /// Client, push stream: a transaction, encoded by [`super::txn::encode_txn`].
    Push = 11,
    /// Server, push stream: [`Outcome`].
    Outcome = 12,
    /// Server, snapshot stream: [`SnapshotBegin`].
    SnapshotBegin = 13,
    /// Server, snapshot stream: `Vec<Row>`.
    Rows = 14,
    /// Server, snapshot stream: [`SnapshotEnd`].
    SnapshotEnd = 15,
    /// Client, renewal stream: a certificate signing request in DER.
    Renew = 16,
    /// Server, renewal stream: the new certificate in DER.
    Renewed = 17,
    /// Administration: a request in JSON.
    AdminRequest = 18,
    /// Administration: an item of the reply in JSON.
    AdminItem = 19,
    /// Administration: the reply is complete, in JSON.
    AdminEnd = 20,
    /// Administration: the request failed, in JSON.
    AdminError = 21,
    /// Client, control stream: [`Announce`].
    Announce = 22,
    /// Server, control stream: the members that may connect to each other, in the JSON of `gravwell_transport::trust::Roster`.
    Roster = 23,
    /// Client, chunk stream: [`super::chunks::MissingQuery`].
    ChunksQuery = 24,
    /// Server, chunk stream: [`super::chunks::MissingChunks`].
    ChunksMissing = 25,
    /// Client, chunk stream: [`super::chunks::ChunkRequest`].
    ChunksRequest = 26,
    /// Chunk stream, both directions: a chunk, encoded by [`super::chunks::encode_chunk`].
    Chunk = 27,
    /// Server, chunk stream: ID of a requested chunk that is missing.
    ChunkAbsent = 28,
    /// Client, chunk stream: request to make the chunks sent before durable.
    ChunksSent = 29,
    /// Server, chunk stream: [`super::chunks::StoredChunks`].
    ChunksStored = 30,
    /// Client, push stream: like [`Kind::Push`], but the client has lost chunks that the transaction references. If the
    /// datastore lacks them as well, it rejects the transaction instead of waiting for them.
    PushLostBlobs = 31,
    /// Server, snapshot stream, after the beginning: recent deletions, encoded by [`super::deletions::encode`].
    Deletions = 32,
    /// Control stream, both directions: a signed position, encoded by `gravwell_transport::trust::Proof`. The datastore sends each
    /// new one. A member that the datastore's log contradicts sends the last one that it has.
    Proof = 33,
    /// Server, control stream: [`Revocations`]. Members that do not know this kind ignore it.
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
        Kind::ChunksQuery,
        Kind::ChunksMissing,
        Kind::ChunksRequest,
        Kind::Chunk,
        Kind::ChunkAbsent,
        Kind::ChunksSent,
        Kind::ChunksStored,
        Kind::PushLostBlobs,
        Kind::Deletions,
        Kind::Proof,
        Kind::Revocations,
    ];

    /// Returns the kind for a byte on the wire.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Purpose of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Open {
    /// Bidirectional, one per connection, the first stream that the client opens.
    Control,
    /// Server to client: frames and bookmarks.
    Tail,
    /// Bidirectional: transactions to the server, outcomes to the client, in the same order.
    Push,
    /// Bidirectional: the client opens it as a request, the server sends its state.
    Snapshot,
    /// Bidirectional: one certificate renewal.
    Renew,
    /// Bidirectional: one administrative request.
    Admin,
    /// Bidirectional, to the datastore and between members: chunks of blobs.
    Chunks,
    /// Bidirectional, between members: searches.
    Search,
    /// Like [`Open::Snapshot`], with recent deletions; from [`VERSION_DELETIONS`] on.
    StateAndDeletions,
    /// Like [`Open::StateAndDeletions`], with the authors of origins; from [`VERSION_MAKERS`] on.
    WholeState,
}

impl Open {
    /// Returns how to request a state from a peer, given the negotiated `version`.
    #[must_use]
    pub fn state(version: u16) -> Open {
        match version {
            VERSION_MAKERS.. => Open::WholeState,
            VERSION_DELETIONS.. => Open::StateAndDeletions,
            _ => Open::Snapshot,
        }
    }
}

/// First message of a client, which introduces it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest version that it supports.
    pub version_min: u16,
    /// Newest version that it supports.
    pub version_max: u16,
    /// Name and version of the software, for display.
    pub software: String,
    /// Position of the client; `None` if it has never seen a log.
    pub position: Option<Position>,
    /// Address at which other webservers reach it.
    pub external_addr: Option<String>,
}

/// Peer address of a client, sent after [`Hello`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announce {
    /// UDP port on which it accepts connections of other members.
    pub port: u16,
    /// Names and addresses of its host, best first. The datastore adds the address from which the client connects.
    pub hosts: Vec<String>,
}

/// Revoked certificates, the latest [`REVOCATIONS_MAX`] of them. The roster contains them as well; this message serves
/// members that cannot read it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocations {
    /// BLAKE3 hash of each certificate.
    pub certificates: Vec<[u8; 32]>,
}

/// Maximum number of certificates in [`Revocations`], to keep the message small.
pub const REVOCATIONS_MAX: usize = 1024;

/// A server's reply to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Negotiated protocol version.
    pub version: u16,
    /// Name and version of the software, for display.
    pub software: String,
    /// Name under which the client is enrolled.
    pub member: String,
    /// Name of the client's role.
    pub role: String,
    /// Identity of the log.
    pub log_id: LogId,
    /// Its generation.
    pub generation: Generation,
    /// Descent of its generations.
    pub lineage: Lineage,
    /// Last committed sequence.
    pub head: Seq,
    /// Lowest sequence from which a tail can start.
    pub horizon: Seq,
    /// Relation of the client's position to the server; `None` if the client has none.
    pub verdict: Option<Verdict>,
    /// Interval of heartbeats in both directions, in milliseconds.
    pub heartbeat_ms: u64,
    /// Maximum length of a transaction in bytes.
    pub txn_bytes_max: u64,
    /// Maximum length of an inline value in bytes.
    pub value_bytes_max: u64,
    /// Maximum length of a key in bytes.
    pub key_bytes_max: u64,
}

/// Reason why a stream or connection is refused. Codes are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalCode {
    /// No common protocol version.
    Version,
    /// The client is not enrolled, was revoked, or its certificate has expired.
    NotAMember,
    /// The client's role does not allow the request.
    Forbidden,
    /// A message is invalid in this place.
    Protocol,
    /// A limit is reached; try again later.
    Busy,
    /// The server's disk is full, so it cannot write. Try again later.
    DiskFull,
    /// The server is stopping.
    Stopping,
    /// The positions are inconsistent, see the verdict.
    Diverged,
    /// The server failed; see its log.
    Internal,
    /// The datastore lacks chunks that a transaction references: send them first.
    ChunksMissing,
}

/// A refusal with its reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// Stable code.
    pub code: RefusalCode,
    /// Message for display: the problem, its reason and the remedy.
    pub message: String,
}

/// Request for the tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribe {
    /// The first entry requested is the one after this sequence.
    pub from: Seq,
}

/// A client's state, sent after progress and at every heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Last sequence durably applied.
    pub applied: Seq,
    /// Transactions waiting to be pushed.
    pub outbox: u64,
    /// Rejected transactions that wait for a user.
    pub rejected: u64,
    /// Reason why the client does not serve; `None` if it does.
    pub unhealthy: Option<String>,
}

/// Heartbeat of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Last committed sequence.
    pub head: Seq,
    /// Lowest sequence durably applied by all members within retention.
    pub floor: Seq,
    /// The server's clock in milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
}

/// The tail cannot start at the requested sequence: the client must fetch a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compacted {
    /// Lowest sequence from which a tail can start.
    pub horizon: Seq,
}

/// The server's digest at a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bookmark {
    /// Sequence of the state.
    pub seq: Seq,
    /// Digest of the state.
    pub digest: Digest,
}

/// Outcome of a pushed transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Identity of the transaction.
    pub id: TxnId,
    /// Its outcome.
    pub fate: TxnOutcome,
}

/// Possible outcomes of a pushed transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TxnOutcome {
    /// Committed and durable at this sequence.
    Committed(Seq),
    /// Rejected durably at this sequence.
    Rejected(Seq, Reason),
    /// Resolved earlier, at or before this sequence. The tail or a snapshot has the outcome.
    Decided(Seq),
    /// Not accepted, because counters of an origin must not have gaps. The value is the expected counter.
    Gap(OriginCounter),
    /// Not accepted now (disk full, overload). It may be pushed again later.
    Deferred(Refused),
    /// Durable in a replica's outbox, but not resolved yet. Only sent on the local socket of a replica.
    Queued,
}

/// Start of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotBegin {
    /// Position of the state.
    pub position: Position,
    /// Descent of its generations.
    pub lineage: Lineage,
    /// Commit time of the last entry in milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// Objects that follow.
    pub objects: u64,
    /// Total length of keys and values that follow, for progress reports.
    pub bytes: u64,
}

/// One row of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Row {
    /// An object.
    Object {
        /// Collection of the object.
        collection: Collection,
        /// Key of the object.
        key: Key,
        /// Sequence of its last write.
        version: Seq,
        /// Commit time of its last write.
        time_ms: u64,
        /// Value of the object.
        value: Bytes,
    },
    /// Row of an origin.
    Origin {
        /// The origin.
        origin: Origin,
        /// Information of the state about the origin.
        row: OriginRow,
    },
    /// Author of the transactions of an origin. Only sent for [`Open::WholeState`], after the row of that origin.
    Maker {
        /// The origin.
        origin: Origin,
        /// Author and last transaction of the origin.
        maker: Maker,
    },
    /// An object whose value is withheld from the member; from [`VERSION_REDACTED`] on, and only for readers.
    Withheld {
        /// Sequence of its last write.
        version: Seq,
        /// Commit time of its last write.
        time_ms: u64,
        /// The object with its contribution to the state digest.
        object: Withheld,
    },
}

/// End of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotEnd {
    /// Rows sent.
    pub rows: u64,
    /// Digest of the state, equal to that in [`SnapshotBegin::position`].
    pub digest: Digest,
    /// Chain at the snapshot's sequence.
    pub chain: Chain,
}

/// Bytes that are not a valid message.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadMessage {
    /// The length is out of range.
    #[error("a message announces {found} bytes, but 1 to {max} are allowed")]
    Length {
        /// Announced length.
        found: usize,
        /// Maximum length.
        max: usize,
    },
    /// The kind is unknown.
    #[error("unknown message kind {0}")]
    UnknownKind(u8),
    /// The kind is not allowed in this place.
    #[error("expected a message {expected}, found {found:?}")]
    Unexpected {
        /// Description of the expected message.
        expected: &'static str,
        /// Kind received.
        found: Kind,
    },
    /// The body cannot be decoded.
    #[error("cannot decode the body of a message {kind:?}: {reason}")]
    Body {
        /// Kind of the message.
        kind: Kind,
        /// Error of the decoder.
        reason: String,
    },
}

/// Encodes a message with a postcard body.
#[must_use]
pub fn encode<T: Serialize>(kind: Kind, body: &T) -> Vec<u8> {
    let mut start = Vec::with_capacity(64);
    start.extend_from_slice(&[0, 0, 0, 0, kind as u8]);
    let mut out = postcard::to_extend(body, start).expect("invariant: encoding into memory cannot fail");
    finish_header(&mut out);
    out
}

/// Encodes the postcard body of a message.
#[must_use]
pub fn encode_body<T: Serialize>(body: &T) -> Vec<u8> {
    postcard::to_extend(body, Vec::new()).expect("invariant: encoding into memory cannot fail")
}

/// Encodes a message with a body that is already encoded.
#[must_use]
pub fn encode_raw(kind: Kind, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + body.len());
    out.extend_from_slice(&header(kind, body.len()));
    out.extend_from_slice(body);
    out
}

/// Returns the header of a message with a body of `body_bytes` bytes.
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

/// Decodes a header; returns the kind and the length of the body.
///
/// # Errors
/// If the length is out of range or the kind is unknown.
pub fn decode_header(header: [u8; HEADER_BYTES], body_bytes_max: usize) -> Result<(Kind, usize), BadMessage> {
    let (kind, length) = decode_any_header(header, body_bytes_max)?;
    Ok((kind.ok_or(BadMessage::UnknownKind(header[4]))?, length))
}

/// Like [`decode_header`], but returns `None` for a kind that this version does not know.
///
/// # Errors
/// If the length is out of range.
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
/// If it cannot be decoded, or bytes follow it.
pub fn decode<T: DeserializeOwned>(kind: Kind, body: &[u8]) -> Result<T, BadMessage> {
    let bad = |reason: String| BadMessage::Body { kind, reason };
    let (value, rest) = postcard::take_from_bytes(body).map_err(|error| bad(error.to_string()))?;
    if rest.is_empty() { Ok(value) } else { Err(bad(format!("it is followed by {} bytes", rest.len()))) }
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
