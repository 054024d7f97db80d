//! `collections`: lists the collections.

use std::path::Path;

use gravwell_model::codec::admin::{CollectionInfo, Request};

use crate::client::Client;
use crate::client::output::{Output, size};
use crate::error::CtlResult;

/// List collections with their number of objects, size and digest.
#[derive(Debug, clap::Args)]
pub struct Collections {}

/// Lists the collections.
pub(super) async fn run(dir: &Path, json: bool) -> CtlResult {
    let client = Client::open(dir).await?;
    let rows: Vec<CollectionInfo> = client.items(&Request::Collections).await?;
    let shown = client.check_shown().await;
    client.close().await;
    Output::new().list(json, &rows, &["COLLECTION", "OBJECTS", "SIZE", "DIGEST"], |row| {
        vec![row.collection.clone(), row.objects.to_string(), size(row.bytes), row.digest.to_string()]
    })?;
    shown
}
