//! A restore of an export archive that is cut short by the end of its webserver.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::Client;
use super::{ADMIN_PASSWORD, Site};

const PASSWORD: &str = "a plain horse";

fn is_shown(client: &Client) -> bool {
    client.get("/api/ready").text().contains("restore_unfinished")
}

/// Restores an archive at `a`, and kills that webserver as soon as `b` shows the restore.
fn cut_short(site: &mut Site, archive: &[u8]) {
    let (admin, archive) = (site.a.login("admin", ADMIN_PASSWORD), archive.to_vec());
    let b = site.b.nobody();
    let restoring = std::thread::spawn(move || admin.upload("POST", "/api/backup", "backup", archive.as_slice()));
    let until = Instant::now() + Duration::from_secs(120);
    while !is_shown(&b) {
        assert!(Instant::now() < until && !restoring.is_finished(), "the restore is shown while it runs");
    }
    site.a.kill();
    assert!(restoring.join().is_err(), "the response breaks off");
    site.a.restart(&site.fleet, &[]);
}

#[test]
fn p11_a_restore_that_is_killed_gives_no_right_and_is_shown_until_it_is_repeated_or_ended() {
    let mut site = Site::new();
    let (admin, _) = site.admins();
    let add = |name: &str| admin.made("/api/users", &json!({ "User": name, "Pass": PASSWORD }));
    let (alice, bob) = (add("alice"), add("bob"));
    admin.ok("PUT", &format!("/api/users/{alice}/admin"));
    for number in 0..30 {
        admin.made("/api/dashboards", &json!({ "Name": format!("d{number}"), "Data": { "x": "y".repeat(450_000) } }));
    }
    let token =
        site.a.login("alice", PASSWORD).made("/api/tokens", &json!({ "name": "t", "capabilities": ["DashboardRead"] }));
    let whole = admin.get("/api/backup");
    assert!(whole.header("warning").is_none());
    let archive = whole.body;
    admin.ok("DELETE", &format!("/api/users/{alice}/admin"));
    admin.ok("PUT", &format!("/api/users/{bob}/lock"));
    site.converges();
    let token = site.b.nobody().with("Gravwell-Token", token["token"].as_str().expect("value"));
    let adds_user = |client: &Client| client.post("/api/users", &json!({ "User": "eve", "Pass": PASSWORD })).status;
    let is_role_back = |site: &Site| {
        let admins = format!("{{\"collection\":\"admins\",\"key\":\"{alice}\"");
        site.fleet.ok("d", &["export"]).contains(&admins)
    };
    for is_repeated in [false, true] {
        let session = site.b.login("alice", PASSWORD);
        assert_eq!((adds_user(&session), token.get("/api/dashboards").status), (403, 200));
        cut_short(&mut site, &archive);
        site.converges();
        for name in ["a", "b"] {
            let reasons = site.fleet.status(name)["health"]["reasons"].to_string();
            assert!(reasons.contains("restore_unfinished"), "{name}: {reasons}");
        }
        assert!(is_shown(&site.a.nobody()) && is_shown(&site.b.nobody()));
        assert!(!is_role_back(&site), "rights come last");
        let login = json!({ "User": "alice", "Pass": PASSWORD });
        assert_eq!(site.b.nobody().post("/api/login", &login).status, 503);
        assert_eq!(token.get("/api/dashboards").status, 503, "no token is accepted");
        assert!([401, 503].contains(&adds_user(&session)));

        let admin = site.b.login("admin", ADMIN_PASSWORD);
        let mixed = admin.get("/api/backup");
        assert!(mixed.header("content-disposition").is_some_and(|name| name.contains("unfinished-restore")));
        assert!(mixed.header("warning").is_some_and(|warning| warning.contains("unfinished")));
        if is_repeated {
            let restored = admin.upload("POST", "/api/backup", "backup", archive.as_slice());
            assert_eq!(restored.status, 200, "{}", restored.text());
            let returned: Value = restored.json()["Returned"].clone();
            assert_eq!(returned["Administrators"], json!([alice.to_string()]));
            assert_eq!(returned["Unlocked"], json!([bob.to_string()]));
        } else {
            admin.ok("DELETE", "/api/backup");
            assert_eq!(admin.delete("/api/backup").status, 404);
        }
        site.converges();
        assert!(!is_shown(&site.a.nobody()) && !is_shown(&site.b.nobody()));
        assert_eq!((is_role_back(&site), token.get("/api/dashboards").status), (is_repeated, 200));
    }
    assert_eq!(site.a.login("bob", PASSWORD).get("/api/testauth").status, 200);
    let audit = || site.fleet.ok("d", &["audit", "ls", "--json"]);
    site.fleet.wait("recorded in the audit", || audit().contains(&format!("administrator {alice}")));
}
