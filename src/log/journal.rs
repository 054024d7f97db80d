//! A small journal of (kind, payload) records in one file, made of the log's frames: what the outbox is kept in.
//!
//! Appended in batches, each durable after [`Journal::sync`]; replaced whole, atomically, when most of it is settled.
//! The rules for a torn tail and for damage are the log's, without a head file: only the batch that was being written
//! when the process ended may be cut, and a copy of what is cut stays beside the file. After a batch is durable a *mark*
//! is written behind it, which the next batch overwrites: damage in front of a mark is never taken for a torn batch.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cursor::{find_frame, zeros_from};
use super::directory::UNFINISHED;
use super::error::{Damage, IoFailure};
use super::format::{FLAG_JOURNAL, FileHeader, HEADER_BYTES};
use super::segment::{Scan, read_header, scan_frames};
use crate::codec::error::EncodeError;
use crate::codec::frame::{CHAIN_START, FrameParts, encode_frame, kind};
use crate::env::entropy::{Entropy, SystemEntropy};
use crate::env::fs::{File, Fs, write_again};
use crate::env::real::RealFs;
use crate::model::{Chain, Generation, LogId, Seq};
use crate::planted::{self, Bug};

/// Name of the file within its directory.
const FILE: &str = "journal";
/// Kind of the mark. It takes no place in the journal: the next record has its sequence and its offset.
const MARK: u8 = 255;

/// Why a journal cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It is damaged. Nothing was changed.
    #[error("{0}; what it holds exists nowhere else, so it is not discarded: bring it back from a backup")]
    Damaged(#[from] Damage),
    /// A file cannot be read or written.
    #[error(transparent)]
    Io(#[from] IoFailure),
    /// A record is too long.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A kind below 16 belongs to the log.
    #[error("records of a journal have kinds from 16 to 254, not {found}")]
    Kind {
        /// The kind.
        found: u8,
    },
    /// An earlier failure left the file in an unknown state.
    #[error("the journal cannot be written any more after an earlier failure: stop the process and open it again")]
    Poisoned,
}

/// One record of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalRecord {
    /// Its kind, from 16 on.
    pub kind: u8,
    /// Its contents.
    pub payload: Vec<u8>,
    /// Offset of its frame.
    pub offset: u64,
}

/// Kind and contents of a record.
pub type JournalEntry = (u8, Vec<u8>);

/// An open journal, owned by one thread.
#[derive(Debug)]
pub struct Journal {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    file: Arc<dyn File>,
    log_id: LogId,
    seq: Seq,
    chain: Chain,
    end: u64,
    /// Whether a batch awaits its sync; the next one must not be written before.
    in_flight: bool,
    poisoned: bool,
}

impl Journal {
    /// Opens the journal of a directory on the real file system, see [`Journal::open`].
    ///
    /// # Errors
    /// See [`Journal::open`].
    pub fn open_dir(dir: &Path) -> Result<(Journal, Vec<JournalEntry>), JournalError> {
        let (journal, records) = Journal::open(Arc::new(RealFs), dir)?;
        Ok((journal, records.into_iter().map(|record| (record.kind, record.payload)).collect()))
    }

    /// Opens the journal of a directory, or makes an empty one; gives what it holds. A torn last batch is copied to
    /// a file beside it and cut.
    ///
    /// # Errors
    /// When it is damaged or cannot be read.
    pub fn open(fs: Arc<dyn Fs>, dir: &Path) -> Result<(Journal, Vec<JournalRecord>), JournalError> {
        fs.create_dir_all(dir).map_err(IoFailure::at("create", dir.display()))?;
        let unfinished = format!("{FILE}{UNFINISHED}");
        let exists = |name: &str| fs.exists(&dir.join(name)).map_err(IoFailure::at("look for", name));
        if exists(&unfinished)? {
            fs.remove(&dir.join(&unfinished)).map_err(IoFailure::at("remove", &unfinished))?;
        }
        if !exists(FILE)? {
            let mut id = [0; 16];
            SystemEntropy.fill(&mut id).map_err(IoFailure::at("draw random bytes for", FILE))?;
            return Ok((write_new(fs, dir, LogId(id))?, Vec::new()));
        }
        let file = fs.open(&dir.join(FILE)).map_err(IoFailure::at("open", FILE))?;
        let read = || IoFailure::at("read", FILE);
        let length = file.len().map_err(read())?;
        // The file came into place by a rename after it was synced: its header was never torn.
        let header = read_header(&*file).map_err(read())?.map_err(|error| Damage::decode(FILE, 0, &error))?;
        if header.flags != FLAG_JOURNAL {
            let error = Damage::new(FILE, 0, "file header: flags", FLAG_JOURNAL, header.flags);
            return Err(error.into());
        }
        let mut records = Vec::new();
        let mut end = (Seq::ZERO, CHAIN_START, HEADER_BYTES as u64);
        let scan = scan_frames(&file, false, true, length, Scan::new(&header), |raw| {
            if raw.header.kind == MARK {
                return;
            }
            end = (raw.header.seq, raw.header.chain, raw.end());
            let payload = raw.payload().to_vec();
            records.push(JournalRecord { kind: raw.header.kind, payload, offset: raw.offset });
        });
        let scan = scan.map_err(read())?;
        if scan.stopped.is_some() {
            cut_tail(&*fs, dir, &*file, length, &scan)?;
        }
        let length = if planted::is(Bug::JournalTrustsCache) { 0 } else { end.2 };
        write_again(&*file, length).map_err(IoFailure::at("sync", FILE))?;
        // A rewrite whose rename was not made durable may have brought the file here.
        if !planted::is(Bug::JournalTrustsRename) {
            fs.sync_dir(dir).map_err(IoFailure::at("sync", dir.display()))?;
        }
        let mut journal = Journal {
            fs,
            dir: dir.to_owned(),
            file,
            log_id: header.log_id,
            seq: end.0,
            chain: end.1,
            end: end.2,
            in_flight: false,
            poisoned: false,
        };
        journal.mark();
        Ok((journal, records))
    }

