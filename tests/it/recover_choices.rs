//! Choices of an operator while a log is rebuilt: between registries, and about members that cannot be asked.

use std::path::Path;

use gravwell_env::{Clock, SystemClock};
use gravwell_transport::trust::{Authorities, Identity, NewKey, Role};

use crate::fleet::Fleet;
use crate::recover::{destroy, escrow, escrow_since, key_of};
use crate::recover_witnesses::branches;

/// Runs `recover` while members may connect; returns its exit code and what it says.
fn recover(fleet: &Fleet, key: &str, copy: &str, flags: &[&str]) -> (Option<i32>, String) {
    let listen = fleet.listen.to_string();
    let first = ["recover", "--authority", copy, "--recovery-key", key, "--listen", &listen];
    let output = fleet.run("d", &[&first[..], flags].concat());
    (output.status.code(), String::from_utf8_lossy(&[output.stderr, output.stdout].concat()).into_owned())
}

/// Returns the option in a message that names the registry in use.
fn named(text: &str) -> String {
    let after = text.split("--register ").nth(1).unwrap_or_default();
    after.split([' ', '`', ',']).next().unwrap_or_default().to_owned()
}

fn line_of(fleet: &Fleet, name: &str) -> String {
    let listed = fleet.ok("d", &["members"]);
    let line = listed.lines().find(|line| line.split_whitespace().next() == Some(name));
    line.unwrap_or_default().to_owned()
}

#[test]
fn p13_a_choice_between_registries_that_members_show_is_possible_and_holds() {
    for (own, other, is_named) in [("a", "c", true), ("c", "a", false)] {
        let fleet = Fleet::new();
        let key = branches(&fleet);
        let copies = ["a", "c"].map(|name| (name, escrow(&fleet, name)));
        let of = |name: &str| copies.iter().find(|(of, _)| *of == name).map(|(_, copy)| copy.clone()).expect("one");
        let before = std::fs::read(of(other)).expect("reads");
        let running = ["a", "c"].map(|name| fleet.replica(name));
        // Neither registry is used unasked, and each message names the way to use it.
        let (code, text) = recover(&fleet, &key, &of(own), &["--expect", "2"]);
        for word in [&format!("{other} has shown"), "identity/escrow of", "--register "] {
            assert!(code == Some(1) && text.contains(word), "{word}: {text}");
        }
        assert!(!fleet.dir("d/log").exists());
        let choice = named(&text);
        let (code, text) = recover(&fleet, &key, &of(own), &["--register", "1/00ff", "--expect", "2"]);
        assert!(code == Some(1) && text.contains("1/00ff") && text.contains(&choice), "{text}");
        let flags = if is_named { &["--register", &choice][..] } else { &["--earlier-copy"] };
        let (code, text) = recover(&fleet, &key, &of(own), &[flags, &["--expect", "2"]].concat());
        assert!(code == Some(0) && text.contains(&format!("{other} has shown")), "{text}");
        let state = if own == "a" { "revoked" } else { "enrolled" };
        assert!(line_of(&fleet, "b").contains(state), "{}", line_of(&fleet, "b"));
        // Members that have the other one are no reason to stop.
        let datastore = fleet.datastore();
        ["a", "c"].iter().for_each(|name| fleet.wait_connected(name));
        fleet.wait("it takes the chosen one", || std::fs::read(of(other)).is_ok_and(|now| now != before));
        assert_eq!(fleet.status("d")["health"]["level"], "good", "{}", fleet.status("d"));
        datastore.terminate();
        let datastore = fleet.datastore();
        fleet.wait_connected(other);
        assert_eq!(fleet.status("d")["health"]["level"], "good", "{}", fleet.status("d"));
        drop((datastore, running));
    }
}

#[test]
fn p13_of_two_branches_in_given_copies_one_is_chosen_by_name() {
    let fleet = Fleet::new();
    let key = branches(&fleet);
    let from = ["a", "c"].map(|name| fleet.dir(name).display().to_string());
    let recover = |flags: &[&str]| {
        let first = ["recover", "--recovery-key", &key, "--from", &from[0], "--from", &from[1]];
        let output = fleet.run("d", &[&first[..], flags].concat());
        (output.status.code(), String::from_utf8_lossy(&[output.stderr, output.stdout].concat()).into_owned())
    };
    let (code, text) = recover(&[]);
    assert!(code == Some(1) && text.contains("--authority FILE"), "{text}");
    let options: Vec<&str> = text.split("--register ").skip(1).collect();
    let of = |name: &str| {
        let option =
            options.iter().find(|option| option.contains(&format!("({}/identity/escrow)", fleet.dir(name).display())));
        option.and_then(|option| option.split(' ').next()).expect("is named").to_owned()
    };
    let (code, text) = recover(&["--register", &of("a")]);
    assert!(code == Some(0) && line_of(&fleet, "b").contains("revoked"), "{text}");
    let _datastore = fleet.datastore();
    let _c = fleet.replica("c");
    fleet.wait_connected("c");
    assert_eq!(fleet.status("d")["health"]["level"], "good", "{}", fleet.status("d"));
}

