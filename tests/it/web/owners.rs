//! The data of one user may exceed one transaction: security changes take effect at once, the rest follows.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Web;
use super::client::Client;
use crate::fleet::Fleet;

/// More than one transaction deletes.
const MANY: usize = 3500;

fn import(fleet: &Fleet, name: &str, rows: impl Iterator<Item = (String, String, Value)>) {
    import_at_once(fleet, name, rows);
    let head = || fleet.status("d")["head"].clone();
    fleet.wait("a has it", || fleet.status("a")["seq"] == head());
}

fn import_at_once(fleet: &Fleet, name: &str, rows: impl Iterator<Item = (String, String, Value)>) {
    let mut text = String::new();
    for (collection, key, value) in rows {
        let op = json!({ "ops": [{ "put": { "collection": collection, "key": key, "value": value } }] });
        writeln!(text, "{op}").expect("writes");
    }
    let file = fleet.write_file(name, &text);
    fleet.ok("d", &["import", file.to_str().expect("text")]);
}

fn entry_id(number: usize) -> String {
    format!("{:012x}-{number:08x}", 1_700_000_000_000u64 + number as u64)
}

fn entries(uid: &Value, numbers: std::ops::Range<usize>) -> impl Iterator<Item = (String, String, Value)> {
    numbers.map(move |number| {
        let id = entry_id(number);
        let value = json!({ "ID": id, "UID": uid, "UserQuery": "q", "EffectiveQuery": "q", "Launched": "2026-01-01T00:00:00Z" });
        ("history".to_owned(), format!("{uid}/{id}"), value)
    })
}

fn histories(fleet: &Fleet, uid: &Value, count: usize) {
    import(fleet, "histories.jsonl", entries(uid, 0..count));
}

fn one_session(fleet: &Fleet, uid: &Value) -> Value {
    let export = fleet.ok("d", &["export", "--with-secrets"]);
    let lines = export.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let is_one = |line: &Value| {
        line["collection"] == "sessions" && line["key"].as_str().is_some_and(|key| key.starts_with(&format!("{uid}/")))
    };
    lines.into_iter().find(is_one).expect("a session")["value"].clone()
}

fn sessions(fleet: &Fleet, uid: &Value, count: usize) {
    let one = one_session(fleet, uid);
    let session = |number: usize| {
        let mut value = one.clone();
        value["id"] = format!("{number:032x}").into();
        ("sessions".to_owned(), format!("{uid}/{number:032x}"), value)
    };
    import(fleet, "sessions.jsonl", (0..count).map(session));
}

/// Imports download sessions of a login that does not exist.
fn download_sessions(fleet: &Fleet, uid: &Value, count: usize) {
    let one = one_session(fleet, uid);
    let session = |number: usize| {
        let mut value = one.clone();
        value["id"] = format!("{number:032x}").into();
        value["of"] = "0".into();
        ("sessions".to_owned(), format!("{uid}/{number:032x}"), value)
    };
    import(fleet, "downloads.jsonl", (0..count).map(session));
}

fn left(fleet: &Fleet, uid: &Value) -> usize {
    let export = fleet.ok("d", &["export", "--with-secrets"]);
    let of_user = |line: &&str| line.contains(&format!("\"key\":\"{uid}/")) || line.contains("\"cleanings\"");
    export.lines().filter(of_user).count()
}

struct Stage {
    fleet: Fleet,
    _datastore: crate::fleet::Process,
    web: Web,
    admin: Client,
}

fn stage(options: &[&str]) -> Stage {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    let web = Web::start(&fleet, "a", options);
    let admin = web.admin(&fleet);
    Stage { fleet, _datastore: datastore, web, admin }
}

