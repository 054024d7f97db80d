//! Clients that disconnect before the response, send many requests at once, or stop reading: no resources are leaked.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use super::client::Client;
use super::searches::{ended, launch, numbers, resource};
use super::{Site, Web};
use crate::fleet::Fleet;

/// Sends the head of a request, and the given part of its body.
fn ask(web: &Web, client: &Client, request: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(web.address()).expect("connects");
    let (address, token) = (web.address(), client.token());
    let head = format!("Host: {address}\r\nAuthorization: Bearer {token}\r\n");
    let (line, more) = request.split_once("\r\n").unwrap_or((request, ""));
    stream.write_all(format!("{line} HTTP/1.1\r\n{head}{more}\r\n{body}").as_bytes()).expect("sends");
    stream
}

/// Returns the files below a directory with this extension.
fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path()) {
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found
}

fn user(admin: &Client, web: &Web, name: &str) -> Client {
    admin.made("/api/users", &json!({ "User": name, "Pass": "a plain horse" }));
    web.login(name, "a plain horse")
}

#[test]
fn p15_downloads_whose_clients_left_keep_nobody_from_signing_in() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let bob = user(&admin, &web, "bob");
    let row = format!("{{\"a\":[{}1]}}\n", "1,".repeat(30_000));
    resource(&bob, "rows", &row.repeat(100));
    let path = launch(&bob, "tag=resource:rows");
    ended(&bob, &path);
    let download = format!("GET {path}/download/csv");
    for _ in 0..16 {
        let mut left: Vec<TcpStream> = (0..50).map(|_| ask(&web, &bob, &download, "")).collect();
        for stream in &mut left {
            let mut head = [0; 12];
            stream.read_exact(&mut head).expect("a head");
            // On a slow host the previous ones may not have ended yet.
            assert!(head.ends_with(b" 200") || head.ends_with(b" 429"), "{}", String::from_utf8_lossy(&head));
        }
    }
    let begun = Instant::now();
    drop(web.login("bob", "a plain horse"));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    fleet.wait("the user's own requests continue", || {
        let whole = bob.get(&format!("{path}/download/csv"));
        whole.status == 200 && whole.body.len() > 100 * 60_000
    });
}

/// The datastore is slow, and the client of an administrator who resets a password leaves.
#[test]
fn p11_a_reset_whose_client_left_is_carried_out_as_a_whole_or_not_begun() {
    let site = Site::new();
    let (admin, _) = site.admins();
    let mut resets = 0;
    for (number, leaves_after) in [200, 350, 500, 700, 900, 1200].into_iter().enumerate() {
        let name = format!("bob{number}");
        let uid = admin.made("/api/users", &json!({ "User": name, "Pass": "a plain horse" }));
        let stolen = site.a.login(&name, "a plain horse");
        site.converges();
        let datastore = site.datastore.as_ref().expect("runs");
        datastore.pause();
        let body = json!({ "NewPass": "a newer horse" }).to_string();
        let head = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        let left = ask(&site.a, &admin, &format!("PUT /api/users/{uid}/pwd\r\n{head}"), &body);
        std::thread::sleep(Duration::from_millis(leaves_after));
        drop(left);
        // Longer than both transactions wait for the datastore.
        std::thread::sleep(Duration::from_millis(2_000));
        datastore.resume();
        site.fleet.wait_connected("a");
        site.converges();
        let is_reset =
            site.a.nobody().post("/api/login", &json!({ "User": name, "Pass": "a newer horse" })).status == 200;
        assert_eq!(stolen.get("/api/testauth").status == 200, !is_reset, "left after {leaves_after} ms: {is_reset}");
        resets += u32::from(is_reset);
    }
    assert!(resets > 0, "at least the last one had begun");
}

#[test]
fn p15_searches_whose_clients_left_while_they_began_are_forgotten_or_end() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    resource(&admin, "numbers", &numbers(10));
    let post = |path: &str, body: serde_json::Value, leaves_after: u64| {
        let body = body.to_string();
        let head = format!("POST {path}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        let stream = ask(&web, &admin, &head, &body);
        std::thread::sleep(Duration::from_millis(leaves_after));
        drop(stream);
    };
    for number in 0..80 {
        let query = "tag=resource:numbers since=-1h until=now";
        post("/api/search/direct", json!({ "SearchString": query, "Format": "json" }), number % 40);
        post("/api/searchctrl/launch", json!({ "SearchString": query }), number % 40);
    }
    let kept = || admin.ok("GET", "/api/searchctrl").as_array().expect("a list").clone();
    fleet.wait("every listed search has ended", || {
        kept().iter().all(|search| !search["State"].as_str().expect("a state").contains("ACTIVE"))
    });
    fleet.wait("abandoned searches are forgotten", || files(&fleet.dir("a"), "results").len() == kept().len());
}

#[test]
fn p15_many_small_downloads_and_uploads_of_one_user_wait_in_line() {
    let site = Site::new();
    let (a, b) = site.admins();
    resource(&a, "numbers", &numbers(100));
    let path = launch(&a, "tag=resource:numbers");
    ended(&a, &path);
    site.converges();
    let download = format!("{path}/download/json");
    let wanted = a.get(&download).body;
    std::thread::scope(|scope| {
        // As through a balancer: half of them go to the webserver with the results, half to the other one.
        for number in 0..64 {
            let (client, download, wanted) = (if number % 2 == 0 { &a } else { &b }, &download, &wanted);
            scope.spawn(move || {
                let given = client.get(download);
                assert!(given.status == 200 && given.body == *wanted, "{}: {}", given.status, given.text());
            });
        }
    });
    let made: Vec<String> = (0..24)
        .map(|number| {
            let made = a.made("/api/resources", &json!({ "ResourceName": format!("r{number}") }));
            format!("/api/resources/{}/raw", made["GUID"].as_str().expect("GUID"))
        })
        .collect();
    std::thread::scope(|scope| {
        for raw in &made {
            scope.spawn(|| assert_eq!(a.upload("PUT", raw, "file", raw.as_bytes()).status, 200));
        }
    });
    std::thread::scope(|scope| {
        for raw in &made {
            scope.spawn(|| assert_eq!(a.get(raw).body, raw.as_bytes()));
        }
    });
}

#[test]
fn p15_imports_that_stand_still_are_few_and_leave_others_theirs() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let (bob, carol) = (user(&admin, &web, "bob"), user(&admin, &web, "carol"));
    resource(&carol, "numbers", &numbers(10));
    let path = launch(&carol, "tag=resource:numbers");
    ended(&carol, &path);
    let archive = carol.get(&format!("{path}/download/archive")).body;
    let head =
        "POST /api/searchctrl/import\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 100000\r\n";
    let part = "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\ngwresult";
    let held: Vec<TcpStream> = (0..60).map(|_| ask(&web, &bob, head, part)).collect();
    let arriving = || files(&fleet.dir("a"), "part").len();
    fleet.wait("uploads arrive", || arriving() >= 8);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(arriving(), 8);
    let brought = carol.upload("POST", "/api/searchctrl/import", "file", archive.as_slice());
    assert_eq!(brought.status, 200, "{}", brought.text());
    drop(held);
    fleet.wait("no partial files are left", || arriving() == 0);
    let brought = bob.upload("POST", "/api/searchctrl/import", "file", archive.as_slice());
    assert_eq!(brought.status, 200, "{}", brought.text());
}
