//! Blobs of resources: which data is sent, how much, and the effects of failures.

mod damage;
mod disaster;
mod distribution;
mod garbage_collection;
mod interrupted;
mod large;
mod priorities;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::fleet::{Fleet, Process, Rng};
use crate::web::client::Client;
use crate::web::{Web, free_address};

/// A datastore and webservers with metrics endpoints.
struct Farm {
    fleet: Fleet,
    datastore: Option<Process>,
    metrics: Vec<(&'static str, SocketAddr)>,
    options: Vec<(&'static str, Vec<String>)>,
}

impl Farm {
    /// Starts the datastore and enrolls webservers, each with configuration lines.
    fn new(datastore: &str, webservers: &[(&'static str, &str)]) -> Farm {
        let mut fleet = Fleet::new();
        let mut metrics = vec![("d", free_address())];
        let config = fleet.write_file("d.conf", &format!("[Global]\n{datastore}\n"));
        fleet.datastore_flags =
            vec!["--config".into(), config.display().to_string(), "--metrics".into(), metrics[0].1.to_string()];
        let process = fleet.datastore();
        let mut options = Vec::new();
        for (name, lines) in webservers {
            fleet.enroll(name, "webserver");
            let address = free_address();
            metrics.push((name, address));
            let config = fleet.write_file(&format!("{name}.conf"), &format!("[Global]\n{lines}\n"));
            let flags = [
                "--config",
                config.to_str().expect("path"),
                "--metrics",
                &address.to_string(),
                "--peer-listen",
                "127.0.0.1:0",
            ];
            options.push((*name, flags.map(str::to_owned).to_vec()));
        }
        Farm { fleet, datastore: Some(process), metrics, options }
    }

    fn flags(&self, name: &str) -> Vec<&str> {
        let (_, flags) = self.options.iter().find(|(known, _)| *known == name).expect("enrolled");
        flags.iter().map(String::as_str).collect()
    }

    fn start(&self, name: &'static str) -> Web {
        Web::start(&self.fleet, name, &self.flags(name))
    }

    fn restart(&self, web: &mut Web) {
        let flags = self.flags(web.name);
        web.restart(&self.fleet, &flags);
    }

    fn stop_datastore(&mut self, members: &[&str]) {
        self.datastore.take().expect("runs").terminate();
        for name in members {
            self.fleet.wait("the disconnect is noticed", || self.fleet.status(name)["connected"] == false);
        }
    }

    fn kill_datastore(&mut self) {
        self.datastore.take().expect("runs").kill();
    }

    fn start_datastore(&mut self) {
        self.datastore = Some(self.fleet.datastore());
    }

    /// Returns the sum of a metric over its labels; 0 if the process does not respond.
    fn metric(&self, name: &str, metric: &str) -> u64 {
        let (_, address) = self.metrics.iter().find(|(known, _)| *known == name).expect("a process");
        let Ok(mut stream) = TcpStream::connect(address) else { return 0 };
        let _ = stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n");
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        let of = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            let bare = name.split('{').next().unwrap_or_default();
            (bare == metric).then(|| value.parse::<f64>().unwrap_or_default())
        };
        text.lines().filter_map(of).sum::<f64>() as u64
    }

    fn received(&self, name: &str) -> u64 {
        self.metric(name, "gravwell_chunk_bytes_received_total")
    }

    fn blobs(&self, name: &str, arguments: &[&str]) -> (i32, Vec<Value>) {
        let mut all = vec!["blobs"];
        all.extend(arguments);
        all.push("--json");
        let output = self.fleet.run(name, &all);
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        let values = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        (output.status.code().expect("a code"), values)
    }

    /// Waits until a member has all referenced chunks.
    #[track_caller]
    fn complete(&self, name: &str) {
        self.fleet.wait(&format!("{name} has everything"), || {
            let (code, infos) = self.blobs(name, &["list"]);
            code == 0 && !infos.is_empty() && infos.iter().all(|info| info["missing"] == 0)
        });
    }

    /// Returns the pack files.
    fn packs(&self, name: &str) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.fleet.dir(name).join("chunks")).expect("lists");
        let paths = files.map(|file| file.expect("a file").path());
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "chunks")).collect()
    }

    /// Overwrites a part of every pack file, starting at `from` percent.
    fn damage(&self, name: &str, from: u64, bytes: usize) {
        use std::os::unix::fs::FileExt;
        for path in self.packs(name) {
            let file = std::fs::File::options().write(true).open(&path).expect("opens");
            let length = file.metadata().expect("metadata").len();
            let at = length * from / 100;
            let bytes = bytes.min(usize::try_from(length - at).expect("small"));
            file.write_all_at(&vec![0x5a; bytes], at).expect("writes");
        }
    }
}

/// A resource on a webserver.
struct Resource {
    path: String,
}

impl Resource {
    #[track_caller]
    fn new(client: &Client, name: &str) -> Resource {
        let made = client.made("/api/resources", &json!({ "ResourceName": name }));
        Resource { path: format!("/api/resources/{}", made["GUID"].as_str().expect("GUID")) }
    }

    fn raw(&self) -> String {
        format!("{}/raw", self.path)
    }

    #[track_caller]
    fn store(&self, client: &Client, contents: &[u8]) {
        let stored = client.upload("PUT", &self.raw(), "file", contents);
        assert_eq!(stored.status, 200, "{}", stored.text());
    }

    #[track_caller]
    fn holds(&self, client: &Client, contents: &[u8]) {
        let answer = client.get(&self.raw());
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.body == contents, "wrong contents: {} bytes, expected {}", answer.body.len(), contents.len());
    }
}

/// Returns bytes that neither repeat nor compress.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut dice = Rng::new(seed);
    let mut all = Vec::with_capacity(bytes + 4);
    while all.len() < bytes {
        all.extend_from_slice(&dice.below(1 << 31).to_le_bytes()[..3]);
    }
    all.truncate(bytes);
    all
}

/// Returns a table of about `bytes` bytes.
fn table(bytes: usize) -> Vec<String> {
    let mut dice = Rng::new(4);
    let (mut rows, mut length) = (Vec::new(), 0);
    while length < bytes {
        let number = rows.len();
        let (a, b) = (dice.below(256), dice.below(1 << 30));
        let row = format!(
            "{number},10.{}.{}.{a},host-{b:x}.example.com,owner{},{}\n",
            number / 250 % 250,
            number % 250,
            b % 977,
            b * 7
        );
        length += row.len();
        rows.push(row);
    }
    rows
}

/// Changes every hundredth row, at random positions.
fn change(rows: &mut [String]) {
    let mut dice = Rng::new(9);
    for _ in 0..rows.len() / 100 {
        let at = usize::try_from(dice.below(rows.len() as u64)).expect("small");
        rows[at] = format!("{at},192.168.{}.{},changed,{}\n", at % 250, at % 249, dice.below(1 << 20));
    }
}
