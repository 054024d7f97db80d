//! Checks of witnesses and members when a log is rebuilt.

use std::path::Path;
use std::process::Output;

use crate::files::copy_dir;
use crate::fleet::{Fleet, Process};
use crate::recover::{destroy, escrow, escrow_since, key_of};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stderr[..], &output.stdout[..]].concat()).into_owned()
}

fn put(fleet: &Fleet, at: &str, prefix: &str, count: u64) {
    for number in 0..count {
        fleet.ok(at, &["put", "c", &format!("{prefix}{number}"), "--value", "1"]);
    }
}

fn replace_dir(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    copy_dir(from, to);
}

fn path(fleet: &Fleet, name: &str) -> String {
    fleet.dir(name).display().to_string()
}

#[test]
fn p13_copies_of_one_member_are_distinguished_and_their_fork_is_reported() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let a = fleet.member("a");
    put(&fleet, "a", "shared", 3);
    fleet.converges(&["a"]);
    let key = key_of(&fleet);
    a.terminate();
    datastore.terminate();
    for name in ["d", "a"] {
        replace_dir(&fleet.dir(name), &fleet.dir(&format!("{name}-copy")));
    }
    let branch = |prefix, count| {
        let (datastore, a) = (fleet.datastore(), fleet.replica("a"));
        fleet.wait_connected("a");
        put(&fleet, "a", prefix, count);
        fleet.converges(&["a"]);
        a.terminate();
        datastore.terminate();
    };
    branch("one", 4);
    replace_dir(&fleet.dir("a"), &fleet.dir("a-one"));
    for name in ["d", "a"] {
        replace_dir(&fleet.dir(&format!("{name}-copy")), &fleet.dir(name));
    }
    branch("two", 2);
    std::fs::remove_dir_all(fleet.dir("d")).expect("removes");
    let (one, two) = (path(&fleet, "a-one"), path(&fleet, "a"));
    for order in [[&one, &two], [&two, &one]] {
        let refused = fleet.run("d", &["recover", "--recovery-key", &key, "--from", order[0], "--from", order[1]]);
        assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
        let said = said(&refused);
        let named = format!("a in {one}");
        assert!(said.contains("different histories") && said.contains(&named), "{said}");
        assert!(!fleet.dir("d").join("log").exists(), "nothing was changed");
    }
    let ambiguous = ["recover", "--recovery-key", &key, "--from", &one, "--from", &two, "--member", "a"];
    assert!(said(&fleet.run("d", &ambiguous)).contains("a in "), "the copies are listed");
    let named = format!("a in {two}");
    fleet.ok("d", &["recover", "--recovery-key", &key, "--from", &one, "--from", &two, "--member", &named]);
    assert!(fleet.ok("d", &["ls", "c"]).contains("two1"));
}

#[test]
fn p13_a_leftover_index_is_checked_before_a_log_is_rebuilt() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let a = fleet.member("a");
    put(&fleet, "a", "both", 4);
    fleet.converges(&["a"]);
    let key = key_of(&fleet);
    a.terminate();
    put(&fleet, "d", "datastore", 3);
    fleet.wait("the index has caught up", || fleet.status("d")["seq"] == 7);
    datastore.terminate();
    std::fs::remove_dir_all(fleet.dir("d").join("log")).expect("removes");
    let from = path(&fleet, "a");
    let flags = ["recover", "--recovery-key", &key, "--from", &from];
    let refused = fleet.run("d", &flags);
    assert_eq!(refused.status.code(), Some(1));
    let text = said(&refused);
    assert!(text.contains("is at sequence 7, and the chosen member is at 4"), "{text}");
    // As the remedy suggests, the index restores the log.
    let index = path(&fleet, "d/state");
    fleet.ok("d", &["repair", "--from", &index, "--accept-loss"]);
    let datastore = fleet.datastore();
    assert!(fleet.ok("d", &["ls", "c"]).contains("datastore2"));
    datastore.terminate();
    // Alternatively, the index is moved away.
    std::fs::remove_dir_all(fleet.dir("d").join("log")).expect("removes");
    std::fs::rename(fleet.dir("d/state"), fleet.dir("d/state.aside")).expect("renames");
    fleet.ok("d", &flags);
    assert!(!fleet.ok("d", &["ls", "c"]).contains("datastore2"));
}

