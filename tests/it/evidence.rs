//! Witnesses of a lost history: the state index, the member registry, members, and a missing directory. Each is kept,
//! named and respected at any position of the log.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::files::{self, copy_dir};
use crate::fleet::Fleet;

fn replace_dir(from: &Path, to: &Path) {
    fs::remove_dir_all(to).expect("removes");
    copy_dir(from, to);
}

fn put(fleet: &Fleet, at: &str, keys: std::ops::Range<u32>) {
    let line = |key| format!("{{\"ops\":[{{\"put\":{{\"collection\":\"c\",\"key\":\"k{key}\",\"value\":{key}}}}}]}}\n");
    let file = fleet.write_file("puts.jsonl", &keys.map(line).collect::<String>());
    fleet.ok(at, &["import", file.to_str().expect("text")]);
}

/// Checks that the datastore does not start, and why.
#[track_caller]
fn does_not_start(fleet: &Fleet, words: &[&str]) {
    let before = fleet.log_of("d").len();
    let mut datastore = fleet.spawn_datastore();
    let ended = std::cell::Cell::new(None);
    let datastore = std::cell::RefCell::new(&mut datastore);
    fleet.wait("the datastore exits", || {
        ended.set(datastore.borrow_mut().ended());
        ended.get().is_some()
    });
    assert!(!ended.get().expect("ended").success());
    let said = fleet.log_of("d").split_off(before);
    words.iter().for_each(|word| assert!(said.contains(word), "{word}: {said}"));
}

/// Checks that the datastore serves reads, rejects writes, and reports the reason to writers, in its status and in
/// its findings.
#[track_caller]
fn waits(fleet: &Fleet, words: &str) {
    fleet.wait("it reports that it waits for recovery", || {
        let status = fleet.status("d");
        let problem = status["problem"].as_str().unwrap_or_default();
        problem.contains("waits for recovery") && problem.contains(words)
    });
    let refused = fleet.run("d", &["put", "c", "direct", "--value", "1"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("waits for recovery") && said.contains(words), "{said}");
    for command in ["status", "verify", "doctor"] {
        let output = fleet.run("d", &[command]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!output.status.success() && said.contains(words), "{command}: {said}");
    }
    assert!(!fleet.run("d", &["compact"]).status.success(), "evidence of missing entries is preserved");
}

/// Returns a stopped fleet whose log continued after it was copied to `old`.
fn rolled(fleet: &Fleet, with_member: bool) -> String {
    let datastore = fleet.datastore();
    let member = with_member.then(|| fleet.member("a"));
    put(fleet, "d", 0..10);
    if member.is_some() {
        fleet.converges(&["a"]);
    }
    datastore.terminate();
    copy_dir(&fleet.dir("d"), &fleet.dir("old"));
    let datastore = fleet.datastore();
    if member.is_some() {
        fleet.wait_connected("a");
    }
    put(fleet, "d", 10..15);
    let export = if member.is_some() { fleet.converges(&["a"]) } else { fleet.export("d") };
    datastore.terminate();
    if let Some(member) = member {
        member.terminate();
    }
    export
}

#[test]
fn p13_an_index_ahead_of_its_log_is_kept_and_restores_the_log() {
    let fleet = Fleet::new();
    let export = rolled(&fleet, false);
    replace_dir(&fleet.dir("old/log"), &fleet.dir("d/log"));
    does_not_start(&fleet, &["the index is at 15", "the log ends at 10", "repair --from"]);
    for command in ["status", "verify", "export"] {
        assert_eq!(fleet.run("d", &[command]).status.code(), Some(3), "{command}");
    }
    let state = fleet.dir("d/state");
    let report = fleet.ok("d", &["repair", "--from", state.to_str().expect("text"), "--json"]);
    assert!(report.contains("\"head\":15"), "{report}");
    let _datastore = fleet.datastore();
    assert_eq!(fleet.export("d"), export);
    put(&fleet, "d", 15..16);
}

#[test]
fn p13_an_open_segment_that_lost_its_tail_is_noticed_wherever_it_is_cut() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    put(&fleet, "d", 0..40);
    datastore.kill();
    let segment = fs::read_dir(fleet.dir("d/log")).expect("lists").map(|entry| entry.expect("entry").path());
    let segment = segment.into_iter().find(|path| path.to_string_lossy().ends_with("-open.log")).expect("is open");
    let bytes = fs::read(&segment).expect("reads");
    let end = bytes.iter().rposition(|byte| *byte != 0).expect("has records");
    for cut in [end, end - 200, end / 2, end / 4, 300, 64, 0] {
        fs::write(&segment, &bytes[..cut]).expect("cuts");
        does_not_start(&fleet, &[]);
        assert_eq!(fleet.run("d", &["verify"]).status.code(), Some(3), "cut at {cut} of {end}");
    }
    fs::write(&segment, &bytes).expect("writes");
    let _datastore = fleet.datastore();
    assert_eq!(fleet.status("d")["head"], 40);
}

