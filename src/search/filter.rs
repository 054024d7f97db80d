//! A filter of jq as a stage: rows go to a process of its own and come back. See [`super::worker`].

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::control::Control;
use super::query::{Query, QueryError, Stage};
use super::row::{ROW_BYTES_MAX, Row, parse_line};
use super::stages::{Failure, Rows};
use super::worker::{ARGUMENT, MEMORY_BYTES};

/// Longest line that a filter may give.
const LINE_BYTES_MAX: u64 = (ROW_BYTES_MAX + 64) as u64;
/// A filter that is only looked at has this long.
const CHECK_SECONDS: u64 = 10;

/// How filters are run.
#[derive(Clone, Debug)]
pub struct Runner {
    /// Program that becomes a filter.
    pub program: PathBuf,
    /// Processor time of one filter, in seconds.
    pub seconds: u64,
}

impl Runner {
    /// The program that runs now, also when it was replaced on disk meanwhile.
    #[must_use]
    pub fn own(seconds: u64) -> Runner {
        Runner { program: "/proc/self/exe".into(), seconds }
    }

    fn start(&self, code: &str, seconds: u64) -> Result<(Child, BufReader<ChildStdout>), Failure> {
        let broken = |error: std::io::Error| Failure::Broken(format!("the filter's process does not start: {error}"));
        let mut command = Command::new(&self.program);
        command.arg0("gravwell-search-filter").arg(ARGUMENT).arg(seconds.to_string()).arg(code);
        command.env_clear().current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(broken)?;
        let out = child.stdout.take().ok_or_else(|| Failure::Broken("the filter has no output".into()))?;
        Ok((child, BufReader::with_capacity(64 << 10, out)))
    }

    /// Reads what a filter says of itself first: the byte and the message when it is not understood.
    fn verdict(out: &mut BufReader<ChildStdout>) -> std::io::Result<Result<(), (usize, String)>> {
        let mut line = String::new();
        out.take(4096).read_line(&mut line)?;
        let line = line.trim_end();
        if line == "+" {
            return Ok(Ok(()));
        }
        let told = line.strip_prefix('-').and_then(|rest| rest.split_once(' '));
        let told = told.and_then(|(at, message)| Some((at.parse().ok()?, message.to_owned())));
        Ok(Err(told.unwrap_or((0, "the filter is too deep or too large to be understood".into()))))
    }

    /// Whether all filters of a query are understood. Takes some milliseconds; blocks.
    ///
    /// # Errors
    /// Names the column.
    pub fn check(&self, query: &Query) -> Result<(), QueryError> {
        for stage in &query.stages {
            let Stage::Filter { code, at } = stage else { continue };
            let wrong = |byte: usize, message: &str| QueryError::at(&query.text, at + byte, message);
            let (mut child, mut out) =
                self.start(code, CHECK_SECONDS).map_err(|failure| wrong(0, &failure.to_string()))?;
            drop(child.stdin.take());
            let verdict = Self::verdict(&mut out);
            let _ = child.kill();
            let _ = child.wait();
            verdict.map_err(|error| wrong(0, &error.to_string()))?.map_err(|(byte, message)| wrong(byte, &message))?;
        }
        Ok(())
    }

    /// Puts a filter behind `rows`.
    ///
    /// # Errors
    /// When its process does not start, or does not understand the filter.
    pub fn run(&self, code: &str, rows: Rows, control: &Arc<Control>) -> Result<Rows, Failure> {
        let (mut child, mut out) = self.start(code, self.seconds)?;
        let input = child.stdin.take();
        let id = child.id();
        let child = Arc::new(Mutex::new(child));
        control.add_child(&child);
        let process = Process { child, id, control: Arc::clone(control) };
        let verdict = Self::verdict(&mut out).map_err(|error| Failure::Broken(error.to_string()))?;
        verdict.map_err(|(_, message)| Failure::Broken(format!("the filter: {message}")))?;
        let mut input = std::io::BufWriter::with_capacity(64 << 10, input.ok_or(Failure::Stopped)?);
        let trouble: Arc<Mutex<Option<Failure>>> = Arc::default();
        let told = Arc::clone(&trouble);
        let feed = move || {
            for row in rows {
                let written = match row {
                    Ok(row) => write!(input, "{} {}\t", row.time, row.tag)
                        .and_then(|()| input.write_all(&row.data))
                        .and_then(|()| input.write_all(b"\n")),
                    Err(failure) => {
                        *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
                        return;
                    }
                };
                // The filter has ended: whoever reads from it learns why.
                if written.is_err() {
                    return;
                }
            }
            let _ = input.flush();
        };
        std::thread::Builder::new()
            .name("search-feed".into())
            .spawn(feed)
            .map_err(|error| Failure::Broken(error.to_string()))?;
        Ok(Box::new(Filtered { process, out, trouble, ended: false }))
    }
}

use std::os::unix::process::CommandExt as _;

/// A running filter, which ends with this.
struct Process {
    child: Arc<Mutex<Child>>,
    id: u32,
    control: Arc<Control>,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.control.remove_child(self.id);
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
    }
}

struct Filtered {
    process: Process,
    out: BufReader<ChildStdout>,
    trouble: Arc<Mutex<Option<Failure>>>,
    ended: bool,
}

impl Filtered {
    fn line(&mut self) -> std::io::Result<Option<Bytes>> {
        let mut line = Vec::new();
        (&mut self.out).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        match line.pop() {
            None => Ok(None),
            Some(b'\n') => Ok(Some(line.into())),
            // What ends without a line break is a part: the filter was ended within it, or it is too long.
            Some(_) => Err(std::io::Error::other(if line.len() as u64 + 1 >= LINE_BYTES_MAX {
                "a row of the filter is too large"
            } else {
                ""
            })),
        }
    }

    /// Why the filter gives nothing more; `None` when it was done.
    fn ending(&mut self, cut: &str) -> Option<Failure> {
        if self.process.control.is_ended() {
            return Some(Failure::Stopped);
        }
        if let Some(failure) = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Some(failure);
        }
        if !cut.is_empty() {
            return Some(Failure::Broken(cut.to_owned()));
        }
        let status = self.process.child.lock().unwrap_or_else(PoisonError::into_inner).wait();
        use std::os::unix::process::ExitStatusExt as _;
        match status {
            Ok(status) if status.success() => None,
            Ok(status) => Some(Failure::Broken(match status.signal() {
                Some(6) => {
                    format!("the filter needs more than {} MiB of memory: ask for less at once", MEMORY_BYTES >> 20)
                }
                Some(11) => "the filter recurses too deeply".into(),
                Some(24 | 9) => "the filter used up its processor time".into(),
                _ => format!("the filter ended with {status}"),
            })),
            Err(error) => Some(Failure::Broken(error.to_string())),
        }
    }
}

impl Iterator for Filtered {
    type Item = Result<Row, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            let line = match self.line() {
                Ok(Some(line)) => line,
                Ok(None) => {
                    self.ended = true;
                    return self.ending("").map(Err);
                }
                Err(error) => {
                    self.ended = true;
                    return self.ending(&error.to_string()).map(Err);
                }
            };
            if line.first() == Some(&b'!') {
                self.process.control.rows_failed.fetch_add(1, Ordering::Relaxed);
                let message = String::from_utf8_lossy(&line[1..]).into_owned();
                self.process.control.warn(format!("the filter fails on some rows: {message}"));
                continue;
            }
            if let Some(row) = parse_line(&line) {
                return Some(Ok(row));
            }
        }
        None
    }
}
