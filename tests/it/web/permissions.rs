//! Access to routes: one row per route, checked with every kind of caller.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::ADMIN_PASSWORD;
use super::Web;
use super::client::Client;
use crate::fleet::Fleet;

/// Callers, in the order of the letters below.
const CALLERS: [&str; 8] =
    ["nobody", "user", "member", "admin", "token", "admin's token", "temporary token", "admin's temporary token"];

/// Callers that pass authorization: n(obody), u(ser, neither concerned nor member), m(ember and user concerned), a(dmin),
/// t(oken of the user concerned, without any capability), T(oken of an administrator, with every capability),
/// d: a temporary token of the user concerned, D: one of an administrator.
/// Paths with a user or group name the concerned one; other routes are open to the callers listed.
/// The last column is the capability that a token needs: `*` for any, empty if tokens never pass.
const TABLE: &[(&str, &str, &str, &str)] = &[
    ("GET", "/api/test", "numatTdD", ""),
    ("GET", "/api/testauth", "umaT", "*"),
    ("GET", "/api/version", "numatTdD", ""),
    ("POST", "/api/login", "numatTdD", ""),
    ("POST", "/api/login/mfa", "numatTdD", ""),
    ("GET", "/api/login/refreshtoken", "uma", ""),
    ("POST", "/api/login/refreshtoken", "uma", ""),
    ("GET", "/api/login/tmptoken", "uma", ""),
    ("PUT", "/api/logout", "uma", ""),
    ("DELETE", "/api/logout", "uma", ""),
    ("GET", "/api/info/whoami", "umaT", "*"),
    ("GET", "/api/users/{uid}/sessions", "ma", ""),
    ("GET", "/api/users/su/{uid}", "a", ""),
    ("POST", "/api/users/su/{uid}", "a", ""),
    ("GET", "/api/mfa", "uma", ""),
    ("POST", "/api/mfa/totp/setup", "numatTdD", ""),
    ("PUT", "/api/mfa/totp/setup", "numatTdD", ""),
    ("POST", "/api/mfa/totp/clear", "uma", ""),
    ("POST", "/api/mfa/clear", "uma", ""),
    ("POST", "/api/mfa/recoverycodes/generate", "uma", ""),
    ("DELETE", "/api/users/{uid}/mfa/clear", "a", ""),
    ("GET", "/api/users", "umaT", "ListUsers"),
    ("POST", "/api/users", "a", ""),
    ("GET", "/api/users/{uid}", "ma", "ListUsers"),
    ("PUT", "/api/users/{uid}", "ma", ""),
    ("DELETE", "/api/users/{uid}", "a", ""),
    ("PUT", "/api/users/{uid}/lock", "a", ""),
    ("DELETE", "/api/users/{uid}/lock", "a", ""),
    ("GET", "/api/users/{uid}/locked", "a", ""),
    ("GET", "/api/users/{uid}/admin", "a", ""),
    ("PUT", "/api/users/{uid}/admin", "a", ""),
    ("DELETE", "/api/users/{uid}/admin", "a", ""),
    ("PUT", "/api/users/{uid}/pwd", "ma", ""),
    ("GET", "/api/users/{uid}/searchgroup", "ma", "SetSearchGroup"),
    ("PUT", "/api/users/{uid}/searchgroup", "ma", "SetSearchGroup"),
    ("DELETE", "/api/users/{uid}/searchgroup", "ma", "SetSearchGroup"),
    ("GET", "/api/users/{uid}/group", "ma", "ListGroups"),
    ("POST", "/api/users/{uid}/group", "a", ""),
    ("DELETE", "/api/users/{uid}/group/{gid}", "a", ""),
    ("GET", "/api/groups", "umaT", "ListGroups"),
    ("POST", "/api/groups", "a", ""),
    ("GET", "/api/groups/{gid}", "ma", "ListGroups"),
    ("PUT", "/api/groups/{gid}", "a", ""),
    ("DELETE", "/api/groups/{gid}", "a", ""),
    ("GET", "/api/groups/{gid}/members", "ma", "ListGroupMembers"),
    ("GET", "/api/users/{uid}/preferences", "ma", ""),
    ("PUT", "/api/users/{uid}/preferences", "ma", ""),
    ("DELETE", "/api/users/{uid}/preferences", "ma", ""),
    ("GET", "/api/users/preferences", "a", ""),
    ("GET", "/api/dashboards", "umaT", "DashboardRead"),
    ("POST", "/api/dashboards", "umaT", "DashboardWrite"),
    ("GET", "/api/dashboards/all", "umaT", "DashboardRead"),
    ("GET", "/api/users/{uid}/dashboards", "ma", "DashboardRead"),
    ("GET", "/api/groups/{gid}/dashboards", "ma", "DashboardRead"),
    ("GET", "/api/dashboards/{id}", "ma", "DashboardRead"),
    ("PUT", "/api/dashboards/{id}", "ma", "DashboardWrite"),
    ("DELETE", "/api/dashboards/{id}", "ma", "DashboardWrite"),
    ("GET", "/api/dashboards/{id}/clone", "ma", "DashboardWrite"),
    ("POST", "/api/dashboards/{id}/clone", "ma", "DashboardWrite"),
    ("GET", "/api/macros", "umaT", "MacroRead"),
    ("POST", "/api/macros", "umaT", "MacroWrite"),
    ("GET", "/api/macros/all", "a", ""),
    ("GET", "/api/users/{uid}/macros", "ma", "MacroRead"),
    ("GET", "/api/groups/{gid}/macros", "ma", "MacroRead"),
    ("GET", "/api/macros/{id}", "ma", "MacroRead"),
    ("PUT", "/api/macros/{id}", "ma", "MacroWrite"),
    ("DELETE", "/api/macros/{id}", "ma", "MacroWrite"),
    ("GET", "/api/templates", "umaT", "TemplateRead"),
    ("POST", "/api/templates", "umaT", "TemplateWrite"),
    ("GET", "/api/templates/{id}", "ma", "TemplateRead"),
    ("GET", "/api/templates/{id}/details", "ma", "TemplateRead"),
    ("PUT", "/api/templates/{id}", "ma", "TemplateWrite"),
    ("DELETE", "/api/templates/{id}", "ma", "TemplateWrite"),
    ("GET", "/api/pivots", "umaT", "PivotRead"),
    ("POST", "/api/pivots", "umaT", "PivotWrite"),
    ("GET", "/api/pivots/{id}", "ma", "PivotRead"),
    ("GET", "/api/pivots/{id}/details", "ma", "PivotRead"),
    ("PUT", "/api/pivots/{id}", "ma", "PivotWrite"),
    ("DELETE", "/api/pivots/{id}", "ma", "PivotWrite"),
    ("GET", "/api/library", "umaT", "LibraryRead"),
    ("POST", "/api/library", "umaT", "LibraryWrite"),
    ("GET", "/api/library/{id}", "ma", "LibraryRead"),
    ("PUT", "/api/library/{id}", "ma", "LibraryWrite"),
    ("DELETE", "/api/library/{id}", "ma", "LibraryWrite"),
    ("GET", "/api/playbooks", "umaT", "PlaybookRead"),
    ("POST", "/api/playbooks", "umaT", "PlaybookWrite"),
    ("GET", "/api/playbooks/{id}", "ma", "PlaybookRead"),
    ("PUT", "/api/playbooks/{id}", "ma", "PlaybookWrite"),
    ("DELETE", "/api/playbooks/{id}", "ma", "PlaybookWrite"),
    ("GET", "/api/searchhistory", "umaT", "SearchHistory"),
    ("POST", "/api/searchhistory", "umaT", "Search"),
    ("DELETE", "/api/searchhistory", "umaT", "SearchHistory"),
    ("GET", "/api/searchhistory/user/{uid}", "ma", "SearchHistory"),
    ("DELETE", "/api/searchhistory/user/{uid}", "ma", "SearchHistory"),
    ("GET", "/api/searchhistory/group/{gid}", "ma", "SearchGroupHistory"),
    ("GET", "/api/searchhistory/all/{uid}", "ma", "SearchAllHistory"),
    ("GET", "/api/searchhistory/all", "a", ""),
    ("GET", "/api/resources", "umaT", "ResourceRead"),
    ("POST", "/api/resources", "umaT", "ResourceWrite"),
    ("GET", "/api/resources/{guid}", "ma", "ResourceRead"),
    ("PUT", "/api/resources/{guid}", "ma", "ResourceWrite"),
    ("DELETE", "/api/resources/{guid}", "ma", "ResourceWrite"),
    ("GET", "/api/resources/{guid}/raw", "madD", "ResourceRead"),
    ("PUT", "/api/resources/{guid}/raw", "ma", "ResourceWrite"),
    ("GET", "/api/resources/{guid}/contenttype", "ma", "ResourceRead"),
    ("POST", "/api/resources/{guid}/clone", "ma", "ResourceWrite"),
    // A name refers to an own resource, one of the user's groups or a global one, even for administrators.
    ("GET", "/api/resources/lookup/{name}", "m", "ResourceRead"),
    ("GET", "/api/info/capabilities", "umaT", "*"),
    ("GET", "/api/info/capabilities/templates", "umaT", "*"),
    ("GET", "/api/info/capabilities/my", "umaT", "*"),
    ("GET", "/api/info/capabilities/why", "umaT", "*"),
    ("GET", "/api/users/{uid}/capabilities", "a", ""),
    ("PUT", "/api/users/{uid}/capabilities", "a", ""),
    ("GET", "/api/users/{uid}/capabilities/why", "a", ""),
    ("GET", "/api/groups/{gid}/capabilities", "a", ""),
    ("PUT", "/api/groups/{gid}/capabilities", "a", ""),
    ("GET", "/api/users/{uid}/tags", "a", ""),
    ("PUT", "/api/users/{uid}/tags", "a", ""),
    ("GET", "/api/groups/{gid}/tags", "a", ""),
    ("PUT", "/api/groups/{gid}/tags", "a", ""),
    ("GET", "/api/tokens/capabilities", "umaT", "TokenRead"),
    ("GET", "/api/tokens", "umaT", "TokenRead"),
    ("POST", "/api/tokens", "umaT", "TokenWrite"),
    ("GET", "/api/tokens/{id}", "ma", "TokenRead"),
    ("PUT", "/api/tokens/{id}", "ma", "TokenWrite"),
    ("PATCH", "/api/tokens/{id}", "ma", "TokenWrite"),
    ("DELETE", "/api/tokens/{id}", "ma", "TokenWrite"),
    ("GET", "/api/notifications", "umaT", "NotificationRead"),
    ("GET", "/api/notifications/{id}", "umaT", "NotificationRead"),
    ("GET", "/api/notifications/all", "a", ""),
    ("POST", "/api/notifications/targeted/self", "umaT", "NotificationWrite"),
    ("POST", "/api/notifications/targeted", "a", ""),
    ("POST", "/api/notifications/broadcast", "a", ""),
    ("PUT", "/api/notifications/{id}", "umaT", "NotificationWrite"),
    ("DELETE", "/api/notifications/{id}", "umaT", "NotificationWrite"),
    ("GET", "/api/settings", "umaT", "*"),
    ("GET", "/api/deployment", "a", ""),
    ("GET", "/api/distributed", "umaT", "SystemInfoRead"),
    ("GET", "/api/language", "numatTdD", ""),
    ("GET", "/api/tags", "umaT", "Search"),
    ("POST", "/api/parse", "umaT", "Search"),
    ("POST", "/api/search/direct", "umaT", "Search"),
    ("GET", "/api/ws/search", "umaT", "Search"),
    ("GET", "/api/ws/attach/{id}", "ma", "AttachSearch"),
    ("GET", "/api/ws/stats", "umaT", "Stats"),
    ("GET", "/api/searchctrl", "umaT", "AttachSearch"),
    ("GET", "/api/searchctrl/all", "a", ""),
    ("GET", "/api/searchctrl/details", "umaT", "AttachSearch"),
    ("POST", "/api/searchctrl/launch", "umaT", "Search"),
    ("POST", "/api/searchctrl/import", "umaT", "SaveSearch"),
    ("GET", "/api/searchctrl/{id}", "ma", "AttachSearch"),
    ("DELETE", "/api/searchctrl/{id}", "ma", "Search"),
    ("GET", "/api/searchctrl/{id}/details", "ma", "AttachSearch"),
    ("GET", "/api/searchctrl/{id}/attach", "ma", "AttachSearch"),
    ("PUT", "/api/searchctrl/{id}/ping", "ma", "AttachSearch"),
    ("PUT", "/api/searchctrl/{id}/detach", "ma", "AttachSearch"),
    ("PATCH", "/api/searchctrl/{id}/background", "ma", "BackgroundSearch"),
    ("PATCH", "/api/searchctrl/{id}/save", "ma", "SaveSearch"),
    ("PUT", "/api/searchctrl/{id}/stop", "ma", "Search"),
    ("PUT", "/api/searchctrl/{id}/group", "ma", "SetSearchGroup"),
    ("PUT", "/api/searchctrl/{id}/groups", "ma", "SetSearchGroup"),
    ("PUT", "/api/searchctrl/{id}/global", "a", ""),
    ("GET", "/api/searchctrl/{id}/rows", "ma", "AttachSearch"),
    ("GET", "/api/searchctrl/{id}/stats", "ma", "AttachSearch"),
    ("GET", "/api/searchctrl/{id}/stats/overview", "ma", "AttachSearch"),
    ("GET", "/api/searchctrl/{id}/renderer/{renderer}", "ma", "AttachSearch"),
    ("GET", "/api/searchctrl/{id}/renderer/{renderer}/explore", "ma", "AttachSearch"),
    ("GET", "/api/searchctrl/{id}/download/{format}", "madD", "Download"),
    ("GET", "/api/stats/ping", "umaT", "SystemInfoRead"),
    ("GET", "/api/logging", "a", ""),
    ("PUT", "/api/logging", "a", ""),
    ("POST", "/api/logging/{level}", "a", ""),
    ("POST", "/api/restart/webserver", "a", ""),
    ("GET", "/license/status", "numatTdD", ""),
    ("GET", "/api/health", "numatTdD", ""),
    ("GET", "/api/ready", "numatTdD", ""),
    ("GET", "/api/fleet", "umaT", "SystemInfoRead"),
    ("GET", "/api/events", "uma", ""),
    ("GET", "/api/log/live", "a", ""),
    ("GET", "/api/log", "a", ""),
    ("GET", "/api/log/collections", "a", ""),
    ("GET", "/api/log/object/{collection}/{key}", "a", ""),
    ("GET", "/api/rejections", "uma", ""),
    ("GET", "/api/rejections/{id}", "uma", ""),
    ("POST", "/api/rejections/{id}/retry", "uma", ""),
    ("DELETE", "/api/rejections/{id}", "uma", ""),
    ("GET", "/api/objects/invalid", "a", ""),
    ("PUT", "/api/objects/invalid/{collection}/{key}", "a", ""),
    ("DELETE", "/api/objects/invalid/{collection}/{key}", "a", ""),
    ("GET", "/api/backup", "aD", ""),
    ("POST", "/api/backup", "a", ""),
    ("DELETE", "/api/backup", "a", ""),
    ("GET", "/api/openapi.json", "numatTdD", ""),
];
const LETTERS: &str = "numatTdD";
/// Streams that do not end, and the route that stops the webserver: only refusals are checked.
const ENDLESS: [&str; 3] = ["/api/events", "/api/log/live", "/api/restart/webserver"];
/// Paths of objects that do not exist: permitted callers get 404, others a refusal or also 404.
const HIDDEN: [&str; 5] = [
    "/api/dashboards/{id}",
    "/api/resources/{guid}",
    "/api/tokens/{id}",
    "/api/searchctrl/{id}",
    "/api/ws/attach/{id}",
];

