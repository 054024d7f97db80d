//! Sequencing of transactions: idempotence, conditions, limits and sequence numbers.
//!
//! Decisions are staged until the caller reports that the batch is durable ([`Sequencer::keep`]) or could not be
//! written ([`Sequencer::undo`]). Conditions are evaluated against the committed state plus all entries that are staged
//! or not yet applied to the state index. A transaction therefore sees exactly the entries before it.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use gravwell_model::codec::txn::contents_hash;
use gravwell_model::deletions::Deleted;
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::txn::{RowChange, UNSETTLED_MAX};
use gravwell_model::{
    Collection, Condition, Entry, EntryBody, Key, Limits, Maker, MemberName, Op, Origin, OriginCounter, OriginRow,
    Reason, Seq, Txn, TxnId,
};

use super::recognized::Recognized;

/// Lookup of committed versions in the state index, which may lag behind the head.
pub trait Versions {
    /// Error of a failed lookup.
    type Error;

    /// Returns the version of an object in the index; `None` if absent.
    ///
    /// # Errors
    /// If the index cannot be read.
    fn version(&self, collection: &Collection, key: &Key) -> Result<Option<Seq>, Self::Error>;

    /// Returns the transaction that was committed at a sequence; `None` if unknown or no longer known.
    fn author(&self, seq: Seq) -> Option<TxnId>;

    /// Returns an object in the index with its version; `None` if absent, or if the implementation knows only versions.
    ///
    /// # Errors
    /// If the index cannot be read.
    fn value(&self, _collection: &Collection, _key: &Key) -> Result<Option<(Seq, Bytes)>, Self::Error> {
        Ok(None)
    }

    /// When an object that is absent in the index was last deleted; `None` when nothing is known of that, so that it may have been
    /// at any time.
    ///
    /// # Errors
    /// When the index cannot be read.
    fn deleted(&self, _collection: &Collection, _key: &Key) -> Result<Option<Deleted>, Self::Error> {
        Ok(None)
    }
}

/// Decision of the sequencer about one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Write this entry. Its body determines the outcome of the transaction.
    Write(Entry),
    /// Committed earlier, at or before this sequence.
    Committed(Seq),
    /// Rejected earlier.
    Rejected(Seq, Reason),
    /// Rejected without a record, because its counter leaves a gap. The value is the expected counter.
    Gap(OriginCounter),
    /// Not resolved yet, because the member has not acknowledged this many rejections of the origin.
    Unsettled(usize),
}

#[derive(Debug)]
enum Undo {
    /// `None` if the origin was unknown before.
    Row(Origin, Option<RowChange>),
    Maker(Origin, Option<Maker>),
    Pending(Collection, Key, Option<(Seq, Option<Seq>)>),
}

/// Returns the reason why a member may not use an origin.
#[must_use]
pub fn of_another_member(origin: Origin, member: &MemberName) -> Reason {
    let message =
        format!("origin {origin} belongs to {member}, which used it first; use another identity for the transaction");
    Reason::Forbidden { message }
}

/// Returns whether the last transaction of an origin had the same counter as `txn` but different contents.
#[must_use]
pub fn is_contradicted(maker: &Maker, txn: &Txn) -> bool {
    let is_compared = maker.counter == txn.id.counter && !fault_injection::is(Bug::IdentityNotCompared);
    is_compared && maker.hash.is_some_and(|hash| hash != contents_hash(txn))
}

/// Assigns the sequences of one log.
#[derive(Debug)]
pub struct Sequencer {
    head: Seq,
    time_ms: u64,
    limits: Limits,
    rows: HashMap<Origin, OriginRow>,
    makers: HashMap<Origin, Maker>,
    /// Writes since the index's position: their sequence, and the version afterwards.
    pending: HashMap<Collection, HashMap<Key, (Seq, Option<Seq>)>>,
    pending_from: Seq,
    staged: Vec<Undo>,
    staged_from: (Seq, u64),
    /// Transactions that are staged as committed.
    staged_ids: BTreeMap<Seq, TxnId>,
    recognized: Recognized,
    /// Whether the limit of unacknowledged rejections is off, because an administrator's transactions are proposed.
    is_unbounded: bool,
}

