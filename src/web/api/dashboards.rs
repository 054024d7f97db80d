//! Routes of dashboards.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{DONE, invalid, match_version, repeated};
use crate::app::AppRef;
use crate::authorization::{AccessRequirement, Right};
use crate::caller::Caller;
use crate::entity_tags::{IfMatch, IfNoneMatch};
use crate::error::{ApiError, ApiResult};
use crate::listing::List;
use crate::request_input::{Input, QueryParams, is_on};
use crate::route::{Route, delete, get, post, put};
use crate::scan_slots;
use gravwell_objects::dashboards::{self, Dashboard};
use gravwell_objects::sharing::{ShareScope, Shareable};
use gravwell_objects::users::User;
use gravwell_objects::{Record, StoreError, Stored, Timestamp, Writes, names};

const READ: Right = Right::Capability("DashboardRead");
const WRITE: Right = Right::Capability("DashboardWrite");

pub(crate) fn routes() -> Vec<Route> {
    use AccessRequirement::{MemberOrAdmin, SelfOrAdmin, User};
    vec![
        get("/api/dashboards", User(READ), "Lists the dashboards that the caller may see.", list),
        post("/api/dashboards", User(WRITE), "Creates a dashboard and returns its ID.", create).with_objects(),
        get(
            "/api/dashboards/all",
            User(READ),
            "Lists the dashboards that the caller may see; for administrators, all.",
            list_all,
        ),
        get("/api/users/{uid}/dashboards", SelfOrAdmin(READ), "Lists the dashboards that a user owns.", of_user),
        get("/api/groups/{gid}/dashboards", MemberOrAdmin(READ), "Lists the dashboards shared with a group.", of_group),
        get("/api/dashboards/{id}", User(READ), "Returns a dashboard by ID or GUID.", show),
        put("/api/dashboards/{id}", User(WRITE), "Changes a dashboard; missing fields are unchanged.", update)
            .with_objects(),
        delete("/api/dashboards/{id}", User(WRITE), "Deletes a dashboard.", remove),
        get("/api/dashboards/{id}/clone", User(WRITE), "Copies a dashboard for the caller and returns its ID.", copy)
            .that_changes(),
        post("/api/dashboards/{id}/clone", User(WRITE), "Copies a dashboard for the caller and returns its ID.", copy),
    ]
}

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    #[serde(rename = "Data")]
    data: &'a RawValue,
}

/// A dashboard as JSON for clients, without its data.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Head<'a> {
    #[serde(rename = "ID")]
    id: u64,
    name: &'a str,
    #[serde(rename = "UID")]
    uid: i32,
    #[serde(rename = "GIDs")]
    gids: &'a [i32],
    global: bool,
    write_access: &'a ShareScope,
    description: &'a str,
    created: Timestamp,
    updated: Timestamp,
    labels: &'a [String],
    #[serde(rename = "GUID", skip_serializing_if = "str::is_empty")]
    guid: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    trivial: bool,
    synced: bool,
}

fn shown(record: &Record<Dashboard>) -> Shown<'_> {
    let Dashboard { id, uid, global, created, updated, trivial, .. } = record.value;
    let Dashboard { name, gids, write_access, description, labels, guid, data, .. } = &record.value;
    let synced = record.is_synced();
    let head = Head {
        id,
        name,
        uid,
        gids,
        global,
        write_access,
        description,
        created,
        updated,
        labels,
        guid,
        trivial,
        synced,
    };
    Shown { head, data }
}

fn answer(record: &Record<Dashboard>) -> Response {
    ([(header::ETAG, record.tag())], Json(shown(record))).into_response()
}

async fn select(
    app: &AppRef,
    caller: &Caller,
    wanted: impl Fn(&Caller, &Dashboard) -> bool + Send + 'static,
) -> ApiResult<Response> {
    let list = List::new(String::new(), wanted, |_, record: &Record<Dashboard>| serde_json::to_vec(&shown(record)));
    list.answer(app, caller, |dashboard| dashboard.created).await
}

async fn list(State(app): State<AppRef>, caller: Caller) -> ApiResult<Response> {
    select(&app, &caller, |caller, dashboard| caller.all || dashboard.is_listed_for(&caller.person)).await
}

