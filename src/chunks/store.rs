//! The store of chunks: what is there, reading and writing.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use bytes::Bytes;

use super::StoreOptions;
use super::compress::Codec;
use super::cut::CHUNK_BYTES_MAX;
use super::error::{ChunkError, Damage};
use super::format::{Encoding, FRAME_HEADER_BYTES, FrameHeader, PackHeader, pack_name};
use super::index::{Index, Place};
use super::pack::{Files, OpenPack, Pack, Packs, locked};
use super::recovery::OpenReport;
use super::sync::Syncing;
use crate::env::clock::Clock;
use crate::env::fs::{Fs, is_full, read_exact_at};
use crate::model::ChunkId;

/// Whoever writes the last of so many unsynced bytes makes them durable. A log on the same file system would otherwise have
/// to wait, at its own sync, until all of a large content is on the disk.
const UNSYNCED_BYTES_MAX: u64 = 4 << 20;

/// A store of chunks in one directory, for one process. Clones are the same store.
#[derive(Clone, Debug)]
pub struct ChunkStore {
    pub(super) shared: Arc<Shared>,
}

/// Locks are taken in the order `collecting`, `writer`, a shard of `index`, `packs`; none is held during a sync.
pub(super) struct Shared {
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
    /// Set by a failed sync, for good.
    pub poisoned: AtomicBool,
    /// Chunks found damaged, with the pack where they were.
    pub damaged: Mutex<HashMap<ChunkId, u32>>,
    /// One collection or verification at a time.
    pub collecting: Mutex<()>,
    /// How many holds began at which second.
    pub held: Mutex<BTreeMap<u32, usize>>,
    /// The latest second that was told.
    pub latest: AtomicU32,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkStore").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// Where the next chunk goes.
#[derive(Debug, Default)]
pub(super) struct Writer {
    pub active: Option<OpenPack>,
    /// Full packs that are not known to be durable.
    pub finished: Vec<OpenPack>,
    /// Whether a pack was made since the directory was synced.
    pub directory_changed: bool,
    /// Chunks written since the store was opened.
    pub written: u64,
    /// Bytes written since a sync was last begun for their number.
    pub unsynced_bytes: u64,
    /// Number of the next pack. Numbers rise: of two frames of one chunk that in the later pack counts.
    pub next: u32,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ChunkStats {
    /// Chunks.
    pub chunks: u64,
    /// Their raw bytes.
    pub raw_bytes: u64,
    /// Bytes that they take, compressed where it helps, with their headers.
    pub stored_bytes: u64,
    /// Pack files.
    pub packs: u64,
    /// Length of all packs.
    pub file_bytes: u64,
    /// Bytes of packs that are of no use until they are collected.
    pub garbage_bytes: u64,
    /// Chunks found damaged since the store was opened and not written again.
    pub damaged: u64,
}

/// A frame that was read and checked.
pub(super) struct Frame {
    /// Header and stored bytes.
    pub bytes: Vec<u8>,
    /// The raw chunk, where it is not what is stored.
    raw: Option<Vec<u8>>,
}

impl Frame {
    fn into_raw(self) -> Bytes {
        self.raw.map_or_else(|| Bytes::from(self.bytes).slice(FRAME_HEADER_BYTES..), Bytes::from)
    }
}

/// Why a frame cannot be read.
pub(super) enum Fault {
    /// It is not what was written.
    Damaged(String),
    /// For another reason.
    Io(ChunkError),
}

impl ChunkStore {
    /// Opens the store of a directory, which is made if needed. The caller sees to it that no other process has it open.
    ///
    /// What is damaged is named in the report and counts as missing; everything else is there.
    ///
    /// # Errors
    /// When the directory or a file cannot be opened, read or written.
    pub fn open(
        dir: &Path,
        fs: Arc<dyn Fs>,
        clock: Arc<dyn Clock>,
        options: StoreOptions,
    ) -> Result<(ChunkStore, OpenReport), ChunkError> {
        let options = StoreOptions { pack_bytes: options.pack_bytes.clamp(1 << 10, 1 << 30), ..options };
        super::recovery::open(dir, fs, clock, options)
    }

    /// Whether the store is in order.
    ///
    /// # Errors
    /// [`ChunkError::Poisoned`] after a failed sync, for good: the process should end.
    pub fn health(&self) -> Result<(), ChunkError> {
        self.shared.healthy()
    }

    /// Bytes that a chunk takes on the disk; 0 when it is not there.
    #[must_use]
    pub fn stored_bytes(&self, id: &ChunkId) -> u64 {
        self.shared.index.get(id).map_or(0, |place| place.frame_bytes())
    }

    /// Whether a chunk is there, without looking at the disk.
    #[must_use]
    pub fn contains(&self, id: &ChunkId) -> bool {
        self.shared.index.get(id).is_some()
    }

    /// Those of `ids` that are not there. Those that are start their grace period anew: they will not be collected
    /// while whoever asked goes on to name them. Before naming them, call [`ChunkStore::sync`]: another one may have
    /// written them just now.
    #[must_use]
    pub fn missing(&self, ids: &[ChunkId]) -> Vec<ChunkId> {
        let now = self.shared.now_s();
        ids.iter().filter(|id| !self.shared.index.touch(id, now)).copied().collect()
    }

    /// [`ChunkStore::missing`] for someone who will name none of them: nothing becomes of their grace period.
    #[must_use]
    pub fn absent(&self, ids: &[ChunkId]) -> Vec<ChunkId> {
        ids.iter().filter(|id| self.shared.index.get(id).is_none()).copied().collect()
    }

