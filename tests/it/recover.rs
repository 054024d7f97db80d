//! Recovery of a datastore with a lost disk from its members.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Instant;

use serde_json::Value;

use crate::files::copy_dir;
use crate::fleet::{Fleet, History, Process, Rng, from_env};

pub fn key_of(fleet: &Fleet) -> String {
    fleet.ok("d", &["authority", "recovery-key"]).trim().to_owned()
}

/// Imports values of half a megabyte each, all different.
pub fn import_large(fleet: &Fleet, member: &str, megabytes: u64) {
    let mut dice = Rng::new(megabytes);
    let mut lines = String::new();
    for number in 0..2 * megabytes {
        let text: String = (0..32 << 10).map(|_| format!("{:016x}", dice.below(u64::MAX))).collect();
        let put = format!(r#"{{"put":{{"collection":"large","key":"{number}","value":"{text}"}}}}"#);
        lines += &format!("{{\"ops\":[{put}]}}\n");
    }
    let file = fleet.write_file("large.jsonl", &lines);
    fleet.ok(member, &["import", file.to_str().unwrap()]);
}

/// Returns the file of a member's encrypted CA backup, once it exists.
pub fn escrow(fleet: &Fleet, member: &str) -> String {
    let file = fleet.dir(member).join("identity/escrow");
    fleet.wait("the member keeps the authority", || file.exists());
    file.to_str().unwrap().to_owned()
}

/// Like [`escrow`], for a backup made after `moment`.
pub fn escrow_since(fleet: &Fleet, member: &str, moment: std::time::SystemTime) -> String {
    let made = |file: &str| std::fs::metadata(file).and_then(|metadata| metadata.modified());
    let file = escrow(fleet, member);
    fleet.wait("the member's copy is renewed", || made(&file).is_ok_and(|made| made > moment));
    file
}

fn import(fleet: &Fleet, member: &str, history: &History) {
    let file = fleet.write_file("in.jsonl", &history.lines);
    fleet.ok(member, &["import", file.to_str().unwrap()]);
}

pub fn destroy(fleet: &Fleet, datastore: Process) {
    datastore.kill();
    std::fs::remove_dir_all(fleet.dir("d")).expect("wipes");
}

/// Recovers over the network and returns the report.
pub fn recover(fleet: &Fleet, flags: &[&str]) -> Value {
    let listen = fleet.listen.to_string();
    let output = fleet.run("d", &[&["recover", "--listen", &listen, "--json"], flags].concat());
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}\n{}", fleet.log_of("a"));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn p04_a_destroyed_datastore_is_rebuilt_from_its_members_and_nothing_is_lost() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (_a, _b, stopped) = (fleet.member("a"), fleet.member("b"), fleet.member("e"));
    fleet.ok("a", &["put", "c", "early", "--value", "1"]);
    fleet.converges(&["e"]);
    stopped.terminate();
    let _c = fleet.member("c");
    import(&fleet, "a", &History::new(11, from_env("GRAVWELL_RECOVER_OPS", 2_000), 900));
    import_large(&fleet, "a", from_env("GRAVWELL_RECOVER_MB", 4));
    let refused = fleet.run("b", &["put", "c", "early", "--value", "2", "--if-absent"]);
    assert_eq!(refused.status.code(), Some(1));
    fleet.converges(&["a", "b", "c"]);
    let (key, authority) = (key_of(&fleet), escrow(&fleet, "c"));
    let before = fleet.status("d");
    destroy(&fleet, datastore);
    // Members continue to work while the datastore is unreachable, including deletions.
    fleet.ok("a", &["put", "c", "while-away", "--value", "1", "--no-wait"]);
    fleet.ok("b", &["delete", "c", "early", "--no-wait"]);
    let expected = {
        let mut lines: Vec<String> = fleet.export("c").lines().map(str::to_owned).collect();
        lines.retain(|line| !line.contains("\"key\":\"early\""));
        lines.push(r#"{"collection":"c","key":"while-away","value":1}"#.to_owned());
        lines.sort();
        lines
    };

    let listen = fleet.listen.to_string();
    let without_key = fleet.run("d", &["recover", "--listen", &listen, "--authority", &authority]);
    assert_eq!(without_key.status.code(), Some(1));
    let text = String::from_utf8_lossy(&without_key.stderr).into_owned();
    assert!(text.contains("--recovery-key") && text.contains("--new-authority"), "{text}");
    // The stopped member is enrolled, too, but `--expect` does not wait for it.
    let flags = ["--authority", &authority, "--recovery-key", &key, "--expect", "3"];
    let rehearsal = recover(&fleet, &[&flags[..], &["--dry-run"]].concat());
    assert_eq!((&rehearsal["dry_run"], rehearsal["offers"].as_array().unwrap().len()), (&true.into(), 3));
    assert!(!fleet.dir("d/log").exists() && !fleet.dir("d/trust").exists(), "a dry run leaves nothing");
    let started = Instant::now();
    let report = recover(&fleet, &flags);
    let recovered = started.elapsed();
    assert_eq!((&report["log"]["head"], &report["log"]["digest"]), (&before["head"], &before["digest"]));
    assert_eq!(report["unheard"], serde_json::json!(["e"]));

    let _datastore = fleet.datastore();
    for member in ["a", "b", "c"] {
        fleet.wait_connected(member);
    }
    let export = fleet.converges(&["a", "b", "c"]);
    eprintln!("recovered after {recovered:?}, all members caught up after {:?}", started.elapsed());
    assert_eq!(export.lines().collect::<Vec<_>>(), expected);
    let status = fleet.status("d");
    assert!(status["log_id"] == before["log_id"] && status["generation"].as_u64() > Some(1), "{status}");
    let _stopped = fleet.replica("e");
    fleet.wait_connected("e");
    assert_eq!(fleet.converges(&["e"]), export);
    assert!(!fleet.dir("e/quarantine").exists(), "it was behind, so nothing is archived");
    fleet.ok("d", &["verify"]);
    assert!(fleet.ok("d", &["generations"]).contains("recovered"));
    fleet.ok("e", &["put", "c", "after", "--value", "1"]);
    fleet.ok("d", &["compact", "--history-ops", "0"]);
    fleet.ok("d", &["verify"]);
    fleet.converges(&["a", "b", "c", "e"]);
    assert_eq!(key_of(&fleet), key, "the recovery key stays");
    // An existing log is not replaced.
    drop(_datastore);
    let again = fleet.run("d", &["recover", "--listen", &listen, "--wait", "1"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("not replaced"), "{again:?}");
}

/// A change of a disconnected member requires an object that is not there. The rebuilt log continues all that the member has.
#[test]
fn p05_a_member_whose_pending_change_requires_an_absent_object_reconnects_to_a_rebuilt_log() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (_a, b) = (fleet.member("a"), fleet.member("b"));
    fleet.ok("a", &["put", "c", "base", "--value", "1"]);
    fleet.converges(&["a", "b"]);
    let key = key_of(&fleet);
    destroy(&fleet, datastore);
    fleet.wait("a is cut off", || fleet.status("a")["connected"] == false);
    let line =
        r#"{"if":[{"present":{"collection":"c","key":"x"}}],"ops":[{"put":{"collection":"c","key":"y","value":1}}]}"#;
    let file = fleet.write_file("upon.json", &format!("{line}\n"));
    fleet.ok("a", &["import", file.to_str().expect("text")]);
    assert_eq!(fleet.status("a")["outbox"], 1);
    b.terminate();
    let from = fleet.dir("b").display().to_string();
    fleet.ok("d", &["recover", "--from", &from, "--member", "b", "--recovery-key", &key]);
    let _datastore = fleet.datastore();
    let _b = fleet.replica("b");
    for member in ["a", "b"] {
        fleet.wait_connected(member);
    }
    fleet.wait("the change is resolved", || fleet.status("a")["outbox"] == 0);
    fleet.converges(&["a", "b"]);
    assert!(fleet.ok("a", &["outbox"]).contains(r#""key":"y""#), "it was rejected, and is listed");
}

#[test]
fn p05_a_member_ahead_that_reconnects_last_pushes_its_own_changes_and_archives_the_rest() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (a, b, e) = (fleet.member("a"), fleet.member("b"), fleet.member("e"));
    import(&fleet, "a", &History::new(12, 500, 200));
    fleet.ok("a", &["put", "c", "to-go", "--value", "1"]);
    fleet.converges(&["a", "b", "e"]);
    a.terminate();
    b.terminate();
    // Only the datastore and e have these; some are e's own, others are not.
    fleet.ok("e", &["put", "c", "own", "--value", "\"e\""]);
    let refused = fleet.run("e", &["put", "c", "own", "--value", "2", "--if-absent"]);
    assert_eq!(refused.status.code(), Some(1));
    fleet.ok("e", &["put", "c", "own-too", "--value", "3"]);
    fleet.ok("d", &["put", "c", "others", "--value", "4"]);
    fleet.ok("d", &["put", "c", "contested", "--value", "5"]);
    fleet.ok("d", &["delete", "c", "to-go"]);
    fleet.converges(&["e"]);
    let was_at = fleet.status("e")["seq"].clone();
    let (key, authority) = (key_of(&fleet), escrow(&fleet, "e"));
    e.terminate();
    destroy(&fleet, datastore);

    let (_a, _b) = (fleet.replica("a"), fleet.replica("b"));
    let report = recover(&fleet, &["--authority", &authority, "--recovery-key", &key, "--expect", "2"]);
    assert!(report["log"]["head"].as_u64() < was_at.as_u64());
    assert_eq!(report["unheard"], serde_json::json!(["e"]));
    let _datastore = fleet.datastore();
    fleet.wait_connected("a");
    fleet.ok("a", &["put", "c", "contested", "--value", "6"]);
    fleet.ok("b", &["put", "c", "new", "--value", "7"]);
    fleet.converges(&["a", "b"]);

    let _e = fleet.replica("e");
    fleet.wait_connected("e");
    fleet.converges(&["a", "b", "e"]);
    let get = |key: &str| {
        let output = fleet.run("a", &["get", "c", key]);
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    assert_eq!(
        (get("own").as_deref(), get("own-too").as_deref()),
        (Some("\"e\""), Some("3")),
        "pushed local changes again"
    );
    assert_eq!((get("others"), get("contested").as_deref()), (None, Some("6")), "nothing is merged blindly");
    assert_eq!((get("to-go").as_deref(), get("new").as_deref()), (Some("1"), Some("7")));
    assert_eq!(fleet.status("e")["quarantined"], 1);

    let shown = fleet.ok("e", &["quarantine", "show", "1"]);
    assert_eq!(shown.lines().count(), 3, "{shown}");
    for (key, now) in [("others", "absent"), ("contested", "changed since"), ("to-go", "as it was before")] {
        assert!(shown.lines().any(|line| line.contains(&format!("c/{key} ")) && line.contains(now)), "{key}: {shown}");
    }
    let applied = fleet.run("e", &["quarantine", "apply", "1", "--json"]);
    assert_eq!(applied.status.code(), Some(1), "something was left");
    let applied: Value = serde_json::from_slice(&applied.stdout).expect("JSON");
    assert_eq!((&applied["applied"], applied["left"].as_array().unwrap().len()), (&2.into(), 1));
    fleet.converges(&["a", "b", "e"]);
    assert_eq!((get("others").as_deref(), get("contested").as_deref(), get("to-go")), (Some("4"), Some("6"), None));
    fleet.ok("e", &["quarantine", "drop", "1"]);
    assert_eq!(fleet.status("e")["quarantined"], 0);
    // Transactions that were pushed again are not pushed a third time after a restart.
    let head = fleet.status("d")["head"].clone();
    drop(_e);
    let _e = fleet.replica("e");
    fleet.wait_connected("e");
    fleet.converges(&["e"]);
    assert_eq!(fleet.status("d")["head"], head);
}

/// Deletes an object conditionally on its current version, as a webserver does.
fn delete_as_read(fleet: &Fleet, member: &str, key: &str) {
    let row: Value = serde_json::from_str(&fleet.ok(member, &["get", "c", key, "--json"])).expect("JSON");
    let name = format!(r#""collection":"c","key":"{key}""#);
    let upon = format!(r#"{{"present":{{{name}}}}},{{"version":{{{name},"version":{}}}}}"#, row["version"]);
    let file = fleet.write_file("delete.jsonl", &format!("{{\"ops\":[{{\"delete\":{{{name}}}}}],\"if\":[{upon}]}}\n"));
    fleet.ok(member, &["import", file.to_str().unwrap()]);
}

/// Three members; c stops early, so the log is rebuilt without the later changes of a and b. They reconnect in `order`; a
/// has missed b's last changes.
fn overtaken(order: [&str; 2]) {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (a, b) = (fleet.member("a"), fleet.member("b"));
    let before = std::time::SystemTime::now();
    let c = fleet.member("c");
    let authority = escrow_since(&fleet, "a", before);
    for key in ["deleted", "replaced", "missed", "missed-upon"] {
        fleet.ok("a", &["put", "c", key, "--value", "0"]);
    }
    fleet.converges(&["a", "b", "c"]);
    c.terminate();
    for key in ["deleted", "replaced", "missed", "missed-upon", "stays", "made", "made-whatever"] {
        fleet.ok("a", &["put", "c", key, "--value", "1"]);
    }
    fleet.converges(&["a", "b"]);
    fleet.ok("b", &["delete", "c", "deleted"]);
    fleet.ok("b", &["put", "c", "replaced", "--value", "2"]);
    fleet.converges(&["a", "b"]);
    let key = key_of(&fleet);
    a.terminate();
    for key in ["missed", "made-whatever"] {
        fleet.ok("b", &["delete", "c", key]);
    }
    for key in ["missed-upon", "made"] {
        delete_as_read(&fleet, "b", key);
    }
    let expected = fleet.converges(&["b"]);
    b.terminate();
    destroy(&fleet, datastore);
    let _c = fleet.replica("c");
    recover(&fleet, &["--authority", &authority, "--recovery-key", &key, "--expect", "1"]);
    let _datastore = fleet.datastore();
    let mut back = Vec::new();
    for name in order {
        back.push(fleet.replica(name));
        fleet.wait_connected(name);
        fleet.converges(&[name]);
    }
    assert_eq!(fleet.converges(&["a", "b", "c"]), expected, "{order:?}");
    assert_eq!(fleet.status("b")["rejected"], 0, "the object stays deleted");
}

#[test]
fn p04_superseded_local_changes_are_not_pushed_again_in_either_order() {
    overtaken(["a", "b"]);
    overtaken(["b", "a"]);
}

#[test]
fn p05_a_datastore_that_lost_only_its_log_waits_and_is_rebuilt_from_directories() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (a, b) = (fleet.member("a"), fleet.member("b"));
    import(&fleet, "a", &History::new(13, 300, 100));
    let export = fleet.converges(&["a", "b"]);
    datastore.terminate();
    for part in ["log", "state"] {
        std::fs::remove_dir_all(fleet.dir("d").join(part)).expect("wipes");
    }
    // The datastore knows from its member registry that it had more entries, and rejects writes.
    let waiting = fleet.datastore();
    // A connecting member reports it, too.
    let says = || fleet.status("d")["remedy"].as_str().is_some_and(|remedy| remedy.contains("recover"));
    fleet.wait("it reports that it waits for recovery", says);
    let refused = fleet.run("d", &["put", "c", "k", "--value", "1"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("waits for recovery"), "{refused:?}");
    assert_eq!(fleet.status("d")["head"], 0);
    waiting.terminate();
    a.terminate();
    b.terminate();
    let (a, b) = (fleet.dir("a"), fleet.dir("b"));
    fleet.ok("d", &["recover", "--from", a.to_str().unwrap(), "--from", b.to_str().unwrap()]);
    let _running = (fleet.datastore(), fleet.replica("a"), fleet.replica("b"));
    fleet.wait_connected("a");
    assert_eq!(fleet.converges(&["a", "b"]), export);
}

#[test]
fn p11_without_the_recovery_key_members_join_again_and_keep_everything() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let a = fleet.member("a");
    import(&fleet, "a", &History::new(14, 300, 100));
    fleet.converges(&["a"]);
    destroy(&fleet, datastore);
    fleet.ok("a", &["put", "c", "pending", "--value", "1", "--no-wait"]);
    a.terminate();
    let from = fleet.dir("a");
    fleet.ok("d", &["recover", "--new-authority", "--from", from.to_str().unwrap()]);
    let _datastore = fleet.datastore();
    let a = fleet.replica("a");
    fleet.wait("a reports that the CA differs", || fleet.status("a")["verdict"] == "Foreign");
    fleet.enroll("a", "webserver");
    // The running process adopts its new identity without a restart.
    fleet.wait_connected("a");
    assert!(fleet.converges(&["a"]).contains("\"pending\""));
    drop(a);
}

#[test]
fn p11_revoked_members_stay_revoked_after_a_recovery() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (_a, _b) = (fleet.member("a"), fleet.member("b"));
    fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    fleet.converges(&["a", "b"]);
    let key = key_of(&fleet);
    let before = std::time::SystemTime::now();
    fleet.ok("d", &["revoke", "b"]);
    let authority = escrow_since(&fleet, "a", before);
    destroy(&fleet, datastore);
    let report = recover(&fleet, &["--authority", &authority, "--recovery-key", &key]);
    assert_eq!((report["offers"].as_array().unwrap().len(), &report["unheard"]), (1, &serde_json::json!([])));
    let _datastore = fleet.datastore();
    fleet.wait_connected("a");
    fleet.wait("b is notified", || fleet.log_of("b").contains("revoked") && fleet.status("b")["connected"] == false);
}

#[test]
fn p05_a_waiting_datastore_creates_nothing_until_it_has_a_log() {
    let mut fleet = Fleet::new();
    let datastore = fleet.datastore();
    let a = fleet.member("a");
    fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    let export = fleet.converges(&["a"]);
    let (key, authority) = (key_of(&fleet), escrow(&fleet, "a"));
    destroy(&fleet, datastore);
    a.terminate();
    fleet.datastore_flags = vec!["--recovery".into(), "wait".into()];
    let _datastore = fleet.spawn_datastore();
    fleet.wait("it reports that it waits", || fleet.log_of("d").contains("Datastore-Recovery=wait"));
    std::fs::create_dir(fleet.dir("d")).expect("creates");
    fleet.wait("its status reports it", || {
        let status = fleet.run("d", &["status", "--json"]);
        let said = String::from_utf8_lossy(&status.stdout).into_owned();
        status.status.code() == Some(1) && said.contains("waits_for_recovery")
    });
    let refused = fleet.run("d", &["put", "c", "k", "--value", "2"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("recover`"), "{said}");
    assert!(!fleet.dir("d/trust").exists() && !fleet.dir("d/log").exists());
    let from = fleet.dir("a");
    let flags = ["recover", "--from", from.to_str().unwrap(), "--authority", &authority, "--recovery-key", &key];
    fleet.ok("d", &flags);
    fleet.wait("it continues automatically", || fleet.status("d")["head"].as_u64() > Some(0));
    let _a = fleet.replica("a");
    fleet.wait_connected("a");
    assert_eq!(fleet.converges(&["a"]), export);
}

/// Puts objects that only `a` receives, not `b`; then the datastore's disk is lost, and both are stopped.
fn a_is_ahead(fleet: &Fleet) -> String {
    let datastore = fleet.datastore();
    let (a, b) = (fleet.member("a"), fleet.member("b"));
    fleet.ok("a", &["put", "c", "base", "--value", "1"]);
    fleet.converges(&["a", "b"]);
    b.terminate();
    fleet.ok("a", &["put", "c", "ahead", "--value", "2"]);
    fleet.ok("a", &["put", "c", "alone", "--value", "2"]);
    fleet.ok("d", &["put", "c", "others", "--value", "3"]);
    fleet.converges(&["a"]);
    a.terminate();
    let key = key_of(fleet);
    destroy(fleet, datastore);
    key
}

/// Recovers from `b`, over the network or from its directory; afterwards `b` and the datastore write.
fn recover_from_b(fleet: &Fleet, key: &str, is_remote: bool) -> (Process, Process) {
    let home = fleet.dir("b");
    let home = home.to_str().unwrap();
    let b = if is_remote {
        let (authority, b) = (escrow(fleet, "b"), fleet.replica("b"));
        recover(fleet, &["--authority", &authority, "--recovery-key", key, "--expect", "1"]);
        b
    } else {
        fleet.ok("d", &["recover", "--from", home, "--recovery-key", key]);
        fleet.replica("b")
    };
    let datastore = fleet.datastore();
    fleet.wait_connected("b");
    fleet.ok("b", &["put", "c", "between", "--value", "4"]);
    fleet.converges(&["b"]);
    (datastore, b)
}

fn value(fleet: &Fleet, key: &str) -> Option<String> {
    value_at(fleet, "b", key)
}

fn value_at(fleet: &Fleet, member: &str, key: &str) -> Option<String> {
    let output = fleet.run(member, &["get", "c", key]);
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A change from a client that saw the lost part elsewhere may reach a member that has not seen it.
#[test]
fn p08_pending_changes_of_a_lagging_member_are_not_applied_to_versions_with_a_lost_sequence() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (a, b) = (fleet.member("a"), fleet.member("b"));
    fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    fleet.converges(&["a", "b"]);
    b.terminate();
    fleet.ok("a", &["put", "c", "k", "--value", "2"]);
    let version = |of: &str| {
        let row: Value = serde_json::from_str(&fleet.ok(of, &["get", "c", "k", "--json"])).expect("JSON");
        row["version"].to_string()
    };
    let (key, lost) = (key_of(&fleet), version("a"));
    a.terminate();
    destroy(&fleet, datastore);
    let from = fleet.dir("b");
    fleet.ok("d", &["recover", "--from", from.to_str().unwrap(), "--recovery-key", &key]);
    fleet.ok("b", &["put", "c", "k", "--value", "3", "--if-version", &lost, "--no-wait"]);
    let _datastore = fleet.datastore();
    fleet.ok("d", &["put", "c", "k", "--value", "4"]);
    assert_eq!(version("d"), lost, "the sequence is assigned again");
    let _b = fleet.replica("b");
    fleet.wait("it is resolved", || fleet.status("b")["outbox"] == 0 && fleet.status("b")["connected"] == true);
    assert_eq!((value(&fleet, "k").as_deref(), &fleet.status("b")["rejected"]), (Some("4"), &1.into()));
    let listed = fleet.ok("b", &["outbox"]);
    assert!(listed.contains("c/k as a history that was lost had left it"), "{listed}");
}

#[test]
fn p05_a_member_offline_during_three_disasters_rejoins() {
    let fleet = Fleet::new();
    let key = a_is_ahead(&fleet);
    for is_remote in [false, true] {
        let (datastore, b) = recover_from_b(&fleet, &key, is_remote);
        b.terminate();
        destroy(&fleet, datastore);
    }
    let (_datastore, _b) = recover_from_b(&fleet, &key, false);
    let known = fleet.ok("d", &["generations"]);
    assert_eq!(known.matches("recovered").count(), 3, "{known}");
    fleet.ok("d", &["verify"]);
    let _a = fleet.replica("a");
    fleet.wait_connected("a");
    fleet.converges(&["a", "b"]);
    // Changes of others before the last recovery are not in the new log; its state shows that a's transactions were
    // not superseded.
    fleet.wait("a's own change is pushed again", || value(&fleet, "ahead").as_deref() == Some("2"));
    assert_eq!(value(&fleet, "others"), None);
    assert_eq!(fleet.status("a")["quarantined"], 1);
    let archived = fleet.ok("a", &["quarantine", "show", "1"]);
    assert!(!archived.contains("ahead") && archived.contains("others"), "{archived}");
}

#[test]
fn p04_objects_deleted_between_two_disasters_stay_deleted() {
    let fleet = Fleet::new();
    let key = a_is_ahead(&fleet);
    let (datastore, b) = recover_from_b(&fleet, &key, false);
    fleet.ok("b", &["put", "c", "ahead", "--value", "5"]);
    fleet.ok("b", &["delete", "c", "ahead"]);
    fleet.converges(&["b"]);
    // Neither compaction nor a rebuilt index forgets it.
    fleet.ok("d", &["compact", "--history-ops", "0"]);
    datastore.terminate();
    std::fs::remove_dir_all(fleet.dir("d/state")).expect("removes the index");
    let datastore = fleet.datastore();
    fleet.wait_connected("b");
    b.terminate();
    // A member that never saw it learns of it from the snapshot.
    let c = fleet.member("c");
    fleet.converges(&["c"]);
    c.terminate();
    destroy(&fleet, datastore);
    let home = fleet.dir("c");
    fleet.ok("d", &["recover", "--from", home.to_str().unwrap(), "--recovery-key", &key]);
    let _datastore = fleet.datastore();
    let (_a, _c) = (fleet.replica("a"), fleet.replica("c"));
    fleet.wait_connected("a");
    fleet.wait_connected("c");
    fleet.converges(&["a", "c"]);
    let value = |key: &str| value_at(&fleet, "c", key);
    fleet.wait("objects that were not deleted reappear", || value("alone").as_deref() == Some("2"));
    assert_eq!((value("ahead"), value("between").as_deref()), (None, Some("4")));
    let archived = fleet.ok("a", &["quarantine", "show", "1"]);
    assert!(archived.contains("ahead") && archived.contains("others"), "{archived}");
    let listed = fleet.ok("a", &["outbox"]);
    assert!(listed.contains("ahead") && !listed.contains("alone"), "its author is notified: {listed}");
}

#[test]
fn p13_a_failed_recovery_leaves_the_reasons_of_generations_unchanged() {
    let fleet = Fleet::new();
    let key = a_is_ahead(&fleet);
    let (datastore, b) = recover_from_b(&fleet, &key, false);
    b.terminate();
    destroy(&fleet, datastore);
    // A file that cannot be removed blocks the new log.
    let in_the_way = fleet.dir("d/log.new");
    std::fs::create_dir_all(fleet.dir("d")).expect("creates");
    std::fs::write(&in_the_way, b"a file").expect("writes");
    let home = fleet.dir("b");
    let flags = ["recover", "--from", home.to_str().unwrap(), "--recovery-key", &key];
    let failed = fleet.run("d", &flags);
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    assert!(!fleet.dir("d/generations.json").exists() && !fleet.dir("d/log").exists(), "{failed:?}");
    std::fs::remove_file(&in_the_way).expect("removes");
    fleet.ok("d", &flags);
    let _datastore = fleet.datastore();
    let known = fleet.ok("d", &["generations"]);
    assert_eq!(known.matches("recovered").count(), 2, "{known}");
}

#[test]
fn p05_a_member_offline_during_a_restore_and_a_lost_disk_rejoins_and_pushes_nothing_again() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (a, b) = (fleet.member("a"), fleet.member("b"));
    fleet.ok("a", &["put", "c", "base", "--value", "1"]);
    fleet.converges(&["a", "b"]);
    let place = fleet.dir("backups").to_str().unwrap().to_owned();
    fleet.ok("d", &["backup", "create", &place]);
    let key = key_of(&fleet);
    b.terminate();
    fleet.ok("a", &["put", "c", "ahead", "--value", "2"]);
    fleet.converges(&["a"]);
    a.terminate();
    datastore.terminate();
    fleet.ok("d", &["restore", &place, "--replace"]);
    let (datastore, b) = (fleet.datastore(), fleet.replica("b"));
    fleet.wait_connected("b");
    fleet.ok("b", &["put", "c", "between", "--value", "4"]);
    fleet.converges(&["b"]);
    b.terminate();
    destroy(&fleet, datastore);
    let (_datastore, _b) = recover_from_b(&fleet, &key, false);
    let _a = fleet.replica("a");
    fleet.wait_connected("a");
    fleet.converges(&["a", "b"]);
    assert_eq!((value(&fleet, "base").as_deref(), value(&fleet, "ahead")), (Some("1"), None), "it was abandoned");
    let set = fleet.ok("a", &["quarantine", "list", "--json"]);
    let set: Value = serde_json::from_str(&set).expect("one set");
    assert_eq!((&set["restore"], &set["changes"]), (&true.into(), &1.into()));
}

#[test]
fn p10_a_corrupt_or_missing_reason_is_reported_and_can_be_recorded_again() {
    let fleet = Fleet::new();
    let key = a_is_ahead(&fleet);
    let (datastore, b) = recover_from_b(&fleet, &key, false);
    let file = fleet.dir("d/generations.json");
    let generation = fleet.status("d")["generation"].to_string();
    std::fs::remove_file(&file).expect("removes");
    let verified = fleet.run("d", &["verify"]);
    assert_eq!(verified.status.code(), Some(3), "{verified:?}");
    // A member that lost the reasons, too, reports it until it has learned them.
    b.terminate();
    std::fs::remove_file(fleet.dir("b/generations.json")).expect("removes");
    let b = fleet.replica("b");
    fleet.wait_connected("b");
    let lacks_reasons = || fleet.status("b")["health"].to_string().contains("generations_unknown");
    fleet.wait("the member reports that it does not know", lacks_reasons);
    fleet.ok("d", &["generations", "set", &generation, "recovered"]);
    b.terminate();
    let _b = fleet.replica("b");
    fleet.wait_connected("b");
    fleet.wait("the member knows it again", || !lacks_reasons());
    fleet.ok("d", &["verify"]);
    datastore.terminate();
    let mut bad = std::fs::read(&file).expect("reads");
    bad[40] ^= 1;
    std::fs::write(&file, &bad).expect("writes");
    let verified = fleet.run("d", &["verify"]);
    let text = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(verified.status.code() == Some(3) && text.contains("generations.json"), "{verified:?}");
    fleet.ok("d", &["generations", "set", &generation, "recovered"]);
    assert_eq!(std::fs::read(fleet.dir("d/generations.json.damaged-1")).expect("kept"), bad);
    let _datastore = fleet.datastore();
    let _a = fleet.replica("a");
    fleet.wait_connected("a");
    fleet.converges(&["a", "b"]);
    assert_eq!(value(&fleet, "ahead").as_deref(), Some("2"));
}

#[test]
fn p06_an_import_that_is_resumed_after_a_lost_history_commits_nothing_twice() {
    const LINES: u64 = 20_000;
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (a, b) = (fleet.member("a"), fleet.member("b"));
    fleet.ok("a", &["put", "c", "base", "--value", "1"]);
    fleet.converges(&["a", "b"]);
    b.terminate();
    let key = key_of(&fleet);
    let line =
        |number| format!("{{\"ops\":[{{\"put\":{{\"collection\":\"c\",\"key\":\"{number:05}\",\"value\":1}}}}]}}\n");
    let file = fleet.write_file("in.jsonl", &(0..LINES).map(line).collect::<String>());
    let file = file.to_str().expect("text");
    let mut import = fleet.command("a", &["import", file]).spawn().expect("starts");
    // More than a member keeps of what it has committed.
    fleet.wait("a part is committed", || fleet.status("a")["seq"].as_u64() > Some(6000));
    import.kill().expect("kills");
    import.wait().expect("waits");
    fleet.wait("it is at rest", || fleet.status("a")["outbox"] == 0);
    fleet.converges(&["a"]);
    let had = fleet.status("a")["seq"].as_u64().expect("a sequence");
    assert!(had < LINES, "the import was finished before it was killed");
    a.terminate();
    destroy(&fleet, datastore);
    let (_datastore, _b) = recover_from_b(&fleet, &key, false);
    let a = fleet.replica("a");
    fleet.wait_connected("a");
    fleet.converges(&["a", "b"]);
    let rows = fleet.export("b");
    let rows = rows.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let of_import = rows.filter_map(|row| row["key"].as_str().filter(|key| key.len() == 5).map(str::to_owned));
    let again: Vec<String> = of_import.collect();
    assert!(again.len() > 1000 && (again.len() as u64) < had - 1000, "{} of {had} were pushed again", again.len());
    let (first, last) = (again[0].as_str(), again[again.len() - 1].as_str());
    fleet.ok("b", &["put", "c", first, "--value", "2"]);
    fleet.ok("b", &["delete", "c", last]);
    fleet.converges(&["a", "b"]);
    // Also after a restart.
    a.terminate();
    let _a = fleet.replica("a");
    fleet.wait_connected("a");
    let said = fleet.refused("a", &["import", file]);
    assert!(said.contains("quarantine list"), "some of its lines are only in the archive: {said}");
    fleet.converges(&["a", "b"]);
    assert_eq!(value(&fleet, first).as_deref(), Some("2"), "a later change is not overwritten");
    assert_eq!(value(&fleet, last), None, "nothing deleted returns");
    assert_eq!(value(&fleet, "00000"), None, "what the log lacks is archived, and not committed by accident");
    assert_eq!(value(&fleet, &format!("{:05}", LINES - 1)).as_deref(), Some("1"), "the rest is imported");
    let said = fleet.ok("a", &["import", file]);
    assert!(said.contains("20000 committed") && !said.contains("before"), "the first import is over: {said}");
}

#[test]
fn p06_an_import_that_goes_on_while_a_history_is_lost_tells_that_lines_may_be_archived() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (_a, b) = (fleet.member("a"), fleet.member("b"));
    fleet.ok("a", &["put", "c", "base", "--value", "1"]);
    fleet.converges(&["a", "b"]);
    b.terminate();
    let key = key_of(&fleet);
    let line =
        |number| format!("{{\"ops\":[{{\"put\":{{\"collection\":\"c\",\"key\":\"{number:05}\",\"value\":1}}}}]}}\n");
    let file = fleet.write_file("in.jsonl", &(0..30_000).map(line).collect::<String>());
    let mut import = fleet.command("a", &["import", file.to_str().expect("text")]);
    let mut import = import.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    fleet.wait("a part is committed", || fleet.status("a")["seq"].as_u64() > Some(9000));
    assert!(import.try_wait().expect("waits").is_none(), "the import is over");
    destroy(&fleet, datastore);
    let (_datastore, _b) = recover_from_b(&fleet, &key, false);
    let ended = import.wait_with_output().expect("waits");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.code() == Some(1) && said.contains("quarantine list"), "{ended:?}");
    fleet.converges(&["a", "b"]);
    assert_eq!(value(&fleet, "29999").as_deref(), Some("1"), "the rest is imported");
    assert_eq!(value(&fleet, "00000"), None, "more than a member keeps is archived");
}

/// Continues a stopped member's state with a separate datastore, and restores the member's identity.
fn forge(fleet: &Fleet, member: &str) {
    let (home, kept) = (fleet.dir(member), fleet.dir("kept-identity"));
    let identity = home.join("identity");
    copy_dir(&identity, &kept);
    fleet.ok("own", &["recover", "--new-authority", "--from", home.to_str().unwrap()]);
    let datastore = fleet.datastore_in("own");
    for number in 0..3 {
        fleet.ok("own", &["put", "c", "forged", "--value", &number.to_string()]);
    }
    let token = fleet.ok("own", &["enroll", member, "--role", "webserver"]);
    fleet.ok(member, &["join", token.trim()]);
    let follower = fleet.replica(member);
    fleet.wait("it follows its own datastore", || value_at(fleet, member, "forged").is_some());
    follower.terminate();
    datastore.terminate();
    std::fs::remove_dir_all(&identity).expect("removes");
    copy_dir(&kept, &identity);
    let key = identity.join("member.json");
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o600)).expect("sets the mode");
}

