//! Compares three chunk stores on the same data, and measures how fast a stream is chunked, hashed and stored:
//! `cargo bench --bench chunks [-- MIB]`.
//!
//! Each store runs in a separate process, so that memory can be attributed. Half of the chunks are noise and half are rows
//! of a table; every store writes and syncs 16 MiB at a time, as an upload does.

use std::collections::HashSet;
use std::convert::Infallible;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode};
use gravwell_chunks::{ChunkStore, Chunker, StoreOptions};
use gravwell_env::memory_fs::SmallRandom;
use gravwell_env::{RealFs, SystemClock};
use gravwell_model::ChunkId;

const CHUNK: usize = 64 << 10;
const SYNC_EVERY: usize = (16 << 20) / CHUNK;
/// Number of chunks in the memory measurement.
const SMALL: u64 = 300_000;

/// A chunk store.
trait Way {
    fn open(dir: &Path) -> Self;

    /// Opens the store for many small chunks.
    fn open_small(dir: &Path) -> Self
    where
        Self: Sized,
    {
        Self::open(dir)
    }

    fn write(&self, id: &ChunkId, raw: &[u8]);
    fn sync(&mut self);
    fn read(&self, id: &ChunkId) -> Vec<u8>;
    fn remove(&mut self, gone: &[ChunkId], live: HashSet<ChunkId>);
}

struct Packs(ChunkStore);

impl Packs {
    fn with(dir: &Path, options: StoreOptions) -> Packs {
        Packs(ChunkStore::open(dir, Arc::new(RealFs), Arc::new(SystemClock), options).expect("opens").0)
    }
}

impl Way for Packs {
    fn open(dir: &Path) -> Self {
        Packs::with(dir, StoreOptions::default())
    }

    /// Sets the pack size so that a pack holds as many small chunks as usual ones.
    fn open_small(dir: &Path) -> Self {
        Packs::with(dir, StoreOptions { pack_bytes: 2000 * (104 + 64), ..StoreOptions::default() })
    }

    fn write(&self, id: &ChunkId, raw: &[u8]) {
        self.0.write(id, raw).expect("writes");
    }

    fn sync(&mut self) {
        self.0.sync().expect("syncs");
    }

    fn read(&self, id: &ChunkId) -> Vec<u8> {
        self.0.read(id).expect("reads").expect("there").to_vec()
    }

    fn remove(&mut self, _: &[ChunkId], live: HashSet<ChunkId>) {
        self.0.collect(&live, self.0.cutoff(Duration::ZERO), false).expect("collects");
    }
}

struct Fjall(Database, Keyspace);

impl Way for Fjall {
    fn open(dir: &Path) -> Self {
        let database = Database::builder(dir).cache_size(32 << 20).worker_threads(2).open().expect("opens");
        let options = || KeyspaceCreateOptions::default().with_kv_separation(Some(KvSeparationOptions::default()));
        let rows = database.keyspace("chunks", options).expect("opens");
        Fjall(database, rows)
    }

    fn write(&self, id: &ChunkId, raw: &[u8]) {
        assert_eq!(ChunkId::of(raw), *id);
        self.1.insert(id.0, raw).expect("writes");
    }

    fn sync(&mut self) {
        self.0.persist(PersistMode::SyncData).expect("syncs");
    }

    fn read(&self, id: &ChunkId) -> Vec<u8> {
        let raw = self.1.get(id.0).expect("reads").expect("there").to_vec();
        assert_eq!(ChunkId::of(&raw), *id);
        raw
    }

    fn remove(&mut self, gone: &[ChunkId], _: HashSet<ChunkId>) {
        gone.iter().for_each(|id| self.1.remove(id.0).expect("removes"));
        self.1.rotate_memtable_and_wait().expect("flushes");
        self.1.major_compact().expect("compacts");
        self.sync();
    }
}

struct Files(PathBuf, Vec<(fs::File, ChunkId)>);

impl Files {
    fn path(&self, id: &ChunkId) -> PathBuf {
        let name = id.to_string();
        self.0.join(&name[..2]).join(name)
    }
}

impl Way for Files {
    fn open(dir: &Path) -> Self {
        (0..=255u8).for_each(|n| fs::create_dir_all(dir.join(format!("{n:02x}"))).expect("creates"));
        // A store must know its existing chunks.
        let names = (0..=255u8).flat_map(|n| fs::read_dir(dir.join(format!("{n:02x}"))).expect("lists"));
        let known: HashSet<_> = names.map(|entry| entry.expect("entry").file_name()).collect();
        std::mem::forget(known);
        Files(dir.to_owned(), Vec::new())
    }

    fn write(&self, id: &ChunkId, raw: &[u8]) {
        assert_eq!(ChunkId::of(raw), *id);
        let path = self.path(id);
        fs::write(path.with_extension("tmp"), raw).expect("writes");
    }

