use crate::files::copy_dir;
use crate::fleet::{Fleet, History};

fn loaded(fleet: &Fleet) -> String {
    let file = fleet.write_file("in.jsonl", &History::new(2, 300, 100).lines);
    fleet.ok("a", &["import", file.to_str().unwrap()]);
    fleet.converges(&["a"])
}

/// Checks that the replica keeps all data, reports the reason, and continues to work.
fn keeps_everything(fleet: &Fleet, export: &str, verdicts: &[&str]) {
    fleet.wait("the verdict is named", || {
        verdicts.iter().any(|verdict| fleet.status("a")["verdict"] == *verdict) && fleet.status("a")["healthy"] == false
    });
    let output = fleet.run("a", &["status"]);
    assert!(matches!(output.status.code(), Some(1 | 3)), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("nothing was deleted here"), "{text}");
    assert_eq!(fleet.export("a"), export);
    fleet.ok("a", &["put", "c", "still-working", "--value", "1", "--no-wait"]);
    assert_eq!(fleet.ok("a", &["get", "c", "still-working"]).trim(), "1");
    assert_eq!(fleet.status("a")["outbox"], 1);
}

#[test]
fn p05_a_wiped_datastore_deletes_nothing_at_its_replicas() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let _a = fleet.member("a");
    let export = loaded(&fleet);
    datastore.kill();
    std::fs::remove_dir_all(fleet.dir("d")).expect("wipes");
    let _datastore = fleet.datastore();
    keeps_everything(&fleet, &export, &["Foreign", "Empty"]);
}

#[test]
fn p05_a_wiped_log_with_a_kept_ca_is_reported_as_empty() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let _a = fleet.member("a");
    let export = loaded(&fleet);
    datastore.kill();
    for part in ["log", "state"] {
        std::fs::remove_dir_all(fleet.dir("d").join(part)).expect("wipes");
    }
    let _datastore = fleet.datastore();
    keeps_everything(&fleet, &export, &["Empty"]);
}

#[test]
fn p05_a_rolled_back_datastore_is_refused() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let _a = fleet.member("a");
    fleet.ok("a", &["put", "c", "early", "--value", "1"]);
    fleet.converges(&["a"]);
    datastore.terminate();
    copy_dir(&fleet.dir("d"), &fleet.dir("old"));
    let datastore = fleet.datastore();
    fleet.wait_connected("a");
    let export = loaded(&fleet);
    datastore.terminate();
    std::fs::remove_dir_all(fleet.dir("d")).expect("removes");
    copy_dir(&fleet.dir("old"), &fleet.dir("d"));
    let _datastore = fleet.datastore();
    keeps_everything(&fleet, &export, &["Ahead"]);
}

#[test]
fn p05_a_rolled_back_datastore_that_continued_is_a_fork() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let a = fleet.member("a");
    fleet.ok("a", &["put", "c", "early", "--value", "1"]);
    fleet.converges(&["a"]);
    datastore.terminate();
    copy_dir(&fleet.dir("d"), &fleet.dir("old"));
    let datastore = fleet.datastore();
    fleet.wait_connected("a");
    let export = loaded(&fleet);
    a.terminate();
    datastore.terminate();
    std::fs::remove_dir_all(fleet.dir("d")).expect("removes");
    copy_dir(&fleet.dir("old"), &fleet.dir("d"));
    let _datastore = fleet.datastore();
    let other = fleet.write_file("other.jsonl", &History::new(99, 600, 100).lines);
    fleet.ok("d", &["import", other.to_str().unwrap()]);
    let _a = fleet.replica("a");
    keeps_everything(&fleet, &export, &["Forked"]);
}
