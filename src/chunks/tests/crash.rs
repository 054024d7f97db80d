//! A scripted sequence of store operations, with a crash or a failure injected at every file operation.
//!
//! After a crash, the store opens without reporting corruption, every chunk that was synced and not removed is present,
//! and chunks that were visible once stay visible. A sample by default; `GRAVWELL_CRASH_POINTS=all` covers everything.

use std::collections::BTreeSet;
use std::io::ErrorKind;

use super::*;
use gravwell_env::memory_fs::{Fault, Survival};

const ROUNDS: u64 = 14;
const EACH: u64 = 5;

/// Chunks that must be present, and chunks that may be.
#[derive(Clone, Debug, Default)]
struct Promised {
    must: BTreeSet<u64>,
    may: BTreeSet<u64>,
}

/// The process or the machine has to be restarted.
#[derive(Debug)]
struct Stopped(String);

fn stopped(error: impl std::fmt::Display) -> Stopped {
    Stopped(error.to_string())
}

fn try_open(fs: &MemoryFs) -> Result<(ChunkStore, OpenReport), ChunkError> {
    ChunkStore::open(Path::new("/chunks"), Arc::new(fs.clone()), Arc::new(Hand::default()), options())
}

fn is_live(n: u64) -> bool {
    n % 4 != 1
}

/// Runs the script from the start. Chunks that are present already are not written again.
fn live(fs: &MemoryFs, promised: &mut Promised) -> Result<(), Stopped> {
    let (mut store, _) = try_open(fs).map_err(stopped)?;
    for round in 0..ROUNDS {
        let numbers = round * EACH..(round + 1) * EACH;
        promised.may.extend(numbers.clone());
        let mut written = Vec::new();
        for n in numbers {
            match store.write(&id(n), raw(n)) {
                Ok(_) => written.push(n),
                // The caller of an upload would get the same error.
                Err(ChunkError::Full { .. } | ChunkError::Io { .. }) => {}
                Err(error) => return Err(stopped(error)),
            }
        }
        if round % 5 != 4 {
            store.sync().map_err(stopped)?;
            promised.must.extend(written.into_iter().filter(|n| is_live(*n)));
        }
        if round % 4 == 3 {
            promised.must.retain(|n| is_live(*n));
            let known: HashSet<_> = promised.may.iter().filter(|n| is_live(**n)).map(|n| id(*n)).collect();
            go_on(&store, store.collect(&known, store.cutoff(Duration::ZERO), false))?;
        }
        if round % 6 == 5 {
            let cached: Vec<u64> = (0..round * EACH).filter(|n| n % 3 == 0).collect();
            promised.must.retain(|n| !cached.contains(n));
            go_on(
                &store,
                store.evict(&cached.iter().map(|n| id(*n)).collect::<Vec<_>>(), store.cutoff(Duration::ZERO)),
            )?;
        }
        if round % 7 == 6 {
            store.checkpoint().map_err(stopped)?;
            drop(store);
            store = try_open(fs).map_err(stopped)?.0;
        }
    }
    store.checkpoint().map_err(stopped)
}

/// Ignores a failed collection, which is retried later, unless the store is unusable.
fn go_on(store: &ChunkStore, outcome: Result<GcReport, ChunkError>) -> Result<(), Stopped> {
    match outcome {
        Ok(collected) => {
            assert_eq!(collected.damages, []);
            Ok(())
        }
        Err(error) => store.shared.healthy().map_err(|_| stopped(error)),
    }
}

/// Opens the store, compares it with the promised chunks, and returns the chunks that are present now.
fn look(fs: &MemoryFs, promised: &Promised, context: &str) -> Promised {
    let (store, report) = try_open(fs).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(report.damages, [], "{context}: {report:?}");
    let there: BTreeSet<u64> = promised.may.iter().filter(|n| store.contains(&id(**n))).copied().collect();
    let lost: Vec<_> = promised.must.difference(&there).collect();
    assert!(lost.is_empty(), "{context}: {lost:?} are lost; {report:?}");
    assert_eq!(store.ids().len(), there.len(), "{context}: unexpected chunks");
    for n in &there {
        let found = store.read(&id(*n)).unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_eq!(found.as_deref(), Some(raw(*n)), "{context}");
    }
    Promised { must: there, may: promised.may.clone() }
}

fn to_the_end(fs: &MemoryFs, promised: &mut Promised, context: &str) {
    live(fs, promised).unwrap_or_else(|Stopped(error)| panic!("{context}: {error}"));
    look(fs, promised, context);
    let (store, _) = try_open(fs).expect("opens");
    assert_eq!(store.verify(&mut |_, _| {}).expect("verifies"), [], "{context}");
}

fn is_full() -> bool {
    std::env::var("GRAVWELL_CRASH_POINTS").is_ok_and(|value| value == "all")
}

fn operations() -> u64 {
    let fs = MemoryFs::new();
    to_the_end(&fs, &mut Promised::default(), "undisturbed");
    assert!(fs.operations() >= 150, "{}", fs.operations());
    fs.operations()
}

