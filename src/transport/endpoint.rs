//! QUIC endpoints, with the transport settings of both sides.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quinn::{Endpoint, EndpointConfig, IdleTimeout, TransportConfig, VarInt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::timeout;

use super::admission::{Admission, Decision, Delay, Turn};
use super::flow_control::WINDOW_FIRST;
use super::race;
use crate::trust::tls::{ALPN_CHUNKS, ALPN_JOIN, ROTATED, SERVER_NAME};
use gravwell_env::{Clock, SystemClock};
use gravwell_model::codec::json_lines::timestamp;
use gravwell_model::printable;
use gravwell_runtime::tasks::low_priority;

/// Size in bytes of the UDP buffers, in each direction, requested for every socket; the granted size is logged
/// if smaller.
pub const UDP_BUFFER_BYTES: usize = 4 << 20;
/// Idle timeout of a connection.
const IDLE_TIMEOUT_MS: u32 = 12_000;
/// Interval of a client's keep-alive packets on a silent connection, short enough to detect a lost peer soon,
/// see [`super::pulse`].
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Timeout for one address. It is short, because a handshake that was started while no process listened is retransmitted
/// at increasing intervals, while a new one is answered immediately.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Code with which the datastore closes the connection of a revoked member.
pub const CLOSE_REVOKED: u32 = 4;
/// Send buffer in bytes per connection: small, because there are many subscribers.
const SEND_WINDOW: u64 = 2 << 20;
const RECEIVE_WINDOW: u32 = 16 << 20;
/// Receive window of an unauthenticated peer.
const UNTRUSTED_WINDOW: u32 = 256 << 10;
const STREAM_RECEIVE_WINDOW: u32 = 8 << 20;
/// Stream window between members other than the datastore. There the streams of many users share a connection: an unread
/// one occupies its part of the connection's window and no more.
const PEER_STREAM_WINDOW: u32 = RECEIVE_WINDOW / STREAMS_MAX;
/// Close code for a client that is not, or no longer, a member.
pub const CLOSE_NOT_A_MEMBER: u32 = 2;
/// Close code for a member with a certificate from a CA that was replaced while the member was offline: its data is kept,
/// but it has to be enrolled again.
pub const CLOSE_LEFT_BEHIND: u32 = 6;
/// Maximum number of concurrent streams of a client.
const STREAMS_MAX: u32 = 64;
/// Maximum number of streams before authentication, because memory is allocated for each. A member gets the rest shortly
/// after its handshake.
const UNTRUSTED_STREAMS: u32 = 4;
/// Initial round-trip time that a server assumes. The state of an abandoned handshake is kept for nine of these, so a
/// third of the usual value (RFC 9002, section 6.2.2) releases the memory of unauthenticated peers three times as fast.
const SERVER_INITIAL_RTT: Duration = Duration::from_millis(100);

fn transport(keep_alive: Option<Duration>) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .keep_alive_interval(keep_alive)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .send_window(SEND_WINDOW)
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .stream_receive_window(VarInt::from_u32(STREAM_RECEIVE_WINDOW))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS_MAX))
        .datagram_receive_buffer_size(None);
    config
}

/// Returns the settings of a server for unauthenticated peers, see [`trusted`].
fn untrusted_transport(stream_window: u32) -> TransportConfig {
    // A keep-alive from one side is enough, and the datastore of a fleet has many connections.
    let mut config = transport(None);
    config
        .receive_window(VarInt::from_u32(UNTRUSTED_WINDOW))
        .stream_receive_window(VarInt::from_u32(stream_window.min(UNTRUSTED_WINDOW)))
        .max_concurrent_bidi_streams(VarInt::from_u32(UNTRUSTED_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(UNTRUSTED_STREAMS))
        .initial_rtt(SERVER_INITIAL_RTT);
    config
}

fn socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // The system may grant less; the operator can raise the kernel's limits.
    let _ = socket.set_recv_buffer_size(UDP_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(UDP_BUFFER_BYTES);
    socket.bind(&address.into())?;
    let (receive, send) = (socket.recv_buffer_size()?, socket.send_buffer_size()?);
    if receive < UDP_BUFFER_BYTES {
        tracing::debug!(receive, send, "UDP buffers are smaller than requested; see net.core.rmem_max and wmem_max");
    }
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Keyed BLAKE3 for stateless resets. The key outlives the process, so after a restart of a killed datastore its clients
/// are informed immediately instead of after the idle timeout.
struct ResetKey([u8; 32]);

impl quinn::crypto::HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(data).finalize_xof().fill(signature_out);
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), quinn::crypto::CryptoError> {
        let expected = blake3::keyed_hash(&self.0, data);
        let found = <[u8; 32]>::try_from(signature).map_err(|_| quinn::crypto::CryptoError)?;
        if expected == found { Ok(()) } else { Err(quinn::crypto::CryptoError) }
    }
}

