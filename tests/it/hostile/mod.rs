//! A member that violates the protocol, and unauthenticated clients: whatever they send, other members stay connected and
//! replicate, and little of it is stored.

pub mod client;
mod connections;
mod handshakes;
mod later_versions;
mod pushes;
mod requests;
mod roles;
mod streams;
mod unauthenticated;

use crate::fleet::{Fleet, Process};

/// Returns the resident memory of a process, in bytes.
fn memory(id: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{id}/statm")).expect("reads");
    let pages: u64 = text.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * 4096
}

/// A datastore, an honest webserver `a`, and the identity of `rogue`, which no real process uses.
struct Site {
    fleet: Fleet,
    datastore: Process,
    _honest: Process,
}

impl Site {
    fn new(role: &str) -> Site {
        let fleet = Fleet::new();
        let datastore = fleet.datastore();
        let honest = fleet.member("a");
        fleet.enroll("rogue", role);
        Site { fleet, datastore, _honest: honest }
    }

    /// Returns the time since which the honest member has been connected.
    fn since(&self) -> u64 {
        let presence = self.fleet.ok("d", &["presence", "--json"]);
        let mut rows = presence.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        let honest = rows.find(|row| row["name"] == "a").expect("the honest member is connected");
        honest["since_ms"].as_u64().expect("a time")
    }

    /// Checks that the honest member is still connected and receives writes, and that the data stored and shown of the
    /// rogue is small and safe for a terminal.
    fn holds(&self, since: u64, what: &str) {
        self.fleet.ok("d", &["put", "c", "k", "--value", &format!("\"{}\"", what.len())]);
        self.fleet.converges(&["a"]);
        assert_eq!(self.since(), since, "{what}: the honest member was disconnected");
        for file in ["members.json", "members.copy"] {
            let bytes = std::fs::metadata(self.fleet.dir("d/trust").join(file)).expect("is there").len();
            assert!(bytes < 16 << 10, "{what}: {file} has {bytes} bytes");
        }
        for command in [&["members"][..], &["presence"], &["top", "--once"], &["status"], &["doctor"]] {
            let output = self.fleet.run("d", command);
            let text = String::from_utf8(output.stdout).expect("text");
            assert!(text.len() < 16 << 10, "{what}: {command:?} prints {} bytes", text.len());
            let wrong = text.chars().find(|c| *c != '\n' && c.is_control());
            assert_eq!(wrong, None, "{what}: {command:?} prints a control character");
        }
    }
}
