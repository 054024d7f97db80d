//! One simulated world: a datastore, replicas, clients, the network between them, and time. Everything that happens is
//! an event; the seed alone determines the events and their times.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use gravwell_env::memory_fs::{MemoryFs, SmallRandom};
use gravwell_model::{MemberName, Seq};
use gravwell_transport::trust::{Registry, Role};

use super::copies::{Copy, Fence, FollowedCopy};
use super::datastore::{self, Disks};
use super::network::{Conn, ConnId, MS, Message, SECOND, Time, Way};
use super::oracle::{Checked, Oracle, Violation};
use super::plan::{Fault, Plan};
use super::replica::{Node, SimClock, SimEntropy};

/// Wall-clock time at the start of a world, in milliseconds.
const START_MS: u64 = 1_800_000_000_000;
/// Lifetime of a certificate: longer than any jump of the clock.
pub const CERTIFICATE_DAYS: u32 = 60_000;

/// A scheduled event.
#[derive(Clone, Debug)]
pub enum Event {
    // The network.
    Deliver(ConnId, Message),
    IdleTimeout(ConnId),
    ClientBroken(ConnId),
    ServerBroken(ConnId),
    Heal(usize),
    // The datastore.
    DatastoreStart,
    Commit,
    Index,
    Feed(ConnId),
    CompactStep,
    DatastoreUpkeep,
    // Replicas; with the incarnation that the event belongs to.
    ReplicaStart(usize),
    Connect(usize, u64, u64),
    Apply(usize, u64),
    Persist(usize, u64),
    Report(usize, u64),
    /// A timeout of the session on this connection, or the completion of one of its effects.
    SessionTimeout(usize, ConnId),
    SessionCompletion(usize, ConnId),
    ServerTimeout(ConnId),
    // Clients, faults and phases.
    Client(usize),
    Strike(Fault, u64),
    Undo(Fault, usize),
    Calm,
    SteadyMark,
    Fork,
    Compact,
}

/// Incarnation, sequence, changes of the outbox, and number of read rounds: if all are unchanged, so are the contents shown.
pub type Marks = (u64, Option<Seq>, u64, u64);

/// The datastore that currently answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    Genuine,
    /// A copy of its disk as of this sequence; entries that it committed after that are not part of the members' history.
    OldCopy {
        head: Seq,
    },
    /// An empty disk.
    Wiped,
}

struct Due {
    at: Time,
    order: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Due) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// Result of a run.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub trace: u64,
    pub simulated: Time,
    pub events: u64,
    pub entries: u64,
    pub checks: u64,
    pub faults: BTreeMap<String, u64>,
}

/// Last report of a member: its time, the highest position, and when that position last rose or was the head.
pub type Report = (u64, Seq, u64);

pub struct World {
    pub now: Time,
    pub random: SmallRandom,
    pub plan: Plan,
    pub oracle: Oracle,
    pub disks: Disks,
    pub datastore: Option<datastore::Running>,
    pub truth: Truth,
    /// The genuine disk while another one is used, and a copy for later.
    pub genuine: Option<Disks>,
    pub old_copy: Option<(Seq, Disks)>,
    pub replicas: Vec<Node>,
    pub ways: Vec<Way>,
    pub conns: BTreeMap<ConnId, Conn>,
    pub clock: SimClock,
    pub entropy: Arc<SimEntropy>,
    /// Offset of the clock of the datastore, in milliseconds.
    pub clock_offset: i64,
    pub calm: bool,
    pub summary: Summary,
    /// Flipped bit of a segment: file, offset, bit.
    pub flipped: Option<(std::path::PathBuf, u64, u8)>,
    /// By replica: the last report, with times by the clock of the datastore.
    pub reported: Vec<Option<Report>>,
    /// The reports as saved by the datastore.
    pub saved_reports: Vec<Option<Report>>,
    /// By replica: a copy of its directory for later.
    pub copies: BTreeMap<usize, Copy>,
    /// By replica: a copy of its outbox for later.
    pub outboxes: BTreeMap<usize, MemoryFs>,
    /// An old copy of the disk of the datastore and of the directory of one replica.
    pub followed: Option<FollowedCopy>,
    /// Members that are beyond the datastore of this world, and the head of the log when they connected.
    pub fence: Option<Fence>,
    /// Head and pending transactions, recorded while clients still write, that must be shown and resolved later.
    pub steady: Option<(Seq, Vec<gravwell_model::TxnId>)>,
    /// Limit of the running compaction, and the member that determines it.
    pub limit: Option<(Seq, String)>,
    /// By replica: the sequence up to which its disk is durable.
    pub persisted: Vec<Option<Seq>>,
    /// By replica: its marks at the last check.
    pub looked_at: Vec<Option<Marks>>,
    /// Incremented to make all replicas be checked again.
    pub reads: u64,
    /// Damage to a journal that was not detected.
    pub journal_lost: Option<String>,
    pub slow: Vec<bool>,
    /// By replica: time until which received entries are not applied.
    pub stalled_until: BTreeMap<usize, Time>,
    /// Time until which the index of the datastore applies nothing.
    pub index_stalled_until: Time,
    pub next_value: u64,
    pub is_commit_due: bool,
    pub is_index_due: bool,
    queue: BinaryHeap<Reverse<Due>>,
    order: u64,
    next_conn: ConnId,
    verbose: bool,
}

