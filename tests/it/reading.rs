//! Commands that only read leave a directory unchanged, whatever is corrupt in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::files::{self, copy_dir};
use crate::fleet::Fleet;
use crate::web::Web;

/// Returns every file and directory below a directory, with the contents of files.
pub fn tree(dir: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("lists").map(|entry| entry.expect("entry")) {
        let path = entry.path();
        if path.is_dir() {
            found.insert(path.clone(), None);
            found.extend(tree(&path));
        } else {
            found.insert(path.clone(), Some(fs::read(&path).expect("reads")));
        }
    }
    found
}

/// Kinds of corruption of a file besides removing it.
const DAMAGES: [&str; 2] = ["flipped", "cut"];

fn damage(file: &Path, how: &str) {
    let mut bytes = fs::read(file).expect("reads");
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
    match how {
        "removed" => return fs::remove_file(file).expect("removes"),
        "cut" => bytes.truncate(used / 2),
        _ if bytes.is_empty() => bytes.push(1),
        _ => bytes[used / 2] ^= 4,
    }
    files::write(file, &bytes);
}

/// Runs `commands` on `name`'s directory after each corruption of each of its files, and checks that they change nothing.
pub fn leave_as_it_is(fleet: &Fleet, name: &str, commands: &[&[&str]]) {
    let home = fleet.dir(name);
    let good = fleet.dir(&format!("{name}.good"));
    copy_dir(&home, &good);
    let files: Vec<PathBuf> = tree(&good).into_iter().filter_map(|(path, file)| file.map(|_| path)).collect();
    let mut damages: Vec<(PathBuf, &str)> =
        files.iter().zip(DAMAGES.iter().cycle()).map(|(file, how)| (file.clone(), *how)).collect();
    damages.extend(files.into_iter().map(|file| (file, "removed")));
    damages.push((good.clone(), "nothing"));
    for (file, how) in damages {
        fs::remove_dir_all(&home).expect("removes");
        copy_dir(&good, &home);
        let relative = file.strip_prefix(&good).expect("within");
        if how != "nothing" {
            damage(&home.join(relative), how);
        }
        let before = tree(&home);
        for command in commands {
            let output = fleet.run(name, command);
            let after = tree(&home);
            if before != after {
                let names = |tree: &BTreeMap<PathBuf, Option<Vec<u8>>>| tree.keys().cloned().collect::<Vec<_>>();
                let changed: Vec<_> = after.iter().filter(|(path, file)| before.get(*path) != Some(file)).collect();
                panic!(
                    "{command:?} changed {:?} after {} was {how}: {:?} became {:?}; it printed {}",
                    changed.iter().map(|(path, _)| path).collect::<Vec<_>>(),
                    relative.display(),
                    names(&before),
                    names(&after),
                    String::from_utf8_lossy(&output.stderr)
                );
            }
        }
    }
}

#[test]
fn p13_reading_commands_leave_the_directory_of_a_member_unchanged() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let a = fleet.member("a");
    for number in 0..5 {
        fleet.ok("a", &["put", "c", &format!("k{number}"), "--value", "1"]);
    }
    fleet.converges(&["a"]);
    datastore.kill();
    // A change is pending in the outbox.
    fleet.ok("a", &["put", "c", "k9", "--value", "9", "--no-wait"]);
    a.terminate();
    let commands: [&[&str]; 7] =
        [&["verify"], &["status"], &["export"], &["ls", "c"], &["get", "c", "k1"], &["tail"], &["outbox"]];
    leave_as_it_is(&fleet, "a", &commands);
}

#[test]
fn p13_commands_that_inspect_contents_or_copy_a_log_leave_a_stopped_directory_unchanged() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    let mut web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let made = admin.made("/api/resources", &serde_json::json!({ "ResourceName": "r" }));
    let raw = format!("/api/resources/{}/raw", made["GUID"].as_str().expect("a GUID"));
    assert_eq!(admin.upload("PUT", &raw, "file", &[7; 300_000][..]).status, 200);
    fleet.converges(&["a"]);
    fleet.wait("the contents have arrived", || fleet.ok("d", &["blobs", "verify"]).contains("no damage found"));
    web.stop();
    datastore.terminate();
    let backups = fleet.dir("backups");
    let backup = ["backup", "create", backups.to_str().expect("text"), "--new-place"];
    let blobs: [&[&str]; 4] =
        [&["blobs", "list"], &["blobs", "stats"], &["blobs", "verify"], &["blobs", "gc", "--dry-run"]];
    let of_datastore = blobs.into_iter().chain([&["compact", "--dry-run"] as &[&str], &backup]);
    let all = of_datastore.map(|command| ("d", command)).chain(blobs.into_iter().map(|command| ("a", command)));
    // The first backup creates the key, and records that the repository is encrypted.
    fleet.ok("d", &backup);
    std::fs::remove_dir_all(&backups).expect("wipes");
    for (name, command) in all {
        let before = tree(&fleet.dir(name));
        fleet.ok(name, command);
        assert!(tree(&fleet.dir(name)) == before, "{command:?} changed the directory of {name}");
    }
    // The backup is complete.
    fleet.ok("d", &["backup", "verify", backups.to_str().expect("text")]);
}
