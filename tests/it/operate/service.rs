//! Notifications to the service manager, and the contents of the units.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::has;
use crate::fleet::{Fleet, Process};

/// The service manager's end of the notification socket.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    heard: Vec<String>,
}

impl Manager {
    fn new(fleet: &Fleet) -> Manager {
        let path = fleet.dir("notify.sock");
        let socket = UnixDatagram::bind(&path).expect("binds");
        socket.set_read_timeout(Some(Duration::from_secs(60))).expect("sets");
        Manager { socket, path, heard: Vec::new() }
    }

    fn start(&self, fleet: &Fleet, program: &str, arguments: &[&str]) -> Process {
        let mut command = Command::new(program);
        command.args(arguments).env("NOTIFY_SOCKET", &self.path).env("WATCHDOG_USEC", "400000");
        Process::begin(command, &fleet.dir("service.log"))
    }

    /// Waits for a message that contains this line.
    fn hear(&mut self, line: &str) -> String {
        let started = Instant::now();
        let mut buffer = [0; 4096];
        while started.elapsed() < Duration::from_secs(60) {
            let length = self.socket.recv(&mut buffer).expect("a message");
            let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
            self.heard.push(message.clone());
            if message.lines().any(|found| found == line) {
                return message;
            }
        }
        panic!("not within a minute: {line}; received {:?}", self.heard);
    }
}

fn log(fleet: &Fleet) -> String {
    fleet.log_of("service")
}

#[test]
fn a_datastore_notifies_the_service_manager_and_reloads_its_settings() {
    let fleet = Fleet::new();
    let mut manager = Manager::new(&fleet);
    let config = fleet.write_file("gravwell.conf", "[Global]\nLog-Level=ERROR\n");
    let (config_text, dir) = (config.to_str().expect("path"), fleet.dir("d"));
    let arguments =
        ["--config", config_text, "--data-dir", dir.to_str().expect("path"), "--listen", &fleet.listen.to_string()];
    let process = manager.start(&fleet, env!("CARGO_BIN_EXE_gravwell_datastore"), &arguments);
    let ready = manager.hear("READY=1");
    assert!(ready.contains("STATUS=head 0"), "{ready}");
    for _ in 0..3 {
        manager.hear("WATCHDOG=1");
    }

    // An invalid configuration is rejected, and the service continues.
    std::fs::write(&config, "[Global]\nLog-Level=LOUD\n").expect("writes");
    process.hang_up();
    manager.hear("READY=1");
    fleet.wait("it reports the error", || log(&fleet).contains("line 2, column 1"));
    assert!(log(&fleet).contains("configuration reload failed; keeping the old one"), "{}", log(&fleet));
    std::fs::write(&config, "[Global]\nLog-Level=INFO\nDatastore-Server-Name=store.example.net\n").expect("writes");
    process.hang_up();
    let reloading = manager.hear("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    manager.hear("READY=1");
    fleet.wait("it reports the reload", || log(&fleet).contains("configuration reloaded"));
    manager.hear("WATCHDOG=1");
    process.terminate();
    manager.hear("STOPPING=1");
    assert!(log(&fleet).contains("stopping"), "{}", log(&fleet));
}

#[test]
fn a_webserver_notifies_the_service_manager_and_reloads_its_certificate() {
    let fleet = Fleet::new();
    let mut manager = Manager::new(&fleet);
    let (dir, tls) = (fleet.dir("w"), fleet.dir("tls"));
    let make = |extra: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gravwell-logctl"));
        command.args(["cert", "server", "--name", "localhost", "--json", "--out"]).arg(&tls).args(extra);
        let output = command.output().expect("runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    make(&[]);
    let file = |name: &str| tls.join(name).to_str().expect("path").to_owned();
    let address = super::super::web::free_address();
    let arguments = [
        "--data-dir",
        dir.to_str().expect("path"),
        "--listen",
        &address.to_string(),
        "--no-redirect",
        "--certificate",
        &file("cert.pem"),
        "--key",
        &file("key.pem"),
    ];
    let process = manager.start(&fleet, env!("CARGO_BIN_EXE_gravwell_webserver"), &arguments);
    manager.hear("READY=1");
    manager.hear("WATCHDOG=1");
    make(&["--replace"]);
    process.hang_up();
    manager.hear("RELOADING=1");
    manager.hear("READY=1");
    fleet.wait("it has", || log(&fleet).contains("certificate reloaded"));
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-m", "20", "--cacert", &file("cert.pem")]);
    let output = curl.arg(format!("https://localhost:{}/api/health", address.port())).output().expect("curl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    process.terminate();
    manager.hear("STOPPING=1");
}

fn units() -> Vec<PathBuf> {
    let folder = crate::fleet::root().join("packaging");
    let entries = std::fs::read_dir(folder).expect("lists").map(|entry| entry.expect("entry").path());
    let is_unit = |path: &PathBuf| path.extension().is_some_and(|kind| kind == "service" || kind == "timer");
    let mut units: Vec<PathBuf> = entries.filter(is_unit).collect();
    units.sort();
    units
}

#[test]
fn units_are_valid_and_sandboxed() {
    if !has("systemd-analyze") {
        return;
    }
    let temp = tempfile::tempdir().expect("temp dir");
    let programs = Path::new(env!("CARGO_BIN_EXE_gravwell-logctl")).parent().expect("folder");
    let mut copies = Vec::new();
    for unit in units() {
        // The programs are in the build directory, not in that of the packages.
        let text = std::fs::read_to_string(&unit).expect("reads");
        let text = text.replace("/usr/bin/gravwell", &format!("{}/gravwell", programs.display()));
        let copy = temp.path().join(unit.file_name().expect("name"));
        std::fs::write(&copy, text).expect("writes");
        copies.push(copy);
    }
    assert!(copies.len() >= 3, "{copies:?}");
    let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&copies).output().expect("runs");
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(verified.status.success() && said.trim().is_empty(), "{said}");
    for name in ["gravwell_datastore.service", "gravwell_webserver.service"] {
        let unit = temp.path().join(name);
        let mut command = Command::new("systemd-analyze");
        // The exposure level must be at most 2.0.
        let rated = command.args(["security", "--offline=true", "--threshold=20"]).arg(&unit).output().expect("runs");
        let said = String::from_utf8_lossy(&rated.stdout).into_owned();
        println!("{name}: {}", said.lines().last().unwrap_or_default());
        assert!(rated.status.success(), "{said}");
    }
}

/// The tool accepts every command line in the units.
#[test]
fn units_use_options_of_the_programs() {
    let mut seen = 0;
    for unit in units() {
        let text = std::fs::read_to_string(&unit).expect("reads");
        for line in text.lines().filter_map(|line| line.strip_prefix("ExecStart=/usr/bin/gravwell-logctl ")) {
            // Operators set these variables; required ones get values here.
            let line = line.replace("${BACKUP_PLACE}", "/place").replace("${BALANCER_RELOAD}", "true");
            let line = line.replace("$BACKUP_KEEP", "--keep-last 1");
            let line = line.replace("$BALANCER_OPTIONS", "--format nginx --output /file");
            let words = std::iter::once("gravwell-logctl").chain(line.split_whitespace());
            let parsed = <gravwell_ctl::args::Args as clap::Parser>::try_parse_from(words);
            assert!(
                parsed.is_ok(),
                "{}: {line}: {}",
                unit.display(),
                parsed.err().map(|e| e.to_string()).unwrap_or_default()
            );
            seen += 1;
        }
    }
    assert!(seen >= 4, "{seen}");
}
