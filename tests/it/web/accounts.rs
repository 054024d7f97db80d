//! Logins, sessions, users and groups over two webservers.

use serde_json::json;

use super::{Site, Web};
use crate::fleet::Fleet;

#[test]
fn w1_the_calls_of_existing_clients_at_login() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    web.admin(&fleet);
    let nobody = web.nobody();
    let version = nobody.with("Authorization", "Bearer nonsense").get("/api/version").json();
    assert_eq!(version["API"]["Major"], 0);
    let form = nobody.send_text("POST", "/api/login", "application/x-www-form-urlencoded", "User=admin&Pass=changeme");
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
    let short = admin.ok("GET", "/api/login/tmptoken")["JWT"].as_str().expect("JWT").to_owned();
    let short = nobody.with("Cookie", &format!("token={short}"));
    assert_eq!((short.get(&raw).status, short.get("/api/testauth").status), (200, 403), "it is for downloads");
    std::thread::sleep(std::time::Duration::from_millis(3100));
    assert_eq!((short.get(&raw).status, short.get("/api/testauth").status), (401, 401));

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
fn w2_two_webservers_started_at_once_make_one_administrator() {
    let site = Site::new();
    let (a, b) = site.admins();
    // What was made at one of them is on its way to the other.
    site.converges();
    assert_eq!(a.ok("GET", "/api/users"), b.ok("GET", "/api/users"));
    assert_eq!(a.ok("GET", "/api/users").as_array().map(Vec::len), Some(1));
    assert_eq!((a.ok("GET", "/api/rejections"), b.ok("GET", "/api/rejections")), (json!([]), json!([])));
}

#[test]
fn w3_a_login_counts_everywhere_and_so_do_logout_lock_password_and_deletion() {
    let site = Site::new();
    let (a, b) = site.admins();
    let at_b = |client: &super::Client| {
        site.b.nobody().with("Authorization", &format!("Bearer {}", client.token())).get("/api/testauth").status
    };
    let uid =
        a.made("/api/users", &json!({ "User": "bob", "Pass": "one", "Name": "Bob", "Email": "", "Admin": false }));
    assert_eq!(uid, 2, "numbers are small while the datastore is there");
    let bob = site.a.login("bob", "one");
    site.fleet.wait("b knows the session", || at_b(&bob) == 200);
    bob.call("PUT", "/api/logout");
    site.fleet.wait("b knows the logout", || at_b(&bob) == 401);

    let bob = site.a.login("BOB", "one");
    assert_eq!(b.call("PUT", "/api/users/2/lock").status, 200);
    site.fleet.wait("a knows the lock", || bob.get("/api/testauth").status == 401);
    let refused = site.a.nobody().post("/api/login", &json!({ "User": "bob", "Pass": "one" }));
    assert_eq!(refused.status, 423);
    // Who does not know the password does not learn of the lock.
    assert_eq!(site.a.nobody().post("/api/login", &json!({ "User": "bob", "Pass": "two" })).status, 422);
    assert_eq!(b.delete("/api/users/2/lock").status, 200);
    site.fleet.wait("a knows that it is open", || {
        site.a.nobody().post("/api/login", &json!({ "User": "bob", "Pass": "one" })).status == 200
    });

    let (bob, other) = (site.a.login("bob", "one"), site.a.login("bob", "one"));
    let change = |orig: &str| bob.put("/api/users/2/pwd", &json!({ "OrigPass": orig, "NewPass": "two" })).status;
    assert_eq!((change("wrong"), change("one")), (403, 200));
    assert_eq!((bob.get("/api/testauth").status, other.get("/api/testauth").status), (200, 401));
    assert_eq!(a.put("/api/users/1/pwd", &json!({ "NewPass": "x" })).status, 403, "not even administrators");
    assert_eq!(a.put("/api/users/2/pwd", &json!({ "NewPass": "three" })).status, 200);
    assert_eq!(bob.get("/api/testauth").status, 401);

    let bob = site.a.login("bob", "three");
    site.fleet.wait("b knows the session", || at_b(&bob) == 200);
    assert_eq!(b.delete("/api/users/2").status, 200);
    site.fleet.wait("a knows the deletion", || bob.get("/api/testauth").status == 401);
    assert_eq!(a.get("/api/users/2").status, 404);
    site.converges();
    let left = site.fleet.ok("a", &["export", "--with-secrets"]);
    assert!(!left.contains("\"2/") && !left.contains("bob"), "something is left of a deleted user: {left}");
}

