//! Requests of `gravwell-logctl` and their answers, as JSON: fields may be added, unknown ones are ignored.
//!
//! One stream (or one connection of the local socket) carries one request. The answer is any number of
//! [`super::message::Kind::AdminItem`] messages, then [`super::message::Kind::AdminEnd`] or
//! [`super::message::Kind::AdminError`]. Log entries travel as [`super::message::Kind::Frames`], state rows as
//! [`super::message::Kind::Rows`]; a [`Request::Submit`] stream is followed by
//! [`super::message::Kind::Push`] messages from the client, each answered by
//! [`super::message::Kind::Outcome`], until the client finishes its side.

use serde::{Deserialize, Serialize};

use super::authority::RotationStep;
use super::health::Health;

pub use super::blobs::{BlobCollection, BlobInfo, BlobReport, BlobStats};
use crate::model::{
    ChunkId, Collection, Digest, Generation, Key, LogId, MemberName, Origin, OriginCounter, Seq, TxnId,
};

/// A request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// One [`Status`].
    Status,
    /// [`MemberInfo`] items.
    Members,
    /// [`PresenceInfo`] items.
    Presence,
    /// [`BackendInfo`] items: the webservers that a load balancer may send requests to.
    Backends,
    /// [`CollectionInfo`] items.
    Collections,
    /// [`SegmentInfo`] items.
    Segments,
    /// Rows: one object, or none.
    Get {
        /// Where.
        collection: Collection,
        /// Which.
        key: Key,
        /// As of this sequence instead of now.
        at: Option<Seq>,
    },
    /// Rows in key order.
    List {
        /// Where.
        collection: Collection,
        /// Only keys that start so.
        prefix: String,
        /// Most rows; `None`: all.
        limit: Option<u64>,
    },
    /// Rows of all collections in order, then an [`ExportEnd`] item.
    Export {
        /// As of this sequence instead of now.
        at: Option<Seq>,
        /// Whether it is to be checked, not kept. The audit says so; it is given all the same.
        #[serde(default)]
        is_check: bool,
    },
    /// Frames of the entries after `from`. On a replica, which has no log, frames as they arrive.
    Tail {
        /// The first entry is the one after this.
        from: Seq,
        /// The last entry; `None`: the head at the time of the request.
        to: Option<Seq>,
        /// Go on with new entries until the client leaves.
        follow: bool,
    },
    /// Frames of the entries that touch one object, oldest first.
    History {
        /// Where.
        collection: Collection,
        /// Which.
        key: Key,
    },
    /// One [`RecordInfo`].
    Record {
        /// Which.
        seq: Seq,
    },
    /// Transactions follow as push messages. On a replica they pass through the outbox.
    Submit {
        /// Answer only when decided upstream; otherwise a replica answers when durable locally.
        wait: bool,
    },
    /// One [`OriginInfo`].
    OriginStatus {
        /// Which.
        origin: Origin,
    },
    /// [`Progress`] items, then one [`VerifyReport`].
    Verify,
    /// [`Progress`] items, then one [`CompactReport`].
    Compact {
        /// Only say what would be done.
        dry_run: bool,
        /// Keep this many entries of history instead of the configured window.
        history_ops: Option<u64>,
    },
    /// One [`Invitation`].
    Enroll {
        /// Name of the new member.
        name: MemberName,
        /// `webserver`, `reader`, `balancer` or `admin`.
        role: String,
        /// Life of the token, seconds.
        ttl_s: u64,
        /// Addresses to put into the token instead of the datastore's own.
        addresses: Vec<String>,
        /// Replace an enrolled member of this name.
        replace: bool,
    },
    /// Cuts a member off at once.
    Revoke {
        /// Which.
        name: MemberName,
        /// Forget it altogether, so that it no longer shows nor counts.
        remove: bool,
    },
    /// [`RejectedInfo`] and [`PendingInfo`] items of a replica.
    Outbox,
    /// Submits a rejected transaction again, as a new one.
    Retry {
        /// Which; `None`: all.
        id: Option<TxnId>,
        /// What its author has seen of objects since: it is applied upon these versions.
        #[serde(default)]
        upon: Vec<SeenVersion>,
    },
    /// Takes a rejected transaction off the list.
    Dismiss {
        /// Which; `None`: all.
        id: Option<TxnId>,
    },
    /// [`BlobInfo`] items, one for each content.
    BlobList,
    /// One [`BlobStats`].
    BlobStats,
    /// [`Progress`] items, then one [`BlobReport`].
    BlobVerify,
    /// One [`BlobCollection`].
    BlobCollect {
        /// Only say what would be done.
        dry_run: bool,
        /// Grace period in seconds instead of the configured one.
        grace_s: Option<u64>,
    },
    /// [`GenerationInfo`] items: how the log's generations came about, oldest first.
    Generations,
    /// The last position that the datastore signed, as [`crate::trust::Proof`]; nothing where there is none.
    Proof,
    /// One [`super::authority::EscrowInfo`]: the authority, sealed under the operator's recovery key, for a member to keep.
    Escrow {
        /// Stamp of the copy that the member has.
        known: Option<String>,
        /// How far the register of members had come in the latest copy that the member has seen, as the datastore signed it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seen: Option<super::authority::SignedMark>,
    },
    /// One [`super::authority::RootsInfo`]: which authorities a member is to trust, and which is to sign its certificate.
    Roots {
        /// Fingerprints of those that it trusts, hexadecimal.
        known: Vec<String>,
        /// Fingerprint of its certificate, hexadecimal.
        certificate: String,
    },
    /// A step of the authority's rotation; one [`super::authority::AuthorityRotation`].
    RotateAuthority {
        /// Which.
        step: RotationStep,
    },
    /// One [`CopyBegin`], [`CopyNames`] items, then the bytes of the segments in order, in pieces: of each what the caller lacks.
    Copy {
        /// Log and generation of what the caller has; of others nothing counts.
        of: Option<(LogId, Generation)>,
        /// What the caller has of which segments.
        have: Vec<CopyHave>,
    },
    /// The bytes of chunks, in the order asked for, each in a message of its own, which is empty for one that is not there.
    CopyChunks {
        /// Which.
        ids: Vec<ChunkId>,
    },
    /// On a replica: the [`Status`] of its datastore, as it answers now. On a datastore: its own.
    Upstream,
    /// A page of the audit: its frames, then one [`super::audit::AuditPage`].
    Audit {
        /// The first record is one after this.
        from: Seq,
        /// Earliest time wanted, milliseconds since 1970-01-01 UTC; earlier records may come along.
        since_ms: u64,
        /// Latest time wanted; later records may come along.
        until_ms: u64,
    },
    /// One [`super::audit::AuditReport`].
    AuditVerify {
        /// A record of which the chain is wanted.
        at: Option<Seq>,
    },
    /// Acts that happened at a member, to be recorded in the audit; one empty item when they are durable.
    AuditActs {
        /// Oldest first.
        acts: Vec<super::audit::Act>,
    },
    /// On a replica: one [`DeletionsInfo`], then [`DeletionInfo`] items, as far as its state knows of them.
    Deletions {
        /// Only later ones.
        after: Seq,
    },
    /// Waits until a sequence is applied; one [`Status`].
    Barrier {
        /// Which; `None`: everything in the outbox now is decided and applied.
        seq: Option<Seq>,
        /// Longest wait.
        timeout_ms: u64,
    },
    /// What the audit's records up to this one say of damage and of what is missing was seen; one empty item when that is durable.
    AuditAcknowledge {
        /// The last one of them.
        to: Seq,
    },
}

