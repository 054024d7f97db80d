//! Access control over QUIC: every role with every kind of stream and request.

use gravwell_model::codec::admin::Request;
use gravwell_model::codec::authority::RotationStep;
use gravwell_model::codec::message::Open;
use gravwell_model::{Collection, Key, MemberName, Origin, Seq};

use super::client::{Answered, Hostile};
use crate::fleet::Fleet;

const ROLES: [&str; 4] = ["webserver", "reader", "balancer", "admin"];

/// Returns the roles that may send a request. A new kind of request needs a row here to compile.
fn who_may_ask(request: &Request) -> &'static [&'static str] {
    match request {
        Request::Status | Request::Presence | Request::Roots { .. } => &["webserver", "reader", "balancer", "admin"],
        Request::Backends => &["balancer", "admin"],
        Request::Audit { .. } | Request::AuditActs { .. } => &["webserver", "admin"],
        Request::Collections
        | Request::Tail { .. }
        | Request::History { .. }
        | Request::Generations
        | Request::Proof
        | Request::Escrow { .. } => &["webserver", "reader", "admin"],
        Request::Members
        | Request::Segments
        | Request::Get { .. }
        | Request::List { .. }
        | Request::Export { .. }
        | Request::Record { .. }
        | Request::Submit { .. }
        | Request::OriginStatus { .. }
        | Request::Verify
        | Request::Compact { .. }
        | Request::Enroll { .. }
        | Request::RotateAuthority { .. }
        | Request::Revoke { .. }
        | Request::Outbox
        | Request::Deletions { .. }
        | Request::Retry { .. }
        | Request::Dismiss { .. }
        | Request::BlobList
        | Request::BlobStats
        | Request::BlobVerify
        | Request::BlobCollect { .. }
        | Request::Copy { .. }
        | Request::CopyChunks { .. }
        | Request::AuditVerify { .. }
        | Request::AuditAcknowledge { .. }
        | Request::Upstream
        | Request::Barrier { .. } => &["admin"],
    }
}

/// Returns the roles that may open a stream.
fn who_may_open(open: Open) -> &'static [&'static str] {
    match open {
        Open::Admin | Open::Renew => &["webserver", "reader", "balancer", "admin"],
        Open::Control | Open::Snapshot | Open::StateAndDeletions | Open::WholeState => {
            &["webserver", "reader", "admin"]
        }
        Open::Push => &["webserver", "admin"],
        Open::Chunks => &["webserver", "reader"],
        Open::Tail | Open::Search => &[],
    }
}

const STREAMS: [Open; 10] = [
    Open::Control,
    Open::Tail,
    Open::Push,
    Open::Snapshot,
    Open::Renew,
    Open::Admin,
    Open::Chunks,
    Open::Search,
    Open::StateAndDeletions,
    Open::WholeState,
];

