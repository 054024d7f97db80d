//! A replica with a full disk continues to serve reads, reports the problem, survives restarts, and
//! resumes automatically.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fleet::{Fleet, Process, tools_are_required};
use crate::recover::{destroy, escrow, key_of};

/// A small file system that exists until dropped.
pub struct Small(PathBuf);

impl Small {
    pub fn mount(path: &Path, mib: u32) -> Option<Small> {
        fs::create_dir_all(path).expect("creates");
        let size = format!("size={mib}m,mode=700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).status();
        let is_mounted = mounted.is_ok_and(|status| status.success());
        assert!(is_mounted || !tools_are_required(), "mounting needs root");
        if !is_mounted {
            eprintln!("skipped: mounting a small file system needs root");
        }
        is_mounted.then(|| Small(path.to_owned()))
    }

    pub fn fill(&self) {
        let mut file = fs::File::create(self.0.join("filler")).expect("creates");
        let mut bytes = vec![7; 1 << 20];
        while !bytes.is_empty() {
            if file.write_all(&bytes).is_err() {
                bytes.truncate(bytes.len() / 2);
            }
        }
    }

    /// Fills the space that became free again.
    pub fn top_up(&self) {
        let mut file = fs::OpenOptions::new().append(true).open(self.0.join("filler")).expect("opens");
        let mut bytes = vec![7; 64 << 10];
        while !bytes.is_empty() {
            if file.write_all(&bytes).is_err() {
                bytes.truncate(bytes.len() / 2);
            }
        }
    }

    fn enlarge(&self, mib: u32) {
        let grown = Command::new("mount").args(["-o", &format!("remount,size={mib}m")]).arg(&self.0).status();
        assert!(grown.is_ok_and(|status| status.success()), "enlarges");
    }

    pub fn empty(&self) {
        fs::remove_file(self.0.join("filler")).expect("removes");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn start(fleet: &Fleet) -> Process {
    start_with(fleet, "16", "8")
}

fn start_with(fleet: &Fleet, min_free: &str, reserve: &str) -> Process {
    let process = fleet.replica_with("a", &["--min-free-mb", min_free, "--reserve-mb", reserve]);
    let socket = fleet.dir("a/ctl.sock");
    fleet.wait("the member answers", || socket.exists() && fleet.status("a")["running"] == true);
    process
}

fn says_full(fleet: &Fleet) {
    fleet.wait("it reports that its disk is full", || {
        fleet.status("a")["problem"].as_str().is_some_and(|problem| problem.contains("disk is full"))
    });
    assert!(fleet.status("a")["health"].to_string().contains("read_only"));
    assert!(!fleet.run("a", &["status"]).status.success());
    assert_eq!(fleet.ok("a", &["get", "c", "k"]).trim(), "1");
    let put = fleet.run("a", &["put", "c", "more", "--value", "1", "--no-wait"]);
    assert!(!put.status.success() && String::from_utf8_lossy(&put.stderr).contains("disk is full"), "{put:?}");
}

#[test]
fn p07_a_replica_with_a_full_disk_reads_reports_it_and_resumes() {
    let fleet = Fleet::new();
    let Some(disk) = Small::mount(&fleet.dir("a"), 192) else { return };
    let datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    let a = start(&fleet);
    fleet.wait_connected("a");
    fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    fleet.converges(&["a"]);
    assert!(fleet.dir("a/reserve").exists());
    disk.fill();
    says_full(&fleet);
    // The datastore sends more than fits.
    let value = format!("\"{}\"", "x".repeat(100_000));
    for number in 0..200 {
        fleet.ok("d", &["put", "big", &format!("k{number}"), "--value", &value]);
    }
    says_full(&fleet);
    // Nothing of the datastore is damaged.
    let verified = || fleet.ok("d", &["verify"]);
    fleet.wait("the datastore knows", || {
        verified().contains("member a: applied") && verified().contains("disk is full")
    });
    assert!(verified().contains("no damage found"), "{}", verified());
    a.kill();
    for _ in 0..3 {
        let a = start(&fleet);
        says_full(&fleet);
        a.kill();
    }
    let mut a = start(&fleet);
    says_full(&fleet);
    assert!(a.ended().is_none());
    disk.empty();
    fleet.converges(&["a"]);
    fleet.ok("a", &["put", "c", "more", "--value", "1"]);
    fleet.converges(&["a"]);
    assert!(fleet.dir("a/reserve").exists());
    a.terminate();
    datastore.terminate();
}

/// Leaving a lost history writes more than it frees. A member with a full disk waits with that.
#[test]
fn p07_a_member_with_a_full_disk_leaves_a_lost_history_when_there_is_room() {
    let fleet = Fleet::new();
    let Some(disk) = Small::mount(&fleet.dir("a"), 192) else { return };
    let datastore = fleet.datastore();
    let b = fleet.member("b");
    fleet.enroll("a", "webserver");
    let a = start(&fleet);
    fleet.wait_connected("a");
    fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    fleet.converges(&["a", "b"]);
    escrow(&fleet, "b");
    b.terminate();
    fleet.ok("a", &["put", "c", "lost", "--value", "1"]);
    fleet.converges(&["a"]);
    let key = key_of(&fleet);
    destroy(&fleet, datastore);
    a.terminate();
    let from = fleet.dir("b").display().to_string();
    fleet.ok("d", &["recover", "--from", &from, "--recovery-key", &key]);
    disk.fill();
    let mut a = start(&fleet);
    let _datastore = fleet.datastore();
    fleet.wait("it finds the log that continues", || fleet.log_of("a").contains("disconnected"));
    says_full(&fleet);
    assert!(a.ended().is_none(), "{}", fleet.log_of("a"));
    disk.empty();
    fleet.converges(&["a"]);
    assert_eq!(fleet.ok("d", &["get", "c", "lost"]).trim(), "1");
}

/// The minimum is so low that the storage engine runs out of space between two measurements, and stops.
#[test]
fn p07_a_state_whose_engine_ran_out_of_space_is_opened_again_in_place() {
    let fleet = Fleet::new();
    let Some(disk) = Small::mount(&fleet.dir("a"), 120) else { return };
    let datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    let mut a = start_with(&fleet, "2", "1");
    fleet.wait_connected("a");
    fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    let value = "x".repeat(200_000);
    let line = |number| {
        format!("{{\"ops\":[{{\"put\":{{\"collection\":\"big\",\"key\":\"k{number}\",\"value\":\"{value}\"}}}}]}}\n")
    };
    let lines: String = (0..800).map(line).collect();
    let file = fleet.write_file("big.jsonl", &lines);
    fleet.ok("d", &["import", file.to_str().expect("text")]);
    says_full(&fleet);
    assert!(a.ended().is_none());
    a.kill();
    let mut a = start_with(&fleet, "2", "1");
    says_full(&fleet);
    disk.enlarge(1000);
    fleet.converges(&["a"]);
    assert!(a.ended().is_none(), "{}", fleet.log_of("a"));
    a.terminate();
    datastore.terminate();
}

#[test]
fn p10_a_backup_that_does_not_fit_on_the_disk_is_not_reported_as_corrupt() {
    let fleet = Fleet::new();
    let Some(disk) = Small::mount(&fleet.dir("small"), 8) else { return };
    let datastore = fleet.datastore();
    let value = "x".repeat(4000);
    let line = |number| {
        format!("{{\"ops\":[{{\"put\":{{\"collection\":\"c\",\"key\":\"k{number}\",\"value\":\"{value}\"}}}}]}}\n")
    };
    let file = fleet.write_file("puts.jsonl", &(0..250).map(line).collect::<String>());
    fleet.ok("d", &["import", file.to_str().expect("text")]);
    let export = fleet.export("d");
    let place = fleet.dir("backups").display().to_string();
    fleet.ok("d", &["backup", "create", &place, "--plain"]);
    datastore.terminate();
    // Nothing fits, or only the log fits but not its index: every failure is caused by the disk.
    let mut refusals = 0;
    for blocks in [8_u64, 500, 1100, 1300, 1500] {
        disk.fill();
        let filler = fs::OpenOptions::new().write(true).open(fleet.dir("small/filler")).expect("opens");
        let filled = filler.metadata().expect("reads").len();
        filler.set_len(filled.saturating_sub(blocks << 10)).expect("leaves some");
        drop(filler);
        let restored = fleet.run("small/d", &["restore", &place]);
        disk.empty();
        let said = String::from_utf8_lossy(&restored.stderr).into_owned();
        if restored.status.success() {
            break;
        }
        refusals += 1;
        assert_eq!(restored.status.code(), Some(1), "{blocks} KiB: {said}");
        assert!(said.contains("No space left"), "{blocks} KiB: {said}");
        for left in ["log.new", "state.rebuild"] {
            assert!(!fleet.dir("small/d").join(left).exists(), "{left} would keep the disk full: {said}");
        }
    }
    assert!(refusals > 2, "{refusals}");
    disk.enlarge(256);
    fleet.ok("small/d", &["restore", &place, "--replace"]);
    assert_eq!(fleet.export("small/d"), export);
}

#[test]
fn p14_acts_during_a_full_audit_disk_are_recorded_after_a_stop() {
    let fleet = Fleet::new();
    let Some(disk) = Small::mount(&fleet.dir("d"), 300) else { return };
    let datastore = fleet.datastore();
    fleet.ok("d", &["put", "c", "k", "--value", "1"]);
    fleet.wait("the audit exists", || fleet.ok("d", &["audit", "ls"]).contains("put"));
    disk.fill();
    let made = std::cell::Cell::new(0);
    let export = || {
        disk.top_up();
        fleet.ok("d", &["export"]);
        made.set(made.get() + 1);
    };
    fleet.wait("nothing can be recorded", || {
        export();
        fleet.status("d")["problem"].as_str().is_some_and(|problem| problem.contains("audit cannot be written"))
            || fleet.log_of("d").contains("failed to write the audit")
    });
    (0..5).for_each(|_| export());
    let count = made.get();
    datastore.kill();
    disk.empty();
    let _datastore = fleet.datastore();
    let exports = || {
        let text = fleet.ok("d", &["audit", "ls", "--json"]);
        text.lines().filter(|line| line.contains(r#""op":"export""#)).count()
    };
    fleet.wait("pending records are written", || exports() >= count);
    assert_eq!(exports(), count, "each once");
    fleet.ok("d", &["audit", "verify"]);
}
