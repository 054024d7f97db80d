//! Names: each has one owner, even after concurrent changes on both webservers, and is validated alike on every path.

use serde_json::{Value, json};

use super::client::Client;
use super::{Site, Web};
use crate::fleet::{Fleet, Rng};

fn user(name: &str) -> Value {
    json!({ "User": name, "Pass": "a plain horse" })
}

fn rejections(clients: &[&Client]) -> Vec<String> {
    let all = clients.iter().flat_map(|client| client.ok("GET", "/api/rejections").as_array().expect("list").clone());
    all.map(|rejection| rejection["Reason"].as_str().expect("reason").to_owned()).collect()
}

/// Checks that every name belongs to its bearer and that exactly the existing users can log in.
#[track_caller]
fn agree(site: &Site, admin: &Client, names: &[&str]) {
    let agrees = || {
        let doctor = String::from_utf8(site.fleet.run("a", &["doctor"]).stdout).expect("text");
        doctor.contains("belong to one user or group each")
    };
    site.fleet.wait("names and owners agree", agrees);
    let (users, groups) = (admin.ok("GET", "/api/users"), admin.ok("GET", "/api/groups"));
    for name in names {
        let exists = |list: &Value, member: &str| list.as_array().expect("list").iter().any(|one| one[member] == *name);
        let login = site.a.nobody().post("/api/login", &user(name)).status;
        assert_eq!(login == 200, exists(&users, "User"), "{name}: {login}");
        for (path, list, member) in [("/api/users", &users, "User"), ("/api/groups", &groups, "Name")] {
            let made = admin.post(path, &json!({ member: name, "Pass": "a plain horse" }));
            assert_eq!(made.status == 200, !exists(list, member), "{path} {name}: {}", made.text());
            if made.status == 200 {
                assert_eq!(admin.delete(&format!("{path}/{}", made.json())).status, 200);
            }
        }
    }
}

#[test]
fn of_two_concurrent_changes_of_one_name_one_is_rejected() {
    let mut site = Site::new();
    let (a, b) = site.admins();
    let [renamed, deleted, other] = ["one", "gone", "other"].map(|name| {
        let (uid, gid) = (a.made("/api/users", &user(name)), a.made("/api/groups", &json!({ "Name": name })));
        (format!("/api/users/{uid}"), format!("/api/groups/{gid}"))
    });
    site.converges();
    site.stop_datastore();
    for (client, name) in [(&a, "two"), (&b, "three")] {
        client.changed(&renamed.0, &json!({ "User": name }));
        client.changed(&renamed.1, &json!({ "Name": name }));
    }
    // One webserver deletes the objects that the other renames.
    for path in [&deleted.0, &deleted.1] {
        a.ok("DELETE", path);
        b.changed(path, &json!({ "User": "moved", "Name": "moved" }));
    }
    // Both create the same name, one of them by renaming.
    a.made("/api/users", &user("same"));
    a.made("/api/groups", &json!({ "Name": "same" }));
    b.changed(&other.0, &json!({ "User": "same" }));
    b.changed(&other.1, &json!({ "Name": "same" }));
    // A name that is freed and created again here is not lost.
    let twice = a.made("/api/users", &user("twice"));
    a.ok("DELETE", &format!("/api/users/{twice}"));
    a.made("/api/users", &user("twice"));
    assert!(rejections(&[&a, &b]).is_empty());
    site.start_datastore();
    site.converges();
    let said = rejections(&[&a, &b]);
    assert_eq!(said.len(), 6, "one rejection for each: {said:?}");
    agree(&site, &a, &["one", "two", "three", "gone", "moved", "same", "other", "twice"]);
    let both = [&a, &b].map(|client| client.ok("GET", "/api/users"));
    assert_eq!(both[0], both[1]);
}