struct Stage {
    web: Web,
    fleet: Fleet,
    admin: Client,
    number: usize,
}

/// Objects for one row, created for every attempt because many routes change or delete them.
struct Things {
    uid: i64,
    gid: i64,
    member: Client,
    dashboard: String,
    resource: String,
    token: String,
    search: String,
    bare: Client,
}

/// Creates a token of the caller with these capabilities.
fn token(web: &Web, owner: &Client, capabilities: &[&str]) -> Client {
    let made = owner.made("/api/tokens", &json!({ "name": "of a test", "capabilities": capabilities }));
    web.nobody().with("Gravwell-Token", made["token"].as_str().expect("value"))
}

fn temporary(web: &Web, owner: &Client) -> Client {
    let made = owner.ok("GET", "/api/login/tmptoken");
    web.nobody().with("Authorization", &format!("Bearer {}", made["JWT"].as_str().expect("JWT")))
}

impl Things {
    fn concrete(&self, path: &str, number: usize) -> String {
        let made = super::owned::is_item(path).then(|| super::owned::made_for(&self.member, path, number)).flatten();
        let id = match path {
            _ if made.is_some() => made.as_ref().unwrap_or(&self.dashboard),
            path if path.contains("/tokens/") => &self.token,
            path if path.contains("/searchctrl/") || path.contains("/ws/attach/") => &self.search,
            _ => &self.dashboard,
        };
        path.replace("{uid}", &self.uid.to_string())
            .replace("{gid}", &self.gid.to_string())
            .replace("{id}", id)
            .replace("{guid}", &self.resource)
            .replace("{name}", &format!("r{number}"))
            .replace("{level}", "info")
            .replace("{format}", "text")
            .replace("{collection}", "users")
            .replace("{key}", "1")
    }
}

