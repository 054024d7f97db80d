//! Receipts: the progress of a transaction for its writer, in three stages.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use gravwell_model::{Reason, Seq, TxnId};
use gravwell_protocol::outbox::Outbox;

/// Progress of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Durable in the local outbox; it will be pushed until it is decided.
    Durable,
    /// Committed and durable at the datastore, at this sequence. (For a transaction whose answer was lost and which is
    /// recognised later, a sequence at or after its commit.)
    Acknowledged(Seq),
    /// Not committed, at this sequence, for this reason. It is kept on the rejected list.
    Rejected(Seq, Reason),
}

impl Stage {
    /// Returns whether no further stage will follow.
    #[must_use]
    pub fn is_final(&self) -> bool {
        !matches!(self, Stage::Durable)
    }
}

/// A writer's view of one transaction.
#[derive(Clone, Debug)]
pub struct Receipt {
    id: TxnId,
    stage: watch::Receiver<Stage>,
}

impl Receipt {
    /// Returns the identity of the transaction.
    #[must_use]
    pub fn id(&self) -> TxnId {
        self.id
    }

    /// Returns the present stage.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.stage.borrow().clone()
    }

    /// Waits until the datastore has decided: [`Stage::Acknowledged`] or [`Stage::Rejected`]. Returns
    /// [`Stage::Durable`] if `timeout` expired first, as it does while the replica is disconnected, or if the replica
    /// was closed: the transaction is safe and will be pushed.
    pub async fn decided(&mut self, timeout: Duration) -> Stage {
        match tokio::time::timeout(timeout, self.stage.wait_for(Stage::is_final)).await {
            Ok(Ok(stage)) => stage.clone(),
            _ => Stage::Durable,
        }
    }
}

/// The receipts that wait for a decision.
#[derive(Debug, Default)]
pub(super) struct Receipts(Mutex<HashMap<TxnId, watch::Sender<Stage>>>);

impl Receipts {
    /// Creates the receipt of a transaction that is durable locally.
    pub(super) fn issue(&self, id: TxnId) -> Receipt {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = waiting.entry(id).or_insert_with(|| watch::channel(Stage::Durable).0);
        Receipt { id, stage: sender.subscribe() }
    }

    /// Creates the receipt of a transaction that is pending under another identity now.
    pub(super) fn issue_as(&self, id: TxnId, now: TxnId) -> Receipt {
        Receipt { id, ..self.issue(now) }
    }

    /// Returns a receipt that is final from the start.
    pub(super) fn decided(id: TxnId, stage: Stage) -> Receipt {
        Receipt { id, stage: watch::channel(stage).1 }
    }

    /// Follows transactions to the identities that they have in the outbox of another history. Holders of receipts learn
    /// which of them are on the rejected list there.
    pub(super) fn follow(&self, outbox: &Outbox) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pending: HashSet<TxnId> = outbox.pending().map(|txn| txn.id).collect();
        for id in waiting.keys().copied().collect::<Vec<_>>() {
            let now = outbox.present_identity(id).unwrap_or(id);
            let rejected = outbox.rejected().get(&now);
            let is_moved = now != id && pending.contains(&now);
            if rejected.is_none() && !is_moved {
                continue;
            }
            let Some(sender) = waiting.remove(&id) else { continue };
            match rejected {
                Some(rejected) => drop(sender.send_replace(Stage::Rejected(rejected.seq, rejected.reason.clone()))),
                None => drop(waiting.insert(now, sender)),
            }
        }
    }

    /// Notifies the holders of a receipt of the decision, and forgets the receipt.
    pub(super) fn settle(&self, id: TxnId, stage: Stage) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let Some(sender) = sender {
            sender.send_replace(stage);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use gravwell_model::{Collection, Key, Op, Origin, OriginCounter, Txn};
    use gravwell_protocol::outbox::RejectedTxn;

    use super::*;

    fn id(origin: u8, counter: u64) -> TxnId {
        TxnId { origin: Origin([origin; 16]), counter: OriginCounter(counter) }
    }

    fn txn(id: TxnId) -> Arc<Txn> {
        let (collection, key) = (Collection::new("c").expect("name"), Key::new("k").expect("key"));
        let (settled, note) = (OriginCounter(0), Default::default());
        let ops = vec![Op::Delete { collection, key }];
        Arc::new(Txn { id, settled, time_ms: 0, note, conditions: vec![], ops })
    }

    #[test]
    fn p07_who_waits_for_a_decision_learns_of_it_when_a_transaction_has_another_identity() {
        let (moved, listed, same) = (id(1, 1), id(1, 2), id(2, 1));
        let (receipts, mut outbox) = (Receipts::default(), Outbox::default());
        let issued = [moved, listed, same].map(|id| receipts.issue(id));
        outbox.insert(txn(id(7, 1)));
        outbox.note_retried(moved, id(7, 1));
        let reason = Reason::IdentityReused;
        outbox.restore_rejected(RejectedTxn { txn: txn(id(8, 1)), seq: Seq::ZERO, reason });
        outbox.note_retried(listed, id(8, 1));
        outbox.insert(txn(same));
        receipts.follow(&outbox);
        receipts.settle(id(7, 1), Stage::Acknowledged(Seq(5)));
        receipts.settle(same, Stage::Acknowledged(Seq(6)));
        assert_eq!(issued[0].stage(), Stage::Acknowledged(Seq(5)));
        assert!(matches!(issued[1].stage(), Stage::Rejected(..)), "{:?}", issued[1].stage());
        assert_eq!(issued[2].stage(), Stage::Acknowledged(Seq(6)));
    }
}
