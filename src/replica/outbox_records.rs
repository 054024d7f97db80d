//! The records of an outbox journal: reading them into an outbox, and selecting those of a rewritten journal.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use gravwell_env::real_fs::RealFs;
use gravwell_log::journal::{Journal, JournalError};
use gravwell_model::codec::txn::{decode_txn, encode_txn};
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::position::shared_after;
use gravwell_model::{LineageEntry, LogId, Origin, OriginCounter, Reason, Seq, Txn, TxnId};
use gravwell_protocol::outbox::{Outbox, RejectedTxn, ResolvedTxn};
use gravwell_state::{StateError, StateMeta, StateStore};

/// Record kinds of the journal; never reused.
pub(super) const KIND_TXN: u8 = 16;
pub(super) const KIND_REJECTED: u8 = 17;
pub(super) const KIND_CLOSED: u8 = 18;
/// A transaction that replaces a rejected one: both happen, or neither.
pub(super) const KIND_RETRY: u8 = 19;

/// Identity of no transaction: counters start at 1. A record of kind [`KIND_CLOSED`] with this identity closes nothing;
/// its payload continues with a [`SequencesV1`]. Versions that do not know these read the identity alone.
const OF_SEQUENCES: TxnId = TxnId { origin: Origin([0; 16]), counter: OriginCounter(0) };

/// Another identity of no transaction: its record of kind [`KIND_CLOSED`] continues with an [`AcceptedV1`].
const OF_ACCEPTED: TxnId = TxnId { origin: Origin([0; 16]), counter: OriginCounter(u64::MAX) };

/// Most origins in one record of [`AcceptedV1`].
const ACCEPTED_MAX: usize = 4096;

/// Counters up to which an abandoned history had accepted transactions ([`Outbox::note_accepted_before`]).
#[derive(Serialize, Deserialize)]
struct AcceptedV1 {
    origins: Vec<(Origin, OriginCounter)>,
}

/// Sequences of committed transactions.
#[derive(Serialize, Deserialize)]
struct SequencesV1 {
    history: LogHistory,
    sequences: Vec<(TxnId, Seq)>,
}

/// Identifies the history that a state represents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct LogHistory {
    log_id: LogId,
    /// The last generation, and its start.
    last: LineageEntry,
}

impl LogHistory {
    fn of(state: &StateMeta) -> LogHistory {
        let last = state.lineage.iter().copied().find(|entry| entry.generation == state.generation);
        let last = last.unwrap_or(LineageEntry { generation: state.generation, shared_to: Seq::ZERO });
        LogHistory { log_id: state.log_id, last }
    }