#[test]
fn p13_an_index_of_another_log_is_not_replaced() {
    let (fleet, other) = (Fleet::new(), Fleet::new());
    for fleet in [&fleet, &other] {
        let datastore = fleet.datastore();
        put(fleet, "d", 0..5);
        datastore.terminate();
    }
    replace_dir(&other.dir("d/state"), &fleet.dir("d/state"));
    does_not_start(&fleet, &["the state belongs to another log"]);
    replace_dir(&other.dir("d/log"), &fleet.dir("d/log"));
    let said = "its register belongs to log";
    let datastore = fleet.datastore();
    waits(&fleet, said);
    datastore.terminate();
}

#[test]
fn p13_no_new_log_is_started_next_to_an_index() {
    let mut fleet = Fleet::new();
    let datastore = fleet.datastore();
    put(&fleet, "d", 0..5);
    let export = fleet.export("d");
    datastore.terminate();
    copy_dir(&fleet.dir("d"), &fleet.dir("whole"));
    for is_empty in [false, true] {
        if is_empty {
            fs::create_dir(fleet.dir("d/log")).expect("creates");
        } else {
            fs::remove_dir_all(fleet.dir("d/log")).expect("removes");
        }
        does_not_start(&fleet, &["holds no log", "the index is at 5"]);
        for command in ["status", "verify", "export", "compact", "put"] {
            let rest: &[&str] = if command == "put" { &["c", "k", "--value", "1"] } else { &[] };
            assert_eq!(fleet.run("d", &[&[command], rest].concat()).status.code(), Some(3), "{command}");
        }
        assert_eq!(fleet.dir("d/log").exists(), is_empty);
    }
    let state = fleet.dir("d/state");
    let refused = fleet.run("d", &["repair", "--from", state.to_str().expect("text")]);
    assert!(!refused.status.success(), "whether the log had more is unknown");
    fleet.ok("d", &["repair", "--from", state.to_str().expect("text"), "--accept-loss"]);
    let datastore = fleet.datastore();
    assert_eq!(fleet.export("d"), export);
    datastore.terminate();
    // The operator can give the log up; the index is kept.
    replace_dir(&fleet.dir("whole"), &fleet.dir("d"));
    fs::remove_dir_all(fleet.dir("d/log")).expect("removes");
    fleet.datastore_flags = vec!["--recovery".into(), "off".into()];
    let _datastore = fleet.datastore();
    assert_eq!(fleet.status("d")["head"], 0);
    assert!(fleet.dir("d/state.damaged-1").is_dir());
    put(&fleet, "d", 0..1);
}

#[test]
fn p13_a_registry_ahead_of_the_log_stops_writes_until_a_member_restores_the_entries() {
    let mut fleet = Fleet::new();
    let export = rolled(&fleet, true);
    for part in ["log", "state"] {
        replace_dir(&fleet.dir("old").join(part), &fleet.dir("d").join(part));
    }
    for _ in 0..2 {
        let datastore = fleet.datastore();
        waits(&fleet, "this log ends at 10");
        datastore.terminate();
    }
    fleet.datastore_flags = vec!["--recovery".into(), "off".into()];
    copy_dir(&fleet.dir("d"), &fleet.dir("fenced"));
    let datastore = fleet.datastore();
    put(&fleet, "d", 20..21);
    assert!(fleet.log_of("d").contains("Datastore-Recovery is off"), "{}", fleet.log_of("d"));
    datastore.terminate();
    replace_dir(&fleet.dir("fenced"), &fleet.dir("d"));
    fleet.datastore_flags.clear();
    fleet.ok("d", &["repair", "--from", fleet.dir("a").to_str().expect("text")]);
    let _running = (fleet.datastore(), fleet.replica("a"));
    fleet.wait_connected("a");
    assert_eq!(fleet.converges(&["a"]), export);
    put(&fleet, "a", 15..16);
}

