use std::time::Duration;

use crate::fleet::{Fleet, History, Rng, takes_less_than};

/// Returns how many times processes are killed; set `GRAVWELL_KILLS` for more.
fn kills() -> u64 {
    std::env::var("GRAVWELL_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(50)
}

#[test]
fn p01_killed_at_random_nothing_acknowledged_is_lost_and_nothing_doubled() {
    let fleet = Fleet::new();
    let mut dice = Rng::new(42);
    let transactions = 30_000;
    let history = History::new(5, transactions, 3_000);
    let file = fleet.write_file("in.jsonl", &history.lines);
    let mut datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    fleet.enroll("b", "webserver");
    let (mut a, mut b) = (fleet.replica("a"), fleet.replica("b"));
    let arguments = ["import", file.to_str().unwrap(), "--retry-for", "60"];
    let mut import = fleet.command("a", &arguments).spawn().expect("starts");
    for _ in 0..kills() {
        std::thread::sleep(Duration::from_millis(20 + dice.below(150)));
        match dice.below(3) {
            0 => {
                datastore.kill();
                std::thread::sleep(Duration::from_millis(dice.below(50)));
                datastore = fleet.spawn_datastore();
            }
            1 => {
                a.kill();
                a = fleet.replica("a");
            }
            _ => {
                b.kill();
                b = fleet.replica("b");
            }
        }
    }
    let status = import.wait().expect("ends");
    assert!(status.success(), "{status}\n{}", fleet.log_of("a"));
    assert_eq!(fleet.converges(&["a", "b"]), history.export());
    assert_eq!(fleet.status("d")["head"], transactions, "each transaction exactly once");
    assert_eq!(fleet.tail().len() as u64, transactions);
    fleet.ok("d", &["verify"]);
    drop((datastore, a, b));
}

#[test]
fn a_replica_and_a_datastore_stop_within_five_seconds_of_the_request() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    datastore.terminate();
    let mut seed = 0;
    takes_less_than(Duration::from_secs(5), "stopping", || {
        seed += 1;
        let datastore = fleet.datastore();
        let a = fleet.replica("a");
        fleet.wait_connected("a");
        let file = fleet.write_file(&format!("in-{seed}.jsonl"), &History::new(seed, 2_000, 100).lines);
        let mut import = fleet.command("a", &["import", file.to_str().unwrap()]).spawn().expect("starts");
        let took = datastore.terminate().max(a.terminate());
        let _ = import.kill();
        let _ = import.wait();
        took
    });
}

#[test]
fn p03_a_replica_whose_state_is_lost_fetches_it_again_and_keeps_its_outbox() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let a = fleet.member("a");
    let file = fleet.write_file("in.jsonl", &History::new(2, 500, 100).lines);
    fleet.ok("a", &["import", file.to_str().unwrap()]);
    fleet.converges(&["a"]);
    drop(datastore);
    fleet.wait("a notices", || fleet.status("a")["connected"] == false);
    fleet.ok("a", &["put", "c", "offline", "--value", "1"]);
    a.kill();
    for entry in std::fs::read_dir(fleet.dir("a")).expect("lists") {
        let path = entry.expect("entry").path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("state-") {
            std::fs::remove_dir_all(path).expect("removes");
        }
    }
    let (_datastore, _a) = (fleet.datastore(), fleet.replica("a"));
    assert!(fleet.converges(&["a"]).contains("offline"));
}

#[test]
fn p03_a_datastore_whose_index_is_lost_rebuilds_it() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let history = History::new(2, 3_000, 300);
    let file = fleet.write_file("in.jsonl", &history.lines);
    fleet.ok("d", &["import", file.to_str().unwrap()]);
    let before = fleet.status("d");
    datastore.kill();
    std::fs::remove_dir_all(fleet.dir("d/state")).expect("removes");
    let _datastore = fleet.datastore();
    let after = fleet.status("d");
    assert_eq!((&after["digest"], &after["seq"]), (&before["digest"], &before["seq"]));
    assert_eq!(fleet.export("d"), history.export());
}

#[test]
fn p03_a_process_stopped_during_startup_stops_immediately() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let _a = fleet.member("a");
    let file = fleet.write_file("in.jsonl", &History::new(31, 12_000, 900).lines);
    fleet.ok("a", &["import", file.to_str().expect("path")]);
    let export = fleet.converges(&["a"]);
    datastore.terminate();
    std::fs::remove_dir_all(fleet.dir("d/state")).expect("removes");
    let starting = fleet.spawn_datastore();
    fleet.wait("it rebuilds its index", || fleet.log_of("d").contains("rebuilding the state index"));
    starting.terminate();
    assert!(fleet.log_of("d").contains("stopped while starting"), "{}", fleet.log_of("d"));
    let _datastore = fleet.datastore();
    fleet.wait_connected("a");
    assert_eq!(fleet.converges(&["a"]), export);
}
