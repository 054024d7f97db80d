//! Second factors over two webservers: set up, required, used once, lost and cleared.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use gravwell_objects::totp;
use serde_json::{Value, json};

use super::client::{Answer, Client};
use super::{ADMIN_PASSWORD, Site, Web};
use crate::fleet::Fleet;

const PASSWORD: &str = "a plain horse";

/// An authenticator app that has scanned a QR code.
pub(super) struct App(Vec<u8>);

impl App {
    pub(super) fn of_seed(seed: &str) -> App {
        App(totp::seed_of(seed).expect("base 32"))
    }

    fn of(answer: &Value) -> App {
        let seed = answer["Seed"].as_str().expect("a seed");
        assert!(answer["URL"].as_str().expect("an address").contains(&format!("secret={seed}")), "{answer}");
        let picture = answer["QRCode"].as_str().expect("a picture");
        let picture = base64::engine::general_purpose::STANDARD.decode(picture).expect("base64");
        assert!(picture.starts_with(b"\x89PNG"));
        App::of_seed(seed)
    }

    /// Returns the current code, or the one `later` steps later. Both are valid for at least half a minute.
    pub(super) fn code(&self, later: u64) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        totp::code_of(&self.0, totp::step_at(now.as_secs() * 1000) + later)
    }

    /// Returns a code that is none of the app's next codes.
    pub(super) fn wrong(&self) -> String {
        let good: Vec<String> = (0..3).map(|later| self.code(later)).collect();
        (0..).map(|n| format!("{n:06}")).find(|code| !good.contains(code)).expect("a one-in-a-million collision")
    }
}

fn body(user: &str, kind: &str, code: &str) -> Value {
    let pass = if user == "admin" { ADMIN_PASSWORD } else { PASSWORD };
    json!({ "User": user, "Pass": pass, "AuthType": kind, "AuthCode": code })
}

/// Logs in as existing clients do: without a content type.
fn log_in(client: &Client, user: &str, kind: &str, code: &str) -> Answer {
    client.send_text("POST", "/api/login/mfa", "", &body(user, kind, code).to_string())
}

fn bearer(web: &Web, answer: &Answer) -> Client {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = answer.json();
    assert_eq!(answer["LoginStatus"], true, "{answer}");
    web.nobody().with("Authorization", &format!("Bearer {}", answer["JWT"].as_str().expect("JWT")))
}

/// Sets up an app; returns it with a session and the recovery codes.
fn set_up(web: &Web, user: &str) -> (App, Client, Vec<String>) {
    let (app, session, codes, _) = set_up_by_code(web, user);
    (app, session, codes)
}

/// Like [`set_up`]; also returns the code that was used.
fn set_up_by_code(web: &Web, user: &str) -> (App, Client, Vec<String>, String) {
    let begun = web.nobody().post("/api/mfa/totp/setup", &body(user, "None", ""));
    assert_eq!(begun.status, 200, "{}", begun.text());
    let app = App::of(&begun.json());
    let used = app.code(0);
    let done = web.nobody().put("/api/mfa/totp/setup", &body(user, "TOTP", &used));
    let codes = done.json()["RecoveryCodes"].as_array().expect("codes").clone();
    let codes = codes.iter().map(|code| code.as_str().expect("text").to_owned()).collect();
    (app, bearer(web, &done), codes, used)
}

fn said(answer: &Answer) -> (u16, bool, bool, bool) {
    let body = answer.json();
    let is = |name: &str| body[name] == true;
    (answer.status, is("LoginStatus"), is("MFARequired"), is("MFASetupRequired"))
}

fn add_user(admin: &Client, name: &str) -> i64 {
    admin.made("/api/users", &json!({ "User": name, "Pass": PASSWORD })).as_i64().expect("number")
}

