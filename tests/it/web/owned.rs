//! The kinds of the generic resource: macros, templates, actionables, saved queries and playbooks. Every test covers all of
//! them; a kind without a sample fails the first one.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::client::{Answer, Client};
use super::{ADMIN_PASSWORD, Site, Web};
use crate::fleet::Fleet;
use gravwell_objects::kinds::KINDS;
use gravwell_objects::owned::{IdForm, NameForm, Spec};

/// Collection; an object as an existing client sends it; the members of the response that differ between kinds, as text.
const SAMPLES: [(&str, &str, &str); 5] = [
    (
        "macros",
        r#"{"Name":"SAMPLE","Description":null,"GIDs":null,"Labels":null,"Expansion":"web1 OR web2"}"#,
        r#""Expansion":"web1 OR web2""#,
    ),
    (
        "templates",
        r#"{"Name":"SAMPLE","Description":null,"Contents":{"query":"%%V%%","variables":[{"b":1.50}],"B":9007199254740993}}"#,
        r#""Contents":{"query":"%%V%%","variables":[{"b":1.50}],"B":9007199254740993}"#,
    ),
    (
        "actionables",
        r#"{"Name":"SAMPLE","Description":null,"Contents":{"menuLabel":null,"actions":[],"triggers":["/x/",{"p":"y"}]}}"#,
        r#""Contents":{"menuLabel":null,"actions":[],"triggers":["/x/",{"p":"y"}]},"Disabled":false"#,
    ),
    (
        "saved-queries",
        r#"{"Name":"SAMPLE","Description":null,"Query":"tag=x","Metadata":{"timeframe":null}}"#,
        r#""Query":"tag=x","Metadata":{"timeframe":null}"#,
    ),
    (
        "playbooks",
        r#"{"Name":"SAMPLE","Desc":null,"Body":"IyBUaXRsZQ==","Author":{"Name":"Ann"}}"#,
        r#""Body":"IyBUaXRsZQ==","Metadata":"e30=","Author":{"Company":"","Email":"","Name":"Ann","URL":""}"#,
    ),
];

fn specs() -> impl Iterator<Item = &'static Spec> {
    KINDS.iter().filter_map(|kind| kind.spec)
}

/// Returns the sample of a kind with another name.
fn sample(spec: &Spec, name: &str) -> String {
    let (_, sent, _) = SAMPLES.iter().find(|(collection, ..)| *collection == spec.collection).expect("a sample");
    sent.replace("SAMPLE", name)
}

/// Returns the samples' rows for the tests of invalid objects: collection, an unused key, and the path of the list.
pub(super) fn places() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    specs().map(|spec| {
        let key = if spec.id == IdForm::Number { "17" } else { "5f5e1a52-8c3e-4b7e-9a3a-0e6f2b9d7c11" };
        (spec.collection, key, spec.path)
    })
}

/// Returns whether a path of the API names one object of these kinds.
pub(super) fn is_item(path: &str) -> bool {
    specs().any(|spec| path.strip_prefix(spec.path).is_some_and(|rest| rest.starts_with("/{id}")))
}

/// Creates an object for the path of a route; returns its id. `number` makes its name unique.
pub(super) fn made_for(client: &Client, path: &str, number: usize) -> Option<String> {
    let spec = specs().find(|spec| path.starts_with(spec.path))?;
    static MADE: AtomicU64 = AtomicU64::new(0);
    let name = format!("OBJECT{number}-{}", MADE.fetch_add(1, Ordering::Relaxed));
    Some(id_of(spec, &post(client, spec, &name)))
}

#[track_caller]
fn post(client: &Client, spec: &Spec, name: &str) -> Value {
    let answer = client.send_text("POST", spec.path, "application/json", &sample(spec, name));
    assert_eq!(answer.status, 200, "{}: {}", spec.path, answer.text());
    answer.json()
}

fn id_of(spec: &Spec, made: &Value) -> String {
    let id = if made.is_object() { &made[spec.wire.id] } else { made };
    id.as_str().map_or_else(|| id.to_string(), str::to_owned)
}

