//! Backups reuse data of earlier ones only if it is proven to be the datastore's own and is still stored.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::fleet::{Fleet, Process};
use crate::full_disk::Small;

/// Returns a datastore and a path for backups.
fn fleet() -> (Fleet, Process, String) {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let place = fleet.dir("backups").to_str().unwrap().to_owned();
    (fleet, datastore, place)
}

/// Writes `count` objects of 3 KB that are unique to this run.
fn load(fleet: &Fleet, run: &str, count: u32) {
    let mut lines = String::new();
    for number in 0..count {
        let seed = blake3::hash(format!("{run}{number}").as_bytes()).to_hex();
        let value = seed.repeat(45);
        let line = format!(r#"{{"ops":[{{"put":{{"collection":"c","key":"{run}{number}","value":"{value}"}}}}]}}"#);
        writeln!(lines, "{line}").unwrap();
    }
    let file = fleet.write_file(&format!("{run}.jsonl"), &lines);
    fleet.ok("d", &["import", file.to_str().unwrap()]);
}

fn copy_dir(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("runs");
    assert!(copied.success());
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("lists").map(|entry| entry.expect("entry").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

fn verified(fleet: &Fleet, place: &str, what: &[&str]) {
    let output = fleet.run("d", &[&["backup", "verify", place][..], what].concat());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Returns the manifests of an unencrypted repository, in numerical order.
fn manifests(place: &str) -> Vec<(PathBuf, Value)> {
    let mut found = files(&Path::new(place).join("manifests"));
    found.sort_by_key(|path| path.to_str().unwrap().rsplit('-').next().unwrap().to_owned());
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("reads");
        let value = serde_json::from_str(text.lines().next().unwrap()).expect("JSON");
        (path, value)
    };
    found.into_iter().map(read).collect()
}

fn write_manifest(path: &Path, manifest: &Value) {
    let body = manifest.to_string();
    std::fs::write(path, format!("{body}\n{}\n", blake3::hash(body.as_bytes()).to_hex())).expect("writes");
}

/// Rewrites the last backup as if made by a version that trusted headers: its second pack file belongs to another
/// history, and it is not marked as checked.
fn poison(place: &str, foreign: &str) -> String {
    let (path, mut manifest) = manifests(place).pop().unwrap();
    let segment = manifest["segments"][0].as_object_mut().unwrap();
    segment.remove("checked");
    segment["pieces"][1] = foreign.into();
    write_manifest(&path, &manifest);
    manifest["id"].as_str().unwrap().to_owned()
}

/// Stores a pack file of other records in the repository and returns its name.
fn foreign_piece(place: &str) -> String {
    let bytes = vec![7; 1 << 20];
    let name = blake3::hash(&bytes).to_hex().to_string();
    let path = Path::new(place).join("pieces").join(&name[..2]);
    std::fs::create_dir_all(&path).expect("creates");
    std::fs::write(path.join(&name), bytes).expect("writes");
    name
}

#[test]
fn p13_an_older_copy_of_the_datastore_corrupts_no_backup_in_the_same_location() {
    let (fleet, datastore, place) = fleet();
    let create = || fleet.json("d", &["backup", "create", &place]);
    load(&fleet, "a", 100);
    create();
    datastore.terminate();
    copy_dir(&fleet.dir("d"), &fleet.dir("older"));
    let datastore = fleet.datastore();
    load(&fleet, "b", 900);
    create();
    let own = fleet.export("d");
    datastore.terminate();

    // The older copy replaces the original: at first it only has less, later it has other records.
    std::fs::rename(fleet.dir("d"), fleet.dir("real")).expect("renames");
    std::fs::rename(fleet.dir("older"), fleet.dir("d")).expect("renames");
    let older = fleet.datastore();
    create();
    verified(&fleet, &place, &["--all"]);
    load(&fleet, "c", 1000);
    create();
    verified(&fleet, &place, &["--all"]);
    older.terminate();

    std::fs::rename(fleet.dir("d"), fleet.dir("older")).expect("renames");
    std::fs::rename(fleet.dir("real"), fleet.dir("d")).expect("renames");
    let datastore = fleet.datastore();
    assert_eq!(fleet.export("d"), own);
    for run in ["d", "e"] {
        load(&fleet, run, 400);
        let made = create();
        // The second backup adds less than the total.
        assert!(run == "d" || made["new_bytes"].as_u64() < made["bytes"].as_u64().map(|bytes| bytes / 2), "{made}");
        verified(&fleet, &place, &["--all"]);
    }
    let pruned = fleet.json("d", &["backup", "prune", &place, "--keep-last", "2"]);
    assert_eq!(pruned["unsound"], Value::Null);
    let now = fleet.export("d");
    datastore.terminate();
    fleet.ok("d", &["restore", &place, "--replace"]);
    let _datastore = fleet.datastore();
    assert_eq!(fleet.export("d"), now);
}

#[test]
fn p13_a_location_with_wrong_pieces_is_repaired_by_the_next_backup_and_prune_keeps_sound_backups() {
    let (fleet, _datastore, place) = fleet();
    let create = || fleet.json("d", &["backup", "create", &place, "--plain"]);
    load(&fleet, "a", 800);
    let sound = create()["backup"].as_str().unwrap().to_owned();
    let foreign = foreign_piece(&place);
    let mut poisoned = Vec::new();
    for run in ["b", "c"] {
        load(&fleet, run, 20);
        create();
        poisoned.push(poison(&place, &foreign));
    }
    let bad = fleet.run("d", &["backup", "verify", &place]);
    assert_eq!(bad.status.code(), Some(3), "corruption found while truncating counts as damage: {bad:?}");
    let said = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert!(said.contains(&poisoned[1]) && said.contains("damage in seg-"), "{said}");
    let bad = fleet.run("r", &["restore", &place, "--plain"]);
    assert_eq!(bad.status.code(), Some(3), "{bad:?}");
    assert!(String::from_utf8_lossy(&bad.stderr).contains(&poisoned[1]), "{bad:?}");

    // No retention rule selects the sound backup, but it is the only one that can be restored.
    let pruned = fleet.run("d", &["backup", "prune", &place, "--keep-last", "1", "--json"]);
    assert_eq!(pruned.status.code(), Some(3), "{pruned:?}");
    let said = String::from_utf8_lossy(&pruned.stderr).into_owned();
    assert!(poisoned.iter().all(|id| said.contains(id.as_str())) && said.contains("new backup"), "{said}");
    let pruned: Value = serde_json::from_slice(&pruned.stdout).expect("JSON");
    assert_eq!(pruned["covered"], serde_json::json!([[0, 800]]), "{pruned}");
    assert_eq!(pruned["removed"], serde_json::json!([]), "backups more advanced than any sound one are kept");
    verified(&fleet, &place, &["--id", &sound]);

    // Although nothing was committed in between, a full backup is made.
    let healed = create();
    assert_eq!(healed["is_new"], true, "{healed}");
    verified(&fleet, &place, &[]);
    assert_eq!(create()["is_new"], false);
    let pruned = fleet.json("d", &["backup", "prune", &place, "--keep-last", "1"]);
    assert_eq!(pruned["kept"], serde_json::json!([healed["backup"]]));
    verified(&fleet, &place, &["--all"]);
}

#[test]
fn p10_pieces_lost_from_a_location_are_stored_again() {
    let (fleet, _datastore, place) = fleet();
    load(&fleet, "a", 800);
    fleet.ok("d", &["backup", "create", &place]);
    for damage in ["removed", "cut short"] {
        for piece in files(&Path::new(&place).join("pieces")) {
            match damage {
                "removed" => std::fs::remove_file(piece).expect("removes"),
                _ => std::fs::write(piece, b"short").expect("writes"),
            }
        }
        assert_eq!(fleet.run("d", &["backup", "verify", &place]).status.code(), Some(3), "{damage}");
        let pruned = fleet.run("d", &["backup", "prune", &place, "--keep-last", "1"]);
        assert_eq!(pruned.status.code(), Some(3), "{damage}: {pruned:?}");
        let made = fleet.json("d", &["backup", "create", &place]);
        assert!(made["again"].as_u64() > Some(2), "{damage}: {made}");
        verified(&fleet, &place, &["--all"]);
    }
    load(&fleet, "b", 10);
    let made = fleet.json("d", &["backup", "create", &place]);
    assert!(made["new_bytes"].as_u64() <= Some(1 << 20), "{made}");
    verified(&fleet, &place, &[]);
}

#[test]
fn p13_a_continuous_backup_reuses_no_pieces_that_its_location_has_lost() {
    let (fleet, _datastore, place) = fleet();
    load(&fleet, "a", 800);
    let follow = ["backup", "create", &place, "--follow", "--every", "1"];
    let _follower = Process::begin(fleet.command("d", &follow), &fleet.dir("follow.log"));
    let is_kept = || {
        let head = fleet.status("d")["head"].as_u64().expect("a head");
        let directory = Path::new(&place).join("manifests");
        let names = if directory.exists() { files(&directory) } else { Vec::new() };
        names.iter().any(|name| name.display().to_string().contains(&format!("-{head:012}-")))
    };
    fleet.wait("a backup", is_kept);
    for run in ["b", "c"] {
        std::fs::remove_dir_all(Path::new(&place).join("pieces")).expect("removes");
        load(&fleet, run, 10);
        fleet.wait("another backup", is_kept);
        verified(&fleet, &place, &[]);
    }
}

#[test]
fn p13_a_restore_drill_in_the_same_location_removes_no_backup_of_the_datastore() {
    let (fleet, _datastore, place) = fleet();
    load(&fleet, "a", 50);
    fleet.ok("d", &["backup", "create", &place]);
    let key = crate::recover::key_of(&fleet);
    fleet.ok("drill", &["restore", &place, "--recovery-key", &key]);
    let drill = fleet.json("drill", &["backup", "create", &place]);
    load(&fleet, "b", 50);
    let made = fleet.run("d", &["backup", "create", &place, "--json"]);
    let said = String::from_utf8_lossy(&made.stderr);
    let drill = drill["backup"].as_str().expect("a name");
    assert!(made.status.success() && said.contains(drill) && said.contains("a separate place"), "{made:?}");
    let made: Value = serde_json::from_slice(&made.stdout).expect("JSON");
    let pruned = fleet.json("d", &["backup", "prune", &place, "--keep-last", "1"]);
    assert_eq!((&pruned["kept"].as_array().map(Vec::len), &pruned["covered"]), (&Some(2), &pruned["covered_before"]));
    let own = made["backup"].as_str().expect("a name");
    assert!(pruned["branches"].as_str().is_some_and(|said| said.contains(own)), "{pruned}");
    let restored = fleet.json("r", &["restore", &place, "--recovery-key", &key, "--backup", own]);
    assert_eq!(restored["seq"], 100);
    let pruned = fleet.json("d", &["backup", "prune", &place, "--keep-last", "1", "--given-up"]);
    let kept = pruned["kept"].as_array().expect("a list");
    assert!(kept.len() == 2 && [own, drill].iter().all(|name| kept.contains(&(*name).into())), "{pruned}");
}

/// Creates a leftover file of a killed process, with the naming scheme from before the host became part of the name.
fn left_behind(place: &str, name: &str) -> PathBuf {
    let path = Path::new(place).join("pieces/aa");
    std::fs::create_dir_all(&path).expect("creates");
    let path = path.join(format!("{name}.{}.next", u32::MAX));
    std::fs::write(&path, vec![7; 100_000]).expect("writes");
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    std::fs::File::open(&path).expect("opens").set_modified(long_ago).expect("sets");
    path
}

fn unfinished(place: &str) -> Vec<PathBuf> {
    let all = files(Path::new(place)).into_iter();
    all.filter(|path| path.extension().is_some_and(|extension| extension == "next")).collect()
}

#[test]
fn p15_leftovers_of_a_killed_backup_are_removed_by_the_next_one() {
    let (fleet, _datastore, place) = fleet();
    load(&fleet, "a", 10);
    fleet.ok("d", &["backup", "create", &place]);
    for command in [&["backup", "create", &place][..], &["backup", "prune", &place, "--keep-last", "1"]] {
        let left = left_behind(&place, "killed");
        let at_work = left_behind(&place, "at-work");
        std::fs::File::open(&at_work).expect("opens").set_modified(std::time::SystemTime::now()).expect("sets");
        fleet.ok("d", command);
        assert!(!left.exists() && at_work.exists(), "{command:?}");
        std::fs::remove_file(at_work).expect("removes");
    }
    verified(&fleet, &place, &["--all"]);
}

#[test]
fn p15_a_full_location_keeps_no_partial_files_and_can_be_pruned() {
    let (fleet, _datastore, _) = fleet();
    let disk = fleet.dir("disk");
    let Some(small) = Small::mount(&disk, 8) else { return };
    let place = disk.join("backups").display().to_string();
    for run in ["a", "b", "c"] {
        load(&fleet, run, 300);
        fleet.ok("d", &["backup", "create", &place]);
    }
    load(&fleet, "d", 2500);
    let refused = fleet.refused("d", &["backup", "create", &place]);
    assert!(refused.contains("no space left") && refused.contains("prune"), "{refused}");
    assert_eq!(unfinished(&place), Vec::<PathBuf>::new());
    small.fill();
    // Not a byte is free: operations that fail leave existing data unchanged.
    assert!(fleet.refused("d", &["backup", "create", &place]).contains("no space left"));
    verified(&fleet, &place, &["--all"]);
    for _ in 0..2 {
        fleet.ok("d", &["backup", "prune", &place, "--keep-last", "1", "--dry-run"]);
        small.top_up();
    }
    let pruned = fleet.json("d", &["backup", "prune", &place, "--keep-last", "1"]);
    assert!(pruned["bytes"].as_u64() > Some(1 << 20), "{pruned}");
    assert_eq!(unfinished(&place), Vec::<PathBuf>::new());
    verified(&fleet, &place, &["--all"]);
    // It can be repeated.
    small.top_up();
    fleet.ok("d", &["backup", "prune", &place, "--keep-last", "1"]);
    small.empty();
}
