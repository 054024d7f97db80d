//! The commit thread: the only writer of the log.
//!
//! It collects pending transactions, sequences them, writes one batch and syncs once. Only then are entries and
//! outcomes visible to others. The next batch accumulates during the sync: group commit without a timer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use gravwell_chunks::GcPin;
use gravwell_env::wait;
use gravwell_model::codec::message::{Outcome, RefusalCode, Refused};
use gravwell_model::{MemberName, Op, Reason, Seq, Txn};
use gravwell_protocol::fatal::Fatal;
use gravwell_protocol::feed::Block;
use gravwell_runtime::telemetry::{self, output};
use gravwell_transport::trust::MemberState;

use super::commit_pipeline::{Batch, CommitPipeline, CommittedBatch, Outlet, PushStream, SealError, Submission};
use super::shared::{DatastoreRef, DatastoreState};

/// Most transactions and bytes in one batch.
const BATCH_TXNS_MAX: usize = 4096;
pub(super) const BATCH_BYTES_MAX: usize = 8 << 20;
/// Most bytes of transactions queued for the commit thread. Larger than the largest possible transaction.
pub(super) const QUEUE_BYTES_MAX: usize = 64 << 20;
const _: () = assert!(QUEUE_BYTES_MAX > gravwell_model::limits::HARD.txn_bytes_max);
/// Memory overhead of a row, in bytes, which the size of a transaction does not include.
const ROW_MEMORY: usize = 112;
/// Idle time after the last commit before the head file is updated.
const IDLE_AFTER: Duration = Duration::from_millis(50);
/// Under load, the head file is updated at this interval …
const VOUCH_EVERY: Duration = Duration::from_millis(100);
/// … and after this many bytes.
const VOUCH_BYTES: u64 = 8 << 20;
/// Minimum interval between measurements of free disk space.
const DISK_EVERY: Duration = Duration::from_millis(200);

/// A transaction to commit, and the channel that receives its outcome.
pub(super) struct Proposal {
    pub member: MemberName,
    pub txn: Txn,
    /// Boxed because most proposals have none.
    pub objection: Option<Box<Reason>>,
    pub stream: PushStream,
    pub reply: mpsc::UnboundedSender<Outcome>,
    is_admins: bool,
    kept: Guards,
}

/// Resources that a proposal holds until it is committed.
struct Guards {
    /// Its share of [`QUEUE_BYTES_MAX`].
    _share: tokio::sync::OwnedSemaphorePermit,
    /// Pin on the chunks that the transaction references.
    _hold: Option<GcPin>,
}

/// Member and stream from which transactions come.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub member: &'a MemberName,
    /// See [`Submission::is_admins`].
    pub is_admins: bool,
    pub stream: &'a PushStream,
}

/// Sends a transaction to the commit thread. Waits while the queue holds too many bytes.
pub(super) async fn propose(
    shared: &DatastoreRef,
    source: Source<'_>,
    txn: Txn,
    objection: Option<Reason>,
    hold: Option<GcPin>,
    reply: &mpsc::UnboundedSender<Outcome>,
) -> Result<(), Refused> {
    let stopping = || Refused { code: RefusalCode::Stopping, message: "the datastore is stopping".into() };
    let rows = txn.ops.len() + txn.conditions.len();
    let bytes = (txn.bytes_estimate() + rows * ROW_MEMORY).min(QUEUE_BYTES_MAX);
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    let share = Arc::clone(&shared.queue_bytes).acquire_many_owned(bytes).await.map_err(|_| stopping())?;
    let objection = objection.map(Box::new);
    let kept = Guards { _share: share, _hold: hold };
    let Source { member, is_admins, stream } = source;
    let (member, stream, reply) = (member.clone(), stream.clone(), reply.clone());
    let proposal = Proposal { member, txn, objection, stream, reply, is_admins, kept };
    shared.commit.send(Request::Commit(proposal)).await.map_err(|_| stopping())
}

pub(super) enum Request {
    Commit(Proposal),
    /// Resolves the rejections of revoked members.
    Settle(BTreeSet<MemberName>, oneshot::Sender<()>),
    /// Closes the open segment, so that compaction can process it.
    Seal(oneshot::Sender<Result<Seq, String>>),
    /// Replied to in queue order, which shows that the thread is alive.
    Ping(oneshot::Sender<()>),
    /// Writes pending data and closes the log.
    Stop(oneshot::Sender<()>),
}

pub(super) struct Committer {
    pub shared: DatastoreRef,
    pub ledger: CommitPipeline,
    pub applier: std::sync::mpsc::SyncSender<CommittedBatch>,
    pub disk_checked: Option<Instant>,
    pub is_reserve_dropped: bool,
    /// Time of the first commit that the head file does not cover yet.
    pub unvouched_since: Option<Instant>,
}

/// Terminates the process, because continuing could lose acknowledged data. No write is accepted from now on.
pub(super) fn stop_process(shared: &DatastoreState, failure: &Fatal) -> ! {
    shared.watch.fail(&failure.to_string());
    tracing::error!(%failure, "stopping, because continuing could lose acknowledged data");
    output::exit(70);
}

