//! Server side of a chunk stream.

use crate::wire::{self, WireError};
use gravwell_chunks::{ChunkError, ChunkStore};
use gravwell_model::ChunkId;
use gravwell_model::codec::chunks::{
    BASES_MAX, BODY_BYTES_MAX, ChunkData, ChunkRequest, MissingQuery, NAMES_MAX, StoredChunks, WANTED_MAX,
    decode_chunk, encode_absent,
};
use gravwell_model::codec::message::{self, Kind, RefusalCode, Refused};
use gravwell_runtime::tasks::low_priority;
use gravwell_runtime::telemetry::metrics;

use super::RateLimiter;
use super::check::{lacking, missing_without_renewal};
use super::resolve::{self, Arrival};

/// Approximate size in bytes of the batches in which received chunks are written.
const BATCH_BYTES: usize = 1 << 20;
/// Priorities among the streams of a connection: of a stream with urgent requests, and of others.
const PRIORITY_URGENT: i32 = -1;
const PRIORITY: i32 = -2;

/// Serves chunk streams from a store.
#[derive(Clone)]
pub struct Server {
    /// Store to read from and write to.
    pub store: ChunkStore,
    /// Limits the bandwidth of sent chunks.
    pub limiter: RateLimiter,
    /// Whether clients may send chunks.
    pub takes: bool,
    /// Receives the id of every requested chunk that is not in the store.
    pub missed: tokio::sync::mpsc::Sender<ChunkId>,
}

fn refused(code: RefusalCode, message: impl std::fmt::Display) -> WireError {
    Refused { code, message: message.to_string() }.into()
}

