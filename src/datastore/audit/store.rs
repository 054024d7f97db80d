//! The audit on disk: a separate log in `audit/`, in the format of the operation log but never compacted. Records are
//! appended. The oldest segments are removed as a whole when they are old enough or exceed the size limit.

use std::path::Path;
use std::sync::Arc;

use gravwell_env::fs::{Fs, is_full};
use gravwell_log::{AppendError, Log, LogOptions, LogReader, OpenError, ReadError, SyncError};
use gravwell_model::codec::audit::{Act, AuditEvent, AuditRecord, LogPoint};
use gravwell_model::codec::frame::decode_frame;
use gravwell_model::codec::json_lines::timestamp;
use gravwell_model::codec::payload::decode_entry;
use gravwell_model::{MemberName, Seq};

use super::damage::{self, Damage};

/// Directory of the audit within a datastore's directory.
pub const AUDIT: &str = "audit";
/// Size of a segment. Small, so that whole segments expire soon.
const SEGMENT_BYTES: u64 = 16 << 20;
/// Bytes of the disk reserve. It is released when the disk is full, so that acknowledged entries can still be recorded.
const RESERVE_BYTES: u64 = 1 << 20;
/// The open segment is closed after this fraction of the retention time, and after a day at the latest.
const SEGMENT_AGE_PARTS: u64 = 10;
const SEGMENT_AGE_MAX_MS: u64 = 24 * 3_600_000;

/// Retention of the audit.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Minimum age of removed records in milliseconds, as far as `bytes` allows.
    pub ms: u64,
    /// Most bytes on disk.
    pub bytes: u64,
}

/// If the audit exceeds its size limit, it is reduced by this fraction below the limit, because each removal adds
/// a record.
const ROOM_PARTS: u64 = 16;

/// Error of recording.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The audit cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A record cannot be written.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// Written records may not be durable.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// The end of the audit cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The head file or old segments cannot be accessed.
    #[error(transparent)]
    Io(#[from] gravwell_log::IoFailure),
}

impl AuditError {
    /// Returns whether data on disk is corrupt.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            AuditError::Open(OpenError::Damaged { .. }) => true,
            AuditError::Read(error) => error.is_damage(),
            _ => false,
        }
    }

    /// Returns whether the write can be retried once there is disk space.
    fn is_full(&self) -> bool {
        match self {
            AuditError::Append(error) => matches!(error, AppendError::Full { .. }),
            AuditError::Io(failure) => is_full(&failure.source),
            _ => false,
        }
    }
}

/// The audit, open for writing.
#[derive(Debug)]
pub struct AuditStore {
    log: Log,
    /// Last recorded entry of the operation log; `None` if the audit is empty.
    covered: Option<LogPoint>,
    keep: Keep,
    /// Whether the audit must be reopened, because an error left the end of the file unknown.
    is_lost: bool,
}

/// Returns the options of the audit's log.
#[must_use]
pub fn options() -> LogOptions {
    LogOptions {
        segment_bytes: SEGMENT_BYTES,
        preallocate: false,
        reserve_bytes: RESERVE_BYTES,
        free_bytes_min: 0,
        is_trimmed: true,
    }
}

/// Returns the last entry of the operation log that the audit has recorded, according to its last record.
///
/// # Errors
/// Returns an error if that record cannot be read.
pub fn covered(reader: &LogReader) -> Result<Option<LogPoint>, ReadError> {
    let (head, _) = reader.head();
    let Some(found) = reader.read_record(head)? else { return Ok(None) };
    let damaged = |error: &_| ReadError::Damaged(gravwell_log::Damage::decode(&found.file, found.offset, error));
    let (header, payload) = decode_frame(&found.bytes).map_err(|error| damaged(&error))?;
    let entry = decode_entry(&header, &found.bytes.slice(payload)).map_err(|error| damaged(&error))?;
    // A record of a later version is not corrupt, but its position is unknown.
    Ok(AuditRecord::of(&entry).ok().map(|record| record.covered))
}

impl AuditStore {
    /// Opens the audit in `dir`, or creates an empty one with retention `keep`.
    ///
    /// # Errors
    /// Returns an error if the audit is corrupt or cannot be read. Nothing is changed then.
    pub fn open(fs: Arc<dyn Fs>, dir: &Path, keep: Keep) -> Result<AuditStore, AuditError> {
        AuditStore::open_with(fs, dir, keep, options())
    }

    /// Like [`AuditStore::open`], with different log options.
    ///
    /// # Errors
    /// See [`AuditStore::open`].
    pub fn open_with(fs: Arc<dyn Fs>, dir: &Path, keep: Keep, options: LogOptions) -> Result<AuditStore, AuditError> {
        let (log, report) = Log::open(fs, dir, options)?;
        for action in &report.actions {
            tracing::info!(%action, "opening the audit");
        }
        let covered = covered(&log.reader())?;
        Ok(AuditStore { log, covered, keep, is_lost: false })
    }

    /// Returns the last recorded entry of the operation log.
    #[must_use]
    pub fn covered(&self) -> Option<LogPoint> {
        self.covered
    }

    /// Returns a reader of durable records.
    #[must_use]
    pub fn reader(&self) -> LogReader {
        self.log.reader()
    }

