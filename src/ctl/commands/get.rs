//! `get`: prints one object.

use std::path::Path;

use gravwell_model::codec::admin::Request;
use gravwell_model::codec::message::Row;
use gravwell_model::{Collection, Key, Seq};

use crate::client::output::Output;
use crate::client::parse::seq;
use crate::client::print::object_json;
use crate::client::{Client, Piece};
use crate::error::{CtlError, CtlResult};

/// Print one object; exit with 1 if it does not exist.
#[derive(Debug, clap::Args)]
pub struct Get {
    /// Collection of the object.
    pub collection: Collection,
    /// Key of the object.
    pub key: Key,
    /// Print the state at this sequence instead of the current one.
    #[arg(long, value_name = "SEQ", value_parser = seq)]
    pub at: Option<Seq>,
}

/// Prints the value as it is stored, or with --json the object.
pub(super) async fn run(dir: &Path, json: bool, args: Get) -> CtlResult {
    let Get { collection, key, at } = args;
    let client = Client::open(dir).await?;
    let mut output = Output::new();
    let mut found = false;
    let request = Request::Get { collection: collection.clone(), key: key.clone(), at };
    let result = client
        .each(&request, |piece| {
            let Piece::Rows(rows) = piece else { return Ok(()) };
            for row in &rows {
                found = true;
                match (json, row) {
                    (true, row) => object_json(row)?.map_or(Ok(()), |line| output.raw_line(&line))?,
                    (false, Row::Object { value, .. }) => {
                        output.bytes(value)?;
                        output.bytes(b"\n")?;
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
    shown?;
    if found { Ok(()) } else { Err(CtlError::new(format!("{collection}/{key} does not exist"))) }
}
