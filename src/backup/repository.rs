//! Repository of backups in a store: the head, pieces named by the hash of their contents, and manifests.

use std::collections::BTreeSet;

use super::choice;
pub use super::encrypted_keys::SealedKey;
use super::head::{self, Head, Keys};
pub use super::head::{Encryption, Secret};
use super::manifest::{Manifest, PIECE_BYTES, name, number_of};
use super::store::{OBJECT_BYTES_MAX, Store, StoreError};
use gravwell_env::checksummed_text;
use gravwell_model::LogId;
use gravwell_transport::trust::TrustError;
use gravwell_transport::trust::encrypted_stream::{open_bytes, seal_bytes};

pub(super) const MANIFESTS: &str = "manifests/";
pub(super) const PIECES: &str = "pieces/";

/// Error of a repository operation.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There are no backups.
    #[error("{0} contains no backups; create one with `gravwell-logctl backup create`")]
    None(String),
    /// The repository is encrypted with a passphrase, which is missing or wrong.
    #[error("{0} is encrypted with a passphrase; pass it with --passphrase-file or GRAVWELL_BACKUP_PASSPHRASE")]
    Locked(String),
    /// The repository is encrypted with a backup key, which is missing or wrong.
    #[error("{place} is encrypted with the backup key {key}, not with the given key")]
    OtherKey {
        /// Location of the repository.
        place: String,
        /// Name of its key.
        key: String,
    },
    /// The repository is not encrypted, but a passphrase or key was provided.
    #[error("{0} is not encrypted, which cannot be changed; use another place for encrypted backups")]
    NotEncrypted(String),
    /// The backup key cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// An object is corrupt.
    #[error(
        "{name} is damaged: {what}; list damaged backups with `gravwell-logctl backup verify PLACE --all`, and back up \
         to another place"
    )]
    Damaged {
        /// Name of the object.
        name: String,
        /// Description of the corruption.
        what: String,
    },
    /// There are backups, but the description of their encryption is lost.
    #[error(
        "{place} contains backups, but {} and its copy {}, which are needed to open them, are missing; restore one of \
         the two from a copy of the place, or use another place",
        head::NAME,
        head::COPY
    )]
    HeadLost {
        /// Location of the repository.
        place: String,
    },
    /// The backup does not exist, or the operation would break the repository's rules.
    #[error("{0}")]
    NoSuch(String),
    /// No random bytes or memory are available.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// An open repository.
pub struct Repository {
    store: Box<dyn Store>,
    keys: Option<Keys>,
    encryption: Encryption,
    head_damage: Option<String>,
    head_completed: Option<String>,
}

/// A manifest that cannot be used.
#[derive(Debug)]
pub struct Unreadable {
    /// Name of the backup.
    pub id: String,
    /// Damage of its manifest.
    pub error: RepositoryError,
}

impl Repository {
    /// Returns the encryption of the repository in a store; `None` if there is no repository.
    ///
    /// # Errors
    /// Returns an error if its head is corrupt or lost, or the store cannot be reached.
    pub fn encryption_of(store: &dyn Store) -> Result<Option<Encryption>, RepositoryError> {
        Head::load(store)?.map(|(head, _)| head.encryption(store)).transpose()
    }

    /// Opens the repository in a store. With `create`, creates a missing repository, or a missing part of its head.
    ///
    /// # Errors
    /// Returns an error if there is no repository, its head is corrupt or lost, or it was created with another secret.
    pub fn open(store: Box<dyn Store>, secret: Secret<'_>, create: bool) -> Result<Repository, RepositoryError> {
        let (mut head_damage, mut head_completed) = (None, None);
        let keys = match Head::load(&*store)? {
            Some((head, damage)) => {
                head_damage = damage;
                let keys = head.keys(&*store, secret)?;
                if create && let Some(name) = head.complete(&*store)? {
                    head_damage = None;
                    head_completed = Some(format!("{}/{name} was missing and was rewritten", store.place()));
                }
                keys
            }
            None if create => Head::create(&*store, secret)?,
            None => return Err(RepositoryError::None(store.place())),
        };
        Ok(Repository { store, keys, encryption: secret.encryption(), head_damage, head_completed })
    }

    /// Returns which part of the head was missing and was written when the repository was opened.
    #[must_use]
    pub fn head_completed(&self) -> Option<&str> {
        self.head_completed.as_deref()
    }

    /// Returns what is wrong with the head or its copy, one of which is sound, and what to do about it.
    #[must_use]
    pub fn head_damage(&self) -> Option<&str> {
        self.head_damage.as_deref()
    }