impl Sequencer {
    /// Starts after `head` with commit time `time_ms` and the rows of all origins in the state.
    #[must_use]
    pub fn new(head: Seq, time_ms: u64, limits: Limits, rows: HashMap<Origin, OriginRow>) -> Sequencer {
        let staged_from = (head, time_ms);
        let pending = HashMap::new();
        let (makers, staged) = (HashMap::new(), Vec::new());
        let (staged_ids, recognized, pending_from) = (BTreeMap::new(), Recognized::default(), head);
        Sequencer {
            head,
            time_ms,
            limits,
            rows,
            makers,
            pending,
            pending_from,
            staged,
            staged_from,
            staged_ids,
            recognized,
            is_unbounded: false,
        }
    }

    /// Sets whether later proposals may be rejected regardless of how many rejections of their origin are unacknowledged.
    pub fn set_unbounded(&mut self, is_unbounded: bool) {
        self.is_unbounded = is_unbounded;
    }

    /// Returns the next transaction ID of each origin of these members that has unacknowledged rejections.
    #[must_use]
    pub fn unsettled(&self, of: impl Fn(&MemberName) -> bool) -> Vec<(TxnId, MemberName)> {
        let unsettled = self.rows.iter().filter(|(_, row)| !row.rejected.is_empty());
        let of_members = unsettled.filter_map(|(origin, row)| {
            let maker = self.makers.get(origin).filter(|maker| of(&maker.member))?;
            Some((TxnId { origin: *origin, counter: row.last_counter.next() }, maker.member.clone()))
        });
        let mut found: Vec<_> = of_members.collect();
        found.sort_unstable();
        found
    }

    /// Sets the last authors of origins that the state knows.
    #[must_use]
    pub fn with_makers(self, makers: HashMap<Origin, Maker>) -> Sequencer {
        Sequencer { makers, ..self }
    }

    /// Returns the last assigned sequence, including staged entries.
    #[must_use]
    pub fn head(&self) -> Seq {
        self.head
    }

    /// Returns the greatest resolved counter of an origin, including staged entries.
    #[must_use]
    pub fn last_counter(&self, origin: Origin) -> OriginCounter {
        self.rows.get(&origin).map_or(OriginCounter(0), |row| row.last_counter)
    }

    /// Decides about `txn`, pushed by `member` at `now_ms`.
    ///
    /// # Errors
    /// If the index cannot be read. Nothing is staged in that case.
    pub fn propose<V: Versions>(
        &mut self,
        member: &MemberName,
        txn: Txn,
        now_ms: u64,
        versions: &V,
    ) -> Result<Decision, V::Error> {
        self.propose_unless(member, txn, None, now_ms, versions)
    }

