//! Runs many seeds on all processors.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use super::network::SECOND;
use super::world::{Summary, World};

/// Number of failing seeds after which a run stops.
const FAILURES_MAX: usize = 20;

#[derive(Default)]
pub struct Report {
    pub seeds: u64,
    pub simulated_seconds: u64,
    pub seconds: f64,
    pub events: u64,
    pub entries: u64,
    pub checks: u64,
    pub faults: BTreeMap<String, u64>,
    pub failures: Vec<(u64, String)>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} seeds, {:.1} simulated hours in {:.0} s: {} events, {} transactions, {} checks",
            self.seeds,
            self.simulated_seconds as f64 / 3600.0,
            self.seconds,
            self.events,
            self.entries,
            self.checks
        )?;
        let faults: u64 = self.faults.values().sum();
        writeln!(f, "{faults} faults: {:?}", self.faults)?;
        for (seed, violation) in &self.failures {
            writeln!(f, "FAILED seed {seed}: {violation}")?;
            writeln!(
                f,
                "  again: GRAVWELL_SEED={seed} cargo test -p gravwell-tests --test simulation replay -- --nocapture"
            )?;
        }
        write!(f, "{} broken promises", self.failures.len())
    }
}

/// Runs one seed; a panic counts as a violated guarantee.
pub fn run_one(seed: u64) -> (Summary, Result<(), String>) {
    let run = std::panic::catch_unwind(|| World::new(seed, false).run());
    match run {
        Ok((summary, result)) => (summary, result.map_err(|violation| violation.0)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            (Summary::default(), Err(format!("panic: {}", text.unwrap_or_default())))
        }
    }
}

/// Runs `count` seeds from `from` on; stops early after too many failures.
pub fn run_many(from: u64, count: u64, progress: bool) -> Report {
    run_until(from, count, progress, FAILURES_MAX)
}

pub fn run_until(from: u64, count: u64, progress: bool, failures_max: usize) -> Report {
    let with = std::env::var("GRAVWELL_WITH").unwrap_or_default();
    let (next, stop) = (AtomicU64::new(from), AtomicBool::new(false));
    let report = Mutex::new(Report::default());
    let started = Instant::now();
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count {
                        return;
                    }
                    if !World::strikes_with(seed, &with) {
                        continue;
                    }
                    let (summary, result) = run_one(seed);
                    let mut report = report.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    report.seeds += 1;
                    report.simulated_seconds += summary.simulated / SECOND;
                    report.events += summary.events;
                    report.entries += summary.entries;
                    report.checks += summary.checks;
                    for (fault, times) in summary.faults {
                        *report.faults.entry(fault).or_default() += times;
                    }
                    if let Err(violation) = result {
                        if progress {
                            println!("FAILED seed {seed}: {violation}");
                        }
                        report.failures.push((seed, violation));
                        if report.failures.len() >= failures_max {
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                    if progress && report.seeds.is_multiple_of(1000) {
                        println!(
                            "{} seeds, {} failures, {:.0} s",
                            report.seeds,
                            report.failures.len(),
                            started.elapsed().as_secs_f64()
                        );
                    }
                }
            });
        }
    });
    let mut report = report.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    report.seconds = started.elapsed().as_secs_f64();
    report.failures.sort();
    report
}
