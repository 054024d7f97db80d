//! Large-scale recovery from a lost datastore disk: many objects and large blobs, with the duration of each phase.
//!
//! With `GRAVWELL_LARGE=1`: 10,000 objects and 200 MB; see `docs/testing.md` for the command. Otherwise it is skipped,
//! because `disaster` tests the same with less data.

use std::time::Instant;

use super::{Farm, Resource, noise};
use crate::fleet::from_env;
use crate::recover::{destroy, escrow_since, key_of, recover};
use crate::web::Web;
use crate::web::client::Client;

/// Objects per transaction, chosen so that a member retains all transactions to push them again.
const OBJECTS_AT_ONCE: u64 = 5;
const RESOURCE_BYTES: u64 = 10 << 20;

struct Sizes {
    objects: u64,
    bytes: u64,
}

/// Returns `None` and prints a message, unless the test is enabled.
fn sizes() -> Option<Sizes> {
    if std::env::var("GRAVWELL_LARGE").is_err() {
        eprintln!("SKIPPED: set GRAVWELL_LARGE=1, and GRAVWELL_BIN_DIR to a directory with release binaries");
        return None;
    }
    let bytes = from_env("GRAVWELL_RECOVER_MB", 200) * 1_000_000;
    Some(Sizes { objects: from_env("GRAVWELL_RECOVER_OPS", 10_000), bytes })
}

struct Phases(Instant);

impl Phases {
    fn done(&mut self, what: &str) {
        println!("{what}: {:.1} s", self.0.elapsed().as_secs_f64());
        self.0 = Instant::now();
    }
}

fn import(farm: &Farm, name: &str, from: u64, to: u64) {
    let mut lines = String::new();
    for first in (from..to).step_by(usize::try_from(OBJECTS_AT_ONCE).expect("small")) {
        let put = |number: u64| {
            let text = "x".repeat(usize::try_from(number % 300).expect("small"));
            format!(
                r#"{{"put":{{"collection":"large","key":"{number:06}","value":{{"n":{number},"text":"{text}"}}}}}}"#
            )
        };
        let ops: Vec<String> = (first..(first + OBJECTS_AT_ONCE).min(to)).map(put).collect();
        lines += &format!("{{\"ops\":[{}]}}\n", ops.join(","));
    }
    let file = farm.fleet.write_file("large.jsonl", &lines);
    farm.fleet.ok(name, &["import", file.to_str().expect("path")]);
}

/// Uploads noise; returns the resources with the seeds and sizes of their contents.
fn upload(client: &Client, seed: u64, bytes: u64) -> Vec<(Resource, u64, usize)> {
    let count = bytes.div_ceil(RESOURCE_BYTES);
    let one = |number: u64| {
        let size = usize::try_from(RESOURCE_BYTES.min(bytes - number * RESOURCE_BYTES)).expect("small");
        let resource = Resource::new(client, &format!("large {seed} {number}"));
        resource.store(client, &noise(seed + number, size));
        (resource, seed + number, size)
    };
    (0..count).map(one).collect()
}

fn holds(client: &Client, resources: &[(Resource, u64, usize)]) {
    resources.iter().for_each(|(resource, seed, size)| resource.holds(client, &noise(*seed, *size)));
}

fn complete(farm: &Farm, names: &[&str]) {
    names.iter().for_each(|name| farm.complete(name));
    assert_eq!(farm.blobs("d", &["verify"]).0, 0, "the datastore has every referenced chunk");
}

const RUNNING: [&str; 3] = ["a", "b", "c"];
const ALL: [&str; 4] = ["a", "b", "c", "e"];

/// Returns a datastore, four webservers, and an encrypted CA backup that contains all of them.
fn farm() -> (Farm, Vec<Web>, String) {
    let before = std::time::SystemTime::now();
    let farm = Farm::new("", &[("a", ""), ("b", ""), ("c", ""), ("e", "")]);
    let webs: Vec<Web> = ALL.iter().map(|name| farm.start(name)).collect();
    // Once a user can sign in, a webserver has finished its startup writes.
    webs.iter().for_each(|web| drop(web.admin(&farm.fleet)));
    farm.fleet.converges(&ALL);
    let authority = escrow_since(&farm.fleet, "e", before);
    (farm, webs, authority)
}

