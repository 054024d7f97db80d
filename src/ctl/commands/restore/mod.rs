//! `restore`: restores a stopped datastore from a backup.

mod access;
mod args;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use gravwell_backup::choice::{choose, disagreement, other_branches};
use gravwell_backup::manifest::{Manifest, named};
use gravwell_backup::repository::{Encryption, Repository, Unreadable};
use gravwell_backup::restore::{self, RegisterOf, RestoreEnd, RestoreOptions, Restored, SealedIn};
use gravwell_config::datastore::DatastoreConfig;
use gravwell_datastore::install_marker::{self, Trust, Unfinished, Work};
use gravwell_datastore::service::trust_dir;
use gravwell_env::{Clock, SystemClock, data_dir};
use gravwell_log::IoFailure;
use gravwell_log::backup_stream::End;
use gravwell_model::codec::json_lines::timestamp;
use gravwell_model::{ChunkId, Generation, LogId, Seq};
use gravwell_transport::trust::{BackupKey, RecoveryKey, RegisterChoice, finish_exchange};

use crate::backups::known_locations;
use crate::backups::location::{self, Opened, in_words};
use crate::backups::{damages, failed, not_restored, run_blocking, tell, with_damage};
use crate::client::ca_restore::{REVOKE_AGAIN, read_key};
use crate::client::output::Output;
use crate::client::progress::bytes_bar;
use crate::error::{CtlError, CtlResult};
use access::Access;
pub use args::Restore;

