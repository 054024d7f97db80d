//! Processes of search filters: their permissions, visibility and number.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use serde_json::json;

use super::Web;
use super::client::Client;
use super::searches::{ended, launch, numbers, resource};
use crate::fleet::Fleet;

/// A name within a filter that is unique on this host.
const SECRET: &str = "secret_4711_of_a_filter";

fn web_with(fleet: &Fleet, settings: &str) -> (Web, Client) {
    let config = fleet.write_file("gravwell.conf", &format!("[Global]\n{settings}"));
    let web = Web::start(fleet, "a", &["--config", config.to_str().expect("path")]);
    let admin = web.admin(fleet);
    resource(&admin, "numbers", &numbers(3));
    (web, admin)
}

/// Returns the /proc directories of a webserver's filters.
fn filters_of(web: &Web) -> Vec<PathBuf> {
    let parent = format!("PPid:\t{}\n", web.id());
    let processes = std::fs::read_dir("/proc").expect("lists").filter_map(|entry| Some(entry.ok()?.path()));
    let is_filter = |dir: &PathBuf| {
        std::fs::read_to_string(dir.join("status")).is_ok_and(|status| status.contains(&parent))
            && std::fs::read_to_string(dir.join("cmdline")).is_ok_and(|line| line.contains("gravwell-search-filter"))
    };
    processes.filter(is_filter).collect()
}

#[test]
fn p15_filters_are_confined_and_their_text_is_not_seen() {
    let fleet = Fleet::new();
    let (web, admin) = web_with(&fleet, "Search-Filter-Sandbox=required\nSearch-Max-Seconds=60\n");
    let query = format!("tag=resource:numbers | . as ${SECRET} | def f: f; f");
    let begun = admin.post("/api/searchctrl/launch", &json!({ "SearchString": query }));
    if begun.text().contains("cannot confine filters") {
        assert_eq!(begun.status, 400, "{}", begun.text());
        return eprintln!("SKIPPED: this kernel has no landlock");
    }
    let path = format!("/api/searchctrl/{}", begun.json()["SearchID"].as_str().expect("an id"));
    fleet.wait("the filter process runs", || filters_of(&web).len() == 1);
    let filter = filters_of(&web).remove(0);
    let read = |name: &str| std::fs::read_to_string(filter.join(name)).expect("reads");
    fleet.wait("the filter process is confined", || read("status").contains("Seccomp:\t2\n"));
    assert_eq!(read("oom_score_adj").trim(), "1000", "the OOM killer picks it first");
    assert!(read("status").contains("NoNewPrivs:\t1\n"), "{}", read("status"));
    let held: Vec<PathBuf> = std::fs::read_dir(filter.join("fd"))
        .expect("lists")
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .collect();
    // Pipes and /dev/null: those of the filter, and those with which the test was started.
    let is_own = |path: &PathBuf| path == Path::new("/dev/null") || path.to_string_lossy().starts_with("pipe:");
    assert!(held.len() >= 5 && held.iter().all(is_own), "it inherits no descriptors of the webserver: {held:?}");
    let limits = read("limits");
    assert!(limits.lines().any(|line| line.starts_with("Max open files            0 ")), "{limits}");
    for entry in std::fs::read_dir("/proc").expect("lists").filter_map(Result::ok) {
        for name in ["cmdline", "environ"] {
            let text = std::fs::read(entry.path().join(name)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            assert!(!text.contains(SECRET), "{}: {text}", entry.path().display());
        }
    }
    admin.ok("PUT", &format!("{path}/stop"));
    fleet.wait("it has ended", || filters_of(&web).is_empty());
    // Features that work without files: time zones, random numbers, regular expressions, errors.
    let query = "tag=resource:numbers | limit 1 | [(0 | localtime | mktime), (\"a1\" | test(\"[0-9]\")), env]";
    let path = launch(&admin, query);
    assert_eq!(ended(&admin, &path)["Progress"], "done");
    assert_eq!(admin.get(&format!("{path}/download/text")).text(), "[0,true,{\"TZ\":\"\"}]\n");
}

#[test]
fn p15_filter_processes_of_all_searches_are_bounded() {
    let fleet = Fleet::new();
    let (web, admin) = web_with(&fleet, "Search-Filter-Processes=16\nSearch-Max-Seconds=120\nSearch-Max-Per-User=3\n");
    // Eight filters; the first one never outputs anything.
    let waiting = " | limit 9 | .".repeat(7);
    let query = format!("tag=resource:numbers | def f: f; f{waiting}");
    let first = launch(&admin, &query);
    let _second = launch(&admin, &query);
    fleet.wait("all processes run", || filters_of(&web).len() == 16);
    let begin = |query: &str| admin.post("/api/searchctrl/launch", &json!({ "SearchString": query }));
    let refused = begin("tag=resource:numbers | .n");
    assert!(refused.status == 503 && refused.text().contains("Search-Filter-Processes"), "{}", refused.text());
    assert_eq!(filters_of(&web).len(), 16);
    // Queries are still checked, and searches without filters run.
    let parsed = admin.post("/api/parse", &json!({ "SearchString": "tag=resource:numbers | .n" })).json();
    assert_eq!(parsed["GoodQuery"], true, "{parsed}");
    assert_eq!(ended(&admin, &launch(&admin, "tag=resource:numbers | count"))["ItemCount"], 1);
    // A waiting search counts towards its user's limit, and is served in turn.
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            // Until the other searches leave the user's third slot free.
            loop {
                let status = begin("tag=resource:numbers | .n").status;
                if status != 429 {
                    return status;
                }
            }
        });
        fleet.wait("a fourth search is rejected", || {
            let answer = begin("tag=resource:numbers | count");
            if answer.status == 200 {
                let id = answer.json()["SearchID"].as_str().expect("an id").to_owned();
                ended(&admin, &format!("/api/searchctrl/{id}"));
            }
            answer.status == 429 && answer.text().contains("Search-Max-Per-User")
        });
        admin.ok("PUT", &format!("{first}/stop"));
        assert_eq!(waits.join().expect("answers"), 200);
    });
}