/// b has made changes while it was disconnected, has received what was committed meanwhile, and the datastore has not
/// decided on its changes yet. What b shows then is partly its own, and is rejected.
#[test]
fn p08_no_name_is_given_away_because_of_a_change_that_is_rejected() {
    let mut site = Site::new();
    let (a, b) = site.admins();
    let [renamed, deleted, taken, other, third] = ["one", "two", "three", "four", "five"].map(|name| {
        let (uid, gid) = (a.made("/api/users", &user(name)), a.made("/api/groups", &json!({ "Name": name })));
        [format!("/api/users/{uid}"), format!("/api/groups/{gid}")]
    });
    site.converges();
    let rename = |client: &Client, paths: &[String; 2], name: &str| {
        paths.iter().for_each(|path| drop(client.changed(path, &json!({ "User": name, "Name": name }))));
    };
    site.stop_datastore();
    rename(&b, &renamed, "unseen");
    deleted.iter().for_each(|path| drop(b.ok("DELETE", path)));
    rename(&b, &other, "Third");
    site.b.stop();
    site.start_datastore();
    for (paths, name) in [(&renamed, "first"), (&deleted, "second"), (&taken, "third")] {
        rename(&a, paths, name);
    }
    site.fleet.wait("a's changes are committed", || site.fleet.status("a")["outbox"] == 0);
    // From now on, the datastore decides nothing.
    let head = site.fleet.status("a")["seq"].as_u64().expect("a sequence");
    site.datastore.take().expect("runs").terminate();
    site.fleet.datastore_flags = ["--min-free-mb", "100000000"].map(str::to_owned).to_vec();
    site.start_datastore();
    site.b.restart(&site.fleet, &[]);
    site.fleet.wait("b has a's changes", || site.fleet.status("b")["seq"].as_u64() >= Some(head));
    // Each name seems to be free, because of a change of b that will be rejected.
    b.made("/api/users", &user("First"));
    b.made("/api/groups", &json!({ "Name": "First" }));
    rename(&b, &third, "Second");
    // The former name seems to be another owner's.
    rename(&b, &taken, "sixth");
    site.datastore.take().expect("runs").terminate();
    site.fleet.datastore_flags.clear();
    site.start_datastore();
    site.converges();
    site.fleet.wait("b's changes are decided", || site.fleet.status("b")["outbox"] == 0);
    let said = rejections(&[&b]);
    assert_eq!(said.len(), 12, "each change of b is rejected: {said:?}");
    for (path, member, index) in [("/api/users", "User", 0), ("/api/groups", "Name", 1)] {
        for (paths, name) in
            [(&renamed, "first"), (&deleted, "second"), (&taken, "third"), (&other, "four"), (&third, "five")]
        {
            assert_eq!(a.ok("GET", &paths[index])[member], name);
        }
        let all = a.ok("GET", path);
        let names: Vec<String> =
            all.as_array().expect("list").iter().map(|one| one[member].to_string().to_lowercase()).collect();
        let distinct: std::collections::BTreeSet<&String> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{path}: {names:?}");
    }
    agree(&site, &a, &["one", "two", "three", "four", "five", "first", "second", "third", "sixth", "unseen"]);
}

#[test]
fn names_have_one_owner_each_after_changes_on_both_sides() {
    const NAMES: [&str; 4] = ["ann", "ben", "cyn", "dan"];
    let mut site = Site::new();
    let (a, b) = site.admins();
    let mut dice = Rng::new(crate::fleet::from_env("GRAVWELL_SEED", 5));
    for round in 0..3 {
        site.stop_datastore();
        for _ in 0..10 {
            for client in [&a, &b] {
                let name = NAMES[usize::try_from(dice.below(4)).expect("small")];
                let users: Vec<Value> = client.ok("GET", "/api/users").as_array().expect("list").clone();
                let others: Vec<&Value> = users.iter().filter(|user| user["UID"] != 1).collect();
                let which = usize::try_from(dice.below(others.len().max(1) as u64)).expect("small");
                // Impossible changes are rejected locally; accepted ones must end consistently.
                match (dice.below(4), others.get(which)) {
                    (0 | 1, Some(one)) => {
                        drop(client.put(&format!("/api/users/{}", one["UID"]), &json!({ "User": name })))
                    }
                    (2, Some(one)) => drop(client.delete(&format!("/api/users/{}", one["UID"]))),
                    _ => drop(client.post("/api/users", &user(name))),
                }
            }
        }
        site.start_datastore();
        site.converges();
        println!("round {round}: {:?}", rejections(&[&a, &b]));
        agree(&site, &a, &NAMES);
    }
}

