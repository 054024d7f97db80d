//! What can still be read of a damaged log. Reads only, and skips nothing silently: every damaged place is listed.
//!
//! Two questions matter to a repair: which sequences are known to have existed, and which records follow a given
//! position on its own history. The second is answered by the chain: a record counts only when it continues it.

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
use crate::codec::frame::{CHAIN_START, check_chain};
use crate::env::fs::{File, Fs};
use crate::model::{Chain, Generation, LogId, Seq};

/// What is left of a log.
#[derive(Debug)]
pub struct Salvage {
    /// Every damaged place; empty when the log is good.
    pub damages: Vec<Damage>,
    /// The newest whole slot of the head file.
    pub head: Option<HeadSlot>,
    /// Which log it is, as far as head file and headers tell.
    pub log_id: Option<LogId>,
    /// Greatest generation that a segment was begun in.
    pub generation: Generation,
    /// Greatest sequence of which there is a trace: in the head file, a file's name, a header or an intact record.
    pub known: Option<Seq>,
    segments: Vec<Piece>,
}

/// One segment file, whatever state it is in.
#[derive(Debug)]
struct Piece {
    name: SegmentName,
    file: Arc<dyn File>,
    length: u64,
    header: Option<FileHeader>,
}

/// Examines the log in a directory; one that is missing is damaged, too.
///
/// # Errors
/// When the directory cannot be read.
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
    // Opening knows a few more rules, about files that are too many or too few.
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

    /// Gives every intact record to `visit`, in order; goes on behind damage.
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
    /// Gathers what there are traces of.
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

    /// Whether nothing is wrong with the log.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.damages.is_empty()
    }

    /// Gives every intact record up to `to`, compacted ones included, to `visit`, oldest first.
    ///
    /// # Errors
    /// When a file cannot be read.
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

    /// Gives every intact record that continues the history which has `chain` at `seq`, whole frames in order, to
    /// `visit`; returns where that ends.
    ///
    /// # Errors
    /// When a file cannot be read, or what `visit` returns.
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
                // In a compacted segment the chain runs over what is left: its records never fit.
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

    /// Every place where the log says what its chain was at `seq`, with what it says.
    ///
    /// # Errors
    /// When a file cannot be read.
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

    /// Says where the log contradicts a history that has `chain` at `seq`; `None` when nothing does.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn contradiction(&self, seq: Seq, chain: Chain) -> Result<Option<String>, IoFailure> {
        let other = self.chains_at(seq)?.into_iter().find(|(_, found)| *found != chain);
        Ok(other.map(|(place, found)| format!("{place} has chain {} at {seq}, not {}", hex(&found), hex(&chain))))
    }
}
