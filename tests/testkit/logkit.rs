//! Shared parts of the test campaigns against the log: a history, and checks of the contents of a log.
#![allow(missing_docs, clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use gravwell_env::memory_fs::{MemoryFs, SmallRandom};
use gravwell_log::{
    Compaction, CompactionOptions, CompactionReport, Log, LogOptions, MemoryLiveness, OpenError, RecoveryReport,
};
use gravwell_model::{
    Collection, Entry, EntryBody, Generation, Key, Lineage, LogId, MemberName, Op, Origin, OriginCounter, OriginRow,
    Reason, Seq, Txn, TxnId,
};

pub fn log_dir() -> PathBuf {
    PathBuf::from("/d/log")
}

pub fn outbox_dir() -> PathBuf {
    PathBuf::from("/d/outbox")
}

/// Returns whether the environment variable requests all cases instead of a sample.
pub fn is_full(variable: &str) -> bool {
    std::env::var(variable).is_ok_and(|value| value == "all")
}

pub fn options() -> LogOptions {
    LogOptions { segment_bytes: 1500, reserve_bytes: 0, ..LogOptions::default() }
}

pub fn open(fs: &MemoryFs) -> Result<(Log, RecoveryReport), OpenError> {
    Log::open(Arc::new(fs.clone()), &log_dir(), options())
}

fn op(random: &mut SmallRandom, seq: u64) -> Op {
    let (collection, key) = (Collection::new("c").unwrap(), Key::new(format!("k{}", random.below(20))).unwrap());
    if random.below(4) == 0 {
        return Op::Delete { collection, key };
    }
    let length = if random.below(20) == 0 { 1200 } else { random.below(70) };
    Op::Put { collection, key, value: Bytes::from(vec![seq as u8; length]) }
}

/// Returns entries 1 to `count`: few keys, so most entries are soon superseded; three origins, rejections, deletes,
/// sizes from empty to nearly a segment.
pub fn history(count: u64) -> Vec<Entry> {
    let mut random = SmallRandom(42);
    let (mut counters, mut rejected) = ([0; 3], [0; 3]);
    let mut next = |seq: u64| {
        let who = random.below(3);
        counters[who] += 1;
        let id = TxnId { origin: Origin([who as u8 + 1; 16]), counter: OriginCounter(counters[who]) };
        let body = if random.below(9) == 0 {
            rejected[who] = counters[who];
            let reason = Reason::Forbidden { message: format!("no {seq}") };
            EntryBody::Reject { id, settled: OriginCounter(0), reason }
        } else {
            let settled = OriginCounter(if random.below(3) == 0 { rejected[who] } else { 0 });
            let ops = (0..1 + random.below(3)).map(|_| op(&mut random, seq)).collect();
            let (note, conditions) = (Bytes::from_static(b"note"), Vec::new());
            EntryBody::Commit(Txn { id, settled, time_ms: 900 + seq, note, conditions, ops })
        };
        Entry { seq: Seq(seq), time_ms: 1_000 + seq, member: MemberName::new("web1").unwrap(), body }
    };
    (1..=count).map(&mut next).collect()
}

pub fn compact(log: &Log, target: u64) -> Result<CompactionReport, String> {
    let mut index = MemoryLiveness::default();
    let options = CompactionOptions { garbage_ratio: 0.0, segment_bytes: 1500, dry_run: false };
    let compaction = Compaction::new(log.reader(), &mut index, Seq(target), options);
    compaction.and_then(Compaction::run).map_err(|error| error.to_string())
}

/// State after replaying entries.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    objects: BTreeMap<(String, String), (Seq, Bytes)>,
    origins: BTreeMap<Origin, OriginRow>,
}

impl Model {
    pub fn of<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Model {
        let mut model = Model::default();
        entries.into_iter().for_each(|entry| model.apply(entry));
        model
    }

    fn apply(&mut self, entry: &Entry) {
        let (id, settled, reason) = match &entry.body {
            EntryBody::Commit(txn) => {
                for op in &txn.ops {
                    let name = (op.collection().to_string(), op.key().to_string());
                    match op.value() {
                        Some(value) => self.objects.insert(name, (entry.seq, value.clone())),
                        None => self.objects.remove(&name),
                    };
                }
                (txn.id, txn.settled, None)
            }
            EntryBody::Reject { id, settled, reason } => (*id, *settled, Some(reason.clone())),
            EntryBody::Redacted { .. } | EntryBody::Unknown { .. } => return,
        };
        self.origins.entry(id.origin).or_default().record(entry.seq, id.counter, settled, reason);
    }
}

/// The complete contents of a log.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    pub log_id: LogId,
    pub generation: Generation,
    pub lineage: Lineage,
    pub head: Seq,
    pub chain: [u8; 16],
    pub horizon: Seq,
    pub base: Vec<Entry>,
    pub tail: Vec<Entry>,
}

pub fn picture(log: &Log) -> Result<Picture, String> {
    let reader = log.reader();
    let text = |error: gravwell_log::ReadError| error.to_string();
    let (head, chain) = log.head();
    Ok(Picture {
        log_id: log.log_id(),
        generation: log.generation(),
        lineage: log.lineage(),
        head,
        chain,
        horizon: log.horizon(),
        base: reader.base_entries().collect::<Result<_, _>>().map_err(text)?,
        tail: reader.entries(log.horizon(), head).collect::<Result<_, _>>().map_err(text)?,
    })
}

/// Checks that a log contains the first entries of a history up to its head: none missing, changed or invented.
#[track_caller]
pub fn check(log: &Log, all: &[Entry], context: &str) -> Picture {
    let found = picture(log).unwrap_or_else(|error| panic!("{context}: {error}"));
    let (horizon, head) = (found.horizon.0 as usize, found.head.0 as usize);
    assert!(head <= all.len(), "{context}: {head} records");
    assert_eq!(found.tail, all[horizon..head], "{context}");
    assert_eq!(Model::of(&found.base), Model::of(&all[..horizon]), "{context}: at the horizon {horizon}");
    found
}
