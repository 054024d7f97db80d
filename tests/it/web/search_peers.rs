//! Searches between webservers: permissions through another webserver, trusted peers, and reports of
//! unreachable webservers.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use gravwell_model::MemberName;
use gravwell_model::codec::message::Open;
use gravwell_replica::ReplicaOptions;
use gravwell_replica::service::{PeerListening, Service};
use serde_json::{Value, json};

use super::ADMIN_PASSWORD;
use super::Site;
use super::client::Client;
use super::searches::{ended, launch, resource};
use crate::fleet::Fleet;

/// Creates a site with these users, who may see a search.
fn site_with(people: &[&str]) -> (Site, Client, Client) {
    let site = Site::new();
    let (a, b) = site.admins();
    for name in people {
        a.made("/api/users", &json!({ "User": name, "Pass": "a plain horse" }));
    }
    (site, a, b)
}

#[test]
fn permissions_are_the_same_on_every_webserver() {
    let (site, admin, _) = site_with(&["owner", "member", "stranger", "gone"]);
    let gid = admin.made("/api/groups", &json!({ "Name": "g" }));
    let users = admin.ok("GET", "/api/users");
    let uid = |name: &str| {
        let users = users.as_array().expect("a list");
        users.iter().find(|user| user["User"] == name).map(|user| user["UID"].clone()).expect("a user")
    };
    for name in ["owner", "member", "gone"] {
        admin.made(&format!("/api/users/{}/group", uid(name)), &json!({ "GIDs": [gid] }));
    }
    site.converges();
    let owner = site.a.login("owner", "a plain horse");
    resource(&owner, "r", "{\"n\":1}\n");
    let path = launch(&owner, "tag=resource:r");
    ended(&owner, &path);
    owner.changed(&format!("{path}/groups"), &json!({ "GIDs": [gid] }));
    site.converges();
    let gone = site.b.login("gone", "a plain horse");
    admin.ok("PUT", &format!("/api/users/{}/lock", uid("gone")));
    site.converges();
    let at_b = |name: &str, password: &str| site.b.login(name, password);
    let callers = [
        at_b("owner", "a plain horse"),
        at_b("admin", ADMIN_PASSWORD),
        at_b("member", "a plain horse"),
        at_b("stranger", "a plain horse"),
        gone,
    ];
    let deeds = [
        ("GET", "", [200, 200, 200, 404, 401]),
        ("GET", "/details", [200, 200, 200, 404, 401]),
        ("GET", "/rows", [200, 200, 200, 404, 401]),
        ("GET", "/download/text", [200, 200, 200, 404, 401]),
        ("GET", "/stats/overview", [200, 200, 200, 404, 401]),
        ("PUT", "/stop", [200, 200, 403, 404, 401]),
        ("PATCH", "/save", [200, 200, 403, 404, 401]),
        ("PUT", "/groups", [200, 200, 403, 404, 401]),
        ("PUT", "/global", [403, 200, 403, 403, 401]),
        ("DELETE", "", [200, 404, 403, 404, 401]),
    ];
    for (method, deed, wanted) in deeds {
        // Callers without permission try first, before the others change anything.
        for column in [4, 3, 2, 0, 1] {
            let path = format!("{path}{deed}");
            let answer = match deed {
                "/groups" => callers[column].put(&path, &json!({ "GIDs": [gid] })),
                _ => callers[column].call(method, &path),
            };
            assert_eq!(answer.status, wanted[column], "{method} {path} by caller {column}: {}", answer.text());
        }
    }
}