#[test]
fn p13_an_audit_ahead_of_the_log_stops_writes_when_it_is_the_last_witness() {
    let mut fleet = Fleet::new();
    let export = rolled(&fleet, false);
    copy_dir(&fleet.dir("d"), &fleet.dir("newest"));
    for part in ["log", "state", "trust"] {
        replace_dir(&fleet.dir("old").join(part), &fleet.dir("d").join(part));
    }
    for _ in 0..2 {
        let datastore = fleet.datastore();
        waits(&fleet, "its audit knows sequence 15, but this log ends at 10");
        datastore.kill();
    }
    // Either the log is restored, or its missing part is given up.
    copy_dir(&fleet.dir("d"), &fleet.dir("fenced"));
    for part in ["log", "state", "trust"] {
        replace_dir(&fleet.dir("newest").join(part), &fleet.dir("d").join(part));
    }
    let datastore = fleet.datastore();
    assert_eq!(fleet.export("d"), export);
    put(&fleet, "d", 20..21);
    datastore.terminate();
    replace_dir(&fleet.dir("fenced"), &fleet.dir("d"));
    fleet.datastore_flags = vec!["--recovery".into(), "off".into()];
    let datastore = fleet.datastore();
    put(&fleet, "d", 20..21);
    fleet.wait("the audit says so", || fleet.ok("d", &["audit", "ls", "--json"]).contains("were abandoned"));
    datastore.terminate();
    fleet.datastore_flags.clear();
    let _datastore = fleet.datastore();
    put(&fleet, "d", 21..22);
}

#[test]
fn p13_a_member_ahead_of_the_log_stops_writes_even_after_a_restart() {
    let fleet = Fleet::new();
    rolled(&fleet, true);
    replace_dir(&fleet.dir("old"), &fleet.dir("d"));
    let datastore = fleet.datastore();
    let a = fleet.replica("a");
    waits(&fleet, "member a is at 15, but this log ends at 10");
    // Next, the member presents the datastore's own signature.
    fleet.wait("a signature proves it", || {
        let status = fleet.status("d");
        status["problem"].as_str().is_some_and(|problem| problem.ends_with("this log ends at 10"))
    });
    a.terminate();
    datastore.kill();
    let datastore = fleet.datastore();
    waits(&fleet, "member a is at 15, but this log ends at 10");
    // Revoking the member discards its evidence.
    fleet.ok("d", &["revoke", "a"]);
    put(&fleet, "d", 10..11);
    datastore.terminate();
    let _datastore = fleet.datastore();
    put(&fleet, "d", 11..12);
}

#[test]
fn p13_a_member_whose_history_forked_stops_writes() {
    let fleet = Fleet::new();
    rolled(&fleet, true);
    replace_dir(&fleet.dir("old"), &fleet.dir("d"));
    let _datastore = fleet.datastore();
    put(&fleet, "d", 100..120);
    let _a = fleet.replica("a");
    waits(&fleet, "the history of member a, which is at 15, differs from this log's");
}

#[test]
fn p13_a_restore_to_an_earlier_position_is_no_evidence_of_a_loss() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let _a = fleet.member("a");
    put(&fleet, "d", 0..10);
    fleet.converges(&["a"]);
    let place = fleet.dir("backup").display().to_string();
    fleet.ok("d", &["backup", "create", &place]);
    put(&fleet, "d", 10..15);
    fleet.converges(&["a"]);
    datastore.terminate();
    fleet.ok("d", &["restore", &place, "--replace", "--at", "6"]);
    let datastore = fleet.datastore();
    fleet.wait_connected("a");
    fleet.converges(&["a"]);
    put(&fleet, "d", 20..21);
    datastore.terminate();
    let _datastore = fleet.datastore();
    put(&fleet, "d", 21..22);
    fleet.wait_connected("a");
    fleet.converges(&["a"]);
    assert_eq!(fleet.status("d")["healthy"], true);
}

