//! Long-lived responses: each ends, or returns no more data, when its caller loses the right to it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::client::Client;
use super::searches::{ended, launch, resource};
use super::{Site, Web};
use crate::fleet::Fleet;

/// More than the buffers between a webserver and a client that does not read.
const ROWS: usize = 1000;
const ROW_BYTES: usize = (16 << 10) + 9;
/// Rights are checked every two seconds; after this time the check has been made even on a busy host.
const CHECKED: Duration = Duration::from_secs(10);
/// Amount that a slow client reads at a time, and the pause between reads.
const SIP: (usize, Duration) = (128 << 10, Duration::from_millis(100));
/// A response that lasts longer will not end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ways to lose a right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Logout,
    NewPassword,
    Lock,
    Deletion,
    Demotion,
    TokenDeleted,
    TokenExpired,
    TokenStripped,
    GrantTaken,
    LeftGroup,
    /// All sessions of the caller are ended.
    LogoutEverywhere,
    /// The webserver itself is revoked.
    Revoked,
}

use Loss::{
    Deletion, Demotion, GrantTaken, LeftGroup, Lock, Logout, LogoutEverywhere, NewPassword, Revoked, TokenDeleted,
    TokenExpired, TokenStripped,
};

impl Loss {
    fn is_of_token(self) -> bool {
        matches!(self, TokenDeleted | TokenExpired | TokenStripped)
    }
}

/// Every long-lived response, and the losses that end it. `own` is another user's object, which administrators may read.
const TABLE: [(&str, &[Loss]); 11] = [
    ("/api/events", &[Logout, LogoutEverywhere, NewPassword, Lock, Deletion]),
    ("/api/log/live", &[Logout, LogoutEverywhere, NewPassword, Lock, Deletion, Demotion]),
    ("/api/ws/search", &[Logout, NewPassword, Lock, Deletion, TokenDeleted, TokenExpired, TokenStripped, GrantTaken]),
    (
        "/api/ws/attach/{search}",
        &[Logout, NewPassword, Lock, Deletion, TokenDeleted, TokenExpired, TokenStripped, GrantTaken],
    ),
    ("/api/ws/stats", &[Logout, NewPassword, Lock, Deletion, TokenDeleted, TokenExpired, TokenStripped, GrantTaken]),
    ("/api/search/direct", &[Logout, LogoutEverywhere, Lock, TokenDeleted, TokenStripped, GrantTaken]),
    ("/api/resources/{own}/raw", &[Demotion]),
    ("/api/searchctrl/{own search}/download/text", &[Demotion]),
    (
        "/api/resources/{resource}/raw",
        &[Logout, NewPassword, Lock, Deletion, TokenDeleted, TokenExpired, TokenStripped, GrantTaken, LeftGroup],
    ),
    (
        "/api/searchctrl/{search}/download/text",
        &[Logout, NewPassword, Lock, Deletion, TokenDeleted, TokenExpired, TokenStripped, GrantTaken, LeftGroup],
    ),
    // Only one may run at a time.
    ("/api/backup", &[Demotion]),
];

fn is_socket(path: &str) -> bool {
    path.starts_with("/api/ws/")
}

/// Returns whether the caller is an administrator, who is no member of the group.
fn is_of_admins(path: &str) -> bool {
    path.contains("{own") || ["/api/log/live", "/api/backup"].contains(&path)
}

fn is_event_stream(path: &str) -> bool {
    ["/api/events", "/api/log/live"].contains(&path)
}

/// A connection on which a response has started.
struct Open {
    stream: TcpStream,
    path: &'static str,
    loss: Loss,
}

/// Encodes a client frame with a zero mask, so that the text is unchanged.
fn frame(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).expect("short");
    assert!(length < 126, "{text}");
    [&[0x81, 0x80 | length, 0, 0, 0, 0], text.as_bytes()].concat()
}

#[track_caller]
fn begin(address: SocketAddr, method: &str, path: &str, head: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("connects");
    let length = body.len();
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\n{head}Content-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).expect("sends");
    stream.set_read_timeout(Some(PATIENCE)).expect("sets");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a head");
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    assert!([" 200 ", " 101 "].contains(&&head[8..13]), "{method} {path}: {head}");
    stream
}

