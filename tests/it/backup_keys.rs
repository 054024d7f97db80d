//! The backup key: created once, stored apart from the backups, recovered, and named when it is missing.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gravwell_transport::trust::RecoveryKey;
use serde_json::Value;

use crate::fleet::{Fleet, History};
use crate::recover::key_of;

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("lists").map(|entry| entry.expect("entry").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

fn holds(place: &str, text: &str) -> bool {
    let text = text.as_bytes();
    let has = |file: &PathBuf| std::fs::read(file).expect("reads").windows(text.len()).any(|found| found == text);
    files(Path::new(place)).iter().any(has)
}

#[test]
fn p11_backups_are_encrypted_by_default_and_open_only_with_their_key() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let (secret, place) = ("a-value-that-must-stay-secret", fleet.dir("backups").display().to_string());
    fleet.ok("d", &["put", "c", "k", "--value", &format!("\"{secret}\"")]);
    let export = fleet.export("d");
    let first = fleet.run("d", &["backup", "create", &place]);
    assert!(first.status.success(), "{first:?}");
    let said = String::from_utf8_lossy(&first.stderr).into_owned();
    let printed = fleet.json("d", &["backup", "key"]);
    let (key, name) = (printed["backup_key"].as_str().expect("a key"), printed["key"].as_str().expect("its name"));
    for part in [name, &fleet.backup_key(), "away from this host", "backup key"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(String::from_utf8_lossy(&first.stdout).contains(&format!("encrypted with the key {name}")), "{first:?}");
    assert_eq!(std::fs::metadata(fleet.backup_key()).expect("is there").permissions().mode() & 0o777, 0o600);
    for text in [secret, "seg-", key] {
        assert!(!holds(&place, text), "{text} is in the clear");
    }
    let again = fleet.run("d", &["backup", "create", &place]);
    assert!(
        again.status.success() && !String::from_utf8_lossy(&again.stderr).contains("created the backup key"),
        "{again:?}"
    );

    // On another host the backup opens only with that key, and the error names the missing key.
    let (missing, other) =
        (fleet.dir("r/backup.key").display().to_string(), fleet.dir("other.key").display().to_string());
    let elsewhere = fleet.dir("elsewhere").display().to_string();
    let of_other = fleet.json("d", &["backup", "create", &elsewhere, "--key-file", &other]);
    let of_other = of_other["key"].as_str().expect("its name");
    for command in [&["restore"][..], &["backup", "list"], &["backup", "verify"]] {
        let said = fleet.refused("r", &[command, &[&place]].concat());
        assert!(said.contains(name) && said.contains(&missing) && said.contains("--key-file"), "{said}");
        let said = fleet.refused("r", &[command, &[&place, "--key-file", &other]].concat());
        assert!(said.contains(name) && said.contains(of_other), "{said}");
    }
    assert!(!fleet.dir("r/log").exists() && !Path::new(&missing).exists(), "nothing was created");
    fleet.ok("r", &["restore", &place, "--key-file", &fleet.backup_key()]);
    assert_eq!(fleet.export("r"), export);
}

#[test]
fn p13_a_backup_key_lost_with_its_disk_is_restored_with_the_recovery_key() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let place = fleet.dir("backups").display().to_string();
    let file = fleet.write_file("in.jsonl", &History::new(41, 800, 200).lines);
    fleet.ok("d", &["import", file.to_str().expect("text")]);
    let made = fleet.json("d", &["backup", "create", &place]);
    let (export, recovery) = (fleet.export("d"), key_of(&fleet));
    let backup_key = std::fs::read_to_string(fleet.backup_key()).expect("reads");

    // If only the key file is lost, the recovery key opens the encrypted copy stored with the backups.
    std::fs::remove_file(fleet.backup_key()).expect("removes");
    fleet.ok("d", &["backup", "list", &place]);
    assert!(!Path::new(&fleet.backup_key()).exists(), "a command that reads changes nothing");
    let again = fleet.run("d", &["backup", "create", &place]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("from its encrypted copy"), "{again:?}");
    assert_eq!(std::fs::read_to_string(fleet.backup_key()).expect("reads"), backup_key);

    // The disk is lost.
    datastore.kill();
    std::fs::remove_dir_all(fleet.dir("d")).expect("wipes");
    let said = fleet.refused("d", &["restore", &place]);
    assert!(said.contains(made["key"].as_str().expect("its name")) && said.contains("--recovery-key"), "{said}");
    let another = RecoveryKey::open_or_create(&fleet.dir("another")).expect("makes").to_string();
    let said = fleet.refused("d", &["restore", &place, "--recovery-key", &another]);
    assert!(said.contains("recovery key"), "{said}");
    let restored = fleet.json("d", &["restore", &place, "--recovery-key", &recovery]);
    assert_eq!(restored["backup_key"], made["key"]);
    assert_eq!(fleet.export("d"), export);
    assert_eq!(std::fs::read_to_string(fleet.backup_key()).expect("reads"), backup_key);
    assert_eq!(std::fs::metadata(fleet.backup_key()).expect("is there").permissions().mode() & 0o777, 0o600);
    let _datastore = fleet.datastore();
    fleet.ok("d", &["put", "c", "later", "--value", "1"]);
    let next = fleet.json("d", &["backup", "create", &place]);
    assert_eq!(next["key"], made["key"], "the chain continues under its key");
    fleet.ok("d", &["backup", "verify", &place, "--all"]);
}

