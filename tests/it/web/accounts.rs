//! Logins, sessions, users and groups over two webservers.

use serde_json::json;

use super::ADMIN_PASSWORD;
use super::{Site, Web};
use crate::fleet::Fleet;

#[test]
fn the_calls_of_existing_clients_at_login() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    web.admin(&fleet);
    let nobody = web.nobody();
    let version = nobody.with("Authorization", "Bearer nonsense").get("/api/version").json();
    assert_eq!(version["API"]["Major"], 0);
    let form =
        nobody.send_text("POST", "/api/login", "application/x-www-form-urlencoded", "User=admin&Pass=a+stable+horse");
    let token = form.json()["JWT"].as_str().expect("JWT").to_owned();
    assert_eq!(form.json()["LoginStatus"], true);
    let cookie = form.header("set-cookie").expect("a cookie");
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    let admin = nobody.with("Authorization", &format!("Bearer {token}"));
    assert_eq!(admin.ok("GET", "/api/info/whoami")["UID"], 1);
    assert!(admin.ok("GET", "/api/settings/")["MaxResourceSize"].is_u64());
    let fresh = admin.ok("GET", "/api/login/refreshtoken")["JWT"].as_str().expect("JWT").to_owned();
    assert_eq!(nobody.with("Authorization", &format!("Bearer {fresh}")).get("/api/testauth").status, 200);
    let resource = admin.made("/api/resources", &json!({ "ResourceName": "r" }));
    let raw = format!("/api/resources/{}/raw", resource["GUID"].as_str().expect("GUID"));
    // The token is valid for three seconds, so on a busy host it may expire before its first use.
    let short_lived = || {
        let short = admin.ok("GET", "/api/login/tmptoken")["JWT"].as_str().expect("JWT").to_owned();
        let short = nobody.with("Cookie", &format!("token={short}"));
        let statuses = (short.get(&raw).status, short.get("/api/testauth").status);
        (statuses, short)
    };
    let mut tried = (0..10).map(|_| short_lived());
    let used = tried.find(|((raw, auth), _)| *raw != 401 && *auth != 401);
    let (statuses, short) = used.expect("one is used in time");
    assert_eq!(statuses, (200, 403), "it is valid only for downloads");
    fleet.wait("it has expired", || (short.get(&raw).status, short.get("/api/testauth").status) == (401, 401));

    for (user, password) in [("admin", "wrong"), ("nobody", "changeme"), ("", "")] {
        let answer = nobody.post("/api/login", &json!({ "User": user, "Pass": password }));
        let said = answer.json();
        assert_eq!((answer.status, &said["LoginStatus"]), (422, &json!(false)), "{user}");
        assert_eq!(said["Reason"], "wrong user name or password");
    }
    let mut tampered = token.clone();
    let last = tampered.pop().expect("characters");
    tampered.push(if last == '0' { '1' } else { '0' });
    for token in [tampered.as_str(), "a.b.c", "", &token[..token.len() - 2], &format!("{token}.00")] {
        assert_eq!(
            nobody.with("Authorization", &format!("Bearer {token}")).get("/api/testauth").status,
            401,
            "{token}"
        );
    }
    assert_eq!(admin.call("PUT", "/api/logout").status, 200);
    assert_eq!(admin.get("/api/testauth").status, 401);
}

#[test]
fn two_webservers_started_at_once_make_one_administrator() {
    let site = Site::new();
    let (a, b) = site.admins();
    // Changes at one webserver take a moment to reach the other.
    site.converges();
    assert_eq!(a.ok("GET", "/api/users"), b.ok("GET", "/api/users"));
    assert_eq!(a.ok("GET", "/api/users").as_array().map(Vec::len), Some(1));
    assert_eq!((a.ok("GET", "/api/rejections"), b.ok("GET", "/api/rejections")), (json!([]), json!([])));
}

