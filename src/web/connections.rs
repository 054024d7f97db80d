//! The connections of clients: how many there are, how many of one address, and which give way.
//!
//! A connection on which no user has been recognised yet is a stranger's. When places run short, or an address has its share,
//! the oldest connection of a stranger ends, so that neither a crowd of them nor one that is slow keeps users out.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::Notify;

use crate::config::network::Network;
use crate::env::process::{Place, places_max};
use crate::telemetry::seldom::Seldom;
use crate::transport::admission::Block;

/// Longest wait for the first request on a connection.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

static REFUSED: Seldom = Seldom::new();

/// What is known of one connection.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// A user was recognised on it.
    is_known: AtomicBool,
    /// A whole head of a request has arrived.
    has_asked: AtomicBool,
    gives_way: Notify,
}

impl Standing {
    pub(super) fn note_request(&self) {
        self.has_asked.store(true, Ordering::Relaxed);
    }

    /// Lets the connection end at once.
    pub(super) fn end(&self) {
        self.gives_way.notify_one();
    }

    pub(super) fn is_known(&self) -> bool {
        self.is_known.load(Ordering::Relaxed)
    }

    /// Waits until the connection has to end: it gives way, or no request has come in time.
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

struct Held {
    /// `None`: of a balancer, behind which there are many clients.
    block: Option<Block>,
    standing: Arc<Standing>,
}

#[derive(Default)]
struct Open {
    next: u64,
    held: BTreeMap<u64, Held>,
    blocks: HashMap<Block, usize>,
}

impl Open {
    fn release(&mut self, id: u64) {
        let Some(block) = self.held.remove(&id).and_then(|held| held.block) else { return };
        if let Some(count) = self.blocks.get_mut(&block) {
            *count -= 1;
            if *count == 0 {
                self.blocks.remove(&block);
            }
        }
    }

    /// Ends the oldest connection of a stranger, of one block or of all.
    fn make_way(&mut self, block: Option<Block>) -> bool {
        let is_meant = |held: &Held| !held.standing.is_known() && (block.is_none() || held.block == block);
        let Some(id) = self.held.iter().find(|(_, held)| is_meant(held)).map(|(id, _)| *id) else { return false };
        if let Some(held) = self.held.get(&id) {
            held.standing.gives_way.notify_one();
        }
        self.release(id);
        true
    }
}

struct Inner {
    of_address: usize,
    balancers: Vec<Network>,
    open: Mutex<Open>,
}

/// The connections of all listeners of a webserver.
#[derive(Clone)]
pub(super) struct Connections(Arc<Inner>);

/// One connection; it gives its place back when dropped.
pub(super) struct Connection {
    connections: Connections,
    id: u64,
    pub standing: Arc<Standing>,
    _place: Place,
}

impl Connections {
    /// At most `of_address` connections of one address are open, 0: as many as there may be; `balancers` have as many as they
    /// like.
    pub(super) fn new(of_address: usize, balancers: Vec<Network>) -> Connections {
        let of_address = if of_address == 0 { usize::MAX } else { of_address };
        Connections(Arc::new(Inner { of_address, balancers, open: Mutex::default() }))
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a connection in; `None` when it has to be closed.
    pub(super) fn admit(&self, address: IpAddr) -> Option<Connection> {
        let connection = self.find_place(address, places_max());
        if connection.is_none()
            && let Some(left_out) = REFUSED.note()
        {
            tracing::warn!(%address, left_out, "a connection was closed: too many are open");
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
        // Some places stay free, because one that gives way takes a moment to end.
        if open.held.len() >= most - most / 8 {
            open.make_way(None);
        }
        let place = Place::take()?;
        let (id, standing) = (open.next, Arc::<Standing>::default());
        open.next += 1;
        open.held.insert(id, Held { block, standing: Arc::clone(&standing) });
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

/// Notes behind the guard, which has let the request in, whether it knows whose it is.
pub(super) async fn note_known(request: Request, next: Next) -> Response {
    let is_known = request.extensions().get::<super::caller::Caller>().is_some();
    if let Some(standing) = request.extensions().get::<Arc<Standing>>().filter(|_| is_known) {
        standing.is_known.store(true, Ordering::Relaxed);
    }
    next.run(request).await
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
        let connections = Connections::new(3, vec!["192.0.2.9".parse().expect("a network")]);
        let admit = |from: &str| connections.find_place(address(from), 1000);
        let held: Vec<Connection> = (0..3).map(|_| admit("192.0.2.1").expect("a place")).collect();
        held[0].standing.is_known.store(true, Ordering::Relaxed);
        let newer = admit("192.0.2.1").expect("a place");
        assert!(!has_ended(&held[0]), "a user");
        assert!(has_ended(&held[1]), "the oldest stranger");
        assert!(!has_ended(&held[2]) && !has_ended(&newer));
        for connection in [&held[2], &newer] {
            connection.standing.is_known.store(true, Ordering::Relaxed);
        }
        assert!(admit("192.0.2.1").is_none(), "all are users'");
        assert!(admit("192.0.2.2").is_some(), "another address has its own");
        let many: Vec<_> = (0..100).map(|_| admit("192.0.2.9")).collect();
        assert!(many.iter().all(Option::is_some), "a balancer has as many as it likes");
        drop((held, newer, many));
        assert!(connections.open().held.is_empty() && connections.open().blocks.is_empty());
    }

    #[tokio::test]
    async fn p15_strangers_of_many_addresses_give_way_when_places_run_short() {
        let connections = Connections::new(0, Vec::new());
        let admit = |number: usize| connections.find_place(address(&format!("198.51.100.{number}")), 80);
        let held: Vec<Connection> = (0..200).map(|number| admit(number).expect("a place")).collect();
        let ended: Vec<bool> = held.iter().map(has_ended).collect();
        assert_eq!(ended, [[true; 130].as_slice(), [false; 70].as_slice()].concat(), "the oldest ones");
    }

    #[tokio::test]
    async fn p15_a_connection_without_a_request_ends() {
        let connections = Connections::new(0, Vec::new());
        let silent = connections.find_place(address("::1"), 80).expect("a place");
        let asking = connections.find_place(address("::1"), 80).expect("a place");
        asking.standing.note_request();
        let short = Duration::from_millis(20);
        silent.standing.ends_without_request_in(short).await;
        let staying = tokio::time::timeout(10 * short, asking.standing.ends_without_request_in(short));
        assert!(staying.await.is_err(), "it has asked");
    }
}