impl Open {
    #[track_caller]
    fn new(web: &Web, path: &'static str, loss: Loss, concrete: &str, credentials: &str) -> Open {
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let head = format!("{credentials}\r\n{}", if is_socket(path) { upgrade } else { "" });
        let query = json!({ "SearchString": "tag=resource:big", "Format": "text", "Duration": "1h" }).to_string();
        let (method, body) = if path == "/api/search/direct" { ("POST", query.as_str()) } else { ("GET", "") };
        let mut stream = begin(web.address(), method, concrete, &head, body);
        if is_socket(path) {
            stream.write_all(&frame(&json!({ "Subs": ["PONG", "ping"] }).to_string())).expect("sends");
        }
        Open { stream, path, loss }
    }

    /// Reads until the response ends, slowly, or everything available after a wait; returns whether it was aborted.
    fn breaks_off(mut self, is_slow: bool) -> bool {
        let lasts = is_socket(self.path) || is_event_stream(self.path);
        if !is_slow && !lasts {
            std::thread::sleep(CHECKED);
        }
        let (mut read, mut end, mut piece) = (0, Vec::new(), vec![0; SIP.0]);
        let started = std::time::Instant::now();
        loop {
            match self.stream.read(&mut piece) {
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock) => return false,
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    read += count;
                    end.extend(&piece[..count]);
                    let surplus = end.len().saturating_sub(64);
                    end.drain(..surplus);
                }
            }
            if lasts && started.elapsed() > PATIENCE {
                return false;
            }
            if is_slow && !lasts {
                std::thread::sleep(SIP.1);
            }
            // A complete response leaves the connection open.
            if !lasts
                && (end.ends_with(b"\r\n0\r\n\r\n") || read >= ROWS * (ROW_BYTES - 1) && self.path.ends_with("/raw"))
            {
                return false;
            }
        }
        true
    }
}

struct Stage {
    fleet: Fleet,
    web: Web,
    admin: Client,
    gid: Value,
    resource: String,
    search: String,
    all: Vec<String>,
}

/// Returns rows that are all different, so that a backup of them does not shrink.
fn contents() -> String {
    let mut dice = 0x2545_f491_4f6c_dd1d_u64;
    let mut text = String::with_capacity(ROWS * ROW_BYTES);
    for _ in 0..ROWS {
        text.push_str("{\"n\":\"");
        for _ in 0..(ROW_BYTES - 9) / 16 {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            text.push_str(&format!("{dice:016x}"));
        }
        text.push_str("\"}\n");
    }
    text
}

impl Stage {
    fn new() -> Stage {
        Stage::of(Fleet::new())
    }

    fn of(fleet: Fleet) -> Stage {
        let config = fleet.write_file("gravwell.conf", "[Global]\nEnable-CBAC=true\n");
        let web = Web::start(&fleet, "a", &["--config", config.to_str().expect("path")]);
        let admin = web.admin(&fleet);
        let gid = admin.made("/api/groups", &json!({ "Name": "readers" }));
        resource(&admin, "big", &contents());
        let guid = admin.ok("GET", "/api/resources")[0]["GUID"].as_str().expect("GUID").to_owned();
        admin.changed(&format!("/api/resources/{guid}"), &json!({ "GroupACL": [gid] }));
        let path = launch(&admin, "tag=resource:big");
        ended(&admin, &path);
        admin.changed(&format!("{path}/groups"), &json!({ "GIDs": [gid] }));
        let search = path.rsplit('/').next().expect("an id").to_owned();
        let all = admin.ok("GET", "/api/tokens/capabilities");
        let all = all.as_array().expect("a list").iter().filter_map(|name| Some(name.as_str()?.to_owned())).collect();
        Stage { fleet, web, admin, gid, resource: guid, search, all }
    }

