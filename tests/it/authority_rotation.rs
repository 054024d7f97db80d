//! Rotation of the CA: with online and offline members, with processes killed in each step, with encrypted CA backups of
//! each phase, and with an abort.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use crate::files::copy_dir;
use crate::fleet::{Fleet, Process};
use crate::recover::{destroy, escrow, escrow_since, key_of, recover};

const ROTATE: [&str; 2] = ["authority", "rotate"];

fn rotate(fleet: &Fleet, step: &[&str]) -> Value {
    fleet.json("d", &[&ROTATE, step].concat())
}

fn refused(fleet: &Fleet, step: &[&str]) -> String {
    fleet.refused("d", &[&ROTATE, step].concat())
}

/// Returns a member's progress in the rotation, as known to the datastore.
fn stage(fleet: &Fleet, member: &str) -> String {
    let status = rotate(fleet, &["status"]);
    let members = status["members"].as_array().expect("members");
    let member = members.iter().find(|row| row["name"] == member).expect("it is listed");
    member["stage"].as_str().expect("a word").to_owned()
}

#[track_caller]
fn wait_stage(fleet: &Fleet, member: &str, wanted: &str) {
    fleet.wait(&format!("{member} is at {wanted}"), || stage(fleet, member) == wanted);
}

/// Returns the number of roots that a member trusts.
fn roots(fleet: &Fleet, member: &str) -> usize {
    let text = std::fs::read_to_string(fleet.dir(member).join("identity/member.json")).expect("reads");
    text.matches("BEGIN CERTIFICATE").count() - 1
}

#[track_caller]
fn wait_roots(fleet: &Fleet, member: &str, wanted: usize) {
    fleet.wait(&format!("{member} trusts {wanted} roots"), || roots(fleet, member) == wanted);
}

/// Returns the start time of a member's connection.
fn since(fleet: &Fleet, member: &str) -> Value {
    let text = fleet.ok("d", &["presence", "--json"]);
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    rows.into_iter().find(|row| row["name"] == member).expect("it is connected")["since_ms"].clone()
}

fn put(fleet: &Fleet, member: &str, key: &str) {
    fleet.ok(member, &["put", "c", key, "--value", "1"]);
}

fn restarted(fleet: &Fleet, former: Process, member: &str) -> Process {
    former.kill();
    let started = fleet.replica(member);
    fleet.wait_connected(member);
    started
}

fn datastore_restarted(fleet: &Fleet, former: Process) -> Process {
    former.kill();
    fleet.datastore()
}

/// Returns a datastore and two members that have completed every step of a rotation except `finish`.
fn begun() -> (Fleet, Process, Process, Process) {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (a, b) = (fleet.member("a"), fleet.member("b"));
    put(&fleet, "a", "before");
    fleet.converges(&["a", "b"]);
    rotate(&fleet, &["begin"]);
    ["a", "b"].iter().for_each(|member| wait_stage(&fleet, member, "new"));
    (fleet, datastore, a, b)
}

