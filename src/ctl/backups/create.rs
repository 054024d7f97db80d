//! Creates backups of a datastore, once or continuously.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gravwell_backup::lock::Lock;
use gravwell_backup::presence::Losses;
use gravwell_backup::store::StoreError;
use gravwell_config::datastore::DatastoreConfig;
use gravwell_datastore::archive::Archive;
use gravwell_env::{Clock, SystemClock};

use super::copy::{Made, copy};
use super::location::{self, Notices};
use super::place::BackupPlace;
use super::{failed, run_blocking};
use crate::client::Client;
use crate::error::CtlError;

/// Number of times in a row that a continuous backup may find another process at work in the place before it counts as
/// behind.
const BUSY_MAX: u32 = 10;

/// Runs the continuous backup of a datastore from within its own process, and records in `state` how it goes.
pub(crate) async fn archive(config: DatastoreConfig, place: String, state: Arc<Archive>) {
    let passphrase = std::env::var("GRAVWELL_BACKUP_PASSPHRASE").ok();
    let key_file = config.backup_key_file.or_else(|| std::env::var_os("GRAVWELL_BACKUP_KEY_FILE").map(PathBuf::from));
    let place = BackupPlace { place, key_file, passphrase_file: None, plain: config.backup_plain, passphrase };
    let (mut notices, mut losses) = (Notices::new(|notice| tracing::warn!("{notice}")), Losses::default());
    let mut busy = 0;
    loop {
        match create(&config.data_dir, &place, false, true, &mut notices, &mut losses).await {
            Ok(made) => {
                busy = 0;
                state.succeeded(SystemClock.now_ms());
                made.head_damage.iter().for_each(|damage| notices.give(damage));
                if made.is_new && made.missing > 0 {
                    tracing::error!(backup = made.backup, missing = made.missing, "backup written with missing chunks");
                } else if made.is_new {
                    tracing::info!(backup = made.backup, seq = %made.seq, new_bytes = made.new_bytes, "backup written");
                }
            }
            Err(BackupFailure { error, is_busy }) => {
                tracing::error!(error = error.message, "continuous backup failed; will retry");
                busy = if is_busy { busy + 1 } else { 0 };
                if !is_busy || busy > BUSY_MAX {
                    state.failed(&error.message);
                }
            }
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
}

/// Failed backup.
pub(crate) struct BackupFailure {
    pub(crate) error: CtlError,
    /// Whether another process was at work in the place.
    pub(crate) is_busy: bool,
}

impl From<CtlError> for BackupFailure {
    fn from(error: CtlError) -> BackupFailure {
        BackupFailure { error, is_busy: false }
    }
}

/// Creates a backup, if anything was committed since the last one.
pub(crate) async fn create(
    dir: &Path,
    place: &BackupPlace,
    new_place: bool,
    quiet: bool,
    notices: &mut Notices,
    losses: &mut Losses,
) -> Result<Made, BackupFailure> {
    let (path, place) = (dir.to_owned(), place.clone());
    let opened = run_blocking(move || location::open_or_create(&path, &place, new_place)).await?;
    opened.notices.iter().for_each(|notice| notices.give(notice));
    let repository = &opened.repository;
    let lock = tokio::task::block_in_place(|| Lock::take(repository.store(), "backup"));
    let lock = lock.map_err(|error| {
        let is_busy = matches!(error, StoreError::Busy { .. });
        BackupFailure { error: CtlError::new(error), is_busy }
    })?;
    let is_kept = tokio::task::block_in_place(|| opened.keep_key(dir))?;
    let earlier = tokio::task::block_in_place(|| repository.last_written()).map_err(failed)?;
    let client = Client::open(dir).await?;
    let made = copy(&client, repository, &lock, earlier, losses, quiet).await;
    client.close().await;
    let mut made = made?;
    if !is_kept {
        // The first CA backup creates the recovery key, so the key could not be stored before.
        tokio::task::block_in_place(|| opened.keep_key(dir))?;
    }
    tokio::task::block_in_place(|| opened.drop_former_keys(dir))?;
    made.encryption = opened.described();
    made.branch.iter().for_each(|notice| notices.give(notice));
    made.head_damage = repository.head_damage().map(str::to_owned);
    Ok(made)
}
