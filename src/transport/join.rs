//! The join exchange: a client sends a token's secret and a certificate signing request, and receives a certificate.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::trust::{Identity, NewKey, Role, Token, TrustError, tls};
use gravwell_model::MemberName;
use gravwell_model::codec::json_lines::timestamp;
use gravwell_model::codec::message::{Kind, Open, RefusalCode, Refused};

use super::admission::{Delay, Turn};
use super::close_reason;
use super::endpoint;
use super::wire::{self, WireError};

/// Maximum size of a request from an unauthenticated client.
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Maximum number of tokens redeemed concurrently: each waits for the disk.
pub const AT_ONCE: usize = 16;
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait until a client with a rejected token has read the reason and closes the connection.
const FAREWELL: Duration = Duration::from_secs(1);
/// Close code of a connection on which no request arrived.
const CLOSE_IDLE: u32 = 3;
/// Longest wait until the datastore has received the close of the connection.
const GOODBYE: Duration = Duration::from_millis(300);

/// Body of [`Kind::Renew`] in a join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Name in the token.
    pub name: MemberName,
    /// Secret in the token.
    pub secret: [u8; 32],
    /// Certificate signing request, DER.
    pub request_der: Vec<u8>,
}

/// Body of [`Kind::Renewed`] in a join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// The member's certificate, DER.
    pub certificate_der: Vec<u8>,
    /// Certificate of the CA that signed it, DER.
    pub authority_der: Vec<u8>,
    /// The member's role.
    pub role: Role,
}

/// Redeems tokens at the datastore.
pub trait Redeem: Send + Sync + 'static {
    /// Exchanges a secret, received from the address `from`, for a certificate, the CA's certificate and the role. May
    /// block on the disk.
    ///
    /// # Errors
    /// Returns the reason for the rejection, which is sent to the client.
    fn redeem(
        &self,
        name: &MemberName,
        secret: &[u8; 32],
        request_der: &[u8],
        from: IpAddr,
    ) -> Result<(Vec<u8>, Vec<u8>, Role), String>;
}

/// Serves one join. The client stays unauthenticated and holds `turn` to the end, so it may be evicted. After its request
/// has arrived it waits for one of `places`, which idle connections never hold.
///
/// # Errors
/// If the connection breaks or the token is rejected.
pub async fn serve(
    connection: &quinn::Connection,
    redeemer: Arc<dyn Redeem>,
    turn: Turn,
    places: &Semaphore,
) -> Result<(), WireError> {
    let asked = async {
        let (send, mut receive) = connection.accept_bi().await?;
        let _: Open = wire::expect_at_most(&mut receive, Kind::Open, REQUEST_BYTES_MAX).await?;
        let request: JoinRequest = wire::expect_at_most(&mut receive, Kind::Renew, REQUEST_BYTES_MAX).await?;
        Ok::<_, WireError>((send, request))
    };
    let close = |delay: Delay| {
        connection.close(CLOSE_IDLE.into(), delay.to_string().as_bytes());
        WireError::from(std::io::Error::other(delay))
    };
    let (mut send, request) = turn.within(asked).await.map_err(close)??;
    let waiting = turn.unless_it_gives_way(timeout(TIMEOUT, places.acquire())).await.map_err(close)?;
    let place = waiting.map_err(|_| close(Delay::GaveWay))?.map_err(std::io::Error::other)?;
    // Redeeming is not interrupted by an eviction: the number of concurrent ones is small.
    let from = connection.remote_address().ip();
    let redeeming = move || redeemer.redeem(&request.name, &request.secret, &request.request_der, from);
    let redeemed = tokio::task::spawn_blocking(redeeming).await.map_err(std::io::Error::other)?;
    drop(place);
    match redeemed {
        Ok((certificate_der, authority_der, role)) => {
            let telling = async {
                wire::send(&mut send, Kind::Renewed, &Joined { certificate_der, authority_der, role }).await?;
                let _ = send.finish();
                // The client closes the connection after reading the response.
                connection.closed().await;
                Ok(())
            };
            timeout(TIMEOUT, telling).await.unwrap_or(Err(WireError::Closed))
        }
        Err(message) => {
            let refused = Refused { code: RefusalCode::NotAMember, message };
            let telling = async {
                wire::send(&mut send, Kind::Refused, &refused).await?;
                let _ = send.finish();
                connection.closed().await;
                Ok::<_, WireError>(())
            };
            // A client without a valid token may stay only as long as it takes to read the reason.
            let _ = turn.unless_it_gives_way(timeout(FAREWELL, telling)).await;
            connection.close(CLOSE_IDLE.into(), refused.message.as_bytes());
            Err(refused.into())
        }
    }
}

/// Error of a join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No address in the token answers.
    #[error("cannot reach the datastore: {0}; check its address and that it is running")]
    Unreachable(String),
    /// The exchange failed or was rejected.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Generating the key, or writing the identity, failed.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The token has expired by the local clock, and the exchange failed.
    #[error(
        "{cause}; by the clock of this host, which shows {now}, the token expired at {expired}; compare the clock \
         with the datastore's, set the wrong one (for example with a time service), and try again; if both are right, \
         get a new token with `gravwell-logctl enroll`"
    )]
    Expired {
        /// Error of the exchange.
        cause: Box<JoinError>,
        /// Time of the local clock.
        now: String,
        /// Time at which the token expired.
        expired: String,
    },
    /// Creating the endpoint failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Exchanges `token` for an identity, which is stored in `data_dir`.
///
/// # Errors
/// If no datastore answers, or it rejects the token.
pub async fn join(data_dir: &Path, token: &Token, now_ms: u64) -> Result<Identity, JoinError> {
    let joined = redeem(data_dir, token).await;
    // The datastore decides whether a token has expired, because the local clock may be wrong.
    joined.map_err(|cause| match now_ms >= token.expires_ms {
        true => {
            JoinError::Expired { cause: Box::new(cause), now: timestamp(now_ms), expired: timestamp(token.expires_ms) }
        }
        false => cause,
    })
}

async fn redeem(data_dir: &Path, token: &Token) -> Result<Identity, JoinError> {
    let endpoint = endpoint::client(tls::join_config(token.authority)?)?;
    let key = NewKey::generate(&token.name)?;
    let (connection, _) = endpoint
        .connect_any(&token.addresses)
        .await
        .map_err(|errors| JoinError::Unreachable(endpoint::summary(&errors)))?;
    let joined = match exchange(&connection, token, &key).await {
        Ok(joined) => Ok(joined),
        Err(error) => Err(close_reason::explained(&connection, error).await),
    };
    connection.close(0u32.into(), b"");
    // Waits until the close was received, but not for attempts at addresses that have never answered.
    let _ = timeout(GOODBYE, endpoint.wait_idle()).await;
    let Joined { certificate_der, authority_der, role } = joined?;
    let (name, addresses) = (token.name.clone(), token.addresses.clone());
    Ok(Identity::create(data_dir, name, role, addresses, &authority_der, &certificate_der, &key)?)
}

async fn exchange(connection: &quinn::Connection, token: &Token, key: &NewKey) -> Result<Joined, WireError> {
    let (mut send, mut receive) = connection.open_bi().await?;
    wire::send(&mut send, Kind::Open, &Open::Renew).await?;
    let request = JoinRequest { name: token.name.clone(), secret: token.secret, request_der: key.request_der.clone() };
    wire::send(&mut send, Kind::Renew, &request).await?;
    timeout(TIMEOUT, wire::expect(&mut receive, Kind::Renewed)).await.unwrap_or(Err(WireError::Closed))
}