/// A fleet member controlled by the test: sends a custom request and returns the head of the response.
async fn ask(service: &Service, question: &Value) -> Option<Value> {
    let peers = service.peers.as_ref().expect("listens");
    let holder = MemberName::new("a").expect("name");
    let begun = Instant::now();
    let mut stream = loop {
        match peers.open(&holder, Open::Search).await {
            Ok(stream) => break stream,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(60), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let text = question.to_string();
    let length = u32::try_from(text.len()).expect("short");
    stream.send.write_all(&length.to_le_bytes()).await.ok()?;
    stream.send.write_all(text.as_bytes()).await.ok()?;
    let mut length = [0; 4];
    stream.receive.read_exact(&mut length).await.ok()?;
    let mut head = vec![0; u32::from_le_bytes(length) as usize];
    stream.receive.read_exact(&mut head).await.ok()?;
    serde_json::from_slice(&head).ok()
}

#[test]
fn only_webservers_are_accepted_and_their_claims_about_users_are_verified() {
    let (site, admin, _) = site_with(&["owner", "stranger"]);
    let owner = site.a.login("owner", "a plain horse");
    resource(&owner, "r", "{\"n\":1}\n");
    let path = launch(&owner, "tag=resource:r");
    ended(&owner, &path);
    let id = path.rsplit('/').next().expect("an id");
    let users = admin.ok("GET", "/api/users");
    let uid = |name: &str| {
        users
            .as_array()
            .and_then(|users| users.iter().find(|user| user["User"] == name))
            .map(|user| user["UID"].clone())
    };
    site.fleet.enroll("c", "webserver");
    site.fleet.enroll("r", "reader");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let start = async |name: &str| {
            let loopback = PeerListening::On("127.0.0.1:0".parse().expect("address"));
            Service::start(&site.fleet.dir(name), Vec::new(), ReplicaOptions::default(), loopback).await.expect("starts")
        };
        let (c, r) = (start("c").await, start("r").await);
        let question = |uid: Value, as_admin: bool| json!({ "uid": uid, "as_admin": as_admin, "from": "x", "search": id, "deed": "Status", "seen": 0 });
        let good = question(uid("owner").expect("a user"), false);
        let answer = ask(&c, &good).await.expect("an answer");
        assert_eq!((&answer["status"], &answer["error"]), (&json!(200), &json!("")), "{answer}");
        // A claim to be an administrator is verified; a user who does not exist has no access.
        let forged = ask(&c, &question(uid("stranger").expect("a user"), true)).await.expect("an answer");
        assert_eq!(forged["status"], 404, "{forged}");
        let nobody = ask(&c, &question(json!(4711), true)).await.expect("an answer");
        assert_eq!(nobody["status"], 403, "{nobody}");
        // A token of an administrator has no administrator rights.
        let token = ask(&c, &question(json!(1), false)).await.expect("an answer");
        assert_eq!(token["status"], 404, "{token}");
        assert_eq!(ask(&r, &good).await, None, "a reader must not act on behalf of users");
        c.stop().await;
        r.stop().await;
    });
}

#[test]
fn partial_results_are_never_reported_as_complete() {
    let mut site = Site::new();
    let (a, b) = site.admins();
    resource(&a, "one", "{}\n");
    let path = launch(&a, "tag=resource:one | range(60000) | {n: ., pad: (\"x\" * 1000)}");
    assert_eq!(ended(&a, &path)["ItemCount"], 60_000);
    site.converges();
    let mut stream = TcpStream::connect(site.b.address).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a bound");
    let request =
        format!("GET {path}/download/text HTTP/1.1\r\nHost: b\r\nAuthorization: Bearer {}\r\n\r\n", b.token());
    stream.write_all(request.as_bytes()).expect("asks");
    let mut got = vec![0; 100_000];
    stream.read_exact(&mut got).expect("the beginning");
    assert!(got.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&got[..200]));
    site.a.kill();
    // Reads until the connection ends, regularly or not: the last chunk of a complete response is empty.
    let _ = stream.read_to_end(&mut got);
    assert!(got.len() < 60_000_000, "{} bytes", got.len());
    assert!(!got.ends_with(b"\r\n0\r\n\r\n"), "a partial download looks complete");
    let refused = b.get(&format!("{path}/download/text"));
    assert!(refused.status == 503 && refused.text().contains("webserver a"), "{}", refused.text());
    assert_eq!(b.ok("GET", &path)["ItemCount"], 60_000);
    // After a restart it has its results.
    site.a.restart(&site.fleet, &[]);
    let again = || b.get(&format!("{path}/rows?first=59999&count=1")).status == 200;
    site.fleet.wait("a is reachable again", again);
}

