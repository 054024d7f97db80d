//! Client side of a chunk stream.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use crate::wire::{self, WireError};
use gravwell_chunks::{ChunkError, ChunkStore};
use gravwell_model::ChunkId;
use gravwell_model::codec::chunks::{
    BODY_BYTES_MAX, ChunkData, ChunkRequest, MissingChunks, MissingQuery, RequestedChunk, StoredChunks, decode_chunk,
};
use gravwell_model::codec::message::{self, BadMessage, Kind, Refused};

use super::RateLimiter;
use super::resolve;
use super::serve::{Arrived, blocking};

/// Timeout for a message. It exceeds the time that a message takes at the lowest bandwidth limit.
const PATIENCE: Duration = Duration::from_secs(30);
/// Priority among the streams of a connection, lower than that of operations.
const PRIORITY: i32 = -2;

/// Error that ended a transfer. Chunks that arrived before are kept.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The stream failed, or the other side rejected a request.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] ChunkError),
    /// No message arrived in time.
    #[error("nothing was received for {} s", PATIENCE.as_secs())]
    Silent,
    /// No peer is reachable.
    #[error("{0}")]
    Away(String),
}

/// An open chunk stream.
pub struct ChunkStream {
    send: quinn::SendStream,
    receive: quinn::RecvStream,
    store: ChunkStore,
    limiter: RateLimiter,
    /// Guard that must live as long as the stream.
    _kept: Box<dyn std::any::Any + Send>,
}

impl ChunkStream {
    /// Uses a stream after its opening message was written. `kept` is dropped with the stream.
    pub fn new(
        send: quinn::SendStream,
        receive: quinn::RecvStream,
        store: ChunkStore,
        limiter: RateLimiter,
        kept: impl Send + 'static,
    ) -> ChunkStream {
        let _ = send.set_priority(PRIORITY);
        ChunkStream { send, receive, store, limiter, _kept: Box::new(kept) }
    }

    async fn hear(&mut self) -> Result<(Kind, Bytes), TransferError> {
        let read = timeout(PATIENCE, wire::read_at_most(&mut self.receive, BODY_BYTES_MAX)).await;
        let (kind, body) = read.map_err(|_| TransferError::Silent)??.ok_or(WireError::Closed)?;
        if kind == Kind::Refused {
            let refused: Refused = message::decode(kind, &body).map_err(WireError::from)?;
            return Err(WireError::from(refused).into());
        }
        Ok((kind, body))
    }

    /// Returns the chunks that the other side is missing.
    ///
    /// # Errors
    /// If the stream breaks.
    pub async fn ask(&mut self, ids: &[ChunkId], are_indexes: bool) -> Result<MissingChunks, TransferError> {
        let asked = MissingQuery { ids: ids.to_vec(), are_indexes };
        wire::send(&mut self.send, Kind::ChunksQuery, &asked).await?;
        match self.hear().await? {
            (kind @ Kind::ChunksMissing, body) => Ok(message::decode(kind, &body).map_err(WireError::from)?),
            (found, _) => Err(unexpected("ChunksMissing", found)),
        }
    }

    /// Sends chunks and waits until the other side has stored them durably. Returns the chunks that the local store does
    /// not have.
    ///
    /// # Errors
    /// If the stream breaks, the other side cannot store them, or the local store fails.
    pub async fn send(&mut self, chunks: Vec<RequestedChunk>) -> Result<Vec<ChunkId>, TransferError> {
        let mut lost = Vec::new();
        self.send_each(chunks, &mut lost).await?;
        let refused = self.settle().await?;
        if !refused.is_empty() {
            let whole = refused.into_iter().map(|id| RequestedChunk { id, bases: Vec::new() }).collect();
            self.send_each(whole, &mut lost).await?;
            self.settle().await?;
        }
        Ok(lost)
    }

