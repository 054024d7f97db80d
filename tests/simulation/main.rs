//! Deterministic simulation: a datastore and two to six replicas from one seed, with all known kinds of faults,
//! checked by an oracle that is derived from the guarantees alone. `docs/testing.md` describes how to run more of it.
//!
//! `GRAVWELL_SEEDS=5000 cargo test --profile sim -p gravwell-tests --test simulation seeds -- --nocapture`
//! `GRAVWELL_WITH=OldCopy,ReplicaRolledBack` runs only seeds with these faults.
//! `GRAVWELL_SEED=17 cargo test --profile sim -p gravwell-tests --test simulation replay -- --nocapture`
#![allow(missing_docs, reason = "a test")]

mod checks;
mod client;
mod copies;
mod datastore;
mod engine;
mod faults;
mod histories;
#[cfg(feature = "fault-injection")]
mod injected_faults;
mod network;
mod oracle;
mod outbox;
mod plan;
mod replica;
mod rights;
mod runner;
mod server;
mod server_session;
mod session;
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
    (11_708, "a partial new segment was left behind"),
    (111, "the head of a journal was written over the durable slot"),
    (87, "a torn slot of a journal's head was considered durable"),
    (544, "a torn slot of a journal's head was considered durable"),
    (1541, "a state that went back was considered sound once it followed a later generation"),
    (2663, "the oracle counted the first report of a member that went back as progress"),
    (4278, "the oracle forgot that the state in a copied directory had gone back"),
    (5119, "the oracle started a compaction while another one was running, and failed"),
    (5158, "an aborted fetch of a state left a directory"),
    (7348, "the oracle's import reused a counter that may have been accepted"),
    (7555, "a journal's head that was opened on a full disk was overwritten in the durable slot"),
    (1701, "the oracle relied on the report of a damaged state after the directory was replaced"),
    (7731, "the oracle knew the position of a state from its mark only"),
    (8276, "the oracle counted segments that a compaction replaced and could not remove"),
    (6293, "the oracle did not count the remembered rejections of ended origins"),
    (6078, "a state known to differ reported a committed transaction as a different one"),
    (6725, "a state known to differ reported a committed transaction as a different one"),
    (
        3485,
        "an origin with rejected later transactions was not in the mark, and its committed transactions were shown as \
         pending",
    ),
    (1749, "the oracle expected a rejection in a directory that was replaced by an older copy after the push"),
    (13_475, "the oracle knew only one outcome of a transaction that its author submitted again"),
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
fn violations_found_earlier_stay_fixed() {
    for (seed, found) in REGRESSIONS {
        let (_, result) = World::new(*seed, false).run();
        assert!(result.is_ok(), "seed {seed} ({found}): {result:?}");
    }
}
