//! Response to an administrative request: items, rows, frames, then an end or an error.

use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use gravwell_model::codec::admin::{AdminError, Request};
use gravwell_model::codec::message::{self, Kind, Row};

use super::wire::{self, WireError};

/// Approximate size in bytes of messages with rows.
pub const ROWS_BYTES: usize = 256 << 10;

/// Reason for which a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The connection to the client failed.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The request failed; the error is sent to the client.
    #[error(transparent)]
    Request(#[from] AdminError),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::Wire(error.into())
    }
}

/// Returns a failure with exit code 1.
pub fn refuse(message: impl std::fmt::Display) -> Failure {
    AdminError { message: message.to_string(), exit: 1 }.into()
}

/// Returns a failure with exit code 3, for corruption or divergence.
pub fn damaged(message: impl std::fmt::Display) -> Failure {
    AdminError { message: message.to_string(), exit: 3 }.into()
}

/// Reads the request that opens an administrative stream, of at most `bytes_max` bytes.
///
/// # Errors
/// If the stream breaks, or the message is not a request known to this version.
pub async fn request<R: AsyncRead + Unpin>(stream: &mut R, bytes_max: usize) -> Result<Request, Failure> {
    let (kind, body) = wire::read_at_most(stream, bytes_max).await?.ok_or(WireError::Closed)?;
    if kind != Kind::AdminRequest {
        return Err(refuse(format!("expected a request, found a message {kind:?}")));
    }
    serde_json::from_slice(&body)
        .map_err(|error| refuse(format!("cannot decode the request ({error}); use the same version on both sides")))
}

/// The responding side of an administrative stream.
pub struct Answer<'a, W> {
    stream: &'a mut W,
}

impl<'a, W: AsyncWrite + Unpin> Answer<'a, W> {
    /// Responds on `stream`.
    pub fn new(stream: &'a mut W) -> Answer<'a, W> {
        Answer { stream }
    }

    /// Sends one item.
    ///
    /// # Errors
    /// If the client is gone; the same holds for every method here.
    pub async fn item<T: Serialize>(&mut self, item: &T) -> Result<(), Failure> {
        Ok(wire::send_json(self.stream, Kind::AdminItem, item).await?)
    }

    /// Sends rows.
    ///
    /// # Errors
    /// See [`Answer::item`].
    pub async fn rows(&mut self, rows: &[Row]) -> Result<(), Failure> {
        Ok(self.raw(&message::encode(Kind::Rows, &rows)).await?)
    }

    /// Sends log frames.
    ///
    /// # Errors
    /// See [`Answer::item`].
    pub async fn frames(&mut self, frames: &[u8]) -> Result<(), Failure> {
        Ok(wire::send_raw(self.stream, Kind::Frames, frames).await?)
    }

    /// Sends an encoded message.
    ///
    /// # Errors
    /// See [`Answer::item`].
    pub async fn raw(&mut self, message: &[u8]) -> Result<(), WireError> {
        Ok(self.stream.write_all(message).await?)
    }

    /// Ends the response according to `result`.
    ///
    /// # Errors
    /// See [`Answer::item`].
    pub async fn end(self, result: Result<(), Failure>) -> Result<(), WireError> {
        match result {
            Ok(()) => wire::send_json(self.stream, Kind::AdminEnd, &serde_json::json!({})).await?,
            Err(Failure::Request(error)) => wire::send_json(self.stream, Kind::AdminError, &error).await?,
            Err(Failure::Wire(error)) => return Err(error),
        }
        self.stream.flush().await?;
        Ok(())
    }
}

/// Collects rows into batches of about [`ROWS_BYTES`].
#[derive(Default)]
pub struct RowBatch {
    rows: Vec<Row>,
    bytes: usize,
}

impl RowBatch {
    /// Adds a row; returns the batch when it is full.
    pub fn push(&mut self, row: Row) -> Option<Vec<Row>> {
        self.bytes += match &row {
            Row::Object { key, value, .. } => key.len() + value.len() + 64,
            Row::Origin { .. } | Row::Maker { .. } | Row::Withheld { .. } => 64,
        };
        self.rows.push(row);
        (self.bytes >= ROWS_BYTES).then(|| self.take())
    }

    /// Returns the collected rows.
    pub fn take(&mut self) -> Vec<Row> {
        self.bytes = 0;
        std::mem::take(&mut self.rows)
    }
}
