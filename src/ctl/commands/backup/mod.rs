//! `backup`: creates, lists, verifies and prunes backups.

mod args;

use std::path::{Path, PathBuf};
use std::time::Duration;

use gravwell_backup::choice::{coverage, disagreement, other_branches};
use gravwell_backup::lock::Lock;
use gravwell_backup::manifest::Manifest;
use gravwell_backup::presence::Losses;
use gravwell_backup::repository::Repository;
use gravwell_backup::restore::{self, RestoreEnd, Restored};
use gravwell_backup::retention::{Keep, Unsound, prune};
use gravwell_config::datastore::DatastoreConfig;
use gravwell_datastore::service::trust_dir;
use gravwell_env::scratch::Scratch;
use gravwell_log::generations;
use gravwell_model::codec::json_lines::timestamp;
use gravwell_model::{Lineage, LogId, Seq};
use gravwell_transport::trust::BackupKey;

use crate::backups::copy::{Made, check_complete};
use crate::backups::create::{BackupFailure, create};
use crate::backups::location::{self, Notices, in_words};
use crate::backups::place::BackupPlace;
use crate::backups::{damages, failed, not_restored, run_blocking, tell, with_damage};
use crate::client::output::{Output, size};
use crate::client::progress::bytes_bar;
use crate::error::{CtlError, CtlResult};
pub use args::Backup;
use args::BackupAction;

/// `backup`
pub(super) async fn run(dir: &Path, json: bool, args: Backup) -> CtlResult {
    match args.action {
        BackupAction::Create { place, follow, every, new_place } if follow => {
            let every = Duration::from_secs(every.max(1));
            tokio::select! {
                result = keep_making(dir, &place, new_place, every, json) => result,
                () = crate::process::signals::stop_signal() => Ok(()),
            }
        }
        BackupAction::Create { place, new_place, .. } => {
            let notices = &mut Notices::new(on_standard_error);
            let made = create(dir, &place, new_place, json, notices, &mut Losses::default()).await;
            let made = made.map_err(|trouble| trouble.error)?;
            report(json, &made)?;
            check_complete(&made)?;
            with_damage(Vec::new(), made.head_damage)
        }
        BackupAction::List { place } => {
            let opened = location::open(dir, &place)?;
            run_blocking(move || list(&opened.repository, json)).await
        }
        BackupAction::Key { key_file } => print_key(dir, key_file, json),
        BackupAction::Verify { place, id, all, scratch } => {
            let opened = location::open(dir, &place)?;
            let keys = opened.sealed_key_damage(dir, &place)?;
            let repository = opened.repository;
            let base = scratch.unwrap_or_else(std::env::temp_dir);
            let scratch = Scratch::within(&base)
                .map_err(|error| CtlError::new(format!("cannot create a directory in {}: {error}", base.display())))?;
            let verifying = {
                let directory = scratch.path().to_owned();
                run_blocking(move || verify(&repository, id.as_deref(), all, &directory, json, keys))
            };
            // The directory is removed in any case; that of a killed process by a later command.
            tokio::select! {
                verified = verifying => verified,
                () = crate::process::signals::stop_signal() => Err(CtlError::new("interrupted")),
            }
        }
        BackupAction::Prune { place, keep_last, keep_daily, keep_weekly, unsound, given_up, dry_run } => {
            let keep = Keep {
                last: keep_last,
                daily: keep_daily,
                weekly: keep_weekly,
                drops_unsound: unsound,
                drops_branches: given_up,
                own: if given_up { own_log(dir)? } else { None },
            };
            let repository = location::open(dir, &place)?.repository;
            run_blocking(move || drop_old(&repository, &keep, dry_run, json)).await
        }
    }
}

/// Returns id and lineage of the log of the datastore in `dir`; `None` if there is no datastore.
fn own_log(dir: &Path) -> Result<Option<(LogId, Lineage)>, CtlError> {
    match dir.join("log").try_exists().and_then(|is_log| Ok(is_log || trust_dir(dir).try_exists()?)) {
        Ok(false) => Ok(None),
        Ok(true) => generations::of_log(dir).map(Some).map_err(|why| {
            CtlError::new(format!(
                "{why}; --given-up needs the log of this datastore to know which branch it continues: repair it first, \
                 or pass a --data-dir without a datastore"
            ))
        }),
        Err(error) => Err(CtlError::new(format!("{}: {error}", dir.display()))),
    }
}

