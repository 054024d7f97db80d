//! The one place where requests are let in: every route says in its row of the table whom it serves.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::{ConnectInfo, FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::objects::Moment;
use crate::objects::capabilities;
use crate::objects::invalid;
use crate::objects::sessions::Session;
use crate::objects::store::Author;
use crate::objects::users::Admin;
use crate::objects::{Store, StoreError, Writes};

use super::app::{App, AppRef};
use super::caller::{self, Caller};
use super::error::{ApiError, ApiResult};
use super::input::is_on;
use super::position;

/// Whom a route serves. A name is that of the capability which a token must have; tokens never pass as administrators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Everybody, known or not.
    Nobody,
    /// Every user; with a token, one that has the capability, if one is named.
    User(Option<&'static str>),
    /// Administrators with a session.
    Admin,
    /// The user of the path's `{uid}`, and administrators.
    SelfOrAdmin(Option<&'static str>),
    /// Members of the path's `{gid}`, and administrators.
    MemberOrAdmin(Option<&'static str>),
    /// The session itself: not for tokens.
    Session,
}

/// Invalid objects that an answer names.
const INVALID_NAMED: usize = 20;

/// Address of the client.
#[derive(Clone, Copy, Debug)]
pub(super) struct From(pub IpAddr);

/// The address from which a request came: that of the connection, or, through balancers that are trusted, the last one that
/// is not theirs.
pub(super) fn address(app: &App, extensions: &Extensions, headers: &HeaderMap) -> IpAddr {
    let connection = extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    let mut address = connection.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ip| ip.to_canonical());
    let is_trusted = |address: IpAddr| app.config.trusted_proxies.iter().any(|proxy| proxy.contains(address));
    let lines = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
    let named: Vec<&str> = lines.flat_map(|line| line.split(',')).collect();
    for name in named.into_iter().rev() {
        if !is_trusted(address) {
            break;
        }
        let Ok(before) = name.trim().parse::<IpAddr>() else { break };
        address = before.to_canonical();
    }
    address
}

/// Lets a request in, or says why not.
pub(super) async fn check(State((app, need)): State<(AppRef, Need)>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    match admit(&app, need, &mut parts).await {
        Ok(()) if parts.extensions.get::<Caller>().is_some_and(|caller| caller.person.admin) => {
            let (mut response, invalid) = invalid::noting(next.run(Request::from_parts(parts, body))).await;
            report_invalid(&mut response, &invalid);
            response
        }
        Ok(()) => next.run(Request::from_parts(parts, body)).await,
        Err(error) => error.into_response(),
    }
}

/// Tells an administrator of invalid objects that were left out of an answer: how many, and the first ones.
fn report_invalid(response: &mut Response, invalid: &BTreeSet<String>) {
    if invalid.is_empty() {
        return;
    }
    let keys: Vec<String> = invalid.iter().take(INVALID_NAMED).map(|key| key.escape_default().to_string()).collect();
    response.headers_mut().insert("gravwell-invalid", HeaderValue::from(invalid.len()));
    if let Ok(keys) = HeaderValue::from_str(&keys.join(", ")) {
        response.headers_mut().insert("gravwell-invalid-keys", keys);
    }
}

/// Whether a request changes something, or begins what outlives it: a session, a search.
fn begins_or_changes(method: &Method, path: &str) -> bool {
    let begins = ["/api/login", "/api/users/su/", "/api/ws/search"];
    !method.is_safe() || begins.iter().any(|begin| path.starts_with(begin))
}

/// A webserver that its datastore refuses goes on in nothing until it is enrolled again; what it has can still be read.
fn refuse_when_revoked(app: &AppRef, parts: &Parts) -> ApiResult<()> {
    match app.store.replica().refusal() {
        Some(refusal) if begins_or_changes(&parts.method, parts.uri.path()) => {
            Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, refusal.message()))
        }
        _ => Ok(()),
    }
}

async fn admit(app: &AppRef, need: Need, parts: &mut Parts) -> ApiResult<()> {
    refuse_when_revoked(app, parts)?;
    let path = Path::<HashMap<String, String>>::from_request_parts(parts, &()).await;
    let path = path.map(|Path(path)| path).unwrap_or_default();
    let from = address(app, &parts.extensions, &parts.headers);
    position::wait(&app.store, &parts.headers).await?;
    let mut caller = caller::identify(&app.store, &parts.method, &parts.headers, from)?;
    if let Some(caller) = &mut caller {
        caller.all = caller.person.admin && wants_all(parts.uri.query());
        let is_limited = app.config.capability_control && !app.store.has::<Admin>(&caller.uid().to_string())?;
        if is_limited {
            caller.granted = Some(capabilities::of_person(&app.store, &caller.person)?);
        }
    }
    allow(&app.store, need, caller.as_ref(), &path, parts.uri.path())?;
    if let Some(caller) = caller {
        extend(app, &caller);
        parts.extensions.insert(caller);
    }
    parts.extensions.insert(From(from));
    Ok(())
}

