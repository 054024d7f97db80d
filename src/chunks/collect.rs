//! Giving space back: chunks that nothing names are forgotten, and packs that are mostly of no use are rewritten.
//!
//! What is kept of a pack is copied to a new one, made durable there, found there from then on, and only then is the
//! old pack removed. A crash in between leaves chunks twice, or forgotten ones that are there again; nothing else.

use super::error::{ChunkError, Damage};
use super::format::{FrameHeader, Row, pack_name, table_name};
use super::hold::Cutoff;
use super::index::Place;
use super::pack::{OpenPack, locked};
use super::recovery::load_table;
use super::store::{ChunkStore, Fault, Shared};
use crate::env::fs::is_full;
use crate::model::ChunkId;
use std::collections::HashSet;

/// Packs shorter than this part of a full one are joined when there are some of them.
const SMALL_PART: u64 = 4;
/// So many of them.
const SMALL_MIN: usize = 4;

/// What a collection came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Chunks removed.
    pub chunks: u64,
    /// Their raw bytes.
    pub raw_bytes: u64,
    /// Chunks that nothing names but that were written or asked for too short a time ago.
    pub kept_in_grace: u64,
    /// Packs that were removed because nothing in them was of use any more.
    pub packs_removed: u64,
    /// Packs that were rewritten.
    pub packs_rewritten: u64,
    /// Bytes that were copied for it.
    pub moved_bytes: u64,
    /// Bytes of disk given back. With a dry run: bytes of chunks that would become of no use.
    pub freed_bytes: u64,
    /// What was found damaged while copying. These chunks count as missing now.
    pub damages: Vec<Damage>,
    /// Why some packs could not be rewritten; the next collection tries again.
    pub postponed: Option<String>,
}

impl ChunkStore {
    /// Removes chunks that are not in `live` and that `cutoff`, taken before `live`, does not spare (see
    /// [`ChunkStore::cutoff`]), and gives space back. With `dry_run` it only counts. Reading and writing go on meanwhile.
    ///
    /// It needs no more space than the useful part of one pack: packs without any are removed first, then those with
    /// the least are rewritten, one at a time, each removed before the next.
    ///
    /// # Errors
    /// When a file cannot be read or written. A full disk is no error: see [`Collected::postponed`].
    pub fn collect(&self, live: &HashSet<ChunkId>, cutoff: Cutoff, dry_run: bool) -> Result<Collected, ChunkError> {
        let shared = &self.shared;
        let _one = locked(&shared.collecting);
        shared.healthy()?;
        let mut report = Collected::default();
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
        self.reclaim(&mut report)?;
        Ok(report)
    }

    /// Removes these chunks, except those that `cutoff` spares, and gives space back where it pays: for a cache. `cutoff` is
    /// taken before it is asked which chunks somebody relies on.
    ///
    /// # Errors
    /// See [`ChunkStore::collect`].
    pub fn evict(&self, ids: &[ChunkId], cutoff: Cutoff) -> Result<Collected, ChunkError> {
        let shared = &self.shared;
        let _one = locked(&shared.collecting);
        shared.healthy()?;
        let mut report = Collected::default();
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

    /// Removes packs without use, rewrites those with little.
    fn reclaim(&self, report: &mut Collected) -> Result<(), ChunkError> {
        let shared = &self.shared;
        self.retire_active()?;
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
                    report.postponed = Some(format!("the disk is full: {} is left as it is", pack_name(number)));
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

    /// The pack that is written now is finished when it is worth rewriting.
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
                // What is synced may be all of it: count it as news, so that the next sync finishes the pack.
                writer.written += 1;
            }
            is_worn
        };
        if retired { self.sync() } else { Ok(()) }
    }
}

impl Shared {
    fn is_worn(&self, garbage: u64, bytes: u64) -> bool {
        // Ratios need no precision.
        #[expect(clippy::cast_precision_loss, reason = "a ratio")]
        let ratio = garbage as f64 / bytes.max(1) as f64;
        garbage > 0 && ratio >= self.options.garbage_ratio
    }

    /// Packs without use, and packs to rewrite, those first that need the least space.
    fn candidates(&self) -> (Vec<u32>, Vec<u32>) {
        let packs = self.packs.lock();
        let done = || packs.iter().filter(|(_, pack)| pack.is_done);
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

    /// Removes a pack in which nothing is found any more; tells its length.
    fn remove_pack(&self, number: u32) -> Result<u64, ChunkError> {
        let (pack, table) = (pack_name(number), table_name(number));
        // The index first: one without its pack says that the pack was lost.
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

    /// What is in a pack.
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

    /// Copies what is of use in a pack to `output` and removes the pack.
    fn rewrite(&self, number: u32, output: &mut Option<OpenPack>, report: &mut Collected) -> Result<(), ChunkError> {
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
        // A new pack has bytes of its own.
        let (begin, paid_to) = (target.end, if target.durable == 0 { 0 } else { target.end });
        let moved = match self.copy(number, target, report) {
            Ok(moved) => moved,
            Err(error) => {
                // Whole frames that stay are no harm; but the space is wanted.
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
            let to = Place::of(target.header.number, &row);
            // Counted before it can be found, so that whoever loses it there has something to take off.
            self.packs.credit(to);
            let was_there = self.index.relocate(&row.id, from, to);
            self.packs.debit(if was_there { from } else { to });
            report.moved_bytes += to.frame_bytes();
        }
        // Nothing is added to a finished pack, so nothing can be left in it.
        let is_empty = self.packs.lock().get(&number).is_some_and(|pack| pack.chunks == 0);
        if is_empty {
            let bytes = self.remove_pack(number)?;
            report.packs_rewritten += 1;
            report.freed_bytes += bytes.saturating_sub(target.end - paid_to);
        }
        Ok(())
    }

    /// Copies frames that are found in a pack; tells their new rows and old places.
    fn copy(
        &self,
        number: u32,
        target: &mut OpenPack,
        report: &mut Collected,
    ) -> Result<Vec<(Row, Place)>, ChunkError> {
        let mut moved = Vec::new();
        for row in self.rows(number) {
            let place = Place::of(number, &row);
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

    /// The pack that took what was kept is finished, or removed when it took nothing.
    fn end_output(&self, output: Option<OpenPack>) {
        let Some(pack) = output else { return };
        let number = pack.header.number;
        let is_empty = self.packs.lock().get(&number).is_some_and(|pack| pack.chunks == 0);
        if is_empty {
            // One that stays is removed by the next collection.
            self.packs.lock().entry(number).and_modify(|pack| pack.is_done = true);
            let _ = self.remove_pack(number);
        } else {
            self.finish_pack(&pack);
        }
    }
}