impl Request {
    /// Whether answering it changes nothing. A stopped member's directory is left as it is then.
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

    /// Whether it is about the chunks of contents.
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
    /// Identity of the log; absent on a replica that never met one.
    pub log_id: Option<LogId>,
    /// Generation of the log.
    pub generation: Generation,
    /// Last sequence applied to the state.
    pub seq: Seq,
    /// Last committed sequence, as far as known.
    pub head: Seq,
    /// Lowest sequence from which a tail can start.
    pub horizon: Seq,
    /// Lowest sequence durably applied by all members that count.
    pub floor: Seq,
    /// State digest at `seq`.
    pub digest: Digest,
    /// On a replica: what its position is to the datastore (`Same`, `Behind`, …), or `Unknown` when never connected.
    pub verdict: String,
    /// What to do about a bad verdict or bad health; empty when all is well.
    pub remedy: String,
    /// Transactions not yet decided upstream.
    pub outbox: u64,
    /// Rejected transactions waiting for a person.
    pub rejected: u64,
    /// Entries between `seq` and `head`.
    pub lag_ops: u64,
    /// Milliseconds since the replica was last known to be level with the head.
    pub lag_ms: u64,
    /// On a replica: whether it is connected. On a datastore: whether it serves.
    pub connected: bool,
    /// On a datastore: connected members.
    pub subscribers: u64,
    /// Objects in the state.
    pub objects: u64,
    /// Bytes of the log on disk, on a datastore.
    pub log_bytes: u64,
    /// Bytes free on the file system.
    pub disk_free_bytes: u64,
    /// On a replica that is not connected: the last reason.
    #[serde(default)]
    pub trouble: String,
    /// Whether all is well; otherwise `problem` says what is not.
    pub healthy: bool,
    /// What is wrong; empty when all is well.
    pub problem: String,
    /// Version of the software.
    pub version: String,
    /// Address it listens on or connects to.
    pub address: String,
    /// Milliseconds since the process started.
    pub uptime_ms: u64,
    /// On a replica: whether it has been level with its datastore since the process started.
    #[serde(default)]
    pub was_level: bool,
    /// On a replica: changes that a former history had and the log has not, set aside for a person.
    #[serde(default)]
    pub quarantined: u64,
    /// The machine's clock, milliseconds since 1970-01-01 UTC; 0: a version that does not say.
    #[serde(default)]
    pub clock_ms: u64,
    /// Contents of which chunks are not here and should be.
    #[serde(default)]
    pub contents_incomplete: u64,
    /// Those of them of which nobody who answers has the rest.
    #[serde(default)]
    pub contents_lost: u64,
    /// On a replica: whether it belongs to a webserver without a datastore, which keeps a log of its own.
    #[serde(default)]
    pub is_standalone: bool,
    /// On a replica: whether it has joined a datastore; absent from versions that do not say.
    #[serde(default)]
    pub is_member: Option<bool>,
    /// On a replica: whether the datastore refused this member when it last answered.
    #[serde(default)]
    pub is_refused: bool,
    /// On a replica: milliseconds since the connection was lost, or since the start; 0 while connected.
    #[serde(default)]
    pub disconnected_ms: u64,
    /// On a datastore without members: addresses of members of another log that were refused.
    #[serde(default)]
    pub refused_members: u64,
    /// On a datastore: the recovery key is being rotated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rotates_recovery_key: bool,
    /// On a datastore: the authority is being rotated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rotates_authority: bool,
    /// How well it does, and why not better; see [`super::health::assess`].
    #[serde(default)]
    pub health: Health,
}