/// Gives a stopped member a certificate that becomes valid in some days, as if the clock of the new host were slow.
fn renew_ahead(fleet: &Fleet, member: &str) {
    let mut identity = Identity::load(&fleet.dir(member)).expect("loads");
    let ahead_ms = SystemClock.now_ms() + 10 * 24 * 3_600_000;
    let authorities = Authorities::load(&fleet.dir("d/trust")).expect("loads");
    let key = NewKey::generate(identity.name()).expect("a key");
    let signed = authorities.current().sign_member(&key.request_der, identity.name(), Role::Webserver, 30, ahead_ms);
    identity.renew(&signed.expect("signs"), &key).expect("renews");
}

#[test]
fn p13_a_log_is_not_rebuilt_beside_members_whose_certificates_are_not_accepted_unasked() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (a, b) = (fleet.member("a"), fleet.member("b"));
    fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    fleet.converges(&["a", "b"]);
    let (key, copy) = (key_of(&fleet), escrow(&fleet, "b"));
    a.terminate();
    b.terminate();
    renew_ahead(&fleet, "a");
    destroy(&fleet, datastore);
    let _a = fleet.replica("a");
    let from = fleet.dir("b").display().to_string();
    let flags = ["--from", &from, "--wait", "10"];
    let (code, text) = recover(&fleet, &key, &copy, &flags);
    for word in ["127.0.0.1", "is not valid yet", "the clock of this host shows 20", "--without 127.0.0.1"] {
        assert!(code == Some(1) && text.contains(word), "{word}: {text}");
    }
    assert!(!fleet.dir("d/log").exists());
    let (code, text) = recover(&fleet, &key, &copy, &[&flags[..], &["--without", "127.0.0.1"]].concat());
    assert!(code == Some(0) && text.contains("is not valid yet") && text.contains("continuing without it"), "{text}");
}

#[test]
fn p13_members_with_backups_that_cannot_be_read_are_named_and_can_be_left_out_one_by_one() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let a = fleet.member("a");
    let (reader, removed) = (fleet.member_as("r", "reader"), fleet.member("w"));
    fleet.ok("a", &["put", "c", "k", "--value", "1"]);
    fleet.converges(&["a", "r", "w"]);
    ["r", "w"].iter().for_each(|name| drop(escrow(&fleet, name)));
    let key = key_of(&fleet);
    removed.terminate();
    let moment = std::time::SystemTime::now();
    fleet.ok("d", &["revoke", "w", "--remove"]);
    let copy = fleet.dir("copy").display().to_string();
    std::fs::copy(escrow_since(&fleet, "a", moment), &copy).expect("copies");
    for name in ["r", "w"] {
        std::fs::write(fleet.dir(name).join("identity/escrow.left-1"), "damaged").expect("writes");
    }
    destroy(&fleet, datastore);
    let _removed = fleet.replica("w");
    let refused = |flags: &[&str], left: &[&str]| {
        let (code, text) = recover(&fleet, &key, &copy, &[&["--wait", "20"], flags].concat());
        assert_eq!(code, Some(1), "{text}");
        for name in left {
            assert!(
                text.contains(&format!("{name} did not report")) || text.contains(&format!("{name}, whose")),
                "{text}"
            );
        }
        assert!(text.contains(&format!("--without {}", left[0])) && !fleet.dir("d/log").exists(), "{text}");
    };
    refused(&[], &["r", "w"]);
    refused(&["--without", "r"], &["w"]);
    let without = ["--without", "r", "--without", "w"];
    let (code, text) = recover(&fleet, &key, &copy, &[&["--wait", "20"][..], &without].concat());
    assert!(code == Some(0) && text.contains("r did not report") && text.contains("continuing without it"), "{text}");
    // The same for a directory that is named.
    let from = fleet.dir("r").display().to_string();
    drop((a, reader));
    std::fs::remove_dir_all(fleet.dir("d")).expect("removes");
    let offline = |flags: &[&str]| {
        let first = ["recover", "--authority", &copy, "--recovery-key", &key, "--from", &from, "--dry-run"];
        fleet.run("d", &[&first[..], flags].concat())
    };
    let said = String::from_utf8_lossy(&offline(&[]).stderr).into_owned();
    assert!(said.contains("escrow.left-1") && said.contains("--without r"), "{said}");
    let done = offline(&["--without", "r"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(Path::new(&from).join("identity/escrow.left-1").exists());
}