    /// Returns the encryption of the repository.
    #[must_use]
    pub fn encryption(&self) -> &Encryption {
        &self.encryption
    }

    /// Returns the store of the repository.
    #[must_use]
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.keys.is_some()
    }

    fn seal(&self, bytes: Vec<u8>) -> Result<Vec<u8>, RepositoryError> {
        match &self.keys {
            Some(keys) => Ok(seal_bytes(&keys.contents, &bytes)?),
            None => Ok(bytes),
        }
    }

    fn unseal(&self, name: &str, bytes: Vec<u8>) -> Result<Vec<u8>, RepositoryError> {
        let Some(keys) = &self.keys else { return Ok(bytes) };
        let damaged = |error: std::io::Error| self.damaged(name, error.to_string());
        open_bytes(&keys.contents, &bytes).map_err(damaged)
    }

    pub(super) fn damaged(&self, name: &str, what: impl Into<String>) -> RepositoryError {
        RepositoryError::Damaged { name: format!("{}/{name}", self.store.place()), what: what.into() }
    }

    /// Returns the name of a piece: the hash of its contents. It is keyed if the repository is encrypted, so that names
    /// reveal nothing about the contents.
    fn piece_name(&self, bytes: &[u8]) -> String {
        let hash = match &self.keys {
            Some(keys) => blake3::keyed_hash(&keys.names, bytes),
            None => blake3::hash(bytes),
        };
        hash.to_hex().to_string()
    }

    /// Stores a piece unless it is in `known`. Returns its name, and whether it was new.
    ///
    /// # Errors
    /// Returns an error if it cannot be stored.
    pub fn put_piece(&self, bytes: &[u8], known: &mut BTreeSet<String>) -> Result<(String, bool), RepositoryError> {
        let name = self.piece_name(bytes);
        let is_new = known.insert(name.clone());
        if is_new {
            self.store.put(&path_of(&name), &self.seal(bytes.to_vec())?)?;
        }
        Ok((name, is_new))
    }

    /// Reads a piece and verifies it against its name.
    ///
    /// # Errors
    /// Returns an error if it is missing or corrupt.
    pub fn piece(&self, name: &str) -> Result<Vec<u8>, RepositoryError> {
        let path = path_of(name);
        let bytes = match self.store.get(&path) {
            Ok(bytes) => self.unseal(&path, bytes)?,
            Err(StoreError::Missing(_)) => return Err(self.damaged(&path, "it is missing")),
            Err(error) => return Err(error.into()),
        };
        if bytes.len() as u64 > PIECE_BYTES || self.piece_name(&bytes) != name {
            return Err(self.damaged(&path, "its content does not match its name"));
        }
        Ok(bytes)
    }

    /// Stores a manifest. Everything that it references must have been stored.
    ///
    /// # Errors
    /// Returns an error if it cannot be stored.
    pub fn put_manifest(&self, manifest: &Manifest) -> Result<(), RepositoryError> {
        let text = serde_json::to_string(manifest).map_err(std::io::Error::other)?;
        let bytes = self.seal(checksummed_text::seal(&text).into_bytes())?;
        if bytes.len() as u64 > OBJECT_BYTES_MAX {
            let what = format!("its manifest would have {} bytes, more than {OBJECT_BYTES_MAX}", bytes.len());
            return Err(RepositoryError::NoSuch(format!("cannot store backup {}: {what}", manifest.id)));
        }
        Ok(self.store.put_new(&format!("{MANIFESTS}{}", manifest.id), &bytes)?)
    }

    /// Stores a manifest again under a new name.
    ///
    /// # Errors
    /// Returns an error if it cannot be stored.
    pub(super) fn repeat_manifest(&self, manifest: &Manifest) -> Result<(), RepositoryError> {
        let id = name(manifest.made_ms, manifest.seq, self.next_number()?);
        self.put_manifest(&Manifest { id, ..manifest.clone() })
    }

    /// Returns the names of all backups in the order of writing, as far as the names show it.
    ///
    /// # Errors
    /// Returns an error if they cannot be listed.
    pub fn ids(&self) -> Result<Vec<String>, RepositoryError> {
        let listed = self.store.list(MANIFESTS)?;
        let names = listed.into_iter().filter_map(|listed| listed.name.strip_prefix(MANIFESTS).map(str::to_owned));
        let mut ids: Vec<String> = names.collect();
        ids.sort_by_cached_key(|id| (number_of(id), id.clone()));
        Ok(ids)
    }

    /// Returns the number of the next backup, see [`number_of`].
    ///
    /// # Errors
    /// Returns an error if they cannot be listed.
    pub fn next_number(&self) -> Result<u64, RepositoryError> {
        Ok(self.ids()?.last().map_or(0, |id| number_of(id)).saturating_add(1))
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// Returns an error if it is missing or corrupt.
    pub fn manifest(&self, id: &str) -> Result<Manifest, RepositoryError> {
        let name = format!("{MANIFESTS}{id}");
        let bytes = match self.store.get(&name) {
            Err(StoreError::Missing(_)) => {
                return Err(RepositoryError::NoSuch(format!(
                    "there is no backup {id}; run `backup list` to list them"
                )));
            }
            read => self.unseal(&name, read?)?,
        };
        let damaged = |what: &str| self.damaged(&name, what);
        let text = std::str::from_utf8(&bytes).map_err(|_| damaged("it is not valid UTF-8"))?;
        let body = checksummed_text::open(text).map_err(|what| damaged(&what))?;
        let manifest: Manifest = serde_json::from_str(body).map_err(|error| damaged(&error.to_string()))?;
        manifest.check().map_err(|what| damaged(&what))?;
        // A manifest, encrypted or not, is valid only under its own name, so that an older one cannot pose as a
        // newer one.
        if manifest.id != id {
            return Err(damaged(&format!("it is the manifest of backup {}", manifest.id)));
        }
        Ok(manifest)
    }

    /// Returns all manifests in the order of [`choice::sort`], and those that are corrupt.
    ///
    /// # Errors
    /// Returns an error if they cannot be listed, or the store cannot be reached.
    pub fn manifests(&self) -> Result<(Vec<Manifest>, Vec<Unreadable>), RepositoryError> {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for id in self.ids()? {
            match self.manifest(&id) {
                Ok(manifest) => good.push(manifest),
                Err(error @ RepositoryError::Damaged { .. }) => bad.push(Unreadable { id, error }),
                // Pruned since the listing.
                Err(RepositoryError::NoSuch(_)) => {}
                Err(error) => return Err(error),
            }
        }
        choice::sort(&mut good);
        Ok((good, bad))
    }

    /// Returns the readable manifest that was written last.
    ///
    /// # Errors
    /// Returns an error if they cannot be listed, or the store cannot be reached.
    pub fn last_written(&self) -> Result<Option<Manifest>, RepositoryError> {
        for id in self.ids()?.iter().rev() {
            match self.manifest(id) {
                Ok(manifest) => return Ok(Some(manifest)),
                Err(error @ RepositoryError::Damaged { .. }) => tracing::warn!(%error, "ignoring damaged manifest"),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Returns the backup of the log `log_id` with the latest generation among the last `count` readable ones.
    ///
    /// # Errors
    /// Returns an error if they cannot be listed, or the store cannot be reached.
    pub fn latest_generation(&self, log_id: LogId, count: usize) -> Result<Option<Manifest>, RepositoryError> {
        let mut latest: Option<Manifest> = None;
        for id in self.ids()?.iter().rev().take(count) {
            let manifest = match self.manifest(id) {
                Err(RepositoryError::Damaged { .. } | RepositoryError::NoSuch(_)) => continue,
                read => read?,
            };
            let is_later = |latest: &Manifest| manifest.order() > latest.order();
            if manifest.log_id == log_id && latest.as_ref().is_none_or(is_later) {
                latest = Some(manifest);
            }
        }
        Ok(latest)
    }

    /// Removes a manifest. Pieces that no other manifest references remain until they are swept.
    ///
    /// # Errors
    /// Returns an error if it cannot be removed.
    pub fn remove_manifest(&self, id: &str) -> Result<(), RepositoryError> {
        Ok(self.store.remove(&format!("{MANIFESTS}{id}"))?)
    }

    /// Removes every piece that is not in `used`, and stops if `before_each` fails. Returns the number of pieces and
    /// their bytes.
    ///
    /// # Errors
    /// Returns an error if they cannot be listed or removed.
    pub fn sweep(
        &self,
        used: &BTreeSet<String>,
        before_each: &dyn Fn() -> Result<(), StoreError>,
    ) -> Result<(u64, u64), RepositoryError> {
        let (mut count, mut bytes) = (0, 0);
        for listed in self.store.list(PIECES)? {
            let name = listed.name.rsplit('/').next().unwrap_or_default();
            if !used.contains(name) {
                before_each()?;
                self.store.remove(&listed.name)?;
                (count, bytes) = (count + 1, bytes + listed.bytes);
            }
        }
        Ok((count, bytes))
    }
}

fn path_of(piece: &str) -> String {
    format!("{PIECES}{}/{piece}", piece.get(..2).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::LocalStore;
    use gravwell_transport::trust::BackupKey;

    fn store(path: &std::path::Path) -> Box<dyn Store> {
        Box::new(LocalStore::new(path))
    }

    #[test]
    fn p10_pieces_are_what_their_names_say_or_are_refused() {
        let temp = tempfile::tempdir().expect("temp dir");
        let key = BackupKey::generate().expect("makes");
        let secrets =
            [("plain", Secret::None), ("passphrase", Secret::Passphrase("secret")), ("key", Secret::Key(&key))];
        for (name, secret) in secrets {
            let path = temp.path().join(name);
            assert!(matches!(Repository::open(store(&path), secret, false), Err(RepositoryError::None(_))));
            assert_eq!(Repository::encryption_of(&*store(&path)).expect("looks"), None);
            let repository = Repository::open(store(&path), secret, true).expect("makes");
            let mut known = BTreeSet::new();
            let (piece, is_new) = repository.put_piece(b"contents", &mut known).expect("stores");
            assert!(is_new && !repository.put_piece(b"contents", &mut known).expect("knows").1);
            assert_eq!(repository.piece(&piece).expect("reads"), b"contents");
            let file = path.join(path_of(&piece));
            let stored = std::fs::read(&file).expect("reads");
            assert_eq!(stored == b"contents", name == "plain");
            for at in 0..stored.len() {
                let mut bad = stored.clone();
                bad[at] ^= 1;
                std::fs::write(&file, bad).expect("writes");
                let refused = repository.piece(&piece).expect_err("damaged").to_string();
                assert!(refused.contains(&piece) && refused.contains("damaged"), "{refused}");
            }
            std::fs::remove_file(&file).expect("removes");
            assert!(repository.piece(&piece).expect_err("missing").to_string().contains("missing"));
            let again = Repository::open(store(&path), secret, false).expect("opens");
            assert_eq!(again.piece_name(b"contents"), piece);
            assert_eq!(Repository::encryption_of(&*store(&path)).expect("looks").as_ref(), Some(again.encryption()));
        }
        let other = BackupKey::generate().expect("makes");
        let wrong = [
            Secret::None,
            Secret::Passphrase("wrong"),
            Secret::Passphrase("secret"),
            Secret::Key(&key),
            Secret::Key(&other),
        ];
        for (name, right) in secrets {
            for secret in wrong.into_iter().filter(|secret| secret.encryption() != right.encryption()) {
                for create in [false, true] {
                    let refused = Repository::open(store(&temp.path().join(name)), secret, create).err();
                    let is_named = match refused {
                        Some(RepositoryError::NotEncrypted(_)) => name == "plain",
                        Some(RepositoryError::Locked(_)) => name == "passphrase",
                        Some(RepositoryError::OtherKey { key: named, .. }) => name == "key" && named == key.name(),
                        _ => false,
                    };
                    assert!(is_named, "{name} with {:?}", secret.encryption());
                }
            }
        }
        let wrong = Repository::open(store(&temp.path().join("passphrase")), Secret::Passphrase("wrong"), false);
        assert!(matches!(wrong, Err(RepositoryError::Locked(_))));
    }

    #[test]
    fn p11_a_manifest_is_good_under_its_own_name_alone() {
        use crate::choice::tests::manifest;
        let temp = tempfile::tempdir().expect("temp dir");
        let key = BackupKey::generate().expect("makes");
        for (name, secret) in [("plain", Secret::None), ("key", Secret::Key(&key))] {
            let path = temp.path().join(name);
            let repository = Repository::open(store(&path), secret, true).expect("makes");
            let [one, two] = [(50, 10), (60, 15)].map(|(made_ms, seq)| manifest(1, 1, made_ms, seq));
            [&one, &two].into_iter().for_each(|manifest| repository.put_manifest(manifest).expect("stores"));
            std::fs::copy(path.join(MANIFESTS).join(&one.id), path.join(MANIFESTS).join(&two.id)).expect("copies");
            let said = repository.manifest(&two.id).expect_err("belongs to another").to_string();
            assert!(said.contains(&one.id) && said.contains(&two.id) && said.contains("damaged"), "{said}");
            let (good, bad) = repository.manifests().expect("lists");
            assert_eq!((good, bad.len()), (vec![one.clone()], 1), "{name}");
            assert_eq!(bad[0].id, two.id);
            assert_eq!(repository.last_written().expect("reads"), Some(one), "{name}");
        }
    }
}
