//! Manifest of one backup.

use serde::{Deserialize, Serialize};

use gravwell_log::backup_stream_check::Checked;
pub use gravwell_log::backup_stream_check::PIECE_BYTES;
use gravwell_model::codec::admin::{ExportEnd, GenerationCause, GenerationInfo};
use gravwell_model::{ChunkId, Generation, LineageEntry, LogId, Seq};
use gravwell_transport::trust::{CaBackup, RegisterMark};

/// Version of the manifest format.
pub const VERSION: u32 = 1;

/// Manifest of one backup.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the manifest format.
    #[serde(rename = "gravwell-backup-manifest")]
    pub version: u32,
    /// Name of the backup.
    pub id: String,
    /// Time of the backup, in milliseconds since 1970-01-01 UTC.
    pub made_ms: u64,
    /// ID of the log.
    pub log_id: LogId,
    /// Generation of the log.
    pub generation: Generation,
    /// Ancestry of the generation.
    pub lineage: Vec<LineageEntry>,
    /// Records of how the generations started.
    pub generations: Vec<GenerationInfo>,
    /// Lowest sequence that can be restored from it.
    pub horizon: Seq,
    /// Last sequence in the backup.
    pub seq: Seq,
    /// Chain at `seq`, hexadecimal.
    pub chain: String,
    /// Commit time of the last record.
    pub time_ms: u64,
    /// A sequence not after `seq`, and the digest of the state at it.
    pub checkpoint: ExportEnd,
    /// Encrypted backup of CA and member registry under the recovery key; empty if there was none.
    pub escrow: String,
    /// Segments of the log, oldest first.
    pub segments: Vec<Segment>,
    /// Chunks that are stored outside the log, each with the piece that contains it.
    #[serde(default)]
    pub chunks: Vec<(ChunkId, String)>,
    /// Lengths of the pieces of `chunks` in bytes, in the same order. Empty in backups of versions that did not record
    /// them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chunk_bytes: Vec<u64>,
    /// Chunks referenced by blobs that the datastore did not have.
    #[serde(default)]
    pub missing: Vec<ChunkId>,
    /// Stamp of the encrypted CA backup. It changes whenever a member is invited, enrolled, renewed or revoked.
    #[serde(default)]
    pub stamp: String,
}

/// A segment file in a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// File name of the segment.
    pub name: String,
    /// Number of valid bytes in it.
    pub bytes: u64,
    /// Hash of the segment's header.
    pub header: String,
    /// Hash of header and footer; empty if the segment was open.
    pub mark: String,
    /// Names of its pieces, in order.
    pub pieces: Vec<String>,
    /// Result of checking exactly these bytes. Absent in backups of versions that did not check the assembled segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checked: Option<Checked>,
}

impl Segment {
    /// Returns its pieces, each with its length in bytes.
    pub fn lengths(&self) -> impl Iterator<Item = (&str, u64)> {
        let lengths = (0..).map(|number: u64| PIECE_BYTES.min(self.bytes.saturating_sub(number * PIECE_BYTES)));
        self.pieces.iter().map(String::as_str).zip(lengths)
    }
}

/// Returns the name of a backup up to `seq` made at `made_ms`; `number` counts the backups in the repository.
#[must_use]
pub fn name(made_ms: u64, seq: Seq, number: u64) -> String {
    format!("{made_ms:013}-{:012}-{number:06}", seq.0)
}

/// Returns a backup's number in its repository, in the order of writing; 0 for names of earlier versions, which did
/// not count.
#[must_use]
pub fn number_of(id: &str) -> u64 {
    match id.split('-').collect::<Vec<_>>()[..] {
        [made, seq, number] if made.len() >= 13 && seq.len() >= 12 => number.parse().unwrap_or_default(),
        _ => 0,
    }
}

/// Facts in the name of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// Last sequence in the backup.
    pub seq: Seq,
    /// Number of the backup, see [`number_of`].
    pub number: u64,
    /// Time of the backup, in milliseconds since 1970-01-01 UTC.
    pub made_ms: u64,
}

/// Reads the name of a backup; `None` if it is not one.
#[must_use]
pub fn named(id: &str) -> Option<Named> {
    let (made, rest) = id.split_once('-')?;
    let seq = rest.split('-').next()?;
    Some(Named { seq: Seq(seq.parse().ok()?), number: number_of(id), made_ms: made.parse().ok()? })
}

impl Named {
    /// Returns whether this backup, of which only the name is known, may contain more than `other`: it reaches further or
    /// was written later.
    #[must_use]
    pub fn may_be_beyond(&self, other: &Manifest) -> bool {
        let number = number_of(&other.id);
        let is_later = match (self.number, number) {
            (0, _) | (_, 0) => self.made_ms > other.made_ms,
            (own, number) => own > number,
        };
        self.seq > other.seq || is_later
    }
}

