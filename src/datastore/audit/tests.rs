//! Tests of the audit on a file system with crashes, bit rot and limited space.

use std::path::Path;
use std::sync::Arc;

use super::damage;
use super::reader;
use super::store::{AUDIT, AuditError, AuditStore, Keep, options};
use gravwell_env::fs::Fs;
use gravwell_env::memory_fs::{Fault, MemoryFs, SmallRandom, Survival};
use gravwell_log::{Log, LogOptions};
use gravwell_model::codec::audit::{Act, AuditEvent, AuditRecord, LogPoint};
use gravwell_model::{MemberName, Seq};
use gravwell_transport::trust::AuditMark;

const HOUR_MS: u64 = 3_600_000;
const START_MS: u64 = 1_700_000_000_000;

fn dir() -> &'static Path {
    Path::new(AUDIT)
}

fn name() -> MemberName {
    MemberName::new("datastore").expect("name")
}

fn open(fs: &MemoryFs) -> Result<AuditStore, AuditError> {
    let options = LogOptions { segment_bytes: 2000, reserve_bytes: 0, ..options() };
    AuditStore::open_with(Arc::new(fs.clone()), dir(), Keep { ms: 10 * HOUR_MS, bytes: u64::MAX }, options)
}

fn record(number: u64, time_ms: u64) -> AuditRecord {
    let act = Act { kind: "login-failed".into(), what: format!("number {number}"), count: 1, ..Act::default() };
    let covered = LogPoint { seq: Seq(number), ..LogPoint::default() };
    AuditRecord { time_ms, member: name(), covered, event: AuditEvent::Act(act) }
}

/// Records `count` acts in batches, one hour apart. Returns the number of the last record.
fn fill(store: &mut AuditStore, from: u64, count: u64) -> Result<u64, AuditError> {
    let mut at = from;
    while at < from + count {
        let batch: Vec<_> = (at..(at + 1 + at % 3).min(from + count)).collect();
        at += batch.len() as u64;
        store.append(&batch.iter().map(|n| record(*n, START_MS + n * HOUR_MS)).collect::<Vec<_>>())?;
    }
    Ok(at)
}

fn acts(store: &AuditStore) -> Vec<String> {
    let reader = store.reader();
    let entries = reader.entries(reader.horizon(), reader.head().0).map(|entry| entry.expect("reads"));
    let records = entries.map(|entry| AuditRecord::of(&entry).expect("decodes"));
    let what = |record: AuditRecord| match record.event {
        AuditEvent::Act(act) => Some(act.what),
        _ => None,
    };
    records.filter_map(what).collect()
}

fn check(store: &AuditStore) -> gravwell_model::codec::audit::AuditReport {
    reader::verify(&store.reader(), None).expect("verifies")
}

#[test]
fn p01_what_was_recorded_survives_a_power_cut_and_the_chain_holds() {
    let count = {
        let fs = MemoryFs::new();
        fill(&mut open(&fs).expect("creates"), 1, 60).expect("records");
        fs.operations()
    };
    for operation in (0..count).step_by(2) {
        for (seed, survival) in [(operation, Survival::Nothing), (operation, Survival::Sectors)] {
            let fs = MemoryFs::new();
            fs.fail_at(operation, Fault::Stop);
            let mut acknowledged = 0;
            if let Ok(mut store) = open(&fs) {
                let mut at = 1;
                while let Ok(next) = fill(&mut store, at, 1) {
                    (acknowledged, at) = (at, next);
                    if at > 60 {
                        break;
                    }
                }
            }
            let fs = fs.crash(survival, seed);
            let store = open(&fs).unwrap_or_else(|error| panic!("operation {operation}: {error}"));
            let found = acts(&store);
            assert!(found.len() as u64 >= acknowledged, "operation {operation}: {} of {acknowledged}", found.len());
            let wanted: Vec<_> = (1..=found.len()).map(|n| format!("number {n}")).collect();
            assert_eq!(found, wanted, "operation {operation}");
            let report = check(&store);
            assert!(report.ok, "operation {operation}: {:?}", report.findings);
            let covered = store.covered().map_or(0, |point| point.seq.0);
            assert_eq!(covered, found.len() as u64, "operation {operation}: position in the log");
        }
    }
}

