//! A backup: every object, as lines of JSON between a first line that says what it is and a last line that proves that it
//! is whole.
//!
//! ```text
//! {"gravwell-backup":1,"created":"…","log":"…","seq":17,"omitted":["sessions", …]}
//! {"chunk":"5c1a…","data":"…"}
//! {"collection":"users","key":"1","value":{…}}
//! {"end":{"objects":1,"chunks":1,"blake3":"…"}}
//! ```
//!
//! The chunks of which contents consist come first, each once, in base64: a restore has them before an object names them.
//! Contents of which a chunk cannot be had are left out, and said to be.
//!
//! What the `omitted` collections hold is not in it, and is left alone by a restore.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::{self, BufRead, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::chunks::CHUNK_BYTES_MAX;
use crate::codec::content::{self, ContentHead};
use crate::codec::jsonl::{LINE_BYTES_MAX, object_line, parse_object_line};
use crate::model::{ChunkId, Collection, Key, Op, Txn};
use crate::replica::Replica;
use crate::replica::contents::Contents;
use crate::state::StateSnapshot;

use super::Moment;
use super::record::Stored;
use super::searches::Search;
use super::users::{Admin, FIRST, User};

/// Never in a backup, and left alone by a restore: logins, keys that sign them, second factors, numbers given out, messages that
/// end by themselves.
const NEVER: [&str; 10] = [
    "sessions",
    "session-epochs",
    "token-epochs",
    "signing-keys",
    "second-factors",
    "second-factor-setups",
    "second-factor-steps",
    "recovery-codes",
    "id-leases",
    "notifications",
];
/// Not in a backup without secrets.
const SENSITIVE: [&str; 2] = ["passwords", "tokens"];
const VERSION: u32 = 1;
/// Chunks that are fetched together when the first of them is not here.
const READ_AHEAD: usize = 16;

#[derive(Serialize, Deserialize)]
struct Head {
    #[serde(rename = "gravwell-backup")]
    version: u32,
    created: Moment,
    log: String,
    seq: u64,
    omitted: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Tail {
    end: End,
}

#[derive(Serialize, Deserialize)]
struct End {
    objects: u64,
    #[serde(default)]
    chunks: u64,
    blake3: String,
}

#[derive(Serialize, Deserialize)]
struct ChunkLine {
    chunk: ChunkId,
    data: String,
}

/// Why a file is not a backup that can be restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Reading or writing.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What it says.
    #[error("line {line}: {reason}")]
    Line {
        /// Which, from 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// The state.
    #[error(transparent)]
    State(#[from] crate::state::StateError),
}

/// What a backup is made from: the committed state at one sequence, with what this replica has not yet had decided.
pub struct Source {
    snapshot: StateSnapshot,
    undecided: BTreeMap<(Collection, Key), Option<Bytes>>,
    contents: Option<(Contents, tokio::runtime::Handle)>,
}

/// What is left out of a backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Passwords and tokens.
    pub without_secrets: bool,
    /// Searches with their results.
    pub without_searches: bool,
}

/// What a backup came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Objects.
    pub objects: u64,
    /// Chunks.
    pub chunks: u64,
    /// Contents that were left out, because chunks of them cannot be had.
    pub left_out: Vec<String>,
}

impl Source {
    /// Takes the state as it is now; what changes later does not change the source.
    ///
    /// # Errors
    /// When the state is damaged.
    pub fn of(replica: &Replica) -> Result<Source, BackupError> {
        // What is pending before the snapshot is taken is either in it or still to be laid over it.
        let pending = replica.pending();
        let snapshot = replica.state().snapshot()?;
        let mut undecided = BTreeMap::new();
        for txn in pending {
            let row = snapshot.origin(txn.id.origin)?;
            if row.is_none_or(|row| row.last_counter < txn.id.counter) {
                lay_over(&mut undecided, &txn);
            }
        }
        // Only within a runtime can chunks be fetched that are not here.
        let contents = replica.contents().zip(tokio::runtime::Handle::try_current().ok());
        Ok(Source { snapshot, undecided, contents })
    }

    /// Contents that hold the results of saved searches.
    fn contents_of_searches(&self) -> Result<HashSet<String>, BackupError> {
        let collection = Collection::new(Search::COLLECTION).map_err(io::Error::other)?;
        let content = |value: &Bytes| serde_json::from_slice::<Search>(value).ok().map(|search| search.content);
        let mut found = HashSet::new();
        for row in self.snapshot.scan(&collection, "", std::ops::Bound::Unbounded) {
            found.extend(content(&row?.1.value));
        }
        let undecided = self.undecided.iter().filter(|((of, _), _)| *of == collection);
        found.extend(undecided.filter_map(|(_, value)| content(value.as_ref()?)));
        found.remove("");
        Ok(found)
    }

