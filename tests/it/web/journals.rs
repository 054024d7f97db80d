//! Journals of hosts as indexers: the real systemd journal gateway, started by the test over generated journals.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use super::searches::{direct, ended, launch, text};
use super::{Web, free_address};
use crate::fleet::{Fleet, Process};

/// Timestamp of the first entry, in microseconds.
const BEGIN: u64 = 1_700_000_000_000_000;

/// Returns the path of a program of Debian's package systemd-journal-remote. Without it the test is skipped, or fails if
/// tools are required.
fn program(name: &str) -> Option<PathBuf> {
    let found = ["/usr/lib/systemd", "/lib/systemd"].map(|dir| Path::new(dir).join(name));
    let found = found.into_iter().find(|path| path.exists());
    if found.is_none() {
        assert!(!crate::fleet::tools_are_required(), "{name} is missing; install systemd-journal-remote");
        eprintln!("SKIPPED: {name} is missing; install systemd-journal-remote");
    }
    found
}

/// Creates a journal with an entry for each number, one second apart.
fn journal(dir: &Path, host: &str, numbers: impl Iterator<Item = u64>) -> Option<()> {
    let program = program("systemd-journal-remote")?;
    std::fs::create_dir_all(dir).expect("a directory");
    let entry = |n: u64| {
        format!(
            "__REALTIME_TIMESTAMP={}\n__MONOTONIC_TIMESTAMP={}\n_BOOT_ID=3d5bbd4e0f8b4a6f9a5d4d6f4b4f4c3e\n\
             _HOSTNAME={host}\nPRIORITY={}\nMESSAGE=message {n} of {host}\n\n",
            BEGIN + n * 1_000_000,
            1000 + n * 1_000_000,
            n % 8
        )
    };
    let export = dir.join("export.txt");
    std::fs::write(&export, numbers.map(entry).collect::<String>()).expect("writes");
    let made = Command::new(program).arg("-o").arg(dir.join("x.journal")).arg(&export).output().expect("runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::remove_file(export).expect("removes");
    Some(())
}

struct Gateway {
    address: SocketAddr,
    process: Option<Process>,
}

impl Gateway {
    fn start(fleet: &Fleet, name: &str, dir: &Path, options: &[String]) -> Option<Gateway> {
        let program = program("systemd-journal-gatewayd")?;
        let address = free_address();
        let mut command = Command::new("systemd-socket-activate");
        command.arg("-l").arg(address.to_string()).arg(program).arg("-D").arg(dir).args(options);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let process = Some(Process::begin(command, &fleet.dir(&format!("{name}.log"))));
        Some(Gateway { address, process })
    }
}

/// Creates a certificate for localhost and its CA, as files.
fn certificate(fleet: &Fleet) -> (PathBuf, PathBuf, PathBuf) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let key = KeyPair::generate().expect("a key");
    let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = authority.self_signed(&key).expect("signs");
    let issuer = Issuer::new(authority, key);
    let own_key = KeyPair::generate().expect("a key");
    let own = CertificateParams::new(vec!["localhost".into()]).expect("parameters");
    let own = own.signed_by(&own_key, &issuer).expect("signs");
    (
        fleet.write_file("authority.pem", &certificate.pem()),
        fleet.write_file("gateway.pem", &own.pem()),
        fleet.write_file("gateway.key", &own_key.serialize_pem()),
    )
}

#[test]
fn journals_are_merged_by_time_and_failures_are_reported() {
    let fleet = Fleet::new();
    let (one, two) = (fleet.dir("j1"), fleet.dir("j2"));
    let made = journal(&one, "h1", (0..100).filter(|n| n % 2 == 0))
        .and_then(|()| journal(&two, "h2", (0..100).filter(|n| n % 2 == 1)));
    if made.is_none() {
        return;
    }
    let (authority, certificate, key) = certificate(&fleet);
    let tls = [format!("--cert={}", certificate.display()), format!("--key={}", key.display())];
    let mut h1 = Gateway::start(&fleet, "h1", &one, &[]).expect("there");
    let mut h2 = Gateway::start(&fleet, "h2", &two, &tls).expect("there");
    let config = format!(
        "[Global]\nRemote-Indexers=net:10.0.0.1:9404\nRemote-Indexers=journal:http://{}\n\
         Remote-Indexers=journal:https://localhost:{}\nIndexer-CA-File={}\nIndexer-Timeout=5\n",
        h1.address,
        h2.address.port(),
        authority.display()
    );
    let config = fleet.write_file("gravwell.conf", &config);
    let web = Web::start(&fleet, "a", &["--config", config.to_str().expect("path")]);
    let admin = web.admin(&fleet);
    assert_eq!(admin.ok("GET", "/api/tags"), json!(["audit", "journal"]));
    let range = "since=2023-11-14 until=2023-11-15";
    // A journal is only for administrators and users to whom they grant it.
    let uid = admin.made("/api/users", &json!({ "User": "bob", "Pass": "open sesame now" }));
    let bob = web.login("bob", "open sesame now");
    let refused = direct(&bob, &format!("tag=journal {range}"), "text");
    assert!(refused.status == 400 && refused.text().contains("was not granted to you"), "{}", refused.text());
    assert_eq!(bob.ok("GET", "/api/tags"), json!([]));
    admin.changed(&format!("/api/users/{uid}/tags"), &json!({ "Grants": ["jour*"] }));
    assert_eq!(bob.ok("GET", "/api/tags"), json!(["journal"]));
    let granted = direct(&bob, &format!("tag=journal {range} | count"), "text");
    assert!([200, 503].contains(&granted.status), "{}", granted.text());
    // The gateways start on demand, so the first search may be too early.
    fleet.wait("both answer", || text(&admin, &format!("tag=journal {range} | count")) == "{\"count\":100}\n");
    let all = text(&admin, &format!("tag=journal {range} | .MESSAGE"));
    let wanted: String = (0..100).map(|n| format!("message {n} of h{}\n", n % 2 + 1)).collect();
    assert_eq!(all, wanted);
    let stretch = "since=2023-11-14T22:13:30Z until=2023-11-14T22:13:33Z";
    assert_eq!(
        text(&admin, &format!("tag=journal {stretch} | .MESSAGE")),
        "message 10 of h1\nmessage 11 of h2\nmessage 12 of h1\n"
    );
    assert_eq!(text(&admin, &format!("tag=journal {range} \"message 7 of\" | ._HOSTNAME")), "h2\n");
    assert_eq!(text(&admin, "tag=journal since=2024-01-01 until=2024-01-02"), "");

    // One gateway is gone: the rows of the other are returned, and the missing one is named.
    h2.process.take().expect("runs").kill();
    let details = ended(&admin, &launch(&admin, &format!("tag=journal {range}")));
    assert_eq!((&details["Progress"], &details["ItemCount"]), (&json!("done"), &json!(50)), "{details}");
    let warnings = details["Warnings"].to_string();
    assert!(
        warnings.contains("partial results: journal:https://localhost") && !warnings.contains("http://127"),
        "{warnings}"
    );
    h1.process.take().expect("runs").kill();
    let details = ended(&admin, &launch(&admin, &format!("tag=journal {range}")));
    assert_eq!((&details["Progress"], &details["ItemCount"]), (&json!("failed"), &json!(0)), "{details}");
    let refused = direct(&admin, &format!("tag=journal {range}"), "text");
    assert!(refused.status == 503 && refused.text().contains("cannot be reached"), "{}", refused.text());
    assert!(
        Duration::from_millis(
            details["Duration"].as_str().expect("text").trim_end_matches("ms").parse().expect("a number")
        ) < Duration::from_secs(30)
    );
}