/// Creates an audit from which the oldest segments were removed, with about a dozen records per segment.
fn trimmed() -> MemoryFs {
    let fs = MemoryFs::new();
    let mut store = open(&fs).expect("creates");
    fill(&mut store, 1, 60).expect("records");
    store.keep_house(START_MS + 61 * HOUR_MS, &name()).expect("housekeeping");
    assert!(store.reader().horizon() > Seq(20), "{}", store.reader().horizon());
    store.close().expect("closes");
    fs
}

#[test]
fn old_segments_go_whole_and_the_rest_is_anchored() {
    let fs = trimmed();
    let store = open(&fs).expect("opens");
    let report = check(&store);
    assert!(report.ok, "{:?}", report.findings);
    let found = acts(&store);
    assert_eq!(found.last().map(String::as_str), Some("number 60"));
    assert!(!found.contains(&"number 20".to_owned()) && found.contains(&"number 55".to_owned()), "{found:?}");
    // Reading from the start returns the remaining records.
    let page = reader::page(&store.reader(), Seq::ZERO, 0, u64::MAX).expect("reads");
    assert_eq!(page.block.map(|block| block.first), Some(report.first));
}

#[test]
fn a_crash_while_old_segments_go_leaves_a_whole_audit() {
    let prepared = || {
        let fs = MemoryFs::new();
        let mut store = open(&fs).expect("creates");
        fill(&mut store, 1, 60).expect("records");
        store.close().expect("closes");
        fs
    };
    let count = {
        let fs = prepared();
        let mut store = open(&fs).expect("opens");
        let before = fs.operations();
        store.keep_house(START_MS + 61 * HOUR_MS, &name()).expect("housekeeping");
        fs.operations() - before
    };
    for operation in 0..count {
        for survival in [Survival::Nothing, Survival::Sectors, Survival::Everything] {
            let fs = prepared();
            let mut store = open(&fs).expect("opens");
            fs.fail_at(fs.operations() + operation, Fault::Stop);
            let _ = store.keep_house(START_MS + 61 * HOUR_MS, &name());
            drop(store);
            let fs = fs.crash(survival, operation);
            let mut store = open(&fs).unwrap_or_else(|error| panic!("operation {operation}: {error}"));
            assert!(check(&store).ok, "operation {operation}: {:?}", check(&store).findings);
            store.keep_house(START_MS + 61 * HOUR_MS, &name()).expect("housekeeping again");
            assert!(check(&store).ok, "operation {operation}: {:?}", check(&store).findings);
            assert_eq!(acts(&store).last().map(String::as_str), Some("number 60"));
        }
    }
}

#[test]
fn p10_every_change_of_a_file_of_the_audit_is_found() {
    let whole = trimmed();
    let files = whole.list(dir()).expect("lists");
    let expected = acts(&open(&whole).expect("opens"));
    let mut random = SmallRandom(7);
    let mut changes = 0;
    for file in files.iter().filter(|file| file.starts_with("seg-")) {
        let length = whole.contents(&dir().join(file)).expect("reads").len() as u64;
        for offset in 0..length {
            let fs = trimmed_again(&whole);
            fs.flip_bit(&dir().join(file), offset, u8::try_from(random.below(8)).expect("a bit")).expect("flips");
            changes += 1;
            let is_found = match open(&fs) {
                Err(error) => error.is_damage(),
                Ok(store) => !check(&store).ok || acts(&store) == expected,
            };
            assert!(is_found, "{file} at {offset}");
        }
    }
    assert!(changes > 1000, "{changes}");
    for file in files.iter().filter(|file| file.starts_with("seg-")) {
        let fs = trimmed_again(&whole);
        fs.remove(&dir().join(file)).expect("removes");
        assert!(open(&fs).is_err_and(|error| error.is_damage()), "{file} is missing");
    }
}

