//! The liveness index: the latest version of every object and the row of every origin, as of one sequence. They show
//! which records are still needed at the horizon. Only compaction uses and advances the index, which can always be
//! rebuilt from the log.
//!
//! Running sums over all rows are stored with them. If a row is lost or changed on the medium, the sums differ from
//! those that compaction computes from the log; the index is then discarded before anything is dropped. So is an index
//! of another history: the log's chain at its position is stored as well, and differs after a restore.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use gravwell_model::{Chain, Collection, Digest, Entry, EntryBody, Key, LogId, Op, Origin, OriginRow, Seq};

/// Position and totals of an index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BaseSummary {
    /// Last sequence included: every entry up to it has been applied.
    pub position: Seq,
    /// Number of objects.
    pub objects: u64,
    /// Sum of [`row_digest`] over all objects.
    pub digest: Digest,
    /// Sum of [`Digest::of_origin`] over all rows of origins.
    pub origins: Digest,
    /// Chain of the log at `position`; `None` if the position was below the horizon.
    pub chain: Option<Chain>,
}

/// Returns the contribution of one object to [`BaseSummary::digest`].
#[must_use]
pub fn row_digest(collection: &Collection, key: &Key, version: Seq) -> Digest {
    Digest::of_object(collection, key, version, b"")
}

/// Changes that become visible together, and the position they lead to.
#[derive(Debug, Default)]
pub struct BaseChanges {
    /// Summary of the index after the changes.
    pub summary: BaseSummary,
    /// New versions; `None` for deleted objects.
    pub objects: HashMap<(Collection, Key), Option<Seq>>,
    /// New rows of origins.
    pub origins: BTreeMap<Origin, OriginRow>,
}

/// The tables used by compaction.
pub trait LivenessIndex: Send {
    /// Returns the position and the totals; all zero for an empty index.
    ///
    /// # Errors
    /// If the index cannot be read or written; the same holds for every method here.
    fn summary(&self) -> io::Result<BaseSummary>;

    /// Returns the sequence of the last write of an object; `None` if the object does not exist.
    ///
    /// # Errors
    /// See [`LivenessIndex::summary`].
    fn version(&self, collection: &Collection, key: &Key) -> io::Result<Option<Seq>>;

    /// Returns the row of an origin.
    ///
    /// # Errors
    /// See [`LivenessIndex::summary`].
    fn origin(&self, origin: Origin) -> io::Result<Option<OriginRow>>;

    /// Applies all changes or none.
    ///
    /// # Errors
    /// See [`LivenessIndex::summary`].
    fn commit(&mut self, changes: BaseChanges) -> io::Result<()>;

    /// Removes all rows.
    ///
    /// # Errors
    /// See [`LivenessIndex::summary`].
    fn reset(&mut self) -> io::Result<()>;
}

impl<T: LivenessIndex + ?Sized> LivenessIndex for &mut T {
    fn summary(&self) -> io::Result<BaseSummary> {
        (**self).summary()
    }

    fn version(&self, collection: &Collection, key: &Key) -> io::Result<Option<Seq>> {
        (**self).version(collection, key)
    }

    fn origin(&self, origin: Origin) -> io::Result<Option<OriginRow>> {
        (**self).origin(origin)
    }

    fn commit(&mut self, changes: BaseChanges) -> io::Result<()> {
        (**self).commit(changes)
    }

    fn reset(&mut self) -> io::Result<()> {
        (**self).reset()
    }
}

impl BaseChanges {
    /// Creates an empty set of changes on top of `index`.
    pub(super) fn begin(index: &dyn LivenessIndex) -> io::Result<BaseChanges> {
        Ok(BaseChanges { summary: index.summary()?, ..BaseChanges::default() })
    }

