//! The register of members: what is in force, and what is durable.

use std::fs;

use serde_json::Value;

use crate::fleet::Fleet;
use crate::full_disk::Small;

fn reasons(fleet: &Fleet) -> Vec<String> {
    let status = fleet.status("d");
    let reasons = status["health"]["reasons"].as_array().cloned().unwrap_or_default();
    reasons.iter().map(|reason| reason["code"].as_str().expect("a code").to_owned()).collect()
}

fn state(fleet: &Fleet, member: &str) -> Value {
    let rows = fleet.ok("d", &["members", "--json"]);
    let mut rows = rows.lines().map(|row| serde_json::from_str::<Value>(row).expect("JSON"));
    rows.find(|row| row["name"] == member).map_or(Value::Null, |row| row["state"].clone())
}

#[test]
fn p11_a_revocation_that_cannot_be_written_cuts_off_at_once_and_is_durable_as_soon_as_it_can_be() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (_a, _b) = (fleet.member("a"), fleet.member("b"));
    fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    fleet.converges(&["a", "b"]);
    // A folder is where the register is written first.
    let in_the_way = fleet.dir("d/trust/members.json.next");
    fs::create_dir(&in_the_way).expect("creates");
    let said = fleet.refused("d", &["revoke", "a"]);
    assert!(said.contains("in force") && said.contains("not durable") && said.contains("members.json.next"), "{said}");
    fleet.wait("a is cut off", || fleet.status("a")["is_refused"] == true);
    fleet.ok("d", &["put", "c", "later", "--value", "2"]);
    fleet.wait("b has it", || fleet.run("b", &["get", "c", "later"]).status.success());
    assert!(!fleet.run("a", &["get", "c", "later"]).status.success(), "a receives nothing");
    assert!(!fleet.run("a", &["put", "c", "late", "--value", "3"]).status.success(), "a commits nothing");
    assert_eq!(reasons(&fleet), ["revocation_not_durable"]);
    assert_eq!(fleet.run("d", &["status"]).status.code(), Some(1));
    // Nothing else is half done: the name is not taken, and the token that could not be noted is none.
    assert!(fleet.refused("d", &["enroll", "x"]).contains("members.json.next"));
    assert_eq!(state(&fleet, "x"), Value::Null);
    fs::remove_dir(&in_the_way).expect("removes");
    fleet.wait("it is durable", || reasons(&fleet).is_empty());
    datastore.kill();
    let _datastore = fleet.datastore();
    assert_eq!((state(&fleet, "a"), state(&fleet, "b")), ("revoked".into(), "enrolled".into()));
}

#[test]
fn p11_a_member_is_revoked_on_a_full_disk() {
    let mut fleet = Fleet::new();
    let Some(disk) = Small::mount(&fleet.dir("d"), 192) else { return };
    fleet.datastore_flags = ["--min-free-mb", "16"].map(str::to_owned).to_vec();
    let datastore = fleet.datastore();
    let _a = fleet.member("a");
    let reserve = fleet.dir("d/trust/members.reserve");
    fleet.wait("room is kept", || reserve.exists());
    disk.fill();
    // It may be that the audit gives room back first.
    fleet.ok("d", &["revoke", "a"]);
    fleet.wait("a is cut off", || fleet.status("a")["is_refused"] == true);
    datastore.kill();
    disk.empty();
    let _datastore = fleet.datastore();
    assert_eq!(state(&fleet, "a"), "revoked");
    fleet.wait("room is kept again", || reserve.exists());
}
