//! Numbers of users and groups are assigned once, and what was made upon an account that comes to nothing is no one else's.

use serde_json::{Value, json};

use super::client::Client;
use super::{Site, Web};
use crate::files::copy_dir;
use crate::fleet::Fleet;

const PASSWORD: &str = "a plain horse";

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

/// The datastore is restored from a backup, and a webserver that does not know it yet goes on creating accounts. One of
/// them is an administrator, made so at a third webserver.
#[test]
fn p06_numbers_of_a_lost_history_are_not_assigned_again() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    for name in ["a", "b", "c"] {
        fleet.enroll(name, "webserver");
    }
    let a = Web::start(&fleet, "a", &[]);
    a.admin(&fleet);
    let b = Web::start(&fleet, "b", &[]);
    fleet.converges(&["a", "b"]);
    let backup = fleet.dir("backup").display().to_string();
    fleet.ok("d", &["backup", "create", &backup]);
    let at_b = b.login("admin", super::ADMIN_PASSWORD);
    let (alice, finance) = (user(&at_b, "alice"), group(&at_b, "finance"));
    b.login("alice", PASSWORD).made("/api/dashboards", &json!({ "Name": "salaries" }));
    fleet.converges(&["a", "b"]);
    let at_a = a.login("admin", super::ADMIN_PASSWORD);
    at_a.ok("PUT", &format!("/api/users/{alice}/admin"));
    at_a.made(&format!("/api/users/{alice}/group"), &json!({ "GIDs": [finance] }));
    at_b.made("/api/dashboards", &json!({ "Name": "figures", "GIDs": [finance] }));
    fleet.converges(&["a", "b"]);
    datastore.terminate();
    a.pause();
    b.pause();
    fleet.ok("d", &["restore", &backup, "--replace"]);
    let datastore = fleet.datastore();
    let c = Web::start(&fleet, "c", &[]);
    fleet.converges(&["c"]);
    let at_c = c.login("admin", super::ADMIN_PASSWORD);
    let (bob, interns) = (user(&at_c, "bob"), group(&at_c, "interns"));
    assert!(alice != bob && finance != interns, "{alice} {bob}, {finance} {interns}");
    at_c.made(&format!("/api/users/{bob}/group"), &json!({ "GIDs": [interns] }));
    a.resume();
    b.resume();
    for name in ["a", "b"] {
        fleet.wait("it follows", || fleet.status(name)["connected"] == true && fleet.status(name)["outbox"] == 0);
    }
    fleet.converges(&["a", "b", "c"]);
    let seen = c.login("bob", PASSWORD).ok("GET", "/api/dashboards").to_string();
    assert!(!seen.contains("salaries") && !seen.contains("figures"), "{seen}");
    assert_eq!(at_c.ok("GET", &format!("/api/users/{bob}"))["Admin"], false);
    let groups = at_c.ok("GET", &format!("/api/groups/{interns}/members")).to_string();
    assert!(groups.contains("bob") && !groups.contains("alice"), "{groups}");
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
    fleet.converges(&["a"]);
    a.stop();
    let (dir, copy) = (fleet.dir("a"), fleet.dir("a.copy"));
    copy_dir(&dir, &copy);
    a.restart(&fleet, &[]);
    fleet.wait_connected("a");
    let alice = user(&a.admin(&fleet), "alice");
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
