//! Flips, truncates or removes parts of every kind of file, byte by byte. The data read afterwards must be identical,
//! or the error must contain the name of the damaged file; nothing may be lost silently, except for the limits listed
//! in `docs/guarantees.md`.
//!
//! Runs a sample by default; `GRAVWELL_BIT_ROT=all` flips every bit of every byte. The totals are printed to standard output.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gravwell_env::Fs as _;
use gravwell_env::memory_fs::{MemoryFs, SmallRandom, Survival};
use gravwell_log::journal::{Journal, JournalEntry, JournalError, witness_of};
use gravwell_log::{OpenError, RecoveryAction, verify};
use gravwell_model::{Generation, MemberName, Seq};
use gravwell_tests::logkit::{Picture, compact, history, is_full, log_dir, open, outbox_dir, picture};

/// Result of a campaign.
#[derive(Debug, Default)]
struct Totals {
    files: usize,
    changes: usize,
    identical: usize,
    detected: usize,
    /// Within the documented limit.
    excepted: usize,
}

impl Totals {
    fn print(&self, what: &str) {
        let Totals { files, changes, identical, detected, excepted } = self;
        println!(
            "{what}: {files} files, {changes} changes: {identical} identical, {detected} detected, {excepted} excepted"
        );
        assert_eq!(*changes, identical + detected + excepted);
    }
}

/// Returns the bytes to change, each with a bit: all of them, or a sample.
fn flips(length: u64) -> Vec<(u64, u8)> {
    if is_full("GRAVWELL_BIT_ROT") {
        return (0..length).flat_map(|at| (0..8).map(move |bit| (at, bit))).collect();
    }
    let mut random = SmallRandom(length);
    let step = 1 + length / 250;
    let near_ends = (0..length.min(110)).chain(length.saturating_sub(130)..length);
    let sample = (0..length).step_by(usize::try_from(step).unwrap());
    let mut all: Vec<_> = near_ends.chain(sample).map(|at| (at, random.below(8) as u8)).collect();
    all.sort_unstable();
    all.dedup_by_key(|(at, _)| *at);
    all
}

fn cuts(length: u64) -> Vec<u64> {
    let step = if is_full("GRAVWELL_BIT_ROT") { 1 } else { 1 + length / 90 };
    (0..length).step_by(usize::try_from(step).unwrap()).collect()
}

/// Creates a log with a compacted base, full segments, an open tail with several batches, and two generations. `noted`
/// states whether the head file vouches for the last batch.
fn log_image(noted: bool) -> (MemoryFs, Picture, Range<u64>) {
    let fs = MemoryFs::new();
    let all = history(100);
    let (mut log, _) = open(&fs).expect("creates");
    let mut last = 0..0;
    while log.head().0 < Seq(100) {
        let head = log.head().0.0 as usize;
        let batch = &all[head..(head + 1 + head % 3).min(100)];
        log.append(batch).expect("appends");
        log.sync().expect("syncs");
        match log.head().0.0 {
            48..=50 if log.generation().0 == 1 => log.start_generation(Generation((1 << 52) | 77)).expect("starts"),
            97..=98 => log.idle().expect("notes"),
            _ => {}
        }
        if (60..63).contains(&head) {
            compact(&log, 55).expect("compacts");
        }
        let first = log.reader().read_record(Seq(head as u64 + 1)).unwrap().unwrap();
        let end = log.reader().read_record(log.head().0).unwrap().unwrap();
        last = first.offset..end.offset + end.bytes.len() as u64;
    }
    let found = picture(&log).expect("reads");
    if noted {
        log.close().expect("closes");
    }
    let names = fs.list(&log_dir()).unwrap();
    assert!(found.horizon > Seq(20) && names.len() >= 6 && names.iter().any(|name| name.contains("open")), "{names:?}");
    (fs.crash(Survival::Everything, 0), found, last)
}

fn open_segment(fs: &MemoryFs) -> String {
    fs.list(&log_dir()).unwrap().into_iter().find(|name| name.contains("open")).expect("an open segment")
}

