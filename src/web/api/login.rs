//! Routes for login and logout, sessions, the caller's identity, and versions.

use std::net::IpAddr;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};

use super::DONE;
use super::credentials::{Credentials, Known};
use super::users::details;
use crate::app::{App, AppRef};
use crate::authorization::{self, AccessRequirement, Right};
use crate::caller::{self, COOKIE, Caller, HOST_COOKIE, Proof};
use crate::error::{ApiError, ApiResult};
use crate::request_input;
use crate::route::{Route, delete, get, post, put};
use gravwell_objects::impersonation::{BEHIND_MAX, Impersonator};
use gravwell_objects::passwords::Password;
use gravwell_objects::second_factors::Code;
use gravwell_objects::sessions::{self, Claims, Session};
use gravwell_objects::users::{Admin, User};
use gravwell_objects::{Stored, Timestamp, Writes, accounts};
use gravwell_runtime::tasks::blocking;

/// Lifetime in seconds of a token for one download.
const TEMPORARY_S: u64 = 3;

pub(crate) fn routes() -> Vec<Route> {
    use AccessRequirement::{Admin, Nobody, SelfOrAdmin, User};
    use Right::{Any, Session};
    let renewed = "Returns a new token for the same session.";
    let become_other = "Starts a session as another user.";
    vec![
        get("/api/test", Nobody, "Reports that the webserver is alive and its data is intact.", test),
        get("/api/testauth", User(Any), "Reports that the caller is authenticated.", || async { DONE }),
        get("/api/version", Nobody, "Returns the versions of API and program.", version),
        post("/api/login", Nobody, "Logs in with a name and a password, as a form or as JSON.", log_in),
        post("/api/login/mfa", Nobody, "Logs in with a name, a password and a code, as JSON.", log_in),
        get("/api/login/refreshtoken", User(Session), renewed, refresh).that_changes(),
        post("/api/login/refreshtoken", User(Session), renewed, refresh),
        get(
            "/api/login/tmptoken",
            User(Session),
            "Returns a token for downloads that start within three seconds.",
            temporary,
        )
        .that_changes(),
        put("/api/logout", User(Session), "Ends this session.", log_out),
        delete("/api/logout", User(Session), "Ends all sessions of the caller.", log_out_everywhere),
        get("/api/info/whoami", User(Any), "Returns the caller.", who_am_i),
        get("/api/users/{uid}/sessions", SelfOrAdmin(Session), "Lists the sessions of a user.", sessions),
        get("/api/users/su/{uid}", Admin, become_other, become_user).that_changes(),
        post("/api/users/su/{uid}", Admin, become_other, become_user),
    ]
}

/// Reports whether the state is sound. Being offline is not a fault, although the served data may be stale.
async fn test(State(app): State<AppRef>) -> ApiResult<Json<Value>> {
    let status = app.store.replica().status();
    if status.healthy {
        return Ok(DONE);
    }
    Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, status.problem))
}

async fn version() -> Json<Value> {
    let mut parts = env!("CARGO_PKG_VERSION").split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    Json(json!({
        "API": { "Major": 0, "Minor": 2 },
        "Build": { "Major": next(), "Minor": next(), "Point": next(), "BuildDate": Timestamp::NEVER },
    }))
}

async fn log_in(
    State(app): State<AppRef>,
    Extension(authorization::From(from)): Extension<authorization::From>,
    headers: HeaderMap,
    request_input::Raw(body): request_input::Raw,
) -> ApiResult<Response> {
    let given = Credentials::read(&headers, &body)?;
    let code = given.code()?;
    let known = Known::by_password(&app, from, &given).await?;
    let what = match (&known.factor, code) {
        (Some(_), None) => return Ok(known.asked_for_more()),
        (None, _) if app.config.mfa_required => return Ok(known.asked_for_more()),
        (None, _) => "log in",
        (Some(_), Some(Code::OfApp(_))) => "log in with a second factor",
        (Some(_), Some(Code::Recovery(_))) => "log in with a recovery code",
    };
    let must_change = must_change(known.must_change);
    let begin = |known: &Known, writes: &mut Writes| {
        let epoch = sessions::epoch_for_new(&app.store, known.user.uid, writes)?;
        let second_factor = known.factor.is_some();
        let begun = NewSession { uid: known.user.uid, su: String::new(), behind: Vec::new(), second_factor, epoch };
        let claims = start_session(&app, begun, from, &headers, writes)?;
        let begun = std::mem::take(writes);
        *writes = begun.unmetered("password hashing limits the rate, and a write quota must not block logins");
        Ok(claims)
    };
    let claims = known.commit(&app, code, what, begin).await?;
    answer(&app, &headers, &claims, &must_change)
}

/// Returns a JSON object with `MustChangePassword` if it is true, otherwise an empty one.
pub(super) fn must_change(is_so: bool) -> Value {
    if is_so { json!({ "MustChangePassword": true }) } else { json!({}) }
}

