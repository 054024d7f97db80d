//! One filter process, as seen by the webserver: rows in, rows out, and the reason of its exit.

use std::io::{BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdin, ChildStdout};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::slots::Reserved;
use crate::control::Control;
use crate::stages::Failure;
use crate::worker::{FRAME_BYTES_MAX, MEMORY_BYTES};

/// Output of a filter.
pub(super) enum Given {
    /// Rows, as [`crate::row::Row::take`] reads them.
    Rows(Bytes),
    /// The output of one batch is complete.
    BatchEnd,
    /// The process has no more output; the text describes an oversized row, otherwise it is empty.
    End(&'static str),
}

/// A running filter, killed on drop.
pub(super) struct Process {
    child: Arc<Mutex<Child>>,
    id: u32,
    control: Arc<Control>,
    out: BufReader<ChildStdout>,
    /// Its slot, unless the search holds it.
    place: Option<Reserved>,
}

impl Process {
    /// Wraps a filter process that was started.
    pub(super) fn new(child: Child, out: BufReader<ChildStdout>, control: &Arc<Control>) -> Process {
        let id = child.id();
        let child = Arc::new(Mutex::new(child));
        control.add_child(&child);
        Process { child, id, control: Arc::clone(control), out, place: None }
    }

    /// Attaches a slot, which is released after the process has exited.
    pub(super) fn in_place(self, place: Reserved) -> Process {
        let mut process = self;
        process.place = Some(place);
        process
    }

    /// Takes the standard input, to which rows are written.
    pub(super) fn input(&self) -> Option<ChildStdin> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).stdin.take()
    }

    /// Reads the next output. Blocks.
    pub(super) fn next(&mut self) -> Given {
        let mut length = [0; 4];
        if self.out.read_exact(&mut length).is_err() {
            return Given::End("");
        }
        match u32::from_le_bytes(length) as usize {
            0 => Given::BatchEnd,
            length if length > FRAME_BYTES_MAX => Given::End("a row of the filter is too large"),
            length => {
                let mut bytes = vec![0; length];
                match self.out.read_exact(&mut bytes) {
                    Ok(()) => Given::Rows(bytes.into()),
                    Err(_) => Given::End(""),
                }
            }
        }
    }

    /// Waits for the process to exit and returns the reason of a failure; `None` if it succeeded. Blocks.
    pub(super) fn ending(&self) -> Option<Failure> {
        let status = self.child.lock().unwrap_or_else(PoisonError::into_inner).wait();
        match status {
            Ok(status) if status.success() => None,
            Ok(status) => Some(Failure::Broken(match status.signal() {
                Some(6) => {
                    format!(
                        "the filter needs more than {} MiB of memory; process less data at a time",
                        MEMORY_BYTES >> 20
                    )
                }
                Some(11) => "the filter recurses too deeply".into(),
                Some(24 | 9) => "the filter exceeded its CPU time limit".into(),
                _ => format!("the filter exited with {status}"),
            })),
            Err(error) => Some(Failure::Broken(error.to_string())),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.control.remove_child(self.id);
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
        drop(self.place.take());
    }
}

/// Sends a batch to a filter: its length and its rows.
pub(super) fn give(to: &mut ChildStdin, batch: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(batch.len()).map_err(std::io::Error::other)?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(batch)
}
