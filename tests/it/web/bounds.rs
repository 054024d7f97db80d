//! Limits on a user's writes and storage, and their effect on others.

use serde_json::{Value, json};

use super::Web;
use super::client::Client;
use crate::fleet::Fleet;

/// Nearly the maximum size of an object.
const LARGE: usize = 1_000_000;

/// Returns a webserver with these settings, its administrator, and users.
fn site<const N: usize>(fleet: &Fleet, settings: &str, users: [&str; N]) -> (Web, Client, [Client; N]) {
    let config = fleet.write_file("gravwell.conf", &format!("[Global]\n{settings}"));
    let web = Web::start(fleet, "a", &["--config", config.to_str().expect("path")]);
    let admin = web.admin(fleet);
    let clients = users.map(|user| {
        admin.made("/api/users", &json!({ "User": user, "Pass": "a plain horse" }));
        web.login(user, "a plain horse")
    });
    (web, admin, clients)
}

fn dashboard(bytes: usize) -> Value {
    json!({ "Name": "d", "Data": { "x": "x".repeat(bytes) } })
}

#[track_caller]
fn is_too_much(answer: &super::client::Answer, bound: &str) {
    assert_eq!(answer.status, 413, "{}", answer.text());
    assert!(answer.text().contains(bound), "{}", answer.text());
}

#[test]
fn p15_what_one_user_keeps_is_bounded() {
    let fleet = Fleet::new();
    let (_web, admin, [bob, carol]) = site(&fleet, "User-Objects-Max=5\nUser-Objects-MB=1\n", ["bob", "carol"]);
    let ids: Vec<Value> = (0..5).map(|_| bob.made("/api/dashboards", &dashboard(10))).collect();
    is_too_much(&bob.post("/api/dashboards", &dashboard(10)), "User-Objects-Max");
    // The limit applies to all ways of creating a dashboard.
    is_too_much(&bob.get(&format!("/api/dashboards/{}/clone", ids[0])), "User-Objects-Max");
    is_too_much(&bob.post(&format!("/api/dashboards/{}/clone", ids[0]), &json!({})), "User-Objects-Max");
    bob.changed(&format!("/api/dashboards/{}", ids[0]), &json!({ "Name": "other" }));
    bob.ok("DELETE", &format!("/api/dashboards/{}", ids[1]));
    bob.made("/api/dashboards", &dashboard(10));
    is_too_much(&bob.post("/api/dashboards", &dashboard(10)), "User-Objects-Max");
    let own: Vec<u16> =
        (0..6).map(|_| bob.post("/api/notifications/targeted/self", &json!({ "Msg": "m" })).status).collect();
    assert_eq!(own, [200, 200, 200, 200, 200, 413], "each kind has a separate limit");
    let resources: Vec<u16> =
        (0..6).map(|n| bob.post("/api/resources", &json!({ "ResourceName": format!("r{n}") })).status).collect();
    assert_eq!(resources, [200, 200, 200, 200, 200, 413]);
    // Bytes are limited as well, separately for each user.
    let first = format!("/api/dashboards/{}", carol.made("/api/dashboards", &dashboard(500_000)));
    is_too_much(&carol.post("/api/dashboards", &dashboard(600_000)), "User-Objects-MB");
    carol.changed(&first, &dashboard(900_000));
    is_too_much(&carol.post("/api/dashboards", &dashboard(200_000)), "User-Objects-MB");
    carol.changed(&first, &dashboard(10));
    carol.made("/api/dashboards", &dashboard(600_000));
    is_too_much(&carol.put(&first, &dashboard(600_000)), "User-Objects-MB");
    // Search histories have a separate limit, at which the oldest entries are deleted.
    for n in 0..7 {
        bob.made("/api/searchhistory", &json!({ "UserQuery": format!("q{n}") }));
    }
    // Administrators are exempt, because they import for all users.
    for _ in 0..7 {
        admin.made("/api/dashboards", &dashboard(300_000));
    }
}

