//! Pushing of an outbox: pipelined within a window, each [lane](super::lanes) in order, repeated until the state has
//! resolved the transactions.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use gravwell_model::codec::blob_manifest::references_chunks;
use gravwell_model::codec::message::{Kind, Outcome, RefusalCode, TxnOutcome};
use gravwell_model::codec::txn::encode_settled;
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::{Origin, OriginCounter, Reason, Seq, Txn, TxnId};

use super::blob_gate::{BlobGate, Passage};
use super::outbox::{Outbox, QueuePosition};

/// Limits of the number and size of transactions that are sent but not answered.
const WINDOW_TXNS: usize = 4096;
const WINDOW_BYTES: usize = 8 << 20;

/// One push stream, from its first transaction to the reply that ends it.
#[derive(Debug, Default)]
pub struct Pusher {
    /// The last transaction sent in the express lane, and in the bulk lane.
    sent: Option<QueuePosition>,
    sent_bulk: Option<QueuePosition>,
    /// The transaction of the last message, unless it fills a gap or repeats one that is committed.
    latest: Option<TxnId>,
    sizes: VecDeque<usize>,
    bytes: usize,
    /// Committed transactions that were sent again before transactions that depend on them.
    reminded: HashSet<TxnId>,
    /// Counters up to which empty transactions were sent, for origins with a gap.
    filled: HashMap<Origin, OriginCounter>,
}

/// Meaning of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushReply {
    /// Committed and durable at the datastore. The outbox keeps it until the state has it as well.
    Acknowledged(TxnId, Seq),
    /// Rejected permanently without a record in the log: put it on the rejected list.
    Refused(TxnId, Reason),
    /// Resolved. The outcome and its reason arrive with the tail or a snapshot.
    Decided(TxnId),
    /// Not accepted: close this stream, wait, and restart with the oldest transaction.
    Pause(String),
    /// Not accepted, because the datastore expects this counter: notify the outbox, then proceed as for [`PushReply::Pause`].
    Gap(TxnId, OriginCounter),
    /// Not accepted, because the datastore lacks chunks that it references: notify the gate, then proceed as for [`PushReply::Pause`].
    ChunksMissing(TxnId, String),
}

impl PushReply {
    /// Returns whether the stream has to be closed for a while, because a transaction was not accepted.
    #[must_use]
    pub fn pauses(&self) -> bool {
        match self {
            PushReply::Pause(_) | PushReply::Gap(..) | PushReply::ChunksMissing(..) => true,
            PushReply::Acknowledged(..) | PushReply::Refused(..) | PushReply::Decided(_) => false,
        }
    }
}

/// Action for the next transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// No transaction may be sent, or the window is full.
    Nothing,
    /// Send the transaction in the given buffer as a message of this kind.
    Send(Kind),
}

/// A bulk transaction that may be sent.
struct Bulk<'a> {
    place: QueuePosition,
    txn: &'a Arc<Txn>,
    kind: Kind,
}

/// Returns the first pending transaction that waits at the gate. The caller sends its chunks.
#[must_use]
pub fn first_held(outbox: &Outbox, gate: &BlobGate) -> Option<Arc<Txn>> {
    let mut waiting = outbox.bulk_after(None).map(|(_, txn)| txn);
    waiting.find(|txn| gate.passage(txn) == Passage::Held).cloned()
}

