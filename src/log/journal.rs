//! A small journal of (kind, payload) records in one file, made of the log's frames: what the outbox is kept in.
//!
//! Appended in batches, each durable after [`Journal::sync`]; replaced whole, atomically, when most of it is settled.
//! The rules for a torn tail and for damage are the log's: only the batch that was being written when the process ended
//! may be cut, and a copy of what is cut stays beside the file. After a batch is durable a *mark* is written behind it,
//! which the next batch overwrites: damage in front of a mark is never taken for a torn batch. And the
//! head next to the file says how far it was durable: a journal that is missing or ends earlier is
//! damaged.

use std::borrow::Borrow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cursor::{FrameCursor, find_frame, zeros_from};
use super::directory::UNFINISHED;
use super::error::{Damage, IoFailure};
use super::format::{FLAG_HEADED, FLAG_JOURNAL, FileHeader, HEADER_BYTES};
use super::journal_head::{HEAD, JournalHead, Slots, Vouched};
use super::segment::{Scan, read_header, scan_frames};
use crate::codec::error::EncodeError;
use crate::codec::frame::{CHAIN_START, FrameParts, encode_frame, kind};
use crate::env::entropy::{Entropy, SystemEntropy};
use crate::env::fs::{File, Fs, read_exact_at, write_again};
use crate::env::real::RealFs;
use crate::model::{Chain, Generation, LogId, Seq};
use crate::planted::{self, Bug};

/// Bytes gathered before a write.
const PIECE_BYTES: usize = 1 << 20;
/// Name of the file within its directory.
const FILE: &str = "journal";
/// Kind of the mark. It takes no place in the journal: the next record has its sequence and its offset.
const MARK: u8 = 255;

