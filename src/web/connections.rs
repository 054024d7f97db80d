//! Client connections: their number, the limits per address and per user, and the choice of connections to close.
//!
//! A connection on which no user has been identified is unauthenticated. When slots run short, or an address reaches its
//! limit, the oldest unauthenticated connection is closed, so that neither many of them nor slow ones keep users out. A
//! user has a limit too, over all addresses: beyond it the user's oldest idle connection is closed. A connection without
//! a recent request of a user counts as unauthenticated again.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody as _};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http_body_util::BodyExt as _;
use tokio::sync::Notify;

use super::caller::Caller;
use super::error::ApiError;
use gravwell_config::network::Network;
use gravwell_env::process::{ConnectionSlot, places_max};
use gravwell_runtime::telemetry::log_rate_limit::LogRateLimit;
use gravwell_transport::admission::Block;

/// Time after the last request of a user for which a connection still counts as the user's.
const KNOWN_FOR: Duration = Duration::from_secs(60);
/// Timeout for the first request on a connection.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

static REFUSED: LogRateLimit = LogRateLimit::new();

#[derive(Debug, Default)]
pub(super) struct Standing {
    /// `None`: from a load balancer, behind which there are many clients.
    pub(super) block: Option<Block>,
    /// User who was identified last on the connection, and when.
    known: Mutex<Option<(i32, Instant)>>,
    /// Requests of users in progress, including their responses.
    busy: AtomicUsize,
    /// Whether the connection was upgraded to a WebSocket.
    is_socket: AtomicBool,
    /// Whether a complete request head has arrived.
    has_asked: AtomicBool,
    gives_way: Notify,
}

impl Standing {
    pub(super) fn of(block: Option<Block>) -> Standing {
        Standing { block, ..Standing::default() }
    }

    pub(super) fn note_request(&self) {
        self.has_asked.store(true, Ordering::Relaxed);
    }

    /// Requests that the connection is closed immediately.
    pub(super) fn end(&self) {
        self.gives_way.notify_one();
    }

    fn known(&self) -> MutexGuard<'_, Option<(i32, Instant)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > 0 || self.is_socket.load(Ordering::Relaxed)
    }

    /// Returns whether the connection counts as a user's.
    pub(super) fn is_known(&self) -> bool {
        self.known().is_some_and(|(_, at)| self.is_busy() || at.elapsed() < KNOWN_FOR)
    }

    fn is_of(&self, uid: i32) -> bool {
        self.known().is_some_and(|(known, _)| known == uid)
    }

    /// Waits until the connection must be closed: it was evicted, or no request arrived in time.
    pub(super) async fn ends(self: Arc<Standing>) {
        self.ends_without_request_in(FIRST_REQUEST).await;
    }

    async fn ends_without_request_in(&self, patience: Duration) {
        let is_silent = async {
            tokio::time::sleep(patience).await;
            if self.has_asked.load(Ordering::Relaxed) {
                std::future::pending().await
            }
        };
        tokio::select! {
            () = self.gives_way.notified() => {}
            () = is_silent => {}
        }
    }
}

#[derive(Default)]
struct Open {
    next: u64,
    held: BTreeMap<u64, Arc<Standing>>,
    blocks: HashMap<Block, usize>,
}

impl Open {
    fn release(&mut self, id: u64) {
        let Some(block) = self.held.remove(&id).and_then(|standing| standing.block) else { return };
        if let Some(count) = self.blocks.get_mut(&block) {
            *count -= 1;
            if *count == 0 {
                self.blocks.remove(&block);
            }
        }
    }

    /// Closes the oldest unauthenticated connection, of one block of addresses or of all. Returns whether there was one.
    fn make_way(&mut self, block: Option<Block>) -> bool {
        let is_meant = |standing: &Standing| !standing.is_known() && (block.is_none() || standing.block == block);
        let Some(id) = self.held.iter().find(|(_, standing)| is_meant(standing)).map(|(id, _)| *id) else {
            return false;
        };
        if let Some(standing) = self.held.get(&id) {
            standing.end();
        }
        self.release(id);
        true
    }
}

struct Inner {
    of_address: usize,
    of_user: usize,
    balancers: Vec<Network>,
    open: Mutex<Open>,
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections").field("open", &self.open().held.len()).finish_non_exhaustive()
    }
}

#[derive(Clone)]
pub(super) struct Connections(Arc<Inner>);

