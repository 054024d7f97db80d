//! What resources hold, in pieces that fit into the log.
//!
//! A content is written piece by piece, never whole in memory: a head that says what it is, then pieces, then the
//! transaction that makes a resource name it. A content never changes; a resource with new contents names a new one.
//!
//! Whoever takes a content away requires its head to be as it was when nothing named it; whoever makes a second resource
//! name it rewrites the head. So of a clone and a removal that meet, one is refused: nothing is named that is gone.

use std::collections::VecDeque;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use md5::{Digest as _, Md5};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::model::{Collection, Key, Op};
use crate::replica::{Draft, Receipt, Stage, SubmitError};

use super::record::Stored;
use super::resources::Resource;
use super::sessions::{hex, random};
use super::store::Author;
use super::{CommitError, Moment, Record, Store, StoreError, Writes};

/// Bytes of a piece: well below the largest value that a datastore accepts by default.
pub const PIECE_BYTES: usize = 512 << 10;
/// Pieces under way to the datastore at the same time.
const WINDOW: usize = 16;
/// Pieces that wait in the outbox while the datastore is away: they are in memory.
const WINDOW_OFFLINE: usize = 128;
/// A content that nothing names is taken away by another webserver than its maker only after this long.
const ABANDONED_S: u64 = 30 * 24 * 3600;
/// A content that nothing names is taken away by its maker after this long: its upload may still be going on.
const UNNAMED_S: u64 = 24 * 3600;

/// Head of a content.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Content {
    /// Name.
    pub id: String,
    /// Bytes; 0 until it is complete.
    pub size: u64,
    /// Pieces; 0 until it is complete.
    pub pieces: u64,
    /// Bytes of every piece but the last.
    pub piece_bytes: u64,
    /// MD5 in base64, as clients expect it.
    pub md5: String,
    /// BLAKE3 in hexadecimal.
    pub blake3: String,
    /// When it was begun.
    pub created: Moment,
    /// Who wrote it.
    pub webserver: String,
}

impl Stored for Content {
    const COLLECTION: &'static str = "contents";
    fn key(&self) -> String {
        self.id.clone()
    }
}

/// Pieces are bytes, not JSON.
#[derive(Serialize, Deserialize)]
struct Piece {}

impl Stored for Piece {
    const COLLECTION: &'static str = "chunks";
    fn key(&self) -> String {
        String::new()
    }
}

fn piece_key(id: &str, number: u64) -> String {
    format!("{id}/{number:08x}")
}

/// Why a content could not be written.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The datastore is away, and too much waits for it already.
    #[error("the datastore is away: contents above {limit} bytes can be uploaded when it is back")]
    Away {
        /// Largest content while cut off.
        limit: usize,
    },
    /// A transaction was refused.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The replica.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The datastore rejected a piece.
    #[error("the datastore rejected a piece: {0}")]
    Rejected(String),
    /// No randomness.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl From<StoreError> for UploadError {
    fn from(error: StoreError) -> Self {
        UploadError::Commit(error.into())
    }
}

/// A content that is being written.
pub struct Upload<'a> {
    store: &'a Store,
    author: Author,
    head: Content,
    buffer: BytesMut,
    md5: Md5,
    blake3: blake3::Hasher,
    under_way: VecDeque<oneshot::Receiver<Result<Receipt, SubmitError>>>,
    receipts: VecDeque<Receipt>,
}

impl<'a> Upload<'a> {
    /// Begins a content.
    ///
    /// # Errors
    /// When the outbox does not take it.
    pub async fn begin(store: &'a Store, author: &Author) -> Result<Upload<'a>, UploadError> {
        let head = Content {
            id: hex(&random::<16>()?),
            size: 0,
            pieces: 0,
            piece_bytes: PIECE_BYTES as u64,
            md5: String::new(),
            blake3: String::new(),
            created: Moment::now(),
            webserver: store.via().to_owned(),
        };
        let mut writes = Writes::new();
        writes.create(&head, "")?;
        store.commit(author, "begin a content", writes).await?;
        Ok(Upload {
            store,
            author: author.clone(),
            head,
            buffer: BytesMut::with_capacity(PIECE_BYTES),
            md5: Md5::new(),
            blake3: blake3::Hasher::new(),
            under_way: VecDeque::new(),
            receipts: VecDeque::new(),
        })
    }

    /// Bytes so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.head.size
    }

    /// Takes the next bytes; waits when too much is under way.
    ///
    /// # Errors
    /// When the outbox or the datastore does not take them.
    pub async fn write(&mut self, mut bytes: &[u8]) -> Result<(), UploadError> {
        self.head.size += bytes.len() as u64;
        self.md5.update(bytes);
        self.blake3.update(bytes);
        while !bytes.is_empty() {
            let room = PIECE_BYTES - self.buffer.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == PIECE_BYTES {
                self.send_piece().await?;
            }
        }
        Ok(())
    }

    async fn send_piece(&mut self) -> Result<(), UploadError> {
        let collection = Collection::new(Piece::COLLECTION).map_err(|error| StoreError::BadKey(error.to_string()))?;
        let key =
            Key::new(piece_key(&self.head.id, self.head.pieces)).map_err(|e| StoreError::BadKey(e.to_string()))?;
        let value = std::mem::replace(&mut self.buffer, BytesMut::with_capacity(PIECE_BYTES)).freeze();
        let note =
            Author { what: "a piece of a content".into(), via: self.head.webserver.clone(), ..self.author.clone() };
        let note = Bytes::from(serde_json::to_vec(&note).map_err(StoreError::Write)?);
        let draft = Draft { ops: vec![Op::Put { collection, key, value }], note, ..Draft::default() };
        self.under_way.push_back(self.store.replica().submit_pipelined(draft).await?);
        self.head.pieces += 1;
        while self.under_way.len() + self.receipts.len() > WINDOW {
            if !self.settle_one().await? {
                break;
            }
        }
        Ok(())
    }

