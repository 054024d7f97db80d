//! Processes on separate hosts: one network namespace each, with dedicated links between them. Needs root and `ip`;
//! otherwise the test is skipped with a message.

use std::process::{Command, Output};

use crate::fleet::{Fleet, History};

/// Namespaces of a datastore and two replicas, `d`, `a` and `b`; deleted on drop.
struct Hosts {
    prefix: String,
}

fn ip(arguments: &str) -> std::io::Result<Output> {
    Command::new("ip").args(arguments.split_whitespace()).output()
}

impl Hosts {
    /// Creates a link from `d` to `a` (10.213.1.0/24) and one to `b` (10.213.2.0/24).
    fn new() -> Result<Hosts, String> {
        let hosts = Hosts { prefix: format!("gravwell-{}", std::process::id()) };
        for name in ["d", "a", "b"] {
            run(&format!("netns add {}", hosts.of(name)))?;
            hosts.on(name, "link set lo up")?;
        }
        for (name, net) in [("a", 1), ("b", 2)] {
            let (d, other) = (hosts.of("d"), hosts.of(name));
            run(&format!("link add to-{name} netns {d} type veth peer name to-d netns {other}"))?;
            hosts.on("d", &format!("addr add 10.213.{net}.1/24 dev to-{name}"))?;
            hosts.on("d", &format!("link set to-{name} up"))?;
            hosts.on(name, &format!("addr add 10.213.{net}.2/24 dev to-d"))?;
            hosts.on(name, "link set to-d up")?;
        }
        Ok(hosts)
    }

    fn of(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// Runs `ip` on a host.
    fn on(&self, name: &str, arguments: &str) -> Result<(), String> {
        run(&format!("-n {} {arguments}", self.of(name)))
    }

    /// Makes both links of `d` slow and lossy; returns whether this machine supports it.
    fn spoil(&self) -> bool {
        ["to-a", "to-b"].iter().all(|cable| {
            let spoil =
                format!("netns exec {} tc qdisc add dev {cable} root netem delay 15ms 10ms loss 5%", self.of("d"));
            run(&spoil).is_ok()
        })
    }
}

fn run(arguments: &str) -> Result<(), String> {
    let output = ip(arguments).map_err(|error| format!("ip: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("`ip {arguments}`: {said}")) }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in ["d", "a", "b"] {
            let _ = ip(&format!("netns del {}", self.of(name)));
        }
    }
}

#[test]
fn p07_hosts_that_lose_links_and_change_addresses_lose_no_data() {
    let hosts = match Hosts::new() {
        Ok(hosts) => hosts,
        Err(why) => return eprintln!("SKIPPED: no network namespaces here ({why})"),
    };
    let mut fleet = Fleet::new();
    fleet.hosts = ["d", "a", "b"].map(|name| (name.to_owned(), hosts.of(name))).into();
    fleet.listen = "0.0.0.0:9405".parse().expect("an address");
    let datastore = fleet.datastore();
    let mut members = Vec::new();
    for (name, address) in [("a", "10.213.1.1:9405"), ("b", "10.213.2.1:9405")] {
        let token = fleet.ok("d", &["enroll", name, "--address", address]);
        fleet.ok(name, &["join", token.trim()]);
        members.push(fleet.replica(name));
        fleet.wait_connected(name);
    }
    if !hosts.spoil() {
        eprintln!("no netem here: links have no delay or loss while they are up");
    }
    let files: Vec<_> = [("a", 1), ("b", 2)]
        .map(|(name, seed)| (name, fleet.write_file(&format!("{name}.jsonl"), &History::new(seed, 1500, 100).lines)))
        .into();
    let imports: Vec<_> = files
        .iter()
        .map(|(name, file)| fleet.command(name, &["import", file.to_str().unwrap()]).spawn().expect("starts"))
        .collect();
    hosts.on("a", "link set to-d down").expect("pulled");
    fleet.ok("a", &["put", "c", "cut-off", "--value", "1", "--no-wait"]);
    datastore.kill();
    let _datastore = fleet.datastore();
    fleet.wait("b continues", || fleet.status("d")["head"].as_u64() > Some(100));
    hosts.on("a", "link set to-d up").expect("back");
    // The other host changes its address.
    hosts.on("b", "addr add 10.213.2.7/24 dev to-d").expect("added");
    hosts.on("b", "addr del 10.213.2.2/24 dev to-d").expect("removed");
    // The kernel may remove the new address together with the old one.
    let _ = hosts.on("b", "addr add 10.213.2.7/24 dev to-d");
    for mut import in imports {
        assert!(import.wait().expect("ends").success());
    }
    assert!(fleet.converges(&["a", "b"]).contains("cut-off"));
    assert_eq!(fleet.status("d")["head"], 3001, "each transaction exactly once");
    ["d", "a", "b"].iter().for_each(|name| drop(fleet.ok(name, &["verify"])));
}
