//! Arguments that name a place of backups.

use std::path::PathBuf;

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
