//! `backup` and `restore`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::backup::choice::{choose, coverage, disagreement};
use crate::backup::lock::Lock;
use crate::backup::manifest::Manifest;
use crate::backup::repository::{Encryption, Repository, RepositoryError};
use crate::backup::restore::{self, RestoreEnd, RestoreError, Restored, Wishes};
use crate::backup::retention::{Keep, prune};
use crate::codec::jsonl::timestamp;
use crate::config::datastore::DatastoreConfig;
use crate::datastore::service::trust_dir;
use crate::datastore::unfinished::{self, Trust, Unfinished, Work};
use crate::env::data_dir;
use crate::log::IoFailure;
use crate::log::copy::End;
use crate::model::{ChunkId, Seq};
use crate::trust::{BackupKey, RecoveryKey, RegisterChoice};

use super::access::{self, Access};
use super::backup_args::{BackupAction, BackupPlace, BackupRestore};
use super::backup_copy::{Made, check_complete, copy};
use super::backup_known;
use super::backup_place::{self, Notices, Opened, in_words};
use super::client::Client;
use super::maintain::bytes_bar;
use super::output::{Output, size};
use super::{CtlError, CtlResult};

pub(super) fn failed(error: RepositoryError) -> CtlError {
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
            let made = create(dir, &place, json, &mut Notices::new(on_standard_error)).await?;
            report(json, &made)?;
            check_complete(&made)
        }
        BackupAction::List { place } => {
            let opened = backup_place::open(dir, &place)?;
            off_thread(move || list(&opened.repository, json)).await
        }
        BackupAction::Key { key_file } => print_key(dir, key_file, json),
        BackupAction::Verify { place, id, all, scratch } => {
            let repository = backup_place::open(dir, &place)?.repository;
            let directory = scratch_dir(scratch)?;
            let verifying = {
                let directory = directory.clone();
                off_thread(move || verify(&repository, id.as_deref(), all, &directory, json))
            };
            // What was restored for a moment is removed, whatever happens.
            let verified = tokio::select! {
                verified = verifying => verified,
                () = super::datastore::stop_signal() => Err(CtlError::new("interrupted")),
            };
            let _ = std::fs::remove_dir_all(&directory);
            verified
        }
        BackupAction::Prune { place, keep_last, keep_daily, keep_weekly, dry_run } => {
            let keep = Keep { last: keep_last, daily: keep_daily, weekly: keep_weekly };
            let repository = backup_place::open(dir, &place)?.repository;
            off_thread(move || drop_old(&repository, keep, dry_run, json)).await
        }
    }
}

async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CtlError> + Send + 'static,
) -> Result<T, CtlError> {
    tokio::task::spawn_blocking(work).await.map_err(CtlError::new)?
}

/// Makes backups for ever, whenever something was committed.
async fn keep_making(dir: &Path, place: &BackupPlace, every: Duration, json: bool) -> CtlResult {
    let (mut trouble, mut notices) = (String::new(), Notices::new(on_standard_error));
    loop {
        match create(dir, place, json, &mut notices).await {
            Ok(made) => {
                trouble.clear();
                if made.is_new {
                    report(json, &made)?;
                }
            }
            Err(error) => {
                if error.message != trouble {
                    complain!("gravwell-logctl: {}; trying again", error.message);
                }
                trouble = error.message;
            }
        }
        tokio::time::sleep(every).await;
    }
}

fn on_standard_error(notice: &str) {
    complain!("gravwell-logctl: {notice}");
}

