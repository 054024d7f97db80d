//! `repair`: rebuilds the damaged log of a datastore from a member.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gravwell_config::datastore::DatastoreConfig;
use gravwell_datastore::open::STATE;
use gravwell_datastore::repair::{RepairError, RepairOptions, RepairReport, repair};
use gravwell_datastore::service::trust_dir;
use gravwell_env::data_dir::{self, DirectoryError};
use gravwell_env::fs::parent_dir;
use gravwell_env::scratch::Scratch;
use gravwell_env::{Clock, SystemClock};
use gravwell_log::generations;
use gravwell_replica::directory;
use gravwell_state::StateStore;
use gravwell_transport::trust::Registry;

use super::args::Repair;
use super::output::Output;
use super::{CtlError, CtlResult};

/// Cache size for a state, which is read sequentially and only once.
const CACHE_BYTES: u64 = 64 << 20;

/// `repair`
pub(super) async fn run(dir: &Path, json: bool, args: Repair) -> CtlResult {
    let path = dir.to_owned();
    let work = move || at(&path, &args);
    let report = tokio::task::spawn_blocking(work).await.map_err(CtlError::new)??;
    print(dir, json, &report)
}

fn at(dir: &Path, args: &Repair) -> Result<RepairReport, CtlError> {
    // Claiming a directory would create it, so check first that both exist and have the expected roles.
    role(dir, "datastore", "--data-dir")?;
    let member = source(&args.from)?;
    let known = member.state.meta().map(|meta| generations::all(&member.home, meta.log_id)).unwrap_or(Ok(Vec::new()));
    let known = known.unwrap_or_else(|error| {
        complain!("{error}");
        Vec::new()
    });
    let (dry_run, accept_loss) = (args.dry_run, args.accept_loss);
    let options = RepairOptions { dry_run, accept_loss, known: &known, ..RepairOptions::default() };
    let mut tell = |what: &str| complain!("{what}");
    repair(dir, &DatastoreConfig::for_dir(dir), &member.state, options, &mut tell).map_err(CtlError::new)
}

/// Opens the state to build on: the current state of a member, whose directory is claimed, or the index of a datastore.
fn source(from: &Path) -> Result<MemberSource, CtlError> {
    let name = from.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_index = from.is_dir() && (name == STATE || name.starts_with("state.damaged-"));
    let datastore = from.canonicalize().ok().map(|from| parent_dir(&from).to_owned());
    if is_index && datastore.as_ref().is_some_and(|dir| role(dir, "datastore", "--from").is_ok()) {
        return MemberSource::open(from, datastore.unwrap_or_default(), None);
    }
    open_member(from)
}

/// State of a member. The member's directory is locked, so that no process runs on it in the meantime, and is
/// not modified.
pub(super) struct MemberSource {
    pub state: StateStore,
    /// Directory of the member.
    pub home: PathBuf,
    _scratch: Scratch,
    _lock: Option<std::fs::File>,
}

impl MemberSource {
    fn open(path: &Path, home: PathBuf, lock: Option<std::fs::File>) -> Result<MemberSource, CtlError> {
        let scratch = Scratch::new().map_err(CtlError::new)?;
        let state = StateStore::open_view(path, &scratch.path().join("state"), CACHE_BYTES)
            .map_err(|error| CtlError::new(RepairError::Member(error.to_string())))?;
        Ok(MemberSource { state, home, _scratch: scratch, _lock: lock })
    }
}

/// Opens the current state of a member's directory, or the state directory that `from` itself names.
pub(super) fn open_member(from: &Path) -> Result<MemberSource, CtlError> {
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
pub(super) fn find_member(from: &Path) -> CtlResult {
    let is_state = from.file_name().is_some_and(|name| name.to_string_lossy().starts_with("state-"));
    if is_state {
        return role(parent_dir(from), "replica", "--from");
    }
    role(from, "replica", "--from")?;
    state_of(from).map(drop)
}

fn role(dir: &Path, expected: &str, flag: &str) -> CtlResult {
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

fn print(dir: &Path, json: bool, report: &RepairReport) -> CtlResult {
    let mut output = Output::new();
    if json {
        output.json(report)?;
        return output.flush();
    }
    if let Some(register) = &report.register {
        output.line(&format!(
            "REGISTER {register}: the positions of members are unknown; restore it from a CA backup with `authority \
             restore`"
        ))?;
    }
    for finding in &report.damaged {
        output.line(&format!("DAMAGE {}", finding.problem))?;
    }
    if report.damaged.is_empty() {
        output.line(&format!("the log is not damaged; it ends at {}; nothing was changed", report.head))?;
        return output.flush();
    }
    let before = report.head_before.map_or_else(|| "unknown".to_owned(), |head| head.to_string());
    output.line(&format!("base: the member's state at {}, digest {}", report.base, report.digest))?;
    output.line(&format!("copied from the old log: {} records", report.carried))?;
    output.line(&format!("head: {before} -> {}, generation {}", report.head, report.generation))?;
    output.line(&match (report.lost, report.head_before) {
        (Some((first, last)), _) => format!("LOST: sequences {first} to {last}"),
        (None, None) => "lost: unknown; the old log is completely lost".to_owned(),
        (None, Some(_)) => "lost: nothing".to_owned(),
    })?;
    if let Some(kept) = &report.kept {
        output.line(&format!("the damaged log is kept in {}", kept.display()))?;
    }
    // A rebuilt log contains no information about membership.
    if let Ok(register) = Registry::open(&trust_dir(dir), SystemClock.now_ms()) {
        output.line(&format!(
            "members: as in the local member registry of {}; if that is an earlier copy, check `members` and revoke \
             again the members revoked since, or restore a later one with `authority restore`",
            register.mark()
        ))?;
    }
    output.line(if report.repaired { "repaired: start the datastore" } else { "dry run: nothing was changed" })?;
    output.flush()
}
