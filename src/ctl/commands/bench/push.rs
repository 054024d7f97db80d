//! Member that pushes transactions directly over QUIC, one at a time or pipelined.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Semaphore;

use gravwell_model::codec::message::{self, Kind, Open, Outcome, TxnOutcome};
use gravwell_model::codec::txn::encode_txn;
use gravwell_model::{Collection, Key, Op, Origin, OriginCounter, Seq, Txn, TxnId};
use gravwell_transport::trust::{Identity, tls};
use gravwell_transport::{endpoint, wire};

use super::raw::PAYLOAD_BYTES;
use crate::client::transact::new_origin;
use crate::error::CtlError;

/// Maximum number of unacknowledged transactions.
const WINDOW: usize = 4096;

/// Push stream on a dedicated connection.
pub(super) struct Pusher {
    _connection: quinn::Connection,
    send: quinn::SendStream,
    receive: quinn::RecvStream,
    origin: Origin,
    counter: u64,
}

impl Pusher {
    /// Connects with the identity in `dir`.
    pub(super) async fn connect(dir: &Path, address: &str) -> Result<Pusher, CtlError> {
        let identity = Identity::load(dir).map_err(CtlError::new)?;
        let config = tls::member_config(&identity, tls::ALPN_LOG).map_err(CtlError::new)?;
        let client = endpoint::client(config).map_err(CtlError::new)?;
        let connection = client.connect(address).await.map_err(CtlError::new)?;
        let (mut send, receive) = connection.open_bi().await.map_err(CtlError::new)?;
        wire::send(&mut send, Kind::Open, &Open::Push).await.map_err(CtlError::new)?;
        Ok(Pusher { _connection: connection, send, receive, origin: new_origin()?, counter: 0 })
    }

    fn next(&mut self) -> Result<Vec<u8>, CtlError> {
        self.counter += 1;
        txn(self.origin, self.counter)
    }

    /// Pushes one transaction and waits until it is durable at the datastore.
    pub(super) async fn push(&mut self) -> Result<(Seq, Duration), CtlError> {
        let message = self.next()?;
        let began = Instant::now();
        self.send.write_all(&message).await.map_err(CtlError::new)?;
        let outcome = wire::expect::<Outcome, _>(&mut self.receive, Kind::Outcome).await.map_err(CtlError::new)?;
        Ok((committed(outcome)?, began.elapsed()))
    }

    /// Pushes `count` transactions, pipelined. Returns the time until all are durable.
    pub(super) async fn push_many(&mut self, count: usize) -> Result<Duration, CtlError> {
        let messages = (0..count).map(|_| self.next()).collect::<Result<Vec<_>, _>>()?;
        let window = Semaphore::new(WINDOW);
        let began = Instant::now();
        let (send, receive) = (&mut self.send, &mut self.receive);
        let sending = async {
            for message in &messages {
                window.acquire().await.map_err(CtlError::new)?.forget();
                send.write_all(message).await.map_err(CtlError::new)?;
            }
            Ok(())
        };
        let hearing = async {
            for _ in 0..count {
                let outcome = wire::expect::<Outcome, _>(receive, Kind::Outcome).await.map_err(CtlError::new)?;
                committed(outcome)?;
                window.add_permits(1);
            }
            Ok::<_, CtlError>(())
        };
        tokio::try_join!(sending, hearing)?;
        Ok(began.elapsed())
    }
}

fn committed(outcome: Outcome) -> Result<Seq, CtlError> {
    match outcome.fate {
        TxnOutcome::Committed(seq) => Ok(seq),
        other => Err(CtlError::new(format!("a transaction was not committed: {other:?}"))),
    }
}

fn txn(origin: Origin, counter: u64) -> Result<Vec<u8>, CtlError> {
    let collection = Collection::new("bench").map_err(CtlError::new)?;
    // A fixed set of keys that are overwritten repeatedly.
    let key = Key::new(format!("key-{:05}", counter % 10_000)).map_err(CtlError::new)?;
    let value = Bytes::from(format!("\"{counter:0width$}\"", width = PAYLOAD_BYTES - 100));
    let id = TxnId { origin, counter: OriginCounter(counter) };
    let ops = vec![Op::Put { collection, key, value }];
    let (settled, note) = (OriginCounter(0), Bytes::new());
    let mut body = Vec::new();
    encode_txn(&Txn { id, settled, time_ms: 0, note, conditions: Vec::new(), ops }, &mut body);
    Ok(message::encode_raw(Kind::Push, &body))
}
