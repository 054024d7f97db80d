//! Many streams, of wrong kinds, that are never read.

use gravwell_model::Seq;
use gravwell_model::codec::admin::Request;
use gravwell_model::codec::message::{Kind, Open, Subscribe};
use gravwell_transport::trust::tls;
use gravwell_transport::wire;

use super::client::{Answered, Hostile, hello};
use super::{Site, memory};

const FOLLOW: Request = Request::Tail { from: Seq::ZERO, to: None, follow: true };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_a_connection_has_one_control_stream_which_follows_the_log_once() {
    let site = Site::new("reader");
    let since = site.since();
    let hostile = Hostile::connect(&site.fleet, "rogue").await;
    let (_send, _receive, first) = hostile.greet(&hello()).await;
    assert!(matches!(first, Answered::With(Kind::Welcome)), "{first:?}");
    let (.., second) = hostile.greet(&hello()).await;
    assert!(matches!(&second, Answered::Refused(why) if why.contains("one control stream")), "{second:?}");
    let hostile = Hostile::connect(&site.fleet, "rogue").await;
    let (mut send, mut receive, _) = hostile.greet(&hello()).await;
    for _ in 0..2 {
        wire::send(&mut send, Kind::Subscribe, &Subscribe { from: Seq::ZERO }).await.expect("is sent");
    }
    let why = hostile.refusal(&mut receive).await;
    assert!(why.contains("is already followed on this stream"), "{why}");
    site.holds(since, "control streams");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_a_connection_for_chunks_carries_nothing_else() {
    let site = Site::new("webserver");
    let since = site.since();
    let hostile = Hostile::connect_for(&site.fleet, "rogue", tls::ALPN_CHUNKS).await;
    let kinds = [Open::Control, Open::Push, Open::Snapshot, Open::WholeState, Open::Renew, Open::Admin];
    for open in kinds {
        let (mut send, mut receive) = hostile.open(open).await;
        let _ = send.finish();
        let answer = hostile.answer(&mut receive).await;
        assert!(matches!(&answer, Answered::Refused(why) if why.contains("for chunks only")), "{open:?}: {answer:?}");
    }
    assert!(hostile.connection.close_reason().is_none(), "streams are independent");
    site.holds(since, "streams on a connection for chunks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_streams_that_are_not_read_hold_little_memory() {
    let site = Site::new("reader");
    let since = site.since();
    let value = site.fleet.write_file("large", &format!("\"{}\"", "x".repeat(1_000_000)));
    for key in ["k1", "k2", "k3", "k4"] {
        site.fleet.ok("d", &["put", "c", key, "--file", value.to_str().expect("text")]);
    }
    // The first request loads the data into memory, regardless of the requester.
    site.fleet.ok("d", &["tail", "--from", "1", "--json"]);
    let before = memory(site.datastore.id());
    let (mut held, mut refused) = (Vec::new(), 0);
    for _ in 0..4 {
        let hostile = Hostile::connect(&site.fleet, "rogue").await;
        let (mut send, receive, _) = hostile.greet(&hello()).await;
        wire::send(&mut send, Kind::Subscribe, &Subscribe { from: Seq::ZERO }).await.expect("is sent");
        let mut streams = vec![(send, receive)];
        for _ in 0..60 {
            let (mut send, receive) = hostile.open(Open::Admin).await;
            wire::send_json(&mut send, Kind::AdminRequest, &FOLLOW).await.expect("is sent");
            streams.push((send, receive));
        }
        held.push((hostile, streams));
    }
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let grown = memory(site.datastore.id()).saturating_sub(before);
    assert!(grown < 96 << 20, "{grown} bytes are held for unread streams");
    let (hostile, streams) = held.last_mut().expect("some");
    for (_, receive) in streams.iter_mut().skip(1) {
        match hostile.answer(receive).await {
            Answered::Refused(why) => {
                assert!(why.contains("already follows the log 2 times"), "{why}");
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, 60, "the streams of the first connection follow it");
    site.holds(since, "unread streams");
}