    async fn send_each(&mut self, chunks: Vec<RequestedChunk>, lost: &mut Vec<ChunkId>) -> Result<(), TransferError> {
        for RequestedChunk { id, bases } in chunks {
            let store = self.store.clone();
            match blocking(move || resolve::outgoing(&store, id, &bases)).await?? {
                Some(sent) => self.send_one(&sent).await?,
                None => lost.push(id),
            }
        }
        Ok(())
    }

    async fn send_one(&mut self, sent: &ChunkData) -> Result<(), TransferError> {
        let mut message = resolve::released(sent, &self.limiter).await;
        let written = timeout(PATIENCE, self.send.write_all_chunks(&mut message)).await;
        match written {
            Ok(Ok(())) => Ok(()),
            // The other side sent the reason before it stopped reading.
            Ok(Err(quinn::WriteError::Stopped(_))) => Err(self.hear().await.err().unwrap_or(TransferError::Silent)),
            Ok(Err(error)) => Err(WireError::from(std::io::Error::from(error)).into()),
            Err(_) => Err(TransferError::Silent),
        }
    }

    async fn settle(&mut self) -> Result<Vec<ChunkId>, TransferError> {
        wire::send(&mut self.send, Kind::ChunksSent, &()).await?;
        match self.hear().await? {
            (kind @ Kind::ChunksStored, body) => {
                let StoredChunks { refused } = message::decode(kind, &body).map_err(WireError::from)?;
                Ok(refused)
            }
            (found, _) => Err(unexpected("ChunksStored", found)),
        }
    }

    /// Fetches chunks and stores them; they are durable after the store's next sync. Returns the chunks that the other
    /// side does not have.
    ///
    /// # Errors
    /// If the stream breaks, a chunk does not match its id, or the local store fails.
    pub async fn fetch(&mut self, chunks: Vec<RequestedChunk>, is_urgent: bool) -> Result<Vec<ChunkId>, TransferError> {
        let mut absent = Vec::new();
        let unresolved = self.fetch_each(chunks, is_urgent, &mut absent).await?;
        if !unresolved.is_empty() {
            let whole = unresolved.into_iter().map(|id| RequestedChunk { id, bases: Vec::new() }).collect();
            self.fetch_each(whole, is_urgent, &mut absent).await?;
        }
        Ok(absent)
    }

    async fn fetch_each(
        &mut self,
        chunks: Vec<RequestedChunk>,
        is_urgent: bool,
        absent: &mut Vec<ChunkId>,
    ) -> Result<Vec<ChunkId>, TransferError> {
        let ids: Vec<ChunkId> = chunks.iter().map(|want| want.id).collect();
        wire::send(&mut self.send, Kind::ChunksRequest, &ChunkRequest { is_urgent, chunks }).await?;
        let mut arrived = Arrived::default();
        let heard = self.receive_each(ids, absent, &mut arrived).await;
        // Chunks that arrived before the stream broke need not be sent again.
        arrived.keep(&self.store).await?;
        heard.map(|()| arrived.unresolved)
    }

    async fn receive_each(
        &mut self,
        ids: Vec<ChunkId>,
        absent: &mut Vec<ChunkId>,
        arrived: &mut Arrived,
    ) -> Result<(), TransferError> {
        for id in ids {
            match self.hear().await? {
                (Kind::Chunk, body) => {
                    let sent = decode_chunk(&body).map_err(WireError::from)?;
                    if sent.id != id {
                        let reason = format!("received chunk {} instead of {id}", sent.id);
                        return Err(WireError::from(BadMessage::Body { kind: Kind::Chunk, reason }).into());
                    }
                    arrived.take(sent, &self.store).await?;
                }
                (Kind::ChunkAbsent, _) => absent.push(id),
                (found, _) => return Err(unexpected("Chunk or ChunkAbsent", found)),
            }
        }
        Ok(())
    }
}

fn unexpected(expected: &'static str, found: Kind) -> TransferError {
    WireError::from(BadMessage::Unexpected { expected, found }).into()
}
