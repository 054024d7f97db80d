//! Conversion of chunks between the store and their transfer form: whole, or as a delta against other chunks.

use bytes::Bytes;

use gravwell_chunks::{CHUNK_BYTES_MAX, ChunkError, ChunkStore, delta};
use gravwell_model::ChunkId;
use gravwell_model::codec::chunks::{ChunkData, encode_chunk};
use gravwell_runtime::telemetry::metrics;

use super::RateLimiter;

/// Result of receiving a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The chunk was written.
    New,
    /// The chunk was stored already.
    Known,
    /// The delta could not be resolved: the chunk must be sent whole.
    Unresolved,
}

fn read_all(store: &ChunkStore, ids: &[ChunkId]) -> Option<Vec<Bytes>> {
    ids.iter().map(|id| store.read(id).ok().flatten()).collect()
}

/// Reads a chunk for sending, as a delta against `bases` where worthwhile; `None` if it is not stored.
pub(super) fn outgoing(store: &ChunkStore, id: ChunkId, bases: &[ChunkId]) -> Result<Option<ChunkData>, ChunkError> {
    let bytes = match store.read(&id) {
        Ok(Some(bytes)) => bytes,
        Ok(None) | Err(ChunkError::Damaged { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    if !bases.is_empty()
        && let Some(read) = read_all(store, bases)
    {
        let read: Vec<&[u8]> = read.iter().map(Bytes::as_ref).collect();
        if let Some(difference) = delta::encode(&bytes, &read) {
            return Ok(Some(ChunkData { id, bases: bases.to_vec(), bytes: difference.into() }));
        }
    }
    Ok(Some(ChunkData { id, bases: Vec::new(), bytes }))
}

/// Encodes a chunk as a message, after waiting for the rate limiter.
pub(super) async fn released(sent: &ChunkData, limiter: &RateLimiter) -> [Bytes; 2] {
    let message = encode_chunk(sent);
    let length = message.iter().map(Bytes::len).sum();
    limiter.pass(length).await;
    metrics::chunk_sent(length, !sent.bases.is_empty());
    message
}

/// Stores a received chunk.
///
/// # Errors
/// If its hash does not match its id, or it cannot be written.
pub(super) fn incoming(store: &ChunkStore, sent: &ChunkData) -> Result<Arrival, ChunkError> {
    let arrived = |is_new: bool| if is_new { Arrival::New } else { Arrival::Known };
    if sent.bases.is_empty() {
        return store.write(&sent.id, &sent.bytes).map(arrived);
    }
    let Some(bases) = read_all(store, &sent.bases) else { return Ok(Arrival::Unresolved) };
    let bases: Vec<&[u8]> = bases.iter().map(Bytes::as_ref).collect();
    match delta::decode(&sent.bytes, &bases, CHUNK_BYTES_MAX) {
        Ok(raw) => match store.write(&sent.id, &raw) {
            Ok(is_new) => Ok(arrived(is_new)),
            Err(ChunkError::Mismatch { .. }) => Ok(Arrival::Unresolved),
            Err(error) => Err(error),
        },
        Err(_) => Ok(Arrival::Unresolved),
    }
}
