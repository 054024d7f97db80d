//! Submits single transactions of this tool and reports their outcomes.

use std::path::Path;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;

use gravwell_model::codec::admin::{Request, Status};
use gravwell_model::codec::message::{self, Kind, TxnOutcome};
use gravwell_model::codec::txn::encode_txn;
use gravwell_model::{Condition, Op, Origin, OriginCounter, Seq, Txn, TxnId};

use crate::client::Client;
use crate::client::output::Output;
use crate::error::{CtlError, CtlResult};

/// Returns the note of every transaction of this tool: its name and the operator's user name.
pub(crate) fn note() -> Bytes {
    let user = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_default();
    Bytes::from(serde_json::json!({ "by": "gravwell-logctl", "user": user }).to_string())
}

/// Returns a random origin.
pub(crate) fn new_origin() -> Result<Origin, CtlError> {
    let mut origin = [0; 16];
    getrandom::fill(&mut origin).map_err(CtlError::new)?;
    Ok(Origin(origin))
}

/// Submits operations with conditions; waits for the outcome if `wait` is true.
pub(crate) async fn submit(
    client: &Client,
    ops: Vec<Op>,
    conditions: Vec<Condition>,
    wait: bool,
) -> Result<TxnOutcome, CtlError> {
    // The process that receives the transaction assigns its id: an origin per command would stay in
    // the log permanently.
    let id = TxnId { origin: Origin::default(), counter: OriginCounter(1) };
    let txn = Txn { id, settled: OriginCounter(0), time_ms: 0, note: note(), conditions, ops };
    let mut call = client.call(&Request::Submit { wait }).await?;
    let mut body = Vec::new();
    encode_txn(&txn, &mut body);
    call.write.write_all(&message::encode_raw(Kind::Push, &body)).await.map_err(CtlError::new)?;
    let outcome = call.outcome().await?;
    call.write.shutdown().await.map_err(CtlError::new)?;
    Ok(outcome.fate)
}

/// Submits one operation on a directory and reports its outcome.
pub(crate) async fn submit_one(dir: &Path, json: bool, op: Op, conditions: Vec<Condition>, no_wait: bool) -> CtlResult {
    let client = Client::open(dir).await?;
    let status: Status = client.item(&Request::Status).await?;
    // A disconnected replica would block; its outbox stores the transaction just as safely.
    let wait = !no_wait && (status.role == "datastore" || status.connected);
    let fate = submit(&client, vec![op], conditions, wait).await;
    client.close().await;
    report(json, fate?)
}

/// Prints the outcome of a transaction; a rejection is an error.
pub(crate) fn report(json: bool, fate: TxnOutcome) -> CtlResult {
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
