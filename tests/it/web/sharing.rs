//! Dashboards and resources shared between owners, groups and all users; compare-and-set; reading one's own writes.

use serde_json::json;

use super::{Site, Web};
use crate::fleet::Fleet;

#[test]
fn a_dashboard_is_visible_to_its_share_scope() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let gid = admin.made("/api/groups", &json!({ "Name": "g" }));
    for name in ["owner", "member", "stranger"] {
        let uid = admin.made("/api/users", &json!({ "User": name, "Pass": "a plain horse" }));
        if name != "stranger" {
            admin.made(&format!("/api/users/{uid}/group"), &json!({ "GIDs": [gid] }));
        }
    }
    let [owner, member, stranger] = ["owner", "member", "stranger"].map(|name| web.login(name, "a plain horse"));
    let data = r#"{"tiles":[{"id":9007199254740991,"x":1.50}],"later":{"deep":[null]},"version":3}"#;
    let id = owner.send_text(
        "POST",
        "/api/dashboards",
        "application/json",
        &format!(r#"{{"Name":"d","Description":null,"Labels":["l"],"UID":1,"Data":{data}}}"#),
    );
    assert_eq!(id.status, 200, "{}", id.text());
    let path = format!("/api/dashboards/{}", id.text());
    let shown = owner.get(&path);
    assert!(shown.text().contains(data), "returned unchanged: {}", shown.text());
    let shown = shown.json();
    assert!(shown["UID"] != 1 && shown["Description"] == "" && shown["Labels"] == json!(["l"]), "{shown}");
    assert_eq!(
        owner.ok("GET", &format!("/api/dashboards/{}", shown["GUID"].as_str().expect("GUID")))["ID"],
        shown["ID"]
    );
    let sees = |client: &super::Client| {
        (client.get(&path).status, client.ok("GET", "/api/dashboards").as_array().map(Vec::len))
    };
    assert_eq!((sees(&member), sees(&admin)), ((404, Some(0)), (200, Some(0))));
    assert_eq!(admin.ok("GET", "/api/dashboards?admin=true").as_array().map(Vec::len), Some(1));
    assert_eq!(stranger.ok("GET", "/api/dashboards?admin=true"), json!([]));
    owner.changed(&path, &json!({ "GIDs": [gid] }));
    assert_eq!((sees(&member), sees(&stranger)), ((200, Some(1)), (404, Some(0))));
    assert_eq!(member.put(&path, &json!({ "Name": "x" })).status, 403);
    owner.changed(&path, &json!({ "WriteAccess": { "Global": false, "GIDs": [gid] } }));
    assert_eq!(
        member.changed(&path, &json!({ "Name": "y", "GIDs": [] }))["GIDs"],
        json!([gid]),
        "only the owner may share"
    );
    assert_eq!(member.delete(&path).status, 403);
    assert_eq!(owner.put(&path, &json!({ "Global": true })).status, 403);
    admin.changed(&path, &json!({ "Global": true }));
    assert_eq!(sees(&stranger), (200, Some(1)));
    let copy = stranger.ok("GET", &format!("{path}/clone"));
    let copied = stranger.ok("GET", &format!("/api/dashboards/{copy}"));
    assert!(copied["Global"] == false && copied["GIDs"] == json!([]) && copied["GUID"] != shown["GUID"], "{copied}");
    assert!(stranger.get(&format!("/api/dashboards/{copy}")).text().contains(data));
    assert_eq!(owner.ok("DELETE", &path), json!(null));
    assert_eq!(owner.get(&path).status, 404);
    assert_eq!(owner.get("/api/dashboards/non-existent").status, 404);
}

