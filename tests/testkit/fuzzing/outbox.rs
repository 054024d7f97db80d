//! The outbox against a model list of transactions, and pushes from it against the order of that list.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::steps::{Steps, names};
use gravwell_model::codec::message::{Outcome, TxnOutcome};
use gravwell_model::codec::txn::decode_txn;
use gravwell_model::{Collection, EntryBody, Key, Origin, OriginCounter, OriginRow, Reason, Seq, Txn, TxnId};
use gravwell_protocol::blob_gate::BlobGate;
use gravwell_protocol::outbox::{Outbox, OverlayRead, ResolvedTxn};
use gravwell_protocol::push::{Next, PushReply, Pusher};

/// Pending and rejected transactions, oldest first, and the outcomes in the state.
#[derive(Default)]
struct Model {
    pending: Vec<Arc<Txn>>,
    rejected: Vec<TxnId>,
    rows: HashMap<Origin, OriginRow>,
    seq: Seq,
}

impl Model {
    fn row(&mut self, id: TxnId) -> &mut OriginRow {
        self.rows.entry(id.origin).or_default()
    }

    /// Returns the next counter of an origin.
    fn next(&self, id: TxnId) -> OriginCounter {
        let pending = self.pending.iter().filter(|txn| txn.id.origin == id.origin).map(|txn| txn.id.counter).max();
        let decided = self.rows.get(&id.origin).map(|row| row.last_counter);
        pending.max(decided).unwrap_or_default().next()
    }

    fn look_up(&self, name: &(Collection, Key)) -> OverlayRead {
        let ops = self.pending.iter().flat_map(|txn| &txn.ops);
        let last = ops.filter(|op| (op.collection(), op.key()) == (&name.0, &name.1)).last();
        match last.map(|op| op.value()) {
            None => OverlayRead::Untouched,
            Some(None) => OverlayRead::Deleted,
            Some(Some(value)) => OverlayRead::Put(value.clone()),
        }
    }

    /// Resolves the oldest pending transaction of an origin, or one that was created elsewhere.
    fn decide(&mut self, id: TxnId, steps: &mut Steps<'_>) -> EntryBody {
        self.seq = self.seq.next();
        let known = self.rows.get(&id.origin).map_or(OriginCounter(0), |row| row.last_counter);
        let oldest = self.pending.iter().find(|txn| txn.id.origin == id.origin && txn.id.counter > known);
        let decided = oldest.map_or_else(|| TxnId { counter: self.next(id), ..id }, |txn| txn.id);
        let txn = oldest.map(|txn| (**txn).clone());
        let reason = steps.one_in(3).then_some(Reason::IdentityReused);
        let seq = self.seq;
        self.row(decided).record(seq, decided.counter, OriginCounter(0), reason.clone());
        match (reason, txn) {
            (Some(reason), _) => EntryBody::Reject { id: decided, settled: OriginCounter(0), reason },
            (None, Some(txn)) => EntryBody::Commit(txn),
            (None, None) => EntryBody::Commit(steps.txn(decided, seq)),
        }
    }

    fn settle(&mut self, decided: &[ResolvedTxn]) {
        for decided in decided {
            let (id, rejected) = match decided {
                ResolvedTxn::Committed(id, _) => (*id, false),
                ResolvedTxn::Rejected(id, ..) => (*id, true),
            };
            let at = self.pending.iter().position(|txn| txn.id == id).expect("a resolved transaction was pending");
            self.pending.remove(at);
            self.rejected.extend(rejected.then_some(id));
            let row = self.rows.get(&id.origin).expect("the state has resolved it");
            assert_eq!(row.rejection(id.counter).is_some(), rejected, "{decided:?}");
        }
    }