#[test]
fn a_second_factor_is_asked_for_once_it_is_set_up_until_it_is_cleared() {
    let site = Site::new();
    let (admin, _) = site.admins();
    let uid = add_user(&admin, "bob");
    site.converges();
    let none = json!({ "TOTP": { "Enabled": false },
        "RecoveryCodes": { "Enabled": false, "Remaining": 0, "Generated": "0001-01-01T00:00:00Z" } });
    let before = site.a.login("bob", PASSWORD);
    assert_eq!(before.ok("GET", "/api/mfa"), json!({ "UserConfig": none, "MFARequired": false }));
    // Nothing is set up until a code confirms it, and a setup that was not started cannot be confirmed.
    assert_eq!(site.a.nobody().put("/api/mfa/totp/setup", &body("bob", "TOTP", "123456")).status, 409);
    let wrong = json!({ "User": "bob", "Pass": "a second horse" });
    assert_eq!(site.a.nobody().post("/api/mfa/totp/setup", &wrong).status, 422);
    let app = App::of(&site.a.nobody().post("/api/mfa/totp/setup", &body("bob", "None", "")).json());
    let unproved = site.a.nobody().put("/api/mfa/totp/setup", &body("bob", "TOTP", &app.wrong()));
    assert_eq!(unproved.status, 422, "{}", unproved.text());
    assert_eq!(
        (before.get("/api/testauth").status, site.a.login("bob", PASSWORD).get("/api/testauth").status),
        (200, 200)
    );

    let (app, session, codes, used) = set_up_by_code(&site.a, "bob");
    assert_eq!(codes.len(), 10);
    assert_eq!(
        (before.get("/api/testauth").status, session.get("/api/testauth").status),
        (401, 200),
        "other sessions end"
    );
    let shown = session.ok("GET", "/api/mfa")["UserConfig"].clone();
    assert_eq!((&shown["TOTP"]["Enabled"], &shown["RecoveryCodes"]["Remaining"]), (&json!(true), &json!(10)));
    assert_eq!(admin.ok("GET", &format!("/api/users/{uid}"))["MFA"], shown);
    // Other users must not learn who has no second factor.
    let seen_by = |client: &Client| {
        let users = client.ok("GET", "/api/users");
        users.as_array().expect("a list").iter().filter(|user| user.get("MFA").is_some()).count()
    };
    assert_eq!((seen_by(&session), seen_by(&admin) > 1), (1, true), "themselves");
    site.converges();
    for web in [&site.a, &site.b] {
        for path in ["/api/login", "/api/login/mfa"] {
            let asked = web.nobody().post(path, &json!({ "User": "bob", "Pass": PASSWORD }));
            assert_eq!(said(&asked), (200, false, true, false), "{path}");
            assert_eq!((asked.json().get("JWT"), asked.header("set-cookie")), (None, None));
            assert_eq!(asked.json()["AcceptedAuthTypes"], json!(["TOTP", "RecoveryCodes"]));
        }
        // A client that does not know the password learns nothing.
        let refused = web.nobody().post("/api/login/mfa", &wrong);
        assert_eq!(said(&refused), (422, false, false, false));
        assert_eq!(log_in(&web.nobody(), "bob", "TOTP", &app.wrong()).status, 422);
        assert_eq!(log_in(&web.nobody(), "bob", "Other", &app.code(1)).status, 400);
    }
    // The code that confirmed the app does not also start a session; the next code does, once.
    assert_eq!(log_in(&site.b.nobody(), "bob", "TOTP", &used).status, 422);
    let next = app.code(1);
    let at_b = bearer(&site.b, &log_in(&site.b.nobody(), "bob", "TOTP", &next));
    assert_eq!(at_b.get("/api/testauth").status, 200);
    site.converges();
    for web in [&site.a, &site.b] {
        let again = log_in(&web.nobody(), "bob", "TOTP", &next);
        assert!(again.status == 422 && again.text().contains("already used"), "{}", again.text());
    }

    // Recovery codes are valid once, case-insensitively; new ones replace all.
    let spoken = codes[0].to_uppercase().replace('-', " ");
    bearer(&site.a, &log_in(&site.a.nobody(), "bob", "RecoveryCodes", &spoken));
    site.converges();
    assert_eq!(log_in(&site.b.nobody(), "bob", "RecoveryCodes", &codes[0]).status, 422);
    assert_eq!(session.ok("GET", "/api/mfa")["UserConfig"]["RecoveryCodes"]["Remaining"], 9);
    let path = "/api/mfa/recoverycodes/generate";
    assert_eq!(session.post(path, &body("bob", "None", "")).status, 422, "a session alone is not enough");
    assert_eq!(session.post(path, &body("admin", "None", "")).status, 403, "another user's password is not enough");
    let made = session.made(path, &body("bob", "RecoveryCodes", &codes[1]));
    assert_eq!((&made["Enabled"], &made["Remaining"]), (&json!(true), &json!(10)));
    let fresh = made["Codes"][0].as_str().expect("a code").to_owned();
    assert_eq!(log_in(&site.a.nobody(), "bob", "RecoveryCodes", &codes[2]).status, 422);

    // Another app replaces this one only with a code of this one.
    let asked = site.a.nobody().post("/api/mfa/totp/setup", &body("bob", "None", ""));
    assert_eq!(asked.status, 422, "{}", asked.text());
    let begun = site.a.nobody().post("/api/mfa/totp/setup", &body("bob", "RecoveryCodes", &fresh));
    let second = App::of(&begun.json());
    let done = site.a.nobody().put("/api/mfa/totp/setup", &body("bob", "TOTP", &second.code(0)));
    let session = bearer(&site.a, &done);
    let code = |n: usize| done.json()["RecoveryCodes"][n].as_str().expect("a code").to_owned();
    assert_eq!(log_in(&site.a.nobody(), "bob", "TOTP", &app.code(1)).status, 422, "the former app");

    for clear in ["/api/mfa/totp/clear", "/api/mfa/clear"] {
        assert_eq!(session.post(clear, &body("bob", "None", "")).status, 422, "{clear}");
    }
    session.made("/api/mfa/clear", &body("bob", "RecoveryCodes", &code(0)));
    assert_eq!(session.ok("GET", "/api/mfa")["UserConfig"], none);
    site.converges();
    assert_eq!(site.b.login("bob", PASSWORD).get("/api/testauth").status, 200);
}