#[test]
fn p15_whatever_commits_is_counted_as_a_change() {
    let fleet = Fleet::new();
    let (_web, _admin, [bob, carol]) =
        site(&fleet, "Write-Rate-Per-User=2\nWrite-Burst-Per-User=15\n", ["bob", "carol"]);
    // By its method this is a read, but it writes a session.
    let answers: Vec<_> = (0..60).map(|_| bob.get("/api/login/tmptoken")).collect();
    let refused = answers.iter().find(|answer| answer.status == 429).expect("some are refused");
    assert!(refused.header("retry-after").is_some(), "{}", refused.text());
    assert!(answers.iter().filter(|answer| answer.status == 200).count() >= 10, "a burst passes");
    carol.ok("GET", "/api/login/tmptoken");
}

/// Returns the largest memory that a webserver has had, since the last reset or since the one made now.
#[cfg(target_os = "linux")]
fn peak_kib(web: &Web, resets: bool) -> usize {
    let proc = format!("/proc/{}", web.id());
    if resets {
        std::fs::write(format!("{proc}/clear_refs"), "5").expect("resets the maximum");
    }
    let status = std::fs::read_to_string(format!("{proc}/status")).expect("reads");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a maximum");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}

#[cfg(target_os = "linux")]
#[test]
fn p15_unfinished_heads_take_little_memory() {
    use std::io::{Read, Write};
    const CONNECTIONS: usize = 500;
    let fleet = Fleet::new();
    let (web, admin, []) = site(&fleet, "Webserver-Max-Connections-Per-Address=0\n", []);
    let before = peak_kib(&web, true);
    let line = format!("X-A: {}\r\n", "a".repeat(4000));
    let held: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let mut stream = std::net::TcpStream::connect(web.address()).expect("connects");
            stream.set_write_timeout(Some(std::time::Duration::from_secs(5))).expect("sets");
            // The timeout for the first request does not apply to what follows.
            stream.write_all(b"GET /api/version HTTP/1.1\r\nHost: x\r\n\r\n").expect("writes");
            let _ = stream.read(&mut [0; 4096]).expect("reads");
            let _ = stream.write_all(b"GET /api/version HTTP/1.1\r\nHost: x\r\n");
            for _ in 0..90 {
                // The connection is closed at the limit.
                let _ = stream.write_all(line.as_bytes());
            }
            stream
        })
        .collect();
    assert_eq!(admin.get("/api/users").status, 200);
    let grown = peak_kib(&web, false).saturating_sub(before) >> 10;
    assert!(grown < 64, "{grown} MiB more for {CONNECTIONS} unfinished requests");
    drop(held);
    // A head of a usual size is accepted, also with a long query in it.
    let query = format!("tag=audit \"{}\"", "x".repeat(15_000));
    let long = admin.with("query", &query).post("/api/parse", &json!({}));
    assert_eq!((long.status, &long.json()["GoodQuery"]), (200, &json!(true)), "{}", long.text());
}

#[test]
fn p15_bodies_have_few_fields_and_only_those_with_objects_are_large() {
    let fleet = Fleet::new();
    let (_web, _admin, [bob, _]) = site(&fleet, "", ["bob", "carol"]);
    let fields: String = (0..1_000_000).map(|number| format!("\"x{number}\":0,")).collect();
    let many = format!("{{{fields}\"Name\":\"d\"}}");
    let answer = bob.send_text("POST", "/api/dashboards", "application/json", &many);
    assert!(answer.status == 400 && answer.text().contains("fields"), "{}", answer.text());
    assert_eq!(bob.send_text("POST", "/api/resources", "application/json", &many).status, 413);
    // What is not known is not decoded.
    let versions = format!("[{}0]", "{\"a\":0},".repeat(1_000_000));
    let retry = format!("{{\"Upon\":[{{\"Collection\":\"a\",\"Key\":\"b\",\"Version\":{versions}}}]}}");
    let answer = bob.send_text("POST", "/api/rejections/x-1/retry", "application/json", &retry);
    assert_eq!(answer.status, 404, "{}", answer.text());
    let upon = vec![json!({ "Collection": "a", "Key": "b", "Version": "" }); 10_001];
    assert_eq!(bob.post("/api/rejections/x-1/retry", &json!({ "Upon": upon })).status, 400);
    assert_eq!(bob.post("/api/dashboards", &dashboard(LARGE)).status, 200);
}

