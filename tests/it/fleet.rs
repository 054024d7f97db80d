//! Runs a datastore and its replicas as processes, operated like in production.

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

/// Timeout of all waits.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Process {
    child: Child,
}

impl Process {
    /// Starts the given command.
    pub fn begin(command: Command, log: &Path) -> Process {
        Process::start(command, log)
    }

    /// Like [`Process::begin`]; standard output also goes into the log.
    pub fn start_printing(mut command: Command, log: &Path) -> Process {
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

    /// Kills the process; for a process this is equivalent to a power failure.
    pub fn kill(mut self) {
        self.child.kill().expect("kills");
        self.child.wait().expect("waits");
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).expect("signals");
    }

    /// Returns the process ID.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Stops the process, like a swapping host or a closed laptop.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Resumes after a pause.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Sends SIGHUP, as the service manager does to reload the configuration.
    pub fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    /// Returns the exit status if the process has exited.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().expect("waits")
    }

    /// Sends SIGTERM, as the service manager does; returns how long the shutdown took.
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
    /// Address of the datastore.
    pub listen: SocketAddr,
    pub datastore_flags: Vec<String>,
    /// Network namespaces of processes, by name; others run in that of the test.
    pub hosts: BTreeMap<String, String>,
    /// Command that starts programs, placed before their own name.
    pub wrapper: Vec<&'static str>,
    /// Creates the output of services; by default it is a file.
    pub outlet: Option<Box<dyn Fn() -> OwnedFd>>,
}

impl Fleet {
    pub fn new() -> Fleet {
        let listen = SocketAddr::from(([127, 0, 0, 1], own_port()));
        let temp = tempfile::tempdir().expect("temp dir");
        Fleet { temp, listen, datastore_flags: Vec::new(), hosts: BTreeMap::new(), wrapper: Vec::new(), outlet: None }
    }

    /// Returns the command for a program on the host of `name`, with its directory.
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

    /// Returns the path of the datastore's backup key.
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

    /// Starts the datastore and waits until it responds.
    pub fn datastore(&self) -> Process {
        self.datastore_in("d")
    }

    /// Like [`Fleet::datastore`], with another directory.
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

    /// Starts a webserver with plain HTTP without waiting for it; the first administrator is admin/changeme.
    pub fn spawn_webserver(&self, name: &str, address: SocketAddr, options: &[&str]) -> Process {
        let mut command = self.program(name, &built("gravwell_webserver"));
        command
            .args(["--listen", &address.to_string(), "--insecure-disable-https", "--default-password"])
            .args(options);
        self.start(name, command)
    }

    /// Enrolls and joins a member without starting a process.
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

    /// Runs a command that must succeed with `--json`; returns its output.
    #[track_caller]
    pub fn json(&self, name: &str, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(name, &[arguments, &["--json"]].concat())).expect("JSON")
    }

    /// Runs a command that must fail with exit code 1; returns its standard error.
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

    /// Returns the log as JSON.
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

    /// Waits until every replica is at the datastore's head with an empty outbox, and compares digests and exports.
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
        // Webservers occasionally write on their own, so all compared states must be from the same position.
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

/// Returns the root of the repository. Tests run in the folder of their package, which is another one.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the root")
}

/// Returns the path of a program of this package, built with the tests or in the directory `GRAVWELL_BIN_DIR`.
fn built(name: &str) -> String {
    if let Ok(dir) = std::env::var("GRAVWELL_BIN_DIR") {
        return root().join(dir).join(name).display().to_string();
    }
    let program = match name {
        "gravwell_datastore" => env!("CARGO_BIN_EXE_gravwell_datastore"),
        "gravwell_webserver" => env!("CARGO_BIN_EXE_gravwell_webserver"),
        _ => env!("CARGO_BIN_EXE_gravwell-logctl"),
    };
    program.to_owned()
}

/// Returns a port that is reserved for this process until it exits, for programs that restart at the same address.
///
/// The port is below the range that the kernel assigns automatically, and a lock keeps other tests from using it. So no
/// other process can take it before the program starts.
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

/// Checks that one of a few attempts, each of which returns its duration, takes less than `bound`. A temporarily busy
/// host does not fail the test.
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

/// Returns a number from the environment, or `default`.
pub fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Prints how to repeat a failed run.
pub struct Replay(pub String);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the same choices again: {}", self.0);
        }
    }
}

/// Small repeatable random number generator (xorshift64*, Vigna 2016).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }
}

/// Transactions that create, change and delete objects, and the resulting state.
#[derive(Default)]
pub struct History {
    pub lines: String,
    pub live: BTreeMap<(String, String), String>,
    pub deletes: usize,
}

impl History {
    pub fn new(seed: u64, transactions: u64, keys: u64) -> History {
        let mut dice = Rng::new(seed);
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

    /// Returns the final state in the format of `export`.
    pub fn export(&self) -> String {
        let line = |((collection, key), value): (&(String, String), &String)| {
            format!("{{\"collection\":\"{collection}\",\"key\":\"{key}\",\"value\":{value}}}\n")
        };
        self.live.iter().map(line).collect()
    }
}

/// Returns whether host programs that a test needs are required, as in continuous integration. Otherwise a test without
/// them is skipped with a message.
pub fn tools_are_required() -> bool {
    std::env::var("GRAVWELL_TOOLS").is_ok_and(|wanted| wanted == "required")
}