    fn sync(&mut self) {
        let mut changed = Vec::new();
        for n in 0..=255u8 {
            let dir = self.0.join(format!("{n:02x}"));
            let mut any = false;
            for entry in fs::read_dir(&dir).expect("lists") {
                let path = entry.expect("entry").path();
                if path.extension().is_some() {
                    fs::File::open(&path).and_then(|file| file.sync_data()).expect("syncs");
                    fs::rename(&path, path.with_extension("")).expect("renames");
                    any = true;
                }
            }
            changed.extend(any.then_some(dir));
        }
        changed.iter().for_each(|dir| fs::File::open(dir).and_then(|dir| dir.sync_all()).expect("syncs"));
        self.1.clear();
    }

    fn read(&self, id: &ChunkId) -> Vec<u8> {
        let raw = fs::read(self.path(id)).expect("reads");
        assert_eq!(ChunkId::of(&raw), *id);
        raw
    }

    fn remove(&mut self, gone: &[ChunkId], _: HashSet<ChunkId>) {
        gone.iter().for_each(|id| fs::remove_file(self.path(id)).expect("removes"));
        self.sync();
    }
}

fn fill(random: &mut SmallRandom, raw: &mut Vec<u8>, bytes: usize, is_noise: bool) {
    raw.clear();
    while raw.len() < bytes {
        let number = random.next_u64();
        if is_noise {
            raw.extend_from_slice(&number.to_le_bytes());
        } else {
            let (host, seen) = (number % 90_000, number >> 44);
            let net = host % 251;
            writeln!(raw, "{number:016x},10.1.{net},host-{host:05}.example.com,active,\"seen {seen} times\"")
                .expect("memory store accepts it");
        }
    }
    raw.truncate(bytes);
}

fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let entries = fs::read_dir(dir).expect("lists").map(|entry| entry.expect("entry"));
    entries
        .map(|entry| {
            let meta = entry.metadata().expect("metadata");
            if meta.is_dir() { disk_bytes(&entry.path()) } else { meta.blocks() * 512 }
        })
        .sum()
}

/// Returns the anonymous memory of this process.
fn memory_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("reads");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("a line");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
}

/// Returns the processor time of this thread, which is independent of other load on the machine.
fn processor() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").expect("reads");
    Duration::from_nanos(stat.split_whitespace().next().and_then(|ns| ns.parse().ok()).expect("a number"))
}

fn per_second(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / 1e6 / time.as_secs_f64().max(1e-9)
}

fn rate(bytes: usize, since: Instant) -> f64 {
    bytes as f64 / 1e6 / since.elapsed().as_secs_f64()
}

fn measure<W: Way>(way_name: &str, name: &str, mib: usize) {
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("dir");
    let dir = home.path().join("store");
    let count = (mib << 20) / CHUNK;
    let mut random = SmallRandom(11);
    let mut ids = Vec::new();
    let mut raw = Vec::new();
    let mut way = W::open(&dir);
    let (mut writing, mut working) = (Duration::ZERO, Duration::ZERO);
    for n in 0..count {
        fill(&mut random, &mut raw, CHUNK, n % 2 == 0);
        let id = ChunkId::of(&raw);
        ids.push(id);
        let (began, worked) = (Instant::now(), processor());
        way.write(&id, &raw);
        if n % SYNC_EVERY == SYNC_EVERY - 1 || n == count - 1 {
            way.sync();
        }
        writing += began.elapsed();
        working += processor() - worked;
    }
    let (written, work) = (per_second(mib << 20, writing), per_second(mib << 20, working));
    drop(way);
    let began = Instant::now();
    let mut way = W::open(&dir);
    let opened = began.elapsed();
    let (began, worked) = (Instant::now(), processor());
    let reads = count.min(8192);
    for _ in 0..reads {
        assert_eq!(way.read(&ids[random.below(count)]).len(), CHUNK);
    }
    let (read, reading) = (rate(reads * CHUNK, began), per_second(reads * CHUNK, processor() - worked));
    let space = disk_bytes(&dir) as f64 / (mib << 20) as f64;
    let (gone, live): (Vec<_>, Vec<_>) = ids.iter().enumerate().partition(|(n, _)| n % 4 != 0);
    let ids_of = |list: Vec<(usize, &ChunkId)>| list.into_iter().map(|(_, id)| *id).collect::<Vec<_>>();
    let (gone, live) = (ids_of(gone), ids_of(live));
    let began = Instant::now();
    way.remove(&gone, live.iter().copied().collect());
    let removed = began.elapsed();
    let after = disk_bytes(&dir) as f64 / (mib << 20) as f64;
    live.iter().step_by(7).for_each(|id| drop(way.read(id)));
    drop(way);
    fs::remove_dir_all(&dir).expect("removes");
    let memory = memory::<W>(way_name, &dir);
    println!(
        "| {name} | {written:.0} ({work:.0}) MB/s | {read:.0} ({reading:.0}) MB/s | {:.0} ms | {space:.2} | {after:.2} in \
         {:.1} s | {memory} |",
        opened.as_secs_f64() * 1e3,
        removed.as_secs_f64(),
    );
}

