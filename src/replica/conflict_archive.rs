//! Conflict archive: changes that the log lacks, of an abandoned history or a refused member, kept in files for
//! an operator.
//!
//! There is one file per time that a member was left behind, `quarantine/<number>.jsonl`, accessible to its owner only:
//!
//! ```text
//! {"gravwell-quarantine":1,"log":"…","generation":1,"left_by":2,"shared_to":480,"seq":500,"digest":"…","restore":false,"lineage":[[1,0],[2,480]]}
//! {"seq":491,"time":1764102913000,"there":470,"op":{"put":{"collection":"c","key":"k","value":1}}}
//! {"seq":493,"time":null,"there":0,"op":{"delete":{"collection":"c","key":"k2"}}}
//! {"seq":493,"time":null,"there":485,"seen":true,"op":{"delete":{"collection":"c","key":"k3"}}}
//! {"end":{"changes":3,"blake3":"…"}}
//! ```
//!
//! The head has `"deletions_after":490` if the member did not know the deletions before that sequence any more.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use gravwell_env::real_fs::create_dirs;
use gravwell_model::codec::blob_manifest::{self, BlobManifest};
use gravwell_model::codec::json_lines::{LINE_BYTES_MAX, parse_line, txn_line};
use gravwell_model::position::Divergence;
use gravwell_model::{Collection, Digest, Generation, Key, Lineage, LineageEntry, LogId, Op, Seq};

/// Directory within a replica's directory.
const DIRECTORY: &str = "quarantine";
const VERSION: u32 = 1;

/// Description of a file's contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Identity of the log.
    pub log_id: LogId,
    /// Generation of the abandoned history.
    pub generation: Generation,
    /// Generation that abandoned it.
    pub left_by: Generation,
    /// Lineage of the log that was followed; empty in files of earlier versions.
    pub lineage: Lineage,
    /// Last sequence that both histories share.
    pub shared_to: Seq,
    /// Sequence of the member's state.
    pub seq: Seq,
    /// Digest of the member's state at that sequence.
    pub digest: Digest,
    /// Whether an earlier state was restored on purpose.
    pub is_restore: bool,
    /// Sequence after which the member's deletions were known, if that is later than `shared_to`: earlier ones in the
    /// abandoned history may be missing here.
    pub deletions_after: Option<Seq>,
    /// When the datastore's refusal of this member caused the archive, in milliseconds since 1970-01-01 UTC.
    pub revoked_ms: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    #[serde(rename = "gravwell-quarantine")]
    version: u32,
    log: LogId,
    generation: Generation,
    left_by: Generation,
    shared_to: Seq,
    seq: Seq,
    digest: Digest,
    restore: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deletions_after: Option<Seq>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revoked: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    lineage: Vec<(Generation, Seq)>,
}

#[derive(Serialize, Deserialize)]
struct Tail {
    end: End,
}

#[derive(Serialize, Deserialize)]
struct End {
    changes: u64,
    blake3: String,
}

/// One archived change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Sequence at which it was made; `None` for a deletion of which only the effect is known, and for a local
    /// transaction if the state that had it is lost.
    pub seq: Option<Seq>,
    /// When it was made, in milliseconds since 1970-01-01 UTC.
    pub time_ms: Option<u64>,
    /// Collection of the object.
    pub collection: Collection,
    /// Key of the object.
    pub key: Key,
    /// New value; `None` if the object was deleted.
    pub value: Option<Bytes>,
    /// Version of the object in the followed log when the change was archived; 0 if it was absent there. `None` in
    /// files of earlier versions.
    pub there: Option<Seq>,
    /// For a deletion: whether the log has the object again, but only as this member had seen it before the deletion.
    pub is_seen: bool,
}

impl Change {
    /// Returns the change as an operation.
    #[must_use]
    pub fn op(&self) -> Op {
        let (collection, key) = (self.collection.clone(), self.key.clone());
        match &self.value {
            Some(value) => Op::Put { collection, key, value: value.clone() },
            None => Op::Delete { collection, key },
        }
    }

    /// Returns what is changed, and to what.
    fn named(&self) -> (Collection, Key, Option<Bytes>) {
        (self.collection.clone(), self.key.clone(), self.value.clone())
    }

