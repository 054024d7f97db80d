//! Expected behaviour, derived from the guarantees alone. The oracle sees the output of the datastore, the answers to
//! clients and the contents shown by replicas; it is independent of the implementation.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use gravwell_model::{
    Collection, Condition, Deletions, Digest, Entry, EntryBody, Key, MemberName, Op, Origin, OriginCounter, Reason,
    Seq, Txn, TxnId,
};
use gravwell_replica::Draft;

/// Collection and key.
pub type Name = (String, String);
/// Value and version.
pub type Held = (Bytes, Seq);
/// An object of a committed state.
pub type Row = (Collection, Key, Held);
/// Contents read by a client: by collection and key the value, and the version unless it is pending.
pub type View<'a> = BTreeMap<(&'a str, &'a str), (Bytes, Option<Seq>)>;

/// A transaction that was reported to a client as safe.
#[derive(Clone)]
pub struct Accepted {
    pub replica: usize,
    pub ops: Vec<Op>,
    conditions: Vec<Condition>,
    /// Final outcome that the client received: the sequence, and whether it was a rejection.
    pub told: Option<(Seq, bool)>,
}

impl Accepted {}

/// A submission of a client, as far as the oracle checks it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub ops: Vec<Op>,
    pub conditions: Vec<Condition>,
}

impl From<&Txn> for Wanted {
    fn from(txn: &Txn) -> Wanted {
        Wanted { ops: txn.ops.clone(), conditions: txn.conditions.clone() }
    }
}

impl From<Draft> for Wanted {
    fn from(Draft { ops, conditions, .. }: Draft) -> Wanted {
        Wanted { ops, conditions }
    }
}

#[derive(Clone, Default)]
pub struct Oracle {
    /// Every entry that ever left the datastore, by sequence from 1.
    pub history: Vec<Entry>,
    pub by_id: HashMap<TxnId, Seq>,
    /// All versions of every object: the sequence, and the value unless deleted.
    versions: BTreeMap<Name, Vec<(Seq, Option<Bytes>)>>,
    /// Sum over the objects at each sequence, from 0.
    sums: Vec<u64>,
    last_counter: BTreeMap<Origin, OriginCounter>,
    digests: BTreeMap<Seq, Digest>,
    pub accepted: BTreeMap<TxnId, Accepted>,
    /// By replica: accepted transactions in order, unless resolved by its durable state.
    open: BTreeMap<usize, Vec<TxnId>>,
    /// By replica: rejected transactions that wait for a user.
    rejected: BTreeMap<usize, BTreeMap<TxnId, Seq>>,
    /// By replica: submissions that ended without an answer.
    unanswered: BTreeMap<usize, Vec<Wanted>>,
    /// Rejections of which the dismissal ended without an answer.
    pub unsure: BTreeSet<TxnId>,
    /// Rejections that a user has handled.
    pub dismissed: BTreeSet<TxnId>,
    /// Values of rejected submissions: none of them may ever appear.
    pub refused: BTreeSet<Bytes>,
    /// Highest sequence in a reply to a push.
    pub told: Seq,
    /// Transactions accepted at a replica whose directory was then rolled back: they are on no disk any more.
    pub lost: BTreeSet<TxnId>,
    /// The member that owns each origin according to the log.
    makers: BTreeMap<Origin, MemberName>,
    /// Up to this sequence the log may not know which transaction wrote an object.
    pub horizon: Seq,
    /// Up to this sequence the datastore may not know the contents of the last transaction of an origin.
    pub whole_after: Seq,
    /// Transactions with origins of other members: they are rejected and never committed.
    pub stolen: BTreeSet<TxnId>,
    /// Resolved transactions that their authors submitted again to a replica whose state did not know them: they are
    /// pending there again.
    pub given_again: BTreeSet<TxnId>,
    /// Transactions rejected by their own replica after acceptance, because the datastore never accepts them.
    forsaken: BTreeSet<TxnId>,
    pub checks: u64,
}

