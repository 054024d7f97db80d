//! Routes of stored searches: listing, viewing, downloading, sharing, saving and deleting.

use std::cmp::Reverse;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::queries::FILTERS_MAX;
use super::{DONE, invalid, search_commands};
use crate::admission;
use crate::app::{App, AppRef};
use crate::authorization::{AccessRequirement, Right};
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::listing::List;
use crate::request_input::{self, Input, at_most};
use crate::route::{Route, delete, get, patch, post, put};
use crate::search_forwarding::{self, Answer, Deed, Standing, Told, Who};
use gravwell_objects::groups::Group;
use gravwell_objects::searches::{Imported, Search, State as Progress};
use gravwell_objects::sharing::Shareable;
use gravwell_objects::{Record, Stored, Timestamp, names};
use gravwell_search::client_filters::Condition;
use gravwell_search::render::Format;
use gravwell_search::searches::{Launch, SearchError};

/// Maximum length of a reference in characters, and of the client's metadata in bytes.
const REFERENCE_CHARS_MAX: usize = 4096;
const METADATA_BYTES_MAX: usize = 64 << 10;
/// Maximum size of metadata that is shown: of so many characters, each of up to four bytes.
const METADATA_SHOWN_BYTES_MAX: usize = 4 * METADATA_BYTES_MAX;

/// Interval in seconds at which clients ping a search that they view; this webserver does not depend on it.
const REFRESH_S: u32 = 30;

pub(crate) fn routes() -> Vec<Route> {
    use AccessRequirement::{Admin, User};
    use Right::Capability;
    let attach = User(Capability("AttachSearch"));
    // The right to view a search does not include stopping it.
    let search = User(Capability("Search"));
    vec![
        get("/api/searchctrl", attach, "Lists the searches that the caller may see.", list),
        get("/api/searchctrl/all", Admin, "Lists the searches of all users.", list_all),
        get(
            "/api/searchctrl/details",
            attach,
            "Lists the searches that the caller may see, with details.",
            list_details,
        ),
        post("/api/searchctrl/launch", User(Capability("Search")), "Starts a search.", launch),
        get("/api/searchctrl/{id}", attach, "Returns the state of a search.", show),
        delete("/api/searchctrl/{id}", search, "Deletes a search and its results.", remove),
        get("/api/searchctrl/{id}/details", attach, "Returns a search with details.", details),
        get("/api/searchctrl/{id}/attach", attach, "Returns the data required to attach to a search.", attached),
        put("/api/searchctrl/{id}/ping", attach, "Attaches to a search.", ping),
        put("/api/searchctrl/{id}/detach", attach, "Detaches from a search.", detach),
        patch(
            "/api/searchctrl/{id}/background",
            User(Capability("BackgroundSearch")),
            "Moves a search to the background.",
            background,
        ),
        patch(
            "/api/searchctrl/{id}/save",
            User(Capability("SaveSearch")),
            "Saves results permanently at all webservers.",
            save,
        ),
        put("/api/searchctrl/{id}/stop", search, "Stops a search and keeps its results so far.", stop),
        put(
            "/api/searchctrl/{id}/group",
            User(Capability("SetSearchGroup")),
            "Shares a search with one group.",
            set_group,
        ),
        put(
            "/api/searchctrl/{id}/groups",
            User(Capability("SetSearchGroup")),
            "Shares a search with groups.",
            set_groups,
        ),
        put("/api/searchctrl/{id}/global", Admin, "Shares a search with all users.", set_global),
        get("/api/searchctrl/{id}/rows", attach, "Returns some rows of the results.", rows),
        get("/api/searchctrl/{id}/stats", attach, "Returns the number of rows in each time interval.", overview),
        get(
            "/api/searchctrl/{id}/stats/overview",
            attach,
            "Returns the number of rows in each time interval.",
            overview,
        ),
        get(
            "/api/searchctrl/{id}/renderer/{renderer}",
            attach,
            "Returns rows in the format of the web socket.",
            rendered,
        ),
        get(
            "/api/searchctrl/{id}/renderer/{renderer}/explore",
            attach,
            "Returns rows in the format of the web socket, with their fields.",
            explored,
        ),
        get(
            "/api/searchctrl/{id}/download/{format}",
            User(Capability("Download")),
            "Streams the results: text, json, csv or archive.",
            download,
        )
        .for_downloads(),
    ]
}