/// `restore`
pub(super) async fn run(dir: &Path, json: bool, args: Restore) -> CtlResult {
    let dir = dir.to_owned();
    let restoring = move || restore_into(&dir, &args).map(|done| (dir, args, done));
    let (dir, args, Done { restored, key, encryption, passed_over }) = run_blocking(restoring).await?;
    let mut output = Output::new();
    let access = Access::of(&restored);
    if json {
        let (backup_key, encryption) = (key.as_ref().map(BackupKey::name), encryption.word());
        output.json(&WithAccess { restored: &restored, encryption, backup_key, passed_over, access })?;
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
        output.line("dry run: restored into a scratch directory and verified; nothing was changed")?;
        return output.flush();
    }
    output.line(&format!("CA: {}", restored.authority))?;
    if let Some(RegisterOf { backup, made_ms }) = &restored.register {
        let made = timestamp(*made_ms);
        output.line(&format!("member registry: as of {made}, from backup {backup}; {REVOKE_AGAIN}"))?;
    }
    for label in &restored.incomplete {
        output.line(&format!("chunks of {label} are in no backup; members that have them upload them again"))?;
    }
    if let Some(kept) = &restored.kept {
        output.line(&format!("the previous log is kept in {}", kept.display()))?;
    }
    if let Some(index) = restored.index {
        output.line(&format!(
            "NOT RESTORED: changes up to sequence {index} that only the index {}/state contains; it is kept",
            dir.display()
        ))?;
    }
    if let Some(key) = key {
        let path = BackupKey::path_in(&dir);
        output.line(&format!(
            "restored the backup key {} from the backups with the recovery key: {}",
            key.name(),
            path.display()
        ))?;
    }
    access.print(&mut output)?;
    output.line(&format!(
        "restored in generation {}: start the datastore on {}; members that are ahead follow it and archive their own \
         changes",
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
    /// Name of the backup key that was restored.
    #[serde(skip_serializing_if = "Option::is_none")]
    backup_key: Option<String>,
    /// Damaged backups that were not considered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    passed_over: Vec<PassedOver>,
    access: Access,
}

/// Damaged backup that was not considered.
#[derive(Serialize)]
struct PassedOver {
    backup: String,
    why: String,
}

/// Result of a restore.
struct Done {
    restored: Restored,
    /// Backup key, if it was restored.
    key: Option<BackupKey>,
    encryption: Encryption,
    passed_over: Vec<PassedOver>,
}

/// Refuses a backup that was chosen by itself if a damaged manifest may be that of a later one, according to its name. An
/// earlier point in time lacks nothing of a later backup, but the member registry is restored from the latest one.
fn check_none_is_beyond(manifest: &Manifest, bad: &[Unreadable], args: &Restore, has_key: bool) -> CtlResult {
    if args.backup.is_some() || (args.at.is_some() && !has_key) {
        return Ok(());
    }
    let beyond = bad.iter().filter(|bad| named(&bad.id).is_some_and(|named| named.may_be_beyond(manifest)));
    let beyond: Vec<String> = beyond
        .map(|Unreadable { id, error }| match named(id) {
            Some(named) if named.seq > manifest.seq => {
                format!("{error}; its name indicates sequence {}", named.seq)
            }
            _ => format!("{error}; its name indicates a later backup"),
        })
        .collect();
    if beyond.is_empty() {
        return Ok(());
    }
    let message = format!(
        "{}; the most advanced readable backup, {id}, ends at sequence {}: later changes, including revocations, would \
         be lost; nothing was changed; restore the damaged manifest from a copy of the place, or skip that backup with \
         --backup {id}",
        beyond.join("; "),
        manifest.seq,
        id = manifest.id
    );
    Err(CtlError { message, exit: 3 })
}

fn restore_into(dir: &Path, args: &Restore) -> Result<Done, CtlError> {
    let key = recovery_key(args)?;
    let Opened { repository, unsealed, .. } = location::open_to_restore(dir, &args.place, key.as_ref())?;
    let encryption = repository.encryption().clone();
    let (manifests, bad) = repository.manifests().map_err(failed)?;
    let named = args.backup.as_ref().map(|id| repository.manifest(id).map_err(failed)).transpose()?;
    let manifest = match &named {
        Some(manifest) => manifest,
        None if manifests.is_empty() && !bad.is_empty() => {
            return Err(with_damage(damages(&bad), None).err().unwrap_or_else(broken));
        }
        None => choose(&manifests, args.at).map_err(CtlError::new)?,
    };
    let latest = if args.at.is_some() { choose(&manifests, None).unwrap_or(manifest) } else { manifest };
    check_none_is_beyond(latest, &bad, args, key.is_some())?;
    bad.iter().for_each(|bad| complain!("gravwell-logctl: ignoring damaged backup: {}", bad.error));
    let passed_over = bad.into_iter().map(|bad| PassedOver { backup: bad.id, why: bad.error.to_string() }).collect();
    tell(repository.head_damage().map(str::to_owned));
    tell(disagreement(&manifests));
    tell(other_branches(&manifests));
    not_in_the_future(args.at)?;
    let bar = bytes_bar();
    let mut progress = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let config = DatastoreConfig::for_dir(dir);
    let refused = |error| other_backup(not_restored(error, &manifest.id), &repository);
    let in_use = |error: data_dir::DirectoryError| {
        CtlError::new(format!("{error}; stop the datastore, restore, then start it again"))
    };
    if args.dry_run {
        let _lock = data_dir::claim_to_read(dir, "datastore", Duration::ZERO).map_err(in_use)?;
        let end = RestoreEnd { end: args.at, may_be_empty: args.at_empty };
        let restored = rehearse(dir, |scratch| {
            restore::rehearse(&repository, manifest, scratch, &config, end, &mut progress).map_err(refused)
        });
        return restored.map(|restored| Done { restored, key: None, encryption, passed_over });
    }
    let _lock = data_dir::claim(dir, "datastore", Duration::ZERO).map_err(in_use)?;
    // Left by a trial restore that was killed.
    let _ = std::fs::remove_dir_all(dir.join(install_marker::REHEARSAL));
    finish_exchange(&trust_dir(dir), SystemClock.now_ms()).map_err(CtlError::new)?;
    let mark = Mark::begin(dir)?;
    // The latest member registry is restored, whatever point in time the state is from.
    let is_listed = manifests.iter().any(|listed| listed.id == manifest.id);
    let escrows: Vec<_> = (!is_listed).then_some(manifest).into_iter().chain(&manifests).map(sealed_in).collect();
    let chunks = chunks_of(&manifests, manifest.log_id);
    let wishes = RestoreOptions {
        end: args.at,
        may_be_empty: args.at_empty,
        replace: args.replace,
        recovery_key: key.as_ref(),
        register: args.register.map(RegisterChoice::from),
        above: latest_generation(&manifests).max(install_marker::generation_in(dir)),
        chunks: Some(&chunks),
        escrows: &escrows,
        named: named.as_ref().map(|named| named.id.as_str()),
        earlier_copy: args.earlier_copy,
        ended: &access::ended(args.rotate_secrets),
        told: &access::told(),
    };
    let restored = restore::restore(&repository, manifest, dir, &config, wishes, &mut progress);
    bar.finish_and_clear();
    mark.end(dir, restored.is_ok())?;
    let restored = restored.map_err(refused)?;
    let saved = unsealed.map(|key| key.save_new(&BackupKey::path_in(dir)).map(|is_new| is_new.then_some(key)));
    let key = saved.transpose().map_err(CtlError::new)?.flatten();
    known_locations::note(dir, &args.place.place, &encryption)?;
    Ok(Done { restored, key, encryption, passed_over })
}

fn latest_generation(manifests: &[Manifest]) -> Generation {
    manifests.iter().map(|manifest| manifest.generation).max().unwrap_or_default()
}

/// Returns the chunks of all backups of a log. Those of an earlier point in time may exist only in earlier backups;
/// unneeded ones are garbage-collected later.
fn chunks_of(manifests: &[Manifest], log_id: LogId) -> BTreeMap<ChunkId, String> {
    let of_log = manifests.iter().filter(|manifest| manifest.log_id == log_id);
    of_log.flat_map(|manifest| manifest.chunks.clone()).collect()
}

/// Restores into a directory within `dir`, which has the space that a restore needs, and leaves `dir` unchanged.
fn rehearse(dir: &Path, work: impl FnOnce(&Path) -> Result<Restored, CtlError>) -> Result<Restored, CtlError> {
    let was_there = dir.exists();
    let scratch = dir.join(install_marker::REHEARSAL);
    let made = std::fs::create_dir_all(&scratch)
        .map_err(|error| CtlError::new(IoFailure::at("create", scratch.display())(error)));
    let restored = made.and_then(|()| work(&scratch));
    let _ = std::fs::remove_dir_all(&scratch);
    if !was_there {
        // Succeeds only if the directory is empty.
        let _ = std::fs::remove_dir(dir);
    }
    restored
}

/// Mark of an unfinished restore.
struct Mark {
    had: [bool; 3],
}

impl Mark {
    fn begin(dir: &Path) -> Result<Mark, CtlError> {
        let (earlier, had) = (install_marker::find(dir), Mark::has(dir));
        let found = earlier.and_then(Result::ok).map(|earlier| earlier.trust);
        let becomes = if had[0] { found.unwrap_or(Trust::Kept) } else { Trust::Restored };
        Unfinished::of(dir, Work::Restore, becomes).write(dir).map_err(CtlError::new)?;
        Ok(Mark { had })
    }

    /// Returns which traces of an interrupted restore exist: CA, member registry, mark.
    fn has(dir: &Path) -> [bool; 3] {
        let trust = trust_dir(dir);
        [trust.join("ca.key").exists(), trust.join("members.json").exists(), install_marker::find(dir).is_some()]
    }

    /// Removes the mark if the log is in place or nothing was changed.
    fn end(&self, dir: &Path, is_done: bool) -> CtlResult {
        let [has_authority, has_register, _] = Mark::has(dir);
        if is_done || self.had == [has_authority, has_register, false] {
            install_marker::end(dir).map_err(CtlError::new)?;
        }
        Ok(())
    }
}

fn not_in_the_future(at: Option<End>) -> CtlResult {
    let now_ms = SystemClock.now_ms();
    match at {
        Some(End::Time(wanted)) if wanted > now_ms => {
            let (wanted, now) = (timestamp(wanted), timestamp(now_ms));
            Err(CtlError::new(format!("{wanted} is in the future, the time is {now}; omit --at for the newest state")))
        }
        _ => Ok(()),
    }
}

fn sealed_in(manifest: &Manifest) -> SealedIn<'_> {
    SealedIn { backup: &manifest.id, log_id: manifest.log_id, escrow: &manifest.escrow }
}

/// Adds a hint to try another backup if this one is inconsistent.
fn other_backup(mut error: CtlError, repository: &Repository) -> CtlError {
    if error.exit == 3 {
        let place = repository.store().place();
        error.message += &format!(
            "; nothing was changed; find a restorable backup with `gravwell-logctl backup verify {place} --all`, and \
             choose it with --backup"
        );
    }
    error
}

fn broken() -> CtlError {
    CtlError::new("no backup is readable")
}

fn recovery_key(args: &Restore) -> Result<Option<RecoveryKey>, CtlError> {
    read_key(args.recovery_key.as_deref(), args.recovery_key_file.as_deref())
}

/// Parses `--at`: a sequence or a time.
fn end(text: &str) -> Result<End, String> {
    if let Ok(seq) = text.parse() {
        return Ok(End::Seq(Seq(seq)));
    }
    let at = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339);
    let at = at.map_err(|_| format!("`{text}` is neither a sequence nor a time such as 2026-11-25T22:35:13Z"))?;
    let ms = at.unix_timestamp_nanos() / 1_000_000;
    u64::try_from(ms).map(End::Time).map_err(|_| format!("{text} is before 1970"))
}
