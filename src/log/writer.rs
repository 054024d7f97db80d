//! The single writer: each batch is encoded, written and synced before the next one is written.
//!
//! accepted ≥ written ≥ durable. [`Durable`] is the only proof of durability, and only [`Log::sync`] creates it. A
//! failure that leaves the file in an unknown state poisons the writer: the process must stop, and reopening the log
//! determines its contents.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::LogOptions;
use super::directory::SegmentName;
use super::error::{AppendError, IoFailure, OpenError, SyncError};
use super::format::{FOOTER_BYTES, FileHeader, Footer, HEADER_BYTES, LINEAGE_MAX};
use super::reader::LogReader;
use super::recovery::{self, RecoveryReport};
use super::segment::{IndexPoint, Segment, SparseIndex};
use super::shared::{LogState, Tip};
use super::trim;
use gravwell_env::fs::{File, Fs, is_full};
use gravwell_model::codec::frame;
use gravwell_model::codec::payload::encode_entry;
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::{Chain, Entry, Generation, Lineage, LineageEntry, LogId, Seq};

/// Step in which disk space is allocated ahead of the data.
const ALLOCATE_STEP_BYTES: u64 = 4 << 20;

/// Proof that everything up to a sequence is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    seq: Seq,
    chain: Chain,
}

impl Durable {
    /// Returns the last durable sequence.
    #[must_use]
    pub fn seq(self) -> Seq {
        self.seq
    }

    /// Returns the chain value there.
    #[must_use]
    pub fn chain(self) -> Chain {
        self.chain
    }
}

/// A batch as it was written, encoded once for the disk and for every subscriber.
#[derive(Clone, Debug)]
pub struct AppendedBatch {
    /// First sequence.
    pub first: Seq,
    /// Last sequence.
    pub last: Seq,
    /// Chain value before the first record.
    pub prev_chain: Chain,
    /// Chain value after the last record.
    pub chain: Chain,
    /// All frames of the batch.
    pub bytes: Bytes,
    /// Start of each frame within `bytes`.
    pub offsets: Vec<usize>,
}

/// The writer of a log. It is owned by one thread.
#[derive(Debug)]
pub struct Log {
    pub(super) shared: Arc<LogState>,
    pub(super) options: LogOptions,
    /// The open segment; `None` if it could not be created yet.
    open: Option<Arc<Segment>>,
    /// The tip once the batch in flight is durable.
    written: Tip,
    in_flight: Option<AppendedBatch>,
    allocated: u64,
    poisoned: bool,
    /// Durable bytes that the head file does not vouch for.
    unvouched: u64,
}

impl Log {
    /// Opens the log of a directory and repairs what a crash may have left; creates the log if there is none.
    ///
    /// # Errors
    /// If the log is damaged (nothing is changed then) or cannot be read.
    pub fn open(fs: Arc<dyn Fs>, dir: &Path, options: LogOptions) -> Result<(Log, RecoveryReport), OpenError> {
        let plan = recovery::plan(&*fs, dir)?;
        let (shared, report) = recovery::carry_out(plan, fs, dir, &options)?;
        let (open, written) = {
            let state = shared.read();
            (state.segments.last().filter(|segment| segment.footer.is_none()).cloned(), state.tip)
        };
        let log = Log {
            shared: Arc::new(shared),
            options,
            open,
            written,
            in_flight: None,
            allocated: written.end,
            poisoned: false,
            unvouched: 0,
        };
        log.shared.restore_reserve();
        Ok((log, report))
    }

    /// Returns the last durable sequence and its chain value.
    #[must_use]
    pub fn head(&self) -> (Seq, Chain) {
        let state = self.shared.read();
        (state.tip.seq, state.tip.chain)
    }

    /// Returns the lowest sequence from which a tail can start.
    #[must_use]
    pub fn horizon(&self) -> Seq {
        self.shared.read().horizon
    }

    /// Returns the commit time of the last record; 0 if unknown.
    #[must_use]
    pub fn last_time_ms(&self) -> u64 {
        self.reader().last_time_ms()
    }

    /// Returns the id of the log.
    #[must_use]
    pub fn log_id(&self) -> LogId {
        self.shared.log_id
    }

