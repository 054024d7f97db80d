//! Arguments of `authority`.

use std::path::PathBuf;

use clap::Subcommand;

use super::rotate::RotateAction;
use super::rotate_recovery_key::RotationAction;
use crate::client::ca_restore::RegisterOf;

/// Back up and restore the certificate authority.
#[derive(Debug, clap::Args)]
pub struct Authority {
    /// Command to run on the authority.
    #[command(subcommand)]
    pub action: AuthorityAction,
}

/// Commands of `authority`.
#[derive(Debug, Subcommand)]
pub enum AuthorityAction {
    /// Print the recovery key, which decrypts every encrypted CA backup.
    ///
    /// Write it down and keep it away from this host.
    RecoveryKey {
        /// Restore a key from your notes because its file is missing or damaged.
        #[arg(long, value_name = "KEY")]
        set: Option<String>,
        /// File with the key to restore.
        #[arg(long, value_name = "FILE", conflicts_with = "set")]
        set_file: Option<PathBuf>,
        /// Replace a missing or damaged recovery key that cannot be restored.
        #[arg(long, conflicts_with_all = ["set", "set_file"])]
        give_up: bool,
    },
    /// Replace the recovery key.
    ///
    /// Run `begin`, then `finish` once every member holds an encrypted CA backup that the new key decrypts.
    RotateRecoveryKey {
        /// Step of the rotation.
        #[command(subcommand)]
        action: RotationAction,
    },
    /// Replace the CA while members keep running.
    ///
    /// Members renew their certificates automatically. Run this on the datastore's own directory.
    Rotate {
        /// Step of the rotation.
        #[command(subcommand)]
        action: RotateAction,
    },
    /// Write an encrypted backup of the CA and the member registry to a file.
    ///
    /// Every member stores such a backup as well.
    Backup {
        /// File to write.
        file: PathBuf,
    },
    /// Restore the CA and member registry of a stopped datastore.
    Restore {
        /// Encrypted CA backup: a member's identity/escrow or an `authority backup` file.
        file: PathBuf,
        /// Recovery key printed by `authority recovery-key`.
        #[arg(long, value_name = "KEY", env = "GRAVWELL_RECOVERY_KEY", hide_env_values = true)]
        recovery_key: Option<String>,
        /// File with the recovery key.
        #[arg(long, value_name = "FILE", conflicts_with = "recovery_key")]
        recovery_key_file: Option<PathBuf>,
        /// Member registry to use if the local one is newer than the encrypted CA backup.
        #[arg(long, value_enum, value_name = "WHICH")]
        register: Option<RegisterOf>,
        /// Use an older member registry although a newer one is known.
        ///
        /// Either the recovery key was replaced since, so that later encrypted CA backups exist under the new key, or a
        /// later change of the members is recorded in the datastore's directory.
        #[arg(long)]
        earlier_copy: bool,
    },
}
