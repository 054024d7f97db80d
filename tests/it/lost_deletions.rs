//! Deletions that a recovery lost: none that a member knows of vanishes silently.

use crate::fleet::{Fleet, Process};
use crate::recover::{destroy, import_large, key_of};

/// Recovers the datastore from the stopped member `b`, and starts it.
fn recovered(fleet: &Fleet, datastore: Process, key: &str) -> Process {
    destroy(fleet, datastore);
    let from = fleet.dir("b");
    fleet.ok("d", &["recover", "--from", from.to_str().unwrap(), "--recovery-key", key]);
    fleet.datastore()
}

fn is_there(fleet: &Fleet) -> bool {
    fleet.run("d", &["get", "c", "x"]).status.success()
}

/// Returns whether the rejected list of the maker has the object.
fn is_listed(fleet: &Fleet) -> bool {
    fleet.ok("a", &["outbox"]).contains(r#""key":"x""#)
}

fn back(fleet: &Fleet, member: &str) -> Process {
    let process = fleet.replica(member);
    fleet.wait_connected(member);
    fleet.wait("it has pushed everything", || fleet.status(member)["outbox"] == 0);
    fleet.converges(&[member]);
    process
}

/// Returns a fleet in which `a` has created c/x and stopped, `e` has it, and `b` stopped before. The datastore can be recovered
/// from `b` with the recovery key.
fn seen() -> (Fleet, Process, Process, String) {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (a, b, e) = (fleet.member("a"), fleet.member("b"), fleet.member("e"));
    fleet.ok("a", &["put", "c", "base", "--value", "1"]);
    fleet.converges(&["a", "b", "e"]);
    let key = key_of(&fleet);
    b.terminate();
    fleet.ok("a", &["put", "c", "x", "--value", "1"]);
    fleet.converges(&["a", "e"]);
    a.terminate();
    (fleet, datastore, e, key)
}

/// The maker of an object and a member that has seen it deleted return in either order; who deleted it does not.
#[test]
fn p04_a_deletion_seen_only_by_others_is_archived_and_can_be_applied() {
    for order in [["e", "a"], ["a", "e"]] {
        let (fleet, datastore, e, key) = seen();
        fleet.ok("d", &["delete", "c", "x"]);
        fleet.converges(&["e"]);
        e.terminate();
        let _datastore = recovered(&fleet, datastore, &key);
        let _first = back(&fleet, order[0]);
        let _second = (order[0] == "a").then(|| back(&fleet, "e"));
        let now = if order[0] == "a" { "there again" } else { "absent" };
        let shown = fleet.ok("e", &["quarantine", "show", "1"]);
        let is_it = |line: &str| line.contains("c/x  delete") && line.ends_with(now);
        assert!(shown.lines().count() == 1 && shown.lines().all(is_it), "{order:?}: {shown}");
        assert_eq!(is_there(&fleet), order[0] == "a");
        let applied = fleet.ok("e", &["quarantine", "apply", "1"]);
        assert!(applied.contains("1 transactions applied"), "{applied}");
        let _third = (order[0] == "e").then(|| back(&fleet, "a"));
        assert!(!is_there(&fleet), "{order:?}");
        assert_eq!(
            is_listed(&fleet),
            order[0] == "e",
            "{order:?}: its author is notified that it was not applied again"
        );
    }
}

/// More was written after the deletion than its member keeps.
#[test]
fn p04_a_deletion_is_pushed_again_regardless_of_later_puts() {
    let (fleet, datastore, e, key) = seen();
    fleet.ok("e", &["delete", "c", "x"]);
    import_large(&fleet, "e", 10);
    fleet.wait("it is committed", || fleet.status("e")["outbox"] == 0);
    fleet.converges(&["e"]);
    e.terminate();
    let _datastore = recovered(&fleet, datastore, &key);
    let (_e, _a) = (back(&fleet, "e"), back(&fleet, "a"));
    assert!(!is_there(&fleet), "it was deleted");
    let archived = fleet.ok("e", &["quarantine", "show", "1"]);
    assert!(archived.contains("large/") && !archived.contains("c/x"), "{archived}");
    assert!(is_listed(&fleet), "its author is notified");
}

/// A transaction at the limit for authors is pushed again with a condition for each of its objects.
#[test]
fn p04_deletions_and_puts_at_the_limits_are_pushed_again_and_not_rejected() {
    let mut fleet = Fleet::new();
    fleet.datastore_flags = ["--max-txn-kb", "64", "--max-value-kb", "32"].map(str::to_owned).to_vec();
    let datastore = fleet.datastore();
    let (a, b) = (fleet.member("a"), fleet.member("b"));
    let name = |kind: &str, number: usize| format!(r#""collection":"c","key":"{kind}-{number}-{}""#, "k".repeat(600));
    let import = |member: &str, kind: &str, op: &str, value: &str| {
        let ops: Vec<_> = (0..100).map(|number| format!(r#"{{"{op}":{{{}{value}}}}}"#, name(kind, number))).collect();
        let file = fleet.write_file(&format!("{op}-{kind}.jsonl"), &format!("{{\"ops\":[{}]}}\n", ops.join(",")));
        fleet.ok(member, &["import", file.to_str().unwrap()]);
    };
    import("a", "deleted", "put", r#","value":1"#);
    fleet.converges(&["a", "b"]);
    let key = key_of(&fleet);
    b.terminate();
    import("a", "deleted", "delete", "");
    import("a", "put", "put", r#","value":2"#);
    fleet.converges(&["a"]);
    a.terminate();
    let _datastore = recovered(&fleet, datastore, &key);
    let objects = || fleet.ok("d", &["export"]);
    let _b = fleet.replica("b");
    fleet.converges(&["b"]);
    let count = |kind: &str| objects().matches(&format!(r#""key":"{kind}-"#)).count();
    assert!(count("deleted") >= 100 && count("put") == 0, "the recovery lost both transactions");
    let _a = back(&fleet, "a");
    assert_eq!(fleet.status("a")["rejected"], 0, "{}", fleet.ok("a", &["outbox"]));
    for number in [0, 99] {
        let exists = |kind: &str| {
            let key = format!("{kind}-{number}-{}", "k".repeat(600));
            fleet.run("d", &["get", "c", &key]).status.success()
        };
        assert!(!exists("deleted"), "a deleted object is back");
        assert!(exists("put"), "an acknowledged object is lost");
    }
}
