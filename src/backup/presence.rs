//! Whether the pieces that backups name are in their place: a listing tells it, and nothing is read.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::manifest::Manifest;
use super::repository::{PIECES, Repository, RepositoryError};
use crate::codec::sealed::sealed_length;

/// Who backs up again and again looks into the place this often.
const EVERY: Duration = Duration::from_secs(3600);

impl Repository {
    /// Names and lengths of the pieces that are stored.
    pub(super) fn stored(&self) -> Result<BTreeMap<String, u64>, RepositoryError> {
        let listed = self.store().list(PIECES)?;
        let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        Ok(listed.into_iter().map(|listed| (name(&listed.name), listed.bytes)).collect())
    }

    /// The pieces of a backup that are not among those that are stored, or not as long as they have to be.
    pub(super) fn lost(&self, manifest: &Manifest, stored: &BTreeMap<String, u64>) -> BTreeSet<String> {
        let length = |bytes| if self.is_sealed() { sealed_length(bytes) } else { bytes };
        let of_log = manifest.segments.iter().flat_map(|segment| segment.lengths());
        let of_log = of_log.filter(|(piece, bytes)| stored.get(*piece) != Some(&length(*bytes)));
        let chunks = manifest.chunks.iter().map(|(_, piece)| piece.as_str());
        let chunks = chunks.filter(|piece| stored.get(*piece).is_none_or(|bytes| *bytes == 0));
        of_log.map(|(piece, _)| piece).chain(chunks).map(str::to_owned).collect()
    }
}

/// The pieces of the last backup that its place has lost, so that they are stored again.
#[derive(Debug, Default)]
pub struct Losses {
    looked: Option<Instant>,
    lost: BTreeSet<String>,
}

impl Losses {
    /// Looks into the place for the pieces of `manifest`, which was written last there, and for what was left unfinished; not more
    /// often than every hour. The caller holds the lock.
    ///
    /// # Errors
    /// When the place cannot be listed.
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

    /// Whether the place has lost a piece.
    #[must_use]
    pub fn has(&self, piece: &str) -> bool {
        self.lost.contains(piece)
    }

    /// Notes that a piece is stored; says whether it was lost.
    pub fn stored(&mut self, piece: &str) -> bool {
        self.lost.remove(piece)
    }
}
