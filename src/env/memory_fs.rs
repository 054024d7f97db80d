//! An in-memory file system with simulated crashes, full disks and failures.
//!
//! Every file keeps its durable contents separately from the writes since the last sync; [`MemoryFs::crash`] creates
//! the image that a power cut would leave. Directory changes are kept in order and survive a crash as a prefix, as on
//! a journaling file system. Deterministic: all randomness comes from the seed passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::fs::{File, Fs, Lock, parent_dir};

const SECTOR_BYTES: usize = 512;

/// Effect of a crash on unsynced writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// None of them reached the disk.
    Nothing,
    /// All of them reached the disk.
    Everything,
    /// The first ones reached the disk, the last of them truncated at any byte.
    Prefix,
    /// An arbitrary subset of sectors reached the disk.
    Sectors,
}

/// A planned failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// One operation fails with this kind of error; if it is a write, half of it is done.
    Once(io::ErrorKind),
    /// One operation fails because the disk is full; if it is a write, at most this many bytes are written.
    Short(usize),
    /// This operation and all later ones fail: the machine is stopped until [`MemoryFs::crash`].
    Stop,
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    Length(u64),
}

#[derive(Clone, Debug, Default)]
struct Node {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Naming {
    Link(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Unlink(PathBuf),
}

#[derive(Debug, Default)]
struct World {
    nodes: Vec<Node>,
    live: BTreeMap<PathBuf, usize>,
    durable: BTreeMap<PathBuf, usize>,
    namings: Vec<Naming>,
    directories: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
    operations: u64,
    fault: Option<(u64, Fault)>,
    /// Number of name changes that precede the fault, and the fault.
    naming_fault: Option<(u64, Fault)>,
    /// The fault that occurred last.
    struck: Option<Fault>,
    capacity: Option<u64>,
    /// Every read fails.
    reads_fail: bool,
}

/// In-memory file system; see the module documentation.
#[derive(Clone, Debug, Default)]
pub struct MemoryFs {
    world: Arc<Mutex<World>>,
}

#[derive(Debug)]
struct MemoryFile {
    world: Arc<Mutex<World>>,
    node: usize,
}

#[derive(Debug)]
struct MemoryLock {
    world: Arc<Mutex<World>>,
    path: PathBuf,
}

impl Lock for MemoryLock {}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        locked(&self.world).locks.remove(&self.path);
    }
}

fn locked(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

/// SplitMix64: small, and with equal results on every platform.
#[derive(Clone, Debug)]
pub struct SmallRandom(pub u64);

impl SmallRandom {
    /// Returns the next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Returns a number below `bound` (0 if `bound` is 0).
    pub fn below(&mut self, bound: usize) -> usize {
        if bound == 0 {
            return 0;
        }
        usize::try_from(self.next_u64() % bound as u64).unwrap_or(0)
    }
}

fn full() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "no space left on the simulated device")
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

fn put(target: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let start = index(offset);
    if target.len() < start + bytes.len() {
        target.resize(start + bytes.len(), 0);
    }
    target[start..start + bytes.len()].copy_from_slice(bytes);
}

impl Change {
    fn apply(&self, target: &mut Vec<u8>) {
        match self {
            Change::Write { offset, bytes } => put(target, *offset, bytes),
            Change::Length(length) => target.resize(index(*length), 0),
        }
    }
}

impl Node {
    fn after_crash(&self, survival: Survival, random: &mut SmallRandom) -> Node {
        let mut image = self.durable.clone();
        match survival {
            Survival::Nothing => {}
            Survival::Everything => self.pending.iter().for_each(|change| change.apply(&mut image)),
            Survival::Prefix => {
                let whole = random.below(self.pending.len() + 1);
                self.pending[..whole].iter().for_each(|change| change.apply(&mut image));
                if let Some(Change::Write { offset, bytes }) = self.pending.get(whole) {
                    put(&mut image, *offset, &bytes[..random.below(bytes.len() + 1)]);
                }
            }
            Survival::Sectors => self.sectors(&mut image, random),
        }
        Node { live: image.clone(), durable: image, pending: Vec::new() }
    }

    fn sectors(&self, image: &mut Vec<u8>, random: &mut SmallRandom) {
        for change in &self.pending {
            match change {
                Change::Write { offset, bytes } => {
                    let mut at = 0;
                    while at < bytes.len() {
                        let sector_end = SECTOR_BYTES - (index(*offset) + at) % SECTOR_BYTES;
                        let end = (at + sector_end).min(bytes.len());
                        if random.below(2) == 0 {
                            put(image, *offset + at as u64, &bytes[at..end]);
                        }
                        at = end;
                    }
                }
                Change::Length(_) if random.below(2) == 0 => change.apply(image),
                Change::Length(_) => {}
            }
        }
    }
}