#[test]
fn p10_a_missing_registry_is_reported_as_corruption() {
    let mut fleet = Fleet::new();
    let datastore = fleet.datastore();
    put(&fleet, "d", 0..1);
    datastore.terminate();
    copy_dir(&fleet.dir("d"), &fleet.dir("whole"));
    let missing: [(&[&str], &str); 5] = [
        (&["members.json"], "members.copy"),
        (&["members.json", "members.copy"], "revocations are unknown"),
        (&["members.json", "ca.pem"], "missing"),
        (&["ca.key"], "missing"),
        (&["members.json", "members.copy", "ca.key", "ca.pem"], "is missing although there is a log"),
    ];
    for (names, words) in missing {
        replace_dir(&fleet.dir("whole"), &fleet.dir("d"));
        names.iter().for_each(|name| fs::remove_file(fleet.dir("d/trust").join(name)).expect("removes"));
        does_not_start(&fleet, &[words]);
        assert_eq!(fleet.run("d", &["verify"]).status.code(), Some(3), "{names:?}");
        names.iter().for_each(|name| assert!(!fleet.dir("d/trust").join(name).exists(), "{name}"));
    }
    fleet.datastore_flags = vec!["--recovery".into(), "off".into()];
    let mut datastore = fleet.datastore();
    put(&fleet, "d", 1..2);
    // When these files are missing, the members are given up; the remaining files are kept.
    for names in [&["members.json", "members.copy"][..], &["ca.key"]] {
        let member = format!("m{}", names.len());
        fleet.enroll(&member, "webserver");
        datastore.terminate();
        names.iter().for_each(|name| fs::remove_file(fleet.dir("d/trust").join(name)).expect("removes"));
        datastore = fleet.datastore();
        assert!(!fleet.ok("d", &["members"]).contains(&member), "{names:?}");
    }
    assert!(fleet.dir("d/trust.aside-1/members.json").exists());
    drop(datastore);
}

/// Returns every file below a directory with its content.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for path in fs::read_dir(dir).into_iter().flatten().map(|entry| entry.expect("entry").path()) {
        if path.is_dir() {
            found.insert(path.clone(), Vec::new());
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap_or_default());
        }
    }
    found
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("reads");
    change(&mut bytes);
    files::write(path, &bytes);
}

/// Returns the only file of a directory whose name ends with `end`.
fn file_in(dir: &Path, end: &str) -> PathBuf {
    let files = fs::read_dir(dir).expect("lists").map(|entry| entry.expect("entry").path());
    files.into_iter().find(|path| path.to_string_lossy().ends_with(end)).expect("is there")
}

