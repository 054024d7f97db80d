//! Table of all metrics, and the only functions that update them.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use gravwell_model::{Reason, Seq, Verdict};

/// Kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Value that only increases.
    Counter,
    /// Value that increases and decreases.
    Gauge,
    /// Distribution of values.
    Histogram,
}

/// Name, kind, unit and description of every metric.
pub const TABLE: &[(&str, MetricKind, Unit, &str)] = &[
    ("gravwell_health", MetricKind::Gauge, Unit::Count, "1 for the current level: good, attention or failed"),
    ("gravwell_commits_total", MetricKind::Counter, Unit::Count, "Transactions committed or rejected"),
    (
        "gravwell_commit_latency_seconds",
        MetricKind::Histogram,
        Unit::Seconds,
        "Time from starting a batch to resolving it",
    ),
    ("gravwell_fsync_latency_seconds", MetricKind::Histogram, Unit::Seconds, "Time to make a batch durable"),
    ("gravwell_batch_size", MetricKind::Histogram, Unit::Count, "Transactions in one batch"),
    ("gravwell_head_seq", MetricKind::Gauge, Unit::Count, "Last committed sequence"),
    ("gravwell_horizon_seq", MetricKind::Gauge, Unit::Count, "Lowest sequence from which a tail can start"),
    ("gravwell_floor_seq", MetricKind::Gauge, Unit::Count, "Lowest sequence durably applied by all members"),
    ("gravwell_member_lag_ops", MetricKind::Gauge, Unit::Count, "Entries by which a member lags the head, by member"),
    ("gravwell_subscribers", MetricKind::Gauge, Unit::Count, "Connected members"),
    ("gravwell_log_bytes", MetricKind::Gauge, Unit::Bytes, "Size of the log on disk"),
    ("gravwell_log_segments", MetricKind::Gauge, Unit::Count, "Segment files of the log"),
    ("gravwell_compactions_total", MetricKind::Counter, Unit::Count, "Completed compactions"),
    ("gravwell_compaction_freed_bytes_total", MetricKind::Counter, Unit::Bytes, "Disk space freed"),
    ("gravwell_rejections_total", MetricKind::Counter, Unit::Count, "Transactions rejected, by reason"),
    ("gravwell_write_refusals_total", MetricKind::Counter, Unit::Count, "Transactions deferred, by reason"),
    ("gravwell_snapshots_served_total", MetricKind::Counter, Unit::Count, "State snapshots sent to members"),
    ("gravwell_verdicts_total", MetricKind::Counter, Unit::Count, "Positions inconsistent with the log, by verdict"),
    (
        "gravwell_recovery_needed",
        MetricKind::Gauge,
        Unit::Count,
        "1 while a datastore refuses writes because a witness shows that its log lost entries",
    ),
    (
        "gravwell_clock_skew_seconds",
        MetricKind::Gauge,
        Unit::Seconds,
        "Difference between a datastore's clock and the time of new entries; 0 while the clock is trusted",
    ),
    ("gravwell_archive_behind", MetricKind::Gauge, Unit::Count, "1 while the continuous backup of a datastore fails"),
    ("gravwell_audit_seq", MetricKind::Gauge, Unit::Count, "Last record of a datastore's audit"),
    ("gravwell_audit_bytes", MetricKind::Gauge, Unit::Bytes, "Size of a datastore's audit on disk"),
    (
        "gravwell_audit_bytes_max",
        MetricKind::Gauge,
        Unit::Bytes,
        "Size above which the audit's oldest records are removed",
    ),
    ("gravwell_audit_behind_ops", MetricKind::Gauge, Unit::Count, "Entries of the log not yet recorded in the audit"),
    ("gravwell_audit_write_failures_total", MetricKind::Counter, Unit::Count, "Failed writes of the audit"),
    ("gravwell_disk_free_bytes", MetricKind::Gauge, Unit::Bytes, "Free space on the data directory's file system"),
    ("gravwell_outbox_depth", MetricKind::Gauge, Unit::Count, "Pending transactions in a replica's outbox"),
    ("gravwell_chunks_sent_total", MetricKind::Counter, Unit::Count, "Chunks sent to members, by form: whole or delta"),
    ("gravwell_chunk_bytes_sent_total", MetricKind::Counter, Unit::Bytes, "Bytes of sent chunks on the wire"),
    ("gravwell_chunks_received_total", MetricKind::Counter, Unit::Count, "Chunks received, by whether they were known"),
    ("gravwell_chunk_bytes_received_total", MetricKind::Counter, Unit::Bytes, "Bytes of received chunks on the wire"),
    ("gravwell_chunks_missing", MetricKind::Gauge, Unit::Count, "Referenced chunks that are missing here"),
    ("gravwell_chunks_lost", MetricKind::Gauge, Unit::Count, "Referenced chunks that no member has"),
    (
        "gravwell_chunks_healed_total",
        MetricKind::Counter,
        Unit::Count,
        "Corrupt or missing chunks that were fetched again",
    ),
    (
        "gravwell_chunks_collected_total",
        MetricKind::Counter,
        Unit::Count,
        "Unreferenced chunks removed by garbage collection",
    ),
    ("gravwell_chunk_store_bytes", MetricKind::Gauge, Unit::Bytes, "Size of the chunk store on disk"),
    (
        "gravwell_objects_invalid",
        MetricKind::Gauge,
        Unit::Count,
        "Objects that do not match the schema of their collection",
    ),
    ("gravwell_rejected_pending", MetricKind::Gauge, Unit::Count, "Rejected transactions waiting for a user"),
    ("gravwell_searches_started_total", MetricKind::Counter, Unit::Count, "Searches started at this webserver"),
    ("gravwell_searches_running", MetricKind::Gauge, Unit::Count, "Searches running at this webserver"),
    ("gravwell_searches_ended_total", MetricKind::Counter, Unit::Count, "Finished searches, by outcome"),
    (
        "gravwell_search_duration_seconds",
        MetricKind::Histogram,
        Unit::Seconds,
        "Time from the start of a search to its end",
    ),
    ("gravwell_search_rows_read_total", MetricKind::Counter, Unit::Count, "Rows read from sources by searches"),
    ("gravwell_search_rows_found_total", MetricKind::Counter, Unit::Count, "Rows in results"),
    ("gravwell_search_result_bytes_total", MetricKind::Counter, Unit::Bytes, "Size of results"),
    ("gravwell_result_store_bytes", MetricKind::Gauge, Unit::Bytes, "Space used by results at this webserver"),
    ("gravwell_results_cleared_total", MetricKind::Counter, Unit::Count, "Results deleted early to free space"),
    (
        "gravwell_search_source_failures_total",
        MetricKind::Counter,
        Unit::Count,
        "Sources that failed within a search, by source",
    ),
    ("gravwell_log_lines_lost_total", MetricKind::Counter, Unit::Count, "Lines of output that could not be written"),
    ("gravwell_panics_total", MetricKind::Counter, Unit::Count, "Panics, which are bugs of the program"),
];