/// Converts an error of the store into a refusal for the client.
fn failed(error: &ChunkError) -> WireError {
    let code = match error {
        ChunkError::Full { .. } => RefusalCode::DiskFull,
        ChunkError::Mismatch { .. } | ChunkError::TooLong { .. } => RefusalCode::Protocol,
        _ => RefusalCode::Internal,
    };
    refused(code, error)
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, WireError> {
    Ok(low_priority::handle().spawn_blocking(work).await.map_err(std::io::Error::other)?)
}

impl Server {
    /// Serves a stream until the client finishes it. A returned refusal has been sent already.
    ///
    /// # Errors
    /// If the stream breaks, or a request is refused.
    pub async fn serve(&self, send: &mut quinn::SendStream, receive: &mut quinn::RecvStream) -> Result<(), WireError> {
        let _ = send.set_priority(PRIORITY);
        let result = self.answer(send, receive).await;
        if let Err(WireError::Refused(refused)) = &result {
            wire::send(send, Kind::Refused, refused).await?;
        }
        let _ = send.finish();
        result
    }

    async fn answer(&self, send: &mut quinn::SendStream, receive: &mut quinn::RecvStream) -> Result<(), WireError> {
        let mut arrived = Arrived::default();
        let answered = self.answer_each(send, receive, &mut arrived).await;
        // Chunks that arrived without a final request, or before the stream broke, are kept: they need not be sent again.
        let kept = arrived.keep(&self.store).await;
        answered.and(kept)
    }

    async fn answer_each(
        &self,
        send: &mut quinn::SendStream,
        receive: &mut quinn::RecvStream,
        arrived: &mut Arrived,
    ) -> Result<(), WireError> {
        while let Some((kind, body)) = wire::read_at_most(receive, BODY_BYTES_MAX).await? {
            match kind {
                Kind::ChunksQuery => {
                    let MissingQuery { ids, are_indexes } = message::decode(kind, &body)?;
                    if ids.len() > NAMES_MAX {
                        return Err(refused(RefusalCode::Protocol, format!("at most {NAMES_MAX} names at a time")));
                    }
                    arrived.keep(&self.store).await?;
                    let store = self.store.clone();
                    // A client that may send no chunks also references none in a transaction, so its query must not
                    // extend their grace period.
                    let look = if self.takes { lacking } else { missing_without_renewal };
                    let checked = blocking(move || look(&store, &ids, are_indexes)).await?;
                    wire::send(send, Kind::ChunksMissing, &checked.lacking).await?;
                }
                Kind::ChunksRequest => self.give(message::decode(kind, &body)?, send).await?,
                Kind::Chunk | Kind::ChunksSent if !self.takes => {
                    return Err(refused(RefusalCode::Forbidden, "chunks are not accepted here"));
                }
                Kind::Chunk => arrived.take(decode_chunk(&body)?, &self.store).await?,
                Kind::ChunksSent => {
                    arrived.keep(&self.store).await?;
                    let store = self.store.clone();
                    blocking(move || store.sync()).await?.map_err(|error| failed(&error))?;
                    let refused = std::mem::take(&mut arrived.unresolved);
                    wire::send(send, Kind::ChunksStored, &StoredChunks { refused }).await?;
                }
                found => {
                    let expected = "a request of a chunk stream";
                    return Err(message::BadMessage::Unexpected { expected, found }.into());
                }
            }
        }
        Ok(())
    }

    async fn give(&self, wanted: ChunkRequest, send: &mut quinn::SendStream) -> Result<(), WireError> {
        if wanted.chunks.len() > WANTED_MAX {
            return Err(refused(RefusalCode::Protocol, format!("at most {WANTED_MAX} chunks at a time")));
        }
        // Each base is read before it is compared.
        if wanted.chunks.iter().any(|want| want.bases.len() > BASES_MAX) {
            return Err(refused(RefusalCode::Protocol, format!("at most {BASES_MAX} bases for a chunk")));
        }
        let _ = send.set_priority(if wanted.is_urgent { PRIORITY_URGENT } else { PRIORITY });
        for want in wanted.chunks {
            let (store, id) = (self.store.clone(), want.id);
            let read = blocking(move || resolve::outgoing(&store, id, &want.bases)).await?;
            match read.map_err(|error| failed(&error))? {
                Some(sent) => self.send_chunk(&sent, send).await?,
                None => {
                    let _ = self.missed.try_send(id);
                    send.write_all(&encode_absent(&id)).await.map_err(std::io::Error::from)?;
                }
            }
        }
        Ok(())
    }

    async fn send_chunk(&self, sent: &ChunkData, send: &mut quinn::SendStream) -> Result<(), WireError> {
        let mut message = resolve::released(sent, &self.limiter).await;
        send.write_all_chunks(&mut message).await.map_err(std::io::Error::from)?;
        Ok(())
    }
}

/// Received chunks that are not written yet.
#[derive(Default)]
pub(super) struct Arrived {
    batch: Vec<ChunkData>,
    bytes: usize,
    /// Chunks that must be sent whole.
    pub(super) unresolved: Vec<ChunkId>,
}

impl Arrived {
    pub(super) async fn take(&mut self, sent: ChunkData, store: &ChunkStore) -> Result<(), WireError> {
        self.bytes += sent.bytes.len();
        self.batch.push(sent);
        if self.bytes < BATCH_BYTES { Ok(()) } else { self.keep(store).await }
    }

    /// Writes the received chunks.
    pub(super) async fn keep(&mut self, store: &ChunkStore) -> Result<(), WireError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.bytes = 0;
        let (batch, store) = (std::mem::take(&mut self.batch), store.clone());
        let written = blocking(move || {
            let mut unresolved = Vec::new();
            for sent in &batch {
                let arrival = resolve::incoming(&store, sent)?;
                metrics::chunk_received(sent.bytes.len(), arrival == Arrival::Known);
                if arrival == Arrival::Unresolved {
                    unresolved.push(sent.id);
                }
            }
            Ok::<_, ChunkError>(unresolved)
        });
        self.unresolved.extend(written.await?.map_err(|error| failed(&error))?);
        Ok(())
    }
}
