//! `doctor`: checks configuration, host, data and fleet; every finding comes with its remedy.

use std::path::{Path, PathBuf};

use crate::checks::{self, Finding, Level, objects};
use crate::client::output::Output;
use crate::error::{CtlError, CtlResult};

/// Check configuration, certificates, clocks, disk, permissions and network.
///
/// Also checks UDP buffers, reachability and versions. Every finding comes with its remedy. Exits with 1 if there
/// is a problem and with 3 if the history has diverged; warnings alone exit with 0. Nothing is changed without
/// --fix.
#[derive(Debug, clap::Args)]
pub struct Doctor {
    /// Configuration file [default: /opt/gravwell/etc/gravwell.conf, when it exists].
    #[arg(long, env = "GRAVWELL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Repair names that are inconsistent with their users and groups.
    ///
    /// Does not ask for confirmation.
    #[arg(long)]
    pub fix: bool,
}

/// Prints the findings; with --fix, repairs inconsistent names before.
pub(super) async fn run(dir: &Path, json: bool, args: Doctor) -> CtlResult {
    if args.fix {
        objects::fix(dir).await?;
    }
    let findings = checks::examine(dir, args.config.as_deref()).await;
    let mut output = Output::new();
    if json {
        output.bytes(findings.text().as_bytes())?;
    } else {
        for Finding { subject, level, found, remedy, .. } in &findings.list {
            let mark = match level {
                Level::Good => "good   ",
                Level::Warning => "warning",
                Level::Problem => "PROBLEM",
            };
            output.line(&format!("{mark}  {subject}: {found}"))?;
            if !remedy.is_empty() {
                output.line(&format!("         do: {remedy}"))?;
            }
        }
    }
    output.flush()?;
    let exit = findings.exit.max(u8::from(findings.worst() == Level::Problem));
    if exit == 0 { Ok(()) } else { Err(CtlError { message: String::new(), exit }) }
}
