//! Copying a datastore into a repository: segments by their pieces, then the chunks that they name.

use std::collections::{BTreeMap, BTreeSet};

use indicatif::ProgressBar;
use serde::Serialize;

use crate::backup::lock::Lock;
use crate::backup::manifest::{Manifest, PIECE_BYTES, Segment, VERSION, name};
use crate::backup::repository::Repository;
use crate::chunks::decode_index;
use crate::codec::admin::{CopyBegin, CopyHave, CopyNames, CopySegment, Request};
use crate::env::{Clock, SystemClock};
use crate::model::{ChunkId, Seq};
use crate::trust::Escrow;

use super::backup::failed;
use super::backup_place::Described;
use super::client::{Call, Client, Piece};
use super::maintain::bytes_bar;
use super::{CtlError, CtlResult};

/// Chunks asked for at a time.
const CHUNKS_AT_ONCE: usize = 64;

/// What one backup brought.
#[derive(Serialize)]
pub(super) struct Made {
    pub backup: String,
    pub seq: Seq,
    pub horizon: Seq,
    /// Bytes of the log.
    pub bytes: u64,
    /// Chunks of contents.
    pub chunks: u64,
    /// Chunks that the datastore's contents name and that it did not have.
    pub missing: u64,
    /// Chunks that only the history names, and that are gone already.
    pub forgotten: u64,
    pub new_bytes: u64,
    pub new_pieces: u64,
    /// Whether there was anything new.
    pub is_new: bool,
    /// Sequences between the last backup and this one that cannot be restored one by one.
    pub gap: Option<(Seq, Seq)>,
    #[serde(flatten)]
    pub encryption: Described,
}

/// Pieces on their way into a repository.
struct Storing<'a> {
    repository: &'a Repository,
    lock: &'a Lock<'a>,
    known: BTreeSet<String>,
    new_bytes: u64,
    new_pieces: u64,
}

impl Storing<'_> {
    fn store(&mut self, bytes: &[u8]) -> Result<String, CtlError> {
        tokio::task::block_in_place(|| {
            self.lock.keep().map_err(|error| failed(error.into()))?;
            let (name, is_new) = self.repository.put_piece(bytes, &mut self.known).map_err(failed)?;
            if is_new {
                self.new_bytes += bytes.len() as u64;
                self.new_pieces += 1;
            }
            Ok(name)
        })
    }
}

fn broke_off() -> CtlError {
    CtlError::new("the copy broke off: try again")
}

/// Copies what is new since `earlier`.
pub(super) async fn copy(
    client: &Client,
    repository: &Repository,
    lock: &Lock<'_>,
    earlier: Option<Manifest>,
    quiet: bool,
) -> Result<Made, CtlError> {
    let segments = earlier.iter().flat_map(|manifest| &manifest.segments);
    let have = segments.map(|segment| CopyHave {
        header: segment.header.clone(),
        mark: segment.mark.clone(),
        bytes: segment.bytes / PIECE_BYTES * PIECE_BYTES,
    });
    let of = earlier.as_ref().map(|manifest| (manifest.log_id, manifest.generation));
    let mut call = client.call(&Request::Copy { of, have: have.collect() }).await?;
    let begin: CopyBegin = match call.next().await? {
        Some(Piece::Item(item)) => serde_json::from_slice(&item).map_err(CtlError::new)?,
        _ => return Err(CtlError::new("the datastore did not begin with what it copies")),
    };
    let bar = if quiet { ProgressBar::hidden() } else { bytes_bar() };
    bar.set_length(begin.segments.iter().map(|segment| segment.bytes - segment.sent_from).sum());
    let known = earlier.iter().flat_map(Manifest::pieces).map(str::to_owned).collect();
    let mut storing = Storing { repository, lock, known, new_bytes: 0, new_pieces: 0 };
    let names = names(&mut call, &begin).await?;
    let mut segments = Vec::new();
    for announced in &begin.segments {
        segments.push(copy_segment(&mut call, &mut storing, earlier.as_ref(), announced, &bar).await?);
    }
    drop(call);
    let chunks = copy_chunks(client, &mut storing, earlier.as_ref(), names, &bar).await?;
    bar.finish_and_clear();
    lock.check().map_err(|error| failed(error.into()))?;
    finish(&storing, earlier.as_ref(), begin, segments, chunks)
}

