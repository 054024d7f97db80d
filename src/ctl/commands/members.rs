//! `members`: lists the enrolled members.

use std::path::Path;

use gravwell_model::codec::admin::{MemberInfo, Request};
use gravwell_model::codec::json_lines::timestamp;

use crate::client::Client;
use crate::client::output::{Output, or_dash};
use crate::error::CtlResult;

/// List enrolled members and their positions.
///
/// HOLDS FLOOR marks the members that can pin the compaction floor.
#[derive(Debug, clap::Args)]
pub struct Members {}

/// Lists the members.
pub(super) async fn run(dir: &Path, json: bool) -> CtlResult {
    let client = Client::open(dir).await?;
    let rows: Vec<MemberInfo> = client.items(&Request::Members).await?;
    client.close().await;
    let headings = ["NAME", "ROLE", "STATE", "CONNECTED", "APPLIED", "LAG", "HOLDS FLOOR", "LAST SEEN", "EXPIRES"];
    Output::new().list(json, &rows, &headings, |member| {
        vec![
            member.name.clone(),
            member.role.clone(),
            member.state.clone(),
            yes(member.connected),
            or_dash(member.applied),
            or_dash(member.lag_ops),
            yes(member.counts),
            or_dash(member.last_seen_ms.map(timestamp)),
            or_dash(member.expires_ms.map(timestamp)),
        ]
    })
}

fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}