impl World {
    pub fn new(seed: u64, verbose: bool) -> World {
        let mut random = World::random_of(seed);
        let plan = Plan::draw(seed, &mut random);
        World::of(plan, random, verbose)
    }

    /// Returns whether the plan of a seed contains all given faults, a comma-separated list of names.
    pub fn strikes_with(seed: u64, faults: &str) -> bool {
        let plan = Plan::draw(seed, &mut World::random_of(seed));
        let has = |name: &str| plan.faults.iter().any(|(fault, _)| format!("{fault:?}") == name);
        faults.split(',').filter(|name| !name.is_empty()).all(has)
    }

    fn random_of(seed: u64) -> SmallRandom {
        SmallRandom(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5DEE_CE66)
    }

    fn of(plan: Plan, mut random: SmallRandom, verbose: bool) -> World {
        let entropy = Arc::new(SimEntropy(Mutex::new(SmallRandom(random.next_u64()))));
        let mut registry = Registry::from_text("", START_MS).expect("empty");
        let replicas = (0..plan.replicas).map(|number| {
            let role = if plan.has_reader && number + 1 == plan.replicas { Role::Reader } else { Role::Webserver };
            let name = MemberName::new(format!("web{number}")).expect("name");
            let certificate = format!("certificate of {name}, 1").into_bytes();
            registry.invite(&name, role, 1000, START_MS, false).expect("invites");
            registry.enrol(&name, role, &certificate, CERTIFICATE_DAYS, START_MS).expect("enrols");
            Node::new(name, role, certificate)
        });
        let replicas: Vec<Node> = replicas.collect();
        let disks = Disks { members: registry.text(START_MS).expect("text"), ..Disks::default() };
        let ways = vec![plan.way; plan.replicas];
        let clock = SimClock::default();
        clock.0.store(START_MS, Ordering::Relaxed);
        let mut world = World {
            now: 0,
            oracle: Oracle::new(),
            disks,
            datastore: None,
            truth: Truth::Genuine,
            genuine: None,
            old_copy: None,
            ways,
            conns: BTreeMap::new(),
            clock,
            entropy,
            clock_offset: 0,
            calm: false,
            summary: Summary::default(),
            flipped: None,
            reported: vec![None; plan.replicas],
            saved_reports: vec![None; plan.replicas],
            copies: BTreeMap::new(),
            outboxes: BTreeMap::new(),
            steady: None,
            followed: None,
            fence: None,
            journal_lost: None,
            persisted: vec![None; plan.replicas],
            looked_at: vec![None; plan.replicas],
            reads: 0,
            limit: None,
            slow: vec![false; plan.replicas],
            stalled_until: BTreeMap::new(),
            index_stalled_until: 0,
            next_value: 0,
            is_commit_due: false,
            is_index_due: false,
            queue: BinaryHeap::new(),
            order: 0,
            next_conn: 1,
            verbose,
            replicas,
            random,
            plan,
        };
        if verbose {
            println!("{:#?}", world.plan);
        }
        world.after(0, Event::DatastoreStart);
        for number in 0..world.plan.replicas {
            world.after(MS, Event::ReplicaStart(number));
            let wait = world.draw(world.plan.pace);
            world.after(2 * MS + wait, Event::Client(number));
        }
        for (fault, mean) in world.plan.faults.clone() {
            let wait = world.draw(2 * mean);
            world.after(wait, Event::Strike(fault, mean));
        }
        let calm_at = world.plan.calm_at;
        world.after(calm_at, Event::Calm);
        if world.plan.steady > 0 {
            world.after(calm_at + world.plan.steady - 25 * SECOND, Event::SteadyMark);
        }
        world
    }

