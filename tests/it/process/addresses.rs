use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fleet::{Fleet, Process, takes_less_than};
use crate::proxy::{NetworkConditions, Proxy};

/// Time limit from the first response of the replica's process.
const CONNECTED_WITHIN: Duration = Duration::from_secs(3);
/// Time limit to notice that a datastore is unreachable.
const NOTICED_WITHIN: Duration = Duration::from_secs(4);
/// A datastore that is paused for `STOPPED_FOR` is not given up if it responds again within `HEARD_WITHIN`.
const STOPPED_FOR: Duration = Duration::from_secs(2);
const HEARD_WITHIN: Duration = Duration::from_millis(3200);

/// Addresses of various kinds that do not lead to the datastore; the other fields keep them occupied.
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

/// Starts a replica repeatedly and checks that it connects in time.
#[track_caller]
fn connects_soon(fleet: &Fleet, name: &str, options: &[&str], what: &str) {
    takes_less_than(CONNECTED_WITHIN, &format!("connecting, {what},"), || {
        let replica = fleet.replica_with(name, options);
        fleet.wait("the replica answers", || fleet.status(name)["running"] == true);
        let started = Instant::now();
        fleet.wait_connected(name);
        let took = started.elapsed();
        replica.terminate();
        took
    });
}

#[test]
fn p14_a_datastore_is_found_after_any_number_of_wrong_addresses() {
    let (fleet, wrong) = (Fleet::new(), Wrong::new());
    let _datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    let good = fleet.listen.to_string();
    for (what, address) in &wrong.addresses {
        connects_soon(&fleet, "a", &options("--datastore", &[address, &good]), what);
    }
    let all = [wrong.all(), vec![&good]].concat();
    connects_soon(&fleet, "a", &options("--datastore", &all), "all of them");
}

#[test]
fn p14_a_token_joins_through_any_of_its_addresses() {
    let (fleet, wrong) = (Fleet::new(), Wrong::new());
    let _datastore = fleet.datastore();
    let good = fleet.listen.to_string();
    let all = [&wrong.all()[..3], &[good.as_str()]].concat();
    let mut joined = 0;
    takes_less_than(CONNECTED_WITHIN, "joining", || {
        joined += 1;
        let name = format!("a{joined}");
        let token = fleet.ok("d", &[&["enroll", &name][..], &options("--address", &all)].concat());
        let started = Instant::now();
        fleet.ok(&name, &["join", token.trim()]);
        started.elapsed()
    });
    connects_soon(&fleet, &format!("a{joined}"), &[], "the addresses of the token");
}

#[test]
fn p14_a_disconnected_member_reports_the_error_of_each_address() {
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
    one_that_is_stopped_for_a_moment_is_not_lost(&fleet, &datastore);
    takes_less_than(NOTICED_WITHIN, "noticing it", || {
        fleet.wait_connected("a");
        proxy.set(NetworkConditions::CUT, NetworkConditions::CUT);
        let cut = Instant::now();
        fleet.wait("it is detected", || fleet.status("a")["connected"] == false);
        let took = cut.elapsed();
        proxy.set(NetworkConditions::default(), NetworkConditions::default());
        took
    });
    replica.terminate();
    // With a second address, the datastore is found there.
    let good = fleet.listen.to_string();
    let _replica = fleet.replica_with("a", &["--datastore", &through, "--datastore", &good]);
    fleet.wait_connected("a");
    fleet.wait("it is reached on either path", || fleet.status("a")["outbox"] == 0);
    proxy.set(NetworkConditions::CUT, NetworkConditions::CUT);
    fleet.ok("a", &["put", "c", "k", "--value", "2", "--no-wait"]);
    fleet.wait("it is written on the other path", || fleet.status("a")["outbox"] == 0);
}

fn one_that_is_stopped_for_a_moment_is_not_lost(fleet: &Fleet, datastore: &Process) {
    let lost = || fleet.log_of("a").matches("disconnected").count();
    let mut looked = 0;
    for _ in 0..10 {
        let before = lost();
        datastore.pause();
        let stopped = Instant::now();
        std::thread::sleep(STOPPED_FOR);
        datastore.resume();
        fleet.wait_connected("a");
        fleet.ok("a", &["put", "c", "k", "--value", "1"]);
        // If the host itself delays the two for longer, a lost connection proves nothing.
        if stopped.elapsed() < HEARD_WITHIN {
            assert_eq!(lost(), before, "{}", fleet.log_of("a"));
            looked += 1;
        }
        if looked == 3 {
            return;
        }
    }
    assert!(looked > 0, "the host never resumed a process in time");
}
