//! What resources hold: contents of any size, cut into chunks that lie beside the log.
//!
//! An object says what a content is and names the lists of its chunks. It is written once, together with what names it, after
//! all its chunks are durable here; see [`crate::replica::contents`] for how they reach the others. A content never changes; a
//! resource with new contents names a new one.
//!
//! Whoever takes a content away requires its object to be as it was when nothing named it; whoever makes a second resource
//! name it rewrites the object. So of a clone and a removal that meet, one is refused: nothing is named that is gone.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use md5::{Digest as _, Md5};
use serde::{Deserialize, Serialize};

use crate::chunks::{ChunkError, ChunkStore, Cutter, Hold, PARTS_MAX, Part, encode_index};
use crate::env::background;
use crate::model::ChunkId;
use crate::replica::contents::{Ahead, Contents, ContentsError};

use super::record::Stored;
use super::resources::Resource;
use super::sessions::{hex, random};
use super::{Moment, Store, StoreError, Writes};

/// Bytes that are gathered before they are cut and written.
const GATHER_BYTES: usize = 1 << 20;
/// Chunks that are handed over for sending at a time.
const AHEAD_PARTS: usize = 48;
/// A content that nothing names is taken away by another webserver than its maker only after this long.
const ABANDONED_S: u64 = 30 * 24 * 3600;
/// A content that nothing names is taken away by its maker after this long.
const UNNAMED_S: u64 = 24 * 3600;

/// A content.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Content {
    /// Name.
    pub id: String,
    /// Bytes.
    pub size: u64,
    /// Chunks.
    pub parts: u64,
    /// The lists of its chunks, which are chunks themselves.
    pub index: Vec<ChunkId>,
    /// The lists of the content that it replaced: whoever has that is sent the difference.
    #[serde(default)]
    pub base: Vec<ChunkId>,
    /// MD5 in base64, as clients expect it.
    pub md5: String,
    /// BLAKE3 in hexadecimal.
    pub blake3: String,
    /// When it was written.
    pub created: Moment,
    /// Who wrote it.
    pub webserver: String,
}

impl Stored for Content {
    const COLLECTION: &'static str = crate::codec::content::COLLECTION;
    fn key(&self) -> String {
        self.id.clone()
    }
}

