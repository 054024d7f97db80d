//! What is known of an import that was interrupted: a small file beside the data, with a checksum.
//!
//! A record is found by the path of the file that is imported, or, when that was moved, by its contents. It holds for as long
//! as the file begins with the bytes that were there when the import started: a file that has grown continues, one that was
//! shortened or changed is refused, and so is a record that is damaged. "No record" would mean that everything is committed a
//! second time.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::env::data_dir::replace_file;
use crate::model::{Origin, OriginCounter};

use super::CtlError;
use super::write::new_origin;

/// One import.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Origin of its transactions.
    pub origin: Origin,
    /// Absolute path of what is imported.
    pub file: PathBuf,
    /// Last transaction of which the outcome was reported.
    #[serde(default)]
    pub heard: OriginCounter,
    /// Rejections among those.
    #[serde(default)]
    pub rejected: u64,
    /// Bytes of the file that belong to this import.
    #[serde(default)]
    pub length: u64,
    /// BLAKE3 of those bytes, hexadecimal.
    #[serde(default)]
    pub hash: String,
    /// The last transaction of the import, once all of them were sent and answered. They may wait in an outbox still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<OriginCounter>,
}

impl Record {
    /// A record of an import that has not started.
    pub(super) fn new(file: PathBuf) -> Result<Record, CtlError> {
        let (heard, rejected) = (OriginCounter(0), 0);
        Ok(Record { origin: new_origin()?, file, heard, rejected, length: 0, hash: String::new(), last: None })
    }

    /// Writes it to `path`, whole or not at all.
    pub(super) fn save(&self, path: &Path) -> Result<(), CtlError> {
        let sealed = Sealed { sum: self.sum().map_err(CtlError::new)?, record: self.clone() };
        let text = serde_json::to_string(&sealed).map_err(CtlError::new)?;
        replace_file(path, text.as_bytes()).map_err(CtlError::new)
    }

    /// BLAKE3 of what it says, hexadecimal.
    fn sum(&self) -> serde_json::Result<String> {
        Ok(blake3::hash(serde_json::to_string(self)?.as_bytes()).to_hex().to_string())
    }

    fn load(path: &Path) -> Result<Record, String> {
        let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
        let Sealed { sum, record } = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        // Earlier versions wrote no checksum, and no hash of the file, which was the record's name.
        let is_earlier = sum.is_empty() && record.hash.is_empty() && record.length == 0;
        // Read and written again it must be the same: what is not understood is damage, too.
        let again = serde_json::to_string(&Sealed { sum: sum.clone(), record: record.clone() });
        let is_whole =
            sum == record.sum().map_err(|error| error.to_string())? && again.is_ok_and(|again| again == text);
        if is_earlier || is_whole { Ok(record) } else { Err("the checksum does not match".into()) }
    }
}

/// A record with its checksum, in one JSON object.
#[derive(Serialize, Deserialize)]
struct Sealed {
    #[serde(flatten)]
    record: Record,
    #[serde(default)]
    sum: String,
}

/// BLAKE3 of the first `length` bytes; `None` when there are fewer.
fn hash_of(file: &mut File, length: u64) -> io::Result<Option<String>> {
    file.rewind()?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file.by_ref().take(length))?;
    Ok((hasher.count() == length).then(|| hasher.finalize().to_hex().to_string()))
}

/// Whether the line at the end of the first `length` bytes ends there, so that more can follow.
fn ends_line(file: &mut File, length: u64) -> io::Result<bool> {
    file.seek(io::SeekFrom::Start(length.saturating_sub(1)))?;
    let mut around = [0; 2];
    let read = file.read(&mut around)?;
    Ok(around[..read].contains(&b'\n') || around[..read].ends_with(b"\r"))
}

/// Finds or makes the record of the import of `path`; with it, where it is and whether it was there.
///
/// # Errors
/// When the record is damaged, or about other contents than the file has.
pub(super) fn find(imports: &Path, path: &Path, file: &mut File) -> Result<(Record, PathBuf, bool), CtlError> {
    let named = |error: io::Error| CtlError::new(format!("{}: {error}", path.display()));
    let absolute = path.canonicalize().map_err(named)?;
    let length = file.metadata().map_err(named)?.len();
    let hash = hash_of(file, length).map_err(named)?;
    let hash = hash.ok_or_else(|| CtlError::new(format!("{}: it becomes shorter while it is read", path.display())))?;
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
    let remedy = format!("to import all of it as new, remove {}", known_at.display());
    let known = Record::load(&known_at).map_err(|error| {
        let (what, path) = (known_at.display(), path.display());
        CtlError {
            message: format!(
                "the record {what} of the interrupted import of {path} is damaged: {error}; what was committed already is \
                 unknown: compare with `gravwell-logctl export` first; {remedy}"
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

/// The record of an import from `path` of which all was sent, when the file does not begin as it did then; with its last
/// transaction and where it is. Such a record says nothing of the file any more once all of it is decided.
pub(super) fn replaced(imports: &Path, path: &Path, file: &mut File) -> Option<(OriginCounter, Record, PathBuf)> {
    let absolute = path.canonicalize().ok()?;
    let at = imports.join(format!("{}.json", hex(absolute.as_os_str().as_encoded_bytes())));
    let record = Record::load(&at).ok()?;
    let last = record.last?;
    same_start(&record, path, file, "").is_err().then_some((last, record, at))
}

/// Refuses a file that does not begin as it did when its import started.
fn same_start(known: &Record, path: &Path, file: &mut File, remedy: &str) -> Result<(), CtlError> {
    let named = |error: io::Error| CtlError::new(format!("{}: {error}", path.display()));
    let refused = |what: &str| {
        let path = path.display();
        Err(CtlError::new(format!(
            "{path} {what} since its import was interrupted: bring back the file as it was to resume; {remedy}"
        )))
    };
    match hash_of(file, known.length).map_err(named)? {
        None => refused("has become shorter"),
        Some(hash) if hash != known.hash => refused("has changed"),
        Some(_)
            if !ends_line(file, known.length).map_err(named)?
                && file.metadata().map_err(named)?.len() > known.length =>
        {
            refused("has another last line")
        }
        Some(_) => Ok(()),
    }
}

/// The record of a file with the same contents that has another path now.
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
        /// An import of `TEXT` that was interrupted.
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
        for (text, what) in [(&TEXT[..5], "shorter"), ("", "shorter"), (TEXT.replace('1', "2").as_str(), "changed")] {
            let error = bench.find(text).expect_err(text).message;
            assert!(error.contains(what) && error.contains("in.jsonl") && error.contains("remove "), "{error}");
        }
        bench.find(TEXT).expect("the file as it was");
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
                    // Blanks at the end carry nothing.
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
        assert!(!at.exists(), "it has another name now");
        let (bench, record, at) = Bench::new();
        std::fs::remove_file(at).expect("removes");
        let former = serde_json::json!({ "origin": record.origin, "file": "in.jsonl", "heard": 1, "rejected": 0 });
        let text = former.to_string();
        std::fs::write(bench.temp.path().join(format!("{}.json", &record.hash[..32])), text).expect("writes");
        let (found, _, was_known) = bench.find(TEXT).expect("finds");
        assert_eq!((found.origin, found.heard, was_known), (record.origin, OriginCounter(1), true));
    }
}