impl Stage {
    fn things(&mut self) -> Things {
        self.number += 1;
        let (number, admin) = (self.number, &self.admin);
        let name = format!("member{number}");
        let uid = admin.made("/api/users", &json!({ "User": name, "Pass": "a plain horse" })).as_i64().expect("number");
        let gid = admin.made("/api/groups", &json!({ "Name": format!("group{number}") })).as_i64().expect("number");
        admin.made(&format!("/api/users/{uid}/group"), &json!({ "GIDs": [gid] }));
        let member = self.web.login(&name, "a plain horse");
        let text = |value: serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let dashboard = text(member.made("/api/dashboards", &json!({ "Name": "d" })));
        let resource =
            text(member.made("/api/resources", &json!({ "ResourceName": format!("r{number}") }))["GUID"].clone());
        let wish = json!({ "SearchString": format!("tag=resource:r{number} | limit 1"), "NoHistory": true });
        let search = text(member.made("/api/searchctrl/launch", &wish)["SearchID"].clone());
        let made = member.made("/api/tokens", &json!({ "name": "bare", "capabilities": [] }));
        let token = text(made["id"].clone());
        let bare = self.web.nobody().with("Gravwell-Token", made["token"].as_str().expect("value"));
        Things { uid, gid, member, dashboard, resource, token, search, bare }
    }
}

