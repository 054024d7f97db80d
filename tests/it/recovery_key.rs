//! Rotation of the recovery key: with online and offline members, over restarts, with backups, and with an abort.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use gravwell_transport::trust::{CaBackup, MemberState, RecoveryKey, Registry};
use serde_json::Value;

use crate::fleet::Fleet;
use crate::recover::{destroy, escrow, key_of, recover};

const ROTATE: [&str; 2] = ["authority", "rotate-recovery-key"];

fn rotate(fleet: &Fleet, step: &[&str]) -> Value {
    fleet.json("d", &[&ROTATE, step].concat())
}

fn refused(fleet: &Fleet, step: &[&str]) -> String {
    fleet.refused("d", &[&ROTATE, step].concat())
}

/// Starts the rotation and returns the new key.
fn begin(fleet: &Fleet) -> String {
    fleet.ok("d", &[&ROTATE[..], &["begin"]].concat()).trim().to_owned()
}

/// Returns which keys open a member's copy, as known to the datastore.
fn opens(fleet: &Fleet, member: &str) -> String {
    let status = rotate(fleet, &["status"]);
    let members = status["members"].as_array().expect("members");
    let member = members.iter().find(|row| row["name"] == member).expect("it is listed");
    member["opens_with"].as_str().expect("a word").to_owned()
}

fn wait_opens(fleet: &Fleet, member: &str, wanted: &str) {
    fleet.wait(&format!("the copy of {member} opens with {wanted}"), || opens(fleet, member) == wanted);
}

/// Returns which of the keys open the copy in a member's directory.
fn keys_that_open(fleet: &Fleet, member: &str, keys: [&str; 2]) -> [bool; 2] {
    let copy = CaBackup::load(Path::new(&escrow(fleet, member))).expect("reads");
    keys.map(|key| copy.check(&key.parse::<RecoveryKey>().expect("a key")).is_ok())
}

#[test]
fn p11_a_recovery_key_is_rotated_while_members_run_and_the_old_one_opens_no_new_copy() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (_a, b) = (fleet.member("a"), fleet.member("b"));
    fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    let export = fleet.converges(&["a", "b"]);
    let old = key_of(&fleet);
    ["a", "b"].iter().for_each(|member| wait_opens(&fleet, member, "present"));
    assert!(refused(&fleet, &["abort"]).contains("no recovery key rotation"));
    assert!(refused(&fleet, &["finish", "--recovery-key", &old]).contains("no recovery key rotation"));

    // One member is offline when the rotation starts.
    b.terminate();
    let new = begin(&fleet);
    assert!(new != old && begin(&fleet) == new, "running it again continues");
    wait_opens(&fleet, "a", "both");
    assert_eq!(keys_that_open(&fleet, "a", [&old, &new]), [true, true]);
    assert_eq!(keys_that_open(&fleet, "b", [&old, &new]), [true, false]);
    assert_eq!(key_of(&fleet), old, "the current key is valid until the end");
    assert_eq!(fleet.status("d")["rotates_recovery_key"], true);
    let doctor = fleet.run("d", &["doctor"]);
    let found = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(found.contains("b do not have a CA backup that it decrypts"), "{found}");

    // It cannot finish while a member would keep only the old copy, nor without the new key.
    let said = refused(&fleet, &["finish", "--recovery-key", &new]);
    assert!(said.contains("these members: b;"), "{said}");
    let b = fleet.replica("b");
    wait_opens(&fleet, "b", "both");
    assert!(refused(&fleet, &["finish"]).contains("--recovery-key"));
    assert!(refused(&fleet, &["finish", "--recovery-key", &old]).contains("the given key"));
    assert!(refused(&fleet, &["finish", "--recovery-key", &new, "--without", "x"]).contains("x is not a member"));
    rotate(&fleet, &["finish", "--recovery-key", &new]);
    assert_eq!(key_of(&fleet), new);
    assert_eq!(fleet.status("d")["rotates_recovery_key"], Value::Null);
    ["a", "b"].iter().for_each(|member| wait_opens(&fleet, member, "present"));
    for member in ["a", "b"] {
        assert_eq!(keys_that_open(&fleet, member, [&old, &new]), [false, true], "{member}");
    }
    let authority = escrow(&fleet, "a");
    b.terminate();

    // The new key, and no other, recovers the datastore.
    destroy(&fleet, datastore);
    let said = fleet.run("d", &["recover", "--authority", &authority, "--recovery-key", &old]);
    assert!(!said.status.success() && !fleet.dir("d/trust/ca.key").exists(), "{said:?}");
    recover(&fleet, &["--authority", &authority, "--recovery-key", &new, "--expect", "1"]);
    let _running = (fleet.datastore(), fleet.replica("b"));
    fleet.wait_connected("a");
    assert_eq!(fleet.converges(&["a", "b"]), export);
    assert_eq!(key_of(&fleet), new);
}

