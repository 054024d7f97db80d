//! Export archives of all objects: lines of JSON between a header line and a final line that proves that the archive
//! is complete.
//!
//! ```text
//! {"gravwell-backup":1,"created":"…","log":"…","seq":17,"omitted":["sessions", …]}
//! {"chunk":"5c1a…","data":"…"}
//! {"collection":"users","key":"1","value":{…}}
//! {"end":{"objects":1,"chunks":1,"blake3":"…"}}
//! ```
//!
//! The chunks of all blobs come first, each once, in base64, so that a restore has them before an object references
//! them. Blobs with a chunk that cannot be read are left out and reported.
//!
//! The archive does not contain the `omitted` collections, and a restore leaves them unchanged.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::{self, BufRead, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use gravwell_chunks::CHUNK_BYTES_MAX;
use gravwell_model::codec::blob_manifest::{self, BlobManifest};
use gravwell_model::codec::json_lines::{LINE_BYTES_MAX, object_line, parse_object_line};
use gravwell_model::{ChunkId, Collection, Key, Op, Txn};
use gravwell_replica::Replica;
use gravwell_replica::blobs::Blobs;
use gravwell_state::StateSnapshot;

use super::Timestamp;
use super::kinds::{self, Archive};
use super::record::Stored;
use super::searches::Search;
use super::users::{Admin, FIRST, User};

const VERSION: u32 = 1;
/// Number of chunks fetched together if the first is not stored locally.
const READ_AHEAD: usize = 16;

#[derive(Serialize, Deserialize)]
struct Head {
    #[serde(rename = "gravwell-backup")]
    version: u32,
    created: Timestamp,
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

/// Error while writing or reading an archive.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A line of the archive is invalid.
    #[error("line {line}: {reason}")]
    Line {
        /// Line number, starting at 1.
        line: u64,
        /// Description of the error.
        reason: String,
    },
    /// Reading the state failed.
    #[error(transparent)]
    State(#[from] gravwell_state::StateError),
}

/// State that an archive is made from: the committed state at one sequence, plus this replica's pending transactions.
pub struct Source {
    snapshot: StateSnapshot,
    undecided: BTreeMap<(Collection, Key), Option<Bytes>>,
    contents: Option<(Blobs, tokio::runtime::Handle)>,
}

/// Parts that are left out of an archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Leave out passwords and tokens.
    pub without_secrets: bool,
    /// Leave out searches with their results.
    pub without_searches: bool,
}

/// Summary of a written archive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Number of objects.
    pub objects: u64,
    /// Number of chunks.
    pub chunks: u64,
    /// Blobs left out because some of their chunks cannot be read.
    pub left_out: Vec<String>,
}

impl Source {
    /// Captures the present state. Later changes do not affect the source.
    ///
    /// # Errors
    /// If the state is corrupt.
    pub fn of(replica: &Replica) -> Result<Source, BackupError> {
        // Transactions pending before the snapshot are either in it or still to be applied on top of it.
        let pending = replica.pending();
        let snapshot = replica.state().snapshot()?;
        let mut undecided = BTreeMap::new();
        for txn in pending {
            let row = snapshot.origin(txn.id.origin)?;
            if row.is_none_or(|row| row.last_counter < txn.id.counter) {
                lay_over(&mut undecided, &txn);
            }
        }
        // Chunks that are not stored locally can be fetched only within a runtime.
        let contents = replica.contents().zip(tokio::runtime::Handle::try_current().ok());
        Ok(Source { snapshot, undecided, contents })
    }

    /// Returns the blobs that hold the results of saved searches.
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

    /// Returns the collections that an archive without secrets omits. Those that this version does not know are among
    /// them. They are listed in the archive, so that a restore leaves their objects unchanged.
    fn secrets(&self) -> Result<BTreeSet<String>, BackupError> {
        let is_secret = |collection: &str| kinds::archive(collection) == Archive::WithSecrets;
        let known = kinds::KINDS.iter().map(|kind| kind.collection);
        let mut found: BTreeSet<String> = known.filter(|name| is_secret(name)).map(str::to_owned).collect();
        let mut see = |collection: &Collection| {
            if is_secret(collection.as_str()) && !found.contains(collection.as_str()) {
                found.insert(collection.to_string());
            }
        };
        for row in self.snapshot.objects() {
            see(&row?.0);
        }
        self.undecided.keys().for_each(|(collection, _)| see(collection));
        Ok(found)
    }