#[test]
fn p13_a_log_is_not_repaired_from_a_member_whose_history_is_not_the_indexs() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let a = fleet.member("a");
    put(&fleet, "a", "shared", 3);
    fleet.converges(&["a"]);
    a.terminate();
    datastore.terminate();
    replace_dir(&fleet.dir("d"), &fleet.dir("old"));
    let datastore = fleet.datastore();
    put(&fleet, "d", "true", 3);
    fleet.wait("the index has caught up", || fleet.status("d")["seq"] == 6);
    datastore.terminate();
    replace_dir(&fleet.dir("d"), &fleet.dir("true"));
    replace_dir(&fleet.dir("old"), &fleet.dir("d"));
    let (datastore, a) = (fleet.datastore(), fleet.replica("a"));
    fleet.wait_connected("a");
    put(&fleet, "a", "forked", 5);
    fleet.converges(&["a"]);
    a.terminate();
    datastore.terminate();
    replace_dir(&fleet.dir("true"), &fleet.dir("d"));
    // The entries after the shared part are removed from the log, so only the index has them.
    let log = fleet.dir("d/log");
    let open = std::fs::read_dir(&log).expect("lists").map(|entry| entry.expect("entry").path());
    let open = open.into_iter().find(|path| path.to_string_lossy().ends_with("-open.log")).expect("an open segment");
    let bytes = std::fs::read(&open).expect("reads");
    let end = bytes.iter().rposition(|byte| *byte != 0).expect("records") + 1;
    std::fs::write(&open, &bytes[..end * 6 / 10]).expect("cuts");
    let from = path(&fleet, "a");
    let refused = fleet.run("d", &["repair", "--from", &from]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("state index"), "{}", said(&refused));
    let index = path(&fleet, "d/state");
    fleet.ok("d", &["repair", "--from", &index]);
    let _datastore = fleet.datastore();
    assert!(fleet.ok("d", &["ls", "c"]).contains("true2"));
}

#[test]
fn p11_a_newer_ca_backup_replaces_one_restored_by_an_earlier_attempt() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let a = fleet.member("a");
    let key = key_of(&fleet);
    let stale = fleet.dir("stale").display().to_string();
    std::fs::copy(escrow(&fleet, "a"), &stale).expect("copies");
    let before = std::time::SystemTime::now();
    fleet.enroll("b", "webserver");
    put(&fleet, "a", "k", 2);
    fleet.converges(&["a"]);
    escrow_since(&fleet, "a", before);
    a.terminate();
    destroy(&fleet, datastore);
    let listen = fleet.listen.to_string();
    let first = ["recover", "--authority", &stale, "--recovery-key", &key, "--listen", &listen, "--wait", "1"];
    assert_eq!(fleet.run("d", &first).status.code(), Some(1), "no member connects");
    let from = path(&fleet, "a");
    let second = fleet.run("d", &["recover", "--from", &from, "--recovery-key", &key]);
    assert!(second.status.success(), "{}", said(&second));
    assert!(said(&second).contains("and replaces it"), "{}", said(&second));
    let _datastore = fleet.datastore();
    assert!(fleet.ok("d", &["members"]).contains('b'), "the member that joined later is known");
    let (_a, _b) = (fleet.replica("a"), fleet.replica("b"));
    fleet.converges(&["a", "b"]);
}

/// The index of an intentionally restored branch knows which transactions were acknowledged there, at any sequence.
#[test]
fn p13_a_restore_does_not_ignore_an_index_of_another_branch() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    put(&fleet, "d", "before", 15);
    let place = path(&fleet, "backups");
    fleet.ok("d", &["backup", "create", &place]);
    datastore.terminate();
    fleet.ok("d", &["restore", &place, "--at", "10", "--replace"]);
    let datastore = fleet.datastore();
    put(&fleet, "d", "branch", 2);
    fleet.wait("the index has caught up", || {
        let status = fleet.status("d");
        status["seq"] == status["head"]
    });
    datastore.terminate();
    let entries = std::fs::read_dir(fleet.dir("d")).expect("reads").flatten().map(|entry| entry.path());
    let is_log = |path: &std::path::PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name == "log" || name.contains(".damaged-")
    };
    entries.filter(is_log).for_each(|path| std::fs::remove_dir_all(path).expect("removes"));
    let refused = fleet.run("d", &["restore", &place]);
    let text = said(&refused);
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(
        text.contains("the index contains changes that the backup lacks") && text.contains("repair --from"),
        "{text}"
    );
    assert!(!fleet.dir("d/log").exists());
    // As the remedy suggests.
    fleet.ok("d", &["repair", "--from", &path(&fleet, "d/state"), "--accept-loss"]);
    let _datastore = fleet.datastore();
    assert!(fleet.ok("d", &["ls", "c"]).contains("branch1"));
}

