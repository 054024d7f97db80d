//! Checks whether a backup can be restored, without restoring it: its pieces must exist with their lengths, and its
//! segments must continue each other. Segments written by versions that did not check the assembled bytes, and pieces of
//! contents of versions that did not record their lengths, are read, once each.

use std::collections::BTreeMap;

use super::lock::Lock;
use super::manifest::{Manifest, Segment};
use super::repository::{Repository, RepositoryError};
use gravwell_log::backup_stream_check::{Checked, SegmentCheck};

pub(super) struct Soundness<'a> {
    repository: &'a Repository,
    lock: &'a Lock<'a>,
    /// Names and lengths of the stored pieces.
    stored: BTreeMap<String, u64>,
    /// Segments found sound, by a hash of name, pieces and length.
    sound: BTreeMap<[u8; 32], Checked>,
    /// Prefixes of segments found corrupt, by hash. A continuous backup has thousands of backups with the same prefix.
    faulty: BTreeMap<[u8; 32], String>,
    /// Pieces of contents that were read, each with what is wrong with it.
    contents: BTreeMap<String, Option<String>>,
}

impl<'a> Soundness<'a> {
    pub(super) fn new(repository: &'a Repository, lock: &'a Lock<'a>) -> Result<Soundness<'a>, RepositoryError> {
        Ok(Soundness {
            repository,
            lock,
            stored: repository.stored()?,
            sound: BTreeMap::new(),
            faulty: BTreeMap::new(),
            contents: BTreeMap::new(),
        })
    }

    /// Returns the reason why a backup cannot be restored; `None` if no problem was found.
    pub(super) fn fault(&mut self, manifest: &Manifest) -> Result<Option<String>, RepositoryError> {
        let lost = self.repository.lost(manifest, &self.stored);
        if let Some(piece) = lost.first() {
            return Ok(Some(format!(
                "{} of its pieces are missing or incomplete, the first of which is {piece}",
                lost.len()
            )));
        }
        let unmeasured = manifest.chunk_lengths().filter(|(_, bytes)| bytes.is_none());
        for (piece, _) in unmeasured {
            if let Some(fault) = self.check_contents(piece)? {
                return Ok(Some(fault));
            }
        }
        let mut read = manifest.clone();
        for segment in read.segments.iter_mut().filter(|segment| segment.checked.is_none()) {
            match self.check(segment)? {
                Ok(checked) => segment.checked = Some(checked),
                Err(fault) => return Ok(Some(fault)),
            }
        }
        Ok(read.check_links().err())
    }

    /// Reads a piece of contents, and returns what is wrong with it.
    fn check_contents(&mut self, piece: &str) -> Result<Option<String>, RepositoryError> {
        if let Some(known) = self.contents.get(piece) {
            return Ok(known.clone());
        }
        self.lock.keep()?;
        let fault = match self.repository.piece(piece) {
            Ok(_) => None,
            Err(error @ RepositoryError::Damaged { .. }) => Some(error.to_string()),
            Err(error) => return Err(error),
        };
        self.contents.insert(piece.to_owned(), fault.clone());
        Ok(fault)
    }

    fn check(&mut self, segment: &Segment) -> Result<Result<Checked, String>, RepositoryError> {
        let mut beginning = blake3::Hasher::new();
        beginning.update(segment.name.as_bytes());
        let whole = {
            let mut whole = beginning.clone();
            for piece in &segment.pieces {
                whole.update(piece.as_bytes());
            }
            *whole.update(&segment.bytes.to_le_bytes()).finalize().as_bytes()
        };
        if let Some(known) = self.sound.get(&whole) {
            return Ok(Ok(known.clone()));
        }
        let mut check = SegmentCheck::new(&segment.name, segment.bytes, segment.mark.is_empty());
        for piece in &segment.pieces {
            let beginning = *beginning.update(piece.as_bytes()).finalize().as_bytes();
            if let Some(fault) = self.faulty.get(&beginning) {
                return Ok(Err(fault.clone()));
            }
            self.lock.keep()?;
            let fault = match self.repository.piece(piece) {
                Ok(bytes) => check.push(&bytes).err().map(|damage| damage.to_string()),
                Err(error @ RepositoryError::Damaged { .. }) => Some(error.to_string()),
                Err(error) => return Err(error),
            };
            if let Some(fault) = fault {
                self.faulty.insert(beginning, fault.clone());
                return Ok(Err(fault));
            }
        }
        let checked = check.finish().map(|ended| ended.checked).map_err(|damage| damage.to_string());
        if let Ok(checked) = &checked {
            self.sound.insert(whole, checked.clone());
        }
        Ok(checked)
    }
}
