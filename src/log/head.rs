//! The head file. Its two slots are written in turn, so a torn write leaves the other one intact.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::directory::HEAD;
use super::error::Damage;
use super::format::{HeadSlot, SLOT_BYTES};
use gravwell_env::fs::{File, Fs, replace_file};

/// An open head file and its newest slot.
#[derive(Debug)]
pub(super) struct HeadFile {
    file: Arc<dyn File>,
    current: HeadSlot,
}

/// Reads both slots. Returns the newest valid slot and the damage found in the other one, if any.
pub(super) fn read_head(fs: &dyn Fs, dir: &Path) -> io::Result<Result<(HeadSlot, Option<Damage>), Damage>> {
    let file = fs.open(&dir.join(HEAD))?;
    let length = usize::try_from(file.len()?.min(2 * SLOT_BYTES as u64)).unwrap_or(0);
    let mut bytes = vec![0; length];
    gravwell_env::fs::read_exact_at(&*file, &mut bytes, 0)?;
    let mut best: Option<HeadSlot> = None;
    let mut damage = None;
    for index in 0..2 {
        let offset = index * SLOT_BYTES;
        match HeadSlot::decode(bytes.get(offset..).unwrap_or_default()) {
            Ok(slot) if best.as_ref().is_none_or(|best| best.counter < slot.counter) => best = Some(slot),
            Ok(_) => {}
            Err(error) => damage = Some(Damage::decode(HEAD, offset as u64, &error)),
        }
    }
    Ok(match (best, damage) {
        (Some(slot), damage) => Ok((slot, damage)),
        (None, Some(damage)) => Err(damage),
        (None, None) => Err(Damage::new(HEAD, 0, "head file", "two slots", "none")),
    })
}

impl HeadFile {
    /// Creates the head file of a new log atomically: afterwards either the whole file exists or none.
    pub(super) fn create(fs: &dyn Fs, dir: &Path, slot: HeadSlot) -> io::Result<HeadFile> {
        let mut older = slot.clone();
        older.counter = slot.counter.saturating_sub(1);
        let mut bytes = vec![0; 2 * SLOT_BYTES];
        let at = usize::from(slot.counter % 2 == 1) * SLOT_BYTES;
        bytes[at..at + SLOT_BYTES].copy_from_slice(&slot.encode());
        bytes[SLOT_BYTES - at..2 * SLOT_BYTES - at].copy_from_slice(&older.encode());
        let path = dir.join(HEAD);
        replace_file(fs, &path, &bytes)?;
        Ok(HeadFile { file: fs.open(&path)?, current: slot })
    }

    /// Opens a head file of which `current` is the newest slot.
    pub(super) fn open(fs: &dyn Fs, dir: &Path, current: HeadSlot) -> io::Result<HeadFile> {
        Ok(HeadFile { file: fs.open(&dir.join(HEAD))?, current })
    }

    pub(super) fn current(&self) -> &HeadSlot {
        &self.current
    }

    /// Writes and syncs the next slot and sets the `counter` of `next`. Does nothing if `next` equals the current slot.
    pub(super) fn write(&mut self, mut next: HeadSlot) -> io::Result<()> {
        next.counter = self.current.counter;
        if next == self.current {
            return Ok(());
        }
        next.counter += 1;
        self.file.write_at(&next.encode(), (next.counter % 2) * SLOT_BYTES as u64)?;
        self.file.sync_data()?;
        self.current = next;
        Ok(())
    }

    /// Writes both slots, for values that must survive the loss of one.
    pub(super) fn write_both(&mut self, next: HeadSlot) -> io::Result<()> {
        for _ in 0..2 {
            let mut slot = next.clone();
            slot.counter = self.current.counter + 1;
            self.file.write_at(&slot.encode(), (slot.counter % 2) * SLOT_BYTES as u64)?;
            self.file.sync_data()?;
            self.current = slot;
        }
        Ok(())
    }
}
