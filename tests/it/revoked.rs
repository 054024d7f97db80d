//! A revoked webserver: whatever it was doing when it learned of the revocation, it is not ready and accepts no logins
//! and writes until it is enrolled again. Its accepted changes are neither lost nor committed without review.

use serde_json::{Value, json};

use crate::fleet::{Fleet, Process};
use crate::web::Web;
use crate::web::client::Client;

const PEERS: [&str; 2] = ["--peer-listen", "127.0.0.1:0"];

fn ready(web: &Web) -> u16 {
    web.nobody().try_get("/api/ready").map_or(0, |(status, _)| status)
}

fn credentials() -> Value {
    json!({ "User": "admin", "Pass": crate::web::ADMIN_PASSWORD })
}

/// Returns the status codes that a client with a session gets: readiness, a login, a change, a search.
fn answers(web: &Web, client: &Client) -> [u16; 4] {
    let login = web.nobody().post("/api/login", &credentials()).status;
    let change = client.put("/api/users/1/preferences", &json!({ "x": 1 })).status;
    let search = client.post("/api/searchctrl/launch", &json!({ "SearchString": "tag=resource:none" })).status;
    [ready(web), login, change, search]
}

#[track_caller]
fn is_shut(fleet: &Fleet, web: &Web, client: &Client, when: &str) {
    fleet.wait(&format!("it knows that it was revoked, {when}"), || {
        let status = fleet.status(web.name);
        status["is_refused"] == true && ready(web) == 503
    });
    assert_eq!(answers(web, client), [503; 4], "{when}");
    let status = fleet.run(web.name, &["status"]);
    assert_eq!(status.status.code(), Some(1), "{when}");
    assert!(String::from_utf8_lossy(&status.stdout).contains("revoked"), "{when}: {status:?}");
    // Existing sessions can still read its data.
    assert_eq!(client.get("/api/info/whoami").status, 200, "{when}");
    assert_eq!(fleet.run(web.name, &["put", "c", "refused", "--value", "1"]).status.code(), Some(1), "{when}");
}

#[track_caller]
fn is_open(fleet: &Fleet, web: &Web, client: &Client, when: &str) {
    fleet.wait(&format!("it is ready, {when}"), || ready(web) == 200);
    let [ready, login, change, _] = answers(web, client);
    assert_eq!([ready, login, change], [200; 3], "{when}");
}

/// Starts a small search at the webserver of `client`; returns its path.
fn launch(client: &Client) -> String {
    let begun = client.made("/api/searchctrl/launch", &json!({ "SearchString": "tag=resource:rows" }));
    format!("/api/searchctrl/{}/rows", begun["SearchID"].as_str().expect("an id"))
}

fn status_of(client: &Client, path: &str) -> u16 {
    client.try_get(path).map_or(0, |(status, _)| status)
}

fn enroll_again(fleet: &Fleet, name: &str) {
    let token = fleet.ok("d", &["enroll", name, "--replace"]);
    fleet.ok(name, &["join", token.trim()]);
}

fn site() -> (Fleet, Process, Web, Web) {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    fleet.enroll("b", "webserver");
    let (a, b) = (Web::start(&fleet, "a", &PEERS), Web::start(&fleet, "b", &PEERS));
    a.admin(&fleet);
    fleet.converges(&["a", "b"]);
    (fleet, datastore, a, b)
}

#[test]
fn p11_a_revoked_webserver_stays_closed_across_restarts_until_it_is_enrolled_again() {
    let (fleet, datastore, a, mut b) = site();
    let (at_a, at_b) = (a.admin(&fleet), b.admin(&fleet));
    is_open(&fleet, &b, &at_b, "before");
    let rows = at_a.made("/api/resources", &json!({ "ResourceName": "rows" }));
    let raw = format!("/api/resources/{}/raw", rows["GUID"].as_str().expect("a GUID"));
    assert_eq!(at_a.upload("PUT", &raw, "file", &b"{\"n\":1}\n"[..]).status, 200);
    fleet.converges(&["a", "b"]);
    let search = launch(&at_b);
    fleet.wait("a member shows the search of another one", || status_of(&at_a, &search) == 200);
    fleet.ok("d", &["revoke", "b"]);
    is_shut(&fleet, &b, &at_b, "while idle");
    fleet.wait("a member no longer trusts it", || status_of(&at_a, &search) != 200);
    b.stop();
    b.restart(&fleet, &PEERS);
    is_shut(&fleet, &b, &at_b, "started again");
    datastore.terminate();
    b.kill();
    b.restart(&fleet, &PEERS);
    is_shut(&fleet, &b, &at_b, "started again without the datastore");
    let doctor = fleet.run("b", &["doctor"]);
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("enroll NAME --replace"), "{doctor:?}");
    let datastore = fleet.datastore();
    is_shut(&fleet, &b, &at_b, "when the datastore is online again");

    // Enrolled again while it runs: every connection uses the new certificate.
    enroll_again(&fleet, "b");
    is_open(&fleet, &b, &at_b, "enrolled again");
    fleet.converges(&["a", "b"]);
    let made = at_b.made("/api/resources", &json!({ "ResourceName": "r" }));
    let guid = made["GUID"].as_str().expect("a GUID").to_owned();
    let body: String = (0..200_000).map(|number| format!("{number}\n")).collect();
    let put = at_b.upload("PUT", &format!("/api/resources/{guid}/raw"), "file", body.as_bytes());
    assert_eq!(put.status, 200, "{}", put.text());
    // Chunks use a separate connection, and members fetch results from each other.
    fleet.wait("the contents are at the other one", || status_of(&at_a, &format!("/api/resources/{guid}/raw")) == 200);
    let search = launch(&at_b);
    fleet.wait("a member shows the search of another one again", || status_of(&at_a, &search) == 200);
    datastore.terminate();
}

