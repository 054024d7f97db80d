//! Migration of data from an existing webserver; the source is one of this product.

use serde_json::{Value, json};

use super::ADMIN_PASSWORD;
use super::Web;
use crate::fleet::Fleet;

#[test]
fn everything_is_brought_over_once_and_the_rest_is_reported() {
    let (old, new) = (Fleet::new(), Fleet::new());
    let source = Web::start(&old, "source", &[]);
    let _datastore = new.datastore();
    new.enroll("a", "webserver");
    let target = Web::start(&new, "a", &[]);
    let admin = source.admin(&old);
    let made = |answer: super::client::Answer| {
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    };
    let gid = made(admin.post("/api/groups", &json!({ "Name": "ops", "Desc": "d" })));
    let ann =
        json!({ "User": "ann", "Pass": "Secret-123-of-ann", "Name": "Ann", "Email": "ann@x.net", "Admin": false });
    let uid = made(admin.post("/api/users", &ann)).as_i64().unwrap();
    made(admin.post(&format!("/api/users/{uid}/group"), &json!({ "GIDs": [gid] })));
    made(admin.put(&format!("/api/users/{uid}/preferences"), &json!({ "theme": "dark" })));
    let as_ann = source.login("ann", "Secret-123-of-ann");
    let data = json!({ "tiles": [1, 2], "big": 12_345_678_901_234_567_890_u64 });
    let dashboard = json!({ "Name": "errors", "Description": "x", "Data": data, "GIDs": [gid], "Global": false });
    made(as_ann.post("/api/dashboards", &dashboard));
    let resource = made(as_ann.post("/api/resources", &json!({ "ResourceName": "table", "Description": "r" })));
    let contents: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    let raw = format!("/api/resources/{}/raw", resource["GUID"].as_str().unwrap());
    assert_eq!(as_ann.upload("PUT", &raw, "file", contents.as_slice()).status, 200);
    let gids = json!([gid]);
    let owned = [
        ("macros", json!({ "Name": "HOSTS", "Expansion": "web1", "GIDs": gids })),
        ("templates", json!({ "Name": "HOSTS", "Contents": { "query": "%%V%%" } })),
        ("pivots", json!({ "Name": "HOSTS", "Contents": { "menuLabel": null }, "Disabled": true })),
        ("library", json!({ "Name": "HOSTS", "Query": "tag=x", "WriteAccess": { "GIDs": gids } })),
        ("playbooks", json!({ "Name": "HOSTS", "Desc": "d", "Body": "IyBU", "Labels": ["l"] })),
    ];
    for (path, body) in &owned {
        made(as_ann.post(&format!("/api/{path}"), body));
    }
    // The search history entry is written directly to the log of the source.
    let search = json!({
        "ID": "0123456789ab-00000000", "UID": uid, "GID": 0, "GIDs": [], "Global": false, "UserQuery": "tag=syslog",
        "EffectiveQuery": "tag=syslog text", "Launched": "2026-11-25T22:35:13Z",
    });
    old.ok("source", &["put", "history", &format!("{uid}/0123456789ab-00000000"), "--value", &search.to_string()]);

    let password = new.write_file("password", &format!("{ADMIN_PASSWORD}\n"));
    let (password, state) = (password.to_str().unwrap(), new.dir("state.json"));
    let (from, to) = (format!("http://{}", source.address), format!("http://{}", target.address));
    let run = |flags: &[&str]| -> Value {
        let arguments = [
            &["import-gravwell", &from, "--user", "admin", "--password-file", password, "--to", &to][..],
            &["--to-password-file", password, "--state", state.to_str().unwrap(), "--json"],
            flags,
        ];
        serde_json::from_str(&new.ok("a", &arguments.concat())).expect("JSON")
    };
    target.admin(&new);
    let rehearsal = run(&["--dry-run"]);
    assert_eq!((&rehearsal["created"]["users"], &rehearsal["created"]["resources"]), (&1.into(), &1.into()));
    assert_eq!(target.login("admin", ADMIN_PASSWORD).get("/api/users").json().as_array().unwrap().len(), 1);
    let report = run(&[]);
    let former = ["users", "groups", "memberships", "preferences", "dashboards", "resources", "searches"];
    for kind in former.into_iter().chain(["macros", "templates", "actionables", "saved-queries", "playbooks"]) {
        assert_eq!(report["created"][kind], 1, "{kind}: {report}");
    }
    assert!(report["left"][0].as_str().unwrap().contains("passwords"), "{report}");
    let again = run(&[]);
    assert!(again["created"].as_object().unwrap().values().all(|count| count == 0), "{again}");

    let admin = target.login("admin", ADMIN_PASSWORD);
    let users = admin.get("/api/users").json();
    let ann = users.as_array().unwrap().iter().find(|user| user["User"] == "ann").expect("ann").clone();
    let uid = ann["UID"].as_i64().unwrap();
    assert_eq!((&ann["Email"], &ann["Groups"][0]["Name"]), (&"ann@x.net".into(), &"ops".into()));
    made(admin.put(&format!("/api/users/{uid}/pwd"), &json!({ "NewPass": "Other-456-later" })));
    let as_ann = target.login("ann", "Other-456-later");
    assert_eq!(as_ann.get(&format!("/api/users/{uid}/preferences")).json()["theme"], "dark");
    let dashboards = as_ann.get("/api/dashboards").json();
    assert_eq!((&dashboards[0]["Name"], &dashboards[0]["UID"]), (&"errors".into(), &uid.into()));
    assert_eq!(dashboards[0]["Data"]["tiles"], json!([1, 2]));
    for (path, body) in &owned {
        let list = as_ann.get(&format!("/api/{path}")).json();
        let id = ["ID", "ThingUUID", "UUID"].iter().map(|name| &list[0][name]).find(|id| !id.is_null()).expect("an id");
        let id = id.as_str().map_or_else(|| id.to_string(), str::to_owned);
        let one = as_ann.get(&format!("/api/{path}/{id}")).json();
        assert_eq!(one["UID"], uid, "{one}");
        for (name, value) in body.as_object().unwrap().iter().filter(|(name, _)| !name.ends_with("GIDs")) {
            let is_kept = if name == "WriteAccess" {
                one[name]["GIDs"].as_array().unwrap().len() == 1
            } else {
                one[name] == *value
            };
            assert!(is_kept, "{path} {name}: {one}");
        }
        assert_eq!(one["GIDs"].as_array().map(Vec::len), body["GIDs"].as_array().map(Vec::len).or(Some(0)));
    }
    let resources = as_ann.get("/api/resources").json();
    assert_eq!((&resources[0]["ResourceName"], &resources[0]["UID"]), (&"table".into(), &uid.into()));
    let raw = format!("/api/resources/{}/raw", resources[0]["GUID"].as_str().unwrap());
    assert_eq!(as_ann.get(&raw).body, contents);
    let history = as_ann.get(&format!("/api/searchhistory/user/{uid}")).json();
    assert_eq!((&history[0]["UserQuery"], &history[0]["UID"]), (&"tag=syslog".into(), &uid.into()));
}
