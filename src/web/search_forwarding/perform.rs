//! Operations on a search, performed at the webserver that holds its results.

use std::sync::Arc;

use axum::body::Bytes;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::body::{Bytestream, Download};
use crate::api::contents;
use crate::app::AppRef;
use crate::error::{ApiError, ApiResult};
use crate::request_input::at_most;
use crate::upload_quota;
use gravwell_objects::Timestamp;
use gravwell_objects::searches::Search;
use gravwell_objects::sharing::Principal;
use gravwell_objects::store::Author;
use gravwell_runtime::tasks::blocking;
use gravwell_runtime::tasks::shares::Share;
use gravwell_search::render::{About, Format};
use gravwell_search::results::{BUCKETS, Results};
use gravwell_search::row::Row;

/// Maximum number of rows in a page.
pub(crate) const PAGE_ROWS_MAX: usize = 4096;
/// Approximate maximum size of a page in bytes.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// Principal on whose behalf an operation is performed.
#[derive(Clone, Debug)]
pub(crate) struct Who {
    pub person: Principal,
    pub author: Author,
}

/// Operation on a search.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Deed {
    /// Returns the current search and its histogram.
    Status,
    /// Returns a page of rows.
    Rows { first: u64, count: usize, since: Option<Timestamp>, until: Option<Timestamp> },
    /// Returns all rows in a format.
    Download { format: String, since: Option<Timestamp>, until: Option<Timestamp> },
    /// Stops the search.
    Stop,
    /// Saves the results permanently.
    Save(Box<Saving>),
}

/// Attributes of saved results.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Saving {
    pub expires: Timestamp,
    pub started: Option<Timestamp>,
    pub method: Option<String>,
    pub reference: Option<String>,
    pub name: Option<String>,
    pub notes: Option<String>,
}

impl Deed {
    /// Returns whether the operation may last long: a file is sent as fast as it is read, and a search is saved when it
    /// has ended.
    pub(super) fn lasts(&self) -> bool {
        matches!(self, Deed::Download { .. } | Deed::Save(_))
    }

    /// Returns whether only the owner may perform the operation.
    pub(crate) fn is_change(&self) -> bool {
        matches!(self, Deed::Stop | Deed::Save(_))
    }
}

/// Result of an operation.
pub(crate) enum Answer {
    /// A JSON value.
    Value(Told),
    /// A file.
    File { kind: String, name: String, body: Bytestream },
}

impl Answer {
    /// Returns the value.
    ///
    /// # Errors
    /// If it is a file.
    pub(crate) fn told(self) -> ApiResult<Told> {
        match self {
            Answer::Value(told) => Ok(told),
            Answer::File { .. } => Err(ApiError::internal("the answer is a file")),
        }
    }
}

/// A JSON value as text. Another webserver may have sent it, so it is only decoded as the type that is expected.
pub(crate) struct Told {
    pub(super) text: Box<RawValue>,
    /// Memory reserved for a value of another webserver.
    _room: Option<Share>,
}

impl Told {
    pub(super) fn from_other(text: Box<RawValue>, room: Share) -> Told {
        Told { text, _room: Some(room) }
    }

    fn of<T: Serialize>(value: &T) -> ApiResult<Told> {
        Ok(Told { text: to_raw_value(value).map_err(ApiError::internal)?, _room: None })
    }

    /// Decodes the value.
    ///
    /// # Errors
    /// If it has another type.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> ApiResult<T> {
        serde_json::from_str(self.text.get()).map_err(ApiError::internal)
    }
}

impl IntoResponse for Told {
    fn into_response(self) -> Response {
        let text = Bytes::from(Box::<str>::from(self.text).into_string());
        ([(header::CONTENT_TYPE, "application/json")], text).into_response()
    }
}

/// State of a search, and the number of its rows in each interval of its time range.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Standing {
    #[serde(default, deserialize_with = "at_most::<BUCKETS, _, _>")]
    pub histogram: Vec<u64>,
    pub search: Search,
}

/// A page of rows.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Page {
    finished: bool,
    first: u64,
    #[serde(deserialize_with = "at_most::<PAGE_ROWS_MAX, _, _>")]
    pub rows: Vec<PageRow>,
    pub total: u64,
}

/// A row of a page.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct PageRow {
    /// JSON as text, so that the digits of numbers are preserved.
    pub json: String,
    #[serde(rename = "TS")]
    pub time: Timestamp,
    pub tag: String,
}

/// Returns the results of a search, which are on this webserver.
async fn results_here(app: &AppRef, who: &Who, search: &Search) -> ApiResult<Arc<Results>> {
    Ok(app.searches.results(search, who.person.uid).await?)
}