/// One enrolled member.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Name.
    pub name: String,
    /// Role.
    pub role: String,
    /// `invited`, `enrolled`, `revoked`.
    pub state: String,
    /// Whether it is connected now.
    pub connected: bool,
    /// Durably applied sequence; absent when it never said.
    pub applied: Option<Seq>,
    /// Entries behind the head.
    pub lag_ops: Option<u64>,
    /// When it was last heard of, milliseconds since 1970-01-01 UTC.
    pub last_seen_ms: Option<u64>,
    /// Whether it holds the floor back.
    pub counts: bool,
    /// End of its certificate's life, milliseconds since 1970-01-01 UTC.
    pub expires_ms: Option<u64>,
    /// Where other webservers and balancers reach it, as it last said.
    #[serde(default)]
    pub external_addr: Option<String>,
    /// Names of the recovery keys that open the sealed copy of the authority that it last said it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_keys: Option<String>,
}

/// A webserver behind a load balancer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BackendInfo {
    /// Name.
    pub name: String,
    /// Where balancers reach it, as it last reported.
    pub external_addr: Option<String>,
    /// Whether it is connected now.
    pub connected: bool,
    /// Why it does not serve; absent when it does.
    pub unhealthy: Option<String>,
}

impl BackendInfo {
    /// The webservers among the members, as a datastore without [`Request::Backends`] describes them.
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

/// One connected member.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PresenceInfo {
    /// Name.
    pub name: String,
    /// Role.
    pub role: String,
    /// Network address it came from.
    pub address: String,
    /// Where other webservers reach it.
    pub external_addr: Option<String>,
    /// Durably applied sequence.
    pub applied: Seq,
    /// Transactions waiting there.
    pub outbox: u64,
    /// Rejected transactions waiting there.
    pub rejected: u64,
    /// Why it does not serve; absent when it does.
    pub unhealthy: Option<String>,
    /// Where it listens to other members.
    #[serde(default)]
    pub peer_addresses: Vec<String>,
    /// Software it runs.
    pub software: String,
    /// Since when, milliseconds since 1970-01-01 UTC.
    pub since_ms: u64,
}

