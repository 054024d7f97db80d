//! Buffering of responses. The buffered part of a response is bounded, counts in its user's budget, and is dropped when
//! the client reads nothing for too long.
//!
//! A stalled stream does not close its HTTP/2 connection, and is not even polled for its next piece. So a separate task
//! frees the buffer.

use std::any::Any;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use tokio::sync::watch;

use super::body_budget::{ANSWERS, Share};

/// Size of the pieces that are passed on. They are copies, so that one piece waiting in a connection does not keep a
/// large response in memory.
const PIECE_BYTES: usize = 16 << 10;
/// A response is dropped when the client reads nothing of it for this long.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);
/// Smaller responses are not counted, and those of unknown length count as this many bytes. Downloads account for their
/// buffers themselves.
const LARGE_BYTES: usize = 64 << 10;

/// Resource that is released when a response has been read or dropped.
type HeldResource = Box<dyn Any + Send>;

/// Counts a response in the budget of a user until the client has read it.
pub(super) fn counted(uid: i32, response: Response) -> Response {
    counted_with(uid, response, Box::new(()))
}

/// Like [`counted`], for a response that holds a resource for the same time.
pub(super) fn counted_with(uid: i32, response: Response, kept: HeldResource) -> Response {
    let size = response.body().size_hint().exact();
    if size.is_some_and(|size| size < LARGE_BYTES as u64) {
        return response;
    }
    let share = Share::of(&ANSWERS, Some(uid));
    if !share.take(size.map_or(LARGE_BYTES, |size| usize::try_from(size).unwrap_or(usize::MAX))) {
        return share.refusal().map_or(response, IntoResponse::into_response);
    }
    response.map(|body| Body::new(Given::new(body, size, Box::new((share, kept)), TAKEN_WITHIN)))
}

/// Unsent part of a response.
struct Waiting {
    body: Body,
    piece: Bytes,
    _kept: HeldResource,
}

/// Party for which a response waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    /// The client, to read the next piece.
    Client,
    /// The producer of the body.
    Maker,
}

/// Waker that wakes the connection and records that the client is next.
struct Ready {
    waits: watch::Sender<For>,
    connection: Waker,
}

impl Wake for Ready {
    fn wake(self: Arc<Self>) {
        self.waits.send_replace(For::Client);
        self.connection.wake_by_ref();
    }
}

/// A response body that is passed on in small pieces, so that it counts until the last one was read. It is dropped when
/// nothing is read for too long.
struct Given {
    waiting: Arc<Mutex<Option<Waiting>>>,
    /// Remaining bytes, if known.
    left: Option<u64>,
    waits: watch::Sender<For>,
}

impl Given {
    fn new(body: Body, size: Option<u64>, kept: HeldResource, patience: Duration) -> Given {
        let waiting = Arc::new(Mutex::new(Some(Waiting { body, piece: Bytes::new(), _kept: kept })));
        let (waits, mut news) = watch::channel(For::Client);
        let watched = Arc::downgrade(&waiting);
        tokio::spawn(async move {
            loop {
                let waits = *news.borrow_and_update();
                let changed = match waits {
                    For::Maker => news.changed().await,
                    For::Client => match tokio::time::timeout(patience, news.changed()).await {
                        Ok(changed) => changed,
                        Err(_) => break,
                    },
                };
                if changed.is_err() {
                    return;
                }
            }
            let given_up = watched.upgrade().and_then(|waiting| lock(&waiting).take());
            drop(given_up);
        });
        Given { waiting, left: size, waits }
    }
}

