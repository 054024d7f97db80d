//! Requests of `gravwell-logctl` and their replies, in JSON: fields may be added, unknown ones are ignored.
//!
//! A stream (or a connection of the local socket) carries one request. The reply consists of any number of
//! [`super::message::Kind::AdminItem`] messages, then [`super::message::Kind::AdminEnd`] or
//! [`super::message::Kind::AdminError`]. Log entries are sent as [`super::message::Kind::Frames`], state rows as
//! [`super::message::Kind::Rows`]. On a [`Request::Submit`] stream, the client then sends [`super::message::Kind::Push`]
//! messages until it closes its side; each is answered by [`super::message::Kind::Outcome`].

use serde::{Deserialize, Serialize};

use super::authority::RotationStep;
use super::health::Health;

pub use super::blobs::{BlobCollection, BlobInfo, BlobReport, BlobStats};
use crate::{ChunkId, Collection, Digest, Generation, Key, LogId, MemberName, Origin, OriginCounter, Seq, TxnId};

/// A request. The documentation of each variant names the reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// One [`Status`].
    Status,
    /// [`MemberInfo`] items.
    Members,
    /// [`PresenceInfo`] items.
    Presence,
    /// [`BackendInfo`] items: the webservers to which a load balancer may send requests.
    Backends,
    /// [`CollectionInfo`] items.
    Collections,
    /// [`SegmentInfo`] items.
    Segments,
    /// Rows: the object, or none.
    Get {
        /// Collection of the object.
        collection: Collection,
        /// Key of the object.
        key: Key,
        /// Read the state at this sequence instead of the current one.
        at: Option<Seq>,
    },
    /// Rows in key order.
    List {
        /// Collection of the objects.
        collection: Collection,
        /// Prefix of the keys.
        prefix: String,
        /// Maximum number of rows; `None` for all.
        limit: Option<u64>,
    },
    /// Rows of all collections, ordered, then an [`ExportEnd`] item.
    Export {
        /// Export the state at this sequence instead of the current one.
        at: Option<Seq>,
        /// Whether the caller only verifies the export and does not store it. The reply is the same; the audit records it.
        #[serde(default)]
        is_check: bool,
    },
    /// Frames of the entries after `from`. A replica, which has no log, sends frames as they arrive.
    Tail {
        /// The first entry is the one after this sequence.
        from: Seq,
        /// Last entry; `None` for the head at the time of the request.
        to: Option<Seq>,
        /// Continue with new entries until the client disconnects.
        follow: bool,
    },
    /// Frames of the entries that concern one object, oldest first.
    History {
        /// Collection of the object.
        collection: Collection,
        /// Key of the object.
        key: Key,
    },
    /// One [`RecordInfo`].
    Record {
        /// Sequence of the record.
        seq: Seq,
    },
    /// Transactions follow as push messages. On a replica, they are added to the outbox.
    Submit {
        /// Reply only when the datastore has resolved a transaction. Otherwise, a replica replies when it is durable locally.
        wait: bool,
    },
    /// One [`OriginInfo`].
    OriginStatus {
        /// The origin.
        origin: Origin,
    },
    /// [`Progress`] items, then one [`VerifyReport`].
    Verify,
    /// [`Progress`] items, then one [`CompactReport`].
    Compact {
        /// Report the result without changing anything.
        dry_run: bool,
        /// History entries to keep, instead of the configured window.
        history_ops: Option<u64>,
    },
    /// One [`Invitation`].
    Enroll {
        /// Name of the new member.
        name: MemberName,
        /// `webserver`, `reader`, `balancer` or `admin`.
        role: String,
        /// Lifetime of the token in seconds.
        ttl_s: u64,
        /// Addresses in the token, instead of the datastore's own.
        addresses: Vec<String>,
        /// Whether to replace an enrolled member of this name.
        replace: bool,
    },
    /// Revokes a member immediately.
    Revoke {
        /// Name of the member.
        name: MemberName,
        /// Whether to also remove the member, so that it is neither listed nor counted.
        remove: bool,
    },
    /// [`RejectedInfo`] and [`PendingInfo`] items of a replica.
    Outbox,
    /// Submits a rejected transaction again, as a new one.
    Retry {
        /// The transaction; `None` for all.
        id: Option<TxnId>,
        /// Versions of objects that the author has seen since. Conditions on these objects are changed to these versions.
        #[serde(default)]
        upon: Vec<SeenVersion>,
    },
    /// Removes a rejected transaction from the list.
    Dismiss {
        /// The transaction; `None` for all.
        id: Option<TxnId>,
    },
    /// [`BlobInfo`] items, one for each blob.
    BlobList,
    /// One [`BlobStats`].
    BlobStats,
    /// [`Progress`] items, then one [`BlobReport`].
    BlobVerify,
    /// One [`BlobCollection`].
    BlobCollect {
        /// Report the result without changing anything.
        dry_run: bool,
        /// Grace period in seconds, instead of the configured one.
        grace_s: Option<u64>,
    },
    /// [`GenerationInfo`] items: the generations of the log, oldest first.
    Generations,
    /// The last position that the datastore signed, as `gravwell_transport::trust::Proof`; no item if there is none.
    Proof,
    /// One [`super::authority::EscrowInfo`]: the CA backup for a member, encrypted under the operator's recovery key.
    Escrow {
        /// Stamp of the backup that the member has.
        known: Option<String>,
        /// Version of the member registry in the latest backup that the member has seen, signed by the datastore.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seen: Option<super::authority::SignedMark>,
    },
    /// One [`super::authority::RootsInfo`]: the CAs that a member must trust, and the one that shall sign its certificate.
    Roots {
        /// Hexadecimal fingerprints of the CAs that it trusts.
        known: Vec<String>,
        /// Hexadecimal fingerprint of its certificate.
        certificate: String,
    },
    /// A step of the CA rotation; one [`super::authority::AuthorityRotation`].
    RotateAuthority {
        /// The step.
        step: RotationStep,
    },
    /// One [`CopyBegin`], [`CopyNames`] items, then the bytes that the caller lacks of each segment, in order and in pieces.
    Copy {
        /// Log and generation of the caller's copy. Its segments are ignored if they belong to another log or generation.
        of: Option<(LogId, Generation)>,
        /// Segments, or parts of them, that the caller has.
        have: Vec<CopyHave>,
    },
    /// Bytes of chunks in the requested order, each in a separate message, which is empty if the chunk is missing.
    CopyChunks {
        /// IDs of the chunks.
        ids: Vec<ChunkId>,
    },
    /// On a replica: the [`Status`] of its datastore, requested from it. On a datastore: its own.
    Upstream,
    /// A page of the audit: its frames, then one [`super::audit::AuditPage`].
    Audit {
        /// The first record is one after this sequence.
        from: Seq,
        /// Earliest time in milliseconds since 1970-01-01 UTC. The reply may include earlier records.
        since_ms: u64,
        /// Latest time in milliseconds since 1970-01-01 UTC. The reply may include later records.
        until_ms: u64,
    },
    /// One [`super::audit::AuditReport`].
    AuditVerify {
        /// Record of which to return the chain.
        at: Option<Seq>,
    },
    /// Actions at a member, to be recorded in the audit; one empty item when they are durable.
    AuditActs {
        /// The actions, oldest first.
        acts: Vec<super::audit::Act>,
    },
    /// On a replica: one [`DeletionsInfo`], then [`DeletionInfo`] items, as far as its state knows them.
    Deletions {
        /// Return only deletions after this sequence.
        after: Seq,
    },
    /// Waits until a sequence is applied; one [`Status`].
    Barrier {
        /// The sequence; `None` to wait until all transactions now in the outbox are resolved and applied.
        seq: Option<Seq>,
        /// Maximum time to wait.
        timeout_ms: u64,
    },
    /// Acknowledges the corruption and gaps that audit records report; one empty item when that is durable.
    AuditAcknowledge {
        /// Sequence of the last acknowledged record.
        to: Seq,
    },
}

