//! The key of a repository, encrypted under the recovery keys of the datastores that back up into it. There is one
//! object for each recovery key, named after it.
//!
//! An operator whose disk is lost has only the recovery key. It must decrypt two things: the repository's key here, and
//! the CA in a manifest. So an encrypted key is removed only when its recovery key was replaced and enough backups
//! contain the CA under the present one. Objects of other CAs are never removed.

use super::manifest::Manifest;
use super::repository::{Repository, RepositoryError};
use super::store::{Store, StoreError};
use gravwell_transport::trust::{BackupKey, CaBackup, RecoveryKey};

const KEYS: &str = "keys/";
/// Number of backups that must contain the CA under the present recovery key before objects under a former one are
/// removed. One of them may be corrupt.
const BACKUPS_MIN: usize = 2;

fn path_of(recovery: &str) -> String {
    format!("{KEYS}{recovery}")
}

/// Condition of the backup key that a store holds encrypted under a recovery key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SealedKey {
    /// There is none under this recovery key.
    Missing,
    /// It was decrypted.
    Opens(BackupKey),
    /// It cannot be decrypted although it is named after the recovery key, or is another backup key. With the description of
    /// the damage.
    Damaged(String),
}

impl Repository {
    /// Returns the condition of the backup key named `key` that the store holds encrypted under a recovery key.
    ///
    /// # Errors
    /// Returns an error if the store cannot be reached.
    pub fn sealed_key(store: &dyn Store, recovery: &RecoveryKey, key: &str) -> Result<SealedKey, RepositoryError> {
        let path = path_of(&recovery.name());
        let sealed = match store.get(&path) {
            Err(StoreError::Missing(_)) => return Ok(SealedKey::Missing),
            read => read?,
        };
        let damaged = |what: String| SealedKey::Damaged(format!("{}/{path} is damaged: {what}", store.place()));
        Ok(match BackupKey::unseal(&sealed, recovery) {
            Some(found) if found.name() == key => SealedKey::Opens(found),
            Some(found) => damaged(format!("it contains the backup key {}, not {key}", found.name())),
            None => damaged("the recovery key in its name does not decrypt it".to_owned()),
        })
    }

    /// Describes what is wrong with the copies of the backup key named `key` under the recovery keys of a datastore, without
    /// which a recovery key does not open the backups. With `is_own`, this datastore backs up here, so a copy under
    /// `current` must exist; `others` may be the next key of a rotation, under which there may be none yet.
    ///
    /// # Errors
    /// Returns an error if the store cannot be reached.
    pub fn sealed_key_damage(
        &self,
        key: &str,
        current: &RecoveryKey,
        others: &[RecoveryKey],
        is_own: bool,
    ) -> Result<Vec<String>, RepositoryError> {
        let mut found = Vec::new();
        for recovery in std::iter::once(current).chain(others.iter().filter(|other| *other != current)) {
            match Self::sealed_key(self.store(), recovery, key)? {
                SealedKey::Damaged(what) => found.push(what),
                SealedKey::Missing if is_own && recovery == current => found.push(format!(
                    "{}/{}, the backup key {key} encrypted under the recovery key, is missing",
                    self.store().place(),
                    path_of(&recovery.name())
                )),
                SealedKey::Missing | SealedKey::Opens(_) => {}
            }
        }
        let remedy = ": the recovery key alone would not decrypt these backups; run `backup create` to store it again";
        Ok(found.into_iter().map(|what| what + remedy).collect())
    }

    /// Returns the backup key named `key`, which the store holds encrypted under a recovery key; `None` if there
    /// is none.
    ///
    /// # Errors
    /// Returns an error if the store cannot be reached.
    pub fn key_under(
        store: &dyn Store,
        recovery: &RecoveryKey,
        key: &str,
    ) -> Result<Option<BackupKey>, RepositoryError> {
        Ok(match Self::sealed_key(store, recovery, key)? {
            SealedKey::Opens(key) => Some(key),
            SealedKey::Missing | SealedKey::Damaged(_) => None,
        })
    }

    /// Stores the backup key encrypted under each of the recovery keys, in addition to existing ones.
    ///
    /// # Errors
    /// Returns an error if the store cannot be reached or written.
    pub fn keep_key(&self, key: &BackupKey, under: &[RecoveryKey]) -> Result<(), RepositoryError> {
        for recovery in under {
            if Self::key_under(self.store(), recovery, &key.name())?.is_none() {
                self.store().put(&path_of(&recovery.name()), &key.seal(recovery)?)?;
            }
            if Self::key_under(self.store(), recovery, &key.name())?.is_none() {
                return Err(self.damaged(&path_of(&recovery.name()), "it does not match the written content"));
            }
        }
        Ok(())
    }

    /// Removes the objects encrypted under the recovery keys named in `former`, once `BACKUPS_MIN` readable backups
    /// contain the CA under `present`. If there are fewer but at least one, the last manifest is stored again. Returns
    /// the number of removed objects.
    ///
    /// # Errors
    /// Returns an error if the store cannot be reached or written. All required objects still exist then.
    pub fn drop_former_keys(&self, former: &[String], present: &RecoveryKey) -> Result<usize, RepositoryError> {
        let is_former = |name: &str| name != present.name() && former.iter().any(|former| former == name);
        let listed = self.store().list(KEYS)?.into_iter().map(|listed| listed.name);
        let stale: Vec<String> = listed.filter(|name| name.strip_prefix(KEYS).is_some_and(is_former)).collect();
        if stale.is_empty() {
            return Ok(0);
        }
        let holding = self.holding_authority(present)?;
        let Some(last) = holding.first() else { return Ok(0) };
        for _ in holding.len()..BACKUPS_MIN {
            self.repeat_manifest(last)?;
        }
        for name in &stale {
            self.store().remove(name)?;
        }
        Ok(stale.len())
    }

