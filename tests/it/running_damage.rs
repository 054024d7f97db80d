//! Corruption found while a process runs: whichever read finds it, the status, the exit code and readiness report it
//! immediately instead of after the next start.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::files::copy_dir;
use crate::fleet::{Fleet, History, own_port};
use crate::web::client::Client;

/// Returns every file below `dir` for which `is_wanted` returns true.
fn files(dir: &Path, is_wanted: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in fs::read_dir(dir).expect("lists").map(|entry| entry.expect("entry").path()) {
        if path.is_dir() {
            found.extend(files(&path, is_wanted));
        } else if is_wanted(&path) {
            found.push(path);
        }
    }
    found
}

/// Flips a bit in every 512 bytes, in place, because the process has the file open.
fn flip(path: &Path) {
    let file = fs::File::options().read(true).write(true).open(path).expect("opens");
    let length = file.metadata().expect("is there").len();
    for at in (100..length.saturating_sub(100)).step_by(512) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("reads");
        file.write_all_at(&[byte[0] ^ 4], at).expect("writes");
    }
}

fn is_closed_segment(path: &Path) -> bool {
    let name = path.file_name().expect("named").to_string_lossy().into_owned();
    name.starts_with("seg-") && !name.contains("open")
}

fn is_table(path: &Path) -> bool {
    path.parent().is_some_and(|parent| parent.ends_with("tables"))
}

/// Returns the codes of the health reasons, and the exit code of `status`.
fn health(fleet: &Fleet, name: &str) -> (Vec<String>, Option<i32>) {
    let status = fleet.status(name);
    let reasons = status["health"]["reasons"].as_array().cloned().unwrap_or_default();
    let codes = reasons.iter().filter_map(|reason| reason["code"].as_str().map(str::to_owned)).collect();
    (codes, fleet.run(name, &["status"]).status.code())
}

fn is_reported(fleet: &Fleet, name: &str) -> bool {
    let (codes, exit) = health(fleet, name);
    codes.iter().any(|code| code == "damaged") && exit == Some(3)
}

/// Restores a directory from its saved copy.
fn put_back(fleet: &Fleet, name: &str) {
    fs::remove_dir_all(fleet.dir(name)).expect("removes");
    copy_dir(&fleet.dir(&format!("{name}.good")), &fleet.dir(name));
}

#[test]
fn p10_every_read_of_a_corrupt_segment_of_a_running_datastore_is_reported_by_its_status() {
    let mut fleet = Fleet::new();
    fleet.datastore_flags = vec!["--segment-mb".into(), "1".into()];
    let datastore = fleet.datastore();
    fleet.member("a").terminate();
    let file = fleet.write_file("in.jsonl", &History::new(2, 12_000, 3_000).lines);
    fleet.ok("d", &["import", file.to_str().expect("text")]);
    datastore.terminate();
    copy_dir(&fleet.dir("d"), &fleet.dir("d.good"));
    let backup = fleet.dir("backup").display().to_string();
    let reads: [(&[&str], bool); 10] = [
        (&["tail", "--from", "1"], true),
        (&["history", "users", "k00001"], true),
        (&["get", "users", "k00001", "--at", "9000"], true),
        (&["export", "--at", "9000"], true),
        (&["dump-record", "700"], true),
        (&["compact", "--history-ops", "0"], true),
        (&["backup", "create", &backup], true),
        (&["verify"], true),
        (&["diff", "--from", "100", "--to", "9000"], true),
        // A member that lags far behind is served from the segments.
        (&[], false),
    ];
    for (command, fails) in reads {
        let datastore = fleet.datastore();
        assert_eq!(health(&fleet, "d"), (Vec::new(), Some(0)), "before {command:?}");
        files(&fleet.dir("d/log"), &is_closed_segment).iter().for_each(|path| flip(path));
        if command.first() == Some(&"compact") {
            // No member pins the horizon.
            fleet.ok("d", &["revoke", "a"]);
        }
        if fails {
            let output = fleet.run("d", command);
            assert_eq!(output.status.code(), Some(3), "{command:?}: {output:?}");
            assert!(is_reported(&fleet, "d"), "{command:?}: {}", fleet.status("d"));
        } else {
            let member = fleet.replica("a");
            fleet.wait("the datastore reports it", || is_reported(&fleet, "d"));
            member.terminate();
        }
        let status = fleet.status("d");
        assert!(status["problem"].as_str().is_some_and(|problem| problem.contains("seg-")), "{status}");
        assert!(status["remedy"].as_str().is_some_and(|remedy| remedy.contains("repair --from")), "{status}");
        datastore.terminate();
        put_back(&fleet, "d");
    }
}

