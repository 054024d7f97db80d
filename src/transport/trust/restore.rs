//! Restores the CA and the member registry of a stopped datastore if either is corrupt or missing.

use std::fs;
use std::path::{Path, PathBuf};

use super::authority::{NEXT_CERTIFICATE, NEXT_KEY};
use super::registry::FILE;
use super::{
    Authorities, Authority, CaBackup, RecoveryKey, RecoveryKeys, RegisterChoice, Registry, TrustError, authority_name,
    check_halves, fingerprint, hex, leftover_registry,
};
use gravwell_env::fs::{first_free, parent_dir};

/// As [`restore_found`], after an interrupted exchange was completed.
///
/// # Errors
/// As [`restore_found`].
pub fn restore_trust(
    escrow: &CaBackup,
    key: &RecoveryKey,
    dir: &Path,
    now_ms: u64,
    wish: Option<RegisterChoice>,
) -> Result<PutBack, TrustError> {
    escrow.check(key)?;
    let is_finished = finish_exchange(dir, now_ms)?;
    restore_found(escrow, key, dir, now_ms, (wish, is_finished))
}

/// Restores the contents of `escrow` into the trust directory `dir`, of which a part is corrupt or missing: the CA, the
/// registry, the next CA of a rotation, or the recovery key, which is restored alone. The former directory is renamed.
/// An existing registry is kept if it is later than the one in `escrow`. Existing recovery keys are kept too: an
/// operator who has rotated them has no others. After an interruption it can be called again. `is_finished`:
/// [`finish_exchange`] has just completed the earlier attempt.
///
/// # Errors
/// If nothing is corrupt or missing, the key does not fit, the backup belongs to a CA other than the one whose
/// certificate is still present, an operator must choose a registry, or a file operation fails. Nothing else was
/// changed then.
pub fn restore_found(
    escrow: &CaBackup,
    key: &RecoveryKey,
    dir: &Path,
    now_ms: u64,
    (wish, is_finished): (Option<RegisterChoice>, bool),
) -> Result<PutBack, TrustError> {
    escrow.check(key)?;
    match (Authorities::load(dir), Registry::open(dir, now_ms)) {
        (Ok(here), Ok(register)) if dir.join(FILE).exists() && !is_finished => {
            let is_later = escrow.is_beyond(key, &register, wish)?;
            if is_later {
                escrow.check_goes_on_from(key, dir)?;
            }
            if !is_later && !holds_a_lost_authority(escrow, key, &here, &register)? {
                return only_the_key(escrow, key, dir);
            }
        }
        (Ok(_), _) => escrow.check_goes_on_from(key, dir)?,
        (Err(error), _) => check_rotation(escrow, key, dir, &error)?,
    }
    let stays = leftover_registry::stays(escrow, key, dir, wish)?;
    if is_finished && stays.is_some() {
        return Ok(PutBack { aside: newest_aside(dir), has_kept_register: true, is_key_alone: false });
    }
    let aside = exchange(escrow, key, dir, now_ms, (stays.as_deref(), true))?;
    Ok(PutBack { aside, has_kept_register: stays.is_some(), is_key_alone: false })
}

/// Returns whether `escrow` holds the next CA of a rotation that is lost here while members have certificates from it.
fn holds_a_lost_authority(
    escrow: &CaBackup,
    key: &RecoveryKey,
    here: &Authorities,
    register: &Registry,
) -> Result<bool, TrustError> {
    let Some(next) = escrow.next_name(key)? else { return Ok(false) };
    let is_known = here.all().iter().any(|certificate| authority_name(&fingerprint(certificate)) == next);
    let is_current = escrow.authority == hex(&here.current().fingerprint());
    Ok(is_current && !is_known && register.is_in_use(&next))
}

/// Restores a missing recovery key. The CA and the registry are intact.
fn only_the_key(escrow: &CaBackup, key: &RecoveryKey, dir: &Path) -> Result<PutBack, TrustError> {
    if !matches!(RecoveryKeys::load(dir), Err(TrustError::Damaged { .. })) {
        let what = format!("CA and member registry in {} are valid; nothing was changed", dir.display());
        return Err(TrustError::Refused(what));
    }
    escrow.check_same(dir)?;
    RecoveryKeys::put_back(dir, key)?;
    Ok(PutBack { aside: None, has_kept_register: true, is_key_alone: true })
}

/// Checks that the backup helps if the current CA is intact and a part of a rotation is corrupt. One of another CA or
/// time does not.
fn check_rotation(escrow: &CaBackup, key: &RecoveryKey, dir: &Path, error: &TrustError) -> Result<(), TrustError> {
    if Authority::load(dir).is_err() {
        return Ok(());
    }
    if !escrow.may_be_of(dir) {
        return Err(super::other_authority(dir, &format!("the CA backup contains {}", escrow.name())));
    }
    let has_key = dir.join(NEXT_KEY).exists() && (check_halves(dir).is_err() || dir.join(NEXT_CERTIFICATE).exists());
    if (has_key || Authorities::is_rotating(dir)) && !escrow.holds_next_of(key, dir)? {
        let what = format!(
            "{error}; the given backup does not contain the next CA of the rotation; nothing was changed. Use a \
             backup made during the rotation, or move {NEXT_KEY} and {NEXT_CERTIFICATE} away to give that CA up"
        );
        return Err(TrustError::Refused(what));
    }
    Ok(())
}

