//! Memory budgets of request bodies, the time limit for bodies of unauthenticated clients, and the limit of concurrent
//! requests per user. Responses use the same kind of budgets.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Sleep, sleep};

use super::caller::Caller;
use super::error::ApiError;
use super::response_buffer;
use gravwell_runtime::tasks::shares::Shares;

/// Time in which the whole body of an unauthenticated client must arrive.
const STRANGERS_TIME_MAX: Duration = Duration::from_secs(10);
/// Maximum bytes of bodies in memory: of unauthenticated clients, of all users, and of one user (two of the
/// largest bodies).
const UNAUTHENTICATED_BYTES_MAX: usize = 32 << 20;
const USERS_BYTES_MAX: usize = 256 << 20;
pub(super) const USER_BYTES_MAX: usize = 64 << 20;

/// Memory budget for one kind of bodies.
pub(super) struct Budget {
    used: AtomicUsize,
    most: usize,
    /// Bytes in use per user.
    of_users: Mutex<BTreeMap<i32, usize>>,
    /// Notified whenever bytes are released.
    freed: Notify,
}

impl Budget {
    pub(super) const fn new(most: usize) -> Budget {
        let of_users = Mutex::new(BTreeMap::new());
        Budget { used: AtomicUsize::new(0), most, of_users, freed: Notify::const_new() }
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn of_users(&self) -> MutexGuard<'_, BTreeMap<i32, usize>> {
        self.of_users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

static UNAUTHENTICATED: Budget = Budget::new(UNAUTHENTICATED_BYTES_MAX);
pub(super) static USERS: Budget = Budget::new(USERS_BYTES_MAX);
pub(super) static ANSWERS: Budget = Budget::new(USERS_BYTES_MAX);
/// Maximum number of concurrent requests of one user; further ones wait.
const REQUESTS_OF_USER: usize = 32;
static TURNS: LazyLock<Shares<i32>> = LazyLock::new(|| Shares::new(Semaphore::MAX_PERMITS, REQUESTS_OF_USER));

/// Bytes reserved by one request or response; released when the response was produced or read.
pub(super) struct Share {
    budget: &'static Budget,
    uid: Option<i32>,
    bytes: AtomicUsize,
    /// Whether a reservation exceeded the total budget or that of the user.
    is_refused: AtomicBool,
    is_users_own: AtomicBool,
    is_late: AtomicBool,
}

impl Share {
    pub(super) fn of(budget: &'static Budget, uid: Option<i32>) -> Arc<Share> {
        let no = || AtomicBool::new(false);
        let bytes = AtomicUsize::new(0);
        Arc::new(Share { budget, uid, bytes, is_refused: no(), is_users_own: no(), is_late: no() })
    }

    /// Reserves more bytes. Returns whether they fit; if not, they count nevertheless, and the refusal is recorded.
    pub(super) fn take(&self, bytes: usize) -> bool {
        // Counted before the check, so that concurrent requests cannot all claim the last bytes.
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

    /// Waits until bytes can be reserved for a user. Requests for more than half of a user's budget are reduced to that.
    pub(super) async fn waited_for(budget: &'static Budget, uid: i32, bytes: usize) -> Arc<Share> {
        let bytes = bytes.min(USER_BYTES_MAX / 2);
        loop {
            let freed = budget.freed.notified();
            tokio::pin!(freed);
            // A release after this point wakes this task.
            freed.as_mut().enable();
            let share = Share::of(budget, Some(uid));
            if share.take_if_fits(uid, bytes) {
                return share;
            }
            freed.await;
        }
    }

    #[cfg(test)]
    pub(super) fn bytes_of(budget: &Budget, uid: i32) -> usize {
        budget.of_users().get(&uid).copied().unwrap_or_default()
    }

    fn take_if_fits(&self, uid: i32, bytes: usize) -> bool {
        if bytes == 0 {
            return true;
        }
        // Checked and reserved under one lock, so that only one of two waiting tasks succeeds.
        let mut of_users = self.budget.of_users();
        let of_user = of_users.get(&uid).copied().unwrap_or_default();
        if self.budget.used.load(Ordering::Relaxed) + bytes > self.budget.most || of_user + bytes > USER_BYTES_MAX {
            return false;
        }
        of_users.insert(uid, of_user + bytes);
        self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        true
    }

    /// Changes the reservation to `bytes`, even if they exceed the budget.
    pub(super) fn resize(&self, bytes: usize) {
        let has = self.bytes.load(Ordering::Relaxed);
        if bytes > has {
            self.take(bytes - has);
        } else {
            self.give_back(has - bytes);
        }
    }

    fn give_back(&self, bytes: usize) {
        // A waiting task that reserved nothing must not wake the others, which would wake it in turn.
        if bytes == 0 {
            return;
        }
        self.release(bytes);
        self.budget.freed.notify_waiters();
    }

    fn release(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
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

    /// Records that the body did not arrive in time.
    pub(super) fn note_late(&self) {
        self.is_late.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_late(&self) -> bool {
        self.is_late.load(Ordering::Relaxed)
    }

    /// Returns the error for a reservation that did not fit, if there was one.
    pub(super) fn refusal(&self) -> Option<ApiError> {
        if !self.is_refused.load(Ordering::Relaxed) {
            return None;
        }
        Some(match self.is_users_own.load(Ordering::Relaxed) {
            true => {
                let greedy = "too many of your large requests are in progress; wait until they have finished";
                ApiError::new(StatusCode::TOO_MANY_REQUESTS, greedy)
            }
            false => {
                let busy = "too many large requests are in progress; try again in a moment";
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, busy)
            }
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back(self.bytes.load(Ordering::Relaxed));
    }
}

/// A body that is counted while it arrives and fails when it takes too long.
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
                    self.share.note_late();
                    failed(io::ErrorKind::TimedOut)
                }
                _ => Poll::Pending,
            },
        }
    }
}

async fn bounded(budget: &'static Budget, time_max: Option<Duration>, request: Request, next: Next) -> Response {
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
    if share.is_late() {
        let late = format!("the request body was not received within {} s", STRANGERS_TIME_MAX.as_secs());
        return ApiError::new(StatusCode::REQUEST_TIMEOUT, late).into_response();
    }
    response
}

/// Middleware for routes that unauthenticated clients may use.
pub(super) async fn of_strangers(request: Request, next: Next) -> Response {
    bounded(&UNAUTHENTICATED, Some(STRANGERS_TIME_MAX), request, next).await
}

/// Middleware for routes of users, behind authorization.
pub(super) async fn of_users(request: Request, next: Next) -> Response {
    let uid = request.extensions().get::<Caller>().map(|caller| caller.person.uid);
    let Some(uid) = uid else { return bounded(&USERS, None, request, next).await };
    let _turn = TURNS.take(Some(uid), 1).await;
    response_buffer::counted(uid, bounded(&USERS, None, request, next).await)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

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
        assert!(others.iter().all(|share| share.take(USER_BYTES_MAX)), "four users use the whole budget");
        let last = Share::of(&BUDGET, Some(12));
        assert!(!last.take(1));
        assert_eq!(status(&last), Some(StatusCode::SERVICE_UNAVAILABLE));
    }