impl World {
    /// Counts one changing operation and fails it if a fault is planned for it.
    fn begin(&mut self) -> io::Result<()> {
        let number = self.operations;
        self.operations += 1;
        match self.fault {
            Some((at, fault @ (Fault::Once(_) | Fault::Short(_)))) if number == at => {
                (self.fault, self.struck) = (None, Some(fault));
                Err(if let Fault::Once(kind) = fault { io::Error::new(kind, "simulated fault") } else { full() })
            }
            Some((at, Fault::Stop)) if number >= at => Err(io::Error::other("the simulated machine has stopped")),
            _ => Ok(()),
        }
    }

    /// Like [`World::begin`], for an operation that changes names or makes such changes durable.
    fn begin_naming(&mut self) -> io::Result<()> {
        match self.naming_fault.take() {
            Some((0, fault)) => self.fault = Some((self.operations, fault)),
            Some((left, fault)) => self.naming_fault = Some((left - 1, fault)),
            None => {}
        }
        self.begin()
    }

    fn used(&self) -> u64 {
        let nodes: BTreeSet<usize> = self.live.values().copied().collect();
        nodes.iter().map(|node| self.nodes[*node].live.len() as u64).sum()
    }

    /// Returns whether a file of this name exists, or a file in a directory of this name.
    fn holds(&self, path: &Path) -> bool {
        self.live.keys().any(|name| name.starts_with(path))
    }

    fn room_for(&self, extra: u64) -> bool {
        self.capacity.is_none_or(|capacity| self.used() + extra <= capacity)
    }
}

fn apply_naming(names: &mut BTreeMap<PathBuf, usize>, naming: &Naming) {
    match naming {
        Naming::Link(path, node) => {
            names.insert(path.clone(), *node);
        }
        Naming::Rename(from, to) => rename_in(names, from, to),
        Naming::Unlink(path) => {
            names.remove(path);
        }
    }
}

/// Renames a file, or a directory with everything in it.
fn rename_in(names: &mut BTreeMap<PathBuf, usize>, from: &Path, to: &Path) {
    let inside: Vec<PathBuf> = names.keys().filter(|path| path.starts_with(from)).cloned().collect();
    for path in inside {
        if let (Some(node), Ok(rest)) = (names.remove(&path), path.strip_prefix(from)) {
            let moved = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
            names.insert(moved, node);
        }
    }
}

impl MemoryFs {
    /// Creates an empty file system without a size limit.
    #[must_use]
    pub fn new() -> MemoryFs {
        MemoryFs::default()
    }

    /// Limits the sum of all file lengths; `None` removes the limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        locked(&self.world).capacity = bytes;
    }

    /// Returns the sum of all file lengths.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        locked(&self.world).used()
    }

    /// Returns the number of changing operations (writes, syncs, renames, …) so far, including failed ones.
    #[must_use]
    pub fn operations(&self) -> u64 {
        locked(&self.world).operations
    }

    /// Makes the changing operation with this number (see [`MemoryFs::operations`]) fail.
    pub fn fail_at(&self, operation: u64, fault: Fault) {
        locked(&self.world).fault = Some((operation, fault));
    }

    /// Makes an operation fail that changes names (creates, renames or removes a file) or syncs a directory, after
    /// `after` more of them. These are few among all operations, and the most delicate ones.
    pub fn fail_naming(&self, after: u64, fault: Fault) {
        locked(&self.world).naming_fault = Some((after, fault));
    }

    /// Lets every read of a file's contents fail until [`MemoryFs::heal`].
    pub fn fail_reads(&self) {
        locked(&self.world).reads_fail = true;
    }

    /// Cancels planned faults.
    pub fn heal(&self) {
        let mut world = locked(&self.world);
        (world.fault, world.naming_fault, world.reads_fail) = (None, None, false);
    }

    /// Returns the file system as found after a power cut now. `self` is not changed.
    #[must_use]
    pub fn crash(&self, survival: Survival, seed: u64) -> MemoryFs {
        let world = locked(&self.world);
        let mut random = SmallRandom(seed);
        let kept = match survival {
            Survival::Nothing => 0,
            Survival::Everything => world.namings.len(),
            Survival::Prefix | Survival::Sectors => random.below(world.namings.len() + 1),
        };
        let mut names = world.durable.clone();
        world.namings[..kept].iter().for_each(|naming| apply_naming(&mut names, naming));
        let after = World {
            nodes: world.nodes.iter().map(|node| node.after_crash(survival, &mut random)).collect(),
            live: names.clone(),
            durable: names,
            // Directories exist again once they contain a file.
            directories: BTreeSet::new(),
            capacity: world.capacity,
            ..World::default()
        };
        MemoryFs { world: Arc::new(Mutex::new(after)) }
    }

    /// Flips one bit of a file on the storage medium.
    ///
    /// # Errors
    /// If there is no such file or byte.
    pub fn flip_bit(&self, path: &Path, offset: u64, bit: u8) -> io::Result<()> {
        let mut world = locked(&self.world);
        let node = *world.live.get(path).ok_or(io::ErrorKind::NotFound)?;
        let node = &mut world.nodes[node];
        for image in [&mut node.live, &mut node.durable] {
            if let Some(byte) = image.get_mut(index(offset)) {
                *byte ^= 1 << (bit % 8);
            }
        }
        if index(offset) < node.live.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Returns the contents of a file as seen by a process now.
    ///
    /// # Errors
    /// If there is no such file.
    pub fn contents(&self, path: &Path) -> io::Result<Vec<u8>> {
        let world = locked(&self.world);
        let node = *world.live.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(world.nodes[node].live.clone())
    }
}

