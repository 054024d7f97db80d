//! Head of a repository, which describes its encryption. It is stored twice, because without its salt no key can
//! decrypt the backups.

use serde::{Deserialize, Serialize};

use super::repository::{MANIFESTS, PIECES, RepositoryError};
use super::store::{Store, StoreError};
use gravwell_env::checksummed_text;
use gravwell_transport::trust::BackupKey;
use gravwell_transport::trust::encrypted_stream::{key_of, open_bytes, seal_bytes};

pub(super) const NAME: &str = "gravwell-backup.json";
/// Name of the copy, which ends in a checksum. Earlier versions write and read the head alone.
pub(super) const COPY: &str = "gravwell-backup.copy";
const VERSION: u32 = 1;
/// Version of a repository with a backup key, which earlier versions reject.
const VERSION_KEY: u32 = 2;
/// Plaintext of the proof, by which a passphrase or key is verified.
const PROOF: &[u8] = b"gravwell backup repository";

/// Data needed to derive the keys of a repository from its secret, and to verify the secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    #[serde(rename = "gravwell-backup-repository")]
    version: u32,
    id: String,
    salt: Option<String>,
    proof: Option<String>,
    /// Name of the backup key; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

/// Encryption of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// Not encrypted.
    Plain,
    /// Encrypted with a passphrase.
    Passphrase,
    /// Encrypted with the backup key of this name.
    Key(String),
}

impl Encryption {
    /// Returns the identifier for machine-readable output.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Encryption::Plain => "none",
            Encryption::Passphrase => "passphrase",
            Encryption::Key(_) => "key",
        }
    }
}

/// Secret that opens a repository.
#[derive(Clone, Copy)]
pub enum Secret<'a> {
    /// None, for an unencrypted repository.
    None,
    /// Passphrase from which the keys are derived.
    Passphrase(&'a str),
    /// Backup key from which the keys are derived.
    Key(&'a BackupKey),
}

/// Keys of an encrypted repository: one encrypts contents, the other hashes names.
pub(super) struct Keys {
    pub(super) contents: [u8; 32],
    pub(super) names: [u8; 32],
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok())).collect()
}

impl Secret<'_> {
    fn keys(&self, salt: &[u8; 16]) -> std::io::Result<Option<Keys>> {
        let key = match self {
            Secret::None => return Ok(None),
            Secret::Passphrase(passphrase) => key_of(passphrase, salt)?,
            Secret::Key(key) => key.for_repository(salt),
        };
        Ok(Some(Keys {
            contents: blake3::derive_key("gravwell backup contents v1", &key),
            names: blake3::derive_key("gravwell backup names v1", &key),
        }))
    }

    pub(super) fn encryption(&self) -> Encryption {
        match self {
            Secret::None => Encryption::Plain,
            Secret::Passphrase(_) => Encryption::Passphrase,
            Secret::Key(key) => Encryption::Key(key.name()),
        }
    }
}

impl Head {
    /// Reads the head, or its copy if the head is lost or damaged; `None` if there is no repository. Also returns a description of the
    /// one of the two that does not count because it is damaged or gone.
    pub(super) fn load(store: &dyn Store) -> Result<Option<(Head, Option<String>)>, RepositoryError> {
        let (head, copy) = (Self::read(store, NAME, Self::parse)?, Self::read(store, COPY, Self::parse_copy)?);
        let (head, damage) = match (head, copy) {
            // The copy has a checksum, the head has none.
            (head, Some(Ok(copy))) => {
                let damage = match head {
                    Some(Ok(head)) if head == copy => None,
                    Some(Ok(_)) => Some((NAME, format!("it differs from {COPY}"))),
                    Some(Err(what)) => Some((NAME, what)),
                    None => Some((NAME, "it is missing".into())),
                };
                (copy, damage)
            }
            // Repositories of earlier programs have no copy, which is no damage.
            (Some(Ok(head)), copy) => (head, copy.and_then(Result::err).map(|what| (COPY, what))),
            (Some(Err(what)), _) => return Err(Self::damaged(store, NAME, what)),
            (None, Some(Err(what))) => return Err(Self::damaged(store, COPY, what)),
            (None, None) if Self::is_missed(store)? => {
                return Err(RepositoryError::HeadLost { place: store.place() });
            }
            (None, None) => return Ok(None),
        };
        let damage = damage.map(|(name, what)| {
            let other = if name == NAME { COPY } else { NAME };
            let place = store.place();
            format!(
                "{place}/{name} is damaged: {what}; using {other} instead; move the damaged file out of {place}, and \
                 `backup create` writes it again"
            )
        });
        Ok(Some((head, damage)))
    }