    /// Writes the chunks of all blobs, each once.
    fn write_chunks(
        &self,
        passed_over: &HashSet<String>,
        line: &mut impl FnMut(String) -> io::Result<()>,
        written: &mut Written,
    ) -> Result<(), BackupError> {
        let collection = Collection::new(blob_manifest::COLLECTION).map_err(io::Error::other)?;
        let mut seen = HashSet::new();
        let mut heads: BTreeMap<Key, BlobManifest> = BTreeMap::new();
        for row in self.snapshot.scan(&collection, "", std::ops::Bound::Unbounded) {
            let (key, object) = row?;
            heads.insert(key, blob_manifest::head_of(&object.value));
        }
        for ((of, key), value) in &self.undecided {
            match value.as_ref().filter(|_| *of == collection) {
                Some(value) => drop(heads.insert(key.clone(), blob_manifest::head_of(value))),
                None if *of == collection => drop(heads.remove(key)),
                None => {}
            }
        }
        for (key, head) in heads.into_iter().filter(|(key, _)| !passed_over.contains(key.as_str())) {
            if let Err(error) = self.write_content(&head, &mut seen, line, &mut written.chunks)? {
                tracing::warn!(content = %key, error, "skipping blob in export archive");
                written.left_out.push(key.as_str().to_owned());
            }
        }
        Ok(())
    }

