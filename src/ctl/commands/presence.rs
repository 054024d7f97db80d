//! `presence`: lists the connected members.

use std::path::Path;

use gravwell_model::codec::admin::{PresenceInfo, Request};
use gravwell_model::codec::json_lines::timestamp;

use crate::client::Client;
use crate::client::output::{Output, or_dash};
use crate::error::{CtlError, CtlResult};

/// List connected members with their External-Addr and applied sequence.
#[derive(Debug, clap::Args)]
pub struct Presence {}

/// Lists the connected members; fails if no process runs on the directory.
pub(super) async fn run(dir: &Path, json: bool) -> CtlResult {
    let client = Client::open(dir).await?;
    if !client.is_running() {
        client.close().await;
        let dir = dir.display();
        return Err(CtlError::new(format!(
            "no process runs on {dir}, so no member is connected; start it and run again"
        )));
    }
    let rows: Vec<PresenceInfo> = client.items(&Request::Presence).await?;
    client.close().await;
    let headings = ["NAME", "ROLE", "ADDRESS", "EXTERNAL", "APPLIED", "OUTBOX", "REJECTED", "SINCE", "HEALTH"];
    Output::new().list(json, &rows, &headings, |presence| {
        vec![
            presence.name.clone(),
            presence.role.clone(),
            presence.address.clone(),
            or_dash(presence.external_addr.clone()),
            presence.applied.to_string(),
            presence.outbox.to_string(),
            presence.rejected.to_string(),
            timestamp(presence.since_ms),
            presence.unhealthy.clone().unwrap_or_else(|| "good".into()),
        ]
    })
}
