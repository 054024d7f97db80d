//! Authorization middleware: each route's row states its access requirement, and [`super::admission`] checks it.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use gravwell_env::{Clock as _, SystemClock};
use gravwell_objects::Timestamp;
use gravwell_objects::Writes;
use gravwell_objects::invalid;
use gravwell_objects::sessions::{self, Session};
use gravwell_objects::standing::Standing;
use gravwell_objects::store::Author;

pub(super) use super::admission::{AccessRequirement, Right};
use super::admission::{Admission, Rule};
use super::app::{App, AppRef};
use super::caller::{Caller, Proof};
use super::consistency_token;
use super::error::{ApiError, ApiResult};
use super::request_input::is_on;

/// Maximum number of invalid objects that a response names.
const INVALID_NAMED: usize = 20;

/// Address of the client.
#[derive(Clone, Copy, Debug)]
pub(super) struct From(pub IpAddr);

/// Returns the address of the client: that of the connection or, behind trusted proxies, the last forwarded address that
/// is not a trusted proxy's.
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

/// Admits a request, or returns the reason for its rejection.
pub(super) async fn check(State((app, rule)): State<(AppRef, Rule)>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    match admit(&app, rule, &mut parts).await {
        Ok(()) => {
            let caller = parts.extensions.get::<Caller>().cloned();
            let answered = next.run(Request::from_parts(parts, body));
            let response = if caller.as_ref().is_some_and(|caller| caller.person.admin) {
                let (mut response, invalid) = invalid::noting(answered).await;
                report_invalid(&mut response, &invalid);
                response
            } else {
                answered.await
            };
            if let Some(caller) = caller.filter(|_| rule.is_download) {
                record_download(&app, &caller, response.status());
            }
            response
        }
        Err(error) => error.into_response(),
    }
}

/// Reports to an administrator, in response headers, how many invalid objects were omitted, and the first of their keys.
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

/// Returns whether a request changes state or starts something that outlives it, such as a session or a search.
fn begins_or_changes(rule: Rule, method: &Method, path: &str) -> bool {
    let begins = ["/api/login", "/api/ws/search"];
    rule.is_change || !method.is_safe() || begins.iter().any(|begin| path.starts_with(begin))
}

/// Paths that a revoked webserver also rejects although they change nothing: long-lived streams and complete copies.
const SHUT: [&str; 4] = ["/api/backup", "/api/events", "/api/log/live", "/api/ws/"];

/// Rejects new work when the datastore has revoked this webserver, until it is enrolled again. Existing data can still be
/// read for a time, but not exported as a whole.
fn refuse_when_revoked(app: &AppRef, rule: Rule, parts: &Parts) -> ApiResult<()> {
    let Some(refusal) = app.store.replica().refusal() else { return Ok(()) };
    let path = parts.uri.path();
    let is_over = is_over(refusal.since_ms, app.config.membership_hours_max);
    let is_shut =
        rule.need != AccessRequirement::Nobody && (is_over || SHUT.iter().any(|begin| path.starts_with(begin)));
    if is_shut || begins_or_changes(rule, &parts.method, path) {
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, refusal.message()));
    }
    Ok(())
}

/// Returns whether a webserver that was revoked at `since_ms` may no longer serve any data, because it does not learn of
/// locks and lost rights. Like other members, it is trusted for a limited time; 0 means without limit.
fn is_over(since_ms: u64, hours_max: u64) -> bool {
    hours_max > 0 && SystemClock.now_ms().saturating_sub(since_ms) >= hours_max.saturating_mul(3_600_000)
}

/// Rejects requests of users when the local state cannot be trusted. A state that went back may contain users, rights,
/// sessions and tokens that were deleted since, until the replica has caught up with its datastore once. The state of a
/// reader lacks the secrets that a login needs.
fn refuse_when_lost(app: &AppRef, rule: Rule, parts: &Parts) -> ApiResult<()> {
    let lets_in = ["/api/login", "/api/mfa/"].iter().any(|begin| parts.uri.path().starts_with(begin));
    let is_open = rule.need == AccessRequirement::Nobody && !lets_in;
    let replica = app.store.replica();
    match replica.lost().or_else(|| replica.lacks_secrets()) {
        Some(lost) if !is_open => Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, lost)),
        _ => Ok(()),
    }
}

