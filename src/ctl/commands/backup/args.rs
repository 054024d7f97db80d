//! Command-line arguments of `backup` and `restore`.

use std::path::PathBuf;

use clap::Subcommand;

use crate::backups::place::BackupPlace;

/// Back up a running datastore to a directory or an S3-compatible store.
#[derive(Debug, clap::Args)]
pub struct Backup {
    /// Command to run on the backups.
    #[command(subcommand)]
    pub action: BackupAction,
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
        place: BackupPlace,
    },
    /// Restore a backup into a scratch directory and verify every byte.
    ///
    /// Verifies the most advanced backup unless --id or --all is given.
    Verify {
        #[command(flatten)]
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
