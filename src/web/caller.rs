//! Who calls: a session, a token, or nobody.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};

use crate::objects::behind::Backing;
use crate::objects::capabilities;
use crate::objects::record::{AsRead, Stored};
use crate::objects::second_factors::Factor;
use crate::objects::sessions::{self, Claims, Session};
use crate::objects::sharing::Person;
use crate::objects::standing::Standing;
use crate::objects::store::Author;
use crate::objects::tokens::{self, Token};
use crate::objects::users::{self, Admin, Lock, User};
use crate::objects::{Moment, Record, Store};

use crate::search::searches::Searcher;
use crate::search::source::READ_RESOURCES;

use super::admission::Admission;
use super::app::App;
use super::error::{ApiError, ApiResult};

/// Name of the cookie that browsers hold over plain HTTP, and that clients of theirs set for downloads.
pub(super) const COOKIE: &str = "token";
/// The same over HTTPS. A browser takes a cookie of such a name from this host alone, so that no other one of the domain puts it
/// under a login of its choosing.
pub(super) const HOST_COOKIE: &str = "__Host-token";

/// A known caller, as of the moment at which the caller was identified. Whatever lasts longer than one answer identifies the
/// caller again: see [`Caller::again`].
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub person: Person,
    pub user: String,
    pub session: Option<Record<Session>>,
    pub token: Option<Token>,
    /// The epoch of sessions, or of tokens, to which the one that was shown belongs.
    pub epoch: Option<AsRead>,
    /// The administrators who act as this user in the session.
    pub behind: Vec<Backing>,
    /// The end of a token for one download, if the caller has shown one.
    pub temporary: Option<Moment>,
    /// Capabilities that were granted, where only these count.
    pub granted: Option<HashSet<String>>,
    /// Whether an administrator asks for everybody's objects.
    pub all: bool,
    pub from: IpAddr,
    /// By what the caller was let in, and to what.
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

    /// Whether somebody is behind the caller: the user, or an administrator who acts as the user.
    pub(super) fn is_or_acts_for(&self, uid: i32) -> bool {
        self.person.uid == uid || self.behind.iter().any(|one| one.uid == uid)
    }

    /// Refuses an administrator who acts as the user what only the user may do: nothing is left behind that would act as the user
    /// alone.
    pub(super) fn refuse_acting(&self, what: &str) -> ApiResult<()> {
        match self.author().su.as_str() {
            "" => Ok(()),
            su => Err(ApiError::forbidden(format!("{su} acts as {}: {what}", self.user))),
        }
    }

    /// The caller as one who searches.
    pub(super) fn searcher(&self) -> Searcher {
        Searcher { person: self.person.clone(), reads_resources: self.has(READ_RESOURCES) }
    }

    /// Whether this is the user, or an administrator.
    pub(super) fn is_self_or_admin(&self, uid: i32) -> bool {
        self.person.admin || self.person.uid == uid
    }

    /// Whether the caller has a capability: their token, if there is one, and what was granted, where that counts.
    pub(super) fn has(&self, capability: &str) -> bool {
        self.token.as_ref().is_none_or(|token| token.allows(capability))
            && self.granted.as_ref().is_none_or(|granted| granted.contains(capability))
    }

    /// Refuses a caller without a capability.
    pub(super) fn require(&self, capability: &str) -> ApiResult<()> {
        if self.has(capability) {
            return Ok(());
        }
        let whose = if self.token.is_some() { "the token does" } else { "you do" };
        let message = format!("{whose} not have the capability {capability}");
        Err(ApiError::forbidden(message).with("Cap", capability))
    }

    /// Refuses sharing with groups of others. `before` is what it was shared with already.
    pub(super) fn check_groups(&self, groups: &[i32], before: &[i32]) -> ApiResult<()> {
        let Some(foreign) = self.person.foreign_group(groups, before) else { return Ok(()) };
        let message = format!("you are no member of group {foreign}: share with your own groups");
        Err(ApiError::forbidden(message))
    }

    /// The same caller as of now: known by the same session or token, with today's role, groups, grants and locks.
    ///
    /// # Errors
    /// When the caller is no longer known, or would not be let in any more.
    pub(super) fn again(&self, app: &App) -> ApiResult<Caller> {
        self.admission.again(app)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    /// The guard has put it there.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> ApiResult<Caller> {
        parts.extensions.get::<Caller>().cloned().ok_or_else(ApiError::unknown)
    }
}

/// How a token was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// By the client itself.
    Header,
    /// By a browser, which has it from this webserver.
    Cookie,
    /// By a browser, which may have it from another host.
    AnyCookie,
}

/// The token of a request: `Authorization`, the protocol of a web socket, or a cookie.
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

/// A browser sends a cookie along with whatever another site makes it send: only reading is harmless then, and what a
/// page of our own asks for, which the browser says.
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

/// Whether a browser says that a page from elsewhere asks: it is to be given no cookie, or it could put somebody under
/// a login of its choosing.
pub(super) fn is_foreign_page(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").and_then(|value| value.to_str().ok());
    site.is_some_and(|site| !["same-origin", "none"].contains(&site))
}

/// By what a caller is known.
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
    /// Without the value, which opens the account.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Proof::Token(_) => "Token",
            Proof::Session(_) => "Session",
            Proof::Download(_) => "Download",
        })
    }
}

impl Proof {
    /// What a request shows; nothing when a cookie comes from a page of another site and the request changes something.
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

/// Identifies a caller. All of it is looked up each time, so that a logout, a lock or a deleted user counts from the moment
/// this webserver has it. The only place where that is done.
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
    // A token never opens what is for administrators.
    let person = Person { admin: person.admin && token.is_none(), ..person };
    let all = admission.wants_all && person.admin;
    let (from, admission) = (admission.from, Arc::clone(admission));
    Ok(Some(Caller { person, user, session, token, epoch, behind, temporary, granted, all, from, admission }))
}

/// Whether a session was begun with the second factor that is asked for here. It may be of a webserver that asked for none:
/// one of an earlier version, or one where none is required.
fn has_shown_enough(app: &App, session: &Session) -> ApiResult<bool> {
    if session.second_factor {
        return Ok(true);
    }
    // Who acts as another user shows their own.
    let uid = session.behind.first().map_or(session.uid, |first| first.uid);
    Ok(!(app.config.mfa_required || app.store.has::<Factor>(&uid.to_string())?))
}

/// A user who exists and is not locked, as an administrator or not and with groups, and the name.
pub(super) fn known(store: &Store, uid: i32) -> ApiResult<Option<(Person, String)>> {
    let key = uid.to_string();
    // An account that is not understood is denied; nobody else is.
    let Some(user) = store.valid::<User>(&key)? else { return Ok(None) };
    if store.has::<Lock>(&key)? {
        return Ok(None);
    }
    let admin = store.has::<Admin>(&key)?;
    Ok(Some((Person { uid, admin, groups: users::groups_of(store, uid)? }, user.value.user)))
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
        assert!(matches!(shown("token=x", true), Some(Proof::Session(_))), "it has no other name there");
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
            // Only what a browser sends along by itself needs a page of our own.
            given.insert(header::COOKIE, "token=x".parse().expect("value"));
            assert_eq!(Proof::shown(is_change, &method, &given, true).is_some(), wanted, "{method} {given:?}");
            given.insert(header::AUTHORIZATION, "Bearer x".parse().expect("value"));
            assert!(Proof::shown(is_change, &method, &given, true).is_some(), "{method} {given:?}");
        }
    }
}