#[test]
fn p13_a_rotation_survives_restarts_in_every_step_and_can_be_aborted() {
    let fleet = Fleet::new();
    let mut datastore = fleet.datastore();
    let _a = fleet.member("a");
    let old = key_of(&fleet);
    wait_opens(&fleet, "a", "present");
    let restarted = |former: crate::fleet::Process| {
        former.kill();
        let started = fleet.datastore();
        fleet.wait_connected("a");
        started
    };
    // Killed after the start, and aborted.
    let first = begin(&fleet);
    datastore = restarted(datastore);
    assert_eq!(begin(&fleet), first, "it continues with the key that was written down");
    wait_opens(&fleet, "a", "both");
    rotate(&fleet, &["abort"]);
    datastore = restarted(datastore);
    assert_eq!(key_of(&fleet), old);
    wait_opens(&fleet, "a", "present");
    assert_eq!(keys_that_open(&fleet, "a", [&old, &first]), [true, false]);
    // The commands, killed at arbitrary points.
    for moment in 0..8 {
        for step in ["begin", "abort"] {
            let mut command = fleet.command("d", &[&ROTATE[..], &[step]].concat());
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
            std::thread::sleep(Duration::from_millis(moment));
            let _ = child.kill();
            child.wait().expect("waits");
            assert_eq!(key_of(&fleet), old, "{step} at {moment} ms");
            rotate(&fleet, &["status"]);
        }
    }
    let _ = fleet.run("d", &[&ROTATE[..], &["abort"]].concat());
    wait_opens(&fleet, "a", "present");
    // While the datastore is stopped.
    datastore.terminate();
    let new = begin(&fleet);
    assert_eq!(opens(&fleet, "a"), "present", "the result survives a restart");
    assert!(refused(&fleet, &["finish", "--recovery-key", &new]).contains("these members: a;"));
    let mut datastore = fleet.datastore();
    fleet.wait_connected("a");
    wait_opens(&fleet, "a", "both");
    datastore = restarted(datastore);
    wait_opens(&fleet, "a", "both");
    rotate(&fleet, &["finish", "--recovery-key", &new]);
    let _datastore = restarted(datastore);
    assert_eq!(key_of(&fleet), new);
    wait_opens(&fleet, "a", "present");
    assert_eq!(keys_that_open(&fleet, "a", [&old, &new]), [false, true]);
}

#[test]
fn p13_a_rotation_that_ends_without_a_member_names_whose_copy_needs_the_former_key() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let a = fleet.member("a");
    let old = key_of(&fleet);
    wait_opens(&fleet, "a", "present");
    a.terminate();
    let new = begin(&fleet);
    let said = rotate(&fleet, &["finish", "--recovery-key", &new, "--without", "a"]);
    assert_ne!(said["current"], said["former"]);
    assert_eq!(opens(&fleet, "a"), "former");
    assert_eq!(keys_that_open(&fleet, "a", [&old, &new]), [true, false], "its copy is unchanged");
    let doctor = fleet.run("d", &["doctor"]);
    let found = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(found.contains("the CA backups of a are encrypted under a former key"), "{found}");
    let _a = fleet.replica("a");
    wait_opens(&fleet, "a", "present");
    assert_eq!(keys_that_open(&fleet, "a", [&old, &new]), [false, true]);
}

