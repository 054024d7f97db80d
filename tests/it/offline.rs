use crate::fleet::Fleet;

#[test]
fn p07_offline_edits_on_two_replicas_with_conflicts_commit_or_are_rejected_visibly() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (_a, _b) = (fleet.member("a"), fleet.member("b"));
    fleet.ok("a", &["put", "users", "old", "--value", "1"]);
    fleet.converges(&["a", "b"]);
    datastore.terminate();
    for name in ["a", "b"] {
        fleet.wait("the disconnect is detected", || fleet.status(name)["connected"] == false);
    }
    fleet.ok("a", &["put", "users", "bob", "--value", "\"from a\"", "--if-absent"]);
    fleet.ok("b", &["put", "users", "bob", "--value", "\"from b\"", "--if-absent"]);
    fleet.ok("a", &["delete", "users", "old"]);
    fleet.ok("b", &["put", "c", "from-b", "--value", "2"]);
    assert_eq!(fleet.ok("b", &["get", "users", "bob"]).trim(), "\"from b\"", "the optimistic view");
    assert_eq!(fleet.run("a", &["get", "users", "old"]).status.code(), Some(1));
    assert_eq!((fleet.status("a")["outbox"].as_u64(), fleet.status("b")["outbox"].as_u64()), (Some(2), Some(2)));
    let _datastore = fleet.datastore();
    let export = fleet.converges(&["a", "b"]);
    assert!(!export.contains("\"old\"") && export.contains("from-b"), "{export}");
    let rejected: Vec<u64> = ["a", "b"].iter().map(|name| fleet.status(name)["rejected"].as_u64().unwrap()).collect();
    assert_eq!(rejected.iter().sum::<u64>(), 1, "one of the two bobs was rejected, visibly");
    let loser = if rejected[0] == 1 { "a" } else { "b" };
    let outbox = fleet.ok(loser, &["outbox"]);
    assert!(outbox.contains("condition failed: expected absent users/bob"), "{outbox}");
    fleet.ok(loser, &["put", "users", "bob", "--value", "3"]);
    fleet.ok(loser, &["outbox", "dismiss", "--all"]);
    assert_eq!(fleet.status(loser)["rejected"], 0);
}

#[test]
fn p08_a_rejected_write_is_applied_again_to_the_current_version() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let (a, _b) = (fleet.member("a"), fleet.member("b"));
    for key in ["k", "gone"] {
        fleet.ok("a", &["put", "c", key, "--value", "\"first\""]);
    }
    fleet.converges(&["a", "b"]);
    let version = |key: &str| {
        let row = fleet.ok("d", &["get", "c", key, "--json"]);
        let row: serde_json::Value = serde_json::from_str(&row).expect("JSON");
        row["version"].to_string()
    };
    let versions = ["k", "gone"].map(version);
    a.terminate();
    // Created while offline, based on the versions at that time.
    for (key, version) in ["k", "gone"].iter().zip(&versions) {
        fleet.ok("a", &["put", "c", key, "--value", "\"mine\"", "--if-version", version, "--no-wait"]);
    }
    fleet.ok("b", &["put", "c", "k", "--value", "\"theirs\""]);
    fleet.ok("b", &["delete", "c", "gone"]);
    let _a = fleet.replica("a");
    fleet.wait("both are rejected", || fleet.status("a")["rejected"] == 2);
    let list = fleet.ok("a", &["outbox", "--json"]);
    let id = |key: &str| {
        let row = list.lines().find(|line| line.contains(&format!("\"key\":\"{key}\""))).expect("a row");
        let row: serde_json::Value = serde_json::from_str(row).expect("JSON");
        format!("{}/{}", row["id"]["origin"].as_str().expect("text"), row["id"]["counter"])
    };
    let (id, gone) = (id("k"), id("gone"));
    let again = fleet.run("a", &["outbox", "retry", &id]);
    assert_eq!(again.status.code(), Some(1), "it cannot be committed unchanged: {again:?}");
    let shown = fleet.ok("a", &["outbox", "show", &id]);
    assert!(shown.contains("theirs") && shown.contains("mine"), "{shown}");
    let again = fleet.ok("a", &["outbox", "retry", &id, "--upon-present"]);
    assert!(again.contains("theirs"), "overwritten values are printed: {again}");
    fleet.converges(&["a", "b"]);
    assert_eq!(fleet.ok("b", &["get", "c", "k"]).trim(), "\"mine\"");
    let refused = fleet.run("a", &["outbox", "retry", &gone, "--upon-present"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("was deleted since"), "{refused:?}");
    assert!(!fleet.run("b", &["get", "c", "gone"]).status.success());
    assert_eq!(fleet.status("a")["rejected"], 1);
}

#[test]
fn p07_an_outbox_survives_restarts_while_offline() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let mut a = fleet.member("a");
    datastore.kill();
    for number in 0..5 {
        fleet.wait("a runs", || fleet.status("a")["running"] == true);
        fleet.ok("a", &["put", "c", &format!("k{number}"), "--value", "1", "--no-wait"]);
        a.kill();
        a = fleet.replica("a");
    }
    fleet.wait("a runs", || fleet.status("a")["running"] == true);
    assert_eq!(fleet.status("a")["outbox"], 5);
    let _datastore = fleet.datastore();
    assert_eq!(fleet.converges(&["a"]).lines().count(), 5);
    assert_eq!(fleet.status("d")["head"], 5);
}

#[test]
fn p14_waits_fail_immediately_when_the_result_cannot_arrive() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let a = fleet.member("a");
    fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    fleet.converges(&["a"]);
    a.terminate();
    datastore.terminate();
    fleet.ok("a", &["put", "c", "waits", "--value", "1", "--no-wait"]);
    // A member that never had a state: stopped, and running.
    let new = fleet.replica("new");
    fleet.wait("it answers", || fleet.status("new")["running"] == true);
    let day = ["--timeout", "86400"];
    let in_vain = |name: &str, seq: &[&str], why: &str| {
        let output = fleet.run(name, &[&["barrier"][..], seq, &day].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains(why), "{name} {seq:?}: {said}");
    };
    in_vain("new", &["1"], "has not joined");
    new.terminate();
    for (name, seq) in [("new", &["1"][..]), ("a", &["99"]), ("a", &[])] {
        in_vain(name, seq, "no process is running");
    }
    in_vain("d", &["99"], "is not reached");
    for (name, seq) in [("new", &[][..]), ("a", &["1"]), ("d", &["1"])] {
        let said = fleet.ok(name, &[&["barrier"][..], seq, &day].concat());
        assert!(said.contains("(not running)"), "{name}: {said}");
    }
}
