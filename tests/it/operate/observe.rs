//! Observability: findings with remedies, the fleet, the trace of a transaction, a debug bundle without secrets.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::fleet::{Fleet, Process};
use crate::web::client::Client;
use crate::web::{first_login, free_address};

fn webserver(fleet: &Fleet, name: &str, options: &[&str]) -> (Process, Client) {
    fleet.enroll(name, "webserver");
    let address = free_address();
    let process = fleet.spawn_webserver(name, address, options);
    fleet.wait_connected(name);
    (process, Client::new(format!("http://{address}")))
}

/// Returns the exit code and the findings of `doctor`.
fn doctor(fleet: &Fleet, name: &str, config: &Path) -> (i32, Vec<Value>) {
    let output = fleet.run(name, &["doctor", "--json", "--config", config.to_str().expect("path")]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let findings = found["findings"].as_array().expect("findings").clone();
    for finding in &findings {
        let is_good = finding["level"] == "good";
        assert_eq!(
            finding["remedy"].as_str().expect("text").is_empty(),
            is_good,
            "every problem has a remedy: {finding}"
        );
    }
    (output.status.code().expect("a code"), findings)
}

#[track_caller]
fn level_of(findings: &[Value], subject: &str, what: &str) -> String {
    let found = findings.iter().find(|finding| {
        finding["subject"] == subject && finding["found"].as_str().is_some_and(|text| text.contains(what))
    });
    found.unwrap_or_else(|| panic!("nothing on {subject} with {what:?} in {findings:#?}"))["level"]
        .as_str()
        .expect("level")
        .to_owned()
}

#[test]
fn doctor_reports_problems_with_remedies() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let (web, _) = webserver(&fleet, "a", &["--external-addr", "127.0.0.1:1"]);
    let config = fleet.write_file("gravwell.conf", "[Global]\nExternal-Addr=127.0.0.1:1\n");
    for dir in ["d", "a"] {
        std::fs::set_permissions(fleet.dir(dir), std::fs::Permissions::from_mode(0o700)).expect("sets");
    }

    let (code, found) = doctor(&fleet, "d", &config);
    assert_eq!((code, level_of(&found, "members", "1 enrolled, all connected")), (0, "good".into()));
    assert_eq!(level_of(&found, "External-Addr", "127.0.0.1:1"), "warning", "no process listens there");
    assert_eq!(level_of(&found, "permissions", "belong to"), "good");
    assert!(["good", "warning"].contains(&level_of(&found, "UDP buffers", "").as_str()));
    let (code, found) = doctor(&fleet, "a", &config);
    assert_eq!((code, level_of(&found, "datastore", "connected to")), (0, "good".into()));
    assert_eq!(level_of(&found, "clock", "of the datastore's"), "good");
    assert_eq!(level_of(&found, "certificate", "membership is valid for "), "good");

    // Settings.
    let typo = fleet.write_file("typo.conf", "[Global]\nWeb-Prt=1\n");
    let (code, found) = doctor(&fleet, "a", &typo);
    assert_eq!((code, level_of(&found, "configuration", "did you mean Web-Port?")), (0, "warning".into()));
    let wrong = fleet.write_file("wrong.conf", "[Global]\nWeb-Port=0\n");
    let (code, found) = doctor(&fleet, "a", &wrong);
    assert_eq!((code, level_of(&found, "configuration", "line 2, column 1")), (1, "problem".into()));
    let big = fleet.write_file("big.conf", "[Global]\nDatastore-Min-Free-MB=1000000000\n");
    let (code, found) = doctor(&fleet, "d", &big);
    assert_eq!((code, level_of(&found, "disk", "free for")), (1, "problem".into()));

    // Permissions.
    let key = fleet.dir("d").join("trust/ca.key");
    std::fs::set_permissions(fleet.dir("d"), std::fs::Permissions::from_mode(0o755)).expect("sets");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("sets");
    let (code, found) = doctor(&fleet, "d", &config);
    assert_eq!((code, level_of(&found, "permissions", "ca.key is accessible to other users")), (1, "problem".into()));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("sets");
    std::fs::set_permissions(fleet.dir("d"), std::fs::Permissions::from_mode(0o700)).expect("sets");

    // Certificates for browsers.
    let tls = fleet.dir("tls");
    let out = tls.to_str().expect("path");
    fleet.ok("a", &["cert", "server", "--name", "elsewhere.example.net", "--days", "3", "--out", out]);
    let text =
        format!("[Global]\nExternal-Addr=here.example.net\nCertificate-File={out}/cert.pem\nKey-File={out}/key.pem\n");
    let short = fleet.write_file("short.conf", &text);
    let (_, found) = doctor(&fleet, "a", &short);
    assert_eq!(level_of(&found, "certificate", "expires in"), "warning");
    assert_eq!(level_of(&found, "certificate", "is not valid for here.example.net"), "warning");

    // An unreachable datastore.
    datastore.terminate();
    fleet.wait("it notices", || fleet.status("a")["connected"] == false);
    let (code, found) = doctor(&fleet, "a", &config);
    // Warning level, as in `status`.
    assert_eq!((code, level_of(&found, "datastore", "disconnected since")), (1, "warning".into()));
    let (code, found) = doctor(&fleet, "d", &config);
    assert_eq!((code, level_of(&found, "process", "no process runs on")), (1, "problem".into()));
    let _datastore = fleet.datastore();
    web.terminate();
    fleet.wait("the datastore notices", || fleet.ok("d", &["presence", "--json"]).is_empty());
    let (code, found) = doctor(&fleet, "d", &config);
    assert_eq!((code, level_of(&found, "members", "1 of 1 are offline: a")), (0, "warning".into()));
    let (code, found) = doctor(&fleet, "a", &config);
    assert_eq!((code, level_of(&found, "datastore", "responds and knows this member")), (1, "good".into()));
}

