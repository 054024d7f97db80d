//! `revert`: restores one object to its value at an earlier sequence.

use std::path::Path;

use gravwell_model::codec::message::Row;
use gravwell_model::{Collection, Condition, Key, Op, Seq};

use super::client::Client;
use super::output::Output;
use super::{CtlResult, transact, write};

/// `revert`
pub(super) async fn run(dir: &Path, json: bool, collection: Collection, key: Key, to: Seq, dry_run: bool) -> CtlResult {
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
    let fate = transact::submit(&client, vec![op], vec![condition], true).await;
    client.close().await;
    write::report(json, fate?)
}

fn parts(row: Row) -> (Seq, bytes::Bytes) {
    match row {
        Row::Object { version, value, .. } => (version, value),
        Row::Origin { .. } | Row::Maker { .. } | Row::Withheld { .. } => (Seq::ZERO, bytes::Bytes::new()),
    }
}
