//! Routes of resource metadata. Contents are served by [`super::contents`].

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{DONE, invalid, match_version, repeated};
use crate::app::AppRef;
use crate::authorization::{AccessRequirement, Right};
use crate::caller::Caller;
use crate::entity_tags::IfMatch;
use crate::error::{ApiError, ApiResult};
use crate::listing::List;
use crate::request_input::Input;
use crate::route::{Route, delete, get, post, put};
use crate::scan_slots;
use gravwell_objects::blobs::{self, Content};
use gravwell_objects::resources::{self, Resource};
use gravwell_objects::sharing::Shareable;
use gravwell_objects::store::CommitProgress;
use gravwell_objects::users::User;
use gravwell_objects::{Record, StoreError, Stored, Timestamp, Writes, accounts, names};

pub(super) const READ: AccessRequirement = AccessRequirement::User(Right::Capability("ResourceRead"));
pub(super) const WRITE: AccessRequirement = AccessRequirement::User(Right::Capability("ResourceWrite"));

const CHANGED: &str = "the contents were replaced in the meantime; try again";

pub(crate) fn routes() -> Vec<Route> {
    vec![
        get("/api/resources", READ, "Lists the resources that the caller may see.", list),
        post("/api/resources", WRITE, "Creates a resource without contents.", create),
        get("/api/resources/{guid}", READ, "Returns the metadata of a resource.", show),
        put("/api/resources/{guid}", WRITE, "Changes the metadata of a resource.", update),
        delete("/api/resources/{guid}", WRITE, "Deletes a resource and its contents.", remove),
        post("/api/resources/{guid}/clone", WRITE, "Copies a resource for the caller; its contents are shared.", copy),
        get(
            "/api/resources/lookup/{*name}",
            READ,
            "Returns the GUID of the resource to which a name resolves for the caller.",
            look_up,
        ),
    ]
}

/// Returns a resource as JSON for clients.
fn shown(record: &Record<Resource>) -> Value {
    let resource = &record.value;
    json!({
        "UID": resource.uid,
        "GUID": resource.guid,
        "Domain": resource.domain,
        "LastModified": resource.last_modified,
        "VersionNumber": resource.version_number,
        "GroupACL": resource.group_acl,
        "Global": resource.global,
        "ResourceName": resource.resource_name,
        "Description": resource.description,
        "Size": resource.size,
        "Hash": resource.hash,
        "Synced": record.is_synced(),
        "Labels": resource.labels,
    })
}

pub(super) fn answer(record: &Record<Resource>) -> Response {
    ([(header::ETAG, record.tag())], Json(shown(record))).into_response()
}

pub(super) fn found(app: &AppRef, caller: &Caller, guid: &str) -> ApiResult<Record<Resource>> {
    let nowhere = || ApiError::not_found(format!("resource {guid} that you may see"));
    let record = match resources::by_guid(&app.store, guid) {
        // The owner of an invalid resource is unknown.
        Err(StoreError::Invalid { .. }) if !caller.person.admin => return Err(nowhere()),
        record => record?,
    };
    record.filter(|record| record.value.is_readable_by(&caller.person)).ok_or_else(nowhere)
}

pub(super) fn owned(app: &AppRef, caller: &Caller, guid: &str) -> ApiResult<Record<Resource>> {
    let record = found(app, caller, guid)?;
    if record.value.is_owned_by(&caller.person) {
        return Ok(record);
    }
    Err(ApiError::forbidden("only the owner and administrators may change this resource"))
}

/// Like [`owned`], but completes an invalid record with default fields, so that an administrator can repair it.
fn changeable(app: &AppRef, caller: &Caller, guid: &str) -> ApiResult<Record<Resource>> {
    match owned(app, caller, guid) {
        Err(error) if caller.person.admin && error.status() == StatusCode::UNPROCESSABLE_ENTITY => {
            let blank = json!({
                "UID": caller.uid(),
                "GUID": guid,
                "Domain": app.config.domain,
                "LastModified": Timestamp::now(),
                "VersionNumber": 0,
                "GroupACL": [],
                "Global": false,
                "ResourceName": guid,
                "Description": "",
                "Size": 0,
                "Hash": "",
                "Labels": [],
                "Content": "",
            });
            let completed = app.store.get_completed::<Resource>(guid, &blank)?;
            completed.ok_or_else(|| ApiError::not_found(format!("resource {guid}")))
        }
        record => record,
    }
}