impl File for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(locked(&self.world).nodes[self.node].live.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let world = locked(&self.world);
        if world.reads_fail {
            return Err(io::Error::other("injected: no response from the medium"));
        }
        let live = &world.nodes[self.node].live;
        let rest = live.get(index(offset)..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut world = locked(&self.world);
        let outcome = world.begin();
        let extra = (offset + bytes.len() as u64).saturating_sub(world.nodes[self.node].live.len() as u64);
        let outcome = outcome.and_then(|()| if world.room_for(extra) { Ok(()) } else { Err(full()) });
        // A failed write may have stopped anywhere; half of it is used here.
        let written = match (&outcome, world.struck.take()) {
            (Ok(()), _) => bytes,
            (Err(_), Some(Fault::Short(most))) => &bytes[..bytes.len().min(most)],
            (Err(_), _) => &bytes[..bytes.len() / 2],
        };
        let extra = (offset + written.len() as u64).saturating_sub(world.nodes[self.node].live.len() as u64);
        if !written.is_empty() && world.room_for(extra) {
            let node = &mut world.nodes[self.node];
            put(&mut node.live, offset, written);
            node.pending.push(Change::Write { offset, bytes: written.to_vec() });
        }
        outcome
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut world = locked(&self.world);
        let outcome = world.begin();
        let node = &mut world.nodes[self.node];
        let changes = std::mem::take(&mut node.pending);
        // As on Linux: pages that a failed sync could not write stay readable, are marked clean and are never written.
        outcome?;
        for change in changes {
            change.apply(&mut node.durable);
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut world = locked(&self.world);
        world.begin()?;
        let node = &mut world.nodes[self.node];
        node.live.resize(index(length), 0);
        node.pending.push(Change::Length(length));
        Ok(())
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        let mut world = locked(&self.world);
        world.begin()?;
        let now = world.nodes[self.node].live.len() as u64;
        if now >= length {
            return Ok(());
        }
        if !world.room_for(length - now) {
            return Err(full());
        }
        let node = &mut world.nodes[self.node];
        node.live.resize(index(length), 0);
        node.pending.push(Change::Length(length));
        Ok(())
    }
}

impl Fs for MemoryFs {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let node = *locked(&self.world).live.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(MemoryFile { world: Arc::clone(&self.world), node }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut world = locked(&self.world);
        world.begin_naming()?;
        let node = world.nodes.len();
        world.nodes.push(Node::default());
        world.live.insert(path.to_owned(), node);
        world.namings.push(Naming::Link(path.to_owned(), node));
        Ok(Arc::new(MemoryFile { world: Arc::clone(&self.world), node }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = locked(&self.world);
        world.begin_naming()?;
        if !world.holds(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        rename_in(&mut world.live, from, to);
        world.directories.retain(|directory| !directory.starts_with(from));
        world.namings.push(Naming::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut world = locked(&self.world);
        world.begin_naming()?;
        world.live.remove(path).ok_or(io::ErrorKind::NotFound)?;
        world.namings.push(Naming::Unlink(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, _directory: &Path) -> io::Result<()> {
        let mut world = locked(&self.world);
        world.begin_naming()?;
        // A journaling file system commits its whole journal.
        let namings = std::mem::take(&mut world.namings);
        namings.iter().for_each(|naming| apply_naming(&mut world.durable, naming));
        Ok(())
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let world = locked(&self.world);
        let inside = world.live.keys().filter(|path| parent_dir(path) == directory);
        Ok(inside.filter_map(|path| path.file_name()?.to_str().map(String::from)).collect())
    }

    fn create_dir_all(&self, directory: &Path) -> io::Result<()> {
        locked(&self.world).directories.insert(directory.to_owned());
        Ok(())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let world = locked(&self.world);
        Ok(world.holds(path) || world.directories.contains(path))
    }

    fn free_space(&self, _directory: &Path) -> io::Result<u64> {
        let world = locked(&self.world);
        Ok(world.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(world.used())))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        let mut world = locked(&self.world);
        if !world.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(MemoryLock { world: Arc::clone(&self.world), path: path.to_owned() }))
    }
}
