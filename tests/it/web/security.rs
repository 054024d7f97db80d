//! Attacks, and access control.

use serde_json::json;

use super::ADMIN_PASSWORD;
use super::client::Client;
use super::{Site, Web};
use crate::fleet::Fleet;

fn configured(fleet: &Fleet, lines: &str) -> Web {
    let config = fleet.write_file("gravwell.conf", &format!("[Global]\n{lines}"));
    Web::start(fleet, "a", &["--config", config.to_str().expect("path")])
}

#[test]
fn where_capabilities_are_controlled_only_what_was_granted_is_allowed() {
    let fleet = Fleet::new();
    let web = configured(&fleet, "Enable-CBAC=true\n");
    let admin = web.admin(&fleet);
    assert_eq!(admin.ok("GET", "/api/deployment")["CBACEnabled"], true);
    let uid = admin.made("/api/users", &json!({ "User": "bob", "Pass": "a plain horse" }));
    let gid = admin.made("/api/groups", &json!({ "Name": "readers" }));
    let bob = web.login("bob", "a plain horse");
    let user = format!("/api/users/{uid}");
    let refused = bob.get("/api/dashboards");
    assert_eq!((refused.status, &refused.json()["Cap"]), (403, &json!("DashboardRead")));
    assert_eq!(bob.get("/api/info/whoami").status, 200, "users may read their own account and capabilities");
    assert_eq!(bob.ok("GET", "/api/info/capabilities/my"), json!([]));
    assert_eq!(bob.get(&format!("{user}/capabilities")).status, 403);
    assert_eq!(bob.put(&format!("{user}/capabilities"), &json!({ "Grants": ["Search"] })).status, 403);

    let granted = admin.changed(&format!("{user}/capabilities"), &json!({ "Grants": ["dashboardread"] }));
    assert_eq!(granted, json!({ "Grants": ["DashboardRead"] }));
    assert_eq!((bob.get("/api/dashboards").status, bob.post("/api/dashboards", &json!({})).status), (200, 403));
    admin.changed(&format!("/api/groups/{gid}/capabilities"), &json!({ "Grants": ["DashboardWrite"] }));
    admin.made(&format!("{user}/group"), &json!({ "GIDs": [gid] }));
    assert_eq!(
        bob.post("/api/dashboards", &json!({ "Name": "d" })).status,
        200,
        "members have the capabilities of the group"
    );
    let why = admin.ok("GET", &format!("{user}/capabilities/why"));
    let of = |name: &str| {
        let row = why.as_array().expect("a list").iter().find(|row| row["Name"] == name).expect("known");
        (row["Granted"].clone(), row["UserGrant"].clone(), row["GroupGrants"].as_array().map(Vec::len))
    };
    assert_eq!(of("DashboardRead"), (json!(true), json!(true), Some(0)));
    assert_eq!(of("DashboardWrite"), (json!(true), json!(false), Some(1)));
    assert_eq!(of("Ingest"), (json!(false), json!(false), Some(0)));
    assert_eq!(admin.put(&format!("{user}/capabilities"), &json!({ "Grants": ["Fly"] })).status, 400);
    admin.changed(&format!("{user}/tags"), &json!({ "Grants": ["web*"] }));
    assert_eq!(admin.ok("GET", &format!("{user}/tags")), json!({ "Grants": ["web*"] }));
    admin.ok("DELETE", &format!("/api/groups/{gid}"));
    assert_eq!(bob.post("/api/dashboards", &json!({ "Name": "d" })).status, 403);
    assert_eq!(admin.get("/api/dashboards").status, 200, "administrators are not restricted");
}

