//! Backups of a datastore, for the commands `backup` and `restore` and for the datastore itself: places, and copying.

pub(crate) mod copy;
pub(crate) mod create;
pub(crate) mod known_locations;
pub(crate) mod location;
pub(crate) mod place;

use gravwell_backup::repository::{RepositoryError, Unreadable};
use gravwell_backup::restore::RestoreError;

use crate::error::{CtlError, CtlResult};

/// Maps an error of a repository; damage has its own exit code.
pub(crate) fn failed(error: RepositoryError) -> CtlError {
    let exit = if matches!(error, RepositoryError::Damaged { .. }) { 3 } else { 1 };
    CtlError { message: error.to_string(), exit }
}

/// Adds the id of the backup to an error if the backup itself is inconsistent.
pub(crate) fn not_restored(error: RestoreError, id: &str) -> CtlError {
    let error = match error {
        RestoreError::Repository(error) => failed(error),
        error @ RestoreError::Wrong(_) => CtlError { message: error.to_string(), exit: 3 },
        error => CtlError::new(error),
    };
    let message = if error.exit == 3 { format!("backup {id}: {}", error.message) } else { error.message };
    CtlError { message, exit: error.exit }
}

/// Runs work that blocks on a thread for such work.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CtlError> + Send + 'static,
) -> Result<T, CtlError> {
    tokio::task::spawn_blocking(work).await.map_err(CtlError::new)?
}

/// Prints a warning on standard error.
pub(crate) fn tell(what: Option<String>) {
    what.iter().for_each(|what| complain!("gravwell-logctl: {what}"));
}

/// Returns what is wrong with unusable manifests.
pub(crate) fn damages(bad: &[Unreadable]) -> Vec<String> {
    bad.iter().map(|bad| bad.error.to_string()).collect()
}

/// Fails if anything in a place is damaged.
pub(crate) fn with_damage(damages: Vec<String>, head: Option<String>) -> CtlResult {
    let named: Vec<String> = damages.into_iter().chain(head).collect();
    if named.is_empty() { Ok(()) } else { Err(CtlError { message: named.join("; "), exit: 3 }) }
}
