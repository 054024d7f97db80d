//! Limits of streamed requests and responses: uploads, imports, backups and contents. Each holds files, buffers and disk
//! space while it lasts. So their number per user is limited, further ones queue, and a client that sends too slowly
//! is disconnected.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, BodyDataStream, Bytes, HttpBody as _};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt as _};
use tokio::sync::Semaphore;
use tokio::time::{Sleep, sleep};

use super::answers;
use super::bodies::{Share, USERS};
use super::caller::Caller;
use super::error::ApiError;
use crate::env::shares::{self, Shares};

/// Maximum number of concurrent streamed requests, of all users and of one.
const REQUESTS_MAX: usize = 64;
const REQUESTS_OF_USER: usize = 8;
/// Maximum number of concurrent streamed responses of one user.
const ANSWERS_OF_USER: usize = 32;
/// Longest wait in the queue.
const IN_LINE: Duration = Duration::from_secs(30);
/// Buffer memory of a streamed request.
const BUFFERS_BYTES: usize = 2 << 20;
/// Minimum rate of a streamed request, measured while the handler waits for data: 4 KiB per second.
const PACE: Pace = Pace { bytes: 256 << 10, within: Duration::from_secs(60) };

static REQUESTS: LazyLock<Shares<i32>> = LazyLock::new(|| Shares::new(REQUESTS_MAX, REQUESTS_OF_USER));
static ANSWERS: LazyLock<Shares<i32>> = LazyLock::new(|| Shares::new(Semaphore::MAX_PERMITS, ANSWERS_OF_USER));

#[derive(Clone, Copy)]
struct Pace {
    bytes: usize,
    within: Duration,
}

/// A body that fails when data arrives too slowly. Time in which the handler does not poll it is not counted.
struct Paced {
    body: BodyDataStream,
    pace: Pace,
    /// Bytes received in the current measurement.
    brought: usize,
    waited: Duration,
    waits: Option<(Instant, Pin<Box<Sleep>>)>,
    share: Arc<Share>,
}

impl Paced {
    fn new(body: Body, pace: Pace, share: Arc<Share>) -> Paced {
        let body = body.into_data_stream();
        Paced { body, pace, brought: 0, waited: Duration::ZERO, waits: None, share }
    }

    fn note(&mut self, bytes: usize) {
        self.waited += self.waits.take().map_or(Duration::ZERO, |(since, _)| since.elapsed());
        self.brought += bytes;
        if self.brought >= self.pace.bytes {
            (self.brought, self.waited) = (0, Duration::ZERO);
        }
    }
}

impl Stream for Paced {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Poll::Ready(piece) = self.body.poll_next_unpin(cx) {
            self.note(piece.as_ref().map_or(0, |piece| piece.as_ref().map_or(0, Bytes::len)));
            return Poll::Ready(piece);
        }
        let left = self.pace.within.saturating_sub(self.waited);
        let (_, end) = self.waits.get_or_insert_with(|| (Instant::now(), Box::pin(sleep(left))));
        if end.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.share.note_late();
        Poll::Ready(Some(Err(axum::Error::new(io::Error::from(io::ErrorKind::TimedOut)))))
    }
}

async fn place(places: &Shares<i32>, uid: i32, in_line: Duration, what: &str) -> Result<shares::Share, ApiError> {
    let taken = tokio::time::timeout(in_line, places.take(Some(uid), 1)).await;
    let taken = taken.map_err(|_| match places.free() {
        0 => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, format!("too many {what} are under way: try again later")),
        _ => {
            let message = format!("too many {what} of yours are under way: wait for one to end");
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, message)
        }
    })?;
    taken.map_err(ApiError::internal)
}

