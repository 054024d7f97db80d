//! `outbox`: pending and rejected transactions of a replica.

mod reapply;

use std::path::Path;

use clap::Subcommand;
use serde_json::Value;

use gravwell_model::TxnId;
use gravwell_model::codec::admin::{OutboxItem, PendingInfo, RejectedInfo, Request};
use gravwell_model::codec::json_lines::timestamp;
use gravwell_objects::kinds;
use gravwell_replica::outbox_loss;

use crate::client::output::Output;
use crate::client::parse::txn_id;
use crate::client::{Client, failed};
use crate::error::CtlResult;

/// List, retry or dismiss a replica's pending and rejected transactions.
#[derive(Debug, clap::Args)]
pub struct Outbox {
    /// Command to run on the outbox [default: list].
    #[command(subcommand)]
    pub action: Option<OutboxAction>,
    /// Include secrets of webservers, such as password hashes, in the output.
    ///
    /// These are the hashes of passwords and tokens, logins, and the seeds of second factors.
    #[arg(long, global = true)]
    pub with_secrets: bool,
}

/// Commands of `outbox`.
#[derive(Debug, Subcommand)]
pub enum OutboxAction {
    /// List pending and rejected transactions.
    List,
    /// Show the writes of a rejected transaction and the current values.
    Show {
        /// Transaction, as `ORIGIN/COUNTER`.
        #[arg(value_parser = txn_id)]
        id: TxnId,
    },
    /// Submit rejected transactions again, as new ones.
    Retry {
        /// Transaction, as `ORIGIN/COUNTER`.
        #[arg(value_parser = txn_id, required_unless_present = "all")]
        id: Option<TxnId>,
        /// Retry all rejected transactions.
        #[arg(long, conflicts_with = "id")]
        all: bool,
        /// Print the current values and overwrite them.
        ///
        /// Overwrites the changes that caused the rejection, but no later ones. Objects that were deleted are not
        /// re-created.
        #[arg(long, conflicts_with = "all")]
        upon_present: bool,
    },
    /// Start a new journal from the readable part of a damaged or missing one.
    ///
    /// The damaged files are kept next to it.
    AcceptLoss,
    /// Remove rejected transactions from the list.
    Dismiss {
        /// Transaction, as `ORIGIN/COUNTER`.
        #[arg(value_parser = txn_id, required_unless_present = "all")]
        id: Option<TxnId>,
        /// Dismiss all rejected transactions.
        #[arg(long, conflicts_with = "id")]
        all: bool,
    },
}

/// `outbox list|retry|dismiss`
pub(super) async fn run(dir: &Path, json: bool, args: Outbox) -> CtlResult {
    let Outbox { action, with_secrets } = args;
    let request = match action {
        None | Some(OutboxAction::List) => {
            let client = Client::open(dir).await?;
            let rows: Result<Vec<OutboxItem>, _> = client.items(&Request::Outbox).await;
            client.close().await;
            let mut rows = rows?;
            if !with_secrets {
                rows.iter_mut().for_each(withhold);
            }
            return list(json, &rows);
        }
        Some(OutboxAction::AcceptLoss) => return accept_loss(dir, json),
        Some(OutboxAction::Show { id }) => return reapply::show(dir, json, id, with_secrets).await,
        Some(OutboxAction::Retry { id: Some(id), upon_present: true, .. }) => {
            return reapply::retry(dir, json, id, with_secrets).await;
        }
        Some(OutboxAction::Retry { id, .. }) => Request::Retry { id, upon: Vec::new() },
        Some(OutboxAction::Dismiss { id, .. }) => Request::Dismiss { id },
    };
    let client = Client::open(dir).await?;
    let done: Result<Vec<TxnId>, _> = client.items(&request).await;
    client.close().await;
    let done = done?;
    Output::new().list(json, &done, &["TRANSACTION"], |id| vec![name(id)])
}

fn accept_loss(dir: &Path, json: bool) -> CtlResult {
    let accepted = outbox_loss::accept(dir).map_err(failed)?;
    if json {
        return Output::new().json(&serde_json::json!({ "records": accepted.records }));
    }
    let records = accepted.records;
    Output::new().line(&format!("{records} records of the journal were kept; the damaged files are next to it"))
}

fn name(id: &TxnId) -> String {
    format!("{}/{}", id.origin, id.counter)
}

/// Removes secrets of webservers, because operators paste this list.
fn withhold(item: &mut OutboxItem) {
    let (OutboxItem::Pending(PendingInfo { txn, .. }) | OutboxItem::Rejected(RejectedInfo { txn, .. })) = item;
    let ops = txn.get_mut("ops").and_then(Value::as_array_mut);
    for put in ops.into_iter().flatten().filter_map(|op| op.get_mut("put")?.as_object_mut()) {
        let is_secret = put.get("collection").and_then(Value::as_str).is_none_or(kinds::is_secret);
        if is_secret {
            // Keep only the object's name, whatever form the value has.
            put.retain(|name, _| ["collection", "key"].contains(&name.as_str()));
            put.insert("withheld".into(), true.into());
        }
    }
}

fn list(json: bool, rows: &[OutboxItem]) -> CtlResult {
    Output::new().list(json, rows, &["STATE", "TRANSACTION", "MADE", "REASON", "CONTENTS"], |row| match row {
        OutboxItem::Pending(item) => {
            vec!["waiting".into(), name(&item.id), timestamp(item.time_ms), "-".into(), item.txn.to_string()]
        }
        OutboxItem::Rejected(item) => {
            let reason = item.reason.clone();
            vec!["rejected".into(), name(&item.id), timestamp(item.time_ms), reason, item.txn.to_string()]
        }
    })
}
