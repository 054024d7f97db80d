//! Who may call what: one row for each route, against every kind of caller.

use std::collections::BTreeSet;

use serde_json::json;

use super::Web;
use super::client::Client;
use crate::fleet::Fleet;

/// Callers, in the order of the columns below.
const CALLERS: [&str; 6] = ["nobody", "user", "member", "admin", "token", "admin's token"];

/// Who gets past the guard: n(obody), u(ser, neither concerned nor member), m(ember and user concerned), a(dmin),
/// t(oken of the user concerned, without any capability), T(oken of an administrator, with every capability).
/// Routes of the user and group concerned name them; everything else is for whom the letters say.
const TABLE: &[(&str, &str, &str)] = &[
    ("GET", "/api/test", "numatT"),
    ("GET", "/api/testauth", "umatT"),
    ("GET", "/api/version", "numatT"),
    ("POST", "/api/login", "numatT"),
    ("POST", "/api/login/mfa", "numatT"),
    ("GET", "/api/login/refreshtoken", "uma"),
    ("GET", "/api/login/tmptoken", "uma"),
    ("PUT", "/api/logout", "umatT"),
    ("DELETE", "/api/logout", "uma"),
    ("GET", "/api/info/whoami", "umatT"),
    ("GET", "/api/users/{uid}/sessions", "mat"),
    ("GET", "/api/users/su/{uid}", "a"),
    ("GET", "/api/mfa", "umatT"),
    ("DELETE", "/api/users/{uid}/mfa/clear", "a"),
    ("GET", "/api/users", "umaT"),
    ("POST", "/api/users", "a"),
    ("GET", "/api/users/{uid}", "mat"),
    ("PUT", "/api/users/{uid}", "mat"),
    ("DELETE", "/api/users/{uid}", "a"),
    ("PUT", "/api/users/{uid}/lock", "a"),
    ("DELETE", "/api/users/{uid}/lock", "a"),
    ("GET", "/api/users/{uid}/locked", "a"),
    ("GET", "/api/users/{uid}/admin", "a"),
    ("PUT", "/api/users/{uid}/admin", "a"),
    ("DELETE", "/api/users/{uid}/admin", "a"),
    ("PUT", "/api/users/{uid}/pwd", "ma"),
    ("GET", "/api/users/{uid}/searchgroup", "mat"),
    ("PUT", "/api/users/{uid}/searchgroup", "mat"),
    ("DELETE", "/api/users/{uid}/searchgroup", "mat"),
    ("GET", "/api/users/{uid}/group", "mat"),
    ("POST", "/api/users/{uid}/group", "a"),
    ("DELETE", "/api/users/{uid}/group/{gid}", "a"),
    ("GET", "/api/groups", "umaT"),
    ("POST", "/api/groups", "a"),
    ("GET", "/api/groups/{gid}", "ma"),
    ("PUT", "/api/groups/{gid}", "a"),
    ("DELETE", "/api/groups/{gid}", "a"),
    ("GET", "/api/groups/{gid}/members", "ma"),
    ("GET", "/api/users/{uid}/preferences", "mat"),
    ("PUT", "/api/users/{uid}/preferences", "mat"),
    ("DELETE", "/api/users/{uid}/preferences", "mat"),
    ("GET", "/api/users/preferences", "a"),
    ("GET", "/api/dashboards", "umaT"),
    ("POST", "/api/dashboards", "umaT"),
    ("GET", "/api/dashboards/all", "umaT"),
    ("GET", "/api/users/{uid}/dashboards", "ma"),
    ("GET", "/api/groups/{gid}/dashboards", "ma"),
    ("GET", "/api/dashboards/{id}", "ma"),
    ("PUT", "/api/dashboards/{id}", "ma"),
    ("DELETE", "/api/dashboards/{id}", "ma"),
    ("GET", "/api/dashboards/{id}/clone", "ma"),
    ("GET", "/api/searchhistory", "umaT"),
    ("POST", "/api/searchhistory", "umaT"),
    ("DELETE", "/api/searchhistory", "umaT"),
    ("GET", "/api/searchhistory/user/{uid}", "ma"),
    ("DELETE", "/api/searchhistory/user/{uid}", "ma"),
    ("GET", "/api/searchhistory/group/{gid}", "ma"),
    ("GET", "/api/searchhistory/all/{uid}", "ma"),
    ("GET", "/api/searchhistory/all", "a"),
    ("GET", "/api/resources", "umaT"),
    ("POST", "/api/resources", "umaT"),
    ("GET", "/api/resources/{guid}", "ma"),
    ("PUT", "/api/resources/{guid}", "ma"),
    ("DELETE", "/api/resources/{guid}", "ma"),
    ("GET", "/api/resources/{guid}/raw", "ma"),
    ("PUT", "/api/resources/{guid}/raw", "ma"),
    ("GET", "/api/resources/{guid}/contenttype", "ma"),
    ("POST", "/api/resources/{guid}/clone", "ma"),
    // A name means one's own, one's group's or everybody's, to administrators, too.
    ("GET", "/api/resources/lookup/{name}", "m"),
    ("GET", "/api/info/capabilities", "umatT"),
    ("GET", "/api/info/capabilities/templates", "umatT"),
    ("GET", "/api/info/capabilities/my", "umatT"),
    ("GET", "/api/info/capabilities/why", "umatT"),
    ("GET", "/api/users/{uid}/capabilities", "a"),
    ("PUT", "/api/users/{uid}/capabilities", "a"),
    ("GET", "/api/users/{uid}/capabilities/why", "a"),
    ("GET", "/api/groups/{gid}/capabilities", "a"),
    ("PUT", "/api/groups/{gid}/capabilities", "a"),
    ("GET", "/api/users/{uid}/tags", "a"),
    ("PUT", "/api/users/{uid}/tags", "a"),
    ("GET", "/api/groups/{gid}/tags", "a"),
    ("PUT", "/api/groups/{gid}/tags", "a"),
    ("GET", "/api/tokens/capabilities", "umatT"),
    ("GET", "/api/tokens", "umaT"),
    ("POST", "/api/tokens", "umaT"),
    ("GET", "/api/tokens/{id}", "ma"),
    ("PUT", "/api/tokens/{id}", "ma"),
    ("PATCH", "/api/tokens/{id}", "ma"),
    ("DELETE", "/api/tokens/{id}", "ma"),
    ("GET", "/api/notifications", "umaT"),
    ("GET", "/api/notifications/{id}", "umaT"),
    ("GET", "/api/notifications/all", "a"),
    ("POST", "/api/notifications/targeted/self", "umaT"),
    ("POST", "/api/notifications/targeted", "a"),
    ("POST", "/api/notifications/broadcast", "a"),
    ("PUT", "/api/notifications/{id}", "umaT"),
    ("DELETE", "/api/notifications/{id}", "umaT"),
    ("GET", "/api/settings", "umatT"),
    ("GET", "/api/deployment", "a"),
    ("GET", "/api/distributed", "umatT"),
    ("GET", "/api/language", "numatT"),
    ("GET", "/api/tags", "umatT"),
    ("POST", "/api/parse", "umaT"),
    ("POST", "/api/search/direct", "umaT"),
    ("GET", "/api/ws/search", "umaT"),
    ("GET", "/api/ws/attach/{id}", "ma"),
    ("GET", "/api/ws/stats", "umaT"),
    ("GET", "/api/searchctrl", "umaT"),
    ("GET", "/api/searchctrl/all", "a"),
    ("GET", "/api/searchctrl/details", "umaT"),
    ("POST", "/api/searchctrl/launch", "umaT"),
    ("POST", "/api/searchctrl/import", "umaT"),
    ("GET", "/api/searchctrl/{id}", "ma"),
    ("DELETE", "/api/searchctrl/{id}", "ma"),
    ("GET", "/api/searchctrl/{id}/details", "ma"),
    ("GET", "/api/searchctrl/{id}/attach", "ma"),
    ("PUT", "/api/searchctrl/{id}/ping", "ma"),
    ("PUT", "/api/searchctrl/{id}/detach", "ma"),
    ("PATCH", "/api/searchctrl/{id}/background", "ma"),
    ("PATCH", "/api/searchctrl/{id}/save", "ma"),
    ("PUT", "/api/searchctrl/{id}/stop", "ma"),
    ("PUT", "/api/searchctrl/{id}/group", "ma"),
    ("PUT", "/api/searchctrl/{id}/groups", "ma"),
    ("PUT", "/api/searchctrl/{id}/global", "a"),
    ("GET", "/api/searchctrl/{id}/rows", "ma"),
    ("GET", "/api/searchctrl/{id}/stats", "ma"),
    ("GET", "/api/searchctrl/{id}/stats/overview", "ma"),
    ("GET", "/api/searchctrl/{id}/renderer/{renderer}", "ma"),
    ("GET", "/api/searchctrl/{id}/renderer/{renderer}/explore", "ma"),
    ("GET", "/api/searchctrl/{id}/download/{format}", "ma"),
    ("GET", "/api/stats/ping", "umaT"),
    ("GET", "/api/logging", "a"),
    ("PUT", "/api/logging", "a"),
    ("POST", "/api/logging/{level}", "a"),
    ("POST", "/api/restart/webserver", "a"),
    ("GET", "/license/status", "numatT"),
    ("GET", "/api/health", "numatT"),
    ("GET", "/api/ready", "numatT"),
    ("GET", "/api/fleet", "umaT"),
    ("GET", "/api/events", "uma"),
    ("GET", "/api/log/live", "a"),
    ("GET", "/api/log", "a"),
    ("GET", "/api/log/collections", "a"),
    ("GET", "/api/log/object/{collection}/{key}", "a"),
    ("GET", "/api/rejections", "uma"),
    ("POST", "/api/rejections/{id}/retry", "uma"),
    ("DELETE", "/api/rejections/{id}", "uma"),
    ("GET", "/api/objects/invalid", "a"),
    ("PUT", "/api/objects/invalid/{collection}/{key}", "a"),
    ("DELETE", "/api/objects/invalid/{collection}/{key}", "a"),
    ("GET", "/api/backup", "a"),
    ("POST", "/api/backup", "a"),
    ("GET", "/api/openapi.json", "numatT"),
];
const LETTERS: &str = "numatT";
/// Streams that do not end by themselves, and what ends the webserver: only refusals are looked at.
const ENDLESS: [&str; 3] = ["/api/events", "/api/log/live", "/api/restart/webserver"];
/// Paths whose object is not there: who is let in is told so, who is not is refused or told the same.
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