#[test]
fn concurrent_password_guessing_is_throttled() {
    let fleet = Fleet::new();
    let web = configured(&fleet, "Login-Fail-Lock-Count=4\nLogin-Fail-Lock-Duration=5\n");
    let admin = web.admin(&fleet);
    admin.made("/api/users", &json!({ "User": "bob", "Pass": "the right horse" }));
    let guess = |password: String| web.nobody().post("/api/login", &json!({ "User": "bob", "Pass": password })).status;
    let answers: Vec<u16> = std::thread::scope(|scope| {
        let guesses: Vec<_> = (0..24).map(|number| scope.spawn(move || guess(format!("wrong {number}")))).collect();
        guesses.into_iter().map(|guess| guess.join().expect("answers")).collect()
    });
    assert_eq!(answers.iter().filter(|status| **status == 422).count(), 4, "{answers:?}");
    // The others are throttled, or rejected because too many from one address are waiting.
    assert!(answers.iter().all(|status| [422, 423, 429].contains(status)), "{answers:?}");
    assert_eq!(guess("the right horse".into()), 423, "a throttled login must not reveal a correct password");
    // An existing session is not affected, but cannot be used to guess the old password either.
    admin.made("/api/users", &json!({ "User": "eve", "Pass": "the right horse" }));
    let eve = web.login("eve", "the right horse");
    let uid = eve.ok("GET", "/api/info/whoami")["UID"].clone();
    let change =
        |old: &str| eve.put(&format!("/api/users/{uid}/pwd"), &json!({ "OrigPass": old, "NewPass": "a newer horse" }));
    for number in 0..4 {
        assert_eq!(change(&format!("wrong {number}")).status, 403);
    }
    let late = change("the right horse");
    assert_eq!((late.status, late.text().contains("too many")), (403, true), "{}", late.text());
    assert_eq!(eve.get("/api/testauth").status, 200);
}

#[test]
fn addresses_are_those_of_clients_and_pages_from_elsewhere_get_no_cookie() {
    let fleet = Fleet::new();
    let lines = "Webserver-Access-Control-Allow-Origin=https://tools.example\nWebserver-Trusted-Proxy=127.0.0.0/8\n";
    let web = configured(&fleet, lines);
    let admin = web.admin(&fleet);
    let credentials = json!({ "User": "admin", "Pass": ADMIN_PASSWORD });
    let sessions =
        |client: &Client| client.ok("GET", "/api/users/1/sessions")["Sessions"].as_array().expect("a list").clone();
    let through = |named: &str| {
        let before: Vec<_> = sessions(&admin).iter().map(|one| one["Created"].clone()).collect();
        let answer = web.nobody().with("X-Forwarded-For", named).post("/api/login", &credentials);
        let token = answer.json()["JWT"].as_str().expect("JWT").to_owned();
        let session = web.nobody().with("Authorization", &format!("Bearer {token}"));
        let new = sessions(&session).into_iter().find(|one| !before.contains(&one["Created"]));
        new.expect("a new session")["Origin"].as_str().expect("text").to_owned()
    };
    assert_eq!(through("198.51.100.7"), "198.51.100.7");
    assert_eq!(
        through("203.0.113.1, 198.51.100.8, 127.0.0.9"),
        "198.51.100.8",
        "addresses set by the client are ignored"
    );
    assert_eq!(through("nonsense"), "127.0.0.1");
    let cookie = |site: Option<&str>| {
        let client = site.map_or_else(|| web.nobody(), |site| web.nobody().with("Sec-Fetch-Site", site));
        let answer = client.post("/api/login", &credentials);
        (answer.status, answer.header("set-cookie").is_some())
    };
    assert_eq!(cookie(None), (200, true));
    assert_eq!(cookie(Some("same-origin")), (200, true));
    assert_eq!(cookie(Some("cross-site")), (200, false));
    let from = |site: &str| {
        let client = web.nobody().with("Cookie", &format!("token={}", admin.token())).with("Sec-Fetch-Site", site);
        client.get("/api/login/tmptoken").status
    };
    assert_eq!((from("same-origin"), from("cross-site")), (200, 401), "this GET writes a session");
    let asked = web.nobody().with("Origin", "https://tools.example").with("Access-Control-Request-Method", "PUT");
    let asked = asked.call("OPTIONS", "/api/users/1");
    assert_eq!(asked.status, 204);
    assert_eq!(asked.header("access-control-allow-origin"), Some("https://tools.example"));
    assert!(asked.header("access-control-allow-methods").expect("methods").contains("PUT"));
    assert_eq!(admin.call("OPTIONS", "/api/users/1").status, 405);
}

