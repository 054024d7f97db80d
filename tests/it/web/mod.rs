//! Webservers as seen by their users and clients.

mod accounts;
mod blobs;
mod bounds;
mod browser;
pub mod client;
mod conflicts;
mod disconnected;
mod disk_quotas;
mod driver;
mod early_disconnects;
mod filters;
mod half_restored;
mod invalid;
mod journals;
mod later_changes;
mod lost_state;
mod migration;
mod names;
mod numbers;
mod owned;
mod owners;
mod permissions;
mod reapplied;
mod restart;
mod reverted_datastore;
mod revoked_rights;
mod search_clients;
mod search_peers;
mod searches;
mod second_factors;
mod security;
mod sharing;
mod streams;
mod transport;

use std::net::SocketAddr;

use client::Client;
use serde_json::json;

use crate::fleet::{Fleet, Process, own_port};

/// Returns an address reserved for this test; see [`crate::fleet::own_port`].
pub fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], own_port()))
}

/// A webserver with its process and address.
pub struct Web {
    pub name: &'static str,
    address: SocketAddr,
    process: Option<Process>,
}

impl Web {
    /// Starts a webserver that has joined the fleet.
    pub fn start(fleet: &Fleet, name: &'static str, options: &[&str]) -> Web {
        let mut web = Web { name, address: free_address(), process: None };
        web.restart(fleet, options);
        web
    }

    pub fn restart(&mut self, fleet: &Fleet, options: &[&str]) {
        self.process = Some(fleet.spawn_webserver(self.name, self.address, options));
        let client = self.nobody();
        fleet.wait(&format!("{} answers", self.name), || client.answers());
    }

    pub fn stop(&mut self) {
        self.process.take().expect("runs").terminate();
    }

    pub fn kill(&mut self) {
        self.process.take().expect("runs").kill();
    }

    /// Stops the process for a while.
    pub fn pause(&self) {
        self.process.as_ref().expect("runs").pause();
    }

    /// Lets a paused process go on.
    pub fn resume(&self) {
        self.process.as_ref().expect("runs").resume();
    }

    /// Sends SIGHUP, which reloads the configuration.
    pub fn hang_up(&self) {
        self.process.as_ref().expect("runs").hang_up();
    }

    /// Returns the process ID.
    pub fn id(&self) -> u32 {
        self.process.as_ref().expect("runs").id()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn nobody(&self) -> Client {
        Client::new(format!("http://{}", self.address))
    }

    /// Returns the metrics; the listener was started with port 0 and logs its address.
    pub fn metrics(&self, fleet: &Fleet) -> Option<String> {
        let log = fleet.log_of(self.name);
        let address =
            log.lines().rev().find_map(|line| line.split_once("serving metrics address=")).map(|(_, rest)| rest)?;
        let client = Client::new(format!("http://{}", address.split_whitespace().next()?));
        client.try_get("/metrics").ok().map(|(_, text)| text)
    }

    #[track_caller]
    pub fn login(&self, user: &str, password: &str) -> Client {
        let client = self.nobody();
        let answer = client.post("/api/login", &serde_json::json!({ "User": user, "Pass": password }));
        assert_eq!(answer.status, 200, "{}", answer.text());
        client.with("Authorization", &format!("Bearer {}", answer.json()["JWT"].as_str().expect("JWT")))
    }

    /// Logs in as the first administrator, once it exists, with the password that the first login must set. If another
    /// webserver of the fleet handled that login, this one has to receive the change first.
    #[track_caller]
    pub fn admin(&self, fleet: &Fleet) -> Client {
        first_login(&self.nobody(), fleet)
    }
}

/// New password of the first administrator.
pub const ADMIN_PASSWORD: &str = "a stable horse";

/// Logs in as the first administrator at a webserver, see [`Web::admin`].
#[track_caller]
pub fn first_login(nobody: &Client, fleet: &Fleet) -> Client {
    let as_bearer = |token: &str| nobody.with("Authorization", &format!("Bearer {token}"));
    let login = |password: &str| nobody.post("/api/login", &json!({ "User": "admin", "Pass": password }));
    fleet.wait("the first administrator exists", || login("").status != 503);
    let position = nobody.get("/api/test").header("gravwell-position").expect("a position").to_owned();
    let marker = fleet.dir(&format!("first-session-{}", position.split('.').next().expect("a log")));
    if let Ok(token) = std::fs::read_to_string(&marker) {
        let known = as_bearer(&token);
        fleet.wait("the first administrator's password is known", || known.get("/api/groups").status == 200);
    } else {
        let first = login("changeme");
        let token = first.json()["JWT"].as_str().expect("JWT").to_owned();
        let change = json!({ "OrigPass": "changeme", "NewPass": ADMIN_PASSWORD });
        as_bearer(&token).changed("/api/users/1/pwd", &change);
        let mut options = std::fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.write(true).create(true).truncate(true).open(&marker).expect("opens");
        std::io::Write::write_all(&mut file, token.as_bytes()).expect("writes");
    }
    let answer = login(ADMIN_PASSWORD);
    assert_eq!(answer.status, 200, "{}", answer.text());
    as_bearer(answer.json()["JWT"].as_str().expect("JWT"))
}

/// A datastore and two webservers, with an administrator logged in at both.
struct Site {
    fleet: Fleet,
    datastore: Option<Process>,
    a: Web,
    b: Web,
    /// Options of the first webserver.
    options: Vec<String>,
}

impl Site {
    fn new() -> Site {
        Site::start(Fleet::new(), &[])
    }

    /// Starts a prepared fleet; the second webserver gets the options `at_b`.
    fn start(fleet: Fleet, at_b: &[&str]) -> Site {
        Site::start_with(fleet, Vec::new(), at_b)
    }

    /// Starts a site whose webservers have these settings.
    fn with(settings: &str) -> Site {
        let fleet = Fleet::new();
        let config = fleet.write_file("gravwell.conf", &format!("[Global]\n{settings}"));
        let options = vec!["--config".to_owned(), config.to_str().expect("path").to_owned()];
        let at_b = options.clone();
        let at_b: Vec<&str> = at_b.iter().map(String::as_str).collect();
        Site::start_with(fleet, options, &at_b)
    }

    fn start_with(fleet: Fleet, options: Vec<String>, at_b: &[&str]) -> Site {
        let datastore = Some(fleet.datastore());
        fleet.enroll("a", "webserver");
        fleet.enroll("b", "webserver");
        let at_a: Vec<&str> = options.iter().map(String::as_str).collect();
        let (a, b) = (Web::start(&fleet, "a", &at_a), Web::start(&fleet, "b", at_b));
        Site { fleet, datastore, a, b, options }
    }

    fn admins(&self) -> (Client, Client) {
        (self.a.admin(&self.fleet), self.b.admin(&self.fleet))
    }

    fn stop_datastore(&mut self) {
        self.datastore.take().expect("runs").terminate();
        for name in ["a", "b"] {
            self.fleet.wait("the webservers notice the disconnect", || self.fleet.status(name)["connected"] == false);
        }
    }

    fn start_datastore(&mut self) {
        self.datastore = Some(self.fleet.datastore());
    }

    /// Waits until both have everything.
    fn converges(&self) -> String {
        self.fleet.converges(&["a", "b"])
    }
}
