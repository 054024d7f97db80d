//! Bodies of requests that are read into memory: how long one of a stranger may take, and how much there may be at a time.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt};
use tokio::time::{Sleep, sleep};

use super::error::ApiError;

/// A stranger's whole body arrives within this time, however it is sent.
const STRANGERS_TIME_MAX: Duration = Duration::from_secs(10);
/// Bytes of bodies in memory at a time: of strangers, and of all users.
const STRANGERS_BYTES_MAX: usize = 32 << 20;
const USERS_BYTES_MAX: usize = 256 << 20;

/// Bytes of one kind of bodies that are in memory.
struct Budget {
    used: AtomicUsize,
    most: usize,
}

static STRANGERS: Budget = Budget { used: AtomicUsize::new(0), most: STRANGERS_BYTES_MAX };
static USERS: Budget = Budget { used: AtomicUsize::new(0), most: USERS_BYTES_MAX };

/// What one request has taken of a budget; given back when it has been answered.
struct Share {
    budget: &'static Budget,
    bytes: AtomicUsize,
    is_refused: AtomicBool,
    is_late: AtomicBool,
}

impl Share {
    fn of(budget: &'static Budget) -> Arc<Share> {
        let (bytes, is_refused, is_late) = (AtomicUsize::new(0), AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Share { budget, bytes, is_refused, is_late })
    }

    fn take(&self, bytes: usize) -> bool {
        // Counted first, so that many who come at once cannot all find the last bytes.
        let before = self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = before + bytes <= self.budget.most;
        self.is_refused.fetch_or(!fits, Ordering::Relaxed);
        fits
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}

/// A body that is counted while it arrives, and ends with an error when it takes too long.
struct Counted {
    body: BodyDataStream,
    share: Arc<Share>,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Stream for Counted {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let failed = |kind: io::ErrorKind| Poll::Ready(Some(Err(axum::Error::new(io::Error::from(kind)))));
        match self.body.poll_next_unpin(cx) {
            Poll::Ready(Some(Ok(bytes))) if !self.share.take(bytes.len()) => failed(io::ErrorKind::OutOfMemory),
            Poll::Ready(piece) => Poll::Ready(piece),
            Poll::Pending => match self.deadline.as_mut().map(|deadline| deadline.as_mut().poll(cx)) {
                Some(Poll::Ready(())) => {
                    self.share.is_late.store(true, Ordering::Relaxed);
                    failed(io::ErrorKind::TimedOut)
                }
                _ => Poll::Pending,
            },
        }
    }
}

async fn bounded(budget: &'static Budget, time_max: Option<Duration>, request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let share = Share::of(budget);
    let counted = |body: Body| Counted {
        body: body.into_data_stream(),
        share: Arc::clone(&share),
        deadline: time_max.map(|time_max| Box::pin(sleep(time_max))),
    };
    let response = next.run(request.map(|body| Body::from_stream(counted(body)))).await;
    if share.is_refused.load(Ordering::Relaxed) {
        let busy = "too many large requests are under way; try again in a moment";
        return ApiError::new(StatusCode::SERVICE_UNAVAILABLE, busy).into_response();
    }
    if share.is_late.load(Ordering::Relaxed) {
        let late = format!("the body did not arrive within {} s", STRANGERS_TIME_MAX.as_secs());
        return ApiError::new(StatusCode::REQUEST_TIMEOUT, late).into_response();
    }
    response
}

/// For routes that strangers may use.
pub(super) async fn of_strangers(request: Request, next: Next) -> Response {
    bounded(&STRANGERS, Some(STRANGERS_TIME_MAX), request, next).await
}

/// For routes of users, behind the guard.
pub(super) async fn of_users(request: Request, next: Next) -> Response {
    bounded(&USERS, None, request, next).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p15_a_budget_is_given_back() {
        static BUDGET: Budget = Budget { used: AtomicUsize::new(0), most: 10 };
        let (first, second) = (Share::of(&BUDGET), Share::of(&BUDGET));
        assert!(first.take(6) && !second.take(5) && second.is_refused.load(Ordering::Relaxed));
        drop(second);
        let third = Share::of(&BUDGET);
        assert!(third.take(4) && !first.is_refused.load(Ordering::Relaxed));
        drop((first, third));
        assert_eq!(BUDGET.used.load(Ordering::Relaxed), 0);
    }

    fn body(share: &Arc<Share>, time_max: Duration, pieces: impl Stream<Item = Bytes> + Send + 'static) -> Counted {
        let pieces = Body::from_stream(pieces.map(Ok::<_, io::Error>));
        let deadline = Some(Box::pin(sleep(time_max)));
        Counted { body: pieces.into_data_stream(), share: Arc::clone(share), deadline }
    }

    #[tokio::test]
    async fn p15_a_body_that_comes_byte_by_byte_ends_with_its_time() {
        static BUDGET: Budget = Budget { used: AtomicUsize::new(0), most: 1000 };
        let share = Share::of(&BUDGET);
        let drip = futures_util::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Some((Bytes::from_static(b"a"), ()))
        });
        let mut counted = body(&share, Duration::from_millis(50), drip);
        while counted.next().await.expect("an error at last").is_ok() {}
        assert!(share.is_late.load(Ordering::Relaxed) && !share.is_refused.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn p15_a_body_beyond_the_budget_ends() {
        static BUDGET: Budget = Budget { used: AtomicUsize::new(0), most: 1000 };
        let share = Share::of(&BUDGET);
        let mut counted = body(&share, STRANGERS_TIME_MAX, futures_util::stream::repeat(Bytes::from_static(&[7; 300])));
        for _ in 0..3 {
            counted.next().await.expect("a piece").expect("fits");
        }
        assert!(counted.next().await.expect("an error").is_err() && share.is_refused.load(Ordering::Relaxed));
    }
}
