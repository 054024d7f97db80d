//! The recovery key's rotation: two keys side by side until every member holds a copy that the new one opens.
//!
//! The new key lies beside the present one, `recovery.next`, from `begin` to `finish`. As long as it does, copies of the authority
//! are sealed under both, so that none is ever lost with a key: either opens every new copy, and the present one the old copies.
//! Each step is one file that appears, takes the other's place or goes; an interruption leaves the state before or after it.

use std::path::Path;

use super::authority::{private_dir, read_private, sync_dir, write_new_private, write_private};
use super::escrow::KEY_FILE;
use super::{RecoveryKey, TrustError};

const NEXT_FILE: &str = "recovery.next";
/// Names of keys that counted once, or were to count, one a line.
const FORMER_FILE: &str = "recovery.former";

/// The recovery keys that count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryKeys {
    /// The present one.
    pub current: RecoveryKey,
    /// The one that takes its place.
    pub next: Option<RecoveryKey>,
}

impl RecoveryKeys {
    /// Those of the datastore whose trust directory is `dir`; `None`: it has none yet.
    ///
    /// # Errors
    /// When a file is damaged or readable by others.
    pub fn load(dir: &Path) -> Result<Option<RecoveryKeys>, TrustError> {
        // In this order: a rotation that ends in between shows the new key twice, and no moment without it.
        let next = RecoveryKey::read(&dir.join(NEXT_FILE))?;
        let Some(current) = RecoveryKey::load(dir)? else { return Ok(None) };
        let next = next.filter(|next| *next != current);
        Ok(Some(RecoveryKeys { current, next }))
    }

    /// As [`RecoveryKeys::load`]; the first key is made when there is none yet.
    ///
    /// # Errors
    /// As [`RecoveryKeys::load`], and when there is no randomness.
    pub fn open_or_create(dir: &Path) -> Result<RecoveryKeys, TrustError> {
        RecoveryKey::open_or_create(dir)?;
        let missing = || TrustError::Refused(format!("{} is gone", dir.join(KEY_FILE).display()));
        RecoveryKeys::load(dir)?.ok_or_else(missing)
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
        let keys = RecoveryKeys::open_or_create(dir)?;
        let next = keys.next.ok_or_else(none)?;
        if next != *shown {
            return Err(TrustError::Refused(format!(
                "the key that was given is {}, and the new recovery key is {}: give the one that `begin` printed",
                shown.name(),
                next.name()
            )));
        }
        note_former(dir, &keys.current)?;
        let path = dir.join(KEY_FILE);
        std::fs::rename(dir.join(NEXT_FILE), &path).map_err(|source| TrustError::Io { path, source })?;
        sync_dir(dir)?;
        Ok(RecoveryKeys { current: next, next: None })
    }

    /// Takes a rotation back: only the present key counts.
    ///
    /// # Errors
    /// When none is under way, or the file cannot be removed.
    pub fn abort(dir: &Path) -> Result<RecoveryKeys, TrustError> {
        let keys = RecoveryKeys::open_or_create(dir)?;
        note_former(dir, &keys.next.ok_or_else(none)?)?;
        let path = dir.join(NEXT_FILE);
        std::fs::remove_file(&path).map_err(|source| TrustError::Io { path, source })?;
        sync_dir(dir)?;
        Ok(RecoveryKeys { current: keys.current, next: None })
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

    /// Copies the keys in `from` that can be read to `to`, a new trust directory.
    pub(super) fn carry_over(from: &Path, to: &Path) -> Result<(), TrustError> {
        let Some(keys) = RecoveryKeys::load(from).ok().flatten() else { return Ok(()) };
        private_dir(to)?;
        let former: String = former_names(from).unwrap_or_default().iter().map(|name| format!("{name}\n")).collect();
        if !former.is_empty() {
            write_private(&to.join(FORMER_FILE), former.as_bytes())?;
        }
        for (key, file) in [(keys.next, NEXT_FILE), (Some(keys.current), KEY_FILE)] {
            if let Some(key) = key {
                write_private(&to.join(file), format!("{key}\n").as_bytes())?;
            }
        }
        Ok(())
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
fn note_former(dir: &Path, key: &RecoveryKey) -> Result<(), TrustError> {
    let (mut names, name) = (former_names(dir)?, key.name());
    if !names.contains(&name) {
        names.push(name);
    }
    let text: String = names.iter().map(|name| format!("{name}\n")).collect();
    write_private(&dir.join(FORMER_FILE), text.as_bytes())
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
        let first = RecoveryKeys::load(&dir).expect("reads").expect("was made").current;
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
}
