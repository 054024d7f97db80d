//! Outbox, lanes, gate and push stream against a minimal datastore. Transactions are delayed, deferred and sent twice,
//! but all outcomes must be the same as if they had been pushed in order of creation. The exception are existence
//! conditions of transactions that reference chunks: these are evaluated when the transaction is sequenced.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::blob_gate::BlobGate;
use super::outbox::Outbox;
use super::push::{Next, PushReply, Pusher, first_held};
use super::sequencer::{Decision, Sequencer, Versions};
use gravwell_model::codec::blob_manifest::references_chunks;
use gravwell_model::codec::message::{Outcome, RefusalCode, Refused, TxnOutcome};
use gravwell_model::codec::txn::decode_txn;
use gravwell_model::{
    ChunkId, Collection, Condition, Entry, EntryBody, Key, Limits, MemberName, Op, Origin, OriginCounter, Reason, Seq,
    Txn, TxnId,
};

type State = BTreeMap<(Collection, Key), (Seq, Option<Bytes>)>;

fn xorshift(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        xorshift(&mut self.0) % bound
    }

    fn is_one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    fn place(&mut self) -> (Collection, Key) {
        let collection = ["contents", "resources", "dashboards", "dashboards"][self.below(4) as usize];
        let key = format!("k{}", self.below(5));
        (Collection::new(collection).expect("name"), Key::new(key).expect("key"))
    }

    fn op(&mut self, number: u64) -> Op {
        let (collection, key) = self.place();
        if self.is_one_in(4) {
            return Op::Delete { collection, key };
        }
        let index = format!(r#"{{"size":{number},"index":["{}"]}}"#, ChunkId::of(&number.to_le_bytes()));
        Op::Put { collection, key, value: index.into() }
    }

    fn condition(&mut self) -> Condition {
        let (collection, key) = self.place();
        if self.is_one_in(2) { Condition::Present { collection, key } } else { Condition::Absent { collection, key } }
    }
}

/// Returns whether a condition is a mere existence condition on an object that the transaction does not write. If the
/// transaction references chunks, changes of that object may bypass it.
fn is_loose(txn: &Txn, condition: &Condition) -> bool {
    let is_written = txn.ops.iter().any(|op| (op.collection(), op.key()) == (condition.collection(), condition.key()));
    !is_written && !matches!(condition, Condition::Version { .. })
}

/// Applies a transaction; returns whether those of its conditions held that `counts` selects.
fn apply(state: &mut State, seq: Seq, txn: &Txn, counts: impl Fn(&Condition) -> bool) -> bool {
    let version = |condition: &Condition| {
        let found = state.get(&(condition.collection().clone(), condition.key().clone()));
        found.filter(|(_, value)| value.is_some()).map(|(seq, _)| *seq)
    };
    let holds = txn.conditions.iter().filter(|condition| counts(condition)).all(|one| one.holds(version(one)));
    if holds {
        for op in &txn.ops {
            state.insert((op.collection().clone(), op.key().clone()), (seq, op.value().cloned()));
        }
    }
    holds
}

fn values(state: &State) -> Vec<(&(Collection, Key), &Bytes)> {
    state.iter().filter_map(|(key, (_, value))| Some((key, value.as_ref()?))).collect()
}

#[derive(Default)]
struct Datastore {
    state: State,
    last: BTreeMap<Origin, OriginCounter>,
    is_interrupted: bool,
    log: Vec<(TxnId, bool)>,
    /// Whether the conditions of [`is_loose`] held when a transaction was resolved.
    loose: BTreeMap<TxnId, bool>,
}

impl Datastore {
    fn take(&mut self, txn: &Txn, is_put_off: bool) -> TxnOutcome {
        let last = self.last.get(&txn.id.origin).copied().unwrap_or_default();
        if txn.id.counter <= last {
            return TxnOutcome::Decided(Seq(self.log.len() as u64));
        }
        let is_gap = txn.id.counter != last.next();
        if is_put_off || is_gap || self.is_interrupted {
            // No later transaction is accepted before a new stream starts.
            self.is_interrupted = true;
        }
        if is_gap {
            return TxnOutcome::Gap(last.next());
        }
        if self.is_interrupted {
            return TxnOutcome::Deferred(Refused { code: RefusalCode::DiskFull, message: "later".into() });
        }
        self.last.insert(txn.id.origin, txn.id.counter);
        let seq = Seq(self.log.len() as u64 + 1);
        let loose = apply(&mut self.state.clone(), seq, txn, |condition| is_loose(txn, condition));
        self.loose.insert(txn.id, loose);
        let holds = apply(&mut self.state, seq, txn, |_| true);
        self.log.push((txn.id, holds));
        TxnOutcome::Committed(seq)
    }
}