#[test]
fn a_corrupt_name_index_is_detected_and_repaired() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let (one, two) = (admin.made("/api/users", &user("one")), admin.made("/api/users", &user("two")));
    fleet.wait("all changes are resolved", || fleet.status("a")["outbox"] == 0);
    let mut web = web;
    web.stop();
    let put = |collection: &str, key: &str, value: &Value| {
        fleet.ok("d", &["put", collection, key, "--value", &value.to_string()]);
    };
    // Leftovers of earlier versions: a name without owner, a name of another user, two users with one name.
    put("user-names", "ghost", &json!({ "name": "ghost", "uid": one }));
    put("user-names", "two", &json!({ "name": "two", "uid": one }));
    put("users", "77", &json!({ "UID": 77, "User": "One" }));
    let doctor = || String::from_utf8(fleet.run("d", &["doctor"]).stdout).expect("text");
    let found = doctor();
    for said in
        ["\"ghost\" is reserved for user", "is called \"two\", but", "user 77 is called \"One\", but the name belongs"]
    {
        assert!(found.contains(said), "{said}: {found}");
    }
    let fixed = String::from_utf8(fleet.run("d", &["doctor", "--fix"]).stdout).expect("text");
    assert!(fixed.contains("names belong to one user or group each"), "{fixed}");
    assert!(!doctor().contains("PROBLEM  names"));
    web.restart(&fleet, &[]);
    let admin = web.admin(&fleet);
    let named = |uid: &Value| admin.ok("GET", &format!("/api/users/{uid}"))["User"].as_str().expect("name").to_owned();
    fleet.wait("a has it", || admin.get("/api/users/77").status == 200);
    assert_eq!((named(&one), named(&two), named(&json!(77))), ("one".into(), "two".into(), "One-77".into()));
    assert_eq!(admin.post("/api/users", &user("ghost")).status, 200, "the name without an owner is free");
}

