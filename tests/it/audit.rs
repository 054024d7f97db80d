//! The audit trail: no recorded user can shorten it, and changes of its files are detected.

use std::fs;

use serde_json::{Value, json};

use crate::fleet::Fleet;
use crate::web::{Web, client::Client};

/// Returns the rows of the last hour that match a query.
fn search(admin: &Client, query: &str) -> Vec<Value> {
    let body = json!({ "SearchString": query, "Format": "json", "Duration": "1h" });
    let answer = admin.post("/api/search/direct", &body);
    assert_eq!(answer.status, 200, "{query}: {}", answer.text());
    let rows = answer.json();
    rows.as_array().expect("rows").iter().map(|row| row["Data"].clone()).collect()
}

fn has(rows: &[Value], what: &str) -> bool {
    rows.iter().any(|row| row["what"].as_str().is_some_and(|text| text.contains(what)))
}

fn listed(fleet: &Fleet) -> Vec<Value> {
    let text = fleet.ok("d", &["audit", "ls", "--json"]);
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Imports as many writes as one user can make in fifteen seconds, in the fastest way.
fn flood(fleet: &Fleet) {
    let line = |n: usize| {
        format!(
            "{{\"ops\":[{{\"put\":{{\"collection\":\"preferences\",\"key\":\"7/p{}\",\"value\":{n}}}}}]}}\n",
            n % 50
        )
    };
    let file = fleet.write_file("flood.jsonl", &(0..20_000).map(line).collect::<String>());
    fleet.ok("d", &["import", file.to_str().expect("path")]);
}

#[test]
fn p14_every_act_is_found_after_a_flood_a_compaction_and_a_malformed_row() {
    let mut fleet = Fleet::new();
    fleet.datastore_flags = ["--history-ops", "0"].map(String::from).into();
    let mut datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let uid = admin.made("/api/users", &json!({ "User": "bob", "Pass": "open sesame now", "Email": "b@x" }));
    let gid = admin.made("/api/groups", &json!({ "Name": "team" }));
    admin.made(&format!("/api/users/{uid}/group"), &json!({ "GIDs": [gid] }));
    admin.changed(&format!("/api/users/{uid}/admin"), &json!({}));
    // Values nested to the maximum depth and of an invalid format.
    let deep = format!("{}{}", "[".repeat(64), "]".repeat(64));
    fleet.ok("d", &["put", "dashboards", "7", "--value", &deep]);
    fleet.ok("d", &["put", "dashboards", "8", "--value", "\"no dashboard\""]);
    flood(&fleet);
    fleet.converges(&["a"]);
    fleet.wait("the log is compacted", || {
        fleet.ok("d", &["compact", "--history-ops", "0"]);
        fleet.status("d")["horizon"].as_u64() > Some(10_000)
    });
    for restarted in [false, true] {
        if restarted {
            datastore.kill();
            datastore = fleet.datastore();
            let body = json!({ "SearchString": "tag=audit | select(.op == \"enroll\") | limit 1", "Format": "text", "Duration": "1h" });
            let answer = || admin.post("/api/search/direct", &body);
            fleet.wait("the audit is found again", || answer().text().contains("enroll"));
        }
        let rows = search(&admin, r#"tag=audit | select(.collection != "preferences")"#);
        let of = |collection: &str| rows.iter().filter(|row| row["collection"] == collection).collect::<Vec<_>>();
        assert!(of("users").iter().any(|row| row["after"]["User"] == "bob" && row["user"] == "admin"), "{rows:?}");
        assert!(!of("groups").is_empty() && !of("memberships").is_empty() && !of("admins").is_empty());
        let kept: Vec<_> = of("dashboards").iter().map(|row| row["after"].to_string()).collect();
        assert_eq!(kept, [&deep, "\"no dashboard\""]);
        let enrolled = rows.iter().find(|row| row["op"] == "enroll").expect("the enrolment");
        assert!(enrolled["from"].as_str().is_some_and(|from| from.contains("uid ")), "{enrolled}");
        assert!(rows.iter().any(|row| row["op"] == "join") && has(&rows, "compact the log"), "{rows:?}");
        let count = search(&admin, r#"tag=audit | select(.collection == "preferences") | count"#);
        assert!(count[0]["count"].as_u64() >= Some(20_000), "{count:?}");
    }
    let report: Value = serde_json::from_str(&fleet.ok("d", &["audit", "verify", "--json"])).expect("JSON");
    assert_eq!((&report["ok"], &report["gaps"]), (&json!(true), &json!(0)), "{report}");
    datastore.kill();
    let body = json!({ "SearchString": "tag=audit", "Format": "json", "Duration": "1h" });
    let said = || admin.post("/api/search/direct", &body).text();
    fleet.wait("it reports that the datastore cannot be reached", || said().contains("the datastore is unreachable"));
}

#[test]
fn p14_a_crash_loses_no_record_and_makes_none_twice() {
    let fleet = Fleet::new();
    for round in 0..5 {
        let datastore = fleet.datastore();
        for n in 0..20 {
            fleet.ok("d", &["put", "users", &format!("{round}-{n}"), "--value", &format!("{{\"n\":{n}}}")]);
        }
        datastore.kill();
    }
    let _datastore = fleet.datastore();
    let found: Vec<String> = listed(&fleet)
        .into_iter()
        .filter(|row| row["collection"] == "users" && row["op"] == "put")
        .map(|row| row["key"].as_str().expect("key").to_owned())
        .collect();
    let expected: Vec<String> = (0..5).flat_map(|round| (0..20).map(move |n| format!("{round}-{n}"))).collect();
    assert_eq!(found, expected, "each once, in order");
    let rows = listed(&fleet);
    let seqs: Vec<u64> = rows.iter().filter_map(|row| row["audit"].as_u64()).collect();
    assert!(seqs.windows(2).all(|pair| pair[0] <= pair[1]));
    let text = fleet.ok("d", &["audit", "export", "--syslog"]);
    assert!(text.lines().all(|line| line.starts_with("<10") && line.contains(" gravwell - ")), "{text}");
    assert!(text.contains("key=\"4-19\""), "{text}");
}

#[test]
fn p14_a_change_of_the_files_is_found_and_the_damaged_audit_is_kept() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    fleet.ok("d", &["put", "users", "1", "--value", "{\"n\":1}"]);
    fleet.ok("d", &["put", "users", "2", "--value", "{\"n\":2}"]);
    let report: Value = serde_json::from_str(&fleet.ok("d", &["audit", "verify", "--json"])).expect("JSON");
    let expected = format!("{}:{}", report["last"], report["chain"].as_str().expect("chain"));
    fleet.ok("d", &["put", "users", "3", "--value", "{\"n\":3}"]);
    fleet.ok("d", &["audit", "verify", "--expect", &expected]);
    let other = format!("{}:{}", report["last"], "00".repeat(16));
    assert_eq!(fleet.run("d", &["audit", "verify", "--expect", &other]).status.code(), Some(3));
    datastore.terminate();
    let dir = fleet.dir("d").join("audit");
    let file = fs::read_dir(&dir)
        .expect("lists")
        .flatten()
        .find(|file| file.file_name().to_string_lossy().starts_with("seg-"));
    let path = file.expect("a segment").path();
    let mut bytes = fs::read(&path).expect("reads");
    let at = bytes.windows(7).position(|window| window == b"{\"n\":2}").expect("the value");
    bytes[at + 5] = b'9';
    fs::write(&path, bytes).expect("writes");
    let output = fleet.run("d", &["audit", "verify"]);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stdout));
    let doctor = fleet.run("d", &["doctor"]);
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(said.contains("PROBLEM  audit: damage in"), "also without a running process: {said}");
    let listing = fleet.run("d", &["audit", "ls"]);
    let said = String::from_utf8_lossy(&listing.stderr).into_owned();
    assert!(said.contains("audit verify") && !said.contains("repair"), "{said}");
    let datastore = fleet.datastore();
    fleet.wait("it is moved aside", || fleet.dir("d").join("audit.damaged-1").exists());
    fleet.wait("a new one reports it", || listed(&fleet).iter().any(|row| row["op"] == "audit-damaged"));
    assert!(listed(&fleet).iter().any(|row| row["key"] == "3"), "the log is read again");
    datastore.terminate();
    // It is reported until an administrator has acknowledged it.
    let datastore = fleet.datastore();
    fleet.wait("the status reports it", || fleet.status("d")["health"].to_string().contains("audit_damaged"));
    let verified = fleet.run("d", &["audit", "verify", "--json"]);
    assert_eq!(verified.status.code(), Some(3), "{}", String::from_utf8_lossy(&verified.stdout));
    let doctor = fleet.run("d", &["doctor"]);
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("audit.damaged-1"));
    assert_eq!(doctor.status.code(), Some(3));
    assert!(!fleet.run("d", &["audit", "acknowledge", "100000"]).status.success(), "the record does not exist");
    let report: Value = serde_json::from_slice(&verified.stdout).expect("JSON");
    fleet.ok("d", &["audit", "acknowledge", &report["last"].to_string()]);
    assert!(!fleet.status("d")["health"].to_string().contains("audit_damaged"));
    let report: Value = serde_json::from_str(&fleet.ok("d", &["audit", "verify", "--json"])).expect("JSON");
    assert_eq!(report["ok"], true, "{report}");
    assert!(report["acknowledged"].as_u64() >= Some(1), "{report}");
    let acknowledged = listed(&fleet).into_iter().find(|row| row["op"] == "acknowledged").expect("a record");
    assert!(acknowledged["from"].as_str().is_some_and(|from| from.contains("uid ")), "{acknowledged}");
    datastore.terminate();
    let _datastore = fleet.datastore();
    assert_eq!(fleet.run("d", &["status"]).status.code(), Some(0), "it is known after a restart, too");
}

