//! Objects, operations, transactions, and what becomes of them in the log.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::ids::{MemberName, Origin, OriginCounter, Seq};
use super::limits::COLLECTION_BYTES_MAX;
use super::redaction::Withheld;

/// Name of a kind of object: 1 to 255 bytes of UTF-8 without control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Collection(String);

impl Collection {
    /// Checks a name.
    ///
    /// # Errors
    /// When the name is empty, too long or holds a character outside the set above.
    pub fn new(name: impl Into<String>) -> Result<Collection, BadCollection> {
        let name = name.into();
        let printable = !name.chars().any(char::is_control);
        if !name.is_empty() && name.len() <= COLLECTION_BYTES_MAX && printable {
            Ok(Collection(name))
        } else {
            Err(BadCollection { name })
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Collection {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Collection::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl std::str::FromStr for Collection {
    type Err = BadCollection;

    fn from_str(text: &str) -> Result<Self, BadCollection> {
        Collection::new(text)
    }
}

impl fmt::Display for Collection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A name that cannot be a collection's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{name:?} cannot be a collection's name: use 1 to 255 bytes of text without control characters")]
pub struct BadCollection {
    name: String,
}

/// Name of an object within its collection: UTF-8 text of at least one byte, ordered by its bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Key(String);

impl Key {
    /// Checks a key. Its greatest length is the business of [`super::Limits`].
    ///
    /// # Errors
    /// When the key is empty.
    pub fn new(key: impl Into<String>) -> Result<Key, EmptyKey> {
        let key = key.into();
        if key.is_empty() { Err(EmptyKey) } else { Ok(Key(key)) }
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Length in bytes; never 0.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Key::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl std::str::FromStr for Key {
    type Err = EmptyKey;

    fn from_str(text: &str) -> Result<Self, EmptyKey> {
        Key::new(text)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An empty key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a key must not be empty")]
pub struct EmptyKey;

/// One change of one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Create or replace.
    Put {
        /// Where.
        collection: Collection,
        /// Which.
        key: Key,
        /// The new contents, opaque to the log.
        value: Bytes,
    },
    /// Remove; removing what is absent is allowed and still an event.
    Delete {
        /// Where.
        collection: Collection,
        /// Which.
        key: Key,
    },
}

impl Op {
    /// The collection that is changed.
    #[must_use]
    pub fn collection(&self) -> &Collection {
        match self {
            Op::Put { collection, .. } | Op::Delete { collection, .. } => collection,
        }
    }

    /// The key that is changed.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Op::Put { key, .. } | Op::Delete { key, .. } => key,
        }
    }

    /// The new value; `None` for a delete.
    #[must_use]
    pub fn value(&self) -> Option<&Bytes> {
        match self {
            Op::Put { value, .. } => Some(value),
            Op::Delete { .. } => None,
        }
    }
}

/// What must hold at commit for a transaction to be accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// No such object.
    Absent {
        /// Where.
        collection: Collection,
        /// Which.
        key: Key,
    },
    /// Some such object.
    Present {
        /// Where.
        collection: Collection,
        /// Which.
        key: Key,
    },
    /// The object was last written at exactly this sequence; from 2^63 on, by the transaction that the number stands for
    /// ([`Condition::written_by`]).
    Version {
        /// Where.
        collection: Collection,
        /// Which.
        key: Key,
        /// The expected sequence of its last write.
        version: Seq,
    },
}

/// Versions from here on are no sequences: they stand for transactions.
const MARKS_FROM: u64 = 1 << 63;

impl Condition {
    /// The object was last written by this transaction, which has no sequence yet: it waits before the one of the condition.
    /// When it is rejected, or another one writes the object after it, the condition fails.
    #[must_use]
    pub fn written_by(collection: Collection, key: Key, id: TxnId) -> Condition {
        Condition::Version { collection, key, version: id.mark() }
    }

    /// No write satisfies this condition: the change that carries it was made upon a write that was lost with its history.
    #[must_use]
    pub fn upon_lost(collection: Collection, key: Key) -> Condition {
        // Counters begin at 1, so nothing has this identity.
        Condition::written_by(collection, key, TxnId::default())
    }

    /// Whether it is one that no write satisfies ([`Condition::upon_lost`]).
    #[must_use]
    pub fn is_upon_lost(&self) -> bool {
        self.mark() == Some(TxnId::default().mark())
    }

    /// The number that stands for a transaction, in a condition on a write that had no sequence.
    #[must_use]
    pub fn mark(&self) -> Option<Seq> {
        match self {
            Condition::Version { version, .. } if version.0 >= MARKS_FROM => Some(*version),
            _ => None,
        }
    }

    /// The collection that is looked at.
    #[must_use]
    pub fn collection(&self) -> &Collection {
        match self {
            Condition::Absent { collection, .. }
            | Condition::Present { collection, .. }
            | Condition::Version { collection, .. } => collection,
        }
    }

    /// The key that is looked at.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Condition::Absent { key, .. } | Condition::Present { key, .. } | Condition::Version { key, .. } => key,
        }
    }

    /// Whether the condition holds for an object whose version is `version` (`None`: absent). One with a mark
    /// ([`Condition::mark`]) holds for no version: it asks for the transaction that wrote the object.
    #[must_use]
    pub fn holds(&self, version: Option<Seq>) -> bool {
        match self {
            Condition::Absent { .. } => version.is_none(),
            Condition::Present { .. } => version.is_some(),
            Condition::Version { version: wanted, .. } => version == Some(*wanted),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Condition::Absent { collection, key } => write!(f, "absent {collection}/{key}"),
            Condition::Present { collection, key } => write!(f, "present {collection}/{key}"),
            Condition::Version { collection, key, .. } if self.is_upon_lost() => {
                write!(f, "{collection}/{key} as a history that was lost had left it")
            }
            Condition::Version { collection, key, .. } if self.mark().is_some() => {
                write!(f, "{collection}/{key} as the author's earlier change left it")
            }
            Condition::Version { collection, key, version } => write!(f, "version {version} of {collection}/{key}"),
        }
    }
}

/// Identity of a transaction, for ever: who made it and the number that the maker gave it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TxnId {
    /// Who made it.
    pub origin: Origin,
    /// The maker's number.
    pub counter: OriginCounter,
}

impl TxnId {
    /// A number that stands for this transaction where a sequence is expected. It is at least 2^63, which no sequence reaches;
    /// its other bits are those of a hash, so two transactions share one with a probability of 2^-63.
    #[must_use]
    pub fn mark(self) -> Seq {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.origin.0);
        hasher.update(&self.counter.0.to_le_bytes());
        let first = hasher.finalize().as_bytes().first_chunk::<8>().copied().unwrap_or_default();
        Seq(u64::from_le_bytes(first) | MARKS_FROM)
    }
}