/// A power failure between the two renames that install a restored log.
#[test]
fn p05_a_restore_resumes_where_one_was_interrupted_between_its_renames() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    put(&fleet, "d", "k", 5);
    let place = path(&fleet, "backups");
    fleet.ok("d", &["backup", "create", &place]);
    put(&fleet, "d", "later", 2);
    datastore.terminate();
    let log = fleet.dir("d/log");
    for is_first_done in [true, false] {
        copy_dir(&log, &fleet.dir("d/log.repaired"));
        if !is_first_done {
            std::fs::rename(&log, fleet.dir("d/log.damaged-9")).expect("renames");
        }
        let flags = if is_first_done { vec!["restore", &place, "--replace"] } else { vec!["restore", &place] };
        fleet.ok("d", &flags);
        assert!(!fleet.dir("d/log.repaired").exists());
        let datastore = fleet.datastore();
        let objects = fleet.ok("d", &["ls", "c"]);
        assert!(objects.contains("k4") && !objects.contains("later1"), "{objects}");
        datastore.terminate();
    }
}

/// Two branches of the register of members, both with a backup in `backups`: in the first, of which `a` has the sealed
/// copy, `b` is revoked; in the second, of which `c` has it, others are enrolled. Returns the recovery key.
pub fn branches(fleet: &Fleet) -> String {
    let datastore = fleet.datastore();
    let members = ["a", "b", "c"].map(|name| fleet.member(name));
    put(fleet, "a", "k", 2);
    fleet.converges(&["a", "b", "c"]);
    let (key, place) = (key_of(fleet), path(fleet, "backups"));
    ["a", "b", "c"].iter().for_each(|name| drop(escrow(fleet, name)));
    for member in members {
        member.terminate();
    }
    datastore.terminate();
    replace_dir(&fleet.dir("d"), &fleet.dir("d-old"));
    let branch = |name: &str, change: &dyn Fn()| {
        let (datastore, member) = (fleet.datastore(), fleet.replica(name));
        fleet.wait_connected(name);
        let before = std::fs::read(escrow(fleet, name)).expect("reads");
        change();
        fleet.wait("it has a later copy", || std::fs::read(escrow(fleet, name)).is_ok_and(|now| now != before));
        fleet.converges(&[name]);
        member.terminate();
        fleet.ok("d", &["backup", "create", &place]);
        datastore.terminate();
    };
    branch("a", &|| drop(fleet.ok("d", &["revoke", "b"])));
    replace_dir(&fleet.dir("d-old"), &fleet.dir("d"));
    branch("c", &|| ["x", "y", "z"].iter().for_each(|name| fleet.enroll(name, "reader")));
    std::fs::remove_dir_all(fleet.dir("d")).expect("removes");
    key
}

fn members(fleet: &Fleet) -> String {
    fleet.ok("d", &["members"])
}

fn line_of(listed: &str, name: &str) -> String {
    let line = listed.lines().find(|line| line.split_whitespace().next() == Some(name));
    line.unwrap_or_default().to_owned()
}

