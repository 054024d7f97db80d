//! Rotation of the recovery key: both keys are valid until every member holds a backup that the new one opens.
//!
//! The new key is stored next to the current one, in `recovery.next`, from `begin` to `finish`. During that time CA
//! backups are encrypted under both keys, so that losing a key never loses a backup: either key opens every new backup,
//! and the current key opens the old ones. Each step creates, renames or deletes one file, so an interruption leaves
//! the state from before or after the step. Afterwards the names of the keys are recorded (`key_note.rs`).

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::authority::{private_dir, read_private, sync_dir, write_new_private, write_private};
use super::ca_backup::KEY_FILE;
use super::key_note::{self, KeyNote, NOTE_FILE};
use super::leftover_registry::set_aside;
use super::{RecoveryKey, TrustError};

pub(super) const NEXT_FILE: &str = "recovery.next";
/// File with the names of former and abandoned keys, one per line.
pub(super) const FORMER_FILE: &str = "recovery.former";

/// The valid recovery keys of a datastore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryKeys {
    /// The current key.
    pub current: RecoveryKey,
    /// The key that will replace it, during a rotation.
    pub next: Option<RecoveryKey>,
}

impl RecoveryKeys {
    /// Reads the keys of the datastore with the trust directory `dir`; `None` if it has none yet. Changes nothing.
    ///
    /// # Errors
    /// If a file is corrupt or readable by others, or a recorded key is missing or was replaced by another one.
    pub fn load(dir: &Path) -> Result<Option<RecoveryKeys>, TrustError> {
        // In this order, steps that another process completes concurrently cause no contradiction. Recorded names
        // belong to keys that existed earlier. The end of a rotation shows the new key twice rather than not at all. A
        // key's name is recorded as former before the key is deleted.
        let noted = KeyNote::read(dir);
        let next = RecoveryKey::read(&dir.join(NEXT_FILE))?;
        let current = RecoveryKey::load(dir)?;
        let former = former_names(dir)?;
        let Some(current) = current else {
            let noted = noted?.map(|noted| noted.after(&former));
            return key_note::check_never_was(dir, noted.as_ref(), next.as_ref(), &former).map(|()| None);
        };
        let next = next.filter(|next| *next != current);
        let keys = RecoveryKeys { current, next };
        // An unreadable record does not invalidate readable keys.
        if let Ok(Some(noted)) = noted {
            noted.after(&former).check(dir, &keys)?;
        }
        Ok(Some(keys))
    }

    /// As [`RecoveryKeys::load`], but creates the first key if there never was one. Records the names of the keys.
    ///
    /// # Errors
    /// As [`RecoveryKeys::load`], and if random bytes are unavailable.
    pub fn open_or_create(dir: &Path) -> Result<RecoveryKeys, TrustError> {
        let found = match RecoveryKeys::load(dir)? {
            Some(keys) => Some(keys),
            None => {
                private_dir(dir)?;
                write_new_private(&dir.join(KEY_FILE), format!("{}\n", RecoveryKey::generate()?).as_bytes())?;
                RecoveryKeys::load(dir)?
            }
        };
        let keys = found.ok_or_else(|| TrustError::Refused(format!("{} is missing", dir.join(KEY_FILE).display())))?;
        note(dir, &keys);
        Ok(keys)
    }

    fn existing(dir: &Path) -> Result<RecoveryKeys, TrustError> {
        RecoveryKeys::load(dir)?.ok_or_else(none)
    }

    /// Starts a rotation, or continues the one that is under way. From now on both the new and the current key
    /// are valid.
    ///
    /// # Errors
    /// As [`RecoveryKeys::open_or_create`], and if the file cannot be written.
    pub fn begin(dir: &Path) -> Result<RecoveryKeys, TrustError> {
        let keys = RecoveryKeys::open_or_create(dir)?;
        if keys.next.is_some() {
            return Ok(keys);
        }
        private_dir(dir)?;
        let path = dir.join(NEXT_FILE);
        if RecoveryKey::read(&path)?.is_some() {
            // It is a second copy of the current key, which this program did not write.
            std::fs::remove_file(&path).map_err(|source| TrustError::Io { path: path.clone(), source })?;
        }
        write_new_private(&path, format!("{}\n", RecoveryKey::generate()?).as_bytes())?;
        RecoveryKeys::open_or_create(dir)
    }