#[test]
fn a_change_requires_the_latest_version() {
    let site = Site::new();
    let (a, b) = site.admins();
    let id = a.made("/api/dashboards", &json!({ "Name": "d" }));
    let path = format!("/api/dashboards/{id}");
    let first = a.get(&path);
    let tag = first.header("etag").expect("a tag").to_owned();
    let position = first.header("gravwell-position").expect("a position").to_owned();
    // A user who is moved to the other webserver reads their own writes.
    let moved = b.with("Gravwell-Wait-For", &position);
    assert_eq!(moved.get(&path).header("etag"), Some(tag.as_str()));
    let put = |client: &super::Client, tag: &str, name: &str| {
        client.with("If-Match", tag).put(&path, &json!({ "Name": name })).status
    };
    assert_eq!((put(&moved, &tag, "one"), put(&a, &tag, "two")), (200, 412));
    assert_eq!(a.with("If-Match", &tag).delete(&path).status, 412);
    assert_eq!(a.with("If-None-Match", &tag).get(&path).status, 200);
    let now = a.get(&path);
    assert_eq!(
        (now.json()["Name"].as_str(), a.with("If-None-Match", now.header("etag").expect("tag")).get(&path).status),
        (Some("one"), 304)
    );
    assert_eq!(put(&a, now.header("etag").expect("tag"), "three"), 200);
    for nonsense in ["x", "1.2", "0000.1.5"] {
        let answer = a.with("Gravwell-Wait-For", nonsense).get(&path);
        assert!([400, 409].contains(&answer.status), "{nonsense}: {}", answer.text());
    }
}

#[test]
fn a_name_resolves_to_the_nearest_resource() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let gid = admin.made("/api/groups", &json!({ "Name": "g" }));
    let uid = admin.made("/api/users", &json!({ "User": "bob", "Pass": "a plain horse" }));
    admin.made(&format!("/api/users/{uid}/group"), &json!({ "GIDs": [gid] }));
    let bob = web.login("bob", "a plain horse");
    let make = |client: &super::Client, body: serde_json::Value| client.made("/api/resources", &body)["GUID"].clone();
    let look = |name: &str| bob.get(&format!("/api/resources/lookup/{name}"));
    assert_eq!(look("x").status, 404);
    make(&admin, json!({ "ResourceName": "x" }));
    assert_eq!(look("x").status, 404, "another's own");
    let global = make(&admin, json!({ "ResourceName": "x", "Global": true }));
    assert_eq!(look("x").json(), global);
    let group = make(&admin, json!({ "ResourceName": "x", "GroupACL": [gid] }));
    assert_eq!(look("x").json(), group);
    let own = make(&bob, json!({ "ResourceName": "x" }));
    assert_eq!(look("x").json(), own);
    assert_eq!(
        (look("GLOBAL:x").json(), look("group=g:x").json(), look("user=bob:x").json()),
        (global.clone(), group, own)
    );
    assert_eq!(look(global.as_str().expect("GUID")).json(), global);
    assert_eq!(
        bob.put(&format!("/api/resources/{}", global.as_str().expect("GUID")), &json!({ "Description": "mine" }))
            .status,
        403
    );
    assert_eq!(bob.post("/api/resources", &json!({ "ResourceName": "y", "Global": true })).status, 403);
}

#[test]
fn histories_are_trimmed_searched_and_cleared_by_name() {
    let site = Site::new();
    let (a, b) = site.admins();
    for number in 0..103 {
        let via = if number % 2 == 0 { &a } else { &b };
        via.made("/api/searchhistory", &json!({ "UserQuery": format!("tag=x {number}") }));
    }
    let text = site.converges();
    let kept = a.ok("GET", "/api/searchhistory");
    let kept = kept.as_array().expect("list");
    assert!((100..=101).contains(&kept.len()), "{}", kept.len());
    assert_eq!((kept[0]["UserQuery"].as_str(), text.matches("\"history\"").count()), (Some("tag=x 102"), kept.len()));
    assert_eq!(b.ok("GET", "/api/searchhistory").as_array(), Some(kept));
    assert_eq!(a.ok("GET", "/api/searchhistory?refine=101").as_array().map(Vec::len), Some(1));
    assert_eq!(a.ok("GET", "/api/searchhistory?start=1&end=3")[0]["UserQuery"], "tag=x 101");
    let uid = a.made("/api/users", &json!({ "User": "bob", "Pass": "a plain horse" }));
    let bob = site.a.login("bob", "a plain horse");
    assert_eq!(bob.get("/api/searchhistory/user/1").status, 403);
    bob.made("/api/searchhistory", &json!({ "UserQuery": "tag=y" }));
    assert_eq!(a.ok("GET", "/api/searchhistory?admin=true").as_array().map(Vec::len), Some(kept.len() + 1));
    assert_eq!(
        a.ok("GET", "/api/searchhistory").as_array().map(Vec::len),
        Some(kept.len()),
        "only the caller's own by default"
    );
    a.ok("DELETE", "/api/searchhistory");
    a.ok("DELETE", &format!("/api/searchhistory/user/{uid}"));
    assert!(!site.converges().contains("\"history\""));
}