/// Like [`stop_process`], for a panicked thread that handles acknowledged data.
pub(super) fn part_panicked(name: &'static str) -> ! {
    tracing::error!(thread = name, "stopping: a thread panicked, and continuing could lose acknowledged data");
    output::exit(70);
}

impl Committer {
    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut idle = true;
        loop {
            let request = if idle {
                requests.blocking_recv()
            } else {
                match wait::at_most(IDLE_AFTER, requests.recv()) {
                    Some(request) => request,
                    None => {
                        self.vouch();
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
                    self.vouch_at_times();
                }
                Some(Request::Settle(gone, reply)) => {
                    idle = false;
                    self.settle(&gone, reply);
                }
                Some(Request::Seal(reply)) => self.seal(reply),
                Some(Request::Ping(reply)) => drop(reply.send(())),
                Some(Request::Stop(reply)) => return self.stop(reply),
                None => return drop(self.ledger.into_log().close()),
            }
        }
    }

    /// Updates the head file, so that a later loss of entries acknowledged so far is detected.
    fn vouch(&mut self) {
        self.unvouched_since = None;
        // On a full disk the head file lags, which only makes the next start scan more of the log.
        if let Err(error) = self.ledger.log().idle()
            && !gravwell_env::fs::is_full(&error.source)
        {
            stop_process(&self.shared, &Fatal::of("the head file cannot be written")(error));
        }
    }

    fn vouch_at_times(&mut self) {
        let since = *self.unvouched_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= VOUCH_EVERY || self.ledger.log().unvouched_bytes() >= VOUCH_BYTES {
            self.vouch();
        }
    }

    fn seal(&mut self, reply: oneshot::Sender<Result<Seq, String>>) {
        let sealed = self.ledger.seal().map_err(|error| match error {
            SealError::Full(reason) => reason,
            SealError::Fatal(failure) => stop_process(&self.shared, &failure),
        });
        let _ = reply.send(sealed);
    }

    fn stop(self, reply: oneshot::Sender<()>) {
        if let Err(error) = self.ledger.into_log().close() {
            tracing::error!(%error, "log was not closed cleanly; no acknowledged data is lost");
        }
        let _ = reply.send(());
    }

    /// Commits `first` together with the transactions queued behind it.
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
            Some(Request::Settle(gone, reply)) => self.settle(&gone, reply),
            Some(Request::Seal(reply)) => self.seal(reply),
            Some(Request::Ping(reply)) => drop(reply.send(())),
            Some(Request::Stop(reply)) => return Some(reply),
            _ => {}
        }
        None
    }

    fn commit(&mut self, batch: Vec<Proposal>) {
        let mut replies = Vec::with_capacity(batch.len());
        let mut kept_all = Vec::with_capacity(batch.len());
        let mut txns = Vec::with_capacity(batch.len());
        for Proposal { member, txn, objection, stream, reply, is_admins, kept } in batch {
            if member != self.shared.local {
                self.shared.note_clock(txn.time_ms);
            }
            txns.push(Submission { member, txn, objection: objection.map(|reason| *reason), stream, is_admins });
            replies.push(reply);
            kept_all.push(kept);
        }
        self.write(txns, replies);
    }

    /// Resolves the rejections of revoked members. If the write fails now, the next compaction tries again.
    fn settle(&mut self, gone: &BTreeSet<MemberName>, reply: oneshot::Sender<()>) {
        // A member that was enrolled again in the meantime, with its directory, continues to count.
        let gone: BTreeSet<&MemberName> = {
            let registry = self.shared.members.registry();
            let is_enrolled =
                |name: &MemberName| registry.member(name).is_some_and(|it| it.state == MemberState::Enrolled);
            gone.iter().filter(|name| !is_enrolled(name)).collect()
        };
        let mut txns = self.ledger.settling(|member| gone.contains(member), self.shared.commit_time());
        while !txns.is_empty() {
            let later = txns.split_off(txns.len().min(BATCH_TXNS_MAX));
            self.write(std::mem::replace(&mut txns, later), Vec::new());
        }
        let _ = reply.send(());
    }

    fn write(&mut self, txns: Vec<Submission>, replies: Vec<mpsc::UnboundedSender<Outcome>>) {
        let started = Instant::now();
        self.measure_disk();
        let (free, min) = (self.shared.disk_free(), self.shared.config.min_free_bytes);
        let applied = *self.shared.applied.borrow();
        let (recovery, has_failed) = (self.shared.recovery(), self.shared.has_failed());
        let admit = |txn: &Txn| match recovery.as_str() {
            _ if has_failed => Err(failed()),
            "" => admit(txn, free, min),
            evidence => Err(super::read_only::refusal(evidence, &self.shared.recovery_remedy("D"))),
        };
        let mut outlet = Publisher { shared: &self.shared, applier: &self.applier, replies, started };
        let now_ms = self.shared.commit_time();
        if self.shared.take_time_correction() {
            tracing::warn!(
                to_ms = now_ms,
                "a member confirmed that the last entries are dated in the future; commit times go back to the correct \
                 time"
            );
            self.ledger.correct_time(now_ms);
        }
        match self.ledger.commit(txns, &admit, &no_room, applied, now_ms, &mut outlet) {
            Ok(Batch::Done) => {}
            Ok(Batch::DiskFull) => self.shared.set_refusal(DISK_IS_FULL),
            Err(failure) => stop_process(&self.shared, &failure),
        }
    }

    fn measure_disk(&mut self) {
        if self.disk_checked.is_some_and(|checked| checked.elapsed() < DISK_EVERY) {
            return;
        }
        self.disk_checked = Some(Instant::now());
        let Some(full) = measure_disk(&self.shared) else { return };
        self.shared.set_refusal(if full { DISK_IS_FULL } else { "" });
        if full && !self.is_reserve_dropped {
            // Deletes and compaction use the disk reserve until there is free space again.
            self.is_reserve_dropped = self.ledger.log().drop_reserve();
        } else if !full && self.is_reserve_dropped {
            self.is_reserve_dropped = !self.ledger.log().restore_reserve();
        }
    }
}

