//! Archived changes are applied only to objects without later changes that their author did not see.

use crate::fleet::{Fleet, Process};

/// Lets `b`, which accepted changes without a datastore, be revoked before it can push them, and enrolls it again: they are
/// archived. Returns the datastore and `b`; `a` is connected, too.
pub(crate) fn archives(fleet: &Fleet, b: Process) -> (Process, Process) {
    b.terminate();
    let datastore = fleet.datastore();
    fleet.ok("d", &["revoke", "b"]);
    let b = fleet.replica("b");
    fleet.wait("it is archived", || fleet.status("b")["quarantined"] == 1);
    b.terminate();
    let token = fleet.ok("d", &["enroll", "b", "--replace"]);
    fleet.ok("b", &["join", token.trim()]);
    let b = fleet.replica("b");
    fleet.wait_connected("a");
    fleet.wait_connected("b");
    (datastore, b)
}

/// Returns a fleet with a member that accepted puts of `keys` while it was offline and was revoked before it could push
/// them. After it was enrolled again, the puts are archived.
fn archived(keys: &[&str]) -> (Fleet, Process, Process, Process) {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (a, b) = (fleet.member("a"), fleet.member("b"));
    fleet.ok("a", &["put", "c", "there", "--value", "0"]);
    fleet.converges(&["a", "b"]);
    datastore.terminate();
    for key in keys {
        fleet.ok("b", &["put", "c", key, "--value", "\"archived\"", "--no-wait"]);
    }
    let (datastore, b) = archives(&fleet, b);
    (fleet, datastore, a, b)
}

#[test]
fn p04_what_was_deleted_since_it_was_archived_does_not_come_back() {
    let (fleet, datastore, _a, _b) = archived(&["made-and-deleted", "there", "never-there"]);
    fleet.ok("a", &["put", "c", "made-and-deleted", "--value", "1"]);
    fleet.ok("a", &["delete", "c", "made-and-deleted"]);
    fleet.ok("a", &["delete", "c", "there"]);
    fleet.converges(&["a", "b"]);
    let apply = |more: &[&str]| {
        let output = fleet.run("b", &[&["quarantine", "apply", "1"], more].concat());
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    // While the datastore is unreachable, the member cannot check what was deleted there.
    datastore.terminate();
    fleet.wait("it is disconnected", || fleet.status("b")["connected"] == false);
    let (code, said) = apply(&[]);
    assert!(code == Some(1) && said.contains("0 transactions applied") && said.contains("is unreachable"), "{said}");
    assert_eq!(fleet.status("b")["outbox"], 0, "{said}");
    let _datastore = fleet.datastore();
    fleet.wait_connected("b");
    let shown = fleet.ok("b", &["quarantine", "show", "1"]);
    assert!(shown.contains("deleted, at sequence") && shown.contains("now: absent"), "{shown}");
    for more in [&["--dry-run"][..], &[]] {
        let (code, said) = apply(more);
        assert_eq!(code, Some(1), "{said}");
        for key in ["made-and-deleted", "there"] {
            let left = |line: &str| line.contains(&format!("c/{key} was changed since: it was deleted, at sequence"));
            assert!(said.lines().any(left), "{key}: {said}");
        }
        assert!(said.contains("1 transactions") && said.contains("2 left"), "{said}");
    }
    fleet.converges(&["a", "b"]);
    assert!(fleet.ok("a", &["get", "c", "never-there"]).contains("archived"));
    for key in ["made-and-deleted", "there"] {
        assert!(!fleet.run("a", &["get", "c", key]).status.success(), "{key} stays deleted");
    }
    // The operator can force it.
    assert_eq!(apply(&["--force"]).0, Some(0));
    fleet.converges(&["a", "b"]);
    assert!(fleet.ok("a", &["get", "c", "made-and-deleted"]).contains("archived"));
}

/// A change that is pushed again after a lost history names the sequence since which its object must be absent. The datastore judges
/// that, also by an index that was built again from a compacted log.
#[test]
fn p04_what_was_deleted_after_the_named_sequence_is_not_made_again() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let _a = fleet.member("a");
    fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    fleet.ok("a", &["delete", "c", "k"]);
    fleet.converges(&["a"]);
    let deleted = fleet.status("a")["seq"].as_u64().expect("a sequence");
    let make = |seq: u64| {
        let version = ((1_u64 << 62) + seq).to_string();
        let output = fleet.run("a", &["put", "c", "k", "--value", "2", "--if-version", &version]);
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    };
    let is_refused = |(is_made, said): (bool, String)| {
        let wanted = format!("c/k neither made nor deleted after sequence {}", deleted - 1);
        assert!(!is_made && said.contains(&wanted), "{said}");
    };
    is_refused(make(deleted - 1));
    fleet.ok("d", &["compact", "--history-ops", "0"]);
    datastore.terminate();
    std::fs::remove_dir_all(fleet.dir("d/state")).expect("removes the index");
    let _datastore = fleet.datastore();
    fleet.wait_connected("a");
    is_refused(make(deleted - 1));
    let (is_made, said) = make(deleted);
    assert!(is_made, "{said}");
    fleet.converges(&["a"]);
    assert!(!make(deleted).0, "it is there");
}