    /// Opens a response as a new user; also returns the function that revokes the right to it.
    fn open(&self, number: usize, path: &'static str, loss: Loss) -> (Open, Box<dyn FnOnce() + '_>) {
        let (admin, name) = (&self.admin, format!("reader{number}"));
        let is_admin = is_of_admins(path);
        let user = json!({ "User": name, "Pass": "a plain horse", "Admin": is_admin });
        let uid = admin.made("/api/users", &user);
        let user = format!("/api/users/{uid}");
        if !is_admin {
            admin.made(&format!("{user}/group"), &json!({ "GIDs": [self.gid] }));
        }
        admin.changed(&format!("{user}/capabilities"), &json!({ "Grants": self.all }));
        let own = self.web.login(&name, "a plain horse");
        let mut token = String::new();
        let credentials = if loss.is_of_token() {
            let made = own.made("/api/tokens", &json!({ "name": "t", "capabilities": self.all }));
            token = format!("/api/tokens/{}", made["id"].as_str().expect("id"));
            format!("Gravwell-Token: {}", made["token"].as_str().expect("value"))
        } else {
            format!("Authorization: Bearer {}", own.token())
        };
        let concrete = path.replace("{search}", &self.search).replace("{resource}", &self.resource);
        let concrete = concrete.replace("{own search}", &self.search).replace("{own}", &self.resource);
        let open = Open::new(&self.web, path, loss, &concrete, &credentials);
        let all = &self.all;
        let lose = move || {
            let done = match loss {
                Logout => own.call("PUT", "/api/logout"),
                LogoutEverywhere => own.delete("/api/logout"),
                NewPassword => admin.put(&format!("{user}/pwd"), &json!({ "NewPass": "a striped horse" })),
                Lock => admin.call("PUT", &format!("{user}/lock")),
                Deletion => admin.delete(&user),
                Demotion => admin.delete(&format!("{user}/admin")),
                TokenDeleted => own.delete(&token),
                TokenExpired => {
                    let past = json!({ "name": "t", "capabilities": all, "expiresAt": "2020-01-01T00:00:00Z" });
                    own.put(&token, &past)
                }
                TokenStripped => own.put(&token, &json!({ "name": "t", "capabilities": ["TokenRead"] })),
                GrantTaken => admin.put(&format!("{user}/capabilities"), &json!({ "Grants": [] })),
                LeftGroup => admin.delete(&format!("{user}/group/{}", self.gid)),
                Revoked => {
                    self.fleet.ok("d", &["revoke", "a"]);
                    return;
                }
            };
            assert_eq!(done.status, 200, "{loss:?}: {}", done.text());
        };
        (open, Box::new(lose))
    }

    /// Opens all responses of the table, revokes all rights, and checks that each response ends.
    fn play(&self, first: usize, with_traffic: bool) {
        let cells = TABLE.iter().flat_map(|(path, losses)| losses.iter().map(|loss| (*path, *loss)));
        self.play_cells(cells, first, with_traffic);
    }

