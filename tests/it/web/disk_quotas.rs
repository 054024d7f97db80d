//! Disk usage by users on a webserver: each has a share, and together they leave space for data that must arrive.

use serde_json::{Value, json};

use super::client::Client;
use super::searches::{ended, launch, resource};
use super::{Site, Web};
use crate::fleet::Fleet;
use crate::full_disk::Small;

const PASSWORD: &str = "open sesame now";

/// Returns lines for which a search of all of them produces about `kib` KiB of results.
fn rows(kib: usize) -> String {
    format!("{{\"t\":\"{}\"}}\n", "x".repeat(1015)).repeat(kib)
}

fn user(admin: &Client, web: &Web, name: &str) -> Client {
    admin.made("/api/users", &json!({ "User": name, "Pass": PASSWORD }));
    web.login(name, PASSWORD)
}

/// Runs a search over all rows and returns its path and final details.
fn searched(client: &Client, query: &str) -> (String, Value) {
    let path = launch(client, query);
    let details = ended(client, &path);
    (path, details)
}

fn download(client: &Client, path: &str) -> super::client::Answer {
    client.get(&format!("{path}/download/text"))
}

#[test]
fn p15_results_of_one_user_make_room_for_their_own_and_leave_those_of_others() {
    let fleet = Fleet::new();
    let config = "[Global]\nRender-Store-User-MB=3\nRender-Store-Total-MB=8\nRender-Store-Min-Free-MB=1\n";
    let config = fleet.write_file("gravwell.conf", config);
    let options = ["--config", config.to_str().expect("path"), "--metrics", "127.0.0.1:0"];
    let mut web = Web::start(&fleet, "a", &options);
    let admin = web.admin(&fleet);
    let (bob, carol) = (user(&admin, &web, "bob"), user(&admin, &web, "carol"));
    for client in [&bob, &carol] {
        resource(client, "mega", &rows(1024));
    }
    let (hers, _) = searched(&carol, "tag=resource:mega");
    let his: Vec<String> = (0..4)
        .map(|number| {
            let (path, details) = searched(&bob, "tag=resource:mega");
            assert!(details["ItemCount"] == 1024 && details["Progress"] == "done", "{number}: {details}");
            path
        })
        .collect();
    let status: Vec<u16> = his.iter().map(|path| download(&bob, path).status).collect();
    assert_eq!(status, [409, 409, 200, 200], "the oldest results were evicted");
    let gone = download(&bob, &his[0]).text();
    assert!(gone.contains("were deleted because") && gone.contains("save results that you want to keep"), "{gone}");
    assert_eq!(download(&carol, &hers).status, 200, "results of other users are kept");
    let metrics = web.metrics(&fleet).expect("metrics");
    assert!(metrics.contains("gravwell_results_cleared_total 2"), "{metrics}");

    // Results beyond the share are dropped, and this is reported.
    let (path, details) = searched(&bob, "tag=resource:mega | ., ., ., .");
    let reason = details["Reason"].as_str().expect("text");
    assert!(reason.contains("Render-Store-User-MB") && details["Progress"] == "done", "{details}");
    let bytes = download(&bob, &path).body.len();
    assert!((2 << 20..3 << 20).contains(&bytes), "{bytes}");
    let archive = carol.get(&format!("{hers}/download/archive"));
    let imported = bob.upload("POST", "/api/searchctrl/import", "file", archive.body.as_slice());
    assert_eq!(imported.status, 200, "{}", imported.text());
    assert_eq!(download(&bob, &path).status, 409, "an archive uses room as well");
    let four = [archive.body.as_slice(); 4].concat();
    let refused = bob.upload("POST", "/api/searchctrl/import", "file", four.as_slice());
    assert!(refused.status == 507 && refused.text().contains("Render-Store-User-MB"), "{}", refused.text());

    // After a restart, existing results are counted.
    web.stop();
    web.restart(&fleet, &options);
    let (last, _) = searched(&bob, "tag=resource:mega | ., .");
    assert_eq!((download(&bob, &last).status, download(&carol, &hers).status), (200, 200));
    let kept: u64 = std::fs::read_dir(fleet.dir("a/searches"))
        .expect("a directory")
        .filter_map(|file| Some(file.ok()?.metadata().ok()?.len()))
        .sum();
    assert!(kept < 5 << 20, "{kept}");
}

