//! A journal of one file: frames of the log's own form, appended in batches, with the log's rule for torn writes.
//!
//! What lies in it exists nowhere else, so damage is named and refused, and a torn last batch is copied to
//! `quarantine/` before it is cut.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{Damage, IoFailure};
use crate::codec::frame::{CHAIN_START, FrameParts, HEADER_BYTES, MAGIC, check_chain, decode_frame, encode_frame};
use crate::env::fs::{File, Fs, is_full};
use crate::env::real::RealFs;
use crate::model::{Chain, Seq};

const FILE: &str = "journal.log";
const NEXT: &str = "journal.next";
const QUARANTINE: &str = "quarantine";
/// Largest journal that is read at opening.
const BYTES_MAX: u64 = 16 << 30;

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file is damaged. Nothing was changed.
    #[error("{0}; nothing was changed: bring the file back from a backup, or move it away to give up what it holds")]
    Damaged(#[from] Damage),
    /// The disk is full. Nothing of the batch remains.
    #[error("the disk is full")]
    Full,
    /// The operating system refuses.
    #[error(transparent)]
    Io(#[from] IoFailure),
    /// A payload is too large.
    #[error("a journal entry of {0} bytes is too large")]
    TooLarge(usize),
    /// Durability is unknown: the process must stop.
    #[error("the journal could not be made durable: {0}")]
    Sync(IoFailure),
}

/// One kind and payload.
pub type JournalEntry = (u8, Vec<u8>);

/// An open journal.
pub struct Journal {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    file: Arc<dyn File>,
    end: u64,
    seq: Seq,
    chain: Chain,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Journal({}, {} bytes)", self.dir.display(), self.end)
    }
}

impl Journal {
    /// Opens the journal in the directory `dir` of the real file system.
    ///
    /// # Errors
    /// See [`Journal::open`].
    pub fn open_dir(dir: &Path) -> Result<(Journal, Vec<JournalEntry>), JournalError> {
        Journal::open(Arc::new(RealFs), dir)
    }

    /// Opens the journal in `dir`, creating it if need be; returns what it holds.
    ///
    /// # Errors
    /// When it is damaged anywhere but in its last, never acknowledged batch.
    pub fn open(fs: Arc<dyn Fs>, dir: &Path) -> Result<(Journal, Vec<JournalEntry>), JournalError> {
        let path = dir.join(FILE);
        let named = path.display().to_string();
        fs.create_dir_all(dir).map_err(IoFailure::at("create", dir.display()))?;
        let next = dir.join(NEXT);
        if fs.exists(&next).map_err(IoFailure::at("look for", next.display()))? {
            fs.remove(&next).map_err(IoFailure::at("remove", next.display()))?;
        }
        let exists = fs.exists(&path).map_err(IoFailure::at("look for", &named))?;
        let file = if exists { fs.open(&path) } else { fs.create(&path) }.map_err(IoFailure::at("open", &named))?;
        fs.sync_dir(dir).map_err(IoFailure::at("sync", dir.display()))?;
        let bytes = read_all(&*file).map_err(IoFailure::at("read", &named))?;
        let (entries, seq, chain, end) = scan(&named, &bytes)?;
        let journal = Journal { fs, dir: dir.to_owned(), file, end: end as u64, seq, chain };
        if end < bytes.len() {
            journal.cut(&bytes[end..])?;
        }
        Ok((journal, entries))
    }

    fn cut(&self, torn: &[u8]) -> Result<(), JournalError> {
        let keep = self.dir.join(QUARANTINE);
        let copy = keep.join(format!("{FILE}-{}-{}.torn", self.end, self.seq));
        let write = || -> io::Result<()> {
            self.fs.create_dir_all(&keep)?;
            let file = self.fs.create(&copy)?;
            file.write_at(torn, 0)?;
            file.sync_data()?;
            self.fs.sync_dir(&keep)?;
            self.file.set_len(self.end)?;
            self.file.sync_data()
        };
        write().map_err(IoFailure::at("cut a torn write from", self.dir.join(FILE).display()))?;
        tracing::warn!(bytes = torn.len(), copy = %copy.display(), "a torn write was cut from the outbox journal");
        Ok(())
    }

