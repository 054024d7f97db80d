//! Reason for which the other side closed a connection.
//!
//! QUIC carries a code and a reason when an application closes a connection. Quinn reports them as the source of the
//! error of the stream used next, and that error's own text is only "connection lost". Every stream error is converted to
//! a [`WireError`], so the reason is extracted from its sources here, for all callers.

use std::error::Error;
use std::io;
use std::time::Duration;

use quinn::ConnectionError;
use tokio::time::timeout;

use gravwell_model::printable;

use super::endpoint::clock_trouble;
use super::wire::WireError;

/// Maximum characters kept of a reason. The reason fits into one packet, so this only bounds its escapes.
const REASON_CHARS_MAX: usize = 1024;
/// Longest wait for the close of a connection after the end of a stream: the other side sends both at the same time.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// Code and reason with which the other side closed a connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ClosedBy {
    /// Application code, such as [`CLOSE_REVOKED`](super::endpoint::CLOSE_REVOKED).
    pub code: u64,
    /// Reason, made printable and bounded because it comes from a peer.
    pub reason: String,
}

impl From<ConnectionError> for WireError {
    fn from(error: ConnectionError) -> WireError {
        let ConnectionError::ApplicationClosed(close) = &error else {
            return WireError::Io(io::Error::other(clock_trouble(&error).unwrap_or_else(|| error.to_string())));
        };
        let reason = printable::shorten(&String::from_utf8_lossy(&close.reason), REASON_CHARS_MAX);
        match reason.is_empty() {
            true => WireError::Closed,
            false => WireError::ClosedBy(ClosedBy { code: close.error_code.into_inner(), reason }),
        }
    }
}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> WireError {
        match connection_error(&error) {
            Some(lost) => lost.into(),
            None => WireError::Io(error),
        }
    }
}

/// Returns the connection error that caused an error of a stream, if there is one.
fn connection_error(error: &io::Error) -> Option<ConnectionError> {
    let first = error.get_ref().map(|inner| inner as &(dyn Error + 'static));
    let mut causes = std::iter::successors(first, |&cause| cause.source());
    causes.find_map(|cause| cause.downcast_ref::<ConnectionError>()).cloned()
}

/// Returns the reason for which the other side closed the connection, or `error` if there is none. The end of a stream
/// may arrive shortly before the close.
pub async fn explained(connection: &quinn::Connection, error: WireError) -> WireError {
    if !matches!(error, WireError::Io(_) | WireError::Closed) {
        return error;
    }
    match timeout(CLOSE_TIMEOUT, connection.closed()).await.map(WireError::from) {
        Ok(closed @ WireError::ClosedBy(_)) => closed,
        Ok(_) | Err(_) => error,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::admission::Admission;
    use crate::trust::{Authorities, tls};
    use crate::{endpoint, wire};
    use gravwell_env::{Clock, SystemClock};
    use gravwell_model::codec::message::{Kind, Open};

    const CODE: u32 = 4;

    /// Connects to a server that accepts one stream, applies `first` to its halves, and closes with `reason`.
    async fn closed_with(
        reason: &'static str,
        first: impl FnOnce(quinn::SendStream, quinn::RecvStream) + Send + 'static,
    ) -> (quinn::Connection, quinn::SendStream, quinn::RecvStream) {
        let now_ms = SystemClock.now_ms();
        let dir = tempfile::tempdir().expect("temp dir");
        let authorities = Authorities::open_or_create(dir.path(), now_ms).expect("an authority");
        let config = tls::server_config(&authorities, &[], now_ms).expect("a configuration");
        let listening = endpoint::server(([127, 0, 0, 1], 0).into(), config, &[1; 32]).expect("listens");
        let address = listening.local_addr().expect("an address").to_string();
        tokio::spawn(async move {
            let arrival = listening.accept(&Admission::default()).await.expect("a handshake");
            let (connection, _turn) = arrival.handshake().await.expect("a connection");
            let (send, receive) = connection.accept_bi().await.expect("a stream");
            first(send, receive);
            connection.close(CODE.into(), reason.as_bytes());
            listening.wait_idle().await;
        });
        let config = tls::join_config(authorities.current().fingerprint()).expect("a configuration");
        let connection = endpoint::client(config).expect("a client").connect(&address).await.expect("connects");
        let (mut send, receive) = connection.open_bi().await.expect("a stream");
        send.write_all(b"x").await.expect("is written");
        (connection, send, receive)
    }

    fn is_named(error: &WireError, expected: &str) -> bool {
        matches!(error, WireError::ClosedBy(ClosedBy { code, reason }) if *code == u64::from(CODE) && reason == expected)
    }

    #[tokio::test]
    async fn p11_the_reason_of_a_close_is_reported_whichever_use_of_a_stream_meets_it() {
        let (connection, mut send, mut receive) = closed_with("web9 was revoked", |send, receive| {
            std::mem::forget((send, receive));
        })
        .await;
        let error = wire::read(&mut receive).await.expect_err("is closed");
        assert!(is_named(&error, "web9 was revoked") && error.to_string() == "web9 was revoked", "{error:?}");
        let error = wire::send(&mut send, Kind::Open, &Open::Admin).await.expect_err("is closed");
        assert!(is_named(&error, "web9 was revoked"), "{error:?}");
        let error = wire::expect::<Open, _>(&mut receive, Kind::Open).await.expect_err("is closed");
        assert!(is_named(&error, "web9 was revoked"), "{error:?}");
        let error = WireError::from(connection.open_bi().await.expect_err("is closed"));
        assert!(is_named(&error, "web9 was revoked"), "{error:?}");
        let error = WireError::from(AsyncWriteExt::write_all(&mut send, b"x").await.expect_err("is closed"));
        assert!(is_named(&error, "web9 was revoked"), "{error:?}");
        let error = WireError::from(io::Error::other(connection.open_uni().await.expect_err("is closed")));
        assert!(is_named(&error, "web9 was revoked"), "{error:?}");
    }

    #[tokio::test]
    async fn p11_the_reason_of_a_close_is_reported_when_the_stream_ended_before_it() {
        // Dropping the halves ends one and stops the other.
        let (connection, mut send, mut receive) = closed_with("too many members", |send, receive| {
            drop((send, receive));
        })
        .await;
        let ended = match wire::read(&mut receive).await {
            Ok(message) => {
                assert!(message.is_none());
                WireError::Closed
            }
            Err(error) => error,
        };
        assert!(is_named(&explained(&connection, ended).await, "too many members"));
        let error = wire::send(&mut send, Kind::Open, &Open::Admin).await.expect_err("is closed");
        assert!(is_named(&explained(&connection, error).await, "too many members"));
    }

    #[tokio::test]
    async fn p15_a_reason_does_nothing_to_a_terminal_and_an_empty_one_is_none() {
        let (_connection, _send, mut receive) = closed_with("\u{1b}[2J", |send, receive| {
            std::mem::forget((send, receive));
        })
        .await;
        let error = wire::read(&mut receive).await.expect_err("is closed");
        assert!(error.to_string().chars().all(printable::is_printable), "{error:?}");
        let (_connection, _send, mut receive) = closed_with("", |send, receive| {
            std::mem::forget((send, receive));
        })
        .await;
        let error = wire::read(&mut receive).await.expect_err("is closed");
        assert!(matches!(error, WireError::Closed), "{error:?}");
    }
}