#[test]
fn p13_of_two_branches_of_the_register_none_is_recovered_unasked() {
    let fleet = Fleet::new();
    let key = branches(&fleet);
    let (a, c) = (path(&fleet, "a"), path(&fleet, "c"));
    for order in [[&a, &c], [&c, &a]] {
        let refused = fleet.run("d", &["recover", "--recovery-key", &key, "--from", order[0], "--from", order[1]]);
        let text = said(&refused);
        assert_eq!(refused.status.code(), Some(1), "{text}");
        for word in ["not known to continue", "a/identity/escrow", "c/identity/escrow", " b", "--authority FILE"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(!fleet.dir("d/log").exists() && !fleet.dir("d/trust/ca.key").exists(), "nothing was changed");
    }
    let chosen = escrow(&fleet, "a");
    fleet.ok("d", &["recover", "--recovery-key", &key, "--from", &a, "--from", &c, "--authority", &chosen]);
    assert!(line_of(&members(&fleet), "b").contains("revoked"), "{}", members(&fleet));
    let _datastore = fleet.datastore();
    let before = std::fs::read(escrow(&fleet, "c")).expect("reads");
    let _c = fleet.replica("c");
    fleet.wait_connected("c");
    fleet.wait("c takes the chosen one", || std::fs::read(escrow(&fleet, "c")).is_ok_and(|now| now != before));
    assert_eq!(fleet.status("d")["health"]["level"], "good", "the other one was abandoned: {}", fleet.status("d"));
}

#[test]
fn p13_a_branch_shown_by_a_member_is_evidence_without_a_decision_on_it() {
    let fleet = Fleet::new();
    let key = branches(&fleet);
    fleet.ok("d", &["recover", "--recovery-key", &key, "--from", &path(&fleet, "c")]);
    let _datastore = fleet.datastore();
    let (_b, _a) = (fleet.replica("b"), fleet.replica("a"));
    fleet.wait("it is noticed", || fleet.status("d").to_string().contains("register_went_back"));
    fleet.wait("b is disconnected", || fleet.status("b")["connected"] == false);
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(fleet.status("b")["connected"], false);
}

#[test]
fn p13_a_register_that_is_kept_by_choice_is_not_asked_about_again() {
    let fleet = Fleet::new();
    let key = branches(&fleet);
    fleet.ok("d", &["recover", "--recovery-key", &key, "--from", &path(&fleet, "c")]);
    let (datastore, _c) = (fleet.datastore(), fleet.replica("c"));
    fleet.wait_connected("c");
    datastore.terminate();
    ["log", "state"].iter().for_each(|name| std::fs::remove_dir_all(fleet.dir("d").join(name)).expect("removes"));
    let _a = fleet.replica("a");
    let (listen, other) = (fleet.listen.to_string(), escrow(&fleet, "a"));
    let recover = |flags: &[&str]| {
        let first = ["recover", "--authority", &other, "--recovery-key", &key, "--listen", &listen, "--expect", "2"];
        let output = fleet.run("d", &[&first[..], flags].concat());
        (output.status.code(), said(&output))
    };
    let (code, asked) = recover(&[]);
    assert!(code == Some(1) && asked.contains("--register here") && asked.contains("b ("), "{asked}");
    // A dry run compares members with the registry that it would put back.
    let (code, tried) = recover(&["--register", "copy", "--dry-run"]);
    assert!(code == Some(0) && tried.contains("would replace it"), "{tried}");
    // The registry cannot be written when the log is in place: the start of the datastore records the choice.
    let obstacle = fleet.dir("d/trust/members.json.next");
    std::fs::create_dir(&obstacle).expect("creates");
    let (code, done) = recover(&["--register", "here"]);
    assert!(code == Some(0) && fleet.dir("d/unfinished").exists(), "{done}");
    std::fs::remove_dir(&obstacle).expect("removes");
    assert!(line_of(&members(&fleet), "b").contains("enrolled"), "{}", members(&fleet));
    let before = std::fs::read(&other).expect("reads");
    let _datastore = fleet.datastore();
    ["a", "c"].iter().for_each(|name| fleet.wait_connected(name));
    fleet.wait("a takes the chosen one", || std::fs::read(&other).is_ok_and(|now| now != before));
    assert_eq!(fleet.status("d")["health"]["level"], "good", "{}", fleet.status("d"));
}

#[test]
fn p13_a_choice_of_a_register_holds_in_a_dry_run_and_in_a_second_attempt() {
    let fleet = Fleet::new();
    let key = branches(&fleet);
    fleet.ok("d", &["recover", "--recovery-key", &key, "--from", &path(&fleet, "c")]);
    let (datastore, c) = (fleet.datastore(), fleet.replica("c"));
    fleet.wait_connected("c");
    datastore.terminate();
    c.terminate();
    ["log", "state"].iter().for_each(|name| std::fs::remove_dir_all(fleet.dir("d").join(name)).expect("removes"));
    replace_dir(&fleet.dir("d"), &fleet.dir("kept"));
    let (listen, from, other) = (fleet.listen.to_string(), path(&fleet, "c"), escrow(&fleet, "a"));
    let recover = |flags: &[&str]| {
        let output = fleet.run("d", &[&["recover", "--listen", &listen, "--expect", "2"], flags].concat());
        (output.status.code(), said(&output))
    };
    let given = ["--authority", &other, "--recovery-key", &key, "--register"];
    // One of the members has a backup of the registry that is given up.
    for (is_key_lost, choice, state) in
        [(true, "here", "enrolled"), (true, "copy", "revoked"), (false, "copy", "revoked")]
    {
        replace_dir(&fleet.dir("kept"), &fleet.dir("d"));
        if is_key_lost {
            std::fs::remove_file(fleet.dir("d/trust/ca.key")).expect("removes");
            let (code, tried) = recover(&[&given[..], &[choice, "--from", &from, "--wait", "1", "--dry-run"]].concat());
            assert!(code == Some(0) && tried.contains("dry run"), "{choice}: {tried}");
            assert!(!fleet.dir("d/trust/ca.key").exists() && !fleet.dir("d/unfinished").exists());
        }
        let (code, first) = recover(&[&given[..], &[choice, "--wait", "1"]].concat());
        assert!(code == Some(1) && first.contains("no member with a state"), "{first}");
        let running = ["a", "c"].map(|name| fleet.replica(name));
        let (code, second) = recover(&[&given[..], &[choice, "--wait", "60"]].concat());
        assert_eq!(code, Some(0), "{is_key_lost} {choice}: {second}");
        assert!(line_of(&members(&fleet), "b").contains(state), "{}", members(&fleet));
        for member in running {
            member.terminate();
        }
    }
}

/// An exchange of the CA's directory was interrupted between its renames.
#[test]
fn p13_authority_restore_compares_what_an_interrupted_exchange_has_prepared() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let key = key_of(&fleet);
    ["x", "y"].iter().for_each(|name| fleet.enroll(name, "reader"));
    let copy = path(&fleet, "copy");
    fleet.ok("d", &["authority", "backup", &copy]);
    fleet.ok("d", &["revoke", "y"]);
    fleet.wait("it is recorded", || fleet.dir("d/register.mark").exists());
    datastore.terminate();
    let restore = ["authority", "restore", &copy, "--recovery-key", &key];
    std::fs::remove_file(fleet.dir("d/trust/ca.key")).expect("removes");
    assert!(fleet.refused("d", &restore).contains("--register here"));
    fleet.ok("d", &[&restore[..], &["--register", "copy", "--earlier-copy"]].concat());
    std::fs::rename(fleet.dir("d/trust"), fleet.dir("d/trust.next")).expect("renames");
    fleet.ok("d", &restore);
    assert!(line_of(&members(&fleet), "y").contains("enrolled"), "{}", members(&fleet));
}