    /// Bytes in use.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.end
    }

    /// Writes a batch; it is durable after [`Journal::sync`].
    ///
    /// # Errors
    /// When the disk is full or refuses; nothing of the batch counts then.
    pub fn append(&mut self, entries: &[JournalEntry]) -> Result<(), JournalError> {
        let (bytes, seq, chain) = encode(entries, self.seq, self.chain)?;
        if let Err(source) = self.file.write_at(&bytes, self.end) {
            let path = self.dir.join(FILE);
            self.file.set_len(self.end).map_err(IoFailure::at("cut", path.display()))?;
            return Err(match is_full(&source) {
                true => JournalError::Full,
                false => IoFailure::at("write", path.display())(source).into(),
            });
        }
        self.end += bytes.len() as u64;
        (self.seq, self.chain) = (seq, chain);
        Ok(())
    }

    /// Makes everything written durable.
    ///
    /// # Errors
    /// [`JournalError::Sync`]: the process must stop.
    pub fn sync(&mut self) -> Result<(), JournalError> {
        let path = self.dir.join(FILE);
        self.file.sync_data().map_err(|source| JournalError::Sync(IoFailure::at("sync", path.display())(source)))
    }

    /// Replaces everything by `entries`, atomically and durably.
    ///
    /// # Errors
    /// When the disk refuses; the former contents stay then.
    pub fn replace_with(&mut self, entries: &[JournalEntry]) -> Result<(), JournalError> {
        let (bytes, seq, chain) = encode(entries, Seq::ZERO, CHAIN_START)?;
        let (next, path) = (self.dir.join(NEXT), self.dir.join(FILE));
        let write = || -> io::Result<Arc<dyn File>> {
            let file = self.fs.create(&next)?;
            file.write_at(&bytes, 0)?;
            file.sync_data()?;
            self.fs.rename(&next, &path)?;
            self.fs.sync_dir(&self.dir)?;
            Ok(file)
        };
        self.file = write().map_err(IoFailure::at("rewrite", path.display()))?;
        (self.end, self.seq, self.chain) = (bytes.len() as u64, seq, chain);
        Ok(())
    }
}

fn encode(entries: &[JournalEntry], mut seq: Seq, mut chain: Chain) -> Result<(Vec<u8>, Seq, Chain), JournalError> {
    let mut bytes = Vec::with_capacity(entries.iter().map(|(_, payload)| payload.len() + HEADER_BYTES).sum());
    for (batch_index, (kind, payload)) in (0..).zip(entries) {
        seq = seq.next();
        let parts = FrameParts { kind: *kind, flags: 0, batch_index, seq };
        chain = encode_frame(parts, &chain, payload, &mut bytes).map_err(|_| JournalError::TooLarge(payload.len()))?;
    }
    Ok((bytes, seq, chain))
}

