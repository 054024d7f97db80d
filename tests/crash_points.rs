//! Runs a long script on a log and an outbox journal, with a crash or failure at every single file operation.
//!
//! After a crash the log opens, everything acknowledged is present, nothing is invented, and the script can be
//! completed. After a failed operation everything acknowledged is present, and everything shown after a restart
//! survives a crash. Runs a sample by default; `GRAVWELL_CRASH_POINTS=all` runs everything. The totals are printed to
//! standard output.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Arc;

use gravwell_env::memory_fs::{Fault, MemoryFs, Survival};
use gravwell_log::journal::{Journal, JournalEntry, JournalError};
use gravwell_log::{AppendError, Log};
use gravwell_model::{Entry, Generation, Seq};
use gravwell_tests::logkit::{check, compact, history, is_full, open, outbox_dir};

const ENTRIES: u64 = 210;

/// The promised contents, and additional contents that may exist.
#[derive(Clone, Debug, Default)]
struct Promised {
    seq: u64,
    tried: u64,
    generation: u64,
    /// Possible contents of the journal, as ranges of record numbers.
    journal: Vec<Range<u64>>,
}

/// The machine or the process must be restarted.
#[derive(Debug)]
struct Stopped(String);

fn stopped(error: impl std::fmt::Display) -> Stopped {
    Stopped(error.to_string())
}

fn record(n: u64) -> JournalEntry {
    (16 + (n % 3) as u8, vec![n as u8; 10 + (n % 5) as usize * 60])
}

fn open_journal(fs: &MemoryFs) -> Result<(Journal, Vec<JournalEntry>), JournalError> {
    let (journal, records) = Journal::open(Arc::new(fs.clone()), &outbox_dir())?;
    Ok((journal, records.into_iter().map(|record| (record.kind, record.payload)).collect()))
}

/// Returns the allowed range of records that the journal contains.
fn range_of(found: &[JournalEntry], allowed: &[Range<u64>]) -> Option<Range<u64>> {
    if allowed.is_empty() && found.is_empty() {
        return Some(0..0);
    }
    allowed.iter().find(|range| (*range).clone().map(record).eq(found.iter().cloned())).cloned()
}

/// The script, from the current contents of the files to its end.
struct Life<'a> {
    fs: &'a MemoryFs,
    all: &'a [Entry],
    promised: &'a mut Promised,
}

impl Life<'_> {
    fn run(&mut self) -> Result<(), Stopped> {
        let (mut log, _) = open(self.fs).map_err(stopped)?;
        let (mut journal, found) = open_journal(self.fs).map_err(stopped)?;
        let held = range_of(&found, &self.promised.journal);
        let mut held = held.unwrap_or_else(|| panic!("journal: {} records, {:?}", found.len(), self.promised));
        self.promised.journal = vec![held.clone()];
        self.promised.seq = self.promised.seq.max(log.head().0.0);
        while log.head().0.0 < ENTRIES {
            let head = log.head().0.0;
            self.batch(&mut log)?;
            let now = log.head().0.0;
            let passed = |mark: u64| head < mark && mark <= now;
            if (1..20).any(|n| passed(n * 17)) {
                // A failure here does not affect the log.
                let _ = log.idle();
            }
            if passed(100) || passed(170) {
                match log.seal() {
                    Ok(()) | Err(AppendError::Full { .. }) => {}
                    Err(error) => return Err(stopped(error)),
                }
            }
            if passed(60) || passed(120) || passed(180) {
                let _ = compact(&log, now - 15);
            }
            if now >= 90 && log.generation().0 == 1 {
                match log.start_generation(Generation((1 << 52) | 77)) {
                    Ok(()) => self.promised.generation = log.generation().0,
                    Err(AppendError::Full { .. }) => {}
                    Err(error) => return Err(stopped(error)),
                }
            }
            self.journal(&mut journal, &mut held, now)?;
            if passed(80) || passed(150) {
                log.close().map_err(stopped)?;
                log = open(self.fs).map_err(stopped)?.0;
            }
        }
        log.close().map_err(stopped)
    }

    fn batch(&mut self, log: &mut Log) -> Result<(), Stopped> {
        let head = log.head().0.0;
        let end = (head + 1 + head % 3).min(ENTRIES);
        let batch = &self.all[head as usize..end as usize];
        self.promised.tried = end;
        match log.append(batch) {
            Ok(_) => {}
            // The batch is rejected like a push; the next round tries again.
            Err(AppendError::Full { .. }) => {
                self.promised.tried = head;
                return Ok(());
            }
            Err(error) => return Err(stopped(error)),
        }
        self.promised.seq = log.sync().map_err(stopped)?.seq().0;
        Ok(())
    }

    fn journal(&mut self, journal: &mut Journal, held: &mut Range<u64>, now: u64) -> Result<(), Stopped> {
        let next = held.end;
        // After a failed rewrite the files may contain the new or the previous records.
        let longer: Vec<_> = self.promised.journal.iter().map(|range| range.start..next + 1).collect();
        self.promised.journal.extend(longer);
        match journal.append(&[record(next)]) {
            Ok(()) => journal.sync().map_err(stopped)?,
            Err(error) => {
                return if matches!(error, JournalError::Io(_)) { Ok(()) } else { Err(stopped(error)) };
            }
        }
        held.end = next + 1;
        self.promised.journal = vec![held.clone()];
        if now.is_multiple_of(13) {
            let newer = u64::midpoint(held.start, held.end)..held.end;
            self.promised.journal.push(newer.clone());
            match journal.replace_with(newer.clone().map(record).collect::<Vec<_>>()) {
                Ok(()) => *held = newer,
                Err(JournalError::Io(_)) => return Ok(()),
                Err(error) => return Err(stopped(error)),
            }
            self.promised.journal = vec![held.clone()];
        }
        Ok(())
    }
}