    /// Finishes the rotation: only the new key is valid from now on. `shown` is the new key as the operator has it.
    ///
    /// # Errors
    /// If no rotation is under way, `shown` is another key, or the file cannot be renamed.
    pub fn finish(dir: &Path, shown: &RecoveryKey) -> Result<RecoveryKeys, TrustError> {
        let keys = RecoveryKeys::existing(dir)?;
        let next = keys.next.ok_or_else(none)?;
        if next != *shown {
            return Err(TrustError::Refused(format!(
                "the given key is {}, but the new recovery key is {}; use the one that `begin` printed",
                shown.name(),
                next.name()
            )));
        }
        note_former(dir, &keys.current.name())?;
        let path = dir.join(KEY_FILE);
        std::fs::rename(dir.join(NEXT_FILE), &path).map_err(|source| TrustError::Io { path, source })?;
        sync_dir(dir)?;
        let keys = RecoveryKeys { current: next, next: None };
        note(dir, &keys);
        Ok(keys)
    }

    /// Aborts a rotation: only the current key is valid. A new key that is missing or unreadable is abandoned, and the
    /// rest of its file is kept under another name.
    ///
    /// # Errors
    /// If no rotation is under way, or the file cannot be removed.
    pub fn abort(dir: &Path) -> Result<RecoveryKeys, TrustError> {
        let path = dir.join(NEXT_FILE);
        let noted = KeyNote::read(dir).ok().flatten().map(|noted| noted.after(&former_names(dir).unwrap_or_default()));
        let name = noted.and_then(|noted| noted.next);
        let current = match (RecoveryKey::read(&path), name) {
            (Err(TrustError::Damaged { .. }), name) => {
                let current = present(dir)?;
                name.map_or(Ok(()), |name| note_former(dir, &name))?;
                set_aside(&path)?;
                current
            }
            (Ok(None), Some(name)) => {
                let current = present(dir)?;
                note_former(dir, &name)?;
                current
            }
            _ => {
                let keys = RecoveryKeys::existing(dir)?;
                note_former(dir, &keys.next.ok_or_else(none)?.name())?;
                std::fs::remove_file(&path).map_err(|source| TrustError::Io { path: path.clone(), source })?;
                keys.current
            }
        };
        sync_dir(dir)?;
        let keys = RecoveryKeys { current, next: None };
        note(dir, &keys);
        Ok(keys)
    }

    /// Restores a key that the operator had written down, if its file is missing or unreadable. The rest of that file
    /// is kept under another name.
    ///
    /// # Errors
    /// If it is not the missing key, as far as its name is known, or the file cannot be written.
    pub fn put_back(dir: &Path, key: &RecoveryKey) -> Result<(), TrustError> {
        let (former, name) = (former_names(dir)?, key.name());
        let noted = KeyNote::readable(dir)?.map(|noted| noted.after(&former));
        let other =
            |wanted: &str| TrustError::Refused(format!("the given key is {name}, but the missing one is {wanted}"));
        let file = match &noted {
            Some(noted) if noted.current == name => KEY_FILE,
            Some(noted) if noted.next.as_ref() == Some(&name) => NEXT_FILE,
            Some(noted) => return Err(other(&noted.current)),
            None if former.contains(&name) => return Err(other("not a former one")),
            None => match key_note::copies(dir) {
                copies if copies.is_empty() || copies.contains(&name) => KEY_FILE,
                copies => return Err(other(&copies.join(" or "))),
            },
        };
        let path = dir.join(file);
        match RecoveryKey::read(&path) {
            Ok(None) => {}
            Ok(Some(present)) if present == *key => {
                return Err(TrustError::Refused(format!(
                    "{} already contains that key; nothing was changed",
                    path.display()
                )));
            }
            Ok(Some(present)) if noted.is_none() => {
                return Err(other(&format!("none, because {} exists", present.name())));
            }
            Ok(Some(_)) | Err(TrustError::Damaged { .. }) => set_aside(&path)?,
            Err(error) => return Err(error),
        }
        write_new_private(&path, format!("{key}\n").as_bytes())?;
        RecoveryKeys::note_those_of(dir);
        Ok(())
    }

