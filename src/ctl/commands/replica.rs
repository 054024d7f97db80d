//! `replica`: runs a replica without a webserver.

use std::path::Path;

use crate::error::CtlResult;
use crate::process::replica::{self, ReplicaArgs};

/// Run a replica without a webserver until interrupted.
#[derive(Debug, clap::Args)]
pub struct Replica {
    #[command(flatten)]
    pub replica: ReplicaArgs,
}

/// Runs until a stop signal arrives.
pub(super) async fn run(dir: &Path, args: Replica) -> CtlResult {
    replica::run(dir, args.replica).await
}
