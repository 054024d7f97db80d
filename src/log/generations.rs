//! Reasons why the generations of a log were started: a small file next to the log and in the directory of every member.
//!
//! The head file of the log lists the generations and what they share. The reason why a generation was started decides
//! what a member does with its entries past the shared part, so the reason is stored as well; if it is unknown, an
//! operator has to decide. The disk of the datastore may be lost several times: members receive the reasons when they
//! connect, and a new log receives them from the member from which it is built.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::head::read_head;
use super::repair::LOG;
use gravwell_env::data_dir::{DirectoryError, replace_file};
use gravwell_env::fs::first_free;
use gravwell_env::{Clock, Entropy, RealFs, SystemClock, SystemEntropy, checksummed_text};
use gravwell_model::codec::admin::{GenerationCause, GenerationInfo};
use gravwell_model::{Generation, LineageEntry, LogId, Seq};

/// Name of the file.
pub const FILE: &str = "generations.json";
/// Version of the format with a checksum.
const VERSION: u32 = 2;
/// Maximum number of generations stored; a log has fewer.
pub const KNOWN_MAX: usize = 4096;

/// The reasons cannot be read or stored.
#[derive(Debug, thiserror::Error)]
pub enum NotesError {
    /// The file is corrupt.
    #[error(
        "{path}, which records why the log's generations started, is damaged ({what}) and is not replaced; restore it \
         from a backup of the host, or run `gravwell-logctl generations set N restored` (or `recovered`, or \
         `repaired`) for every generation, which keeps the damaged file",
        path = path.display()
    )]
    Damaged {
        /// Path of the file.
        path: PathBuf,
        /// Description of the damage.
        what: String,
    },
    /// The operating system reports an error.
    #[error("{0}")]
    Directory(#[from] DirectoryError),
    /// No generation number is left.
    #[error("generation {0} is too close to the maximum, {max}: no other can start", max = Generation::MAX)]
    NoNumber(Generation),
    /// The operating system returns no random bytes.
    #[error("cannot draw a generation number: {0}; try again")]
    Random(std::io::Error),
}

/// Draws the number of a generation that starts now: higher than `known` and than all plausible numbers in `path` and `others`.
///
/// # Errors
/// If the notes in `path` cannot be read, or no number is left. Damaged notes are ignored: they are renamed when the
/// next note is written, and the number is random enough to differ from theirs.
pub fn next(
    path: &Path,
    log_id: LogId,
    known: Generation,
    others: &[GenerationInfo],
) -> Result<Generation, NotesError> {
    let noted = match all(path, log_id) {
        Err(NotesError::Damaged { .. }) => Vec::new(),
        noted => noted?,
    };
    // Members or a backup may claim a false number, which must not exhaust the numbers.
    let told = noted.iter().chain(others).map(|info| info.generation).filter(|generation| generation.is_plausible());
    let known = told.fold(known, Generation::max);
    let mut random = [0; 8];
    SystemEntropy.fill(&mut random).map_err(NotesError::Random)?;
    Generation::after(known, SystemClock.now_ms(), u64::from_le_bytes(random)).ok_or(NotesError::NoNumber(known))
}

/// The file without a checksum, as written by earlier versions.
#[derive(Deserialize)]
struct Bare {
    #[serde(default)]
    version: Option<u32>,
    log_id: Option<LogId>,
    #[serde(default)]
    generations: std::collections::BTreeMap<u64, BareNote>,
}

#[derive(Deserialize)]
struct BareNote {
    shared_to: Seq,
    beginning: GenerationCause,
    time_ms: u64,
}

#[derive(Clone, Serialize, Deserialize)]
struct File {
    version: u32,
    log_id: LogId,
    known: Vec<GenerationInfo>,
    #[serde(skip)]
    is_bare: bool,
}

impl File {
    fn parse(text: &str) -> Result<File, String> {
        if let Ok(Bare { version: None, log_id: Some(log_id), generations }) = serde_json::from_str(text) {
            let info = |(number, note): (u64, BareNote)| GenerationInfo {
                generation: Generation(number),
                shared_to: note.shared_to,
                beginning: note.beginning,
                time_ms: note.time_ms,
            };
            let known = generations.into_iter().map(info).collect();
            return Ok(File { version: VERSION, log_id, known, is_bare: true });
        }
        let file: File = serde_json::from_str(checksummed_text::open(text)?).map_err(|error| error.to_string())?;
        match file.version {
            VERSION => Ok(file),
            other => Err(format!("version {other} is unknown to this program")),
        }
    }