#[test]
fn a_login_counts_everywhere_and_so_do_logout_lock_password_and_deletion() {
    let site = Site::new();
    let (a, b) = site.admins();
    let at_b = |client: &super::Client| {
        site.b.nobody().with("Authorization", &format!("Bearer {}", client.token())).get("/api/testauth").status
    };
    let uid = a.made(
        "/api/users",
        &json!({ "User": "bob", "Pass": "the first horse", "Name": "Bob", "Email": "", "Admin": false }),
    );
    let path = format!("/api/users/{uid}");
    let bob = site.a.login("bob", "the first horse");
    site.fleet.wait("b has received the session", || at_b(&bob) == 200);
    bob.call("PUT", "/api/logout");
    site.fleet.wait("b has received the logout", || at_b(&bob) == 401);

    let bob = site.a.login("BOB", "the first horse");
    assert_eq!(b.call("PUT", &format!("{path}/lock")).status, 200);
    site.fleet.wait("a has received the lock", || bob.get("/api/testauth").status == 401);
    let refused = site.a.nobody().post("/api/login", &json!({ "User": "bob", "Pass": "the first horse" }));
    assert_eq!(refused.status, 423);
    // A client that does not know the password does not learn of the lock.
    assert_eq!(site.a.nobody().post("/api/login", &json!({ "User": "bob", "Pass": "a second horse" })).status, 422);
    assert_eq!(b.delete(&format!("{path}/lock")).status, 200);
    site.fleet.wait("a has received the unlock", || {
        site.a.nobody().post("/api/login", &json!({ "User": "bob", "Pass": "the first horse" })).status == 200
    });

    let (bob, other) = (site.a.login("bob", "the first horse"), site.a.login("bob", "the first horse"));
    let change =
        |orig: &str| bob.put(&format!("{path}/pwd"), &json!({ "OrigPass": orig, "NewPass": "a second horse" })).status;
    assert_eq!((change("wrong"), change("the first horse")), (403, 200));
    assert_eq!((bob.get("/api/testauth").status, other.get("/api/testauth").status), (200, 401));
    assert_eq!(a.put("/api/users/1/pwd", &json!({ "NewPass": "x" })).status, 403, "not even administrators");
    assert_eq!(a.put(&format!("{path}/pwd"), &json!({ "NewPass": "a third horse" })).status, 200);
    assert_eq!(bob.get("/api/testauth").status, 401);

    let bob = site.a.login("bob", "a third horse");
    site.fleet.wait("b has received the session", || at_b(&bob) == 200);
    assert_eq!(b.delete(&path).status, 200);
    site.fleet.wait("a has received the deletion", || bob.get("/api/testauth").status == 401);
    assert_eq!(a.get(&path).status, 404);
    site.converges();
    let left = site.fleet.ok("a", &["export", "--with-secrets"]);
    assert!(!left.contains(&format!("\"{uid}/")) && !left.contains("bob"), "leftovers of a deleted user: {left}");
}

