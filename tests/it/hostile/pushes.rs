//! Pushes that cost the datastore more than the member.

use gravwell::codec::message::{Fate, Open};
use gravwell::model::{Collection, Condition, Key};

use super::Site;
use super::client::{Hostile, fate, push, txn};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_rejections_that_a_member_never_settles_are_bounded_and_go_when_it_is_revoked() {
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
                Fate::Rejected(..) => rejected += 1,
                Fate::Deferred(refused) => waits = waits.or(Some(refused.message)),
                other => panic!("{other:?}"),
            }
        }
        (rejected, waits)
    };
    let ((), (rejected, waits)) = tokio::join!(pushing, hearing);
    let waits = waits.unwrap_or_else(|| panic!("{rejected} rejections are kept"));
    assert!(rejected == 1024 && waits.contains("it has not said that it has written them down"), "{rejected} {waits}");
    site.holds(since, "rejections");
    let size = || site.fleet.status("d")["log_bytes"].as_u64().expect("a number");
    assert!(size() > 100 << 10, "{}", size());
    site.fleet.ok("d", &["revoke", "rogue"]);
    site.fleet.wait("nothing is left of them", || {
        site.fleet.ok("d", &["compact", "--history-ops", "0"]);
        size() < 16 << 10
    });
    site.holds(since, "rejections that are settled");
}
