//! Commands that install a log, killed at any point, and a datastore that was wiped and restarted: no new log replaces
//! the one to be restored, and the commands in the remedies work.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::files::copy_dir;
use crate::fleet::{Fleet, History};
use crate::recover::{escrow, key_of};

/// Number of kills in each loop, spread over the duration of the command.
const KILLS: u32 = 8;

/// Runs a command and kills it after a delay. It may have finished by then.
fn killed(fleet: &Fleet, name: &str, arguments: &[&str], after: Duration) {
    let mut command = fleet.command(name, arguments);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    let started = Instant::now();
    while started.elapsed() < after && child.try_wait().expect("waits").is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = child.kill();
    child.wait().expect("waits");
}

/// Runs a command that must succeed and returns its duration.
fn timed(fleet: &Fleet, arguments: &[&str]) -> Duration {
    let started = Instant::now();
    fleet.ok("d", arguments);
    started.elapsed()
}

fn moments(whole: Duration) -> impl Iterator<Item = Duration> {
    (1..=KILLS).map(move |moment| whole * moment / KILLS)
}

/// Starts the datastore and returns its export or, if it does not start, its error.
fn started(fleet: &Fleet) -> Result<String, String> {
    let before = fleet.log_of("d").len();
    let datastore = std::cell::RefCell::new(fleet.spawn_datastore());
    let is_over = || datastore.borrow_mut().ended().is_some();
    let runs = || fleet.dir("d/ctl.sock").exists() && fleet.status("d")["running"] == true;
    fleet.wait("the datastore serves or exits", || is_over() || runs());
    if is_over() {
        return Err(fleet.log_of("d").split_off(before));
    }
    let export = fleet.export("d");
    datastore.into_inner().terminate();
    Ok(export)
}

fn wipe(fleet: &Fleet) {
    std::fs::remove_dir_all(fleet.dir("d")).expect("wipes");
}

/// Returns the export and the recovery key of a stopped fleet with a history.
fn stopped(fleet: &Fleet, names: &[&str]) -> (String, String) {
    let datastore = fleet.datastore();
    let members: Vec<_> = names.iter().map(|name| fleet.member(name)).collect();
    let file = fleet.write_file("in.jsonl", &History::new(31, 1_500, 600).lines);
    fleet.ok(names[0], &["import", file.to_str().expect("text")]);
    let export = fleet.converges(names);
    let key = key_of(fleet);
    names.iter().for_each(|name| drop(escrow(fleet, name)));
    members.into_iter().for_each(|member| {
        member.terminate();
    });
    datastore.terminate();
    (export, key)
}

#[test]
fn p05_a_recovery_killed_at_any_point_leaves_no_other_log_and_is_run_again() {
    let fleet = Fleet::new();
    let (export, key) = stopped(&fleet, &["a", "b"]);
    let (a, b) = (fleet.dir("a").display().to_string(), fleet.dir("b").display().to_string());
    let recover = ["recover", "--from", &a, "--from", &b, "--recovery-key", &key];
    wipe(&fleet);
    let whole = timed(&fleet, &recover);
    let mut interrupted = 0;
    for after in moments(whole) {
        wipe(&fleet);
        killed(&fleet, "d", &recover, after);
        let was_untouched = !fleet.dir("d/trust").exists() && !fleet.dir("d/unfinished").exists();
        match started(&fleet) {
            Ok(found) if was_untouched => assert_eq!(found, "", "an ordinary empty host"),
            Ok(found) => assert_eq!(found, export),
            Err(said) => {
                interrupted += 1;
                assert!(said.contains("was interrupted") && said.contains("recover ..."), "{said}");
                assert!(!fleet.dir("d/log").exists(), "no log was created");
                let refused = fleet.run("d", &["put", "c", "k", "--value", "1"]);
                assert!(String::from_utf8_lossy(&refused.stderr).contains("was interrupted"), "{refused:?}");
                fleet.ok("d", &recover);
            }
        }
        if was_untouched {
            wipe(&fleet);
            fleet.ok("d", &recover);
        }
        assert_eq!(started(&fleet).as_ref(), Ok(&export));
        assert!(!fleet.dir("d/unfinished").exists());
    }
    assert!(interrupted > 0, "no kill happened between the mark and the log: {whole:?}");
    let _running = (fleet.datastore(), fleet.replica("a"), fleet.replica("b"));
    fleet.wait_connected("a");
    fleet.wait_connected("b");
    assert_eq!(fleet.converges(&["a", "b"]), export);
}

