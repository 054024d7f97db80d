//! Tests of the state on disk: killed processes, truncated files and flipped bits.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;
use crate::fjall_engine::FjallEngine;

/// Number of flipped bits: enough to notice a regression; more were tried by hand.
const FLIPS: u64 = 60;
const DIR: &str = "GRAVWELL_TEST_STATE_DIR";

fn open(dir: &Path) -> Result<StateStore, StateError> {
    StateStore::open(dir, CACHE_BYTES)
}

/// Returns an entry derived from its sequence alone: puts, replacements and deletes over a few thousand keys.
fn scripted(seq: u64) -> Entry {
    let hash = blake3::hash(&seq.to_le_bytes());
    let bytes = hash.as_bytes();
    let name = |i: usize| format!("key-{}", u16::from_le_bytes([bytes[i], bytes[i + 1]]) % 3000);
    let value = [bytes.as_slice(); 8].concat();
    let ops = vec![put("a", &name(0), &value), put("b", &name(2), &bytes[..9]), delete("a", &name(4))];
    commit(seq, bytes[6] % 3, seq, 0, ops)
}

fn script(from: u64, to: u64) -> Vec<Entry> {
    (from..=to).map(scripted).collect()
}

fn begin(dir: &Path) -> StateStore {
    let store = open(dir).expect("open");
    store.init(LogId([1; 16]), Generation(1), vec![]).expect("init");
    store
}

/// Not a test: the process killed by [`p03_killed_anywhere_it_is_at_a_position`].
#[test]
#[ignore = "started by another test"]
fn writes_until_killed() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let store = open(&dir).expect("open");
    if store.meta().is_none() {
        store.init(LogId([1; 16]), Generation(1), vec![]).expect("init");
    }
    loop {
        let seq = store.meta().expect("meta").seq.0;
        apply(&store, &script(seq + 1, seq + 1 + seq % 200));
    }
}

/// Runs one of the ignored tests below on `dir`, using the current executable.
fn child(test: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("exe"));
    command.args(["--exact", &format!("tests::crash::{test}"), "--ignored"]);
    command.env(DIR, dir).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn child_ends(test: &str, dir: &Path) -> Option<i32> {
    child(test, dir).status().expect("child").code()
}

#[test]
fn p03_killed_anywhere_it_is_at_a_position() {
    let dir = tempfile::tempdir().expect("dir");
    let mut reached = 0;
    // On a busy host the first processes may be killed before they have written anything.
    for round in 0..60u64 {
        if round >= 6 && reached > 0 {
            break;
        }
        let mut child = child("writes_until_killed", dir.path()).spawn().expect("spawn");
        std::thread::sleep(Duration::from_millis(150 + 61 * round));
        child.kill().expect("kill");
        child.wait().expect("wait");
        let store = open(dir.path()).expect("opens after the kill");
        let Some(meta) = store.meta() else { continue };
        assert!(meta.seq.0 >= reached, "the position did not go back");
        reached = meta.seq.0;
        assert_eq!(meta.chain, if reached == 0 { [0; 16] } else { chain(meta.seq) });
        Model::of(&script(1, reached)).assert_is(&store);
    }
    assert!(reached > 0, "the writer made no progress");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("mkdir");
    for entry in std::fs::read_dir(from).expect("dir") {
        let entry = entry.expect("entry");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).expect("copy");
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).expect("dir") {
        let path = entry.expect("entry").path();
        if path.is_dir() { out.extend(files(&path)) } else { out.push(path) }
    }
    out.sort();
    out
}

/// Returns the newest journal and its contents without the unused end.
fn journal(dir: &Path) -> (PathBuf, Vec<u8>) {
    let path = files(dir).into_iter().rfind(|path| path.extension().is_some_and(|e| e == "jnl")).expect("journal");
    let mut bytes = std::fs::read(&path).expect("read");
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes.truncate(used);
    (path, bytes)
}

