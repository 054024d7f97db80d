//! `backup` and `restore`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use indicatif::ProgressBar;
use serde::Serialize;

use crate::backup::lock::Lock;
use crate::backup::manifest::{Manifest, PIECE_BYTES, Segment, VERSION};
use crate::backup::repository::{Repository, RepositoryError};
use crate::backup::restore::{self, RestoreError, Restored, Wishes, choose, coverage};
use crate::backup::retention::{Keep, prune};
use crate::backup::store;
use crate::codec::admin::{CopyBegin, CopyHave, Request};
use crate::codec::jsonl::timestamp;
use crate::config::datastore::DatastoreConfig;
use crate::env::{Clock, SystemClock, data_dir};
use crate::log::copy::End;
use crate::model::{ChunkId, Generation, Seq};

use super::args::{BackupAction, BackupPlace, BackupRestore};
use super::client::{Client, Piece};
use super::maintain::bytes_bar;
use super::output::{Output, size};
use super::{CtlError, CtlResult};

fn failed(error: RepositoryError) -> CtlError {
    let exit = if matches!(error, RepositoryError::Damaged { .. }) { 3 } else { 1 };
    CtlError { message: error.to_string(), exit }
}

fn not_restored(error: RestoreError) -> CtlError {
    match error {
        RestoreError::Repository(error) => failed(error),
        error @ RestoreError::Wrong(_) => CtlError { message: error.to_string(), exit: 3 },
        error => CtlError::new(error),
    }
}

/// `backup`
pub(super) async fn run(dir: &Path, json: bool, action: BackupAction) -> CtlResult {
    match action {
        BackupAction::Create { place, follow, every } if follow => {
            let every = Duration::from_secs(every.max(1));
            tokio::select! {
                result = keep_making(dir, &place, every, json) => result,
                () = super::datastore::stop_signal() => Ok(()),
            }
        }
        BackupAction::Create { place, .. } => {
            let made = create(dir, &place, json).await?;
            report(json, &made)
        }
        BackupAction::List { place } => off_thread(move || list(&place, json)).await,
        BackupAction::Verify { place, id, all, scratch } => {
            off_thread(move || verify(&place, id.as_deref(), all, scratch.as_deref(), json)).await
        }
        BackupAction::Prune { place, keep_last, keep_daily, keep_weekly, dry_run } => {
            let keep = Keep { last: keep_last, daily: keep_daily, weekly: keep_weekly };
            off_thread(move || drop_old(&place, keep, dry_run, json)).await
        }
    }
}

async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CtlError> + Send + 'static,
) -> Result<T, CtlError> {
    tokio::task::spawn_blocking(work).await.map_err(CtlError::new)?
}

fn open(place: &BackupPlace, create: bool) -> Result<Repository, CtlError> {
    let passphrase = match (&place.passphrase_file, &place.passphrase) {
        (Some(file), _) => {
            let text =
                std::fs::read_to_string(file).map_err(|error| CtlError::new(format!("{}: {error}", file.display())))?;
            Some(text.trim_end_matches(['\n', '\r']).to_owned())
        }
        (None, passphrase) => passphrase.clone().filter(|passphrase| !passphrase.is_empty()),
    };
    let store = store::open(&place.place).map_err(|error| failed(error.into()))?;
    Repository::open(store, passphrase.as_deref(), create).map_err(failed)
}

/// What one backup brought.
#[derive(Serialize)]
struct Made {
    backup: String,
    seq: Seq,
    horizon: Seq,
    /// Bytes of the log.
    bytes: u64,
    /// Chunks of contents.
    chunks: u64,
    new_bytes: u64,
    new_pieces: u64,
    /// Whether there was anything new.
    is_new: bool,
    /// Sequences between the last backup and this one that cannot be restored one by one.
    gap: Option<(Seq, Seq)>,
}

