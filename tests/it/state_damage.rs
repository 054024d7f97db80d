//! Corruption at rest of everything that can be rebuilt: the datastore's index, a replica's state, and the file that
//! names it. Whatever happens to these files, a process that starts with them serves correct data or reports its needs.
//!
//! `GRAVWELL_DAMAGES` sets the number of runs; `GRAVWELL_SEED` repeats them, `GRAVWELL_DAMAGE` one of them.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gravwell_model::Entry;

use crate::files::{self, copy_dir};
use crate::fleet::{Fleet, Process, Replay, Rng, from_env};
use crate::load::Collector;
use crate::model::{Model, wishes_of};

/// Maximum number of starts until a process whose storage engine aborts has repaired itself.
const STARTS_MAX: u32 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Damage {
    FlippedBits,
    CutOff,
    ZeroedSector,
    Garbage,
    Removed,
    OlderFile,
    OthersFile,
    WholeRemoved,
    WholeOlder,
    WholeOthers,
}

/// Weight of each kind of corruption, in percent.
const WEIGHTS: [(Damage, u64); 10] = [
    (Damage::FlippedBits, 22),
    (Damage::CutOff, 12),
    (Damage::ZeroedSector, 12),
    (Damage::Garbage, 6),
    (Damage::Removed, 10),
    (Damage::OlderFile, 16),
    (Damage::OthersFile, 10),
    (Damage::WholeRemoved, 4),
    (Damage::WholeOlder, 4),
    (Damage::WholeOthers, 4),
];

