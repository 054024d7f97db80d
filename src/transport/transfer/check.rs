//! Queries for the chunks of contents that a store is missing.

use std::collections::HashSet;

use gravwell_chunks::manifest::{INDEX_FORMAT, INDEX_MAGIC};
use gravwell_chunks::{ChunkError, ChunkStore, Part, decode_index};
use gravwell_model::ChunkId;
use gravwell_model::codec::chunks::{MissingChunks, NAMES_MAX};
use gravwell_model::codec::error::DecodeError;

/// Error returned when the chunks that an index chunk lists are unknown.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The chunk is intact but is not an index, and cannot become one.
    #[error("chunk {id} is referenced as an index chunk but is not one: {reason}")]
    Malformed {
        /// Id of the chunk.
        id: ChunkId,
        /// Decoding error.
        reason: DecodeError,
    },
    /// The index was written by a later version.
    #[error("the index chunk {id} is of a later version ({format}), which this program is too old to read; upgrade it")]
    Later {
        /// Id of the chunk.
        id: ChunkId,
        /// Version of the index format.
        format: u8,
    },
    /// The store cannot be read now.
    #[error(transparent)]
    Store(#[from] ChunkError),
}

/// Result of a query for missing chunks.
#[derive(Debug, Default)]
pub struct Checked {
    /// Missing chunks.
    pub lacking: MissingChunks,
    /// Error of a malformed index, whose list of chunks can never be determined.
    pub malformed: Option<ListError>,
    /// Error that leaves unknown whether chunks are missing.
    pub unknown: Option<ListError>,
}

/// Returns the parts that an index chunk lists; `None` if the chunk is missing or corrupt, which counts as missing.
///
/// # Errors
/// If the parts are unknown, see [`ListError`].
pub fn parts_of(store: &ChunkStore, id: &ChunkId) -> Result<Option<Vec<Part>>, ListError> {
    let raw = match store.read(id) {
        Ok(Some(raw)) => raw,
        Ok(None) | Err(ChunkError::Damaged { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match raw.strip_prefix(&INDEX_MAGIC).and_then(|rest| rest.first()) {
        Some(format) if *format > INDEX_FORMAT => Err(ListError::Later { id: *id, format: *format }),
        _ => decode_index(&raw).map(Some).map_err(|reason| ListError::Malformed { id: *id, reason }),
    }
}

/// Returns all parts of a content in order; `None` if one of its index chunks is missing.
///
/// # Errors
/// See [`parts_of`].
pub fn all_parts(store: &ChunkStore, index: &[ChunkId]) -> Result<Option<Vec<Part>>, ListError> {
    let mut all = Vec::new();
    for id in index {
        let Some(parts) = parts_of(store, id)? else { return Ok(None) };
        all.extend(parts);
    }
    Ok(Some(all))
}

/// Returns which of `ids` are missing. With `are_indexes` these are index chunks, and the chunks that they list are
/// checked too. The grace period of chunks that are stored is restarted.
#[must_use]
pub fn lacking(store: &ChunkStore, ids: &[ChunkId], are_indexes: bool) -> Checked {
    missing_of(store, ids, are_indexes, |ids| store.missing(ids))
}

/// Like [`lacking`], for a member that will reference none of them: grace periods are unchanged.
#[must_use]
pub fn missing_without_renewal(store: &ChunkStore, ids: &[ChunkId], are_indexes: bool) -> Checked {
    missing_of(store, ids, are_indexes, |ids| store.absent(ids))
}

fn missing_of(
    store: &ChunkStore,
    ids: &[ChunkId],
    are_indexes: bool,
    missing: impl Fn(&[ChunkId]) -> Vec<ChunkId>,
) -> Checked {
    // Each id is checked once.
    let mut named = HashSet::new();
    let ids: Vec<ChunkId> = ids.iter().filter(|id| named.insert(**id)).copied().collect();
    let mut checked = Checked { lacking: MissingChunks { ids: missing(&ids), more: false }, ..Checked::default() };
    if are_indexes {
        // A missing index may list further missing chunks.
        checked.lacking.more = !checked.lacking.ids.is_empty();
        let missing_lists: HashSet<ChunkId> = checked.lacking.ids.iter().copied().collect();
        for id in ids.into_iter().filter(|id| !missing_lists.contains(id)) {
            match parts_of(store, &id) {
                Ok(Some(parts)) => {
                    let named: Vec<ChunkId> = parts.iter().map(|part| part.id).collect();
                    checked.lacking.ids.extend(missing(&named));
                }
                Ok(None) => {
                    checked.lacking.ids.push(id);
                    checked.lacking.more = true;
                }
                Err(error @ ListError::Malformed { .. }) => {
                    tracing::warn!(%error, "blob is malformed");
                    checked.malformed = Some(error);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot determine whether a blob is complete");
                    checked.unknown = Some(error);
                }
            }
            if checked.lacking.ids.len() > NAMES_MAX {
                checked.lacking.more = true;
                break;
            }
        }
    }
    let mut seen = HashSet::new();
    checked.lacking.ids.retain(|id| seen.insert(*id));
    checked.lacking.ids.truncate(NAMES_MAX);
    checked
}