/// Keeps an archive of the datastore with these settings, from within its own process.
pub(super) async fn archive(config: DatastoreConfig, place: String) {
    let passphrase = std::env::var("GRAVWELL_BACKUP_PASSPHRASE").ok();
    let key_file = config.backup_key_file.or_else(|| std::env::var_os("GRAVWELL_BACKUP_KEY_FILE").map(PathBuf::from));
    let place = BackupPlace { place, key_file, passphrase_file: None, plain: config.backup_plain, passphrase };
    let mut notices = Notices::new(|notice| tracing::warn!("{notice}"));
    loop {
        match create(&config.data_dir, &place, true, &mut notices).await {
            Ok(made) if made.missing > 0 && made.is_new => {
                tracing::error!(
                    backup = made.backup,
                    missing = made.missing,
                    "archived, but contents are not complete"
                );
            }
            Ok(made) if made.is_new => {
                tracing::info!(backup = made.backup, seq = %made.seq, new_bytes = made.new_bytes, "archived");
            }
            Ok(_) => {}
            Err(error) => tracing::error!(error = error.message, "the archive is behind; trying again"),
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
}

async fn create(dir: &Path, place: &BackupPlace, quiet: bool, notices: &mut Notices) -> Result<Made, CtlError> {
    let (path, place) = (dir.to_owned(), place.clone());
    let opened = off_thread(move || backup_place::open_or_create(&path, &place)).await?;
    opened.notices.iter().for_each(|notice| notices.give(notice));
    let repository = &opened.repository;
    let lock = tokio::task::block_in_place(|| Lock::take(repository.store(), "backup")).map_err(CtlError::new)?;
    let is_kept = tokio::task::block_in_place(|| opened.keep_key(dir))?;
    let earlier = tokio::task::block_in_place(|| repository.last_written()).map_err(failed)?;
    let client = Client::open(dir).await?;
    let made = copy(&client, repository, &lock, earlier, quiet).await;
    client.close().await;
    let mut made = made?;
    if !is_kept {
        // The first copy of a datastore makes its recovery key.
        tokio::task::block_in_place(|| opened.keep_key(dir))?;
    }
    tokio::task::block_in_place(|| opened.drop_former_keys(dir))?;
    made.encryption = opened.described();
    Ok(made)
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
        output.line(&made.encryption.to_string())?;
    } else {
        output.line(&format!("nothing has changed since {}", made.backup))?;
    }
    if made.forgotten > 0 {
        output.line(&format!(
            "{} chunks that only the history names are gone already: some resources cannot be restored as they were",
            made.forgotten
        ))?;
    }
    if let Some((from, to)) = made.gap {
        output.line(&format!(
            "sequences {from} to {to} were compacted before they were backed up: they cannot be restored one by one; make \
             backups more often, or keep more history"
        ))?;
    }
    output.flush()
}

fn print_key(dir: &Path, key_file: Option<PathBuf>, json: bool) -> CtlResult {
    let path = key_file.unwrap_or_else(|| BackupKey::path_in(dir));
    let missing = || CtlError::new(format!("{} is not there: the first encrypted backup makes it", path.display()));
    let key = BackupKey::load(&path).map_err(CtlError::new)?.ok_or_else(missing)?;
    let mut output = Output::new();
    if json {
        output.json(&serde_json::json!({ "backup_key": key.to_string(), "key": key.name(), "key_file": path }))?;
    } else {
        output.line(&key.to_string())?;
        complain!("the backup key {}: keep it where neither this host's disk nor the backups are", key.name());
    }
    output.flush()
}

fn list(repository: &Repository, json: bool) -> CtlResult {
    let (manifests, bad) = repository.manifests().map_err(failed)?;
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
        output.line(&format!("every sequence can be restored in: {}", ranges(&coverage(&manifests))))?;
        output.line(&format!("{}: {}", repository.store().place(), in_words(repository.encryption())))?;
    }
    output.flush()?;
    tell(disagreement(&manifests));
    all_are_good(bad)
}

/// On standard error.
fn tell(what: Option<String>) {
    what.iter().for_each(|what| complain!("gravwell-logctl: {what}"));
}

fn ranges(covered: &[(Seq, Seq)]) -> String {
    covered.iter().map(|(from, to)| format!("{from} to {to}")).collect::<Vec<_>>().join(", ")
}

