//! Submits a single transaction of this tool and returns its outcome.

use tokio::io::AsyncWriteExt;

use gravwell_model::codec::admin::Request;
use gravwell_model::codec::message::{self, Kind, TxnOutcome};
use gravwell_model::codec::txn::encode_txn;
use gravwell_model::{Condition, Op, Origin, OriginCounter, Txn, TxnId};

use super::CtlError;
use super::client::Client;
use super::write::note;

/// Submits operations with conditions; waits for the outcome if `wait` is true.
pub(super) async fn submit(
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
