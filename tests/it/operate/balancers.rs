//! Load balancers from Debian in front of two webservers, configured by `lb`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::{Value, json};

use super::has;
use crate::files::copy_dir;
use crate::fleet::{Fleet, Process};
use crate::web::client::Client;
use crate::web::free_address;
use crate::web::{ADMIN_PASSWORD, first_login};

const COOKIE: &str = "gravwell_sticky";

/// A datastore and two HTTPS webservers with certificates of a CA that the test creates.
struct Site {
    fleet: Fleet,
    _datastore: Process,
    webs: Vec<(&'static str, SocketAddr, Option<Process>)>,
}

impl Site {
    fn new() -> Site {
        let fleet = Fleet::new();
        let datastore = fleet.datastore();
        let mut site = Site { fleet, _datastore: datastore, webs: Vec::new() };
        let ca = site.path("ca");
        site.fleet.ok("d", &["cert", "ca", "--out", &ca]);
        for name in ["a", "b"] {
            site.fleet.enroll(name, "webserver");
            let out = site.path(&format!("{name}-tls"));
            site.fleet
                .ok("d", &["cert", "server", "--name", "127.0.0.1", "--member", name, "--ca", &ca, "--out", &out]);
            site.webs.push((name, free_address(), None));
            site.start(name);
        }
        for name in ["a", "b"] {
            site.fleet.wait_connected(name);
        }
        site
    }

    fn path(&self, name: &str) -> String {
        self.fleet.dir(name).to_str().expect("path").to_owned()
    }

    fn start(&mut self, name: &str) {
        let at = self.webs.iter().position(|(found, ..)| *found == name).expect("known");
        let (name, address, _) = self.webs[at];
        let (listen, tls) = (address.to_string(), self.fleet.dir(&format!("{name}-tls")));
        let mut command = Command::new(env!("CARGO_BIN_EXE_gravwell_webserver"));
        command.arg("--data-dir").arg(self.fleet.dir(name)).args(["--listen", &listen, "--external-addr", &listen]);
        command.args(["--no-redirect", "--default-password", "--certificate"]).arg(tls.join("cert.pem"));
        command.arg("--key").arg(tls.join("key.pem"));
        self.webs[at].2 = Some(Process::begin(command, &self.fleet.dir(&format!("{name}.log"))));
    }

    fn kill(&mut self, name: &str) {
        let found = self.webs.iter_mut().find(|(found, ..)| *found == name).expect("known");
        found.2.take().expect("runs").kill();
    }

