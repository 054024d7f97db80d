//! Routes to parse queries, to run queries with immediate results, and to list tags.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::searchctrl::file;
use crate::admission;
use crate::app::AppRef;
use crate::authorization::{AccessRequirement, Right};
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::request_input::{self, at_most};
use crate::route::{Route, get, post};
use crate::search_forwarding::{Answer, Deed, Who, perform};
use gravwell_objects::Timestamp;
use gravwell_search::client_filters::Condition;
use gravwell_search::query::{self, QueryError, read_span};
use gravwell_search::render::Format;
use gravwell_search::searches::{Launch, SearchError};
use gravwell_search::source;

pub(crate) fn routes() -> Vec<Route> {
    use AccessRequirement::User;
    use Right::{Capability, OfToken};
    vec![
        get("/api/tags", User(OfToken("Search")), "Lists the tags that can be searched.", tags),
        post("/api/parse", User(Capability("Search")), "Checks whether a query is valid.", parse),
        post("/api/search/direct", User(Capability("Search")), "Runs a query and streams its results.", direct),
    ]
}

async fn tags(State(app): State<AppRef>, caller: Caller) -> ApiResult<Json<Value>> {
    Ok(Json(json!(source::tags(&app.searches.around(&caller.searcher())?))))
}

/// Maximum number of filters that are decoded; a query may have fewer.
pub(crate) const FILTERS_MAX: usize = 256;

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Parse {
    searchstring: String,
    sequence: u64,
    #[serde(deserialize_with = "at_most::<FILTERS_MAX, _, _>")]
    filters: Vec<Condition>,
}

/// Checks a query and returns the result as JSON.
pub(crate) async fn judged(app: &AppRef, caller: &Caller, wish: Parse) -> ApiResult<Value> {
    let Parse { searchstring: text, sequence, filters } = wish;
    let checked = app.searches.check(&caller.searcher(), &text, &filters).await;
    let mut answer = json!({
        "Sequence": sequence,
        "GoodQuery": checked.is_ok(),
        "ParsedQuery": text,
        "RawQuery": text,
        "ModuleIndex": 0,
        "CollapsingIndex": -1,
        "TimeZoomDisabled": true,
        "Tags": null,
        "ModuleHints": [],
    });
    match checked {
        Ok(query) => {
            answer["ParsedQuery"] = query.text.as_str().into();
            answer["RenderModule"] = query.renderer().into();
            answer["Tags"] = query.tags.iter().map(|tag| tag.name.as_str()).collect();
        }
        Err(SearchError::Query(QueryError { column, message })) => {
            answer["ParseError"] = message.into();
            answer["Column"] = column.into();
        }
        // The query itself is not at fault, so the client may retry.
        Err(error) => return Err(error.into()),
    }
    Ok(answer)
}

/// Parameters of a request, which may be in a header, the URL or the body.
struct RequestParams {
    headers: HeaderMap,
    url: HashMap<String, String>,
    body: HashMap<String, Box<RawValue>>,
}

impl RequestParams {
    fn new(headers: HeaderMap, url: HashMap<String, String>, body: &[u8]) -> ApiResult<RequestParams> {
        Ok(RequestParams { headers, url, body: request_input::read(body)? })
    }

    fn of(&self, name: &str, in_body: &str) -> Option<String> {
        let header = self.headers.get(name).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
        let said = header.or(self.url.get(name).map(String::as_str)).map(str::to_owned);
        let body = || self.body.get(in_body).and_then(|text| serde_json::from_str::<String>(text.get()).ok());
        said.or_else(body).filter(|text| !text.is_empty())
    }
}

async fn parse(
    State(app): State<AppRef>,
    caller: Caller,
    headers: HeaderMap,
    Query(url): Query<HashMap<String, String>>,
    body: Bytes,
) -> ApiResult<Json<Value>> {
    let wish: Parse = request_input::read(&body)?;
    let said = RequestParams::new(headers, url, b"")?;
    let searchstring = said.of("query", "").unwrap_or_else(|| wish.searchstring.clone());
    Ok(Json(judged(&app, &caller, Parse { searchstring, ..wish }).await?))
}

fn range(said: &RequestParams) -> ApiResult<(Option<Timestamp>, Option<Timestamp>)> {
    let now = Timestamp::now();
    let time = |text: Option<String>| text.map(|text| query::read_time(&text, now).map_err(ApiError::bad)).transpose();
    let (start, end) = (time(said.of("start", "searchstart"))?, time(said.of("end", "searchend"))?);
    let Some(duration) = said.of("duration", "duration") else { return Ok((start, end)) };
    let wrong = || ApiError::bad(format!("duration: {duration:?} is not a duration; use for example 1h or 30m"));
    let span = read_span(duration.trim_start_matches('-')).ok_or_else(wrong)?;
    let end = end.unwrap_or(now);
    Ok((Some(Timestamp::from_ns(end.ns().saturating_sub(span))), Some(end)))
}

async fn direct(
    State(app): State<AppRef>,
    caller: Caller,
    headers: HeaderMap,
    Query(url): Query<HashMap<String, String>>,
    body: Bytes,
) -> ApiResult<Response> {
    let said = RequestParams::new(headers, url, &body)?;
    let query = said.of("query", "searchstring").ok_or_else(|| ApiError::bad("query is missing"))?;
    let format =
        said.of("format", "format").ok_or_else(|| ApiError::bad("format is missing; use text, json or csv"))?;
    Format::wanted(&format).map_err(ApiError::bad)?;
    let (since, until) = range(&said)?;
    let parsed = query::parse(&query, Timestamp::now())?;
    if (since.is_none() || until.is_none()) && (parsed.since.is_none() || parsed.until.is_none()) {
        return Err(ApiError::bad(
            "time range is missing; set start and end, or duration, or since= and until= in the query",
        ));
    }
    let launch = Launch { query, since, until, method: "directquery".into(), ..Launch::default() };
    let passing = app.searches.launch_passing(&caller.searcher(), &caller.author(), launch).await?;
    let live = Arc::clone(passing.live());
    let search = live.search();
    let deed = Deed::Download { format, since: None, until: None };
    // Waits briefly, so that immediate failures are reported as errors instead of an empty file.
    let _ = tokio::time::timeout(std::time::Duration::from_millis(300), live.ended()).await;
    let standing = live.search();
    if standing.state == gravwell_objects::searches::State::Failed && standing.rows == 0 {
        return Err(ApiError::new(axum::http::StatusCode::SERVICE_UNAVAILABLE, standing.error));
    }
    let Answer::File { kind, name, body } = perform(&app, &Who::from(&caller), search, deed).await? else {
        return Err(ApiError::internal("download has no file"));
    };
    use futures_util::StreamExt as _;
    let body = Box::pin(body.map(move |item| {
        let _until_all_is_given = &passing;
        item
    }));
    Ok(file(Answer::File { kind, name, body }, admission::ended(&app, &caller)))
}