fn requests() -> Vec<Request> {
    let collection = || Collection::new("c").expect("name");
    let key = || Key::new("k").expect("name");
    let name = || MemberName::new("victim").expect("name");
    vec![
        Request::Status,
        Request::Members,
        Request::Presence,
        Request::Backends,
        Request::Collections,
        Request::Segments,
        Request::Get { collection: collection(), key: key(), at: None },
        Request::List { collection: collection(), prefix: String::new(), limit: None },
        Request::Export { at: None, is_check: false },
        Request::Tail { from: Seq(0), to: None, follow: false },
        Request::History { collection: collection(), key: key() },
        Request::Record { seq: Seq(1) },
        Request::Submit { wait: true },
        Request::OriginStatus { origin: Origin([7; 16]) },
        Request::Verify,
        Request::Compact { dry_run: true, history_ops: None },
        Request::Enroll { name: name(), role: "admin".into(), ttl_s: 60, addresses: Vec::new(), replace: true },
        Request::Revoke { name: name(), remove: false },
        Request::Outbox,
        Request::Retry { id: None, upon: Vec::new() },
        Request::Dismiss { id: None },
        Request::BlobList,
        Request::BlobStats,
        Request::BlobVerify,
        Request::BlobCollect { dry_run: true, grace_s: None },
        Request::Generations,
        Request::Deletions { after: Seq::ZERO },
        Request::Proof,
        Request::Escrow { known: None, seen: None },
        Request::Roots { known: vec!["0".repeat(64)], certificate: "0".repeat(64) },
        Request::RotateAuthority { step: RotationStep::Status },
        Request::RotateAuthority { step: RotationStep::Begin },
        Request::RotateAuthority { step: RotationStep::Abort },
        Request::Copy { of: None, have: Vec::new() },
        Request::CopyChunks { ids: Vec::new() },
        Request::Audit { from: Seq(0), since_ms: 0, until_ms: u64::MAX },
        Request::AuditVerify { at: None },
        Request::AuditActs { acts: Vec::new() },
        Request::AuditAcknowledge { to: Seq(1) },
        Request::Upstream,
        Request::Barrier { seq: None, timeout_ms: 1000 },
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p11_each_role_may_use_only_its_own_requests() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    fleet.enroll("victim", "webserver");
    for role in ROLES {
        fleet.enroll(role, role);
        let hostile = Hostile::connect(&fleet, role).await;
        for request in requests() {
            let may = who_may_ask(&request).contains(&role);
            if may && matches!(request, Request::Submit { .. } | Request::Enroll { .. } | Request::Revoke { .. }) {
                // Successful requests of administrators are tested elsewhere; here they would block or disturb others.
                continue;
            }
            let answer = hostile.ask(&request).await;
            let is_refused = matches!(&answer, Answered::Refused(why) if why.contains("needs the role admin"));
            assert_eq!(is_refused, !may, "{role} {request:?}: {answer:?}");
        }
        for open in STREAMS {
            // A refusal may close the connection.
            let hostile = Hostile::connect(&fleet, role).await;
            let (mut send, mut receive) = hostile.open(open).await;
            // Accepted streams wait for more data, and end when there is none.
            let _ = send.finish();
            let answer = hostile.answer(&mut receive).await;
            let is_refused = matches!(&answer, Answered::Refused(why) if why.contains("may not request this"));
            assert_eq!(is_refused, !who_may_open(open).contains(&role), "{role} {open:?}: {answer:?}");
        }
    }
    assert!(fleet.ok("d", &["members"]).contains("victim"));
}

#[test]
fn a_balancer_can_generate_its_configuration_and_nothing_else() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    fleet.enroll("web", "webserver");
    let _web = fleet.replica_with("web", &["--external-addr", "web.example.com:8443"]);
    fleet.wait_connected("web");
    fleet.enroll("lb", "balancer");
    let lb = || fleet.ok("lb", &["lb", "--format", "haproxy"]);
    fleet.wait("the webserver is listed", || lb().contains("web.example.com:8443"));
    assert_eq!(fleet.status("lb")["role"], "datastore");
    assert!(fleet.ok("lb", &["presence"]).contains("web.example.com:8443"));
    let place = fleet.dir("backups").display().to_string();
    for command in [
        &["members"][..],
        &["export", "--with-secrets"],
        &["tail", "--from", "1"],
        &["get", "admins", "1"],
        &["put", "admins", "4", "--value", "{}"],
        &["enroll", "more", "--role", "admin"],
        &["revoke", "web"],
        &["compact"],
        &["backup", "create", &place],
    ] {
        assert!(!fleet.run("lb", command).status.success(), "{command:?}");
    }
    // Missing permissions are not a problem of its host.
    let doctor = fleet.run("lb", &["doctor"]);
    let found = String::from_utf8_lossy(&doctor.stdout);
    assert!(doctor.status.success() && found.contains("members: not checked") && !found.contains("PROBLEM"), "{found}");
    fleet.ok("d", &["revoke", "lb"]);
    assert!(!fleet.run("lb", &["lb", "--format", "haproxy"]).status.success());
}