#[test]
fn one_code_counts_once_in_the_whole_fleet() {
    let site = Site::new();
    let (admin, _) = site.admins();
    for (n, kind) in [(0, "TOTP"), (1, "RecoveryCodes"), (2, "TOTP"), (3, "RecoveryCodes")] {
        let name = format!("user{n}");
        add_user(&admin, &name);
        let (app, _, codes) = set_up(&site.a, &name);
        site.converges();
        let code = if kind == "TOTP" { app.code(1) } else { codes[0].clone() };
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let (name, code) = (&name, &code);
            let attempts = [&site.a, &site.b, &site.a, &site.b].map(|web| {
                let client = web.nobody();
                scope.spawn(move || log_in(&client, name, kind, code).status)
            });
            attempts.map(|attempt| attempt.join().expect("ends")).into()
        });
        assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{kind}: {statuses:?}");
        assert!(statuses.iter().all(|status| [200, 422].contains(status)), "{kind}: {statuses:?}");
    }
}

#[test]
fn offline_a_code_is_used_once_per_webserver_and_later_once_in_the_fleet() {
    let mut site = Site::new();
    let (admin, _) = site.admins();
    let uid = add_user(&admin, "bob");
    let (app, _, codes) = set_up(&site.a, "bob");
    site.converges();
    site.stop_datastore();
    for (kind, code) in [("TOTP", app.code(1)), ("RecoveryCodes", codes[0].clone())] {
        let at_a = bearer(&site.a, &log_in(&site.a.nobody(), "bob", kind, &code));
        assert_eq!(log_in(&site.a.nobody(), "bob", kind, &code).status, 422, "{kind}: a replay");
        // The other webserver cannot reject a code of whose use it does not know.
        let at_b = bearer(&site.b, &log_in(&site.b.nobody(), "bob", kind, &code));
        assert_eq!((at_a.get("/api/testauth").status, at_b.get("/api/testauth").status), (200, 200), "{kind}");
    }
    assert_eq!(admin.ok("GET", &format!("/api/users/{uid}/sessions"))["Sessions"].as_array().map(Vec::len), Some(3));
    site.start_datastore();
    site.converges();
    let sessions = admin.ok("GET", &format!("/api/users/{uid}/sessions"));
    assert_eq!(
        sessions["Sessions"].as_array().map(Vec::len),
        Some(3),
        "two logins with one code leave one session: {sessions}"
    );
    let refused: Vec<Value> = [&site.a, &site.b]
        .into_iter()
        .flat_map(|web| web.admin(&site.fleet).ok("GET", "/api/rejections").as_array().expect("list").clone())
        .collect();
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(
        refused.iter().any(|one| one["Reason"] == "the code of the second factor was also used at another webserver"),
        "{refused:?}"
    );
}

/// A webserver that does not know of a factor yet accepts the password alone; the datastore then rejects that login.
#[test]
fn a_password_alone_does_not_outlive_a_factor_that_was_set_up_elsewhere() {
    let mut site = Site::new();
    let (admin, _) = site.admins();
    add_user(&admin, "bob");
    site.converges();
    site.stop_datastore();
    let early = site.b.login("bob", PASSWORD);
    let (_, session, _) = set_up(&site.a, "bob");
    let late = site.b.login("bob", PASSWORD);
    assert_eq!((early.get("/api/testauth").status, late.get("/api/testauth").status), (200, 200));
    site.start_datastore();
    site.converges();
    let (early, late, session) = (early.get("/api/testauth"), late.get("/api/testauth"), session.get("/api/testauth"));
    // Regardless of the order in which the logins without the factor, and the factor, were committed.
    assert_eq!((early.status, late.status, session.status), (401, 401, 200));
}