#[test]
fn p13_reading_commands_leave_every_directory_unchanged() {
    type Damage = (&'static str, fn(&Path));
    let damages: [Damage; 14] = [
        ("none", |_| {}),
        ("leftovers", |d| {
            fs::write(d.join("log/seg.tmp"), b"x").expect("writes");
            fs::create_dir(d.join("state.rebuild")).expect("creates");
        }),
        ("a torn write", |d| change(&file_in(&d.join("log"), "-open.log"), |bytes| bytes.extend([7; 300]))),
        ("a lost tail", |d| change(&file_in(&d.join("log"), "-open.log"), |bytes| bytes.truncate(400))),
        ("a flipped bit of the log", |d| change(&file_in(&d.join("log"), "-open.log"), |bytes| bytes[200] ^= 1)),
        ("no head file", |d| fs::remove_file(d.join("log/head")).expect("removes")),
        ("no log", |d| fs::remove_dir_all(d.join("log")).expect("removes")),
        ("a flipped bit of the index", |d| change(&d.join("state/0.jnl"), |bytes| bytes[100] ^= 1)),
        ("a cut index", |d| change(&d.join("state/0.jnl"), |bytes| bytes.truncate(bytes.len() / 2))),
        ("no index", |d| fs::remove_dir_all(d.join("state")).expect("removes")),
        ("no register", |d| fs::remove_file(d.join("trust/members.json")).expect("removes")),
        ("a flipped bit of the register", |d| change(&d.join("trust/members.json"), |bytes| bytes[20] ^= 1)),
        ("no authority", |d| fs::remove_file(d.join("trust/ca.key")).expect("removes")),
        ("no lock file", |d| fs::remove_file(d.join("lock")).expect("removes")),
    ];
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let member = fleet.member("a");
    put(&fleet, "d", 0..30);
    fleet.converges(&["a"]);
    member.terminate();
    datastore.kill();
    let _ = fs::remove_file(fleet.dir("d/ctl.sock"));
    copy_dir(&fleet.dir("d"), &fleet.dir("whole"));
    let member = fleet.dir("a");
    let commands: [&[&str]; 12] = [
        &["status"],
        &["verify"],
        &["export"],
        &["ls", "c"],
        &["get", "c", "k1"],
        &["tail"],
        &["members"],
        &["segments"],
        &["history", "c", "k1"],
        &["export", "--at", "10"],
        &["doctor"],
        &["repair", "--dry-run", "--from", member.to_str().expect("UTF-8")],
    ];
    for (what, damage) in damages {
        replace_dir(&fleet.dir("whole"), &fleet.dir("d"));
        damage(&fleet.dir("d"));
        let before = contents(&fleet.dir("d"));
        for command in commands {
            let output = fleet.run("d", command);
            let after = contents(&fleet.dir("d"));
            let differ = |path: &&PathBuf| before.get(*path) != after.get(*path);
            let changed: Vec<_> = before.keys().chain(after.keys()).filter(differ).collect();
            assert!(changed.is_empty(), "{command:?} with {what} changed {changed:?}");
            let must_work = matches!(what, "none" | "leftovers" | "a torn write" | "no index" | "no lock file");
            let code = output.status.code();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let is_alone = matches!(command[0], "doctor" | "status" | "repair");
            assert!(!must_work || is_alone || code == Some(0), "{command:?} with {what}: {code:?} {said}");
        }
    }
}

#[test]
fn p13_a_restore_to_a_time_outside_the_log_is_refused() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    put(&fleet, "d", 0..6);
    let place = fleet.dir("backup").display().to_string();
    fleet.ok("d", &["backup", "create", &place]);
    datastore.terminate();
    let before = fleet.export("d");
    let cases = [
        ("2001-01-01T00:00:00Z", "precedes the first record"),
        ("0", "precedes the first record"),
        ("7", "no backup covers it"),
        ("2999-01-01T00:00:00Z", "is in the future"),
    ];
    for (at, words) in cases {
        let refused = fleet.run("d", &["restore", &place, "--replace", "--at", at]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(words), "{at}: {said}");
        assert_eq!(fleet.export("d"), before, "{at}");
    }
    fleet.ok("d", &["restore", &place, "--replace", "--at", "0", "--at-empty"]);
    let _datastore = fleet.datastore();
    assert_eq!(fleet.status("d")["head"], 0);
    put(&fleet, "d", 0..1);
}

#[test]
fn p14_a_member_that_runs_twice_is_reported() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let a = fleet.member("a");
    put(&fleet, "d", 0..3);
    fleet.converges(&["a"]);
    a.terminate();
    copy_dir(&fleet.dir("a"), &fleet.dir("twin"));
    let _both = (fleet.replica("a"), fleet.replica("twin"));
    fleet.wait_connected("a");
    fleet.wait_connected("twin");
    fleet.wait("it is reported", || fleet.status("d")["health"]["reasons"][0]["code"] == "connected_twice");
}

#[test]
fn p13_an_index_is_viewed_in_the_data_directory_when_there_is_no_other_place() {
    let mut fleet = Fleet::new();
    let datastore = fleet.datastore();
    put(&fleet, "d", 0..3);
    datastore.terminate();
    fleet.wrapper = vec!["env", "TMPDIR=/nowhere"];
    let _datastore = fleet.datastore();
    fleet.ok("d", &["get", "c", "k1"]);
    assert!(!fleet.dir("d/state.view").exists());
}
