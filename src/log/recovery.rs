//! Opens a log in three steps: scan, a plan that can be displayed, and its execution.
//!
//! The scan reads every byte of every segment and changes nothing. If anything is damaged, planning fails with an
//! error that contains file and offset. The only bytes ever removed are those of the one batch that was not synced
//! when the process exited; they are copied to `quarantine/` first.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::LogOptions;
use super::cursor::{find_frame, zeros_from};
use super::directory::{HEAD, QUARANTINE, RESERVE, SegmentName, UNFINISHED};
use super::error::{Damage, IoFailure, OpenError};
use super::format::{FLAG_JOURNAL, FOOTER_BYTES, FileHeader, Footer, HEADER_BYTES, HeadSlot};
use super::head::{HeadFile, read_head};
use super::segment::{Scan, Segment, check_footer, hex, read_footer, read_header, scan_frames};
use super::shared::{LogState, State, Tip};
use super::trim;
use super::writer::create_segment;
use gravwell_env::entropy::{Entropy, SystemEntropy};
use gravwell_env::fs::{File, Fs, write_again};
use gravwell_model::codec::error::DecodeError;
use gravwell_model::codec::frame::CHAIN_START;
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::{Chain, Generation, LineageEntry, LogId, Seq};

/// One step of the recovery of a log directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecoveryAction {
    /// Create a log, because the directory contains none.
    CreateLog,
    /// Remove a leftover file of interrupted work.
    RemoveLeftover {
        /// File name.
        file: String,
    },
    /// Remove a segment whose compacted successor is complete.
    RemoveCovered {
        /// File name.
        file: String,
        /// Name of the successor.
        by: String,
    },
    /// Rename a segment that was sealed but not yet renamed.
    FinishSeal {
        /// Current file name.
        from: String,
        /// New file name.
        to: String,
        /// Length to which the file is truncated.
        length: u64,
    },
    /// Copy a torn, never acknowledged batch to `quarantine/`, then remove it.
    CutTail {
        /// File name.
        file: String,
        /// Offset at which the file is truncated.
        offset: u64,
        /// Number of bytes without the trailing zero padding.
        bytes: u64,
        /// The error at `offset`.
        error: DecodeError,
    },
    /// Create the open segment.
    CreateSegment {
        /// First sequence of the segment.
        first: Seq,
    },
    /// Rewrite a slot of the head file that a crash left torn.
    RepairHead {
        /// The damage of the slot.
        damage: Damage,
    },
}

impl fmt::Display for RecoveryAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecoveryAction::CreateLog => f.write_str("create a new log"),
            RecoveryAction::RemoveLeftover { file } => write!(f, "remove {file}, a leftover of interrupted work"),
            RecoveryAction::RemoveCovered { file, by } => write!(f, "remove {file}, replaced by {by}"),
            RecoveryAction::FinishSeal { from, to, .. } => write!(f, "finish closing {from} as {to}"),
            RecoveryAction::CutTail { file, offset, bytes, error } => {
                write!(f, "copy {bytes} bytes of a torn write at byte {offset} of {file} to {QUARANTINE}/ and cut ")?;
                write!(f, "them off ({error})")
            }
            RecoveryAction::CreateSegment { first } => write!(f, "create the segment that starts with {first}"),
            RecoveryAction::RepairHead { damage } => write!(f, "write the torn slot of the head file again ({damage})"),
        }
    }
}

/// Result of opening a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Completed steps in order; empty after a clean shutdown.
    pub actions: Vec<RecoveryAction>,
    /// Bytes of records read and checked.
    pub bytes_checked: u64,
    /// Number of segments.
    pub segments: usize,
    /// Files with the removed bytes, relative to the log directory.
    pub quarantined: Vec<String>,
}

/// The steps of opening a log, and the result of the scan.
#[derive(Debug)]
pub struct RecoveryPlan {
    /// Steps, in order.
    pub actions: Vec<RecoveryAction>,
    /// Bytes of records read and checked.
    pub bytes_checked: u64,
    head: Option<HeadSlot>,
    segments: Vec<Segment>,
    tip: Tip,
    horizon: Seq,
}

impl RecoveryPlan {
    pub(super) fn is_new(&self) -> bool {
        self.head.is_none()
    }
}