fn is_refused(status: u16, path: &str) -> bool {
    let is_hidden = HIDDEN.iter().any(|hidden| path.starts_with(hidden))
        || path.starts_with("/api/resources/lookup")
        || super::owned::is_item(path);
    matches!(status, 401 | 403) || (is_hidden && status == 404)
}

#[test]
fn every_route_serves_exactly_the_callers_of_its_row() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    // An administrator whose session is not affected when those of the first administrator end.
    web.admin(&fleet).made("/api/users", &json!({ "User": "stagehand", "Pass": "a plain horse", "Admin": true }));
    let admin = web.login("stagehand", "a plain horse");
    let mut stage = Stage { web, fleet, admin, number: 0 };
    let described = stage.web.nobody().ok("GET", "/api/openapi.json");
    let described: BTreeSet<(String, String)> = described["paths"]
        .as_object()
        .expect("paths")
        .iter()
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().expect("methods").keys();
            methods.map(|method| (method.to_uppercase(), path.clone())).collect::<Vec<_>>()
        })
        .collect();
    let tabled: BTreeSet<(String, String)> =
        TABLE.iter().map(|(method, path, ..)| ((*method).to_owned(), (*path).to_owned())).collect();
    assert_eq!(described, tabled, "every route has a row");

    let admin = &stage.admin;
    admin.made("/api/users", &json!({ "User": "stranger", "Pass": "a plain horse" }));
    let all = admin.ok("GET", "/api/tokens/capabilities");
    let all: Vec<&str> = all.as_array().expect("list").iter().filter_map(|name| name.as_str()).collect();
    let strong = token(&stage.web, admin, &all);
    let single: Vec<(&str, Client)> = all.iter().map(|name| (*name, token(&stage.web, admin, &[name]))).collect();
    let mut wrong = Vec::new();
    let mut things = stage.things();
    let (mut stranger, mut first) =
        (stage.web.login("stranger", "a plain horse"), stage.web.login("admin", ADMIN_PASSWORD));
    for (method, path, letters, right) in TABLE {
        for (column, letter) in LETTERS.chars().enumerate() {
            let caller = match letter {
                'n' => stage.web.nobody(),
                'u' => stranger.clone(),
                'm' => things.member.clone(),
                'a' => first.clone(),
                't' => things.bare.clone(),
                'd' => temporary(&stage.web, &things.member),
                'D' => temporary(&stage.web, &first),
                _ => strong.clone(),
            };
            let concrete = things.concrete(path, stage.number);
            let is_let_in = letters.contains(letter);
            let is_change = *method != "GET";
            if is_let_in && ENDLESS.contains(path) {
                continue;
            }
            let status = match *path {
                "/api/users/{uid}/pwd" => {
                    caller.put(&concrete, &json!({ "OrigPass": "a plain horse", "NewPass": "a quick horse" })).status
                }
                _ => caller.call(method, &concrete).status,
            };
            // A login without credentials is rejected with a special status.
            let refused = is_refused(status, path);
            if refused == is_let_in || status >= 500 {
                wrong.push(format!("{method} {path} by {}: {status}", CALLERS[column]));
            }
            if is_change && is_let_in {
                things = stage.things();
                let again = |client: &Client, user, password| {
                    if client.get("/api/testauth").status == 200 {
                        client.clone()
                    } else {
                        stage.web.login(user, password)
                    }
                };
                (stranger, first) =
                    (again(&stranger, "stranger", "a plain horse"), again(&first, "admin", ADMIN_PASSWORD));
            }
        }
        if letters.contains('n') {
            continue;
        }
        let concrete = things.concrete(path, stage.number);
        for (name, caller) in &single {
            let wanted = match *right {
                "*" => 200,
                right if right == *name => continue,
                _ => 403,
            };
            let status = caller.call(method, &concrete).status;
            if status != wanted {
                wrong.push(format!("{method} {path} by a token with {name}: {status}"));
            }
        }
        if all.contains(right) {
            let caller = token(&stage.web, &things.member, &[right]);
            let status = caller.call(method, &concrete).status;
            if matches!(status, 401 | 403 | 500..) {
                wrong.push(format!("{method} {path} by a token with {right}, which it needs: {status}"));
            }
            things = stage.things();
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), stage.fleet.log_of("a"));
}