#[test]
fn p11_a_location_is_unencrypted_only_on_request_and_never_changes() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let at = |name: &str| fleet.dir(name).display().to_string();
    let (plain, encrypted) = (at("plain"), at("encrypted"));
    let secret = "a-value-that-is-not-hidden";
    fleet.ok("d", &["put", "c", "k", "--value", &format!("\"{secret}\"")]);
    let asked = fleet.run("d", &["backup", "create", &plain, "--plain"]);
    assert!(
        asked.status.success() && !String::from_utf8_lossy(&asked.stderr).contains("is not encrypted"),
        "{asked:?}"
    );
    assert!(String::from_utf8_lossy(&asked.stdout).contains("NOT ENCRYPTED"), "{asked:?}");
    assert!(holds(&plain, secret) && !Path::new(&fleet.backup_key()).exists());

    // An unencrypted backup repository stays unencrypted, and each backup warns about it.
    fleet.ok("d", &["put", "c", "k2", "--value", "1"]);
    let next = fleet.run("d", &["backup", "create", &plain, "--json"]);
    let said = String::from_utf8_lossy(&next.stderr).into_owned();
    assert!(next.status.success() && said.contains("is not encrypted") && said.contains("another place"), "{next:?}");
    let made: Value = serde_json::from_slice(&next.stdout).expect("JSON");
    assert_eq!((&made["encryption"], &made["key"]), (&"none".into(), &Value::Null));
    assert!(!Path::new(&fleet.backup_key()).exists(), "no unnecessary key is created");
    fleet.ok("x", &["backup", "verify", &plain, "--all"]);

    // An encrypted repository does not become unencrypted.
    assert_eq!(fleet.json("d", &["backup", "create", &encrypted])["encryption"], "key");
    let said = fleet.refused("d", &["backup", "create", &encrypted, "--plain"]);
    assert!(said.contains("already encrypted"), "{said}");
    let mut asked = fleet.command("d", &["backup", "create", &at("third"), "--json"]);
    let asked = asked.env("GRAVWELL_BACKUP_PLAIN", "true").output().expect("runs");
    let made: Value = serde_json::from_slice(&asked.stdout).expect("JSON");
    assert_eq!(made["encryption"], "none");

    // A key stored next to the backups does not protect them.
    let parent = fleet.dir("d").parent().expect("a parent").display().to_string();
    for (place, flags) in [(&parent, &[][..]), (&at("fourth"), &["--key-file", &at("fourth/../fourth/key")])] {
        let said = fleet.refused("d", &[&["backup", "create", place][..], flags].concat());
        assert!(said.contains("next to the backups"), "{said}");
    }
    assert!(!fleet.dir("fourth").exists() && !fleet.dir("gravwell-backup.json").exists());
}

