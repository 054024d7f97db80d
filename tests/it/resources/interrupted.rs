//! Processes that are killed in the middle of a transfer.

use super::{Farm, Resource, noise};
use crate::fleet::from_env;
use crate::web::ADMIN_PASSWORD;

/// What may be sent again for each process that is killed: what was under way and not yet written.
const UNDER_WAY: u64 = 6 << 20;

/// `GRAVWELL_KILLS` kills of each party; the contents grow with them.
#[test]
fn r05_a_transfer_goes_on_where_it_was() {
    let kills = from_env("GRAVWELL_KILLS", 1);
    let bytes = 12 << 20;
    let limit = "Chunk-Bandwidth-Limit=8MB";
    let mut farm = Farm::new(limit, &[("a", limit), ("b", "")]);
    let mut a = farm.start("a");
    let mut b = farm.start("b");
    let admin = a.admin(&farm.fleet);
    farm.fleet.converges(&["a", "b"]);
    for round in 0..kills {
        // All is at A before anything of it travels.
        farm.stop_datastore(&["a"]);
        let contents = noise(100 + round, bytes);
        let resource = Resource::new(&admin, &format!("r{round}"));
        resource.store(&admin, &contents);
        // A is killed while it sends. What the datastore receives is counted: the other one may be served by A as well.
        let (size, former) = (bytes as u64, farm.received("b"));
        farm.start_datastore();
        farm.fleet.wait("a third is sent", || farm.received("d") > size / 3);
        a.kill();
        farm.restart(&mut a);
        // The datastore is killed while it receives.
        farm.fleet.wait("another third is sent", || farm.received("d") > size / 3 * 2);
        let mut taken = farm.received("d");
        farm.kill_datastore();
        farm.start_datastore();
        // The other one is killed while it fetches.
        farm.fleet.wait("it is sent on", || farm.received("b") > former + size / 4);
        let fetched = farm.received("b") - former;
        b.kill();
        farm.restart(&mut b);
        farm.fleet.converges(&["a", "b"]);
        farm.complete("b");
        taken += farm.received("d");
        let received = fetched + farm.received("b");
        println!("round {round}: {size} bytes; the datastore received {taken}, B {received}");
        // Names and lists come on top.
        assert!(taken < size + 2 * UNDER_WAY + (1 << 20), "{taken}");
        assert!(received < size + UNDER_WAY + (1 << 20), "{received}");
        let admin = b.login("admin", ADMIN_PASSWORD);
        resource.holds(&admin, &contents);
        assert_eq!(farm.blobs("d", &["verify"]).0, 0);
    }
}
