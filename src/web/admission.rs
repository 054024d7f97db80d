//! Access requirements of routes, and the one function that checks them: when a request arrives, and repeatedly while a
//! long response lasts.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::StatusCode;
use futures_util::{Stream, StreamExt as _};

use gravwell_objects::passwords::Password;
use gravwell_objects::{Store, StoreError, Timestamp};

use super::app::{App, AppRef};
use super::caller::{self, Caller, Proof};
use super::error::{ApiError, ApiResult};

/// Interval at which the right to a long response is checked.
const CHECK_EVERY: Duration = Duration::from_secs(2);

/// Right that a caller needs in addition to being identified. Tokens are rejected unless the route's row allows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    /// This capability, required of tokens, and of users where capabilities are controlled.
    Capability(&'static str),
    /// This capability, required of tokens only.
    OfToken(&'static str),
    /// Any capability, required of tokens only.
    Any,
    /// A session; tokens are rejected.
    Session,
}

/// Access requirement of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AccessRequirement {
    /// None: unauthenticated clients are served too.
    Nobody,
    /// Any user.
    User(Right),
    /// An administrator with a session.
    Admin,
    /// The user of the path's `{uid}`, or an administrator.
    SelfOrAdmin(Right),
    /// A member of the path's `{gid}`, or an administrator.
    MemberOrAdmin(Right),
}

impl AccessRequirement {
    /// Returns the right that an identified caller needs; tokens never count as administrators.
    pub(super) fn right(self) -> Option<Right> {
        match self {
            AccessRequirement::Nobody => None,
            AccessRequirement::Admin => Some(Right::Session),
            AccessRequirement::User(right)
            | AccessRequirement::SelfOrAdmin(right)
            | AccessRequirement::MemberOrAdmin(right) => Some(right),
        }
    }
}

/// Properties of a route that the authorization middleware needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub need: AccessRequirement,
    /// Whether the route returns a file: temporary tokens are accepted only for these.
    pub is_download: bool,
    /// Whether the route changes state although its method is a safe one.
    pub is_change: bool,
}

/// Credential and scope of a request.
#[derive(Debug)]
pub(super) struct Admission {
    pub proof: Proof,
    pub from: IpAddr,
    pub rule: Rule,
    /// Parameters of the path.
    pub path: HashMap<String, String>,
    pub uri: String,
    /// Whether the request asks for the objects of all users.
    pub wants_all: bool,
}

impl Admission {
    /// Returns the caller of an arriving request.
    ///
    /// # Errors
    /// If the caller cannot be identified, or lacks the right.
    pub(super) fn begin(self: &Arc<Admission>, app: &App) -> ApiResult<Caller> {
        let caller = caller::identify(app, self)?.ok_or_else(ApiError::unknown)?;
        // Checked only here: a download that started before its token expired continues.
        if caller.temporary.is_some_and(Timestamp::is_past) {
            return Err(ApiError::unknown());
        }
        self.allow(&app.store, &caller)?;
        Ok(caller)
    }

    /// Returns the caller of a request in progress, as of now.
    ///
    /// # Errors
    /// If the caller can no longer be identified or has lost the right, or if this webserver was revoked.
    pub(super) fn again(self: &Arc<Admission>, app: &App) -> ApiResult<Caller> {
        // A revoked webserver no longer learns of rights that were withdrawn elsewhere.
        if let Some(refusal) = app.store.replica().refusal() {
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, refusal.message()));
        }
        let caller = caller::identify(app, self)?.ok_or_else(ApiError::unknown)?;
        self.allow(&app.store, &caller)?;
        Ok(caller)
    }

    fn number(&self, name: &str) -> ApiResult<i32> {
        let text = self.path.get(name).map(String::as_str).unwrap_or_default();
        text.parse::<i32>().map_err(|_| ApiError::bad(format!("{text:?} is not a number")))
    }

    fn allow(&self, store: &Store, caller: &Caller) -> ApiResult<()> {
        self.check_password(store, caller)?;
        if caller.temporary.is_some() && !self.rule.is_download {
            return Err(ApiError::forbidden("a temporary token is valid only for downloads; use that of the session"));
        }
        if let Some(right) = self.rule.need.right() {
            check_right(right, caller)?;
        }
        let (is_allowed, whom) = match self.rule.need {
            AccessRequirement::Nobody | AccessRequirement::User(_) => (true, ""),
            AccessRequirement::Admin => (caller.person.admin, "administrators with a session"),
            AccessRequirement::SelfOrAdmin(_) => {
                (caller.is_self_or_admin(self.number("uid")?), "the user and administrators")
            }
            AccessRequirement::MemberOrAdmin(_) => {
                let is_member = caller.person.groups.contains(&self.number("gid")?);
                (caller.person.admin || is_member, "members of the group and administrators")
            }
        };
        if is_allowed { Ok(()) } else { Err(ApiError::forbidden(format!("only {whom} may do this"))) }
    }

    /// Rejects most requests of a session whose password must be changed first.
    fn check_password(&self, store: &Store, caller: &Caller) -> ApiResult<()> {
        if caller.session.is_none() {
            return Ok(());
        }
        let password = match store.get::<Password>(&caller.uid().to_string()) {
            Err(error @ StoreError::Invalid { .. }) => {
                tracing::warn!(%error, "account denied");
                return Err(ApiError::forbidden("your stored password is invalid; ask an administrator"));
            }
            password => password?,
        };
        let must_change = password.is_some_and(|password| password.value.must_change);
        if must_change && !is_open_before_change(&self.uri, caller.uid()) {
            let message = "change your password first; use PUT /api/users/{uid}/pwd";
            return Err(ApiError::forbidden(message).with("MustChangePassword", true));
        }
        Ok(())
    }
}

