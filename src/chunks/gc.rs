//! Garbage collection: unreferenced chunks are removed from the index, and packs that consist mostly of garbage are rewritten.
//!
//! The chunks in use are copied from the old pack to a new one and made durable, then the index is updated, and only
//! then is the old pack removed. A crash in between leaves duplicate chunks, or makes removed ones reappear; it has no
//! other effect.

use super::error::{ChunkError, Damage};
use super::format::{FrameHeader, Row, pack_name, table_name};
use super::gc_pin::GcCutoff;
use super::index::Location;
use super::pack::{OpenPack, locked};
use super::recovery::load_table;
use super::store::{ChunkStore, Fault, StoreState};
use gravwell_env::fs::is_full;
use gravwell_model::ChunkId;
use std::collections::{BTreeMap, HashSet};

/// Packs shorter than a full pack divided by this are merged if there are [`SMALL_MIN`] of them.
const SMALL_PART: u64 = 4;
/// Number of short packs from which they are merged.
const SMALL_MIN: usize = 4;

/// Result of a garbage collection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Chunks removed.
    pub chunks: u64,
    /// Total raw length of the chunks removed.
    pub raw_bytes: u64,
    /// Unreferenced chunks that were kept because they were written or queried recently.
    pub kept_in_grace: u64,
    /// Packs removed because they held no chunk in use.
    pub packs_removed: u64,
    /// Packs rewritten.
    pub packs_rewritten: u64,
    /// Bytes copied to rewrite packs.
    pub moved_bytes: u64,
    /// Bytes of disk space freed. In a dry run: bytes of chunks that would become garbage.
    pub freed_bytes: u64,
    /// Corruption found while copying. The chunks concerned are treated as missing now.
    pub damages: Vec<Damage>,
    /// Reason why some packs could not be rewritten. The next collection tries again.
    pub postponed: Option<String>,
}

impl ChunkStore {
    /// Removes chunks that are neither in `live` nor protected by `cutoff`, and frees space. Take `cutoff` before
    /// `live`, see [`ChunkStore::cutoff`]. With `dry_run`, it only counts. Chunks can be read and written concurrently.
    ///
    /// It needs at most the space of the chunks in use of one pack: packs without such chunks are removed first, then
    /// those with the least of them are rewritten, each one removed before the next is rewritten.
    ///
    /// # Errors
    /// If a file cannot be read or written. A full disk is not an error, see [`GcReport::postponed`].
    pub fn collect(&self, live: &HashSet<ChunkId>, cutoff: GcCutoff, dry_run: bool) -> Result<GcReport, ChunkError> {
        let shared = &self.shared;
        let _one = locked(&shared.collecting);
        shared.healthy()?;
        let mut report = GcReport::default();
        let mut gone = Vec::new();
        shared.index.retain(|id, place, touched| {
            if live.contains(id) {
                return true;
            }
            if cutoff.spares(touched) {
                report.kept_in_grace += 1;
                return true;
            }
            report.chunks += 1;
            report.raw_bytes += u64::from(place.raw);
            if dry_run {
                report.freed_bytes += place.frame_bytes();
            } else {
                gone.push(place);
            }
            dry_run
        });
        if dry_run {
            return Ok(report);
        }
        gone.into_iter().for_each(|place| shared.packs.debit(place));
        locked(&shared.damaged).retain(|id, _| live.contains(id));
        self.reclaim(&mut report)?;
        Ok(report)
    }

    /// Evicts these chunks from a cache, except those that `cutoff` protects, and frees space where worthwhile. Take
    /// `cutoff` before determining which chunks are in use.
    ///
    /// # Errors
    /// See [`ChunkStore::collect`].
    pub fn evict(&self, ids: &[ChunkId], cutoff: GcCutoff) -> Result<GcReport, ChunkError> {
        let shared = &self.shared;
        let _one = locked(&shared.collecting);
        shared.healthy()?;
        let mut report = GcReport::default();
        for id in ids {
            if let Some(place) = shared.index.remove_older(id, cutoff) {
                shared.packs.debit(place);
                report.chunks += 1;
                report.raw_bytes += u64::from(place.raw);
            }
        }
        self.reclaim(&mut report)?;
        Ok(report)
    }

