//! A small journal of (kind, payload) records in one file, built from the frames of the log. It stores the outbox.
//!
//! Records are appended in batches, each durable after [`Journal::sync`]; the file is replaced atomically as a whole
//! when most of it is resolved. The rules for a torn tail and for damage are those of the log: only the batch that was
//! being written when the process exited may be removed, and a copy of the removed bytes is kept. After a batch is
//! durable, a *mark* is written after it, which the next batch overwrites: damage before a mark is never mistaken for
//! a torn batch. The head next to the file records how far the file was durable, so a missing or truncated journal
//! counts as damaged. The witness next to the directory records the same, so a directory that was replaced by an older
//! copy counts as damaged, too.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cursor::{FrameCursor, find_frame, zeros_from};
use super::directory::UNFINISHED;
use super::error::{Damage, IoFailure};
use super::format::{FLAG_HEADED, FLAG_JOURNAL, FileHeader, HEADER_BYTES};
pub use super::journal_head::witness_of;
use super::journal_head::{HEAD, JournalHead, Slots, Vouched, head_of};
use super::segment::{Scan, read_header, scan_frames};
use gravwell_env::entropy::{Entropy, SystemEntropy};
use gravwell_env::fs::{File, Fs, copy_range, is_full, parent_dir, write_again};
use gravwell_env::real_fs::RealFs;
use gravwell_model::codec::error::EncodeError;
use gravwell_model::codec::frame::{CHAIN_START, FrameParts, encode_frame, kind};
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::{Chain, Generation, LogId, Seq};

/// Number of bytes buffered before a write.
const PIECE_BYTES: usize = 1 << 20;
/// Name of the journal file within its directory.
const FILE: &str = "journal";
/// Kind of the mark. It occupies no position: the next record gets its sequence and its offset.
const MARK: u8 = 255;

/// A journal cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The journal is damaged. Nothing was changed.
    #[error("{0}; it is not discarded, because no other copy of its records exists")]
    Damaged(#[from] Damage),
    /// A file cannot be read or written.
    #[error(transparent)]
    Io(#[from] IoFailure),
    /// A record is too long.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// Invalid kind: kinds below 16 are reserved for the log, 255 is the mark.
    #[error("journal records have kinds from 16 to 254, not {found}")]
    Kind {
        /// The invalid kind.
        found: u8,
    },
    /// An earlier failure left the file in an unknown state.
    #[error("the journal cannot be written after an earlier failure; restart the process")]
    Poisoned,
}

/// One record of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalRecord {
    /// Kind of the record, from 16 to 254.
    pub kind: u8,
    /// Contents of the record.
    pub payload: Vec<u8>,
    /// Offset of its frame.
    pub offset: u64,
}

/// Kind and payload of a record.
pub type JournalEntry = (u8, Vec<u8>);

/// An open journal, owned by one thread.
#[derive(Debug)]
pub struct Journal {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    file: Arc<dyn File>,
    head: JournalHead,
    /// `None` if there was no room to create the first witness.
    witness: Option<JournalHead>,
    log_id: LogId,
    /// How many times the file was rewritten.
    generation: Generation,
    seq: Seq,
    chain: Chain,
    end: u64,
    /// Whether a batch awaits its sync; the next one must not be written before that.
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

    /// Opens the journal of a directory, or creates an empty one, and returns its records. A torn last batch is copied
    /// to `quarantine/` and removed.
    ///
    /// # Errors
    /// If the journal is damaged, is missing although its head records a write, or cannot be read.
    pub fn open(fs: Arc<dyn Fs>, dir: &Path) -> Result<(Journal, Vec<JournalRecord>), JournalError> {
        let mut records = Vec::new();
        let journal = Journal::open_with(fs, dir, |record| records.push(record))?;
        Ok((journal, records))
    }