#[test]
fn a_token_has_only_its_capabilities() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let made = admin.made("/api/tokens", &json!({ "name": "t", "description": null, "expiresAt": null, "capabilities": ["dashboardread", "TokenWrite", "TokenRead"] }));
    assert_eq!(
        (made["capabilities"][0].as_str(), made["expiresAt"].as_str()),
        (Some("DashboardRead"), Some("0001-01-01T00:00:00Z"))
    );
    let token = web.nobody().with("Gravwell-Token", made["token"].as_str().expect("value"));
    assert_eq!(token.get("/api/dashboards").status, 200);
    let refused = token.post("/api/dashboards", &json!({ "Name": "d" }));
    assert_eq!((refused.status, refused.json()["Cap"].as_str()), (403, Some("DashboardWrite")));
    // It cannot create a token that is stronger than itself.
    assert_eq!(token.post("/api/tokens", &json!({ "name": "x", "capabilities": ["DashboardWrite"] })).status, 403);
    assert_eq!(token.post("/api/tokens", &json!({ "name": "x", "capabilities": ["DashboardRead"] })).status, 200);
    assert_eq!(admin.post("/api/tokens", &json!({ "name": "x", "capabilities": ["Nonsense"] })).status, 400);
    let path = format!("/api/tokens/{}", made["id"].as_str().expect("id"));
    let mut shown = made.clone();
    shown.as_object_mut().expect("object").remove("token");
    assert_eq!(admin.ok("GET", &path), shown);
    let past = json!({ "name": "t", "expiresAt": "2020-01-01T00:00:00.123Z", "capabilities": ["DashboardRead"] });
    assert_eq!(admin.changed(&path, &past)["expiresAt"], "2020-01-01T00:00:00.123Z");
    assert_eq!(token.get("/api/dashboards").status, 401, "it has ended");
    let renewed = admin.call("PATCH", &path).json();
    let fresh = web.nobody().with("Gravwell-Token", renewed["token"].as_str().expect("value"));
    assert_eq!((fresh.get("/api/dashboards").status, token.get("/api/dashboards").status), (200, 401));
    admin.ok("DELETE", &path);
    assert_eq!((fresh.get("/api/dashboards").status, admin.get(&path).status), (401, 404));
}

