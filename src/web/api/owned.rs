//! Routes of the kinds of [`gravwell_objects::owned_kinds`]: one generic resource, and one line for each kind.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::ser::{Error as _, SerializeMap};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{DONE, invalid, match_version, repeated};
use crate::app::AppRef;
use crate::authorization::{AccessRequirement, Right};
use crate::caller::Caller;
use crate::entity_tags::{IfMatch, IfNoneMatch};
use crate::error::{ApiError, ApiResult};
use crate::listing::List;
use crate::request_input::Given;
use crate::route::{Route, delete, get, post, put};
use crate::scan_slots;
use gravwell_objects::owned::{self, Field, Head, IdForm, NameForm, Owned, OwnedKind, Spec, Wire};
use gravwell_objects::owned_kinds::{Actionable, Macro, Playbook, SavedQuery, Template};
use gravwell_objects::sharing::{Principal, ShareScope, Shareable};
use gravwell_objects::users::User;
use gravwell_objects::{Record, StoreError, Stored, Timestamp, Writes, names};

const SHARING_WITH_ALL: &str = "only administrators may share with all users";

pub(crate) fn routes() -> Vec<Route> {
    let kinds = [of::<Macro>(), of::<Template>(), of::<Actionable>(), of::<SavedQuery>(), of::<Playbook>()];
    kinds.into_iter().flatten().collect()
}

/// Returns the routes of one kind.
fn of<K: OwnedKind>() -> Vec<Route> {
    use AccessRequirement::{Admin, MemberOrAdmin, SelfOrAdmin, User};
    let Spec { path, singular, plural, capabilities, wire, .. } = K::SPEC;
    let (read, write) = (Right::Capability(capabilities.read), Right::Capability(capabilities.write));
    let one = format!("{path}/{{id}}");
    let returned = if wire.returns_whole { "it" } else { "its ID" };
    let mut routes = vec![
        get(*path, User(read), format!("Lists the {plural} that the caller may see."), list::<K>),
        post(*path, User(write), format!("Creates a {singular} and returns {returned}."), create::<K>),
        get(one.clone(), User(read), format!("Returns a {singular} by ID or GUID."), show::<K>),
        put(one.clone(), User(write), format!("Changes a {singular}; missing fields are unchanged."), update::<K>),
        delete(one.clone(), User(write), format!("Deletes a {singular}."), remove::<K>),
    ];
    if wire.has_details {
        routes.push(get(
            format!("{one}/details"),
            User(read),
            format!("Returns a {singular} by ID or GUID."),
            show::<K>,
        ));
    }
    if wire.has_lists {
        let name = path.trim_start_matches("/api/");
        routes.extend([
            get(format!("{path}/all"), Admin, format!("Lists the {plural} of all users."), list_all::<K>),
            get(
                format!("/api/users/{{uid}}/{name}"),
                SelfOrAdmin(read),
                format!("Lists the {plural} that a user owns."),
                of_user::<K>,
            ),
            get(
                format!("/api/groups/{{gid}}/{name}"),
                MemberOrAdmin(read),
                format!("Lists the {plural} shared with a group."),
                of_group::<K>,
            ),
        ]);
    }
    routes
}

/// An object as JSON for clients.
struct Shown<'a, K> {
    record: &'a Record<Owned<K>>,
    person: &'a Principal,
    /// Whether it is part of a list, which omits long fields.
    is_listed: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Can {
    delete: bool,
    modify: bool,
    share: bool,
}

