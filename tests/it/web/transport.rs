//! HTTPS, redirects, headers, live streams, and secrets that must never be shown.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use super::{Site, Web, free_address};
use crate::fleet::{Fleet, Process};

fn curl(arguments: &[&str]) -> String {
    let output = Command::new("curl").args(["-sS", "-m", "20"]).args(arguments).output().expect("curl");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn https_is_the_default_with_a_self_signed_certificate_that_can_be_replaced() {
    let fleet = Fleet::new();
    let (address, plain) = (free_address(), free_address());
    let config = fleet.write_file("gravwell.conf", &format!("[Global]\nWeb-Redirect-Port={}\n", plain.port()));
    let mut command = Command::new(env!("CARGO_BIN_EXE_gravwell_webserver"));
    command.arg("--data-dir").arg(fleet.dir("a")).arg("--config").arg(&config);
    command.args(["--listen", &address.to_string(), "--default-password"]);
    let _process = Process::begin(command, &fleet.dir("a.log"));
    let made = fleet.dir("a").join("tls/cert.pem");
    let url = format!("https://localhost:{}/api/version", address.port());
    fleet.wait("it responds", || made.exists() && curl(&["-k", &url]).contains("\"Major\":0"));
    let trusted = curl(&["--cacert", made.to_str().expect("path"), "-i", "--http2", &url]);
    assert!(trusted.starts_with("HTTP/2 200") && trusted.contains("strict-transport-security"), "{trusted}");
    assert!(!curl(&[&url]).contains("Major"), "clients must not trust it by default");
    let moved = curl(&["-i", &format!("http://localhost:{}/api/users?x=1", plain.port())]);
    assert!(
        moved.starts_with("HTTP/1.1 308")
            && moved.contains(&format!("location: https://localhost:{}/api/users?x=1", address.port())),
        "{moved}"
    );
    let odd = curl(&["-i", "-H", "Host: evil.example/x?y", &format!("http://localhost:{}/", plain.port())]);
    assert!(odd.starts_with("HTTP/1.1 400"), "{odd}");
    let foreign = curl(&["-i", "-H", "Host: evil.example", &format!("http://localhost:{}/", plain.port())]);
    assert!(foreign.starts_with("HTTP/1.1 400") && !foreign.contains("evil"), "{foreign}");
    let by_address = curl(&["-i", &format!("http://127.0.0.1:{}/", plain.port())]);
    assert!(by_address.contains(&format!("location: https://127.0.0.1:{}/", address.port())), "{by_address}");

    // A replaced certificate is used without a restart; an invalid one is not.
    let other = Fleet::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gravwell_webserver"));
    command.arg("--data-dir").arg(other.dir("a")).args(["--listen", &free_address().to_string(), "--no-redirect"]);
    let second = Process::begin(command, &other.dir("a.log"));
    other.wait("the webserver generates a certificate", || other.dir("a").join("tls/cert.pem").exists());
    second.terminate();
    std::fs::write(&made, "nonsense").expect("writes");
    fleet.wait("the webserver reports the invalid certificate", || fleet.log_of("a").contains("keeping the old one"));
    assert!(curl(&["-k", &url]).contains("Major"));
    for file in ["key.pem", "cert.pem"] {
        std::fs::copy(other.dir("a").join("tls").join(file), fleet.dir("a").join("tls").join(file)).expect("copies");
    }
    fleet.wait("the webserver uses the new certificate", || {
        curl(&["--cacert", made.to_str().expect("path"), &url]).contains("Major")
    });
}

#[test]
fn every_response_has_security_headers_and_other_sites_cannot_write() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    for path in ["/", "/api/version", "/api/nowhere", "/nowhere"] {
        let answer = web.nobody().get(path);
        for (name, value) in
            [("x-content-type-options", "nosniff"), ("x-frame-options", "deny"), ("referrer-policy", "no-referrer")]
        {
            assert_eq!(answer.header(name), Some(value), "{path}");
        }
        let policy = answer.header("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    }
    let page = web.nobody().get("/");
    assert!(page.text().contains("<script type=\"module\" src=\""), "{}", page.text());
    assert_eq!(web.nobody().with("If-None-Match", page.header("etag").expect("a tag")).get("/").status, 304);
    assert_eq!(web.nobody().get("/app.js").header("content-type"), Some("text/javascript; charset=utf-8"));
    let cookie = web.nobody().with("Cookie", &format!("sticky=x; token={}", admin.token()));
    assert_eq!(cookie.get("/api/users").status, 200);
    let group = json!({ "Name": "g" });
    assert_eq!(cookie.post("/api/groups", &group).status, 401);
    assert_eq!(cookie.with("Sec-Fetch-Site", "cross-site").post("/api/groups", &group).status, 401);
    assert_eq!(cookie.with("Origin", "https://evil.example").post("/api/groups", &group).status, 401);
    assert_eq!(cookie.with("Sec-Fetch-Site", "same-origin").post("/api/groups", &group).status, 200);
    for path in ["/../Cargo.toml", "/%2e%2e/Cargo.toml", "/..%2fCargo.toml"] {
        assert!([400, 404].contains(&web.nobody().get(path).status), "{path}");
    }
    let huge = "x".repeat(33 << 20);
    assert_eq!(admin.send_text("POST", "/api/groups", "application/json", &huge).status, 413);
    assert_eq!(admin.send_text("POST", "/api/groups", "application/json", "{").status, 400);
    assert_eq!(admin.call("PATCH", "/api/groups").status, 405);
}

/// Reads lines of a stream until one matches.
fn read_until(web: &Web, path: &str, token: &str, act: impl FnOnce(), fits: impl Fn(&str) -> bool) -> String {
    let mut stream = TcpStream::connect(web.address).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("sets");
    let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nCookie: token={token}\r\n\r\n", web.address);
    stream.write_all(request.as_bytes()).expect("writes");
    let mut lines = BufReader::new(stream).lines();
    let mut seen = String::new();
    let mut next = || lines.next().expect("goes on").expect("reads");
    // Once the head of the response has arrived, every later event is delivered.
    while !next().contains("event-stream") {}
    act();
    loop {
        let line = next();
        seen += &line;
        seen.push('\n');
        if fits(&line) {
            return seen;
        }
    }
}

#[test]
fn changes_are_streamed_live_without_secrets() {
    let site = Site::new();
    let (a, b) = site.admins();
    let act = || {
        a.made("/api/users", &json!({ "User": "bob", "Pass": "ein Geheimnis" }));
        a.changed("/api/users/1/preferences", &json!({ "private": "matter" }));
        let token = a.made("/api/tokens", &json!({ "name": "t", "capabilities": [] }));
        a.ok("DELETE", &format!("/api/tokens/{}", token["id"].as_str().expect("id")));
        let id = a.made("/api/dashboards", &json!({ "Name": "shown", "Data": { "n": 1 } }));
        a.ok("DELETE", &format!("/api/dashboards/{id}"));
    };
    let is_last = |line: &str| line.contains("delete dashboard");
    let seen = read_until(&site.b, "/api/log/live", b.token(), act, is_last);
    assert!(seen.contains("create user bob") && seen.contains("shown") && seen.contains("\"delete\""), "{seen}");
    for secret in ["ein Geheimnis", "argon2", "matter", "hash"] {
        assert!(!seen.contains(secret), "{secret} in {seen}");
    }
    let names = read_until(
        &site.b,
        "/api/events",
        b.token(),
        || drop(a.made("/api/groups", &json!({ "Name": "g" }))),
        |line| line.contains("groups"),
    );
    assert!(names.contains("\"Connected\":true"), "{names}");
    let log = b.ok("GET", "/api/log?limit=500").to_string();
    let users = b.ok("GET", "/api/users");
    let bob = users.as_array().expect("list").iter().find(|user| user["User"] == "bob").expect("bob")["UID"].clone();
    let object = b.ok("GET", &format!("/api/log/object/users/{bob}"));
    assert_eq!(object[0]["Author"]["What"], "create user bob");
    assert_eq!(b.get(&format!("/api/log/object/passwords/{bob}")).status, 403);
    let export = site.fleet.ok("a", &["export"]);
    for secret in ["ein Geheimnis", "argon2"] {
        assert!(!log.contains(secret) && !export.contains(secret), "{secret}");
        assert!(!site.fleet.log_of("a").contains(secret) && !site.fleet.log_of("b").contains(secret));
    }
    assert!(site.fleet.ok("a", &["export", "--with-secrets"]).contains("argon2id"));
    // A stream ends with the session of its reader.
    let mut stream = TcpStream::connect(site.b.address).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("sets");
    let request = format!("GET /api/events HTTP/1.1\r\nHost: x\r\nCookie: token={}\r\n\r\n", b.token());
    stream.write_all(request.as_bytes()).expect("writes");
    b.call("PUT", "/api/logout");
    let mut rest = String::new();
    BufReader::new(stream).take(1 << 20).read_line(&mut rest).expect("reads");
}

#[test]
fn a_slow_client_is_disconnected_and_a_stop_drains_requests() {
    let fleet = Fleet::new();
    let mut web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let made = admin.made("/api/resources", &json!({ "ResourceName": "r" }));
    let raw = format!("/api/resources/{}/raw", made["GUID"].as_str().expect("GUID"));
    let body = vec![7_u8; 8 << 20];
    assert_eq!(admin.upload("PUT", &raw, "file", body.as_slice()).status, 200);
    let mut stream = TcpStream::connect(web.address).expect("connects");
    let request =
        format!("GET {raw} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nCookie: token={}\r\n\r\n", admin.token());
    stream.write_all(request.as_bytes()).expect("writes");
    let mut first = [0; 1024];
    stream.read_exact(&mut first).expect("reads");
    let reader = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).map(|length| length + 1024)
    });
    web.stop();
    let length = reader.join().expect("ends").expect("reads");
    assert!(length > body.len(), "{length}");
}

