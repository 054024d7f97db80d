//! Tests of the log as a whole, on a file system with simulated crashes.

mod compaction;
mod repair;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::directory::SegmentName;
use super::format::LINEAGE_MAX;
use super::*;
use gravwell_env::fs::Fs;
use gravwell_env::memory_fs::{Fault, MemoryFs, SmallRandom, Survival};
use gravwell_model::codec::payload::decode_frames;
use gravwell_model::{
    Collection, Entry, EntryBody, Generation, Key, MemberName, Op, Origin, OriginCounter, Reason, Seq, Txn, TxnId,
};

pub(super) fn dir() -> PathBuf {
    PathBuf::from("/log")
}

pub(super) fn put(key: &str, value: impl Into<Bytes>) -> Op {
    Op::Put { collection: Collection::new("c").unwrap(), key: Key::new(key).unwrap(), value: value.into() }
}

pub(super) fn delete(key: &str) -> Op {
    Op::Delete { collection: Collection::new("c").unwrap(), key: Key::new(key).unwrap() }
}

pub(super) fn entry(seq: u64, ops: Vec<Op>) -> Entry {
    Entry {
        seq: Seq(seq),
        time_ms: 1_000 + seq,
        member: MemberName::new("web1").unwrap(),
        body: EntryBody::Commit(Txn {
            id: TxnId { origin: Origin([1; 16]), counter: OriginCounter(seq) },
            settled: OriginCounter(0),
            time_ms: 900 + seq,
            note: Bytes::from_static(b"note"),
            conditions: Vec::new(),
            ops,
        }),
    }
}

fn small(seq: u64) -> Entry {
    entry(seq, vec![put(&format!("k{seq}"), format!("value {seq}"))])
}

pub(super) fn options(segment_bytes: u64) -> LogOptions {
    LogOptions { segment_bytes, reserve_bytes: 0, ..LogOptions::default() }
}

pub(super) fn open(fs: &MemoryFs, options: LogOptions) -> Result<(Log, RecoveryReport), OpenError> {
    Log::open(Arc::new(fs.clone()), &dir(), options)
}

/// Appends and syncs `count` small entries in batches of up to three.
pub(super) fn fill(log: &mut Log, count: u64) -> Vec<Entry> {
    let mut all = Vec::new();
    let mut next = log.head().0.0 + 1;
    let end = next + count;
    while next < end {
        let batch: Vec<_> = (next..end.min(next + 1 + next % 3)).map(small).collect();
        next += batch.len() as u64;
        log.append(&batch).expect("appends");
        log.sync().expect("syncs");
        all.extend(batch);
    }
    all
}

fn read_all(log: &Log) -> Vec<Entry> {
    log.reader().entries(Seq(0), Seq(u64::MAX)).collect::<Result<_, _>>().expect("reads")
}

#[test]
fn p01_what_was_synced_is_read_back_after_reopening() {
    let fs = MemoryFs::new();
    let (mut log, report) = open(&fs, options(4096)).expect("creates");
    assert!(report.actions.contains(&RecoveryAction::CreateLog));
    let wrote = fill(&mut log, 200);
    assert!(log.reader().segments().len() > 3);
    assert_eq!(read_all(&log), wrote);
    let (id, head) = (log.log_id(), log.head());
    log.close().expect("closes");
    let (log, report) = open(&fs, options(4096)).expect("opens");
    assert_eq!(report.actions, Vec::new());
    assert_eq!((log.log_id(), log.head()), (id, head));
    assert_eq!(read_all(&log), wrote);
    let report = verify(&fs, &dir(), &mut |_, _| {});
    assert_eq!((report.damages, report.records, report.head), (Vec::new(), 200, Seq(200)));
    assert!(log.reader().verify(&mut |_, _| {}).expect("verifies").is_good());
}