    /// Like [`Sequencer::propose`], but rejects the transaction for the reason in `objection` unless it was resolved before.
    ///
    /// # Errors
    /// If the index cannot be read. Nothing is staged in that case.
    pub fn propose_unless<V: Versions>(
        &mut self,
        member: &MemberName,
        txn: Txn,
        objection: Option<Reason>,
        now_ms: u64,
        versions: &V,
    ) -> Result<Decision, V::Error> {
        let id = txn.id;
        let maker = self.makers.get(&id.origin);
        if let Some(maker) = maker.filter(|maker| maker.member != *member && !fault_injection::is(Bug::OriginNotBound))
        {
            return Ok(Decision::Rejected(self.head, of_another_member(id.origin, &maker.member)));
        }
        let is_too_large = matches!(objection, Some(Reason::LimitExceeded { .. }));
        let row = self.rows.get(&id.origin);
        let last = row.map_or(OriginCounter(0), |row| row.last_counter);
        if let Some(row) = row
            && id.counter <= last
            && !fault_injection::is(Bug::DoubleApply)
        {
            let last_seq = row.last_seq;
            return match row.rejection(id.counter) {
                Some((seq, reason)) => Ok(Decision::Rejected(seq, reason.clone())),
                // Only the identity of a transaction that is too large is known, so its contents cannot be compared.
                None if !is_too_large && maker.is_some_and(|maker| is_contradicted(maker, &txn)) => {
                    Ok(Decision::Rejected(last_seq, Reason::IdentityReused))
                }
                None => self.recognize(&txn, versions).map(|()| Decision::Committed(last_seq)),
            };
        }
        if id.counter != last.next() && !(fault_injection::is(Bug::DoubleApply) && id.counter <= last) {
            return Ok(Decision::Gap(last.next()));
        }
        let refused = match objection {
            Some(reason) => Some(reason),
            None => self.refusal(&txn, versions)?,
        };
        if let Some(reason) = refused.clone().filter(|_| fault_injection::is(Bug::RejectWithoutTrace)) {
            return Ok(Decision::Rejected(self.head, reason));
        }
        let settled = OriginCounter(txn.settled.0.min(last.0));
        let unsettled = self.rows.get(&id.origin).and_then(|row| row.too_many_unsettled(settled));
        // Commits are deferred as well if a version without this limit has accumulated many more rejections.
        if let Some(count) = unsettled.filter(|count| refused.is_some() || *count > UNSETTLED_MAX)
            && !self.is_unbounded
        {
            return Ok(Decision::Unsettled(count));
        }
        let seq = self.head.next();
        self.head = seq;
        self.time_ms = self.time_ms.max(now_ms);
        let is_known = self.rows.contains_key(&id.origin);
        let change = self.rows.entry(id.origin).or_default().record(seq, id.counter, settled, refused.clone());
        self.staged.push(Undo::Row(id.origin, is_known.then_some(change)));
        let hash = refused.is_none().then(|| contents_hash(&txn));
        let maker = Maker { member: member.clone(), counter: id.counter, hash };
        self.staged.push(Undo::Maker(id.origin, self.makers.insert(id.origin, maker)));
        let body = match refused {
            Some(reason) => EntryBody::Reject { id, settled, reason },
            None => {
                for op in &txn.ops {
                    self.note_write(op, seq);
                }
                self.staged_ids.insert(seq, id);
                EntryBody::Commit(Txn { settled, ..txn })
            }
        };
        Ok(Decision::Write(Entry { seq, time_ms: self.time_ms, member: member.clone(), body }))
    }

    fn refusal<V: Versions>(&self, txn: &Txn, versions: &V) -> Result<Option<Reason>, V::Error> {
        if let Err(error) = self.limits.check_pushed(txn) {
            return Ok(Some(Reason::LimitExceeded { message: error.to_string() }));
        }
        for condition in &txn.conditions {
            let found = self.version(condition.collection(), condition.key(), versions)?;
            if !self.holds(condition, found, versions)? {
                return Ok(Some(Reason::ConditionFailed { condition: condition.to_string(), found }));
            }
        }
        Ok(None)
    }

    /// Returns whether a condition holds for an object found in this version. If the condition refers to a transaction, the writer
    /// of the version is looked up; if it asks since when the object is absent, its last deletion is. If these are unknown, the
    /// condition fails, so that no change is overwritten unseen and no deleted object returns.
    fn holds<V: Versions>(&self, condition: &Condition, found: Option<Seq>, versions: &V) -> Result<bool, V::Error> {
        let (mark, since) = (condition.mark(), condition.since());
        if (mark, since) == (None, None) {
            return Ok(condition.holds(found));
        }
        if mark.is_some() && fault_injection::is(Bug::WriterNotCompared) {
            return Ok(found.is_some());
        }
        let deleted = if found.is_none() { self.deleted(condition, versions)? } else { None };
        if let Some(since) = since {
            return Ok(deleted.is_some_and(|deleted| deleted.latest() <= since));
        }
        let author = |seq: Seq| self.staged_ids.get(&seq).copied().or_else(|| versions.author(seq));
        let last = match deleted {
            Some(Deleted::At(seq)) => Some(seq),
            _ => found,
        };
        Ok(last.and_then(author).is_some_and(|id| Some(id.mark()) == mark)
            || found.is_some_and(|found| self.recognized.holds(condition, found)))
    }

    /// When the object of a condition, which is absent, was last deleted.
    fn deleted<V: Versions>(&self, condition: &Condition, versions: &V) -> Result<Option<Deleted>, V::Error> {
        let (collection, key) = (condition.collection(), condition.key());
        match self.pending.get(collection).and_then(|keys| keys.get(key)) {
            Some((seq, None)) if !fault_injection::is(Bug::ConditionsWithoutPending) => Ok(Some(Deleted::At(*seq))),
            _ => versions.deleted(collection, key),
        }
    }

