//! Rights revoked at one webserver while another one, offline, still accepts their former holders.

use serde_json::{Value, json};

use super::client::Client;
use super::{Site, Web};
use crate::fleet::Fleet;

const PASSWORD: &str = "a plain horse";
const NEW_PASSWORD: &str = "a newer horse";

fn add_user(admin: &Client, name: &str, is_admin: bool) -> i64 {
    let user = json!({ "User": name, "Pass": PASSWORD, "Admin": is_admin });
    admin.made("/api/users", &user).as_i64().expect("number")
}

/// Creates a token of the client's user and returns its value.
fn token(client: &Client, name: &str) -> String {
    let asked = json!({ "name": name, "capabilities": ["DashboardRead"] });
    client.made("/api/tokens", &asked)["token"].as_str().expect("a value").to_owned()
}

fn opens(web: &Web, token: &str) -> bool {
    web.nobody().with("Gravwell-Token", token).get("/api/dashboards").status == 200
}

fn is_admin(client: &Client, uid: i64) -> bool {
    client.ok("GET", &format!("/api/users/{uid}/admin"))["Admin"] == true
}

fn may_log_in(web: &Web, user: &str, password: &str) -> bool {
    web.nobody().post("/api/login", &json!({ "User": user, "Pass": password })).status == 200
}

#[test]
fn a_change_based_on_a_right_revoked_elsewhere_is_not_committed() {
    let mut site = Site::new();
    let (admin, _) = site.admins();
    let [alice, bob, carol, dave, eve, mallory] = ["alice", "bob", "carol", "dave", "eve", "mallory"]
        .map(|name| add_user(&admin, name, ["dave", "eve"].contains(&name)));
    admin.changed(&format!("/api/users/{carol}/lock"), &json!({}));
    site.converges();
    site.stop_datastore();

    // Changes that the offline webserver accepts.
    let (root, eves, bobs) = (site.b.admin(&site.fleet), site.b.login("eve", PASSWORD), site.b.login("bob", PASSWORD));
    eves.changed(&format!("/api/users/{mallory}/admin"), &json!({}));
    eves.changed(&format!("/api/users/{alice}/pwd"), &json!({ "NewPass": NEW_PASSWORD }));
    let first = token(&bobs, "created before all sessions were ended");
    assert_eq!(bobs.delete("/api/logout").status, 200);
    let bobs = site.b.login("bob", PASSWORD);
    let second = token(&bobs, "created in a new epoch");
    let dashboard = bobs.made("/api/dashboards", &json!({ "Name": "bob's work", "Data": {} }));
    assert_eq!(root.delete(&format!("/api/users/{carol}/lock")).status, 200);
    // A user who is already an administrator.
    root.changed(&format!("/api/users/{dave}/admin"), &json!({}));
    assert!(opens(&site.b, &first) && opens(&site.b, &second) && may_log_in(&site.b, "carol", PASSWORD));
    site.b.stop();

    // Rights revoked in the meantime.
    site.start_datastore();
    site.fleet.wait_connected("a");
    for user in [eve, dave] {
        assert_eq!(admin.delete(&format!("/api/users/{user}/admin")).status, 200);
    }
    admin.changed(&format!("/api/users/{bob}/pwd"), &json!({ "NewPass": NEW_PASSWORD }));
    assert_eq!(admin.delete(&format!("/api/users/{carol}/lock")).status, 200);
    admin.changed(&format!("/api/users/{carol}/lock"), &json!({}));

    site.b.restart(&site.fleet, &[]);
    site.converges();
    for (web, client) in [(&site.a, &admin), (&site.b, &root)] {
        assert!(!is_admin(client, mallory) && !is_admin(client, eve) && !is_admin(client, dave));
        assert!(may_log_in(web, "alice", PASSWORD) && !may_log_in(web, "alice", NEW_PASSWORD));
        assert!(!opens(web, &first) && !opens(web, &second), "tokens of the former password");
        assert!(!may_log_in(web, "carol", PASSWORD), "the newer lock takes effect");
        let bobs = web.nobody().with("Authorization", &format!("Bearer {}", bobs.token()));
        assert_eq!(bobs.get("/api/testauth").status, 401, "a login with the former password");
        // Work of users who still have their rights is kept.
        let id = dashboard.as_i64().expect("a number");
        assert_eq!(client.get(&format!("/api/dashboards/{id}")).status, 200);
    }
}

