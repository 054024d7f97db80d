//! Selects the state that a replica opens, and handles corrupt ones.
//!
//! A state is examined through a view, which does not change its files, and every row of it is read. So neither the
//! storage engine nor this module changes a state before it is known to be sound. The only states removed here are
//! those replaced by a sound state that reaches the mark.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use gravwell_env::data_dir::DirectoryError;
use gravwell_model::{Origin, OriginCounter};
use gravwell_state::{self as state, StateError, StateMeta, StateStore};

use super::directory::{Access, Directory, StateStorage as _, Views, damaged_in};
use super::evidence;
use super::handle::OpenError;
use super::high_water_mark::Mark;
use super::witnesses::Witnesses;

/// Remedy that is appended to messages.
const REMEDY: &str =
    "data here is out of date until the replica has caught up with the datastore, which needs no further action";

/// A loss: the state lacks something that this replica had durably shown.
#[derive(Clone, Debug)]
pub(super) struct Lost {
    /// Message for the operator.
    pub message: String,
    /// High-water mark, if known: the loss is made up only once the state has reached it.
    pub mark: Option<Mark>,
}

impl Lost {
    /// Returns a loss of unknown extent.
    pub(super) fn unmarked(what: String) -> Lost {
        tracing::error!(what, "{REMEDY}");
        Lost { message: format!("{what}; {REMEDY}"), mark: None }
    }

    /// Returns whether a state that has caught up with its datastore has everything again.
    pub(super) fn is_made_up(&self, meta: Option<&StateMeta>) -> bool {
        self.mark.as_ref().is_none_or(|mark| mark.loss(meta).is_none())
    }
}

/// The state that was selected.
pub(super) struct Opened {
    pub state: StateStore,
    /// Directory of the state.
    pub place: PathBuf,
    /// Loss of the state; `None` if nothing shows one.
    pub lost: Option<Lost>,
    /// Counters that the former state had decided. Only set if the state may lack them.
    pub decided: Vec<(Origin, OriginCounter)>,
    /// All problems found.
    pub findings: Vec<String>,
}

/// A state that is sound in itself.
struct Sound {
    path: PathBuf,
    view: StateStore,
    meta: Option<Arc<StateMeta>>,
    loss: Option<String>,
    /// Whether the mark holds the position of this state.
    is_marked: bool,
}

/// Opens the state of a replica, or creates an empty one.
pub(super) fn open(directory: &Directory, cache_bytes: u64) -> Result<Opened, OpenError> {
    let mut findings = Vec::new();
    let mark = directory.mark();
    let witnesses = directory.witnesses(mark.as_ref().ok().and_then(Option::as_ref));
    let unknown = unknown(&mark, &witnesses);
    let is_mark_sound = mark.is_ok();
    findings.extend(unknown.clone());
    let mark = mark.ok().flatten();
    let named = directory.named();
    let states = directory.states()?;
    if let Err(problem) = &named
        && (!states.is_empty() || mark.is_some())
    {
        findings.push(problem.clone());
    }
    let is_alone = states.len() < 2;
    let searched = directory.views().map_err(OpenError::from).and_then(|views| {
        let (best, damaged) = (None, Vec::new());
        let mut search = Search { directory, views, cache_bytes, mark: mark.as_ref(), best, damaged };
        search.run(named.as_deref().ok(), states).map(|()| search)
    });
    let mut search = match searched {
        Ok(search) => search,
        // A full disk has no room for a view, so the current state is opened directly.
        Err(error) if directory.access() == Access::Serve && is_want(&error) => {
            let place = named.map_err(|_| error)?;
            let state = open_sound(&place, cache_bytes)?;
            let meta = state.meta();
            let loss = mark.as_ref().and_then(|mark| mark.loss(meta.as_deref()));
            let doubt = unknown.map(doubted).or_else(|| witnesses.contradict(meta.as_deref()));
            return Ok(opened((state, place, loss), doubt, mark, findings));
        }
        Err(error) => return Err(error),
    };
    let (best, damaged) = (search.best.take(), std::mem::take(&mut search.damaged));
    findings.extend(damaged.iter().map(|(path, reason)| format!("{}: {reason}", path.display())));
    // Without a mark, the state that replaces a corrupt one may be older.
    let was_damaged = !damaged.is_empty() || !damaged_in(directory.path()).is_empty();
    let is_older = mark.is_none() && (was_damaged || (named.is_err() && !is_alone));
    let doubt = is_older.then(|| "the state was corrupt and may have been replaced by an older one".to_owned());
    let found = best.as_ref().and_then(|sound| sound.meta.clone());
    let witnessed = witnesses.contradict(found.as_deref());
    let doubt = doubt.or_else(|| witnessed.clone()).or_else(|| unknown.map(doubted));
    let none_left = || mark.as_ref().and_then(|mark| mark.loss(None));
    let (state, place, loss) = match (directory.access(), best) {
        // A tool does not replace a lost state by an empty one.
        (Access::Write, None) if damaged.is_empty() && (none_left().is_some() || doubt.is_some()) => {
            let reason = none_left().or(doubt).unwrap_or_default();
            return Err(OpenError::Damaged { path: directory.path().to_owned(), reason });
        }
        (_, None) if named.is_err() && damaged.is_empty() => {
            let (state, place) = begin(directory, cache_bytes)?;
            (state, place, none_left())
        }
        (Access::Read | Access::Write, None) => return Err(is_damaged(damaged, &named)),
        (Access::Write, Some(_)) if damaged.iter().any(|(path, _)| Some(path) == named.as_ref().ok()) => {
            return Err(is_damaged(damaged, &named));
        }
        (Access::Read, Some(sound)) => (sound.view, sound.path, sound.loss),
        (Access::Serve, None) => {
            let (state, place) = begin(directory, cache_bytes)?;
            set_aside(directory, &damaged);
            (state, place, none_left())
        }
        (Access::Serve | Access::Write, Some(sound)) => {
            let is_sure = doubt.is_none() && mark.is_some();
            let taken = take(directory, sound, named.as_deref().ok(), is_sure, cache_bytes)?;
            set_aside(directory, &damaged);
            taken
        }
    };
    drop(search);
    // The evidence may be gone at the next start. A mark that shows a loss is kept, and so is a corrupt one.
    if let Some(what) = witnessed.filter(|_| loss.is_none() && is_mark_sound) {
        directory.note_lost(&what);
    }
    if directory.access() == Access::Serve {
        let sound = state.meta().filter(|_| loss.is_none() && doubt.is_none() && mark.is_some());
        let most = if sound.is_some() { evidence::KEPT } else { evidence::KEPT_IN_DOUBT };
        if let Err(error) = evidence::prune(directory, most, sound.as_deref()) {
            tracing::warn!(%error, "failed to remove archived states");
        }
    }
    Ok(opened((state, place, loss), doubt, mark, findings))
}

