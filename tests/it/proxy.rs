//! Network faults on loopback: a UDP forwarder between a replica and its datastore that delays (and so reorders), drops,
//! duplicates or swallows datagrams, separately in each direction, controlled by a seeded random number generator.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::fleet::Rng;

/// Maximum number of datagrams in flight; further ones are lost, as in a full queue.
const IN_FLIGHT_MAX: u64 = 2048;

/// Faults in one direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct NetworkConditions {
    /// Drops all datagrams.
    pub cut: bool,
    /// Lost datagrams, per thousand.
    pub lost: u64,
    /// Duplicated datagrams, per thousand.
    pub doubled: u64,
    /// Minimum delay, in microseconds.
    pub delay_us: u64,
    /// Maximum additional delay, in microseconds.
    pub jitter_us: u64,
}

impl NetworkConditions {
    pub const CUT: NetworkConditions = NetworkConditions { cut: true, lost: 0, doubled: 0, delay_us: 0, jitter_us: 0 };
}

/// Counters of forwarded and modified datagrams.
#[derive(Debug, Default)]
pub struct Counts {
    pub carried: AtomicU64,
    pub lost: AtomicU64,
    pub doubled: AtomicU64,
    pub delayed: AtomicU64,
}

struct Way {
    weather: Mutex<NetworkConditions>,
    dice: Mutex<Rng>,
    in_flight: AtomicU64,
    counts: Arc<Counts>,
}

impl Way {
    fn new(seed: u64, counts: &Arc<Counts>) -> Arc<Way> {
        let (weather, dice) = (Mutex::default(), Mutex::new(Rng::new(seed)));
        Arc::new(Way { weather, dice, in_flight: AtomicU64::new(0), counts: Arc::clone(counts) })
    }

    /// Returns the delay of each copy of the next datagram; no copy: it is lost.
    fn fate(&self) -> Vec<Duration> {
        let weather = *self.weather.lock().unwrap_or_else(PoisonError::into_inner);
        let mut dice = self.dice.lock().unwrap_or_else(PoisonError::into_inner);
        let (lost, doubled) = (dice.below(1000) < weather.lost, dice.below(1000) < weather.doubled);
        if weather.cut || lost || self.in_flight.load(Ordering::Relaxed) >= IN_FLIGHT_MAX {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
            return Vec::new();
        }
        self.counts.carried.fetch_add(1, Ordering::Relaxed);
        self.counts.doubled.fetch_add(u64::from(doubled), Ordering::Relaxed);
        let mut delay = || Duration::from_micros(weather.delay_us + dice.below(weather.jitter_us.max(1)));
        (0..=u64::from(doubled)).map(|_| delay()).collect()
    }

    /// Forwards a datagram with the chosen faults.
    async fn carry(self: &Arc<Way>, datagram: &[u8], by: &Arc<UdpSocket>, to: Option<SocketAddr>) {
        for delay in self.fate() {
            if delay < Duration::from_micros(500) {
                send(by, datagram, to).await;
                continue;
            }
            self.counts.delayed.fetch_add(1, Ordering::Relaxed);
            self.in_flight.fetch_add(1, Ordering::Relaxed);
            let (way, by, datagram) = (Arc::clone(self), Arc::clone(by), datagram.to_vec());
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                way.in_flight.fetch_sub(1, Ordering::Relaxed);
                send(&by, &datagram, to).await;
            });
        }
    }
}

/// Datagrams that cannot be sent are lost, as on any network.
async fn send(by: &UdpSocket, datagram: &[u8], to: Option<SocketAddr>) {
    let _ = match to {
        Some(to) => by.send_to(datagram, to).await,
        None => by.send(datagram).await,
    };
}

