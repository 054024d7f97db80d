//! The command line of `backup` and `restore`.

use std::path::PathBuf;

use clap::Subcommand;

use super::args::RegisterOf;

/// Where backups are.
#[derive(Clone, Debug, clap::Args)]
pub struct BackupPlace {
    /// A directory, or s3://bucket/prefix. For S3, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and, for stores that
    /// are not Amazon's, AWS_ENDPOINT_URL are read from the environment.
    #[arg(value_name = "DIR|URL")]
    pub place: String,
    /// File with the key of encrypted backups; made with the first backup when it is not there [default: backup.key in the data
    /// directory].
    #[arg(long, value_name = "FILE", env = "GRAVWELL_BACKUP_KEY_FILE")]
    pub key_file: Option<PathBuf>,
    /// File with the passphrase of backups that are encrypted with one instead; given with the first backup, they are.
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// The backups there are not encrypted, and are meant not to be: a new place begins so, and one that is so is not asked about.
    #[arg(long, env = "GRAVWELL_BACKUP_PLAIN", value_parser = clap::builder::BoolishValueParser::new())]
    pub plain: bool,
    /// The passphrase.
    #[arg(skip = std::env::var("GRAVWELL_BACKUP_PASSPHRASE").ok())]
    pub passphrase: Option<String>,
}

/// What to do with backups.
#[derive(Debug, Subcommand)]
pub enum BackupAction {
    /// Make a backup while the datastore runs: consistent, and of what the last one lacks only.
    ///
    /// Backups are encrypted with the key in DIR/backup.key, which the first one makes: keep a copy of it elsewhere.
    Create {
        #[command(flatten)]
        #[expect(missing_docs, reason = "it would become the command's help")]
        place: BackupPlace,
        /// Go on for ever, with a backup whenever something was committed: any moment can be restored then.
        #[arg(long)]
        follow: bool,
        /// Seconds between two backups with --follow.
        #[arg(long, default_value_t = 60, value_name = "S")]
        every: u64,
    },
    /// List the backups, and the sequences that can be restored.
    List {
        #[command(flatten)]
        #[expect(missing_docs, reason = "it would become the command's help")]
        place: BackupPlace,
    },
    /// Test-restore the backup that reaches furthest, or others, in a directory of its own: every byte is read, checked and added up.
    Verify {
        #[command(flatten)]
        #[expect(missing_docs, reason = "it would become the command's help")]
        place: BackupPlace,
        /// This one.
        #[arg(long, value_name = "BACKUP")]
        id: Option<String>,
        /// All of them.
        #[arg(long, conflicts_with = "id")]
        all: bool,
        /// Where there is room for it [default: the system's temporary directory].
        #[arg(long, value_name = "DIR")]
        scratch: Option<PathBuf>,
    },
    /// Remove old backups, and what only they needed.
    Prune {
        #[command(flatten)]
        #[expect(missing_docs, reason = "it would become the command's help")]
        place: BackupPlace,
        /// Keep so many of each log, those that reach furthest.
        #[arg(long, default_value_t = 0, value_name = "N")]
        keep_last: usize,
        /// Keep the newest of each of the last so many days.
        #[arg(long, default_value_t = 0, value_name = "N")]
        keep_daily: usize,
        /// Keep the newest of each of the last so many weeks.
        #[arg(long, default_value_t = 0, value_name = "N")]
        keep_weekly: usize,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
    },
    /// Print the key of encrypted backups. Keep it away from this host and from the backups.
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
    /// Which backup [default: the one that reaches furthest, or covers --at].
    #[arg(long, value_name = "BACKUP")]
    pub backup: Option<String>,
    /// Restore the state as of this sequence, or of this time (2026-11-25T22:35:13Z), instead of the backup's end.
    #[arg(long, value_name = "SEQ|TIME", value_parser = super::backup_restore::end)]
    pub at: Option<crate::log::copy::End>,
    /// Allow a moment before the first record: the log is empty then, and members set aside everything.
    #[arg(long, requires = "at")]
    pub at_empty: bool,
    /// Put the log that is there aside.
    #[arg(long)]
    pub replace: bool,
    /// End all API tokens of the restored moment, as its logins are ended in any case.
    #[arg(long)]
    pub rotate_secrets: bool,
    /// The key that `authority recovery-key` printed: brings the authority back where there is none, and opens backups the key
    /// of which is lost.
    #[arg(long, value_name = "KEY", env = "GRAVWELL_RECOVERY_KEY", hide_env_values = true)]
    pub recovery_key: Option<String>,
    /// A file with the recovery key.
    #[arg(long, value_name = "FILE", conflicts_with = "recovery_key")]
    pub recovery_key_file: Option<PathBuf>,
    /// Which register of members counts when a later one than the sealed copy's is left here.
    #[arg(long, value_enum, value_name = "WHICH")]
    pub register: Option<RegisterOf>,
    /// Go back to the latest register that the recovery key opens, although there is a later sealed copy that it does not open.
    #[arg(long)]
    pub earlier_copy: bool,
    /// Restore elsewhere, verify, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
}