#[test]
fn p11_an_authority_is_rotated_while_members_run_and_no_connection_is_lost() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (_a, _b, _r) = (fleet.member("a"), fleet.member("b"), fleet.member_as("r", "reader"));
    fleet.enroll("ops", "admin");
    fleet.enroll("lb", "balancer");
    let early = fleet.ok("d", &["enroll", "early"]);
    put(&fleet, "a", "1");
    assert!(refused(&fleet, &["abort"]).contains("no CA rotation"));
    assert!(refused(&fleet, &["finish"]).contains("no CA rotation"));
    let before = rotate(&fleet, &["status"]);
    let connections = ["a", "b", "r"].map(|member| since(&fleet, member));

    let begun = rotate(&fleet, &["begin"]);
    assert_eq!(begun["current"], before["current"]);
    let next = begun["next"].clone();
    assert!(next.is_string() && next != before["current"]);
    assert_eq!(rotate(&fleet, &["begin"])["next"], next, "running it again continues");
    assert_eq!(fleet.status("d")["rotates_authority"], true);
    for member in ["a", "b", "r"] {
        wait_stage(&fleet, member, "new");
        assert_eq!(roots(&fleet, member), 2, "{member}");
    }
    // A member without a running process participates with its next command.
    let said = refused(&fleet, &["finish"]);
    assert!(said.contains("new certificate authority: lb, ops;"), "{said}");
    fleet.ok("ops", &["members"]);
    fleet.ok("lb", &["presence"]);
    ["lb", "ops"].iter().for_each(|member| assert_eq!(stage(&fleet, member), "new", "{member}"));

    // Tokens created before and during the rotation are valid until it finishes.
    put(&fleet, "b", "2");
    fleet.ok("early", &["join", early.trim()]);
    let _early = fleet.replica("early");
    let _late = fleet.member("late");
    ["early", "late"].iter().for_each(|member| wait_stage(&fleet, member, "new"));
    let void = fleet.ok("d", &["enroll", "void"]);
    fleet.converges(&["a", "b", "early", "late"]);

    let ended = rotate(&fleet, &["finish"]);
    assert_eq!((&ended["current"], &ended["next"]), (&next, &Value::Null));
    assert_eq!((&ended["replaced"][0]["name"], &ended["invited"][0]), (&before["current"], &"void".into()));
    ["a", "b", "r", "early", "late"].iter().for_each(|member| wait_roots(&fleet, member, 1));
    assert_eq!(["a", "b", "r"].map(|member| since(&fleet, member)), connections, "no connection was lost");
    put(&fleet, "a", "3");
    fleet.converges(&["a", "b", "early", "late"]);
    fleet.ok("ops", &["members"]);
    fleet.ok("lb", &["presence"]);
    let said = fleet.run("void", &["join", void.trim()]);
    assert!(!said.status.success() && !fleet.dir("void/identity").exists(), "{said:?}");
    let _fresh = fleet.member("fresh");

    // Certificates of the new CA remain valid after all processes restart.
    let datastore = datastore_restarted(&fleet, datastore);
    ["a", "b", "r", "fresh"].iter().for_each(|member| fleet.wait_connected(member));
    put(&fleet, "b", "4");
    let export = fleet.converges(&["a", "b", "fresh"]);
    let acts = fleet.ok("d", &["audit", "ls"]);
    assert!(acts.contains("start the CA rotation") && acts.contains("finish the CA rotation"), "{acts}");

    // A second rotation, to yet another CA.
    rotate(&fleet, &["begin"]);
    for member in ["a", "b", "r", "early", "late", "fresh"] {
        wait_stage(&fleet, member, "new");
    }
    fleet.ok("ops", &["members"]);
    fleet.ok("lb", &["presence"]);
    assert_eq!(rotate(&fleet, &["finish"])["replaced"].as_array().map(Vec::len), Some(2));
    assert_eq!(fleet.converges(&["a", "b"]), export);
    drop(datastore);
}

#[test]
fn p13_a_member_offline_during_a_rotation_keeps_its_outbox_and_pushes_it_after_enrolling_again() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let (a, b, c) = (fleet.member("a"), fleet.member("b"), fleet.member("c"));
    put(&fleet, "a", "1");
    fleet.converges(&["a", "b", "c"]);
    // One member is offline during the whole rotation; another knows the new CA but has no certificate of it.
    a.terminate();
    rotate(&fleet, &["begin"]);
    ["b", "c"].iter().for_each(|member| wait_stage(&fleet, member, "new"));
    b.terminate();
    rotate(&fleet, &["abort"]);
    wait_stage(&fleet, "c", "present");
    assert_eq!(stage(&fleet, "b"), "taken_back");
    let b = fleet.replica("b");
    wait_stage(&fleet, "b", "present");
    // No member gets a certificate that another member cannot verify.
    c.pause();
    rotate(&fleet, &["begin"]);
    wait_stage(&fleet, "b", "trusts_both");
    b.terminate();
    c.resume();
    wait_stage(&fleet, "c", "new");
    let said = refused(&fleet, &["finish"]);
    assert!(said.contains("new certificate authority: a, b;"), "{said}");
    assert!(refused(&fleet, &["finish", "--without", "c"]).contains("c does not need --without"));
    assert!(refused(&fleet, &["finish", "--without", "a"]).contains("new certificate authority: b;"));
    ["a", "b"].iter().for_each(|member| {
        for number in 0..3 {
            fleet.ok(member, &["put", "c", &format!("{member}-{number}"), "--value", "2", "--no-wait"]);
        }
    });
    let ended = rotate(&fleet, &["finish", "--without", "a", "--without", "b"]);
    assert!(ended["next"].is_null());
    ["a", "b"].iter().for_each(|member| assert_eq!(stage(&fleet, member), "former", "{member}"));
    let doctor = fleet.run("d", &["doctor"]);
    let found = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(found.contains("signed the certificates of a, b, which are rejected"), "{found}");

    let _running = ["a", "b"].map(|member| {
        let process = fleet.replica(member);
        fleet.wait(&format!("{member} knows why it is rejected"), || {
            let status = fleet.status(member);
            let problem = status["problem"].as_str().unwrap_or_default().to_owned();
            problem.contains("CA was replaced") && problem.contains("--replace")
        });
        let status = fleet.status(member);
        assert_eq!(
            (&status["outbox"], &status["healthy"], &status["quarantined"]),
            (&3.into(), &false.into(), &0.into())
        );
        let process = {
            process.kill();
            fleet.replica(member)
        };
        let token = fleet.ok("d", &["enroll", member, "--replace"]);
        fleet.ok(member, &["join", token.trim()]);
        fleet.wait_connected(member);
        process
    });
    let export = fleet.converges(&["a", "b", "c"]);
    for key in ["a-0", "a-1", "a-2", "b-0", "b-1", "b-2"] {
        assert!(export.contains(&format!("\"key\":\"{key}\"")), "{key}: {export}");
    }
    ["a", "b"].iter().for_each(|member| assert_eq!(stage(&fleet, member), "present", "{member}"));
}