async fn received(uid: i32, place: shares::Share, request: Request, next: Next) -> Response {
    let share = Share::of(&USERS, Some(uid));
    if !share.take(BUFFERS_BYTES)
        && let Some(refusal) = share.refusal()
    {
        return refusal.into_response();
    }
    let paced = |body: Body| Body::from_stream(Paced::new(body, PACE, Arc::clone(&share)));
    let response = next.run(request.map(paced)).await;
    drop(place);
    if share.is_late() {
        let (bytes, seconds) = (PACE.bytes >> 10, PACE.within.as_secs());
        let late = format!("less than {bytes} KiB came within {seconds} s: the upload was given up");
        return ApiError::new(StatusCode::REQUEST_TIMEOUT, late).into_response();
    }
    answers::counted(uid, response)
}

/// Middleware for routes whose handlers bound their bodies, behind authorization.
pub(super) async fn of_users(request: Request, next: Next) -> Response {
    let Some(uid) = request.extensions().get::<Caller>().map(|caller| caller.person.uid) else {
        return next.run(request).await;
    };
    if !request.body().is_end_stream() {
        return match place(&REQUESTS, uid, IN_LINE, "uploads").await {
            Ok(place) => received(uid, place, request, next).await,
            Err(refusal) => refusal.into_response(),
        };
    }
    match place(&ANSWERS, uid, IN_LINE, "downloads").await {
        Ok(place) => answers::counted_with(uid, next.run(request).await, Box::new(place)),
        Err(refusal) => refusal.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::bodies::Budget;
    use super::*;

    static BUDGET: Budget = Budget::new(100);

    /// Returns a body of `count` pieces with a delay before each.
    fn pieces(count: usize, bytes: usize, every: Duration) -> Body {
        let pieces = futures_util::stream::iter(0..count).then(move |_| async move {
            sleep(every).await;
            Ok::<_, io::Error>(Bytes::from(vec![7; bytes]))
        });
        Body::from_stream(pieces)
    }

    #[tokio::test]
    async fn p15_a_streamed_body_that_hardly_comes_is_given_up() {
        let ms = Duration::from_millis;
        let share = Share::of(&BUDGET, None);
        let pace = Pace { bytes: 1000, within: ms(200) };
        let mut slow = Paced::new(pieces(1000, 1, ms(5)), pace, Arc::clone(&share));
        while slow.next().await.expect("does not end").is_ok() {}
        assert!(share.is_late());
        let share = Share::of(&BUDGET, None);
        let pace = Pace { bytes: 1000, within: ms(1000) };
        let mut fast = Paced::new(pieces(20, 100, ms(5)), pace, Arc::clone(&share));
        let mut came = 0;
        while let Some(piece) = fast.next().await {
            came += piece.expect("comes fast enough").len();
            // The handler polls slowly, which does not count against the client.
            sleep(ms(150)).await;
        }
        assert!(!share.is_late() && came == 20 * 100);
    }

    #[tokio::test]
    async fn p15_streamed_requests_of_one_user_are_few_and_the_next_ones_wait() {
        let places = Arc::new(Shares::new(4, 2));
        let now = Duration::from_millis(20);
        let held = [place(&places, 1, now, "uploads").await, place(&places, 1, now, "uploads").await];
        assert!(held.iter().all(Result::is_ok));
        let status = |refused: Result<shares::Share, ApiError>| refused.err().map(|error| error.status());
        assert_eq!(status(place(&places, 1, now, "uploads").await), Some(StatusCode::TOO_MANY_REQUESTS));
        let others = [place(&places, 2, now, "uploads").await, place(&places, 2, now, "uploads").await];
        assert_eq!(status(place(&places, 3, now, "uploads").await), Some(StatusCode::SERVICE_UNAVAILABLE));
        drop(others);
        let line: Vec<_> = (0..16)
            .map(|_| {
                let places = Arc::clone(&places);
                tokio::spawn(async move { place(&places, 1, IN_LINE, "uploads").await.map(drop) })
            })
            .collect();
        sleep(now).await;
        drop(held);
        for one in line {
            assert!(one.await.expect("no panic").is_ok(), "each has its turn");
        }
    }
}
