//! Output of a source. Rows are collected in one buffer per batch and sent as batches.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::Terms;
use crate::control::Control;
use crate::row::{ROW_BYTES_MAX, Row};

/// Maximum number of rows of a batch.
const BATCH_ROWS: usize = 1024;
/// Number of bytes at which a batch is complete.
const BATCH_BYTES: usize = 64 << 10;
/// Maximum number of batches of one source that wait to be merged.
const BATCHES: usize = 4;

/// A batch of rows of one source.
#[derive(Default)]
pub(super) struct Batch {
    data: Bytes,
    /// Time and end offset of each row, last row first.
    ends: Vec<(i64, usize)>,
    begin: usize,
}

impl Batch {
    /// Returns the time of the next row.
    pub(super) fn peek(&self) -> Option<i64> {
        self.ends.last().map(|(time, _)| *time)
    }

    /// Returns the next row, which shares the memory of the batch.
    pub(super) fn next(&mut self, tag: u16) -> Option<Row> {
        let (time, end) = self.ends.pop()?;
        let data = self.data.slice(self.begin..end);
        self.begin = end;
        Some(Row { time, tag, data })
    }
}

/// Receives the rows of a source.
pub struct Output {
    words: Terms,
    control: Arc<Control>,
    data: Vec<u8>,
    ends: Vec<(i64, usize)>,
    to: mpsc::Sender<Batch>,
}

impl Output {
    pub(super) fn new(words: Terms, control: Arc<Control>) -> (Output, mpsc::Receiver<Batch>) {
        let (to, from) = mpsc::channel(BATCHES);
        (Output { words, control, data: Vec::new(), ends: Vec::new(), to }, from)
    }

    /// Returns a sender, which keeps the channel open.
    pub(super) fn sender(&self) -> mpsc::Sender<Batch> {
        self.to.clone()
    }

    /// Appends a row: one JSON value without line breaks. Returns `true` when the batch should be flushed.
    ///
    /// # Errors
    /// If the row exceeds the maximum size.
    pub fn push(&mut self, time: i64, row: &[u8]) -> Result<bool, String> {
        self.control.rows_in.fetch_add(1, Ordering::Relaxed);
        self.control.bytes_in.fetch_add(row.len() as u64, Ordering::Relaxed);
        if row.len() > ROW_BYTES_MAX {
            return Err(format!("a row has more than {} MiB", ROW_BYTES_MAX >> 20));
        }
        if self.words.fit(row) {
            if self.data.capacity() == 0 {
                self.data.reserve(BATCH_BYTES + BATCH_BYTES / 4);
            }
            self.data.extend_from_slice(row);
            self.ends.push((time, self.data.len()));
        }
        Ok(self.ends.len() >= BATCH_ROWS || self.data.len() >= BATCH_BYTES)
    }

    fn batch(&mut self) -> Option<Batch> {
        if self.ends.is_empty() {
            return None;
        }
        let mut ends = std::mem::take(&mut self.ends);
        ends.reverse();
        Some(Batch { data: std::mem::take(&mut self.data).into(), ends, begin: 0 })
    }

    /// Sends the current batch; waits for capacity.
    ///
    /// # Errors
    /// If no more rows are wanted.
    pub async fn flush(&mut self) -> Result<(), String> {
        match self.batch() {
            Some(batch) => self.to.send(batch).await.map_err(|_| String::new()),
            None => Ok(()),
        }
    }

    /// Like [`Output::flush`], for blocking threads.
    ///
    /// # Errors
    /// If no more rows are wanted.
    pub fn flush_blocking(&mut self) -> Result<(), String> {
        match self.batch() {
            Some(batch) => self.to.blocking_send(batch).map_err(|_| String::new()),
            None => Ok(()),
        }
    }
}
