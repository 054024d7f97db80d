//! Repair of a corrupt datastore from a member.

use std::path::PathBuf;

use crate::fleet::{Fleet, History, Process};

const SMALL_SEGMENTS: [&str; 2] = ["--segment-mb", "1"];

fn segments(fleet: &Fleet, log: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(fleet.dir(log)).expect("lists").map(|entry| entry.expect("entry").path());
    let mut found: Vec<_> =
        entries.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("seg-")).collect();
    found.sort();
    found
}

fn flip(path: &std::path::Path, at: usize) {
    let mut bytes = std::fs::read(path).expect("reads");
    bytes[at] ^= 4;
    std::fs::write(path, bytes).expect("writes");
}

/// Two members and a log of several segments, with rejected transactions and deletions.
fn loaded(fleet: &Fleet, transactions: u64) -> (Process, Process, Process) {
    let datastore = fleet.datastore();
    let (a, b) = (fleet.member("a"), fleet.member("b"));
    let file = fleet.write_file("in.jsonl", &History::new(5, transactions, 900).lines);
    fleet.ok("a", &["import", file.to_str().unwrap()]);
    fleet.ok("b", &["put", "c", "k", "--value", "1"]);
    let rejected = fleet.run("b", &["put", "c", "k", "--value", "2", "--if-absent"]);
    assert_eq!(rejected.status.code(), Some(1));
    fleet.converges(&["a", "b"]);
    (datastore, a, b)
}

fn fleet() -> Fleet {
    let mut fleet = Fleet::new();
    fleet.datastore_flags = SMALL_SEGMENTS.map(String::from).into();
    fleet
}

fn refused_to_start(fleet: &Fleet) {
    let start = fleet.run("d", &["datastore", "--listen", "127.0.0.1:0"]);
    let errors = String::from_utf8_lossy(&start.stderr).into_owned();
    assert_eq!(start.status.code(), Some(3), "{errors}");
    assert!(errors.contains("repair --from"), "the remedy is named: {errors}");
    let verify = fleet.run("d", &["verify"]);
    assert_eq!(verify.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&verify.stdout).contains("repair --from"), "{verify:?}");
}

fn repair(fleet: &Fleet, member: &str, flags: &[&str]) -> std::process::Output {
    let from = fleet.dir(member);
    let arguments = [&["repair", "--from", from.to_str().unwrap()], flags].concat();
    fleet.run("d", &arguments)
}