/// Online: a user who is about to lose a right repeatedly writes it back.
#[test]
fn a_revoked_right_is_not_restored_by_its_former_holder() {
    let site = Site::new();
    let (admin, _) = site.admins();
    let eve = add_user(&admin, "eve", true);
    let bob = add_user(&admin, "bob", false);
    site.converges();
    let (eves, bobs) = (site.b.login("eve", PASSWORD), site.b.login("bob", PASSWORD));
    let place = format!("/api/users/{eve}/admin");
    let tokens = std::thread::scope(|scope| {
        let (eves, bobs, place) = (&eves, &bobs, &place);
        let repeated: Vec<_> =
            (0..4).map(|_| scope.spawn(move || while eves.put(place, &json!({})).status == 200 {})).collect();
        let made = scope.spawn(move || {
            let mut values = Vec::new();
            loop {
                let answer = bobs.post("/api/tokens", &json!({ "name": "t", "capabilities": ["DashboardRead"] }));
                if answer.status != 200 {
                    return values;
                }
                values.push(answer.json()["token"].as_str().expect("a value").to_owned());
            }
        });
        site.fleet
            .wait("some tokens exist", || bobs.ok("GET", "/api/tokens").as_array().is_some_and(|all| all.len() > 2));
        assert_eq!(admin.delete(place).status, 200);
        admin.changed(&format!("/api/users/{bob}/pwd"), &json!({ "NewPass": NEW_PASSWORD }));
        repeated.into_iter().for_each(|thread| thread.join().expect("ends"));
        made.join().expect("ends")
    });
    site.converges();
    assert!(!is_admin(&admin, eve));
    for web in [&site.a, &site.b] {
        assert!(!tokens.iter().any(|token| opens(web, token)), "{} tokens", tokens.len());
    }
    assert_eq!(site.a.login("bob", NEW_PASSWORD).ok("GET", "/api/tokens"), json!([]));
}

/// Creates a session in which the client's user impersonates another user.
fn acting(client: &Client, web: &Web, uid: i64) -> Client {
    let session = client.made(&format!("/api/users/su/{uid}"), &json!({}))["JWT"].as_str().expect("JWT").to_owned();
    web.nobody().with("Authorization", &format!("Bearer {session}"))
}

fn counts(client: &Client) -> bool {
    client.get("/api/testauth").status == 200
}

#[test]
fn p11_who_acts_as_another_user_does_so_only_as_long_as_they_may() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let root = web.admin(&fleet);
    let (dora, carol) = (add_user(&root, "dora", true), add_user(&root, "carol", false));
    let own = json!({ "name": "t", "capabilities": ["DashboardRead"] });
    type Way<'a> = (&'a str, &'a dyn Fn(&Client, i64));
    let ways: [Way<'_>; 5] = [
        ("locked", &|_, uid| drop(root.changed(&format!("/api/users/{uid}/lock"), &json!({})))),
        ("demoted", &|_, uid| drop(root.ok("DELETE", &format!("/api/users/{uid}/admin")))),
        ("deleted", &|_, uid| drop(root.ok("DELETE", &format!("/api/users/{uid}")))),
        ("logged out everywhere", &|anna, _| drop(anna.ok("DELETE", "/api/logout"))),
        ("given a new password", &|_, uid| {
            root.changed(&format!("/api/users/{uid}/pwd"), &json!({ "NewPass": NEW_PASSWORD }));
        }),
    ];
    for (number, (what, take_away)) in ways.iter().enumerate() {
        let name = format!("anna-{number}");
        let uid = add_user(&root, &name, true);
        let anna = web.login(&name, PASSWORD);
        let as_dora = acting(&anna, &web, dora);
        let as_carol = acting(&as_dora, &web, carol);
        assert_eq!(as_dora.ok("GET", "/api/info/whoami")["User"], "dora");
        assert_eq!(as_carol.ok("GET", "/api/info/whoami")["User"], "carol");
        let sessions = root.ok("GET", &format!("/api/users/{carol}/sessions"))["Sessions"].clone();
        let is_named = |session: &Value| session["Su"] == format!("{name} as dora");
        assert!(sessions.as_array().is_some_and(|all| all.iter().any(is_named)), "{sessions}");
        // Neither the user's own data nor changes that require the administrator's own password or code.
        let dashboard = as_carol.made("/api/dashboards", &json!({ "Name": "carol's", "Data": {} }));
        let token = web.login("carol", PASSWORD).made("/api/tokens", &own)["id"].as_str().expect("id").to_owned();
        assert_eq!(as_carol.put(&format!("/api/tokens/{token}"), &own).status, 403);
        let change = json!({ "NewPass": NEW_PASSWORD, "Tokens": "keep" });
        assert_eq!(as_dora.put(&format!("/api/users/{uid}/pwd"), &change).status, 403);
        take_away(&anna, uid);
        assert!(!counts(&as_dora) && !counts(&as_carol), "{what}");
        assert_eq!(root.get(&format!("/api/dashboards/{dashboard}")).status, 200, "completed changes are kept");
        let left = root.ok("GET", &format!("/api/users/{dora}/sessions"))["Sessions"].clone();
        assert!(left.as_array().is_some_and(Vec::is_empty), "{what}: {left}");
    }
    // Every user in a chain of impersonations must keep the right.
    let as_carol = acting(&acting(&root, &web, dora), &web, carol);
    assert!(counts(&as_carol));
    root.ok("DELETE", &format!("/api/users/{dora}/admin"));
    assert!(!counts(&as_carol) && counts(&root));
}