    #[tokio::test]
    async fn p15_who_waits_for_room_has_it_as_soon_as_it_is_there_and_keeps_no_more_than_they_need() {
        static BUDGET: Budget = Budget::new(USERS_BYTES_MAX);
        let first = Share::of(&BUDGET, Some(7));
        assert!(first.take(USER_BYTES_MAX));
        let mut waiting = Box::pin(Share::waited_for(&BUDGET, 7, 100));
        assert!((&mut waiting).now_or_never().is_none() && BUDGET.used() == USER_BYTES_MAX);
        let other = Share::waited_for(&BUDGET, 8, 100).await;
        assert!((&mut waiting).now_or_never().is_none(), "other users have separate limits");
        first.resize(USER_BYTES_MAX - 100);
        let second = waiting.await;
        assert_eq!(BUDGET.used(), USER_BYTES_MAX + 100);
        drop((first, other));
        let most = Share::waited_for(&BUDGET, 7, usize::MAX).await;
        assert_eq!(BUDGET.used(), USER_BYTES_MAX / 2 + 100, "the reservation is capped at the maximum");
        drop((second, most));
        assert!(BUDGET.used() == 0 && BUDGET.of_users().is_empty());
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
        while counted.next().await.expect("an error").is_ok() {}
        assert!(share.is_late() && !share.is_refused.load(Ordering::Relaxed));
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

    #[test]
    fn p15_who_waits_for_room_wakes_nobody_who_waits_as_well() {
        static BUDGET: Budget = Budget::new(USERS_BYTES_MAX);
        struct Wakes(AtomicUsize);
        impl std::task::Wake for Wakes {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let taken = Share::of(&BUDGET, Some(7));
        assert!(taken.take(USER_BYTES_MAX));
        let wakes = Arc::new(Wakes(AtomicUsize::new(0)));
        let waker = Arc::clone(&wakes).into();
        let mut cx = Context::from_waker(&waker);
        let mut waiting: Vec<_> = (0..8).map(|_| Box::pin(Share::waited_for(&BUDGET, 7, 1000))).collect();
        for _ in 0..3 {
            assert!(waiting.iter_mut().all(|waits| waits.as_mut().poll(&mut cx).is_pending()));
        }
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0, "nothing was released");
        drop(taken);
        assert!(wakes.0.load(Ordering::Relaxed) > 0);
        assert!(waiting.iter_mut().all(|waits| waits.as_mut().poll(&mut cx).is_ready()), "all requests fit");
    }
}
