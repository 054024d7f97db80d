//! The process, and its datastore or its members: health, reachability, clocks, versions.

use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use gravwell_datastore::audit::store::AUDIT;
use gravwell_datastore::service::trust_dir;
use gravwell_env::data_dir;
use gravwell_model::codec::admin::{BackendInfo, MemberInfo, PresenceInfo, Request, Status};
use gravwell_model::codec::authority::{AuthorityRotation, AuthorityStage, RotationStep};
use gravwell_model::codec::health::{self, Code, Reason};
use gravwell_replica::outbox_loss;
use gravwell_transport::trust::{Identity, RecoveryKeys, Role};

use super::{Findings, Subject, now_ms};
use crate::balance::{self, Choice};
use crate::client::rotations::{self, OpensWith};
use crate::client::{self, Client};

/// Clock differences up to this one are not reported.
const SKEW_MS_MAX: u64 = 2_000;
/// Longest wait for a TCP connection to a webserver.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
const OWN_VERSION: &str = env!("CARGO_PKG_VERSION");

pub(super) async fn examine(subject: &Subject<'_>, findings: &mut Findings) {
    if !client::is_served(subject.dir).await {
        return not_running(subject, findings).await;
    }
    let client = match Client::open(subject.dir).await {
        Ok(client) => client,
        Err(error) => return findings.problem("process", error, "check its log: journalctl -u UNIT"),
    };
    match client.status().await {
        Ok(status) => {
            process(&status, findings);
            if status.role == "replica" {
                datastore(&client, &status, findings).await;
                if let Some(address) = &subject.webserver.external_addr {
                    reach("External-Addr", address, findings).await;
                }
            } else if watches_only(subject.dir) {
                let found = "not checked: a balancer may not query members, audit and objects; run `doctor` on the \
                    datastore's host";
                findings.good("members", found);
                return client.close().await;
            } else {
                members(subject.dir, &client, findings).await;
                super::audit::examine(&client, findings).await;
            }
            super::objects::examine(&client, findings).await;
        }
        Err(error) => findings.problem("process", error, "check its log: journalctl -u UNIT"),
    }
    client.close().await;
}

/// Returns whether the directory belongs to a member that may only watch the datastore.
fn watches_only(dir: &Path) -> bool {
    Identity::load(dir).is_ok_and(|identity| identity.role() == Role::Balancer)
}

async fn not_running(subject: &Subject<'_>, findings: &mut Findings) {
    let unit = if Identity::exists(subject.dir) { "gravwell_webserver" } else { "gravwell_datastore" };
    let found = format!("no process runs on {}", subject.dir.display());
    findings.problem("process", found, format!("systemctl start {unit}; if it does not start, journalctl -u {unit}"));
    at_rest(subject.dir, findings).await;
    let Ok(identity) = Identity::load(subject.dir) else { return };
    match client::dial(subject.dir, &identity).await {
        Ok(connection) => {
            findings.good("datastore", format!("{} responds and knows this member", connection.remote_address()));
            connection.close(0u32.into(), b"done");
        }
        Err(error) => findings.problem(
            "datastore",
            error,
            "check that it runs, and that its UDP port (9405 unless configured otherwise) is reachable",
        ),
    }
}

/// Checks a directory without a process: whether it can be opened, and whether it is healthy.
async fn at_rest(dir: &Path, findings: &mut Findings) {
    const SUBJECT: &str = "data";
    if !data_dir::is_claimed(dir) && !outbox_loss::is_replicas(dir).unwrap_or(false) {
        return;
    }
    let status = match Client::open(dir).await {
        Ok(client) => {
            let status = client.status().await;
            let is_datastore = status.as_ref().is_ok_and(|status| status.role == "datastore");
            if is_datastore && dir.join(AUDIT).is_dir() {
                super::audit::examine(&client, findings).await;
            }
            client.close().await;
            status
        }
        Err(error) => Err(error),
    };
    match status {
        Ok(mut status) => {
            status.health.reasons.retain(|reason| reason.code != Code::NotRunning);
            if status.health.reasons.is_empty() {
                findings.good(SUBJECT, format!("{} at sequence {} can be opened", status.role, status.seq));
            }
            report(SUBJECT, &status, findings);
        }
        Err(error) => {
            findings.reaches(error.exit);
            let remedy = match error.exit {
                3 => "run the command named there; `gravwell-logctl verify` lists all damage",
                _ => "follow the message, then run `doctor` again",
            };
            findings.problem(SUBJECT, error, remedy);
        }
    }
}

