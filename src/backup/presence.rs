//! Checks that the pieces referenced by backups exist with their lengths, from a listing and without reading them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::lock::Lock;
use super::manifest::Manifest;
use super::repository::{PIECES, Repository, RepositoryError};
use gravwell_model::ChunkId;
use gravwell_transport::trust::encrypted_stream::sealed_length;

/// Interval of the check during continuous backup while nothing is committed.
const EVERY: Duration = Duration::from_secs(3600);

impl Repository {
    /// Returns names and lengths of the stored pieces.
    pub(super) fn stored(&self) -> Result<BTreeMap<String, u64>, RepositoryError> {
        let listed = self.store().list(PIECES)?;
        let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        Ok(listed.into_iter().map(|listed| (name(&listed.name), listed.bytes)).collect())
    }

    /// Returns the pieces of a backup that are not stored or have the wrong length.
    pub(super) fn lost(&self, manifest: &Manifest, stored: &BTreeMap<String, u64>) -> BTreeSet<String> {
        let length = |bytes| if self.is_sealed() { sealed_length(bytes) } else { bytes };
        let of_log = manifest.segments.iter().flat_map(|segment| segment.lengths());
        let of_log = of_log.filter(|(piece, bytes)| stored.get(*piece) != Some(&length(*bytes)));
        let is_lost = |(piece, bytes): &(&str, Option<u64>)| match (stored.get(*piece), bytes) {
            (None, _) => true,
            (Some(found), Some(bytes)) => *found != length(*bytes),
            // Not recorded by earlier versions; no chunk is empty.
            (Some(found), None) => *found <= length(0),
        };
        let chunks = manifest.chunk_lengths().filter(is_lost);
        of_log.map(|(piece, _)| piece).chain(chunks.map(|(piece, _)| piece)).map(str::to_owned).collect()
    }
}

/// Pieces of the last backup that the store has lost, which must be stored again.
#[derive(Debug, Default)]
pub struct Losses {
    looked: Option<Instant>,
    lost: BTreeSet<String>,
}

impl Losses {
    /// Checks the store for lost pieces of `manifest`, the last one written there, and removes leftovers of interrupted
    /// writes. Does nothing and returns `false` if the last check was less than an hour ago: before a manifest is
    /// written, [`Losses::are_stored`] checks in any case. The caller holds the lock.
    ///
    /// # Errors
    /// Returns an error if the store cannot be listed.
    pub fn look(&mut self, repository: &Repository, manifest: Option<&Manifest>) -> Result<bool, RepositoryError> {
        if self.looked.is_some_and(|looked| looked.elapsed() < EVERY) {
            return Ok(false);
        }
        repository.store().tidy()?;
        repository.store().keep_room();
        self.lost = match manifest {
            Some(manifest) => repository.lost(manifest, &repository.stored()?),
            None => BTreeSet::new(),
        };
        self.looked = Some(Instant::now());
        Ok(true)
    }

    /// Checks that the pieces of a manifest that is about to be written are stored, except those in `new`, which were
    /// stored just now. Notes what is lost.
    ///
    /// # Errors
    /// Returns an error if the store cannot be listed.
    pub fn are_stored(
        &mut self,
        repository: &Repository,
        manifest: &Manifest,
        new: &BTreeSet<String>,
    ) -> Result<bool, RepositoryError> {
        let mut lost = repository.lost(manifest, &repository.stored()?);
        lost.retain(|piece| !new.contains(piece));
        let is_whole = lost.is_empty();
        self.lost.append(&mut lost);
        Ok(is_whole)
    }

    /// Returns the chunks of `manifest` of which the pieces are not lost, each with its piece and its length. Pieces of which
    /// the manifest does not record the length are read; corrupt ones are noted as lost.
    ///
    /// # Errors
    /// Returns an error if the store cannot be reached or the lock was lost.
    pub fn chunks_left(
        &mut self,
        repository: &Repository,
        lock: &Lock<'_>,
        manifest: Option<&Manifest>,
    ) -> Result<BTreeMap<ChunkId, (String, u64)>, RepositoryError> {
        let mut left = BTreeMap::new();
        let Some(manifest) = manifest else { return Ok(left) };
        let ids = manifest.chunks.iter().map(|(id, _)| *id);
        for (id, (piece, bytes)) in ids.zip(manifest.chunk_lengths()) {
            if self.lost.contains(piece) {
                continue;
            }
            let bytes = match bytes {
                Some(bytes) => bytes,
                None => {
                    lock.keep()?;
                    match repository.piece(piece) {
                        Ok(contents) => contents.len() as u64,
                        Err(error @ RepositoryError::Damaged { .. }) => {
                            tracing::warn!(%error, "damaged piece found; storing it again");
                            self.lost.insert(piece.to_owned());
                            continue;
                        }
                        Err(error) => return Err(error),
                    }
                }
            };
            left.insert(id, (piece.to_owned(), bytes));
        }
        Ok(left)
    }

    /// Returns whether the store has lost a piece.
    #[must_use]
    pub fn has(&self, piece: &str) -> bool {
        self.lost.contains(piece)
    }

    /// Records that a piece was stored, and returns whether it was lost before.
    pub fn stored(&mut self, piece: &str) -> bool {
        self.lost.remove(piece)
    }
}