    /// Writes the chunks of all contents, each once.
    fn write_chunks(
        &self,
        passed_over: &HashSet<String>,
        line: &mut impl FnMut(String) -> io::Result<()>,
        written: &mut Written,
    ) -> Result<(), BackupError> {
        let collection = Collection::new(content::COLLECTION).map_err(io::Error::other)?;
        let mut seen = HashSet::new();
        let mut heads: BTreeMap<Key, ContentHead> = BTreeMap::new();
        for row in self.snapshot.scan(&collection, "", std::ops::Bound::Unbounded) {
            let (key, object) = row?;
            heads.insert(key, content::head_of(&object.value));
        }
        for ((of, key), value) in &self.undecided {
            match value.as_ref().filter(|_| *of == collection) {
                Some(value) => drop(heads.insert(key.clone(), content::head_of(value))),
                None if *of == collection => drop(heads.remove(key)),
                None => {}
            }
        }
        for (key, head) in heads.into_iter().filter(|(key, _)| !passed_over.contains(key.as_str())) {
            if let Err(error) = self.write_content(&head, &mut seen, line, &mut written.chunks)? {
                tracing::warn!(content = %key, error, "contents are left out of the backup");
                written.left_out.push(key.as_str().to_owned());
            }
        }
        Ok(())
    }

    /// The inner error: a chunk cannot be had.
    fn write_content(
        &self,
        head: &ContentHead,
        seen: &mut HashSet<ChunkId>,
        line: &mut impl FnMut(String) -> io::Result<()>,
        chunks: &mut u64,
    ) -> Result<Result<(), String>, BackupError> {
        if head.index.is_empty() {
            return Ok(Ok(()));
        }
        let Some((contents, runtime)) = &self.contents else {
            return Ok(Err("this replica keeps no contents".into()));
        };
        let parts = match runtime.block_on(contents.parts(&head.index)) {
            Ok(parts) => parts,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let ids: Vec<ChunkId> = head.index.iter().copied().chain(parts.iter().map(|part| part.id)).collect();
        for (at, id) in ids.iter().enumerate() {
            if seen.contains(id) {
                continue;
            }
            let ahead = &ids[at..ids.len().min(at + READ_AHEAD)];
            match runtime.block_on(contents.read_ahead(ahead)) {
                Ok(raw) => {
                    let text = ChunkLine { chunk: *id, data: STANDARD.encode(raw) };
                    line(serde_json::to_string(&text).map_err(io::Error::other)?)?;
                    seen.insert(*id);
                    *chunks += 1;
                }
                Err(error) => return Ok(Err(error.to_string())),
            }
        }
        Ok(Ok(()))
    }

    /// Writes the backup.
    ///
    /// # Errors
    /// When the state is damaged or writing fails.
    pub fn write(&self, parts: Parts, to: &mut impl Write) -> Result<Written, BackupError> {
        let mut omitted: Vec<String> = NEVER.iter().map(|name| (*name).to_owned()).collect();
        if parts.without_secrets {
            omitted.extend(SENSITIVE.iter().map(|name| (*name).to_owned()));
        }
        let mut passed_over = HashSet::new();
        if parts.without_searches {
            omitted.push(Search::COLLECTION.into());
            passed_over = self.contents_of_searches()?;
        }
        let meta = self.snapshot.meta();
        let head = Head {
            version: VERSION,
            created: Moment::now(),
            log: meta.map(|meta| meta.log_id.to_string()).unwrap_or_default(),
            seq: meta.map(|meta| meta.seq.0).unwrap_or_default(),
            omitted: omitted.clone(),
        };
        let mut hash = blake3::Hasher::new();
        let mut written = Written::default();
        let mut line = |text: String| {
            hash.update(text.as_bytes());
            hash.update(b"\n");
            to.write_all(text.as_bytes()).and_then(|()| to.write_all(b"\n"))
        };
        line(serde_json::to_string(&head).map_err(io::Error::other)?)?;
        self.write_chunks(&passed_over, &mut line, &mut written)?;
        let is_left_out = |at: &(Collection, Key)| {
            let is_without = |key: &str| passed_over.contains(key) || written.left_out.iter().any(|left| left == key);
            at.0.as_str() == content::COLLECTION && is_without(at.1.as_str())
        };
        let is_kept = |at: &(Collection, Key)| !omitted.iter().any(|name| name == at.0.as_str()) && !is_left_out(at);
        let mut objects = 0;
        for row in self.snapshot.objects() {
            let (collection, key, object) = row?;
            let at = (collection, key);
            if is_kept(&at) && !self.undecided.contains_key(&at) {
                line(object_line(&at.0, &at.1, &object.value))?;
                objects += 1;
            }
        }
        for (at, value) in &self.undecided {
            if let Some(value) = value.as_ref().filter(|_| is_kept(at)) {
                line(object_line(&at.0, &at.1, value))?;
                objects += 1;
            }
        }
        written.objects = objects;
        let end = Tail { end: End { objects, chunks: written.chunks, blake3: hash.finalize().to_hex().to_string() } };
        to.write_all(serde_json::to_string(&end).map_err(io::Error::other)?.as_bytes())?;
        to.write_all(b"\n")?;
        to.flush()?;
        Ok(written)
    }
}

fn lay_over(undecided: &mut BTreeMap<(Collection, Key), Option<Bytes>>, txn: &Txn) {
    for op in &txn.ops {
        undecided.insert((op.collection().clone(), op.key().clone()), op.value().cloned());
    }
}

/// What a whole and sound backup holds, as far as it must be known before anything is restored.
pub struct Examined {
    /// Objects in it.
    pub objects: u64,
    /// Bytes of its objects, as they are written in it.
    pub object_bytes: u64,
    keys: BTreeSet<(Collection, Key)>,
    omitted: Vec<String>,
}

impl Examined {
    /// Whether a collection is left alone by a restore: it was left out, or belongs in no backup, which one of an earlier
    /// version does not know.
    #[must_use]
    pub fn omits(&self, collection: &str) -> bool {
        NEVER.contains(&collection) || self.omitted.iter().any(|name| name == collection)
    }

