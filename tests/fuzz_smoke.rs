//! Runs the fuzz targets on their seeds and on many mutations of them: the short run that works everywhere.
//!
//! `GRAVWELL_FUZZ_SECONDS` sets the duration, `GRAVWELL_SEED` the random seed, and `GRAVWELL_FUZZ_TARGET` selects one
//! target. A failing input is kept, and the command that runs it alone (`GRAVWELL_FUZZ_INPUT`) is printed.
#![allow(missing_docs)]

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use gravwell_model::codec::message::{self, Kind, Outcome, RefusalCode, Refused, Row, TxnOutcome};
use gravwell_model::codec::txn::encode_txn;
use gravwell_model::{Chain, Digest, Generation, LineageEntry, LogId, Origin, OriginCounter, OriginRow, Position};
use gravwell_model::{Collection, Key, Reason, Seq, TxnId, Verdict};
use gravwell_tests::fuzzing::{TARGETS, run, steps::Steps};

const SECONDS: u64 = 20;
const INPUT_BYTES_MAX: usize = 4096;

struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize) % bound.max(1)
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.below(256) as u8).collect()
    }
}

/// Returns a new input: a seed or noise, with some bytes changed, removed, repeated, or copied from another seed.
fn input(seeds: &[Vec<u8>], dice: &mut Rng) -> Vec<u8> {
    let noise = dice.below(seeds.len() + 2) >= seeds.len();
    let length = dice.below(300);
    let mut bytes = if noise { dice.bytes(length) } else { seeds[dice.below(seeds.len())].clone() };
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len() + 1);
        match dice.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
            1 if at < bytes.len() => bytes[at] = dice.below(256) as u8,
            2 => bytes.truncate(at),
            3 => bytes.insert(at, dice.below(256) as u8),
            4 if at < bytes.len() => drop(bytes.remove(at)),
            5 if at < bytes.len() => bytes[at] = [0, 1, 127, 128, 255][dice.below(5)],
            6 => {
                let end = at + dice.below(bytes.len() - at + 1).min(64);
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            7 if !seeds.is_empty() => {
                let other = &seeds[dice.below(seeds.len())];
                bytes.truncate(at);
                bytes.extend(&other[dice.below(other.len() + 1)..]);
            }
            _ => {}
        }
    }
    bytes.truncate(INPUT_BYTES_MAX);
    bytes
}

fn messages() -> Vec<Vec<u8>> {
    let (collection, key) = (Collection::new("c").expect("name"), Key::new("k").expect("key"));
    let id = TxnId { origin: Origin([7; 16]), counter: OriginCounter(3) };
    let lineage = vec![LineageEntry { generation: Generation(1), shared_to: Seq(0) }];
    let (log_id, generation, chain, digest) = (LogId([1; 16]), Generation(1), Chain::default(), Digest::ZERO);
    let position = Position { log_id, generation, seq: Seq(300), chain, digest };
    let refused = Refused { code: RefusalCode::Busy, message: "later".into() };
    let reason = Reason::ConditionFailed { condition: "absent c/k".into(), found: Some(Seq(4)) };
    let mut row = OriginRow::default();
    row.record(Seq(9), OriginCounter(3), OriginCounter(0), Some(reason.clone()));
    let value = Bytes::from_static(b"value");
    let rows = vec![
        Row::Object { collection, key, version: Seq(7), time_ms: 1_700_000_000_000, value },
        Row::Origin { origin: Origin([7; 16]), row },
    ];
    let txn = Steps::new(&[9, 3, 1, 2, 5, 1, 1, 3, 2, 1, 2, 7]).txn(id, Seq(5));
    let mut push = Vec::new();
    encode_txn(&txn, &mut push);
    let welcome = message::Welcome {
        version: 1,
        software: "gravwell".into(),
        member: "a".into(),
        role: "webserver".into(),
        log_id,
        generation,
        lineage: lineage.clone(),
        head: Seq(300),
        horizon: Seq(9),
        verdict: Some(Verdict::Behind),
        heartbeat_ms: 5000,
        txn_bytes_max: 1 << 22,
        value_bytes_max: 1 << 20,
        key_bytes_max: 1 << 10,
    };
    let hello = message::Hello {
        version_min: 1,
        version_max: 1,
        software: "gravwell".into(),
        position: Some(position),
        external_addr: Some("192.0.2.1:80".into()),
    };
    let begin = message::SnapshotBegin { position, lineage, time_ms: 5, objects: 1, bytes: 7 };
    let progress = message::Progress { applied: Seq(5), outbox: 1, rejected: 2, unhealthy: Some("no".into()) };
    vec![
        message::encode(Kind::Open, &message::Open::Push),
        message::encode(Kind::Hello, &hello),
        message::encode(Kind::Welcome, &welcome),
        message::encode(Kind::Refused, &refused),
        message::encode(Kind::Subscribe, &message::Subscribe { from: Seq(300) }),
        message::encode(Kind::Progress, &progress),
        message::encode(Kind::Heartbeat, &message::Heartbeat { head: Seq(9), floor: Seq(3), time_ms: 7 }),
        message::encode(Kind::Compacted, &message::Compacted { horizon: Seq(9) }),
        message::encode(Kind::Bookmark, &message::Bookmark { seq: Seq(9), digest }),
        message::encode_raw(Kind::Push, &push),
        message::encode(Kind::Outcome, &Outcome { id, fate: TxnOutcome::Rejected(Seq(9), reason) }),
        message::encode(Kind::Outcome, &Outcome { id, fate: TxnOutcome::Deferred(refused) }),
        message::encode(Kind::SnapshotBegin, &begin),
        message::encode(Kind::Rows, &rows),
        message::encode(Kind::SnapshotEnd, &message::SnapshotEnd { rows: 2, digest, chain }),
    ]
}