impl Manifest {
    /// Returns the sort key of a log's backups: how far they reach in the branch that was continued. Times only break
    /// ties, because the host's clock may have been wrong.
    #[must_use]
    pub fn order(&self) -> (Generation, Seq, u64, u64) {
        (self.generation, self.seq, number_of(&self.id), self.made_ms)
    }

    /// Returns the mark of the member registry in the encrypted CA backup. Its signature is not verified.
    #[must_use]
    pub fn register_mark(&self) -> Option<RegisterMark> {
        CaBackup::from_text(&self.escrow).ok()?.mark.map(|signed| signed.mark)
    }

    /// Returns the total size of all segments, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Returns the names of all pieces.
    pub fn pieces(&self) -> impl Iterator<Item = &str> {
        let of_log = self.segments.iter().flat_map(|segment| segment.pieces.iter().map(String::as_str));
        of_log.chain(self.chunks.iter().map(|(_, piece)| piece.as_str()))
    }

    /// Returns the pieces of the chunks, each with its length in bytes if it is recorded.
    pub fn chunk_lengths(&self) -> impl Iterator<Item = (&str, Option<u64>)> {
        let lengths = self.chunk_bytes.iter().copied().map(Some).chain(std::iter::repeat(None));
        self.chunks.iter().map(|(_, piece)| piece.as_str()).zip(lengths)
    }

    /// Returns whether another backup of the same generation has the same contents, and records as much about them.
    #[must_use]
    pub fn is_same(&self, other: &Manifest) -> bool {
        let what = |manifest: &Manifest| (manifest.seq, manifest.missing.clone(), manifest.stamp.clone());
        what(self) == what(other)
            && self.segments == other.segments
            && self.chunks == other.chunks
            && self.chunk_bytes == other.chunk_bytes
    }

    /// Checks the invariants on which the rest of the program relies.
    ///
    /// # Errors
    /// Returns a description of the violation.
    pub fn check(&self) -> Result<(), String> {
        if self.version != VERSION {
            return Err(format!("version {} is not supported, only {VERSION}", self.version));
        }
        for Segment { name, bytes, pieces, .. } in &self.segments {
            if gravwell_log::directory::SegmentName::parse(name).is_none() {
                return Err(format!("`{name}` is not a segment name"));
            }
            if bytes.div_ceil(PIECE_BYTES) != pieces.len() as u64 {
                return Err(format!("{name} has {bytes} bytes, but {} pieces", pieces.len()));
            }
        }
        if !self.chunk_bytes.is_empty() && self.chunk_bytes.len() != self.chunks.len() {
            return Err(format!("it has {} chunks, but {} lengths", self.chunks.len(), self.chunk_bytes.len()));
        }
        if let Some(bytes) = self.chunk_bytes.iter().find(|bytes| **bytes > PIECE_BYTES) {
            return Err(format!("it lists a piece of {bytes} bytes, more than {PIECE_BYTES}"));
        }
        let is_name = |piece: &str| piece.len() == 64 && piece.bytes().all(|byte| byte.is_ascii_hexdigit());
        if let Some(piece) = self.pieces().find(|piece| !is_name(piece)) {
            return Err(format!("`{piece}` is not a piece name"));
        }
        if self.horizon > self.seq || self.checkpoint.seq > self.seq {
            return Err(format!("horizon {} or checkpoint {} is past {}", self.horizon, self.checkpoint.seq, self.seq));
        }
        Ok(())
    }

    /// Checks that the segments continue each other and end where the log does, according to the stored results of
    /// their checks.
    ///
    /// # Errors
    /// Returns an error if they are inconsistent, or if a segment was never checked.
    pub fn check_links(&self) -> Result<(), String> {
        let mut end: Option<(Seq, &str)> = None;
        for Segment { name, checked, .. } in &self.segments {
            let Some(checked) = checked else { return Err(format!("{name} was not checked")) };
            let first = gravwell_log::directory::SegmentName::parse(name).map(|name| name.first);
            if let Some((last, after)) = end
                && (first != Some(last.next()) || checked.before != after)
            {
                return Err(format!("{name} does not continue from sequence {last}, where the previous segment ends"));
            }
            end = Some((checked.last, &checked.after));
        }
        match end {
            Some((last, after)) if last == self.seq && after == self.chain => Ok(()),
            Some((last, _)) => Err(format!("it ends at sequence {last}, which does not match sequence {}", self.seq)),
            None => Err("it has no segments".into()),
        }
    }

    /// Returns how the last generation started, for example by a restore.
    #[must_use]
    pub fn beginning(&self) -> Option<GenerationCause> {
        self.generations.iter().find(|info| info.generation == self.generation).map(|info| info.beginning)
    }
}