/// Creates an object; returns its path.
#[track_caller]
fn create(client: &Client, spec: &Spec, name: &str) -> String {
    format!("{}/{}", spec.path, id_of(spec, &post(client, spec, name)))
}

/// Returns the names that a list shows.
#[track_caller]
fn names(client: &Client, path: &str) -> Vec<String> {
    let list = client.ok("GET", path);
    list.as_array().expect("a list").iter().map(|one| one["Name"].as_str().expect("a name").to_owned()).collect()
}

fn rejected(client: &Client) -> Vec<String> {
    let list = client.ok("GET", "/api/rejections");
    list.as_array().expect("a list").iter().map(|one| one["What"].as_str().expect("a text").to_owned()).collect()
}

fn user(admin: &Client, web: &Web, name: &str, gid: Option<&Value>) -> (Value, Client) {
    let uid = admin.made("/api/users", &json!({ "User": name, "Pass": "a plain horse" }));
    if let Some(gid) = gid {
        admin.made(&format!("/api/users/{uid}/group"), &json!({ "GIDs": [gid] }));
    }
    (uid, web.login(name, "a plain horse"))
}

#[test]
fn each_kind_has_the_shapes_of_its_clients() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    for spec in specs() {
        let row = SAMPLES.iter().find(|(collection, ..)| *collection == spec.collection);
        let (.., shown) = row.unwrap_or_else(|| panic!("{} has no sample", spec.collection));
        assert_eq!(admin.ok("GET", spec.path), json!([]), "{}", spec.path);
        let made = post(&admin, spec, "SAMPLE");
        assert_eq!(made.is_object(), spec.wire.returns_whole, "{made}");
        assert_eq!(
            made.is_number() || made.is_object(),
            spec.id == IdForm::Number || spec.wire.returns_whole,
            "{made}"
        );
        let path = format!("{}/{}", spec.path, id_of(spec, &made));
        let answer = admin.get(&path);
        assert!(answer.text().contains(shown), "{}", answer.text());
        let object = answer.json();
        let Spec { wire, .. } = spec;
        let wanted = json!({
            wire.id: object[wire.id], "GUID": object["GUID"], "UID": 1, "GIDs": [], "Global": false,
            "WriteAccess": { "Global": false, "GIDs": [] }, "Can": { "Delete": true, "Modify": true, "Share": true },
            "Name": "SAMPLE", wire.description: "", "Labels": [], wire.updated: object[wire.updated], "Synced": true,
        });
        for (name, value) in wanted.as_object().expect("an object") {
            assert_eq!(&object[name], value, "{path} {name}");
        }
        let members = wanted.as_object().map_or(0, serde_json::Map::len) + spec.fields.len();
        assert_eq!(object.as_object().map(serde_json::Map::len), Some(members), "{object}");
        assert_eq!(object["GUID"].as_str().map(str::len), Some(36), "{object}");
        assert!(object[wire.updated].as_str().expect("a time").ends_with('Z'));
        let listed = admin.ok("GET", spec.path)[0].clone();
        for field in spec.fields {
            let wanted = if field.is_long { &Value::Null } else { &object[field.name] };
            assert_eq!(&listed[field.name], wanted, "{path} in the list");
        }
        // Clients send an object back as a whole. The response is the whole object, and nothing but the time differs.
        let sent = answer.text().replace(r#""Name":"SAMPLE""#, r#""Name":"OTHER""#);
        let answer = admin.send_text("PUT", &path, "application/json", &sent);
        assert!(answer.status == 200 && answer.text().contains(shown), "{}", answer.text());
        let mut changed = answer.json();
        (changed["Name"], changed[wire.updated]) = (json!("SAMPLE"), object[wire.updated].clone());
        assert_eq!(changed, object);
        // `null` empties a text; absent members stay as they are.
        admin.changed(&path, &json!({ wire.description: "d", "Labels": ["l"] }));
        let emptied = admin.changed(&path, &json!({ wire.description: null }));
        assert_eq!((&emptied[wire.description], &emptied["Labels"]), (&json!(""), &json!(["l"])));
        // Lists omit long members, and clients send `null` for them. An empty name is none.
        let put = |body: &Value| admin.put(&path, body);
        for field in spec.fields {
            let answer = put(&json!({ "Name": "", field.name: null }));
            assert_eq!((answer.status, &answer.json()["Name"]), (200, &json!("OTHER")), "{}", answer.text());
            if field.is_long {
                assert_eq!(answer.json()[field.name], object[field.name], "{path} {}", field.name);
            }
        }
        let by_guid = format!("{}/{}", spec.path, object["GUID"].as_str().expect("a GUID"));
        assert_eq!(admin.ok("GET", &by_guid)[wire.id], object[wire.id]);
        let details = admin.get(&format!("{path}/details")).status;
        assert_eq!(details, if wire.has_details { 200 } else { 404 });
        if wire.has_lists {
            let name = spec.path.trim_start_matches("/api/");
            let of = |place: &str| names(&admin, &format!("/api/{place}{name}"));
            assert_eq!(of("users/1/"), ["OTHER"]);
            assert_eq!(names(&admin, &format!("{}/all", spec.path)), ["OTHER"]);
        }
        assert_eq!(admin.ok("DELETE", &by_guid), Value::Null);
        assert_eq!((admin.get(&path).status, admin.delete(&path).status), (404, 404));
    }
}

