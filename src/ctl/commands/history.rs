//! `history`: prints the changes of one object.

use std::path::Path;

use gravwell_model::codec::admin::Request;
use gravwell_model::{Collection, Key};

use crate::client::output::Output;
use crate::client::print::print_entry;
use crate::client::{Client, Piece, entries};
use crate::error::CtlResult;

/// Print every change of one object that is still in the log.
#[derive(Debug, clap::Args)]
pub struct History {
    /// Collection of the object.
    pub collection: Collection,
    /// Key of the object.
    pub key: Key,
}

/// Prints the entries that changed the object.
pub(super) async fn run(dir: &Path, json: bool, args: History) -> CtlResult {
    let History { collection, key } = args;
    let client = Client::open(dir).await?;
    let mut output = Output::new();
    let result = client
        .each(&Request::History { collection, key }, |piece| {
            let Piece::Frames(frames) = piece else { return Ok(()) };
            entries(&frames)?.iter().try_for_each(|entry| print_entry(&mut output, json, entry))
        })
        .await;
    output.flush()?;
    client.close().await;
    result
}