#[test]
fn a_transaction_is_traced_from_one_webserver_to_the_other() {
    let mut fleet = Fleet::new();
    let traced = ["--log-level", "debug", "--log-format", "json"];
    fleet.datastore_flags = traced.map(str::to_owned).to_vec();
    let _datastore = fleet.datastore();
    let (_a, a) = webserver(&fleet, "a", &traced);
    let (_b, b) = webserver(&fleet, "b", &traced);
    let admin = first_login(&a, &fleet);
    admin.made("/api/groups", &json!({ "Name": "followed" }));
    fleet.converges(&["a", "b"]);
    let head = fleet.status("d")["head"].clone();

    let top: Value = serde_json::from_str(&fleet.ok("d", &["top", "--once", "--json"])).expect("JSON");
    assert_eq!((&top["datastore"]["head"], top["members"].as_array().map(Vec::len)), (&head, Some(2)));
    assert!(top["members"].as_array().expect("members").iter().all(|member| member["health"] == "good"), "{top}");
    let seen = fleet.ok("d", &["top", "--once"]);
    assert!(seen.contains("HEALTH") && !seen.contains('\u{1b}'), "{seen:?}");
    assert!(!fleet.run("a", &["top", "--once"]).status.success(), "a replica does not know the fleet");

    // The change made through `a`, as logged by each process; a webserver also makes some changes itself at startup.
    let made = |change: &Value| change["ops"].to_string().contains("followed");
    let change = fleet.tail().into_iter().rfind(made).expect("the group");
    let steps = |name: &str| {
        let lines = fleet.log_of(name);
        let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let fields = lines.map(|line| line["fields"].clone()).filter(|fields| fields["txn"].is_string());
        fields.collect::<Vec<Value>>()
    };
    let is_commit = |fields: &Value| fields["step"] == "committed" && fields["seq"] == change["seq"];
    let committed = steps("d").into_iter().find(is_commit).expect("committed");
    let of = |name: &str| {
        let own = steps(name).into_iter().filter(|fields| fields["txn"] == committed["txn"]);
        own.map(|fields| (fields["step"].as_str().expect("step").to_owned(), fields["seq"].clone())).collect::<Vec<_>>()
    };
    let seq = &committed["seq"];
    let expect = |steps: &[(&str, &Value)]| -> Vec<(String, Value)> {
        steps.iter().map(|(step, seq)| ((*step).to_owned(), (*seq).clone())).collect()
    };
    fleet.wait("all members have it", || of("a").len() >= 3 && !of("b").is_empty());
    assert_eq!(of("a"), expect(&[("submitted", &Value::Null), ("pushed", &Value::Null), ("applied", seq)]));
    assert_eq!(of("d"), expect(&[("received", &Value::Null), ("committed", seq)]));
    assert_eq!(of("b"), expect(&[("applied", seq)]));
    // The duration is logged where the transaction was created and at the datastore.
    for name in ["a", "d"] {
        let lines = fleet.log_of(name);
        let mut lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let closed = lines.find(|line| line["fields"]["message"] == "close" && line["span"]["txn"] == committed["txn"]);
        let closed = closed.expect("the span closes");
        assert!(closed["span"]["seq"] == *seq && closed["fields"]["time.idle"].is_string(), "{closed}");
    }
    drop(b);
}

