//! A backup: every object, as lines of JSON between a first line that says what it is and a last line that proves that it
//! is whole.
//!
//! ```text
//! {"gravwell-backup":1,"created":"…","log":"…","seq":17,"omitted":["sessions", …]}
//! {"collection":"users","key":"1","value":{…}}
//! {"end":{"objects":1,"blake3":"…"}}
//! ```
//!
//! What the `omitted` collections hold is not in it, and is left alone by a restore.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, Write};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::codec::jsonl::{LINE_BYTES_MAX, object_line, parse_object_line};
use crate::model::{Collection, Key, Op, Txn};
use crate::replica::Replica;
use crate::state::StateSnapshot;

use super::Moment;
use super::record::Stored;
use super::users::{Admin, FIRST, User};

/// Never in a backup: logins, keys that sign them, numbers given out, messages that end by themselves.
const NEVER: [&str; 4] = ["sessions", "signing-keys", "id-leases", "notifications"];
/// Not in a backup without secrets.
const SENSITIVE: [&str; 2] = ["passwords", "tokens"];
const VERSION: u32 = 1;

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
    blake3: String,
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
        Ok(Source { snapshot, undecided })
    }

    /// Writes the backup.
    ///
    /// # Errors
    /// When the state is damaged or writing fails.
    pub fn write(&self, without_secrets: bool, to: &mut impl Write) -> Result<u64, BackupError> {
        let mut omitted: Vec<String> = NEVER.iter().map(|name| (*name).to_owned()).collect();
        if without_secrets {
            omitted.extend(SENSITIVE.iter().map(|name| (*name).to_owned()));
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
        let mut objects = 0;
        let mut line = |text: String| {
            hash.update(text.as_bytes());
            hash.update(b"\n");
            to.write_all(text.as_bytes()).and_then(|()| to.write_all(b"\n"))
        };
        line(serde_json::to_string(&head).map_err(io::Error::other)?)?;
        let is_kept = |collection: &Collection| !omitted.iter().any(|name| name == collection.as_str());
        for row in self.snapshot.objects() {
            let (collection, key, object) = row?;
            let at = (collection, key);
            if is_kept(&at.0) && !self.undecided.contains_key(&at) {
                line(object_line(&at.0, &at.1, &object.value))?;
                objects += 1;
            }
        }
        for ((collection, key), value) in &self.undecided {
            if let Some(value) = value.as_ref().filter(|_| is_kept(collection)) {
                line(object_line(collection, key, value))?;
                objects += 1;
            }
        }
        let end = Tail { end: End { objects, blake3: hash.finalize().to_hex().to_string() } };
        to.write_all(serde_json::to_string(&end).map_err(io::Error::other)?.as_bytes())?;
        to.write_all(b"\n")?;
        to.flush()?;
        Ok(objects)
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
    /// Bytes of it.
    pub bytes: u64,
    keys: BTreeSet<(Collection, Key)>,
    omitted: Vec<String>,
}

impl Examined {
    /// Whether an object that exists now must be deleted for the state to be that of the backup.
    #[must_use]
    pub fn lacks(&self, collection: &Collection, key: &Key) -> bool {
        let is_left_alone = self.omitted.iter().any(|name| name == collection.as_str());
        !is_left_alone && !self.keys.contains(&(collection.clone(), key.clone()))
    }
}

/// Reads a backup to its end, and gives each object to `take`.
///
/// # Errors
/// When it is not whole, not sound, or would leave nobody who can log in as an administrator.
pub fn read(from: &mut impl BufRead, mut take: impl FnMut(Op) -> io::Result<()>) -> Result<Examined, BackupError> {
    let mut lines = Lines { from, number: 0, bytes: 0, text: String::new() };
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
    let mut keys = BTreeSet::new();
    loop {
        let number = lines.number + 1;
        let text = lines.next()?.ok_or_else(|| wrong(number, "the file is cut short"))?;
        if text.starts_with("{\"end\":") {
            let Tail { end } = serde_json::from_str(text).map_err(|error| wrong(number, error))?;
            if end.objects != keys.len() as u64 || end.blake3 != hash.finalize().to_hex().to_string() {
                return Err(wrong(number, "the contents are not what they were when the backup was made"));
            }
            break;
        }
        hash.update(text.as_bytes());
        hash.update(b"\n");
        let (collection, key, value) = parse_object_line(text).map_err(|error| wrong(number, error))?;
        if !keys.insert((collection.clone(), key.clone())) {
            return Err(wrong(number, format!("{collection}/{key} is there twice")));
        }
        take(Op::Put { collection, key, value })?;
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
    Ok(Examined { objects: keys.len() as u64, bytes: lines.bytes, keys, omitted: head.omitted })
}

fn wrong(line: u64, reason: impl std::fmt::Display) -> BackupError {
    BackupError::Line { line, reason: reason.to_string() }
}

struct Lines<'a, R> {
    from: &'a mut R,
    number: u64,
    bytes: u64,
    text: String,
}

impl<R: BufRead> Lines<'_, R> {
    fn next(&mut self) -> Result<Option<&str>, BackupError> {
        self.text.clear();
        self.number += 1;
        let bound = LINE_BYTES_MAX as u64;
        let read = io::Read::take(&mut *self.from, bound).read_line(&mut self.text)?;
        self.bytes += read as u64;
        if read == 0 {
            return Ok(None);
        }
        if self.text.pop() != Some('\n') {
            return Err(wrong(self.number, "the line does not end, or is too long"));
        }
        Ok(Some(&self.text))
    }
}
