//! Limits for unauthenticated peers: their number, in total and per address, and the time they may take.
//!
//! While there are few, a handshake starts immediately. Above a limit, an address must be validated first (RFC 9000,
//! section 8.1.2), which costs the server nothing and is impossible with a forged address. The number of validated peers
//! is limited per block of addresses, so that one network cannot occupy all slots; within a block, a slow peer is evicted
//! in favour of a new one.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::timeout;

/// Timeout for a handshake, and then for the request of a joining client.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// Maximum number of concurrent handshakes from addresses that are not validated.
const UNVALIDATED_MAX: usize = 64;
/// Maximum number of unauthenticated peers, per block of addresses and in total. Each takes about 95 KiB until it is
/// authenticated, including those that were abandoned in the last second.
const BLOCK_MAX: usize = 256;
const TOTAL_MAX: usize = 512;
/// Minimum age for eviction, because a handshake takes a few round trips.
const YOUNG: Duration = Duration::from_millis(500);

/// Block of addresses that one client may control: a host can use a whole IPv6 /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Block {
    /// An IPv4 address.
    V4(u32),
    /// The upper half of an IPv6 address.
    V6(u64),
}

impl Block {
    /// Returns the block of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Block {
        match address.to_canonical() {
            IpAddr::V4(address) => Block::V4(address.to_bits()),
            IpAddr::V6(address) => Block::V6(u64::try_from(address.to_bits() >> 64).unwrap_or_default()),
        }
    }
}

struct Held {
    /// `None`: the address is not validated and may be forged.
    block: Option<Block>,
    since: Instant,
    gives_way: Arc<Notify>,
}

#[derive(Default)]
struct State {
    next: u64,
    held: BTreeMap<u64, Held>,
    blocks: HashMap<Block, usize>,
    unvalidated: usize,
}

impl State {
    fn release(&mut self, id: u64) {
        let Some(held) = self.held.remove(&id) else { return };
        let Some(block) = held.block else { return self.unvalidated -= 1 };
        if let Some(count) = self.blocks.get_mut(&block) {
            *count -= 1;
            if *count == 0 {
                self.blocks.remove(&block);
            }
        }
    }

    /// Evicts the oldest peer, of one block or of all, if it is old enough. Returns whether it did.
    fn make_way(&mut self, block: Option<Block>, now: Instant) -> bool {
        let is_meant = |held: &Held| block.is_none() || held.block == block;
        let oldest = self.held.iter().find(|(_, held)| is_meant(held)).map(|(id, held)| (*id, held.since));
        let Some((id, _)) = oldest.filter(|(_, since)| now.saturating_duration_since(*since) >= YOUNG) else {
            return false;
        };
        if let Some(held) = self.held.get(&id) {
            held.gives_way.notify_one();
        }
        self.release(id);
        true
    }
}

/// The unauthenticated peers of an endpoint.
#[derive(Clone, Default)]
pub struct Admission(Arc<Mutex<State>>);

/// Slot of an unauthenticated peer; released when dropped.
pub struct Turn {
    admission: Admission,
    id: u64,
    gives_way: Arc<Notify>,
}

/// Decision on a handshake.
pub enum Decision {
    /// The handshake may start.
    Start(Turn),
    /// The address must be validated first.
    Retry,
    /// No slot is free.
    Refuse,
}

/// Reason for which a peer was not authenticated.
#[derive(Debug, thiserror::Error)]
pub enum Delay {
    /// It took too long.
    #[error("no data received within {} s", PATIENCE.as_secs())]
    Slow,
    /// It was evicted in favour of a newer peer.
    #[error("evicted in favour of a newer client")]
    GaveWay,
}

impl Admission {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides on a handshake from `address`, which has been validated if `is_validated`.
    #[must_use]
    pub fn decide(&self, address: IpAddr, is_validated: bool, now: Instant) -> Decision {
        let mut state = self.state();
        let block = is_validated.then(|| Block::of(address));
        let Some(block) = block else {
            if state.unvalidated >= UNVALIDATED_MAX || state.held.len() >= TOTAL_MAX {
                return Decision::Retry;
            }
            state.unvalidated += 1;
            return Decision::Start(self.turn(&mut state, None, now));
        };
        let of_block = state.blocks.get(&block).copied().unwrap_or_default();
        if of_block >= BLOCK_MAX && !state.make_way(Some(block), now) {
            return Decision::Refuse;
        }
        if state.held.len() >= TOTAL_MAX && !state.make_way(None, now) {
            return Decision::Refuse;
        }
        *state.blocks.entry(block).or_default() += 1;
        Decision::Start(self.turn(&mut state, Some(block), now))
    }

