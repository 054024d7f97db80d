//! The head of a journal: how far the journal was durable, so that a missing or shortened file is noticed.
//!
//! Two slots of the log's head format, next to the journal. One of them always vouches for the file in place. The other one
//! is written again and again until a sync makes it the one that vouches; so a torn write, or a power cut between a write and
//! its sync, never leaves the journal without a slot. Before a rewritten journal is renamed into place, the free slot vouches
//! for it: whichever file is found afterwards has its slot.
//!
//! The *witness* is a second such file, next to the journal's directory: what the head says shows nothing when the
//! directory as a whole is replaced by an older copy. It is written after the head, so it may say less, never more; once there is
//! one, the head says so, and a witness that is missing is damage, too.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::format::{HeadSlot, SLOT_BYTES};
use crate::env::fs::{File, Fs, is_full, parent_dir, read_exact_at, replace_file};
use crate::model::{Chain, Generation, LogId, Seq};

/// Name of the file within the journal's directory.
pub(super) const HEAD: &str = "head";
/// What is added to the name of the journal's directory.
const WITNESS: &str = ".head";
/// What a slot of the head has in the place of a log's horizon once there is a witness.
const WITNESSED: Seq = Seq(1);

/// Where the head of the journal in `dir` is.
pub(super) fn head_of(dir: &Path) -> PathBuf {
    dir.join(HEAD)
}

/// Where the witness of the journal in `dir` is.
#[must_use]
pub fn witness_of(dir: &Path) -> PathBuf {
    let mut name = dir.file_name().map(OsString::from).unwrap_or_default();
    name.push(WITNESS);
    parent_dir(dir).join(name)
}

/// What a slot vouches for: this file had at least this record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vouched {
    pub id: LogId,
    /// Number of times that the journal was rewritten.
    pub generation: Generation,
    pub seq: Seq,
    pub chain: Chain,
}

impl Vouched {
    fn slot(self, counter: u64, is_witnessed: bool) -> HeadSlot {
        let Vouched { id: log_id, generation, seq, chain } = self;
        let horizon = if is_witnessed { WITNESSED } else { Seq::ZERO };
        HeadSlot { counter, log_id, generation, seq, chain, horizon, lineage: Vec::new() }
    }

    fn of(slot: &HeadSlot) -> Vouched {
        Vouched { id: slot.log_id, generation: slot.generation, seq: slot.seq, chain: slot.chain }
    }
}

/// What a head file holds.
#[derive(Debug)]
pub(super) struct Slots(Vec<HeadSlot>);

impl Slots {
    /// Reads both slots; those that are damaged are left out. `None`: there is no file.
    pub(super) fn read(fs: &dyn Fs, path: &Path) -> io::Result<Option<Slots>> {
        if !fs.exists(path)? {
            return Ok(None);
        }
        let file = fs.open(path)?;
        let length = usize::try_from(file.len()?.min(2 * SLOT_BYTES as u64)).unwrap_or(0);
        let mut bytes = vec![0; length];
        read_exact_at(&*file, &mut bytes, 0)?;
        let slot = |index: usize| HeadSlot::decode(bytes.get(index * SLOT_BYTES..).unwrap_or_default()).ok();
        Ok(Some(Slots((0..2).filter_map(slot).collect())))
    }

    /// The newest slot about one file.
    pub(super) fn about(&self, id: LogId, generation: Generation) -> Option<Vouched> {
        let matching = self.0.iter().filter(|slot| slot.log_id == id && slot.generation == generation);
        matching.max_by_key(|slot| slot.counter).map(Vouched::of)
    }

    /// The newest slot.
    pub(super) fn newest(&self) -> Option<Vouched> {
        self.0.iter().max_by_key(|slot| slot.counter).map(Vouched::of)
    }

    /// Whether nothing was written after the file was made, but for the preparation of one rewrite.
    pub(super) fn is_new(&self) -> bool {
        self.0.iter().all(|slot| slot.counter <= 2)
    }

    /// Whether there was a witness when the head was written.
    pub(super) fn is_witnessed(&self) -> bool {
        self.0.iter().any(|slot| slot.horizon == WITNESSED)
    }

    fn counter(&self) -> u64 {
        self.0.iter().map(|slot| slot.counter).max().unwrap_or(0)
    }
}