/// Copies the files to another file system.
fn trimmed_again(whole: &MemoryFs) -> MemoryFs {
    whole.crash(Survival::Everything, 0)
}

/// An attacker who removes the oldest records and changes the head file cannot forge the record of a removal.
#[test]
fn records_that_were_removed_before_their_time_are_missed() {
    let fs = MemoryFs::new();
    let mut store = open(&fs).expect("creates");
    fill(&mut store, 1, 60).expect("records");
    store.close().expect("closes");
    let options = LogOptions { segment_bytes: 2000, reserve_bytes: 0, ..options() };
    let (mut log, _) = Log::open(Arc::new(fs.clone()), dir(), options).expect("opens");
    assert!(log.trim(Seq(30)).expect("trims") > 0);
    log.close().expect("closes");
    let report = check(&open(&fs).expect("opens"));
    assert!(!report.ok && report.findings[0].problem.contains("no record states"), "{:?}", report.findings);
}

#[test]
fn nothing_is_lost_on_a_full_disk() {
    let fs = MemoryFs::new();
    let mut store = open(&fs).expect("creates");
    fill(&mut store, 1, 20).expect("records");
    fs.set_capacity(Some(fs.used_bytes() + 600));
    let mut at = 21;
    while let Ok(next) = fill(&mut store, at, 1) {
        at = next;
    }
    assert!(!store.is_lost(), "it is writable again");
    fs.set_capacity(None);
    fill(&mut store, at, 20).expect("writes again");
    let found = acts(&store);
    assert_eq!(found, (1..at + 20).map(|n| format!("number {n}")).collect::<Vec<_>>());
    assert!(check(&store).ok);
}

#[test]
fn p14_an_audit_without_room_gives_up_its_oldest_records_and_says_which() {
    let fs = MemoryFs::new();
    let options = LogOptions { segment_bytes: 2000, reserve_bytes: 0, ..options() };
    let keep = Keep { ms: 1000 * HOUR_MS, bytes: 20_000 };
    let mut store = AuditStore::open_with(Arc::new(fs), dir(), keep, options).expect("creates");
    fill(&mut store, 1, 40).expect("records");
    assert!(store.bytes() < 20_000, "{}", store.bytes());
    store.keep_house(START_MS + 41 * HOUR_MS, &name()).expect("housekeeping");
    assert_eq!(store.reader().horizon(), Seq::ZERO, "within both limits");
    fill(&mut store, 41, 160).expect("records");
    store.keep_house(START_MS + 201 * HOUR_MS, &name()).expect("housekeeping");
    let horizon = store.reader().horizon();
    assert!(horizon > Seq(20) && store.bytes() <= 20_000, "{horizon} {}", store.bytes());
    let report = check(&store);
    assert!(report.ok, "{:?}", report.findings);
    assert_eq!(report.gaps, 1);
    let said = acts(&store).pop().expect("a record");
    assert!(said.contains(&format!("records 1 to {horizon} of the audit")) && said.contains("Max-MB"), "{said}");
    // Nothing more is removed as long as the size is within the limit.
    store.keep_house(START_MS + 202 * HOUR_MS, &name()).expect("housekeeping");
    assert_eq!((store.reader().horizon(), check(&store).gaps), (horizon, 1));
}