#[test]
fn p13_a_position_that_nobody_bears_out_requires_a_confirmation() {
    for role in ["reader", "webserver"] {
        let fleet = Fleet::new();
        let datastore = fleet.datastore();
        let (_a, _b) = (fleet.member("a"), fleet.member("b"));
        fleet.ok("a", &["put", "c", "k", "--value", "1"]);
        let forger = fleet.member_as("f", role);
        fleet.converges(&["a", "b", "f"]);
        forger.terminate();
        let (key, authority) = (key_of(&fleet), escrow(&fleet, "a"));
        destroy(&fleet, datastore);
        forge(&fleet, "f");
        let _forger = fleet.replica("f");
        let listen = fleet.listen.to_string();
        let flags = ["--authority", &authority, "--recovery-key", &key, "--expect", "3"];
        let output = fleet.run("d", &[&["recover", "--listen", &listen][..], &flags].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("f: sequence") || said.contains("f shows sequence"), "{role}: {said}");
        if role == "reader" {
            assert!(output.status.success(), "{said}");
            assert!(said.contains("not used: f"), "{said}");
            let _datastore = fleet.datastore();
            fleet.wait_connected("a");
            assert_eq!(value_at(&fleet, "a", "forged"), None);
            assert_eq!(value_at(&fleet, "a", "k").as_deref(), Some("1"));
        } else {
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains("--member f"), "the operator must choose: {said}");
            let flags = [&flags[..], &["--member", "a"]].concat();
            recover(&fleet, &flags);
        }
    }
}