impl Request {
    /// Returns whether the request changes nothing. The directory of a stopped member is left unchanged by it.
    #[must_use]
    pub fn is_reading(&self) -> bool {
        match self {
            Request::Status
            | Request::Members
            | Request::Presence
            | Request::Backends
            | Request::Collections
            | Request::Segments
            | Request::Get { .. }
            | Request::List { .. }
            | Request::Export { .. }
            | Request::Tail { .. }
            | Request::History { .. }
            | Request::Record { .. }
            | Request::OriginStatus { .. }
            | Request::Verify
            | Request::Outbox
            | Request::Barrier { .. }
            | Request::Upstream
            | Request::Generations
            | Request::Audit { .. }
            | Request::AuditVerify { .. }
            | Request::Copy { .. }
            | Request::CopyChunks { .. }
            | Request::Deletions { .. }
            | Request::RotateAuthority { step: RotationStep::Status }
            | Request::Proof => true,
            Request::Compact { dry_run, .. } | Request::BlobCollect { dry_run, .. } => *dry_run,
            _ => self.is_of_contents(),
        }
    }

    /// Returns whether the request concerns the chunks of blobs.
    #[must_use]
    pub fn is_of_contents(&self) -> bool {
        matches!(self, Request::BlobList | Request::BlobStats | Request::BlobVerify | Request::BlobCollect { .. })
    }
}