/// Registers the descriptions of all metrics with the recorder.
pub fn describe() {
    for (name, kind, unit, help) in TABLE {
        match kind {
            MetricKind::Counter => describe_counter!(*name, *unit, *help),
            MetricKind::Gauge => describe_gauge!(*name, *unit, *help),
            MetricKind::Histogram => describe_histogram!(*name, *unit, *help),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges are doubles; sequences stay below 2^53 for centuries")]
fn set(name: &'static str, value: u64) {
    gauge!(name).set(value as f64);
}

/// Counts lines of the log, or of other output, that could not be written.
pub fn log_lines_lost(count: u64) {
    counter!("gravwell_log_lines_lost_total").increment(count);
}

/// Records the position of the audit trail after a write.
pub fn audit(seq: Seq) {
    set("gravwell_audit_seq", seq.0);
}

/// Records the size of the audit trail and its limit.
pub fn audit_bytes(bytes: u64, bytes_max: u64) {
    set("gravwell_audit_bytes", bytes);
    set("gravwell_audit_bytes_max", bytes_max);
}

/// Records the number of entries missing from the audit trail.
pub fn audit_behind(entries: u64) {
    set("gravwell_audit_behind_ops", entries);
}

/// Counts a failed write of the audit trail.
pub fn audit_write_failure() {
    counter!("gravwell_audit_write_failures_total").increment(1);
}

/// Counts a panic of a thread or a task.
pub fn panic() {
    counter!("gravwell_panics_total").increment(1);
}

/// Records the health of the process: `level` is a value of the metric's label.
pub fn health(level: &str) {
    for word in ["good", "attention", "failed"] {
        gauge!("gravwell_health", "level" => word).set(if word == level { 1.0 } else { 0.0 });
    }
}

/// Records a committed batch.
#[expect(clippy::cast_precision_loss, reason = "a batch has few thousand entries")]
pub fn batch(entries: usize, head: Seq, took: Duration) {
    counter!("gravwell_commits_total").increment(entries as u64);
    histogram!("gravwell_batch_size").record(entries as f64);
    histogram!("gravwell_commit_latency_seconds").record(took.as_secs_f64());
    set("gravwell_head_seq", head.0);
}

/// Records the duration of making a batch durable.
pub fn fsync(took: Duration) {
    histogram!("gravwell_fsync_latency_seconds").record(took.as_secs_f64());
}

/// Counts a rejected transaction.
pub fn rejections(reason: &Reason) {
    let label = match reason {
        Reason::ConditionFailed { .. } => "condition",
        Reason::LimitExceeded { .. } => "limit",
        Reason::Forbidden { .. } => "forbidden",
        Reason::IdentityReused => "identity",
        Reason::ChunksLost { .. } => "chunks",
    };
    counter!("gravwell_rejections_total", "reason" => label).increment(1);
}

/// Counts a transaction that was temporarily refused.
pub fn write_refusal(reason: &'static str) {
    counter!("gravwell_write_refusals_total", "reason" => reason).increment(1);
}

/// Records the difference between a datastore's clock and the time assigned to entries.
#[expect(clippy::cast_precision_loss, reason = "seconds; such large values need not be exact")]
pub fn clock_skew(seconds: i64) {
    gauge!("gravwell_clock_skew_seconds").set(seconds as f64);
}

/// Records whether the continuous backup of a datastore fails.
pub fn archive_behind(is_behind: bool) {
    set("gravwell_archive_behind", u64::from(is_behind));
}

/// Records whether a datastore waits to be recovered.
pub fn recovery_needed(is_needed: bool) {
    set("gravwell_recovery_needed", u64::from(is_needed));
}

/// Counts a position that was not in sync.
pub fn verdict(verdict: Verdict) {
    counter!("gravwell_verdicts_total", "verdict" => verdict.to_string()).increment(1);
}

/// Counts a snapshot that was sent.
pub fn snapshot_served() {
    counter!("gravwell_snapshots_served_total").increment(1);
}

/// Records the number of connected members.
pub fn subscribers(connected: u64) {
    set("gravwell_subscribers", connected);
}

/// Records the lag of a member.
#[expect(clippy::cast_precision_loss, reason = "as for `set`")]
pub fn member_lag(member: &str, lag_ops: u64) {
    gauge!("gravwell_member_lag_ops", "member" => member.to_owned()).set(lag_ops as f64);
}

/// Records the number of invalid objects of a collection.
#[expect(clippy::cast_precision_loss, reason = "as for `set`")]
pub fn objects_invalid(collection: &'static str, count: usize) {
    gauge!("gravwell_objects_invalid", "collection" => collection).set(count as f64);
}

/// Records a completed compaction.
pub fn compaction(freed_bytes: u64, horizon: Seq) {
    counter!("gravwell_compactions_total").increment(1);
    counter!("gravwell_compaction_freed_bytes_total").increment(freed_bytes);
    set("gravwell_horizon_seq", horizon.0);
}

/// Records the size and the positions of the log.
pub fn log(bytes: u64, segments: u64, horizon: Seq, floor: Seq) {
    set("gravwell_log_bytes", bytes);
    set("gravwell_log_segments", segments);
    set("gravwell_horizon_seq", horizon.0);
    set("gravwell_floor_seq", floor.0);
}

/// Records the size of stored results.
pub fn result_store(bytes: u64) {
    set("gravwell_result_store_bytes", bytes);
}

/// Counts results that were evicted to make room for others.
pub fn results_cleared_early() {
    counter!("gravwell_results_cleared_total").increment(1);
}

/// Records the free disk space.
pub fn disk_free(bytes: u64) {
    set("gravwell_disk_free_bytes", bytes);
}

/// Records the state of a replica's outbox.
pub fn outbox(depth: u64, rejected: u64) {
    set("gravwell_outbox_depth", depth);
    set("gravwell_rejected_pending", rejected);
}

/// Counts a chunk that was sent.
pub fn chunk_sent(bytes: usize, is_delta: bool) {
    let form = if is_delta { "delta" } else { "whole" };
    counter!("gravwell_chunks_sent_total", "form" => form).increment(1);
    counter!("gravwell_chunk_bytes_sent_total").increment(bytes as u64);
}

/// Counts a chunk that was received.
pub fn chunk_received(bytes: usize, was_known: bool) {
    let known = if was_known { "yes" } else { "no" };
    counter!("gravwell_chunks_received_total", "known" => known).increment(1);
    counter!("gravwell_chunk_bytes_received_total").increment(bytes as u64);
}

/// Records the number of referenced chunks that are missing or lost.
pub fn chunks_missing(missing: u64, lost: u64) {
    set("gravwell_chunks_missing", missing);
    set("gravwell_chunks_lost", lost);
}

/// Counts corrupt or missing chunks that were repaired.
pub fn chunks_healed(chunks: u64) {
    counter!("gravwell_chunks_healed_total").increment(chunks);
}

/// Counts garbage-collected chunks.
pub fn chunks_collected(chunks: u64) {
    counter!("gravwell_chunks_collected_total").increment(chunks);
}

/// Records the size of the chunk store.
pub fn chunk_store(bytes: u64) {
    set("gravwell_chunk_store_bytes", bytes);
}

/// Counts a started search.
pub fn search_began() {
    counter!("gravwell_searches_started_total").increment(1);
    gauge!("gravwell_searches_running").increment(1.0);
}

/// Measurements of a finished search.
#[derive(Clone, Copy, Debug)]
pub struct SearchEnded {
    /// Outcome, as a metrics label.
    pub outcome: &'static str,
    /// Rows that sources produced.
    pub rows_read: u64,
    /// Rows in its results.
    pub rows_found: u64,
    /// Size of its results, in bytes.
    pub bytes: u64,
    /// Run time.
    pub took: Duration,
}

/// Records a finished search; its start was recorded by [`search_began`].
pub fn search_ended(ended: SearchEnded) {
    gauge!("gravwell_searches_running").decrement(1.0);
    counter!("gravwell_searches_ended_total", "outcome" => ended.outcome).increment(1);
    histogram!("gravwell_search_duration_seconds").record(ended.took.as_secs_f64());
    counter!("gravwell_search_rows_read_total").increment(ended.rows_read);
    counter!("gravwell_search_rows_found_total").increment(ended.rows_found);
    counter!("gravwell_search_result_bytes_total").increment(ended.bytes);
}

/// Counts a source that failed within a search.
pub fn search_source_failed(source: String) {
    counter!("gravwell_search_source_failures_total", "source" => source).increment(1);
}