fn all_are_good(bad: Vec<RepositoryError>) -> CtlResult {
    let named: Vec<String> = bad.iter().map(ToString::to_string).collect();
    if named.is_empty() { Ok(()) } else { Err(CtlError { message: named.join("; "), exit: 3 }) }
}

/// A new directory that nobody else can read or have prepared.
fn scratch_dir(base: Option<PathBuf>) -> Result<PathBuf, CtlError> {
    use std::os::unix::fs::DirBuilderExt;
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(CtlError::new)?;
    let name = format!("gravwell-verify-{:016x}", u64::from_le_bytes(random));
    let path = base.unwrap_or_else(std::env::temp_dir).join(name);
    let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
    made.map(|()| path.clone()).map_err(|error| CtlError::new(format!("{}: {error}", path.display())))
}

fn verify(repository: &Repository, id: Option<&str>, all: bool, directory: &Path, json: bool) -> Result<(), CtlError> {
    let (manifests, mut bad) = match id {
        Some(id) => (vec![repository.manifest(id).map_err(failed)?], Vec::new()),
        None => repository.manifests().map_err(failed)?,
    };
    let first = if all || id.is_some() { 0 } else { manifests.len().saturating_sub(1) };
    let (mut output, mut troubles) = (Output::new(), Vec::new());
    for manifest in &manifests[first..] {
        match test_restore(repository, manifest, directory) {
            Ok(restored) if json => output.json(&restored)?,
            Ok(restored) => output.line(&format!(
                "{}, {}: restored up to sequence {}, {} objects, digest {}: good",
                restored.backup,
                in_words(repository.encryption()),
                restored.seq,
                restored.objects,
                restored.digest
            ))?,
            Err(error) => troubles.push(error),
        }
    }
    output.flush()?;
    let exit = troubles.iter().map(|error| error.exit).chain((!bad.is_empty()).then_some(3)).max();
    let Some(exit) = exit else { return Ok(()) };
    let messages = troubles.into_iter().map(|error| error.message).chain(bad.drain(..).map(|error| error.to_string()));
    Err(CtlError { message: messages.collect::<Vec<_>>().join("; "), exit })
}

fn test_restore(repository: &Repository, manifest: &Manifest, directory: &Path) -> Result<Restored, CtlError> {
    let bar = bytes_bar();
    bar.set_message(manifest.id.clone());
    let config = DatastoreConfig::for_dir(directory);
    let mut tell = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let restored = restore::rehearse(repository, manifest, directory, &config, RestoreEnd::default(), &mut tell);
    bar.finish_and_clear();
    restored.map_err(|error| {
        let error = not_restored(error);
        CtlError { message: format!("backup {}: {}", manifest.id, error.message), exit: error.exit }
    })
}

fn drop_old(repository: &Repository, keep: Keep, dry_run: bool, json: bool) -> Result<(), CtlError> {
    let lock = Lock::take(repository.store(), "prune").map_err(CtlError::new)?;
    let pruned = prune(repository, &lock, keep, dry_run).map_err(failed)?;
    tell(pruned.disagreement.clone());
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
        let (before, after) = (ranges(&pruned.covered_before), ranges(&pruned.covered));
        if before == after {
            output.line(&format!("every sequence can be restored in: {after}, as before"))?;
        } else {
            let verb = if dry_run { "could then" } else { "can now" };
            output.line(&format!("sequences that {verb} be restored: {after}; before: {before}"))?;
        }
    }
    output.flush()
}