#[test]
fn p13_backups_open_with_the_recovery_keys_that_count_when_they_are_made() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let place = fleet.dir("backups").display().to_string();
    let backup = |number: u32| {
        fleet.ok("d", &["put", "c", &number.to_string(), "--value", "1"]);
        fleet.ok("d", &["backup", "create", &place]);
    };
    backup(1);
    let (old, new) = (key_of(&fleet), begin(&fleet));
    let opened = |key: &str, name: &str| fleet.run(name, &["restore", &place, "--recovery-key", key]).status.success();
    assert_eq!([opened(&old, "r1"), opened(&new, "r2")], [true, false]);
    backup(2);
    assert_eq!([opened(&old, "r3"), opened(&new, "r4")], [true, true]);
    rotate(&fleet, &["finish", "--recovery-key", &new]);
    backup(3);
    assert_eq!([opened(&old, "r5"), opened(&new, "r6")], [false, true]);
    let export = fleet.export("d");
    datastore.kill();
    std::fs::remove_dir_all(fleet.dir("d")).expect("wipes");
    fleet.ok("d", &["restore", &place, "--recovery-key", &new]);
    assert_eq!((fleet.export("d"), key_of(&fleet)), (export, new));
}

#[test]
fn p13_backups_can_be_restored_with_a_recovery_key_at_every_point_of_a_rotation() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let place = fleet.dir("backups").display().to_string();
    let create = ["backup", "create", &place];
    fleet.ok("d", &["put", "c", "k", "--value", "1"]);
    fleet.ok("d", &create);
    let (old, new) = (key_of(&fleet), begin(&fleet));
    rotate(&fleet, &["finish", "--recovery-key", &new]);
    let opened = |key: &str, name: &str| fleet.run(name, &["restore", &place, "--recovery-key", key]).status.success();

    // The first backup afterwards fails before its manifest is written: the existing backups still open with the
    // former key.
    fleet.ok("d", &["put", "c", "k", "--value", "2"]);
    let (pieces, aside) = (fleet.dir("backups/pieces"), fleet.dir("backups/aside"));
    std::fs::rename(&pieces, &aside).expect("moves");
    std::fs::write(&pieces, "in the way").expect("writes");
    assert!(!fleet.run("d", &create).status.success());
    std::fs::remove_file(&pieces).expect("removes");
    std::fs::rename(&aside, &pieces).expect("moves back");
    assert!(opened(&old, "r1"));

    // A complete backup no longer opens with the former key, even if its manifest becomes corrupt later.
    let made: Value = serde_json::from_str(&fleet.ok("d", &[&create[..], &["--json"]].concat())).expect("JSON");
    assert!(!opened(&old, "r2"));
    let manifest = fleet.dir("backups/manifests").join(made["backup"].as_str().expect("a name"));
    std::fs::write(manifest, "damaged").expect("writes");
    let export = fleet.export("d");
    datastore.kill();
    std::fs::remove_dir_all(fleet.dir("d")).expect("wipes");
    fleet.ok("d", &["restore", &place, "--recovery-key", &new]);
    assert_eq!((fleet.export("d"), key_of(&fleet)), (export, new));
}

#[test]
fn p13_a_former_key_keeps_no_earlier_register_beside_backups_that_it_does_not_open() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let places = ["place1", "place2"].map(|name| fleet.dir(name));
    let [first, second] = places.each_ref().map(|place| place.display().to_string());
    fleet.enroll("b", "reader");
    fleet.ok("d", &["put", "c", "k", "--value", "1"]);
    fleet.ok("d", &["backup", "create", &second]);
    crate::files::copy_dir(&places[1], &places[0]);
    let (old, new) = (key_of(&fleet), begin(&fleet));
    rotate(&fleet, &["finish", "--recovery-key", &new, "--without", "b"]);
    fleet.ok("d", &["revoke", "b"]);
    fleet.ok("d", &["put", "c", "k", "--value", "2"]);
    fleet.ok("d", &["backup", "create", &second]);
    datastore.kill();
    std::fs::remove_dir_all(fleet.dir("d")).expect("wipes");
    fleet.ok("d", &["restore", &first, "--recovery-key", &old]);
    let again = ["restore", &second, "--replace", "--recovery-key", &old];
    let said = fleet.refused("d", &again);
    assert!(said.contains("but not every later one") && said.contains("--earlier-copy"), "{said}");
    let here = fleet.ok("d", &[&again[..], &["--register", "here"]].concat());
    assert!(here.contains("CA: the existing one"), "{here}");
}

