//! Identification of the caller of a request: by session, by API token, or not at all.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};

use gravwell_objects::capabilities;
use gravwell_objects::impersonation::Backing;
use gravwell_objects::record::{AsRead, Stored};
use gravwell_objects::restores;
use gravwell_objects::second_factors::Factor;
use gravwell_objects::sessions::{self, Claims, Session};
use gravwell_objects::sharing::Principal;
use gravwell_objects::standing::Standing;
use gravwell_objects::store::Author;
use gravwell_objects::tokens::{self, Token};
use gravwell_objects::users::{self, Admin, Lock, User};
use gravwell_objects::{Record, Store, Timestamp};

use gravwell_search::searches::Searcher;
use gravwell_search::source::READ_RESOURCES;

use super::admission::Admission;
use super::app::App;
use super::error::{ApiError, ApiResult};

/// Name of the cookie that browsers hold over plain HTTP, and that browser clients set for downloads.
pub(super) const COOKIE: &str = "token";
/// Name of the cookie over HTTPS. With the `__Host-` prefix a browser accepts it from this host only, so another host of
/// the domain cannot log a user in to an account of its choice.
pub(super) const HOST_COOKIE: &str = "__Host-token";

/// An identified caller, as of the time of identification. An operation that outlasts one response must identify the
/// caller again: see [`Caller::again`].
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub person: Principal,
    pub user: String,
    pub session: Option<Record<Session>>,
    pub token: Option<Token>,
    /// Epoch of the session or API token that the caller presented.
    pub epoch: Option<AsRead>,
    /// Administrators who act as this user in the session.
    pub behind: Vec<Backing>,
    /// Expiry of the download token, if the caller presented one.
    pub temporary: Option<Timestamp>,
    /// Granted capabilities; `None` if capabilities are not restricted for this caller.
    pub granted: Option<HashSet<String>>,
    /// Whether an administrator requests the objects of all users.
    pub all: bool,
    pub from: IpAddr,
    /// Credentials and scope with which the caller was admitted.
    pub(super) admission: Arc<Admission>,
}

impl Caller {
    pub(super) fn uid(&self) -> i32 {
        self.person.uid
    }

    pub(super) fn author(&self) -> Author {
        let su = self.session.as_ref().map(|session| session.value.su.clone()).unwrap_or_default();
        let standing = self.standing();
        let from = self.from.to_string();
        Author { uid: self.person.uid, user: self.user.clone(), from, su, standing, ..Author::default() }
    }

    fn standing(&self) -> Standing {
        Standing {
            uid: self.person.uid,
            session: self.session.as_ref().map(|session| session.value.key()),
            token: self.token.as_ref().map(Stored::key),
            makers: self.token.iter().flat_map(Token::maker_keys).collect(),
            epoch: self.epoch,
            is_admin: self.person.admin,
            behind: self.behind.clone(),
        }
    }

    /// Returns whether the caller is the user `uid`, or an administrator with this id who acts as another user.
    pub(super) fn is_or_acts_for(&self, uid: i32) -> bool {
        self.person.uid == uid || self.behind.iter().any(|one| one.uid == uid)
    }

    /// Rejects an action that only the user may perform when an administrator acts as the user: no credential may remain
    /// that acts as the user without the administrator.
    pub(super) fn refuse_acting(&self, what: &str) -> ApiResult<()> {
        match self.author().su.as_str() {
            "" => Ok(()),
            su => Err(ApiError::forbidden(format!("{su} acts as {}: {what}", self.user))),
        }
    }

    /// Returns the caller as the author of searches.
    pub(super) fn searcher(&self) -> Searcher {
        Searcher { person: self.person.clone(), reads_resources: self.has(READ_RESOURCES) }
    }

    /// Returns whether the caller is the user `uid` or an administrator.
    pub(super) fn is_self_or_admin(&self, uid: i32) -> bool {
        self.person.admin || self.person.uid == uid
    }

    /// Returns whether both the token (if any) and the grants (if restricted) allow a capability.
    pub(super) fn has(&self, capability: &str) -> bool {
        self.token.as_ref().is_none_or(|token| token.allows(capability))
            && self.granted.as_ref().is_none_or(|granted| granted.contains(capability))
    }

    pub(super) fn require(&self, capability: &str) -> ApiResult<()> {
        if self.has(capability) {
            return Ok(());
        }
        let whose = if self.token.is_some() { "the token does" } else { "you do" };
        let message = format!("{whose} not have the capability {capability}");
        Err(ApiError::forbidden(message).with("Cap", capability))
    }

    /// Rejects sharing with groups that the caller is not a member of. `before` lists the groups that already
    /// have access.
    pub(super) fn check_groups(&self, groups: &[i32], before: &[i32]) -> ApiResult<()> {
        let Some(foreign) = self.person.foreign_group(groups, before) else { return Ok(()) };
        let message = format!("you are not a member of group {foreign}; share with your own groups");
        Err(ApiError::forbidden(message))
    }