struct Scanner<'a> {
    fs: &'a dyn Fs,
    dir: &'a Path,
    head: HeadSlot,
    actions: Vec<RecoveryAction>,
    damages: Vec<Damage>,
    segments: Vec<Segment>,
    tip: Tip,
    bytes_checked: u64,
}

/// Reads a directory and plans how to open it. Changes nothing.
///
/// # Errors
/// If anything is damaged or cannot be read.
pub fn plan(fs: &dyn Fs, dir: &Path) -> Result<RecoveryPlan, OpenError> {
    let mut actions = Vec::new();
    let mut names = Vec::new();
    let exists = fs.exists(dir).map_err(IoFailure::at("look for", dir.display()))?;
    let files = if exists { fs.list(dir).map_err(IoFailure::at("list", dir.display()))? } else { Vec::new() };
    for file in &files {
        if let Some(name) = SegmentName::parse(file) {
            names.push(name);
        } else if file.ends_with(UNFINISHED) {
            actions.push(RecoveryAction::RemoveLeftover { file: file.clone() });
        }
    }
    if !files.iter().any(|file| file == HEAD) {
        if let Some(name) = names.first() {
            return Err(Damage::new(HEAD, 0, "head file", format_args!("present next to {name}"), "missing").into());
        }
        actions.push(RecoveryAction::CreateLog);
        return Ok(RecoveryPlan {
            actions,
            bytes_checked: 0,
            head: None,
            segments: Vec::new(),
            tip: Tip::default(),
            horizon: Seq::ZERO,
        });
    }
    let (head, torn) = read_head(fs, dir).map_err(IoFailure::at("read", HEAD))??;
    actions.extend(torn.map(|damage| RecoveryAction::RepairHead { damage }));
    let mut scanner = Scanner {
        fs,
        dir,
        head,
        actions,
        damages: Vec::new(),
        segments: Vec::new(),
        tip: Tip { chain: CHAIN_START, ..Tip::default() },
        bytes_checked: 0,
    };
    scanner.all(names)?;
    scanner.finish()
}

