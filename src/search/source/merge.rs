//! Merges the rows of all sources by time.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use super::output::{Batch, Output};
use super::{Range, Sources, Terms};
use crate::control::Control;
use crate::row::Row;
use crate::stages::{Failure, Rows};
use gravwell_runtime::telemetry::metrics;

/// Starts all sources and merges their rows by time. Failed sources are named in warnings; if all sources fail, the rows
/// end with that failure.
pub fn merged(sources: Sources, range: Range, words: &Terms, control: &Arc<Control>) -> Rows {
    let failures: Arc<Mutex<Vec<String>>> = Arc::default();
    let mut inputs = Vec::with_capacity(sources.len());
    for (tag, source) in sources {
        let (name, label) = (source.name(), source.label());
        let (out, from) = Output::new(words.clone(), Arc::clone(control));
        // Keeps the channel open until the failure has been recorded.
        let open = out.sender();
        let telling = source.tell(range, out);
        let (warned, failed) = (Arc::clone(control), Arc::clone(&failures));
        let task = tokio::spawn(async move {
            // An empty reason means that no more rows were wanted.
            if let Err(reason) = telling.await
                && !reason.is_empty()
            {
                metrics::search_source_failed(label);
                warned.warn(format!("partial results: {name}: {reason}"));
                failed.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{name}: {reason}"));
            }
            drop(open);
        });
        control.add_source(task.abort_handle());
        inputs.push(Input { tag, from, batch: Batch::default() });
    }
    Box::new(Merge { of: inputs.len(), inputs, failures, control: Arc::clone(control) })
}

struct Input {
    tag: u16,
    from: mpsc::Receiver<Batch>,
    batch: Batch,
}

impl Input {
    /// Waits for the next row and returns its time.
    fn peek(&mut self) -> Option<i64> {
        loop {
            if let Some(time) = self.batch.peek() {
                return Some(time);
            }
            self.batch = self.from.blocking_recv()?;
        }
    }

    fn next(&mut self) -> Option<Row> {
        self.batch.next(self.tag)
    }
}

struct Merge {
    of: usize,
    inputs: Vec<Input>,
    failures: Arc<Mutex<Vec<String>>>,
    control: Arc<Control>,
}

impl Merge {
    /// Returns, once, the failure with which the rows end.
    fn ending(&mut self) -> Option<Failure> {
        if self.control.is_ended() {
            return Some(Failure::Stopped);
        }
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let all = !failures.is_empty() && failures.len() == std::mem::take(&mut self.of);
        all.then(|| Failure::Broken(failures.drain(..).collect::<Vec<_>>().join("; ")))
    }
}

impl Iterator for Merge {
    type Item = Result<Row, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.of == 0 || self.control.is_ended() {
            let stopped = self.of > 0 && self.control.is_ended();
            self.of = 0;
            return stopped.then_some(Err(Failure::Stopped));
        }
        let mut first: Option<(i64, usize)> = None;
        let mut number = 0;
        while let Some(input) = self.inputs.get_mut(number) {
            match input.peek() {
                None => drop(self.inputs.swap_remove(number)),
                Some(time) => {
                    if first.is_none_or(|(earliest, _)| time < earliest) {
                        first = Some((time, number));
                    }
                    number += 1;
                }
            }
        }
        let Some((_, number)) = first else {
            let ending = self.ending();
            self.of = 0;
            return ending.map(Err);
        };
        self.inputs.get_mut(number).and_then(Input::next).map(Ok)
    }
}
