//! Settings, deployment, health.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};

use super::DONE;
use crate::objects::Moment;
use crate::web::app::AppRef;
use crate::web::caller::Caller;
use crate::web::error::{ApiError, ApiResult};
use crate::web::guard::Need;
use crate::web::input::Input;
use crate::web::routes::{Route, get, post, put};

/// Largest JSON body.
pub(in crate::web) const JSON_BYTES_MAX: usize = 32 << 20;
const LEVELS: [&str; 4] = ["access", "info", "warn", "error"];

pub(in crate::web) fn routes() -> Vec<Route> {
    use Need::{Admin, Nobody, User};
    vec![
        get("/api/settings", User(None), "Tells what interfaces need to know of this webserver.", settings),
        get("/api/deployment", Admin, "Tells how this webserver is deployed.", deployment),
        get("/api/distributed", User(None), "Tells whether this webserver belongs to a fleet.", distributed),
        get("/api/language", Nobody, "Tells the default language.", language),
        get("/api/stats/ping", User(Some("SystemInfoRead")), "Tells which parts answer.", ping),
        get("/api/logging", Admin, "Tells the level of logging.", logging),
        put("/api/logging", Admin, "Accepts a level of logging; the configuration decides.", set_logging),
        post("/api/logging/{level}", Admin, "Writes a line into the log.", write_log),
        get("/license/status", Nobody, "Says that no licence is needed.", licence),
        get("/api/health", Nobody, "Says that the webserver lives.", || async { DONE }),
    ]
}

async fn settings(State(app): State<AppRef>) -> Json<Value> {
    let config = &app.config;
    Json(json!({
        "DistributedWebservers": is_distributed(&app),
        "DisableMapTileProxy": config.no_tile_proxy,
        "MapTileUrl": config.tile_server,
        "DisableFeaturePopups": config.no_popups,
        "CloudMode": false,
        "ServerTime": Moment::now(),
        "ServerTimezone": "UTC",
        "ServerTimezoneOffset": 0,
        "MaxFileSize": config.resource_bytes_max,
        "MaxResourceSize": config.resource_bytes_max,
        "MaxJsonRequestSize": JSON_BYTES_MAX,
        "IngestAllowed": false,
        "NonCommercial": false,
        "SessionTimeoutSeconds": config.session_timeout_s,
        "MaxSearchHistory": config.history_max,
        "Webserver": app.store.via(),
    }))
}

/// Whether other webservers may share the log; a webserver without a datastore keeps one of its own.
fn is_distributed(app: &AppRef) -> bool {
    !app.config.datastores.is_empty() || !app.stands_alone
}

async fn deployment(State(app): State<AppRef>) -> Json<Value> {
    Json(json!({
        "Distributed": is_distributed(&app),
        "CBACEnabled": app.config.capability_control,
        "DefaultLanguage": app.config.language,
        "AIEnabled": false,
        "AIProcessor": "",
        "RenderStoreLimit": app.config.render_store_limit,
    }))
}

async fn distributed(State(app): State<AppRef>) -> Json<Value> {
    Json(json!({ "Distributed": is_distributed(&app) }))
}

async fn language(State(app): State<AppRef>) -> Json<Value> {
    Json(json!(app.config.language))
}

async fn ping(State(app): State<AppRef>) -> Json<Value> {
    let datastore = if app.store.replica().is_connected() { "OK" } else { "Disconnected" };
    Json(json!({ "webserver": "OK", "datastore": datastore }))
}

async fn logging(State(app): State<AppRef>) -> Json<Value> {
    let levels = ["Off", "Error", "Warn", "Info", "Web Access"];
    Json(json!({ "Levels": levels, "Current": app.config.log_level }))
}

async fn set_logging() -> ApiResult<Json<Value>> {
    Err(ApiError::conflict("the level of logging is set by Log-Level in the configuration"))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Line {
    body: String,
}

async fn write_log(
    caller: Caller,
    axum::extract::Path(level): axum::extract::Path<String>,
    Input(Line { body }): Input<Line>,
) -> ApiResult<Json<bool>> {
    let (user, body) = (caller.user.as_str(), body.escape_debug().to_string());
    match level.as_str() {
        "error" => tracing::error!(user, "{body}"),
        "warn" => tracing::warn!(user, "{body}"),
        "info" | "access" => tracing::info!(user, "{body}"),
        _ => return Err(ApiError::not_found(format!("level {level}: use one of {LEVELS:?}"))),
    }
    Ok(Json(true))
}

async fn licence() -> Json<Value> {
    Json(json!({ "status": "ok", "unlicensed_allowed": true }))
}
