//! The state index at startup: replayed to the head of its log, rebuilt from the log, or kept as evidence of a loss.
//!
//! The index applies an entry only after the log was synced. An index that is ahead of its log, or differs from it,
//! proves that acknowledged entries are lost and may hold their last copy; the datastore does not start then. A
//! replaced index is kept until its successor is in place. It is kept beyond that unless the log is known to contain
//! all of it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gravwell_config::datastore::{DatastoreConfig, Recovery};
use gravwell_env::scratch::Scratch;
use gravwell_log::LogReader;
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::{Chain, Entry, Seq};
use gravwell_state::rebuild::{self, Action, LogView, LossReason};
use gravwell_state::{Remedy, StateError, StateMeta, StateStore};

use super::open::{OpenError, io_error, rebuild_state};

/// Directory of the index within a datastore's directory.
pub const STATE: &str = "state";
/// Directory in which the index is rebuilt.
const SIDE: &str = "state.rebuild";
/// Directory for a read-only view of the index when there is no room for temporary files.
const VIEW: &str = "state.view";
/// Prefix of the directories of discarded indexes, followed by a number. Each may prove a loss, so only an operator
/// deletes them.
const DAMAGED: &str = "state.damaged-";

/// Reason why an index does not match its log.
#[derive(Debug, thiserror::Error)]
pub enum IndexMismatch {
    /// The index must be rebuilt.
    #[error("{0}")]
    Rebuild(String),
    /// The index proves that the log lost entries.
    #[error("{reason}: {positions}")]
    Loss {
        /// The inconsistency that shows the loss.
        reason: LossReason,
        /// Positions of index and log.
        positions: String,
    },
}

fn again(error: impl std::fmt::Display) -> IndexMismatch {
    IndexMismatch::Rebuild(error.to_string())
}

/// Opens the index of the datastore in `path` and replays `log` to its head.
pub(super) fn open(
    path: &Path,
    config: &DatastoreConfig,
    log: &LogReader,
    progress: &mut dyn FnMut(&str),
) -> Result<StateStore, OpenError> {
    let place = path.join(STATE);
    let side = path.join(SIDE);
    for leftover in [&side, &path.join(VIEW)] {
        if leftover.exists() {
            fs::remove_dir_all(leftover).map_err(io_error(leftover))?;
        }
    }
    if !place.exists() && log.head().0 > Seq::ZERO {
        tracing::warn!("no state index found; rebuilding it from the log");
        progress("rebuilding the state index: there is none");
        return build(path, config, log, None, progress);
    }
    if let Some(reason) = examine(path, config, log)? {
        tracing::warn!(reason, "renaming the state index and rebuilding it from the log");
        progress(&format!("rebuilding the state index: {reason}"));
        return build(path, config, log, None, progress);
    }
    let found = StateStore::open(&place, config.cache_bytes);
    let (old, reason) = match found.map(|state| (level(&state, log), state)) {
        Ok((Ok(()), state)) => return Ok(state),
        Ok((Err(loss @ IndexMismatch::Loss { .. }), _)) if config.recovery != Recovery::Off => {
            return Err(OpenError::Loss(loss.to_string()));
        }
        Ok((Err(loss @ IndexMismatch::Loss { .. }), _)) => {
            tracing::error!(%loss, "renaming the state index and giving up the data that only it has, because \
                                    Datastore-Recovery is off");
            (None, loss.to_string())
        }
        Ok((Err(IndexMismatch::Rebuild(reason)), state)) => (Some(state), reason),
        Err(error @ (StateError::Locked { .. } | StateError::Unavailable { .. })) => return Err(error.into()),
        Err(error) => (None, error.to_string()),
    };
    tracing::warn!(reason, "rebuilding the state index from the log");
    progress(&format!("rebuilding the state index: {reason}"));
    build(path, config, log, old, progress)
}