/// Operations and conditions that commit together or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Txn {
    /// Identity, for idempotence.
    pub id: TxnId,
    /// Rejections of this origin with a counter up to here are durably recorded by the origin, so the
    /// state need not remember their reasons any longer.
    pub settled: OriginCounter,
    /// When it was made, by the maker's clock: milliseconds since 1970-01-01 UTC. Informative only.
    pub time_ms: u64,
    /// Who asked for it and from where: opaque, at most [`super::limits::NOTE_BYTES_MAX`] bytes.
    pub note: Bytes,
    /// What must hold at commit.
    pub conditions: Vec<Condition>,
    /// What changes, in order; the last operation on a key wins.
    pub ops: Vec<Op>,
}

impl Txn {
    /// Whether it asks for the same as `other`. When and by whom it was made is not part of that: a maker that gives it a second
    /// time may say something else.
    #[must_use]
    pub fn has_contents_of(&self, other: &Txn) -> bool {
        (&self.conditions, &self.ops) == (&other.conditions, &other.ops)
    }

    /// Whether it is `given`, or became of it when a history was left: then what a condition named was lost or is named by its
    /// transaction, and conditions were added.
    #[must_use]
    pub fn is_rewritten_from(&self, given: &Txn) -> bool {
        let is_of = |(now, given): (&Condition, &Condition)| {
            let is_version = |condition: &Condition| matches!(condition, Condition::Version { .. });
            let is_one_place = (now.collection(), now.key()) == (given.collection(), given.key());
            now == given || (is_one_place && is_version(given) && now.mark().is_some())
        };
        let is_added = self.conditions.get(given.conditions.len()..);
        self.ops == given.ops && is_added.is_some() && self.conditions.iter().zip(&given.conditions).all(is_of)
    }