/// Returns whether a path is open to a session whose password must be changed first.
fn is_open_before_change(path: &str, uid: i32) -> bool {
    let own = format!("/api/users/{uid}/pwd");
    ["/api/info/whoami", "/api/settings", "/api/logout", "/api/testauth", own.as_str()]
        .contains(&path.trim_end_matches('/'))
}

fn check_right(right: Right, caller: &Caller) -> ApiResult<()> {
    let Some(token) = &caller.token else {
        return match right {
            Right::Capability(name) => caller.require(name),
            Right::OfToken(_) | Right::Any | Right::Session => Ok(()),
        };
    };
    match right {
        Right::Capability(name) => caller.require(name),
        Right::OfToken(name) if token.allows(name) => Ok(()),
        Right::OfToken(name) => {
            Err(ApiError::forbidden(format!("the token does not have the capability {name}")).with("Cap", name))
        }
        Right::Any if !token.capabilities.is_empty() => Ok(()),
        Right::Any => Err(ApiError::forbidden("the token has no capability")),
        Right::Session => Err(ApiError::forbidden("this requires a session; log in")),
    }
}

/// Waits until `may`, which is called at a fixed interval, returns false.
pub(super) fn unless<F>(app: &AppRef, may: F) -> impl Future<Output = ()> + Send + 'static + use<F>
where
    F: Fn(&App) -> bool + Send + 'static,
{
    // The future must not keep the webserver alive.
    let app = Arc::downgrade(app);
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + CHECK_EVERY, CHECK_EVERY);
    async move {
        loop {
            ticks.tick().await;
            if !app.upgrade().is_some_and(|app| may(&app)) {
                return;
            }
        }
    }
}

/// Waits until the caller loses the right to which they were admitted, or `may` returns false. A right that cannot be
/// read counts as lost.
pub(super) fn lost<F>(app: &AppRef, caller: &Caller, may: F) -> impl Future<Output = ()> + Send + 'static + use<F>
where
    F: Fn(&App, &Caller) -> bool + Send + 'static,
{
    let caller = caller.clone();
    unless(app, move |app| caller.again(app).is_ok_and(|caller| may(app, &caller)))
}

/// Like [`lost`], without an additional condition.
pub(super) fn ended(app: &AppRef, caller: &Caller) -> impl Future<Output = ()> + Send + 'static + use<> {
    lost(app, caller, |_, _| true)
}

/// Forwards the pieces of a file until `lost` completes; then fails, so that a partial file is not mistaken for a
/// whole one.
pub(super) fn until<S, E>(
    pieces: S,
    lost: impl Future<Output = ()> + Send,
) -> impl Stream<Item = io::Result<Bytes>> + Send
where
    S: Stream<Item = Result<Bytes, E>> + Send,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let start = Some((Box::pin(pieces), Box::pin(lost)));
    futures_util::stream::unfold(start, |state| async move {
        let (mut pieces, mut lost) = state?;
        tokio::select! {
            biased;
            () = &mut lost => {
                let error = io::Error::new(io::ErrorKind::PermissionDenied, "the caller lost access to this file");
                Some((Err(error), None))
            }
            piece = pieces.next() => Some((piece?.map_err(io::Error::other), Some((pieces, lost)))),
        }
    })
}
