//! `status`: shows position, lag, outbox and health.

use std::path::Path;

use crate::client::Client;
use crate::client::print::print_status;
use crate::error::{CtlError, CtlResult};

/// Show replication position, lag, outbox and health.
///
/// Exits with 1 if something needs attention, and prints the remedy. Exits with 3 if the history has diverged.
#[derive(Debug, clap::Args)]
pub struct Status {}

/// Prints the status; the exit code follows from the health.
pub(super) async fn run(dir: &Path, json: bool) -> CtlResult {
    let client = Client::open(dir).await?;
    let status = client.status().await?;
    client.close().await;
    print_status(json, &status)?;
    match status.health.exit() {
        0 => Ok(()),
        exit => Err(CtlError { message: status.health.summary(), exit }),
    }
}
