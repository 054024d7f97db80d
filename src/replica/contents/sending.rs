//! Sending chunks to the datastore before a transaction names them.

use std::collections::{HashMap, HashSet};

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::chunks::{CHUNK_BYTES_MAX, Part};
use crate::codec::chunks::Want;
use crate::codec::content;
use crate::model::{ChunkId, Txn};
use crate::transfer::TransferError;

use super::sources::{AT_ONCE, GROUP};
use super::{Contents, pair};

/// What came of sending the chunks that a transaction names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::replica) enum Delivery {
    /// The datastore has all of them.
    Complete,
    /// These are neither there nor here.
    Lost(Vec<ChunkId>),
}

impl Contents {
    /// Sends what the datastore lacks of the chunks that a transaction names.
    ///
    /// # Errors
    /// When the connection breaks; what has arrived need not be sent again.
    pub(in crate::replica) async fn deliver(&self, txn: &Txn) -> Result<Delivery, TransferError> {
        for head in content::heads_of(txn) {
            let mut bases: Option<HashMap<ChunkId, Vec<ChunkId>>> = None;
            loop {
                let mut stream = self.inner.datastore_stream(&self.shared).await?;
                let lacking = stream.ask(&head.index, true).await?;
                drop(stream);
                if lacking.ids.is_empty() {
                    break;
                }
                let bases = match &mut bases {
                    Some(bases) => bases,
                    None => bases.insert(self.bases_for(&head).await),
                };
                let want = |id: ChunkId| Want { id, bases: bases.get(&id).cloned().unwrap_or_default() };
                let lost = self.send_all(lacking.ids.into_iter().map(want).collect()).await?;
                if !lost.is_empty() {
                    // Another member may have what was damaged here.
                    let wants = lost.into_iter().map(|id| Want { id, bases: Vec::new() }).collect();
                    let lost = self.inner.bring(&self.shared, wants, true).await;
                    if !lost.is_empty() {
                        return Ok(Delivery::Lost(lost));
                    }
                }
            }
        }
        Ok(Delivery::Complete)
    }

    /// Sends chunks, several groups at a time; returns those that are not here.
    async fn send_all(&self, wants: Vec<Want>) -> Result<Vec<ChunkId>, TransferError> {
        let groups: Vec<Vec<Want>> = wants.chunks(GROUP).map(<[Want]>::to_vec).collect();
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
    async fn offer(&self, ids: Vec<ChunkId>, bases: HashMap<ChunkId, Vec<ChunkId>>) -> Result<(), TransferError> {
        let mut stream = self.inner.datastore_stream(&self.shared).await?;
        let lacking = stream.ask(&ids, false).await?;
        let want = |id: ChunkId| Want { id, bases: bases.get(&id).cloned().unwrap_or_default() };
        stream.send(lacking.ids.into_iter().map(want).collect()).await.map(|_| ())
    }
}

/// Sends the chunks of a content while it is being written, so that little is left when it is complete. When the
/// datastore goes away it stops; the gate sends the rest later.
pub struct Ahead {
    parts: Option<mpsc::Sender<Vec<Part>>>,
    task: JoinHandle<()>,
}

impl Ahead {
    pub(super) fn begin(contents: Contents, base: Vec<ChunkId>) -> Ahead {
        // What waits in the channel is in the store; only its names are in memory.
        let (parts, queue) = mpsc::channel(4);
        let task = tokio::spawn(async move {
            if let Err(error) = send_ahead(&contents, base, queue).await {
                tracing::debug!(%error, "chunks are not sent ahead; they are sent before they are named");
            }
        });
        Ahead { parts: Some(parts), task }
    }

    /// Hands over the next chunks, which are in the store. Waits while much is under way.
    pub async fn push(&mut self, parts: Vec<Part>) {
        if let Some(sender) = &self.parts
            && sender.send(parts).await.is_err()
        {
            self.parts = None;
        }
    }

    /// Waits until everything has been sent, or sending has stopped.
    pub async fn finish(mut self) {
        self.parts = None;
        let _ = (&mut self.task).await;
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn send_ahead(
    contents: &Contents,
    base: Vec<ChunkId>,
    mut queue: mpsc::Receiver<Vec<Part>>,
) -> Result<(), TransferError> {
    let old = contents.parts_here(base).await;
    let (mut all, mut offered) = (Vec::new(), HashSet::new());
    let mut under_way = tokio::task::JoinSet::new();
    while let Some(parts) = queue.recv().await {
        all.extend_from_slice(&parts);
        let ids: Vec<ChunkId> = parts.iter().map(|part| part.id).filter(|id| offered.insert(*id)).collect();
        let bases = pair_so_far(&old, &all);
        while under_way.len() >= AT_ONCE {
            if let Some(ended) = under_way.join_next().await {
                ended.map_err(|error| TransferError::Away(error.to_string()))??;
            }
        }
        let contents = contents.clone();
        under_way.spawn(async move { contents.offer(ids, bases).await });
    }
    while let Some(ended) = under_way.join_next().await {
        ended.map_err(|error| TransferError::Away(error.to_string()))??;
    }
    Ok(())
}

/// Pairs the beginning of a new content with the old one, of which only as much is looked at as corresponds.
fn pair_so_far(old: &[Part], new: &[Part]) -> HashMap<ChunkId, Vec<ChunkId>> {
    if old.is_empty() {
        return HashMap::new();
    }
    let mut left: u64 = new.iter().map(|part| u64::from(part.bytes)).sum::<u64>() + CHUNK_BYTES_MAX as u64;
    let reach = old.iter().take_while(|part| {
        let is_within = left > 0;
        left = left.saturating_sub(u64::from(part.bytes));
        is_within
    });
    pair(&old[..reach.count()], new)
}
