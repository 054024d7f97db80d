//! `quarantine`: archived changes, which a replica had and the log that it rejoined lacks.

mod apply;
mod names;
mod owners;
mod present;

use std::path::{Path, PathBuf};

use clap::Subcommand;

use gravwell_model::codec::json_lines::timestamp;
use gravwell_objects::kinds;
use gravwell_replica::conflict_archive::{Change, Set, files, read};

use crate::client::Client;
use crate::client::deletions::Deletions;
use crate::client::output::{Output, size};
use crate::error::{CtlError, CtlResult};
use apply::{ApplyOptions, apply};
use present::{Present, is_made, objection, present};

/// List and re-apply local changes that a recovered log lacks.
///
/// A replica archives such changes when it rejoins a log that was recovered or restored without them.
#[derive(Debug, clap::Args)]
pub struct Quarantine {
    /// Command to run on the archived changes [default: list].
    #[command(subcommand)]
    pub action: Option<QuarantineAction>,
}

/// Commands of `quarantine`.
#[derive(Debug, Subcommand)]
pub enum QuarantineAction {
    /// List the archive files with a summary of each.
    List,
    /// Print the changes of one file, compared with the current state.
    Show {
        /// Number of the file.
        number: u64,
        /// Include secrets of webservers (only with --json, which prints values).
        #[arg(long)]
        with_secrets: bool,
    },
    /// Write the changes of one file to the log.
    ///
    /// Groups them into their original transactions, and joins those of one user or group. Skips a transaction if one of
    /// its objects was changed or deleted since, if it concerns a user or group whose number is another one's in the
    /// log, if names and their owners would not agree after it, or if it deletes what belongs to a user or group whose
    /// own deletion is skipped.
    Apply {
        /// Number of the file.
        number: u64,
        /// Also apply changes to objects that were or may have been changed since.
        #[arg(long)]
        force: bool,
        /// Also apply changes that grant access.
        ///
        /// These are accounts, passwords, rights, API tokens, and the end of a lock. Without this option, they are
        /// listed and skipped. In any case, those of a user or group that the log does not have, or whose number is
        /// another one's there, are skipped.
        #[arg(long)]
        with_access: bool,
        /// Print the plan without changing anything.
        #[arg(long)]
        dry_run: bool,
    },
    /// Delete one archive file.
    Drop {
        /// Number of the file.
        number: u64,
    },
}

/// Runs the command on the archive of a replica.
pub(super) async fn run(dir: &Path, json: bool, args: Quarantine) -> CtlResult {
    let role = std::fs::read_to_string(dir.join("role")).unwrap_or_default();
    if role.trim() != "replica" {
        let dir = dir.display();
        return Err(CtlError::new(format!("{dir} is not a replica's directory; check --data-dir")));
    }
    match args.action.unwrap_or(QuarantineAction::List) {
        QuarantineAction::List => list(dir, json),
        QuarantineAction::Show { number, with_secrets } => show(dir, json, number, with_secrets).await,
        QuarantineAction::Apply { number, force, with_access, dry_run } => {
            apply(dir, json, number, ApplyOptions { force, with_access, dry_run }).await
        }
        QuarantineAction::Drop { number } => {
            let path = file(dir, number)?;
            std::fs::remove_file(&path).map_err(CtlError::new)?;
            done(json, "dropped", &format!("removed {}", path.display()))
        }
    }
}

fn file(dir: &Path, number: u64) -> Result<PathBuf, CtlError> {
    let name = format!("{number:04}.jsonl");
    let found = files(dir).map_err(CtlError::new)?.into_iter().find(|path| path.ends_with(&name));
    found.ok_or_else(|| CtlError::new(format!("there is no set {number}; run `quarantine list` to list them")))
}

fn load(path: &Path) -> Result<(Set, Vec<Change>), CtlError> {
    read(path).map_err(|message| CtlError { message, exit: 3 })
}

fn done(json: bool, state: &str, text: &str) -> CtlResult {
    let mut output = Output::new();
    if json {
        output.json(&serde_json::json!({ "state": state }))?
    } else {
        output.line(text)?
    }
    output.flush()
}

fn list(dir: &Path, json: bool) -> CtlResult {
    let (mut rows, mut damaged) = (Vec::new(), Vec::new());
    for path in files(dir).map_err(CtlError::new)? {
        let (set, changes) = match load(&path) {
            Ok(loaded) => loaded,
            Err(error) => {
                damaged.push(error.message);
                continue;
            }
        };
        let number: u64 = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok()).unwrap_or_default();
        rows.push(serde_json::json!({
            "number": number, "changes": changes.len(), "shared_to": set.shared_to, "seq": set.seq,
            "generation": set.generation, "left_by": set.left_by, "restore": set.is_restore, "revoked_ms": set.revoked_ms,
            "deletions_after": set.deletions_after, "file": path,
        }));
    }
    let mut output = Output::new();
    output.list(json, &rows, &["NUMBER", "CHANGES", "SHARED TO", "WAS AT", "LEFT BY GENERATION", "FILE"], |row| {
        ["number", "changes", "shared_to", "seq", "left_by", "file"]
            .map(|name| row[name].as_str().map_or_else(|| row[name].to_string(), str::to_owned))
            .into()
    })?;
    output.flush()?;
    if damaged.is_empty() { Ok(()) } else { Err(CtlError { message: damaged.join("; "), exit: 3 }) }
}

async fn show(dir: &Path, json: bool, number: u64, with_secrets: bool) -> CtlResult {
    let (set, changes) = load(&file(dir, number)?)?;
    let client = Client::open(dir).await?;
    let mut deletions = Deletions::default();
    deletions.renew(&client).await?;
    let mut output = Output::new();
    if let Some(known) = set.deletions_after.filter(|_| !json) {
        let from = set.shared_to;
        output.line(&format!(
            "deletions between sequences {from} and {known} are unknown to this member and may be missing here"
        ))?;
    }
    for change in &changes {
        let present = present(&client, change).await?;
        let now = match (&present, objection(&set, change, &present, &deletions, true)) {
            _ if is_made(&set, change, &present, &deletions) => "as here already".to_owned(),
            (_, Some(why)) => why.strip_prefix("was ").unwrap_or(&why).to_owned(),
            (Present { version: None, .. }, _) => "absent".to_owned(),
            _ if change.is_seen => "there again".to_owned(),
            _ => "as it was before".to_owned(),
        };
        if json {
            // Operators paste this output.
            let withheld = !with_secrets && kinds::is_secret(change.collection.as_str());
            let value = change.value.as_ref().filter(|_| !withheld);
            let value = value.map(|value| String::from_utf8_lossy(value).into_owned());
            output.json(&serde_json::json!({
                "seq": change.seq, "time_ms": change.time_ms, "collection": change.collection, "key": change.key,
                "delete": change.value.is_none(), "value": value, "withheld": withheld, "now": now,
            }))?;
        } else {
            let when = change.time_ms.map_or_else(|| "unknown".to_owned(), timestamp);
            let what =
                change.value.as_ref().map_or("delete".to_owned(), |value| format!("put {}", size(value.len() as u64)));
            output.line(&format!("{when}  {}/{}  {what}  now: {now}", change.collection, change.key))?;
        }
    }
    client.close().await;
    output.flush()
}
