//! The head of a journal: records how far the journal is durable, so that a missing or truncated file is detected.
//!
//! A head file holds two slots in the head format of the log and is stored next to the journal. One slot always
//! vouches for the file in place. The other slot is overwritten until a sync makes it the vouching one; so neither a
//! torn write nor a power cut between a write and its sync leaves the journal without a slot. Before a rewritten
//! journal is renamed into place, the free slot vouches for it: whichever of the two files is found afterwards has a
//! matching slot.
//!
//! The *witness* is a second head file, next to the directory of the journal. It detects that the whole directory was replaced by
//! an older copy, which the head inside cannot show. It is written after the head, so it may lag behind the head but is never
//! ahead of it. Once a witness exists, the head records that, and a missing witness counts as damage.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::format::{HeadSlot, SLOT_BYTES};
use gravwell_env::fs::{File, Fs, is_full, parent_dir, read_exact_at, replace_file};
use gravwell_model::{Chain, Generation, LogId, Seq};

/// Name of the head file within the directory of the journal.
pub(super) const HEAD: &str = "head";
/// Suffix that turns the name of the journal's directory into the name of the witness.
const WITNESS: &str = ".head";
/// Marks that a witness exists, in the horizon field of a head slot.
const WITNESSED: Seq = Seq(1);

/// Returns the path of the head of the journal in `dir`.
pub(super) fn head_of(dir: &Path) -> PathBuf {
    dir.join(HEAD)
}

/// Returns the path of the witness of the journal in `dir`.
#[must_use]
pub fn witness_of(dir: &Path) -> PathBuf {
    let mut name = dir.file_name().map(OsString::from).unwrap_or_default();
    name.push(WITNESS);
    parent_dir(dir).join(name)
}

/// Statement of a slot: this file had at least this record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vouched {
    pub id: LogId,
    /// How many times the journal was rewritten.
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

/// The valid slots of a head file.
#[derive(Debug)]
pub(super) struct Slots(Vec<HeadSlot>);

impl Slots {
    /// Reads both slots and skips damaged ones. Returns `None` if the file does not exist.
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

    /// Returns the newest slot that concerns the given file.
    pub(super) fn about(&self, id: LogId, generation: Generation) -> Option<Vouched> {
        let matching = self.0.iter().filter(|slot| slot.log_id == id && slot.generation == generation);
        matching.max_by_key(|slot| slot.counter).map(Vouched::of)
    }

    pub(super) fn newest(&self) -> Option<Vouched> {
        self.0.iter().max_by_key(|slot| slot.counter).map(Vouched::of)
    }

    /// Returns whether nothing was written since the file was created, except for the preparation of one rewrite.
    pub(super) fn is_new(&self) -> bool {
        self.0.iter().all(|slot| slot.counter <= 2)
    }

    /// Returns whether a witness existed when the head was written.
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
    /// The file to create before the next write, because the disk was full when this one was opened.
    unmade: Option<Unmade>,
}

/// A head file that has to replace one of which the durable slot is unknown.
#[derive(Debug)]
struct Unmade {
    fs: Arc<dyn Fs>,
    path: PathBuf,
    vouched: Vouched,
}

impl JournalHead {
    /// Creates the file at `path` atomically.
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

    /// Replaces the file that contains `slots` by a new one in which both slots state `vouched`. After a failed sync,
    /// reads can return a slot that the disk never received, so neither slot of the old file may be overwritten: it
    /// could be the durable one. On a full disk the old file is kept until there is room for the new one.
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

    /// Creates the file for which there was no room before.
    fn make(&mut self) -> io::Result<()> {
        let Some(Unmade { fs, path, vouched }) = &self.unmade else { return Ok(()) };
        *self = JournalHead::create_after(&**fs, path, self.counter + 1, *vouched, self.is_witnessed)?;
        Ok(())
    }

    /// Vouches for a durable record of the journal in place. Without a sync, a power cut may undo this.
    pub(super) fn write(&mut self, vouched: Vouched) -> io::Result<()> {
        self.make()?;
        self.counter += 1;
        // A slot torn by this write must not become the durable one.
        self.is_dirty = false;
        self.file.write_at(
            &vouched.slot(self.counter, self.is_witnessed).encode(),
            (1 - self.durable) * SLOT_BYTES as u64,
        )?;
        self.is_dirty = true;
        Ok(())
    }

    /// Returns whether a [`JournalHead::write`] has not been synced yet.
    pub(super) fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// Makes the last [`JournalHead::write`] durable. After an error the former slot remains the vouching one.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.is_dirty {
            // After a failed sync the kernel may have dropped the written data, so the success of a later sync would
            // prove nothing.
            self.is_dirty = false;
            self.file.sync_data()?;
            self.durable = 1 - self.durable;
        }
        Ok(())
    }

    /// Vouches durably for a file that is about to replace the journal; the caller reports the replacement by
    /// [`JournalHead::replaced`].
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

    /// Records that the prepared file is in place.
    pub(super) fn replaced(&mut self) {
        self.durable = 1 - self.durable;
    }
}
