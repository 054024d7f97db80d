//! A filter of jq as a stage: rows go to processes of its own and come back. See [`super::worker`].

mod lanes;
mod places;
mod process;

use std::io::{BufRead, BufReader, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use self::places::Places;
use self::process::Process;
use super::control::Control;
use super::query::{Query, QueryError, Stage};
use super::stages::{Failure, Rows};
use super::worker::{ARGUMENT, Sandbox};

pub use places::{Busy, Reserved};

/// A filter that is only looked at has this long.
const CHECK_SECONDS: u64 = 10;
/// Processes that look at filters of queries, besides those of searches.
const CHECKS_MAX: usize = 8;
/// A filter that does nothing.
const NOTHING: &str = ".";

/// How filters are run.
#[derive(Clone, Debug)]
pub struct Runner {
    /// Program that becomes a filter.
    program: PathBuf,
    /// Processor time of one filter, in seconds.
    seconds: u64,
    sandbox: Sandbox,
    /// Processes of searches, and those that check queries: a search must not keep queries from being checked.
    searches: Arc<Places>,
    checks: Arc<Places>,
    /// Whether it was logged that filters are not fully confined.
    is_noted: Arc<AtomicBool>,
}

impl Runner {
    /// The program that runs now, also when it was replaced on disk meanwhile. A filter has `seconds` of processor time;
    /// all searches together have `processes_max` processes.
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

    /// Starts a process and hands it the filter through its input: arguments can be read by every user of the host.
    fn start(&self, code: &str, seconds: u64) -> Result<(Child, BufReader<ChildStdout>), Failure> {
        let broken = |error: std::io::Error| Failure::Broken(format!("the filter's process does not start: {error}"));
        let mut command = Command::new(&self.program);
        command.arg0("gravwell-search-filter").arg(ARGUMENT).arg(seconds.to_string()).arg(self.sandbox.to_string());
        // Its time zone is UTC, without a look at any file.
        command.env_clear().env("TZ", "").current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(broken)?;
        let out = child.stdout.take().ok_or_else(|| Failure::Broken("the filter has no output".into()))?;
        if let Some(input) = &mut child.stdin {
            // Why it takes nothing is what it says on its output.
            let length = u32::try_from(code.len()).unwrap_or(u32::MAX);
            let _ = input.write_all(&length.to_le_bytes()).and_then(|()| input.write_all(code.as_bytes()));
        }
        Ok((child, BufReader::with_capacity(64 << 10, out)))
    }

    /// Reads what a filter says of itself first: the byte and the message when it is not understood.
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
        Ok(Err(told.unwrap_or((0, "the filter is too deep or too large to be understood".into()))))
    }

    /// Logs once what filters are not confined by.
    fn note_missing(&self, missing: &str) {
        if !missing.is_empty() && !self.is_noted.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                missing,
                "filters of searches are not fully confined by this kernel; Search-Filter-Sandbox=required refuses them instead"
            );
        }
    }

    /// Reserves a process for each filter of a query.
    ///
    /// # Errors
    /// When they do not become free in time.
    pub async fn reserve(&self, uid: Option<i32>, query: &Query) -> Result<Reserved, Busy> {
        let filters = query.stages.iter().filter(|stage| matches!(stage, Stage::Filter { .. })).count();
        self.searches.reserve(uid, filters).await
    }

    /// Reserves the process in which filters of a query are checked.
    ///
    /// # Errors
    /// When it does not become free in time.
    pub async fn reserve_check(&self, uid: Option<i32>) -> Result<Reserved, Busy> {
        self.checks.reserve(uid, 1).await
    }

    /// Whether filters run on this host as configured; logs what confines them less than wished. Blocks.
    ///
    /// # Errors
    /// Says why they do not.
    pub fn probe(&self) -> Result<(), String> {
        let tried = self.tried(NOTHING).map_err(|(_, message)| message);
        tried.inspect_err(|error| tracing::error!(%error, "searches with filters will fail"))
    }

    /// Starts a process with a filter and ends it again; the byte and the message when it is not understood.
    fn tried(&self, code: &str) -> Result<(), (usize, String)> {
        let (mut child, mut out) = self.start(code, CHECK_SECONDS).map_err(|failure| (0, failure.to_string()))?;
        drop(child.stdin.take());
        let verdict = self.verdict(&mut out);
        let _ = child.kill();
        let _ = child.wait();
        verdict.map_err(|error| (0, error.to_string()))?
    }

    /// Whether all filters of a query are understood. Takes some milliseconds; blocks.
    ///
    /// # Errors
    /// Names the column.
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
        // From here on it ends with the search, whatever it does.
        let verdict = self.verdict(&mut out);
        let process = Process::new(child, out, control);
        match verdict.map_err(|error| Failure::Broken(error.to_string()))? {
            Ok(()) => Ok(process),
            Err((_, message)) => Err(Failure::Broken(format!("the filter: {message}"))),
        }
    }

    /// Starts one more process of a filter, if there is a place for it.
    fn begin_more(&self, code: &str, control: &Arc<Control>) -> Option<Process> {
        let place = self.searches.spare()?;
        self.begin(code, control).ok().map(|process| process.in_place(place))
    }

    /// Puts a filter behind `rows`, in a process that was reserved.
    ///
    /// # Errors
    /// When its process does not start, or does not understand the filter.
    pub fn run(&self, code: &str, rows: Rows, control: &Arc<Control>) -> Result<Rows, Failure> {
        let first = self.begin(code, control)?;
        lanes::filtered(self.clone(), code, rows, first, control)
    }
}
