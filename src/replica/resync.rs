//! Replacing the state by a verified snapshot: fetched into a side directory, checked against its digest, swapped in
//! atomically. The outbox is untouched: it lies elsewhere, and what the snapshot has decided is settled by it.

use tokio::sync::{mpsc, oneshot};

use crate::codec::message::{self, Kind, Open, Row, SnapshotBegin, SnapshotEnd};
use crate::state::{Object, StateStore, Target};
use crate::transport::wire::{self, WireError};

use super::applier;
use super::link::{LinkError, Linker};
use crate::env::data_dir::DirectoryError;

/// Batches of rows that may wait for the disk.
const BATCHES_WAITING: usize = 4;

/// Fetches a snapshot over `connection` and makes it the replica's state.
pub(super) async fn fetch(linker: &Linker, connection: &quinn::Connection) -> Result<(), LinkError> {
    let failed = |error: String| LinkError::Resync(error);
    let (mut send, mut receive) = connection.open_bi().await?;
    wire::send(&mut send, Kind::Open, &Open::Snapshot).await?;
    let begin: SnapshotBegin = wire::expect(&mut receive, Kind::SnapshotBegin).await?;
    tracing::info!(seq = %begin.position.seq, objects = begin.objects, bytes = begin.bytes, "fetching the state");
    let path = new_state(&linker.directory).map_err(|error| failed(error.to_string()))?;
    let (rows, incoming) = mpsc::channel::<Vec<Row>>(BATCHES_WAITING);
    let (side, target, cache_bytes) = (path.clone(), target(&begin), linker.cache_bytes);
    let loading = tokio::task::spawn_blocking(move || load(&side, cache_bytes, target, incoming));
    let end = loop {
        let (kind, body) = wire::read(&mut receive).await?.ok_or(WireError::Closed)?;
        match kind {
            Kind::Rows => {
                let batch = message::decode(kind, &body).map_err(WireError::from)?;
                if rows.send(batch).await.is_err() {
                    break None;
                }
            }
            Kind::SnapshotEnd => break Some(message::decode::<SnapshotEnd>(kind, &body).map_err(WireError::from)?),
            Kind::Refused => {
                let refused: message::Refused = message::decode(kind, &body).map_err(WireError::from)?;
                return Err(refused.into());
            }
            found => {
                let expected = "Rows or SnapshotEnd";
                return Err(WireError::from(message::BadMessage::Unexpected { expected, found }).into());
            }
        }
    };
    if end.is_none_or(|end| end.digest == begin.position.digest) {
        drop(rows);
    } else {
        return Err(failed("the digests at its begin and end differ".into()));
    }
    let state = loading.await.map_err(|error| failed(error.to_string()))?.map_err(failed)?;
    if end.is_none() {
        return Err(failed("it broke off".into()));
    }
    let (reply, swapped) = oneshot::channel();
    linker.hand_over(applier::Request::Swap(state, path, reply)).await?;
    swapped.await.map_err(|_| LinkError::Closing)?.map_err(failed)?;
    tracing::info!(seq = %begin.position.seq, "the state was fetched and verified");
    Ok(())
}

fn new_state(directory: &std::path::Path) -> Result<std::path::PathBuf, DirectoryError> {
    super::directory::new_state_in(directory)
}

fn target(begin: &SnapshotBegin) -> Target {
    Target {
        log_id: begin.position.log_id,
        generation: begin.position.generation,
        lineage: begin.lineage.clone(),
        seq: begin.position.seq,
        chain: begin.position.chain,
        time_ms: begin.time_ms,
        digest: Some(begin.position.digest),
    }
}

fn load(
    path: &std::path::Path,
    cache_bytes: u64,
    target: Target,
    mut incoming: mpsc::Receiver<Vec<Row>>,
) -> Result<StateStore, String> {
    let text = |error: crate::state::StateError| error.to_string();
    let store = StateStore::open(path, cache_bytes).map_err(text)?;
    let mut loader = store.loader().map_err(text)?;
    while let Some(rows) = incoming.blocking_recv() {
        for row in rows {
            match row {
                Row::Object { collection, key, version, time_ms, value } => {
                    loader.object(&collection, &key, &Object { version, time_ms, value }).map_err(text)?;
                }
                Row::Origin { origin, row } => loader.origin(origin, &row).map_err(text)?,
            }
        }
    }
    // A transfer that broke off ends here, too: its rows do not add up.
    loader.finish(target).map_err(text)
}
