//! Clients of running processes, over their local sockets: writers that continue through all faults and record every
//! reply, readers that sample, and a collector of the whole log.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gravwell_model::codec::admin::{Request, Status};
use gravwell_model::codec::frame::CHAIN_START;
use gravwell_model::codec::message::{self, Kind, Outcome, Row, TxnOutcome};
use gravwell_model::codec::payload::decode_frames;
use gravwell_model::codec::txn::encode_txn;
use gravwell_model::{Chain, Collection, Condition, Entry, Key, Op, Origin, OriginCounter, Seq, Txn, TxnId};
use gravwell_transport::{local, wire};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use crate::fleet::Rng;
use crate::model::{Sample, Told, Wish};

/// Timeout of one response, because a process may be paused or its datastore unreachable.
const ANSWER: Duration = Duration::from_millis(1500);
/// Maximum time that a writer tries to submit one transaction.
const GIVE_UP: Duration = Duration::from_secs(60);
const COLLECTIONS: [&str; 2] = ["dashboards", "users"];
const KEYS: u64 = 40;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// All requests and observations of clients.
#[derive(Default)]
pub struct Ledger {
    pub wishes: Mutex<HashMap<TxnId, Wish>>,
    pub told: Mutex<Vec<(TxnId, Told)>>,
    pub samples: Mutex<Vec<Sample>>,
    /// Digests by sequence, with the process that reported each first.
    pub digests: Mutex<BTreeMap<u64, (String, String)>>,
    pub stop: AtomicBool,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn connect(dir: &Path) -> std::io::Result<UnixStream> {
    let (_handle, path) = local::short_path(dir)?;
    UnixStream::connect(path).await
}

/// Sends one request to a running process and returns all messages of the response.
pub async fn ask(dir: &Path, request: &Request, patience: Duration) -> Result<Vec<(Kind, Bytes)>, Failure> {
    let asking = async {
        let mut stream = connect(dir).await?;
        wire::send_json(&mut stream, Kind::AdminRequest, request).await?;
        let mut pieces = Vec::new();
        loop {
            match wire::read(&mut stream).await?.ok_or("the process exited")? {
                (Kind::AdminEnd, _) => return Ok(pieces),
                (Kind::AdminError, body) => return Err(String::from_utf8_lossy(&body).into_owned().into()),
                piece => pieces.push(piece),
            }
        }
    };
    timeout(patience, asking).await.map_err(|_| "no response")?
}

/// A writer at one process.
pub struct Writer {
    pub dir: PathBuf,
    pub origin: Origin,
    /// Whether it waits for the datastore's decision.
    pub waits: bool,
    pub pause_ms: u64,
    pub dice: Rng,
    pub ledger: Arc<Ledger>,
}

impl Writer {
    /// Writes until the ledger signals the stop; the current transaction is completed.
    pub async fn run(mut self) {
        let mut stream = None;
        let mut counter = 0;
        while !self.ledger.stop.load(Ordering::Acquire) {
            sleep(Duration::from_millis(self.dice.below(self.pause_ms.max(1)))).await;
            counter += 1;
            let id = TxnId { origin: self.origin, counter: OriginCounter(counter) };
            let (ops, conditions) = self.draft(counter).await;
            lock(&self.ledger.wishes).insert(id, (ops.clone(), conditions.clone()));
            let txn = Txn { id, settled: OriginCounter(0), time_ms: 0, note: Bytes::new(), conditions, ops };
            let told = self.submit(&mut stream, &txn).await;
            lock(&self.ledger.told).push((id, told));
        }
    }

    async fn draft(&mut self, counter: u64) -> Wish {
        let mut ops = Vec::new();
        let mut conditions = Vec::new();
        for number in 0..=self.dice.below(3) {
            let collection = Collection::new(COLLECTIONS[self.dice.below(2) as usize]).expect("a name");
            let key = Key::new(format!("k{:02}", self.dice.below(KEYS))).expect("a key");
            let (name, condition) = ((collection.clone(), key.clone()), (collection.clone(), key.clone()));
            let (collection, key) = condition;
            match self.dice.below(10) {
                0 => conditions.push(Condition::Absent { collection, key }),
                1 => conditions.push(Condition::Present { collection, key }),
                2 | 3 if number == 0 => {
                    // The value read may be stale; then the condition fails as intended.
                    if let Some((version, _)) = read(&self.dir, &name).await {
                        conditions.push(Condition::Version { collection, key, version: Seq(version) });
                    }
                }
                _ => {}
            }
            let (collection, key) = name;
            let fill = if self.dice.below(50) == 0 { 20_000 } else { self.dice.below(60) };
            let value =
                format!("{{\"w\":\"{}\",\"n\":{counter},\"x\":\"{}\"}}", self.origin, "x".repeat(fill as usize));
            ops.push(match self.dice.below(10) {
                0..3 => Op::Delete { collection, key },
                _ => Op::Put { collection, key, value: value.into() },
            });
        }
        (ops, conditions)
    }

