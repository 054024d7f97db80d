//! Sequences of kept transactions. The outbox journal records them, because after a restart the row of an origin shows
//! only the sequence of its last transaction.

use std::collections::BTreeMap;

use gravwell_model::{Seq, TxnId};

use super::Outbox;

impl Outbox {
    /// Returns the kept transactions of which the sequence is exact, with that sequence.
    pub fn exact_sequences(&self) -> impl Iterator<Item = (TxnId, Seq)> {
        self.kept.iter().filter(|kept| kept.learnt.is_exact()).map(|kept| (kept.txn.id, kept.seq))
    }

    /// Returns the exact sequences that are not known to be in the journal.
    #[must_use]
    pub fn unrecorded_sequences(&self) -> &BTreeMap<TxnId, Seq> {
        self.kept.unrecorded()
    }

    /// Records that these sequences are in the journal.
    pub fn note_recorded(&mut self, recorded: impl IntoIterator<Item = TxnId>) {
        self.kept.note_recorded(recorded);
    }

    /// Takes the sequences of kept transactions from the journal, where the row of the origin gave only an upper limit.
    pub fn take_recorded(&mut self, recorded: impl Fn(TxnId) -> Option<Seq>) {
        self.kept.take_recorded(recorded);
    }
}
