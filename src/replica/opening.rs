//! Which state a replica opens, and what it does with those that are damaged.
//!
//! A state is examined through a view, which leaves its files as they are, and every row of it is read. So neither the storage
//! engine nor this module changes a state before it is known to be sound, and nothing is ever removed here but what a
//! sound state, as far as the mark, has replaced.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::env::data_dir::DirectoryError;
use crate::model::{Origin, OriginCounter};
use crate::state::{self, StateError, StateMeta, StateStore};

use super::directory::{Access, Directory, Home as _, Views, damaged_in};
use super::evidence;
use super::handle::OpenError;
use super::mark::Mark;
use super::witnesses::Witnesses;

/// What remains to be done, for messages.
const REMEDY: &str = "what is shown here is out of date until the datastore is reached, from which the replica catches up by \
                      itself";

/// What a state lacks of what this replica had durably shown.
#[derive(Clone, Debug)]
pub(super) struct Lost {
    /// For the operator.
    pub message: String,
    /// How far it had come, where that is known: it has everything again only once it is there.
    pub mark: Option<Mark>,
}

impl Lost {
    /// One of which it is known that it is, and not how far the state had come.
    pub(super) fn unmarked(what: String) -> Lost {
        tracing::error!(what, "{REMEDY}");
        Lost { message: format!("{what}; {REMEDY}"), mark: None }
    }

    /// Whether a state that is level with its datastore has everything again.
    pub(super) fn is_made_up(&self, meta: Option<&StateMeta>) -> bool {
        self.mark.as_ref().is_none_or(|mark| mark.loss(meta).is_none())
    }
}

/// The state that was chosen.
pub(super) struct Opened {
    pub state: StateStore,
    /// Its directory.
    pub place: PathBuf,
    /// What it lacks; `None` when it came as far as the mark.
    pub lost: Option<Lost>,
    /// What the former state had decided. Only where that is not in the state.
    pub decided: Vec<(Origin, OriginCounter)>,
    /// Everything that was not as it should be.
    pub findings: Vec<String>,
}

/// A state that is sound in itself.
struct Sound {
    path: PathBuf,
    view: StateStore,
    meta: Option<Arc<StateMeta>>,
    loss: Option<String>,
    /// It is the one whose position the mark holds.
    is_marked: bool,
}

/// Opens the state of a replica, or begins an empty one.
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
        // On a full disk there is no room for a view: the current state is opened as it is.
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
    // Without a mark, what takes the place of a damaged state may be older.
    let was_damaged = !damaged.is_empty() || !damaged_in(directory.path()).is_empty();
    let is_older = mark.is_none() && (was_damaged || (named.is_err() && !is_alone));
    let doubt = is_older.then(|| "the state was damaged, and an older one may have taken its place".to_owned());
    let found = best.as_ref().and_then(|sound| sound.meta.clone());
    let witnessed = witnesses.contradict(found.as_deref());
    let doubt = doubt.or_else(|| witnessed.clone()).or_else(|| unknown.map(doubted));
    let none_left = || mark.as_ref().and_then(|mark| mark.loss(None));
    let (state, place, loss) = match (directory.access(), best) {
        // A tool puts no empty state in the place of one that was lost.
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
    // What shows it may be gone at the next start. A mark that shows a loss stays, and so does one that is damaged.
    if let Some(what) = witnessed.filter(|_| loss.is_none() && is_mark_sound) {
        directory.note_lost(&what);
    }
    if directory.access() == Access::Serve {
        let sound = state.meta().filter(|_| loss.is_none() && doubt.is_none() && mark.is_some());
        let most = if sound.is_some() { evidence::KEPT } else { evidence::KEPT_IN_DOUBT };
        if let Err(error) = evidence::prune(directory, most, sound.as_deref()) {
            tracing::warn!(%error, "states that were set aside stay for now");
        }
    }
    Ok(opened((state, place, loss), doubt, mark, findings))
}

/// Why the mark does not say how far the state came, although there was one.
pub(super) fn unknown(mark: &Result<Option<Mark>, String>, witnesses: &Witnesses) -> Option<String> {
    match mark {
        Err(error) => Some(format!("the high-water file is damaged ({error})")),
        Ok(None) if witnesses.was_connected() => Some("the high-water file is missing".to_owned()),
        Ok(_) => None,
    }
}

