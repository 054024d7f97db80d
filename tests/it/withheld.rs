//! Readers have no secret values, but can still prove that their copy is equal.

use std::path::Path;

use gravwell_model::codec::admin::Request;
use gravwell_model::codec::message::{Hello, Kind, Open};
use gravwell_model::{Collection, Key, Seq};
use gravwell_transport::wire;

use crate::fleet::Fleet;
use crate::hostile::client::{Answered, Hostile, hello};
use crate::web::Web;

/// Contained in every secret value of these tests.
const NEEDLE: &[u8] = b"needle-in-a-secret";

fn put_secrets(fleet: &Fleet, text: &str) {
    let hidden = ["passwords", "tokens", "sessions", "second-factors", "second-factor-setups", "recovery-codes"];
    for collection in hidden {
        fleet.ok("d", &["put", collection, "1", "--value", &format!(r#"{{"v":"needle-in-a-secret {text}"}}"#)]);
    }
}

fn has_needle(bytes: &[u8]) -> bool {
    bytes.windows(NEEDLE.len()).any(|part| part == NEEDLE)
}

/// Returns the files below a directory that contain the needle.
fn files_with_needle(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_with_needle(&path));
        } else if std::fs::read(&path).is_ok_and(|bytes| has_needle(&bytes)) {
            found.push(path.display().to_string());
        }
    }
    found
}

fn is_level(fleet: &Fleet, name: &str) {
    fleet.wait(&format!("{name} is caught up"), || {
        let (there, here) = (fleet.status("d"), fleet.status(name));
        here["seq"] == there["head"] && here["digest"] == there["digest"] && here["healthy"] == true
    });
}