    /// Returns the last backups that contain the CA under `present`, at most [`BACKUPS_MIN`].
    fn holding_authority(&self, present: &RecoveryKey) -> Result<Vec<Manifest>, RepositoryError> {
        let mut found = Vec::new();
        for id in self.ids()?.iter().rev() {
            let manifest = match self.manifest(id) {
                Err(RepositoryError::Damaged { .. } | RepositoryError::NoSuch(_)) => continue,
                read => read?,
            };
            if CaBackup::from_text(&manifest.escrow).is_ok_and(|escrow| escrow.check(present).is_ok()) {
                found.push(manifest);
            }
            if found.len() >= BACKUPS_MIN {
                break;
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::choice::tests::manifest;
    use crate::repository::Secret;
    use crate::store::LocalStore;
    use gravwell_transport::trust::{Authority, RecoveryKeys, Registry};

    const NOW: u64 = 1_800_000_000_000;

    /// Encrypts the CA in `trust` under the current keys.
    fn escrow(trust: &Path) -> String {
        let mut register = Registry::open(trust, NOW).expect("register");
        register.establish(NOW).expect("writes");
        let authority = Authority::open_or_create(trust, NOW).expect("authority");
        CaBackup::seal(trust, &authority, &mut register, NOW).expect("seals").to_text().expect("text")
    }

    fn store(place: &Path) -> Box<dyn Store> {
        Box::new(LocalStore::new(place))
    }

    #[test]
    fn p13_what_a_former_recovery_key_opens_goes_when_two_backups_do_without_it_and_never_before() {
        let temp = tempfile::tempdir().expect("temp dir");
        let (trust, place) = (temp.path().join("trust"), temp.path().join("place"));
        let key = BackupKey::generate().expect("makes");
        let repository = Repository::open(store(&place), Secret::Key(&key), true).expect("makes");
        let kept = |recovery: &RecoveryKey| {
            Repository::key_under(&*store(&place), recovery, &key.name()).expect("looks").as_ref() == Some(&key)
        };
        let backup = |seq: u64| {
            let backup = Manifest { escrow: escrow(&trust), ..manifest(1, 1, NOW + seq, seq) };
            repository.put_manifest(&backup).expect("stores");
        };
        backup(1);
        let old = RecoveryKey::load(&trust).expect("reads").expect("was made");
        // An object of another CA is in the same place, as after a trial restore.
        let drill = RecoveryKey::open_or_create(&temp.path().join("drill")).expect("makes");
        for under in [&old, &drill] {
            repository.keep_key(&key, std::slice::from_ref(under)).expect("keeps");
        }
        let new = RecoveryKeys::begin(&trust).expect("begins").next.expect("a new one");
        let settle = || {
            let keys = RecoveryKeys::load(&trust).expect("reads").expect("there are");
            repository.keep_key(&key, &keys.all()).expect("keeps");
            let former = RecoveryKeys::former(&trust).expect("reads");
            repository.drop_former_keys(&former, &keys.current).expect("drops")
        };
        assert_eq!(settle(), 0);
        RecoveryKeys::finish(&trust, &new).expect("ends");
        // As if the process was killed before the new manifest was stored: only the former key decrypts the
        // existing ones.
        assert_eq!(settle(), 0);
        assert_eq!([&old, &new, &drill].map(kept), [true; 3]);
        backup(2);
        assert_eq!(settle(), 1);
        assert_eq!([&old, &new, &drill].map(kept), [false, true, true]);
        assert_eq!(settle(), 0);
        // Even if either backup is corrupt, the new key decrypts another one that contains the CA.
        let last = repository.last_written().expect("reads").expect("is there").id;
        std::fs::write(place.join("manifests").join(last), b"damaged").expect("writes");
        let left = repository.last_written().expect("reads").expect("is there");
        assert_eq!(left.seq, gravwell_model::Seq(2));
        CaBackup::from_text(&left.escrow).expect("reads").check(&new).expect("opens");
        // A corrupt or lost object is named, and written again.
        let file = place.join(path_of(&new.name()));
        let damage = |is_own| {
            repository
                .sealed_key_damage(&key.name(), &new, &[new.clone(), drill.clone()], is_own)
                .expect("looks")
                .join("")
        };
        assert_eq!(damage(true), "");
        std::fs::write(&file, b"damaged").expect("writes");
        assert!(!kept(&new));
        for is_own in [true, false] {
            assert!(
                damage(is_own).contains("is damaged") && damage(is_own).contains(&new.name()),
                "{}",
                damage(is_own)
            );
        }
        settle();
        assert!(kept(&new));
        std::fs::remove_file(&file).expect("removes");
        assert!(damage(true).contains("is missing"), "{}", damage(true));
        assert_eq!(damage(false), "", "it may never have existed");
        settle();
        assert!(kept(&new));
        assert_eq!(Repository::key_under(&*store(&place), &new, "another").expect("looks"), None);
    }
}