    /// Returns the generation of the log.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.shared.read().generation
    }

    /// Returns the descent of the generations.
    #[must_use]
    pub fn lineage(&self) -> Lineage {
        self.shared.read().lineage.clone()
    }

    /// Returns a reader that sees all durable records, including those of later batches.
    #[must_use]
    pub fn reader(&self) -> LogReader {
        LogReader::new(Arc::clone(&self.shared))
    }

    /// Encodes and writes one batch. The batch is not durable before [`Log::sync`].
    ///
    /// # Errors
    /// [`AppendError::Full`] and [`AppendError::Encode`] leave the log unchanged. Other errors require a restart.
    pub fn append(&mut self, entries: &[Entry]) -> Result<AppendedBatch, AppendError> {
        if self.poisoned {
            return Err(AppendError::Poisoned);
        }
        if self.in_flight.is_some() {
            return Err(AppendError::Unsynced);
        }
        let batch = self.encode(entries)?;
        if self.written.count > 0 && self.written.end + batch.bytes.len() as u64 > self.options.segment_bytes {
            self.seal()?;
        }
        let segment = self.ensure_open()?;
        let end = self.written.end + batch.bytes.len() as u64;
        self.allocate(&*segment.file, end);
        if let Err(error) = segment.file.write_at(&batch.bytes, self.written.end) {
            return Err(self.undo_write(&segment, error));
        }
        self.allocated = self.allocated.max(end);
        self.note_written(entries, &batch, end);
        self.in_flight = Some(batch.clone());
        Ok(batch)
    }

    fn encode(&self, entries: &[Entry]) -> Result<AppendedBatch, AppendError> {
        let mut bytes = Vec::with_capacity(entries.len() * 192);
        let mut offsets = Vec::with_capacity(entries.len());
        let (mut seq, mut chain) = (self.written.seq, self.written.chain);
        for (entry, index) in entries.iter().zip(0u32..) {
            if entry.seq != seq.next() {
                return Err(AppendError::Sequence { expected: seq.next(), found: entry.seq });
            }
            offsets.push(bytes.len());
            chain = encode_entry(entry, &chain, index, 0, &mut bytes)?;
            seq = entry.seq;
        }
        Ok(AppendedBatch {
            first: self.written.seq.next(),
            last: seq,
            prev_chain: self.written.chain,
            chain,
            bytes: Bytes::from(bytes),
            offsets,
        })
    }

    fn note_written(&mut self, entries: &[Entry], batch: &AppendedBatch, end: u64) {
        let times =
            |entry: Option<&Entry>, old: u64| entry.map(|entry| entry.time_ms).filter(|t| *t > 0).unwrap_or(old);
        if self.written.time_first == 0 {
            self.written.time_first = times(entries.first(), 0);
        }
        self.written.time_last = times(entries.last(), self.written.time_last);
        self.written.count += entries.len() as u64;
        (self.written.seq, self.written.chain, self.written.end) = (batch.last, batch.chain, end);
    }

    /// Allocates space ahead of the data, which makes the sync cheaper. A failure is ignored: the write reports a full disk.
    fn allocate(&mut self, file: &dyn File, end: u64) {
        if self.options.preallocate && end > self.allocated {
            let target = end.next_multiple_of(ALLOCATE_STEP_BYTES).min(self.options.segment_bytes.max(end));
            if file.allocate(target).is_ok() {
                self.allocated = target;
            }
        }
    }

    /// Rolls back a partial write. Its remains must be removed before anything else is written there: whole frames of
    /// it after a shorter batch would look like lost records.
    fn undo_write(&mut self, segment: &Segment, error: io::Error) -> AppendError {
        let undone = segment.file.set_len(self.written.end).and_then(|()| segment.file.sync_data());
        self.allocated = self.written.end;
        if undone.is_err() || !is_full(&error) {
            self.poisoned = true;
            return AppendError::Io(IoFailure::at("write", &segment.name)(error));
        }
        self.full()
    }

    fn full(&self) -> AppendError {
        let free = self.shared.fs.free_space(&self.shared.dir).unwrap_or(0);
        AppendError::Full { directory: self.shared.dir.display().to_string(), free }
    }

    /// Makes the batch in flight durable and visible to readers.
    ///
    /// # Errors
    /// If syncing fails: the contents of the disk are unknown then, and the process must stop.
    pub fn sync(&mut self) -> Result<Durable, SyncError> {
        if self.poisoned {
            return Err(SyncError::Poisoned);
        }
        if let (Some(batch), Some(segment)) = (self.in_flight.take(), &self.open) {
            let skipped = fault_injection::is(Bug::SkipLogSync);
            let synced = if skipped { Ok(()) } else { segment.file.sync_data() };
            let again = fault_injection::is(Bug::RetryFailedSync);
            let synced = synced.or_else(|error| if again { segment.file.sync_data() } else { Err(error) });
            if let Err(error) = synced {
                self.poisoned = true;
                return Err(IoFailure::at("sync", &segment.name)(error).into());
            }
            let start = self.written.end - batch.bytes.len() as u64;
            self.unvouched += batch.bytes.len() as u64;
            let mut chain_before = batch.prev_chain;
            for (offset, seq) in batch.offsets.iter().zip(batch.first.0..) {
                segment.note(IndexPoint { seq: Seq(seq), offset: start + *offset as u64, chain_before });
                chain_before = frame::array_at(&batch.bytes, offset + frame::AT_CHAIN);
            }
            self.shared.write().tip = self.written;
        }
        Ok(Durable { seq: self.written.seq, chain: self.written.chain })
    }

    /// Seals the open segment, so that compaction may process it, and starts the next one. Does nothing if the open
    /// segment is empty.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub fn seal(&mut self) -> Result<(), AppendError> {
        if self.poisoned {
            return Err(AppendError::Poisoned);
        }
        if self.in_flight.is_some() {
            return Err(AppendError::Unsynced);
        }
        let Some(segment) = self.open.clone().filter(|_| self.written.count > 0) else { return Ok(()) };
        let footer = footer_of(&self.written);
        let end = self.written.end;
        let written = segment.file.write_at(&footer.encode(), end);
        if let Err(error) = written.and_then(|()| segment.file.set_len(end + FOOTER_BYTES as u64)) {
            return Err(self.undo_write(&segment, error));
        }
        if let Err(failure) = self.finish_seal(&segment, footer) {
            self.poisoned = true;
            return Err(failure.into());
        }
        // Without space for the next segment the log is still intact; the next append tries again.
        match self.ensure_open() {
            Ok(_) | Err(AppendError::Full { .. }) => {}
            Err(error) => return Err(error),
        }
        // The head file may lag if a copy-on-write file system has no room to rewrite it; that is harmless.
        match self.shared.write_head() {
            Err(error) if !is_full(&error) => Err(IoFailure::at("write", super::directory::HEAD)(error).into()),
            Err(_) => Ok(()),
            Ok(()) => {
                self.unvouched = 0;
                Ok(())
            }
        }
    }

    fn finish_seal(&mut self, segment: &Segment, footer: Footer) -> Result<(), IoFailure> {
        let (fs, dir) = (&self.shared.fs, &self.shared.dir);
        segment.file.sync_data().map_err(IoFailure::at("sync", &segment.name))?;
        let name = SegmentName { first: segment.first(), last: Some(footer.last) }.to_string();
        fs.rename(&dir.join(&segment.name), &dir.join(&name)).map_err(IoFailure::at("rename", &segment.name))?;
        fs.sync_dir(dir).map_err(IoFailure::at("sync", dir.display()))?;
        let index = segment.index.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let sealed = Segment {
            name,
            file: Arc::clone(&segment.file),
            header: segment.header,
            footer: Some(footer),
            index: index.into(),
            garbage: 0.into(),
        };
        self.open = None;
        self.written = Tip { end: 0, count: 0, time_first: 0, ..self.written };
        let mut state = self.shared.write();
        let mut segments = Vec::clone(&state.segments);
        segments.pop();
        segments.push(Arc::new(sealed));
        state.segments = Arc::new(segments);
        state.tip = self.written;
        Ok(())
    }

    /// Returns the open segment; creates it if there is none.
    fn ensure_open(&mut self) -> Result<Arc<Segment>, AppendError> {
        if let Some(segment) = &self.open {
            return Ok(Arc::clone(segment));
        }
        let header = FileHeader {
            flags: trim::flags(&self.options),
            log_id: self.shared.log_id,
            generation: self.generation(),
            first: self.written.seq.next(),
            covered_last: Seq::ZERO,
            chain_before: self.written.chain,
        };
        let segment = match create_segment(&*self.shared.fs, &self.shared.dir, header) {
            Ok(segment) => Arc::new(segment),
            Err(failure) if is_full(&failure.source) => return Err(self.full()),
            Err(failure) => {
                self.poisoned = true;
                return Err(failure.into());
            }
        };
        self.written = Tip { end: HEADER_BYTES as u64, count: 0, time_first: 0, ..self.written };
        self.allocated = self.written.end;
        self.open = Some(Arc::clone(&segment));
        let mut state = self.shared.write();
        let mut segments = Vec::clone(&state.segments);
        segments.push(Arc::clone(&segment));
        state.segments = Arc::new(segments);
        state.tip = self.written;
        Ok(segment)
    }

    /// Returns the number of durable bytes that the head file does not vouch for: their loss would not be detected.
    #[must_use]
    pub fn unvouched_bytes(&self) -> u64 {
        self.unvouched
    }

    /// Records the durable position in the head file. Call it from time to time, and when there was no commit for a
    /// while. It is cheap if nothing changed.
    ///
    /// # Errors
    /// If the head file cannot be written; the log itself is not affected.
    pub fn idle(&mut self) -> Result<(), IoFailure> {
        self.shared.write_head().map_err(IoFailure::at("write", super::directory::HEAD))?;
        self.unvouched = 0;
        Ok(())
    }

    /// Syncs the batch in flight, records it in the head file and closes the log.
    ///
    /// # Errors
    /// As [`Log::sync`] and [`Log::idle`].
    pub fn close(mut self) -> Result<(), SyncError> {
        self.sync()?;
        self.idle()?;
        Ok(())
    }

    /// Starts a new generation at the head; its number must be above every earlier one. Durable on return.
    ///
    /// # Errors
    /// If a batch is in flight, the lineage is full, or the head file cannot be written.
    pub fn start_generation(&mut self, generation: Generation) -> Result<(), AppendError> {
        self.seal()?;
        let mut lineage = self.lineage();
        let context = || IoFailure::at("start a generation of", self.shared.dir.display());
        if generation <= self.generation() {
            let low = io::Error::other(format!("{generation} is not above {}", self.generation()));
            return Err(context()(low).into());
        }
        if lineage.len() >= LINEAGE_MAX {
            let full = io::Error::other(format!("the lineage is full: a log has at most {LINEAGE_MAX} generations"));
            return Err(context()(full).into());
        }
        lineage.push(LineageEntry { generation, shared_to: self.written.seq });
        self.shared.set_lineage(generation, lineage).map_err(IoFailure::at("write", super::directory::HEAD))?;
        Ok(())
    }

    /// Returns whether the disk reserve exists.
    pub fn has_reserve(&self) -> bool {
        self.shared.has_reserve()
    }

    /// Frees the disk reserve, for deletes and compaction on a full disk. Returns false if there was none.
    pub fn drop_reserve(&self) -> bool {
        self.shared.drop_reserve()
    }

    /// Creates the reserve again once there is space. Returns whether the reserve exists.
    pub fn restore_reserve(&self) -> bool {
        self.shared.restore_reserve()
    }

    /// Returns the free bytes of the disk of the log.
    ///
    /// # Errors
    /// If the operating system reports an error.
    pub fn free_space(&self) -> io::Result<u64> {
        self.shared.fs.free_space(&self.shared.dir)
    }
}