fn endpoint(address: SocketAddr, server: Option<quinn::ServerConfig>, config: EndpointConfig) -> io::Result<Endpoint> {
    let runtime = quinn::default_runtime().ok_or_else(|| io::Error::other("no tokio runtime"))?;
    Endpoint::new(config, server, socket(address)?, runtime)
}

fn server_settings(tls: rustls::ServerConfig, stream_window: u32) -> io::Result<quinn::ServerConfig> {
    let crypto = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(untrusted_transport(stream_window)));
    Ok(config)
}

/// Endpoint of the datastore, or of a member that listens to other members.
#[derive(Clone)]
pub struct ServerEndpoint {
    endpoint: Endpoint,
    stream_window: u32,
}

/// Listens on `address`. `reset_key` must be the same at every start.
///
/// # Errors
/// If the address cannot be bound.
pub fn server(address: SocketAddr, tls: rustls::ServerConfig, reset_key: &[u8; 32]) -> io::Result<ServerEndpoint> {
    listen(address, tls, reset_key, STREAM_RECEIVE_WINDOW)
}

/// Like [`server`], for connections between members.
///
/// # Errors
/// If the address cannot be bound.
pub fn peer_server(address: SocketAddr, tls: rustls::ServerConfig, reset_key: &[u8; 32]) -> io::Result<ServerEndpoint> {
    listen(address, tls, reset_key, PEER_STREAM_WINDOW)
}

fn listen(
    address: SocketAddr,
    tls: rustls::ServerConfig,
    reset_key: &[u8; 32],
    stream_window: u32,
) -> io::Result<ServerEndpoint> {
    let config = EndpointConfig::new(Arc::new(ResetKey(*reset_key)));
    let endpoint = endpoint(address, Some(server_settings(tls, stream_window)?), config)?;
    Ok(ServerEndpoint { endpoint, stream_window })
}

/// A handshake that may start.
pub struct Arrival {
    incoming: quinn::Incoming,
    turn: Turn,
    /// Remote address of the handshake.
    pub from: SocketAddr,
}

/// Error of a handshake.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The handshake failed.
    #[error(transparent)]
    Failed(#[from] quinn::ConnectionError),
    /// The handshake took too long, or was evicted by another one.
    #[error(transparent)]
    Delay(#[from] Delay),
}

/// Handshake in which one side rejected the certificate of the other one. Both are certificates of members or of the
/// datastore, so the client may be a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RejectedCertificate {
    /// One side does not know the CA of the other one.
    UnknownAuthority,
    /// The client trusts a CA that the server's CA has replaced.
    Rotated,
    /// A certificate has expired or is not valid yet.
    OutOfTime {
        /// Whether it is the client's certificate; otherwise it is the server's, and the client's clock decides.
        is_clients: bool,
        /// Whether it is not valid yet.
        is_early: bool,
    },
    /// Any other reason, with the description of the side that rejected it.
    Other(String),
}

/// Text in a handshake error if a certificate is not valid yet.
const NOT_VALID_YET: &str = "not valid yet";
/// Most characters of a reason that a client gives.
const REASON_CHARS_MAX: usize = 200;