#[test]
fn notifications_reach_their_recipients_on_every_webserver() {
    let site = Site::new();
    let (a, b) = site.admins();
    let uid = a.made("/api/users", &json!({ "User": "bob", "Pass": "a plain horse" }));
    let bob = site.a.login("bob", "a plain horse");
    assert_eq!(bob.ok("GET", "/api/notifications"), json!({}));
    a.made("/api/notifications/targeted", &json!({ "UID": uid, "Msg": "one", "Type": 7 }));
    a.made("/api/notifications/targeted", &json!({ "UID": uid, "Msg": "two", "Type": 7 }));
    a.made("/api/notifications/broadcast", &json!({ "Msg": "all", "Level": "warn" }));
    bob.made("/api/notifications/targeted/self", &json!({ "Msg": "self", "UID": 0, "GID": 0, "Broadcast": false }));
    let messages = |client: &super::Client| {
        let all = client.ok("GET", "/api/notifications");
        let mut messages: Vec<String> = all
            .as_object()
            .expect("object")
            .values()
            .map(|one| one["Msg"].as_str().expect("text").to_owned())
            .collect();
        messages.sort();
        messages
    };
    assert_eq!(messages(&bob), ["all", "self", "two"]);
    site.fleet.wait("b has them, too", || messages(&b) == ["all"]);
    let all = bob.ok("GET", "/api/notifications");
    let (id, _) = all.as_object().expect("object").iter().find(|(_, one)| one["Msg"] == "self").expect("there");
    bob.changed(&format!("/api/notifications/{id}"), &json!({ "IgnoreUntil": "2999-01-01T00:00:00Z" }));
    assert_eq!(messages(&bob), ["all", "two"]);
    assert_eq!(bob.ok("GET", "/api/notifications?after=2999-01-01T00:00:00-06"), json!({}));
    assert_eq!(bob.delete(&format!("/api/notifications/{id}")).status, 200);
    assert_eq!(bob.post("/api/notifications/broadcast", &json!({ "Msg": "x" })).status, 403);
}

