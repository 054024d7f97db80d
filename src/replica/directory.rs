//! A replica's directory: which state directory is current, and how another one replaces it.
//!
//! `current` names the state directory in one checksummed line. It is replaced by write, fsync, rename, fsync of the
//! directory. `high-water` is described at [`Mark`]. A state is removed only when another one is current that was
//! fetched and verified. A state that is corrupt or lost something is renamed to `state-NNNN.damaged-N` and kept.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gravwell_env::data_dir::{DirectoryError, claim, claim_to_read, io_error, replace_file};
use gravwell_env::scratch::Scratch;
use gravwell_log::journal::witness_of;

use super::evidence::{self, KEPT_IN_DOUBT};
use super::high_water_mark::Mark;
use super::witnesses::Witnesses;

/// Directory of a standalone webserver's log, within the webserver's directory.
pub const OWN_LOG: &str = "own-log";
const CURRENT: &str = "current";
const HIGH_WATER: &str = "high-water";
/// Holds the view of a state while the state is examined.
const OPENING: &str = "opening";
pub(super) const DAMAGED: &str = ".damaged-";

/// Storage of a replica's states, one of which is current.
pub trait StateStorage: Send {
    /// Makes the state in `path` the current one, atomically and durably.
    ///
    /// # Errors
    /// If the storage fails; the former one stays current then.
    fn make_current(&mut self, path: &Path) -> Result<(), String>;

    /// Returns whether the next start would open the state in `path`.
    fn is_current(&self, path: &Path) -> bool;

    /// Removes every state except the one in `keep`, which was verified and is current.
    ///
    /// # Errors
    /// If the storage fails.
    fn remove_others(&mut self, keep: &Path) -> Result<(), String>;

    /// Returns the high-water mark; `None` if none was ever written.
    ///
    /// # Errors
    /// If it is corrupt.
    fn mark(&self) -> Result<Option<Mark>, String> {
        Ok(None)
    }

    /// Durably writes the high-water mark; `None` removes it.
    ///
    /// # Errors
    /// If the storage fails; the former mark is kept then.
    fn set_mark(&mut self, _: Option<&Mark>) -> Result<(), String> {
        Ok(())
    }

    /// Removes the state in `path`, which was replaced by another one.
    ///
    /// # Errors
    /// If the storage fails.
    fn remove(&mut self, _: &Path) -> Result<(), String> {
        Ok(())
    }

    /// Renames the state in `path`, which was replaced by another one, so that it is kept but never opened. Of those that
    /// were kept before, the newest stay, and the sound ones that came furthest.
    ///
    /// # Errors
    /// If the storage fails.
    fn set_aside(&mut self, _: &Path) -> Result<(), String> {
        Ok(())
    }

    /// Returns the current state; `None` if it is unknown.
    fn current(&self) -> Option<PathBuf> {
        None
    }

    /// Returns other evidence of how far the state came. `mark` is the high-water mark, if it can be read.
    fn witnesses(&self, _: Option<&Mark>) -> Witnesses {
        Witnesses::kept(None, None)
    }

    /// Records in the mark's file that the state has lost something.
    fn note_lost(&mut self, _: &str) {}
}

impl StateStorage for Directory {
    fn make_current(&mut self, path: &Path) -> Result<(), String> {
        Directory::make_current(self, path).map_err(|error| error.to_string())
    }

    fn is_current(&self, path: &Path) -> bool {
        names(&self.path, path)
    }

    fn remove_others(&mut self, keep: &Path) -> Result<(), String> {
        Directory::remove_others(self, keep).map_err(|error| error.to_string())
    }