impl HandshakeError {
    /// Returns how a certificate was rejected; `None` if the handshake failed for another reason.
    #[must_use]
    pub fn rejected_certificate(&self) -> Option<RejectedCertificate> {
        // RFC 8446, section 6: bad_certificate, unsupported_certificate, certificate_revoked, certificate_expired,
        // certificate_unknown, unknown_ca, access_denied, decrypt_error (a signature by another key of that name),
        // bad_certificate_status_response, certificate_required.
        const ALERTS: [u8; 10] = [42, 43, 44, 45, 46, 48, 49, 51, 113, 116];
        let (code, reason, is_clients) = match self {
            HandshakeError::Failed(quinn::ConnectionError::ConnectionClosed(close)) => {
                (close.error_code, String::from_utf8_lossy(&close.reason).into_owned(), false)
            }
            HandshakeError::Failed(quinn::ConnectionError::TransportError(error)) => {
                (error.code, error.reason.clone(), true)
            }
            _ => return None,
        };
        let alert = ALERTS.into_iter().find(|alert| code == quinn::TransportErrorCode::crypto(*alert))?;
        Some(match alert {
            _ if reason.contains(ROTATED) => RejectedCertificate::Rotated,
            48 => RejectedCertificate::UnknownAuthority,
            OUT_OF_TIME => RejectedCertificate::OutOfTime { is_clients, is_early: reason.contains(NOT_VALID_YET) },
            _ => RejectedCertificate::Other(match printable::shorten(&reason, REASON_CHARS_MAX) {
                reason if reason.is_empty() => format!("TLS alert {alert}"),
                reason => reason,
            }),
        })
    }
}

impl Arrival {
    /// Completes the handshake. The peer holds the returned turn until it has authenticated: drop it then, and raise the
    /// peer's limits with [`trusted`].
    ///
    /// # Errors
    /// If the handshake fails or takes too long.
    pub async fn handshake(self) -> Result<(quinn::Connection, Turn), HandshakeError> {
        let connection = self.turn.within(self.incoming.into_future()).await??;
        Ok((connection, self.turn))
    }
}

/// Raises the limits of an authenticated peer to those of a member.
pub fn trusted(connection: &quinn::Connection) {
    connection.set_receive_window(VarInt::from_u32(RECEIVE_WINDOW));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(STREAMS_MAX));
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(STREAMS_MAX));
}

impl ServerEndpoint {
    /// Returns the address on which the endpoint listens.
    ///
    /// # Errors
    /// If the socket is closed.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Returns the next handshake that may start; `None` once closed.
    pub async fn accept(&self, admission: &Admission) -> Option<Arrival> {
        loop {
            let incoming = self.endpoint.accept().await?;
            let from = incoming.remote_address();
            match admission.decide(from.ip(), incoming.remote_address_validated(), Instant::now()) {
                Decision::Start(turn) => return Some(Arrival { incoming, turn, from }),
                Decision::Refuse => incoming.refuse(),
                // `retry` fails only for an address that has been validated already.
                Decision::Retry => drop(incoming.retry()),
            }
        }
    }

    /// Uses another certificate for new connections.
    ///
    /// # Errors
    /// If the certificate is not suitable for QUIC.
    pub fn replace_certificate(&self, tls: rustls::ServerConfig) -> io::Result<()> {
        self.endpoint.set_server_config(Some(server_settings(tls, self.stream_window)?));
        Ok(())
    }

    /// Closes all connections.
    pub fn close(&self, reason: &[u8]) {
        self.endpoint.close(VarInt::from_u32(0), reason);
    }

    /// Waits until the close of all connections has been sent.
    pub async fn wait_idle(&self) {
        self.endpoint.wait_idle().await;
    }
}

/// Error returned when no connection can be established.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address cannot be resolved.
    #[error("{address}: {source}")]
    Address {
        /// Address as given.
        address: String,
        /// Resolution error.
        source: io::Error,
    },
    /// The peer is not the datastore to which the identity or token belongs.
    #[error(
        "{address} presented a certificate from a different CA; check that it is this fleet's datastore; if that was \
         reinstalled, rebuild it from its members with `gravwell-logctl recover`"
    )]
    Foreign {
        /// Address that was contacted.
        address: String,
    },
    /// The datastore's CA was replaced.
    #[error(
        "{address}: the datastore's CA was replaced while this member was offline; enroll it again (`gravwell-logctl \
         enroll NAME --replace` at the datastore, `gravwell-logctl join TOKEN` here), which keeps its state and \
         outbox"
    )]
    Rotated {
        /// Address that was contacted.
        address: String,
    },
    /// The connection failed for another reason.
    #[error("{address}: {reason}")]
    Failed {
        /// Address that was contacted.
        address: String,
        /// Description of the failure.
        reason: String,
    },
}

/// Error of one socket address.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("certificate from a different CA")]
    Foreign,
    #[error("certificate from the CA that replaced the trusted one")]
    Rotated,
    #[error("no answer within {} s", ATTEMPT.as_secs())]
    Silent,
    #[error("{0}")]
    Clock(String),
    #[error("{0}")]
    Failed(String),
}

