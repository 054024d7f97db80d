//! In-memory index of chunk locations. It is sharded, so that an iteration over all chunks blocks no other thread for long.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::format::{Row, frame_bytes};
use super::gc_pin::GcCutoff;
use gravwell_model::ChunkId;

/// Number of shards, selected by the first byte of the chunk ID, which is uniformly distributed.
const SHARDS: usize = 256;

/// Location of a chunk's frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    pub pack: u32,
    pub offset: u32,
    pub stored: u32,
    pub raw: u32,
}

impl Location {
    pub fn of(pack: u32, row: &Row) -> Location {
        Location { pack, offset: row.offset, stored: row.stored, raw: row.raw }
    }

    pub fn frame_bytes(&self) -> u64 {
        frame_bytes(self.stored)
    }
}

/// Index entry of a chunk: 52 bytes together with the ID.
#[derive(Debug)]
struct Entry {
    place: Location,
    /// Time of the last write or query of the chunk, in seconds since 1970.
    touched: AtomicU32,
}

type Shard = HashMap<ChunkId, Entry>;

#[derive(Debug)]
pub(super) struct Index {
    shards: Vec<RwLock<Shard>>,
}

impl Index {
    pub fn new() -> Index {
        Index { shards: (0..SHARDS).map(|_| RwLock::default()).collect() }
    }

    fn read(&self, id: &ChunkId) -> RwLockReadGuard<'_, Shard> {
        self.shards[usize::from(id.0[0])].read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, id: &ChunkId) -> RwLockWriteGuard<'_, Shard> {
        self.shards[usize::from(id.0[0])].write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, id: &ChunkId) -> Option<Location> {
        self.read(id).get(id).map(|entry| entry.place)
    }

    /// Updates the time of a chunk; returns whether it is present.
    pub fn touch(&self, id: &ChunkId, now_s: u32) -> bool {
        self.read(id).get(id).map(|entry| entry.touched.fetch_max(now_s, Ordering::Relaxed)).is_some()
    }

    /// Sets the location of a chunk; returns its previous location.
    pub fn insert(&self, id: ChunkId, place: Location, now_s: u32) -> Option<Location> {
        let entry = Entry { place, touched: AtomicU32::new(now_s) };
        self.write(&id).insert(id, entry).map(|before| before.place)
    }

    /// Removes a chunk if it is still at this location.
    pub fn remove_from(&self, id: &ChunkId, place: Location) -> bool {
        let mut shard = self.write(id);
        let is_there = shard.get(id).is_some_and(|entry| entry.place == place);
        is_there && shard.remove(id).is_some()
    }

    /// Removes a chunk that the cutoff does not protect; returns its location.
    pub fn remove_older(&self, id: &ChunkId, cutoff: GcCutoff) -> Option<Location> {
        let mut shard = self.write(id);
        let is_older = shard.get(id).is_some_and(|entry| !cutoff.spares(entry.touched.load(Ordering::Relaxed)));
        if is_older { shard.remove(id).map(|entry| entry.place) } else { None }
    }

    /// Moves a chunk if it is still at location `from`.
    pub fn relocate(&self, id: &ChunkId, from: Location, to: Location) -> bool {
        let mut shard = self.write(id);
        let entry = shard.get_mut(id).filter(|entry| entry.place == from);
        entry.map(|entry| entry.place = to).is_some()
    }

    /// Visits all chunks, one shard at a time, and removes those for which `keep` returns `false`.
    pub fn retain(&self, mut keep: impl FnMut(&ChunkId, Location, u32) -> bool) {
        for shard in &self.shards {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|id, entry| keep(id, entry.place, entry.touched.load(Ordering::Relaxed)));
            if shard.capacity() > 4 * shard.len() {
                shard.shrink_to_fit();
            }
        }
    }

    /// Visits all chunks, one shard at a time.
    pub fn each(&self, mut see: impl FnMut(&ChunkId, Location, u32)) {
        for shard in &self.shards {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            shard.iter().for_each(|(id, entry)| see(id, entry.place, entry.touched.load(Ordering::Relaxed)));
        }
    }
}