/// Performs an operation on a search whose results are on this webserver.
pub(crate) async fn perform(app: &AppRef, who: &Who, search: Search, deed: Deed) -> ApiResult<Answer> {
    match deed {
        Deed::Status => {
            let results = results_here(app, who, &search).await.ok();
            let search = app.searches.current(search);
            let histogram = results.map(|results| results.histogram()).unwrap_or_default();
            Ok(Answer::Value(Told::of(&Standing { histogram, search })?))
        }
        Deed::Rows { first, count, since, until } => {
            let results = results_here(app, who, &search).await?;
            let count = count.min(PAGE_ROWS_MAX);
            let range = since.zip(until).map(|(since, until)| (since.ns(), until.ns()));
            let place = app.searches.places().take(who.person.uid).await?;
            // Dropped with this request, so that reading of an abandoned page stops after the current block.
            let wanted = Arc::new(());
            let is_wanted = Arc::downgrade(&wanted);
            let page = tokio::task::spawn_blocking(move || {
                let page = page(&results, first, count, range, || is_wanted.strong_count() > 0);
                drop(place);
                page
            });
            let page = page.await;
            drop(wanted);
            let (rows, total, is_finished) = page.map_err(ApiError::internal)??;
            let told = blocking::run(|| {
                let rows = rows.iter().map(|row| shown(&search, row)).collect();
                Told::of(&Page { finished: is_finished, first, rows, total })
            });
            Ok(Answer::Value(told?))
        }
        Deed::Download { format, since, until } => {
            let format = Format::wanted(&format).map_err(ApiError::bad)?;
            let results = results_here(app, who, &search).await?;
            let range = match (since, until) {
                (None, None) => None,
                (since, until) => Some((since.map_or(i64::MIN, Timestamp::ns), until.map_or(i64::MAX, Timestamp::ns))),
            };
            let about = About { tags: search.tags.clone(), columns: search.columns.clone(), range };
            let name = format!("search-{}.{}", search.id, format.suffix());
            let (uid, places) = (who.person.uid, Arc::clone(app.searches.places()));
            let kind = format.content_type().into();
            let body = Download { results, about, format, uid, places }.begin()?;
            Ok(Answer::File { kind, name, body })
        }
        Deed::Stop => {
            app.searches.stop(&search.id).await;
            Ok(Answer::Value(Told::of(&())?))
        }
        Deed::Save(saving) => {
            let set = |search: &mut Search| apply(&saving, search);
            if let Some(live) = app.searches.live(&search.id) {
                live.ended().await;
            }
            if !search.is_saved() {
                let bytes = results_here(app, who, &search).await?.progress().bytes;
                contents::admit_saved(app, search.uid, bytes).await?;
                upload_quota::take(app, &who.person, bytes)?;
            }
            let saved = app.searches.save(&who.author, &search, saving.expires, set).await?;
            Ok(Answer::Value(Told::of(&Standing { histogram: Vec::new(), search: saved })?))
        }
    }
}

fn apply(saving: &Saving, search: &mut Search) {
    let set = |from: &Option<String>, to: &mut String| {
        if let Some(text) = from.as_ref().filter(|text| !text.is_empty()) {
            to.clone_from(text);
        }
    };
    set(&saving.method, &mut search.method);
    set(&saving.reference, &mut search.reference);
    set(&saving.name, &mut search.name);
    set(&saving.notes, &mut search.notes);
    if search.started.is_never() {
        search.started = saving.started.unwrap_or_default();
    }
}

/// Rows, the number of all rows, and whether more may follow.
type Rows = (Vec<Row>, u64, bool);

/// Returns rows by index; with a range, by index among the rows of the range.
fn page(
    results: &Results,
    first: u64,
    count: usize,
    range: Option<(i64, i64)>,
    is_wanted: impl Fn() -> bool,
) -> ApiResult<Rows> {
    let wrong = |error: gravwell_search::results::ResultsError| ApiError::internal(error);
    let progress = results.progress();
    let Some((since, until)) = range else {
        let rows = results.page(first, count, PAGE_BYTES_MAX).map_err(wrong)?;
        return Ok((rows, progress.rows, progress.is_finished));
    };
    let (mut rows, mut passed, mut bytes) = (Vec::new(), 0, 0);
    for number in (0..progress.blocks).filter(|number| results.may_hold(*number, since, until)) {
        if !is_wanted() {
            break;
        }
        for mut row in results.block(number).map_err(wrong)?.unwrap_or_default() {
            if !(since..until).contains(&row.time) {
                continue;
            }
            if passed >= first && rows.len() < count && bytes < PAGE_BYTES_MAX {
                bytes += row.data.len();
                // Copied, so that a few rows from many blocks do not keep all these blocks in memory.
                row.data = axum::body::Bytes::copy_from_slice(&row.data);
                rows.push(row);
            }
            passed += 1;
        }
    }
    Ok((rows, passed, progress.is_finished))
}

fn shown(search: &Search, row: &Row) -> PageRow {
    let tag = search.tags.get(usize::from(row.tag)).cloned().unwrap_or_default();
    let json = serde_json::from_slice::<&RawValue>(&row.data).map_or("null", RawValue::get).to_owned();
    PageRow { json, time: Timestamp::from_ns(row.time), tag }
}

impl From<gravwell_search::searches::SearchError> for ApiError {
    fn from(error: gravwell_search::searches::SearchError) -> ApiError {
        use gravwell_search::searches::SearchError;
        match error {
            SearchError::Query(error) => error.into(),
            SearchError::TooMany(_) => ApiError::new(StatusCode::TOO_MANY_REQUESTS, error),
            SearchError::Busy(_) | SearchError::Crowded => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error),
            SearchError::Forbidden(reason) => ApiError::forbidden(reason),
            SearchError::NotMember => ApiError::forbidden(error),
            SearchError::Archive(_) | SearchError::Text(_) => ApiError::bad(error),
            SearchError::Conflict(reason) => ApiError::conflict(reason),
            SearchError::Io(_) | SearchError::NoRoom(_) => ApiError::new(StatusCode::INSUFFICIENT_STORAGE, error),
            SearchError::Results(error) => ApiError::internal(error),
            SearchError::Commit(error) => error.into(),
            SearchError::Upload(error) => error.into(),
        }
    }
}

impl From<gravwell_search::query::QueryError> for ApiError {
    fn from(error: gravwell_search::query::QueryError) -> ApiError {
        ApiError::bad(&error).with("Column", error.column)
    }
}