/// Sends the head of a request and a body without reading; then reads the response.
fn send_blindly(web: &Web, head: &str, announced: usize, sent: usize) -> String {
    let mut stream = TcpStream::connect(web.address).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("sets");
    let head = format!("{head} HTTP/1.1\r\nHost: x\r\nContent-Length: {announced}\r\n");
    let head = format!("{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("writes");
    for _ in 0..sent >> 20 {
        stream.write_all(&[7; 1 << 20]).expect("the server keeps reading a rejected body");
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("reads");
    answer
}

#[test]
fn an_error_response_reaches_a_client_that_is_still_sending() {
    let fleet = Fleet::new();
    let config = fleet.write_file("gravwell.conf", "[Global]\nResource-Max-Size=1000000\n");
    let web = Web::start(&fleet, "a", &["--config", config.to_str().expect("path")]);
    let admin = web.admin(&fleet);
    let made = admin.made("/api/resources", &json!({ "ResourceName": "r" }));
    let raw = format!("/api/resources/{}/raw", made["GUID"].as_str().expect("GUID"));
    let cookie = format!("?x HTTP/1.1\r\nCookie: token={}\r\nSec-Fetch-Site: same-origin\r\nX: ", admin.token());
    let cases = [
        (format!("PUT {raw}"), 32 << 20, "HTTP/1.1 401"),
        (format!("PUT {raw}{cookie}"), 32 << 20, "HTTP/1.1 413"),
        ("POST /api/backup".into(), 32 << 20, "HTTP/1.1 401"),
        ("POST /api/nowhere".into(), 32 << 20, "HTTP/1.1 404"),
        ("POST /api/login".into(), 40 << 20, "HTTP/1.1 413"),
        // The announced size is far too large, so the request is rejected without waiting for the rest.
        (format!("PUT {raw}{cookie}"), 40 << 30, "HTTP/1.1 413"),
    ];
    for (head, announced, wanted) in cases {
        let answer = send_blindly(&web, &head, announced, announced.min(32 << 20));
        let (first, headers) = answer.split_once("\r\n").expect("a head");
        assert!(first.starts_with(wanted) && headers.contains("connection: close"), "{head}: {answer}");
    }
    // Rejecting a short body does not close the connection.
    let answer = admin.send_text("PUT", "/api/users/1/admin", "text/plain", &"x".repeat(1000));
    assert_eq!(answer.header("connection"), None);
}
