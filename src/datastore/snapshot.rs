//! Serving the whole state, as of one instant, to a member that cannot be served a tail.

use tokio::sync::mpsc;

use crate::codec::message::{self, Kind, Row, SnapshotBegin, SnapshotEnd};
use crate::model::OriginRow;
use crate::planted::{self, Bug};
use crate::state::{StateError, StateMeta, StateSnapshot};
use crate::transport::wire::{self, WireError};

use super::shared::SharedRef;

/// Rows are sent in messages of about this size.
const BATCH_BYTES: usize = 256 << 10;
/// Bytes of a row besides what it holds, roughly.
const ROW_BYTES: usize = 64;
/// Messages that may wait for the network.
const BATCHES_WAITING: usize = 4;

/// Sends a snapshot; waits in line while too many others are being sent.
pub(super) async fn serve(shared: &SharedRef, send: &mut quinn::SendStream) -> Result<(), WireError> {
    let _permit = shared.snapshots.acquire().await.map_err(std::io::Error::other)?;
    // Nobody is given a state older than what was shown before: who fetches one may hold everything up to the head.
    super::commit::wait_applied(shared, shared.head()).await;
    let snapshot = shared.state.snapshot().map_err(std::io::Error::other)?;
    let meta = snapshot.meta().cloned().ok_or_else(|| std::io::Error::other("the state has no position"))?;
    let begin = begin(&meta);
    wire::send(send, Kind::SnapshotBegin, &begin).await?;
    let (batches, mut ready) = mpsc::channel::<(u64, Vec<u8>)>(BATCHES_WAITING);
    let reading = tokio::task::spawn_blocking(move || read(&snapshot, &batches));
    let mut rows = 0;
    while let Some((count, batch)) = ready.recv().await {
        rows += count;
        tokio::io::AsyncWriteExt::write_all(send, &batch).await?;
    }
    reading.await.map_err(std::io::Error::other)?.map_err(std::io::Error::other)?;
    wire::send(send, Kind::SnapshotEnd, &end(&meta, rows)).await?;
    send.finish().map_err(std::io::Error::other)?;
    crate::telemetry::metrics::snapshot_served();
    Ok(())
}

fn read(snapshot: &StateSnapshot, batches: &mpsc::Sender<(u64, Vec<u8>)>) -> Result<(), StateError> {
    let mut rows: Vec<Row> = Vec::new();
    let mut bytes = 0;
    let give = |rows: &mut Vec<Row>| {
        let count = rows.len() as u64;
        let sent = batches.blocking_send((count, message::encode(Kind::Rows, rows))).is_ok();
        rows.clear();
        sent
    };
    for row in rows_of(snapshot) {
        let (row, size) = row?;
        rows.push(row);
        bytes += size;
        if bytes >= BATCH_BYTES {
            bytes = 0;
            if !give(&mut rows) {
                return Ok(());
            }
        }
    }
    if !rows.is_empty() {
        give(&mut rows);
    }
    Ok(())
}

/// What a snapshot says of itself first.
#[must_use]
pub fn begin(meta: &StateMeta) -> SnapshotBegin {
    SnapshotBegin {
        position: meta.position(),
        lineage: meta.lineage.clone(),
        time_ms: meta.time_ms,
        objects: meta.digests.collections.values().map(|sum| sum.objects).sum(),
        bytes: meta.digests.collections.values().map(|sum| sum.bytes).sum(),
    }
}

/// What a snapshot says of itself last, so that one that broke off is never taken for a whole one.
#[must_use]
pub fn end(meta: &StateMeta, rows: u64) -> SnapshotEnd {
    SnapshotEnd { rows, digest: meta.digest, chain: meta.chain }
}

/// The rows of a snapshot, each with about its size in bytes.
pub fn rows_of(snapshot: &StateSnapshot) -> impl Iterator<Item = Result<(Row, usize), StateError>> + Send + use<> {
    let objects = snapshot.objects().map(|row| {
        row.map(|(collection, key, object)| {
            let bytes = key.len() + object.value.len() + 64;
            let (version, time_ms, value) = (object.version, object.time_ms, object.value);
            (Row::Object { collection, key, version, time_ms, value }, bytes)
        })
    });
    let origins = snapshot.origins().filter(|_| !planted::is(Bug::SnapshotWithoutOrigins));
    objects.chain(origins.flat_map(|row| match row {
        Ok((origin, row)) => {
            parts_of(row).into_iter().map(|(row, size)| Ok((Row::Origin { origin, row }, size))).collect()
        }
        Err(error) => vec![Err(error)],
    }))
}

/// A row in parts that fit into messages: each has some of the rejections, in their order.
fn parts_of(row: OriginRow) -> Vec<(OriginRow, usize)> {
    let OriginRow { last_counter, last_seq, rejected } = row;
    let empty = || OriginRow { last_counter, last_seq, rejected: Vec::new() };
    let mut parts = vec![(empty(), ROW_BYTES)];
    for rejection in rejected {
        let size = ROW_BYTES + rejection.2.to_string().len();
        if parts.last().is_some_and(|(_, bytes)| bytes + size > BATCH_BYTES) {
            parts.push((empty(), ROW_BYTES));
        }
        if let Some((part, bytes)) = parts.last_mut() {
            part.rejected.push(rejection);
            *bytes += size;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{OriginCounter, Reason, Seq};

    #[test]
    fn a_row_with_many_rejections_goes_in_parts_that_fit() {
        let reason = Reason::LimitExceeded { message: "x".repeat(1000) };
        let rejected: Vec<_> = (1..=2000).map(|n| (OriginCounter(n), Seq(n), reason.clone())).collect();
        let row = OriginRow { last_counter: OriginCounter(3000), last_seq: Seq(9), rejected };
        let parts = parts_of(row.clone());
        assert!(parts.len() > 7, "{}", parts.len());
        assert!(parts.iter().all(|(part, bytes)| *bytes <= BATCH_BYTES && part.last_counter == row.last_counter));
        let joined: Vec<_> = parts.into_iter().flat_map(|(part, _)| part.rejected).collect();
        assert_eq!(joined, row.rejected);
        assert_eq!(parts_of(OriginRow::default()).len(), 1);
    }
}