impl Scanner<'_> {
    fn damage(&mut self, damage: Damage) {
        self.damages.push(damage);
    }

    fn all(&mut self, mut names: Vec<SegmentName>) -> Result<(), OpenError> {
        let last_of = |name: &SegmentName| name.last.unwrap_or(Seq(u64::MAX));
        names.sort_by_key(|name| (name.first, std::cmp::Reverse(last_of(name))));
        if let Some(start) = trim::start(self.fs, self.dir, &self.head, &mut names)? {
            let leftover = start.leftover.iter().map(|name| RecoveryAction::RemoveLeftover { file: name.to_string() });
            self.actions.extend(leftover);
            (self.tip.seq, self.tip.chain) = (start.seq, start.chain);
        }
        // An open segment sorts before a sealed one with the same start; it never covers another segment.
        let mut wide: Option<SegmentName> = None;
        let mut covered = Vec::new();
        names.retain(|name| match (wide, name.last) {
            (Some(by), Some(last)) if by.last.is_some_and(|end| last <= end) => {
                covered.push((*name, by));
                false
            }
            _ => {
                wide = Some(*name);
                true
            }
        });
        let count = names.len();
        for (name, position) in names.into_iter().zip(1..) {
            self.gap(name);
            match name.last {
                Some(last) => self.sealed(name, last)?,
                None if position == count => self.open(name)?,
                None => self.damage(Damage::new(name, 0, "open segment", "the last file", "later segments")),
            }
        }
        for (name, by) in covered {
            let successor = self.segments.iter().find(|segment| segment.name == by.to_string());
            if successor.is_some_and(|segment| segment.header.is_compacted()) {
                let (file, by) = (name.to_string(), by.to_string());
                self.actions.push(RecoveryAction::RemoveCovered { file, by });
            } else {
                self.damage(Damage::new(name, 0, "range", "not covered by another segment", by));
            }
        }
        Ok(())
    }

    /// Checks that a segment starts where the previous one ended.
    fn gap(&mut self, name: SegmentName) {
        let expected = self.tip.seq.next();
        if name.first != expected {
            let what = format!("segment that starts with {expected}");
            self.damage(Damage::new(name, 0, what, "present", format_args!("the next one starts with {}", name.first)));
        }
    }

    fn open_file(&self, name: &str) -> Result<Arc<dyn File>, IoFailure> {
        self.fs.open(&self.dir.join(name)).map_err(IoFailure::at("open", name))
    }

    /// Checks a header against the log and the previous segment.
    fn header(&mut self, name: &str, first: Seq, header: &FileHeader) {
        let wrong = if header.log_id != self.head.log_id {
            Some(("log id", self.head.log_id.to_string(), header.log_id.to_string()))
        } else if header.flags & FLAG_JOURNAL != 0 {
            Some(("file kind", "a segment".into(), "a journal".into()))
        } else if header.first != first {
            Some(("first sequence", first.to_string(), header.first.to_string()))
        } else if header.generation > self.head.generation {
            Some(("generation", format!("at most {}", self.head.generation), header.generation.to_string()))
        } else if header.chain_before != self.tip.chain {
            Some(("chain before", hex(&self.tip.chain), hex(&header.chain_before)))
        } else {
            None
        };
        if let Some((what, expected, found)) = wrong {
            self.damage(Damage::new(name, 0, format_args!("file header: {what}"), expected, found));
        }
    }

    fn sealed(&mut self, name: SegmentName, last: Seq) -> Result<(), OpenError> {
        let file_name = name.to_string();
        let file = self.open_file(&file_name)?;
        let failed = |action| IoFailure::at(action, &file_name);
        let length = file.len().map_err(failed("measure"))?;
        let footer_at = length.saturating_sub(FOOTER_BYTES as u64).max(HEADER_BYTES as u64);
        let header = read_header(&*file).map_err(failed("read"))?;
        let footer = read_footer(&*file, footer_at).map_err(failed("read"))?;
        let (header, footer) = match (header, footer) {
            (Ok(header), Ok(footer)) => (header, footer),
            (header, footer) => {
                header.err().into_iter().for_each(|e| self.damage(Damage::decode(&file_name, 0, &e)));
                footer.err().into_iter().for_each(|e| self.damage(Damage::decode(&file_name, footer_at, &e)));
                self.tip = Tip { seq: last, ..self.tip };
                return Ok(());
            }
        };
        self.header(&file_name, name.first, &header);
        if footer.frames_bytes != footer_at - HEADER_BYTES as u64 || footer.last != last {
            let (expected, found) =
                (format!("{last} and {footer_at}"), format!("{} and {}", footer.last, footer.frames_bytes));
            self.damage(Damage::new(&file_name, footer_at, "footer: last sequence and length", expected, found));
        }
        let head_seq = self.head.seq;
        let mut head_chain = None;
        let scan = scan_frames(&file, header.is_compacted(), false, footer_at, Scan::new(&header), |raw| {
            if raw.header.seq == head_seq && !header.is_compacted() {
                head_chain = Some(raw.header.chain);
            }
        });
        let scan = scan.map_err(failed("read"))?;
        self.bytes_checked += scan.end;
        match &scan.stopped {
            Some(error) => self.damage(Damage::decode(&file_name, scan.end, error)),
            None => check_footer(&file_name, &header, &footer, &scan).into_iter().for_each(|d| self.damage(d)),
        }
        self.head_chain(&file_name, head_chain.or((last == head_seq).then_some(footer.chain_after)));
        let time_last = footer.time_last.max(self.tip.time_last);
        self.tip = Tip { seq: last, chain: footer.chain_after, time_last, ..Tip::default() };
        let index = scan.index.into();
        self.segments.push(Segment { name: file_name, file, header, footer: Some(footer), index, garbage: 0.into() });
        Ok(())
    }

    fn head_chain(&mut self, file: &str, found: Option<Chain>) {
        if let Some(found) = found
            && found != self.head.chain
        {
            let what = format!("chain at {}", self.head.seq);
            self.damage(Damage::new(file, 0, what, format_args!("{} (head file)", hex(&self.head.chain)), hex(&found)));
        }
    }

    fn open(&mut self, name: SegmentName) -> Result<(), OpenError> {
        let file_name = name.to_string();
        let file = self.open_file(&file_name)?;
        let failed = |action| IoFailure::at(action, &file_name);
        let length = file.len().map_err(failed("measure"))?;
        let header = match read_header(&*file).map_err(failed("read"))? {
            Ok(header) => header,
            Err(error) => return self.torn_header(name, &*file, length, error),
        };
        self.header(&file_name, name.first, &header);
        let head_seq = self.head.seq;
        let mut head_chain = None;
        let scan = scan_frames(&file, false, true, length, Scan::new(&header), |raw| {
            if raw.header.seq == head_seq {
                head_chain = Some(raw.header.chain);
            }
        });
        let scan = scan.map_err(failed("read"))?;
        self.bytes_checked += scan.end;
        self.head_chain(&file_name, head_chain);
        let footer = self.open_end(name, &*file, length, &scan)?;
        self.tip = Tip {
            seq: scan.last,
            chain: scan.chain,
            end: scan.end,
            count: scan.count,
            time_first: scan.time_first,
            time_last: scan.time_last.max(self.tip.time_last),
        };
        let (mut seg_name, index) = (file_name, scan.index.into());
        if let Some(footer) = &footer {
            seg_name = SegmentName { last: Some(footer.last), ..name }.to_string();
        }
        self.segments.push(Segment { name: seg_name, file, header, footer, index, garbage: 0.into() });
        Ok(())
    }

    /// Classifies the bytes after the last valid frame of the open segment: the footer of an unfinished seal,
    /// preallocated space, a torn batch, or damage.
    fn open_end(
        &mut self,
        name: SegmentName,
        file: &dyn File,
        length: u64,
        scan: &Scan,
    ) -> Result<Option<Footer>, OpenError> {
        let file_name = name.to_string();
        let failed = || IoFailure::at("read", &file_name);
        let Some(error) = scan.stopped.clone() else { return Ok(None) };
        let used = zeros_from(file, scan.end, length).map_err(failed())?;
        if used == scan.end {
            return Ok(None);
        }
        if let Ok(footer) = read_footer(file, scan.end).map_err(failed())?
            && used <= scan.end + FOOTER_BYTES as u64
            && footer == super::writer::footer_of(&tip_of(scan))
        {
            let to = SegmentName { last: Some(footer.last), ..name }.to_string();
            let length = scan.end + FOOTER_BYTES as u64;
            self.actions.push(RecoveryAction::FinishSeal { from: file_name, to, length });
            return Ok(Some(footer));
        }
        // A torn write cannot produce a frame with valid checksums at a wrong position in the history.
        let intact = matches!(error.what, "sequence" | "chain");
        let expected = scan.last.next();
        let later = find_frame(file, scan.end, length, |header| header.batch_first() > expected).map_err(failed())?;
        if intact || later.is_some() || self.vouched() > scan.last {
            self.damage(Damage::decode(&file_name, scan.end, &error));
        } else {
            let (file, bytes) = (file_name, used - scan.end);
            self.actions.push(RecoveryAction::CutTail { file, offset: scan.end, bytes, error });
        }
        Ok(None)
    }

    /// Handles an open segment without a valid header: the crash happened during its creation, unless it contains records.
    fn torn_header(
        &mut self,
        name: SegmentName,
        file: &dyn File,
        length: u64,
        error: DecodeError,
    ) -> Result<(), OpenError> {
        let file_name = name.to_string();
        let failed = || IoFailure::at("read", &file_name);
        let records = find_frame(file, 0, length, |_| true).map_err(failed())?.is_some();
        if records || self.vouched() >= name.first {
            self.damage(Damage::decode(&file_name, 0, &error));
            return Ok(());
        }
        let bytes = zeros_from(file, 0, length).map_err(failed())?;
        if bytes > 0 {
            self.actions.push(RecoveryAction::CutTail { file: file_name, offset: 0, bytes, error });
        }
        Ok(())
    }

    /// Returns the sequence up to which the head file vouches that the log was durable.
    fn vouched(&self) -> Seq {
        if fault_injection::is(Bug::HeadNotAsked) { Seq::ZERO } else { self.head.seq }
    }

    fn finish(mut self) -> Result<RecoveryPlan, OpenError> {
        if self.vouched() > self.tip.seq && self.damages.is_empty() {
            let file = self.segments.last().map_or_else(|| HEAD.to_owned(), |segment| segment.name.clone());
            let expected = format!("records up to {} (head file)", self.head.seq);
            self.damages.push(Damage::new(file, self.tip.end, "end of the log", expected, self.tip.seq));
        }
        if !self.damages.is_empty() {
            let first = self.damages.remove(0);
            return Err(OpenError::Damaged { first, more: self.damages.len() });
        }
        if self.segments.last().is_none_or(|segment| segment.footer.is_some()) {
            self.actions.push(RecoveryAction::CreateSegment { first: self.tip.seq.next() });
        }
        let compacted = self.segments.iter().filter(|segment| segment.header.is_compacted());
        let horizon = compacted.map(|segment| segment.header.covered_last).max().unwrap_or_default();
        Ok(RecoveryPlan {
            actions: self.actions,
            bytes_checked: self.bytes_checked,
            horizon: horizon.max(self.head.horizon),
            head: Some(self.head),
            segments: self.segments,
            tip: self.tip,
        })
    }
}

