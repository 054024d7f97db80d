//! Runs rows through a filter in up to [`LANES_MAX`] processes. Batches go to the processes in turn, and results are read
//! back in the same order.

use std::process::ChildStdin;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Runner;
use super::process::{Given, Process, give};
use crate::control::Control;
use crate::row::{ROW_HEAD_BYTES, Row};
use crate::stages::{Failure, Rows};
use crate::worker::MESSAGE_TAG;

/// Size of a batch. A batch and its length fit into a pipe, so the giver need not wait for a filter that is busy.
const BATCH_BYTES: usize = 60 << 10;
/// A batch that is not full is sent after this time.
const BATCH_AGE: Duration = Duration::from_millis(250);
/// Number of batches handled by a single process; most searches have no more.
const BATCHES_ALONE: u64 = 4;
/// Maximum number of processes of one filter.
const LANES_MAX: usize = 2;
/// Maximum number of turns in flight.
const UNDER_WAY: usize = 16;

/// Returns the number of processes in which a filter may run. A filter that reads input itself gets one, because each of
/// its results may depend on previous rows.
fn lanes_of(code: &str) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    if code.contains("input") { 1 } else { processors.min(LANES_MAX) }
}

/// Message from giver to taker: a new process, or the process that outputs the next batch.
enum Turn {
    Lane(Process),
    Batch(usize),
}

/// Sends rows to the processes.
struct RowSender {
    runner: Runner,
    code: String,
    control: Arc<Control>,
    lanes_max: usize,
    lanes: Vec<ChildStdin>,
    batches: u64,
    turns: SyncSender<Turn>,
}

impl RowSender {
    fn add_lane(&mut self, process: Process) -> Option<()> {
        self.lanes.push(process.input()?);
        self.turns.send(Turn::Lane(process)).ok()
    }

    /// Sends a batch to the next process; returns `None` when no more rows are wanted.
    fn give(&mut self, batch: &mut Vec<u8>) -> Option<()> {
        if batch.is_empty() {
            return Some(());
        }
        if self.batches >= BATCHES_ALONE && self.lanes.len() < self.lanes_max {
            match self.runner.start_more(&self.code, &self.control) {
                Some(process) => self.add_lane(process)?,
                // No further process is available, so the running ones have to suffice.
                None => self.lanes_max = self.lanes.len(),
            }
        }
        let lane = usize::try_from(self.batches % self.lanes.len() as u64).ok()?;
        self.batches += 1;
        self.turns.send(Turn::Batch(lane)).ok()?;
        // If a filter has exited, the taker determines the reason.
        give(self.lanes.get_mut(lane)?, batch).ok()?;
        batch.clear();
        Some(())
    }

    /// Sends all rows; returns the failure that ended them, if any.
    fn send_all_rows(&mut self, rows: Rows) -> Option<Failure> {
        let mut batch = Vec::with_capacity(BATCH_BYTES);
        let (mut begun, mut failure) = (Instant::now(), None);
        for row in rows {
            let row = match row {
                Ok(row) => row,
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            };
            if batch.len() + ROW_HEAD_BYTES + row.data.len() > BATCH_BYTES || begun.elapsed() > BATCH_AGE {
                self.give(&mut batch)?;
                begun = Instant::now();
            }
            row.write(&mut batch);
        }
        self.give(&mut batch)?;
        failure
    }
}

/// Reads the results back.
struct ResultReader {
    control: Arc<Control>,
    lanes: Vec<Process>,
    turns: Receiver<Turn>,
    /// The process whose output is being read.
    turn: Option<usize>,
    /// Number of processes that have been read to the end, once there are no more turns.
    drained: usize,
    ready: Bytes,
    trouble: Arc<Mutex<Option<Failure>>>,
    is_ended: bool,
    /// Keeps the giver's thread alive.
    _alive: SyncSender<()>,
}