    fn play_cells(&self, cells: impl Iterator<Item = (&'static str, Loss)>, first: usize, with_traffic: bool) {
        let opened: Vec<_> =
            cells.enumerate().map(|(number, (path, loss))| self.open(first + number, path, loss)).collect();
        let (open, lose): (Vec<Open>, Vec<_>) = opened.into_iter().unzip();
        let is_over = AtomicBool::new(false);
        let mut talking: Vec<TcpStream> = open
            .iter()
            .filter(|open| is_socket(open.path))
            .map(|open| open.stream.try_clone().expect("clones"))
            .collect();
        let wrong: Vec<String> = std::thread::scope(|scope| {
            let admin = self.admin.clone();
            if with_traffic {
                let is_over = &is_over;
                scope.spawn(move || {
                    while !is_over.load(Ordering::Relaxed) {
                        admin.changed("/api/users/1/preferences", &json!({ "n": 1 }));
                        for socket in &mut talking {
                            let _ = socket.write_all(&frame(&json!({ "type": "PONG", "data": {} }).to_string()));
                        }
                        std::thread::sleep(Duration::from_millis(100));
                    }
                });
            }
            lose.into_iter().for_each(|lose| lose());
            let reading: Vec<_> = open
                .into_iter()
                .map(|open| {
                    let name = format!("{} after {:?}, with traffic: {with_traffic}", open.path, open.loss);
                    (name, scope.spawn(move || open.breaks_off(with_traffic)))
                })
                .collect();
            let kept = reading.into_iter().filter_map(|(name, reading)| {
                let is_broken_off = reading.join().expect("reads");
                (!is_broken_off).then_some(name)
            });
            let wrong = kept.collect();
            is_over.store(true, Ordering::Relaxed);
            wrong
        });
        assert!(wrong.is_empty(), "these responses continued:\n{}\n{}", wrong.join("\n"), self.fleet.log_of("a"));
    }
}

#[test]
fn every_answer_that_lasts_ends_when_its_right_is_lost_in_silence() {
    Stage::new().play(0, false);
}

#[test]
fn every_answer_that_lasts_ends_when_its_right_is_lost_amid_traffic() {
    Stage::new().play(0, true);
}

/// A revoked webserver no longer learns of lost rights, so it must end all long-lived responses.
#[test]
fn p11_every_answer_that_lasts_ends_when_its_webserver_is_revoked() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    let stage = Stage::of(fleet);
    let paths: Vec<&'static str> = TABLE.iter().map(|(path, _)| *path).collect();
    let (first, rest) = paths.split_first().expect("rows");
    // One revocation is enough, since all responses are open by then.
    let (opened, lose) = stage.open(0, first, Revoked);
    let mut open = vec![opened];
    open.extend(rest.iter().zip(1..).map(|(path, number)| stage.open(number, path, Revoked).0));
    lose();
    stage.fleet.wait("the revocation has arrived", || stage.fleet.status("a")["is_refused"] == true);
    all_break_off(open, &stage.fleet.log_of("a"));
    assert_eq!(stage.admin.get("/api/backup").status, 503);
    assert_eq!(stage.admin.get("/api/info/whoami").status, 200);
}

/// Checks that each response ends.
#[track_caller]
fn all_break_off(open: Vec<Open>, log: &str) {
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let reading: Vec<_> = open
            .into_iter()
            .map(|open| (format!("{} after {:?}", open.path, open.loss), scope.spawn(move || open.breaks_off(false))))
            .collect();
        let kept = reading.into_iter().filter_map(|(name, reading)| (!reading.join().expect("reads")).then_some(name));
        kept.collect()
    });
    assert!(wrong.is_empty(), "these responses continued:\n{}\n{log}", wrong.join("\n"));
}

