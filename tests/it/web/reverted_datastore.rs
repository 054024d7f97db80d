//! Webservers that keep running while their datastore is reverted to an earlier state, or is rebuilt from another member.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use super::{ADMIN_PASSWORD, Site, Web};
use crate::recover::{destroy, key_of};

fn follows(site: &Site, former: u64) -> u64 {
    let generation = |name: &str| site.fleet.status(name)["generation"].as_u64().unwrap_or_default();
    for name in ["a", "b"] {
        let is_level = || generation(name) > former && site.fleet.status(name)["connected"] == true;
        site.fleet.wait(&format!("{name} has caught up"), is_level);
    }
    generation("a")
}

#[test]
fn p06_webservers_go_on_writing_after_a_restore_and_after_a_recovery() {
    let mut site = Site::new();
    let (a, _) = site.admins();
    let make = |client: &super::Client, name: &str| client.made("/api/dashboards", &json!({ "Name": name }));
    let early = make(&a, "early");
    site.converges();
    let seq = site.fleet.status("d")["head"].to_string();
    let gone: Vec<_> = (0..5).map(|number| make(&a, &format!("gone {number}"))).collect();
    site.converges();
    let place = site.fleet.dir("backups").display().to_string();
    site.fleet.ok("d", &["backup", "create", &place]);
    site.stop_datastore();
    let waiting = make(&a, "made while offline");
    site.fleet.ok("d", &["restore", &place, "--at", &seq, "--replace"]);
    site.start_datastore();
    let generation = follows(&site, 1);
    // The same processes continue to write; nothing waits forever. Earlier sessions have ended.
    site.fleet.wait("the restore has ended the session", || a.get("/api/dashboards").status == 401);
    let (a, b) = (site.a.login("admin", ADMIN_PASSWORD), site.b.login("admin", ADMIN_PASSWORD));
    let after = make(&a, "after the restore");
    let there = b.made("/api/dashboards", &json!({ "Name": "at the other" }));
    site.converges();
    let status = |client: &super::Client, id: &serde_json::Value| client.get(&format!("/api/dashboards/{id}")).status;
    for id in [&early, &waiting, &after, &there] {
        assert_eq!((status(&a, id), status(&b, id)), (200, 200), "{id}");
    }
    gone.iter().for_each(|id| assert_eq!(status(&b, id), 404));

    // The log is rebuilt from b, which lacks a's last changes, and continues; a runs all the time.
    let key = key_of(&site.fleet);
    site.b.stop();
    let own = make(&a, "only at a");
    site.fleet.converges(&["a"]);
    destroy(&site.fleet, site.datastore.take().expect("runs"));
    let from = site.fleet.dir("b").display().to_string();
    site.fleet.ok("d", &["recover", "--from", &from, "--recovery-key", &key]);
    site.b.restart(&site.fleet, &[]);
    site.start_datastore();
    follows(&site, generation);
    let last = make(&a, "after the recovery");
    site.converges();
    for id in [&own, &last] {
        assert_eq!((status(&a, id), status(&b, id)), (200, 200), "{id}");
    }
}

/// Clients write to a without pause, so that some writes are being synced at the moment at which a leaves its history.
#[test]
fn p01_writes_that_are_accepted_while_a_history_is_left_are_kept() {
    const CLIENTS: usize = 12;
    let mut site = Site::new();
    let (a, _) = site.admins();
    site.converges();
    site.b.stop();
    for number in 0..20 {
        a.made("/api/dashboards", &json!({ "Name": format!("lost part {number}") }));
    }
    site.fleet.converges(&["a"]);
    let key = key_of(&site.fleet);
    destroy(&site.fleet, site.datastore.take().expect("runs"));
    let from = site.fleet.dir("b").display().to_string();
    site.fleet.ok("d", &["recover", "--from", &from, "--recovery-key", &key]);
    site.b.restart(&site.fleet, &[]);
    let has_ended = AtomicBool::new(false);
    let writes = |client: usize| {
        let mut accepted = Vec::new();
        while !has_ended.load(Ordering::Relaxed) {
            let name = format!("made {client}-{}", accepted.len());
            if a.post("/api/dashboards", &json!({ "Name": name })).status == 200 {
                accepted.push(format!("\"{name}\""));
            }
        }
        accepted
    };
    let accepted: Vec<String> = std::thread::scope(|scope| {
        let writes = &writes;
        let clients: Vec<_> = (0..CLIENTS).map(|client| scope.spawn(move || writes(client))).collect();
        std::thread::sleep(Duration::from_millis(300));
        site.start_datastore();
        follows(&site, 1);
        std::thread::sleep(Duration::from_millis(300));
        has_ended.store(true, Ordering::Relaxed);
        clients.into_iter().flat_map(|client| client.join().expect("no panic")).collect()
    });
    site.converges();
    let (log, rejected) = (site.fleet.export("d"), site.fleet.ok("a", &["outbox", "--json"]));
    let lost: Vec<_> = accepted.iter().filter(|name| !log.contains(*name) && !rejected.contains(*name)).collect();
    assert!(lost.is_empty() && accepted.len() > CLIENTS, "{} of {} are lost: {lost:?}", lost.len(), accepted.len());
}