fn repaired(fleet: &Fleet, member: &str) -> serde_json::Value {
    let output = repair(fleet, member, &["--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Checks that the fleet continues with the same history and state everywhere, and that new writes reach all members.
fn goes_on(fleet: &Fleet, export: &str, id: &serde_json::Value) {
    let _datastore = fleet.datastore();
    let _members = (fleet.replica("a"), fleet.replica("b"));
    fleet.wait_connected("a");
    fleet.wait_connected("b");
    assert_eq!(fleet.converges(&["a", "b"]), export);
    assert_eq!(&fleet.status("d")["log_id"], id);
    assert_eq!(fleet.status("d")["generation"], 1);
    fleet.ok("a", &["put", "c", "after", "--value", "1"]);
    fleet.ok("b", &["delete", "c", "k"]);
    let export = fleet.converges(&["a", "b"]);
    assert!(export.contains("\"after\""));
    fleet.ok("d", &["verify"]);
    fleet.ok("d", &["compact", "--history-ops", "0"]);
    fleet.ok("d", &["verify"]);
    assert_eq!(fleet.converges(&["a", "b"]), export);
    // A new member gets all data from the repaired log.
    let _c = fleet.member("c");
    assert_eq!(fleet.converges(&["c"]), export);
}

#[test]
fn p01_a_corrupt_closed_segment_is_repaired_from_a_lagging_member() {
    let fleet = fleet();
    let (datastore, a, b) = loaded(&fleet, 9_000);
    b.terminate();
    // Entries that b lacks are after the corruption, in the old log.
    fleet.ok("a", &["put", "c", "later", "--value", "1"]);
    fleet.ok("a", &["put", "c", "later", "--value", "2"]);
    let export = fleet.converges(&["a"]);
    let (id, head) = (fleet.status("d")["log_id"].clone(), fleet.status("d")["head"].clone());
    let running = repair(&fleet, "b", &[]);
    assert_eq!(running.status.code(), Some(1), "the datastore runs");
    assert!(String::from_utf8_lossy(&running.stderr).contains("stopped"), "{running:?}");
    a.terminate();
    datastore.terminate();
    let first = segments(&fleet, "d/log").remove(0);
    flip(&first, 5_000);
    refused_to_start(&fleet);
    let rehearsal = repair(&fleet, "b", &["--dry-run"]);
    assert!(rehearsal.status.success(), "{rehearsal:?}");
    assert!(String::from_utf8_lossy(&rehearsal.stdout).contains("lost: nothing"), "{rehearsal:?}");
    refused_to_start(&fleet);
    let report = repaired(&fleet, "b");
    assert_eq!((report["carried"].as_u64(), &report["head"], &report["head_before"]), (Some(2), &head, &head));
    assert_eq!((report["lost"].is_null(), &report["repaired"]), (true, &true.into()));
    assert!(report["damaged"][0]["place"].as_str().unwrap().starts_with("seg-"), "{report}");
    assert_eq!(segments(&fleet, "d/log.damaged-1")[0].file_name(), first.file_name(), "nothing is deleted");
    goes_on(&fleet, &export, &id);
}

#[test]
fn p01_a_truncated_tail_and_a_destroyed_head_file_are_repaired_from_a_member_that_is_caught_up() {
    let fleet = fleet();
    for (number, name) in ["tail", "head", "all"].into_iter().enumerate() {
        let (datastore, a, b) = match number {
            0 => loaded(&fleet, 1_500),
            _ => {
                let running = (fleet.datastore(), fleet.replica("a"), fleet.replica("b"));
                fleet.wait_connected("a");
                fleet.wait_connected("b");
                running
            }
        };
        let export = fleet.converges(&["a", "b"]);
        let (id, head) = (fleet.status("d")["log_id"].clone(), fleet.status("d")["head"].clone());
        a.terminate();
        b.terminate();
        datastore.terminate();
        let open = segments(&fleet, "d/log").pop().unwrap();
        let length = std::fs::metadata(&open).unwrap().len();
        match name {
            "tail" => std::fs::File::options().write(true).open(&open).unwrap().set_len(length / 30).unwrap(),
            "head" => {
                flip(&fleet.dir("d/log/head"), 20);
                flip(&fleet.dir("d/log/head"), 4096 + 20);
            }
            _ => segments(&fleet, "d/log").iter().for_each(|segment| flip(segment, 70)),
        }
        refused_to_start(&fleet);
        let report = repaired(&fleet, "a");
        assert_eq!((&report["head"], &report["base"], report["lost"].is_null()), (&head, &head, true), "{name}");
        let running = (fleet.datastore(), fleet.replica("a"), fleet.replica("b"));
        fleet.wait_connected("a");
        assert_eq!(fleet.converges(&["a", "b"]), export, "{name}");
        assert_eq!(fleet.status("d")["log_id"], id, "{name}");
        fleet.ok("a", &["put", "c", name, "--value", "1"]);
        fleet.converges(&["a", "b"]);
        drop(running);
    }
    let _datastore = fleet.datastore();
    fleet.ok("d", &["verify"]);
}

#[test]
fn p01_a_repair_that_loses_entries_lists_them_and_requires_acceptance() {
    let fleet = fleet();
    let (datastore, a, b) = loaded(&fleet, 3_000);
    b.terminate();
    let head_of_b = fleet.status("d")["head"].as_u64().unwrap();
    fleet.ok("a", &["put", "c", "only-a", "--value", "1"]);
    let export = fleet.converges(&["a"]);
    let head = fleet.status("d")["head"].as_u64().unwrap();
    let log_id = fleet.status("d")["log_id"].clone();
    let applied = || fleet.ok("d", &["members", "--json"]).contains(&format!("\"applied\":{head}"));
    fleet.wait("the datastore knows where a is", applied);
    a.terminate();
    datastore.terminate();
    // The record of the last transaction, and the end of b's data, are lost.
    for segment in segments(&fleet, "d/log") {
        let length = std::fs::metadata(&segment).unwrap().len() as usize;
        let mut bytes = std::fs::read(&segment).unwrap();
        (200..length).step_by(97).for_each(|at| bytes[at] ^= 1);
        std::fs::write(&segment, bytes).unwrap();
    }
    let before: Vec<_> = segments(&fleet, "d/log").iter().map(|path| std::fs::read(path).unwrap()).collect();
    let refused = repair(&fleet, "b", &[]);
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{errors}");
    assert!(errors.contains(&format!("sequences {} to {head}", head_of_b + 1)), "{errors}");
    assert!(errors.contains(&format!("a at {head}")), "the member to ask is named: {errors}");
    let after: Vec<_> = segments(&fleet, "d/log").iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(before == after, "nothing was changed");
    // A member of another fleet is not accepted as a source.
    let other = Fleet::new();
    let others = (other.datastore(), other.member("a"));
    other.ok("a", &["put", "c", "k", "--value", "1"]);
    others.1.terminate();
    let from = other.dir("a");
    let foreign = fleet.run("d", &["repair", "--accept-loss", "--from", from.to_str().unwrap()]);
    assert_eq!(foreign.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&foreign.stderr).contains("belongs to log"), "{foreign:?}");
    // After the loss is accepted, a new generation starts.
    let accepted = repair(&fleet, "b", &["--accept-loss", "--json"]);
    assert!(accepted.status.success(), "{accepted:?}");
    let report: serde_json::Value = serde_json::from_slice(&accepted.stdout).expect("JSON");
    assert_eq!(report["lost"], serde_json::json!([head_of_b + 1, head]));
    let _datastore = fleet.datastore();
    let (_a, _b) = (fleet.replica("a"), fleet.replica("b"));
    fleet.wait_connected("a");
    fleet.wait_connected("b");
    let status = fleet.status("d");
    assert!(status["generation"].as_u64() > Some(1) && status["log_id"] == log_id, "{status}");
    // The additional entries of a were its own, so it pushes them again and follows.
    let again = fleet.converges(&["a", "b"]);
    assert_eq!(again, export);
    fleet.ok("b", &["put", "c", "on", "--value", "1"]);
    fleet.converges(&["a", "b"]);
}