async fn list_all(State(app): State<AppRef>, caller: Caller) -> ApiResult<Response> {
    select(&app, &caller, |caller, dashboard| dashboard.is_readable_by(&caller.person)).await
}

async fn of_user(State(app): State<AppRef>, caller: Caller, Path(uid): Path<i32>) -> ApiResult<Response> {
    select(&app, &caller, move |_, dashboard| dashboard.uid == uid).await
}

async fn of_group(State(app): State<AppRef>, caller: Caller, Path(gid): Path<i32>) -> ApiResult<Response> {
    select(&app, &caller, move |_, dashboard| dashboard.gids.contains(&gid)).await
}

async fn found(app: &AppRef, caller: &Caller, id: &str) -> ApiResult<Record<Dashboard>> {
    let nowhere = || ApiError::not_found(format!("dashboard {id} that you may see"));
    // A GUID is looked for in all dashboards.
    let turn = if dashboards::is_number(id) { None } else { Some(scan_slots::turn(caller.uid()).await?) };
    let found = dashboards::find(&app.store, id, &caller.person);
    drop(turn);
    let record = match found {
        // The owner of an invalid dashboard is unknown.
        Err(StoreError::Invalid { .. }) if !caller.person.admin => return Err(nowhere()),
        record => record?,
    };
    // A caller who may not read the dashboard must not learn that it exists.
    record.filter(|record| record.value.is_readable_by(&caller.person)).ok_or_else(nowhere)
}

/// Like [`found`], but completes an invalid record with default fields, so that an administrator can repair it.
async fn changeable(app: &AppRef, caller: &Caller, id: &str) -> ApiResult<Record<Dashboard>> {
    match (found(app, caller, id).await, id.parse::<u64>()) {
        (Err(error), Ok(number)) if caller.person.admin && error.status() == StatusCode::UNPROCESSABLE_ENTITY => {
            let now = Timestamp::now();
            let blank =
                json!({ "ID": number, "Name": id, "UID": caller.uid(), "Created": now, "Updated": now, "Data": {} });
            let completed = app.store.get_completed::<Dashboard>(id, &blank)?;
            completed.ok_or_else(|| ApiError::not_found(format!("dashboard {id}")))
        }
        (record, _) => record,
    }
}

async fn show(
    State(app): State<AppRef>,
    caller: Caller,
    Path(id): Path<String>,
    known: IfNoneMatch,
) -> ApiResult<Response> {
    let record = found(&app, &caller, &id).await?;
    if record.is_synced() && known.has(&record.tag()) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, record.tag())]).into_response());
    }
    Ok(answer(&record))
}

#[derive(Clone, Deserialize)]
struct Access {
    #[serde(rename = "Global", alias = "global", default)]
    global: bool,
    #[serde(rename = "GIDs", alias = "gids", default)]
    gids: Option<Vec<i32>>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Fields {
    name: Option<String>,
    description: Option<String>,
    data: Option<Box<RawValue>>,
    labels: Option<Vec<String>>,
    uid: Option<i32>,
    gids: Option<Vec<i32>>,
    global: Option<bool>,
    writeaccess: Option<Access>,
    guid: Option<String>,
}

impl Fields {
    fn data(&self) -> ApiResult<Option<Box<RawValue>>> {
        match &self.data {
            Some(data) if !data.get().starts_with('{') => Err(ApiError::bad("Data of a dashboard must be an object")),
            data => Ok(data.clone()),
        }
    }

    /// Checks new values. Unchanged values may exceed the limits, because they may predate them.
    fn check(&self, before: Option<&Dashboard>) -> ApiResult<()> {
        if let Some(name) = self.name.as_ref().filter(|name| before.is_none_or(|before| before.name != **name)) {
            names::title("Name", name)?;
        }
        let description = self.description.as_ref();
        if let Some(text) = description.filter(|text| before.is_none_or(|before| before.description != **text)) {
            names::bounded("Description", text, names::TEXT_CHARS_MAX)?;
        }
        if let Some(labels) =
            self.labels.as_ref().filter(|labels| before.is_none_or(|before| before.labels != **labels))
        {
            names::labels("Labels", labels)?;
        }
        names::few("GIDs", self.gids.as_deref().unwrap_or_default(), names::GROUPS_MAX)?;
        let writers = self.writeaccess.as_ref().and_then(|access| access.gids.as_deref());
        Ok(names::few("WriteAccess.GIDs", writers.unwrap_or_default(), names::GROUPS_MAX)?)
    }

