//! Repairs a fjall journal of which a power cut left the end in disorder.
//!
//! Pages that were never synced may reach the disk in any order. If that leaves a hole before later bytes, fjall
//! permanently refuses to open the database. The rows after the hole were never guaranteed to survive, and the batches
//! before it are intact, so the newest journal is truncated after its last intact batch. That rolls back data and
//! position together; the state then catches up from its source. Called only after fjall has refused to open.
//!
//! Layout of fjall 3 journals, little-endian. Batch: start `1` | items `u32` | sequence `u64`; then items; then end
//! `3` | xxh3-64 over the items `u64` | `FJL` `3`. Item: `2` | kind `u8` | compression `u8` | keyspace `u64` | key
//! length `u16` | value length `u32` | length as stored `u32` | key | value. Clear: `4` | keyspace `u64`.

use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

const START_BYTES: usize = 13;
const ITEM_HEADER_BYTES: usize = 21;
const CLEAR_BYTES: usize = 9;
const END_BYTES: usize = 13;
const TRAILER: &[u8] = b"FJL\x03";

/// Position at which a journal was truncated.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) journal: PathBuf,
    pub(super) at: u64,
}

/// Truncates the newest journal in `dir` after its last intact batch; `None` if only zeros follow that batch.
pub(super) fn truncate_disordered_end(dir: &Path) -> std::io::Result<Option<Cut>> {
    let mut newest = None;
    for file in std::fs::read_dir(dir)? {
        let path = file?.path();
        let is_journal = path.extension().is_some_and(|extension| extension == "jnl");
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        if let Some(number) = number.filter(|_| is_journal) {
            newest = newest.max(Some((number, path)));
        }
    }
    let Some((_, journal)) = newest else { return Ok(None) };
    let bytes = std::fs::read(&journal)?;
    let end = whole_batches(&bytes);
    if bytes[end..].iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let file = std::fs::OpenOptions::new().write(true).open(&journal)?;
    file.set_len(end as u64)?;
    file.sync_all()?;
    Ok(Some(Cut { journal, at: end as u64 }))
}

/// Returns the length of the longest prefix that consists of intact batches.
fn whole_batches(bytes: &[u8]) -> usize {
    let mut end = 0;
    while let Some(batch) = bytes.get(end..).and_then(batch_bytes) {
        end += batch;
    }
    end
}

/// Returns the length of the batch at the start of `bytes` if it is intact.
fn batch_bytes(bytes: &[u8]) -> Option<usize> {
    let start = bytes.get(..START_BYTES)?;
    if start[0] != 1 {
        return None;
    }
    let items = u32::from_le_bytes(start[1..5].try_into().ok()?);
    let mut at = START_BYTES;
    for _ in 0..items {
        at += item_bytes(bytes.get(at..)?)?;
    }
    let contents = bytes.get(START_BYTES..at)?;
    let end = bytes.get(at..at + END_BYTES)?;
    let sum = u64::from_le_bytes(end[1..9].try_into().ok()?);
    (end[0] == 3 && &end[9..] == TRAILER && sum == xxh3_64(contents)).then_some(at + END_BYTES)
}

fn item_bytes(bytes: &[u8]) -> Option<usize> {
    match bytes.first()? {
        2 => {
            let header = bytes.get(..ITEM_HEADER_BYTES)?;
            let key = u16::from_le_bytes(header[11..13].try_into().ok()?);
            let value = u32::from_le_bytes(header[17..21].try_into().ok()?);
            let length = ITEM_HEADER_BYTES.checked_add(key.into())?.checked_add(usize::try_from(value).ok()?)?;
            (length <= bytes.len()).then_some(length)
        }
        4 => (CLEAR_BYTES <= bytes.len()).then_some(CLEAR_BYTES),
        _ => None,
    }
}