#[test]
fn a_user_with_more_than_a_transaction_holds_is_locked_signed_out_and_deleted() {
    let Stage { fleet, _datastore, mut web, admin } = stage(&[]);
    let uid = admin.made("/api/users", &json!({ "User": "bob", "Pass": "a plain horse" }));
    let path = format!("/api/users/{uid}");
    let login = |password: &str| web.login("bob", password);
    let bob = login("a plain horse");
    fleet.wait("all changes are resolved", || fleet.status("a")["outbox"] == 0);
    sessions(&fleet, &uid, MANY);
    histories(&fleet, &uid, MANY);
    let is_in = |client: &Client| client.get("/api/testauth").status == 200;
    assert_eq!(admin.call("PUT", &format!("{path}/lock")).status, 200);
    assert!(!is_in(&bob));
    assert_eq!(admin.delete(&format!("{path}/lock")).status, 200);
    assert!(!is_in(&bob), "unlocking an account does not restore its sessions");
    sessions(&fleet, &uid, 0);
    let bob = login("a plain horse");
    assert!(is_in(&bob));
    assert_eq!(admin.put(&format!("{path}/pwd"), &json!({ "NewPass": "a quick horse" })).status, 200);
    assert!(!is_in(&bob));
    let (bob, other) = (login("a quick horse"), login("a quick horse"));
    assert_eq!(
        bob.put(&format!("{path}/pwd"), &json!({ "OrigPass": "a quick horse", "NewPass": "a roan horse" })).status,
        200
    );
    assert!(is_in(&bob) && !is_in(&other), "the session that changes the password stays valid");
    assert_eq!(bob.delete("/api/logout").status, 200);
    assert!(!is_in(&bob));
    let bob = login("a roan horse");
    bob.made("/api/searchhistory", &json!({ "UserQuery": "the last one" }));
    assert_eq!(bob.delete("/api/searchhistory").status, 200);
    assert_eq!(bob.ok("GET", "/api/searchhistory"), json!([]), "at once");
    bob.made("/api/searchhistory", &json!({ "UserQuery": "after that" }));
    assert_eq!(bob.ok("GET", "/api/searchhistory").as_array().map(Vec::len), Some(1));
    assert_eq!(admin.delete(&path).status, 200);
    assert!(!is_in(&bob) && admin.get(&path).status == 404);
    assert_eq!(web.nobody().post("/api/login", &json!({ "User": "bob", "Pass": "a roan horse" })).status, 422);
    // It continues after being stopped in the middle.
    web.kill();
    web.restart(&fleet, &[]);
    fleet.wait("no leftovers remain", || left(&fleet, &uid) == 0);
    let again = web.admin(&fleet).made("/api/users", &json!({ "User": "bob", "Pass": "a plain horse" }));
    assert_ne!(again, uid);
}

#[test]
fn sessions_of_a_user_are_bounded_and_the_least_recently_used_ends() {
    let Stage { fleet, _datastore, web, admin } = stage(&[]);
    let uid = admin.made("/api/users", &json!({ "User": "bob", "Pass": "a plain horse" }));
    let first = web.login("bob", "a plain horse");
    fleet.wait("all changes are resolved", || fleet.status("a")["outbox"] == 0);
    sessions(&fleet, &uid, 400);
    let mine = web.login("bob", "a plain horse");
    let listed = admin.ok("GET", &format!("/api/users/{uid}/sessions"))["Sessions"].as_array().map(Vec::len);
    assert!(listed.is_some_and(|count| count <= 256), "{listed:?}");
    assert_eq!(mine.get("/api/testauth").status, 200);
    drop(first);
}

#[test]
fn p15_a_user_has_a_bounded_number_of_download_sessions() {
    let Stage { fleet, _datastore, web, admin } = stage(&[]);
    let uid = admin.made("/api/users", &json!({ "User": "bob", "Pass": "a plain horse" }));
    let bob = web.login("bob", "a plain horse");
    fleet.wait("all changes are resolved", || fleet.status("a")["outbox"] == 0);
    download_sessions(&fleet, &uid, 300);
    for _ in 0..3 {
        bob.ok("GET", "/api/login/tmptoken");
    }
    fleet.wait("all changes are resolved", || fleet.status("a")["outbox"] == 0);
    let export = fleet.ok("d", &["export", "--with-secrets"]);
    let of_bob = format!("\"key\":\"{uid}/");
    let downloads = export.lines().filter(|line| line.contains(&of_bob) && line.contains("\"of\":")).count();
    assert_eq!(downloads, 256);
    assert_eq!(bob.get("/api/testauth").status, 200);
}

#[test]
fn a_user_deleted_while_offline_is_cleaned_up_completely_even_after_a_kill() {
    const ENTRIES: usize = 30_000;
    let Stage { fleet, _datastore: datastore, mut web, admin } = stage(&[]);
    let uid = admin.made("/api/users", &json!({ "User": "bob", "Pass": "a plain horse" }));
    let other = admin.made("/api/users", &json!({ "User": "eve", "Pass": "a plain horse" }));
    fleet.wait("all changes are resolved", || fleet.status("a")["outbox"] == 0);
    histories(&fleet, &uid, ENTRIES);
    histories(&fleet, &other, 10);
    fleet.converges(&["a"]);
    datastore.terminate();
    fleet.wait("it is offline", || fleet.status("a")["connected"] == false);
    admin.ok("DELETE", &format!("/api/users/{uid}"));
    // Killed before anything is deleted, and again during the deletion, at whatever point that is.
    web.kill();
    web.restart(&fleet, &[]);
    let _datastore = fleet.datastore();
    let head = fleet.status("d")["head"].as_u64();
    fleet.wait("leftovers are being deleted", || fleet.status("d")["head"].as_u64() > head.map(|head| head + 1));
    web.kill();
    web.restart(&fleet, &[]);
    fleet.wait("no leftovers remain", || left(&fleet, &uid) == 0);
    assert!(left(&fleet, &other) >= 10, "objects of other users are kept");
    fleet.wait("all changes are resolved", || fleet.status("a")["outbox"] == 0);
    assert_eq!(fleet.status("a")["rejected"], 0);
}

