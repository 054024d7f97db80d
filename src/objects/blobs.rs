//! Blobs: contents of resources, of any size, split into chunks that are stored outside the log.
//!
//! An object describes a blob and references the lists of its chunks. It is written together with the first reference
//! to it, after all chunks are durable locally; see [`gravwell_replica::blobs`] for how they reach other members. A
//! blob never changes; a resource with new contents references a new blob.
//!
//! Deleting a blob requires that its object is unchanged since it was found to be unreferenced. Adding a second
//! reference rewrites the object. If a new reference and a deletion conflict, one of them is rejected, so no deleted
//! blob is referenced.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use md5::{Digest as _, Md5};
use serde::{Deserialize, Serialize};

use gravwell_chunks::{ChunkError, ChunkStore, Chunker, GcPin, PARTS_MAX, Part, encode_index};
use gravwell_model::ChunkId;
use gravwell_replica::blobs::{Ahead, BlobError, Blobs};
use gravwell_runtime::tasks::low_priority;

use super::record::Stored;
use super::resources::Resource;
use super::sessions::{hex, random};
use super::{Store, StoreError, Timestamp, Writes};

/// Number of bytes that are buffered before they are chunked and written.
const GATHER_BYTES: usize = 1 << 20;
/// Number of chunks that are handed over for sending at once.
const AHEAD_PARTS: usize = 48;
/// Age at which an unreferenced blob is deleted by webservers other than its creator.
const ABANDONED_S: u64 = 30 * 24 * 3600;
/// Age at which an unreferenced blob is deleted by its creator.
const UNNAMED_S: u64 = 24 * 3600;

/// A blob.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Content {
    /// Random id of the blob.
    pub id: String,
    /// Size in bytes.
    pub size: u64,
    /// Number of chunks.
    pub parts: u64,
    /// Chunks that hold the lists of the blob's chunks.
    pub index: Vec<ChunkId>,
    /// Chunk lists of the blob that it replaces: receivers that have that blob are sent the difference.
    #[serde(default)]
    pub base: Vec<ChunkId>,
    /// MD5 in base64, the form that clients expect.
    pub md5: String,
    /// BLAKE3, hexadecimal.
    pub blake3: String,
    /// Time at which it was written.
    pub created: Timestamp,
    /// Name of the webserver that wrote it.
    pub webserver: String,
}

impl Stored for Content {
    const COLLECTION: &'static str = gravwell_model::codec::blob_manifest::COLLECTION;
    fn key(&self) -> String {
        self.id.clone()
    }
}

