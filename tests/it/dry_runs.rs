//! Dry runs of `recover`, and `repair` of a datastore with few files left.

use std::fs;

use crate::fleet::Fleet;

/// Returns a datastore and a member with the same state, both stopped; also the export and the recovery key.
fn stopped() -> (Fleet, String, String) {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let member = fleet.member("a");
    for number in 0..20 {
        fleet.ok("a", &["put", "c", &format!("k{number}"), "--value", "1"]);
    }
    let export = fleet.converges(&["a"]);
    let key = fleet.ok("d", &["authority", "recovery-key"]).trim().to_owned();
    fleet.wait("the member stores the CA backup", || fleet.dir("a/identity/escrow").exists());
    member.terminate();
    datastore.terminate();
    (fleet, export, key)
}

#[test]
fn p13_a_dry_run_of_recover_creates_nothing() {
    let (fleet, export, key) = stopped();
    fs::rename(fleet.dir("d"), fleet.dir("lost")).expect("renames");
    let from = fleet.dir("a").display().to_string();
    let recover = ["recover", "--from", &from, "--recovery-key", &key];
    let rehearsed = fleet.ok("d", &[&recover[..], &["--dry-run"]].concat());
    assert!(rehearsed.contains("nothing was changed"), "{rehearsed}");
    assert!(!fleet.dir("d").exists(), "a missing directory is not created");
    fs::create_dir(fleet.dir("d")).expect("creates");
    fleet.ok("d", &[&recover[..], &["--dry-run"]].concat());
    fleet.ok("d", &["recover", "--from", &from, "--new-authority", "--dry-run"]);
    assert_eq!(fs::read_dir(fleet.dir("d")).expect("lists").count(), 0, "it is empty as before");
    fleet.ok("d", &recover);
    let _datastore = fleet.datastore();
    let _member = fleet.replica("a");
    assert_eq!(fleet.converges(&["a"]), export);
}

#[test]
fn p13_a_datastore_without_a_log_is_repaired_from_its_own_index() {
    let (fleet, export, _) = stopped();
    fs::remove_dir_all(fleet.dir("d/log")).expect("removes");
    let index = fleet.dir("d/state").display().to_string();
    let doubtful = fleet.run("d", &["repair", "--from", &index]);
    let said = String::from_utf8_lossy(&doubtful.stderr).into_owned();
    assert!(doubtful.status.success() || said.contains("--accept-loss"), "{said}");
    // A corrupt member registry is reported.
    fs::write(fleet.dir("d/trust/members.json"), "damaged").expect("writes");
    let repaired = fleet.ok("d", &["repair", "--from", &index, "--accept-loss"]);
    assert!(repaired.contains("REGISTER") && repaired.contains("members.json"), "{repaired}");
    fs::rename(fleet.dir("d/trust/members.copy"), fleet.dir("d/trust/members.json")).expect("puts it back");
    fs::copy(fleet.dir("d/trust/members.json"), fleet.dir("d/trust/members.copy")).expect("copies");
    let _datastore = fleet.datastore();
    let _member = fleet.replica("a");
    assert_eq!(fleet.converges(&["a"]), export);
}

/// Returns every file below a directory with its content.
fn contents(dir: &std::path::Path) -> std::collections::BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut found = std::collections::BTreeMap::new();
    for entry in fs::read_dir(dir).expect("lists") {
        let path = entry.expect("lists").path();
        if path.is_dir() {
            found.extend(contents(&path));
            found.insert(path, Vec::new());
        } else {
            let bytes = fs::read(&path).expect("reads");
            found.insert(path, bytes);
        }
    }
    found
}

#[test]
fn p13_a_dry_run_of_restore_creates_nothing() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    fleet.ok("d", &["put", "c", "k", "--value", "1"]);
    let place = fleet.dir("backups").display().to_string();
    fleet.ok("d", &["backup", "create", &place, "--plain"]);
    datastore.terminate();
    for name in ["lock", "role"] {
        fs::remove_file(fleet.dir("d").join(name)).expect("removes");
    }
    let before = contents(&fleet.dir("d"));
    let said = fleet.ok("d", &["restore", &place, "--dry-run"]);
    assert!(said.contains("nothing was changed"), "{said}");
    assert!(contents(&fleet.dir("d")) == before, "nothing was changed");
    fleet.ok("nowhere", &["restore", &place, "--dry-run"]);
    assert!(!fleet.dir("nowhere").exists(), "a missing directory is not created");
    // While the datastore runs, a dry run is rejected like a real restore.
    let _datastore = fleet.datastore();
    let refused = fleet.run("d", &["restore", &place, "--dry-run"]);
    assert!(!refused.status.success());
}