    fn audience(&mut self) -> Option<ShareScope> {
        let access = self.writeaccess.take()?;
        Some(ShareScope { global: access.global, groups: access.gids.unwrap_or_default() })
    }
}

async fn is_guid_of_others(app: &AppRef, caller: &Caller, guid: uuid::Uuid) -> ApiResult<bool> {
    let _turn = scan_slots::turn(caller.uid()).await?;
    Ok(dashboards::is_guid_of_others(&app.store, guid, caller.uid())?)
}

const SHARING_WITH_ALL: &str = "only administrators may share with all users";

async fn create(State(app): State<AppRef>, caller: Caller, Input(mut fields): Input<Fields>) -> ApiResult<Json<u64>> {
    fields.check(None)?;
    let admin = caller.person.admin;
    let write_access = fields.audience().unwrap_or_default();
    let global = fields.global.unwrap_or(false);
    if !admin && (global || write_access.global) {
        return Err(ApiError::forbidden(SHARING_WITH_ALL));
    }
    caller.check_groups(fields.gids.as_deref().unwrap_or_default(), &[])?;
    caller.check_groups(&write_access.groups, &[])?;
    let empty = || RawValue::from_string("{}".into()).map_err(ApiError::internal);
    let data = match fields.data()? {
        Some(data) => data,
        None => empty()?,
    };
    let asked = fields.guid.as_deref().and_then(|guid| uuid::Uuid::parse_str(guid).ok());
    // Links to another user's dashboard must keep their meaning; administrators may import any GUID.
    let guid = match asked {
        Some(asked) if admin || !is_guid_of_others(&app, &caller, asked).await? => asked,
        _ => uuid::Uuid::new_v4(),
    };
    let now = Timestamp::now();
    let dashboard = Dashboard {
        id: dashboards::new_id()?,
        name: fields.name.unwrap_or_default(),
        uid: fields.uid.filter(|uid| admin && *uid != 0).unwrap_or(caller.uid()),
        gids: fields.gids.unwrap_or_default(),
        global,
        write_access,
        description: fields.description.unwrap_or_default(),
        created: now,
        updated: now,
        data,
        labels: fields.labels.unwrap_or_default(),
        guid: guid.to_string(),
        trivial: false,
    };
    commit_new(&app, &caller, &dashboard, "create").await
}

async fn commit_new(app: &AppRef, caller: &Caller, dashboard: &Dashboard, verb: &str) -> ApiResult<Json<u64>> {
    let mut writes = Writes::new();
    writes.require::<User>(&dashboard.uid.to_string(), &format!("there is no user {}", dashboard.uid))?;
    writes.create(dashboard, "the ID was assigned to another dashboard at the same time; try again")?;
    app.store.commit(&caller.author(), &format!("{verb} dashboard {}", dashboard.name), writes).await?;
    Ok(Json(dashboard.id))
}

async fn update(
    State(app): State<AppRef>,
    caller: Caller,
    Path(id): Path<String>,
    wishes: QueryParams,
    expected: IfMatch,
    Input(fields): Input<Fields>,
) -> ApiResult<Response> {
    let is_trivial = is_on(wishes.trivial.as_deref());
    repeated(|| change(&app, &caller, &id, is_trivial, &expected, fields.clone())).await
}

async fn change(
    app: &AppRef,
    caller: &Caller,
    id: &str,
    is_trivial: bool,
    expected: &IfMatch,
    mut fields: Fields,
) -> ApiResult<Response> {
    let mut record = changeable(app, caller, id).await?;
    if !record.value.is_writable_by(&caller.person) {
        return Err(ApiError::forbidden("you may read but not change this dashboard"));
    }
    fields.check(Some(&record.value))?;
    let mut writes = Writes::new();
    match_version(expected, &record, &mut writes)?;
    if let Some(uid) = fields.uid.filter(|uid| caller.person.admin && *uid != 0 && *uid != record.value.uid) {
        writes.require::<User>(&uid.to_string(), &format!("there is no user {uid}"))?;
    }
    let (admin, owns) = (caller.person.admin, record.value.is_owned_by(&caller.person));
    let access = fields.audience();
    let data = fields.data()?;
    let dashboard = &mut record.value;
    if let Some(name) = fields.name.filter(|name| !name.is_empty()) {
        dashboard.name = name;
    }
    dashboard.description = fields.description.unwrap_or(std::mem::take(&mut dashboard.description));
    dashboard.labels = fields.labels.unwrap_or(std::mem::take(&mut dashboard.labels));
    dashboard.data = data.unwrap_or_else(|| dashboard.data.clone());
    // Clients send all fields back, so fields that the caller may not change are left unchanged without an error.
    if owns {
        caller.check_groups(fields.gids.as_deref().unwrap_or_default(), &dashboard.gids)?;
        let writers = access.as_ref().map_or(&[][..], |access| &access.groups);
        caller.check_groups(writers, &dashboard.write_access.groups)?;
        dashboard.gids = fields.gids.unwrap_or(std::mem::take(&mut dashboard.gids));
        if let Some(access) = access {
            dashboard.write_access =
                ShareScope { global: if admin { access.global } else { dashboard.write_access.global }, ..access };
        }
    }
    if admin {
        dashboard.global = fields.global.unwrap_or(dashboard.global);
        dashboard.uid = fields.uid.filter(|uid| *uid != 0).unwrap_or(dashboard.uid);
        if let Some(guid) = fields.guid.as_deref().and_then(|guid| uuid::Uuid::parse_str(guid).ok()) {
            dashboard.guid = guid.to_string();
        }
    } else if fields.global == Some(true) && !dashboard.global {
        return Err(ApiError::forbidden(SHARING_WITH_ALL));
    }
    dashboard.trivial = is_trivial;
    dashboard.updated = Timestamp::now();
    writes.update(&record, "the dashboard was deleted in the meantime")?;
    let what = format!("change dashboard {}", record.value.name);
    app.store.commit(&caller.author(), &what, writes).await?;
    let key = record.value.key();
    let stored = app.store.get::<Dashboard>(&key)?.ok_or_else(|| ApiError::not_found(format!("dashboard {key}")))?;
    Ok(answer(&stored))
}

async fn remove(
    State(app): State<AppRef>,
    caller: Caller,
    Path(id): Path<String>,
    expected: IfMatch,
) -> ApiResult<Json<Value>> {
    if invalid::discarded(&app, &caller, Dashboard::COLLECTION, &id).await? {
        return Ok(DONE);
    }
    repeated(|| delete_dashboard(&app, &caller, &id, &expected)).await
}

async fn delete_dashboard(app: &AppRef, caller: &Caller, id: &str, expected: &IfMatch) -> ApiResult<Json<Value>> {
    let record = found(app, caller, id).await?;
    if !record.value.is_owned_by(&caller.person) {
        return Err(ApiError::forbidden("only the owner and administrators may delete this dashboard"));
    }
    let mut writes = Writes::new();
    match_version(expected, &record, &mut writes)?;
    writes.delete(&record, "the dashboard was deleted in the meantime")?;
    app.store.commit(&caller.author(), &format!("delete dashboard {}", record.value.name), writes).await?;
    Ok(DONE)
}

async fn copy(State(app): State<AppRef>, caller: Caller, Path(id): Path<String>) -> ApiResult<Json<u64>> {
    let original = found(&app, &caller, &id).await?.value;
    let now = Timestamp::now();
    let dashboard = Dashboard {
        id: dashboards::new_id()?,
        uid: caller.uid(),
        gids: Vec::new(),
        global: false,
        write_access: ShareScope::default(),
        created: now,
        updated: now,
        guid: uuid::Uuid::new_v4().to_string(),
        ..original
    };
    commit_new(&app, &caller, &dashboard, "clone").await
}
