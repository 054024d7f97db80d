//! Bodies of requests that are read into memory: how long one of a stranger may take, and how much there may be at a time. The
//! same of large answers, which wait for clients that take them slowly, and of requests of one user that are worked on.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt};
use hyper::body::{Frame, SizeHint};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Sleep, sleep};

use super::caller::Caller;
use super::error::ApiError;
use crate::env::shares::Shares;

/// A stranger's whole body arrives within this time, however it is sent.
const STRANGERS_TIME_MAX: Duration = Duration::from_secs(10);
/// Bytes of bodies in memory at a time: of strangers, of all users, and of one user, who has two of the largest.
const STRANGERS_BYTES_MAX: usize = 32 << 20;
const USERS_BYTES_MAX: usize = 256 << 20;
const USER_BYTES_MAX: usize = 64 << 20;

/// Bytes of one kind of bodies that are in memory.
struct Budget {
    used: AtomicUsize,
    most: usize,
    /// The same of each user who has any.
    of_users: Mutex<BTreeMap<i32, usize>>,
}

impl Budget {
    const fn new(most: usize) -> Budget {
        Budget { used: AtomicUsize::new(0), most, of_users: Mutex::new(BTreeMap::new()) }
    }

    fn of_users(&self) -> MutexGuard<'_, BTreeMap<i32, usize>> {
        self.of_users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

static STRANGERS: Budget = Budget::new(STRANGERS_BYTES_MAX);
static USERS: Budget = Budget::new(USERS_BYTES_MAX);
static ANSWERS: Budget = Budget::new(USERS_BYTES_MAX);
/// Bytes of a large answer that are handed over at a time.
const PIECE_BYTES: usize = 16 << 10;
/// A large answer of which nothing is taken for this long is given up.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);
/// Answers that are shorter are not counted.
const LARGE_BYTES: u64 = 64 << 10;
/// Requests of one user that are worked on at the same time; the next ones wait for their turn.
const REQUESTS_OF_USER: usize = 32;
static TURNS: LazyLock<Shares<i32>> = LazyLock::new(|| Shares::new(Semaphore::MAX_PERMITS, REQUESTS_OF_USER));

/// What one request has taken of a budget; given back when it has been answered.
struct Share {
    budget: &'static Budget,
    uid: Option<i32>,
    bytes: AtomicUsize,
    /// There was too little for everybody, or for this user.
    is_refused: AtomicBool,
    is_users_own: AtomicBool,
    is_late: AtomicBool,
}

impl Share {
    fn of(budget: &'static Budget, uid: Option<i32>) -> Arc<Share> {
        let no = || AtomicBool::new(false);
        let bytes = AtomicUsize::new(0);
        Arc::new(Share { budget, uid, bytes, is_refused: no(), is_users_own: no(), is_late: no() })
    }

    fn take(&self, bytes: usize) -> bool {
        // Counted first, so that many who come at once cannot all find the last bytes.
        let before = self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let of_user = self.uid.map_or(0, |uid| {
            let mut of_users = self.budget.of_users();
            let used = of_users.entry(uid).or_default();
            *used += bytes;
            *used
        });
        let (fits, is_users_own) = (before + bytes <= self.budget.most, of_user > USER_BYTES_MAX);
        self.is_refused.fetch_or(!fits || is_users_own, Ordering::Relaxed);
        self.is_users_own.fetch_or(is_users_own, Ordering::Relaxed);
        fits && !is_users_own
    }

