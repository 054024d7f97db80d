//! Collects the readable parts of a damaged log. It only reads, and lists every damaged place it skips.
//!
//! A repair needs two answers: which sequences are known to have existed, and which records follow a given position on
//! its own history. The chain answers the second one: a record counts only if it continues the chain.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cursor::{FrameCursor, RawFrame, find_frame};
use super::directory::{HEAD, SegmentName};
use super::error::{Damage, IoFailure, OpenError};
use super::format::{FOOTER_BYTES, FileHeader, HEADER_BYTES, HeadSlot};
use super::head::read_head;
use super::segment::{hex, read_footer, read_header};
use super::{recovery, verify};
use gravwell_env::fs::{File, Fs};
use gravwell_model::codec::frame::{CHAIN_START, check_chain};
use gravwell_model::{Chain, Generation, LogId, Seq};

/// The readable remainder of a log.
#[derive(Debug)]
pub struct Salvage {
    /// Every damaged place; empty if the log is intact.
    pub damages: Vec<Damage>,
    /// The newest intact slot of the head file.
    pub head: Option<HeadSlot>,
    /// Id of the log, as far as the head file and the segment headers contain it.
    pub log_id: Option<LogId>,
    /// Highest generation in which a segment was started.
    pub generation: Generation,
    /// Highest sequence with any trace: in the head file, in a file name, in a header or in an intact record.
    pub known: Option<Seq>,
    segments: Vec<Piece>,
}

/// One segment file in any state.
#[derive(Debug)]
struct Piece {
    name: SegmentName,
    file: Arc<dyn File>,
    length: u64,
    header: Option<FileHeader>,
}