#[test]
fn p13_a_rotation_survives_restarts_in_every_step_and_can_be_aborted() {
    let fleet = Fleet::new();
    let mut datastore = fleet.datastore();
    let (mut a, _b) = (fleet.member("a"), fleet.member("b"));
    put(&fleet, "a", "1");
    let before = rotate(&fleet, &["status"])["current"].clone();
    for round in 0..2 {
        let next = rotate(&fleet, &["begin"])["next"].clone();
        // Killed immediately, so members may or may not have been notified.
        datastore = datastore_restarted(&fleet, datastore);
        a = restarted(&fleet, a, "a");
        assert_eq!(rotate(&fleet, &["status"])["next"], next, "round {round}");
        ["a", "b"].iter().for_each(|member| wait_stage(&fleet, member, "new"));
        a = restarted(&fleet, a, "a");
        datastore = datastore_restarted(&fleet, datastore);
        ["a", "b"].iter().for_each(|member| fleet.wait_connected(member));
        // State that was not stored before the kill is learned again; until then `finish` waits.
        ["a", "b"].iter().for_each(|member| wait_stage(&fleet, member, "new"));
        rotate(&fleet, &["abort"]);
        datastore = datastore_restarted(&fleet, datastore);
        a = restarted(&fleet, a, "a");
        for member in ["a", "b"] {
            wait_stage(&fleet, member, "present");
            wait_roots(&fleet, member, 1);
        }
        assert_eq!(rotate(&fleet, &["status"])["current"], before);
        put(&fleet, "a", &format!("round-{round}"));
    }
    // The commands, killed at arbitrary points.
    for moment in 0..6 {
        for step in ["begin", "abort"] {
            let mut command = fleet.command("d", &[&ROTATE[..], &[step]].concat());
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
            std::thread::sleep(Duration::from_millis(moment));
            let _ = child.kill();
            child.wait().expect("waits");
            assert_eq!(rotate(&fleet, &["status"])["current"], before, "{step} at {moment} ms");
        }
    }
    let _ = fleet.run("d", &[&ROTATE[..], &["abort"]].concat());
    // While the datastore is stopped.
    datastore.terminate();
    rotate(&fleet, &["begin"]);
    assert!(refused(&fleet, &["finish"]).contains("new certificate authority: a, b;"));
    let datastore = fleet.datastore();
    ["a", "b"].iter().for_each(|member| wait_stage(&fleet, member, "new"));
    datastore.terminate();
    rotate(&fleet, &["finish"]);
    let datastore = fleet.datastore();
    for member in ["a", "b"] {
        wait_roots(&fleet, member, 1);
    }
    let _a = restarted(&fleet, a, "a");
    put(&fleet, "a", "last");
    fleet.converges(&["a", "b"]);
    drop(datastore);
}