    /// Why there was no room, if there was none.
    fn refusal(&self) -> Option<ApiError> {
        if !self.is_refused.load(Ordering::Relaxed) {
            return None;
        }
        Some(match self.is_users_own.load(Ordering::Relaxed) {
            true => {
                let greedy = "too many large requests of yours are under way; wait until they are answered";
                ApiError::new(StatusCode::TOO_MANY_REQUESTS, greedy)
            }
            false => {
                let busy = "too many large requests are under way; try again in a moment";
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, busy)
            }
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
        let Some(uid) = self.uid else { return };
        let mut of_users = self.budget.of_users();
        if let Some(used) = of_users.get_mut(&uid) {
            *used -= bytes;
            if *used == 0 {
                of_users.remove(&uid);
            }
        }
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
    let share = Share::of(budget, request.extensions().get::<Caller>().map(|caller| caller.person.uid));
    let counted = |body: Body| Counted {
        body: body.into_data_stream(),
        share: Arc::clone(&share),
        deadline: time_max.map(|time_max| Box::pin(sleep(time_max))),
    };
    let response = next.run(request.map(|body| Body::from_stream(counted(body)))).await;
    if let Some(refusal) = share.refusal() {
        return refusal.into_response();
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

/// Counts a large answer until the client has taken it.
fn counted(uid: i32, response: Response) -> Response {
    let Some(size) = response.body().size_hint().exact().filter(|size| *size >= LARGE_BYTES) else { return response };
    let share = Share::of(&ANSWERS, Some(uid));
    if !share.take(usize::try_from(size).unwrap_or(usize::MAX)) {
        return share.refusal().map_or(response, IntoResponse::into_response);
    }
    response.map(|body| Body::new(Given::new(body, size, share, TAKEN_WITHIN)))
}

/// What waits of an answer.
struct Waiting {
    body: Body,
    piece: Bytes,
    _share: Arc<Share>,
}

/// A large answer, handed over in pieces, so that it counts until the last of it was taken. One of which nothing is taken for too long is
/// given up.
struct Given {
    waiting: Arc<Mutex<Option<Waiting>>>,
    left: u64,
    taken: watch::Sender<()>,
}

impl Given {
    fn new(body: Body, size: u64, share: Arc<Share>, patience: Duration) -> Given {
        let waiting = Arc::new(Mutex::new(Some(Waiting { body, piece: Bytes::new(), _share: share })));
        let (taken, mut news) = watch::channel(());
        let watched = Arc::downgrade(&waiting);
        tokio::spawn(async move {
            while let Ok(changed) = tokio::time::timeout(patience, news.changed()).await {
                if changed.is_err() {
                    return;
                }
            }
            if let Some(waiting) = watched.upgrade() {
                *waiting.lock().unwrap_or_else(PoisonError::into_inner) = None;
            }
        });
        Given { waiting, left: size, taken }
    }
}

impl HttpBody for Given {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let waiting = Arc::clone(&self.waiting);
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Waiting { body, piece, .. }) = waiting.as_mut() else {
            return Poll::Ready(Some(Err(axum::Error::new(io::Error::from(io::ErrorKind::TimedOut)))));
        };
        if piece.is_empty() {
            match ready!(Pin::new(body).poll_frame(cx)).transpose()?.map(Frame::into_data) {
                Some(Ok(bytes)) => *piece = bytes,
                Some(Err(other)) => return Poll::Ready(Some(Ok(other))),
                None => return Poll::Ready(None),
            }
        }
        let part = piece.split_to(piece.len().min(PIECE_BYTES));
        self.left = self.left.saturating_sub(part.len() as u64);
        self.taken.send_replace(());
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// For routes of users, behind the guard.
pub(super) async fn of_users(request: Request, next: Next) -> Response {
    let uid = request.extensions().get::<Caller>().map(|caller| caller.person.uid);
    let Some(uid) = uid else { return bounded(&USERS, None, request, next).await };
    let _turn = TURNS.take(Some(uid), 1).await;
    counted(uid, bounded(&USERS, None, request, next).await)
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[test]
    fn p15_a_budget_is_given_back() {
        static BUDGET: Budget = Budget::new(10);
        let (first, second) = (Share::of(&BUDGET, None), Share::of(&BUDGET, None));
        assert!(first.take(6) && !second.take(5) && second.is_refused.load(Ordering::Relaxed));
        drop(second);
        let third = Share::of(&BUDGET, Some(1));
        assert!(third.take(4) && !first.is_refused.load(Ordering::Relaxed));
        drop((first, third));
        assert_eq!(BUDGET.used.load(Ordering::Relaxed), 0);
        assert!(BUDGET.of_users().is_empty());
    }

    #[test]
    fn p15_one_user_does_not_take_the_budget_of_all() {
        static BUDGET: Budget = Budget::new(USERS_BYTES_MAX);
        let status = |share: &Share| share.refusal().map(|error| error.status());
        let (first, second) = (Share::of(&BUDGET, Some(7)), Share::of(&BUDGET, Some(7)));
        assert!(first.take(USER_BYTES_MAX) && !second.take(1));
        assert_eq!((status(&first), status(&second)), (None, Some(StatusCode::TOO_MANY_REQUESTS)));
        let other = Share::of(&BUDGET, Some(8));
        assert!(other.take(USER_BYTES_MAX));
        drop((first, second));
        assert!(Share::of(&BUDGET, Some(7)).take(USER_BYTES_MAX));
        let others: Vec<_> = (9..12).map(|uid| Share::of(&BUDGET, Some(uid))).collect();
        assert!(others.iter().all(|share| share.take(USER_BYTES_MAX)), "four users have all that there is");
        let last = Share::of(&BUDGET, Some(12));
        assert!(!last.take(1));
        assert_eq!(status(&last), Some(StatusCode::SERVICE_UNAVAILABLE));
    }

    #[tokio::test]
    async fn p15_a_large_answer_counts_until_its_last_piece_was_taken() {
        let large = || counted(4713, Body::from(vec![7; USER_BYTES_MAX]).into_response()).into_body();
        let (mut body, mut got) = (large(), 0);
        for _ in 0..3 {
            got += body.frame().await.expect("a piece").expect("is given").into_data().expect("data").len();
        }
        assert_eq!((got, body.size_hint().exact()), (3 * PIECE_BYTES, Some((USER_BYTES_MAX - got) as u64)));
        let small = || counted(4713, Body::from(vec![7; 1 << 20]).into_response()).status();
        assert_eq!(small(), StatusCode::TOO_MANY_REQUESTS, "little of it was taken");
        drop(body);
        assert_eq!(small(), StatusCode::OK);
        let whole = large().collect().await.expect("is taken").to_bytes();
        assert!(whole.len() == USER_BYTES_MAX && whole.iter().all(|byte| *byte == 7));
    }

    #[tokio::test]
    async fn p15_a_large_answer_of_which_nothing_is_taken_is_given_up() {
        static BUDGET: Budget = Budget::new(100);
        let share = Share::of(&BUDGET, Some(1));
        assert!(share.take(100));
        let given = Given::new(Body::from(vec![7; 100]), 100, share, Duration::from_millis(1));
        let waiting = Arc::downgrade(&given.waiting);
        let is_there =
            || waiting.upgrade().is_some_and(|waiting| waiting.lock().is_ok_and(|waiting| waiting.is_some()));
        while is_there() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(BUDGET.used.load(Ordering::Relaxed), 0, "others have the room");
        assert!(Body::new(given).collect().await.is_err(), "a part is not the whole");
    }

    #[tokio::test]
    async fn p15_large_answers_of_one_user_are_counted_until_they_were_taken() {
        let large = || Body::from(vec![7; USER_BYTES_MAX / 4]).into_response();
        let held: Vec<Response> = (0..4).map(|_| counted(4711, large())).collect();
        assert!(held.iter().all(|answer| answer.status() == StatusCode::OK));
        assert_eq!(held[0].body().size_hint().exact(), Some(USER_BYTES_MAX as u64 / 4), "its length is told");
        assert_eq!(counted(4711, large()).status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(counted(4711, Body::from("small").into_response()).status(), StatusCode::OK);
        assert_eq!(counted(4712, large()).status(), StatusCode::OK, "another has their own");
        drop(held);
        assert_eq!(counted(4711, large()).status(), StatusCode::OK);
    }

    fn body(share: &Arc<Share>, time_max: Duration, pieces: impl Stream<Item = Bytes> + Send + 'static) -> Counted {
        let pieces = Body::from_stream(pieces.map(Ok::<_, io::Error>));
        let deadline = Some(Box::pin(sleep(time_max)));
        Counted { body: pieces.into_data_stream(), share: Arc::clone(share), deadline }
    }

    #[tokio::test]
    async fn p15_a_body_that_comes_byte_by_byte_ends_with_its_time() {
        static BUDGET: Budget = Budget::new(1000);
        let share = Share::of(&BUDGET, None);
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
        static BUDGET: Budget = Budget::new(1000);
        let share = Share::of(&BUDGET, None);
        let mut counted = body(&share, STRANGERS_TIME_MAX, futures_util::stream::repeat(Bytes::from_static(&[7; 300])));
        for _ in 0..3 {
            counted.next().await.expect("a piece").expect("fits");
        }
        assert!(counted.next().await.expect("an error").is_err() && share.is_refused.load(Ordering::Relaxed));
    }
}
