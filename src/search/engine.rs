//! Runs a query: sources, stages and the results file as one chain, on threads that may block.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::control::{Control, Stopped};
use super::filter::Runner;
use super::query::{Query, Stage};
use super::results::{Summary, Writer};
use super::searches::Lease;
use super::source::{self, Range, Sources, Terms};
use super::stages::{self, Failure, Rows};

/// Maximum time until rows become visible to readers, while more arrive.
const SHOW_EVERY: Duration = Duration::from_millis(250);

/// A query that is about to run.
pub struct Job {
    /// The parsed query.
    pub query: Query,
    /// Sources of its rows.
    pub sources: Sources,
    /// Time range of the search.
    pub range: Range,
    /// Counters and cancellation of the search.
    pub control: Arc<Control>,
    /// Starts the processes of filters.
    pub runner: Runner,
    /// Writer of the results.
    pub writer: Writer,
    /// Maximum size of the results, in bytes.
    pub bytes_max: u64,
    /// Disk space reserved for the results.
    pub room: Lease,
}

/// How a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All sources and stages finished, or the size limit was reached.
    Complete,
    /// A time limit, a user or a shutdown stopped it.
    Stopped,
    /// It failed.
    Failed,
}

/// Outcome of a search.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Reason why it was stopped, failed or was cut short; otherwise empty.
    pub reason: String,
    /// Whether results were dropped because of a size limit.
    pub over_limit: bool,
    /// Summary of the written results.
    pub summary: Summary,
}

fn chain(job: Job) -> Result<(Rows, Writer, Lease), Failure> {
    let Job { query, sources, range, control, runner, writer, room, .. } = job;
    let words = Terms::new(&query.words).map_err(Failure::Broken)?;
    let mut rows = source::merged(sources, range, &words, &control);
    let mut stages = query.stages.into_iter().peekable();
    while let Some(stage) = stages.next() {
        rows = match stage {
            Stage::Filter { code, .. } => runner.run(&code, rows, &control)?,
            Stage::Count { by } => stages::counted(rows, by),
            Stage::Sort { by, descending } => {
                let limit = match stages.peek() {
                    Some(Stage::Limit(limit)) => Some(*limit),
                    _ => None,
                };
                stages::sorted(rows, by, descending, limit)
            }
            Stage::Limit(limit) => stages::limited(rows, limit),
            Stage::Table(fields) => stages::tabled(rows, fields),
        };
    }
    Ok((rows, writer, room))
}

/// Writes rows until the source ends or a limit is reached; returns the reason if a limit was reached.
fn write(rows: Rows, writer: &mut Writer, bytes_max: u64, room: &mut Lease) -> Result<Option<String>, Failure> {
    let disk = |error: std::io::Error| Failure::Broken(format!("cannot write the results: {error}"));
    let mut shown = Instant::now();
    for row in rows {
        let row = row?;
        let bytes = writer.bytes() + row.data.len() as u64;
        if bytes > bytes_max {
            let most = bytes_max >> 20;
            return Ok(Some(format!("the results exceed {most} MiB (Render-Store-Limit)")));
        }
        if let Err(no_room) = room.grow(bytes) {
            return Ok(Some(format!("no room for more results: {no_room}")));
        }
        writer.push(&row).map_err(disk)?;
        if shown.elapsed() >= SHOW_EVERY {
            writer.show().map_err(disk)?;
            shown = Instant::now();
        }
    }
    Ok(None)
}

/// Runs a query to its end. Blocks; must be called within a runtime, which runs the sources.
#[must_use]
pub fn run(job: Job) -> Outcome {
    let (control, bytes_max) = (Arc::clone(&job.control), job.bytes_max);
    let fallback = job.writer.results();
    let (written, summary) = match chain(job) {
        Err(failure) => (Err(failure), Ok(Summary::default())),
        Ok((rows, mut writer, mut room)) => {
            let written = write(rows, &mut writer, bytes_max, &mut room);
            // Sources and filters that still run are no longer needed.
            control.end();
            (written, writer.finish())
        }
    };
    control.end();
    let rows = fallback.progress().rows;
    let summary = summary.map_err(|error| format!("cannot write the results: {error}"));
    let (summary, trouble) = match summary {
        Ok(summary) => (summary, String::new()),
        Err(trouble) => (Summary { rows, ..Summary::default() }, trouble),
    };
    let (end, reason, over_limit) = match (written, control.stopped()) {
        (_, Some(Stopped::ByUser)) => (End::Stopped, "stopped by a user".into(), false),
        (_, Some(Stopped::TooLong(reason))) => (End::Stopped, reason, false),
        (_, Some(Stopped::Shutdown)) => (End::Stopped, "the webserver was stopped".into(), false),
        (Ok(Some(reason)), None) => (End::Complete, reason, true),
        (Ok(None), None) if trouble.is_empty() => (End::Complete, String::new(), false),
        (Ok(None), None) => (End::Failed, trouble, false),
        (Err(failure), None) => (End::Failed, failure.to_string(), false),
    };
    Outcome { end, reason, over_limit, summary }
}
