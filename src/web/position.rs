//! Positions in headers: whoever is moved to another webserver can ask it to catch up first.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use tokio::sync::Semaphore;

use crate::model::{Position, Seq};
use crate::objects::Store;

use super::error::{ApiError, ApiResult};

/// In every answer: `LOG.GENERATION.SEQUENCE` of the state that it was made from.
pub(super) const POSITION: HeaderName = HeaderName::from_static("gravwell-position");
/// In an answer while transactions of this webserver are not decided: how many.
pub(super) const UNDECIDED: HeaderName = HeaderName::from_static("gravwell-undecided");
/// In a request: a position from an earlier answer that must have been reached.
pub(super) const WAIT_FOR: HeaderName = HeaderName::from_static("gravwell-wait-for");
/// Longest wait.
const WAIT: Duration = Duration::from_secs(5);

fn text(position: &Position) -> String {
    format!("{}.{}.{}", position.log_id, position.generation, position.seq)
}

/// Adds the position to an answer.
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

/// Strangers that wait at the same time.
const STRANGERS_MAX: usize = 64;
static STRANGERS: Semaphore = Semaphore::const_new(STRANGERS_MAX);

/// Waits until the position that a request asks for is reached. Of callers who are not known only so many wait.
pub(super) async fn wait(store: &Store, headers: &HeaderMap, is_known: impl FnOnce() -> bool) -> ApiResult<()> {
    let Some(wanted) = headers.get(&WAIT_FOR) else { return Ok(()) };
    let wanted = wanted.to_str().unwrap_or_default();
    let wrong = || ApiError::bad(format!("{WAIT_FOR}: {wanted:?} is not a position: send back what {POSITION} said"));
    let mut parts = wanted.rsplitn(3, '.');
    let (Some(seq), Some(_), Some(log)) = (parts.next(), parts.next(), parts.next()) else { return Err(wrong()) };
    let seq = Seq(seq.parse().map_err(|_| wrong())?);
    let own = store.replica().position();
    if own.as_ref().is_some_and(|own| own.log_id.to_string() != log) {
        return Err(ApiError::conflict(format!("{WAIT_FOR}: {wanted} is a position of another log")));
    }
    if own.as_ref().is_some_and(|own| own.seq >= seq) {
        return Ok(());
    }
    let _place = match is_known() {
        true => None,
        false => Some(STRANGERS.try_acquire().map_err(|_| {
            let message = "too many who are not known here wait for a position: try again in a second";
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).retry_after(Duration::from_secs(1))
        })?),
    };
    if store.replica().barrier(seq, WAIT).await {
        return Ok(());
    }
    let behind = own.map_or_else(|| "none".to_owned(), |own| text(&own));
    Err(ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        format!("this webserver has not reached {wanted}: it is at {behind}"),
    ))
}