/// RFC 8446, section 6: certificate_expired, which is also used for a certificate that is not valid yet.
const OUT_OF_TIME: u8 = 45;

/// Returns a remedy if a connection failed because a certificate, on either side, is expired or not yet valid.
#[must_use]
pub fn clock_trouble(error: &quinn::ConnectionError) -> Option<String> {
    let shows = || format!("the clock of this host shows {}", timestamp(SystemClock.now_ms()));
    if let quinn::ConnectionError::ConnectionClosed(close) = error
        && close.error_code == quinn::TransportErrorCode::crypto(OUT_OF_TIME)
    {
        return Some(format!(
            "the datastore rejects this host's certificate as expired or not valid yet; {}; compare it with the \
             datastore's and set the wrong one; if both are right, join again with a new token (`gravwell-logctl \
             enroll`)",
            shows()
        ));
    }
    let quinn::ConnectionError::TransportError(failed) = error else { return None };
    if failed.code != quinn::TransportErrorCode::crypto(OUT_OF_TIME) {
        return None;
    }
    let (state, side) = match failed.reason.contains(NOT_VALID_YET) {
        true => ("is not valid yet", "this clock is slow, or the datastore's is fast"),
        false => ("has expired", "this clock is fast, or the datastore's was slow when it created the certificate"),
    };
    Some(format!(
        "the datastore's certificate {state}, and {}: {side}; compare the clocks of both hosts, set the wrong one \
         (for example with a time service), and try again",
        shows()
    ))
}