/// Makes backups for ever, whenever something was committed.
async fn keep_making(dir: &Path, place: &BackupPlace, every: Duration, json: bool) -> CtlResult {
    let mut trouble = String::new();
    loop {
        match create(dir, place, json).await {
            Ok(made) => {
                trouble.clear();
                if made.is_new {
                    report(json, &made)?;
                }
            }
            Err(error) => {
                if error.message != trouble {
                    eprintln!("gravwell-logctl: {}; trying again", error.message);
                }
                trouble = error.message;
            }
        }
        tokio::time::sleep(every).await;
    }
}

/// Keeps an archive of the datastore in `dir`, from within its own process.
pub(super) async fn archive(dir: std::path::PathBuf, place: String) {
    let passphrase = std::env::var("GRAVWELL_BACKUP_PASSPHRASE").ok();
    let place = BackupPlace { place, passphrase_file: None, passphrase };
    loop {
        match create(&dir, &place, true).await {
            Ok(made) if made.is_new => {
                tracing::info!(backup = made.backup, seq = %made.seq, new_bytes = made.new_bytes, "archived");
            }
            Ok(_) => {}
            Err(error) => tracing::error!(error = error.message, "the archive is behind; trying again"),
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
}

async fn create(dir: &Path, place: &BackupPlace, quiet: bool) -> Result<Made, CtlError> {
    let for_opening = place.clone();
    let (repository, earlier) = off_thread(move || {
        let repository = open(&for_opening, true)?;
        let newest = repository.ids().map_err(failed)?.pop();
        let newest = newest.map(|id| repository.manifest(&id)).transpose().map_err(failed)?;
        Ok((repository, newest))
    })
    .await?;
    let _lock = tokio::task::block_in_place(|| Lock::take(repository.store(), "backup")).map_err(CtlError::new)?;
    let client = Client::open(dir).await?;
    let made = copy(&client, &repository, earlier, quiet).await;
    client.close().await;
    made
}

async fn copy(
    client: &Client,
    repository: &Repository,
    earlier: Option<Manifest>,
    quiet: bool,
) -> Result<Made, CtlError> {
    let segments = earlier.iter().flat_map(|manifest| &manifest.segments);
    let have = segments.map(|segment| CopyHave {
        header: segment.header.clone(),
        mark: segment.mark.clone(),
        bytes: segment.bytes / PIECE_BYTES * PIECE_BYTES,
    });
    let have = have.collect();
    let of = earlier.as_ref().map(|manifest| (manifest.log_id, manifest.generation));
    let mut call = client.call(&Request::Copy { of, have }).await?;
    let begin: CopyBegin = match call.next().await? {
        Some(Piece::Item(item)) => serde_json::from_slice(&item).map_err(CtlError::new)?,
        _ => return Err(CtlError::new("the datastore did not begin with what it copies")),
    };
    let bar = if quiet { ProgressBar::hidden() } else { bytes_bar() };
    bar.set_length(begin.segments.iter().map(|segment| segment.bytes - segment.sent_from).sum());
    let mut storing = Storing {
        repository,
        known: earlier.iter().flat_map(Manifest::pieces).map(str::to_owned).collect(),
        new_bytes: 0,
        new_pieces: 0,
    };
    let mut segments = Vec::new();
    for announced in &begin.segments {
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
            let Some(Piece::Frames(bytes)) = call.next().await? else {
                return Err(CtlError::new("the copy broke off: try again"));
            };
            left = left.checked_sub(bytes.len() as u64).ok_or_else(|| CtlError::new("more came than was announced"))?;
            bar.inc(bytes.len() as u64);
            buffer.extend_from_slice(&bytes);
            let is_last = left == 0;
            let piece_bytes = usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX);
            while buffer.len() >= piece_bytes || (is_last && !buffer.is_empty()) {
                let rest = buffer.split_off(buffer.len().min(piece_bytes));
                segment.pieces.push(tokio::task::block_in_place(|| storing.store(&buffer))?);
                buffer = rest;
            }
        }
        segments.push(segment);
    }
    drop(call);
    let chunks = copy_chunks(client, &mut storing, earlier.as_ref(), &begin.chunks, &bar).await?;
    bar.finish_and_clear();
    finish(&storing, earlier.as_ref(), begin, segments, chunks)
}