/// Returns why the mark does not show how far the state came, although there was one.
pub(super) fn unknown(mark: &Result<Option<Mark>, String>, witnesses: &Witnesses) -> Option<String> {
    match mark {
        Err(error) => Some(format!("the high-water file is corrupt ({error})")),
        Ok(None) if witnesses.was_connected() => Some("the high-water file is missing".to_owned()),
        Ok(_) => None,
    }
}

/// Adds the consequence to such a reason.
pub(super) fn doubted(what: String) -> String {
    format!("{what}, so it is unknown whether the state went back")
}

/// A state, its directory, and its loss according to the mark.
type Taken = (StateStore, PathBuf, Option<String>);

/// Assembles the result. `doubt` is other evidence of a loss, which is made up once the state has caught up with
/// the datastore.
fn opened((state, place, loss): Taken, doubt: Option<String>, mark: Option<Mark>, findings: Vec<String>) -> Opened {
    let mark = mark.filter(|_| loss.is_some());
    let decided = mark.as_ref().map(|mark| mark.decided.clone()).unwrap_or_default();
    for finding in &findings {
        tracing::warn!(finding, "replica directory has a problem");
    }
    let lost = match loss {
        Some(loss) => Some(Lost { mark, ..Lost::unmarked(loss) }),
        None => doubt.map(Lost::unmarked),
    };
    Opened { state, place, lost, decided, findings }
}

/// Returns whether opening failed because the process lacks a resource.
fn is_want(error: &OpenError) -> bool {
    match error {
        OpenError::Directory(DirectoryError::Io { source, .. }) => gravwell_env::fs::is_full(source),
        OpenError::State(error) => matches!(error, StateError::Unavailable { .. }),
        _ => false,
    }
}

fn is_damaged(damaged: Vec<(PathBuf, String)>, named: &Result<PathBuf, String>) -> OpenError {
    let of_named = |(path, _): &(PathBuf, String)| Some(path) == named.as_ref().ok();
    let at = damaged.iter().position(of_named).unwrap_or(0);
    let (path, reason) = damaged.into_iter().nth(at).unwrap_or_default();
    OpenError::Damaged { path, reason }
}

/// Creates an empty state in a new directory. It is filled from the datastore.
fn begin(directory: &Directory, cache_bytes: u64) -> Result<(StateStore, PathBuf), OpenError> {
    if directory.is_read_only() {
        return Ok((StateStore::in_memory(), PathBuf::new()));
    }
    let fresh = directory.new_state()?;
    let state = StateStore::open(&fresh, cache_bytes)?;
    directory.make_current(&fresh)?;
    Ok((state, fresh))
}

