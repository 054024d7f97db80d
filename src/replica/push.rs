//! Push streams: carry the transactions of the outbox to the datastore, and its answers back. The session machine
//! decides which transactions are sent, and when a stream is opened and closed.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::sleep;

use gravwell_model::Txn;
use gravwell_model::codec::message::{self, Kind, Open, Outcome};
use gravwell_protocol::push;
use gravwell_protocol::session::client::{ClientSession, Event, PushId};
use gravwell_runtime::telemetry;
use gravwell_transport::wire::{self, WireError};

use super::blobs::{Blobs, Delivery};
use super::link::{LinkDriver, LinkError};
use super::shared::ReplicaRef;

/// Bytes collected before a write.
const CHUNK_BYTES: usize = 64 << 10;

/// Delay after chunks could not be sent.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

type Job<'a> = Pin<Box<dyn Future<Output = Result<Done, LinkError>> + Send + 'a>>;

enum Done {
    Opened(PushId, quinn::SendStream, quinn::RecvStream),
    Written(quinn::SendStream, Vec<u8>),
    Answered(PushId, quinn::RecvStream, Outcome),
}

/// The push streams of a connection, of which one is open at a time.
pub(super) struct PushStreams<'a> {
    linker: &'a LinkDriver,
    connection: &'a quinn::Connection,
    /// Jobs of the open stream.
    jobs: FuturesUnordered<Job<'a>>,
    /// The open stream, and the buffer for it, while no job has them.
    send: Option<(quinn::SendStream, Vec<u8>)>,
    body: Vec<u8>,
}

impl<'a> PushStreams<'a> {
    pub(super) fn new(linker: &'a LinkDriver, connection: &'a quinn::Connection) -> PushStreams<'a> {
        PushStreams { linker, connection, jobs: FuturesUnordered::new(), send: None, body: Vec::new() }
    }

    fn start(&self, job: impl Future<Output = Result<Done, LinkError>> + Send + 'a) {
        self.jobs.push(Box::pin(job));
    }

    /// Opens a stream, and sends the chunks of transactions for as long as it lasts.
    pub(super) fn open(&mut self, id: PushId) {
        let (linker, connection) = (self.linker, self.connection);
        self.start(async move {
            let (mut send, receive) = connection.open_bi().await?;
            wire::send(&mut send, Kind::Open, &Open::Push).await?;
            Ok(Done::Opened(id, send, receive))
        });
        self.start(async move { open_gates(&linker.shared).await.map(|never| match never {}) });
    }

    /// Finishes the open stream. A message that is being written stays incomplete, which the datastore ignores.
    pub(super) fn close(&mut self) {
        self.jobs = FuturesUnordered::new();
        if let Some((mut send, _)) = self.send.take() {
            let _ = send.finish();
        }
    }

    /// Writes the transactions that may be sent now to the open stream, unless it is still being written.
    pub(super) fn fill(&mut self, machine: &mut ClientSession) {
        let Some((mut send, mut chunk)) = self.send.take() else { return };
        chunk.clear();
        while chunk.len() < CHUNK_BYTES {
            let shared = &self.linker.shared;
            let pushed = machine.poll_push(&shared.outbox(), &shared.gate(), &mut self.body);
            let Some(pushed) = pushed else { break };
            pushed.txn.into_iter().for_each(telemetry::txn_trace::pushed);
            chunk.extend_from_slice(&message::header(pushed.kind, self.body.len()));
            chunk.extend_from_slice(&self.body);
        }
        if chunk.is_empty() {
            self.send = Some((send, chunk));
            return;
        }
        self.start(async move {
            send.write_all(&chunk).await.map_err(|error| WireError::from(std::io::Error::from(error)))?;
            Ok(Done::Written(send, chunk))
        });
    }

    /// Waits for the next event of the open stream. It never ends if none is open.
    pub(super) async fn next(&mut self) -> Result<Option<Event>, LinkError> {
        let Some(done) = self.jobs.next().await else { return std::future::pending().await };
        match done? {
            Done::Opened(id, send, receive) => {
                self.send = Some((send, Vec::with_capacity(CHUNK_BYTES)));
                self.read(id, receive);
            }
            Done::Written(send, chunk) => self.send = Some((send, chunk)),
            Done::Answered(id, receive, outcome) => {
                self.read(id, receive);
                return Ok(Some(Event::Outcome(id, outcome)));
            }
        }
        Ok(None)
    }

    fn read(&self, id: PushId, mut receive: quinn::RecvStream) {
        self.start(async move {
            let outcome: Outcome = wire::expect(&mut receive, Kind::Outcome).await?;
            Ok(Done::Answered(id, receive, outcome))
        });
    }
}

/// Sends the chunks of the transactions that wait at the gate, one transaction after the other.
async fn open_gates(shared: &ReplicaRef) -> Result<std::convert::Infallible, LinkError> {
    let mut changed = shared.outbox_changed.subscribe();
    loop {
        changed.borrow_and_update();
        let held = push::first_held(&shared.outbox(), &shared.gate());
        match held {
            Some(txn) => {
                open_gate(shared, &txn).await;
                // The gate is checked again for the transactions to send.
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
