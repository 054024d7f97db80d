use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::fleet::{Fleet, History};
use crate::web::Web;

/// Everything below `dir` that other users of the host could use if they came there, links and the test's own logs left out.
fn open_to_others(dir: &Path) -> Vec<(PathBuf, u32)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("lists") {
        let path = entry.expect("entry").path();
        let meta = fs::symlink_metadata(&path).expect("is there");
        if meta.is_symlink() || path.extension().is_some_and(|extension| extension == "log") && meta.is_file() {
            continue;
        }
        if meta.mode() & 0o077 != 0 {
            found.push((path.clone(), meta.mode() & 0o777));
        }
        if meta.is_dir() {
            found.extend(open_to_others(&path));
        }
    }
    found
}

#[test]
fn p11_whatever_the_umask_nothing_is_open_to_other_users() {
    let mut fleet = Fleet::new();
    fleet.wrapper = vec!["sh", "-c", "umask 000 && exec \"$@\"", "sh"];
    let at = |name: &str| fleet.dir(name).to_str().expect("text").to_owned();
    let datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    let mut web = Web::start(&fleet, "a", &["--peer-listen", "127.0.0.1:0"]);
    let admin = web.admin(&fleet);
    admin.made("/api/dashboards", &json!({ "Name": "d", "Data": {} }));
    let mut alone = Web::start(&fleet, "alone", &[]);
    alone.admin(&fleet);
    fleet.converges(&["a"]);
    let file = fleet.write_file("in.jsonl", &History::new(2, 5, 10).lines);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("closes");
    fleet.ok("a", &["import", file.to_str().expect("text")]);
    fleet.ok("d", &["backup", "create", &at("backups")]);
    fs::DirBuilder::new().mode(0o700).create(at("scratch")).expect("creates");
    fleet.ok("d", &["backup", "verify", &at("backups"), "--scratch", &at("scratch")]);
    fleet.ok("d", &["debug-bundle", "--output", &at("bundle.tar")]);
    fleet.ok("d", &["compact"]);
    fleet.ok("d", &["cert", "ca", "--out", &at("authority")]);
    fleet.ok("d", &["man", "--out", &at("manual")]);
    web.stop();
    alone.stop();
    datastore.terminate();
    fleet.ok("d", &["restore", &at("backups"), "--replace"]);
    fleet.ok("e", &["restore", &at("backups")]);
    fleet.ok("d", &["verify"]);
    // A certificate is there to be given away.
    let certificate = [(fleet.dir("authority/ca.pem"), 0o644)];
    assert_eq!(open_to_others(fleet.dir("").as_path()), certificate);
    // Directories of an earlier version, or made by hand.
    let wide = |name: &str| fs::set_permissions(fleet.dir(name), fs::Permissions::from_mode(0o777)).expect("opens");
    ["d", "a"].iter().for_each(|name| wide(name));
    let _datastore = fleet.datastore();
    let _web = Web::start(&fleet, "a", &[]);
    assert_eq!(open_to_others(fleet.dir("").as_path()), certificate);
}