    pub(super) fn take(&mut self, index: &dyn LivenessIndex, entry: &Entry) -> io::Result<()> {
        let (id, settled, reason) = match &entry.body {
            EntryBody::Commit(txn) => {
                for op in &txn.ops {
                    self.take_op(index, entry.seq, op)?;
                }
                (txn.id, txn.settled, None)
            }
            EntryBody::Reject { id, settled, reason } => (*id, *settled, Some(reason.clone())),
            EntryBody::Redacted { .. } | EntryBody::Unknown { .. } => {
                self.summary.position = entry.seq;
                return Ok(());
            }
        };
        let known = match self.origins.remove(&id.origin) {
            Some(row) => Some(row),
            None => index.origin(id.origin)?,
        };
        let summary = &mut self.summary;
        if let Some(row) = &known {
            summary.origins = summary.origins.minus(Digest::of_origin(id.origin, row));
        }
        let mut row = known.unwrap_or_default();
        row.record(entry.seq, id.counter, settled, reason);
        summary.origins = summary.origins.plus(Digest::of_origin(id.origin, &row));
        self.origins.insert(id.origin, row);
        self.summary.position = entry.seq;
        Ok(())
    }

    fn take_op(&mut self, index: &dyn LivenessIndex, seq: Seq, op: &Op) -> io::Result<()> {
        let new = op.value().map(|_| seq);
        let (collection, key) = (op.collection(), op.key());
        let name = (collection.clone(), key.clone());
        let old = match self.objects.get(&name) {
            Some(old) => *old,
            None => index.version(collection, key)?,
        };
        let summary = &mut self.summary;
        if let Some(old) = old {
            summary.objects = summary.objects.saturating_sub(1);
            summary.digest = summary.digest.minus(row_digest(collection, key, old));
        }
        if let Some(new) = new {
            summary.objects += 1;
            summary.digest = summary.digest.plus(row_digest(collection, key, new));
        }
        self.objects.insert(name, new);
        Ok(())
    }
}

/// In-memory index for tests and simulations.
#[derive(Clone, Debug, Default)]
pub struct MemoryLiveness {
    summary: BaseSummary,
    objects: HashMap<(Collection, Key), Seq>,
    origins: BTreeMap<Origin, OriginRow>,
}

impl LivenessIndex for MemoryLiveness {
    fn summary(&self) -> io::Result<BaseSummary> {
        Ok(self.summary)
    }

    fn version(&self, collection: &Collection, key: &Key) -> io::Result<Option<Seq>> {
        Ok(self.objects.get(&(collection.clone(), key.clone())).copied())
    }

    fn origin(&self, origin: Origin) -> io::Result<Option<OriginRow>> {
        Ok(self.origins.get(&origin).cloned())
    }

    fn commit(&mut self, changes: BaseChanges) -> io::Result<()> {
        for (name, version) in changes.objects {
            match version {
                Some(version) => self.objects.insert(name, version),
                None => self.objects.remove(&name),
            };
        }
        self.origins.extend(changes.origins);
        self.summary = changes.summary;
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        *self = MemoryLiveness::default();
        Ok(())
    }
}

/// Index in a separate fjall database.
///
/// Keys: `o` collection-length (1 byte) collection key → version (8 bytes, little-endian); `r` origin → row (postcard);
/// `m` → log id, position, objects, digest, digest of the rows of origins, and the chain if it is known.
pub struct FjallLiveness {
    path: PathBuf,
    log_id: LogId,
    /// `None` only while the database is being replaced.
    tables: Option<(Database, Keyspace)>,
}

impl std::fmt::Debug for FjallLiveness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FjallLiveness").field("path", &self.path).finish_non_exhaustive()
    }
}

fn io_error(error: fjall::Error) -> io::Error {
    match error {
        fjall::Error::Io(error) => error,
        other => io::Error::other(format!("compaction index: {other:?}")),
    }
}

fn object_key(collection: &Collection, key: &Key) -> Vec<u8> {
    let (collection, key) = (collection.as_str().as_bytes(), key.as_str().as_bytes());
    let mut bytes = Vec::with_capacity(2 + collection.len() + key.len());
    bytes.push(b'o');
    bytes.push(u8::try_from(collection.len()).unwrap_or(u8::MAX));
    bytes.extend_from_slice(collection);
    bytes.extend_from_slice(key);
    bytes
}

fn origin_key(origin: Origin) -> Vec<u8> {
    [b"r", &origin.0[..]].concat()
}

const SUMMARY_KEY: &[u8] = b"m";
/// Length of the summary without the chain. That of earlier versions, which did not store the last two, is shorter.
const SUMMARY_BYTES: usize = 16 + 8 + 8 + 32 + 32;
const CHAIN_BYTES: usize = size_of::<Chain>();

