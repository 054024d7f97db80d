//! A filter of jq as a stage: rows go to processes of its own and come back. See [`super::worker`].

mod lanes;
mod process;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;

use self::process::Process;
use super::control::Control;
use super::query::{Query, QueryError, Stage};
use super::stages::{Failure, Rows};
use super::worker::ARGUMENT;

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

    /// Starts a process that runs a filter.
    fn begin(&self, code: &str, control: &Arc<Control>) -> Result<Process, Failure> {
        let (child, mut out) = self.start(code, self.seconds)?;
        // From here on it ends with the search, whatever it does.
        let verdict = Self::verdict(&mut out);
        let process = Process::new(child, out, control);
        match verdict.map_err(|error| Failure::Broken(error.to_string()))? {
            Ok(()) => Ok(process),
            Err((_, message)) => Err(Failure::Broken(format!("the filter: {message}"))),
        }
    }

    /// Puts a filter behind `rows`.
    ///
    /// # Errors
    /// When its process does not start, or does not understand the filter.
    pub fn run(&self, code: &str, rows: Rows, control: &Arc<Control>) -> Result<Rows, Failure> {
        let first = self.begin(code, control)?;
        lanes::filtered(self.clone(), code, rows, first, control)
    }
}
