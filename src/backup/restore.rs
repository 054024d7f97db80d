//! Restoring a datastore's log from a backup.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use super::final_deletions;
use super::manifest::{Manifest, Segment};
use super::repository::{Repository, RepositoryError};
use super::restored_trust::authority;
use gravwell_chunks::decode_index;
use gravwell_config::datastore::DatastoreConfig;
use gravwell_datastore::open::{self, OpenError, log_options};
use gravwell_datastore::rebuild::index_beyond;
use gravwell_env::data_dir::DirectoryError;
use gravwell_env::real_fs::create_dirs;
use gravwell_env::{Clock, RealFs, SystemClock};
use gravwell_log::backup_stream::{Cut, CutError, End, cut};
use gravwell_log::generations::{self, NotesError};
use gravwell_log::repair::{LOG, NEW, REPAIRED, finish_swap, swap};
use gravwell_log::{IoFailure, Log};
use gravwell_model::codec::admin::{GenerationCause, GenerationInfo};
use gravwell_model::codec::blob_manifest;
use gravwell_model::{ChunkId, Collection, Digest, Generation, Key, LogId, Seq};
use gravwell_state::{StateError, StateStore};
use gravwell_transport::transfer::inventory::Contents;
use gravwell_transport::trust::{RecoveryKey, RegisterChoice, TrustError};

/// Reason why a backup was not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The repository cannot be read.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The records do not reach the requested end.
    #[error(transparent)]
    Cut(#[from] CutError),
    /// No backup covers the requested point in time.
    #[error("{0}")]
    NotCovered(String),
    /// The directory holds a log already.
    #[error("{0} already contains a log; use --replace, which keeps it next to the restored one")]
    NotEmpty(PathBuf),
    /// The leftover index of a lost log holds more than the backup.
    #[error(
        "{path}, the state index left from the lost log, is at sequence {index}, and the backup ends at {restored}: \
         the index contains changes that the backup lacks, and nothing was changed; rebuild from the index with \
         `gravwell-logctl repair --from {path} --accept-loss`, or use --replace to keep the index next to the restored \
         log", path = path.display()
    )]
    IndexHasMore {
        /// Path of the index.
        path: PathBuf,
        /// Sequence of the index.
        index: Seq,
        /// Sequence of the restored log.
        restored: Seq,
    },
    /// The leftover index of a lost log may hold more than the backup, but cannot be read for unrelated reasons.
    #[error("the state index left from the lost log may contain more than the backup, and cannot be read now: {0}")]
    Index(OpenError),
    /// The restored log differs from the backup.
    #[error("the restored log does not match the backup: {0}")]
    Wrong(String),
    /// Restoring failed for reasons unrelated to the backup, for example because the disk is full.
    #[error(
        "cannot restore the backup: {0}; nothing was changed; check that the disk has room for the log and its index, \
         then restore again"
    )]
    Failed(String),
    /// An operation of the file system failed.
    #[error(transparent)]
    Io(#[from] IoFailure),
    /// The file that records why generations started cannot be written.
    #[error(transparent)]
    Notes(#[from] NotesError),
    /// A directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The certificate authority cannot be restored.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// Report of a restore.
#[derive(Clone, Debug, Serialize)]
pub struct Restored {
    /// Name of the backup.
    pub backup: String,
    /// Last sequence of the restored log.
    pub seq: Seq,
    /// Generation of the restored log, which is a new one.
    pub generation: Generation,
    /// Digest of the state at `seq`.
    pub digest: Digest,
    /// Number of objects in the state.
    pub objects: u64,
    /// Number of records that were read and verified.
    pub records: u64,
    /// Path under which the previous log is kept.
    pub kept: Option<PathBuf>,
    /// Number of objects deleted at the end of the log, see [`RestoreOptions::ended`].
    #[serde(skip)]
    pub ended: u64,
    /// Objects in the collections of [`RestoreOptions::told`].
    #[serde(skip)]
    pub access: Vec<(Collection, Key, Bytes)>,
    /// Sequence of the leftover index of a lost log, if it has more than the backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<Seq>,
    #[serde(skip)]
    contents: Contents,
    /// Description of how the CA was treated.
    pub authority: String,
    /// Origin of the member registry, if it was restored from a backup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub register: Option<RegisterOf>,
    /// Resources whose blobs are incomplete after the restore.
    pub incomplete: Vec<String>,
}

/// Origin of a restored member registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RegisterOf {
    /// Name of the backup that contained it.
    pub backup: String,
    /// Time at which that copy was made, in milliseconds since 1970-01-01 UTC.
    pub made_ms: u64,
}

/// End of a restored log.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestoreEnd {
    /// Requested end; `None` for the end of the backup.
    pub end: Option<End>,
    /// Whether the log may end before the first record.
    pub may_be_empty: bool,
}

