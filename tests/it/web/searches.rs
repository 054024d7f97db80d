//! Searches: run on one webserver, visible from every other.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::ADMIN_PASSWORD;
use super::client::Client;
use super::{Site, Web};
use crate::fleet::Fleet;

/// Creates a resource with contents.
#[track_caller]
pub(super) fn resource(client: &Client, name: &str, contents: &str) {
    let made = client.made("/api/resources", &json!({ "ResourceName": name }));
    let raw = format!("/api/resources/{}/raw", made["GUID"].as_str().expect("GUID"));
    assert_eq!(client.upload("PUT", &raw, "file", contents.as_bytes()).status, 200);
}

/// Starts a search and returns its path.
#[track_caller]
pub(super) fn launch(client: &Client, query: &str) -> String {
    let begun = client.made("/api/searchctrl/launch", &json!({ "SearchString": query }));
    format!("/api/searchctrl/{}", begun["SearchID"].as_str().expect("an id"))
}

/// Waits for the end of a search and returns its details.
#[track_caller]
pub(super) fn ended(client: &Client, path: &str) -> Value {
    let begun = Instant::now();
    loop {
        let details = client.ok("GET", &format!("{path}/details"));
        if details["Progress"] != "running" {
            return details;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{details}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[track_caller]
pub(super) fn direct(client: &Client, query: &str, format: &str) -> super::client::Answer {
    client.post("/api/search/direct?duration=1h", &json!({ "SearchString": query, "Format": format }))
}

#[track_caller]
pub(super) fn text(client: &Client, query: &str) -> String {
    let answer = direct(client, query, "text");
    assert_eq!(answer.status, 200, "{query}: {}", answer.text());
    answer.text()
}

pub(super) fn numbers(count: usize) -> String {
    let line =
        |n: usize| format!("{{\"n\":{n},\"kind\":\"{}\"}}\n", if n.is_multiple_of(3) { "fizz" } else { "plain" });
    (1..=count).map(line).collect()
}

#[test]
fn queries_return_the_requested_rows() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    resource(&admin, "numbers", &numbers(30));
    resource(&admin, "people.csv", "name,town\nAda,London\n\"Grace, H.\",Arlington\n");
    resource(&admin, "notes", "first line\nsecond line with Ada\n");
    let cases = [
        ("tag=resource:numbers | .n | select(. > 28)", "29\n30\n"),
        ("tag=resource:numbers fizz | count", "{\"count\":10}\n"),
        ("tag=resource:numbers -fizz | count", "{\"count\":20}\n"),
        (
            "tag=resource:numbers | count by kind",
            "{\"count\":20,\"kind\":\"plain\"}\n{\"count\":10,\"kind\":\"fizz\"}\n",
        ),
        ("tag=resource:numbers | sort by n desc | limit 2 | .n", "30\n29\n"),
        ("tag=resource:numbers | limit 2 | {n, m: (.n * 2)} | table m", "{\"m\":2}\n{\"m\":4}\n"),
        ("tag=resource:numbers | [inputs | .n] | add", "464\n"),
        ("tag=resource:notes ada", "second line with Ada\n"),
        ("tag=resource:people.csv,resource:notes \"ada\" | count", "{\"count\":2}\n"),
        ("tag=resource:people.csv | .name", "Ada\nGrace, H.\n"),
        ("tag=resource:numbers | select(.n > 1000)", ""),
    ];
    for (query, wanted) in cases {
        assert_eq!(text(&admin, query), wanted, "{query}");
    }
    let csv = direct(&admin, "tag=resource:people.csv | table name", "csv");
    assert_eq!(csv.text(), "name\r\nAda\r\n\"Grace, H.\"\r\n");
    let formula = r#"tag=resource:numbers | limit 1 | {a: "=1+1", b: -3.5} | table a b"#;
    assert_eq!(direct(&admin, formula, "csv").text(), "a,b\r\n'=1+1,-3.5\r\n");
    assert_eq!(direct(&admin, formula, "csv-raw").text(), "a,b\r\n=1+1,-3.5\r\n");
    let list: Value = direct(&admin, "tag=resource:people.csv | limit 1", "json").json();
    assert_eq!(list[0]["Data"]["town"], "London");
    assert_eq!(direct(&admin, "tag=resource:people.csv", "pcap").status, 400);

    // The audit trail as rows: authors of changes are found, secrets are not.
    admin.made("/api/users", &json!({ "User": "bob", "Pass": "open sesame now", "Email": "b@x" }));
    let events =
        text(&admin, r#"tag=audit | select(.collection == "users" and .op == "put") | [.user, .after.User, .before]"#);
    assert!(events.contains("[\"admin\",\"bob\",null]\n"), "{events}");
    let secrets = text(&admin, r#"tag=audit | select(.collection == "passwords" or .collection == "sessions")"#);
    assert!(secrets.contains("passwords") && !secrets.contains("argon2"), "{secrets}");
    let bob = web.login("bob", "open sesame now");
    assert_eq!(direct(&bob, "tag=audit", "text").status, 400);
    assert_eq!(direct(&bob, "tag=resource:numbers", "text").status, 400);
    assert_eq!(bob.ok("GET", "/api/tags"), json!([]));
    assert_eq!(admin.ok("GET", "/api/searchctrl"), json!([]), "direct queries leave no search");
    assert_eq!(admin.ok("GET", "/api/searchhistory").as_array().map(Vec::len), Some(17));
}

#[test]
fn query_errors_have_positions_and_runaway_queries_are_stopped() {
    let fleet = Fleet::new();
    let config = fleet
        .write_file("gravwell.conf", "[Global]\nRender-Store-Limit=1\nSearch-Max-Seconds=5\nSearch-Max-Per-User=2\n");
    let web = Web::start(&fleet, "a", &["--config", config.to_str().expect("path")]);
    let admin = web.admin(&fleet);
    resource(&admin, "numbers", &numbers(10));
    resource(&admin, "broken.json", "{\"n\":1}\n{\n");
    for (query, column, message) in [
        ("tag=non-existant", 5, "Could not match tag spec non-existant against any known tags"),
        ("tag=resource:numbers | .n +", 28, "expected"),
        ("tag=resource:numbers | .n | nonsense(1)", 29, "nonsense"),
        ("tag=resource:absent | .", 5, "no resource called absent"),
        ("tag=resource:numbers | limit x", 24, "limit 100"),
    ] {
        let answer = admin.post("/api/parse", &json!({ "SearchString": query, "Sequence": 7 })).json();
        assert_eq!(
            (&answer["GoodQuery"], &answer["Sequence"], &answer["RawQuery"]),
            (&json!(false), &json!(7), &json!(query))
        );
        assert!(answer["ParseError"].as_str().expect("text").contains(message), "{query}: {answer}");
        assert_eq!(answer["Column"], column, "{query}: {answer}");
        assert_eq!(admin.post("/api/searchctrl/launch", &json!({ "SearchString": query })).status, 400);
    }
    let deep = format!("tag=resource:numbers | {}1{}", "(".repeat(4000), ")".repeat(4000));
    let judged = admin.post("/api/parse", &json!({ "SearchString": deep })).json();
    assert!(judged["GoodQuery"].is_boolean(), "the webserver must survive");
    // Each is ended by a different limit, without any effect on the webserver.
    for (query, state, reason) in [
        ("tag=resource:numbers | repeat(.)", "done", "Render-Store-Limit"),
        ("tag=resource:numbers | reduce range(100) as $n (\"xxxx\"; . + .)", "failed", "memory"),
        ("tag=resource:numbers | def f: 1 + f; f", "failed", ""),
        ("tag=resource:numbers | def f: f; f", "stopped", "Search-Max-Seconds"),
        ("tag=resource:numbers | \"x\" * 1000000000", "failed", ""),
    ] {
        let details = ended(&admin, &launch(&admin, query));
        assert_eq!(details["Progress"], state, "{query}: {details}");
        assert!(details["Reason"].as_str().expect("text").contains(reason), "{query}: {details}");
    }
    let part = ended(&admin, &launch(&admin, "tag=resource:broken.json"));
    assert_eq!((&part["ItemCount"], &part["Progress"]), (&json!(1), &json!("failed")), "{part}");
    assert!(part["Error"].as_str().expect("text").contains("line 2 is not JSON"), "{part}");
    let wrong = ended(&admin, &launch(&admin, "tag=resource:numbers | .n | .x"));
    assert!(wrong["Progress"] == "done" && wrong["Warnings"].to_string().contains("failed on 10 rows"), "{wrong}");

    // Two searches may run; stopping one frees its slot.
    let endless = "tag=resource:numbers | def f: f; f";
    let (first, _second) = (launch(&admin, endless), launch(&admin, endless));
    let refused = admin.post("/api/searchctrl/launch", &json!({ "SearchString": endless }));
    assert_eq!(refused.status, 429, "{}", refused.text());
    admin.ok("PUT", &format!("{first}/stop"));
    assert_eq!(admin.ok("GET", &first)["State"], "DORMANT");
    let third = launch(&admin, endless);
    admin.ok("DELETE", &third);
    assert_eq!(admin.get(&third).status, 404);
    assert!(web.nobody().answers());
}

#[test]
fn a_search_is_visible_usable_and_saved_on_every_webserver() {
    let mut site = Site::new();
    let (a, b) = site.admins();
    resource(&a, "numbers", &numbers(20_000));
    let path = launch(&a, "tag=resource:numbers | {n, kind}");
    let details = ended(&a, &path);
    assert_eq!((&details["ItemCount"], &details["Webserver"]), (&json!(20_000), &json!("a")), "{details}");
    site.converges();
    let listed = b.ok("GET", "/api/searchctrl");
    assert_eq!((&listed[0]["Webserver"], &listed[0]["ItemCount"]), (&json!("a"), &json!(20_000)), "{listed}");
    let formats = ["text", "json", "csv", "archive"];
    let of = |client: &Client, format: &str| {
        let answer = client.get(&format!("{path}/download/{format}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.body
    };
    let at_a: Vec<Vec<u8>> = formats.iter().map(|format| of(&a, format)).collect();
    // This many rows pass through two processes, and keep their order.
    assert!(at_a[0] == numbers(20_000).into_bytes(), "all rows, in order");
    for (format, wanted) in formats.iter().zip(&at_a) {
        assert!(of(&b, format) == *wanted, "{format} through another webserver");
    }
    assert_eq!(b.get(&format!("{path}/download/pcap")).status, 400);
    let page = b.ok("GET", &format!("{path}/rows?first=19998&count=10"));
    assert_eq!((page["Rows"].as_array().map(Vec::len), &page["Total"]), (Some(2), &json!(20_000)));
    assert_eq!(a.ok("GET", &format!("{path}/rows?first=19998&count=10")), page);
    assert_eq!(b.ok("GET", &format!("{path}/stats/overview"))["Finished"], true);

    // Saved from the other webserver; a second one is not saved.
    let unsaved = launch(&a, "tag=resource:numbers | limit 5");
    ended(&a, &unsaved);
    site.converges();
    let saved = b.call("PATCH", &format!("{path}/save"));
    assert_eq!(saved.status, 200, "{}", saved.text());
    assert_eq!(saved.json()["Saved"], true);
    site.converges();
    // The saved results have not been read at b before.
    site.a.kill();
    for (format, wanted) in formats.iter().zip(&at_a) {
        assert!(of(&b, format) == *wanted, "{format} of a saved search without its webserver");
    }
    let begun = Instant::now();
    let refused = b.get(&format!("{unsaved}/download/text"));
    println!("time until the killed webserver was named: {:?}", begun.elapsed());
    assert_eq!(refused.status, 503);
    assert!(refused.text().contains("webserver a, which cannot be reached"), "{}", refused.text());
    assert_eq!(b.ok("GET", &unsaved)["ItemCount"], 5, "its metadata is still returned");
    b.ok("DELETE", &unsaved);
    site.a.restart(&site.fleet, &[]);
    site.converges();
    assert_eq!(site.a.login("admin", ADMIN_PASSWORD).get(&unsaved).status, 404);
    b.ok("DELETE", &path);
    let left = site.converges();
    assert!(!left.contains("\"searches\""), "{left}");
}
