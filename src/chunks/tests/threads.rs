//! Concurrent writers that sync, readers, and a collector that moves the chunks being read.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::thread;

use super::*;
use gravwell_env::{RealFs, SystemClock};

const WRITERS: u64 = 4;
const EACH: u64 = 60;

#[test]
fn p01_what_a_thread_has_synced_is_read_by_all_while_packs_are_rewritten() {
    let home = tempfile::tempdir().expect("dir");
    let open = || ChunkStore::open(home.path(), Arc::new(RealFs), Arc::new(SystemClock), options()).expect("opens").0;
    let store = open();
    let (synced, ended) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let rewritten = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (store, synced) = (store.clone(), &synced);
                scope.spawn(move || {
                    for n in writer * EACH..(writer + 1) * EACH {
                        store.write(&id(n), raw(n)).expect("writes");
                        // Chunks of a cache, evicted again and again.
                        let passing = n + WRITERS * EACH;
                        store.write(&id(passing % 400), raw(passing % 400)).expect("writes");
                        store.sync().expect("syncs");
                        synced.lock().expect("sound").push(n);
                    }
                })
            })
            .collect();
        let (reading, known, end) = (store.clone(), &synced, &ended);
        scope.spawn(move || {
            let mut random = SmallRandom(3);
            while !end.load(Ordering::SeqCst) {
                let known = known.lock().expect("sound");
                let Some(n) = (!known.is_empty()).then(|| known[random.below(known.len())]) else { continue };
                drop(known);
                assert_eq!(reading.read(&id(n)).expect("reads").as_deref(), Some(raw(n)), "{n}");
            }
        });
        let (collecting, end) = (store.clone(), &ended);
        let collector = scope.spawn(move || {
            let live: HashSet<_> = (0..WRITERS * EACH).map(id).collect();
            let mut rewritten = 0;
            while !end.load(Ordering::SeqCst) {
                rewritten += collecting
                    .collect(&live, collecting.cutoff(Duration::ZERO), false)
                    .expect("collects")
                    .packs_rewritten;
                assert_eq!(collecting.verify(&mut |_, _| {}).expect("verifies"), []);
            }
            rewritten
        });
        let all: Vec<_> = writers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        ended.store(true, Ordering::SeqCst);
        all.into_iter().for_each(|writer| writer.expect("succeeds"));
        collector.join().expect("succeeds")
    });
    assert!(rewritten > 0, "no chunk was moved concurrently");
    check(&store, 0..WRITERS * EACH, []);
    let stats = store.stats();
    assert!(stats.file_bytes == stats.stored_bytes + stats.garbage_bytes + 32 * stats.packs, "{stats:?}");
    drop(store);
    check(&open(), 0..WRITERS * EACH, []);
}