    /// Identifies the same caller again, by the same session or token, with the current role, groups, grants and locks.
    ///
    /// # Errors
    /// If the caller is no longer valid or would no longer be admitted.
    pub(super) fn again(&self, app: &App) -> ApiResult<Caller> {
        self.admission.again(app)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> ApiResult<Caller> {
        parts.extensions.get::<Caller>().cloned().ok_or_else(ApiError::unknown)
    }
}

/// How a token was presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// In a header set by the client.
    Header,
    /// In a cookie that only this webserver can have set.
    Cookie,
    /// In a cookie that another host may have set.
    AnyCookie,
}

/// Returns the token of a request, from `Authorization`, the WebSocket subprotocol, or a cookie.
fn presented(headers: &HeaderMap, is_plain_http: bool) -> (Option<&str>, Way) {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = text(header::AUTHORIZATION).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    if let Some(token) = bearer.or_else(|| text(header::SEC_WEBSOCKET_PROTOCOL)) {
        return (Some(token), Way::Header);
    }
    let cookie = |wanted: &str| {
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs = cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        pairs.find(|(name, _)| *name == wanted).map(|(_, value)| value)
    };
    match cookie(HOST_COOKIE) {
        Some(token) => (Some(token), Way::Cookie),
        None => (cookie(COOKIE), if is_plain_http { Way::Cookie } else { Way::AnyCookie }),
    }
}

/// Returns whether a request that carries a cookie is safe from cross-site request forgery. Browsers attach cookies to
/// requests made by other sites, so only reads are accepted, and requests that the browser marks as same-origin.
fn is_own_page(is_read: bool, headers: &HeaderMap) -> bool {
    if is_read {
        return true;
    }
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text(header::HeaderName::from_static("sec-fetch-site")) {
        return site == "same-origin";
    }
    let origin = text(header::ORIGIN).and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
    origin.is_some() && origin == text(header::HOST)
}

/// Returns whether the browser reports that the request comes from a page of another site. Such a request must not be
/// answered with a cookie, or the page could log a user in to an account of its choice.
pub(super) fn is_foreign_page(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").and_then(|value| value.to_str().ok());
    site.is_some_and(|site| !["same-origin", "none"].contains(&site))
}

/// Credential by which a caller is identified.
#[derive(Clone)]
pub(super) enum Proof {
    /// The value of an API token.
    Token(String),
    /// The token of a session.
    Session(String),
    /// The token of a session, if that is for downloads.
    Download(String),
}

impl std::fmt::Debug for Proof {
    /// Omits the value, which grants access to the account.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Proof::Token(_) => "Token",
            Proof::Session(_) => "Session",
            Proof::Download(_) => "Download",
        })
    }
}

impl Proof {
    /// Returns the credential of a request; `None` if a cookie comes from a page of another site and the request
    /// changes state.
    pub(super) fn shown(is_change: bool, method: &Method, headers: &HeaderMap, is_plain_http: bool) -> Option<Proof> {
        if let Some(value) = headers.get("gravwell-token") {
            return Some(Proof::Token(value.to_str().unwrap_or_default().to_owned()));
        }
        let (token, way) = presented(headers, is_plain_http);
        let is_read = method.is_safe() && !is_change;
        let token = token.filter(|_| way == Way::Header || is_own_page(is_read, headers))?.to_owned();
        Some(if way == Way::AnyCookie { Proof::Download(token) } else { Proof::Session(token) })
    }
}

/// Identifies a caller. Everything is looked up on each call, so that a logout, a lock or the deletion of a user takes
/// effect as soon as this webserver has applied it. This is the only place that identifies callers.
pub(super) fn identify(app: &App, admission: &Arc<Admission>) -> ApiResult<Option<Caller>> {
    let store = &app.store;
    let (uid, session, token, epoch, behind) = match &admission.proof {
        Proof::Token(value) => {
            let Some(tokens::Live { token, epoch }) = tokens::by_value(store, value)? else { return Ok(None) };
            (token.value.uid, None, Some(token.value), epoch, Vec::new())
        }
        Proof::Session(token) | Proof::Download(token) => {
            let Some(claims) = Claims::read(token) else { return Ok(None) };
            let live = sessions::live(store, claims.uid, &claims.session())?;
            let Some(sessions::Live { session, epoch, behind }) = live else { return Ok(None) };
            let is_for_downloads = matches!(admission.proof, Proof::Download(_));
            if is_for_downloads && !session.value.is_temporary() {
                return Ok(None);
            }
            if session.value.is_too_old(app.config.session_lifetime_s) {
                return Ok(None);
            }
            if !has_shown_enough(app, &session.value)? {
                return Ok(None);
            }
            (claims.uid, Some(session), None, epoch, behind)
        }
    };
    let temporary = session.as_ref().filter(|session| session.value.is_temporary());
    let temporary = temporary.map(|session| session.value.expires);
    let Some((person, user)) = known(store, uid)? else { return Ok(None) };
    let is_limited = app.config.capability_control && !person.admin;
    let granted = if is_limited { Some(capabilities::of_person(store, &person)?) } else { None };
    // A token never grants administrator access.
    let person = Principal { admin: person.admin && token.is_none(), ..person };
    if !person.admin && restores::is_unfinished(store)? {
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, restores::SHUT));
    }
    let all = admission.wants_all && person.admin;
    let (from, admission) = (admission.from, Arc::clone(admission));
    Ok(Some(Caller { person, user, session, token, epoch, behind, temporary, granted, all, from, admission }))
}