/// `restore`
pub(super) async fn restore(dir: &Path, json: bool, args: BackupRestore) -> CtlResult {
    let dir = dir.to_owned();
    let restoring = move || restore_into(&dir, &args).map(|done| (dir, args, done));
    let (dir, args, Done { restored, key, encryption }) = off_thread(restoring).await?;
    let mut output = Output::new();
    let access = Access::of(&restored);
    if json {
        let (backup_key, encryption) = (key.as_ref().map(BackupKey::name), encryption.word());
        output.json(&WithAccess { restored: &restored, encryption, backup_key, access })?;
        return output.flush();
    }
    let (seq, objects) = (restored.seq, restored.objects);
    output.line(&format!(
        "backup {}, {}, up to sequence {seq}: {objects} objects, digest {}",
        restored.backup,
        in_words(&encryption),
        restored.digest
    ))?;
    if args.dry_run {
        output.line("dry run: it was restored elsewhere and verified; nothing was changed")?;
        return output.flush();
    }
    output.line(&format!("authority: {}", restored.authority))?;
    for label in &restored.incomplete {
        output.line(&format!("chunks of {label} are in no backup: members that have them give them back"))?;
    }
    if let Some(kept) = &restored.kept {
        output.line(&format!("the former log is kept in {}", kept.display()))?;
    }
    if let Some(index) = restored.index {
        output.line(&format!(
            "NOT RESTORED: up to sequence {index}, which only the index {}/state has: it is kept",
            dir.display()
        ))?;
    }
    if let Some(key) = key {
        let path = BackupKey::path_in(&dir);
        output.line(&format!(
            "the backup key {} came out of the backups with the recovery key: {}",
            key.name(),
            path.display()
        ))?;
    }
    access.print(&mut output)?;
    output.line(&format!(
        "restored in generation {}: start the datastore on {}. Members that have more follow it, and set aside what they had",
        restored.generation,
        dir.display()
    ))?;
    output.flush()
}

#[derive(Serialize)]
struct WithAccess<'a> {
    #[serde(flatten)]
    restored: &'a Restored,
    /// `key`, `passphrase` or `none`.
    encryption: &'static str,
    /// Name of the backup key that was brought back.
    #[serde(skip_serializing_if = "Option::is_none")]
    backup_key: Option<String>,
    access: Access,
}

/// What was restored, and from what.
struct Done {
    restored: Restored,
    /// The backup key, when it was brought back.
    key: Option<BackupKey>,
    encryption: Encryption,
}

fn restore_into(dir: &Path, args: &BackupRestore) -> Result<Done, CtlError> {
    let key = recovery_key(args)?;
    let Opened { repository, unsealed, .. } = backup_place::open_to_restore(dir, &args.place, key.as_ref())?;
    let encryption = repository.encryption().clone();
    let (manifests, bad) = repository.manifests().map_err(failed)?;
    let named = args.backup.as_ref().map(|id| repository.manifest(id).map_err(failed)).transpose()?;
    let manifest = match &named {
        Some(manifest) => manifest,
        None if manifests.is_empty() && !bad.is_empty() => return Err(all_are_good(bad).err().unwrap_or_else(broken)),
        None => choose(&manifests, args.at).map_err(not_restored)?,
    };
    bad.iter().for_each(|error| complain!("gravwell-logctl: passed over: {error}"));
    tell(disagreement(&manifests));
    not_in_the_future(args.at)?;
    let bar = bytes_bar();
    let mut progress = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let config = DatastoreConfig::for_dir(dir);
    let in_use = |error: data_dir::DirectoryError| {
        CtlError::new(format!("{error}; a datastore is restored while it is stopped, and started again afterwards"))
    };
    if args.dry_run {
        let _lock = data_dir::claim_to_read(dir, "datastore", Duration::ZERO).map_err(in_use)?;
        let end = RestoreEnd { end: args.at, may_be_empty: args.at_empty };
        let restored = rehearse(dir, |scratch| {
            restore::rehearse(&repository, manifest, scratch, &config, end, &mut progress).map_err(not_restored)
        });
        return restored.map(|restored| Done { restored, key: None, encryption });
    }
    let _lock = data_dir::claim(dir, "datastore", Duration::ZERO).map_err(in_use)?;
    let mark = Mark::begin(dir)?;
    // The register of members is as of now, whatever moment the state is of.
    let escrows: Vec<&str> = manifests.iter().chain([manifest]).map(|manifest| manifest.escrow.as_str()).collect();
    let above = manifests
        .iter()
        .map(|manifest| manifest.generation)
        .max()
        .unwrap_or_default()
        .max(unfinished::generation_in(dir));
    // What an earlier moment needs may be in earlier backups only; what it does not need is collected in time.
    let of_log = manifests.iter().filter(|other| other.log_id == manifest.log_id);
    let chunks: BTreeMap<ChunkId, String> = of_log.flat_map(|other| other.chunks.clone()).collect();
    let wishes = Wishes {
        end: args.at,
        may_be_empty: args.at_empty,
        replace: args.replace,
        recovery_key: key.as_ref(),
        register: args.register.map(RegisterChoice::from),
        above,
        chunks: Some(&chunks),
        escrows: &escrows,
        ended: &access::ended(args.rotate_secrets),
        told: &access::told(),
    };
    let restored = restore::restore(&repository, manifest, dir, &config, wishes, &mut progress);
    bar.finish_and_clear();
    mark.end(dir, restored.is_ok())?;
    let restored = restored.map_err(not_restored)?;
    let saved = unsealed.map(|key| key.save_new(&BackupKey::path_in(dir)).map(|is_new| is_new.then_some(key)));
    let key = saved.transpose().map_err(CtlError::new)?.flatten();
    backup_known::note(dir, &args.place.place, &encryption)?;
    Ok(Done { restored, key, encryption })
}