/// Changes by a token to another token of its owner: one row per relation between their capabilities.
#[test]
fn a_token_changes_only_tokens_that_are_no_stronger() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let made = |capabilities: &[&str]| {
        let made = admin.made("/api/tokens", &json!({ "name": "t", "capabilities": capabilities }));
        format!("/api/tokens/{}", made["id"].as_str().expect("id"))
    };
    let caller = token(&web, &admin, &["TokenRead", "TokenWrite", "Search"]);
    let cases: [(&str, &[&str], bool); 6] = [
        ("none", &[], true),
        ("below", &["Search"], true),
        ("equal", &["Search", "TokenWrite", "TokenRead"], true),
        ("above", &["Search", "TokenWrite", "TokenRead", "Download"], false),
        ("apart", &["Download"], false),
        ("overlapping", &["Search", "Download"], false),
    ];
    let wish = json!({ "name": "u", "capabilities": [] });
    for (relation, capabilities, may) in cases {
        let path = made(capabilities);
        let before = admin.ok("GET", &path);
        let deeds: [(&str, &dyn Fn() -> u16); 3] = [
            ("renew", &|| caller.call("PATCH", &path).status),
            ("change", &|| caller.put(&path, &wish).status),
            ("delete", &|| caller.delete(&path).status),
        ];
        for (deed, done) in deeds {
            let status = done();
            assert_eq!(status, if may { 200 } else { 403 }, "{deed} a token that is {relation}");
        }
        if !may {
            assert_eq!(admin.ok("GET", &path), before, "{relation}");
            assert_eq!(admin.delete(&path).status, 200, "its owner may delete it");
        }
    }
    // With CBAC, a user without a capability cannot create or renew tokens with it, but can delete existing ones.
    let config = fleet.write_file("gravwell.conf", "[Global]\nEnable-CBAC=true\n");
    let web = Web::start(&fleet, "b", &["--config", config.to_str().expect("path")]);
    let admin = web.admin(&fleet);
    let uid = admin.made("/api/users", &json!({ "User": "bob", "Pass": "a plain horse" }));
    let grant = |names: &[&str]| {
        admin.changed(&format!("/api/users/{uid}/capabilities"), &json!({ "Grants": names }));
    };
    grant(&["TokenRead", "TokenWrite", "Search"]);
    let bob = web.login("bob", "a plain horse");
    let made = bob.made("/api/tokens", &json!({ "name": "t", "capabilities": ["Search"] }));
    let path = format!("/api/tokens/{}", made["id"].as_str().expect("id"));
    grant(&["TokenRead", "TokenWrite"]);
    let create = json!({ "name": "t", "capabilities": ["Search"] });
    assert_eq!(bob.post("/api/tokens", &create).status, 403);
    assert_eq!((bob.call("PATCH", &path).status, bob.put(&path, &create).status), (403, 403));
    assert_eq!(bob.delete(&path).status, 200);
}

