//! Members whose histories forked because an old copy of the datastore was used.

use crate::files::copy_dir;
use crate::fleet::{Fleet, Process};
use crate::recover::{destroy, key_of};

/// Puts `count` objects named `prefix0`, `prefix1`, ...
fn put(fleet: &Fleet, member: &str, prefix: &str, count: u64) {
    for number in 0..count {
        fleet.ok(member, &["put", "c", &format!("{prefix}{number}"), "--value", "1"]);
    }
}

/// Forks the log: a and b share ten entries; a puts `a0` to `a4`; an earlier copy replaces the datastore; b puts `b0` to
/// `b2` there. All members are stopped; the returned datastore runs on the copy.
fn forked(fleet: &Fleet) -> Process {
    forked_by(fleet, || put(fleet, "a", "a", 5), || put(fleet, "b", "b", 3))
}

/// Like [`forked`], with other changes at a and at b.
fn forked_by(fleet: &Fleet, at_a: impl Fn(), at_b: impl Fn()) -> Process {
    let datastore = fleet.datastore();
    let (a, b) = (fleet.member("a"), fleet.member("b"));
    put(fleet, "a", "base", 10);
    fleet.converges(&["a", "b"]);
    b.terminate();
    datastore.terminate();
    copy_dir(&fleet.dir("d"), &fleet.dir("old"));
    let datastore = fleet.datastore();
    fleet.wait_connected("a");
    at_a();
    fleet.converges(&["a"]);
    a.terminate();
    destroy(fleet, datastore);
    std::fs::rename(fleet.dir("old"), fleet.dir("d")).expect("takes its place");
    let datastore = fleet.datastore();
    let b = fleet.replica("b");
    fleet.wait_connected("b");
    at_b();
    fleet.converges(&["b"]);
    b.terminate();
    datastore
}

/// Returns the content of a member's conflict archive.
fn archived(fleet: &Fleet, member: &str) -> String {
    let files = std::fs::read_dir(fleet.dir(member).join("quarantine")).into_iter().flatten();
    files.filter_map(|file| std::fs::read_to_string(file.ok()?.path()).ok()).collect()
}

#[test]
fn p05_recover_names_a_fork_and_loses_nothing_of_the_branch_that_is_not_chosen() {
    let fleet = Fleet::new();
    let datastore = forked(&fleet);
    let key = key_of(&fleet);
    destroy(&fleet, datastore);
    let (a, b) = (fleet.dir("a"), fleet.dir("b"));
    let (a, b) = (a.to_str().expect("text"), b.to_str().expect("text"));
    let from = ["recover", "--from", a, "--from", b, "--recovery-key", &key];
    let refused = fleet.run("d", &from);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(text.contains("a and b have different histories") && text.contains("--member"), "{text}");
    assert!(!fleet.dir("d/log").exists(), "nothing was written");
    fleet.ok("d", &[&from[..], &["--member", "a"]].concat());
    let _datastore = fleet.datastore();
    let (_a, _b) = (fleet.replica("a"), fleet.replica("b"));
    fleet.wait_connected("a");
    fleet.wait_connected("b");
    let export = fleet.converges(&["a", "b"]);
    assert!((0..5).all(|number| export.contains(&format!("\"key\":\"a{number}\""))), "{export}");
    let archived = archived(&fleet, "b");
    for number in 0..3 {
        let key = format!("\"key\":\"b{number}\"");
        assert!(export.contains(&key) || archived.contains(&key), "{key} is lost");
    }
    assert!(!archived.contains("base"), "the shared history is not archived: {archived}");
}

#[test]
fn p05_a_fork_below_the_horizon_is_not_followed_silently() {
    let fleet = Fleet::new();
    let _datastore = forked(&fleet);
    // The old copy advances past a's position and compacts beyond it.
    let _b = fleet.replica("b");
    fleet.wait_connected("b");
    put(&fleet, "b", "more", 20);
    fleet.converges(&["b"]);
    fleet.ok("d", &["revoke", "a"]);
    fleet.wait("the horizon passes where a was", || {
        fleet.ok("d", &["compact", "--history-ops", "0"]);
        fleet.status("d")["horizon"].as_u64() > Some(15)
    });
    let token = fleet.ok("d", &["enroll", "a", "--role", "webserver", "--replace"]);
    fleet.ok("a", &["join", token.trim()]);
    let _a = fleet.replica("a");
    fleet.wait("a follows, and reports a fork", || fleet.log_of("a").contains("is a fork of this member's"));
    fleet.wait_connected("a");
    // The log no longer shows whether a's transactions were superseded; its state shows that they were not.
    let is_back = |export: &str| (0..5).all(|number| export.contains(&format!("\"key\":\"a{number}\"")));
    fleet.wait("a's own changes are pushed again", || is_back(&fleet.export("b")));
    fleet.converges(&["a", "b"]);
    assert_eq!(archived(&fleet, "a"), "", "nothing is left to archive");
}