/// Makes the landlock system call fail as on a kernel without it, for the calling thread and its child processes.
fn take_landlock_away() {
    let rules = BTreeMap::from([(libc::SYS_landlock_create_ruleset, Vec::new())]);
    let (unknown, arch) = (SeccompAction::Errno(libc::ENOSYS.unsigned_abs()), std::env::consts::ARCH.try_into());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, unknown, arch.expect("known"));
    let program = BpfProgram::try_from(filter.expect("rules")).expect("a program");
    seccompiler::apply_filter(&program).expect("applies");
}

#[test]
fn p15_a_kernel_without_landlock_is_named_in_the_log_or_refused() {
    let play = |setting: &'static str| {
        let playing = std::thread::spawn(move || {
            take_landlock_away();
            let fleet = Fleet::new();
            let (_web, admin) = web_with(&fleet, setting);
            let query = json!({ "SearchString": "tag=resource:numbers | .n" });
            let begun = admin.post("/api/searchctrl/launch", &query);
            let plain =
                admin.post("/api/searchctrl/launch", &json!({ "SearchString": "tag=resource:numbers | count" }));
            assert_eq!(plain.status, 200, "searches without filters run: {}", plain.text());
            (begun.status, begun.text(), fleet.log_of("a"))
        });
        playing.join().expect("plays")
    };
    let (status, answer, log) = play("");
    assert_eq!(status, 200, "{answer}");
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("not fully confined")).collect();
    assert!(lines.len() == 1 && lines[0].contains("no landlock"), "logged once, with the missing layer: {log}");
    let (status, answer, log) = play("Search-Filter-Sandbox=required\n");
    assert!(status == 400 && answer.contains("cannot confine filters: no landlock"), "{status} {answer}");
    assert!(log.contains("filter self-test failed; searches with filters will fail"), "{log}");
}