/// What follows from that.
pub(super) fn doubted(what: String) -> String {
    format!("{what}, so whether the state went back is not known")
}

/// A state, its directory, and what it lacks by the mark.
type Taken = (StateStore, PathBuf, Option<String>);

/// `doubt`: what else shows that the state may be less than what was here. It is made up by being level once.
fn opened((state, place, loss): Taken, doubt: Option<String>, mark: Option<Mark>, findings: Vec<String>) -> Opened {
    let mark = mark.filter(|_| loss.is_some());
    let decided = mark.as_ref().map(|mark| mark.decided.clone()).unwrap_or_default();
    for finding in &findings {
        tracing::warn!(finding, "the replica's directory");
    }
    let lost = match loss {
        Some(loss) => Some(Lost { mark, ..Lost::unmarked(loss) }),
        None => doubt.map(Lost::unmarked),
    };
    Opened { state, place, lost, decided, findings }
}

/// Whether an opening failed because the process lacks something.
fn is_want(error: &OpenError) -> bool {
    match error {
        OpenError::Directory(DirectoryError::Io { source, .. }) => crate::env::fs::is_full(source),
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

/// An empty state in a directory of its own, which is filled from the datastore.
fn begin(directory: &Directory, cache_bytes: u64) -> Result<(StateStore, PathBuf), OpenError> {
    if directory.is_read_only() {
        return Ok((StateStore::in_memory(), PathBuf::new()));
    }
    let fresh = directory.new_state()?;
    let state = StateStore::open(&fresh, cache_bytes)?;
    directory.make_current(&fresh)?;
    Ok((state, fresh))
}

/// Opens a state that was found sound, and makes it the current one. `is_sure`: no other one can be newer.
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
        // What opens as an older state may hold more than the storage engine finds: it works on a copy.
        place = directory.new_state()?;
        state::duplicate(&path, &place).map_err(|source| DirectoryError::Io { path: path.clone(), source })?;
    }
    let state = StateStore::open(&place, cache_bytes)?;
    if state.position() != meta.as_ref().map(|meta| meta.position()) {
        let reason = "opened twice, it stands at different positions".into();
        return Err(OpenError::Damaged { path, reason });
    }
    if named != Some(place.as_path()) {
        directory.make_current(&place)?;
        tracing::warn!(state = %place.display(), "`current` names the newest sound state again");
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
                "the state is discarded and will be fetched anew; the outbox is kept, and so is the damaged state"
            ),
            Err(error) => tracing::warn!(%error, "a damaged state cannot be renamed; it stays where it is"),
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
    /// Tries the state that `current` names, the one that the mark names, then the others, newest first, until one came as far
    /// as the mark.
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

    /// Whether the search is over.
    fn examine(&mut self, path: PathBuf, named: Option<&Path>) -> Result<bool, OpenError> {
        let is_named = Some(path.as_path()) == named;
        let place = self.views.of(&path);
        let view = match self.directory.access() {
            Access::Read => StateStore::open_view(&path, &place, self.cache_bytes),
            Access::Serve | Access::Write => StateStore::try_view(&path, &place, self.cache_bytes),
        };
        let checked = view.and_then(|view| check_sound(&view, &path).map(|()| view));
        // The storage engine takes a state whose journal is missing for a new one, and removes its tables.
        let is_marked = |mark: &&Mark| path.file_name().is_some_and(|name| *name == *mark.state);
        let marked = self.mark.filter(is_marked);
        if let (Ok(view), Some(mark)) = (&checked, marked)
            && view.meta().is_none()
        {
            self.damaged.push((path, format!("it holds nothing, and was at sequence {}", mark.seq())));
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
            // One that was being fetched, and never came to its end.
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

/// Reads all of a state. Its digest is kept up to date by what changes, so a row that was lost or is out of date would not
/// show in it, and the datastore would find it equal.
pub(super) fn check_sound(state: &StateStore, path: &Path) -> Result<(), StateError> {
    if state.meta().is_none() {
        return state.loader().map(drop);
    }
    match state.check()?.damage.into_iter().next() {
        None => Ok(()),
        Some(damage) => Err(StateError::Unreadable { dir: path.to_owned(), cause: damage.to_string() }),
    }
}