/// Opens and reads a changed log. `excepted` means that the change is in the last batch and the head file does not
/// vouch for it.
fn judge(fs: &MemoryFs, name: &str, expected: &Picture, excepted: bool, totals: &mut Totals, context: &str) {
    totals.changes += 1;
    let report = verify(fs, &log_dir(), &mut |_, _| {});
    match open(fs) {
        Err(error @ (OpenError::Damaged { .. } | OpenError::Io(_))) => {
            let text = error.to_string();
            assert!(text.contains(name) || is_missing(&text), "{context}: {text}");
            assert!(
                !report.is_good() || matches!(error, OpenError::Damaged { .. }),
                "{context}: verify reports nothing"
            );
            totals.detected += 1;
        }
        Ok((log, recovery)) => {
            let found = picture(&log).unwrap_or_else(|error| panic!("{context}: opened, but {error}"));
            if found == *expected {
                totals.identical += 1;
                drop(log);
                let (again, _) = open(fs).unwrap_or_else(|error| panic!("{context}: failed to open again: {error}"));
                assert_eq!(picture(&again).expect("reads"), found, "{context}");
                return;
            }
            assert!(excepted, "{context}: silently different: {:?} at {} {:?}", found.head, found.horizon, recovery);
            assert!(found.head < expected.head && found.tail[..] == expected.tail[..found.tail.len()], "{context}");
            let cut = |action: &RecoveryAction| matches!(action, RecoveryAction::CutTail { file, .. } if file == name);
            assert!(recovery.actions.iter().any(cut) && !recovery.quarantined.is_empty(), "{context}: {recovery:?}");
            totals.excepted += 1;
        }
    }
}

/// The error for a missing segment contains only the sequence that the segment would start with.
fn is_missing(text: &str) -> bool {
    text.contains("segment that starts with") || text.contains("end of the log") || text.contains("head file")
}

#[test]
fn p10_no_bit_of_a_log_changes_unseen() {
    let mut totals = Totals::default();
    for noted in [true, false] {
        let (image, expected, last) = log_image(noted);
        let open_name = open_segment(&image);
        for name in image.list(&log_dir()).unwrap() {
            totals.files += 1;
            for (at, bit) in flips(image.contents(&log_dir().join(&name)).unwrap().len() as u64) {
                let fs = image.crash(Survival::Everything, 0);
                fs.flip_bit(&log_dir().join(&name), at, bit).unwrap();
                let excepted = !noted && name == open_name && last.contains(&at);
                judge(&fs, &name, &expected, excepted, &mut totals, &format!("{name} byte {at} bit {bit} {noted}"));
            }
        }
    }
    totals.print("log, bits flipped");
}

#[test]
fn p10_no_part_of_a_log_goes_missing_unseen() {
    let mut totals = Totals::default();
    let (image, expected, _) = log_image(true);
    for name in image.list(&log_dir()).unwrap() {
        totals.files += 1;
        let path = log_dir().join(&name);
        for length in cuts(image.contents(&path).unwrap().len() as u64) {
            let fs = image.crash(Survival::Everything, 0);
            fs.open(&path).unwrap().set_len(length).unwrap();
            judge(&fs, &name, &expected, false, &mut totals, &format!("{name} cut to {length}"));
        }
        let fs = image.crash(Survival::Everything, 0);
        fs.remove(&path).unwrap();
        judge(&fs, &name, &expected, false, &mut totals, &format!("{name} removed"));
    }
    totals.print("log, files cut and removed");
}

fn open_journal(fs: &MemoryFs) -> Result<(Journal, Vec<JournalEntry>), JournalError> {
    let (journal, records) = Journal::open(Arc::new(fs.clone()), &outbox_dir())?;
    Ok((journal, records.into_iter().map(|record| (record.kind, record.payload)).collect()))
}

/// Creates a journal that was replaced once and has grown since.
fn journal_image() -> (MemoryFs, Vec<JournalEntry>) {
    let fs = MemoryFs::new();
    let record = |n: u64| (16 + (n % 3) as u8, vec![n as u8; 20 + n as usize * 9]);
    let (mut journal, _) = open_journal(&fs).expect("creates");
    for n in 0..12 {
        if n == 5 {
            journal.replace_with((2..5).map(record).collect::<Vec<_>>()).expect("replaces");
        }
        let batch: Vec<_> = if n == 11 { vec![record(11), record(12)] } else { vec![record(n)] };
        journal.append(&batch).expect("appends");
        journal.sync().expect("syncs");
    }
    drop(journal);
    let records = open_journal(&fs).expect("opens").1;
    assert_eq!(records, (2..13).map(record).collect::<Vec<_>>());
    (fs.crash(Survival::Everything, 0), records)
}

