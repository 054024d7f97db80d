use crate::fleet::{Fleet, History, Rng};

fn closed_segment(fleet: &Fleet) -> std::path::PathBuf {
    let entries = std::fs::read_dir(fleet.dir("d/log")).expect("lists").map(|entry| entry.expect("entry").path());
    let name = |path: &std::path::Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let closed = entries.filter(|path| name(path).starts_with("seg-") && !name(path).contains("open"));
    closed.min().expect("a closed segment")
}

#[test]
fn p10_one_flipped_bit_in_a_closed_segment_is_reported_by_verify_and_at_start() {
    let mut fleet = Fleet::new();
    fleet.datastore_flags = vec!["--segment-mb".into(), "1".into()];
    let datastore = fleet.datastore();
    let file = fleet.write_file("in.jsonl", &History::new(2, 12_000, 3_000).lines);
    fleet.ok("d", &["import", file.to_str().unwrap()]);
    datastore.terminate();
    let segment = closed_segment(&fleet);
    let name = segment.file_name().unwrap().to_str().unwrap().to_owned();
    let good = std::fs::read(&segment).expect("reads");
    let mut dice = Rng::new(9);
    for _ in 0..12 {
        let at = dice.below(good.len() as u64) as usize;
        let mut bad = good.clone();
        bad[at] ^= 1 << dice.below(8);
        std::fs::write(&segment, &bad).expect("writes");
        let output = fleet.run("d", &["verify", "--json"]);
        let report = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(3), "byte {at}: {report}{}", String::from_utf8_lossy(&output.stderr));
        assert!(report.contains(&name) && report.contains("\"offset\":"), "byte {at}: {report}");
        let start = std::process::Command::new(env!("CARGO_BIN_EXE_gravwell_datastore"))
            .args(["--listen", "127.0.0.1:0", "--data-dir"])
            .arg(fleet.dir("d"))
            .output()
            .expect("runs");
        let errors = String::from_utf8_lossy(&start.stderr).into_owned();
        assert_eq!(start.status.code(), Some(3), "byte {at}: {errors}");
        assert!(errors.contains(&name) && errors.contains("byte"), "byte {at}: {errors}");
        assert_eq!(std::fs::read(&segment).expect("reads"), bad, "nothing is truncated or repaired");
    }
    std::fs::write(&segment, &good).expect("writes");
    let _datastore = fleet.datastore();
    fleet.ok("d", &["verify"]);
}

#[test]
fn p10_verify_finds_corruption_of_a_running_datastore() {
    let mut fleet = Fleet::new();
    fleet.datastore_flags = vec!["--segment-mb".into(), "1".into()];
    let _datastore = fleet.datastore();
    let file = fleet.write_file("in.jsonl", &History::new(2, 12_000, 3_000).lines);
    fleet.ok("d", &["import", file.to_str().unwrap()]);
    let segment = closed_segment(&fleet);
    let mut bytes = std::fs::read(&segment).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 16;
    let file = std::fs::File::options().write(true).open(&segment).expect("opens");
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).expect("writes in place");
    let output = fleet.run("d", &["verify"]);
    assert_eq!(output.status.code(), Some(3));
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(report.contains(segment.file_name().unwrap().to_str().unwrap()), "{report}");
    let named = report.lines().filter(|line| line.starts_with("DAMAGE ")).map(|line| line.matches(" at byte ").count());
    assert!(named.clone().count() > 0 && named.clone().all(|count| count == 1), "each place once: {report}");
}