/// Returns generated seeds, in the format written by this version.
fn made(name: &str) -> Vec<Vec<u8>> {
    let body = |message: &Vec<u8>| message[message::HEADER_BYTES..].to_vec();
    let messages = messages();
    match name {
        "messages" => [messages.clone(), vec![messages.concat()]].concat(),
        "rows" => vec![body(&messages[13])],
        "entries" => {
            let push = body(&messages[9]);
            let record = |kind: u8, payload: &[u8]| [&[kind, payload.len() as u8], payload].concat();
            let id = &push[1..18];
            let rejected = [id, &[9, 3]].concat();
            let all = [record(0, &push), record(1, &rejected), record(2, id)];
            vec![all[0].clone(), all[..2].concat(), all.concat()]
        }
        _ => Vec::new(),
    }
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the root").join("fuzz/seeds").join(name);
    let kept = fs::read_dir(corpus).into_iter().flatten().map(|entry| entry.expect("entry").path());
    let mut kept: Vec<PathBuf> = kept.collect();
    kept.sort();
    kept.into_iter().map(|path| fs::read(path).expect("reads")).chain(made(name)).collect()
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs one input; a failing input is kept.
fn check(name: &str, bytes: &[u8]) {
    if let Err(panic) = catch_unwind(|| run(name, bytes)) {
        let path = std::env::temp_dir().join(format!("gravwell-fuzz-{name}-{:08x}", crc32c::crc32c(bytes)));
        let _ = fs::write(&path, bytes);
        eprintln!("{name} fails on {} bytes: {bytes:?}", bytes.len());
        eprintln!("GRAVWELL_FUZZ_TARGET={name} GRAVWELL_FUZZ_INPUT={} cargo test --test fuzz_smoke", path.display());
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn no_target_fails_on_seeds_and_mutations() {
    let only = std::env::var("GRAVWELL_FUZZ_TARGET").ok();
    let targets: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    let targets: Vec<&str> =
        targets.into_iter().filter(|name| only.as_deref().is_none_or(|only| only == *name)).collect();
    assert!(!targets.is_empty(), "no such target: {only:?}");
    if let Ok(path) = std::env::var("GRAVWELL_FUZZ_INPUT") {
        let bytes =
            fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the root").join(path)).expect("reads");
        return targets.iter().for_each(|name| run(name, &bytes));
    }
    let each = Duration::from_secs(number("GRAVWELL_FUZZ_SECONDS", SECONDS)) / targets.len() as u32;
    let mut counts = Vec::new();
    for name in targets {
        let seeds = seeds(name);
        let mut dice = Rng(number("GRAVWELL_SEED", 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        check(name, &[]);
        seeds.iter().for_each(|seed| check(name, seed));
        let (started, mut count) = (Instant::now(), 0u64);
        while started.elapsed() < each {
            for _ in 0..20 {
                check(name, &input(&seeds, &mut dice));
            }
            count += 20;
        }
        counts.push(format!("{name} {count}"));
    }
    println!("inputs: {}", counts.join(", "));
}