    fn mark(&self) -> Result<Option<Mark>, String> {
        let path = self.path.join(HIGH_WATER);
        match fs::read_to_string(&path) {
            Ok(text) => Mark::decode(&text).map(Some).map_err(|error| format!("{}: {error}", path.display())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }

    fn set_mark(&mut self, mark: Option<&Mark>) -> Result<(), String> {
        if self.is_read_only() {
            return Ok(());
        }
        let path = self.path.join(HIGH_WATER);
        let written = match mark {
            Some(mark) => replace_file(&path, mark.encode().as_bytes()),
            None => fs::remove_file(&path).map_err(io_error(&path)),
        };
        written.map_err(|error| error.to_string())
    }

    fn remove(&mut self, path: &Path) -> Result<(), String> {
        fs::remove_dir_all(path).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn set_aside(&mut self, path: &Path) -> Result<(), String> {
        let aside = Directory::set_aside(self, path).map_err(|error| error.to_string())?;
        tracing::error!(kept = %aside.display(), "keeping a state that could not be compared with its successor");
        evidence::prune(self, KEPT_IN_DOUBT, None).map_err(|error| error.to_string())
    }

    fn current(&self) -> Option<PathBuf> {
        self.named().ok()
    }

    fn witnesses(&self, mark: Option<&Mark>) -> Witnesses {
        Witnesses::of(self, mark)
    }

    fn note_lost(&mut self, what: &str) {
        Directory::note_lost(self, what);
    }
}

/// Purpose for which a directory is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To serve: a corrupt state is kept aside and fetched again.
    Serve,
    /// To write to the outbox, by a tool: a corrupt state is an error.
    Write,
    /// To read: nothing in it is created, changed or removed.
    Read,
}

/// An open, locked directory.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    access: Access,
    /// Copies of files that opening would change; `None` unless the directory is only read.
    scratch: Option<Scratch>,
    _lock: Option<File>,
}

impl Directory {
    /// Opens and locks a replica's directory.
    ///
    /// # Errors
    /// See [`claim`].
    pub fn open(path: &Path, access: Access, patience: Duration) -> Result<Directory, DirectoryError> {
        if access == Access::Read {
            let lock = claim_to_read(path, "replica", patience)?;
            let temporary = std::env::temp_dir();
            let scratch = Some(Scratch::new().map_err(io_error(&temporary))?);
            return Ok(Directory { path: path.to_owned(), access, scratch, _lock: lock });
        }
        let lock = Some(claim(path, "replica", patience)?);
        Ok(Directory { path: path.to_owned(), access, scratch: None, _lock: lock })
    }

    /// Returns the path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the directory with these copies, if it is only read.
    #[must_use]
    pub fn scratch(&self) -> Option<&Path> {
        self.scratch.as_ref().map(Scratch::path)
    }

    /// Returns the purpose for which it was opened.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// Returns whether nothing in it may change.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.access == Access::Read
    }

    /// Returns the directory from which to open the outbox journal: a copy if nothing may change.
    ///
    /// # Errors
    /// If it cannot be copied.
    pub fn outbox(&self) -> Result<PathBuf, DirectoryError> {
        let own = self.path.join("outbox");
        let Some(scratch) = &self.scratch else { return Ok(own) };
        let copy = scratch.path().join("outbox");
        let (witness, copied) = (witness_of(&own), witness_of(&copy));
        if !copied.exists() && witness.exists() {
            fs::copy(&witness, &copied).map_err(io_error(&witness))?;
        }
        if copy.is_dir() || !own.is_dir() {
            return Ok(copy);
        }
        fs::create_dir(&copy).map_err(io_error(&copy))?;
        for entry in fs::read_dir(&own).map_err(io_error(&own))? {
            let entry = entry.map_err(io_error(&own))?;
            if entry.file_type().is_ok_and(|kind| kind.is_file()) {
                fs::copy(entry.path(), copy.join(entry.file_name())).map_err(io_error(&entry.path()))?;
            }
        }
        Ok(copy)
    }

