//! Handling of unknown messages and fields, which a member of a later version may send; see `docs/protocol.md`,
//! *Versions*.

use gravwell_model::codec::message::{self, HEADER_BYTES, Kind, Open, Progress};
use gravwell_transport::wire;
use serde::Serialize;

use super::Site;
use super::client::{Answered, Hostile, hello};

/// A message of a kind that no version defines.
const UNKNOWN: [u8; 8] = [4, 0, 0, 0, 250, 1, 2, 3];

/// Encodes a body with one additional byte, as a version with one more field would.
fn longer<T: Serialize>(kind: Kind, body: &T) -> Vec<u8> {
    [&message::encode(kind, body)[HEADER_BYTES..], &[0]].concat()
}

/// Waits until the connection is closed, and returns the code and the reason.
async fn closed(hostile: &Hostile) -> (u64, String) {
    match hostile.connection.closed().await {
        quinn::ConnectionError::ApplicationClosed(close) => {
            (close.error_code.into_inner(), String::from_utf8_lossy(&close.reason).into_owned())
        }
        error => panic!("{error}"),
    }
}

async fn greeted(site: &Site) -> (Hostile, quinn::SendStream, quinn::RecvStream) {
    let hostile = Hostile::connect(&site.fleet, "rogue").await;
    let (send, receive, answer) = hostile.greet(&hello()).await;
    assert!(matches!(answer, Answered::With(Kind::Welcome)), "{answer:?}");
    (hostile, send, receive)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_an_unknown_kind_ends_a_stream_at_most() {
    let site = Site::new("webserver");
    let since = site.since();
    let (hostile, mut send, _receive) = greeted(&site).await;
    send.write_all(&UNKNOWN).await.expect("is sent");
    let marker = Progress { outbox: 4_711_001, ..Progress::default() };
    wire::send(&mut send, Kind::Progress, &marker).await.expect("is sent");
    let is_shown = || site.fleet.ok("d", &["presence", "--json"]).contains("4711001");
    site.fleet.wait("the message after an unknown kind is read", is_shown);

    let (mut opening, mut answer) = hostile.connection.open_bi().await.expect("a stream");
    wire::send_raw(&mut opening, Kind::Open, &[200]).await.expect("is sent");
    assert!(matches!(hostile.answer(&mut answer).await, Answered::Ended), "a stream of an unknown kind");
    let (mut pushing, mut answer) = hostile.open(Open::Push).await;
    pushing.write_all(&UNKNOWN).await.expect("is sent");
    assert!(matches!(hostile.answer(&mut answer).await, Answered::Ended), "an unknown kind on a push stream");
    let marker = Progress { outbox: 4_711_002, ..Progress::default() };
    wire::send(&mut send, Kind::Progress, &marker).await.expect("the connection is still open");
    let is_shown = || site.fleet.ok("d", &["presence", "--json"]).contains("4711002");
    site.fleet.wait("the control stream continues", is_shown);
    site.holds(since, "unknown kinds");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_a_longer_body_is_refused_by_name() {
    let site = Site::new("webserver");
    let since = site.since();
    let hostile = Hostile::connect(&site.fleet, "rogue").await;
    let (mut send, _receive) = hostile.open(Open::Control).await;
    wire::send_raw(&mut send, Kind::Hello, &longer(Kind::Hello, &hello())).await.expect("is sent");
    let (code, why) = closed(&hostile).await;
    assert!(code == 1 && why.contains("Hello") && why.contains("followed by 1 bytes"), "{code} {why}");

    let (hostile, mut send, _receive) = greeted(&site).await;
    let progress = longer(Kind::Progress, &Progress::default());
    wire::send_raw(&mut send, Kind::Progress, &progress).await.expect("is sent");
    let (code, why) = closed(&hostile).await;
    assert!(code == 1 && why.contains("Progress") && why.contains("followed by 1 bytes"), "{code} {why}");

    let hostile = Hostile::connect(&site.fleet, "rogue").await;
    let (mut send, _receive) = hostile.open(Open::Push).await;
    wire::send_raw(&mut send, Kind::Push, &[2]).await.expect("is sent");
    let (code, why) = closed(&hostile).await;
    assert!(code == 1 && why.contains("version 2"), "{code} {why}");
    site.holds(since, "longer bodies");
}