/// Returns the state of a search in the form that clients expect.
fn state(search: &Search) -> String {
    let mut words = vec![if search.state == Progress::Running { "ACTIVE" } else { "DORMANT" }];
    words.extend(search.background.then_some("BACKGROUNDED"));
    words.extend(search.is_saved().then_some("SAVED"));
    words.join("/")
}

fn launch_info(search: &Search) -> Value {
    json!({
        "method": search.method,
        "reference": search.reference,
        "started": search.started,
        "expires": search.expires,
    })
}

fn import(search: &Search) -> Value {
    let Imported { time, batch_name, batch_info } = search.imported.clone().unwrap_or_default();
    json!({
        "Imported": search.imported.is_some(),
        "Time": time,
        "BatchName": batch_name,
        "BatchInfo": batch_info,
    })
}

/// Returns the fields common to both forms.
fn common(search: &Search) -> Value {
    json!({
        "ID": search.id,
        "UID": search.uid,
        "GID": search.gids.first().copied().unwrap_or(0),
        "GIDs": search.gids,
        "Global": search.global,
        "UserQuery": search.user_query,
        "EffectiveQuery": search.ran(),
        "StartRange": search.start_range,
        "EndRange": search.end_range,
        "NoHistory": search.no_history,
        "Import": import(search),
        "LaunchInfo": launch_info(search),
        "State": state(search),
        "Webserver": search.webserver,
        "Progress": search.state,
        "ItemCount": search.rows,
        "Name": search.name,
    })
}

fn joined(mut a: Value, b: Value) -> Value {
    if let (Value::Object(a), Value::Object(b)) = (&mut a, b) {
        a.extend(b);
    }
    a
}

fn status(search: &Search) -> Value {
    let error = (search.state == Progress::Failed).then(|| json!({ "Error": search.error }));
    let status = json!({ "AttachedClients": 0, "StoredData": search.bytes });
    joined(joined(common(search), status), error.unwrap_or_default())
}

/// Returns all details of a search.
pub(crate) fn info(search: &Search) -> Value {
    let end = if search.state == Progress::Running { Timestamp::now() } else { search.updated };
    let details = json!({
        "Descending": false,
        "Started": search.started,
        "LastUpdate": end,
        "Duration": format!("{}ms", search.duration_ms),
        "StoreSize": search.bytes,
        "IndexSize": 0,
        "ItemCount": search.rows,
        "InputCount": search.rows_in,
        "TimeZoomDisabled": true,
        "QueryTimeSpecified": search.user_query.contains("since=") || search.user_query.contains("until="),
        "RenderDownloadFormats": Format::NAMES,
        "Metadata": metadata(search),
        "CollapsingIndex": -1,
        "Background": search.background,
        "MinZoomWindow": 1,
        "Tags": search.tags,
        "Columns": search.columns,
        "Preview": false,
        "OverLimit": search.over_limit,
        "Reason": search.error,
        "Warnings": search.warnings,
        "Notes": search.notes,
        "Saved": search.is_saved(),
    });
    let error = (search.state == Progress::Failed).then(|| json!({ "Error": search.error }));
    joined(joined(common(search), details), error.unwrap_or_default())
}

fn metadata(search: &Search) -> Value {
    let kept = search.metadata.as_ref().filter(|raw| raw.get().len() <= METADATA_SHOWN_BYTES_MAX);
    let kept = kept.and_then(|raw| serde_json::from_str(raw.get()).ok());
    kept.unwrap_or_else(|| json!({ "name": search.name, "notes": search.notes }))
}

/// Lists the searches visible to the caller, or all of them, latest first.
async fn visible(app: &AppRef, caller: &Caller, all: bool, shown: fn(&Search) -> Value) -> ApiResult<Response> {
    let wanted = move |caller: &Caller, search: &Search| all || caller.all || search.is_listed_for(&caller.person);
    let list = List::new(String::new(), wanted, move |app: &App, record: &Record<Search>| {
        serde_json::to_vec(&shown(&app.searches.current(record.value.clone())))
    });
    list.answer(app, caller, |search| (Reverse(search.started), search.id.clone())).await
}

async fn list(State(app): State<AppRef>, caller: Caller) -> ApiResult<Response> {
    visible(&app, &caller, false, status).await
}

async fn list_all(State(app): State<AppRef>, caller: Caller) -> ApiResult<Response> {
    visible(&app, &caller, true, status).await
}

