//! Receipts: the progress of a transaction for its writer, in three stages.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use gravwell_model::{Reason, Seq, TxnId};

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

    /// Notifies the holders of a receipt of the decision, and forgets the receipt.
    pub(super) fn settle(&self, id: TxnId, stage: Stage) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let Some(sender) = sender {
            sender.send_replace(stage);
        }
    }
}