#[test]
fn p01_a_crash_after_any_operation_loses_no_chunk_that_was_synced() {
    let (count, full, mut crashes) = (operations(), is_full(), 0);
    for stop in 0..=count {
        let fs = MemoryFs::new();
        fs.fail_at(stop, Fault::Stop);
        let mut promised = Promised::default();
        let _ = live(&fs, &mut promised);
        let seeds = [stop, stop + 1_000, stop + 2_000];
        let kinds = [Survival::Prefix, Survival::Sectors].into_iter().flat_map(|kind| seeds.map(|seed| (kind, seed)));
        let ways = [(Survival::Nothing, 0), (Survival::Everything, 0)].into_iter().chain(kinds);
        for (number, (survival, seed)) in ways.enumerate() {
            if !full && !(stop + number as u64).is_multiple_of(7) {
                continue;
            }
            let context = format!("crash at {stop}, {survival:?}, seed {seed}");
            let after = fs.crash(survival, seed);
            let mut there = look(&after, &promised, &context);
            look(&after.crash(Survival::Nothing, 0), &there, &format!("{context}, and again"));
            crashes += 1;
            if full || (stop + number as u64).is_multiple_of(28) {
                to_the_end(&after, &mut there, &context);
            }
        }
    }
    println!("chunks: {count} operations, {crashes} crashes");
}

#[test]
fn p01_a_failure_of_any_operation_loses_no_chunk_that_was_synced() {
    let (count, full, mut failures, mut restarts) = (operations(), is_full(), 0, 0);
    let faults =
        [Fault::Once(ErrorKind::Other), Fault::Once(ErrorKind::StorageFull), Fault::Short(0), Fault::Short(60)];
    for stop in 0..count {
        for (number, fault) in faults.into_iter().enumerate() {
            if !full && !(stop + number as u64).is_multiple_of(5) {
                continue;
            }
            let context = format!("{fault:?} at {stop}");
            let fs = MemoryFs::new();
            fs.fail_at(stop, fault);
            let mut promised = Promised::default();
            failures += 1;
            restarts += u64::from(live(&fs, &mut promised).is_err());
            fs.heal();
            // Only the process restarts; the machine and its page cache keep running.
            let mut there = look(&fs, &promised, &context);
            for survival in [Survival::Nothing, Survival::Sectors] {
                look(&fs.crash(survival, stop), &there, &format!("{context}: lost after it was visible"));
            }
            if full || (stop + number as u64).is_multiple_of(20) {
                to_the_end(&fs, &mut there, &context);
            }
        }
    }
    println!("chunks: {count} operations, {failures} failures, {restarts} restarts");
}

#[test]
fn a_failed_sync_stops_writing_but_not_reading() {
    let fixture = Fixture::new();
    let (store, _) = fixture.open();
    write(&store, 0..3);
    store.write(&id(3), raw(3)).expect("writes");
    fixture.fs.fail_at(fixture.fs.operations(), Fault::Once(ErrorKind::Other));
    assert!(matches!(store.sync(), Err(ChunkError::Io { .. })));
    assert!(matches!(store.sync(), Err(ChunkError::Poisoned)), "not retried");
    assert!(matches!(store.write(&id(4), raw(4)), Err(ChunkError::Poisoned)));
    assert!(matches!(store.collect(&HashSet::new(), store.cutoff(Duration::ZERO), false), Err(ChunkError::Poisoned)));
    check(&store, 0..4, [4]);
}

#[test]
fn a_full_disk_refuses_chunks_and_collecting_gives_space_back() {
    let fixture = Fixture::new();
    let (store, _) = fixture.open();
    write(&store, 0..40);
    fixture.fs.set_capacity(Some(fixture.fs.used_bytes() + 600));
    let error = (40..60).find_map(|n| store.write(&id(n), raw(n)).err()).expect("full");
    assert!(matches!(error, ChunkError::Full { .. }) && error.to_string().contains("/chunks"), "{error}");
    store.sync().expect("syncs");
    check(&store, 0..40, []);
    // Some packs consist only of garbage, others in part. There is little space for copies.
    let live: HashSet<_> = (0..40).filter(|n| *n > 16 && n % 3 != 0).map(id).collect();
    let before = fixture.fs.used_bytes();
    let collected = store.collect(&live, store.cutoff(Duration::ZERO), false).expect("collects");
    assert!(collected.packs_removed > 0 && collected.packs_rewritten > 0, "{collected:?}");
    assert!(fixture.fs.used_bytes() < before * 3 / 4, "{} of {before}", fixture.fs.used_bytes());
    write(&store, 50..54);
    check(&store, (17..40).filter(|n| n % 3 != 0).chain(50..54), 0..17);
}

#[test]
fn the_disk_is_not_filled_to_the_brim() {
    let fixture = Fixture::new();
    fixture.fs.set_capacity(Some(100_000));
    let options = StoreOptions { reserve_bytes: 60_000, ..options() };
    let clock = Arc::clone(&fixture.clock);
    let (store, _) =
        ChunkStore::open(Path::new("/chunks"), Arc::new(fixture.fs.clone()), clock, options).expect("opens");
    let error = (0..400).find_map(|n| store.write(&id(n), raw(n)).err()).expect("full");
    assert!(error.to_string().contains("60000 are reserved"), "{error}");
    assert!((30_000..50_000).contains(&fixture.fs.used_bytes()), "{}", fixture.fs.used_bytes());
}
