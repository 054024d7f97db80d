//! QUIC endpoints with the settings that both sides share.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quinn::{Endpoint, EndpointConfig, IdleTimeout, TransportConfig, VarInt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::timeout;

use super::admission::{Admission, Decision, Delay, Turn};
use super::race;
use super::window::WINDOW_FIRST;
use crate::codec::jsonl::timestamp;
use crate::env::{Clock, SystemClock, background};
use crate::trust::tls::{ALPN_CHUNKS, ALPN_JOIN, ROTATED, SERVER_NAME};

/// Asked of the operating system for each socket; what was granted is reported.
/// Size of the UDP buffers that are asked for, each way.
pub const UDP_BUFFER_BYTES: usize = 4 << 20;
/// A connection on which nothing is heard for this long is given up.
const IDLE_TIMEOUT_MS: u32 = 12_000;
/// A client that has heard nothing for this long asks whether the other side is there: often enough to notice soon when it is
/// not, see [`super::pulse`].
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Longest wait for one address. Short, because a handshake that was begun while nobody listened repeats itself ever more
/// rarely, while a new one is answered at once.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Code with which the datastore closes the connection of a member that was revoked.
pub const CLOSE_REVOKED: u32 = 4;
/// Bytes buffered per connection for sending: small, because many subscribe.
const SEND_WINDOW: u64 = 2 << 20;
const RECEIVE_WINDOW: u32 = 16 << 20;
/// Bytes buffered of one who has not proved yet who it is.
const UNTRUSTED_WINDOW: u32 = 256 << 10;
const STREAM_RECEIVE_WINDOW: u32 = 8 << 20;
/// Between members that are no datastore the streams of many users share a connection: unread, each takes its part of the window
/// and no more.
const PEER_STREAM_WINDOW: u32 = RECEIVE_WINDOW / STREAMS_MAX;
/// Close code for a client that is not, or no longer, a member.
pub const CLOSE_NOT_A_MEMBER: u32 = 2;
/// Close code for a member whose certificate is of an authority that was replaced while it was away: it loses nothing, and has to
/// be enrolled again.
pub const CLOSE_LEFT_BEHIND: u32 = 6;
/// Streams that a client may have open at the same time.
const STREAMS_MAX: u32 = 64;
/// Streams of one who has not proved yet who it is: memory is set aside for each. A member has the rest a moment after its handshake.
const UNTRUSTED_STREAMS: u32 = 4;
/// What a server takes a round trip for before there was one. What is left of a handshake that was given up is kept for nine of these,
/// so that a third of what is usual (RFC 9002, section 6.2.2) frees the memory of strangers three times as fast.
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

/// That of a server, for one who has not proved yet who it is, see [`trusted`].
fn untrusted_transport(stream_window: u32) -> TransportConfig {
    // One side keeping a connection alive is enough, and a fleet's datastore has many of them.
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
    // The system may grant less; the kernel's limits are the operator's to raise.
    let _ = socket.set_recv_buffer_size(UDP_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(UDP_BUFFER_BYTES);
    socket.bind(&address.into())?;
    let (receive, send) = (socket.recv_buffer_size()?, socket.send_buffer_size()?);
    if receive < UDP_BUFFER_BYTES {
        tracing::debug!(receive, send, "UDP buffers are smaller than asked for; see net.core.rmem_max and wmem_max");
    }
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Keyed BLAKE3 for stateless resets: the key outlives the process, so a client whose datastore was killed and started
/// again is told at once instead of after the idle timeout.
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

/// The datastore's endpoint, or that on which a member listens to others.
#[derive(Clone)]
pub struct ServerEndpoint {
    endpoint: Endpoint,
    stream_window: u32,
}

/// Listens on `address`. `reset_key` is the same at every start.
///
/// # Errors
/// When the address cannot be bound.
pub fn server(address: SocketAddr, tls: rustls::ServerConfig, reset_key: &[u8; 32]) -> io::Result<ServerEndpoint> {
    listen(address, tls, reset_key, STREAM_RECEIVE_WINDOW)
}

/// As [`server`], for members among themselves.
///
/// # Errors
/// When the address cannot be bound.
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
    /// Where it comes from.
    pub from: SocketAddr,
}

/// Why a handshake came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// It failed.
    #[error(transparent)]
    Failed(#[from] quinn::ConnectionError),
    /// It took too long.
    #[error(transparent)]
    Delay(#[from] Delay),
}

impl Arrival {
    /// Completes the handshake. The peer holds its place until it has proved who it is: drop it then, and
    /// [let it send](trusted) as much as members may.
    ///
    /// # Errors
    /// When the handshake fails or takes too long.
    pub async fn handshake(self) -> Result<(quinn::Connection, Turn), HandshakeError> {
        let connection = self.turn.within(self.incoming.into_future()).await??;
        Ok((connection, self.turn))
    }
}

/// The other side has proved who it is: it may send ahead and open what a member may.
pub fn trusted(connection: &quinn::Connection) {
    connection.set_receive_window(VarInt::from_u32(RECEIVE_WINDOW));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(STREAMS_MAX));
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(STREAMS_MAX));
}