/// Header file of an unencrypted repository.
const PLAIN_HEAD: &str =
    r#"{"gravwell-backup-repository":1,"id":"00112233445566778899aabbccddeeff","salt":null,"proof":null}"#;

#[test]
fn p11_a_location_that_claims_to_be_unencrypted_now_is_rejected() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let place = fleet.dir("backups").display().to_string();
    fleet.ok("d", &["put", "c", "k", "--value", "1"]);
    let made = fleet.json("d", &["backup", "create", &place]);
    let (key, recovery) = (made["key"].as_str().expect("its name").to_owned(), key_of(&fleet));
    let said = fleet.ok("d", &["backup", "list", &place]);
    assert!(said.contains(&format!("encrypted with the backup key {key}")), "{said}");

    // An attacker with write access replaces the repository.
    let head = fleet.dir("backups/gravwell-backup.json");
    let good = std::fs::read(&head).expect("reads");
    std::fs::remove_dir_all(&place).expect("wipes");
    std::fs::create_dir_all(&place).expect("makes");
    std::fs::write(&head, PLAIN_HEAD).expect("writes");
    let secret = "a-value-that-must-stay-secret";
    fleet.ok("d", &["put", "c", "k", "--value", &format!("\"{secret}\"")]);
    let commands: [&[&str]; 5] = [
        &["backup", "create", &place],
        &["backup", "list", &place],
        &["backup", "verify", &place],
        &["backup", "prune", &place, "--keep-last", "1"],
        &["restore", &place, "--replace"],
    ];
    let are_refused = |why: &str| {
        for command in commands {
            let said = fleet.refused("d", command);
            for part in ["is not encrypted", why, "--plain"] {
                assert!(said.contains(part), "{command:?}: {part}: {said}");
            }
        }
        assert!(!holds(&place, secret), "nothing was written in the clear");
    };
    are_refused(&format!("it was encrypted with the backup key {key}"));
    // Either the recorded note or the key itself is enough to detect the replacement.
    let (notes, file) = (fleet.dir("d/backup.places"), fleet.backup_key());
    let noted = std::fs::read(&notes).expect("reads");
    std::fs::remove_file(&notes).expect("removes");
    are_refused(&format!("the backup key {key} is here"));
    std::fs::write(&notes, noted).expect("writes");
    std::fs::rename(&file, fleet.dir("elsewhere.key")).expect("moves");
    are_refused("when it was last used from here");
    // On a host without this knowledge, a given recovery key makes the command ask.
    let said = fleet.refused("r", &["restore", &place, "--recovery-key", &recovery]);
    assert!(said.contains("the recovery key was given") && said.contains("--plain"), "{said}");
    assert!(!fleet.dir("r/log").exists());

    // An unencrypted repository is created only on explicit request. A restore first reports the encryption of its source.
    fleet.ok("d", &["backup", "create", &place, "--plain"]);
    assert!(holds(&place, secret));
    assert!(fleet.ok("d", &["backup", "list", &place, "--plain"]).contains("NOT ENCRYPTED"));
    std::fs::remove_dir_all(&place).expect("wipes");
    std::fs::rename(fleet.dir("elsewhere.key"), &file).expect("moves back");
    fleet.ok("d", &["backup", "create", &place, "--new-place"]);
    assert_ne!(std::fs::read(&head).expect("reads"), good, "another one, encrypted as before");
    datastore.kill();
    let said = fleet.ok("d", &["restore", &place, "--replace"]);
    let first = said.lines().next().expect("a line");
    assert!(first.contains(&format!("encrypted with the backup key {key}")), "{said}");
}

