//! The journey of a transaction, as structured log lines at the level debug that can be followed over all processes.
//!
//! Each names the transaction (`txn`, as ORIGIN/COUNTER, the same everywhere and for ever) and what happened (`step`): submitted,
//! pushed, received, committed or rejected, applied. From the commit on the sequence (`seq`) is there, too.

use tracing::{Level, debug, enabled};

use crate::model::{Entry, EntryBody, MemberName, TxnId};

/// Target of these lines: `GRAVWELL_LOG=warn,gravwell::txn=debug` shows nothing else.
const TARGET: &str = "gravwell::txn";

fn name(id: TxnId) -> String {
    format!("{}/{}", id.origin, id.counter)
}

/// A transaction is durable where it was made.
pub fn submitted(id: TxnId) {
    if enabled!(target: TARGET, Level::DEBUG) {
        debug!(target: TARGET, txn = name(id), step = "submitted", "transaction");
    }
}

/// A transaction was sent to the datastore, for the first time or again.
pub fn pushed(id: TxnId) {
    if enabled!(target: TARGET, Level::DEBUG) {
        debug!(target: TARGET, txn = name(id), step = "pushed", "transaction");
    }
}

/// The datastore has a transaction before it.
pub fn received(id: TxnId, member: &MemberName) {
    if enabled!(target: TARGET, Level::DEBUG) {
        debug!(target: TARGET, txn = name(id), step = "received", %member, "transaction");
    }
}

/// The datastore has made transactions durable.
pub fn committed(entries: &[Entry]) {
    decided(entries, "committed");
}

/// Transactions are in a replica's state.
pub fn applied(entries: &[Entry]) {
    decided(entries, "applied");
}

fn decided(entries: &[Entry], step: &'static str) {
    if !enabled!(target: TARGET, Level::DEBUG) {
        return;
    }
    for entry in entries {
        match &entry.body {
            EntryBody::Commit(txn) => {
                debug!(target: TARGET, txn = name(txn.id), step, seq = entry.seq.0, "transaction");
            }
            EntryBody::Reject { id, reason, .. } => {
                let step = if step == "committed" { "rejected" } else { step };
                debug!(target: TARGET, txn = name(*id), step, seq = entry.seq.0, %reason, "transaction");
            }
            EntryBody::Unknown { .. } => {}
        }
    }
}
