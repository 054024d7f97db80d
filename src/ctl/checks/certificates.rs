//! Certificates and their remaining lifetime.

use gravwell_transport::trust::Identity;

use super::{Findings, Subject, days_until, now_ms};
use crate::balance::host_and_port;
use crate::client::certificate::{self, Shown};

const SUBJECT: &str = "certificate";
/// Certificates should have been renewed when fewer days remain.
const SOON_DAYS: i64 = 14;

pub(super) fn examine(subject: &Subject<'_>, findings: &mut Findings) {
    if Identity::exists(subject.dir) {
        identity(subject, findings);
    }
    let own = subject.dir.join("tls/cert.pem");
    let configured = subject.webserver.certificate.clone();
    let is_webserver = subject.dir.join("webserver-uuid").exists() || own.exists();
    if let Some(file) = configured.or_else(|| own.exists().then_some(own)).filter(|_| is_webserver) {
        match certificate::show(&file) {
            Ok(shown) => for_browsers(subject, &shown, findings),
            Err(error) => findings.problem(SUBJECT, error, "create one with `gravwell-logctl cert server`"),
        }
    }
}

fn identity(subject: &Subject<'_>, findings: &mut Findings) {
    let again = "get a new token (`enroll NAME --replace`) and join again";
    let identity = match Identity::load(subject.dir) {
        Ok(identity) => identity,
        Err(error) => return findings.problem(SUBJECT, error, again),
    };
    let expires_ms = match identity.expires_ms() {
        Ok(expires_ms) => expires_ms,
        Err(error) => return findings.problem(SUBJECT, error, again),
    };
    let (name, days) = (identity.name(), days_until(expires_ms, now_ms()));
    if expires_ms <= now_ms() {
        findings.problem(SUBJECT, format!("{name}'s membership has expired"), again);
    } else if days < SOON_DAYS {
        let found = format!("{name}'s membership expires in {days} days and was not renewed");
        findings.warning(SUBJECT, found, "connect it to its datastore, which renews the certificate");
    } else {
        findings
            .good(SUBJECT, format!("{name}'s membership is valid for {days} more days and is renewed automatically"));
    }
}

fn for_browsers(subject: &Subject<'_>, shown: &Shown, findings: &mut Findings) {
    let (file, days) = (shown.file.display(), days_until(shown.expires_ms, now_ms()));
    let renew =
        "replace the file (`gravwell-logctl cert server --replace`), then `systemctl reload gravwell_webserver`";
    if shown.expires_ms <= now_ms() {
        findings.problem(SUBJECT, format!("{file} has expired"), renew);
    } else if days < SOON_DAYS {
        findings.warning(SUBJECT, format!("{file} expires in {days} days"), renew);
    } else {
        findings.good(SUBJECT, format!("{file} is valid for {days} more days"));
    }
    let Some(Ok((host, _))) = subject.webserver.external_addr.as_deref().map(host_and_port) else { return };
    let covers = |name: &String| match name.strip_prefix("*.") {
        Some(domain) => host.split_once('.').is_some_and(|(_, rest)| rest == domain),
        None => *name == host,
    };
    if !shown.names.iter().any(covers) {
        findings.warning(SUBJECT, format!("{file} is not valid for {host}, the host of External-Addr"), renew);
    }
}
