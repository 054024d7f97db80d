//! Objects, operations, transactions, and their entries in the log.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::ids::{MemberName, Origin, OriginCounter, Seq};
use super::limits::COLLECTION_BYTES_MAX;
use super::redaction::Withheld;

/// Name of a kind of objects: 1 to 255 bytes of UTF-8 without control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Collection(String);

impl Collection {
    /// Validates a name.
    ///
    /// # Errors
    /// If the name is empty, too long or contains a control character.
    pub fn new(name: impl Into<String>) -> Result<Collection, BadCollection> {
        let name = name.into();
        let printable = !name.chars().any(char::is_control);
        if !name.is_empty() && name.len() <= COLLECTION_BYTES_MAX && printable {
            Ok(Collection(name))
        } else {
            Err(BadCollection { name })
        }
    }

    /// Returns the name as text.
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

/// Text that is not a valid collection name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{name:?} is not a valid collection name; use 1 to 255 bytes of text without control characters")]
pub struct BadCollection {
    name: String,
}

/// Name of an object within its collection: at least one byte of UTF-8 text. Ordered by bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Key(String);

impl Key {
    /// Validates a key. Its maximum length is checked by [`super::Limits`].
    ///
    /// # Errors
    /// If the key is empty.
    pub fn new(key: impl Into<String>) -> Result<Key, EmptyKey> {
        let key = key.into();
        if key.is_empty() { Err(EmptyKey) } else { Ok(Key(key)) }
    }

    /// Returns the key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the length in bytes, which is never 0.
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

/// Error for an empty key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a key must not be empty")]
pub struct EmptyKey;

/// One change of one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Creates or replaces an object.
    Put {
        /// Collection of the object.
        collection: Collection,
        /// Key of the object.
        key: Key,
        /// New value, opaque to the log.
        value: Bytes,
    },
    /// Deletes an object. Deleting an absent object is allowed and is recorded as well.
    Delete {
        /// Collection of the object.
        collection: Collection,
        /// Key of the object.
        key: Key,
    },
}

impl Op {
    /// Returns the collection of the object.
    #[must_use]
    pub fn collection(&self) -> &Collection {
        match self {
            Op::Put { collection, .. } | Op::Delete { collection, .. } => collection,
        }
    }

    /// Returns the key of the object.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Op::Put { key, .. } | Op::Delete { key, .. } => key,
        }
    }

    /// Returns the new value; `None` for a deletion.
    #[must_use]
    pub fn value(&self) -> Option<&Bytes> {
        match self {
            Op::Put { value, .. } => Some(value),
            Op::Delete { .. } => None,
        }
    }
}

/// Condition that must hold at commit, otherwise the transaction is rejected.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Condition {
    /// The object does not exist.
    Absent {
        /// Collection of the object.
        collection: Collection,
        /// Key of the object.
        key: Key,
    },
    /// The object exists.
    Present {
        /// Collection of the object.
        collection: Collection,
        /// Key of the object.
        key: Key,
    },
    /// The object was last written at exactly this sequence. From 2^63 on, the number is the mark of the transaction
    /// that must have written it ([`Condition::written_by`]).
    Version {
        /// Collection of the object.
        collection: Collection,
        /// Key of the object.
        key: Key,
        /// Expected sequence of the object's last write.
        version: Seq,
    },
}

/// Versions from here on are marks of transactions instead of sequences.
const MARKS_FROM: u64 = 1 << 63;
/// Versions from here on, up to [`MARKS_FROM`], are no versions: what is above it is a sequence since which the object is absent.
const SINCE_FROM: u64 = 1 << 62;

impl Condition {
    /// Requires that this transaction was the last to write the object. The transaction is pending and has no sequence
    /// yet. The condition fails if it is rejected, or if another transaction writes the object after it.
    #[must_use]
    pub fn written_by(collection: Collection, key: Key, id: TxnId) -> Condition {
        Condition::Version { collection, key, version: id.mark() }
    }

