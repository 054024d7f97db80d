//! A batch of requests to the outbox: checked, then made durable with one sync, then published and answered.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::oneshot;

use gravwell_log::journal::JournalError;
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::{OriginCounter, Txn, TxnId};
use gravwell_protocol::fatal::Fatal;
use gravwell_protocol::outbox::{Outbox, RejectedTxn, touched};
use gravwell_runtime::telemetry;

use super::{Draft, OutboxWriter, Request, Resubmission, Staged, SubmitError};
use crate::outbox_records::{KIND_CLOSED, KIND_REJECTED, KIND_RETRY, KIND_TXN, RejectedV1, encoded, retry, to_bytes};
use crate::receipts::Receipt;
use crate::shared::Change;

type Answer<T> = oneshot::Sender<Result<T, SubmitError>>;

/// Requests that are made durable together.
#[derive(Default)]
pub(super) struct Batch {
    frames: Vec<(u8, Vec<u8>)>,
    /// New transactions, each with the rejected one that it replaces.
    accepted: Vec<(Arc<Txn>, Option<TxnId>, Answer<Receipt>)>,
    noted: Vec<RejectedV1>,
    closed: Vec<(TxnId, Answer<()>)>,
    /// Submissions of a transaction that is in this batch already.
    twins: Vec<(TxnId, Answer<Receipt>)>,
    /// Rejections that a request of this batch has dealt with.
    dealt_with: HashSet<TxnId>,
    /// The new transactions: conditions see those before them in the same batch.
    staged: Outbox,
    /// Transactions of which it records the sequences.
    recorded: Vec<TxnId>,
}

enum Reply {
    Accepted(Receipt, Answer<Receipt>),
    Closed(Answer<()>),
}

impl OutboxWriter {
    /// Checks requests. Those that are refused are answered here.
    pub(super) fn stage_batch(&mut self, requests: Vec<Request>) -> Batch {
        // Rejections that could not be written before go first: `settled` covers all rejections up to a counter.
        let mut batch = Batch { noted: std::mem::take(&mut self.unwritten), ..Batch::default() };
        batch.frames.extend(batch.noted.iter().map(|note| (KIND_REJECTED, to_bytes(note))));
        for request in requests {
            match request {
                Request::Submit(draft, reply) => {
                    let staged = self.stage_within(draft, &mut batch.staged);
                    batch.add(staged, None, reply);
                }
                // Taken after the batch.
                Request::Exchange(_) => {}
                // Recorded with the next transaction, or soon: not worth a sync of its own for each.
                Request::Committed => {}
                Request::Note(rejections) => self.stage_notes(rejections, &mut batch),
                Request::Dismiss(id, reply) => {
                    if self.shared.outbox().rejected().contains_key(&id) && batch.dealt_with.insert(id) {
                        batch.frames.push((KIND_CLOSED, to_bytes(&id)));
                        batch.closed.push((id, reply));
                    } else {
                        let _ = reply.send(Err(SubmitError::NotRejected(id)));
                    }
                }
                Request::Retry(id, again, reply) => self.stage_retry(id, again, reply, &mut batch),
            }
        }
        batch
    }

    fn stage_notes(&mut self, rejections: Vec<RejectedTxn>, batch: &mut Batch) {
        for RejectedTxn { txn, seq, reason } in rejections {
            self.forsake(txn.id, seq, &reason);
            let note = RejectedV1 { id: txn.id, seq, reason };
            batch.frames.push((KIND_REJECTED, to_bytes(&note)));
            batch.noted.push(note);
        }
    }

    fn stage_retry(&mut self, id: TxnId, again: Resubmission, reply: Answer<Receipt>, batch: &mut Batch) {
        let found = self.shared.outbox().rejected().get(&id).map(|rejected| Arc::clone(&rejected.txn));
        let Some(old) = found.filter(|_| !batch.dealt_with.contains(&id)) else {
            let _ = reply.send(Err(SubmitError::NotRejected(id)));
            return;
        };
        // A transaction that this one depends on may be retried in the same batch.
        let conditions = batch.staged.upon_retried(&again.conditions(&old.conditions));
        let draft = Draft {
            ops: old.ops.clone(),
            conditions: conditions
                .iter()
                .map(|condition| self.shared.histories.raised(condition, &again.upon, again.seen_in))
                .collect(),
            note: again.note.unwrap_or_else(|| old.note.clone()),
            ..Draft::default()
        };
        let staged = self.stage(draft, &mut batch.staged);
        batch.add(staged, Some(id), reply);
    }

