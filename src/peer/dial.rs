//! Connections to other members: made when they are needed, kept while they are used.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout};

use crate::codec::message::{Kind, Open};
use crate::model::MemberName;
use crate::protocol::backoff::Backoff;
use crate::transport::race;
use crate::transport::wire::{self, WireError};

use super::listen::{Peer, serve_streams};
use super::peers::{Inner, Peers};

/// Longest wait for a host's word that nobody listens.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait until a stream can be opened.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence after which it is asked whether anybody listens at the other end.
const DOUBT_AFTER: Duration = Duration::from_millis(100);
/// Longest pause after a failure during which nobody tries again.
const RETRY_CAP: Duration = Duration::from_secs(5);
/// A connection that nobody uses is closed after this long.
const UNUSED: Duration = Duration::from_secs(60);

/// Why there is no stream to a member.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PeerError {
    /// The roster does not know it.
    #[error("{0} is not a member that is known here")]
    Unknown(MemberName),
    /// It does not listen, or has not said where.
    #[error("{0} has not said where it listens to other members")]
    NoAddress(MemberName),
    /// It is this member.
    #[error("{0} is this member itself")]
    Itself(MemberName),
    /// It does not answer.
    #[error("{member} cannot be reached: {reason}")]
    Unreachable {
        /// Who.
        member: MemberName,
        /// Why.
        reason: String,
    },
    /// Whoever answers is not that member.
    #[error("at {address} answers {found}, not {expected}")]
    Somebody {
        /// Where.
        address: String,
        /// Who should be there.
        expected: MemberName,
        /// Who is.
        found: String,
    },
}

/// A connection that was made, and when it was last used.
struct Made {
    connection: quinn::Connection,
    used: Arc<()>,
}

struct State {
    made: Option<Made>,
    backoff: Backoff,
    /// The last failure, and until when it is the answer.
    failed: Option<(PeerError, Instant)>,
}

/// The connection to one member; whoever needs it waits for the lock while it is being made.
pub(super) struct Slot(tokio::sync::Mutex<State>);

impl Slot {
    fn new() -> Slot {
        let backoff = Backoff::new(Duration::from_millis(100), RETRY_CAP);
        Slot(tokio::sync::Mutex::new(State { made: None, backoff, failed: None }))
    }
}

/// An open stream. The connection is kept while the stream is.
pub struct PeerStream {
    /// Towards the member.
    pub send: quinn::SendStream,
    /// From the member.
    pub receive: quinn::RecvStream,
    _used: Arc<()>,
}

impl PeerStream {
    /// The stream's halves, and what must live as long as they are used.
    #[must_use]
    pub fn into_parts(self) -> (quinn::SendStream, quinn::RecvStream, Arc<()>) {
        (self.send, self.receive, self._used)
    }
}

impl Peers {
    /// Opens a stream to a member, over the connection that exists or over a new one. The stream's opening has been written.
    ///
    /// # Errors
    /// See [`PeerError`]. After a failure the same answer is given for a moment, so that many who ask do not all wait.
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
            Err(_) => Err(unreachable("it takes no more streams for now".into())),
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
                // Half of the bound at least: this pause is for those who ask, not to spread a fleet.
                let pause = state.backoff.next_delay(u64::MAX / 3 * 2);
                state.failed = Some((error.clone(), Instant::now() + pause));
                Err(error)
            }
        }
    }
}

/// Closes a connection on which nothing is heard of what was just sent, when the other side's host says that nobody listens there any
/// more: a process that was killed is not waited for until the connection times out.
async fn doubt(connection: quinn::Connection) {
    let heard = connection.stats().udp_rx.datagrams;
    tokio::time::sleep(DOUBT_AFTER).await;
    let is_silent = connection.close_reason().is_none() && connection.stats().udp_rx.datagrams == heard;
    if is_silent && timeout(REFUSAL_TIMEOUT, refused(connection.remote_address())).await.is_ok_and(|is| is) {
        connection.close(0u32.into(), b"nobody listens at the other end any more");
    }
}

/// Whether a host says that nobody listens at an address. A host that says nothing is waited for.
async fn refused(address: SocketAddr) -> bool {
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let Ok(socket) = UdpSocket::bind((any, 0)).await else { return false };
    if socket.connect(address).await.is_err() {
        return false;
    }
    // Too short for anything but an answer of the host.
    let _ = socket.send(&[0]).await;
    matches!(socket.recv(&mut [0; 64]).await, Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// The slot holds one share of a connection's use, this task another; every stream has its own.
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
            return connection.close(0u32.into(), b"not in use");
        }
    }
}

async fn dial(inner: &Arc<Inner>, member: &MemberName) -> Result<quinn::Connection, PeerError> {
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
                connection.close(0u32.into(), b"another member was expected here");
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

/// What every address answered, as one error.
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
    async fn a_host_says_when_nobody_listens() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
        let address = socket.local_addr().expect("an address");
        assert!(timeout(Duration::from_millis(200), refused(address)).await.is_err(), "somebody listens");
        drop(socket);
        assert!(timeout(Duration::from_secs(10), refused(address)).await.expect("an answer"));
    }
}