/// A prefix of the batches in the journal, combined with tables on disk that are newer than the truncation.
#[test]
fn p03_a_lost_end_of_the_journal_leaves_an_earlier_position() {
    let home = tempfile::tempdir().expect("dir");
    let (dir, image) = (home.path().join("state"), home.path().join("image"));
    let store = begin(&dir);
    let mut seq = 0;
    let big = vec![7; 20_000];
    while files(&dir.join("keyspaces")).len() < 12 && seq < 4000 {
        let mut batch = script(seq + 1, seq + 20);
        seq += 20;
        if let EntryBody::Commit(txn) = &mut batch[19].body {
            txn.ops.extend((0..20).map(|i| put("big", &format!("{seq}-{i}"), &big)));
        }
        store.apply(&batch, chain(Seq(seq))).expect("apply");
    }
    std::thread::sleep(Duration::from_millis(300));
    copy(&dir, &image);
    drop(store);
    let (path, bytes) = journal(&image);
    let mut positions = std::collections::BTreeSet::new();
    for step in 0..12 {
        let _ = std::fs::remove_dir_all(&dir);
        copy(&image, &dir);
        let keep = bytes.len() * step / 12 + step;
        let name = path.file_name().expect("name");
        std::fs::write(dir.join(name), &bytes[..keep]).expect("cut");
        let store = open(&dir).expect("open");
        let Some(meta) = store.meta() else { continue };
        assert_eq!(store.check().expect("check").damage, vec![], "cut at {keep}: position {}", meta.seq);
        positions.insert(meta.seq);
    }
    assert!(positions.last().is_some_and(|last| last.0 > 0));
}

/// Pages of the unsynced end reach the disk in any order: some are missing while later ones are present.
#[test]
fn p03_holes_in_the_end_of_the_journal_leave_an_earlier_position() {
    let home = tempfile::tempdir().expect("dir");
    let (dir, image) = (home.path().join("state"), home.path().join("image"));
    let store = begin(&dir);
    for from in (0..1000).step_by(10) {
        apply(&store, &script(from + 1, from + 10));
    }
    drop(store);
    copy(&dir, &image);
    let (path, bytes) = journal(&image);
    let mut positions = std::collections::BTreeSet::new();
    for page in (1..bytes.len() / 4096).step_by(9) {
        let _ = std::fs::remove_dir_all(&dir);
        copy(&image, &dir);
        let mut holed = bytes.clone();
        holed[page * 4096..(page + 1) * 4096].fill(0);
        std::fs::write(dir.join(path.file_name().expect("name")), &holed).expect("write");
        let store = open(&dir).expect("open");
        let seq = store.meta().map_or(0, |meta| meta.seq.0);
        assert!(seq < 1000);
        if seq > 0 {
            Model::of(&script(1, seq)).assert_is(&store);
        }
        apply(&store, &script(seq + 1, seq + 10));
        drop(store);
        Model::of(&script(1, seq + 10)).assert_is(&open(&dir).expect("open again"));
        positions.insert(seq);
    }
    assert!(positions.len() > 5, "{positions:?}");
}

/// Any read returns either the original data or an error; the check finds damage that opening does not notice.
#[test]
fn p10_a_flipped_bit_is_never_believed() {
    let home = tempfile::tempdir().expect("dir");
    let (dir, image) = (home.path().join("state"), home.path().join("image"));
    let store = begin(&dir);
    for from in (0..2000).step_by(50) {
        apply(&store, &script(from + 1, from + 50));
    }
    drop(store);
    FjallEngine::open(&dir, CACHE_BYTES).expect("engine").flush_to_tables();
    let store = open(&dir).expect("open");
    for from in (2000..3000).step_by(50) {
        apply(&store, &script(from + 1, from + 50));
    }
    drop(store);
    copy(&dir, &image);
    let sizes = |path: &PathBuf| {
        if path.extension().is_some_and(|e| e == "jnl") {
            journal(&image).1.len()
        } else {
            std::fs::metadata(path).expect("size").len() as usize
        }
    };
    let targets = files(&image).into_iter().map(|path| (sizes(&path), path)).filter(|(size, _)| *size > 0);
    let targets = targets.collect::<Vec<_>>();
    let (mut refused, mut earlier, mut found, mut harmless, mut aborted) = (0, 0, 0, 0, 0);
    for round in 0..FLIPS {
        let hash = blake3::hash(&round.to_le_bytes());
        let random = u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("8"));
        let (size, path) = &targets[round as usize % targets.len()];
        let _ = std::fs::remove_dir_all(&dir);
        copy(&image, &dir);
        let victim = dir.join(path.strip_prefix(&image).expect("inside"));
        let mut bytes = std::fs::read(&victim).expect("read");
        bytes[(random >> 8) as usize % size] ^= 1 << (random % 8);
        std::fs::write(&victim, bytes).expect("write");
        match child_ends("examines", &dir) {
            Some(REFUSED) => refused += 1,
            Some(FOUND_BY_CHECK) => found += 1,
            Some(EARLIER) => earlier += 1,
            Some(HARMLESS) => harmless += 1,
            Some(BELIEVED) => panic!("{} was accepted with a flipped bit", path.display()),
            Some(other) => panic!("{} with a flipped bit: exited with {other}", path.display()),
            None => {
                aborted += 1;
                let ends = [(); 2].map(|()| child_ends("examines", &dir));
                assert_eq!(ends, [None, None], "aborts again");
                assert_eq!(child_ends("examines", &dir), Some(REFUSED), "not forever");
            }
        }
    }
    assert!(refused + found + earlier > 0, "{refused} {found} {earlier} {harmless} {aborted}");
}

