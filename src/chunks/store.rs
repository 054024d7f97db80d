//! The chunk store: lookup, reading and writing.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use bytes::Bytes;

use super::StoreOptions;
use super::chunking::CHUNK_BYTES_MAX;
use super::compress::Codec;
use super::error::{ChunkError, Damage};
use super::format::{Encoding, FRAME_HEADER_BYTES, FrameHeader, PackHeader, pack_name};
use super::index::{Index, Location};
use super::pack::{Files, OpenPack, Pack, Packs, locked};
use super::recovery::OpenReport;
use super::sync::Syncing;
use gravwell_env::clock::Clock;
use gravwell_env::fs::{Fs, is_full, read_exact_at};
use gravwell_model::ChunkId;

/// Unsynced bytes after which a writer calls sync. Otherwise the sync of a log on the same file system would
/// have to wait until all of a large blob is on the disk.
const UNSYNCED_BYTES_MAX: u64 = 4 << 20;

/// Chunk store in one directory, for one process. Clones refer to the same store.
#[derive(Clone, Debug)]
pub struct ChunkStore {
    pub(super) shared: Arc<StoreState>,
}

/// Lock order: `collecting`, `writer`, a shard of `index`, `packs`. No lock is held during a sync.
pub(super) struct StoreState {
    pub fs: Arc<dyn Fs>,
    pub dir: PathBuf,
    pub clock: Arc<dyn Clock>,
    pub options: StoreOptions,
    pub codec: Codec,
    pub index: Index,
    pub packs: Packs,
    pub files: Files,
    pub writer: Mutex<Writer>,
    pub syncing: Mutex<Syncing>,
    pub synced: Condvar,
    /// Set permanently by a failed sync.
    pub poisoned: AtomicBool,
    /// Chunks found corrupt, with the pack that contained them.
    pub damaged: Mutex<HashMap<ChunkId, u32>>,
    /// Allows one collection or verification at a time.
    pub collecting: Mutex<()>,
    /// Number of holds by the second at which they started.
    pub held: Mutex<BTreeMap<u32, usize>>,
    /// The latest second returned by [`StoreState::now_s`].
    pub latest: AtomicU32,
}

impl std::fmt::Debug for StoreState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkStore").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// State of writing: the open packs and their counters.
#[derive(Debug, Default)]
pub(super) struct Writer {
    pub active: Option<OpenPack>,
    /// Full packs that may not be durable yet.
    pub finished: Vec<OpenPack>,
    /// Whether a pack was created since the directory was last synced.
    pub directory_changed: bool,
    /// Chunks written since the store was opened.
    pub written: u64,
    /// Bytes written since the last sync, or since [`UNSYNCED_BYTES_MAX`] last triggered one.
    pub unsynced_bytes: u64,
    /// Number of the next pack. Numbers increase: if two packs contain a frame of one chunk, the later pack wins.
    pub next: u32,
}

/// Statistics of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ChunkStats {
    /// Number of chunks.
    pub chunks: u64,
    /// Total raw length of the chunks.
    pub raw_bytes: u64,
    /// Total length of their frames: headers and stored bytes, compressed where that saves space.
    pub stored_bytes: u64,
    /// Pack files.
    pub packs: u64,
    /// Total length of the packs.
    pub file_bytes: u64,
    /// Bytes of garbage in packs, reclaimed by garbage collection.
    pub garbage_bytes: u64,
    /// Chunks found corrupt since the store was opened and not written again.
    pub damaged: u64,
}

/// A frame that was read and verified.
pub(super) struct Frame {
    /// Header and stored bytes.
    pub bytes: Vec<u8>,
    /// The raw chunk, if it differs from the stored bytes.
    raw: Option<Vec<u8>>,
}

impl Frame {
    fn into_raw(self) -> Bytes {
        self.raw.map_or_else(|| Bytes::from(self.bytes).slice(FRAME_HEADER_BYTES..), Bytes::from)
    }
}

/// Reason why a frame cannot be read.
pub(super) enum Fault {
    /// The frame is corrupt.
    Damaged(String),
    /// Another error occurred.
    Io(ChunkError),
}