#[test]
fn p11_what_was_made_with_a_token_ends_with_it_and_none_prolongs_itself() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let with = |made: &Value| web.nobody().with("Gravwell-Token", made["token"].as_str().expect("value"));
    let path = |made: &Value| format!("/api/tokens/{}", made["id"].as_str().expect("id"));
    let opens = |client: &Client| client.get("/api/dashboards").status == 200;
    let all = json!(["TokenRead", "TokenWrite", "DashboardRead"]);
    let (end, later, sooner) = ("2099-01-01T00:00:00Z", "2099-01-01T00:00:01Z", "2098-01-01T00:00:00Z");
    let first = admin.made("/api/tokens", &json!({ "name": "first", "capabilities": all, "expiresAt": end }));
    let caller = with(&first);

    // It cannot extend its lifetime by omitting the expiry, by a later one, or by a new value.
    let wish = |expires: Option<&str>| json!({ "name": "n", "capabilities": all, "expiresAt": expires });
    for expires in [None, Some("0001-01-01T00:00:00Z"), Some(end)] {
        assert_eq!(caller.changed(&path(&first), &wish(expires))["expiresAt"], end, "{expires:?}");
        assert_eq!(caller.made("/api/tokens", &wish(expires))["expiresAt"], end, "{expires:?}");
    }
    let refused = caller.put(&path(&first), &wish(Some(later)));
    assert!(refused.status == 403 && refused.text().contains("cannot extend"), "{}", refused.text());
    assert_eq!(caller.post("/api/tokens", &wish(Some(later))).status, 403);
    assert_eq!(
        caller.send_text("PATCH", &path(&first), "application/json", &wish(Some(later)).to_string()).status,
        403
    );
    assert_eq!(caller.made("/api/tokens", &wish(Some(sooner)))["expiresAt"], sooner);
    // A token that expires later keeps its expiry; a token that it renews depends on it.
    let endless = admin.made("/api/tokens", &wish(None));
    assert_eq!(caller.changed(&path(&endless), &wish(None))["expiresAt"], "0001-01-01T00:00:00Z");
    let taken = caller.call("PATCH", &path(&endless)).json();
    assert_eq!(taken["expiresAt"], end);

    // A chain of tokens is limited by each of its members: its capabilities, its expiry, and its existence.
    let child = caller.made("/api/tokens", &wish(None));
    let grandchild = with(&child).made("/api/tokens", &wish(None));
    assert!([&taken, &child, &grandchild].into_iter().all(|made| opens(&with(made))));
    let less = json!({ "name": "first", "capabilities": ["TokenRead"], "expiresAt": end });
    admin.changed(&path(&first), &less);
    assert!(
        ![&taken, &child, &grandchild].into_iter().any(|made| opens(&with(made))),
        "bounded by the maker's capabilities"
    );
    assert_eq!(with(&grandchild).get("/api/tokens").status, 200, "other capabilities are kept");
    let past = json!({ "name": "first", "capabilities": all, "expiresAt": "2020-01-01T00:00:00Z" });
    admin.changed(&path(&first), &past);
    assert_eq!(with(&grandchild).get("/api/tokens").status, 401, "its end");
    admin.changed(&path(&first), &wish(Some(end)));
    assert!(opens(&with(&grandchild)));
    // A user with a session takes over a token by renewing it.
    let own = admin.call("PATCH", &path(&child)).json();
    admin.ok("DELETE", &path(&first));
    assert!(opens(&with(&own)) && !opens(&with(&taken)) && !opens(&with(&grandchild)));
    let left = admin.ok("GET", "/api/tokens");
    assert_eq!(left.as_array().map(Vec::len), Some(1), "{left}");
}

/// Rights that a token gives to another one by changing it would outlive the token that gave them.
#[test]
fn p11_a_token_takes_away_from_another_one_and_adds_nothing_to_it() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let path = |made: &Value| format!("/api/tokens/{}", made["id"].as_str().expect("id"));
    let (end, sooner, later) = ("2099-01-01T00:00:00Z", "2098-01-01T00:00:00Z", "2098-01-01T00:00:01Z");
    let token = |capabilities: &[&str], end: Option<&str>| {
        admin.made("/api/tokens", &json!({ "name": "t", "capabilities": capabilities, "expiresAt": end }))
    };
    let all = ["TokenRead", "TokenWrite", "Search", "ResourceWrite"];
    let wish = |capabilities: &[&str], end: Option<&str>| json!({ "name": "u", "capabilities": capabilities, "expiresAt": end });
    for end in [Some(end), None] {
        let strong = token(&all, end);
        let caller = web.nobody().with("Gravwell-Token", strong["token"].as_str().expect("value"));
        let weak = token(&["TokenRead", "Search"], Some(sooner));
        let before = admin.ok("GET", &path(&weak));
        for (capabilities, end) in [
            (&["TokenRead", "Search", "ResourceWrite"][..], Some(sooner)),
            (&["TokenWrite"][..], Some(sooner)),
            (&["TokenRead"][..], Some(later)),
        ] {
            let refused = caller.put(&path(&weak), &wish(capabilities, end));
            assert_eq!(refused.status, 403, "{capabilities:?} {end:?}: {}", refused.text());
        }
        assert_eq!(admin.ok("GET", &path(&weak)), before);
        // An end that is not named stays; an earlier one, and less, is taken.
        assert_eq!(caller.changed(&path(&weak), &wish(&["search"], None))["expiresAt"], sooner);
        let less = caller.changed(&path(&weak), &wish(&[], Some("2097-01-01T00:00:00Z")));
        assert_eq!((&less["expiresAt"], &less["capabilities"]), (&json!("2097-01-01T00:00:00Z"), &json!([])));
        // Its owner, with a session, gives whatever they have.
        assert_eq!(admin.changed(&path(&weak), &wish(&all, None))["capabilities"], json!(all));
    }
}