/// Chunks asked for at a time.
const CHUNKS_AT_ONCE: usize = 64;

/// Stores the chunks that the last backup lacks.
async fn copy_chunks(
    client: &Client,
    storing: &mut Storing<'_>,
    earlier: Option<&Manifest>,
    ids: &[ChunkId],
    bar: &ProgressBar,
) -> Result<Vec<(ChunkId, String)>, CtlError> {
    let mut known: BTreeMap<ChunkId, String> =
        earlier.into_iter().flat_map(|manifest| manifest.chunks.clone()).collect();
    let new: Vec<ChunkId> = ids.iter().filter(|id| !known.contains_key(id)).copied().collect();
    for group in new.chunks(CHUNKS_AT_ONCE) {
        let mut call = client.call(&Request::CopyChunks { ids: group.to_vec() }).await?;
        for id in group {
            let Some(Piece::Frames(bytes)) = call.next().await? else {
                return Err(CtlError::new("the copy broke off: try again"));
            };
            if ChunkId::of(&bytes) != *id {
                return Err(CtlError { message: format!("chunk {id} is not what its name says"), exit: 3 });
            }
            bar.inc_length(bytes.len() as u64);
            bar.inc(bytes.len() as u64);
            known.insert(*id, tokio::task::block_in_place(|| storing.store(&bytes))?);
        }
    }
    Ok(ids.iter().filter_map(|id| Some((*id, known.get(id)?.clone()))).collect())
}

struct Storing<'a> {
    repository: &'a Repository,
    known: BTreeSet<String>,
    new_bytes: u64,
    new_pieces: u64,
}

impl Storing<'_> {
    fn store(&mut self, bytes: &[u8]) -> Result<String, CtlError> {
        let (name, is_new) = self.repository.put_piece(bytes, &mut self.known).map_err(failed)?;
        if is_new {
            self.new_bytes += bytes.len() as u64;
            self.new_pieces += 1;
        }
        Ok(name)
    }
}

/// Writes the manifest, unless nothing has changed since the last backup.
fn finish(
    storing: &Storing<'_>,
    earlier: Option<&Manifest>,
    begin: CopyBegin,
    segments: Vec<Segment>,
    chunks: Vec<(ChunkId, String)>,
) -> Result<Made, CtlError> {
    let made_ms = SystemClock.now_ms();
    let mut manifest = Manifest {
        version: VERSION,
        id: format!("{:013}-{:012}", made_ms, begin.seq.0),
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
        escrow: begin.escrow,
        segments,
        chunks,
    };
    let of_same =
        earlier.filter(|earlier| (earlier.log_id, earlier.generation) == (manifest.log_id, manifest.generation));
    let is_new = of_same.is_none_or(|earlier| {
        earlier.seq != manifest.seq || earlier.segments != manifest.segments || earlier.chunks != manifest.chunks
    });
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
        backup: manifest.id,
        seq: manifest.seq,
        horizon: manifest.horizon,
        new_bytes: storing.new_bytes,
        new_pieces: storing.new_pieces,
        is_new,
    })
}

fn report(json: bool, made: &Made) -> CtlResult {
    let mut output = Output::new();
    if json {
        output.json(made)?;
        return output.flush();
    }
    if made.is_new {
        output.line(&format!(
            "{}: up to sequence {}, a log of {} and {} chunks of contents; {} new",
            made.backup,
            made.seq,
            size(made.bytes),
            made.chunks,
            size(made.new_bytes)
        ))?;
    } else {
        output.line(&format!("nothing has changed since {}", made.backup))?;
    }
    if let Some((from, to)) = made.gap {
        output.line(&format!(
            "sequences {from} to {to} were compacted before they were backed up: they cannot be restored one by one; make \
             backups more often, or keep more history"
        ))?;
    }
    output.flush()
}