    /// Creates a condition that no write satisfies, because the change depends on a write that was lost with its history.
    #[must_use]
    pub fn upon_lost(collection: Collection, key: Key) -> Condition {
        // Counters start at 1, so no transaction has this identity.
        Condition::written_by(collection, key, TxnId::default())
    }

    /// Returns whether no write satisfies the condition ([`Condition::upon_lost`]).
    #[must_use]
    pub fn is_upon_lost(&self) -> bool {
        self.mark() == Some(TxnId::default().mark())
    }

    /// There is no such object, and none was deleted after sequence `seq`. Its author has seen at `seq` that the object is absent;
    /// when it was made and deleted again since, or that is not known so far back, the condition fails. A datastore of a version
    /// before this takes it for a version that no object has, so there it always fails.
    #[must_use]
    pub fn absent_since(collection: Collection, key: Key, seq: Seq) -> Condition {
        let version = Seq(SINCE_FROM + seq.0.min(SINCE_FROM - 1));
        Condition::Version { collection, key, version }
    }

    /// The sequence of [`Condition::absent_since`], after which the object must not have been deleted.
    #[must_use]
    pub fn since(&self) -> Option<Seq> {
        match self {
            Condition::Version { version, .. } if (SINCE_FROM..MARKS_FROM).contains(&version.0) => {
                Some(Seq(version.0 - SINCE_FROM))
            }
            _ => None,
        }
    }

    /// Returns the mark of the transaction to which the condition refers, if any.
    #[must_use]
    pub fn mark(&self) -> Option<Seq> {
        match self {
            Condition::Version { version, .. } if version.0 >= MARKS_FROM => Some(*version),
            _ => None,
        }
    }

    /// Returns the collection of the object.
    #[must_use]
    pub fn collection(&self) -> &Collection {
        match self {
            Condition::Absent { collection, .. }
            | Condition::Present { collection, .. }
            | Condition::Version { collection, .. } => collection,
        }
    }

    /// Returns the key of the object.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Condition::Absent { key, .. } | Condition::Present { key, .. } | Condition::Version { key, .. } => key,
        }
    }

    /// Returns whether the condition holds for an object with this version (`None`: absent). A condition with a mark
    /// ([`Condition::mark`]) holds for no version, because it depends on the transaction that wrote the object.
    #[must_use]
    pub fn holds(&self, version: Option<Seq>) -> bool {
        match self {
            Condition::Absent { .. } => version.is_none(),
            Condition::Present { .. } => version.is_some(),
            Condition::Version { .. } if self.since().is_some() => version.is_none(),
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
            Condition::Version { collection, key, version } => match self.since() {
                Some(seq) => write!(f, "{collection}/{key} neither made nor deleted after sequence {seq}"),
                None => write!(f, "version {version} of {collection}/{key}"),
            },
        }
    }
}

/// Permanent identity of a transaction: its origin, and the counter that the origin assigned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TxnId {
    /// Source of the transaction.
    pub origin: Origin,
    /// Number assigned by the origin.
    pub counter: OriginCounter,
}

impl TxnId {
    /// Returns a number that represents this transaction where a sequence is expected. It is at least 2^63, which no sequence
    /// reaches. Its other bits come from a hash, so two transactions have the same mark with a probability of 2^-63.
    #[must_use]
    pub fn mark(self) -> Seq {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.origin.0);
        hasher.update(&self.counter.0.to_le_bytes());
        let first = hasher.finalize().as_bytes().first_chunk::<8>().copied().unwrap_or_default();
        Seq(u64::from_le_bytes(first) | MARKS_FROM)
    }
}

