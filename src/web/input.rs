//! Parsing of request bodies and queries. Existing clients send any content type or none, names in any case, `null` for
//! unset fields, and no body for an empty request.

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::error::{ApiError, ApiResult};
use crate::objects::depth;

/// An unparsed body.
pub(super) struct Raw(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> ApiResult<Raw> {
        let body = Bytes::from_request(request, state).await.map_err(|rejection| {
            let is_slow = std::error::Error::source(&rejection).is_some_and(is_timeout);
            let status = if is_slow { StatusCode::REQUEST_TIMEOUT } else { rejection.status() };
            ApiError::new(status, rejection.body_text())
        });
        body.map(Raw)
    }
}

/// Returns whether an error was caused by a client that sends too slowly.
fn is_timeout(error: &(dyn std::error::Error + 'static)) -> bool {
    error.is::<tower_http::timeout::TimeoutError>() || error.source().is_some_and(is_timeout)
}

/// A JSON body whose names are read without regard to case: `T` names its fields in lower case.
pub(super) struct Input<T>(pub T);

/// Rejects JSON that is nested too deeply for its later readers.
pub(super) fn shallow(json: &[u8]) -> ApiResult<()> {
    if depth::is_deep(json) {
        return Err(ApiError::bad(format!("the body is nested more than {} levels deep", depth::DEPTH_MAX)));
    }
    Ok(())
}

pub(super) fn read<T: DeserializeOwned>(body: &[u8]) -> ApiResult<T> {
    let not_understood = |error: serde_json::Error| ApiError::bad(format!("invalid request body: {error}"));
    let body = if body.iter().all(u8::is_ascii_whitespace) { b"{}" } else { body };
    shallow(body)?;
    let fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(body).map_err(not_understood)?;
    let fields: BTreeMap<String, Box<RawValue>> = fields
        .into_iter()
        .filter(|(_, value)| value.get() != "null")
        .map(|(name, value)| (name.to_lowercase(), value))
        .collect();
    let text = serde_json::to_string(&fields).map_err(not_understood)?;
    serde_json::from_str(&text).map_err(not_understood)
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Input<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> ApiResult<Input<T>> {
        read(&Raw::from_request(request, state).await?.0).map(Input)
    }
}

/// Query parameters of all routes.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Wishes {
    pub refine: Option<String>,
    pub start: Option<usize>,
    pub end: Option<usize>,
    pub after: Option<String>,
    pub bytes: Option<usize>,
    pub trivial: Option<String>,
    pub collection: Option<String>,
    pub limit: Option<usize>,
    pub omit_sensitive: Option<String>,
    pub savedsearch: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Wishes {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> ApiResult<Wishes> {
        let query = Query::<Wishes>::from_request_parts(parts, state).await;
        query.map(|Query(wishes)| wishes).map_err(|rejection| ApiError::bad(rejection.body_text()))
    }
}

/// Returns whether a boolean query parameter is set.
pub(super) fn is_on(value: Option<&str>) -> bool {
    value.is_some_and(|value| value.is_empty() || value.eq_ignore_ascii_case("true") || value == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default)]
    struct Fields {
        name: Option<String>,
        gids: Option<Vec<i32>>,
    }

    #[test]
    fn names_in_any_case_null_and_nothing() {
        let cases = [
            (r#"{"Name":"a","GIDs":[1]}"#, Some("a"), Some(vec![1])),
            (r#"{"name":"a","gIDS":null,"other":{}}"#, Some("a"), None),
            (" ", None, None),
            ("", None, None),
        ];
        for (body, name, gids) in cases {
            let fields: Fields = read(body.as_bytes()).expect("reads");
            assert_eq!(fields, Fields { name: name.map(str::to_owned), gids });
        }
        let nested = |levels: usize| format!(r#"{{"other":{}{}}}"#, "[".repeat(levels - 1), "]".repeat(levels - 1));
        assert!(read::<Fields>(nested(64).as_bytes()).is_ok() && read::<Fields>(nested(65).as_bytes()).is_err());
        assert!(read::<Fields>(b"[1]").is_err() && read::<Fields>(br#"{"Name":1}"#).is_err());
    }

    #[test]
    fn switches() {
        assert!(is_on(Some("true")) && is_on(Some("TRUE")) && is_on(Some("")) && is_on(Some("1")));
        assert!(!is_on(None) && !is_on(Some("false")) && !is_on(Some("0")));
    }
}