    fn find(&self, entry: &LineageEntry) -> Option<&GenerationInfo> {
        self.known.iter().find(|info| is_of(info, entry))
    }
}

fn is_of(info: &GenerationInfo, entry: &LineageEntry) -> bool {
    info.generation == entry.generation && info.shared_to == entry.shared_to
}

fn read(path: &Path) -> Result<Option<File>, NotesError> {
    let path = path.join(FILE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(DirectoryError::Io { path, source }.into()),
    };
    let parsed = std::str::from_utf8(&bytes).map_err(|error| error.to_string()).and_then(File::parse);
    parsed.map(Some).map_err(|what| NotesError::Damaged { path, what })
}

/// Renames a file that must not be overwritten.
fn set_aside(path: &Path, why: &str) -> Result<(), DirectoryError> {
    let file = path.join(FILE);
    let Some(kept) = first_free(|number| path.join(format!("{FILE}.{why}-{number}"))) else { return Ok(()) };
    tracing::warn!(kept = %kept.display(), "kept the previous {FILE}");
    std::fs::rename(&file, &kept).map_err(|source| DirectoryError::Io { path: kept, source })
}

/// Records how generations of the log started. Known generations are not changed. A file that is damaged or belongs to
/// another log is kept under another name.
///
/// # Errors
/// If the file cannot be read or written.
pub fn learn(path: &Path, log_id: LogId, infos: &[GenerationInfo]) -> Result<(), NotesError> {
    change(path, log_id, |known| {
        for info in infos {
            let is_known =
                known.iter().any(|known| known.generation == info.generation && known.shared_to == info.shared_to);
            if !is_known && known.len() < KNOWN_MAX {
                known.push(info.clone());
            }
        }
    })
}

/// Records how one generation of the log in `path` started and replaces earlier records of it.
///
/// # Errors
/// If the file cannot be read or written.
pub fn set(path: &Path, log_id: LogId, info: GenerationInfo) -> Result<(), NotesError> {
    change(path, log_id, |known| {
        known.retain(|known| known.generation != info.generation || known.shared_to != info.shared_to);
        known.push(info);
    })
}

fn change(path: &Path, log_id: LogId, how: impl FnOnce(&mut Vec<GenerationInfo>)) -> Result<(), NotesError> {
    let found = match read(path) {
        Ok(found) => found,
        Err(NotesError::Damaged { .. }) => {
            set_aside(path, "damaged")?;
            None
        }
        Err(error) => return Err(error),
    };
    let file = match found {
        Some(file) if file.log_id == log_id => Some(file),
        Some(_) => {
            set_aside(path, "of-another-log")?;
            None
        }
        None => None,
    };
    let before = file.as_ref().filter(|file| !file.is_bare).map(|file| file.known.clone());
    let mut known = file.map(|file| file.known).unwrap_or_default();
    how(&mut known);
    if before.as_ref() == Some(&known) || (before.is_none() && known.is_empty()) {
        return Ok(());
    }
    known.sort_by_key(|info| (info.generation, info.shared_to));
    let file = File { version: VERSION, log_id, known, is_bare: false };
    let text = serde_json::to_string_pretty(&file).expect("invariant: it has text keys only");
    Ok(replace_file(&path.join(FILE), checksummed_text::seal(&text).as_bytes())?)
}

/// Returns everything that `path` records about the generations of the log, including those that are not ancestors of
/// the current one.
///
/// # Errors
/// If the file is damaged or cannot be read.
pub fn all(path: &Path, log_id: LogId) -> Result<Vec<GenerationInfo>, NotesError> {
    Ok(read(path)?.filter(|file| file.log_id == log_id).map(|file| file.known).unwrap_or_default())
}

/// Returns the records of the generations in `lineage`, oldest first.
///
/// # Errors
/// If the file is damaged or cannot be read.
pub fn list(path: &Path, log_id: LogId, lineage: &[LineageEntry]) -> Result<Vec<GenerationInfo>, NotesError> {
    let file = read(path)?.filter(|file| file.log_id == log_id);
    let known = |entry: &LineageEntry| {
        let (generation, shared_to) = (entry.generation, entry.shared_to);
        let created = || GenerationInfo { generation, shared_to, beginning: GenerationCause::Created, time_ms: 0 };
        let found = file.as_ref().and_then(|file| file.find(entry)).cloned();
        found.or_else(|| (generation == Generation(1)).then(created))
    };
    Ok(lineage.iter().filter_map(known).collect())
}

