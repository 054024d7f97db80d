//! Records of the audit, in which the datastore logs all actions and their authors. See `log-format.md`, "Audit".
//!
//! `AuditV1` is frozen like the other payloads; new events are appended to [`AuditEvent`]. Events that this version
//! does not know are kept, counted and shown as unknown.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::error::DecodeError;
use super::frame::kind;
use super::redaction;
use crate::{Chain, Entry, EntryBody, Generation, LogId, MemberName, Op, Reason, Seq};

/// Maximum length of an object's value that is recorded, before or after a change.
pub const VALUE_BYTES_MAX: usize = 64 << 10;
/// Maximum total length of the values in one record.
pub const VALUES_BYTES_MAX: usize = 1 << 20;
/// Maximum total length of object names in one record. Only transactions constructed for this purpose exceed it.
pub const NAMES_BYTES_MAX: usize = 16 << 20;

/// A point in the operation log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPoint {
    /// Identity of the log.
    pub log_id: LogId,
    /// Generation of the log.
    pub generation: Generation,
    /// Sequence of the log.
    pub seq: Seq,
    /// Chain at the sequence.
    pub chain: Chain,
}

/// A record of the audit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Time of recording by the datastore; for a transaction, its commit time. In milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// The member where the event happened, as authenticated by the datastore.
    pub member: MemberName,
    /// The audit covers the operation log up to this point.
    pub covered: LogPoint,
    /// The recorded event.
    pub event: AuditEvent,
}

/// Events of the audit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuditEvent {
    /// A transaction was committed, at [`AuditRecord::covered`].
    Commit {
        /// Note of the transaction: its author, as stated by the webserver.
        #[serde(with = "serde_bytes")]
        note: Vec<u8>,
        /// Changes of the transaction.
        ops: Vec<AuditOp>,
        /// Further changes whose names did not fit into the record.
        more: u64,
    },
    /// A transaction was rejected, at [`AuditRecord::covered`].
    Reject {
        /// Reason of the rejection.
        reason: Reason,
    },
    /// An entry of a kind that this version does not know was committed, at [`AuditRecord::covered`].
    Unknown {
        /// Kind of the entry.
        kind: u8,
    },
    /// The audit continues at [`AuditRecord::covered`] instead of after its last entry, because entries were missing or
    /// the log was replaced.
    Gap {
        /// Last entry that the audit covered before.
        after: LogPoint,
        /// Reason of the gap.
        reason: String,
    },
    /// Older records were removed.
    Trimmed {
        /// Sequence of the last removed record.
        to: Seq,
        /// Chain of the audit at that record. The first remaining record continues it.
        chain: Chain,
    },
    /// An action that is not a change of an object.
    Act(Act),
    /// An administrator has acknowledged the corruption and gaps reported by records up to `to`.
    Acknowledged {
        /// Sequence of the last acknowledged record.
        to: Seq,
        /// Source of the acknowledgement: the user of the host, or the administrator's address.
        from: String,
    },
}

/// A change of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditOp {
    /// Whether the object was deleted.
    pub is_delete: bool,
    /// Collection of the object.
    pub collection: String,
    /// Key of the object; in a secret collection only the owner.
    pub key: String,
    /// Value before the change.
    pub before: Value,
    /// Value after the change.
    pub after: Value,
}

/// A recorded value, as far as it may be recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Value {
    /// There was no value.
    #[default]
    None,
    /// Unknown, because the value was overwritten before the audit read it.
    Unknown,
    /// Omitted because it is secret, private to a user, not JSON or too long. Only its length is recorded.
    Withheld(u64),
    /// The JSON value, unchanged.
    Json(Bytes),
}

impl Value {
    /// Returns the recordable form of a value of `collection`. `room` is the number of bytes left for values, and is
    /// reduced accordingly.
    #[must_use]
    pub fn of(collection: &crate::Collection, value: &[u8], room: &mut usize) -> Value {
        let is_kept = value.len() <= VALUE_BYTES_MAX && value.len() <= *room;
        if is_kept && redaction::value(collection, value).is_some() {
            *room -= value.len();
            return Value::Json(Bytes::copy_from_slice(value));
        }
        Value::Withheld(value.len() as u64)
    }
}

impl AuditOp {
    /// Returns the recordable form of an operation. `before` is the object's previous value.
    #[must_use]
    pub fn of(op: &Op, before: Value, room: &mut usize) -> AuditOp {
        let after = op.value().map_or(Value::None, |value| Value::of(op.collection(), value, room));
        AuditOp {
            is_delete: op.value().is_none(),
            collection: op.collection().to_string(),
            key: redaction::key(op.collection(), op.key()).to_owned(),
            before,
            after,
        }
    }
}

/// An action or attempt that is not a change of an object. Its texts are limited, see [`Act::check`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Act {
    /// Kind, such as `login-failed`.
    pub kind: String,
    /// Time by the clock of the host where it happened, in milliseconds since 1970-01-01 UTC.
    pub happened_ms: u64,
    /// ID of the user, if there is one.
    pub uid: Option<i32>,
    /// Name of the user, or the name that was entered.
    pub user: String,
    /// The administrator who impersonates this user, if any.
    pub by: String,
    /// Address of the client, or the user of the host.
    pub from: String,
    /// Description for display.
    pub what: String,
    /// How many equal actions it represents; usually 1.
    pub count: u64,
    /// ID assigned by the member that sent it; empty for actions at the datastore itself.
    #[serde(default)]
    pub id: String,
}

