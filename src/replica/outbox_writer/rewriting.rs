//! Rewriting the outbox journal, for an exchange of the outbox or when most of it is resolved, and completing it.

use crate::outbox_records::{frames_of, sequences};
use crate::shared::Change;
use gravwell_log::journal::JournalError;
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::{Seq, TxnId};
use gravwell_protocol::fatal::Fatal;
use gravwell_protocol::outbox::Outbox;

use super::{OutboxWriter, Own, Request};

impl OutboxWriter {
    /// Writes the new outbox to the journal. After a crash before the state is exchanged, pending transactions are
    /// still there under the former state, and the exchange is repeated. The inner error, as on a full disk, means that
    /// the journal is unchanged.
    pub(super) fn prepare(&mut self, outbox: &Outbox) -> Result<Result<(), String>, Fatal> {
        if fault_injection::is(Bug::PreparedTooLate) {
            return Ok(Ok(()));
        }
        // The state to which its sequences belong is not in place yet. They are recorded once it is.
        let written = self.replace(frames_of(outbox, None))?;
        self.holds_prepared |= written.is_ok();
        Ok(written.map_err(|error| error.to_string()))
    }

    /// Restores the present outbox in a journal that holds a prepared one, because the state was not exchanged. If
    /// there is no room, that is tried again before anything else is written.
    pub(crate) fn take_back(&mut self) -> Result<(), Fatal> {
        if fault_injection::is(Bug::TakeBackForgotten) {
            self.holds_prepared = false;
        }
        if let Err(error) = self.written_back()? {
            tracing::error!(%error, "failed to restore the outbox journal; rejecting writes until it succeeds");
        }
        Ok(())
    }

    /// Like [`OutboxWriter::take_back`]. After an error nothing may be appended: transactions are numbered for the
    /// present outbox, and a start would read them behind the prepared one.
    pub(super) fn written_back(&mut self) -> Result<Result<(), JournalError>, Fatal> {
        if self.holds_prepared { self.write_present() } else { Ok(Ok(())) }
    }

    /// Replaces the contents of the journal by the present outbox.
    fn write_present(&mut self) -> Result<Result<(), JournalError>, Fatal> {
        let exact: Vec<(TxnId, Seq)> = self.shared.outbox().exact_sequences().collect();
        let recorded: Vec<TxnId> = exact.iter().map(|(id, _)| *id).collect();
        let sequences = sequences(self.shared.state().meta().as_deref(), exact);
        let frames = frames_of(&self.shared.outbox(), sequences);
        let written = self.replace(frames)?;
        if written.is_ok() {
            self.holds_prepared = false;
            self.shared.outbox_mut().note_recorded(recorded);
        }
        Ok(written)
    }

    /// Replaces the contents of the journal. The inner error means that the former ones are still in place.
    fn replace(&mut self, frames: impl Iterator<Item = (u8, Vec<u8>)>) -> Result<Result<(), JournalError>, Fatal> {
        let Err(error) = self.journal.replace_with(frames) else { return Ok(Ok(())) };
        // Fails if it is unknown which contents are in place.
        self.journal.sync().map_err(Fatal::of("cannot write the outbox journal"))?;
        Ok(Err(error))
    }

    /// Replaces the outbox in memory. Counters assigned so far belong to another history. Transactions that the new log
    /// has already decided leave the outbox, as at a start.
    pub(super) fn install(&mut self, outbox: Outbox, shared_to: Seq) -> Result<(), Fatal> {
        if fault_injection::is(Bug::PreparedTooLate) {
            let _ = self.journal.replace_with(frames_of(&outbox, None));
        }
        self.shared.receipts.follow(&outbox);
        *self.shared.outbox_mut() = outbox;
        (self.express, self.bulk) = (Own::default(), Own::default());
        self.last.clear();
        self.unwritten.clear();
        self.holds_prepared = false;
        self.shared.histories.leave(shared_to);
        self.shared.notify_outbox_changed();
        // Who has read everything again since the state was replaced has seen it with the former outbox.
        let seq = self.shared.state().meta().map_or(Seq::ZERO, |meta| meta.seq);
        let _ = self.shared.changes.send(Change::Replaced { seq });
        let to_note = self.shared.resolve_by(&self.shared.state());
        if to_note.is_empty() { Ok(()) } else { self.handle(vec![Request::Note(to_note)]) }
    }

    pub(crate) fn rewrite_if_worth_it(&mut self, bytes_min: u64) {
        let live: u64 = {
            let outbox = self.shared.outbox();
            (outbox.pending_bytes() + outbox.retained_bytes() + outbox.rejected_bytes()) as u64
        };
        if self.journal.bytes() < bytes_min.max(live.saturating_mul(4)) {
            return;
        }
        // Transactions missing from the new journal were decided by the state, which may be in memory only. Otherwise a
        // power cut would hide an accepted transaction until the datastore is reachable again.
        if !fault_injection::is(Bug::RewriteBeforePersist)
            && let Err(error) = self.shared.state().persist()
        {
            tracing::warn!(%error, "failed to persist the state; outbox journal not rewritten");
            return;
        }
        let failed = "failed to rewrite the outbox journal";
        match self.write_present() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "{failed}; keeping the present one"),
            Err(failure) => tracing::error!(%failure, "{failed}; the next write stops the process"),
        }
    }

    /// Adds a record of the sequences that are not in the journal. Returns the transactions that have them.
    pub(super) fn add_sequences(&self, frames: &mut Vec<(u8, Vec<u8>)>) -> Vec<TxnId> {
        let unrecorded: Vec<(TxnId, Seq)> =
            self.shared.outbox().unrecorded_sequences().iter().map(|(id, seq)| (*id, *seq)).collect();
        let ids = unrecorded.iter().map(|(id, _)| *id).collect();
        let Some(record) = sequences(self.shared.state().meta().as_deref(), unrecorded) else { return Vec::new() };
        frames.push(record);
        ids
    }

    /// Records the sequences that are not in the journal, and makes the journal's head durably vouch for all records.
    pub(crate) fn complete(&mut self) -> Result<(), Fatal> {
        let mut frames = Vec::new();
        let recorded = self.add_sequences(&mut frames);
        // The last space of a disk is for rejections and deletes.
        if !frames.is_empty() && !self.shared.disk.is_full() {
            match self.write(&frames)? {
                Ok(()) => self.shared.outbox_mut().note_recorded(recorded),
                Err(error) => tracing::debug!(%error, "failed to record sequences of committed transactions"),
            }
        }
        self.journal.vouch();
        Ok(())
    }
}