#[test]
fn p08_objects_are_replicated_and_conflicts_of_disconnected_webservers_are_resolved() {
    let mut site = Site::new();
    let (a, b) = site.admins();
    let all: Vec<(&Spec, String, String)> =
        specs().map(|spec| (spec, create(&a, spec, "FIRST"), create(&a, spec, "DOOMED"))).collect();
    site.converges();
    for (spec, path, _) in &all {
        assert_eq!(b.ok("GET", path), a.ok("GET", path));
        let tag = b.get(path).header("etag").expect("a tag").to_owned();
        let put =
            |client: &Client, name: &str| client.with("If-Match", &tag).put(path, &json!({ "Name": name })).status;
        assert_eq!((put(&b, "SECOND"), put(&b, "THIRD")), (200, 412));
        assert_eq!(b.with("If-Match", &tag).delete(path).status, 412);
        assert_eq!(b.with("If-Match", "nonsense").delete(path).status, 400);
        let tag = b.get(path).header("etag").expect("a tag").to_owned();
        assert_eq!(b.with("If-None-Match", &tag).get(path).status, 304, "{}", spec.path);
    }
    site.converges();
    site.stop_datastore();
    for (spec, path, doomed) in &all {
        let made = create(&a, spec, "OFFLINE");
        assert_eq!(a.ok("GET", &made)["Synced"], false);
        for mark in ["one", "two"] {
            a.changed(path, &json!({ "Labels": [mark] }));
        }
        a.ok("DELETE", doomed);
        b.changed(path, &json!({ "Labels": ["committed"] }));
        b.changed(doomed, &json!({ "Name": "NEEDED" }));
    }
    site.heals_b_first();
    let refused = rejected(&a);
    for (spec, path, doomed) in &all {
        for client in [&a, &b] {
            assert_eq!(client.ok("GET", path)["Labels"], json!(["committed"]), "{path}");
            assert_eq!(client.ok("GET", doomed)["Name"], "NEEDED");
            assert!(names(client, spec.path).contains(&"OFFLINE".to_owned()));
        }
        for what in [format!("change {} SECOND", spec.singular), format!("delete {} DOOMED", spec.singular)] {
            assert!(refused.contains(&what), "{what}: {refused:?}");
        }
    }
    assert_eq!((refused.len(), rejected(&b)), (3 * all.len(), vec![]), "{refused:?}");
    let list = a.ok("GET", "/api/rejections");
    let reasons: Vec<&str> = list.as_array().expect("a list").iter().filter_map(|one| one["Reason"].as_str()).collect();
    for spec in specs() {
        let said = format!("the {} was changed by another user", spec.singular);
        assert!(reasons.iter().any(|reason| reason.starts_with(&said)), "{said}: {reasons:?}");
    }
    // A rejected change is retried on top of the present object, as for dashboards.
    let change = list.as_array().expect("a list").iter().find(|one| one["What"] == "change saved query SECOND");
    let retry = format!("/api/rejections/{}", change.expect("listed")["ID"].as_str().expect("an ID"));
    let upon = a.ok("GET", &retry)["Upon"].clone();
    assert_eq!(a.post(&format!("{retry}/retry"), &json!({ "Upon": upon })).status, 200);
}

