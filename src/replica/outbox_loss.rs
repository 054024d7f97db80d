//! An outbox journal that is missing or corrupt: detecting that, and accepting the loss.

use std::path::Path;
use std::sync::Arc;

use gravwell_env::data_dir::{PATIENCE, claim, claim_to_read, is_claimed};
use gravwell_env::fs::Fs;
use gravwell_env::real_fs::RealFs;
use gravwell_log::journal::{Journal, JournalError, witness_of};

use super::handle::OpenError;

/// Rejects a replica that was used before and has no journal any more. A new replica gets its journal before anything
/// else, so that a journal is never missing next to a state. `makes`: whether the journal may be created.
///
/// # Errors
/// If it is missing, or cannot be created.
pub(super) fn check(directory: &Path, makes: bool) -> Result<(), OpenError> {
    let outbox = directory.join("outbox");
    if !Journal::is_absent(&RealFs, &outbox)? {
        return Ok(());
    }
    if was_used(directory)? {
        return Err(Journal::missing().into());
    }
    if makes {
        Journal::open_dir(&outbox)?;
    }
    Ok(())
}

fn was_used(directory: &Path) -> Result<bool, OpenError> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        if name == "current" || name == "high-water" || name == "terms" || name.to_string_lossy().starts_with("state-")
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns whether a directory without a `role` was a replica's.
///
/// # Errors
/// If it cannot be listed.
pub fn is_replicas(directory: &Path) -> Result<bool, OpenError> {
    let is_datastores = ["log", "trust"].iter().any(|name| directory.join(name).exists());
    Ok(!is_datastores && was_used(directory)?)
}

/// Result of accepting a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Records of the corrupt journal that the new one has.
    pub records: u64,
}

/// Error of accepting a loss.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The outbox journal is neither corrupt nor missing.
    #[error("the outbox journal of {0} is neither damaged nor missing; nothing was changed")]
    Sound(std::path::PathBuf),
    /// The directory belongs to something else, or does not exist.
    #[error("{0} is not a replica's directory; check --data-dir. Nothing was changed")]
    NoReplica(std::path::PathBuf),
    /// The directory or its journal cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Starts a new outbox for the replica in `directory` after its journal was corrupted or lost. Readable records are
/// kept in the new journal, and the corrupt files are kept next to it as `*.damaged-N`.
///
/// # Errors
/// If it is not a replica's directory, a process runs on it, nothing is corrupt, or the operating system returns
/// an error.
pub fn accept(directory: &Path) -> Result<Accepted, AcceptError> {
    let looking = claim_to_read(directory, "replica", PATIENCE).map_err(OpenError::from)?;
    if !is_claimed(directory) && !is_replicas(directory)? {
        return Err(AcceptError::NoReplica(directory.to_owned()));
    }
    let outbox = directory.join("outbox");
    let is_absent = Journal::is_absent(&RealFs, &outbox).map_err(OpenError::from)?;
    let is_missing = is_absent && was_used(directory)?;
    if is_absent && !is_missing && !witness_of(&outbox).exists() {
        return Err(AcceptError::Sound(directory.to_owned()));
    }
    // Claiming marks a directory as a replica's, so only one that was found to be a replica's is claimed.
    drop(looking);
    let _lock = claim(directory, "replica", PATIENCE).map_err(OpenError::from)?;
    if !is_missing {
        match Journal::open_dir(&outbox) {
            Ok(_) => return Err(AcceptError::Sound(directory.to_owned())),
            Err(JournalError::Damaged(_)) => {}
            Err(error) => return Err(OpenError::from(error).into()),
        }
    }
    let fs: Arc<dyn Fs> = Arc::new(RealFs);
    let records = Journal::accept_loss(&fs, &outbox).map_err(OpenError::from)?;
    Ok(Accepted { records })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Replica, ReplicaOptions};

    #[tokio::test]
    async fn p10_an_outbox_that_is_gone_is_not_an_empty_outbox() {
        let temp = tempfile::tempdir().expect("temp dir");
        let path = temp.path().join("r");
        drop(Replica::open(&path, ReplicaOptions::default()).expect("opens a new replica"));
        let reopen = || async {
            let options = ReplicaOptions { patience: Duration::from_secs(10), ..ReplicaOptions::default() };
            let (path, options) = (path.clone(), options);
            tokio::task::spawn_blocking(move || Replica::open(&path, options).map(drop)).await.expect("runs")
        };
        reopen().await.expect("opens");
        std::fs::remove_dir_all(path.join("outbox")).expect("removes");
        let error = reopen().await.expect_err("is damaged").to_string();
        assert!(error.contains("outbox journal") && error.contains("accept-loss"), "{error}");
        assert!(!path.join("outbox").exists(), "no new journal was created");
        let accepted = accept(&path).expect("accepts");
        assert_eq!(accepted, Accepted { records: 0 });
        reopen().await.expect("opens again");
        assert!(matches!(accept(&path), Err(AcceptError::Sound(_))));
    }

    #[test]
    fn p13_a_loss_is_accepted_only_where_a_replica_is() {
        let temp = tempfile::tempdir().expect("temp dir");
        let (absent, datastore) = (temp.path().join("absent"), temp.path().join("datastore"));
        std::fs::create_dir_all(datastore.join("log")).expect("makes");
        std::fs::create_dir(datastore.join("state")).expect("makes");
        for path in [&absent, &datastore] {
            assert!(matches!(accept(path), Err(AcceptError::NoReplica(_))), "{}", path.display());
        }
        assert!(!absent.exists() && !datastore.join("role").exists() && !datastore.join("outbox").exists());
    }
}