/// Returns the footer of a segment that ends at `tip`.
pub(super) fn footer_of(tip: &Tip) -> Footer {
    Footer {
        count: tip.count,
        last: tip.seq,
        frame_chain: tip.chain,
        chain_after: tip.chain,
        time_first: tip.time_first,
        time_last: tip.time_last,
        frames_bytes: tip.end - HEADER_BYTES as u64,
        digest: gravwell_model::Digest::ZERO,
        deletions_after: None,
    }
}

/// Creates an empty open segment durably.
pub(super) fn create_segment(fs: &dyn Fs, dir: &Path, header: FileHeader) -> Result<Segment, IoFailure> {
    let name = SegmentName { first: header.first, last: None }.to_string();
    let path = dir.join(&name);
    let file = fs.create(&path).map_err(IoFailure::at("create", &name))?;
    let fill = || {
        file.write_at(&header.encode(), 0).map_err(IoFailure::at("write", &name))?;
        file.sync_data().map_err(IoFailure::at("sync", &name))?;
        fs.sync_dir(dir).map_err(IoFailure::at("sync", dir.display()))
    };
    if let Err(failure) = fill() {
        // A partial segment would look like damage to a concurrent verification. If the removal fails, the next start
        // removes the file.
        let _ = fs.remove(&path);
        return Err(failure);
    }
    Ok(Segment { name, file, header, footer: None, index: SparseIndex::default().into(), garbage: 0.into() })
}