async fn names(call: &mut Call, begin: &CopyBegin) -> Result<Vec<CopyNames>, CtlError> {
    let mut names = vec![CopyNames { is_live: true, ids: begin.chunks.clone(), unread: Vec::new() }];
    for _ in 0..begin.names {
        let Some(Piece::Item(item)) = call.next().await? else { return Err(broke_off()) };
        names.push(serde_json::from_slice(&item).map_err(CtlError::new)?);
    }
    Ok(names)
}

async fn copy_segment(
    call: &mut Call,
    storing: &mut Storing<'_>,
    earlier: Option<&Manifest>,
    announced: &CopySegment,
    bar: &ProgressBar,
) -> Result<Segment, CtlError> {
    let before = earlier.iter().flat_map(|manifest| &manifest.segments).find(|segment| {
        segment.header == announced.header && segment.pieces.len() as u64 * PIECE_BYTES >= announced.sent_from
    });
    let whole = announced.sent_from.div_ceil(PIECE_BYTES);
    let kept = before.map_or(&[][..], |segment| &segment.pieces);
    let kept: Vec<String> = kept.iter().take(usize::try_from(whole).unwrap_or(usize::MAX)).cloned().collect();
    if kept.len() as u64 != whole {
        return Err(CtlError::new("the datastore leaves out what is not there: try again"));
    }
    let mut segment = Segment {
        name: announced.name.clone(),
        bytes: announced.bytes,
        header: announced.header.clone(),
        mark: announced.mark.clone(),
        pieces: kept,
    };
    let (mut left, mut buffer) = (announced.bytes - announced.sent_from, Vec::new());
    while left > 0 {
        let Some(Piece::Frames(bytes)) = call.next().await? else { return Err(broke_off()) };
        left = left.checked_sub(bytes.len() as u64).ok_or_else(|| CtlError::new("more came than was announced"))?;
        bar.inc(bytes.len() as u64);
        buffer.extend_from_slice(&bytes);
        let is_last = left == 0;
        let piece_bytes = usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX);
        while buffer.len() >= piece_bytes || (is_last && !buffer.is_empty()) {
            let rest = buffer.split_off(buffer.len().min(piece_bytes));
            segment.pieces.push(storing.store(&buffer)?);
            buffer = rest;
        }
    }
    Ok(segment)
}

/// The chunks of a backup.
#[derive(Default)]
struct Chunks {
    /// Each with the piece that holds it.
    have: BTreeMap<ChunkId, String>,
    missing: BTreeSet<ChunkId>,
    forgotten: u64,
}

