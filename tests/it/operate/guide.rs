//! The operator's guide, command by command.
//!
//! Every block of `docs/operating.md` that begins with "```sh HOST" is run, in order, on that host. A host is a directory
//! that contains the guide's paths; its name and ports replace those of the guide. Blocks marked `sh packages` are run by
//! `packaging/test-deb.sh`. Small scripts replace programs that would change the machine: `systemctl` starts the programs
//! named in a unit of `packaging/`, and `chgrp` and `chown` check their arguments.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::has;
use crate::web::free_address;

const HOSTS: [&str; 4] = ["datastore", "web1", "web2", "balancer"];

/// Replacement for systemctl on one host: ROOT, BIN and UNITS come from the environment.
const SYSTEMCTL: &str = r#"#!/bin/bash
set -euo pipefail
verb="$1"; shift
now=; units=()
for word; do case "$word" in --now) now=yes ;; *) units+=("${word%.service}") ;; esac; done
pid_of() { cat "$ROOT/run/$1.pid" 2>/dev/null || true; }
runs() { local pid; pid="$(pid_of "$1")"; [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; }
wait_for() { for _ in $(seq 600); do "$@" >/dev/null 2>&1 && return 0; sleep 0.1; done; echo "not within a minute: $*" >&2; exit 1; }
here() { sed -e "s#/opt/gravwell/datastore#$ROOT/var/lib/gravwell-datastore#g; s#/opt/gravwell/webserver#$ROOT/var/lib/gravwell-webserver#g" \
  -e "s#\([ =]\)/\(opt\|var\|etc\)/#\1$ROOT/\2/#g; s#/usr/bin/#$BIN/#g"; }
# As systemd does: ${NAME} is one word, $NAME is as many as it holds.
words_of() {
  words=()
  local word part
  for word in $1; do
    case "$word" in
      '${'*'}') word="${word#??}"; word="${word%\}}"; words+=("${!word}") ;;
      '$'*) word="${word#?}"; for part in ${!word}; do words+=("$part"); done ;;
      *) words+=("$word") ;;
    esac
  done
}
start() {
  runs "$1" && return 0
  if [ "$1" = nginx ]; then
    setsid nginx >>"$ROOT/run/nginx.log" 2>&1 </dev/null &
    wait_for test -s "$ROOT/run/nginx.pid"
    return 0
  fi
  local file="$UNITS/$1.service" line name value
  while IFS='=' read -r name value; do export "$name=$value"; done < <(
    sed -n 's/^Environment=//p' "$file" | tr -d '"' | here
    for env in $(sed -n 's/^EnvironmentFile=-\?//p' "$file"); do cat "$ROOT$env" 2>/dev/null || true; done
  )
  if grep -q '^Type=oneshot' "$file"; then
    while read -r line; do words_of "$line"; "${words[@]}" </dev/null; done < <(sed -n 's/^ExecStart=//p' "$file" | here)
    return 0
  fi
  words_of "$(sed -n 's/^ExecStart=//p' "$file" | here)"
  setsid "${words[@]}" >>"$ROOT/run/$1.log" 2>&1 </dev/null &
  echo $! >"$ROOT/run/$1.pid"
  case "$1" in
    gravwell_datastore) wait_for test -S "$ROOT/var/lib/gravwell-datastore/ctl.sock" ;;
    gravwell_webserver) wait_for test -S "$ROOT/var/lib/gravwell-webserver/ctl.sock" ;;
    gravwell_balancer) wait_for test -s "$ROOT/run/nginx.pid" ;;
  esac
  runs "$1"
}
stop() { local pid; pid="$(pid_of "$1")"; [ -n "$pid" ] || return 0; kill "$pid"; wait_for not_there "$pid"; }
not_there() { ! kill -0 "$1" 2>/dev/null; }
for unit in "${units[@]}"; do
  # Nobody waits here for a timer; that it is in order is tested elsewhere.
  case "$unit" in *.timer) [ -f "$UNITS/$unit" ]; continue ;; esac
  [ "$unit" = nginx ] || [ -f "$UNITS/$unit.service" ] || { echo "no unit $unit" >&2; exit 1; }
  case "$verb" in
    enable) grep -q '^WantedBy=' "$UNITS/$unit.service"; [ -z "$now" ] || start "$unit" ;;
    start) start "$unit" ;;
    stop) stop "$unit" ;;
    restart) stop "$unit"; start "$unit" ;;
    reload) runs "$unit"; kill -HUP "$(pid_of "$unit")" ;;
    reload-or-restart) if runs "$unit"; then kill -HUP "$(pid_of "$unit")"; else start "$unit"; fi ;;
    status) runs "$unit" ;;
    *) echo "systemctl $verb is not known here" >&2; exit 1 ;;
  esac
