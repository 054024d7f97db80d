//! jq filters as a stage: rows pass through separate processes. See [`super::worker`].

mod lanes;
mod process;
mod slots;

use std::io::{BufRead, BufReader, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use self::process::Process;
use self::slots::Places;
use super::control::Control;
use super::query::{Query, QueryError, Stage};
use super::stages::{Failure, Rows};
use super::worker::{ARGUMENT, Sandbox};

pub use slots::{Busy, Reserved};

/// Processor time of a filter that is only checked, in seconds.
const CHECK_SECONDS: u64 = 10;
/// Maximum number of processes that check filters of queries, separate from those of searches.
const CHECKS_MAX: usize = 8;
/// A filter that passes its input on unchanged.
const NOTHING: &str = ".";

/// Starts the processes of filters.
#[derive(Clone, Debug)]
pub struct Runner {
    /// Program that runs as the filter process.
    program: PathBuf,
    /// Processor time limit of one filter, in seconds.
    seconds: u64,
    sandbox: Sandbox,
    /// Limits on processes of searches and of checks. They are separate so that searches cannot block the checking
    /// of queries.
    searches: Arc<Places>,
    checks: Arc<Places>,
    /// Whether it was logged that filters are not fully confined.
    is_noted: Arc<AtomicBool>,
}

impl Runner {
    /// Uses the running program, even if its file was replaced on disk. A filter has `seconds` of processor time; all
    /// searches together have `processes_max` processes.
    #[must_use]
    pub fn own(seconds: u64, processes_max: usize, sandbox: Sandbox) -> Runner {
        Runner {
            program: "/proc/self/exe".into(),
            seconds,
            sandbox,
            searches: Arc::new(Places::new(processes_max)),
            checks: Arc::new(Places::new(CHECKS_MAX)),
            is_noted: Arc::default(),
        }
    }

    /// Starts a process and sends it the filter through its input, because every user of the host can read arguments.
    fn start(&self, code: &str, seconds: u64) -> Result<(Child, BufReader<ChildStdout>), Failure> {
        let broken = |error: std::io::Error| Failure::Broken(format!("cannot start the filter process: {error}"));
        let mut command = Command::new(&self.program);
        command.arg0("gravwell-search-filter").arg(ARGUMENT).arg(seconds.to_string()).arg(self.sandbox.to_string());
        // An empty `TZ` selects UTC without reading any file.
        command.env_clear().env("TZ", "").current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(broken)?;
        let out = child.stdout.take().ok_or_else(|| Failure::Broken("the filter has no output".into()))?;
        if let Some(input) = &mut child.stdin {
            // A write error is ignored: the output of the process states the reason.
            let length = u32::try_from(code.len()).unwrap_or(u32::MAX);
            let _ = input.write_all(&length.to_le_bytes()).and_then(|()| input.write_all(code.as_bytes()));
        }
        Ok((child, BufReader::with_capacity(64 << 10, out)))
    }

    /// Reads the first line of a filter's output; on a compile error returns the byte offset and the message.
    fn verdict(&self, out: &mut BufReader<ChildStdout>) -> std::io::Result<Result<(), (usize, String)>> {
        let mut line = String::new();
        out.take(4096).read_line(&mut line)?;
        let line = line.trim_end();
        if let Some(missing) = line.strip_prefix('+') {
            self.note_missing(missing);
            return Ok(Ok(()));
        }
        let told = line.strip_prefix('-').and_then(|rest| rest.split_once(' '));
        let told = told.and_then(|(at, message)| Some((at.parse().ok()?, message.to_owned())));
        Ok(Err(told.unwrap_or((0, "the filter is too deeply nested or too large".into()))))
    }

    /// Logs, once, the sandbox layers that are missing.
    fn note_missing(&self, missing: &str) {
        if !missing.is_empty() && !self.is_noted.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                missing,
                "search filters are not fully confined by this kernel; Search-Filter-Sandbox=required rejects them"
            );
        }
    }

    /// Reserves a process for each filter of a query.
    ///
    /// # Errors
    /// If the processes do not become free in time.
    pub async fn reserve(&self, uid: Option<i32>, query: &Query) -> Result<Reserved, Busy> {
        let filters = query.stages.iter().filter(|stage| matches!(stage, Stage::Filter { .. })).count();
        self.searches.reserve(uid, filters).await
    }

    /// Reserves the process in which the filters of a query are checked.
    ///
    /// # Errors
    /// If the process does not become free in time.
    pub async fn reserve_check(&self, uid: Option<i32>) -> Result<Reserved, Busy> {
        self.checks.reserve(uid, 1).await
    }

    /// Checks that filters run on this host as configured, and logs missing sandbox layers. Blocks.
    ///
    /// # Errors
    /// Returns the reason why filters do not run.
    pub fn probe(&self) -> Result<(), String> {
        let tried = self.tried(NOTHING).map_err(|(_, message)| message);
        tried.inspect_err(|error| tracing::error!(%error, "filter self-test failed; searches with filters will fail"))
    }

    /// Starts a process with a filter and kills it after its first line; on a compile error returns the byte offset and
    /// the message.
    fn tried(&self, code: &str) -> Result<(), (usize, String)> {
        let (mut child, mut out) = self.start(code, CHECK_SECONDS).map_err(|failure| (0, failure.to_string()))?;
        drop(child.stdin.take());
        let verdict = self.verdict(&mut out);
        let _ = child.kill();
        let _ = child.wait();
        verdict.map_err(|error| (0, error.to_string()))?
    }

    /// Checks that all filters of a query compile. Takes some milliseconds; blocks.
    ///
    /// # Errors
    /// If a filter does not compile; the error has the column.
    pub fn check(&self, query: &Query) -> Result<(), QueryError> {
        for stage in &query.stages {
            let Stage::Filter { code, at } = stage else { continue };
            self.tried(code).map_err(|(byte, message)| QueryError::at(&query.text, at + byte, message))?;
        }
        Ok(())
    }

    /// Starts a process that runs a filter.
    fn begin(&self, code: &str, control: &Arc<Control>) -> Result<Process, Failure> {
        let (child, mut out) = self.start(code, self.seconds)?;
        // From here on the process is killed when the search ends.
        let verdict = self.verdict(&mut out);
        let process = Process::new(child, out, control);
        match verdict.map_err(|error| Failure::Broken(error.to_string()))? {
            Ok(()) => Ok(process),
            Err((_, message)) => Err(Failure::Broken(format!("filter failed: {message}"))),
        }
    }

    /// Starts one more process of a filter if a slot is free.
    fn start_more(&self, code: &str, control: &Arc<Control>) -> Option<Process> {
        let place = self.searches.spare()?;
        self.begin(code, control).ok().map(|process| process.in_place(place))
    }

    /// Applies a filter to `rows`, in a process that was reserved.
    ///
    /// # Errors
    /// If the process does not start or the filter does not compile.
    pub fn run(&self, code: &str, rows: Rows, control: &Arc<Control>) -> Result<Rows, Failure> {
        let first = self.begin(code, control)?;
        lanes::filtered(self.clone(), code, rows, first, control)
    }
}
