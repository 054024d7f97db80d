//! Archived changes are applied only to objects without later changes that their author did not see.

use serde_json::{Value, json};

use crate::fleet::{Fleet, Process};
use crate::recover::{destroy, key_of};

/// Lets `b`, which accepted changes without a datastore, be revoked before it can push them, and enrolls it again: they are
/// archived. Returns the datastore and `b`; `a` is connected, too.
pub(crate) fn archives(fleet: &Fleet, b: Process) -> (Process, Process) {
    b.terminate();
    let datastore = fleet.datastore();
    fleet.ok("d", &["revoke", "b"]);
    let b = fleet.replica("b");
    fleet.wait("it is archived", || fleet.status("b")["quarantined"] == 1);
    b.terminate();
    let token = fleet.ok("d", &["enroll", "b", "--replace"]);
    fleet.ok("b", &["join", token.trim()]);
    let b = fleet.replica("b");
    fleet.wait_connected("a");
    fleet.wait_connected("b");
    (datastore, b)
}

/// Returns a fleet with a member that accepted puts of `keys` while it was offline and was revoked before it could push
/// them. After it was enrolled again, the puts are archived.
fn archived(keys: &[&str]) -> (Fleet, Process, Process, Process) {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (a, b) = (fleet.member("a"), fleet.member("b"));
    fleet.ok("a", &["put", "c", "there", "--value", "0"]);
    fleet.converges(&["a", "b"]);
    datastore.terminate();
    for key in keys {
        fleet.ok("b", &["put", "c", key, "--value", "\"archived\"", "--no-wait"]);
    }
    let (datastore, b) = archives(&fleet, b);
    (fleet, datastore, a, b)
}

#[test]
fn p04_an_object_deleted_since_it_was_archived_stays_deleted() {
    let (fleet, datastore, _a, _b) = archived(&["made-and-deleted", "there", "never-there"]);
    fleet.ok("a", &["put", "c", "made-and-deleted", "--value", "1"]);
    fleet.ok("a", &["delete", "c", "made-and-deleted"]);
    fleet.ok("a", &["delete", "c", "there"]);
    fleet.converges(&["a", "b"]);
    let apply = |more: &[&str]| {
        let output = fleet.run("b", &[&["quarantine", "apply", "1"], more].concat());
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    // While the datastore is unreachable, the member cannot check what was deleted there.
    datastore.terminate();
    fleet.wait("it is disconnected", || fleet.status("b")["connected"] == false);
    let (code, said) = apply(&[]);
    assert!(code == Some(1) && said.contains("0 transactions applied") && said.contains("is unreachable"), "{said}");
    assert_eq!(fleet.status("b")["outbox"], 0, "{said}");
    let _datastore = fleet.datastore();
    fleet.wait_connected("b");
    let shown = fleet.ok("b", &["quarantine", "show", "1"]);
    assert!(shown.contains("deleted, at sequence") && shown.contains("now: absent"), "{shown}");
    for more in [&["--dry-run"][..], &[]] {
        let (code, said) = apply(more);
        assert_eq!(code, Some(1), "{said}");
        for key in ["made-and-deleted", "there"] {
            let left = |line: &str| line.contains(&format!("c/{key} was changed since: it was deleted, at sequence"));
            assert!(said.lines().any(left), "{key}: {said}");
        }
        assert!(said.contains("1 transactions") && said.contains("2 left"), "{said}");
    }
    fleet.converges(&["a", "b"]);
    assert!(fleet.ok("a", &["get", "c", "never-there"]).contains("archived"));
    for key in ["made-and-deleted", "there"] {
        assert!(!fleet.run("a", &["get", "c", key]).status.success(), "{key} stays deleted");
    }
    // The operator can force it.
    assert_eq!(apply(&["--force"]).0, Some(0));
    fleet.converges(&["a", "b"]);
    assert!(fleet.ok("a", &["get", "c", "made-and-deleted"]).contains("archived"));
}

/// A change that is pushed again after a lost history names the sequence since which its object must be absent. The datastore judges
/// that, also by an index that was built again from a compacted log.
#[test]
fn p04_an_object_deleted_after_the_given_sequence_is_not_recreated() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let _a = fleet.member("a");
    fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    fleet.ok("a", &["delete", "c", "k"]);
    fleet.converges(&["a"]);
    let deleted = fleet.status("a")["seq"].as_u64().expect("a sequence");
    let make = |seq: u64| {
        let version = ((1_u64 << 62) + seq).to_string();
        let output = fleet.run("a", &["put", "c", "k", "--value", "2", "--if-version", &version]);
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    };
    let is_refused = |(is_made, said): (bool, String)| {
        let wanted = format!("c/k neither made nor deleted after sequence {}", deleted - 1);
        assert!(!is_made && said.contains(&wanted), "{said}");
    };
    is_refused(make(deleted - 1));
    fleet.ok("d", &["compact", "--history-ops", "0"]);
    datastore.terminate();
    std::fs::remove_dir_all(fleet.dir("d/state")).expect("removes the index");
    let _datastore = fleet.datastore();
    fleet.wait_connected("a");
    is_refused(make(deleted - 1));
    let (is_made, said) = make(deleted);
    assert!(is_made, "{said}");
    fleet.converges(&["a"]);
    assert!(!make(deleted).0, "it is there");
}