#[cfg(target_os = "linux")]
#[test]
fn p15_a_list_needs_no_memory_for_what_it_does_not_show() {
    const COUNT: usize = 48;
    let fleet = Fleet::new();
    let (web, _admin, [bob, carol]) = site(&fleet, "", ["bob", "carol"]);
    let made: Vec<Value> = (0..COUNT).map(|_| bob.made("/api/dashboards", &dashboard(LARGE))).collect();
    let before = peak_kib(&web, true);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(carol.ok("GET", "/api/dashboards"), json!([])));
        }
    });
    let unknown = "/api/dashboards/00000000-0000-4000-8000-000000000000";
    assert_eq!(carol.get(unknown).status, 404);
    let grown = peak_kib(&web, false).saturating_sub(before) >> 10;
    // Keeping all objects in memory for four requests would need at least four times as much.
    assert!(grown < COUNT, "{grown} MiB more for a list of invisible objects");
    // The owner gets all objects, complete and in order.
    let listed = bob.ok("GET", "/api/dashboards");
    let ids: Vec<Value> = listed.as_array().expect("a list").iter().map(|one| one["ID"].clone()).collect();
    assert_eq!(ids, made);
    assert!(
        listed.as_array().expect("a list").iter().all(|one| one["Data"]["x"].as_str().map(str::len) == Some(LARGE))
    );
}

/// A connection that a user keeps open after some responses.
struct Kept(std::net::TcpStream, String);

impl Kept {
    fn new(web: &Web, client: &Client) -> Kept {
        let stream = std::net::TcpStream::connect(web.address()).expect("connects");
        Kept(stream, format!("Authorization: Bearer {}", client.token()))
    }

    /// Returns the status of a response; 0: the connection was closed.
    fn get(&mut self, path: &str) -> u16 {
        use std::io::{Read, Write};
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{}\r\n\r\n", self.1);
        if self.0.write_all(request.as_bytes()).is_err() {
            return 0;
        }
        let mut answer = vec![0; 16 << 10];
        let length = self.0.read(&mut answer).unwrap_or(0);
        String::from_utf8_lossy(&answer[..length]).split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    }
}

#[test]
fn p15_connections_of_one_user_are_bounded_also_behind_a_balancer() {
    let fleet = Fleet::new();
    let settings = "Webserver-Max-Connections-Per-User=3\nWebserver-Trusted-Proxy=127.0.0.1\n";
    let (web, _, [bob, carol]) = site(&fleet, settings, ["bob", "carol"]);
    let whoami = "/api/info/whoami";
    let mut held: Vec<Kept> = (0..4).map(|_| Kept::new(&web, &bob)).collect();
    for kept in &mut held {
        assert_eq!(kept.get(whoami), 200);
    }
    // The oldest idle one is closed. A connection may become idle a moment after its client has the whole response.
    let found: Vec<u16> = held.iter_mut().map(|kept| kept.get(whoami)).collect();
    let mut sorted = found.clone();
    sorted.sort_unstable();
    assert!(sorted == [0, 200, 200, 200] && found[3] == 200, "{found:?}");
    held.remove(found.iter().position(|status| *status == 0).expect("one was closed"));
    // Connections with a response in progress are kept.
    for kept in &mut held {
        assert_eq!(kept.get("/api/events"), 200);
    }
    let mut more = Kept::new(&web, &bob);
    assert_eq!(more.get(whoami), 429);
    assert_eq!(Kept::new(&web, &carol).get(whoami), 200, "another user has a separate limit");
    drop(held);
    fleet.wait("slots are released", || Kept::new(&web, &bob).get(whoami) == 200);
}

#[test]
fn p07_one_user_leaves_room_to_others_whatever_they_make() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    // One user may use an eighth, 128 KiB.
    let (web, admin, [bob, carol]) = site(&fleet, "Outbox-Max-MB=1\n", ["bob", "carol"]);
    let users = admin.ok("GET", "/api/users");
    let uid = users.as_array().expect("a list").iter().find(|user| user["User"] == "bob").expect("bob")["UID"].clone();
    // The limit applies immediately, whether or not the outage was noticed yet.
    datastore.terminate();
    let token = json!({ "name": "t", "description": "x".repeat(4000), "capabilities": ["Search"] });
    let made: Vec<u16> = (0..60).map(|_| bob.post("/api/tokens", &token).status).collect();
    let taken = made.iter().filter(|status| **status == 200).count();
    assert!((10..32).contains(&taken) && made.last() == Some(&503), "{made:?}");
    carol.made("/api/dashboards", &dashboard(60_000));
    for user in ["bob", "carol"] {
        web.login(user, "a plain horse");
    }
    admin.ok("PUT", &format!("/api/users/{uid}/lock"));
    assert_eq!(bob.get("/api/testauth").status, 401);
}

