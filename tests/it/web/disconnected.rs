//! Everything works without the datastore; when it is reachable again, changes are committed or rejected with a reason.

use serde_json::{Value, json};

use super::Site;
use super::client::Client;

/// Makes a hundred changes of every kind at one disconnected webserver.
fn work(client: &Client, mark: &str) {
    for number in 0..10 {
        let name = format!("{mark}{number}");
        let uid = client.made("/api/users", &json!({ "User": name, "Pass": "a plain horse", "Name": name }));
        let gid = client.made("/api/groups", &json!({ "Name": name }));
        let user = format!("/api/users/{uid}");
        assert_eq!(client.ok("GET", &user)["Synced"], false, "created here, still pending");
        client.made(&format!("{user}/group"), &json!({ "GIDs": [gid] }));
        client.changed(&format!("{user}/preferences"), &json!({ "mark": mark }));
        let id = client.made("/api/dashboards", &json!({ "Name": name, "GIDs": [gid] }));
        let dashboard = format!("/api/dashboards/{id}");
        client.changed(&dashboard, &json!({ "Description": mark }));
        let made = client.made("/api/resources", &json!({ "ResourceName": name }));
        let raw = format!("/api/resources/{}/raw", made["GUID"].as_str().expect("GUID"));
        assert_eq!(client.upload("PUT", &raw, "file", name.as_bytes()).status, 200);
        client.made("/api/searchhistory", &json!({ "UserQuery": name }));
        client.made("/api/tokens", &json!({ "name": name, "capabilities": [] }));
        match number % 5 {
            0 => drop(client.ok("DELETE", &user)),
            1 => drop(client.ok("DELETE", &dashboard)),
            2 => drop(client.ok("DELETE", &format!("/api/groups/{gid}"))),
            3 => drop(client.ok("PUT", &format!("{user}/lock"))),
            _ => drop(client.ok("PUT", &format!("{user}/admin"))),
        }
    }
}

/// Returns the lists that a webserver shows, for comparison.
fn shown(client: &Client) -> Vec<Value> {
    let lists = ["users", "groups", "dashboards?admin=true", "resources?admin=true", "tokens", "searchhistory"];
    lists.iter().map(|list| client.ok("GET", &format!("/api/{list}"))).collect()
}

#[test]
fn a_hundred_changes_on_each_side_of_a_disconnect() {
    let mut site = Site::new();
    let (a, b) = site.admins();
    let old = a.made("/api/dashboards", &json!({ "Name": "old" }));
    let doomed = a.made("/api/users", &json!({ "User": "doomed", "Pass": "a plain horse" }));
    site.converges();
    let logged_in = site.a.login("doomed", "a plain horse");
    site.stop_datastore();
    work(&a, "a");
    work(&b, "b");
    // Security-relevant changes take effect locally at once.
    a.ok("DELETE", &format!("/api/users/{doomed}"));
    assert_eq!(logged_in.get("/api/testauth").status, 401);
    b.ok("DELETE", &format!("/api/dashboards/{old}"));
    assert!(a.get("/api/users").header("gravwell-undecided").is_some());
    // Both use the same name, which only one can keep.
    for (client, mark) in [(&a, "a"), (&b, "b")] {
        client.made("/api/users", &json!({ "User": "twin", "Pass": "a plain horse", "Name": mark }));
    }
    // In addition, a process is killed.
    site.a.kill();
    let address = site.a.address;
    site.a.process = Some(site.fleet.spawn_webserver("a", address, &[]));
    let again = site.a.nobody();
    site.fleet.wait("a answers", || again.answers());
    assert_eq!(a.ok("GET", "/api/users"), a.ok("GET", "/api/users"));
    site.start_datastore();
    site.converges();
    assert_eq!(shown(&a), shown(&b));
    let users = a.ok("GET", "/api/users");
    let named = |name: &str| users.as_array().expect("list").iter().filter(|user| user["User"] == name).count();
    assert_eq!((named("twin"), named("doomed"), named("a0"), named("a1"), named("b4")), (1, 0, 0, 1, 1));
    assert!(users.as_array().expect("list").iter().all(|user| user["Synced"] == true));
    assert_eq!(a.get(&format!("/api/dashboards/{old}")).status, 404);
    // The author of the rejected change is informed, by a notification and on the page.
    let refused: Vec<(&Client, Value)> =
        [&a, &b].into_iter().map(|client| (client, client.ok("GET", "/api/rejections"))).collect();
    let all: Vec<&Value> = refused.iter().flat_map(|(_, list)| list.as_array().expect("list")).collect();
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!((all[0]["What"].as_str(), all[0]["User"].as_str()), (Some("create user twin"), Some("admin")));
    site.fleet.wait("both show the notification", || {
        [&a, &b].iter().all(|client| client.ok("GET", "/api/notifications").to_string().contains("create user twin"))
    });
    let (client, list) = refused.iter().find(|(_, list)| list != &json!([])).expect("one");
    let path = format!("/api/rejections/{}", list[0]["ID"].as_str().expect("ID"));
    client.ok("DELETE", &path);
    assert_eq!((client.ok("GET", "/api/rejections"), client.delete(&path).status), (json!([]), 404));
}

#[test]
fn a_conflict_is_reported_immediately_while_online() {
    let site = Site::new();
    let (a, b) = site.admins();
    let results: Vec<u16> = std::thread::scope(|scope| {
        let create = |client: &Client| {
            let client = client.clone();
            scope.spawn(move || client.post("/api/users", &json!({ "User": "twin", "Pass": "a plain horse" })).status)
        };
        let both = [create(&a), create(&b)];
        both.into_iter().map(|thread| thread.join().expect("ends")).collect()
    });
    let mut results = results;
    results.sort_unstable();
    assert_eq!(results, [200, 409]);
    site.converges();
    assert_eq!(
        (a.ok("GET", "/api/rejections"), b.ok("GET", "/api/rejections")),
        (json!([]), json!([])),
        "users are notified only once"
    );
}

#[test]
fn objects_deleted_while_a_webserver_was_down_stay_deleted() {
    let mut site = Site::new();
    let (a, b) = site.admins();
    let id = a.made("/api/dashboards", &json!({ "Name": "d" }));
    let path = format!("/api/dashboards/{id}");
    site.fleet.wait("b has it", || b.get(&path).status == 200);
    site.b.stop();
    a.ok("DELETE", &path);
    let (fleet, b_web) = (&site.fleet, &mut site.b);
    b_web.restart(fleet, &[]);
    site.fleet.wait("b knows", || b.get(&path).status == 404);
    assert_eq!(b.put(&path, &json!({ "Name": "x" })).status, 404);
    site.converges();
    // A change that was made without knowledge of a deletion is rejected; it does not restore the object.
    let id = a.made("/api/dashboards", &json!({ "Name": "e" }));
    let path = format!("/api/dashboards/{id}");
    site.converges();
    site.stop_datastore();
    a.ok("DELETE", &path);
    b.changed(&path, &json!({ "Name": "later" }));
    site.b.stop();
    site.start_datastore();
    site.fleet.wait("a's deletion is committed", || site.fleet.status("a")["outbox"] == 0);
    let (fleet, b_web) = (&site.fleet, &mut site.b);
    b_web.restart(fleet, &[]);
    site.converges();
    assert_eq!((a.get(&path).status, b.get(&path).status), (404, 404));
    assert_eq!(b.ok("GET", "/api/rejections")[0]["What"], "change dashboard later");
}