#[test]
fn p05_a_restore_killed_at_any_point_leaves_the_former_log_or_the_restored_one() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let file = fleet.write_file("in.jsonl", &History::new(32, 1_500, 600).lines);
    fleet.ok("d", &["import", file.to_str().expect("text")]);
    let place = fleet.dir("backups").display().to_string();
    fleet.ok("d", &["backup", "create", &place]);
    let restored = fleet.export("d");
    fleet.ok("d", &["put", "c", "later", "--value", "1"]);
    let (former, key) = (fleet.export("d"), key_of(&fleet));
    datastore.terminate();
    copy_dir(&fleet.dir("d"), &fleet.dir("whole"));
    // Into an empty directory.
    wipe(&fleet);
    let restore = ["restore", &place, "--recovery-key", &key];
    for after in moments(timed(&fleet, &restore)) {
        wipe(&fleet);
        killed(&fleet, "d", &restore, after);
        let was_untouched = !fleet.dir("d/trust").exists() && !fleet.dir("d/unfinished").exists();
        match started(&fleet) {
            Ok(found) if was_untouched => assert_eq!(found, ""),
            Ok(found) => assert_eq!(found, restored),
            Err(said) => {
                assert!(said.contains("was interrupted") && said.contains("restore ..."), "{said}");
                fleet.ok("d", &restore);
                assert_eq!(started(&fleet).as_ref(), Ok(&restored));
            }
        }
    }
    // Over an existing log.
    let replace = ["restore", &place, "--replace"];
    wipe(&fleet);
    copy_dir(&fleet.dir("whole"), &fleet.dir("d"));
    for after in moments(timed(&fleet, &replace)) {
        wipe(&fleet);
        copy_dir(&fleet.dir("whole"), &fleet.dir("d"));
        killed(&fleet, "d", &replace, after);
        let found = started(&fleet).expect("starts");
        assert!(found == former || found == restored, "{found}");
        fleet.ok("d", &replace);
        assert_eq!(started(&fleet).as_ref(), Ok(&restored));
    }
}

#[test]
fn p01_a_repair_killed_at_any_point_leaves_the_damaged_log_or_the_repaired_one() {
    let fleet = Fleet::new();
    let (export, _) = stopped(&fleet, &["a"]);
    let segments = std::fs::read_dir(fleet.dir("d/log")).expect("lists").map(|entry| entry.expect("entry").path());
    let segment = segments.into_iter().find(|path| path.to_string_lossy().contains("seg-")).expect("a segment");
    let mut bytes = std::fs::read(&segment).expect("reads");
    bytes[5_000] ^= 4;
    std::fs::write(&segment, bytes).expect("writes");
    copy_dir(&fleet.dir("d"), &fleet.dir("damaged"));
    let a = fleet.dir("a").display().to_string();
    let repair = ["repair", "--from", &a];
    for after in moments(timed(&fleet, &repair)) {
        wipe(&fleet);
        copy_dir(&fleet.dir("damaged"), &fleet.dir("d"));
        killed(&fleet, "d", &repair, after);
        match started(&fleet) {
            Ok(found) => assert_eq!(found, export),
            Err(said) => assert!(said.contains("repair --from"), "{said}"),
        }
        fleet.ok("d", &repair);
        assert_eq!(started(&fleet).as_ref(), Ok(&export));
    }
}

#[test]
fn p11_a_join_killed_at_any_point_is_repeated_with_another_token() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let enroll = || fleet.ok("d", &["enroll", "a", "--replace"]).trim().to_owned();
    let begun = Instant::now();
    fleet.ok("a", &["join", &enroll()]);
    for after in moments(begun.elapsed()) {
        killed(&fleet, "a", &["join", &enroll()], after);
        fleet.ok("a", &["join", &enroll()]);
    }
    let _a = fleet.replica("a");
    fleet.wait_connected("a");
}

