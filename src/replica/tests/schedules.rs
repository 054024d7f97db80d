//! The threads of a running replica in given schedules of an exchange: a thread stops where the test says, and goes on when
//! the test says.

use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use gravwell_env::memory_fs::{MemoryFs, Survival};
use gravwell_env::{Entropy, SystemClock, SystemEntropy};
use gravwell_log::journal::Journal;
use gravwell_model::codec::message::Welcome;
use gravwell_protocol::tail::EntryBatch;
use tokio::sync::{mpsc, oneshot};

use super::leaving::{ME, OTHER, txn};
use super::*;
use crate::applier;
use crate::exchange::{self, Course};
use crate::leaving::{self as leaves, Leaving};
use crate::link::{LinkDriver, LinkError};
use crate::local_txns::Others;
use crate::outbox_records::restore;
use crate::outbox_writer::{self, Draft, OutboxWriter, SubmitError};
use crate::receipts::Receipt;
use crate::rejoin::Exchanging;
use crate::shared::Change;

/// A place at which a thread stops until the test lets it go on.
struct Stop {
    reached: Sender<()>,
    go_on: Mutex<Receiver<()>>,
}

/// The test's side of a [`Stop`].
struct Gate {
    reached: Receiver<()>,
    go_on: Sender<()>,
}

fn stop() -> (Stop, Gate) {
    let ((reached, reaches), (goes_on, go_on)) = (channel(), channel());
    (Stop { reached, go_on: Mutex::new(go_on) }, Gate { reached: reaches, go_on: goes_on })
}

impl Stop {
    /// Stops unless the test has dropped the gate.
    fn here(&self) {
        if self.reached.send(()).is_ok() {
            let _ = self.go_on.lock().expect("no panic").recv();
        }
    }
}

impl Gate {
    fn wait(&self) {
        self.reached.recv().expect("the thread gets there");
    }

    fn open(&self) {
        self.go_on.send(()).expect("the thread waits");
    }
}

/// Stops whenever the outbox's thread begins a new origin, which it does while it checks a transaction.
struct StoppingEntropy(Stop);

impl Entropy for StoppingEntropy {
    fn fill(&self, bytes: &mut [u8]) -> io::Result<()> {
        self.0.here();
        SystemEntropy.fill(bytes)
    }
}

/// Stops before a state becomes the current one.
struct StoppingHome {
    stop: Option<Stop>,
    fails: bool,
    current: PathBuf,
}

impl StateStorage for StoppingHome {
    fn make_current(&mut self, path: &Path) -> Result<(), String> {
        if let Some(stop) = &self.stop {
            stop.here();
        }
        if self.fails {
            return Err("the directory was not synced".into());
        }
        self.current = path.to_owned();
        Ok(())
    }

    fn is_current(&self, path: &Path) -> bool {
        self.current == path
    }

    fn remove_others(&mut self, _: &Path) -> Result<(), String> {
        Ok(())
    }
}

/// A replica of which the log has lost the second entry, which this member had made.
struct Running {
    shared: Arc<ReplicaState>,
    applier: mpsc::Sender<applier::Request>,
    outbox: mpsc::Sender<outbox_writer::Request>,
    fs: MemoryFs,
    directory: tempfile::TempDir,
    new: StateStore,
}

type Answer = oneshot::Receiver<Result<Receipt, SubmitError>>;

const OUTBOX: &str = "/outbox";

fn log_of(number: u64, txns: &[Txn]) -> StateStore {
    let state = StateStore::in_memory();
    let lineage = (1..=number).map(|number| generation(number, number - 1)).collect();
    state.init(LogId([1; 16]), Generation(number), lineage).expect("begins");
    let member = MemberName::new("m").expect("name");
    let entry = |(seq, txn): (u64, &Txn)| Entry {
        seq: Seq(seq),
        time_ms: seq,
        member: member.clone(),
        body: EntryBody::Commit(txn.clone()),
    };
    let entries: Vec<Entry> = (1..).zip(txns).map(entry).collect();
    state.apply(&entries, Chain::default()).expect("applies");
    state
}

