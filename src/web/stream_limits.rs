//! Limits of streamed requests and responses: uploads, imports, backups and contents. Each holds files, buffers and disk
//! space while it lasts. So their number per user is limited, further ones queue, and a client that sends too slowly
//! is disconnected. When users wait although they have few uploads, because all places are taken, the slowest upload of
//! the user with the most gives way.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt as _};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Sleep, sleep};

use super::body_budget::{Share, USERS};
use super::caller::Caller;
use super::error::ApiError;
use super::response_buffer;
use gravwell_runtime::tasks::shares::{self, Shares};

/// Maximum number of concurrent streamed requests, of all users and of one.
const REQUESTS_MAX: usize = 64;
const REQUESTS_OF_USER: usize = 8;
/// Maximum number of concurrent streamed responses of one user.
const ANSWERS_OF_USER: usize = 32;
/// Longest wait in the queue.
const IN_LINE: Duration = Duration::from_secs(30);
/// Time in the queue after which an upload of others gives way, and the time that it has had by then.
const CROWDED: Duration = Duration::from_secs(3);
const AGE_MIN: Duration = Duration::from_secs(10);
/// Buffer memory of a streamed request.
const BUFFERS_BYTES: usize = 2 << 20;
/// Minimum rate of a streamed request, measured while the handler waits for data: 4 KiB per second.
const PACE: Pace = Pace { bytes: 256 << 10, within: Duration::from_secs(60) };

static REQUESTS: LazyLock<Shares<i32>> = LazyLock::new(|| Shares::new(REQUESTS_MAX, REQUESTS_OF_USER));
/// Streamed requests of administrators, apart: a restore must not wait for users' slow uploads.
static REQUESTS_OF_ADMINS: LazyLock<Shares<i32>> = LazyLock::new(|| Shares::new(REQUESTS_MAX / 4, REQUESTS_OF_USER));
static ANSWERS: LazyLock<Shares<i32>> = LazyLock::new(|| Shares::new(Semaphore::MAX_PERMITS, ANSWERS_OF_USER));

#[derive(Clone, Copy)]
struct Pace {
    bytes: usize,
    within: Duration,
}

/// Uploads under way.
static UPLOADS: LazyLock<Uploads> = LazyLock::new(Uploads::default);
static UPLOADS_OF_ADMINS: LazyLock<Uploads> = LazyLock::new(Uploads::default);

struct Upload {
    uid: i32,
    since: Instant,
    bytes: AtomicU64,
    /// Tells its body to give way; `None` once it was told.
    gives_way: Mutex<Option<oneshot::Sender<()>>>,
}

impl Upload {
    fn bytes_per_s(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed) / self.since.elapsed().as_secs().max(1)
    }

    /// Returns whether it was told to give way.
    fn has_to_give_way(&self) -> bool {
        self.gives_way.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }
}

#[derive(Default)]
struct Uploads(Mutex<Vec<Weak<Upload>>>);

impl Uploads {
    fn begin(&self, uid: i32) -> (Arc<Upload>, oneshot::Receiver<()>) {
        let (told, word) = oneshot::channel();
        let (since, bytes, gives_way) = (Instant::now(), AtomicU64::new(0), Mutex::new(Some(told)));
        let upload = Arc::new(Upload { uid, since, bytes, gives_way });
        let mut uploads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        uploads.retain(|upload| upload.strong_count() > 0);
        uploads.push(Arc::downgrade(&upload));
        (upload, word)
    }

    /// Tells the slowest upload of the user with the most to give way, if that user would still have as many as the
    /// newcomer.
    fn make_way(&self, newcomer: i32, age_min: Duration) {
        let uploads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let live: Vec<Arc<Upload>> =
            uploads.iter().filter_map(Weak::upgrade).filter(|one| !one.has_to_give_way()).collect();
        drop(uploads);
        let of = |uid: i32| live.iter().filter(|upload| upload.uid == uid).count();
        let most = live.iter().map(|upload| of(upload.uid)).max().unwrap_or_default();
        if most < of(newcomer) + 2 {
            return;
        }
        let old = live.iter().filter(|upload| of(upload.uid) == most && upload.since.elapsed() >= age_min);
        if let Some(slowest) = old.min_by_key(|upload| upload.bytes_per_s())
            && let Some(told) = slowest.gives_way.lock().unwrap_or_else(PoisonError::into_inner).take()
        {
            let _ = told.send(());
        }
    }
}

/// A body that fails when it has to give way, or when data arrives too slowly. Time in which the handler does not poll it
/// is not counted.
struct PacedBody {
    body: BodyDataStream,
    pace: Pace,
    /// Bytes received in the current measurement.
    brought: usize,
    waited: Duration,
    waits: Option<(Instant, Pin<Box<Sleep>>)>,
    share: Arc<Share>,
    upload: Arc<Upload>,
    word: oneshot::Receiver<()>,
}

impl PacedBody {
    fn new(
        body: Body,
        pace: Pace,
        share: Arc<Share>,
        (upload, word): (Arc<Upload>, oneshot::Receiver<()>),
    ) -> PacedBody {
        let body = body.into_data_stream();
        PacedBody { body, pace, brought: 0, waited: Duration::ZERO, waits: None, share, upload, word }
    }

    fn note(&mut self, bytes: usize) {
        self.upload.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.waited += self.waits.take().map_or(Duration::ZERO, |(since, _)| since.elapsed());
        self.brought += bytes;
        if self.brought >= self.pace.bytes {
            (self.brought, self.waited) = (0, Duration::ZERO);
        }
    }
}