    /// Removes packs without chunks in use and rewrites those with much garbage.
    fn reclaim(&self, report: &mut GcReport) -> Result<(), ChunkError> {
        let shared = &self.shared;
        self.retire_active()?;
        shared.read_damaged_again();
        let (useless, worn) = shared.candidates();
        for number in useless {
            report.freed_bytes += shared.remove_pack(number)?;
            report.packs_removed += 1;
        }
        let mut output = None;
        for number in worn {
            match shared.rewrite(number, &mut output, report) {
                Ok(()) => {}
                Err(ChunkError::Full { .. }) => {
                    report.postponed = Some(format!("the disk is full: {} is unchanged", pack_name(number)));
                    break;
                }
                Err(error) => {
                    shared.end_output(output);
                    return Err(error);
                }
            }
        }
        shared.end_output(output);
        if report.packs_removed + report.packs_rewritten > 0 {
            shared.fs.sync_dir(&shared.dir).map_err(ChunkError::io("sync", shared.dir.display()))?;
        }
        Ok(())
    }

    /// Finishes the pack that is being written if it is worth rewriting.
    fn retire_active(&self) -> Result<(), ChunkError> {
        let shared = &self.shared;
        let retired = {
            let mut writer = locked(&shared.writer);
            let number = writer.active.as_ref().map(|pack| pack.header.number);
            let is_worn = number.is_some_and(|number| {
                shared.packs.lock().get(&number).is_some_and(|pack| shared.is_worn(pack.garbage_bytes(), pack.bytes))
            });
            if is_worn {
                let pack = writer.active.take();
                writer.finished.extend(pack);
                // All chunks may be synced already. Incrementing the counter makes the next sync run and finish the pack.
                writer.written += 1;
            }
            is_worn
        };
        if retired { self.sync() } else { Ok(()) }
    }
}