impl Running {
    fn start(home: StoppingHome, entropy: Arc<dyn Entropy>) -> Running {
        let shared_txn = txn(OTHER, 1, &[("x", Some("shared"))], vec![]);
        let lost = txn(ME, 1, &[("y", Some("lost"))], vec![]);
        let old = log_of(1, &[shared_txn.clone(), lost.clone()]);
        let mut kept = Outbox::keeping();
        kept.insert(Arc::new(lost.clone()));
        kept.handle_applied(Seq(2), &EntryBody::Commit(lost)).expect("decides");
        let shared = Arc::new(ReplicaState::new(old, kept, None));
        let fs = MemoryFs::new();
        let (journal, _) = Journal::open(Arc::new(fs.clone()), Path::new(OUTBOX)).expect("opens");
        let writer = OutboxWriter::new(Arc::clone(&shared), journal, Arc::new(SystemClock), entropy);
        let (outbox, requests) = mpsc::channel(64);
        std::thread::spawn(move || writer.run(requests));
        let worker = Applier::new(Arc::clone(&shared), Box::new(home), outbox.clone());
        let (applier, requests) = mpsc::channel(64);
        std::thread::spawn(move || worker.run(requests));
        let directory = tempfile::tempdir().expect("temp dir");
        Running { shared, applier, outbox, fs, directory, new: log_of(2, &[shared_txn]) }
    }

    /// Returns the exchange, with the queue of the outbox's thread that it uses.
    fn exchanging(&self, outbox: mpsc::Sender<outbox_writer::Request>) -> Exchanging {
        let alone = exchange::alone_now(&self.shared).expect("no other exchange");
        let mine = self.shared.position().expect("a position");
        let set = leaves::set_of(&mine, Generation(2), Seq(1));
        let leaving = Leaving::new(Arc::clone(&self.shared), self.new.clone(), set).expect("reads");
        let exchange = Arc::new(leaving.choose(Some(&Others::default())).expect("reads"));
        let course = Course::new(exchange, PathBuf::from("side"), Arc::new(SystemEntropy), alone);
        Exchanging { course, applier: self.applier.clone(), outbox, directory: self.directory.path().to_owned() }
    }

    fn submit(&self, key: &str) -> Answer {
        let (reply, answer) = oneshot::channel();
        let ops = vec![Op::Put {
            collection: Collection::new("c").expect("name"),
            key: Key::new(key).expect("key"),
            value: Bytes::new(),
        }];
        self.outbox
            .blocking_send(outbox_writer::Request::Submit(Draft { ops, ..Draft::default() }, reply))
            .expect("runs");
        answer
    }

    /// Waits until the applier has handled everything.
    fn pass(&self) {
        let (reply, passed) = oneshot::channel();
        self.applier.blocking_send(applier::Request::Barrier(reply)).expect("runs");
        passed.blocking_recv().expect("runs");
    }

    /// Returns the keys that pending transactions write, in memory and in the journal after a power cut.
    fn pending(&self) -> Vec<String> {
        let keys = |outbox: &Outbox| -> Vec<String> {
            outbox.pending().flat_map(|txn| txn.ops.iter().map(|op| op.key().to_string()).collect::<Vec<_>>()).collect()
        };
        let left = self.fs.crash(Survival::Nothing, 1);
        let (_, records) = Journal::open(Arc::new(left), Path::new(OUTBOX)).expect("opens");
        let records: Vec<(u8, Vec<u8>)> = records.into_iter().map(|record| (record.kind, record.payload)).collect();
        let (restored, _) = restore(&records, &self.shared.state(), Outbox::keeping()).expect("is valid");
        let held = keys(&self.shared.outbox());
        assert_eq!(keys(&restored), held, "journal and memory");
        held
    }
}

fn accepted(answer: Answer) -> TxnId {
    answer.blocking_recv().expect("answered").expect("accepted").id()
}

fn home() -> StoppingHome {
    StoppingHome { stop: None, fails: false, current: PathBuf::new() }
}

