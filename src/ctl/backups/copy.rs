//! Copies a datastore into a repository: first the pieces of its segments, then the chunks that they reference.

use std::collections::{BTreeMap, BTreeSet};

use indicatif::ProgressBar;
use serde::Serialize;

use gravwell_backup::lock::Lock;
use gravwell_backup::manifest::{Manifest, PIECE_BYTES, Segment, VERSION, name};
use gravwell_backup::presence::Losses;
use gravwell_backup::repository::Repository;
use gravwell_chunks::decode_index;
use gravwell_env::{Clock, SystemClock};
use gravwell_log::backup_stream_check::{SegmentCheck, Standing};
use gravwell_model::codec::admin::{CopyBegin, CopyHave, CopyNames, CopySegment, Request};
use gravwell_model::{ChunkId, Seq};
use gravwell_transport::trust::CaBackup;

use super::failed;
use super::location::Described;
use crate::client::progress::bytes_bar;
use crate::client::{Call, Client, Piece};
use crate::error::{CtlError, CtlResult};

/// Number of attempts to make a backup in a place that loses pieces meanwhile.
const ATTEMPTS: usize = 3;
/// Number of backups last written among which a later generation of the log is looked for.
const RECENT: usize = 8;
/// Number of chunks per request.
const CHUNKS_AT_ONCE: usize = 64;

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_none(count: &u64) -> bool {
    *count == 0
}

/// Result of one backup.
#[derive(Serialize)]
pub(crate) struct Made {
    pub backup: String,
    pub seq: Seq,
    pub horizon: Seq,
    /// Size of the log in bytes.
    pub bytes: u64,
    /// Number of chunks.
    pub chunks: u64,
    /// Number of chunks that current blobs reference and the datastore lacks.
    pub missing: u64,
    /// Number of chunks that only the history references and that are already deleted.
    pub forgotten: u64,
    pub new_bytes: u64,
    pub new_pieces: u64,
    /// Number of pieces of the last backup that the location had lost and that were stored again.
    #[serde(skip_serializing_if = "is_none")]
    pub again: u64,
    /// Whether anything changed since the last backup.
    pub is_new: bool,
    /// Sequences between the last backup and this one that cannot be restored individually.
    pub gap: Option<(Seq, Seq)>,
    /// Notice if the place holds a later generation of the log.
    #[serde(skip)]
    pub branch: Option<String>,
    /// Damage to the head of the place.
    #[serde(skip)]
    pub head_damage: Option<String>,
    #[serde(flatten)]
    pub encryption: Described,
}

/// Writer of pieces into a repository.
struct Storing<'a> {
    repository: &'a Repository,
    lock: &'a Lock<'a>,
    known: BTreeSet<String>,
    /// Pieces stored by this backup.
    stored: BTreeSet<String>,
    losses: &'a mut Losses,
    new_bytes: u64,
    new_pieces: u64,
    /// Number of new pieces that the location had lost.
    again: u64,
}

impl Storing<'_> {
    fn store(&mut self, bytes: &[u8]) -> Result<String, CtlError> {
        tokio::task::block_in_place(|| {
            self.lock.keep().map_err(|error| failed(error.into()))?;
            let (name, is_new) = self.repository.put_piece(bytes, &mut self.known).map_err(failed)?;
            if is_new {
                self.new_bytes += bytes.len() as u64;
                self.new_pieces += 1;
                self.again += u64::from(self.losses.stored(&name));
                self.stored.insert(name.clone());
            }
            Ok(name)
        })
    }
}

fn broke_off() -> CtlError {
    CtlError::new("the backup stream ended early; try again")
}

/// Returns the error for a backup that could not be restored and is therefore not written.
fn unsound(what: impl std::fmt::Display) -> CtlError {
    CtlError { message: format!("the backup could not be restored: {what}; nothing was written, try again"), exit: 3 }
}

/// Segments of the last backup, as far as they were checked and their pieces are still present.
#[derive(Default)]
struct Before<'a> {
    whole: Vec<&'a Segment>,
    /// Segments that were open, each with the state of its check and the bytes of its incomplete last record.
    begun: Vec<(&'a Segment, &'a Standing, Vec<u8>)>,
}

