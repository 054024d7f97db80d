//! States of stopped members, from which a log is rebuilt.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gravwell_datastore::repair::RepairError;
use gravwell_env::data_dir::{self, DirectoryError};
use gravwell_env::fs::parent_dir;
use gravwell_env::scratch::Scratch;
use gravwell_replica::directory;
use gravwell_state::StateStore;

use crate::error::{CtlError, CtlResult};

/// Cache size for a state, which is read sequentially and only once.
const CACHE_BYTES: u64 = 64 << 20;

/// State of a member. The member's directory is locked, so that no process runs on it in the meantime, and is
/// not modified.
pub(crate) struct MemberSource {
    pub state: StateStore,
    /// Directory of the member.
    pub home: PathBuf,
    _scratch: Scratch,
    _lock: Option<std::fs::File>,
}

impl MemberSource {
    pub(crate) fn open(path: &Path, home: PathBuf, lock: Option<std::fs::File>) -> Result<MemberSource, CtlError> {
        let scratch = Scratch::new().map_err(CtlError::new)?;
        let state = StateStore::open_view(path, &scratch.path().join("state"), CACHE_BYTES)
            .map_err(|error| CtlError::new(RepairError::Member(error.to_string())))?;
        Ok(MemberSource { state, home, _scratch: scratch, _lock: lock })
    }
}

/// Opens the current state of a member's directory, or the state directory that `from` itself names.
pub(crate) fn open_member(from: &Path) -> Result<MemberSource, CtlError> {
    let is_state = from.file_name().is_some_and(|name| name.to_string_lossy().starts_with("state-"));
    let home = if is_state { parent_dir(from) } else { from };
    role(home, "replica", "--from")?;
    let lock = data_dir::claim_to_read(home, "replica", Duration::ZERO).map_err(|error| match error {
        DirectoryError::InUse { path } => CtlError::new(format!(
            "{} is in use by a running member; stop it during the repair, or pass a copy of its directory made while \
             it was stopped",
            path.display()
        )),
        other => CtlError::new(other),
    })?;
    let path = if is_state { from.to_owned() } else { state_of(home)? };
    MemberSource::open(&path, home.to_owned(), lock)
}

/// Fails if `from` is not a member's directory or has no state, without opening anything.
pub(crate) fn find_member(from: &Path) -> CtlResult {
    let is_state = from.file_name().is_some_and(|name| name.to_string_lossy().starts_with("state-"));
    if is_state {
        return role(parent_dir(from), "replica", "--from");
    }
    role(from, "replica", "--from")?;
    state_of(from).map(drop)
}

/// Fails if `dir`, given with `flag`, has another role than expected.
pub(crate) fn role(dir: &Path, expected: &str, flag: &str) -> CtlResult {
    let found = std::fs::read_to_string(dir.join("role")).unwrap_or_default();
    if found.trim() == expected {
        return Ok(());
    }
    Err(CtlError::new(format!("{} is not a {expected}'s directory; check {flag}", dir.display())))
}

/// Returns the state that a member's directory marks as current or, if none is marked, the only one.
fn state_of(member: &Path) -> Result<PathBuf, CtlError> {
    let (problem, states) = match directory::current_in(member) {
        Ok(state) => return Ok(state),
        Err(problem) => (problem, directory::all_in(member)),
    };
    match states.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(CtlError::new(format!("{} has no state; choose another member", member.display()))),
        several => {
            let names: Vec<String> = several.iter().map(|path| path.display().to_string()).collect();
            let names = names.join(", ");
            Err(CtlError::new(format!(
                "{}: {problem}; choose one of its states with --from: {names}",
                member.display()
            )))
        }
    }
}