#[test]
fn p13_the_end_of_a_rotation_is_interrupted_between_any_two_of_its_steps() {
    let (fleet, datastore, _a, _b) = begun();
    let next = rotate(&fleet, &["status"])["next"].clone();
    datastore.terminate();
    let (trust, kept) = (fleet.dir("d/trust"), fleet.dir("kept"));
    copy_dir(&trust, &kept);
    rotate(&fleet, &["finish"]);
    let done = fleet.dir("done");
    copy_dir(&trust, &done);
    // The steps: record the former CA, install the new key, complete.
    let steps: [&dyn Fn(); 3] = [
        &|| {
            std::fs::copy(done.join("former.json"), trust.join("former.json")).expect("copies");
        },
        &|| std::fs::rename(trust.join("next.key"), trust.join("ca.key")).expect("renames"),
        &|| std::fs::rename(trust.join("next.pem"), trust.join("ca.pem")).expect("renames"),
    ];
    for count in 0..=steps.len() {
        std::fs::remove_dir_all(&trust).expect("removes");
        copy_dir(&kept, &trust);
        steps[..count].iter().for_each(|step| step());
        // Reading the status of a stopped datastore changes nothing.
        let looked = rotate(&fleet, &["status"]);
        let is_done = count >= 2;
        let expected = if is_done { (&looked["current"], Value::Null) } else { (&looked["next"], next.clone()) };
        assert_eq!(expected, (&next, looked["next"].clone()), "after {count}");
        let datastore = fleet.datastore();
        ["a", "b"].iter().for_each(|member| fleet.wait_connected(member));
        put(&fleet, "a", &format!("after-{count}"));
        fleet.converges(&["a", "b"]);
        if !is_done {
            assert_eq!(rotate(&fleet, &["status"])["next"], next, "after {count}");
        }
        datastore.terminate();
    }
    let _datastore = fleet.datastore();
    ["a", "b"].iter().for_each(|member| wait_roots(&fleet, member, 1));
    fleet.converges(&["a", "b"]);
}

#[test]
fn p13_a_datastore_is_restored_from_a_ca_backup_of_each_phase() {
    // The backup is from the overlap, and the rotation was finished later: members trust only the new CA.
    let (fleet, datastore, _a, b) = begun();
    let key = key_of(&fleet);
    let overlap = fleet.dir("overlap").display().to_string();
    fleet.ok("d", &["authority", "backup", &overlap]);
    let next = rotate(&fleet, &["finish"])["current"].clone();
    ["a", "b"].iter().for_each(|member| wait_roots(&fleet, member, 1));
    put(&fleet, "a", "after");
    let export = fleet.converges(&["a", "b"]);
    destroy(&fleet, datastore);
    let report = recover(&fleet, &["--authority", &overlap, "--recovery-key", &key, "--expect", "2"]);
    assert_eq!(report["offers"].as_array().map(Vec::len), Some(2), "{report}");
    let datastore = fleet.datastore();
    ["a", "b"].iter().for_each(|member| fleet.wait_connected(member));
    assert_eq!(fleet.converges(&["a", "b"]), export);
    assert_eq!(rotate(&fleet, &["status"])["next"], next, "it continues from the copy");
    ["a", "b"].iter().for_each(|member| wait_stage(&fleet, member, "new"));
    b.terminate();
    let moment = std::time::SystemTime::now();
    assert_eq!(rotate(&fleet, &["finish"])["current"], next);

    // The backup was made after the rotation finished.
    let after = escrow_since(&fleet, "a", moment);
    destroy(&fleet, datastore);
    let report = recover(&fleet, &["--authority", &after, "--recovery-key", &key, "--expect", "1"]);
    assert_eq!(report["unheard"], serde_json::json!(["b"]));
    let datastore = fleet.datastore();
    let _b = fleet.replica("b");
    ["a", "b"].iter().for_each(|member| fleet.wait_connected(member));
    assert_eq!(fleet.converges(&["a", "b"]), export);
    assert_eq!(rotate(&fleet, &["status"])["current"], next);
    datastore.terminate();

    // A backup of the former CA is reported as such.
    std::fs::remove_file(fleet.dir("d/trust/members.json")).expect("removes");
    std::fs::remove_file(fleet.dir("d/trust/members.copy")).expect("removes");
    let said = fleet.run("d", &["authority", "restore", &overlap, "--recovery-key", &key]);
    let found = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.code() == Some(1) && found.contains("which was replaced at"), "{found}");
}

