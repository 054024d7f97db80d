//! Which chunks of contents a store lacks.

use crate::chunks::{ChunkStore, Part, decode_index};
use crate::codec::chunks::{Lacking, NAMES_MAX};
use crate::model::ChunkId;

/// What a store lacks of contents, and what of them can never be had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// What is missing.
    pub lacking: Lacking,
    /// A chunk that is named as a list of chunks and is none.
    pub malformed: Option<ChunkId>,
}

/// The parts that an index chunk lists; `None` when it is not there, or damaged: it counts as missing then.
///
/// # Errors
/// When it is there and not a list of chunks, or the store cannot be read.
pub fn parts_of(store: &ChunkStore, id: &ChunkId) -> Result<Option<Vec<Part>>, String> {
    match store.read(id) {
        Ok(Some(raw)) => decode_index(&raw).map(Some).map_err(|error| format!("chunk {id} is no list: {error}")),
        Ok(None) | Err(crate::chunks::ChunkError::Damaged { .. }) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// All parts of a content in order; `None` when one of its index chunks is not there.
///
/// # Errors
/// As [`parts_of`].
pub fn all_parts(store: &ChunkStore, index: &[ChunkId]) -> Result<Option<Vec<Part>>, String> {
    let mut all = Vec::new();
    for id in index {
        let Some(parts) = parts_of(store, id)? else { return Ok(None) };
        all.extend(parts);
    }
    Ok(Some(all))
}

/// Which of `ids` are missing. With `are_indexes` they are lists of chunks, and what they list counts, too. Chunks that are
/// there begin their grace period anew.
#[must_use]
pub fn lacking(store: &ChunkStore, ids: &[ChunkId], are_indexes: bool) -> Checked {
    let mut checked = Checked { lacking: Lacking { ids: store.missing(ids), more: false }, malformed: None };
    if are_indexes {
        // Behind a list that is missing more may be missing.
        checked.lacking.more = !checked.lacking.ids.is_empty();
        for id in ids.iter().filter(|id| !checked.lacking.ids.contains(id)).copied().collect::<Vec<_>>() {
            match parts_of(store, &id) {
                Ok(Some(parts)) => {
                    let named: Vec<ChunkId> = parts.iter().map(|part| part.id).collect();
                    checked.lacking.ids.extend(store.missing(&named));
                }
                Ok(None) => {
                    checked.lacking.ids.push(id);
                    checked.lacking.more = true;
                }
                Err(error) => {
                    tracing::warn!(error, "a content is malformed");
                    checked.malformed = Some(id);
                }
            }
            if checked.lacking.ids.len() > NAMES_MAX {
                checked.lacking.more = true;
                break;
            }
        }
    }
    let mut seen = std::collections::HashSet::new();
    checked.lacking.ids.retain(|id| seen.insert(*id));
    checked.lacking.ids.truncate(NAMES_MAX);
    checked
}
