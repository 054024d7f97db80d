//! Conflicting changes at two disconnected webservers: the change that is committed first stands, the other one is
//! rejected and shown to its author, and no revoked right or deleted object is restored.

use serde_json::{Value, json};

use super::Site;
use super::client::Client;

/// Returns the descriptions of the rejected changes that a webserver lists.
fn rejected(client: &Client) -> Vec<String> {
    let list = client.ok("GET", "/api/rejections");
    let what = |rejection: &Value| rejection["What"].as_str().expect("a description").to_owned();
    list.as_array().expect("a list").iter().map(what).collect()
}

#[track_caller]
fn done(answer: &super::client::Answer) {
    assert_eq!(answer.status, 200, "{}", answer.text());
}

impl Site {
    /// After both have worked without the datastore, lets all changes of b be committed before any of a.
    pub fn heals_b_first(&mut self) {
        self.a.stop();
        self.start_datastore();
        self.fleet.wait("b's changes are committed", || self.fleet.status("b")["outbox"] == 0);
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        self.a.restart(&self.fleet, &options);
        self.converges();
    }
}

/// Paths of one object of each collection, and of some that will be deleted.
struct Objects {
    gid: Value,
    user: String,
    group: String,
    dashboard: String,
    resource: String,
    contents: String,
    token: String,
    /// The token's secret value.
    value: String,
    doomed_dashboard: String,
    doomed_resource: String,
}

impl Objects {
    fn new(admin: &Client) -> Objects {
        let gid = admin.made("/api/groups", &json!({ "Name": "readers" }));
        let uid = admin.made("/api/users", &json!({ "User": "dave", "Pass": "a plain horse", "Name": "Dave" }));
        done(&admin.post(&format!("/api/users/{uid}/group"), &json!({ "GIDs": [gid] })));
        let dashboard = |name: &str| {
            let made = admin.made("/api/dashboards", &json!({ "Name": name, "GIDs": [gid], "Data": { "v": 1 } }));
            format!("/api/dashboards/{made}")
        };
        let resource = |name: &str| {
            let made = admin.made("/api/resources", &json!({ "ResourceName": name, "GroupACL": [gid] }));
            let path = format!("/api/resources/{}", made["GUID"].as_str().expect("GUID"));
            done(&admin.upload("PUT", &format!("{path}/raw"), "file", name.as_bytes()));
            path
        };
        let token = admin.made("/api/tokens", &json!({ "name": "t", "capabilities": ["DashboardRead"] }));
        let user = format!("/api/users/{uid}");
        admin.changed(&format!("{user}/preferences"), &json!({ "theme": "first" }));
        admin.changed(&format!("{user}/capabilities"), &json!({ "Grants": ["Search"] }));
        Objects {
            user,
            group: format!("/api/groups/{gid}"),
            dashboard: dashboard("d"),
            resource: resource("r"),
            contents: resource("c"),
            token: format!("/api/tokens/{}", token["id"].as_str().expect("id")),
            value: token["token"].as_str().expect("value").to_owned(),
            doomed_dashboard: dashboard("doomed"),
            doomed_resource: resource("doomed"),
            gid,
        }
    }

    /// Makes changes without seeing those of b. Every object is changed twice: the second change is based on the first
    /// one, and must be rejected with it.
    fn change_unseen(&self, a: &Client) {
        for mark in ["one", "two"] {
            a.changed(&format!("{}/searchgroup", self.user), &json!({ "GID": self.gid }));
            a.changed(&self.user, &json!({ "Name": mark }));
            a.changed(&self.group, &json!({ "Desc": mark }));
            a.changed(&self.dashboard, &json!({ "Description": mark }));
            a.changed(&self.resource, &json!({ "Description": mark }));
            done(&a.upload("PUT", &format!("{}/raw", self.contents), "file", mark.as_bytes()));
            a.changed(&self.token, &json!({ "name": mark, "capabilities": ["DashboardRead"] }));
            a.changed(&format!("{}/preferences", self.user), &json!({ "theme": mark }));
            a.changed(&format!("{}/capabilities", self.user), &json!({ "Grants": ["Search", "DashboardWrite"] }));
        }
        a.ok("DELETE", &self.doomed_dashboard);
        a.ok("DELETE", &self.doomed_resource);
    }

    /// Makes the changes that are committed first. Returns the new value of the token.
    fn change_committed(&self, b: &Client) -> String {
        b.changed(&self.user, &json!({ "User": "erin", "Email": "erin@example.org" }));
        b.changed(&self.group, &json!({ "Name": "writers" }));
        b.changed(&self.dashboard, &json!({ "GIDs": [], "Data": { "v": 2 } }));
        b.changed(&self.resource, &json!({ "GroupACL": [] }));
        b.changed(&self.contents, &json!({ "GroupACL": [] }));
        done(&b.upload("PUT", &format!("{}/raw", self.contents), "file", "committed".as_bytes()));
        let renewed = b.send_text("PATCH", &self.token, "application/json", "{}");
        done(&renewed);
        b.changed(&format!("{}/preferences", self.user), &json!({ "theme": "committed" }));
        b.changed(&format!("{}/capabilities", self.user), &json!({ "Grants": [] }));
        b.changed(&self.doomed_dashboard, &json!({ "Description": "needed" }));
        b.changed(&self.doomed_resource, &json!({ "Description": "needed" }));
        renewed.json()["token"].as_str().expect("value").to_owned()
    }

