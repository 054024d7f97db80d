//! The key that backups are encrypted with: 32 random bytes in a separate file.
//!
//! It is stored outside the backup location, because it protects against readers of that location. So that it is not
//! lost together with its disk, a copy encrypted under the operator's recovery key, if that is known, is stored with
//! the backups.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::authority::{read_private, write_new_private};
use super::{RecoveryKey, TrustError, key_text};
use crate::trust::encrypted_stream::{open_bytes, seal_bytes};

const PREFIX: &str = "gwb1.";
const NAME: &str = "gravwell backup key name v1";

/// A backup key. Text form: `gwb1.`, then base64url of the key and the first 4 bytes of its BLAKE3 hash.
#[derive(Clone, PartialEq, Eq)]
pub struct BackupKey([u8; 32]);

impl fmt::Debug for BackupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BackupKey({})", self.name())
    }
}

impl fmt::Display for BackupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&key_text::encode(PREFIX, &self.0))
    }
}

impl FromStr for BackupKey {
    type Err = TrustError;

    fn from_str(text: &str) -> Result<BackupKey, TrustError> {
        key_text::decode(PREFIX, "backup key", text).map(BackupKey)
    }
}

impl BackupKey {
    /// Default name of the key file in a data directory.
    pub const FILE: &str = "backup.key";

    /// Generates a key.
    ///
    /// # Errors
    /// If random bytes are unavailable.
    pub fn generate() -> Result<BackupKey, TrustError> {
        key_text::random().map(BackupKey)
    }

    /// Reads a key from a file; `None` if the file does not exist.
    ///
    /// # Errors
    /// If the file is corrupt or readable by others.
    pub fn load(path: &Path) -> Result<Option<BackupKey>, TrustError> {
        let text = match read_private(path) {
            Err(TrustError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read?,
        };
        let damaged = |error: TrustError| TrustError::Damaged { path: path.to_owned(), what: error.to_string() };
        text.parse().map(Some).map_err(damaged)
    }

    /// Writes the key to a new file that only the owner may read; durable when it returns. Returns `false` if the file
    /// already exists.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save_new(&self, path: &Path) -> Result<bool, TrustError> {
        write_new_private(path, format!("{self}\n").as_bytes())
    }

    /// Reads the key in a file, creating it if it does not exist. Also returns whether it was created.
    ///
    /// # Errors
    /// If the file is corrupt or readable by others, or cannot be written.
    pub fn open_or_create(path: &Path) -> Result<(BackupKey, bool), TrustError> {
        if let Some(key) = BackupKey::load(path)? {
            return Ok((key, false));
        }
        let key = BackupKey::generate()?;
        if key.save_new(path)? {
            return Ok((key, true));
        }
        let gone = || TrustError::Io { path: path.to_owned(), source: std::io::ErrorKind::NotFound.into() };
        Ok((BackupKey::load(path)?.ok_or_else(gone)?, false))
    }

    /// Returns the default path of the key file in a data directory.
    #[must_use]
    pub fn path_in(data_dir: &Path) -> PathBuf {
        data_dir.join(BackupKey::FILE)
    }

    /// Returns a name that identifies the key without revealing it.
    #[must_use]
    pub fn name(&self) -> String {
        key_text::name(NAME, &self.0)
    }

    /// Derives the key of a repository, which is identified by its salt.
    #[must_use]
    pub fn for_repository(&self, salt: &[u8; 16]) -> [u8; 32] {
        *blake3::keyed_hash(&self.0, salt).as_bytes()
    }

    /// Encrypts the key under the recovery key.
    ///
    /// # Errors
    /// If random bytes are unavailable.
    pub fn seal(&self, under: &RecoveryKey) -> Result<Vec<u8>, TrustError> {
        let sealed = seal_bytes(&under.for_backup_keys(), self.to_string().as_bytes());
        sealed.map_err(|error| TrustError::Refused(error.to_string()))
    }

    /// Decrypts the output of [`BackupKey::seal`]; `None` if it was encrypted under another key or altered.
    #[must_use]
    pub fn unseal(sealed: &[u8], under: &RecoveryKey) -> Option<BackupKey> {
        let text = open_bytes(&under.for_backup_keys(), sealed).ok()?;
        std::str::from_utf8(&text).ok()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn p11_a_backup_key_is_made_once_and_for_its_owner_alone() {
        let temp = tempfile::tempdir().expect("temp dir");
        let path = BackupKey::path_in(temp.path());
        assert_eq!(BackupKey::load(&path).expect("no file is no error"), None);
        let (key, is_new) = BackupKey::open_or_create(&path).expect("makes");
        assert!(is_new);
        assert_eq!(BackupKey::open_or_create(&path).expect("opens"), (key.clone(), false));
        assert!(!BackupKey::generate().expect("makes").save_new(&path).expect("keeps the existing key"));
        assert_eq!(BackupKey::load(&path).expect("reads"), Some(key.clone()));
        let names: Vec<_> =
            fs::read_dir(temp.path()).expect("lists").map(|entry| entry.expect("entry").file_name()).collect();
        assert_eq!(names, [BackupKey::FILE], "no other file is left");
        assert_eq!(fs::metadata(&path).expect("metadata").permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("sets");
        assert!(matches!(BackupKey::open_or_create(&path), Err(TrustError::Exposed { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("sets");
        fs::write(&path, "gwb1.AAAA").expect("writes");
        assert!(matches!(BackupKey::open_or_create(&path), Err(TrustError::Damaged { .. })), "it is never replaced");
    }

    #[test]
    fn p11_a_sealed_backup_key_opens_with_its_recovery_key_alone() {
        let temp = tempfile::tempdir().expect("temp dir");
        let [one, two] =
            ["one", "two"].map(|name| RecoveryKey::open_or_create(&temp.path().join(name)).expect("makes"));
        let key = BackupKey::generate().expect("makes");
        let sealed = key.seal(&one).expect("seals");
        assert_eq!(BackupKey::unseal(&sealed, &one), Some(key.clone()));
        assert_eq!(BackupKey::unseal(&sealed, &two), None);
        assert_eq!(BackupKey::unseal(&sealed[..sealed.len() - 1], &one), None);
        assert_ne!(key.for_repository(&[1; 16]), key.for_repository(&[2; 16]));
        assert_eq!(key.to_string().parse::<BackupKey>().expect("parses"), key);
        assert!(!format!("{key:?}").contains(&key.to_string()), "secrets stay out of logs");
    }
}
