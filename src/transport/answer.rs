//! Answering an administrative request: items, rows, frames, then an end or an error.

use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::codec::admin::{AdminError, Request};
use crate::codec::message::{self, Kind, Row};

use super::wire::{self, WireError};

/// Rows are sent in messages of about this size.
pub const ROWS_BYTES: usize = 256 << 10;

/// Why a request came to no good end.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The client is gone.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The request failed; the client is told.
    #[error(transparent)]
    Request(#[from] AdminError),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::Wire(error.into())
    }
}

/// A request that fails with exit code 1.
pub fn refuse(message: impl std::fmt::Display) -> Failure {
    AdminError { message: message.to_string(), exit: 1 }.into()
}

/// A request that found damage or divergence: exit code 3.
pub fn damaged(message: impl std::fmt::Display) -> Failure {
    AdminError { message: message.to_string(), exit: 3 }.into()
}

/// Reads the request that opens an administrative stream, of at most `bytes_max` bytes.
///
/// # Errors
/// When the stream breaks, or what comes is not a request that this version knows.
pub async fn request<R: AsyncRead + Unpin>(stream: &mut R, bytes_max: usize) -> Result<Request, Failure> {
    let (kind, body) = wire::read_at_most(stream, bytes_max).await?.ok_or(WireError::Closed)?;
    if kind != Kind::AdminRequest {
        return Err(refuse(format!("expected a request, found a message {kind:?}")));
    }
    serde_json::from_slice(&body).map_err(|error| {
        refuse(format!("this version does not know the request ({error}); use the same version of both"))
    })
}

/// The answering side of an administrative stream.
pub struct Answer<'a, W> {
    stream: &'a mut W,
}

impl<'a, W: AsyncWrite + Unpin> Answer<'a, W> {
    /// Answers on `stream`.
    pub fn new(stream: &'a mut W) -> Answer<'a, W> {
        Answer { stream }
    }

    /// Sends one item.
    ///
    /// # Errors
    /// When the client is gone; so for every method here.
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

    /// Ends the answer according to `result`.
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

/// Gathers rows into batches of about [`ROWS_BYTES`].
#[derive(Default)]
pub struct RowBatch {
    rows: Vec<Row>,
    bytes: usize,
}

impl RowBatch {
    /// Takes in a row; gives the batch back when it is full.
    pub fn push(&mut self, row: Row) -> Option<Vec<Row>> {
        self.bytes += match &row {
            Row::Object { key, value, .. } => key.len() + value.len() + 64,
            Row::Origin { .. } | Row::Maker { .. } | Row::Withheld { .. } => 64,
        };
        self.rows.push(row);
        (self.bytes >= ROWS_BYTES).then(|| self.take())
    }

    /// What has gathered.
    pub fn take(&mut self) -> Vec<Row> {
        self.bytes = 0;
        std::mem::take(&mut self.rows)
    }
}