/// Every field that names groups, of every kind of object, in every call that accepts it.
#[test]
fn only_members_and_administrators_share_into_a_group() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let gid = admin.made("/api/groups", &json!({ "Name": "team" })).as_i64().expect("a number");
    let mut uids = Vec::new();
    for name in ["member", "stranger"] {
        uids.push(admin.made("/api/users", &json!({ "User": name, "Pass": "a plain horse" })));
    }
    admin.made(&format!("/api/users/{}/group", uids[0]), &json!({ "GIDs": [gid] }));
    let [member, stranger] = ["member", "stranger"].map(|name| web.login(name, "a plain horse"));
    let query = "tag=resource:numbers | limit 1";
    let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    type Share<'a> = &'a dyn Fn(&super::Client, i64) -> super::client::Answer;
    let dashboard = |client: &super::Client| format!("/api/dashboards/{}", client.made("/api/dashboards", &json!({})));
    let resource = |client: &super::Client| {
        let made = client.made("/api/resources", &json!({ "ResourceName": "numbers" }));
        format!("/api/resources/{}", text(&made["GUID"]))
    };
    let search = |client: &super::Client| {
        let path = super::searches::launch(client, query);
        super::searches::ended(client, &path);
        path
    };
    super::searches::resource(&admin, "numbers", "{\"n\":1}\n");
    let shared = admin.ok("GET", "/api/resources")[0]["GUID"].clone();
    admin.changed(&format!("/api/resources/{}", text(&shared)), &json!({ "Global": true }));
    let archive = |client: &super::Client| client.get(&format!("{}/download/archive", search(client))).body;
    let ways: [(&str, Share<'_>); 13] = [
        ("create a dashboard", &|client, gid| client.post("/api/dashboards", &json!({ "GIDs": [gid] }))),
        ("create a dashboard that may be written", &|client, gid| {
            client.post("/api/dashboards", &json!({ "WriteAccess": { "GIDs": [gid] } }))
        }),
        ("change a dashboard", &|client, gid| client.put(&dashboard(client), &json!({ "GIDs": [gid] }))),
        ("change who may write a dashboard", &|client, gid| {
            client.put(&dashboard(client), &json!({ "WriteAccess": { "Global": false, "GIDs": [gid] } }))
        }),
        ("clone a dashboard", &|client, gid| {
            let path = dashboard(client);
            let copy = client.post(&format!("{path}/clone"), &json!({ "GIDs": [gid] }));
            client.put(&format!("/api/dashboards/{}", copy.text()), &json!({ "GIDs": [gid] }))
        }),
        ("create a resource", &|client, gid| {
            client.post("/api/resources", &json!({ "ResourceName": "r", "GroupACL": [gid] }))
        }),
        ("change a resource", &|client, gid| client.put(&resource(client), &json!({ "GroupACL": [gid] }))),
        ("clone a resource", &|client, gid| {
            let copy = client.made(&format!("{}/clone", resource(client)), &json!({ "GroupACL": [gid] }));
            client.put(&format!("/api/resources/{}", text(&copy["GUID"])), &json!({ "GroupACL": [gid] }))
        }),
        ("add to the history", &|client, gid| {
            client.post("/api/searchhistory", &json!({ "UserQuery": "q", "GIDs": [gid] }))
        }),
        ("start a search", &|client, gid| {
            client.post("/api/searchctrl/launch", &json!({ "SearchString": query, "GIDs": [gid] }))
        }),
        ("share a search", &|client, gid| client.put(&format!("{}/groups", search(client)), &json!({ "GIDs": [gid] }))),
        ("share a search with one", &|client, gid| {
            client.put(&format!("{}/group", search(client)), &json!({ "GID": gid }))
        }),
        ("choose the group of searches", &|client, gid| {
            let uid = client.ok("GET", "/api/info/whoami")["UID"].clone();
            client.put(&format!("/api/users/{uid}/searchgroup"), &json!({ "GID": gid }))
        }),
    ];
    for (way, share) in ways {
        for (who, client, wanted) in [("admin", &admin, 200), ("member", &member, 200), ("stranger", &stranger, 403)] {
            let answer = share(client, gid);
            assert_eq!(answer.status, wanted, "{way} by {who}: {}", answer.text());
        }
    }
    let form = |client: &super::Client| {
        let head = "--boundary\r\nContent-Disposition: form-data; name=\"GID\"\r\n\r\n";
        let part = "\r\n--boundary\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n";
        let (gid, archive) = (gid.to_string(), archive(client));
        let body = [head.as_bytes(), gid.as_bytes(), part.as_bytes(), &archive, b"\r\n--boundary--\r\n"].concat();
        client.send_bytes("POST", "/api/searchctrl/import", "multipart/form-data; boundary=boundary", &body)
    };
    assert_eq!([&admin, &member, &stranger].map(|client| form(client).status), [200, 200, 403], "import a search");

    // Existing shares remain after leaving the group, and the object can still be changed; new shares are rejected.
    let kept = dashboard(&member);
    member.changed(&kept, &json!({ "GIDs": [gid], "WriteAccess": { "Global": false, "GIDs": [gid] } }));
    admin.ok("DELETE", &format!("/api/users/{}/group/{gid}", uids[0]));
    let back = json!({ "Name": "new", "GIDs": [gid], "WriteAccess": { "Global": false, "GIDs": [gid] } });
    assert_eq!(member.changed(&kept, &back)["GIDs"], json!([gid]));
    assert_eq!(member.put(&kept, &json!({ "GIDs": [gid, gid + 1] })).status, 403);
    // The user's default group for searches is no longer one of their groups.
    let begun = member.made("/api/searchctrl/launch", &json!({ "SearchString": query }));
    assert_eq!(member.ok("GET", &format!("/api/searchctrl/{}", text(&begun["SearchID"])))["GIDs"], json!([]));
}
