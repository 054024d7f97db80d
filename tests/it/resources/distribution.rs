//! Distribution of blobs, and the amount of data sent for it.

use serde_json::json;

use super::{Farm, Resource, change, noise, table};

#[test]
fn only_changed_chunks_are_sent() {
    let farm = Farm::new("", &[("a", ""), ("b", "")]);
    let (web_a, web_b) = (farm.start("a"), farm.start("b"));
    let (a, b) = (web_a.admin(&farm.fleet), web_b.admin(&farm.fleet));
    let mut rows = table(20_000_000);
    let first = rows.concat().into_bytes();
    let resource = Resource::new(&a, "table");
    resource.store(&a, &first);
    farm.fleet.converges(&["a", "b"]);
    farm.complete("b");
    resource.holds(&b, &first);

    let before = (farm.received("d"), farm.received("b"));
    assert!(before.0 > 0 && before.1 > 0, "{before:?}");
    change(&mut rows);
    let second = rows.concat().into_bytes();
    resource.store(&a, &second);
    farm.fleet.converges(&["a", "b"]);
    farm.complete("b");
    resource.holds(&b, &second);
    let cost = (farm.received("d") - before.0, farm.received("b") - before.1);
    println!("1% of the rows of {} bytes: {} bytes to the datastore, {} to the other", second.len(), cost.0, cost.1);
    let allowed = second.len() as u64 / 20;
    assert!(cost.0 < allowed && cost.1 < allowed, "{cost:?} of {allowed}");

    let before = (farm.received("d"), farm.received("b"));
    a.changed(&resource.path, &json!({ "ResourceName": "renamed" }));
    let copy = a.made(&format!("{}/clone", resource.path), &json!({ "Name": "copy" }));
    let copy = Resource { path: format!("/api/resources/{}", copy["GUID"].as_str().expect("GUID")) };
    let twin = Resource::new(&a, "the same bytes again");
    twin.store(&a, &second);
    farm.fleet.converges(&["a", "b"]);
    copy.holds(&b, &second);
    twin.holds(&b, &second);
    assert_eq!((farm.received("d") - before.0, farm.received("b") - before.1), (0, 0), "existing bytes");
}

#[test]
fn ranges_of_contents_are_served() {
    let farm = Farm::new("", &[("a", "")]);
    let web = farm.start("a");
    let admin = web.admin(&farm.fleet);
    let contents = noise(2, 1_500_000);
    let resource = Resource::new(&admin, "r");
    resource.store(&admin, &contents);
    let raw = resource.raw();
    let whole = admin.get(&raw);
    let tag = whole.header("etag").expect("a tag").to_owned();
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    let cases = [
        ("bytes=0-0", 0..1),
        ("bytes=100000-899999", 100_000..900_000),
        ("bytes=1499990-", 1_499_990..1_500_000),
        ("bytes=-7", 1_499_993..1_500_000),
    ];
    for (range, wanted) in cases {
        let part = admin.with("Range", range).get(&raw);
        assert_eq!(part.status, 206, "{range}");
        let place = format!("bytes {}-{}/1500000", wanted.start, wanted.end - 1);
        assert_eq!(part.header("content-range"), Some(place.as_str()));
        assert!(part.body == contents[wanted], "{range}");
    }
    let outside = admin.with("Range", "bytes=1500000-").get(&raw);
    assert_eq!((outside.status, outside.header("content-range")), (416, Some("bytes */1500000")));
    let same = admin.with("Range", "bytes=5-9").with("If-Range", &tag).get(&raw);
    assert_eq!((same.status, same.body.as_slice()), (206, &contents[5..10]));
    let other = admin.with("Range", "bytes=5-9").with("If-Range", "\"other\"").get(&raw);
    assert_eq!(
        (other.status, other.body.len()),
        (200, contents.len()),
        "a range of another version must not be served"
    );
    assert_eq!(admin.with("If-None-Match", &tag).get(&raw).status, 304);
    let head = admin.call("HEAD", &raw);
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("1500000"), 0));
}

#[test]
fn contents_uploaded_offline_are_sent_later() {
    let mut farm = Farm::new("", &[("a", ""), ("b", "")]);
    let (web_a, web_b) = (farm.start("a"), farm.start("b"));
    let (a, b) = (web_a.admin(&farm.fleet), web_b.admin(&farm.fleet));
    farm.fleet.converges(&["a", "b"]);
    farm.stop_datastore(&["a", "b"]);
    let contents = noise(3, 70 << 20);
    let resource = Resource::new(&a, "offline");
    resource.store(&a, &contents);
    resource.holds(&a, &contents);
    let dashboard = a.made("/api/dashboards", &json!({ "Name": "made after it" }));
    farm.start_datastore();
    farm.fleet.converges(&["a", "b"]);
    farm.complete("b");
    resource.holds(&b, &contents);
    assert_eq!(b.get(&format!("/api/dashboards/{dashboard}")).status, 200);
    assert_eq!(farm.blobs("d", &["verify"]).0, 0, "the datastore has every referenced chunk");
}

#[test]
fn members_serve_each_other_while_the_datastore_is_unreachable() {
    let mut farm = Farm::new("", &[("a", ""), ("b", "Resource-Fetch=on-demand")]);
    let (web_a, web_b) = (farm.start("a"), farm.start("b"));
    let (a, b) = (web_a.admin(&farm.fleet), web_b.admin(&farm.fleet));
    let contents = noise(4, 5 << 20);
    let resource = Resource::new(&a, "r");
    resource.store(&a, &contents);
    farm.fleet.converges(&["a", "b"]);
    let list_is_here = || {
        let (_, infos) = farm.blobs("b", &["list"]);
        infos.first().is_some_and(|info| info["chunks"].as_u64().is_some_and(|chunks| chunks > 10))
    };
    farm.fleet.wait("b has received the chunk list", list_is_here);
    assert!(farm.received("b") < 1 << 20, "only manifests are fetched on demand");
    let part = b.with("Range", "bytes=1000-1999").get(&resource.raw());
    assert!(part.body == contents[1000..2000]);
    farm.kill_datastore();
    farm.fleet.wait("the disconnect is noticed", || farm.fleet.status("b")["connected"] == false);
    resource.holds(&b, &contents);
}