fn read_all(file: &dyn File) -> io::Result<Vec<u8>> {
    let length = file.len()?;
    if length > BYTES_MAX {
        return Err(io::Error::other(format!("{length} bytes are too many for a journal")));
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    let mut at = 0;
    while at < bytes.len() {
        match file.read_at(&mut bytes[at..], at as u64)? {
            0 => break,
            read => at += read,
        }
    }
    bytes.truncate(at);
    Ok(bytes)
}

type Scanned = (Vec<JournalEntry>, Seq, Chain, usize);

/// Reads frames up to the end or to a torn last batch; anything else is damage.
fn scan(name: &str, bytes: &[u8]) -> Result<Scanned, Damage> {
    let (mut entries, mut seq, mut chain, mut at) = (Vec::new(), Seq::ZERO, CHAIN_START, 0);
    while at < bytes.len() {
        let rest = &bytes[at..];
        let checked = decode_frame(rest).and_then(|(header, payload)| {
            let chain = check_chain(&rest[..payload.end], &chain)?;
            Ok((header, payload, chain))
        });
        match checked {
            Ok((header, payload, after)) if header.seq == seq.next() => {
                entries.push((header.kind, rest[payload.clone()].to_vec()));
                (seq, chain, at) = (header.seq, after, at + payload.end);
            }
            other => {
                let error = other.map_or_else(|error| error.to_string(), |(header, ..)| format!("sequence {}", header.seq));
                if let Some(later) = later_batch(rest, seq.next()) {
                    let expected = format!("entry {}, which was acknowledged before entry {later}", seq.next());
                    return Err(Damage::new(name, at as u64, "journal entry", expected, error));
                }
                break;
            }
        }
    }
    Ok((entries, seq, chain, at))
}

/// A batch is written only after the one before is durable: a whole frame of a batch that starts after `expected`
/// proves that `expected` was acknowledged.
fn later_batch(bytes: &[u8], expected: Seq) -> Option<Seq> {
    let starts = bytes.windows(MAGIC.len()).enumerate().filter(|(_, window)| *window == MAGIC);
    let headers = starts.filter_map(|(at, _)| decode_frame(&bytes[at..]).ok());
    headers.map(|(header, _)| header.batch_first()).find(|first| *first > expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u8) -> JournalEntry {
        (16, vec![number; usize::from(number) + 1])
    }

    fn batches() -> [Vec<JournalEntry>; 3] {
        [vec![entry(1), entry(2)], vec![entry(3)], vec![entry(4), entry(5)]]
    }

    fn written(dir: &Path) -> Vec<u8> {
        let (mut journal, entries) = Journal::open_dir(dir).expect("opens");
        assert!(entries.is_empty());
        for batch in batches() {
            journal.append(&batch).expect("appends");
            journal.sync().expect("syncs");
        }
        std::fs::read(dir.join(FILE)).expect("reads")
    }

    #[test]
    fn p07_what_was_synced_is_there_and_a_torn_batch_is_cut() {
        let temp = tempfile::tempdir().expect("temp dir");
        let whole = written(temp.path());
        for length in 0..=whole.len() {
            std::fs::write(temp.path().join(FILE), &whole[..length]).expect("writes");
            let (journal, entries) = Journal::open_dir(temp.path()).expect("a cut file is a torn write");
            assert!(batches().concat().starts_with(&entries));
            assert!(journal.bytes() <= length as u64);
            let again = Journal::open_dir(temp.path()).expect("opens again").1;
            assert_eq!(again, entries);
        }
    }

    #[test]
    fn p10_a_flipped_bit_before_the_last_batch_is_named() {
        let temp = tempfile::tempdir().expect("temp dir");
        let whole = written(temp.path());
        let (mut journal, _) = Journal::open_dir(temp.path()).expect("opens");
        journal.append(&[entry(6)]).expect("appends");
        let last = whole.len();
        let whole = std::fs::read(temp.path().join(FILE)).expect("reads");
        for at in 0..last {
            let mut bad = whole.clone();
            bad[at] ^= 4;
            std::fs::write(temp.path().join(FILE), &bad).expect("writes");
            assert!(matches!(Journal::open_dir(temp.path()), Err(JournalError::Damaged(_))), "byte {at}");
        }
    }

    #[test]
    fn a_rewrite_keeps_what_it_is_given() {
        let temp = tempfile::tempdir().expect("temp dir");
        written(temp.path());
        let (mut journal, _) = Journal::open_dir(temp.path()).expect("opens");
        journal.replace_with(&[entry(9)]).expect("rewrites");
        journal.append(&[entry(7)]).expect("appends");
        journal.sync().expect("syncs");
        drop(journal);
        assert_eq!(Journal::open_dir(temp.path()).expect("opens").1, [entry(9), entry(7)]);
    }
}