#[test]
fn an_export_archive_restores_the_objects() {
    let site = Site::new();
    let (a, b) = site.admins();
    let all: Vec<(&Spec, String)> = specs().map(|spec| (spec, create(&a, spec, "KEPT"))).collect();
    let before: Vec<Value> = all.iter().map(|(_, path)| a.ok("GET", path)).collect();
    let archive = a.get("/api/backup?omit_sensitive=true");
    assert_eq!(archive.status, 200);
    for (spec, path) in &all {
        a.ok("DELETE", path);
        create(&a, spec, "LATER");
    }
    let restored = a.upload("POST", "/api/backup", "backup", archive.body.as_slice());
    assert_eq!(restored.status, 200, "{}", restored.text());
    site.converges();
    let admin = site.b.login("admin", ADMIN_PASSWORD);
    drop(b);
    for ((spec, path), before) in all.iter().zip(before) {
        assert_eq!(admin.ok("GET", path), before);
        assert_eq!(names(&admin, spec.path), ["KEPT"]);
    }
}

#[test]
fn p04_private_objects_are_deleted_with_their_owner_and_shared_ones_are_kept() {
    let site = Site::new();
    let (a, b) = site.admins();
    let gid = a.made("/api/groups", &json!({ "Name": "team" }));
    let (uid, bob) = user(&a, &site.a, "bob", Some(&gid));
    let (_, carol) = user(&a, &site.a, "carol", Some(&gid));
    let mut all = Vec::new();
    for spec in specs() {
        let private = create(&bob, spec, "PRIVATE");
        let [read, written] = ["READ", "WRITTEN"].map(|name| create(&bob, spec, name));
        bob.changed(&read, &json!({ "GIDs": [gid] }));
        bob.changed(&written, &json!({ "WriteAccess": { "Global": false, "GIDs": [gid] } }));
        all.push((spec, private, create(&a, spec, "OF-ADMIN"), [read, written]));
    }
    a.ok("DELETE", &format!("/api/users/{uid}"));
    site.fleet.wait("the private objects are deleted", || {
        all.iter().all(|(_, private, ..)| a.get(private).status == 404 && b.get(private).status == 404)
    });
    for (spec, private, of_admin, shared) in &all {
        assert_eq!((b.get(private).status, b.get(of_admin).status), (404, 200), "{}", spec.path);
        for path in shared {
            assert_eq!((carol.get(path).status, b.get(path).status), (200, 200), "{path}");
            assert_eq!(b.changed(path, &json!({ "UID": 1 }))["UID"], 1, "administrators transfer it");
        }
    }
}

/// The webserver that deletes a user may not know yet that an object was transferred or shared.
#[test]
fn p08_the_deletion_of_a_user_spares_objects_that_others_have_received_in_the_meantime() {
    let mut site = Site::new();
    let (a, b) = site.admins();
    let gid = b.made("/api/groups", &json!({ "Name": "team" }));
    let (bob_uid, bob) = user(&b, &site.b, "bob", None);
    let (eve_uid, eve) = user(&b, &site.b, "eve", Some(&gid));
    let all: Vec<[String; 4]> =
        specs().map(|spec| ["PRIVATE", "GIVEN", "SHARED", "EDITED"].map(|name| create(&bob, spec, name))).collect();
    site.converges();
    site.stop_datastore();
    for [_, given, shared, edited] in &all {
        b.changed(given, &json!({ "UID": eve_uid }));
        b.changed(shared, &json!({ "GIDs": [gid] }));
        b.changed(edited, &json!({ "Labels": ["busy"] }));
    }
    a.ok("DELETE", &format!("/api/users/{bob_uid}"));
    site.heals_b_first();
    assert_eq!((rejected(&a), rejected(&b)), (vec![], vec![]));
    assert_eq!(b.get(&format!("/api/users/{bob_uid}")).status, 404);
    site.fleet.wait("the private objects are deleted", || {
        all.iter().flat_map(|[private, _, _, edited]| [private, edited]).all(|path| b.get(path).status == 404)
    });
    site.converges();
    for [_, given, shared, _] in &all {
        assert_eq!((eve.get(given).status, eve.get(shared).status, a.get(given).status), (200, 200, 200), "{given}");
    }
    assert_eq!((rejected(&a), rejected(&b)), (vec![], vec![]));
}