/// Passes the messages of an exchange on to the outbox's thread. `before` is called with each of its steps.
fn relay(
    mut queue: mpsc::Receiver<outbox_writer::Request>,
    outbox: mpsc::Sender<outbox_writer::Request>,
    mut before: impl FnMut(),
) {
    let Some(outbox_writer::Request::Exchange(steps)) = queue.blocking_recv() else { panic!("an exchange") };
    let (onward, receiver) = channel();
    outbox.blocking_send(outbox_writer::Request::Exchange(receiver)).expect("runs");
    while let Ok(step) = steps.recv() {
        before();
        if onward.send(step).is_err() {
            return;
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("builds")
}

#[test]
fn p01_what_is_accepted_while_an_exchange_is_requested_is_in_the_next_outbox() {
    let (stop, gate) = stop();
    let running = Running::start(home(), Arc::new(StoppingEntropy(stop)));
    // The outbox's thread is checking a transaction when the exchange is requested.
    let first = running.submit("first");
    gate.wait();
    let (queue, requests) = mpsc::channel(4);
    let runtime = runtime();
    let exchanged = runtime.spawn(running.exchanging(queue).run());
    let outbox = running.outbox.clone();
    // It goes on only when the next outbox is about to be made.
    let mut gate = Some(gate);
    let relaying = std::thread::spawn(move || {
        relay(requests, outbox, || {
            if let Some(gate) = gate.take() {
                gate.open();
            }
        });
    });
    runtime.block_on(exchanged).expect("no panic").expect("is exchanged");
    relaying.join().expect("no panic");
    accepted(first);
    assert_eq!(running.pending(), ["y", "first"]);
    assert_eq!(running.shared.position().map(|position| position.seq), Some(Seq(1)));
}

#[test]
fn p01_what_is_submitted_while_the_state_is_replaced_waits_for_the_next_outbox() {
    let (stop, gate) = stop();
    let running = Running::start(StoppingHome { stop: Some(stop), ..home() }, Arc::new(SystemEntropy));
    let before = accepted(running.submit("before"));
    let mut changes = running.shared.changes.subscribe();
    let runtime = runtime();
    let exchanged = runtime.spawn(running.exchanging(running.outbox.clone()).run());
    gate.wait();
    let meanwhile = [running.submit("a"), running.submit("b")];
    gate.open();
    runtime.block_on(exchanged).expect("no panic").expect("is exchanged");
    let ids = meanwhile.map(accepted);
    // Who has read everything again when the state was replaced has not seen the next outbox.
    let replaced =
        std::iter::from_fn(|| changes.try_recv().ok()).filter(|change| matches!(change, Change::Replaced { .. }));
    assert_eq!(replaced.count(), 2);
    assert!(ids.iter().all(|id| id.origin != before.origin), "numbered for the next outbox: {ids:?}");
    assert_eq!(running.pending(), ["y", "before", "a", "b"]);
}

#[test]
fn p01_an_exchange_whose_task_ends_is_complete_or_has_not_happened() {
    let (stop, gate) = stop();
    let running = Running::start(StoppingHome { stop: Some(stop), ..home() }, Arc::new(SystemEntropy));
    let history = running.shared.histories.present();
    let runtime = runtime();
    let exchanging = runtime.spawn(running.exchanging(running.outbox.clone()).run());
    // The state is about to be replaced when the process closes.
    gate.wait();
    exchanging.abort();
    assert!(runtime.block_on(exchanging).is_err_and(|error| error.is_cancelled()));
    gate.open();
    running.pass();
    accepted(running.submit("after"));
    assert_ne!(running.shared.histories.present(), history);
    assert_eq!(running.pending(), ["y", "after"], "the lost change is pushed again");
}

#[test]
fn p07_a_state_that_is_not_replaced_leaves_the_outbox_as_it_was() {
    let (stop, gate) = stop();
    let running = Running::start(StoppingHome { stop: Some(stop), fails: true, ..home() }, Arc::new(SystemEntropy));
    let before = accepted(running.submit("before"));
    let runtime = runtime();
    let exchanged = runtime.spawn(running.exchanging(running.outbox.clone()).run());
    gate.wait();
    let meanwhile = running.submit("meanwhile");
    gate.open();
    let failed = runtime.block_on(exchanged).expect("no panic").expect_err("the state is not replaced");
    assert!(failed.to_string().contains("the directory was not synced"), "{failed}");
    let id = accepted(meanwhile);
    assert_eq!((id.origin, id.counter), (before.origin, before.counter.next()));
    assert_eq!(running.pending(), ["before", "meanwhile"]);
}

#[test]
fn p05_a_state_that_has_moved_since_it_was_archived_is_not_replaced() {
    let running = Running::start(home(), Arc::new(SystemEntropy));
    let (queue, requests) = mpsc::channel(4);
    let runtime = runtime();
    let exchanged = runtime.spawn(running.exchanging(queue).run());
    let (outbox, shared) = (running.outbox.clone(), Arc::clone(&running.shared));
    let relaying = std::thread::spawn(move || {
        relay(requests, outbox, || {
            let entry = Entry { seq: Seq(3), ..entry(3, "later") };
            let _ = shared.state().apply(&[entry], Chain::default());
        });
    });
    let failed = runtime.block_on(exchanged).expect("no panic").expect_err("the state is not replaced");
    assert!(matches!(&failed, LinkError::Resync(why) if why.contains("archived again")), "{failed}");
    relaying.join().expect("no panic");
    assert_eq!(running.shared.position().map(|position| position.seq), Some(Seq(3)));
    accepted(running.submit("after"));
    assert_eq!(running.pending(), ["after"]);
}

/// A connection ended while its entries were queued, and the log continued without them.
#[test]
fn p05_no_generation_is_adopted_upon_entries_of_the_former_one_that_are_still_queued() {
    let running = Running::start(home(), Arc::new(SystemEntropy));
    let linker = LinkDriver {
        shared: Arc::clone(&running.shared),
        applier: running.applier.clone(),
        outbox: running.outbox.clone(),
        connector: Arc::new(super::exchange::Counting::default()),
        external_addr: None,
        directory: running.directory.path().to_owned(),
        cache_bytes: CACHE_BYTES,
        heartbeat_ms: 1000,
        fetching: Mutex::default(),
    };
    let welcome = |number| Welcome {
        version: 1,
        software: String::new(),
        member: "m".into(),
        role: "webserver".into(),
        log_id: LogId([1; 16]),
        generation: Generation(number),
        lineage: vec![generation(1, 0), generation(2, 2)],
        head: Seq(2),
        horizon: Seq(0),
        verdict: None,
        heartbeat_ms: 1000,
        txn_bytes_max: 1,
        value_bytes_max: 1,
        key_bytes_max: 1,
    };
    let runtime = runtime();
    let queue = |seq| {
        let entries = vec![entry(seq, "queued")];
        let run = EntryBatch { entries, chain: Chain::default() };
        running.applier.blocking_send(applier::Request::Run(run)).expect("runs");
    };
    runtime.block_on(crate::rejoin::pass_former(&linker, &welcome(2))).expect("nothing is queued");
    queue(3);
    runtime.block_on(crate::rejoin::pass_former(&linker, &welcome(1))).expect("the log is the same");
    running.pass();
    queue(4);
    let failed = runtime.block_on(crate::rejoin::pass_former(&linker, &welcome(2))).expect_err("compared again");
    assert!(failed.to_string().contains("applied meanwhile"), "{failed}");
    assert_eq!(running.shared.position().map(|position| position.seq), Some(Seq(4)));
}

#[test]
fn p05_a_second_exchange_waits_for_the_first_and_its_decisions_are_void_after_it() {
    let running = Running::start(home(), Arc::new(SystemEntropy));
    let runtime = runtime();
    let second = running.exchanging(running.outbox.clone());
    assert!(exchange::alone_now(&running.shared).is_none(), "one at a time");
    // A task that was given up before it began does not keep others from it.
    drop(second);
    let first = running.exchanging(running.outbox.clone());
    runtime.block_on(first.run()).expect("is exchanged");
    let mine = running.shared.position().expect("a position");
    assert_eq!(mine.generation, Generation(2));
    assert!(exchange::alone_now(&running.shared).is_some());
}
