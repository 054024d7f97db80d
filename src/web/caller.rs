//! Who calls: a session, a token, or nobody.

use std::collections::HashSet;
use std::net::IpAddr;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};

use crate::objects::sessions::{self, Session};
use crate::objects::sharing::Person;
use crate::objects::store::Author;
use crate::objects::tokens::{self, Token};
use crate::objects::users::{self, Admin, Lock, User};
use crate::objects::{Record, Store};

use super::error::{ApiError, ApiResult};

/// Name of the cookie that browsers hold.
pub(super) const COOKIE: &str = "token";

/// A known caller.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub person: Person,
    pub user: String,
    pub session: Option<Record<Session>>,
    pub token: Option<Token>,
    /// Capabilities that were granted, where only these count.
    pub granted: Option<HashSet<String>>,
    /// Whether an administrator asks for everybody's objects.
    pub all: bool,
    pub from: IpAddr,
}

impl Caller {
    pub(super) fn uid(&self) -> i32 {
        self.person.uid
    }

    pub(super) fn author(&self) -> Author {
        Author { uid: self.person.uid, user: self.user.clone(), from: self.from.to_string(), ..Author::default() }
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
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    /// The guard has put it there.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> ApiResult<Caller> {
        parts.extensions.get::<Caller>().cloned().ok_or_else(ApiError::unknown)
    }
}

/// The token of a request: `Authorization`, the protocol of a web socket, or a cookie.
fn presented(headers: &HeaderMap) -> (Option<&str>, bool) {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = text(header::AUTHORIZATION).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    if let Some(token) = bearer.or_else(|| text(header::SEC_WEBSOCKET_PROTOCOL)) {
        return (Some(token), false);
    }
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    (pairs.filter(|(name, _)| *name == COOKIE).map(|(_, value)| value).next(), true)
}

/// A browser sends a cookie along with whatever another site makes it send: only reading is harmless then, and what a
/// page of our own asks for, which the browser says.
fn is_own_page(method: &Method, headers: &HeaderMap) -> bool {
    if method.is_safe() {
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

/// Who sends a request. What is decided here is looked up anew for every request, so that a logout, a lock or a deleted user
/// counts from the moment this webserver has it.
pub(super) fn identify(store: &Store, method: &Method, headers: &HeaderMap, from: IpAddr) -> ApiResult<Option<Caller>> {
    if let Some(value) = headers.get("gravwell-token") {
        let value = value.to_str().unwrap_or_default();
        let Some(token) = tokens::by_value(store, value)? else { return Ok(None) };
        let Some((person, user)) = known(store, token.value.uid)? else { return Ok(None) };
        // A token never opens what is for administrators.
        let person = Person { admin: false, ..person };
        return Ok(Some(Caller {
            person,
            user,
            session: None,
            token: Some(token.value),
            granted: None,
            all: false,
            from,
        }));
    }
    let (Some(token), is_cookie) = presented(headers) else { return Ok(None) };
    if is_cookie && !is_own_page(method, headers) {
        return Ok(None);
    }
    let Some(claims) = sessions::verified(store, token)? else { return Ok(None) };
    let Some(session) = sessions::live(store, claims.uid, &claims.session())? else { return Ok(None) };
    if claims.temporary && claims.expires.is_past() {
        return Ok(None);
    }
    let Some((person, user)) = known(store, claims.uid)? else { return Ok(None) };
    Ok(Some(Caller { person, user, session: Some(session), token: None, granted: None, all: false, from }))
}

/// Whether somebody who was let in may go on: the session exists, and the user is who they were.
pub(super) fn is_still_known(store: &Store, caller: &Caller) -> bool {
    let Some(session) = &caller.session else { return false };
    let is_live = sessions::live(store, caller.uid(), &session.value.id).is_ok_and(|live| live.is_some());
    let person = known(store, caller.uid());
    is_live && person.is_ok_and(|found| found.is_some_and(|(person, _)| person.admin == caller.person.admin))
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
        let cases: [(Pairs<'_>, Option<&str>, bool); 5] = [
            (&[("authorization", "Bearer a.b.c"), ("cookie", "token=x")], Some("a.b.c"), false),
            (&[("sec-websocket-protocol", "a.b.c")], Some("a.b.c"), false),
            (&[("cookie", "sticky=1; token=x")], Some("x"), true),
            (&[("authorization", "Basic eA==")], None, true),
            (&[], None, true),
        ];
        for (given, token, is_cookie) in cases {
            assert_eq!(presented(&headers(given)), (token, is_cookie), "{given:?}");
        }
    }

    #[test]
    fn another_site_cannot_make_a_browser_change_anything() {
        let cases: [(Method, Pairs<'_>, bool); 7] = [
            (Method::GET, &[("sec-fetch-site", "cross-site")], true),
            (Method::POST, &[("sec-fetch-site", "same-origin")], true),
            (Method::POST, &[("sec-fetch-site", "cross-site")], false),
            (Method::POST, &[("sec-fetch-site", "same-site")], false),
            (Method::DELETE, &[("origin", "https://w:8443"), ("host", "w:8443")], true),
            (Method::DELETE, &[("origin", "https://evil"), ("host", "w:8443")], false),
            (Method::PUT, &[("host", "w:8443")], false),
        ];
        for (method, given, wanted) in cases {
            assert_eq!(is_own_page(&method, &headers(given)), wanted, "{method} {given:?}");
        }
    }
}
