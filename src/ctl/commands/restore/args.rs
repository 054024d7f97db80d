//! Arguments of `restore`.

use std::path::PathBuf;

use super::end;
use crate::backups::place::BackupPlace;
use crate::client::ca_restore::RegisterOf;

/// Restore a stopped datastore from a backup.
///
/// Restores up to the end of the backup, or up to any sequence or time that it covers. The restored log is verified
/// completely before it is put in place; an existing log is kept next to it. The log continues in a new generation.
/// Members that are ahead follow the restored log and archive the changes that it lacks (see `quarantine`), because
/// going back was the purpose.
#[derive(Debug, clap::Args)]
pub struct Restore {
    #[command(flatten)]
    pub place: BackupPlace,
    /// Backup to restore [default: the most advanced one, or one that covers --at].
    #[arg(long, value_name = "BACKUP")]
    pub backup: Option<String>,
    /// Restore the state at this sequence or time instead of the end of the backup.
    ///
    /// A time looks like 2026-11-25T22:35:13Z.
    #[arg(long, value_name = "SEQ|TIME", value_parser = end)]
    pub at: Option<gravwell_log::backup_stream::End>,
    /// Allow a time before the first record.
    ///
    /// The restored log is empty then, and members archive all their changes.
    #[arg(long, requires = "at")]
    pub at_empty: bool,
    /// Replace the existing log; it is kept under a different name.
    #[arg(long)]
    pub replace: bool,
    /// Revoke all API tokens in the restored state; its logins are revoked in any case.
    #[arg(long)]
    pub rotate_secrets: bool,
    /// Recovery key printed by `authority recovery-key`.
    ///
    /// Restores the CA if there is none, and decrypts backups of which the backup key is lost.
    #[arg(long, value_name = "KEY", env = "GRAVWELL_RECOVERY_KEY", hide_env_values = true)]
    pub recovery_key: Option<String>,
    /// File with the recovery key.
    #[arg(long, value_name = "FILE", conflicts_with = "recovery_key")]
    pub recovery_key_file: Option<PathBuf>,
    /// Member registry to use if the local one is newer than the encrypted CA backup.
    #[arg(long, value_enum, value_name = "WHICH")]
    pub register: Option<RegisterOf>,
    /// Use an older member registry although a newer encrypted CA backup exists.
    ///
    /// Uses the latest registry that the recovery key decrypts, ignoring later encrypted CA backups that it
    /// does not decrypt, and later changes of the members that are recorded here.
    #[arg(long)]
    pub earlier_copy: bool,
    /// Restore into a scratch directory and verify it without changing anything.
    #[arg(long)]
    pub dry_run: bool,
}