/// An open socket uses the user's current groups and capabilities for every frame.
#[test]
fn each_frame_requires_the_access_of_its_route() {
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;
    use tokio_tungstenite::tungstenite::{Message, client};
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    resource(&admin, "few", "{\"n\":1}\n");
    let id = launch(&admin, "tag=resource:few");
    ended(&admin, &id);
    let id = id.rsplit('/').next().expect("an id").to_owned();
    let query = json!({ "SearchString": "tag=resource:few" });
    let background = json!({ "SearchString": "tag=resource:few", "Background": true });
    let gid = admin.made("/api/groups", &json!({ "Name": "readers" }));
    let grouped = json!({ "SearchString": "tag=resource:few", "GIDs": [gid] });
    // Frame type, its data, and the capabilities it needs.
    let asked: [(&str, &Value, &[&str]); 5] = [
        ("parse", &query, &["Search"]),
        ("search", &query, &["Search"]),
        ("search", &background, &["Search", "BackgroundSearch"]),
        ("search", &grouped, &["Search", "SetSearchGroup"]),
        ("attach", &json!({ "ID": id }), &["AttachSearch"]),
    ];
    let sets: [&[&str]; 6] = [
        &["Search"],
        &["AttachSearch"],
        &["Search", "AttachSearch"],
        &["Search", "BackgroundSearch"],
        &["Search", "SetSearchGroup"],
        &["AttachSearch", "BackgroundSearch", "SetSearchGroup", "Download"],
    ];
    for capabilities in sets {
        let made = admin.made("/api/tokens", &json!({ "name": "t", "capabilities": capabilities }));
        let value = made["token"].as_str().expect("value");
        let path = match capabilities.contains(&"Search") {
            true => "/api/ws/search".to_owned(),
            false => format!("/api/ws/attach/{id}"),
        };
        let mut request = format!("ws://{}{path}", web.address()).into_client_request().expect("a request");
        request.headers_mut().insert("Gravwell-Token", value.parse().expect("a value"));
        let stream = TcpStream::connect(web.address()).expect("connects");
        let (mut socket, _) = client(request, stream).expect("a socket");
        let read = |socket: &mut tokio_tungstenite::tungstenite::WebSocket<TcpStream>| -> Value {
            serde_json::from_str(socket.read().expect("answers").to_text().expect("text")).expect("JSON")
        };
        let subscribed = json!({ "Subs": ["PONG", "parse", "search", "attach"] });
        socket.send(Message::text(subscribed.to_string())).expect("sends");
        assert_eq!(read(&mut socket), json!({ "Resp": "ACK" }));
        if !capabilities.contains(&"Search") {
            // The search named in the path is sent without a request.
            assert!(read(&mut socket)["data"]["Subproto"].is_string());
        }
        for (kind, data, needs) in asked {
            socket.send(Message::text(json!({ "type": kind, "data": data }).to_string())).expect("sends");
            let answer = read(&mut socket);
            assert_eq!(answer["type"], kind, "{answer}");
            let lacks = needs.iter().any(|need| !capabilities.contains(need));
            let text = answer.to_string();
            let is_refused = needs.iter().any(|need| text.contains(&format!("not have the capability {need}")));
            assert_eq!(is_refused, lacks, "{kind} {data} with {capabilities:?}: {answer}");
        }
    }
}

/// Data of another webserver is sent only as long as both webservers permit it.
#[test]
fn a_download_from_another_webserver_ends_with_the_right_to_it() {
    let site = Site::new();
    let (a, b) = site.admins();
    let gid = a.made("/api/groups", &json!({ "Name": "readers" }));
    resource(&a, "big", &contents());
    let path = launch(&a, "tag=resource:big");
    ended(&a, &path);
    a.changed(&format!("{path}/groups"), &json!({ "GIDs": [gid] }));
    let search = path.rsplit('/').next().expect("an id");
    let losses =
        [Lock, LeftGroup, Logout, LogoutEverywhere, Deletion, NewPassword, TokenDeleted, TokenStripped, Demotion];
    let users: Vec<(Loss, String, Value)> = losses
        .iter()
        .map(|&loss| {
            let name = format!("{loss:?}").to_lowercase();
            let user = json!({ "User": name, "Pass": "a plain horse", "Admin": loss == Demotion });
            let uid = a.made("/api/users", &user);
            if loss != Demotion {
                a.made(&format!("/api/users/{uid}/group"), &json!({ "GIDs": [gid] }));
            }
            (loss, name, uid)
        })
        .collect();
    site.converges();
    let download = "/api/searchctrl/{search}/download/text";
    let concrete = download.replace("{search}", search);
    let opened = users.iter().map(|(loss, name, uid)| {
        let own = site.b.login(name, "a plain horse");
        let made =
            loss.is_of_token().then(|| own.made("/api/tokens", &json!({ "name": "t", "capabilities": ["Download"] })));
        let credentials = match &made {
            Some(made) => format!("Gravwell-Token: {}", made["token"].as_str().expect("value")),
            None => format!("Authorization: Bearer {}", own.token()),
        };
        let token = made.map(|made| format!("/api/tokens/{}", made["id"].as_str().expect("id")));
        (Open::new(&site.b, download, *loss, &concrete, &credentials), (*loss, own, uid, token.unwrap_or_default()))
    });
    let (open, lose): (Vec<Open>, Vec<_>) = opened.unzip();
    for (loss, own, uid, token) in lose {
        let user = format!("/api/users/{uid}");
        let done = match loss {
            Lock => b.call("PUT", &format!("{user}/lock")),
            LeftGroup => b.delete(&format!("{user}/group/{gid}")),
            Logout => own.call("PUT", "/api/logout"),
            LogoutEverywhere => own.delete("/api/logout"),
            Deletion => b.delete(&user),
            NewPassword => b.put(&format!("{user}/pwd"), &json!({ "NewPass": "a striped horse" })),
            TokenDeleted => own.delete(&token),
            TokenStripped => own.put(&token, &json!({ "name": "t", "capabilities": ["Search"] })),
            Demotion => b.delete(&format!("{user}/admin")),
            other => panic!("{other:?} has no row"),
        };
        assert_eq!(done.status, 200, "{loss:?}: {}", done.text());
    }
    all_break_off(open, &site.fleet.log_of("b"));
}