/// Returns the errors of all addresses in one line.
#[must_use]
pub fn summary(errors: &[ConnectError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Endpoint of a client with its TLS settings.
#[derive(Clone)]
pub struct ClientEndpoint {
    v4: Endpoint,
    config: quinn::ClientConfig,
    /// Runtime that drives the connections, if it is not the caller's.
    runtime: Option<tokio::runtime::Handle>,
}

/// Creates the endpoint of a client.
///
/// # Errors
/// If no socket can be created.
pub fn client(tls: rustls::ClientConfig) -> io::Result<ClientEndpoint> {
    client_with(tls, transport(Some(KEEP_ALIVE)))
}

/// Like [`client`], for connections between members.
///
/// # Errors
/// If no socket can be created.
pub fn peer_client(tls: rustls::ClientConfig) -> io::Result<ClientEndpoint> {
    let mut transport = transport(Some(KEEP_ALIVE));
    transport.stream_receive_window(VarInt::from_u32(PEER_STREAM_WINDOW));
    client_with(tls, transport)
}

fn client_with(tls: rustls::ClientConfig, transport: TransportConfig) -> io::Result<ClientEndpoint> {
    let crypto = QuicClientConfig::try_from(tls).map_err(io::Error::other)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    Ok(ClientEndpoint {
        v4: endpoint(SocketAddr::from(([0, 0, 0, 0], 0)), None, EndpointConfig::default())?,
        config,
        runtime: None,
    })
}

/// Creates the endpoint of a client for bulk connections, which [yield to others](super::flow_control).
///
/// # Errors
/// If no socket can be created.
pub fn bulk_client(tls: rustls::ClientConfig) -> io::Result<ClientEndpoint> {
    // The tasks that drive the endpoint and its connections run on the runtime in which these are created.
    let runtime = low_priority::handle();
    let _entered = runtime.enter();
    let mut transport = transport(Some(KEEP_ALIVE));
    let window = VarInt::from_u32(WINDOW_FIRST);
    transport.receive_window(window).stream_receive_window(window);
    let mut made = client_with(tls, transport)?;
    made.runtime = Some(runtime.clone());
    Ok(made)
}

impl ClientEndpoint {
    /// Connects to the first of `addresses`, each a `host:port`, that answers, and returns that address. The attempts
    /// start one shortly after the other, and each has a timeout of 2 s.
    ///
    /// # Errors
    /// Returns the error of each address, in their order.
    pub async fn connect_any(&self, addresses: &[String]) -> Result<(quinn::Connection, String), Vec<ConnectError>> {
        let attempts = addresses.iter().map(async |address| Ok((self.connect(address).await?, address.clone())));
        race::first(attempts.collect()).await
    }

    /// Connects to `address`, a `host:port`; for a name with several addresses, to the first that answers.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(&self, address: &str) -> Result<quinn::Connection, ConnectError> {
        let Some(runtime) = &self.runtime else { return self.connect_here(address).await };
        let (there, target) = (self.clone(), address.to_owned());
        let connecting = runtime.spawn(async move { there.connect_here(&target).await });
        let failed = |error: tokio::task::JoinError| ConnectError::Failed {
            address: address.to_owned(),
            reason: error.to_string(),
        };
        connecting.await.map_err(failed)?
    }

    async fn connect_here(&self, address: &str) -> Result<quinn::Connection, ConnectError> {
        let named = |source| ConnectError::Address { address: address.to_owned(), source };
        let looking = timeout(ATTEMPT, tokio::net::lookup_host(address)).await;
        let found = looking.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(named)?;
        let targets: Vec<SocketAddr> = found.collect();
        if targets.is_empty() {
            return Err(named(io::Error::other("no address found")));
        }
        let trying = race::first(targets.iter().map(|target| self.connect_to(*target)).collect());
        trying.await.map_err(|refusals| {
            if refusals.iter().any(|refusal| matches!(refusal, Refusal::Foreign)) {
                return ConnectError::Foreign { address: address.to_owned() };
            }
            if refusals.iter().any(|refusal| matches!(refusal, Refusal::Rotated)) {
                return ConnectError::Rotated { address: address.to_owned() };
            }
            let said = targets.iter().zip(&refusals).map(|(target, refusal)| match refusal {
                refusal if targets.len() == 1 => refusal.to_string(),
                refusal => format!("{target}: {refusal}"),
            });
            ConnectError::Failed { address: address.to_owned(), reason: said.collect::<Vec<_>>().join(", ") }
        })
    }

    async fn connect_to(&self, target: SocketAddr) -> Result<quinn::Connection, Refusal> {
        let failed = |error: &dyn std::fmt::Display| Refusal::Failed(error.to_string());
        let endpoint = match target {
            SocketAddr::V4(_) => self.v4.clone(),
            SocketAddr::V6(_) => endpoint(SocketAddr::from(([0u16; 8], 0)), None, EndpointConfig::default())
                .map_err(|error| failed(&error))?,
        };
        let connecting = endpoint.connect_with(self.config.clone(), target, SERVER_NAME);
        match timeout(ATTEMPT, connecting.map_err(|error| failed(&error))?).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) if error.to_string().contains(ROTATED) => Err(Refusal::Rotated),
            Ok(Err(error)) if ["UnknownIssuer", "BadSignature"].iter().any(|why| error.to_string().contains(why)) => {
                Err(Refusal::Foreign)
            }
            Ok(Err(quinn::ConnectionError::TimedOut)) | Err(_) => Err(Refusal::Silent),
            Ok(Err(error)) => Err(clock_trouble(&error).map_or_else(|| failed(&error), Refusal::Clock)),
        }
    }

    /// Waits until the close of all connections has been sent.
    pub async fn wait_idle(&self) {
        self.v4.wait_idle().await;
    }
}

fn speaks(connection: &quinn::Connection, wanted: &[u8]) -> bool {
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    data.and_then(|data| data.protocol).is_some_and(|protocol| protocol == wanted)
}

/// Returns whether a handshake failed because the client does not trust our CA, so it is a member of another log.
#[must_use]
pub fn is_distrusted(error: &quinn::ConnectionError) -> bool {
    // TLS alerts, RFC 8446 section 6: bad_certificate, unknown_ca, decrypt_error (a signature by another key of
    // that name).
    const ALERTS: [u8; 3] = [42, 48, 51];
    let quinn::ConnectionError::ConnectionClosed(close) = error else { return false };
    ALERTS.iter().any(|alert| close.error_code == quinn::TransportErrorCode::crypto(*alert))
}

/// Returns whether a connection uses the join protocol.
#[must_use]
pub fn is_join(connection: &quinn::Connection) -> bool {
    speaks(connection, ALPN_JOIN)
}

/// Returns whether a connection is for chunks only.
#[must_use]
pub fn is_bulk(connection: &quinn::Connection) -> bool {
    speaks(connection, ALPN_CHUNKS)
}