    /// Upper bound of the encoded size, without encoding.
    #[must_use]
    pub fn bytes_estimate(&self) -> usize {
        let op = |op: &Op| op.collection().as_str().len() + op.key().len() + op.value().map_or(0, Bytes::len) + 16;
        let condition = |c: &Condition| c.collection().as_str().len() + c.key().len() + 16;
        let ops: usize = self.ops.iter().map(op).sum();
        let conditions: usize = self.conditions.iter().map(condition).sum();
        64 + self.note.len() + ops + conditions
    }
}

/// Why a transaction was not committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// A condition did not hold; its index in the transaction and the version that was found.
    ConditionFailed {
        /// The condition, in words.
        condition: String,
        /// Version found at commit; `None` when the object was absent.
        found: Option<Seq>,
    },
    /// A bound of the datastore was broken.
    LimitExceeded {
        /// Names the bound.
        message: String,
    },
    /// The member's role does not allow it.
    Forbidden {
        /// Says what was not allowed.
        message: String,
    },
    /// Another transaction was committed under the same identity.
    IdentityReused,
    /// Chunks that it names are lost: neither the member nor the datastore has them.
    ChunksLost {
        /// Says which.
        message: String,
    },
}

impl Reason {
    /// Bytes of its text, about.
    fn bytes(&self) -> usize {
        match self {
            Reason::ConditionFailed { condition: text, .. }
            | Reason::LimitExceeded { message: text }
            | Reason::Forbidden { message: text }
            | Reason::ChunksLost { message: text } => text.len() + 32,
            Reason::IdentityReused => 32,
        }
    }
}

/// The text is part of the state's digest ([`super::Digest::of_origin`]): members of two versions are equal only while it is the same.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::ConditionFailed { condition, found: None } => {
                write!(f, "condition failed: expected {condition}, but the object is absent")
            }
            Reason::ConditionFailed { condition, found: Some(version) } if version.0 >= MARKS_FROM => {
                write!(f, "condition failed: expected {condition}, but a pending change of the object came after that")
            }
            Reason::ConditionFailed { condition, found: Some(version) } => {
                write!(f, "condition failed: expected {condition}, but the object has version {version}")
            }
            Reason::LimitExceeded { message } | Reason::Forbidden { message } | Reason::ChunksLost { message } => {
                f.write_str(message)
            }
            Reason::IdentityReused => f.write_str("another transaction was committed under the same identity"),
        }
    }
}

/// Who makes the transactions of an origin, and what the last one was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maker {
    /// The member that used the origin first.
    pub member: MemberName,
    /// Counter of the last transaction.
    pub counter: OriginCounter,
    /// Hash of its contents; `None` when it was rejected.
    pub hash: Option<[u8; 16]>,
}

