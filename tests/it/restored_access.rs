//! Access granted by a restored backup, and sessions that a restore ends.

use crate::fleet::Fleet;
use crate::recover_witnesses::branches;

const TOKEN: &str = r#"{"id":"6f0d3a52-6a0b-4c41-9d5f-0f0a4c1d2e3f","name":"stolen-laptop","uid":2,"createdAt":"2026-01-01T00:00:00Z","hash":"00"}"#;

/// Creates a backup with two sessions, a token and an administrator.
fn backed_up(fleet: &Fleet) -> String {
    let datastore = fleet.datastore();
    let put = |collection: &str, key: &str, value: &str| {
        fleet.ok("d", &["put", collection, key, "--value", value]);
    };
    put("users", "2", r#"{"UID":2,"User":"bob"}"#);
    put("admins", "2", r#"{"uid":2,"since":"2026-01-01T00:00:00Z"}"#);
    put("tokens", "2/6f0d3a52-6a0b-4c41-9d5f-0f0a4c1d2e3f", TOKEN);
    put("sessions", "2/aa", "{}");
    put("sessions", "2/bb", "{}");
    let backup = fleet.dir("backup").display().to_string();
    fleet.ok("d", &["backup", "create", &backup]);
    datastore.terminate();
    backup
}

#[test]
fn p11_a_restore_ends_logins_and_names_what_opens_something_again() {
    let fleet = Fleet::new();
    let backup = backed_up(&fleet);
    let said = fleet.ok("d", &["restore", &backup, "--replace"]);
    for words in ["ended: 2 logins", "\"stolen-laptop\" of bob, 6f0d3a52", "administrators as they were then: bob"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let datastore = fleet.datastore();
    assert_eq!(fleet.ok("d", &["ls", "sessions"]), "");
    assert!(fleet.ok("d", &["ls", "tokens"]).contains("6f0d3a52"));
    fleet.ok("d", &["verify"]);
    // Members apply these deletions like any others.
    let member = fleet.member("a");
    fleet.converges(&["a"]);
    member.terminate();
    datastore.terminate();
    let report = fleet.ok("d", &["restore", &backup, "--replace", "--rotate-secrets", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!(report["access"]["ended"], 3, "{report}");
    let _datastore = fleet.datastore();
    assert_eq!(fleet.ok("d", &["ls", "tokens"]), "");
}

#[test]
fn p13_a_restore_beside_an_index_that_has_more_asks() {
    let fleet = Fleet::new();
    let backup = backed_up(&fleet);
    let datastore = fleet.datastore();
    fleet.ok("d", &["put", "c", "later", "--value", "1"]);
    fleet.wait("the index has it", || fleet.status("d")["seq"] == 6);
    datastore.terminate();
    std::fs::remove_dir_all(fleet.dir("d/log")).expect("removes");
    let refused = fleet.run("d", &["restore", &backup]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("is at sequence 6, and the backup gives 5"), "{said}");
    assert!(!fleet.dir("d/log").exists(), "nothing was put in place");
    let said = fleet.ok("d", &["restore", &backup, "--replace"]);
    assert!(said.contains("NOT RESTORED: up to sequence 6"), "{said}");
    let _datastore = fleet.datastore();
    fleet.ok("d", &["verify"]);
}

#[test]
fn p13_of_two_branches_of_the_register_none_is_restored_unasked() {
    let fleet = Fleet::new();
    let key = branches(&fleet);
    let place = fleet.dir("backups").display().to_string();
    let refused = fleet.run("d", &["restore", &place, "--recovery-key", &key]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    for word in ["not known to go on from", "differ in b", "--backup ID"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(!fleet.dir("d/log").exists() && !fleet.dir("d/trust/ca.key").exists(), "nothing was put in place");
    // The first backup is that of the branch in which the member was revoked.
    let listed = std::fs::read_dir(fleet.dir("backups/manifests")).expect("lists");
    let names = listed.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned());
    let mut ids: Vec<String> = names.map(|name| name.split('.').next().unwrap_or_default().to_owned()).collect();
    ids.sort();
    fleet.ok("d", &["restore", &place, "--recovery-key", &key, "--backup", &ids[0]]);
    let members = fleet.ok("d", &["members"]);
    assert!(members.lines().any(|line| line.starts_with("b ") && line.contains("revoked")), "{members}");
}
