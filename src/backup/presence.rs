//! Checks that the pieces referenced by backups exist, from a listing and without reading them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::manifest::Manifest;
use super::repository::{PIECES, Repository, RepositoryError};
use crate::codec::sealed::sealed_length;

/// Interval of the check during continuous backup.
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
        let chunks = manifest.chunks.iter().map(|(_, piece)| piece.as_str());
        let chunks = chunks.filter(|piece| stored.get(*piece).is_none_or(|bytes| *bytes == 0));
        of_log.map(|(piece, _)| piece).chain(chunks).map(str::to_owned).collect()
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
    /// writes. Does nothing if the last check was less than an hour ago. The caller holds the lock.
    ///
    /// # Errors
    /// Returns an error if the store cannot be listed.
    pub fn look(&mut self, repository: &Repository, manifest: Option<&Manifest>) -> Result<(), RepositoryError> {
        if self.looked.is_some_and(|looked| looked.elapsed() < EVERY) {
            return Ok(());
        }
        repository.store().tidy()?;
        repository.store().keep_room();
        self.lost = match manifest {
            Some(manifest) => repository.lost(manifest, &repository.stored()?),
            None => BTreeSet::new(),
        };
        self.looked = Some(Instant::now());
        Ok(())
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
