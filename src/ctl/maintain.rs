//! `verify` and `compact`.

use std::io::IsTerminal;
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use serde::de::DeserializeOwned;

use gravwell_env::RealFs;
use gravwell_model::codec::admin::{CompactReport, Finding, Progress, Request, VerifyReport};

use super::client::{Client, Piece};
use super::output::{Output, size};
use super::{CtlError, CtlResult};

/// Creates a progress bar, which is hidden if standard error is not a terminal.
fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg:<20} {bar:40} {bytes}/{total_bytes} {eta}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Creates a progress bar over bytes, which is hidden if standard error is not a terminal.
pub(super) fn bytes_bar() -> ProgressBar {
    bar()
}

fn show(bar: &ProgressBar, progress: &Progress) {
    bar.set_message(progress.stage.clone());
    bar.set_length(progress.total);
    bar.set_position(progress.done);
}

/// Sends a request, shows its progress, and returns the final report.
pub(super) async fn with_progress<T: DeserializeOwned>(client: Client, request: &Request) -> Result<T, CtlError> {
    let bar = bar();
    let mut report: Option<T> = None;
    let result = client
        .each(request, |piece| {
            let Piece::Item(item) = piece else { return Ok(()) };
            match serde_json::from_slice::<T>(&item) {
                Ok(found) => report = Some(found),
                Err(_) => show(&bar, &serde_json::from_slice(&item).unwrap_or_default()),
            }
            Ok(())
        })
        .await;
    bar.finish_and_clear();
    client.close().await;
    result?;
    report.ok_or_else(|| CtlError::new("the response is empty"))
}

/// `verify`
pub(super) async fn verify(dir: &Path, json: bool) -> CtlResult {
    let client = match Client::open(dir).await {
        Ok(client) => client,
        // A log that does not open is checked file by file, so that every corrupt position is reported.
        Err(error) if error.exit == 3 && dir.join("log").is_dir() => {
            let report = examine(dir, &error)?;
            return print(json, &report, Some(dir));
        }
        Err(error) => return Err(error),
    };
    let report = with_progress(client, &Request::Verify).await?;
    let is_datastore = std::fs::read_to_string(dir.join("role")).is_ok_and(|role| role.trim() == "datastore");
    print(json, &report, is_datastore.then_some(dir))
}

fn examine(dir: &Path, why: &CtlError) -> Result<VerifyReport, CtlError> {
    let bar = bar();
    let mut tell = |done, total| show(&bar, &Progress { stage: "log".into(), done, total });
    let found = gravwell_log::verify(&RealFs, &dir.join("log"), &mut tell);
    bar.finish_and_clear();
    let mut findings: Vec<Finding> = found
        .damages
        .iter()
        .map(|damage| Finding { place: damage.file.clone(), offset: Some(damage.offset), problem: damage.to_string() })
        .collect();
    if findings.is_empty() {
        findings.push(Finding { place: "log".into(), offset: None, problem: why.message.clone() });
    }
    Ok(VerifyReport {
        files: found.segments as u64,
        records: found.records,
        bytes: found.bytes,
        seq: found.head,
        findings,
        ..VerifyReport::default()
    })
}

fn print(json: bool, report: &VerifyReport, datastore: Option<&Path>) -> CtlResult {
    let mut output = Output::new();
    if json {
        output.json(report)?;
    } else {
        output.line(&format!(
            "{} files, {} records, {} checked; sequence {}, digest {}",
            report.files,
            report.records,
            size(report.bytes),
            report.seq,
            report.digest
        ))?;
        for member in &report.members {
            output.line(&format!("member {member}"))?;
        }
        for finding in &report.findings {
            let offset = finding.offset.map_or_else(String::new, |offset| format!(" at byte {offset}"));
            let place = format!("{}{offset}: ", finding.place);
            // Most problems already include their position.
            let problem = finding.problem.strip_prefix(&format!("damage in {place}")).unwrap_or(&finding.problem);
            output.line(&format!("DAMAGE {place}{problem}"))?;
        }
        output.line(if report.ok { "no damage found" } else { "damage found" })?;
        let in_log = report.findings.iter().any(|finding| finding.offset.is_some());
        if let Some(dir) = datastore.filter(|_| in_log) {
            output.line(&format!("remedy: stop the datastore and {}", remedy(dir)))?;
        }
    }
    output.flush()?;
    if report.ok { Ok(()) } else { Err(CtlError { message: String::new(), exit: 3 }) }
}

fn remedy(datastore: &Path) -> String {
    gravwell_log::REPAIR_REMEDY.replace("DATASTORE", &datastore.display().to_string())
}

/// `compact`
pub(super) async fn compact(dir: &Path, json: bool, dry_run: bool, history_ops: Option<u64>) -> CtlResult {
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
