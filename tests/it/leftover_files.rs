//! Leftover files in a directory where a log is restored or recovered: a registry and an index that cannot be read, and a
//! registry newer than the encrypted CA backup.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Output;

use crate::files::copy_dir;
use crate::fleet::Fleet;
use crate::reading::tree;
use crate::recover::{escrow, key_of};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stderr[..], &output.stdout[..]].concat()).into_owned()
}

/// Returns a datastore that was backed up and stopped, its backup path, and the recovery key.
fn backed_up() -> (Fleet, String, String) {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let a = fleet.member("a");
    fleet.ok("a", &["put", "c", "backed-up", "--value", "1"]);
    fleet.converges(&["a"]);
    let (key, place) = (key_of(&fleet), fleet.dir("backups").display().to_string());
    fleet.ok("d", &["backup", "create", &place]);
    fleet.ok("a", &["put", "c", "later", "--value", "1"]);
    fleet.converges(&["a"]);
    a.terminate();
    datastore.terminate();
    fs::remove_dir_all(fleet.dir("d/log")).expect("removes");
    (fleet, place, key)
}

#[test]
fn p13_a_restore_does_not_ignore_an_unreadable_index() {
    let (fleet, place, _) = backed_up();
    let (state, aside) = (fleet.dir("d/state"), fleet.dir("state.aside"));
    // An index that cannot be read may contain more than the backup.
    fs::rename(&state, &aside).expect("renames");
    symlink("state", &state).expect("links to itself");
    for more in [&[][..], &["--replace"]] {
        let output = fleet.run("d", &[&["restore", &place][..], more].concat());
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("cannot be read now"), "{}", said(&output));
        assert!(!fleet.dir("d/log").exists(), "nothing is changed");
    }
    // The readable index does contain more.
    fs::remove_file(&state).expect("removes");
    fs::rename(&aside, &state).expect("renames");
    let before = tree(&state);
    let output = fleet.run("d", &["restore", &place]);
    assert!(said(&output).contains("is at sequence 2, and the backup ends at 1"), "{}", said(&output));
    assert!(tree(&state) == before && !fleet.dir("d/log").exists());
    // A corrupt index proves nothing, and is kept.
    let damage = |path: &Path| fs::write(path, "damaged").expect("writes");
    before.iter().filter(|(_, contents)| contents.is_some()).for_each(|(path, _)| damage(path));
    fleet.ok("d", &["restore", &place]);
    let datastore = fleet.datastore();
    assert!(fleet.ok("d", &["ls", "c"]).contains("backed-up"));
    datastore.terminate();
    let kept = tree(&fleet.dir("d")).into_values().flatten().filter(|contents| contents == b"damaged").count();
    assert!(kept > 0, "damaged files are kept");
}

#[test]
fn p13_a_restore_does_not_ignore_an_unreadable_registry() {
    let (fleet, place, key) = backed_up();
    fs::rename(fleet.dir("d/state"), fleet.dir("state.aside")).expect("renames");
    fs::remove_file(fleet.dir("d/trust/ca.key")).expect("removes");
    let files = ["members.json", "members.copy"].map(|name| fleet.dir("d/trust").join(name));
    files.iter().for_each(|file| fs::write(file, "damaged").expect("writes"));
    let trust = tree(&fleet.dir("d/trust"));
    let output = fleet.run("d", &["restore", &place]);
    assert!(!output.status.success() && said(&output).contains("members.json"), "{}", said(&output));
    assert!(!fleet.dir("d/log").exists() && tree(&fleet.dir("d/trust")) == trust, "nothing is changed");
    fleet.ok("d", &["restore", &place, "--recovery-key", &key]);
    for name in ["members.json.left-1", "members.copy.left-1"] {
        assert_eq!(fs::read(fleet.dir("d/trust").join(name)).expect("is kept"), b"damaged", "{name}");
    }
    let _datastore = fleet.datastore();
    assert!(fleet.ok("d", &["members"]).contains('a'));
    let _a = fleet.replica("a");
    fleet.wait_connected("a");
}

#[test]
fn p13_recover_asks_when_a_leftover_registry_is_later_than_the_ca_backup() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let a = fleet.member("a");
    fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    let key = key_of(&fleet);
    let stale = fleet.dir("stale");
    fs::copy(escrow(&fleet, "a"), &stale).expect("copies");
    a.terminate();
    fleet.enroll("b", "webserver");
    fleet.ok("d", &["revoke", "a"]);
    datastore.terminate();
    // The disk was lost except for the registry, or except for its copy.
    for name in ["log", "state", "audit"] {
        let _ = fs::remove_dir_all(fleet.dir("d").join(name));
    }
    fs::remove_file(fleet.dir("d/trust/ca.key")).expect("removes");
    copy_dir(&fleet.dir("d"), &fleet.dir("d.left"));
    let (stale, from) = (stale.display().to_string(), fleet.dir("a").display().to_string());
    let recover = ["recover", "--authority", &stale, "--recovery-key", &key, "--from", &from];
    for left in [&["members.json", "members.copy"][..], &["members.json"], &["members.copy"]] {
        for register in ["here", "copy"] {
            fs::remove_dir_all(fleet.dir("d")).expect("removes");
            copy_dir(&fleet.dir("d.left"), &fleet.dir("d"));
            for name in ["members.json", "members.copy"].iter().filter(|name| !left.contains(name)) {
                fs::remove_file(fleet.dir("d/trust").join(name)).expect("removes");
            }
            let asked = fleet.run("d", &recover);
            let text = said(&asked);
            assert_eq!(asked.status.code(), Some(1), "{left:?}: {text}");
            assert!(text.matches("revision").count() >= 2 && text.contains("--register here"), "{left:?}: {text}");
            assert!(!fleet.dir("d/trust/ca.key").exists() && !fleet.dir("d/log").exists(), "{left:?}");
            fleet.ok("d", &[&recover[..], &["--register", register]].concat());
            let members = fleet.ok("d", &["members", "--json"]);
            assert_eq!(members.contains("\"b\""), register == "here", "{left:?}: {members}");
            assert_eq!(members.contains("revoked"), register == "here", "{left:?}: {members}");
            for name in left.iter().filter(|_| register == "copy") {
                let kept = fleet.dir("d/trust").join(format!("{name}.left-1"));
                assert!(fs::read_to_string(kept).is_ok_and(|text| text.contains("\"b\"")), "{name} is kept");
            }
        }
    }
}
