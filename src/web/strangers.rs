//! Requests on connections of which no user is known: how many are under way at a time, of one address and of all, and how long
//! their answers may take to be read. A connection bounds only itself, and carries many requests that cost their client nothing.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::app::AppRef;
use super::connections::Standing;
use super::guard;
use crate::env::quota::{Held, Quota};
use crate::transport::admission::Block;

/// Requests under way of strangers at one address, and of all strangers.
const OF_ADDRESS: usize = 256;
const OF_ALL: usize = 2048;
/// An answer that a stranger has not taken within this time ends its connection.
const TAKEN_WITHIN: Duration = Duration::from_secs(20);

static OF_ADDRESSES: LazyLock<Arc<Quota<Block>>> = LazyLock::new(|| Quota::new(OF_ADDRESS));
static ALL: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(OF_ALL)));

/// A place for a request, until its answer was taken.
type Place = (Held<Block>, OwnedSemaphorePermit);

fn place(block: Block) -> Option<Place> {
    Some((OF_ADDRESSES.take(block)?, Arc::clone(&ALL).try_acquire_owned().ok()?))
}

/// A refusal without a body, so that nothing of it waits for the client.
fn refused() -> Response {
    let again = [(header::RETRY_AFTER, HeaderValue::from(1))];
    (StatusCode::SERVICE_UNAVAILABLE, again).into_response()
}

/// Ends the connection when the answer that holds `taken` is not dropped in time.
async fn watch(standing: Arc<Standing>, taken: oneshot::Receiver<()>, within: Duration) {
    if tokio::time::timeout(within, taken).await.is_err() && !standing.is_known() {
        standing.end();
    }
}

/// A body with its place, which is given back when the last of it was taken.
fn held(body: Body, place: Place, standing: Arc<Standing>) -> Body {
    let (on_its_way, taken) = oneshot::channel();
    tokio::spawn(watch(standing, taken, TAKEN_WITHIN));
    let kept = (place, on_its_way);
    Body::new(body.map_err(move |error| {
        let _ = &kept;
        error
    }))
}

/// Bounds what strangers have under way.
pub(super) async fn bounded(State(app): State<AppRef>, request: Request, next: Next) -> Response {
    let standing = request.extensions().get::<Arc<Standing>>().cloned();
    let Some(standing) = standing.filter(|standing| !standing.is_known()) else { return next.run(request).await };
    let from = guard::address(&app, request.extensions(), request.headers());
    let Some(place) = place(Block::of(from)) else { return refused() };
    let response = next.run(request).await;
    // A user who was recognised has bounds of their own.
    if standing.is_known() || response.body().is_end_stream() {
        return response;
    }
    response.map(|body| held(body, place, standing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn p15_strangers_of_one_address_have_so_many_requests_under_way() {
        let block = Block::of("198.51.100.77".parse().expect("an address"));
        let mut held: Vec<Place> = (0..OF_ADDRESS).map(|_| place(block).expect("a place")).collect();
        assert!(place(block).is_none());
        assert!(place(Block::of("198.51.100.78".parse().expect("an address"))).is_some(), "another has its own");
        held.pop();
        assert!(place(block).is_some(), "it is free again");
        assert!(refused().body().is_end_stream(), "nothing of a refusal waits");
    }

    #[tokio::test]
    async fn p15_an_answer_that_a_stranger_does_not_take_ends_its_connection() {
        let block = Block::of("198.51.100.79".parse().expect("an address"));
        let standing = Arc::<Standing>::default();
        let body = held(Body::from("answer"), place(block).expect("a place"), Arc::clone(&standing));
        assert_eq!(body.size_hint().exact(), Some(6), "its length is still told");
        drop(body);
        let soon = Duration::from_millis(10);
        let (kept, taken) = oneshot::channel::<()>();
        watch(Arc::clone(&standing), taken, soon).await;
        standing.note_request();
        Arc::clone(&standing).ends().await;
        drop(kept);
        let (gone, taken) = oneshot::channel::<()>();
        drop(gone);
        let other = Arc::<Standing>::default();
        other.note_request();
        watch(Arc::clone(&other), taken, soon).await;
        let stays = tokio::time::timeout(soon, Arc::clone(&other).ends()).await;
        assert!(stays.is_err(), "it was taken in time");
    }
}