    /// Makes a batch durable. Returns `None` if there is nothing to publish: it has no effect, or could not be written
    /// and was refused.
    pub(super) fn write_batch(&mut self, mut batch: Batch) -> Result<Option<Batch>, Fatal> {
        if batch.frames.is_empty() {
            return Ok(None);
        }
        batch.recorded = self.add_sequences(&mut batch.frames);
        match self.write(&batch.frames)? {
            Ok(()) => Ok(Some(batch)),
            Err(error) => {
                self.refuse_unwritten(batch, &error);
                Ok(None)
            }
        }
    }

    /// Releases the counters of transactions that could not be written.
    fn refuse_unwritten(&mut self, batch: Batch, error: &JournalError) {
        for (txn, ..) in batch.accepted.iter().rev() {
            self.last.insert(txn.id.origin, OriginCounter(txn.id.counter.0 - 1));
        }
        tracing::error!(%error, "failed to write the outbox journal");
        if !fault_injection::is(Bug::ForgetUnwritten) {
            self.unwritten = batch.noted;
        }
        let error = SubmitError::Disk(error.to_string());
        batch.accepted.into_iter().for_each(|(_, _, reply)| drop(reply.send(Err(error.clone()))));
        batch.twins.into_iter().for_each(|(_, reply)| drop(reply.send(Err(error.clone()))));
        batch.closed.into_iter().for_each(|(_, reply)| drop(reply.send(Err(error.clone()))));
    }

    /// Makes a durable batch visible, and answers its requests.
    pub(super) fn publish(&mut self, batch: Batch) {
        let Batch { accepted, noted, closed, twins, recorded, .. } = batch;
        for own in [&mut self.express, &mut self.bulk] {
            let noted =
                noted.iter().filter(|note| Some(note.id.origin) == own.origin).map(|note| note.id.counter).max();
            own.settled = own.settled.max(noted.unwrap_or_default());
        }
        let mut replies = Vec::new();
        let mut changes = Vec::new();
        {
            let mut outbox = self.shared.outbox_mut();
            outbox.note_recorded(recorded);
            noted.iter().for_each(|note| outbox.note_written(note.id));
            for (id, reply) in closed {
                outbox.take_rejected(id);
                replies.push(Reply::Closed(reply));
            }
            for (txn, replaces, reply) in accepted {
                if let Some(id) = replaces {
                    outbox.note_retried(id, txn.id);
                }
                changes.extend(touched(&txn).map(|(collection, key)| (collection.clone(), key.clone())));
                let receipt = self.shared.receipts.issue(txn.id);
                telemetry::txn_trace::submitted(txn.id);
                outbox.insert(txn);
                replies.push(Reply::Accepted(receipt, reply));
            }
            replies.extend(twins.into_iter().map(|(id, reply)| Reply::Accepted(self.shared.receipts.issue(id), reply)));
        }
        self.shared.notify_outbox_changed();
        for (collection, key) in changes {
            let _ = self.shared.changes.send(Change::Overlay { collection, key });
        }
        for reply in replies {
            match reply {
                Reply::Closed(reply) => drop(reply.send(Ok(()))),
                Reply::Accepted(receipt, reply) => drop(reply.send(Ok(receipt))),
            }
        }
    }
}

impl Batch {
    /// Adds a submission, in place of a rejected transaction if it is a retry.
    fn add(&mut self, staged: Result<Staged, SubmitError>, replaces: Option<TxnId>, reply: Answer<Receipt>) {
        match staged {
            Ok(Staged::New(txn)) => {
                match replaces {
                    Some(id) => {
                        self.dealt_with.insert(id);
                        self.staged.note_retried(id, txn.id);
                        self.frames.push((KIND_RETRY, retry(id, &txn)));
                    }
                    None => self.frames.push((KIND_TXN, encoded(&txn))),
                }
                self.accepted.push((txn, replaces, reply));
            }
            Ok(Staged::Known(receipt)) => drop(reply.send(Ok(receipt))),
            Ok(Staged::Twin(id)) => self.twins.push((id, reply)),
            Err(error) => drop(reply.send(Err(error))),
        }
    }
}