fn rebuild(farm: &mut Farm, key: &str, authority: &str, phases: &mut Phases) {
    recover(&farm.fleet, &["--authority", authority, "--recovery-key", key, "--expect", "3"]);
    phases.done("`recover`, from three webservers");
    farm.start_datastore();
    RUNNING.iter().for_each(|name| farm.fleet.wait_connected(name));
    farm.fleet.converges(&RUNNING);
    phases.done("the datastore serves, three webservers have caught up");
    complete(farm, &["d"]);
    phases.done("all blobs are restored to the datastore, every chunk verified");
}

#[test]
fn p04_large_a_lost_disk_with_three_webservers_running_and_one_stopped() {
    let Some(Sizes { objects, bytes }) = sizes() else { return };
    let (mut farm, mut webs, authority) = farm();
    let mut stopped = webs.pop().expect("four");
    stopped.stop();
    let mut phases = Phases(Instant::now());
    let admin = webs[0].admin(&farm.fleet);
    import(&farm, "a", 0, objects);
    let resources = upload(&admin, 1000, bytes);
    let export = farm.fleet.converges(&RUNNING);
    complete(&farm, &["a", "b", "c"]);
    phases.done(&format!("{objects} objects and {bytes} bytes of resources are everywhere"));
    let key = key_of(&farm.fleet);
    let datastore = farm.datastore.take().expect("runs");
    destroy(&farm.fleet, datastore);
    phases.0 = Instant::now();
    rebuild(&mut farm, &key, &authority, &mut phases);
    farm.restart(&mut stopped);
    farm.fleet.wait_connected("e");
    assert_eq!(farm.fleet.converges(&ALL), export, "nothing is lost or deleted");
    complete(&farm, &["e"]);
    phases.done("the stopped webserver reconnected and has everything");
    holds(&stopped.admin(&farm.fleet), &resources);
    assert_eq!(farm.fleet.status("e")["quarantined"], 0);
}

#[test]
fn p04_large_a_lost_disk_and_the_most_advanced_webserver_comes_back_last() {
    let Some(Sizes { objects, bytes }) = sizes() else { return };
    let (mut farm, mut webs, authority) = farm();
    let mut phases = Phases(Instant::now());
    let admin = webs[0].admin(&farm.fleet);
    import(&farm, "a", 0, objects / 2);
    let mut resources = upload(&admin, 1000, bytes / 2);
    let ahead = webs[3].admin(&farm.fleet);
    farm.fleet.converges(&ALL);
    complete(&farm, &ALL);
    webs[..3].iter_mut().for_each(Web::stop);
    import(&farm, "e", objects / 2, objects);
    resources.extend(upload(&ahead, 2000, bytes - bytes / 2));
    let export = farm.fleet.converges(&["e"]);
    complete(&farm, &["e"]);
    phases.done(&format!("half of {objects} objects and {bytes} bytes are everywhere, half at one webserver only"));
    let key = key_of(&farm.fleet);
    webs[3].stop();
    let datastore = farm.datastore.take().expect("runs");
    destroy(&farm.fleet, datastore);
    webs[..3].iter_mut().for_each(|web| farm.restart(web));
    phases.0 = Instant::now();
    rebuild(&mut farm, &key, &authority, &mut phases);
    farm.restart(&mut webs[3]);
    farm.fleet.wait_connected("e");
    assert_eq!(farm.fleet.converges(&ALL), export, "nothing is lost or deleted");
    complete(&farm, &ALL);
    phases.done("the most advanced webserver reconnected, and all have everything");
    holds(&webs[1].admin(&farm.fleet), &resources);
    assert_eq!(farm.fleet.status("e")["quarantined"], 0, "all of it was local");
}
