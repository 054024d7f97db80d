//! Integrity of a datastore's audit.

use gravwell_model::codec::admin::Request;
use gravwell_model::codec::audit::AuditReport;
use gravwell_model::codec::json_lines::timestamp;

use super::Findings;
use crate::client::Client;
use crate::client::output::size;

const SUBJECT: &str = "audit";

pub(super) async fn examine(client: &Client, findings: &mut Findings) {
    let found: Result<AuditReport, _> = client.item(&Request::AuditVerify { at: None }).await;
    let report = match found {
        Ok(report) => report,
        Err(error) => {
            findings.reaches(error.exit);
            return findings.problem(SUBJECT, error, "check the directory `audit` and the datastore's log");
        }
    };
    for finding in &report.findings {
        findings.reaches(3);
        let remedy = "keep a copy of the damaged audit, compare it with exported records, and find out who changed it";
        findings.problem(SUBJECT, &finding.problem, remedy);
    }
    if report.ok {
        let since = timestamp(report.first_time_ms);
        findings.good(SUBJECT, format!("{} records since {since} are intact", report.records));
    }
    if report.bytes_max > 0 && report.bytes > report.bytes_max / 10 * 8 {
        let found = format!("the audit has {} of at most {}", size(report.bytes), size(report.bytes_max));
        let remedy = "the oldest records are deleted early beyond that: export them, raise Datastore-Audit-Max-MB, or \
            lower Datastore-Audit-Hours";
        findings.warning(SUBJECT, found, remedy);
    }
    if report.gaps > 0 {
        let found = format!("{} records report gaps", report.gaps);
        let remedy = format!(
            "run gravwell-logctl audit ls and look for `gap`, then gravwell-logctl audit acknowledge {}",
            report.last
        );
        findings.warning(SUBJECT, found, remedy);
    }
}