    /// Returns a place for views of states.
    ///
    /// # Errors
    /// If none can be created.
    pub(super) fn views(&self) -> Result<Views<'_>, DirectoryError> {
        match &self.scratch {
            Some(scratch) => Ok(Views::Kept(scratch)),
            None => {
                let path = self.path.join(OPENING);
                Scratch::at(path.clone()).map(Views::Passing).map_err(io_error(&path))
            }
        }
    }

    /// Returns the state directory that `current` names.
    ///
    /// # Errors
    /// Describes the problem with `current` if it names none.
    pub fn named(&self) -> Result<PathBuf, String> {
        current_in(&self.path)
    }

    /// Returns the state directories, newest first, without those kept aside.
    ///
    /// # Errors
    /// If the operating system returns an error.
    pub fn states(&self) -> Result<Vec<PathBuf>, DirectoryError> {
        states_in(&self.path)
    }

    /// Creates an empty state directory next to the current one.
    ///
    /// # Errors
    /// If the operating system returns an error.
    pub fn new_state(&self) -> Result<PathBuf, DirectoryError> {
        new_state_in(&self.path)
    }

    /// Makes `state` the current one, atomically and durably.
    ///
    /// # Errors
    /// If the operating system returns an error. The former one stays current, unless only the last sync failed:
    /// check [`StateStorage::is_current`].
    pub fn make_current(&self, state: &Path) -> Result<(), DirectoryError> {
        let name = state.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let line = format!("{name} {}\n", checksum(name));
        replace_file(&self.path.join(CURRENT), line.as_bytes())
    }

    /// Records in the mark's file that the state has lost something, until it has caught up with the datastore.
    pub(super) fn note_lost(&self, what: &str) {
        if self.access == Access::Serve
            && let Err(error) = replace_file(&self.path.join(HIGH_WATER), Mark::lost(what).as_bytes())
        {
            tracing::warn!(%error, "failed to record the loss of state");
        }
    }

    /// Renames a corrupt state so that it is kept but never opened.
    ///
    /// # Errors
    /// If the operating system returns an error.
    pub fn set_aside(&self, state: &Path) -> Result<PathBuf, DirectoryError> {
        let last = damaged_in(&self.path).iter().map(|(number, _)| *number).max().unwrap_or(0);
        let mut aside = state.as_os_str().to_owned();
        aside.push(format!("{DAMAGED}{}", last + 1));
        let aside = PathBuf::from(aside);
        fs::rename(state, &aside).map_err(io_error(state))?;
        Ok(aside)
    }

    /// Removes every state directory except `keep`, which was verified and is current. States kept aside are
    /// not removed.
    ///
    /// # Errors
    /// If the operating system returns an error.
    pub fn remove_others(&self, keep: &Path) -> Result<(), DirectoryError> {
        for other in states_in(&self.path)?.into_iter().filter(|path| path != keep) {
            fs::remove_dir_all(&other).map_err(io_error(&other))?;
        }
        Ok(())
    }
}

/// Place for views of states: kept as long as the directory is open, or removed after use.
pub(super) enum Views<'a> {
    Kept(&'a Scratch),
    Passing(Scratch),
}

impl Views<'_> {
    /// Returns the path for the view of `state`.
    pub(super) fn of(&self, state: &Path) -> PathBuf {
        let scratch = match self {
            Views::Kept(scratch) => scratch,
            Views::Passing(scratch) => scratch,
        };
        scratch.path().join(state.file_name().unwrap_or_default())
    }
}

/// Returns whether `current` in the directory `home` names the state in `path`.
pub(super) fn names(home: &Path, path: &Path) -> bool {
    let named = fs::read_to_string(home.join(CURRENT)).ok().and_then(|line| parse_current(&line));
    named.is_some_and(|name| home.join(name) == path)
}

/// Returns whether the next start may open the state in `path`, because `current` or the mark names it.
pub(super) fn may_open(home: &Path, path: &Path) -> bool {
    names(home, path) || marked_in(home).is_some_and(|mark| home.join(mark.state) == path)
}

fn marked_in(home: &Path) -> Option<Mark> {
    fs::read_to_string(home.join(HIGH_WATER)).ok().and_then(|text| Mark::decode(&text).ok())
}

/// Creates an empty state directory in a replica's directory at `path`.
///
/// # Errors
/// If the operating system returns an error.
pub(super) fn new_state_in(path: &Path) -> Result<PathBuf, DirectoryError> {
    let aside = damaged_in(path).into_iter().filter_map(|(_, path)| number(&path.with_extension("")));
    // A new state never gets the name of a lost one, because the mark names that one.
    let marked = marked_in(path).and_then(|mark| number(Path::new(&mark.state)));
    let states = states_in(path)?;
    let last = states.iter().filter_map(|path| number(path)).chain(aside).chain(marked).max().unwrap_or(0);
    let state = path.join(format!("state-{:04}", last + 1));
    fs::create_dir(&state).map_err(io_error(&state))?;
    Ok(state)
}

/// Returns the corrupt states kept in a replica's directory, with their numbers.
#[must_use]
pub fn damaged_in(path: &Path) -> Vec<(u64, PathBuf)> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let number_of = |path: &Path| {
        let (state, aside) = path.file_name()?.to_str()?.split_once(DAMAGED)?;
        number(Path::new(state)).and(aside.parse().ok())
    };
    entries.flatten().filter_map(|entry| Some((number_of(&entry.path())?, entry.path()))).collect()
}

fn states_in(path: &Path) -> Result<Vec<PathBuf>, DirectoryError> {
    let entries = fs::read_dir(path).map_err(io_error(path))?;
    let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
    let mut states: Vec<PathBuf> = paths.filter(|path| number(path).is_some()).collect();
    states.sort_by_key(|path| std::cmp::Reverse(number(path)));
    Ok(states)
}