/// One sequenced entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place.
    pub seq: Seq,
    /// When the datastore committed it: milliseconds since 1970-01-01 UTC, never falling within a log.
    pub time_ms: u64,
    /// The member that pushed it.
    pub member: MemberName,
    /// What it says.
    pub body: EntryBody,
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryBody {
    /// A committed transaction. In compacted segments, operations that were superseded are gone.
    Commit(Txn),
    /// A transaction that was refused; remembered so that a retry gets the same answer.
    Reject {
        /// The refused transaction.
        id: TxnId,
        /// See [`Txn::settled`].
        settled: OriginCounter,
        /// Why.
        reason: Reason,
    },
    /// A committed transaction as a member gets it that may not see some of its values: `txn` has the other operations. It is
    /// sent, and never in a log.
    Redacted {
        /// The transaction without what is withheld.
        txn: Txn,
        /// Objects that it wrote, without their values; each is in no operation of `txn`.
        withheld: Vec<Withheld>,
    },
    /// A kind that this version does not know: carried unchanged, applied as nothing.
    Unknown {
        /// Kind number of the record.
        kind: u8,
        /// Payload as found.
        payload: Bytes,
    },
}

impl EntryBody {
    /// Identity of the transaction concerned, if any.
    #[must_use]
    pub fn id(&self) -> Option<TxnId> {
        match self {
            EntryBody::Commit(txn) | EntryBody::Redacted { txn, .. } => Some(txn.id),
            EntryBody::Reject { id, .. } => Some(*id),
            EntryBody::Unknown { .. } => None,
        }
    }

    /// The objects that a committed transaction wrote whose values are withheld.
    #[must_use]
    pub fn withheld(&self) -> &[Withheld] {
        self.committed().map_or(&[], |(_, withheld)| withheld)
    }

    /// The transaction that was committed, and the objects that it wrote besides.
    #[must_use]
    pub fn committed(&self) -> Option<(&Txn, &[Withheld])> {
        match self {
            EntryBody::Commit(txn) => Some((txn, &[])),
            EntryBody::Redacted { txn, withheld } => Some((txn, withheld)),
            EntryBody::Reject { .. } | EntryBody::Unknown { .. } => None,
        }
    }
}

/// What the state remembers of an origin, for ever.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginRow {
    /// Greatest counter that was committed or rejected; all below it were, too.
    pub last_counter: OriginCounter,
    /// Sequence of that outcome.
    pub last_seq: Seq,
    /// Rejections that the origin has not yet recorded durably, by rising counter.
    pub rejected: Vec<(OriginCounter, Seq, Reason)>,
}

/// Rejections of one origin that it has not recorded: each change of its row writes all of them, and every replica does.
pub const UNSETTLED_MAX: usize = 1024;
/// Bytes of them from which [`UNSETTLED_BYTES_FROM`] are as good as [`UNSETTLED_MAX`].
const UNSETTLED_BYTES_MAX: usize = 256 << 10;
/// So few are no reason to wait, however long they are: an outbox settles more at once than this ([`SETTLED_WITHIN`]).
const UNSETTLED_BYTES_FROM: usize = 128;
/// A member says of rejections that it has recorded them when it pushes something so many counters behind them, at the latest.
pub const SETTLED_WITHIN: u64 = 64;
const _: () = assert!(SETTLED_WITHIN < UNSETTLED_BYTES_FROM as u64 && UNSETTLED_BYTES_FROM < UNSETTLED_MAX);

impl OriginRow {
    /// Rejections beyond `settled`, when there are so many that one more has to wait until the origin has recorded some.
    #[must_use]
    pub fn too_many_unsettled(&self, settled: OriginCounter) -> Option<usize> {
        let from = self.rejected.partition_point(|(old, ..)| *old <= settled);
        let unsettled = self.rejected.get(from..).unwrap_or_default();
        let bytes = || unsettled.iter().map(|(.., reason)| reason.bytes()).sum::<usize>();
        let are_many = unsettled.len() >= UNSETTLED_MAX
            || (unsettled.len() >= UNSETTLED_BYTES_FROM && bytes() >= UNSETTLED_BYTES_MAX);
        are_many.then_some(unsettled.len())
    }