fn process(status: &Status, findings: &mut Findings) {
    const SUBJECT: &str = "process";
    let Status { role, seq, head, version, .. } = status;
    let role = if status.is_standalone { "standalone webserver" } else { role };
    if status.health.level == health::Level::Good {
        findings.good(SUBJECT, format!("{role} {version} at sequence {seq} of {head}"));
    }
    report(SUBJECT, status, findings);
    if version != OWN_VERSION {
        let found = format!("the process has version {version}, gravwell-logctl {OWN_VERSION}");
        findings.warning("versions", found, "restart the process to run the installed version");
    }
    if status.rejected > 0 {
        let found = format!("{} rejected transactions need a decision", status.rejected);
        findings.warning("outbox", found, "list them with gravwell-logctl outbox, then retry or dismiss them");
    }
}

/// Reports the reasons for bad health, at the level that `status` assigns them. Connection problems are reported under
/// the subject `datastore` instead.
fn report(subject: &'static str, status: &Status, findings: &mut Findings) {
    findings.reaches(status.health.exit());
    let reasons = status.health.reasons.iter().filter(|reason| reason.code != Code::Disconnected);
    reasons.for_each(|reason| tell(subject, reason, findings));
}

fn tell(subject: &'static str, reason: &Reason, findings: &mut Findings) {
    let Reason { code, message, remedy } = reason;
    let remedy = if remedy.is_empty() { "check its log: journalctl -u UNIT" } else { remedy };
    match code.level() {
        health::Level::Failed => findings.problem(subject, message, remedy),
        _ => findings.warning(subject, message, remedy),
    }
}

/// Checks a replica's datastore.
async fn datastore(client: &Client, status: &Status, findings: &mut Findings) {
    const SUBJECT: &str = "datastore";
    if !status.connected {
        let reasons = &status.health.reasons;
        if let Some(reason) = reasons.iter().find(|reason| reason.code == Code::Disconnected) {
            tell(SUBJECT, reason, findings);
        }
        return;
    }
    let asked_ms = now_ms();
    let mut upstream: Status = match client.item(&Request::Upstream).await {
        Ok(upstream) => upstream,
        Err(error) => return findings.warning(SUBJECT, error, "retry; if it persists, check the datastore's log"),
    };
    let answered_ms = now_ms();
    let whose = if status.is_standalone { "this webserver's own log at" } else { "connected to" };
    findings.good(SUBJECT, format!("{whose} {}, {} entries behind", status.address, status.lag_ops));
    health::assess(&mut upstream);
    report(SUBJECT, &upstream, findings);
    compare_versions("the datastore", &upstream.version, findings);
    if upstream.clock_ms == 0 {
        return;
    }
    let skew = upstream.clock_ms.abs_diff(asked_ms.midpoint(answered_ms));
    let slack = (answered_ms - asked_ms) / 2;
    if skew > SKEW_MS_MAX.saturating_add(slack) {
        let found = format!("differs from the datastore's by {:.1} s", seconds(skew));
        findings.warning("clock", found, "run a time service on both machines");
    } else {
        findings.good("clock", format!("within {:.1} s of the datastore's", seconds(skew + slack)));
    }
}

#[expect(clippy::cast_precision_loss, reason = "rounded for display anyway")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

fn compare_versions(who: &str, version: &str, findings: &mut Findings) {
    if !version.is_empty() && version != OWN_VERSION {
        let found = format!("{who} has version {version}, this host {OWN_VERSION}");
        findings.warning("versions", found, "finish the upgrade: only adjacent versions are compatible");
    }
}

