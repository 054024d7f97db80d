//! Outgoing connections to other members, made on demand and kept while in use.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout};

use crate::race;
use crate::wire::{self, WireError};
use gravwell_model::MemberName;
use gravwell_model::codec::message::{Kind, Open};
use gravwell_protocol::backoff::Backoff;

use super::listen::{Peer, serve_streams};
use super::peers::{PeerRegistry, Peers};

/// Timeout for an ICMP reply of a host that no process listens on a port.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout for opening a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence after which it is checked whether a process still listens at the other end.
const DOUBT_AFTER: Duration = Duration::from_millis(100);
/// Maximum backoff delay after a failure, during which no new attempt is made.
const RETRY_CAP: Duration = Duration::from_secs(5);
/// Idle time after which an unused connection is closed.
const UNUSED: Duration = Duration::from_secs(60);

/// Error returned when no stream to a member can be opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PeerError {
    /// The roster does not contain the member.
    #[error("{0} is not a known member")]
    Unknown(MemberName),
    /// The member does not listen, or has not announced an address.
    #[error("member {0} has not announced a peer address")]
    NoAddress(MemberName),
    /// The member is this one itself.
    #[error("{0} is this member itself")]
    Itself(MemberName),
    /// The member cannot be reached.
    #[error("cannot reach member {member}: {reason}")]
    Unreachable {
        /// Name of the member.
        member: MemberName,
        /// Underlying error.
        reason: String,
    },
    /// A different member answered at the address.
    #[error("{found} answered at {address} instead of {expected}")]
    Somebody {
        /// Address that was contacted.
        address: String,
        /// Member expected at the address.
        expected: MemberName,
        /// Member found there, or the reason why it is not trusted.
        found: String,
    },
}

/// An established connection; `used` counts its users.
struct Made {
    connection: quinn::Connection,
    used: Arc<()>,
}

struct State {
    made: Option<Made>,
    backoff: Backoff,
    /// Last failure, and the time until which it is returned without a new attempt.
    failed: Option<(PeerError, Instant)>,
}

/// Connection to one member; concurrent callers wait for the lock while it is established.
pub(super) struct Slot(tokio::sync::Mutex<State>);

impl Slot {
    fn new() -> Slot {
        let backoff = Backoff::new(Duration::from_millis(100), RETRY_CAP);
        Slot(tokio::sync::Mutex::new(State { made: None, backoff, failed: None }))
    }
}

/// An open stream. It keeps its connection in use.
pub struct PeerStream {
    /// Sending half, towards the member.
    pub send: quinn::SendStream,
    /// Receiving half.
    pub receive: quinn::RecvStream,
    _used: Arc<()>,
}

impl PeerStream {
    /// Returns the halves of the stream, and a guard that must live as long as they are used.
    #[must_use]
    pub fn into_parts(self) -> (quinn::SendStream, quinn::RecvStream, Arc<()>) {
        (self.send, self.receive, self._used)
    }
}

impl Peers {
    /// Opens a stream to a member, over an existing connection or a new one. The opening message has been written.
    ///
    /// # Errors
    /// See [`PeerError`]. For a short time after a failure the same error is returned, so that not every caller waits
    /// for it.
    pub async fn open(&self, member: &MemberName, open: Open) -> Result<PeerStream, PeerError> {
        let unreachable = |reason: String| PeerError::Unreachable { member: member.clone(), reason };
        let (connection, used) = self.connect(member).await?;
        tokio::spawn(doubt(connection.clone()));
        let opening = async {
            let (mut send, receive) = connection.open_bi().await?;
            wire::send(&mut send, Kind::Open, &open).await?;
            Ok::<_, WireError>((send, receive))
        };
        match timeout(OPEN_TIMEOUT, opening).await {
            Ok(Ok((send, receive))) => Ok(PeerStream { send, receive, _used: used }),
            Ok(Err(error)) => Err(unreachable(error.to_string())),
            Err(_) => Err(unreachable("no free streams".into())),
        }
    }

    async fn connect(&self, member: &MemberName) -> Result<(quinn::Connection, Arc<()>), PeerError> {
        if member == self.me() {
            return Err(PeerError::Itself(member.clone()));
        }
        let slot = {
            let mut slots = self.inner.slots.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(slots.entry(member.clone()).or_insert_with(|| Arc::new(Slot::new())))
        };
        let mut state = slot.0.lock().await;
        if let Some(made) = state.made.as_ref().filter(|made| made.connection.close_reason().is_none()) {
            return Ok((made.connection.clone(), Arc::clone(&made.used)));
        }
        if let Some(connection) = self.inner.connection_from(member) {
            return Ok((connection, Arc::default()));
        }
        if let Some((error, _)) = state.failed.as_ref().filter(|(_, until)| Instant::now() < *until) {
            return Err(error.clone());
        }
        match dial(&self.inner, member).await {
            Ok(connection) => {
                state.backoff.reset();
                state.failed = None;
                let used = Arc::new(());
                tokio::spawn(close_unused(connection.clone(), Arc::clone(&used)));
                state.made = Some(Made { connection: connection.clone(), used: Arc::clone(&used) });
                Ok((connection, used))
            }
            Err(error) => {
                // At least half of the maximum: this delay protects callers, it does not spread the load of a fleet.
                let pause = state.backoff.next_delay(u64::MAX / 3 * 2);
                state.failed = Some((error.clone(), Instant::now() + pause));
                Err(error)
            }
        }
    }
}

