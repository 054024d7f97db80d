//! Does the suite catch what it should? Each deliberate fault is planted in turn, and seeds are run until one of them
//! breaks a promise.
//!
//! `cargo test --profile sim --no-default-features --features planted-bugs --test simulation planted -- --nocapture`

use gravwell::planted::{Bug, plant};

use super::runner;

/// Seeds after which a fault counts as not caught.
const SEEDS_MAX: u64 = 20_000;

#[test]
fn planted_bugs_are_caught() {
    std::panic::set_hook(Box::new(|_| {}));
    let wanted = std::env::var("GRAVWELL_PLANTED").unwrap_or_default();
    let bugs = Bug::ALL.iter().copied().filter(|bug| format!("{bug:?}").contains(&wanted));
    let (mut missed, mut total) = (Vec::new(), 0);
    println!("{:<26} {:>6}  {:<88} caught by", "planted fault", "seeds", "what it does");
    for bug in bugs {
        total += 1;
        plant(Some(bug));
        let report = runner::run_until(0, super::number("GRAVWELL_SEEDS", SEEDS_MAX), false, 1);
        plant(None);
        match report.failures.first() {
            Some((seed, violation)) => {
                let violation: String = violation.chars().take(110).collect();
                println!(
                    "{:<26} {:>6}  {:<88} seed {seed}: {violation}",
                    format!("{bug:?}"),
                    report.seeds,
                    bug.describe()
                );
            }
            None => {
                println!("{:<26} {:>6}  {:<88} NOT CAUGHT", format!("{bug:?}"), report.seeds, bug.describe());
                missed.push(bug);
            }
        }
    }
    let _ = std::panic::take_hook();
    println!("{} of {total} planted faults caught", total - missed.len());
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
