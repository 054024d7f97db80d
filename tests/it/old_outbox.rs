//! An outbox directory replaced by an older copy of itself, and a member of which only `current` is left.

use std::fs;
use std::path::{Path, PathBuf};

use crate::files::copy_dir;
use crate::fleet::{Fleet, Process};
use crate::reading::tree;

/// Returns a member that was connected once, and is offline and stopped.
fn cut_off() -> Fleet {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let member = fleet.member("a");
    fleet.ok("a", &["put", "c", "k", "--value", "0"]);
    fleet.converges(&["a"]);
    member.terminate();
    datastore.terminate();
    fleet
}

fn start(fleet: &Fleet) -> Process {
    let process = fleet.replica("a");
    fleet.wait("the member answers", || fleet.status("a")["running"] == true);
    process
}

/// Accepts a write while the member runs without its datastore, and stops it.
fn accept(fleet: &Fleet, key: &str, is_killed: bool) {
    let process = start(fleet);
    fleet.ok("a", &["put", "c", key, "--value", "1", "--no-wait"]);
    match is_killed {
        true => process.kill(),
        false => _ = process.terminate(),
    }
}

fn copy_outbox(fleet: &Fleet, name: &str) -> PathBuf {
    let copy = fleet.dir(name);
    copy_dir(&fleet.dir("a/outbox"), &copy);
    copy
}

fn put_back(fleet: &Fleet, copy: &Path) {
    fs::remove_dir_all(fleet.dir("a/outbox")).expect("removes");
    copy_dir(copy, &fleet.dir("a/outbox"));
}

/// Checks that every command and every start reports that the outbox is not the latest one, and leaves everything
/// unchanged except for the directory's mark and lock.
fn is_refused(fleet: &Fleet, what: &str) {
    let seen = || {
        let mut tree = tree(&fleet.dir("a"));
        tree.retain(|path, _| !path.ends_with("role") && !path.ends_with("lock"));
        tree
    };
    let before = seen();
    for command in [&["status"][..], &["doctor"], &["outbox"], &["replica"], &["put", "c", "z", "--value", "1"]] {
        let output = fleet.run("a", command);
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert_eq!(output.status.code(), Some(3), "{what}, {command:?}: {said}");
        assert!(said.contains("outbox accept-loss"), "{what}, {command:?}: {said}");
    }
    assert!(seen() == before, "{what}: nothing is changed");
}

#[test]
fn p10_an_outbox_replaced_by_an_older_copy_is_detected() {
    let fleet = cut_off();
    accept(&fleet, "first", false);
    let older = copy_outbox(&fleet, "older");
    accept(&fleet, "second", false);
    let newer = copy_outbox(&fleet, "newer");
    put_back(&fleet, &older);
    is_refused(&fleet, "stopped");
    // With the newer copy it works as before; it is also detected that a killed process had continued.
    put_back(&fleet, &newer);
    assert_eq!(fleet.status("a")["outbox"], 2);
    accept(&fleet, "third", true);
    put_back(&fleet, &newer);
    fs::remove_file(fleet.dir("a/ctl.sock")).expect("the socket of the process that was killed");
    is_refused(&fleet, "killed");
    // After the loss is accepted, transactions of the copy keep their identities, and new ones get others.
    let accepted = fleet.ok("a", &["outbox", "accept-loss"]);
    assert!(accepted.contains("records of the journal were kept"), "{accepted}");
    assert!(fleet.dir("a/outbox.head.damaged-1").exists(), "the proof is kept");
    accept(&fleet, "fourth", false);
    let datastore = fleet.datastore();
    let process = start(&fleet);
    fleet.wait("all are resolved", || fleet.status("a")["outbox"] == 0);
    fleet.converges(&["a"]);
    assert_eq!(fleet.status("a")["rejected"], 0);
    for (key, is_there) in [("first", true), ("second", true), ("third", false), ("fourth", true)] {
        assert_eq!(fleet.run("d", &["get", "c", key]).status.success(), is_there, "{key}");
    }
    // The pending transactions of the copy are resolved by now, so none is pushed twice.
    let head = fleet.status("d")["head"].clone();
    process.terminate();
    put_back(&fleet, &older);
    is_refused(&fleet, "emptied since");
    fleet.ok("a", &["outbox", "accept-loss"]);
    let process = start(&fleet);
    fleet.wait("it is connected", || fleet.status("a")["connected"] == true);
    assert_eq!((&fleet.status("a")["outbox"], &fleet.status("d")["head"]), (&0.into(), &head));
    process.terminate();
    datastore.terminate();
}

#[test]
fn p13_a_member_with_only_the_file_current_reports_a_lost_state() {
    let fleet = cut_off();
    let dir = fleet.dir("a");
    let current = fs::read(dir.join("current")).expect("reads");
    fs::remove_dir_all(&dir).expect("removes");
    fs::create_dir(&dir).expect("makes");
    fs::write(dir.join("current"), current).expect("writes");
    is_refused(&fleet, "no outbox");
    fleet.ok("a", &["outbox", "accept-loss"]);
    for life in ["stopped", "running", "running again", "stopped again"] {
        let process = life.starts_with("running").then(|| start(&fleet));
        let status = fleet.run("a", &["status", "--json"]);
        let said = String::from_utf8_lossy(&status.stdout).into_owned();
        assert!(!status.status.success(), "{life}: {said}");
        assert!(said.contains("state_lost") && said.contains("`current` names"), "{life}: {said}");
        assert_eq!(fleet.run("a", &["get", "c", "k"]).status.code(), Some(3), "{life}");
        if let Some(process) = process {
            process.terminate();
        }
    }
}
