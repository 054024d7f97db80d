//! Deterministic simulation: a datastore and two to six replicas from one seed, with all known kinds of faults,
//! checked by an oracle that is derived from the guarantees alone. `docs/testing.md` describes how to run more of it.
//!
//! `GRAVWELL_SEEDS=5000 cargo test --profile sim --no-default-features --test simulation seeds -- --nocapture`
//! `GRAVWELL_WITH=OldCopy,ReplicaRolledBack` runs only seeds with these faults.
//! `GRAVWELL_SEED=17 cargo test --profile sim --no-default-features --test simulation replay -- --nocapture`
#![allow(missing_docs, reason = "a test")]

mod checks;
mod client;
mod copies;
mod datastore;
mod engine;
mod faults;
mod histories;
mod network;
mod oracle;
mod outbox;
mod plan;
#[cfg(feature = "planted-bugs")]
mod planted;
mod replica;
mod rights;
mod runner;
mod server;
mod world;

use world::World;

/// Seeds that violate a guarantee when the named fault, once a real bug, is injected again.
const REGRESSIONS: &[(u64, &str)] = &[
    (22, "LogTrustsCache"),
    (13, "JournalTrustsCache"),
    (4, "RefuseWhatStays"),
    (46, "ForgetUnwritten"),
    (633, "StartsDurable"),
    (9, "JournalWithoutMarks"),
    (66, "RewriteBeforePersist"),
    (178, "FirstPositionLazy"),
    (11_708, "half a new segment stayed behind"),
    (111, "the head of a journal was written again over the slot that was durable"),
    (87, "a torn slot of a journal's head was taken for the durable one"),
    (544, "a torn slot of a journal's head was taken for the durable one"),
    (1541, "a state that went back was taken for sound once it followed a later generation"),
    (2663, "the oracle took the first report of a member that went back for progress"),
    (4278, "the oracle forgot that the state in a copied directory had gone back"),
    (5119, "the oracle compacted while another compaction was under way, and was refused"),
    (5158, "a fetch of a state that was given up left a directory"),
    (7348, "the oracle's import gave a number again that may have been taken"),
    (7555, "a journal's head that was opened on a full disk was written over where it was durable"),
    (1701, "the oracle counted on what a damaged state had reported, once the directory was replaced"),
    (7731, "the oracle knew how far a state had come from its mark alone"),
    (8276, "the oracle counted segments that a compaction replaced and could not remove"),
    (6293, "the oracle did not count the rejections that are remembered of origins that ended"),
    (6078, "a state that was known to differ said of a committed transaction that it is another one"),
    (6725, "a state that was known to differ said of a committed transaction that it is another one"),
    (
        3485,
        "an origin of which the rest was refused was not in the mark, and what it had committed was shown as if it waited",
    ),
    (
        1749,
        "the oracle expected a rejection at a directory that was replaced by an older copy after the transaction was pushed",
    ),
    (13_475, "the oracle knew of a transaction that its maker gave again only that it had been decided once"),
];

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn seeds() {
    let report = runner::run_many(number("GRAVWELL_FROM", 0), number("GRAVWELL_SEEDS", 40), true);
    println!("{report}");
    assert!(report.failures.is_empty(), "{report}");
}

#[test]
fn replay() {
    let Ok(seed) = std::env::var("GRAVWELL_SEED") else { return };
    let seed = seed.parse().expect("GRAVWELL_SEED is a number");
    let (summary, result) = World::new(seed, true).run();
    println!("seed {seed}: trace {:016x}, {} events, {} checks", summary.trace, summary.events, summary.checks);
    if let Err(violation) = result {
        panic!("seed {seed}: {}", violation.0);
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..20 {
        let (first, second) = (World::new(seed, false).run().0, World::new(seed, false).run().0);
        assert_eq!((first.trace, first.events), (second.trace, second.events), "seed {seed}");
    }
}

#[test]
fn what_was_found_once_stays_mended() {
    for (seed, found) in REGRESSIONS {
        let (_, result) = World::new(*seed, false).run();
        assert!(result.is_ok(), "seed {seed} ({found}): {result:?}");
    }
}