impl<'a> Before<'a> {
    fn of(repository: &Repository, losses: &Losses, earlier: Option<&'a Manifest>) -> Before<'a> {
        let mut before = Before::default();
        for segment in earlier.iter().flat_map(|manifest| &manifest.segments) {
            let Some(checked) = &segment.checked else { continue };
            let is_there = |pieces: &[String]| !pieces.iter().any(|piece| losses.has(piece));
            match &checked.standing {
                None if !segment.mark.is_empty() && is_there(&segment.pieces) => before.whole.push(segment),
                Some(standing) => {
                    let kept = kept_of(segment, standing);
                    let rest = kept.filter(|kept| is_there(kept)).and_then(|kept| rest_of(repository, kept, standing));
                    before.begun.extend(rest.map(|rest| (segment, standing, rest)));
                }
                None => {}
            }
        }
        before
    }

    fn have(&self) -> Vec<CopyHave> {
        let whole = self.whole.iter().map(|segment| (*segment, 0, ""));
        let begun = self.begun.iter().map(|(segment, standing, _)| (*segment, standing.bytes, standing.sum.as_str()));
        let have = |(segment, whole, sum): (&Segment, u64, &str)| CopyHave {
            header: segment.header.clone(),
            mark: segment.mark.clone(),
            bytes: 0,
            is_checked: true,
            whole,
            sum: sum.to_owned(),
        };
        whole.chain(begun).map(have).collect()
    }
}

/// Returns the complete pieces of a segment that was open.
fn kept_of<'a>(segment: &'a Segment, standing: &Standing) -> Option<&'a [String]> {
    let whole = usize::try_from(standing.bytes / PIECE_BYTES).ok()?;
    segment.pieces.get(..whole).filter(|_| standing.bytes <= segment.bytes && standing.at <= standing.bytes)
}

/// Returns the bytes in the complete pieces after their last complete record. If a piece is unreadable, the segment is
/// sent again.
fn rest_of(repository: &Repository, kept: &[String], standing: &Standing) -> Option<Vec<u8>> {
    let (first, skipped) = (standing.at / PIECE_BYTES, usize::try_from(standing.at % PIECE_BYTES).ok()?);
    let mut bytes = Vec::new();
    for piece in kept.get(usize::try_from(first).ok()?..)? {
        match tokio::task::block_in_place(|| repository.piece(piece)) {
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(error) => {
                tracing::warn!(%error, "failed to read piece of last backup; storing the segment again");
                return None;
            }
        }
    }
    Some(bytes.split_off(skipped.min(bytes.len())))
}

/// Copies everything that is new since `earlier`.
pub(crate) async fn copy(
    client: &Client,
    repository: &Repository,
    lock: &Lock<'_>,
    earlier: Option<Manifest>,
    losses: &mut Losses,
    quiet: bool,
) -> Result<Made, CtlError> {
    let has_looked = tokio::task::block_in_place(|| losses.look(repository, earlier.as_ref())).map_err(failed)?;
    for _ in 0..ATTEMPTS {
        // If the place turns out to have lost pieces since it was last listed, they are stored again.
        if let Some(made) = copy_once(client, repository, lock, earlier.as_ref(), losses, (quiet, has_looked)).await? {
            return Ok(made);
        }
    }
    Err(unsound(format_args!("{} loses stored pieces", repository.store().place())))
}

/// Like [`copy`]; `None` if the place has lost pieces of the last backup that were to be used again.
async fn copy_once(
    client: &Client,
    repository: &Repository,
    lock: &Lock<'_>,
    earlier: Option<&Manifest>,
    losses: &mut Losses,
    (quiet, has_looked): (bool, bool),
) -> Result<Option<Made>, CtlError> {
    let known_chunks = tokio::task::block_in_place(|| losses.chunks_left(repository, lock, earlier)).map_err(failed)?;
    let before = Before::of(repository, losses, earlier);
    let of = earlier.map(|manifest| (manifest.log_id, manifest.generation));
    let mut call = client.call(&Request::Copy { of, have: before.have() }).await?;
    let begin: CopyBegin = match call.next().await? {
        Some(Piece::Item(item)) => serde_json::from_slice(&item).map_err(CtlError::new)?,
        _ => return Err(CtlError::new("the datastore did not send the list of segments first")),
    };
    let bar = if quiet { ProgressBar::hidden() } else { bytes_bar() };
    bar.set_length(begin.segments.iter().map(|segment| segment.bytes.saturating_sub(segment.sent_from)).sum());
    let pieces = earlier.into_iter().flat_map(Manifest::pieces).filter(|piece| !losses.has(piece));
    let known = pieces.map(str::to_owned).collect();
    let stored = BTreeSet::new();
    let mut storing = Storing { repository, lock, known, stored, losses, new_bytes: 0, new_pieces: 0, again: 0 };
    let names = names(&mut call, &begin).await?;
    let mut segments = Vec::new();
    for announced in &begin.segments {
        segments.push(copy_segment(&mut call, &mut storing, &before, announced, &bar).await?);
    }
    drop(call);
    let chunks = copy_chunks(client, &mut storing, &known_chunks, names, &bar).await?;
    bar.finish_and_clear();
    lock.check().map_err(|error| failed(error.into()))?;
    let branch = tokio::task::block_in_place(|| later_generation(repository, earlier, &begin, has_looked))?;
    let made = finish(&mut storing, earlier, begin, segments, chunks)?;
    Ok(made.map(|made| Made { branch, ..made }))
}