/// Closes a connection on which nothing is received after data was sent, if the peer's host reports that no process
/// listens there any more. So a killed process is noticed before the connection times out.
async fn doubt(connection: quinn::Connection) {
    let heard = connection.stats().udp_rx.datagrams;
    tokio::time::sleep(DOUBT_AFTER).await;
    let is_silent = connection.close_reason().is_none() && connection.stats().udp_rx.datagrams == heard;
    if is_silent && timeout(REFUSAL_TIMEOUT, refused(connection.remote_address())).await.is_ok_and(|is| is) {
        connection.close(0u32.into(), b"no process listens at the peer's address");
    }
}

/// Returns whether a host reports that no process listens at an address. Waits if the host sends no reply.
async fn refused(address: SocketAddr) -> bool {
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let Ok(socket) = UdpSocket::bind((any, 0)).await else { return false };
    if socket.connect(address).await.is_err() {
        return false;
    }
    // The datagram is too short for any reply but an ICMP error of the host.
    let _ = socket.send(&[0]).await;
    matches!(socket.recv(&mut [0; 64]).await, Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// Closes a connection when it is unused. The slot holds one reference to `used` and this task another; each stream
/// holds one.
async fn close_unused(connection: quinn::Connection, used: Arc<()>) {
    let mut idle_since = Instant::now();
    loop {
        tokio::select! {
            _ = connection.closed() => return,
            () = tokio::time::sleep(UNUSED / 4) => {}
        }
        if Arc::strong_count(&used) > 2 {
            idle_since = Instant::now();
        } else if idle_since.elapsed() > UNUSED {
            return connection.close(0u32.into(), b"connection is unused");
        }
    }
}

async fn dial(inner: &Arc<PeerRegistry>, member: &MemberName) -> Result<quinn::Connection, PeerError> {
    let unreachable = |reason: String| PeerError::Unreachable { member: member.clone(), reason };
    if let Some(problem) = inner.membership.problem() {
        return Err(unreachable(problem));
    }
    let roster = inner.roster();
    let known = roster.member(member).ok_or_else(|| PeerError::Unknown(member.clone()))?;
    if known.peer_addresses.is_empty() {
        return Err(PeerError::NoAddress(member.clone()));
    }
    let endpoint = inner.client().map_err(unreachable)?;
    let attempts = known.peer_addresses.iter().map(async |address| {
        let connection = endpoint.connect(address).await.map_err(|error| unreachable(error.to_string()))?;
        match inner.admit(&connection) {
            Ok((name, role, listed)) if name == *member => Ok((connection, Peer { name, role }, listed)),
            other => {
                let found = other.map_or_else(|refusal| refusal.to_string(), |(name, ..)| name.to_string());
                connection.close(0u32.into(), b"expected a different member at this address");
                Err(PeerError::Somebody { address: address.clone(), expected: member.clone(), found })
            }
        }
    });
    let trying = race::first(attempts.collect());
    let (connection, peer, listed) = trying.await.map_err(|errors| all_of(errors, member))?;
    let (weak, served) = (Arc::downgrade(inner), connection.clone());
    tokio::spawn(async move {
        serve_streams(&weak, &peer, &served).await;
        drop(listed);
    });
    Ok(connection)
}

/// Combines the errors of all addresses into one.
fn all_of(mut errors: Vec<PeerError>, member: &MemberName) -> PeerError {
    if errors.len() == 1 {
        return errors.remove(0);
    }
    let reasons = errors.iter().map(|error| match error {
        PeerError::Unreachable { reason, .. } => reason.clone(),
        error => error.to_string(),
    });
    PeerError::Unreachable { member: member.clone(), reason: reasons.collect::<Vec<_>>().join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_host_without_a_listener_reports_it() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
        let address = socket.local_addr().expect("an address");
        assert!(timeout(Duration::from_millis(200), refused(address)).await.is_err(), "a listening socket");
        drop(socket);
        assert!(timeout(Duration::from_secs(10), refused(address)).await.expect("port is closed"));
    }
}