fn put(collection: &str, key: &str, value: &Value) -> Value {
    json!({ "put": { "collection": collection, "key": key, "value": value } })
}

fn delete(collection: &str, key: &str) -> Value {
    json!({ "delete": { "collection": collection, "key": key } })
}

fn user(uid: i32, name: &str, email: &str) -> Value {
    let value = json!({ "UID": uid, "User": name, "Email": email, "Created": "2026-01-01T00:00:00Z" });
    put("users", &uid.to_string(), &value)
}

fn claim(name: &str, uid: i32) -> Value {
    put("user-names", name, &json!({ "name": name, "uid": uid }))
}

/// Commits transactions.
fn make(fleet: &Fleet, member: &str, txns: &[Vec<Value>]) {
    let lines: String = txns.iter().map(|ops| format!("{}\n", json!({ "ops": ops }))).collect();
    let file = fleet.write_file(&format!("{member}.jsonl"), &lines);
    fleet.ok(member, &["import", file.to_str().expect("text")]);
}

/// Returns a fleet whose log has `shared`, and `since` after a recovery that lost `lost`, which `a` has archived.
fn lost(shared: &[Vec<Value>], lost: &[Vec<Value>], since: &[Vec<Value>]) -> (Fleet, [Process; 3]) {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (a, b) = (fleet.member("a"), fleet.member("b"));
    make(&fleet, "a", shared);
    fleet.converges(&["a", "b"]);
    let key = key_of(&fleet);
    b.terminate();
    make(&fleet, "d", lost);
    fleet.converges(&["a"]);
    a.terminate();
    destroy(&fleet, datastore);
    let from = fleet.dir("b");
    fleet.ok("d", &["recover", "--from", from.to_str().expect("text"), "--recovery-key", &key]);
    let (datastore, b) = (fleet.datastore(), fleet.replica("b"));
    fleet.wait_connected("b");
    make(&fleet, "b", since);
    let a = fleet.replica("a");
    fleet.wait_connected("a");
    fleet.converges(&["a", "b"]);
    (fleet, [datastore, a, b])
}

