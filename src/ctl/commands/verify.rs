//! `verify`: checks a log or a replica.

use std::path::Path;

use gravwell_env::RealFs;
use gravwell_model::codec::admin::{Finding, Progress, Request, VerifyReport};

use crate::client::Client;
use crate::client::output::{Output, size};
use crate::client::progress::{bytes_bar, show, with_progress};
use crate::error::{CtlError, CtlResult};

/// Check every checksum, the hash chain and the digests.
///
/// On a running datastore, also checks the digests that its members report.
#[derive(Debug, clap::Args)]
pub struct Verify {}

/// Checks everything that is stored; exit code 3 if something is damaged.
pub(super) async fn run(dir: &Path, json: bool) -> CtlResult {
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
    let bar = bytes_bar();
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
