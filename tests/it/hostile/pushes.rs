//! Pushes that cost the datastore more than the member.

use std::time::Duration;

use gravwell_model::codec::message::{self, Kind, Open, TxnOutcome};
use gravwell_model::codec::txn::encode_txn;
use gravwell_model::{Collection, Condition, Key, Op, Reason};
use gravwell_transport::wire;

use super::client::{Answered, Hostile, fate, push, txn};
use super::{Site, memory};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_rejections_that_a_member_never_acknowledges_are_bounded_and_removed_when_it_is_revoked() {
    const PUSHED: u64 = 3000;
    let site = Site::new("webserver");
    let since = site.since();
    let hostile = Hostile::connect(&site.fleet, "rogue").await;
    let (mut send, mut receive) = hostile.open(Open::Push).await;
    let absent = || {
        let (collection, key) = (Collection::new("c").expect("name"), Key::new("x".repeat(100)).expect("key"));
        vec![Condition::Present { collection, key }]
    };
    let pushing = async {
        for counter in 1..=PUSHED {
            push(&mut send, &txn(counter, absent(), Vec::new())).await.expect("is sent");
        }
    };
    let hearing = async {
        let (mut rejected, mut waits) = (0, None);
        for _ in 0..PUSHED {
            match fate(&mut receive).await {
                TxnOutcome::Rejected(..) => rejected += 1,
                TxnOutcome::Deferred(refused) => waits = waits.or(Some(refused.message)),
                other => panic!("{other:?}"),
            }
        }
        (rejected, waits)
    };
    let ((), (rejected, waits)) = tokio::join!(pushing, hearing);
    let waits = waits.unwrap_or_else(|| panic!("{rejected} rejections are kept"));
    assert!(rejected == 1024 && waits.contains("are not acknowledged yet"), "{rejected} {waits}");
    site.holds(since, "rejections");
    let size = || site.fleet.status("d")["log_bytes"].as_u64().expect("a number");
    assert!(size() > 100 << 10, "{}", size());
    site.fleet.ok("d", &["revoke", "rogue"]);
    site.fleet.wait("all of them are removed", || {
        site.fleet.ok("d", &["compact", "--history-ops", "0"]);
        size() < 16 << 10
    });
    site.holds(since, "acknowledged rejections");
}

/// Opens a push stream whose header announces `promised` bytes, and sends up to `sent` of them.
async fn unfinished(hostile: &Hostile, promised: usize, sent: usize) -> (quinn::SendStream, quinn::RecvStream) {
    let (mut send, receive) = hostile.open(Open::Push).await;
    let mut start = message::header(Kind::Push, promised).to_vec();
    encode_txn(&txn(1, Vec::new(), Vec::new()), &mut start);
    start.resize(start.len() + sent, 0);
    let _ = tokio::time::timeout(Duration::from_secs(1), send.write_all(&start)).await;
    (send, receive)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_pushes_that_do_not_end_hold_little_memory_and_keep_no_other_waiting() {
    let site = Site::new("webserver");
    let since = site.since();
    let before = memory(site.datastore.id());
    let mut held = Vec::new();
    for _ in 0..3 {
        let hostile = Hostile::connect(&site.fleet, "rogue").await;
        for _ in 0..4 {
            held.push(unfinished(&hostile, 33_000_000, 30_000_000).await);
        }
        for _ in 0..12 {
            held.push(unfinished(&hostile, 4_100_000, 3_900_000).await);
        }
        held.push(hostile.open(Open::Push).await);
        let (_, receive) = held.last_mut().expect("one");
        // The first connection uses all push streams of the member.
        let answer = hostile.answer(receive).await;
        assert!(matches!(&answer, Answered::Refused(why) if why.contains("already has 8 push streams")), "{answer:?}");
        std::mem::forget(hostile);
    }
    let grown = memory(site.datastore.id()).saturating_sub(before);
    assert!(grown < 112 << 20, "{grown} bytes are held for endless pushes");
    site.fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    site.holds(since, "endless pushes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_a_push_beyond_the_bounds_is_rejected_before_decoding_and_blocks_nothing() {
    let site = Site::new("webserver");
    let since = site.since();
    let before = memory(site.datastore.id());
    let hostile = Hostile::connect(&site.fleet, "rogue").await;
    let (mut send, mut receive) = hostile.open(Open::Push).await;
    // Each condition takes five bytes on the wire and many times that in memory.
    let of_conditions = |counter: u64, count: usize| {
        let mut body = Vec::new();
        encode_txn(&txn(counter, Vec::new(), Vec::new()), &mut body);
        let mut number = count;
        body.truncate(body.len() - 2);
        while number >= 0x80 {
            body.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        body.push(number as u8);
        body.extend([0, 1, b'c', 1, b'k'].repeat(count));
        body.push(0);
        body
    };
    let table = [(6_500_000, "`txn_bytes_max` allows 12582912"), (800_000, "`ops_max` allows 131072")];
    for (counter, (count, said)) in (1..).zip(table) {
        wire::send_raw(&mut send, Kind::Push, &of_conditions(counter, count)).await.expect("is sent");
        match fate(&mut receive).await {
            TxnOutcome::Rejected(_, Reason::LimitExceeded { message }) => assert!(message.contains(said), "{message}"),
            other => panic!("{other:?}"),
        }
    }
    let (collection, key) = (Collection::new("c").expect("name"), Key::new("good").expect("key"));
    push(&mut send, &txn(3, Vec::new(), vec![Op::Put { collection, key, value: "1".into() }])).await.expect("is sent");
    assert!(matches!(fate(&mut receive).await, TxnOutcome::Committed(_)), "later transactions are accepted");
    // A repetition gets the same reply.
    for (counter, (count, said)) in (1..).zip(table) {
        wire::send_raw(&mut send, Kind::Push, &of_conditions(counter, count)).await.expect("is sent");
        let fate = fate(&mut receive).await;
        assert!(
            matches!(&fate, TxnOutcome::Rejected(_, Reason::LimitExceeded { message }) if message.contains(said)),
            "{fate:?}"
        );
    }
    let grown = memory(site.datastore.id()).saturating_sub(before);
    assert!(grown < 96 << 20, "{grown} bytes more than before");
    site.holds(since, "pushes beyond the bounds");
}