#[test]
fn p10_no_bit_of_an_outbox_journal_changes_unseen() {
    let mut totals = Totals { files: 3, ..Totals::default() };
    let (image, expected) = journal_image();
    let [journal, head] = ["journal", "head"].map(|name| outbox_dir().join(name));
    for path in [journal, head, witness_of(&outbox_dir())] {
        for (at, bit) in flips(image.contents(&path).unwrap().len() as u64) {
            totals.changes += 1;
            let fs = image.crash(Survival::Everything, 0);
            fs.flip_bit(&path, at, bit).unwrap();
            match open_journal(&fs) {
                Err(error) => {
                    assert!(error.to_string().contains("journal"), "{at}: {error}");
                    totals.detected += 1;
                }
                Ok((_, found)) if found == expected => totals.identical += 1,
                Ok(_) => panic!("byte {at} bit {bit}: silently different"),
            }
        }
    }
    totals.print("outbox, bits flipped");
}

/// Every truncated or removed file of the outbox must be reported, unless no record is missing.
#[test]
fn p10_no_part_of_an_outbox_goes_missing_unseen() {
    let mut totals = Totals { files: 3, ..Totals::default() };
    let (image, expected) = journal_image();
    let [journal, head] = ["journal", "head"].map(|name| outbox_dir().join(name));
    for path in [journal, head, witness_of(&outbox_dir())] {
        let name = path.file_name().unwrap().to_str().unwrap();
        let removed = |fs: &MemoryFs| fs.remove(&path).unwrap();
        let mut judge = |change: &dyn Fn(&MemoryFs), what: String| {
            totals.changes += 1;
            let fs = image.crash(Survival::Everything, 0);
            change(&fs);
            match open_journal(&fs) {
                Err(error) => {
                    assert!(matches!(error, JournalError::Damaged(_)), "{what}: {error}");
                    totals.detected += 1;
                }
                Ok((_, found)) => {
                    assert_eq!(found, expected, "{what}");
                    totals.identical += 1;
                }
            }
        };
        judge(&removed, format!("{name} removed"));
        for length in cuts(image.contents(&path).unwrap().len() as u64) {
            judge(&|fs| fs.open(&path).unwrap().set_len(length).unwrap(), format!("{name} cut to {length}"));
        }
    }
    totals.print("outbox, files cut and removed");
}

