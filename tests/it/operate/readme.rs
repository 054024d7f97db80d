//! Documentation for new users: the blocks of the README in order, the demo, the embedding example.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::has;
use crate::fleet::Fleet;
use crate::web::client::Client;

#[path = "../../../examples/embed.rs"]
#[allow(dead_code)]
mod embed;

#[path = "../../../examples/read_log.rs"]
#[allow(dead_code)]
mod read_log;

fn readme() -> String {
    let path = crate::fleet::root().join("README.md");
    std::fs::read_to_string(path).expect("reads")
}

/// Returns the fenced blocks of a language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let parts = text.split("\n```").skip(1).step_by(2);
    parts.filter_map(|part| part.strip_prefix(language)?.strip_prefix('\n').map(|block| format!("{block}\n"))).collect()
}

/// The blocks use fixed ports, so they run in a separate network namespace; its processes end with it.
#[test]
fn every_block_of_the_readme_runs_when_pasted_in_order() {
    let is_root = rustix::process::getuid().is_root();
    if !is_root || !has("unshare") || !has("ip") {
        eprintln!("SKIPPED: a network namespace needs root, unshare and ip");
        return;
    }
    let temp = tempfile::tempdir().expect("temp dir");
    let programs = Path::new(env!("CARGO_BIN_EXE_gravwell-logctl")).parent().expect("parent");
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").expect("PATH"));
    let script = blocks(&readme(), "sh").join("\n");
    assert!(script.contains("gravwell_datastore") && script.contains("gravwell_webserver"), "{script}");
    let ready = "until curl -skf https://127.0.0.1:8444/api/ready; do sleep 1; done";
    let script = format!("set -e\nip link set lo up\n{script}\n{ready}\necho 'all of it ran'\n");
    let output = Command::new("timeout")
        .args(["120", "unshare", "--net", "--pid", "--fork", "--kill-child=KILL", "bash", "-c", &script])
        .current_dir(temp.path())
        .env("PATH", path)
        .output()
        .expect("runs");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("all of it ran"), "{}: {text}", output.status);
}