/// Publishes a committed batch to the rest of the datastore.
struct Publisher<'a> {
    shared: &'a DatastoreRef,
    applier: &'a std::sync::mpsc::SyncSender<CommittedBatch>,
    replies: Vec<mpsc::UnboundedSender<Outcome>>,
    started: Instant,
}

impl Outlet for Publisher<'_> {
    fn publish(&mut self, block: Block) {
        let (head, count) = (block.last, block.last.since(block.first) + 1);
        self.shared.ring.write().unwrap_or_else(std::sync::PoisonError::into_inner).push(block);
        self.shared.head.send_replace(head);
        telemetry::metrics::batch(usize::try_from(count).unwrap_or(usize::MAX), head, self.started.elapsed());
    }

    fn index(&mut self, committed: CommittedBatch) {
        telemetry::txn_trace::committed(&committed.entries);
        if self.applier.send(committed).is_err() {
            stop_process(self.shared, &Fatal { what: "the state index failed", cause: "its thread terminated".into() });
        }
    }

    fn answer(&mut self, place: usize, outcome: Outcome) {
        if let Some(reply) = self.replies.get(place) {
            let _ = reply.send(outcome);
        }
    }
}

/// Free bytes below which deletes are rejected, too: compaction, which turns deletes into free space, could no
/// longer start.
const DELETES_MIN_FREE: u64 = 4 << 20;

/// Checks that a transaction is accepted. On a full disk only those with nothing but deletes are, which free space.
///
/// # Errors
/// Returns a refusal if the disk is too full for the transaction.
pub fn admit(txn: &Txn, free: u64, min: u64) -> Result<(), Refused> {
    let makes_room = txn.ops.iter().all(|op| matches!(op, Op::Delete { .. }));
    let has_room = free >= (min / 4).min(DELETES_MIN_FREE);
    if free >= min || (makes_room && has_room) {
        return Ok(());
    }
    telemetry::metrics::write_refusal("disk_full");
    Err(if has_room { disk_full() } else { no_room() })
}

/// The refusal for writers when the process has to terminate.
fn failed() -> Refused {
    let message = "a component of the datastore failed and the process is stopping; retry when it has restarted";
    Refused { code: RefusalCode::Stopping, message: message.into() }
}

/// Reason for rejecting writes while the disk is full.
pub(super) const DISK_IS_FULL: &str = "the disk is full";

/// Measures free space and returns whether the disk is full, or `None` if it cannot be measured.
pub(super) fn measure_disk(shared: &DatastoreRef) -> Option<bool> {
    let free = free_space(&shared.path).ok()?;
    shared.disk_free.store(free, Ordering::Relaxed);
    Some(free < shared.config.min_free_bytes)
}

pub(super) fn free_space(path: &std::path::Path) -> std::io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Returns the refusal for writers while the disk is full.
#[must_use]
pub fn disk_full() -> Refused {
    Refused {
        code: RefusalCode::DiskFull,
        message:
            "the datastore's disk is full; free some space or compact; reads, tails and deletes continue, and writes \
             resume automatically"
                .into(),
    }
}

/// Returns the refusal for every transaction when there is no space for another record.
#[must_use]
pub fn no_room() -> Refused {
    Refused {
        code: RefusalCode::DiskFull,
        message:
            "the datastore's disk has no space left, not even for deletes; free some space or compact; reads and tails \
             continue, and writes resume automatically"
                .into(),
    }
}

/// Waits until the state index has reached `seq`.
pub(super) async fn wait_applied(shared: &Arc<super::shared::DatastoreState>, seq: Seq) {
    let mut applied = shared.applied.subscribe();
    let _ = applied.wait_for(|applied| *applied >= seq).await;
}
