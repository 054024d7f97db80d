//! Log positions in headers, so that a client that changes to another webserver can wait until that has caught up.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use tokio::sync::Semaphore;

use gravwell_model::{Position, Seq};
use gravwell_objects::Store;

use super::error::{ApiError, ApiResult};

/// Response header: `LOG.GENERATION.SEQUENCE` of the state from which the response was made.
pub(super) const POSITION: HeaderName = HeaderName::from_static("gravwell-position");
/// Response header: number of pending transactions of this webserver, if there are any.
pub(super) const UNDECIDED: HeaderName = HeaderName::from_static("gravwell-undecided");
/// Request header: position from an earlier response that must be reached first.
pub(super) const WAIT_FOR: HeaderName = HeaderName::from_static("gravwell-wait-for");
/// Longest wait for a position.
const WAIT: Duration = Duration::from_secs(5);

fn text(position: &Position) -> String {
    format!("{}.{}.{}", position.log_id, position.generation, position.seq)
}

/// Adds the position to the headers of a response.
pub(super) fn tell(store: &Store, headers: &mut HeaderMap) {
    if let Some(position) = store.replica().position()
        && let Ok(value) = HeaderValue::from_str(&text(&position))
    {
        headers.insert(POSITION, value);
    }
    let undecided = store.replica().outbox_depth();
    if undecided > 0 {
        headers.insert(UNDECIDED, HeaderValue::from(undecided));
    }
}

/// Maximum number of concurrent waits of unknown callers.
const STRANGERS_MAX: usize = 64;
static STRANGERS: Semaphore = Semaphore::const_new(STRANGERS_MAX);

/// Waits until the position in a request is reached. The number of unknown callers that wait is limited.
pub(super) async fn wait(store: &Store, headers: &HeaderMap, is_known: impl FnOnce() -> bool) -> ApiResult<()> {
    let Some(wanted) = headers.get(&WAIT_FOR) else { return Ok(()) };
    let wanted = wanted.to_str().unwrap_or_default();
    let wrong = || ApiError::bad(format!("{WAIT_FOR}: {wanted:?} is not a position; send the value of {POSITION}"));
    let mut parts = wanted.rsplitn(3, '.');
    let (Some(seq), Some(_), Some(log)) = (parts.next(), parts.next(), parts.next()) else { return Err(wrong()) };
    let seq = Seq(seq.parse().map_err(|_| wrong())?);
    let own = store.replica().position();
    if own.as_ref().is_some_and(|own| own.log_id.to_string() != log) {
        return Err(ApiError::conflict(format!("{WAIT_FOR}: {wanted} is a position in another log")));
    }
    if own.as_ref().is_some_and(|own| own.seq >= seq) {
        return Ok(());
    }
    let _place = match is_known() {
        true => None,
        false => Some(STRANGERS.try_acquire().map_err(|_| {
            let message = "too many unauthenticated clients wait for a position; try again in a second";
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).retry_after(Duration::from_secs(1))
        })?),
    };
    if store.replica().barrier(seq, WAIT).await {
        return Ok(());
    }
    let behind = own.map_or_else(|| "none".to_owned(), |own| text(&own));
    Err(ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        format!("this webserver has not reached {wanted}; it is at {behind}"),
    ))
}