/// Error while writing or reading a blob.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The replica does not store blobs.
    #[error("this replica stores no blobs")]
    None,
    /// The chunk store failed.
    #[error(transparent)]
    Chunks(#[from] ChunkError),
    /// Reading or writing the object failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No random bytes are available, or the process is stopping.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Returns the blob storage of the store's replica.
///
/// # Errors
/// If the replica does not store blobs.
pub fn kept(store: &Store) -> Result<Blobs, UploadError> {
    store.replica().contents().ok_or(UploadError::None)
}

/// State for chunking, hashing and storing; moved to a blocking thread for each step.
struct Writer {
    store: ChunkStore,
    cutter: Chunker,
    md5: Md5,
    blake3: blake3::Hasher,
    parts: Vec<Part>,
}

impl Writer {
    fn keep(store: &ChunkStore, parts: &mut Vec<Part>, raw: &[u8]) -> Result<(), ChunkError> {
        let (id, _) = store.put(raw)?;
        parts.push(Part { id, bytes: u32::try_from(raw.len()).unwrap_or(u32::MAX) });
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), ChunkError> {
        self.md5.update(bytes);
        self.blake3.update(bytes);
        let Writer { store, cutter, parts, .. } = self;
        cutter.push(bytes, &mut |raw| Writer::keep(store, parts, raw))
    }

    /// Writes the remaining bytes and the chunk lists, and makes everything durable.
    fn finish(&mut self) -> Result<Vec<ChunkId>, ChunkError> {
        let Writer { store, parts, .. } = self;
        std::mem::take(&mut self.cutter).finish(|raw| Writer::keep(store, parts, raw))?;
        let mut index = Vec::new();
        for list in parts.chunks(PARTS_MAX) {
            let (id, _) = store.put(&encode_index(list))?;
            index.push(id);
        }
        store.sync()?;
        Ok(index)
    }
}

/// A blob that is being written. It does not appear in the log before it is complete.
pub struct Upload {
    writer: Option<Writer>,
    buffer: BytesMut,
    size: u64,
    base: Vec<ChunkId>,
    ahead: Ahead,
    handed_over: usize,
    webserver: String,
    hold: GcPin,
}

impl Upload {
    /// Starts a blob that replaces the blob `former`, unless that is empty.
    ///
    /// # Errors
    /// If the replica does not store blobs, or the state is corrupt.
    pub fn begin(store: &Store, former: &str) -> Result<Upload, UploadError> {
        let contents = kept(store)?;
        let hold = contents.store().hold();
        let former = if former.is_empty() { None } else { store.get::<Content>(former)? };
        let base = former.map(|record| record.value.index).unwrap_or_default();
        let writer = Writer {
            store: contents.store().clone(),
            cutter: Chunker::new(),
            md5: Md5::new(),
            blake3: blake3::Hasher::new(),
            parts: Vec::new(),
        };
        Ok(Upload {
            writer: Some(writer),
            buffer: BytesMut::with_capacity(GATHER_BYTES),
            size: 0,
            ahead: contents.ahead(base.clone()),
            base,
            handed_over: 0,
            webserver: store.via().to_owned(),
            hold,
        })
    }

    /// Returns the bytes written so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Writes the next bytes; waits if too much data is in flight.
    ///
    /// # Errors
    /// If they cannot be stored.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), UploadError> {
        self.size += bytes.len() as u64;
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() < GATHER_BYTES {
            return Ok(());
        }
        let gathered = std::mem::replace(&mut self.buffer, BytesMut::with_capacity(GATHER_BYTES)).freeze();
        self.work(move |writer| writer.take(&gathered)).await?;
        self.hand_over(AHEAD_PARTS).await;
        Ok(())
    }

    async fn work<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Writer) -> Result<T, ChunkError> + Send + 'static,
    ) -> Result<T, UploadError> {
        let stopped = || UploadError::Io(std::io::Error::other("an earlier part of the blob was not stored"));
        let mut writer = self.writer.take().ok_or_else(stopped)?;
        let working = low_priority::handle().spawn_blocking(move || {
            let done = work(&mut writer);
            (writer, done)
        });
        let (writer, done) = working.await.map_err(std::io::Error::other)?;
        self.writer = Some(writer);
        Ok(done?)
    }

    /// Hands chunks over for sending once there are at least `least` of them.
    async fn hand_over(&mut self, least: usize) {
        let Some(writer) = &self.writer else { return };
        if writer.parts.len() - self.handed_over >= least.max(1) {
            let new = writer.parts[self.handed_over..].to_vec();
            self.handed_over = writer.parts.len();
            self.ahead.push(new).await;
        }
    }

    /// Completes the blob: all chunks are durable locally, and sent if the datastore is reachable. The object is
    /// written by the transaction that references it.
    ///
    /// # Errors
    /// If it cannot be stored.
    pub async fn finish(mut self, writes: &mut Writes) -> Result<Content, UploadError> {
        let rest = std::mem::take(&mut self.buffer).freeze();
        let index = self
            .work(move |writer| {
                writer.take(&rest)?;
                writer.finish()
            })
            .await?;
        self.hand_over(1).await;
        let Upload { writer, ahead, base, size, webserver, hold, .. } = self;
        ahead.finish(&index).await;
        let gone = || UploadError::Io(std::io::Error::other("the blob was not stored"));
        let Writer { md5, blake3, parts, .. } = writer.ok_or_else(gone)?;
        let content = Content {
            id: hex(&random::<16>()?),
            size,
            parts: parts.len() as u64,
            index,
            base,
            md5: STANDARD.encode(md5.finalize()),
            blake3: blake3.finalize().to_hex().to_string(),
            created: Timestamp::now(),
            webserver,
        };
        writes.create(&content, "the blob already exists; try again")?;
        writes.hold(hold);
        Ok(content)
    }
}

/// Reads a range of a blob, one chunk at a time.
pub struct Reader {
    contents: Blobs,
    parts: std::vec::IntoIter<Part>,
    skip: usize,
    left: u64,
}

/// Number of chunks fetched together if the first is not stored locally.
const READ_AHEAD: usize = 16;

impl Reader {
    /// Opens the blob for reading `length` bytes, starting at `from`.
    ///
    /// # Errors
    /// If the chunk lists are not stored locally and cannot be fetched.
    pub async fn open(contents: Blobs, content: &Content, from: u64, length: u64) -> Result<Reader, BlobError> {
        let parts = contents.parts(&content.index).await?;
        let total: u64 = parts.iter().map(|part| u64::from(part.bytes)).sum();
        if total != content.size {
            let said = content.size;
            return Err(BlobError::Malformed(format!("the chunks of a blob of {said} bytes have {total} bytes")));
        }
        let mut skipped = 0;
        let before = parts.iter().take_while(|part| {
            let ends = skipped + u64::from(part.bytes);
            let is_before = ends <= from;
            skipped = if is_before { ends } else { skipped };
            is_before
        });
        let first = before.count();
        let skip = usize::try_from(from.saturating_sub(skipped)).unwrap_or(usize::MAX);
        let parts = parts.get(first..).unwrap_or_default().to_vec().into_iter();
        Ok(Reader { contents, parts, skip, left: length.min(total.saturating_sub(from)) })
    }