    /// Like [`Journal::open`], but passes each record to `visit` while reading.
    ///
    /// # Errors
    /// See [`Journal::open`]. Records passed to `visit` before the error must be discarded.
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
        let slots = Slots::read(&*fs, &head_of(dir)).map_err(IoFailure::at("read", HEAD))?;
        let witness = Slots::read(&*fs, &witness_of(dir)).map_err(IoFailure::at("read", witness_of(dir).display()))?;
        if !exists(&*fs, dir, FILE)? {
            check_never_written(slots.as_ref(), HEAD)?;
            let witness = witness.as_ref().filter(|_| !fault_injection::is(Bug::WitnessNotAsked));
            check_never_written(witness, &name_of_witness(dir))?;
            return write_new(fs, dir, drawn_id()?);
        }
        let file = fs.open(&dir.join(FILE)).map_err(IoFailure::at("open", FILE))?;
        let header = header_of(&*file)?;
        let vouched = vouched_for(&header, slots.as_ref())?;
        let witnessed = witnessed(dir, &header, slots.as_ref(), witness.as_ref())?;
        let length = file.len().map_err(IoFailure::at("read", FILE))?;
        let expected: Vec<Expected> = vouched
            .map(|vouched| (HEAD.to_owned(), vouched))
            .into_iter()
            .chain(witnessed.map(|vouched| (name_of_witness(dir), vouched)))
            .collect();
        let (scan, last) = scan_records(&file, &header, length, &expected, &mut visit)?;
        if scan.stopped.is_some() {
            truncate_tail(&*fs, dir, &*file, length, &scan)?;
        }
        let length = if fault_injection::is(Bug::JournalTrustsCache) { 0 } else { last.end };
        write_again(&*file, length).map_err(IoFailure::at("sync", FILE))?;
        // The file may be here because of a rewrite of which the rename is not durable yet.
        if !fault_injection::is(Bug::JournalTrustsRename) {
            fs.sync_dir(dir).map_err(IoFailure::at("sync", dir.display()))?;
        }
        let Last { seq, chain, end } = last;
        let now = Vouched { id: header.log_id, generation: header.generation, seq, chain };
        // Written before the head, which records that a witness exists.
        let witness = open_witness(&fs, dir, witness.as_ref(), now)?;
        let is_witnessed = witness.is_some();
        let head = match (&slots, vouched) {
            (Some(slots), Some(_)) => JournalHead::open(&fs, &head_of(dir), slots, now, is_witnessed),
            // The journal is of a version without heads; it is upgraded below.
            _ => {
                let now = Vouched { generation: following(header.generation), ..now };
                JournalHead::create(&*fs, &head_of(dir), now, is_witnessed)
            }
        };
        let head = head.map_err(IoFailure::at("write", HEAD))?;
        let (log_id, generation) = (header.log_id, header.generation);
        let dir = dir.to_owned();
        let (in_flight, poisoned) = (false, false);
        let mut journal =
            Journal { fs, dir, file, head, witness, log_id, generation, seq, chain, end, in_flight, poisoned };
        journal.mark();
        if vouched.is_none() {
            journal.upgrade()?;
        }
        Ok(journal)
    }

    /// Returns whether the directory has neither a journal nor a head.
    ///
    /// # Errors
    /// If the operating system reports an error.
    pub fn is_absent(fs: &dyn Fs, dir: &Path) -> Result<bool, JournalError> {
        Ok(!exists(fs, dir, FILE)? && !exists(fs, dir, HEAD)?)
    }

    /// Returns the error for a directory that had a journal before but for which [`Journal::is_absent`] is true now.
    #[must_use]
    pub fn missing() -> JournalError {
        Damage::new(FILE, 0, "the outbox journal", "a file, because the replica was used before", "none").into()
    }

    /// Accepts the loss of records in a damaged or missing journal: copies the existing files to `*.damaged-N` and
    /// starts a new journal with the records before the damage. Returns the number of these records.
    ///
    /// # Errors
    /// If the operating system reports an error; the damaged files are then still in place.
    pub fn accept_loss(fs: &Arc<dyn Fs>, dir: &Path) -> Result<u64, JournalError> {
        fs.create_dir_all(dir).map_err(IoFailure::at("create", dir.display()))?;
        let mut records = Vec::new();
        if exists(&**fs, dir, FILE)? {
            let file = fs.open(&dir.join(FILE)).map_err(IoFailure::at("open", FILE))?;
            let length = file.len().map_err(IoFailure::at("read", FILE))?;
            if let Ok(header) = header_of(&*file) {
                scan_records(&file, &header, length, &[], &mut |record| records.push((record.kind, record.payload)))?;
            }
        }
        for name in [FILE, HEAD] {
            keep_damaged(&**fs, dir, name)?;
        }
        let witness = name_of_witness(dir);
        keep_damaged(&**fs, parent_dir(dir), &witness)?;
        // The new head and witness match no other file: if the process crashes before the new journal is in place, the
        // journal that remains still counts as damaged.
        let beside = dir.join(format!("{FILE}{UNFINISHED}"));
        let (_, vouched, _) = write_contents(&**fs, &beside, drawn_id()?, Generation(1), &records)?;
        JournalHead::create(&**fs, &witness_of(dir), vouched, true).map_err(IoFailure::at("write", witness))?;
        JournalHead::create(&**fs, &head_of(dir), vouched, true).map_err(IoFailure::at("write", HEAD))?;
        fs.rename(&beside, &dir.join(FILE)).map_err(IoFailure::at("rename", FILE))?;
        fs.sync_dir(dir).map_err(IoFailure::at("sync", FILE))?;
        Ok(records.len() as u64)
    }

    /// Rewrites a journal of a version without heads as one with a head; the head already vouches for the new file.
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

    /// Returns the length of the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.end
    }

    /// Returns the number of records written since the file was created.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.seq.0
    }

    /// Writes one batch; durable after [`Journal::sync`]. A batch still in flight is synced first. A failed write (on
    /// a full disk) is rolled back and can be retried.
    ///
    /// # Errors
    /// If a record is not valid in a journal or the file cannot be written.
    pub fn append(&mut self, records: &[JournalEntry]) -> Result<(), JournalError> {
        self.sync()?;
        let mut bytes = Vec::new();
        let (seq, chain) = encode_all(records, self.seq, self.chain, &mut bytes)?;
        if let Err(error) = self.file.write_at(&bytes, self.end) {
            let undone = self.file.set_len(self.end).and_then(|()| self.file.sync_data());
            if undone.is_err() && !fault_injection::is(Bug::RefuseWhatStays) {
                // If the write cannot be rolled back, the next open may find its records, so no caller may be informed
                // that they were rejected.
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
    /// If syncing fails: the contents of the disk are unknown then, and the process must stop.
    pub fn sync(&mut self) -> Result<(), JournalError> {
        if self.poisoned {
            return Err(JournalError::Poisoned);
        }
        if !std::mem::take(&mut self.in_flight) {
            return Ok(());
        }
        if !fault_injection::is(Bug::SkipJournalSync)
            && let Err(error) = self.file.sync_data()
        {
            self.poisoned = true;
            return Err(IoFailure::at("sync", FILE)(error).into());
        }
        self.mark();
        self.write_heads();
        Ok(())
    }

    /// Updates head and witness. If one cannot be written, its former slot remains valid and vouches for less.
    fn write_heads(&mut self) {
        let vouched = self.vouched();
        for head in [Some(&mut self.head), self.witness.as_mut()].into_iter().flatten() {
            let _ = head.write(vouched);
        }
    }

    fn vouched(&self) -> Vouched {
        Vouched { id: self.log_id, generation: self.generation, seq: self.seq, chain: self.chain }
    }

    /// Returns whether durable records exist for which the head does not vouch durably.
    #[must_use]
    pub fn is_unvouched(&self) -> bool {
        self.head.is_dirty() || self.witness.as_ref().is_some_and(JournalHead::is_dirty)
    }

    /// Makes the head vouch durably for all durable records. A process that exits without this call loses nothing, but
    /// after a power cut a truncated journal could be mistaken for one that ended at an earlier record.
    pub fn vouch(&mut self) {
        let vouched = self.vouched();
        for head in [Some(&mut self.head), self.witness.as_mut()].into_iter().flatten() {
            if let Err(error) = head.sync() {
                tracing::warn!(%error, "failed to sync a head of the outbox journal; will write it again");
                let _ = head.write(vouched);
            }
        }
    }

    /// Writes a mark after the last record: all records before it were durable. The mark needs no sync; if it cannot
    /// be written, only the protection it adds is lost.
    fn mark(&mut self) {
        if fault_injection::is(Bug::JournalWithoutMarks) {
            return;
        }
        let mut bytes = Vec::new();
        let parts = FrameParts { kind: MARK, flags: 0, batch_index: 0, seq: self.seq.next() };
        if encode_frame(parts, &self.chain, &[], &mut bytes).is_ok() {
            let _ = self.file.write_at(&bytes, self.end);
        }
    }

    /// Replaces the whole contents durably and atomically: a crash leaves either the old or the new ones. After an
    /// error the old contents stay in use.
    ///
    /// # Errors
    /// If a record is not valid in a journal or the new file cannot be written.
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
                // The old file stays in use; the next attempt overwrites the leftover file.
                let _ = self.fs.remove(&beside);
                return Err(error);
            }
        };
        if let Err(error) = self.fs.rename(&beside, &path) {
            // The rename may have happened despite the error; further writes to the old file would then be lost.
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
        // From here on no slot vouches for the former file.
        self.write_heads();
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

/// Writes a file with these records durably. Returns the file, the position its head has to vouch for, and its length.
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
        // One batch per record, so that damage of a record is never mistaken for a torn batch.
        let batch_index = if fault_injection::is(Bug::JournalWithoutMarks) { place } else { 0 };
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

/// Creates a new file. The head is created first: a head without a file then shows that there was never a record.
fn write_new(fs: Arc<dyn Fs>, dir: &Path, id: LogId) -> Result<Journal, JournalError> {
    let beside = dir.join(format!("{FILE}{UNFINISHED}"));
    let (file, vouched, end) = write_contents::<[JournalEntry; 0]>(&*fs, &beside, id, Generation(1), [])?;
    let witness = JournalHead::create(&*fs, &witness_of(dir), vouched, true);
    let witness = Some(witness.map_err(IoFailure::at("write", name_of_witness(dir)))?);
    let head = JournalHead::create(&*fs, &head_of(dir), vouched, true).map_err(IoFailure::at("write", HEAD))?;
    fs.rename(&beside, &dir.join(FILE)).map_err(IoFailure::at("rename", FILE))?;
    fs.sync_dir(dir).map_err(IoFailure::at("sync", FILE))?;
    let Vouched { id: log_id, generation, seq, chain } = vouched;
    let (dir, in_flight, poisoned) = (dir.to_owned(), false, false);
    let mut journal =
        Journal { fs, dir, file, head, witness, log_id, generation, seq, chain, end, in_flight, poisoned };
    journal.mark();
    Ok(journal)
}

fn name_of_witness(dir: &Path) -> String {
    witness_of(dir).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Opens the witness and makes it vouch for the records found. Returns `None` if there was no witness and the disk is full.
fn open_witness(
    fs: &Arc<dyn Fs>,
    dir: &Path,
    slots: Option<&Slots>,
    now: Vouched,
) -> Result<Option<JournalHead>, IoFailure> {
    let path = witness_of(dir);
    let opened = match slots {
        Some(slots) => JournalHead::open(fs, &path, slots, now, true),
        None => JournalHead::create(&**fs, &path, now, true),
    };
    match opened {
        Err(error) if slots.is_none() && is_full(&error) => Ok(None),
        opened => opened.map(Some).map_err(IoFailure::at("write", path.display())),
    }
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
    // The file was renamed into place after it was synced, so its header was never torn.
    let header = read_header(file).map_err(IoFailure::at("read", FILE))?;
    let header = header.map_err(|error| Damage::decode(FILE, 0, &error))?;
    if header.flags & !FLAG_HEADED != FLAG_JOURNAL {
        return Err(Damage::new(FILE, 0, "file header: flags", FLAG_JOURNAL, header.flags).into());
    }
    Ok(header)
}

/// Accepts a missing file as new only if `slots`, read from the file named `head`, record no write.
fn check_never_written(slots: Option<&Slots>, head: &str) -> Result<(), JournalError> {
    let Some(slots) = slots.filter(|_| !fault_injection::is(Bug::MissingJournalIsNew)) else { return Ok(()) };
    let expected = match slots.newest() {
        Some(Vouched { generation: Generation(1), seq: Seq::ZERO, .. }) => return Ok(()),
        Some(Vouched { seq, .. }) => format!("{seq} records, according to `{head}`"),
        None => "a file, because a head exists".to_owned(),
    };
    Err(Damage::new(FILE, 0, "the outbox journal", expected, "no file").into())
}

/// Returns the position that the head vouches for; `None` for a file of a version without heads.
fn vouched_for(header: &FileHeader, slots: Option<&Slots>) -> Result<Option<Vouched>, JournalError> {
    if header.flags & FLAG_HEADED != 0 {
        let found = slots.and_then(|slots| slots.about(header.log_id, header.generation));
        let damage =
            |found: &str| Damage::new(HEAD, 0, "the head of the outbox journal", "the head of this file", found);
        return match (found, slots.and_then(Slots::newest)) {
            (Some(found), _) => Ok(Some(found)),
            (None, Some(_)) => Err(damage("the head of another file, so one of the two is outdated").into()),
            (None, None) => Err(damage(if slots.is_some() { "two damaged slots" } else { "no file" }).into()),
        };
    }
    // A new head is left over from an upgrade that did not complete.
    if slots.is_some_and(|slots| !slots.is_new()) {
        let (expected, found) = ("a journal with a head", "a journal of an earlier version");
        return Err(Damage::new(FILE, 0, "file header: flags", expected, found).into());
    }
    Ok(None)
}

/// Returns the position that the witness vouches for; `None` if there is no witness yet or the file was rewritten after it.
fn witnessed(
    dir: &Path,
    header: &FileHeader,
    head: Option<&Slots>,
    witness: Option<&Slots>,
) -> Result<Option<Vouched>, JournalError> {
    if fault_injection::is(Bug::JournalHeadIgnored) || fault_injection::is(Bug::WitnessNotAsked) {
        return Ok(None);
    }
    let name = name_of_witness(dir);
    let damage = |what: &'static str, expected: String, found: String| -> Result<_, JournalError> {
        Err(Damage::new(&name, 0, what, expected, found).into())
    };
    let witness_text = "the witness of the outbox journal";
    let Some(witness) = witness else {
        return match head.is_some_and(Slots::is_witnessed) {
            true => damage(witness_text, "a file, according to the head".into(), "none".into()),
            false => Ok(None),
        };
    };
    let Some(newest) = witness.newest() else {
        return damage(witness_text, "a readable slot".into(), "two damaged slots".into());
    };
    if newest.id != header.log_id {
        return damage(
            "the outbox journal",
            format!("journal {}", newest.id),
            format!("another journal, {}", header.log_id),
        );
    }
    match newest.generation.cmp(&header.generation) {
        Ordering::Less => Ok(None),
        Ordering::Equal => Ok(Some(newest)),
        Ordering::Greater => damage(
            "the outbox journal",
            format!("rewrite {}", newest.generation),
            format!("an older copy, rewrite {}", header.generation),
        ),
    }
}

/// Name of a head or witness file, and the position it vouches for.
type Expected = (String, Vouched);

struct Last {
    seq: Seq,
    chain: Chain,
    end: u64,
}

/// Reads all valid records and compares them with the `expected` positions.
fn scan_records(
    file: &Arc<dyn File>,
    header: &FileHeader,
    length: u64,
    expected: &[Expected],
    visit: &mut dyn FnMut(JournalRecord),
) -> Result<(Scan, Last), JournalError> {
    let mut last = Last { seq: Seq::ZERO, chain: CHAIN_START, end: HEADER_BYTES as u64 };
    let is_ignored = fault_injection::is(Bug::JournalWithoutMarks) || fault_injection::is(Bug::JournalHeadIgnored);
    let expected = if is_ignored { &[] } else { expected };
    let differs = |(_, vouched): &&Expected, seq, chain: &Chain| vouched.seq == seq && vouched.chain != *chain;
    let mut other = expected.iter().find(|expected| differs(expected, Seq::ZERO, &CHAIN_START));
    let scan = scan_frames(file, false, true, length, Scan::new(header), |raw| {
        if raw.header.kind == MARK {
            return;
        }
        last = Last { seq: raw.header.seq, chain: raw.header.chain, end: raw.end() };
        other = other.or_else(|| expected.iter().find(|expected| differs(expected, last.seq, &last.chain)));
        let payload = raw.payload().to_vec();
        visit(JournalRecord { kind: raw.header.kind, payload, offset: raw.offset });
    });
    let scan = scan.map_err(IoFailure::at("read", FILE))?;
    let wrong =
        |expected: String, found: String| Damage::new(FILE, last.end, "the end of the journal", expected, found);
    if let Some((name, vouched)) = expected.iter().find(|(_, vouched)| last.seq < vouched.seq) {
        let expected = format!("record {} at least, according to `{name}`", vouched.seq);
        return Err(wrong(expected, format!("record {}", last.seq)).into());
    }
    if let Some((name, vouched)) = other {
        let found = "a different record of that number".into();
        return Err(wrong(format!("record {}, as known to `{name}`", vouched.seq), found).into());
    }
    Ok((scan, last))
}

/// Copies an abandoned file durably to `*.damaged-N`.
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
        copy_range(&*source, 0, length, &*target)?;
        fs.sync_dir(dir)
    });
    Ok(copied.map_err(IoFailure::at("keep a copy in", &aside))?)
}

/// Removes the bytes after the last valid record if they are a batch that was never synced.
fn truncate_tail(fs: &dyn Fs, dir: &Path, file: &dyn File, length: u64, scan: &Scan) -> Result<(), JournalError> {
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
mod tests;
