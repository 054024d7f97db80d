//! Garbage collection of chunks, and changes whose chunks are lost.

use crate::web::ADMIN_PASSWORD;
use serde_json::json;

use super::{Farm, Resource, noise};

#[test]
fn only_unreferenced_chunks_are_collected() {
    let mut farm = Farm::new("", &[("a", "")]);
    let mut web = farm.start("a");
    let admin = web.admin(&farm.fleet);
    let (kept, gone) = (noise(7, 1 << 20), noise(8, 2 << 20));
    let (stays, goes) = (Resource::new(&admin, "stays"), Resource::new(&admin, "goes"));
    stays.store(&admin, &kept);
    goes.store(&admin, &gone);
    admin.ok("DELETE", &goes.path);
    farm.fleet.converges(&["a"]);
    let (_, report) = farm.blobs("d", &["gc"]);
    assert_eq!(report[0]["chunks"], 0, "{report:?}");
    assert!(report[0]["kept_in_grace"].as_u64().expect("a number") > 10, "{report:?}");
    assert_eq!(farm.blobs("d", &["gc", "--grace", "0"]).0, 1, "not while uploads may be in progress");

    // An upload known only to this webserver.
    farm.stop_datastore(&["a"]);
    let offline = Resource::new(&admin, "offline");
    let pending = noise(9, 1 << 20);
    offline.store(&admin, &pending);
    web.stop();
    for name in ["d", "a"] {
        let (_, plan) = farm.blobs(name, &["gc", "--grace", "0", "--dry-run"]);
        let (code, report) = farm.blobs(name, &["gc", "--grace", "0"]);
        assert_eq!((code, &plan[0]["chunks"]), (0, &report[0]["chunks"]), "{name}");
        assert!(report[0]["chunks"].as_u64().expect("a number") > 10, "{name}: {report:?}");
        assert_eq!(farm.blobs(name, &["verify"]).0, 0, "{name}");
    }
    farm.start_datastore();
    farm.restart(&mut web);
    let admin = web.login("admin", ADMIN_PASSWORD);
    farm.fleet.converges(&["a"]);
    stays.holds(&admin, &kept);
    offline.holds(&admin, &pending);
    assert_eq!(farm.blobs("d", &["verify"]).0, 0);
}

#[test]
fn a_change_with_lost_chunks_is_rejected_and_blocks_nothing() {
    let mut farm = Farm::new("", &[("a", "")]);
    let mut web = farm.start("a");
    let admin = web.admin(&farm.fleet);
    let resource = Resource::new(&admin, "r");
    farm.fleet.converges(&["a"]);
    farm.stop_datastore(&["a"]);
    resource.store(&admin, &noise(10, 1 << 20));
    let dashboard = admin.made("/api/dashboards", &json!({ "Name": "made after it" }));
    web.stop();
    std::fs::remove_dir_all(farm.fleet.dir("a").join("chunks")).expect("removes");
    farm.start_datastore();
    farm.restart(&mut web);
    farm.fleet.converges(&["a"]);
    let rejected = farm.fleet.ok("a", &["outbox", "--json"]);
    assert!(rejected.contains("upload the contents again"), "{rejected}");
    let admin = web.login("admin", ADMIN_PASSWORD);
    assert_eq!(admin.ok("GET", &resource.path)["Size"], 0, "the upload has no effect");
    assert_eq!(admin.get(&format!("/api/dashboards/{dashboard}")).status, 200);
}

/// A rejected upload can be retried, and its contents may exist nowhere else.
#[test]
fn p14_chunks_of_a_rejected_upload_are_kept_until_it_is_dismissed() {
    let mut farm = Farm::new("", &[("a", "")]);
    let mut web = farm.start("a");
    let admin = web.admin(&farm.fleet);
    let resource = Resource::new(&admin, "r");
    farm.fleet.converges(&["a"]);
    farm.stop_datastore(&["a"]);
    resource.store(&admin, &noise(12, 1 << 20));
    web.stop();
    farm.start_datastore();
    let guid = resource.path.rsplit('/').next().expect("a path");
    farm.fleet.ok("d", &["delete", "resources", guid]);
    farm.restart(&mut web);
    farm.fleet.wait("it is rejected", || farm.fleet.status("a")["rejected"] == 1);
    web.stop();
    let collected = || {
        let (code, report) = farm.blobs("a", &["gc", "--grace", "0"]);
        assert_eq!(code, 0, "{report:?}");
        report[0]["chunks"].as_u64().expect("a number")
    };
    assert_eq!(collected(), 0, "the chunks of the rejected upload are kept");
    farm.fleet.ok("a", &["outbox", "dismiss", "--all"]);
    assert!(collected() > 10, "nothing can be retried any more");
}
