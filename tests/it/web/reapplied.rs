//! A change that was rejected because another user changed the same object, applied again to the current version.

use serde_json::{Value, json};

use super::Site;
use super::client::Client;

/// Returns the path of the rejected change with this description.
#[track_caller]
fn rejection(client: &Client, what: &str) -> String {
    let list = client.ok("GET", "/api/rejections");
    let found = list
        .as_array()
        .expect("a list")
        .iter()
        .find(|one| one["What"].as_str().is_some_and(|text| text.contains(what)));
    format!("/api/rejections/{}", found.unwrap_or_else(|| panic!("{what}: {list}"))["ID"].as_str().expect("ID"))
}

fn upon(shown: &Value) -> Value {
    json!({ "Upon": shown["Upon"] })
}

#[test]
fn p08_a_rejected_change_is_applied_upon_what_its_author_was_shown_and_upon_nothing_else() {
    let mut site = Site::new();
    let (a, b) = site.admins();
    let gid = a.made("/api/groups", &json!({ "Name": "readers" }));
    let uid = a.made("/api/users", &json!({ "User": "dave", "Pass": "a plain horse", "Name": "Dave" }));
    let dashboard = |name: &str| {
        let made = a.made("/api/dashboards", &json!({ "Name": name, "GIDs": [gid], "Data": { "v": 1 } }));
        format!("/api/dashboards/{made}")
    };
    let [plain, shared, gone] = ["plain", "shared", "gone"].map(dashboard);
    let user = format!("/api/users/{uid}");
    site.converges();
    site.stop_datastore();
    for path in [&plain, &shared, &gone] {
        a.changed(path, &json!({ "Description": "mine" }));
    }
    a.changed(&user, &json!({ "Name": "mine" }));
    b.changed(&plain, &json!({ "Description": "theirs" }));
    b.changed(&shared, &json!({ "GIDs": [] }));
    b.ok("DELETE", &gone);
    b.changed(&user, &json!({ "Name": "theirs" }));
    site.heals_b_first();
    // Retried unchanged, it fails again and stays on the list.
    let one = rejection(&a, "dashboard plain");
    let retried = a.post(&format!("{one}/retry"), &json!({}));
    assert_eq!(retried.status, 409, "{}", retried.text());
    // The current version is shown next to it, and another user changes it again before the reply.
    let shown = a.ok("GET", &one);
    let object = &shown["Upon"][0];
    let texts = ["Present", "Mine"].map(|side| object[side].as_str().expect("text").to_owned());
    assert!(texts[0].contains("theirs") && texts[1].contains("mine"), "{shown}");
    b.changed(&plain, &json!({ "Description": "theirs, later" }));
    site.converges();
    let late = a.post(&format!("{one}/retry"), &upon(&shown));
    assert_eq!(late.status, 409, "{}", late.text());
    assert_eq!(a.ok("GET", &plain)["Description"], "theirs, later", "unseen changes are not overwritten");
    let shown = a.ok("GET", &one);
    assert!(shown.to_string().contains("theirs, later"), "{shown}");
    // A different write with the same sequence, as after a recovery, is not accepted.
    let mut other = upon(&shown);
    let version = other["Upon"][0]["Version"].as_str().expect("text").to_owned();
    let (seq, _) = version.split_once('-').expect("its sequence and its contents");
    other["Upon"][0]["Version"] = json!(format!("{seq}-0000000000000000"));
    assert_eq!(a.post(&format!("{one}/retry"), &other).status, 409);
    assert_eq!(a.post(&format!("{one}/retry"), &upon(&shown)).status, 200);
    site.converges();
    for client in [&a, &b] {
        assert_eq!(client.ok("GET", &plain)["Description"], "mine");
    }
    assert_eq!(a.get(&one).status, 404, "it is no longer listed");
    // Revoked shares, deleted objects, and access rights cannot be restored this way.
    for (what, said) in
        [("dashboard shared", "share scope"), ("dashboard gone", "deleted"), ("dave", "make the change again")]
    {
        let answer = a.get(&rejection(&a, what));
        assert!(answer.status == 409 && answer.text().contains(said), "{what}: {}", answer.text());
        let made_up = json!({ "Upon": [{ "Collection": "users", "Key": uid.to_string(), "Version": 1 }] });
        assert_eq!(a.post(&format!("{}/retry", rejection(&a, what)), &made_up).status, 409, "{what}");
    }
    assert_eq!((a.ok("GET", &shared)["GIDs"].clone(), a.get(&gone).status), (json!([]), 404));
    assert_eq!(a.ok("GET", &user)["Name"], "theirs");
}

#[test]
fn p07_what_was_rejected_of_one_user_hinders_that_one_and_nobody_else() {
    // One user may use an eighth, 128 KiB.
    let mut site = Site::with("Outbox-Max-MB=1\n");
    let (admin, _) = site.admins();
    for user in ["bob", "carol"] {
        admin.made("/api/users", &json!({ "User": user, "Pass": "a plain horse" }));
    }
    site.converges();
    let [bob, at_b, carol] =
        [(&site.a, "bob"), (&site.b, "bob"), (&site.a, "carol")].map(|(web, user)| web.login(user, "a plain horse"));
    let large = |bytes: usize| json!({ "Name": "d", "Data": { "x": "x".repeat(bytes) } });
    let made: Vec<String> =
        (0..2).map(|_| format!("/api/dashboards/{}", bob.made("/api/dashboards", &large(10)))).collect();
    site.converges();
    site.stop_datastore();
    for path in &made {
        bob.changed(path, &large(60_000));
        at_b.changed(path, &large(20));
    }
    let full = bob.post("/api/dashboards", &large(20_000));
    assert_eq!(full.status, 503, "pending changes count as well: {}", full.text());
    site.heals_b_first();
    let rejections = bob.ok("GET", "/api/rejections");
    let rejections = rejections.as_array().expect("a list");
    assert_eq!(rejections.len(), 2, "{rejections:?}");
    let refused = bob.post("/api/dashboards", &large(20_000));
    assert!(refused.status == 413 && refused.text().contains("/api/rejections"), "{}", refused.text());
    // Other users continue, and so do deletions and logins, which are needed to resolve the rejections.
    carol.made("/api/dashboards", &large(60_000));
    bob.ok("DELETE", &made[0]);
    let again = site.a.login("bob", "a plain horse");
    for one in rejections {
        again.ok("DELETE", &format!("/api/rejections/{}", one["ID"].as_str().expect("ID")));
    }
    bob.made("/api/dashboards", &large(20_000));
}
