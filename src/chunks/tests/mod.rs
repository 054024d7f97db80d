//! Tests of the store as a whole, on an in-memory file system.

mod bit_rot;
mod crash;
mod delta;
mod threads;

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::*;
use gravwell_env::clock::Clock;
use gravwell_env::memory_fs::{MemoryFs, SmallRandom};
use gravwell_model::ChunkId;

/// A clock that the test sets.
#[derive(Default)]
struct Hand(AtomicU64);

impl Clock for Hand {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

fn options() -> StoreOptions {
    StoreOptions { pack_bytes: 8 << 10, reserve_bytes: 0, garbage_ratio: 0.3 }
}

struct Fixture {
    fs: MemoryFs,
    clock: Arc<Hand>,
}

impl Fixture {
    fn new() -> Fixture {
        Fixture { fs: MemoryFs::new(), clock: Arc::new(Hand(AtomicU64::new(1_700_000_000_000))) }
    }

    fn open(&self) -> (ChunkStore, OpenReport) {
        let clock = Arc::clone(&self.clock);
        ChunkStore::open(Path::new("/chunks"), Arc::new(self.fs.clone()), clock, options()).expect("opens")
    }

    fn pass(&self, seconds: u64) {
        self.clock.0.fetch_add(seconds * 1000, Ordering::SeqCst);
    }
}

/// Test chunks by number; those with even numbers are incompressible.
static CHUNKS: LazyLock<Vec<(ChunkId, Vec<u8>)>> = LazyLock::new(|| {
    let chunk = |n: u64| {
        let mut random = SmallRandom(n);
        let bytes = 300 + random.below(900);
        let raw = if n.is_multiple_of(2) {
            (0..bytes).map(|_| random.next_u64() as u8).collect()
        } else {
            format!("row {n}, ").repeat(bytes / 4).into_bytes()
        };
        (ChunkId::of(&raw), raw)
    };
    (0..400).map(chunk).collect()
});

fn raw(n: u64) -> &'static [u8] {
    &CHUNKS[n as usize].1
}

fn id(n: u64) -> ChunkId {
    CHUNKS[n as usize].0
}

fn write(store: &ChunkStore, numbers: impl IntoIterator<Item = u64>) {
    for n in numbers {
        store.write(&id(n), raw(n)).expect("writes");
    }
    store.sync().expect("syncs");
}

fn check(store: &ChunkStore, there: impl IntoIterator<Item = u64>, gone: impl IntoIterator<Item = u64>) {
    for n in there {
        assert_eq!(store.read(&id(n)).expect("reads").as_deref(), Some(raw(n)), "{n}");
    }
    for n in gone {
        assert!(!store.contains(&id(n)) && store.read(&id(n)).expect("reads").is_none(), "{n}");
    }
}

#[test]
fn written_chunks_are_readable_after_reopening() {
    let fixture = Fixture::new();
    let (store, report) = fixture.open();
    assert_eq!(report, OpenReport::default());
    write(&store, 0..50);
    assert!(!store.write(&id(3), raw(3)).expect("exists"), "stored once");
    check(&store, 0..50, 50..52);
    let before = store.stats();
    assert!(before.packs > 2 && before.stored_bytes < before.raw_bytes && before.chunks == 50, "{before:?}");
    assert_eq!(store.missing(&[id(1), id(99)]), [id(99)]);
    drop(store);
    for checkpoint in [false, true] {
        let (store, report) = fixture.open();
        assert_eq!((report.damages, report.unfinished, report.chunks), (vec![], vec![], 50));
        check(&store, 0..50, 50..52);
        assert_eq!(store.stats(), before);
        assert_eq!(store.ids().into_iter().collect::<HashSet<_>>(), (0..50).map(id).collect());
        assert_eq!(store.verify(&mut |_, _| {}).expect("verifies"), []);
        if checkpoint {
            store.checkpoint().expect("checkpoint");
        }
    }
}