impl ChunkStore {
    /// Opens the store in a directory, which is created if needed. The caller ensures that no other process has it open.
    ///
    /// Corrupt chunks are listed in the report and treated as missing; all others are available.
    ///
    /// # Errors
    /// If the directory or a file cannot be opened, read or written.
    pub fn open(
        dir: &Path,
        fs: Arc<dyn Fs>,
        clock: Arc<dyn Clock>,
        options: StoreOptions,
    ) -> Result<(ChunkStore, OpenReport), ChunkError> {
        let options = StoreOptions { pack_bytes: options.pack_bytes.clamp(1 << 10, 1 << 30), ..options };
        super::recovery::open(dir, fs, clock, options)
    }

    /// Checks that no sync has failed.
    ///
    /// # Errors
    /// Returns [`ChunkError::Poisoned`] permanently after a failed sync. The process should exit.
    pub fn health(&self) -> Result<(), ChunkError> {
        self.shared.healthy()
    }

    /// Returns the bytes that a chunk occupies on disk; 0 if it is missing.
    #[must_use]
    pub fn stored_bytes(&self, id: &ChunkId) -> u64 {
        self.shared.index.get(id).map_or(0, |place| place.frame_bytes())
    }

    /// Returns whether a chunk is present, without accessing the disk.
    #[must_use]
    pub fn contains(&self, id: &ChunkId) -> bool {
        self.shared.index.get(id).is_some()
    }

    /// Returns those of `ids` that are missing. The grace period of the others restarts, so they are not collected
    /// before the caller references them. Before referencing them, call [`ChunkStore::sync`]: another thread may have
    /// just written them.
    #[must_use]
    pub fn missing(&self, ids: &[ChunkId]) -> Vec<ChunkId> {
        let now = self.shared.now_s();
        ids.iter().filter(|id| !self.shared.index.touch(id, now)).copied().collect()
    }

    /// Returns those of `ids` that are missing, like [`ChunkStore::missing`], for callers that will not reference any
    /// of them: grace periods are unchanged.
    #[must_use]
    pub fn absent(&self, ids: &[ChunkId]) -> Vec<ChunkId> {
        ids.iter().filter(|id| self.shared.index.get(id).is_none()).copied().collect()
    }

    /// Whether a chunk was found damaged since the store was opened, and was not written again.
    #[must_use]
    pub fn is_damaged(&self, id: &ChunkId) -> bool {
        locked(&self.shared.damaged).contains_key(id)
    }

    /// Returns the raw bytes of a chunk, verified against its ID; `None` if it is missing.
    ///
    /// # Errors
    /// If the chunk is corrupt, in which case it is treated as missing from now on; or if it cannot be read.
    pub fn read(&self, id: &ChunkId) -> Result<Option<Bytes>, ChunkError> {
        while let Some(place) = self.shared.index.get(id) {
            match self.shared.read_frame(id, place) {
                Ok(frame) => return Ok(Some(frame.into_raw())),
                Err(Fault::Io(error)) => return Err(error),
                Err(Fault::Damaged(what)) => {
                    // Garbage collection may have moved the chunk in the meantime.
                    if let Some(damage) = self.shared.lose(id, place, what) {
                        return Err(damage.into());
                    }
                }
            }
        }
        Ok(None)
    }

    /// Stores a chunk; returns `false` if it was present. It is durable after the next [`ChunkStore::sync`]. A write
    /// that exceeds a limit of unsynced bytes calls sync.
    ///
    /// # Errors
    /// If the bytes do not match the ID, are too many or cannot be written, see [`ChunkError`].
    pub fn write(&self, id: &ChunkId, raw: &[u8]) -> Result<bool, ChunkError> {
        bounded(raw)?;
        let found = ChunkId::of(raw);
        if found != *id {
            return Err(ChunkError::Mismatch { id: *id, found, bytes: raw.len() });
        }
        self.keep(id, raw)
    }

    /// Computes the ID of a chunk and stores it like [`ChunkStore::write`].
    ///
    /// # Errors
    /// See [`ChunkStore::write`].
    pub fn put(&self, raw: &[u8]) -> Result<(ChunkId, bool), ChunkError> {
        bounded(raw)?;
        let id = ChunkId::of(raw);
        Ok((id, self.keep(&id, raw)?))
    }