#[test]
fn p13_authority_restore_asks_before_a_register_of_another_branch_takes_the_place_of_a_sound_one() {
    let fleet = Fleet::new();
    let key = branches(&fleet);
    fleet.ok("d", &["recover", "--recovery-key", &key, "--from", &path(&fleet, "a")]);
    let other = escrow(&fleet, "c");
    let restore = ["authority", "restore", &other, "--recovery-key", &key];
    for is_sound in [true, false] {
        if !is_sound {
            std::fs::remove_file(fleet.dir("d/trust/ca.key")).expect("removes");
        }
        let refused = fleet.run("d", &restore);
        let text = said(&refused);
        assert_eq!(refused.status.code(), Some(1), "{text}");
        assert!(is_sound || (text.contains("--register here") && text.contains(" b")), "{text}");
        let register = std::fs::read_to_string(fleet.dir("d/trust/members.json")).expect("reads");
        assert!(register.contains("revoked"), "{text}");
    }
    fleet.ok("d", &[&restore[..], &["--register", "here"]].concat());
    assert!(line_of(&members(&fleet), "b").contains("revoked"));
}

#[test]
fn p13_a_recovery_beside_a_damaged_register_asks_its_copy_who_was_not_heard() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (a, b) = (fleet.member("a"), fleet.member("b"));
    put(&fleet, "a", "k", 3);
    fleet.converges(&["a", "b"]);
    b.terminate();
    put(&fleet, "a", "l", 5);
    fleet.converges(&["a"]);
    // The register records what a member reports from time to time.
    let head = fleet.status("d")["head"].as_u64().expect("a number");
    let is_recorded = || fleet.ok("d", &["members", "--json"]).contains(&format!("\"applied\":{head}"));
    fleet.wait("the position of a is recorded", is_recorded);
    a.terminate();
    datastore.terminate();
    ["log", "state"].iter().for_each(|name| std::fs::remove_dir_all(fleet.dir("d").join(name)).expect("removes"));
    let from = path(&fleet, "b");
    let recovered = || said(&fleet.run("d", &["recover", "--from", &from, "--dry-run"]));
    let sound = recovered();
    for word in ["are only on a ", "no response: a;"] {
        assert!(sound.contains(word), "{word}: {sound}");
    }
    let register = fleet.dir("d/trust/members.json");
    let mut bytes = std::fs::read(&register).expect("reads");
    bytes[200] ^= 1;
    std::fs::write(&register, &bytes).expect("writes");
    let damaged = recovered();
    for word in ["no response: a;", "is damaged", "using what can be read of it"] {
        assert!(damaged.contains(word), "{word}: {damaged}");
    }
    std::fs::remove_file(fleet.dir("d/trust/members.copy")).expect("removes");
    let unknown = recovered();
    assert!(unknown.contains("cannot determine which members were revoked"), "{unknown}");
}