fn list(place: &BackupPlace, json: bool) -> CtlResult {
    let manifests = open(place, false)?.manifests().map_err(failed)?;
    let mut output = Output::new();
    let rows: Vec<_> = manifests
        .iter()
        .map(|manifest| {
            serde_json::json!({
                "backup": manifest.id, "made_ms": manifest.made_ms, "generation": manifest.generation,
                "from": manifest.horizon, "to": manifest.seq, "last_change_ms": manifest.time_ms,
                "bytes": manifest.bytes(), "log_id": manifest.log_id,
            })
        })
        .collect();
    let headings = ["BACKUP", "MADE", "GENERATION", "RESTORES FROM", "TO", "LAST CHANGE", "SIZE"];
    output.list(json, &rows, &headings, |row| {
        let number = |name: &str| row[name].as_u64().unwrap_or_default();
        vec![
            row["backup"].as_str().unwrap_or_default().to_owned(),
            timestamp(number("made_ms")),
            number("generation").to_string(),
            number("from").to_string(),
            number("to").to_string(),
            timestamp(number("last_change_ms")),
            size(number("bytes")),
        ]
    })?;
    if !json {
        let ranges = coverage(&manifests).into_iter().map(|(from, to)| format!("{from} to {to}")).collect::<Vec<_>>();
        output.line(&format!("every sequence can be restored in: {}", ranges.join(", ")))?;
    }
    output.flush()
}

fn verify(
    place: &BackupPlace,
    id: Option<&str>,
    all: bool,
    scratch: Option<&Path>,
    json: bool,
) -> Result<(), CtlError> {
    let repository = open(place, false)?;
    let manifests = match id {
        Some(id) => vec![repository.manifest(id).map_err(failed)?],
        None => repository.manifests().map_err(failed)?,
    };
    let first = if all || id.is_some() { 0 } else { manifests.len().saturating_sub(1) };
    let base = scratch.map_or_else(std::env::temp_dir, Path::to_owned);
    let directory = base.join(format!("gravwell-verify-{}", std::process::id()));
    std::fs::create_dir_all(&directory).map_err(CtlError::new)?;
    let verified: Result<Vec<Restored>, CtlError> = manifests[first..]
        .iter()
        .map(|manifest| {
            let bar = bytes_bar();
            bar.set_message(manifest.id.clone());
            let config = DatastoreConfig::for_dir(&directory);
            let mut tell = |done, total| {
                bar.set_length(total);
                bar.set_position(done);
            };
            let restored = restore::rehearse(&repository, manifest, &directory, &config, None, &mut tell);
            bar.finish_and_clear();
            restored.map_err(|error| {
                let error = not_restored(error);
                CtlError { message: format!("backup {}: {}", manifest.id, error.message), exit: error.exit }
            })
        })
        .collect();
    let _ = std::fs::remove_dir_all(&directory);
    let mut output = Output::new();
    for restored in verified? {
        if json {
            output.json(&restored)?;
        } else {
            output.line(&format!(
                "{}: restored up to sequence {}, {} objects, digest {}: good",
                restored.backup, restored.seq, restored.objects, restored.digest
            ))?;
        }
    }
    output.flush()
}

fn drop_old(place: &BackupPlace, keep: Keep, dry_run: bool, json: bool) -> Result<(), CtlError> {
    let repository = open(place, false)?;
    let _lock = Lock::take(repository.store(), "prune").map_err(CtlError::new)?;
    let pruned = prune(&repository, keep, dry_run).map_err(failed)?;
    let mut output = Output::new();
    if json {
        output.json(&pruned)?;
    } else {
        let verb = if dry_run { "would go" } else { "went" };
        pruned.removed.iter().try_for_each(|id| output.line(&format!("{id} {verb}")))?;
        output.line(&format!(
            "{} backups stay, {} {verb}, with {} pieces ({})",
            pruned.kept.len(),
            pruned.removed.len(),
            pruned.pieces,
            size(pruned.bytes)
        ))?;
    }
    output.flush()
}

