//! The user interface as used by people: a change made in a browser at one webserver appears in another browser at
//! another webserver, on an open page that is not reloaded.

use std::path::PathBuf;

use serde_json::json;

use super::ADMIN_PASSWORD;
use super::driver::{Browser, Driver};
use super::second_factors::App;
use super::{Site, Web};

/// Directory for screenshots of all pages, if set: `GRAVWELL_PICTURES=directory`.
const PICTURES: &str = "GRAVWELL_PICTURES";

/// Returns the selector of a table row.
fn row(name: &str) -> String {
    format!("[data-test=\"row-{name}\"]")
}

fn test(name: &str) -> String {
    format!("[data-test=\"{name}\"]")
}

/// Returns the selector of a button within a row.
fn within(name: &str, button: &str) -> String {
    format!("{} {}", row(name), test(button))
}

impl Browser {
    #[track_caller]
    fn sign_in(&self, web: &Web, user: &str, password: &str) {
        self.open(&format!("http://{}/", web.address));
        self.fill(&test("user"), user);
        self.fill(&test("pass"), password);
        self.click(&test("sign-in"));
        self.sees(&test("sign-out"), "Sign out");
        // Reloading the page would lose it.
        self.run("window.sinceSignIn = true");
    }

    #[track_caller]
    fn was_never_loaded_again(&self) {
        assert_eq!(self.run("return window.sinceSignIn === true"), true);
        assert_eq!(self.complaints(), Vec::<String>::new());
    }

    #[track_caller]
    fn save(&self) {
        self.click(&test("save"));
    }

    #[track_caller]
    fn delete(&self, name: &str) {
        self.click(&within(name, "delete"));
        self.click(&test("confirm"));
    }
}

struct Two {
    site: Site,
    a: Browser,
    b: Browser,
    _driver: Driver,
}

impl Two {
    /// Starts two browsers, signed in at two webservers.
    fn start() -> Option<Two> {
        let driver = Driver::start()?;
        let site = Site::new();
        site.admins();
        let (a, b) = (driver.browser(&site.fleet.dir("browser-a")), driver.browser(&site.fleet.dir("browser-b")));
        a.sign_in(&site.a, "admin", ADMIN_PASSWORD);
        b.sign_in(&site.b, "admin", ADMIN_PASSWORD);
        Some(Two { site, a, b, _driver: driver })
    }

    fn go(&self, place: &str) {
        self.a.go(place);
        self.b.go(place);
    }

    fn file(&self, name: &str, contents: &str) -> PathBuf {
        self.site.fleet.write_file(name, contents)
    }
}

fn people(two: &Two) {
    let Two { a, b, .. } = two;
    two.go("/groups");
    a.click(&test("create-group"));
    a.fill(&test("field-Name"), "readers");
    a.save();
    b.sees(&row("readers"), "readers");
    two.go("/users");
    a.click(&test("create-user"));
    a.fill(&test("field-User"), "bob");
    a.fill(&test("field-Pass"), "a long password");
    a.click(&test("group-readers"));
    a.save();
    b.sees(&row("bob"), "readers");
    a.click(&within("bob", "edit"));
    a.fill(&test("field-Name"), "Bob Builder");
    a.save();
    b.sees(&row("bob"), "Bob Builder");
    a.click(&test("lock"));
    a.click(&test("confirm"));
    b.sees(&within("bob", "is-locked"), "locked");
    a.click(&test("unlock"));
    b.misses(&within("bob", "is-locked"));
    two.go("/groups");
    a.click(&within("readers", "edit"));
    a.fill(&test("field-Desc"), "those who read");
    a.save();
    b.sees(&row("readers"), "those who read");
}