#[test]
fn a_started_search_is_listed_everywhere_and_histories_agree() {
    let mut site = Site::new();
    let (a, b) = site.admins();
    resource(&a, "r", "{\"n\":1}\n");
    site.converges();
    let listed = |client: &Client, id: &str| client.ok("GET", "/api/searchctrl").to_string().contains(id);
    let mut waits = Vec::new();
    for _ in 0..9 {
        let begun = Instant::now();
        let path = launch(&a, "tag=resource:r | limit 1");
        let id = path.rsplit('/').next().expect("an id").to_owned();
        site.fleet.wait("the search is listed there", || listed(&b, &id));
        waits.push(begun.elapsed());
    }
    waits.sort();
    println!("time from the launch until the search was listed at the other webserver: {waits:?}");
    // Offline, each continues; afterwards both have everything, including deletions.
    site.stop_datastore();
    launch(&a, "tag=resource:r \"made at a\"");
    launch(&b, "tag=resource:r \"made at b\"");
    site.start_datastore();
    site.converges();
    let history = |client: &Client, refine: &str| client.ok("GET", &format!("/api/searchhistory?refine={refine}"));
    assert_eq!(history(&a, "made"), history(&b, "made"));
    assert_eq!(history(&a, "made").as_array().map(Vec::len), Some(2));
    site.stop_datastore();
    b.ok("DELETE", "/api/searchhistory");
    launch(&a, "tag=resource:r \"later\"");
    site.start_datastore();
    site.converges();
    assert_eq!(history(&a, ""), history(&b, ""));
    assert_eq!(history(&a, "").as_array().map(Vec::len), Some(1), "entries added after clearing are kept");
}

#[test]
fn searches_over_a_web_socket() {
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;
    let fleet = Fleet::new();
    let web = super::Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    resource(&admin, "numbers", &super::searches::numbers(10));
    let mut request = format!("ws://{}/api/ws/search", web.address).into_client_request().expect("a request");
    request.headers_mut().insert("Sec-WebSocket-Protocol", admin.token().parse().expect("a value"));
    let stream = TcpStream::connect(web.address).expect("connects");
    let (mut socket, response) = tokio_tungstenite::tungstenite::client(request, stream).expect("a handshake");
    assert_eq!(response.headers()["sec-websocket-protocol"], admin.token());
    let acknowledgement = std::cell::Cell::new(None);
    let mut say = |value: Value| -> Value {
        // An acknowledgement has no reply: the next reply belongs to the next request.
        for frame in [acknowledgement.take(), Some(value)].into_iter().flatten() {
            socket.send(Message::text(frame.to_string())).expect("sends");
        }
        let answer = socket.read().expect("answers").into_text().expect("text");
        serde_json::from_str(&answer).expect("JSON")
    };
    assert_eq!(say(json!({ "Subs": ["PONG", "parse", "search", "attach"] })), json!({ "Resp": "ACK" }));
    assert_eq!(say(json!({ "type": "PONG", "data": {} })), json!({ "type": "PONG", "data": {} }));
    let parsed = say(json!({ "type": "parse", "data": { "SearchString": "tag=non-existant", "Sequence": 3 } }));
    let data = &parsed["data"];
    assert_eq!((&data["Sequence"], &data["GoodQuery"], &data["ModuleIndex"]), (&json!(3), &json!(false), &json!(0)));
    assert_eq!(data["ParseError"], "Could not match tag spec non-existant against any known tags");
    let begun =
        say(json!({ "type": "search", "data": { "SearchString": "tag=resource:numbers", "SearchStart": null } }));
    let name = begun["data"]["OutputSearchSubproto"].as_str().expect("a name").to_owned();
    let id = begun["data"]["SearchID"].clone();
    acknowledgement.set(Some(json!({ "type": "search", "data": { "OK": true, "OutputSearchSubproto": name } })));
    let begin = Instant::now();
    let counted = loop {
        let count = say(json!({ "type": name, "data": { "ID": 3 } }));
        if count["data"]["Finished"] == true {
            break count;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{count}");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!((&counted["data"]["ID"], &counted["data"]["EntryCount"]), (&json!(3), &json!(10)));
    let entries = say(json!({ "type": name, "data": { "ID": 16, "EntryRange": { "First": 8, "Last": 20 } } }));
    assert_eq!(entries["data"]["Entries"].as_array().map(Vec::len), Some(2), "{entries}");
    let unknown = say(json!({ "type": name, "data": { "ID": 77 } }));
    assert_eq!(unknown["data"]["ID"], 0xffff_ffff_u32, "{unknown}");
    let attached = say(json!({ "type": "attach", "data": { "ID": id } }));
    assert_eq!(attached["data"]["Info"]["ItemCount"], 10, "{attached}");
    let refused = say(json!({ "type": "attach", "data": { "ID": "12" } }));
    assert!(refused["data"]["Error"].as_str().expect("text").contains("no search 12"), "{refused}");
    // A client without a subprotocol, and so without a login, is rejected.
    let stream = TcpStream::connect(web.address).expect("connects");
    let request = format!("ws://{}/api/ws/search", web.address);
    assert!(tokio_tungstenite::tungstenite::client(request, stream).is_err());
}
