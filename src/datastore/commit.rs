//! The commit thread: the only writer of the log.
//!
//! It gathers what waits, sequences it, writes one batch, syncs once, and only then lets anyone see or hear of it.
//! While a sync is under way the next batch gathers by itself: group commit without a timer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::codec::message::{Fate, Outcome, RefusalCode, Refused};
use crate::log::{AppendError, Log};
use crate::model::{Chain, Collection, Entry, EntryBody, Key, MemberName, Op, Seq, Txn};
use crate::protocol::feed::Block;
use crate::protocol::sequencer::{Decision, Sequencer, Versions};
use crate::state::{StateError, StateStore};
use crate::telemetry;

use super::shared::{SharedRef, now_ms};

/// Most transactions and bytes in one batch.
const BATCH_TXNS_MAX: usize = 4096;
const BATCH_BYTES_MAX: usize = 8 << 20;
/// Most bytes of transactions that wait for the commit thread; more than one largest transaction.
pub(super) const QUEUE_BYTES_MAX: usize = 64 << 20;
const _: () = assert!(QUEUE_BYTES_MAX > crate::model::limits::HARD.txn_bytes_max);
/// Pause after the last commit before the head file is brought up to date.
const IDLE_AFTER: Duration = Duration::from_millis(50);
/// Free space is measured at most this often.
const DISK_EVERY: Duration = Duration::from_millis(200);

/// A transaction to commit, and who hears of it.
pub(super) struct Proposal {
    pub member: MemberName,
    pub txn: Txn,
    pub reply: mpsc::UnboundedSender<Outcome>,
    /// Its share of [`QUEUE_BYTES_MAX`], given back when the proposal is dropped.
    _share: tokio::sync::OwnedSemaphorePermit,
}

/// Hands a transaction to the commit thread; waits while too many bytes are on their way there.
pub(super) async fn propose(
    shared: &SharedRef,
    member: &MemberName,
    txn: Txn,
    reply: &mpsc::UnboundedSender<Outcome>,
) -> Result<(), Refused> {
    let stopping = || Refused { code: RefusalCode::Stopping, message: "the datastore is stopping".into() };
    let bytes = txn.bytes_estimate().min(QUEUE_BYTES_MAX);
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    let share = Arc::clone(&shared.queue_bytes).acquire_many_owned(bytes).await.map_err(|_| stopping())?;
    let proposal = Proposal { member: member.clone(), txn, reply: reply.clone(), _share: share };
    shared.commit.send(Request::Commit(proposal)).await.map_err(|_| stopping())
}

pub(super) enum Request {
    Commit(Proposal),
    /// Closes the open segment, so that compaction can take it.
    Seal(oneshot::Sender<Result<Seq, String>>),
    /// Writes what is pending and closes the log.
    Stop(oneshot::Sender<()>),
}

/// Committed entries on their way to the state index.
pub(super) struct Committed {
    pub entries: Vec<Entry>,
    pub chain: Chain,
}

pub(super) struct Committer {
    pub shared: SharedRef,
    pub log: Log,
    pub sequencer: Sequencer,
    pub applier: std::sync::mpsc::SyncSender<Committed>,
    pub disk_checked: Option<Instant>,
    pub is_reserve_dropped: bool,
}

impl Versions for StateStore {
    type Error = StateError;

    fn version(&self, collection: &Collection, key: &Key) -> Result<Option<Seq>, StateError> {
        StateStore::version(self, collection, key)
    }
}

/// Ends the process: going on could lose what was acknowledged.
pub(super) fn stop_process(what: &str, error: &dyn std::fmt::Display) -> ! {
    tracing::error!(%error, "{what}; stopping, because going on could lose acknowledged data");
    std::process::exit(70);
}

impl Committer {
    pub(super) fn run(mut self, runtime: &tokio::runtime::Handle, mut requests: mpsc::Receiver<Request>) {
        let mut idle = true;
        loop {
            let request = if idle {
                requests.blocking_recv()
            } else {
                match runtime.block_on(async { tokio::time::timeout(IDLE_AFTER, requests.recv()).await }) {
                    Ok(request) => request,
                    Err(_) => {
                        if let Err(error) = self.log.idle() {
                            stop_process("the head file cannot be written", &error);
                        }
                        idle = true;
                        continue;
                    }
                }
            };
            match request {
                Some(Request::Commit(first)) => {
                    idle = false;
                    if let Some(stop) = self.commit_from(first, &mut requests) {
                        return self.stop(stop);
                    }
                }
                Some(Request::Seal(reply)) => self.seal(reply),
                Some(Request::Stop(reply)) => return self.stop(reply),
                None => return drop(self.log.close()),
            }
        }
    }

    fn seal(&mut self, reply: oneshot::Sender<Result<Seq, String>>) {
        let sealed = self.log.seal().map(|_| self.log.head().0).map_err(|error| error.to_string());
        let _ = reply.send(sealed);
    }

    fn stop(self, reply: oneshot::Sender<()>) {
        if let Err(error) = self.log.close() {
            tracing::error!(%error, "the log was not closed cleanly; nothing acknowledged is lost");
        }
        let _ = reply.send(());
    }