#[test]
fn p13_the_end_of_a_log_without_a_signature_requires_a_confirmation() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let a = fleet.member("a");
    fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    fleet.converges(&["a"]);
    let (key, authority) = (key_of(&fleet), escrow(&fleet, "a"));
    a.terminate();
    destroy(&fleet, datastore);
    // As if the datastore had died before it signed the entries that it had sent.
    std::fs::remove_file(fleet.dir("a").join("proof")).expect("it was signed");
    let _a = fleet.replica("a");
    let listen = fleet.listen.to_string();
    let flags = ["--authority", &authority, "--recovery-key", &key, "--expect", "1"];
    let output = fleet.run("d", &[&["recover", "--listen", &listen][..], &flags].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("nothing confirms") && said.contains("--member a"), "{said}");
    recover(&fleet, &[&flags[..], &["--member", "a"]].concat());
    let _datastore = fleet.datastore();
    fleet.wait_connected("a");
    assert_eq!(value_at(&fleet, "a", "k").as_deref(), Some("1"));
}

#[test]
fn p13_a_recovery_from_a_directory_of_no_member_leaves_no_files() {
    let fleet = Fleet::new();
    let (absent, foreign, wrong) = (fleet.dir("absent"), fleet.dir("foreign"), fleet.dir("wrong"));
    for directory in [&foreign, &wrong] {
        std::fs::create_dir(directory).expect("makes");
        std::fs::write(directory.join("notes.txt"), "mine").expect("writes");
    }
    let before = crate::reading::tree(&foreign);
    for name in ["absent", "foreign"] {
        for from in [&wrong, &fleet.dir("nowhere")] {
            let output = fleet.run(name, &["recover", "--from", from.to_str().expect("text")]);
            assert_eq!(output.status.code(), Some(1), "{name}: {output:?}");
        }
        assert_eq!(fleet.run(name, &["quarantine"]).status.code(), Some(1), "{name}");
        assert_eq!(fleet.run(name, &["outbox", "accept-loss"]).status.code(), Some(1), "{name}");
    }
    assert!(!absent.exists());
    assert!(crate::reading::tree(&foreign) == before);
}
