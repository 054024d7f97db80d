//! An outbox journal that is missing or damaged: how it is noticed, and how its loss is accepted.

use std::path::Path;
use std::sync::Arc;

use crate::env::data_dir::{PATIENCE, claim, claim_to_read, is_claimed};
use crate::env::fs::Fs;
use crate::env::real::RealFs;
use crate::log::journal::{Journal, JournalError, witness_of};

use super::handle::OpenError;

/// Refuses a replica that was used before and has no journal any more. A new one gets its journal before anything else, so
/// that a journal is never missing next to a state; `makes`: whether it may be made.
///
/// # Errors
/// When it is missing, or cannot be made.
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

/// Whether a directory without a `role` was a replica's.
///
/// # Errors
/// When it cannot be listed.
pub fn is_replicas(directory: &Path) -> Result<bool, OpenError> {
    let is_datastores = ["log", "trust"].iter().any(|name| directory.join(name).exists());
    Ok(!is_datastores && was_used(directory)?)
}

/// What accepting a loss came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Records of the damaged journal that the new one has.
    pub records: u64,
}

/// Why a loss cannot be accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The outbox is as it should be.
    #[error("the outbox journal of {0} is neither damaged nor missing: nothing was changed")]
    Sound(std::path::PathBuf),
    /// It is somebody else's, or nothing at all.
    #[error("{0} is not a replica's directory: check --data-dir; nothing was changed")]
    NoReplica(std::path::PathBuf),
    /// The directory or its journal.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Begins the outbox of the replica in `directory` again after its journal was damaged or lost: what can be read is kept in
/// the new journal, and the damaged files stay next to it as `*.damaged-N`.
///
/// # Errors
/// When it is no replica's directory, a process runs on it, nothing is damaged, or the operating system refuses.
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
    // Only what was found to be a replica's is marked as one.
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
    use crate::replica::{Replica, ReplicaOptions};

    #[tokio::test]
    async fn p10_an_outbox_that_is_gone_is_not_an_empty_outbox() {
        let temp = tempfile::tempdir().expect("temp dir");
        let path = temp.path().join("r");
        drop(Replica::open(&path, ReplicaOptions::default()).expect("is new"));
        let reopen = || async {
            let options = ReplicaOptions { patience: Duration::from_secs(10), ..ReplicaOptions::default() };
            let (path, options) = (path.clone(), options);
            tokio::task::spawn_blocking(move || Replica::open(&path, options).map(drop)).await.expect("runs")
        };
        reopen().await.expect("opens");
        std::fs::remove_dir_all(path.join("outbox")).expect("removes");
        let error = reopen().await.expect_err("is damaged").to_string();
        assert!(error.contains("outbox journal") && error.contains("accept-loss"), "{error}");
        assert!(!path.join("outbox").exists(), "nothing was made in its place");
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
