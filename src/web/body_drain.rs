//! Draining of a request body that the handler did not read to the end, as when it rejects the request.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderValue, Version, header};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::{Stream, StreamExt};

use super::lingering_close::Unread;

/// Maximum size of a remainder that is read so that the connection can be reused.
const READ_BYTES_MAX: usize = 64 << 10;
/// Maximum time for reading the remainder.
const READ_TIME_MAX: Duration = Duration::from_secs(1);

/// Slot for the unread remainder of a body and the number of bytes read before it.
type RemainderSlot = Arc<Mutex<Option<(BodyDataStream, u64)>>>;

/// A body that is put back into its slot when it is dropped before its end.
struct BorrowedBody {
    body: Option<BodyDataStream>,
    read: u64,
    place: RemainderSlot,
}

impl Stream for BorrowedBody {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let piece = body.poll_next_unpin(cx);
        match &piece {
            Poll::Ready(Some(Ok(bytes))) => self.read += bytes.len() as u64,
            Poll::Ready(None | Some(Err(_))) => self.body = None,
            Poll::Pending => {}
        }
        piece
    }
}

impl Drop for BorrowedBody {
    fn drop(&mut self) {
        let rest = self.body.take().map(|body| (body, self.read));
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = rest;
    }
}

async fn read_rest(mut body: BodyDataStream) -> io::Result<()> {
    let mut bytes = 0;
    while let Some(piece) = body.next().await {
        bytes += piece.map_err(io::Error::other)?.len();
        if bytes > READ_BYTES_MAX {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
    }
    Ok(())
}

/// Middleware that reads a short remainder of the body. For a long one, it announces that the connection will be closed
/// and marks it for lingering.
pub(super) async fn settle(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let place = RemainderSlot::default();
    let (version, unread) = (request.version(), request.extensions().get::<Unread>().cloned());
    let announced = request.body().size_hint().lower();
    let lent = |body: Body| BorrowedBody { body: Some(body.into_data_stream()), read: 0, place: Arc::clone(&place) };
    let mut response = next.run(request.map(|body| Body::from_stream(lent(body)))).await;
    let left = place.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some((rest, read)) = left else { return response };
    let is_short = announced.saturating_sub(read) <= READ_BYTES_MAX as u64;
    let is_read = is_short && tokio::time::timeout(READ_TIME_MAX, read_rest(rest)).await.is_ok_and(|read| read.is_ok());
    // An HTTP/2 stream can end without its connection.
    if !is_read && version < Version::HTTP_2 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        if let Some(unread) = unread {
            unread.note();
        }
    }
    response
}