#[test]
fn a_continuous_backup_is_encrypted_or_not_according_to_the_configuration() {
    for (setting, encryption) in [("Datastore-Backup-Key-File={}", "key"), ("Datastore-Backup-Plain=true", "none")] {
        let mut fleet = Fleet::new();
        let (place, key) = (fleet.dir("archive").display().to_string(), fleet.dir("keys.backup").display().to_string());
        let setting = setting.replace("{}", &key);
        let file = fleet.write_file("gravwell.conf", &format!("[Global]\nDatastore-Archive={place}\n{setting}\n"));
        fleet.datastore_flags = vec!["--config".into(), file.display().to_string()];
        let _datastore = fleet.datastore();
        fleet.ok("d", &["put", "c", "k", "--value", "\"found-by-a-search\""]);
        let list = |flags: &[&str]| fleet.run("x", &[&["backup", "list", &place][..], flags].concat()).status.success();
        let flags: &[&str] = if encryption == "key" { &["--key-file", &key] } else { &[] };
        fleet.wait("the continuous backup starts", || list(flags));
        assert_eq!(list(&[]), encryption == "none");
        assert_eq!(Path::new(&key).exists(), encryption == "key");
        assert!(!Path::new(&fleet.backup_key()).exists(), "the key is at the configured path");
    }
}

/// Number of kills, spread over the duration of a first backup.
const KILLS: u32 = 12;

#[test]
fn p11_a_first_backup_killed_at_any_point_leaves_no_location_without_its_key() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let file = fleet.write_file("in.jsonl", &History::new(42, 1_500, 600).lines);
    fleet.ok("d", &["import", file.to_str().expect("text")]);
    let place = fleet.dir("backups").display().to_string();
    let create = ["backup", "create", &place, "--new-place"];
    let started = Instant::now();
    fleet.ok("d", &create);
    let whole = started.elapsed();
    for moment in 0..KILLS {
        std::fs::remove_dir_all(&place).expect("wipes");
        std::fs::remove_file(fleet.backup_key()).expect("removes");
        let mut child = fleet.command("d", &create).spawn().expect("starts");
        std::thread::sleep(Duration::max(whole * moment / KILLS, Duration::from_millis(1)));
        let _ = child.kill();
        child.wait().expect("waits");
        let was_begun = Path::new(&place).join("gravwell-backup.json").exists();
        assert!(!was_begun || Path::new(&fleet.backup_key()).exists(), "kill {moment}: the key comes first");
        fleet.ok("d", &create);
        fleet.ok("d", &["backup", "verify", &place, "--all"]);
    }
}

#[test]
fn p11_a_damaged_head_of_a_place_is_named_by_verify_until_it_was_written_again() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let place = fleet.dir("backups").display().to_string();
    fleet.ok("d", &["put", "c", "k", "--value", "1"]);
    fleet.ok("d", &["backup", "create", &place]);
    for name in ["gravwell-backup.json", "gravwell-backup.copy"] {
        let file = fleet.dir("backups").join(name);
        let good = std::fs::read(&file).expect("reads");
        std::fs::write(&file, &good[..good.len() / 2]).expect("writes");
        let found = fleet.run("d", &["backup", "verify", &place]);
        let said = String::from_utf8_lossy(&found.stderr);
        assert_eq!(found.status.code(), Some(3), "{said}");
        assert!(said.contains(name) && said.contains("backup create"), "{said}");
        let prune = ["backup", "prune", &place, "--keep-last", "5"];
        for command in [&["backup", "create", &place][..], &["backup", "list", &place], &prune] {
            let found = fleet.run("d", command);
            let said = String::from_utf8_lossy(&found.stderr);
            assert!(found.status.code() == Some(3) && said.contains(name), "{command:?}: {found:?}");
        }
        std::fs::remove_file(&file).expect("removes");
        let made = fleet.run("d", &["backup", "create", &place]);
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success() && said.contains(name) && said.contains("was rewritten"), "{made:?}");
        assert_eq!(std::fs::read(&file).expect("is restored"), good);
        fleet.ok("d", &["backup", "verify", &place]);
    }
}