struct Webserver {
    outbox: Outbox,
    gate: BlobGate,
    pusher: Pusher,
    under_way: VecDeque<Txn>,
    answers: VecDeque<Outcome>,
    counters: BTreeMap<Origin, OriginCounter>,
    made: Vec<Arc<Txn>>,
    /// Transactions of the bulk lane.
    bulk: Vec<TxnId>,
    applied: usize,
}

impl Webserver {
    fn make(&mut self, random: &mut Random) {
        let number = self.made.len() as u64;
        let ops: Vec<Op> = (0..=random.below(2)).map(|_| random.op(number)).collect();
        let conditions: Vec<Condition> = (0..random.below(3)).map(|_| random.condition()).collect();
        let is_bulk = references_chunks(&ops) || self.outbox.waits_for_bulk(&ops, &conditions);
        // Some authors assign counters in an origin of their own, regardless of the lanes.
        let origin = Origin([if random.is_one_in(5) { 3 } else { 1 + u8::from(is_bulk) }; 16]);
        let counter = self.counters.entry(origin).or_default();
        *counter = counter.next();
        let id = TxnId { origin, counter: *counter };
        let txn = Txn { id, settled: OriginCounter(0), time_ms: 0, note: Bytes::new(), conditions, ops };
        let txn = Arc::new(txn);
        self.outbox.insert(Arc::clone(&txn));
        if self.outbox.bulk_after(None).any(|(_, bulk)| bulk.id == id) {
            self.bulk.push(id);
        }
        self.made.push(txn);
    }

    fn push(&mut self) {
        let mut body = Vec::new();
        if let Next::Send(_) = self.pusher.next(&self.outbox, &self.gate, &mut body) {
            self.under_way.push_back(decode_txn(&body).expect("decodes"));
        }
    }

    fn hear(&mut self, datastore: &mut Datastore, random: &mut Random) {
        let Some(outcome) = self.answers.pop_front() else { return };
        if let PushReply::Pause(_) | PushReply::Gap(..) = self.pusher.handle_outcome(outcome) {
            self.give_up(datastore, random);
        }
    }

    /// Ends the stream. Some transactions in flight may still be accepted.
    fn give_up(&mut self, datastore: &mut Datastore, random: &mut Random) {
        let taken = random.below(self.under_way.len() as u64 + 1) as usize;
        self.under_way.drain(..taken).for_each(|txn| drop(datastore.take(&txn, random.is_one_in(10))));
        datastore.is_interrupted = false;
        self.pusher = Pusher::default();
        self.under_way.clear();
        self.answers.clear();
    }

    fn open_gate(&mut self) {
        if let Some(txn) = first_held(&self.outbox, &self.gate) {
            self.gate.handle_sent(txn.id);
        }
    }

    fn tail(&mut self, datastore: &Datastore) {
        let Some((id, holds)) = datastore.log.get(self.applied) else { return };
        self.applied += 1;
        let txn = self.made.iter().find(|txn| txn.id == *id).expect("created here");
        let reason = Reason::ConditionFailed { condition: String::new(), found: None };
        let body = match holds {
            true => EntryBody::Commit((**txn).clone()),
            false => EntryBody::Reject { id: *id, settled: OriginCounter(0), reason },
        };
        self.outbox.handle_applied(Seq(self.applied as u64), &body).expect("was pending");
        self.gate.handle_decided(id.origin, id.counter);
    }
}