done
"#;

/// The user exists only where the packages are installed, so this script only checks the arguments.
const OWNER: &str = "#!/bin/bash\n[ \"$1\" != -R ] || shift\n[ \"${1%:gravwell}\" = gravwell ] && [ -e \"$2\" ]\n";

struct Host {
    root: PathBuf,
    address: SocketAddr,
}

struct Stage {
    /// Working directory of all blocks, like that of an operator who takes it from host to host.
    work: PathBuf,
    shims: PathBuf,
    hosts: BTreeMap<&'static str, Host>,
    metrics: SocketAddr,
    _temp: tempfile::TempDir,
}

impl Drop for Stage {
    fn drop(&mut self) {
        for host in self.hosts.values() {
            let pids = std::fs::read_dir(host.root.join("run")).into_iter().flatten().flatten();
            for file in pids.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|kind| kind == "pid"))
            {
                let pid = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
                if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                }
            }
        }
    }
}

fn script(path: &Path, text: &str) {
    std::fs::write(path, text).expect("writes");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("sets");
}

impl Stage {
    fn new() -> Stage {
        let temp = tempfile::tempdir().expect("temp dir");
        let (work, shims) = (temp.path().join("work"), temp.path().join("shims"));
        for dir in [&work, &shims] {
            std::fs::create_dir(dir).expect("makes");
        }
        script(&shims.join("systemctl"), SYSTEMCTL);
        for name in ["chgrp", "chown"] {
            script(&shims.join(name), OWNER);
        }
        let mut stage = Stage { work, shims, hosts: BTreeMap::new(), metrics: free_address(), _temp: temp };
        for name in HOSTS {
            let root = stage._temp.path().join(name);
            stage.hosts.insert(name, Host { root: root.clone(), address: free_address() });
            stage.furnish(name, &root);
        }
        stage
    }