    fn turn(&self, state: &mut State, block: Option<Block>, since: Instant) -> Turn {
        let (id, gives_way) = (state.next, Arc::new(Notify::new()));
        state.next += 1;
        state.held.insert(id, Held { block, since, gives_way: Arc::clone(&gives_way) });
        Turn { admission: self.clone(), id, gives_way }
    }

    /// Returns the number of unauthenticated peers.
    #[must_use]
    pub fn count(&self) -> usize {
        self.state().held.len()
    }
}

impl Turn {
    /// Runs `work` of an unauthenticated peer with the timeout [`PATIENCE`].
    ///
    /// # Errors
    /// If it takes longer, or the peer is evicted.
    pub async fn within<T>(&self, work: impl Future<Output = T>) -> Result<T, Delay> {
        tokio::select! {
            done = timeout(PATIENCE, work) => done.map_err(|_| Delay::Slow),
            () = self.gives_way.notified() => Err(Delay::GaveWay),
        }
    }

    /// Runs `work`, which has a separate timeout, until it completes or the peer is evicted.
    ///
    /// # Errors
    /// If the peer is evicted.
    pub async fn unless_it_gives_way<T>(&self, work: impl Future<Output = T>) -> Result<T, Delay> {
        tokio::select! {
            done = work => Ok(done),
            () = self.gives_way.notified() => Err(Delay::GaveWay),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.admission.state().release(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    fn started(decision: Decision) -> Turn {
        match decision {
            Decision::Start(turn) => turn,
            Decision::Retry => panic!("must validate its address first"),
            Decision::Refuse => panic!("was refused"),
        }
    }

    #[test]
    fn p15_forged_addresses_have_to_answer_and_take_no_place_of_those_that_do() {
        let (admission, now) = (Admission::default(), Instant::now());
        let forged: Vec<Turn> =
            (0..UNVALIDATED_MAX).map(|_| started(admission.decide(address(1), false, now))).collect();
        for _ in 0..10_000 {
            assert!(matches!(admission.decide(address(1), false, now), Decision::Retry));
        }
        // Peers at the address that was forged are served as well.
        let honest: Vec<Turn> = (0..BLOCK_MAX).map(|_| started(admission.decide(address(1), true, now))).collect();
        assert_eq!(admission.count(), UNVALIDATED_MAX + BLOCK_MAX);
        drop((forged, honest));
        assert_eq!(admission.count(), 0);
        assert!(admission.state().blocks.is_empty());
        drop(started(admission.decide(address(1), false, now)));
    }

    #[tokio::test]
    async fn p15_a_network_has_its_share_and_slow_peers_give_way() {
        let (admission, now) = (Admission::default(), Instant::now());
        let mut slow: Vec<Turn> = (0..BLOCK_MAX).map(|_| started(admission.decide(address(1), true, now))).collect();
        assert!(
            matches!(admission.decide(address(1), true, now), Decision::Refuse),
            "none is old enough to be evicted"
        );
        drop(started(admission.decide(address(2), true, now)));
        let later = now + YOUNG;
        let honest = started(admission.decide(address(1), true, later));
        assert!(matches!(slow[0].within(std::future::pending::<()>()).await, Err(Delay::GaveWay)));
        assert_eq!(honest.within(async { 7 }).await.expect("completed"), 7);
        slow.clear();
        assert_eq!(admission.count(), 1, "an evicted slot is released only once");
        let many: Vec<Turn> = (0..u32::try_from(TOTAL_MAX - 1).expect("few"))
            .map(|number| started(admission.decide(address(number), true, later)))
            .collect();
        assert!(matches!(admission.decide(address(9999), true, later), Decision::Refuse));
        assert!(matches!(admission.decide(address(9999), false, later), Decision::Retry));
        drop(started(admission.decide(address(9999), true, later + YOUNG)));
        drop(many);
    }

    #[test]
    fn a_block_is_an_address_or_a_network_of_ipv6() {
        let of = |text: &str| Block::of(text.parse().expect("an address"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
