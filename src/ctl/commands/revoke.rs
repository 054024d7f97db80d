//! `revoke`: revokes a member.

use std::path::Path;

use gravwell_model::MemberName;
use gravwell_model::codec::admin::Request;

use crate::client::Client;
use crate::client::output::Output;
use crate::error::{CtlError, CtlResult};

/// Revoke a member and close its connections.
#[derive(Debug, clap::Args)]
pub struct Revoke {
    /// Name of the member.
    pub name: MemberName,
    /// Also delete the member from the member registry.
    #[arg(long)]
    pub remove: bool,
}

/// Revokes the member; fails if the revocation is not durable yet.
pub(super) async fn run(dir: &Path, json: bool, args: Revoke) -> CtlResult {
    let Revoke { name, remove } = args;
    let client = Client::open(dir).await?;
    let done: Result<serde_json::Value, _> = client.item(&Request::Revoke { name: name.clone(), remove }).await;
    client.close().await;
    let done = done?;
    let mut output = Output::new();
    let state = if remove { "forgotten" } else { "revoked" };
    // A datastore of an earlier version does not report this; it revokes a member only if it can store the revocation.
    let is_durable = done["durable"].as_bool().unwrap_or(true);
    if json {
        output.json(&done)?;
    } else if is_durable {
        output.line(&format!("{name} is {state}"))?;
    }
    output.flush()?;
    if is_durable {
        return Ok(());
    }
    Err(CtlError::new(format!(
        "{name} is {state}: in force for current connections, but not durable yet: {}; free some disk space, and do \
         not restart the datastore until `status` no longer reports this, or the member is accepted again",
        done["why"].as_str().unwrap_or_default()
    )))
}
