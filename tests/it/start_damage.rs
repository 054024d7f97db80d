//! Corruption found at startup: every program exits with code 3, changes nothing, and names the next command to run.

use std::fs;
use std::path::{Path, PathBuf};

use crate::files::{self, copy_dir};
use crate::fleet::{Fleet, History, own_port};

/// Returns every file in a directory with its content.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<_> = entries.map(|path| (path.clone(), fs::read(&path).unwrap_or_default())).collect();
    found.sort();
    found
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).expect("reads");
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
    bytes[used / 2] ^= 4;
    files::write(path, &bytes);
}

fn first_segment(log: &Path) -> PathBuf {
    let entries = fs::read_dir(log).expect("lists").map(|entry| entry.expect("entry").path());
    let name = |path: &PathBuf| path.file_name().expect("named").to_string_lossy().into_owned();
    entries.filter(|path| name(path).starts_with("seg-")).min().expect("a segment")
}

type Deed = fn(&Path);

fn nothing_but_current(dir: &Path) {
    let current = fs::read(dir.join("current")).expect("reads");
    fs::remove_dir_all(dir).expect("removes");
    fs::create_dir(dir).expect("makes");
    fs::write(dir.join("current"), current).expect("writes");
}

/// Corruption of a datastore's directory, and the remedy that the message names.
const OF_DATASTORES: [(&str, Deed, &str); 7] = [
    ("a segment", |dir| flip(&first_segment(&dir.join("log"))), "repair --from"),
    ("the head file", |dir| fs::write(dir.join("log/head"), "no head").expect("writes"), "repair --from"),
    ("the log", |dir| fs::remove_dir_all(dir.join("log")).expect("removes"), "repair"),
    ("trust", |dir| fs::remove_dir_all(dir.join("trust")).expect("removes"), "authority restore"),
    ("the register", |dir| flip(&dir.join("trust/members.json")), "authority restore"),
    ("the authority's key", |dir| fs::remove_file(dir.join("trust/ca.key")).expect("removes"), "authority restore"),
    ("the authority", |dir| flip(&dir.join("trust/ca.pem")), "authority restore"),
];

/// Corruption of a member's directory.
const OF_MEMBERS: [(&str, Deed, &str); 6] = [
    ("the outbox journal", |dir| flip(&dir.join("outbox/journal")), "outbox accept-loss"),
    ("the journal's head", |dir| fs::write(dir.join("outbox/head"), "no head").expect("writes"), "outbox accept-loss"),
    ("no outbox", |dir| fs::remove_dir_all(dir.join("outbox")).expect("removes"), "outbox accept-loss"),
    (
        "no witness of the outbox",
        |dir| fs::remove_file(dir.join("outbox.head")).expect("removes"),
        "outbox accept-loss",
    ),
    ("nothing but `current`", nothing_but_current, "outbox accept-loss"),
    ("the identity", |dir| flip(&dir.join("identity/member.json")), "join TOKEN"),
];

#[track_caller]
fn ends_with_3(output: &std::process::Output, word: &str, dir: &Path, what: &str) {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{what}: {errors}");
    assert!(errors.contains(word), "{what}: {errors}");
    assert!(!errors.contains("panicked"), "{what}: {errors}");
    let path = dir.display().to_string();
    assert!(word.starts_with("repair") || errors.contains(&path), "{what}: the directory is named: {errors}");
}

/// Checks that `doctor` reports corruption with the command, instead of failing itself.
#[track_caller]
fn doctor_names_it(fleet: &Fleet, name: &str, word: &str, what: &str) {
    let output = fleet.run(name, &["doctor", "--json"]);
    let found = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(3), "{what}: {found}");
    assert!(found.contains(word), "{what}: {found}");
}