#[test]
fn users_and_groups_as_clients_expect_them() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let user = |name: &str| json!({ "User": name, "Pass": "a plain horse", "Name": "N", "Email": "e", "Admin": false });
    let uid = admin.made("/api/users", &user("bob"));
    assert_eq!(admin.post("/api/users", &user("Bob")).status, 409);
    assert_eq!(admin.post("/api/users", &user(" ")).status, 400);
    let path = format!("/api/users/{uid}");
    let shown = admin.ok("GET", &path);
    assert!(shown.get("DefaultGID").is_none() && shown["Groups"] == json!([]) && shown["Synced"] == true, "{shown}");
    // Only the name changes; the request repeats the role unchanged.
    admin.changed(&path, &json!({ "Name": "Robert", "Admin": false }));
    admin.changed(&path, &json!({ "User": "rob" }));
    let other = admin.made("/api/users", &user("bob"));
    assert_ne!(other, uid, "the name is free again");
    assert_eq!(admin.put(&path, &json!({ "User": "BOB" })).status, 409);
    admin.changed(&path, &json!({ "Admin": true }));
    assert_eq!(admin.ok("GET", &format!("{path}/admin")), json!({ "UID": uid, "Admin": true }));
    assert_eq!(admin.ok("DELETE", &format!("{path}/admin")), json!({ "UID": uid }));
    // The first administrator stays one; clients that always send the role get no error.
    admin.changed("/api/users/1", &json!({ "Name": "Root", "Admin": false }));
    assert_eq!(admin.ok("GET", "/api/users/1")["Admin"], true);
    for (method, path) in [("DELETE", "/api/users/1"), ("PUT", "/api/users/1/lock"), ("DELETE", "/api/users/1/admin")] {
        assert_eq!(admin.call(method, path).status, 403, "{method} {path}");
    }

    let gid = admin.made("/api/groups", &json!({ "Name": "g", "Desc": "" }));
    assert_eq!(admin.post("/api/groups", &json!({ "Name": "G" })).status, 409);
    admin.made(&format!("{path}/group"), &json!({ "GIDs": [gid] }));
    assert_eq!(admin.post(&format!("{path}/group"), &json!({ "GIDs": [99] })).status, 404);
    assert_eq!(admin.ok("GET", &path)["Groups"][0]["Name"], "g");
    assert_eq!(admin.ok("GET", &format!("/api/groups/{gid}/members"))[0]["UID"], uid);
    let group = format!("/api/groups/{gid}");
    admin.changed(&group, &json!({ "Name": "", "Desc": "text" }));
    assert_eq!(admin.ok("GET", &group)["Desc"], "text");
    admin.changed(&group, &json!({ "Desc": " " }));
    assert_eq!(admin.ok("GET", &group), json!({ "GID": gid, "Name": "g", "Desc": "", "Synced": true }));
    admin.changed(&format!("{path}/searchgroup"), &json!({ "GID": 77 }));
    assert_eq!(
        (admin.ok("GET", &path)["DefaultGID"].clone(), admin.ok("GET", &format!("{path}/searchgroup"))),
        (json!(77), json!(77))
    );
    admin.ok("DELETE", &format!("{path}/searchgroup"));
    assert!(admin.ok("GET", &path).get("DefaultGID").is_none());
    admin.ok("DELETE", &group);
    assert_eq!(admin.get(&group).status, 404);
    assert_eq!(admin.ok("GET", &path)["Groups"], json!([]));
    let again = admin.made("/api/groups", &json!({ "Name": "g" }));
    assert_ne!(again, gid, "IDs are not reused");

    let preferences = format!("{path}/preferences");
    assert_eq!(admin.ok("GET", &preferences), json!(null));
    let odd = r#"{"b":1.50,"a":[9007199254740993]}"#;
    assert_eq!(admin.send_text("PUT", &preferences, "application/json", odd).status, 200);
    assert_eq!(admin.get(&preferences).text(), odd, "returned unchanged");
    assert_eq!(admin.ok("GET", "/api/users/preferences").as_array().map(Vec::len), Some(1));
    admin.ok("DELETE", &path);
    assert_eq!(admin.ok("GET", "/api/users/preferences"), json!([]));
    assert_eq!(admin.get(&preferences).status, 404);
}

#[test]
fn a_random_first_password_must_be_changed_first() {
    let fleet = Fleet::new();
    let address = super::free_address();
    let program = env!("CARGO_BIN_EXE_gravwell_webserver");
    let mut command = std::process::Command::new(program);
    command.arg("--data-dir").arg(fleet.dir("a")).args(["--listen", &address.to_string(), "--insecure-disable-https"]);
    let process = crate::fleet::Process::start_printing(command, &fleet.dir("out"));
    let file = fleet.dir("a").join("initial-admin-password");
    fleet.wait("the password is kept", || {
        file.exists() && std::fs::read_to_string(&file).is_ok_and(|text| text.len() > 10)
    });
    let password = std::fs::read_to_string(&file).expect("reads").trim().to_owned();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).expect("file").permissions()) & 0o777,
        0o600
    );
    let mut web = Web { name: "a", address, process: Some(process) };
    // The password is stored before the account exists.
    let credentials = json!({ "User": "admin", "Pass": password });
    fleet.wait("the administrator exists", || web.nobody().post("/api/login", &credentials).status == 200);
    let admin = web.login("admin", &password);
    assert_eq!(admin.ok("GET", "/api/info/whoami")["MustChangePassword"], true);
    let refused = admin.get("/api/users");
    assert_eq!((refused.status, &refused.json()["MustChangePassword"]), (403, &json!(true)));
    let change = |new: &str| admin.put("/api/users/1/pwd", &json!({ "OrigPass": password, "NewPass": new })).status;
    assert_eq!((change(&password), change("a better horse")), (400, 200));
    assert_eq!(admin.get("/api/users").status, 200);
    assert!(!file.exists(), "the file is deleted after the change");
    let said = std::fs::read_to_string(fleet.dir("out")).expect("reads");
    assert!(!said.contains(&password) && said.contains("initial-admin-password"), "only the path is printed: {said}");
    web.stop();
}