#[test]
fn p13_a_place_that_is_not_mounted_is_not_taken_for_a_new_one() {
    for plain in [&[][..], &["--plain"]] {
        let mut fleet = Fleet::new();
        let datastore = fleet.datastore();
        let place = fleet.dir("backups").display().to_string();
        let create = [&["backup", "create", &place][..], plain].concat();
        fleet.ok("d", &["put", "c", "k", "--value", "1"]);
        fleet.ok("d", &create);
        std::fs::rename(&place, fleet.dir("disk")).expect("unmounts");
        for is_there in [false, true] {
            if is_there {
                std::fs::create_dir(&place).expect("makes the mount point");
            }
            let said = fleet.refused("d", &create);
            assert!(said.contains("is it mounted?") && said.contains("--new-place"), "{said}");
            let said = fleet.refused("d", &[&["backup", "list", &place][..], plain].concat());
            assert!(said.contains("is it mounted?"), "{said}");
            assert!(!Path::new(&place).join("gravwell-backup.json").exists(), "no repository was created");
        }
        // The continuous backup does not begin a new place either, and the status reports it.
        datastore.terminate();
        fleet.datastore_flags = vec!["--archive".into(), place.clone()];
        let _datastore = fleet.datastore();
        fleet.wait("the status reports it", || fleet.status("d")["health"].to_string().contains("archive_behind"));
        let status = fleet.run("d", &["status"]);
        let said = String::from_utf8_lossy(&status.stdout).into_owned() + &String::from_utf8_lossy(&status.stderr);
        assert!(status.status.code() == Some(1) && said.contains("is it mounted?"), "{status:?}");
        assert!(!Path::new(&place).join("gravwell-backup.json").exists(), "no repository was created");
        std::fs::remove_dir(&place).expect("removes the mount point");
        std::fs::rename(fleet.dir("disk"), &place).expect("mounts");
        fleet.ok("d", &["put", "c", "k", "--value", "2"]);
        fleet.ok("d", &create);
        std::fs::remove_dir_all(&place).expect("wipes");
        fleet.ok("d", &[&create[..], &["--new-place"]].concat());
    }
}

#[test]
fn p13_a_copy_of_the_backup_key_that_no_longer_opens_is_named_by_verify() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let place = fleet.dir("backups").display().to_string();
    fleet.ok("d", &["put", "c", "k", "--value", "1"]);
    fleet.ok("d", &["backup", "create", &place]);
    let recovery = key_of(&fleet);
    let sealed = files(&fleet.dir("backups/keys")).pop().expect("a copy");
    let good = std::fs::read(&sealed).expect("reads");
    let name = sealed.file_name().and_then(|name| name.to_str()).expect("text");
    for damage in ["cut", "flipped", "removed"] {
        match damage {
            "cut" => std::fs::write(&sealed, &good[..40]).expect("writes"),
            "flipped" => {
                let mut bad = good.clone();
                bad[30] ^= 1;
                std::fs::write(&sealed, bad).expect("writes");
            }
            _ => std::fs::remove_file(&sealed).expect("removes"),
        }
        let found = fleet.run("d", &["backup", "verify", &place]);
        let said = String::from_utf8_lossy(&found.stderr);
        assert_eq!(found.status.code(), Some(3), "{damage}: {said}");
        assert!(said.contains(name) && said.contains("backup create"), "{damage}: {said}");
        let restored = fleet.run("r", &["restore", &place, "--recovery-key", &recovery]);
        let (code, said) = (if damage == "removed" { 1 } else { 3 }, String::from_utf8_lossy(&restored.stderr));
        assert_eq!(restored.status.code(), Some(code), "{damage}: {said}");
        assert!(code == 1 || (said.contains(name) && said.contains("is damaged")), "{damage}: {said}");
        fleet.ok("d", &["backup", "create", &place]);
        fleet.ok("d", &["backup", "verify", &place]);
    }
    fleet.ok("r", &["restore", &place, "--recovery-key", &recovery]);
}
