//! Pushing an outbox: pipelined within a window, each [lane](super::lanes) in order, again and again until the state has
//! decided.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use crate::codec::content::names_chunks;
use crate::codec::message::{Fate, Kind, Outcome, RefusalCode};
use crate::codec::txn::encode_settled;
use crate::model::{OriginCounter, Reason, Seq, Txn, TxnId};
use crate::planted::{self, Bug};
use crate::telemetry;

use super::gate::{Gate, Passage};
use super::outbox::{Outbox, Place};

/// Most transactions and bytes sent but not answered.
const WINDOW_TXNS: usize = 4096;
const WINDOW_BYTES: usize = 8 << 20;

/// One push stream, from its first transaction to the answer that ends it.
#[derive(Debug, Default)]
pub struct Pusher {
    /// The last one that was sent of the express lane, and of the bulk lane.
    sent: Option<Place>,
    sent_bulk: Option<Place>,
    sizes: VecDeque<usize>,
    bytes: usize,
    /// Committed ones that went out again before what was made upon them.
    reminded: HashSet<TxnId>,
}

/// What an answer means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Committed and durable at the datastore; the outbox keeps it until the state has it, too.
    Acknowledged(TxnId, Seq),
    /// Refused for good, and the log does not know of it: put it on the rejected list.
    Refused(TxnId, Reason),
    /// Decided: the tail or a snapshot brings the decision, with the reason, in its place.
    Decided(TxnId),
    /// Not taken: give this stream up, pause, and begin again with the oldest transaction.
    Pause(String),
    /// Not taken, because chunks that it names are not at the datastore: tell the gate, then as [`Heard::Pause`].
    ChunksMissing(TxnId, String),
}

/// What to do for the next transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// There is none that may go, or the window is full.
    Nothing,
    /// Send it as a message of this kind; it is in the given buffer.
    Send(Kind),
}

/// One of the bulk lane that may go.
struct Bulk<'a> {
    place: Place,
    txn: &'a Arc<Txn>,
    kind: Kind,
}

/// The first pending transaction that waits at the gate: see to it that its chunks are sent.
#[must_use]
pub fn first_held(outbox: &Outbox, gate: &Gate) -> Option<Arc<Txn>> {
    let mut waiting = outbox.bulk_after(None).map(|(_, txn)| txn);
    waiting.find(|txn| gate.passage(txn) == Passage::Held).cloned()
}

impl Pusher {
    /// Whether nothing more may be sent before an answer comes.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.sizes.len() >= WINDOW_TXNS || self.bytes >= WINDOW_BYTES
    }

    /// Encodes the next transaction to send into `body`.
    pub fn next(&mut self, outbox: &Outbox, gate: &Gate, body: &mut Vec<u8>) -> Next {
        if self.is_full() {
            return Next::Nothing;
        }
        if planted::is(Bug::SkipFirstPending) && self.sent.is_none() && outbox.depth() > 1 {
            self.sent = outbox.next_express(None).map(|(place, _)| place);
        }
        let express = outbox.next_express(self.sent);
        let bulk = self.next_bulk(outbox, gate).filter(|bulk| express.is_none_or(|(place, _)| bulk.place < place));
        let first = bulk.as_ref().map(|bulk| bulk.txn).or(express.map(|(_, txn)| txn));
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
        telemetry::journey::pushed(txn.id);
        self.encode(txn, outbox.settled_before(txn), body);
        Next::Send(kind)
    }

    fn encode(&mut self, txn: &Txn, settled: OriginCounter, body: &mut Vec<u8>) {
        body.clear();
        encode_settled(txn, settled, body);
        self.sizes.push_back(body.len());
        self.bytes += body.len();
    }

    /// A committed transaction that `txn` was made upon, and of which the datastore may not know what it wrote: it is told first,
    /// and answers that this was decided. One that names chunks would have to wait for them.
    fn to_remind_of<'a>(&self, outbox: &'a Outbox, txn: &Txn) -> Option<&'a Arc<Txn>> {
        let mut unseen = outbox.unseen_before(txn);
        unseen.find(|former| !self.reminded.contains(&former.id) && !names_chunks(&former.ops))
    }

    /// The next of the bulk lane, if it may go: its chunks are at the datastore, and everything of the express lane before it
    /// is decided.
    fn next_bulk<'a>(&self, outbox: &'a Outbox, gate: &Gate) -> Option<Bulk<'a>> {
        let (place, txn) = outbox.bulk_after(self.sent_bulk).next()?;
        let kind = match gate.passage(txn) {
            Passage::Held => return None,
            Passage::Open => Kind::Push,
            Passage::Forsaken => Kind::PushForsaken,
        };
        let is_first = outbox.next_express(None).is_none_or(|(earliest, _)| place < earliest);
        is_first.then_some(Bulk { place, txn, kind })
    }

    /// Takes in the answer to the oldest transaction under way.
    pub fn handle_outcome(&mut self, outcome: Outcome) -> Heard {
        self.bytes -= self.sizes.pop_front().unwrap_or_default();
        match outcome.fate {
            Fate::Committed(seq) => Heard::Acknowledged(outcome.id, seq),
            Fate::Rejected(_, reason @ (Reason::IdentityReused | Reason::Forbidden { .. })) => {
                Heard::Refused(outcome.id, reason)
            }
            Fate::Rejected(..) | Fate::Decided(_) | Fate::Queued => Heard::Decided(outcome.id),
            Fate::Gap(expected) => {
                Heard::Pause(format!("transaction {} came out of order: expected {expected}", outcome.id.counter))
            }
            Fate::Deferred(refused) if refused.code == RefusalCode::ChunksMissing => {
                Heard::ChunksMissing(outcome.id, refused.message)
            }
            Fate::Deferred(refused) => Heard::Pause(refused.message),
        }
    }
}