#[test]
fn the_embedding_example_of_the_readme_is_the_file() {
    let example = std::fs::read_to_string(crate::fleet::root().join("examples/embed.rs"));
    assert_eq!(blocks(&readme(), "rust,no_run"), [example.expect("reads")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedding_example_connects_and_exits() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let token = fleet.ok("d", &["enroll", "a"]);
    let stage = embed::embed(&fleet.dir("a"), token.trim()).await.expect("runs");
    assert!(matches!(stage, gravwell_replica::Stage::Acknowledged(_)), "{stage:?}");
    assert!(fleet.ok("d", &["get", "notes", "17"]).contains("hello"));
}

#[test]
fn the_example_that_reads_a_log_lists_its_changes_and_refuses_a_corrupt_one() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    fleet.ok("d", &["put", "notes", "17", "--value", "\"hello\""]);
    fleet.ok("d", &["delete", "notes", "17"]);
    datastore.kill();
    let log = fleet.dir("d/log");
    let lines = read_log::read_log(&log).expect("reads");
    assert!(lines[0].ends_with("notes/17: 7 bytes") && lines[1].ends_with("notes/17: deleted"), "{lines:?}");
    let names = std::fs::read_dir(&log).expect("lists").map(|entry| entry.expect("reads").path());
    let segment = names.into_iter().find(|path| path.to_string_lossy().ends_with("-open.log")).expect("a segment");
    let mut bytes = std::fs::read(&segment).expect("reads");
    bytes[150] ^= 1;
    std::fs::write(&segment, bytes).expect("writes");
    assert!(read_log::read_log(&log).is_err());
}

#[test]
fn the_demonstration_keeps_both_webservers_connected_until_it_is_interrupted() {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_gravwell-logctl"))
        .args(["demo", "--keep"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let lines = BufReader::new(demo.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let mut seen = Vec::new();
    let mut urls = Vec::new();
    for line in lines {
        if line.contains("  and  http://") {
            let words = line.split_whitespace().filter(|word| word.starts_with("http://"));
            urls = words.map(str::to_owned).collect();
        }
        let is_last = line.contains("tail --follow");
        seen.push(line);
        if is_last {
            break;
        }
    }
    assert_eq!(urls.len(), 2, "{seen:#?}");
    let clients: Vec<Client> = urls.iter().map(|url| login(url)).collect();
    let fleet = Fleet::new();
    for (from, to) in [(1, 0), (0, 1)] {
        let name = format!("made at {from}");
        let answer = clients[from].post("/api/dashboards", &json!({ "Name": name, "Description": "", "Data": {} }));
        assert_eq!(answer.status, 200, "{}", answer.text());
        fleet.wait("the other webserver shows it", || clients[to].get("/api/dashboards").text().contains(&name));
    }
    kill_process(Pid::from_child(&demo), Signal::INT).expect("interrupts");
    assert!(demo.wait().expect("ends").success());
}

fn login(url: &str) -> Client {
    let client = Client::new(url.to_owned());
    let answer = client.post("/api/login", &json!({ "User": "admin", "Pass": "two-webservers-at-play" }));
    assert_eq!(answer.status, 200, "{}", answer.text());
    client.with("Authorization", &format!("Bearer {}", answer.json()["JWT"].as_str().expect("JWT")))
}

/// Every command that writes a file accepts a name without a directory.
#[test]
fn bare_file_names_are_accepted() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let _a = fleet.member("a");
    let here = fleet.dir("here");
    std::fs::create_dir(&here).expect("creates");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gravwell-logctl"));
        let output = command.current_dir(&here).arg("--data-dir").arg(fleet.dir("d")).args(arguments).output();
        let output = output.expect("runs");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    };
    run(&["authority", "backup", "a.sealed"]);
    run(&["backup", "create", "backups"]);
    run(&["debug-bundle", "--output", "bundle.tar.gz"]);
    run(&["cert", "ca", "--out", "ca"]);
    run(&["lb", "--format", "nginx", "--output", "nginx.conf"]);
    run(&["man", "--out", "man"]);
    for name in ["a.sealed", "backups", "bundle.tar.gz", "ca", "nginx.conf", "man"] {
        assert!(here.join(name).exists(), "{name}");
    }
}

/// A webserver that runs as another user can read the certificate, but only the owner can read the key.
#[test]
fn a_certificate_is_readable_by_all_and_its_key_is_not() {
    let fleet = Fleet::new();
    let out = fleet.dir("server");
    fleet.ok("a", &["cert", "server", "--name", "localhost", "--out", out.to_str().expect("text")]);
    for (name, mode) in [("cert.pem", 0o644), ("key.pem", 0o600), ("bundle.pem", 0o600)] {
        let found = std::fs::metadata(out.join(name)).expect("made").permissions().mode();
        assert_eq!(found & 0o777, mode, "{name}");
    }
}

#[test]
fn a_webserver_starts_no_standalone_log_in_place_of_another_one() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let a = fleet.member("a");
    fleet.wait_connected("a");
    a.terminate();
    std::fs::remove_dir_all(fleet.dir("a/identity")).expect("removes");
    for (name, why) in [("d", "is the data directory of a datastore"), ("a", "its identity is missing")] {
        let output = Command::new(env!("CARGO_BIN_EXE_gravwell_webserver"))
            .args(["--listen", "127.0.0.1:0", "--no-redirect", "--data-dir"])
            .arg(fleet.dir(name))
            .output()
            .expect("runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(why), "{name}: {text}");
        assert!(!fleet.dir(name).join("own-log").exists(), "{name}");
    }
    std::fs::create_dir_all(fleet.dir("alone/own-log")).expect("makes");
    let token = fleet.ok("d", &["enroll", "alone"]);
    let refused = fleet.run("alone", &["join", token.trim()]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("standalone"), "{refused:?}");
}

#[test]
fn a_closed_pipe_causes_no_panic() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    fleet.ok("d", &["put", "c", "k", "--value", "1"]);
    let commands =
        ["completions bash", "completions zsh", "status", "members", "export", "tail", "ls c", "verify", "doctor"];
    for command in commands {
        let mut logctl = Command::new(env!("CARGO_BIN_EXE_gravwell-logctl"));
        logctl.arg("--data-dir").arg(fleet.dir("d")).args(command.split(' '));
        let mut child = logctl.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("ends");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !errors.contains("panicked") && output.status.code().is_some_and(|code| code < 4),
            "{command}: {errors}"
        );
    }
}

#[test]
fn commands_time_out_when_the_process_does_not_answer() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    datastore.pause();
    for command in [&["status"][..], &["export"], &["verify"]] {
        let output = fleet.run("d", command);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("does not respond"), "{output:?}");
    }
    datastore.resume();
    fleet.ok("d", &["status"]);
}
