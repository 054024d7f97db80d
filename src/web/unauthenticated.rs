//! Limits for requests on unauthenticated connections: the number of concurrent requests, per address and in total, and
//! the time in which their responses must be read. A connection alone only bounds itself, and can carry many requests
//! that cost their client nothing.
//!
//! At a limit, newcomers are not rejected. Instead, at the address with the most requests, the connection with the most
//! of them is closed, the oldest first. So a few clients that do not read their responses cannot hinder others. If no
//! address has many, it is the one with the oldest request: users behind one address do not give way to a crowd of
//! addresses of which each has one request.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt as _;
use tokio::sync::oneshot;

use super::app::AppRef;
use super::authorization;
use super::connections::Standing;
use gravwell_transport::admission::Block;

/// Maximum number of concurrent unauthenticated requests, per address and in total. The headers of one occupy up to
/// 32 KiB.
const OF_ADDRESS: usize = 128;
const OF_ALL: usize = 1024;
/// Share of all requests above which an address gives way before all others: one part in so many.
const SHARE_OF_ADDRESS: usize = 32;
/// Timeout for reading a response, after which an unauthenticated connection is closed.
const TAKEN_WITHIN: Duration = Duration::from_secs(20);

static UNDER_WAY: LazyLock<Arc<UnderWay>> = LazyLock::new(|| UnderWay::new(OF_ADDRESS, OF_ALL));

/// Requests in progress of an address, oldest first, each with its connection.
type OfBlock = BTreeMap<u64, Arc<Standing>>;

#[derive(Default)]
struct Requests {
    blocks: HashMap<Block, OfBlock>,
    all: usize,
    next: u64,
}

impl Requests {
    fn remove(&mut self, block: Block, id: u64) {
        let Some(own) = self.blocks.get_mut(&block) else { return };
        self.all -= usize::from(own.remove(&id).is_some());
        if own.is_empty() {
            self.blocks.remove(&block);
        }
    }

    /// Closes the connection of an address with the most requests in progress; among equals, the one with the
    /// oldest request.
    fn end_one(&mut self, block: Block) {
        let Some(own) = self.blocks.get(&block) else { return };
        let mut counts: HashMap<*const Standing, usize> = HashMap::new();
        for standing in own.values() {
            *counts.entry(Arc::as_ptr(standing)).or_default() += 1;
        }
        let most = counts.values().copied().max().unwrap_or_default();
        let Some(greediest) = own.values().find(|standing| counts.get(&Arc::as_ptr(standing)) == Some(&most)) else {
            return;
        };
        let greediest = Arc::clone(greediest);
        greediest.end();
        let ended = own.iter().filter(|(_, standing)| Arc::ptr_eq(standing, &greediest));
        for id in ended.map(|(id, _)| *id).collect::<Vec<u64>>() {
            self.remove(block, id);
        }
    }

    /// Returns the address that gives way: the one with the most requests in progress, if these are many; among
    /// equals, the one with the oldest request.
    fn next_to_end(&self) -> Option<Block> {
        let oldest = |own: &OfBlock| own.keys().next().copied();
        let many = self.blocks.iter().filter(|(_, own)| own.len() > self.all / SHARE_OF_ADDRESS);
        let greediest = many.max_by_key(|(_, own)| (own.len(), Reverse(oldest(own))));
        greediest.or_else(|| self.blocks.iter().min_by_key(|(_, own)| oldest(own))).map(|(block, _)| *block)
    }
}

/// Unauthenticated requests in progress, until their responses were read.
struct UnderWay {
    of_address: usize,
    of_all: usize,
    requests: Mutex<Requests>,
}