/// Returns the first command in a remedy that contains `part`, as a shell command with the placeholders filled in.
fn command_of(fleet: &Fleet, remedy: &str, part: &str, key: &str, authority: &str) -> String {
    let found = remedy.split('`').skip(1).step_by(2).find(|command| command.contains(part));
    let command = found.unwrap_or_else(|| panic!("{part}: {remedy}"));
    let (d, program) = (fleet.dir("d").display().to_string(), fleet.command("d", &[]));
    let program = program.get_program().to_string_lossy().into_owned();
    let words = command.split(' ').map(|word| match word {
        "D" => d.clone(),
        "D.aside" => format!("{d}.aside"),
        "--reference=D.aside" => format!("--reference={d}.aside"),
        "gravwell-logctl" => program.clone(),
        "FILE" => authority.to_owned(),
        "KEY" => key.to_owned(),
        word => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

fn shell(command: &str) {
    let output = std::process::Command::new("sh").args(["-c", command]).output().expect("runs");
    assert!(output.status.success(), "{command}: {output:?}");
}

/// Returns the remedy for one reason in the health of a process.
fn remedy(fleet: &Fleet, name: &str, code: &str) -> Option<String> {
    let status = fleet.status(name);
    let reasons = status["health"]["reasons"].as_array()?.clone();
    let found = reasons.into_iter().find(|reason| reason["code"] == code)?;
    Some(found["remedy"].as_str()?.to_owned())
}

#[test]
fn p05_the_reported_remedy_rebuilds_a_wiped_and_restarted_datastore() {
    for has_written in [false, true] {
        let fleet = Fleet::new();
        let datastore = fleet.datastore();
        let a = fleet.member("a");
        fleet.ok("a", &["put", "c", "k", "--value", "1"]);
        let export = fleet.converges(&["a"]);
        let (key, authority) = (key_of(&fleet), escrow(&fleet, "a"));
        datastore.kill();
        wipe(&fleet);
        let datastore = fleet.datastore();
        if has_written {
            fleet.ok("d", &["put", "c", "new", "--value", "2"]);
        }
        fleet.wait("it reports that it was wiped", || remedy(&fleet, "d", "refuses_members").is_some());
        fleet.wait("the member reports it, too", || remedy(&fleet, "a", "foreign").is_some());
        let words = remedy(&fleet, "d", "refuses_members").expect("a remedy");
        let theirs = remedy(&fleet, "a", "foreign").expect("a remedy");
        datastore.terminate();
        let listen = fleet.listen.to_string();
        let given: [&[&str]; 4] = [
            &["--authority", &authority, "--recovery-key", &key],
            &["--authority", &authority],
            &["--recovery-key", &key],
            &["--new-authority"],
        ];
        for given in given {
            let refused = fleet.run("d", &[&["recover", "--listen", &listen], given].concat());
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(said.contains("already has another CA") && said.contains("nothing was changed"), "{said}");
        }
        a.terminate();
        let home = fleet.dir("a").display().to_string();
        let refused = fleet.run("d", &["recover", "--from", &home]);
        assert!(!refused.status.success(), "{refused:?}");
        let a = fleet.replica("a");
        for part in ["mv D D.aside", "recover --authority"] {
            let command = command_of(&fleet, &words, part, &key, &authority);
            assert_eq!(command, command_of(&fleet, &theirs, part, &key, &authority));
            let is_recovery = part.starts_with("recover");
            shell(&if is_recovery { format!("{command} --listen {listen}") } else { command });
        }
        let _datastore = fleet.datastore();
        fleet.wait_connected("a");
        assert_eq!(fleet.converges(&["a"]), export);
        let aside = fleet.run("d.aside", &["get", "c", "new"]);
        assert_eq!(aside.status.success(), has_written, "its files are kept: {aside:?}");
        drop(a);
    }
}

/// Returns a datastore whose log was lost and replaced by a new one that has accepted writes.
fn replaced(fleet: &Fleet) -> String {
    let datastore = fleet.datastore();
    let member = fleet.member("a");
    let trust: &Path = &fleet.dir("trust");
    datastore.terminate();
    copy_dir(&fleet.dir("d/trust"), trust);
    let datastore = fleet.datastore();
    let file = fleet.write_file("in.jsonl", &History::new(33, 300, 100).lines);
    fleet.ok("a", &["import", file.to_str().expect("text")]);
    let export = fleet.converges(&["a"]);
    member.terminate();
    datastore.terminate();
    wipe(fleet);
    copy_dir(trust, &fleet.dir("d/trust"));
    export
}

#[test]
fn p13_a_log_started_in_place_of_another_one_is_detected_with_a_registry_of_any_age() {
    let mut fleet = Fleet::new();
    let export = replaced(&fleet);
    let datastore = fleet.datastore();
    let waits = || remedy(&fleet, "d", "waits_for_recovery");
    fleet.wait("its register belongs to another log", || waits().is_some());
    assert!(!fleet.run("d", &["put", "c", "k", "--value", "1"]).status.success());
    datastore.terminate();
    // Simulates a version without this check: it accepts a write.
    fleet.datastore_flags = vec!["--recovery".into(), "off".into()];
    let datastore = fleet.datastore();
    fleet.ok("d", &["put", "c", "new", "--value", "1"]);
    datastore.terminate();
    fleet.datastore_flags.clear();
    let datastore = fleet.datastore();
    let a = fleet.replica("a");
    let waits = || remedy(&fleet, "d", "waits_for_recovery");
    fleet.wait("the member shows that there was another log", || waits().is_some());
    let words = waits().expect("a remedy");
    let refused = fleet.run("d", &["put", "c", "k", "--value", "1"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("in which it was enrolled"), "{refused:?}");
    assert_eq!(fleet.run("d", &["status"]).status.code(), Some(1));
    datastore.kill();
    a.terminate();
    let datastore = fleet.datastore();
    fleet.wait("it reports it after a restart, too", || waits().is_some());
    datastore.terminate();
    let home = fleet.dir("a").display().to_string();
    let refused = fleet.run("d", &["recover", "--from", &home]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("log.aside"), "{refused:?}");
    shell(&command_of(&fleet, &words, "log.aside", "", ""));
    fleet.ok("d", &["recover", "--from", &home]);
    let _running = (fleet.datastore(), fleet.replica("a"));
    fleet.wait_connected("a");
    assert_eq!(fleet.converges(&["a"]), export);
    assert!(fleet.dir("d/log.aside").exists(), "its received data is kept");
}