/// Why a journal cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It is damaged. Nothing was changed.
    #[error("{0}; what it holds exists nowhere else, so it is not discarded")]
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
    head: JournalHead,
    log_id: LogId,
    /// Number of times that the file was rewritten.
    generation: Generation,
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
    /// When it is damaged, missing next to a head that knows of records, or cannot be read.
    pub fn open(fs: Arc<dyn Fs>, dir: &Path) -> Result<(Journal, Vec<JournalRecord>), JournalError> {
        let mut records = Vec::new();
        let journal = Journal::open_with(fs, dir, |record| records.push(record))?;
        Ok((journal, records))
    }

    /// [`Journal::open`], which gives each record as it is read.
    ///
    /// # Errors
    /// See [`Journal::open`]. What was given before is void then.
    pub fn open_with(
        fs: Arc<dyn Fs>,
        dir: &Path,
        mut visit: impl FnMut(JournalRecord),
    ) -> Result<Journal, JournalError> {
        fs.create_dir_all(dir).map_err(IoFailure::at("create", dir.display()))?;
        for name in [FILE, HEAD].map(|name| format!("{name}{UNFINISHED}")) {
            if exists(&*fs, dir, &name)? {
                fs.remove(&dir.join(&name)).map_err(IoFailure::at("remove", &name))?;
            }
        }
        let slots = match exists(&*fs, dir, HEAD)? {
            true => Some(Slots::read(&*fs, dir).map_err(IoFailure::at("read", HEAD))?),
            false => None,
        };
        if !exists(&*fs, dir, FILE)? {
            check_never_written(slots.as_ref())?;
            return write_new(fs, dir, drawn_id()?);
        }
        let file = fs.open(&dir.join(FILE)).map_err(IoFailure::at("open", FILE))?;
        let header = header_of(&*file)?;
        let vouched = vouched_for(&header, slots.as_ref())?;
        let length = file.len().map_err(IoFailure::at("read", FILE))?;
        let (scan, last) = scan_records(&file, &header, length, vouched, &mut visit)?;
        if scan.stopped.is_some() {
            cut_tail(&*fs, dir, &*file, length, &scan)?;
        }
        let length = if planted::is(Bug::JournalTrustsCache) { 0 } else { last.end };
        write_again(&*file, length).map_err(IoFailure::at("sync", FILE))?;
        // A rewrite whose rename was not made durable may have brought the file here.
        if !planted::is(Bug::JournalTrustsRename) {
            fs.sync_dir(dir).map_err(IoFailure::at("sync", dir.display()))?;
        }
        let Last { seq, chain, end } = last;
        let now = Vouched { id: header.log_id, generation: header.generation, seq, chain };
        let head = match (&slots, vouched) {
            (Some(slots), Some(_)) => JournalHead::open(&fs, dir, slots, now),
            // Of a version without heads: see below.
            _ => JournalHead::create(&*fs, dir, Vouched { generation: following(header.generation), ..now }),
        };
        let head = head.map_err(IoFailure::at("write", HEAD))?;
        let (log_id, generation) = (header.log_id, header.generation);
        let dir = dir.to_owned();
        let (in_flight, poisoned) = (false, false);
        let mut journal = Journal { fs, dir, file, head, log_id, generation, seq, chain, end, in_flight, poisoned };
        journal.mark();
        if vouched.is_none() {
            journal.upgrade()?;
        }
        Ok(journal)
    }

    /// Whether the directory has no journal and nothing that knows of one.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn is_absent(fs: &dyn Fs, dir: &Path) -> Result<bool, JournalError> {
        Ok(!exists(fs, dir, FILE)? && !exists(fs, dir, HEAD)?)
    }

    /// The damage of a directory that had a journal and in which [`Journal::is_absent`].
    #[must_use]
    pub fn missing() -> JournalError {
        Damage::new(FILE, 0, "the outbox journal", "a file, as the replica was used before", "none").into()
    }

    /// Gives up what a damaged or missing journal has lost: keeps the files that are there as `*.damaged-N` and begins a
    /// new journal with the records that precede the damage; returns their number.
    ///
    /// # Errors
    /// When the operating system refuses; the damaged files are then still in place.
    pub fn accept_loss(fs: &Arc<dyn Fs>, dir: &Path) -> Result<u64, JournalError> {
        fs.create_dir_all(dir).map_err(IoFailure::at("create", dir.display()))?;
        let mut records = Vec::new();
        if exists(&**fs, dir, FILE)? {
            let file = fs.open(&dir.join(FILE)).map_err(IoFailure::at("open", FILE))?;
            let length = file.len().map_err(IoFailure::at("read", FILE))?;
            if let Ok(header) = header_of(&*file) {
                scan_records(&file, &header, length, None, &mut |record| records.push((record.kind, record.payload)))?;
            }
        }
        for name in [FILE, HEAD] {
            keep_damaged(&**fs, dir, name)?;
        }
        // The new head fits no other file: a crash before the new journal is in place leaves one that is still damaged.
        let beside = dir.join(format!("{FILE}{UNFINISHED}"));
        let (_, vouched, _) = write_contents(&**fs, &beside, drawn_id()?, Generation(1), &records)?;
        JournalHead::create(&**fs, dir, vouched).map_err(IoFailure::at("write", HEAD))?;
        fs.rename(&beside, &dir.join(FILE)).map_err(IoFailure::at("rename", FILE))?;
        fs.sync_dir(dir).map_err(IoFailure::at("sync", FILE))?;
        Ok(records.len() as u64)
    }

    /// Rewrites a journal of a version without heads as one with a head, which vouches for it already.
    fn upgrade(&mut self) -> Result<(), JournalError> {
        let mut cursor = FrameCursor::new(Arc::clone(&self.file), HEADER_BYTES as u64, self.end);
        let mut records = Vec::new();
        while let Some(raw) =
            cursor.next().map_err(IoFailure::at("read", FILE))?.map_err(|error| Damage::decode(FILE, 0, &error))?
        {
            records.push((raw.header.kind, raw.payload().to_vec()));
        }
        self.replace_with(records)
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
        // Where the head cannot be written its former slot goes on vouching for less.
        let _ = self.head.write(self.vouched());
        Ok(())
    }

    fn vouched(&self) -> Vouched {
        Vouched { id: self.log_id, generation: self.generation, seq: self.seq, chain: self.chain }
    }

    /// Whether the head has not durably vouched for everything that is durable.
    #[must_use]
    pub fn is_unvouched(&self) -> bool {
        self.head.is_dirty()
    }

    /// Lets the head vouch durably for everything that is durable. A process that ends without it loses nothing; after a power
    /// cut a shortened journal might be taken for one that ended at an earlier record.
    pub fn vouch(&mut self) {
        if let Err(error) = self.head.sync() {
            tracing::warn!(%error, "the head of the outbox journal could not be synced; it is written again");
            let _ = self.head.write(self.vouched());
        }
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
    pub fn replace_with<I>(&mut self, records: I) -> Result<(), JournalError>
    where
        I: IntoIterator<Item: Borrow<JournalEntry>>,
    {
        self.sync()?;
        let (path, beside) = (self.dir.join(FILE), self.dir.join(format!("{FILE}{UNFINISHED}")));
        let written = write_contents(&*self.fs, &beside, self.log_id, following(self.generation), records);
        let prepared = written.and_then(|(file, vouched, end)| {
            self.head.prepare(vouched).map_err(IoFailure::at("write", HEAD))?;
            Ok((file, vouched, end))
        });
        let (file, vouched, end) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                // The old file is in use as before; what is left beside it is overwritten the next time.
                let _ = self.fs.remove(&beside);
                return Err(error);
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
        self.head.replaced();
        (self.file, self.generation, self.end) = (file, vouched.generation, end);
        (self.seq, self.chain) = (vouched.seq, vouched.chain);
        // From now on no slot vouches for the former file.
        let _ = self.head.write(self.vouched());
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
    for (record, batch_index) in records.iter().zip(0u32..) {
        (seq, chain) = encode_record(record, batch_index, seq, chain, bytes)?;
    }
    Ok((seq, chain))
}

fn encode_record(
    (kind, payload): &JournalEntry,
    batch_index: u32,
    seq: Seq,
    chain: Chain,
    bytes: &mut Vec<u8>,
) -> Result<(Seq, Chain), JournalError> {
    if *kind < kind::JOURNAL_MIN || *kind == MARK {
        return Err(JournalError::Kind { found: *kind });
    }
    let seq = seq.next();
    let chain = encode_frame(FrameParts { kind: *kind, flags: 0, batch_index, seq }, &chain, payload, bytes)?;
    Ok((seq, chain))
}

/// Writes a file with these records, durably; what its head vouches for, and its length.
fn write_contents<I>(
    fs: &dyn Fs,
    path: &Path,
    id: LogId,
    generation: Generation,
    records: I,
) -> Result<(Arc<dyn File>, Vouched, u64), JournalError>
where
    I: IntoIterator<Item: Borrow<JournalEntry>>,
{
    let header = FileHeader {
        flags: FLAG_JOURNAL | FLAG_HEADED,
        log_id: id,
        generation,
        first: Seq(1),
        covered_last: Seq::ZERO,
        chain_before: CHAIN_START,
    };
    let write = || IoFailure::at("write", FILE);
    let file = fs.create(path).map_err(write())?;
    let (mut bytes, mut at) = (header.encode().to_vec(), 0);
    let (mut seq, mut chain) = (Seq::ZERO, CHAIN_START);
    for (record, place) in records.into_iter().zip(0u32..) {
        // A batch each: damage of one of them is never taken for a torn batch.
        let batch_index = if planted::is(Bug::JournalWithoutMarks) { place } else { 0 };
        (seq, chain) = encode_record(record.borrow(), batch_index, seq, chain, &mut bytes)?;
        if bytes.len() >= PIECE_BYTES {
            file.write_at(&bytes, at).map_err(write())?;
            at += bytes.len() as u64;
            bytes.clear();
        }
    }
    file.write_at(&bytes, at).map_err(write())?;
    file.sync_data().map_err(write())?;
    Ok((file, Vouched { id, generation, seq, chain }, at + bytes.len() as u64))
}

/// Makes a new file. Its head comes first: one without a file then says that there was never a record.
fn write_new(fs: Arc<dyn Fs>, dir: &Path, id: LogId) -> Result<Journal, JournalError> {
    let beside = dir.join(format!("{FILE}{UNFINISHED}"));
    let (file, vouched, end) = write_contents::<[JournalEntry; 0]>(&*fs, &beside, id, Generation(1), [])?;
    let head = JournalHead::create(&*fs, dir, vouched).map_err(IoFailure::at("write", HEAD))?;
    fs.rename(&beside, &dir.join(FILE)).map_err(IoFailure::at("rename", FILE))?;
    fs.sync_dir(dir).map_err(IoFailure::at("sync", FILE))?;
    let Vouched { id: log_id, generation, seq, chain } = vouched;
    let (dir, in_flight, poisoned) = (dir.to_owned(), false, false);
    let mut journal = Journal { fs, dir, file, head, log_id, generation, seq, chain, end, in_flight, poisoned };
    journal.mark();
    Ok(journal)
}

fn following(generation: Generation) -> Generation {
    Generation(generation.0.wrapping_add(1))
}

fn exists(fs: &dyn Fs, dir: &Path, name: &str) -> Result<bool, IoFailure> {
    fs.exists(&dir.join(name)).map_err(IoFailure::at("look for", name))
}

fn drawn_id() -> Result<LogId, IoFailure> {
    let mut id = [0; 16];
    SystemEntropy.fill(&mut id).map_err(IoFailure::at("draw random bytes for", FILE))?;
    Ok(LogId(id))
}

fn header_of(file: &dyn File) -> Result<FileHeader, JournalError> {
    // The file came into place by a rename after it was synced: its header was never torn.
    let header = read_header(file).map_err(IoFailure::at("read", FILE))?;
    let header = header.map_err(|error| Damage::decode(FILE, 0, &error))?;
    if header.flags & !FLAG_HEADED != FLAG_JOURNAL {
        return Err(Damage::new(FILE, 0, "file header: flags", FLAG_JOURNAL, header.flags).into());
    }
    Ok(header)
}

/// A missing file is a new one only where its head knows of no record.
fn check_never_written(slots: Option<&Slots>) -> Result<(), JournalError> {
    let Some(slots) = slots.filter(|_| !planted::is(Bug::MissingJournalIsNew)) else { return Ok(()) };
    let expected = match slots.newest() {
        Some(Vouched { generation: Generation(1), seq: Seq::ZERO, .. }) => return Ok(()),
        Some(Vouched { seq, .. }) => format!("{seq} records, as its head says"),
        None => "a file, as it has a head".to_owned(),
    };
    Err(Damage::new(FILE, 0, "the outbox journal", expected, "no file").into())
}

/// What the head says of a file; `None` for one of a version without heads.
fn vouched_for(header: &FileHeader, slots: Option<&Slots>) -> Result<Option<Vouched>, JournalError> {
    if header.flags & FLAG_HEADED != 0 {
        let found = slots.and_then(|slots| slots.about(header.log_id, header.generation));
        let damage = |found: &str| Damage::new(HEAD, 0, "the head of the outbox journal", "one of this file", found);
        return match (found, slots.and_then(Slots::newest)) {
            (Some(found), _) => Ok(Some(found)),
            (None, Some(_)) => Err(damage("one of another file: one of the two is out of date").into()),
            (None, None) => Err(damage(if slots.is_some() { "two damaged slots" } else { "no file" }).into()),
        };
    }
    // A new head is that of an upgrade which did not come to its end.
    if slots.is_some_and(|slots| !slots.is_new()) {
        let (expected, found) = ("a journal with a head", "one of an earlier version");
        return Err(Damage::new(FILE, 0, "file header: flags", expected, found).into());
    }
    Ok(None)
}

/// Where the records end.
struct Last {
    seq: Seq,
    chain: Chain,
    end: u64,
}

/// Reads all records, as far as they are good, and compares them with what the head says of them.
fn scan_records(
    file: &Arc<dyn File>,
    header: &FileHeader,
    length: u64,
    vouched: Option<Vouched>,
    visit: &mut dyn FnMut(JournalRecord),
) -> Result<(Scan, Last), JournalError> {
    let mut last = Last { seq: Seq::ZERO, chain: CHAIN_START, end: HEADER_BYTES as u64 };
    let vouched = vouched.filter(|_| !planted::is(Bug::JournalWithoutMarks) && !planted::is(Bug::JournalHeadIgnored));
    let expected = vouched.map_or((Seq::ZERO, CHAIN_START), |vouched| (vouched.seq, vouched.chain));
    let mut is_other = expected.0 == Seq::ZERO && expected.1 != CHAIN_START;
    let scan = scan_frames(file, false, true, length, Scan::new(header), |raw| {
        if raw.header.kind == MARK {
            return;
        }
        last = Last { seq: raw.header.seq, chain: raw.header.chain, end: raw.end() };
        is_other |= last.seq == expected.0 && last.chain != expected.1;
        let payload = raw.payload().to_vec();
        visit(JournalRecord { kind: raw.header.kind, payload, offset: raw.offset });
    });
    let scan = scan.map_err(IoFailure::at("read", FILE))?;
    let wrong =
        |expected: String, found: String| Damage::new(FILE, last.end, "the end of the journal", expected, found);
    if last.seq < expected.0 {
        let expected = format!("record {} at least, as its head says", expected.0);
        return Err(wrong(expected, format!("record {}", last.seq)).into());
    }
    if is_other {
        let found = "another one of that number".into();
        return Err(wrong(format!("record {}, which its head knows", expected.0), found).into());
    }
    Ok((scan, last))
}

/// Copies a file that is given up to `*.damaged-N`, durably.
fn keep_damaged(fs: &dyn Fs, dir: &Path, name: &str) -> Result<(), JournalError> {
    if !exists(fs, dir, name)? {
        return Ok(());
    }
    let mut number = 1;
    while exists(fs, dir, &format!("{name}.damaged-{number}"))? {
        number += 1;
    }
    let aside = format!("{name}.damaged-{number}");
    let source = fs.open(&dir.join(name)).map_err(IoFailure::at("open", name))?;
    let length = source.len().map_err(IoFailure::at("read", name))?;
    let copied = fs.create(&dir.join(&aside)).and_then(|target| {
        let mut piece = vec![0; 1 << 20];
        let mut at = 0;
        while at < length {
            let wanted = usize::try_from(length - at).unwrap_or(usize::MAX).min(piece.len());
            read_exact_at(&*source, &mut piece[..wanted], at)?;
            target.write_at(&piece[..wanted], at)?;
            at += wanted as u64;
        }
        target.sync_data()?;
        fs.sync_dir(dir)
    });
    Ok(copied.map_err(IoFailure::at("keep a copy in", &aside))?)
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
            // Killed before the head was synced, and started again where there is no room for a new head.
            fs.set_capacity(Some(fs.used_bytes() + 1000));
            let (mut journal, found) = open(&fs).expect("opens on a full disk");
            assert_eq!(found.len(), 2);
            append(&mut journal, 2);
            let survival = if seed % 2 == 0 { Survival::Sectors } else { Survival::Prefix };
            let fs = fs.crash(survival, seed);
            let (_, found) = open(&fs).unwrap_or_else(|error| panic!("{seed}: {error}"));
            assert_eq!(found.len(), 3, "{seed}");
            // With room again, the new head is made.
            let (mut journal, _) = open(&fs).expect("opens");
            fs.set_capacity(None);
            append(&mut journal, 3);
            journal.vouch();
            let fs = fs.crash(Survival::Nothing, seed);
            let file = fs.open(&dir().join(FILE)).expect("is there");
            file.set_len(HEADER_BYTES as u64).expect("cuts");
            assert!(open(&fs).is_err(), "{seed}: the head vouches for what was cut");
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

    /// Six records, the head vouching for all of them.
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
        let end = length - crate::codec::frame::HEADER_BYTES as u64;
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
                    && error.to_string().contains("its head") == (cut >= Some(96) || cut.is_none()),
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
        assert!(matches!(open(&rolled_back), Err(JournalError::Damaged(_))), "an earlier journal");
        let other_head = fs.crash(Survival::Everything, 0);
        put(&other_head, HEAD, &six().contents(&dir().join(HEAD)).expect("reads"));
        assert!(matches!(open(&other_head), Err(JournalError::Damaged(_))), "the head of another journal");
        let no_head = fs.crash(Survival::Everything, 0);
        no_head.remove(&dir().join(HEAD)).expect("removes");
        assert!(matches!(open(&no_head), Err(JournalError::Damaged(_))), "no head");
        assert_eq!(open(&fs).expect("opens").1.len(), 4);
    }

    #[test]
    fn p12_a_journal_without_a_head_is_upgraded_whatever_crash_comes() {
        let released = || {
            let fs = MemoryFs::new();
            let header = FileHeader { flags: FLAG_JOURNAL, generation: Generation(1), ..FileHeader::default() };
            let mut bytes = header.encode().to_vec();
            let records: Vec<_> = (0..3).map(record).collect();
            encode_all(&records, Seq::ZERO, CHAIN_START, &mut bytes).expect("encodes");
            crate::env::fs::Fs::create_dir_all(&fs, &dir()).expect("makes");
            crate::env::fs::replace_file(&fs, &dir().join(FILE), &bytes).expect("writes");
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
        assert!(matches!(open(&full), Err(JournalError::Damaged(_))), "the upgraded one has a head");
    }

    #[test]
    fn kinds_of_the_log_are_refused() {
        let (mut journal, _) = open(&MemoryFs::new()).expect("creates");
        assert!(matches!(journal.append(&[(1, vec![])]), Err(JournalError::Kind { found: 1 })));
    }
}