/// `restore`
pub(super) async fn restore(dir: &Path, json: bool, args: BackupRestore) -> CtlResult {
    let dir = dir.to_owned();
    let restored = off_thread(move || restore_into(&dir, &args).map(|restored| (dir, args, restored))).await?;
    let (dir, args, restored) = restored;
    let mut output = Output::new();
    if json {
        output.json(&restored)?;
        return output.flush();
    }
    let (seq, objects) = (restored.seq, restored.objects);
    output.line(&format!(
        "backup {}, up to sequence {seq}: {objects} objects, digest {}",
        restored.backup, restored.digest
    ))?;
    if args.dry_run {
        output.line("dry run: it was restored elsewhere and verified; nothing was changed")?;
        return output.flush();
    }
    output.line(&format!("authority: {}", restored.authority))?;
    if let Some(kept) = &restored.kept {
        output.line(&format!("the former log is kept in {}", kept.display()))?;
    }
    output.line(&format!(
        "restored in generation {}: start the datastore on {}. Members that have more follow it, and set aside what they had",
        restored.generation,
        dir.display()
    ))?;
    output.flush()
}

fn restore_into(dir: &Path, args: &BackupRestore) -> Result<Restored, CtlError> {
    let repository = open(&args.place, false)?;
    let manifests = repository.manifests().map_err(failed)?;
    let manifest = match &args.backup {
        Some(id) => manifests.iter().find(|manifest| manifest.id == *id),
        None => Some(choose(&manifests, args.at).map_err(not_restored)?),
    };
    let manifest = manifest.ok_or_else(|| CtlError::new("there is no such backup; `backup list` lists them"))?;
    let bar = bytes_bar();
    let mut tell = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let _lock = data_dir::claim(dir, "datastore", Duration::ZERO).map_err(|error| {
        CtlError::new(format!("{error}; a datastore is restored while it is stopped, and started again afterwards"))
    })?;
    let config = DatastoreConfig::for_dir(dir);
    if args.dry_run {
        let scratch = dir.join("restore.rehearsal");
        std::fs::create_dir_all(&scratch).map_err(CtlError::new)?;
        let restored = restore::rehearse(&repository, manifest, &scratch, &config, args.at, &mut tell);
        let _ = std::fs::remove_dir_all(&scratch);
        return restored.map_err(not_restored);
    }
    let key = args.recovery_key.as_deref().map(str::parse).transpose().map_err(CtlError::new)?;
    let above = manifests.iter().map(|manifest| manifest.generation).max().unwrap_or_default().max(here(dir));
    // What an earlier moment needs may be in earlier backups only; what it does not need is collected in time.
    let of_log = manifests.iter().filter(|other| other.log_id == manifest.log_id);
    let chunks: BTreeMap<ChunkId, String> = of_log.flat_map(|other| other.chunks.clone()).collect();
    let wishes =
        Wishes { end: args.at, replace: args.replace, recovery_key: key.as_ref(), above, chunks: Some(&chunks) };
    let restored = restore::restore(&repository, manifest, dir, &config, wishes, &mut tell);
    bar.finish_and_clear();
    restored.map_err(not_restored)
}

/// Generation of the log that is there now.
fn here(dir: &Path) -> Generation {
    let log = dir.join(crate::log::repair::LOG);
    let found = crate::log::salvage::salvage(&crate::env::RealFs, &log, &mut |_, _| {});
    found.ok().and_then(|found| found.head).map(|head| head.generation).unwrap_or_default()
}

/// Reads `--at`: a sequence, or a time.
pub(super) fn end(text: &str) -> Result<End, String> {
    if let Ok(seq) = text.parse() {
        return Ok(End::Seq(Seq(seq)));
    }
    let at = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339);
    let at = at.map_err(|_| format!("`{text}` is neither a sequence nor a time like 2026-11-25T22:35:13Z"))?;
    let ms = at.unix_timestamp_nanos() / 1_000_000;
    u64::try_from(ms).map(End::Time).map_err(|_| format!("{text} lies before 1970"))
}
