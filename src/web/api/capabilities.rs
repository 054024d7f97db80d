//! Routes of the capabilities of users and groups, and of the tags that they may search.

use std::collections::HashSet;

use axum::Json;
use axum::extract::{Path, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::groups::{found as found_group, group_details};
use super::repeated;
use super::users::found as found_user;
use crate::app::AppRef;
use crate::authorization::{AccessRequirement, Right};
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::request_input::Input;
use crate::route::{Route, get, put};
use gravwell_objects::capabilities::{self, ALL, Capability, Grants, Holder, TagGrants};
use gravwell_objects::groups::Group;
use gravwell_objects::sharing::Principal;
use gravwell_objects::users::{self, Admin, User};
use gravwell_objects::{Store, Stored, Writes, accounts};

/// Maximum length in bytes of a tag pattern, and maximum number of patterns.
const TAG_CHARS_MAX: usize = 4096;
const TAGS_MAX: usize = 10_000;

pub(crate) fn routes() -> Vec<Route> {
    use AccessRequirement::{Admin, User};
    use Right::Any;
    vec![
        get("/api/info/capabilities", User(Any), "Lists all capabilities.", list),
        get("/api/info/capabilities/templates", User(Any), "Lists predefined sets of capabilities.", templates),
        get("/api/info/capabilities/my", User(Any), "Lists the capabilities that the caller has.", mine),
        get("/api/info/capabilities/why", User(Any), "Returns the source of each capability of the caller.", why_me),
        get("/api/users/{uid}/capabilities", Admin, "Lists the capabilities granted to a user.", of_user),
        put("/api/users/{uid}/capabilities", Admin, "Sets the capabilities granted to a user.", grant_user),
        get("/api/users/{uid}/capabilities/why", Admin, "Returns the source of each capability of a user.", why),
        get("/api/groups/{gid}/capabilities", Admin, "Lists the capabilities granted to a group.", of_group),
        put("/api/groups/{gid}/capabilities", Admin, "Sets the capabilities granted to a group.", grant_group),
        get("/api/users/{uid}/tags", Admin, "Lists the tags that a user may search.", tags_of_user),
        put("/api/users/{uid}/tags", Admin, "Sets the tags that a user may search.", tag_user),
        get("/api/groups/{gid}/tags", Admin, "Lists the tags that a group may search.", tags_of_group),
        put("/api/groups/{gid}/tags", Admin, "Sets the tags that a group may search.", tag_group),
    ]
}

fn shown(capability: &Capability) -> Value {
    let Capability { number, name, category, allows, .. } = capability;
    json!({ "Cap": number, "Name": name, "Desc": allows, "Category": category })
}

async fn list() -> Json<Value> {
    Json(ALL.iter().map(shown).collect())
}

async fn templates() -> Json<Value> {
    let numbers =
        |wanted: fn(&&Capability) -> bool| -> Vec<u8> { ALL.iter().filter(wanted).map(|c| c.number).collect() };
    Json(json!([
        { "Name": "Full User", "Desc": "All capabilities of ordinary users.", "Caps": numbers(|_| true) },
        { "Name": "Read Only User", "Desc": "Searches and reads, without changes.", "Caps": numbers(|c| c.reads) },
    ]))
}

async fn mine(caller: Caller) -> Json<Value> {
    Json(ALL.iter().filter(|capability| caller.has(capability.name)).map(shown).collect())
}

fn explained(store: &Store, person: &Principal, enforced: bool) -> ApiResult<Json<Value>> {
    let own: HashSet<String> = capabilities::of_holder(store, Holder::User(person.uid))?.into_iter().collect();
    let mut groups = Vec::new();
    for gid in &person.groups {
        if let Some(group) = store.valid::<Group>(&gid.to_string())? {
            groups.push((group_details(&group), capabilities::of_holder(store, Holder::Group(*gid))?));
        }
    }
    let explain = |capability: &Capability| {
        let grants = |names: &[String]| names.iter().any(|name| name == capability.name);
        let by_groups: Vec<&Value> = groups.iter().filter(|(_, names)| grants(names)).map(|(group, _)| group).collect();
        let by_user = own.contains(capability.name);
        let mut body = shown(capability);
        body["Granted"] = (person.admin || !enforced || by_user || !by_groups.is_empty()).into();
        body["UserGrant"] = by_user.into();
        body["GroupGrants"] = json!(by_groups);
        body
    };
    Ok(Json(ALL.iter().map(explain).collect()))
}

async fn why_me(State(app): State<AppRef>, caller: Caller) -> ApiResult<Json<Value>> {
    explained(&app.store, &caller.person, app.config.capability_control)
}

async fn why(State(app): State<AppRef>, Path(uid): Path<i32>) -> ApiResult<Json<Value>> {
    found_user(&app.store, uid)?;
    let (admin, groups) = (app.store.has::<Admin>(&uid.to_string())?, users::groups_of(&app.store, uid)?);
    explained(&app.store, &Principal { uid, admin, groups }, app.config.capability_control)
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Fields {
    grants: Vec<String>,
}

fn answer(grants: &[String]) -> Json<Value> {
    Json(json!({ "Grants": grants }))
}

/// Returns the name of a holder for the audit, and adds the condition that the holder exists.
fn requirement(store: &Store, holder: Holder, writes: &mut Writes) -> ApiResult<String> {
    match holder {
        Holder::User(uid) => {
            writes.require::<User>(&uid.to_string(), accounts::USER_GONE)?;
            Ok(format!("user {}", found_user(store, uid)?.value.user))
        }
        Holder::Group(gid) => {
            writes.require::<Group>(&gid.to_string(), accounts::GROUP_GONE)?;
            Ok(format!("group {}", found_group(store, gid)?.value.name))
        }
    }
}

async fn store_grants<T: Stored + serde::Serialize>(
    app: &AppRef,
    caller: &Caller,
    holder: Holder,
    value: &T,
    what: &str,
) -> ApiResult<()> {
    repeated(|| put_grants(app, caller, holder, value, what)).await
}

async fn put_grants<T: Stored + serde::Serialize>(
    app: &AppRef,
    caller: &Caller,
    holder: Holder,
    value: &T,
    what: &str,
) -> ApiResult<()> {
    let mut writes = Writes::new();
    let whom = requirement(&app.store, holder, &mut writes)?;
    // A grant that was withdrawn elsewhere must not be restored by a list that was read before.
    let found = app.store.seen::<T>(&value.key())?;
    writes.replace(found, value, "the grants were changed in the meantime; reload them")?;
    app.store.commit(&caller.author(), &format!("{what} {whom}"), writes).await?;
    Ok(())
}

async fn grant(app: &AppRef, caller: &Caller, holder: Holder, fields: Fields) -> ApiResult<Json<Value>> {
    let named = |name: &String| {
        let known = capabilities::named(name).map(|capability| capability.name.to_owned());
        known.ok_or_else(|| ApiError::bad(format!("unknown capability {name:?}; see GET /api/info/capabilities")))
    };
    let mut grants = fields.grants.iter().map(named).collect::<ApiResult<Vec<String>>>()?;
    grants.sort();
    grants.dedup();
    store_grants(app, caller, holder, &Grants { holder, grants: grants.clone() }, "grant capabilities to").await?;
    Ok(answer(&grants))
}

async fn tag(app: &AppRef, caller: &Caller, holder: Holder, Fields { grants }: Fields) -> ApiResult<Json<Value>> {
    let is_fine = |tag: &String| !tag.is_empty() && tag.len() <= TAG_CHARS_MAX && !tag.chars().any(char::is_control);
    if grants.len() > TAGS_MAX || !grants.iter().all(is_fine) {
        let message = format!(
            "invalid tags; use at most {TAGS_MAX} tags of 1 to {TAG_CHARS_MAX} characters without control characters"
        );
        return Err(ApiError::bad(message));
    }
    store_grants(app, caller, holder, &TagGrants { holder, grants: grants.clone() }, "grant tags to").await?;
    Ok(answer(&grants))
}

fn tags(store: &Store, holder: Holder) -> ApiResult<Json<Value>> {
    Ok(answer(&store.valid::<TagGrants>(&holder.key())?.map(|record| record.value.grants).unwrap_or_default()))
}

async fn of_user(State(app): State<AppRef>, Path(uid): Path<i32>) -> ApiResult<Json<Value>> {
    found_user(&app.store, uid)?;
    Ok(answer(&capabilities::of_holder(&app.store, Holder::User(uid))?))
}

async fn of_group(State(app): State<AppRef>, Path(gid): Path<i32>) -> ApiResult<Json<Value>> {
    found_group(&app.store, gid)?;
    Ok(answer(&capabilities::of_holder(&app.store, Holder::Group(gid))?))
}

async fn tags_of_user(State(app): State<AppRef>, Path(uid): Path<i32>) -> ApiResult<Json<Value>> {
    found_user(&app.store, uid)?;
    tags(&app.store, Holder::User(uid))
}

async fn tags_of_group(State(app): State<AppRef>, Path(gid): Path<i32>) -> ApiResult<Json<Value>> {
    found_group(&app.store, gid)?;
    tags(&app.store, Holder::Group(gid))
}

async fn grant_user(
    State(app): State<AppRef>,
    caller: Caller,
    Path(uid): Path<i32>,
    Input(fields): Input<Fields>,
) -> ApiResult<Json<Value>> {
    grant(&app, &caller, Holder::User(uid), fields).await
}

async fn grant_group(
    State(app): State<AppRef>,
    caller: Caller,
    Path(gid): Path<i32>,
    Input(fields): Input<Fields>,
) -> ApiResult<Json<Value>> {
    grant(&app, &caller, Holder::Group(gid), fields).await
}

async fn tag_user(
    State(app): State<AppRef>,
    caller: Caller,
    Path(uid): Path<i32>,
    Input(fields): Input<Fields>,
) -> ApiResult<Json<Value>> {
    tag(&app, &caller, Holder::User(uid), fields).await
}

async fn tag_group(
    State(app): State<AppRef>,
    caller: Caller,
    Path(gid): Path<i32>,
    Input(fields): Input<Fields>,
) -> ApiResult<Json<Value>> {
    tag(&app, &caller, Holder::Group(gid), fields).await
}