/// The user who changes a password decides whether tokens are kept, and is informed of each.
#[test]
fn a_change_of_a_password_names_the_tokens_and_keeps_or_ends_them() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let uid = admin.made("/api/users", &json!({ "User": "bob", "Pass": "a plain horse" }));
    let path = format!("/api/users/{uid}/pwd");
    let of_admin = admin.made("/api/tokens", &json!({ "name": "not bob's", "capabilities": ["ListUsers"] }));
    // (user, choice, whether tokens end)
    let cases = [
        ("bob", json!(null), false),
        ("bob", json!("keep"), false),
        ("bob", json!("END"), true),
        ("admin", json!(null), true),
        ("admin", json!("keep"), false),
        ("admin", json!("end"), true),
    ];
    let mut password = "a plain horse".to_owned();
    for (n, (who, choice, ends)) in cases.into_iter().enumerate() {
        let bob = web.login("bob", &password);
        let made = bob.made("/api/tokens", &json!({ "name": format!("t{n}"), "capabilities": ["ListUsers"] }));
        let token = web.nobody().with("Gravwell-Token", made["token"].as_str().expect("value"));
        let caller = if who == "bob" { &bob } else { &admin };
        let next = format!("a plain horse no {n}");
        let wish = |tokens: &serde_json::Value| json!({ "OrigPass": password, "NewPass": next, "Tokens": tokens });
        assert_eq!(caller.put(&path, &wish(&json!("some"))).status, 400);
        let answer = caller.changed(&path, &wish(&choice));
        let named = |what: &str| {
            let list = answer["Tokens"][what].as_array().expect("a list").clone();
            assert!(list.iter().all(|one| one.get("token").is_none() && one.get("hash").is_none()), "{list:?}");
            list.into_iter().filter(|one| one["id"] == made["id"]).count()
        };
        assert_eq!(
            (named("Kept"), named("Ended")),
            (usize::from(!ends), usize::from(ends)),
            "{who} {choice}: {answer}"
        );
        assert_eq!(token.get("/api/users").status, if ends { 401 } else { 200 }, "{who} {choice}");
        password = next;
    }
    let token = web.nobody().with("Gravwell-Token", of_admin["token"].as_str().expect("value"));
    assert_eq!(token.get("/api/users").status, 200, "those of other users stay valid");
}

/// Guesses from one address, for any name, do not throttle other addresses.
#[test]
fn password_guessing_is_throttled_for_the_guesser_only() {
    let fleet = Fleet::new();
    let config = fleet.write_file("gravwell.conf", "[Global]\nWebserver-Trusted-Proxy=127.0.0.0/8\n");
    let web = Web::start(&fleet, "a", &["--config", config.to_str().expect("path")]);
    let admin = web.admin(&fleet);
    admin.made("/api/users", &json!({ "User": "bob", "Pass": "a plain horse" }));
    let attempt = |user: &str, password: &str, from: &str| {
        let client = web.nobody().with("X-Forwarded-For", from);
        let answer = client.post("/api/login", &json!({ "User": user, "Pass": password }));
        (answer.status, answer.json()["Reason"].as_str().unwrap_or_default().to_owned())
    };
    for (user, password) in [("bob", "a plain horse"), ("admin", ADMIN_PASSWORD), ("ghost", "guess")] {
        for place in ["198.51.100.7", "2001:db8:0:1::1"] {
            for _ in 0..5 {
                assert_eq!(attempt(user, "guess", place), (422, "wrong user name or password".into()));
            }
            // Known, unknown and special names are throttled alike, and the correct password does not help.
            let locked = (423, "too many failed logins with this name; try again later".to_owned());
            assert_eq!(attempt(&user.to_uppercase(), password, place), locked, "{user}");
        }
        assert_eq!(attempt(user, "guess", "2001:db8:0:1:ffff::9").0, 423, "one client may use the whole network");
        let good = if user == "ghost" { 422 } else { 200 };
        for place in ["192.0.2.1", "2001:db8:0:2::1"] {
            assert_eq!(attempt(user, password, place).0, good, "{user} from {place}");
        }
    }
}

