//! Messages on streams, both QUIC streams and the local socket.

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use gravwell_model::codec::message::{self, BadMessage, HEADER_BYTES, Kind, MESSAGE_BYTES_MAX, Refused};

use super::close_reason::ClosedBy;

/// Error of reading or writing a message.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stream failed or ended within a message.
    #[error("connection failed: {0}")]
    Io(std::io::Error),
    /// The message is malformed or not expected here.
    #[error(transparent)]
    Message(#[from] BadMessage),
    /// The stream ended where a message was expected.
    #[error("the peer closed the connection")]
    Closed,
    /// The other side closed the connection, with its reason.
    #[error(transparent)]
    ClosedBy(#[from] ClosedBy),
    /// The other side rejected the request, with its reason.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// Reads the next message; `None` at the end of the stream.
///
/// # Errors
/// If the stream breaks or the message is malformed.
pub async fn read<R: AsyncRead + Unpin>(stream: &mut R) -> Result<Option<(Kind, Bytes)>, WireError> {
    read_at_most(stream, MESSAGE_BYTES_MAX).await
}

/// Like [`read`], but ignores messages of unknown kinds, which a newer version may send.
///
/// # Errors
/// See [`read`].
pub async fn read_known<R: AsyncRead + Unpin>(stream: &mut R) -> Result<Option<(Kind, Bytes)>, WireError> {
    read_known_at_most(stream, MESSAGE_BYTES_MAX).await
}

/// Like [`read_known`], with a given size limit.
///
/// # Errors
/// See [`read`].
pub async fn read_known_at_most<R: AsyncRead + Unpin>(
    stream: &mut R,
    bytes_max: usize,
) -> Result<Option<(Kind, Bytes)>, WireError> {
    loop {
        match read_any(stream, bytes_max).await? {
            None => return Ok(None),
            Some((Ok(kind), body)) => return Ok(Some((kind, body))),
            Some((Err(unknown), _)) => tracing::debug!(%unknown, "ignoring unknown message kind"),
        }
    }
}

/// Like [`read`], with a given size limit, as for unauthenticated peers.
///
/// # Errors
/// See [`read`].
pub async fn read_at_most<R: AsyncRead + Unpin>(
    stream: &mut R,
    bytes_max: usize,
) -> Result<Option<(Kind, Bytes)>, WireError> {
    match read_any(stream, bytes_max).await? {
        None => Ok(None),
        Some((kind, body)) => Ok(Some((kind?, body))),
    }
}

type Message = (Result<Kind, BadMessage>, Bytes);

async fn read_any<R: AsyncRead + Unpin>(stream: &mut R, bytes_max: usize) -> Result<Option<Message>, WireError> {
    let Some((kind, length)) = any_header(stream, bytes_max).await? else { return Ok(None) };
    Ok(Some((kind, read_body(stream, length).await?)))
}

type Header = (Result<Kind, BadMessage>, usize);

async fn any_header<R: AsyncRead + Unpin>(stream: &mut R, bytes_max: usize) -> Result<Option<Header>, WireError> {
    let mut header = [0; HEADER_BYTES];
    if stream.read(&mut header[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut header[1..]).await?;
    let (kind, length) = message::decode_any_header(header, bytes_max)?;
    Ok(Some((kind.ok_or(BadMessage::UnknownKind(header[4])), length)))
}

/// Reads only the header of the next message: its kind and the size of its body. `None` at the end of the stream.
///
/// # Errors
/// See [`read`].
pub async fn read_header<R: AsyncRead + Unpin>(stream: &mut R) -> Result<Option<(Kind, usize)>, WireError> {
    match any_header(stream, MESSAGE_BYTES_MAX).await? {
        None => Ok(None),
        Some((kind, length)) => Ok(Some((kind?, length))),
    }
}

/// Reads `length` bytes of a body.
///
/// # Errors
/// If the stream breaks or ends before.
pub async fn read_body<R: AsyncRead + Unpin>(stream: &mut R, length: usize) -> Result<Bytes, WireError> {
    // The buffer grows with the data that arrives, not with the length that the header announces.
    let mut body = BytesMut::with_capacity(length.min(1 << 18));
    while body.len() < length {
        let missing = length - body.len();
        let mut limited = (&mut *stream).take(missing as u64);
        if limited.read_buf(&mut body).await? == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
    }
    Ok(body.freeze())
}

/// Skips `length` bytes of a body.
///
/// # Errors
/// See [`read_body`].
pub async fn skip_body<R: AsyncRead + Unpin>(stream: &mut R, length: usize) -> Result<(), WireError> {
    let skipped = tokio::io::copy(&mut stream.take(length as u64), &mut tokio::io::sink()).await?;
    if skipped < length as u64 {
        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
    }
    Ok(())
}

/// Reads a message that must be of the kind `kind`, and decodes its body.
///
/// # Errors
/// If another kind arrives (a refusal is returned as such), or as [`read`].
pub async fn expect<T: DeserializeOwned, R: AsyncRead + Unpin>(stream: &mut R, kind: Kind) -> Result<T, WireError> {
    expect_at_most(stream, kind, MESSAGE_BYTES_MAX).await
}

/// Like [`expect`], with a given size limit.
///
/// # Errors
/// See [`expect`].
pub async fn expect_at_most<T: DeserializeOwned, R: AsyncRead + Unpin>(
    stream: &mut R,
    kind: Kind,
    bytes_max: usize,
) -> Result<T, WireError> {
    let (found, body) = read_at_most(stream, bytes_max).await?.ok_or(WireError::Closed)?;
    if found == Kind::Refused && kind != Kind::Refused {
        let refused: Refused = message::decode(found, &body)?;
        return Err(refused.into());
    }
    if found != kind {
        return Err(BadMessage::Unexpected { expected: name(kind), found }.into());
    }
    Ok(message::decode(kind, &body)?)
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Open => "Open",
        Kind::Hello => "Hello",
        Kind::Welcome => "Welcome",
        Kind::Subscribe => "Subscribe",
        Kind::SnapshotBegin => "SnapshotBegin",
        Kind::SnapshotEnd => "SnapshotEnd",
        _ => "of another kind",
    }
}

/// Writes a message with a postcard body.
///
/// # Errors
/// If the stream breaks.
pub async fn send<T: Serialize, W: AsyncWrite + Unpin>(stream: &mut W, kind: Kind, body: &T) -> Result<(), WireError> {
    stream.write_all(&message::encode(kind, body)).await?;
    Ok(())
}

/// Writes a message with an encoded body.
///
/// # Errors
/// If the stream breaks.
pub async fn send_raw<W: AsyncWrite + Unpin>(stream: &mut W, kind: Kind, body: &[u8]) -> Result<(), WireError> {
    if body.len() < 4096 {
        stream.write_all(&message::encode_raw(kind, body)).await?;
    } else {
        stream.write_all(&message::header(kind, body.len())).await?;
        stream.write_all(body).await?;
    }
    Ok(())
}

/// Writes a message with a JSON body, as used for administration.
///
/// # Errors
/// If the stream breaks.
pub async fn send_json<T: Serialize, W: AsyncWrite + Unpin>(
    stream: &mut W,
    kind: Kind,
    body: &T,
) -> Result<(), WireError> {
    let body = serde_json::to_vec(body).map_err(std::io::Error::other)?;
    send_raw(stream, kind, &body).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use gravwell_model::Seq;
    use gravwell_model::codec::message::Subscribe;

    #[tokio::test]
    async fn p12_what_a_newer_version_says_besides_is_passed_over() {
        let mut bytes = vec![4, 0, 0, 0, 250, 1, 2, 3];
        bytes.extend(message::encode(Kind::Subscribe, &Subscribe { from: Seq(7) }));
        assert!(read(&mut bytes.as_slice()).await.is_err());
        let mut stream = bytes.as_slice();
        let (kind, body) = read_known(&mut stream).await.expect("reads").expect("a message");
        assert_eq!(message::decode::<Subscribe>(kind, &body).expect("decodes").from, Seq(7));
        assert!(read_known(&mut stream).await.expect("ends").is_none());
    }
}
