//! Changes of rights at a webserver that was disconnected, upon a state that others have changed since: an end of logins
//! always takes effect, and a grant or a deletion does only upon the version that its author saw.

use serde_json::{Value, json};

use super::client::Client;
use super::second_factors::App;
use super::{Site, Web};

const PASSWORD: &str = "a plain horse";
const NEW_PASSWORD: &str = "a newer horse";

fn add_user(admin: &Client, name: &str, is_admin: bool) -> i64 {
    let user = json!({ "User": name, "Pass": PASSWORD, "Admin": is_admin });
    admin.made("/api/users", &user).as_i64().expect("number")
}

fn may_log_in(web: &Web, user: &str, password: &str) -> bool {
    let answer = web.nobody().post("/api/login", &json!({ "User": user, "Pass": password }));
    answer.status == 200 && answer.json()["LoginStatus"] == true
}

/// Returns whether a session is valid at a webserver.
fn is_valid(web: &Web, session: &Client) -> bool {
    let status = web.nobody().with("Authorization", &format!("Bearer {}", session.token())).get("/api/testauth").status;
    assert!([200, 401].contains(&status), "{status}");
    status == 200
}

fn acting(client: &Client, web: &Web, uid: i64) -> Client {
    let session = client.made(&format!("/api/users/su/{uid}"), &json!({}))["JWT"].as_str().expect("JWT").to_owned();
    web.nobody().with("Authorization", &format!("Bearer {session}"))
}

/// Ways in which the logins of a user end.
const ENDS: [&str; 4] = ["logout", "unlock", "password", "factor"];

