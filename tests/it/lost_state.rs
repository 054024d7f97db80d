//! A replica whose state was corrupted, removed or replaced by an older one while it was offline: it finds a sound state
//! or reports that it lacks data, and destroys nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::files::copy_dir;
use crate::fleet::{Fleet, Process};

fn states(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("lists").map(|entry| entry.expect("entry").path());
    let mut states: Vec<PathBuf> = entries
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("state-")))
        .collect();
    states.sort();
    states
}

fn damaged(dir: &Path) -> usize {
    states(dir).iter().filter(|path| path.to_string_lossy().contains(".damaged-")).count()
}

/// A member that has applied another member's deletions, overwrites and creations; both are stopped, and so is
/// the datastore.
struct Rest {
    fleet: Fleet,
    export: String,
    /// Its state directory before the other member's changes.
    older: PathBuf,
}

impl Rest {
    fn new() -> Rest {
        let fleet = Fleet::new();
        let datastore = fleet.datastore();
        let (a, b) = (fleet.member("a"), fleet.member("b"));
        fleet.ok("a", &["put", "c", "secret", "--value", "\"old\""]);
        fleet.ok("a", &["put", "c", "cfg", "--value", "\"v1\""]);
        fleet.converges(&["a", "b"]);
        a.terminate();
        let older = fleet.dir("a.older");
        copy_dir(&states(&fleet.dir("a"))[0], &older);
        let a = fleet.replica("a");
        fleet.ok("b", &["delete", "c", "secret"]);
        fleet.ok("b", &["put", "c", "cfg", "--value", "\"v2\""]);
        fleet.ok("b", &["put", "c", "other", "--value", "1"]);
        let export = fleet.converges(&["a", "b"]);
        a.terminate();
        b.terminate();
        datastore.terminate();
        copy_dir(&fleet.dir("a"), &fleet.dir("a.good"));
        Rest { fleet, export, older }
    }

    fn restore(&self) -> PathBuf {
        let dir = self.fleet.dir("a");
        fs::remove_dir_all(&dir).expect("removes");
        copy_dir(&self.fleet.dir("a.good"), &dir);
        dir
    }

    fn start(&self) -> Process {
        let process = self.fleet.replica("a");
        let socket = self.fleet.dir("a/ctl.sock");
        self.fleet.wait("the member answers", || socket.exists() && self.fleet.status("a")["running"] == true);
        process
    }

    /// Checks that, started without a datastore, it shows all data.
    fn is_whole(&self, what: &str) {
        let process = self.start();
        assert_eq!(self.fleet.export("a"), self.export, "{what}");
        assert_eq!(self.fleet.status("a")["healthy"], true, "{what}");
        process.terminate();
    }

    /// Checks that, started without a datastore, it reports missing data, and that with a datastore it is complete again.
    fn says_so(&self, what: &str) {
        let dir = self.fleet.dir("a");
        for command in ["stopped", "running", "running again"] {
            let process = (command != "stopped").then(|| self.start());
            let status = self.fleet.status("a");
            let output = self.fleet.run("a", &["status"]);
            if process.is_some() {
                assert_eq!(status["outbox"], 0, "{what}, {command}: resolved transactions are not pending");
                assert_eq!(status["healthy"], false, "{what}, {command}: {status}");
                assert!(status["health"].to_string().contains("state_lost"), "{what}: {status}");
                assert!(status["problem"].as_str().expect("text").contains("sequence 5"), "{what}: {status}");
            }
            assert!(!output.status.success(), "{what}, {command}: {output:?}");
            let got = self.fleet.run("a", &["get", "c", "cfg"]);
            let shown = String::from_utf8_lossy(&got.stdout).into_owned();
            assert!(process.is_none() || !shown.contains("v2"), "{what}: lost objects are not shown");
            for reading in [&["get", "c", "cfg"] as &[&str], &["ls", "c"], &["export"], &["collections"], &["verify"]] {
                let output = self.fleet.run("a", reading);
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert_eq!(output.status.code(), Some(3), "{what}, {command}, {reading:?}: {output:?}");
                assert!(reading == ["verify"] || !said.is_empty(), "{what}, {command}, {reading:?}");
            }
            if let Some(process) = process {
                process.terminate();
            }
        }
        let kept = damaged(&dir);
        assert_eq!(
            kept,
            usize::from(!what.contains("removed") || what.contains("journal")),
            "{what}: {:?}",
            states(&dir)
        );
        let datastore = self.fleet.datastore();
        let process = self.start();
        assert_eq!(self.fleet.converges(&["a"]), self.export, "{what}");
        self.fleet.wait("it is healthy again", || self.fleet.status("a")["healthy"] == true);
        assert!(damaged(&dir) >= kept.min(2), "{what}: replaced states are kept");
        process.terminate();
        datastore.terminate();
        self.is_whole(what);
    }
}

