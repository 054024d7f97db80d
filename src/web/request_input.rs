//! Parsing of request bodies and queries. Existing clients send any content type or none, names in any case, `null` for
//! unset fields, and no body for an empty request.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use axum::RequestExt as _;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use futures_util::StreamExt as _;
use http_body_util::LengthLimitError;
use serde::Deserialize;
use serde::de::value::MapDeserializer;
use serde::de::{DeserializeOwned, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use tower_http::timeout::TimeoutError;

use super::api::system::JSON_BYTES_MAX;
use super::error::{ApiError, ApiResult};
use super::form;
use gravwell_objects::depth;
use gravwell_runtime::tasks::blocking;

/// Maximum number of fields of a body. Their values are bounded by the types that they are read into.
const FIELDS_MAX: usize = 1000;
/// Bodies that are larger are read such that other tasks continue meanwhile.
const LARGE_BYTES: usize = 64 << 10;

/// An unparsed body.
pub(super) struct Raw(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = ApiError;

    /// Copies what arrives into one buffer: received pieces occupy more than their length, and would do so together.
    async fn from_request(request: Request, _: &S) -> ApiResult<Raw> {
        let announced = form::announced(request.headers()).and_then(|bytes| usize::try_from(bytes).ok());
        let mut pieces = request.into_limited_body().into_data_stream();
        let mut body = Vec::new();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| {
                let status = match () {
                    () if is_caused_by::<TimeoutError>(&error) => StatusCode::REQUEST_TIMEOUT,
                    () if is_caused_by::<LengthLimitError>(&error) => StatusCode::PAYLOAD_TOO_LARGE,
                    () => StatusCode::BAD_REQUEST,
                };
                ApiError::new(status, format!("failed to receive the request body: {error}"))
            })?;
            if body.is_empty() {
                body.reserve(announced.unwrap_or_default().min(JSON_BYTES_MAX));
            }
            body.extend_from_slice(&piece);
        }
        Ok(Raw(body.into()))
    }
}

fn is_caused_by<E: std::error::Error + 'static>(error: &(dyn std::error::Error + 'static)) -> bool {
    error.is::<E>() || error.source().is_some_and(is_caused_by::<E>)
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

/// Fields of a body by their names in lower case, as text. Unset ones are `null`.
struct Fields<'a>(BTreeMap<String, &'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Fields<'a>, D::Error> {
        from.deserialize_map(FieldsVisitor).map(Fields)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = BTreeMap<String, &'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = BTreeMap::new();
        let mut count = 0;
        while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
            count += 1;
            if count > FIELDS_MAX {
                return Err(A::Error::custom(format!("more than {FIELDS_MAX} fields")));
            }
            fields.insert(name.to_lowercase(), value);
        }
        Ok(fields)
    }
}

/// Reads a body. What a client sends is kept as text until its type is known, because decoded JSON takes up to a hundred
/// times the memory of its text.
pub(super) fn read<T: DeserializeOwned>(body: &[u8]) -> ApiResult<T> {
    with_fields(body, |fields| {
        let set = fields.iter().filter(|(_, value)| value.get() != "null");
        T::deserialize(MapDeserializer::new(set.map(|(name, value)| (name.as_str(), *value)))).map_err(not_understood)
    })
}

fn not_understood(error: serde_json::Error) -> ApiError {
    ApiError::bad(format!("invalid request body: {error}"))
}

fn with_fields<T>(body: &[u8], take: impl FnOnce(BTreeMap<String, &RawValue>) -> ApiResult<T>) -> ApiResult<T> {
    let understood = || {
        let body = if body.iter().all(u8::is_ascii_whitespace) { b"{}" } else { body };
        shallow(body)?;
        let Fields(fields) = serde_json::from_slice(body).map_err(not_understood)?;
        take(fields)
    };
    if body.len() > LARGE_BYTES { blocking::run(understood) } else { understood() }
}

/// Members of a JSON body as text, by their names in lower case. Unlike in [`Input`], `null` is kept: it empties a
/// member, and an absent one stays as it is.
#[derive(Clone, Debug)]
pub(super) struct Given(BTreeMap<String, Box<RawValue>>);

impl Given {
    /// Returns a member as text; the name is in lower case.
    pub(super) fn raw(&self, name: &str) -> Option<&RawValue> {
        self.0.get(name).map(|value| &**value)
    }

    /// Returns a member; `null` is the default value.
    pub(super) fn member<T: DeserializeOwned + Default>(&self, name: &str) -> ApiResult<Option<T>> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        let value: Option<T> = serde_json::from_str(raw.get())
            .map_err(|error| ApiError::bad(format!("invalid request body: {name}: {error}")))?;
        Ok(Some(value.unwrap_or_default()))
    }

    /// Returns a member that cannot be emptied; `null` is the same as absent.
    pub(super) fn set<T: DeserializeOwned>(&self, name: &str) -> ApiResult<Option<T>> {
        self.member::<Option<T>>(name).map(Option::flatten)
    }
}