    /// Submits a transaction repeatedly until there is a definite reply.
    async fn submit(&mut self, stream: &mut Option<UnixStream>, txn: &Txn) -> Told {
        let started = Instant::now();
        let mut again = false;
        loop {
            assert!(started.elapsed() < GIVE_UP, "no response for {:?} in {}", txn.id, self.dir.display());
            match timeout(ANSWER, self.attempt(stream, txn, again)).await {
                Ok(Ok(TxnOutcome::Committed(seq))) if again => return Told::Earlier(seq.0),
                Ok(Ok(TxnOutcome::Committed(seq))) => return Told::Committed(seq.0),
                Ok(Ok(TxnOutcome::Decided(seq))) => return Told::Earlier(seq.0),
                Ok(Ok(TxnOutcome::Rejected(seq, _))) => return Told::Rejected(seq.0),
                Ok(Ok(TxnOutcome::Queued)) => return Told::Queued,
                Ok(Ok(TxnOutcome::Gap(_) | TxnOutcome::Deferred(_)) | Err(_)) | Err(_) => {}
            }
            (again, *stream) = (true, None);
            sleep(Duration::from_millis(20 + self.dice.below(50))).await;
        }
    }

    async fn attempt(&self, stream: &mut Option<UnixStream>, txn: &Txn, again: bool) -> Result<TxnOutcome, Failure> {
        if stream.is_none() {
            let mut fresh = connect(&self.dir).await?;
            // A repetition asks only whether the transaction is durable, not how it was resolved.
            wire::send_json(&mut fresh, Kind::AdminRequest, &Request::Submit { wait: self.waits && !again }).await?;
            *stream = Some(fresh);
        }
        let stream = stream.as_mut().ok_or("no stream")?;
        let mut body = Vec::new();
        encode_txn(txn, &mut body);
        stream.write_all(&message::encode_raw(Kind::Push, &body)).await?;
        let outcome: Outcome = wire::expect(stream, Kind::Outcome).await?;
        assert_eq!(outcome.id, txn.id, "responses are in order");
        Ok(outcome.fate)
    }
}

/// Returns an object as a process shows it, if its last write is committed.
async fn read(dir: &Path, (collection, key): &(Collection, Key)) -> Option<(u64, Bytes)> {
    let request = Request::Get { collection: collection.clone(), key: key.clone(), at: None };
    let pieces = ask(dir, &request, ANSWER).await.ok()?;
    let (kind, body) = pieces.into_iter().next()?;
    let rows: Vec<Row> = message::decode(kind, &body).ok()?;
    match rows.into_iter().next()? {
        Row::Object { version, value, .. } if version > Seq::ZERO => Some((version.0, value)),
        _ => None,
    }
}

/// Samples the objects that a process shows until the ledger signals the stop.
pub async fn sample(dir: PathBuf, name: String, mut dice: Rng, ledger: Arc<Ledger>) {
    while !ledger.stop.load(Ordering::Acquire) {
        sleep(Duration::from_millis(2 + dice.below(15))).await;
        if dice.below(5) == 0 {
            let Ok(pieces) = ask(&dir, &Request::Status, ANSWER).await else { continue };
            let status: Status = serde_json::from_slice(&pieces[0].1).expect("a status");
            let (seq, digest) = (status.seq.0, status.digest.to_string());
            let mut digests = lock(&ledger.digests);
            let (first, known) = digests.entry(seq).or_insert_with(|| (name.clone(), digest.clone()));
            assert_eq!(*known, digest, "{first} and {name} differ at sequence {seq}");
            continue;
        }
        let collection = COLLECTIONS[dice.below(2) as usize];
        let key = format!("k{:02}", dice.below(KEYS));
        let object = (Collection::new(collection).expect("a name"), Key::new(key.clone()).expect("a key"));
        if let Some((version, value)) = read(&dir, &object).await {
            let sample = Sample { at: name.clone(), name: (collection.to_owned(), key), version, value };
            lock(&ledger.samples).push(sample);
        }
    }
}

/// The whole log, fetched in parts so that compaction cannot hide any of it.
pub struct Collector {
    dir: PathBuf,
    after: (Seq, Chain),
    pub log: Vec<Entry>,
}

impl Collector {
    pub fn new(dir: PathBuf) -> Collector {
        Collector { dir, after: (Seq::ZERO, CHAIN_START), log: Vec::new() }
    }

    /// Fetches new entries; returns whether the datastore responded.
    pub async fn collect(&mut self, patience: Duration) -> bool {
        let request = Request::Tail { from: self.after.0, to: None, follow: false };
        let pieces = match ask(&self.dir, &request, patience).await {
            Ok(pieces) => pieces,
            Err(error) => {
                assert!(!error.to_string().contains("compacted"), "compaction was faster: {error}");
                return false;
            }
        };
        for (kind, body) in pieces {
            assert_eq!(kind, Kind::Frames);
            let (entries, chain) = decode_frames(&body, self.after).expect("gap-free frames with an unbroken chain");
            self.after = (entries.last().map_or(self.after.0, |entry| entry.seq), chain);
            self.log.extend(entries);
        }
        true
    }
}
