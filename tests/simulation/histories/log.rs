//! The log of a small world: the real sequencer and state, over entries that are never forgotten, so that the oracle
//! knows the contents of a lost history.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use gravwell_datastore::snapshot;
use gravwell_model::codec::admin::{GenerationCause, GenerationInfo};
use gravwell_model::codec::message::{Outcome, TxnOutcome, Welcome};
use gravwell_model::deletions::{Changed, Deleted};
use gravwell_model::{
    Chain, Collection, Digest, Entry, EntryBody, Generation, Key, Limits, Lineage, LineageEntry, LogId, MemberName,
    Position, Seq, Txn, TxnId,
};
use gravwell_protocol::sequencer::{Decision, Sequencer, Versions};
use gravwell_protocol::session::verdict;
use gravwell_replica::resync::Loading;
use gravwell_state::{StateError, StateStore};

use super::Number;

/// Committed and rejected entries, with the chain value after each entry.
#[derive(Clone, Default)]
pub struct Past(Vec<(Arc<Entry>, Chain)>);

/// The last write of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub seq: Seq,
    pub change: Option<Number>,
    /// `None` if the object was deleted.
    pub value: Option<Bytes>,
}

/// Returns the note that a client attaches to a change: its number and the number of its operations.
pub fn note(change: Number, ops: usize) -> Bytes {
    Bytes::from(format!("{change}:{ops}"))
}

/// Returns the change that a transaction belongs to, whatever its id, and whether it contains the whole change.
pub fn part_of(txn: &Txn) -> Option<(Number, bool)> {
    let (change, ops) = std::str::from_utf8(&txn.note).ok()?.split_once(':')?;
    Some((change.parse().ok()?, ops.parse() == Ok(txn.ops.len())))
}

/// Returns the change that a transaction contains as a whole.
pub fn change_of(txn: &Txn) -> Option<Number> {
    part_of(txn).filter(|(_, is_whole)| *is_whole).map(|(change, _)| change)
}

impl Past {
    pub fn head(&self) -> Seq {
        Seq(self.0.len() as u64)
    }

    pub fn chain_at(&self, seq: Seq) -> Chain {
        if seq == Seq::ZERO { Chain::default() } else { self.0[seq.0 as usize - 1].1 }
    }

    pub fn entry(&self, seq: Seq) -> Option<&Entry> {
        self.0.get((seq.0 as usize).checked_sub(1)?).map(|(entry, _)| &**entry)
    }

    pub fn push(&mut self, entry: Entry) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.chain_at(self.head())).update(format!("{entry:?}").as_bytes());
        let chain = hasher.finalize().as_bytes().first_chunk().copied().expect("32 bytes");
        self.0.push((Arc::new(entry), chain));
    }

    pub fn up_to(&self, seq: Seq) -> Past {
        Past(self.0[..seq.0 as usize].to_vec())
    }

    pub fn after(&self, seq: Seq, count: usize) -> Vec<Entry> {
        self.0.iter().skip(seq.0 as usize).take(count).map(|(entry, _)| Entry::clone(entry)).collect()
    }

    /// Returns the last sequence shared with another past.
    pub fn shared_with(&self, other: &Past) -> Seq {
        Seq(self.0.iter().zip(&other.0).take_while(|((_, mine), (_, theirs))| mine == theirs).count() as u64)
    }

    /// Returns the committed transactions with operations, and their sequences.
    pub fn commits(&self) -> impl DoubleEndedIterator<Item = (Seq, &Txn)> {
        let commit =
            |(entry, _): &'_ (Arc<Entry>, Chain)| matches!(&entry.body, EntryBody::Commit(txn) if !txn.ops.is_empty());
        self.0.iter().filter(move |pair| commit(pair)).filter_map(|(entry, _)| match &entry.body {
            EntryBody::Commit(txn) => Some((entry.seq, txn)),
            _ => None,
        })
    }

    /// Returns the sequence at which a change was committed.
    pub fn commit_of(&self, change: Number) -> Option<Seq> {
        self.commits().find(|(_, txn)| change_of(txn) == Some(change)).map(|(seq, _)| seq)
    }

    pub fn last_write(&self, key: &Key) -> Option<Write> {
        self.commits().rev().find_map(|(seq, txn)| {
            let op = txn.ops.iter().rev().find(|op| op.key() == key)?;
            let change = part_of(txn).map(|(change, _)| change);
            Some(Write { seq, change, value: op.value().cloned() })
        })
    }

    /// Returns the changes that wrote an object since it was last absent, oldest first: the first one created it.
    pub fn writers_since_creation(&self, key: &Key) -> Vec<Option<Number>> {
        let mut writers = Vec::new();
        for (_, txn) in self.commits() {
            for op in txn.ops.iter().filter(|op| op.key() == key) {
                match op.value() {
                    Some(_) => writers.push(part_of(txn).map(|(change, _)| change)),
                    None => writers.clear(),
                }
            }
        }
        writers
    }

    /// Returns whether an object was deleted after a sequence, whatever was written later.
    pub fn deletes_after(&self, seq: Seq, key: &Key) -> bool {
        let deletes = |txn: &Txn| txn.ops.iter().any(|op| op.key() == key && op.value().is_none());
        self.commits().any(|(at, txn)| at > seq && deletes(txn))
    }

    pub fn value(&self, key: &Key) -> Option<Bytes> {
        self.last_write(key)?.value
    }
}