#[test]
fn p02_blocks_of_frames_join_without_gaps_and_decode_to_the_entries() {
    let fs = MemoryFs::new();
    let (mut log, _) = open(&fs, options(4096)).expect("creates");
    let wrote = fill(&mut log, 150);
    let reader = log.reader();
    for bytes_max in [1, 300, 5000, 1 << 20] {
        let (mut at, mut got) = ((Seq(0), [0; 16]), Vec::new());
        while let Some(block) = reader.frames(at.0, bytes_max).expect("reads") {
            assert_eq!(block.prev_chain, at.1);
            let (entries, chain) = decode_frames(&block.bytes, at).expect("decodes");
            assert_eq!(
                (block.first, block.last, block.last_chain),
                (entries[0].seq, entries.last().unwrap().seq, chain)
            );
            assert_eq!(reader.chain_at(block.last).expect("reads"), Some(chain));
            at = (block.last, chain);
            got.extend(entries);
        }
        assert_eq!(got, wrote);
    }
    let record = reader.read_record(Seq(77)).expect("reads").expect("exists");
    assert_eq!(
        decode_frames(&record.bytes, (Seq(76), reader.chain_at(Seq(76)).unwrap().unwrap())).unwrap().0,
        [small(77)]
    );
    assert!(matches!(reader.frames(Seq(151), 9), Err(ReadError::Beyond { .. })));
}

#[test]
fn p02_readers_see_nothing_before_it_is_durable() {
    let fs = MemoryFs::new();
    let (mut log, _) = open(&fs, options(4096)).expect("creates");
    fill(&mut log, 3);
    log.append(&[small(4)]).expect("appends");
    assert_eq!(read_all(&log).len(), 3);
    assert!(matches!(log.append(&[small(5)]), Err(AppendError::Unsynced)));
    assert_eq!(log.sync().expect("syncs").seq(), Seq(4));
    assert_eq!(read_all(&log).len(), 4);
    assert!(matches!(log.append(&[small(9)]), Err(AppendError::Sequence { .. })));
}

/// Works until the machine stops. Returns the last acknowledged sequence and the last attempted one.
fn work(fs: &MemoryFs) -> (u64, u64) {
    let (mut durable, mut tried) = (0, 0);
    let mut run = || -> Option<()> {
        let (mut log, _) = open(fs, options(1500)).ok()?;
        (durable, tried) = (log.head().0.0, log.head().0.0);
        for round in 0..12 {
            let next = durable + 1;
            let batch: Vec<_> = (next..next + 1 + round % 3).map(small).collect();
            tried = durable + batch.len() as u64;
            log.append(&batch).ok()?;
            durable = log.sync().ok()?.seq().0;
            if round % 5 == 4 {
                log.idle().ok()?;
            }
        }
        log.close().ok()
    };
    run();
    (durable, tried)
}

#[test]
fn p01_a_crash_at_any_operation_loses_nothing_acknowledged() {
    let full = MemoryFs::new();
    work(&full);
    for stop in 0..full.operations() {
        let fs = MemoryFs::new();
        fs.fail_at(stop, Fault::Stop);
        let (durable, tried) = work(&fs);
        for (survival, seed) in [
            (Survival::Nothing, 0),
            (Survival::Everything, 0),
            (Survival::Prefix, stop),
            (Survival::Prefix, stop + 1000),
            (Survival::Sectors, stop),
            (Survival::Sectors, stop + 1000),
        ] {
            let after = fs.crash(survival, seed);
            let context = format!("stop {stop}, {survival:?}, seed {seed}");
            let (log, _) = open(&after, options(1500)).unwrap_or_else(|error| panic!("{context}: {error}"));
            let found = log.head().0.0;
            assert!((durable..=tried).contains(&found), "{context}: {durable} <= {found} <= {tried}");
            let expected: Vec<_> = (1..=found).map(small).collect();
            assert_eq!(read_all(&log), expected, "{context}");
            drop(log);
            // A second crash during recovery changes nothing, and the log can be appended to.
            let (more, _) = work(&after.crash(Survival::Nothing, 0));
            assert!(more > found, "{context}");
        }
    }
}

#[test]
fn p10_a_crash_during_recovery_is_recovered_from() {
    let fs = MemoryFs::new();
    fs.fail_at(70, Fault::Stop);
    let (durable, _) = work(&fs);
    let torn = fs.crash(Survival::Sectors, 3);
    for stop in 0..20 {
        let again = torn.crash(Survival::Everything, 0);
        again.fail_at(stop, Fault::Stop);
        let _ = open(&again, options(1500));
        let (log, _) = open(&again.crash(Survival::Prefix, stop), options(1500)).expect("opens");
        assert!(log.head().0.0 >= durable);
    }
}

fn sealed_names(fs: &MemoryFs) -> Vec<String> {
    let names = fs.list(&dir()).unwrap();
    names.into_iter().filter(|name| SegmentName::parse(name).is_some_and(|name| name.last.is_some())).collect()
}

