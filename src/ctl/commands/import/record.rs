//! Record of an interrupted import: a small checksummed file next to the data.
//!
//! A record is found by the path of the imported file or, if that was moved, by its contents. It is valid while the
//! file starts with the bytes that it had when the import started. A file that has grown continues; a file that was
//! shortened or changed is rejected, and so is a corrupt record. Treating a corrupt record as missing would commit
//! everything twice.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use gravwell_env::data_dir::replace_file;
use gravwell_model::{Origin, OriginCounter};

use crate::client::transact::new_origin;
use crate::error::CtlError;

/// Persistent state of one import.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Origin of the import's transactions.
    pub origin: Origin,
    /// Absolute path of the imported file.
    pub file: PathBuf,
    /// Last transaction with a reported outcome.
    #[serde(default)]
    pub heard: OriginCounter,
    /// Number of rejections among the reported outcomes.
    #[serde(default)]
    pub rejected: u64,
    /// Number of bytes of the file that belong to this import.
    #[serde(default)]
    pub length: u64,
    /// BLAKE3 hash of those bytes, hexadecimal.
    #[serde(default)]
    pub hash: String,
    /// Last transaction of the import, once all were sent and answered. They may still be pending in an outbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<OriginCounter>,
}

impl Record {
    /// Creates the record of an import that has not started.
    pub(super) fn new(file: PathBuf) -> Result<Record, CtlError> {
        let (heard, rejected) = (OriginCounter(0), 0);
        Ok(Record { origin: new_origin()?, file, heard, rejected, length: 0, hash: String::new(), last: None })
    }

    /// Writes the record to `path` atomically.
    pub(super) fn save(&self, path: &Path) -> Result<(), CtlError> {
        let sealed = Sealed { sum: self.sum().map_err(CtlError::new)?, record: self.clone() };
        let text = serde_json::to_string(&sealed).map_err(CtlError::new)?;
        replace_file(path, text.as_bytes()).map_err(CtlError::new)
    }

    /// Returns the BLAKE3 hash of the serialized record, hexadecimal.
    fn sum(&self) -> serde_json::Result<String> {
        Ok(blake3::hash(serde_json::to_string(self)?.as_bytes()).to_hex().to_string())
    }

    fn load(path: &Path) -> Result<Record, String> {
        let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
        let Sealed { sum, record } = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        // Earlier versions wrote no checksum and no hash of the file, which was part of the record's name.
        let is_earlier = sum.is_empty() && record.hash.is_empty() && record.length == 0;
        // Serializing the parsed record must yield the same text, so unknown fields count as corruption, too.
        let again = serde_json::to_string(&Sealed { sum: sum.clone(), record: record.clone() });
        let is_whole =
            sum == record.sum().map_err(|error| error.to_string())? && again.is_ok_and(|again| again == text);
        if is_earlier || is_whole { Ok(record) } else { Err("checksum mismatch".into()) }
    }
}

/// Waits until no other command reads or changes a record. The lock is released when the file is dropped.
pub(super) fn lock(imports: &Path) -> Result<File, CtlError> {
    let path = imports.join("lock");
    let failed = |error: io::Error| CtlError::new(format!("cannot lock {}: {error}", path.display()));
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    file.lock().map_err(failed)?;
    Ok(file)
}

/// Like [`lock`], given the path of a record.
pub(super) fn lock_of(record: &Path) -> Result<File, CtlError> {
    lock(gravwell_env::fs::parent_dir(record))
}