/// State of a datastore or replica.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// `datastore` or `replica`.
    pub role: String,
    /// Whether a process runs on the directory.
    pub running: bool,
    /// Name of the member, on a replica.
    pub member: Option<String>,
    /// Identity of the log; absent on a replica that has never seen one.
    pub log_id: Option<LogId>,
    /// Generation of the log.
    pub generation: Generation,
    /// Last sequence applied to the state.
    pub seq: Seq,
    /// Last committed sequence, as far as known.
    pub head: Seq,
    /// Lowest sequence from which a tail can start.
    pub horizon: Seq,
    /// Lowest sequence durably applied by all members within retention.
    pub floor: Seq,
    /// State digest at `seq`.
    pub digest: Digest,
    /// On a replica: relation of its position to the datastore (`Same`, `Behind`, …), or `Unknown` if it has never connected.
    pub verdict: String,
    /// Remedy for a bad verdict or bad health; empty if there is no problem.
    pub remedy: String,
    /// Transactions that the datastore has not resolved yet.
    pub outbox: u64,
    /// Rejected transactions that wait for a user.
    pub rejected: u64,
    /// Entries between `seq` and `head`.
    pub lag_ops: u64,
    /// Milliseconds since the replica was last known to be caught up with the head.
    pub lag_ms: u64,
    /// On a replica: whether it is connected. On a datastore: whether it serves.
    pub connected: bool,
    /// On a datastore: connected members.
    pub subscribers: u64,
    /// Objects in the state.
    pub objects: u64,
    /// On a datastore: size of the log on disk in bytes.
    pub log_bytes: u64,
    /// Bytes free on the file system.
    pub disk_free_bytes: u64,
    /// On a replica that is not connected: the last error.
    #[serde(default)]
    pub trouble: String,
    /// Whether there is no problem; otherwise see `problem`.
    pub healthy: bool,
    /// Description of the problem; empty if there is none.
    pub problem: String,
    /// Version of the software.
    pub version: String,
    /// Address it listens on or connects to.
    pub address: String,
    /// Milliseconds since the process started.
    pub uptime_ms: u64,
    /// On a replica: whether it has caught up with its datastore since the process started.
    #[serde(default)]
    pub was_level: bool,
    /// On a replica: archived sets of changes of an abandoned history that the log lacks and that an operator must handle.
    #[serde(default)]
    pub quarantined: u64,
    /// The machine's clock in milliseconds since 1970-01-01 UTC; 0 from versions that do not report it.
    #[serde(default)]
    pub clock_ms: u64,
    /// Blobs with missing chunks.
    #[serde(default)]
    pub contents_incomplete: u64,
    /// Blobs of which no responding member has the missing chunks.
    #[serde(default)]
    pub contents_lost: u64,
    /// On a replica: whether it belongs to a webserver in standalone mode, which has its own log.
    #[serde(default)]
    pub is_standalone: bool,
    /// On a replica: whether it has joined a datastore; absent from versions that do not report it.
    #[serde(default)]
    pub is_member: Option<bool>,
    /// On a replica: whether the last reply of the datastore refused this member.
    #[serde(default)]
    pub is_refused: bool,
    /// On a replica: milliseconds since the connection was lost, or since the start; 0 while connected.
    #[serde(default)]
    pub disconnected_ms: u64,
    /// On a datastore without members: number of addresses from which members of another log were refused.
    #[serde(default)]
    pub refused_members: u64,
    /// On a datastore: whether the recovery key is being rotated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rotates_recovery_key: bool,
    /// On a datastore: whether the CA is being rotated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rotates_authority: bool,
    /// Health with its reasons, see [`super::health::assess`].
    #[serde(default)]
    pub health: Health,
}