/// A search over a resource returns the resource, so a token and a user need the same capability as for the
/// resource itself.
#[test]
fn p11_a_resource_is_read_through_a_search_only_with_the_capability_for_it() {
    let fleet = Fleet::new();
    let config = fleet.write_file("gravwell.conf", "[Global]\nEnable-CBAC=true\n");
    let web = Web::start(&fleet, "a", &["--config", config.to_str().expect("path")]);
    let admin = web.admin(&fleet);
    super::searches::resource(&admin, "few", "{\"n\":1}\n");
    let guid = admin.ok("GET", "/api/resources")[0]["GUID"].as_str().expect("GUID").to_owned();
    admin.changed(&format!("/api/resources/{guid}"), &json!({ "Global": true }));
    let uid = admin.made("/api/users", &json!({ "User": "bob", "Pass": "a plain horse" }));
    let bob = web.login("bob", "a plain horse");
    let token = |client: &Client, capabilities: &[&str]| {
        let made = client.made("/api/tokens", &json!({ "name": "t", "capabilities": capabilities }));
        web.nobody().with("Gravwell-Token", made["token"].as_str().expect("value"))
    };
    let query = json!({ "SearchString": "tag=resource:few", "Format": "text" });
    let answers = |client: &Client| {
        let parsed = client.post("/api/parse", &query).json();
        let direct = client.post("/api/search/direct?duration=1h", &query);
        let launched = client.post("/api/searchctrl/launch", &query);
        let is_named = parsed.to_string().contains("ResourceRead") && direct.text().contains("ResourceRead");
        assert_eq!(is_named, direct.status == 400, "{parsed} {}", direct.text());
        (parsed["GoodQuery"] == true, direct.status, launched.status)
    };
    let (shut, open) = ((false, 400, 400), (true, 200, 200));
    assert_eq!(answers(&token(&admin, &["Search"])), shut);
    assert_eq!(answers(&token(&admin, &["Search", "ResourceRead"])), open);
    for (grants, wanted) in [(json!(["Search"]), shut), (json!(["Search", "ResourceRead"]), open)] {
        admin.changed(&format!("/api/users/{uid}/capabilities"), &json!({ "Grants": grants }));
        assert_eq!(answers(&bob), wanted, "{grants}");
    }
}

#[test]
fn p11_looking_at_a_search_is_not_ending_it_and_nobody_leaves_a_token_in_anothers_name() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    let uid = admin.made("/api/users", &json!({ "User": "bob", "Pass": "a plain horse" }));
    let bob = web.login("bob", "a plain horse");
    super::searches::resource(&bob, "few", "{\"n\":1}\n");
    let search = super::searches::launch(&bob, "tag=resource:few");
    let own = json!({ "name": "t", "capabilities": ["AttachSearch"] });
    let made = bob.made("/api/tokens", &own);
    let attached = web.nobody().with("Gravwell-Token", made["token"].as_str().expect("value"));
    assert_eq!(attached.get(&search).status, 200);
    assert_eq!(attached.call("PUT", &format!("{search}/stop")).status, 403);
    assert_eq!(attached.delete(&search).status, 403);
    // An impersonating administrator is recorded with both names, but the actions of a token would be attributed to the
    // user alone.
    let su = admin.ok("GET", &format!("/api/users/su/{uid}"))["JWT"].as_str().expect("JWT").to_owned();
    let su = web.nobody().with("Authorization", &format!("Bearer {su}"));
    let refused = su.post("/api/tokens", &own);
    assert!(refused.status == 403 && refused.text().contains("admin acts as bob"), "{}", refused.text());
    let renewal = format!("/api/tokens/{}", made["id"].as_str().expect("id"));
    assert_eq!(su.send_text("PATCH", &renewal, "application/json", "{}").status, 403);
    assert_eq!(attached.get(&search).status, 200, "the token is unchanged");
    assert_eq!(bob.delete(&search).status, 200);
}