/// Measures memory per chunk and the time to open a store with many chunks, in a new process.
fn memory<W: Way>(way_name: &str, dir: &Path) -> String {
    if way_name == "files" {
        return "(names only) | ".into();
    }
    let mut way = W::open_small(dir);
    for n in 0..SMALL {
        let raw = n.to_le_bytes().repeat(13);
        way.write(&ChunkId::of(&raw), &raw);
        if n % 20_000 == 0 {
            way.sync();
        }
    }
    way.sync();
    drop(way);
    let program = std::env::current_exe().expect("a path");
    let ended = Command::new(program).args(["opened", way_name]).arg(dir).output().expect("runs");
    String::from_utf8(ended.stdout).expect("text").trim().to_owned()
}

fn opened<W: Way>(dir: &Path) {
    let (before, began) = (memory_bytes(), Instant::now());
    let way = W::open_small(dir);
    let opened = began.elapsed();
    let bytes = memory_bytes().saturating_sub(before) as f64 / SMALL as f64;
    println!("{bytes:.0} B | {:.0} ms", opened.as_secs_f64() * 1e3);
    drop(way);
}

/// Measures a blob from its bytes to durable chunks.
fn stream(mib: usize, is_noise: bool) {
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("dir");
    let store = Packs::open(home.path()).0;
    let (mut piece, mut random) = (Vec::new(), SmallRandom(5));
    let (mut spent, mut worked) = (Duration::ZERO, Duration::ZERO);
    let (mut unsynced, mut cutter) = (0, Chunker::new());
    for _ in 0..mib {
        fill(&mut random, &mut piece, 1 << 20, is_noise);
        let (began, before) = (Instant::now(), processor());
        let mut keep = |raw: &[u8]| {
            store.put(raw).expect("writes");
            unsynced += raw.len();
            if unsynced >= 32 << 20 {
                store.sync().expect("syncs");
                unsynced = 0;
            }
            Ok::<(), Infallible>(())
        };
        cutter.push(&piece, &mut keep).expect("never fails");
        spent += began.elapsed();
        worked += processor() - before;
    }
    let (began, before) = (Instant::now(), processor());
    cutter.finish(|raw| store.put(raw).map(|_| ())).expect("writes");
    store.sync().expect("syncs");
    spent += began.elapsed();
    worked += processor() - before;
    println!(
        "{mib} MiB of {} chunked, hashed and stored durably: {:.0} MB/s, {:.0} MB per second of one processor; stored {:.2}, \
         memory {} MiB",
        if is_noise { "noise" } else { "rows" },
        per_second(mib << 20, spent),
        per_second(mib << 20, worked),
        store.stats().file_bytes as f64 / store.stats().raw_bytes as f64,
        memory_bytes() >> 20,
    );
    parts(&random, is_noise);
}

/// Measures the steps of `stream` separately.
fn parts(random: &SmallRandom, is_noise: bool) {
    const BYTES: usize = 64 << 20;
    let (mut raw, mut random) = (Vec::new(), random.clone());
    fill(&mut random, &mut raw, BYTES, is_noise);
    let step = |name: &str, work: &mut dyn FnMut()| {
        let before = processor();
        work();
        print!("{name} {:.0} MB/s, ", per_second(BYTES, processor() - before));
    };
    step("chunking", &mut || {
        let mut cutter = Chunker::new();
        cutter.push(&raw, &mut |_| Ok::<(), Infallible>(())).expect("never fails");
    });
    step("hashing", &mut || {
        for chunk in raw.chunks(CHUNK) {
            std::hint::black_box(ChunkId::of(chunk));
        }
    });
    println!("of one processor");
}

/// Measures the maximum write rate of the disk.
fn raw_disk(mib: usize) {
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("dir");
    let mut file = fs::File::create(home.path().join("raw")).expect("creates");
    let (mut piece, mut random) = (Vec::new(), SmallRandom(6));
    fill(&mut random, &mut piece, 1 << 20, true);
    let began = Instant::now();
    for n in 0..mib {
        file.write_all(&piece).expect("writes");
        if n % 32 == 31 {
            file.sync_data().expect("syncs");
        }
    }
    file.sync_data().expect("syncs");
    println!("raw disk, {mib} MiB written and synced by 32 MiB: {:.0} MB/s", rate(mib << 20, began));
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let mib = args.iter().find_map(|arg| arg.parse().ok()).unwrap_or(256);
    match args.first().map(String::as_str) {
        Some(name @ "packs") => measure::<Packs>(name, "packs", mib),
        Some(name @ "fjall") => measure::<Fjall>(name, "fjall, separate values", mib),
        Some(name @ "files") => measure::<Files>(name, "a file per chunk", mib),
        Some("opened") => match (args[1].as_str(), Path::new(&args[2])) {
            ("packs", dir) => opened::<Packs>(dir),
            (_, dir) => opened::<Fjall>(dir),
        },
        Some("noise") => stream(mib, true),
        Some("rows") => stream(mib, false),
        Some("disk") => raw_disk(mib),
        _ => {
            println!(
                "| store | write, synced | read, verified | open | disk | after 3/4 removed | memory | open, 300,000 |"
            );
            for way in ["packs", "fjall", "files", "disk", "noise", "rows"] {
                let program = std::env::current_exe().expect("a path");
                let ended = Command::new(program).args([way, &mib.to_string()]).status().expect("runs");
                assert!(ended.success(), "{way}");
            }
        }
    }
}