impl ServerEndpoint {
    /// Where it listens.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// The next handshake that may start; `None` once closed.
    pub async fn accept(&self, admission: &Admission) -> Option<Arrival> {
        loop {
            let incoming = self.endpoint.accept().await?;
            let from = incoming.remote_address();
            match admission.decide(from.ip(), incoming.remote_address_validated(), Instant::now()) {
                Decision::Start(turn) => return Some(Arrival { incoming, turn, from }),
                Decision::Refuse => incoming.refuse(),
                // One that cannot be asked to answer once more has answered.
                Decision::Retry => drop(incoming.retry()),
            }
        }
    }

    /// Serves new connections with another certificate.
    ///
    /// # Errors
    /// When the certificate does not suit QUIC.
    pub fn replace_certificate(&self, tls: rustls::ServerConfig) -> io::Result<()> {
        self.endpoint.set_server_config(Some(server_settings(tls, self.stream_window)?));
        Ok(())
    }

    /// Closes every connection.
    pub fn close(&self, reason: &[u8]) {
        self.endpoint.close(VarInt::from_u32(0), reason);
    }

    /// Waits until every connection has been told.
    pub async fn wait_idle(&self) {
        self.endpoint.wait_idle().await;
    }
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address means nothing.
    #[error("{address}: {source}")]
    Address {
        /// The address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// Whoever answers is not the datastore that the identity or token belongs to.
    #[error("{address} answers with a certificate of another authority: it is another datastore, or was set up anew")]
    Foreign {
        /// The address.
        address: String,
    },
    /// The datastore's authority is another one than before.
    #[error(
        "{address}: the datastore's authority was replaced while this member was away: enrol it again (`gravwell-logctl enroll NAME \
         --replace` at the datastore, `gravwell-logctl join TOKEN` here); its state and its outbox are kept"
    )]
    Rotated {
        /// The address.
        address: String,
    },
    /// No connection.
    #[error("{address}: {reason}")]
    Failed {
        /// The address.
        address: String,
        /// Why.
        reason: String,
    },
}

/// What one socket address answered.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the certificate of another authority")]
    Foreign,
    #[error("the certificate of the authority that replaced the one that is known here")]
    Rotated,
    #[error("no answer within {} s", ATTEMPT.as_secs())]
    Silent,
    #[error("{0}")]
    Clock(String),
    #[error("{0}")]
    Failed(String),
}

/// What to do about a certificate that is out of its time, on either side; `None`: it is something else.
#[must_use]
pub fn clock_trouble(error: &quinn::ConnectionError) -> Option<String> {
    // RFC 8446, section 6: certificate_expired, which is also said of one that is not valid yet.
    const OUT_OF_TIME: u8 = 45;
    let shows = || format!("the clock of this host shows {}", timestamp(SystemClock.now_ms()));
    if let quinn::ConnectionError::ConnectionClosed(close) = error
        && close.error_code == quinn::TransportErrorCode::crypto(OUT_OF_TIME)
    {
        return Some(format!(
            "the datastore takes this host's certificate for expired or not valid yet; {}: compare it with the datastore's and set \
             the wrong one; when both are right, join again with a new token (`gravwell-logctl enroll`)",
            shows()
        ));
    }
    let quinn::ConnectionError::TransportError(failed) = error else { return None };
    if failed.code != quinn::TransportErrorCode::crypto(OUT_OF_TIME) {
        return None;
    }
    let (state, side) = match failed.reason.contains("not valid yet") {
        true => ("is not valid yet", "this clock is behind, or the datastore's is ahead"),
        false => ("has expired", "this clock is ahead, or the datastore's was behind when it made it"),
    };
    Some(format!(
        "the datastore's certificate {state}, and {}: {side}; compare the clocks of both hosts, set the wrong one (a time \
         service does it), and try again",
        shows()
    ))
}