fn tip_of(scan: &Scan) -> Tip {
    Tip {
        seq: scan.last,
        chain: scan.chain,
        end: scan.end,
        count: scan.count,
        time_first: scan.time_first,
        time_last: scan.time_last,
    }
}

/// Executes a plan and makes the result durable.
pub(super) fn carry_out(
    plan: RecoveryPlan,
    fs: Arc<dyn Fs>,
    dir: &Path,
    options: &LogOptions,
) -> Result<(LogState, RecoveryReport), OpenError> {
    fs.create_dir_all(dir).map_err(IoFailure::at("create", dir.display()))?;
    let mut report = RecoveryReport { bytes_checked: plan.bytes_checked, ..RecoveryReport::default() };
    let (mut segments, mut tip) = (plan.segments, plan.tip);
    let head = match plan.head {
        Some(slot) => HeadFile::open(&*fs, dir, slot).map_err(IoFailure::at("open", HEAD))?,
        None => HeadFile::create(&*fs, dir, new_slot()?).map_err(IoFailure::at("create", HEAD))?,
    };
    // The renamed segment that covers others may be in the page cache only.
    if plan.actions.iter().any(|action| matches!(action, RecoveryAction::RemoveCovered { .. })) {
        fs.sync_dir(dir).map_err(IoFailure::at("sync", dir.display()))?;
    }
    for action in &plan.actions {
        carry_out_one(action, &*fs, dir, &mut report)?;
    }
    fs.sync_dir(dir).map_err(IoFailure::at("sync", dir.display()))?;
    let slot = head.current().clone();
    // Records that the head file does not vouch for may be in the page cache only, although they can be read. They
    // count as durable from here on, so they are written again.
    let trusting = fault_injection::is(Bug::LogTrustsCache);
    if let Some(segment) = segments.last().filter(|segment| segment.footer.is_none() && !trusting) {
        let length = if slot.seq < tip.seq { tip.end } else { HEADER_BYTES as u64 };
        write_again(&*segment.file, length).map_err(IoFailure::at("sync", &segment.name))?;
    }
    if segments.last().is_none_or(|segment| segment.footer.is_some()) {
        let header = FileHeader {
            flags: trim::flags(options),
            log_id: slot.log_id,
            generation: slot.generation,
            first: tip.seq.next(),
            covered_last: Seq::ZERO,
            chain_before: tip.chain,
        };
        let made = match create_segment(&*fs, dir, header) {
            Err(failure) if gravwell_env::fs::is_full(&failure.source) && fs.remove(&dir.join(RESERVE)).is_ok() => {
                create_segment(&*fs, dir, header)
            }
            made => made,
        };
        segments.push(made?);
        tip = Tip { end: HEADER_BYTES as u64, count: 0, time_first: 0, ..tip };
    }
    report.segments = segments.len();
    report.actions = plan.actions;
    let state = State {
        segments: Arc::new(segments.into_iter().map(Arc::new).collect()),
        horizon: plan.horizon,
        tip,
        generation: slot.generation,
        lineage: slot.lineage,
    };
    let shared = LogState::new(fs, dir.to_owned(), options, state, head);
    // Both slots are rewritten, because the slots that were read may be in the page cache only as well.
    let (generation, lineage) = (shared.read().generation, shared.read().lineage.clone());
    match shared.set_lineage(generation, lineage.clone()) {
        Err(error) if gravwell_env::fs::is_full(&error) && shared.fs.remove(&shared.dir.join(RESERVE)).is_ok() => {
            shared.set_lineage(generation, lineage)
        }
        written => written,
    }
    .map_err(IoFailure::at("write", HEAD))?;
    Ok((shared, report))
}