/// The path of one replica to its datastore; closed on drop.
pub struct Proxy {
    address: SocketAddr,
    up: Arc<Way>,
    down: Arc<Way>,
    epoch: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    pub async fn open(far: SocketAddr, seed: u64, counts: &Arc<Counts>) -> io::Result<Proxy> {
        let near = Arc::new(UdpSocket::bind("127.0.0.1:0").await?);
        let (address, epoch) = (near.local_addr()?, Arc::new(AtomicU64::new(0)));
        let (up, down) = (Way::new(seed, counts), Way::new(seed ^ 0x5555, counts));
        let mut tasks = JoinSet::new();
        tasks.spawn(forward(near, far, Arc::clone(&up), Arc::clone(&down), Arc::clone(&epoch)));
        Ok(Proxy { address, up, down, epoch, _tasks: tasks })
    }

    /// Returns the address for replicas.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets the faults towards the datastore, and back.
    pub fn set(&self, up: NetworkConditions, down: NetworkConditions) {
        *self.up.weather.lock().unwrap_or_else(PoisonError::into_inner) = up;
        *self.down.weather.lock().unwrap_or_else(PoisonError::into_inner) = down;
    }

    /// From now on every connection comes from another port, as behind a restarted router.
    pub fn forget(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }
}

async fn forward(near: Arc<UdpSocket>, far: SocketAddr, up: Arc<Way>, down: Arc<Way>, epoch: Arc<AtomicU64>) {
    let mut ends: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut returning = JoinSet::new();
    let mut known = 0;
    let mut datagram = vec![0; 64 << 10];
    loop {
        let Ok((length, from)) = near.recv_from(&mut datagram).await else { continue };
        let now = epoch.load(Ordering::Acquire);
        if now != known {
            (known, ends, returning) = (now, HashMap::new(), JoinSet::new());
        }
        let end = match ends.get(&from) {
            Some(end) => Arc::clone(end),
            None => {
                let Ok(end) = UdpSocket::bind("127.0.0.1:0").await else { continue };
                if end.connect(far).await.is_err() {
                    continue;
                }
                let end = Arc::new(end);
                returning.spawn(bring_back(Arc::clone(&end), Arc::clone(&near), from, Arc::clone(&down)));
                ends.insert(from, Arc::clone(&end));
                end
            }
        };
        up.carry(&datagram[..length], &end, None).await;
    }
}

async fn bring_back(end: Arc<UdpSocket>, near: Arc<UdpSocket>, to: SocketAddr, down: Arc<Way>) {
    let mut datagram = vec![0; 64 << 10];
    loop {
        // An error means that the target does not listen at the moment; this may change.
        if let Ok(length) = end.recv(&mut datagram).await {
            down.carry(&datagram[..length], &near, Some(to)).await;
        }
    }
}

#[tokio::test]
async fn network_conditions_are_applied() {
    let far = UdpSocket::bind("127.0.0.1:0").await.expect("socket");
    let counts = Arc::default();
    let proxy = Proxy::open(far.local_addr().expect("address"), 1, &counts).await.expect("opens");
    let near = UdpSocket::bind("127.0.0.1:0").await.expect("socket");
    near.connect(proxy.address()).await.expect("connects");
    let mut got = [0; 64];
    let soon = Duration::from_millis(200);
    near.send(b"there").await.expect("sent");
    let (length, from) = far.recv_from(&mut got).await.expect("received");
    assert_eq!(&got[..length], b"there");
    far.send_to(b"back", from).await.expect("sent");
    assert_eq!(near.recv(&mut got).await.expect("received"), 4);
    proxy.set(NetworkConditions::default(), NetworkConditions::CUT);
    near.send(b"one way").await.expect("sent");
    far.recv_from(&mut got).await.expect("received");
    far.send_to(b"lost", from).await.expect("sent");
    assert!(tokio::time::timeout(soon, near.recv(&mut got)).await.is_err());
    proxy.set(
        NetworkConditions { doubled: 1000, delay_us: 2000, jitter_us: 2000, ..NetworkConditions::default() },
        NetworkConditions::default(),
    );
    near.send(b"twice").await.expect("sent");
    for _ in 0..2 {
        tokio::time::timeout(soon, far.recv_from(&mut got)).await.expect("in time").expect("received");
    }
    proxy.forget();
    near.send(b"from elsewhere").await.expect("sent");
    assert_ne!(far.recv_from(&mut got).await.expect("received").1, from);
}
