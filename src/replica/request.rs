//! Requests to the datastore over the connection that a replica has.

use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;

use gravwell_model::codec::admin::{AdminError, Request};
use gravwell_model::codec::message::{Kind, Open};
use gravwell_model::codec::payload::decode_loose_frames;
use gravwell_model::{Entry, Seq};
use gravwell_transport::close_reason;
use gravwell_transport::wire::{self, WireError};

use super::Replica;

/// Longest wait for a whole answer, and for the next message while entries are read.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest answer in bytes: it is held in memory as a whole.
const ANSWER_BYTES_MAX: usize = 64 << 20;

type Halves = (quinn::SendStream, quinn::RecvStream);

/// Error of a request.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// There is no connection to the datastore.
    #[error("datastore is unreachable; retry when it is back online")]
    Away,
    /// The connection broke, or no answer arrived.
    #[error("the datastore did not answer: {0}")]
    Silent(String),
    /// The datastore refused the request.
    #[error("{0}")]
    Refused(String),
    /// The answer is too large to be held in memory.
    #[error("the answer is larger than {ANSWER_BYTES_MAX} bytes; request less")]
    TooLarge,
}

/// Answer of the datastore.
#[derive(Debug, Default)]
pub struct Reply {
    /// Items, as JSON.
    pub items: Vec<Bytes>,
    /// Entries of the log.
    pub entries: Vec<Entry>,
}

impl Replica {
    /// Sends a request to the datastore and waits for the whole answer.
    ///
    /// # Errors
    /// If the datastore is unreachable, silent or refuses, or the answer is too large.
    pub async fn request_from_datastore(&self, request: &Request) -> Result<Reply, RequestError> {
        let connection = self.shared.connection.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let connection = connection.filter(|connection| self.is_connected() && connection.close_reason().is_none());
        let connection = connection.ok_or(RequestError::Away)?;
        let asked = tokio::time::timeout(PATIENCE, ask(&connection, request)).await;
        asked.map_err(|_| RequestError::Silent(format!("within {PATIENCE:?}")))?
    }
}

/// Passes every entry of the datastore's log after `from`, up to its head, to `give`.
pub(super) async fn entries_after(
    connection: &quinn::Connection,
    from: Seq,
    mut give: impl FnMut(Entry),
) -> Result<(), RequestError> {
    let silent = |error: &dyn std::fmt::Display| RequestError::Silent(error.to_string());
    let request = Request::Tail { from, to: None, follow: false };
    let (_send, mut receive) = heard(connection, start(connection, &request).await).await?;
    loop {
        let message = tokio::time::timeout(PATIENCE, wire::read(&mut receive)).await;
        let message = message.map_err(|error| silent(&error))?;
        let message = message.and_then(|message| message.ok_or(WireError::Closed));
        match heard(connection, message).await? {
            (Kind::Frames, body) => {
                decode_loose_frames(&body).map_err(|error| silent(&error))?.into_iter().for_each(&mut give);
            }
            (Kind::AdminEnd, _) => return Ok(()),
            (Kind::AdminError, body) => {
                let error: AdminError = serde_json::from_slice(&body).map_err(|error| silent(&error))?;
                return Err(RequestError::Refused(error.message));
            }
            (other, _) => return Err(silent(&format!("unexpected message {other:?}"))),
        }
    }
}

/// Opens a stream and sends a request on it. The answer arrives on its other half.
async fn start(connection: &quinn::Connection, request: &Request) -> Result<Halves, WireError> {
    let (mut send, receive) = connection.open_bi().await?;
    wire::send(&mut send, Kind::Open, &Open::Admin).await?;
    wire::send_json(&mut send, Kind::AdminRequest, request).await?;
    Ok((send, receive))
}

/// Converts the result of using a stream. If the datastore closed the connection, the error has its reason.
async fn heard<T>(connection: &quinn::Connection, result: Result<T, WireError>) -> Result<T, RequestError> {
    match result {
        Ok(value) => Ok(value),
        Err(error) => Err(RequestError::Silent(close_reason::explained(connection, error).await.to_string())),
    }
}

pub(super) async fn ask(connection: &quinn::Connection, request: &Request) -> Result<Reply, RequestError> {
    let silent = |error: &dyn std::fmt::Display| RequestError::Silent(error.to_string());
    let (_send, mut receive) = heard(connection, start(connection, request).await).await?;
    let (mut reply, mut size) = (Reply::default(), 0);
    loop {
        let message = wire::read(&mut receive).await;
        let message = message.and_then(|message| message.ok_or(WireError::Closed));
        let (kind, body) = heard(connection, message).await?;
        size += body.len();
        if size > ANSWER_BYTES_MAX {
            return Err(RequestError::TooLarge);
        }
        match kind {
            Kind::AdminItem => reply.items.push(body),
            Kind::Frames => reply.entries.extend(decode_loose_frames(&body).map_err(|error| silent(&error))?),
            Kind::AdminEnd => return Ok(reply),
            Kind::AdminError => {
                let error: AdminError = serde_json::from_slice(&body).map_err(|error| silent(&error))?;
                return Err(RequestError::Refused(error.message));
            }
            other => return Err(silent(&format!("unexpected message {other:?}"))),
        }
    }
}