/// Returns a notice if the place holds a later generation of the log, which `restore` would choose. Only with `has_looked`,
/// more than the last backup is read.
fn later_generation(
    repository: &Repository,
    earlier: Option<&Manifest>,
    begin: &CopyBegin,
    has_looked: bool,
) -> Result<Option<String>, CtlError> {
    let found = match has_looked {
        true => repository.latest_generation(begin.log_id, RECENT).map_err(failed)?,
        false => earlier.cloned(),
    };
    let later = found.filter(|found| found.log_id == begin.log_id && found.generation > begin.generation);
    Ok(later.map(|later| {
        format!(
            "{} contains backup {} of generation {} of this log, up to sequence {}; this datastore is at generation \
             {}: another datastore of the same log, such as a restored copy, backs up here too, or this one was rolled \
             back; use a separate place for each, as `restore` without --backup uses the later generation",
            repository.store().place(),
            later.id,
            later.generation,
            later.seq,
            begin.generation
        )
    }))
}

async fn names(call: &mut Call, begin: &CopyBegin) -> Result<Vec<CopyNames>, CtlError> {
    let mut names = vec![CopyNames { is_live: true, ids: begin.chunks.clone(), unread: Vec::new() }];
    for _ in 0..begin.names {
        let Some(Piece::Item(item)) = call.next().await? else { return Err(broke_off()) };
        names.push(serde_json::from_slice(&item).map_err(CtlError::new)?);
    }
    Ok(names)
}

/// Returns the pieces that the datastore did not send because the last backup has them, and the check that continues
/// after them.
fn left_out(before: &Before<'_>, announced: &CopySegment) -> Result<(Vec<String>, SegmentCheck), CtlError> {
    let CopySegment { name, bytes, header, mark, sent_from } = announced;
    if *sent_from == 0 {
        return Ok((Vec::new(), SegmentCheck::new(name, *bytes, mark.is_empty())));
    }
    let mut begun =
        before.begun.iter().filter(|(segment, standing, _)| segment.header == *header && standing.bytes == *sent_from);
    let found = begun.next().and_then(|(segment, standing, rest)| {
        let check = SegmentCheck::resume(name, *bytes, mark.is_empty(), standing, rest)?;
        Some((kept_of(segment, standing)?.to_vec(), check))
    });
    found.ok_or_else(|| CtlError::new("the datastore omitted data that the last backup lacks; try again"))
}

async fn copy_segment(
    call: &mut Call,
    storing: &mut Storing<'_>,
    before: &Before<'_>,
    announced: &CopySegment,
    bar: &ProgressBar,
) -> Result<Segment, CtlError> {
    let CopySegment { name, bytes, header, mark, sent_from } = announced;
    let is_same = |segment: &&&Segment| segment.mark == *mark && segment.bytes == *bytes && segment.name == *name;
    if let Some(same) = before.whole.iter().find(is_same).filter(|_| sent_from == bytes) {
        return Ok((*same).clone());
    }
    let (mut pieces, mut check) = left_out(before, announced)?;
    let (mut left, mut buffer) = (bytes.saturating_sub(*sent_from), Vec::new());
    while left > 0 {
        let Some(Piece::Frames(bytes)) = call.next().await? else { return Err(broke_off()) };
        left = left
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| CtlError::new("the datastore sent more bytes than announced"))?;
        bar.inc(bytes.len() as u64);
        check.push(&bytes).map_err(unsound)?;
        buffer.extend_from_slice(&bytes);
        let is_last = left == 0;
        let piece_bytes = usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX);
        while buffer.len() >= piece_bytes || (is_last && !buffer.is_empty()) {
            let rest = buffer.split_off(buffer.len().min(piece_bytes));
            pieces.push(storing.store(&buffer)?);
            buffer = rest;
        }
    }
    let ended = check.finish().map_err(unsound)?;
    if (&ended.header, &ended.mark) != (header, mark) {
        return Err(unsound(format_args!("{name} does not match the announced file")));
    }
    let (name, header, mark) = (name.clone(), header.clone(), mark.clone());
    Ok(Segment { name, bytes: *bytes, header, mark, pieces, checked: Some(ended.checked) })
}

