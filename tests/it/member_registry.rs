//! The member registry: state in force and durable state.

use std::fs;

use serde_json::Value;

use crate::files::copy_dir;
use crate::fleet::{Fleet, Process};
use crate::full_disk::Small;
use crate::recover::key_of;
use crate::web::Web;

fn reasons(fleet: &Fleet) -> Vec<String> {
    let status = fleet.status("d");
    let reasons = status["health"]["reasons"].as_array().cloned().unwrap_or_default();
    reasons.iter().map(|reason| reason["code"].as_str().expect("a code").to_owned()).collect()
}

fn state(fleet: &Fleet, member: &str) -> Value {
    let rows = fleet.ok("d", &["members", "--json"]);
    let mut rows = rows.lines().map(|row| serde_json::from_str::<Value>(row).expect("JSON"));
    rows.find(|row| row["name"] == member).map_or(Value::Null, |row| row["state"].clone())
}

/// Starts the datastore once with `--recovery off`, revokes `b` again, and returns the datastore as it runs after that.
fn accepts(fleet: &mut Fleet) -> Process {
    fleet.datastore_flags = vec!["--recovery".into(), "off".into()];
    let datastore = fleet.datastore();
    fleet.ok("d", &["revoke", "b"]);
    datastore.terminate();
    fleet.datastore_flags.clear();
    fleet.datastore()
}

#[test]
fn p11_a_revocation_that_cannot_be_written_cuts_off_at_once_and_is_durable_as_soon_as_it_can_be() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (_a, _b) = (fleet.member("a"), fleet.member("b"));
    fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    fleet.converges(&["a", "b"]);
    // A directory blocks the temporary file of the registry.
    let in_the_way = fleet.dir("d/trust/members.json.next");
    fs::create_dir(&in_the_way).expect("creates");
    let said = fleet.refused("d", &["revoke", "a"]);
    assert!(said.contains("in force") && said.contains("not durable") && said.contains("members.json.next"), "{said}");
    fleet.wait("a is disconnected", || fleet.status("a")["is_refused"] == true);
    fleet.ok("d", &["put", "c", "later", "--value", "2"]);
    fleet.wait("b has it", || fleet.run("b", &["get", "c", "later"]).status.success());
    assert!(!fleet.run("a", &["get", "c", "later"]).status.success(), "a receives nothing");
    assert!(!fleet.run("a", &["put", "c", "late", "--value", "3"]).status.success(), "a commits nothing");
    assert_eq!(reasons(&fleet), ["revocation_not_durable"]);
    assert_eq!(fleet.run("d", &["status"]).status.code(), Some(1));
    // Nothing else is half done: the name is not taken, and the token that could not be stored is invalid.
    assert!(fleet.refused("d", &["enroll", "x"]).contains("members.json.next"));
    assert_eq!(state(&fleet, "x"), Value::Null);
    fs::remove_dir(&in_the_way).expect("removes");
    fleet.wait("it is durable", || reasons(&fleet).is_empty());
    datastore.kill();
    let _datastore = fleet.datastore();
    assert_eq!((state(&fleet, "a"), state(&fleet, "b")), ("revoked".into(), "enrolled".into()));
}

#[test]
fn p11_a_member_is_revoked_on_a_full_disk() {
    let mut fleet = Fleet::new();
    let Some(disk) = Small::mount(&fleet.dir("d"), 192) else { return };
    fleet.datastore_flags = ["--min-free-mb", "16"].map(str::to_owned).to_vec();
    let datastore = fleet.datastore();
    let _a = fleet.member("a");
    let reserve = fleet.dir("d/trust/members.reserve");
    fleet.wait("the reserve exists", || reserve.exists());
    disk.fill();
    // The audit trail may free space first.
    fleet.ok("d", &["revoke", "a"]);
    fleet.wait("a is disconnected", || fleet.status("a")["is_refused"] == true);
    datastore.kill();
    disk.empty();
    let _datastore = fleet.datastore();
    assert_eq!(state(&fleet, "a"), "revoked");
    fleet.wait("the reserve is restored", || reserve.exists());
}