/// An open head file.
#[derive(Debug)]
pub(super) struct JournalHead {
    file: Arc<dyn File>,
    /// Index of the slot that durably vouches for the journal in place.
    durable: u64,
    counter: u64,
    /// Whether the other slot was written since the last sync.
    is_dirty: bool,
    is_witnessed: bool,
    /// The file that has to be made before anything is written, because the disk was full when it was opened.
    unmade: Option<Unmade>,
}

/// A head file that is to take the place of one of which it is not known which slot the disk has.
#[derive(Debug)]
struct Unmade {
    fs: Arc<dyn Fs>,
    path: PathBuf,
    vouched: Vouched,
}

impl JournalHead {
    /// Makes the file at `path`, atomically.
    pub(super) fn create(fs: &dyn Fs, path: &Path, vouched: Vouched, is_witnessed: bool) -> io::Result<JournalHead> {
        JournalHead::create_after(fs, path, 0, vouched, is_witnessed)
    }

    fn create_after(
        fs: &dyn Fs,
        path: &Path,
        counter: u64,
        vouched: Vouched,
        is_witnessed: bool,
    ) -> io::Result<JournalHead> {
        let slot = |counter| vouched.slot(counter, is_witnessed).encode();
        replace_file(fs, path, &[slot(counter), slot(counter + 1)].concat())?;
        let file = fs.open(path)?;
        Ok(JournalHead { file, durable: 1, counter: counter + 1, is_dirty: false, is_witnessed, unmade: None })
    }

    /// Puts a new file in the place of the one with `slots`, of which both slots say `vouched`. After a failed sync a slot can
    /// be read that the disk never received, so neither slot of the old file may be overwritten: it might be the durable one.
    /// On a full disk the old file stays as it is until there is room for the new one.
    pub(super) fn open(
        fs: &Arc<dyn Fs>,
        path: &Path,
        slots: &Slots,
        vouched: Vouched,
        is_witnessed: bool,
    ) -> io::Result<JournalHead> {
        match JournalHead::create_after(&**fs, path, slots.counter() + 1, vouched, is_witnessed) {
            Err(error) if is_full(&error) => {
                let unmade = Some(Unmade { fs: Arc::clone(fs), path: path.to_owned(), vouched });
                let (file, counter) = (fs.open(path)?, slots.counter());
                Ok(JournalHead { file, durable: 1, counter, is_dirty: false, is_witnessed, unmade })
            }
            made => made,
        }
    }

    /// Makes the file for which there was no room.
    fn make(&mut self) -> io::Result<()> {
        let Some(Unmade { fs, path, vouched }) = &self.unmade else { return Ok(()) };
        *self = JournalHead::create_after(&**fs, path, self.counter + 1, *vouched, self.is_witnessed)?;
        Ok(())
    }

    /// Vouches for a record of the journal in place, which is durable. Without a sync a power cut may undo it.
    pub(super) fn write(&mut self, vouched: Vouched) -> io::Result<()> {
        self.make()?;
        self.counter += 1;
        // A slot that was torn here must not become the durable one.
        self.is_dirty = false;
        self.file.write_at(
            &vouched.slot(self.counter, self.is_witnessed).encode(),
            (1 - self.durable) * SLOT_BYTES as u64,
        )?;
        self.is_dirty = true;
        Ok(())
    }

    /// Whether a [`JournalHead::write`] waits for its sync.
    pub(super) fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// Makes the last [`JournalHead::write`] durable. After an error the former slot goes on vouching.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.is_dirty {
            // After a failed sync the kernel may have dropped what was written: a later success would not be about it.
            self.is_dirty = false;
            self.file.sync_data()?;
            self.durable = 1 - self.durable;
        }
        Ok(())
    }

    /// Vouches durably for a file that is about to take the journal's place; [`JournalHead::replaced`] says that it has.
    pub(super) fn prepare(&mut self, vouched: Vouched) -> io::Result<()> {
        self.make()?;
        self.sync()?;
        self.counter += 1;
        self.file.write_at(
            &vouched.slot(self.counter, self.is_witnessed).encode(),
            (1 - self.durable) * SLOT_BYTES as u64,
        )?;
        self.file.sync_data()
    }

    /// The prepared file is in place.
    pub(super) fn replaced(&mut self) {
        self.durable = 1 - self.durable;
    }
}