    /// Checks that all objects are as b changed them.
    #[track_caller]
    fn are_as_committed(&self, client: &Client, nobody: &Client, renewed: &str) {
        let user = client.ok("GET", &self.user);
        assert_eq!(
            (&user["User"], &user["Email"], &user["Name"]),
            (&json!("erin"), &json!("erin@example.org"), &json!("Dave"))
        );
        assert_eq!(client.ok("GET", &format!("{}/searchgroup", self.user)), json!(0));
        let group = client.ok("GET", &self.group);
        assert_eq!((&group["Name"], &group["Desc"]), (&json!("writers"), &json!("")));
        let dashboard = client.ok("GET", &self.dashboard);
        assert_eq!(
            (&dashboard["GIDs"], &dashboard["Data"]),
            (&json!([]), &json!({ "v": 2 })),
            "no longer shared, and not stale"
        );
        for path in [&self.resource, &self.contents] {
            assert_eq!(client.ok("GET", path)["GroupACL"], json!([]), "un-shared");
        }
        assert_eq!(client.get(&format!("{}/raw", self.contents)).body, b"committed");
        assert_eq!(client.ok("GET", &format!("{}/preferences", self.user)), json!({ "theme": "committed" }));
        assert_eq!(client.ok("GET", &format!("{}/capabilities", self.user)), json!({ "Grants": [] }));
        for path in [&self.doomed_dashboard, &self.doomed_resource] {
            assert_eq!(client.ok("GET", path)["Description"], "needed");
        }
        let opens = |value: &str| nobody.with("Gravwell-Token", value).get("/api/dashboards").status;
        assert_eq!((opens(&self.value), opens(renewed)), (401, 200), "the renewed token stays valid");
    }
}

#[test]
fn p08_of_two_changes_made_apart_the_committed_one_stands_and_the_other_is_rejected() {
    let mut site = Site::new();
    let (a, b) = site.admins();
    let objects = Objects::new(&a);
    site.converges();
    let dave = site.a.login("dave", "a plain horse");
    site.stop_datastore();
    objects.change_unseen(&a);
    let renewed = objects.change_committed(&b);
    // An attacker who knows the old password changes it while an administrator, unknown to a, resets it.
    let password = format!("{}/pwd", objects.user);
    dave.changed(&password, &json!({ "OrigPass": "a plain horse", "NewPass": "a stolen horse" }));
    b.changed(&password, &json!({ "NewPass": "a safe horse" }));
    site.heals_b_first();
    for (client, web) in [(&a, &site.a), (&b, &site.b)] {
        objects.are_as_committed(client, &web.nobody(), &renewed);
        let login = |password: &str| json!({ "User": "erin", "Pass": password });
        let logins = ["a safe horse", "a stolen horse", "a plain horse"];
        let logins = logins.map(|password| web.nobody().post("/api/login", &login(password)).status);
        assert_eq!(logins, [200, 422, 422]);
    }
    assert_eq!(rejected(&b), Vec::<String>::new());
    let rejected = rejected(&a);
    assert_eq!(rejected.len(), 2 * 9 + 2 + 1, "each of them: {rejected:?}");
    site.fleet.wait("the author is notified", || {
        let notes = a.ok("GET", "/api/notifications").to_string();
        ["change dashboard d", "delete dashboard doomed", "change token two"].iter().all(|what| notes.contains(what))
    });
    let doctor = String::from_utf8(site.fleet.run("a", &["doctor"]).stdout).expect("text");
    assert!(doctor.contains("belong to one user or group each"), "{doctor}");
}

#[test]
fn p07_changes_upon_changes_that_wait_are_committed_with_them() {
    let mut site = Site::new();
    let (a, b) = site.admins();
    let objects = Objects::new(&a);
    site.converges();
    site.stop_datastore();
    objects.change_unseen(&a);
    // Another incarnation of the process has another origin; its changes are based on the pending ones.
    site.a.kill();
    site.a.restart(&site.fleet, &[]);
    let made = a.made("/api/dashboards", &json!({ "Name": "new" }));
    let new = format!("/api/dashboards/{made}");
    for mark in ["three", "four"] {
        a.changed(&objects.dashboard, &json!({ "Description": mark }));
        a.changed(&objects.user, &json!({ "User": mark }));
        a.changed(&new, &json!({ "Description": mark }));
        done(&a.upload("PUT", &format!("{}/raw", objects.contents), "file", mark.as_bytes()));
        a.changed(&objects.contents, &json!({ "Description": mark }));
    }
    site.start_datastore();
    site.converges();
    assert_eq!((rejected(&a), rejected(&b)), (vec![], vec![]));
    for client in [&a, &b] {
        assert_eq!(client.ok("GET", &objects.user)["User"], "four");
        for path in [&objects.dashboard, &new, &objects.contents] {
            assert_eq!(client.ok("GET", path)["Description"], "four", "{path}");
        }
        assert_eq!(client.get(&format!("{}/raw", objects.contents)).body, b"four");
        assert_eq!(client.get(&objects.doomed_dashboard).status, 404);
        assert_eq!(client.get(&objects.doomed_resource).status, 404);
    }
}

