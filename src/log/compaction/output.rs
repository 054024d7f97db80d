//! A compacted segment while it is being written, and its verification before it replaces other segments.

use std::io;
use std::sync::Arc;

use super::Walk;
use super::plan::CompactionError;
use crate::directory::UNFINISHED;
use crate::error::IoFailure;
use crate::format::{FileHeader, Footer, HEADER_BYTES};
use crate::segment::{Scan, Segment, SparseIndex, check_footer, scan_frames};
use gravwell_env::fs::{File, is_full};
use gravwell_model::codec::frame::flag;
use gravwell_model::codec::payload::{decode_entry, encode_entry};
use gravwell_model::{Digest, Entry, EntryBody};

/// The part of an entry that compaction keeps.
pub(super) struct RetainedEntry {
    pub entry: Entry,
    pub partial: bool,
    pub digest: Digest,
    pub deletes: u64,
}

pub(super) struct Output {
    pub name: String,
    pub file: Arc<dyn File>,
    pub header: FileHeader,
    pub buffer: Vec<u8>,
    pub written: u64,
    pub footer: Footer,
    pub deletes: u64,
    pub walk: Option<Walk>,
}

pub(super) fn full_or(error: io::Error, action: &'static str, name: &str, needed: u64) -> CompactionError {
    if is_full(&error) { CompactionError::Full { needed } } else { IoFailure::at(action, name)(error).into() }
}

impl Output {
    pub(super) fn add(&mut self, kept: &RetainedEntry, flags: u16) -> Result<(), CompactionError> {
        let flags = if kept.partial { flags | flag::PARTIAL } else { flags };
        let chain = encode_entry(&kept.entry, &self.footer.frame_chain, 0, flags, &mut self.buffer)?;
        let footer = &mut self.footer;
        footer.frame_chain = chain;
        footer.count += 1;
        footer.digest = footer.digest.plus(kept.digest);
        self.deletes += kept.deletes;
        if kept.entry.time_ms > 0 {
            footer.time_last = kept.entry.time_ms;
            if footer.time_first == 0 {
                footer.time_first = kept.entry.time_ms;
            }
        }
        Ok(())
    }

    /// Writes the buffer if it holds at least `bytes_min` bytes.
    pub(super) fn flush(&mut self, bytes_min: usize) -> Result<(), CompactionError> {
        if self.buffer.len() >= bytes_min.max(1) {
            let needed = self.buffer.len() as u64;
            let written = self.file.write_at(&self.buffer, self.written);
            written.map_err(|error| full_or(error, "write", &self.name, needed))?;
            self.written += needed;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Writes the footer, syncs, reads everything back from the disk and compares it.
    pub(super) fn finish(mut self) -> Result<Segment, CompactionError> {
        let frames_end = self.written + self.buffer.len() as u64;
        self.footer.frames_bytes = frames_end - HEADER_BYTES as u64;
        let footer = self.footer.encode();
        self.buffer.extend_from_slice(&footer);
        self.flush(0)?;
        self.file.sync_data().map_err(IoFailure::at("sync", &self.name))?;
        let (mut digest, mut deletes, mut bad) = (Digest::ZERO, 0, false);
        let scan = scan_frames(&self.file, true, true, frames_end, Scan::new(&self.header), |raw| {
            match decode_entry(&raw.header, &raw.payload()) {
                Ok(Entry { seq, body: EntryBody::Commit(txn), .. }) => {
                    for op in &txn.ops {
                        match op.value() {
                            Some(v) => digest = digest.plus(Digest::of_object(op.collection(), op.key(), seq, v)),
                            None => deletes += 1,
                        }
                    }
                }
                Ok(_) => {}
                Err(_) => bad = true,
            }
        });
        let scan = scan.map_err(IoFailure::at("read", &self.name))?;
        let name = self.name.trim_end_matches(UNFINISHED).to_owned();
        let wrong_footer = check_footer(&name, &self.header, &self.footer, &scan).is_some();
        let wrong = bad || scan.stopped.is_some() || wrong_footer;
        if wrong || (digest, deletes) != (self.footer.digest, self.deletes) {
            return Err(CompactionError::Mismatch { file: name });
        }
        let index: SparseIndex = scan.index;
        Ok(Segment {
            name,
            file: self.file,
            header: self.header,
            footer: Some(self.footer),
            index: index.into(),
            garbage: 0.into(),
        })
    }
}
