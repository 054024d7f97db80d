//! Logging in and out, sessions, who one is, versions.

use std::net::IpAddr;

use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};

use super::DONE;
use super::users::details;
use crate::objects::passwords::{self, Password};
use crate::objects::sessions::{self, Claims, Session};
use crate::objects::store::Author;
use crate::objects::users::{self, Admin, FIRST, Lock, User};
use crate::objects::{Moment, Stored, Writes, accounts};
use crate::web::acts::Who;
use crate::web::app::{App, AppRef};
use crate::web::caller::{self, COOKIE, Caller, Proof};
use crate::web::error::{ApiError, ApiResult};
use crate::web::guard::{self, Need, Right};
use crate::web::input;
use crate::web::limiter::Refusal;
use crate::web::routes::{Route, delete, get, post, put};

/// Life of a token for one download.
const TEMPORARY_S: u64 = 3;

pub(in crate::web) fn routes() -> Vec<Route> {
    use Need::{Admin, Nobody, SelfOrAdmin, User};
    use Right::{Any, Session};
    let renewed = "Gives a new token for the same session.";
    let become_other = "Begins a session as another user.";
    vec![
        get("/api/test", Nobody, "Says that the webserver lives and serves sound data.", test),
        get("/api/testauth", User(Any), "Says that the caller is known.", || async { DONE }),
        get("/api/version", Nobody, "Tells the versions of API and program.", version),
        post("/api/login", Nobody, "Logs in with a name and a password, as a form or as JSON.", log_in),
        post("/api/login/mfa", Nobody, "Logs in with a name and a password, as JSON.", log_in),
        get("/api/login/refreshtoken", User(Session), renewed, refresh).that_changes(),
        post("/api/login/refreshtoken", User(Session), renewed, refresh),
        get(
            "/api/login/tmptoken",
            User(Session),
            "Gives a token that opens downloads, to be begun within three seconds.",
            temporary,
        ),
        put("/api/logout", User(Session), "Ends this session.", log_out),
        delete("/api/logout", User(Session), "Ends all sessions of the caller.", log_out_everywhere),
        get("/api/info/whoami", User(Any), "Tells who the caller is.", who_am_i),
        get("/api/users/{uid}/sessions", SelfOrAdmin(Session), "Lists the sessions of a user.", sessions),
        get("/api/users/su/{uid}", Admin, become_other, become_user).that_changes(),
        post("/api/users/su/{uid}", Admin, become_other, become_user),
        get("/api/mfa", User(Session), "Tells that no second factor is asked for.", second_factors),
        delete("/api/users/{uid}/mfa/clear", Admin, "Leaves a user without a second factor.", clear_second_factors),
    ]
}

/// Being cut off is no fault: what is served is sound, if not the newest.
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
        "Build": { "Major": next(), "Minor": next(), "Point": next(), "BuildDate": Moment::NEVER },
    }))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Credentials {
    user: String,
    pass: String,
}

#[derive(Deserialize)]
struct Form {
    #[serde(rename = "User", alias = "user", default)]
    user: String,
    #[serde(rename = "Pass", alias = "pass", default)]
    pass: String,
}

fn credentials(headers: &HeaderMap, body: &[u8]) -> ApiResult<Credentials> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_json = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    if !is_json && kind.starts_with("application/x-www-form-urlencoded") {
        let request = Request::builder()
            .method("POST")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(axum::body::Body::from(body.to_vec()))
            .map_err(ApiError::bad)?;
        let form = futures_util::FutureExt::now_or_never(
            <axum::Form<Form> as axum::extract::FromRequest<()>>::from_request(request, &()),
        );
        return match form {
            Some(Ok(axum::Form(Form { user, pass }))) => Ok(Credentials { user, pass }),
            _ => Err(ApiError::bad("the form is not understood: send User and Pass")),
        };
    }
    input::read(body)
}

fn refused(status: StatusCode, reason: &str) -> ApiError {
    ApiError::new(status, reason)
        .with("LoginStatus", false)
        .with("Reason", reason)
        .with("MFARequired", false)
        .with("MFASetupRequired", false)
}

/// A login that is not looked at.
fn held_back(refusal: Refusal) -> Response {
    if refusal != Refusal::Busy {
        return refused(StatusCode::LOCKED, refusal.reason()).into_response();
    }
    come_back(refused(StatusCode::TOO_MANY_REQUESTS, refusal.reason()))
}

fn come_back(error: ApiError) -> Response {
    let mut response = error.into_response();
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(1));
    response
}