/// Creates backups until cancelled, whenever something was committed.
async fn keep_making(dir: &Path, place: &BackupPlace, mut new_place: bool, every: Duration, json: bool) -> CtlResult {
    let (mut trouble, mut notices) = (String::new(), Notices::new(on_standard_error));
    let mut losses = Losses::default();
    loop {
        match create(dir, place, new_place, json, &mut notices, &mut losses).await {
            Ok(made) => {
                trouble.clear();
                // From here on an empty place is one that is not mounted.
                new_place = false;
                made.head_damage.iter().for_each(|damage| notices.give(damage));
                if made.is_new {
                    report(json, &made)?;
                }
            }
            Err(BackupFailure { error, .. }) => {
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

fn report(json: bool, made: &Made) -> CtlResult {
    let mut output = Output::new();
    if json {
        output.json(made)?;
        return output.flush();
    }
    if made.is_new {
        output.line(&format!(
            "{}: up to sequence {}, log of {}, {} chunks of contents; {} new",
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
    if made.again > 0 {
        output.line(&format!("{} pieces were missing in this place and were stored again", made.again))?;
    }
    if made.forgotten > 0 {
        output.line(&format!(
            "{} chunks that only the history references no longer exist: earlier states of some resources cannot be \
             restored",
            made.forgotten
        ))?;
    }
    if let Some((from, to)) = made.gap {
        output.line(&format!(
            "sequences {from} to {to} were compacted before they were backed up, and cannot be restored individually; \
             back up more often, or keep more history"
        ))?;
    }
    output.flush()
}

fn print_key(dir: &Path, key_file: Option<PathBuf>, json: bool) -> CtlResult {
    let path = key_file.unwrap_or_else(|| BackupKey::path_in(dir));
    let missing = || CtlError::new(format!("{} does not exist; the first encrypted backup creates it", path.display()));
    let key = BackupKey::load(&path).map_err(CtlError::new)?.ok_or_else(missing)?;
    let mut output = Output::new();
    if json {
        output.json(&serde_json::json!({ "backup_key": key.to_string(), "key": key.name(), "key_file": path }))?;
    } else {
        output.line(&key.to_string())?;
        complain!("this is the backup key {}; store it away from this host and from the backups", key.name());
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
        output.line(&format!("restorable sequences: {}", ranges(&coverage(&manifests))))?;
        output.line(&format!("{}: {}", repository.store().place(), in_words(repository.encryption())))?;
    }
    output.flush()?;
    tell(disagreement(&manifests));
    tell(other_branches(&manifests));
    with_damage(damages(&bad), repository.head_damage().map(str::to_owned))
}

fn ranges(covered: &[(Seq, Seq)]) -> String {
    covered.iter().map(|(from, to)| format!("{from} to {to}")).collect::<Vec<_>>().join(", ")
}

fn verify(
    repository: &Repository,
    id: Option<&str>,
    all: bool,
    directory: &Path,
    json: bool,
    keys: Vec<String>,
) -> Result<(), CtlError> {
    let (manifests, bad) = match id {
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
    let damages = damages(&bad).into_iter().chain(repository.head_damage().map(str::to_owned)).chain(keys);
    let damages: Vec<String> = damages.collect();
    let exit = troubles.iter().map(|error| error.exit).chain((!damages.is_empty()).then_some(3)).max();
    let Some(exit) = exit else { return Ok(()) };
    let messages: Vec<String> = troubles.into_iter().map(|error| error.message).chain(damages).collect();
    Err(CtlError { message: messages.join("; "), exit })
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
    restored.map_err(|error| not_restored(error, &manifest.id))
}

fn drop_old(repository: &Repository, keep: &Keep, dry_run: bool, json: bool) -> Result<(), CtlError> {
    let lock = Lock::take_to_remove(repository.store(), "prune").map_err(CtlError::new)?;
    let pruned = prune(repository, &lock, keep, dry_run);
    let keeps_room = !dry_run || lock.gave_room();
    drop(lock);
    if keeps_room {
        repository.store().keep_room();
    }
    let pruned = pruned.map_err(failed)?;
    tell(pruned.disagreement.clone());
    tell(pruned.branches.clone());
    let mut output = Output::new();
    if json {
        output.json(&pruned)?;
    } else {
        let verb = if dry_run { "would be removed" } else { "removed" };
        pruned.removed.iter().try_for_each(|id| output.line(&format!("{id} {verb}")))?;
        output.line(&format!(
            "{} backups kept, {} {verb}, with {} pieces ({})",
            pruned.kept.len(),
            pruned.removed.len(),
            pruned.pieces,
            size(pruned.bytes)
        ))?;
        let (before, after) = (ranges(&pruned.covered_before), ranges(&pruned.covered));
        if before == after {
            output.line(&format!("restorable sequences: {after}, as before"))?;
        } else {
            let verb = if dry_run { "could then" } else { "can now" };
            let before = match pruned.unsound.is_empty() {
                true => format!("before: {before}"),
                false => format!("before, with the backups that cannot be restored: {before}"),
            };
            output.line(&format!("sequences that {verb} be restored: {after}; {before}"))?;
        }
    }
    output.flush()?;
    let unsound = unsound_named(&pruned.unsound).into_iter().collect();
    with_damage(unsound, repository.head_damage().map(str::to_owned))
}

/// Names the backups that cannot be restored.
fn unsound_named(unsound: &[Unsound]) -> Option<String> {
    let named = unsound.iter().map(|Unsound { backup, why, stays }| {
        let stays = if *stays { "; kept, because a rule selects it or no sound backup is as advanced" } else { "" };
        format!("backup {backup} cannot be restored: {why}{stays}")
    });
    let named: Vec<String> = named.collect();
    (!named.is_empty()).then(|| {
        format!(
            "{}; check that the place is complete, for example that all of it is mounted, and make a new backup, which \
             stores missing pieces again; remove the remaining ones with --unsound",
            named.join("; ")
        )
    })
}