/// Restores into a directory within `dir`, where the room is that a restore needs, and leaves `dir` as it was.
fn rehearse(dir: &Path, work: impl FnOnce(&Path) -> Result<Restored, CtlError>) -> Result<Restored, CtlError> {
    let was_there = dir.exists();
    let scratch = dir.join("restore.rehearsal");
    let made = std::fs::create_dir_all(&scratch)
        .map_err(|error| CtlError::new(IoFailure::at("create", scratch.display())(error)));
    let restored = made.and_then(|()| work(&scratch));
    let _ = std::fs::remove_dir_all(&scratch);
    if !was_there {
        // Only an empty one goes.
        let _ = std::fs::remove_dir(dir);
    }
    restored
}

/// The mark of a restore that is under way.
struct Mark {
    had: [bool; 3],
}

impl Mark {
    fn begin(dir: &Path) -> Result<Mark, CtlError> {
        let (earlier, had) = (unfinished::find(dir), Mark::has(dir));
        let found = earlier.and_then(Result::ok).map(|earlier| earlier.trust);
        let becomes = if had[0] { found.unwrap_or(Trust::Kept) } else { Trust::Restored };
        Unfinished::of(dir, Work::Restore, becomes).write(dir).map_err(CtlError::new)?;
        Ok(Mark { had })
    }

    /// What an interruption would leave: authority, register, an earlier mark.
    fn has(dir: &Path) -> [bool; 3] {
        let trust = trust_dir(dir);
        [trust.join("ca.key").exists(), trust.join("members.json").exists(), unfinished::find(dir).is_some()]
    }

    /// Removes the mark when the log is in place, or nothing was changed.
    fn end(&self, dir: &Path, is_done: bool) -> CtlResult {
        let [has_authority, has_register, _] = Mark::has(dir);
        if is_done || self.had == [has_authority, has_register, false] {
            unfinished::end(dir).map_err(CtlError::new)?;
        }
        Ok(())
    }
}

fn not_in_the_future(at: Option<End>) -> CtlResult {
    let now_ms = crate::env::Clock::now_ms(&crate::env::SystemClock);
    match at {
        Some(End::Time(wanted)) if wanted > now_ms => {
            let (wanted, now) = (timestamp(wanted), timestamp(now_ms));
            Err(CtlError::new(format!(
                "{wanted} lies in the future, it is {now} now: leave --at out for the newest state"
            )))
        }
        _ => Ok(()),
    }
}

fn broken() -> CtlError {
    CtlError::new("no backup can be read")
}

fn recovery_key(args: &BackupRestore) -> Result<Option<RecoveryKey>, CtlError> {
    super::recover::read_key(args.recovery_key.as_deref(), args.recovery_key_file.as_deref())
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
