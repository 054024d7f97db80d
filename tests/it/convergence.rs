use crate::fleet::{Fleet, History, Rng};

#[test]
fn p02_three_replicas_converge_under_random_edits() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let _members: Vec<_> = ["a", "b", "c"].map(|name| fleet.member(name)).into();
    let files: Vec<_> = ["a", "b", "c"]
        .iter()
        .zip(1..)
        .map(|(name, seed)| fleet.write_file(&format!("{name}.jsonl"), &History::new(seed, 400, 60).lines))
        .collect();
    let imports: Vec<_> = ["a", "b", "c"]
        .iter()
        .zip(&files)
        .map(|(name, file)| fleet.command(name, &["import", file.to_str().unwrap()]).spawn().expect("starts"))
        .collect();
    for mut import in imports {
        assert!(import.wait().expect("ends").success());
    }
    fleet.converges(&["a", "b", "c"]);
    assert_eq!(fleet.tail().len(), 1200);
}

#[test]
fn p04_an_import_replayed_is_the_same_state_everywhere_and_deletes_are_events() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let history = History::new(7, 5_000, 2_500);
    let (first, second) = history.lines.split_at(history.lines.match_indices('\n').nth(2_000).unwrap().0 + 1);
    let (first, second) = (fleet.write_file("1.jsonl", first), fleet.write_file("2.jsonl", second));
    let a = fleet.member("a");
    fleet.ok("a", &["import", first.to_str().unwrap()]);
    let _b = fleet.member("b");
    assert!(a.terminate().as_secs() < 5);
    let mut import = fleet.command("d", &["import", second.to_str().unwrap()]).spawn().expect("starts");
    let _a = fleet.replica("a");
    assert!(import.wait().expect("ends").success());
    assert_eq!(fleet.converges(&["a", "b"]), history.export());
    let tail = fleet.tail();
    assert_eq!(tail.len(), 5_000);
    let ops = tail.iter().flat_map(|txn| txn["ops"].as_array().unwrap());
    assert_eq!(ops.filter(|op| op.get("delete").is_some()).count(), history.deletes);
    assert!(tail.iter().zip(1..).all(|(txn, seq): (_, u64)| txn["seq"] == seq), "sequences have no gaps");
}

#[test]
fn p08_conditions_are_checked_at_commit_and_rejections_are_reported_by_line() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let _a = fleet.member("a");
    let line = r#"{"ops":[{"put":{"collection":"users","key":"bob","value":1}}],"if":[{"absent":{"collection":"users","key":"bob"}}]}"#;
    let file = fleet.write_file("twice.jsonl", &format!("{line}\nnot json\n{line}\n"));
    let output = fleet.run("a", &["import", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("line 2: "), "{errors}");
    assert!(errors.contains("line 3: rejected: condition failed: expected absent users/bob"), "{errors}");
    let outbox = fleet.ok("a", &["outbox", "--json"]);
    assert!(outbox.contains("\"rejected\"") && outbox.contains("absent"), "{outbox}");
    fleet.ok("a", &["outbox", "dismiss", "--all"]);
    assert_eq!(fleet.ok("a", &["outbox", "--json"]), "");
    assert_eq!(fleet.run("a", &["put", "users", "bob", "--value", "2", "--if-absent"]).status.code(), Some(1));
    fleet.ok("a", &["put", "users", "bob", "--value", "2", "--if-version", "1"]);
    fleet.converges(&["a"]);
}

