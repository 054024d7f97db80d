//! Replacing the state by a verified snapshot: fetched into a side directory, checked against its digest, swapped in
//! atomically. The outbox is untouched: it lies elsewhere, and what the snapshot has decided is settled by it.

use std::path::Path;

use tokio::sync::{mpsc, oneshot};

use crate::codec::message::{self, Kind, Open, Row, SnapshotBegin, SnapshotEnd};
use crate::model::{Origin, OriginRow};
use crate::state::{Loader, Object, StateStore, Target};
use crate::transport::wire::{self, WireError};

use super::applier;
use super::directory;
use super::link::{LinkError, Linker};

/// Pieces that may wait for the disk.
const PIECES_WAITING: usize = 4;

/// A part of a snapshot after its beginning.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Some rows.
    Rows(Vec<Row>),
    /// The end.
    End(SnapshotEnd),
}

/// A snapshot on its way into a new state.
pub struct Loading {
    loader: Loader,
    target: Target,
    rows: u64,
    /// An origin's row whose further parts may follow.
    origin: Option<(Origin, OriginRow)>,
}

impl Loading {
    /// Begins to fill `store`, which is new.
    ///
    /// # Errors
    /// When it is not.
    pub fn begin(store: &StateStore, begin: &SnapshotBegin) -> Result<Loading, String> {
        let loader = store.loader().map_err(|error| error.to_string())?;
        let target = Target {
            log_id: begin.position.log_id,
            generation: begin.position.generation,
            lineage: begin.lineage.clone(),
            seq: begin.position.seq,
            chain: begin.position.chain,
            time_ms: begin.time_ms,
            digest: Some(begin.position.digest),
        };
        Ok(Loading { loader, target, rows: 0, origin: None })
    }

    /// Takes in rows.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn rows(&mut self, rows: Vec<Row>) -> Result<(), String> {
        for row in rows {
            self.rows += 1;
            let result = match row {
                Row::Object { collection, key, version, time_ms, value } => {
                    self.loader.object(&collection, &key, &Object { version, time_ms, value })
                }
                Row::Origin { origin, row } => {
                    self.part(origin, row)?;
                    Ok(())
                }
            };
            result.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// A long row comes in parts, one after another.
    fn part(&mut self, origin: Origin, row: OriginRow) -> Result<(), String> {
        match &mut self.origin {
            Some((open, whole)) if *open == origin => {
                whole.rejected.extend(row.rejected);
                Ok(())
            }
            _ => {
                self.flush_origin()?;
                self.origin = Some((origin, row));
                Ok(())
            }
        }
    }

    fn flush_origin(&mut self) -> Result<(), String> {
        match self.origin.take() {
            Some((origin, row)) => self.loader.origin(origin, &row).map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }

    /// Checks that what came is whole and what it should be.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn finish(mut self, end: &SnapshotEnd) -> Result<StateStore, String> {
        self.flush_origin()?;
        if Some(end.digest) != self.target.digest {
            return Err("the digests at its begin and end differ".into());
        }
        if end.rows != self.rows {
            return Err(format!("{} rows were sent, {} arrived", end.rows, self.rows));
        }
        self.loader.finish(self.target).map_err(|error| error.to_string())
    }
}

/// Fetches a snapshot over `connection` and makes it the replica's state.
pub(super) async fn fetch(linker: &Linker, connection: &quinn::Connection) -> Result<(), LinkError> {
    let side = directory::new_state_in(&linker.directory).map_err(|error| LinkError::Resync(error.to_string()))?;
    let fetched = fetch_into(linker, connection, &side).await;
    if fetched.is_err() && !directory::names(&linker.directory, &side) {
        // What remains of it is removed at the next start at the latest.
        let _ = tokio::fs::remove_dir_all(&side).await;
    }
    fetched
}

async fn fetch_into(linker: &Linker, connection: &quinn::Connection, side: &Path) -> Result<(), LinkError> {
    let (mut send, mut receive) = connection.open_bi().await?;
    wire::send(&mut send, Kind::Open, &Open::Snapshot).await?;
    let begin: SnapshotBegin = wire::expect(&mut receive, Kind::SnapshotBegin).await?;
    let seq = begin.position.seq;
    tracing::info!(%seq, objects = begin.objects, bytes = begin.bytes, "fetching the state");
    let (pieces, incoming) = mpsc::channel::<Piece>(PIECES_WAITING);
    let (path, cache_bytes) = (side.to_owned(), linker.cache_bytes);
    let loading = tokio::task::spawn_blocking(move || load(&path, cache_bytes, &begin, incoming));
    let received = receive_pieces(&mut receive, &pieces).await;
    drop(pieces);
    let loaded = loading.await.map_err(|error| LinkError::Resync(error.to_string()))?;
    received?;
    let state = loaded.map_err(LinkError::Resync)?;
    let (reply, swapped) = oneshot::channel();
    linker.hand_over(applier::Request::Swap(state, side.to_owned(), reply)).await?;
    swapped.await.map_err(|_| LinkError::Closing)?.map_err(LinkError::Resync)?;
    tracing::info!(%seq, "the state was fetched and verified");
    Ok(())
}

/// Passes pieces on until the last one, or until the loader has given up.
async fn receive_pieces(receive: &mut quinn::RecvStream, pieces: &mpsc::Sender<Piece>) -> Result<(), LinkError> {
    loop {
        let (kind, body) = wire::read(receive).await?.ok_or(WireError::Closed)?;
        let piece = match kind {
            Kind::Rows => Piece::Rows(message::decode(kind, &body).map_err(WireError::from)?),
            Kind::SnapshotEnd => Piece::End(message::decode(kind, &body).map_err(WireError::from)?),
            Kind::Refused => {
                let refused: message::Refused = message::decode(kind, &body).map_err(WireError::from)?;
                return Err(refused.into());
            }
            found => {
                let expected = "Rows or SnapshotEnd";
                return Err(WireError::from(message::BadMessage::Unexpected { expected, found }).into());
            }
        };
        let is_last = matches!(piece, Piece::End(_));
        if pieces.send(piece).await.is_err() || is_last {
            return Ok(());
        }
    }
}

fn load(
    path: &Path,
    cache_bytes: u64,
    begin: &SnapshotBegin,
    mut incoming: mpsc::Receiver<Piece>,
) -> Result<StateStore, String> {
    let store = StateStore::open(path, cache_bytes).map_err(|error| error.to_string())?;
    let mut loading = Loading::begin(&store, begin)?;
    while let Some(piece) = incoming.blocking_recv() {
        match piece {
            Piece::Rows(rows) => loading.rows(rows)?,
            Piece::End(end) => return loading.finish(&end),
        }
    }
    Err("it broke off".into())
}
