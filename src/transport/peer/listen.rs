//! Connections from other members, and the handlers that serve their streams.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::timeout;

use crate::admission::{Admission, Turn};
use crate::endpoint::{ServerEndpoint, trusted};
use crate::trust::Role;
use crate::wire::{self, WireError};
use gravwell_model::MemberName;
use gravwell_model::codec::message::{Kind, Open, RefusalCode, Refused};
use gravwell_model::codec::report_limits::REPORT_BYTES_MAX;
use gravwell_runtime::telemetry::log_rate_limit::LogRateLimit;

use super::peers::{CLOSE_REVOKED, PeerRegistry};

/// Timeout for the opening message of a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// The member at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Name of the member.
    pub name: MemberName,
    /// Role of the member.
    pub role: Role,
}

/// Future of a running handler.
pub type Serving<'a> = std::pin::Pin<Box<dyn Future<Output = Result<(), WireError>> + Send + 'a>>;

/// Serves the streams of one kind.
pub trait Handler: Send + Sync + 'static {
    /// Returns whether members with this role may open such streams.
    fn allows(&self, role: Role) -> bool;

    /// Serves one stream, after its opening message was read.
    fn serve(&self, peer: Peer, send: quinn::SendStream, receive: quinn::RecvStream) -> Serving<'_>;
}

/// Rate limit for logging rejections, which peers can cause without limit.
static REFUSED: LogRateLimit = LogRateLimit::new();

/// Accepts connections until the endpoint is closed.
pub(super) async fn accept(inner: Weak<PeerRegistry>, server: ServerEndpoint) {
    let admission = Admission::default();
    while let Some(arrival) = server.accept(&admission).await {
        let Some(inner) = inner.upgrade() else { return };
        tokio::spawn(async move {
            match arrival.handshake().await {
                // Boxed, so that unauthenticated peers do not take the memory that a member's future needs.
                Ok((connection, turn)) => Box::pin(connected(inner, &connection, turn)).await,
                Err(error) => tracing::debug!(%error, "peer handshake failed"),
            }
        });
    }
}

async fn connected(inner: Arc<PeerRegistry>, connection: &quinn::Connection, turn: Turn) {
    let (name, role, listed) = match inner.admit(connection) {
        Ok(admitted) => admitted,
        Err(refusal) => {
            if let Some(left_out) = REFUSED.note() {
                let address = connection.remote_address();
                tracing::warn!(%refusal, %address, left_out, "refused a peer connection");
            }
            return connection.close(CLOSE_REVOKED.into(), refusal.to_string().as_bytes());
        }
    };
    drop(turn);
    trusted(connection);
    let peer = Peer { name, role };
    // A task that lives as long as the connection must not keep this member's endpoint open.
    let weak = Arc::downgrade(&inner);
    drop(inner);
    serve_streams(&weak, &peer, connection).await;
    drop(listed);
}

/// Serves the streams that the other side of a connection opens.
pub(super) async fn serve_streams(inner: &Weak<PeerRegistry>, peer: &Peer, connection: &quinn::Connection) {
    let mut streams = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_bi() => {
                let Ok((send, receive)) = stream else { return };
                let Some(inner) = inner.upgrade() else { return };
                streams.spawn(serve(inner, peer.clone(), send, receive));
            }
            Some(ended) = streams.join_next() => match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(member = %peer.name, %error, "peer stream ended"),
                Err(error) if error.is_cancelled() => {}
                Err(error) => tracing::error!(member = %peer.name, %error, "task of a peer stream failed"),
            },
        }
    }
}

async fn serve(
    inner: Arc<PeerRegistry>,
    peer: Peer,
    mut send: quinn::SendStream,
    mut receive: quinn::RecvStream,
) -> Result<(), WireError> {
    let open = timeout(OPEN_TIMEOUT, wire::expect_at_most::<Open, _>(&mut receive, Kind::Open, REPORT_BYTES_MAX));
    let open = open.await.map_err(|_| WireError::Closed)??;
    let refusal = match inner.handler(open) {
        Some(handler) if handler.allows(peer.role) => {
            drop(inner);
            return handler.serve(peer, send, receive).await;
        }
        Some(_) => format!("{} is a {}, which may not request this", peer.name, peer.role),
        None => format!("{} does not support this", inner.me()),
    };
    let refused = Refused { code: RefusalCode::Forbidden, message: refusal };
    wire::send(&mut send, Kind::Refused, &refused).await?;
    let _ = send.finish();
    Ok(())
}