/// Returns more objects than fit into the cache.
fn bulk() -> String {
    let mut lines = String::new();
    for number in 0..900 {
        let text: String = (0..1200).map(|step| format!("{:016x}", (number * 7919 + step) * 104_729_u64)).collect();
        lines += &format!(
            "{{\"ops\":[{{\"put\":{{\"collection\":\"bulk\",\"key\":\"k{number:04}\",\"value\":\"{text}\"}}}}]}}\n"
        );
    }
    lines
}

#[test]
fn p10_every_read_of_a_corrupt_state_of_a_running_process_is_reported_by_its_status() {
    let mut fleet = Fleet::new();
    let config = fleet.write_file("small.conf", "[Global]\nDatastore-Cache-MB=1\nWebserver-Cache-MB=1\n");
    let config = config.display().to_string();
    fleet.datastore_flags = vec!["--config".into(), config.clone()];
    let datastore = fleet.datastore();
    let lines = fleet.write_file("in.jsonl", &bulk());
    fleet.enroll("web", "webserver");
    let port = own_port();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let start = || fleet.spawn_webserver("web", address, &["--config", &config, "--no-redirect"]);
    let web = start();
    fleet.wait_connected("web");
    fleet.ok("d", &["import", lines.to_str().expect("text")]);
    fleet.converges(&["web"]);
    web.terminate();
    datastore.terminate();
    for name in ["d", "web"] {
        assert!(!files(&fleet.dir(name), &is_table).is_empty(), "{name} has tables");
        copy_dir(&fleet.dir(name), &fleet.dir(&format!("{name}.good")));
    }
    let reads: [&[&str]; 4] = [&["get", "bulk", "k0100"], &["ls", "bulk"], &["export"], &["verify"]];
    for command in reads {
        let datastore = fleet.datastore();
        assert_eq!(health(&fleet, "d").1, Some(0), "before {command:?}");
        files(&fleet.dir("d/state"), &is_table).iter().for_each(|path| flip(path));
        let output = fleet.run("d", command);
        assert_eq!(output.status.code(), Some(3), "{command:?}: {output:?}");
        assert!(is_reported(&fleet, "d"), "{command:?}: {}", fleet.status("d"));
        datastore.terminate();
        put_back(&fleet, "d");
    }
    // A new member receives a snapshot.
    let datastore = fleet.datastore();
    fleet.ok("d", &["compact", "--history-ops", "0"]);
    fleet.enroll("late", "webserver");
    files(&fleet.dir("d/state"), &is_table).iter().for_each(|path| flip(path));
    let late = fleet.replica("late");
    fleet.wait("the datastore reports it", || is_reported(&fleet, "d"));
    late.terminate();
    // It restarts and rebuilds its index.
    datastore.terminate();
    let datastore = fleet.datastore();
    assert_eq!(health(&fleet, "d").1, Some(0));
    datastore.terminate();
    // A webserver without its datastore keeps reporting it and is not ready; with the datastore, it fetches the
    // state again.
    let client = Client::new(format!("http://{address}"));
    let ready = |wanted: u16| client.try_get("/api/ready").is_ok_and(|(status, _)| status == wanted);
    for command in reads {
        let datastore = fleet.datastore();
        let web = start();
        fleet.wait_connected("web");
        fleet.wait("it is ready", || ready(200));
        datastore.terminate();
        files(&fleet.dir("web"), &is_table).iter().for_each(|path| flip(path));
        let output = fleet.run("web", command);
        assert_eq!(output.status.code(), Some(3), "{command:?}: {output:?}");
        assert!(is_reported(&fleet, "web"), "{command:?}: {}", fleet.status("web"));
        fleet.wait("it is not ready", || ready(503));
        let datastore = fleet.datastore();
        fleet.wait("its state is intact again", || health(&fleet, "web").1 == Some(0) && ready(200));
        web.terminate();
        datastore.terminate();
        put_back(&fleet, "web");
    }
}