impl Stream for PacedBody {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.upload.has_to_give_way() || Pin::new(&mut self.word).poll(cx).is_ready() {
            return Poll::Ready(Some(Err(axum::Error::new(io::Error::from(io::ErrorKind::TimedOut)))));
        }
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

/// Waits for a place of an upload; while all are taken, others give way.
async fn place_of_upload(uid: i32, in_line: Duration) -> Result<shares::Share, ApiError> {
    let mut place = std::pin::pin!(place(&REQUESTS, uid, in_line, "uploads"));
    loop {
        if let Ok(place) = tokio::time::timeout(CROWDED, &mut place).await {
            return place;
        }
        if REQUESTS.free() == 0 {
            UPLOADS.make_way(uid, AGE_MIN);
        }
    }
}

async fn place(places: &Shares<i32>, uid: i32, in_line: Duration, what: &str) -> Result<shares::Share, ApiError> {
    let taken = tokio::time::timeout(in_line, places.take(Some(uid), 1)).await;
    let taken = taken.map_err(|_| match places.free() {
        0 => {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, format!("too many {what} are in progress; try again later"))
        }
        _ => {
            let message = format!("too many of your {what} are in progress; wait for one to finish");
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, message)
        }
    })?;
    taken.map_err(ApiError::internal)
}

async fn received(uid: i32, place: shares::Share, uploads: &Uploads, request: Request, next: Next) -> Response {
    let share = Share::of(&USERS, Some(uid));
    if !share.take(BUFFERS_BYTES)
        && let Some(refusal) = share.refusal()
    {
        return refusal.into_response();
    }
    let (upload, word) = uploads.begin(uid);
    let paced = |body: Body| PacedBody::new(body, PACE, Arc::clone(&share), (Arc::clone(&upload), word));
    let response = next.run(request.map(|body| Body::from_stream(paced(body)))).await;
    drop(place);
    if upload.has_to_give_way() && !response.status().is_success() {
        let message = "the upload was cancelled in favour of users with fewer uploads; try again later";
        return ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).into_response();
    }
    if share.is_late() {
        let (bytes, seconds) = (PACE.bytes >> 10, PACE.within.as_secs());
        let late = format!("upload timed out: received less than {bytes} KiB in {seconds} s");
        return ApiError::new(StatusCode::REQUEST_TIMEOUT, late).into_response();
    }
    response_buffer::counted(uid, response)
}

/// Middleware for routes whose handlers bound their bodies, behind authorization.
pub(super) async fn of_users(request: Request, next: Next) -> Response {
    let who = request.extensions().get::<Caller>().map(|caller| (caller.person.uid, caller.person.admin));
    let Some((uid, is_admin)) = who else { return next.run(request).await };
    // Decided by the method: a client may add a body to any request, and layers hide whether one is empty.
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let (place, uploads) = match is_admin {
            true => (place(&REQUESTS_OF_ADMINS, uid, IN_LINE, "uploads").await, &*UPLOADS_OF_ADMINS),
            false => (place_of_upload(uid, IN_LINE).await, &*UPLOADS),
        };
        return match place {
            Ok(place) => received(uid, place, uploads, request, next).await,
            Err(refusal) => refusal.into_response(),
        };
    }
    match place(&ANSWERS, uid, IN_LINE, "downloads").await {
        Ok(place) => response_buffer::counted_with(uid, next.run(request).await, Box::new(place)),
        Err(refusal) => refusal.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::body_budget::Budget;
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
        let uploads = Uploads::default();
        let mut slow = PacedBody::new(pieces(1000, 1, ms(5)), pace, Arc::clone(&share), uploads.begin(1));
        while slow.next().await.expect("does not end").is_ok() {}
        assert!(share.is_late());
        let share = Share::of(&BUDGET, None);
        let pace = Pace { bytes: 1000, within: ms(1000) };
        let mut fast = PacedBody::new(pieces(20, 100, ms(5)), pace, Arc::clone(&share), uploads.begin(1));
        let mut came = 0;
        while let Some(piece) = fast.next().await {
            came += piece.expect("is fast enough").len();
            // The handler polls slowly, which does not count against the client.
            sleep(ms(150)).await;
        }
        assert!(!share.is_late() && came == 20 * 100);
    }

    #[tokio::test]
    async fn p15_the_slowest_upload_of_who_has_most_gives_way() {
        let uploads = Uploads::default();
        let mut all: Vec<_> = [1, 1, 1, 2, 2].into_iter().map(|uid| uploads.begin(uid)).collect();
        for ((upload, _), bytes) in all.iter().zip([900, 100, 500, 1, 1]) {
            upload.bytes.store(bytes, Ordering::Relaxed);
        }
        let told =
            |all: &[(Arc<Upload>, _)]| all.iter().map(|(upload, _)| upload.has_to_give_way()).collect::<Vec<_>>();
        uploads.make_way(3, AGE_MIN);
        assert_eq!(told(&all), [false; 5], "uploads that have just started are not cancelled");
        uploads.make_way(2, Duration::ZERO);
        assert_eq!(told(&all), [false; 5], "the requester would have as many");
        uploads.make_way(3, Duration::ZERO);
        assert_eq!(told(&all), [false, true, false, false, false]);
        let share = Share::of(&BUDGET, None);
        let mut body = PacedBody::new(pieces(1000, 1, Duration::ZERO), PACE, share, all.remove(1));
        assert!(body.next().await.expect("does not end").is_err());
        uploads.make_way(3, Duration::ZERO);
        uploads.make_way(4, Duration::ZERO);
        assert_eq!(told(&all).iter().filter(|told| **told).count(), 2, "one upload of each user is cancelled");
        uploads.make_way(5, Duration::ZERO);
        assert_eq!(told(&all).iter().filter(|told| **told).count(), 2, "each user keeps one");
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
            assert!(one.await.expect("no panic").is_ok(), "each is served");
        }
    }
}