async fn log_in(
    State(app): State<AppRef>,
    Extension(guard::From(from)): Extension<guard::From>,
    headers: HeaderMap,
    input::Raw(body): input::Raw,
) -> ApiResult<Response> {
    if *app.restoring.lock().unwrap_or_else(std::sync::PoisonError::into_inner) {
        return Err(refused(
            StatusCode::SERVICE_UNAVAILABLE,
            "a backup is being restored: try again when it has ended",
        ));
    }
    // As long as this webserver does not know of the first administrator it cannot say that a name is wrong.
    if !app.store.has::<User>(&FIRST.to_string())? {
        let reason = "the first administrator is not known here yet: try again in a second";
        return Ok(come_back(refused(StatusCode::SERVICE_UNAVAILABLE, reason)));
    }
    let Credentials { user, pass } = credentials(&headers, &body)?;
    let attempt = match app.limiter.admit(&user, from).await {
        Ok(attempt) => attempt,
        Err(refusal) => {
            app.recorder.note("login-throttled", Who::named(None, &user, from), refusal.reason());
            return Ok(held_back(refusal));
        }
    };
    let uid = users::by_name(&app.store, &user)?;
    let password = match uid {
        Some(uid) => app.store.valid::<Password>(&uid.to_string())?.map(|record| record.value),
        None => None,
    };
    let must_change = password.as_ref().is_some_and(|password| password.must_change);
    let fits = passwords::verify(&pass, password.map(|password| password.hash)).await?;
    attempt.note(fits);
    let Some(uid) = uid.filter(|_| fits) else {
        tracing::warn!(%from, "a login failed");
        app.recorder.note("login-failed", Who::named(uid, &user, from), "wrong user name or password");
        return Err(refused(StatusCode::UNPROCESSABLE_ENTITY, "wrong user name or password"));
    };
    // Only who knows the password learns that the account is locked.
    if app.store.has::<Lock>(&uid.to_string())? {
        app.recorder.note("login-failed", Who::named(Some(uid), &user, from), "the account is locked");
        return Err(refused(StatusCode::LOCKED, "the account is locked: ask an administrator"));
    }
    let invalid = || refused(StatusCode::LOCKED, "what is kept of the account is invalid: ask an administrator");
    let user = app.store.valid::<User>(&uid.to_string())?.ok_or_else(invalid)?;
    let author = Author { uid, user: user.value.user.clone(), from: from.to_string(), ..Author::default() };
    let begun = Begun { uid, su: String::new(), must_change };
    begin_session(&app, &author, "log in", begun, from, &headers).await
}

/// A session that begins.
struct Begun {
    uid: i32,
    /// The administrator who begins it to act as this user; empty: the user does.
    su: String,
    must_change: bool,
}

async fn begin_session(
    app: &App,
    author: &Author,
    what: &str,
    Begun { uid, su, must_change }: Begun,
    from: IpAddr,
    headers: &HeaderMap,
) -> ApiResult<Response> {
    let now = Moment::now();
    let (timeout, lifetime) = (app.config.session_timeout_s, app.config.session_lifetime_s);
    let expires = now.plus(if lifetime == 0 { timeout } else { timeout.min(lifetime) });
    let claims = Claims::new(uid, expires)?;
    let mut writes = Writes::new();
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
        epoch: sessions::epoch_for_new(&app.store, uid, &mut writes)?,
        of: String::new(),
        su,
    };
    writes.require::<User>(&uid.to_string(), accounts::USER_GONE)?;
    writes.overwrite(&session, "its name is random")?;
    for displaced in sessions::displaced(&app.store, uid)? {
        writes.delete_whatever::<Session>(&displaced, sessions::ENDED)?;
    }
    app.store.commit(author, what, writes).await?;
    answer(app, headers, &claims, must_change)
}

