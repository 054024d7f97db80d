//! An object that is invalid for its collection hides no other object, and can be replaced or deleted.

use serde_json::{Value, json};

use super::ADMIN_PASSWORD;
use super::Web;
use super::client::Client;
use crate::fleet::Fleet;

fn put(fleet: &Fleet, collection: &str, key: &str, value: &Value) {
    fleet.ok("a", &["put", collection, key, "--value", &value.to_string()]);
}

/// Collection, key of the invalid object, and the path of the list that shows the valid one.
const KINDS: [(&str, &str, &str); 30] = [
    ("users", "99", "/api/users"),
    ("user-names", "nobody", "/api/users"),
    ("admins", "99", "/api/users"),
    ("locks", "99", "/api/users"),
    ("passwords", "99", "/api/users"),
    ("second-factors", "99", "/api/users"),
    ("recovery-codes", "99", "/api/users"),
    ("second-factor-steps", "99", "/api/users"),
    ("second-factor-setups", "99", "/api/users"),
    ("groups", "99", "/api/groups"),
    ("group-names", "none", "/api/groups"),
    ("memberships", "1/99", "/api/users/1/group"),
    ("preferences", "1/other", "/api/users/preferences"),
    ("dashboards", "17", "/api/dashboards"),
    ("history", "1/x", "/api/searchhistory"),
    ("searches", "5", "/api/searchctrl"),
    ("resources", "5f5e1a52-8c3e-4b7e-9a3a-0e6f2b9d7c11", "/api/resources"),
    ("contents", "5f5e", "/api/resources"),
    ("capabilities", "user/99", "/api/info/capabilities"),
    ("tag-access", "user/99", "/api/info/capabilities"),
    ("tokens", "1/5f5e1a52-8c3e-4b7e-9a3a-0e6f2b9d7c12", "/api/tokens"),
    ("sessions", "1/5f5e", "/api/users/1/sessions"),
    ("session-ends", "99/e", "/api/users"),
    ("session-epochs", "99", "/api/users"),
    ("token-ends", "99/e", "/api/users"),
    ("token-epochs", "99", "/api/users"),
    ("cleanings", "user/99", "/api/users"),
    ("restores", "5f5e", "/api/users"),
    ("signing-keys", "5f5e", "/api/users"),
    ("notifications", "77", "/api/notifications"),
];

/// The rows above, and those of the kinds of the generic resource.
fn rows() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    KINDS.into_iter().chain(super::owned::places())
}

fn length(list: &Value) -> usize {
    match list {
        Value::Array(items) => items.len(),
        Value::Object(members) => members.len(),
        _ => panic!("{list}"),
    }
}

#[test]
fn one_invalid_object_of_each_kind_hides_no_valid_one() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    admin.made("/api/users", &json!({ "User": "bob", "Pass": "a plain horse" }));
    let gid = admin.made("/api/groups", &json!({ "Name": "g" }));
    admin.made("/api/users/1/group", &json!({ "GIDs": [gid] }));
    admin.changed("/api/users/1/preferences", &json!({ "a": 1 }));
    admin.made("/api/dashboards", &json!({ "Name": "valid" }));
    admin.made("/api/resources", &json!({ "ResourceName": "r.csv" }));
    admin.made("/api/searchhistory", &json!({ "UserQuery": "tag=x" }));
    admin.made("/api/tokens", &json!({ "name": "t", "capabilities": [] }));
    admin.made("/api/notifications/broadcast", &json!({ "Msg": "hello" }));
    let kinds: Vec<Value> = admin.ok("GET", "/api/log/collections").as_array().expect("kinds").clone();
    let covered = |kind: &Value| rows().any(|(name, ..)| kind["Collection"] == name) || kind["Collection"] == "chunks";
    assert!(kinds.iter().all(covered), "a kind is not in this table: {kinds:?}");

    let before: Vec<usize> = rows().map(|(.., list)| length(&admin.ok("GET", list))).collect();
    for (number, (collection, key, list)) in rows().enumerate() {
        for value in [json!({ "a": 1 }), json!([]), json!("text"), json!({ "name": "errors" })] {
            put(&fleet, collection, key, &value);
            let answer = admin.get(list);
            assert_eq!((answer.status, length(&answer.json())), (200, before[number]), "{collection} {value}");
        }
        let path = format!("/api/objects/invalid/{collection}/{key}");
        let listed = admin.ok("GET", "/api/objects/invalid");
        assert_eq!((length(&listed), &listed[0]["Key"]), (1, &json!(key)), "{listed}");
        assert_eq!(web.login("bob", "a plain horse").get("/api/objects/invalid").status, 403);
        let doctor = String::from_utf8(fleet.run("a", &["doctor"]).stdout).expect("text");
        assert!(doctor.contains(&format!("invalid {collection}/{key}: ")), "{doctor}");
        assert_eq!(admin.delete(&path).status, 200, "{collection}");
        assert_eq!((admin.delete(&path).status, length(&admin.ok("GET", "/api/objects/invalid"))), (404, 0));
    }
    assert!(admin.ok("GET", "/api/rejections").as_array().is_some_and(Vec::is_empty));
}