    /// Whether an object that exists now must be deleted for the state to be that of the backup.
    #[must_use]
    pub fn lacks(&self, collection: &Collection, key: &Key) -> bool {
        !self.omits(collection.as_str()) && !self.keys.contains(&(collection.clone(), key.clone()))
    }
}

/// What a backup holds, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A chunk; its bytes are those of its name.
    Chunk(ChunkId, Vec<u8>),
    /// An object.
    Object(Op),
}

/// Reads a backup to its end, and gives everything in it to `take`.
///
/// # Errors
/// When it is not whole, not sound, or would leave nobody who can log in as an administrator.
pub fn read(from: &mut impl BufRead, mut take: impl FnMut(Item) -> io::Result<()>) -> Result<Examined, BackupError> {
    let mut lines = Lines { from, number: 0, text: String::new() };
    let mut hash = blake3::Hasher::new();
    let head: Head = {
        let text = lines.next()?.ok_or_else(|| wrong(1, "the file is empty"))?;
        hash.update(text.as_bytes());
        hash.update(b"\n");
        serde_json::from_str(text).map_err(|_| wrong(1, "this is not a backup of a Gravwell webserver"))?
    };
    if head.version != VERSION {
        return Err(wrong(
            1,
            format!("version {} of backups is not known to this webserver: use a newer one", head.version),
        ));
    }
    let (mut keys, mut chunks, mut object_bytes) = (BTreeSet::new(), 0, 0);
    loop {
        let number = lines.number + 1;
        let text = lines.next()?.ok_or_else(|| wrong(number, "the file is cut short"))?;
        if text.starts_with("{\"end\":") {
            let Tail { end } = serde_json::from_str(text).map_err(|error| wrong(number, error))?;
            if (end.objects, end.chunks) != (keys.len() as u64, chunks)
                || end.blake3 != hash.finalize().to_hex().to_string()
            {
                return Err(wrong(number, "the contents are not what they were when the backup was made"));
            }
            break;
        }
        hash.update(text.as_bytes());
        hash.update(b"\n");
        if text.starts_with("{\"chunk\":") {
            let (id, raw) = chunk(text).map_err(|error| wrong(number, error))?;
            chunks += 1;
            take(Item::Chunk(id, raw))?;
            continue;
        }
        let (collection, key, value) = parse_object_line(text).map_err(|error| wrong(number, error))?;
        object_bytes += text.len() as u64;
        if !keys.insert((collection.clone(), key.clone())) {
            return Err(wrong(number, format!("{collection}/{key} is there twice")));
        }
        // An earlier version keeps what it does not know.
        if !NEVER.contains(&collection.as_str()) {
            take(Item::Object(Op::Put { collection, key, value }))?;
        }
    }
    let number = lines.number;
    if lines.next()?.is_some() {
        return Err(wrong(number + 1, "something follows the end"));
    }
    let has_first =
        |collection: &str| keys.iter().any(|(c, k)| c.as_str() == collection && k.as_str() == FIRST.to_string());
    if !(has_first(User::COLLECTION) && has_first(Admin::COLLECTION)) {
        return Err(wrong(
            number,
            "the first administrator is missing: nobody could administer what would be restored",
        ));
    }
    Ok(Examined { objects: keys.len() as u64, object_bytes, keys, omitted: head.omitted })
}

fn chunk(text: &str) -> Result<(ChunkId, Vec<u8>), String> {
    let ChunkLine { chunk, data } = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let raw = STANDARD.decode(data).map_err(|error| error.to_string())?;
    if raw.len() > CHUNK_BYTES_MAX || ChunkId::of(&raw) != chunk {
        return Err(format!("the bytes are not those of chunk {chunk}"));
    }
    Ok((chunk, raw))
}

fn wrong(line: u64, reason: impl std::fmt::Display) -> BackupError {
    BackupError::Line { line, reason: reason.to_string() }
}

struct Lines<'a, R> {
    from: &'a mut R,
    number: u64,
    text: String,
}

impl<R: BufRead> Lines<'_, R> {
    fn next(&mut self) -> Result<Option<&str>, BackupError> {
        self.text.clear();
        self.number += 1;
        let bound = LINE_BYTES_MAX as u64;
        let read = io::Read::take(&mut *self.from, bound).read_line(&mut self.text)?;
        if read == 0 {
            return Ok(None);
        }
        if self.text.pop() != Some('\n') {
            return Err(wrong(self.number, "the line does not end, or is too long"));
        }
        Ok(Some(&self.text))
    }
}