fn run(seed: u64, count: usize) {
    let mut random = Random(seed | 1);
    let mut datastore = Datastore::default();
    let mut web = Webserver {
        outbox: Outbox::default(),
        gate: BlobGate::new(true),
        pusher: Pusher::default(),
        under_way: VecDeque::new(),
        answers: VecDeque::new(),
        counters: BTreeMap::new(),
        made: Vec::new(),
        bulk: Vec::new(),
        applied: 0,
    };
    let mut steps = 0;
    while web.made.len() < count || web.outbox.depth() > 0 {
        steps += 1;
        assert!(steps < 100_000, "transactions pending forever: {} of {count}", web.outbox.depth());
        match random.below(12) {
            0 | 1 if web.made.len() < count => web.make(&mut random),
            2..=4 => web.push(),
            5..=7 => {
                if let Some(txn) = web.under_way.pop_front() {
                    let fate = datastore.take(&txn, random.is_one_in(10));
                    web.answers.push_back(Outcome { id: txn.id, fate });
                }
            }
            8 => web.hear(&mut datastore, &mut random),
            9 => web.open_gate(),
            10 => web.tail(&datastore),
            _ if random.is_one_in(20) => {
                // The connection breaks.
                web.give_up(&mut datastore, &mut random);
                web.gate = BlobGate::new(true);
            }
            _ => {}
        }
    }
    let mut state = State::new();
    let decided: BTreeMap<TxnId, bool> = datastore.log.iter().copied().collect();
    for (txn, seq) in web.made.iter().zip(1..) {
        let is_bulk = web.bulk.contains(&txn.id);
        let counts = |condition: &Condition| !is_bulk || !is_loose(txn, condition);
        let mut after = state.clone();
        let holds = apply(&mut after, Seq(seq), txn, counts) && (!is_bulk || datastore.loose[&txn.id]);
        assert_eq!(decided[&txn.id], holds, "{} has the same outcome as in order", txn.id.counter);
        if holds {
            state = after;
        }
    }
    assert_eq!(values(&state), values(&datastore.state));
}

#[test]
fn p05_what_a_change_was_made_upon_is_told_first_where_only_the_state_showed_its_commit() {
    let (collection, key) = (Collection::new("c").expect("name"), Key::new("k").expect("key"));
    let id = |counter| TxnId { origin: Origin([1; 16]), counter: OriginCounter(counter) };
    let txn = |counter, conditions| {
        let ops = vec![Op::Put { collection: collection.clone(), key: key.clone(), value: Bytes::from_static(b"v") }];
        Txn { id: id(counter), settled: OriginCounter(0), time_ms: 0, note: Bytes::new(), conditions, ops }
    };
    let upon = |counter| vec![Condition::written_by(collection.clone(), key.clone(), id(counter))];
    let pushed = |decide: fn(&mut Outbox, Txn)| {
        let mut outbox = Outbox::keeping();
        for txn in [txn(1, vec![]), txn(2, upon(1)), txn(3, upon(2)), txn(4, upon(1))] {
            outbox.insert(Arc::new(txn));
        }
        decide(&mut outbox, txn(1, vec![]));
        let (mut pusher, mut body, mut sent) = (Pusher::default(), Vec::new(), Vec::new());
        while let Next::Send(_) = pusher.next(&outbox, &BlobGate::new(true), &mut body) {
            sent.push(decode_txn(&body).expect("decodes").id.counter.0);
        }
        for counter in &sent {
            pusher.handle_outcome(Outcome { id: id(*counter), fate: TxnOutcome::Decided(Seq(5)) });
        }
        assert_eq!(pusher.next(&outbox, &BlobGate::new(true), &mut body), Next::Nothing);
        sent
    };
    let by_row = pushed(|outbox, txn| {
        let mut row = gravwell_model::OriginRow::default();
        row.record(Seq(5), txn.id.counter, OriginCounter(0), None);
        outbox.handle_row(txn.id.origin, &row);
    });
    assert_eq!(by_row, [1, 2, 3, 4]);
    let by_entry = pushed(|outbox, txn| drop(outbox.handle_applied(Seq(5), &EntryBody::Commit(txn))));
    assert_eq!(by_entry, [2, 3, 4], "its entry shows that it is in the log");
}

struct NoObjects;

impl Versions for NoObjects {
    type Error = Infallible;

    fn version(&self, _: &Collection, _: &Key) -> Result<Option<Seq>, Infallible> {
        Ok(None)
    }

    fn author(&self, _: Seq) -> Option<TxnId> {
        None
    }
}

/// Pushes one stream, up to the first transaction that has to wait. With `is_silent`, rejections are not acknowledged.
fn push_stream(outbox: &Outbox, sequencer: &mut Sequencer, is_silent: bool) -> Vec<Entry> {
    let (mut pusher, mut body, mut entries) = (Pusher::default(), Vec::new(), Vec::new());
    let member = MemberName::new("web1").expect("name");
    while let Next::Send(_) = pusher.next(outbox, &BlobGate::new(true), &mut body) {
        let mut txn = decode_txn(&body).expect("decodes");
        if is_silent {
            txn.settled = OriginCounter(0);
        }
        match sequencer.propose(&member, txn, 0, &NoObjects).expect("reads") {
            Decision::Write(entry) => entries.push(entry),
            Decision::Unsettled(count) => {
                assert_eq!(count, 1024);
                break;
            }
            // A retry gets the first reply.
            Decision::Rejected(..) => {}
            other => panic!("{other:?}"),
        }
    }
    sequencer.keep();
    entries
}

