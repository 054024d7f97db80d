//! The audit: nobody who is recorded in it can make it shorter, and what happens to its files is found.

use std::fs;

use serde_json::{Value, json};

use crate::fleet::Fleet;
use crate::web::{Web, client::Client};

/// Every row of the last hour that a query finds.
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

/// As many writes as one user makes in a quarter of a minute, put in by the quickest way.
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
    // Rows as deep as they may be, and no JSON at all.
    let deep = format!("{}{}", "[".repeat(64), "]".repeat(64));
    fleet.ok("d", &["put", "dashboards", "7", "--value", &deep]);
    fleet.ok("d", &["put", "dashboards", "8", "--value", "{ no JSON"]);
    flood(&fleet);
    fleet.converges(&["a"]);
    fleet.ok("d", &["compact", "--history-ops", "0"]);
    assert!(fleet.status("d")["horizon"].as_u64() > Some(10_000), "{}", fleet.status("d"));
    for restarted in [false, true] {
        if restarted {
            datastore.kill();
            datastore = fleet.datastore();
            fleet.wait_connected("a");
        }
        let rows = search(&admin, r#"tag=audit | select(.collection != "preferences")"#);
        let of = |collection: &str| rows.iter().filter(|row| row["collection"] == collection).collect::<Vec<_>>();
        assert!(of("users").iter().any(|row| row["after"]["User"] == "bob" && row["user"] == "admin"), "{rows:?}");
        assert!(!of("groups").is_empty() && !of("memberships").is_empty() && !of("admins").is_empty());
        let kept: Vec<_> = of("dashboards").iter().map(|row| row["after"].to_string()).collect();
        assert_eq!(kept, [&deep, "null"]);
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
    fleet.wait("it says that the datastore cannot be reached", || said().contains("cannot be reached"));
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
    let _datastore = fleet.datastore();
    fleet.wait("it is set aside", || fleet.dir("d").join("audit.damaged-1").exists());
    fleet.wait("a new one says so", || listed(&fleet).iter().any(|row| row["op"] == "audit-damaged"));
    assert!(listed(&fleet).iter().any(|row| row["key"] == "3"), "the log is read again");
    let doctor = fleet.run("d", &["doctor"]);
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("audit.damaged-1"));
}
