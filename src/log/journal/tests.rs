//! Tests of the journal with crashes, damage, and older copies put in its place.

use super::*;
use gravwell_env::memory_fs::{Fault, MemoryFs, Survival};

fn dir() -> PathBuf {
    PathBuf::from("/outbox")
}

fn record(n: u64) -> (u8, Vec<u8>) {
    (16 + (n % 3) as u8, vec![n as u8; 40 + n as usize * 7])
}

fn open(fs: &MemoryFs) -> Result<(Journal, Vec<JournalEntry>), JournalError> {
    let (journal, records) = Journal::open(Arc::new(fs.clone()), &dir())?;
    Ok((journal, records.into_iter().map(|record| (record.kind, record.payload)).collect()))
}

/// Appends records in batches of two and, after every five batches, replaces all of them by the newer half. Returns
/// the number ranges that may be found afterwards: the durable records, and those possibly written in addition.
fn work(fs: &MemoryFs) -> Vec<std::ops::Range<u64>> {
    let mut allowed = vec![0..0];
    let mut run = || -> Option<()> {
        let (mut journal, _) = open(fs).ok()?;
        let (mut from, mut to) = (0, 0);
        for round in 1..12 {
            let batch: Vec<_> = (to..to + 2).map(record).collect();
            allowed = vec![from..to, from..to + 1, from..to + 2];
            journal.append(&batch).ok()?;
            journal.sync().ok()?;
            to += 2;
            allowed = vec![from..to];
            if round % 3 == 0 {
                journal.vouch();
            }
            if round % 5 == 0 {
                let half = u64::midpoint(from, to);
                allowed = vec![from..to, half..to];
                journal.replace_with((half..to).map(record).collect::<Vec<_>>()).ok()?;
                from = half;
                allowed = vec![from..to];
            }
        }
        Some(())
    };
    run();
    allowed
}

#[test]
fn p07_a_crash_at_any_operation_keeps_what_was_acknowledged() {
    let full = MemoryFs::new();
    work(&full);
    for stop in 0..full.operations() {
        let fs = MemoryFs::new();
        fs.fail_at(stop, Fault::Stop);
        let allowed = work(&fs);
        for survival in [Survival::Nothing, Survival::Everything, Survival::Prefix, Survival::Sectors] {
            let (_, found) = open(&fs.crash(survival, stop)).unwrap_or_else(|e| panic!("{stop} {survival:?}: {e}"));
            let fits = |range: &std::ops::Range<u64>| range.clone().map(record).eq(found.iter().cloned());
            assert!(allowed.iter().any(fits), "{stop} {survival:?}: {} records, {allowed:?}", found.len());
        }
    }
}

#[test]
fn p07_a_power_cut_on_a_full_disk_leaves_the_head_a_slot() {
    for seed in 0..200 {
        let fs = MemoryFs::new();
        let append = |journal: &mut Journal, n: u64| {
            journal.append(&[record(n)]).expect("fits");
            journal.sync().expect("syncs");
        };
        let (mut journal, _) = open(&fs).expect("opens");
        append(&mut journal, 0);
        journal.vouch();
        append(&mut journal, 1);
        // The process was killed before the head was synced, and is restarted where there is no room for a new head.
        fs.set_capacity(Some(fs.used_bytes() + 1000));
        let (mut journal, found) = open(&fs).expect("opens on a full disk");
        assert_eq!(found.len(), 2);
        append(&mut journal, 2);
        let survival = if seed % 2 == 0 { Survival::Sectors } else { Survival::Prefix };
        let fs = fs.crash(survival, seed);
        let (_, found) = open(&fs).unwrap_or_else(|error| panic!("{seed}: {error}"));
        assert_eq!(found.len(), 3, "{seed}");
        // With free space again, the new head is created.
        let (mut journal, _) = open(&fs).expect("opens");
        fs.set_capacity(None);
        append(&mut journal, 3);
        journal.vouch();
        let fs = fs.crash(Survival::Nothing, seed);
        let file = fs.open(&dir().join(FILE)).expect("exists");
        file.set_len(HEADER_BYTES as u64).expect("cuts");
        assert!(open(&fs).is_err(), "{seed}: the head vouches for the truncated records");
    }
}