/// Unread downloads from another webserver do not block other requests to it.
#[test]
fn p15_downloads_that_are_not_read_leave_other_webservers_reachable() {
    let site = Site::new();
    let (a, _) = site.admins();
    a.made("/api/users", &json!({ "User": "carol", "Pass": "a plain horse" }));
    let carol = site.a.login("carol", "a plain horse");
    resource(&carol, "few", "{\"n\":1}\n");
    let hers = launch(&carol, "tag=resource:few");
    ended(&carol, &hers);
    resource(&a, "big", &contents());
    let path = launch(&a, "tag=resource:big");
    ended(&a, &path);
    a.changed(&format!("{path}/global"), &json!({ "Global": true }));
    let names = ["one", "two", "three", "four", "five"];
    for name in names {
        a.made("/api/users", &json!({ "User": name, "Pass": "a plain horse" }));
    }
    site.converges();
    let download = format!("{path}/download/text");
    let mut held = Vec::new();
    let clients = names.map(|name| site.b.login(name, "a plain horse"));
    for own in &clients {
        let credentials = format!("Authorization: Bearer {}", own.token());
        held.extend((0..4).map(|_| Open::new(&site.b, "", Logout, &download, &credentials)));
    }
    // The next one waits for a while.
    std::thread::scope(|scope| {
        for own in &clients {
            scope.spawn(|| {
                let refused = own.get(&download);
                assert!(refused.status == 429 && refused.text().contains("of your downloads"), "{}", refused.text());
            });
        }
    });
    // Until none of them transfers any more data.
    std::thread::sleep(CHECKED / 5);
    let rows = site.b.login("carol", "a plain horse").get(&format!("{hers}/rows"));
    assert!(rows.status == 200 && rows.json()["Total"] == 1, "{}", rows.text());
    drop(held);
}

#[test]
fn p15_streams_and_sockets_of_one_user_are_bounded() {
    let fleet = Fleet::new();
    let config = fleet.write_file("gravwell.conf", "[Global]\nWebserver-Max-Streams-Per-User=3\n");
    let web = Web::start(&fleet, "a", &["--config", config.to_str().expect("path")]);
    let admin = web.admin(&fleet);
    admin.made("/api/users", &json!({ "User": "bob", "Pass": "open sesame now" }));
    let credentials = |client: &Client| format!("Authorization: Bearer {}", client.token());
    let open = |path, client: &Client| Open::new(&web, path, Logout, path, &credentials(client));
    let held = [open("/api/events", &admin), open("/api/log/live", &admin), open("/api/ws/stats", &admin)];
    for path in ["/api/events", "/api/log/live"] {
        let refused = admin.get(path);
        assert!(
            refused.status == 429 && refused.text().contains("Webserver-Max-Streams-Per-User"),
            "{}",
            refused.text()
        );
    }
    // Other users have separate limits.
    let _others = open("/api/events", &web.login("bob", "open sesame now"));
    drop(held);
    let read_head = |path| {
        let mut stream = TcpStream::connect(web.address()).expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{}\r\n\r\n", credentials(&admin));
        stream.write_all(request.as_bytes()).expect("sends");
        let mut head = [0; 12];
        stream.read_exact(&mut head).expect("a status");
        head.ends_with(b" 200")
    };
    fleet.wait("slots are released", || read_head("/api/events"));
}