/// What a row is tried with: fresh for every try, because many routes change or delete what they name.
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

impl Stage {
    fn things(&mut self) -> Things {
        self.number += 1;
        let (number, admin) = (self.number, &self.admin);
        let name = format!("member{number}");
        let uid = admin.made("/api/users", &json!({ "User": name, "Pass": "p" })).as_i64().expect("number");
        let gid = admin.made("/api/groups", &json!({ "Name": format!("group{number}") })).as_i64().expect("number");
        admin.made(&format!("/api/users/{uid}/group"), &json!({ "GIDs": [gid] }));
        let member = self.web.login(&name, "p");
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
    let is_hidden = HIDDEN.iter().any(|hidden| path.starts_with(hidden)) || path.starts_with("/api/resources/lookup");
    matches!(status, 401 | 403) || (is_hidden && status == 404)
}

#[test]
fn w7_every_route_serves_whom_the_table_says_and_nobody_else() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    // One who is not put out when the first administrator's sessions end.
    web.admin(&fleet).made("/api/users", &json!({ "User": "stagehand", "Pass": "p", "Admin": true }));
    let admin = web.login("stagehand", "p");
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
        TABLE.iter().map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned())).collect();
    assert_eq!(described, tabled, "every route has its row");

    let admin = &stage.admin;
    admin.made("/api/users", &json!({ "User": "stranger", "Pass": "p" }));
    let all: Vec<serde_json::Value> = admin.ok("GET", "/api/tokens/capabilities").as_array().expect("list").clone();
    let strong = admin.made("/api/tokens", &json!({ "name": "strong", "capabilities": all }));
    let strong = stage.web.nobody().with("Gravwell-Token", strong["token"].as_str().expect("value"));
    let mut wrong = Vec::new();
    let mut things = stage.things();
    let (mut stranger, mut first) = (stage.web.login("stranger", "p"), stage.web.login("admin", "changeme"));
    for (method, path, letters) in TABLE {
        for (column, letter) in LETTERS.chars().enumerate() {
            let caller = match letter {
                'n' => stage.web.nobody(),
                'u' => stranger.clone(),
                'm' => things.member.clone(),
                'a' => first.clone(),
                't' => things.bare.clone(),
                _ => strong.clone(),
            };
            let id = match *path {
                path if path.contains("/tokens/") => things.token.clone(),
                path if path.contains("/searchctrl/") || path.contains("/ws/attach/") => things.search.clone(),
                _ => things.dashboard.clone(),
            };
            let concrete = path
                .replace("{uid}", &things.uid.to_string())
                .replace("{gid}", &things.gid.to_string())
                .replace("{id}", &id)
                .replace("{guid}", &things.resource)
                .replace("{name}", &format!("r{}", stage.number))
                .replace("{level}", "info")
                .replace("{format}", "text")
                .replace("{collection}", "users")
                .replace("{key}", "1");
            let is_let_in = letters.contains(letter);
            let is_change = *method != "GET";
            if is_let_in && ENDLESS.contains(path) {
                continue;
            }
            let status = match *path {
                "/api/users/{uid}/pwd" => caller.put(&concrete, &json!({ "OrigPass": "p", "NewPass": "q" })).status,
                _ => caller.call(method, &concrete).status,
            };
            // A login without credentials is refused with a status of its own.
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
                (stranger, first) = (again(&stranger, "stranger", "p"), again(&first, "admin", "changeme"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), stage.fleet.log_of("a"));
}

#[test]
fn w8_a_token_has_its_capabilities_and_never_more() {
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
    // It begets none that is stronger than itself.
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
