//! A datastore and its replicas as processes, driven like an operator drives them.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a program of the caller's making.
    pub fn begin(command: Command, log: &Path) -> Process {
        Process::start(command, log)
    }

    /// As [`Process::begin`], and what it prints goes into the log, too.
    pub fn begin_printing(mut command: Command, log: &Path) -> Process {
        let log = File::create(log).expect("log file");
        command.stdout(log.try_clone().expect("a handle")).stderr(log);
        Process::start_with_output(command)
    }

    fn start(mut command: Command, log: &Path) -> Process {
        let log = File::options().create(true).append(true).open(log).expect("log file");
        command.stdout(Stdio::null()).stderr(log);
        Process::start_with_output(command)
    }

    fn start_with_output(mut command: Command) -> Process {
        let child = command.stdin(Stdio::null()).spawn().expect("starts");
        Process { child }
    }

    /// As by a power cut, as far as a process can tell.
    pub fn kill(mut self) {
        self.child.kill().expect("kills");
        self.child.wait().expect("waits");
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).expect("signals");
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// As by a machine that swaps, or a laptop that is closed.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Goes on after a pause.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// As by the service manager when its settings are to be read again.
    pub fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    /// How it ended, when it has.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().expect("waits")
    }

    /// As by the service manager; returns how long it took.
    pub fn terminate(mut self) -> Duration {
        let started = Instant::now();
        self.signal(Signal::TERM);
        let status = self.child.wait().expect("waits");
        assert!(status.success(), "{status}");
        started.elapsed()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub struct Fleet {
    temp: tempfile::TempDir,
    /// Where the datastore listens.
    pub listen: SocketAddr,
    pub datastore_flags: Vec<String>,
    /// Network namespaces in which processes run, by name; who is not named runs in this one.
    pub hosts: BTreeMap<String, String>,
    /// What programs are started by, in front of their own name.
    pub wrapper: Vec<&'static str>,
    /// Makes the output of services; without it that is a file.
    pub outlet: Option<Box<dyn Fn() -> OwnedFd>>,
}

impl Fleet {
    pub fn new() -> Fleet {
        let listen = SocketAddr::from(([127, 0, 0, 1], own_port()));
        let temp = tempfile::tempdir().expect("temp dir");
        Fleet { temp, listen, datastore_flags: Vec::new(), hosts: BTreeMap::new(), wrapper: Vec::new(), outlet: None }
    }

    /// A program on the host of `name`, with its directory.
    fn program(&self, name: &str, program: &str) -> Command {
        let mut command = match self.hosts.get(name) {
            Some(host) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", host, program]);
                command
            }
            None => match self.wrapper.split_first() {
                Some((first, rest)) => {
                    let mut command = Command::new(first);
                    command.args(rest).arg(program);
                    command
                }
                None => Command::new(program),
            },
        };
        command.arg("--data-dir").arg(self.dir(name));
        command
    }

    fn start(&self, name: &str, mut command: Command) -> Process {
        let Some(outlet) = &self.outlet else {
            return Process::start(command, &self.dir(&format!("{name}.log")));
        };
        command.stdout(outlet()).stderr(outlet());
        Process::start_with_output(command)
    }

    pub fn dir(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// The file with the key of the backups that the datastore has made.
    pub fn backup_key(&self) -> String {
        self.dir("d").join("backup.key").to_str().expect("text").to_owned()
    }

    pub fn log_of(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir(&format!("{name}.log"))).unwrap_or_default()
    }

    /// Starts the datastore without waiting for it.
    pub fn spawn_datastore(&self) -> Process {
        self.spawn_datastore_in("d")
    }

    fn spawn_datastore_in(&self, name: &str) -> Process {
        let mut command = self.program(name, &built("gravwell_datastore"));
        command.args(["--listen", &self.listen.to_string()]).args(&self.datastore_flags);
        self.start(name, command)
    }

    /// Starts the datastore and waits until it answers.
    pub fn datastore(&self) -> Process {
        self.datastore_in("d")
    }

    /// As [`Fleet::datastore`], from another directory.
    pub fn datastore_in(&self, name: &str) -> Process {
        let process = self.spawn_datastore_in(name);
        let socket = self.dir(name).join("ctl.sock");
        self.wait("the datastore answers", || socket.exists() && self.status(name)["running"] == true);
        process
    }

    pub fn replica(&self, name: &str) -> Process {
        self.replica_with(name, &[])
    }

    pub fn replica_with(&self, name: &str, options: &[&str]) -> Process {
        let mut command = self.command(name, &["replica"]);
        command.args(options);
        self.start(name, command)
    }

    /// Starts a webserver over plain HTTP without waiting for it; the first administrator is admin/changeme.
    pub fn spawn_webserver(&self, name: &str, address: SocketAddr, options: &[&str]) -> Process {
        let mut command = self.program(name, &built("gravwell_webserver"));
        command
            .args(["--listen", &address.to_string(), "--insecure-disable-https", "--default-password"])
            .args(options);
        self.start(name, command)
    }

    /// Enrolls and joins, without starting anything.
    pub fn enroll(&self, name: &str, role: &str) {
        let token = self.ok("d", &["enroll", name, "--role", role]);
        self.ok(name, &["join", token.trim()]);
    }

    /// Enrolls, joins and starts a replica, and waits until it is connected.
    pub fn member(&self, name: &str) -> Process {
        self.member_as(name, "webserver")
    }

    pub fn member_as(&self, name: &str, role: &str) -> Process {
        self.enroll(name, role);
        let process = self.replica(name);
        self.wait_connected(name);
        process
    }

    pub fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = self.program(name, &built("gravwell-logctl"));
        command.args(arguments);
        command
    }

    pub fn run(&self, name: &str, arguments: &[&str]) -> Output {
        self.command(name, arguments).output().expect("runs")
    }

    /// Runs a command that must succeed; returns its standard output.
    pub fn ok(&self, name: &str, arguments: &[&str]) -> String {
        let output = self.run(name, arguments);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{name} {arguments:?}: {} {errors}\n{}", output.status, self.log_of(name));
        String::from_utf8(output.stdout).expect("text")
    }

    /// What a command that must succeed prints as JSON.
    #[track_caller]
    pub fn json(&self, name: &str, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(name, &[arguments, &["--json"]].concat())).expect("JSON")
    }

    /// What a command says that must be refused.
    #[track_caller]
    pub fn refused(&self, name: &str, arguments: &[&str]) -> String {
        let output = self.run(name, arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    pub fn status(&self, name: &str) -> Value {
        let output = self.run(name, &["status", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    pub fn export(&self, name: &str) -> String {
        self.ok(name, &["export"])
    }

    /// The log as JSON.
    pub fn tail(&self) -> Vec<Value> {
        let text = self.ok("d", &["tail", "--from", "1", "--json"]);
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    #[track_caller]
    pub fn wait(&self, what: &str, condition: impl Fn() -> bool) {
        let started = Instant::now();
        while !condition() {
            let logs: Vec<String> = ["d", "a", "b", "c"].iter().map(|name| self.log_of(name)).collect();
            assert!(started.elapsed() < PATIENCE, "waited too long until {what}\n{}", logs.join("\n---\n"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    pub fn wait_connected(&self, name: &str) {
        self.wait(&format!("{name} is connected"), || self.status(name)["connected"] == true);
    }

    /// Waits until every replica stands at the datastore's head with nothing in its outbox, and compares digests and
    /// exports.
    #[track_caller]
    pub fn converges(&self, replicas: &[&str]) -> String {
        for replica in replicas {
            self.wait(&format!("{replica} has converged"), || {
                let (head, status) = (self.status("d"), self.status(replica));
                let is_level = status["connected"] == true && status["seq"] == head["head"];
                status["outbox"] == 0 && is_level && status["healthy"] == true
            });
        }
        self.wait("the datastore's index is level", || {
            let status = self.status("d");
            status["seq"] == status["head"]
        });
        // Webservers write now and then by themselves: what is compared must be of one moment.
        let started = Instant::now();
        loop {
            let before = self.status("d");
            let export = self.export("d");
            let found: Vec<(Value, String)> =
                replicas.iter().map(|replica| (self.status(replica), self.export(replica))).collect();
            let is_quiet = self.status("d")["seq"] == before["seq"];
            let are_level = found.iter().all(|(status, _)| status["seq"] == before["seq"]);
            if (is_quiet && are_level) || started.elapsed() > PATIENCE {
                for ((status, text), replica) in found.iter().zip(replicas) {
                    assert_eq!(status["digest"], before["digest"], "{replica}");
                    assert_eq!(status["healthy"], true, "{status}");
                    assert_eq!(*text, export, "{replica}");
                }
                return export;
            }
        }
    }

    pub fn write_file(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.dir(name);
        std::fs::write(&path, contents).expect("writes");
        path
    }
}

/// One of our programs: as it was built with the tests, or from the directory that `GRAVWELL_BIN_DIR` names.
fn built(name: &str) -> String {
    if let Ok(dir) = std::env::var("GRAVWELL_BIN_DIR") {
        return format!("{dir}/{name}");
    }
    let program = match name {
        "gravwell_datastore" => env!("CARGO_BIN_EXE_gravwell_datastore"),
        "gravwell_webserver" => env!("CARGO_BIN_EXE_gravwell_webserver"),
        _ => env!("CARGO_BIN_EXE_gravwell-logctl"),
    };
    program.to_owned()
}

/// A port that is this process's until it ends, for programs that are started again at the same address.
///
/// It is below those that the kernel hands out by itself, and a lock keeps other tests away from it: between the choice and
/// the start of a program nothing else can take it.
pub fn own_port() -> u16 {
    static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    let locks = std::env::temp_dir().join("gravwell-test-ports");
    std::fs::create_dir_all(&locks).expect("creates");
    let start = std::process::id().wrapping_mul(31);
    for step in 0..COUNT {
        let port = u16::try_from(FIRST + start.wrapping_add(step) % COUNT).expect("in range");
        let lock = File::options().create(true).append(true).open(locks.join(port.to_string())).expect("opens");
        let any = (Ipv4Addr::UNSPECIFIED, port);
        if lock.try_lock().is_ok() && TcpListener::bind(any).is_ok() && UdpSocket::bind(any).is_ok() {
            HELD.lock().expect("no panic").push(lock);
            return port;
        }
    }
    panic!("no port is left");
}

/// One of a few attempts, each of which says how long it took, takes less than `bound`: what the host needs for other work at
/// one moment is no failure of the programs.
#[track_caller]
pub fn takes_less_than(bound: Duration, what: &str, mut attempt: impl FnMut() -> Duration) {
    let mut took = Vec::new();
    while took.len() < 5 {
        took.push(attempt());
        if took.last().is_some_and(|took| *took < bound) {
            return;
        }
    }
    panic!("{what} takes {took:?}, which should be less than {bound:?}");
}

/// A number from the environment, or `default`.
pub fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Prints how to play a failure again, when there is one.
pub struct Replay(pub String);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the same choices again: {}", self.0);
        }
    }
}

/// A small generator of repeatable numbers (xorshift64*, Vigna 2016).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }
}

/// Transactions that create, change and delete, and the state that they add up to.
#[derive(Default)]
pub struct History {
    pub lines: String,
    pub live: BTreeMap<(String, String), String>,
    pub deletes: usize,
}

impl History {
    pub fn new(seed: u64, transactions: u64, keys: u64) -> History {
        let mut dice = Dice::new(seed);
        let mut history = History::default();
        for number in 0..transactions {
            let mut ops = Vec::new();
            for _ in 0..=dice.below(3) {
                let collection = ["dashboards", "resources", "users"][dice.below(3) as usize].to_owned();
                let key = format!("k{:05}", dice.below(keys));
                let name = (collection.clone(), key.clone());
                if history.live.contains_key(&name) && dice.below(10) < 3 {
                    history.live.remove(&name);
                    history.deletes += 1;
                    ops.push(format!(r#"{{"delete":{{"collection":"{collection}","key":"{key}"}}}}"#));
                } else {
                    let value = format!(r#"{{"n":{number},"text":"{}"}}"#, "x".repeat(dice.below(80) as usize));
                    ops.push(format!(r#"{{"put":{{"collection":"{collection}","key":"{key}","value":{value}}}}}"#));
                    history.live.insert(name, value);
                }
            }
            history.lines += &format!("{{\"ops\":[{}]}}\n", ops.join(","));
        }
        history
    }

    /// The final state as `export` prints it.
    pub fn export(&self) -> String {
        let line = |((collection, key), value): (&(String, String), &String)| {
            format!("{{\"collection\":\"{collection}\",\"key\":\"{key}\",\"value\":{value}}}\n")
        };
        self.live.iter().map(line).collect()
    }
}

/// Whether a program of the host that a test needs must be there, as continuous integration says; otherwise the test is
/// skipped visibly without it.
pub fn tools_are_required() -> bool {
    std::env::var("GRAVWELL_TOOLS").is_ok_and(|wanted| wanted == "required")
}
