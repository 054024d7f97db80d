//! A backup made a datastore's log again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::manifest::{Manifest, Segment};
use super::repository::{Repository, RepositoryError};
use crate::codec::admin::Beginning;
use crate::config::datastore::DatastoreConfig;
use crate::datastore::generations;
use crate::datastore::open::{self, log_options};
use crate::env::data_dir::DirectoryError;
use crate::env::{Clock, RealFs, SystemClock};
use crate::log::copy::{Cut, CutError, End, cut};
use crate::log::repair::{LOG, NEW, swap};
use crate::log::{IoFailure, Log};
use crate::model::{ChunkId, Digest, Generation, LineageEntry, Seq};
use crate::state::StateStore;
use crate::trust::{Escrow, RecoveryKey, TrustError};

/// Why a backup is not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The repository.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The records in it do not reach where they should.
    #[error(transparent)]
    Cut(#[from] CutError),
    /// No backup covers the wanted moment.
    #[error("{0}")]
    NotCovered(String),
    /// Something else is there.
    #[error("{0} holds a log already: say --replace, and it is kept beside the restored one")]
    NotEmpty(PathBuf),
    /// What was restored is not what was backed up.
    #[error("the restored log is not what was backed up: {0}")]
    Wrong(String),
    /// The operating system refuses.
    #[error(transparent)]
    Io(#[from] IoFailure),
    /// A directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The authority.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// What was restored.
#[derive(Clone, Debug, Serialize)]
pub struct Restored {
    /// The backup.
    pub backup: String,
    /// Last sequence.
    pub seq: Seq,
    /// Its generation, which is a new one.
    pub generation: Generation,
    /// Digest of the state there.
    pub digest: Digest,
    /// Objects in it.
    pub objects: u64,
    /// Records that were read and checked.
    pub records: u64,
    /// Where the former log is kept.
    pub kept: Option<PathBuf>,
    /// What became of the authority.
    pub authority: String,
}

/// Chooses the backup from which `end` can be restored: the newest of those that reach it.
///
/// # Errors
/// When none does; says what can be restored.
pub fn choose(manifests: &[Manifest], end: Option<End>) -> Result<&Manifest, RestoreError> {
    let newest = manifests.iter().max_by_key(|manifest| (manifest.generation, manifest.seq, manifest.made_ms));
    let newest = newest.ok_or_else(|| RestoreError::NotCovered("there is no backup".into()))?;
    let covering = match end {
        None => return Ok(newest),
        Some(End::Seq(seq)) => manifests
            .iter()
            .filter(|manifest| manifest.log_id == newest.log_id && manifest.horizon <= seq && seq <= manifest.seq)
            .max_by_key(|manifest| (manifest.generation, manifest.made_ms)),
        // The earliest that was made after the moment: the later, the more may have been compacted.
        Some(End::Time(time)) => match manifests.iter().find(|manifest| manifest.time_ms >= time) {
            Some(manifest) => Some(manifest),
            None => Some(newest),
        },
    };
    covering.ok_or_else(|| {
        let ranges = coverage(manifests).into_iter().map(|(from, to)| format!("{from} to {to}")).collect::<Vec<_>>();
        RestoreError::NotCovered(format!("no backup reaches it; what can be restored: {}", ranges.join(", ")))
    })
}

/// The sequences that can be restored, as ranges.
#[must_use]
pub fn coverage(manifests: &[Manifest]) -> Vec<(Seq, Seq)> {
    let mut ranges: Vec<(Seq, Seq)> = manifests.iter().map(|manifest| (manifest.horizon, manifest.seq)).collect();
    ranges.sort();
    let mut joined: Vec<(Seq, Seq)> = Vec::new();
    for (from, to) in ranges {
        match joined.last_mut() {
            Some(last) if from <= last.1.next() => last.1 = last.1.max(to),
            _ => joined.push((from, to)),
        }
    }
    joined
}

/// What the caller wants.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes<'a> {
    /// Where the log is to end; `None`: at the end of the backup.
    pub end: Option<End>,
    /// Whether a log that is there may be put aside.
    pub replace: bool,
    /// Opens the authority in the backup.
    pub recovery_key: Option<&'a RecoveryKey>,
    /// The new generation is above this one.
    pub above: Generation,
    /// Chunks of contents to bring back, each with the piece that holds it.
    pub chunks: Option<&'a BTreeMap<ChunkId, String>>,
}

/// Restores a backup into the data directory `path`, whose lock the caller holds.
///
/// # Errors
/// When anything is missing or wrong. Nothing was put in place then.
pub fn restore(
    repository: &Repository,
    manifest: &Manifest,
    path: &Path,
    config: &DatastoreConfig,
    wishes: Wishes<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Restored, RestoreError> {
    let log = path.join(LOG);
    if log.exists() && !wishes.replace {
        return Err(RestoreError::NotEmpty(log));
    }
    let new = path.join(NEW);
    remove(&new)?;
    let generation = generations::after(manifest.generation.max(wishes.above), SystemClock.now_ms());
    let mut restored = rebuild(repository, manifest, &new, config, wishes.end, generation, progress)?;
    bring_chunks(repository, wishes.chunks, path)?;
    restored.authority = authority(manifest, path, wishes.recovery_key)?;
    let entry = LineageEntry { generation, shared_to: restored.seq };
    for info in &manifest.generations {
        let entry = LineageEntry { generation: info.generation, shared_to: info.shared_to };
        generations::note(path, manifest.log_id, entry, info.beginning, info.time_ms)?;
    }
    generations::note(path, manifest.log_id, entry, Beginning::Restored, SystemClock.now_ms())?;
    restored.kept = swap(&RealFs, path)?;
    Ok(restored)
}

/// Test-restores a backup in `scratch`, a directory of its own, which is empty again afterwards.
///
/// # Errors
/// As [`restore`].
pub fn rehearse(
    repository: &Repository,
    manifest: &Manifest,
    scratch: &Path,
    config: &DatastoreConfig,
    end: Option<End>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Restored, RestoreError> {
    let new = scratch.join(NEW);
    remove(&new)?;
    let generation = Generation(manifest.generation.0 + 1);
    let restored = rebuild(repository, manifest, &new, config, end, generation, progress);
    remove(&new)?;
    let restored = restored?;
    for (id, piece) in &manifest.chunks {
        chunk(repository, *id, piece)?;
    }
    Ok(restored)
}

/// The bytes of a chunk, compared with its name.
fn chunk(repository: &Repository, id: ChunkId, piece: &str) -> Result<Vec<u8>, RestoreError> {
    let bytes = repository.piece(piece)?;
    if ChunkId::of(&bytes) == id {
        return Ok(bytes);
    }
    Err(RestoreError::Wrong(format!("piece {piece} does not hold chunk {id}")))
}

/// Writes the chunks that the store beside the log lacks; durable when it returns.
fn bring_chunks(
    repository: &Repository,
    chunks: Option<&BTreeMap<ChunkId, String>>,
    path: &Path,
) -> Result<(), RestoreError> {
    let Some(chunks) = chunks.filter(|chunks| !chunks.is_empty()) else { return Ok(()) };
    let failed = |error: crate::chunks::ChunkError| RestoreError::Wrong(format!("the chunk store: {error}"));
    let store = open::open_chunks(path).map_err(failed)?;
    for (id, piece) in chunks.iter().filter(|(id, _)| !store.contains(id)) {
        store.write(id, &chunk(repository, *id, piece)?).map_err(failed)?;
    }
    store.sync().map_err(failed)
}

fn rebuild(
    repository: &Repository,
    manifest: &Manifest,
    new: &Path,
    config: &DatastoreConfig,
    end: Option<End>,
    generation: Generation,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Restored, RestoreError> {
    fs::create_dir_all(new).map_err(IoFailure::at("create", new.display()))?;
    let (total, mut done) = (manifest.bytes(), 0);
    for segment in &manifest.segments {
        fetch(repository, segment, new, &mut |bytes| {
            done += bytes;
            progress(done, total);
        })?;
    }
    let what =
        Cut { log_id: manifest.log_id, generation, lineage: manifest.lineage.clone(), horizon: manifest.horizon };
    let (seq, chain) = cut(&RealFs, new, what, end.unwrap_or(End::Seq(manifest.seq)))?;
    if seq == manifest.seq && crate::log::copy::chain_text(&chain) != manifest.chain {
        return Err(RestoreError::Wrong("its chain is another one".into()));
    }
    check(manifest, new, config, (seq, generation))
}

/// Puts one file together from its pieces.
fn fetch(
    repository: &Repository,
    segment: &Segment,
    new: &Path,
    done: &mut dyn FnMut(u64),
) -> Result<(), RestoreError> {
    use std::io::Write;
    let path = new.join(&segment.name);
    let mut file = fs::File::create(&path).map_err(IoFailure::at("create", path.display()))?;
    let mut length = 0;
    for piece in &segment.pieces {
        let bytes = repository.piece(piece)?;
        file.write_all(&bytes).map_err(IoFailure::at("write", path.display()))?;
        length += bytes.len() as u64;
        done(bytes.len() as u64);
    }
    if length != segment.bytes {
        return Err(RestoreError::Wrong(format!("{} has {length} bytes instead of {}", segment.name, segment.bytes)));
    }
    Ok(file.sync_all().map_err(IoFailure::at("sync", path.display()))?)
}

/// Opens the new log like any other, verifies every byte, and adds it up.
fn check(
    manifest: &Manifest,
    new: &Path,
    config: &DatastoreConfig,
    (seq, generation): (Seq, Generation),
) -> Result<Restored, RestoreError> {
    let wrong = |what: String| RestoreError::Wrong(what);
    let (log, _) = Log::open(Arc::new(RealFs), new, log_options(config)).map_err(|error| wrong(error.to_string()))?;
    let verified = log.reader().verify(&mut |_, _| {}).map_err(|error| wrong(error.to_string()))?;
    if let Some(damage) = verified.damages.first() {
        return Err(wrong(damage.to_string()));
    }
    let side = new.with_file_name("state.rebuild");
    remove(&side)?;
    fs::create_dir_all(&side).map_err(IoFailure::at("create", side.display()))?;
    let state = StateStore::open(&side, config.cache_bytes).map_err(|error| wrong(error.to_string()))?;
    let checkpoint = &manifest.checkpoint;
    let first = seq.min(checkpoint.seq).max(log.horizon());
    let built = open::build(&state, &log.reader(), first, &mut |_| {}).map_err(|error| wrong(error.to_string()))?;
    let digest = |state: &StateStore| state.meta().map(|meta| meta.digest).unwrap_or_default();
    if first == checkpoint.seq && digest(&built) != checkpoint.digest {
        let (found, expected) = (digest(&built), checkpoint.digest);
        return Err(wrong(format!("it adds up to {found} at sequence {first}, not to {expected}")));
    }
    open::level(&built, &log.reader()).map_err(wrong)?;
    let objects = built.meta().map_or(0, |meta| meta.digests.collections.values().map(|sum| sum.objects).sum());
    log.close().map_err(|error| wrong(error.to_string()))?;
    let digest = digest(&built);
    drop((state, built));
    remove(&side)?;
    Ok(Restored {
        backup: manifest.id.clone(),
        seq,
        generation,
        digest,
        objects,
        records: verified.records,
        kept: None,
        authority: String::new(),
    })
}

/// Brings the authority back where there is none.
fn authority(manifest: &Manifest, path: &Path, key: Option<&RecoveryKey>) -> Result<String, RestoreError> {
    let trust = crate::datastore::service::trust_dir(path);
    if trust.join("ca.key").exists() {
        return Ok("the one that was here".into());
    }
    let Some(key) = key else {
        return Ok("none: members have to join again, or restore with --recovery-key".into());
    };
    let escrow = Escrow::from_text(&manifest.escrow)
        .map_err(|what| RestoreError::Wrong(format!("the sealed authority: {what}")))?;
    escrow.restore(key, &trust, SystemClock.now_ms())?;
    Ok("restored".into())
}

fn remove(path: &Path) -> Result<(), RestoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(IoFailure::at("remove", path.display())(error).into())
        }
        _ => Ok(()),
    }
}