#[test]
fn p10_damage_before_later_batches_is_refused() {
    let fs = MemoryFs::new();
    let (mut journal, _) = open(&fs).expect("creates");
    for n in 0..6 {
        journal.append(&[record(n)]).expect("appends");
    }
    journal.sync().expect("syncs");
    for offset in (0..300).step_by(5) {
        fs.flip_bit(&dir().join(FILE), offset, 3).expect("flips");
        assert!(matches!(open(&fs), Err(JournalError::Damaged(_))), "{offset}");
        fs.flip_bit(&dir().join(FILE), offset, 3).expect("flips");
    }
    assert_eq!(open(&fs).expect("opens").1, (0..6).map(record).collect::<Vec<_>>());
}

/// Creates a journal of six records for which the head vouches.
fn six() -> MemoryFs {
    let fs = MemoryFs::new();
    let (mut journal, _) = open(&fs).expect("creates");
    for n in 0..6 {
        journal.append(&[record(n)]).expect("appends");
    }
    journal.sync().expect("syncs");
    journal.vouch();
    fs
}

#[test]
fn p10_a_journal_that_is_missing_or_ends_earlier_is_refused_and_the_loss_can_be_accepted() {
    let whole = six();
    let path = dir().join(FILE);
    let length = whole.contents(&path).expect("reads").len() as u64;
    let end = length - gravwell_model::codec::frame::HEADER_BYTES as u64;
    let mut kept = std::collections::BTreeSet::new();
    for cut in (0..end).step_by(7).map(Some).chain([None]) {
        let fs = whole.crash(Survival::Everything, 0);
        match cut {
            Some(cut) => fs.open(&path).expect("opens").set_len(cut).expect("cuts"),
            None => fs.remove(&path).expect("removes"),
        }
        let error = open(&fs).expect_err("is damaged");
        assert!(
            matches!(error, JournalError::Damaged(_))
                && error.to_string().contains("according to `head`") == (cut >= Some(96) || cut.is_none()),
            "{cut:?}: {error}"
        );
        let shared: Arc<dyn Fs> = Arc::new(fs.clone());
        let count = Journal::accept_loss(&shared, &dir()).expect("accepts");
        let found = open(&fs).expect("opens").1;
        assert_eq!(found, (0..count).map(record).collect::<Vec<_>>());
        assert_eq!(fs.exists(&dir().join("journal.damaged-1")).expect("looks"), cut.is_some());
        assert!(fs.exists(&dir().join("head.damaged-1")).expect("looks"));
        kept.insert(count);
    }
    assert_eq!(kept, (0..6).collect());
}

#[test]
fn p10_a_journal_and_a_head_that_do_not_belong_together_are_refused() {
    let (old, path) = (six(), dir().join(FILE));
    let fs = old.crash(Survival::Everything, 0);
    let (mut journal, _) = open(&fs).expect("opens");
    journal.replace_with((2..6).map(record).collect::<Vec<_>>()).expect("replaces");
    let put = |fs: &MemoryFs, name: &str, bytes: &[u8]| {
        fs.create(&dir().join(name)).expect("creates").write_at(bytes, 0).expect("writes");
    };
    let rolled_back = fs.crash(Survival::Everything, 0);
    put(&rolled_back, FILE, &old.contents(&path).expect("reads"));
    assert!(matches!(open(&rolled_back), Err(JournalError::Damaged(_))), "an older journal");
    let other_head = fs.crash(Survival::Everything, 0);
    put(&other_head, HEAD, &six().contents(&dir().join(HEAD)).expect("reads"));
    assert!(matches!(open(&other_head), Err(JournalError::Damaged(_))), "the head of another journal");
    let no_head = fs.crash(Survival::Everything, 0);
    no_head.remove(&dir().join(HEAD)).expect("removes");
    assert!(matches!(open(&no_head), Err(JournalError::Damaged(_))), "no head");
    assert_eq!(open(&fs).expect("opens").1.len(), 4);
}

/// Replaces the contents of the directory in `fs` by those in `copy`.
fn put_back(fs: &MemoryFs, copy: &MemoryFs) {
    for name in copy.list(&dir()).expect("lists") {
        let bytes = copy.contents(&dir().join(&name)).expect("reads");
        fs.create(&dir().join(&name)).expect("creates").write_at(&bytes, 0).expect("writes");
    }
}

