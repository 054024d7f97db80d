//! States that were kept aside: how many are kept, and which are never removed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gravwell_env::data_dir::{DirectoryError, io_error};
use gravwell_model::LogId;
use gravwell_state::{self as state, Remedy, StateError, StateMeta, StateStore};

use super::directory::{Directory, damaged_in};
use super::high_water_mark::Mark;
use super::opening::check_sound;

/// Copies kept while the current state has everything.
pub(super) const KEPT: usize = 2;
/// Copies kept while the current state may lack something.
pub(super) const KEPT_IN_DOUBT: usize = 8;
/// Memory for reading a copy, in bytes.
const CACHE_BYTES: u64 = 4 << 20;

/// Removes states that were kept aside, except the newest `most` and, among the others, the sound copy of each log that
/// came furthest, unless the state at `sound` has everything in it.
///
/// # Errors
/// If the operating system returns an error.
pub(super) fn prune(directory: &Directory, most: usize, sound: Option<&StateMeta>) -> Result<(), DirectoryError> {
    let mut copies = damaged_in(directory.path());
    if copies.len() <= most {
        return Ok(());
    }
    copies.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    let views = directory.views()?;
    let mut removable = Vec::new();
    let mut furthest: BTreeMap<LogId, (Arc<StateMeta>, PathBuf)> = BTreeMap::new();
    for (_, path) in copies.split_off(most) {
        match verified(&path, &views.of(&path)) {
            Err(error) => tracing::warn!(%error, copy = %path.display(), "failed to read archived state; keeping it"),
            Ok(None) => removable.push(path),
            Ok(Some(meta)) if sound.is_some_and(|sound| has_all_of(sound, &meta)) => removable.push(path),
            Ok(Some(meta)) => {
                let came = (meta.generation, meta.seq);
                let held = furthest.get(&meta.log_id).map(|(held, _)| (held.generation, held.seq));
                if held.is_some_and(|held| held >= came) {
                    removable.push(path);
                } else {
                    let former = furthest.insert(meta.log_id, (meta, path));
                    removable.extend(former.map(|(_, path)| path));
                }
            }
        }
    }
    for (meta, copy) in furthest.values() {
        let copy = copy.display();
        tracing::warn!(seq = %meta.seq, %copy, "keeping an archived state because the current one lacks a part of it");
    }
    removable.into_iter().try_for_each(|path| fs::remove_dir_all(&path).map_err(io_error(&path)))
}

fn has_all_of(sound: &StateMeta, copy: &StateMeta) -> bool {
    Mark::new(String::new(), copy.position(), Vec::new()).loss(Some(sound)).is_none()
}

/// Returns the metadata of a state that was kept aside; `None` if it is not sound.
///
/// # Errors
/// If this cannot be determined now.
fn verified(path: &Path, view: &Path) -> Result<Option<Arc<StateMeta>>, StateError> {
    // A copy that has aborted a process is not opened again: nothing depends on it.
    if state::is_suspect(path) {
        return Ok(None);
    }
    let opened = StateStore::try_view(path, view, CACHE_BYTES);
    match opened.and_then(|state| check_sound(&state, path).map(|()| state.meta())) {
        Err(error) if error.remedy() == Remedy::Rebuild => Ok(None),
        other => other,
    }
}