/// Inspects an index before the storage engine changes its files. Returns a reason if the index cannot be read. It must
/// then not be opened in place, because the engine may remove sound data from it.
///
/// # Errors
/// Returns an error if the index proves a loss, or if inspecting it fails for reasons unrelated to its contents.
fn examine(path: &Path, config: &DatastoreConfig, log: &LogReader) -> Result<Option<String>, OpenError> {
    if !path.join(STATE).exists() {
        return Ok(None);
    }
    // Not every host has a usable temporary directory with enough space.
    let in_temporary = view_in(path, Scratch::new(), config);
    let viewed = match in_temporary {
        Err(OpenError::Io { .. } | OpenError::State(StateError::Unavailable { .. })) => {
            view_in(path, Scratch::at(path.join(VIEW)), config)
        }
        viewed => viewed,
    };
    let (view, _scratch) = match viewed {
        Ok(viewed) => viewed,
        Err(OpenError::State(error)) if error.remedy() == Remedy::Rebuild => return Ok(Some(error.to_string())),
        Err(error) => return Err(error),
    };
    match compare(&view, log) {
        Err(loss @ IndexMismatch::Loss { .. }) if config.recovery != Recovery::Off => {
            Err(OpenError::Loss(loss.to_string()))
        }
        _ => Ok(None),
    }
}

/// Opens a view of the index in `path`, and returns it with the directory that holds the view.
fn view_in(
    path: &Path,
    scratch: std::io::Result<Scratch>,
    config: &DatastoreConfig,
) -> Result<(StateStore, Scratch), OpenError> {
    let scratch = scratch.map_err(io_error(path))?;
    let view = StateStore::try_view(&path.join(STATE), &scratch.path().join(STATE), config.cache_bytes)?;
    Ok((view, scratch))
}

/// Opens the index for a read-only command: a view of it, or an index built in `scratch`.
pub(super) fn open_to_read(
    path: &Path,
    scratch: &Path,
    config: &DatastoreConfig,
    log: &LogReader,
    progress: &mut dyn FnMut(&str),
) -> Result<StateStore, OpenError> {
    let place = path.join(STATE);
    if place.exists() {
        let view = StateStore::open_view(&place, &scratch.join(STATE), config.cache_bytes);
        match view.map(|state| (level(&state, log), state)) {
            Ok((Ok(()), state)) => return Ok(state),
            Ok((Err(loss @ IndexMismatch::Loss { .. }), _)) => return Err(OpenError::Loss(loss.to_string())),
            Err(error @ (StateError::Locked { .. } | StateError::Unavailable { .. })) => return Err(error.into()),
            Ok((Err(IndexMismatch::Rebuild(reason)), _)) => {
                tracing::warn!(reason, "state index will be rebuilt at the next start")
            }
            Err(error) => tracing::warn!(%error, "state index will be rebuilt at the next start"),
        }
    }
    rebuild_state(&scratch.join(SIDE), config.cache_bytes, log, log.head().0, progress)
}

/// Builds an index next to the existing one, then replaces it.
fn build(
    path: &Path,
    config: &DatastoreConfig,
    log: &LogReader,
    old: Option<StateStore>,
    progress: &mut dyn FnMut(&str),
) -> Result<StateStore, OpenError> {
    let (place, side) = (path.join(STATE), path.join(SIDE));
    check_space(path, &place)?;
    let built = rebuild_state(&side, config.cache_bytes, log, log.head().0, progress)?;
    let replaced = match &old {
        Some(old) => Replaced::compare(old, &built, log),
        None => Replaced::Unknown,
    };
    drop((old, built));
    if let Replaced::KnowsMore(what) = &replaced
        && config.recovery != Recovery::Off
    {
        fs::remove_dir_all(&side).map_err(io_error(&side))?;
        return Err(OpenError::Loss(what.clone()));
    }
    let aside = if place.exists() { Some(set_aside(path, &place)?) } else { None };
    fs::rename(&side, &place).map_err(io_error(&side))?;
    sync(path)?;
    let state = StateStore::open(&place, config.cache_bytes)?;
    match aside {
        Some(aside) if replaced == Replaced::Covered => fs::remove_dir_all(&aside).map_err(io_error(&aside))?,
        Some(aside) => tracing::warn!(kept = %aside.display(), "kept the previous state index"),
        None => {}
    }
    Ok(state)
}