/// Accounts that were created or promoted at a are deleted at b, which had seen them. The log is rebuilt without all of
/// these changes, and both reconnect.
fn deleted_accounts(is_deleter_first: bool) {
    let mut site = Site::new();
    let (admin, other) = site.admins();
    let c = site.fleet.member("c");
    let user = |name: &str| admin.made("/api/users", &json!({ "User": name, "Pass": "a plain horse" }));
    let (carol, key) = (user("carol"), key_of(&site.fleet));
    site.fleet.converges(&["a", "b", "c"]);
    c.terminate();
    let bob = user("bob");
    admin.changed(&format!("/api/users/{carol}/admin"), &json!({}));
    let bobs = site.a.login("bob", "a plain horse");
    let asked = json!({ "name": "bob's", "capabilities": ["DashboardRead"] });
    let token = bobs.made("/api/tokens", &asked)["token"].as_str().expect("a value").to_owned();
    site.converges();
    site.a.stop();
    for uid in [&bob, &carol] {
        assert_eq!(other.delete(&format!("/api/users/{uid}")).status, 200);
    }
    site.fleet.converges(&["b"]);
    site.b.stop();
    destroy(&site.fleet, site.datastore.take().expect("runs"));
    let from = site.fleet.dir("c").display().to_string();
    site.fleet.ok("d", &["recover", "--from", &from, "--recovery-key", &key]);
    site.start_datastore();
    let order: [(&str, &mut Web); 2] = match is_deleter_first {
        true => [("b", &mut site.b), ("a", &mut site.a)],
        false => [("a", &mut site.a), ("b", &mut site.b)],
    };
    for (name, web) in order {
        web.restart(&site.fleet, &[]);
        site.fleet.wait_connected(name);
        site.fleet.converges(&[name]);
    }
    site.converges();
    for web in [&site.a, &site.b] {
        for name in ["bob", "carol"] {
            let login = web.nobody().post("/api/login", &json!({ "User": name, "Pass": "a plain horse" }));
            assert_ne!(login.status, 200, "{name} was deleted; deleting webserver first: {is_deleter_first}");
        }
        assert_eq!(web.nobody().with("Gravwell-Token", &token).get("/api/dashboards").status, 401);
    }
    let refused = site.b.login("admin", ADMIN_PASSWORD).ok("GET", "/api/rejections");
    assert_eq!(refused.as_array().map(Vec::len), Some(0), "the deletion was committed: {refused}");
}

#[test]
fn p04_an_account_that_was_deleted_in_a_lost_history_lets_nobody_in_in_either_order() {
    deleted_accounts(true);
    deleted_accounts(false);
}

/// An administrator takes rights away at a, the log loses that, and their former holders change what they can at b before a
/// reconnects.
#[test]
fn p11_a_right_that_was_taken_away_in_a_lost_history_stays_taken_whatever_was_done_since() {
    const PASSWORD: &str = "a plain horse";
    const RESET: &str = "a newer horse";
    let mut site = Site::new();
    let (admin, _) = site.admins();
    let c = site.fleet.member("c");
    let group = admin.made("/api/groups", &json!({ "Name": "finance", "Desc": "" }));
    let user = |name: &str| {
        let uid = admin.made("/api/users", &json!({ "User": name, "Pass": PASSWORD, "Admin": name == "eve" }));
        (name.to_owned(), uid)
    };
    let users = ["mal", "eve", "gus", "pat"].map(user);
    let [mal, eve, gus, pat] = users.each_ref().map(|(_, uid)| uid);
    admin.made(&format!("/api/users/{gus}/group"), &json!({ "GIDs": [group] }));
    let key = key_of(&site.fleet);
    site.fleet.converges(&["a", "b", "c"]);
    c.terminate();
    let admin = site.a.login("admin", ADMIN_PASSWORD);
    for (_, uid) in &users {
        admin.changed(&format!("/api/users/{uid}"), &json!({ "Name": "under suspicion" }));
    }
    admin.changed(&format!("/api/users/{mal}/lock"), &json!({}));
    assert_eq!(admin.delete(&format!("/api/users/{eve}/admin")).status, 200);
    assert_eq!(admin.delete(&format!("/api/users/{gus}/group/{group}")).status, 200);
    admin.changed(&format!("/api/users/{pat}/pwd"), &json!({ "NewPass": RESET }));
    site.converges();
    site.a.stop();
    site.b.stop();
    destroy(&site.fleet, site.datastore.take().expect("runs"));
    let from = site.fleet.dir("c").display().to_string();
    site.fleet.ok("d", &["recover", "--from", &from, "--recovery-key", &key]);
    site.start_datastore();
    site.b.restart(&site.fleet, &[]);
    site.fleet.wait_connected("b");
    site.fleet.converges(&["b"]);
    let thieves = users.each_ref().map(|(name, uid)| {
        let thief = site.b.login(name, PASSWORD);
        thief.changed(&format!("/api/users/{uid}"), &json!({ "Email": "changed@example.org" }));
        assert_eq!(thief.delete("/api/logout").status, 200, "a new epoch");
        site.b.login(name, PASSWORD)
    });
    site.fleet.converges(&["b"]);
    site.a.restart(&site.fleet, &[]);
    site.converges();
    for web in [&site.a, &site.b] {
        let root = web.login("admin", ADMIN_PASSWORD);
        assert_eq!(root.ok("GET", &format!("/api/users/{mal}/locked")), true);
        assert_ne!(root.ok("GET", &format!("/api/users/{eve}/admin"))["Admin"], true);
        assert_eq!(root.ok("GET", &format!("/api/users/{gus}/group")), json!([]));
        let logs_in =
            |password: &str| web.nobody().post("/api/login", &json!({ "User": "pat", "Pass": password })).status == 200;
        assert!(logs_in(RESET) && !logs_in(PASSWORD), "the password was reset");
        for number in [0, 3] {
            let bearer = format!("Bearer {}", thieves[number].token());
            let status = web.nobody().with("Authorization", &bearer).get("/api/testauth").status;
            assert_eq!(status, 401, "a session that was opened since: {}", users[number].0);
        }
    }
}
