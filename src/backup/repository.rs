//! A store with backups in it: the repository's head, pieces under the hash of what they hold, manifests.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::manifest::{Manifest, PIECE_BYTES};
use super::store::{OBJECT_BYTES_MAX, Store, StoreError};
use crate::codec::sealed::{key_of, open_bytes, seal_bytes};

const HEAD: &str = "gravwell-backup.json";
const MANIFESTS: &str = "manifests/";
const PIECES: &str = "pieces/";
const VERSION: u32 = 1;
/// What an encrypted repository proves a passphrase with.
const PROOF: &[u8] = b"gravwell backup repository";

/// Why a repository cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There are no backups.
    #[error("{0} holds no backups: make one with `gravwell-logctl backup create`")]
    None(String),
    /// It is encrypted, and no or the wrong passphrase was given.
    #[error("{0} is encrypted: give its passphrase with --passphrase-file or GRAVWELL_BACKUP_PASSPHRASE")]
    Locked(String),
    /// It is not encrypted, but a passphrase was given.
    #[error("{0} is not encrypted, and stays so: use another place for encrypted backups")]
    NotEncrypted(String),
    /// An object is not what it should be.
    #[error(
        "{name} is damaged: {what}; `gravwell-logctl backup verify PLACE --all` names every damaged backup; make new ones at another place"
    )]
    Damaged {
        /// The object.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// No such backup.
    #[error("{0}")]
    NoSuch(String),
    /// No randomness or memory.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

#[derive(Serialize, Deserialize)]
struct Head {
    #[serde(rename = "gravwell-backup-repository")]
    version: u32,
    id: String,
    salt: Option<String>,
    proof: Option<String>,
}

/// Keys of an encrypted repository: one for contents, one for names.
struct Keys {
    contents: [u8; 32],
    names: [u8; 32],
}

/// An open repository.
pub struct Repository {
    store: Box<dyn Store>,
    keys: Option<Keys>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok())).collect()
}

fn keys(passphrase: &str, salt: &[u8; 16]) -> std::io::Result<Keys> {
    let key = key_of(passphrase, salt)?;
    Ok(Keys {
        contents: blake3::derive_key("gravwell backup contents v1", &key),
        names: blake3::derive_key("gravwell backup names v1", &key),
    })
}

impl Repository {
    /// Opens the repository in a store; makes one when there is none and `create` says so.
    ///
    /// # Errors
    /// When there is none, its head is damaged, or the passphrase does not fit.
    pub fn open(store: Box<dyn Store>, passphrase: Option<&str>, create: bool) -> Result<Repository, RepositoryError> {
        let place = store.place();
        let head = match store.get(HEAD) {
            Ok(bytes) => bytes,
            Err(StoreError::Missing(_)) if create => return Self::create(store, passphrase),
            Err(StoreError::Missing(_)) => return Err(RepositoryError::None(place)),
            Err(error) => return Err(error.into()),
        };
        let damaged = |what: String| RepositoryError::Damaged { name: format!("{place}/{HEAD}"), what };
        let head: Head = serde_json::from_slice(&head).map_err(|error| damaged(error.to_string()))?;
        if head.version != VERSION {
            return Err(damaged(format!("version {} is not known; this program reads {VERSION}", head.version)));
        }
        let keys = match (head.salt, head.proof, passphrase) {
            (None, None, None) => None,
            (None, None, Some(_)) => return Err(RepositoryError::NotEncrypted(place)),
            (Some(salt), Some(proof), Some(passphrase)) => {
                let salt = bytes_of(&salt).and_then(|salt| salt.try_into().ok());
                let keys = keys(passphrase, &salt.ok_or_else(|| damaged("the salt".into()))?)?;
                let proof = bytes_of(&proof).ok_or_else(|| damaged("the proof".into()))?;
                let opened = open_bytes(&keys.contents, &proof).map_err(|_| RepositoryError::Locked(place.clone()))?;
                if opened != PROOF {
                    return Err(RepositoryError::Locked(place));
                }
                Some(keys)
            }
            (Some(_), Some(_), None) => return Err(RepositoryError::Locked(place)),
            _ => return Err(damaged("salt and proof belong together".into())),
        };
        Ok(Repository { store, keys })
    }