#[test]
fn p13_a_sound_state_is_found_regardless_of_current() {
    let rest = Rest::new();
    let current = |change: &dyn Fn(&Path)| {
        let dir = rest.restore();
        change(&dir.join("current"));
        dir
    };
    let flip = |path: &Path| {
        let mut bytes = fs::read(path).expect("reads");
        bytes[12] ^= 1;
        fs::write(path, bytes).expect("writes");
    };
    current(&flip);
    rest.is_whole("`current` has one bit flipped");
    current(&|path| fs::remove_file(path).expect("removes"));
    rest.is_whole("`current` is missing");
    current(&|path| fs::write(path, "").expect("writes"));
    rest.is_whole("`current` is empty");
    // A well-formed name of a directory that does not exist.
    let name = "state-0000";
    let sum = &blake3::hash(name.as_bytes()).to_hex()[..16];
    current(&|path| fs::write(path, format!("{name} {sum}\n")).expect("writes"));
    rest.is_whole("`current` names a missing state");
    // Older and empty states next to it, with higher numbers.
    let dir = current(&flip);
    copy_dir(&rest.older, &dir.join("state-0008"));
    fs::create_dir(dir.join("state-0009")).expect("creates");
    rest.is_whole("`current` is damaged with several states");
    assert!(rest.fleet.run("a", &["verify"]).status.success());
    assert_eq!(damaged(&dir), 0);
}

#[test]
fn p09_a_state_that_went_back_is_never_shown_as_healthy() {
    let rest = Rest::new();
    let state = || states(&rest.restore())[0].clone();
    let journal = |change: &dyn Fn(&Path)| {
        let state = state();
        let files = fs::read_dir(&state).expect("lists").map(|entry| entry.expect("entry").path());
        files.filter(|path| path.extension().is_some_and(|kind| kind == "jnl")).for_each(|path| change(&path));
    };
    journal(&|path| fs::remove_file(path).expect("removes"));
    rest.says_so("its journal was removed");
    journal(&|path| {
        let length = fs::metadata(path).expect("measures").len();
        fs::write(path, vec![0; usize::try_from(length).expect("fits")]).expect("writes");
    });
    rest.says_so("its journal was zeroed");
    journal(&|path| {
        let bytes = fs::read(path).expect("reads");
        let used = bytes.iter().rposition(|byte| *byte != 0).expect("some") + 1;
        fs::write(path, &bytes[..used / 2]).expect("writes");
    });
    rest.says_so("half of its journal is gone");
    fs::remove_dir_all(state()).expect("removes");
    rest.says_so("its state was removed");
    let gone = state();
    fs::remove_dir_all(&gone).expect("removes");
    fs::remove_file(gone.with_file_name("current")).expect("removes");
    rest.says_so("its state and `current` were removed");
    let older = state();
    fs::remove_dir_all(&older).expect("removes");
    copy_dir(&rest.older, &older);
    rest.says_so("its state is an older copy");
}

/// State and high-water mark are lost, or reverted, together, while the datastore is unreachable.
#[test]
fn p13_a_state_lost_with_its_mark_is_reported_until_it_is_fetched_again() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (a, _b) = (fleet.member("a"), fleet.member("b"));
    fleet.ok("a", &["put", "c", "secret", "--value", "1"]);
    fleet.converges(&["a", "b"]);
    a.terminate();
    let dir = fleet.dir("a");
    copy_dir(&dir, &fleet.dir("a.old"));
    let a = fleet.replica("a");
    fleet.wait_connected("a");
    fleet.ok("b", &["delete", "c", "secret"]);
    let export = fleet.converges(&["a", "b"]);
    a.terminate();
    datastore.terminate();
    copy_dir(&dir, &fleet.dir("a.good"));
    for how in ["lost", "lost with `current`", "back"] {
        fs::remove_dir_all(&dir).expect("removes");
        copy_dir(&fleet.dir("a.good"), &dir);
        fs::remove_dir_all(&states(&dir)[0]).expect("removes");
        fs::remove_file(dir.join("high-water")).expect("removes");
        match how {
            "back" => {
                let older = states(&fleet.dir("a.old")).remove(0);
                copy_dir(&older, &dir.join(older.file_name().expect("a name")));
                fs::copy(fleet.dir("a.old/high-water"), dir.join("high-water")).expect("copies");
            }
            "lost" => {}
            _ => fs::remove_file(dir.join("current")).expect("removes"),
        }
        assert_eq!(fleet.run("a", &["verify"]).status.code(), Some(3), "{how}, stopped");
        for start in ["a first", "a second"] {
            let a = fleet.replica("a");
            fleet.wait("the member answers", || fleet.status("a")["running"] == true);
            let status = fleet.status("a");
            assert_eq!(status["healthy"], false, "{how}, {start} start: {status}");
            assert!(status["health"].to_string().contains("state_lost"), "{how}, {start} start: {status}");
            assert_eq!(fleet.run("a", &["export"]).status.code(), Some(3), "{how}, {start} start");
            a.terminate();
        }
        let datastore = fleet.datastore();
        let a = fleet.replica("a");
        assert_eq!(fleet.converges(&["a"]), export, "{how}");
        a.terminate();
        datastore.terminate();
        let a = fleet.replica("a");
        fleet.wait("the member answers", || fleet.status("a")["running"] == true);
        assert_eq!(fleet.status("a")["healthy"], true, "{how}: once it caught up, no state is reported lost");
        a.terminate();
    }
}