/// Attributes of a new session.
pub(super) struct NewSession {
    pub uid: i32,
    /// Administrator who starts the session to act as this user; empty for the user's own session.
    pub su: String,
    /// Administrators on whose accounts the session depends.
    pub behind: Vec<Impersonator>,
    /// Whether a second factor was verified for the session.
    pub second_factor: bool,
    pub epoch: String,
}

pub(super) fn start_session(
    app: &App,
    NewSession { uid, su, behind, second_factor, epoch }: NewSession,
    from: IpAddr,
    headers: &HeaderMap,
    writes: &mut Writes,
) -> ApiResult<Claims> {
    let now = Timestamp::now();
    let (timeout, lifetime) = (app.config.session_timeout_s, app.config.session_lifetime_s);
    let expires = now.plus(if lifetime == 0 { timeout } else { timeout.min(lifetime) });
    let claims = Claims::new(uid, expires)?;
    let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let session = Session {
        uid,
        id: claims.session(),
        origin: from.to_string(),
        agent: agent.chars().take(200).collect(),
        created: now,
        last_hit: now,
        expires,
        webserver: app.store.via().to_owned(),
        epoch,
        of: String::new(),
        su,
        behind,
        second_factor,
    };
    writes.require::<User>(&uid.to_string(), accounts::USER_GONE)?;
    writes.overwrite(&session, "its ID is random")?;
    for displaced in sessions::displaced(&app.store, uid)? {
        writes.delete_unconditionally::<Session>(&displaced, sessions::ENDED)?;
    }
    Ok(claims)
}