impl StoreState {
    fn is_worn(&self, garbage: u64, bytes: u64) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "a ratio")]
        let ratio = garbage as f64 / bytes.max(1) as f64;
        garbage > 0 && ratio >= self.options.garbage_ratio
    }

    /// Finds chunks again that could not be read: a read may fail although what is on the disk is sound.
    fn read_damaged_again(&self) {
        let mut by_pack: BTreeMap<u32, HashSet<ChunkId>> = BTreeMap::new();
        for (id, number) in locked(&self.damaged).iter() {
            by_pack.entry(*number).or_default().insert(*id);
        }
        for (number, ids) in by_pack {
            let rows = self.rows(number);
            for row in rows.iter().filter(|row| ids.contains(&row.id)) {
                let place = Location::of(number, row);
                if self.read_frame(&row.id, place).is_ok() {
                    self.find_again(row.id, place);
                }
            }
        }
    }

    /// A chunk is at this place after all, unless it was written elsewhere in the meantime.
    fn find_again(&self, id: ChunkId, place: Location) {
        let _no_other = locked(&self.writer);
        locked(&self.damaged).remove(&id);
        if self.index.get(&id).is_none() {
            self.settle(id, place);
        }
    }

    /// Whether a pack holds the only place that is known of a chunk that cannot be read. It may be the last copy.
    fn is_held(&self, number: u32) -> bool {
        locked(&self.damaged).values().any(|held| *held == number)
    }

    /// Returns packs without chunks in use, and packs to rewrite, ordered by the space needed for that.
    fn candidates(&self) -> (Vec<u32>, Vec<u32>) {
        let held: HashSet<u32> = locked(&self.damaged).values().copied().collect();
        let packs = self.packs.lock();
        let done = || packs.iter().filter(|(number, pack)| pack.is_done && !held.contains(number));
        let useless = done().filter(|(_, pack)| pack.chunks == 0).map(|(number, _)| *number).collect();
        let is_small = |bytes: u64| bytes < self.options.pack_bytes / SMALL_PART;
        let join = done().filter(|(_, pack)| is_small(pack.bytes) && pack.chunks > 0).count() >= SMALL_MIN;
        let mut worn: Vec<(u64, u32)> = done()
            .filter(|(_, pack)| pack.chunks > 0)
            .filter(|(_, pack)| self.is_worn(pack.garbage_bytes(), pack.bytes) || (join && is_small(pack.bytes)))
            .map(|(number, pack)| (pack.live_bytes, *number))
            .collect();
        worn.sort_unstable();
        (useless, worn.into_iter().map(|(_, number)| number).collect())
    }

    /// Removes a pack without chunks in use; returns its length.
    fn remove_pack(&self, number: u32) -> Result<u64, ChunkError> {
        let (pack, table) = (pack_name(number), table_name(number));
        // The index is removed first: an index without its pack means that the pack was lost.
        match self.fs.remove(&self.dir.join(&table)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(ChunkError::io("remove", &table)(error));
            }
            _ => {}
        }
        self.fs.remove(&self.dir.join(&pack)).map_err(ChunkError::io("remove", &pack))?;
        self.files.forget(number);
        let known = self.packs.lock().remove(&number);
        Ok(known.map_or(0, |pack| pack.bytes))
    }

    pub fn rows(&self, number: u32) -> Vec<Row> {
        let (rows, bytes) = match self.packs.lock().get(&number) {
            Some(pack) => (pack.rows.clone(), pack.bytes),
            None => return Vec::new(),
        };
        let known = rows.or_else(|| load_table(self, number, bytes).ok().map(|table| table.rows));
        known.unwrap_or_else(|| {
            let mut rows = Vec::new();
            self.index.each(|id, place, _| {
                if place.pack == number {
                    rows.push(Row { id: *id, offset: place.offset, stored: place.stored, raw: place.raw });
                }
            });
            rows.sort_unstable_by_key(|row| row.offset);
            rows
        })
    }

    /// Copies the chunks in use of a pack to `output` and removes the pack.
    fn rewrite(&self, number: u32, output: &mut Option<OpenPack>, report: &mut GcReport) -> Result<(), ChunkError> {
        let full = self.options.pack_bytes;
        let live = self.packs.lock().get(&number).map_or(0, |pack| pack.live_bytes);
        if output.as_ref().is_some_and(|pack| pack.end + live > full) {
            self.end_output(output.take());
        }
        let target = match output {
            Some(pack) => pack,
            None => {
                let pack = self.create_pack(&mut locked(&self.writer).next)?;
                output.insert(pack)
            }
        };
        // For a new pack, the header counts as used space, too.
        let (begin, paid_to) = (target.end, if target.durable == 0 { 0 } else { target.end });
        let moved = match self.copy(number, target, report) {
            Ok(moved) => moved,
            Err(error) => {
                // Complete frames left behind would be harmless, but the space is needed.
                let _ = target.file.set_len(begin);
                target.end = begin;
                return Err(error);
            }
        };
        let name = || pack_name(target.header.number);
        let synced = self.fs.sync_dir(&self.dir).and_then(|()| target.file.sync_data());
        if let Err(error) = synced {
            self.poisoned.store(true, std::sync::atomic::Ordering::SeqCst);
            return Err(ChunkError::io("sync", name())(error));
        }
        target.durable = target.end;
        if let Some(pack) = self.packs.lock().get_mut(&target.header.number) {
            pack.bytes = target.end;
            pack.rows.get_or_insert_default().extend(moved.iter().map(|(row, _)| *row));
        }
        for (row, from) in moved {
            let to = Location::of(target.header.number, &row);
            // Counted before the index points to it, because a concurrent removal from there subtracts it again.
            self.packs.credit(to);
            let was_there = self.index.relocate(&row.id, from, to);
            self.packs.debit(if was_there { from } else { to });
            report.moved_bytes += to.frame_bytes();
        }
        // A finished pack gains no chunks, so an empty one stays empty.
        let is_empty = self.packs.lock().get(&number).is_some_and(|pack| pack.chunks == 0);
        if is_empty && !self.is_held(number) {
            let bytes = self.remove_pack(number)?;
            report.packs_rewritten += 1;
            report.freed_bytes += bytes.saturating_sub(target.end - paid_to);
        }
        Ok(())
    }

    /// Copies the frames of a pack that are in use; returns their new rows and old locations.
    fn copy(
        &self,
        number: u32,
        target: &mut OpenPack,
        report: &mut GcReport,
    ) -> Result<Vec<(Row, Location)>, ChunkError> {
        let mut moved = Vec::new();
        for row in self.rows(number) {
            let place = Location::of(number, &row);
            if self.index.get(&row.id) != Some(place) {
                continue;
            }
            let mut frame = match self.read_frame(&row.id, place) {
                Ok(frame) => frame.bytes,
                Err(Fault::Io(error)) => return Err(error),
                Err(Fault::Damaged(what)) => {
                    report.damages.extend(self.lose(&row.id, place, what));
                    continue;
                }
            };
            let header = FrameHeader::decode(&frame)
                .map_err(|error| ChunkError::io("read", pack_name(number))(std::io::Error::other(error.to_string())))?;
            match target.append(header, &mut frame) {
                Ok(row) => moved.push((row, place)),
                Err((error, _)) if is_full(&error) => return Err(self.failed("write", target.header.number, error)),
                Err((error, _)) => return Err(ChunkError::io("write", pack_name(target.header.number))(error)),
            }
        }
        Ok(moved)
    }

    /// Finishes the output pack, or removes it if it is empty.
    fn end_output(&self, output: Option<OpenPack>) {
        let Some(pack) = output else { return };
        let number = pack.header.number;
        let is_empty = self.packs.lock().get(&number).is_some_and(|pack| pack.chunks == 0);
        if is_empty {
            // If the removal fails, the next collection removes the pack.
            self.packs.lock().entry(number).and_modify(|pack| pack.is_done = true);
            let _ = self.remove_pack(number);
        } else {
            self.finish_pack(&pack);
        }
    }
}
