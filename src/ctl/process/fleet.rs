//! Small fleet on this machine: a datastore and replicas as processes of this program, each with its own directory
//! below a common one. When the fleet is dropped, its processes are killed and the common directory is removed.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use gravwell_model::MemberName;
use gravwell_model::codec::admin::{Invitation, Request, Status};
use gravwell_transport::local;

use crate::client::Client;
use crate::error::{CtlError, CtlResult};

/// Longest wait for a process to respond.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for a process to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(6);

/// Processes and their directories.
pub(crate) struct Fleet {
    base: PathBuf,
    program: PathBuf,
    /// Address of the datastore; kept across a restart, because members know it.
    listen: String,
    processes: Vec<(String, Child)>,
}

impl Fleet {
    /// Creates an empty fleet in a new directory below `parent`, or below the system's temporary directory.
    pub(crate) fn new(parent: Option<&Path>, purpose: &str) -> Result<Fleet, CtlError> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
        let base = parent.join(format!("gravwell-{purpose}-{}", std::process::id()));
        let named = |error: std::io::Error| CtlError::new(format!("{}: {error}", base.display()));
        DirBuilder::new().mode(0o700).create(&base).map_err(named)?;
        let program = std::env::current_exe().map_err(CtlError::new)?;
        Ok(Fleet { base, program, listen: "127.0.0.1:0".into(), processes: Vec::new() })
    }

    /// Returns the directory of a process.
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }

    fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--data-dir").arg(self.dir(name)).args(arguments).stdin(Stdio::null());
        // An interrupt from the terminal must reach only this process, which then stops the others in order.
        command.process_group(0);
        command
    }

    /// Runs a command of this program on the directory of `name` to completion.
    pub(crate) fn call(&self, name: &str, arguments: &[&str]) -> Result<Output, CtlError> {
        let output = self.command(name, arguments).output().map_err(CtlError::new)?;
        if output.status.success() {
            return Ok(output);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(CtlError::new(format!("`{}` on {name} failed: {}", arguments.join(" "), said.trim())))
    }

    /// Starts a command of this program in the background and captures its standard error.
    pub(crate) fn begin(&mut self, name: &str, task: &str, arguments: &[&str]) -> CtlResult {
        let mut command = self.command(name, arguments);
        let child = command.stdout(Stdio::null()).stderr(self.journal(task)?).spawn().map_err(CtlError::new)?;
        self.processes.push((task.to_owned(), child));
        Ok(())
    }

    fn journal(&self, name: &str) -> Result<File, CtlError> {
        File::create(self.base.join(format!("{name}.log"))).map_err(CtlError::new)
    }

    fn said(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.base.join(format!("{name}.log"))).unwrap_or_default();
        let lines: Vec<&str> = text.trim().lines().rev().take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Returns whether a started task has succeeded; a failed task is an error.
    pub(crate) fn has_ended(&mut self, task: &str) -> Result<bool, CtlError> {
        let Some(at) = self.processes.iter().position(|(name, _)| name == task) else { return Ok(true) };
        match self.processes[at].1.try_wait().map_err(CtlError::new)? {
            None => Ok(false),
            Some(status) if status.success() => {
                self.processes.remove(at);
                Ok(true)
            }
            Some(status) => Err(CtlError::new(format!("{task} exited with {status}: {}", self.said(task)))),
        }
    }

    /// Starts the datastore and waits until it responds.
    pub(crate) async fn start_datastore(&mut self, options: &[&str]) -> Result<Client, CtlError> {
        let listen = self.listen.clone();
        let mut arguments = vec!["datastore", "--listen", &listen, "--log-level", "warn"];
        arguments.extend(options);
        self.begin("datastore", "datastore", &arguments)?;
        let client = self.answer("datastore").await?;
        self.listen = client.item::<Status>(&Request::Status).await?.address;
        Ok(client)
    }

    /// Returns the address of the datastore.
    pub(crate) fn listen(&self) -> &str {
        &self.listen
    }

    /// Enrolls `name` and joins it, so that its directory contains an identity.
    pub(crate) async fn enroll(&self, datastore: &Client, name: &str) -> CtlResult {
        let invited = Request::Enroll {
            name: MemberName::new(name).map_err(CtlError::new)?,
            role: "webserver".into(),
            ttl_s: 600,
            addresses: vec![self.listen.clone()],
            replace: false,
        };
        let Invitation { token, .. } = datastore.item(&invited).await?;
        self.call(name, &["join", &token]).map(|_| ())
    }

    /// Starts a webserver that listens at `listen` (plain HTTP) and connects to its datastore at `datastore`. Waits
    /// until its replica responds.
    pub(crate) async fn start_webserver(
        &mut self,
        name: &str,
        listen: &str,
        datastore: &str,
    ) -> Result<Client, CtlError> {
        let options = ["--insecure-disable-https", "--default-password", "--log-level", "warn"];
        let mut arguments = vec!["webserver", "--listen", listen, "--external-addr", listen, "--datastore", datastore];
        arguments.extend(options);
        self.begin(name, name, &arguments)?;
        self.answer(name).await
    }

    /// Waits until a started process responds.
    pub(crate) async fn answer(&mut self, name: &str) -> Result<Client, CtlError> {
        let (dir, started) = (self.dir(name), Instant::now());
        while started.elapsed() < START_TIMEOUT {
            if self.has_ended(name)? {
                return Err(CtlError::new(format!("{name} exited immediately: {}", self.said(name))));
            }
            if let Ok((_handle, path)) = local::short_path(&dir)
                && tokio::net::UnixStream::connect(path).await.is_ok()
            {
                return Client::open(&dir).await;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Err(CtlError::new(format!("{name} does not respond: {}", self.said(name))))
    }

    /// Sends a process SIGTERM and waits until it has exited.
    pub(crate) async fn stop(&mut self, name: &str) -> CtlResult {
        let Some(at) = self.processes.iter().position(|(process, _)| process == name) else { return Ok(()) };
        let (_, mut child) = self.processes.remove(at);
        terminate(&child);
        let started = Instant::now();
        while child.try_wait().map_err(CtlError::new)?.is_none() {
            if started.elapsed() > STOP_TIMEOUT {
                let _ = child.kill();
                let _ = child.wait();
                return Err(CtlError::new(format!("{name} did not stop within {STOP_TIMEOUT:?}")));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Returns the process id, for measurements.
    pub(crate) fn pid(&self, name: &str) -> Option<u32> {
        self.processes.iter().find(|(process, _)| process == name).map(|(_, child)| child.id())
    }
}

fn terminate(child: &Child) {
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for (_, child) in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.base);
    }
}

/// Waits until `is_met` holds for the status of `client`.
pub(crate) async fn wait_for(
    client: &Client,
    what: &str,
    timeout: Duration,
    is_met: impl Fn(&Status) -> bool,
) -> Result<Status, CtlError> {
    let started = Instant::now();
    loop {
        let status: Status = client.item(&Request::Status).await?;
        if is_met(&status) {
            return Ok(status);
        }
        if started.elapsed() > timeout {
            let Status { seq, head, outbox, verdict, problem, .. } = status;
            let state = format!("sequence {seq} of {head}, outbox {outbox}, {verdict} {problem}");
            return Err(CtlError::new(format!("timed out after {timeout:?}: {what} ({state})")));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Returns the `share` quantile of measurements; sorts them.
pub(crate) fn quantile(measured: &mut [Duration], share: f64) -> Duration {
    measured.sort_unstable();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index"
    )]
    let at = ((measured.len() as f64 - 1.0) * share).round() as usize;
    measured.get(at).copied().unwrap_or_default()
}

/// Formats a duration for people, in a suitable unit.
pub(crate) fn duration(duration: Duration) -> String {
    let micros = duration.as_secs_f64() * 1e6;
    match micros {
        ..1000.0 => format!("{micros:.0} µs"),
        ..100_000.0 => format!("{:.2} ms", micros / 1e3),
        ..1_000_000.0 => format!("{:.0} ms", micros / 1e3),
        _ => format!("{:.2} s", micros / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_durations() {
        let mut measured: Vec<Duration> = (1..=101).rev().map(Duration::from_micros).collect();
        assert_eq!(quantile(&mut measured, 0.5), Duration::from_micros(51));
        assert_eq!(quantile(&mut measured, 0.99), Duration::from_micros(100));
        assert_eq!(quantile(&mut [], 0.5), Duration::ZERO);
        assert_eq!(duration(Duration::from_micros(145)), "145 µs");
        assert_eq!(duration(Duration::from_micros(14_500)), "14.50 ms");
        assert_eq!(duration(Duration::from_secs(2)), "2.00 s");
    }
}