/// Why a content could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The replica keeps none.
    #[error("this replica keeps no contents")]
    None,
    /// The chunk store.
    #[error(transparent)]
    Chunks(#[from] ChunkError),
    /// Reading or writing the object.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No randomness, or the process is stopping.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// The contents that a store's replica keeps.
///
/// # Errors
/// When it keeps none.
pub fn kept(store: &Store) -> Result<Contents, UploadError> {
    store.replica().contents().ok_or(UploadError::None)
}

/// What cuts, hashes and keeps; it moves to a thread for each piece of work.
struct Writer {
    store: ChunkStore,
    cutter: Cutter,
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

    /// Writes what is left and the lists, and makes everything durable.
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

/// A content that is being written. Nothing of it is in the log before it is complete.
pub struct Upload {
    writer: Option<Writer>,
    buffer: BytesMut,
    size: u64,
    base: Vec<ChunkId>,
    ahead: Ahead,
    handed_over: usize,
    webserver: String,
    hold: Hold,
}

impl Upload {
    /// Begins a content that replaces the content named `former`, if there is one.
    ///
    /// # Errors
    /// When the replica keeps no contents, or the state is damaged.
    pub fn begin(store: &Store, former: &str) -> Result<Upload, UploadError> {
        let contents = kept(store)?;
        let hold = contents.store().hold();
        let former = if former.is_empty() { None } else { store.get::<Content>(former)? };
        let base = former.map(|record| record.value.index).unwrap_or_default();
        let writer = Writer {
            store: contents.store().clone(),
            cutter: Cutter::new(),
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

    /// Bytes so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Takes the next bytes; waits when too much is under way.
    ///
    /// # Errors
    /// When they cannot be kept.
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
        let stopped = || UploadError::Io(std::io::Error::other("an earlier part of the contents was not kept"));
        let mut writer = self.writer.take().ok_or_else(stopped)?;
        let working = background::handle().spawn_blocking(move || {
            let done = work(&mut writer);
            (writer, done)
        });
        let (writer, done) = working.await.map_err(std::io::Error::other)?;
        self.writer = Some(writer);
        Ok(done?)
    }

    /// Hands chunks over for sending when there are enough of them.
    async fn hand_over(&mut self, least: usize) {
        let Some(writer) = &self.writer else { return };
        if writer.parts.len() - self.handed_over >= least.max(1) {
            let new = writer.parts[self.handed_over..].to_vec();
            self.handed_over = writer.parts.len();
            self.ahead.push(new).await;
        }
    }

    /// Completes the content: everything is durable here, and sent as far as the datastore is there. The object is written by
    /// the transaction that names it.
    ///
    /// # Errors
    /// When it cannot be kept.
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
        let gone = || UploadError::Io(std::io::Error::other("the contents were not kept"));
        let Writer { md5, blake3, parts, .. } = writer.ok_or_else(gone)?;
        let content = Content {
            id: hex(&random::<16>()?),
            size,
            parts: parts.len() as u64,
            index,
            base,
            md5: STANDARD.encode(md5.finalize()),
            blake3: blake3.finalize().to_hex().to_string(),
            created: Moment::now(),
            webserver,
        };
        writes.create(&content, "the contents exist already: try again")?;
        writes.hold(hold);
        Ok(content)
    }
}

/// Reads a content from some place on, a chunk at a time.
pub struct Reader {
    contents: Contents,
    parts: std::vec::IntoIter<Part>,
    skip: usize,
    left: u64,
}

/// Chunks that are fetched together when the first of them is not here.
const READ_AHEAD: usize = 16;

impl Reader {
    /// Reads `length` bytes from `from` on.
    ///
    /// # Errors
    /// When the lists of its chunks are not here and cannot be fetched.
    pub async fn open(contents: Contents, content: &Content, from: u64, length: u64) -> Result<Reader, ContentsError> {
        let parts = contents.parts(&content.index).await?;
        let total: u64 = parts.iter().map(|part| u64::from(part.bytes)).sum();
        if total != content.size {
            let said = content.size;
            return Err(ContentsError::Malformed(format!("a content of {said} bytes has chunks of {total} bytes")));
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

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// When a chunk is not here and nobody who answers has it.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ContentsError> {
        if self.left == 0 {
            return Ok(None);
        }
        let ids: Vec<ChunkId> = self.parts.as_slice().iter().take(READ_AHEAD).map(|part| part.id).collect();
        let Some(part) = self.parts.next() else { return Ok(None) };
        let raw = self.contents.read_ahead(&ids).await?;
        if raw.len() != part.bytes as usize {
            return Err(ContentsError::Malformed(format!("chunk {} has another length than its list says", part.id)));
        }
        let start = std::mem::take(&mut self.skip).min(raw.len());
        let room = usize::try_from(self.left).unwrap_or(usize::MAX);
        let end = raw.len().min(start.saturating_add(room));
        self.left -= (end - start) as u64;
        Ok(Some(raw.slice(start..end)))
    }
}

/// Reads a content from its beginning; for threads that may wait and belong to a runtime, as those of `spawn_blocking` do.
///
/// # Errors
/// When there is no such content, or its lists cannot be had. What is missing later is told by the reader.
pub fn reader(store: &Store, id: &str) -> Result<impl std::io::Read + Send + use<>, UploadError> {
    let runtime = tokio::runtime::Handle::try_current().map_err(std::io::Error::other)?;
    let missing = || UploadError::Io(std::io::Error::other(format!("the content {id} is missing")));
    let content = store.get::<Content>(id)?.ok_or_else(missing)?.value;
    let opening = Reader::open(kept(store)?, &content, 0, content.size);
    let reader = runtime.block_on(opening).map_err(std::io::Error::other)?;
    Ok(Waiting { reader, runtime, piece: Bytes::new() })
}

/// A [`Reader`] for threads that may wait.
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

/// Names a content once more: it must still exist, else `gone` is said, and its object is rewritten, so that a removal under
/// way is refused. No content is named by an empty `id`.
///
/// # Errors
/// When the state is damaged or the object cannot be written.
pub fn name_again(store: &Store, id: &str, gone: &str, writes: &mut Writes) -> Result<(), StoreError> {
    match store.get::<Content>(id)? {
        Some(record) => writes.overwrite_existing(&record, gone, "a content never changes: the same is written again"),
        None if id.is_empty() => Ok(()),
        None => writes.require::<Content>(id, gone),
    }
}

/// Whether something is undecided here that names contents or ceases to. What is rejected in the end leaves everything as it
/// was, so nothing can be said before.
fn is_undecided(store: &Store) -> bool {
    let concerned = [Content::COLLECTION, Resource::COLLECTION, super::searches::Search::COLLECTION];
    let pending = store.replica().pending();
    pending.iter().any(|txn| txn.ops.iter().any(|op| concerned.contains(&op.collection().as_str())))
}

/// What takes a content away, if nothing names it any more and nothing undecided could. Its chunks are collected later.
///
/// # Errors
/// When the state is damaged.
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
    if super::searches::named_contents(store)?.contains(id) {
        return Ok(None);
    }
    let mut writes = Writes::new();
    writes.delete(&head, "")?;
    Ok(Some(writes))
}

/// Contents that nothing names and that were not taken away when that began.
///
/// # Errors
/// When the state is damaged.
pub fn abandoned(store: &Store) -> Result<Vec<String>, StoreError> {
    let mut named = std::collections::HashSet::new();
    store.each_whole::<Resource>("", |resource| named.extend([resource.content]))?;
    named.extend(super::searches::named_contents(store)?);
    let is_left = |content: &Content| {
        let after = if content.webserver == store.via() { UNNAMED_S } else { ABANDONED_S };
        !named.contains(&content.id) && content.created.plus(after).is_past()
    };
    let left = store.select::<Content>("", is_left)?;
    Ok(left.into_iter().map(|record| record.value.id).collect())
}