/// Comparison of a replaced index with its log.
#[derive(Debug, PartialEq, Eq)]
enum Replaced {
    /// The log contains all of it.
    Covered,
    /// It cannot be read well enough to compare.
    Unknown,
    /// It has transactions that the log lacks.
    KnowsMore(String),
}

impl Replaced {
    /// Compares the counters of all origins. Every resolved transaction raises the counter of its origin, and origins
    /// are never deleted. So a history that continues another one has reached all its counters.
    fn compare(old: &StateStore, built: &StateStore, log: &LogReader) -> Replaced {
        let Some(meta) = old.meta() else { return Replaced::Unknown };
        if meta.generation != log.generation() {
            return Replaced::Unknown;
        }
        let Ok(snapshot) = old.snapshot() else { return Replaced::Unknown };
        for row in snapshot.origins() {
            let Ok((origin, row)) = row else { return Replaced::Unknown };
            match built.origin(origin) {
                Ok(Some(here)) if here.last_counter >= row.last_counter => {}
                Ok(_) => {
                    let (seq, counter) = (meta.seq, row.last_counter);
                    let what = "the state's history differs from the log's";
                    return Replaced::KnowsMore(format!(
                        "{what}: the index, at {seq}, has transaction {counter} of origin {origin}, which the log lacks"
                    ));
                }
                Err(_) => return Replaced::Unknown,
            }
        }
        Replaced::Covered
    }
}

/// Checks that there is room for a second index, because a rebuild that fails half-way would leave the disk full.
fn check_space(path: &Path, place: &Path) -> Result<(), OpenError> {
    let needed = bytes_in(place);
    let Ok(free) = super::commit_thread::free_space(path) else { return Ok(()) };
    if free >= needed {
        return Ok(());
    }
    let what = "rebuilding the state index takes about as much space as the existing one";
    Err(OpenError::Rebuild(format!(
        "{what}, {needed} bytes, but only {free} are free; nothing was changed; free some space"
    )))
}

fn bytes_in(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(bytes).sum()
}

fn sync(path: &Path) -> Result<(), OpenError> {
    fs::File::open(path).and_then(|directory| directory.sync_all()).map_err(io_error(path))
}

/// Returns the discarded indexes in a data directory, oldest first.
#[must_use]
pub fn kept(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    let number = |entry: &fs::DirEntry| entry.file_name().to_str()?.strip_prefix(DAMAGED)?.parse::<u64>().ok();
    let mut found: Vec<_> = entries.filter_map(|entry| Some((number(&entry)?, entry.path()))).collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// Renames an index of the datastore in `path`, which no process has open.
fn set_aside(path: &Path, index: &Path) -> Result<PathBuf, OpenError> {
    let newest = kept(path).pop();
    let number = newest.and_then(|path| path.file_name()?.to_str()?.strip_prefix(DAMAGED)?.parse::<u64>().ok());
    let aside = path.join(format!("{DAMAGED}{}", number.unwrap_or(0).saturating_add(1)));
    fs::rename(index, &aside).map_err(io_error(index))?;
    sync(path)?;
    Ok(aside)
}

/// Opens a view of the index of the datastore in `path` without changing its files. Returns `None` for a corrupt index,
/// which proves nothing.
///
/// # Errors
/// Returns an error if the index cannot be read for reasons unrelated to its contents.
pub(super) fn inspect_index(path: &Path, config: &DatastoreConfig) -> Result<Option<View>, OpenError> {
    match view(&path.join(STATE), config) {
        Ok(view) => Ok(view),
        Err(OpenError::State(error)) if error.remedy() == Remedy::Rebuild => Ok(None),
        Err(error) => Err(error),
    }
}

/// A view of an index; the files of the index are not changed.
pub(super) struct View {
    pub state: StateStore,
    pub meta: Arc<StateMeta>,
    _scratch: Scratch,
}

/// Opens a view of an index; `None` if it is empty.
fn view(index: &Path, config: &DatastoreConfig) -> Result<Option<View>, OpenError> {
    let is_empty = match fs::read_dir(index) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == ErrorKind::NotFound => true,
        Err(error) => return Err(io_error(index)(error)),
    };
    if is_empty {
        return Ok(None);
    }
    let scratch = Scratch::new().map_err(io_error(&std::env::temp_dir()))?;
    let state = StateStore::open_view(index, &scratch.path().join(STATE), config.cache_bytes)?;
    Ok(state.meta().map(|meta| View { state, meta, _scratch: scratch }))
}

