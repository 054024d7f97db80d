//! Entity tags and the conditions on them in requests (RFC 9110, sections 8.8.3 and 13.1).

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, header};

use super::error::{ApiError, ApiResult};

/// Tags that a condition names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Named {
    /// `*`: any version of the object.
    Any,
    /// Tags including their quotes, and whether each is weak.
    Tags(Vec<(bool, String)>),
}

impl Named {
    fn has(&self, is_wanted: impl Fn(bool, &str) -> bool) -> bool {
        match self {
            Named::Any => true,
            Named::Tags(tags) => tags.iter().any(|(is_weak, tag)| is_wanted(*is_weak, tag)),
        }
    }
}

/// Splits the first tag off a list; `None` if the list does not start with one.
fn first_tag(list: &str) -> Option<((bool, String), &str)> {
    let (is_weak, quoted) = list.strip_prefix("W/").map_or((false, list), |rest| (true, rest));
    let end = quoted.strip_prefix('"')?.find('"')? + 2;
    let (tag, rest) = quoted.split_at(end);
    let rest = rest.trim_start();
    let rest = if rest.is_empty() { rest } else { rest.strip_prefix(',')? };
    Some(((is_weak, tag.to_owned()), rest.trim_start()))
}

/// Parses the value of a condition; `None` if it is malformed.
fn named(value: &str) -> Option<Named> {
    let mut rest = value.trim();
    if rest == "*" {
        return Some(Named::Any);
    }
    let mut tags = Vec::new();
    while !rest.is_empty() {
        let (tag, after) = first_tag(rest)?;
        tags.push(tag);
        rest = after;
    }
    (!tags.is_empty()).then_some(Named::Tags(tags))
}

/// Returns the value of a header that may occur several times; `None` if it is absent.
fn joined(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let values: Vec<&str> = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("not a text")).collect();
    (!values.is_empty()).then(|| values.join(", "))
}

/// The header `If-Match`: the client expects one of these versions. A malformed one is refused: without it the change
/// would be made unconditionally.
#[derive(Clone, Debug)]
pub(super) struct IfMatch(Option<Named>);

impl IfMatch {
    /// Returns whether the client expects a version.
    pub(super) fn is_given(&self) -> bool {
        self.0.is_some()
    }

    /// Returns whether the client accepts the version with this tag.
    pub(super) fn allows(&self, tag: &str) -> bool {
        self.0.as_ref().is_none_or(|named| named.has(|is_weak, known| !is_weak && known == tag))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> ApiResult<IfMatch> {
        let Some(value) = joined(&parts.headers, header::IF_MATCH) else { return Ok(IfMatch(None)) };
        let named = named(&value).ok_or_else(|| ApiError::bad("If-Match must be * or a list of entity tags"))?;
        Ok(IfMatch(Some(named)))
    }
}

/// The header `If-None-Match`: the client has these versions. A malformed one is ignored: the client gets the whole
/// response.
#[derive(Clone, Debug)]
pub(super) struct IfNoneMatch(Option<Named>);

impl IfNoneMatch {
    /// Reads the header.
    pub(super) fn of(headers: &HeaderMap) -> IfNoneMatch {
        IfNoneMatch(joined(headers, header::IF_NONE_MATCH).and_then(|value| named(&value)))
    }

    /// Returns whether the client has the version with this tag.
    pub(super) fn has(&self, tag: &str) -> bool {
        self.0.as_ref().is_some_and(|named| named.has(|_, known| known == tag))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for IfNoneMatch {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> ApiResult<IfNoneMatch> {
        Ok(IfNoneMatch::of(&parts.headers))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn parts(name: &str, values: &[&str]) -> Parts {
        let request = values.iter().fold(Request::get("/"), |request, value| request.header(name, *value));
        request.body(()).expect("a request").into_parts().0
    }

    #[tokio::test]
    async fn conditions_name_whole_tags() {
        let tag = "\"7-ab\"";
        let cases: [(&[&str], Option<bool>, bool); 12] = [
            (&[], Some(true), false),
            (&["*"], Some(true), true),
            (&[" \"7-ab\" "], Some(true), true),
            (&["\"x\", \"7-ab\""], Some(true), true),
            (&["\"x\"", "\"7-ab\""], Some(true), true),
            (&["\"x,\"7-ab\""], None, false),
            (&["\"17-ab\""], Some(false), false),
            (&["\"7-ab\"x"], None, false),
            (&["7-ab"], None, false),
            (&[""], None, false),
            (&["W/\"7-ab\""], Some(false), true),
            (&["\"a,b\" ,\"7-ab\""], Some(true), true),
        ];
        for (values, allowed, known) in cases {
            let found = IfMatch::from_request_parts(&mut parts("if-match", values), &()).await;
            assert_eq!(found.as_ref().ok().map(|found| found.allows(tag)), allowed, "If-Match {values:?}");
            assert_eq!(IfNoneMatch::of(&parts("if-none-match", values).headers).has(tag), known, "{values:?}");
        }
    }
}
