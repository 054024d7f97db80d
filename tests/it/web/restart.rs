//! Restarts with open connections, and a datastore that hangs.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use super::Web;
use super::client::Client;
use crate::fleet::Fleet;

/// Open connections get a few seconds to end. If the webserver waited for one indefinitely, it would never restart.
const RESTARTED_WITHIN: Duration = Duration::from_secs(45);

/// Opens a connection, sends this request, and reads a response that starts with `wanted`.
fn open(web: &Web, request: &str, wanted: &str) -> TcpStream {
    let mut stream = TcpStream::connect(web.address).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
    stream.write_all(request.as_bytes()).expect("sends");
    if !wanted.is_empty() {
        let mut head = vec![0; wanted.len()];
        stream.read_exact(&mut head).expect("an answer");
        assert_eq!(String::from_utf8_lossy(&head), wanted);
    }
    stream
}

fn socket(web: &Web, client: &Client) -> TcpStream {
    let request = format!(
        "GET /api/ws/search HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: Y2FzZWNhc2VjYXNlY2FzZQ==\r\n\r\n",
        web.address,
        client.token()
    );
    open(web, &request, "HTTP/1.1 101")
}

fn ordinary(web: &Web, client: &Client, line: &str, more: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n{more}\r\n", web.address, client.token())
}

/// Restarts the webserver and waits until it serves again.
fn restarts(fleet: &Fleet, web: &Web, admin: &Client) -> Duration {
    let starts = || fleet.log_of("a").matches(&format!("http://{}", web.address)).count();
    let (before, begun) = (starts(), Instant::now());
    admin.made("/api/restart/webserver", &json!({}));
    fleet.wait("restarted", || starts() > before);
    let nobody = web.nobody();
    fleet.wait("responds again", || nobody.answers());
    begun.elapsed()
}

#[test]
fn a_restart_ends_sockets_streams_and_uploads_and_serves_again() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let guid =
        admin.made("/api/resources", &json!({ "ResourceName": "r.csv" }))["GUID"].as_str().expect("GUID").to_owned();
    for round in 0..2 {
        let mut held: Vec<TcpStream> = (0..3).map(|_| socket(&web, &admin)).collect();
        // An idle connection, and one in the middle of a request.
        held.push(open(&web, "", ""));
        held.push(open(&web, "GET /api/heal", ""));
        for path in ["/api/events", "/api/log/live"] {
            held.push(open(&web, &ordinary(&web, &admin, &format!("GET {path}"), ""), "HTTP/1.1 200"));
        }
        let form = "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 100000\r\n";
        let upload = ordinary(&web, &admin, &format!("PUT /api/resources/{guid}/raw"), form);
        let begin = "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\nhalf";
        held.push(open(&web, &format!("{upload}{begin}"), ""));
        let took = restarts(&fleet, &web, &admin);
        assert!(took < RESTARTED_WITHIN, "round {round}: {took:?}");
        for stream in &mut held {
            // Each has ended, regularly or not.
            let ended = stream.read_to_end(&mut Vec::new());
            assert!(!ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "round {round}");
        }
        admin.made("/api/dashboards", &json!({ "Name": "after" }));
    }
}

#[test]
fn a_standalone_webserver_restarts_with_open_sockets() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let _held: Vec<TcpStream> = (0..2).map(|_| socket(&web, &admin)).collect();
    assert!(restarts(&fleet, &web, &admin) < RESTARTED_WITHIN);
    admin.made("/api/dashboards", &json!({ "Name": "after" }));
}

#[test]
fn a_restart_with_an_invalid_configuration_is_refused_and_nothing_stops() {
    let fleet = Fleet::new();
    let config = fleet.write_file("gravwell.conf", "[Global]\n");
    let web = Web::start(&fleet, "a", &["--config", config.to_str().expect("path")]);
    let admin = web.admin(&fleet);
    let held = socket(&web, &admin);
    fleet.write_file("gravwell.conf", "[Global]\nWeb-Port=many\n");
    let refused = admin.post("/api/restart/webserver", &json!({}));
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert!(refused.text().contains("keeps running") && refused.text().contains("Web-Port"), "{}", refused.text());
    held.set_nonblocking(true).expect("set");
    let read = (&held).read_to_end(&mut Vec::new()).expect_err("the socket is open").kind();
    assert_eq!(read, std::io::ErrorKind::WouldBlock);
    fleet.write_file("gravwell.conf", "[Global]\n");
    assert!(restarts(&fleet, &web, &admin) < RESTARTED_WITHIN);
}

#[test]
fn only_the_first_writer_waits_for_a_datastore_that_hangs() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    admin.made("/api/dashboards", &json!({ "Name": "before" }));
    datastore.pause();
    let times: Vec<Duration> = (0..20)
        .map(|number| {
            let begun = Instant::now();
            admin.made("/api/dashboards", &json!({ "Name": format!("d{number}") }));
            begun.elapsed()
        })
        .collect();
    datastore.resume();
    // Five seconds for the first one, half a second for each of the others, plus the delay of a busy host.
    assert!(times[0] < Duration::from_secs(20), "{times:?}");
    let mut others = times[1..].to_vec();
    others.sort_unstable();
    assert!(others[others.len() / 2] < Duration::from_millis(1500), "{times:?}");
    fleet.wait("all changes are resolved", || {
        fleet.status("a")["outbox"] == 0 && fleet.status("a")["connected"] == true
    });
    let all = admin.ok("GET", "/api/dashboards");
    assert!(all.as_array().is_some_and(|all| all.len() == 21 && all.iter().all(|one| one["Synced"] == true)), "{all}");
}