/// Checks the indexes of a datastore without a log for evidence of a loss: the index in place, an unfinished rebuild,
/// and discarded ones. With `--recovery off` the ones that prove a loss are renamed and kept.
pub(super) fn check_without_log(path: &Path, config: &DatastoreConfig) -> Result<(), OpenError> {
    let place = path.join(STATE);
    let kept = kept(path);
    for index in [place, path.join(SIDE)].iter().chain(&kept) {
        let Some(what) = proves(index, config)? else { continue };
        let (log, shown) = (path.join(super::open::LOG), index.display());
        let loss = format!("{} holds no log, but a state index exists, {shown}: {what}", log.display());
        if config.recovery != Recovery::Off {
            return Err(OpenError::Loss(loss));
        }
        let aside = if kept.contains(index) { index.clone() } else { set_aside(path, index)? };
        tracing::error!(loss, kept = %aside.display(), "abandoned the previous log and started a new one, because \
                                                        Datastore-Recovery is off");
    }
    Ok(())
}

/// Describes the log that an index proves to be missing; `None` if the index has no position. The index is not changed.
fn proves(index: &Path, config: &DatastoreConfig) -> Result<Option<String>, OpenError> {
    match view(index, config) {
        Ok(view) => Ok(view.filter(|view| view.meta.seq > Seq::ZERO).map(|view| stands(&view.meta))),
        Err(OpenError::State(error)) if error.remedy() == Remedy::Rebuild => {
            Ok(Some(format!("the index cannot be read: {error}")))
        }
        Err(error) => Err(error),
    }
}

fn stands(meta: &StateMeta) -> String {
    format!("the index is at {} of log {}, generation {}", meta.seq, meta.log_id, meta.generation)
}

/// Compares the position of an index with its log. Returns the sequence from which the index has to catch up, if any.
fn compare(state: &StateStore, log: &LogReader) -> Result<Option<Seq>, IndexMismatch> {
    let chain_at = |seq| log.chain_at(seq).ok().flatten();
    let (lineage, meta) = (log.lineage(), state.meta());
    let view = LogView {
        log_id: log.log_id(),
        generation: log.generation(),
        lineage: &lineage,
        horizon: log.horizon(),
        head: log.head().0,
        chain_at: &chain_at,
    };
    match rebuild::verify_against(meta.as_deref(), &view) {
        Action::Use => Ok(None),
        Action::CatchUp { from } => Ok(Some(from)),
        Action::Rebuild { reason } => Err(again(reason)),
        Action::Loss { reason } => {
            let index = meta.as_deref().map(stands).unwrap_or_default();
            let log = format!("the log ends at {} of log {}, generation {}", view.head, view.log_id, view.generation);
            Err(IndexMismatch::Loss { reason, positions: format!("{index}, {log}") })
        }
    }
}