/// Stores the chunks that the last backup lacks.
async fn copy_chunks(
    client: &Client,
    storing: &mut Storing<'_>,
    earlier: Option<&Manifest>,
    names: Vec<CopyNames>,
    bar: &ProgressBar,
) -> Result<Chunks, CtlError> {
    let known: BTreeMap<ChunkId, String> = earlier.into_iter().flat_map(|manifest| manifest.chunks.clone()).collect();
    let mut chunks = Chunks::default();
    // What history names may be here from earlier backups only, its lists as well.
    let mut wanted: BTreeMap<ChunkId, bool> = BTreeMap::new();
    for CopyNames { is_live, ids, unread } in names {
        let listed = unread.iter().filter_map(|list| known.get(list));
        for piece in listed.collect::<Vec<_>>() {
            let bytes = tokio::task::block_in_place(|| storing.repository.piece(piece)).map_err(failed)?;
            let parts = decode_index(&bytes).map_err(CtlError::new)?;
            parts.iter().for_each(|part| *wanted.entry(part.id).or_default() |= is_live);
        }
        ids.into_iter().for_each(|id| *wanted.entry(id).or_default() |= is_live);
    }
    let (kept, new): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(id, _)| known.contains_key(id));
    chunks.have.extend(kept.into_iter().filter_map(|(id, _)| Some((id, known.get(&id)?.clone()))));
    for group in new.chunks(CHUNKS_AT_ONCE) {
        let ids = group.iter().map(|(id, _)| *id).collect();
        let mut call = client.call(&Request::CopyChunks { ids }).await?;
        for (id, is_live) in group {
            let Some(Piece::Frames(bytes)) = call.next().await? else { return Err(broke_off()) };
            match (bytes.is_empty(), is_live) {
                (false, _) => {}
                (true, true) => {
                    chunks.missing.insert(*id);
                    continue;
                }
                (true, false) => {
                    chunks.forgotten += 1;
                    continue;
                }
            }
            if ChunkId::of(&bytes) != *id {
                return Err(CtlError { message: format!("chunk {id} is not what its name says"), exit: 3 });
            }
            bar.inc_length(bytes.len() as u64);
            bar.inc(bytes.len() as u64);
            chunks.have.insert(*id, storing.store(&bytes)?);
        }
    }
    Ok(chunks)
}

/// Writes the manifest, unless nothing has changed since the last backup.
fn finish(
    storing: &Storing<'_>,
    earlier: Option<&Manifest>,
    begin: CopyBegin,
    segments: Vec<Segment>,
    chunks: Chunks,
) -> Result<Made, CtlError> {
    let made_ms = SystemClock.now_ms();
    let number = tokio::task::block_in_place(|| storing.repository.next_number()).map_err(failed)?;
    let mut manifest = Manifest {
        version: VERSION,
        id: name(made_ms, begin.seq, number),
        made_ms,
        log_id: begin.log_id,
        generation: begin.generation,
        lineage: begin.lineage,
        generations: begin.generations,
        horizon: begin.horizon,
        seq: begin.seq,
        chain: begin.chain,
        time_ms: begin.time_ms,
        checkpoint: begin.checkpoint,
        stamp: Escrow::from_text(&begin.escrow).map(|escrow| escrow.known().to_owned()).unwrap_or_default(),
        escrow: begin.escrow,
        segments,
        chunks: chunks.have.into_iter().collect(),
        missing: chunks.missing.into_iter().collect(),
    };
    let of_same =
        earlier.filter(|earlier| (earlier.log_id, earlier.generation) == (manifest.log_id, manifest.generation));
    let is_new = of_same.is_none_or(|earlier| !earlier.is_same(&manifest));
    if is_new {
        tokio::task::block_in_place(|| storing.repository.put_manifest(&manifest)).map_err(failed)?;
    } else if let Some(earlier) = of_same {
        manifest.id.clone_from(&earlier.id);
    }
    let gap = of_same.filter(|earlier| manifest.horizon > earlier.seq.next());
    Ok(Made {
        gap: gap.map(|earlier| (earlier.seq.next(), Seq(manifest.horizon.0 - 1))),
        bytes: manifest.bytes(),
        chunks: manifest.chunks.len() as u64,
        missing: manifest.missing.len() as u64,
        forgotten: chunks.forgotten,
        backup: manifest.id,
        seq: manifest.seq,
        horizon: manifest.horizon,
        new_bytes: storing.new_bytes,
        new_pieces: storing.new_pieces,
        is_new,
        encryption: Described::default(),
    })
}

/// Says it when contents are not complete.
pub(super) fn check_complete(made: &Made) -> CtlResult {
    if made.missing == 0 {
        return Ok(());
    }
    let message = format!(
        "backup {} lacks {} chunks that contents name: the datastore did not have them either (`blobs verify` says which). \
         Those of earlier backups are kept; make another one when they are there again",
        made.backup, made.missing
    );
    Err(CtlError { message, exit: 3 })
}