#[test]
fn invalid_objects_are_listed_replaced_and_deleted_by_their_routes() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    admin.made("/api/users", &json!({ "User": "bob", "Pass": "a plain horse" }));
    let bob = web.login("bob", "a plain horse");
    let guid = "5f5e1a52-8c3e-4b7e-9a3a-0e6f2b9d7c11";
    let resource = format!("/api/resources/{guid}");
    let token = "/api/tokens/5f5e1a52-8c3e-4b7e-9a3a-0e6f2b9d7c12";
    let places = [
        ("dashboards", "17", "/api/dashboards/17"),
        ("resources", guid, resource.as_str()),
        ("groups", "99", "/api/groups/99"),
        ("users", "99", "/api/users/99"),
        ("notifications", "77", "/api/notifications/77"),
        ("searches", "5", "/api/searchctrl/5"),
        ("tokens", "1/5f5e1a52-8c3e-4b7e-9a3a-0e6f2b9d7c12", token),
    ];
    let of_spec: Vec<(&str, &str, String)> =
        super::owned::places().map(|(collection, key, list)| (collection, key, format!("{list}/{key}"))).collect();
    let of_spec = of_spec.iter().map(|(collection, key, path)| (*collection, *key, path.as_str()));
    for (collection, key, path) in places.into_iter().chain(of_spec) {
        put(&fleet, collection, key, &json!({ "name": "errors" }));
        assert!([403, 404].contains(&bob.delete(path).status), "{path} belongs to no user");
        // For notifications this path lists newer ones.
        let is_shown = bob.get(path).status == 200 && collection != "notifications";
        assert!(!is_shown, "{path} belongs to no user");
        assert_eq!(admin.delete(path).status, 200, "{path}");
    }
    // A typical first example of a new user.
    put(&fleet, "dashboards", "17", &json!({ "name": "errors", "Description": "kept" }));
    let list = admin.get("/api/dashboards");
    let headers = (list.header("gravwell-invalid"), list.header("gravwell-invalid-keys"));
    assert_eq!(headers, (Some("1"), Some("dashboards/17")));
    assert_eq!(bob.get("/api/dashboards").header("gravwell-invalid"), None, "administrators only");
    let said = admin.get("/api/dashboards/17");
    assert_eq!(
        (said.status, said.json()["Error"].as_str()),
        (422, Some("invalid dashboards/17: missing field ID; replace or delete it"))
    );
    admin.changed("/api/dashboards/17", &json!({ "Name": "mended" }));
    let mended = admin.ok("GET", "/api/dashboards/17");
    assert_eq!((&mended["Name"], &mended["Description"]), (&json!("mended"), &json!("kept")));
    assert_eq!(admin.get("/api/dashboards").header("gravwell-invalid"), None);
    for (collection, key, list) in super::owned::places() {
        let path = format!("{list}/{key}");
        put(&fleet, collection, key, &json!({ "ID": 5, "Name": "kept" }));
        assert_eq!(admin.get(&path).status, 422, "{path}");
        assert_eq!(admin.changed(&path, &json!({ "Labels": ["mended"] }))["Name"], "kept");
        assert_eq!(admin.ok("GET", &path)["Labels"], json!(["mended"]));
    }
    for (collection, key, path, body) in [
        ("users", "98", "/api/users/98", json!({ "User": "eve" })),
        ("groups", "98", "/api/groups/98", json!({ "Name": "eves" })),
        ("resources", guid, resource.as_str(), json!({ "ResourceName": "mended.csv" })),
    ] {
        put(&fleet, collection, key, &json!({ "a": 1 }));
        assert_eq!(admin.get(path).status, 422, "{path}");
        admin.changed(path, &body);
        assert_eq!(admin.get(path).status, 200, "{path}");
    }
}

/// Access is denied for users with an invalid account, and only for them.
#[test]
fn an_invalid_account_is_denied_and_others_are_not() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let made = |name: &str| -> (Value, Client) {
        let uid = admin.made("/api/users", &json!({ "User": name, "Pass": "a plain horse" }));
        (uid, web.login(name, "a plain horse"))
    };
    let login = |name: &str| web.nobody().post("/api/login", &json!({ "User": name, "Pass": "a plain horse" })).status;
    for (name, collection) in [("bob", "users"), ("carol", "passwords"), ("dave", "user-names")] {
        let (uid, session) = made(name);
        let key = if collection == "user-names" { name.to_owned() } else { uid.to_string() };
        put(&fleet, collection, &key, &json!({ "a": 1 }));
        assert_ne!(login(name), 200, "{collection}");
        assert!(collection == "user-names" || session.get("/api/dashboards").status != 200, "{collection}");
        assert_eq!(admin.get("/api/users").status, 200);
        web.login("admin", ADMIN_PASSWORD);
    }
    assert_eq!(
        admin
            .post("/api/search/direct", &json!({ "SearchString": "tag=audit", "Format": "json", "Duration": "1h" }))
            .status,
        200
    );
}

/// Others can search and list stored values, however deeply nested.
#[test]
fn deeply_nested_values_are_rejected_and_harmless() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let dashboard = |levels: usize| format!(r#"{{"Name":"deep","Data":{{"a":{}}}}}"#, nested(levels));
    let send = |path: &str, method: &str, body: &str| admin.send_text(method, path, "application/json", body).status;
    assert_eq!(send("/api/dashboards", "POST", &dashboard(62)), 200);
    assert_eq!(send("/api/dashboards", "POST", &dashboard(63)), 400);
    assert_eq!(send("/api/users/1/preferences", "PUT", &nested(5000)), 400);
    let audit = || {
        admin.post(
            "/api/search/direct",
            &json!({ "SearchString": "tag=audit | count by collection", "Format": "json", "Duration": "1h" }),
        )
    };
    assert_eq!(audit().status, 200);
    assert!(audit().json().as_array().is_some_and(|rows| !rows.is_empty()), "{}", audit().text());
}
