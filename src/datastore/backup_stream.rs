//! Backup stream: a consistent copy of the log, sent while the log is written and compacted.

use std::sync::PoisonError;

use bytes::Bytes;
use tokio::io::AsyncWrite;

use gravwell_chunks::ChunkError;
use gravwell_log::IoFailure;
use gravwell_log::backup_stream::{LogCopy, SegmentCopy, chain_text};
use gravwell_log::backup_stream_check::PIECE_BYTES;
use gravwell_model::codec::admin::{CopyBegin, CopyHave, CopySegment, ExportEnd};
use gravwell_model::{ChunkId, Generation, LogId};
use gravwell_transport::answer::{Answer, Failure, damaged, refuse};

use super::admin::run_blocking;
use super::shared::DatastoreRef;
use super::{backup_origins, referenced_chunks, service};

/// Returns how many bytes of a segment the client already has.
/// Equal headers do not prove it: an older copy of the datastore that diverged later starts with the same header. The
/// mark of a closed segment covers the chain of the whole file. For an open segment the bytes themselves are compared.
fn known(segment: &SegmentCopy, have: &[CopyHave]) -> Result<u64, IoFailure> {
    let is_same = |have: &CopyHave| have.is_checked && !have.mark.is_empty() && have.mark == segment.mark;
    if have.iter().any(is_same) {
        return Ok(segment.bytes);
    }
    let may_begin = |have: &&CopyHave| {
        let is_fit = have.whole > 0 && have.whole <= segment.bytes && have.whole.is_multiple_of(PIECE_BYTES);
        is_fit && !segment.is_compacted && have.header == segment.header
    };
    match have.iter().filter(may_begin).max_by_key(|have| have.whole) {
        Some(have) if segment.sum(have.whole)? == have.sum => Ok(have.whole),
        _ => Ok(0),
    }
}

/// Applies [`known`] to every segment.
async fn left_out(copy: &mut LogCopy, have: Vec<CopyHave>) -> Result<Vec<u64>, Failure> {
    let segments = std::mem::take(&mut copy.segments);
    let (segments, known) = run_blocking(move || {
        let known: Result<Vec<u64>, _> = segments.iter().map(|segment| known(segment, &have)).collect();
        (segments, known)
    })
    .await?;
    copy.segments = segments;
    known.map_err(damaged)
}

pub(super) async fn serve_chunks<W: AsyncWrite + Unpin>(
    shared: &DatastoreRef,
    ids: &[ChunkId],
    answer: &mut Answer<'_, W>,
) -> Result<(), Failure> {
    for id in ids {
        let (store, id) = (shared.contents.store.clone(), *id);
        // A corrupt chunk counts as missing here, too. It is re-fetched from members.
        let chunk = match run_blocking(move || store.read(&id)).await? {
            Ok(chunk) => chunk.unwrap_or_default(),
            Err(ChunkError::Damaged { .. }) => Bytes::new(),
            Err(error) => return Err(damaged(error)),
        };
        answer.frames(&chunk).await?;
    }
    Ok(())
}

/// Refuses a backup that could not be restored. The base changes with the horizon only, so it is read once for each.
async fn check_origins(shared: &DatastoreRef) -> Result<(), Failure> {
    let horizon = shared.log.horizon();
    if *shared.origins_agree_at.lock().unwrap_or_else(PoisonError::into_inner) == Some(horizon) {
        return Ok(());
    }
    let checking = shared.clone();
    let problem = run_blocking(move || {
        let state = checking.state.snapshot().map_err(|error| error.to_string())?;
        backup_origins::problem(&checking.log, &state)
    });
    match problem.await?.map_err(damaged)? {
        Some(problem) => Err(damaged(problem)),
        None => {
            *shared.origins_agree_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(horizon);
            Ok(())
        }
    }
}

pub(super) async fn serve<W: AsyncWrite + Unpin>(
    shared: &DatastoreRef,
    of: Option<(LogId, Generation)>,
    have: &[CopyHave],
    answer: &mut Answer<'_, W>,
) -> Result<(), Failure> {
    // A backup with this registry could displace the last one with the later registry.
    if let Some(waits) = shared.register_waits() {
        return Err(damaged(format!("no backup is made, because {waits}")));
    }
    // Read the state first: the log is copied afterwards and so reaches at least as far.
    let checkpoint = match shared.state.meta() {
        Some(meta) => ExportEnd { seq: meta.seq, digest: meta.digest },
        None => return Err(damaged("the state index has no position")),
    };
    check_origins(shared).await?;
    let mut copy: LogCopy = shared.log.copy();
    let names = {
        let shared = shared.clone();
        run_blocking(move || referenced_chunks::names(&shared)).await?.map_err(damaged)?
    };
    // Another log or generation may start with the same bytes and continue differently.
    let have = if of == Some((copy.log_id, copy.generation)) { have } else { &[] };
    let known = left_out(&mut copy, have.to_vec()).await?;
    let trust = service::trust_dir(&shared.path);
    let sealing = std::sync::Arc::clone(shared);
    let escrow = run_blocking(move || sealing.members.escrow(&trust, None)).await?;
    let escrow = escrow.map_err(refuse)?.1.unwrap_or_default();
    let generations = shared.generations().map_err(damaged)?;
    let segments = copy.segments.iter().zip(known).map(|(segment, sent_from)| CopySegment {
        name: segment.name.clone(),
        bytes: segment.bytes,
        header: segment.header.clone(),
        mark: segment.mark.clone(),
        sent_from,
    });
    let begin = CopyBegin {
        log_id: copy.log_id,
        generation: copy.generation,
        generations,
        lineage: copy.lineage.clone(),
        horizon: copy.horizon,
        seq: copy.seq,
        chain: chain_text(&copy.chain),
        time_ms: shared.log.last_time_ms(),
        checkpoint,
        escrow,
        segments: segments.collect(),
        chunks: Vec::new(),
        names: names.len() as u64,
    };
    answer.item(&begin).await?;
    for names in &names {
        answer.item(names).await?;
    }
    for (segment, announced) in copy.segments.into_iter().zip(&begin.segments) {
        let (mut segment, mut at) = (segment, announced.sent_from);
        if at < segment.bytes {
            let checked;
            (segment, checked) = run_blocking(move || {
                let checked = segment.check();
                (segment, checked)
            })
            .await?;
            checked.map_err(damaged)?;
        }
        while at < segment.bytes {
            let length = usize::try_from(PIECE_BYTES.min(segment.bytes - at)).unwrap_or(0);
            let bytes;
            (segment, bytes) = run_blocking(move || {
                let mut bytes = vec![0; length];
                let read = segment.read(&mut bytes, at).map(|()| bytes);
                (segment, read)
            })
            .await?;
            let bytes = bytes.map_err(damaged)?;
            answer.frames(&bytes).await?;
            at += bytes.len() as u64;
        }
    }
    Ok(())
}