/// Completes an interrupted exchange that had renamed the former directory but not yet put the new one in its place.
/// The new directory may hold the only registry that contains the latest revocations. Returns whether it was completed.
///
/// # Errors
/// If the new directory cannot be renamed.
pub fn finish_exchange(dir: &Path, now_ms: u64) -> Result<bool, TrustError> {
    let next = dir.with_extension("next");
    if dir.exists() || newest_aside(dir).is_none() || !next.join(FILE).exists() {
        return Ok(false);
    }
    let is_whole = Authorities::load(&next).is_ok() && Registry::open(&next, now_ms).is_ok();
    if is_whole {
        put_in_place(&next, dir)?;
    }
    Ok(is_whole)
}

/// Returns the path of the directory that was renamed last.
fn newest_aside(dir: &Path) -> Option<PathBuf> {
    let places = (1..).map(|number| dir.with_extension(format!("damaged-{number}")));
    places.take_while(|place| place.exists()).last()
}

fn put_in_place(next: &Path, dir: &Path) -> Result<(), TrustError> {
    let io = |source| TrustError::Io { path: next.to_owned(), source };
    fs::rename(next, dir).map_err(io)?;
    fs::File::open(parent_dir(dir)).and_then(|parent| parent.sync_all()).map_err(io)
}

/// Result of a restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutBack {
    /// Path of the former directory.
    pub aside: Option<PathBuf>,
    /// The existing registry was the later one, and is in place.
    pub has_kept_register: bool,
    /// Only the recovery key was missing.
    pub is_key_alone: bool,
}

/// Replaces the trust directory `dir` with the contents of `escrow`. Returns the new path of the former directory,
/// which is renamed. After an interruption it can be called again. `keeps_keys`: the recovery keys that are there stay.
///
/// # Errors
/// If the key does not fit, or a file operation fails. Nothing was changed then.
pub fn replace_trust(
    escrow: &CaBackup,
    key: &RecoveryKey,
    dir: &Path,
    now_ms: u64,
    keeps_keys: bool,
) -> Result<Option<PathBuf>, TrustError> {
    exchange(escrow, key, dir, now_ms, (None, keeps_keys))
}

fn exchange(
    escrow: &CaBackup,
    key: &RecoveryKey,
    dir: &Path,
    now_ms: u64,
    (register, keeps_keys): (Option<&str>, bool),
) -> Result<Option<PathBuf>, TrustError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| TrustError::Io { path, source }
    };
    let next = dir.with_extension("next");
    match fs::remove_dir_all(&next) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(&next)(error)),
        _ if keeps_keys && escrow.may_be_of(dir) => {
            RecoveryKeys::stays(dir, key)?;
            RecoveryKeys::carry_over(dir, &next)?;
        }
        _ => {}
    }
    escrow.put(key, (dir, &next), now_ms, register)?;
    let aside = first_free(|number| dir.with_extension(format!("damaged-{number}"))).filter(|_| dir.exists());
    if let Some(aside) = &aside {
        fs::rename(dir, aside).map_err(io(dir))?;
    }
    put_in_place(&next, dir)?;
    Ok(aside)
}

