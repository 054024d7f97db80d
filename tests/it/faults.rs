//! All faults combined: a datastore and three replicas under load, while processes are killed, paused and restarted,
//! networks fail in every way, and compaction runs. Afterwards every reply to a client must be true.
//!
//! `GRAVWELL_FAULT_CYCLES` makes it longer; `GRAVWELL_SEED` repeats a run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gravwell_model::codec::admin::{OutboxItem, Request};
use gravwell_model::{Origin, TxnId};
use tokio::runtime::Runtime;

use crate::fleet::{Fleet, Process, Replay, Rng, from_env};
use crate::load::{Collector, Ledger, Writer, ask, lock, sample};
use crate::model::{Model, Told};
use crate::proxy::{Counts, NetworkConditions, Proxy};

/// Five seconds, plus the delay of a busy host.
const STOPS_WITHIN: Duration = Duration::from_secs(30);
const REPLICAS: [&str; 3] = ["a", "b", "c"];
/// Entries that compaction keeps; few, so that a replica that was offline is below the horizon.
const HISTORY: u64 = 300;
/// The process of each writer; the origin of a writer ends with its number, starting at 1. The last one writes to
/// the datastore.
const WRITERS: [&str; 10] = ["a", "a", "a", "b", "b", "b", "c", "c", "c", "d"];
const AT_DATASTORE: u8 = WRITERS.len() as u8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    KillDatastore,
    KillReplica,
    Pause,
    Restart,
    Partition,
    OneWay,
    Lossy,
    Forget,
    Compact,
    Storm,
}

/// Weight of each fault, in percent.
const WEIGHTS: [(Fault, u64); 10] = [
    (Fault::KillDatastore, 12),
    (Fault::KillReplica, 16),
    (Fault::Pause, 14),
    (Fault::Restart, 8),
    (Fault::Partition, 10),
    (Fault::OneWay, 10),
    (Fault::Lossy, 12),
    (Fault::Forget, 6),
    (Fault::Compact, 8),
    (Fault::Storm, 4),
];

/// Recovery from a fault. Target 0 is the datastore; the replicas follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heal {
    Start(usize),
    Resume(usize),
    Calm(usize),
}

struct Run {
    fleet: Fleet,
    runtime: Runtime,
    proxies: Vec<Proxy>,
    /// `None`: it was killed and waits to be started.
    processes: Vec<Option<Process>>,
    heals: Vec<(Instant, Heal)>,
    done: BTreeMap<Fault, u64>,
    collector: Collector,
}

impl Run {
    fn new(seed: u64, counts: &Arc<Counts>) -> Run {
        let mut fleet = Fleet::new();
        let flags = ["--history-ops", "300", "--member-retention-hours", "0", "--segment-mb", "1"];
        fleet.datastore_flags = flags.map(String::from).into();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("starts");
        let mut processes = vec![Some(fleet.datastore())];
        let mut proxies = Vec::new();
        for (number, name) in REPLICAS.iter().enumerate() {
            fleet.enroll(name, "webserver");
            let opening = Proxy::open(fleet.listen, seed ^ (number as u64) << 8, counts);
            proxies.push(runtime.block_on(opening).expect("opens"));
        }
        let collector = Collector::new(fleet.dir("d"));
        processes.extend(REPLICAS.map(|_| None));
        let (heals, done) = (Vec::new(), BTreeMap::new());
        let mut run = Run { fleet, runtime, proxies, processes, heals, done, collector };
        (1..=REPLICAS.len()).for_each(|target| run.start(target));
        REPLICAS.iter().for_each(|name| run.fleet.wait_connected(name));
        run
    }