/// Begins an upload and leaves it there: the head and the begin of a form.
fn trickle(web: &Web, client: &Client, guid: &str) -> TcpStream {
    let mut stream = TcpStream::connect(web.address()).expect("connects");
    let part = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\nslow";
    let request = format!(
        "PUT /api/resources/{guid}/raw HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Type: \
         multipart/form-data; boundary=b\r\nContent-Length: 1000000\r\n\r\n{part}",
        client.token()
    );
    stream.write_all(request.as_bytes()).expect("sends");
    stream
}

/// The bounds of downloads and of uploads hold over a connection, where layers wrap every body, and are apart: whoever
/// fills one of them leaves the other one, and everybody else has their share of it.
#[test]
fn p15_downloads_are_counted_as_downloads_and_uploads_give_way() {
    const OF_USER: usize = 32;
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let user = |name: &str| {
        admin.made("/api/users", &json!({ "User": name, "Pass": "a plain horse" }));
        web.login(name, "a plain horse")
    };
    let made = |client: &Client, name: &str| {
        let made = client.made("/api/resources", &json!({ "ResourceName": name }));
        made["GUID"].as_str().expect("GUID").to_owned()
    };
    let bob = user("bob");
    resource(&bob, "big", &contents());
    let big = bob.ok("GET", "/api/resources")[0]["GUID"].as_str().expect("GUID").to_owned();
    let begin = |length: &str| {
        let mut stream = TcpStream::connect(web.address()).expect("connects");
        let token = bob.token();
        let request = format!(
            "GET /api/resources/{big}/raw HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{length}\r\n"
        );
        stream.write_all(request.as_bytes()).expect("sends");
        stream
    };
    let status = |stream: &mut TcpStream, patience: Duration| {
        let mut head = [0; 12];
        stream.set_read_timeout(Some(patience)).expect("sets");
        stream.read_exact(&mut head).ok().map(|()| String::from_utf8_lossy(&head[9..]).into_owned())
    };
    // Half of them announce a body, and send none of it: what is asked for is a download nevertheless.
    let length = |number: usize| if number.is_multiple_of(2) { "" } else { "Content-Length: 100\r\n" };
    let mut held: Vec<TcpStream> = (0..OF_USER).map(|number| begin(length(number))).collect();
    for stream in &mut held {
        assert_eq!(status(stream, PATIENCE).as_deref(), Some("200"));
    }
    let mut next = [begin(""), begin("Content-Length: 100\r\n")];
    for stream in &mut next {
        assert_eq!(status(stream, Duration::from_secs(2)), None, "requests above the limit wait");
    }
    drop(held);
    for stream in &mut next {
        assert_eq!(status(stream, PATIENCE).as_deref(), Some("200"));
    }
    // Slow uploads of a few accounts take all places.
    let slow: Vec<Client> = (0..8).map(|number| user(&format!("slow{number}"))).collect();
    let mut uploads: Vec<TcpStream> = Vec::new();
    for client in &slow {
        let guid = made(client, "s");
        uploads.extend((0..8).map(|_| trickle(&web, client, &guid)));
    }
    std::thread::sleep(Duration::from_secs(1));
    let soon = |stream: &mut TcpStream| status(stream, Duration::from_secs(5));
    assert_eq!(soon(&mut begin("")).as_deref(), Some("200"), "downloads use no slots of uploads");
    let own = made(&admin, "a");
    assert_eq!(admin.upload("PUT", &format!("/api/resources/{own}/raw"), "file", &b"text"[..]).status, 200);
    let started = std::time::Instant::now();
    let own = made(&bob, "b");
    let uploaded = bob.upload("PUT", &format!("/api/resources/{own}/raw"), "file", &b"text"[..]);
    assert_eq!(uploaded.status, 200, "after {:?}: {}", started.elapsed(), uploaded.text());
    let told = uploads.iter_mut().filter_map(|stream| status(stream, Duration::from_millis(1)));
    assert_eq!(told.collect::<Vec<_>>(), ["503"], "one upload was cancelled");
}