/// Builds the response for a session, extended by the members of `besides`.
pub(super) fn answer(app: &App, headers: &HeaderMap, claims: &Claims, besides: &Value) -> ApiResult<Response> {
    let token = claims.token().map_err(ApiError::internal)?;
    let admin = app.store.has::<Admin>(&claims.uid.to_string())?;
    let mut body = json!({ "LoginStatus": true, "JWT": token, "MFARequired": false, "MFASetupRequired": false });
    if admin {
        body["Admin"] = true.into();
    }
    for (name, value) in besides.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    let mut response = Json(body).into_response();
    if !claims.temporary && !caller::is_foreign_page(headers) {
        for cookie in cookies(app, &token, "") {
            let cookie = HeaderValue::from_str(&cookie).map_err(ApiError::internal)?;
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
    }
    Ok(response)
}

/// Returns the cookies of a session. Over HTTPS, the one with the plain name is for webservers of earlier versions, which
/// know no other.
fn cookies(app: &App, token: &str, end: &str) -> Vec<String> {
    let cookie = |name: &str, secure: &str| format!("{name}={token}; Path=/; HttpOnly; SameSite=Strict{secure}{end}");
    match app.config.plain_http {
        true => vec![cookie(COOKIE, "")],
        false => [HOST_COOKIE, COOKIE].map(|name| cookie(name, "; Secure")).into(),
    }
}

/// Returns the claims that the caller presented: the server does not store the secret of a session.
fn claims_of(caller: &Caller, expires: Timestamp) -> ApiResult<Claims> {
    let claims = match &caller.admission.proof {
        Proof::Session(token) => Claims::read(token),
        Proof::Token(_) | Proof::Download(_) => None,
    };
    Ok(claims.ok_or_else(ApiError::unknown)?.until(expires))
}

async fn refresh(State(app): State<AppRef>, caller: Caller, headers: HeaderMap) -> ApiResult<Response> {
    let mut session = caller.session.clone().ok_or_else(ApiError::unknown)?;
    let expires = session.value.end_if_used(app.config.session_timeout_s, app.config.session_lifetime_s);
    session.value.expires = expires;
    session.value.last_hit = Timestamp::now();
    let mut writes = Writes::new();
    writes.overwrite_existing(&session, "the session was ended", sessions::ONLY_TIMES)?;
    app.store.commit(&caller.author(), "refresh a session", writes).await?;
    answer(&app, &headers, &claims_of(&caller, expires)?, &json!({}))
}

async fn temporary(State(app): State<AppRef>, caller: Caller, headers: HeaderMap) -> ApiResult<Response> {
    let login = caller.session.as_ref().filter(|session| !session.value.is_temporary());
    let login = login.ok_or_else(ApiError::unknown)?.value.clone();
    let (now, uid) = (Timestamp::now(), caller.uid());
    let claims = Claims::for_downloads(uid, now.plus(TEMPORARY_S))?;
    let (id, of, expires) = (claims.session(), login.id.clone(), claims.expires);
    let webserver = app.store.via().to_owned();
    let session = Session { id, of, expires, webserver, last_hit: now, ..login };
    let mut writes = Writes::new();
    writes.overwrite(&session, "its ID is random")?;
    for key in blocking::run(|| sessions::displaced_by_temporary(&app.store, uid))? {
        writes.delete_unconditionally::<Session>(&key, sessions::ENDED)?;
    }
    app.store.commit(&caller.author(), "create a token for downloads", writes).await?;
    answer(&app, &headers, &claims, &json!({}))
}

fn without_cookie(app: &App) -> Response {
    let mut response = DONE.into_response();
    for gone in cookies(app, "", "; Max-Age=0").iter().filter_map(|gone| HeaderValue::from_str(gone).ok()) {
        response.headers_mut().append(header::SET_COOKIE, gone);
    }
    response
}

async fn log_out(State(app): State<AppRef>, caller: Caller) -> ApiResult<Response> {
    if let Some(session) = &caller.session {
        let mut writes = Writes::new();
        writes.delete_unconditionally::<Session>(&session.value.key(), sessions::ENDED)?;
        app.store.commit(&caller.author(), "log out", writes).await?;
    }
    Ok(without_cookie(&app))
}

async fn log_out_everywhere(State(app): State<AppRef>, caller: Caller) -> ApiResult<Response> {
    let writes = accounts::end_sessions(&app.store, caller.uid(), None)?;
    app.store.commit(&caller.author(), "log out everywhere", writes).await?;
    Ok(without_cookie(&app))
}

async fn who_am_i(State(app): State<AppRef>, caller: Caller) -> ApiResult<Json<Value>> {
    let mut body = details(&app.store, caller.uid())?.ok_or_else(ApiError::unknown)?;
    let password = app.store.valid::<Password>(&caller.uid().to_string())?;
    if password.is_some_and(|password| password.value.must_change) {
        body["MustChangePassword"] = true.into();
    }
    Ok(Json(body))
}

async fn sessions(State(app): State<AppRef>, Path(uid): Path<i32>) -> ApiResult<Json<Value>> {
    let user = app.store.get::<User>(&uid.to_string())?.ok_or_else(|| ApiError::not_found(format!("user {uid}")))?;
    let sessions: Vec<Value> = sessions::live_of(&app.store, uid)?
        .into_iter()
        .map(|record| {
            let number = u64::from_str_radix(record.value.id.get(..13).unwrap_or_default(), 16).unwrap_or(0);
            let mut shown = json!({
                "ID": number,
                "UID": uid,
                "Origin": record.value.origin,
                "LastHit": record.value.last_hit,
                "TempSession": false,
                "Synced": record.is_synced(),
                "Agent": record.value.agent,
                "Created": record.value.created,
                "Expires": record.value.expires,
                "Webserver": record.value.webserver,
            });
            // The administrator who acts as the user.
            if !record.value.su.is_empty() {
                shown["Su"] = record.value.su.into();
            }
            shown
        })
        .collect();
    Ok(Json(json!({ "UID": uid, "User": user.value.user, "Sessions": sessions })))
}

/// Returns the administrators who act in a session that the caller starts as another user, as text and as dependencies.
/// All of them remain known if an administrator acts as a user who acts as another.
fn acting(app: &App, caller: &Caller) -> ApiResult<(String, Vec<Impersonator>)> {
    let author = caller.author();
    let mut behind = caller.session.as_ref().map(|session| session.value.behind.clone()).unwrap_or_default();
    if caller.behind.iter().any(|one| one.uid == caller.uid()) {
        return Ok((author.su, behind));
    }
    if behind.len() >= BEHIND_MAX {
        let message = format!("{} already acts as {}; log in as yourself", author.su, author.user);
        return Err(ApiError::forbidden(message));
    }
    behind.push(Impersonator::now(&app.store, caller.uid())?.ok_or_else(ApiError::unknown)?);
    let su = if author.su.is_empty() { author.user } else { format!("{} as {}", author.su, author.user) };
    Ok((su, behind))
}

async fn become_user(
    State(app): State<AppRef>,
    caller: Caller,
    headers: HeaderMap,
    Path(uid): Path<i32>,
) -> ApiResult<Response> {
    let user = app.store.get::<User>(&uid.to_string())?.ok_or_else(|| ApiError::not_found(format!("user {uid}")))?;
    let author = caller.author();
    let (su, behind) = acting(&app, &caller)?;
    let what = format!("log in as {} (uid {uid})", user.value.user);
    let second_factor = caller.session.as_ref().is_some_and(|session| session.value.second_factor);
    let mut writes = Writes::new();
    let epoch = sessions::epoch_for_new(&app.store, uid, &mut writes)?;
    let begun = NewSession { uid, su, behind, second_factor, epoch };
    let claims = start_session(&app, begun, caller.from, &headers, &mut writes)?;
    app.store.commit(&author, &what, writes).await?;
    let mut response = answer(&app, &headers, &claims, &json!({}))?;
    // The administrator's browser must keep the administrator's own session.
    response.headers_mut().remove(header::SET_COOKIE);
    Ok(response)
}
