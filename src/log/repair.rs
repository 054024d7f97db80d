//! Replaces a damaged log by a new one: a state as its base, followed by every record that still continues it.
//!
//! The new log is built in `log.new`, next to the old one, and is renamed to `log.repaired` when it is complete and
//! durable. Then the old log is renamed to `log.damaged-N` and the new one to `log`. Between these two renames there
//! is no `log`, so every caller that opens the directory calls [`finish_swap`] first. A crash at any point therefore
//! leaves either the old log or the new one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cursor::RawFrame;
use super::directory::SegmentName;
use super::error::IoFailure;
use super::format::{FLAG_COMPACTED, FileHeader, Footer, HEADER_BYTES, HeadSlot};
use super::head::HeadFile;
use super::salvage::Salvage;
use gravwell_env::fs::{File, Fs};
use gravwell_model::codec::error::EncodeError;
use gravwell_model::codec::frame::{CHAIN_START, flag};
use gravwell_model::codec::payload::{decode_entry, encode_entry, peek_time};
use gravwell_model::{Chain, Digest, Entry, EntryBody, Generation, Lineage, LogId, Seq};

/// Directory of the log within the data directory of a datastore.
pub const LOG: &str = "log";
/// Directory of a log that is being built.
pub const NEW: &str = "log.new";
/// Directory of a complete log that is yet to become `log`.
pub const REPAIRED: &str = "log.repaired";
/// Name prefix of damaged logs; a number follows.
pub const DAMAGED: &str = "log.damaged-";

/// Approximate size of one write.
const WRITE_BYTES: usize = 1 << 20;

/// A new log cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError<E> {
    /// The state that serves as the base cannot be read.
    #[error("{0}")]
    Base(E),
    /// A record is too long.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A file cannot be read or written.
    #[error(transparent)]
    Io(#[from] IoFailure),
}

/// Start of the new log.
#[derive(Clone, Debug)]
pub struct Start {
    /// Id of the log, taken from the old one.
    pub log_id: LogId,
    /// Generation of the new log.
    pub generation: Generation,
    /// Descent of the generations.
    pub lineage: Lineage,
    /// Sequence of the base, which becomes the horizon.
    pub seq: Seq,
    /// Chain value at `seq`.
    pub chain: Chain,
    /// Commit time at `seq`, in milliseconds.
    pub time_ms: u64,
    /// Every deletion after this sequence is among the entries of the base.
    pub deletions_after: Seq,
}

/// End of the new log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Last sequence.
    pub head: Seq,
    /// Chain value at `head`.
    pub chain: Chain,
    /// Records copied from the old log byte for byte.
    pub carried: u64,
}

struct Output {
    name: SegmentName,
    file: Arc<dyn File>,
    buffer: Vec<u8>,
    written: u64,
    footer: Footer,
}

impl Output {
    fn create(fs: &dyn Fs, dir: &Path, header: FileHeader) -> Result<Output, IoFailure> {
        // The last sequence is known only at the end; the file is renamed then.
        let name = SegmentName { first: header.first, last: None };
        let file = fs.create(&dir.join(name.to_string())).map_err(IoFailure::at("create", name))?;
        let footer = Footer {
            last: Seq(header.first.0.saturating_sub(1)),
            frame_chain: header.chain_before,
            chain_after: header.chain_before,
            ..Footer::default()
        };
        Ok(Output { name, file, buffer: header.encode().to_vec(), written: 0, footer })
    }