/// One connection; dropping it releases its slot.
pub(super) struct Connection {
    connections: Connections,
    id: u64,
    pub standing: Arc<Standing>,
    _place: ConnectionSlot,
}

impl Connections {
    /// Creates the limits: `of_address` connections per address and `of_user` per user, where 0 means no limit. Load
    /// balancers (`balancers`) are exempt from the limit per address.
    pub(super) fn new(of_address: usize, of_user: usize, balancers: Vec<Network>) -> Connections {
        let most = |most: usize| if most == 0 { usize::MAX } else { most };
        let (of_address, of_user) = (most(of_address), most(of_user));
        Connections(Arc::new(Inner { of_address, of_user, balancers, open: Mutex::default() }))
    }

    /// Assigns a connection to a user. At the user's limit, closes the user's oldest idle connection; returns false if
    /// none is idle.
    fn recognise(&self, standing: &Arc<Standing>, uid: i32) -> bool {
        if !standing.is_of(uid) {
            let mut open = self.open();
            let its: Vec<u64> =
                open.held.iter().filter(|(_, standing)| standing.is_of(uid)).map(|(id, _)| *id).collect();
            if its.len() >= self.0.of_user {
                let idle = its.iter().find(|id| open.held.get(id).is_some_and(|standing| !standing.is_busy()));
                let Some(id) = idle.copied() else { return false };
                if let Some(standing) = open.held.get(&id) {
                    standing.end();
                }
                open.release(id);
            }
        }
        *standing.known() = Some((uid, Instant::now()));
        true
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a connection; `None` if it must be closed.
    pub(super) fn admit(&self, address: IpAddr) -> Option<Connection> {
        let connection = self.find_place(address, places_max());
        if connection.is_none()
            && let Some(left_out) = REFUSED.note()
        {
            tracing::warn!(%address, left_out, "connection closed: too many are open");
        }
        connection
    }

    fn find_place(&self, address: IpAddr, most: usize) -> Option<Connection> {
        let address = address.to_canonical();
        let is_balancer = self.0.balancers.iter().any(|balancer| balancer.contains(address));
        let block = (!is_balancer).then(|| Block::of(address));
        let mut open = self.open();
        let of_block = block.and_then(|block| open.blocks.get(&block).copied()).unwrap_or_default();
        if of_block >= self.0.of_address && !open.make_way(block) {
            return None;
        }
        // Some slots stay free, because an evicted connection takes a moment to close.
        if open.held.len() >= most - most / 8 {
            open.make_way(None);
        }
        let place = ConnectionSlot::take()?;
        let (id, standing) = (open.next, Arc::new(Standing::of(block)));
        open.next += 1;
        open.held.insert(id, Arc::clone(&standing));
        if let Some(block) = block {
            *open.blocks.entry(block).or_default() += 1;
        }
        Some(Connection { connections: self.clone(), id, standing, _place: place })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.connections.open().release(self.id);
    }
}

/// A request of a user in progress, until its response was sent.
struct Busy(Arc<Standing>);

impl Busy {
    fn on(standing: &Arc<Standing>) -> Busy {
        standing.busy.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(standing))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // During a long response the user counts as present until now.
        if let Some((_, at)) = self.0.known().as_mut() {
            *at = Instant::now();
        }
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Middleware behind authorization that assigns the connection to the user of the request, if it has one.
pub(super) async fn note_known(request: Request, next: Next) -> Response {
    let uid = request.extensions().get::<Caller>().map(|caller| caller.person.uid);
    let (standing, connections) =
        (request.extensions().get::<Arc<Standing>>(), request.extensions().get::<Connections>());
    let (Some(uid), Some(standing), Some(connections)) = (uid, standing.cloned(), connections) else {
        return next.run(request).await;
    };
    if !connections.recognise(&standing, uid) {
        let most = connections.0.of_user;
        let message = format!(
            "{most} of your connections are in use (Webserver-Max-Connections-Per-User); wait until one is free"
        );
        return ApiError::new(StatusCode::TOO_MANY_REQUESTS, message).into_response();
    }
    let busy = Busy::on(&standing);
    let response = next.run(request).await;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        standing.is_socket.store(true, Ordering::Relaxed);
    }
    if response.body().is_end_stream() {
        return response;
    }
    response.map(|body| {
        Body::new(body.map_err(move |error| {
            let _ = &busy;
            error
        }))
    })
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn has_ended(connection: &Connection) -> bool {
        Arc::clone(&connection.standing).ends().now_or_never().is_some()
    }