/// The lineage of the new log says that it shares everything with b. It shares less with a, whether a's position is past
/// the end of b's branch, exactly at it, or before it.
#[test]
fn p05_a_member_of_the_branch_that_was_not_chosen_leaves_it_where_it_parted() {
    for at_b in [1, 7, 9] {
        let fleet = Fleet::new();
        let in_a = || {
            fleet.ok("d", &["put", "c", "d0", "--value", "1"]);
            fleet.ok("a", &["delete", "c", "base1"]);
            fleet.ok("a", &["put", "c", "base0", "--value", "2"]);
            fleet.ok("d", &["put", "c", "base2", "--value", "2"]);
            put(&fleet, "a", "a", 4);
        };
        let in_b = || {
            put(&fleet, "b", "b", at_b);
            fleet.ok("b", &["delete", "c", "base0"]);
        };
        let datastore = forked_by(&fleet, in_a, in_b);
        let key = key_of(&fleet);
        destroy(&fleet, datastore);
        let b = fleet.dir("b");
        fleet.ok("d", &["recover", "--from", b.to_str().expect("text"), "--recovery-key", &key]);
        let _datastore = fleet.datastore();
        let (_a, _b) = (fleet.replica("a"), fleet.replica("b"));
        fleet.wait_connected("b");
        fleet.wait_connected("a");
        let export = fleet.converges(&["a", "b"]);
        let archived = archived(&fleet, "a");
        let has = |text: &str, key: &str| text.contains(&format!("\"key\":\"{key}\""));
        for key in ["d0", "base0", "base2"] {
            assert!(has(&archived, key), "{at_b}: {key} is not archived: {archived}");
        }
        for key in ["a0", "a1", "a2", "a3"] {
            assert!(has(&export, key) || has(&archived, key), "{at_b}: {key} is lost: {archived}");
        }
        assert!(!has(&export, "base1") || has(&archived, "base1"), "{at_b}: its deletion is lost: {archived}");
        assert!(!has(&export, "base0"), "{at_b}: b's branch counts: {export}");
        for number in 0..at_b {
            let key = format!("b{number}");
            assert!(has(&export, &key) && !has(&archived, &key), "{at_b}: {key}: {archived}");
        }
        assert!(!has(&archived, "base3"), "{at_b}: the shared history is not archived: {archived}");
        // An object that another member deleted after the archiving stays deleted.
        fleet.ok("b", &["delete", "c", "base2"]);
        fleet.converges(&["a", "b"]);
        let applied = fleet.run("a", &["quarantine", "apply", "1"]);
        let text = String::from_utf8_lossy(&applied.stdout).into_owned();
        assert!(text.contains("c/base2 was changed since"), "{at_b}: {text}");
        let export = fleet.converges(&["a", "b"]);
        assert!(!has(&export, "base2") && has(&export, "d0"), "{at_b}: {export}");
    }
}

/// The sequences of the lost part are assigned again. A pending change that is conditional on one of them must not be
/// committed over the write that has the sequence now.
#[test]
fn p05_a_pending_change_based_on_a_lost_write_is_not_committed_over_another_write() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (a, b) = (fleet.member("a"), fleet.member("b"));
    fleet.ok("a", &["put", "c", "x", "--value", "\"base\""]);
    fleet.converges(&["a", "b"]);
    b.terminate();
    fleet.ok("a", &["put", "c", "x", "--value", "\"lost\""]);
    let lost = fleet.status("d")["head"].as_u64().expect("a sequence");
    let key = key_of(&fleet);
    destroy(&fleet, datastore);
    fleet.wait("a is disconnected", || fleet.status("a")["connected"] == false);
    let upon_lost =
        ["put", "c", "x", "--value", "\"on top of the lost write\"", "--if-version", &lost.to_string(), "--no-wait"];
    fleet.ok("a", &upon_lost);
    a.terminate();
    let from_b = fleet.dir("b");
    fleet.ok("d", &["recover", "--from", from_b.to_str().expect("text"), "--recovery-key", &key]);
    let _datastore = fleet.datastore();
    let _b = fleet.replica("b");
    fleet.wait_connected("b");
    fleet.ok("b", &["put", "c", "x", "--value", "\"of another\""]);
    assert_eq!(fleet.status("d")["head"].as_u64(), Some(lost), "the sequence of the lost write is assigned again");
    let _a = fleet.replica("a");
    fleet.wait_connected("a");
    let export = fleet.converges(&["a", "b"]);
    assert!(export.contains("of another") && !export.contains("on top of the lost write"), "{export}");
    let rejected = fleet.ok("a", &["outbox"]);
    assert!(rejected.contains("on top of the lost write"), "the author is notified: {rejected}");
}