/// Revokes `b` and waits until `a` has the encrypted CA backup with that revocation in `escrow`.
fn revoke_b(fleet: &Fleet, escrow: &std::path::Path) {
    let before = fs::read(escrow).expect("reads");
    fleet.ok("d", &["revoke", "b"]);
    fleet.wait("a has a later copy", || fs::read(escrow).is_ok_and(|now| now != before));
}

/// Two members, one of which is revoked after `copied` was copied; the other one has an encrypted CA backup of a
/// later state.
fn went_back(fleet: &Fleet, copied: &str) -> (String, Vec<Process>) {
    let datastore = fleet.datastore();
    let members = vec![fleet.member("a"), fleet.member("b")];
    let key = key_of(fleet);
    fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    fleet.converges(&["a", "b"]);
    let escrow = fleet.dir("a/identity/escrow");
    fleet.wait("a has a sealed copy", || escrow.exists());
    datastore.terminate();
    copy_dir(&fleet.dir(copied), &fleet.dir("older"));
    let datastore = fleet.datastore();
    fleet.wait_connected("a");
    revoke_b(fleet, &escrow);
    datastore.kill();
    fs::remove_dir_all(fleet.dir(copied)).expect("removes");
    fs::rename(fleet.dir("older"), fleet.dir(copied)).expect("renames");
    (key, members)
}

/// Checks that it is reported, no writes and enrollments are accepted, and the later copy is kept.
fn is_noticed(fleet: &Fleet, later: &[u8]) {
    fleet.wait("it is noticed", || reasons(fleet).contains(&"register_went_back".to_owned()));
    let status = String::from_utf8_lossy(&fleet.run("d", &["status"]).stdout).into_owned();
    assert!(status.contains("member registry went back") && status.contains("authority restore"), "{status}");
    assert!(!fleet.run("d", &["put", "c", "x", "--value", "1"]).status.success());
    assert!(fleet.refused("d", &["enroll", "x"]).contains("went back"));
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(fs::read(fleet.dir("a/identity/escrow")).expect("reads"), later, "the later copy stays");
}

#[test]
fn p13_an_older_registry_is_detected_at_the_start_and_the_later_one_is_restored() {
    let fleet = Fleet::new();
    let (key, _members) = went_back(&fleet, "d/trust");
    let escrow = fleet.dir("a/identity/escrow");
    let later = fs::read(&escrow).expect("reads");
    let datastore = fleet.datastore();
    assert!(reasons(&fleet).contains(&"register_went_back".to_owned()), "before any member connects");
    fleet.wait_connected("a");
    is_noticed(&fleet, &later);
    datastore.kill();
    let datastore = fleet.datastore();
    is_noticed(&fleet, &later);
    datastore.terminate();
    fleet.ok(
        "d",
        &["authority", "restore", escrow.to_str().expect("text"), "--recovery-key", &key, "--register", "copy"],
    );
    let _datastore = fleet.datastore();
    fleet.wait_connected("a");
    assert_eq!((state(&fleet, "a"), state(&fleet, "b")), ("enrolled".into(), "revoked".into()));
    fleet.ok("d", &["put", "c", "x", "--value", "1"]);
    fleet.wait("a has the current copy", || fs::read(&escrow).is_ok_and(|now| now != later));
    assert!(reasons(&fleet).is_empty(), "{:?}", reasons(&fleet));
    assert!(!fleet.dir("a/identity/escrow.earlier").exists());
}

#[test]
fn p13_an_older_copy_of_the_whole_directory_is_detected_when_a_member_connects_and_can_be_accepted() {
    let mut fleet = Fleet::new();
    let (_key, _members) = went_back(&fleet, "d");
    let escrow = fleet.dir("a/identity/escrow");
    let later = fs::read(&escrow).expect("reads");
    let datastore = fleet.datastore();
    fleet.wait_connected("a");
    is_noticed(&fleet, &later);
    // It persists over a restart, even without members.
    datastore.kill();
    let datastore = fleet.datastore();
    assert!(reasons(&fleet).contains(&"register_went_back".to_owned()));
    datastore.terminate();
    let _datastore = accepts(&mut fleet);
    fleet.wait_connected("a");
    fleet.wait("a has the current copy", || fs::read(&escrow).is_ok_and(|now| now != later));
    assert!(reasons(&fleet).is_empty(), "{:?}", reasons(&fleet));
    assert_eq!(state(&fleet, "b"), "revoked");
    fleet.ok("d", &["put", "c", "x", "--value", "1"]);
}