/// The encrypted CA backup in a backup.
#[derive(Clone, Copy, Debug)]
pub struct SealedIn<'a> {
    /// Name of the backup.
    pub backup: &'a str,
    /// Log ID of the backup.
    pub log_id: LogId,
    /// Text of the encrypted CA backup.
    pub escrow: &'a str,
}

/// Options of a restore.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestoreOptions<'a> {
    /// Requested end of the log; `None` for the end of the backup.
    pub end: Option<End>,
    /// Whether the log may end before the first record.
    pub may_be_empty: bool,
    /// Whether an existing log may be replaced. It is kept under another name.
    pub replace: bool,
    /// Key that decrypts the CA in the backup.
    pub recovery_key: Option<&'a RecoveryKey>,
    /// Registry to use if a later one than the backup's is present.
    pub register: Option<RegisterChoice>,
    /// The new generation must be greater than this one.
    pub above: Generation,
    /// Chunks to restore, each with the piece that contains it.
    pub chunks: Option<&'a BTreeMap<ChunkId, String>>,
    /// Encrypted CA backups in the order of their backups. The newest that the recovery key decrypts is used.
    pub escrows: &'a [SealedIn<'a>],
    /// Backup that the operator named. Its CA backup decides if they are of registries that went apart.
    pub named: Option<&'a str>,
    /// Whether it is used even if there is a later one that the key does not decrypt.
    pub earlier_copy: bool,
    /// Collections whose objects are deleted at the end of the restored log, because they granted access.
    pub ended: &'a [Collection],
    /// Collections whose objects are returned to the caller.
    pub told: &'a [Collection],
}

