use crate::fleet::{Fleet, History};

#[test]
fn p04_compaction_under_load_with_an_offline_replica_loses_and_revives_nothing() {
    let mut fleet = Fleet::new();
    fleet.datastore_flags =
        ["--segment-mb", "1", "--history-ops", "0", "--member-retention-hours", "0"].map(String::from).into();
    let _datastore = fleet.datastore();
    let (_a, b) = (fleet.member("a"), fleet.member("b"));
    let first = History::new(1, 6_000, 800);
    let file = fleet.write_file("1.jsonl", &first.lines);
    fleet.ok("a", &["import", file.to_str().unwrap()]);
    fleet.converges(&["a", "b"]);
    b.terminate();
    fleet.ok("b", &["put", "c", "made-offline", "--value", "1"]);
    let second = fleet.write_file("2.jsonl", &History::new(2, 12_000, 800).lines);
    let mut import = fleet.command("a", &["import", second.to_str().unwrap()]).spawn().expect("starts");
    while import.try_wait().expect("waits").is_none() {
        fleet.ok("d", &["compact"]);
    }
    fleet.converges(&["a"]);
    fleet.ok("d", &["compact"]);
    fleet.ok("d", &["verify"]);
    let bytes = fleet.status("d")["log_bytes"].as_u64().unwrap();
    assert!(bytes < 1_500_000, "disk space was given back: 18,000 transactions leave {bytes} bytes");
    let (horizon, behind) = (fleet.status("d")["horizon"].as_u64(), fleet.status("b")["seq"].as_u64());
    assert!(horizon > behind, "b has fallen below the horizon: {horizon:?} {behind:?}");
    let _b = fleet.replica("b");
    let export = fleet.converges(&["a", "b"]);
    assert!(export.contains("made-offline"), "its own transaction was kept and pushed");
    assert!(fleet.log_of("b").contains("fetching the state"), "replaced from a snapshot");
}

#[test]
fn p04_a_member_within_retention_pins_the_compaction_floor() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let a = fleet.member("a");
    fleet.ok("d", &["put", "c", "k", "--value", "1"]);
    fleet.converges(&["a"]);
    a.kill();
    fleet.wait("it is gone", || fleet.status("d")["subscribers"] == 0);
    let before = fleet.status("a")["seq"].as_u64();
    let file = fleet.write_file("1.jsonl", &History::new(1, 1_000, 50).lines);
    fleet.ok("d", &["import", file.to_str().unwrap()]);
    let report: serde_json::Value =
        serde_json::from_str(&fleet.ok("d", &["compact", "--history-ops", "0", "--json"])).expect("a report");
    assert!(report["horizon"].as_u64() <= before, "{report}");
    assert_eq!(report["held_by"], "a member that is behind");
    fleet.ok("d", &["revoke", "a", "--remove"]);
    let report: serde_json::Value =
        serde_json::from_str(&fleet.ok("d", &["compact", "--history-ops", "0", "--json"])).expect("a report");
    assert_eq!(report["horizon"], fleet.status("d")["head"]);
    assert_eq!(fleet.export("d").lines().count() as u64, fleet.status("d")["objects"].as_u64().unwrap());
}

#[test]
fn the_state_at_an_earlier_sequence_is_reproduced() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let mut then = Vec::new();
    for seed in 0..3 {
        let file = fleet.write_file("in.jsonl", &History::new(seed, 200, 40).lines);
        fleet.ok("d", &["import", file.to_str().unwrap()]);
        then.push((fleet.status("d")["head"].to_string(), fleet.export("d")));
    }
    for (seq, export) in then {
        assert_eq!(fleet.ok("d", &["export", "--at", &seq]), export, "at {seq}");
    }
    assert_eq!(fleet.run("d", &["export", "--at", "99999"]).status.code(), Some(1));
}