    /// Abandons a missing or corrupt key of which no copy exists, and creates a new one. The new key opens none of the
    /// earlier backups. The rest of the former keys' files is kept under other names.
    ///
    /// # Errors
    /// If no key is missing or corrupt, or a file cannot be written.
    pub fn give_up(dir: &Path) -> Result<RecoveryKeys, TrustError> {
        match RecoveryKeys::load(dir) {
            Err(TrustError::Damaged { path, .. }) if path.ends_with(NEXT_FILE) => {
                if let Ok(Some(current)) = RecoveryKey::load(dir) {
                    return Err(TrustError::Refused(format!(
                        "the recovery key {} is valid, and only the new one of a rotation is missing or unreadable; \
                         give up only that one with `authority rotate-recovery-key abort`. Nothing was changed",
                        current.name()
                    )));
                }
            }
            Err(TrustError::Damaged { .. }) => {}
            Ok(_) => {
                let what =
                    "the recovery key is neither missing nor damaged; replace it with `authority rotate-recovery-key`";
                return Err(TrustError::Refused(what.into()));
            }
            Err(error) => return Err(error),
        }
        let noted = KeyNote::readable(dir)?;
        for name in noted.into_iter().flat_map(|noted| [Some(noted.current), noted.next]).flatten() {
            note_former(dir, &name)?;
        }
        let key = RecoveryKey::generate()?;
        for path in [KEY_FILE, NEXT_FILE].map(|name| dir.join(name)).iter().filter(|path| path.exists()) {
            set_aside(path)?;
        }
        write_private(&dir.join(KEY_FILE), format!("{key}\n").as_bytes())?;
        let keys = RecoveryKeys { current: key, next: None };
        KeyNote::keep(dir, &keys)?;
        Ok(keys)
    }

    /// Returns whether the key in `dir` is kept when a CA backup is restored that is opened by `given`, which may be a
    /// former key.
    ///
    /// # Errors
    /// If a key is unreadable for a temporary reason, or the missing or corrupt key is not `given`.
    pub(super) fn stays(dir: &Path, given: &RecoveryKey) -> Result<bool, TrustError> {
        let noted = match RecoveryKey::load(dir) {
            Ok(Some(_)) => return Ok(true),
            Ok(None) | Err(TrustError::Damaged { .. }) => KeyNote::readable(dir)?,
            Err(error) => return Err(error),
        };
        let former = former_names(dir)?;
        let noted = noted.map(|noted| noted.after(&former));
        match noted.filter(|noted| noted.current != given.name()) {
            None => Ok(false),
            Some(noted) => Err(TrustError::Refused(format!(
                "the recovery key of {} is {}, which is missing there or unreadable, but the given one is {}; nothing \
                 was changed. Restore the first one with `authority recovery-key --set` and run this again; if it is \
                 lost, move {} away, so that the given key becomes valid",
                dir.display(),
                noted.current,
                given.name(),
                dir.join(NOTE_FILE).display()
            ))),
        }
    }

    /// Records the names of the keys in `dir` after one was written there.
    pub(super) fn note_those_of(dir: &Path) {
        if let Ok(Some(keys)) = RecoveryKeys::load(dir) {
            note(dir, &keys);
        }
    }

    /// Makes `key`, which opens the restored backup, the current key in `dir`. Existing files of another key, and
    /// unless `is_same` all key files of the other CA, are kept under other names.
    pub(super) fn take(dir: &Path, key: &RecoveryKey, is_same: bool) -> Result<(), TrustError> {
        let others: &[&str] = if is_same { &[KEY_FILE] } else { &[KEY_FILE, NEXT_FILE, FORMER_FILE, NOTE_FILE] };
        for path in others.iter().map(|name| dir.join(name)).filter(|path| path.exists()) {
            set_aside(&path)?;
        }
        // A former key becomes valid again.
        let (mut names, name) = (former_names(dir)?, key.name());
        if names.contains(&name) {
            names.retain(|former| *former != name);
            write_former(dir, &names)?;
        }
        write_private(&dir.join(KEY_FILE), format!("{key}\n").as_bytes())
    }