/// Restores a backup into the data directory `path`, whose lock the caller holds.
///
/// # Errors
/// Returns an error if anything is missing or inconsistent. Nothing was put in place then.
pub fn restore(
    repository: &Repository,
    manifest: &Manifest,
    path: &Path,
    config: &DatastoreConfig,
    wishes: RestoreOptions<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Restored, RestoreError> {
    let log = path.join(LOG);
    // A log that an interrupted restore or repair had completed is kept as well.
    let is_unfinished = finish_swap(&RealFs, path)?;
    if log.exists() && !wishes.replace && !is_unfinished {
        return Err(RestoreError::NotEmpty(log));
    }
    let new = path.join(NEW);
    remove(&new)?;
    if log.exists() {
        remove(&path.join(REPAIRED))?;
    }
    let known = manifest.generation.max(wishes.above);
    let generation = generations::next(path, manifest.log_id, known, &manifest.generations)?;
    let end = RestoreEnd { end: wishes.end, may_be_empty: wishes.may_be_empty };
    let rebuilt = rebuild(repository, manifest, &new, config, (end, generation), &wishes, progress);
    let mut restored = rebuilt.inspect_err(|_| discard(&new))?;
    if !log.exists() {
        restored.index = index_beyond(path, config, restored.seq, &manifest.lineage).map_err(RestoreError::Index)?;
    }
    if let Some(index) = restored.index.filter(|_| !wishes.replace) {
        remove(&new)?;
        let (path, restored) = (path.join(open::STATE), restored.seq);
        return Err(RestoreError::IndexHasMore { path, index, restored });
    }
    let own: BTreeSet<ChunkId> = manifest.chunks.iter().map(|(id, _)| *id).collect();
    if let Some(chunks) = wishes.chunks.filter(|chunks| !chunks.is_empty()) {
        fetch_chunks(repository, chunks, &own, path)?;
    }
    if !restored.contents.heads.is_empty() {
        let store = open::open_chunks(path).map_err(chunk_store)?;
        restored.incomplete = incomplete(&restored.contents, &mut |id| Ok(store.read(id).ok().flatten()))?;
    }
    let put_back = authority(manifest.log_id, path, &wishes);
    (restored.authority, restored.register) = put_back.inspect_err(|_| discard(&new))?;
    let (shared_to, time_ms) = (restored.seq, SystemClock.now_ms());
    let mut known = manifest.generations.clone();
    known.push(GenerationInfo { generation, shared_to, beginning: GenerationCause::Restored, time_ms });
    generations::learn(path, manifest.log_id, &known)?;
    restored.kept = swap(&RealFs, path)?;
    Ok(restored)
}

/// Performs a trial restore of a backup in the directory `scratch`, which is reserved for it and empty
/// again afterwards.
///
/// # Errors
/// Like [`restore`].
pub fn rehearse(
    repository: &Repository,
    manifest: &Manifest,
    scratch: &Path,
    config: &DatastoreConfig,
    end: RestoreEnd,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Restored, RestoreError> {
    let new = scratch.join(NEW);
    remove(&new)?;
    let generation = Generation(manifest.generation.0 + 1);
    let restored = rebuild(repository, manifest, &new, config, (end, generation), &RestoreOptions::default(), progress);
    discard(&new);
    let mut restored = restored?;
    let pieces: BTreeMap<ChunkId, &str> = manifest.chunks.iter().map(|(id, piece)| (*id, piece.as_str())).collect();
    for (id, piece) in &pieces {
        chunk(repository, *id, piece)?;
    }
    let mut read = |id: &ChunkId| match pieces.get(id) {
        Some(piece) => chunk(repository, *id, piece).map(|bytes| Some(bytes.into())),
        None => Ok(None),
    };
    restored.incomplete = incomplete(&restored.contents, &mut read)?;
    match restored.incomplete.first() {
        // For an earlier point in time, other backups may have the chunks that this one lacks.
        Some(first) if end.end.is_none() => {
            let count = restored.incomplete.len();
            Err(RestoreError::Wrong(format!("it lacks chunks of {count} contents, the first of which is {first}")))
        }
        _ => Ok(restored),
    }
}

fn chunk_store(error: impl std::fmt::Display) -> RestoreError {
    RestoreError::Failed(format!("the chunk store: {error}"))
}

fn failed(error: impl std::fmt::Display) -> RestoreError {
    RestoreError::Failed(error.to_string())
}

/// Converts an error of a state that was built from the backup.
pub(super) fn of_state(error: StateError) -> RestoreError {
    match error.is_damage() {
        true => RestoreError::Wrong(error.to_string()),
        false => failed(error),
    }
}

fn of_built(error: OpenError) -> RestoreError {
    match error {
        OpenError::State(error) => of_state(error),
        OpenError::Read(error) if !error.is_damage() => failed(error),
        error @ OpenError::Io { .. } => failed(error),
        error => RestoreError::Wrong(error.to_string()),
    }
}

/// Returns the directory in which the index of a new log is built for verification.
fn side_of(new: &Path) -> PathBuf {
    new.with_file_name("state.rebuild")
}

/// Removes the files of a failed restore, which would otherwise keep the disk full.
fn discard(new: &Path) {
    for path in [new.to_owned(), side_of(new)] {
        if let Err(error) = remove(&path) {
            tracing::warn!(%error, "failed to remove restored files; the next start removes them");
        }
    }
}

type Read<'a> = dyn FnMut(&ChunkId) -> Result<Option<Bytes>, RestoreError> + 'a;

/// Lists the blobs with missing chunks.
fn incomplete(contents: &Contents, read: &mut Read<'_>) -> Result<Vec<String>, RestoreError> {
    let (mut names, mut known) = (Vec::new(), BTreeMap::new());
    for (key, head) in &contents.heads {
        let mut is_whole = true;
        for list in &head.index {
            let parts = read(list)?.and_then(|bytes| decode_index(&bytes).ok());
            for part in parts.iter().flatten() {
                let is_there = match known.get(&part.id) {
                    Some(is_there) => *is_there,
                    None => read(&part.id)?.is_some(),
                };
                known.insert(part.id, is_there);
                is_whole &= is_there;
            }
            is_whole &= parts.is_some();
        }
        if !is_whole {
            names.push(contents.label(key));
        }
    }
    Ok(names)
}

/// Reads a chunk and verifies it against its ID.
fn chunk(repository: &Repository, id: ChunkId, piece: &str) -> Result<Vec<u8>, RestoreError> {
    let bytes = repository.piece(piece).map_err(|error| match error {
        RepositoryError::Damaged { name, what } => {
            RepositoryError::Damaged { name, what: format!("{what}; it contains chunk {id} of contents") }
        }
        error => error,
    })?;
    if ChunkId::of(&bytes) == id {
        return Ok(bytes);
    }
    Err(RestoreError::Wrong(format!("piece {piece} does not contain chunk {id}")))
}

/// Writes the chunks that the chunk store lacks; they are durable when this returns. Chunks not in `own` come from
/// other backups, which may be corrupt.
fn fetch_chunks(
    repository: &Repository,
    chunks: &BTreeMap<ChunkId, String>,
    own: &BTreeSet<ChunkId>,
    path: &Path,
) -> Result<(), RestoreError> {
    let store = open::open_chunks(path).map_err(chunk_store)?;
    // Read, because a chunk that is corrupt here is to be fetched, too.
    let is_here = |id: &ChunkId| store.read(id).is_ok_and(|found| found.is_some());
    for (id, piece) in chunks.iter().filter(|(id, _)| !is_here(id)) {
        match chunk(repository, *id, piece) {
            Ok(bytes) => store.write(id, &bytes).map(drop).map_err(chunk_store)?,
            Err(error) if own.contains(id) => return Err(error),
            Err(error) => tracing::warn!(%error, "another backup is damaged; skipping its chunk"),
        }
    }
    store.sync().map_err(chunk_store)
}

fn rebuild(
    repository: &Repository,
    manifest: &Manifest,
    new: &Path,
    config: &DatastoreConfig,
    (RestoreEnd { end, may_be_empty }, generation): (RestoreEnd, Generation),
    wishes: &RestoreOptions<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Restored, RestoreError> {
    create_dirs(new, 0o700).map_err(IoFailure::at("create", new.display()))?;
    let (total, mut done) = (manifest.bytes(), 0);
    for segment in &manifest.segments {
        fetch(repository, segment, new, &mut |bytes| {
            done += bytes;
            progress(done, total);
        })?;
    }
    let what = Cut {
        log_id: manifest.log_id,
        generation,
        lineage: manifest.lineage.clone(),
        horizon: manifest.horizon,
        may_be_empty: may_be_empty || end.is_none(),
    };
    let (seq, chain) =
        cut(&RealFs, new, what, end.unwrap_or(End::Seq(manifest.seq))).map_err(|error| of_cut(error, manifest))?;
    if seq == manifest.seq && gravwell_log::backup_stream::chain_text(&chain) != manifest.chain {
        return Err(RestoreError::Wrong("its hash chain differs".into()));
    }
    check(manifest, new, config, (seq, generation), wishes)
}

/// Converts an error of joining the records. Every piece matches its name, so inconsistent records mean that the backup
/// itself is corrupt.
fn of_cut(error: CutError, manifest: &Manifest) -> RestoreError {
    match error {
        CutError::Damaged(damage) => RestoreError::Wrong(damage.to_string()),
        CutError::Beyond { last, wanted } if wanted <= manifest.seq => {
            RestoreError::Wrong(format!("its records end at sequence {last}, not at {}", manifest.seq))
        }
        error => error.into(),
    }
}

/// Assembles one file from its pieces.
fn fetch(
    repository: &Repository,
    segment: &Segment,
    new: &Path,
    done: &mut dyn FnMut(u64),
) -> Result<(), RestoreError> {
    use std::io::Write;
    let path = new.join(&segment.name);
    let options = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).clone();
    let mut file = options.open(&path).map_err(IoFailure::at("create", path.display()))?;
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

/// Opens the new log, verifies every byte, and compares the digest of the replayed state.
fn check(
    manifest: &Manifest,
    new: &Path,
    config: &DatastoreConfig,
    (seq, generation): (Seq, Generation),
    wishes: &RestoreOptions<'_>,
) -> Result<Restored, RestoreError> {
    let wrong = |what: String| RestoreError::Wrong(what);
    let (mut log, _) = Log::open(Arc::new(RealFs), new, log_options(config)).map_err(|error| match error {
        gravwell_log::OpenError::Io(failure) => failure.into(),
        error => wrong(error.to_string()),
    })?;
    let verified = log.reader().verify(&mut |_, _| {})?;
    if let Some(damage) = verified.damages.first() {
        return Err(wrong(damage.to_string()));
    }
    let side = side_of(new);
    remove(&side)?;
    create_dirs(&side, 0o700).map_err(IoFailure::at("create", side.display()))?;
    // The state is empty, so errors concern the local disk.
    let state = StateStore::open(&side, config.cache_bytes).map_err(failed)?;
    let checkpoint = &manifest.checkpoint;
    let first = seq.min(checkpoint.seq).max(log.horizon());
    let built = open::build(&state, &log.reader(), first, &mut |_| {}).map_err(of_built)?;
    let digest = |state: &StateStore| state.meta().map(|meta| meta.digest).unwrap_or_default();
    if first == checkpoint.seq && digest(&built) != checkpoint.digest {
        let (found, expected) = (digest(&built), checkpoint.digest);
        return Err(wrong(format!("its digest at sequence {first} is {found}, not {expected}")));
    }
    open::level(&built, &log.reader()).map_err(|error| wrong(error.to_string()))?;
    let objects = built.meta().map_or(0, |meta| meta.digests.collections.values().map(|sum| sum.objects).sum());
    let digest = digest(&built);
    let access = final_deletions::objects_of(&built, wishes.told)?;
    let ended = final_deletions::append(&mut log, &built, wishes.ended)?;
    log.close().map_err(failed)?;
    let contents = contents_of(&built).map_err(of_state)?;
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
        ended,
        access,
        index: None,
        contents,
        authority: String::new(),
        register: None,
        incomplete: Vec::new(),
    })
}

fn contents_of(state: &StateStore) -> Result<Contents, StateError> {
    let (mut contents, snapshot) = (Contents::default(), state.snapshot()?);
    for name in [blob_manifest::COLLECTION, blob_manifest::RESOURCES] {
        let Ok(collection) = Collection::new(name) else { continue };
        for row in snapshot.scan(&collection, "", std::ops::Bound::Unbounded) {
            match row? {
                (key, object) if name == blob_manifest::COLLECTION => contents.add(key.as_str(), &object.value),
                (_, object) => contents.add_resource(&object.value),
            }
        }
    }
    Ok(contents)
}

fn remove(path: &Path) -> Result<(), RestoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(IoFailure::at("remove", path.display())(error).into())
        }
        _ => Ok(()),
    }
}