    fn name(target: usize) -> &'static str {
        target.checked_sub(1).map_or("d", |number| REPLICAS[number])
    }

    fn start(&mut self, target: usize) {
        if self.processes[target].is_none() {
            let process = match target.checked_sub(1) {
                None => self.fleet.spawn_datastore(),
                Some(number) => {
                    let address = self.proxies[number].address().to_string();
                    self.fleet.replica_with(Self::name(target), &["--datastore", &address])
                }
            };
            self.processes[target] = Some(process);
        }
    }

    fn kill(&mut self, target: usize, restart_after: Duration) {
        // A process that waits to be started is started and killed immediately, so the kill hits its recovery.
        self.start(target);
        if let Some(process) = self.processes[target].take() {
            process.kill();
        }
        self.heals.push((Instant::now() + restart_after, Heal::Start(target)));
    }

    /// Injects one fault; its kind and target depend only on the dice.
    fn inflict(&mut self, dice: &mut Rng) {
        let mut at = dice.below(WEIGHTS.iter().map(|(_, weight)| weight).sum());
        let chosen = WEIGHTS.iter().find(|(_, weight)| at.checked_sub(*weight).map(|rest| at = rest).is_none());
        let fault = chosen.map_or(Fault::Storm, |(fault, _)| *fault);
        let (replica, any) = (dice.below(3) as usize, dice.below(4) as usize);
        let lasting = Duration::from_millis(100 + dice.below(900));
        // Occasionally a partition lasts longer than the connection timeout.
        let partition = if dice.below(10) == 0 { Duration::from_secs(14) } else { lasting * 2 };
        let (delay_us, jitter_us) = (dice.below(10_000), dice.below(40_000));
        let (lost, doubled) = (dice.below(250), dice.below(200));
        let up = dice.below(2) == 0;
        *self.done.entry(fault).or_default() += 1;
        let calm = NetworkConditions::default();
        match fault {
            Fault::KillDatastore => self.kill(0, lasting / 5),
            Fault::KillReplica => self.kill(replica + 1, lasting / 3),
            Fault::Pause => {
                if let Some(process) = &self.processes[any] {
                    process.pause();
                    self.heals.push((Instant::now() + lasting, Heal::Resume(any)));
                }
            }
            Fault::Restart => {
                self.start(any);
                if let Some(process) = self.processes[any].take() {
                    process.resume();
                    self.fleet.wait("it answers", || self.fleet.status(Self::name(any))["running"] == true);
                    let took = process.terminate();
                    assert!(took < STOPS_WITHIN, "{} stops in time, not after {took:?}", Self::name(any));
                }
                self.start(any);
            }
            Fault::Partition => self.weather(replica, NetworkConditions::CUT, NetworkConditions::CUT, partition),
            Fault::OneWay if up => self.weather(replica, NetworkConditions::CUT, calm, partition),
            Fault::OneWay => self.weather(replica, calm, NetworkConditions::CUT, partition),
            Fault::Lossy => {
                let weather = NetworkConditions { cut: false, lost, doubled, delay_us, jitter_us };
                self.weather(replica, weather, weather, lasting * 3);
            }
            Fault::Forget => self.proxies[replica].forget(),
            Fault::Compact => self.compact(),
            Fault::Storm => {
                (0..REPLICAS.len())
                    .for_each(|replica| self.weather(replica, NetworkConditions::CUT, NetworkConditions::CUT, lasting));
                self.proxies.iter().for_each(Proxy::forget);
                self.kill(0, lasting / 2);
            }
        }
    }

    fn weather(&mut self, replica: usize, up: NetworkConditions, down: NetworkConditions, lasting: Duration) {
        self.proxies[replica].set(up, down);
        self.heals.retain(|(_, heal)| *heal != Heal::Calm(replica));
        self.heals.push((Instant::now() + lasting, Heal::Calm(replica)));
    }

    /// Reads the log, then compacts it up to the position that was read.
    fn compact(&mut self) {
        let dir = self.fleet.dir("d");
        let patience = Duration::from_secs(2);
        if self.runtime.block_on(self.collector.collect(patience)) {
            let request = Request::Compact { dry_run: false, history_ops: Some(HISTORY) };
            let _ = self.runtime.block_on(ask(&dir, &request, patience));
        }
    }

    /// Ends the faults whose time is over.
    fn heal(&mut self, now: Instant) {
        let (due, later) = self.heals.iter().partition(|(when, _)| *when <= now);
        self.heals = later;
        let due: Vec<(Instant, Heal)> = due;
        for (_, heal) in due {
            match heal {
                Heal::Start(target) => self.start(target),
                Heal::Resume(target) => {
                    if let Some(process) = &self.processes[target] {
                        process.resume();
                    }
                }
                Heal::Calm(replica) => {
                    self.proxies[replica].set(NetworkConditions::default(), NetworkConditions::default())
                }
            }
        }
    }

    /// Checks that no process has exited on its own.
    fn look(&mut self) {
        for target in 0..self.processes.len() {
            let ended = self.processes[target].as_mut().and_then(Process::ended);
            let name = Self::name(target);
            assert!(ended.is_none(), "{name} exited unexpectedly: {ended:?}\n{}", self.fleet.log_of(name));
        }
    }
}

fn writers(run: &Run, seed: u64, ledger: &Arc<Ledger>) -> Vec<tokio::task::JoinHandle<()>> {
    let writer = |(number, name): (u8, &&str)| {
        let mut origin = [number; 16];
        origin[..8].copy_from_slice(&seed.to_le_bytes());
        let dice = Rng::new(seed ^ u64::from(number) << 32);
        let (dir, ledger) = (run.fleet.dir(name), Arc::clone(ledger));
        let writer = Writer { dir, origin: Origin(origin), waits: number % 3 == 0, pause_ms: 60, dice, ledger };
        run.runtime.spawn(writer.run())
    };
    (1..).zip(&WRITERS).map(writer).collect()
}

fn samplers(run: &Run, seed: u64, ledger: &Arc<Ledger>) -> Vec<tokio::task::JoinHandle<()>> {
    let sampler = |(number, name): (u64, &&str)| {
        let dir: PathBuf = run.fleet.dir(name);
        run.runtime.spawn(sample(dir, (*name).to_owned(), Rng::new(seed ^ number << 40), Arc::clone(ledger)))
    };
    (1..).zip(&["a", "b", "c", "d"]).map(sampler).collect()
}