impl UnderWay {
    fn new(of_address: usize, of_all: usize) -> Arc<UnderWay> {
        Arc::new(UnderWay { of_address, of_all, requests: Mutex::default() })
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a request, closing other connections if a limit is reached.
    fn admit(self: &Arc<UnderWay>, block: Block, standing: &Arc<Standing>) -> RequestSlot {
        let mut requests = self.requests();
        if requests.blocks.get(&block).is_some_and(|own| own.len() >= self.of_address) {
            requests.end_one(block);
        }
        if requests.all >= self.of_all
            && let Some(block) = requests.next_to_end()
        {
            requests.end_one(block);
        }
        let id = requests.next;
        requests.next += 1;
        requests.all += 1;
        requests.blocks.entry(block).or_default().insert(id, Arc::clone(standing));
        RequestSlot { under_way: Arc::clone(self), block, id }
    }
}

/// Registration of a request, until its response was read.
struct RequestSlot {
    under_way: Arc<UnderWay>,
    block: Block,
    id: u64,
}

impl Drop for RequestSlot {
    fn drop(&mut self) {
        self.under_way.requests().remove(self.block, self.id);
    }
}

/// Closes the connection unless the response, which holds the other end of `taken`, is dropped in time.
async fn watch(standing: Arc<Standing>, taken: oneshot::Receiver<()>, within: Duration) {
    if tokio::time::timeout(within, taken).await.is_err() && !standing.is_known() {
        standing.end();
    }
}

/// Attaches the registration to a body, so that it is released when the body was read.
fn held(body: Body, place: RequestSlot, standing: Arc<Standing>) -> Body {
    let (on_its_way, taken) = oneshot::channel();
    tokio::spawn(watch(standing, taken, TAKEN_WITHIN));
    let kept = (place, on_its_way);
    Body::new(body.map_err(move |error| {
        let _ = &kept;
        error
    }))
}

/// Middleware that applies the limits to unauthenticated requests.
pub(super) async fn bounded(State(app): State<AppRef>, request: Request, next: Next) -> Response {
    let standing = request.extensions().get::<Arc<Standing>>().cloned();
    let Some(standing) = standing.filter(|standing| !standing.is_known()) else { return next.run(request).await };
    let from = authorization::address(&app, request.extensions(), request.headers());
    let place = UNDER_WAY.admit(Block::of(from), &standing);
    let response = next.run(request).await;
    // A user who was identified in the meantime has separate limits.
    if standing.is_known() || response.body().is_end_stream() {
        return response;
    }
    response.map(|body| held(body, place, standing))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn block(last: usize) -> Block {
        Block::of(format!("198.51.100.{last}").parse().expect("an address"))
    }

    /// Returns a connection on which a request has arrived.
    fn connection() -> Arc<Standing> {
        let standing = Arc::<Standing>::default();
        standing.note_request();
        standing
    }

    fn has_ended(standing: &Arc<Standing>) -> bool {
        Arc::clone(standing).ends().now_or_never().is_some()
    }

    #[tokio::test]
    async fn p15_whoever_comes_to_a_full_address_finds_room_and_the_greediest_connection_ends() {
        let under_way = UnderWay::new(8, 100);
        let (one, many) = (connection(), connection());
        let first = under_way.admit(block(1), &one);
        let held: Vec<RequestSlot> = (0..7).map(|_| under_way.admit(block(1), &many)).collect();
        assert!(!has_ended(&many));
        let newcomer = connection();
        let place = under_way.admit(block(1), &newcomer);
        assert!(has_ended(&many) && !has_ended(&one) && !has_ended(&newcomer));
        assert_eq!(under_way.requests().all, 2, "all requests of the connection are dropped");
        drop((held, first, place));
        let requests = under_way.requests();
        assert!(requests.all == 0 && requests.blocks.is_empty());
    }

    #[tokio::test]
    async fn p15_strangers_at_many_addresses_shut_nobody_out() {
        let under_way = UnderWay::new(8, 32);
        let crowd: Vec<(Arc<Standing>, Vec<RequestSlot>)> = (0..4)
            .map(|number| {
                let standing = connection();
                let places = (0..8).map(|_| under_way.admit(block(number), &standing)).collect();
                (standing, places)
            })
            .collect();
        let users: Vec<(Arc<Standing>, RequestSlot)> = (0..8)
            .map(|number| {
                let standing = connection();
                let place = under_way.admit(block(100 + number), &standing);
                (standing, place)
            })
            .collect();
        assert!(users.iter().all(|(standing, _)| !has_ended(standing)), "newcomers have room");
        let ended: Vec<bool> = crowd.iter().map(|(standing, _)| has_ended(standing)).collect();
        assert_eq!(ended, [true, false, false, false], "the oldest among the largest");
        drop((crowd, users));
        // Each with one request, while an office has two at a time.
        let under_way = UnderWay::new(8, 2 * SHARE_OF_ADDRESS);
        let ask = |number| (block(number), connection());
        let admit = |(block, standing): (Block, Arc<Standing>)| (under_way.admit(block, &standing), standing);
        let crowd: Vec<_> = (0..2 * SHARE_OF_ADDRESS - 2).map(|number| admit(ask(number))).collect();
        let office = [ask(200), ask(200)].map(admit);
        let late = admit(ask(201));
        assert!(office.iter().chain([&late]).all(|(_, standing)| !has_ended(standing)));
        assert_eq!(crowd.iter().position(|(_, standing)| has_ended(standing)), Some(0), "the oldest");
    }

    #[tokio::test]
    async fn p15_an_answer_that_a_stranger_does_not_take_ends_its_connection() {
        let (under_way, standing) = (UnderWay::new(8, 8), Arc::<Standing>::default());
        let place = under_way.admit(block(1), &standing);
        let body = held(Body::from("answer"), place, Arc::clone(&standing));
        assert_eq!(body.size_hint().exact(), Some(6), "the length is still announced");
        assert_eq!(under_way.requests().all, 1);
        drop(body);
        assert_eq!(under_way.requests().all, 0);
        let soon = Duration::from_millis(10);
        let (kept, taken) = oneshot::channel::<()>();
        watch(Arc::clone(&standing), taken, soon).await;
        standing.note_request();
        Arc::clone(&standing).ends().await;
        drop(kept);
        let (gone, taken) = oneshot::channel::<()>();
        drop(gone);
        let other = connection();
        watch(Arc::clone(&other), taken, soon).await;
        let stays = tokio::time::timeout(soon, Arc::clone(&other).ends()).await;
        assert!(stays.is_err(), "the response was read in time");
    }
}