    /// Starts `lb --watch` for a balancer, and waits until the configuration lists both webservers.
    fn watch(&self, format: &str, listen: SocketAddr, exec: &str) -> (Process, PathBuf) {
        let file = self.fleet.dir(&format!("{format}.conf"));
        let file_text = file.to_str().expect("path");
        let (ca, listen) = (self.path("ca/ca.pem"), listen.to_string());
        let arguments = ["lb", "--format", format, "--output", file_text, "--watch", "--interval", "1", "--exec", exec];
        let more = ["--backend-ca", &ca, "--member-names", "--listen", &listen, "--allow-local-backends"];
        let mut command = self.fleet.command("d", &arguments);
        command.args(more);
        let process = Process::begin(command, &self.fleet.dir("lb.log"));
        let addresses: Vec<String> = self.webs.iter().map(|(_, address, _)| address.to_string()).collect();
        self.fleet.wait("the configuration lists both", || {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            addresses.iter().all(|address| text.contains(address.as_str()))
        });
        (process, file)
    }
}

fn who(client: &Client) -> String {
    let answer = client.get("/api/settings");
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["Webserver"].as_str().expect("name").to_owned()
}

/// Returns the cookie that the balancer sets in its first response to a browser.
fn sticky(client: &Client) -> String {
    let answer = client.get("/api/version");
    let cookies = answer.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie"));
    let found = cookies.map(|(_, value)| value.clone()).find(|value| value.starts_with(COOKIE));
    let cookie = found.unwrap_or_else(|| panic!("no cookie in {:?}", answer.headers));
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"), "{cookie}");
    cookie.split(';').next().expect("value").to_owned()
}

/// Waits until new browsers have reached both webservers.
fn wait_for_both(site: &Site, client: &Client) {
    let seen = std::cell::RefCell::new(std::collections::BTreeSet::new());
    site.fleet.wait("new browsers meet both webservers", || {
        if let Ok((200, body)) = client.try_get("/api/settings") {
            let body: Value = serde_json::from_str(&body).expect("JSON");
            seen.borrow_mut().insert(body["Webserver"].to_string());
        }
        seen.borrow().len() == 2
    });
}

/// Checks that apply to every running balancer.
fn journey(site: &mut Site, address: SocketAddr, file: &std::path::Path) {
    let nobody = Client::new(format!("http://{address}"));
    site.fleet.wait("the balancer answers", || nobody.try_get("/api/ready").is_ok_and(|(status, _)| status == 200));
    let credentials = json!({ "User": "admin", "Pass": ADMIN_PASSWORD });
    // All requests of this login must reach one webserver, because the other one learns of the session with a delay.
    first_login(&nobody.with("Cookie", &sticky(&nobody)), &site.fleet);
    site.fleet.converges(&["a", "b"]);
    let login = nobody.post("/api/login", &credentials);
    let token = login.json()["JWT"].as_str().expect("JWT").to_owned();
    let client = nobody.with("Authorization", &format!("Bearer {token}"));
    site.fleet.converges(&["a", "b"]);
    wait_for_both(site, &client);

    // A browser stays with its first webserver.
    let browser = client.with("Cookie", &sticky(&client));
    let home = who(&browser);
    for _ in 0..20 {
        assert_eq!(who(&browser), home);
    }

    // Its webserver is killed during work: only the request in flight may fail, and the login remains valid.
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let worker = std::thread::spawn({
        let (browser, stop, done) = (browser.clone(), Arc::clone(&stop), Arc::clone(&done));
        move || {
            let mut failures = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                match browser.try_get("/api/settings") {
                    Ok((200, _)) => {}
                    other => failures.push(format!("{other:?}")),
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
            failures
        }
    });
    let past = |count: u64| {
        let goal = done.load(Ordering::Relaxed) + count;
        let done = Arc::clone(&done);
        move || done.load(Ordering::Relaxed) >= goal
    };
    site.fleet.wait("the browser works", past(20));
    site.kill(&home);
    site.fleet.wait("it keeps working", past(100));
    stop.store(true, Ordering::Relaxed);
    let failures = worker.join().expect("ends");
    println!("{} requests, failed: {failures:?}", done.load(Ordering::Relaxed));
    assert!(failures.len() <= 1, "{failures:?}");
    assert_ne!(who(&browser), home);
    let group = json!({ "Name": "made after the failure" });
    assert_eq!(browser.post("/api/groups", &group).status, 200);

    // After a restart it is used again.
    site.start(&home);
    wait_for_both(site, &client);

    // A webserver that presents the certificate of another one, whose key was stolen, receives no requests.
    let other = if home == "a" { "b" } else { "a" };
    site.kill(other);
    let stolen = site.fleet.dir(&format!("{home}-tls"));
    let own = site.fleet.dir(&format!("{other}-tls"));
    std::fs::rename(&own, site.fleet.dir("own-tls")).expect("renames");
    copy_dir(&stolen, &own);
    site.start(other);
    let impostor = site.webs.iter().find(|(found, ..)| *found == other).expect("known").1;
    site.fleet.wait("the impostor listens", || std::net::TcpStream::connect(impostor).is_ok());
    site.fleet.wait_connected(other);
    let mut served = 0;
    for _ in 0..30 {
        let answer = client.try_get("/api/settings");
        served += u32::from(matches!(answer, Ok((200, _))));
        assert!(!matches!(&answer, Ok((200, body)) if body.contains(&format!("\"{other}\""))), "{answer:?}");
    }
    assert!(served > 0, "the other one serves");
    site.kill(other);
    std::fs::remove_dir_all(&own).expect("removes");
    std::fs::rename(site.fleet.dir("own-tls"), &own).expect("renames");
    site.start(other);
    wait_for_both(site, &client);

    // A revoked webserver is no longer listed.
    let listed = |name: &str| {
        let address = site.webs.iter().find(|(found, ..)| *found == name).expect("known").1.to_string();
        std::fs::read_to_string(file).expect("reads").contains(&address)
    };
    assert!(listed("a") && listed("b"));
    site.fleet.ok("d", &["revoke", "b"]);
    site.fleet.wait("the list is shorter", || !listed("b"));
    assert!(listed("a"));
    site.fleet.wait("all clients are served by the other", || {
        (0..10).all(|_| client.try_get("/api/settings").is_ok_and(|(_, body)| body.contains("\"a\"")))
    });
}

#[test]
fn nginx_in_front_of_two_webservers() {
    if !has("nginx") {
        return;
    }
    let mut site = Site::new();
    let (address, dir) = (free_address(), site.path("nginx"));
    std::fs::create_dir(&dir).expect("makes");
    let main = format!(
        "daemon off;\npid {dir}/pid;\nerror_log stderr;\n{}events {{}}\nhttp {{\n    access_log off;\n    \
         client_body_temp_path {dir}/body;\n    proxy_temp_path {dir}/proxy;\n    fastcgi_temp_path {dir}/f;\n    \
         uwsgi_temp_path {dir}/u;\n    scgi_temp_path {dir}/s;\n    include {}/nginx.conf;\n}}\n",
        if rustix::process::geteuid().is_root() { "user root;\n" } else { "" },
        site.fleet.dir("").display(),
    );
    let main = site.fleet.write_file("nginx-main.conf", &main);
    let main_text = main.to_str().expect("path");
    let reload = format!("test ! -s {dir}/pid || nginx -p {dir} -c {main_text} -s reload");
    let (_lb, file) = site.watch("nginx", address, &reload);
    let mut command = Command::new("nginx");
    command.args(["-p", &dir, "-c", main_text]);
    let nginx = Process::begin(command, &site.fleet.dir("c.log"));
    journey(&mut site, address, &file);
    nginx.terminate();
}

#[test]
fn haproxy_in_front_of_two_webservers() {
    if !has("haproxy") {
        return;
    }
    let mut site = Site::new();
    let (address, pid) = (free_address(), site.path("haproxy.pid"));
    let file = site.path("haproxy.conf");
    // The master reloads its configuration on SIGUSR2. It writes its PID file once it handles signals.
    let reload = format!("haproxy -c -q -f {file} && {{ test ! -s {pid} || kill -USR2 $(cat {pid}); }}");
    let (_lb, file) = site.watch("haproxy", address, &reload);
    let mut command = Command::new("haproxy");
    command.args(["-W", "-db", "-p", &pid, "-f", file.to_str().expect("path")]);
    let haproxy = Process::begin(command, &site.fleet.dir("c.log"));
    journey(&mut site, address, &file);
    drop(haproxy);
}

#[test]
fn traefik_and_prometheus_query_the_datastore() {
    let mut fleet = Fleet::new();
    let monitor = free_address();
    fleet.datastore_flags = vec!["--metrics".into(), monitor.to_string()];
    let datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    let web = fleet.spawn_webserver("a", free_address(), &["--external-addr", "web1.example.net:8443"]);
    fleet.wait_connected("a");
    let client = Client::new(format!("http://{monitor}"));
    let url = |client: &Client| {
        let document = client.ok("GET", "/traefik?backend=https-unverified");
        document["http"]["services"]["gravwell"]["loadBalancer"]["servers"][0]["url"].clone()
    };
    fleet.wait("it is listed", || url(&client) == "https://web1.example.net:8443");
    assert_eq!(client.ok("GET", "/prometheus?metrics-port=9999")[0]["targets"][0], "web1.example.net:9999");
    fleet.wait("the head is among the metrics", || client.get("/metrics").text().contains("gravwell_head_seq"));
    let wrong = client.get("/traefik?backend-ca=a%20b");
    assert_eq!(wrong.status, 400, "{}", wrong.text());
    assert_eq!(client.get("/traefik?bakend=http").status, 400);

    // Neither an offline webserver nor a restart of the datastore removes the webserver from the list.
    web.terminate();
    assert_eq!(url(&client), "https://web1.example.net:8443");
    datastore.terminate();
    let _datastore = fleet.datastore();
    fleet.wait("it answers again", || client.try_get("/metrics").is_ok());
    assert_eq!(url(&client), "https://web1.example.net:8443");
    fleet.ok("d", &["revoke", "a"]);
    assert_eq!(client.get("/traefik").json(), json!({}));
}

#[test]
fn readiness_requires_caught_up_and_not_stopping() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    fleet.enroll("a", "webserver");
    let config = fleet.write_file(
        "gravwell.conf",
        "[Global]\nWebserver-Ready-Max-Cut-Off-Seconds=1\nWebserver-Drain-Seconds=2\nDatastore-Update-Interval=1\n",
    );
    let address = free_address();
    let web = fleet.spawn_webserver("a", address, &["--config", config.to_str().expect("path")]);
    let client = Client::new(format!("http://{address}"));
    let ready = || client.try_get("/api/ready").map_or(0, |(status, _)| status);
    fleet.wait("it is ready", || ready() == 200);
    datastore.terminate();
    // At first the reason may be that it has just started.
    fleet.wait("it is disconnected for too long", || {
        let answer = client.get("/api/ready").json();
        answer["Ready"] == false
            && answer["Reason"].as_str().is_some_and(|reason| reason.contains("disconnected from its datastore"))
    });
    assert_eq!(ready(), 503);
    assert_eq!(client.get("/api/health").status, 200, "it lives");
    let _datastore = fleet.datastore();
    fleet.wait("it is ready again", || ready() == 200);
    // On shutdown it reports that it is not ready, and continues to serve for a while.
    let seen = std::thread::spawn({
        let client = client.clone();
        move || {
            let mut seen = Vec::new();
            while let (Ok((ready, _)), Ok((version, _))) =
                (client.try_get("/api/ready"), client.try_get("/api/version"))
            {
                seen.push((ready, version));
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            seen
        }
    });
    web.terminate();
    let seen = seen.join().expect("ends");
    assert!(seen.contains(&(503, 200)), "{seen:?}");
}