#[test]
fn p10_any_flipped_bit_of_a_closed_segment_is_named() {
    let fs = MemoryFs::new();
    let (mut log, _) = open(&fs, options(1500)).expect("creates");
    fill(&mut log, 20);
    log.close().expect("closes");
    for name in sealed_names(&fs) {
        let path = dir().join(&name);
        for offset in 0..fs.contents(&path).unwrap().len() as u64 {
            fs.flip_bit(&path, offset, (offset % 8) as u8).unwrap();
            match open(&fs, options(1500)) {
                Err(OpenError::Damaged { first, .. }) => {
                    assert_eq!(first.file, name, "{first}");
                    assert!(first.offset <= offset && offset < first.offset + 600, "{offset}: {first}");
                }
                other => panic!("{name} {offset}: {other:?}"),
            }
            let report = verify(&fs, &dir(), &mut |_, _| {});
            assert!(report.damages.iter().any(|damage| damage.file == name), "{name} {offset}");
            fs.flip_bit(&path, offset, (offset % 8) as u8).unwrap();
        }
    }
    open(&fs, options(1500)).expect("opens again");
}

#[test]
fn p10_verify_lists_damage_in_every_file() {
    let fs = MemoryFs::new();
    let (mut log, _) = open(&fs, options(1500)).expect("creates");
    fill(&mut log, 60);
    log.close().expect("closes");
    let names = sealed_names(&fs);
    assert!(names.len() >= 3);
    for name in &names {
        fs.flip_bit(&dir().join(name), 300, 1).unwrap();
        fs.flip_bit(&dir().join(name), 900, 1).unwrap();
    }
    let report = verify(&fs, &dir(), &mut |_, _| {});
    for name in &names {
        assert!(report.damages.iter().filter(|damage| damage.file == *name).count() >= 2, "{name}: {report:?}");
    }
}

#[test]
fn p10_a_flipped_bit_before_later_batches_of_the_open_segment_is_damage() {
    let fs = MemoryFs::new();
    let (mut log, _) = open(&fs, options(1 << 20)).expect("creates");
    fill(&mut log, 10);
    drop(log);
    let name = SegmentName { first: Seq(1), last: None }.to_string();
    let path = dir().join(&name);
    for offset in (0..400).step_by(7) {
        fs.flip_bit(&path, offset, 0).unwrap();
        let before = fs.contents(&path).unwrap();
        assert!(matches!(open(&fs, options(1 << 20)), Err(OpenError::Damaged { .. })), "{offset}");
        assert_eq!(fs.contents(&path).unwrap(), before, "the file is unchanged");
        fs.flip_bit(&path, offset, 0).unwrap();
    }
    open(&fs, options(1 << 20)).expect("opens again");
}

