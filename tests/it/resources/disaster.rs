//! Blobs after a disaster: restored from a backup, and from members.

use serde_json::Value;

use super::{Farm, Resource, noise};
use crate::fleet::Fleet;
use crate::recover::{destroy, escrow, key_of, recover};
use crate::web::{ADMIN_PASSWORD, Web};

fn json(fleet: &Fleet, arguments: &[&str]) -> Value {
    let text = fleet.ok("d", &[arguments, &["--json"]].concat());
    serde_json::from_str(&text).expect("JSON")
}

/// Returns the chunks of a backup, each with the pack file that contains it.
fn chunks_of(fleet: &Fleet, backup: &Value) -> Vec<(String, String)> {
    let name = format!("backups/manifests/{}", backup["backup"].as_str().expect("a name"));
    let text = std::fs::read_to_string(fleet.dir(&name)).expect("a manifest");
    let manifest: Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
    serde_json::from_value(manifest["chunks"].clone()).expect("chunks")
}

#[test]
fn contents_are_in_every_backup_and_are_restored_exactly() {
    let mut farm = Farm::new("", &[("a", "")]);
    let mut web = farm.start("a");
    let admin = web.admin(&farm.fleet);
    let place = farm.fleet.dir("backups").display().to_string();
    let [stays, replaced, gone] = ["stays", "replaced", "gone"].map(|name| Resource::new(&admin, name));
    let (kept, former, new, deleted) = (noise(21, 3 << 20), noise(22, 2 << 20), noise(23, 2 << 20), noise(24, 1 << 20));
    stays.store(&admin, &kept);
    replaced.store(&admin, &former);
    gone.store(&admin, &deleted);
    farm.fleet.converges(&["a"]);
    let first = json(&farm.fleet, &["backup", "create", &place, "--plain"]);
    replaced.store(&admin, &new);
    admin.ok("DELETE", &gone.path);
    farm.fleet.converges(&["a"]);
    let second = json(&farm.fleet, &["backup", "create", &place, "--plain"]);
    let (before, brought) = (first["new_bytes"].as_u64().unwrap(), second["new_bytes"].as_u64().unwrap());
    assert!(before > 6 << 20 && (2 << 20..3 << 20).contains(&brought), "only new data: {before}, {brought}");
    farm.fleet.ok("d", &["backup", "verify", &place, "--all"]);

    let moment = first["seq"].to_string();
    farm.fleet.ok("past", &["restore", &place, "--at", &moment]);
    let (code, infos) = farm.blobs("past", &["list"]);
    let sizes: Vec<u64> = infos.iter().filter_map(|info| info["size"].as_u64()).collect();
    let wanted = [kept.len(), former.len(), deleted.len()].map(|bytes| bytes as u64);
    wanted.iter().for_each(|bytes| assert!(sizes.contains(bytes), "{bytes} of {sizes:?}"));
    assert!(code == 0 && infos.iter().all(|info| info["missing"] == 0), "state at that sequence: {infos:?}");
    assert_eq!(farm.blobs("past", &["verify"]).0, 0);

    // The datastore garbage-collects unreferenced chunks; the backups keep them.
    farm.stop_datastore(&["a"]);
    let (_, collected) = farm.blobs("d", &["gc", "--grace", "0"]);
    assert!(collected[0]["chunks"].as_u64() > Some(10), "{collected:?}");
    farm.start_datastore();
    farm.fleet.wait_connected("a");
    json(&farm.fleet, &["backup", "create", &place, "--plain"]);
    farm.fleet.ok("d", &["backup", "prune", &place, "--keep-last", "1"]);
    farm.fleet.ok("d", &["backup", "verify", &place, "--all"]);
    let restored = farm.fleet.ok("pruned", &["restore", &place, "--at", &moment, "--json"]);
    assert!(restored.contains("\"incomplete\":[]"), "{restored}");
    assert_eq!(farm.blobs("pruned", &["verify"]).0, 0);

    // Only the backup and the key are left.
    let key = key_of(&farm.fleet);
    web.kill();
    destroy(&farm.fleet, farm.datastore.take().expect("runs"));
    std::fs::remove_dir_all(farm.fleet.dir("a")).expect("wipes");
    farm.fleet.ok("d", &["restore", &place, "--recovery-key", &key, "--plain"]);
    farm.start_datastore();
    farm.fleet.enroll("n", "webserver");
    let web = Web::start(&farm.fleet, "n", &[]);
    farm.fleet.converges(&["n"]);
    // The restore has ended all sessions.
    let admin = web.login("admin", ADMIN_PASSWORD);
    farm.complete("n");
    stays.holds(&admin, &kept);
    replaced.holds(&admin, &new);
    assert_eq!(admin.get(&gone.path).status, 404);
    assert_eq!((farm.blobs("d", &["verify"]).0, farm.blobs("n", &["verify"]).0), (0, 0));

    let last = farm.fleet.ok("d", &["backup", "list", &place, "--json"]);
    let chunks = chunks_of(&farm.fleet, &serde_json::from_str(&last).expect("one"));
    let (chunk, piece) = &chunks[chunks.len() / 2];
    let path = farm.fleet.dir(&format!("backups/pieces/{}/{piece}", &piece[..2]));
    let mut bytes = std::fs::read(&path).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).expect("writes");
    for arguments in [&["backup", "verify", &place][..], &["restore", &place]] {
        let refused = farm.fleet.run("damaged", arguments);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(3), "{text}");
        assert!(text.contains(piece) && text.contains(chunk), "{text}");
    }
    assert!(!farm.fleet.dir("damaged/log").exists());
}