/// Returns the id and the lineage of the log in the data directory `path`, read from its head file alone.
///
/// # Errors
/// If they cannot be read; the message states why.
pub fn of_log(path: &Path) -> Result<(LogId, Vec<LineageEntry>), String> {
    let found = read_head(&RealFs, &path.join(LOG)).map_err(|error| format!("{}: {error}", path.display()))?;
    let (head, _) = found.map_err(|damage| damage.to_string())?;
    Ok((head.log_id, head.lineage))
}

/// Returns the generations in `lineage` of which `path` does not record how they started, as text.
fn unknown(path: &Path, log_id: LogId, lineage: &[LineageEntry]) -> Result<Vec<String>, NotesError> {
    let listed = list(path, log_id, lineage)?;
    let unknown = lineage.iter().filter(|entry| !listed.iter().any(|info| is_of(info, entry)));
    Ok(unknown.map(|entry| entry.generation.to_string()).collect())
}

/// Describes problems of the reasons that a member stores in `path` for `lineage`. The datastore sends them to the member.
#[must_use]
pub fn problem_of_member(path: &Path, log_id: LogId, lineage: &[LineageEntry]) -> Option<String> {
    match unknown(path, log_id, lineage) {
        Ok(unknown) if unknown.is_empty() => None,
        Ok(unknown) => Some(format!("{FILE} does not record why generation {} of the log started", unknown.join(", "))),
        // On the next connection the member replaces the file and keeps the damaged one.
        Err(NotesError::Damaged { path, what }) => Some(format!("{} is damaged ({what})", path.display())),
        Err(error) => Some(error.to_string()),
    }
}

/// Describes why the reasons in `path` for `lineage` cannot be used: they cannot be read, or some are unknown.
#[must_use]
pub fn problem(path: &Path, log_id: LogId, lineage: &[LineageEntry]) -> Option<String> {
    let unknown = match unknown(path, log_id, lineage) {
        Ok(unknown) => unknown,
        Err(error) => return Some(error.to_string()),
    };
    let first = unknown.first()?;
    Some(format!(
        "{FILE} does not record why generation {} started, so members that had more before it cannot follow \
         automatically; restore the file, or run `gravwell-logctl --data-dir {} generations set {first} restored` (or \
         `recovered`, or `repaired`)",
        unknown.join(", "),
        path.display()
    ))
}

