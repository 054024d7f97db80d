//! Routes of user preferences.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::users::found;
use super::{DONE, repeated};
use crate::app::AppRef;
use crate::authorization::{AccessRequirement, Right};
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::request_input::{self, Raw};
use crate::route::{Route, delete, get, put};
use gravwell_objects::preferences::{self, PREFERENCES, Preference};
use gravwell_objects::users::User;
use gravwell_objects::{Stored, Timestamp, Writes, accounts};
use gravwell_runtime::tasks::blocking;

pub(crate) fn routes() -> Vec<Route> {
    let this = AccessRequirement::SelfOrAdmin(Right::Session);
    vec![
        get(
            "/api/users/{uid}/preferences",
            this,
            "Returns the preferences of a user as they were stored, or null.",
            show,
        ),
        put("/api/users/{uid}/preferences", this, "Stores preferences: any JSON.", store).with_objects(),
        delete("/api/users/{uid}/preferences", this, "Deletes preferences.", remove),
        get("/api/users/preferences", AccessRequirement::Admin, "Lists the preferences of all users.", list),
    ]
}

async fn show(State(app): State<AppRef>, Path(uid): Path<i32>) -> ApiResult<Response> {
    found(&app.store, uid)?;
    let record = app.store.get::<Preference>(&preferences::key(uid, PREFERENCES))?;
    let json = [(header::CONTENT_TYPE, "application/json")];
    Ok(match record {
        Some(record) => (json, record.value.data.get().to_owned()).into_response(),
        None => DONE.into_response(),
    })
}

async fn store(
    State(app): State<AppRef>,
    caller: Caller,
    Path(uid): Path<i32>,
    Raw(body): Raw,
) -> ApiResult<Json<Value>> {
    let user = found(&app.store, uid)?.value;
    let data: Box<RawValue> = blocking::run(|| {
        request_input::shallow(&body)?;
        serde_json::from_slice(&body).map_err(|error| ApiError::bad(format!("preferences must be JSON: {error}")))
    })?;
    let preference = Preference { uid, name: PREFERENCES.into(), updated: Timestamp::now(), data };
    let what = format!("store preferences of {}", user.user);
    repeated(|| put_preference(&app, &caller, &preference, &what)).await
}

async fn put_preference(app: &AppRef, caller: &Caller, preference: &Preference, what: &str) -> ApiResult<Json<Value>> {
    let mut writes = Writes::new();
    writes.require::<User>(&preference.uid.to_string(), accounts::USER_GONE)?;
    let found = app.store.seen::<Preference>(&preference.key())?;
    writes.replace(found, preference, "the preferences were changed in the meantime; reload them")?;
    app.store.commit(&caller.author(), what, writes).await?;
    Ok(DONE)
}

async fn remove(State(app): State<AppRef>, caller: Caller, Path(uid): Path<i32>) -> ApiResult<Json<Value>> {
    let user = found(&app.store, uid)?.value;
    repeated(|| delete_preference(&app, &caller, uid, &user.user)).await
}

async fn delete_preference(app: &AppRef, caller: &Caller, uid: i32, user: &str) -> ApiResult<Json<Value>> {
    let key = preferences::key(uid, PREFERENCES);
    // Valid or not.
    let Some(found) = app.store.seen::<Preference>(&key)? else { return Ok(DONE) };
    let mut writes = Writes::new();
    writes.as_read::<Preference>(&key, Some(found), "the preferences were changed in the meantime; reload them")?;
    writes.delete_unconditionally::<Preference>(&key, "the condition names the preferences")?;
    app.store.commit(&caller.author(), &format!("delete preferences of {user}"), writes).await?;
    Ok(DONE)
}

async fn list(State(app): State<AppRef>) -> ApiResult<Json<Value>> {
    let mut body = Vec::new();
    // No turn: only an administrator lists them.
    for record in app.store.list::<Preference>("")? {
        let preference = &record.value;
        // The preferences were stored while their user was being deleted elsewhere.
        if !app.store.has::<User>(&preference.uid.to_string())? {
            continue;
        }
        body.push(json!({
            "UID": preference.uid,
            "Name": preference.name,
            "Updated": preference.updated,
            "Data": STANDARD.encode(preference.data.get()),
            "Synced": record.is_synced(),
        }));
    }
    Ok(Json(body.into()))
}