const HARMLESS: i32 = 40;
const REFUSED: i32 = 41;
const EARLIER: i32 = 42;
const FOUND_BY_CHECK: i32 = 43;
const BELIEVED: i32 = 44;

/// Not a test: the process whose exit codes [`p10_a_flipped_bit_is_never_believed`] evaluates.
#[test]
#[ignore = "started by another test"]
fn examines() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    std::process::exit(examine(&dir));
}

fn examine(dir: &Path) -> i32 {
    let Ok(store) = open(dir) else { return REFUSED };
    let Some(meta) = store.meta() else { return REFUSED };
    let Ok(report) = store.check() else { return REFUSED };
    let model = Model::of(&script(1, meta.seq.0));
    for ((c, k), object) in &model.objects {
        match store.get(c, k) {
            Ok(Some(found)) if found.value == object.value => {}
            Err(_) => return REFUSED,
            _ if !report.damage.is_empty() => return FOUND_BY_CHECK,
            _ => return BELIEVED,
        }
    }
    match (report.damage.is_empty(), meta.seq.0) {
        (false, _) => FOUND_BY_CHECK,
        (true, 3000) => HARMLESS,
        (true, _) => EARLIER,
    }
}

#[test]
fn p09_disk_and_memory_agree_and_reopening_changes_nothing() {
    let dir = tempfile::tempdir().expect("dir");
    let memory = empty();
    let mut store = begin(dir.path());
    for from in (0..600).step_by(30) {
        let batch = script(from + 1, from + 30);
        apply(&memory, &batch);
        apply(&store, &batch);
        if from % 150 == 0 {
            store.persist().expect("persist");
            drop(store);
            store = open(dir.path()).expect("open");
        }
        assert_eq!(store.meta(), memory.meta());
    }
    Model::of(&script(1, 600)).assert_is(&store);
    let second = open(dir.path()).err().expect("refuses a second handle");
    assert!(matches!(second, StateError::Locked { .. }), "{second}");
    assert!(store.disk_bytes() > 0);
}

#[test]
fn p03_readers_beside_the_writer_see_whole_batches() {
    let dir = tempfile::tempdir().expect("dir");
    let store = begin(dir.path());
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut last = Seq::ZERO;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let view = store.snapshot().expect("snapshot");
                    assert_eq!(view.check().expect("check").damage, vec![]);
                    let seq = view.meta().expect("meta").seq;
                    assert!(seq >= last);
                    last = seq;
                }
            });
        }
        for from in (0..1500).step_by(25) {
            apply(&store, &script(from + 1, from + 25));
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    Model::of(&script(1, 1500)).assert_is(&store);
}

#[test]
fn an_interrupted_filling_is_noticed() {
    let dir = tempfile::tempdir().expect("dir");
    let store = open(dir.path()).expect("open");
    let mut loader = store.loader().expect("loader");
    loader.base(&script(1, 10)).expect("base");
    drop(loader);
    drop(store);
    let store = open(dir.path()).expect("open");
    assert_eq!(store.meta(), None);
    assert_eq!(store.loader().err(), Some(StateError::Unfinished));
    assert_eq!(store.init(LogId([1; 16]), Generation(1), vec![]), Err(StateError::Unfinished));
    assert_eq!(store.check(), Err(StateError::Uninitialised));
}
