//! Handlers: one file per section of the API.

pub(super) mod capabilities;
pub(super) mod contents;
mod credentials;
pub(super) mod dashboards;
pub(super) mod export_archive;
pub(super) mod fleet;
pub(super) mod groups;
pub(super) mod history;
pub(super) mod invalid;
pub(super) mod live;
pub(super) mod login;
pub(super) mod mfa;
pub(super) mod notifications;
pub(super) mod openapi;
pub(super) mod owned;
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
use serde_json::Value;

use gravwell_objects::{Record, Stored, Writes};

use super::entity_tags::IfMatch;
use super::error::{ApiError, ApiResult};

/// Response without a value; all known clients accept it.
const DONE: Json<Value> = Json(Value::Null);

/// Maximum number of attempts of a change that conflicts with others.
const TRIES: usize = 5;

/// Makes a change that is conditional on the object being as it was read. When another request has changed the object, it
/// is read again and the change is repeated, as if this request had come later. A change that stays pending, because the
/// datastore is unreachable, is not repeated: if it conflicts, it is rejected.
async fn repeated<T, F: Future<Output = ApiResult<T>>>(change: impl Fn() -> F) -> ApiResult<T> {
    for _ in 1..TRIES {
        match change().await {
            Err(error) if error.is_overtaken() => {}
            done => return done,
        }
    }
    change().await
}

/// Checks the version that a client expects (`If-Match`) locally, and adds it as a condition for the datastore.
fn match_version<T: Stored>(wanted: &IfMatch, record: &Record<T>, writes: &mut Writes) -> ApiResult<()> {
    const CHANGED: &str = "it was changed in the meantime; reload it";
    if !wanted.is_given() {
        return Ok(());
    }
    if !wanted.allows(&record.tag()) {
        return Err(ApiError::new(axum::http::StatusCode::PRECONDITION_FAILED, CHANGED));
    }
    Ok(writes.unchanged(record, CHANGED)?)
}