#[test]
fn p14_what_is_missing_is_named_until_it_is_acknowledged() {
    let fs = MemoryFs::new();
    let mut store = open(&fs).expect("creates");
    let said = |kind: &str| AuditRecord {
        event: AuditEvent::Act(Act { kind: kind.into(), what: "it is kept as X".into(), count: 1, ..Act::default() }),
        ..record(1, START_MS)
    };
    let acknowledged = |to| AuditRecord {
        event: AuditEvent::Acknowledged { to: Seq(to), from: "uid 0".into() },
        ..record(1, START_MS)
    };
    let mut counts = |records: &[AuditRecord]| {
        store.append(records).expect("records");
        let report = check(&store);
        assert_eq!(report.ok, report.findings.is_empty());
        (report.gaps, report.findings.len(), report.acknowledged)
    };
    assert_eq!(counts(&[said("audit-damaged"), said("gap"), said("login")]), (1, 1, 0));
    assert_eq!(counts(&[acknowledged(1)]), (1, 0, 1), "only earlier records");
    assert_eq!(counts(&[said("gap"), acknowledged(2)]), (1, 0, 2), "not later records");
    assert_eq!(counts(&[acknowledged(6)]), (0, 0, 3));
}

#[test]
fn p14_what_was_not_acknowledged_outlives_the_records_that_say_it() {
    for is_acknowledged in [false, true] {
        let fs = MemoryFs::new();
        let mut store = open(&fs).expect("creates");
        let said = |kind: &str| AuditRecord {
            event: AuditEvent::Act(Act {
                kind: kind.into(),
                what: format!("{kind} is kept as X"),
                count: 1,
                ..Act::default()
            }),
            ..record(1, START_MS)
        };
        store.append(&[said("audit-damaged"), said("gap"), said("gap"), said("login")]).expect("records");
        let mut at = fill(&mut store, 1, 60).expect("records");
        if is_acknowledged {
            let event = AuditEvent::Acknowledged { to: Seq(4), from: "uid 0".into() };
            store.append(&[AuditRecord { event, ..record(at, START_MS + at * HOUR_MS) }]).expect("records");
        }
        // Repeated for every removal of records.
        for round in 0..3 {
            let before = store.reader().horizon();
            let carried = store.keep_house(START_MS + at * HOUR_MS, &name()).expect("housekeeping");
            assert!(store.reader().horizon() > before, "{round}");
            let report = check(&store);
            let expected = if is_acknowledged { (true, 0, 0) } else { (false, 1, 1) };
            assert_eq!((report.ok, report.gaps, report.findings.len()), expected, "{round} {:?}", report.findings);
            assert_eq!(carried.is_some(), !is_acknowledged, "{round}");
            if let Some(carried) = carried {
                assert!(
                    report.findings[0].place.ends_with(&format!("record {}", carried.record)),
                    "{round} {report:?}"
                );
                assert_eq!(carried.what, "audit-damaged is kept as X");
            }
            at = fill(&mut store, at, 60).expect("records");
        }
    }
}

#[test]
fn p14_an_audit_that_is_another_one_or_an_older_copy_is_told_by_its_last_record() {
    let fs = MemoryFs::new();
    let mut store = open(&fs).expect("creates");
    let mark = |store: &AuditStore| {
        let (seq, chain) = store.reader().head();
        AuditMark { log_id: store.reader().log_id(), seq, chain: reader::hex(&chain) }
    };
    fill(&mut store, 1, 10).expect("records");
    let early = mark(&store);
    fill(&mut store, 11, 10).expect("records");
    let late = mark(&store);
    let of = |store: &AuditStore, mark: &AuditMark| damage::missing(&store.reader(), mark);
    assert_eq!((of(&store, &early), of(&store, &late)), (None, None));
    let other = open(&MemoryFs::new()).expect("creates");
    assert!(of(&other, &late).is_some_and(|what| what.contains("missing") && what.contains("20")));
    let ahead = AuditMark { seq: Seq(99), ..late.clone() };
    assert!(of(&store, &ahead).is_some_and(|what| what.contains("older copy")));
    let altered = AuditMark { chain: early.chain.clone(), ..late };
    assert!(of(&store, &altered).is_some_and(|what| what.contains("not the one")));
    // Records removed because of their age do not count as lost.
    fill(&mut store, 21, 60).expect("records");
    store.keep_house(START_MS + 90 * HOUR_MS, &name()).expect("housekeeping");
    assert!(store.reader().horizon() > early.seq);
    assert_eq!(of(&store, &early), None);
}
