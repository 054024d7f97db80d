use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fleet::{Fleet, Process};
use crate::proxy::{Proxy, Weather};

/// From the moment when the replica's process answers.
const CONNECTED_WITHIN: Duration = Duration::from_secs(3);
/// A datastore that cannot be reached is noticed.
const NOTICED_WITHIN: Duration = Duration::from_secs(4);

/// Addresses of all kinds that do not lead to the datastore; the values keep them as they are.
struct Wrong {
    addresses: Vec<(&'static str, String)>,
    _silent: UdpSocket,
    _foreign: (Fleet, Process),
}

impl Wrong {
    fn new() -> Wrong {
        let bind = || UdpSocket::bind("127.0.0.1:0").expect("binds");
        let (silent, refused, foreign) = (bind(), bind(), Fleet::new());
        let process = foreign.datastore();
        let addresses = vec![
            ("silent", silent.local_addr().expect("address").to_string()),
            ("refused", refused.local_addr().expect("address").to_string()),
            ("foreign", foreign.listen.to_string()),
            ("unknown", "does-not-exist.invalid:9405".to_owned()),
            ("meaningless", "no port".to_owned()),
        ];
        Wrong { addresses, _silent: silent, _foreign: (foreign, process) }
    }

    fn all(&self) -> Vec<&str> {
        self.addresses.iter().map(|(_, address)| address.as_str()).collect()
    }
}

fn options<'a>(option: &'a str, addresses: &[&'a str]) -> Vec<&'a str> {
    addresses.iter().flat_map(|address| [option, address]).collect()
}

#[track_caller]
fn connects_soon(fleet: &Fleet, name: &str, what: &str) {
    fleet.wait("the replica answers", || fleet.status(name)["running"] == true);
    let started = Instant::now();
    fleet.wait_connected(name);
    let took = started.elapsed();
    assert!(took < CONNECTED_WITHIN, "{what}: connected after {took:?}");
}

#[test]
fn p14_a_datastore_is_found_behind_any_addresses_that_do_not_lead_to_it() {
    let (fleet, wrong) = (Fleet::new(), Wrong::new());
    let _datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    let good = fleet.listen.to_string();
    for (what, address) in &wrong.addresses {
        let replica = fleet.replica_with("a", &options("--datastore", &[address, &good]));
        connects_soon(&fleet, "a", what);
        replica.terminate();
    }
    let all = [wrong.all(), vec![&good]].concat();
    let replica = fleet.replica_with("a", &options("--datastore", &all));
    connects_soon(&fleet, "a", "all of them");
    replica.terminate();
}

#[test]
fn p14_a_token_joins_through_any_of_its_addresses() {
    let (fleet, wrong) = (Fleet::new(), Wrong::new());
    let _datastore = fleet.datastore();
    let good = fleet.listen.to_string();
    let all = [&wrong.all()[..3], &[good.as_str()]].concat();
    let token = fleet.ok("d", &[&["enroll", "a"][..], &options("--address", &all)].concat());
    let started = Instant::now();
    fleet.ok("a", &["join", token.trim()]);
    assert!(started.elapsed() < CONNECTED_WITHIN, "joined after {:?}", started.elapsed());
    let _replica = fleet.replica("a");
    connects_soon(&fleet, "a", "the addresses of the token");
}

#[test]
fn p14_who_is_not_connected_says_what_each_address_answered() {
    let (fleet, wrong) = (Fleet::new(), Wrong::new());
    let datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    datastore.terminate();
    let _replica = fleet.replica_with("a", &options("--datastore", &wrong.all()));
    fleet.wait("each address is named", || {
        let said = fleet.status("a").to_string();
        wrong.all().iter().all(|address| said.contains(address))
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn p14_a_datastore_that_cannot_be_reached_is_noticed_and_found_elsewhere() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let counts = Arc::default();
    let proxy = Proxy::open(fleet.listen, 7, &counts).await.expect("opens");
    fleet.enroll("a", "webserver");
    let through = proxy.address().to_string();
    let replica = fleet.replica_with("a", &["--datastore", &through]);
    fleet.wait_connected("a");
    // One that is stopped for a moment is not lost.
    for _ in 0..3 {
        datastore.pause();
        tokio::time::sleep(Duration::from_secs(2)).await;
        datastore.resume();
        fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    }
    assert!(!fleet.log_of("a").contains("disconnected"), "{}", fleet.log_of("a"));
    proxy.set(Weather::CUT, Weather::CUT);
    let cut = Instant::now();
    fleet.wait("it is noticed", || fleet.status("a")["connected"] == false);
    assert!(cut.elapsed() < NOTICED_WITHIN, "noticed after {:?}", cut.elapsed());
    replica.terminate();
    // With a second way, the datastore is found there.
    proxy.set(Weather::default(), Weather::default());
    let good = fleet.listen.to_string();
    let _replica = fleet.replica_with("a", &["--datastore", &through, "--datastore", &good]);
    fleet.wait_connected("a");
    fleet.wait("it is reached one way or the other", || fleet.status("a")["outbox"] == 0);
    proxy.set(Weather::CUT, Weather::CUT);
    let cut = Instant::now();
    fleet.ok("a", &["put", "c", "k", "--value", "2", "--no-wait"]);
    fleet.wait("it is written by the other way", || fleet.status("a")["outbox"] == 0);
    assert!(cut.elapsed() < NOTICED_WITHIN + CONNECTED_WITHIN, "written after {:?}", cut.elapsed());
}
