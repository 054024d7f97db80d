//! Many connections of one identity, and reported positions that block others.

use std::time::Duration;

use gravwell_model::codec::message::{Kind, Open, Outcome, Progress};
use gravwell_model::codec::txn::encode_txn;
use gravwell_model::{Collection, Key, MemberName, Op, Origin, OriginCounter, Seq, Txn, TxnId};
use gravwell_transport::trust::{NewKey, tls};
use gravwell_transport::wire;

use super::Site;
use super::client::{Answered, Hostile, endpoint_of, hello};
use crate::fleet::from_env;

/// Opens many connections over one endpoint; returns how many remain open.
async fn flood(site: &Site, protocol: &[u8], connections: u64) -> usize {
    let (endpoint, address) = (endpoint_of(&site.fleet, "rogue", protocol), site.fleet.listen.to_string());
    let mut held = Vec::new();
    for _ in 0..connections {
        held.push(endpoint.connect(&address).await.expect("connects"));
    }
    let still_open = || held.iter().filter(|connection| connection.close_reason().is_none()).count();
    let newest = held.last().expect("one").clone();
    for _ in 0..500 {
        if still_open() <= 4 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(
        newest.close_reason().is_none(),
        "the newest one is kept, so that stale connections cannot lock out a member"
    );
    still_open()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_one_identity_has_few_connections_and_the_newest_stays() {
    let site = Site::new("webserver");
    let since = site.since();
    let connections = from_env("GRAVWELL_HOSTILE_CONNECTIONS", 1_100);
    assert_eq!(flood(&site, tls::ALPN_LOG, connections).await, 4);
    assert_eq!(flood(&site, tls::ALPN_CHUNKS, 100).await, 4);
    site.fleet.enroll("b", "webserver");
    let another = site.fleet.replica("b");
    site.fleet.wait_connected("b");
    site.holds(since, "many connections");
    drop(another);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p06_what_a_member_pushes_under_the_origin_of_another_is_refused() {
    let site = Site::new("webserver");
    let since = site.since();
    site.fleet.ok("a", &["put", "c", "mine", "--value", "1"]);
    let origin = site.fleet.tail().last().and_then(|entry| entry["origin"].as_str().map(str::to_owned));
    let origin: Origin = origin.expect("an origin").parse().expect("an origin");
    let hostile = Hostile::connect(&site.fleet, "rogue").await;
    let (mut send, mut receive) = hostile.open(Open::Push).await;
    for counter in 2..20 {
        let txn = Txn {
            id: TxnId { origin, counter: OriginCounter(counter) },
            settled: OriginCounter(0),
            time_ms: 0,
            note: bytes::Bytes::new(),
            conditions: Vec::new(),
            ops: vec![Op::Put {
                collection: Collection::new("c").expect("name"),
                key: Key::new("stolen").expect("name"),
                value: "1".into(),
            }],
        };
        let mut body = Vec::new();
        encode_txn(&txn, &mut body);
        if wire::send_raw(&mut send, Kind::Push, &body).await.is_err() {
            break;
        }
    }
    match tokio::time::timeout(Duration::from_secs(60), wire::read(&mut receive)).await.expect("an answer") {
        Ok(Some((Kind::Outcome, body))) => {
            let outcome: Outcome = gravwell_model::codec::message::decode(Kind::Outcome, &body).expect("decodes");
            let fate = format!("{:?}", outcome.fate);
            assert!(!fate.contains("Committed") && !fate.contains("Decided"), "{fate}");
        }
        Ok(Some((kind, _))) => assert_eq!(kind, Kind::Refused),
        Ok(None) | Err(_) => {}
    }
    for number in 0..5 {
        site.fleet.ok("a", &["put", "c", "mine", "--value", &number.to_string()]);
    }
    assert!(!site.fleet.run("d", &["get", "c", "stolen"]).status.success());
    assert_eq!(site.fleet.ok("d", &["get", "c", "mine"]).trim(), "4");
    site.holds(since, "a foreign origin");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_a_member_renews_few_certificates_in_a_while() {
    let site = Site::new("reader");
    let since = site.since();
    let hostile = Hostile::connect(&site.fleet, "rogue").await;
    let mut answers = Vec::new();
    for _ in 0..8 {
        let (mut send, mut receive) = hostile.open(Open::Renew).await;
        let key = NewKey::generate(&MemberName::new("rogue").expect("name")).expect("a key");
        wire::send_raw(&mut send, Kind::Renew, &key.request_der).await.expect("is sent");
        answers.push(hostile.answer(&mut receive).await);
    }
    let renewed = answers.iter().filter(|answer| matches!(answer, Answered::With(Kind::Renewed))).count();
    // On a slow host the requests take so long that another renewal becomes due.
    assert!((4..=6).contains(&renewed), "{answers:?}");
    let is_told =
        |answer: &Answered| matches!(answer, Answered::Refused(why) if why.contains("renewed 4 times just now"));
    assert!(answers.iter().any(is_told), "{answers:?}");
    assert!(hostile.connection.close_reason().is_none());
    site.fleet.ok("d", &["revoke", "rogue"]);
    assert!(hostile.closed().await.is_some_and(|why| why.contains("revoked")), "at once");
    site.holds(since, "renewals");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_a_reader_that_stalls_while_it_fetches_a_state_does_not_block_compaction() {
    let site = Site::new("reader");
    let since = site.since();
    site.fleet.ok("d", &["put", "c", "k", "--value", "0"]);
    let hostile = Hostile::connect(&site.fleet, "rogue").await;
    let (_send, mut receive) = hostile.open(Open::WholeState).await;
    let answer = hostile.answer(&mut receive).await;
    assert!(matches!(answer, Answered::With(Kind::SnapshotBegin)), "{answer:?}");
    for number in 0..50 {
        site.fleet.ok("d", &["put", "c", "k", "--value", &number.to_string()]);
    }
    site.fleet.converges(&["a"]);
    let horizon = || site.fleet.status("d")["horizon"].as_u64().expect("a number");
    site.fleet.wait("compaction passes it", || {
        site.fleet.ok("d", &["compact", "--history-ops", "0"]);
        horizon() >= 50
    });
    assert!(hostile.connection.close_reason().is_none());
    site.holds(since, "a state that is not received");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_a_reader_that_keeps_reporting_an_old_position_does_not_block_compaction() {
    let site = Site::new("reader");
    let since = site.since();
    for number in 0..50 {
        site.fleet.ok("d", &["put", "c", "k", "--value", &number.to_string()]);
    }
    site.fleet.converges(&["a"]);
    let hostile = Hostile::connect(&site.fleet, "rogue").await;
    let (mut send, _receive, answer) = hostile.greet(&hello()).await;
    assert!(matches!(answer, Answered::With(Kind::Welcome)), "{answer:?}");
    for _ in 0..10 {
        let report = Progress { applied: Seq(1), ..Progress::default() };
        wire::send(&mut send, Kind::Progress, &report).await.expect("is sent");
    }
    site.fleet.wait("its position is known", || site.fleet.ok("d", &["presence", "--json"]).contains("\"rogue\""));
    let horizon = || site.fleet.status("d")["horizon"].as_u64().expect("a number");
    site.fleet.wait("compaction passes it", || {
        site.fleet.ok("d", &["compact", "--history-ops", "0"]);
        horizon() >= 50
    });
    assert!(hostile.connection.close_reason().is_none());
    site.holds(since, "an old position");
}
