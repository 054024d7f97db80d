//! Routes of invalid objects, which do not match their collection's format: administrators list, replace or delete them
//! by key.

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::DONE;
use crate::app::AppRef;
use crate::authorization::AccessRequirement;
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::request_input::Raw;
use crate::route::{Route, delete, get, put};
use gravwell_model::{Collection, Key};
use gravwell_objects::kinds::{self, Visibility};
use gravwell_objects::{AsRead, Writes, invalid};

const CHANGED: &str = "it was changed in the meantime; reload it";

pub(crate) fn routes() -> Vec<Route> {
    let this = AccessRequirement::Admin;
    vec![
        get("/api/objects/invalid", this, "Lists objects that are invalid in their collection, with the reason.", list),
        put("/api/objects/invalid/{collection}/{*key}", this, "Replaces an invalid object.", replace).with_objects(),
        delete("/api/objects/invalid/{collection}/{*key}", this, "Deletes an invalid object.", remove),
    ]
}

async fn list(State(app): State<AppRef>) -> ApiResult<Json<Value>> {
    let store = app.store.clone();
    let found = tokio::task::spawn_blocking(move || invalid::scan(&store)).await.map_err(ApiError::internal)??;
    let shown = |invalid: &invalid::Invalid| {
        json!({
            "Collection": invalid.collection,
            "Key": shown_key(invalid),
            "Reason": invalid.reason,
            "Message": invalid.to_string(),
        })
    };
    Ok(Json(found.iter().map(shown).collect()))
}

/// Returns the key without redaction: it is needed to delete the object, and no key grants access.
fn shown_key(invalid: &invalid::Invalid) -> &str {
    &invalid.key
}

struct Found {
    collection: Collection,
    key: Key,
    as_read: AsRead,
}

/// Returns an invalid object that is to be changed; valid ones must be changed through their own routes.
fn found(app: &AppRef, collection: &str, key: &str) -> ApiResult<Found> {
    let nowhere = || ApiError::not_found(format!("invalid object {collection}/{key}"));
    let (collection, key) =
        (Collection::new(collection).map_err(|_| nowhere())?, Key::new(key).map_err(|_| nowhere())?);
    invalid::at(&app.store, &collection, &key)?.ok_or_else(nowhere)?;
    let (_, as_read) = app.store.raw(&collection, &key)?.ok_or_else(nowhere)?;
    Ok(Found { collection, key, as_read })
}

async fn replace(
    State(app): State<AppRef>,
    caller: Caller,
    Path((collection, key)): Path<(String, String)>,
    Raw(value): Raw,
) -> ApiResult<Json<Value>> {
    let Found { collection, key, as_read } = found(&app, &collection, &key)?;
    let kind = kinds::of(collection.as_str()).filter(|kind| kind.exposure != Visibility::Secret);
    let kind = kind.ok_or_else(|| ApiError::forbidden(format!("objects in {collection} can only be deleted here")))?;
    (kind.check)(key.as_str(), &value)
        .map_err(|reason| ApiError::bad(format!("the new value of {collection}/{key} is invalid: {reason}")))?;
    let what = format!("replace the invalid object {collection}/{key}");
    let mut writes = Writes::new();
    writes.replace_at((collection, key), as_read, Some(value), CHANGED);
    app.store.commit(&caller.author(), &what, writes).await?;
    Ok(DONE)
}

async fn remove(
    State(app): State<AppRef>,
    caller: Caller,
    Path((collection, key)): Path<(String, String)>,
) -> ApiResult<Json<Value>> {
    discard(&app, &caller, found(&app, &collection, &key)?).await
}

async fn discard(app: &AppRef, caller: &Caller, Found { collection, key, as_read }: Found) -> ApiResult<Json<Value>> {
    let what = format!("delete the invalid object {collection}/{key}");
    let mut writes = Writes::new();
    writes.replace_at((collection, key), as_read, None, CHANGED);
    app.store.commit(&caller.author(), &what, writes).await?;
    Ok(DONE)
}

/// Deletes an object if it is invalid and the caller is an administrator. Returns whether it did.
pub(super) async fn discarded(app: &AppRef, caller: &Caller, collection: &str, key: &str) -> ApiResult<bool> {
    if !caller.person.admin {
        return Ok(false);
    }
    match found(app, collection, key) {
        Ok(found) => discard(app, caller, found).await.map(|_| true),
        Err(error) if error.status() == axum::http::StatusCode::NOT_FOUND => Ok(false),
        Err(error) => Err(error),
    }
}
