//! A replica's directory: which state directory is current, and how another one takes its place.
//!
//! `current` names the state directory in one checksummed line; it is replaced by write, fsync, rename, fsync of the
//! directory. Next to it lies `high-water`, see [`Mark`]. A state is removed only when another one is current that was
//! fetched and verified; one that is damaged or lost something is renamed to `state-NNNN.damaged-N` and kept.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::env::data_dir::{DirectoryError, claim, claim_to_read, io_error, replace_file};
use crate::env::scratch::Scratch;
use crate::log::journal::witness_of;

use super::mark::Mark;
use super::witnesses::Witnesses;

/// Directory of the log that a standalone webserver keeps, within the webserver's.
pub const OWN_LOG: &str = "own-log";
const CURRENT: &str = "current";
const HIGH_WATER: &str = "high-water";
/// Holds a view of a state while it is examined.
const OPENING: &str = "opening";
pub(super) const DAMAGED: &str = ".damaged-";

/// Where the state of a replica has its place, and how another one takes it.
pub trait Home: Send {
    /// Makes the state in `path` the current one, atomically and durably.
    ///
    /// # Errors
    /// When the storage refuses; the former one stays current then.
    fn make_current(&mut self, path: &Path) -> Result<(), String>;

    /// Whether the state in `path` is the one that the next start would open.
    fn is_current(&self, path: &Path) -> bool;

    /// Removes every state but the one in `keep`, which was verified and is current.
    ///
    /// # Errors
    /// When the storage refuses.
    fn remove_others(&mut self, keep: &Path) -> Result<(), String>;

    /// What is known of how far the state came; `None` where nothing was ever written down.
    ///
    /// # Errors
    /// When it is damaged.
    fn mark(&self) -> Result<Option<Mark>, String> {
        Ok(None)
    }

    /// Writes down durably how far the state came; `None`: as if nothing ever was.
    ///
    /// # Errors
    /// When the storage refuses; the former mark stays then.
    fn set_mark(&mut self, _: Option<&Mark>) -> Result<(), String> {
        Ok(())
    }

    /// Removes the state in `path`, which another one has replaced.
    ///
    /// # Errors
    /// When the storage refuses.
    fn remove(&mut self, _: &Path) -> Result<(), String> {
        Ok(())
    }

    /// The current state; `None` when it is not known.
    fn current(&self) -> Option<PathBuf> {
        None
    }

    /// What else knows how far the state came. `mark` is the high-water mark, where it can be read.
    fn witnesses(&self, _: Option<&Mark>) -> Witnesses {
        Witnesses::kept(None, None)
    }

    /// Writes down in the mark's place that the state is less than it was.
    fn note_lost(&mut self, _: &str) {}
}

impl Home for Directory {
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

/// What a directory is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To serve: a damaged state is set aside, and fetched again.
    Serve,
    /// To write to the outbox, by a tool: a damaged state is an error.
    Write,
    /// To look at it: nothing in it is created, changed or removed.
    Read,
}

/// An open, locked directory.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    access: Access,
    /// Copies of what opening would change; `None` unless the directory is only read.
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

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the copies are that a directory which is only read needs.
    #[must_use]
    pub fn scratch(&self) -> Option<&Path> {
        self.scratch.as_ref().map(Scratch::path)
    }

    /// What it was opened for.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// Whether nothing in it may change.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.access == Access::Read
    }

    /// Where the outbox journal is opened: its directory, or a copy of it when nothing may change.
    ///
    /// # Errors
    /// When it cannot be copied.
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

    /// A place for views of states.
    ///
    /// # Errors
    /// When none can be made.
    pub(super) fn views(&self) -> Result<Views<'_>, DirectoryError> {
        match &self.scratch {
            Some(scratch) => Ok(Views::Kept(scratch)),
            None => {
                let path = self.path.join(OPENING);
                Scratch::at(path.clone()).map(Views::Passing).map_err(io_error(&path))
            }
        }
    }

    /// The state directory that `current` names.
    ///
    /// # Errors
    /// Says what is wrong with `current` when it names none.
    pub fn named(&self) -> Result<PathBuf, String> {
        current_in(&self.path)
    }

    /// The state directories, newest first; what was set aside is not among them.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn states(&self) -> Result<Vec<PathBuf>, DirectoryError> {
        states_in(&self.path)
    }

    /// A new, empty state directory beside the current one.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn new_state(&self) -> Result<PathBuf, DirectoryError> {
        new_state_in(&self.path)
    }

    /// Makes `state` the current one, atomically and durably.
    ///
    /// # Errors
    /// When the operating system refuses. The former one stays current then, unless all but the last sync was done: ask
    /// [`Home::is_current`].
    pub fn make_current(&self, state: &Path) -> Result<(), DirectoryError> {
        let name = state.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let line = format!("{name} {}\n", checksum(name));
        replace_file(&self.path.join(CURRENT), line.as_bytes())
    }

    /// Writes down in the mark's place that the state is less than it was, until it was level with the datastore once.
    pub(super) fn note_lost(&self, what: &str) {
        if self.access == Access::Serve
            && let Err(error) = replace_file(&self.path.join(HIGH_WATER), Mark::lost(what).as_bytes())
        {
            tracing::warn!(%error, "that the state went back is not written down");
        }
    }

    /// Keeps a damaged state under a name that no start opens.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn set_aside(&self, state: &Path) -> Result<PathBuf, DirectoryError> {
        let last = damaged_in(&self.path).iter().map(|(number, _)| *number).max().unwrap_or(0);
        let mut aside = state.as_os_str().to_owned();
        aside.push(format!("{DAMAGED}{}", last + 1));
        let aside = PathBuf::from(aside);
        fs::rename(state, &aside).map_err(io_error(state))?;
        Ok(aside)
    }

    /// Removes every state directory but `keep`, which was verified and is current. What was set aside stays.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn remove_others(&self, keep: &Path) -> Result<(), DirectoryError> {
        for other in states_in(&self.path)?.into_iter().filter(|path| path != keep) {
            fs::remove_dir_all(&other).map_err(io_error(&other))?;
        }
        Ok(())
    }
}