/// Rows of a user who does not exist (yet) must not be deleted.
#[test]
fn cleanup_removes_only_data_of_deleted_owners() {
    let Stage { fleet, _datastore, web, admin } = stage(&[]);
    histories(&fleet, &json!(50), 10);
    let uid = admin.made("/api/users", &json!({ "User": "bob", "Pass": "a plain horse" }));
    histories(&fleet, &uid, MANY);
    assert_eq!(admin.delete(&format!("/api/users/{uid}")).status, 200);
    fleet.wait("the deleted user's objects are deleted", || left(&fleet, &uid) == 0);
    assert_eq!(left(&fleet, &json!(50)), 10);
    drop(web);
}

/// A deletion made while offline is committed after a later one, and must not restore entries that the later one deleted.
#[test]
fn the_later_clearing_of_a_history_wins_in_either_commit_order() {
    let Stage { fleet, _datastore: datastore, mut web, admin } = stage(&[]);
    let uid = json!(1);
    histories(&fleet, &uid, MANY);
    datastore.terminate();
    fleet.wait("it is offline", || fleet.status("a")["connected"] == false);
    admin.ok("DELETE", "/api/searchhistory");
    web.kill();
    // In the meantime further entries are added, and all are deleted by a webserver of an earlier version that
    // then exits.
    let _datastore = fleet.datastore();
    let last = entry_id(2 * MANY - 1);
    let work =
        json!({ "of": "history", "number": 1, "until": last, "since": "2026-01-01T00:00:00Z", "webserver": "b" });
    let cleaning = ("cleanings".to_owned(), "history/1".to_owned(), work);
    import_at_once(&fleet, "later.jsonl", entries(&uid, MANY..2 * MANY).chain([cleaning]));
    web.restart(&fleet, &[]);
    fleet.wait("its own change is committed", || fleet.status("a")["outbox"] == 0);
    let is_left = |line: &str| ["history", "cleanings"].iter().any(|name| line.contains(&format!("\"{name}\"")));
    fleet.wait("no leftovers remain", || !fleet.ok("d", &["export"]).lines().any(is_left));
    assert_eq!(fleet.status("a")["rejected"], 0);
    assert_eq!(web.admin(&fleet).ok("GET", "/api/searchhistory"), json!([]));
}

#[test]
fn p11_a_guid_goes_on_to_mean_the_dashboard_that_had_it_first() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let team = admin.made("/api/groups", &json!({ "Name": "team" }));
    let [bob, carol, dave] = ["bob", "carol", "dave"].map(|name| {
        let uid = admin.made("/api/users", &json!({ "User": name, "Pass": "a plain horse" }));
        admin.made(&format!("/api/users/{uid}/group"), &json!({ "GIDs": [team] }));
        web.login(name, "a plain horse")
    });
    let make = |client: &Client, name: &str, guid: Option<&str>| {
        let wish = json!({ "Name": name, "GIDs": [team], "GUID": guid });
        let made = client.made("/api/dashboards", &wish);
        client.ok("GET", &format!("/api/dashboards/{made}"))["GUID"].as_str().expect("GUID").to_owned()
    };
    let guid = make(&bob, "bob's", None);
    let path = format!("/api/dashboards/{guid}");
    // Other users get a new GUID, however often they try; the owner and administrators, who import, may have several.
    for _ in 0..4 {
        assert_ne!(make(&carol, "carol's", Some(&guid)), guid);
    }
    assert_eq!(make(&bob, "bob's copy", Some(&guid)), guid);
    assert_eq!(make(&admin, "imported", Some(&guid)), guid);
    for (client, name) in [(&bob, "bob's"), (&carol, "bob's"), (&dave, "bob's"), (&admin, "imported")] {
        assert_eq!(client.ok("GET", &path)["Name"], name);
    }
    // Duplicates from an older version: a user's own dashboard takes precedence, even over an older one of the group.
    let copy = admin.ok("GET", "/api/dashboards/all");
    let copy = copy.as_array().expect("a list").iter().find(|one| one["Name"] == "carol's").expect("there").clone();
    admin.changed(&format!("/api/dashboards/{}", copy["ID"]), &json!({ "GUID": guid }));
    assert_eq!(
        (carol.ok("GET", &path)["Name"].clone(), dave.ok("GET", &path)["Name"].clone()),
        (json!("carol's"), json!("bob's"))
    );
    carol.ok("DELETE", &path);
    assert_eq!(carol.ok("GET", &path)["Name"], "bob's");
}
