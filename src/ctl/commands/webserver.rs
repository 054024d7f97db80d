//! `webserver`: runs a webserver.

use std::path::PathBuf;

use crate::error::CtlResult;
use crate::process::webserver::{self, WebserverArgs};

/// Run a webserver until interrupted; same as `gravwell_webserver`.
#[derive(Debug, clap::Args)]
pub struct Webserver {
    #[command(flatten)]
    pub webserver: WebserverArgs,
}

/// Runs until a stop signal arrives.
pub(super) async fn run(data_dir: PathBuf, args: Webserver) -> CtlResult {
    let mut arguments = args.webserver;
    arguments.data_dir = Some(data_dir);
    Ok(webserver::run(arguments).await?)
}