/// Returns the states in a replica's directory, newest first, followed by those kept aside.
#[must_use]
pub fn all_in(path: &Path) -> Vec<PathBuf> {
    let mut damaged = damaged_in(path);
    damaged.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    let states = states_in(path).unwrap_or_default();
    states.into_iter().chain(damaged.into_iter().map(|(_, path)| path)).collect()
}

/// Returns the state that `current` in a replica's directory names.
///
/// # Errors
/// Describes the problem with `current` if it names none.
pub fn current_in(home: &Path) -> Result<PathBuf, String> {
    let line = match fs::read_to_string(home.join(CURRENT)) {
        Ok(line) => line,
        Err(error) if error.kind() == ErrorKind::NotFound => return Err("`current` is missing".into()),
        Err(error) => return Err(format!("cannot read `current`: {error}")),
    };
    let name = parse_current(&line).ok_or("`current` is corrupt")?;
    let path = home.join(&name);
    if path.is_dir() { Ok(path) } else { Err(format!("`current` names {name}, which is missing")) }
}

/// Returns the name of the state that `current` names, if that state is missing; an empty name if `current` is corrupt
/// and there is no state at all.
pub(super) fn missing_current(home: &Path) -> Option<String> {
    let line = fs::read_to_string(home.join(CURRENT));
    if line.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        return None;
    }
    match line.ok().and_then(|line| parse_current(&line)) {
        Some(name) => (!home.join(&name).is_dir()).then_some(name),
        None => states_in(home).is_ok_and(|states| states.is_empty()).then(String::new),
    }
}

/// Returns the number in the name of a state directory.
pub(super) fn number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix("state-")?.parse().ok()
}

fn checksum(name: &str) -> String {
    blake3::hash(name.as_bytes()).to_hex()[..16].to_owned()
}

/// Parses the name of a state directory from a line of `current`; `None` if the line is corrupt.
#[must_use]
pub fn parse_current(line: &str) -> Option<String> {
    let (name, sum) = line.trim_end().split_once(' ')?;
    (checksum(name) == sum && !name.contains('/') && number(Path::new(name)).is_some()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_is_atomic_and_what_it_replaced_goes_only_then() {
        let temp = tempfile::tempdir().expect("temp dir");
        let directory = Directory::open(temp.path(), Access::Serve, Duration::ZERO).expect("opens");
        assert_eq!(directory.named(), Err("`current` is missing".into()));
        let first = directory.new_state().expect("first");
        directory.make_current(&first).expect("current");
        let second = directory.new_state().expect("second");
        assert_eq!(directory.named().expect("still first"), first);
        directory.make_current(&second).expect("swap");
        assert_eq!(directory.named().expect("second now"), second);
        assert!(first.exists());
        directory.remove_others(&second).expect("removes");
        assert!(!first.exists() && second.exists());
        let again = Directory::open(temp.path(), Access::Serve, Duration::ZERO);
        assert!(matches!(again, Err(DirectoryError::InUse { .. })));
    }

    #[test]
    fn p13_damaged_states_are_kept_and_bounded() {
        let temp = tempfile::tempdir().expect("temp dir");
        let directory = Directory::open(temp.path(), Access::Serve, Duration::ZERO).expect("opens");
        for number in 1..=4 {
            let state = directory.new_state().expect("makes");
            assert!(state.ends_with(format!("state-{number:04}")), "numbers are not reused");
            directory.set_aside(&state).expect("renames");
        }
        assert_eq!(damaged_in(temp.path()).len(), 4, "no damaged state was replaced");
        let state = directory.new_state().expect("makes");
        directory.remove_others(&state).expect("removes");
        evidence::prune(&directory, 2, None).expect("removes");
        let mut kept: Vec<u64> = damaged_in(temp.path()).into_iter().map(|(number, _)| number).collect();
        kept.sort_unstable();
        assert_eq!(kept, [3, 4]);
        assert_eq!(directory.states().expect("lists"), [state]);
    }

    #[test]
    fn a_directory_belongs_to_one_role() {
        let temp = tempfile::tempdir().expect("temp dir");
        drop(claim(temp.path(), "datastore", Duration::ZERO).expect("claims"));
        for access in [Access::Serve, Access::Read] {
            let opened = Directory::open(temp.path(), access, Duration::ZERO);
            assert!(matches!(opened, Err(DirectoryError::OtherRole { .. })));
        }
    }
}