    fn line(&self) -> String {
        let number = |value: Option<u64>| value.map_or_else(|| "null".to_owned(), |value| value.to_string());
        let txn = txn_line(&[self.op()], &[]);
        let op = txn.strip_prefix("{\"ops\":[").and_then(|rest| rest.strip_suffix("]}")).unwrap_or_default();
        let (seq, there) = (number(self.seq.map(|seq| seq.0)), number(self.there.map(|seq| seq.0)));
        let seen = if self.is_seen { "\"seen\":true," } else { "" };
        format!("{{\"seq\":{seq},\"time\":{},\"there\":{there},{seen}\"op\":{op}}}", number(self.time_ms))
    }

    fn parse(line: &str) -> Result<Change, String> {
        #[derive(Deserialize)]
        struct Line<'a> {
            seq: Option<Seq>,
            time: Option<u64>,
            #[serde(default)]
            there: Option<Seq>,
            #[serde(default)]
            seen: bool,
            #[serde(borrow)]
            op: &'a serde_json::value::RawValue,
        }
        let Line { seq, time, there, seen, op } = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let (ops, _) = parse_line(&format!("{{\"ops\":[{}]}}", op.get())).map_err(|error| error.to_string())?;
        let op = ops.into_iter().next().ok_or("a change without an operation")?;
        let (collection, key, value) = (op.collection().clone(), op.key().clone(), op.value().cloned());
        Ok(Change { seq, time_ms: time, collection, key, value, there, is_seen: seen })
    }
}

/// A file that is being written.
pub(super) struct Writing {
    path: PathBuf,
    out: BufWriter<fs::File>,
    hasher: blake3::Hasher,
    changes: u64,
    /// Changes of the file that this one replaces, which are not in this one yet.
    former: BTreeMap<(Collection, Key, Option<Bytes>), Change>,
}

/// Result of writing a file.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub changes: u64,
    /// Name of the file; empty if there was nothing to write.
    pub file: String,
}

impl Set {
    /// Returns the last sequence of the abandoned history that a log with this lineage still has. That log may also
    /// have left the one that was followed at the time.
    #[must_use]
    pub fn shared_with(&self, present: &[LineageEntry]) -> Seq {
        let later = if self.lineage.is_empty() {
            // The generations at the time are unknown. Those since the one that left the history count or, if it is
            // gone, all. Changes of a refused member were made in that generation itself.
            let left_by = present.iter().position(|entry| entry.generation == self.left_by);
            let from = left_by.map_or(1, |at| if self.revoked_ms.is_some() { at + 1 } else { at.max(1) });
            present.iter().skip(from).map(|entry| entry.shared_to).min()
        } else {
            Divergence::of(&self.lineage, present).shared_to()
        };
        later.map_or(self.shared_to, |later| later.min(self.shared_to))
    }

    /// Returns whether a version that the followed log had when the set was archived is still the one of a log with this
    /// lineage. That log may have left the one that was followed, and assigned its sequence again.
    #[must_use]
    pub fn still_has(&self, version: Seq, present: &[LineageEntry]) -> bool {
        let is_shared = |shared_to: Seq| version <= shared_to;
        !self.lineage.is_empty() && Divergence::of(&self.lineage, present).shared_to().is_none_or(is_shared)
    }

    /// Creates a file in the replica's directory. It replaces the file of an earlier attempt to archive the same set.
    pub(super) fn create(&self, replica: &Path) -> io::Result<Writing> {
        let directory = replica.join(DIRECTORY);
        create_dirs(&directory, 0o700)?;
        let former = files(replica)?.into_iter().find(|path| set_of(path).is_ok_and(|set| set == *self));
        let path = match former {
            Some(path) => path,
            None => directory.join(format!("{:04}.jsonl", last_number(&directory)? + 1)),
        };
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path.with_extension("next"))?;
        let mut writing = Writing {
            path,
            out: BufWriter::new(file),
            hasher: blake3::Hasher::new(),
            changes: 0,
            former: BTreeMap::new(),
        };
        let head = Head {
            version: VERSION,
            log: self.log_id,
            generation: self.generation,
            left_by: self.left_by,
            shared_to: self.shared_to,
            seq: self.seq,
            digest: self.digest,
            restore: self.is_restore,
            deletions_after: self.deletions_after,
            revoked: self.revoked_ms,
            lineage: self.lineage.iter().map(|entry| (entry.generation, entry.shared_to)).collect(),
        };
        writing.line(&serde_json::to_string(&head)?)?;
        Ok(writing)
    }
}