/// A webserver that does not know of it yet accepts the former password, and logins in the epoch before.
#[test]
fn p11_a_second_factor_is_set_up_only_upon_the_password_and_epoch_that_were_there() {
    let mut site = Site::new();
    let (admin, _) = site.admins();
    let users = ["bob", "carol", "dave"];
    let bob = users.map(|name| add_user(&admin, name))[0];
    site.converges();
    let begin = |name: &str| App::of(&site.b.nobody().post("/api/mfa/totp/setup", &body(name, "None", "")).json());
    let apps = users.map(begin);
    site.converges();
    site.stop_datastore();
    let finish = |(name, app): (&str, &App)| {
        bearer(&site.b, &site.b.nobody().put("/api/mfa/totp/setup", &body(name, "TOTP", &app.code(0))))
    };
    let sessions: Vec<Client> = users.into_iter().zip(&apps).map(finish).collect();
    site.b.stop();
    site.start_datastore();
    site.fleet.wait_connected("a");
    let new = "a second horse";
    admin.changed(&format!("/api/users/{bob}/pwd"), &json!({ "NewPass": new }));
    assert_eq!(site.a.login("carol", PASSWORD).delete("/api/logout").status, 200);
    site.b.restart(&site.fleet, &[]);
    site.converges();
    for web in [&site.a, &site.b] {
        let opens = |session: &Client| {
            web.nobody().with("Authorization", &format!("Bearer {}", session.token())).get("/api/testauth").status
        };
        let opened: Vec<u16> = sessions.iter().map(opens).collect();
        assert_eq!(opened, [401, 401, 200], "the login that the setup began");
        let log_in =
            |name: &str, pass: &str| said(&web.nobody().post("/api/login", &json!({ "User": name, "Pass": pass })));
        assert_eq!(log_in("bob", new), (200, true, false, false), "no factor was set up");
        assert_eq!(log_in("carol", PASSWORD), (200, true, false, false), "no factor was set up");
        assert_eq!(log_in("dave", PASSWORD), (200, false, true, false));
    }
}

