//! Scheduling of compaction: triggered by garbage, size or command, and limited by the target horizon.

use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use gravwell_env::wait;
use gravwell_log::compaction::{Compactor, Outcome};
use gravwell_model::Seq;
use gravwell_model::codec::admin::{CompactReport, Progress};
use gravwell_runtime::telemetry;

use super::commit_thread;
use super::shared::DatastoreRef;

/// Interval at which the automatic triggers are checked.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// A compaction requested by command.
pub(super) struct Request {
    pub dry_run: bool,
    /// Number of history entries to keep; `None` uses the configured value.
    pub history_ops: Option<u64>,
    pub progress: mpsc::Sender<Progress>,
    pub reply: oneshot::Sender<Result<CompactReport, String>>,
}

/// Serves requests and automatic triggers until the datastore stops.
pub(super) fn run(shared: &DatastoreRef, mut compactor: Compactor, mut requests: mpsc::Receiver<Request>) {
    let mut stopping = shared.stopping.subscribe();
    loop {
        let waiting = async {
            tokio::select! {
                _ = stopping.wait_for(|stopping| *stopping) => None,
                request = requests.recv() => request,
            }
        };
        match wait::at_most(LOOK_EVERY, waiting) {
            Some(Some(Request { dry_run, history_ops, progress, reply })) => {
                let mut tell = |stage: &str, done, total| {
                    let _ = progress.try_send(Progress { stage: stage.into(), done, total });
                };
                let result = compact(shared, &mut compactor, dry_run, history_ops, 0, &mut tell);
                drop(progress);
                let _ = reply.send(result);
            }
            Some(None) => return,
            None => {
                if is_due(shared) {
                    let garbage = shared.config.compact_garbage_percent;
                    if let Err(error) = compact(shared, &mut compactor, false, None, garbage, &mut |_, _, _| {}) {
                        tracing::error!(error, "compaction failed; the log is unchanged");
                    }
                }
            }
        }
        if *shared.stopping.borrow() {
            return;
        }
    }
}

fn log_bytes(shared: &DatastoreRef) -> u64 {
    shared.log.segments().iter().map(|segment| segment.bytes).sum()
}

/// Returns whether the datastore was opened read-only: it then works in another directory and records no audit. Its
/// compactions are dry runs that assume a complete audit.
fn is_viewed(shared: &DatastoreRef) -> bool {
    shared.work != shared.path
}

/// Returns whether compaction is due: the sealed bytes below the target horizon exceed the configured minimum, or disk
/// space is short.
fn is_due(shared: &DatastoreRef) -> bool {
    if is_viewed(shared) {
        return false;
    }
    let horizon = target(shared, None).0;
    let waiting = |segment: &gravwell_log::SegmentInfo| segment.sealed && !segment.compacted && segment.last <= horizon;
    let bytes: u64 = shared.log.segments().iter().filter(|segment| waiting(segment)).map(|segment| segment.bytes).sum();
    if !shared.recovery().is_empty() {
        return false;
    }
    let tight = shared.disk_free() < shared.config.min_free_bytes.saturating_mul(2);
    bytes >= shared.config.compact_min_bytes || (tight && bytes > 0)
}

/// Returns the highest possible horizon and the reason why it cannot rise further.
fn target(shared: &DatastoreRef, history_ops: Option<u64>) -> (Seq, &'static str) {
    let head = shared.head();
    let floor = shared.floor();
    let mut found = super::horizon::target(head, floor, history_ops.unwrap_or(shared.config.history_ops));
    // A full disk is worse than a snapshot transfer that has to start over.
    let is_tight = shared.disk_free() < shared.config.min_free_bytes;
    if let Some(pinned) = shared.pins.lowest(Instant::now()).filter(|pinned| *pinned < found.0 && !is_tight) {
        found = (pinned, "a member that fetches the state");
    }
    if history_ops.is_none() && shared.config.history_hours > 0 {
        let oldest_ms = shared.commit_time().saturating_sub(shared.config.history_hours.saturating_mul(3_600_000));
        let segments = shared.log.segments();
        let by_time = segments.iter().filter(|segment| segment.sealed && segment.last_time_ms < oldest_ms);
        let by_time = by_time.map(|segment| segment.last).max().unwrap_or(shared.log.horizon());
        if by_time < found.0 {
            found = (by_time, "the history window");
        }
    }
    let audited = shared.audit.covered();
    if audited < found.0 && !is_viewed(shared) {
        found = (audited, "the audit, which has not recorded more");
    }
    if found.0 == head { (head, "nothing: it reaches the head") } else { found }
}

fn compact(
    shared: &DatastoreRef,
    compactor: &mut Compactor,
    dry_run: bool,
    history_ops: Option<u64>,
    garbage_percent_min: u8,
    tell: &mut dyn FnMut(&str, u64, u64),
) -> Result<CompactReport, String> {
    let recovery = shared.recovery();
    if !recovery.is_empty() && !dry_run {
        return Err(format!("cannot compact while the datastore waits for recovery: {recovery}"));
    }
    if !is_viewed(shared) && !dry_run {
        settle_revoked(shared);
    }
    if !is_viewed(shared) {
        shared.audit.wait_covered_blocking(shared.head());
    }
    let (wanted, held_by) = target(shared, history_ops);
    let horizon_before = shared.log.horizon();
    let bytes_before = log_bytes(shared);
    let mut report = CompactReport {
        dry_run,
        horizon_before,
        horizon: horizon_before,
        held_by: held_by.into(),
        bytes_before,
        bytes_after: bytes_before,
        ..CompactReport::default()
    };
    // The index must have applied the entries that compaction is about to drop.
    wait::until(commit_thread::wait_applied(shared, wanted));
    if !dry_run {
        seal_for(shared, wanted)?;
    }
    let mut tell_bytes = |done, total| tell("compacting", done, total);
    let outcome: Outcome =
        compactor.run(wanted, garbage_percent_min, dry_run, &mut tell_bytes).map_err(|error| error.to_string())?;
    report.horizon = outcome.horizon;
    report.segments = outcome.segments;
    report.bytes_after = if dry_run { bytes_before.saturating_sub(outcome.bytes_freed) } else { log_bytes(shared) };
    if !dry_run {
        telemetry::metrics::compaction(report.bytes_before.saturating_sub(report.bytes_after), report.horizon);
        tracing::info!(horizon = %report.horizon, segments = report.segments, before = report.bytes_before,
            after = report.bytes_after, "compacted");
    }
    Ok(report)
}

/// Resolves the rejections of revoked members. No client asks for them any more, so they would be kept forever.
fn settle_revoked(shared: &DatastoreRef) {
    let (reply, settled) = oneshot::channel();
    if shared.commit.blocking_send(commit_thread::Request::Settle(shared.members.revoked(), reply)).is_ok() {
        let _ = settled.blocking_recv();
    }
}

/// Closes the open segment when the horizon could rise into it. The horizon rises only to ends of segments, so a target
/// within the open segment could otherwise be reached only up to its start.
fn seal_for(shared: &DatastoreRef, wanted: Seq) -> Result<(), String> {
    let open_from = shared.log.segments().iter().find(|segment| !segment.sealed).map(|segment| segment.first);
    if open_from.is_none_or(|first| wanted < first) {
        return Ok(());
    }
    let (reply, sealed) = oneshot::channel();
    shared
        .commit
        .blocking_send(commit_thread::Request::Seal(reply))
        .map_err(|_| "the datastore is stopping".to_owned())?;
    sealed.blocking_recv().map_err(|_| "the datastore is stopping".to_owned())??;
    Ok(())
}
