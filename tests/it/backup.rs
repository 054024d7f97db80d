//! Backups: created under load, restored to any point in time, verified, and rejected when corrupt; and reverting without
//! a backup.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::fleet::{Fleet, History, Process, Rng, from_env};

fn json(fleet: &Fleet, name: &str, arguments: &[&str]) -> Value {
    let text = fleet.ok(name, &[arguments, &["--json"]].concat());
    serde_json::from_str(&text).expect("JSON")
}

/// Returns a datastore with small segments, a member, and a path for backups.
fn fleet() -> (Fleet, Process, Process, String) {
    let mut fleet = Fleet::new();
    fleet.datastore_flags = ["--segment-mb", "1", "--history-ops", "100000"].map(String::from).into();
    let datastore = fleet.datastore();
    let a = fleet.member("a");
    let place = fleet.dir("backups").to_str().unwrap().to_owned();
    (fleet, datastore, a, place)
}

fn head(fleet: &Fleet) -> u64 {
    fleet.status("d")["head"].as_u64().unwrap()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("lists").map(|entry| entry.expect("entry").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Waits until a follows a generation after `former`.
fn follows(fleet: &Fleet, former: u64) {
    fleet.wait("a follows", || {
        let status = fleet.status("a");
        status["generation"].as_u64() > Some(former) && status["connected"] == true
    });
}

/// Checks that the states at these sequences, restored from `place`, equal the earlier output of `export --at`.
fn moments_are_restored(fleet: &Fleet, place: &str, moments: &[(u64, String)]) {
    for (seq, export) in moments {
        let name = format!("restored-{seq}");
        let key = fleet.backup_key();
        let restored = json(fleet, &name, &["restore", place, "--key-file", &key, "--at", &seq.to_string()]);
        assert_eq!(restored["seq"], *seq);
        assert_eq!(&fleet.export(&name), export, "as of {seq}");
        assert!(fleet.status(&name)["generation"].as_u64() > Some(1));
        fleet.ok(&name, &["verify"]);
    }
}

#[test]
fn p10_a_backup_under_load_is_consistent_and_any_point_in_time_can_be_restored() {
    let (fleet, _datastore, _a, place) = fleet();
    let history = History::new(21, from_env("GRAVWELL_BACKUP_OPS", 6_000), 900);
    let file = fleet.write_file("in.jsonl", &history.lines);
    fleet.ok("a", &["put", "c", "first", "--value", "1"]);
    let mut import = fleet.command("a", &["import", file.to_str().unwrap()]).spawn().expect("starts");
    let mut made = Vec::new();
    for _ in 0..3 {
        made.push(json(&fleet, "d", &["backup", "create", &place]));
    }
    assert!(import.wait().expect("waits").success());
    fleet.converges(&["a"]);
    made.push(json(&fleet, "d", &["backup", "create", &place]));
    fleet.ok("a", &["put", "c", "last", "--value", "1"]);
    made.push(json(&fleet, "d", &["backup", "create", &place]));
    let last = made.last().unwrap();
    assert!(last["new_bytes"].as_u64() < last["bytes"].as_u64(), "it is incremental: {last}");
    assert_eq!(json(&fleet, "d", &["backup", "create", &place])["is_new"], false);

    let mut dice = Rng::new(from_env("GRAVWELL_SEED", 21));
    let moments: Vec<(u64, String)> = (0..3)
        .map(|_| 1 + dice.below(head(&fleet)))
        .map(|seq| (seq, fleet.ok("d", &["export", "--at", &seq.to_string()])))
        .collect();
    // Entries that the log compacts away remain in the backups.
    fleet.ok("d", &["compact", "--history-ops", "0"]);
    let after = json(&fleet, "d", &["backup", "create", &place]);
    assert!(after["horizon"].as_u64() > Some(0), "{after}");
    moments_are_restored(&fleet, &place, &moments);
    let verified = fleet.ok("d", &["backup", "verify", &place, "--all", "--json"]);
    let digests: Vec<Value> = verified.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(digests.len(), made.len() - made.iter().filter(|made| made["is_new"] == false).count() + 1);
    assert_eq!(digests.last().unwrap()["digest"], fleet.status("d")["digest"]);
    assert_eq!(fleet.export("d"), fleet.export("a"));

    // Only the last backup is kept and is complete; positions before its horizon are no longer covered.
    let rehearsed = json(&fleet, "d", &["backup", "prune", &place, "--keep-last", "1", "--dry-run"]);
    let pruned = json(&fleet, "d", &["backup", "prune", &place, "--keep-last", "1"]);
    assert_eq!(rehearsed["removed"], pruned["removed"]);
    assert!(pruned["pieces"].as_u64() > Some(0));
    fleet.ok("d", &["backup", "verify", &place]);
    let key = fleet.backup_key();
    let refused = fleet.run("late", &["restore", &place, "--key-file", &key, "--at", "1"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("can be restored"), "{refused:?}");
    assert_eq!(fleet.run("d", &["backup", "prune", &place]).status.code(), Some(1), "keeping no backup is rejected");

    // A corrupt pack file is named, and nothing is restored.
    let pieces = files(&fleet.dir("backups/pieces"));
    let piece = &pieces[dice.below(pieces.len() as u64) as usize];
    let mut bytes = std::fs::read(piece).expect("reads");
    let at = dice.below(bytes.len() as u64) as usize;
    bytes[at] ^= 1;
    std::fs::write(piece, bytes).expect("writes");
    let name = piece.file_name().unwrap().to_str().unwrap();
    for command in [&["backup", "verify"][..], &["restore"]] {
        let refused = fleet.run("damaged", &[command, &[&place, "--key-file", &key]].concat());
        assert_eq!(refused.status.code(), Some(3), "{refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains(name), "{refused:?}");
    }
    assert!(!fleet.dir("damaged/log").exists());
}

#[test]
fn p05_members_follow_a_restore_in_place_and_archive_their_later_changes() {
    let (fleet, datastore, _a, place) = fleet();
    fleet.ok("a", &["put", "c", "x", "--value", "1"]);
    fleet.ok("a", &["put", "c", "z", "--value", "1"]);
    let (good, seq) = (fleet.converges(&["a"]), head(&fleet).to_string());
    fleet.ok("a", &["put", "c", "x", "--value", "2"]);
    fleet.ok("a", &["delete", "c", "z"]);
    fleet.ok("d", &["put", "c", "y", "--value", "3"]);
    fleet.converges(&["a"]);
    fleet.ok("d", &["backup", "create", &place]);
    let key = fleet.ok("d", &["authority", "recovery-key"]).trim().to_owned();
    let running = fleet.run("d", &["restore", &place, "--at", &seq, "--replace"]);
    assert!(String::from_utf8_lossy(&running.stderr).contains("stop the datastore"), "{running:?}");
    datastore.terminate();
    let refused = fleet.run("d", &["restore", &place, "--at", &seq]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--replace"), "{refused:?}");
    fleet.ok("d", &["restore", &place, "--at", &seq, "--dry-run", "--replace"]);
    fleet.ok("a", &["put", "c", "pending", "--value", "4", "--no-wait"]);
    fleet.ok("d", &["restore", &place, "--at", &seq, "--replace"]);

    let datastore = fleet.datastore();
    follows(&fleet, 1);
    let second = fleet.status("d")["generation"].as_u64().unwrap();
    let now = fleet.converges(&["a"]);
    assert_eq!(
        now.lines().filter(|line| !line.contains("\"pending\"")).collect::<Vec<_>>(),
        good.lines().collect::<Vec<_>>()
    );
    assert!(now.contains("\"pending\""), "pending changes are pushed");
    let set = fleet.ok("a", &["quarantine", "list", "--json"]);
    let set: Value = serde_json::from_str(&set).expect("one set");
    assert_eq!((&set["restore"], &set["changes"]), (&true.into(), &3.into()));
    assert!(fleet.ok("d", &["generations"]).contains("restored"));

    // The same on a new host: the CA is restored from the backup.
    fleet.ok("d", &["backup", "create", &place]);
    datastore.kill();
    std::fs::remove_dir_all(fleet.dir("d")).expect("wipes");
    let restored = json(&fleet, "d", &["restore", &place, "--recovery-key", &key]);
    assert_eq!(restored["authority"], "restored");
    let _datastore = fleet.datastore();
    follows(&fleet, second);
    assert_eq!(fleet.converges(&["a"]), now);
    fleet.ok("a", &["put", "c", "after", "--value", "1"]);
    fleet.ok("d", &["verify"]);
}

#[test]
fn p05_a_backup_restored_twice_starts_two_generations_that_members_distinguish() {
    let (fleet, datastore, a, place) = fleet();
    fleet.ok("a", &["put", "c", "x", "--value", "1"]);
    fleet.converges(&["a"]);
    fleet.ok("d", &["backup", "create", &place]);
    datastore.terminate();
    let restore = || json(&fleet, "d", &["restore", &place, "--replace"])["generation"].as_u64().unwrap();
    let first = restore();
    let datastore = fleet.datastore();
    follows(&fleet, 1);
    for value in 1..=3 {
        fleet.ok("a", &["put", "c", "first", "--value", &value.to_string()]);
    }
    fleet.converges(&["a"]);
    a.terminate();
    datastore.terminate();
    // As on a host that has never seen the first restore: the log that would reveal it is missing.
    std::fs::remove_dir_all(fleet.dir("d/log")).expect("removes");
    std::fs::remove_file(fleet.dir("d/generations.json")).expect("removes");
    // Generations created independently are numbered by the clock and random bits.
    let second = restore();
    assert!(second > first && second < 1 << 53, "{first}, {second}");
    let _datastore = fleet.datastore();
    for value in 1..=9 {
        fleet.ok("d", &["put", "c", "second", "--value", &value.to_string()]);
    }
    fleet.ok("d", &["compact", "--history-ops", "0"]);
    let _a = fleet.replica("a");
    follows(&fleet, first);
    let export = fleet.converges(&["a"]);
    assert!(export.contains("\"second\"") && !export.contains("\"first\""), "{export}");
    let set = fleet.ok("a", &["quarantine", "list", "--json"]);
    let set: Value = serde_json::from_str(&set).expect("one set");
    assert_eq!((&set["restore"], &set["changes"]), (&true.into(), &1.into()), "its changes are not lost");
}

#[test]
fn p11_a_restore_reinstates_no_revoked_member_and_skips_a_corrupt_manifest() {
    let (fleet, datastore, _a, place) = fleet();
    fleet.enroll("b", "webserver");
    fleet.ok("d", &["enroll", "c"]);
    let key = fleet.ok("d", &["authority", "recovery-key"]).trim().to_owned();
    let first = json(&fleet, "d", &["backup", "create", &place]);
    fleet.ok("d", &["revoke", "b"]);
    let second = json(&fleet, "d", &["backup", "create", &place]);
    assert_eq!(second["is_new"], true, "only the members have changed");
    let third = {
        fleet.ok("a", &["put", "c", "k", "--value", "1"]);
        json(&fleet, "d", &["backup", "create", &place])
    };
    let manifest = fleet.dir("backups/manifests").join(third["backup"].as_str().unwrap());
    let good = std::fs::read(&manifest).expect("reads");
    let mut bad = good.clone();
    bad[9] ^= 1;
    std::fs::write(&manifest, bad).expect("writes");
    let listed = fleet.run("d", &["backup", "list", &place, "--json"]);
    assert_eq!((listed.status.code(), String::from_utf8_lossy(&listed.stdout).lines().count()), (Some(3), 2));
    assert!(String::from_utf8_lossy(&listed.stderr).contains(third["backup"].as_str().unwrap()));
    let refused = fleet.run("d", &["backup", "prune", &place, "--keep-last", "1"]);
    assert_eq!(refused.status.code(), Some(3), "the required chunks are unknown");
    fleet.ok("d", &["backup", "create", &place]);
    datastore.kill();
    std::fs::remove_dir_all(fleet.dir("d")).expect("wipes");
    let key_file = fleet.write_file("key", &key);
    let flags = ["--backup", first["backup"].as_str().unwrap(), "--recovery-key-file", key_file.to_str().unwrap()];
    fleet.ok("d", &[&["restore", &place][..], &flags].concat());
    let members = fleet.ok("d", &["members", "--json"]);
    let state = |name: &str| {
        let lines = members.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        lines.filter(|line| line["name"] == name).map(|line| line["state"].clone()).next()
    };
    assert_eq!((state("a"), state("b"), state("c")), (Some("enrolled".into()), Some("revoked".into()), None));
}

#[test]
fn p13_a_damaged_manifest_of_a_later_backup_stops_a_restore_without_a_named_backup() {
    let (fleet, _datastore, _a, place) = fleet();
    fleet.enroll("b", "webserver");
    let key = fleet.ok("d", &["authority", "recovery-key"]).trim().to_owned();
    let create = || json(&fleet, "d", &["backup", "create", &place])["backup"].as_str().unwrap().to_owned();
    fleet.ok("d", &["put", "c", "k", "--value", "1"]);
    let (first, seq) = (create(), head(&fleet));
    fleet.ok("d", &["revoke", "b"]);
    let revoked = create();
    fleet.ok("d", &["put", "c", "k", "--value", "2"]);
    let further = create();
    let damage = |id: &str| {
        let path = fleet.dir("backups/manifests").join(id);
        let mut bytes = std::fs::read(&path).expect("reads");
        bytes[9] ^= 1;
        std::fs::write(path, bytes).expect("writes");
    };
    // The member registry comes from the latest backup, whatever point in time the state is from.
    let at = seq.to_string();
    let refused = |named: &str| {
        for flags in [&[][..], &["--dry-run"], &["--at", &at]] {
            let restored = fleet.run("r", &[&["restore", &place, "--recovery-key", &key][..], flags].concat());
            let said = String::from_utf8_lossy(&restored.stderr);
            assert_eq!(restored.status.code(), Some(3), "{said}");
            assert!(said.contains(named) && said.contains("--backup"), "{said}");
        }
        assert!(!fleet.dir("r/log").exists());
    };
    // One reaches further; the other one has the same end, but was written later.
    damage(&further);
    refused(&further);
    damage(&revoked);
    refused(&revoked);
    let named: [&[&str]; 2] = [&["--backup", &first], &["--backup", &first, "--at", &at]];
    for (number, flags) in named.into_iter().enumerate() {
        let arguments = [&["restore", &place, "--recovery-key", &key][..], flags].concat();
        let restored = json(&fleet, &format!("r{number}"), &arguments);
        let passed: Vec<_> = restored["passed_over"].as_array().unwrap().iter().map(|one| &one["backup"]).collect();
        assert_eq!(
            (&restored["backup"], passed),
            (&first.clone().into(), vec![&revoked.clone().into(), &further.clone().into()])
        );
    }
    // A later backup leaves nothing out.
    create();
    assert_eq!(
        json(&fleet, "r", &["restore", &place, "--recovery-key", &key])["passed_over"].as_array().unwrap().len(),
        2
    );
}

#[test]
fn p11_an_encrypted_backup_opens_with_its_passphrase_only() {
    let (fleet, _datastore, _a, place) = fleet();
    let secret = "a-value-that-must-stay-secret";
    fleet.ok("a", &["put", "c", "k", "--value", &format!("\"{secret}\"")]);
    let export = fleet.converges(&["a"]);
    let (right, wrong) = (fleet.write_file("right", "correct horse\n"), fleet.write_file("wrong", "battery\n"));
    let (right, wrong) = (right.to_str().unwrap(), wrong.to_str().unwrap());
    fleet.ok("d", &["backup", "create", &place, "--passphrase-file", right]);
    for file in files(Path::new(&place)) {
        let bytes = std::fs::read(&file).expect("reads");
        let is_in = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
        assert!(!is_in(secret.as_bytes()) && !is_in(b"seg-"), "{}", file.display());
    }
    for flags in [&["--passphrase-file", wrong][..], &[]] {
        let refused = fleet.run("r", &[&["restore", &place], flags].concat());
        assert_eq!(refused.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&refused.stderr).contains("passphrase"), "{refused:?}");
    }
    fleet.ok("r", &["restore", &place, "--passphrase-file", right]);
    assert_eq!(fleet.export("r"), export);
}

#[test]
fn a_continuous_backup_follows_the_datastore() {
    let mut fleet = Fleet::new();
    let place = fleet.dir("archive").to_str().unwrap().to_owned();
    fleet.datastore_flags = ["--archive", &place].map(String::from).into();
    let _datastore = fleet.datastore();
    let _a = fleet.member("a");
    fleet.wait("the continuous backup starts", || fleet.run("d", &["backup", "list", &place]).status.success());
    let mut follower = fleet.command("d", &["backup", "create", &place, "--follow", "--every", "1"]);
    let _follower = Process::begin(
        {
            follower.env("RUST_LOG", "off");
            follower
        },
        &fleet.dir("follow.log"),
    );
    fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    let export = fleet.converges(&["a"]);
    let head = head(&fleet);
    fleet.wait("the continuous backup has it", || {
        let list = fleet.ok("x", &["backup", "list", &place, "--key-file", &fleet.backup_key(), "--json"]);
        list.lines().any(|line| line.contains(&format!("\"to\":{head}")))
    });
    assert!(fleet.log_of("d").contains("created the backup key"), "the operator is notified");
    fleet.ok("r", &["restore", &place, "--key-file", &fleet.backup_key()]);
    assert_eq!(fleet.export("r"), export);
}

#[test]
fn p13_a_follower_that_may_begin_a_new_place_begins_only_one() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let place = fleet.dir("place");
    let shown = place.display().to_string();
    fleet.ok("d", &["put", "c", "a", "--value", "1"]);
    fleet.ok("d", &["backup", "create", &shown]);
    // A new disk is mounted there.
    std::fs::rename(&place, fleet.dir("former")).expect("renames");
    std::fs::create_dir(&place).expect("creates");
    let follow = ["backup", "create", &shown, "--follow", "--every", "1", "--new-place"];
    let _follower = Process::begin(fleet.command("d", &follow), &fleet.dir("follow.log"));
    let count = |dir: &Path| std::fs::read_dir(dir.join("manifests")).map_or(0, Iterator::count);
    fleet.wait("the first backup is made", || count(&place) == 1);
    fleet.ok("d", &["put", "c", "b", "--value", "1"]);
    fleet.wait("the second backup is made", || count(&place) == 2);
    // The disk is unmounted.
    std::fs::rename(&place, fleet.dir("disk")).expect("renames");
    std::fs::create_dir(&place).expect("creates");
    fleet.ok("d", &["put", "c", "c", "--value", "1"]);
    let log = || std::fs::read_to_string(fleet.dir("follow.log")).unwrap_or_default();
    fleet.wait("it is told", || log().contains("--new-place"));
    assert_eq!(std::fs::read_dir(&place).expect("lists").count(), 0, "{}", log());
    std::fs::remove_dir(&place).expect("removes");
    std::fs::rename(fleet.dir("disk"), &place).expect("renames");
    fleet.wait("it goes on", || count(&place) == 3);
}

#[test]
fn p08_an_object_is_reverted_and_states_are_compared_without_a_restore() {
    let (fleet, _datastore, _a, _) = fleet();
    fleet.ok("a", &["put", "c", "changed", "--value", "{\"n\":1}"]);
    fleet.ok("a", &["put", "c", "gone", "--value", "1"]);
    fleet.ok("a", &["put", "c", "stays", "--value", "1"]);
    fleet.converges(&["a"]);
    let then = head(&fleet).to_string();
    fleet.ok("a", &["put", "c", "changed", "--value", "{\"n\":2}"]);
    fleet.ok("a", &["delete", "c", "gone"]);
    fleet.ok("a", &["put", "b", "new", "--value", "1"]);
    fleet.ok("a", &["put", "passwords", "1", "--value", "\"hash\""]);
    fleet.converges(&["a"]);
    let differs = fleet.run("d", &["diff", "--from", &then, "--values", "--json"]);
    assert_eq!((differs.status.code(), String::from_utf8_lossy(&differs.stderr).as_ref()), (Some(1), ""));
    let text = String::from_utf8_lossy(&differs.stdout).into_owned();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let found: Vec<_> =
        lines.iter().map(|line| (line["change"].as_str().unwrap(), line["key"].as_str().unwrap())).collect();
    assert_eq!(found, [("added", "new"), ("changed", "changed"), ("removed", "gone"), ("added", "1")]);
    assert_eq!((&lines[1]["from"]["value"]["n"], &lines[1]["to"]["value"]["n"]), (&1.into(), &2.into()));
    assert!(!text.contains("hash"), "secrets are not printed");
    let same = fleet.run("d", &["diff", "--from", &then, "--to", &then]);
    assert_eq!(same.status.code(), Some(0));
    // Either end of the range may come first.
    let backwards = fleet.run("d", &["diff", "--from", &head(&fleet).to_string(), "--to", &then]);
    let text = String::from_utf8_lossy(&backwards.stdout).into_owned();
    assert_eq!((backwards.status.code(), String::from_utf8_lossy(&backwards.stderr).as_ref()), (Some(1), ""));
    assert!(text.ends_with("1 added, 1 changed, 2 removed\n"), "{text}");
    let beyond = fleet.run("d", &["diff", "--from", "999999"]);
    assert_eq!(beyond.status.code(), Some(2), "incomparable states are no difference");

    for key in ["changed", "gone"] {
        fleet.ok("d", &["revert", "c", key, "--to", &then, "--dry-run"]);
        fleet.ok("d", &["revert", "c", key, "--to", &then]);
    }
    fleet.ok("d", &["revert", "b", "new", "--to", &then]);
    assert!(fleet.ok("d", &["revert", "b", "new", "--to", &then]).contains("nothing to do"));
    fleet.converges(&["a"]);
    assert_eq!(fleet.ok("a", &["get", "c", "changed"]).trim(), "{\"n\":1}");
    assert_eq!(fleet.ok("a", &["get", "c", "gone"]).trim(), "1");
    assert_eq!(fleet.run("a", &["get", "b", "new"]).status.code(), Some(1));
}

/// Needs an S3-compatible server; see `docs/testing.md`.
#[test]
fn backups_in_an_s3_store_are_as_good_as_in_a_directory() {
    let Ok(endpoint) = std::env::var("GRAVWELL_S3_ENDPOINT") else {
        return eprintln!("SKIPPED: GRAVWELL_S3_ENDPOINT names no S3-compatible server");
    };
    let (fleet, _datastore, _a, _) = fleet();
    let bucket = format!("gravwell-test-{}", std::process::id());
    ureq::put(format!("{endpoint}/{bucket}")).send_empty().expect("makes a bucket");
    let place = format!("s3://{bucket}/fleet/one");
    let run = |name: &str, arguments: &[&str]| {
        let mut command = fleet.command(name, arguments);
        command
            .env("AWS_ENDPOINT_URL", &endpoint)
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test");
        command.output().expect("runs")
    };
    let ok = |name: &str, arguments: &[&str]| {
        let output = run(name, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let file = fleet.write_file("in.jsonl", &History::new(22, 3_000, 400).lines);
    fleet.ok("a", &["import", file.to_str().unwrap()]);
    fleet.converges(&["a"]);
    ok("d", &["backup", "create", &place]);
    let moment = head(&fleet).to_string();
    let then = fleet.export("d");
    fleet.ok("a", &["put", "c", "later", "--value", "1"]);
    ok("d", &["backup", "create", &place]);
    assert_eq!(ok("d", &["backup", "list", &place, "--json"]).lines().count(), 2);
    ok("d", &["backup", "verify", &place, "--all"]);
    ok("r", &["restore", &place, "--key-file", &fleet.backup_key(), "--at", &moment]);
    assert_eq!(fleet.export("r"), then);
    ok("d", &["backup", "prune", &place, "--keep-last", "1"]);
    ok("d", &["backup", "verify", &place]);
    let wrong = run("d", &["backup", "list", "s3://no-such-bucket/x"]);
    assert_eq!(wrong.status.code(), Some(1));
}
