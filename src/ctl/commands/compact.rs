//! `compact`: drops superseded operations.

use std::path::Path;

use gravwell_model::codec::admin::{CompactReport, Request};

use crate::client::Client;
use crate::client::output::{Output, size};
use crate::client::progress::with_progress;
use crate::error::CtlResult;

/// Drop superseded operations that every member has passed and free their space.
#[derive(Debug, clap::Args)]
pub struct Compact {
    /// Print the plan without changing anything.
    #[arg(long)]
    pub dry_run: bool,
    /// Keep this many transactions of history instead of the configured number.
    #[arg(long, value_name = "N")]
    pub history_ops: Option<u64>,
}

/// Compacts the log and prints how far the horizon has moved.
pub(super) async fn run(dir: &Path, json: bool, args: Compact) -> CtlResult {
    let Compact { dry_run, history_ops } = args;
    let client = Client::open(dir).await?;
    let report: CompactReport = with_progress(client, &Request::Compact { dry_run, history_ops }).await?;
    let mut output = Output::new();
    if json {
        output.json(&report)?;
    } else {
        let verb = if dry_run { "would be" } else { "were" };
        output
            .line(&format!("horizon {} -> {} (held by {})", report.horizon_before, report.horizon, report.held_by))?;
        output.line(&format!(
            "{} segments {verb} rewritten: {} -> {}",
            report.segments,
            size(report.bytes_before),
            size(report.bytes_after)
        ))?;
        if report.segments == 0 {
            let what = match (history_ops, report.horizon == report.horizon_before) {
                (Some(0), _) => "nothing to do: no history is kept; `members` shows which members lag",
                _ => "nothing to do; drop history with --history-ops 0, or see `members` for members that lag",
            };
            output.line(what)?;
        }
    }
    output.flush()
}