impl Writing {
    /// Also keeps the changes of an earlier attempt that this one does not find again. A file that cannot be read is not
    /// replaced.
    pub(super) fn keeping_former(mut self) -> io::Result<Writing> {
        if self.path.exists() {
            match read(&self.path) {
                Ok((_, former)) => self.former = former.into_iter().map(|change| (change.named(), change)).collect(),
                Err(error) => {
                    tracing::error!(error, kept = %self.path.display(), "earlier archive of this history cannot be read");
                    let directory = gravwell_env::fs::parent_dir(&self.path);
                    let (unfinished, number) = (self.path.with_extension("next"), last_number(directory)? + 1);
                    self.path = directory.join(format!("{number:04}.jsonl"));
                    fs::rename(unfinished, self.path.with_extension("next"))?;
                }
            }
        }
        Ok(self)
    }

    fn line(&mut self, line: &str) -> io::Result<()> {
        self.hasher.update(line.as_bytes()).update(b"\n");
        writeln!(self.out, "{line}")
    }

    pub(super) fn write(&mut self, change: &Change) -> io::Result<()> {
        self.former.remove(&change.named());
        self.changes += 1;
        self.line(&change.line())
    }

    /// Makes the file durable under its name. A file without changes is removed.
    pub(super) fn finish(mut self) -> io::Result<Written> {
        for change in std::mem::take(&mut self.former).into_values() {
            self.write(&change)?;
        }
        let unfinished = self.path.with_extension("next");
        if self.changes == 0 {
            fs::remove_file(&unfinished)?;
            return Ok(Written::default());
        }
        let end = End { changes: self.changes, blake3: self.hasher.finalize().to_hex().to_string() };
        writeln!(self.out, "{}", serde_json::to_string(&Tail { end })?)?;
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs::rename(&unfinished, &self.path)?;
        fs::File::open(gravwell_env::fs::parent_dir(&self.path))?.sync_all()?;
        Ok(Written { changes: self.changes, file: self.path.display().to_string() })
    }
}

/// Returns the greatest number that was assigned to a file, even if the file was renamed since.
fn last_number(directory: &Path) -> io::Result<u64> {
    let entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    let numbers = entries.iter().filter_map(|entry| entry.path().file_stem()?.to_str()?.parse().ok());
    Ok(numbers.max().unwrap_or(0))
}

/// Reads the description in a file, and nothing else of it.
fn set_of(path: &Path) -> Result<Set, String> {
    let mut line = String::new();
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    io::Read::take(BufReader::new(file), 4096).read_line(&mut line).map_err(|error| error.to_string())?;
    parse_head(line.trim_end())
}

fn parse_head(text: &str) -> Result<Set, String> {
    let head: Head = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if head.version != VERSION {
        return Err(format!("version {} is unknown", head.version));
    }
    Ok(Set {
        log_id: head.log,
        generation: head.generation,
        left_by: head.left_by,
        shared_to: head.shared_to,
        seq: head.seq,
        digest: head.digest,
        is_restore: head.restore,
        deletions_after: head.deletions_after,
        revoked_ms: head.revoked,
        lineage: head.lineage.into_iter().map(of_lineage).collect(),
    })
}

fn of_lineage((generation, shared_to): (Generation, Seq)) -> LineageEntry {
    LineageEntry { generation, shared_to }
}

fn number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_suffix(".jsonl")?.parse().ok()
}