/// Returns the rows of one kind of action.
fn acts(admin: &Client, kind: &str) -> Vec<Value> {
    search(admin, &format!(r#"tag=audit | select(.op == "{kind}")"#))
}

#[test]
fn p14_events_at_a_webserver_are_recorded_even_while_it_is_offline() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let uid = admin.made("/api/users", &json!({ "User": "bob", "Pass": "open sesame now" }));
    let fail = |name: &str| web.nobody().post("/api/login", &json!({ "User": name, "Pass": "wrong" })).status;
    assert_eq!(fail("bob"), 422);
    let of_bob = || acts(&admin, "login-failed").into_iter().find(|row| row["user"] == "bob");
    fleet.wait("the failed login is found", || of_bob().is_some());
    let failed = of_bob().expect("found");
    assert_eq!(
        (&failed["user"], &failed["uid"], &failed["from"], &failed["member"]),
        (&json!("bob"), &uid, &json!("127.0.0.1"), &json!("a"))
    );
    // The use of a token is recorded once, and a download once a minute.
    let token = admin.made("/api/tokens", &json!({ "name": "nightly", "capabilities": ["ResourceRead"] }));
    let guid = admin.made("/api/resources", &json!({ "ResourceName": "r" }))["GUID"].clone();
    let with_token = web.nobody().with("Gravwell-Token", token["token"].as_str().expect("a value"));
    let raw = format!("/api/resources/{}/raw", guid.as_str().expect("GUID"));
    for _ in 0..20 {
        with_token.get(&raw);
    }
    // Impersonation is recorded with both names.
    let session = admin.ok("POST", &format!("/api/users/su/{uid}"))["JWT"].as_str().expect("JWT").to_owned();
    let as_bob = web.nobody().with("Authorization", &format!("Bearer {session}"));
    as_bob.made("/api/dashboards", &json!({ "Name": "of bob" }));
    as_bob.get(&raw);
    fleet.wait("downloads are found", || acts(&admin, "download").len() >= 2);
    let used = acts(&admin, "token");
    assert_eq!((used.len(), &used[0]["user"]), (1, &json!("admin")), "{used:?}");
    assert!(used[0]["what"].as_str().expect("text").contains("nightly"), "{used:?}");
    assert!(acts(&admin, "download").iter().any(|row| row["by"] == "admin" && row["user"] == "bob"));
    let begun =
        search(&admin, &format!(r#"tag=audit | select(.what == "log in as bob (uid {uid})" and .op == "put")"#));
    assert!(begun.iter().any(|row| row["user"] == "admin"), "{begun:?}");
    let made = search(&admin, r#"tag=audit | select(.collection == "dashboards")"#);
    assert_eq!((&made[0]["user"], &made[0]["by"]), (&json!("bob"), &json!("admin")), "{made:?}");
    // Events during a datastore outage are recorded later, even after a crash of this webserver.
    datastore.kill();
    fail("carol");
    let stored = || {
        fs::read(fleet.dir("a").join("acts/journal")).is_ok_and(|bytes| bytes.windows(5).any(|five| five == b"carol"))
    };
    fleet.wait("it is recorded", stored);
    let mut web = web;
    web.kill();
    web.restart(&fleet, &[]);
    let _datastore = fleet.datastore();
    fleet
        .wait("it is found", || listed(&fleet).iter().any(|row| row["op"] == "login-failed" && row["user"] == "carol"));
    let late: Vec<_> = listed(&fleet).into_iter().filter(|row| row["user"] == "carol").collect();
    assert_eq!(late.len(), 1, "{late:?}");
}

#[test]
fn p14_requests_of_administrators_to_a_webserver_are_recorded_with_both_names() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let uid = admin.made("/api/users", &json!({ "User": "dora", "Pass": "open sesame now", "Admin": true }));
    let session = admin.ok("POST", &format!("/api/users/su/{uid}"))["JWT"].as_str().expect("JWT").to_owned();
    let as_dora = web.nobody().with("Authorization", &format!("Bearer {session}"));
    as_dora.changed("/api/logging", &json!({ "Level": "Error" }));
    admin.changed("/api/logging", &json!({ "Level": "Info" }));
    admin.ok("POST", "/api/restart/webserver");
    let of = |op: &str| listed(&fleet).into_iter().filter(|row| row["op"] == op).collect::<Vec<_>>();
    fleet.wait("the restart is recorded", || !of("restart").is_empty());
    fleet.wait("the webserver answers", || web.nobody().answers());
    let levels: Vec<_> =
        of("log-level").into_iter().map(|row| (row["user"].clone(), row["by"].clone(), row["what"].clone())).collect();
    assert_eq!(levels.len(), 2, "{levels:?}");
    let (user, by, what) = &levels[0];
    assert_eq!((user, by), (&json!("dora"), &json!("admin")));
    assert!(what.as_str().is_some_and(|text| text.ends_with("Error")), "{levels:?}");
    assert_eq!(levels[1].0, "admin");
    assert_eq!(of("restart")[0]["user"], "admin");
}

#[test]
fn p15_one_user_cannot_fill_the_log() {
    let fleet = Fleet::new();
    let config = fleet.write_file("gravwell.conf", "[Global]\nWrite-Rate-Per-User=5\nWrite-Burst-Per-User=20\n");
    let web = Web::start(&fleet, "a", &["--config", config.to_str().expect("path")]);
    let admin = web.admin(&fleet);
    let uid = admin.made("/api/users", &json!({ "User": "bob", "Pass": "open sesame now" }));
    let bob = web.login("bob", "open sesame now");
    let write = |n: usize| bob.put(&format!("/api/users/{uid}/preferences"), &json!({ "n": n }));
    let answers: Vec<_> = (0..60).map(write).collect();
    let refused = answers.iter().find(|answer| answer.status == 429).expect("some are refused");
    assert_eq!(refused.header("retry-after"), Some("1"), "{}", refused.text());
    assert!(answers[..20].iter().all(|answer| answer.status != 429), "a burst passes");
    assert_eq!(bob.get("/api/info/whoami").status, 200, "reads continue");
    assert_eq!(admin.post("/api/groups", &json!({ "Name": "g" })).status, 200, "other users can continue");
    fleet.wait("it is accepted again", || write(0).status != 429);
}

#[test]
fn p14_a_removed_or_older_audit_is_reported_until_it_is_acknowledged() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    fleet.ok("d", &["put", "users", "1", "--value", "1"]);
    datastore.terminate();
    let (audit, older) = (fleet.dir("d/audit"), fleet.dir("older"));
    crate::files::copy_dir(&audit, &older);
    let datastore = fleet.datastore();
    fleet.ok("d", &["enroll", "evil", "--role", "admin"]);
    fleet.ok("d", &["revoke", "evil"]);
    datastore.terminate();
    for is_removed in [false, true] {
        fs::remove_dir_all(&audit).expect("removes");
        if !is_removed {
            crate::files::copy_dir(&older, &audit);
        }
        assert_eq!(fleet.run("d", &["audit", "verify"]).status.code(), Some(3), "without a running process");
        for start in 0..2 {
            let datastore = fleet.datastore();
            let says = || fleet.status("d")["health"].to_string();
            fleet.wait("the status reports it", || says().contains("audit_damaged"));
            assert!(says().contains(if is_removed { "is missing" } else { "older copy" }), "{}", says());
            let verified = fleet.run("d", &["audit", "verify", "--json"]);
            assert_eq!(verified.status.code(), Some(3), "{verified:?}");
            let report: Value = serde_json::from_slice(&verified.stdout).expect("JSON");
            assert_eq!(report["findings"].as_array().map(Vec::len), Some(1), "start {start}: {report}");
            if start == 1 {
                fleet.ok("d", &["audit", "acknowledge", &report["last"].to_string()]);
                assert!(!says().contains("audit_damaged"));
            }
            datastore.terminate();
        }
        let datastore = fleet.datastore();
        fleet.ok("d", &["audit", "verify"]);
        assert!(!fleet.status("d")["health"].to_string().contains("audit_damaged"));
        datastore.terminate();
    }
}
