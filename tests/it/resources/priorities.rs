//! Priorities of transfers, retention of pending data, and quotas.

use crate::web::ADMIN_PASSWORD;
use serde_json::json;

use super::{Farm, Resource, noise};

#[test]
fn small_changes_do_not_wait_for_contents() {
    let mut farm = Farm::new("", &[("a", "Chunk-Bandwidth-Limit=1MB"), ("b", "")]);
    let (web_a, web_b) = (farm.start("a"), farm.start("b"));
    let (a, b) = (web_a.admin(&farm.fleet), web_b.admin(&farm.fleet));
    farm.fleet.converges(&["a", "b"]);
    farm.stop_datastore(&["a", "b"]);
    let resource = Resource::new(&a, "large");
    let contents = noise(20, 12 << 20);
    resource.store(&a, &contents);
    a.changed(&resource.path, &json!({ "Description": "relies on the upload" }));
    let dashboard = a.made("/api/dashboards", &json!({ "Name": "made after it" }));
    farm.start_datastore();
    let path = format!("/api/dashboards/{dashboard}");
    farm.fleet.wait("b has received it", || b.get(&path).status == 200);
    // The upload still needs twelve seconds at this point.
    assert_eq!(b.ok("GET", &resource.path)["Size"], 0);
    assert!(farm.received("d") < contents.len() as u64);
    a.ok("DELETE", &path);
    farm.fleet.wait("b has received the deletion", || b.get(&path).status == 404);
    assert!(farm.received("d") < contents.len() as u64);
    farm.fleet.converges(&["a", "b"]);
    farm.complete("b");
    resource.holds(&b, &contents);
    assert_eq!(b.ok("GET", &resource.path)["Description"], "relies on the upload");
}

#[test]
fn quotas_limit_stored_contents() {
    let farm = Farm::new("", &[("a", "Resource-User-Quota-MB=3\nResource-Max-Size=2500000")]);
    let web = farm.start("a");
    let admin = web.admin(&farm.fleet);
    let (first, second) = (Resource::new(&admin, "first"), Resource::new(&admin, "second"));
    let refused = |contents: &[u8], parameter: &str| {
        let answer = admin.upload("PUT", &second.raw(), "file", contents);
        assert_eq!(answer.status, 413, "{}", answer.text());
        assert!(answer.text().contains(parameter), "{}", answer.text());
    };
    refused(&noise(22, 3_000_000), "Resource-Max-Size");
    first.store(&admin, &noise(21, 2 << 20));
    refused(&noise(22, 2 << 20), "Resource-User-Quota-MB");
    second.store(&admin, &noise(22, 1 << 20));
    // Replacing contents counts the new ones only.
    second.store(&admin, &noise(23, 1 << 20));
    admin.ok("DELETE", &first.path);
    second.store(&admin, &noise(24, 2 << 20));
}

#[test]
fn a_cache_evicts_only_chunks_that_the_datastore_has() {
    let mut farm = Farm::new("", &[("a", "Resource-Fetch=on-demand\nResource-Cache-Max-MB=2"), ("b", "")]);
    let (web_a, web_b) = (farm.start("a"), farm.start("b"));
    let (a, b) = (web_a.admin(&farm.fleet), web_b.admin(&farm.fleet));
    farm.fleet.converges(&["a", "b"]);
    farm.stop_datastore(&["a", "b"]);
    let (resource, contents) = (Resource::new(&a, "r"), noise(25, 6 << 20));
    resource.store(&a, &contents);
    let kept = || farm.blobs("a", &["stats"]).1[0]["stored_bytes"].as_u64().expect("a number");
    // Longer than the interval of the cache eviction.
    std::thread::sleep(std::time::Duration::from_secs(12));
    assert!(kept() > 6 << 20, "no other member has them");
    farm.start_datastore();
    farm.fleet.converges(&["a", "b"]);
    farm.complete("b");
    let kept = || farm.blobs("a", &["stats"]).1[0]["stored_bytes"].as_u64().expect("a number");
    farm.fleet.wait("the cache is full", || kept() < 3 << 20);
    resource.holds(&a, &contents);
    resource.holds(&b, &contents);
    assert_eq!(farm.blobs("d", &["verify"]).0, 0);
}

#[test]
fn previous_contents_are_kept_until_their_successors_are_committed() {
    let mut farm = Farm::new("", &[("a", ""), ("b", "")]);
    let (mut web_a, web_b) = (farm.start("a"), farm.start("b"));
    let (a, b) = (web_a.admin(&farm.fleet), web_b.admin(&farm.fleet));
    let (resource, first, second) = (Resource::new(&a, "r"), noise(26, 1 << 20), noise(27, 1 << 20));
    resource.store(&a, &first);
    farm.fleet.converges(&["a", "b"]);
    farm.complete("b");
    // The chunks are lost before they are sent, so the change will be rejected.
    farm.stop_datastore(&["a", "b"]);
    resource.store(&a, &second);
    web_a.stop();
    std::fs::remove_dir_all(farm.fleet.dir("a").join("chunks")).expect("removes");
    // In the meantime B changes the description based on the old version.
    b.changed(&resource.path, &json!({ "Description": "as B knew it" }));
    farm.start_datastore();
    farm.restart(&mut web_a);
    farm.fleet.converges(&["a", "b"]);
    let a = web_a.login("admin", ADMIN_PASSWORD);
    farm.complete("a");
    resource.holds(&a, &first);
    resource.holds(&b, &first);
    assert_eq!(a.ok("GET", &resource.path)["Description"], "as B knew it");

    // A change of the description while offline does not restore former contents.
    farm.stop_datastore(&["a", "b"]);
    b.changed(&resource.path, &json!({ "Description": "made while offline" }));
    b.changed(&resource.path, &json!({ "Description": "and again" }));
    resource.store(&a, &second);
    farm.start_datastore();
    farm.fleet.wait("both have pushed", || {
        ["a", "b"]
            .iter()
            .all(|name| farm.fleet.status(name)["outbox"] == 0 && farm.fleet.status(name)["connected"] == true)
    });
    farm.fleet.converges(&["a", "b"]);
    let stored = a.get(&resource.raw());
    assert!(
        stored.status == 200 && (stored.body == first || stored.body == second),
        "complete, regardless of the order"
    );
    assert!(b.get(&resource.raw()).body == stored.body);
    let (_, all) = farm.blobs("d", &["list"]);
    assert!(all.iter().any(|content| content["resources"][0] == "r"), "the resource exists: {all:?}");
}