#[test]
fn p11_a_corrupt_record_of_the_progress_of_the_registry_is_kept_and_reported() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let _a = fleet.member("a");
    datastore.kill();
    let mark = fleet.dir("d/register.mark");
    let aside = fleet.dir("d/register.mark.damaged-1");
    let mut bad = fs::read(&mark).expect("it was recorded");
    bad[10] ^= 1;
    fs::write(&mark, &bad).expect("writes");
    let datastore = fleet.datastore();
    assert_eq!(reasons(&fleet), ["register_mark_damaged"]);
    fleet.ok("d", &["revoke", "a"]);
    assert_eq!(fs::read(&aside).expect("it is kept"), bad);
    assert_ne!(fs::read(&mark).expect("it is recorded again"), bad);
    assert_eq!(reasons(&fleet), ["register_mark_damaged"], "until an operator checks it");
    datastore.kill();
    let _datastore = fleet.datastore();
    assert_eq!(reasons(&fleet), ["register_mark_damaged"]);
    let found = fleet.run("d", &["doctor"]);
    assert!(String::from_utf8_lossy(&found.stdout).contains("register.mark.damaged-1"), "{found:?}");
    fs::remove_file(&aside).expect("removes");
    assert_eq!(reasons(&fleet), [""; 0]);
}

/// Three members with sealed copies, of which `b` is revoked while `c` is away; an object is written after that. Returns
/// with everything stopped, and with `d/trust` as it was before.
fn forgotten(fleet: &Fleet) -> String {
    let datastore = fleet.datastore();
    let members: Vec<Process> = ["a", "b", "c"].map(|name| fleet.member(name)).into_iter().collect();
    let key = key_of(fleet);
    fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    fleet.converges(&["a", "b", "c"]);
    for name in ["a", "b", "c"] {
        fleet.wait("it has a sealed copy", || fleet.dir(name).join("identity/escrow").exists());
    }
    for member in members {
        member.terminate();
    }
    datastore.terminate();
    copy_dir(&fleet.dir("d/trust"), &fleet.dir("older"));
    let (datastore, a) = (fleet.datastore(), fleet.replica("a"));
    fleet.wait_connected("a");
    let escrow = fleet.dir("a/identity/escrow");
    let before = fs::read(&escrow).expect("reads");
    fleet.ok("d", &["revoke", "b"]);
    fleet.ok("d", &["put", "c", "later", "--value", "2"]);
    fleet.wait("a has a later copy", || fs::read(&escrow).is_ok_and(|now| now != before));
    fleet.converges(&["a"]);
    a.terminate();
    datastore.terminate();
    fs::remove_dir_all(fleet.dir("d/trust")).expect("removes");
    fs::rename(fleet.dir("older"), fleet.dir("d/trust")).expect("renames");
    key
}

fn has(fleet: &Fleet, name: &str, object: &str) -> bool {
    fleet.run(name, &["get", "c", object]).status.success()
}

#[test]
fn p11_a_register_that_went_back_serves_only_members_that_show_the_later_one() {
    let fleet = Fleet::new();
    let key = forgotten(&fleet);
    let datastore = fleet.datastore();
    assert!(reasons(&fleet).contains(&"register_went_back".to_owned()), "before any member connects");
    let (_b, _c) = (fleet.replica("b"), fleet.replica("c"));
    for name in ["b", "c"] {
        fleet.wait("it is notified", || fleet.log_of(name).contains("register_went_back"));
        assert_eq!(fleet.status(name)["connected"], false, "{name}");
        assert!(has(&fleet, name, "k"), "{name} continues with its state");
    }
    // A member that has the later register is let in, by its mark alone.
    let a = fleet.replica("a");
    fleet.wait_connected("a");
    assert_eq!(state(&fleet, "b"), "enrolled", "the register has lost it");
    std::thread::sleep(std::time::Duration::from_secs(6));
    for name in ["b", "c"] {
        assert!(!has(&fleet, name, "later"), "{name} received nothing");
        assert_eq!(fleet.status(name)["connected"], false, "{name}");
    }
    assert_eq!(fleet.status("a")["connected"], true);
    a.terminate();
    datastore.terminate();
    let escrow = fleet.dir("a/identity/escrow");
    fleet.ok("d", &["authority", "restore", escrow.to_str().expect("text"), "--recovery-key", &key]);
    let _datastore = fleet.datastore();
    fleet.wait_connected("c");
    fleet.wait("c has it", || has(&fleet, "c", "later"));
    assert_eq!(state(&fleet, "b"), "revoked");
    assert!(!has(&fleet, "b", "later"));
    assert!(reasons(&fleet).is_empty(), "{:?}", reasons(&fleet));
}

