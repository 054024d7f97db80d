//! Records of the audit: who did what, as the datastore writes it down in a log of its own. See `log-format.md`, "Audit".
//!
//! `AuditV1` is frozen as the other payloads are; events are appended at the end of [`AuditEvent`]. One that this version does not
//! know is kept and counted, and shown as unknown.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::error::DecodeError;
use super::exposed;
use super::frame::kind;
use crate::model::{Chain, Entry, EntryBody, Generation, LogId, MemberName, Op, Reason, Seq};

/// Largest value that is kept of an object, before or after a change.
pub const VALUE_BYTES_MAX: usize = 64 << 10;
/// Bytes of values that one record keeps.
pub const VALUES_BYTES_MAX: usize = 1 << 20;
/// Bytes of names of objects that one record keeps: more than any transaction has that was not made to have more.
pub const NAMES_BYTES_MAX: usize = 16 << 20;

/// A point in the operation log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPoint {
    /// Which log.
    pub log_id: LogId,
    /// Which generation of it.
    pub generation: Generation,
    /// A sequence of it.
    pub seq: Seq,
    /// Chain there.
    pub chain: Chain,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// When the datastore recorded it; of a transaction its commit time. Milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// The member at which it happened, as the datastore knows it.
    pub member: MemberName,
    /// The audit has everything of the operation log up to here.
    pub covered: LogPoint,
    /// What happened.
    pub event: AuditEvent,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuditEvent {
    /// A transaction was committed, at [`AuditRecord::covered`].
    Commit {
        /// Its note: who made it, as its webserver says.
        #[serde(with = "serde_bytes")]
        note: Vec<u8>,
        /// What it changed.
        ops: Vec<AuditOp>,
        /// How many further changes it made, of which the names have no room in one record.
        more: u64,
    },
    /// A transaction was rejected, at [`AuditRecord::covered`].
    Reject {
        /// Why.
        reason: Reason,
    },
    /// An entry of a kind that this version does not know was committed, at [`AuditRecord::covered`].
    Unknown {
        /// Its kind.
        kind: u8,
    },
    /// The audit does not go on where it had got to, but at [`AuditRecord::covered`]: entries were not there any more, or the log
    /// is another one.
    Gap {
        /// The last entry before, where the audit had got to.
        after: LogPoint,
        /// Why.
        reason: String,
    },
    /// Older records were removed.
    Trimmed {
        /// The last one of them.
        to: Seq,
        /// Chain of the audit there: that of the first record that is left goes on from it.
        chain: Chain,
    },
    /// Something that is no change of an object.
    Act(Act),
    /// An administrator has seen what the records up to `to` say of damage and of what is missing.
    Acknowledged {
        /// The last one of them.
        to: Seq,
        /// From where: the user of the host, or the administrator's address.
        from: String,
    },
}

/// One change of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditOp {
    /// Whether it was deleted.
    pub is_delete: bool,
    /// Its collection.
    pub collection: String,
    /// Its key, of a secret one only the owner.
    pub key: String,
    /// Value before.
    pub before: Value,
    /// Value after.
    pub after: Value,
}

/// A value, as far as it may be kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Value {
    /// There was none.
    #[default]
    None,
    /// It is not known: what was there had been overwritten before the audit got to it.
    Unknown,
    /// It is secret, a user's own affair, no JSON or too long; its length is left.
    Withheld(u64),
    /// As it was, JSON.
    Json(Bytes),
}

impl Value {
    /// What is kept of a value of `collection`, when `room` bytes are left for values; takes them from it.
    #[must_use]
    pub fn of(collection: &crate::model::Collection, value: &[u8], room: &mut usize) -> Value {
        let is_kept = value.len() <= VALUE_BYTES_MAX && value.len() <= *room;
        if is_kept && exposed::value(collection, value).is_some() {
            *room -= value.len();
            return Value::Json(Bytes::copy_from_slice(value));
        }
        Value::Withheld(value.len() as u64)
    }
}

impl AuditOp {
    /// What is kept of an operation. `before` is the object as it was before it.
    #[must_use]
    pub fn of(op: &Op, before: Value, room: &mut usize) -> AuditOp {
        let after = op.value().map_or(Value::None, |value| Value::of(op.collection(), value, room));
        AuditOp {
            is_delete: op.value().is_none(),
            collection: op.collection().to_string(),
            key: exposed::key(op.collection(), op.key()).to_owned(),
            before,
            after,
        }
    }
}

