//! `ls`: lists objects.

use std::path::Path;

use gravwell_model::Collection;
use gravwell_model::codec::admin::Request;
use gravwell_model::codec::message::Row;

use crate::client::output::{Output, size};
use crate::client::print::object_json;
use crate::client::{Client, Piece};
use crate::error::CtlResult;

/// List the objects of a collection in key order.
#[derive(Debug, clap::Args)]
pub struct Ls {
    /// Collection to list.
    pub collection: Collection,
    /// List only keys with this prefix.
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub prefix: String,
    /// Print at most this many objects.
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
}

/// Lists the objects in key order.
pub(super) async fn run(dir: &Path, json: bool, args: Ls) -> CtlResult {
    let Ls { collection, prefix, limit } = args;
    let client = Client::open(dir).await?;
    let mut output = Output::new();
    let result = client
        .each(&Request::List { collection, prefix, limit }, |piece| {
            let Piece::Rows(rows) = piece else { return Ok(()) };
            for row in &rows {
                match (json, row) {
                    (true, row) => object_json(row)?.map_or(Ok(()), |line| output.raw_line(&line))?,
                    (false, Row::Object { key, version, value, .. }) => {
                        output.line(&format!("{key}  (version {version}, {})", size(value.len() as u64)))?;
                    }
                    _ => {}
                }
            }
            Ok(())
        })
        .await;
    let shown = client.check_shown().await;
    client.close().await;
    result?;
    output.flush()?;
    shown
}