/// A place for views of states: for as long as the directory is open, or for as long as it is needed.
pub(super) enum Views<'a> {
    Kept(&'a Scratch),
    Passing(Scratch),
}

impl Views<'_> {
    /// Where the view of `state` goes.
    pub(super) fn of(&self, state: &Path) -> PathBuf {
        let scratch = match self {
            Views::Kept(scratch) => scratch,
            Views::Passing(scratch) => scratch,
        };
        scratch.path().join(state.file_name().unwrap_or_default())
    }
}

/// Whether `current` in the directory `home` names the state in `path`.
pub(super) fn names(home: &Path, path: &Path) -> bool {
    let named = fs::read_to_string(home.join(CURRENT)).ok().and_then(|line| parse_current(&line));
    named.is_some_and(|name| home.join(name) == path)
}

/// Whether the next start may open the state in `path`: `current` or the mark names it.
pub(super) fn may_open(home: &Path, path: &Path) -> bool {
    names(home, path) || marked_in(home).is_some_and(|mark| home.join(mark.state) == path)
}

fn marked_in(home: &Path) -> Option<Mark> {
    fs::read_to_string(home.join(HIGH_WATER)).ok().and_then(|text| Mark::decode(&text).ok())
}

/// A new, empty state directory in a replica's directory at `path`.
///
/// # Errors
/// When the operating system refuses.
pub(super) fn new_state_in(path: &Path) -> Result<PathBuf, DirectoryError> {
    let aside = damaged_in(path).into_iter().filter_map(|(_, path)| number(&path.with_extension("")));
    // A new state never gets the name of one that was lost: the mark names that one.
    let marked = marked_in(path).and_then(|mark| number(Path::new(&mark.state)));
    let states = states_in(path)?;
    let last = states.iter().filter_map(|path| number(path)).chain(aside).chain(marked).max().unwrap_or(0);
    let state = path.join(format!("state-{:04}", last + 1));
    fs::create_dir(&state).map_err(io_error(&state))?;
    Ok(state)
}

/// The damaged states that are kept in a replica's directory, with their numbers.
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

/// The states in a replica's directory, newest first; behind them those that were set aside.
#[must_use]
pub fn all_in(path: &Path) -> Vec<PathBuf> {
    let mut damaged = damaged_in(path);
    damaged.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    let states = states_in(path).unwrap_or_default();
    states.into_iter().chain(damaged.into_iter().map(|(_, path)| path)).collect()
}

/// The state that `current` in a replica's directory names.
///
/// # Errors
/// Says what is wrong with `current` when it names none.
pub fn current_in(home: &Path) -> Result<PathBuf, String> {
    let line = match fs::read_to_string(home.join(CURRENT)) {
        Ok(line) => line,
        Err(error) if error.kind() == ErrorKind::NotFound => return Err("`current` is missing".into()),
        Err(error) => return Err(format!("`current` cannot be read: {error}")),
    };
    let name = parse_current(&line).ok_or("`current` is damaged")?;
    let path = home.join(&name);
    if path.is_dir() { Ok(path) } else { Err(format!("`current` names {name}, which is missing")) }
}

/// The name of the state that `current` in a replica's directory names, when it is missing; an empty one when `current` is
/// damaged and there is no state at all.
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

/// The number in the name of a state's directory.
pub(super) fn number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix("state-")?.parse().ok()
}

fn checksum(name: &str) -> String {
    blake3::hash(name.as_bytes()).to_hex()[..16].to_owned()
}

/// The name of a state directory in a line of `current`; `None` when the line is damaged.
#[must_use]
pub fn parse_current(line: &str) -> Option<String> {
    let (name, sum) = line.trim_end().split_once(' ')?;
    (checksum(name) == sum && !name.contains('/') && number(Path::new(name)).is_some()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::evidence;

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
            assert!(state.ends_with(format!("state-{number:04}")), "a number is never given twice");
            directory.set_aside(&state).expect("renames");
        }
        assert_eq!(damaged_in(temp.path()).len(), 4, "nothing replaces them yet");
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