    /// Writes the chunks of a blob. The inner error: a chunk cannot be read.
    fn write_content(
        &self,
        head: &BlobManifest,
        seen: &mut HashSet<ChunkId>,
        line: &mut impl FnMut(String) -> io::Result<()>,
        chunks: &mut u64,
    ) -> Result<Result<(), String>, BackupError> {
        if head.index.is_empty() {
            return Ok(Ok(()));
        }
        let Some((contents, runtime)) = &self.contents else {
            return Ok(Err("this replica stores no blobs".into()));
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

    /// Writes the archive.
    ///
    /// # Errors
    /// If the state is corrupt or writing fails.
    pub fn write(&self, parts: Parts, to: &mut impl Write) -> Result<Written, BackupError> {
        let mut omitted: Vec<String> = kinds::never_archived().map(str::to_owned).collect();
        if parts.without_secrets {
            omitted.extend(self.secrets()?);
        }
        let mut passed_over = HashSet::new();
        if parts.without_searches {
            omitted.push(Search::COLLECTION.into());
            passed_over = self.contents_of_searches()?;
        }
        let meta = self.snapshot.meta();
        let head = Head {
            version: VERSION,
            created: Timestamp::now(),
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
            at.0.as_str() == blob_manifest::COLLECTION && is_without(at.1.as_str())
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

/// Summary of a valid archive, which is needed before anything is restored.
pub struct Examined {
    /// Number of objects.
    pub objects: u64,
    /// Total size of the objects' lines in bytes.
    pub object_bytes: u64,
    keys: BTreeSet<(Collection, Key)>,
    omitted: Vec<String>,
}

impl Examined {
    /// Returns whether a restore leaves a collection unchanged: it was omitted, or belongs in no archive, which earlier
    /// versions did not know.
    #[must_use]
    pub fn omits(&self, collection: &str) -> bool {
        kinds::archive(collection) == Archive::Never || self.omitted.iter().any(|name| name == collection)
    }

    /// Returns whether the archive has an object.
    #[must_use]
    pub fn has(&self, collection: &Collection, key: &Key) -> bool {
        self.keys.contains(&(collection.clone(), key.clone()))
    }

    /// Returns the keys of a kind in the archive.
    pub fn keys_of<T: Stored>(&self) -> impl Iterator<Item = &str> {
        let of_kind = self.keys.iter().filter(|(collection, _)| collection.as_str() == T::COLLECTION);
        of_kind.map(|(_, key)| key.as_str())
    }

    /// Returns whether an existing object must be deleted to reach the state in the archive.
    #[must_use]
    pub fn lacks(&self, collection: &Collection, key: &Key) -> bool {
        !self.omits(collection.as_str()) && !self.has(collection, key)
    }
}

/// An item of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A chunk. Its bytes match its id.
    Chunk(ChunkId, Vec<u8>),
    /// Operation that writes an object.
    Object(Op),
}

/// Reads an archive to its end and passes all items to `take`.
///
/// # Errors
/// If it is incomplete or corrupt, or its restore would leave no user who can log in as an administrator.
pub fn read(from: &mut impl BufRead, mut take: impl FnMut(Item) -> io::Result<()>) -> Result<Examined, BackupError> {
    let mut lines = Lines { from, number: 0, text: String::new() };
    let mut hash = blake3::Hasher::new();
    let head: Head = {
        let text = lines.next()?.ok_or_else(|| wrong(1, "the file is empty"))?;
        hash.update(text.as_bytes());
        hash.update(b"\n");
        serde_json::from_str(text).map_err(|_| wrong(1, "not a backup of a Gravwell webserver"))?
    };
    if head.version != VERSION {
        return Err(wrong(1, format!("backup version {} is not supported; use a newer webserver", head.version)));
    }
    let (mut keys, mut chunks, mut object_bytes) = (BTreeSet::new(), 0, 0);
    loop {
        let number = lines.number + 1;
        let text = lines.next()?.ok_or_else(|| wrong(number, "the file is truncated"))?;
        if text.starts_with("{\"end\":") {
            let Tail { end } = serde_json::from_str(text).map_err(|error| wrong(number, error))?;
            if (end.objects, end.chunks) != (keys.len() as u64, chunks)
                || end.blake3 != hash.finalize().to_hex().to_string()
            {
                return Err(wrong(number, "checksum mismatch: the file was modified or is corrupt"));
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
            return Err(wrong(number, format!("duplicate object {collection}/{key}")));
        }
        // Archives of earlier versions may contain collections unknown to those versions.
        if kinds::archive(collection.as_str()) != Archive::Never {
            take(Item::Object(Op::Put { collection, key, value }))?;
        }
    }
    let number = lines.number;
    if lines.next()?.is_some() {
        return Err(wrong(number + 1, "unexpected data after the end"));
    }
    let has_first =
        |collection: &str| keys.iter().any(|(c, k)| c.as_str() == collection && k.as_str() == FIRST.to_string());
    if !(has_first(User::COLLECTION) && has_first(Admin::COLLECTION)) {
        return Err(wrong(
            number,
            "the first administrator is missing, so the restored data could not be administered",
        ));
    }
    Ok(Examined { objects: keys.len() as u64, object_bytes, keys, omitted: head.omitted })
}

fn chunk(text: &str) -> Result<(ChunkId, Vec<u8>), String> {
    let ChunkLine { chunk, data } = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let raw = STANDARD.decode(data).map_err(|error| error.to_string())?;
    if raw.len() > CHUNK_BYTES_MAX || ChunkId::of(&raw) != chunk {
        return Err(format!("hash mismatch in chunk {chunk}"));
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
            return Err(wrong(self.number, "the line is unterminated or too long"));
        }
        Ok(Some(&self.text))
    }
}

#[cfg(test)]
mod tests {
    use super::super::store::{Author, Store};
    use super::super::writes::Writes;
    use super::*;
    use gravwell_replica::ReplicaOptions;

    #[tokio::test(flavor = "multi_thread")]
    async fn p11_a_collection_of_a_later_version_counts_as_a_secret() {
        let temp = tempfile::tempdir().expect("temp dir");
        let replica = Replica::open(temp.path(), ReplicaOptions::default()).expect("opens");
        let store = Store::new(replica, "w");
        let of = |collection: &str, key: &str| {
            let (collection, key) = (Collection::new(collection).expect("name"), Key::new(key).expect("key"));
            Op::Put { collection, key, value: "{\"value\":\"hidden\"}".into() }
        };
        let ops = vec![of("users", "1"), of("admins", "1"), of("of-a-later-version", "x"), of("passwords", "1")];
        store.commit(&Author::default(), "a test", Writes::unconditional(ops, "a test")).await.expect("is accepted");
        let archive = |without_secrets: bool| {
            let mut text = Vec::new();
            let parts = Parts { without_secrets, without_searches: false };
            Source::of(store.replica()).expect("reads").write(parts, &mut text).expect("writes");
            let mut found = Vec::new();
            let examined = read(&mut &text[..], |item| {
                if let Item::Object(op) = item {
                    found.push(op.collection().to_string());
                }
                Ok(())
            });
            (found, examined.expect("is complete").omits("of-a-later-version"))
        };
        // A restore leaves an omitted collection unchanged.
        assert_eq!(archive(true), (vec!["admins".into(), "users".into()], true));
        let all = ["admins", "of-a-later-version", "passwords", "users"].map(str::to_owned).to_vec();
        assert_eq!(archive(false), (all, false));
    }
}
