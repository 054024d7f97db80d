//! `delete`: deletes one object.

use std::path::Path;

use gravwell_model::{Collection, Key, Op};

use crate::client::transact::submit_one;
use crate::error::CtlResult;

/// Delete one object; deleting an object that does not exist is not an error.
#[derive(Debug, clap::Args)]
pub struct Delete {
    /// Collection of the object.
    pub collection: Collection,
    /// Key of the object.
    pub key: Key,
    /// Return once the change is durable locally, without waiting for the datastore.
    #[arg(long)]
    pub no_wait: bool,
}

/// Deletes the object.
pub(super) async fn run(dir: &Path, json: bool, args: Delete) -> CtlResult {
    let Delete { collection, key, no_wait } = args;
    submit_one(dir, json, Op::Delete { collection, key }, Vec::new(), no_wait).await
}