/// An enrolled member.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Name of the member.
    pub name: String,
    /// Role of the member.
    pub role: String,
    /// `invited`, `enrolled` or `revoked`.
    pub state: String,
    /// Whether it is connected now.
    pub connected: bool,
    /// Durably applied sequence; absent if the member has never reported it.
    pub applied: Option<Seq>,
    /// Entries by which it lags behind the head.
    pub lag_ops: Option<u64>,
    /// Time of the last contact in milliseconds since 1970-01-01 UTC.
    pub last_seen_ms: Option<u64>,
    /// Whether it is within retention, so that it pins the floor.
    pub counts: bool,
    /// Expiry of its certificate in milliseconds since 1970-01-01 UTC.
    pub expires_ms: Option<u64>,
    /// Address at which other webservers and balancers reach it, as last reported.
    #[serde(default)]
    pub external_addr: Option<String>,
    /// Names of the recovery keys that decrypt the CA backup that it last reported to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_keys: Option<String>,
}

/// A webserver behind a load balancer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BackendInfo {
    /// Name of the webserver.
    pub name: String,
    /// Address at which balancers reach it, as last reported.
    pub external_addr: Option<String>,
    /// Whether it is connected now.
    pub connected: bool,
    /// Reason why it does not serve; absent if it does.
    pub unhealthy: Option<String>,
}

impl BackendInfo {
    /// Returns the webservers among the members, for a datastore that does not support [`Request::Backends`].
    #[must_use]
    pub fn among(members: &[MemberInfo], presence: &[PresenceInfo]) -> Vec<BackendInfo> {
        let is_served = |member: &&MemberInfo| {
            member.role == "webserver" && member.state == "enrolled" && (member.connected || member.counts)
        };
        let info = |member: &MemberInfo| {
            let its = presence.iter().filter(|present| present.name == member.name);
            let newest = its.max_by_key(|present| present.since_ms);
            let reported = newest.and_then(|present| present.external_addr.clone());
            BackendInfo {
                name: member.name.clone(),
                external_addr: reported.or_else(|| member.external_addr.clone()),
                connected: member.connected,
                unhealthy: newest.and_then(|present| present.unhealthy.clone()),
            }
        };
        members.iter().filter(is_served).map(info).collect()
    }
}

/// A connected member.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PresenceInfo {
    /// Name of the member.
    pub name: String,
    /// Role of the member.
    pub role: String,
    /// Network address from which it connected.
    pub address: String,
    /// Address at which other webservers reach it.
    pub external_addr: Option<String>,
    /// Durably applied sequence.
    pub applied: Seq,
    /// Transactions pending in its outbox.
    pub outbox: u64,
    /// Rejected transactions in its outbox.
    pub rejected: u64,
    /// Reason why it does not serve; absent if it does.
    pub unhealthy: Option<String>,
    /// Addresses at which it accepts connections of other members.
    #[serde(default)]
    pub peer_addresses: Vec<String>,
    /// Name and version of its software.
    pub software: String,
    /// Start of the connection in milliseconds since 1970-01-01 UTC.
    pub since_ms: u64,
}

/// A collection of the state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CollectionInfo {
    /// Name of the collection.
    pub collection: String,
    /// Number of objects.
    pub objects: u64,
    /// Total length of keys and values in bytes.
    pub bytes: u64,
    /// Digest of the collection.
    pub digest: Digest,
}

/// Range of the deletions that a state knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeletionsInfo {
    /// All deletions after this sequence are known, except of objects that exist again.
    pub complete_after: Seq,
    /// Sequence of the state.
    pub seq: Seq,
    /// Descent of the log from which the state comes; empty from earlier versions.
    #[serde(default)]
    pub lineage: Vec<crate::LineageEntry>,
}

/// A deletion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeletionInfo {
    /// Collection of the deleted object.
    pub collection: Collection,
    /// Key of the deleted object.
    pub key: Key,
    /// Sequence of the deletion.
    pub seq: Seq,
}

/// A segment file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SegmentInfo {
    /// File name.
    pub file: String,
    /// First sequence covered.
    pub first: Seq,
    /// Last sequence covered.
    pub last: Seq,
    /// Bytes on disk.
    pub bytes: u64,
    /// `open`, `sealed` or `compacted`.
    pub state: String,
    /// Bytes known to be superseded.
    pub garbage_bytes: u64,
}