#[test]
fn a_backup_without_contents_reports_that_until_they_are_added() {
    let mut farm = Farm::new("", &[("a", "")]);
    let mut web = farm.start("a");
    let admin = web.admin(&farm.fleet);
    Resource::new(&admin, "the report").store(&admin, &noise(41, 1 << 20));
    farm.fleet.converges(&["a"]);
    web.stop();
    farm.stop_datastore(&[]);
    std::fs::remove_dir_all(farm.fleet.dir("d/chunks")).expect("removes");
    farm.start_datastore();
    // The member that may have them is offline, so nothing is reported as lost. A replica without blobs reports
    // so immediately.
    let _replica = farm.fleet.member("r");
    farm.fleet.wait_connected("r");
    let reasons = |farm: &Farm| {
        let status = farm.fleet.status("d");
        let text = |reason: &Value, name: &str| reason[name].as_str().unwrap_or_default().to_owned();
        let reasons = status["health"]["reasons"].as_array().cloned().unwrap_or_default();
        (reasons.iter().map(|one| (text(one, "code"), text(one, "message"))).collect::<Vec<_>>(), status)
    };
    let away = |reasons: &[(String, String)]| {
        reasons.iter().any(|(code, message)| code == "contents_incomplete" && message.ends_with("have not answered: a"))
    };
    farm.fleet.wait("it waits only for a", || away(&reasons(&farm).0));
    assert_eq!(reasons(&farm).1["contents_lost"], 0);
    let place = farm.fleet.dir("backups").display().to_string();
    let made = farm.fleet.run("d", &["backup", "create", &place, "--plain"]);
    assert_eq!(made.status.code(), Some(3), "{made:?}");
    let refused = farm.fleet.run("d", &["backup", "verify", &place]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(3) && text.contains("the report"), "{text}");
    assert!(!farm.fleet.log_of("d").contains("chunks lost"));
    farm.restart(&mut web);
    farm.complete("d");
    farm.fleet.wait("no blob is incomplete", || reasons(&farm).0.is_empty());
    assert_eq!(json(&farm.fleet, &["backup", "create", &place, "--plain"])["is_new"], true);
    farm.fleet.ok("d", &["backup", "verify", &place]);
}