    /// Length of the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.end
    }

    /// Number of records written since the file was made.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.seq.0
    }

    /// Writes one batch; durable after [`Journal::sync`]. A batch still in flight is synced first. A failed write
    /// (a full disk) is taken back and may be tried again.
    ///
    /// # Errors
    /// When a record is not fit for a journal or the file cannot be written.
    pub fn append(&mut self, records: &[JournalEntry]) -> Result<(), JournalError> {
        self.sync()?;
        let mut bytes = Vec::new();
        let (seq, chain) = encode_all(records, self.seq, self.chain, &mut bytes)?;
        if let Err(error) = self.file.write_at(&bytes, self.end) {
            let undone = self.file.set_len(self.end).and_then(|()| self.file.sync_data());
            if undone.is_err() && !planted::is(Bug::RefuseWhatStays) {
                // Records that could not be taken back may be found at the next open: nobody may be told that they were
                // refused.
                self.poisoned = true;
                return Err(JournalError::Poisoned);
            }
            return Err(IoFailure::at("write", FILE)(error).into());
        }
        self.end += bytes.len() as u64;
        (self.seq, self.chain, self.in_flight) = (seq, chain, true);
        Ok(())
    }

    /// Makes the batch in flight durable.
    ///
    /// # Errors
    /// When syncing fails: what is on the disk is unknown then, and the process must stop.
    pub fn sync(&mut self) -> Result<(), JournalError> {
        if self.poisoned {
            return Err(JournalError::Poisoned);
        }
        if !std::mem::take(&mut self.in_flight) {
            return Ok(());
        }
        if !planted::is(Bug::SkipJournalSync)
            && let Err(error) = self.file.sync_data()
        {
            self.poisoned = true;
            return Err(IoFailure::at("sync", FILE)(error).into());
        }
        self.mark();
        Ok(())
    }

    /// Says behind the last record that everything before was durable. It needs no sync of its own, and where it cannot
    /// be written nothing is lost but its help.
    fn mark(&mut self) {
        if planted::is(Bug::JournalWithoutMarks) {
            return;
        }
        let mut bytes = Vec::new();
        let parts = FrameParts { kind: MARK, flags: 0, batch_index: 0, seq: self.seq.next() };
        if encode_frame(parts, &self.chain, &[], &mut bytes).is_ok() {
            let _ = self.file.write_at(&bytes, self.end);
        }
    }

    /// Replaces the whole contents, durably and atomically: a crash leaves the old or the new ones. After an error
    /// the old ones stay in use.
    ///
    /// # Errors
    /// When a record is not fit for a journal or the new file cannot be written.
    pub fn replace_with(&mut self, records: &[JournalEntry]) -> Result<(), JournalError> {
        self.sync()?;
        let (bytes, seq, chain) = contents(self.log_id, records)?;
        let (path, beside) = (self.dir.join(FILE), self.dir.join(format!("{FILE}{UNFINISHED}")));
        let prepared = self.fs.create(&beside).and_then(|file| {
            file.write_at(&bytes, 0)?;
            file.sync_data()?;
            Ok(file)
        });
        let file = match prepared {
            Ok(file) => file,
            Err(error) => {
                // The old file is in use as before; what is left beside it is overwritten the next time.
                let _ = self.fs.remove(&beside);
                return Err(IoFailure::at("write", FILE)(error).into());
            }
        };
        if let Err(error) = self.fs.rename(&beside, &path) {
            // Had it happened all the same, writing on to the old file would lose records.
            self.poisoned = self.fs.remove(&beside).is_err();
            return Err(IoFailure::at("rename", FILE)(error).into());
        }
        if let Err(error) = self.fs.sync_dir(&self.dir) {
            self.poisoned = true;
            return Err(IoFailure::at("sync", FILE)(error).into());
        }
        (self.file, self.seq, self.chain, self.end) = (file, seq, chain, bytes.len() as u64);
        self.mark();
        Ok(())
    }
}