    fn keep(&self, id: &ChunkId, raw: &[u8]) -> Result<bool, ChunkError> {
        let shared = &self.shared;
        shared.healthy()?;
        if shared.index.touch(id, shared.now_s()) {
            return Ok(false);
        }
        let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + raw.len());
        frame.resize(FRAME_HEADER_BYTES, 0);
        let encoding = shared.codec.store(raw, &mut frame);
        let header = header(*id, encoding, &frame[FRAME_HEADER_BYTES..], raw.len());
        let is_new = shared.append(header, &mut frame)?;
        if shared.is_sync_due() {
            self.sync()?;
        }
        Ok(is_new)
    }

    /// Returns the IDs of all chunks, in arbitrary order.
    #[must_use]
    pub fn ids(&self) -> Vec<ChunkId> {
        let mut ids = Vec::new();
        self.shared.index.each(|id, _, _| ids.push(*id));
        ids
    }

    /// Returns how many bytes can be written before the disk reserve is reached; `None` if that is unknown.
    #[must_use]
    pub fn room(&self) -> Option<u64> {
        let free = self.shared.fs.free_space(&self.shared.dir).ok()?;
        Some(free.saturating_sub(self.shared.options.reserve_bytes))
    }

    /// Returns statistics of the store.
    #[must_use]
    pub fn stats(&self) -> ChunkStats {
        let damaged = locked(&self.shared.damaged).len() as u64;
        let mut stats = ChunkStats { damaged, ..ChunkStats::default() };
        for pack in self.shared.packs.lock().values() {
            stats.chunks += pack.chunks;
            stats.raw_bytes += pack.raw_bytes;
            stats.stored_bytes += pack.live_bytes;
            stats.packs += 1;
            stats.file_bytes += pack.bytes;
            stats.garbage_bytes += pack.garbage_bytes();
        }
        stats
    }
}

fn bounded(raw: &[u8]) -> Result<(), ChunkError> {
    if raw.len() <= CHUNK_BYTES_MAX {
        return Ok(());
    }
    Err(ChunkError::TooLong { found: raw.len(), allowed: CHUNK_BYTES_MAX })
}

fn header(id: ChunkId, encoding: Encoding, stored: &[u8], raw_bytes: usize) -> FrameHeader {
    FrameHeader {
        encoding,
        stored: u32::try_from(stored.len()).unwrap_or(u32::MAX),
        raw: u32::try_from(raw_bytes).unwrap_or(u32::MAX),
        pack: 0,
        durable: 0,
        id,
        stored_crc: crc32c::crc32c(stored),
    }
}

impl StoreState {
    /// Returns seconds since 1970. The value never decreases, so later writes never look older.
    pub fn now_s(&self) -> u32 {
        let now = u32::try_from(self.clock.now_ms() / 1000).unwrap_or(u32::MAX);
        self.latest.fetch_max(now, Ordering::SeqCst).max(now)
    }

    pub fn healthy(&self) -> Result<(), ChunkError> {
        if self.poisoned.load(Ordering::SeqCst) { Err(ChunkError::Poisoned) } else { Ok(()) }
    }

    pub fn failed(&self, action: &'static str, number: u32, error: io::Error) -> ChunkError {
        if is_full(&error) { self.full() } else { ChunkError::io(action, pack_name(number))(error) }
    }

    fn full(&self) -> ChunkError {
        ChunkError::Full {
            directory: self.dir.display().to_string(),
            free: self.fs.free_space(&self.dir).unwrap_or(0),
            reserve: self.options.reserve_bytes,
        }
    }

