//! `put` and `delete`: one transaction each.

use std::io::Read;
use std::path::Path;

use bytes::Bytes;

use gravwell_model::codec::admin::{Request, Status};
use gravwell_model::codec::json_lines::parse_value;
use gravwell_model::codec::message::TxnOutcome;
use gravwell_model::{Collection, Condition, Key, Op, Origin, Seq};

use super::args::Put;
use super::client::Client;
use super::output::Output;
use super::{CtlError, CtlResult, transact};

/// Maximum size of a value read from a file.
const VALUE_BYTES_MAX: u64 = gravwell_model::limits::HARD.value_bytes_max as u64;

/// `put`
pub(super) async fn put(dir: &Path, json: bool, put: Put) -> CtlResult {
    let value = match (&put.value, &put.file) {
        (Some(value), _) => parse_value(value).map_err(|error| CtlError {
            message: format!("--value is not JSON: {error}; put strings in double quotes"),
            exit: 2,
        })?,
        (None, Some(file)) => read_value(file)?,
        (None, None) => return Err(CtlError { message: "pass --value or --file".into(), exit: 2 }),
    };
    let (collection, key) = (put.collection, put.key);
    let mut conditions = Vec::new();
    if put.if_absent {
        conditions.push(Condition::Absent { collection: collection.clone(), key: key.clone() });
    }
    if let Some(version) = put.if_version {
        conditions.push(Condition::Version { collection: collection.clone(), key: key.clone(), version });
    }
    submit(dir, json, Op::Put { collection, key, value }, conditions, put.no_wait).await
}

fn read_value(file: &Path) -> Result<Bytes, CtlError> {
    let mut value = Vec::new();
    let named = |error: std::io::Error| CtlError::new(format!("{}: {error}", file.display()));
    if file == Path::new("-") {
        std::io::stdin().take(VALUE_BYTES_MAX + 1).read_to_end(&mut value).map_err(named)?;
    } else {
        let opened = std::fs::File::open(file).map_err(named)?;
        opened.take(VALUE_BYTES_MAX + 1).read_to_end(&mut value).map_err(named)?;
    }
    if value.len() as u64 > VALUE_BYTES_MAX {
        return Err(CtlError::new(format!("{} is larger than {VALUE_BYTES_MAX} bytes", file.display())));
    }
    Ok(value.into())
}

/// `delete`
pub(super) async fn delete(dir: &Path, json: bool, collection: Collection, key: Key, no_wait: bool) -> CtlResult {
    submit(dir, json, Op::Delete { collection, key }, Vec::new(), no_wait).await
}

/// Returns the note of every transaction of this tool: its name and the operator's user name.
pub(super) fn note() -> Bytes {
    let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_default();
    Bytes::from(serde_json::json!({ "by": "gravwell-logctl", "user": user }).to_string())
}

/// Returns a random origin.
pub(super) fn new_origin() -> Result<Origin, CtlError> {
    let mut origin = [0; 16];
    getrandom::fill(&mut origin).map_err(CtlError::new)?;
    Ok(Origin(origin))
}

async fn submit(dir: &Path, json: bool, op: Op, conditions: Vec<Condition>, no_wait: bool) -> CtlResult {
    let client = Client::open(dir).await?;
    let status: Status = client.item(&Request::Status).await?;
    // A disconnected replica would block; its outbox stores the transaction just as safely.
    let wait = !no_wait && (status.role == "datastore" || status.connected);
    let fate = transact::submit(&client, vec![op], conditions, wait).await;
    client.close().await;
    report(json, fate?)
}

pub(super) fn report(json: bool, fate: TxnOutcome) -> CtlResult {
    let mut output = Output::new();
    let done = |output: &mut Output, state: &str, seq: Option<Seq>, text: String| {
        if json { output.json(&serde_json::json!({ "state": state, "seq": seq })) } else { output.line(&text) }
    };
    match fate {
        TxnOutcome::Committed(seq) | TxnOutcome::Decided(seq) => {
            done(&mut output, "committed", Some(seq), format!("committed at sequence {seq}"))?;
        }
        TxnOutcome::Queued => {
            let text = "durable in the outbox; it will be pushed when the datastore can accept it".to_owned();
            done(&mut output, "queued", None, text)?;
        }
        TxnOutcome::Rejected(seq, reason) => {
            if json {
                output.json(&serde_json::json!({ "state": "rejected", "seq": seq, "reason": reason.to_string() }))?;
                output.flush()?;
            }
            return Err(CtlError::new(format!("rejected: {reason}")));
        }
        TxnOutcome::Gap(expected) => return Err(CtlError::new(format!("out of order: expected counter {expected}"))),
        TxnOutcome::Deferred(refused) => return Err(CtlError::new(refused.message)),
    }
    output.flush()
}
