//! With `--json`, every command prints only JSON on standard output.

use std::collections::BTreeSet;

use clap::CommandFactory;
use gravwell_ctl::args::Args;
use serde_json::Value;

use crate::fleet::{Fleet, History};

/// Commands that run until stopped, and the one that prints shell code.
const OTHERS: [&str; 5] = ["datastore", "webserver", "replica", "demo", "completions"];

/// Collects the names of all commands without subcommands.
fn leaves(command: &clap::Command, path: &str, found: &mut BTreeSet<String>) {
    for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
        let path = format!("{path} {}", inner.get_name()).trim().to_owned();
        // `quarantine` without a subcommand lists.
        if inner.get_subcommands().next().is_none() {
            found.insert(path);
        } else {
            leaves(inner, &path, found);
        }
    }
}

#[test]
fn every_command_prints_json_alone_when_asked() {
    let fleet = Fleet::new();
    let at = |name: &str| fleet.dir(name).display().to_string();
    let datastore = fleet.datastore();
    let member = fleet.member("a");
    let changes = fleet.write_file("in.jsonl", &History::new(2, 40, 10).lines).display().to_string();
    let key = fleet.ok("d", &["authority", "recovery-key"]).trim().to_owned();
    let (sealed, backups, bundle, certificates, manual) =
        (at("sealed"), at("backups"), at("bundle.tar"), at("certificates"), at("manual"));
    let (escrow, certificate) = (at("a/identity/escrow"), at("certificates/cert.pem"));
    let state = at("import-gravwell.json");
    let mut left = BTreeSet::new();
    leaves(&Args::command(), "", &mut left);
    let mut run = |name: &str, command: &str, arguments: &[&str], may_fail: bool| {
        left.remove(command);
        let all: Vec<&str> = command.split(' ').chain(arguments.iter().copied()).chain(["--json"]).collect();
        let output = fleet.run(name, &all);
        let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(may_fail || output.status.success(), "{command}: {text}{errors}");
        assert_ne!(output.status.code(), Some(2), "{command}: {errors}");
        for line in text.lines() {
            let value: Result<Value, _> = serde_json::from_str(line);
            assert!(value.is_ok(), "{command} prints {line:?}");
        }
        assert!(may_fail || !text.trim().is_empty() || command == "members", "{command} prints nothing");
    };
    let token = fleet.ok("d", &["enroll", "b"]).trim().to_owned();
    for (command, arguments) in [
        ("status", &[][..]),
        ("import", &[changes.as_str()]),
        ("put", &["c", "k", "--value", "1"]),
        ("members", &[]),
        ("presence", &[]),
        ("collections", &[]),
        ("segments", &[]),
        ("get", &["c", "k"]),
        ("ls", &["c"]),
        ("tail", &["--from", "1", "--to", "3"]),
        ("history", &["c", "k"]),
        ("dump-record", &["1"]),
        ("export", &[]),
        ("verify", &[]),
        ("barrier", &[]),
        ("generations", &[]),
        ("compact", &["--dry-run"]),
        ("blobs list", &[]),
        ("blobs stats", &[]),
        ("blobs verify", &[]),
        ("blobs gc", &["--dry-run"]),
        ("enroll", &["c"]),
        ("audit ls", &[]),
        ("audit verify", &[]),
        ("audit acknowledge", &["1"]),
        ("audit export", &[]),
        ("authority recovery-key", &[]),
        ("authority rotate-recovery-key begin", &[]),
        ("authority rotate-recovery-key status", &[]),
        ("authority rotate-recovery-key abort", &[]),
        ("authority rotate begin", &[]),
        ("authority rotate status", &[]),
        ("authority rotate abort", &[]),
        ("authority backup", &[&sealed]),
        ("backup create", &[&backups]),
        ("backup list", &[&backups]),
        ("backup verify", &[&backups]),
        ("backup prune", &[&backups, "--keep-last", "1"]),
        ("backup key", &[]),
        ("debug-bundle", &["--output", &bundle]),
        ("cert ca", &["--out", &certificates]),
        ("cert server", &["--name", "web1.example.net", "--out", &certificates, "--replace"]),
        ("cert show", &[&certificate]),
        ("bench", &["--ops", "100"]),
        ("man", &["--out", &manual]),
        ("top", &["--once"]),
    ] {
        let may_be_empty = matches!(command, "blobs list");
        run("d", command, arguments, may_be_empty);
    }
    run("b", "join", &[&token], false);
    for (name, command, arguments) in [
        // These commands may have nothing to do.
        ("d", "doctor", &[][..]),
        ("d", "diff", &["--from", "1"]),
        ("d", "revert", &["c", "k", "--to", "1", "--dry-run"]),
        ("d", "revoke", &["c"]),
        ("d", "delete", &["c", "k"]),
        ("d", "restore", &[&backups]),
        ("d", "repair", &["--from", &at("a")]),
        ("d", "recover", &["--from", &at("a"), "--dry-run"]),
        ("d", "authority restore", &[&escrow, "--recovery-key", &key]),
        ("d", "authority rotate-recovery-key finish", &["--recovery-key", &key]),
        ("d", "authority rotate finish", &[]),
        ("d", "generations set", &["1", "restored"]),
        ("d", "lb", &["--format", "traefik"]),
        ("a", "outbox list", &[]),
        ("a", "outbox show", &["00000000000000000000000000000001/1"]),
        ("a", "outbox retry", &["--all"]),
        ("a", "outbox dismiss", &["--all"]),
        ("a", "outbox accept-loss", &[]),
        ("a", "quarantine list", &[]),
        ("a", "quarantine show", &["1"]),
        ("a", "quarantine apply", &["1"]),
        ("a", "quarantine drop", &["1"]),
        (
            "d",
            "import-gravwell",
            &[
                "http://127.0.0.1:9",
                "--token-file",
                &changes,
                "--to",
                "http://127.0.0.1:9",
                "--to-password-file",
                &changes,
                "--state",
                &state,
            ],
        ),
    ] {
        run(name, command, arguments, true);
    }
    left.retain(|command| !OTHERS.contains(&command.as_str()));
    assert_eq!(left, BTreeSet::new(), "commands that this test does not run");
    member.terminate();
    datastore.terminate();
}