#[test]
fn p01_to_p09_hold_under_all_faults_at_once() {
    let (cycles, seed) = (from_env("GRAVWELL_FAULT_CYCLES", 200), from_env("GRAVWELL_SEED", 1));
    let command =
        format!("GRAVWELL_SEED={seed} GRAVWELL_FAULT_CYCLES={cycles} cargo test --test it all_faults_at_once");
    let _replay = Replay(command);
    let started = Instant::now();
    let counts = Arc::default();
    let mut run = Run::new(seed, &counts);
    let (mut dice, ledger) = (Rng::new(seed), Arc::<Ledger>::default());
    let mut clients = writers(&run, seed, &ledger);
    clients.extend(samplers(&run, seed, &ledger));
    for cycle in 0..cycles {
        run.inflict(&mut dice);
        let until = Instant::now() + Duration::from_millis(100 + dice.below(300));
        while Instant::now() < until {
            run.heal(Instant::now());
            std::thread::sleep(Duration::from_millis(10));
        }
        run.look();
        if cycle % 3 == 0 {
            let patience = Duration::from_millis(500);
            run.runtime.block_on(run.collector.collect(patience));
        }
        if clients.iter().any(tokio::task::JoinHandle::is_finished) {
            break;
        }
    }
    let faulty = started.elapsed();
    run.heal(Instant::now() + Duration::from_secs(3600));
    ledger.stop.store(true, Ordering::Release);
    for client in clients {
        run.runtime.block_on(client).expect("a client succeeds");
    }
    judge(&mut run, &ledger);
    let load = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    println!(
        "seed {seed}: {cycles} cycles in {faulty:?}, all in {:?}: {:?}; datagrams: {} carried, {} lost, {} doubled, {} \
         delayed",
        started.elapsed(),
        run.done,
        load(&counts.carried),
        load(&counts.lost),
        load(&counts.doubled),
        load(&counts.delayed),
    );
}

fn rejections(fleet: &Fleet, name: &str) -> Vec<TxnId> {
    let text = fleet.ok(name, &["outbox", "--json"]);
    let items = text.lines().map(|line| serde_json::from_str::<OutboxItem>(line).expect("an item"));
    let rejected = items.map(|item| match item {
        OutboxItem::Rejected(rejected) if !rejected.reason.is_empty() => rejected.id,
        item => panic!("{name}: {item:?}"),
    });
    rejected.collect()
}

/// Checks all replies, reads and states against the log, and the log against the model.
fn judge(run: &mut Run, ledger: &Ledger) {
    let fleet = &run.fleet;
    let export = fleet.converges(&REPLICAS);
    assert!(run.runtime.block_on(run.collector.collect(Duration::from_secs(30))), "the datastore responds");
    let log = &run.collector.log;
    assert_eq!(fleet.status("d")["head"], log.len() as u64);
    let model = Model::replay(log, &lock(&ledger.wishes));
    assert_eq!(export, model.export(), "the final state matches the log");
    let (told, samples) = (lock(&ledger.told), lock(&ledger.samples));
    assert_eq!(model.len(), lock(&ledger.wishes).len(), "every submitted transaction is resolved");
    model.check_told(&told);
    model.check_samples(&samples);
    let mut resyncs = 0;
    for name in REPLICAS {
        let log = fleet.log_of(name);
        assert!(!log.contains("must be fetched again"), "{name}: an undamaged state was discarded\n{log}");
        resyncs += log.matches("state fetched and verified").count();
    }
    let listed: BTreeSet<TxnId> = REPLICAS.iter().flat_map(|name| rejections(fleet, name)).collect();
    let rejected = model.rejected();
    // The datastore's own writers get immediate replies; it keeps no list.
    let expected = rejected.iter().filter(|id| id.origin.0[15] < AT_DATASTORE).copied().collect();
    assert_eq!(listed, expected, "every rejection is listed at its origin, with its reason");
    for name in ["d"].iter().chain(&REPLICAS) {
        fleet.ok(name, &["verify"]);
    }
    let of = |wanted: fn(&Told) -> bool| told.iter().filter(|(_, told)| wanted(told)).count();
    println!(
        "{} transactions, {} rejected, {} deletes; outcomes: {} committed, {} committed earlier, {} rejected, {} \
         queued; {} reads, {} digests, {resyncs} snapshots",
        model.len(),
        rejected.len(),
        model.deletes,
        of(|told| matches!(told, Told::Committed(_))),
        of(|told| matches!(told, Told::Earlier(_))),
        of(|told| matches!(told, Told::Rejected(_))),
        of(|told| matches!(told, Told::Queued)),
        samples.len(),
        lock(&ledger.digests).len(),
    );
}
