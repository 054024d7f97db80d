//! Every field that a member reports: at its limit, one beyond it, with a megabyte, larger than a message, and with
//! unprintable characters.

use std::sync::atomic::{AtomicU64, Ordering};

use gravwell_model::codec::message::{Announce, Hello, Kind, Progress};
use gravwell_model::{Digest, Generation, Position, Seq};
use gravwell_transport::wire;

use super::Site;
use super::client::{Answered, Hostile, hello};

const BOUND: usize = 256;
/// Source of unique markers for the reports that follow.
static MARKERS: AtomicU64 = AtomicU64::new(0);
const HUGE: [usize; 2] = [1 << 20, 33_000_000];

fn not_printable() -> Vec<String> {
    ["\u{1b}]0;pwn\u{7}", "a\nforged row", "\r", "\0", "\u{9b}2J", "\u{202e}evil", "\u{200b}"]
        .map(str::to_owned)
        .to_vec()
}

/// Performs a handshake and returns the response.
async fn greeted(site: &Site, hello: Hello) -> Answered {
    Hostile::connect(&site.fleet, "rogue").await.greet(&hello).await.2
}

/// Performs a valid handshake, sends a report of `kind`, and returns the reason of the refusal; `None`: it was accepted.
async fn reported<T: serde::Serialize>(site: &Site, kind: Kind, report: &T) -> Option<String> {
    let hostile = Hostile::connect(&site.fleet, "rogue").await;
    let (mut send, mut receive, answer) = hostile.greet(&hello()).await;
    assert!(matches!(answer, Answered::With(Kind::Welcome)), "{answer:?}");
    let _ = wire::send(&mut send, kind, report).await;
    // A valid report after it is read only if the first one was accepted, and becomes visible.
    let number = 4_711_000 + MARKERS.fetch_add(1, Ordering::Relaxed);
    let marker = Progress { outbox: number, ..Progress::default() };
    let _ = wire::send(&mut send, Kind::Progress, &marker).await;
    let is_shown = || site.fleet.ok("d", &["presence", "--json"]).contains(&number.to_string());
    tokio::select! {
        why = hostile.refusal(&mut receive) => Some(why),
        () = async {
            while !is_shown() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        } => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_a_handshake_beyond_its_bounds_is_refused_and_affects_no_other_member() {
    let site = Site::new("webserver");
    let since = site.since();
    let address = |bytes: usize| format!("{}:443", "a".repeat(bytes - 4));
    let software = |software: String| Hello { software, ..hello() };
    let external = |text: String| Hello { external_addr: Some(text), ..hello() };
    for good in [software("\u{e9}".repeat(BOUND)), software(String::new()), external(address(253 + 4))] {
        let answer = greeted(&site, good.clone()).await;
        assert!(matches!(answer, Answered::With(Kind::Welcome)), "{answer:?}");
    }
    let mut bad = vec![software("a".repeat(BOUND + 1)), external(address(254 + 4)), external(address(513))];
    for text in not_printable() {
        bad.extend([software(text.clone()), external(text.clone()), external(format!("{text}:443"))]);
    }
    for text in ["https://web1:443", "web1:443; } server {", "web1:0", "127.1:80", ""] {
        bad.push(external(text.into()));
    }
    for length in HUGE {
        bad.extend([software("a".repeat(length)), external("A".repeat(length)), external("\u{1}".repeat(length))]);
    }
    for hello in bad {
        let what = format!("{:.40?} {:.40?}", hello.software, hello.external_addr);
        let answer = greeted(&site, hello).await;
        let Answered::Refused(why) = answer else { panic!("{what}: {answer:?}") };
        assert!(!why.is_empty() && why.len() < 400 && !why.chars().any(char::is_control), "{what}: {why:?}");
    }
    site.holds(since, "greetings");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_a_report_beyond_its_bounds_is_refused_and_affects_no_other_member() {
    let site = Site::new("reader");
    let since = site.since();
    let unhealthy = |text: String| Progress { applied: Seq(1), unhealthy: Some(text), ..Progress::default() };
    assert_eq!(reported(&site, Kind::Progress, &unhealthy("\u{6f22}".repeat(BOUND))).await, None);
    let mut bad = vec![unhealthy("a".repeat(BOUND + 1))];
    bad.extend(not_printable().into_iter().map(unhealthy));
    bad.extend(HUGE.map(|length| unhealthy("\u{1}".repeat(length))));
    for report in bad {
        let what = format!("{:.40?}", report.unhealthy);
        let why = reported(&site, Kind::Progress, &report).await.unwrap_or_else(|| panic!("{what} is accepted"));
        assert!(!why.is_empty() && why.len() < 400 && !why.chars().any(char::is_control), "{what}: {why:?}");
    }
    let hosts = |hosts: Vec<String>| Announce { port: 9, hosts };
    assert_eq!(reported(&site, Kind::Announce, &hosts(vec!["a".repeat(64); 8])).await, None);
    let mut bad = vec![hosts(vec!["a".into(); 9]), hosts(vec!["a".repeat(254)]), hosts(vec!["a".repeat(65); 8])];
    bad.extend(not_printable().into_iter().map(|text| hosts(vec![text])));
    bad.extend(HUGE.map(|length| hosts(vec!["a".repeat(length)])));
    bad.push(hosts(vec!["a".into(); 1 << 20]));
    for announce in bad {
        let what = format!("{:.40?}", announce.hosts);
        let why = reported(&site, Kind::Announce, &announce).await.unwrap_or_else(|| panic!("{what} is accepted"));
        assert!(!why.is_empty() && why.len() < 400, "{what}: {why:?}");
    }
    // A reader serves no users, so its address for users is not published.
    let polite = Hello { external_addr: Some("rogue.example.com:443".into()), ..hello() };
    let hostile = Hostile::connect(&site.fleet, "rogue").await;
    let (_send, _receive, answer) = hostile.greet(&polite).await;
    assert!(matches!(answer, Answered::With(Kind::Welcome)), "{answer:?}");
    for command in ["members", "presence"] {
        assert!(!site.fleet.ok("d", &[command, "--json"]).contains("rogue.example.com"), "{command}");
    }
    site.holds(since, "reports");
}

/// The member registry of an earlier version may contain unchecked values.
#[test]
fn p15_a_datastore_starts_with_an_address_that_was_too_long_and_shows_it() {
    let fleet = crate::fleet::Fleet::new();
    let datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    datastore.terminate();
    for address in ["\u{1}".repeat(4 << 20), "a\nb  webserver  enrolled".into()] {
        let path = fleet.dir("d/trust/members.json");
        let text = std::fs::read_to_string(&path).expect("reads");
        let (body, _) = text.trim_end().rsplit_once('\n').expect("a checksum");
        let mut contents: serde_json::Value = serde_json::from_str(body).expect("JSON");
        contents["members"]["a"]["external_addr"] = address.clone().into();
        let body = serde_json::to_string_pretty(&contents).expect("encodes");
        let sealed = format!("{body}\n{}\n", blake3::hash(body.as_bytes()).to_hex());
        for name in ["members.json", "members.copy"] {
            std::fs::write(fleet.dir("d/trust").join(name), &sealed).expect("writes");
        }
        let datastore = fleet.datastore();
        let members = fleet.ok("d", &["members", "--json"]);
        assert!(members.contains(&format!("({} bytes)", address.len())) && members.len() < 2000, "{members:.400}");
        assert_eq!(fleet.ok("d", &["members"]).lines().count(), 2, "a heading and one row");
        let a = fleet.replica("a");
        fleet.wait_connected("a");
        assert!(!fleet.ok("d", &["members", "--json"]).contains("bytes)"), "it has announced another one");
        drop(a);
        datastore.terminate();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p13_an_unproven_claim_stops_writes_is_reported_as_unconfirmed_and_ends_with_its_member() {
    let site = Site::new("webserver");
    site.fleet.ok("d", &["put", "c", "k", "--value", "0"]);
    let log_id = site.fleet.status("d")["log_id"].as_str().and_then(|text| text.parse().ok()).expect("a log");
    let position = Position {
        log_id,
        generation: Generation(1),
        seq: Seq(1_000_000_000_000),
        chain: [7; 16],
        digest: Digest::ZERO,
    };
    let hostile = Hostile::connect(&site.fleet, "rogue").await;
    let (_send, _receive, answer) = hostile.greet(&Hello { position: Some(position), ..hello() }).await;
    assert!(matches!(answer, Answered::With(Kind::Welcome)), "{answer:?}");
    let claim = "member rogue is at 1000000000000, but this log ends at 1; no signature confirms that";
    let status = site.fleet.status("d");
    assert!(status["problem"].as_str().is_some_and(|problem| problem.ends_with(claim)), "{status}");
    let refused = site.fleet.run("d", &["put", "c", "k", "--value", "1"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    let (revoke, repair) = (said.find("revoke MEMBER"), said.find("repair --from"));
    assert!(!refused.status.success() && revoke.is_some() && revoke < repair, "{said}");
    site.fleet.ok("d", &["revoke", "rogue"]);
    site.fleet.ok("d", &["put", "c", "k", "--value", "2"]);
    site.fleet.converges(&["a"]);
}