#[test]
fn p13_a_process_that_is_killed_while_it_opens_keeps_its_state() {
    let rest = Rest::new();
    let dir = rest.restore();
    for attempt in 0..12 {
        let process = rest.fleet.replica("a");
        std::thread::sleep(Duration::from_millis(attempt * 7));
        process.kill();
    }
    assert_eq!(damaged(&dir), 0);
    rest.is_whole("it was killed twelve times");
}

#[test]
fn p13_kills_while_a_state_is_opened_are_never_attributed_to_it() {
    let rest = Rest::new();
    let dir = rest.restore();
    let (before, socket, opening) = (states(&dir), dir.join("ctl.sock"), dir.join("opening"));
    for _ in 0..10 {
        // Leftovers of the killed process.
        let _ = (fs::remove_file(&socket), fs::remove_dir_all(&opening));
        let process = rest.fleet.replica("a");
        rest.fleet.wait("it opens its state", || opening.exists() || socket.exists());
        process.kill();
    }
    assert_eq!(states(&dir), before);
    rest.is_whole("it was killed ten times");
    assert_eq!(states(&dir), before);
}

/// The log continues from before a's changes, which another member had superseded; then a's state is lost or reverted.
fn overtaken(is_restore: bool) {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (a, b, c) = (fleet.member("a"), fleet.member("b"), fleet.member("c"));
    fleet.ok("c", &["put", "c", "base", "--value", "1"]);
    fleet.converges(&["a", "b", "c"]);
    c.terminate();
    a.terminate();
    let older = fleet.dir("a.older");
    copy_dir(&states(&fleet.dir("a"))[0], &older);
    let a = fleet.replica("a");
    fleet.wait_connected("a");
    for key in ["gone", "changed"] {
        fleet.ok("a", &["put", "c", key, "--value", "1"]);
    }
    fleet.converges(&["a", "b"]);
    fleet.ok("b", &["delete", "c", "gone"]);
    fleet.ok("b", &["put", "c", "changed", "--value", "2"]);
    fleet.converges(&["a", "b"]);
    let key = crate::recover::key_of(&fleet);
    a.terminate();
    b.terminate();
    let backups = fleet.dir("backups");
    let backups = backups.to_str().expect("text");
    if is_restore {
        fleet.ok("d", &["backup", "create", backups]);
        datastore.terminate();
        fleet.ok("d", &["restore", backups, "--replace", "--at", "1"]);
    } else {
        crate::recover::destroy(&fleet, datastore);
        let from = fleet.dir("c");
        fleet.ok("d", &["recover", "--from", from.to_str().expect("text"), "--recovery-key", &key]);
    }
    let _datastore = fleet.datastore();
    let (_b, _c) = (fleet.replica("b"), fleet.replica("c"));
    fleet.wait_connected("b");
    fleet.wait_connected("c");
    let export = fleet.converges(&["b", "c"]);
    let dir = fleet.dir("a");
    copy_dir(&dir, &fleet.dir("a.good"));
    for damage in ["removed", "older", "without its mark"] {
        fs::remove_dir_all(&dir).expect("removes");
        copy_dir(&fleet.dir("a.good"), &dir);
        let state = states(&dir).pop().expect("a state");
        fs::remove_dir_all(&state).expect("removes");
        match damage {
            "older" => copy_dir(&older, &state),
            "without its mark" => fs::remove_file(dir.join("high-water")).expect("removes"),
            _ => {}
        }
        let a = fleet.replica("a");
        fleet.wait_connected("a");
        assert_eq!(fleet.converges(&["a", "b", "c"]), export, "{damage}: superseded values are not restored");
        let files = fs::read_dir(dir.join("quarantine")).expect("something is archived");
        let archived: String =
            files.map(|file| fs::read_to_string(file.expect("entry").path()).expect("reads")).collect();
        for key in ["gone", "changed"] {
            assert!(archived.contains(&format!("\"key\":\"{key}\"")), "{damage}: {archived}");
        }
        assert!(fleet.status("a")["quarantined"].as_u64() > Some(0), "{damage}: it is reported");
        a.terminate();
    }
}

#[test]
fn p04_what_a_lost_state_had_decided_is_not_pushed_again_after_a_restore() {
    overtaken(true);
}

#[test]
fn p04_what_a_lost_state_had_decided_is_not_pushed_again_after_a_recovery() {
    overtaken(false);
}
