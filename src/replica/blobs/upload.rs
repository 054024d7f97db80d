//! Sending chunks to the datastore before a transaction references them.

use std::collections::{HashMap, HashSet};

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use gravwell_chunks::Part;
use gravwell_model::codec::blob_manifest::{self, BlobManifest};
use gravwell_model::codec::chunks::{NAMES_MAX, RequestedChunk};
use gravwell_model::{ChunkId, Txn};
use gravwell_transport::transfer::TransferError;

use super::Blobs;
use super::sources::{AT_ONCE, GROUP};

/// Result of sending the chunks that a transaction references.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// The datastore has all of them.
    Complete,
    /// These chunks are missing at both ends.
    Lost(Vec<ChunkId>),
}

impl Blobs {
    /// Sends the chunks of a transaction that the datastore lacks.
    ///
    /// # Errors
    /// If the connection breaks; chunks that have arrived need not be sent again.
    pub(crate) async fn deliver(&self, txn: &Txn) -> Result<Delivery, TransferError> {
        for head in blob_manifest::heads_of(txn) {
            match self.deliver_content(&head).await? {
                Delivery::Complete => {}
                lost @ Delivery::Lost(_) => return Ok(lost),
            }
        }
        Ok(Delivery::Complete)
    }

    async fn deliver_content(&self, head: &BlobManifest) -> Result<Delivery, TransferError> {
        let mut bases: Option<HashMap<ChunkId, Vec<ChunkId>>> = None;
        loop {
            let mut stream = self.inner.datastore_stream(&self.shared).await?;
            let lacking = stream.ask(&head.index, true).await?;
            drop(stream);
            if lacking.ids.is_empty() {
                return Ok(Delivery::Complete);
            }
            // The chunks of a missing list are known here. They are queried by id, so that all can be sent together.
            let mut wanted = lacking.ids;
            if lacking.more {
                wanted = self.offered(head, wanted).await?;
            }
            let bases = match &mut bases {
                Some(bases) => bases,
                None => bases.insert(self.bases_for(head).await),
            };
            let want = |id: ChunkId| RequestedChunk { id, bases: bases.get(&id).cloned().unwrap_or_default() };
            let lost = self.send_all(wanted.into_iter().map(want).collect()).await?;
            if !lost.is_empty() {
                // Another member may have a chunk that is corrupt here.
                let wants = lost.into_iter().map(|id| RequestedChunk { id, bases: Vec::new() }).collect();
                let lost = self.inner.bring(&self.shared, wants, true).await;
                if !lost.is_empty() {
                    return Ok(Delivery::Lost(lost));
                }
            }
        }
    }

    /// Returns the chunks of a blob that the datastore lacks, lists last: until a list is there, nothing counts
    /// as complete.
    async fn offered(&self, head: &BlobManifest, lacking: Vec<ChunkId>) -> Result<Vec<ChunkId>, TransferError> {
        let parts = self.parts_here(head.index.clone()).await;
        let mut seen: HashSet<ChunkId> = head.index.iter().copied().collect();
        let ids: Vec<ChunkId> = parts.iter().map(|part| part.id).filter(|id| seen.insert(*id)).collect();
        let mut wanted = Vec::new();
        for some in ids.chunks(NAMES_MAX) {
            let mut stream = self.inner.datastore_stream(&self.shared).await?;
            wanted.extend(stream.ask(some, false).await?.ids);
        }
        let mut known: HashSet<ChunkId> = wanted.iter().copied().collect();
        wanted.extend(lacking.into_iter().filter(|id| known.insert(*id)));
        Ok(wanted)
    }

    /// Sends chunks, several groups at a time. Returns those that are missing here.
    async fn send_all(&self, wants: Vec<RequestedChunk>) -> Result<Vec<ChunkId>, TransferError> {
        let groups: Vec<Vec<RequestedChunk>> = wants.chunks(GROUP).map(<[RequestedChunk]>::to_vec).collect();
        let mut sending = futures_util::stream::iter(groups)
            .map(|group| async move { self.inner.datastore_stream(&self.shared).await?.send(group).await })
            .buffer_unordered(AT_ONCE);
        let mut lost = Vec::new();
        while let Some(sent) = sending.next().await {
            lost.extend(sent?);
        }
        Ok(lost)
    }

    /// Sends those of `ids` that the datastore lacks.
    async fn offer(&self, ids: Vec<ChunkId>) -> Result<(), TransferError> {
        let mut stream = self.inner.datastore_stream(&self.shared).await?;
        let lacking = stream.ask(&ids, false).await?;
        let want = |id: ChunkId| RequestedChunk { id, bases: Vec::new() };
        stream.send(lacking.ids.into_iter().map(want).collect()).await.map(|_| ())
    }
}

/// Sends the chunks of a blob while it is being written, so that little remains at the end. It stops when the datastore
/// becomes unreachable; the gate sends the rest later.
///
/// A blob that replaces another one is sent when it is complete: only then is it known which chunks correspond, and the
/// differences are small.
pub struct Ahead {
    contents: Blobs,
    base: Vec<ChunkId>,
    parts: Option<mpsc::Sender<Vec<Part>>>,
    task: JoinHandle<()>,
}

impl Ahead {
    pub(super) fn begin(contents: Blobs, base: Vec<ChunkId>) -> Ahead {
        // Chunks in the channel are in the store already; only their ids are in memory.
        let (parts, queue) = mpsc::channel(4);
        let sender = contents.clone();
        let parts = base.is_empty().then_some(parts);
        let task = tokio::spawn(async move {
            if let Err(error) = send_ahead(&sender, queue).await {
                tracing::debug!(%error, "failed to upload chunks early; they are sent before their transaction");
            }
        });
        Ahead { contents, base, parts, task }
    }

    /// Hands over the next chunks, which are in the store. Waits while many are in progress.
    pub async fn push(&mut self, parts: Vec<Part>) {
        if let Some(sender) = &self.parts
            && sender.send(parts).await.is_err()
        {
            self.parts = None;
        }
    }

    /// Waits until all of the blob with these lists has been sent, or the datastore is unreachable.
    pub async fn finish(mut self, index: &[ChunkId]) {
        self.parts = None;
        let _ = (&mut self.task).await;
        let head = BlobManifest { size: 0, index: index.to_vec(), base: std::mem::take(&mut self.base) };
        if let Err(error) = self.contents.deliver_content(&head).await {
            tracing::debug!(%error, "failed to upload chunks early; they are sent before their transaction");
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn send_ahead(contents: &Blobs, mut queue: mpsc::Receiver<Vec<Part>>) -> Result<(), TransferError> {
    let mut offered = HashSet::new();
    let mut under_way = tokio::task::JoinSet::new();
    while let Some(parts) = queue.recv().await {
        let ids: Vec<ChunkId> = parts.iter().map(|part| part.id).filter(|id| offered.insert(*id)).collect();
        while under_way.len() >= AT_ONCE {
            if let Some(ended) = under_way.join_next().await {
                ended.map_err(|error| TransferError::Away(error.to_string()))??;
            }
        }
        let contents = contents.clone();
        under_way.spawn(async move { contents.offer(ids).await });
    }
    while let Some(ended) = under_way.join_next().await {
        ended.map_err(|error| TransferError::Away(error.to_string()))??;
    }
    Ok(())
}