/// Checks which recovery key decrypts each member's CA backup. Only works on the datastore's own directory.
fn copies(dir: &Path, members: &[MemberInfo], findings: &mut Findings) {
    const SUBJECT: &str = "recovery key";
    let keys = match RecoveryKeys::load(&trust_dir(dir)) {
        Ok(Some(keys)) => keys,
        Ok(None) => return,
        // Already reported by the status of the process.
        Err(_) => return,
    };
    let holders = rotations::holders(members, &keys);
    let names = |of: &dyn Fn(OpensWith) -> bool| {
        let chosen = holders.iter().filter(|holder| of(holder.opens_with));
        chosen.map(|holder| holder.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let (current, former) = (keys.current.name(), names(&|opens| opens == OpensWith::Former));
    if let Some(next) = &keys.next {
        let lacking = names(&|opens| !opens.is_ready(&keys));
        let copies = if lacking.is_empty() { "all members have".into() } else { format!("{lacking} do not have") };
        let found = format!("{} will replace {current}; {copies} a CA backup that it decrypts", next.name());
        let remedy =
            "run `gravwell-logctl authority rotate-recovery-key finish` once all have one, or `abort` to cancel";
        findings.warning(SUBJECT, found, remedy);
    } else if former.is_empty() {
        let ready = holders.iter().filter(|holder| holder.opens_with.is_ready(&keys)).count();
        findings.good(SUBJECT, format!("{current} decrypts the CA backups of {ready} members"));
    } else {
        let found = format!("the CA backups of {former} are encrypted under a former key");
        findings.warning(SUBJECT, found, "connect them: they fetch a new one within a minute");
    }
}

/// Checks which CA signed each member's certificate.
async fn authorities(client: &Client, findings: &mut Findings) {
    const SUBJECT: &str = "authority";
    // Only administrators may send this request; a datastore of an earlier version has one CA and does not support it.
    let step = RotationStep::Status;
    let Ok(rotation) = client.item::<AuthorityRotation>(&Request::RotateAuthority { step }).await else { return };
    let names = |of: &dyn Fn(AuthorityStage) -> bool| rotations::names(&rotation, |member| of(member.stage));
    let former = names(&|stage| stage == AuthorityStage::Former);
    if !former.is_empty() {
        let found = format!("a former CA signed the certificates of {former}, which are rejected");
        findings.warning(
            SUBJECT,
            found,
            "re-enroll them: `enroll NAME --replace` here, `join TOKEN` there; or revoke them",
        );
    }
    let Some(next) = &rotation.next else { return };
    let waiting = names(&|stage| stage != AuthorityStage::New);
    let state = if waiting.is_empty() { "all members have".into() } else { format!("{waiting} do not have") };
    let found = format!("{next} will replace {}; {state} a certificate signed by it", rotation.current);
    let remedy = "run `gravwell-logctl authority rotate finish` once all have one, or `abort` to cancel";
    findings.warning(SUBJECT, found, remedy);
}

/// Checks a datastore's members.
async fn members(dir: &Path, client: &Client, findings: &mut Findings) {
    const SUBJECT: &str = "members";
    let answers = async {
        let members: Vec<MemberInfo> = client.items(&Request::Members).await?;
        Ok::<_, crate::error::CtlError>((members, client.items::<PresenceInfo>(&Request::Presence).await?))
    };
    let (members, presence) = match answers.await {
        Ok(answers) => answers,
        Err(error) => return findings.problem(SUBJECT, error, "check the datastore's log"),
    };
    if members.is_empty() {
        return findings.good(SUBJECT, "none enrolled");
    }
    let enrolled: Vec<&MemberInfo> =
        members.iter().filter(|m| m.state == "enrolled" && (m.role == "webserver" || m.role == "reader")).collect();
    let away: Vec<&str> = enrolled.iter().filter(|m| !m.connected).map(|m| m.name.as_str()).collect();
    copies(dir, &members, findings);
    authorities(client, findings).await;
    if away.is_empty() {
        findings.good(SUBJECT, format!("{} enrolled, all connected", enrolled.len()));
    } else {
        let found = format!("{} of {} are offline: {}", away.len(), enrolled.len(), away.join(", "));
        findings.warning(
            SUBJECT,
            found,
            "check that they run and can reach this datastore's UDP port; revoke members that are gone permanently",
        );
    }
    for member in &enrolled {
        let days = member.expires_ms.map(|expires_ms| super::days_until(expires_ms, now_ms()));
        if let Some(days) = days.filter(|days| *days < 14) {
            let found = format!("the certificate of {} expires in {days} days", member.name);
            findings.warning("certificate", found, "connect it to renew the certificate, or re-enroll it (--replace)");
        }
    }
    for present in &presence {
        if let Some(unhealthy) = &present.unhealthy {
            findings.problem(SUBJECT, format!("{}: {unhealthy}", present.name), "run `gravwell-logctl status` there");
        }
        if present.rejected > 0 {
            let found = format!("{}: {} rejected transactions need a decision", present.name, present.rejected);
            findings.warning("outbox", found, "list them there with gravwell-logctl outbox");
        }
        compare_versions(&present.name, present.software.rsplit(' ').next().unwrap_or_default(), findings);
    }
    // Only a balancer's host can check whether an address is the balancer's own.
    let choice = Choice { allow_local_backends: true, ..Choice::default() };
    let (backends, left_out) = balance::backends(&BackendInfo::among(&members, &presence), &choice);
    left_out.iter().for_each(|what| {
        findings.warning("External-Addr", what, "set it if this is a webserver; until then, balancers exclude it")
    });
    for backend in backends {
        reach("External-Addr", &backend.address(), findings).await;
    }
}

/// Checks whether an address accepts TCP connections.
async fn reach(subject: &'static str, address: &str, findings: &mut Findings) {
    let calling = {
        let address = address.to_owned();
        tokio::task::spawn_blocking(move || call(&address))
    };
    match calling.await.unwrap_or_else(|error| Err(error.to_string())) {
        Ok(()) => findings.good(subject, format!("{address} accepts connections from here")),
        Err(error) => findings.warning(
            subject,
            format!("{address}: {error}"),
            "check that the webserver runs there, the name resolves and the port is open",
        ),
    }
}

fn call(address: &str) -> Result<(), String> {
    let (host, port) = balance::host_and_port(address)?;
    let found = (host.as_str(), port).to_socket_addrs().map_err(|error| error.to_string())?;
    let mut last = "the name has no address".to_owned();
    for address in found {
        match TcpStream::connect_timeout(&address, CALL_TIMEOUT) {
            Ok(_) => return Ok(()),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}