fn answer(app: &App, headers: &HeaderMap, claims: &Claims, must_change: bool) -> ApiResult<Response> {
    let token = claims.token().map_err(ApiError::internal)?;
    let admin = app.store.has::<Admin>(&claims.uid.to_string())?;
    let mut body = json!({ "LoginStatus": true, "JWT": token, "MFARequired": false, "MFASetupRequired": false });
    if admin {
        body["Admin"] = true.into();
    }
    if must_change {
        body["MustChangePassword"] = true.into();
    }
    let mut response = Json(body).into_response();
    let secure = if app.config.plain_http { "" } else { "; Secure" };
    let cookie = format!("{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict{secure}");
    if !claims.temporary && !caller::is_foreign_page(headers) {
        let cookie = HeaderValue::from_str(&cookie).map_err(ApiError::internal)?;
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

/// What the caller has shown: only the caller knows the secret of a session.
fn claims_of(caller: &Caller, expires: Moment) -> ApiResult<Claims> {
    let claims = match &caller.admission.proof {
        Proof::Session(token) => Claims::read(token),
        Proof::Token(_) => None,
    };
    Ok(claims.ok_or_else(ApiError::unknown)?.until(expires))
}

async fn refresh(State(app): State<AppRef>, caller: Caller, headers: HeaderMap) -> ApiResult<Response> {
    let mut session = caller.session.clone().ok_or_else(ApiError::unknown)?;
    let expires = session.value.end_if_used(app.config.session_timeout_s, app.config.session_lifetime_s);
    session.value.expires = expires;
    session.value.last_hit = Moment::now();
    let mut writes = Writes::new();
    writes.overwrite_existing(&session, "the session was ended", sessions::ONLY_TIMES)?;
    app.store.commit(&caller.author(), "refresh a session", writes).await?;
    answer(&app, &headers, &claims_of(&caller, expires)?, false)
}

async fn temporary(State(app): State<AppRef>, caller: Caller, headers: HeaderMap) -> ApiResult<Response> {
    let login = caller.session.as_ref().filter(|session| !session.value.is_temporary());
    let login = login.ok_or_else(ApiError::unknown)?.value.clone();
    let (now, uid) = (Moment::now(), caller.uid());
    let claims = Claims::for_downloads(uid, now.plus(TEMPORARY_S))?;
    let (id, of, expires) = (claims.session(), login.id.clone(), claims.expires);
    let webserver = app.store.via().to_owned();
    let session = Session { id, of, expires, webserver, last_hit: now, ..login };
    let mut writes = Writes::new();
    writes.overwrite(&session, "its name is random")?;
    app.store.commit(&caller.author(), "make a token for downloads", writes).await?;
    answer(&app, &headers, &claims, false)
}

fn without_cookie() -> Response {
    let mut response = DONE.into_response();
    let gone = HeaderValue::from_static("token=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0");
    response.headers_mut().insert(header::SET_COOKIE, gone);
    response
}

async fn log_out(State(app): State<AppRef>, caller: Caller) -> ApiResult<Response> {
    if let Some(session) = &caller.session {
        let mut writes = Writes::new();
        writes.delete_whatever::<Session>(&session.value.key(), sessions::ENDED)?;
        app.store.commit(&caller.author(), "log out", writes).await?;
    }
    Ok(without_cookie())
}

async fn log_out_everywhere(State(app): State<AppRef>, caller: Caller) -> ApiResult<Response> {
    let writes = accounts::end_sessions(&app.store, caller.uid(), None)?;
    app.store.commit(&caller.author(), "log out everywhere", writes).await?;
    Ok(without_cookie())
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
            json!({
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
            })
        })
        .collect();
    Ok(Json(json!({ "UID": uid, "User": user.value.user, "Sessions": sessions })))
}

async fn become_user(
    State(app): State<AppRef>,
    caller: Caller,
    headers: HeaderMap,
    Path(uid): Path<i32>,
) -> ApiResult<Response> {
    let user = app.store.get::<User>(&uid.to_string())?.ok_or_else(|| ApiError::not_found(format!("user {uid}")))?;
    let author = caller.author();
    // Who acts as somebody who acts as somebody else is still known.
    let su = match author.su.as_str() {
        "" => author.user.clone(),
        first => format!("{first} as {}", author.user),
    };
    let what = format!("log in as {} (uid {uid})", user.value.user);
    let begun = Begun { uid, su, must_change: false };
    let mut response = begin_session(&app, &author, &what, begun, caller.from, &headers).await?;
    // The administrator's browser stays the administrator's.
    response.headers_mut().remove(header::SET_COOKIE);
    Ok(response)
}

/// What clients read about second factors of a user: there are none.
pub(super) fn no_second_factors() -> Value {
    json!({
        "TOTP": { "Enabled": false },
        "RecoveryCodes": { "Enabled": false, "Remaining": 0, "Generated": Moment::NEVER },
    })
}

async fn second_factors() -> Json<Value> {
    Json(json!({ "UserConfig": no_second_factors(), "MFARequired": false }))
}

async fn clear_second_factors(State(app): State<AppRef>, Path(uid): Path<i32>) -> ApiResult<Json<Value>> {
    let user = app.store.has::<User>(&uid.to_string())?;
    user.then_some(DONE).ok_or_else(|| ApiError::not_found(format!("user {uid}")))
}
