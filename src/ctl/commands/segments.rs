//! `segments`: lists the files of the log.

use std::path::Path;

use gravwell_model::codec::admin::{Request, SegmentInfo};

use crate::client::Client;
use crate::client::output::{Output, size};
use crate::error::CtlResult;

/// List the segment files of the log.
#[derive(Debug, clap::Args)]
pub struct Segments {}

/// Lists the segments.
pub(super) async fn run(dir: &Path, json: bool) -> CtlResult {
    let client = Client::open(dir).await?;
    let rows: Vec<SegmentInfo> = client.items(&Request::Segments).await?;
    client.close().await;
    Output::new().list(json, &rows, &["FILE", "FIRST", "LAST", "SIZE", "STATE"], |row| {
        vec![row.file.clone(), row.first.to_string(), row.last.to_string(), size(row.bytes), row.state.clone()]
    })
}