#[test]
fn who_must_have_a_second_factor_sets_it_up_before_the_first_session() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    fleet.enroll("b", "webserver");
    let config = fleet.write_file("gravwell.conf", "[Global]\nMFA-Required=true\nMFA-Issuer-Name=Blue Whale\n");
    let strict = Web::start(&fleet, "a", &["--config", config.to_str().expect("path")]);
    let first = |pass: &str, kind: &str, code: &str| json!({ "User": "admin", "Pass": pass, "AuthType": kind, "AuthCode": code });
    let nobody = strict.nobody();
    fleet.wait("the first administrator exists", || {
        nobody.post("/api/login", &json!({ "User": "admin" })).status != 503
    });
    assert_eq!(said(&nobody.post("/api/login", &first("changeme", "None", ""))), (200, false, true, true));
    let begun = nobody.post("/api/mfa/totp/setup", &first("changeme", "None", "")).json();
    assert!(begun["URL"].as_str().expect("text").starts_with("otpauth://totp/Blue%20Whale:admin?"), "{begun}");
    let app = App::of(&begun);
    let done = nobody.put("/api/mfa/totp/setup", &first("changeme", "TOTP", &app.code(0)));
    assert_eq!(done.json()["MustChangePassword"], true, "the first password is valid only for the first login");
    let admin = bearer(&strict, &done);
    assert_eq!(admin.get("/api/users").status, 403);
    admin.changed("/api/users/1/pwd", &json!({ "OrigPass": "changeme", "NewPass": ADMIN_PASSWORD }));
    assert_eq!(admin.ok("GET", "/api/mfa")["MFARequired"], true);
    let code = |n: usize| done.json()["RecoveryCodes"][n].as_str().expect("a code").to_owned();
    for clear in ["/api/mfa/clear", "/api/mfa/totp/clear"] {
        assert_eq!(admin.post(clear, &body("admin", "RecoveryCodes", &code(0))).status, 403, "{clear}");
    }
    assert_eq!(admin.delete("/api/users/1/mfa/clear").status, 403, "a session alone does not clear the user's factor");
    bearer(&strict, &log_in(&nobody, "admin", "RecoveryCodes", &code(0)));

    // Sessions from a webserver that requires no second factor are valid there, but not here. Tokens are valid on both.
    let uid = add_user(&admin, "bob");
    let lax = Web::start(&fleet, "b", &[]);
    fleet.converges(&["a", "b"]);
    let bob = lax.login("bob", PASSWORD);
    let token = bob.made("/api/tokens", &json!({ "name": "t", "capabilities": ["ListUsers"] }));
    let token = token["token"].as_str().expect("value").to_owned();
    fleet.converges(&["a", "b"]);
    let here = nobody.with("Authorization", &format!("Bearer {}", bob.token()));
    assert_eq!((bob.get("/api/testauth").status, here.get("/api/testauth").status), (200, 401));
    for web in [&strict, &lax] {
        assert_eq!(web.nobody().with("Gravwell-Token", &token).get("/api/users").status, 200, "{}", web.name);
    }
    assert_eq!(said(&nobody.post("/api/login", &body("bob", "None", ""))), (200, false, true, true));
    let (_, bob, _) = set_up(&strict, "bob");
    fleet.converges(&["a", "b"]);
    let there = lax.nobody().with("Authorization", &format!("Bearer {}", bob.token()));
    assert_eq!((bob.get("/api/testauth").status, there.get("/api/testauth").status), (200, 200));
    // An administrator may impersonate the user, and clear the factor of a user who has lost the app.
    let su = admin.ok("GET", &format!("/api/users/su/{uid}"))["JWT"].as_str().expect("JWT").to_owned();
    let su = nobody.with("Authorization", &format!("Bearer {su}"));
    assert_eq!(su.get("/api/testauth").status, 200);
    assert_eq!(bob.delete(&format!("/api/users/{uid}/mfa/clear")).status, 403);
    admin.ok("DELETE", &format!("/api/users/{uid}/mfa/clear"));
    assert_eq!((bob.get("/api/testauth").status, su.get("/api/testauth").status), (401, 401));
    assert_eq!(said(&nobody.post("/api/login", &body("bob", "None", ""))), (200, false, true, true));
    assert_eq!(admin.delete("/api/users/4711/mfa/clear").status, 404);
}

#[test]
fn codes_are_throttled_regardless_of_origin_and_recorded() {
    let fleet = Fleet::new();
    let config = fleet.write_file("gravwell.conf", "[Global]\nWebserver-Trusted-Proxy=127.0.0.0/8\n");
    let web = Web::start(&fleet, "a", &["--config", config.to_str().expect("path")]);
    let admin = web.admin(&fleet);
    for name in ["bob", "eve"] {
        add_user(&admin, name);
    }
    let from = |place: &str| web.nobody().with("X-Forwarded-For", place);
    let (bob, _, codes) = set_up(&web, "bob");
    let (eve, ..) = set_up(&web, "eve");
    // From one address, wrong codes count like wrong passwords, and a correct password does not reset the count.
    for _ in 0..5 {
        assert_eq!(log_in(&from("192.0.2.1"), "eve", "RecoveryCodes", "x").status, 422);
        let half = from("192.0.2.1").post("/api/login", &body("eve", "None", ""));
        assert!([200, 423].contains(&half.status));
    }
    assert_eq!(log_in(&from("192.0.2.1"), "eve", "TOTP", &eve.code(1)).status, 423);
    bearer(&web, &log_in(&from("192.0.2.2"), "eve", "TOTP", &eve.code(1)));
    // From many addresses: the app's codes are no longer accepted, but a recovery code still works.
    for n in 0..5 {
        assert_eq!(log_in(&from(&format!("198.51.100.{n}")), "bob", "TOTP", &bob.wrong()).status, 422);
    }
    let held = log_in(&from("192.0.2.7"), "bob", "TOTP", &bob.code(1));
    assert!(held.status == 423 && held.text().contains("recovery code"), "{}", held.text());
    assert_eq!(from("192.0.2.8").put("/api/mfa/totp/setup", &body("bob", "TOTP", &bob.code(1))).status, 423);
    bearer(&web, &log_in(&from("192.0.2.7"), "bob", "RecoveryCodes", &codes[0]));
    bearer(&web, &log_in(&from("192.0.2.7"), "bob", "TOTP", &bob.code(1)));

    let rows = || {
        let query = json!({ "SearchString": "tag=audit", "Format": "json", "Duration": "1h" });
        admin.post("/api/search/direct", &query).text()
    };
    let wanted = [
        "set up a second factor",
        "log in with a second factor",
        "log in with a recovery code",
        "wrong code of the second factor",
        "wrong recovery code",
        "too many wrong codes",
    ];
    fleet.wait("recorded in the audit", || wanted.iter().all(|what| rows().contains(what)));
    let rows = rows();
    assert!(!rows.contains(&totp::seed_text(&bob.0)) && !rows.contains(&codes[1]), "the audit contains no secret");
}

