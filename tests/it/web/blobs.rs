//! Contents of resources are streamed in both directions; backups restore everything.

use std::io::Read;

use serde_json::json;

use super::ADMIN_PASSWORD;
use super::{Site, Web};
use crate::fleet::{Fleet, Rng};

/// Non-repeating bytes, generated while being read.
struct Noise(Rng, u64);

impl Read for Noise {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        let length = to.len().min(usize::try_from(self.1).unwrap_or(usize::MAX));
        to[..length].fill_with(|| u8::try_from(self.0.below(256)).unwrap_or(0));
        self.1 -= length as u64;
        Ok(length)
    }
}

fn noise(seed: u64, bytes: u64) -> Vec<u8> {
    let mut all = Vec::new();
    Noise(Rng::new(seed), bytes).read_to_end(&mut all).expect("reads");
    all
}

#[test]
fn contents_are_transferred_completely_or_not_at_all() {
    let site = Site::new();
    let (a, b) = site.admins();
    let made = a.made("/api/resources", &json!({ "ResourceName": "r" }));
    assert_eq!((&made["Hash"], &made["VersionNumber"], &made["Size"]), (&json!(""), &json!(0), &json!(0)));
    let path = format!("/api/resources/{}", made["GUID"].as_str().expect("GUID"));
    let raw = format!("{path}/raw");
    assert_eq!((a.get(&raw).status, a.get(&raw).body.len()), (200, 0));
    let mut version = 0;
    for size in [0, 1, 1000, 512 << 10, (512 << 10) + 1, 3_000_000] {
        version += 1;
        let contents = noise(size, size);
        let stored = a.upload("PUT", &raw, "file", contents.as_slice());
        assert_eq!(stored.status, 200, "{}", stored.text());
        assert_eq!((&stored.json()["Size"], &stored.json()["VersionNumber"]), (&json!(size), &json!(version)));
        let position = stored.header("gravwell-position").expect("a position").to_owned();
        let there = b.with("Gravwell-Wait-For", &position);
        assert!(there.get(&raw).body == contents, "{size} bytes");
        for (asked, given) in [(64, 512), (127, 512), (128, 128), (1024, 1024)] {
            let preview = there.ok("GET", &format!("{path}/contenttype?bytes={asked}"));
            let body = preview["Body"].as_str().expect("text").len();
            assert_eq!(body, given.min(contents.len()).div_ceil(3) * 4, "{asked} of {size}");
        }
    }
    let copy = b.made(&format!("{path}/clone"), &json!({ "Name": "copy" }));
    a.ok("DELETE", &path);
    site.converges();
    let copied = format!("/api/resources/{}/raw", copy["GUID"].as_str().expect("GUID"));
    assert!(a.get(&copied).body == noise(3_000_000, 3_000_000), "the blob is kept while it is referenced");
    a.ok("DELETE", copied.trim_end_matches("/raw"));
    let left = site.converges();
    assert!(!left.contains("\"chunks\"") && !left.contains("\"contents\""), "unreferenced blobs are left");
    assert_eq!(a.send_text("PUT", &raw, "multipart/form-data; boundary=b", "x").status, 404);
}

#[test]
fn a_resource_that_is_too_large_is_rejected_and_uses_no_quota() {
    let fleet = Fleet::new();
    let config = fleet.write_file("gravwell.conf", "[Global]\nResource-Max-Size=1000000\n");
    let web = Web::start(&fleet, "a", &["--config", config.to_str().expect("path")]);
    let admin = web.admin(&fleet);
    let made = admin.made("/api/resources", &json!({ "ResourceName": "r" }));
    let path = format!("/api/resources/{}", made["GUID"].as_str().expect("GUID"));
    let upload = |size| admin.upload("PUT", &format!("{path}/raw"), "file", Noise(Rng::new(1), size));
    assert_eq!(upload(1_000_000).status, 200);
    let refused = upload(1_000_001);
    assert_eq!(refused.status, 413, "{}", refused.text());
    assert_eq!(
        (admin.ok("GET", &path)["Size"].clone(), admin.get(&format!("{path}/raw")).body.len()),
        (json!(1_000_000), 1_000_000)
    );
    assert_eq!(admin.upload("PUT", &format!("{path}/raw"), "other", b"x".as_slice()).status, 400);
    assert_eq!(admin.send_text("PUT", &format!("{path}/raw"), "text/plain", "x").status, 400);
}

#[test]
fn an_export_archive_restores_everything() {
    let site = Site::new();
    let (a, b) = site.admins();
    let uid = a.made("/api/users", &json!({ "User": "bob", "Pass": "a plain horse" }));
    let bob = site.a.login("bob", "a plain horse");
    let dashboard = bob.made("/api/dashboards", &json!({ "Name": "d", "Data": { "n": 1 } }));
    let resource = bob.made("/api/resources", &json!({ "ResourceName": "r" }))["GUID"].clone();
    let raw = format!("/api/resources/{}/raw", resource.as_str().expect("GUID"));
    assert_eq!(bob.upload("PUT", &raw, "file", noise(5, 700_000).as_slice()).status, 200);
    let token = bob.made("/api/tokens", &json!({ "name": "t", "capabilities": ["ResourceRead"] }));
    let plain = a.get("/api/backup?savedsearch=false");
    assert!(plain.header("content-disposition").expect("a name").contains(".gravbak"));
    let bare = a.get("/api/backup?omit_sensitive=true");
    assert!(plain.text().contains("argon2id") && !bare.text().contains("argon2id"));
    let sealed = a.with("Password", "secret").get("/api/backup");
    assert!(!sealed.text().contains("dashboards"));

    let after = a.made("/api/dashboards", &json!({ "Name": "after" }));
    a.ok("DELETE", &format!("/api/users/{uid}"));
    a.ok("DELETE", &format!("/api/dashboards/{dashboard}"));
    a.ok("DELETE", &format!("/api/resources/{}", resource.as_str().expect("GUID")));
    let before = site.converges();

    let mut damaged = plain.body.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    for bad in [&damaged[..], &plain.body[..plain.body.len() - 30], &bare.body[..10], b"", &sealed.body[..]] {
        let refused = a.upload("POST", "/api/backup", "backup", bad);
        assert_eq!(refused.status, 400, "{}", refused.text());
    }
    assert_eq!(site.converges(), before, "a rejected backup must not change anything");
    let restored = a.with("Password", "secret").upload("POST", "/api/backup", "backup", sealed.body.as_slice());
    assert_eq!(restored.status, 200, "{}", restored.text());
    // Restored objects that grant revoked access are reported.
    let name = format!("{uid}/{}", token["id"].as_str().expect("id"));
    let returned = json!({ "Tokens": [name], "Administrators": [], "Unlocked": [] });
    assert_eq!(restored.json()["Returned"], returned);
    assert_eq!((a.get("/api/testauth").status, bob.get("/api/testauth").status), (401, 401), "all sessions have ended");
    site.converges();
    assert_eq!(b.get("/api/testauth").status, 401);
    let (admin, bob) = (site.b.login("admin", ADMIN_PASSWORD), site.b.login("bob", "a plain horse"));
    assert_eq!(bob.ok("GET", &format!("/api/dashboards/{dashboard}"))["Data"]["n"], 1);
    assert!(bob.get(&raw).body == noise(5, 700_000));
    assert_eq!(admin.get(&format!("/api/dashboards/{after}")).status, 404);
    let token = site.b.nobody().with("Gravwell-Token", token["token"].as_str().expect("value"));
    assert_eq!(token.get("/api/resources").status, 200, "tokens work right after a restore");
}