/// Chunks of a backup.
#[derive(Default)]
struct Chunks {
    /// Stored chunks, each with its piece and its length.
    have: BTreeMap<ChunkId, (String, u64)>,
    missing: BTreeSet<ChunkId>,
    forgotten: u64,
}

/// Stores the chunks that the last backup lacks.
async fn copy_chunks(
    client: &Client,
    storing: &mut Storing<'_>,
    known: &BTreeMap<ChunkId, (String, u64)>,
    names: Vec<CopyNames>,
    bar: &ProgressBar,
) -> Result<Chunks, CtlError> {
    let mut chunks = Chunks::default();
    // Chunks that only the history references, and their chunk lists, may exist only in earlier backups.
    let mut wanted: BTreeMap<ChunkId, bool> = BTreeMap::new();
    for CopyNames { is_live, ids, unread } in names {
        let listed = unread.iter().filter_map(|list| known.get(list));
        for (piece, _) in listed {
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
                return Err(CtlError { message: format!("chunk {id} does not match its name"), exit: 3 });
            }
            bar.inc_length(bytes.len() as u64);
            bar.inc(bytes.len() as u64);
            chunks.have.insert(*id, (storing.store(&bytes)?, bytes.len() as u64));
        }
    }
    Ok(chunks)
}

/// Writes the manifest, unless nothing has changed since the last backup. Returns `None` if the place has lost pieces of
/// the last backup that the new one uses.
fn finish(
    storing: &mut Storing<'_>,
    earlier: Option<&Manifest>,
    begin: CopyBegin,
    segments: Vec<Segment>,
    chunks: Chunks,
) -> Result<Option<Made>, CtlError> {
    let made_ms = SystemClock.now_ms();
    let number = tokio::task::block_in_place(|| storing.repository.next_number()).map_err(failed)?;
    let (chunk_bytes, have): (Vec<u64>, Vec<_>) =
        chunks.have.into_iter().map(|(id, (piece, bytes))| (bytes, (id, piece))).unzip();
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
        stamp: CaBackup::from_text(&begin.escrow).map(|escrow| escrow.known().to_owned()).unwrap_or_default(),
        escrow: begin.escrow,
        segments,
        chunks: have,
        chunk_bytes,
        missing: chunks.missing.into_iter().collect(),
    };
    manifest.check_links().map_err(unsound)?;
    let of_same =
        earlier.filter(|earlier| (earlier.log_id, earlier.generation) == (manifest.log_id, manifest.generation));
    let is_new = of_same.is_none_or(|earlier| !earlier.is_same(&manifest));
    if is_new {
        let (repository, stored, losses) = (storing.repository, &storing.stored, &mut *storing.losses);
        let are_stored = || losses.are_stored(repository, &manifest, stored);
        if !tokio::task::block_in_place(are_stored).map_err(failed)? {
            return Ok(None);
        }
        tokio::task::block_in_place(|| repository.put_manifest(&manifest)).map_err(failed)?;
    } else if let Some(earlier) = of_same {
        manifest.id.clone_from(&earlier.id);
    }
    let gap = of_same.filter(|earlier| manifest.horizon > earlier.seq.next());
    Ok(Some(Made {
        branch: None,
        head_damage: None,
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
        again: storing.again,
        is_new,
        encryption: Described::default(),
    }))
}

/// Fails if chunks of blobs are missing.
pub(crate) fn check_complete(made: &Made) -> CtlResult {
    if made.missing == 0 {
        return Ok(());
    }
    let message = format!(
        "backup {} lacks {} chunks that contents reference, because the datastore lacks them too (see `blobs verify`); \
         chunks of earlier backups are kept; make another backup once they are restored",
        made.backup, made.missing
    );
    Err(CtlError { message, exit: 3 })
}