/// Something that somebody did, or tried, which is no change of an object. Texts are bounded, see [`Act::check`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Act {
    /// What kind: one word, such as `login-failed`.
    pub kind: String,
    /// When it happened, by the clock of where it happened, milliseconds since 1970-01-01 UTC.
    pub happened_ms: u64,
    /// Number of the user, where there is one.
    pub uid: Option<i32>,
    /// Name of the user, or the name that was given.
    pub user: String,
    /// The administrator who acts as this user, where one does.
    pub by: String,
    /// Address of the client, or the user of the host.
    pub from: String,
    /// What, in words.
    pub what: String,
    /// How many of the same it stands for; 1 as a rule.
    pub count: u64,
    /// Which it is of those that its member sent; empty for acts at the datastore itself.
    #[serde(default)]
    pub id: String,
}

/// Longest kind and id of an act, in bytes.
const ACT_WORD_BYTES_MAX: usize = 64;
/// Longest text of an act, in bytes.
const ACT_TEXT_BYTES_MAX: usize = 1024;

impl Act {
    /// Whether its texts are within their bounds.
    ///
    /// # Errors
    /// Names the text that is too long.
    pub fn check(&self) -> Result<(), String> {
        let words = [("kind", &self.kind), ("id", &self.id)];
        let texts = [("user", &self.user), ("by", &self.by), ("from", &self.from), ("what", &self.what)];
        let words = words.into_iter().map(|(name, text)| (name, text, ACT_WORD_BYTES_MAX));
        let texts = texts.into_iter().map(|(name, text)| (name, text, ACT_TEXT_BYTES_MAX));
        match words.chain(texts).find(|(_, text, bytes_max)| text.len() > *bytes_max) {
            Some((name, text, max)) => Err(format!("an act's {name} has {} bytes; {max} are allowed", text.len())),
            None => Ok(()),
        }
    }

    /// The same with texts shortened to their bounds.
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
    /// The entry that holds this record at `seq` of the audit.
    #[must_use]
    pub fn entry(&self, seq: Seq) -> Entry {
        let payload = postcard::to_allocvec(self).expect("invariant: encoding into memory cannot fail").into();
        let (time_ms, member) = (self.time_ms, self.member.clone());
        Entry { seq, time_ms, member, body: EntryBody::Unknown { kind: kind::AUDIT, payload } }
    }

    /// The record in an entry of the audit.
    ///
    /// # Errors
    /// When it is none, or of a later version.
    pub fn of(entry: &Entry) -> Result<AuditRecord, DecodeError> {
        let EntryBody::Unknown { kind: kind::AUDIT, payload } = &entry.body else {
            return Err(DecodeError::new("audit payload", 0, "a record of the audit", "another kind"));
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

/// A JSON text as every reader can take it: one that is nested too deeply is shown as text.
#[must_use]
pub fn readable(value: &[u8]) -> Option<Cow<'_, serde_json::value::RawValue>> {
    if super::depth::is_deep(value) {
        let text = String::from_utf8_lossy(value);
        return serde_json::value::to_raw_value(&*text).ok().map(Cow::Owned);
    }
    serde_json::from_slice(value).ok().map(Cow::Borrowed)
}

/// What comes with a page of records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditPage {
    /// Last record of the page, from which the next one starts; `None`: there are no more.
    pub next: Option<Seq>,
    /// Records up to here were removed because of their age.
    pub horizon: Seq,
    /// The audit has the operation log up to here.
    pub covered: Seq,
    /// How many entries of the operation log had not been recorded when the page was read.
    pub missing: u64,
    /// Why nothing can be recorded now; empty when it can.
    pub problem: String,
}

/// What a check of the audit found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AuditReport {
    /// Whether all is well.
    pub ok: bool,
    /// Files read.
    pub files: u64,
    /// Records checked.
    pub records: u64,
    /// Bytes checked.
    pub bytes: u64,
    /// First record that is kept.
    pub first: Seq,
    /// Last record.
    pub last: Seq,
    /// Chain at the last record, hexadecimal: kept elsewhere, it shows later that nothing up to here was changed.
    pub chain: String,
    /// Chain at the record that was asked for, if it is kept.
    #[serde(default)]
    pub chain_at: Option<String>,
    /// When the first one was recorded, milliseconds since 1970-01-01 UTC.
    pub first_time_ms: u64,
    /// When the last one was.
    pub last_time_ms: u64,
    /// The audit has the operation log up to here.
    pub covered: Seq,
    /// Records that say that something is missing, and were not acknowledged.
    pub gaps: u64,
    /// Those that were acknowledged.
    #[serde(default)]
    pub acknowledged: u64,
    /// Most bytes that the audit may have; 0: not known.
    #[serde(default)]
    pub bytes_max: u64,
    /// Records of a later version, which were checked and not understood.
    pub unknown: u64,
    /// What is wrong.
    pub findings: Vec<super::admin::Finding>,
}