    fn bytes(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Updates the footer for a record that was added to the buffer.
    fn note(&mut self, seq: Seq, chain: Chain, time: Option<u64>) -> Result<(), IoFailure> {
        let footer = &mut self.footer;
        (footer.last, footer.frame_chain, footer.chain_after) = (seq, chain, chain);
        footer.count += 1;
        if let Some(time) = time.filter(|time| *time > 0) {
            footer.time_last = time;
            if footer.time_first == 0 {
                footer.time_first = time;
            }
        }
        if self.buffer.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), IoFailure> {
        self.file.write_at(&self.buffer, self.written).map_err(IoFailure::at("write", self.name))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn close(mut self, fs: &dyn Fs, dir: &Path) -> Result<(), IoFailure> {
        self.footer.frames_bytes = self.bytes() - HEADER_BYTES as u64;
        let footer = self.footer.encode();
        self.buffer.extend_from_slice(&footer);
        self.flush()?;
        self.file.sync_data().map_err(IoFailure::at("sync", self.name))?;
        let sealed = SegmentName { last: Some(self.footer.last), ..self.name };
        let (from, to) = (dir.join(self.name.to_string()), dir.join(sealed.to_string()));
        fs.rename(&from, &to).map_err(IoFailure::at("rename", self.name))
    }
}

/// Returns how far a log would reach if it were built on a state at (sequence, chain).
///
/// # Errors
/// If a file of the old log cannot be read.
pub fn reach(old: &Salvage, base: (Seq, Chain)) -> Result<Reach, IoFailure> {
    let mut carried = 0;
    let (head, chain) = old.following(base, |_| {
        carried += 1;
        Ok::<_, IoFailure>(())
    })?;
    Ok(Reach { head, chain, carried })
}

/// Calls `visit` with every intact record of the old log up to `to`, decoded as an entry. Skips records that cannot be decoded.
///
/// # Errors
/// If a file cannot be read.
pub fn entries_to(old: &Salvage, to: Seq, mut visit: impl FnMut(Entry)) -> Result<(), IoFailure> {
    old.records_to(to, |raw| decode_entry(&raw.header, &raw.payload()).ok().into_iter().for_each(&mut visit))
}

/// Writes a log durably into the directory `dir`; files already in it are removed first. `base` yields, in ascending
/// order, the entries that compaction would have kept up to `start.seq`.
///
/// # Errors
/// If a read or a write fails. The directory is unusable then.
pub fn build<E>(
    fs: &dyn Fs,
    dir: &Path,
    start: &Start,
    base: impl Iterator<Item = Result<Entry, E>>,
    old: &Salvage,
    segment_bytes: u64,
) -> Result<Reach, BuildError<E>> {
    fs.create_dir_all(dir).map_err(IoFailure::at("create", dir.display()))?;
    for file in fs.list(dir).map_err(IoFailure::at("list", dir.display()))? {
        fs.remove(&dir.join(&file)).map_err(IoFailure::at("remove", &file))?;
    }
    if start.seq > Seq::ZERO {
        build_base(fs, dir, start, base)?;
    }
    let reach = build_tail(fs, dir, start, old, segment_bytes)?;
    let slot = HeadSlot {
        counter: 1,
        log_id: start.log_id,
        generation: start.generation,
        seq: reach.head,
        chain: reach.chain,
        horizon: start.seq,
        lineage: start.lineage.clone(),
    };
    HeadFile::create(fs, dir, slot).map_err(IoFailure::at("write", super::directory::HEAD))?;
    Ok(reach)
}

fn build_base<E>(
    fs: &dyn Fs,
    dir: &Path,
    start: &Start,
    base: impl Iterator<Item = Result<Entry, E>>,
) -> Result<(), BuildError<E>> {
    let header = FileHeader {
        flags: FLAG_COMPACTED,
        log_id: start.log_id,
        generation: start.generation,
        first: Seq(1),
        covered_last: start.seq,
        chain_before: CHAIN_START,
    };
    let mut output = Output::create(fs, dir, header)?;
    let mut digest = Digest::ZERO;
    for entry in base {
        let entry = entry.map_err(BuildError::Base)?;
        if let EntryBody::Commit(txn) = &entry.body {
            let puts = txn.ops.iter().filter_map(|op| Some((op, op.value()?)));
            digest = puts.fold(digest, |digest, (op, value)| {
                digest.plus(Digest::of_object(op.collection(), op.key(), entry.seq, value))
            });
        }
        let chain = encode_entry(&entry, &output.footer.frame_chain, 0, flag::PARTIAL, &mut output.buffer)?;
        output.note(entry.seq, chain, Some(entry.time_ms))?;
    }
    let footer = &mut output.footer;
    (footer.last, footer.chain_after, footer.digest) = (start.seq, start.chain, digest);
    (footer.time_last, footer.deletions_after) = (start.time_ms, Some(start.deletions_after));
    Ok(output.close(fs, dir)?)
}

fn build_tail<E>(
    fs: &dyn Fs,
    dir: &Path,
    start: &Start,
    old: &Salvage,
    segment_bytes: u64,
) -> Result<Reach, BuildError<E>> {
    let mut output: Option<Output> = None;
    let mut before = start.chain;
    let mut carried = 0;
    let (head, chain) = old.following((start.seq, start.chain), |raw: &RawFrame| {
        let full = |output: &Output| output.bytes() + raw.bytes.len() as u64 > segment_bytes;
        if let Some(done) = output.take_if(|output| full(output)) {
            done.close(fs, dir)?;
        }
        let current = match &mut output {
            Some(output) => output,
            none => none.insert(Output::create(
                fs,
                dir,
                FileHeader {
                    flags: 0,
                    log_id: start.log_id,
                    generation: start.generation,
                    first: raw.header.seq,
                    covered_last: Seq::ZERO,
                    chain_before: before,
                },
            )?),
        };
        current.buffer.extend_from_slice(&raw.bytes);
        current.note(raw.header.seq, raw.header.chain, peek_time(&raw.header, &raw.payload()))?;
        (before, carried) = (raw.header.chain, carried + 1);
        Ok::<_, IoFailure>(())
    })?;
    if let Some(output) = output {
        output.close(fs, dir)?;
    }
    Ok(Reach { head, chain, carried })
}

/// Replaces `log` by `log.new` and returns the path under which the damaged log is kept; `None` if there was none.
///
/// # Errors
/// If a rename fails. [`finish_swap`] resumes the swap.
pub fn swap(fs: &dyn Fs, dir: &Path) -> Result<Option<PathBuf>, IoFailure> {
    let exists = |path: &Path| fs.exists(path).map_err(IoFailure::at("look for", path.display()));
    rename(fs, dir, &dir.join(NEW), &dir.join(REPAIRED))?;
    let log = dir.join(LOG);
    let mut kept = None;
    if exists(&log)? {
        let mut number = 1;
        let aside = loop {
            let aside = dir.join(format!("{DAMAGED}{number}"));
            if !exists(&aside)? {
                break aside;
            }
            number += 1;
        };
        rename(fs, dir, &log, &aside)?;
        kept = Some(aside);
    }
    finish_swap(fs, dir)?;
    Ok(kept)
}

/// Completes a swap that was interrupted by a crash and returns whether there was one. Must be called before a log is opened.
///
/// # Errors
/// If the rename fails.
pub fn finish_swap(fs: &dyn Fs, dir: &Path) -> Result<bool, IoFailure> {
    let exists = |path: &Path| fs.exists(path).map_err(IoFailure::at("look for", path.display()));
    let (log, repaired) = (dir.join(LOG), dir.join(REPAIRED));
    if exists(&log)? || !exists(&repaired)? {
        return Ok(false);
    }
    rename(fs, dir, &repaired, &log)?;
    Ok(true)
}

fn rename(fs: &dyn Fs, dir: &Path, from: &Path, to: &Path) -> Result<(), IoFailure> {
    let done: io::Result<()> = fs.rename(from, to).and_then(|()| fs.sync_dir(dir));
    done.map_err(IoFailure::at("rename", from.display()))
}
