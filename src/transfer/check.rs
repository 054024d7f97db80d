//! Which chunks of contents a store lacks.

use std::collections::HashSet;

use crate::chunks::manifest::{INDEX_FORMAT, INDEX_MAGIC};
use crate::chunks::{ChunkError, ChunkStore, Part, decode_index};
use crate::codec::chunks::{Lacking, NAMES_MAX};
use crate::codec::error::DecodeError;
use crate::model::ChunkId;

/// Why it is not known what a chunk lists.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// It is there, whole, and no list: nor will it ever be one.
    #[error("chunk {id} is named as a list of chunks and is none: {reason}")]
    Malformed {
        /// The chunk.
        id: ChunkId,
        /// What is wrong.
        reason: DecodeError,
    },
    /// It is a list of a later version.
    #[error(
        "the list of chunks {id} is of a later version ({format}): this program is too old to say what it names; upgrade it"
    )]
    Later {
        /// The chunk.
        id: ChunkId,
        /// Version of its layout.
        format: u8,
    },
    /// The store cannot be read at this moment.
    #[error(transparent)]
    Store(#[from] ChunkError),
}

/// What a store lacks of contents, and what of them can never be had.
#[derive(Debug, Default)]
pub struct Checked {
    /// What is missing.
    pub lacking: Lacking,
    /// Why something can never be had.
    pub malformed: Option<ListError>,
    /// Why it is not known whether something is missing.
    pub unknown: Option<ListError>,
}

/// The parts that an index chunk lists; `None` when it is not there, or damaged: it counts as missing then.
///
/// # Errors
/// When it is not known, see [`ListError`].
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

/// All parts of a content in order; `None` when one of its index chunks is not there.
///
/// # Errors
/// As [`parts_of`].
pub fn all_parts(store: &ChunkStore, index: &[ChunkId]) -> Result<Option<Vec<Part>>, ListError> {
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
    lacking_of(store, ids, are_indexes, |ids| store.missing(ids))
}

/// [`lacking`] for a member that will name none of them: nothing becomes of their grace period.
#[must_use]
pub fn lacking_unrenewed(store: &ChunkStore, ids: &[ChunkId], are_indexes: bool) -> Checked {
    lacking_of(store, ids, are_indexes, |ids| store.absent(ids))
}

fn lacking_of(
    store: &ChunkStore,
    ids: &[ChunkId],
    are_indexes: bool,
    missing: impl Fn(&[ChunkId]) -> Vec<ChunkId>,
) -> Checked {
    // One that is named again is looked at once.
    let mut named = HashSet::new();
    let ids: Vec<ChunkId> = ids.iter().filter(|id| named.insert(**id)).copied().collect();
    let mut checked = Checked { lacking: Lacking { ids: missing(&ids), more: false }, ..Checked::default() };
    if are_indexes {
        // Behind a list that is missing more may be missing.
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
                    tracing::warn!(%error, "a content is malformed");
                    checked.malformed = Some(error);
                }
                Err(error) => {
                    tracing::warn!(%error, "it is not known whether a content is complete");
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
