//! Whom a route serves, and the one function that decides it: when a request arrives, and again for as long as its answer
//! lasts.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::StatusCode;
use futures_util::{Stream, StreamExt as _};

use crate::objects::passwords::Password;
use crate::objects::{Moment, Store, StoreError};

use super::app::{App, AppRef};
use super::caller::{self, Caller, Proof};
use super::error::{ApiError, ApiResult};

/// The right to an answer that lasts is checked this often, whatever happens on it.
const CHECK_EVERY: Duration = Duration::from_secs(2);

/// What a caller must have beside being known. Tokens pass nowhere unless a row says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    /// This capability: a token needs it, and a user, where capabilities are controlled.
    Capability(&'static str),
    /// A token needs this capability, a user none.
    OfToken(&'static str),
    /// A token needs a capability, whichever; a user none.
    Any,
    /// A session: tokens never pass.
    Session,
}

/// Whom a route serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Everybody, known or not.
    Nobody,
    /// Every user.
    User(Right),
    /// Administrators with a session.
    Admin,
    /// The user of the path's `{uid}`, and administrators.
    SelfOrAdmin(Right),
    /// Members of the path's `{gid}`, and administrators.
    MemberOrAdmin(Right),
}

impl Need {
    /// What a known caller must have; tokens never pass as administrators.
    pub(super) fn right(self) -> Option<Right> {
        match self {
            Need::Nobody => None,
            Need::Admin => Some(Right::Session),
            Need::User(right) | Need::SelfOrAdmin(right) | Need::MemberOrAdmin(right) => Some(right),
        }
    }
}

/// What the table says of a route, for the guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub need: Need,
    /// Whether it gives a file: only that is open to temporary tokens.
    pub is_download: bool,
    /// Whether it changes something although its method says that it only reads.
    pub is_change: bool,
}

/// What a request showed and asked for.
#[derive(Debug)]
pub(super) struct Admission {
    pub proof: Proof,
    pub from: IpAddr,
    pub rule: Rule,
    /// Parameters of the path.
    pub path: HashMap<String, String>,
    pub uri: String,
    /// Whether it asks for everybody's objects.
    pub wants_all: bool,
}

impl Admission {
    /// The caller of a request that arrives.
    ///
    /// # Errors
    /// When the caller is not known, or may not do this.
    pub(super) fn begin(self: &Arc<Admission>, app: &App) -> ApiResult<Caller> {
        let caller = caller::identify(app, self)?.ok_or_else(ApiError::unknown)?;
        // A download that began in time goes on.
        if caller.temporary.is_some_and(Moment::is_past) {
            return Err(ApiError::unknown());
        }
        self.allow(&app.store, &caller)?;
        Ok(caller)
    }

    /// The caller of a request that is being answered, as of now.
    ///
    /// # Errors
    /// When the caller is no longer known, or may not do this any more, or this webserver was revoked.
    pub(super) fn again(self: &Arc<Admission>, app: &App) -> ApiResult<Caller> {
        // What is lost elsewhere is not known here any more.
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
            return Err(ApiError::forbidden("a temporary token opens downloads only: use that of the session"));
        }
        if let Some(right) = self.rule.need.right() {
            check_right(right, caller)?;
        }
        let (is_allowed, whom) = match self.rule.need {
            Need::Nobody | Need::User(_) => (true, ""),
            Need::Admin => (caller.person.admin, "administrators, with a session of their own,"),
            Need::SelfOrAdmin(_) => {
                (caller.is_self_or_admin(self.number("uid")?), "the user concerned and administrators")
            }
            Need::MemberOrAdmin(_) => {
                let is_member = caller.person.groups.contains(&self.number("gid")?);
                (caller.person.admin || is_member, "members of the group and administrators")
            }
        };
        if is_allowed { Ok(()) } else { Err(ApiError::forbidden(format!("only {whom} may do this"))) }
    }

    /// A session whose password must be changed first may do little else.
    fn check_password(&self, store: &Store, caller: &Caller) -> ApiResult<()> {
        if caller.session.is_none() {
            return Ok(());
        }
        let password = match store.get::<Password>(&caller.uid().to_string()) {
            Err(error @ StoreError::Invalid { .. }) => {
                tracing::warn!(%error, "an account is denied");
                return Err(ApiError::forbidden("what is kept of your password is invalid: ask an administrator"));
            }
            password => password?,
        };
        let must_change = password.is_some_and(|password| password.value.must_change);
        if must_change && !is_open_before_change(&self.uri, caller.uid()) {
            let message = "change your password first: PUT /api/users/{uid}/pwd";
            return Err(ApiError::forbidden(message).with("MustChangePassword", true));
        }
        Ok(())
    }
}

/// What a session may do whose password must be changed first.
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
        Right::Session => Err(ApiError::forbidden("this needs a session: tokens cannot do it")),
    }
}

/// Waits until `may` says no: it is asked at a fixed interval.
pub(super) fn unless<F>(app: &AppRef, may: F) -> impl Future<Output = ()> + Send + 'static + use<F>
where
    F: Fn(&App) -> bool + Send + 'static,
{
    // Nothing of the webserver is held meanwhile.
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

/// Waits until the caller has lost the right to what they were let in for, or what `may` asks for beside it. What cannot be
/// read cannot be allowed.
pub(super) fn lost<F>(app: &AppRef, caller: &Caller, may: F) -> impl Future<Output = ()> + Send + 'static + use<F>
where
    F: Fn(&App, &Caller) -> bool + Send + 'static,
{
    let caller = caller.clone();
    unless(app, move |app| caller.again(app).is_ok_and(|caller| may(app, &caller)))
}

/// As [`lost`], for what depends on nothing else.
pub(super) fn ended(app: &AppRef, caller: &Caller) -> impl Future<Output = ()> + Send + 'static + use<> {
    lost(app, caller, |_, _| true)
}

/// The pieces of a file until `lost`; then it breaks off, so that its part is not taken for the whole.
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
                let error = io::Error::new(io::ErrorKind::PermissionDenied, "the caller lost the right to this file");
                Some((Err(error), None))
            }
            piece = pieces.next() => Some((piece?.map_err(io::Error::other), Some((pieces, lost)))),
        }
    })
}