/// Describes which recovery key is valid in the trust directory `dir` after the CA was restored with `given`.
///
/// # Errors
/// If there is none, or it cannot be read.
pub fn key_that_counts(dir: &Path, given: &RecoveryKey) -> Result<String, TrustError> {
    let keys = match RecoveryKeys::open_or_create(dir) {
        // The CA was restored anyway.
        Err(error @ TrustError::Damaged { .. }) => return Ok(error.to_string()),
        keys => keys?,
    };
    let (present, given) = (keys.current.name(), given.name());
    let next = keys.next.map_or(String::new(), |next| format!(", and its rotation to {} continues", next.name()));
    if present == given {
        return Ok(format!("the given recovery key {given} is valid from now on{next}"));
    }
    Ok(format!(
        "the existing recovery key {present} is still valid{next}; the given key {given} opens only earlier backups"
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    #[test]
    fn p13_a_recovery_key_that_is_left_is_not_replaced_by_the_one_that_opens_an_earlier_copy() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path().join("trust");
        let mut register = Registry::open(&dir, NOW).expect("register");
        let authority = Authority::open_or_create(&dir, NOW).expect("authority");
        register.save(NOW).expect("saves");
        let copy = CaBackup::seal(&dir, &authority, &mut register, NOW).expect("seals");
        let first = RecoveryKey::load(&dir).expect("reads").expect("was created");
        let second = RecoveryKeys::begin(&dir).expect("begins").next.expect("a next key");
        RecoveryKeys::finish(&dir, &second).expect("ends");
        let third = RecoveryKeys::begin(&dir).expect("starts again").next.expect("a next key");
        let counts = [second.clone(), third];
        type Restore = fn(&CaBackup, &RecoveryKey, &Path);
        let ways: [(&str, Restore); 2] = [
            ("authority restore", |copy, key, dir| drop(restore_trust(copy, key, dir, NOW, None).expect("restores"))),
            ("recover", |copy, key, dir| assert!(!copy.restore(key, dir, NOW, None).expect("restores"))),
        ];
        for (what, restore) in ways {
            fs::remove_file(dir.join("ca.key")).expect("removes");
            restore(&copy, &first, &dir);
            assert_eq!(RecoveryKeys::load(&dir).expect("reads").expect("a key").all(), counts, "{what}");
            assert_eq!(RecoveryKeys::former(&dir).expect("reads"), [first.name()], "{what}");
            let said = key_that_counts(&dir, &first).expect("says");
            assert!(said.contains(&second.name()) && said.contains("only earlier backups"), "{what}: {said}");
        }
        // A key of another CA is not kept, and a corrupt key counts as missing.
        let other = temp.path().join("other");
        let stranger = RecoveryKey::open_or_create(&other).expect("makes");
        Authority::open_or_create(&other, NOW).expect("authority");
        fs::remove_file(other.join("ca.key")).expect("removes");
        restore_trust(&copy, &first, &other, NOW, None).expect("restores");
        assert_eq!(RecoveryKey::load(&other).expect("reads"), Some(first.clone()));
        assert_ne!(stranger, first);
        fs::remove_file(dir.join("ca.key")).expect("removes");
        fs::write(dir.join("recovery.key"), "damaged").expect("writes");
        let said = restore_trust(&copy, &first, &dir, NOW, None).expect_err("another key is damaged").to_string();
        assert!(said.contains(&second.name()) && said.contains("recovery-key --set"), "{said}");
        assert!(dir.exists() && !dir.join("ca.key").exists(), "nothing was changed");
        // A file that is unreadable for a temporary reason is neither missing nor corrupt.
        RecoveryKeys::put_back(&dir, &second).expect("restores");
        for name in ["recovery.next", "recovery.key"] {
            let mode = |mode| fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).expect("chmod");
            mode(0o640);
            let said = restore_trust(&copy, &first, &dir, NOW, None).expect_err("cannot be read").to_string();
            assert!(said.contains("chmod 600") && said.contains(name), "{said}");
            assert!(name == "recovery.next" || copy.restore(&first, &dir, NOW, None).is_err(), "keeps the directory");
            assert!(!dir.join("ca.key").exists(), "nothing was changed");
            mode(0o600);
        }
        // The operator has only the former key.
        fs::write(dir.join("recovery.key"), "damaged").expect("writes");
        fs::remove_file(dir.join("recovery.name")).expect("removes");
        restore_trust(&copy, &first, &dir, NOW, None).expect("restores");
        assert!(key_that_counts(&dir, &first).expect("says").contains("is valid from now on"));
    }

    #[test]
    fn p13_an_exchange_that_was_cut_off_between_its_renames_keeps_the_register_that_was_to_stay() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path().join("trust");
        let mut register = Registry::open(&dir, NOW).expect("register");
        let authority = Authority::open_or_create(&dir, NOW).expect("authority");
        let name = gravwell_model::MemberName::new("web2").expect("a name");
        register.invite(&name, crate::trust::Role::Webserver, 60_000, NOW, false).expect("invites");
        register.save(NOW).expect("saves");
        let copy = CaBackup::seal(&dir, &authority, &mut register, NOW).expect("seals");
        let key = RecoveryKey::load(&dir).expect("reads").expect("was created");
        register.revoke(&name, NOW + 1).expect("revokes");
        register.save(NOW + 1).expect("saves");
        fs::remove_file(dir.join("ca.key")).expect("removes");
        let wish = Some(RegisterChoice::Here);
        assert!(restore_trust(&copy, &key, &dir, NOW, wish).expect("restores").has_kept_register);
        let revision = Registry::open(&dir, NOW).expect("opens").revision();
        assert_eq!(revision, register.revision(), "the command records the choice when it is in place");
        // State after a crash: the former directory is renamed, and the new one is not in place yet.
        fs::rename(&dir, dir.with_extension("next")).expect("renames");
        let done = restore_trust(&copy, &key, &dir, NOW, wish).expect("resumes");
        assert_eq!(
            done,
            PutBack { aside: Some(dir.with_extension("damaged-1")), has_kept_register: true, is_key_alone: false }
        );
        assert_eq!(Registry::open(&dir, NOW).expect("opens").revision(), revision);
        assert!(!dir.with_extension("next").exists() && Authorities::load(&dir).is_ok());
        // There is no registry that could be kept.
        fs::remove_dir_all(&dir).expect("removes");
        let refused = restore_trust(&copy, &key, &dir, NOW, wish).expect_err("no registry is left").to_string();
        assert!(refused.contains("--register copy"), "{refused}");
    }
}