/// A user without access gets the same response for existing and missing objects.
#[test]
fn responses_do_not_reveal_which_objects_exist() {
    let site = Site::new();
    let (a, _) = site.admins();
    a.made("/api/users", &json!({ "User": "bob", "Pass": "a plain horse" }));
    let bob = site.a.login("bob", "a plain horse");
    let id = a.made("/api/dashboards", &json!({ "Name": "d" }));
    let guid = a.made("/api/resources", &json!({ "ResourceName": "r" }))["GUID"].clone();
    let guid = guid.as_str().expect("GUID");
    let nowhere = "00000000-0000-4000-8000-000000000000";
    let pairs = [
        (format!("/api/dashboards/{id}"), "/api/dashboards/12345".to_owned(), id.to_string(), "12345"),
        (format!("/api/resources/{guid}"), format!("/api/resources/{nowhere}"), guid.to_owned(), nowhere),
        (format!("/api/resources/{guid}/raw"), format!("/api/resources/{nowhere}/raw"), guid.to_owned(), nowhere),
        ("/api/users/1".into(), "/api/users/999".into(), "1".into(), "999"),
        ("/api/groups/1".into(), "/api/groups/999".into(), "1".into(), "999"),
    ];
    for (there, missing, name, other) in pairs {
        for method in ["GET", "DELETE"] {
            let (there, missing) = (bob.call(method, &there), bob.call(method, &missing));
            let alike = there.text().replace(&name, "#") == missing.text().replace(other, "#");
            assert!(there.status == missing.status && alike, "{method}: {} {}", there.text(), missing.text());
        }
    }
    let login = |user: &str| site.a.nobody().post("/api/login", &json!({ "User": user, "Pass": "wrong" }));
    let (known, unknown) = (login("bob"), login("nobody"));
    assert_eq!((known.status, known.text()), (unknown.status, unknown.text()));
}

#[test]
fn an_administrator_changes_the_level_of_logging_and_restarts() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    assert_eq!(admin.ok("GET", "/api/logging")["Current"], "Info");
    assert!(!fleet.log_of("a").contains("/api/testauth"));
    admin.changed("/api/logging", &json!({ "Level": "Web Access" }));
    fleet.wait("requests are logged", || {
        admin.ok("GET", "/api/testauth");
        fleet.log_of("a").contains("/api/testauth")
    });
    assert_eq!(admin.put("/api/logging", &json!({ "Level": "Loud" })).status, 400);
    let id = admin.made("/api/dashboards", &json!({ "Name": "d" }));
    admin.made("/api/restart/webserver", &json!({}));
    fleet.wait("restarted", || {
        let text = fleet.log_of("a");
        text.contains("restart requested") && text.matches(&format!("http://{}", web.address)).count() == 2
    });
    let nobody = web.nobody();
    fleet.wait("responds again", || nobody.answers());
    assert_eq!(admin.ok("GET", &format!("/api/dashboards/{id}"))["Name"], "d", "the session survives the restart");
}

/// Returns every regular file below a directory.
fn files_below(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("lists").map(|entry| entry.expect("entry")) {
        match entry.file_type().expect("type") {
            kind if kind.is_dir() => found.extend(files_below(&entry.path())),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

#[test]
fn p11_nothing_that_is_kept_opens_a_request() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let made = admin.made("/api/tokens", &json!({ "name": "t", "capabilities": ["DashboardRead"] }));
    let value = made["token"].as_str().expect("a value").to_owned();
    let download = admin.ok("GET", "/api/login/refreshtoken")["JWT"].as_str().expect("JWT").to_owned();
    let mut secrets = vec![value.into_bytes()];
    for token in [admin.token(), &download] {
        let claims = token.split('.').nth(1).expect("claims");
        let bytes: Vec<u8> =
            (0..claims.len() / 2).map(|at| u8::from_str_radix(&claims[2 * at..2 * at + 2], 16).expect("hex")).collect();
        let claims: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
        let secret = claims["iat"].as_array().expect("bytes").iter();
        let secret: Vec<u8> =
            secret.map(|byte| u8::try_from(byte.as_u64().expect("a byte")).expect("a byte")).collect();
        let half: String = secret[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        secrets.extend([token.as_bytes()[..200].to_vec(), secret[..16].to_vec(), half.into_bytes()]);
    }
    assert_eq!(admin.get("/api/dashboards").status, 200);
    let copy = fleet.ok("a", &["export", "--with-secrets"]).into_bytes();
    // Preallocated space is zero.
    let used = |mut bytes: Vec<u8>| {
        bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        bytes
    };
    let files = files_below(&fleet.dir("a")).into_iter().map(|path| used(std::fs::read(path).unwrap_or_default()));
    let kept: Vec<Vec<u8>> = files.chain([copy]).collect();
    assert!(kept.iter().any(|bytes| bytes.windows(8).any(|part| part == b"sessions")), "the data contains sessions");
    for secret in &secrets {
        assert!(!kept.iter().any(|bytes| bytes.windows(secret.len()).any(|part| part == secret)), "{secret:?}");
    }
    assert!(!fleet.ok("a", &["collections"]).contains("signing-keys"));
}
