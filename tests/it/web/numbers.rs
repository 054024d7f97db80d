//! Numbers of users and groups are assigned once, and what was made upon an account that comes to nothing is no one else's.

use serde_json::{Value, json};

use super::client::Client;
use super::{Site, Web};
use crate::fleet::Fleet;
use crate::reading::copy_dir;

const PASSWORD: &str = "a plain horse";

/// Waits until a webserver has leased numbers for users.
fn leases(fleet: &Fleet, name: &str) {
    let file = fleet.dir(name).join("id-leases.json");
    let end = || serde_json::from_slice::<Value>(&std::fs::read(&file).ok()?).ok()?["groups"]["end"].as_i64();
    fleet.wait(&format!("{name} has numbers"), || end().is_some_and(|end| end > 0));
}

fn user(client: &Client, name: &str) -> Value {
    client.made("/api/users", &json!({ "User": name, "Pass": PASSWORD }))
}

fn group(client: &Client, name: &str) -> Value {
    client.made("/api/groups", &json!({ "Name": name }))
}

fn rejected(client: &Client) -> Vec<String> {
    let list = client.ok("GET", "/api/rejections");
    list.as_array().expect("list").iter().map(|one| one["What"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Two webservers lease numbers, one of them from a counter that a restore took back.
#[test]
fn p06_a_lease_that_a_restore_took_back_is_given_to_nobody_else() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    for name in ["a", "b", "c"] {
        fleet.enroll(name, "webserver");
    }
    let a = Web::start(&fleet, "a", &[]);
    a.admin(&fleet);
    leases(&fleet, "a");
    fleet.converges(&["a"]);
    let backup = fleet.dir("backup").display().to_string();
    fleet.ok("d", &["backup", "create", &backup]);
    let b = Web::start(&fleet, "b", &[]);
    leases(&fleet, "b");
    fleet.converges(&["a", "b"]);
    datastore.terminate();
    // Before b learns of the restore, it assigns numbers of a lease that no log knows any more.
    fleet.wait("b is offline", || fleet.status("b")["connected"] == false);
    let at_b = b.admin(&fleet);
    let (alice, finance) = (user(&at_b, "alice"), group(&at_b, "finance"));
    b.login("alice", PASSWORD).made("/api/dashboards", &json!({ "Name": "salaries" }));
    at_b.made("/api/dashboards", &json!({ "Name": "figures", "GIDs": [finance] }));
    b.pause();
    fleet.ok("d", &["restore", &backup, "--replace"]);
    let datastore = fleet.datastore();
    let c = Web::start(&fleet, "c", &[]);
    leases(&fleet, "c");
    let at_c = c.login("admin", super::ADMIN_PASSWORD);
    let (bob, interns) = (user(&at_c, "bob"), group(&at_c, "interns"));
    assert!(alice != bob && finance != interns, "{alice} {bob}, {finance} {interns}");
    at_c.made(&format!("/api/users/{bob}/group"), &json!({ "GIDs": [interns] }));
    b.resume();
    fleet.wait("b has caught up", || fleet.status("b")["connected"] == true && fleet.status("b")["outbox"] == 0);
    fleet.converges(&["a", "b", "c"]);
    let seen = |web: &Web, name: &str| web.login(name, PASSWORD).ok("GET", "/api/dashboards").to_string();
    assert!(seen(&c, "alice").contains("salaries"));
    assert!(!seen(&c, "bob").contains("salaries") && !seen(&c, "bob").contains("figures"));
    // b has left a history, and leases again.
    fleet.wait("b has leased new IDs", || {
        let made = user(&b.login("admin", super::ADMIN_PASSWORD), &format!("u{}", fleet.status("b")["seq"]));
        made.as_i64().is_some_and(|uid| uid < 1 << 30)
    });
    datastore.terminate();
}

/// A webserver's directory is replaced by an earlier copy, and it starts while the datastore is unreachable.
#[test]
fn p06_a_directory_that_was_reverted_gives_no_number_again() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    let mut a = Web::start(&fleet, "a", &[]);
    a.admin(&fleet);
    leases(&fleet, "a");
    fleet.converges(&["a"]);
    a.stop();
    let (dir, copy) = (fleet.dir("a"), fleet.dir("a.copy"));
    copy_dir(&dir, &copy);
    a.restart(&fleet, &[]);
    fleet.wait_connected("a");
    leases(&fleet, "a");
    let alice = user(&a.admin(&fleet), "alice");
    assert!(alice.as_i64().is_some_and(|uid| uid < 1000), "the ID is from a lease: {alice}");
    fleet.converges(&["a"]);
    a.stop();
    datastore.terminate();
    std::fs::remove_dir_all(&dir).expect("removes");
    copy_dir(&copy, &dir);
    a.restart(&fleet, &[]);
    let bob = user(&a.login("admin", super::ADMIN_PASSWORD), "bob");
    assert_ne!(alice, bob);
    let datastore = fleet.datastore();
    fleet.wait_connected("a");
    fleet.converges(&["a"]);
    for name in ["alice", "bob"] {
        a.login(name, PASSWORD);
    }
    datastore.terminate();
}

/// An administrator at a cut-off webserver creates a user and a group, and everything upon them. Meanwhile the numbers
/// are given to others.
#[test]
fn p08_what_was_made_upon_an_account_that_is_rejected_is_not_given_to_who_has_the_number() {
    let mut site = Site::new();
    let (a, b) = site.admins();
    let carol = user(&a, "carol");
    site.converges();
    site.stop_datastore();
    let (alice, finance) = (user(&a, "alice"), group(&a, "finance"));
    let alices = site.a.login("alice", PASSWORD);
    alices.made("/api/dashboards", &json!({ "Name": "salaries" }));
    alices.changed(&format!("/api/users/{alice}/preferences"), &json!({ "of": "alice" }));
    let resource = alices.made("/api/resources", &json!({ "ResourceName": "r" }));
    let raw = format!("/api/resources/{}/raw", resource["GUID"].as_str().expect("GUID"));
    assert_eq!(alices.upload("PUT", &raw, "file", &b"private"[..]).status, 200);
    alices.made("/api/searchhistory", &json!({ "UserQuery": "private" }));
    let token = alices.made("/api/tokens", &json!({ "name": "t", "capabilities": ["DashboardRead"] }));
    a.ok("PUT", &format!("/api/users/{alice}/admin"));
    alices.made("/api/groups", &json!({ "Name": "made by alice" }));
    a.made(&format!("/api/users/{carol}/group"), &json!({ "GIDs": [finance] }));
    a.made(&format!("/api/users/{alice}/group"), &json!({ "GIDs": [finance] }));
    let figures = a.made("/api/dashboards", &json!({ "Name": "figures", "GIDs": [finance] }));
    a.changed(&format!("/api/dashboards/{figures}"), &json!({ "Description": "of finance" }));
    a.made("/api/notifications/targeted", &json!({ "UID": alice, "Msg": "for alice" }));
    a.made("/api/notifications/targeted", &json!({ "GID": finance, "Msg": "for finance" }));
    // The numbers are given to bob and to the interns.
    site.a.pause();
    site.start_datastore();
    let put = |collection: &str, key: &str, value: &Value| {
        site.fleet.ok("d", &["put", collection, key, "--value", &value.to_string()]);
    };
    let number = |value: &Value| value.to_string();
    put("users", &number(&alice), &json!({ "UID": alice, "User": "bob", "Created": "2026-01-01T00:00:00Z" }));
    put("user-names", "bob", &json!({ "name": "bob", "uid": alice }));
    put("groups", &number(&finance), &json!({ "GID": finance, "Name": "interns" }));
    put("group-names", "interns", &json!({ "name": "interns", "gid": finance }));
    site.a.resume();
    site.fleet.wait("all changes are resolved", || site.fleet.status("a")["outbox"] == 0);
    site.converges();
    // A new password for bob, so that somebody can look with his eyes.
    b.changed(&format!("/api/users/{alice}/pwd"), &json!({ "NewPass": PASSWORD }));
    b.made(&format!("/api/users/{alice}/group"), &json!({ "GIDs": [finance] }));
    site.converges();
    for web in [&site.a, &site.b] {
        let bob = web.login("bob", PASSWORD);
        for path in ["dashboards", "resources", "searchhistory", "tokens", "notifications"] {
            let seen = bob.ok("GET", &format!("/api/{path}")).to_string();
            let private =
                ["salaries", "figures", "private", "for alice", "for finance", "\"r\"", "\"t\"", "Change rejected"];
            assert!(private.iter().all(|word| !seen.contains(word)), "{}: {path}: {seen}", web.name);
        }
        assert_eq!(bob.ok("GET", &format!("/api/users/{alice}/preferences")), Value::Null);
        assert_eq!(bob.ok("GET", &format!("/api/users/{alice}"))["Admin"], false);
        assert_eq!(bob.get("/api/rejections").json(), json!([]), "{}", web.name);
        let token = web.nobody().with("Gravwell-Token", token["token"].as_str().expect("a value"));
        assert_eq!(token.get("/api/dashboards").status, 401);
        let members = b.ok("GET", &format!("/api/groups/{finance}/members")).to_string();
        assert!(members.contains("bob") && !members.contains("carol"), "{members}");
        assert!(!b.ok("GET", "/api/groups").to_string().contains("made by alice"));
    }
    // Whoever administers learns of all of it.
    let told = rejected(&a);
    for what in [
        "create user alice",
        "create group finance",
        "create dashboard salaries",
        "create dashboard figures",
        "change dashboard figures",
        "create resource r",
        "create token t",
        "create group made by alice",
    ] {
        assert!(told.iter().any(|one| one == what), "{what}: {told:?}");
    }
    let notified = || a.ok("GET", "/api/notifications").to_string().contains("(by alice)");
    site.fleet.wait("the administrator is notified", notified);
}