/// Its certificate cannot be verified with the CAs in the copy, so it is neither heard nor asked for its registry.
#[test]
fn p13_a_copy_of_before_a_rotation_is_not_recovered_with_beside_members_of_the_later_ca_unasked() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (a, b) = (fleet.member("a"), fleet.member("b"));
    put(&fleet, "a", "before");
    fleet.converges(&["a", "b"]);
    let key = key_of(&fleet);
    let stale = fleet.dir("stale").display().to_string();
    std::fs::copy(escrow(&fleet, "a"), &stale).expect("copies");
    a.terminate();
    rotate(&fleet, &["begin"]);
    wait_stage(&fleet, "b", "new");
    put(&fleet, "b", "since");
    fleet.converges(&["b"]);
    datastore.terminate();
    let (d, kept) = (fleet.dir("d"), fleet.dir("kept"));
    copy_dir(&d, &kept);
    let listen = fleet.listen.to_string();
    let recover = |copy: &str, flags: &[&str]| {
        let first = ["recover", "--authority", copy, "--recovery-key", &key, "--listen", &listen, "--wait", "20"];
        let output = fleet.run("d", &[&first[..], flags].concat());
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    };
    let refused = |flags: &[&str]| {
        let (code, said) = recover(&stale, flags);
        for word in ["127.0.0.1", "CA that is unknown here", "identity/escrow of that member", "--earlier-copy"] {
            assert!(code == Some(1) && said.contains(word), "{word}: {said}");
        }
        assert!(!d.join("log").exists());
    };
    // During the rotation, the datastore does not know the member's CA. The second attempt finds the CA restored.
    std::fs::remove_dir_all(&d).expect("wipes");
    (0..2).for_each(|_| refused(&[]));
    // The copy of that member is used in its place, or the operator decides.
    let copy = escrow(&fleet, "b");
    let (code, said) = recover(&copy, &["--dry-run"]);
    assert!(code == Some(0) && said.contains("from b"), "{said}");
    let a = fleet.replica("a");
    let (code, said) = recover(&stale, &["--earlier-copy"]);
    assert!(code == Some(0) && said.contains("no response: b; ") && said.contains("another CA"), "{said}");
    a.terminate();

    // After it, the member does not know the datastore's.
    std::fs::remove_dir_all(&d).expect("wipes");
    copy_dir(&kept, &d);
    let datastore = fleet.datastore();
    fleet.wait_connected("b");
    let moment = std::time::SystemTime::now();
    rotate(&fleet, &["finish", "--without", "a"]);
    wait_roots(&fleet, "b", 1);
    let copy = escrow_since(&fleet, "b", moment);
    destroy(&fleet, datastore);
    refused(&[]);
    // A member that missed the rotation is told so, and is no reason to ask.
    let _a = fleet.replica("a");
    let (code, said) = recover(&copy, &[]);
    assert!(code == Some(0) && said.contains("no response: a; ") && !said.contains("another CA"), "{said}");
    drop(b);
}

#[test]
fn p13_a_lost_file_of_a_rotation_is_reported_and_restored_from_the_ca_backup_of_a_member() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let _a = fleet.member("a");
    let key = crate::recover::key_of(&fleet);
    rotate(&fleet, &["begin"]);
    wait_stage(&fleet, "a", "new");
    let file = fleet.dir("copy").to_str().expect("text").to_owned();
    fleet.ok("d", &["authority", "backup", &file]);
    let trust = fleet.dir("d/trust");
    let next = std::fs::read(trust.join("next.key")).expect("reads");
    std::fs::remove_file(trust.join("next.pem")).expect("removes");
    let status = fleet.run("d", &["status", "--json"]);
    assert!(
        String::from_utf8_lossy(&status.stdout).contains("next.pem") && status.status.code() == Some(3),
        "{status:?}"
    );
    datastore.terminate();
    let begun = fleet.run("d", &["authority", "rotate", "begin"]);
    assert!(!begun.status.success(), "{begun:?}");
    assert_eq!(std::fs::read(trust.join("next.key")).expect("reads"), next, "the key is not overwritten");
    let refused = fleet.spawn_datastore();
    fleet.wait("it does not start", || fleet.log_of("d").contains("next.pem"));
    drop(refused);
    fleet.ok("d", &["authority", "restore", &file, "--recovery-key", &key, "--register", "here"]);
    let _datastore = fleet.datastore();
    fleet.wait_connected("a");
    assert_eq!(stage(&fleet, "a"), "new");
}