impl<K: OwnedKind> Serialize for Shown<'_, K> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let (object, spec) = (&self.record.value, K::SPEC);
        let Head { id, guid, uid, gids, global, write_access, name, description, labels, updated, .. } = &object.head;
        let owns = object.is_owned_by(self.person);
        let mut map = to.serialize_map(None)?;
        match spec.id {
            IdForm::Number => map.serialize_entry(spec.wire.id, &id.parse::<u64>().map_err(S::Error::custom)?)?,
            IdForm::Uuid => map.serialize_entry(spec.wire.id, id)?,
        }
        map.serialize_entry("GUID", guid)?;
        map.serialize_entry("UID", uid)?;
        map.serialize_entry("GIDs", gids)?;
        map.serialize_entry("Global", global)?;
        map.serialize_entry("WriteAccess", write_access)?;
        let can = Can { delete: owns, modify: object.is_writable_by(self.person), share: owns };
        map.serialize_entry("Can", &can)?;
        map.serialize_entry("Name", name)?;
        map.serialize_entry(spec.wire.description, description)?;
        map.serialize_entry("Labels", labels)?;
        map.serialize_entry(spec.wire.updated, updated)?;
        map.serialize_entry("Synced", &self.record.is_synced())?;
        for field in spec.fields.iter().filter(|field| !(self.is_listed && field.is_long)) {
            let value: &RawValue = serde_json::from_str(object.field(field)).map_err(S::Error::custom)?;
            map.serialize_entry(field.name, value)?;
        }
        map.end()
    }
}

fn answer<K: OwnedKind>(caller: &Caller, record: &Record<Owned<K>>) -> Response {
    let shown = Shown { record, person: &caller.person, is_listed: false };
    ([(header::ETAG, record.tag())], Json(shown)).into_response()
}

async fn select<K: OwnedKind>(
    app: &AppRef,
    caller: &Caller,
    wanted: impl Fn(&Caller, &Owned<K>) -> bool + Send + 'static,
) -> ApiResult<Response> {
    let person = caller.person.clone();
    let list = List::new(String::new(), wanted, move |_, record: &Record<Owned<K>>| {
        serde_json::to_vec(&Shown { record, person: &person, is_listed: true })
    });
    list.answer(app, caller, |object| object.head.created).await
}

async fn list<K: OwnedKind>(State(app): State<AppRef>, caller: Caller) -> ApiResult<Response> {
    select::<K>(&app, &caller, |caller, object| caller.all || object.is_listed_for(&caller.person)).await
}

async fn list_all<K: OwnedKind>(State(app): State<AppRef>, caller: Caller) -> ApiResult<Response> {
    select::<K>(&app, &caller, |caller, object| object.is_readable_by(&caller.person)).await
}

async fn of_user<K: OwnedKind>(State(app): State<AppRef>, caller: Caller, Path(uid): Path<i32>) -> ApiResult<Response> {
    select::<K>(&app, &caller, move |_, object| object.head.uid == uid).await
}

async fn of_group<K: OwnedKind>(
    State(app): State<AppRef>,
    caller: Caller,
    Path(gid): Path<i32>,
) -> ApiResult<Response> {
    select::<K>(&app, &caller, move |_, object| object.head.gids.contains(&gid)).await
}

async fn found<K: OwnedKind>(app: &AppRef, caller: &Caller, id: &str) -> ApiResult<Record<Owned<K>>> {
    let nowhere = || ApiError::not_found(format!("{} {id} that you may see", K::SPEC.singular));
    let by_id = match owned::by_id::<K>(&app.store, id) {
        // The owner of an invalid object is unknown.
        Err(StoreError::Invalid { .. }) if !caller.person.admin => return Err(nowhere()),
        found => found?,
    };
    let record = match by_id {
        Some(record) => Some(record),
        None if uuid::Uuid::parse_str(id).is_ok() => {
            let _turn = scan_slots::turn(caller.uid()).await?;
            owned::by_guid::<K>(&app.store, id, &caller.person)?
        }
        None => None,
    };
    // A caller who may not read the object must not learn that it exists.
    record.filter(|record| record.value.is_readable_by(&caller.person)).ok_or_else(nowhere)
}

/// Like [`found`], but completes an invalid record with default fields, so that an administrator can repair it.
async fn changeable<K: OwnedKind>(app: &AppRef, caller: &Caller, id: &str) -> ApiResult<Record<Owned<K>>> {
    match found::<K>(app, caller, id).await {
        Err(error) if caller.person.admin && error.status() == StatusCode::UNPROCESSABLE_ENTITY => {
            let (id, now) = (id.to_ascii_lowercase(), Timestamp::now());
            let blank = json!({ "ID": id, "Name": id, "UID": caller.uid(), "Created": now, "Updated": now });
            let completed = app.store.get_completed::<Owned<K>>(&id, &blank)?;
            completed.ok_or_else(|| ApiError::not_found(format!("{} {id}", K::SPEC.singular)))
        }
        record => record,
    }
}

