//! The push stream: sends the transactions of the outbox and receives the answers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;

use gravwell_model::Txn;
use gravwell_model::codec::message::{self, Kind, Open, Outcome};
use gravwell_protocol::push::{self, Next, Pusher};
use gravwell_runtime::telemetry;
use gravwell_transport::wire::{self, WireError};

use super::blobs::{Blobs, Delivery};
use super::link::LinkError;
use super::outbox_writer;
use super::shared::ReplicaRef;

/// Bytes collected before a write.
const CHUNK_BYTES: usize = 64 << 10;
/// Delay after the datastore could not accept a transaction.
const DEFERRED_PAUSE: Duration = Duration::from_secs(1);

/// Delay after chunks could not be sent.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

#[derive(Default)]
struct Window {
    pusher: Mutex<Pusher>,
    room: Notify,
}

impl Window {
    fn pusher(&self) -> std::sync::MutexGuard<'_, Pusher> {
        self.pusher.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pushes until the connection ends.
pub(super) async fn run(
    shared: &ReplicaRef,
    outbox: &mpsc::Sender<outbox_writer::Request>,
    connection: &quinn::Connection,
) -> Result<std::convert::Infallible, LinkError> {
    loop {
        let (mut send, mut receive) = connection.open_bi().await?;
        wire::send(&mut send, Kind::Open, &Open::Push).await?;
        let window = Window::default();
        let answer = tokio::select! {
            sent = push_all(shared, &mut send, &window) => sent?,
            never = open_gates(shared) => never?,
            answer = hear(shared, outbox, &mut receive, &window) => answer?,
        };
        tracing::warn!(reason = answer, "datastore defers transactions; they wait in the outbox");
        let _ = send.finish();
        sleep(DEFERRED_PAUSE).await;
    }
}

async fn push_all(shared: &ReplicaRef, send: &mut quinn::SendStream, window: &Window) -> Result<String, LinkError> {
    let mut changed = shared.outbox_changed.subscribe();
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    let mut body = Vec::new();
    loop {
        changed.borrow_and_update();
        chunk.clear();
        while chunk.len() < CHUNK_BYTES {
            let (next, pushed) = {
                let mut pusher = window.pusher();
                (pusher.next(&shared.outbox(), &shared.gate(), &mut body), pusher.latest())
            };
            let Next::Send(kind) = next else { break };
            pushed.into_iter().for_each(telemetry::txn_trace::pushed);
            chunk.extend_from_slice(&message::header(kind, body.len()));
            chunk.extend_from_slice(&body);
        }
        if !chunk.is_empty() {
            tokio::io::AsyncWriteExt::write_all(send, &chunk).await.map_err(WireError::from)?;
            continue;
        }
        let is_full = window.pusher().is_full();
        if is_full {
            window.room.notified().await;
        } else {
            changed.changed().await.map_err(|_| LinkError::Closing)?;
        }
    }
}

/// Sends the chunks of the transactions that wait at the gate, one transaction after the other, for as long as the
/// stream lasts.
async fn open_gates(shared: &ReplicaRef) -> Result<String, LinkError> {
    let mut changed = shared.outbox_changed.subscribe();
    loop {
        changed.borrow_and_update();
        let held = push::first_held(&shared.outbox(), &shared.gate());
        match held {
            Some(txn) => {
                open_gate(shared, &txn).await;
                // The pusher checks the gate again.
                shared.notify_outbox_changed();
            }
            None => changed.changed().await.map_err(|_| LinkError::Closing)?,
        }
    }
}

/// Sends the chunks that a transaction references, for as long as the connection lasts.
async fn open_gate(shared: &ReplicaRef, txn: &Txn) {
    let Some(inner) = shared.contents.clone() else { return shared.gate().handle_sent(txn.id) };
    let contents = Blobs { inner, shared: Arc::clone(shared) };
    loop {
        match contents.deliver(txn).await {
            Ok(Delivery::Complete) => return shared.gate().handle_sent(txn.id),
            Ok(Delivery::Lost(ids)) => {
                let first = ids.first().map_or_else(String::new, ToString::to_string);
                tracing::error!(lost = ids.len(), first, "change references lost chunks; it will be rejected");
                return shared.gate().handle_lost(txn.id);
            }
            Err(error) => {
                tracing::info!(%error, "failed to send chunks; will retry");
                sleep(RETRY_PAUSE).await;
            }
        }
    }
}

async fn hear(
    shared: &ReplicaRef,
    outbox: &mpsc::Sender<outbox_writer::Request>,
    receive: &mut quinn::RecvStream,
    window: &Window,
) -> Result<String, LinkError> {
    let mut to_note = Vec::new();
    loop {
        let outcome: Outcome = wire::expect(receive, Kind::Outcome).await?;
        let heard = window.pusher().handle_outcome(outcome);
        window.room.notify_one();
        let pause = shared.handle_answer(heard, &mut to_note);
        if !to_note.is_empty() {
            let _ = outbox.send(outbox_writer::Request::Note(std::mem::take(&mut to_note))).await;
        }
        if let Some(reason) = pause {
            return Ok(reason);
        }
    }
}
