//! Snapshots fetched over a network that fails during the transfer.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::fleet::Fleet;
use crate::proxy::{NetworkConditions, Proxy};

/// Slow enough that the transfer of a few megabytes takes seconds.
const SLOW: NetworkConditions = NetworkConditions { cut: false, lost: 0, doubled: 0, delay_us: 100_000, jitter_us: 0 };

/// Returns the names of a member's state directories.
fn states(fleet: &Fleet, name: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(fleet.dir(name)).expect("lists");
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with("state-")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn p15_fetches_that_are_cut_off_again_and_again_leave_one_state() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let put = |number| {
        let value = "x".repeat(100_000);
        format!("{{\"ops\":[{{\"put\":{{\"collection\":\"c\",\"key\":\"k{number}\",\"value\":\"{value}\"}}}}]}}\n")
    };
    let file = fleet.write_file("in.jsonl", &(0..200).map(put).collect::<String>());
    fleet.ok("d", &["import", file.to_str().expect("text")]);
    let counts = Arc::default();
    let proxy = Proxy::open(fleet.listen, 7, &counts).await.expect("opens");
    proxy.set(SLOW, SLOW);
    fleet.enroll("a", "webserver");
    let _replica = fleet.replica_with("a", &["--datastore", &proxy.address().to_string()]);
    fleet.wait("the replica answers", || fleet.status("a")["running"] == true);
    let logged = |what: &str| fleet.log_of("a").matches(what).count();
    for round in 1..=3 {
        fleet.wait("a state is being fetched", || logged("fetching the state") >= round);
        proxy.set(NetworkConditions::CUT, NetworkConditions::CUT);
        let found = states(&fleet, "a");
        assert!(found.len() <= 2, "round {round}: {found:?}");
        fleet.wait("the missing heartbeat is detected", || logged("nothing received from the datastore") >= round);
        proxy.set(SLOW, SLOW);
    }
    proxy.set(NetworkConditions::default(), NetworkConditions::default());
    fleet.converges(&["a"]);
    fleet.wait("leftover files are removed", || states(&fleet, "a").len() == 1);
}