fn wants_all(query: Option<&str>) -> bool {
    let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(name, _)| *name == "admin").any(|(_, value)| is_on(Some(value)))
}

/// What a session may do whose password must be changed first.
fn is_open_before_change(path: &str, uid: i32) -> bool {
    let own = format!("/api/users/{uid}/pwd");
    ["/api/info/whoami", "/api/settings", "/api/logout", "/api/testauth", own.as_str()]
        .contains(&path.trim_end_matches('/'))
}

fn allow(
    store: &Store,
    need: Need,
    caller: Option<&Caller>,
    path: &HashMap<String, String>,
    uri: &str,
) -> ApiResult<()> {
    if need == Need::Nobody {
        return Ok(());
    }
    let caller = caller.ok_or_else(ApiError::unknown)?;
    let password = match store.get::<crate::objects::passwords::Password>(&caller.uid().to_string()) {
        Err(error @ StoreError::Invalid { .. }) if caller.session.is_some() => {
            tracing::warn!(%error, "an account is denied");
            return Err(ApiError::forbidden("what is kept of your password is invalid: ask an administrator"));
        }
        Err(StoreError::Invalid { .. }) => None,
        password => password?,
    };
    if caller.session.is_some()
        && password.is_some_and(|password| password.value.must_change)
        && !is_open_before_change(uri, caller.uid())
    {
        return Err(ApiError::forbidden("change your password first: PUT /api/users/{uid}/pwd")
            .with("MustChangePassword", true));
    }
    let number = |name: &str| {
        let text = path.get(name).map(String::as_str).unwrap_or_default();
        text.parse::<i32>().map_err(|_| ApiError::bad(format!("{text:?} is not a number")))
    };
    let capability = match need {
        Need::User(capability) | Need::SelfOrAdmin(capability) | Need::MemberOrAdmin(capability) => capability,
        Need::Nobody | Need::Admin | Need::Session => None,
    };
    if let Some(capability) = capability.filter(|capability| !caller.has(capability)) {
        let whose = if caller.token.is_some() { "the token does" } else { "you do" };
        let message = format!("{whose} not have the capability {capability}");
        return Err(ApiError::forbidden(message).with("Cap", capability));
    }
    let is_allowed = match need {
        Need::Nobody | Need::User(_) => true,
        Need::Admin => caller.person.admin,
        Need::SelfOrAdmin(_) => caller.is_self_or_admin(number("uid")?),
        Need::MemberOrAdmin(_) => caller.person.admin || caller.person.groups.contains(&number("gid")?),
        Need::Session => caller.session.is_some(),
    };
    if is_allowed {
        return Ok(());
    }
    Err(ApiError::forbidden(match need {
        Need::Admin => "only administrators may do this, with a session of their own",
        Need::SelfOrAdmin(_) => "only the user concerned and administrators may do this",
        Need::MemberOrAdmin(_) => "only members of the group and administrators may do this",
        Need::Session | Need::Nobody | Need::User(_) => "this needs a session: tokens cannot do it",
    }))
}

/// Writes the life of a session anew when enough of it has passed.
fn extend(app: &AppRef, caller: &Caller) {
    let Some(session) = &caller.session else { return };
    let timeout = app.config.session_timeout_s;
    if !session.value.needs_extension(timeout) {
        return;
    }
    let id = session.value.id.clone();
    if !app.extending.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(id.clone()) {
        return;
    }
    let (app, mut session, author) = (AppRef::clone(app), session.clone(), caller.author());
    session.value.last_hit = Moment::now();
    session.value.expires = Moment::now().plus(timeout);
    tokio::spawn(async move {
        if let Err(error) = write_extension(&app, &session, &author).await {
            tracing::debug!(%error, "a session was not extended");
        }
        app.extending.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&id);
    });
}

async fn write_extension(
    app: &AppRef,
    session: &crate::objects::Record<Session>,
    author: &Author,
) -> Result<(), crate::objects::CommitError> {
    let mut writes = Writes::new();
    // Whoever logs out meanwhile stays logged out.
    writes.update(session, "the session was ended")?;
    app.store.commit(author, "extend a session", writes).await.map(drop)
}
