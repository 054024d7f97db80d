//! `revert`: restores one object to its value at an earlier sequence.

use std::path::Path;

use gravwell_model::codec::message::Row;
use gravwell_model::{Collection, Condition, Key, Op, Seq};

use crate::client::Client;
use crate::client::output::Output;
use crate::client::parse::seq;
use crate::client::transact::{report, submit};
use crate::error::CtlResult;

/// Restore an object to its value at an earlier sequence.
///
/// Deletes the object if it did not exist then. This is an ordinary transaction, which is rejected if the object is
/// changed concurrently.
#[derive(Debug, clap::Args)]
pub struct Revert {
    /// Collection of the object.
    pub collection: Collection,
    /// Key of the object.
    pub key: Key,
    /// Sequence to go back to.
    #[arg(long, value_name = "SEQ", value_parser = seq)]
    pub to: Seq,
    /// Print the plan without changing anything.
    #[arg(long)]
    pub dry_run: bool,
}

/// Writes the earlier value, or deletes the object.
pub(super) async fn run(dir: &Path, json: bool, args: Revert) -> CtlResult {
    let Revert { collection, key, to, dry_run } = args;
    let client = Client::open(dir).await?;
    let then = client.object(&collection, &key, Some(to)).await?;
    let now = client.object(&collection, &key, None).await?;
    let (then, now) = (then.map(parts), now.map(parts));
    let same = then.as_ref().map(|(_, value)| value) == now.as_ref().map(|(_, value)| value);
    if same || dry_run {
        client.close().await;
        let what = match (same, &then) {
            (true, _) => "nothing to do: the value is the same",
            (false, Some(_)) => "dry run: the earlier value would be written",
            (false, None) => "dry run: it would be deleted, because it did not exist then",
        };
        let mut output = Output::new();
        if json {
            output.json(&serde_json::json!({ "state": if same { "same" } else { "dry_run" } }))?;
        } else {
            output.line(what)?;
        }
        return output.flush();
    }
    let condition = match now {
        Some((version, _)) => Condition::Version { collection: collection.clone(), key: key.clone(), version },
        None => Condition::Absent { collection: collection.clone(), key: key.clone() },
    };
    let op = match then {
        Some((_, value)) => Op::Put { collection, key, value },
        None => Op::Delete { collection, key },
    };
    let fate = submit(&client, vec![op], vec![condition], true).await;
    client.close().await;
    report(json, fate?)
}

fn parts(row: Row) -> (Seq, bytes::Bytes) {
    match row {
        Row::Object { version, value, .. } => (version, value),
        Row::Origin { .. } | Row::Maker { .. } | Row::Withheld { .. } => (Seq::ZERO, bytes::Bytes::new()),
    }
}