/// Returns whether a session was started with the second factor that is required here. The session may come from a
/// webserver that required none: one of an earlier version, or one configured without.
fn has_shown_enough(app: &App, session: &Session) -> ApiResult<bool> {
    if session.second_factor {
        return Ok(true);
    }
    // An administrator who acts as another user presents their own second factor.
    let uid = session.behind.first().map_or(session.uid, |first| first.uid);
    Ok(!(app.config.mfa_required || app.store.has::<Factor>(&uid.to_string())?))
}

/// Returns an existing, unlocked user with their role and groups, and their name.
pub(super) fn known(store: &Store, uid: i32) -> ApiResult<Option<(Principal, String)>> {
    let key = uid.to_string();
    // An account that cannot be decoded is denied; other accounts are unaffected.
    let Some(user) = store.valid::<User>(&key)? else { return Ok(None) };
    if store.has::<Lock>(&key)? {
        return Ok(None);
    }
    let admin = store.has::<Admin>(&key)?;
    Ok(Some((Principal { uid, admin, groups: users::groups_of(store, uid)? }, user.value.user)))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs<'a> = &'a [(&'a str, &'a str)];

    fn headers(pairs: Pairs<'_>) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            let name = header::HeaderName::from_bytes(name.as_bytes()).expect("name");
            (name, value.parse().expect("value"))
        });
        pairs.collect()
    }

    #[test]
    fn a_token_is_found_where_clients_put_it() {
        let cases: [(Pairs<'_>, Option<&str>, Way); 7] = [
            (&[("authorization", "Bearer a.b.c"), ("cookie", "token=x")], Some("a.b.c"), Way::Header),
            (&[("sec-websocket-protocol", "a.b.c")], Some("a.b.c"), Way::Header),
            (&[("cookie", "sticky=1; token=x")], Some("x"), Way::AnyCookie),
            (&[("cookie", "token=x; __Host-token=y")], Some("y"), Way::Cookie),
            (&[("cookie", "__Host-token=y")], Some("y"), Way::Cookie),
            (&[("authorization", "Basic eA==")], None, Way::AnyCookie),
            (&[], None, Way::AnyCookie),
        ];
        for (given, token, way) in cases {
            assert_eq!(presented(&headers(given), false), (token, way), "{given:?}");
            let way = if way == Way::AnyCookie { Way::Cookie } else { way };
            assert_eq!(presented(&headers(given), true), (token, way), "{given:?} over plain HTTP");
        }
    }

    #[test]
    fn p11_a_cookie_that_another_host_may_have_set_opens_downloads_alone() {
        let shown = |cookie: &str, is_plain_http: bool| {
            Proof::shown(false, &Method::GET, &headers(&[("cookie", cookie)]), is_plain_http)
        };
        assert!(matches!(shown("token=x", false), Some(Proof::Download(_))));
        assert!(matches!(shown("token=x; __Host-token=y", false), Some(Proof::Session(token)) if token == "y"));
        assert!(matches!(shown("token=x", true), Some(Proof::Session(_))), "plain HTTP uses the short cookie name");
    }

    #[test]
    fn another_site_cannot_make_a_browser_change_anything() {
        type Case<'a> = (bool, Method, Pairs<'a>, bool);
        let cases: [Case<'_>; 10] = [
            (false, Method::GET, &[("sec-fetch-site", "cross-site")], true),
            (true, Method::GET, &[("sec-fetch-site", "cross-site")], false),
            (true, Method::GET, &[], false),
            (true, Method::GET, &[("sec-fetch-site", "same-origin")], true),
            (false, Method::POST, &[("sec-fetch-site", "same-origin")], true),
            (false, Method::POST, &[("sec-fetch-site", "cross-site")], false),
            (false, Method::POST, &[("sec-fetch-site", "same-site")], false),
            (false, Method::DELETE, &[("origin", "https://w:8443"), ("host", "w:8443")], true),
            (false, Method::DELETE, &[("origin", "https://evil"), ("host", "w:8443")], false),
            (false, Method::PUT, &[("host", "w:8443")], false),
        ];
        for (is_change, method, given, wanted) in cases {
            let mut given = headers(given);
            // Only credentials that a browser attaches automatically require a same-origin page.
            given.insert(header::COOKIE, "token=x".parse().expect("value"));
            assert_eq!(Proof::shown(is_change, &method, &given, true).is_some(), wanted, "{method} {given:?}");
            given.insert(header::AUTHORIZATION, "Bearer x".parse().expect("value"));
            assert!(Proof::shown(is_change, &method, &given, true).is_some(), "{method} {given:?}");
        }
    }
}
