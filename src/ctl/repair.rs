//! `repair`: a damaged datastore from a member.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::datastore::DatastoreConfig;
use crate::datastore::open::STATE;
use crate::datastore::repair::{RepairError, RepairOptions, RepairReport, repair};
use crate::env::data_dir::{self, DirectoryError};
use crate::state::StateStore;

use super::args::Repair;
use super::output::Output;
use super::{CtlError, CtlResult};

/// The state is read once, from one end to the other.
const CACHE_BYTES: u64 = 64 << 20;

/// `repair`
pub(super) async fn run(dir: &Path, json: bool, args: Repair) -> CtlResult {
    let path = dir.to_owned();
    let work = move || at(&path, &args);
    let report = tokio::task::spawn_blocking(work).await.map_err(CtlError::new)??;
    print(json, &report)
}

fn at(dir: &Path, args: &Repair) -> Result<RepairReport, CtlError> {
    // Claiming a directory would make one; here both must be what they are said to be.
    role(dir, "datastore", "--data-dir")?;
    let (place, _member) = source(&args.from)?;
    let state =
        StateStore::open(&place, CACHE_BYTES).map_err(|error| CtlError::new(RepairError::Member(error.to_string())))?;
    let options = RepairOptions { dry_run: args.dry_run, accept_loss: args.accept_loss, ..RepairOptions::default() };
    let mut tell = |what: &str| complain!("{what}");
    repair(dir, &DatastoreConfig::for_dir(dir), &state, options, &mut tell).map_err(CtlError::new)
}

/// The state to build on: a member's current one, with a claim to its directory, or a datastore's index.
fn source(from: &Path) -> Result<(PathBuf, Option<std::fs::File>), CtlError> {
    let name = from.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_index = from.is_dir() && (name == STATE || name.starts_with("state.damaged-"));
    let datastore = from.canonicalize().ok().and_then(|from| Some(from.parent()?.to_owned()));
    if is_index && datastore.is_some_and(|dir| role(&dir, "datastore", "--from").is_ok()) {
        return Ok((from.to_owned(), None));
    }
    let claim = claim_member(from)?;
    Ok((state_of(from)?, Some(claim)))
}

/// Holds a member's directory, so that nothing runs on it meanwhile.
pub(super) fn claim_member(from: &Path) -> Result<std::fs::File, CtlError> {
    role(from, "replica", "--from")?;
    data_dir::claim(from, "replica", Duration::ZERO).map_err(|error| match error {
        DirectoryError::InUse { path } => CtlError::new(format!(
            "{} is in use by a running member: stop it for as long as this takes, or give a copy of its directory that \
             was made while it was stopped",
            path.display()
        )),
        other => CtlError::new(other),
    })
}

fn role(dir: &Path, expected: &str, flag: &str) -> CtlResult {
    let found = std::fs::read_to_string(dir.join("role")).unwrap_or_default();
    if found.trim() == expected {
        return Ok(());
    }
    Err(CtlError::new(format!("{} is not a {expected}'s directory: check {flag}", dir.display())))
}

/// The state that a member's directory names as current; nothing in the directory is changed.
pub(super) fn state_of(member: &Path) -> Result<PathBuf, CtlError> {
    let named = std::fs::read_to_string(member.join("current")).unwrap_or_default();
    let name = named.split_whitespace().next().unwrap_or_default();
    let state = member.join(name);
    if name.starts_with("state-") && Path::new(name).components().count() == 1 && state.is_dir() {
        return Ok(state);
    }
    let member = member.display();
    Err(CtlError::new(format!("{member} does not say which state is current: choose another member")))
}

fn print(json: bool, report: &RepairReport) -> CtlResult {
    let mut output = Output::new();
    if json {
        output.json(report)?;
        return output.flush();
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
    output.line(&format!("taken over from the old log: {} records", report.carried))?;
    output.line(&format!("head: {before} -> {}, generation {}", report.head, report.generation))?;
    output.line(&match (report.lost, report.head_before) {
        (Some((first, last)), _) => format!("LOST: sequences {first} to {last}"),
        (None, None) => "lost: unknown; nothing was left of the old log".to_owned(),
        (None, Some(_)) => "lost: nothing".to_owned(),
    })?;
    if let Some(kept) = &report.kept {
        output.line(&format!("the damaged log is kept in {}", kept.display()))?;
    }
    output.line(if report.repaired { "repaired: start the datastore" } else { "dry run: nothing was changed" })?;
    output.flush()
}