/// Adds a checksum to a file of an earlier version. Changes nothing if the file is damaged.
///
/// # Errors
/// If the file is damaged or cannot be written.
pub fn upgrade(path: &Path) -> Result<(), NotesError> {
    match read(path)? {
        Some(file) if file.is_bare => learn(path, file.log_id, &[]),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(generation: u64, shared_to: u64) -> LineageEntry {
        LineageEntry { generation: Generation(generation), shared_to: Seq(shared_to) }
    }

    fn info(generation: u64, shared_to: u64, beginning: GenerationCause) -> GenerationInfo {
        GenerationInfo { generation: Generation(generation), shared_to: Seq(shared_to), beginning, time_ms: 5 }
    }

    #[test]
    fn p05_a_new_generation_is_above_all_that_are_known() {
        let temp = tempfile::tempdir().expect("temp dir");
        let (log, path) = (LogId([1; 16]), temp.path());
        let next = |known| next(path, log, Generation(known), &[]).expect("draws");
        let first = next(1);
        assert!(first.narrow().is_none() && first.is_plausible());
        assert!(next(first.0) > first);
        // One number of a clock that is decades ahead, and one claim that would leave no number.
        let noted = (4_000_000_000_000 << 11) + 3;
        learn(
            path,
            log,
            &[info(noted, 7, GenerationCause::Restored), info(Generation::MAX.0, 7, GenerationCause::Restored)],
        )
        .expect("writes");
        assert!(next(1).0 > noted && next(first.0).0 > noted);
        assert!(super::next(path, LogId([2; 16]), Generation(1), &[]).expect("draws").0 < noted, "of another log");
        assert!(matches!(super::next(path, log, Generation::MAX, &[]), Err(NotesError::NoNumber(_))));
        let told = [info(noted + 9, 7, GenerationCause::Recovered)];
        assert!(super::next(path, log, first, &told).expect("draws").0 > noted + 9);
        std::fs::write(path.join(FILE), "damaged").expect("writes");
        assert!(next(first.0) > first);
        assert_eq!(std::fs::read(path.join(FILE)).expect("reads"), b"damaged", "the damaged file is kept");
    }

    #[test]
    fn a_generation_whose_reason_is_not_known_is_left_out() {
        let temp = tempfile::tempdir().expect("temp dir");
        let (log, path) = (LogId([1; 16]), temp.path());
        let lineage = [entry(1, 0), entry(2, 7), entry(3, 9)];
        learn(path, log, &[info(2, 7, GenerationCause::Recovered), info(3, 8, GenerationCause::Restored)])
            .expect("writes");
        let begun = |log| {
            let listed = list(path, log, &lineage).expect("reads");
            listed.iter().map(|info| info.beginning).collect::<Vec<_>>()
        };
        assert_eq!(
            begun(log),
            [GenerationCause::Created, GenerationCause::Recovered],
            "the third one shares another sequence"
        );
        for problem in [problem, problem_of_member] {
            assert!(problem(path, log, &lineage).is_some_and(|problem| problem.contains("generation 3")));
        }
        learn(path, log, &[info(2, 7, GenerationCause::Restored)]).expect("writes");
        assert_eq!(begun(log)[1], GenerationCause::Recovered, "known reasons are kept");
        set(path, log, info(3, 9, GenerationCause::Repaired)).expect("writes");
        assert_eq!(begun(log), [GenerationCause::Created, GenerationCause::Recovered, GenerationCause::Repaired]);
        assert_eq!((problem(path, log, &lineage), problem_of_member(path, log, &lineage)), (None, None));
        assert_eq!(begun(LogId([2; 16])), [GenerationCause::Created], "notes of another log are ignored");
        learn(path, LogId([2; 16]), &[info(3, 9, GenerationCause::Restored)]).expect("writes");
        assert!(path.join("generations.json.of-another-log-1").exists());
    }

    #[test]
    fn p10_a_damaged_file_is_refused_and_kept() {
        let temp = tempfile::tempdir().expect("temp dir");
        let (log, path, file) = (LogId([1; 16]), temp.path(), temp.path().join(FILE));
        let lineage = [entry(1, 0), entry(2, 7)];
        learn(path, log, &[info(2, 7, GenerationCause::Recovered)]).expect("writes");
        let good = std::fs::read(&file).expect("reads");
        let is_refused = |bytes: &[u8]| {
            std::fs::write(&file, bytes).expect("writes");
            let is_refused = matches!(list(path, log, &lineage), Err(NotesError::Damaged { .. }));
            is_refused && problem(path, log, &lineage).is_some() && upgrade(path).is_err()
        };
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            // Whitespace at the end has no meaning.
            let is_end = bit / 8 == good.len() - 1 && char::from(bad[bit / 8]).is_whitespace();
            assert!(is_end || is_refused(&bad), "bit {bit}");
        }
        // The last byte is the line end.
        for cut in 0..good.len() - 1 {
            assert!(is_refused(&good[..cut]), "cut to {cut}");
        }
        let bad = &good[..good.len() / 2];
        assert!(is_refused(bad));
        learn(path, log, &[info(2, 7, GenerationCause::Restored)]).expect("writes");
        assert_eq!(std::fs::read(path.join("generations.json.damaged-1")).expect("kept"), bad);
        std::fs::remove_file(&file).expect("removes");
        assert!(problem(path, log, &lineage).is_some(), "a missing reason is reported");
        assert_eq!(problem(path, log, &lineage[..1]), None, "one generation needs no reason");
    }

    #[test]
    fn p12_a_file_without_a_checksum_is_read_and_gets_one() {
        let temp = tempfile::tempdir().expect("temp dir");
        let (log, path, file) = (LogId([1; 16]), temp.path(), temp.path().join(FILE));
        let bare = format!(
            r#"{{"log_id":"{log}","generations":{{"2":{{"shared_to":7,"beginning":"recovered","time_ms":5}}}}}}"#
        );
        std::fs::write(&file, bare).expect("writes");
        let known = |beginning| vec![info(2, 7, beginning)];
        assert_eq!(all(path, log).expect("reads"), known(GenerationCause::Recovered));
        upgrade(path).expect("writes");
        let text = std::fs::read_to_string(&file).expect("reads");
        assert!(checksummed_text::open(&text).is_ok());
        assert_eq!(all(path, log).expect("reads"), known(GenerationCause::Recovered));
    }
}
