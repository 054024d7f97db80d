//! `export`: prints the whole state.

use std::path::Path;

use gravwell_model::Seq;
use gravwell_model::codec::admin::Request;
use gravwell_model::codec::json_lines::object_line;
use gravwell_model::codec::message::Row;
use gravwell_objects::kinds;

use crate::client::output::Output;
use crate::client::parse::seq;
use crate::client::{Client, Piece};
use crate::error::CtlResult;

/// Print the whole state as sorted JSON lines.
///
/// The output is byte-identical on every member at the same sequence.
#[derive(Debug, clap::Args)]
pub struct Export {
    /// Print the state at this sequence instead of the current one (datastore only).
    #[arg(long, value_name = "SEQ", value_parser = seq)]
    pub at: Option<Seq>,
    /// Include secrets of webservers: password and token hashes, logins.
    #[arg(long)]
    pub with_secrets: bool,
}

/// Prints the objects in key order; always as JSON lines.
pub(super) async fn run(dir: &Path, args: Export) -> CtlResult {
    let Export { at, with_secrets } = args;
    let client = Client::open(dir).await?;
    let mut output = Output::new();
    let result = client
        .each(&Request::Export { at, is_check: false }, |piece| {
            let Piece::Rows(rows) = piece else { return Ok(()) };
            for row in &rows {
                if let Row::Object { collection, key, value, .. } = row
                    && (with_secrets || !kinds::is_secret(collection.as_str()))
                {
                    output.raw_line(&object_line(collection, key, value))?;
                }
            }
            Ok(())
        })
        .await;
    output.flush()?;
    let shown = client.check_shown().await;
    client.close().await;
    result.and(shown)
}