#[test]
fn a_seed_leaves_the_fleet_in_no_copy_and_a_restore_leaves_factors_alone() {
    let site = Site::new();
    let (admin, _) = site.admins();
    add_user(&admin, "bob");
    let former = admin.get("/api/backup").body;
    let (app, session, codes) = set_up(&site.a, "bob");
    // A setup that was not completed.
    add_user(&admin, "eve");
    let unfinished = App::of(&site.a.nobody().post("/api/mfa/totp/setup", &body("eve", "None", "")).json());
    let exported = site.converges();
    let seeds = [totp::seed_text(&app.0), totp::seed_text(&unfinished.0)];
    let hides = |what: &str, text: &str| {
        assert!(!seeds.iter().any(|seed| text.contains(seed)), "{what} has a seed");
        assert!(!codes.iter().any(|code| text.contains(code)), "{what} has a recovery code");
        assert!(!text.contains("\"hashes\""), "{what} has hashes of recovery codes");
    };
    hides("an export", &exported);
    hides("an export", &site.fleet.ok("d", &["export"]));
    hides("the log", &site.fleet.ok("d", &["tail"]));
    hides("a backup", &admin.get("/api/backup").text());
    hides("a backup", &admin.get("/api/backup?omit_sensitive=true").text());
    for path in ["/api/log", "/api/log/collections", "/api/users", "/api/mfa", "/api/log/object/second-factors/2"] {
        hides(path, &admin.get(path).text());
    }
    site.fleet.enroll("r", "reader");
    let reader = site.fleet.replica("r");
    site.fleet.wait("the reader has caught up", || {
        let (there, here) = (site.fleet.status("d"), site.fleet.status("r"));
        here["seq"] == there["head"] && here["digest"] == there["digest"]
    });
    hides("a reader", &site.fleet.ok("r", &["export", "--with-secrets"]));
    reader.terminate();

    // A backup that knows of no factors, as from an earlier version, removes none.
    let text = String::from_utf8(former).expect("text");
    let (head, rest) = text.split_once('\n').expect("lines");
    let mut head: Value = serde_json::from_str(head).expect("JSON");
    let omitted = head["omitted"].as_array_mut().expect("list");
    omitted.retain(|name| !name.as_str().is_some_and(|name| name.starts_with("second-") || name == "recovery-codes"));
    let (rest, _) = rest.trim_end().rsplit_once("\n{\"end\"").expect("an end");
    let body_text = format!("{head}\n{rest}\n");
    let objects = rest.lines().filter(|line| line.starts_with("{\"collection\"")).count();
    let chunks = rest.lines().count() - objects;
    let end = json!({ "end": { "objects": objects, "chunks": chunks,
        "blake3": blake3::hash(body_text.as_bytes()).to_hex().to_string() } });
    let restored = admin.upload("POST", "/api/backup", "backup", format!("{body_text}{end}\n").as_bytes());
    assert_eq!(restored.status, 200, "{}", restored.text());
    assert_eq!(session.get("/api/testauth").status, 401, "sessions end");
    assert_eq!(said(&site.a.nobody().post("/api/login", &body("bob", "None", ""))), (200, false, true, false));
    bearer(&site.a, &log_in(&site.a.nobody(), "bob", "RecoveryCodes", &codes[0]));
}

#[test]
fn an_invalid_factor_opens_nothing_until_an_administrator_clears_it() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let uid = add_user(&admin, "bob");
    let session = web.login("bob", PASSWORD);
    fleet.ok("a", &["put", "second-factors", &uid.to_string(), "--value", "{\"seed\":1}"]);
    assert_eq!(said(&web.nobody().post("/api/login", &body("bob", "None", ""))), (423, false, false, false));
    assert_eq!(log_in(&web.nobody(), "bob", "TOTP", "123456").status, 423);
    assert_eq!(session.get("/api/testauth").status, 401);
    admin.ok("DELETE", &format!("/api/users/{uid}/mfa/clear"));
    assert_eq!(web.login("bob", PASSWORD).get("/api/testauth").status, 200);
}