async fn admit(app: &AppRef, rule: Rule, parts: &mut Parts) -> ApiResult<()> {
    refuse_when_revoked(app, rule, parts)?;
    refuse_when_lost(app, rule, parts)?;
    let path = Path::<HashMap<String, String>>::from_request_parts(parts, &()).await;
    let path = path.map(|Path(path)| path).unwrap_or_default();
    let from = address(app, &parts.extensions, &parts.headers);
    parts.extensions.insert(From(from));
    let proof = match rule.need {
        AccessRequirement::Nobody => None,
        _ => {
            let shown = Proof::shown(rule.is_change, &parts.method, &parts.headers, app.config.plain_http);
            Some(shown.ok_or_else(ApiError::unknown)?)
        }
    };
    let (uri, wants_all) = (parts.uri.path().to_owned(), wants_all(parts.uri.query()));
    let admission = proof.map(|proof| Arc::new(Admission { proof, from, rule, path, uri, wants_all }));
    // An unknown caller may become known once this webserver has caught up, but such waits must be bounded in number.
    let is_known = || admission.as_ref().is_some_and(|admission| admission.begin(app).is_ok());
    consistency_token::wait(&app.store, &parts.headers, is_known).await?;
    let Some(admission) = admission else { return Ok(()) };
    let caller = admission.begin(app)?;
    if rule.is_change || !parts.method.is_safe() {
        slow_down(app, &caller)?;
    }
    if let Some(token) = &caller.token {
        app.recorder.note_token(&(&caller).into(), token.id, &token.name);
    }
    extend(app, &caller);
    parts.extensions.insert(caller);
    Ok(())
}

/// Rejects a change by a user who exceeds the write rate, before any work is done. The change is counted at its commit.
fn slow_down(app: &AppRef, caller: &Caller) -> ApiResult<()> {
    match app.store.allowance() {
        Some(allowance) => Ok(allowance.look(&app.store, &caller.author())?),
        None => Ok(()),
    }
}

/// Records a download when its response starts. Rejected downloads have a separate bound, so that many of them do not
/// hide successful ones.
fn record_download(app: &AppRef, caller: &Caller, status: StatusCode) {
    let (who, what) = (caller.into(), &caller.admission.uri);
    if status.is_client_error() || status.is_server_error() {
        app.recorder.note_refused("download", &who, format!("{what}: refused ({})", status.as_u16()));
    } else {
        app.recorder.note("download", &who, what.clone());
    }
}

fn wants_all(query: Option<&str>) -> bool {
    let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(name, _)| *name == "admin").any(|(_, value)| is_on(Some(value)))
}

/// Extends a session when enough of its lifetime has passed.
fn extend(app: &AppRef, caller: &Caller) {
    let Some(session) = &caller.session else { return };
    let (timeout, lifetime) = (app.config.session_timeout_s, app.config.session_lifetime_s);
    if !session.value.needs_extension(timeout, lifetime) {
        return;
    }
    let id = session.value.id.clone();
    if !app.extending.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(id.clone()) {
        return;
    }
    let (app, mut session, author) = (AppRef::clone(app), session.clone(), caller.author());
    session.value.last_hit = Timestamp::now();
    session.value.expires = session.value.end_if_used(timeout, lifetime);
    tokio::spawn(async move {
        if let Err(error) = write_extension(&app, &session, &author).await {
            tracing::debug!(%error, "failed to extend a session");
        }
        app.extending.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&id);
    });
}

async fn write_extension(
    app: &AppRef,
    session: &gravwell_objects::Record<Session>,
    author: &Author,
) -> Result<(), gravwell_objects::CommitError> {
    let mut writes = Writes::new();
    // A concurrent logout takes precedence.
    writes.overwrite_existing(session, "the session was ended", sessions::ONLY_TIMES)?;
    let writes = writes.unmetered("the webserver writes it, once per quarter of a session's lifetime");
    // The transaction only requires that the session exists: its times grant no right.
    let author = Author { standing: Standing::default(), ..author.clone() };
    app.store.commit(&author, "extend a session", writes).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p11_a_refused_webserver_shows_what_it_has_for_a_time() {
        let ago = |hours: u64| SystemClock.now_ms() - hours * 3_600_000;
        assert!(!is_over(ago(23), 24) && is_over(ago(25), 24));
        assert!(!is_over(ago(10_000), 0), "0 disables the limit");
        assert!(!is_over(u64::MAX, 24), "the clock went backwards");
    }
}