#[test]
fn known_places_can_log_in_while_unknown_clients_guess() {
    let fleet = Fleet::new();
    let config = fleet.write_file("gravwell.conf", "[Global]\nWebserver-Trusted-Proxy=127.0.0.0/8\n");
    let web = Web::start(&fleet, "a", &["--config", config.to_str().expect("path")]);
    let admin = web.admin(&fleet);
    admin.made("/api/users", &json!({ "User": "bob", "Pass": "a plain horse" }));
    let attempt = |user: &str, password: &str, from: &str| {
        let client = web.nobody().with("X-Forwarded-For", from);
        let answer = client.post("/api/login", &json!({ "User": user, "Pass": password }));
        assert_eq!(answer.status == 429, answer.header("retry-after").is_some());
        answer.status
    };
    assert_eq!(attempt("bob", "a plain horse", "192.0.2.1"), 200);
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let (is_over, attempt) = (&is_over, &attempt);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let strangers: Vec<_> = (0..80)
            .map(|number| {
                scope.spawn(move || {
                    let (mut statuses, mut round) = (Vec::new(), 0);
                    while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                        let from = format!("198.51.{round}.{number}");
                        statuses.push(attempt(["bob", "admin", "ghost"][number % 3], "guess", &from));
                        round = (round + 1) % 256;
                    }
                    statuses
                })
            })
            .collect();
        for _ in 0..20 {
            assert_eq!(attempt("bob", "a plain horse", "192.0.2.1"), 200);
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        strangers.into_iter().flat_map(|stranger| stranger.join().expect("ends")).collect()
    });
    let of = |wanted: u16| statuses.iter().filter(|status| **status == wanted).count();
    assert_eq!(of(422) + of(429), statuses.len(), "{statuses:?}");
    assert!(of(422) > 0 && of(429) > 0, "some are served, and the queue is bounded: {statuses:?}");
}

/// All ways to set a password.
#[test]
fn a_weak_password_is_rejected_by_every_route_that_sets_one() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let first = web.nobody();
    let well_known = json!({ "User": "admin", "Pass": "changeme" });
    fleet.wait("the first administrator exists", || first.post("/api/login", &well_known).status != 503);
    let login = first.post("/api/login", &well_known).json();
    assert_eq!(login["MustChangePassword"], true, "the default password is valid only for the first login");
    let first = first.with("Authorization", &format!("Bearer {}", login["JWT"].as_str().expect("JWT")));
    assert_eq!(first.get("/api/users").status, 403);
    let weak = ["p", "elevenchars", "Password1234", "changeme1234", "123456789012", "bob-bob-bob1", "changeme"];
    let own = |client: &super::Client, uid: i64, old: &str, new: &str| {
        client.put(&format!("/api/users/{uid}/pwd"), &json!({ "OrigPass": old, "NewPass": new })).status
    };
    for password in weak.iter().filter(|password| !password.contains("bob")) {
        assert_eq!(own(&first, 1, "changeme", password), 400, "the first change: {password}");
    }
    let admin = web.admin(&fleet);
    let uid = admin.made("/api/users", &json!({ "User": "bob", "Pass": "a plain horse" })).as_i64().expect("number");
    let bob = web.login("bob", "a plain horse");
    for password in weak {
        if !password.contains("bob") {
            let made = admin.post("/api/users", &json!({ "User": "eve", "Pass": password }));
            assert_eq!(made.status, 400, "created: {password}");
        }
        assert_eq!(own(&bob, uid, "a plain horse", password), 400, "own password: {password}");
        assert_eq!(own(&admin, uid, "", password), 400, "password of another user: {password}");
    }
    assert_eq!(web.nobody().post("/api/login", &json!({ "User": "bob", "Pass": "a plain horse" })).status, 200);
}
