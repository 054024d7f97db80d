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
        fleet.wait("the cut is noticed", || fleet.status(name)["connected"] == false);
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
fn p07_an_outbox_survives_restarts_while_cut_off() {
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
fn p14_nobody_waits_for_what_cannot_come() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let a = fleet.member("a");
    fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    fleet.converges(&["a"]);
    a.terminate();
    datastore.terminate();
    fleet.ok("a", &["put", "c", "waits", "--value", "1", "--no-wait"]);
    // One that never had a state: stopped, and running.
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
        in_vain(name, seq, "no process runs");
    }
    in_vain("d", &["99"], "is not reached");
    for (name, seq) in [("new", &[][..]), ("a", &["1"]), ("d", &["1"])] {
        fleet.ok(name, &[&["barrier"][..], seq, &day].concat());
    }
}