/// A decoded record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordInfo {
    /// Sequence of the record.
    pub seq: Seq,
    /// Name of the file that contains it.
    pub file: String,
    /// Offset of its frame in the file.
    pub offset: u64,
    /// Length of frame and payload.
    pub bytes: u64,
    /// Name of the kind.
    pub kind: String,
    /// Flags as stored.
    pub flags: u16,
    /// Index within its batch.
    pub batch_index: u32,
    /// Chain in hexadecimal.
    pub chain: String,
    /// Checksum of the payload in hexadecimal.
    pub payload_crc: String,
    /// Checksum of the header in hexadecimal.
    pub header_crc: String,
    /// Payload in hexadecimal.
    pub payload: String,
    /// The entry as `tail --json` prints it.
    pub entry: serde_json::Value,
}

/// Progress of a long request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Name of the current stage.
    pub stage: String,
    /// Amount done so far.
    pub done: u64,
    /// Total amount; 0 if unknown.
    pub total: u64,
}

/// A corrupt location or a divergence.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// File, collection or member concerned.
    pub place: String,
    /// Offset, if the place is a file.
    pub offset: Option<u64>,
    /// Description of the problem.
    pub problem: String,
}

/// Result of `verify`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Whether no problem was found.
    pub ok: bool,
    /// Files read.
    pub files: u64,
    /// Records checked.
    pub records: u64,
    /// Bytes checked.
    pub bytes: u64,
    /// Sequence of the state.
    pub seq: Seq,
    /// Recomputed digest of the state.
    pub digest: Digest,
    /// Connected members that report no problem, each with its name and its applied sequence.
    pub members: Vec<String>,
    /// Problems found.
    pub findings: Vec<Finding>,
}

/// Result of a compaction, or of a dry run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CompactReport {
    /// Whether this was a dry run that changed nothing.
    pub dry_run: bool,
    /// Horizon before.
    pub horizon_before: Seq,
    /// Horizon after.
    pub horizon: Seq,
    /// Reason why the horizon cannot rise further.
    pub held_by: String,
    /// Segments rewritten.
    pub segments: u64,
    /// Size of the log before, in bytes.
    pub bytes_before: u64,
    /// Size of the log after, in bytes.
    pub bytes_after: u64,
}

/// A join token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Invitation {
    /// Name of the member.
    pub name: String,
    /// Its role.
    pub role: String,
    /// The encoded token.
    pub token: String,
    /// Expiry in milliseconds since 1970-01-01 UTC.
    pub expires_ms: u64,
}

/// A rejected transaction at a replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RejectedInfo {
    /// Identity of the transaction.
    pub id: TxnId,
    /// Sequence of the rejection.
    pub seq: Seq,
    /// Reason of the rejection.
    pub reason: String,
    /// Creation time in milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// The transaction in the format of `import`.
    pub txn: serde_json::Value,
}

/// The version of an object that an author has seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenVersion {
    /// Collection of the object.
    pub collection: Collection,
    /// Key of the object.
    pub key: Key,
    /// Version of the object.
    pub version: Seq,
}

/// A pending transaction at a replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PendingInfo {
    /// Identity of the transaction.
    pub id: TxnId,
    /// Creation time in milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// The transaction in the format of `import`.
    pub txn: serde_json::Value,
}

/// Event that started a generation of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GenerationCause {
    /// The log was created.
    Created,
    /// A corrupt log was repaired, and acknowledged transactions were lost.
    Repaired,
    /// The log was lost and rebuilt from a member.
    Recovered,
    /// An operator restored an earlier state from a backup.
    Restored,
}

impl std::fmt::Display for GenerationCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            GenerationCause::Created => "created",
            GenerationCause::Repaired => "repaired",
            GenerationCause::Recovered => "recovered",
            GenerationCause::Restored => "restored",
        })
    }
}