async fn show<K: OwnedKind>(
    State(app): State<AppRef>,
    caller: Caller,
    Path(id): Path<String>,
    known: IfNoneMatch,
) -> ApiResult<Response> {
    let record = found::<K>(&app, &caller, &id).await?;
    if record.is_synced() && known.has(&record.tag()) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, record.tag())]).into_response());
    }
    Ok(answer(&caller, &record))
}

/// Share scope of writers. Only an object is accepted: derived decoders also take a list for a structure, and an empty
/// list would remove the access of all groups.
#[derive(Clone, Default, Deserialize)]
#[serde(try_from = "serde_json::Map<String, Value>")]
struct Access {
    global: bool,
    gids: Option<Vec<i32>>,
}

impl TryFrom<serde_json::Map<String, Value>> for Access {
    type Error = serde_json::Error;

    fn try_from(members: serde_json::Map<String, Value>) -> serde_json::Result<Access> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Members {
            #[serde(rename = "Global", alias = "global")]
            global: bool,
            #[serde(rename = "GIDs", alias = "gids")]
            gids: Option<Vec<i32>>,
        }
        let Members { global, gids } = serde_json::from_value(Value::Object(members))?;
        Ok(Access { global, gids })
    }
}

/// Members of a request, checked.
#[derive(Clone)]
struct Wishes {
    name: Option<String>,
    description: Option<String>,
    labels: Option<Vec<String>>,
    uid: Option<i32>,
    gids: Option<Vec<i32>>,
    global: Option<bool>,
    writers: Option<ShareScope>,
    guid: Option<uuid::Uuid>,
    fields: Vec<(&'static Field, Box<RawValue>)>,
}

impl Wishes {
    fn of<K: OwnedKind>(given: &Given) -> ApiResult<Wishes> {
        let Spec { fields, wire: Wire { description, .. }, .. } = K::SPEC;
        let writers: Option<Access> = given.member("writeaccess")?;
        let guid: Option<String> = given.set("guid")?;
        let mut wishes = Wishes {
            name: given.set("name")?,
            description: given.member(&description.to_lowercase())?,
            labels: given.member("labels")?,
            uid: given.set("uid")?.filter(|uid| *uid != 0),
            gids: given.member("gids")?,
            global: given.set("global")?,
            writers: writers.map(|Access { global, gids }| ShareScope { global, groups: gids.unwrap_or_default() }),
            // Clients send zeros for none.
            guid: guid.and_then(|guid| uuid::Uuid::parse_str(&guid).ok()).filter(|guid| !guid.is_nil()),
            fields: Vec::new(),
        };
        for field in *fields {
            let Some(value) = given.raw(&field.name.to_lowercase()) else { continue };
            let value = match value.get() {
                // Lists omit the field, so clients that send back what they have listed send `null`.
                "null" if field.is_long => continue,
                "null" => RawValue::from_string(field.default.to_owned()).map_err(ApiError::internal)?,
                _ => field.accepted(value)?,
            };
            wishes.fields.push((field, value));
        }
        Ok(wishes)
    }

