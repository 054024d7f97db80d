//! Access granted by a restored backup, and sessions that a restore ends.

use crate::archived::archives;
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
fn p11_a_restore_ends_logins_and_lists_access_that_it_grants_again() {
    let fleet = Fleet::new();
    let backup = backed_up(&fleet);
    let said = fleet.ok("d", &["restore", &backup, "--replace"]);
    for words in ["revoked: 2 logins", "\"stolen-laptop\" of bob, 6f0d3a52", "restored administrators: bob"] {
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
fn p13_a_restore_next_to_an_index_with_more_entries_asks() {
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
    assert!(said.contains("is at sequence 6, and the backup ends at 5"), "{said}");
    assert!(!fleet.dir("d/log").exists(), "nothing was changed");
    let said = fleet.ok("d", &["restore", &backup, "--replace"]);
    assert!(said.contains("NOT RESTORED: changes up to sequence 6"), "{said}");
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
    for word in ["not known to continue", "differ in b", "--backup ID"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(!fleet.dir("d/log").exists() && !fleet.dir("d/trust/ca.key").exists(), "nothing was changed");
    // The first backup is that of the branch in which the member was revoked.
    let listed = std::fs::read_dir(fleet.dir("backups/manifests")).expect("lists");
    let names = listed.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned());
    let mut ids: Vec<String> = names.map(|name| name.split('.').next().unwrap_or_default().to_owned()).collect();
    ids.sort();
    fleet.ok("d", &["restore", &place, "--recovery-key", &key, "--backup", &ids[0]]);
    let members = fleet.ok("d", &["members"]);
    assert!(members.lines().any(|line| line.starts_with("b ") && line.contains("revoked")), "{members}");
}

#[test]
fn p08_archived_changes_grant_access_only_to_their_original_account() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (a, b) = (fleet.member("a"), fleet.member("b"));
    let put = |member: &str, collection: &str, key: &str, value: &str| {
        fleet.ok(member, &["put", collection, key, "--value", value, "--no-wait"]);
    };
    let user = |uid: i32, name: &str, day: u8| {
        format!(r#"{{"UID":{uid},"User":"{name}","Created":"2026-01-{day:02}T00:00:00Z"}}"#)
    };
    let token = |uid: i32, id: &str| TOKEN.replace("\"uid\":2", &format!("\"uid\":{uid}")).replace(&TOKEN[7..43], id);
    let (of_carol, of_alice) = ("6f0d3a52-6a0b-4c41-9d5f-000000000001", "6f0d3a52-6a0b-4c41-9d5f-000000000002");
    let dashboard = |uid: i32| {
        format!(
            r#"{{"ID":{uid},"Name":"d","UID":{uid},"GIDs":[],"Created":"2026-01-01T00:00:00Z","Updated":"2026-01-01T00:00:00Z","Data":{{}}}}"#
        )
    };
    let name = |member: &str, name: &str, uid: i32| {
        put(member, "user-names", name, &format!(r#"{{"name":"{name}","uid":{uid}}}"#));
    };
    let group_name = |member: &str, name: &str| {
        put(member, "group-names", name, &format!(r#"{{"name":"{name}","gid":65}}"#));
    };
    put("a", "users", "7", &user(7, "carol", 1));
    name("a", "carol", 7);
    fleet.converges(&["a", "b"]);
    datastore.terminate();
    // At b, numbers are assigned that meanwhile become others'.
    put("b", "tokens", &format!("7/{of_carol}"), &token(7, of_carol));
    put("b", "users", "66", &user(66, "alice", 2));
    name("b", "alice", 66);
    put("b", "admins", "66", r#"{"uid":66,"since":"2026-01-02T00:00:00Z"}"#);
    put("b", "tokens", &format!("66/{of_alice}"), &token(66, of_alice));
    put("b", "dashboards", "66", &dashboard(66));
    put("b", "groups", "65", r#"{"GID":65,"Name":"finance"}"#);
    group_name("b", "finance");
    put("b", "memberships", "7/65", r#"{"uid":7,"gid":65}"#);
    put("b", "capabilities", "group/65", r#"{"holder":{"group":65},"grants":["SecretRead"]}"#);
    put("b", "users", "67", &user(67, "dave", 2));
    name("b", "dave", 67);
    put("b", "admins", "67", r#"{"uid":67,"since":"2026-01-02T00:00:00Z"}"#);
    put("b", "admins", "68", r#"{"uid":68,"since":"2026-01-02T00:00:00Z"}"#);
    let (datastore, _b) = archives(&fleet, b);
    put("a", "users", "66", &user(66, "bob", 3));
    name("a", "bob", 66);
    put("a", "groups", "65", r#"{"GID":65,"Name":"interns"}"#);
    group_name("a", "interns");
    fleet.converges(&["a", "b"]);
    let left = [
        "users/66".to_owned(),
        "groups/65".to_owned(),
        "admins/66".to_owned(),
        format!("tokens/66/{of_alice}"),
        "dashboards/66".to_owned(),
        "memberships/7/65".to_owned(),
        "capabilities/group/65".to_owned(),
        "admins/68".to_owned(),
    ];
    for more in [&["--dry-run"][..], &[]] {
        let output = fleet.run("b", &[&["quarantine", "apply", "1", "--with-access"], more].concat());
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        for name in &left {
            assert!(said.lines().any(|line| line.starts_with(&format!("left: {name} "))), "{name}: {said}");
        }
        assert_eq!(said.lines().filter(|line| line.starts_with("left: ")).count(), left.len(), "{said}");
        assert!(said.contains("user 66, and that number may belong"), "{said}");
        assert!(said.contains("group 65, and that number may belong"), "{said}");
        assert!(said.contains("user 68, which is not in the log"), "{said}");
    }
    fleet.converges(&["a", "b"]);
    let there = |collection: &str| fleet.ok("a", &["ls", collection]);
    assert!(there("tokens").contains(of_carol) && !there("tokens").contains(of_alice));
    assert!(there("admins").contains("67") && !there("admins").contains("66") && !there("admins").contains("68"));
    assert_eq!(there("memberships"), "");
    assert_eq!(there("dashboards"), "");
    a.terminate();
    datastore.terminate();
}