#[test]
fn p15_uploads_of_one_user_are_bounded_whatever_becomes_of_them() {
    let fleet = Fleet::new();
    let config = fleet.write_file("gravwell.conf", "[Global]\nUpload-User-MB=3\nResource-User-Quota-MB=2\n");
    let web = Web::start(&fleet, "a", &["--config", config.to_str().expect("path")]);
    let admin = web.admin(&fleet);
    let (bob, carol) = (user(&admin, &web, "bob"), user(&admin, &web, "carol"));
    let made = |client: &Client| {
        let made = client.made("/api/resources", &json!({ "ResourceName": "r" }));
        format!("/api/resources/{}/raw", made["GUID"].as_str().expect("GUID"))
    };
    let mega = rows(1024);
    let raw = made(&bob);
    for _ in 0..2 {
        assert_eq!(bob.upload("PUT", &raw, "file", mega.as_bytes()).status, 200);
    }
    // Saved results are blobs as well.
    let (path, _) = searched(&bob, "tag=resource:r | limit 512");
    let saved = bob.call("PATCH", &format!("{path}/save"));
    assert_eq!(saved.status, 200, "{}", saved.text());
    let refused = bob.upload("PUT", &raw, "file", mega.as_bytes());
    assert!(refused.status == 429 && refused.text().contains("Upload-User-MB"), "{}", refused.text());
    assert_eq!(carol.upload("PUT", &made(&carol), "file", mega.as_bytes()).status, 200);
    let own = made(&admin);
    for _ in 0..4 {
        assert_eq!(admin.upload("PUT", &own, "file", mega.as_bytes()).status, 200, "an administrator imports");
    }
    let (path, _) = searched(&carol, "tag=resource:r | ., .");
    let refused = carol.call("PATCH", &format!("{path}/save"));
    assert!(refused.status == 413 && refused.text().contains("Resource-User-Quota-MB"), "{}", refused.text());
}

/// However much one user searches, a lock still reaches the webserver where the search runs.
#[test]
fn p11_nobody_fills_the_disk_with_results_to_keep_a_lock_away() {
    let fleet = Fleet::new();
    let Some(_disk) = Small::mount(&fleet.dir("b"), 560) else { return };
    let config = "[Global]\nRender-Store-User-MB=10000\nRender-Store-Total-MB=10000\nRender-Store-Min-Free-MB=320\n";
    let config = fleet.write_file("b.conf", config);
    let site = Site::start(fleet, &["--config", config.to_str().expect("path")]);
    let (a, b) = site.admins();
    let uid = a.made("/api/users", &json!({ "User": "bob", "Pass": PASSWORD }));
    site.converges();
    let bob = site.b.login("bob", PASSWORD);
    resource(&bob, "mega", &rows(1024));
    let (_, details) = searched(&bob, "tag=resource:mega | limit(400; repeat(.))");
    assert!(details["Reason"].to_string().contains("Render-Store-Min-Free-MB"), "{details}");
    assert!(details["Size"].as_u64().is_none_or(|size| size < 240 << 20), "{details}");
    assert_eq!(b.put("/api/users/1/preferences", &json!({ "x": 1 })).status, 200, "other searches continue");
    a.ok("PUT", &format!("/api/users/{uid}/lock"));
    site.fleet.wait("the lock arrives", || bob.get("/api/info/whoami").status == 401);
    assert_eq!(site.b.nobody().get("/api/ready").status, 200);
}