fn files_in(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in fs::read_dir(dir).expect("lists").map(|entry| entry.expect("entry").path()) {
        if path.is_dir() {
            found.extend(files_in(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Returns the state directory within a process's directory.
fn state_of(dir: &Path) -> PathBuf {
    let named = fs::read_to_string(dir.join("current")).ok();
    named.map_or_else(|| dir.join("state"), |line| dir.join(line.split(' ').next().expect("a name")))
}

/// A stopped fleet with its current and an earlier copy, and the whole log.
struct Rest {
    fleet: Fleet,
    log: Vec<Entry>,
    exports: HashMap<u64, String>,
}

impl Rest {
    /// Runs a fleet until its states have tables and journals, and copies it twice.
    fn new() -> Rest {
        let mut fleet = Fleet::new();
        fleet.datastore_flags = vec!["--segment-mb".into(), "4".into()];
        let mut log = Vec::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("starts");
        let mut collector = Collector::new(fleet.dir("d"));
        for (round, suffix) in [(0, ".old"), (1, ".now")] {
            let datastore = fleet.datastore();
            if round == 0 {
                fleet.enroll("a", "webserver");
                fleet.enroll("b", "webserver");
            }
            let replicas = (fleet.replica("a"), fleet.replica("b"));
            let file = fleet.write_file("in.jsonl", &large_history(round));
            fleet.ok("d", &["import", file.to_str().unwrap()]);
            fleet.converges(&["a", "b"]);
            assert!(runtime.block_on(collector.collect(Duration::from_secs(30))));
            if round == 1 {
                // Also a snapshot, so that one state was loaded instead of built from entries.
                fleet.ok("d", &["compact", "--history-ops", "50"]);
            }
            replicas.0.terminate();
            replicas.1.kill();
            datastore.kill();
            for name in ["d", "a", "b"] {
                copy_dir(&fleet.dir(name), &fleet.dir(&format!("{name}{suffix}")));
            }
        }
        log.append(&mut collector.log);
        Rest { fleet, log, exports: HashMap::new() }
    }

    /// Restores the directories of datastore and replica.
    fn restore(&self) {
        for name in ["d", "a"] {
            fs::remove_dir_all(self.fleet.dir(name)).expect("removes");
            copy_dir(&self.fleet.dir(&format!("{name}.now")), &self.fleet.dir(name));
        }
    }

    /// Returns the expected export at a sequence.
    fn export_at(&mut self, seq: u64) -> &str {
        let log = &self.log[..usize::try_from(seq).expect("fits")];
        self.exports.entry(seq).or_insert_with(|| Model::replay(log, &wishes_of(log)).export())
    }

    fn damage(&self, victim: &str, dice: &mut Rng) -> (Damage, String) {
        let dir = self.fleet.dir(victim);
        let state = state_of(&dir);
        let others = state_of(&self.fleet.dir(if victim == "d" { "a.now" } else { "b.now" }));
        let old = state_of(&self.fleet.dir(&format!("{victim}.old")));
        let mut at = dice.below(WEIGHTS.iter().map(|(_, weight)| weight).sum());
        let chosen = WEIGHTS.iter().find(|(_, weight)| at.checked_sub(*weight).map(|rest| at = rest).is_none());
        let damage = chosen.map_or(Damage::Removed, |(damage, _)| *damage);
        let mut files = files_in(&state);
        if victim != "d" {
            files.push(dir.join("current"));
        }
        let file = files[dice.below(files.len() as u64) as usize].clone();
        let name = file.strip_prefix(&dir).expect("within").display().to_string();
        let counterpart = |from: &Path| match file.strip_prefix(&state) {
            Ok(relative) => from.join(relative),
            Err(_) => from.parent().expect("parent").join("current"),
        };
        match damage {
            Damage::OlderFile => replace(&file, &counterpart(&old)),
            Damage::OthersFile => replace(&file, &counterpart(&others)),
            Damage::WholeRemoved => fs::remove_dir_all(&state).expect("removes"),
            Damage::WholeOlder | Damage::WholeOthers => {
                fs::remove_dir_all(&state).expect("removes");
                copy_dir(if damage == Damage::WholeOlder { &old } else { &others }, &state);
            }
            _ => spoil(&file, damage, dice),
        }
        (damage, name)
    }
}

/// Replaces a file by another one; removes it if the other one does not exist.
fn replace(file: &Path, by: &Path) {
    if by.exists() {
        files::copy(by, file);
    } else {
        fs::remove_file(file).expect("removes");
    }
}

fn spoil(file: &Path, damage: Damage, dice: &mut Rng) {
    let mut bytes = fs::read(file).expect("reads");
    // Journals are long and mostly empty, so corruption there would prove little.
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1) as u64;
    let mut place = || dice.below(used.max(1)) as usize;
    match damage {
        Damage::Removed => return fs::remove_file(file).expect("removes"),
        Damage::CutOff => bytes.truncate(place()),
        Damage::ZeroedSector => {
            let start = place() / 512 * 512;
            let end = (start + 512).min(bytes.len());
            bytes[start..end].fill(0);
        }
        Damage::Garbage => bytes.extend((0..700u32).map(|number| (number * 37 % 251) as u8)),
        _ if bytes.is_empty() => bytes.push(1),
        _ => {
            for _ in 0..3 {
                let at = place();
                bytes[at] ^= 1 << (at % 8);
            }
        }
    }
    files::write(file, &bytes);
}

/// Transactions on few large and many small objects: much is written, but little of it is live.
fn large_history(round: u64) -> String {
    let mut dice = Rng::new(round + 3);
    let mut lines = String::new();
    for number in 0..650 {
        let text: String = (0..1500).map(|_| format!("{:016x}", dice.below(u64::MAX))).collect();
        let (large, small, gone) = (dice.below(40), dice.below(300), dice.below(300));
        lines += &format!(
            "{{\"ops\":[{{\"put\":{{\"collection\":\"large\",\"key\":\"l{large}\",\"value\":\"{text}\"}}}},{{\"put\":{{\
             \"collection\":\"small\",\"key\":\"s{small:03}\",\"value\":{number}}}}},{{\"delete\":{{\"collection\":\
             \"small\",\"key\":\"s{gone:03}\"}}}}]}}\n"
        );
    }
    lines
}

/// Starts a process, repeatedly if it exits immediately, until it responds. Both a datastore and a replica must start.
fn start(fleet: &Fleet, name: &str) -> (Process, u32) {
    for attempt in 1..=STARTS_MAX {
        let mut process = if name == "d" { fleet.spawn_datastore() } else { fleet.replica(name) };
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(20) {
            if process.ended().is_some() {
                break;
            }
            if fleet.dir(name).join("ctl.sock").exists() && fleet.status(name)["running"] == true {
                return (process, attempt);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    panic!("{name} does not start\n{}", fleet.log_of(name));
}

/// Checks that a process shows a state that existed, at the position that it reports.
fn shows_what_was(rest: &mut Rest, name: &str) {
    let before = rest.fleet.status(name);
    let output = rest.fleet.run(name, &["export"]);
    let after = rest.fleet.status(name);
    if !output.status.success() || before["seq"] != after["seq"] || before["digest"] != after["digest"] {
        return;
    }
    let seq = before["seq"].as_u64().expect("a sequence");
    let shown = String::from_utf8(output.stdout).expect("text");
    assert!(shown == rest.export_at(seq), "{name} shows a wrong state at {seq}; status {after}");
}

fn one(rest: &mut Rest, number: u64, seed: u64) -> (String, Damage) {
    let mut dice = Rng::new(seed.wrapping_mul(1_000_003).wrapping_add(number));
    rest.restore();
    let victim = if dice.below(5) < 2 { "d" } else { "a" };
    let (damage, file) = rest.damage(victim, &mut dice);
    let what = format!("number {number}: {damage:?} of {victim}/{file}");
    let _replay = Replay(format!("({what}) GRAVWELL_SEED={seed} GRAVWELL_DAMAGE={number} cargo test state_damage"));
    let log_before = rest.fleet.log_of(victim).len();
    if victim == "a" && dice.below(2) == 0 {
        // Without the datastore it may show no data, but never wrong data.
        let (a, _) = start(&rest.fleet, "a");
        shows_what_was(rest, "a");
        a.kill();
    }
    let (_datastore, starts) = start(&rest.fleet, "d");
    shows_what_was(rest, "d");
    let (_a, _) = start(&rest.fleet, "a");
    shows_what_was(rest, "a");
    let export = rest.fleet.converges(&["a"]);
    assert!(export == rest.export_at(rest.log.len() as u64), "{what}: the state differs from the written one");
    rest.fleet.ok("d", &["verify"]);
    rest.fleet.ok("a", &["verify"]);
    let said = rest.fleet.log_of(victim)[log_before..].to_owned();
    let mended = ["discarded", "rebuilt", "fetching the state", "truncated the disordered end"]
        .iter()
        .any(|word| said.contains(word));
    let outcome = if mended { "mended" } else { "no difference" };
    (format!("{outcome}{}", if starts > 1 { " after more starts" } else { "" }), damage)
}

#[test]
fn p10_a_damaged_state_is_rebuilt_and_never_served() {
    let (damages, seed) = (from_env("GRAVWELL_DAMAGES", 60), from_env("GRAVWELL_SEED", 1));
    let begun = Instant::now();
    let mut rest = Rest::new();
    let prepared = begun.elapsed();
    let only = std::env::var("GRAVWELL_DAMAGE").ok().and_then(|text| text.parse::<u64>().ok());
    let numbers: Vec<u64> = only.map_or_else(|| (0..damages).collect(), |number| vec![number]);
    let mut outcomes: BTreeMap<(Damage, String), u64> = BTreeMap::new();
    for number in numbers {
        let (outcome, damage) = one(&mut rest, number, seed);
        *outcomes.entry((damage, outcome)).or_default() += 1;
    }
    println!("seed {seed}, {damages} damages, prepared in {prepared:?}, all in {:?}: {outcomes:?}", begun.elapsed());
}

/// Removes one object's row without updating any digest.
fn lose_a_row(state: &Path) {
    use fjall::Readable as _;

    let database = fjall::Database::builder(state).open().expect("opens");
    let rows = database.keyspace("state", fjall::KeyspaceCreateOptions::default).expect("opens");
    let row = database.snapshot().prefix(&rows, [4]).next().expect("an object").into_inner().expect("reads");
    rows.remove(row.0).expect("removes");
    database.persist(fjall::PersistMode::SyncAll).expect("persists");
}

#[test]
fn p09_a_lost_row_is_detected_before_the_state_is_served() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    let a = fleet.member("a");
    fleet.ok("a", &["put", "c", "k1", "--value", "1"]);
    fleet.ok("a", &["put", "c", "k2", "--value", "2"]);
    let export = fleet.converges(&["a"]);
    a.terminate();
    lose_a_row(&state_of(&fleet.dir("a")));
    for command in ["verify", "export", "status"] {
        let output = fleet.run("a", &[command]);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{command}: {errors}");
        assert!(errors.contains("collection c: 1 objects") && errors.contains("start the replica"), "{errors}");
    }
    let a = fleet.replica("a");
    assert_eq!(fleet.converges(&["a"]), export);
    assert!(fleet.log_of("a").contains("state discarded"));
    fleet.ok("a", &["verify"]);
    drop(a);
    datastore.kill();
    lose_a_row(&fleet.dir("d/state"));
    let _datastore = fleet.datastore();
    assert_eq!(fleet.export("d"), export);
}