/// A generation of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationInfo {
    /// Number of the generation.
    pub generation: Generation,
    /// Last sequence that it shares with the previous generation.
    pub shared_to: Seq,
    /// Event that started it.
    pub beginning: GenerationCause,
    /// Start time in milliseconds since 1970-01-01 UTC; 0 if unknown.
    pub time_ms: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The caller's copy of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyHave {
    /// Hash of its file header.
    pub header: String,
    /// Hash of header and footer; empty if the segment was open.
    pub mark: String,
    /// Always 0. Earlier versions of the datastore skip this many bytes if the headers are equal, although that does
    /// not prove that the bytes are.
    pub bytes: u64,
    /// Whether the mark was computed from the bytes that the caller has.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_checked: bool,
    /// Length of the complete pieces from the start that need not be sent again if the file has the same bytes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub whole: u64,
    /// Hash of these pieces, see `log-format.md`, *Backups*.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sum: String,
}

/// Metadata of a log at one point in time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CopyBegin {
    /// Identity of the log.
    pub log_id: LogId,
    /// Generation of the log.
    pub generation: Generation,
    /// Descent of its generations.
    pub lineage: Vec<crate::LineageEntry>,
    /// Events that started the generations.
    pub generations: Vec<GenerationInfo>,
    /// Lowest sequence from which all records are present.
    pub horizon: Seq,
    /// Last sequence.
    pub seq: Seq,
    /// Hexadecimal chain at the last sequence.
    pub chain: String,
    /// Commit time of the last record in milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// A sequence at or shortly before the last one, and the digest of the state there.
    pub checkpoint: ExportEnd,
    /// CA and member registry, encrypted under the recovery key.
    pub escrow: String,
    /// Segments, oldest first.
    pub segments: Vec<CopySegment>,
    /// Chunks of blobs stored outside the log, only from a datastore of an earlier version.
    #[serde(default)]
    pub chunks: Vec<ChunkId>,
    /// Number of [`CopyNames`] items that precede the bytes of the segments.
    #[serde(default)]
    pub names: u64,
}

/// Chunks that the copied log references.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyNames {
    /// Whether blobs of the current state reference them, or only blobs of its history.
    pub is_live: bool,
    /// IDs of the chunks.
    pub ids: Vec<ChunkId>,
    /// Index chunks that are missing, so that the chunks they list are not included.
    #[serde(default)]
    pub unread: Vec<ChunkId>,
}

/// A segment of a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopySegment {
    /// Name of the file.
    pub name: String,
    /// Length of the valid part of the file.
    pub bytes: u64,
    /// Hash of its file header.
    pub header: String,
    /// Hash of header and footer; empty if the segment is open.
    pub mark: String,
    /// Bytes before this offset are not sent, because the caller has them.
    pub sent_from: u64,
}

/// An item of the outbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum OutboxItem {
    /// A transaction that is not resolved yet.
    Pending(PendingInfo),
    /// A transaction that was rejected.
    Rejected(RejectedInfo),
}

/// Counters of an origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginInfo {
    /// Greatest counter that is resolved, or durable in the outbox.
    pub taken: OriginCounter,
    /// Greatest counter that the datastore has resolved.
    pub decided: OriginCounter,
}

/// End of an export.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExportEnd {
    /// Sequence of the exported state.
    pub seq: Seq,
    /// Digest of the exported state.
    pub digest: Digest,
}

/// Error of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct AdminError {
    /// Message with the failure, its reason and the remedy.
    pub message: String,
    /// Exit code for the command: 1 rejected or failed, 3 corruption or divergence.
    pub exit: u8,
}

impl RecordInfo {
    /// Describes an encoded frame found at `offset` of `file`. The caller fills in `entry`.
    ///
    /// # Errors
    /// If the frame cannot be decoded.
    pub fn of(file: &str, offset: u64, frame: &bytes::Bytes) -> Result<RecordInfo, super::error::DecodeError> {
        let (header, payload) = super::frame::decode_frame(frame)?;
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let kind = match header.kind {
            super::frame::kind::COMMIT => "commit".to_owned(),
            super::frame::kind::REJECT => "reject".to_owned(),
            other => format!("unknown ({other})"),
        };
        Ok(RecordInfo {
            seq: header.seq,
            file: file.to_owned(),
            offset,
            bytes: frame.len() as u64,
            kind,
            flags: header.flags,
            batch_index: header.batch_index,
            chain: hex(&header.chain),
            payload_crc: hex(&frame[super::frame::AT_PAYLOAD_CRC..super::frame::AT_HEADER_CRC]),
            header_crc: hex(&frame[super::frame::AT_HEADER_CRC..super::frame::HEADER_BYTES]),
            payload: hex(&frame[payload]),
            entry: serde_json::Value::Null,
        })
    }
}