    /// Creates the files that the packages and the machine would provide.
    fn furnish(&self, name: &str, root: &Path) {
        let etc = root.join("opt/gravwell/etc");
        let below = ["var/lib", "etc/default", "etc/nginx/conf.d", "etc/haproxy", "etc/traefik/dynamic", "run"];
        for dir in below.map(|dir| root.join(dir)).iter().chain([&etc.join("gravwell.conf.d")]) {
            std::fs::create_dir_all(dir).expect("makes");
        }
        for (kind, place) in [("datastore", "datastore"), ("web1", "webserver"), ("web2", "webserver")] {
            let data = root.join(format!("var/lib/gravwell-{place}"));
            if kind == name {
                std::fs::create_dir(&data).expect("makes");
                std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o700)).expect("sets");
                std::os::unix::fs::symlink(&data, root.join("opt/gravwell").join(place)).expect("links");
            }
        }
        let packaging = crate::fleet::root().join("packaging");
        std::fs::copy(packaging.join("gravwell.conf"), etc.join("gravwell.conf")).expect("copies");
        // The only settings that differ from the guide: addresses and ports for this test.
        let address = self.hosts[name].address;
        let (ip, port) = (address.ip(), address.port());
        let room = format!(
            "[Global]\nDatastore-Listen-Address={ip}\nDatastore-Port={port}\nWeb-Listen-Address={ip}\nWeb-Port={port}\n\
             Disable-HTTP-Redirector=true\n"
        );
        std::fs::write(etc.join("gravwell.conf.d/00-test.conf"), room).expect("writes");
        let root = root.display();
        let user = if rustix::process::geteuid().is_root() { "user root;\n" } else { "" };
        let nginx = format!(
            "daemon off;\npid {root}/run/nginx.pid;\nerror_log stderr;\n{user}events {{}}\nhttp {{\n    access_log off;\n    \
             client_body_temp_path {root}/run/b;\n    proxy_temp_path {root}/run/p;\n    fastcgi_temp_path {root}/run/f;\n    \
             uwsgi_temp_path {root}/run/u;\n    scgi_temp_path {root}/run/s;\n    include {root}/etc/nginx/conf.d/*.conf;\n}}\n"
        );
        std::fs::write(format!("{root}/etc/nginx/nginx.conf"), nginx).expect("writes");
        let nginx = format!("#!/bin/sh\nexec /usr/sbin/nginx -p {root} -c {root}/etc/nginx/nginx.conf \"$@\"\n");
        if name == "balancer" {
            script(&self.shims.join("nginx"), &nginx);
        }
    }

    /// Returns a block with the guide's names, ports and paths replaced by those of this test.
    fn translated(&self, host: &str, block: &str) -> String {
        let address = |name: &str| self.hosts[name].address.to_string();
        let root = self.hosts[host].root.display().to_string();
        let port = |name: &str| self.hosts[name].address.port().to_string();
        let mut text = block.to_owned();
        let names = [("web1", "web1.example.net"), ("web2", "web2.example.net"), ("balancer", "www.example.net")];
        for (host, name) in names {
            text = text.replace(&format!("https://{name}/"), &format!("https://{}/", address(host)));
            text = text.replace(&format!("{name}:443"), &address(host)).replace(name, "127.0.0.1");
        }
        text = text.replace("datastore.example.net", "127.0.0.1").replace("192.0.2.10", "127.0.0.1");
        text = text.replace("127.0.0.1:9407", &self.metrics.to_string());
        // No balancer needs the drain time here.
        text = text.replace("Drain-Seconds=5", "Drain-Seconds=1");
        // Each webserver needs its own metrics port, and the balancer another one.
        text = text.replace("Metrics-Address=9408", &format!("Metrics-Address={}", free_address().port()));
        if host == "balancer" {
            // All addresses are loopback addresses.
            text = text.replace("--format", "--allow-local-backends --format");
            text = text.replace("--certificate", &format!("--listen 127.0.0.1:{} --certificate", port("balancer")));
        }
        for path in ["/opt/", "/var/", "/etc/"] {
            for before in [" ", "=", "\n", "'", "\""] {
                text = text.replace(&format!("{before}{path}"), &format!("{before}{root}{path}"));
            }
        }
        text
    }

    fn run(&self, host: &str, block: &str) {
        let script = self.translated(host, block);
        let bin = Path::new(env!("CARGO_BIN_EXE_gravwell-logctl")).parent().expect("folder");
        let path = format!("{}:{}:{}", self.shims.display(), bin.display(), std::env::var("PATH").expect("PATH"));
        let root = &self.hosts[host].root;
        let output = Command::new("timeout")
            .args(["240", "bash", "-euo", "pipefail", "-c", &script])
            .current_dir(&self.work)
            .env("PATH", path)
            .env("ROOT", root)
            .env("BIN", bin)
            .env("UNITS", crate::fleet::root().join("packaging"))
            // The default directories of data and settings are those of the host.
            .env("GRAVWELL_CONFIG", root.join("opt/gravwell/etc/gravwell.conf"))
            .env("GRAVWELL_DATA_DIR", root.join("var/lib/gravwell-datastore"))
            .output()
            .expect("runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        println!("--- {host}\n{block}\n>>> {said}");
        assert!(output.status.success(), "on {host}: {}\n{script}\n{said}\n{}", output.status, self.logs(host));
    }

    fn logs(&self, host: &str) -> String {
        let entries = std::fs::read_dir(self.hosts[host].root.join("run")).into_iter().flatten().flatten();
        let logs = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|kind| kind == "log"));
        logs.map(|path| std::fs::read_to_string(path).unwrap_or_default()).collect::<Vec<_>>().join("\n")
    }
}

/// Returns the blocks of the guide with their hosts.
fn blocks(guide: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in guide.lines() {
        match &mut open {
            Some(_) if line == "```" => found.extend(open.take()),
            Some((_, block)) => {
                block.push_str(line);
                block.push('\n');
            }
            None => open = line.strip_prefix("```").map(|kind| (kind.to_owned(), String::new())),
        }
    }
    assert!(open.is_none(), "a block is not closed");
    found
}

#[test]
fn the_commands_of_the_guide_work_as_documented() {
    if !has("nginx") || !has("haproxy") || !has("curl") {
        return;
    }
    let guide = crate::fleet::root().join("docs/operating.md");
    let guide = std::fs::read_to_string(guide).expect("reads");
    let stage = Stage::new();
    let mut run = 0;
    for (kind, block) in blocks(&guide) {
        match kind.strip_prefix("sh ") {
            Some("packages") => {}
            Some(host) if HOSTS.contains(&host) => {
                stage.run(host, &block);
                run += 1;
            }
            _ => {
                assert!(
                    ["yaml", "text"].contains(&kind.as_str()),
                    "state on which host to run a block: {kind}\n{block}"
                )
            }
        }
    }
    assert!(run >= 20, "{run} blocks");
}