#[test]
fn p11_what_was_made_in_anothers_name_is_committed_only_while_its_maker_may_act_so() {
    let mut site = Site::new();
    let (admin, _) = site.admins();
    let [anna, dora, mallory] = ["anna", "dora", "mallory"].map(|name| add_user(&admin, name, name != "mallory"));
    site.converges();
    let as_dora = acting(&site.b.login("anna", PASSWORD), &site.b, dora);
    site.converges();
    site.stop_datastore();
    as_dora.changed(&format!("/api/users/{mallory}/admin"), &json!({}));
    site.b.stop();
    site.start_datastore();
    site.fleet.wait_connected("a");
    assert_eq!(admin.delete(&format!("/api/users/{anna}/admin")).status, 200);
    site.b.restart(&site.fleet, &[]);
    site.converges();
    assert!(!is_admin(&admin, mallory) && is_admin(&admin, dora));
    assert!(!counts(&as_dora));
}

/// Returns the names of all objects, as seen by administrators.
fn names(client: &Client, path: &str, field: &str) -> Vec<String> {
    let all = client.ok("GET", path);
    let all: Vec<&Value> = match &all {
        Value::Array(all) => all.iter().collect(),
        Value::Object(all) => all.values().collect(),
        _ => Vec::new(),
    };
    all.into_iter().map(|one| one[field].as_str().expect("text").to_owned()).collect()
}

/// Returns the path and reason of the rejected change with this description.
#[track_caller]
fn rejected(client: &Client, what: &str) -> (String, String) {
    let all = client.ok("GET", "/api/rejections");
    let found = all.as_array().expect("a list").iter().find(|one| one["What"].as_str().is_some_and(|it| it == what));
    let found = found.unwrap_or_else(|| panic!("{what}: {all}"));
    let text = |name: &str| found[name].as_str().expect("text").to_owned();
    (format!("/api/rejections/{}/retry", text("ID")), text("Reason"))
}

#[test]
fn p11_what_needed_a_right_that_was_lost_meanwhile_is_rejected_and_own_work_is_not() {
    let mut site = Site::new();
    let (admin, _) = site.admins();
    let (bob, carol) = (add_user(&admin, "bob", true), add_user(&admin, "carol", false));
    let team = admin.made("/api/groups", &json!({ "Name": "team" }));
    let join = json!({ "GIDs": [team] });
    admin.made(&format!("/api/users/{carol}/group"), &join);
    site.converges();
    let (bobs, carols) = (site.b.login("bob", PASSWORD), site.b.login("carol", PASSWORD));
    let dashboard = |client: &Client, body: Value| format!("/api/dashboards/{}", client.made("/api/dashboards", &body));
    let [kept, changed] = ["to be deleted", "to be changed"].map(|name| dashboard(&carols, json!({ "Name": name })));
    site.converges();
    site.stop_datastore();

    bobs.made("/api/notifications/broadcast", &json!({ "Msg": "from bob" }));
    dashboard(&bobs, json!({ "Name": "of all users", "Global": true }));
    bobs.ok("DELETE", &kept);
    bobs.changed(&changed, &json!({ "Description": "bob was here" }));
    dashboard(&bobs, json!({ "Name": "bob's own" }));
    dashboard(&carols, json!({ "Name": "of the team", "GIDs": [team] }));
    dashboard(&carols, json!({ "Name": "carol's own" }));
    site.b.stop();
    site.start_datastore();
    site.fleet.wait_connected("a");
    admin.ok("DELETE", &format!("/api/users/{bob}/admin"));
    admin.ok("DELETE", &format!("/api/users/{carol}/group/{team}"));
    site.b.restart(&site.fleet, &[]);
    site.converges();

    let root = site.b.admin(&site.fleet);
    for client in [&admin, &root] {
        assert!(!names(client, "/api/notifications/all", "Msg").contains(&"from bob".to_owned()));
        let mut found = names(client, "/api/dashboards/all", "Name");
        found.sort();
        assert_eq!(found, ["bob's own", "carol's own", "to be changed", "to be deleted"]);
        assert_eq!(client.ok("GET", &changed)["Description"], "");
    }
    // It is reported and kept. An author who has the right again retries it; an administrator is recorded along with
    // the author.
    let (shared, reason) = rejected(&carols, "create dashboard of the team");
    assert_eq!(reason, format!("its author is no longer a member of group {team}"));
    assert_eq!(carols.post(&shared, &json!({})).status, 403);
    admin.made(&format!("/api/users/{carol}/group"), &join);
    site.converges();
    assert_eq!(carols.post(&shared, &json!({})).status, 200);
    let (deleted, reason) = rejected(&bobs, "delete dashboard to be deleted");
    assert_eq!(reason, "its author is no longer an administrator");
    assert_eq!(bobs.post(&deleted, &json!({})).status, 403);
    assert_eq!(root.post(&deleted, &json!({})).status, 200);
    site.converges();
    assert_eq!(admin.get(&kept).status, 404);
    assert!(names(&admin, "/api/dashboards/all", "Name").contains(&"of the team".to_owned()));
    let audit = || site.fleet.ok("d", &["audit", "ls", "--json"]);
    let is_named = |line: &str| {
        let row: Value = serde_json::from_str(line).expect("JSON");
        row["what"] == "delete dashboard to be deleted"
            && (&row["user"], &row["by"]) == (&json!("bob"), &json!("admin"))
    };
    site.fleet.wait("both are recorded in the audit", || audit().lines().any(is_named));
}
