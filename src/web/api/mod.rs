//! Handlers: one file per section of the API.

pub(super) mod backup;
pub(super) mod capabilities;
pub(super) mod contents;
mod credentials;
pub(super) mod dashboards;
pub(super) mod fleet;
pub(super) mod groups;
pub(super) mod history;
pub(super) mod invalid;
pub(super) mod live;
pub(super) mod login;
pub(super) mod mfa;
pub(super) mod notifications;
pub(super) mod openapi;
pub(super) mod preferences;
pub(super) mod queries;
pub(super) mod rejections;
pub(super) mod resources;
mod search_commands;
pub(super) mod search_import;
pub(super) mod search_socket;
pub(super) mod searchctrl;
pub(super) mod system;
pub(super) mod tokens;
pub(super) mod users;

use axum::Json;
use axum::http::{HeaderMap, header};
use serde_json::Value;

use crate::objects::{Record, Stored, Writes};

use super::error::{ApiError, ApiResult};

/// Answered where there is nothing to say: every known client accepts it.
const DONE: Json<Value> = Json(Value::Null);

/// How often a change is made again that met others.
const TRIES: usize = 5;

/// Makes a change that is written only while the object is as it was read. When another request changed the object in
/// between, it is read again and the change repeated, as if this request had come a moment later. A change that is decided
/// later, because the datastore is unreachable, is not repeated: when it meets another one it is rejected.
async fn repeated<T, F: Future<Output = ApiResult<T>>>(change: impl Fn() -> F) -> ApiResult<T> {
    for _ in 1..TRIES {
        match change().await {
            Err(error) if error.is_overtaken() => {}
            done => return done,
        }
    }
    change().await
}

/// Compares what a client believes it changes (`If-Match`) with what is there, and lets the datastore compare again.
fn match_version<T: Stored>(headers: &HeaderMap, record: &Record<T>, writes: &mut Writes) -> ApiResult<()> {
    const CHANGED: &str = "it was changed meanwhile: read it again";
    let Some(wanted) = headers.get(header::IF_MATCH) else { return Ok(()) };
    let tag = record.tag();
    let wanted = wanted.to_str().unwrap_or_default();
    if wanted != "*" && !wanted.split(',').any(|wanted| wanted.trim() == tag) {
        return Err(ApiError::new(axum::http::StatusCode::PRECONDITION_FAILED, CHANGED));
    }
    Ok(writes.unchanged(record, CHANGED)?)
}