#[test]
fn p11_changes_that_a_revoked_webserver_accepted_offline_are_archived_not_pushed() {
    let (fleet, datastore, a, b) = site();
    let at_b = b.admin(&fleet);
    datastore.terminate();
    fleet.wait("it is disconnected", || fleet.status("b")["connected"] == false);
    // A webserver that is only offline works as usual.
    is_open(&fleet, &b, &at_b, "offline");
    fleet.ok("b", &["put", "c", "k", "--value", "\"made while offline\"", "--no-wait"]);
    // The member registry is changed while the datastore is stopped.
    fleet.ok("d", &["revoke", "b"]);
    is_open(&fleet, &b, &at_b, "before it is notified");
    let datastore = fleet.datastore();
    is_shut(&fleet, &b, &at_b, "notified later");
    let status = fleet.status("b");
    assert_eq!((&status["outbox"], &status["quarantined"]), (&json!(0), &json!(1)), "{status}");
    assert!(status["rejected"].as_u64().is_some_and(|rejected| rejected > 0), "its authors are notified: {status}");
    for command in ["status", "doctor"] {
        let output = fleet.run("b", &[command]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("quarantine apply"), "{command}: {text}");
    }
    fleet.ok("b", &["quarantine", "show", "1"]);
    let archived = std::fs::read_to_string(fleet.dir("b/quarantine/0001.jsonl")).expect("reads");
    assert!(archived.contains("made while offline"), "{archived}");
    enroll_again(&fleet, "b");
    is_open(&fleet, &b, &at_b, "enrolled again");
    fleet.converges(&["a", "b"]);
    assert!(!fleet.export("d").contains("made while offline"), "it is not pushed automatically");
    // Objects that were changed since, like the preferences above, are left unchanged.
    let applied = fleet.run("b", &["quarantine", "apply", "1"]);
    assert!(String::from_utf8_lossy(&applied.stdout).contains("applied"), "{applied:?}");
    fleet.converges(&["a", "b"]);
    assert!(fleet.export("d").contains("made while offline"));
    drop((a, datastore));
}

#[test]
fn p11_a_webserver_revoked_under_load_loses_nothing_that_it_had_accepted() {
    let (fleet, datastore, a, b) = site();
    let at_b = b.admin(&fleet);
    let put = |number: u32| {
        let key = format!("key-{number:04}");
        (fleet.command("b", &["put", "c", &key, "--value", "1", "--no-wait"]), key)
    };
    let puts: Vec<_> = (0..1000).map(put).collect();
    let writing = std::thread::spawn(move || {
        let accepted =
            puts.into_iter().map_while(|(mut put, key)| put.output().expect("runs").status.success().then_some(key));
        accepted.collect::<Vec<String>>()
    });
    fleet.wait("it is under load", || fleet.export("d").contains("key-0005"));
    fleet.ok("d", &["revoke", "b"]);
    let accepted = writing.join().expect("no panic");
    assert!(accepted.len() < 1000, "writes end");
    is_shut(&fleet, &b, &at_b, "under load");
    assert_eq!(fleet.status("b")["outbox"], 0);
    enroll_again(&fleet, "b");
    is_open(&fleet, &b, &at_b, "enrolled again");
    fleet.converges(&["a", "b"]);
    let mut found = fleet.export("d");
    let sets: Vec<Value> = fleet
        .ok("b", &["quarantine", "list", "--json"])
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    for set in &sets {
        found += &fleet.ok("b", &["quarantine", "show", &set["number"].to_string()]);
    }
    for key in &accepted {
        assert!(found.contains(key.as_str()), "{key} was accepted, and is neither in the log nor archived");
    }
    fleet.ok("b", &["put", "c", "after", "--value", "1"]);
    drop((a, datastore));
}