    /// Creates a separate world that starts at the current time, empty except for its plan.
    pub fn aside(&mut self) -> World {
        let random = SmallRandom(self.random.next_u64());
        let mut world = World::of(Plan { faults: Vec::new(), ..self.plan.clone() }, random, self.verbose);
        world.queue.clear();
        (world.now, world.clock_offset, world.calm) = (self.now, self.clock_offset, self.calm);
        (world.replicas, world.next_value) = (Vec::new(), self.next_value + 1_000_000);
        world
    }

    pub fn run_until(&mut self, end: Time) -> Checked {
        while let Some(Reverse(due)) = self.queue.pop() {
            if due.at > end {
                break;
            }
            self.happen(due)?;
        }
        Ok(())
    }

    /// Returns a random number from 0 to `bound`, both included.
    pub fn draw(&mut self, bound: Time) -> Time {
        self.random.next_u64() % (bound + 1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.random.next_u64() % 100 < percent
    }

    pub fn after(&mut self, delay: Time, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Due { at: self.now + delay, order: self.order, event }));
    }

    /// Returns the milliseconds of a correct clock.
    pub fn true_ms(&self) -> u64 {
        START_MS + self.now / MS
    }

    /// Returns the milliseconds of the clock of the datastore.
    pub fn datastore_ms(&self) -> u64 {
        self.true_ms().saturating_add_signed(self.clock_offset)
    }

    /// Adds an event to the trace.
    pub fn note(&mut self, what: impl FnOnce() -> String) {
        let what = what();
        for byte in what.bytes().chain(self.now.to_le_bytes()) {
            self.summary.trace = (self.summary.trace ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        if self.verbose {
            println!("{:>12.6}  {what}", self.now as f64 / SECOND as f64);
        }
    }

    pub fn run(mut self) -> (Summary, Checked) {
        let result = self.live();
        self.summary.simulated = self.now;
        self.summary.entries = self.oracle.head().0;
        self.summary.checks = self.oracle.checks;
        (self.summary, result)
    }

    fn live(&mut self) -> Checked {
        let mut next_look = self.plan.calm_at + self.plan.steady.max(20 * SECOND);
        while let Some(Reverse(due)) = self.queue.pop() {
            self.happen(due)?;
            if self.calm && self.now >= next_look {
                next_look = self.now + SECOND;
                self.check_steady()?;
                if let Some(reason) = self.unsettled() {
                    if self.now >= self.plan.end_at {
                        return Err(Violation(format!(
                            "not caught up {} s after the last fault: {reason}",
                            (self.now - self.plan.calm_at) / SECOND
                        )));
                    }
                } else {
                    return self.last_look();
                }
            }
        }
        Err(Violation("no events are left".into()))
    }

    fn happen(&mut self, due: Due) -> Checked {
        self.now = due.at;
        self.clock.0.store(START_MS + self.now / MS, Ordering::Relaxed);
        self.summary.events += 1;
        self.handle(due.event)?;
        self.journal_lost.take().map_or(Ok(()), |lost| Err(Violation(lost)))
    }

    fn handle(&mut self, event: Event) -> Checked {
        match event {
            Event::Deliver(conn, message) => self.deliver(conn, message),
            Event::IdleTimeout(conn) => self.idle_timeout(conn),
            Event::ClientBroken(conn) => self.client_broken(conn, "connection failed"),
            Event::ServerBroken(conn) => {
                self.server_broken(conn);
                Ok(())
            }
            Event::Heal(replica) => {
                self.heal(replica);
                Ok(())
            }
            Event::DatastoreStart => self.start_datastore(),
            Event::Commit => self.commit(),
            Event::Index => self.index(),
            Event::Feed(conn) => self.feed(conn),
            Event::CompactStep => self.compact_step(),
            Event::DatastoreUpkeep => self.datastore_upkeep(),
            Event::ReplicaStart(number) => self.start_replica(number),
            Event::Connect(number, life, attempt) => self.connect(number, life, attempt),
            Event::Apply(number, life) => self.apply(number, life),
            Event::Persist(number, life) => self.persist(number, life),
            Event::Report(number, life) => self.report(number, life),
            Event::SessionTimeout(number, id) => self.session_timeout(number, id),
            Event::SessionCompletion(number, id) => self.session_completion(number, id),
            Event::ServerTimeout(id) => self.server_timeout(id),
            Event::Client(number) => self.client(number),
            Event::Strike(fault, mean) => self.strike(fault, mean),
            Event::Undo(fault, number) => self.undo(fault, number),
            Event::Calm => self.calm_down(),
            Event::SteadyMark => {
                self.mark_steady();
                Ok(())
            }
            Event::Fork => self.fork(),
            Event::Compact => self.start_compaction(),
        }
    }

    // ---- the network ----

    pub fn new_conn(&mut self, replica: usize) -> ConnId {
        let id = self.next_conn;
        self.next_conn += 1;
        self.conns.insert(id, Conn { replica, ..Conn::default() });
        id
    }

    /// Sends a message; the properties of the path determine whether and when it arrives.
    pub fn send(&mut self, id: ConnId, message: Message) {
        let now = self.now;
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let way = self.ways[conn.replica];
        if way.blocked(message.goes_up()) > now {
            if conn.stalled.is_empty() {
                self.order += 1;
                let due = Due { at: now + super::network::IDLE, order: self.order, event: Event::IdleTimeout(id) };
                self.queue.push(Reverse(due));
            }
            conn.stalled.push(message);
            return;
        }
        let at = conn.arrival(&way, now, message.stream(), &mut self.random);
        self.after(at - now, Event::Deliver(id, message));
    }

    /// Sends the messages stalled by a partition.
    fn heal(&mut self, replica: usize) {
        let ids: Vec<ConnId> = self.conns.iter().filter(|(_, c)| c.replica == replica).map(|(id, _)| *id).collect();
        for id in ids {
            let stalled = self.conns.get_mut(&id).map(|conn| std::mem::take(&mut conn.stalled)).unwrap_or_default();
            for message in stalled {
                self.send(id, message);
            }
        }
    }

    fn idle_timeout(&mut self, id: ConnId) -> Checked {
        if self.conns.get(&id).is_none_or(|conn| conn.stalled.is_empty()) {
            return Ok(());
        }
        self.conns.remove(&id);
        let (client, server) = (self.draw(SECOND), self.draw(SECOND));
        self.after(client, Event::ClientBroken(id));
        self.after(server, Event::ServerBroken(id));
        Ok(())
    }

    /// Breaks a connection; each side notices it at its own time.
    pub fn cut(&mut self, id: ConnId) {
        if !self.conns.contains_key(&id) {
            return;
        }
        // Messages in transit may still arrive at a side that has not noticed.
        let (client, server) = (self.draw(20 * MS), self.draw(3 * SECOND));
        self.after(client, Event::ClientBroken(id));
        self.after(server, Event::ServerBroken(id));
    }

    fn deliver(&mut self, id: ConnId, message: Message) -> Checked {
        let Some(conn) = self.conns.get(&id) else { return Ok(()) };
        let replica = conn.replica;
        if message.goes_up() {
            if self.datastore.is_none() {
                // No datastore is listening any more: the client is informed.
                self.conns.remove(&id);
                self.after(MS, Event::ClientBroken(id));
                return Ok(());
            }
            return self.at_datastore(id, replica, message);
        }
        self.at_replica(id, replica, message)
    }
}
