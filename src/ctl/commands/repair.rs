//! `repair`: rebuilds the damaged log of a datastore from a member.

use std::path::{Path, PathBuf};

use gravwell_config::datastore::DatastoreConfig;
use gravwell_datastore::open::STATE;
use gravwell_datastore::repair::{RepairOptions, RepairReport, repair};
use gravwell_datastore::service::trust_dir;
use gravwell_env::fs::parent_dir;
use gravwell_env::{Clock, SystemClock};
use gravwell_log::generations;
use gravwell_transport::trust::Registry;

use crate::client::member_source::{MemberSource, open_member, role};
use crate::client::output::Output;
use crate::error::{CtlError, CtlResult};

/// Rebuild the damaged log of a stopped datastore from a stopped member.
///
/// The member's state becomes the base of a new log, and every intact record of the old log that follows it is
/// copied. If no acknowledged transaction is lost, history continues unchanged. If some would be lost, nothing is
/// changed, and the output lists them and the member to use instead. The damaged log is kept next to the new one as
/// log.damaged-N.
#[derive(Debug, clap::Args)]
pub struct Repair {
    /// Data directory of a stopped member, or a copy of one.
    ///
    /// Choose the member that is most advanced.
    #[arg(long, value_name = "MEMBER_DIR")]
    pub from: PathBuf,
    /// Print the plan without changing anything.
    #[arg(long)]
    pub dry_run: bool,
    /// Continue in a new generation although acknowledged transactions are lost.
    ///
    /// Members that hold the lost transactions report it.
    #[arg(long)]
    pub accept_loss: bool,
}

/// Repairs the log and prints what was done.
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
