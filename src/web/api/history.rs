//! Routes of search histories.

use std::cmp::Reverse;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::DONE;
use super::users::found;
use crate::app::AppRef;
use crate::authorization::{AccessRequirement, Right};
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::listing::List;
use crate::request_input::{Input, QueryParams};
use crate::route::{Route, delete, get, post};
use gravwell_objects::history::{self, Cleared, Entry};
use gravwell_objects::{Record, Timestamp, names, users};

pub(crate) fn routes() -> Vec<Route> {
    use AccessRequirement::{Admin, MemberOrAdmin, SelfOrAdmin, User};
    use Right::Capability;
    let own = Capability("SearchHistory");
    vec![
        get("/api/searchhistory", User(own), "Lists the caller's searches, newest first.", list),
        post("/api/searchhistory", User(Capability("Search")), "Adds a search to the caller's history.", add),
        delete("/api/searchhistory", User(own), "Clears the caller's history.", clear_own),
        get("/api/searchhistory/user/{uid}", SelfOrAdmin(own), "Lists a user's searches.", of_user),
        delete("/api/searchhistory/user/{uid}", SelfOrAdmin(own), "Clears a user's history.", clear),
        get(
            "/api/searchhistory/group/{gid}",
            MemberOrAdmin(Capability("SearchGroupHistory")),
            "Lists a group's searches.",
            of_group,
        ),
        get(
            "/api/searchhistory/all/{uid}",
            SelfOrAdmin(Capability("SearchAllHistory")),
            "Lists searches of a user and of the user's groups.",
            of_user_and_groups,
        ),
        get("/api/searchhistory/all", Admin, "Lists the searches of all users.", all),
    ]
}

/// Returns an entry as JSON for clients.
fn shown(record: &Record<Entry>) -> Value {
    let Entry { id, uid, gid, gids, global, user_query, effective_query, launched } = &record.value;
    json!({
        "ID": id,
        "UID": uid,
        "GID": gid,
        "GIDs": gids,
        "Global": global,
        "UserQuery": user_query,
        "EffectiveQuery": effective_query,
        "Launched": launched,
        "Synced": record.is_synced(),
    })
}

/// Lists entries, newest first, filtered by `wanted` and by `refine`, `start` and `end`; of one user, or of all.
async fn answer(
    app: &AppRef,
    caller: &Caller,
    of: Option<i32>,
    wishes: QueryParams,
    wanted: impl Fn(&Entry) -> bool + Send + 'static,
) -> ApiResult<Response> {
    // No turn: these are few, and read before the list takes one.
    let cleared = Cleared::read(&app.store)?;
    let (start, end) = (wishes.start.unwrap_or(0), wishes.end.unwrap_or(usize::MAX));
    let fits = move |entry: &Entry| {
        let Some(part) = wishes.refine.as_deref() else { return true };
        entry.user_query.contains(part) || entry.effective_query.contains(part)
    };
    let is_listed = move |_: &Caller, entry: &Entry| !cleared.includes(entry) && wanted(entry) && fits(entry);
    let prefix = of.map_or_else(String::new, |uid| format!("{uid}/"));
    let list = List::new(prefix, is_listed, |_, record: &Record<Entry>| serde_json::to_vec(&shown(record)));
    list.page(app, caller, |entry| Reverse(entry.id.clone()), start, end).await
}

async fn list(State(app): State<AppRef>, caller: Caller, wishes: QueryParams) -> ApiResult<Response> {
    let of = (!caller.all).then_some(caller.uid());
    answer(&app, &caller, of, wishes, |_| true).await
}

async fn of_user(
    State(app): State<AppRef>,
    caller: Caller,
    Path(uid): Path<i32>,
    wishes: QueryParams,
) -> ApiResult<Response> {
    found(&app.store, uid)?;
    answer(&app, &caller, Some(uid), wishes, |_| true).await
}

fn is_of(entry: &Entry, gid: i32) -> bool {
    entry.gid == gid || entry.gids.contains(&gid)
}

async fn of_group(
    State(app): State<AppRef>,
    caller: Caller,
    Path(gid): Path<i32>,
    wishes: QueryParams,
) -> ApiResult<Response> {
    answer(&app, &caller, None, wishes, move |entry| is_of(entry, gid)).await
}

async fn of_user_and_groups(
    State(app): State<AppRef>,
    caller: Caller,
    Path(uid): Path<i32>,
    wishes: QueryParams,
) -> ApiResult<Response> {
    found(&app.store, uid)?;
    let groups = users::groups_of(&app.store, uid)?;
    let wanted = move |entry: &Entry| entry.uid == uid || groups.iter().any(|gid| is_of(entry, *gid));
    answer(&app, &caller, None, wishes, wanted).await
}

async fn all(State(app): State<AppRef>, caller: Caller, wishes: QueryParams) -> ApiResult<Response> {
    answer(&app, &caller, None, wishes, |_| true).await
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Search {
    userquery: String,
    effectivequery: Option<String>,
    gids: Vec<i32>,
    global: bool,
}

async fn add(State(app): State<AppRef>, caller: Caller, Input(search): Input<Search>) -> ApiResult<Json<Value>> {
    if search.userquery.is_empty() {
        return Err(ApiError::bad("UserQuery is missing"));
    }
    for query in [Some(&search.userquery), search.effectivequery.as_ref()].into_iter().flatten() {
        names::bounded("UserQuery", query, names::TEXT_CHARS_MAX)?;
    }
    names::few("GIDs", &search.gids, names::GROUPS_MAX)?;
    let launched = Timestamp::now();
    if search.global && !caller.person.admin {
        return Err(ApiError::forbidden("only administrators may share with all users"));
    }
    caller.check_groups(&search.gids, &[])?;
    let entry = Entry {
        id: history::new_id(&app.store, caller.uid(), launched)?,
        uid: caller.uid(),
        gid: search.gids.first().copied().unwrap_or(0),
        gids: search.gids,
        global: search.global,
        effective_query: search.effectivequery.unwrap_or_else(|| search.userquery.clone()),
        user_query: search.userquery,
        launched,
    };
    let writes = history::add(&app.store, &entry, app.config.history_max)?;
    app.store.commit(&caller.author(), "add to the search history", writes).await?;
    Ok(Json(entry.id.into()))
}

async fn clear_of(app: &AppRef, caller: &Caller, uid: i32) -> ApiResult<Json<Value>> {
    let writes = history::clear(&app.store, uid)?;
    if !writes.is_empty() {
        app.store.commit(&caller.author(), &format!("clear the search history of user {uid}"), writes).await?;
    }
    Ok(DONE)
}

async fn clear_own(State(app): State<AppRef>, caller: Caller) -> ApiResult<Json<Value>> {
    clear_of(&app, &caller, caller.uid()).await
}

async fn clear(State(app): State<AppRef>, caller: Caller, Path(uid): Path<i32>) -> ApiResult<Json<Value>> {
    found(&app.store, uid)?;
    clear_of(&app, &caller, uid).await
}