fn new_slot() -> Result<HeadSlot, IoFailure> {
    let mut id = [0; 16];
    SystemEntropy.fill(&mut id).map_err(IoFailure::at("draw random bytes for", "the log id"))?;
    Ok(HeadSlot {
        counter: 1,
        log_id: LogId(id),
        generation: Generation(1),
        seq: Seq::ZERO,
        chain: CHAIN_START,
        horizon: Seq::ZERO,
        lineage: vec![LineageEntry { generation: Generation(1), shared_to: Seq::ZERO }],
    })
}

fn carry_out_one(
    action: &RecoveryAction,
    fs: &dyn Fs,
    dir: &Path,
    report: &mut RecoveryReport,
) -> Result<(), IoFailure> {
    match action {
        RecoveryAction::CreateLog | RecoveryAction::CreateSegment { .. } | RecoveryAction::RepairHead { .. } => Ok(()),
        // Creating the head file of a new log may have replaced this leftover file already.
        RecoveryAction::RemoveLeftover { file } => match fs.remove(&dir.join(file)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(IoFailure::at("remove", file)),
        },
        RecoveryAction::RemoveCovered { file, .. } => fs.remove(&dir.join(file)).map_err(IoFailure::at("remove", file)),
        RecoveryAction::FinishSeal { from, to, length } => {
            let file = fs.open(&dir.join(from)).map_err(IoFailure::at("open", from))?;
            file.set_len(*length).map_err(IoFailure::at("cut", from))?;
            write_again(&*file, *length).map_err(IoFailure::at("sync", from))?;
            fs.rename(&dir.join(from), &dir.join(to)).map_err(IoFailure::at("rename", from))
        }
        RecoveryAction::CutTail { file, offset, bytes, .. } => {
            report.quarantined.push(quarantine(fs, dir, file, *offset, *bytes)?);
            let open = fs.open(&dir.join(file)).map_err(IoFailure::at("open", file))?;
            open.set_len(*offset).map_err(IoFailure::at("cut", file))?;
            open.sync_data().map_err(IoFailure::at("sync", file))
        }
    }
}