/// Opens a state that was found sound, and makes it the current one. `is_sure`: no other state can be newer.
fn take(
    directory: &Directory,
    sound: Sound,
    named: Option<&Path>,
    is_sure: bool,
    cache_bytes: u64,
) -> Result<Taken, OpenError> {
    let Sound { path, view, meta, loss, is_marked } = sound;
    drop(view);
    let mut place = path.clone();
    if loss.is_some() && meta.is_some() && is_marked {
        // A state that opens as an older one may hold more than the storage engine finds, so work on a copy.
        place = directory.new_state()?;
        state::duplicate(&path, &place).map_err(|source| DirectoryError::Io { path: path.clone(), source })?;
    }
    let state = StateStore::open(&place, cache_bytes)?;
    if state.position() != meta.as_ref().map(|meta| meta.position()) {
        let reason = "the state has different positions after opening it twice".into();
        return Err(OpenError::Damaged { path, reason });
    }
    if named != Some(place.as_path()) {
        directory.make_current(&place)?;
        tracing::warn!(state = %place.display(), "`current` was wrong; it names the newest valid state again");
    }
    if place != path {
        set_aside(directory, &[(path, String::new())]);
    } else if named == Some(place.as_path()) && meta.is_some() && loss.is_none() && is_sure {
        directory.remove_others(&place)?;
    }
    Ok((state, place, loss))
}

fn set_aside(directory: &Directory, damaged: &[(PathBuf, String)]) {
    for (path, _) in damaged.iter().filter(|(path, _)| path.is_dir()) {
        match directory.set_aside(path) {
            Ok(aside) => tracing::warn!(
                kept = %aside.display(),
                "state discarded; fetching it again, keeping the outbox and the damaged state"
            ),
            Err(error) => tracing::warn!(%error, "failed to rename a damaged state"),
        }
    }
}

/// The search for the newest sound state.
struct Search<'a> {
    directory: &'a Directory,
    views: Views<'a>,
    cache_bytes: u64,
    mark: Option<&'a Mark>,
    best: Option<Sound>,
    damaged: Vec<(PathBuf, String)>,
}

impl Search<'_> {
    /// Tries the state that `current` names, the one that the mark names, then the others, newest first, until one
    /// reaches the mark.
    fn run(&mut self, named: Option<&Path>, states: Vec<PathBuf>) -> Result<(), OpenError> {
        let marked = self.mark.map(|mark| self.directory.path().join(&mark.state));
        let first = named.into_iter().map(Path::to_path_buf).chain(marked.filter(|path| states.contains(path)));
        let mut tried: Vec<PathBuf> = Vec::new();
        for path in first.chain(states.iter().cloned()) {
            if tried.contains(&path) {
                continue;
            }
            tried.push(path.clone());
            if self.examine(path, named)? {
                break;
            }
        }
        Ok(())
    }

    /// Examines a state. Returns whether the search is over.
    fn examine(&mut self, path: PathBuf, named: Option<&Path>) -> Result<bool, OpenError> {
        let is_named = Some(path.as_path()) == named;
        let place = self.views.of(&path);
        let view = match self.directory.access() {
            Access::Read => StateStore::open_view(&path, &place, self.cache_bytes),
            Access::Serve | Access::Write => StateStore::try_view(&path, &place, self.cache_bytes),
        };
        let checked = view.and_then(|view| check_sound(&view, &path).map(|()| view));
        // The storage engine takes a state without a journal for a new one, and removes its tables.
        let is_marked = |mark: &&Mark| path.file_name().is_some_and(|name| *name == *mark.state);
        let marked = self.mark.filter(is_marked);
        if let (Ok(view), Some(mark)) = (&checked, marked)
            && view.meta().is_none()
        {
            self.damaged.push((path, format!("the state is empty, but was at sequence {}", mark.seq())));
            return Ok(false);
        }
        match checked {
            Ok(view) => {
                let meta = view.meta();
                let loss = self.mark.and_then(|mark| mark.loss(meta.as_deref()));
                let is_whole = loss.is_none() && (meta.is_some() || is_named);
                let seq = meta.as_ref().map(|meta| meta.seq);
                let is_better = self.best.as_ref().is_none_or(|best| seq > best.meta.as_ref().map(|meta| meta.seq));
                if is_whole || is_better {
                    let is_marked = marked.is_some();
                    self.best = Some(Sound { path, view, meta, loss, is_marked });
                }
                Ok(is_whole)
            }
            Err(error @ (StateError::Locked { .. } | StateError::Unavailable { .. })) => Err(error.into()),
            // A state whose fetch was never completed.
            Err(StateError::Unfinished) if !is_named => Ok(false),
            Err(error) => {
                self.damaged.push((path, error.to_string()));
                Ok(false)
            }
        }
    }
}

fn open_sound(path: &Path, cache_bytes: u64) -> Result<StateStore, OpenError> {
    let state = StateStore::open(path, cache_bytes)?;
    check_sound(&state, path)
        .map(|()| state)
        .map_err(|error| OpenError::Damaged { path: path.to_owned(), reason: error.to_string() })
}

/// Reads the whole state. The digest is updated with each change, so a lost or outdated row would not show in it, and
/// the datastore would find the state equal.
pub(super) fn check_sound(state: &StateStore, path: &Path) -> Result<(), StateError> {
    if state.meta().is_none() {
        return state.loader().map(drop);
    }
    match state.check()?.damage.into_iter().next() {
        None => Ok(()),
        Some(damage) => Err(StateError::Unreadable { dir: path.to_owned(), cause: damage.to_string() }),
    }
}