    /// Returns the known names of the keys that are no longer valid for the datastore with the trust directory `dir`.
    ///
    /// # Errors
    /// If the file with the names, or a key, cannot be read.
    pub fn former(dir: &Path) -> Result<Vec<String>, TrustError> {
        let current = RecoveryKeys::load(dir)?.map(|keys| keys.all()).unwrap_or_default();
        let names = former_names(dir)?;
        Ok(names.into_iter().filter(|name| !current.iter().any(|key| key.name() == *name)).collect())
    }

    /// Copies the keys in `from`, and the records about them, to `to`, a new trust directory. A corrupt current key is
    /// not copied; a next key is copied unchanged even if it is corrupt.
    ///
    /// # Errors
    /// If a file is unreadable for a temporary reason, or cannot be written.
    pub(super) fn carry_over(from: &Path, to: &Path) -> Result<(), TrustError> {
        let mut files = Vec::new();
        for name in [FORMER_FILE, NEXT_FILE, NOTE_FILE] {
            files.extend(raw(&from.join(name))?.map(|bytes| (name, bytes)));
        }
        match RecoveryKey::load(from) {
            Ok(key) => files.extend(key.map(|key| (KEY_FILE, format!("{key}\n").into_bytes()))),
            Err(TrustError::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
        if !files.is_empty() {
            private_dir(to)?;
        }
        files.iter().try_for_each(|(name, bytes)| write_private(&to.join(name), bytes))
    }

    /// Returns whether a rotation is under way.
    #[must_use]
    pub fn is_rotating(dir: &Path) -> bool {
        dir.join(NEXT_FILE).exists()
    }

    /// Returns the current and the next key.
    #[must_use]
    pub fn all(&self) -> Vec<RecoveryKey> {
        [Some(&self.current), self.next.as_ref()].into_iter().flatten().cloned().collect()
    }

    /// Returns their names in the form that stamps of backups use: `current`, or `current+next`.
    #[must_use]
    pub fn names(&self) -> String {
        self.all().iter().map(RecoveryKey::name).collect::<Vec<_>>().join("+")
    }
}

/// Returns the names of the former keys in the trust directory `dir`.
///
/// # Errors
/// If their file exists and cannot be read.
pub(super) fn former_names(dir: &Path) -> Result<Vec<String>, TrustError> {
    match read_private(&dir.join(FORMER_FILE)) {
        Err(TrustError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        read => Ok(read?.lines().map(str::to_owned).collect()),
    }
}

/// Called before a key is deleted: data encrypted under it elsewhere can then be distinguished from that of another CA.
fn note_former(dir: &Path, name: &str) -> Result<(), TrustError> {
    let mut names = former_names(dir)?;
    if !names.iter().any(|known| known == name) {
        names.push(name.to_owned());
    }
    write_former(dir, &names)
}

fn write_former(dir: &Path, names: &[String]) -> Result<(), TrustError> {
    let text: String = names.iter().map(|name| format!("{name}\n")).collect();
    write_private(&dir.join(FORMER_FILE), text.as_bytes())
}

/// Returns the current key, which every step requires.
fn present(dir: &Path) -> Result<RecoveryKey, TrustError> {
    let missing = || {
        let what = format!("it is missing; {}", key_note::PUT_BACK);
        TrustError::Damaged { path: dir.join(KEY_FILE), what }
    };
    RecoveryKey::load(dir)?.ok_or_else(missing)
}

/// Records the names of the keys. If this fails, the next use records them.
fn note(dir: &Path, keys: &RecoveryKeys) {
    if let Err(error) = KeyNote::keep(dir, keys) {
        tracing::warn!(%error, "failed to record the names of the recovery keys");
    }
}

/// Reads a file that only its owner may read, whatever its contents.
fn raw(path: &Path) -> Result<Option<Vec<u8>>, TrustError> {
    let io = |source| TrustError::Io { path: path.to_owned(), source };
    let mode = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        found => found.map_err(io)?.permissions().mode() & 0o777,
    };
    if mode & 0o077 != 0 {
        return Err(TrustError::Exposed { path: path.to_owned(), mode, wanted: 0o600 });
    }
    std::fs::read(path).map(Some).map_err(io)
}

fn none() -> TrustError {
    TrustError::Refused("no recovery key rotation is in progress; start one with `begin`".into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::slice::from_ref;

    use super::*;

    #[test]
    fn p11_a_recovery_key_is_rotated_in_steps_each_of_which_is_whole() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path().join("trust");
        assert_eq!(RecoveryKeys::load(&dir).expect("no keys"), None);
        assert!(RecoveryKeys::abort(&dir).is_err(), "no rotation is in progress");
        assert_eq!(RecoveryKeys::load(&dir).expect("reads"), None, "no key is created");
        let first = RecoveryKeys::open_or_create(&dir).expect("makes").current;
        assert!(RecoveryKeys::finish(&dir, &first).is_err());

        let begun = RecoveryKeys::begin(&dir).expect("begins");
        let second = begun.next.clone().expect("a next key");
        assert_eq!(begun.names(), format!("{}+{}", first.name(), second.name()));
        assert_eq!(RecoveryKeys::begin(&dir).expect("resumes"), begun, "the same each time");
        let mode = std::fs::metadata(dir.join(NEXT_FILE)).expect("file exists").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(RecoveryKeys::abort(&dir).expect("aborts").all(), from_ref(&first));

        let begun = RecoveryKeys::begin(&dir).expect("starts again");
        let third = begun.next.clone().expect("a next key");
        assert_ne!(third, second);
        assert!(RecoveryKeys::finish(&dir, &second).is_err(), "the key of an aborted attempt");
        assert!(RecoveryKeys::finish(&dir, &first).is_err());
        assert_eq!(RecoveryKeys::load(&dir).expect("reads"), Some(begun));
        assert_eq!(RecoveryKeys::finish(&dir, &third).expect("ends").all(), from_ref(&third));
        assert_eq!(RecoveryKeys::load(&dir).expect("reads").expect("has keys").all(), from_ref(&third));

        // Former and abandoned keys are known by name, and the names are copied along with the keys.
        assert_eq!(RecoveryKeys::former(&dir).expect("reads"), [second.name(), first.name()]);
        let next = RecoveryKeys::begin(&dir).expect("starts a third time");
        let other = temp.path().join("other");
        RecoveryKeys::carry_over(&dir, &other).expect("copies");
        assert_eq!(RecoveryKeys::load(&other).expect("reads"), Some(next));
        assert_eq!(RecoveryKeys::former(&other).expect("reads"), [second.name(), first.name()]);
    }

    /// Starts a rotation in a directory. Returns the current and the next key.
    fn rotating(dir: &Path) -> (RecoveryKey, RecoveryKey) {
        let keys = RecoveryKeys::begin(dir).expect("begins");
        (keys.current, keys.next.expect("a next key"))
    }

    fn damaged(dir: &Path, file: &str) {
        let found = RecoveryKeys::load(dir).expect_err("is corrupt");
        assert!(matches!(&found, TrustError::Damaged { path, .. } if path.ends_with(file)), "{found}");
        assert!(found.to_string().contains("authority recovery-key"), "{found}");
        assert_eq!(RecoveryKeys::open_or_create(dir).expect_err("no key is created").to_string(), found.to_string());
    }

    #[test]
    fn p13_a_key_that_is_gone_is_not_replaced_and_comes_back_with_the_one_that_was_written_down() {
        let temp = tempfile::tempdir().expect("temp dir");
        let other = RecoveryKeys::open_or_create(&temp.path().join("other")).expect("makes").current;
        for (number, torn) in [(1, false), (2, true)] {
            let dir = temp.path().join(format!("trust-{number}"));
            let (first, second) = rotating(&dir);
            for (file, key) in [(KEY_FILE, &first), (NEXT_FILE, &second)] {
                let path = dir.join(file);
                let good = std::fs::read(&path).expect("reads");
                match torn {
                    true => std::fs::write(&path, &good[..good.len() / 2]).expect("tears"),
                    false => std::fs::remove_file(&path).expect("removes"),
                }
                damaged(&dir, file);
                assert!(RecoveryKeys::begin(&dir).is_err());
                let said = RecoveryKeys::put_back(&dir, &other).expect_err("is another key").to_string();
                assert!(said.contains(&other.name()) && said.contains("missing"), "{said}");
                RecoveryKeys::put_back(&dir, key).expect("restores");
                let keys = RecoveryKeys::load(&dir).expect("reads").expect("has keys");
                assert_eq!(keys.all(), [first.clone(), second.clone()]);
                assert!(RecoveryKeys::put_back(&dir, key).is_err(), "it already exists");
                assert_eq!(dir.join(format!("{file}.left-1")).exists(), torn, "the damaged file is kept");
            }
            // A next key that is lost may be abandoned, without the present one.
            match torn {
                true => std::fs::write(dir.join(NEXT_FILE), "gwr1.").expect("tears"),
                false => std::fs::remove_file(dir.join(NEXT_FILE)).expect("removes"),
            }
            let said = RecoveryKeys::give_up(&dir).expect_err("the current key is valid").to_string();
            assert!(said.contains("abort") && said.contains(&first.name()), "{said}");
            assert_eq!(RecoveryKeys::abort(&dir).expect("aborts").all(), from_ref(&first));
            assert_eq!(RecoveryKeys::former(&dir).expect("reads"), [second.name()]);
            assert_eq!(RecoveryKeys::load(&dir).expect("reads").expect("has keys").all(), from_ref(&first));
            // A former key is not accepted as the current one.
            std::fs::write(dir.join(KEY_FILE), format!("{second}\n")).expect("writes");
            damaged(&dir, KEY_FILE);
            RecoveryKeys::put_back(&dir, &second).expect_err("is a former key");
            RecoveryKeys::put_back(&dir, &first).expect("restores");
            assert_eq!(RecoveryKeys::load(&dir).expect("reads").expect("has keys").all(), from_ref(&first));
        }
    }

    #[test]
    fn p13_a_key_that_nobody_has_is_given_up_only_where_it_is_missing() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path().join("trust");
        let (first, second) = rotating(&dir);
        assert!(RecoveryKeys::give_up(&dir).is_err(), "no key is missing");
        std::fs::remove_file(dir.join(KEY_FILE)).expect("removes");
        let made = RecoveryKeys::give_up(&dir).expect("creates another key");
        assert!(![&first, &second].contains(&&made.current) && made.next.is_none());
        assert_eq!(RecoveryKeys::load(&dir).expect("reads"), Some(made));
        assert_eq!(RecoveryKeys::former(&dir).expect("reads"), [first.name(), second.name()]);
        assert!(dir.join("recovery.next.left-1").exists());
    }

    #[test]
    fn p13_steps_that_were_not_noted_are_no_damage() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path().join("trust");
        let noted = || std::fs::read(dir.join(NOTE_FILE)).ok();
        let is_whole = |what: &str| {
            let keys = RecoveryKeys::load(&dir).expect(what).expect(what);
            assert_eq!(RecoveryKeys::open_or_create(&dir).expect(what), keys);
            assert_eq!(RecoveryKeys::load(&dir).expect(what), Some(keys), "{what}, and it is recorded");
        };
        RecoveryKeys::open_or_create(&dir).expect("makes");
        std::fs::remove_file(dir.join(NOTE_FILE)).expect("removes");
        is_whole("a directory of an earlier version");
        let steps: [(&str, &dyn Fn()); 5] = [
            ("begin", &|| assert!(!rotating(&dir).1.name().is_empty())),
            ("abort", &|| assert!(RecoveryKeys::abort(&dir).expect("aborts").next.is_none())),
            ("begin again", &|| assert!(!rotating(&dir).1.name().is_empty())),
            ("finish", &|| {
                let (_, next) = rotating(&dir);
                RecoveryKeys::finish(&dir, &next).expect("ends");
            }),
            ("begin a third time", &|| assert!(!rotating(&dir).1.name().is_empty())),
        ];
        for (what, step) in steps {
            let before = noted().expect("is recorded");
            step();
            assert_ne!(noted().expect("is recorded"), before, "{what}");
            write_private(&dir.join(NOTE_FILE), &before).expect("as a crash leaves it");
            is_whole(what);
        }
        std::fs::write(dir.join(NOTE_FILE), "torn").expect("writes");
        is_whole("a torn record does not contradict existing keys");
        std::fs::write(dir.join(NOTE_FILE), "torn").expect("writes");
        std::fs::remove_file(dir.join(KEY_FILE)).expect("removes");
        assert!(RecoveryKeys::load(&dir).is_err(), "there was a key");
    }
}