/// Ends the logins of a user, and returns the user's password.
fn end(way: &str, web: &Web, admin: &Client, (name, uid): (&str, i64), password: &'static str) -> &'static str {
    match way {
        "logout" => assert_eq!(web.login(name, password).delete("/api/logout").status, 200),
        "unlock" => {
            admin.changed(&format!("/api/users/{uid}/lock"), &json!({}));
            assert_eq!(admin.delete(&format!("/api/users/{uid}/lock")).status, 200);
        }
        "factor" => assert_eq!(admin.delete(&format!("/api/users/{uid}/mfa/clear")).status, 200),
        _ => {
            admin.changed(&format!("/api/users/{uid}/pwd"), &json!({ "NewPass": NEW_PASSWORD }));
            return NEW_PASSWORD;
        }
    }
    password
}

/// Lets both webservers of a site that are disconnected reconnect, one after the other.
fn reconnect(site: &mut Site, is_b_first: bool) {
    if is_b_first {
        site.a.stop()
    } else {
        site.b.stop()
    }
    site.start_datastore();
    let first = if is_b_first { "b" } else { "a" };
    site.fleet.wait_connected(first);
    site.fleet.wait("the first one has sent its changes", || site.fleet.status(first)["outbox"] == 0);
    if is_b_first {
        site.a.restart(&site.fleet, &[])
    } else {
        site.b.restart(&site.fleet, &[])
    }
    site.converges();
}

/// Two webservers that cannot see each other end the logins of the same users. Each accepts new ones; none of them may
/// survive the end at the other one, whichever reconnects first.
fn ends_at_both(is_b_first: bool) {
    let mut site = Site::new();
    let (admin, root) = site.admins();
    let of_way = |way: &str| format!("user-{way}-{is_b_first}");
    let users = ENDS.map(|way| add_user(&admin, &of_way(way), false));
    let boss = add_user(&admin, "boss", true);
    site.converges();
    let early = ENDS.map(|way| site.a.login(&of_way(way), PASSWORD));
    site.stop_datastore();
    let sessions_of = |web: &Web, admin: &Client| -> Vec<Client> {
        let pairs = ENDS.iter().zip(users);
        let mut found: Vec<Client> = pairs
            .map(|(way, uid)| {
                let name = of_way(way);
                let password = end(way, web, admin, (&name, uid), PASSWORD);
                web.login(&name, password)
            })
            .collect();
        assert_eq!(web.login("boss", PASSWORD).delete("/api/logout").status, 200);
        let bosses = web.login("boss", PASSWORD);
        found.push(acting(&bosses, web, users[0]));
        bosses.changed(&format!("/api/users/{}/lock", users[1]), &json!({}));
        found.push(bosses);
        assert!(found.iter().take(1).all(|session| is_valid(web, session)));
        found
    };
    let (at_a, at_b) = (sessions_of(&site.a, &admin), sessions_of(&site.b, &root));
    let token = at_b[0].made("/api/tokens", &json!({ "name": "t", "capabilities": ["DashboardRead"] }));
    let token = token["token"].as_str().expect("a value").to_owned();
    let promoted = format!("/api/users/{}/admin", users[2]);
    at_b.last().expect("the administrator").changed(&promoted, &json!({}));
    reconnect(&mut site, is_b_first);
    // An end that no epoch names is followed by one a moment later.
    for (number, session) in at_a.iter().chain(&at_b).chain(&early).enumerate() {
        for web in [&site.a, &site.b] {
            assert!(!is_valid(web, session), "session {number}, {is_b_first}");
        }
    }
    for web in [&site.a, &site.b] {
        assert_eq!(web.nobody().with("Gravwell-Token", &token).get("/api/dashboards").status == 200, is_b_first);
        assert!(may_log_in(web, &of_way("logout"), PASSWORD) && may_log_in(web, "boss", PASSWORD));
        let session = web.login("boss", PASSWORD);
        site.converges();
        assert!(is_valid(&site.a, &session) && is_valid(&site.b, &session), "a login after both");
        assert_eq!(session.ok("GET", &promoted)["Admin"] == true, is_b_first, "upon the login that was committed");
    }
    let _ = boss;
}

#[test]
fn p11_logins_after_an_end_do_not_survive_a_later_end() {
    ends_at_both(false);
    ends_at_both(true);
}

#[test]
fn p11_a_removed_membership_does_not_return_with_an_older_grant() {
    let mut site = Site::new();
    let (admin, _) = site.admins();
    let users = ["bob", "carol", "dave"].map(|name| add_user(&admin, name, false));
    let team = admin.made("/api/groups", &json!({ "Name": "team" })).as_i64().expect("number");
    let join = json!({ "GIDs": [team] });
    let path = |uid: i64| format!("/api/users/{uid}/group");
    let groups = |client: &Client, uid: i64| client.ok("GET", &path(uid)).as_array().map_or(0, Vec::len);
    admin.made(&path(users[0]), &join);
    site.converges();
    site.stop_datastore();
    let root = site.b.admin(&site.fleet);
    for uid in users {
        root.made(&path(uid), &join);
    }
    site.b.stop();
    site.start_datastore();
    site.fleet.wait_connected("a");
    admin.made(&path(users[1]), &join);
    for uid in &users[..2] {
        assert_eq!(admin.delete(&format!("{}/{team}", path(*uid))).status, 200);
    }
    site.b.restart(&site.fleet, &[]);
    site.converges();
    assert_eq!(users.map(|uid| groups(&admin, uid)), [0, 0, 1], "a grant that nothing has changed since takes effect");
}

/// Sets up a second factor.
fn set_up(web: &Web, user: &str) -> App {
    let body = |kind: &str, code: &str| json!({ "User": user, "Pass": PASSWORD, "AuthType": kind, "AuthCode": code });
    let begun = web.nobody().post("/api/mfa/totp/setup", &body("None", "")).json();
    let app = App::of_seed(begun["Seed"].as_str().expect("a seed"));
    let done = web.nobody().put("/api/mfa/totp/setup", &body("TOTP", &app.code(0)));
    assert_eq!(done.status, 200, "{}", done.text());
    app
}

#[test]
fn p11_clearing_a_second_factor_does_not_delete_a_later_one() {
    let mut site = Site::new();
    let (admin, _) = site.admins();
    let [bob, carol, dave] = ["bob", "carol", "dave"].map(|name| add_user(&admin, name, false));
    set_up(&site.a, "bob");
    set_up(&site.a, "dave");
    site.converges();
    site.stop_datastore();
    let root = site.b.admin(&site.fleet);
    for uid in [bob, carol, dave] {
        assert_eq!(root.delete(&format!("/api/users/{uid}/mfa/clear")).status, 200);
    }
    site.b.stop();
    site.start_datastore();
    site.fleet.wait_connected("a");
    assert_eq!(admin.delete(&format!("/api/users/{bob}/mfa/clear")).status, 200);
    let early = site.a.login("bob", PASSWORD);
    set_up(&site.a, "bob");
    set_up(&site.a, "carol");
    site.b.restart(&site.fleet, &[]);
    site.converges();
    for web in [&site.a, &site.b] {
        assert!(!may_log_in(web, "bob", PASSWORD), "the factor replaced the one that was to be cleared");
        assert!(!may_log_in(web, "carol", PASSWORD), "there was none to be cleared");
        assert!(may_log_in(web, "dave", PASSWORD), "it is the one that was to be cleared");
        assert!(!is_valid(web, &early));
    }
}

#[test]
fn p8_deleting_preferences_does_not_delete_later_ones() {
    let mut site = Site::new();
    let (admin, _) = site.admins();
    let bob = add_user(&admin, "bob", false);
    let path = format!("/api/users/{bob}/preferences");
    site.a.login("bob", PASSWORD).changed(&path, &json!({ "theme": "dark" }));
    site.converges();
    site.stop_datastore();
    assert_eq!(site.b.login("bob", PASSWORD).delete(&path).status, 200);
    site.b.stop();
    site.start_datastore();
    site.fleet.wait_connected("a");
    let later: Value = json!({ "theme": "light" });
    site.a.login("bob", PASSWORD).changed(&path, &later);
    site.b.restart(&site.fleet, &[]);
    site.converges();
    assert_eq!(site.b.login("bob", PASSWORD).ok("GET", &path), later);
    assert_eq!(site.a.login("bob", PASSWORD).delete(&path).status, 200);
    assert_eq!(site.a.login("bob", PASSWORD).ok("GET", &path), Value::Null);
}