    /// Returns whether a state has the entry that had the sequence `seq` in this history.
    fn is_shared(&self, seq: Seq, state: &StateMeta) -> bool {
        let is_descended = state.lineage.contains(&self.last) || LogHistory::of(state).last == self.last;
        let shared_to = shared_after(&state.lineage, self.last.generation);
        self.log_id == state.log_id && is_descended && shared_to.is_none_or(|shared_to| seq <= shared_to)
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct RejectedV1 {
    pub id: TxnId,
    pub seq: Seq,
    pub reason: Reason,
}

/// Error of restoring the outbox.
#[derive(Debug, thiserror::Error)]
pub(super) enum RestoreError {
    /// The journal has a record that cannot be read. It exists nowhere else.
    #[error("{0}")]
    Journal(String),
    /// The state is corrupt. It can be fetched again.
    #[error(transparent)]
    State(#[from] StateError),
}

fn decoded<T: serde::de::DeserializeOwned>(payload: &[u8]) -> Result<T, String> {
    postcard::from_bytes(payload).map_err(|error| error.to_string())
}

/// Opens the journal of an outbox. Its records are read one at a time.
pub(super) fn open(directory: &Path) -> Result<(Journal, Restoring), JournalError> {
    let mut restoring = Restoring::default();
    let journal =
        Journal::open_with(Arc::new(RealFs), directory, |record| restoring.take(record.kind, &record.payload))?;
    Ok((journal, restoring))
}

/// Reads the records of a journal.
#[cfg(any(test, feature = "testing"))]
pub(super) fn read(entries: &[(u8, Vec<u8>)]) -> Restoring {
    let mut restoring = Restoring::default();
    for (kind, payload) in entries {
        restoring.take(*kind, payload);
    }
    restoring
}

/// Reads the records of a journal: pending transactions and the rejected list, with the outcomes in the state applied.
#[cfg(test)]
pub(super) fn restore(
    entries: &[(u8, Vec<u8>)],
    state: &StateStore,
    outbox: Outbox,
) -> Result<(Outbox, Vec<RejectedTxn>), RestoreError> {
    read(entries).finish(state, outbox)
}

/// Accumulated records of a journal.
#[derive(Clone, Default)]
pub(super) struct Restoring {
    /// Positions of the remaining transactions, and the next position.
    order: BTreeMap<u64, TxnId>,
    next: u64,
    txns: HashMap<TxnId, (u64, Arc<Txn>)>,
    rejected: HashMap<TxnId, (Seq, Reason)>,
    /// Retried transactions, each with the one that replaces it.
    retried: Vec<(TxnId, TxnId)>,
    /// Sequences of committed transactions, and the histories to which they belong.
    sequences: HashMap<TxnId, (Seq, LogHistory)>,
    accepted_before: BTreeMap<Origin, OriginCounter>,
    unreadable: Option<String>,
}

impl Restoring {
    fn take(&mut self, kind: u8, payload: &[u8]) {
        if self.unreadable.is_none()
            && let Err(reason) = self.read(kind, payload)
        {
            self.unreadable = Some(reason);
        }
    }

    fn read(&mut self, kind: u8, payload: &[u8]) -> Result<(), String> {
        match kind {
            KIND_TXN => {
                self.insert(payload)?;
            }
            KIND_RETRY => {
                let (of, txn) = postcard::take_from_bytes::<TxnId>(payload).map_err(|error| error.to_string())?;
                self.remove(of);
                let id = self.insert(txn)?;
                self.retried.push((of, id));
            }
            KIND_REJECTED => {
                let note: RejectedV1 = decoded(payload)?;
                self.rejected.insert(note.id, (note.seq, note.reason));
            }
            KIND_CLOSED => match postcard::take_from_bytes(payload).map_err(|error| error.to_string())? {
                (OF_SEQUENCES, rest) => self.take_sequences(rest),
                (OF_ACCEPTED, rest) => self.accepted_before.extend(decoded::<AcceptedV1>(rest)?.origins),
                (id, _) => self.remove(id),
            },
            other => return Err(format!("kind {other} is unknown to this version")),
        }
        Ok(())
    }

    /// Reads sequences. They only make the outbox more precise, so those in a form of another version are left out.
    fn take_sequences(&mut self, bytes: &[u8]) {
        let Ok(SequencesV1 { history, sequences }) = postcard::from_bytes(bytes) else { return };
        let known = sequences.into_iter().filter(|(id, _)| self.txns.contains_key(id));
        self.sequences.extend(known.map(|(id, seq)| (id, (seq, history))));
    }

    fn insert(&mut self, bytes: &[u8]) -> Result<TxnId, String> {
        let txn = decode_txn(bytes).map_err(|error| error.to_string())?;
        let id = txn.id;
        // A transaction that was rejected and that its author has submitted again has the later position.
        self.remove(id);
        self.order.insert(self.next, id);
        self.txns.insert(id, (self.next, Arc::new(txn)));
        self.next += 1;
        Ok(id)
    }

    fn remove(&mut self, id: TxnId) {
        self.rejected.remove(&id);
        self.sequences.remove(&id);
        if let Some((place, _)) = self.txns.remove(&id) {
            self.order.remove(&place);
        }
    }

    /// Describes how the state at `found` (`None` if there is none) falls short of the one that was here when a
    /// rejection was written; `None` if nothing shows a loss. Once the log has started another generation, the
    /// sequences of older rejections prove nothing.
    pub(super) fn contradict(&self, found: Option<&StateMeta>) -> Option<String> {
        let noted = self.rejected.iter().filter(|(id, _)| self.txns.contains_key(*id)).map(|(_, (seq, _))| *seq);
        let furthest = noted.max().filter(|seq| *seq != Seq::ZERO && !fault_injection::is(Bug::RollbackUnnoticed))?;
        let at = match found {
            None => "is lost".to_owned(),
            Some(found) if found.lineage.len() <= 1 && found.seq < furthest => format!("is at {}", found.seq),
            Some(_) => return None,
        };
        Some(format!("the state went back: the outbox journal shows that it was at sequence {furthest}, and it {at}"))
    }

    /// Returns the outbox of a replica with this state, and the rejections that only the state has.
    pub(super) fn finish(
        self,
        state: &StateStore,
        mut outbox: Outbox,
    ) -> Result<(Outbox, Vec<RejectedTxn>), RestoreError> {
        let Restoring { order, mut txns, mut rejected, retried, sequences, accepted_before, unreadable, .. } = self;
        if let Some(reason) = unreadable {
            return Err(RestoreError::Journal(reason));
        }
        retried.into_iter().for_each(|(of, to)| outbox.note_retried(of, to));
        for id in order.into_values() {
            let Some((_, txn)) = txns.remove(&id) else { continue };
            match rejected.remove(&id) {
                Some((seq, reason)) => outbox.restore_rejected(RejectedTxn { txn, seq, reason }),
                None => {
                    outbox.insert(txn);
                }
            }
        }
        for (origin, counter) in accepted_before {
            // The row is enough once the log has as many.
            if state.origin(origin)?.is_none_or(|row| row.last_counter < counter) {
                outbox.note_accepted_before(origin, counter);
            }
        }
        let mut to_note = Vec::new();
        for origin in outbox.origins() {
            let Some(row) = state.origin(origin)? else { continue };
            for decided in outbox.handle_row(origin, &row) {
                if let ResolvedTxn::Rejected(id, ..) = decided
                    && let Some(rejected) = outbox.rejected().get(&id)
                {
                    to_note.push(rejected.clone());
                }
            }
        }
        if let Some(meta) = state.meta() {
            outbox.take_recorded(|id| {
                let (seq, history) = sequences.get(&id)?;
                history.is_shared(*seq, &meta).then_some(*seq)
            });
        }
        Ok((outbox, to_note))
    }
}

enum Frame {
    Txn(Arc<Txn>),
    Rejected(RejectedV1),
}

impl Frame {
    fn encoded(self) -> (u8, Vec<u8>) {
        match self {
            Frame::Txn(txn) => (KIND_TXN, encoded(&txn)),
            Frame::Rejected(note) => (KIND_REJECTED, to_bytes(&note)),
        }
    }
}

/// Returns the record of the sequences that transactions have in the history of a state; `None` if there are none.
pub(super) fn sequences(state: Option<&StateMeta>, sequences: Vec<(TxnId, Seq)>) -> Option<(u8, Vec<u8>)> {
    let state = state.filter(|_| !sequences.is_empty() && !fault_injection::is(Bug::SequencesForgotten))?;
    let mut payload = to_bytes(&OF_SEQUENCES);
    payload.extend(to_bytes(&SequencesV1 { history: LogHistory::of(state), sequences }));
    Some((KIND_CLOSED, payload))
}

/// Returns the records of a journal for an outbox, followed by the record of [`sequences`]. They are encoded one by one,
/// so that nothing is in memory twice.
pub(super) fn frames_of(
    outbox: &Outbox,
    sequences: Option<(u8, Vec<u8>)>,
) -> impl Iterator<Item = (u8, Vec<u8>)> + use<> {
    let rejected = outbox.rejected().values().flat_map(|RejectedTxn { txn, seq, reason }| {
        let note = RejectedV1 { id: txn.id, seq: *seq, reason: reason.clone() };
        [Frame::Txn(Arc::clone(txn)), Frame::Rejected(note)]
    });
    let kept = outbox.kept().map(|kept| Frame::Txn(Arc::clone(&kept.txn)));
    let pending = outbox.pending().map(|txn| Frame::Txn(Arc::clone(txn)));
    let frames: Vec<Frame> = rejected.chain(kept).chain(pending).collect();
    let accepted: Vec<(Origin, OriginCounter)> = outbox.accepted_before().collect();
    let accepted = accepted.chunks(ACCEPTED_MAX).map(|origins| {
        let mut payload = to_bytes(&OF_ACCEPTED);
        payload.extend(to_bytes(&AcceptedV1 { origins: origins.to_vec() }));
        (KIND_CLOSED, payload)
    });
    let accepted: Vec<(u8, Vec<u8>)> = accepted.collect();
    // Only sequences of transactions that precede them are read.
    frames.into_iter().map(Frame::encoded).chain(accepted).chain(sequences)
}

pub(super) fn encoded(txn: &Txn) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(txn.bytes_estimate());
    encode_txn(txn, &mut bytes);
    bytes
}

pub(super) fn retry(of: TxnId, txn: &Txn) -> Vec<u8> {
    let mut bytes = to_bytes(&of);
    encode_txn(txn, &mut bytes);
    bytes
}

pub(super) fn to_bytes<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("invariant: encoding into memory cannot fail")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use gravwell_model::{Chain, Collection, Condition, Entry, EntryBody, Generation, Key, MemberName, Op};

    #[test]
    fn p05_what_was_made_upon_a_retried_change_follows_it_when_the_journal_is_read_again() {
        let op = Op::Delete { collection: Collection::new("c").expect("name"), key: Key::new("k").expect("key") };
        let id = |counter| TxnId { origin: Origin([1; 16]), counter: OriginCounter(counter) };
        let upon = |counter| Condition::written_by(op.collection().clone(), op.key().clone(), id(counter));
        let txn = |counter, conditions| {
            let (settled, ops) = (OriginCounter(0), vec![op.clone()]);
            Txn { id: id(counter), settled, time_ms: 0, note: Bytes::new(), conditions, ops }
        };
        let rejected = |txn: &Txn| {
            let note = RejectedV1 { id: txn.id, seq: Seq(5), reason: Reason::IdentityReused };
            [(KIND_TXN, encoded(txn)), (KIND_REJECTED, to_bytes(&note))]
        };
        let (first, second) = (txn(1, vec![]), txn(3, vec![upon(1)]));
        let made = [rejected(&first), rejected(&second)].concat();
        let records = [&made[..], &[(KIND_RETRY, retry(first.id, &txn(2, vec![])))]].concat();
        let (outbox, _) = restore(&records, &StateStore::in_memory(), Outbox::default()).expect("journal is valid");
        assert_eq!(outbox.rejected()[&second.id].txn.conditions, [upon(2)]);
    }

    #[test]
    fn p05_the_sequences_of_committed_transactions_are_known_after_a_restart() {
        let entry = |seq: u64| {
            let name = (Collection::new("c").expect("name"), Key::new("k").expect("key"));
            let op = Op::Put { collection: name.0, key: name.1, value: seq.to_string().into_bytes().into() };
            let id = TxnId { origin: Origin([1; 16]), counter: OriginCounter(seq) };
            let (settled, note, conditions) = (OriginCounter(0), Bytes::new(), Vec::new());
            let txn = Txn { id, settled, time_ms: 0, note, conditions, ops: vec![op] };
            let member = MemberName::new("m").expect("name");
            Entry { seq: Seq(seq), time_ms: seq, member, body: EntryBody::Commit(txn) }
        };
        let entries: Vec<Entry> = (1..=3).map(entry).collect();
        let generation =
            |generation, shared_to| LineageEntry { generation: Generation(generation), shared_to: Seq(shared_to) };
        let state = |log, lineage: &[LineageEntry]| {
            let state = StateStore::in_memory();
            let last = lineage.last().expect("one").generation;
            state.init(LogId([log; 16]), last, lineage.to_vec()).expect("begins");
            state.apply(&entries, Chain::default()).expect("applies");
            state
        };
        let mut outbox = Outbox::keeping();
        for entry in &entries {
            let EntryBody::Commit(txn) = &entry.body else { continue };
            outbox.insert(Arc::new(txn.clone()));
        }
        entries.iter().for_each(|entry| drop(outbox.handle_applied(entry.seq, &entry.body)));
        let here = state(1, &[generation(1, 0)]);
        let record = sequences(here.meta().as_deref(), outbox.exact_sequences().collect()).expect("sequences known");
        let frames: Vec<_> = frames_of(&outbox, Some(record.clone())).collect();
        let exact = |frames: &[(u8, Vec<u8>)], state: &StateStore| {
            let (outbox, _) = restore(frames, state, Outbox::keeping()).expect("journal is valid");
            assert_eq!((outbox.kept().count(), outbox.depth()), (3, 0));
            outbox.exact_sequences().map(|(id, seq)| (id.counter.0, seq.0)).collect::<Vec<_>>()
        };
        assert_eq!(exact(&frames, &here), [(1, 1), (2, 2), (3, 3)]);
        // Without the record, the row shows the sequence of the last one.
        assert_eq!(exact(&frames[..3], &here), [(3, 3)]);
        assert_eq!(
            exact(&[&[record.clone()][..], &frames[..3]].concat(), &here),
            [(3, 3)],
            "the record is of earlier transactions"
        );
        // In another history only what both share has the same sequences.
        assert_eq!(exact(&frames, &state(1, &[generation(1, 0), generation(2, 1)])), [(1, 1), (3, 3)]);
        assert_eq!(exact(&frames, &state(1, &[generation(5, 0)])), [(3, 3)]);
        assert_eq!(exact(&frames, &state(2, &[generation(1, 0)])), [(3, 3)]);
        // A version that does not know these records reads the identity, and ignores what follows it.
        assert_eq!((record.0, decoded::<TxnId>(&record.1)), (KIND_CLOSED, Ok(OF_SEQUENCES)));
        assert!(!outbox.exact_sequences().any(|(id, _)| id == OF_SEQUENCES));
    }
}