#[test]
fn p08_changes_of_one_object_at_two_webservers_at_once_are_both_kept() {
    const ROUNDS: usize = 15;
    let site = Site::new();
    let (a, b) = site.admins();
    let path = format!("/api/dashboards/{}", a.made("/api/dashboards", &json!({ "Name": "d" })));
    site.converges();
    std::thread::scope(|scope| {
        for (client, member) in [(&a, "Description"), (&b, "Name")] {
            let (client, path) = (client.clone(), &path);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let mut answer = client.put(path, &json!({ member: format!("{round}") }));
                    // After five conflicts in a row the server returns 409, and the client decides.
                    while answer.status == 409 {
                        answer = client.put(path, &json!({ member: format!("{round}") }));
                    }
                    done(&answer);
                }
            });
        }
    });
    site.converges();
    let last = json!((ROUNDS - 1).to_string());
    for client in [&a, &b] {
        let dashboard = client.ok("GET", &path);
        assert_eq!((&dashboard["Description"], &dashboard["Name"]), (&last, &last), "both changes are in effect");
    }
    assert_eq!((rejected(&a), rejected(&b)), (vec![], vec![]), "users are notified only once");
}

#[test]
fn p08_of_two_uploads_at_once_one_is_stored_and_the_other_is_answered_with_a_conflict() {
    let site = Site::new();
    let (a, b) = site.admins();
    let made = a.made("/api/resources", &json!({ "ResourceName": "r" }));
    let raw = format!("/api/resources/{}/raw", made["GUID"].as_str().expect("GUID"));
    for _ in 0..4 {
        done(&a.upload("PUT", &raw, "file", "base".as_bytes()));
        site.converges();
        let contents = ["x".repeat(300_000), "y".repeat(300_000)];
        let answers: Vec<u16> = std::thread::scope(|scope| {
            let upload = |client: &Client, contents: &str| {
                let (client, raw, contents) = (client.clone(), &raw, contents.to_owned());
                scope.spawn(move || client.upload("PUT", raw, "file", contents.as_bytes()).status)
            };
            let both = [upload(&a, &contents[0]), upload(&b, &contents[1])];
            both.into_iter().map(|thread| thread.join().expect("ends")).collect()
        });
        site.converges();
        let (of_a, of_b) = (a.get(&raw).body, b.get(&raw).body);
        assert_eq!(of_a, of_b);
        // An upload that started after the other had ended has seen it.
        let stored = answers.iter().zip(&contents).filter(|(status, _)| **status == 200);
        assert!(stored.clone().any(|(_, contents)| contents.as_bytes() == of_a), "{answers:?}");
        assert!(answers.iter().all(|status| [200, 409].contains(status)), "{answers:?}");
    }
}

#[test]
fn p11_a_rejected_change_is_tried_again_only_by_who_may_make_it_now() {
    let mut site = Site::new();
    let (a, b) = site.admins();
    let zed = json!({ "User": "zed", "Pass": "a known horse", "Admin": true });
    let mallory = b.made("/api/users", &json!({ "User": "mallory", "Pass": "a plain horse", "Admin": true }));
    site.converges();
    let as_admin = site.a.login("mallory", "a plain horse");
    site.stop_datastore();
    done(&as_admin.post("/api/users", &zed));
    let other = b.made("/api/users", &json!({ "User": "zed", "Pass": "a hidden horse" }));
    site.heals_b_first();
    b.ok("DELETE", &format!("/api/users/{mallory}/admin"));
    b.ok("DELETE", &format!("/api/users/{other}"));
    site.converges();
    let demoted = site.a.login("mallory", "a plain horse");
    assert_eq!(rejected(&demoted), ["create user zed"]);
    let id = demoted.ok("GET", "/api/rejections")[0]["ID"].as_str().expect("ID").to_owned();
    let retry = format!("/api/rejections/{id}/retry");
    let refused = demoted.post(&retry, &json!({}));
    assert_eq!(refused.status, 403, "{}", refused.text());
    assert!(refused.text().contains("you may not make this change now"), "{}", refused.text());
    let login = |name: &str| json!({ "User": name, "Pass": "a known horse" });
    assert_eq!(site.a.nobody().post("/api/login", &login("zed")).status, 422);
    assert_eq!(rejected(&demoted), ["create user zed"], "it remains on the list");
    // A user who may create users can retry it.
    done(&a.post(&retry, &json!({})));
    site.converges();
    assert_eq!(site.b.nobody().post("/api/login", &login("zed")).status, 200);
}
