//! `datastore`: runs a datastore.

use std::path::PathBuf;

use crate::error::CtlResult;
use crate::process::datastore::{self, DatastoreArgs};

/// Run a datastore until interrupted; same as `gravwell_datastore`.
#[derive(Debug, clap::Args)]
pub struct Datastore {
    #[command(flatten)]
    pub datastore: DatastoreArgs,
}

/// Runs until a stop signal arrives.
pub(super) async fn run(data_dir: PathBuf, args: Datastore) -> CtlResult {
    let mut arguments = args.datastore;
    arguments.data_dir = Some(data_dir);
    Ok(datastore::run(arguments).await?)
}