    /// Checks new values. Unchanged values may exceed the limits, because they may predate them. An empty name leaves that
    /// of an existing object unchanged.
    fn check(&self, form: NameForm, before: Option<&Head>) -> ApiResult<()> {
        let is_new = |name: &&String| before.is_none_or(|before| before.name != **name && !name.is_empty());
        if let Some(name) = self.name.as_ref().filter(is_new) {
            form.check(name)?;
        }
        let is_new = |text: &&String| before.is_none_or(|before| before.description != **text);
        if let Some(text) = self.description.as_ref().filter(is_new) {
            names::bounded("Description", text, names::TEXT_CHARS_MAX)?;
        }
        let is_new = |labels: &&Vec<String>| before.is_none_or(|before| before.labels != **labels);
        if let Some(labels) = self.labels.as_ref().filter(is_new) {
            names::labels("Labels", labels)?;
        }
        names::few("GIDs", self.gids.as_deref().unwrap_or_default(), names::GROUPS_MAX)?;
        let writers = self.writers.as_ref().map_or(&[][..], |writers| &writers.groups);
        Ok(names::few("WriteAccess.GIDs", writers, names::GROUPS_MAX)?)
    }
}

/// Checks that a user has no other object with a name, if names of the kind are unique. Of two that are created at the
/// same time at two webservers, both stay.
async fn check_unique<K: OwnedKind>(app: &AppRef, caller: &Caller, object: &Owned<K>) -> ApiResult<()> {
    if K::SPEC.name != NameForm::Identifier {
        return Ok(());
    }
    let Head { id, uid, name, .. } = &object.head;
    let _turn = scan_slots::turn(caller.uid()).await?;
    if owned::is_name_used::<K>(&app.store, name, *uid, id)? {
        let singular = K::SPEC.singular;
        return Err(ApiError::conflict(format!("user {uid} already has a {singular} called {name}")));
    }
    Ok(())
}

async fn is_guid_of_others<K: OwnedKind>(app: &AppRef, caller: &Caller, guid: uuid::Uuid) -> ApiResult<bool> {
    let _turn = scan_slots::turn(caller.uid()).await?;
    Ok(owned::is_guid_of_others::<K>(&app.store, guid, caller.uid())?)
}

async fn create<K: OwnedKind>(State(app): State<AppRef>, caller: Caller, given: Given) -> ApiResult<Response> {
    let (spec, wishes) = (K::SPEC, Wishes::of::<K>(&given)?);
    wishes.check(spec.name, None)?;
    let admin = caller.person.admin;
    let (global, write_access) = (wishes.global.unwrap_or(false), wishes.writers.unwrap_or_default());
    if !admin && (global || write_access.global) {
        return Err(ApiError::forbidden(SHARING_WITH_ALL));
    }
    caller.check_groups(wishes.gids.as_deref().unwrap_or_default(), &[])?;
    caller.check_groups(&write_access.groups, &[])?;
    let name = wishes.name.unwrap_or_default();
    spec.name.check(&name)?;
    // Links to another user's object must keep their meaning; administrators may import any GUID.
    let guid = match wishes.guid {
        Some(asked) if admin || !is_guid_of_others::<K>(&app, &caller, asked).await? => asked,
        _ => uuid::Uuid::new_v4(),
    };
    let now = Timestamp::now();
    let mut object = Owned::<K>::new(Head {
        id: spec.id.draw()?,
        guid: guid.to_string(),
        uid: wishes.uid.filter(|_| admin).unwrap_or(caller.uid()),
        gids: wishes.gids.unwrap_or_default(),
        global,
        write_access,
        name,
        description: wishes.description.unwrap_or_default(),
        labels: wishes.labels.unwrap_or_default(),
        created: now,
        updated: now,
    });
    wishes.fields.into_iter().for_each(|(field, value)| object.set(field, value));
    check_unique(&app, &caller, &object).await?;
    let Head { id, uid, name, .. } = &object.head;
    let mut writes = Writes::new();
    writes.require::<User>(&uid.to_string(), &format!("there is no user {uid}"))?;
    let taken = format!("the ID was assigned to another {} at the same time; try again", spec.singular);
    writes.create(&object, &taken)?;
    app.store.commit(&caller.author(), &format!("create {} {name}", spec.singular), writes).await?;
    if spec.wire.returns_whole {
        return Ok(answer(&caller, &stored::<K>(&app, id)?));
    }
    Ok(match spec.id {
        IdForm::Number => Json(id.parse::<u64>().map_err(ApiError::internal)?).into_response(),
        IdForm::Uuid => Json(id).into_response(),
    })
}

fn stored<K: OwnedKind>(app: &AppRef, id: &str) -> ApiResult<Record<Owned<K>>> {
    app.store.get::<Owned<K>>(id)?.ok_or_else(|| ApiError::not_found(format!("{} {id}", K::SPEC.singular)))
}

async fn update<K: OwnedKind>(
    State(app): State<AppRef>,
    caller: Caller,
    Path(id): Path<String>,
    expected: IfMatch,
    given: Given,
) -> ApiResult<Response> {
    let wishes = Wishes::of::<K>(&given)?;
    repeated(|| change::<K>(&app, &caller, &id, &expected, wishes.clone())).await
}

async fn change<K: OwnedKind>(
    app: &AppRef,
    caller: &Caller,
    id: &str,
    expected: &IfMatch,
    wishes: Wishes,
) -> ApiResult<Response> {
    let singular = K::SPEC.singular;
    let mut record = changeable::<K>(app, caller, id).await?;
    if !record.value.is_writable_by(&caller.person) {
        return Err(ApiError::forbidden(format!("you may read but not change this {singular}")));
    }
    wishes.check(K::SPEC.name, Some(&record.value.head))?;
    let mut writes = Writes::new();
    match_version(expected, &record, &mut writes)?;
    let before = record.value.head.clone();
    let is_owner = record.value.is_owned_by(&caller.person);
    let head = &mut record.value.head;
    head.name = wishes.name.filter(|name| !name.is_empty()).unwrap_or(std::mem::take(&mut head.name));
    head.description = wishes.description.unwrap_or(std::mem::take(&mut head.description));
    head.labels = wishes.labels.unwrap_or(std::mem::take(&mut head.labels));
    // Clients send all fields back, so fields that the caller may not change are left unchanged without an error.
    if is_owner {
        caller.check_groups(wishes.gids.as_deref().unwrap_or_default(), &head.gids)?;
        head.gids = wishes.gids.unwrap_or(std::mem::take(&mut head.gids));
        if let Some(writers) = wishes.writers {
            caller.check_groups(&writers.groups, &head.write_access.groups)?;
            let global = if caller.person.admin { writers.global } else { head.write_access.global };
            head.write_access = ShareScope { global, ..writers };
        }
        if let Some(guid) = wishes.guid.filter(|guid| guid.to_string() != before.guid) {
            if !caller.person.admin && is_guid_of_others::<K>(app, caller, guid).await? {
                return Err(ApiError::conflict(format!("another user has a {singular} with this GUID")));
            }
            head.guid = guid.to_string();
        }
    }
    if caller.person.admin {
        head.global = wishes.global.unwrap_or(head.global);
        head.uid = wishes.uid.unwrap_or(head.uid);
        if head.uid != before.uid {
            let uid = head.uid;
            writes.require::<User>(&uid.to_string(), &format!("there is no user {uid}"))?;
        }
    } else if wishes.global == Some(true) && !head.global {
        return Err(ApiError::forbidden(SHARING_WITH_ALL));
    }
    head.updated = Timestamp::now();
    wishes.fields.into_iter().for_each(|(field, value)| record.value.set(field, value));
    // Another writer would learn from it which names the owner uses.
    if is_owner && (&record.value.head.name, record.value.head.uid) != (&before.name, before.uid) {
        check_unique(app, caller, &record.value).await?;
    }
    writes.update(&record, &format!("the {singular} was deleted in the meantime"))?;
    let what = format!("change {singular} {}", record.value.head.name);
    app.store.commit(&caller.author(), &what, writes).await?;
    Ok(answer(caller, &stored::<K>(app, &record.value.head.id)?))
}

async fn remove<K: OwnedKind>(
    State(app): State<AppRef>,
    caller: Caller,
    Path(id): Path<String>,
    expected: IfMatch,
) -> ApiResult<Json<Value>> {
    if invalid::discarded(&app, &caller, Owned::<K>::COLLECTION, &id).await? {
        return Ok(DONE);
    }
    repeated(|| delete_object::<K>(&app, &caller, &id, &expected)).await
}

async fn delete_object<K: OwnedKind>(
    app: &AppRef,
    caller: &Caller,
    id: &str,
    expected: &IfMatch,
) -> ApiResult<Json<Value>> {
    let singular = K::SPEC.singular;
    let record = found::<K>(app, caller, id).await?;
    if !record.value.is_owned_by(&caller.person) {
        return Err(ApiError::forbidden(format!("only the owner and administrators may delete this {singular}")));
    }
    let mut writes = Writes::new();
    match_version(expected, &record, &mut writes)?;
    writes.delete(&record, &format!("the {singular} was deleted in the meantime"))?;
    app.store.commit(&caller.author(), &format!("delete {singular} {}", record.value.head.name), writes).await?;
    Ok(DONE)
}