/// One collection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CollectionInfo {
    /// Name.
    pub collection: String,
    /// Objects in it.
    pub objects: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Its digest.
    pub digest: Digest,
}

/// What a state knows of deletions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeletionsInfo {
    /// Every deletion after this sequence is known, of objects that are absent now.
    pub complete_after: Seq,
    /// Where the state stands.
    pub seq: Seq,
    /// How the log that it comes from descends; empty from earlier versions.
    #[serde(default)]
    pub lineage: Vec<crate::model::LineageEntry>,
}

/// One deletion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeletionInfo {
    /// Where the object was.
    pub collection: Collection,
    /// Which it was.
    pub key: Key,
    /// Sequence of the deletion.
    pub seq: Seq,
}

/// One segment file.
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

/// One record, decoded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordInfo {
    /// Sequence.
    pub seq: Seq,
    /// File it is in.
    pub file: String,
    /// Offset of its frame there.
    pub offset: u64,
    /// Length of frame and payload.
    pub bytes: u64,
    /// Kind, in words.
    pub kind: String,
    /// Flags as found.
    pub flags: u16,
    /// Position within its batch.
    pub batch_index: u32,
    /// Chain, hexadecimal.
    pub chain: String,
    /// Checksum of the payload, hexadecimal.
    pub payload_crc: String,
    /// Checksum of the header, hexadecimal.
    pub header_crc: String,
    /// Payload, hexadecimal.
    pub payload: String,
    /// The entry as `tail --json` prints it.
    pub entry: serde_json::Value,
}

/// Bytes `done` of `total`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// What is going on.
    pub stage: String,
    /// Done so far.
    pub done: u64,
    /// Of how many; 0: unknown.
    pub total: u64,
}

/// One damaged place or divergence.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// File, collection or member concerned.
    pub place: String,
    /// Offset in the file, where it is one.
    pub offset: Option<u64>,
    /// What is wrong.
    pub problem: String,
}

/// What `verify` found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Whether all is well.
    pub ok: bool,
    /// Files read.
    pub files: u64,
    /// Records checked.
    pub records: u64,
    /// Bytes checked.
    pub bytes: u64,
    /// Where the state stands.
    pub seq: Seq,
    /// State digest as recomputed.
    pub digest: Digest,
    /// Members compared, by name, with their word on the digest.
    pub members: Vec<String>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// What a compaction did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CompactReport {
    /// Whether anything was changed.
    pub dry_run: bool,
    /// Horizon before.
    pub horizon_before: Seq,
    /// Horizon after.
    pub horizon: Seq,
    /// What keeps the horizon from rising further.
    pub held_by: String,
    /// Segments rewritten.
    pub segments: u64,
    /// Bytes before.
    pub bytes_before: u64,
    /// Bytes after.
    pub bytes_after: u64,
}

/// A join token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Invitation {
    /// Name of the member.
    pub name: String,
    /// Its role.
    pub role: String,
    /// The token.
    pub token: String,
    /// When it expires, milliseconds since 1970-01-01 UTC.
    pub expires_ms: u64,
}

/// A rejected transaction at a replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RejectedInfo {
    /// Identity.
    pub id: TxnId,
    /// Sequence of the rejection.
    pub seq: Seq,
    /// Why.
    pub reason: String,
    /// When it was made.
    pub time_ms: u64,
    /// The transaction in the form of `import`.
    pub txn: serde_json::Value,
}

/// The version of an object that somebody has seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenVersion {
    /// Where.
    pub collection: Collection,
    /// Which.
    pub key: Key,
    /// Its version.
    pub version: Seq,
}