/// Maximum length of the kind and the ID of an action, in bytes.
const ACT_WORD_BYTES_MAX: usize = 64;
/// Maximum length of other texts of an action, in bytes.
const ACT_TEXT_BYTES_MAX: usize = 1024;

impl Act {
    /// Checks that its texts do not exceed their limits.
    ///
    /// # Errors
    /// Returns an error that names the text that is too long.
    pub fn check(&self) -> Result<(), String> {
        let words = [("kind", &self.kind), ("id", &self.id)];
        let texts = [("user", &self.user), ("by", &self.by), ("from", &self.from), ("what", &self.what)];
        let words = words.into_iter().map(|(name, text)| (name, text, ACT_WORD_BYTES_MAX));
        let texts = texts.into_iter().map(|(name, text)| (name, text, ACT_TEXT_BYTES_MAX));
        match words.chain(texts).find(|(_, text, bytes_max)| text.len() > *bytes_max) {
            Some((name, text, max)) => {
                Err(format!("the {name} of an audit report has {} bytes, but at most {max} are allowed", text.len()))
            }
            None => Ok(()),
        }
    }

    /// Returns the action with texts shortened to their limits.
    #[must_use]
    pub fn bounded(mut self) -> Act {
        shorten(&mut self.kind, ACT_WORD_BYTES_MAX);
        shorten(&mut self.id, ACT_WORD_BYTES_MAX);
        for text in [&mut self.user, &mut self.by, &mut self.from, &mut self.what] {
            shorten(text, ACT_TEXT_BYTES_MAX);
        }
        self
    }
}

fn shorten(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        let end = (0..=bytes_max - '…'.len_utf8()).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
}

impl AuditRecord {
    /// Returns the audit entry that contains this record at `seq`.
    #[must_use]
    pub fn entry(&self, seq: Seq) -> Entry {
        let payload = postcard::to_allocvec(self).expect("invariant: encoding into memory cannot fail").into();
        let (time_ms, member) = (self.time_ms, self.member.clone());
        Entry { seq, time_ms, member, body: EntryBody::Unknown { kind: kind::AUDIT, payload } }
    }

    /// Decodes the record in an audit entry.
    ///
    /// # Errors
    /// If it is not an audit record, or of a later version.
    pub fn of(entry: &Entry) -> Result<AuditRecord, DecodeError> {
        let EntryBody::Unknown { kind: kind::AUDIT, payload } = &entry.body else {
            return Err(DecodeError::new("audit payload", 0, "an audit record", "another kind"));
        };
        AuditRecord::decode(payload)
    }

    fn decode(payload: &[u8]) -> Result<AuditRecord, DecodeError> {
        let (record, rest) = postcard::take_from_bytes(payload)
            .map_err(|error| DecodeError::new("audit payload", 0, "a well-formed structure", error))?;
        if rest.is_empty() {
            return Ok(record);
        }
        let at = payload.len() - rest.len();
        Err(DecodeError::new("audit payload", at, "the end", format_args!("{} more bytes", rest.len())))
    }
}

/// Returns a JSON text in a form that every reader can parse: deeply nested JSON becomes a string.
#[must_use]
pub fn readable(value: &[u8]) -> Option<Cow<'_, serde_json::value::RawValue>> {
    if super::depth::is_deep(value) {
        let text = String::from_utf8_lossy(value);
        return serde_json::value::to_raw_value(&*text).ok().map(Cow::Owned);
    }
    serde_json::from_slice(value).ok().map(Cow::Borrowed)
}

/// Information that accompanies a page of records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditPage {
    /// Last record of the page, after which the next page starts; `None` if there are no more records.
    pub next: Option<Seq>,
    /// Records up to this one were removed because of their age.
    pub horizon: Seq,
    /// The audit covers the operation log up to this sequence.
    pub covered: Seq,
    /// Entries of the operation log that were not recorded when the page was read.
    pub missing: u64,
    /// Reason why nothing can be recorded now; empty if recording works.
    pub problem: String,
}

/// Result of a verification of the audit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AuditReport {
    /// Whether no problem was found.
    pub ok: bool,
    /// Files read.
    pub files: u64,
    /// Records checked.
    pub records: u64,
    /// Bytes checked.
    pub bytes: u64,
    /// First retained record.
    pub first: Seq,
    /// Last record.
    pub last: Seq,
    /// Hexadecimal chain at the last record. Stored elsewhere, it later proves that no record up to there was changed.
    pub chain: String,
    /// Chain at the requested record, if that is retained.
    #[serde(default)]
    pub chain_at: Option<String>,
    /// Time of the first record in milliseconds since 1970-01-01 UTC.
    pub first_time_ms: u64,
    /// Time of the last record in milliseconds since 1970-01-01 UTC.
    pub last_time_ms: u64,
    /// The audit covers the operation log up to this sequence.
    pub covered: Seq,
    /// Records that report missing entries and were not acknowledged.
    pub gaps: u64,
    /// Records of that kind that were acknowledged.
    #[serde(default)]
    pub acknowledged: u64,
    /// Maximum size of the audit in bytes; 0 if unknown.
    #[serde(default)]
    pub bytes_max: u64,
    /// Records of a later version, which were verified but not decoded.
    pub unknown: u64,
    /// Problems found.
    pub findings: Vec<super::admin::Finding>,
}
