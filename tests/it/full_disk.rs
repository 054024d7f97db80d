//! A replica whose disk is full goes on reading, says so, survives restarts, and resumes by itself.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fleet::{Fleet, Process, tools_are_required};

/// A small file system, for as long as it lives.
struct Small(PathBuf);

impl Small {
    fn mount(path: &Path, mib: u32) -> Option<Small> {
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

    fn fill(&self) {
        let mut file = fs::File::create(self.0.join("filler")).expect("creates");
        let mut bytes = vec![7; 1 << 20];
        while !bytes.is_empty() {
            if file.write_all(&bytes).is_err() {
                bytes.truncate(bytes.len() / 2);
            }
        }
    }

    fn empty(&self) {
        fs::remove_file(self.0.join("filler")).expect("removes");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn start(fleet: &Fleet) -> Process {
    let process = fleet.replica_with("a", &["--min-free-mb", "16", "--reserve-mb", "8"]);
    let socket = fleet.dir("a/ctl.sock");
    fleet.wait("the member answers", || socket.exists() && fleet.status("a")["running"] == true);
    process
}

fn says_full(fleet: &Fleet) {
    fleet.wait("it says that its disk is full", || {
        fleet.status("a")["problem"].as_str().is_some_and(|problem| problem.contains("disk is full"))
    });
    assert!(!fleet.run("a", &["status"]).status.success());
    assert_eq!(fleet.ok("a", &["get", "c", "k"]).trim(), "1");
    let put = fleet.run("a", &["put", "c", "more", "--value", "1", "--no-wait"]);
    assert!(!put.status.success() && String::from_utf8_lossy(&put.stderr).contains("disk is full"), "{put:?}");
}

#[test]
fn p07_a_replica_with_a_full_disk_reads_says_so_and_resumes() {
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
    // More than fits comes from elsewhere.
    let value = format!("\"{}\"", "x".repeat(100_000));
    for number in 0..200 {
        fleet.ok("d", &["put", "big", &format!("k{number}"), "--value", &value]);
    }
    says_full(&fleet);
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
