//! The audit on disk: a log of its own in `audit/`, in the format of the operation log, which compaction does not know. It is
//! appended to, and its oldest segments are removed whole when they are old enough, or when there is no more room for it.

use std::path::Path;
use std::sync::Arc;

use crate::codec::audit::{Act, AuditEvent, AuditRecord, LogPoint};
use crate::codec::frame::decode_frame;
use crate::codec::jsonl::timestamp;
use crate::codec::payload::decode_entry;
use crate::env::fs::{Fs, is_full};
use crate::log::{AppendError, Log, LogOptions, LogReader, OpenError, ReadError, SyncError};
use crate::model::{MemberName, Seq};

use super::damage::{self, Damage};

/// Directory of the audit within a datastore's.
pub const AUDIT: &str = "audit";
/// Small enough that whole segments get old soon.
const SEGMENT_BYTES: u64 = 16 << 20;
/// Given back when the disk is full, so that what was acknowledged can still be recorded.
const RESERVE_BYTES: u64 = 1 << 20;
/// An open segment is closed after this part of the time for which the audit is kept, and after a day at the latest.
const SEGMENT_AGE_PARTS: u64 = 10;
const SEGMENT_AGE_MAX_MS: u64 = 24 * 3_600_000;

/// What of an audit is kept.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Records for at least this long, as far as there is room for them.
    pub ms: u64,
    /// Most bytes.
    pub bytes: u64,
}

/// When it has more bytes than it may, so much less than that is left, in parts: each time is a record.
const ROOM_PARTS: u64 = 16;

/// Why nothing was recorded.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The audit cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A record cannot be written.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// What was written may not be durable.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// Its end cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Its head or its old segments.
    #[error(transparent)]
    Io(#[from] crate::log::IoFailure),
}

impl AuditError {
    /// Whether what lies on the disk is damaged.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            AuditError::Open(OpenError::Damaged { .. }) => true,
            AuditError::Read(error) => error.is_damage(),
            _ => false,
        }
    }

    /// Whether the same file may be written again as soon as there is room.
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
    /// How far the audit has the operation log; `None`: nothing is in it yet.
    covered: Option<LogPoint>,
    keep: Keep,
    /// After an error that leaves the end of the file unknown it has to be opened again.
    is_lost: bool,
}

/// How the audit is kept.
#[must_use]
pub fn options() -> LogOptions {
    LogOptions { segment_bytes: SEGMENT_BYTES, preallocate: false, reserve_bytes: RESERVE_BYTES, is_trimmed: true }
}

/// How far an audit has the operation log, as its last record says.
///
/// # Errors
/// When that record cannot be read.
pub fn covered(reader: &LogReader) -> Result<Option<LogPoint>, ReadError> {
    let (head, _) = reader.head();
    let Some(found) = reader.read_record(head)? else { return Ok(None) };
    let damaged = |error: &_| ReadError::Damaged(crate::log::Damage::decode(&found.file, found.offset, error));
    let (header, payload) = decode_frame(&found.bytes).map_err(|error| damaged(&error))?;
    let entry = decode_entry(&header, &found.bytes.slice(payload)).map_err(|error| damaged(&error))?;
    // A record of a later version is no damage; where it stood is not known then.
    Ok(AuditRecord::of(&entry).ok().map(|record| record.covered))
}

impl AuditStore {
    /// Opens the audit in `dir`, or makes an empty one. `keep`: what of it is kept.
    ///
    /// # Errors
    /// When it is damaged or cannot be read. Nothing is changed then.
    pub fn open(fs: Arc<dyn Fs>, dir: &Path, keep: Keep) -> Result<AuditStore, AuditError> {
        AuditStore::open_with(fs, dir, keep, options())
    }

    /// [`AuditStore::open`] with segments of another size.
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

    /// How far the audit has the operation log.
    #[must_use]
    pub fn covered(&self) -> Option<LogPoint> {
        self.covered
    }

    /// A reader of what is durable.
    #[must_use]
    pub fn reader(&self) -> LogReader {
        self.log.reader()
    }

    /// Whether it has to be opened again before anything can be recorded.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Writes records and makes them durable; returns the number of the last one.
    ///
    /// # Errors
    /// When nothing was recorded. On a full disk it may be tried again.
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

    fn write(&mut self, entries: &[crate::model::Entry]) -> Result<Seq, AuditError> {
        self.log.append(entries)?;
        Ok(self.log.sync()?.seq())
    }

    /// What is due now and then: closes a segment that has been open for long, removes those that are too old, and lets the head
    /// file say what is durable. `now_ms` is the time of entries. Says which record was made of damage that was not acknowledged, when
    /// the one that said so is removed.
    ///
    /// # Errors
    /// When a file cannot be written or removed. Nothing is lost by it, and it is tried again.
    pub(in crate::datastore) fn keep_house(
        &mut self,
        now_ms: u64,
        local: &MemberName,
    ) -> Result<Option<Damage>, AuditError> {
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

    /// Bytes on disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.log.reader().segments().iter().map(|segment| segment.bytes).sum()
    }

    /// Removes the segments of which every record is older than the audit is kept, and the oldest for which there is no room. A
    /// record says so before anything goes: what is left goes on from the chain that it names.
    fn trim(&mut self, now_ms: u64, local: &MemberName) -> Result<Option<Damage>, AuditError> {
        let reader = self.log.reader();
        let segments: Vec<_> = reader.segments();
        let sealed = || segments.iter().take_while(|segment| segment.sealed);
        let is_old = |segment: &&crate::log::SegmentInfo| segment.last_time_ms.saturating_add(self.keep.ms) < now_ms;
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
                "records {} to {} of the audit, of {} to {}, were removed before their time, because it would have more bytes than \
                 Datastore-Audit-Max-MB",
                first.first,
                last.last,
                timestamp(first.first_time_ms),
                timestamp(last.last_time_ms)
            );
            tracing::warn!(what, "the audit has no room for what it is to keep");
            let act = Act { kind: "gap".into(), happened_ms: now_ms, what, count: 1, ..Act::default() };
            records.push(record(AuditEvent::Act(act)));
        }
        let end = self.append(&records)?;
        let count = self.log.trim(to)?;
        tracing::info!(count, %to, "the oldest segments of the audit were removed");
        // It comes behind the record of the removal.
        let record = Seq(end.0.saturating_sub(records.len() as u64) + 2);
        Ok(first.map(|what| Damage { record, what }))
    }

    /// Notes in the head file what is durable.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn close(self) -> Result<(), AuditError> {
        Ok(self.log.close()?)
    }
}