impl FjallLiveness {
    /// Opens the index in a directory. Discards an index that cannot be opened or belongs to another log.
    ///
    /// # Errors
    /// If a new index cannot be created, or if another process holds the lock.
    pub fn open(path: &Path, log_id: LogId) -> io::Result<FjallLiveness> {
        let mut index = FjallLiveness { path: path.to_owned(), log_id, tables: None };
        // Damaged files can make fjall panic instead of returning an error.
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| index.attempt())) {
            Ok(Ok(())) if index.belongs() => {}
            Ok(Err(fjall::Error::Locked)) => return Err(io::ErrorKind::WouldBlock.into()),
            _ => index.reset()?,
        }
        Ok(index)
    }

    fn attempt(&mut self) -> fjall::Result<()> {
        let database = Database::builder(&self.path).cache_size(8 << 20).worker_threads(1).open()?;
        let rows = database.keyspace("base", KeyspaceCreateOptions::default)?;
        self.tables = Some((database, rows));
        Ok(())
    }

    fn tables(&self) -> io::Result<&(Database, Keyspace)> {
        self.tables.as_ref().ok_or_else(|| io::Error::other("the compaction index is closed"))
    }

    fn belongs(&self) -> bool {
        match self.get(SUMMARY_KEY) {
            Ok(None) => true,
            Ok(Some(bytes)) => {
                [SUMMARY_BYTES, SUMMARY_BYTES + CHAIN_BYTES].contains(&bytes.len()) && bytes[..16] == self.log_id.0
            }
            Err(_) => false,
        }
    }

    fn get(&self, key: &[u8]) -> io::Result<Option<fjall::UserValue>> {
        self.tables()?.1.get(key).map_err(io_error)
    }
}

impl LivenessIndex for FjallLiveness {
    fn summary(&self) -> io::Result<BaseSummary> {
        let Some(bytes) = self.get(SUMMARY_KEY)? else { return Ok(BaseSummary::default()) };
        let number = |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        let digest = |at: usize| bytes.get(at..at + 32).and_then(|b| b.try_into().ok()).map(Digest::from_bytes);
        let chain = bytes.get(SUMMARY_BYTES..).and_then(|b| b.try_into().ok());
        match (number(16), number(24), digest(32), digest(64)) {
            (Some(position), Some(objects), Some(digest), Some(origins)) => {
                Ok(BaseSummary { position: Seq(position), objects, digest, origins, chain })
            }
            _ => Ok(BaseSummary::default()),
        }
    }

    fn version(&self, collection: &Collection, key: &Key) -> io::Result<Option<Seq>> {
        let found = self.get(&object_key(collection, key))?;
        Ok(found.and_then(|bytes| bytes.as_ref().try_into().ok()).map(|bytes| Seq(u64::from_le_bytes(bytes))))
    }

    fn origin(&self, origin: Origin) -> io::Result<Option<OriginRow>> {
        Ok(self.get(&origin_key(origin))?.and_then(|bytes| postcard::from_bytes(&bytes).ok()))
    }

    fn commit(&mut self, changes: BaseChanges) -> io::Result<()> {
        let (database, rows) = self.tables()?;
        let mut batch = database.batch();
        for ((collection, key), version) in &changes.objects {
            match version {
                Some(version) => batch.insert(rows, object_key(collection, key), version.0.to_le_bytes()),
                None => batch.remove(rows, object_key(collection, key)),
            }
        }
        for (origin, row) in &changes.origins {
            let bytes = postcard::to_allocvec(row).map_err(|error| io::Error::other(error.to_string()))?;
            batch.insert(rows, origin_key(*origin), bytes);
        }
        let BaseSummary { position, objects, digest, origins, chain } = changes.summary;
        let mut summary = self.log_id.0.to_vec();
        summary.extend_from_slice(&position.0.to_le_bytes());
        summary.extend_from_slice(&objects.to_le_bytes());
        summary.extend_from_slice(&digest.to_bytes());
        summary.extend_from_slice(&origins.to_bytes());
        summary.extend(chain.iter().flatten());
        batch.insert(rows, SUMMARY_KEY, summary);
        batch.commit().map_err(io_error)?;
        database.persist(PersistMode::Buffer).map_err(io_error)
    }

    fn reset(&mut self) -> io::Result<()> {
        self.tables = None;
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.attempt().map_err(io_error)
    }
}