/// A transaction that waits at a replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PendingInfo {
    /// Identity.
    pub id: TxnId,
    /// When it was made.
    pub time_ms: u64,
    /// The transaction in the form of `import`.
    pub txn: serde_json::Value,
}

/// How a generation of the log began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Beginning {
    /// With the log itself.
    Created,
    /// A damaged log was repaired, and acknowledged transactions were lost.
    Repaired,
    /// The log was lost, and was built anew from a member.
    Recovered,
    /// An earlier state was restored from a backup, on purpose.
    Restored,
}

impl std::fmt::Display for Beginning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Beginning::Created => "created",
            Beginning::Repaired => "repaired",
            Beginning::Recovered => "recovered",
            Beginning::Restored => "restored",
        })
    }
}

/// One generation of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationInfo {
    /// Its number.
    pub generation: Generation,
    /// Last sequence that it shares with the one before.
    pub shared_to: Seq,
    /// How it began.
    pub beginning: Beginning,
    /// When it began, milliseconds since 1970-01-01 UTC; 0 when unknown.
    pub time_ms: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// What somebody who copies a log has of one segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyHave {
    /// Hash of its file header.
    pub header: String,
    /// Hash of header and footer; empty when it was open.
    pub mark: String,
    /// Bytes from its beginning that an earlier version leaves out where the header is the same, which proves nothing: 0.
    pub bytes: u64,
    /// Whether the mark was made of the very bytes that the caller has.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_checked: bool,
    /// Bytes of whole pieces from its beginning that need not be sent again, if the file has the very same.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub whole: u64,
    /// Their hash, see `log-format.md`, *Backups*.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sum: String,
}

/// A log as of one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CopyBegin {
    /// Which log.
    pub log_id: LogId,
    /// Its generation.
    pub generation: Generation,
    /// How that descends.
    pub lineage: Vec<crate::model::LineageEntry>,
    /// How the generations began.
    pub generations: Vec<GenerationInfo>,
    /// Lowest sequence from which every record is there.
    pub horizon: Seq,
    /// Last sequence.
    pub seq: Seq,
    /// Chain there, hexadecimal.
    pub chain: String,
    /// When the last record was committed, milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// A sequence at or shortly before the last, and the digest of the state there.
    pub checkpoint: ExportEnd,
    /// The authority and the register of members, sealed under the recovery key.
    pub escrow: String,
    /// The segments, oldest first.
    pub segments: Vec<CopySegment>,
    /// Chunks of contents that are kept beside the log, as a datastore of an earlier version tells them.
    #[serde(default)]
    pub chunks: Vec<ChunkId>,
    /// How many [`CopyNames`] follow before the bytes of the segments.
    #[serde(default)]
    pub names: u64,
}

/// Chunks that what is copied names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyNames {
    /// Whether the contents of the state name them, or only those of its history.
    pub is_live: bool,
    /// The chunks.
    pub ids: Vec<ChunkId>,
    /// Lists of chunks that are not here, so that what they list is not among the chunks.
    #[serde(default)]
    pub unread: Vec<ChunkId>,
}

/// One segment of a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopySegment {
    /// Name of its file.
    pub name: String,
    /// How much of the file counts.
    pub bytes: u64,
    /// Hash of its file header.
    pub header: String,
    /// Hash of header and footer; empty when it is open.
    pub mark: String,
    /// Bytes before this are not sent: the caller has them.
    pub sent_from: u64,
}

/// An item of the outbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum OutboxItem {
    /// Waits to be decided.
    Pending(PendingInfo),
    /// Was rejected.
    Rejected(RejectedInfo),
}

/// What is known of an origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginInfo {
    /// Greatest counter taken: decided, or durable in the outbox.
    pub taken: OriginCounter,
    /// Greatest counter decided upstream.
    pub decided: OriginCounter,
}

/// End of an export.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExportEnd {
    /// State exported.
    pub seq: Seq,
    /// Its digest.
    pub digest: Digest,
}

/// Failure of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct AdminError {
    /// What failed, why, and what to do.
    pub message: String,
    /// Exit code for the command: 1 refused or failed, 3 damage or divergence.
    pub exit: u8,
}

impl RecordInfo {
    /// Describes an encoded frame found at `offset` of `file`. `entry` is left for the printer.
    ///
    /// # Errors
    /// When the frame does not decode.
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