#[test]
fn p13_the_audit_shows_that_the_registry_was_reverted_together_with_its_progress_record() {
    let fleet = Fleet::new();
    let _key = forgotten(&fleet);
    let (mark, trust) = (fleet.dir("d/register.mark"), fleet.dir("d/trust"));
    fs::remove_file(&mark).expect("removes");
    let found = fleet.run("d", &["verify"]);
    let said = String::from_utf8_lossy(&[&found.stdout[..], &found.stderr[..]].concat()).into_owned();
    assert!(!found.status.success() && said.contains("went back") && said.contains("register.mark"), "{said}");
    assert!(!mark.exists(), "reading changes nothing");
    copy_dir(&trust, &fleet.dir("older"));
    for turn in 0..2 {
        let datastore = fleet.datastore();
        let reasons = reasons(&fleet);
        for code in ["register_went_back", "register_mark_damaged"] {
            assert!(reasons.contains(&code.to_owned()), "turn {turn}: {reasons:?}");
        }
        assert!(!fleet.run("d", &["put", "c", "x", "--value", "1"]).status.success());
        // It persists.
        if turn == 0 {
            datastore.kill();
        } else {
            datastore.terminate();
        }
    }
    // An older register of which nothing was noted in the register itself is known, too.
    fs::remove_dir_all(&trust).expect("removes");
    fs::rename(fleet.dir("older"), &trust).expect("renames");
    let mut fleet = fleet;
    let _datastore = accepts(&mut fleet);
    assert_eq!(reasons(&fleet), ["register_mark_damaged"], "until an operator checks it");
    fleet.ok("d", &["put", "c", "x", "--value", "1"]);
    fs::remove_file(fleet.dir("d/register.mark.damaged-1")).expect("it was moved aside");
    assert_eq!(reasons(&fleet), [""; 0]);
}

#[test]
fn p13_an_older_register_of_a_replaced_authority_is_noticed_and_the_later_one_comes_back() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (a, b) = (fleet.member("a"), fleet.member("b"));
    let key = key_of(&fleet);
    fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    fleet.converges(&["a", "b"]);
    b.terminate();
    datastore.terminate();
    copy_dir(&fleet.dir("d/trust"), &fleet.dir("older"));
    let datastore = fleet.datastore();
    fleet.wait_connected("a");
    fleet.ok("d", &["revoke", "b"]);
    fleet.ok("d", &["authority", "rotate", "begin"]);
    fleet.wait("the rotation ends", || fleet.run("d", &["authority", "rotate", "finish"]).status.success());
    let current = fleet.json("d", &["authority", "rotate", "status"])["current"].as_str().expect("a name").to_owned();
    let moment = std::time::SystemTime::now();
    // A change after the end of the rotation, so that the copy of `a` is of the new CA.
    fleet.enroll("x", "admin");
    let escrow = crate::recover::escrow_since(&fleet, "a", moment);
    fleet.ok("d", &["put", "c", "later", "--value", "2"]);
    fleet.converges(&["a"]);
    datastore.terminate();
    fs::remove_dir_all(fleet.dir("d/trust")).expect("removes");
    fs::rename(fleet.dir("older"), fleet.dir("d/trust")).expect("renames");

    for witness in ["register.mark", "audit"] {
        let datastore = fleet.datastore();
        assert!(reasons(&fleet).contains(&"register_went_back".to_owned()), "{witness}: {:?}", reasons(&fleet));
        let status = String::from_utf8_lossy(&fleet.run("d", &["status"]).stdout).into_owned();
        assert!(status.contains(&format!("of the certificate authority {current}, which is unknown here")), "{status}");
        assert!(!fleet.run("d", &["put", "c", "y", "--value", "1"]).status.success());
        let b = fleet.replica("b");
        fleet.wait("b is notified", || fleet.log_of("b").contains("register_went_back"));
        std::thread::sleep(std::time::Duration::from_secs(2));
        assert!(!has(&fleet, "b", "later"), "{witness}: b was revoked");
        b.terminate();
        datastore.terminate();
        // Then the audit alone shows it.
        let _ = fs::remove_file(fleet.dir("d/register.mark"));
    }
    fleet.ok("d", &["authority", "restore", &escrow, "--recovery-key", &key, "--register", "copy"]);
    let _datastore = fleet.datastore();
    fleet.wait_connected("a");
    assert_eq!((state(&fleet, "a"), state(&fleet, "b")), ("enrolled".into(), "revoked".into()));
    fleet.ok("a", &["put", "c", "z", "--value", "3"]);
    fleet.converges(&["a"]);
    assert!(!reasons(&fleet).contains(&"register_went_back".to_owned()), "{:?}", reasons(&fleet));
    drop(a);
}