/// The checks that dashboards have, for every kind.
#[test]
fn p11_objects_are_shown_and_changed_by_their_share_scope_alone() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let gid = admin.made("/api/groups", &json!({ "Name": "g" }));
    let (owner_id, owner) = user(&admin, &web, "owner", Some(&gid));
    let (_, member) = user(&admin, &web, "member", Some(&gid));
    let (_, stranger) = user(&admin, &web, "stranger", None);
    for spec in specs() {
        let path = create(&owner, spec, "SHARED");
        let put = |client: &Client, body: Value| client.put(&path, &body);
        let sees = |client: &Client| (client.get(&path).status, names(client, spec.path).len());
        assert_eq!((sees(&owner), sees(&member), sees(&admin)), ((200, 1), (404, 0), (200, 0)), "{path}");
        assert_eq!(names(&admin, &format!("{}?admin=true", spec.path)), ["SHARED"]);
        assert_eq!(names(&stranger, &format!("{}?admin=true", spec.path)), Vec::<String>::new());
        assert_eq!((put(&stranger, json!({ "Name": "X" })).status, stranger.delete(&path).status), (404, 404));
        // Only members and administrators share with a group, in every field, at creation and later.
        let fields = [json!({ "GIDs": [gid] }), json!({ "WriteAccess": { "Global": false, "GIDs": [gid] } })];
        for field in fields {
            let mut body: Value = serde_json::from_str(&sample(spec, "FOREIGN")).expect("JSON");
            body.as_object_mut().expect("an object").extend(field.as_object().expect("an object").clone());
            let own = create(&stranger, spec, "OWN");
            for answer in [stranger.post(spec.path, &body), stranger.put(&own, &field)] {
                assert_eq!(answer.status, 403, "{field}: {}", answer.text());
            }
            stranger.ok("DELETE", &own);
        }
        for field in [json!({ "Global": true }), json!({ "WriteAccess": { "Global": true } })] {
            let mut body: Value = serde_json::from_str(&sample(spec, "GLOBAL")).expect("JSON");
            body.as_object_mut().expect("an object").extend(field.as_object().expect("an object").clone());
            assert_eq!(owner.post(spec.path, &body).status, 403, "{field}");
        }
        assert_eq!(put(&owner, json!({ "Global": true })).status, 403);
        let tried = put(&owner, json!({ "WriteAccess": { "Global": true, "GIDs": [] }, "UID": 1 })).json();
        assert_eq!((&tried["WriteAccess"]["Global"], &tried["UID"]), (&json!(false), &owner_id));
        // Readers read, writers write, and only the owner shares and deletes.
        put(&owner, json!({ "GIDs": [gid] }));
        assert_eq!((sees(&member), sees(&stranger)), ((200, 1), (404, 0)));
        assert_eq!(member.ok("GET", &path)["Can"], json!({ "Delete": false, "Modify": false, "Share": false }));
        assert_eq!(put(&member, json!({ "Labels": ["x"] })).status, 403);
        put(&owner, json!({ "WriteAccess": { "Global": false, "GIDs": [gid] } }));
        let other_guid = "5f5e1a52-8c3e-4b7e-9a3a-0e6f2b9d7c99";
        let tried = put(&member, json!({ "Labels": ["x"], "GIDs": [], "GUID": other_guid, "Global": false })).json();
        assert_eq!((&tried["Labels"], &tried["GIDs"]), (&json!(["x"]), &json!([gid])));
        assert!(
            tried["GUID"] != other_guid && tried["Can"] == json!({ "Delete": false, "Modify": true, "Share": false })
        );
        assert_eq!(member.delete(&path).status, 403);
        assert_eq!(put(&admin, json!({ "Global": true })).status, 200);
        assert_eq!(sees(&stranger), (200, 1));
        // A GUID keeps its meaning for the others: nobody takes that of another user's object.
        let guid = owner.ok("GET", &path)["GUID"].clone();
        let mut body: Value = serde_json::from_str(&sample(spec, "TAKEN")).expect("JSON");
        body["GUID"] = guid.clone();
        let made = id_of(spec, &member.made(spec.path, &body));
        let taken = format!("{}/{made}", spec.path);
        assert_ne!(member.ok("GET", &taken)["GUID"], guid);
        assert_eq!(member.put(&taken, &json!({ "GUID": guid })).status, 409);
        assert_eq!(member.changed(&taken, &json!({ "GUID": other_guid }))["GUID"], other_guid, "an unused one");
        assert_eq!(member.ok("DELETE", &taken), Value::Null);
        // An object may be given to an existing user only.
        assert_eq!(put(&admin, json!({ "UID": 77 })).status, 409);
        assert_eq!(owner.ok("DELETE", &path), Value::Null);
    }
}