/// Names, and whether they are accepted, on each path.
#[test]
fn names_are_validated_alike_on_every_path() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let uid = admin.made("/api/users", &user("Bob"));
    let (mallory, gid) =
        (admin.made("/api/users", &user("mallory")), admin.made("/api/groups", &json!({ "Name": "g" })));
    let own = web.login("mallory", "a plain horse");
    let long = "x".repeat(129);
    let table: [(&str, bool); 24] = [
        ("Иван", true),
        ("山田 太郎", true),
        ("محمد", true),
        ("o'brien@example.com", true),
        ("José", true),
        ("Jose\u{301}", false),
        ("bob", false),
        (" BOB\u{3000}", false),
        ("Ｂob", false),
        ("admin\u{200b}", false),
        ("ad\u{ad}min", false),
        ("\u{feff}admin", false),
        ("admin\u{202e}", false),
        ("admin\u{200c}", false),
        ("\u{430}dmin", false),
        ("admın", false),
        ("a\nb", false),
        ("\u{1}", false),
        ("a\u{a0}b", false),
        ("\u{301}a", false),
        ("\u{3164}", false),
        (&long, false),
        ("é\u{2800}", false),
        ("p\u{430}ypal", false),
    ];
    for (name, is_taken) in table {
        // A group may have the name of a user, but not one that is visually identical.
        let is_form = !["bob", " BOB\u{3000}", "Ｂob", "Jose\u{301}", "admın"].contains(&name);
        let renamed = own.put(&format!("/api/users/{mallory}"), &json!({ "User": name }));
        assert_eq!(renamed.status == 200, is_taken, "renaming to {name:?}: {}", renamed.text());
        own.put(&format!("/api/users/{mallory}"), &json!({ "User": "mallory" }));
        let made = admin.post("/api/users", &user(name));
        assert_eq!(made.status == 200, is_taken, "creating {name:?}: {}", made.text());
        assert!(is_taken || [400, 409].contains(&made.status) && !made.text().contains("note"), "{}", made.text());
        if is_taken {
            let decomposed: String = if name == "José" { "Jose\u{301}".into() } else { name.into() };
            assert_eq!(web.nobody().post("/api/login", &user(&format!(" {decomposed} "))).status, 200, "{name}");
            let path = format!("/api/users/{}", made.json());
            admin.changed(&path, &json!({ "Name": name }));
            if name != "José" {
                assert_eq!(admin.delete(&path).status, 200, "{name}");
            }
        }
        let group = format!("/api/groups/{gid}");
        for answer in [admin.put(&group, &json!({ "Name": name })), admin.post("/api/groups", &json!({ "Name": name }))]
        {
            assert!(
                !is_form || (answer.status == 200) == is_taken || answer.status == 409,
                "{name:?}: {}",
                answer.text()
            );
            assert!(!answer.text().contains("note"));
        }
        admin.changed(&group, &json!({ "Name": "g", "Desc": "d" }));
    }
    assert_eq!(admin.get(&format!("/api/users/{uid}")).status, 200);
    // Each field has a separate limit and reports it.
    for (path, field, extra) in [
        ("/api/dashboards", "Name", json!({ "Data": {} })),
        ("/api/resources", "ResourceName", json!({})),
        ("/api/tokens", "name", json!({ "capabilities": [] })),
        ("/api/groups", "Name", json!({})),
    ] {
        for text in ["x".repeat(3000), "\u{1}".repeat(900), "\u{2028}".repeat(2000)] {
            let mut body = extra.clone();
            body[field] = text.into();
            let answer = admin.post(path, &body);
            assert_eq!(answer.status, 400, "{path}");
            assert!(answer.text().contains(field), "{}", answer.text());
        }
    }
    let burden = own.put(&format!("/api/users/{mallory}"), &json!({ "Name": "N".repeat(900_000), "Email": "e" }));
    assert!(burden.status == 400 && burden.text().contains("Name has 900000 characters"), "{}", burden.text());
    let made = admin.made("/api/dashboards", &json!({ "Name": "\u{2028}".repeat(256), "Data": {} }));
    let path = format!("/api/dashboards/{made}");
    admin.changed(&path, &json!({ "Description": "d" }));
    assert_eq!(admin.delete(&path).status, 200, "an accepted object can be changed and deleted");
}

/// Returns the backup with a text replaced and a matching checksum.
fn altered(backup: &str, from: &str, to: &str) -> String {
    assert!(backup.contains(from), "the backup must contain {from}");
    let backup = backup.replace(from, to);
    let at = backup.trim_end().rfind('\n').expect("an end") + 1;
    let (body, end) = backup.split_at(at);
    let mut end: Value = serde_json::from_str(end).expect("the end");
    end["end"]["blake3"] = blake3::hash(body.as_bytes()).to_hex().to_string().into();
    format!("{body}{end}\n")
}

#[test]
fn an_import_creates_no_name_that_a_change_could_not_create() {
    let site = Site::new();
    let (admin, _) = site.admins();
    let uid = admin.made("/api/users", &user("anna"));
    admin.made("/api/users", &user("bert"));
    let gid = admin.made("/api/groups", &json!({ "Name": "staff" }));
    let whole = admin.get("/api/backup?savedsearch=false").text();
    let before = site.converges();
    let cases = [
        ("\"User\":\"anna\"", "\"User\":\"ann\u{202e}a\"", format!("user {uid}")),
        ("\"User\":\"anna\"", "\"User\":\"\u{430}dmin\"", format!("user {uid}")),
        ("\"User\":\"anna\"", "\"User\":\"BERT\"", "has the same name".to_owned()),
        ("\"Name\":\"staff\"", "\"Name\":\"\"", format!("group {gid}")),
    ];
    for (from, to, named) in cases {
        let refused = admin.upload("POST", "/api/backup", "backup", altered(&whole, from, to).as_bytes());
        assert!(refused.status == 400 && refused.text().contains(&named), "{to}: {}", refused.text());
    }
    assert_eq!(site.converges(), before, "a rejected backup must not change anything");
    let unaltered = admin.upload("POST", "/api/backup", "backup", altered(&whole, "anna", "anna").as_bytes());
    assert_eq!(unaltered.status, 200, "{}", unaltered.text());
}