/// What each address answered, in one line.
#[must_use]
pub fn summary(errors: &[ConnectError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// A client's endpoint with its TLS settings.
#[derive(Clone)]
pub struct ClientEndpoint {
    v4: Endpoint,
    config: quinn::ClientConfig,
    /// Where connections are driven, if not where they are made.
    runtime: Option<tokio::runtime::Handle>,
}

/// Makes a client's endpoint.
///
/// # Errors
/// When no socket can be had.
pub fn client(tls: rustls::ClientConfig) -> io::Result<ClientEndpoint> {
    client_with(tls, transport(Some(KEEP_ALIVE)))
}

/// As [`client`], for members among themselves.
///
/// # Errors
/// When no socket can be had.
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

/// Makes a client's endpoint for connections that carry bulk, which [give way](super::window).
///
/// # Errors
/// When no socket can be had.
pub fn bulk_client(tls: rustls::ClientConfig) -> io::Result<ClientEndpoint> {
    // What drives the endpoint and its connections runs where they are made.
    let runtime = background::handle();
    let _entered = runtime.enter();
    let mut transport = transport(Some(KEEP_ALIVE));
    let window = VarInt::from_u32(WINDOW_FIRST);
    transport.receive_window(window).stream_receive_window(window);
    let mut made = client_with(tls, transport)?;
    made.runtime = Some(runtime.clone());
    Ok(made)
}

impl ClientEndpoint {
    /// Connects to the first of `addresses`, each a `host:port`, that answers; also says to which. They are tried one a
    /// little after the other, and each is given 2 s.
    ///
    /// # Errors
    /// What each of them answered, in their order.
    pub async fn connect_any(&self, addresses: &[String]) -> Result<(quinn::Connection, String), Vec<ConnectError>> {
        let attempts = addresses.iter().map(async |address| Ok((self.connect(address).await?, address.clone())));
        race::first(attempts.collect()).await
    }

    /// Connects to `address`, a `host:port`; a name with several addresses is reached at the first that answers.
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

    /// Waits until every connection has been told that it is over.
    pub async fn wait_idle(&self) {
        self.v4.wait_idle().await;
    }
}

fn speaks(connection: &quinn::Connection, wanted: &[u8]) -> bool {
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    data.and_then(|data| data.protocol).is_some_and(|protocol| protocol == wanted)
}

/// Whether a handshake failed because the client does not trust our certificate authority: it is a member of another log.
#[must_use]
pub fn is_distrusted(error: &quinn::ConnectionError) -> bool {
    // TLS alerts, RFC 8446 section 6: bad_certificate, unknown_ca, decrypt_error (a signature of another key of that name).
    const ALERTS: [u8; 3] = [42, 48, 51];
    let quinn::ConnectionError::ConnectionClosed(close) = error else { return false };
    ALERTS.iter().any(|alert| close.error_code == quinn::TransportErrorCode::crypto(*alert))
}

/// Whether a connection speaks the join protocol.
#[must_use]
pub fn is_join(connection: &quinn::Connection) -> bool {
    speaks(connection, ALPN_JOIN)
}

/// Whether a connection carries nothing but chunks.
#[must_use]
pub fn is_bulk(connection: &quinn::Connection) -> bool {
    speaks(connection, ALPN_CHUNKS)
}

/// The certificate that the other side has proved to hold.
#[must_use]
pub fn peer_certificate(connection: &quinn::Connection) -> Option<Vec<u8>> {
    let identity = connection.peer_identity()?;
    let chain = identity.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok()?;
    chain.first().map(|certificate| certificate.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Generation, MemberName};
    use crate::trust::{Authorities, Identity, NewKey, Role, tls};

    /// A server that takes handshakes, and nothing after them.
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

    /// What a client is told by a datastore of which the certificates were made so many days from now.
    async fn told(days: i64) -> String {
        let now_ms = SystemClock.now_ms();
        let made_ms = now_ms.saturating_add_signed(days * 86_400_000);
        let dir = tempfile::tempdir().expect("temp dir");
        let authorities = Authorities::open_or_create(dir.path(), made_ms).expect("an authority");
        let config = tls::server_config(&authorities, &[], made_ms).expect("a configuration");
        let (address, serving) = serving(config);
        let config = tls::join_config(authorities.current().fingerprint()).expect("a configuration");
        let errors = client(config).expect("a client").connect_any(&[address]).await.expect_err("out of its time");
        serving.abort();
        summary(&errors)
    }

    /// What a member of which `home` holds the identity is told by a datastore with these authorities.
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
        greeted(&home, &begun).await.expect("shows a certificate that everybody trusts");
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
            "two steps are followed, too"
        );
        let other = Authorities::open_or_create(&temp.path().join("other"), now_ms).expect("makes");
        assert!(matches!(greeted(&home, &other).await, Err(ConnectError::Foreign { .. })));
        Authorities::begin(&temp.path().join("other"), now_ms).expect("begins");
        let other = Authorities::finish(&temp.path().join("other"), Generation(1), now_ms).expect("ends");
        assert!(matches!(greeted(&home, &other).await, Err(ConnectError::Foreign { .. })), "a rotation elsewhere");

        // Who trusts the new one alone is shown a certificate of that one, also by a datastore that came back from a copy.
        assert!(identity.take_roots(&begun.roots(|_| false).expect("roots")).expect("takes"));
        assert!(identity.take_roots(&second.roots(|_| false).expect("roots")).expect("takes"));
        let back = Authorities::load(&overlap).expect("loads");
        greeted(&home, &back).await.expect("is shown what it trusts");
    }

    #[tokio::test]
    async fn p11_a_wrong_clock_is_named_where_a_certificate_is_out_of_its_time() {
        let behind = told(10).await;
        assert!(behind.contains("is not valid yet") && behind.contains("this clock is behind"), "{behind}");
        let ahead = told(-10_000).await;
        assert!(ahead.contains("has expired") && ahead.contains("this clock is ahead"), "{ahead}");
        let year = &timestamp(SystemClock.now_ms())[..4];
        assert!(behind.contains(year) && behind.contains("set the wrong one"), "{behind}");
    }
}