/// Replays the log to its head and then verifies the whole index.
///
/// # Errors
/// Returns an error if the index must be rebuilt or proves a loss.
pub fn level(state: &StateStore, log: &LogReader) -> Result<(), IndexMismatch> {
    if state.meta().is_none() && log.head().0 == Seq::ZERO {
        return state.init(log.log_id(), log.generation(), log.lineage()).map_err(again);
    }
    if let Some(from) = compare(state, log)?
        && !fault_injection::is(Bug::SkipCatchUp)
    {
        catch_up(state, log, from)?;
    }
    let report = state.check().map_err(again)?;
    match report.damage.first() {
        Some(damage) => Err(IndexMismatch::Rebuild(format!("it is inconsistent: {damage}"))),
        None => Ok(()),
    }
}

fn catch_up(state: &StateStore, log: &LogReader, from: Seq) -> Result<(), IndexMismatch> {
    let mut batch: Vec<Entry> = Vec::new();
    let mut chain = Chain::default();
    for entry in log.chained_entries(from, log.head().0) {
        let (entry, after) = entry.map_err(again)?;
        chain = after;
        batch.push(entry);
        if batch.len() >= 4096 {
            state.apply(&batch, chain).map_err(again)?;
            batch.clear();
        }
    }
    if batch.is_empty() { Ok(()) } else { state.apply(&batch, chain).map_err(again) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::open::{LOG, log_options};
    use gravwell_env::real_fs::RealFs;
    use gravwell_log::Log;

    /// Creates a directory with an empty log.
    fn new() -> (tempfile::TempDir, DatastoreConfig, Log) {
        let temp = tempfile::tempdir().expect("temp dir");
        let config = DatastoreConfig::for_dir(temp.path());
        let log = Log::open(Arc::new(RealFs), &temp.path().join(LOG), log_options(&config)).expect("opens").0;
        (temp, config, log)
    }

    #[test]
    fn p13_every_index_without_a_log_is_evidence_whatever_its_name() {
        let (temp, config, log) = new();
        let path = temp.path();
        let built = rebuild_state(&path.join(STATE), config.cache_bytes, &log.reader(), Seq::ZERO, &mut |_| {});
        drop(built.expect("builds"));
        assert!(check_without_log(path, &config).is_ok(), "no index");
        for name in [STATE, SIDE, "state.damaged-3"] {
            let index = path.join(name);
            let _ = fs::remove_dir_all(path.join(STATE));
            fs::create_dir(&index).expect("creates");
            fs::write(index.join("0.jnl"), b"no journal").expect("writes");
            let refused = check_without_log(path, &config).expect_err("refuses").to_string();
            assert!(refused.contains(&index.display().to_string()), "{refused}");
            let off = DatastoreConfig { recovery: Recovery::Off, ..config.clone() };
            check_without_log(path, &off).expect("is abandoned");
            let kept = kept(path);
            assert_eq!(kept.len(), 1, "{kept:?}");
            assert!(name.starts_with(DAMAGED) || !index.exists());
            fs::remove_dir_all(&kept[0]).expect("removes");
        }
    }

    #[test]
    fn p13_an_index_that_cannot_be_read_is_kept_as_it_is_and_none_is_pruned() {
        let (temp, config, log) = new();
        let path = temp.path();
        for number in 1..5 {
            let _ = fs::remove_dir_all(path.join(STATE));
            fs::create_dir(path.join(STATE)).expect("creates");
            let names = ["version", "0.jnl", "unknown"];
            names.iter().for_each(|name| fs::write(path.join(STATE).join(name), b"damaged").expect("writes"));
            drop(open(path, &config, &log.reader(), &mut |_| {}).expect("rebuilds"));
            let kept = kept(path);
            assert_eq!(kept.len(), number);
            for name in names {
                assert_eq!(fs::read(kept[number - 1].join(name)).expect("reads"), b"damaged", "{name}");
            }
        }
    }
}