impl Pusher {
    /// Returns whether the window is full until the next reply.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.sizes.len() >= WINDOW_TXNS || self.bytes >= WINDOW_BYTES
    }

    /// Returns the pending transaction that the last call of [`Pusher::next`] returned, for traces.
    #[must_use]
    pub fn latest(&self) -> Option<TxnId> {
        self.latest
    }

    /// Encodes the next transaction to send into `body`.
    pub fn next(&mut self, outbox: &Outbox, gate: &BlobGate, body: &mut Vec<u8>) -> Next {
        self.latest = None;
        if self.is_full() {
            return Next::Nothing;
        }
        if fault_injection::is(Bug::SkipFirstPending) && self.sent.is_none() && outbox.depth() > 1 {
            self.sent = outbox.next_express(None).map(|(place, _)| place);
        }
        let express = outbox.next_express(self.sent);
        let bulk = self.next_bulk(outbox, gate).filter(|bulk| express.is_none_or(|(place, _)| bulk.place < place));
        let first = bulk.as_ref().map(|bulk| bulk.txn).or(express.map(|(_, txn)| txn));
        if let Some(missing) = first.and_then(|txn| outbox.gap_before(txn, self.filled.get(&txn.id.origin).copied())) {
            self.filled.insert(missing.id.origin, missing.id.counter);
            self.encode(&missing, missing.settled, body);
            return Next::Send(Kind::Push);
        }
        if let Some(former) = first.and_then(|txn| self.to_remind_of(outbox, txn)) {
            self.reminded.insert(former.id);
            self.encode(former, former.settled, body);
            return Next::Send(Kind::Push);
        }
        let (txn, kind) = match (bulk, express) {
            (Some(Bulk { place, txn, kind }), _) => {
                self.sent_bulk = Some(place);
                (txn, kind)
            }
            (None, Some((place, txn))) => {
                self.sent = Some(place);
                (txn, Kind::Push)
            }
            (None, None) => return Next::Nothing,
        };
        self.latest = Some(txn.id);
        self.encode(txn, outbox.settled_before(txn), body);
        Next::Send(kind)
    }

    fn encode(&mut self, txn: &Txn, settled: OriginCounter, body: &mut Vec<u8>) {
        body.clear();
        encode_settled(txn, settled, body);
        self.sizes.push_back(body.len());
        self.bytes += body.len();
    }

    /// Returns a committed transaction on which `txn` depends and whose writes the datastore may not know. It is sent
    /// first; the datastore replies that it is resolved. Transactions that reference chunks are excluded, because they
    /// would have to wait for these.
    fn to_remind_of<'a>(&self, outbox: &'a Outbox, txn: &Txn) -> Option<&'a Arc<Txn>> {
        let mut unseen = outbox.unseen_before(txn);
        unseen.find(|former| !self.reminded.contains(&former.id) && !references_chunks(&former.ops))
    }

    /// Returns the next bulk transaction if it may be sent: its chunks are at the datastore, and all express
    /// transactions before it are resolved.
    fn next_bulk<'a>(&self, outbox: &'a Outbox, gate: &BlobGate) -> Option<Bulk<'a>> {
        let (place, txn) = outbox.bulk_after(self.sent_bulk).next()?;
        let kind = match gate.passage(txn) {
            Passage::Held => return None,
            Passage::Open => Kind::Push,
            Passage::Forsaken => Kind::PushLostBlobs,
        };
        let is_first = outbox.next_express(None).is_none_or(|(earliest, _)| place < earliest);
        is_first.then_some(Bulk { place, txn, kind })
    }

    /// Handles the reply to the oldest transaction in flight.
    pub fn handle_outcome(&mut self, outcome: Outcome) -> PushReply {
        self.bytes -= self.sizes.pop_front().unwrap_or_default();
        match outcome.fate {
            TxnOutcome::Committed(seq) => PushReply::Acknowledged(outcome.id, seq),
            TxnOutcome::Rejected(_, reason @ (Reason::IdentityReused | Reason::Forbidden { .. })) => {
                PushReply::Refused(outcome.id, reason)
            }
            TxnOutcome::Rejected(..) | TxnOutcome::Decided(_) | TxnOutcome::Queued => PushReply::Decided(outcome.id),
            TxnOutcome::Gap(expected) => PushReply::Gap(outcome.id, expected),
            TxnOutcome::Deferred(refused) if refused.code == RefusalCode::ChunksMissing => {
                PushReply::ChunksMissing(outcome.id, refused.message)
            }
            TxnOutcome::Deferred(refused) => PushReply::Pause(refused.message),
        }
    }
}