#[test]
fn p10_every_program_exits_with_code_3_on_corruption_and_names_the_next_command() {
    let mut fleet = Fleet::new();
    fleet.datastore_flags = vec!["--segment-mb".into(), "1".into()];
    let datastore = fleet.datastore();
    let file = fleet.write_file("in.jsonl", &History::new(2, 8_000, 900).lines);
    fleet.ok("d", &["import", file.to_str().expect("text")]);
    fleet.member("a").terminate();
    datastore.terminate();
    fleet.ok("a", &["put", "c", "waits", "--value", "1", "--no-wait"]);
    let listen = format!("127.0.0.1:{}", own_port());
    for name in ["d", "a"] {
        copy_dir(&fleet.dir(name), &fleet.dir(&format!("{name}.good")));
    }
    let put_back = |name: &str| {
        fs::remove_dir_all(fleet.dir(name)).expect("removes");
        copy_dir(&fleet.dir(&format!("{name}.good")), &fleet.dir(name));
    };
    for (what, damage, word) in OF_DATASTORES {
        let dir = fleet.dir("d");
        damage(&dir);
        let folder = dir.join(if word.starts_with("repair") { "log" } else { "trust" });
        let before = contents(&folder);
        let output = fleet.run("d", &["datastore", "--listen", &listen]);
        ends_with_3(&output, word, &dir, what);
        assert!(contents(&folder) == before, "{what}: nothing is changed");
        doctor_names_it(&fleet, "d", word, what);
        put_back("d");
    }
    for (what, damage, word) in OF_MEMBERS {
        let dir = fleet.dir("a");
        damage(&dir);
        for command in [&["replica"][..], &["webserver", "--listen", &listen, "--insecure-disable-https"]] {
            ends_with_3(&fleet.run("a", command), word, &dir, &format!("{what}, {command:?}"));
        }
        if !what.contains("identity") {
            doctor_names_it(&fleet, "a", word, what);
        }
        put_back("a");
    }
    // A webserver in standalone mode has both kinds of directories.
    let alone = ["webserver", "--listen", &listen, "--insecure-disable-https", "--default-password"];
    let process = fleet.spawn_webserver("alone", listen.parse().expect("an address"), &[]);
    let client = crate::web::client::Client::new(format!("http://{listen}"));
    fleet.wait("it has started", || client.answers() && fleet.status("alone")["connected"] == true);
    let ready = client.try_get("/api/ready").expect("answers").1;
    assert!(ready.contains("\"Standalone\":true"), "{ready}");
    for command in ["status", "doctor"] {
        let output = fleet.run("alone", &[command]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("standalone webserver"), "{command}: {text}");
    }
    process.terminate();
    for (what, path, word) in [
        ("its log", "own-log/log/head", "repair --from"),
        ("its outbox", "outbox/head", "outbox accept-loss"),
        ("its register", "own-log/trust/members.json", "authority restore"),
    ] {
        let file = fleet.dir("alone").join(path);
        let good = fs::read(&file).expect("reads");
        fs::write(&file, "damaged").expect("writes");
        ends_with_3(&fleet.run("alone", &alone), word, &fleet.dir("alone"), what);
        fs::write(&file, good).expect("writes");
    }
}

#[test]
fn p11_a_corrupt_or_missing_ca_is_restored_by_the_reported_command() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let member = fleet.member("a");
    fleet.ok("d", &["put", "c", "k", "--value", "1"]);
    fleet.wait("the member stores the CA backup", || fleet.dir("a/identity/escrow").exists());
    member.terminate();
    let key = fleet.ok("d", &["authority", "recovery-key"]);
    let sealed = fleet.dir("a/identity/escrow");
    let sealed = sealed.to_str().expect("text");
    let restore = ["authority", "restore", sealed, "--recovery-key", key.trim()];
    let running = fleet.run("d", &restore);
    assert_eq!(running.status.code(), Some(1), "{running:?}");
    datastore.terminate();
    let sound = fleet.run("d", &restore);
    assert!(String::from_utf8_lossy(&sound.stderr).contains("are valid"), "{sound:?}");
    for (what, damage, _) in OF_DATASTORES.into_iter().filter(|(.., word)| *word == "authority restore") {
        damage(&fleet.dir("d"));
        assert_eq!(fleet.run("d", &["datastore", "--listen", "127.0.0.1:0"]).status.code(), Some(3), "{what}");
        let wrong = fleet.run("d", &["authority", "restore", sealed, "--recovery-key", "gwr1.AAAA"]);
        assert_eq!(wrong.status.code(), Some(1), "{what}");
        fleet.ok("d", &restore);
        let datastore = fleet.datastore();
        let a = fleet.replica("a");
        fleet.wait_connected("a");
        a.terminate();
        datastore.terminate();
    }
}