async fn list_details(State(app): State<AppRef>, caller: Caller) -> ApiResult<Response> {
    visible(&app, &caller, false, info).await
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Start {
    searchstring: String,
    searchstart: Timestamp,
    searchend: Timestamp,
    background: bool,
    nohistory: bool,
    metadata: Option<Box<serde_json::value::RawValue>>,
    name: String,
    launchinfo: Option<Begun>,
    gids: Vec<i32>,
    global: bool,
    #[serde(deserialize_with = "at_most::<FILTERS_MAX, _, _>")]
    filters: Vec<Condition>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Begun {
    method: String,
    reference: String,
}

/// Checks texts that are part of the lists of all users who may see the search.
fn check_texts(name: &str, method: &str, reference: &str) -> ApiResult<()> {
    names::title("Name", name)?;
    names::title("Method", method)?;
    Ok(names::bounded("Reference", reference, REFERENCE_CHARS_MAX)?)
}

impl Start {
    /// Returns the search to launch. Running it in the background and sharing it require the same capabilities as doing
    /// so later.
    pub(crate) fn launch(self, caller: &Caller) -> ApiResult<Launch> {
        if self.background {
            caller.require("BackgroundSearch")?;
        }
        if !self.gids.is_empty() {
            caller.require("SetSearchGroup")?;
        }
        let begun = self.launchinfo.unwrap_or_default();
        check_texts(&self.name, &begun.method, &begun.reference)?;
        names::few("GIDs", &self.gids, names::GROUPS_MAX)?;
        let metadata = self.metadata.as_ref().map(|raw| raw.get()).unwrap_or_default();
        names::bounded("Metadata", metadata, METADATA_BYTES_MAX)?;
        let given = |time: Timestamp| (!time.is_never()).then_some(time);
        Ok(Launch {
            query: self.searchstring,
            conditions: self.filters,
            since: given(self.searchstart),
            until: given(self.searchend),
            background: self.background,
            no_history: self.nohistory,
            gids: self.gids,
            global: self.global,
            name: self.name,
            method: if begun.method.is_empty() { "manual".into() } else { begun.method },
            reference: begun.reference,
            metadata: self.metadata,
        })
    }
}

fn launched(search: &Search) -> Value {
    json!({
        "SearchSessionID": uuid::Uuid::new_v4(),
        "RefreshInterval": REFRESH_S,
        "SearchID": search.id,
        "RenderModule": renderer(search),
        "RenderCmd": renderer(search),
        "Info": info(search),
    })
}

/// Returns the renderer with which clients display the results.
pub(crate) fn renderer(search: &Search) -> &'static str {
    if search.columns.is_some() { "table" } else { "text" }
}

async fn launch(State(app): State<AppRef>, caller: Caller, Input(start): Input<Start>) -> ApiResult<Json<Value>> {
    let live = app.searches.launch(&caller.searcher(), &caller.author(), start.launch(&caller)?).await?;
    Ok(Json(launched(&live.search())))
}

/// Returns the current state from the webserver that holds the results, or the last replicated one if it is unreachable.
async fn standing(app: &AppRef, caller: &Caller, id: &str) -> ApiResult<Search> {
    let who = Who::from(caller);
    let search = search_forwarding::found(app, &who, id)?;
    if search.state != Progress::Running && !app.searches.is_here(&search) {
        return Ok(search);
    }
    let told = search_forwarding::anywhere(app, &who, id, Deed::Status).await;
    let told = told.and_then(|answer| answer.told()?.read::<Standing>());
    Ok(told.map_or(search, |standing| standing.search))
}

async fn show(State(app): State<AppRef>, caller: Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    Ok(Json(status(&standing(&app, &caller, &id).await?)))
}

async fn details(State(app): State<AppRef>, caller: Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    Ok(Json(info(&standing(&app, &caller, &id).await?)))
}

async fn attached(State(app): State<AppRef>, caller: Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    Ok(Json(launched(&standing(&app, &caller, &id).await?)))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Interval {
    interval: u32,
}

async fn ping(
    State(app): State<AppRef>,
    caller: Caller,
    Path(id): Path<String>,
    Input(wish): Input<Interval>,
) -> ApiResult<Json<Value>> {
    search_forwarding::found(&app, &Who::from(&caller), &id)?;
    Ok(Json(json!({ "Interval": if wish.interval == 0 { REFRESH_S } else { wish.interval } })))
}

async fn detach(State(app): State<AppRef>, caller: Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    search_forwarding::found(&app, &Who::from(&caller), &id)?;
    Ok(DONE)
}

async fn remove(State(app): State<AppRef>, caller: Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    if invalid::discarded(&app, &caller, Search::COLLECTION, &id).await? {
        return Ok(DONE);
    }
    let search = search_forwarding::owned(&app, &Who::from(&caller), &id)?;
    app.searches.remove(&caller.author(), &search).await?;
    Ok(DONE)
}

async fn background(State(app): State<AppRef>, caller: Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    let search = search_forwarding::owned(&app, &Who::from(&caller), &id)?;
    if search.state != Progress::Running && !search.background {
        return Err(ApiError::conflict("the search has already ended; save it to keep its results"));
    }
    let expires = search.started.plus(app.config.search_keep_s.saturating_mul(7));
    let set = |search: &mut Search| (search.background, search.expires) = (true, expires.max(search.expires));
    app.searches.rewrite(&caller.author(), &id, "move a search to the background", set).await?;
    Ok(DONE)
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Patch {
    method: Option<String>,
    reference: Option<String>,
    started: Option<Timestamp>,
    expires: Timestamp,
    name: Option<String>,
    notes: Option<String>,
}

async fn save(
    State(app): State<AppRef>,
    caller: Caller,
    Path(id): Path<String>,
    body: Bytes,
) -> ApiResult<Json<Value>> {
    let Patch { method, reference, started, expires, name, notes } = request_input::read(&body)?;
    let [said_name, said_method, said_reference] =
        [&name, &method, &reference].map(|text| text.as_deref().unwrap_or_default());
    check_texts(said_name, said_method, said_reference)?;
    names::bounded("Notes", notes.as_deref().unwrap_or_default(), names::TEXT_CHARS_MAX)?;
    let saving = search_forwarding::Saving { expires, started, method, reference, name, notes };
    let deed = Deed::Save(Box::new(saving));
    let saved: Standing = search_forwarding::anywhere(&app, &Who::from(&caller), &id, deed).await?.told()?.read()?;
    Ok(Json(info(&saved.search)))
}

async fn stop(State(app): State<AppRef>, caller: Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    let search = search_forwarding::owned(&app, &Who::from(&caller), &id)?;
    // A search that has ended needs no stop.
    if search.state == Progress::Running {
        search_forwarding::anywhere(&app, &Who::from(&caller), &id, Deed::Stop).await?;
    }
    Ok(DONE)
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Sharing {
    gid: i32,
    gids: Vec<i32>,
    global: bool,
}

async fn share(app: &AppRef, caller: &Caller, id: &str, gids: Vec<i32>) -> ApiResult<Json<Value>> {
    names::few("GIDs", &gids, names::GROUPS_MAX)?;
    search_forwarding::owned(app, &Who::from(caller), id)?;
    if !caller.person.may_share_with(&gids) {
        return Err(SearchError::NotMember.into());
    }
    for gid in &gids {
        if !app.store.has::<Group>(&gid.to_string())? {
            return Err(ApiError::not_found(format!("group {gid}")));
        }
    }
    let set = |search: &mut Search| search.gids.clone_from(&gids);
    let search = app.searches.rewrite(&caller.author(), id, "share a search", set).await?;
    Ok(Json(info(&search)))
}

async fn set_group(
    State(app): State<AppRef>,
    caller: Caller,
    Path(id): Path<String>,
    Input(sharing): Input<Sharing>,
) -> ApiResult<Json<Value>> {
    let gids = if sharing.gid == 0 { Vec::new() } else { vec![sharing.gid] };
    share(&app, &caller, &id, gids).await
}

async fn set_groups(
    State(app): State<AppRef>,
    caller: Caller,
    Path(id): Path<String>,
    Input(sharing): Input<Sharing>,
) -> ApiResult<Json<Value>> {
    share(&app, &caller, &id, sharing.gids).await
}

async fn set_global(
    State(app): State<AppRef>,
    caller: Caller,
    Path(id): Path<String>,
    Input(sharing): Input<Sharing>,
) -> ApiResult<Json<Value>> {
    search_forwarding::owned(&app, &Who::from(&caller), &id)?;
    let set = |search: &mut Search| search.global = sharing.global;
    app.searches.rewrite(&caller.author(), &id, "share a search with all users", set).await?;
    Ok(DONE)
}

/// Selects rows by index and time.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Page {
    first: u64,
    count: Option<usize>,
    since: Option<String>,
    until: Option<String>,
}

fn time(text: Option<&str>) -> ApiResult<Option<Timestamp>> {
    let text = text.filter(|text| !text.is_empty());
    let parsed =
        text.map(|text| Timestamp::parse(text).ok_or_else(|| ApiError::bad(format!("{text:?} is not a time"))));
    Ok(parsed.transpose()?.filter(|time| !time.is_never()))
}

async fn rows(
    State(app): State<AppRef>,
    caller: Caller,
    Path(id): Path<String>,
    Query(page): Query<Page>,
) -> ApiResult<Told> {
    let (since, until) = (time(page.since.as_deref())?, time(page.until.as_deref())?);
    let deed = Deed::Rows { first: page.first, count: page.count.unwrap_or(100), since, until };
    search_forwarding::anywhere(&app, &Who::from(&caller), &id, deed).await?.told()
}

/// Selects rows by index from `first` up to `last`, or by a time range.
#[derive(Default, Deserialize)]
#[serde(default)]
struct RowRange {
    first: u64,
    last: Option<u64>,
    start: Option<String>,
    end: Option<String>,
}

async fn commanded(
    app: &AppRef,
    caller: &Caller,
    id: &str,
    stretch: RowRange,
    is_explored: bool,
) -> ApiResult<Json<Value>> {
    let between = time(stretch.start.as_deref())?.zip(time(stretch.end.as_deref())?);
    let (startts, endts) = between.unwrap_or_default();
    let last = stretch.last.unwrap_or(stretch.first.saturating_add(100));
    let range = search_commands::EntryRange { startts, endts, first: stretch.first, last };
    let id_of_command = search_commands::entries_command(between.is_some(), is_explored);
    let command = search_commands::Command::new(id_of_command, range);
    Ok(Json(search_commands::command(app, caller, id, &command).await?))
}

async fn rendered(
    State(app): State<AppRef>,
    caller: Caller,
    Path((id, _)): Path<(String, String)>,
    Query(stretch): Query<RowRange>,
) -> ApiResult<Json<Value>> {
    commanded(&app, &caller, &id, stretch, false).await
}

async fn explored(
    State(app): State<AppRef>,
    caller: Caller,
    Path((id, _)): Path<(String, String)>,
    Query(stretch): Query<RowRange>,
) -> ApiResult<Json<Value>> {
    commanded(&app, &caller, &id, stretch, true).await
}

async fn overview(State(app): State<AppRef>, caller: Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    let Standing { search, histogram: counts } =
        search_forwarding::anywhere(&app, &Who::from(&caller), &id, Deed::Status).await?.told()?.read()?;
    let (since, until) = (search.start_range.ns(), search.end_range.ns());
    let width = (until - since) / i64::try_from(counts.len().max(1)).unwrap_or(1);
    let stats: Vec<Value> = (0i64..)
        .zip(&counts)
        .map(|(number, count)| json!({ "Count": count, "Bytes": 0, "TS": Timestamp::from_ns(since + number * width) }))
        .collect();
    Ok(Json(json!({
        "SearchPosition": search.end_range,
        "Finished": search.state != Progress::Running,
        "OverLimit": search.over_limit,
        "LimitDroppedRange": { "StartTS": Timestamp::NEVER, "EndTS": Timestamp::NEVER },
        "Warning": search.warnings.join("; "),
        "EntryCountValid": true,
        "Stats": stats,
    })))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Between {
    #[serde(rename = "StartTS")]
    start: Option<String>,
    #[serde(rename = "EndTS")]
    end: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct BetweenBody {
    startts: Option<String>,
    endts: Option<String>,
}

async fn download(
    State(app): State<AppRef>,
    caller: Caller,
    Path((id, format)): Path<(String, String)>,
    Query(between): Query<Between>,
    body: Bytes,
) -> ApiResult<Response> {
    let said: BetweenBody = request_input::read(&body)?;
    let since = time(between.start.or(said.startts).as_deref())?;
    let until = time(between.end.or(said.endts).as_deref())?;
    let deed = Deed::Download { format, since, until };
    let answer = search_forwarding::anywhere(&app, &Who::from(&caller), &id, deed).await?;
    let lost =
        admission::lost(&app, &caller, move |app, caller| search_forwarding::is_open_to(app, &caller.person, &id));
    Ok(file(answer, lost))
}

/// Returns a file as a response, which is aborted when `lost` completes.
pub(crate) fn file(answer: Answer, lost: impl Future<Output = ()> + Send + 'static) -> Response {
    match answer {
        Answer::Value(told) => told.into_response(),
        Answer::File { kind, name, body } => {
            let disposition = format!("attachment; filename=\"{name}\"");
            let headers = [(header::CONTENT_TYPE, kind), (header::CONTENT_DISPOSITION, disposition)];
            (headers, Body::from_stream(admission::until(body, lost))).into_response()
        }
    }
}
