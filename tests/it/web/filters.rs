//! Processes in which filters of searches run: what they may do, what of them is seen, and how many there are.

use std::path::PathBuf;

use serde_json::json;

use super::Web;
use super::client::Client;
use super::searches::{ended, launch, numbers, resource};
use crate::fleet::Fleet;

/// A name within a filter that no other process of this host knows.
const SECRET: &str = "secret_4711_of_a_filter";

fn web_with(fleet: &Fleet, settings: &str) -> (Web, Client) {
    let config = fleet.write_file("gravwell.conf", &format!("[Global]\n{settings}"));
    let web = Web::start(fleet, "a", &["--config", config.to_str().expect("path")]);
    let admin = web.admin(fleet);
    resource(&admin, "numbers", &numbers(3));
    (web, admin)
}

/// Directories in /proc of the filters of a webserver.
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
        return eprintln!("LEFT OUT: this kernel has no landlock");
    }
    let path = format!("/api/searchctrl/{}", begun.json()["SearchID"].as_str().expect("an id"));
    fleet.wait("its filter runs", || filters_of(&web).len() == 1);
    let filter = filters_of(&web).remove(0);
    let read = |name: &str| std::fs::read_to_string(filter.join(name)).expect("reads");
    fleet.wait("it is confined", || read("status").contains("Seccomp:\t2\n"));
    assert_eq!(read("oom_score_adj").trim(), "1000", "it is the first to go when memory runs short");
    assert!(read("status").contains("NoNewPrivs:\t1\n"), "{}", read("status"));
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
    // What filters do without files: time zones, randomness, regular expressions, errors.
    let query = "tag=resource:numbers | limit 1 | [(0 | localtime | mktime), (\"a1\" | test(\"[0-9]\")), env]";
    let path = launch(&admin, query);
    assert_eq!(ended(&admin, &path)["Progress"], "done");
    assert_eq!(admin.get(&format!("{path}/download/text")).text(), "[0,true,{\"TZ\":\"\"}]\n");
}

#[test]
fn p15_filter_processes_of_all_searches_are_bounded() {
    let fleet = Fleet::new();
    let (web, admin) = web_with(&fleet, "Search-Filter-Processes=16\nSearch-Max-Seconds=120\nSearch-Max-Per-User=3\n");
    // Eight filters, of which the first one never gives anything to the others.
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
    // One that waits is counted as one of its user's, and has its turn.
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            // Until the others leave it the third place of the user.
            loop {
                let status = begin("tag=resource:numbers | .n").status;
                if status != 429 {
                    return status;
                }
            }
        });
        fleet.wait("a fourth one is one too many", || {
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
