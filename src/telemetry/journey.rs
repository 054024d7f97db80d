//! The journey of a transaction, at the level debug, that can be followed over all processes.
//!
//! Where it is made it is a span from the moment that it is durable there until it is in the state there; at the datastore, from
//! its receipt to its commit. Within its span a line is written for each step, and one when the span closes, with the time that
//! it took. Each names the transaction (`txn`, as ORIGIN/COUNTER, the same everywhere and for ever) and what happened (`step`):
//! submitted, pushed, received, committed or rejected, applied. From the commit on the sequence (`seq`) is there, too. As
//! long as nobody wants to see it, it costs one comparison.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::{Level, Span, debug, debug_span, enabled, field};

use crate::model::{Entry, EntryBody, MemberName, TxnId};

/// Target of these lines: `GRAVWELL_LOG=warn,gravwell::txn=debug` shows nothing else.
const TARGET: &str = "gravwell::txn";
/// Most spans that are open at a time; what is beyond has its lines, and a span for each.
const OPEN_MAX: usize = 65_536;

/// Where a span is: a webserver without a datastore is both.
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
    // The level was changed meanwhile: nobody closes them.
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

/// A transaction is durable where it was made.
pub fn submitted(id: TxnId) {
    if is_wanted() {
        let line = || debug!(target: TARGET, txn = name(id), step = "submitted", "transaction");
        begin(Side::Member, id).in_scope(line);
    }
}

/// A transaction was sent to the datastore, for the first time or again.
pub fn pushed(id: TxnId) {
    if is_wanted() {
        let line = || debug!(target: TARGET, txn = name(id), step = "pushed", "transaction");
        begin(Side::Member, id).in_scope(line);
    }
}

/// The datastore has a transaction before it.
pub fn received(id: TxnId, member: &MemberName) {
    if is_wanted() {
        let line = || debug!(target: TARGET, txn = name(id), step = "received", %member, "transaction");
        begin(Side::Datastore, id).in_scope(line);
    }
}

/// The datastore has made transactions durable.
pub fn committed(entries: &[Entry]) {
    decided(Side::Datastore, entries);
}

/// Transactions are in a replica's state.
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