/// Applies a filter to `rows`; its first process is already running.
pub(super) fn filtered(
    runner: Runner,
    code: &str,
    rows: Rows,
    first: Process,
    control: &Arc<Control>,
) -> Result<Rows, Failure> {
    let (turns, taken) = sync_channel(UNDER_WAY);
    let mut giver = RowSender {
        runner,
        code: code.to_owned(),
        control: Arc::clone(control),
        lanes_max: lanes_of(code),
        lanes: Vec::new(),
        batches: 0,
        turns,
    };
    giver.add_lane(first).ok_or(Failure::Stopped)?;
    let trouble: Arc<Mutex<Option<Failure>>> = Arc::default();
    let told = Arc::clone(&trouble);
    let (alive, over) = sync_channel::<()>(0);
    let send_all_rows = move || {
        let failure = giver.send_all_rows(rows);
        *told.lock().unwrap_or_else(PoisonError::into_inner) = failure;
        // Only now do the filters and the taker see the end of the rows, so the taker finds the failure in place.
        drop(giver);
        // A process is killed when the thread that started it exits (parent death signal).
        let _ = over.recv();
    };
    std::thread::Builder::new()
        .name("search-feed".into())
        .spawn(send_all_rows)
        .map_err(|error| Failure::Broken(error.to_string()))?;
    Ok(Box::new(ResultReader {
        control: Arc::clone(control),
        lanes: Vec::new(),
        turns: taken,
        turn: None,
        drained: 0,
        ready: Bytes::new(),
        trouble,
        is_ended: false,
        _alive: alive,
    }))
}

impl ResultReader {
    /// Waits for the next output or turn; returns `Err` at the end, with the failure if there is one.
    fn advance(&mut self) -> Result<(), Option<Failure>> {
        let Some(lane) = self.turn else {
            match self.turns.recv() {
                Ok(Turn::Lane(process)) => self.lanes.push(process),
                Ok(Turn::Batch(lane)) => self.turn = Some(lane),
                Err(_) => return self.drain(),
            }
            return Ok(());
        };
        match self.lanes.get_mut(lane).map_or(Given::End(""), Process::next) {
            Given::Rows(rows) => self.ready = rows,
            Given::BatchEnd => self.turn = None,
            Given::End(cut) => return Err(self.ending(lane, cut)),
        }
        Ok(())
    }

    /// Reads the output that filters write after the last batch.
    fn drain(&mut self) -> Result<(), Option<Failure>> {
        let lane = self.drained;
        let Some(process) = self.lanes.get_mut(lane) else { return Err(None) };
        match process.next() {
            Given::Rows(rows) => self.ready = rows,
            Given::BatchEnd => {}
            Given::End(cut) => match self.ending(lane, cut) {
                None => self.drained += 1,
                failure => return Err(failure),
            },
        }
        Ok(())
    }

    /// Returns the reason why a process has no more output; `None` if it succeeded.
    fn ending(&self, lane: usize, cut: &str) -> Option<Failure> {
        if self.control.is_ended() {
            return Some(Failure::Stopped);
        }
        if let Some(failure) = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Some(failure);
        }
        if !cut.is_empty() {
            return Some(Failure::Broken(cut.to_owned()));
        }
        self.lanes.get(lane).and_then(Process::ending)
    }

    fn note(&self, message: &[u8]) {
        self.control.rows_failed.fetch_add(1, Ordering::Relaxed);
        let message = String::from_utf8_lossy(message);
        self.control.warn(format!("the filter failed on some rows: {message}"));
    }
}

impl Iterator for ResultReader {
    type Item = Result<Row, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.is_ended {
            if !self.ready.is_empty() {
                match Row::take(&mut self.ready) {
                    Some(row) if row.tag == MESSAGE_TAG => self.note(&row.data),
                    Some(row) => return Some(Ok(row)),
                    None => {
                        self.is_ended = true;
                        return Some(Err(Failure::Broken("invalid output of the filter process".into())));
                    }
                }
                continue;
            }
            if let Err(ending) = self.advance() {
                self.is_ended = true;
                return ending.map(Err);
            }
        }
        None
    }
}
