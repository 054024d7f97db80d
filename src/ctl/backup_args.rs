//! Command-line arguments of `backup` and `restore`.

use std::path::PathBuf;

use clap::Subcommand;

use super::args::RegisterOf;

/// Location and encryption of backups.
#[derive(Clone, Debug, clap::Args)]
pub struct BackupPlace {
    /// Directory of the backups, or s3://bucket/prefix.
    ///
    /// For S3, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION are read from the environment, and
    /// AWS_ENDPOINT_URL for stores other than Amazon's.
    #[arg(value_name = "DIR|URL")]
    pub place: String,
    /// File with the backup key [default: backup.key in the data directory].
    ///
    /// The first encrypted backup creates the key if the file does not exist.
    #[arg(long, value_name = "FILE", env = "GRAVWELL_BACKUP_KEY_FILE")]
    pub key_file: Option<PathBuf>,
    /// File with a passphrase to encrypt backups with, instead of a key.
    ///
    /// Give it with the first backup to make the backups passphrase-encrypted.
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Store backups unencrypted, and accept existing backups that are unencrypted.
    #[arg(long, env = "GRAVWELL_BACKUP_PLAIN", value_parser = clap::builder::BoolishValueParser::new())]
    pub plain: bool,
    /// Passphrase from the environment variable `GRAVWELL_BACKUP_PASSPHRASE`.
    #[arg(skip = std::env::var("GRAVWELL_BACKUP_PASSPHRASE").ok())]
    pub passphrase: Option<String>,
}

/// Commands of `backup`.
#[derive(Debug, Subcommand)]
pub enum BackupAction {
    /// Create a consistent, incremental backup while the datastore runs.
    ///
    /// Backups are encrypted with the key in DIR/backup.key, which the first backup creates. Keep a copy of
    /// that key elsewhere.
    Create {
        #[command(flatten)]
        #[expect(missing_docs, reason = "it would become the command's help")]
        place: BackupPlace,
        /// Keep running and back up new commits, so that any point in time is restorable.
        #[arg(long)]
        follow: bool,
        /// Seconds between two backups with --follow.
        #[arg(long, default_value_t = 60, value_name = "S")]
        every: u64,
        /// Start over at a place that was used before and is empty now.
        ///
        /// Such a place is rejected otherwise, because its file system may just not be mounted. With --follow, this is
        /// valid until the first backup.
        #[arg(long)]
        new_place: bool,
    },
    /// List the backups and the sequences that can be restored.
    List {
        #[command(flatten)]
        #[expect(missing_docs, reason = "it would become the command's help")]
        place: BackupPlace,
    },
    /// Restore a backup into a scratch directory and verify every byte.
    ///
    /// Verifies the most advanced backup unless --id or --all is given.
    Verify {
        #[command(flatten)]
        #[expect(missing_docs, reason = "it would become the command's help")]
        place: BackupPlace,
        /// Verify this backup.
        #[arg(long, value_name = "BACKUP")]
        id: Option<String>,
        /// Verify all backups.
        #[arg(long, conflicts_with = "id")]
        all: bool,
        /// Directory with enough free space [default: the system's temporary directory].
        #[arg(long, value_name = "DIR")]
        scratch: Option<PathBuf>,
    },
    /// Delete old backups and the data that only they needed.
    Prune {
        #[command(flatten)]
        #[expect(missing_docs, reason = "it would become the command's help")]
        place: BackupPlace,
        /// Keep this many backups of each branch of a log's history, the most advanced ones.
        #[arg(long, default_value_t = 0, value_name = "N")]
        keep_last: usize,
        /// Keep the newest backup of each of the last N days.
        #[arg(long, default_value_t = 0, value_name = "N")]
        keep_daily: usize,
        /// Keep the newest backup of each of the last N weeks.
        #[arg(long, default_value_t = 0, value_name = "N")]
        keep_weekly: usize,
        /// Delete backups that cannot be restored, too, if a sound one is as advanced.
        ///
        /// Without it, such a backup is kept while the rules select it, because the missing data may be restored.
        #[arg(long)]
        unsound: bool,
        /// Apply the rules to each log as a whole, not to each branch of its history.
        ///
        /// Backups of branches that a restore or recovery abandoned are then deleted in their turn, but not those of
        /// the datastore in --data-dir, nor of a branch that had a backup since.
        #[arg(long)]
        given_up: bool,
        /// Print the plan without changing anything.
        #[arg(long)]
        dry_run: bool,
    },
    /// Print the backup key; store it away from this host and from the backups.
    Key {
        /// File with the key [default: backup.key in the data directory].
        #[arg(long, value_name = "FILE", env = "GRAVWELL_BACKUP_KEY_FILE")]
        key_file: Option<PathBuf>,
    },
}

/// Arguments of `restore`.
#[derive(Debug, clap::Args)]
pub struct BackupRestore {
    #[command(flatten)]
    #[expect(missing_docs, reason = "it would become the command's help")]
    pub place: BackupPlace,
    /// Backup to restore [default: the most advanced one, or one that covers --at].
    #[arg(long, value_name = "BACKUP")]
    pub backup: Option<String>,
    /// Restore the state at this sequence or time instead of the end of the backup.
    ///
    /// A time looks like 2026-11-25T22:35:13Z.
    #[arg(long, value_name = "SEQ|TIME", value_parser = super::backup_restore::end)]
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