    /// Attributes objects without a recorded writer to this committed transaction if they still have the values it wrote.
    fn recognize<V: Versions>(&mut self, txn: &Txn, versions: &V) -> Result<(), V::Error> {
        let mut recognized = std::mem::take(&mut self.recognized);
        let taken = recognized.take(txn, versions, |collection, key| self.version(collection, key, versions));
        self.recognized = recognized;
        taken
    }

    fn version<V: Versions>(&self, collection: &Collection, key: &Key, versions: &V) -> Result<Option<Seq>, V::Error> {
        match self.pending.get(collection).and_then(|keys| keys.get(key)) {
            Some((_, version)) if !fault_injection::is(Bug::ConditionsWithoutPending) => Ok(*version),
            _ => versions.version(collection, key),
        }
    }

    fn note_write(&mut self, op: &Op, seq: Seq) {
        let version = op.value().map(|_| seq);
        let (collection, key) = (op.collection(), op.key());
        if !self.pending.contains_key(collection) {
            self.pending.insert(collection.clone(), HashMap::new());
        }
        let old = self.pending.get_mut(collection).and_then(|keys| keys.insert(key.clone(), (seq, version)));
        self.staged.push(Undo::Pending(collection.clone(), key.clone(), old));
    }

    /// Lets the times of later entries go back to `time_ms`, because a wrong clock dated the last ones. Nothing may be staged.
    pub fn correct_time(&mut self, time_ms: u64) {
        self.time_ms = self.time_ms.min(time_ms);
        self.staged_from.1 = self.time_ms;
    }

    /// Confirms that the staged entries are durable.
    pub fn keep(&mut self) {
        self.staged.clear();
        self.staged_ids.clear();
        self.staged_from = (self.head, self.time_ms);
    }

    /// Reverts all staged entries, which were not written.
    pub fn undo(&mut self) {
        self.staged_ids.clear();
        while let Some(step) = self.staged.pop() {
            match step {
                Undo::Row(origin, Some(change)) => {
                    if let Some(row) = self.rows.get_mut(&origin) {
                        row.undo(change);
                    }
                }
                Undo::Row(origin, None) => {
                    self.rows.remove(&origin);
                }
                Undo::Maker(origin, Some(maker)) => drop(self.makers.insert(origin, maker)),
                Undo::Maker(origin, None) => drop(self.makers.remove(&origin)),
                Undo::Pending(collection, key, old) => {
                    let keys = self.pending.entry(collection).or_default();
                    match old {
                        Some(write) => keys.insert(key, write),
                        None => keys.remove(&key),
                    };
                }
            }
        }
        (self.head, self.time_ms) = self.staged_from;
    }