fn dashboards(two: &Two) {
    let Two { a, b, .. } = two;
    two.go("/dashboards");
    b.sees(&test("empty"), "no dashboards");
    a.click(&test("create-dashboard"));
    a.fill(&test("field-Name"), "errors");
    a.fill(&test("field-Data"), r#"{"tiles": [{"id": 9007199254740991}]}"#);
    a.save();
    b.sees(&row("errors"), "errors");
    b.click(&within("errors", "edit"));
    b.sees(&test("field-Name"), "");
    a.fill(&test("field-Description"), "what went wrong");
    a.click(&test("share-read-readers"));
    a.save();
    a.sees(&test("toast"), "Saved");
    let typed = |browser: &Browser| browser.run("return document.querySelector('[name=Description]')?.value ?? ''");
    two.site.fleet.wait("the open form follows", || typed(b) == "what went wrong");
    let data = b.run("return document.querySelector('[name=Data]').value");
    assert!(data.as_str().expect("text").contains("9007199254740991"), "{data}");
    b.go("/dashboards");
    b.sees(&row("errors"), "readers");
    a.go("/dashboards");
    a.click(&within("errors", "clone"));
    a.sees("h1", "errors");
    two.site
        .fleet
        .wait("the copy is listed, too", || b.run("return document.querySelectorAll('tbody tr').length") == 2);
    a.click(&test("delete"));
    a.click(&test("confirm"));
    two.site.fleet.wait("one row is deleted", || b.run("return document.querySelectorAll('tbody tr').length") == 1);
    a.delete("errors");
    b.sees(&test("empty"), "no dashboards");
}

/// The pages of the kinds of the generic resource, which all are the same pages.
fn kinds(two: &Two) {
    let Two { site, a, b, .. } = two;
    two.go("/macros");
    b.sees(&test("empty"), "no macros");
    a.click(&test("create-owned"));
    a.fill(&test("field-Name"), "lower case");
    a.fill(&test("field-Expansion"), "web1 OR web2");
    a.click(&test("share-read-readers"));
    a.save();
    a.sees(&test("failure"), "must consist of A to Z");
    a.fill(&test("field-Name"), "HOSTS");
    a.save();
    b.sees(&row("HOSTS"), "readers");
    b.click(&within("HOSTS", "edit"));
    b.sees("h1", "HOSTS");
    a.sees("h1", "HOSTS");
    a.fill(&test("field-Description"), "all web servers");
    a.save();
    a.sees(&test("toast"), "Saved");
    let typed = |name: &str| b.run(&format!("return document.querySelector('[name={name}]')?.value ?? ''"));
    site.fleet.wait("the open form follows", || typed("Description") == "all web servers");
    assert_eq!(typed("Expansion"), "web1 OR web2");
    a.go("/macros");
    a.delete("HOSTS");
    b.sees(&test("gone"), "was deleted");
    two.go("/playbooks");
    a.click(&test("create-owned"));
    a.fill(&test("field-Name"), "steps");
    a.fill(&test("field-Body"), "1. Größe prüfen");
    a.save();
    b.click(&within("steps", "edit"));
    site.fleet.wait("the text is read", || typed("Body") == "1. Größe prüfen");
    b.go("/playbooks");
    b.delete("steps");
    for kind in ["templates", "actionables", "saved-queries"] {
        two.go(&format!("/{kind}"));
        a.click(&test("create-owned"));
        a.fill(&test("field-Name"), "new");
        a.save();
        b.sees(&row("new"), "new");
        b.delete("new");
        b.sees(&test("empty"), "There are no");
    }
}

fn resources(two: &Two) {
    let Two { a, b, .. } = two;
    let (first, second) = (two.file("first.csv", "a,b\n1,2\n"), two.file("second.csv", "a,b\n1,2\n3,4\n"));
    two.go("/resources");
    a.click(&test("create-resource"));
    a.fill(&test("field-ResourceName"), "table");
    a.attach("dialog input[type=file]", &first);
    a.save();
    b.sees(&row("table"), "8 B");
    b.click(&within("table", "edit"));
    b.sees("pre", "1,2");
    a.click(&within("table", "edit"));
    a.attach("input[type=file]", &second);
    b.sees("pre", "3,4");
    b.sees(&test("version"), "2");
    a.click(&test("share-read-readers"));
    a.fill(&test("field-Description"), "numbers");
    a.save();
    b.go("/resources");
    b.sees(&row("table"), "readers");
    a.go("/resources");
    a.delete("table");
    b.sees(&test("empty"), "no resources");
}

fn searching(two: &Two) {
    let Two { site, a, b, .. } = two;
    let query = "tag=audit bob | table user op collection";
    a.go("/search");
    a.fill(&test("field-query"), "tag=audit | nonsense");
    a.sees(&test("mistake"), "Column 13");
    a.fill(&test("field-query"), query);
    a.click(&test("run"));
    a.sees(&test("search-state"), "done");
    a.sees(&test("result-row"), "admin");
    b.go("/searches");
    b.sees(&row(query), "done");
    b.click(&within(query, "open"));
    b.sees(&test("holder"), "a");
    b.sees(&test("result-row"), "admin");
    b.sees(".histogram-ends", "20");
    b.click(&test("save-search"));
    a.sees(".facts", "on all webservers");
    a.click(&test("share"));
    a.click(&test("share-read-readers"));
    a.save();
    two.go("/history");
    b.click(&within(query, "again"));
    let typed = || b.run("return document.querySelector('#query')?.value ?? ''");
    site.fleet.wait("the form shows the query again", || typed() == query);
    two.go("/searches");
    b.delete(query);
    a.misses(&row(query));
}

fn own_things(two: &Two) {
    let Two { site, a, b, .. } = two;
    two.go("/tokens");
    a.click(&test("create-token"));
    a.fill(&test("field-name"), "script");
    a.click(&test("capability-ResourceRead"));
    a.save();
    a.click(&test("done"));
    b.sees(&row("script"), "ResourceRead");
    a.click(&within("script", "edit"));
    a.fill(&test("field-description"), "reads tables");
    a.save();
    b.sees(&row("script"), "reads tables");
    a.delete("script");
    b.sees(&test("empty"), "no tokens");

    two.go("/preferences");
    a.fill(&test("field-Data"), r#"{"favourite": "blue"}"#);
    a.save();
    let shown = || b.run("return document.querySelector('[name=Data]')?.value ?? ''").to_string();
    site.fleet.wait("the other browser shows them", || shown().contains("blue"));
    a.click(&test("theme-dark"));
    site.fleet
        .wait("the other browser changes, too", || b.run("return document.documentElement.dataset.theme") == "dark");
    a.click(&test("delete"));
    a.click(&test("confirm"));
    site.fleet.wait("they are deleted there, too", || !shown().contains("blue"));

    two.go("/notifications");
    a.click(&test("create-notification"));
    a.fill(&test("field-Msg"), "lunch");
    a.save();
    b.sees(&row("lunch"), "lunch");
    b.sees(&test("bell-count"), "1");
    a.click(&within("lunch", "delete"));
    b.misses(&row("lunch"));
    b.misses(&test("bell-count"));

    two.go("/history");
    // Searches are started through the API.
    let admin = site.a.login("admin", ADMIN_PASSWORD);
    admin.made("/api/searchhistory", &json!({ "UserQuery": "tag=web error" }));
    b.sees(&row("tag=web error"), "tag=web error");
    a.sees(&row("tag=web error"), "tag=web error");
    a.click(&test("delete"));
    a.click(&test("confirm"));
    b.misses(&row("tag=web error"));
}

fn endings(two: &Two) {
    let Two { site, a, b, .. } = two;
    two.go("/log");
    b.sees("main", "delete dashboard errors");
    two.go("/groups");
    a.delete("readers");
    b.misses(&row("readers"));
    two.go("/users");
    a.click(&within("bob", "edit"));
    a.click(&test("delete"));
    a.click(&test("confirm"));
    b.misses(&row("bob"));
    two.go("/fleet");
    b.sees("main", "same as this webserver");
    b.sees("header", "In sync");
    for browser in [a, b] {
        browser.was_never_loaded_again();
    }
    // A session that ends anywhere ends here, too, on the open page.
    assert_eq!(site.a.login("admin", ADMIN_PASSWORD).call("DELETE", "/api/logout").status, 200);
    b.sees(&test("sign-in"), "Sign in");
}

#[test]
fn a_change_in_one_browser_appears_in_the_other() {
    let Some(two) = Two::start() else { return };
    people(&two);
    dashboards(&two);
    kinds(&two);
    resources(&two);
    searching(&two);
    own_things(&two);
    endings(&two);
}

#[test]
fn offline_mode_and_a_conflict_are_shown_in_the_browser() {
    let Some(mut two) = Two::start() else { return };
    two.go("/users");
    two.site.stop_datastore();
    for browser in [&two.a, &two.b] {
        browser.sees(&test("banner-offline"), "Offline");
        browser.click(&test("create-user"));
        browser.fill(&test("field-User"), "carol");
        browser.fill(&test("field-Pass"), "a long password");
        browser.save();
        browser.sees(&within("carol", "pending"), "pending");
    }
    two.site.start_datastore();
    let fleet = &two.site.fleet;
    let is_told = |browser: &Browser| browser.text(&test("badge-rejected")) == "1";
    fleet.wait("one of the users is notified", || is_told(&two.a) || is_told(&two.b));
    two.site.converges();
    let (refused, accepted) = if is_told(&two.a) { (&two.a, &two.b) } else { (&two.b, &two.a) };
    assert!(!is_told(accepted));
    for browser in [refused, accepted] {
        browser.misses(&test("banner-offline"));
        browser.sees(&row("carol"), "carol");
        browser.misses(&within("carol", "pending"));
    }
    refused.sees(&test("bell-count"), "1");
    refused.go("/notifications");
    refused.sees("tbody", "create user carol");
    refused.go("/rejections");
    refused.sees(&row("create user carol"), "a user called carol already exists");
    refused.click(&within("create user carol", "delete"));
    refused.click(&test("confirm"));
    refused.sees(&test("empty"), "nothing to do");
    refused.misses(&test("badge-rejected"));
    for browser in [&two.a, &two.b] {
        browser.was_never_loaded_again();
    }
}

#[test]
fn a_second_factor_is_set_up_asked_for_and_cleared_in_browsers() {
    let Some(two) = Two::start() else { return };
    let Two { site, a, b, .. } = &two;
    let admin = site.b.admin(&site.fleet);
    let uid = admin.made("/api/users", &json!({ "User": "bob", "Pass": "a plain horse" }));
    site.converges();
    let prove = |password: &str, code: Option<&str>| {
        a.fill(&test("field-Pass"), password);
        if let Some(code) = code {
            a.fill(&test("field-Code"), code);
        }
        a.click(&test("prove-password"));
    };
    a.click(&test("sign-out"));
    a.sign_in(&site.a, "bob", "a plain horse");
    a.go("/profile");
    a.sees(&test("second-factor"), "off");
    a.click(&test("set-up-factor"));
    prove("a plain mouse", None);
    a.sees(&test("failure"), "wrong user name or password");
    prove("a plain horse", None);
    a.sees(&test("prove"), "Turn on");
    let is_shown = || a.run("return document.querySelector('[data-test=qr]').naturalWidth > 100") == true;
    site.fleet.wait("the picture is loaded", is_shown);
    let seed = a.run("return document.querySelector('[data-test=seed]').textContent");
    let app = App::of_seed(seed.as_str().expect("text"));
    a.fill(&test("field-Code"), &app.wrong());
    a.click(&test("prove"));
    a.sees(&test("failure"), "wrong code");
    let first = app.code(0);
    a.fill(&test("field-Code"), &first);
    a.click(&test("prove"));
    a.sees(&test("codes"), "-");
    let codes: Vec<String> = a.text(&test("codes")).lines().map(str::to_owned).collect();
    assert_eq!(codes.len(), 10);
    a.click(&test("done"));
    a.sees(&test("second-factor"), "on");
    a.sees(&test("codes-left"), "10 left");
    // The session was replaced, without any effect on the page.
    a.was_never_loaded_again();

    a.click(&test("sign-out"));
    a.fill(&test("user"), "bob");
    a.fill(&test("pass"), "a plain horse");
    a.click(&test("sign-in"));
    a.fill(&test("field-Code"), &first);
    a.click(&test("sign-in"));
    a.sees(&test("failure"), "already used");
    a.fill(&test("field-Code"), &app.code(1));
    a.click(&test("sign-in"));
    a.sees(&test("sign-out"), "Sign out");
    a.go("/profile");
    a.click(&test("new-codes"));
    prove("a plain horse", Some(&codes[0]));
    a.sees(&test("codes"), "-");
    assert!(!a.text(&test("codes")).contains(&codes[1]));
    a.click(&test("done"));
    a.sees(&test("codes-left"), "10 left");

    b.go(&format!("/users/{uid}"));
    b.sees(&test("second-factor"), "on");
    b.click(&test("clear-factor"));
    b.click(&test("confirm"));
    b.sees(&test("second-factor"), "off");
    b.was_never_loaded_again();
    a.sees(&test("sign-in"), "Sign in");
    a.sign_in(&site.a, "bob", "a plain horse");

    // The user who sets a password sees the tokens.
    let bob = site.b.login("bob", "a plain horse");
    let made = bob.made("/api/tokens", &json!({ "name": "nightly report", "capabilities": ["ListUsers"] }));
    let token = site.b.nobody().with("Gravwell-Token", made["token"].as_str().expect("value"));
    b.click(&test("set-password"));
    b.sees(&test("tokens-named"), "nightly report");
    b.fill(&test("field-NewPass"), "a second horse");
    b.click(&test("tokens-keep"));
    b.click("dialog [data-test=\"save\"]");
    b.sees(&test("toast"), "was set");
    assert_eq!(token.get("/api/users").status, 200);
    b.click(&test("set-password"));
    b.sees(&test("tokens-named"), "nightly report");
    b.fill(&test("field-NewPass"), "a third horse");
    b.click("dialog [data-test=\"save\"]");
    site.fleet.wait("the token has expired", || token.get("/api/users").status == 401);
    b.was_never_loaded_again();
}

/// Takes screenshots of every page: light, dark and phone size.
#[test]
fn screenshots_of_every_page() {
    let Some(directory) = std::env::var_os(PICTURES).map(|dir| crate::fleet::root().join(dir)) else { return };
    let Some(two) = Two::start() else { return };
    std::fs::create_dir_all(&directory).expect("creates");
    let admin = two.site.a.login("admin", ADMIN_PASSWORD);
    let uid = admin.made(
        "/api/users",
        &json!({ "User": "bob", "Pass": "a plain horse", "Name": "Bob Builder", "Email": "bob@example.com" }),
    );
    let gid =
        admin.made("/api/groups", &json!({ "Name": "network operations", "Desc": "those who watch the routers" }));
    admin.made(&format!("/api/users/{uid}/group"), &json!({ "GIDs": [gid] }));
    let data = json!({ "tiles": [{ "id": 1, "title": "Errors by host" }], "timeframe": { "durationString": "PT1H" } });
    let dashboard = admin.made("/api/dashboards", &json!({ "Name": "Errors of the last hour", "Description": "All that went wrong", "Labels": ["web", "prod"], "GIDs": [gid], "Global": true, "Data": data }));
    admin.made("/api/dashboards", &json!({ "Name": "Logins", "Data": {} }));
    let resource = admin.made("/api/resources", &json!({ "ResourceName": "asn.csv", "Description": "Networks and their owners", "GroupACL": [gid], "Labels": ["lookup"] }));
    let guid = resource["GUID"].as_str().expect("GUID");
    admin.upload(
        "PUT",
        &format!("/api/resources/{guid}/raw"),
        "file",
        b"asn,owner\n64500,Example\n64501,Other\n".as_slice(),
    );
    admin.made("/api/tokens", &json!({ "name": "nightly report", "description": "reads dashboards", "capabilities": ["DashboardRead", "ResourceRead"] }));
    admin.made("/api/notifications/broadcast", &json!({ "Msg": "Maintenance at noon", "Level": "warn" }));
    admin.made("/api/searchhistory", &json!({ "UserQuery": "tag=web grep error | count by host | table host count" }));
    let query = json!({ "SearchString": "tag=audit | {user, what, op, collection, key}" });
    let search = admin.made("/api/searchctrl/launch", &query)["SearchID"].clone();
    let search = search.as_str().expect("an id");
    admin.changed("/api/users/1/preferences", &json!({ "timezone": "UTC" }));
    two.site.converges();
    let pages = [
        ("fleet", "/fleet".to_owned()),
        ("search", "/search".into()),
        ("results", format!("/search/{search}")),
        ("searches", "/searches".into()),
        ("users", "/users".into()),
        ("user", format!("/users/{uid}")),
        ("groups", "/groups".into()),
        ("dashboards", "/dashboards".into()),
        ("dashboard", format!("/dashboards/{dashboard}")),
        ("resources", "/resources".into()),
        ("resource", format!("/resources/{guid}")),
        ("macros", "/macros".into()),
        ("new-template", "/templates/new".into()),
        ("history", "/history".into()),
        ("profile", "/profile".into()),
        ("preferences", "/preferences".into()),
        ("tokens", "/tokens".into()),
        ("notifications", "/notifications".into()),
        ("log", "/log".into()),
        ("object", format!("/log/dashboards/{dashboard}")),
        ("rejections", "/rejections".into()),
        ("backup", "/backup".into()),
        ("missing", "/nowhere".into()),
    ];
    let keep = |name: &str| {
        // Waits until animations have finished and all responses have arrived.
        std::thread::sleep(std::time::Duration::from_millis(700));
        std::fs::write(directory.join(format!("{name}.png")), two.b.picture()).expect("writes");
    };
    for (look, theme, width, height) in
        [("light", "light", 1280, 900), ("dark", "dark", 1280, 900), ("phone", "light", 390, 844)]
    {
        two.b.resize(width, height);
        two.b.go("/preferences");
        two.b.click(&test(&format!("theme-{theme}")));
        for (name, place) in &pages {
            two.b.go(place);
            keep(&format!("{name}-{look}"));
        }
        two.b.go("/users");
        two.b.click(&test("create-user"));
        keep(&format!("dialog-{look}"));
        two.b.click(&test("cancel"));
    }
    two.b.click(&test("sign-out"));
    keep("sign-in-phone");
    two.b.resize(1280, 900);
    keep("sign-in-light");
}