/// The datastore.
pub struct Ledger {
    log_id: LogId,
    pub generation: Generation,
    pub lineage: Lineage,
    pub past: Past,
    /// Entries up to this sequence cannot be read.
    pub horizon: Seq,
    /// The authors of entries up to this sequence are unknown.
    unnamed_to: Seq,
    pub state: StateStore,
    sequencer: Sequencer,
    pub known: Vec<GenerationInfo>,
}

struct Index<'a>(&'a Ledger);

impl Versions for Index<'_> {
    type Error = StateError;

    fn version(&self, collection: &Collection, key: &Key) -> Result<Option<Seq>, StateError> {
        self.0.state.version(collection, key)
    }

    fn author(&self, seq: Seq) -> Option<TxnId> {
        if seq <= self.0.unnamed_to { None } else { self.0.past.entry(seq)?.body.id() }
    }

    fn value(&self, collection: &Collection, key: &Key) -> Result<Option<(Seq, Bytes)>, StateError> {
        Ok(self.0.state.get(collection, key)?.map(|object| (object.version, object.value)))
    }

    fn deleted(&self, collection: &Collection, key: &Key) -> Result<Option<Deleted>, StateError> {
        self.0.state.deleted(collection, key).map(Some)
    }
}

fn sequencer_of(state: &StateStore) -> Sequencer {
    let view = state.snapshot().expect("a view");
    let rows = view.origins().collect::<Result<HashMap<_, _>, _>>().expect("reads");
    let makers = view.makers().collect::<Result<HashMap<_, _>, _>>().expect("reads");
    let meta = state.meta().expect("it has a position");
    Sequencer::new(meta.seq, meta.time_ms, Limits::default(), rows).with_makers(makers)
}

/// Fills `store` with a state in the form sent over the wire; deletions up to `forgotten` are unknown there.
pub fn fetch(state: &StateStore, store: &StateStore, forgotten: Seq) -> Result<StateStore, String> {
    let text = |error: StateError| error.to_string();
    let view = state.snapshot().map_err(text)?;
    let meta = view.meta().ok_or("no position")?;
    let mut loading = Loading::begin(store, &snapshot::begin(meta), false)?;
    let mut deletions = view.deletions().map_err(text)?;
    deletions.forget_to(forgotten, &mut Changed::new());
    loading.deletions(deletions)?;
    let rows: Vec<_> = snapshot::rows_of(&view, true, None).collect::<Result<_, _>>().map_err(text)?;
    let count = rows.len() as u64;
    loading.rows(rows.into_iter().map(|(row, _)| row).collect())?;
    loading.finish(&snapshot::end(meta, count))
}

impl Ledger {
    pub fn new() -> Ledger {
        let (log_id, generation) = (LogId([7; 16]), Generation(1));
        let lineage = vec![LineageEntry { generation, shared_to: Seq::ZERO }];
        let state = StateStore::in_memory();
        state.init(log_id, generation, lineage.clone()).expect("new");
        let sequencer = sequencer_of(&state);
        let (past, horizon, unnamed_to) = (Past::default(), Seq::ZERO, Seq::ZERO);
        Ledger { log_id, generation, lineage, past, horizon, unnamed_to, state, sequencer, known: Vec::new() }
    }

