//! Rights that are taken away at one webserver while another one, cut off, still lets in whoever had them.

use serde_json::json;

use super::client::Client;
use super::{Site, Web};

const PASSWORD: &str = "a plain horse";
const NEW_PASSWORD: &str = "a newer horse";

fn add_user(admin: &Client, name: &str, is_admin: bool) -> i64 {
    let user = json!({ "User": name, "Pass": PASSWORD, "Admin": is_admin });
    admin.made("/api/users", &user).as_i64().expect("number")
}

/// A token of whoever is logged in there, as its value.
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
fn w70_what_was_made_with_a_right_that_was_taken_away_elsewhere_is_not_committed() {
    let mut site = Site::new();
    let (admin, _) = site.admins();
    let [alice, bob, carol, dave, eve, mallory] = ["alice", "bob", "carol", "dave", "eve", "mallory"]
        .map(|name| add_user(&admin, name, ["dave", "eve"].contains(&name)));
    admin.changed(&format!("/api/users/{carol}/lock"), &json!({}));
    site.converges();
    site.stop_datastore();

    // What the webserver that is cut off lets pass.
    let (root, eves, bobs) = (site.b.admin(&site.fleet), site.b.login("eve", PASSWORD), site.b.login("bob", PASSWORD));
    eves.changed(&format!("/api/users/{mallory}/admin"), &json!({}));
    eves.changed(&format!("/api/users/{alice}/pwd"), &json!({ "NewPass": NEW_PASSWORD }));
    let first = token(&bobs, "made before all sessions were ended");
    assert_eq!(bobs.delete("/api/logout").status, 200);
    let bobs = site.b.login("bob", PASSWORD);
    let second = token(&bobs, "made in a new epoch");
    let dashboard = bobs.made("/api/dashboards", &json!({ "Name": "bob's work", "Data": {} }));
    assert_eq!(root.delete(&format!("/api/users/{carol}/lock")).status, 200);
    // Somebody who is an administrator already.
    root.changed(&format!("/api/users/{dave}/admin"), &json!({}));
    assert!(opens(&site.b, &first) && opens(&site.b, &second) && may_log_in(&site.b, "carol", PASSWORD));
    site.b.stop();

    // What is taken away meanwhile.
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
        assert!(!may_log_in(web, "carol", PASSWORD), "the newer lock counts");
        let bobs = web.nobody().with("Authorization", &format!("Bearer {}", bobs.token()));
        assert_eq!(bobs.get("/api/testauth").status, 401, "a login with the former password");
        // Work of somebody who may still work is none of this.
        let id = dashboard.as_i64().expect("a number");
        assert_eq!(client.get(&format!("/api/dashboards/{id}")).status, 200);
    }
}

/// Online: who is about to lose a right repeats what gives it back.
#[test]
fn w71_a_right_is_not_written_back_by_who_loses_it() {
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
        site.fleet.wait("there are some", || bobs.ok("GET", "/api/tokens").as_array().is_some_and(|all| all.len() > 2));
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