#[test]
fn w4_users_and_groups_as_clients_expect_them() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let user = |name: &str| json!({ "User": name, "Pass": "p", "Name": "N", "Email": "e", "Admin": false });
    let uid = admin.made("/api/users", &user("bob"));
    assert_eq!(admin.post("/api/users", &user("Bob")).status, 409);
    assert_eq!(admin.post("/api/users", &user(" ")).status, 400);
    let path = format!("/api/users/{uid}");
    let shown = admin.ok("GET", &path);
    assert!(shown.get("DefaultGID").is_none() && shown["Groups"] == json!([]) && shown["Synced"] == true, "{shown}");
    // A change of the name alone; the role comes with it and is the same.
    admin.changed(&path, &json!({ "Name": "Robert", "Admin": false }));
    admin.changed(&path, &json!({ "User": "rob" }));
    assert_eq!(
        admin.made("/api/users", &user("bob")),
        json!(uid.as_i64().expect("number") + 1),
        "the name is free again"
    );
    assert_eq!(admin.put(&path, &json!({ "User": "BOB" })).status, 409);
    admin.changed(&path, &json!({ "Admin": true }));
    assert_eq!(admin.ok("GET", &format!("{path}/admin")), json!({ "UID": uid, "Admin": true }));
    assert_eq!(admin.ok("DELETE", &format!("{path}/admin")), json!({ "UID": uid }));
    // The first administrator stays one, silently where clients always send the role.
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
    assert_ne!(again, gid, "numbers are not used again");

    let preferences = format!("{path}/preferences");
    assert_eq!(admin.ok("GET", &preferences), json!(null));
    let odd = r#"{"b":1.50,"a":[9007199254740993]}"#;
    assert_eq!(admin.send_text("PUT", &preferences, "application/json", odd).status, 200);
    assert_eq!(admin.get(&preferences).text(), odd, "as it came");
    assert_eq!(admin.ok("GET", "/api/users/preferences").as_array().map(Vec::len), Some(1));
    admin.ok("DELETE", &path);
    assert_eq!(admin.ok("GET", "/api/users/preferences"), json!([]));
    assert_eq!(admin.get(&preferences).status, 404);
}

#[test]
fn w5_a_random_first_password_must_be_changed_first() {
    let fleet = Fleet::new();
    let address = super::free_address();
    let program = env!("CARGO_BIN_EXE_gravwell_webserver");
    let mut command = std::process::Command::new(program);
    command.arg("--data-dir").arg(fleet.dir("a")).args(["--listen", &address.to_string(), "--insecure-disable-https"]);
    let log = std::fs::File::create(fleet.dir("out")).expect("file");
    let mut child = command.stdout(log.try_clone().expect("file")).stderr(log).spawn().expect("starts");
    let file = fleet.dir("a").join("initial-admin-password");
    fleet.wait("the password is kept", || {
        file.exists() && std::fs::read_to_string(&file).is_ok_and(|text| text.len() > 10)
    });
    let password = std::fs::read_to_string(&file).expect("reads").trim().to_owned();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).expect("file").permissions()) & 0o777,
        0o600
    );
    let web = Web { name: "a", address, process: None };
    let admin = web.login("admin", &password);
    assert_eq!(admin.ok("GET", "/api/info/whoami")["MustChangePassword"], true);
    let refused = admin.get("/api/users");
    assert_eq!((refused.status, &refused.json()["MustChangePassword"]), (403, &json!(true)));
    let change = |new: &str| admin.put("/api/users/1/pwd", &json!({ "OrigPass": password, "NewPass": new })).status;
    assert_eq!((change(&password), change("better")), (400, 200));
    assert_eq!(admin.get("/api/users").status, 200);
    assert!(!file.exists(), "the file is of no use any more");
    let said = std::fs::read_to_string(fleet.dir("out")).expect("reads");
    assert_eq!(said.matches(&password).count(), 1, "printed once: {said}");
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM)
        .expect("signals");
    child.wait().expect("ends");
}

#[test]
fn w6_guessing_is_slow() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    admin.made("/api/users", &json!({ "User": "bob", "Pass": "p" }));
    let attempt =
        |user: &str, password: &str| web.nobody().post("/api/login", &json!({ "User": user, "Pass": password })).status;
    for _ in 0..5 {
        assert_eq!(attempt("bob", "guess"), 422);
        assert_eq!(attempt("ghost", "guess"), 422);
    }
    // Known and unknown names are held back alike, and the right password does not help.
    assert_eq!((attempt("bob", "p"), attempt("ghost", "guess"), attempt("Bob", "guess")), (423, 423, 423));
    for _ in 0..5 {
        assert_eq!(attempt("admin", "guess"), 422);
    }
    let started = std::time::Instant::now();
    assert_eq!(attempt("admin", "changeme"), 200, "the first administrator is slowed down, not locked out");
    assert!(started.elapsed() >= std::time::Duration::from_secs(2));
}
