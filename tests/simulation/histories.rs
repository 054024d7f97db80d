//! Members that abandon a lost history, repeatedly: a log that is lost back to an earlier sequence one to three times,
//! two or three replicas with few objects, and crashes between any two steps of an exchange. `docs/testing.md`
//! describes the checks.
//!
//! `GRAVWELL_HISTORIES=100000 cargo test --profile sim -p gravwell-tests --test simulation histories -- --nocapture`
//! `GRAVWELL_SEED=17 cargo test --profile sim -p gravwell-tests --test simulation histories_again -- --nocapture`

mod log;
mod member;
mod oracle;
mod session;
mod world;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use world::World;

/// Number of a change made by a client.
pub type Number = usize;

/// Seeds that once violated a condition.
const REGRESSIONS: &[(u64, &str)] = &[
    (5, "the filler of a rejected change was put on the rejected list at a start between two steps"),
    (103, "a rejected change counted as the deletion of an object, where only later deletions were known"),
    (752, "a pending change that the current log had rejected was gone without an answer"),
    (922, "the same, for a member within the shared history"),
    (1009, "a change that was rejected in the lost history counted as seen, and was overwritten unseen"),
    (1581, "a pending change based on a lost write was committed based on another one of its sequence"),
    (2330, "the same, where a power cut had rolled the state back before that write"),
    (6863, "a local change was pushed again after a later one of another member"),
    (8786, "a deleted object was visible until the local deletion that followed it was pushed"),
];

/// Returns whether an injected fault concerns abandoning a history.
#[cfg(feature = "fault-injection")]
pub fn concern(bug: gravwell_model::fault_injection::Bug) -> bool {
    use gravwell_model::fault_injection::Bug;
    matches!(
        bug,
        Bug::ConditionsNotTranslated
            | Bug::PresentNotTranslated
            | Bug::ReadsNotTranslated
            | Bug::ArchiveSkipped
            | Bug::ArchivedNotListed
            | Bug::PreparedTooLate
            | Bug::OvertakenPushedAgain
            | Bug::AgainUnconditioned
            | Bug::DeletedMeanwhileReturns
            | Bug::FillerIsRejected
            | Bug::DecidedForgotten
            | Bug::RejectedCountsAsSeen
            | Bug::UponLostStays
            | Bug::SequencesForgotten
            | Bug::DeletionsKeptWithPuts
            | Bug::SeenDeletionsNotArchived
            | Bug::UndoneDeletionNotListed
            | Bug::LeftUnchecked
            | Bug::GenerationBeforeSwap
    )
}

/// Number of failing seeds after which a run stops.
const FAILURES_MAX: usize = 10;

#[derive(Default)]
pub struct Report {
    pub seeds: u64,
    pub checks: u64,
    pub times: BTreeMap<&'static str, u64>,
    pub failures: Vec<(u64, String)>,
}

/// Runs one seed; a panic counts as a violated condition.
fn run_one(seed: u64) -> (Option<World>, Result<(), String>) {
    let run = std::panic::catch_unwind(|| {
        let mut world = World::new(seed, false);
        let result = world.run();
        (Some(world), result)
    });
    run.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        (None, Err(format!("panic: {}", text.unwrap_or_default())))
    })
}

/// Runs `count` seeds from `from` on; stops early after `failures_max` failures.
pub fn run_until(from: u64, count: u64, failures_max: usize) -> Report {
    let (next, report) = (AtomicU64::new(from), Mutex::new(Report::default()));
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let locked = || report.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while locked().failures.len() < failures_max {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count {
                        return;
                    }
                    let (world, result) = run_one(seed);
                    let mut report = locked();
                    report.seeds += 1;
                    if let Some(world) = world {
                        report.checks += world.checks();
                        for (what, times) in world.times {
                            *report.times.entry(what).or_default() += times;
                        }
                    }
                    report.failures.extend(result.err().map(|broken| (seed, broken)));
                }
            });
        }
    });
    let mut report = report.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    report.failures.sort();
    report
}

#[test]
fn histories() {
    let count = super::number("GRAVWELL_HISTORIES", 2000);
    let started = std::time::Instant::now();
    let report = run_until(super::number("GRAVWELL_FROM", 0), count, FAILURES_MAX);
    println!(
        "{} worlds in {:.0} s, {} checks: {:?}",
        report.seeds,
        started.elapsed().as_secs_f64(),
        report.checks,
        report.times
    );
    for (seed, broken) in &report.failures {
        println!("FAILED seed {seed}: {broken}");
        println!(
            "  again: GRAVWELL_SEED={seed} cargo test --profile sim -p gravwell-tests --test simulation histories_again -- \
             --nocapture"
        );
    }
    assert!(report.failures.is_empty(), "{:?}", report.failures);
}

#[test]
fn histories_again() {
    let Ok(seed) = std::env::var("GRAVWELL_SEED") else { return };
    let mut world = World::new(seed.parse().expect("GRAVWELL_SEED is a number"), true);
    if let Err(broken) = world.run() {
        panic!("seed {seed}: {broken}");
    }
}

#[test]
fn histories_that_once_broke_a_condition_stay_fixed() {
    for (seed, found) in REGRESSIONS {
        let (_, result) = run_one(*seed);
        assert!(result.is_ok(), "seed {seed} ({found}): {result:?}");
    }
}

#[test]
fn histories_of_one_seed_are_the_same() {
    for seed in 0..20 {
        let times = || {
            let world = run_one(seed).0.expect("no condition is broken");
            (world.log.past.chain_at(world.log.past.head()), world.times)
        };
        assert_eq!(times(), times(), "seed {seed}");
    }
}