#[test]
fn p15_an_outbox_settles_as_many_rejections_as_there_are_and_one_that_never_does_waits() {
    let id = |counter| TxnId { origin: Origin([1; 16]), counter: OriginCounter(counter) };
    let mut outbox = Outbox::default();
    for counter in 1..=3000 {
        let (collection, key) = (Collection::new("c").expect("name"), Key::new("k").expect("key"));
        let (conditions, ops) = (vec![Condition::Present { collection, key }], Vec::new());
        let txn = Txn { id: id(counter), settled: OriginCounter(0), time_ms: 0, note: Bytes::new(), conditions, ops };
        outbox.insert(Arc::new(txn));
    }
    let mut sequencer = Sequencer::new(Seq::ZERO, 0, Limits::default(), HashMap::new());
    assert_eq!(push_stream(&outbox, &mut sequencer, true).len(), 1024);
    assert_eq!(
        push_stream(&outbox, &mut sequencer, true).len(),
        0,
        "nothing is accepted before rejections are acknowledged"
    );
    let member = MemberName::new("web1").expect("name");
    assert_eq!(sequencer.unsettled(|of| *of == member), [(id(1025), member)], "a revocation resolves these");

    let mut sequencer = Sequencer::new(Seq::ZERO, 0, Limits::default(), HashMap::new());
    let mut rounds = 0;
    while outbox.depth() > 0 {
        let entries = push_stream(&outbox, &mut sequencer, false);
        assert!(!entries.is_empty() && rounds < 3, "round {rounds}");
        for entry in &entries {
            outbox.handle_applied(entry.seq, &entry.body);
        }
        if let Some(next) = outbox.pending().next() {
            let before = OriginCounter(rounds * 1024);
            assert_eq!(outbox.settled_before(next), before, "nothing that is not durable");
        }
        entries.iter().filter_map(|entry| entry.body.id()).for_each(|id| outbox.note_written(id));
        rounds += 1;
    }
    assert_eq!((outbox.rejected().len(), rounds), (3000, 3), "each has an outcome");
}

#[test]
fn p05_changes_behind_counters_that_log_and_state_have_both_lost_are_pushed() {
    let id = |counter| TxnId { origin: Origin([1; 16]), counter: OriginCounter(counter) };
    let txn = |counter| {
        let (collection, key) = (Collection::new("c").expect("name"), Key::new("k").expect("key"));
        let ops = vec![Op::Put { collection, key, value: Bytes::from_static(b"1") }];
        Arc::new(Txn {
            id: id(counter),
            settled: OriginCounter(0),
            time_ms: 0,
            note: Bytes::new(),
            conditions: vec![],
            ops,
        })
    };
    let member = MemberName::new("web1").expect("name");
    let mut sequencer = Sequencer::new(Seq::ZERO, 0, Limits::default(), HashMap::new());
    assert!(matches!(sequencer.propose(&member, Txn::clone(&txn(1)), 0, &NoObjects), Ok(Decision::Write(_))));
    sequencer.keep();
    // The outbox dropped 2..=5001, which were resolved once.
    let mut outbox = Outbox::default();
    outbox.insert(txn(5002));
    outbox.insert(txn(5003));
    let (mut written, mut body) = (Vec::new(), Vec::new());
    for _stream in 0..8 {
        let mut pusher = Pusher::default();
        while let Next::Send(_) = pusher.next(&outbox, &BlobGate::default(), &mut body) {
            let pushed = decode_txn(&body).expect("decodes");
            let id = pushed.id;
            let fate = match sequencer.propose(&member, pushed, 0, &NoObjects).expect("reads") {
                Decision::Write(entry) => {
                    sequencer.keep();
                    let seq = entry.seq;
                    written.push(entry);
                    TxnOutcome::Committed(seq)
                }
                Decision::Gap(expected) => TxnOutcome::Gap(expected),
                other => panic!("{other:?}"),
            };
            if let PushReply::Gap(id, expected) = pusher.handle_outcome(Outcome { id, fate }) {
                assert_eq!(outbox.note_gap(id.origin, expected), 5000);
                break;
            }
        }
        // The connection breaks while the empty transactions are on their way.
        for entry in written.drain(..) {
            outbox.handle_applied(entry.seq, &entry.body);
        }
    }
    assert_eq!(outbox.depth(), 0, "the changes behind the gap are committed");
    assert_eq!(outbox.note_gap(Origin([1; 16]), OriginCounter(2)), 0, "nothing is missing any more");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn bypassing_the_other_lane_changes_no_result(seed in any::<u64>(), count in 1_usize..40) {
        run(seed, count);
    }
}
