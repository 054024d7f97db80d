//! Groups.

use axum::Json;
use axum::extract::{Path, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{DONE, invalid, users::details};
use crate::objects::groups::{self, Group};
use crate::objects::ids::Numbers;
use crate::objects::{Record, Store, Stored, accounts, users};
use crate::web::app::AppRef;
use crate::web::caller::Caller;
use crate::web::error::{ApiError, ApiResult};
use crate::web::guard::Need;
use crate::web::input::Input;
use crate::web::routes::{Route, delete, get, post, put};

pub(in crate::web) fn routes() -> Vec<Route> {
    use Need::{Admin, MemberOrAdmin, User};
    vec![
        get("/api/groups", User(Some("ListGroups")), "Lists all groups.", list),
        post("/api/groups", Admin, "Creates a group; answers with its number.", create),
        get("/api/groups/{gid}", MemberOrAdmin(Some("ListGroups")), "Tells about a group.", show),
        put("/api/groups/{gid}", Admin, "Changes a group; what is missing or empty stays.", update),
        delete("/api/groups/{gid}", Admin, "Deletes a group and its memberships.", remove),
        get(
            "/api/groups/{gid}/members",
            MemberOrAdmin(Some("ListGroupMembers")),
            "Lists the members of a group.",
            members,
        ),
    ]
}

/// A group as clients know it.
pub(super) fn group_details(record: &Record<Group>) -> Value {
    let Group { gid, name, desc } = &record.value;
    json!({ "GID": gid, "Name": name, "Desc": desc, "Synced": record.is_synced() })
}

pub(super) fn found(store: &Store, gid: i32) -> ApiResult<Record<Group>> {
    store.get::<Group>(&gid.to_string())?.ok_or_else(|| ApiError::not_found(format!("group {gid}")))
}

async fn list(State(app): State<AppRef>) -> ApiResult<Json<Value>> {
    let mut groups = app.store.list::<Group>("")?;
    groups.sort_by_key(|record| record.value.gid);
    Ok(Json(groups.iter().map(group_details).collect()))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Fields {
    name: String,
    desc: String,
}

async fn create(State(app): State<AppRef>, caller: Caller, Input(fields): Input<Fields>) -> ApiResult<Json<i32>> {
    let name = fields.name.trim().to_owned();
    if name.is_empty() || name.chars().count() > 128 || name.chars().any(char::is_control) {
        return Err(ApiError::bad("a group's name has 1 to 128 characters and no control characters"));
    }
    if groups::by_name(&app.store, &name)?.is_some() {
        return Err(ApiError::conflict(format!("there is already a group called {name}")));
    }
    let group = Group { gid: app.ids.next(Numbers::Groups)?, name, desc: fields.desc };
    let what = format!("create group {}", group.name);
    app.store.commit(&caller.author(), &what, accounts::create_group(&group)?).await?;
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
    let blank = json!({ "GID": gid, "Name": format!("group {gid}") });
    let record = app.store.get_completed::<Group>(&gid.to_string(), &blank)?;
    let mut record = record.ok_or_else(|| ApiError::not_found(format!("group {gid}")))?;
    let before = record.value.clone();
    let name = fields.name.trim();
    if !name.is_empty() {
        name.clone_into(&mut record.value.name);
    }
    if !fields.desc.is_empty() {
        // A blank is how clients clear a description.
        record.value.desc = fields.desc.trim().to_owned();
    }
    let writes = accounts::update_group(&before, &record)?;
    app.store.commit(&caller.author(), &format!("change group {}", before.name), writes).await?;
    Ok(Json(group_details(&found(&app.store, gid)?)))
}

async fn remove(State(app): State<AppRef>, caller: Caller, Path(gid): Path<i32>) -> ApiResult<Json<Value>> {
    if invalid::discarded(&app, &caller, Group::COLLECTION, &gid.to_string()).await? {
        return Ok(DONE);
    }
    let group = found(&app.store, gid)?.value;
    let writes = accounts::delete_group(&app.store, &group)?;
    app.store.commit(&caller.author(), &format!("delete group {}", group.name), writes).await?;
    Ok(DONE)
}

async fn members(State(app): State<AppRef>, Path(gid): Path<i32>) -> ApiResult<Json<Value>> {
    found(&app.store, gid)?;
    let mut body = Vec::new();
    for uid in users::members_of(&app.store, gid)? {
        body.extend(details(&app.store, uid)?);
    }
    Ok(Json(body.into()))
}
