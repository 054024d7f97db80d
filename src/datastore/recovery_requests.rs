//! Requests of a datastore without a log to the members that are connected to it.

use tokio::time::timeout;

use gravwell_model::codec::admin::{AdminError, Request};
use gravwell_model::codec::message::{Kind, Open, SnapshotBegin};
use gravwell_transport::wire;

use super::recovery_collector::ANSWER;

/// Reason why an answer is not complete.
#[derive(Debug, thiserror::Error)]
pub(super) enum Incomplete {
    /// The member does not know the request.
    #[error("{0}")]
    Unsupported(String),
    /// It failed to answer.
    #[error("{0}")]
    Failed(String),
}

/// Adds the items of a member's answer to a request to `items`, at most `most`. Those that arrived before an error stay
/// there.
pub(super) async fn request_all<T: serde::de::DeserializeOwned>(
    connection: &quinn::Connection,
    request: &Request,
    most: usize,
    items: &mut Vec<T>,
) -> Result<(), Incomplete> {
    let asked = async {
        let failed = |error: &dyn std::fmt::Display| Incomplete::Failed(error.to_string());
        let (mut send, mut receive) = connection.open_bi().await.map_err(|error| failed(&error))?;
        wire::send(&mut send, Kind::Open, &Open::Admin).await.map_err(|error| failed(&error))?;
        wire::send_json(&mut send, Kind::AdminRequest, request).await.map_err(|error| failed(&error))?;
        collect(&mut receive, most, items).await
    };
    timeout(ANSWER, asked).await.unwrap_or_else(|_| Err(Incomplete::Failed("it does not respond".into())))
}

/// Reads an answer, as [`request_all`].
async fn collect<T: serde::de::DeserializeOwned, R: tokio::io::AsyncRead + Unpin>(
    receive: &mut R,
    most: usize,
    items: &mut Vec<T>,
) -> Result<(), Incomplete> {
    let failed = |error: &dyn std::fmt::Display| Incomplete::Failed(error.to_string());
    loop {
        match wire::read(receive).await.map_err(|error| failed(&error))? {
            Some((Kind::AdminItem, _)) if items.len() >= most => return Ok(()),
            Some((Kind::AdminItem, body)) => items.push(serde_json::from_slice(&body).map_err(|error| failed(&error))?),
            Some((Kind::AdminEnd, _)) => return Ok(()),
            Some((Kind::AdminError, body)) => {
                let error: AdminError = serde_json::from_slice(&body).map_err(|error| failed(&error))?;
                // A request that is not served is refused; anything that cannot be read is damage.
                return Err(match error.exit {
                    1 => Incomplete::Unsupported(error.message),
                    _ => Incomplete::Failed(error.message),
                });
            }
            Some((kind, _)) => return Err(Incomplete::Unsupported(format!("it replied with {kind:?}"))),
            None => return Err(Incomplete::Failed("the stream ended".into())),
        }
    }
}

pub(super) async fn borrow(
    connection: &quinn::Connection,
    open: Open,
) -> Result<(SnapshotBegin, quinn::SendStream, quinn::RecvStream), String> {
    let (mut send, mut receive) = connection.open_bi().await.map_err(|error| error.to_string())?;
    wire::send(&mut send, Kind::Open, &open).await.map_err(|error| error.to_string())?;
    let begin = wire::expect(&mut receive, Kind::SnapshotBegin).await.map_err(|error| error.to_string())?;
    Ok((begin, send, receive))
}
