//! An offline webserver whose state was lost or reverted rejects logins, because the accounts may be deleted elsewhere.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::Web;
use crate::files::copy_dir;
use crate::fleet::Fleet;

fn state(dir: &Path) -> PathBuf {
    let mut entries = fs::read_dir(dir).expect("lists").map(|entry| entry.expect("entry").path());
    let is_state = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("state-"));
    entries.find(is_state).expect("a state")
}

#[test]
fn p13_a_webserver_whose_state_is_not_the_newest_that_it_had_lets_nobody_in() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    fleet.enroll("b", "webserver");
    let (mut a, b) = (Web::start(&fleet, "a", &[]), Web::start(&fleet, "b", &[]));
    let admin = a.admin(&fleet);
    let password = "a stable mouse";
    let made =
        admin.made("/api/users", &json!({ "User": "mallory", "Name": "m", "Email": "m@x.io", "Pass": password }));
    let uid = made.as_i64().or_else(|| made["UID"].as_i64()).expect("a UID");
    fleet.converges(&["a", "b"]);
    let session = a.login("mallory", password);
    fleet.converges(&["a", "b"]);
    a.stop();
    let dir = fleet.dir("a");
    copy_dir(&dir, &fleet.dir("a.old"));
    a.restart(&fleet, &[]);
    fleet.wait_connected("a");
    assert_eq!(b.admin(&fleet).delete(&format!("/api/users/{uid}")).status, 200);
    fleet.converges(&["a", "b"]);
    a.stop();
    datastore.terminate();
    copy_dir(&dir, &fleet.dir("a.good"));
    for how in ["lost", "back"] {
        fs::remove_dir_all(&dir).expect("removes");
        copy_dir(&fleet.dir("a.good"), &dir);
        fs::remove_dir_all(state(&dir)).expect("removes");
        fs::remove_file(dir.join("high-water")).expect("removes");
        if how == "back" {
            let older = state(&fleet.dir("a.old"));
            copy_dir(&older, &dir.join(older.file_name().expect("a name")));
            fs::copy(fleet.dir("a.old/high-water"), dir.join("high-water")).expect("copies");
        }
        a.restart(&fleet, &[]);
        let login = |user: &str, password: &str| {
            a.nobody().post("/api/login", &json!({ "User": user, "Pass": password })).status
        };
        assert_eq!(a.nobody().try_get("/api/ready").map(|(status, _)| status).ok(), Some(503), "{how}");
        assert_eq!(login("mallory", password), 503, "{how}: the deleted user");
        assert_eq!(login("admin", super::ADMIN_PASSWORD), 503, "{how}");
        assert_eq!(session.get("/api/info/whoami").status, 503, "{how}: a session of the deleted user");
        assert_eq!(fleet.run("a", &["status"]).status.code(), Some(1), "{how}");
        let datastore = fleet.datastore();
        fleet.wait("ready again", || a.nobody().try_get("/api/ready").is_ok_and(|(status, _)| status == 200));
        assert_eq!(login("admin", super::ADMIN_PASSWORD), 200, "{how}: it was caught up before");
        assert_ne!(login("mallory", password), 200, "{how}");
        a.stop();
        datastore.terminate();
    }
}
