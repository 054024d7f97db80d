//! What one backup consists of.

use serde::{Deserialize, Serialize};

use crate::codec::admin::{Beginning, ExportEnd, GenerationInfo};
use crate::log::copy_check::Checked;
pub use crate::log::copy_check::PIECE_BYTES;
use crate::model::{ChunkId, Generation, LineageEntry, LogId, Seq};

/// Version of this form.
pub const VERSION: u32 = 1;

/// One backup.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this form.
    #[serde(rename = "gravwell-backup-manifest")]
    pub version: u32,
    /// Name of the backup.
    pub id: String,
    /// When it was made, milliseconds since 1970-01-01 UTC.
    pub made_ms: u64,
    /// Which log.
    pub log_id: LogId,
    /// Its generation.
    pub generation: Generation,
    /// How that descends.
    pub lineage: Vec<LineageEntry>,
    /// How the generations began.
    pub generations: Vec<GenerationInfo>,
    /// Lowest sequence that can be restored from it.
    pub horizon: Seq,
    /// Last sequence.
    pub seq: Seq,
    /// Chain there, hexadecimal.
    pub chain: String,
    /// Commit time of the last record.
    pub time_ms: u64,
    /// A sequence at or before the last, and the digest of the state there.
    pub checkpoint: ExportEnd,
    /// The authority and the register of members, sealed under the recovery key; empty when there was none.
    pub escrow: String,
    /// The segments, oldest first.
    pub segments: Vec<Segment>,
    /// Chunks of contents that were kept beside the log, each with the piece that holds it.
    #[serde(default)]
    pub chunks: Vec<(ChunkId, String)>,
    /// Chunks that its contents name and that were not at the datastore.
    #[serde(default)]
    pub missing: Vec<ChunkId>,
    /// Of the sealed copy: changes whenever somebody is invited, enrolled, renewed or cut off.
    #[serde(default)]
    pub stamp: String,
}

/// One segment file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Its name.
    pub name: String,
    /// How much of it counts.
    pub bytes: u64,
    /// Hash of its header.
    pub header: String,
    /// Hash of header and footer; empty when it was open.
    pub mark: String,
    /// Its pieces in order, by name.
    pub pieces: Vec<String>,
    /// What the check of these very bytes showed; absent in backups of versions that did not check what they put together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checked: Option<Checked>,
}

impl Segment {
    /// Its pieces, each with the number of bytes in it.
    pub fn lengths(&self) -> impl Iterator<Item = (&str, u64)> {
        let lengths = (0..).map(|number: u64| PIECE_BYTES.min(self.bytes.saturating_sub(number * PIECE_BYTES)));
        self.pieces.iter().map(String::as_str).zip(lengths)
    }
}

/// The name of a backup up to `seq` that is made at `made_ms`, the `number`th at its place.
#[must_use]
pub fn name(made_ms: u64, seq: Seq, number: u64) -> String {
    format!("{made_ms:013}-{:012}-{number:06}", seq.0)
}

/// Which one at its place a backup of this name is, counted as they are written; 0: an earlier version did not count.
#[must_use]
pub fn number_of(id: &str) -> u64 {
    match id.split('-').collect::<Vec<_>>()[..] {
        [made, seq, number] if made.len() >= 13 && seq.len() >= 12 => number.parse().unwrap_or_default(),
        _ => 0,
    }
}

impl Manifest {
    /// What orders the backups of one log: how far they reach in the branch that went on. Clocks have no say where these differ: the
    /// one of the host may have been wrong when a backup was made.
    #[must_use]
    pub fn order(&self) -> (Generation, Seq, u64, u64) {
        (self.generation, self.seq, number_of(&self.id), self.made_ms)
    }

    /// Bytes of all segments.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Names of all pieces.
    pub fn pieces(&self) -> impl Iterator<Item = &str> {
        let of_log = self.segments.iter().flat_map(|segment| segment.pieces.iter().map(String::as_str));
        of_log.chain(self.chunks.iter().map(|(_, piece)| piece.as_str()))
    }

    /// Whether another backup of the same generation would say nothing new.
    #[must_use]
    pub fn is_same(&self, other: &Manifest) -> bool {
        let what = |manifest: &Manifest| (manifest.seq, manifest.missing.clone(), manifest.stamp.clone());
        what(self) == what(other) && self.segments == other.segments && self.chunks == other.chunks
    }

    /// Checks what the rest of the program relies on.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn check(&self) -> Result<(), String> {
        if self.version != VERSION {
            return Err(format!("it has version {}; this program reads {VERSION}", self.version));
        }
        for Segment { name, bytes, pieces, .. } in &self.segments {
            if crate::log::directory::SegmentName::parse(name).is_none() {
                return Err(format!("`{name}` is not a segment's name"));
            }
            if bytes.div_ceil(PIECE_BYTES) != pieces.len() as u64 {
                return Err(format!("{name} has {bytes} bytes, but {} pieces", pieces.len()));
            }
        }
        let is_name = |piece: &str| piece.len() == 64 && piece.bytes().all(|byte| byte.is_ascii_hexdigit());
        if let Some(piece) = self.pieces().find(|piece| !is_name(piece)) {
            return Err(format!("`{piece}` is not a piece's name"));
        }
        if self.horizon > self.seq || self.checkpoint.seq > self.seq {
            return Err(format!(
                "horizon {} or checkpoint {} lie beyond {}",
                self.horizon, self.checkpoint.seq, self.seq
            ));
        }
        Ok(())
    }

    /// Checks that the segments follow each other and end where the log does, as far as their own checks tell.
    ///
    /// # Errors
    /// Says what does not fit, or that a segment was never checked.
    pub fn check_links(&self) -> Result<(), String> {
        let mut end: Option<(Seq, &str)> = None;
        for Segment { name, checked, .. } in &self.segments {
            let Some(checked) = checked else { return Err(format!("{name} was not checked")) };
            let first = crate::log::directory::SegmentName::parse(name).map(|name| name.first);
            if let Some((last, after)) = end
                && (first != Some(last.next()) || checked.before != after)
            {
                return Err(format!("{name} does not go on from sequence {last}, where the one before ends"));
            }
            end = Some((checked.last, &checked.after));
        }
        match end {
            Some((last, after)) if last == self.seq && after == self.chain => Ok(()),
            Some((last, _)) => Err(format!("it ends at sequence {last}, and not as sequence {} does", self.seq)),
            None => Err("it has no segment".into()),
        }
    }

    /// Whether generation 2 of it was begun by a restore, and so on: how the last generation began.
    #[must_use]
    pub fn beginning(&self) -> Option<Beginning> {
        self.generations.iter().find(|info| info.generation == self.generation).map(|info| info.beginning)
    }
}