fn encode_all(
    records: &[JournalEntry],
    mut seq: Seq,
    mut chain: Chain,
    bytes: &mut Vec<u8>,
) -> Result<(Seq, Chain), JournalError> {
    for ((kind, payload), batch_index) in records.iter().zip(0u32..) {
        if *kind < kind::JOURNAL_MIN || *kind == MARK {
            return Err(JournalError::Kind { found: *kind });
        }
        seq = seq.next();
        chain = encode_frame(FrameParts { kind: *kind, flags: 0, batch_index, seq }, &chain, payload, bytes)?;
    }
    Ok((seq, chain))
}

/// The bytes of a file with these records, and where its chain ends.
fn contents(log_id: LogId, records: &[JournalEntry]) -> Result<(Vec<u8>, Seq, Chain), JournalError> {
    let header = FileHeader {
        flags: FLAG_JOURNAL,
        log_id,
        generation: Generation(1),
        first: Seq(1),
        covered_last: Seq::ZERO,
        chain_before: CHAIN_START,
    };
    let mut bytes = header.encode().to_vec();
    let (mut seq, mut chain) = (Seq::ZERO, CHAIN_START);
    // A batch each: damage of one of them is never taken for a torn batch.
    let piece = if planted::is(Bug::JournalWithoutMarks) { records.len().max(1) } else { 1 };
    for record in records.chunks(piece) {
        (seq, chain) = encode_all(record, seq, chain, &mut bytes)?;
    }
    Ok((bytes, seq, chain))
}

/// Makes a new file.
fn write_new(fs: Arc<dyn Fs>, dir: &Path, log_id: LogId) -> Result<Journal, JournalError> {
    let (bytes, seq, chain) = contents(log_id, &[])?;
    let path = dir.join(FILE);
    crate::env::fs::replace_file(&*fs, &path, &bytes).map_err(IoFailure::at("write", FILE))?;
    let file = fs.open(&path).map_err(IoFailure::at("open", FILE))?;
    let end = bytes.len() as u64;
    let mut journal =
        Journal { fs, dir: dir.to_owned(), file, log_id, seq, chain, end, in_flight: false, poisoned: false };
    journal.mark();
    Ok(journal)
}

/// Cuts what follows the last good record when it is a batch that was never synced.
fn cut_tail(fs: &dyn Fs, dir: &Path, file: &dyn File, length: u64, scan: &Scan) -> Result<(), JournalError> {
    let read = || IoFailure::at("read", FILE);
    let Some(error) = &scan.stopped else { return Ok(()) };
    let used = zeros_from(file, scan.end, length).map_err(read())?;
    let expected = scan.last.next();
    let later = find_frame(file, scan.end, length, |header| header.batch_first() > expected).map_err(read())?;
    if later.is_some() || matches!(error.what, "sequence" | "chain") {
        return Err(Damage::decode(FILE, scan.end, error).into());
    }
    if used > scan.end {
        super::recovery::quarantine(fs, dir, FILE, scan.end, used - scan.end)?;
    }
    file.set_len(scan.end).map_err(IoFailure::at("cut", FILE))?;
    debug_assert!(scan.end >= HEADER_BYTES as u64);
    Ok(())
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of ranges, some with one")]
mod tests {
    use super::*;
    use crate::env::memory::{Fault, MemoryFs, Survival};

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

    /// Appends records in batches of two, replaces all by the newer half after each five batches. Returns what was
    /// durable and what may be there besides, as ranges of numbers.
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
                if round % 5 == 0 {
                    let half = u64::midpoint(from, to);
                    allowed = vec![from..to, half..to];
                    journal.replace_with(&(half..to).map(record).collect::<Vec<_>>()).ok()?;
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

    #[test]
    fn kinds_of_the_log_are_refused() {
        let (mut journal, _) = open(&MemoryFs::new()).expect("creates");
        assert!(matches!(journal.append(&[(1, vec![])]), Err(JournalError::Kind { found: 1 })));
    }
}