#[test]
fn errors_name_the_exceeded_limit() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let output = fleet.run("d", &["put", "c", &"k".repeat(1025), "--value", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("key_bytes_max"), "{output:?}");
    let large = fleet.write_file("large", &"x".repeat((1 << 20) + 1));
    let output = fleet.run("d", &["put", "c", "k", "--file", large.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("value_bytes_max"), "{output:?}");
}

#[test]
fn every_inspecting_command_speaks_json_online_and_offline() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let a = fleet.member("a");
    let file = fleet.write_file("in.jsonl", &History::new(3, 50, 10).lines);
    fleet.ok("a", &["import", file.to_str().unwrap()]);
    fleet.ok("a", &["put", "c", "k", "--value", "{ \"x\": 1.50 }"]);
    let export = fleet.converges(&["a"]);
    let on_both: [&[&str]; 5] = [&["get", "c", "k"], &["ls", "c"], &["collections"], &["export"], &["verify"]];
    let on_log: [&[&str]; 5] =
        [&["tail", "--from", "1"], &["history", "c", "k"], &["segments"], &["dump-record", "51"], &["members"]];
    let read = |name: &str, arguments: &[&str]| {
        let text = fleet.ok(name, &[arguments, &["--json"]].concat());
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect::<Vec<serde_json::Value>>()
    };
    let get = read("a", &["get", "c", "k"]);
    assert_eq!((get[0]["version"].as_u64(), get[0]["value"]["x"].as_f64()), (Some(51), Some(1.5)));
    assert!(fleet.export("a").contains(r#"{"collection":"c","key":"k","value":{"x":1.50}}"#), "digits are kept");
    let mut online = Vec::new();
    for arguments in on_both {
        online.push(read("d", arguments));
        read("a", arguments);
    }
    on_log.iter().for_each(|arguments| drop(read("d", arguments)));
    assert_eq!(read("d", &["presence"])[0]["name"], "a");
    assert_eq!(fleet.run("d", &["get", "c", "nothing"]).status.code(), Some(1));
    assert_eq!(fleet.run("d", &["no-such-command"]).status.code(), Some(2));
    drop((datastore, a));
    for (arguments, online) in on_both.iter().zip(&online).take(4) {
        assert_eq!(read("d", arguments), *online, "{arguments:?}");
        assert_eq!(read("a", arguments), *online, "{arguments:?}");
    }
    on_log.iter().for_each(|arguments| drop(read("d", arguments)));
    assert_eq!(fleet.status("d")["running"], false);
    // An empty list would say that nobody is connected to a datastore that works.
    assert!(fleet.refused("d", &["presence"]).contains("no process runs on"));
    assert_eq!(fleet.export("a"), export);
}

#[test]
fn p06_a_second_import_of_a_file_is_a_new_one_and_an_interrupted_one_resumes() {
    let fleet = Fleet::new();
    let _datastore = fleet.datastore();
    let history = History::new(11, 20_000, 500);
    let file = fleet.write_file("in.jsonl", &history.lines);
    let mut import = fleet.command("d", &["import", file.to_str().unwrap()]).spawn().expect("starts");
    fleet.wait("some are in", || fleet.status("d")["head"].as_u64() > Some(500));
    let _ = import.kill();
    let _ = import.wait();
    fleet.ok("d", &["import", file.to_str().unwrap()]);
    assert_eq!(fleet.status("d")["head"], 20_000, "nothing twice, nothing left out");
    assert_eq!(fleet.export("d"), history.export());
    let mut dice = Rng::new(1);
    let small = fleet.write_file("small.jsonl", &History::new(dice.below(100), 10, 3).lines);
    fleet.ok("d", &["import", small.to_str().unwrap()]);
    fleet.ok("d", &["import", small.to_str().unwrap()]);
    assert_eq!(fleet.status("d")["head"], 20_020);
}

#[test]
fn p06_an_import_pending_in_an_outbox_is_not_repeated_until_it_is_resolved() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let a = fleet.member("a");
    fleet.wait_connected("a");
    datastore.terminate();
    fleet.wait("it is disconnected", || fleet.status("a")["connected"] == false);
    let lines = |from: u32| -> String {
        let line = |number| {
            format!("{{\"ops\":[{{\"put\":{{\"collection\":\"c\",\"key\":\"k{number}\",\"value\":{number}}}}}]}}\n")
        };
        (from..from + 10).map(line).collect()
    };
    let file = fleet.write_file("in.jsonl", &lines(0));
    let import = || fleet.run("a", &["import", file.to_str().expect("text")]);
    let said = |output: &std::process::Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let first = import();
    assert!(first.status.success() && said(&first).contains("10 queued"), "{first:?}");
    let again = import();
    assert!(again.status.success() && said(&again).contains("10 imported before"), "{again:?}");
    assert_eq!(fleet.status("a")["outbox"], 10);
    // Another file at the same path is not confused with the pending one.
    fs_write(&file, &lines(100));
    assert!(!import().status.success());
    a.kill();
    let datastore = fleet.datastore();
    let a = fleet.replica("a");
    fleet.converges(&["a"]);
    let head = fleet.status("d")["head"].as_u64().expect("a head");
    fs_write(&file, &lines(0));
    let resumed = import();
    assert!(resumed.status.success() && said(&resumed).contains("10 imported before"), "{resumed:?}");
    assert_eq!(fleet.status("d")["head"].as_u64(), Some(head), "nothing twice");
    // Once everything is resolved, the next import is a new one, whatever the file contains.
    for start in [0, 200] {
        fs_write(&file, &lines(start));
        let new = import();
        assert!(new.status.success() && said(&new).contains("10 committed"), "{new:?}");
    }
    assert_eq!(fleet.status("d")["head"].as_u64(), Some(head + 20));
    a.terminate();
    datastore.terminate();
}

fn fs_write(path: &std::path::Path, text: &str) {
    std::fs::write(path, text).expect("writes");
}