#[test]
fn p13_a_member_keeps_a_ca_backup_that_it_cannot_read_and_says_so() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let a = fleet.member("a");
    let _b = fleet.member("b");
    let key = key_of(&fleet);
    fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    fleet.converges(&["a", "b"]);
    let escrow = fleet.dir("a/identity/escrow");
    fleet.wait("a has a sealed copy", || escrow.exists());
    datastore.terminate();
    copy_dir(&fleet.dir("d"), &fleet.dir("older"));
    let datastore = fleet.datastore();
    fleet.wait_connected("a");
    revoke_b(&fleet, &escrow);
    datastore.kill();
    a.kill();
    let mut bad = fs::read(&escrow).expect("reads");
    let at = bad.len() - 2;
    bad[at] ^= 1;
    fs::write(&escrow, &bad).expect("writes");
    fs::remove_dir_all(fleet.dir("d")).expect("removes");
    fs::rename(fleet.dir("older"), fleet.dir("d")).expect("renames");

    let datastore = fleet.datastore();
    let a = fleet.replica("a");
    fleet.wait_connected("a");
    fleet.wait("a has another copy", || escrow.exists() && fs::read(&escrow).is_ok_and(|now| now != bad));
    let aside = fleet.dir("a/identity/escrow.damaged-1");
    assert_eq!(fs::read(&aside).expect("it is kept"), bad);
    let damaged = || fleet.status("a")["health"].to_string().contains("ca_backup_damaged");
    assert!(damaged(), "{}", fleet.status("a"));
    let found = fleet.run("a", &["doctor"]);
    assert!(String::from_utf8_lossy(&found.stdout).contains("escrow.damaged-1"), "{found:?}");
    a.terminate();
    datastore.terminate();
    // A recovery does not pass over it.
    fs::remove_dir_all(fleet.dir("d")).expect("removes");
    let member = fleet.dir("a").display().to_string();
    let recover = ["recover", "--dry-run", "--recovery-key", &key, "--from", &member];
    let said = fleet.refused("d", &recover);
    assert!(said.contains("escrow.damaged-1") && said.contains("may be the latest"), "{said}");
    let passed_over = fleet.run("d", &[&recover[..], &["--earlier-copy"]].concat());
    let said = String::from_utf8_lossy(&passed_over.stderr).into_owned();
    assert!(
        passed_over.status.success() && said.contains("escrow.damaged-1") && said.contains("continuing without it"),
        "{said}"
    );
    fs::remove_file(&aside).expect("removes");
    fleet.ok("d", &recover);
}