#[test]
fn p10_a_directory_that_is_an_older_copy_is_refused_and_its_loss_can_be_accepted() {
    let old = six();
    type Change<'a> = &'a dyn Fn(&mut Journal);
    let append = |journal: &mut Journal, n: u64| {
        journal.append(&[record(n)]).expect("appends");
        journal.sync().expect("syncs");
    };
    let changes: [(&str, Change); 4] = [
        ("one record appended", &|journal| append(journal, 6)),
        ("rewritten", &|journal| journal.replace_with((2..6).map(record).collect::<Vec<_>>()).expect("replaces")),
        ("rewritten, and one record appended", &|journal| {
            journal.replace_with(Vec::<JournalEntry>::new()).expect("replaces");
            append(journal, 7);
        }),
        ("another journal", &|_| {}),
    ];
    for (what, change) in changes {
        let fs = old.crash(Survival::Everything, 0);
        let (mut journal, _) = open(&fs).expect("opens");
        change(&mut journal);
        drop(journal);
        // Only the syncs needed to acknowledge a write have happened.
        let now = fs.contents(&witness_of(&dir())).expect("reads");
        let other = six();
        put_back(&fs, if what == "another journal" { &other } else { &old });
        let error = open(&fs).expect_err("is an older copy");
        assert!(matches!(error, JournalError::Damaged(_)), "{what}: {error}");
        assert_eq!(fs.contents(&witness_of(&dir())).expect("reads"), now, "{what}: the witness is unchanged");
        assert!(open(&fs).is_err(), "{what}: opened the second time");
        let shared: Arc<dyn Fs> = Arc::new(fs.clone());
        assert_eq!(Journal::accept_loss(&shared, &dir()).expect("accepts"), 6, "{what}");
        assert_eq!(open(&fs).expect("opens").1, (0..6).map(record).collect::<Vec<_>>(), "{what}");
        let kept = fs.contents(&dir().with_file_name("outbox.head.damaged-1")).expect("is kept");
        assert_eq!(kept, now, "{what}: the copy is kept");
    }
    // A copy from before the first write, and a directory without files.
    for name in [FILE, HEAD] {
        old.remove(&dir().join(name)).expect("removes");
    }
    assert!(matches!(open(&old), Err(JournalError::Damaged(_))), "a missing directory");
    let (empty, fs) = (MemoryFs::new(), six());
    drop(open(&empty).expect("creates"));
    put_back(&fs, &empty);
    assert!(matches!(open(&fs), Err(JournalError::Damaged(_))), "an empty directory");
}

#[test]
fn p10_a_witness_that_is_missing_or_damaged_is_noticed_once_there_was_one() {
    let fs = six();
    let witness = witness_of(&dir());
    let good = fs.contents(&witness).expect("reads");
    fs.remove(&witness).expect("removes");
    let error = open(&fs).expect_err("is missing").to_string();
    assert!(error.contains("outbox.head"), "{error}");
    fs.create(&witness).expect("creates").write_at(&vec![7; good.len()], 0).expect("writes");
    assert!(matches!(open(&fs), Err(JournalError::Damaged(_))));
    fs.create(&witness).expect("creates").write_at(&good, 0).expect("writes");
    assert_eq!(open(&fs).expect("opens").1.len(), 6);
}

#[test]
fn p12_a_journal_without_a_head_is_upgraded_whatever_crash_comes() {
    let released = || {
        let fs = MemoryFs::new();
        let header = FileHeader { flags: FLAG_JOURNAL, generation: Generation(1), ..FileHeader::default() };
        let mut bytes = header.encode().to_vec();
        let records: Vec<_> = (0..3).map(record).collect();
        encode_all(&records, Seq::ZERO, CHAIN_START, &mut bytes).expect("encodes");
        gravwell_env::fs::Fs::create_dir_all(&fs, &dir()).expect("makes");
        gravwell_env::fs::replace_file(&fs, &dir().join(FILE), &bytes).expect("writes");
        fs
    };
    let full = released();
    let from = full.operations();
    assert_eq!(open(&full).expect("opens").1.len(), 3);
    for stop in from..full.operations() {
        let fs = released();
        fs.fail_at(stop, Fault::Stop);
        let _ = open(&fs);
        for survival in [Survival::Nothing, Survival::Everything, Survival::Prefix, Survival::Sectors] {
            let fs = fs.crash(survival, stop);
            let (_, found) = open(&fs).unwrap_or_else(|e| panic!("{stop} {survival:?}: {e}"));
            assert_eq!(found, (0..3).map(record).collect::<Vec<_>>(), "{stop} {survival:?}");
        }
    }
    full.remove(&dir().join(FILE)).expect("removes");
    assert!(matches!(open(&full), Err(JournalError::Damaged(_))), "the upgraded journal has a head");
}

#[test]
fn kinds_of_the_log_are_refused() {
    let (mut journal, _) = open(&MemoryFs::new()).expect("creates");
    assert!(matches!(journal.append(&[(1, vec![])]), Err(JournalError::Kind { found: 1 })));
}
