//! Routes of settings, deployment, logging and health.

use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::DONE;
use crate::app::{App, AppRef};
use crate::authorization::{AccessRequirement, Right};
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::process_control::ProcessControl;
use crate::request_input::Input;
use crate::route::{Route, get, post, put};
use gravwell_model::codec::admin::Status;
use gravwell_model::codec::health::Reason;
use gravwell_objects::Timestamp;

/// Maximum size of a JSON body.
pub(crate) const JSON_BYTES_MAX: usize = 32 << 20;
/// Time in milliseconds after a start for which a webserver that has not reached its datastore yet counts as not ready.
const HEARING_MS_MAX: u64 = 10_000;
const LEVELS: [&str; 4] = ["access", "info", "warn", "error"];

pub(crate) fn routes() -> Vec<Route> {
    use AccessRequirement::{Admin, Nobody, User};
    use Right::{Any, Capability, OfToken};
    vec![
        get("/api/settings", User(Any), "Returns the settings of this webserver for user interfaces.", settings),
        get("/api/deployment", Admin, "Returns how this webserver is deployed.", deployment),
        get(
            "/api/distributed",
            User(OfToken("SystemInfoRead")),
            "Returns whether this webserver belongs to a fleet.",
            distributed,
        ),
        get("/api/language", Nobody, "Returns the default language.", language),
        get("/api/stats/ping", User(Capability("SystemInfoRead")), "Returns which parts are reachable.", ping),
        get("/api/logging", Admin, "Returns the log level.", logging),
        put(
            "/api/logging",
            Admin,
            "Sets the log level until the process exits or reloads its configuration.",
            set_logging,
        ),
        post("/api/logging/{level}", Admin, "Writes a line to the log.", write_log),
        post(
            "/api/restart/webserver",
            Admin,
            "Restarts this webserver after requests in progress have finished.",
            restart,
        ),
        get("/license/status", Nobody, "Reports that no licence is required.", licence),
        get("/api/health", Nobody, "Reports that the webserver is alive.", || async { DONE }),
        get("/api/ready", Nobody, "Reports whether a load balancer should send requests here; 503 if not.", ready),
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
        "ServerTime": Timestamp::now(),
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

/// Returns whether other webservers may share the log; a standalone webserver keeps its own.
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
    Json(states(&app))
}

/// Returns the states of webserver and datastore.
pub(super) fn states(app: &AppRef) -> Value {
    let datastore = if app.store.replica().is_connected() { "OK" } else { "Disconnected" };
    json!({ "webserver": "OK", "datastore": datastore })
}

async fn logging(State(app): State<AppRef>) -> Json<Value> {
    Json(json!({ "Levels": ProcessControl::levels(), "Current": app.orders.level() }))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Level {
    level: String,
}

async fn set_logging(
    State(app): State<AppRef>,
    caller: Caller,
    Input(Level { level }): Input<Level>,
) -> ApiResult<Json<Value>> {
    if !app.orders.set_level(&level) {
        return Err(ApiError::bad(format!("unknown level {level:?}; use one of {:?}", ProcessControl::levels())));
    }
    app.recorder.note("log-level", &(&caller).into(), format!("set the log level to {}", app.orders.level()));
    tracing::warn!(user = caller.user, level, "log level changed");
    Ok(DONE)
}

async fn restart(State(app): State<AppRef>, caller: Caller) -> ApiResult<Json<Value>> {
    match app.orders.restart().await {
        Some(Ok(())) => {}
        Some(Err(reason)) => {
            return Err(ApiError::bad(format!("the webserver keeps running: its configuration is invalid: {reason}")));
        }
        None => return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "a restart is already in progress")),
    }
    app.recorder.note("restart", &(&caller).into(), "restart the webserver");
    tracing::warn!(user = caller.user, "restart requested");
    Ok(DONE)
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
        _ => return Err(ApiError::not_found(format!("level {level}; use one of {LEVELS:?}"))),
    }
    Ok(Json(true))
}

/// Returns the reason why the webserver is not ready for requests; `None` if it is.
pub(crate) fn hindrance(app: &App, status: &Status) -> Option<String> {
    let cut_off_ms_max = app.config.ready_cut_off_s_max.saturating_mul(1000);
    if app.is_draining.load(Ordering::Relaxed) {
        return Some("it is stopping".into());
    }
    if let Some(reason) = status.health.hindrance() {
        return Some(reason.message.clone());
    }
    if let Some(reason) = app.store.replica().lacks_secrets() {
        return Some(reason);
    }
    if status.generation.0 == 0 {
        return Some("it has never connected to its datastore".into());
    }
    if !status.connected && !status.was_level && status.uptime_ms < HEARING_MS_MAX {
        return Some("it has just started and has not received the state of its datastore yet".into());
    }
    if status.lag_ops > app.config.ready_lag_ops_max {
        return Some(format!("it lags by {} transactions", status.lag_ops));
    }
    if !status.connected && cut_off_ms_max > 0 && status.lag_ms > cut_off_ms_max {
        return Some(format!("it has been disconnected from its datastore for {} s", status.lag_ms / 1000));
    }
    None
}

/// Returns the reasons why a status is not healthy.
pub(crate) fn reasons(status: &Status) -> Value {
    let reason = |reason: &Reason| json!({ "Code": reason.code, "Message": reason.message, "Remedy": reason.remedy });
    status.health.reasons.iter().map(reason).collect()
}

async fn ready(State(app): State<AppRef>) -> (StatusCode, Json<Value>) {
    let status = app.store.replica().status();
    let hindrance = hindrance(&app, &status);
    let code = if hindrance.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let answer = json!({
        "Ready": hindrance.is_none(),
        "Reason": hindrance.unwrap_or_default(),
        "Connected": status.connected,
        "Standalone": status.is_standalone,
        "LagOps": status.lag_ops,
        "Level": status.health.level,
        "Reasons": reasons(&status),
    });
    (code, Json(answer))
}

async fn licence() -> Json<Value> {
    Json(json!({ "status": "ok", "unlicensed_allowed": true }))
}