/// Name for a copy of these bytes: a free one, or that of a copy of the same bytes.
fn cut_name(fs: &dyn Fs, dir: &Path, file: &str, offset: u64, bytes: u64) -> io::Result<String> {
    let mut name = format!("{QUARANTINE}/{file}-{offset}.cut");
    let mut number = 1;
    while fs.exists(&dir.join(&name))? && !is_copy(fs, dir, &name, file, offset, bytes)? {
        number += 1;
        name = format!("{QUARANTINE}/{file}-{offset}-{number}.cut");
    }
    Ok(name)
}

/// Whether the file `name` holds the `bytes` of `file` at `offset`, or a beginning of them: a copy that was interrupted.
fn is_copy(fs: &dyn Fs, dir: &Path, name: &str, file: &str, offset: u64, bytes: u64) -> io::Result<bool> {
    let (copy, source) = (fs.open(&dir.join(name))?, fs.open(&dir.join(file))?);
    let length = copy.len()?;
    if length > bytes {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut at = 0;
    while at < length {
        let step = usize::try_from(length - at).unwrap_or(usize::MAX).min(left.len());
        gravwell_env::fs::read_exact_at(&*copy, &mut left[..step], at)?;
        gravwell_env::fs::read_exact_at(&*source, &mut right[..step], offset + at)?;
        if left[..step] != right[..step] {
            return Ok(false);
        }
        at += step as u64;
    }
    Ok(true)
}

/// Copies a range of a file durably to `quarantine/` and returns the name of the copy.
pub(super) fn quarantine(fs: &dyn Fs, dir: &Path, file: &str, offset: u64, bytes: u64) -> Result<String, IoFailure> {
    let name = cut_name(fs, dir, file, offset, bytes).map_err(IoFailure::at("read", QUARANTINE))?;
    let copy = || -> io::Result<()> {
        let place = dir.join(QUARANTINE);
        fs.create_dir_all(&place)?;
        let source = fs.open(&dir.join(file))?;
        let target = fs.create(&dir.join(&name))?;
        gravwell_env::fs::copy_range(&*source, offset, bytes, &*target)?;
        fs.sync_dir(&place)?;
        fs.sync_dir(dir)
    };
    match copy() {
        Err(error) if gravwell_env::fs::is_full(&error) && fs.remove(&dir.join(RESERVE)).is_ok() => copy(),
        other => other,
    }
    .map_err(IoFailure::at("keep a copy in", &name))?;
    Ok(name)
}