    /// The raw bytes of a chunk, compared with its name; `None` when it is not there.
    ///
    /// # Errors
    /// When it is damaged, in which case it counts as missing from now on; or when it cannot be read.
    pub fn read(&self, id: &ChunkId) -> Result<Option<Bytes>, ChunkError> {
        while let Some(place) = self.shared.index.get(id) {
            match self.shared.read_frame(id, place) {
                Ok(frame) => return Ok(Some(frame.into_raw())),
                Err(Fault::Io(error)) => return Err(error),
                Err(Fault::Damaged(what)) => {
                    // It may have been moved meanwhile.
                    if let Some(damage) = self.shared.lose(id, place, what) {
                        return Err(damage.into());
                    }
                }
            }
        }
        Ok(None)
    }

    /// Keeps a chunk; `false` when it was there. It is durable after the next [`ChunkStore::sync`]. Now and then it syncs
    /// by itself, so that not too much gathers.
    ///
    /// # Errors
    /// When the bytes are not those of the name, are too many, or cannot be written: see [`ChunkError`].
    pub fn write(&self, id: &ChunkId, raw: &[u8]) -> Result<bool, ChunkError> {
        bounded(raw)?;
        let found = ChunkId::of(raw);
        if found != *id {
            return Err(ChunkError::Mismatch { id: *id, found, bytes: raw.len() });
        }
        self.keep(id, raw)
    }

    /// Names a chunk and keeps it, see [`ChunkStore::write`]: for bytes that come without a name.
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

    /// Names of all chunks, in no order.
    #[must_use]
    pub fn ids(&self) -> Vec<ChunkId> {
        let mut ids = Vec::new();
        self.shared.index.each(|id, _, _| ids.push(*id));
        ids
    }

    /// How many bytes of chunks fit on the disk before the reserve; `None` when that is not known.
    #[must_use]
    pub fn room(&self) -> Option<u64> {
        let free = self.shared.fs.free_space(&self.shared.dir).ok()?;
        Some(free.saturating_sub(self.shared.options.reserve_bytes))
    }

    /// How much there is.
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

impl Shared {
    /// Seconds since 1970. It never goes back, so that what is written later is never older.
    pub fn now_s(&self) -> u32 {
        let now = u32::try_from(self.clock.now_ms() / 1000).unwrap_or(u32::MAX);
        self.latest.fetch_max(now, Ordering::SeqCst).max(now)
    }

    pub fn healthy(&self) -> Result<(), ChunkError> {
        if self.poisoned.load(Ordering::SeqCst) { Err(ChunkError::Poisoned) } else { Ok(()) }
    }

    /// What a failed write means.
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

    /// Reads and checks a frame.
    pub fn read_frame(&self, id: &ChunkId, place: Place) -> Result<Frame, Fault> {
        let damaged = |what: &dyn std::fmt::Display| Err(Fault::Damaged(what.to_string()));
        let file = match self.files.get(place.pack) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return damaged(&"the file is missing"),
            Err(error) => return Err(Fault::Io(ChunkError::io("open", pack_name(place.pack))(error))),
        };
        let mut frame = vec![0; usize::try_from(place.frame_bytes()).unwrap_or(usize::MAX)];
        // What the medium cannot give back is lost, whatever its reason.
        if let Err(error) = read_exact_at(&*file, &mut frame, u64::from(place.offset)) {
            return damaged(&format_args!("cannot be read: {error}"));
        }
        let header = match FrameHeader::decode(&frame) {
            Ok(header) => header,
            Err(error) => return damaged(&error),
        };
        let stored = &frame[FRAME_HEADER_BYTES..];
        if (header.id, header.stored, header.raw) != (*id, place.stored, place.raw) {
            return damaged(&"it is the frame of another chunk");
        }
        if crc32c::crc32c(stored) != header.stored_crc {
            return damaged(&"its checksum does not match");
        }
        let raw = match self.codec.restore(header.encoding, stored, header.raw as usize) {
            Ok(raw) => raw,
            Err(what) => return damaged(&what),
        };
        if ChunkId::of(raw.as_deref().unwrap_or(stored)) != *id {
            return damaged(&"its hash does not match");
        }
        Ok(Frame { bytes: frame, raw })
    }

    /// Counts a chunk as missing if it is still at this place.
    pub fn lose(&self, id: &ChunkId, place: Place, what: String) -> Option<Damage> {
        if !self.index.remove_from(id, place) {
            return None;
        }
        self.packs.debit(place);
        locked(&self.damaged).insert(*id, place.pack);
        let (file, offset) = (pack_name(place.pack), u64::from(place.offset));
        Some(Damage { id: Some(*id), file, offset, what })
    }

    /// Puts a chunk that was just written at its place.
    pub fn settle(&self, id: ChunkId, place: Place) {
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
                self.settle(header.id, Place::of(number, &row));
                Ok(true)
            }
            Err((error, is_undone)) => {
                // Behind half a frame nothing must be written: the pack ends here.
                if !is_undone {
                    writer.finished.extend(writer.active.take());
                }
                Err(self.failed("write", number, error))
            }
        }
    }

    /// Whether so much was written that it should be synced; says so to one of those who ask.
    fn is_sync_due(&self) -> bool {
        let mut writer = locked(&self.writer);
        let is_due = writer.unsynced_bytes >= UNSYNCED_BYTES_MAX;
        if is_due {
            writer.unsynced_bytes = 0;
        }
        is_due
    }

    /// The pack that takes the next frame, a new one when the present one is full.
    fn pack_for<'a>(&self, writer: &'a mut Writer, id: &ChunkId, bytes: u64) -> Result<&'a mut OpenPack, ChunkError> {
        // The later pack counts: a damaged chunk is replaced in one behind the damage.
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

    /// Makes a pack with the next number.
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