    /// Returns the next bytes; `None` at the end.
    ///
    /// # Errors
    /// If a chunk is not stored locally and no reachable peer has it.
    pub async fn next(&mut self) -> Result<Option<Bytes>, BlobError> {
        if self.left == 0 {
            return Ok(None);
        }
        let ids: Vec<ChunkId> = self.parts.as_slice().iter().take(READ_AHEAD).map(|part| part.id).collect();
        let Some(part) = self.parts.next() else { return Ok(None) };
        let raw = self.contents.read_ahead(&ids).await?;
        if raw.len() != part.bytes as usize {
            return Err(BlobError::Malformed(format!("length of chunk {} differs from its manifest", part.id)));
        }
        let start = std::mem::take(&mut self.skip).min(raw.len());
        let room = usize::try_from(self.left).unwrap_or(usize::MAX);
        let end = raw.len().min(start.saturating_add(room));
        self.left -= (end - start) as u64;
        Ok(Some(raw.slice(start..end)))
    }
}

/// Opens a blob for synchronous reading; for threads that may block and belong to a runtime, such as those of
/// `spawn_blocking`.
///
/// # Errors
/// If there is no such blob, or its chunk lists cannot be fetched. The reader itself reports chunks that are
/// missing later.
pub fn reader(store: &Store, id: &str) -> Result<impl std::io::Read + Send + use<>, UploadError> {
    let runtime = tokio::runtime::Handle::try_current().map_err(std::io::Error::other)?;
    let missing = || UploadError::Io(std::io::Error::other(format!("blob {id} is missing")));
    let content = store.get::<Content>(id)?.ok_or_else(missing)?.value;
    let opening = Reader::open(kept(store)?, &content, 0, content.size);
    let reader = runtime.block_on(opening).map_err(std::io::Error::other)?;
    Ok(Waiting { reader, runtime, piece: Bytes::new() })
}

/// A [`Reader`] for threads that may block.
struct Waiting {
    reader: Reader,
    runtime: tokio::runtime::Handle,
    piece: Bytes,
}

impl std::io::Read for Waiting {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        while self.piece.is_empty() {
            match self.runtime.block_on(self.reader.next()).map_err(std::io::Error::other)? {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let length = self.piece.len().min(to.len());
        to[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}

/// Adds another reference to a blob. The blob must still exist, otherwise `gone` is the message; its object is
/// rewritten, so that a concurrent deletion is rejected. Does nothing if `id` is empty.
///
/// # Errors
/// If the state is corrupt or the object cannot be encoded.
pub fn name_again(store: &Store, id: &str, gone: &str, writes: &mut Writes) -> Result<(), StoreError> {
    match store.get::<Content>(id)? {
        Some(record) => writes.overwrite_existing(&record, gone, "blobs are immutable, so the same value is rewritten"),
        None if id.is_empty() => Ok(()),
        None => writes.require::<Content>(id, gone),
    }
}

/// Returns whether a pending transaction may add or remove references to blobs. It may still be rejected, so references
/// are uncertain until it is resolved.
fn is_undecided(store: &Store) -> bool {
    let concerned = [Content::COLLECTION, Resource::COLLECTION, super::searches::Search::COLLECTION];
    let pending = store.replica().pending();
    pending.iter().any(|txn| txn.ops.iter().any(|op| concerned.contains(&op.collection().as_str())))
}

/// Returns the deletion of a blob, unless it is or may become referenced. Its chunks are garbage-collected later.
///
/// # Errors
/// If the state is corrupt.
pub fn removal(store: &Store, id: &str) -> Result<Option<Writes>, StoreError> {
    if is_undecided(store) {
        return Ok(None);
    }
    let Some(head) = store.get::<Content>(id)? else { return Ok(None) };
    let mut is_named = false;
    store.each_whole::<Resource>("", |resource| is_named |= resource.content == id)?;
    if is_named {
        return Ok(None);
    }
    if super::searches::referenced_blobs(store)?.contains(id) {
        return Ok(None);
    }
    let mut writes = Writes::new();
    writes.delete(&head, "")?;
    Ok(Some(writes))
}

/// Returns unreferenced blobs that were not deleted together with their last reference.
///
/// # Errors
/// If the state is corrupt.
pub fn abandoned(store: &Store) -> Result<Vec<String>, StoreError> {
    let mut named = std::collections::HashSet::new();
    store.each_whole::<Resource>("", |resource| named.extend([resource.content]))?;
    named.extend(super::searches::referenced_blobs(store)?);
    let now = store.confirmed_now();
    let is_left = |content: &Content| {
        let after = if content.webserver == store.via() { UNNAMED_S } else { ABANDONED_S };
        !named.contains(&content.id) && content.created.plus(after).is_past_at(now)
    };
    let left = store.select::<Content>("", is_left)?;
    Ok(left.into_iter().map(|record| record.value.id).collect())
}