    pub fn read_frame(&self, id: &ChunkId, place: Location) -> Result<Frame, Fault> {
        let damaged = |what: &dyn std::fmt::Display| Err(Fault::Damaged(what.to_string()));
        let file = match self.files.get(place.pack) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return damaged(&"the file is missing"),
            Err(error) => return Err(Fault::Io(ChunkError::io("open", pack_name(place.pack))(error))),
        };
        let mut frame = vec![0; usize::try_from(place.frame_bytes()).unwrap_or(usize::MAX)];
        // Bytes that the medium cannot return are lost, whatever the reason.
        if let Err(error) = read_exact_at(&*file, &mut frame, u64::from(place.offset)) {
            return damaged(&format_args!("cannot be read: {error}"));
        }
        let header = match FrameHeader::decode(&frame) {
            Ok(header) => header,
            Err(error) => return damaged(&error),
        };
        let stored = &frame[FRAME_HEADER_BYTES..];
        if (header.id, header.stored, header.raw) != (*id, place.stored, place.raw) {
            return damaged(&"the frame is of another chunk");
        }
        if crc32c::crc32c(stored) != header.stored_crc {
            return damaged(&"the checksum does not match");
        }
        let raw = match self.codec.restore(header.encoding, stored, header.raw as usize) {
            Ok(raw) => raw,
            Err(what) => return damaged(&what),
        };
        if ChunkId::of(raw.as_deref().unwrap_or(stored)) != *id {
            return damaged(&"the hash does not match");
        }
        Ok(Frame { bytes: frame, raw })
    }

    /// Marks a chunk as missing if it is still at this location.
    pub fn lose(&self, id: &ChunkId, place: Location, what: String) -> Option<Damage> {
        if !self.index.remove_from(id, place) {
            return None;
        }
        self.packs.debit(place);
        locked(&self.damaged).insert(*id, place.pack);
        let (file, offset) = (pack_name(place.pack), u64::from(place.offset));
        Some(Damage { id: Some(*id), file, offset, what })
    }

    /// Records the location of a chunk that was just written.
    pub fn settle(&self, id: ChunkId, place: Location) {
        self.packs.credit(place);
        if let Some(before) = self.index.insert(id, place, self.now_s()) {
            self.packs.debit(before);
        }
    }

    fn append(&self, header: FrameHeader, frame: &mut [u8]) -> Result<bool, ChunkError> {
        let mut guard = locked(&self.writer);
        let writer = &mut *guard;
        self.healthy()?;
        if self.index.touch(&header.id, self.now_s()) {
            return Ok(false);
        }
        let reserve = self.options.reserve_bytes;
        if reserve > 0 && self.fs.free_space(&self.dir).is_ok_and(|free| free < reserve) {
            return Err(self.full());
        }
        let pack = self.pack_for(writer, &header.id, frame.len() as u64)?;
        let number = pack.header.number;
        match pack.append(header, frame) {
            Ok(row) => {
                let end = pack.end;
                writer.written += 1;
                writer.unsynced_bytes += frame.len() as u64;
                if let Some(pack) = self.packs.lock().get_mut(&number) {
                    pack.bytes = end;
                    pack.rows.get_or_insert_default().push(row);
                }
                locked(&self.damaged).remove(&header.id);
                self.settle(header.id, Location::of(number, &row));
                Ok(true)
            }
            Err((error, is_undone)) => {
                // No frame may follow a partial one, so this pack is closed.
                if !is_undone {
                    writer.finished.extend(writer.active.take());
                }
                Err(self.failed("write", number, error))
            }
        }
    }

    /// Returns whether a sync is due. Resets the count, so that only one of several concurrent writers syncs.
    fn is_sync_due(&self) -> bool {
        let mut writer = locked(&self.writer);
        let is_due = writer.unsynced_bytes >= UNSYNCED_BYTES_MAX;
        if is_due {
            writer.unsynced_bytes = 0;
        }
        is_due
    }

    /// Returns the pack for the next frame; creates a new one if the current one is full.
    fn pack_for<'a>(&self, writer: &'a mut Writer, id: &ChunkId, bytes: u64) -> Result<&'a mut OpenPack, ChunkError> {
        // The frame in the later pack wins, so a corrupt chunk must not be rewritten to a pack before the corrupt one.
        let lost_in = locked(&self.damaged).get(id).copied();
        let fits = writer.active.as_ref().is_some_and(|pack| {
            pack.end + bytes <= self.options.pack_bytes && lost_in.is_none_or(|lost| lost <= pack.header.number)
        });
        if !fits {
            writer.finished.extend(writer.active.take());
        }
        match writer.active {
            Some(ref mut pack) => Ok(pack),
            None => {
                let pack = self.create_pack(&mut writer.next)?;
                writer.directory_changed = true;
                Ok(writer.active.insert(pack))
            }
        }
    }

    pub fn create_pack(&self, next: &mut u32) -> Result<OpenPack, ChunkError> {
        let header = PackHeader { number: *next, created_ms: self.clock.now_ms() };
        let created = OpenPack::create(&*self.fs, &self.dir, header);
        let pack = created.map_err(|error| self.failed("create", header.number, error))?;
        *next = next.saturating_add(1);
        let known = Pack { created_ms: header.created_ms, bytes: pack.end, rows: Some(Vec::new()), ..Pack::default() };
        self.packs.lock().insert(header.number, known);
        Ok(pack)
    }
}
