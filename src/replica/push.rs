//! Pushing the outbox: pipelined within a window, in order, again and again until the state has decided.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use crate::codec::message::{self, Fate, Kind, Open, Outcome};
use crate::codec::txn::encode_txn;
use crate::transport::wire::{self, WireError};

use super::link::LinkError;
use super::receipts::Stage;
use super::shared::SharedRef;

/// Most transactions and bytes sent but not answered.
const WINDOW_TXNS: usize = 4096;
const WINDOW_BYTES: usize = 8 << 20;
/// Bytes gathered before a write.
const CHUNK_BYTES: usize = 64 << 10;
/// Pause after the datastore could not take a transaction.
const DEFERRED_PAUSE: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Window {
    sizes: std::sync::Mutex<VecDeque<usize>>,
    room: Notify,
}

impl Window {
    fn sizes(&self) -> std::sync::MutexGuard<'_, VecDeque<usize>> {
        self.sizes.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn is_full(&self) -> bool {
        let sizes = self.sizes();
        sizes.len() >= WINDOW_TXNS || sizes.iter().sum::<usize>() >= WINDOW_BYTES
    }
}

/// Pushes until the connection ends.
pub(super) async fn run(
    shared: &SharedRef,
    connection: &quinn::Connection,
) -> Result<std::convert::Infallible, LinkError> {
    loop {
        let (mut send, mut receive) = connection.open_bi().await?;
        wire::send(&mut send, Kind::Open, &Open::Push).await?;
        let window = Window::default();
        let answer = tokio::select! {
            sent = push(shared, &mut send, &window) => sent?,
            answer = hear(shared, &mut receive, &window) => answer?,
        };
        tracing::warn!(reason = answer, "the datastore takes no transactions for now; they wait in the outbox");
        let _ = send.finish();
        sleep(DEFERRED_PAUSE).await;
    }
}

async fn push(shared: &SharedRef, send: &mut quinn::SendStream, window: &Window) -> Result<String, LinkError> {
    let mut changed = shared.outbox_changed.subscribe();
    let mut sent = None;
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    let mut body = Vec::new();
    loop {
        changed.borrow_and_update();
        chunk.clear();
        while chunk.len() < CHUNK_BYTES && !window.is_full() {
            let Some((place, txn)) = shared.outbox().next_after(sent) else { break };
            sent = Some(place);
            body.clear();
            encode_txn(&txn, &mut body);
            chunk.extend_from_slice(&message::header(Kind::Push, body.len()));
            chunk.extend_from_slice(&body);
            window.sizes().push_back(body.len());
        }
        if !chunk.is_empty() {
            tokio::io::AsyncWriteExt::write_all(send, &chunk).await.map_err(WireError::from)?;
        } else if window.is_full() {
            window.room.notified().await;
        } else {
            changed.changed().await.map_err(|_| LinkError::Closing)?;
        }
    }
}

async fn hear(shared: &SharedRef, receive: &mut quinn::RecvStream, window: &Window) -> Result<String, LinkError> {
    loop {
        let outcome: Outcome = wire::expect(receive, Kind::Outcome).await?;
        window.sizes().pop_front();
        window.room.notify_one();
        match outcome.fate {
            Fate::Committed(seq) => shared.receipts.settle(outcome.id, Stage::Acknowledged(seq)),
            // The tail or a snapshot brings the decision, with the reason, in its place.
            Fate::Rejected(..) | Fate::Decided(_) | Fate::Queued => {}
            Fate::Gap(expected) => {
                return Ok(format!("transaction {} came out of order: expected {expected}", outcome.id.counter));
            }
            Fate::Deferred(refused) => return Ok(refused.message),
        }
    }
}