#[test]
fn a_debug_bundle_contains_no_secret() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let (_web, client) = webserver(&fleet, "a", &[]);
    let admin = first_login(&client, &fleet);
    admin.made("/api/users", &json!({ "User": "bob", "Pass": "hunter2-hunter2" }));
    let token = admin.made("/api/tokens", &json!({ "name": "t", "capabilities": [] }))["token"].to_string();
    admin.changed("/api/users/1/preferences", &json!({ "private": "diary-of-bob" }));
    fleet.converges(&["a"]);
    let invited = fleet.ok("d", &["enroll", "later"]);
    let config = fleet.write_file(
        "gravwell.conf",
        "[Global]\nControl-Auth=control-hush\nSearch-Agent-Auth=agent-hush\nWeb-Port=4430\n[Other]\nKey=other-hush\n",
    );
    let log =
        "an ordinary line\nFirst administrator: admin with the password pass-hush, to be changed\nBearer bearer-hush\n";
    let log = fleet.write_file("some.log", log);

    // All secrets that must not be in the bundle: injected words, and all secrets on the disk.
    let mut secrets: Vec<String> = [
        "hunter2-hunter2",
        "diary-of-bob",
        "control-hush",
        "agent-hush",
        "other-hush",
        "pass-hush",
        "bearer-hush",
        "argon2",
    ]
    .map(str::to_owned)
    .to_vec();
    secrets.push(admin.token().to_owned());
    secrets.push(token.trim_matches('"').to_owned());
    secrets.push(invited.trim().to_owned());
    let open = fleet.export("d");
    let all = fleet.ok("d", &["export", "--with-secrets"]);
    let hidden: Vec<&str> = all.lines().filter(|line| !open.contains(line)).collect();
    assert!(hidden.len() >= 3, "{all}");
    secrets.extend(hidden.iter().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["value"].to_string()));
    for file in ["d/trust/ca.key", "a/identity/identity.json", "d/trust/members.json"] {
        let text = std::fs::read_to_string(fleet.dir(file)).unwrap_or_default();
        secrets
            .extend(text.lines().filter(|line| line.len() >= 32 && !line.contains("CERTIFICATE")).map(str::to_owned));
    }
    for name in ["d", "a"] {
        let file = fleet.dir(&format!("{name}.tar"));
        let (file_text, config) = (file.to_str().expect("path"), config.to_str().expect("path"));
        let arguments =
            ["debug-bundle", "--json", "--output", file_text, "--config", config, "--log", log.to_str().expect("path")];
        let said: Value = serde_json::from_str(&fleet.ok(name, &arguments)).expect("JSON");
        let contents = said["contents"].as_array().expect("contents").len();
        let bundle = std::fs::read(&file).expect("reads");
        let text = String::from_utf8_lossy(&bundle);
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{name}: {secret}");
        }
        // The bundle still contains useful information.
        for word in
            ["an ordinary line", "Web-Port=4430", "Control-Auth=(left out)", "\"seq\"", "gravwell-debug/doctor.json"]
        {
            assert!(text.contains(word), "{name}: {word}");
        }
        assert!(contents >= 8, "{said}");
        assert_eq!(std::fs::metadata(&file).expect("exists").permissions().mode() & 0o777, 0o600);
        let again = fleet.run(name, &arguments);
        assert!(!again.status.success(), "nothing is overwritten");
        let listed = std::process::Command::new("tar").arg("-tf").arg(&file).output().expect("tar");
        assert_eq!(String::from_utf8_lossy(&listed.stdout).lines().count(), contents);
    }
}