    fn compare(&self, outbox: &Outbox) {
        assert!(outbox.pending().eq(&self.pending), "the same transactions in the same order");
        assert_eq!(outbox.depth(), self.pending.len());
        assert_eq!(outbox.pending_bytes(), self.pending.iter().map(|txn| txn.bytes_estimate()).sum::<usize>());
        let all: Vec<_> = names().map(|name| (self.look_up(&name), name)).collect();
        for (overlaid, (collection, key)) in &all {
            assert_eq!(outbox.look_up(collection, key), *overlaid, "{collection} {key}");
            for prefix in ["", key.as_str()] {
                let under = all.iter().filter(|(overlaid, (of, key))| {
                    of == collection && key.as_str().starts_with(prefix) && *overlaid != OverlayRead::Untouched
                });
                let mut wanted: Vec<_> = under.map(|(overlaid, (_, key))| (key.clone(), overlaid.clone())).collect();
                wanted.sort_by(|a, b| a.0.cmp(&b.0));
                assert_eq!(outbox.scan(collection, prefix), wanted, "{collection} {prefix}");
            }
        }
        let touched = all.iter().filter(|(overlaid, _)| *overlaid != OverlayRead::Untouched);
        let touched: BTreeSet<_> = touched.map(|(_, (collection, _))| collection).collect();
        assert!(outbox.collections().eq(touched), "the same collections");
        let mut rejected = self.rejected.clone();
        rejected.sort_unstable();
        assert!(outbox.rejected().keys().eq(&rejected), "the same rejections");
    }
}

/// Transactions are inserted, resolved by entries or by snapshot rows, removed after a rejection, and pushed.
pub fn run(bytes: &[u8]) {
    let mut steps = Steps::new(bytes);
    let (mut outbox, mut model) = (Outbox::default(), Model::default());
    let mut stream = Stream::default();
    while !steps.is_done() {
        let of = TxnId { origin: steps.origin(), counter: OriginCounter(0) };
        match steps.below(8) {
            0..3 => {
                let id = TxnId { counter: model.next(of), ..of };
                let txn = Arc::new(steps.txn(id, model.seq));
                outbox.insert(Arc::clone(&txn));
                model.pending.push(txn);
                assert_eq!(outbox.taken(id.origin), id.counter);
            }
            3 => {
                let body = model.decide(of, &mut steps);
                let decided = outbox.handle_applied(model.seq, &body);
                model.settle(decided.as_slice());
            }
            4 => {
                // A snapshot replaces many entries.
                for _ in 0..=steps.below(3) {
                    model.decide(of, &mut steps);
                }
                let row = model.row(of).clone();
                let decided = outbox.handle_row(of.origin, &row);
                model.settle(&decided);
            }
            5 => {
                if let Some(id) = model.rejected.pop() {
                    assert_eq!(outbox.take_rejected(id).map(|rejected| rejected.txn.id), Some(id));
                    assert_eq!(outbox.take_rejected(id), None);
                }
            }
            6 => stream.push(&outbox, &model),
            _ => stream.answer(&mut steps),
        }
        assert_eq!(outbox.depth(), model.pending.len());
        if steps.is_done() || steps.one_in(8) {
            model.compare(&outbox);
        }
    }
}

/// The datastore's view of a push stream.
#[derive(Default)]
struct Stream {
    pusher: Pusher,
    pushed: HashSet<TxnId>,
    unanswered: VecDeque<TxnId>,
}

impl Stream {
    fn push(&mut self, outbox: &Outbox, model: &Model) {
        let mut body = Vec::new();
        if !matches!(self.pusher.next(outbox, &BlobGate::default(), &mut body), Next::Send(_)) {
            let all = model.pending.iter().all(|txn| self.pushed.contains(&txn.id));
            return assert!(all || self.pusher.is_full(), "a pending transaction was not pushed");
        }
        let txn = decode_txn(&body).expect("a pushed transaction decodes");
        let place = model.pending.iter().position(|pending| **pending == txn).expect("a pushed transaction is pending");
        assert!(model.pending[..place].iter().all(|earlier| self.pushed.contains(&earlier.id)), "out of order");
        assert!(self.pushed.insert(txn.id), "pushed twice on one stream");
        self.unanswered.push_back(txn.id);
    }

    /// Answers the oldest transaction in flight; a refusal restarts the stream.
    fn answer(&mut self, steps: &mut Steps<'_>) {
        let Some(id) = self.unanswered.pop_front() else { return };
        let fate = match steps.below(4) {
            0 => TxnOutcome::Gap(id.counter),
            1 => TxnOutcome::Decided(Seq(1)),
            _ => TxnOutcome::Committed(Seq(1)),
        };
        match self.pusher.handle_outcome(Outcome { id, fate }) {
            PushReply::Pause(_) | PushReply::Gap(..) | PushReply::ChunksMissing(..) => *self = Stream::default(),
            PushReply::Acknowledged(of, _) | PushReply::Decided(of) | PushReply::Refused(of, _) => assert_eq!(of, id),
        }
    }
}