    pub fn welcome(&self, member: &MemberName, mine: Option<&Position>) -> Welcome {
        let head = self.past.head();
        let is_known = |mine: &&Position| mine.seq <= head && mine.seq >= self.horizon;
        let chain_at_mine = mine.filter(is_known).map(|mine| self.past.chain_at(mine.seq));
        let (log_id, generation, chain) = (self.log_id, self.generation, self.past.chain_at(head));
        let here = Position { log_id, generation, seq: head, chain, digest: Digest::ZERO };
        Welcome {
            version: 1,
            software: String::new(),
            member: member.to_string(),
            role: "webserver".into(),
            log_id,
            generation,
            lineage: self.lineage.clone(),
            head,
            horizon: self.horizon,
            verdict: verdict(mine, &here, &self.lineage, chain_at_mine),
            heartbeat_ms: 1000,
            txn_bytes_max: 1 << 20,
            value_bytes_max: 1 << 20,
            key_bytes_max: 1 << 10,
        }
    }

    /// Returns the outcome of a transaction, and whether this call committed or rejected it.
    pub fn commit(&mut self, member: &MemberName, txn: Txn, now_ms: u64) -> Result<(Outcome, bool), String> {
        let text = |error: StateError| error.to_string();
        let id = txn.id;
        let mut sequencer =
            std::mem::replace(&mut self.sequencer, Sequencer::new(Seq::ZERO, 0, Limits::default(), HashMap::new()));
        let decision = sequencer.propose(member, txn, now_ms, &Index(self));
        sequencer.keep();
        self.sequencer = sequencer;
        let (fate, is_new) = match decision.map_err(text)? {
            Decision::Write(entry) => {
                let fate = match &entry.body {
                    EntryBody::Reject { reason, .. } => TxnOutcome::Rejected(entry.seq, reason.clone()),
                    _ => TxnOutcome::Committed(entry.seq),
                };
                self.past.push(entry.clone());
                self.state.apply(std::slice::from_ref(&entry), self.past.chain_at(entry.seq)).map_err(text)?;
                self.sequencer.applied(entry.seq);
                (fate, true)
            }
            Decision::Committed(seq) => (TxnOutcome::Decided(seq), false),
            Decision::Rejected(seq, reason) => (TxnOutcome::Rejected(seq, reason), false),
            Decision::Gap(expected) => (TxnOutcome::Gap(expected), false),
            // Histories in this test are too short for this decision.
            Decision::Unsettled(count) => return Err(format!("{count} rejections are not acknowledged")),
        };
        Ok((Outcome { id, fate }, is_new))
    }

    /// Returns the entries after a sequence; `None` if they cannot be read any more.
    pub fn since(&self, after: Seq) -> Option<Vec<Entry>> {
        (after >= self.horizon).then(|| self.past.after(after, usize::MAX))
    }

    /// Makes entries up to `horizon` unreadable and forgets deletions up to `forgotten`.
    pub fn compact(&mut self, horizon: Seq, forgotten: Seq) {
        self.horizon = self.horizon.max(horizon);
        self.state = fetch(&self.state, &StateStore::in_memory(), forgotten).expect("copies");
    }

    /// Continues from another past with the given state, in a new generation.
    fn begin(
        &mut self,
        generation: Generation,
        lineage: Lineage,
        past: Past,
        state: StateStore,
        beginning: GenerationCause,
    ) {
        let shared_to = past.head();
        let lineage = [lineage, vec![LineageEntry { generation, shared_to }]].concat();
        state.set_generation(generation, lineage.clone()).expect("in memory");
        self.known.push(GenerationInfo { generation, shared_to, beginning, time_ms: 0 });
        self.sequencer = sequencer_of(&state);
        (self.generation, self.lineage, self.past, self.state) = (generation, lineage, past, state);
    }

    /// Rebuilds the log from the state of a member, without any other knowledge.
    pub fn recover(&mut self, generation: Generation, member: &StateStore, past: Past) {
        let lineage = member.meta().expect("it has a position").lineage.clone();
        let state = fetch(member, &StateStore::in_memory(), Seq::ZERO).expect("copies");
        (self.horizon, self.unnamed_to) = (past.head(), past.head());
        self.begin(generation, lineage, past, state, GenerationCause::Recovered);
    }

    /// Restores an earlier state on purpose, from a copy that reaches back to `horizon`.
    pub fn restore(&mut self, generation: Generation, to: Seq, horizon: Seq, forgotten: Seq) {
        let past = self.past.up_to(to);
        let state = StateStore::in_memory();
        state.init(self.log_id, self.generation, self.lineage.clone()).expect("new");
        if to > Seq::ZERO {
            state.apply(&past.after(Seq::ZERO, usize::MAX), past.chain_at(to)).expect("applies");
        }
        let state = fetch(&state, &StateStore::in_memory(), forgotten).expect("copies");
        (self.horizon, self.unnamed_to) = (horizon.min(to), self.unnamed_to.min(to));
        self.begin(generation, self.lineage.clone(), past, state, GenerationCause::Restored);
    }
}