impl<S: Send + Sync> FromRequest<S> for Given {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> ApiResult<Given> {
        let body = Raw::from_request(request, state).await?.0;
        with_fields(&body, |fields| {
            Ok(Given(fields.into_iter().map(|(name, value)| (name, value.to_owned())).collect()))
        })
    }
}

/// Decodes a list of at most `N` elements; `null` is read as an empty one.
pub(super) fn at_most<'de, const N: usize, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Vec<T>, D::Error> {
    from.deserialize_option(Few::<N, T>(PhantomData))
}

struct Few<const N: usize, T>(PhantomData<T>);

impl<'de, const N: usize, T: Deserialize<'de>> Visitor<'de> for Few<N, T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {N} elements")
    }

    fn visit_none<E>(self) -> Result<Vec<T>, E> {
        Ok(Vec::new())
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Vec<T>, D::Error> {
        from.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
        let mut found = Vec::new();
        while let Some(item) = items.next_element()? {
            if found.len() >= N {
                return Err(A::Error::custom(format!("a list has more than {N} elements")));
            }
            found.push(item);
        }
        Ok(found)
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Input<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> ApiResult<Input<T>> {
        read(&Raw::from_request(request, state).await?.0).map(Input)
    }
}

/// Query parameters of all routes.
#[derive(Debug, Default, Deserialize)]
pub(super) struct QueryParams {
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

impl<S: Send + Sync> FromRequestParts<S> for QueryParams {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> ApiResult<QueryParams> {
        let query = Query::<QueryParams>::from_request_parts(parts, state).await;
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

    #[tokio::test]
    async fn a_body_is_received_up_to_its_limit() {
        let raw = |bytes: usize, announced: &'static str| {
            let request = Request::post("/").header("content-length", announced);
            Raw::from_request(request.body(vec![b'x'; bytes].into()).expect("a request"), &())
        };
        assert_eq!(raw(1 << 20, "7").await.expect("fits").0.len(), 1 << 20);
        assert_eq!(raw(10, "99999999999999999999").await.expect("fits").0.len(), 10);
        // The limit without a route.
        assert_eq!(raw(3 << 20, "1").await.err().map(|error| error.status()), Some(StatusCode::PAYLOAD_TOO_LARGE));
    }

    #[test]
    fn p15_a_body_has_few_fields_and_its_unknown_ones_cost_nothing() {
        let body = |count: usize| {
            let fields: Vec<String> = (0..count).map(|number| format!("\"x{number}\":0")).collect();
            format!("{{{}}}", fields.join(","))
        };
        assert!(read::<Fields>(body(FIELDS_MAX).as_bytes()).is_ok());
        let error = read::<Fields>(body(3_000_000).as_bytes()).expect_err("is refused");
        assert!(error.message().contains("fields"), "{}", error.message());
        let many = format!("{{\"Name\":\"a\",\"other\":[{}0]}}", "{\"a\":0},".repeat(100_000));
        assert_eq!(read::<Fields>(many.as_bytes()).expect("reads").name.as_deref(), Some("a"));
        #[derive(Debug, Deserialize)]
        struct List {
            #[serde(deserialize_with = "at_most::<2, _, _>", default)]
            list: Vec<u8>,
        }
        let list = |text: &str| read::<List>(text.as_bytes()).map(|list| list.list);
        assert_eq!(list("{\"List\":[1,2]}").expect("reads"), [1, 2]);
        assert!(list("{}").expect("reads").is_empty() && list("{\"List\":null}").expect("reads").is_empty());
        assert!(list("{\"List\":[1,2,3]}").is_err());
    }

    #[tokio::test]
    async fn null_empties_a_member_and_an_absent_one_stays_as_it_is() {
        let given =
            |body: &'static str| Given::from_request(Request::post("/").body(body.into()).expect("is one"), &());
        let given = given(r#"{"Labels":null,"NAME":"a","Data":{"B":null},"UID":null}"#).await.expect("reads");
        assert_eq!(given.member::<Vec<String>>("labels").expect("a list"), Some(vec![]));
        assert_eq!(given.member::<Vec<i32>>("gids").expect("a list"), None);
        assert_eq!(given.set::<String>("name").expect("a text").as_deref(), Some("a"));
        assert_eq!(given.set::<i32>("uid").expect("a number"), None);
        assert_eq!(given.raw("data").map(RawValue::get), Some(r#"{"B":null}"#));
        assert!(given.member::<Vec<i32>>("name").is_err());
    }

    #[test]
    fn switches() {
        assert!(is_on(Some("true")) && is_on(Some("TRUE")) && is_on(Some("")) && is_on(Some("1")));
        assert!(!is_on(None) && !is_on(Some("false")) && !is_on(Some("0")));
    }
}
