//! Multipart forms. The parser buffers a part's head, and what comes before the first part, until they are complete; here
//! that is bounded.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::header;
use futures_util::{Stream, StreamExt as _};

use super::error::{ApiError, ApiResult};

/// Maximum number of bytes that the parser has taken and not returned as contents: what it buffers, and the heads of all
/// parts.
const TAKEN_BYTES_MAX: usize = 64 << 10;

/// Bytes that the parser has taken.
#[derive(Debug, Default)]
struct Taken {
    bytes: AtomicUsize,
    /// Whether the parser was told to look at what it has, and has returned nothing since.
    rests: AtomicBool,
}

impl Taken {
    fn is_too_much(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > TAKEN_BYTES_MAX
    }

    /// Notes that the parser has returned something, with so many bytes of contents.
    fn note_returned(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.rests.store(false, Ordering::Relaxed);
    }
}

/// The body of a form. The parser takes all that it can get, so the body rests at the limit; if it is asked again although
/// nothing was found meanwhile, it fails.
struct Counted {
    body: BodyDataStream,
    taken: Arc<Taken>,
}

impl Stream for Counted {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.taken.is_too_much() {
            if self.taken.rests.swap(true, Ordering::Relaxed) {
                return Poll::Ready(Some(Err(axum::Error::new(io::Error::from(io::ErrorKind::InvalidData)))));
            }
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let piece = self.body.poll_next_unpin(cx);
        if let Poll::Ready(Some(Ok(bytes))) = &piece {
            self.taken.bytes.fetch_add(bytes.len(), Ordering::Relaxed);
        }
        piece
    }
}

/// A form that is being received.
pub(super) struct Form {
    form: Multipart,
    taken: Arc<Taken>,
}

/// A part of a form.
pub(super) struct Part<'a> {
    field: Field<'a>,
    taken: Arc<Taken>,
}

impl<S: Send + Sync> FromRequest<S> for Form {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> ApiResult<Form> {
        let taken = Arc::<Taken>::default();
        let counted = |body: Body| Counted { body: body.into_data_stream(), taken: Arc::clone(&taken) };
        let request = request.map(|body| Body::from_stream(counted(body)));
        let form = Multipart::from_request(request, state).await;
        let form = form.map_err(|rejection| ApiError::new(rejection.status(), rejection.body_text()))?;
        Ok(Form { form, taken })
    }
}

/// Returns the size of a body, if the client stated it.
pub(super) fn announced(headers: &axum::http::HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn wrong(error: &MultipartError, taken: &Taken) -> ApiError {
    if taken.is_too_much() {
        return ApiError::bad(format!(
            "the heads of the parts of the form have more than {} KiB",
            TAKEN_BYTES_MAX >> 10
        ));
    }
    ApiError::new(error.status(), error.body_text())
}

impl Form {
    /// Returns the next part. The previous one must have been read to its end, or skipped.
    pub(super) async fn next(&mut self) -> ApiResult<Option<Part<'_>>> {
        let taken = Arc::clone(&self.taken);
        let field = self.form.next_field().await.map_err(|error| wrong(&error, &taken))?;
        taken.note_returned(0);
        Ok(field.map(|field| Part { field, taken }))
    }
}

impl Part<'_> {
    pub(super) fn name(&self) -> Option<&str> {
        self.field.name()
    }

    /// Returns the next piece; `None` at the end of the part.
    pub(super) async fn chunk(&mut self) -> ApiResult<Option<Bytes>> {
        let piece = self.field.chunk().await.map_err(|error| wrong(&error, &self.taken))?;
        self.taken.note_returned(piece.as_ref().map_or(0, Bytes::len));
        Ok(piece)
    }

    /// Reads the part to its end and discards it.
    pub(super) async fn skip(mut self) -> ApiResult<()> {
        while self.chunk().await?.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: usize = 16 << 10;

    /// Reads a form with this body, and returns the names of its parts with their sizes, and the bytes taken.
    async fn read(begin: &str, filling: usize, end: &str) -> (ApiResult<Vec<(String, usize)>>, usize) {
        let taken = Arc::new(AtomicUsize::new(0));
        let filling = std::iter::repeat_n(Bytes::from_static(&[b'x'; PIECE]), filling / PIECE);
        let pieces = std::iter::once(Bytes::from(begin.to_owned())).chain(filling);
        let pieces: Vec<Bytes> = pieces.chain([Bytes::from(end.to_owned())]).collect();
        let counter = Arc::clone(&taken);
        let pieces = futures_util::stream::iter(pieces).map(move |piece| {
            counter.fetch_add(piece.len(), Ordering::Relaxed);
            Ok::<_, io::Error>(piece)
        });
        let request = Request::post("/").header(header::CONTENT_TYPE, "multipart/form-data; boundary=b");
        let request = request.body(Body::from_stream(pieces)).expect("a request");
        let parts = async {
            let (mut form, mut parts) = (Form::from_request(request, &()).await?, Vec::new());
            while let Some(mut part) = form.next().await? {
                let (name, mut bytes) = (part.name().unwrap_or_default().to_owned(), 0);
                if name == "skipped" {
                    part.skip().await?;
                    continue;
                }
                while let Some(piece) = part.chunk().await? {
                    bytes += piece.len();
                }
                parts.push((name, bytes));
            }
            Ok(parts)
        };
        (parts.await, taken.load(Ordering::Relaxed))
    }

    fn head(name: &str) -> String {
        format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"f\"\r\n\r\n")
    }

    #[tokio::test]
    async fn parts_of_any_size_are_read() {
        let end = format!("\r\n{}1\r\n--b--\r\n", head("GID"));
        let (parts, _) = read(&head("file"), 1 << 20, &end).await;
        assert_eq!(parts.expect("reads"), [("file".to_owned(), 1 << 20), ("GID".to_owned(), 1)]);
        let (parts, _) = read(&head("skipped"), 1 << 20, &end).await;
        assert_eq!(parts.expect("reads"), [("GID".to_owned(), 1)]);
    }

    #[tokio::test]
    async fn p15_what_comes_before_a_part_is_bounded() {
        let unfinished = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"".to_owned();
        let second = format!("{}a\r\n{unfinished}", head("a"));
        // Parts that come in one piece are not a reason to take more.
        let many = format!("{}a\r\n", head("skipped")).repeat(1000);
        for begin in [String::new(), unfinished, second, many] {
            let (parts, taken) = read(&begin, 1 << 20, "").await;
            let error = parts.expect_err("is refused");
            assert!(error.message().contains("64 KiB"), "{}", error.message());
            assert!(taken <= begin.len() + TAKEN_BYTES_MAX + 2 * PIECE, "{taken} bytes taken");
        }
    }
}
