//! Durability of chunks: concurrent callers share one sync.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::error::ChunkError;
use super::format::{PackHeader, Table, frame_bytes, pack_name, table_name};
use super::pack::{OpenPack, locked};
use super::store::{ChunkStore, StoreState};
use gravwell_env::fs::replace_file;

/// Progress of syncing, counted in chunks written since the store was opened.
#[derive(Debug, Default)]
pub(super) struct Syncing {
    durable: u64,
    is_running: bool,
}

impl ChunkStore {
    /// Makes all chunks durable that were written before the call. Callers that arrive during a sync share the next one.
    ///
    /// # Errors
    /// If this or an earlier sync failed. The bytes on the disk are unknown then, the store rejects further chunks, and
    /// the process should be restarted.
    pub fn sync(&self) -> Result<(), ChunkError> {
        let shared = &self.shared;
        let target = locked(&shared.writer).written;
        let mut syncing = locked(&shared.syncing);
        loop {
            shared.healthy()?;
            if syncing.durable >= target {
                return Ok(());
            }
            if !syncing.is_running {
                break;
            }
            syncing = shared.synced.wait(syncing).unwrap_or_else(PoisonError::into_inner);
        }
        syncing.is_running = true;
        drop(syncing);
        let outcome = shared.sync_packs();
        let mut syncing = locked(&shared.syncing);
        syncing.is_running = false;
        let outcome = outcome.map(|durable| syncing.durable = syncing.durable.max(durable));
        if outcome.is_err() {
            shared.poisoned.store(true, Ordering::SeqCst);
        }
        drop(syncing);
        shared.synced.notify_all();
        outcome
    }

    /// Makes all chunks durable and writes the index of the current pack, so that the next open need not scan it. Meant
    /// for an orderly shutdown; correctness does not depend on it.
    ///
    /// # Errors
    /// See [`ChunkStore::sync`].
    pub fn checkpoint(&self) -> Result<(), ChunkError> {
        self.sync()?;
        let active = locked(&self.shared.writer).active.clone();
        if let Some(pack) = active {
            self.shared.write_table(pack.header, pack.durable, false);
        }
        Ok(())
    }
}

impl StoreState {
    /// Syncs all packs that were written to; returns the number of chunks that are durable now.
    fn sync_packs(&self) -> Result<u64, ChunkError> {
        let (written, finished, active, directory_changed) = {
            let mut writer = locked(&self.writer);
            let changed = std::mem::take(&mut writer.directory_changed);
            writer.unsynced_bytes = 0;
            (writer.written, writer.finished.clone(), writer.active.clone(), changed)
        };
        if directory_changed {
            self.fs.sync_dir(&self.dir).map_err(ChunkError::io("sync", self.dir.display()))?;
        }
        for pack in finished.iter().chain(&active) {
            if pack.end > pack.durable {
                pack.file.sync_data().map_err(ChunkError::io("sync", pack_name(pack.header.number)))?;
            }
        }
        {
            let mut writer = locked(&self.writer);
            let synced = |pack: &OpenPack| finished.iter().any(|done| done.header.number == pack.header.number);
            writer.finished.retain(|pack| !synced(pack));
            if let (Some(pack), Some(durable)) = (&mut writer.active, &active)
                && pack.header.number == durable.header.number
            {
                pack.durable = durable.end;
            }
        }
        finished.iter().for_each(|pack| self.finish_pack(pack));
        Ok(written)
    }

    /// Marks a full and durable pack as finished.
    pub fn finish_pack(&self, pack: &OpenPack) {
        self.write_table(pack.header, pack.end, true);
    }

    /// Writes the index of a pack for its durable prefix. If that fails, the next open scans the pack.
    pub fn write_table(&self, header: PackHeader, covered: u64, is_done: bool) {
        let rows = {
            let mut packs = self.packs.lock();
            let Some(pack) = packs.get_mut(&header.number) else { return };
            pack.is_done |= is_done;
            let Some(rows) = &pack.rows else { return };
            let durable = |end: u64| end <= covered;
            rows.iter().filter(|row| durable(u64::from(row.offset) + frame_bytes(row.stored))).copied().collect()
        };
        let table = Table { pack: header, covered, rows };
        let path = self.dir.join(table_name(header.number));
        let written = replace_file(&*self.fs, &path, &table.encode());
        if let (true, true, Some(pack)) = (is_done, written.is_ok(), self.packs.lock().get_mut(&header.number)) {
            pack.rows = None;
        }
    }
}