fn live(fs: &MemoryFs, all: &[Entry], promised: &mut Promised) -> Result<(), Stopped> {
    Life { fs, all, promised }.run()
}

/// Opens the files left by a crash and compares them with the promised contents. Returns the contents found.
fn after_crash(fs: &MemoryFs, all: &[Entry], promised: &Promised, context: &str) -> Promised {
    let (log, _) = open(fs).unwrap_or_else(|error| panic!("{context}: {error}"));
    let found = check(&log, all, context).head.0;
    let Promised { seq, tried, generation, .. } = promised;
    assert!((*seq..=*tried.max(seq)).contains(&found), "{context}: {seq} <= {found} <= {tried}");
    assert!(log.generation().0 >= *generation, "{context}: generation {generation}");
    let (_, records) = open_journal(fs).unwrap_or_else(|error| panic!("{context}: {error}"));
    let held = range_of(&records, &promised.journal);
    let held = held.unwrap_or_else(|| panic!("{context}: journal has {} records, {promised:?}", records.len()));
    Promised { seq: found, tried: found, generation: log.generation().0, journal: vec![held] }
}

/// Completes the script on a machine without faults.
fn to_the_end(fs: &MemoryFs, all: &[Entry], promised: &mut Promised, context: &str) {
    live(fs, all, promised).unwrap_or_else(|Stopped(error)| panic!("{context}: {error}"));
    let (log, _) = open(fs).expect("opens");
    check(&log, all, context);
    assert_eq!(log.head().0, Seq(ENTRIES), "{context}");
    assert!(log.reader().verify(&mut |_, _| {}).expect("verifies").is_good(), "{context}");
}

fn operations(all: &[Entry]) -> u64 {
    let fs = MemoryFs::new();
    let mut promised = Promised::default();
    to_the_end(&fs, all, &mut promised, "undisturbed");
    assert!(fs.operations() >= 300, "{}", fs.operations());
    fs.operations()
}