    /// Returns whether backups exist, which cannot be opened without a head.
    fn is_missed(store: &dyn Store) -> Result<bool, RepositoryError> {
        Ok(!store.list(MANIFESTS)?.is_empty() || !store.list(PIECES)?.is_empty())
    }

    /// Reads one of the two, or returns what is wrong with it; `None` if it does not exist.
    fn read(
        store: &dyn Store,
        name: &str,
        parse: impl Fn(&[u8]) -> Result<Head, String>,
    ) -> Result<Option<Result<Head, String>>, RepositoryError> {
        match store.get(name) {
            Ok(bytes) => Ok(Some(parse(&bytes))),
            Err(StoreError::Missing(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn parse_copy(bytes: &[u8]) -> Result<Head, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not valid UTF-8")?;
        Self::parse(checksummed_text::open(text)?.as_bytes())
    }

    fn parse(bytes: &[u8]) -> Result<Head, String> {
        let head: Head = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let version = if head.key.is_some() { VERSION_KEY } else { VERSION };
        if head.version != version {
            return Err(format!("version {} is not supported, only {VERSION} and {VERSION_KEY}", head.version));
        }
        Ok(head)
    }

    /// Creates the head of a new repository.
    pub(super) fn create(store: &dyn Store, secret: Secret<'_>) -> Result<Option<Keys>, RepositoryError> {
        let mut id = [0; 16];
        let mut salt = [0; 16];
        for bytes in [&mut id, &mut salt] {
            getrandom::fill(bytes).map_err(|error| std::io::Error::other(error.to_string()))?;
        }
        let keys = secret.keys(&salt)?;
        let proof = keys.as_ref().map(|keys| seal_bytes(&keys.contents, PROOF)).transpose()?;
        let key = if let Secret::Key(key) = secret { Some(key.name()) } else { None };
        let head = Head {
            version: if key.is_some() { VERSION_KEY } else { VERSION },
            id: hex(&id),
            salt: keys.as_ref().map(|_| hex(&salt)),
            proof: proof.map(|proof| hex(&proof)),
            key,
        };
        // If two processes create a repository concurrently, one of them fails here.
        store.put_new(NAME, head.text()?.as_bytes())?;
        store.put(COPY, head.copy_text()?.as_bytes())?;
        Ok(keys)
    }

    /// Writes the head or its copy if missing, and returns which one was. A corrupt one is not overwritten, because the
    /// other one is used.
    pub(super) fn complete(&self, store: &dyn Store) -> Result<Option<&'static str>, RepositoryError> {
        let mut missing = None;
        for (name, text) in [(NAME, self.text()?), (COPY, self.copy_text()?)] {
            match store.get(name) {
                Ok(_) => continue,
                Err(StoreError::Missing(_)) => missing = Some(name),
                Err(error) => return Err(error.into()),
            }
            match store.put_new(name, text.as_bytes()) {
                // Another process wrote it first.
                Ok(()) | Err(StoreError::Exists(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(missing)
    }

    fn text(&self) -> Result<String, RepositoryError> {
        Ok(format!("{}\n", serde_json::to_string(self).map_err(std::io::Error::other)?))
    }

    fn copy_text(&self) -> Result<String, RepositoryError> {
        Ok(checksummed_text::seal(self.text()?.trim_end()))
    }

    fn damaged(store: &dyn Store, name: &str, what: String) -> RepositoryError {
        RepositoryError::Damaged { name: format!("{}/{name}", store.place()), what }
    }

    pub(super) fn encryption(&self, store: &dyn Store) -> Result<Encryption, RepositoryError> {
        match (&self.salt, &self.proof, &self.key) {
            (None, None, None) => Ok(Encryption::Plain),
            (Some(_), Some(_), None) => Ok(Encryption::Passphrase),
            (Some(_), Some(_), Some(key)) => Ok(Encryption::Key(key.clone())),
            _ => Err(Self::damaged(store, NAME, "salt and proof do not match".into())),
        }
    }

    /// Derives the keys, after verifying that `secret` is the one of the repository.
    pub(super) fn keys(&self, store: &dyn Store, secret: Secret<'_>) -> Result<Option<Keys>, RepositoryError> {
        let (place, encryption) = (store.place(), self.encryption(store)?);
        let refused = match &encryption {
            Encryption::Plain => RepositoryError::NotEncrypted(place),
            Encryption::Passphrase => RepositoryError::Locked(place),
            Encryption::Key(key) => RepositoryError::OtherKey { place, key: key.clone() },
        };
        match (&encryption, secret) {
            (Encryption::Plain, Secret::None) => return Ok(None),
            (Encryption::Passphrase, Secret::Passphrase(_)) => {}
            (Encryption::Key(name), Secret::Key(key)) if key.name() == *name => {}
            _ => return Err(refused),
        }
        let (salt, proof) = (self.salt.as_deref().unwrap_or_default(), self.proof.as_deref().unwrap_or_default());
        let salt = bytes_of(salt).and_then(|salt| salt.try_into().ok());
        let keys = secret.keys(&salt.ok_or_else(|| Self::damaged(store, NAME, "the salt".into()))?)?;
        let proof = bytes_of(proof).ok_or_else(|| Self::damaged(store, NAME, "the proof".into()))?;
        let contents = keys.as_ref().map(|keys| keys.contents).unwrap_or_default();
        match open_bytes(&contents, &proof) {
            Ok(opened) if opened == PROOF => Ok(keys),
            _ => Err(refused),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::super::repository::Repository;
    use super::super::store::LocalStore;
    use super::*;

    fn open(path: &Path, secret: Secret<'_>, create: bool) -> Result<Repository, RepositoryError> {
        Repository::open(Box::new(LocalStore::new(path)), secret, create)
    }

    #[test]
    fn p11_either_of_head_and_copy_opens_a_place_and_without_both_nothing_is_begun_in_it() {
        let temp = tempfile::tempdir().expect("temp dir");
        let key = BackupKey::generate().expect("makes");
        let secrets =
            [("plain", Secret::None), ("passphrase", Secret::Passphrase("secret")), ("key", Secret::Key(&key))];
        for (name, secret) in secrets {
            let path = temp.path().join(name);
            let mut known = BTreeSet::new();
            let repository = open(&path, secret, true).expect("makes");
            let (piece, _) = repository.put_piece(b"contents", &mut known).expect("stores");
            let opens = || open(&path, secret, false).map(|it| it.piece(&piece).expect("reads"));
            let texts = [NAME, COPY].map(|name| (path.join(name), std::fs::read(path.join(name)).expect("reads")));
            for (file, text) in &texts {
                // Deriving a key from a passphrase is slow.
                for at in (0..text.len()).step_by(if name == "passphrase" { 61 } else { 1 }) {
                    let mut bad = text.clone();
                    bad[at] ^= 1;
                    std::fs::write(file, &bad).expect("writes");
                    assert_eq!(opens().expect("the other one is used"), b"contents", "{name}, byte {at} of {file:?}");
                    // Corrupt files are not overwritten, so that an operator can examine them.
                    open(&path, secret, true).expect("opens");
                    assert_eq!(std::fs::read(file).expect("reads"), bad);
                }
                std::fs::remove_file(file).expect("removes");
                assert_eq!(opens().expect("the other one is used"), b"contents");
                assert!(!file.exists(), "reading writes nothing");
                open(&path, secret, true).expect("opens");
                assert_eq!(&std::fs::read(file).expect("is restored"), text, "{name}: {file:?}");
            }
            // An existing repository that is opened to back up into it is completed, and that is said.
            for (file, text) in &texts {
                std::fs::remove_file(file).expect("removes");
                let opened = open(&path, secret, true).expect("opens");
                assert_eq!(opened.head_damage(), None, "{name}");
                let name = file.file_name().and_then(|name| name.to_str()).expect("text");
                assert!(opened.head_completed().is_some_and(|said| said.contains(name)), "{name}");
                assert_eq!(&std::fs::read(file).expect("is restored"), text, "{name}");
                assert_eq!(open(&path, secret, true).expect("opens").head_completed(), None);
            }
            texts.iter().for_each(|(file, _)| std::fs::remove_file(file).expect("removes"));
            for create in [false, true] {
                assert!(matches!(open(&path, secret, create), Err(RepositoryError::HeadLost { .. })), "{name}");
            }
            assert!(texts.iter().all(|(file, _)| !file.exists()), "no repository is created");
        }
    }
}
