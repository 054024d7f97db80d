use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::fleet::{Fleet, History};
use crate::web::Web;

/// Returns everything below `dir` that other users could access if they could reach it, except links and logs of
/// the test.
fn open_to_others(dir: &Path) -> Vec<(PathBuf, u32)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("lists") {
        let path = entry.expect("entry").path();
        // Running processes may remove or rename a file after it was listed.
        let meta = match fs::symlink_metadata(&path) {
            Err(gone) if gone.kind() == ErrorKind::NotFound => continue,
            found => found.expect("is there"),
        };
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
fn p11_files_are_private_regardless_of_the_umask() {
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
    fleet.ok("e", &["restore", &at("backups"), "--key-file", &fleet.backup_key()]);
    fleet.ok("d", &["verify"]);
    let key = fleet.ok("d", &["authority", "recovery-key"]).trim().to_owned();
    fleet.ok("d", &["lb", "--format", "traefik", "--output", &at("balancer.yml")]);
    let (from, escrow) = (at("a"), at("a/identity/escrow"));
    fleet.ok("f", &["recover", "--from", &from, "--recovery-key", &key]);
    fs::remove_dir_all(fleet.dir("f/trust")).expect("removes");
    fleet.ok("f", &["authority", "restore", &escrow, "--recovery-key", &key]);
    fleet.ok("d", &["repair", "--from", &from]);
    // CA certificates and balancer configurations are public.
    let given = [(fleet.dir("authority/ca.pem"), 0o644), (fleet.dir("balancer.yml"), 0o644)];
    let open = || {
        let mut found = open_to_others(fleet.dir("").as_path());
        found.sort();
        found
    };
    assert_eq!(open(), given);
    // Directories of an earlier version, or created manually.
    ["d", "a", "alone"].iter().for_each(|name| widen(&fleet.dir(name)));
    for name in ["d", "a", "alone"] {
        let found = String::from_utf8_lossy(&fleet.run(name, &["doctor"]).stdout).into_owned();
        assert!(
            found.contains("is accessible to other users") && found.contains("entries are accessible to other users"),
            "{found}"
        );
    }
    let _datastore = fleet.datastore();
    let _web = Web::start(&fleet, "a", &[]);
    let _alone = Web::start(&fleet, "alone", &[]);
    assert_eq!(open(), given);
    for name in ["d", "a", "alone"] {
        assert!(fleet.log_of(name).contains("were open to other users"), "{name}: {}", fleet.log_of(name));
    }
}

fn widen(path: &Path) {
    let meta = fs::symlink_metadata(path).expect("is there");
    if meta.is_symlink() {
        return;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(meta.mode() | 0o077)).expect("opens");
    if meta.is_dir() {
        fs::read_dir(path).expect("lists").for_each(|entry| widen(&entry.expect("entry").path()));
    }
}

/// If the permissions were loosened, as by a careless `chmod`, the socket still checks the user of the client.
#[test]
fn p11_the_local_socket_serves_only_its_own_user_and_root() {
    const NOBODY: &str = "65534";
    let fleet = Fleet::new();
    let root = fleet.dir("").metadata().expect("is there").uid() == 0;
    let can_be_another =
        root && Command::new("setpriv").arg("--version").output().is_ok_and(|ran| ran.status.success());
    if !can_be_another {
        assert!(!crate::fleet::tools_are_required(), "this needs root and setpriv");
        eprintln!("SKIPPED: this needs root and setpriv");
        return;
    }
    let _datastore = fleet.datastore();
    widen(&fleet.dir(""));
    // One byte is enough; the content of the request does not matter.
    let script = "$SIG{PIPE} = 'IGNORE'; $s = IO::Socket::UNIX->new($ARGV[0]) or die $!; print $s 'x'; $s->flush; exit(sysread($s, $b, 1) ? 1 : 0)";
    let socket = fleet.dir("d/ctl.sock");
    let called = Command::new("setpriv")
        .args(["--reuid", NOBODY, "--clear-groups", "perl", "-MIO::Socket::UNIX", "-e", script])
        .arg(socket)
        .output()
        .expect("runs");
    assert!(called.status.success() || String::from_utf8_lossy(&called.stderr).contains("reset"), "{called:?}");
    fleet.wait("the call is refused", || fleet.log_of("d").contains("refused a connection of another user"));
    fleet.ok("d", &["status"]);
}