#[test]
fn contents_are_lost_once_every_member_reported_them_missing() {
    let mut farm = Farm::new("", &[("a", "")]);
    let mut web = farm.start("a");
    let admin = web.admin(&farm.fleet);
    Resource::new(&admin, "the report").store(&admin, &noise(42, 1 << 20));
    farm.fleet.converges(&["a"]);
    web.stop();
    farm.stop_datastore(&[]);
    for chunks in ["d/chunks", "a/chunks"] {
        std::fs::remove_dir_all(farm.fleet.dir(chunks)).expect("removes");
    }
    farm.start_datastore();
    farm.restart(&mut web);
    farm.fleet.wait("the chunks are lost", || farm.fleet.status("d")["contents_lost"] == 1);
    let (code, infos) = farm.blobs("d", &["list"]);
    assert_eq!((code, &infos[0]["lost"]), (0, &Value::Bool(true)));
    farm.fleet
        .wait("the loss is logged", || farm.fleet.log_of("d").contains("chunks lost: no connected member has a copy"));
}

#[test]
fn after_a_recovery_contents_come_from_members_even_from_the_last_to_reconnect() {
    let mut farm = Farm::new("", &[("a", ""), ("b", ""), ("e", "")]);
    let (mut web_a, mut web_b, mut web_e) = (farm.start("a"), farm.start("b"), farm.start("e"));
    let (a, b, e) = (web_a.admin(&farm.fleet), web_b.admin(&farm.fleet), web_e.admin(&farm.fleet));
    let [shared, own, later] = [31, 32, 33].map(|seed| noise(seed, 1 << 20));
    // Large enough that garbage collection would rewrite its pack files.
    let others = noise(34, 8 << 20);
    let known = Resource::new(&a, "known to all");
    known.store(&a, &shared);
    farm.fleet.converges(&["a", "b", "e"]);
    ["b", "e"].iter().for_each(|name| farm.complete(name));
    web_a.stop();
    // Only b and e know of these.
    let [of_e, of_b] = [(&e, "of e"), (&b, "of b")].map(|(client, name)| Resource::new(client, name));
    of_e.store(&e, &own);
    of_b.store(&b, &others);
    farm.fleet.converges(&["b", "e"]);
    ["b", "e"].iter().for_each(|name| farm.complete(name));
    let (key, authority) = (key_of(&farm.fleet), escrow(&farm.fleet, "e"));
    web_e.stop();
    web_b.kill();
    std::fs::remove_dir_all(farm.fleet.dir("b")).expect("wipes");
    destroy(&farm.fleet, farm.datastore.take().expect("runs"));

    farm.restart(&mut web_a);
    recover(&farm.fleet, &["--authority", &authority, "--recovery-key", &key, "--expect", "1"]);
    farm.start_datastore();
    farm.fleet.wait_connected("a");
    farm.complete("d");
    assert_eq!(farm.blobs("d", &["verify"]).0, 0, "every referenced chunk was restored from a");
    let a = web_a.admin(&farm.fleet);
    known.holds(&a, &shared);
    let new = Resource::new(&a, "made in the meantime");
    new.store(&a, &later);

    farm.restart(&mut web_e);
    farm.fleet.wait_connected("e");
    farm.fleet.converges(&["a", "e"]);
    ["d", "a", "e"].iter().for_each(|name| farm.complete(name));
    of_e.holds(&a, &own);
    let e = web_e.admin(&farm.fleet);
    new.holds(&e, &later);
    assert_eq!(a.get(&of_b.path).status, 404, "changes must not be merged automatically");

    // Archived changes keep their chunks, however long an operator takes.
    web_e.stop();
    assert_eq!(farm.blobs("e", &["gc", "--grace", "0"]).0, 0);
    farm.restart(&mut web_e);
    farm.fleet.wait_connected("e");
    let applied = farm.fleet.run("e", &["quarantine", "apply", "1"]);
    assert!(applied.status.code().is_some_and(|code| code <= 1), "{applied:?}");
    farm.fleet.converges(&["a", "e"]);
    ["d", "a"].iter().for_each(|name| farm.complete(name));
    of_b.holds(&web_a.admin(&farm.fleet), &others);
    assert_eq!(farm.blobs("d", &["verify"]).0, 0);
}