#[test]
fn p01_a_crash_after_any_operation_loses_nothing_acknowledged() {
    let all = history(ENTRIES);
    let (count, full) = (operations(&all), is_full("GRAVWELL_CRASH_POINTS"));
    let (mut crashes, mut finished) = (0, 0);
    for stop in 0..=count {
        let fs = MemoryFs::new();
        fs.fail_at(stop, Fault::Stop);
        let mut promised = Promised::default();
        let ended = live(&fs, &all, &mut promised);
        assert!(ended.is_err() || stop >= count - 8, "{stop}: operations continued after the crash");
        let seeds = [stop, stop + 1_000, stop + 2_000];
        let kinds = [Survival::Prefix, Survival::Sectors].into_iter().flat_map(|kind| seeds.map(|seed| (kind, seed)));
        let ways = [(Survival::Nothing, 0), (Survival::Everything, 0)].into_iter().chain(kinds);
        for (number, (survival, seed)) in ways.enumerate() {
            let is_sampled = (stop + number as u64).is_multiple_of(4);
            if !full && !is_sampled {
                continue;
            }
            let context = format!("crash at {stop}, {survival:?}, seed {seed}");
            let after = fs.crash(survival, seed);
            let mut there = after_crash(&after, &all, &promised, &context);
            // Everything the log has shown once must remain.
            let again = after_crash(&after.crash(Survival::Nothing, 0), &all, &there, &context);
            assert_eq!(again.seq, there.seq, "{context}");
            crashes += 1;
            if full || (stop + number as u64).is_multiple_of(28) {
                to_the_end(&after, &all, &mut there, &context);
                finished += 1;
            }
        }
    }
    println!("crashes: {count} operations, {crashes} crashes, {finished} continued to the end");
}

/// All small files are replaced in the same way: `current`, the high-water mark, the notes on generations, the records
/// of imports, the member registry.
#[test]
fn p03_a_crash_while_a_small_file_is_replaced_leaves_it_whole() {
    use gravwell_env::Fs as _;
    use gravwell_env::fs::replace_file;
    let path = std::path::Path::new("/data/current");
    let text = |n: u8| vec![n; 700 + usize::from(n) * 60];
    let mut crashes = 0;
    for stop in 0..80 {
        let (fs, mut done) = (MemoryFs::new(), 0);
        fs.create_dir_all(path.parent().unwrap()).unwrap();
        fs.fail_at(fs.operations() + stop, Fault::Stop);
        let is_over = (1..=8).all(|n| {
            let written = replace_file(&fs, path, &text(n)).is_ok();
            done += u8::from(written);
            written
        });
        for survival in [Survival::Nothing, Survival::Prefix, Survival::Sectors, Survival::Everything] {
            for seed in 0..4 {
                let found = fs.crash(survival, stop + seed * 1_000).contents(path).unwrap_or_default();
                let is_whole = [done, done + 1].into_iter().any(|n| found == if n == 0 { vec![] } else { text(n) });
                assert!(is_whole, "crash at {stop}, {survival:?}: {} bytes after {done} writes", found.len());
                crashes += 1;
            }
        }
        if is_over {
            println!("small files: {crashes} crashes");
            return;
        }
    }
    panic!("eight small files take more than 80 operations");
}

#[test]
fn p01_a_failure_of_any_operation_loses_nothing_acknowledged() {
    let all = history(ENTRIES);
    let (count, full) = (operations(&all), is_full("GRAVWELL_CRASH_POINTS"));
    let faults =
        [Fault::Once(ErrorKind::Other), Fault::Once(ErrorKind::StorageFull), Fault::Short(0), Fault::Short(60)];
    let (mut failures, mut restarts) = (0, 0);
    for stop in 0..count {
        for (number, fault) in faults.into_iter().enumerate() {
            if !full && !(stop + number as u64).is_multiple_of(3) {
                continue;
            }
            let context = format!("{fault:?} at {stop}");
            let fs = MemoryFs::new();
            fs.fail_at(stop, fault);
            let mut promised = Promised::default();
            failures += 1;
            if let Err(Stopped(_)) = live(&fs, &all, &mut promised) {
                restarts += 1;
                // The process is restarted; the machine and its page cache are still there.
                let mut there = after_crash(&fs, &all, &promised, &context);
                for survival in [Survival::Nothing, Survival::Sectors] {
                    let again = after_crash(&fs.crash(survival, stop), &all, &there, &context);
                    assert_eq!(again.seq, there.seq, "{context}: lost after it was visible");
                }
                to_the_end(&fs, &all, &mut there, &context);
            } else {
                after_crash(&fs.crash(Survival::Nothing, 0), &all, &promised, &context);
            }
        }
    }
    println!("failures: {count} operations, {failures} failures, {restarts} restarts");
}