/// A replica whose state differs from the datastore's at the same sequence.
#[tokio::test(flavor = "multi_thread")]
async fn p09_a_replica_with_a_different_state_detects_reports_and_repairs_it() {
    use gravwell_state::{Object, StateStore, Target};
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let a = fleet.member("a");
    let file = fleet.write_file("in.jsonl", &History::new(2, 300, 100).lines);
    fleet.ok("a", &["import", file.to_str().unwrap()]);
    let export = fleet.converges(&["a"]);
    a.terminate();
    let entries = std::fs::read_dir(fleet.dir("a")).expect("lists").map(|entry| entry.expect("entry").path());
    let is_state = |path: &std::path::PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("state-");
    let path = entries.filter(is_state).max().expect("a state");
    let aside = fleet.dir("aside");
    std::fs::rename(&path, &aside).expect("moves");
    let (good, bad) = (StateStore::open(&aside, 1 << 20).unwrap(), StateStore::open(&path, 1 << 20).unwrap());
    let (meta, snapshot) = (good.meta().unwrap(), good.snapshot().unwrap());
    let mut loader = bad.loader().unwrap();
    for (number, row) in snapshot.objects().enumerate() {
        let (collection, key, object) = row.unwrap();
        let value = if number == 3 { "\"silently wrong\"".into() } else { object.value };
        loader.object(&collection, &key, &Object { value, ..object }).unwrap();
    }
    for row in snapshot.origins() {
        let (origin, row) = row.unwrap();
        loader.origin(origin, &row).unwrap();
    }
    let (log_id, generation, lineage) = (meta.log_id, meta.generation, meta.lineage.clone());
    let (seq, chain, time_ms) = (meta.seq, meta.chain, meta.time_ms);
    drop(
        loader
            .finish(Target { log_id, generation, lineage, seq, chain, time_ms, deletions_after: None, digest: None })
            .unwrap(),
    );
    drop((good, bad, snapshot));
    let wrong = fleet.run("a", &["export"]);
    assert_ne!(String::from_utf8_lossy(&wrong.stdout), export, "the wrong value is there");
    assert_eq!(wrong.status.code(), Some(3), "and it is known to be another state");
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("the state was replaced"), "{wrong:?}");
    let _a = fleet.replica("a");
    fleet.wait("it reports it", || fleet.log_of("a").contains("differs from the datastore's"));
    assert_eq!(fleet.converges(&["a"]), export, "and repairs itself");
}

#[test]
fn a_full_disk_refuses_puts_and_still_reads_deletes_and_compacts() {
    let mut fleet = Fleet::new();
    let datastore = fleet.datastore();
    fleet.ok("d", &["put", "c", "k", "--value", "1"]);
    fleet.ok("d", &["put", "c", "k2", "--value", "1"]);
    let free_mb = fleet.status("d")["disk_free_bytes"].as_u64().unwrap() >> 20;
    datastore.terminate();
    // The watermark is set above the free space, so for the datastore the disk is full.
    fleet.datastore_flags = vec!["--min-free-mb".into(), (free_mb * 2).to_string()];
    let datastore = fleet.datastore();
    assert_eq!(fleet.run("d", &["status"]).status.code(), Some(1), "it reports it before writing anything");
    let refused = fleet.run("d", &["put", "c", "k3", "--value", "1"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("disk is full"), "{refused:?}");
    assert_eq!(fleet.run("d", &["status"]).status.code(), Some(1));
    fleet.ok("d", &["get", "c", "k"]);
    fleet.ok("d", &["delete", "c", "k2"]);
    fleet.ok("d", &["compact", "--history-ops", "0"]);
    fleet.ok("d", &["verify"]);
    datastore.terminate();
    fleet.datastore_flags.clear();
    let _datastore = fleet.datastore();
    fleet.ok("d", &["put", "c", "k3", "--value", "1"]);
}

#[test]
fn p14_a_member_reports_that_its_datastore_accepts_no_changes() {
    let mut fleet = Fleet::new();
    let datastore = fleet.datastore();
    let _a = fleet.member("a");
    fleet.ok("d", &["put", "c", "k", "--value", "1"]);
    let free_mb = fleet.status("d")["disk_free_bytes"].as_u64().unwrap() >> 20;
    datastore.terminate();
    fleet.datastore_flags = vec!["--min-free-mb".into(), (free_mb * 2).to_string()];
    let datastore = fleet.datastore();
    fleet.wait("it is connected", || fleet.status("a")["connected"] == true);
    // The command must not wait for a decision that the datastore cannot make.
    let put = fleet.ok("a", &["put", "c", "waits", "--value", "1"]);
    assert!(put.contains("durable in the outbox"), "{put}");
    let health = || fleet.status("a")["health"].to_string();
    fleet.wait("it is reported", || health().contains("writes_refused"));
    assert!(health().contains("attention") && health().contains("disk is full"), "{}", health());
    fleet.ok("a", &["delete", "c", "k"]);
    datastore.terminate();
    fleet.datastore_flags.clear();
    let _datastore = fleet.datastore();
    fleet.wait("the change is committed", || fleet.run("d", &["get", "c", "waits"]).status.success());
    fleet.wait("it is well again", || fleet.status("a")["health"]["level"] == "good");
}