pub(super) fn stored(app: &AppRef, guid: uuid::Uuid) -> ApiResult<Record<Resource>> {
    app.store.get::<Resource>(&guid.to_string())?.ok_or_else(|| ApiError::not_found(format!("resource {guid}")))
}

async fn list(State(app): State<AppRef>, caller: Caller) -> ApiResult<Response> {
    let wanted = |caller: &Caller, resource: &Resource| caller.all || resource.is_listed_for(&caller.person);
    let list = List::new(String::new(), wanted, |_, record: &Record<Resource>| serde_json::to_vec(&shown(record)));
    list.answer(&app, &caller, |_| ()).await
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Fields {
    resourcename: Option<String>,
    description: Option<String>,
    groupacl: Option<Vec<i32>>,
    global: Option<bool>,
    labels: Option<Vec<String>>,
    uid: Option<i32>,
}

impl Fields {
    /// Checks new values. Unchanged values may exceed the limits, because they may predate them.
    fn check(&self, before: Option<&Resource>) -> ApiResult<()> {
        let is_new = |name: &&String| before.is_none_or(|before| before.resource_name != **name);
        if let Some(name) = self.resourcename.as_ref().filter(is_new) {
            names::title("ResourceName", name)?;
        }
        let is_new = |text: &&String| before.is_none_or(|before| before.description != **text);
        if let Some(text) = self.description.as_ref().filter(is_new) {
            names::bounded("Description", text, names::TEXT_CHARS_MAX)?;
        }
        if let Some(labels) =
            self.labels.as_ref().filter(|labels| before.is_none_or(|before| before.labels != **labels))
        {
            names::labels("Labels", labels)?;
        }
        Ok(names::few("GroupACL", self.groupacl.as_deref().unwrap_or_default(), names::GROUPS_MAX)?)
    }
}

async fn create(State(app): State<AppRef>, caller: Caller, Input(fields): Input<Fields>) -> ApiResult<Response> {
    fields.check(None)?;
    let global = fields.global.unwrap_or(false);
    if global && !caller.person.admin {
        return Err(ApiError::forbidden("only administrators may share with all users"));
    }
    caller.check_groups(fields.groupacl.as_deref().unwrap_or_default(), &[])?;
    let name = fields.resourcename.filter(|name| !name.trim().is_empty());
    let resource = Resource {
        uid: caller.uid(),
        guid: uuid::Uuid::new_v4(),
        domain: app.config.domain,
        last_modified: Timestamp::now(),
        version_number: 0,
        group_acl: fields.groupacl.unwrap_or_default(),
        global,
        resource_name: name.ok_or_else(|| ApiError::bad("ResourceName is missing"))?,
        description: fields.description.unwrap_or_default(),
        size: 0,
        hash: String::new(),
        labels: fields.labels.unwrap_or_default(),
        content: String::new(),
    };
    commit_new(&app, &caller, &resource, Writes::new(), "create").await
}

async fn commit_new(
    app: &AppRef,
    caller: &Caller,
    resource: &Resource,
    mut writes: Writes,
    verb: &str,
) -> ApiResult<Response> {
    writes.require::<User>(&resource.uid.to_string(), accounts::USER_GONE)?;
    writes.create(resource, "the resource already exists; try again")?;
    app.store.commit(&caller.author(), &format!("{verb} resource {}", resource.resource_name), writes).await?;
    Ok(answer(&stored(app, resource.guid)?))
}

async fn show(State(app): State<AppRef>, caller: Caller, Path(guid): Path<String>) -> ApiResult<Response> {
    Ok(answer(&found(&app, &caller, &guid)?))
}

async fn update(
    State(app): State<AppRef>,
    caller: Caller,
    Path(guid): Path<String>,
    expected: IfMatch,
    Input(fields): Input<Fields>,
) -> ApiResult<Response> {
    repeated(|| change(&app, &caller, &guid, &expected, fields.clone())).await
}

async fn change(app: &AppRef, caller: &Caller, guid: &str, expected: &IfMatch, fields: Fields) -> ApiResult<Response> {
    let mut record = changeable(app, caller, guid)?;
    fields.check(Some(&record.value))?;
    caller.check_groups(fields.groupacl.as_deref().unwrap_or_default(), &record.value.group_acl)?;
    let mut writes = Writes::new();
    match_version(expected, &record, &mut writes)?;
    if let Some(uid) = fields.uid.filter(|uid| caller.person.admin && *uid != 0 && *uid != record.value.uid) {
        writes.require::<User>(&uid.to_string(), &format!("there is no user {uid}"))?;
    }
    let resource = &mut record.value;
    if let Some(name) = fields.resourcename.filter(|name| !name.trim().is_empty()) {
        resource.resource_name = name;
    }
    resource.description = fields.description.unwrap_or(std::mem::take(&mut resource.description));
    resource.labels = fields.labels.unwrap_or(std::mem::take(&mut resource.labels));
    resource.group_acl = fields.groupacl.unwrap_or(std::mem::take(&mut resource.group_acl));
    if caller.person.admin {
        resource.global = fields.global.unwrap_or(resource.global);
        resource.uid = fields.uid.filter(|uid| *uid != 0).unwrap_or(resource.uid);
    } else if fields.global == Some(true) && !resource.global {
        return Err(ApiError::forbidden("only administrators may share with all users"));
    }
    resource.last_modified = Timestamp::now();
    writes.update(&record, "the resource was deleted in the meantime")?;
    // A concurrent upload may replace the contents: the record must not reference contents that are deleted.
    blobs::name_again(&app.store, &record.value.content, CHANGED, &mut writes)?;
    let what = format!("change resource {}", record.value.resource_name);
    app.store.commit(&caller.author(), &what, writes).await?;
    Ok(answer(&stored(app, record.value.guid)?))
}

async fn remove(State(app): State<AppRef>, caller: Caller, Path(guid): Path<String>) -> ApiResult<Json<Value>> {
    if invalid::discarded(&app, &caller, Resource::COLLECTION, &guid).await? {
        return Ok(DONE);
    }
    repeated(|| delete_resource(&app, &caller, &guid)).await
}

async fn delete_resource(app: &AppRef, caller: &Caller, guid: &str) -> ApiResult<Json<Value>> {
    let record = owned(app, caller, guid)?;
    let mut writes = Writes::new();
    writes.delete(&record, "the resource was deleted in the meantime")?;
    let what = format!("delete resource {}", record.value.resource_name);
    let committed = app.store.commit(&caller.author(), &what, writes).await?;
    take_away(app, caller, committed, &record.value.content).await;
    Ok(DONE)
}

/// Deletes contents that are no longer referenced, once the transaction that removed the reference is committed: a
/// pending one may still be rejected, and the contents would be needed. Remaining contents are deleted by the sweeper.
pub(super) async fn take_away(app: &AppRef, caller: &Caller, committed: CommitProgress, content: &str) {
    if content.is_empty() || !matches!(committed, CommitProgress::At(_)) {
        return;
    }
    let done = async {
        if let Some(writes) = blobs::removal(&app.store, content)? {
            app.store.commit(&caller.author(), "delete unreferenced blob", writes).await?;
        }
        Ok::<_, gravwell_objects::CommitError>(())
    };
    if let Err(error) = done.await {
        tracing::debug!(%error, content, "failed to delete a blob; will retry");
    }
}

pub(super) fn content_of(app: &AppRef, resource: &Resource) -> ApiResult<Option<Content>> {
    if resource.content.is_empty() {
        return Ok(None);
    }
    let content = app.store.get::<Content>(&resource.content)?;
    let missing = || ApiError::internal(format!("the contents of resource {} are missing", resource.guid));
    content.map(|record| Some(record.value)).ok_or_else(missing)
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct CopyName {
    name: String,
}

async fn copy(
    State(app): State<AppRef>,
    caller: Caller,
    Path(guid): Path<String>,
    Input(CopyName { name }): Input<CopyName>,
) -> ApiResult<Response> {
    names::title("Name", &name)?;
    let original = found(&app, &caller, &guid)?.value;
    let mut writes = Writes::new();
    blobs::name_again(&app.store, &original.content, CHANGED, &mut writes)?;
    let resource = Resource {
        uid: caller.uid(),
        guid: uuid::Uuid::new_v4(),
        domain: app.config.domain,
        last_modified: Timestamp::now(),
        version_number: 1,
        group_acl: Vec::new(),
        global: false,
        resource_name: if name.trim().is_empty() { original.resource_name.clone() } else { name },
        ..original
    };
    commit_new(&app, &caller, &resource, writes, "clone").await
}

async fn look_up(State(app): State<AppRef>, caller: Caller, Path(name): Path<String>) -> ApiResult<Json<uuid::Uuid>> {
    let turn = scan_slots::turn(caller.uid()).await?;
    let record = resources::resolve(&app.store, &caller.person, &name)?;
    drop(turn);
    record.map(|record| Json(record.value.guid)).ok_or_else(|| ApiError::not_found(format!("resource called {name}")))
}