#[test]
fn p13_a_copy_that_lacks_what_a_connected_member_knows_is_not_recovered_with_unasked() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (a, b, c) = (fleet.member("a"), fleet.member("b"), fleet.member("c"));
    put(&fleet, "a", "k", 2);
    fleet.converges(&["a", "b", "c"]);
    b.terminate();
    let key = key_of(&fleet);
    let stale = escrow(&fleet, "c");
    c.terminate();
    let before = std::fs::read(escrow(&fleet, "a")).expect("reads");
    fleet.ok("d", &["revoke", "b"]);
    fleet.wait("a has a later copy", || std::fs::read(escrow(&fleet, "a")).is_ok_and(|now| now != before));
    let later = std::fs::read(escrow(&fleet, "a")).expect("reads");
    destroy(&fleet, datastore);
    let listen = fleet.listen.to_string();
    let recover = |copy: &str, flags: &[&str]| {
        let first = ["recover", "--authority", copy, "--recovery-key", &key, "--listen", &listen, "--wait", "60"];
        fleet.run("d", &[&first[..], &["--expect", "1"], flags].concat())
    };
    for flags in [&["--dry-run"][..], &[], &[]] {
        let refused = recover(&stale, flags);
        let text = said(&refused);
        assert_eq!(refused.status.code(), Some(1), "{flags:?}: {text}");
        for word in ["a has shown", "identity/escrow of a", "--register ", "change "] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(!fleet.dir("d/log").exists(), "{flags:?}");
    }
    // Without the key, and with another copy that cannot be read, the registry that was put back is not kept unasked either.
    let left = fleet.dir("a/identity/escrow.left-1");
    std::fs::write(&left, "damaged").expect("writes");
    for flags in
        [&["--listen", &listen, "--wait", "60", "--expect", "1"][..], &["--from", &path(&fleet, "a"), "--wait", "1"]]
    {
        let refused = fleet.run("d", &[&["recover"], flags].concat());
        let text = said(&refused);
        assert_eq!(refused.status.code(), Some(1), "{flags:?}: {text}");
        assert!(text.contains("a has shown") || text.contains("escrow.left-1"), "{flags:?}: {text}");
        assert!(!fleet.dir("d/log").exists(), "{flags:?}");
    }
    // The later copy takes the place of the one that the first attempt put back.
    let copied = fleet.dir("copied").display().to_string();
    std::fs::write(&copied, &later).expect("writes");
    let unread = said(&recover(&copied, &[]));
    for word in ["a did not report", "escrow.left-1", "--earlier-copy"] {
        assert!(unread.contains(word), "{word}: {unread}");
    }
    std::fs::remove_file(&left).expect("removes");
    let recovered = recover(&copied, &[]);
    assert!(recovered.status.success(), "{}", said(&recovered));
    assert!(line_of(&members(&fleet), "b").contains("revoked"), "{}", members(&fleet));
    // If the operator wants the earlier one, no member loses the later copy.
    std::fs::remove_dir_all(fleet.dir("d")).expect("removes");
    let recovered = recover(&stale, &["--earlier-copy"]);
    let text = said(&recovered);
    assert!(recovered.status.success() && text.contains("a has shown") && text.contains("revoke them again"), "{text}");
    let datastore = fleet.datastore();
    assert!(line_of(&members(&fleet), "b").contains("enrolled"), "{}", members(&fleet));
    fleet
        .wait("a has the copy of the earlier one", || std::fs::read(escrow(&fleet, "a")).is_ok_and(|now| now != later));
    assert_eq!(std::fs::read(fleet.dir("a/identity/escrow.left-1")).expect("is kept"), later);
    let found = fleet.run("a", &["doctor"]);
    assert!(String::from_utf8_lossy(&found.stdout).contains("escrow.left-1"), "{found:?}");
    a.terminate();
    destroy(&fleet, datastore);
    // The choice holds, and is named: the later copy has the revocation.
    let again = fleet.run("d", &["recover", "--recovery-key", &key, "--from", &path(&fleet, "a")]);
    let text = said(&again);
    assert!(
        again.status.success() && text.contains("escrow.left-1 has, was given up before; it differs in b"),
        "{text}"
    );
}