/// Operations and conditions that are committed atomically.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Txn {
    /// Identity, for idempotence.
    pub id: TxnId,
    /// Acknowledged-rejections watermark: the origin has durably recorded its rejections up to this counter, so the
    /// state need not remember their reasons any longer.
    pub settled: OriginCounter,
    /// Creation time by the author's clock, in milliseconds since 1970-01-01 UTC. Informative only.
    pub time_ms: u64,
    /// Author and client address: opaque, at most [`super::limits::NOTE_BYTES_MAX`] bytes.
    pub note: Bytes,
    /// Conditions that must hold at commit.
    pub conditions: Vec<Condition>,
    /// Changes in order. The last operation on a key wins.
    pub ops: Vec<Op>,
}

impl Txn {
    /// Returns whether the conditions and operations are the same as in `other`. Creation time and note are ignored,
    /// because they may differ when an author submits the transaction again.
    #[must_use]
    pub fn has_contents_of(&self, other: &Txn) -> bool {
        (&self.conditions, &self.ops) == (&other.conditions, &other.ops)
    }

    /// Returns whether this is `given`, or was translated from it when its history was abandoned. Conditions on
    /// versions and presence may then refer to a transaction or never hold, and conditions may have been added.
    #[must_use]
    pub fn is_rewritten_from(&self, given: &Txn) -> bool {
        let is_of = |(now, given): (&Condition, &Condition)| {
            let is_translated =
                |condition: &Condition| matches!(condition, Condition::Version { .. } | Condition::Present { .. });
            let is_one_place = (now.collection(), now.key()) == (given.collection(), given.key());
            now == given || (is_one_place && is_translated(given) && now.mark().is_some())
        };
        let (now, then) = (self.lasting_conditions(), given.lasting_conditions());
        self.ops == given.ops && now.len() >= then.len() && now.into_iter().zip(then).all(is_of)
    }

    /// The conditions that stay when a history is left, whatever becomes of them.
    fn lasting_conditions(&self) -> Vec<&Condition> {
        self.conditions.iter().filter(|condition| condition.since().is_none()).collect()
    }

    /// Returns an upper limit of the encoded size, without encoding.
    #[must_use]
    pub fn bytes_estimate(&self) -> usize {
        let condition = |c: &Condition| c.collection().as_str().len() + c.key().len() + 16;
        let conditions: usize = self.conditions.iter().map(condition).sum();
        self.ops_bytes_estimate() + conditions
    }

    /// Like [`Txn::bytes_estimate`], as if the transaction had no conditions.
    #[must_use]
    pub fn ops_bytes_estimate(&self) -> usize {
        let op = |op: &Op| op.collection().as_str().len() + op.key().len() + op.value().map_or(0, Bytes::len) + 16;
        let ops: usize = self.ops.iter().map(op).sum();
        64 + self.note.len() + ops
    }
}

/// Reason why a transaction was not committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// A condition did not hold.
    ConditionFailed {
        /// Description of the condition.
        condition: String,
        /// Version found at commit; `None` if the object was absent.
        found: Option<Seq>,
    },
    /// The transaction exceeds a limit of the datastore.
    LimitExceeded {
        /// Message with the name of the limit.
        message: String,
    },
    /// The member's role does not allow it.
    Forbidden {
        /// Message that describes the forbidden action.
        message: String,
    },
    /// Another transaction was committed under the same identity.
    IdentityReused,
    /// Chunks that the transaction references are lost: neither the member nor the datastore has them.
    ChunksLost {
        /// Message that lists the lost chunks.
        message: String,
    },
}

impl Reason {
    /// Returns the approximate size of the reason.
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

/// The text is part of the state digest ([`super::Digest::of_origin`]). If it changed, the digests of members with
/// different versions would differ.
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

/// Author of the transactions of an origin, and the last transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maker {
    /// The member that used the origin first.
    pub member: MemberName,
    /// Counter of the last transaction.
    pub counter: OriginCounter,
    /// Hash of its contents; `None` if it was rejected.
    pub hash: Option<[u8; 16]>,
}