/// Returns the certificate with which the other side has authenticated.
#[must_use]
pub fn peer_certificate(connection: &quinn::Connection) -> Option<Vec<u8>> {
    let identity = connection.peer_identity()?;
    let chain = identity.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok()?;
    chain.first().map(|certificate| certificate.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::{Authorities, Identity, NewKey, Role, tls};
    use gravwell_model::{Generation, MemberName};

    /// Starts a server that completes handshakes and does nothing after them.
    fn serving(config: rustls::ServerConfig) -> (String, tokio::task::JoinHandle<()>) {
        let listening = server("127.0.0.1:0".parse().expect("an address"), config, &[1; 32]).expect("listens");
        let address = listening.local_addr().expect("an address").to_string();
        let serving = tokio::spawn(async move {
            let admission = Admission::default();
            while let Some(arrival) = listening.accept(&admission).await {
                let _ = arrival.handshake().await;
            }
        });
        (address, serving)
    }

    /// Returns the error that a client reports for a datastore whose certificates were made `days` from now.
    async fn told(days: i64) -> String {
        let now_ms = SystemClock.now_ms();
        let made_ms = now_ms.saturating_add_signed(days * 86_400_000);
        let dir = tempfile::tempdir().expect("temp dir");
        let authorities = Authorities::open_or_create(dir.path(), made_ms).expect("an authority");
        let config = tls::server_config(&authorities, &[], made_ms).expect("a configuration");
        let (address, serving) = serving(config);
        let config = tls::join_config(authorities.current().fingerprint()).expect("a configuration");
        let errors =
            client(config).expect("a client").connect_any(&[address]).await.expect_err("outside its validity period");
        serving.abort();
        summary(&errors)
    }

    /// Connects the member with the identity in `home` to a datastore with these CAs.
    async fn greeted(home: &std::path::Path, authorities: &Authorities) -> Result<(), ConnectError> {
        let config = tls::server_config(authorities, &[], SystemClock.now_ms()).expect("a configuration");
        let (address, serving) = serving(config);
        let identity = Identity::load(home).expect("loads");
        let config = tls::member_config(&identity, tls::ALPN_LOG).expect("a configuration");
        let connected = client(config).expect("a client").connect(&address).await;
        serving.abort();
        connected.map(drop)
    }

    #[tokio::test]
    async fn p11_a_member_tells_a_datastore_whose_authority_was_replaced_from_another_one() {
        let temp = tempfile::tempdir().expect("temp dir");
        let (trust, home, now_ms) = (temp.path().join("trust"), temp.path().join("web1"), SystemClock.now_ms());
        let first = Authorities::open_or_create(&trust, now_ms).expect("makes");
        let name = MemberName::new("web1").expect("name");
        let key = NewKey::generate(&name).expect("a key");
        let certificate =
            first.current().sign_member(&key.request_der, &name, Role::Webserver, 30, now_ms).expect("signs");
        let root = first.current().certificate();
        let mut identity =
            Identity::create(&home, name, Role::Webserver, Vec::new(), root, &certificate, &key).expect("makes");
        greeted(&home, &first).await.expect("is known");
        let overlap = temp.path().join("overlap");
        let begun = Authorities::begin(&trust, now_ms).expect("begins");
        std::fs::create_dir(&overlap).expect("makes");
        for name in ["ca.pem", "ca.key", "next.pem", "next.key"] {
            std::fs::copy(trust.join(name), overlap.join(name)).expect("copies");
        }
        greeted(&home, &begun).await.expect("presents a certificate that all members trust");
        let second = Authorities::finish(&trust, Generation(1), now_ms).expect("ends");
        let refused = greeted(&home, &second).await.expect_err("is not trusted");
        assert!(
            matches!(&refused, ConnectError::Rotated { .. }) && refused.to_string().contains("--replace"),
            "{refused}"
        );
        Authorities::begin(&trust, now_ms).expect("begins");
        let third = Authorities::finish(&trust, Generation(1), now_ms).expect("ends");
        assert!(
            matches!(greeted(&home, &third).await, Err(ConnectError::Rotated { .. })),
            "two rotations are followed too"
        );
        let other = Authorities::open_or_create(&temp.path().join("other"), now_ms).expect("makes");
        assert!(matches!(greeted(&home, &other).await, Err(ConnectError::Foreign { .. })));
        Authorities::begin(&temp.path().join("other"), now_ms).expect("begins");
        let other = Authorities::finish(&temp.path().join("other"), Generation(1), now_ms).expect("ends");
        assert!(
            matches!(greeted(&home, &other).await, Err(ConnectError::Foreign { .. })),
            "another datastore's rotation"
        );

        // A client that trusts only the new CA receives a certificate of it, even from a datastore that was restored from
        // a backup.
        assert!(identity.adopt_roots(&begun.roots(|_| false).expect("roots")).expect("takes"));
        assert!(identity.adopt_roots(&second.roots(|_| false).expect("roots")).expect("takes"));
        let back = Authorities::load(&overlap).expect("loads");
        greeted(&home, &back).await.expect("receives a trusted certificate");
    }

    /// Returns how the handshake of the member with the identity in `home` fails at a datastore with these CAs, of which the
    /// certificate was made `days` from now.
    async fn rejected(home: &std::path::Path, authorities: &Authorities, days: i64) -> Option<RejectedCertificate> {
        let made_ms = SystemClock.now_ms().saturating_add_signed(days * 86_400_000);
        let config = tls::server_config(authorities, &[], made_ms).expect("a configuration");
        let listening = server("127.0.0.1:0".parse().expect("an address"), config, &[1; 32]).expect("listens");
        let address = listening.local_addr().expect("an address").to_string();
        let serving = tokio::spawn(async move {
            let arrival = listening.accept(&Admission::default()).await.expect("a handshake");
            arrival.handshake().await.err().and_then(|error| error.rejected_certificate())
        });
        let identity = Identity::load(home).expect("loads");
        let client = client(tls::member_config(&identity, tls::ALPN_LOG).expect("a configuration")).expect("a client");
        // The client may take the handshake for complete before the server rejects its certificate.
        let _connection = client.connect(&address).await;
        serving.await.expect("ends")
    }

    #[tokio::test]
    async fn p13_a_datastore_tells_why_a_certificate_of_a_member_or_its_own_is_rejected() {
        let temp = tempfile::tempdir().expect("temp dir");
        let now_ms = SystemClock.now_ms();
        let authorities = Authorities::open_or_create(&temp.path().join("trust"), now_ms).expect("makes");
        let other = Authorities::open_or_create(&temp.path().join("other"), now_ms).expect("makes");
        let member = |home: &str, days: i64| {
            let name = MemberName::new("web1").expect("name");
            let key = NewKey::generate(&name).expect("a key");
            let made_ms = now_ms.saturating_add_signed(days * 86_400_000);
            let current = authorities.current();
            let signed = current.sign_member(&key.request_der, &name, Role::Webserver, 30, made_ms).expect("signs");
            let home = temp.path().join(home);
            Identity::create(&home, name, Role::Webserver, Vec::new(), current.certificate(), &signed, &key)
                .expect("makes");
            home
        };
        let (sound, early, late) = (member("sound", 0), member("early", 10), member("late", -100));
        let out_of_time = |is_clients, is_early| Some(RejectedCertificate::OutOfTime { is_clients, is_early });
        assert_eq!(rejected(&sound, &authorities, 0).await, None);
        assert_eq!(rejected(&early, &authorities, 0).await, out_of_time(true, true));
        assert_eq!(rejected(&late, &authorities, 0).await, out_of_time(true, false));
        assert_eq!(rejected(&sound, &authorities, 10).await, out_of_time(false, true));
        assert_eq!(rejected(&sound, &authorities, -10_000).await, out_of_time(false, false));
        assert_eq!(rejected(&sound, &other, 0).await, Some(RejectedCertificate::UnknownAuthority));
        let trust = temp.path().join("trust");
        Authorities::begin(&trust, now_ms).expect("begins");
        let rotated = Authorities::finish(&trust, Generation(1), now_ms).expect("ends");
        assert_eq!(rejected(&sound, &rotated, 0).await, Some(RejectedCertificate::Rotated));
    }

    #[tokio::test]
    async fn p11_a_wrong_clock_is_named_where_a_certificate_is_out_of_its_time() {
        let behind = told(10).await;
        assert!(behind.contains("is not valid yet") && behind.contains("this clock is slow"), "{behind}");
        let ahead = told(-10_000).await;
        assert!(ahead.contains("has expired") && ahead.contains("this clock is fast"), "{ahead}");
        let year = &timestamp(SystemClock.now_ms())[..4];
        assert!(behind.contains(year) && behind.contains("set the wrong one"), "{behind}");
    }
}
