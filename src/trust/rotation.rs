//! The recovery key's rotation: two keys side by side until every member holds a copy that the new one opens.
//!
//! The new key lies beside the present one, `recovery.next`, from `begin` to `finish`. As long as it does, copies of the authority
//! are sealed under both, so that none is ever lost with a key: either opens every new copy, and the present one the old copies.
//! Each step is one file that appears, takes the other's place or goes; an interruption leaves the state before or after it.
//! Afterwards the names are noted (`key_note.rs`).

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::authority::{private_dir, read_private, sync_dir, write_new_private, write_private};
use super::escrow::{KEY_FILE, set_aside};
use super::key_note::{self, KeyNote, NOTE_FILE};
use super::{RecoveryKey, TrustError};

pub(super) const NEXT_FILE: &str = "recovery.next";
/// Names of keys that counted once, or were to count, one a line.
pub(super) const FORMER_FILE: &str = "recovery.former";

/// The recovery keys that count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryKeys {
    /// The present one.
    pub current: RecoveryKey,
    /// The one that takes its place.
    pub next: Option<RecoveryKey>,
}

impl RecoveryKeys {
    /// Those of the datastore whose trust directory is `dir`; `None`: it has none yet. Nothing is created or changed.
    ///
    /// # Errors
    /// When a file is damaged or readable by others, or a key that was there is missing, or another one is in its place.
    pub fn load(dir: &Path) -> Result<Option<RecoveryKeys>, TrustError> {
        // In this order, in which steps that are done meanwhile are no contradiction: what is noted was there before; a rotation
        // that ends shows the new key twice, and no moment without it; what a key was called is a former name before it goes.
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
        // A note that cannot be read says nothing against keys that can.
        if let Ok(Some(noted)) = noted {
            noted.after(&former).check(dir, &keys)?;
        }
        Ok(Some(keys))
    }

    /// As [`RecoveryKeys::load`]; the first key is made when there never was one. Their names are noted.
    ///
    /// # Errors
    /// As [`RecoveryKeys::load`], and when there is no randomness.
    pub fn open_or_create(dir: &Path) -> Result<RecoveryKeys, TrustError> {
        let found = match RecoveryKeys::load(dir)? {
            Some(keys) => Some(keys),
            None => {
                private_dir(dir)?;
                write_new_private(&dir.join(KEY_FILE), format!("{}\n", RecoveryKey::generate()?).as_bytes())?;
                RecoveryKeys::load(dir)?
            }
        };
        let keys = found.ok_or_else(|| TrustError::Refused(format!("{} is gone", dir.join(KEY_FILE).display())))?;
        note(dir, &keys);
        Ok(keys)
    }

    fn existing(dir: &Path) -> Result<RecoveryKeys, TrustError> {
        RecoveryKeys::load(dir)?.ok_or_else(none)
    }

    /// Begins a rotation, or goes on with the one that is under way. The new key counts from now on, beside the present one.
    ///
    /// # Errors
    /// As [`RecoveryKeys::open_or_create`], and when the file cannot be written.
    pub fn begin(dir: &Path) -> Result<RecoveryKeys, TrustError> {
        let keys = RecoveryKeys::open_or_create(dir)?;
        if keys.next.is_some() {
            return Ok(keys);
        }
        private_dir(dir)?;
        let path = dir.join(NEXT_FILE);
        if RecoveryKey::read(&path)?.is_some() {
            // It is the present key once more, which some other hand put there.
            std::fs::remove_file(&path).map_err(|source| TrustError::Io { path: path.clone(), source })?;
        }
        write_new_private(&path, format!("{}\n", RecoveryKey::generate()?).as_bytes())?;
        RecoveryKeys::open_or_create(dir)
    }