#[test]
fn p15_tokens_and_messages_are_small_and_lists_of_them_are_sent_one_by_one() {
    let fleet = Fleet::new();
    let (_web, admin, [bob, carol]) = site(&fleet, "", ["bob", "carol"]);
    let token = |length: usize| json!({ "name": "t", "description": "x".repeat(length), "capabilities": ["Search"] });
    let (fits, too_long) = (bob.post("/api/tokens", &token(4096)), bob.post("/api/tokens", &token(4097)));
    assert_eq!((fits.status, too_long.status), (200, 400), "{}", too_long.text());
    let many = json!({ "name": "t", "capabilities": vec!["Search"; 10_000] });
    assert_eq!(bob.made("/api/tokens", &many)["capabilities"], json!(["Search"]), "each is listed once");
    let listed = bob.ok("GET", "/api/tokens");
    assert_eq!(listed.as_array().map(Vec::len), Some(2));
    // Only administrators see tokens of other users.
    let path = format!("/api/tokens/{}", listed[0]["id"].as_str().expect("an id"));
    assert_eq!((carol.get(&path).status, carol.delete(&path).status), (404, 404));
    assert_eq!((admin.ok("GET", &path), bob.ok("GET", &path)), (listed[0].clone(), listed[0].clone()));
    admin.ok("DELETE", &path);
    assert_eq!(bob.get(&path).status, 404);
    let send = |length: usize| bob.post("/api/notifications/targeted/self", &json!({ "Msg": "x".repeat(length) }));
    assert_eq!(bob.ok("GET", "/api/notifications"), json!({}));
    assert_eq!((send(16 << 10).status, send((16 << 10) + 1).status), (200, 400));
    for _ in 0..40 {
        assert_eq!(send(16_000).status, 200);
    }
    let answer = bob.get("/api/notifications");
    assert!(answer.header("content-length").is_none(), "long lists are streamed");
    assert_eq!(answer.json().as_object().map(serde_json::Map::len), Some(41));
    assert_eq!(carol.ok("GET", "/api/notifications"), json!({}));
}

#[test]
fn p15_what_is_said_of_a_search_is_small() {
    let fleet = Fleet::new();
    let (_web, _admin, [bob, _]) = site(&fleet, "", ["bob", "carol"]);
    super::searches::resource(&bob, "few", "{\"n\":1}\n");
    let launch = |more: Value| {
        let mut wish = json!({ "SearchString": "tag=resource:few" });
        wish.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        bob.post("/api/searchctrl/launch", &wish)
    };
    let text = |length: usize| json!("x".repeat(length));
    type Field<'a> = (&'a str, usize, fn(Value) -> Value);
    let fields: [Field<'_>; 4] = [
        ("Name", 256, |text| json!({ "Name": text })),
        ("Method", 256, |text| json!({ "LaunchInfo": { "method": text } })),
        ("Reference", 4096, |text| json!({ "LaunchInfo": { "reference": text } })),
        ("Metadata", (64 << 10) - 2, |text| json!({ "Metadata": text })),
    ];
    for (field, most, of) in fields {
        let (fits, too_long) = (launch(of(text(most))), launch(of(text(most + 1))));
        assert_eq!((fits.status, too_long.status), (200, 400), "{field}: {}", too_long.text());
        assert!(too_long.text().contains(field), "{}", too_long.text());
    }
    let id = launch(json!({})).json()["SearchID"].as_str().expect("an id").to_owned();
    let save = |wish: Value| {
        bob.send_text("PATCH", &format!("/api/searchctrl/{id}/save"), "application/json", &wish.to_string())
    };
    for (field, most) in [("Name", 256), ("Notes", 65_536)] {
        let too_long = save(json!({ field: text(most + 1) }));
        assert!(too_long.status == 400 && too_long.text().contains(field), "{field}: {}", too_long.text());
    }
    let groups = json!({ "GIDs": vec![7; 10_001] });
    assert_eq!(bob.put(&format!("/api/searchctrl/{id}/groups"), &groups).status, 400);
}