/// The first webserver that connects to an older copy of the datastore gets no list of members from it before it has
/// shown the later registry.
#[test]
fn p11_a_webserver_that_knows_of_a_revocation_does_not_trust_the_revoked_one_again() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let a = enrolled(&fleet, "a");
    let b = enrolled(&fleet, "b");
    let (escrow, roster) = (fleet.dir("a/identity/escrow"), fleet.dir("a/identity/roster.json"));
    let trusts_b = || fs::read_to_string(&roster).is_ok_and(|text| text.contains("\"name\":\"b\""));
    fleet.wait("a has a copy, and trusts b", || escrow.exists() && trusts_b());
    datastore.terminate();
    copy_dir(&fleet.dir("d"), &fleet.dir("older"));
    let datastore = fleet.datastore();
    fleet.wait_connected("a");
    revoke_b(&fleet, &escrow);
    fleet.wait("a trusts b no longer", || !trusts_b());
    drop(b);
    datastore.kill();
    fs::remove_dir_all(fleet.dir("d")).expect("removes");
    fs::rename(fleet.dir("older"), fleet.dir("d")).expect("renames");
    let _datastore = fleet.datastore();
    fleet.wait("it is noticed", || reasons(&fleet).contains(&"register_went_back".to_owned()));
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(!trusts_b(), "{}", fs::read_to_string(&roster).expect("reads"));
    drop(a);
}

fn enrolled(fleet: &Fleet, name: &'static str) -> Web {
    fleet.enroll(name, "webserver");
    Web::start(fleet, name, &[])
}

#[test]
fn p13_a_register_that_lacks_a_recorded_change_is_put_back_into_no_place_unasked() {
    let fleet = Fleet::new();
    let key = forgotten(&fleet);
    let sealed = ["a", "c"].map(|name| fleet.dir(name).join("identity/escrow").display().to_string());
    let restore = |copy: &str, flags: &[&str]| {
        fleet.run("d", &[&["authority", "restore", copy, "--recovery-key", &key][..], flags].concat())
    };
    // The register went back: neither files nor backups receive it.
    let place = fleet.dir("backups").display().to_string();
    let kept = fleet.dir("kept.escrow").display().to_string();
    for is_running in [true, false] {
        let datastore = is_running.then(|| fleet.datastore());
        let backup = fleet.run("d", &["backup", "create", &place]);
        let said = String::from_utf8_lossy(&backup.stderr).into_owned();
        assert!(backup.status.code() == Some(3) && said.contains("went back"), "{is_running}: {said}");
        assert!(fleet.refused("d", &["authority", "backup", &kept]).contains("went back"), "{is_running}");
        assert!(!fs::exists(&kept).expect("looks"), "{is_running}");
        if let Some(datastore) = datastore {
            datastore.terminate();
        }
    }
    // The copy of a member that was away lacks the change, too, also where nothing of the register can be read.
    for is_readable in [true, false] {
        for name in ["members.json", "members.copy"].iter().filter(|_| !is_readable) {
            fs::write(fleet.dir("d/trust").join(name), "damaged").expect("writes");
        }
        for flags in [&["--register", "copy"][..], &[]] {
            let refused = restore(&sealed[1], flags);
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert_eq!(refused.status.code(), Some(1), "{is_readable} {flags:?}: {said}");
            let is_asked = said.contains("--earlier-copy") && said.matches("change ").count() >= 2;
            assert!(is_asked || (is_readable && flags.is_empty()), "{is_readable} {flags:?}: {said}");
        }
    }
    copy_dir(&fleet.dir("d"), &fleet.dir("other"));
    let wanted = restore(&sealed[1], &["--register", "copy", "--earlier-copy"]);
    let said = String::from_utf8_lossy(&wanted.stderr).into_owned();
    assert!(wanted.status.success() && said.contains("revoke again"), "{said}");
    let datastore = fleet.datastore();
    assert_eq!((reasons(&fleet), state(&fleet, "b")), (Vec::new(), "enrolled".into()), "the operator decided so");
    datastore.terminate();
    fs::remove_dir_all(fleet.dir("d")).expect("removes");
    fs::rename(fleet.dir("other"), fleet.dir("d")).expect("renames");
    let restored = restore(&sealed[0], &[]);
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    let _datastore = fleet.datastore();
    assert_eq!((reasons(&fleet), state(&fleet, "b")), (Vec::new(), "revoked".into()));
}