#[test]
fn unreferenced_chunks_are_collected_after_the_grace_period() {
    let fixture = Fixture::new();
    let (store, _) = fixture.open();
    write(&store, 0..60);
    let live: HashSet<_> = (0..60).filter(|n| n % 3 == 0).map(id).collect();
    let grace = Duration::from_secs(60);
    assert_eq!(store.collect(&live, store.cutoff(grace), false).expect("collects").kept_in_grace, 40);
    fixture.pass(59);
    assert_eq!(store.missing(&[id(1)]), []);
    assert_eq!(store.absent(&[id(2), id(99)]), [id(99)], "and the grace period of existing chunks is not renewed");
    fixture.pass(2);
    let counted = store.collect(&live, store.cutoff(grace), true).expect("counts");
    assert_eq!((counted.chunks, counted.kept_in_grace), (39, 1));
    check(&store, 0..60, []);
    let before = store.stats();
    let collected = store.collect(&live, store.cutoff(grace), false).expect("collects");
    assert_eq!((collected.chunks, collected.raw_bytes, collected.kept_in_grace), (39, counted.raw_bytes, 1));
    let after = store.stats();
    assert!(after.file_bytes < before.file_bytes * 2 / 3, "{before:?} {after:?}");
    assert_eq!(before.file_bytes - after.file_bytes, collected.freed_bytes, "{collected:?}");
    check(&store, (0..60).filter(|n| n % 3 == 0 || *n == 1), (2..60).filter(|n| n % 3 != 0));
    let (store, _) = fixture.open();
    check(&store, (0..60).filter(|n| n % 3 == 0 || *n == 1), []);
    assert_eq!(store.verify(&mut |_, _| {}).expect("verifies"), []);
}

#[test]
fn a_cache_gives_space_back() {
    let fixture = Fixture::new();
    let (store, _) = fixture.open();
    write(&store, 0..60);
    let before = store.stats();
    let evicted = store.evict(&(0..40).map(id).collect::<Vec<_>>(), store.cutoff(Duration::ZERO)).expect("evicts");
    assert_eq!(evicted.chunks, 40);
    assert!(store.stats().file_bytes < before.file_bytes / 2, "{:?}", store.stats());
    check(&store, 40..60, 0..40);
    write(&store, 0..10);
    check(&store, (0..10).chain(40..60), 10..40);
}

#[test]
fn pinned_chunks_are_kept_without_limit() {
    let fixture = Fixture::new();
    let (store, _) = fixture.open();
    write(&store, 0..20);
    fixture.pass(100);
    let hold = store.hold();
    write(&store, 10..30);
    let (early, all) = (store.hold(), (0..30).map(id).collect::<Vec<_>>());
    drop(early);
    fixture.pass(1000);
    let late = store.hold();
    let cutoff = store.cutoff(Duration::ZERO);
    // The hold existed when the cutoff was taken, so references to its chunks may have been missed.
    drop(hold);
    assert_eq!(store.evict(&all, cutoff).expect("evicts").chunks, 10);
    assert_eq!(store.collect(&HashSet::new(), cutoff, false).expect("collects").kept_in_grace, 20);
    check(&store, 10..30, 0..10);
    drop(late);
    assert_eq!(store.collect(&HashSet::new(), store.cutoff(Duration::ZERO), false).expect("collects").chunks, 20);
}

#[test]
fn wrong_bytes_are_refused() {
    let (store, _) = Fixture::new().open();
    let error = store.write(&id(1), b"others").expect_err("wrong bytes");
    assert!(matches!(error, ChunkError::Mismatch { .. }), "{error}");
    let long = vec![0; CHUNK_BYTES_MAX + 1];
    let error = store.write(&ChunkId::of(&long), &long).expect_err("too long");
    assert!(matches!(error, ChunkError::TooLong { .. }), "{error}");
    assert_eq!(store.stats(), ChunkStats::default());
}

#[test]
fn a_large_content_does_not_gather_in_memory_unsynced() {
    let fixture = Fixture::new();
    let options = StoreOptions { pack_bytes: 64 << 20, ..options() };
    let clock = Arc::clone(&fixture.clock);
    let (store, _) =
        ChunkStore::open(Path::new("/chunks"), Arc::new(fixture.fs.clone()), clock, options).expect("opens");
    let mut random = SmallRandom(9);
    for _ in 0..72 {
        let raw: Vec<u8> = (0..CHUNK_BYTES_MAX / 8).flat_map(|_| random.next_u64().to_le_bytes()).collect();
        store.put(&raw).expect("writes");
    }
    let after = fixture.fs.crash(gravwell_env::memory_fs::Survival::Nothing, 0);
    let (store, _) =
        ChunkStore::open(Path::new("/chunks"), Arc::new(after), Arc::new(Hand::default()), StoreOptions::default())
            .expect("opens");
    assert!(
        (64..72).contains(&store.stats().chunks),
        "all chunks but the last few MiB are synced, {:?}",
        store.stats()
    );
}