#[test]
fn p11_a_reader_is_caught_up_and_has_no_secret_value() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    put_secrets(&fleet, "in the first state");
    fleet.ok("d", &["put", "users", "1", "--value", r#"{"name":"seen"}"#]);
    fleet.enroll("r", "reader");
    let reader = fleet.replica("r");
    fleet.wait_connected("r");
    is_level(&fleet, "r");
    put_secrets(&fleet, "replaced while it follows");
    fleet.ok("d", &["delete", "tokens", "1"]);
    is_level(&fleet, "r");
    assert_eq!(fleet.ok("r", &["get", "users", "1"]).trim(), r#"{"name":"seen"}"#);
    let refused = fleet.run("r", &["get", "passwords", "1"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("withheld from readers"), "{refused:?}");
    assert_eq!(fleet.ok("r", &["collections", "--json"]), fleet.ok("d", &["collections", "--json"]));
    fleet.ok("r", &["verify"]);
    assert!(!fleet.ok("r", &["export", "--with-secrets"]).contains("needle"));
    reader.terminate();
    assert_eq!(files_with_needle(&fleet.dir("r")), Vec::<String>::new());
    // After falling behind the horizon, it fetches another snapshot.
    put_secrets(&fleet, "replaced while it is offline");
    fleet.ok("d", &["compact", "--history-ops", "0"]);
    let reader = fleet.replica("r");
    is_level(&fleet, "r");
    fleet.ok("r", &["verify"]);
    reader.terminate();
    fleet.ok("r", &["verify"]);
    assert_eq!(files_with_needle(&fleet.dir("r")), Vec::<String>::new());
}

/// Returns every byte of the response to a request.
async fn answer(hostile: &Hostile, request: &Request) -> Vec<u8> {
    let (mut send, mut receive) = hostile.open(Open::Admin).await;
    wire::send_json(&mut send, Kind::AdminRequest, request).await.expect("is sent");
    let mut bytes = Vec::new();
    while let Some((kind, body)) = wire::read(&mut receive).await.expect("an answer") {
        assert_ne!(kind, Kind::AdminError, "{}", String::from_utf8_lossy(&body));
        bytes.extend_from_slice(&body);
    }
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p11_a_readers_identity_sees_the_log_without_secret_values() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    put_secrets(&fleet, "in the log");
    for (name, role) in [("r", "reader"), ("w", "webserver")] {
        fleet.enroll(name, role);
        let hostile = Hostile::connect(&fleet, name).await;
        let (collection, key) = (Collection::new("passwords").expect("name"), Key::new("1").expect("key"));
        let tail = Request::Tail { from: Seq(0), to: None, follow: false };
        for request in [tail, Request::History { collection, key }] {
            let bytes = answer(&hostile, &request).await;
            assert!(bytes.windows(9).any(|part| part == b"passwords"), "{request:?}");
            assert_eq!(has_needle(&bytes), role == "webserver", "{role}: {request:?}");
        }
        let (mut send, mut receive) = hostile.open(Open::WholeState).await;
        send.finish().expect("a stream");
        let mut bytes = Vec::new();
        while let Some((_, body)) = wire::read(&mut receive).await.expect("a state") {
            bytes.extend_from_slice(&body);
        }
        assert_eq!(has_needle(&bytes), role == "webserver", "{role}: the state");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_a_reader_without_support_for_withheld_values_is_asked_to_upgrade() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    for (name, role) in [("r", "reader"), ("w", "webserver")] {
        fleet.enroll(name, role);
        let hostile = Hostile::connect(&fleet, name).await;
        let (_send, mut receive, answered) = hostile.greet(&Hello { version_max: 3, ..hello() }).await;
        match (role, answered) {
            ("reader", Answered::Refused(why)) => assert!(why.contains("upgrade it"), "{why}"),
            ("webserver", Answered::With(Kind::Welcome)) => {}
            (role, Answered::With(kind)) => panic!("{role}: {kind:?}, {}", hostile.refusal(&mut receive).await),
            (role, _) => panic!("{role} receives an unexpected response"),
        }
    }
}

#[test]
fn p13_a_log_rebuilt_from_a_reader_removes_no_secret_from_a_webserver() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    put_secrets(&fleet, "that the reader lacks");
    fleet.ok("d", &["put", "users", "1", "--value", r#"{"name":"seen"}"#]);
    let (reader, webserver) = (fleet.member_as("r", "reader"), fleet.member("a"));
    is_level(&fleet, "r");
    is_level(&fleet, "a");
    reader.terminate();
    webserver.terminate();
    datastore.terminate();
    std::fs::remove_dir_all(fleet.dir("d")).expect("removes");
    let place = fleet.dir("r").display().to_string();
    let said = fleet.ok("d", &["recover", "--new-authority", "--from", &place]);
    assert!(said.contains("LOST: 6 objects"), "{said}");
    let _datastore = fleet.datastore();
    fleet.ok("d", &["verify"]);
    assert_eq!(fleet.ok("d", &["get", "users", "1"]).trim(), r#"{"name":"seen"}"#);
    let token = fleet.ok("d", &["enroll", "a", "--role", "webserver"]);
    fleet.ok("a", &["join", token.trim()]);
    let _webserver = fleet.replica("a");
    fleet.wait_connected("a");
    is_level(&fleet, "a");
    let kept = fleet.ok("a", &["quarantine", "show", "1"]);
    assert!(["passwords/1", "tokens/1", "sessions/1"].iter().all(|object| kept.contains(object)), "{kept}");
    let show = ["quarantine", "show", "1", "--json"];
    assert!(!has_needle(fleet.ok("a", &show).as_bytes()), "operators paste this");
    assert!(has_needle(fleet.ok("a", &[&show[..], &["--with-secrets"]].concat()).as_bytes()));
    // The user may have been locked out since, so access is restored only on request, and sessions never.
    let asked = fleet.run("a", &["quarantine", "apply", "1"]);
    let said = String::from_utf8_lossy(&asked.stdout).into_owned();
    assert_eq!(asked.status.code(), Some(1), "{said}");
    assert!(said.contains("passwords/1 gives access") && said.contains("1 logins are not restored"), "{said}");
    assert!(!fleet.run("d", &["get", "passwords", "1"]).status.success(), "{said}");
    fleet.ok("a", &["quarantine", "apply", "1", "--with-access"]);
    assert!(fleet.ok("d", &["get", "passwords", "1"]).contains("needle"));
    assert!(!fleet.run("d", &["get", "sessions", "1"]).status.success());
}

#[test]
fn p11_a_member_that_becomes_a_reader_deletes_its_secret_values() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    put_secrets(&fleet, "seen by a webserver");
    let replica = fleet.member("a");
    is_level(&fleet, "a");
    assert!(fleet.ok("a", &["get", "passwords", "1"]).contains("needle"));
    replica.terminate();
    let become_a = |role: &str| {
        let token = fleet.ok("d", &["enroll", "a", "--role", role, "--replace"]);
        fleet.ok("a", &["join", token.trim()]);
        fleet.replica("a")
    };
    let replica = become_a("reader");
    fleet.wait("the values are gone", || !fleet.run("a", &["get", "passwords", "1"]).status.success());
    is_level(&fleet, "a");
    replica.terminate();
    assert_eq!(files_with_needle(&fleet.dir("a")), Vec::<String>::new());
    let _replica = become_a("webserver");
    fleet.wait("the values are there again", || fleet.run("a", &["get", "passwords", "1"]).status.success());
    is_level(&fleet, "a");
    assert!(fleet.ok("a", &["get", "passwords", "1"]).contains("needle"));
}

/// Logins are impossible with a reader's state, so a balancer must not send users to such a webserver.
#[test]
fn p11_a_webserver_with_a_readers_state_is_not_ready_and_says_why() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    fleet.enroll("a", "reader");
    let mut web = Web::start(&fleet, "a", &[]);
    fleet.wait_connected("a");
    let says_why = |web: &Web| {
        let ready = web.nobody().get("/api/ready");
        let login = web.nobody().post("/api/login", &serde_json::json!({ "User": "admin", "Pass": "changeme" }));
        assert_eq!((ready.status, login.status), (503, 503));
        let reason = ready.json()["Reason"].as_str().unwrap_or_default().to_owned();
        assert!(reason.contains("lacks passwords") && reason.contains("--role webserver"), "{reason}");
    };
    says_why(&web);
    web.stop();
    // The new role alone does not provide the withheld values.
    let token = fleet.ok("d", &["enroll", "a", "--role", "webserver", "--replace"]);
    fleet.ok("a", &["join", token.trim()]);
    datastore.kill();
    let web = Web::start(&fleet, "a", &[]);
    says_why(&web);
    let _datastore = fleet.datastore();
    fleet.wait("it is ready", || web.nobody().get("/api/ready").status == 200);
}

/// Operators list the outbox when asked to, and share the output.
#[test]
fn p11_the_list_of_the_outbox_shows_no_secret_unless_asked() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let _a = fleet.member("a");
    datastore.kill();
    fleet.wait("a is disconnected", || fleet.status("a")["connected"] == false);
    fleet.ok("a", &["put", "passwords", "1", "--value", "\"needle-in-a-secret\"", "--no-wait"]);
    fleet.ok("a", &["put", "users", "1", "--value", "\"seen\"", "--no-wait"]);
    for arguments in [&["outbox"][..], &["outbox", "--json"], &["outbox", "list"]] {
        let text = fleet.ok("a", arguments);
        assert!(text.contains("seen") && text.contains("passwords") && !text.contains("needle"), "{text}");
        let text = fleet.ok("a", &[arguments, &["--with-secrets"]].concat());
        assert!(text.contains("seen") && text.contains("needle"), "{text}");
    }
}

#[test]
fn p11_a_rejected_change_is_compared_with_the_current_version_without_showing_secrets() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let (a, _b) = (fleet.member("a"), fleet.member("b"));
    put_secrets(&fleet, "as it was");
    fleet.converges(&["a", "b"]);
    let row: serde_json::Value =
        serde_json::from_str(&fleet.ok("d", &["get", "passwords", "1", "--json"])).expect("JSON");
    let version = row["version"].to_string();
    a.terminate();
    let value = |whose: &str| format!(r#"{{"v":"needle-in-a-secret {whose}"}}"#);
    fleet.ok("a", &["put", "passwords", "1", "--value", &value("mine"), "--if-version", &version, "--no-wait"]);
    fleet.ok("b", &["put", "passwords", "1", "--value", &value("theirs")]);
    let _a = fleet.replica("a");
    fleet.wait("it is rejected", || fleet.status("a")["rejected"] == 1);
    let rejected: serde_json::Value = serde_json::from_str(fleet.ok("a", &["outbox", "--json"]).trim()).expect("a row");
    let id = format!("{}/{}", rejected["id"]["origin"].as_str().expect("text"), rejected["id"]["counter"]);
    let secrets = fleet.ok("a", &["outbox", "show", &id, "--with-secrets"]);
    assert!(secrets.contains("mine") && secrets.contains("theirs"), "{secrets}");
    for flags in [&[][..], &["--json"]] {
        let shown = fleet.ok("a", &[&["outbox", "show", &id][..], flags].concat());
        assert!(!has_needle(shown.as_bytes()) && shown.contains("withheld"), "{shown}");
    }
    let again = fleet.ok("a", &["outbox", "retry", &id, "--upon-present"]);
    assert!(!has_needle(again.as_bytes()) && again.contains("another value"), "{again}");
    fleet.converges(&["a", "b"]);
    assert!(fleet.ok("b", &["get", "passwords", "1"]).contains("mine"));
}