/// A sequenced entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Position in the log.
    pub seq: Seq,
    /// Commit time in milliseconds since 1970-01-01 UTC. It does not decrease within a log, unless a wrong clock was corrected.
    pub time_ms: u64,
    /// The member that pushed it.
    pub member: MemberName,
    /// Contents of the entry.
    pub body: EntryBody,
}

/// Contents of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryBody {
    /// A committed transaction. In compacted segments, superseded operations are removed.
    Commit(Txn),
    /// A rejected transaction, recorded so that a retry gets the same reply.
    Reject {
        /// The rejected transaction.
        id: TxnId,
        /// See [`Txn::settled`].
        settled: OriginCounter,
        /// Reason of the rejection.
        reason: Reason,
    },
    /// A committed transaction as sent to a member that may not see some of its values. `txn` has the other operations.
    /// Never stored in a log.
    Redacted {
        /// The transaction without the operations whose values are withheld.
        txn: Txn,
        /// Written objects without their values. No operation of `txn` concerns them.
        withheld: Vec<Withheld>,
    },
    /// An entry of a kind that this version does not know. Forwarded unchanged, and without effect when applied.
    Unknown {
        /// Kind number of the record.
        kind: u8,
        /// Payload as received.
        payload: Bytes,
    },
}

impl EntryBody {
    /// Returns the identity of the transaction concerned, if any.
    #[must_use]
    pub fn id(&self) -> Option<TxnId> {
        match self {
            EntryBody::Commit(txn) | EntryBody::Redacted { txn, .. } => Some(txn.id),
            EntryBody::Reject { id, .. } => Some(*id),
            EntryBody::Unknown { .. } => None,
        }
    }

    /// Returns the objects written by a committed transaction whose values are withheld.
    #[must_use]
    pub fn withheld(&self) -> &[Withheld] {
        self.committed().map_or(&[], |(_, withheld)| withheld)
    }

    /// Returns the committed transaction, and the objects written by it whose values are withheld.
    #[must_use]
    pub fn committed(&self) -> Option<(&Txn, &[Withheld])> {
        match self {
            EntryBody::Commit(txn) => Some((txn, &[])),
            EntryBody::Redacted { txn, withheld } => Some((txn, withheld)),
            EntryBody::Reject { .. } | EntryBody::Unknown { .. } => None,
        }
    }
}

/// Permanent information of a state about an origin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginRow {
    /// Greatest counter that was committed or rejected. All lower counters were resolved as well.
    pub last_counter: OriginCounter,
    /// Sequence of that entry.
    pub last_seq: Seq,
    /// Rejections that the origin has not acknowledged yet, ordered by counter.
    pub rejected: Vec<(OriginCounter, Seq, Reason)>,
}

/// Maximum number of unacknowledged rejections of an origin. Each change of its row writes all of them, on every replica.
pub const UNSETTLED_MAX: usize = 1024;
/// Total size at which [`UNSETTLED_BYTES_FROM`] rejections have the same effect as [`UNSETTLED_MAX`].
const UNSETTLED_BYTES_MAX: usize = 256 << 10;
/// Fewer rejections are accepted regardless of their size: an outbox acknowledges them earlier than that ([`SETTLED_WITHIN`]).
const UNSETTLED_BYTES_FROM: usize = 128;
/// A member acknowledges a rejection at the latest in a push whose counter exceeds that of the rejection by this number.
pub const SETTLED_WITHIN: u64 = 64;
const _: () = assert!(SETTLED_WITHIN < UNSETTLED_BYTES_FROM as u64 && UNSETTLED_BYTES_FROM < UNSETTLED_MAX);