    /// Returns whether the audit must be reopened before anything can be recorded.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Writes records and makes them durable. Returns the number of the last one.
    ///
    /// # Errors
    /// Returns an error if nothing was recorded. With a full disk the call may be repeated.
    pub fn append(&mut self, records: &[AuditRecord]) -> Result<Seq, AuditError> {
        let first = self.log.head().0.0 + 1;
        let entries: Vec<_> = records.iter().zip(first..).map(|(record, seq)| record.entry(Seq(seq))).collect();
        if entries.is_empty() {
            return Ok(self.log.head().0);
        }
        let mut written = self.write(&entries);
        if written.as_ref().is_err_and(AuditError::is_full) && self.log.drop_reserve() {
            written = self.write(&entries);
        }
        match written {
            Ok(seq) => {
                self.covered = records.last().map(|record| record.covered);
                Ok(seq)
            }
            Err(error) => {
                self.is_lost = !error.is_full();
                Err(error)
            }
        }
    }

    fn write(&mut self, entries: &[gravwell_model::Entry]) -> Result<Seq, AuditError> {
        self.log.append(entries)?;
        Ok(self.log.sync()?.seq())
    }

    /// Performs periodic maintenance: closes a segment that was open for long, removes segments that are too old, and
    /// updates the head file. `now_ms` is the commit time. If an unacknowledged corruption record is removed, returns
    /// the one that replaces it.
    ///
    /// # Errors
    /// Returns an error if a file cannot be written or removed. Nothing is lost then, and the next call tries again.
    pub(crate) fn keep_house(&mut self, now_ms: u64, local: &MemberName) -> Result<Option<Damage>, AuditError> {
        if self.is_lost {
            return Ok(None);
        }
        self.log.restore_reserve();
        let age_max = (self.keep.ms / SEGMENT_AGE_PARTS).min(SEGMENT_AGE_MAX_MS);
        let segments = self.log.reader().segments();
        let open = segments.last().filter(|segment| !segment.sealed && segment.records > 0);
        if open.is_some_and(|segment| segment.first_time_ms.saturating_add(age_max) < now_ms) {
            self.log.seal()?;
        }
        let carried = self.trim(now_ms, local)?;
        self.log.idle()?;
        Ok(carried)
    }

    /// Returns the size on disk, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.log.reader().segments().iter().map(|segment| segment.bytes).sum()
    }

    /// Removes segments in which every record exceeds the retention time, and the oldest ones beyond the size limit. A
    /// record of the removal is written first. It contains the chain from which the remaining records continue.
    fn trim(&mut self, now_ms: u64, local: &MemberName) -> Result<Option<Damage>, AuditError> {
        let reader = self.log.reader();
        let segments: Vec<_> = reader.segments();
        let sealed = || segments.iter().take_while(|segment| segment.sealed);
        let is_old = |segment: &&gravwell_log::SegmentInfo| segment.last_time_ms.saturating_add(self.keep.ms) < now_ms;
        let old = sealed().take_while(is_old).count();
        let mut bytes: u64 = segments.iter().skip(old).map(|segment| segment.bytes).sum();
        let room = if bytes > self.keep.bytes { self.keep.bytes - self.keep.bytes / ROOM_PARTS } else { bytes };
        let early: Vec<_> = sealed()
            .skip(old)
            .take_while(|segment| {
                let is_too_much = bytes > room;
                bytes -= if is_too_much { segment.bytes } else { 0 };
                is_too_much
            })
            .collect();
        let Some(last) = early.last().copied().or(old.checked_sub(1).and_then(|at| segments.get(at))) else {
            return Ok(None);
        };
        let Some(chain) = reader.chain_at(last.last)? else { return Ok(None) };
        let (to, covered) = (last.last, self.covered.unwrap_or_default());
        let record = |event| AuditRecord { time_ms: now_ms, member: local.clone(), covered, event };
        let mut records = vec![record(AuditEvent::Trimmed { to, chain })];
        let carried = damage::carried(&reader, to, now_ms)?;
        let first = carried.first().filter(|act| act.kind == damage::KIND).map(|act| act.what.clone());
        records.extend(carried.into_iter().map(|act| record(AuditEvent::Act(act))));
        if let (Some(first), Some(last)) = (early.first(), early.last()) {
            let what = format!(
                "records {} to {} of the audit, of {} to {}, were removed early, because the audit would exceed \
                 Datastore-Audit-Max-MB",
                first.first,
                last.last,
                timestamp(first.first_time_ms),
                timestamp(last.last_time_ms)
            );
            tracing::warn!(what, "audit too large; removed records before the end of their retention");
            let act = Act { kind: "gap".into(), happened_ms: now_ms, what, count: 1, ..Act::default() };
            records.push(record(AuditEvent::Act(act)));
        }
        let end = self.append(&records)?;
        let count = self.log.trim(to)?;
        tracing::info!(count, %to, "removed the oldest segments of the audit");
        // The corruption record follows the record of the removal.
        let record = Seq(end.0.saturating_sub(records.len() as u64) + 2);
        Ok(first.map(|what| Damage { record, what }))
    }

    /// Updates the head file and closes the audit.
    ///
    /// # Errors
    /// Returns an error if the head file cannot be written.
    pub fn close(self) -> Result<(), AuditError> {
        Ok(self.log.close()?)
    }
}