    #[tokio::test]
    async fn p15_the_oldest_stranger_of_an_address_gives_way_and_users_stay() {
        let connections = Connections::new(3, 0, vec!["192.0.2.9".parse().expect("a network")]);
        let admit = |from: &str| connections.find_place(address(from), 1000);
        let held: Vec<Connection> = (0..3).map(|_| admit("192.0.2.1").expect("a place")).collect();
        assert!(connections.recognise(&held[0].standing, 1));
        let newer = admit("192.0.2.1").expect("a place");
        assert!(!has_ended(&held[0]), "a user");
        assert!(has_ended(&held[1]), "the oldest unauthenticated connection");
        assert!(!has_ended(&held[2]) && !has_ended(&newer));
        for connection in [&held[2], &newer] {
            assert!(connections.recognise(&connection.standing, 1));
        }
        assert!(admit("192.0.2.1").is_none(), "all connections are authenticated");
        assert!(admit("192.0.2.2").is_some(), "another address has a separate limit");
        let many: Vec<_> = (0..100).map(|_| admit("192.0.2.9")).collect();
        assert!(many.iter().all(Option::is_some), "a load balancer has no limit");
        drop((held, newer, many));
        assert!(connections.open().held.is_empty() && connections.open().blocks.is_empty());
    }

    #[tokio::test]
    async fn p15_a_users_oldest_idle_connection_gives_way_also_behind_a_balancer() {
        let connections = Connections::new(0, 3, vec!["192.0.2.9".parse().expect("a network")]);
        let admit = || connections.find_place(address("192.0.2.9"), 1000).expect("a place");
        let held: Vec<Connection> = (0..6).map(|_| admit()).collect();
        let recognised = |number: usize, uid| connections.recognise(&held[number].standing, uid);
        assert!(recognised(0, 7) && recognised(1, 7) && recognised(2, 7));
        let mut busy = vec![Busy::on(&held[0].standing)];
        assert!(recognised(3, 7) && recognised(3, 7), "each connection counts once");
        assert!(!has_ended(&held[0]), "a response is in progress");
        assert!(has_ended(&held[1]) && !has_ended(&held[2]));
        busy.push(Busy::on(&held[2].standing));
        held[3].standing.is_socket.store(true, Ordering::Relaxed);
        assert!(!recognised(4, 7), "all connections are in use");
        assert!(recognised(4, 8), "another user has a separate limit");
        drop(busy);
        assert!(recognised(5, 7) && has_ended(&held[0]));
        assert!(!has_ended(&held[3]), "a web socket");
    }

    #[tokio::test]
    async fn p15_a_user_who_is_not_heard_is_a_stranger_again() {
        let connections = Connections::new(1, 0, Vec::new());
        let admit = || connections.find_place(address("192.0.2.1"), 1000);
        let held = admit().expect("a place");
        assert!(connections.recognise(&held.standing, 7));
        assert!(admit().is_none());
        let long_ago = Instant::now().checked_sub(KNOWN_FOR).expect("a time");
        *held.standing.known() = Some((7, long_ago));
        let busy = Busy::on(&held.standing);
        assert!(admit().is_none(), "a response is in progress");
        drop(busy);
        assert!(admit().is_none(), "the response has just ended");
        *held.standing.known() = Some((7, long_ago));
        assert!(admit().is_some() && has_ended(&held));
    }

    #[tokio::test]
    async fn p15_strangers_of_many_addresses_give_way_when_places_run_short() {
        let connections = Connections::new(0, 0, Vec::new());
        let admit = |number: usize| connections.find_place(address(&format!("198.51.100.{number}")), 80);
        let held: Vec<Connection> = (0..200).map(|number| admit(number).expect("a place")).collect();
        let ended: Vec<bool> = held.iter().map(has_ended).collect();
        assert_eq!(ended, [[true; 130].as_slice(), [false; 70].as_slice()].concat(), "the oldest ones");
    }

    #[tokio::test]
    async fn p15_a_connection_without_a_request_ends() {
        let connections = Connections::new(0, 0, Vec::new());
        let silent = connections.find_place(address("::1"), 80).expect("a place");
        let asking = connections.find_place(address("::1"), 80).expect("a place");
        asking.standing.note_request();
        let short = Duration::from_millis(20);
        silent.standing.ends_without_request_in(short).await;
        let staying = tokio::time::timeout(10 * short, asking.standing.ends_without_request_in(short));
        assert!(staying.await.is_err(), "it has sent a request");
    }
}