/// Loses a datastore of which a copy of the CA exists that is older than a revocation and than a member, which runs.
/// Returns the recovery key, the path of the copy, and the member.
fn lost_with_later_member(fleet: &Fleet) -> (String, String, Process) {
    let datastore = fleet.datastore();
    let (a, b) = (fleet.member("a"), fleet.member("b"));
    put(fleet, "a", "k", 2);
    fleet.converges(&["a", "b"]);
    let key = key_of(fleet);
    let stale = path(fleet, "stale");
    std::fs::copy(escrow(fleet, "b"), &stale).expect("copies");
    a.terminate();
    b.terminate();
    fleet.ok("d", &["revoke", "b"]);
    let w = fleet.member("w");
    put(fleet, "w", "l", 2);
    fleet.converges(&["w"]);
    drop(escrow(fleet, "w"));
    destroy(fleet, datastore);
    (key, stale, w)
}

/// The certificate of a member that joined after the copy was made is unknown to that copy.
#[test]
fn p13_a_member_that_the_copy_does_not_know_shows_that_it_is_too_old() {
    let fleet = Fleet::new();
    let (key, stale, w) = lost_with_later_member(&fleet);
    let listen = fleet.listen.to_string();
    let recover = |flags: &[&str]| {
        let first = ["recover", "--authority", &stale, "--recovery-key", &key, "--listen", &listen, "--wait", "30"];
        fleet.run("d", &[&first[..], flags].concat())
    };
    let refused = recover(&[]);
    let text = said(&refused);
    assert_eq!(refused.status.code(), Some(1), "{text}");
    for word in ["w has shown", "identity/escrow of w", "--register "] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(!fleet.dir("d/log").exists());
    let _a = fleet.replica("a");
    let recovered = recover(&["--earlier-copy", "--expect", "1"]);
    assert!(recovered.status.success(), "{}", said(&recovered));
    drop(w);
}

/// It connects after all members that the copy knows have reported.
#[test]
fn p13_a_member_that_the_copy_does_not_know_is_awaited() {
    let fleet = Fleet::new();
    let (key, stale, w) = lost_with_later_member(&fleet);
    w.terminate();
    let listen = fleet.listen.to_string();
    let recover = ["recover", "--authority", &stale, "--recovery-key", &key, "--listen", &listen, "--wait", "60"];
    let mut recovering = fleet.command("d", &recover);
    recovering.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let recovering = recovering.spawn().expect("runs");
    let (_a, _b) = (fleet.replica("a"), fleet.replica("b"));
    std::thread::sleep(std::time::Duration::from_secs(6));
    let _w = fleet.replica("w");
    let said = said(&recovering.wait_with_output().expect("ends"));
    assert!(said.contains("w has shown") && said.contains("b: sequence"), "{said}");
    assert!(!fleet.dir("d").join("log").exists());
}

