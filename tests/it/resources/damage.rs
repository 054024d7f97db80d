//! Flipped bytes on a disk: detected, repaired from a member that has the data, and reported if no member has it.

use serde_json::json;

use super::{Farm, Resource, noise};

#[test]
fn corruption_is_repaired_from_members_or_reported() {
    let farm = Farm::new("", &[("a", ""), ("b", "")]);
    let (web_a, web_b) = (farm.start("a"), farm.start("b"));
    let (a, b) = (web_a.admin(&farm.fleet), web_b.admin(&farm.fleet));
    let (first, second) = (noise(5, 4 << 20), noise(6, 300_000));
    let (large, small) = (Resource::new(&a, "the large one"), Resource::new(&a, "the small one"));
    large.store(&a, &first);
    farm.fleet.converges(&["a", "b"]);
    farm.complete("b");

    for name in ["b", "d"] {
        farm.damage(name, 50, 200_000);
        let (code, report) = farm.blobs(name, &["verify"]);
        let report = &report[0];
        assert!(code == 0 && report["ok"] == true, "{name}: {report}");
        assert!(!report["damages"].as_array().expect("a list").is_empty(), "{name}: found and reported");
        assert!(report["healed"].as_u64().expect("a number") > 0, "{name}: {report}");
        assert_eq!(farm.blobs(name, &["verify"]).1[0]["damages"], json!([]), "{name}: nothing of it remains");
    }
    large.holds(&b, &first);

    // Reading detects it, too.
    farm.damage("b", 20, 200_000);
    large.holds(&b, &first);

    for name in ["a", "b", "d"] {
        farm.damage(name, 1, usize::MAX);
    }
    let mut named = Vec::new();
    for name in ["a", "b", "d"] {
        let (code, report) = farm.blobs(name, &["verify"]);
        if code == 3 {
            let lost = report[0]["incomplete"].as_array().expect("a list").clone();
            assert_eq!((lost.len(), &lost[0]["resources"]), (1, &json!(["the large one"])), "{name}: {lost:?}");
            assert!(!lost[0]["missing_ids"].as_array().expect("names").is_empty());
            named.push(name);
        }
    }
    assert!(named.contains(&"d"), "lost blobs are reported: {named:?}");
    // Everything else keeps working, and a client that has the data can upload it again.
    small.store(&a, &second);
    farm.fleet.converges(&["a", "b"]);
    small.holds(&b, &second);
    large.store(&a, &first);
    farm.fleet.converges(&["a", "b"]);
    farm.complete("d");
    farm.complete("b");
    large.holds(&b, &first);
}