#[test]
fn p13_a_recovery_key_that_is_lost_or_torn_is_named_and_no_copy_is_exchanged_until_it_is_put_back() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let _a = fleet.member("a");
    let (old, other) = (key_of(&fleet), "gwr1.AAAA");
    wait_opens(&fleet, "a", "present");
    let path = fleet.dir("d/trust/recovery.key");
    let good = std::fs::read(&path).expect("reads");
    let file = fleet.dir("copy").to_str().expect("text").to_owned();
    for torn in [false, true] {
        match torn {
            true => std::fs::write(&path, &good[..good.len() / 2]).expect("tears"),
            false => std::fs::remove_file(&path).expect("removes"),
        }
        let before = std::fs::read(escrow(&fleet, "a")).expect("reads");
        // The enrollment outdates the member's copy, which would otherwise be replaced.
        let name = if torn { "x" } else { "y" };
        fleet.ok("d", &["enroll", name]);
        let status = fleet.status("d");
        let reasons = status["health"]["reasons"].as_array().expect("reasons");
        assert_eq!(reasons.len(), 1, "{status}");
        assert_eq!(reasons[0]["code"], "recovery_key_damaged");
        for (command, exit) in [(&["status"][..], 1), (&["doctor"], 1), (&["authority", "recovery-key"], 3)] {
            let output = fleet.run("d", command);
            assert_eq!(output.status.code(), Some(exit), "{command:?} {output:?}");
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            assert!(said.contains("recovery.key") && said.contains("--set"), "{command:?} {said}");
        }
        for command in [&["authority", "backup", &file][..], &["authority", "recovery-key", "--set", other]] {
            assert!(!fleet.run("d", command).status.success(), "{command:?}");
        }
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(std::fs::read(escrow(&fleet, "a")).expect("reads"), before, "the member's copy is unchanged");
        let said = fleet.ok("d", &["authority", "recovery-key", "--set", &old]);
        assert!(said.contains("restored the recovery key"), "{said}");
        assert_eq!(std::fs::read(&path).expect("reads"), good);
        assert_eq!(fleet.run("d", &["status"]).status.code(), Some(0));
        fleet.ok("d", &["authority", "backup", &file]);
        fleet
            .wait("the member's copy is current", || std::fs::read(escrow(&fleet, "a")).is_ok_and(|now| now != before));
        assert_eq!(keys_that_open(&fleet, "a", [&old, &old]), [true, true]);
    }
}