    fn create(store: Box<dyn Store>, passphrase: Option<&str>) -> Result<Repository, RepositoryError> {
        let mut id = [0; 16];
        let mut salt = [0; 16];
        for bytes in [&mut id, &mut salt] {
            getrandom::fill(bytes).map_err(|error| std::io::Error::other(error.to_string()))?;
        }
        let keys = passphrase.map(|passphrase| keys(passphrase, &salt)).transpose()?;
        let proof = keys.as_ref().map(|keys| seal_bytes(&keys.contents, PROOF)).transpose()?;
        let head = json!({
            "gravwell-backup-repository": VERSION,
            "id": hex(&id),
            "salt": keys.as_ref().map(|_| hex(&salt)),
            "proof": proof.map(|proof| hex(&proof)),
        });
        store.put_new(HEAD, format!("{head}\n").as_bytes())?;
        Ok(Repository { store, keys })
    }

    /// Where it is.
    #[must_use]
    pub fn store(&self) -> &dyn Store {
        &*self.store
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

    fn damaged(&self, name: &str, what: impl Into<String>) -> RepositoryError {
        RepositoryError::Damaged { name: format!("{}/{name}", self.store.place()), what: what.into() }
    }

    /// Name of a piece: the hash of what it holds, under a key where names must not tell what that is.
    fn piece_name(&self, bytes: &[u8]) -> String {
        let hash = match &self.keys {
            Some(keys) => blake3::keyed_hash(&keys.names, bytes),
            None => blake3::hash(bytes),
        };
        hash.to_hex().to_string()
    }

    /// Stores a piece unless `known` says that it is there. Returns its name, and whether it was new.
    ///
    /// # Errors
    /// When it cannot be stored.
    pub fn put_piece(&self, bytes: &[u8], known: &mut BTreeSet<String>) -> Result<(String, bool), RepositoryError> {
        let name = self.piece_name(bytes);
        let is_new = known.insert(name.clone());
        if is_new {
            self.store.put(&path_of(&name), &self.seal(bytes.to_vec())?)?;
        }
        Ok((name, is_new))
    }

    /// Reads a piece, and checks that it is what its name says.
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub fn piece(&self, name: &str) -> Result<Vec<u8>, RepositoryError> {
        let path = path_of(name);
        let bytes = match self.store.get(&path) {
            Ok(bytes) => self.unseal(&path, bytes)?,
            Err(StoreError::Missing(_)) => return Err(self.damaged(&path, "it is missing")),
            Err(error) => return Err(error.into()),
        };
        if bytes.len() as u64 > PIECE_BYTES || self.piece_name(&bytes) != name {
            return Err(self.damaged(&path, "its contents do not match its name"));
        }
        Ok(bytes)
    }

    /// Stores a manifest; it must name only what is stored.
    ///
    /// # Errors
    /// When it cannot be stored.
    pub fn put_manifest(&self, manifest: &Manifest) -> Result<(), RepositoryError> {
        let text = serde_json::to_string(manifest).map_err(std::io::Error::other)?;
        let summed = format!("{text}\n{}\n", blake3::hash(text.as_bytes()).to_hex());
        let bytes = self.seal(summed.into_bytes())?;
        if bytes.len() as u64 > OBJECT_BYTES_MAX {
            let what = format!("its manifest would have {} bytes, more than {OBJECT_BYTES_MAX}", bytes.len());
            return Err(RepositoryError::NoSuch(format!("backup {} cannot be kept: {what}", manifest.id)));
        }
        Ok(self.store.put_new(&format!("{MANIFESTS}{}", manifest.id), &bytes)?)
    }

    /// Names of all backups, oldest first.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn ids(&self) -> Result<Vec<String>, RepositoryError> {
        let listed = self.store.list(MANIFESTS)?;
        Ok(listed.into_iter().filter_map(|listed| listed.name.strip_prefix(MANIFESTS).map(str::to_owned)).collect())
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub fn manifest(&self, id: &str) -> Result<Manifest, RepositoryError> {
        let name = format!("{MANIFESTS}{id}");
        let bytes = match self.store.get(&name) {
            Err(StoreError::Missing(_)) => {
                return Err(RepositoryError::NoSuch(format!("there is no backup {id}; `backup list` lists them")));
            }
            read => self.unseal(&name, read?)?,
        };
        let damaged = |what: &str| self.damaged(&name, what);
        let text = std::str::from_utf8(&bytes).map_err(|_| damaged("it is not text"))?;
        let (body, sum) = text.trim_end().rsplit_once('\n').ok_or_else(|| damaged("its checksum is missing"))?;
        if blake3::hash(body.as_bytes()).to_hex().as_str() != sum {
            return Err(damaged("its checksum does not match"));
        }
        let manifest: Manifest = serde_json::from_str(body).map_err(|error| damaged(&error.to_string()))?;
        manifest.check().map_err(|what| damaged(&what))?;
        Ok(manifest)
    }

    /// All manifests, oldest first, and what is wrong with those that cannot be read.
    ///
    /// # Errors
    /// When they cannot be listed, or the store cannot be reached.
    pub fn manifests(&self) -> Result<(Vec<Manifest>, Vec<RepositoryError>), RepositoryError> {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for id in self.ids()? {
            match self.manifest(&id) {
                Ok(manifest) => good.push(manifest),
                Err(error @ RepositoryError::Damaged { .. }) => bad.push(error),
                // Pruned meanwhile.
                Err(RepositoryError::NoSuch(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((good, bad))
    }

    /// The newest manifest that can be read.
    ///
    /// # Errors
    /// When they cannot be listed, or the store cannot be reached.
    pub fn newest(&self) -> Result<Option<Manifest>, RepositoryError> {
        for id in self.ids()?.iter().rev() {
            match self.manifest(id) {
                Ok(manifest) => return Ok(Some(manifest)),
                Err(error @ RepositoryError::Damaged { .. }) => tracing::warn!(%error, "it is passed over"),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Removes a manifest; pieces that no other names stay until they are swept.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove_manifest(&self, id: &str) -> Result<(), RepositoryError> {
        Ok(self.store.remove(&format!("{MANIFESTS}{id}"))?)
    }

    /// Removes every piece that is not in `used`, unless `before_each` objects; returns how many, and their bytes.
    ///
    /// # Errors
    /// When they cannot be listed or removed.
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
    use crate::backup::store::LocalStore;

    fn store(path: &std::path::Path) -> Box<dyn Store> {
        Box::new(LocalStore::new(path))
    }

    #[test]
    fn p10_pieces_are_what_their_names_say_or_are_refused() {
        let temp = tempfile::tempdir().expect("temp dir");
        for passphrase in [None, Some("secret")] {
            let path = temp.path().join(format!("{}", passphrase.is_some()));
            assert!(matches!(Repository::open(store(&path), passphrase, false), Err(RepositoryError::None(_))));
            let repository = Repository::open(store(&path), passphrase, true).expect("makes");
            let mut known = BTreeSet::new();
            let (name, is_new) = repository.put_piece(b"contents", &mut known).expect("stores");
            assert!(is_new && !repository.put_piece(b"contents", &mut known).expect("knows").1);
            assert_eq!(repository.piece(&name).expect("reads"), b"contents");
            let file = path.join(path_of(&name));
            let stored = std::fs::read(&file).expect("reads");
            assert_eq!(stored == b"contents", passphrase.is_none());
            for at in 0..stored.len() {
                let mut bad = stored.clone();
                bad[at] ^= 1;
                std::fs::write(&file, bad).expect("writes");
                let refused = repository.piece(&name).expect_err("damaged").to_string();
                assert!(refused.contains(&name) && refused.contains("damaged"), "{refused}");
            }
            std::fs::remove_file(&file).expect("removes");
            assert!(repository.piece(&name).expect_err("missing").to_string().contains("missing"));
            let again = Repository::open(store(&path), passphrase, false).expect("opens");
            assert_eq!(again.piece_name(b"contents"), name);
        }
        let (plain, encrypted) = (temp.path().join("false"), temp.path().join("true"));
        assert!(matches!(Repository::open(store(&encrypted), None, false), Err(RepositoryError::Locked(_))));
        assert!(matches!(Repository::open(store(&encrypted), Some("wrong"), false), Err(RepositoryError::Locked(_))));
        assert!(matches!(Repository::open(store(&plain), Some("secret"), true), Err(RepositoryError::NotEncrypted(_))));
    }
}