/// An earlier copy was put back, by mistake or for want of a later one, before the later one is at hand.
#[test]
fn p13_a_later_registry_takes_the_place_of_one_that_was_put_back_from_an_earlier_copy() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (a, b, c) = (fleet.member("a"), fleet.member("b"), fleet.member("c"));
    put(&fleet, "a", "k", 2);
    fleet.converges(&["a", "b", "c"]);
    let (key, places) = (key_of(&fleet), [path(&fleet, "place1"), path(&fleet, "place2")]);
    let later = escrow(&fleet, "a");
    drop(escrow(&fleet, "c"));
    b.terminate();
    c.terminate();
    fleet.ok("d", &["backup", "create", &places[0]]);
    let before = std::fs::read(&later).expect("reads");
    fleet.ok("d", &["revoke", "b"]);
    fleet.wait("a has a later copy", || std::fs::read(&later).is_ok_and(|now| now != before));
    put(&fleet, "a", "l", 2);
    fleet.converges(&["a"]);
    fleet.ok("d", &["backup", "create", &places[1]]);
    a.terminate();
    destroy(&fleet, datastore);
    let is_revoked = || line_of(&members(&fleet), "b").contains("revoked");
    let restore = |place: &str, flags: &[&str]| {
        said(&fleet.run("d", &[&["restore", place, "--recovery-key", &key][..], flags].concat()))
    };
    restore(&places[0], &[]);
    assert!(!is_revoked());
    // Without the key, it is not kept unasked.
    for (command, remedy) in [
        (&["restore", &places[1], "--replace"][..], "--register here"),
        (&["recover", "--from", &path(&fleet, "a")][..], "--recovery-key"),
    ] {
        if command[0] == "recover" {
            ["log", "state"].iter().for_each(|name| drop(std::fs::remove_dir_all(fleet.dir("d").join(name))));
        }
        let asked = fleet.refused("d", command);
        assert!(asked.contains("is earlier than") && asked.contains(remedy), "{asked}");
    }
    let done = restore(&places[1], &["--replace"]);
    assert!(is_revoked() && done.contains("the previous files are kept in"), "{done}");
    // The datastore was in use in between: an operator decides.
    std::fs::remove_dir_all(fleet.dir("d")).expect("removes");
    restore(&places[0], &[]);
    let datastore = fleet.datastore();
    fleet.enroll("x", "reader");
    datastore.terminate();
    let asked = restore(&places[1], &["--replace"]);
    assert!(
        asked.contains("--register here") && asked.contains("b (enrolled here, revoked in the CA backup)"),
        "{asked}"
    );
    copy_dir(&fleet.dir("d"), &fleet.dir("used"));
    let here = restore(&places[1], &["--replace", "--register", "here"]);
    assert!(!is_revoked() && here.contains("revoke again") && here.contains("b (enrolled here"), "{here}");
    replace_dir(&fleet.dir("used"), &fleet.dir("d"));
    let copy = restore(&places[1], &["--replace", "--register", "copy"]);
    assert!(is_revoked() && !members(&fleet).contains('x'), "{copy}");
    // `recover`, and `authority restore`.
    for command in ["recover", "authority restore"] {
        std::fs::remove_dir_all(fleet.dir("d")).expect("removes");
        let recover = |member: &str| {
            fleet.ok("d", &["recover", "--recovery-key", &key, "--from", &path(&fleet, member)]);
        };
        recover("c");
        assert!(!is_revoked(), "{command}");
        match command {
            "recover" => {
                ["log", "state"].iter().for_each(|name| drop(std::fs::remove_dir_all(fleet.dir("d").join(name))));
                recover("a");
            }
            _ => drop(fleet.ok("d", &["authority", "restore", &later, "--recovery-key", &key])),
        }
        assert!(is_revoked(), "{command}");
    }
    let (_datastore, _a) = (fleet.datastore(), fleet.replica("a"));
    fleet.wait_connected("a");
}