/// Flips bits of real files one at a time and truncates the files. `look` returns the accepted contents, or an error
/// that contains the file.
fn changed_files<T: PartialEq + std::fmt::Debug>(paths: &[PathBuf], look: &impl Fn() -> Result<T, String>) -> Totals {
    let expected = look().expect("is valid");
    let mut totals = Totals { files: paths.len(), ..Totals::default() };
    for path in paths {
        let good = fs::read(path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let mut changed: Vec<Vec<u8>> = Vec::new();
        for (at, bit) in flips(good.len() as u64) {
            let mut bad = good.clone();
            bad[at as usize] ^= 1 << bit;
            changed.push(bad);
        }
        changed.extend(cuts(good.len() as u64).into_iter().map(|length| good[..length as usize].to_vec()));
        for bad in changed {
            totals.changes += 1;
            fs::write(path, &bad).unwrap();
            match look() {
                Ok(found) => {
                    assert!(found == expected, "{name}: {}", String::from_utf8_lossy(&bad));
                    totals.identical += 1;
                }
                Err(error) => {
                    assert!(paths.iter().any(|path| error.contains(path.to_str().unwrap())), "{name}: {error}");
                    totals.detected += 1;
                }
            }
        }
        fs::write(path, &good).unwrap();
    }
    assert_eq!(look().expect("is valid again"), expected);
    totals
}

/// Like [`changed_files`]; also removes each file, which its error must contain as well.
fn real_files<T: PartialEq + std::fmt::Debug>(what: &str, paths: &[PathBuf], look: impl Fn() -> Result<T, String>) {
    let mut totals = changed_files(paths, &look);
    for path in paths {
        let name = path.file_name().unwrap().to_str().unwrap();
        totals.changes += 1;
        totals.detected += 1;
        let aside = path.with_extension("aside");
        fs::rename(path, &aside).unwrap();
        let error = look().expect_err(name);
        assert!(paths.iter().any(|path| error.contains(path.to_str().unwrap())), "{name} removed: {error}");
        assert!(!path.exists(), "{name}: the file was created again");
        fs::rename(&aside, path).unwrap();
    }
    look().expect("is valid again");
    totals.print(what);
}

const NOW_MS: u64 = 1_800_000_000_000;

/// Creates a CA, a member registry and the identity of one member.
fn enrolled(place: &Path) -> (PathBuf, PathBuf) {
    use gravwell_transport::trust::{Authority, Identity, NewKey, Registry};
    let (trust, member) = (place.join("trust"), place.join("web1"));
    let mut registry = Registry::open(&trust, NOW_MS).unwrap();
    let authority = Authority::open_or_create(&trust, NOW_MS).unwrap();
    let name = MemberName::new("web1").unwrap();
    let secret = registry.invite(&name, gravwell_transport::trust::Role::Webserver, 1_000, NOW_MS, false).unwrap();
    let key = NewKey::generate(&name).unwrap();
    let (certificate, role) = registry.redeem(&authority, &name, &secret, &key.request_der, 90, NOW_MS).unwrap();
    let addresses = vec!["127.0.0.1:9405".to_owned()];
    Identity::create(&member, name, role, addresses, authority.certificate(), &certificate, &key).unwrap();
    (trust, member)
}

#[test]
fn p11_no_bit_of_the_files_of_trust_changes_unseen() {
    use gravwell_transport::trust::{Authorities, Authority, Identity, Registry};
    let place = tempfile::tempdir().unwrap();
    let (trust, member) = enrolled(place.path());
    real_files("register", &[trust.join("members.json")], || {
        let registry = Registry::open(&trust, NOW_MS).map_err(|error| error.to_string())?;
        Ok(registry.members().cloned().collect::<Vec<_>>())
    });
    real_files("authority", &[trust.join("ca.key"), trust.join("ca.pem")], || {
        let authority = Authority::open_or_create(&trust, NOW_MS).map_err(|error| error.to_string())?;
        Ok((authority.certificate().to_vec(), authority.reset_key()))
    });
    let rotation = place.path().join("rotation");
    Authorities::begin(&rotation, NOW_MS).unwrap();
    Authorities::finish(&rotation, gravwell_model::Generation(1), NOW_MS).unwrap();
    Authorities::begin(&rotation, NOW_MS).unwrap();
    let files = ["next.key", "next.pem", "former.json"].map(|name| rotation.join(name));
    let changed = changed_files(&files, &|| {
        let found = Authorities::load(&rotation).map_err(|error| error.to_string())?;
        let next = found.next().map(|next| (next.certificate().to_vec(), next.reset_key()));
        Ok((next, found.former().iter().map(|former| (former.name(), former.ended_ms)).collect::<Vec<_>>()))
    });
    changed.print("CA rotation");
    real_files("identity", &[member.join("identity/member.json")], || {
        let identity = Identity::load(&member).map_err(|error| error.to_string())?;
        let authority: Vec<Vec<u8>> =
            identity.roots().map_err(|error| error.to_string())?.iter().map(|root| root.to_vec()).collect();
        let certificate = identity.certificate().map_err(|error| error.to_string())?.to_vec();
        let key = identity.key().map_err(|error| error.to_string())?.secret_der().to_vec();
        Ok((identity.name().clone(), identity.role(), identity.addresses().to_vec(), authority, certificate, key))
    });
}

/// The small files next to a state and next to a log. Their removal is detected by other files (`lost_state`).
#[test]
fn p10_no_bit_of_a_mark_or_of_the_notes_on_generations_changes_unseen() {
    use gravwell_log::generations;
    use gravwell_model::codec::admin::{GenerationCause, GenerationInfo};
    use gravwell_model::{Digest, Generation, LineageEntry, LogId, Origin, OriginCounter, Position};
    use gravwell_replica::directory::{Directory, StateStorage as _};
    use gravwell_replica::{Access, Mark};
    let place = tempfile::tempdir().unwrap();
    let log_id = LogId([3; 16]);
    let position = Position { log_id, generation: Generation(2), seq: Seq(77), chain: [5; 16], digest: Digest::ZERO };
    let mark = Mark::new("state-0001".into(), position, vec![(Origin([4; 16]), OriginCounter(9))]);
    let open = |access| Directory::open(place.path(), access, Duration::ZERO).map_err(|error| error.to_string());
    open(Access::Serve).unwrap().set_mark(Some(&mark)).unwrap();
    changed_files(&[place.path().join("high-water")], &|| open(Access::Read)?.mark()).print("high-water mark");

    let log = tempfile::tempdir().unwrap();
    let begun = |number, beginning| {
        let (generation, shared_to) = (Generation(number), Seq(10));
        GenerationInfo { generation, shared_to, beginning, time_ms: NOW_MS }
    };
    for info in [begun(2, GenerationCause::Restored), begun(3, GenerationCause::Recovered)] {
        generations::set(log.path(), log_id, info).unwrap();
    }
    let notes = log.path().join(generations::FILE);
    let look = || generations::all(log.path(), log_id).map_err(|error| error.to_string());
    changed_files(std::slice::from_ref(&notes), &look).print("notes on generations");
    fs::remove_file(&notes).unwrap();
    let lineage = [LineageEntry { generation: Generation(2), shared_to: Seq(10) }];
    let problem = generations::problem(log.path(), log_id, &lineage).expect("unknown reasons are reported");
    assert!(problem.contains('2') && !notes.exists(), "{problem}");
}

#[test]
fn p11_an_authority_with_members_is_never_replaced_by_a_new_one() {
    use gravwell_transport::trust::Authority;
    for missing in [&["ca.key"][..], &["ca.pem"], &["ca.key", "ca.pem"]] {
        let place = tempfile::tempdir().unwrap();
        let (trust, _) = enrolled(place.path());
        missing.iter().for_each(|name| fs::remove_file(trust.join(name)).unwrap());
        let error = Authority::open_or_create(&trust, NOW_MS).err().expect("fails").to_string();
        assert!(error.contains("is missing"), "{missing:?}: {error}");
    }
}

#[test]
fn p05_no_bit_of_a_role_or_of_current_leads_to_other_contents() {
    use gravwell_env::data_dir::claim;
    use gravwell_replica::Access;
    use gravwell_replica::directory::Directory;
    let place = tempfile::tempdir().unwrap();
    drop(claim(place.path(), "datastore", Duration::ZERO).unwrap());
    let role = place.path().join("role");
    let good = fs::read(&role).unwrap();
    let mut totals = Totals { files: 2, ..Totals::default() };
    for (at, bit) in flips(good.len() as u64) {
        totals.changes += 1;
        let mut bad = good.clone();
        bad[at as usize] ^= 1 << bit;
        fs::write(&role, &bad).unwrap();
        assert!(claim(place.path(), "replica", Duration::ZERO).is_err(), "byte {at}");
        match claim(place.path(), "datastore", Duration::ZERO) {
            Ok(_) => totals.identical += 1,
            Err(error) => {
                assert!(error.to_string().contains(place.path().to_str().unwrap()), "{error}");
                totals.detected += 1;
            }
        }
    }
    let place = tempfile::tempdir().unwrap();
    let current = place.path().join("current");
    let open = || Directory::open(place.path(), Access::Serve, Duration::ZERO).unwrap();
    let directory = open();
    let first = directory.new_state().unwrap();
    directory.make_current(&first).unwrap();
    drop(directory);
    (0..20).for_each(|n| fs::create_dir_all(place.path().join(format!("state-{n:04}"))).unwrap());
    let good = fs::read(&current).unwrap();
    for (at, bit) in flips(good.len() as u64) {
        totals.changes += 1;
        let mut bad = good.clone();
        bad[at as usize] ^= 1 << bit;
        fs::write(&current, &bad).unwrap();
        match open().named() {
            Ok(found) => {
                assert_eq!(found, first, "byte {at}, bit {bit}");
                totals.identical += 1;
            }
            Err(problem) => {
                assert!(problem.contains("current"), "{problem}");
                totals.detected += 1;
            }
        }
        assert_eq!(open().states().unwrap().len(), 20, "inspection removes nothing");
    }
    fs::remove_file(&current).unwrap();
    assert!(open().named().unwrap_err().contains("current") && !current.exists());
    totals.print("role and current");
}