    /// Commits `first` and everything that waits behind it.
    fn commit_from(&mut self, first: Proposal, requests: &mut mpsc::Receiver<Request>) -> Option<oneshot::Sender<()>> {
        let mut bytes = first.txn.bytes_estimate();
        let mut batch = vec![first];
        let mut after = None;
        while batch.len() < BATCH_TXNS_MAX && bytes < BATCH_BYTES_MAX {
            match requests.try_recv() {
                Ok(Request::Commit(next)) => {
                    bytes += next.txn.bytes_estimate();
                    batch.push(next);
                }
                Ok(other) => {
                    after = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        self.commit(batch);
        match after {
            Some(Request::Seal(reply)) => self.seal(reply),
            Some(Request::Stop(reply)) => return Some(reply),
            _ => {}
        }
        None
    }

    fn commit(&mut self, batch: Vec<Proposal>) {
        let started = Instant::now();
        self.sequencer.applied(*self.shared.applied.borrow());
        self.measure_disk();
        let mut entries = Vec::with_capacity(batch.len());
        let mut replies = Vec::with_capacity(batch.len());
        for Proposal { member, txn, reply, _share } in batch {
            let id = txn.id;
            let fate = match self.admit(&txn) {
                Err(refused) => Fate::Deferred(refused),
                Ok(()) => match self.sequencer.propose(&member, txn, now_ms(), &self.shared.state) {
                    Ok(decision) => fate_of(decision, &mut entries),
                    Err(error) => stop_process("the state index cannot be read", &error),
                },
            };
            replies.push((reply, Outcome { id, fate }));
        }
        if !entries.is_empty() {
            match self.log.append(&entries) {
                Ok(written) => self.make_durable(written.bytes, entries, started),
                Err(AppendError::Full { .. }) => {
                    self.sequencer.undo();
                    self.shared.set_refusal("the disk is full");
                    for (_, outcome) in &mut replies {
                        outcome.fate = Fate::Deferred(disk_full());
                    }
                }
                Err(error) => stop_process("the log cannot be written", &error),
            }
        }
        for (reply, outcome) in replies {
            let _ = reply.send(outcome);
        }
    }

    fn make_durable(&mut self, bytes: bytes::Bytes, entries: Vec<Entry>, started: Instant) {
        let syncing = Instant::now();
        let (seq, chain) = match self.log.sync() {
            Ok(durable) => (durable.seq(), durable.chain()),
            Err(error) => stop_process("the log cannot be synced", &error),
        };
        telemetry::metrics::fsync(syncing.elapsed());
        self.sequencer.keep();
        let (first, count) = (entries.first().map_or(seq, |entry| entry.seq), entries.len());
        let block = Block { first, last: seq, bytes, chain };
        self.shared.ring.write().unwrap_or_else(std::sync::PoisonError::into_inner).push(block);
        self.shared.head.send_replace(seq);
        telemetry::metrics::batch(count, seq, started.elapsed());
        if self.applier.send(Committed { entries, chain }).is_err() {
            stop_process("the state index is gone", &"its thread ended");
        }
    }

    fn measure_disk(&mut self) {
        if self.disk_checked.is_some_and(|checked| checked.elapsed() < DISK_EVERY) {
            return;
        }
        self.disk_checked = Some(Instant::now());
        let Ok(free) = free_space(&self.shared.path) else { return };
        self.shared.disk_free.store(free, Ordering::Relaxed);
        let full = free < self.shared.config.min_free_bytes;
        self.shared.set_refusal(if full { "the disk is full" } else { "" });
        if full && !self.is_reserve_dropped {
            // Deletes and compaction live on the reserve until there is space again.
            self.is_reserve_dropped = self.log.drop_reserve();
        } else if !full && self.is_reserve_dropped {
            self.is_reserve_dropped = !self.log.restore_reserve();
        }
    }

    /// On a full disk only transactions that make room are taken: deletes. They, too, end before the last reserve.
    fn admit(&self, txn: &Txn) -> Result<(), Refused> {
        let (free, min) = (self.shared.disk_free(), self.shared.config.min_free_bytes);
        let makes_room = txn.ops.iter().all(|op| matches!(op, Op::Delete { .. }));
        if free >= min || (makes_room && free >= min / 4) {
            return Ok(());
        }
        telemetry::metrics::write_refusal("disk_full");
        Err(disk_full())
    }
}

pub(super) fn free_space(path: &std::path::Path) -> std::io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn disk_full() -> Refused {
    Refused {
        code: RefusalCode::DiskFull,
        message: "the datastore's disk is full: free some space or compact; reads, tails and deletes go on, and \
                  writes resume by themselves"
            .into(),
    }
}

fn fate_of(decision: Decision, entries: &mut Vec<Entry>) -> Fate {
    match decision {
        Decision::Write(entry) => {
            let fate = match &entry.body {
                EntryBody::Reject { reason, .. } => {
                    telemetry::metrics::rejections(reason);
                    Fate::Rejected(entry.seq, reason.clone())
                }
                _ => Fate::Committed(entry.seq),
            };
            entries.push(entry);
            fate
        }
        Decision::Committed(seq) => Fate::Decided(seq),
        Decision::Rejected(seq, reason) => Fate::Rejected(seq, reason),
        Decision::Gap(expected) => Fate::Gap(expected),
    }
}

/// Waits until the state index has reached `seq`.
pub(super) async fn wait_applied(shared: &Arc<super::shared::Shared>, seq: Seq) {
    let mut applied = shared.applied.subscribe();
    let _ = applied.wait_for(|applied| *applied >= seq).await;
}
