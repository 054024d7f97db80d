//! How the generations of a log came about: a small file beside the log.
//!
//! The log's head file says which generations there are and what they share. Why a generation was begun decides what a
//! member does with what it has beyond the shared part, so it is kept, too; a generation of which the reason is not known is
//! left to a person.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::codec::admin::{Beginning, GenerationInfo};
use crate::env::data_dir::{DirectoryError, replace_file};
use crate::model::{Generation, LineageEntry, LogId, Seq};

const FILE: &str = "generations.json";

/// The generation to begin after those that are known. There may be others, begun elsewhere: it is the second in which it
/// begins, so none of them has its number, and members tell them apart.
#[must_use]
pub fn after(known: Generation, now_ms: u64) -> Generation {
    let seconds = u32::try_from(now_ms / 1000).unwrap_or(u32::MAX);
    Generation(known.0.saturating_add(1).max(seconds))
}

#[derive(Default, Serialize, Deserialize)]
struct File {
    log_id: Option<LogId>,
    generations: BTreeMap<u32, Note>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Note {
    shared_to: Seq,
    beginning: Beginning,
    time_ms: u64,
}

fn read(path: &Path, log_id: LogId) -> File {
    let text = std::fs::read_to_string(path.join(FILE)).unwrap_or_default();
    let file: File = serde_json::from_str(&text).unwrap_or_default();
    if file.log_id == Some(log_id) { file } else { File { log_id: Some(log_id), ..File::default() } }
}

/// Records how a generation of the log in the data directory `path` began.
///
/// # Errors
/// When the file cannot be written.
pub fn note(
    path: &Path,
    log_id: LogId,
    entry: LineageEntry,
    beginning: Beginning,
    time_ms: u64,
) -> Result<(), DirectoryError> {
    let mut file = read(path, log_id);
    file.generations.insert(entry.generation.0, Note { shared_to: entry.shared_to, beginning, time_ms });
    let text = serde_json::to_string_pretty(&file).unwrap_or_default();
    replace_file(&path.join(FILE), text.as_bytes())
}

/// What is known of the generations in `lineage`, oldest first.
#[must_use]
pub fn list(path: &Path, log_id: LogId, lineage: &[LineageEntry]) -> Vec<GenerationInfo> {
    let file = read(path, log_id);
    let known = |entry: &LineageEntry| {
        let note = file.generations.get(&entry.generation.0).filter(|note| note.shared_to == entry.shared_to);
        let (generation, shared_to) = (entry.generation, entry.shared_to);
        match note {
            Some(Note { beginning, time_ms, .. }) => {
                Some(GenerationInfo { generation, shared_to, beginning: *beginning, time_ms: *time_ms })
            }
            None if generation == Generation(1) => {
                Some(GenerationInfo { generation, shared_to, beginning: Beginning::Created, time_ms: 0 })
            }
            None => None,
        }
    };
    lineage.iter().filter_map(known).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p05_generations_that_are_begun_apart_get_different_numbers() {
        let (early, late) = (after(Generation(1), 1_764_000_000_000), after(Generation(1), 1_764_000_001_000));
        assert!(Generation(1) < early && early < late);
        assert_eq!(after(late, 0), Generation(late.0 + 1), "clocks may go wrong");
    }

    #[test]
    fn a_generation_whose_reason_is_not_known_is_left_out() {
        let temp = tempfile::tempdir().expect("temp dir");
        let log = LogId([1; 16]);
        let entry =
            |generation, shared_to| LineageEntry { generation: Generation(generation), shared_to: Seq(shared_to) };
        let lineage = [entry(1, 0), entry(2, 7), entry(3, 9)];
        note(temp.path(), log, lineage[1], Beginning::Recovered, 5).expect("writes");
        let begun = |log| list(temp.path(), log, &lineage).iter().map(|info| info.beginning).collect::<Vec<_>>();
        assert_eq!(begun(log), [Beginning::Created, Beginning::Recovered]);
        assert_eq!(begun(LogId([2; 16])), [Beginning::Created], "another log's notes do not count");
        note(temp.path(), log, entry(3, 8), Beginning::Restored, 5).expect("writes");
        assert_eq!(begun(log), [Beginning::Created, Beginning::Recovered], "it shares something else");
    }
}
