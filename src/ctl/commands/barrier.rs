//! `barrier`: waits for a sequence, or for the outbox.

use std::path::Path;

use gravwell_model::Seq;
use gravwell_model::codec::admin::{Request, Status};

use crate::client::Client;
use crate::client::parse::seq;
use crate::client::print::print_status;
use crate::error::CtlResult;

/// Wait until a sequence is applied or, without one, until the outbox is empty.
#[derive(Debug, clap::Args)]
pub struct Barrier {
    /// Sequence to wait for.
    #[arg(value_parser = seq)]
    pub seq: Option<Seq>,
    /// Give up after this many seconds.
    #[arg(long, default_value_t = 60, value_name = "S")]
    pub timeout: u64,
}

/// Waits, then prints the status.
pub(super) async fn run(dir: &Path, json: bool, args: Barrier) -> CtlResult {
    let Barrier { seq, timeout } = args;
    let client = Client::open(dir).await?;
    // Without a process there is no progress, so there is nothing to wait for.
    let timeout_ms = if client.is_running() { timeout.saturating_mul(1000) } else { 0 };
    let status: Result<Status, _> = client.item(&Request::Barrier { seq, timeout_ms }).await;
    let status = status.map(|status| client.as_seen(status));
    client.close().await;
    print_status(json, &status?)
}
