//! Reports of unhealthy processes by `status`, `doctor`, readiness and the metric.

use serde_json::Value;

use crate::fleet::Fleet;
use crate::web::Web;

/// Returns the exit code of `status`, and its standard output and standard error.
fn status(fleet: &Fleet, name: &str) -> (i32, String) {
    let output = fleet.run(name, &["status"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().expect("exits"), text)
}

/// Waits until `status` reports `word`, and checks exit code and level.
#[track_caller]
fn reports(fleet: &Fleet, name: &str, word: &str, level: &str, code: &str) -> String {
    fleet.wait(&format!("{name} reports {word:?}"), || status(fleet, name).1.contains(word));
    let (exit, text) = status(fleet, name);
    assert_eq!(exit, i32::from(level != "good"), "{text}");
    let json = fleet.status(name);
    assert_eq!(json["health"]["level"], level, "{json}");
    let codes: Vec<&str> =
        json["health"]["reasons"].as_array().expect("reasons").iter().filter_map(|r| r["code"].as_str()).collect();
    assert!(code.is_empty() || codes.contains(&code), "{code}: {codes:?}");
    text
}

fn ready(web: &Web) -> (u16, Value) {
    let answer = web.nobody().get("/api/ready");
    (answer.status, answer.json())
}

#[test]
fn p14_every_state_has_its_exit_code_word_readiness_and_metric() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    reports(&fleet, "d", "good", "good", "");
    fleet.enroll("a", "webserver");
    let web = Web::start(&fleet, "a", &["--metrics", "127.0.0.1:0"]);
    fleet.wait_connected("a");
    reports(&fleet, "a", "good", "good", "");
    fleet.wait("it is ready", || ready(&web).0 == 200);
    assert_eq!(ready(&web).1["Level"], "good");

    // Stopped.
    datastore.terminate();
    let text = reports(&fleet, "d", "not running", "failed", "not_running");
    assert!(!text.contains("listening on"), "{text}");

    // Offline: it serves reads and accepts writes; an operator should look at it.
    fleet.ok("a", &["put", "c", "k", "--value", "1", "--no-wait"]);
    let text = reports(&fleet, "a", "disconnected since ", "attention", "disconnected");
    assert!(text.contains("changes pending"), "{text}");
    let (code, answer) = ready(&web);
    assert_eq!((code, &answer["Level"]), (200, &"attention".into()), "{answer}");
    fleet.wait("the metric follows", || {
        web.metrics(&fleet).is_some_and(|text| text.contains("gravwell_health{level=\"attention\"} 1"))
    });

    // Wiped: both sides name the command that rebuilds it, and none suggests deleting the remaining copies.
    std::fs::remove_dir_all(fleet.dir("d")).expect("wipes");
    let datastore = fleet.datastore();
    let here = reports(&fleet, "a", "a different CA", "failed", "foreign");
    let there = reports(&fleet, "d", "was this datastore wiped?", "attention", "refuses_members");
    let (code, answer) = ready(&web);
    // A datastore failure removes no webserver from its balancer: it has all data and accepts changes.
    assert_eq!((code, &answer["Level"]), (200, &"failed".into()), "{answer}");
    fleet.ok("a", &["put", "c", "k2", "--value", "2", "--no-wait"]);
    let doctor = |name: &str| {
        let output = fleet.run(name, &["doctor"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    for text in [here, there, doctor("a"), doctor("d"), answer.to_string()] {
        assert!(text.contains("recover") && !text.contains("fresh"), "{text}");
        assert_eq!(text.matches("another fleet's").count().max(1), 1, "the remedy is printed once: {text}");
    }
    datastore.terminate();
}

#[test]
fn p14_a_revoked_webserver_is_not_ready() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    let web = Web::start(&fleet, "a", &[]);
    fleet.wait("it is ready", || ready(&web).0 == 200);
    fleet.ok("d", &["revoke", "a"]);
    reports(&fleet, "a", "revoked", "failed", "refused");
    assert_eq!(ready(&web).0, 503);
}

#[test]
fn p14_a_replica_that_never_joined_reports_it() {
    let fleet = Fleet::new();
    let _replica = fleet.replica("a");
    fleet.wait("it answers", || fleet.dir("a/ctl.sock").exists());
    let text = reports(&fleet, "a", "not a member; run `gravwell-logctl join TOKEN`", "failed", "not_a_member");
    assert!(!text.contains("not connected to  "), "{text}");
}

#[test]
fn p14_archived_changes_ask_for_attention() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let a = fleet.member("a");
    a.terminate();
    let directory = fleet.dir("a/quarantine");
    std::fs::create_dir_all(&directory).expect("creates");
    std::fs::write(directory.join("1.jsonl"), "").expect("writes");
    let _a = fleet.replica("a");
    fleet.wait_connected("a");
    reports(&fleet, "a", "archived and not applied", "attention", "archived_changes");
}