#[test]
fn p15_objects_are_bounded() {
    let fleet = Fleet::new();
    let config = fleet.write_file("gravwell.conf", "[Global]\nUser-Objects-Max=3\n");
    let web = Web::start(&fleet, "a", &["--config", config.to_str().expect("path")]);
    let admin = web.admin(&fleet);
    let (_, bob) = user(&admin, &web, "bob", None);
    let nested = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
    for spec in specs() {
        let send = |body: &str| -> Answer { admin.send_text("POST", spec.path, "application/json", body) };
        let with = |name: &str, value: &str| {
            let whole: std::collections::BTreeMap<String, Box<RawValue>> =
                serde_json::from_str(&sample(spec, "BOUNDED")).expect("JSON");
            let mut whole: Vec<String> = whole
                .iter()
                .filter(|(known, _)| *known != name)
                .map(|(name, value)| format!("\"{name}\":{}", value.get()))
                .collect();
            whole.push(format!("\"{name}\":{value}"));
            format!("{{{}}}", whole.join(","))
        };
        let long = |chars: usize| format!("\"{}\"", "A".repeat(chars));
        for (name, value) in [
            ("Name", long(257)),
            ("Name", "\"a\\nb\"".to_owned()),
            ("Name", "5".to_owned()),
            (spec.wire.description, long(65_537)),
            ("Labels", format!("[{}]", long(257))),
            ("Labels", "5".to_owned()),
            ("GIDs", format!("[{}1]", "1,".repeat(10_000))),
            ("WriteAccess", format!("{{\"GIDs\":[{}1]}}", "1,".repeat(10_000))),
            ("Other", nested(64)),
        ] {
            let answer = send(&with(name, &value));
            assert_eq!(answer.status, 400, "{} {name} {}: {}", spec.path, value.len(), answer.text());
        }
        for field in spec.fields {
            let answer = send(&with(field.name, "[]"));
            assert_eq!(answer.status, 400, "{} {}: {}", spec.path, field.name, answer.text());
        }
        assert_eq!(send(&with(spec.fields[0].name, &long(2 << 20))).status, 413);
        assert_eq!(send("[]").status, 400);
        assert_eq!(send(&with("Name", &long(256))).status, 200);
        if spec.name == NameForm::Identifier {
            assert_eq!((send(&with("Name", "\"a b\"")).status, send(&with("Name", "\"\"")).status), (400, 400));
            let path = create(&bob, spec, "NAME");
            let again = bob.send_text("POST", spec.path, "application/json", &sample(spec, "NAME"));
            assert_eq!(again.status, 409, "{}", again.text());
            let other = create(&bob, spec, "OTHER");
            assert_eq!(bob.put(&other, &json!({ "Name": "NAME" })).status, 409);
            create(&admin, spec, "NAME");
            bob.ok("DELETE", &other);
            bob.ok("DELETE", &path);
        }
        let made: Vec<String> = (0..3).map(|number| create(&bob, spec, &format!("N{number}"))).collect();
        let more = bob.send_text("POST", spec.path, "application/json", &sample(spec, "MORE"));
        assert!(more.status == 413 && more.text().contains(spec.plural), "{}", more.text());
        bob.ok("DELETE", &made[0]);
        create(&bob, spec, "MORE");
    }
}