fn lock(waiting: &Mutex<Option<Waiting>>) -> std::sync::MutexGuard<'_, Option<Waiting>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HttpBody for Given {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let waiting = Arc::clone(&self.waiting);
        let mut waiting = lock(&waiting);
        let Some(Waiting { body, piece, .. }) = waiting.as_mut() else {
            return Poll::Ready(Some(Err(axum::Error::new(io::Error::from(io::ErrorKind::TimedOut)))));
        };
        while piece.is_empty() {
            // Set before the body is polled, so that a wake-up during the poll is not lost.
            self.waits.send_replace(For::Maker);
            let ready = Ready { waits: self.waits.clone(), connection: cx.waker().clone() };
            let frame = Pin::new(&mut *body).poll_frame(&mut Context::from_waker(&Waker::from(Arc::new(ready))));
            let Poll::Ready(frame) = frame else { return Poll::Pending };
            match frame.transpose()?.map(Frame::into_data) {
                Some(Ok(bytes)) => *piece = bytes,
                Some(Err(other)) => {
                    self.waits.send_replace(For::Client);
                    return Poll::Ready(Some(Ok(other)));
                }
                None => return Poll::Ready(None),
            }
        }
        let part = Bytes::copy_from_slice(&piece[..piece.len().min(PIECE_BYTES)]);
        if part.len() == piece.len() {
            *piece = Bytes::new();
        } else {
            bytes::Buf::advance(piece, part.len());
        }
        self.left = self.left.map(|left| left.saturating_sub(part.len() as u64));
        self.waits.send_replace(For::Client);
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use futures_util::FutureExt as _;
    use http_body_util::BodyExt as _;
    use tokio::sync::mpsc;

    use super::super::body_budget::{Budget, USER_BYTES_MAX};
    use super::*;

    /// Buffer whose reference count shows whether bytes of it are held.
    struct Owner(Arc<Vec<u8>>);

    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    async fn has_given_up(given: &std::sync::Weak<Mutex<Option<Waiting>>>) {
        let is_there = || given.upgrade().is_some_and(|waiting| lock(&waiting).is_some());
        while is_there() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn p15_a_large_answer_counts_until_its_last_piece_was_taken() {
        let large = || counted(4713, Body::from(vec![7; USER_BYTES_MAX]).into_response()).into_body();
        let (mut body, mut got) = (large(), 0);
        for _ in 0..3 {
            got += body.frame().await.expect("a piece").expect("frame is ok").into_data().expect("data").len();
        }
        assert_eq!((got, body.size_hint().exact()), (3 * PIECE_BYTES, Some((USER_BYTES_MAX - got) as u64)));
        let small = || counted(4713, Body::from(vec![7; 1 << 20]).into_response()).status();
        assert_eq!(small(), StatusCode::TOO_MANY_REQUESTS, "most of the response is unread");
        drop(body);
        assert_eq!(small(), StatusCode::OK);
        let whole = large().collect().await.expect("reads to the end").to_bytes();
        assert!(whole.len() == USER_BYTES_MAX && whole.iter().all(|byte| *byte == 7));
    }

    #[tokio::test]
    async fn p15_a_large_answer_of_which_nothing_is_taken_is_given_up() {
        static BUDGET: Budget = Budget::new(100);
        let share = Share::of(&BUDGET, Some(1));
        assert!(share.take(100));
        let given = Given::new(Body::from(vec![7; 100]), Some(100), Box::new(share), Duration::from_millis(1));
        has_given_up(&Arc::downgrade(&given.waiting)).await;
        assert_eq!(BUDGET.used(), 0, "the budget is released");
        assert!(Body::new(given).collect().await.is_err(), "a partial body is an error");
    }

    #[tokio::test]
    async fn p15_large_answers_of_one_user_are_counted_until_they_were_taken() {
        let large = || Body::from(vec![7; USER_BYTES_MAX / 4]).into_response();
        let held: Vec<Response> = (0..4).map(|_| counted(4711, large())).collect();
        assert!(held.iter().all(|answer| answer.status() == StatusCode::OK));
        assert_eq!(held[0].body().size_hint().exact(), Some(USER_BYTES_MAX as u64 / 4), "the length is announced");
        assert_eq!(counted(4711, large()).status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(counted(4711, Body::from("small").into_response()).status(), StatusCode::OK);
        assert_eq!(counted(4712, large()).status(), StatusCode::OK, "another user has a separate limit");
        drop(held);
        assert_eq!(counted(4711, large()).status(), StatusCode::OK);
    }

    /// Returns a response that a producer fills piece by piece.
    fn made(kept: HeldResource, patience: Duration) -> (mpsc::Sender<Bytes>, Given) {
        let (to, receiver) = mpsc::channel::<Bytes>(1);
        let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|piece| (Ok::<_, io::Error>(piece), receiver))
        });
        (to, Given::new(Body::from_stream(pieces), None, kept, patience))
    }

    #[tokio::test]
    async fn p15_what_is_made_slowly_is_waited_for_and_what_is_not_taken_is_given_up() {
        static BUDGET: Budget = Budget::new(100);
        let share = Share::of(&BUDGET, Some(1));
        assert!(share.take(100));
        let (to, mut given) = made(Box::new(share), Duration::from_millis(20));
        let waiting = Arc::downgrade(&given.waiting);
        assert!(given.frame().now_or_never().is_none(), "no data yet");
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(
            waiting.upgrade().is_some_and(|waiting| lock(&waiting).is_some()),
            "the producer is idle, not the client"
        );
        to.send(vec![7; 3 * PIECE_BYTES].into()).await.expect("the receiver is open");
        // The connection is woken but does not poll, because its client grants no flow-control window.
        has_given_up(&waiting).await;
        assert_eq!(BUDGET.used(), 0);
        assert!(to.is_closed(), "the producer is stopped");
        assert!(given.frame().await.expect("not the end").is_err(), "a partial body is an error");
    }

    #[tokio::test]
    async fn p15_what_waits_in_a_connection_does_not_hold_what_it_was_a_part_of() {
        let (to, mut given) = made(Box::new(()), TAKEN_WITHIN);
        let whole = Arc::new(vec![7u8; 3 * PIECE_BYTES]);
        to.send(Bytes::from_owner(Owner(Arc::clone(&whole)))).await.expect("the receiver is open");
        let mut parts = Vec::new();
        for _ in 0..3 {
            parts.push(given.frame().await.expect("a part").expect("frame is ok").into_data().expect("data"));
        }
        assert!(parts.iter().all(|part| part.len() == PIECE_BYTES && part.iter().all(|byte| *byte == 7)));
        assert_eq!(Arc::strong_count(&whole), 1, "the last part must be a copy");
        drop(to);
        assert!(given.frame().await.is_none());
    }

    #[tokio::test]
    async fn p15_answers_of_unknown_length_count_as_well() {
        let endless = || Body::from_stream(futures_util::stream::pending::<io::Result<Bytes>>()).into_response();
        let most = USER_BYTES_MAX / LARGE_BYTES;
        let held: Vec<Response> = (0..most).map(|_| counted(4714, endless())).collect();
        assert!(held.iter().all(|answer| answer.status() == StatusCode::OK));
        assert_eq!(counted(4714, endless()).status(), StatusCode::TOO_MANY_REQUESTS);
        drop(held);
        assert_eq!(counted(4714, endless()).status(), StatusCode::OK);
    }
}