/// Returns the files of the replica in `replica`, oldest first.
///
/// # Errors
/// If the directory cannot be read.
pub fn files(replica: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(replica.join(DIRECTORY)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let paths = entries.collect::<io::Result<Vec<_>>>()?.into_iter().map(|entry| entry.path());
    let mut files: Vec<_> = paths.filter(|path| number(path).is_some()).collect();
    files.sort();
    Ok(files)
}

/// Reads a file to its end, which proves that it is complete.
///
/// # Errors
/// Describes the problem with the file.
pub fn read(path: &Path) -> Result<(Set, Vec<Change>), String> {
    let named = |what: &dyn std::fmt::Display| format!("{}: {what}", path.display());
    let file = fs::File::open(path).map_err(|error| named(&error))?;
    let mut reader = BufReader::new(file);
    let mut hasher = blake3::Hasher::new();
    let mut set: Option<Set> = None;
    let mut changes = Vec::new();
    let mut line = String::new();
    loop {
        line.clear();
        let mut limited = io::Read::take(&mut reader, LINE_BYTES_MAX as u64 + 256);
        if limited.read_line(&mut line).map_err(|error| named(&error))? == 0 {
            return Err(named(&"the file is truncated"));
        }
        let text = line.trim_end_matches('\n');
        match &set {
            None => set = Some(parse_head(text).map_err(|error| named(&error))?),
            Some(set) => {
                if let Ok(Tail { end }) = serde_json::from_str::<Tail>(text) {
                    let whole =
                        end.changes == changes.len() as u64 && end.blake3 == hasher.finalize().to_hex().as_str();
                    return if whole { Ok((set.clone(), changes)) } else { Err(named(&"its checksum does not match")) };
                }
                changes.push(Change::parse(text).map_err(|error| named(&error))?);
            }
        }
        hasher.update(line.as_bytes());
    }
}

/// Returns the blobs that archived changes of the replica in `replica` put. Their chunks may exist nowhere else.
///
/// # Errors
/// If a file cannot be read, so that its references are unknown.
pub fn heads(replica: &Path) -> Result<Vec<BlobManifest>, String> {
    let mut heads = Vec::new();
    for path in files(replica).map_err(|error| error.to_string())? {
        let (_, changes) = read(&path)?;
        let contents = changes.iter().filter(|change| change.collection.as_str() == blob_manifest::COLLECTION);
        heads.extend(contents.filter_map(|change| change.value.as_ref()).map(|value| blob_manifest::head_of(value)));
    }
    Ok(heads)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(lineage: &[(u64, u64)], left_by: u64, revoked_ms: Option<u64>) -> Set {
        Set {
            log_id: LogId([1; 16]),
            generation: Generation(1),
            left_by: Generation(left_by),
            lineage: lineage.iter().map(|(number, seq)| of_lineage((Generation(*number), Seq(*seq)))).collect(),
            shared_to: Seq(10),
            seq: Seq(12),
            digest: Digest::ZERO,
            is_restore: false,
            deletions_after: None,
            revoked_ms,
        }
    }

    #[test]
    fn p05_a_log_that_left_the_one_that_was_followed_shares_less_with_what_was_set_aside() {
        let shared = |set: &Set, present: &[(u64, u64)]| {
            let present = present.iter().map(|(number, seq)| of_lineage((Generation(*number), Seq(*seq))));
            set.shared_with(&present.collect::<Vec<_>>()).0
        };
        let known = set(&[(1, 0), (2, 10)], 2, None);
        assert_eq!(shared(&known, &[(1, 0), (2, 10)]), 10);
        assert_eq!(shared(&known, &[(1, 0), (2, 10), (3, 14)]), 10, "later entries were abandoned");
        assert_eq!(shared(&known, &[(1, 0), (2, 10), (3, 9)]), 9);
        assert_eq!(shared(&known, &[(1, 0), (2, 8)]), 8, "the generation number was reused");
        assert_eq!(shared(&known, &[(1, 0), (3, 8), (4, 20)]), 8);
        let cases = [(&[(1, 0), (2, 10)][..], 99), (&[(1, 0), (2, 10), (3, 14)], 14), (&[(1, 0), (3, 8)], 8)];
        for (present, last) in cases {
            let present = present.iter().map(|(number, seq)| of_lineage((Generation(*number), Seq(*seq))));
            let present: Vec<_> = present.collect();
            assert!(known.still_has(Seq(last), &present), "{present:?}");
            assert!(last == 99 || !known.still_has(Seq(last + 1), &present), "{present:?}");
            assert!(!set(&[], 2, None).still_has(Seq(1), &present), "the generations are unknown");
        }
        // Files of earlier versions do not list the generations.
        let unknown = set(&[], 2, None);
        for (present, expected) in [
            (&[(1, 0), (2, 10)][..], 10),
            (&[(1, 0), (2, 10), (3, 9)], 9),
            (&[(1, 0), (2, 8)], 8),
            (&[(1, 0), (3, 8)], 8),
            (&[(1, 0)], 10),
        ] {
            assert_eq!(shared(&unknown, present), expected, "{present:?}");
        }
        let refused = set(&[], 2, Some(1));
        assert_eq!(shared(&refused, &[(1, 0), (2, 5)]), 10, "the refusal is of that generation");
        assert_eq!(shared(&refused, &[(1, 0), (2, 5), (3, 7)]), 7);
    }

    /// The state may have lost entries since an earlier attempt to leave the same history.
    #[test]
    fn p05_a_later_attempt_that_finds_less_drops_nothing_from_the_archive() {
        let temp = tempfile::tempdir().expect("temp dir");
        let set = set(&[(1, 0), (2, 10)], 2, None);
        let change = |key: &str, there: u64| Change {
            seq: Some(Seq(11)),
            time_ms: None,
            collection: Collection::new("c").expect("name"),
            key: Key::new(key).expect("key"),
            value: Some(Bytes::from_static(b"1")),
            there: Some(Seq(there)),
            is_seen: false,
        };
        let write = |keeps: bool, changes: &[Change]| {
            let mut file = set.create(temp.path()).expect("creates");
            if keeps {
                file = file.keeping_former().expect("reads");
            }
            changes.iter().for_each(|change| file.write(change).expect("writes"));
            file.finish().expect("finishes")
        };
        let found = || -> Vec<Vec<Change>> {
            let files = files(temp.path()).expect("lists");
            files.iter().map(|file| read(file).expect("is whole").1).collect()
        };
        write(true, &[change("a", 1), change("b", 1)]);
        write(true, &[change("b", 2)]);
        assert_eq!(found(), [[change("b", 2), change("a", 1)]]);
        write(true, &[]);
        assert_eq!(found()[0].len(), 2);
        write(false, &[change("c", 3)]);
        assert_eq!(found(), [[change("c", 3)]], "a state that has lost nothing shows everything");
        // What cannot be read is kept.
        let damaged = files(temp.path()).expect("lists").remove(0);
        let text = fs::read_to_string(&damaged)
            .expect("reads")
            .replace("\"c\":", "\"d\":")
            .replace("\"key\":\"c\"", "\"key\":\"d\"");
        fs::write(&damaged, &text).expect("writes");
        assert!(read(&damaged).is_err());
        write(true, &[change("d", 4)]);
        assert_eq!(fs::read_to_string(&damaged).expect("is kept"), text);
        let files = files(temp.path()).expect("lists");
        assert_eq!((files.len(), read(&files[1]).expect("is whole").1), (2, vec![change("d", 4)]));
    }

    #[test]
    fn p10_what_was_set_aside_is_read_whole_or_not_at_all() {
        let temp = tempfile::tempdir().expect("temp dir");
        let set = Set { deletions_after: Some(Seq(8)), ..set(&[(1, 0), (2, 5)], 2, None) };
        let change = |seq: Option<u64>, key: &str, value: Option<&'static [u8]>| Change {
            seq: seq.map(Seq),
            time_ms: seq,
            collection: Collection::new("c").expect("name"),
            key: Key::new(key).expect("key"),
            value: value.map(Bytes::from_static),
            there: seq.map(|seq| Seq(seq - 7)),
            is_seen: value.is_none() && seq.is_some(),
        };
        let changes = [
            change(Some(7), "json", Some(br#"{"a":1}"#)),
            change(Some(8), "bytes \"é\"", Some(&[0, 255, 10])),
            change(None, "gone", None),
            change(Some(9), "deleted, and created again", None),
        ];
        assert_eq!(set.create(temp.path()).expect("begins").finish().expect("ends").changes, 0);
        assert!(files(temp.path()).expect("lists").is_empty(), "no changes, so no file");
        let mut writing = set.create(temp.path()).expect("begins");
        changes.iter().for_each(|change| writing.write(change).expect("writes"));
        writing.finish().expect("ends");
        let path = files(temp.path()).expect("lists").pop().expect("a file");
        assert_eq!(read(&path).expect("reads"), (set.clone(), changes.to_vec()));
        // Archived again after an attempt that failed; then another set, after an operator has dealt with the first.
        let mut again = set.create(temp.path()).expect("begins");
        changes.iter().for_each(|change| again.write(change).expect("writes"));
        again.finish().expect("ends");
        assert_eq!(files(temp.path()).expect("lists"), std::slice::from_ref(&path));
        fs::rename(&path, path.with_extension("applied")).expect("renames");
        let mut later = Set { seq: Seq(10), ..set }.create(temp.path()).expect("begins");
        later.write(&changes[0]).expect("writes");
        let later = PathBuf::from(later.finish().expect("ends").file);
        assert!(later.ends_with("0002.jsonl"), "{}", later.display());
        fs::remove_file(later).expect("removes");
        fs::rename(path.with_extension("applied"), &path).expect("renames");
        let good = fs::read(&path).expect("reads");
        for at in 0..good.len() - 1 {
            fs::write(&path, &good[..at]).expect("writes");
            assert!(read(&path).is_err(), "truncated at {at}");
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).expect("writes");
            assert!(read(&path).is_err(), "byte {at}");
        }
    }
}
