//! The pack that is being written, the table of all packs, and their open files.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::format::{FRAME_HEADER_BYTES, FrameHeader, PACK_HEADER_BYTES, PackHeader, Row, pack_name};
use super::index::Location;
use gravwell_env::fs::{File, Fs};

/// Maximum number of cached open files.
const FILES_MAX: usize = 64;

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pack that is being written.
#[derive(Clone, Debug)]
pub(super) struct OpenPack {
    pub header: PackHeader,
    pub file: Arc<dyn File>,
    /// Offset of the next frame.
    pub end: u64,
    /// Length of the prefix that is durable.
    pub durable: u64,
}

impl OpenPack {
    /// Creates the file. Its directory entry is durable after the next sync of the directory.
    pub fn create(fs: &dyn Fs, dir: &Path, header: PackHeader) -> io::Result<OpenPack> {
        let path = dir.join(pack_name(header.number));
        let file = fs.create(&path)?;
        if let Err(error) = file.write_at(&header.encode(), 0) {
            let _ = fs.remove(&path);
            return Err(error);
        }
        Ok(OpenPack { header, file, end: PACK_HEADER_BYTES as u64, durable: 0 })
    }

    /// Writes a frame. `frame` holds space for the header followed by the stored bytes. An error comes with a flag: if
    /// it is `true`, the pack is unchanged; otherwise the pack must not be written any more.
    pub fn append(&mut self, header: FrameHeader, frame: &mut [u8]) -> Result<Row, (io::Error, bool)> {
        let (pack, durable) = (self.header.number, u32::try_from(self.durable).unwrap_or(u32::MAX));
        let header = FrameHeader { pack, durable, ..header };
        frame[..FRAME_HEADER_BYTES].copy_from_slice(&header.encode());
        if let Err(error) = self.file.write_at(frame, self.end) {
            return Err((error, self.file.set_len(self.end).is_ok()));
        }
        let offset = u32::try_from(self.end).unwrap_or(u32::MAX);
        self.end += frame.len() as u64;
        Ok(Row { id: header.id, offset, stored: header.stored, raw: header.raw })
    }
}

/// Metadata of a pack.
#[derive(Clone, Debug, Default)]
pub(super) struct Pack {
    pub created_ms: u64,
    /// Length of the file.
    pub bytes: u64,
    /// Number of chunks for which the index points to this pack.
    pub chunks: u64,
    /// Total length of their frames.
    pub live_bytes: u64,
    /// Total of their raw lengths.
    pub raw_bytes: u64,
    /// Whether the pack is durable and complete.
    pub is_done: bool,
    /// Rows of the pack, unless they are in an index file.
    pub rows: Option<Vec<Row>>,
}

impl Pack {
    pub fn garbage_bytes(&self) -> u64 {
        self.bytes.saturating_sub(self.live_bytes + PACK_HEADER_BYTES as u64)
    }
}

#[derive(Debug, Default)]
pub(super) struct Packs {
    all: Mutex<BTreeMap<u32, Pack>>,
}

impl Packs {
    pub fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Pack>> {
        locked(&self.all)
    }

    /// Counts a chunk that is now at this location.
    pub fn credit(&self, place: Location) {
        if let Some(pack) = self.lock().get_mut(&place.pack) {
            pack.chunks += 1;
            pack.live_bytes += place.frame_bytes();
            pack.raw_bytes += u64::from(place.raw);
        }
    }

    /// Subtracts a chunk that is no longer at this location.
    pub fn debit(&self, place: Location) {
        if let Some(pack) = self.lock().get_mut(&place.pack) {
            pack.chunks -= 1;
            pack.live_bytes -= place.frame_bytes();
            pack.raw_bytes -= u64::from(place.raw);
        }
    }
}

/// Bounded cache of open pack files.
#[derive(Debug)]
pub(super) struct Files {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    open: Mutex<Opened>,
}

#[derive(Debug, Default)]
struct Opened {
    files: HashMap<u32, (Arc<dyn File>, u64)>,
    uses: u64,
}

impl Files {
    pub fn new(fs: Arc<dyn Fs>, dir: PathBuf) -> Files {
        Files { fs, dir, open: Mutex::default() }
    }

    pub fn get(&self, number: u32) -> io::Result<Arc<dyn File>> {
        {
            let mut open = locked(&self.open);
            open.uses += 1;
            let uses = open.uses;
            if let Some((file, used)) = open.files.get_mut(&number) {
                *used = uses;
                return Ok(Arc::clone(file));
            }
        }
        let file = self.fs.open(&self.dir.join(pack_name(number)))?;
        let mut open = locked(&self.open);
        if open.files.len() >= FILES_MAX
            && let Some(oldest) = open.files.iter().min_by_key(|(_, (_, used))| *used).map(|(number, _)| *number)
        {
            open.files.remove(&oldest);
        }
        let uses = open.uses;
        open.files.insert(number, (Arc::clone(&file), uses));
        Ok(file)
    }

    pub fn forget(&self, number: u32) {
        locked(&self.open).files.remove(&number);
    }
}
