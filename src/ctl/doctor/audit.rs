//! The audit of a datastore: whether it is whole.

use crate::codec::admin::Request;
use crate::codec::audit::AuditReport;
use crate::codec::jsonl::timestamp;
use crate::ctl::client::Client;

use super::Findings;

const SUBJECT: &str = "audit";

pub(super) async fn examine(client: &Client, findings: &mut Findings) {
    let found: Result<AuditReport, _> = client.item(&Request::AuditVerify { at: None }).await;
    let report = match found {
        Ok(report) => report,
        Err(error) => {
            findings.reaches(error.exit);
            return findings.problem(SUBJECT, error, "look at the directory `audit`, and at the datastore's log");
        }
    };
    for finding in &report.findings {
        findings.reaches(3);
        let remedy =
            "keep a copy of the directory `audit`, compare it with what was exported, and find out who changed it";
        findings.problem(SUBJECT, &finding.problem, remedy);
    }
    if report.ok {
        let since = timestamp(report.first_time_ms);
        findings.good(SUBJECT, format!("{} records since {since} are whole", report.records));
    }
    if report.gaps > 0 {
        let found = format!("{} records say that something is missing", report.gaps);
        findings.warning(SUBJECT, found, "gravwell-logctl audit ls, and look for `gap`");
    }
}
