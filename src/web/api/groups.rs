//! Routes of groups.

use axum::Json;
use axum::extract::{Path, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::users::{as_seen_by, details};
use super::{DONE, invalid, repeated};
use crate::app::AppRef;
use crate::authorization::{AccessRequirement, Right};
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::request_input::Input;
use crate::route::{Route, delete, get, post, put};
use crate::scan_slots;
use gravwell_objects::cleanup::Of;
use gravwell_objects::groups::{self, Group};
use gravwell_objects::{Record, Store, Stored, accounts, claims, names, users};
use gravwell_runtime::tasks::blocking;

pub(crate) fn routes() -> Vec<Route> {
    use AccessRequirement::{Admin, MemberOrAdmin, User};
    use Right::Capability;
    vec![
        get("/api/groups", User(Capability("ListGroups")), "Lists all groups.", list),
        post("/api/groups", Admin, "Creates a group and returns its ID.", create),
        get("/api/groups/{gid}", MemberOrAdmin(Capability("ListGroups")), "Returns a group.", show),
        put("/api/groups/{gid}", Admin, "Changes a group; missing or empty fields are unchanged.", update),
        delete("/api/groups/{gid}", Admin, "Deletes a group and its memberships.", remove),
        get(
            "/api/groups/{gid}/members",
            MemberOrAdmin(Capability("ListGroupMembers")),
            "Lists the members of a group.",
            members,
        ),
    ]
}

/// Returns a group as JSON for clients.
pub(super) fn group_details(record: &Record<Group>) -> Value {
    let Group { gid, name, desc } = &record.value;
    json!({ "GID": gid, "Name": name, "Desc": desc, "Synced": record.is_synced() })
}

pub(super) fn found(store: &Store, gid: i32) -> ApiResult<Record<Group>> {
    store.get::<Group>(&gid.to_string())?.ok_or_else(|| ApiError::not_found(format!("group {gid}")))
}

async fn list(State(app): State<AppRef>, caller: Caller) -> ApiResult<Json<Value>> {
    let _turn = scan_slots::turn(caller.uid()).await?;
    let mut groups = app.store.list::<Group>("")?;
    groups.sort_by_key(|record| record.value.gid);
    Ok(Json(groups.iter().map(group_details).collect()))
}

/// Checks that a name is neither another group's nor confusable with one.
fn checked_name(store: &Store, name: &str, gid: i32) -> ApiResult<String> {
    let name = names::checked("Name", name)?;
    if groups::by_name(store, &name)?.is_some_and(|other| other != gid) {
        return Err(ApiError::conflict(format!("a group called {name} already exists")));
    }
    // No turn: only an administrator creates and renames groups.
    if let Some(other) = claims::look_alike::<Group>(store, &name, gid)? {
        return Err(ApiError::conflict(format!("the name is confusable with that of group {other}")));
    }
    Ok(name)
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Fields {
    name: String,
    desc: String,
}

async fn create(State(app): State<AppRef>, caller: Caller, Input(fields): Input<Fields>) -> ApiResult<Json<i32>> {
    let name = checked_name(&app.store, &fields.name, 0)?;
    names::bounded("Desc", &fields.desc, names::TEXT_CHARS_MAX)?;
    let gid = accounts::new_number(&app.store, Of::Group)?;
    let group = Group { gid, name, desc: fields.desc };
    let what = format!("create group {}", group.name);
    app.store.commit(&caller.author(), &what, accounts::create_group(&app.store, &group)?).await?;
    Ok(Json(group.gid))
}

async fn show(State(app): State<AppRef>, Path(gid): Path<i32>) -> ApiResult<Json<Value>> {
    Ok(Json(group_details(&found(&app.store, gid)?)))
}

async fn update(
    State(app): State<AppRef>,
    caller: Caller,
    Path(gid): Path<i32>,
    Input(fields): Input<Fields>,
) -> ApiResult<Json<Value>> {
    repeated(|| change(&app, &caller, gid, &fields)).await
}

async fn change(app: &AppRef, caller: &Caller, gid: i32, fields: &Fields) -> ApiResult<Json<Value>> {
    let blank = json!({ "GID": gid, "Name": format!("group {gid}") });
    let record = app.store.get_completed::<Group>(&gid.to_string(), &blank)?;
    let mut record = record.ok_or_else(|| ApiError::not_found(format!("group {gid}")))?;
    let before = record.value.clone();
    let name = fields.name.trim();
    if !name.is_empty() && name != before.name {
        record.value.name = checked_name(&app.store, name, gid)?;
    }
    if !fields.desc.is_empty() {
        names::bounded("Desc", &fields.desc, names::TEXT_CHARS_MAX)?;
        // Clients send a blank to clear a description.
        record.value.desc = fields.desc.trim().to_owned();
    }
    let writes = accounts::update_group(&app.store, &before, &record)?;
    app.store.commit(&caller.author(), &format!("change group {}", before.name), writes).await?;
    Ok(Json(group_details(&found(&app.store, gid)?)))
}

async fn remove(State(app): State<AppRef>, caller: Caller, Path(gid): Path<i32>) -> ApiResult<Json<Value>> {
    if invalid::discarded(&app, &caller, Group::COLLECTION, &gid.to_string()).await? {
        return Ok(DONE);
    }
    repeated(|| delete_group(&app, &caller, gid)).await
}

async fn delete_group(app: &AppRef, caller: &Caller, gid: i32) -> ApiResult<Json<Value>> {
    let group = found(&app.store, gid)?;
    let writes = accounts::delete_group(&app.store, &group)?;
    app.store.commit(&caller.author(), &format!("delete group {}", group.value.name), writes).await?;
    Ok(DONE)
}

async fn members(State(app): State<AppRef>, caller: Caller, Path(gid): Path<i32>) -> ApiResult<Json<Value>> {
    found(&app.store, gid)?;
    let mut body = Vec::new();
    let _turn = scan_slots::turn(caller.uid()).await?;
    for uid in users::members_of(&app.store, gid)? {
        body.extend(blocking::run(|| details(&app.store, uid))?.map(|described| as_seen_by(&caller, described)));
    }
    Ok(Json(body.into()))
}