/// Applies the archive of `a`. Returns what is printed, and whether nothing was left.
fn applied(fleet: &Fleet, more: &[&str]) -> (bool, String) {
    let output = fleet.run("a", &[&["quarantine", "apply", "1"], more].concat());
    fleet.converges(&["a", "b"]);
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn p08_names_and_their_owners_are_applied_together_or_not_at_all() {
    let created = |uid, name: &str| vec![user(uid, name, ""), claim(name, uid)];
    let renamed =
        |uid, former: &str, name: &str| vec![user(uid, name, ""), claim(name, uid), delete("user-names", former)];
    let (fleet, _processes) = lost(
        &[created(2, "alice"), created(4, "eve"), created(5, "fay")],
        &[
            renamed(2, "alice", "alicia"),
            renamed(4, "eve", "eva"),
            vec![user(2, "alicia", "a@example.org")],
            vec![user(4, "eva", "e@example.org")],
            vec![claim("fey", 5)],
            created(6, "gus"),
            vec![user(6, "gus", "g@example.org")],
        ],
        &[vec![user(4, "eve", "eve@example.org")]],
    );
    let names = || fleet.ok("b", &["ls", "user-names"]);
    let called = |uid: &str| fleet.ok("b", &["get", "users", uid]);
    let has = |names: &str, name: &str| names.lines().any(|line| line.split_whitespace().next() == Some(name));
    let before = names();
    assert!(["alice", "eve", "fay"].iter().all(|name| has(&before, name)), "{before}");
    let (is_all, said) = applied(&fleet, &[]);
    assert!(!is_all && said.contains("0 transactions applied") && said.contains("4 left"), "{said}");
    assert_eq!(names(), before, "{said}");
    for _ in 0..2 {
        let (is_all, said) = applied(&fleet, &["--with-access"]);
        assert!(!is_all && said.contains("users/4 was changed since"), "{said}");
        assert!(said.contains("would leave the name fey with user 5, which is not called so"), "{said}");
        let after = names();
        assert!(has(&after, "alicia") && !has(&after, "alice") && called("2").contains("a@example.org"), "{after}");
        assert!(has(&after, "gus") && called("6").contains("g@example.org"), "{after}");
        assert!(has(&after, "eve") && !has(&after, "eva") && called("4").contains("eve@example.org"), "{after}");
        assert!(!has(&after, "fey"), "{after}");
    }
    let (is_all, said) = applied(&fleet, &["--with-access", "--force"]);
    let after = names();
    assert!(!is_all && has(&after, "eva") && !has(&after, "eve") && !has(&after, "fey"), "{said}: {after}");
    assert!(called("4").contains("e@example.org"));
}

#[test]
fn p04_what_belongs_to_a_user_is_not_deleted_where_the_user_is_not() {
    let created = |uid: i32, name: &str| {
        let key = uid.to_string();
        let of = |collection: &str, key: &str| put(collection, &format!("{uid}/{key}"), &json!({}));
        vec![
            user(uid, name, ""),
            claim(name, uid),
            put("passwords", &key, &json!({})),
            put("second-factors", &key, &json!({})),
            of("history", "a"),
            of("history", "b"),
            of("memberships", "65"),
            of("tokens", "t"),
        ]
    };
    let cleaning = |uid: i32| format!("user/{uid}");
    let deleted = |uid: i32, name: &str| {
        let key = uid.to_string();
        let mut ops =
            vec![delete("users", &key), delete("user-names", name), put("cleanings", &cleaning(uid), &json!({}))];
        ops.extend(["admins", "locks", "passwords", "second-factors"].map(|collection| delete(collection, &key)));
        ops
    };
    let cleaned = |uid: i32| {
        let of = |collection: &str, key: &str| delete(collection, &format!("{uid}/{key}"));
        [
            vec![of("history", "a"), of("tokens", "t")],
            vec![of("history", "b"), of("memberships", "65"), delete("cleanings", &cleaning(uid))],
        ]
    };
    let cleaned_only = cleaned(8).concat();
    let mut gone = vec![deleted(3, "carl"), deleted(6, "gus"), vec![delete("tokens", "7/t")], cleaned_only];
    gone.extend(cleaned(3).into_iter().chain(cleaned(6)));
    let group = vec![
        put("groups", "65", &json!({ "GID": 65, "Name": "g" })),
        put("group-names", "g", &json!({ "name": "g", "gid": 65 })),
    ];
    let in_cleaning = vec![put("cleanings", &cleaning(8), &json!({}))];
    let (fleet, _processes) = lost(
        &[group, created(3, "carl"), created(6, "gus"), created(7, "hal"), created(8, "ida"), in_cleaning],
        &gone,
        &[vec![user(3, "carl", "c@example.org")]],
    );
    let of_user = |uid: i32| {
        let of = |collection: &str| {
            let listed = fleet.ok("b", &["ls", collection]);
            let keys = listed.lines().filter_map(|line| line.split_whitespace().next());
            let own = keys.filter(|key| *key == uid.to_string() || key.starts_with(&format!("{uid}/")));
            own.map(|key| format!("{collection}/{key}")).collect::<Vec<_>>()
        };
        ["history", "memberships", "passwords", "second-factors", "tokens", "users"].map(of).concat()
    };
    let (of_carl, of_ida) = (of_user(3), of_user(8));
    assert_eq!((of_carl.len(), of_user(6).len()), (7, 7), "{of_carl:?}");
    for more in [&["--dry-run"][..], &[], &["--with-access"]] {
        let (is_all, said) = applied(&fleet, more);
        assert!(!is_all && said.contains("users/3 was changed since"), "{said}");
        assert!(said.contains("belongs to user 3, which the log has"), "{said}");
        assert!(said.contains("belongs to user 8, which the log has"), "{said}");
        assert!(!said.contains("gives access"), "{said}");
        assert_eq!(of_user(3), of_carl, "{said}");
        assert_eq!(of_user(8), of_ida, "{said}");
        let is_dry = more.contains(&"--dry-run");
        assert_eq!((of_user(6).is_empty(), of_user(7).len()), (!is_dry, if is_dry { 7 } else { 6 }), "{said}");
    }
    // The deletion is forced, and what belonged to the user goes with it.
    let (is_all, said) = applied(&fleet, &["--force"]);
    assert!(!is_all && said.contains("belongs to user 8") && said.contains("1 left"), "{said}");
    assert_eq!((of_user(3), of_user(8)), (vec![], of_ida), "{said}");
}