/// Removes a record, unless another command has removed it.
pub(super) fn remove(path: &Path) -> Result<(), CtlError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(CtlError::new(format!("cannot remove {}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

/// Record with its checksum, as one JSON object.
#[derive(Serialize, Deserialize)]
struct Sealed {
    #[serde(flatten)]
    record: Record,
    #[serde(default)]
    sum: String,
}

/// Returns the BLAKE3 hash of the first `length` bytes; `None` if the file is shorter.
fn hash_of(file: &mut File, length: u64) -> io::Result<Option<String>> {
    file.rewind()?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file.by_ref().take(length))?;
    Ok((hasher.count() == length).then(|| hasher.finalize().to_hex().to_string()))
}

/// Returns whether the first `length` bytes end at a line break, so that lines can be appended.
fn ends_line(file: &mut File, length: u64) -> io::Result<bool> {
    file.seek(io::SeekFrom::Start(length.saturating_sub(1)))?;
    let mut around = [0; 2];
    let read = file.read(&mut around)?;
    Ok(around[..read].contains(&b'\n') || around[..read].ends_with(b"\r"))
}

/// Finds or creates the record of the import of `path`. Returns the record, its path, and whether it existed.
///
/// # Errors
/// If the record is corrupt, or if the file no longer starts with the recorded contents.
pub(super) fn find(imports: &Path, path: &Path, file: &mut File) -> Result<(Record, PathBuf, bool), CtlError> {
    let named = |error: io::Error| CtlError::new(format!("{}: {error}", path.display()));
    let absolute = path.canonicalize().map_err(named)?;
    let length = file.metadata().map_err(named)?.len();
    let hash = hash_of(file, length).map_err(named)?;
    let hash =
        hash.ok_or_else(|| CtlError::new(format!("{}: the file became shorter while it was read", path.display())))?;
    let at = imports.join(format!("{}.json", hex(absolute.as_os_str().as_encoded_bytes())));
    let former = imports.join(format!("{}.json", &hash[..32]));
    let known = match (at.exists(), former.exists()) {
        (true, _) => Some(at.clone()),
        (false, true) => Some(former),
        (false, false) => moved(imports, &hash),
    };
    let Some(known_at) = known else {
        return Ok((Record { length, hash, ..Record::new(absolute)? }, at, false));
    };
    let remedy = format!("to import the whole file as new, remove {}", known_at.display());
    let known = Record::load(&known_at).map_err(|error| {
        let (what, path) = (known_at.display(), path.display());
        CtlError {
            message: format!(
                "the record {what} of the interrupted import of {path} is damaged: {error}; compare with \
                 `gravwell-logctl export` to find out which lines were committed; {remedy}"
            ),
            exit: 3,
        }
    })?;
    if !known.hash.is_empty() {
        same_start(&known, path, file, &remedy)?;
    }
    let now = Record { file: absolute, length, hash, last: None, ..known };
    if known_at != at {
        now.save(&at)?;
        std::fs::remove_file(&known_at).map_err(CtlError::new)?;
    }
    Ok((now, at, true))
}

/// Returns the record of an import from `path` that was sent completely, if the file no longer starts with its
/// contents; also returns its last transaction and its path. Once all of its transactions are resolved, such a record
/// does not apply to the file any more.
pub(super) fn replaced(imports: &Path, path: &Path, file: &mut File) -> Option<(OriginCounter, Record, PathBuf)> {
    let absolute = path.canonicalize().ok()?;
    let at = imports.join(format!("{}.json", hex(absolute.as_os_str().as_encoded_bytes())));
    let record = Record::load(&at).ok()?;
    let last = record.last?;
    same_start(&record, path, file, "").is_err().then_some((last, record, at))
}

/// Rejects a file that does not start with the contents that it had when its import started.
fn same_start(known: &Record, path: &Path, file: &mut File, remedy: &str) -> Result<(), CtlError> {
    let named = |error: io::Error| CtlError::new(format!("{}: {error}", path.display()));
    let refused = |what: &str| {
        let path = path.display();
        Err(CtlError::new(format!(
            "{path} {what} since its import was interrupted; restore the original file to resume; {remedy}"
        )))
    };
    match hash_of(file, known.length).map_err(named)? {
        None => refused("was shortened"),
        Some(hash) if hash != known.hash => refused("was changed"),
        Some(_)
            if !ends_line(file, known.length).map_err(named)?
                && file.metadata().map_err(named)?.len() > known.length =>
        {
            refused("has a different last line")
        }
        Some(_) => Ok(()),
    }
}

/// Returns the record of a file with the same contents that was moved from another path.
fn moved(imports: &Path, hash: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(imports).into_iter().flatten().filter_map(Result::ok);
    entries.map(|entry| entry.path()).find(|path| {
        let is_record = path.extension().is_some_and(|extension| extension == "json");
        is_record && Record::load(path).is_ok_and(|record| record.hash == hash && !record.file.exists())
    })
}

fn hex(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "{\"ops\":[]}\n{\"ops\":[1]}\n";

    struct Bench {
        temp: tempfile::TempDir,
        path: PathBuf,
    }

    impl Bench {
        /// Creates the record of an interrupted import of `TEXT`.
        fn new() -> (Bench, Record, PathBuf) {
            let temp = tempfile::tempdir().expect("temp dir");
            let path = temp.path().join("in.jsonl");
            let bench = Bench { temp, path };
            let (record, at, was_known) = bench.find(TEXT).expect("a new record");
            assert!(!was_known);
            record.save(&at).expect("saves");
            (bench, record, at)
        }

        fn find(&self, text: &str) -> Result<(Record, PathBuf, bool), CtlError> {
            std::fs::write(&self.path, text).expect("writes");
            find(self.temp.path(), &self.path, &mut File::open(&self.path).expect("opens"))
        }
    }

    #[test]
    fn a_file_that_is_the_same_or_has_grown_continues() {
        let (bench, record, at) = Bench::new();
        let (again, found_at, was_known) = bench.find(TEXT).expect("finds");
        assert_eq!((again, found_at, was_known), (record.clone(), at, true));
        let (grown, _, _) = bench.find(&format!("{TEXT}more\n")).expect("finds");
        assert_eq!((grown.origin, grown.length), (record.origin, TEXT.len() as u64 + 5));
    }

    #[test]
    fn a_file_that_was_shortened_or_changed_is_refused_by_name() {
        let (bench, _, _) = Bench::new();
        for (text, what) in [(&TEXT[..5], "shortened"), ("", "shortened"), (TEXT.replace('1', "2").as_str(), "changed")]
        {
            let error = bench.find(text).expect_err(text).message;
            assert!(error.contains(what) && error.contains("in.jsonl") && error.contains("remove "), "{error}");
        }
        bench.find(TEXT).expect("the file as it was");
    }

    /// Two commands that import the same file at the same time must not create two records.
    #[test]
    fn p06_records_are_read_and_changed_by_one_command_at_a_time() {
        let (bench, _, at) = Bench::new();
        let held = lock_of(&at).expect("locks");
        let other = File::open(bench.temp.path().join("lock")).expect("opens");
        assert!(matches!(other.try_lock(), Err(std::fs::TryLockError::WouldBlock)));
        drop(held);
        other.try_lock().expect("is free");
        for _ in 0..2 {
            remove(&at).expect("removes it, or finds that another command has");
        }
        assert!(!at.exists());
    }

    #[test]
    fn a_last_line_that_went_on_is_refused() {
        let (bench, _, _) = Bench::new();
        let (record, at, _) = bench.find(&format!("{TEXT}{{\"ops\"")).expect("grows");
        record.save(&at).expect("saves");
        assert!(bench.find(&format!("{TEXT}{{\"ops\":[2]}}\n")).expect_err("refuses").message.contains("last line"));
        bench.find(&format!("{TEXT}{{\"ops\"\nmore")).expect("its line break was missing");
    }

    #[test]
    fn every_flipped_byte_and_every_cut_of_a_record_is_refused() {
        let (bench, _, at) = Bench::new();
        let good = std::fs::read(&at).expect("reads");
        for place in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[place] ^= 1 << bit;
                std::fs::write(&at, &bad).expect("writes");
                match bench.find(TEXT) {
                    Err(error) => {
                        assert!(error.message.contains("damaged") && error.message.contains("remove "), "{error}")
                    }
                    // Trailing whitespace has no meaning.
                    Ok((found, ..)) => assert_eq!((Record::load(&at).as_ref(), place), (Ok(&found), good.len() - 1)),
                }
            }
            std::fs::write(&at, &good[..place]).expect("writes");
            assert!(bench.find(TEXT).is_err() || place == good.len() - 1, "cut at {place}");
        }
    }

    #[test]
    fn a_moved_file_and_a_record_of_an_earlier_version_are_found() {
        let (bench, record, at) = Bench::new();
        let elsewhere = bench.temp.path().join("moved.jsonl");
        std::fs::rename(&bench.path, &elsewhere).expect("moves");
        let (found, ..) =
            find(bench.temp.path(), &elsewhere, &mut File::open(&elsewhere).expect("opens")).expect("finds");
        assert_eq!(found.origin, record.origin);
        assert!(!at.exists(), "it was renamed");
        let (bench, record, at) = Bench::new();
        std::fs::remove_file(at).expect("removes");
        let former = serde_json::json!({ "origin": record.origin, "file": "in.jsonl", "heard": 1, "rejected": 0 });
        let text = former.to_string();
        std::fs::write(bench.temp.path().join(format!("{}.json", &record.hash[..32])), text).expect("writes");
        let (found, _, was_known) = bench.find(TEXT).expect("finds");
        assert_eq!((found.origin, found.heard, was_known), (record.origin, OriginCounter(1), true));
    }
}