    /// Discards pending writes up to `seq`, which the index has reached. Cheap to call often: the maps are swept only
    /// if enough entries have accumulated.
    pub fn applied(&mut self, seq: Seq) {
        let level = seq == self.head;
        if seq <= self.pending_from || (!level && seq.since(self.pending_from) < 4096) {
            return;
        }
        self.pending_from = seq;
        if level {
            self.pending.clear();
            return;
        }
        for keys in self.pending.values_mut() {
            keys.retain(|_, (written, _)| *written > seq);
        }
        self.pending.retain(|_, keys| !keys.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::convert::Infallible;

    /// Versions of objects. Transaction `n` of origin 1 was committed at sequence `10 + n`.
    struct Index(Vec<(&'static str, u64)>);

    impl Versions for Index {
        type Error = Infallible;

        fn version(&self, _: &Collection, key: &Key) -> Result<Option<Seq>, Infallible> {
            Ok(self.0.iter().find(|(k, _)| *k == key.as_str()).map(|(_, v)| Seq(*v)))
        }

        fn author(&self, seq: Seq) -> Option<TxnId> {
            let counter = OriginCounter(seq.0.checked_sub(10)?);
            Some(TxnId { origin: Origin([1; 16]), counter })
        }
    }

    fn collection() -> Collection {
        Collection::new("c").expect("name")
    }

    fn key(text: &str) -> Key {
        Key::new(text).expect("key")
    }

    fn txn(origin: u8, counter: u64, ops: Vec<Op>, conditions: Vec<Condition>) -> Txn {
        let id = TxnId { origin: Origin([origin; 16]), counter: OriginCounter(counter) };
        Txn { id, settled: OriginCounter(0), time_ms: 0, note: Bytes::new(), conditions, ops }
    }

    fn put(text: &str) -> Op {
        Op::Put { collection: collection(), key: key(text), value: Bytes::from_static(b"v") }
    }

    fn absent(text: &str) -> Condition {
        Condition::Absent { collection: collection(), key: key(text) }
    }

    /// A log that was restarted from a state and does not record the writers of its objects.
    struct Nameless(Vec<(&'static str, u64, &'static [u8])>);

    impl Versions for Nameless {
        type Error = Infallible;

        fn version(&self, collection: &Collection, key: &Key) -> Result<Option<Seq>, Infallible> {
            Ok(self.value(collection, key)?.map(|(version, _)| version))
        }

        fn author(&self, seq: Seq) -> Option<TxnId> {
            (seq.0 <= 10).then_some(TxnId { origin: Origin([9; 16]), counter: OriginCounter(0) })
        }

        fn value(&self, _: &Collection, key: &Key) -> Result<Option<(Seq, Bytes)>, Infallible> {
            let found = self.0.iter().find(|(name, ..)| *name == key.as_str());
            Ok(found.map(|(_, version, value)| (Seq(*version), Bytes::from_static(value))))
        }
    }

    fn propose<V: Versions<Error = Infallible>>(sequencer: &mut Sequencer, txn: Txn, index: &V) -> Decision {
        let member = MemberName::new("m").expect("name");
        sequencer.propose(&member, txn, 7, index).expect("infallible")
    }

    fn new() -> Sequencer {
        Sequencer::new(Seq(10), 5, Limits::default(), HashMap::new())
    }

    #[test]
    fn p06_a_retry_gets_the_first_answer() {
        let (mut sequencer, index) = (new(), Index(vec![("taken", 3)]));
        let first = txn(1, 1, vec![put("a")], vec![]);
        assert!(matches!(propose(&mut sequencer, first.clone(), &index), Decision::Write(e) if e.seq == Seq(11)));
        let second = txn(1, 2, vec![put("taken")], vec![absent("taken")]);
        let Decision::Write(entry) = propose(&mut sequencer, second.clone(), &index) else { panic!("sequenced") };
        assert!(matches!(entry.body, EntryBody::Reject { .. }));
        sequencer.keep();
        assert_eq!(propose(&mut sequencer, first, &index), Decision::Committed(Seq(12)));
        assert!(matches!(propose(&mut sequencer, second, &index), Decision::Rejected(Seq(12), _)));
        assert_eq!(propose(&mut sequencer, txn(1, 9, vec![], vec![]), &index), Decision::Gap(OriginCounter(3)));
        assert_eq!(sequencer.head(), Seq(12));
    }

    #[test]
    fn p06_an_identity_stands_for_one_content_and_an_origin_for_one_member() {
        let (mut sequencer, index) = (new(), Index(vec![]));
        let first = txn(1, 1, vec![put("a")], vec![]);
        assert!(matches!(propose(&mut sequencer, first.clone(), &index), Decision::Write(_)));
        sequencer.keep();
        let other = txn(1, 1, vec![put("b")], vec![]);
        assert_eq!(propose(&mut sequencer, other, &index), Decision::Rejected(Seq(11), Reason::IdentityReused));
        let again = Txn { time_ms: 99, note: bytes::Bytes::from_static(b"again"), ..first.clone() };
        assert_eq!(propose(&mut sequencer, again, &index), Decision::Committed(Seq(11)));
        let thief = MemberName::new("thief").expect("name");
        for counter in 1..=3 {
            let stolen = txn(1, counter, vec![put("c")], vec![]);
            let decision = sequencer.propose(&thief, stolen, 7, &index).expect("reads");
            assert!(matches!(decision, Decision::Rejected(_, Reason::Forbidden { .. })), "{counter}: {decision:?}");
        }
        assert_eq!(sequencer.head(), Seq(11), "no entry is written for it");
        propose(&mut sequencer, txn(1, 2, vec![put("d")], vec![]), &index);
        sequencer.undo();
        let other = txn(1, 1, vec![put("b")], vec![]);
        assert_eq!(propose(&mut sequencer, other, &index), Decision::Rejected(Seq(11), Reason::IdentityReused));
    }

    #[test]
    fn p08_conditions_see_entries_that_the_index_has_not() {
        let (mut sequencer, index) = (new(), Index(vec![]));
        assert!(matches!(
            propose(&mut sequencer, txn(1, 1, vec![put("a")], vec![absent("a")]), &index),
            Decision::Write(Entry { body: EntryBody::Commit(_), .. })
        ));
        assert!(matches!(
            propose(&mut sequencer, txn(2, 1, vec![put("a")], vec![absent("a")]), &index),
            Decision::Write(Entry { body: EntryBody::Reject { .. }, .. })
        ));
        sequencer.keep();
        sequencer.applied(Seq(12));
        let index = Index(vec![("a", 11)]);
        let version = Condition::Version { collection: collection(), key: key("a"), version: Seq(11) };
        assert!(matches!(
            propose(&mut sequencer, txn(2, 2, vec![put("a")], vec![version]), &index),
            Decision::Write(Entry { body: EntryBody::Commit(_), .. })
        ));
    }

    #[test]
    fn p08_a_change_of_a_pending_change_holds_only_while_that_was_the_last() {
        let upon = |counter: u64| {
            let id = TxnId { origin: Origin([1; 16]), counter: OriginCounter(counter) };
            vec![Condition::written_by(collection(), key("a"), id)]
        };
        let is_written = |decision: Decision| match decision {
            Decision::Write(entry) => matches!(entry.body, EntryBody::Commit(_)),
            other => panic!("{other:?}"),
        };
        let (mut sequencer, index) = (new(), Index(vec![("a", 11), ("taken", 3)]));
        // The condition holds within one batch and after the first write became durable. It fails for a transaction
        // that did not write the key.
        assert!(is_written(propose(&mut sequencer, txn(1, 1, vec![put("a")], vec![]), &index)));
        assert!(is_written(propose(&mut sequencer, txn(1, 2, vec![put("b")], upon(1)), &index)));
        sequencer.keep();
        sequencer.applied(Seq(12));
        assert!(is_written(propose(&mut sequencer, txn(1, 3, vec![put("b")], upon(1)), &index)));
        assert!(!is_written(propose(&mut sequencer, txn(1, 4, vec![put("b")], upon(2)), &index)));
        assert!(is_written(propose(&mut sequencer, txn(2, 1, vec![put("a")], vec![]), &index)));
        assert!(
            !is_written(propose(&mut sequencer, txn(1, 5, vec![put("a")], upon(1)), &index)),
            "another change came in between"
        );
        // A rejected transaction has written nothing.
        assert!(!is_written(propose(&mut sequencer, txn(1, 6, vec![put("taken")], vec![absent("taken")]), &index)));
        assert!(!is_written(propose(&mut sequencer, txn(1, 7, vec![put("a")], upon(6)), &index)));
    }

    /// Deletions of objects that are absent; nothing is known of those up to sequence 4.
    struct Absences(Vec<(&'static str, u64)>);

    impl Versions for Absences {
        type Error = Infallible;

        fn version(&self, _: &Collection, _: &Key) -> Result<Option<Seq>, Infallible> {
            Ok(None)
        }

        fn author(&self, seq: Seq) -> Option<TxnId> {
            Index(Vec::new()).author(seq)
        }

        fn deleted(&self, _: &Collection, key: &Key) -> Result<Option<Deleted>, Infallible> {
            let found = self.0.iter().find(|(k, _)| *k == key.as_str());
            Ok(Some(found.map_or(Deleted::NotAfter(Seq(4)), |(_, seq)| Deleted::At(Seq(*seq)))))
        }
    }

    /// Nothing is known of deletions up to a sequence, and of objects.
    struct NothingBefore(Seq);

    impl Versions for NothingBefore {
        type Error = Infallible;

        fn version(&self, _: &Collection, _: &Key) -> Result<Option<Seq>, Infallible> {
            Ok(None)
        }

        fn author(&self, seq: Seq) -> Option<TxnId> {
            Index(Vec::new()).author(seq)
        }

        fn deleted(&self, _: &Collection, _: &Key) -> Result<Option<Deleted>, Infallible> {
            Ok(Some(Deleted::NotAfter(self.0)))
        }
    }

    fn delete(text: &str) -> Op {
        Op::Delete { collection: collection(), key: key(text) }
    }

    #[test]
    fn p04_what_was_deleted_after_it_was_seen_to_be_absent_does_not_return() {
        let is_committed = |decision: Decision| match decision {
            Decision::Write(Entry { body: EntryBody::Reject { reason, .. }, .. }) => {
                let wanted = "condition failed: expected c/a neither made nor deleted after sequence ";
                assert!(reason.to_string().starts_with(wanted), "{reason}");
                false
            }
            decision => matches!(decision, Decision::Write(_)),
        };
        let since = |seq: u64| vec![Condition::absent_since(collection(), key("a"), Seq(seq))];
        let mut counter = 0;
        let mut again = |sequencer: &mut Sequencer, seq: u64, index: &Absences| {
            counter += 1;
            is_committed(propose(sequencer, txn(2, counter, vec![put("b")], since(seq)), index))
        };
        // As the index knows it: deleted at 7, or perhaps up to 4.
        let mut sequencer = new();
        let (deleted, unknown) = (Absences(vec![("a", 7)]), Absences(vec![]));
        assert_eq!([6, 7, 8].map(|seq| again(&mut sequencer, seq, &deleted)), [false, true, true]);
        assert_eq!([3, 4, 5].map(|seq| again(&mut sequencer, seq, &unknown)), [false, true, true]);
        // One that is staged, and one that the index has not taken in.
        let at = sequencer.head().0 + 1;
        propose(&mut sequencer, txn(1, 1, vec![delete("a")], vec![absent("a")]), &unknown);
        assert_eq!([at - 1, at].map(|seq| again(&mut sequencer, seq, &unknown)), [false, true]);
        sequencer.keep();
        assert_eq!([at - 1, at].map(|seq| again(&mut sequencer, seq, &unknown)), [false, true]);
        // It is there.
        propose(&mut sequencer, txn(1, 2, vec![put("a")], vec![]), &unknown);
        assert!(!again(&mut sequencer, 1 << 40, &unknown));
        // An index that does not know of deletions.
        let decision = propose(&mut new(), txn(2, 1, vec![put("b")], since(1 << 40)), &Index(vec![]));
        assert!(!is_committed(decision));
    }

    #[test]
    fn p04_what_follows_an_own_deletion_holds_while_that_was_the_last() {
        let upon = |counter: u64| {
            let id = TxnId { origin: Origin([1; 16]), counter: OriginCounter(counter) };
            vec![Condition::written_by(collection(), key("a"), id)]
        };
        let is_committed =
            |decision: Decision| matches!(decision, Decision::Write(Entry { body: EntryBody::Commit(_), .. }));
        let (mut sequencer, index) = (new(), Absences(vec![("a", 12)]));
        assert!(is_committed(propose(&mut sequencer, txn(1, 1, vec![put("b")], vec![]), &index)));
        assert!(is_committed(propose(&mut sequencer, txn(1, 2, vec![delete("a")], vec![]), &index)));
        assert!(!is_committed(propose(&mut sequencer, txn(1, 3, vec![put("c")], upon(1)), &index)));
        assert!(is_committed(propose(&mut sequencer, txn(1, 4, vec![put("c")], upon(2)), &index)), "staged");
        sequencer.keep();
        sequencer.applied(Seq(14));
        assert!(
            is_committed(propose(&mut sequencer, txn(1, 5, vec![put("c")], upon(2)), &index)),
            "according to the index"
        );
        assert!(is_committed(propose(&mut sequencer, txn(2, 1, vec![delete("a")], vec![]), &index)));
        assert!(!is_committed(propose(&mut sequencer, txn(1, 6, vec![put("a")], upon(2)), &index)));
        // That nothing is known of deletions up to a transaction does not say that it deleted the object.
        let unknown =
            Condition::written_by(collection(), key("z"), TxnId { origin: Origin([1; 16]), counter: OriginCounter(0) });
        let unnamed = txn(1, 7, vec![put("z")], vec![unknown]);
        assert!(!is_committed(propose(&mut sequencer, unnamed, &NothingBefore(Seq(10)))));
        let lost = vec![Condition::upon_lost(collection(), key("a"))];
        assert!(!is_committed(propose(&mut sequencer, txn(1, 8, vec![put("a")], lost), &index)));
    }

    #[test]
    fn p08_a_writer_that_the_log_does_not_name_is_known_by_what_it_wrote() {
        let ours = Origin([1; 16]);
        let mut row = OriginRow::default();
        row.record(Seq(9), OriginCounter(3), OriginCounter(0), None);
        let rows = HashMap::from([(ours, row)]);
        let start = || Sequencer::new(Seq(10), 0, Limits::default(), rows.clone());
        let index = Nameless(vec![("a", 7, b"v"), ("overtaken", 8, b"of another one"), ("b", 7, b"v")]);
        let pushed_again = || txn(1, 1, vec![put("a"), put("overtaken"), put("gone")], vec![]);
        let upon = |name: &str, counter: u64| {
            let id = TxnId { origin: ours, counter: OriginCounter(counter) };
            txn(1, 4, vec![put(name)], vec![Condition::written_by(collection(), key(name), id)])
        };
        let is_committed = |sequencer: &mut Sequencer, txn: Txn| {
            let decision = propose(sequencer, txn, &index);
            matches!(decision, Decision::Write(Entry { body: EntryBody::Commit(_), .. }))
        };
        assert!(!is_committed(&mut start(), upon("a", 1)), "the value of the transaction is not shown");
        let cases = [("a", 1, true), ("a", 2, false), ("overtaken", 1, false), ("gone", 1, false), ("b", 1, false)];
        for (name, counter, expected) in cases {
            let mut sequencer = start();
            assert_eq!(propose(&mut sequencer, pushed_again(), &index), Decision::Committed(Seq(9)));
            assert_eq!(is_committed(&mut sequencer, upon(name, counter)), expected, "{name} upon {counter}");
        }
        // A later operation of the same transaction on the same object determines its value.
        let mut sequencer = start();
        let delete = Op::Delete { collection: collection(), key: key("a") };
        propose(&mut sequencer, txn(1, 1, vec![put("a"), delete], vec![]), &index);
        assert!(!is_committed(&mut sequencer, upon("a", 1)));
        // Once another transaction has written the object, it is attributed to that one.
        let mut sequencer = start();
        propose(&mut sequencer, pushed_again(), &index);
        assert!(is_committed(&mut sequencer, txn(2, 1, vec![put("a")], vec![])));
        assert!(!is_committed(&mut sequencer, upon("a", 1)));
    }

    #[test]
    fn a_batch_that_could_not_be_written_leaves_no_trace() {
        let (mut sequencer, index) = (new(), Index(vec![]));
        propose(&mut sequencer, txn(1, 1, vec![put("a")], vec![]), &index);
        propose(&mut sequencer, txn(1, 2, vec![put("a"), put("b")], vec![]), &index);
        sequencer.undo();
        assert_eq!(sequencer.head(), Seq(10));
        assert_eq!(sequencer.last_counter(Origin([1; 16])), OriginCounter(0));
        assert!(matches!(
            propose(&mut sequencer, txn(1, 1, vec![put("a")], vec![absent("a"), absent("b")]), &index),
            Decision::Write(Entry { body: EntryBody::Commit(_), seq: Seq(11), .. })
        ));
    }

    #[test]
    fn limits_are_named_in_the_rejection() {
        let (mut sequencer, index) = (new(), Index(vec![]));
        let long = put(&"k".repeat(1025));
        let Decision::Write(entry) = propose(&mut sequencer, txn(1, 1, vec![long], vec![]), &index) else { panic!() };
        let EntryBody::Reject { reason, .. } = entry.body else { panic!("rejected") };
        assert!(reason.to_string().contains("key_bytes_max"), "{reason}");
    }
}