#[test]
fn p13_a_former_key_brings_no_earlier_register_back_before_it_was_said() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (a, _b) = (fleet.member("a"), fleet.member("b"));
    fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    let place = fleet.dir("backups").display().to_string();
    fleet.ok("d", &["backup", "create", &place]);
    let backup_key = fleet.dir("key.kept").display().to_string();
    std::fs::copy(fleet.backup_key(), &backup_key).expect("copies");
    ["a", "b"].iter().for_each(|member| wait_opens(&fleet, member, "present"));
    std::fs::copy(escrow(&fleet, "b"), fleet.dir("early")).expect("copies");
    let early = fleet.dir("early").display().to_string();
    let (old, new) = (key_of(&fleet), begin(&fleet));
    ["a", "b"].iter().for_each(|member| wait_opens(&fleet, member, "both"));
    rotate(&fleet, &["finish", "--recovery-key", &new]);
    fleet.ok("d", &["revoke", "b"]);
    wait_opens(&fleet, "a", "present");
    for value in ["2", "3"] {
        fleet.ok("d", &["put", "c", "k", "--value", value]);
        fleet.ok("d", &["backup", "create", &place]);
    }
    fleet.converges(&["a"]);
    let name = |key: &str| key.parse::<RecoveryKey>().expect("a key").name();
    let is_named = |said: &str| {
        for word in [name(&old).as_str(), &name(&new), "--earlier-copy", "nothing was changed", "of 20"] {
            assert!(said.contains(word), "{word}: {said}");
        }
    };
    let is_revoked = || {
        let register = Registry::open(&fleet.dir("d/trust"), 0).expect("reads");
        register.members().any(|member| member.name.as_str() == "b" && member.state == MemberState::Revoked)
    };

    // The member registry is lost with half of the disk: the remaining key shows that the given one is a former key.
    datastore.terminate();
    let trust = fleet.dir("d/trust");
    let kept = fleet.dir("trust.kept");
    assert!(std::process::Command::new("cp").arg("-a").arg(&trust).arg(&kept).status().expect("runs").success());
    for file in ["members.json", "members.copy", "ca.key"] {
        std::fs::remove_file(trust.join(file)).expect("removes");
    }
    is_named(&fleet.refused("d", &["authority", "restore", &early, "--recovery-key", &old]));
    assert!(!trust.join("ca.key").exists());
    fleet.ok("d", &["authority", "restore", &early, "--recovery-key", &old, "--earlier-copy"]);

    // The whole disk is lost.
    std::fs::remove_dir_all(fleet.dir("d")).expect("wipes");
    a.terminate();
    let member = fleet.dir("a").display().to_string();
    let recover = ["recover", "--from", &member, "--authority", &early, "--recovery-key"];
    is_named(&fleet.refused("d", &[&recover[..], &[&old, "--dry-run"]].concat()));
    is_named(&fleet.refused("d", &[&recover[..], &[&old]].concat()));
    let restore = ["restore", &place, "--key-file", &backup_key, "--recovery-key"];
    is_named(&fleet.refused("d", &[&restore[..], &[&old]].concat()));
    assert!(!fleet.dir("d/log").exists() && !fleet.dir("d/trust/ca.key").exists());
    for (key, flags, revoked) in [(&old, &["--earlier-copy"][..], false), (&new, &[], true)] {
        let said = fleet.ok("d", &[&restore[..], &[key], flags].concat());
        let line = said.lines().find(|line| line.starts_with("member registry: as of 20")).expect("prints its time");
        assert!(line.contains("from backup") && line.contains("revoke again"), "{line}");
        assert!(is_revoked() || !revoked, "{said}");
        std::fs::remove_dir_all(fleet.dir("d")).expect("wipes");
    }
    let recovered = fleet.run("d", &[&recover[..], &[&new]].concat());
    assert!(recovered.status.success(), "an earlier copy that the key does not decrypt is ignored: {recovered:?}");
    assert!(is_revoked());
}

#[test]
fn p05_a_restore_interrupted_before_its_recovery_key_is_run_again_with_the_same_arguments() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let a = fleet.member("a");
    fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    let export = fleet.converges(&["a"]);
    let (key, place) = (key_of(&fleet), fleet.dir("backups").display().to_string());
    fleet.wait("the datastore knows that a has a copy", || {
        fleet.ok("d", &["members", "--json"]).contains(r#""copy_keys":""#)
    });
    fleet.ok("d", &["backup", "create", &place]);
    a.terminate();
    destroy(&fleet, datastore);
    let restore = ["restore", &place, "--recovery-key", &key];
    fleet.ok("d", &restore);
    // As a kill leaves it after the register was put back, and before its keys were.
    for name in ["log", "state", "trust/ca.key", "trust/recovery.key", "trust/recovery.name", "backup.key"] {
        let path = fleet.dir("d").join(name);
        if path.is_dir() {
            std::fs::remove_dir_all(path).expect("removes");
        } else {
            let _ = std::fs::remove_file(path);
        }
    }
    std::fs::write(fleet.dir("d/unfinished"), "cut off").expect("writes");
    fleet.ok("d", &restore);
    let _datastore = fleet.datastore();
    assert_eq!((key_of(&fleet), fleet.export("d")), (key, export));
}