    /// Ends the rotation: only the new key counts from now on. `shown` is the new key as the operator has it.
    ///
    /// # Errors
    /// When no rotation is under way, `shown` is another key, or the file cannot be renamed.
    pub fn finish(dir: &Path, shown: &RecoveryKey) -> Result<RecoveryKeys, TrustError> {
        let keys = RecoveryKeys::existing(dir)?;
        let next = keys.next.ok_or_else(none)?;
        if next != *shown {
            return Err(TrustError::Refused(format!(
                "the key that was given is {}, and the new recovery key is {}: give the one that `begin` printed",
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

    /// Takes a rotation back: only the present key counts. A new key that is missing or cannot be read is given up; what is there
    /// of it is kept beside.
    ///
    /// # Errors
    /// When none is under way, or the file cannot be removed.
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

    /// Puts a key back that was written down, where its file is missing or cannot be read. What is there of it is kept beside.
    ///
    /// # Errors
    /// When it is not the key that is missing, as far as its name is known, or the file cannot be written.
    pub fn put_back(dir: &Path, key: &RecoveryKey) -> Result<(), TrustError> {
        let (former, name) = (former_names(dir)?, key.name());
        let noted = KeyNote::read(dir).ok().flatten().map(|noted| noted.after(&former));
        let other = |wanted: &str| {
            TrustError::Refused(format!("the key that was given is {name}, and the one that is missing is {wanted}"))
        };
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
                return Err(TrustError::Refused(format!("{} holds that key: nothing was changed", path.display())));
            }
            Ok(Some(present)) if noted.is_none() => return Err(other(&format!("none: {} is there", present.name()))),
            Ok(Some(_)) | Err(TrustError::Damaged { .. }) => set_aside(&path)?,
            Err(error) => return Err(error),
        }
        write_new_private(&path, format!("{key}\n").as_bytes())?;
        RecoveryKeys::note_those_of(dir);
        Ok(())
    }

    /// Gives up a key that is missing or damaged, which nobody has any more, and makes another one: no copy that was made before
    /// opens with it. What is left of the former keys is kept beside.
    ///
    /// # Errors
    /// When no key is missing or damaged, or a file cannot be written.
    pub fn give_up(dir: &Path) -> Result<RecoveryKeys, TrustError> {
        match RecoveryKeys::load(dir) {
            Err(TrustError::Damaged { .. }) => {}
            Ok(_) => {
                let what =
                    "the recovery key is neither missing nor damaged: `authority rotate-recovery-key` replaces it";
                return Err(TrustError::Refused(what.into()));
            }
            Err(error) => return Err(error),
        }
        let noted = KeyNote::read(dir).ok().flatten();
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

    /// Whether the key in `dir` stays when `given`, which opens a copy of its authority, comes with that copy: `given` may be a former
    /// one.
    ///
    /// # Errors
    /// When a key cannot be read only for now, or the one that is missing or damaged is another one than `given`.
    pub(super) fn stays(dir: &Path, given: &RecoveryKey) -> Result<bool, TrustError> {
        let noted = match RecoveryKey::load(dir) {
            Ok(Some(_)) => return Ok(true),
            Ok(None) | Err(TrustError::Damaged { .. }) => KeyNote::read(dir).ok().flatten(),
            Err(error) => return Err(error),
        };
        let noted = noted.map(|noted| noted.after(&former_names(dir).unwrap_or_default()));
        match noted.filter(|noted| noted.current != given.name()) {
            None => Ok(false),
            Some(noted) => Err(TrustError::Refused(format!(
                "the recovery key of {} is {}, which is missing there or cannot be read, and the one that was given is {}: put the                  first one back with `authority recovery-key --set`, and run this again; nothing was changed. When nobody has it                  any more, move {} away: the key that was given counts then",
                dir.display(),
                noted.current,
                given.name(),
                dir.join(NOTE_FILE).display()
            ))),
        }
    }

    /// Notes the names of the keys in `dir`, of which one has just come there.
    pub(super) fn note_those_of(dir: &Path) {
        if let Ok(Some(keys)) = RecoveryKeys::load(dir) {
            note(dir, &keys);
        }
    }

    /// Makes `key`, which opens the copy that is put in place, the present key in `dir`. What is left of another one is kept beside;
    /// of another authority's keys, unless `is_same`, everything is.
    pub(super) fn take(dir: &Path, key: &RecoveryKey, is_same: bool) -> Result<(), TrustError> {
        let others: &[&str] = if is_same { &[KEY_FILE] } else { &[KEY_FILE, NEXT_FILE, FORMER_FILE, NOTE_FILE] };
        for path in others.iter().map(|name| dir.join(name)).filter(|path| path.exists()) {
            set_aside(&path)?;
        }
        // A former one counts again.
        let (mut names, name) = (former_names(dir)?, key.name());
        if names.contains(&name) {
            names.retain(|former| *former != name);
            write_former(dir, &names)?;
        }
        write_private(&dir.join(KEY_FILE), format!("{key}\n").as_bytes())
    }

    /// Names of the keys of the datastore whose trust directory is `dir` that count no more, as far as it knows.
    ///
    /// # Errors
    /// When the file that names them cannot be read, or the keys cannot.
    pub fn former(dir: &Path) -> Result<Vec<String>, TrustError> {
        let current = RecoveryKeys::load(dir)?.map(|keys| keys.all()).unwrap_or_default();
        let names = former_names(dir)?;
        Ok(names.into_iter().filter(|name| !current.iter().any(|key| key.name() == *name)).collect())
    }

    /// Copies the keys in `from`, and what is known of them, to `to`, a new trust directory. A present key that is damaged is not
    /// copied; a new one is, as it is.
    ///
    /// # Errors
    /// When a file cannot be read only for now, or cannot be written.
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

    /// Whether a rotation is under way.
    #[must_use]
    pub fn is_rotating(dir: &Path) -> bool {
        dir.join(NEXT_FILE).exists()
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<RecoveryKey> {
        [Some(&self.current), self.next.as_ref()].into_iter().flatten().cloned().collect()
    }

    /// Their names, as a copy that they open tells them: `current`, or `current+next`.
    #[must_use]
    pub fn names(&self) -> String {
        self.all().iter().map(RecoveryKey::name).collect::<Vec<_>>().join("+")
    }
}

fn former_names(dir: &Path) -> Result<Vec<String>, TrustError> {
    match read_private(&dir.join(FORMER_FILE)) {
        Err(TrustError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        read => Ok(read?.lines().map(str::to_owned).collect()),
    }
}

/// Before the key goes: what is sealed under it in other places can be told from what is another authority's.
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

/// The present key, without which no step is done.
fn present(dir: &Path) -> Result<RecoveryKey, TrustError> {
    let missing = || {
        let what = format!("it is missing; {}", key_note::PUT_BACK);
        TrustError::Damaged { path: dir.join(KEY_FILE), what }
    };
    RecoveryKey::load(dir)?.ok_or_else(missing)
}

/// Notes which keys there are. What is not noted now is noted with the next use.
fn note(dir: &Path, keys: &RecoveryKeys) {
    if let Err(error) = KeyNote::keep(dir, keys) {
        tracing::warn!(%error, "the names of the recovery keys could not be noted");
    }
}

/// A file that only its owner may read, whatever it holds.
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
    TrustError::Refused("no rotation of the recovery key is under way: `begin` begins one".into())
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
        assert_eq!(RecoveryKeys::load(&dir).expect("nothing is there"), None);
        assert!(RecoveryKeys::abort(&dir).is_err(), "none is under way");
        assert_eq!(RecoveryKeys::load(&dir).expect("reads"), None, "nothing is made by the way");
        let first = RecoveryKeys::open_or_create(&dir).expect("makes").current;
        assert!(RecoveryKeys::finish(&dir, &first).is_err());

        let begun = RecoveryKeys::begin(&dir).expect("begins");
        let second = begun.next.clone().expect("a new one");
        assert_eq!(begun.names(), format!("{}+{}", first.name(), second.name()));
        assert_eq!(RecoveryKeys::begin(&dir).expect("goes on"), begun, "the same, however often");
        let mode = std::fs::metadata(dir.join(NEXT_FILE)).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(RecoveryKeys::abort(&dir).expect("takes it back").all(), from_ref(&first));

        let begun = RecoveryKeys::begin(&dir).expect("begins again");
        let third = begun.next.clone().expect("a new one");
        assert_ne!(third, second);
        assert!(RecoveryKeys::finish(&dir, &second).is_err(), "the key of an attempt that was taken back");
        assert!(RecoveryKeys::finish(&dir, &first).is_err());
        assert_eq!(RecoveryKeys::load(&dir).expect("reads"), Some(begun));
        assert_eq!(RecoveryKeys::finish(&dir, &third).expect("ends").all(), from_ref(&third));
        assert_eq!(RecoveryKeys::load(&dir).expect("reads").expect("is there").all(), from_ref(&third));

        // What counted, or was to count, is known by name, and goes with the keys to where they are taken.
        assert_eq!(RecoveryKeys::former(&dir).expect("reads"), [second.name(), first.name()]);
        let next = RecoveryKeys::begin(&dir).expect("begins once more");
        let other = temp.path().join("other");
        RecoveryKeys::carry_over(&dir, &other).expect("copies");
        assert_eq!(RecoveryKeys::load(&other).expect("reads"), Some(next));
        assert_eq!(RecoveryKeys::former(&other).expect("reads"), [second.name(), first.name()]);
    }

    /// A directory with a key, or with one that is being replaced.
    fn rotating(dir: &Path) -> (RecoveryKey, RecoveryKey) {
        let keys = RecoveryKeys::begin(dir).expect("begins");
        (keys.current, keys.next.expect("a new one"))
    }

    fn damaged(dir: &Path, file: &str) {
        let found = RecoveryKeys::load(dir).expect_err("is damage");
        assert!(matches!(&found, TrustError::Damaged { path, .. } if path.ends_with(file)), "{found}");
        assert!(found.to_string().contains("authority recovery-key"), "{found}");
        assert_eq!(RecoveryKeys::open_or_create(dir).expect_err("none is made").to_string(), found.to_string());
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
                let said = RecoveryKeys::put_back(&dir, &other).expect_err("is another one").to_string();
                assert!(said.contains(&other.name()) && said.contains("missing"), "{said}");
                RecoveryKeys::put_back(&dir, key).expect("puts it back");
                let keys = RecoveryKeys::load(&dir).expect("reads").expect("is there");
                assert_eq!(keys.all(), [first.clone(), second.clone()]);
                assert!(RecoveryKeys::put_back(&dir, key).is_err(), "it is there");
                assert_eq!(dir.join(format!("{file}.left-1")).exists(), torn, "what is there of it is kept");
            }
            // A new key that is gone may be given up.
            match torn {
                true => std::fs::write(dir.join(NEXT_FILE), "gwr1.").expect("tears"),
                false => std::fs::remove_file(dir.join(NEXT_FILE)).expect("removes"),
            }
            assert_eq!(RecoveryKeys::abort(&dir).expect("takes it back").all(), from_ref(&first));
            assert_eq!(RecoveryKeys::former(&dir).expect("reads"), [second.name()]);
            assert_eq!(RecoveryKeys::load(&dir).expect("reads").expect("is there").all(), from_ref(&first));
            // The key of another time is not the key.
            std::fs::write(dir.join(KEY_FILE), format!("{second}\n")).expect("writes");
            damaged(&dir, KEY_FILE);
            RecoveryKeys::put_back(&dir, &second).expect_err("is a former one");
            RecoveryKeys::put_back(&dir, &first).expect("puts it back");
            assert_eq!(RecoveryKeys::load(&dir).expect("reads").expect("is there").all(), from_ref(&first));
        }
    }

    #[test]
    fn p13_a_key_that_nobody_has_is_given_up_only_where_it_is_missing() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path().join("trust");
        let (first, second) = rotating(&dir);
        assert!(RecoveryKeys::give_up(&dir).is_err(), "nothing is missing");
        std::fs::remove_file(dir.join(KEY_FILE)).expect("removes");
        let made = RecoveryKeys::give_up(&dir).expect("makes another one");
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
            assert_eq!(RecoveryKeys::load(&dir).expect(what), Some(keys), "{what}, and it is noted");
        };
        RecoveryKeys::open_or_create(&dir).expect("makes");
        std::fs::remove_file(dir.join(NOTE_FILE)).expect("removes");
        is_whole("a directory of an earlier version");
        let steps: [(&str, &dyn Fn()); 5] = [
            ("begin", &|| assert!(!rotating(&dir).1.name().is_empty())),
            ("abort", &|| assert!(RecoveryKeys::abort(&dir).expect("takes it back").next.is_none())),
            ("begin again", &|| assert!(!rotating(&dir).1.name().is_empty())),
            ("finish", &|| {
                let (_, next) = rotating(&dir);
                RecoveryKeys::finish(&dir, &next).expect("ends");
            }),
            ("begin once more", &|| assert!(!rotating(&dir).1.name().is_empty())),
        ];
        for (what, step) in steps {
            let before = noted().expect("is noted");
            step();
            assert_ne!(noted().expect("is noted"), before, "{what}");
            write_private(&dir.join(NOTE_FILE), &before).expect("as a crash leaves it");
            is_whole(what);
        }
        std::fs::write(dir.join(NOTE_FILE), "torn").expect("writes");
        is_whole("a note that is torn says nothing against keys that are there");
        std::fs::write(dir.join(NOTE_FILE), "torn").expect("writes");
        std::fs::remove_file(dir.join(KEY_FILE)).expect("removes");
        assert!(RecoveryKeys::load(&dir).is_err(), "there was one");
    }
}