/// Accepted transactions and pending rejections of a replica at some time.
#[derive(Clone, Default)]
pub struct Remembered {
    open: Vec<TxnId>,
    rejected: BTreeMap<TxnId, Seq>,
}

/// A violated guarantee.
#[derive(Clone, Debug)]
pub struct Violation(pub String);

pub type Checked = Result<(), Violation>;

macro_rules! broken {
    ($($text:tt)+) => { return Err($crate::oracle::Violation(format!($($text)+))) };
}
pub(crate) use broken;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Returns the contribution of one object to the sum over a state.
pub fn worth(collection: &str, key: &str, value: &[u8], version: Seq) -> u64 {
    let mut sum = 0xcbf2_9ce4_8422_2325_u64;
    for byte in collection.bytes().chain([0]).chain(key.bytes()).chain([0]).chain(value.iter().copied()) {
        sum = (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    mix(sum ^ mix(version.0))
}

fn is_long(op: &Op) -> bool {
    op.value().is_some_and(|value| value.len() > super::datastore::VALUE_BYTES_MAX)
}

fn name(op: &Op) -> Name {
    (op.collection().as_str().to_owned(), op.key().as_str().to_owned())
}

impl Oracle {
    pub fn new() -> Oracle {
        Oracle { sums: vec![0], ..Oracle::default() }
    }

    pub fn head(&self) -> Seq {
        Seq(self.history.len() as u64)
    }

    /// Returns an object as of a sequence.
    pub fn at(&self, object: &Name, seq: Seq) -> Option<Held> {
        let versions = self.versions.get(object)?;
        let end = versions.partition_point(|(version, _)| *version <= seq);
        let (version, value) = versions.get(end.checked_sub(1)?)?;
        value.clone().map(|value| (value, *version))
    }

    /// When an object was last written or deleted, up to a sequence.
    fn last_write(&self, object: &Name, seq: Seq) -> Option<Seq> {
        let versions = self.versions.get(object)?;
        let end = versions.partition_point(|(version, _)| *version <= seq);
        versions.get(end.checked_sub(1)?).map(|(version, _)| *version)
    }

    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.versions.keys()
    }

    fn holds(&self, condition: &Condition, seq: Seq) -> bool {
        let object = (condition.collection().as_str().to_owned(), condition.key().as_str().to_owned());
        let found = self.at(&object, seq).map(|(_, version)| version);
        let last = self.last_write(&object, seq);
        match condition {
            Condition::Absent { .. } => found.is_none(),
            Condition::Present { .. } => found.is_some(),
            Condition::Version { version, .. } if condition.mark().is_some() => {
                last.and_then(|at| self.writer(at)).is_some_and(|id| id.mark() == *version)
            }
            Condition::Version { .. } if condition.since().is_some() => found.is_none() && last <= condition.since(),
            Condition::Version { version, .. } => found == Some(*version),
        }
    }

    fn writer(&self, seq: Seq) -> Option<TxnId> {
        self.history.get(usize::try_from(seq.0).ok()?.checked_sub(1)?)?.body.id()
    }

    /// Returns whether a transaction may be rejected for this reason after `seq`.
    fn explains(&self, accepted: &Accepted, reason: &Reason, seq: Seq) -> bool {
        // If the log no longer knows the author of an object, a condition on the author fails.
        let is_untold = |condition: &Condition| {
            let object = (condition.collection().as_str().to_owned(), condition.key().as_str().to_owned());
            condition.mark().is_some() && self.last_write(&object, seq).is_some_and(|at| at <= self.horizon)
        };
        let may_fail = |condition: &Condition| !self.holds(condition, seq) || is_untold(condition);
        match reason {
            Reason::ConditionFailed { .. } => accepted.conditions.iter().any(may_fail),
            Reason::LimitExceeded { .. } => accepted.ops.iter().any(is_long),
            _ => false,
        }
    }

    /// Checks an entry that leaves the datastore or is found in its log after a crash.
    pub fn shown(&mut self, entry: &Entry) -> Checked {
        self.checks += 1;
        if let Some(known) = usize::try_from(entry.seq.0).ok().and_then(|seq| self.history.get(seq - 1)) {
            if known != entry {
                broken!("sequence {} was published twice with different contents: {known:?} and {entry:?}", entry.seq);
            }
            return Ok(());
        }
        if entry.seq != self.head().next() {
            broken!("sequence {} was published after {}: a gap", entry.seq, self.head());
        }
        if self.history.last().is_some_and(|last| last.time_ms > entry.time_ms) {
            broken!("the commit time decreases at sequence {}", entry.seq);
        }
        let Some(id) = entry.body.id() else { broken!("an entry of unknown kind at {}", entry.seq) };
        let maker = self.makers.entry(id.origin).or_insert_with(|| entry.member.clone());
        if *maker != entry.member {
            broken!("sequence {} is of {}, but its origin {} belongs to {maker}", entry.seq, entry.member, id.origin);
        }
        if self.forsaken.contains(&id) {
            broken!("{}/{} was listed as rejected, but is committed at {}", id.origin, id.counter, entry.seq);
        }
        let last = self.last_counter.entry(id.origin).or_default();
        if id.counter != last.next() {
            broken!("transaction {}/{} came after {last}: lost, duplicated or out of order", id.origin, id.counter);
        }
        *last = id.counter;
        let Some(accepted) = self.accepted.get(&id) else {
            broken!("transaction {}/{} was never accepted by a client's replica", id.origin, id.counter);
        };
        let before = self.head();
        let mut sum = self.sums.last().copied().unwrap_or_default();
        match &entry.body {
            EntryBody::Commit(Txn { conditions, ops, .. }) => {
                if let Some(failed) = conditions.iter().find(|condition| !self.holds(condition, before)) {
                    broken!("sequence {} was committed although `{failed}` did not hold", entry.seq);
                }
                if ops.iter().any(is_long) {
                    broken!("sequence {} was committed although it breaks a limit", entry.seq);
                }
                if *ops != accepted.ops || *conditions != accepted.conditions {
                    broken!("sequence {} does not have the accepted operations: torn or mixed up", entry.seq);
                }
                for op in ops {
                    if op.value().is_some_and(|value| self.refused.contains(value)) {
                        broken!("sequence {} has a value of a rejected submission", entry.seq);
                    }
                    let object = name(op);
                    if let Some((value, version)) = self.at(&object, entry.seq) {
                        sum = sum.wrapping_sub(worth(&object.0, &object.1, &value, version));
                    }
                    if let Some(value) = op.value() {
                        sum = sum.wrapping_add(worth(&object.0, &object.1, value, entry.seq));
                    }
                    let versions = self.versions.entry(object).or_default();
                    versions.retain(|(version, _)| *version != entry.seq);
                    versions.push((entry.seq, op.value().cloned()));
                }
            }
            EntryBody::Reject { reason, .. } if self.explains(accepted, reason, before) => {
                let replica = accepted.replica;
                // The transaction was pushed before its replica was replaced by an older copy, so no replica can list
                // it any more: the entry contains its id but not its contents.
                if !self.lost.contains(&id) {
                    self.rejected.entry(replica).or_default().insert(id, entry.seq);
                }
            }
            other => broken!("sequence {}: unexpected {other:?}, accepted with {:?}", entry.seq, accepted.conditions),
        }
        self.by_id.insert(id, entry.seq);
        self.history.push(entry.clone());
        self.sums.push(sum);
        Ok(())
    }

    /// Checks the reply to a push.
    pub fn answered(&mut self, id: TxnId, seq: Seq, rejected: bool) -> Checked {
        self.checks += 1;
        self.told = self.told.max(seq);
        match self.by_id.get(&id) {
            Some(at) if *at <= seq => self.is_outcome(id, *at, rejected),
            Some(at) => broken!("{}/{} was answered with {seq}, but is at {at}", id.origin, id.counter),
            // The reply may come before the entry is shown; the entry must be there by then.
            None => Ok(()),
        }
    }

    fn is_outcome(&self, id: TxnId, at: Seq, rejected: bool) -> Checked {
        let entry = usize::try_from(at.0).ok().and_then(|seq| self.history.get(seq - 1));
        let was_rejected = entry.is_some_and(|entry| matches!(entry.body, EntryBody::Reject { .. }));
        if rejected != was_rejected {
            broken!("{}/{}: answered rejected={rejected}, contrary to sequence {at}", id.origin, id.counter);
        }
        Ok(())
    }

    /// Checks a datastore that has started; `head` is the end of its log.
    pub fn recovered(&mut self, head: Seq) -> Checked {
        self.checks += 1;
        if head < self.head() {
            broken!("sequence {} had been published, but the log ends at {head} after a restart", self.head());
        }
        if head < self.told {
            broken!("sequence {} had been acknowledged, but the log ends at {head} after a restart", self.told);
        }
        Ok(())
    }

    /// Returns the size of all live objects at the head, and the number of origins that ever existed.
    pub fn live(&self) -> (u64, u64) {
        let head = self.head();
        let bytes = self.names().filter_map(|name| {
            let (value, _) = self.at(name, head)?;
            Some((name.0.len() + name.1.len() + value.len()) as u64)
        });
        (bytes.sum(), self.last_counter.len() as u64)
    }

    /// Returns the number of rejections that no later transaction of their origin acknowledges: each is kept, forever
    /// if the origin has ended.
    pub fn unsettled(&self) -> usize {
        let mut unsettled: BTreeMap<Origin, Vec<OriginCounter>> = BTreeMap::new();
        for entry in &self.history {
            let (id, settled, is_rejected) = match &entry.body {
                EntryBody::Commit(txn) => (txn.id, txn.settled, false),
                EntryBody::Reject { id, settled, .. } => (*id, *settled, true),
                _ => continue,
            };
            let counters = unsettled.entry(id.origin).or_default();
            counters.retain(|counter| *counter > settled);
            counters.extend(is_rejected.then_some(id.counter));
        }
        unsettled.values().map(Vec::len).sum()
    }

    /// Checks the digest of a state at a sequence.
    pub fn digest(&mut self, who: &str, seq: Seq, digest: Digest) -> Checked {
        self.checks += 1;
        let known = *self.digests.entry(seq).or_insert(digest);
        if known != digest {
            broken!("{who} has digest {digest} at sequence {seq}, others have {known}");
        }
        Ok(())
    }

    /// Checks all objects of a committed state.
    pub fn state(&mut self, who: &str, seq: Seq, objects: &[Row]) -> Checked {
        self.checks += 1;
        let Some(expected) = usize::try_from(seq.0).ok().and_then(|seq| self.sums.get(seq)).copied() else {
            broken!("{who} shows sequence {seq}, which was never published");
        };
        let worth_of =
            |(collection, key, (value, version)): &Row| worth(collection.as_str(), key.as_str(), value, *version);
        let sum = objects.iter().map(worth_of).fold(0_u64, u64::wrapping_add);
        if sum == expected {
            return Ok(());
        }
        let named =
            |(collection, key, held): &Row| ((collection.as_str().to_owned(), key.as_str().to_owned()), held.clone());
        let held: BTreeMap<Name, Held> = objects.iter().map(named).collect();
        for object in self.names().chain(held.keys()) {
            let (is, should) = (held.get(object).cloned(), self.at(object, seq));
            if is != should {
                broken!("{who} at sequence {seq}: {object:?} is {is:?}, expected {should:?}");
            }
        }
        broken!("{who} at sequence {seq}: the sum differs although every object is equal");
    }

    /// Checks the recent deletions in a state at `seq`: all after some sequence must be present, and all must be correct.
    pub fn deletions(&mut self, who: &str, seq: Seq, known: &Deletions) -> Checked {
        self.checks += 1;
        let last = |versions: &[(Seq, Option<Bytes>)]| {
            let end = versions.partition_point(|(version, _)| *version <= seq);
            let (at, value) = versions.get(end.checked_sub(1)?)?;
            (value.is_none() && *at > known.complete_after()).then_some(*at)
        };
        // Both sides are sorted by name, and each name occurs once.
        let expected: Vec<(&str, &str, Seq)> = self
            .versions
            .iter()
            .filter_map(|((collection, key), versions)| Some((collection.as_str(), key.as_str(), last(versions)?)))
            .collect();
        let found = known.rows().map(|(at, (collection, key))| (collection.as_str(), key.as_str(), at));
        let mut found: Vec<(&str, &str, Seq)> = found.collect();
        found.sort_unstable();
        if found != expected {
            let after = known.complete_after();
            broken!("{who} at {seq} knows the deletions {found:?} after {after}, expected {expected:?}");
        }
        Ok(())
    }

    /// Returns the contents that a client of `replica` must read if its state is at `seq`.
    pub fn view(&self, replica: usize, seq: Seq, known_rejected: &BTreeSet<TxnId>) -> View<'_> {
        let present = |object: &'_ Name| self.at(object, seq).map(|(value, version)| (value, Some(version)));
        let names = self.versions.keys();
        let mut view: View<'_> =
            names.filter_map(|object| Some(((object.0.as_str(), object.1.as_str()), present(object)?))).collect();
        let pending = self.pending(replica, seq).filter(|(id, _)| !known_rejected.contains(*id));
        for accepted in pending.map(|(_, accepted)| accepted) {
            for op in &accepted.ops {
                let object = (op.collection().as_str(), op.key().as_str());
                match op.value() {
                    Some(value) => view.insert(object, (value.clone(), None)),
                    None => view.remove(&object),
                };
            }
        }
        view
    }

    /// Returns the transactions accepted at a replica and not resolved by a state at `seq`, in order of acceptance.
    pub fn pending(&self, replica: usize, seq: Seq) -> impl Iterator<Item = (&TxnId, &Accepted)> {
        let open = self.open.get(&replica).into_iter().flatten();
        let undecided = open.filter(move |id| self.by_id.get(id).is_none_or(|at| *at > seq));
        undecided.filter_map(|id| self.accepted.get_key_value(id))
    }

    /// A client was informed that its transaction is safe.
    pub fn accept(&mut self, id: TxnId, replica: usize, wanted: Wanted) -> Checked {
        let Wanted { ops, conditions } = wanted;
        let accepted = Accepted { replica, ops, conditions, told: None };
        if self.accepted.insert(id, accepted).is_some() {
            broken!("the identity {}/{} was assigned twice", id.origin, id.counter);
        }
        self.open.entry(replica).or_default().push(id);
        Ok(())
    }

    /// An import was informed that its transaction is safe, possibly for the second time. `is_pending` states whether
    /// it waits for its outcome, possibly again, because the state that knew the previous outcome is lost.
    pub fn accept_import(&mut self, id: TxnId, replica: usize, wanted: Wanted, is_pending: bool) -> Checked {
        if is_pending {
            if self.by_id.contains_key(&id) {
                self.given_again.insert(id);
            }
            // The rejection was handled, or lost with a rolled-back directory: the author submits the transaction
            // again and sees the rejection again.
            self.dismissed.remove(&id);
            let at = self.by_id.get(&id).copied().filter(|at| self.is_outcome(id, *at, true).is_ok());
            self.rejected.entry(replica).or_default().extend(at.map(|at| (id, at)));
        }
        match self.accepted.get(&id) {
            Some(known) if (&known.ops, &known.conditions) == (&wanted.ops, &wanted.conditions) => {
                // A transaction lost with a rolled-back directory exists again.
                let open = self.open.entry(replica).or_default();
                self.lost.remove(&id);
                if is_pending && self.forsaken.contains(&id) {
                    // Submitted again after it was rejected, it is queued behind later transactions.
                    open.retain(|known| *known != id);
                }
                if !open.contains(&id) {
                    open.push(id);
                }
                Ok(())
            }
            Some(_) => broken!("{}/{} was accepted a second time with other contents", id.origin, id.counter),
            None => self.accept(id, replica, wanted),
        }
    }

    /// Checks a transaction that a replica lists as rejected without an entry in the log.
    pub fn refused_here(&mut self, who: &str, id: TxnId, may_be: bool) -> Checked {
        if let Some(at) = self.by_id.get(&id) {
            broken!("{who} lists {}/{} as rejected, but it is at {at}", id.origin, id.counter);
        }
        if !may_be {
            broken!("{who} lists {}/{} as rejected without a reason", id.origin, id.counter);
        }
        self.forsaken.insert(id);
        // The rejection may be lost before it is written down; then it happens again.
        self.unsure.insert(id);
        Ok(())
    }

    /// Records that the index was built from the log alone, which does not contain whole transactions below its horizon.
    pub fn forget_contents(&mut self, horizon: Seq) {
        self.whole_after = self.whole_after.max(horizon);
    }

    /// Returns whether a transaction of a replica will never have an outcome in the log.
    pub fn is_forsaken(&self, id: TxnId) -> bool {
        self.forsaken.contains(&id)
    }

    /// Returns whether the log has committed a transaction after `from` and at or before `seq`.
    pub fn is_committed(&self, id: TxnId, from: Seq, seq: Seq) -> bool {
        let at = self.by_id.get(&id).filter(|at| from < **at && **at <= seq);
        at.is_some_and(|at| self.is_outcome(id, *at, false).is_ok())
    }

    /// Returns the contents of a copy of a replica's directory; `None` while submissions without an answer make them uncertain.
    pub fn remember(&self, replica: usize) -> Option<Remembered> {
        let is_sure = self.unanswered.get(&replica).is_none_or(Vec::is_empty);
        let open = self.open.get(&replica).cloned().unwrap_or_default();
        let rejected = self.rejected.get(&replica).cloned().unwrap_or_default();
        is_sure.then_some(Remembered { open, rejected })
    }

    /// A replica continues from a copy. Its authors have already seen the rejections made since the copy; whether they
    /// see them again depends on whether the log still contains the rejection, so both are correct.
    pub fn rolled_back(&mut self, replica: usize, to: Remembered) {
        let open = self.open.insert(replica, to.open.clone()).unwrap_or_default();
        let undecided = open.into_iter().filter(|id| !self.by_id.contains_key(id) && !to.open.contains(id));
        self.lost.extend(undecided);
        self.unsure.extend(to.open.iter().chain(to.rejected.keys()));
        self.unanswered.remove(&replica);
        self.rejected.insert(replica, to.rejected);
    }

    /// Returns the oracle as if nothing had been shown after `head` and `replica` had done nothing since.
    pub fn as_of(&self, head: Seq, replica: usize, remembered: Remembered) -> Oracle {
        let mut before = self.clone();
        let length = usize::try_from(head.0).unwrap_or(usize::MAX);
        before.history.truncate(length);
        before.sums.truncate(length + 1);
        before.by_id.retain(|_, at| *at <= head);
        before.digests.retain(|at, _| *at <= head);
        before.versions.values_mut().for_each(|versions| versions.retain(|(at, _)| *at <= head));
        before.versions.retain(|_, versions| !versions.is_empty());
        before.last_counter.clear();
        before.makers.clear();
        for entry in &before.history {
            before.makers.extend(entry.body.id().map(|id| (id.origin, entry.member.clone())));
        }
        for id in before.history.iter().filter_map(|entry| entry.body.id()) {
            before.last_counter.insert(id.origin, id.counter);
        }
        before.told = before.told.min(head);
        before.rolled_back(replica, remembered);
        before
    }

    /// A second replica continues from a copy of the directory of the first one; the same rules hold for both.
    pub fn doubled(&mut self, replica: usize, from: Remembered) {
        self.unsure.extend(from.open.iter().chain(from.rejected.keys()));
        self.open.insert(replica, from.open);
        self.rejected.insert(replica, from.rejected);
    }

    /// A replica has started: unanswered submissions that it does not contain are lost.
    pub fn forget_unanswered(&mut self, replica: usize) {
        self.unanswered.remove(&replica);
    }

    /// The transaction of an import was submitted again without an answer: its earlier rejection may be shown again.
    pub fn unsure_again(&mut self, id: TxnId) {
        if self.dismissed.contains(&id) {
            self.unsure.insert(id);
        }
    }

    /// Submissions ended without an answer: they may or may not exist after a restart.
    pub fn unanswered(&mut self, replica: usize, drafts: impl Iterator<Item = Wanted>) {
        self.unanswered.entry(replica).or_default().extend(drafts);
    }

    /// A dismissal ended without an answer.
    pub fn unsure_rejection(&mut self, replica: usize, id: TxnId) {
        if let Some(rejected) = self.rejected.get_mut(&replica) {
            rejected.remove(&id);
        }
        self.unsure.insert(id);
    }

    /// Checks the pending transactions of a replica that has started.
    pub fn restarted<'a>(&mut self, replica: usize, pending: impl Iterator<Item = &'a Txn>) -> Checked {
        for txn in pending.filter(|txn| !self.accepted.contains_key(&txn.id)).collect::<Vec<_>>() {
            let unanswered = self.unanswered.entry(replica).or_default();
            let Some(place) = unanswered.iter().position(|wanted| *wanted == txn.into()) else {
                broken!("replica {replica} has {}/{}, which no client submitted", txn.id.origin, txn.id.counter);
            };
            unanswered.remove(place);
            self.accept(txn.id, replica, txn.into())?;
        }
        Ok(())
    }

    /// The state of a replica is durable up to `seq`: transactions it has resolved stay resolved.
    pub fn durable(&mut self, replica: usize, seq: Seq) {
        let by_id = &self.by_id;
        if let Some(open) = self.open.get_mut(&replica) {
            open.retain(|id| by_id.get(id).is_none_or(|at| *at > seq));
        }
    }

    /// Returns the transactions of a replica that were rejected at or before `seq` and wait for a user.
    pub fn rejected(&self, replica: usize, seq: Seq) -> BTreeSet<TxnId> {
        let mine = self.rejected.get(&replica).into_iter().flatten();
        mine.filter(|(_, at)| **at <= seq).map(|(id, _)| *id).collect()
    }

    /// A user has handled a rejection.
    pub fn dismissed(&mut self, replica: usize, id: TxnId) {
        if let Some(rejected) = self.rejected.get_mut(&replica) {
            rejected.remove(&id);
        }
        self.dismissed.insert(id);
    }

    /// A client received the final outcome of its transaction.
    pub fn client_told(&mut self, id: TxnId, seq: Seq, rejected: bool) -> Checked {
        self.answered(id, seq, rejected)?;
        if let Some(accepted) = self.accepted.get_mut(&id) {
            accepted.told = Some((seq, rejected));
        }
        Ok(())
    }

    /// Final check: everything accepted was resolved, and as reported.
    pub fn finish(&self) -> Checked {
        for (id, accepted) in &self.accepted {
            let Some(at) = self.by_id.get(id) else {
                if self.lost.contains(id) || self.forsaken.contains(id) {
                    continue;
                }
                broken!("{}/{} was accepted at replica {} and never resolved", id.origin, id.counter, accepted.replica);
            };
            if let Some((seq, rejected)) = accepted.told {
                if *at > seq {
                    broken!("{}/{} was answered with {seq}, but is at {at}", id.origin, id.counter);
                }
                self.is_outcome(*id, *at, rejected)?;
            }
        }
        Ok(())
    }
}
