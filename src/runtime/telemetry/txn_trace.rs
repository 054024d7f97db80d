//! Trace of a transaction at level debug, which can be followed over all processes.
//!
//! On the member that creates a transaction, its span lasts from the moment it is durable there until it is applied to
//! the state there; on the datastore, from receipt to commit. Within the span one line is logged per step, and one with
//! the duration when the span closes. Each line names the transaction (`txn`, as ORIGIN/COUNTER, globally unique) and the
//! event (`step`): submitted, pushed, received, committed or rejected, applied. From the commit on, lines also have the
//! sequence (`seq`). While disabled, this costs one comparison.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::{Level, Span, debug, debug_span, enabled, field};

use gravwell_model::{Entry, EntryBody, MemberName, TxnId};

/// Target of these lines: `GRAVWELL_LOG=warn,gravwell::txn=debug` enables only them.
const TARGET: &str = "gravwell::txn";
/// Maximum number of open spans; beyond it, every line has its own span.
const OPEN_MAX: usize = 65_536;

/// Side of a span; a webserver in standalone mode is both.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Member,
    Datastore,
}

static OPEN: Mutex<BTreeMap<(Side, TxnId), Span>> = Mutex::new(BTreeMap::new());
static IS_ANY_OPEN: AtomicBool = AtomicBool::new(false);

fn open() -> MutexGuard<'static, BTreeMap<(Side, TxnId), Span>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_wanted() -> bool {
    if enabled!(target: TARGET, Level::DEBUG) {
        return true;
    }
    // The level was changed, so the open spans would never be closed.
    if IS_ANY_OPEN.load(Ordering::Relaxed) && IS_ANY_OPEN.swap(false, Ordering::Relaxed) {
        open().clear();
    }
    false
}

fn name(id: TxnId) -> String {
    format!("{}/{}", id.origin, id.counter)
}

fn span_of(id: TxnId) -> Span {
    debug_span!(target: TARGET, "transaction", txn = name(id), seq = field::Empty)
}

fn begin(side: Side, id: TxnId) -> Span {
    let mut open = open();
    if let Some(span) = open.get(&(side, id)) {
        return span.clone();
    }
    let span = span_of(id);
    if open.len() < OPEN_MAX {
        open.insert((side, id), span.clone());
        IS_ANY_OPEN.store(true, Ordering::Relaxed);
    }
    span
}

fn end(side: Side, id: TxnId) -> Span {
    let known = open().remove(&(side, id));
    known.unwrap_or_else(|| span_of(id))
}

/// Logs that a transaction is durable on the member that created it.
pub fn submitted(id: TxnId) {
    if is_wanted() {
        let line = || debug!(target: TARGET, txn = name(id), step = "submitted", "transaction");
        begin(Side::Member, id).in_scope(line);
    }
}

/// Logs that a transaction was sent to the datastore, for the first time or again.
pub fn pushed(id: TxnId) {
    if is_wanted() {
        let line = || debug!(target: TARGET, txn = name(id), step = "pushed", "transaction");
        begin(Side::Member, id).in_scope(line);
    }
}

/// Logs that the datastore has received a transaction.
pub fn received(id: TxnId, member: &MemberName) {
    if is_wanted() {
        let line = || debug!(target: TARGET, txn = name(id), step = "received", %member, "transaction");
        begin(Side::Datastore, id).in_scope(line);
    }
}

/// Logs that the datastore has made transactions durable.
pub fn committed(entries: &[Entry]) {
    decided(Side::Datastore, entries);
}

/// Logs that transactions were applied to the state of a replica.
pub fn applied(entries: &[Entry]) {
    decided(Side::Member, entries);
}

fn decided(side: Side, entries: &[Entry]) {
    if !is_wanted() {
        return;
    }
    for entry in entries {
        let (id, reason) = match &entry.body {
            EntryBody::Commit(txn) | EntryBody::Redacted { txn, .. } => (txn.id, None),
            EntryBody::Reject { id, reason, .. } => (*id, Some(reason)),
            EntryBody::Unknown { .. } => continue,
        };
        let (span, seq) = (end(side, id), entry.seq.0);
        span.record("seq", seq);
        let step = match (side, reason) {
            (Side::Member, _) => "applied",
            (Side::Datastore, None) => "committed",
            (Side::Datastore, Some(_)) => "rejected",
        };
        span.in_scope(|| match reason {
            None => debug!(target: TARGET, txn = name(id), step, seq, "transaction"),
            Some(reason) => debug!(target: TARGET, txn = name(id), step, seq, %reason, "transaction"),
        });
    }
}