    /// Takes in the outcome of one transaction of this origin. The only place that changes a row, so that every
    /// replica comes to the same row from the same entries.
    pub fn record(
        &mut self,
        seq: Seq,
        counter: OriginCounter,
        settled: OriginCounter,
        rejected: Option<Reason>,
    ) -> RowChange {
        let done = self.rejected.partition_point(|(old, ..)| *old <= settled);
        let change = RowChange {
            last_counter: self.last_counter,
            last_seq: self.last_seq,
            settled: self.rejected.drain(..done).collect(),
            was_rejected: rejected.is_some(),
        };
        self.last_counter = self.last_counter.max(counter);
        self.last_seq = seq;
        if let Some(reason) = rejected {
            self.rejected.push((counter, seq, reason));
        }
        change
    }

    /// Takes the latest change back.
    pub fn undo(&mut self, change: RowChange) {
        if change.was_rejected {
            self.rejected.pop();
        }
        self.rejected.splice(..0, change.settled);
        (self.last_counter, self.last_seq) = (change.last_counter, change.last_seq);
    }

    /// The recorded rejection of `counter`, if there is one.
    #[must_use]
    pub fn rejection(&self, counter: OriginCounter) -> Option<(Seq, &Reason)> {
        let at = self.rejected.binary_search_by_key(&counter, |(counter, ..)| *counter).ok()?;
        self.rejected.get(at).map(|(_, seq, reason)| (*seq, reason))
    }
}

/// What one outcome changed in a row, so that it can be taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowChange {
    last_counter: OriginCounter,
    last_seq: Seq,
    settled: Vec<(OriginCounter, Seq, Reason)>,
    was_rejected: bool,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn p15_unsettled_rejections_of_an_origin_are_bounded_in_number_and_bytes() {
        let row = |count: u64, bytes: usize| {
            let reason = Reason::LimitExceeded { message: "x".repeat(bytes) };
            let rejected = (1..=count).map(|counter| (OriginCounter(counter), Seq(counter), reason.clone())).collect();
            OriginRow { last_counter: OriginCounter(count), last_seq: Seq(count), rejected }
        };
        let short = row(1024, 20);
        assert_eq!(short.too_many_unsettled(OriginCounter(0)), Some(1024));
        assert_eq!(short.too_many_unsettled(OriginCounter(1)), None);
        let long = row(128, 2 << 10);
        assert_eq!(long.too_many_unsettled(OriginCounter(0)), Some(128));
        assert_eq!(long.too_many_unsettled(OriginCounter(1)), None);
        assert_eq!(row(128, 1 << 10).too_many_unsettled(OriginCounter(0)), None);
        // Whatever is settled of it, a row of a version without the bound is found.
        assert_eq!(row(3000, 20).too_many_unsettled(OriginCounter(100)), Some(2900));
        assert_eq!(row(3000, 20).too_many_unsettled(OriginCounter(9000)), None);
    }

    proptest! {
        /// Whatever is recorded can be taken back, step by step.
        #[test]
        fn a_row_can_be_taken_back(steps in proptest::collection::vec((any::<bool>(), 0_u64..40), 0..40)) {
            let mut row = OriginRow::default();
            let mut past = Vec::new();
            for (number, (is_rejected, settled)) in (1..).zip(steps) {
                let before = row.clone();
                let reason = is_rejected.then_some(Reason::IdentityReused);
                let settled = OriginCounter(settled.min(number - 1));
                let change = row.record(Seq(number), OriginCounter(number), settled, reason);
                prop_assert!(row.rejected.iter().all(|(counter, ..)| *counter > settled));
                prop_assert_eq!(row.rejection(OriginCounter(number)).is_some(), is_rejected);
                past.push((before, change));
            }
            for (before, change) in past.into_iter().rev() {
                row.undo(change);
                prop_assert_eq!(&row, &before);
            }
        }
    }
}