    /// Waits for the oldest piece; `false` when the datastore is away and there is room to go on.
    async fn settle_one(&mut self) -> Result<bool, UploadError> {
        if let Some(answer) = self.under_way.pop_front() {
            self.receipts.push_back(answer.await.map_err(|_| SubmitError::Closed)??);
            return Ok(true);
        }
        let waiting = self.receipts.len();
        let Some(receipt) = self.receipts.front_mut() else { return Ok(false) };
        let mut changed = self.store.replica().watch_outbox();
        loop {
            if receipt.stage().is_final() {
                break;
            }
            if !self.store.replica().is_connected() {
                if waiting < WINDOW_OFFLINE {
                    return Ok(false);
                }
                return Err(UploadError::Away { limit: WINDOW_OFFLINE * PIECE_BYTES });
            }
            tokio::select! {
                _ = receipt.decided() => {}
                _ = changed.changed() => {}
                () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
            }
        }
        let stage = receipt.stage();
        self.receipts.pop_front();
        match stage {
            Stage::Rejected(_, reason) => Err(UploadError::Rejected(reason.to_string())),
            Stage::Acknowledged(_) | Stage::Durable => Ok(true),
        }
    }

    /// Completes the content: what is left is handed over and the head is written, to be committed together with what
    /// names it.
    ///
    /// # Errors
    /// When the outbox or the datastore does not take the last pieces.
    pub async fn finish(mut self, writes: &mut Writes) -> Result<Content, UploadError> {
        if !self.buffer.is_empty() {
            self.send_piece().await?;
        }
        while !(self.under_way.is_empty() && self.receipts.is_empty()) {
            if !self.settle_one().await? {
                break;
            }
        }
        self.head.md5 = STANDARD.encode(self.md5.finalize());
        self.head.blake3 = self.blake3.finalize().to_hex().to_string();
        writes.require::<Content>(&self.head.id, "the content was taken away meanwhile: upload it again")?;
        writes.set(&self.head)?;
        Ok(self.head)
    }
}

/// Piece `number` of a content.
///
/// # Errors
/// When the state is damaged.
pub fn piece(store: &Store, id: &str, number: u64) -> Result<Option<Bytes>, StoreError> {
    let collection = Collection::new(Piece::COLLECTION).map_err(|error| StoreError::BadKey(error.to_string()))?;
    let key = Key::new(piece_key(id, number)).map_err(|error| StoreError::BadKey(error.to_string()))?;
    Ok(store.replica().get(&collection, &key)?.map(|object| object.value))
}

/// Reads a content from its beginning, piece by piece; for threads that may wait.
///
/// # Errors
/// When there is no such content, or the state is damaged. What goes missing meanwhile is told by the reader.
pub fn reader(store: &Store, id: &str) -> Result<impl std::io::Read + Send + use<>, StoreError> {
    let head = store.get::<Content>(id)?.map(|record| record.value);
    let missing = || StoreError::BadKey(format!("the content {id} is missing"));
    Ok(Reader { store: store.clone(), head: head.ok_or_else(missing)?, next: 0, piece: Bytes::new() })
}

struct Reader {
    store: Store,
    head: Content,
    next: u64,
    piece: Bytes,
}

impl std::io::Read for Reader {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        while self.piece.is_empty() && self.next < self.head.pieces {
            let found = piece(&self.store, &self.head.id, self.next).map_err(std::io::Error::other)?;
            self.piece = found.ok_or_else(|| std::io::Error::other("the contents were replaced meanwhile"))?;
            self.next += 1;
        }
        let length = self.piece.len().min(to.len());
        to[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}

/// Lets another resource name a content that exists: rewrites the head, so that a removal under way is refused.
///
/// # Errors
/// When the head cannot be written.
pub fn name_again(record: &Record<Content>, writes: &mut Writes) -> Result<(), StoreError> {
    writes.update(record, "the contents were replaced meanwhile: try again")
}

/// What takes a content away, if nothing names it any more.
///
/// # Errors
/// When the state is damaged.
pub fn removal(store: &Store, id: &str) -> Result<Option<Writes>, StoreError> {
    let Some(head) = store.get::<Content>(id)? else { return Ok(None) };
    if store.list::<Resource>("")?.iter().any(|resource| resource.value.content == id) {
        return Ok(None);
    }
    if super::searches::named_contents(store)?.contains(id) {
        return Ok(None);
    }
    let mut writes = Writes::new();
    writes.unchanged(&head, "")?;
    writes.require::<Content>(id, "")?;
    for key in store.keys::<Piece>(&format!("{id}/"))? {
        writes.delete::<Piece>(&key)?;
    }
    writes.delete::<Content>(id)?;
    Ok(Some(writes))
}

/// Contents that an upload left behind when it broke off.
///
/// # Errors
/// When the state is damaged.
pub fn abandoned(store: &Store) -> Result<Vec<String>, StoreError> {
    let mut named: std::collections::HashSet<String> =
        store.list::<Resource>("")?.into_iter().map(|resource| resource.value.content).collect();
    named.extend(super::searches::named_contents(store)?);
    let is_left = |content: &Content| {
        let after = if content.webserver == store.via() { UNNAMED_S } else { ABANDONED_S };
        !named.contains(&content.id) && content.created.plus(after).is_past()
    };
    let contents = store.list::<Content>("")?;
    Ok(contents.into_iter().map(|record| record.value).filter(is_left).map(|content| content.id).collect())
}
