//! Processes killed during a transfer.

use super::{Farm, Resource, noise};
use crate::fleet::from_env;
use crate::web::ADMIN_PASSWORD;

/// Amount that may be sent again for each killed process: data in flight that was not yet stored.
const UNDER_WAY: u64 = 6 << 20;

/// Each party is killed `GRAVWELL_KILLS` times; the blobs grow with that number.
#[test]
fn an_interrupted_transfer_resumes() {
    let kills = from_env("GRAVWELL_KILLS", 1);
    let bytes = 12 << 20;
    let limit = "Chunk-Bandwidth-Limit=8MB";
    let mut farm = Farm::new(limit, &[("a", limit), ("b", "")]);
    let mut a = farm.start("a");
    let mut b = farm.start("b");
    let admin = a.admin(&farm.fleet);
    farm.fleet.converges(&["a", "b"]);
    for round in 0..kills {
        // All data is at A before any of it is sent.
        farm.stop_datastore(&["a"]);
        let contents = noise(100 + round, bytes);
        let resource = Resource::new(&admin, &format!("r{round}"));
        resource.store(&admin, &contents);
        // A is killed while sending. Only data received by the datastore is counted, because A may also serve B.
        let (size, former) = (bytes as u64, farm.received("b"));
        farm.start_datastore();
        farm.fleet.wait("a third is sent", || farm.received("d") > size / 3);
        a.kill();
        farm.restart(&mut a);
        // The datastore is killed while receiving.
        farm.fleet.wait("another third is sent", || farm.received("d") > size / 3 * 2);
        let mut taken = farm.received("d");
        farm.kill_datastore();
        farm.start_datastore();
        // B is killed while fetching.
        farm.fleet.wait("the upload continues", || farm.received("b") > former + size / 4);
        let fetched = farm.received("b") - former;
        b.kill();
        farm.restart(&mut b);
        farm.fleet.converges(&["a", "b"]);
        farm.complete("b");
        taken += farm.received("d");
        let received = fetched + farm.received("b");
        println!("round {round}: {size} bytes; the datastore received {taken}, B {received}");
        // Chunk IDs and lists are sent in addition.
        assert!(taken < size + 2 * UNDER_WAY + (1 << 20), "{taken}");
        assert!(received < size + UNDER_WAY + (1 << 20), "{received}");
        let admin = b.login("admin", ADMIN_PASSWORD);
        resource.holds(&admin, &contents);
        assert_eq!(farm.blobs("d", &["verify"]).0, 0);
    }
}