impl OriginRow {
    /// Returns the number of rejections after `settled` if there are too many, so that another one has to wait until
    /// the origin has acknowledged some.
    #[must_use]
    pub fn too_many_unsettled(&self, settled: OriginCounter) -> Option<usize> {
        let from = self.rejected.partition_point(|(old, ..)| *old <= settled);
        let unsettled = self.rejected.get(from..).unwrap_or_default();
        let bytes = || unsettled.iter().map(|(.., reason)| reason.bytes()).sum::<usize>();
        let are_many = unsettled.len() >= UNSETTLED_MAX
            || (unsettled.len() >= UNSETTLED_BYTES_FROM && bytes() >= UNSETTLED_BYTES_MAX);
        are_many.then_some(unsettled.len())
    }

    /// Records the outcome of one transaction of this origin. Only this method changes a row, so that every replica
    /// gets the same row from the same entries.
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

    /// Reverts the latest change.
    pub fn undo(&mut self, change: RowChange) {
        if change.was_rejected {
            self.rejected.pop();
        }
        self.rejected.splice(..0, change.settled);
        (self.last_counter, self.last_seq) = (change.last_counter, change.last_seq);
    }

    /// Returns the recorded rejection of `counter`, if any.
    #[must_use]
    pub fn rejection(&self, counter: OriginCounter) -> Option<(Seq, &Reason)> {
        let at = self.rejected.binary_search_by_key(&counter, |(counter, ..)| *counter).ok()?;
        self.rejected.get(at).map(|(_, seq, reason)| (*seq, reason))
    }
}

/// Change of a row by one outcome, which can be reverted.
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
        // Rows of a version without the limit are detected, regardless of the watermark.
        assert_eq!(row(3000, 20).too_many_unsettled(OriginCounter(100)), Some(2900));
        assert_eq!(row(3000, 20).too_many_unsettled(OriginCounter(9000)), None);
    }

    #[test]
    fn p04_what_is_absent_since_a_sequence_is_no_version_and_no_transaction() {
        let place = || (Collection::new("c").expect("name"), Key::new("k").expect("key"));
        let since = |seq: u64| Condition::absent_since(place().0, place().1, Seq(seq));
        let version =
            |version: u64| Condition::Version { collection: place().0, key: place().1, version: Seq(version) };
        assert_eq!(since(7), version((1 << 62) + 7));
        for seq in [0, 7, (1 << 62) - 1] {
            assert_eq!((since(seq).since(), since(seq).mark()), (Some(Seq(seq)), None));
            assert!(since(seq).holds(None) && !since(seq).holds(Some(Seq(seq))));
        }
        assert_eq!(since(u64::MAX).since(), Some(Seq((1 << 62) - 1)));
        let id = TxnId { origin: Origin([1; 16]), counter: OriginCounter(1) };
        for other in [version(7), version((1 << 62) - 1), Condition::written_by(place().0, place().1, id)] {
            assert_eq!(other.since(), None, "{other}");
        }
        assert_eq!(since(7).to_string(), "c/k neither made nor deleted after sequence 7");
    }

    #[test]
    fn p06_since_when_an_object_is_absent_is_part_of_no_identity() {
        let place = || (Collection::new("c").expect("name"), Key::new("k").expect("key"));
        let absent = Condition::Absent { collection: place().0, key: place().1 };
        let since = |seq: u64| Condition::absent_since(place().0, place().1, Seq(seq));
        let ops = vec![Op::Put { collection: place().0, key: place().1, value: Bytes::from_static(b"v") }];
        let txn = |conditions: &[Condition]| {
            let (id, settled, note) = (TxnId::default(), OriginCounter(0), Bytes::new());
            Txn { id, settled, time_ms: 0, note, conditions: conditions.to_vec(), ops: ops.clone() }
        };
        let given = txn(std::slice::from_ref(&absent));
        let now = txn(&[absent.clone(), since(7)]);
        assert!(now.is_rewritten_from(&given) && txn(&[absent, since(9)]).is_rewritten_from(&now));
        assert!(!txn(&[since(7)]).is_rewritten_from(&given));
    }

    proptest! {
        /// All recorded changes can be reverted, step by step.
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