/// Examines the log in a directory. A missing directory counts as damage as well.
///
/// # Errors
/// If the directory cannot be read.
pub fn salvage(fs: &dyn Fs, dir: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Salvage, IoFailure> {
    if !fs.exists(dir).map_err(IoFailure::at("look for", dir.display()))? {
        let missing = Damage::new(dir.display(), 0, "the log's directory", "present", "missing");
        return Ok(Salvage {
            damages: vec![missing],
            head: None,
            log_id: None,
            generation: Generation::default(),
            known: None,
            segments: Vec::new(),
        });
    }
    let mut damages = verify(fs, dir, progress).damages;
    // Opening checks a few more rules, about surplus and missing files.
    if damages.is_empty() {
        match recovery::plan(fs, dir) {
            Err(OpenError::Damaged { first, .. }) => damages.push(first),
            Err(OpenError::Io(failure)) => return Err(failure),
            Ok(plan) if plan.is_new() => {
                damages.push(Damage::new(dir.display(), 0, "the log's directory", "a log", "no head file, no segment"));
            }
            Ok(_) => {}
        }
    }
    let head = match read_head(fs, dir) {
        Ok(read) => read.ok().map(|(slot, _)| slot),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(IoFailure::at("read", HEAD)(error)),
    };
    let mut salvage =
        Salvage { damages, log_id: None, generation: Generation::default(), known: None, segments: Vec::new(), head };
    let files = fs.list(dir).map_err(IoFailure::at("list", dir.display()))?;
    let mut names: Vec<_> = files.iter().filter_map(|file| SegmentName::parse(file)).collect();
    names.sort();
    for name in names {
        salvage.segments.push(Piece::open(fs, dir, name)?);
    }
    salvage.look()?;
    Ok(salvage)
}

impl Piece {
    fn open(fs: &dyn Fs, dir: &Path, name: SegmentName) -> Result<Piece, IoFailure> {
        let path: PathBuf = dir.join(name.to_string());
        let file = fs.open(&path).map_err(IoFailure::at("open", name))?;
        let length = file.len().map_err(IoFailure::at("measure", name))?;
        let header = read_header(&*file).map_err(IoFailure::at("read", name))?.ok();
        Ok(Piece { name, file, length, header })
    }

    /// Calls `visit` for every intact record in order, and continues after damage.
    fn records(&self, mut visit: impl FnMut(&RawFrame)) -> Result<(), IoFailure> {
        let failed = || IoFailure::at("read", self.name);
        let mut cursor = FrameCursor::new(Arc::clone(&self.file), HEADER_BYTES as u64, self.length);
        let mut last = Seq::ZERO;
        loop {
            let at = cursor.offset();
            match cursor.next().map_err(failed())? {
                Ok(None) => return Ok(()),
                Ok(Some(raw)) => {
                    last = raw.header.seq;
                    visit(&raw);
                }
                Err(_) => {
                    let fits = |seq: Seq| seq > last && self.name.last.is_none_or(|end| seq <= end);
                    let next = find_frame(&*self.file, at, self.length, |header| fits(header.seq)).map_err(failed())?;
                    let Some((offset, _)) = next else { return Ok(()) };
                    cursor = FrameCursor::new(Arc::clone(&self.file), offset, self.length);
                }
            }
        }
    }
}

impl Salvage {
    /// Collects the id, the generation and the highest known sequence.
    fn look(&mut self) -> Result<(), IoFailure> {
        let head = self.head.as_ref();
        let headers = self.segments.iter().filter_map(|piece| piece.header);
        self.log_id = head.map(|head| head.log_id).or_else(|| headers.clone().map(|header| header.log_id).next());
        self.generation = headers.map(|header| header.generation).max().unwrap_or_default();
        let mut known = head.map(|head| head.seq);
        for piece in &self.segments {
            known = known.max(piece.name.last).max(Some(Seq(piece.name.first.0.saturating_sub(1))));
            if piece.name.last.is_none() {
                piece.records(|raw| known = known.max(Some(raw.header.seq)))?;
            }
        }
        self.known = known;
        Ok(())
    }

    /// Returns whether the log is free of damage.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.damages.is_empty()
    }

    /// Calls `visit` for every intact record up to `to`, including compacted ones, oldest first.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub(super) fn records_to(&self, to: Seq, mut visit: impl FnMut(&RawFrame)) -> Result<(), IoFailure> {
        for piece in self.segments.iter().filter(|piece| piece.name.first <= to) {
            piece.records(|raw| {
                if raw.header.seq <= to {
                    visit(raw);
                }
            })?;
        }
        Ok(())
    }

    /// Calls `visit`, in order, for every intact record that continues the history with chain value `chain` at `seq`.
    /// Returns the position where that history ends.
    ///
    /// # Errors
    /// If a file cannot be read. Also returns the error of `visit`.
    pub(super) fn following<E: From<IoFailure>>(
        &self,
        (mut seq, mut chain): (Seq, Chain),
        mut visit: impl FnMut(&RawFrame) -> Result<(), E>,
    ) -> Result<(Seq, Chain), E> {
        for piece in &self.segments {
            if piece.name.last.is_some_and(|last| last <= seq) {
                continue;
            }
            let mut stopped = None;
            piece.records(|raw| {
                // In a compacted segment the chain covers only the remaining records, so they never continue this history.
                if stopped.is_none()
                    && raw.header.seq == seq.next()
                    && let Ok(after) = check_chain(&raw.bytes, &chain)
                {
                    (seq, chain) = (raw.header.seq, after);
                    stopped = visit(raw).err();
                }
            })?;
            if let Some(error) = stopped {
                return Err(error);
            }
        }
        Ok((seq, chain))
    }

    /// Returns every chain value that the log states for `seq`, with the place that states it.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub(super) fn chains_at(&self, seq: Seq) -> Result<Vec<(String, Chain)>, IoFailure> {
        let mut found = Vec::new();
        if seq == Seq::ZERO {
            found.push(("the start".to_owned(), CHAIN_START));
        }
        let head = self.head.iter().filter(|head| head.seq == seq);
        found.extend(head.map(|head| (HEAD.to_owned(), head.chain)));
        for piece in &self.segments {
            let name = piece.name.to_string();
            let Some(header) = piece.header else { continue };
            if header.first == seq.next() {
                found.push((name.clone(), header.chain_before));
            }
            if piece.name.last == Some(seq) {
                let at = piece.length.saturating_sub(FOOTER_BYTES as u64);
                let footer = read_footer(&*piece.file, at).map_err(IoFailure::at("read", &name))?;
                found.extend(footer.ok().map(|footer| (name.clone(), footer.chain_after)));
            }
            if !header.is_compacted() && header.first <= seq && piece.name.last.is_none_or(|last| seq <= last) {
                piece.records(|raw| {
                    if raw.header.seq == seq {
                        found.push((name.clone(), raw.header.chain));
                    }
                })?;
            }
        }
        Ok(found)
    }

    /// Describes the first place where the log contradicts a history with chain value `chain` at `seq`; `None` if
    /// there is none.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn contradiction(&self, seq: Seq, chain: Chain) -> Result<Option<String>, IoFailure> {
        let other = self.chains_at(seq)?.into_iter().find(|(_, found)| *found != chain);
        Ok(other.map(|(place, found)| format!("{place} has chain {} at {seq}, not {}", hex(&found), hex(&chain))))
    }
}