#[test]
fn p10_the_head_file_tells_a_lost_end_from_a_torn_one() {
    for noted in [false, true] {
        let fs = MemoryFs::new();
        let (mut log, _) = open(&fs, options(1 << 20)).expect("creates");
        fill(&mut log, 10);
        if noted {
            log.idle().expect("writes the head file");
        }
        drop(log);
        let name = SegmentName { first: Seq(1), last: None }.to_string();
        let bytes = fs.contents(&dir().join(&name)).unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64;
        fs.flip_bit(&dir().join(&name), end, 0).unwrap();
        match (open(&fs, options(1 << 20)), noted) {
            (Err(OpenError::Damaged { first, .. }), true) => assert_eq!(first.file, name),
            (Ok((log, report)), false) => {
                assert_eq!(log.head().0, Seq(9));
                assert_eq!(report.quarantined.len(), 1);
                let cut = |report: &RecoveryReport| fs.contents(&dir().join(&report.quarantined[0])).unwrap();
                let first = cut(&report);
                assert!(first.len() > 48);
                // Another entry of the same length is cut off at the same offset.
                drop(log);
                let (mut log, _) = open(&fs, options(1 << 20)).expect("opens");
                fill(&mut log, 1);
                drop(log);
                fs.flip_bit(&dir().join(&name), end - 1, 1).unwrap();
                let (log, again) = open(&fs, options(1 << 20)).expect("opens");
                assert_eq!(log.head().0, Seq(9));
                assert_ne!(again.quarantined, report.quarantined);
                assert_ne!(cut(&again), first);
                assert_eq!(cut(&report), first, "the bytes quarantined first are kept");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn p10_missing_files_are_damage() {
    let build = || {
        let fs = MemoryFs::new();
        let (mut log, _) = open(&fs, options(1500)).expect("creates");
        fill(&mut log, 60);
        log.close().expect("closes");
        fs
    };
    let names = build().list(&dir()).unwrap();
    for name in names {
        let fs = build();
        fs.remove(&dir().join(&name)).unwrap();
        assert!(matches!(open(&fs, options(1500)), Err(OpenError::Damaged { .. })), "{name}");
    }
}

#[test]
fn a_full_disk_rejects_the_batch_and_writes_resume_when_there_is_space() {
    for room in [10, 100, 500, 900, 1300] {
        let fs = MemoryFs::new();
        let (mut log, _) = open(&fs, LogOptions { preallocate: false, ..options(1500) }).expect("creates");
        let mut wrote = fill(&mut log, 9);
        let used = u64::MAX - 1;
        fs.set_capacity(Some(used));
        let free = fs.free_space(Path::new("/")).unwrap();
        fs.set_capacity(Some(used - free + room));
        let mut refused = false;
        for _ in 0..40 {
            let next = small(log.head().0.0 + 1);
            match log.append(std::slice::from_ref(&next)) {
                Ok(_) => {
                    log.sync().expect("syncs");
                    wrote.push(next);
                }
                Err(AppendError::Full { .. }) => {
                    refused = true;
                    break;
                }
                Err(error) => panic!("{room}: {error}"),
            }
        }
        assert!(refused);
        assert_eq!(read_all(&log), wrote);
        let after = fs.crash(Survival::Sectors, room);
        after.set_capacity(None);
        assert_eq!(read_all(&open(&after, options(1500)).expect("opens").0), wrote);
        fs.set_capacity(None);
        wrote.extend(fill(&mut log, 20));
        assert_eq!(read_all(&log), wrote);
        drop(log);
        assert_eq!(read_all(&open(&fs, options(1500)).expect("opens").0), wrote);
    }
}

#[test]
fn p01_a_failed_sync_stops_the_writer() {
    let fs = MemoryFs::new();
    let (mut log, _) = open(&fs, options(1 << 20)).expect("creates");
    fill(&mut log, 2);
    log.append(&[small(3)]).expect("appends");
    fs.fail_at(fs.operations(), Fault::Once(io::ErrorKind::Other));
    assert!(matches!(log.sync(), Err(SyncError::Io(_))));
    assert!(matches!(log.sync(), Err(SyncError::Poisoned)));
    assert!(matches!(log.append(&[small(3)]), Err(AppendError::Poisoned)));
    assert_eq!(read_all(&log).len(), 2);
}

#[test]
fn p05_a_new_generation_is_durable_and_recorded() {
    let fs = MemoryFs::new();
    let (mut log, _) = open(&fs, options(1500)).expect("creates");
    fill(&mut log, 5);
    assert!(log.start_generation(Generation(1)).is_err(), "generation numbers are not reused");
    log.start_generation(Generation(2)).expect("starts");
    fill(&mut log, 5);
    let lineage = log.lineage();
    assert_eq!((lineage.len(), lineage[1].shared_to), (2, Seq(5)));
    let fs = fs.crash(Survival::Nothing, 0);
    let (log, _) = open(&fs, options(1500)).expect("opens");
    assert_eq!((log.generation().0, log.lineage(), log.head().0), (2, lineage, Seq(10)));
}

#[test]
fn p05_a_generation_of_more_than_32_bits_outlives_a_crash_and_the_lineage_has_an_end() {
    let fs = MemoryFs::new();
    let (mut log, _) = open(&fs, options(1500)).expect("creates");
    fill(&mut log, 5);
    for number in 1..LINEAGE_MAX as u64 {
        log.start_generation(Generation((number << 32) + 7)).expect("starts");
    }
    let last = log.generation();
    assert!(log.start_generation(Generation(last.0 + 1)).is_err_and(|error| error.to_string().contains("lineage")));
    fill(&mut log, 50);
    let lineage = log.lineage();
    assert_eq!((lineage.len(), last), (LINEAGE_MAX, Generation(((LINEAGE_MAX as u64 - 1) << 32) + 7)));
    let fs = fs.crash(Survival::Nothing, 0);
    let (log, _) = open(&fs, options(1500)).expect("opens");
    assert_eq!((log.generation(), log.lineage(), log.head().0), (last, lineage, Seq(55)));
}

#[test]
fn a_time_made_ambiguous_by_a_wrong_clock_cuts_nothing() {
    use super::backup_stream::{Cut, CutError, End, cut};
    let fs = MemoryFs::new();
    let (mut log, _) = open(&fs, options(1500)).expect("creates");
    let dated = |(seq, time_ms): (u64, u64)| Entry { time_ms, ..small(seq) };
    let entries: Vec<Entry> = [(1, 100), (2, 5000), (3, 5001), (4, 101), (5, 102)].map(dated).into();
    log.append(&entries).expect("appends");
    log.sync().expect("syncs");
    let about = Cut {
        log_id: log.log_id(),
        generation: Generation(2),
        lineage: log.lineage(),
        horizon: Seq(0),
        may_be_empty: false,
    };
    log.close().expect("closes");
    let at = |time| cut(&fs, &dir(), about.clone(), End::Time(time));
    for (time, ends) in [(101, (1, 4)), (4000, (1, 5)), (5000, (2, 5))] {
        let Err(CutError::TimesGoBack { early, late, .. }) = at(time) else { panic!("{time}") };
        assert_eq!((early.0, late.0), ends, "{time}");
    }
    assert_eq!(open(&fs, options(1500)).expect("opens").0.head().0, Seq(5));
    assert_eq!(at(100).expect("cuts").0, Seq(1), "no later record is as early");
}

#[test]
fn rejections_and_unknown_kinds_survive() {
    let fs = MemoryFs::new();
    let (mut log, _) = open(&fs, options(1500)).expect("creates");
    let id = TxnId { origin: Origin([2; 16]), counter: OriginCounter(1) };
    let reject = EntryBody::Reject { id, settled: OriginCounter(0), reason: Reason::IdentityReused };
    let unknown = EntryBody::Unknown { kind: 9, payload: Bytes::from_static(b"later") };
    let entries = vec![
        Entry { body: reject, ..small(1) },
        Entry { body: unknown, time_ms: 0, member: MemberName::new("unknown").unwrap(), ..small(2) },
    ];
    log.append(&entries).expect("appends");
    log.sync().expect("syncs");
    assert_eq!(read_all(&log), entries);
}

#[test]
fn random_sizes_survive_random_crashes() {
    for seed in 0..40 {
        let mut random = SmallRandom(seed);
        let fs = MemoryFs::new();
        fs.fail_at(20 + random.next_u64() % 150, Fault::Stop);
        let (mut durable, mut tried) = (Vec::new(), Vec::new());
        if let Ok((mut log, _)) = open(&fs, options(40_000)) {
            for _ in 0..60 {
                let count = 1 + random.below(4);
                let next = durable.len() as u64 + 1;
                let value = |random: &mut SmallRandom| vec![7u8; random.below(9_000)];
                tried = (next..).take(count).map(|seq| entry(seq, vec![put("k", value(&mut random))])).collect();
                if log.append(&tried).is_err() || log.sync().is_err() {
                    break;
                }
                durable.append(&mut tried);
            }
        }
        let (log, _) = open(&fs.crash(Survival::Sectors, seed), options(40_000)).expect("opens");
        let found = read_all(&log);
        durable.extend(tried);
        assert_eq!(found[..], durable[..found.len()], "seed {seed}");
    }
}

#[test]
fn the_real_file_system_keeps_a_log() {
    let place = tempfile::tempdir().expect("directory");
    let fs: Arc<dyn Fs> = Arc::new(gravwell_env::RealFs);
    let options = LogOptions { segment_bytes: 4096, reserve_bytes: 4096, ..LogOptions::default() };
    let (mut log, _) = Log::open(Arc::clone(&fs), &place.path().join("log"), options.clone()).expect("creates");
    let wrote = fill(&mut log, 100);
    log.close().expect("closes");
    let report = verify(&*fs, &place.path().join("log"), &mut |_, _| {});
    assert!(report.is_good() && report.records == 100, "{report:?}");
    let (log, report) = Log::open(fs, &place.path().join("log"), options).expect("opens");
    assert_eq!((report.actions, read_all(&log)), (Vec::new(), wrote));
    let mut compactor = Compactor::new(log.reader(), &place.path().join("base"));
    let outcome = compactor.run(Seq(85), 0, false, &mut |_, _| {}).expect("compacts");
    assert_eq!(outcome.horizon, log.horizon());
    assert!(log.horizon() > Seq(50), "{:?}", log.reader().segments());
    assert!(log.drop_reserve(), "the reserve existed");
    assert!(log.restore_reserve(), "there is space for it");
    assert_eq!(log.reader().history(Seq(100)).count(), 100);
}
