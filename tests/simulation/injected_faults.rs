//! Tests the test suite: each deliberate fault is injected in turn, and the seed that caught it last must catch it
//! again; if it does not, other seeds are tried.
//!
//! `cargo test --profile sim -p gravwell-tests --features fault-injection --test simulation injected_faults -- --nocapture`
//!
//! `GRAVWELL_FROM=0` tries every seed from 0 on instead, and prints the table of `docs/testing.md`, which lists the
//! seed that last caught each fault. `GRAVWELL_SEARCH=N` tries N seeds if that seed does not catch it.
//! `GRAVWELL_PLANTED=NAME` injects only faults with names that contain NAME.

use gravwell_model::fault_injection::{Bug, plant};

use super::{histories, runner};

/// Number of seeds after which a fault counts as not caught.
const SEEDS_MAX: u64 = 20_000;
/// Maximum length of a violation in the table, in characters.
const SHOWN_CHARS: usize = 110;
const DOCUMENT: &str = include_str!("../../docs/testing.md");

/// Returns the seed that caught a fault last according to the document.
fn last_seed(bug: Bug) -> Option<u64> {
    let name = format!("{bug:?}");
    let mut rows = DOCUMENT.lines().map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
    let row = rows.find(|cells| cells.get(1) == Some(&name.as_str()))?;
    row.get(3)?.parse().ok()
}

/// Returns a seed that catches the injected fault, and the violated guarantee.
fn caught(bug: Bug) -> Option<(u64, String)> {
    let failure = |from, count| match histories::concern(bug) {
        Some(kind) => histories::run_until(kind, from, count, 1).failures.into_iter().next(),
        None => runner::run_until(from, count, false, 1).failures.into_iter().next(),
    };
    match last_seed(bug).filter(|_| !is_search()) {
        Some(seed) => failure(seed, 1).or_else(|| failure(0, super::number("GRAVWELL_SEARCH", SEEDS_MAX))),
        None => failure(super::number("GRAVWELL_FROM", 0), SEEDS_MAX),
    }
}

fn is_search() -> bool {
    std::env::var("GRAVWELL_FROM").is_ok()
}

/// Formats a violation as a cell of the table: without random ids, in one line.
fn shown(violation: &str) -> String {
    let is_identity = |word: &&str| word.len() == 32 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let words = violation.split(|c: char| !c.is_ascii_alphanumeric());
    let short = words.filter(is_identity).fold(violation.to_owned(), |text, identity| text.replace(identity, "…"));
    let cut = if short.chars().count() > SHOWN_CHARS { "…" } else { "" };
    let short: String = short.chars().take(SHOWN_CHARS).collect();
    short.replace('|', "/").replace('\n', " ") + cut
}

#[test]
fn injected_faults_are_caught() {
    std::panic::set_hook(Box::new(|_| {}));
    let wanted = std::env::var("GRAVWELL_PLANTED").unwrap_or_default();
    let bugs: Vec<Bug> = Bug::ALL.iter().copied().filter(|bug| format!("{bug:?}").contains(&wanted)).collect();
    let mut missed = Vec::new();
    println!("| Fault | Effect | Seed | Caught by |\n| --- | --- | --- | --- |");
    for bug in &bugs {
        plant(Some(*bug));
        let caught = caught(*bug);
        plant(None);
        match caught {
            Some((seed, violation)) => {
                println!("| {bug:?} | {} | {seed} | {} |", bug.describe(), shown(&violation));
            }
            None => {
                println!("| {bug:?} | {} | | NOT CAUGHT |", bug.describe());
                missed.push(bug);
            }
        }
    }
    let _ = std::panic::take_hook();
    println!("{} of {} injected faults caught", bugs.len() - missed.len(), bugs.len());
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
