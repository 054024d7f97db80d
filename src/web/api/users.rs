//! Routes of users.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::groups::group_details;
use super::{DONE, invalid, match_version, mfa, repeated, tokens};
use crate::app::AppRef;
use crate::authorization::{AccessRequirement, Right};
use crate::caller::Caller;
use crate::entity_tags::IfMatch;
use crate::error::{ApiError, ApiResult};
use crate::login_throttle::Refusal;
use crate::request_input::Input;
use crate::route::{Route, delete, get, post, put};
use crate::scan_slots;
use crate::server::PASSWORD_FILE;
use gravwell_objects::cleanup::Of;
use gravwell_objects::passwords::{self, Password};
use gravwell_objects::record::AsRead;
use gravwell_objects::sessions::{self, Session};
use gravwell_objects::tokens::Token;
use gravwell_objects::users::{self, Admin, FIRST, Lock, User};
use gravwell_objects::{Record, Store, StoreError, Stored, Timestamp, Writes, accounts, claims, groups, names};
use gravwell_runtime::tasks::blocking;

pub(crate) fn routes() -> Vec<Route> {
    use AccessRequirement::{Admin, SelfOrAdmin, User};
    use Right::{Capability, OfToken, Session};
    let this = SelfOrAdmin(Session);
    let search_groups = SelfOrAdmin(OfToken("SetSearchGroup"));
    vec![
        get("/api/users", User(Capability("ListUsers")), "Lists all users.", list),
        post("/api/users", Admin, "Creates a user and returns its ID.", create),
        get("/api/users/{uid}", SelfOrAdmin(OfToken("ListUsers")), "Returns a user.", show),
        put("/api/users/{uid}", this, "Changes a user; missing or empty fields are unchanged.", update),
        delete("/api/users/{uid}", Admin, "Deletes a user and all objects that belong only to the user.", remove),
        put("/api/users/{uid}/lock", Admin, "Locks an account and ends its sessions.", lock),
        delete("/api/users/{uid}/lock", Admin, "Unlocks an account.", unlock),
        get("/api/users/{uid}/locked", Admin, "Returns whether an account is locked.", is_locked),
        get("/api/users/{uid}/admin", Admin, "Returns whether a user is an administrator.", is_admin),
        put("/api/users/{uid}/admin", Admin, "Makes a user an administrator.", promote),
        delete("/api/users/{uid}/admin", Admin, "Revokes the administrator role of a user.", demote),
        put(
            "/api/users/{uid}/pwd",
            this,
            "Changes a password; your own requires the old one. Returns the API tokens that stay valid.",
            change_password,
        ),
        get(
            "/api/users/{uid}/searchgroup",
            search_groups,
            "Returns the default group of searches, or 0.",
            search_group,
        ),
        put("/api/users/{uid}/searchgroup", search_groups, "Sets the default group of searches.", set_search_group),
        delete(
            "/api/users/{uid}/searchgroup",
            search_groups,
            "Unsets the default group of searches.",
            unset_search_group,
        ),
        get("/api/users/{uid}/group", SelfOrAdmin(OfToken("ListGroups")), "Lists the groups of a user.", groups_of),
        post("/api/users/{uid}/group", Admin, "Adds a user to groups.", join),
        delete("/api/users/{uid}/group/{gid}", Admin, "Removes a user from a group.", leave),
    ]
}

pub(super) fn found(store: &Store, uid: i32) -> ApiResult<Record<User>> {
    store.get::<User>(&uid.to_string())?.ok_or_else(|| ApiError::not_found(format!("user {uid}")))
}

/// Like [`found`], but completes an invalid record with default fields, so that an administrator can repair it.
fn changeable(store: &Store, uid: i32) -> ApiResult<Record<User>> {
    let blank = json!({ "UID": uid, "User": format!("user {uid}"), "Created": Timestamp::now() });
    let record = store.get_completed::<User>(&uid.to_string(), &blank)?;
    record.ok_or_else(|| ApiError::not_found(format!("user {uid}")))
}

/// Returns a user as JSON for clients.
pub(super) fn details(store: &Store, uid: i32) -> Result<Option<Value>, StoreError> {
    match store.valid::<User>(&uid.to_string())? {
        Some(record) => described(store, &record).map(Some),
        None => Ok(None),
    }
}

fn described(store: &Store, record: &Record<User>) -> Result<Value, StoreError> {
    let user = &record.value;
    let key = user.uid.to_string();
    let (admin, lock) = (store.synced::<Admin>(&key)?, store.synced::<Lock>(&key)?);
    let parts = [admin, lock, store.synced::<Password>(&key)?];
    let synced = record.is_synced() && !parts.contains(&Some(false));
    let mut groups = Vec::new();
    for gid in users::groups_of(store, user.uid)? {
        if let Some(group) = store.valid(&gid.to_string())? {
            groups.push(group_details(&group));
        }
    }
    let hits = sessions::live_of(store, user.uid)?;
    let last = hits.iter().map(|session| session.value.last_hit).max().unwrap_or(Timestamp::NEVER);
    let mut body = json!({
        "UID": user.uid,
        "User": user.user,
        "Name": user.name,
        "Email": user.email,
        "Admin": admin.is_some(),
        "Locked": lock.is_some(),
        "TS": last,
        "MFA": mfa::described(store, user.uid)?,
        "Synced": synced,
        "SSOUser": false,
        "Groups": groups,
    });
    // Clients take any number, including 0, for a group id, so the field is omitted without a group.
    if let Some(gid) = user.default_gid {
        body["DefaultGID"] = gid.into();
    }
    Ok(body)
}

/// Removes the second factors from a user's JSON unless the caller is the user or an administrator.
pub(super) fn as_seen_by(caller: &Caller, mut described: Value) -> Value {
    let uid = described["UID"].as_i64().and_then(|uid| i32::try_from(uid).ok());
    if !uid.is_some_and(|uid| caller.is_self_or_admin(uid)) {
        described.as_object_mut().map(|described| described.remove("MFA"));
    }
    described
}

async fn list(State(app): State<AppRef>, caller: Caller) -> ApiResult<Json<Value>> {
    let _turn = scan_slots::turn(caller.uid()).await?;
    let mut users = app.store.list::<User>("")?;
    users.sort_by_key(|record| record.value.uid);
    let described = users.iter().map(|record| Ok(as_seen_by(&caller, described(&app.store, record)?)));
    Ok(Json(blocking::run(|| described.collect::<Result<Vec<Value>, StoreError>>())?.into()))
}

async fn show(State(app): State<AppRef>, Path(uid): Path<i32>) -> ApiResult<impl axum::response::IntoResponse> {
    let record = found(&app.store, uid)?;
    Ok(([(axum::http::header::ETAG, record.tag())], Json(described(&app.store, &record)?)))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NewUser {
    user: String,
    pass: String,
    name: String,
    email: String,
    admin: bool,
}

/// Checks that a name is neither another user's nor confusable with one.
async fn checked_name(store: &Store, caller: &Caller, name: &str, uid: i32) -> ApiResult<String> {
    let name = names::checked("User", name)?;
    if users::by_name(store, &name)?.is_some_and(|other| other != uid) {
        return Err(ApiError::conflict(format!("a user called {name} already exists")));
    }
    let _turn = scan_slots::turn(caller.uid()).await?;
    if let Some(other) = claims::look_alike::<User>(store, &name, uid)? {
        return Err(ApiError::conflict(format!("the name is confusable with that of user {other}")));
    }
    Ok(name)
}

async fn create(State(app): State<AppRef>, caller: Caller, Input(new): Input<NewUser>) -> ApiResult<Json<i32>> {
    names::person("Name", &new.name)?;
    names::person("Email", &new.email)?;
    let name = checked_name(&app.store, &caller, &new.user, 0).await?;
    app.policy().check(&new.pass, &name).map_err(ApiError::bad)?;
    let hash = passwords::hash(&new.pass).await?;
    let uid = accounts::new_number(&app.store, Of::User)?;
    let user = User {
        uid,
        user: name.clone(),
        name: new.name,
        email: new.email,
        default_gid: None,
        created: Timestamp::now(),
    };
    let writes = accounts::create_user(&app.store, &user, hash, new.admin, false)?;
    app.store.commit(&caller.author(), &format!("create user {name}"), writes).await?;
    Ok(Json(uid))
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Changes {
    user: String,
    name: String,
    email: String,
    admin: Option<bool>,
}

async fn update(
    State(app): State<AppRef>,
    caller: Caller,
    Path(uid): Path<i32>,
    expected: IfMatch,
    Input(changes): Input<Changes>,
) -> ApiResult<Json<Value>> {
    repeated(|| change(&app, &caller, uid, &expected, changes.clone())).await
}

async fn change(
    app: &AppRef,
    caller: &Caller,
    uid: i32,
    expected: &IfMatch,
    changes: Changes,
) -> ApiResult<Json<Value>> {
    let mut record = if caller.person.admin { changeable(&app.store, uid)? } else { found(&app.store, uid)? };
    let before = record.value.clone();
    // Clients send all fields back, so fields that did not change are not checked.
    if !changes.user.is_empty() && changes.user != before.user {
        record.value.user = checked_name(&app.store, caller, &changes.user, uid).await?;
    }
    for (field, new, old) in [("Name", &changes.name, &before.name), ("Email", &changes.email, &before.email)] {
        if new != old {
            names::person(field, new)?;
        }
    }
    if !changes.name.is_empty() {
        record.value.name = changes.name;
    }
    if !changes.email.is_empty() {
        record.value.email = changes.email;
    }
    let mut writes = accounts::update_user(&app.store, &before, &record)?;
    match_version(expected, &record, &mut writes)?;
    // Clients send the role with every change; it is applied only if an administrator sends it.
    let is_admin = app.store.has::<Admin>(&uid.to_string())?;
    if let Some(admin) = changes.admin.filter(|admin| caller.person.admin && *admin != is_admin) {
        accounts::set_admin(&app.store, &mut writes, uid, admin)?;
    }
    app.store.commit(&caller.author(), &format!("change user {}", before.user), writes).await?;
    Ok(Json(described(&app.store, &found(&app.store, uid)?)?))
}

async fn remove(State(app): State<AppRef>, caller: Caller, Path(uid): Path<i32>) -> ApiResult<Json<Value>> {
    if uid == FIRST || uid == caller.uid() {
        return Err(ApiError::forbidden("you cannot delete yourself or the first administrator"));
    }
    if invalid::discarded(&app, &caller, User::COLLECTION, &uid.to_string()).await? {
        return Ok(DONE);
    }
    repeated(|| delete_user(&app, &caller, uid)).await
}

async fn delete_user(app: &AppRef, caller: &Caller, uid: i32) -> ApiResult<Json<Value>> {
    let user = found(&app.store, uid)?;
    let writes = accounts::delete_user(&app.store, &user)?;
    app.store.commit(&caller.author(), &format!("delete user {}", user.value.user), writes).await?;
    Ok(DONE)
}

async fn set_lock(app: &AppRef, caller: &Caller, uid: i32, locked: bool) -> ApiResult<Json<Value>> {
    let user = found(&app.store, uid)?.value;
    if locked && uid == FIRST {
        return Err(ApiError::forbidden("the first administrator cannot be locked"));
    }
    let writes = accounts::set_lock(&app.store, uid, locked)?;
    let what = format!("{} user {}", if locked { "lock" } else { "unlock" }, user.user);
    app.store.commit(&caller.author(), &what, writes).await?;
    Ok(DONE)
}

async fn lock(State(app): State<AppRef>, caller: Caller, Path(uid): Path<i32>) -> ApiResult<Json<Value>> {
    set_lock(&app, &caller, uid, true).await
}

async fn unlock(State(app): State<AppRef>, caller: Caller, Path(uid): Path<i32>) -> ApiResult<Json<Value>> {
    set_lock(&app, &caller, uid, false).await
}

async fn is_locked(State(app): State<AppRef>, Path(uid): Path<i32>) -> ApiResult<Json<bool>> {
    found(&app.store, uid)?;
    Ok(Json(app.store.has::<Lock>(&uid.to_string())?))
}

/// Omits fields that are false, as clients expect.
fn role_answer(uid: i32, admin: bool) -> Json<Value> {
    Json(if admin { json!({ "UID": uid, "Admin": true }) } else { json!({ "UID": uid }) })
}

async fn is_admin(State(app): State<AppRef>, Path(uid): Path<i32>) -> ApiResult<Json<Value>> {
    found(&app.store, uid)?;
    Ok(role_answer(uid, app.store.has::<Admin>(&uid.to_string())?))
}

async fn set_admin(app: &AppRef, caller: &Caller, uid: i32, admin: bool) -> ApiResult<Json<Value>> {
    let user = found(&app.store, uid)?.value;
    if !admin && uid == FIRST {
        return Err(ApiError::forbidden("the first administrator cannot be demoted"));
    }
    let mut writes = Writes::new();
    accounts::set_admin(&app.store, &mut writes, uid, admin)?;
    let what = format!("{} user {}", if admin { "promote" } else { "demote" }, user.user);
    app.store.commit(&caller.author(), &what, writes).await?;
    Ok(role_answer(uid, admin))
}

async fn promote(State(app): State<AppRef>, caller: Caller, Path(uid): Path<i32>) -> ApiResult<Json<Value>> {
    set_admin(&app, &caller, uid, true).await
}

async fn demote(State(app): State<AppRef>, caller: Caller, Path(uid): Path<i32>) -> ApiResult<Json<Value>> {
    set_admin(&app, &caller, uid, false).await
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Passwords {
    origpass: String,
    newpass: String,
    /// Treatment of the user's API tokens: `keep` or `end`; empty for the default.
    tokens: String,
}

impl Passwords {
    /// Returns whether API tokens are ended. By default, users keep the tokens of their programs, while an administrator
    /// who sets a password ends them, because the account may be compromised.
    fn ends_tokens(&self, is_own: bool) -> ApiResult<bool> {
        match self.tokens.to_ascii_lowercase().as_str() {
            "" => Ok(!is_own),
            "keep" => Ok(false),
            "end" => Ok(true),
            other => Err(ApiError::bad(format!("Tokens: unknown value {other:?}; use keep or end"))),
        }
    }
}

async fn change_password(
    State(app): State<AppRef>,
    caller: Caller,
    Path(uid): Path<i32>,
    Input(given): Input<Passwords>,
) -> ApiResult<Json<Value>> {
    let user = found(&app.store, uid)?.value;
    if caller.session.is_none() {
        return Err(ApiError::forbidden("a token cannot change passwords; log in"));
    }
    // Changing one's own password requires the old one, even while acting as another user.
    if uid != caller.uid() && caller.is_or_acts_for(uid) {
        return Err(ApiError::forbidden(
            "cannot change your own password while acting as another user; use your own session",
        ));
    }
    let ends_tokens = given.ends_tokens(uid == caller.uid())?;
    let seen = app.store.seen::<Password>(&uid.to_string())?;
    let kept = app.store.valid::<Password>(&uid.to_string())?.map(|record| record.value);
    if uid == caller.uid() {
        let must_change = kept.as_ref().is_some_and(|password| password.must_change);
        let hash = kept.map(|password| password.hash);
        let attempt = app.limiter.admit(&user.user, caller.from).await.map_err(|refusal| match refusal {
            Refusal::Busy => ApiError::new(StatusCode::TOO_MANY_REQUESTS, refusal.reason()),
            Refusal::Name | Refusal::Place => ApiError::forbidden(refusal.reason()),
        })?;
        let (attempt, fits) = attempt.compare(given.origpass.clone(), hash).await?;
        attempt.note(fits);
        // Not 401, which clients would take for the end of their session.
        if !fits {
            return Err(ApiError::forbidden("the old password is wrong"));
        }
        if must_change && given.newpass == given.origpass {
            return Err(ApiError::bad("the new password must differ from the old one"));
        }
    }
    app.policy().check(&given.newpass, &user.user).map_err(ApiError::bad)?;
    let hash = passwords::hash(&given.newpass).await?;
    let new = NewPassword {
        password: Password { uid, hash, changed: Timestamp::now(), must_change: false },
        seen,
        user: user.user,
        ends_tokens,
    };
    let tokens = if uid == caller.uid() {
        new.of_caller(&app, &caller).await?
    } else {
        // A client that disconnects does not cut the reset short.
        let app = AppRef::clone(&app);
        tokio::spawn(async move { new.reset(&app, &caller).await }).await.map_err(ApiError::internal)??
    };
    if uid == FIRST {
        let _ = tokio::fs::remove_file(app.config.data_dir.join(PASSWORD_FILE)).await;
    }
    let (kept, ended) = if ends_tokens { (Vec::new(), tokens) } else { (tokens, Vec::new()) };
    Ok(Json(json!({ "Tokens": { "Kept": kept, "Ended": ended } })))
}

/// A password that is about to replace the one that was `seen`.
struct NewPassword {
    password: Password,
    seen: Option<AsRead>,
    /// Name of the user.
    user: String,
    ends_tokens: bool,
}

impl NewPassword {
    /// Returns the writes that end the user's sessions except `kept`, and the API tokens if that is wanted. Also returns
    /// the tokens, and what the writes do.
    fn ends(&self, app: &AppRef, kept: Option<&Record<Session>>) -> ApiResult<(Writes, Vec<Value>, &'static str)> {
        let uid = self.password.uid;
        let mut writes = accounts::end_sessions(&app.store, uid, kept)?;
        let tokens = app.store.list::<Token>(&format!("{uid}/"))?;
        let tokens = tokens.iter().map(|record| tokens::shown(&record.value)).collect();
        if self.ends_tokens {
            gravwell_objects::tokens::end_all(&app.store, uid, &mut writes)?;
        }
        Ok((writes, tokens, if self.ends_tokens { ", and end the API tokens" } else { "" }))
    }

    /// Changes the caller's own password, and ends the sessions that were opened with the old one, except the caller's.
    async fn of_caller(self, app: &AppRef, caller: &Caller) -> ApiResult<Vec<Value>> {
        let (mut writes, tokens, besides) = self.ends(app, caller.session.as_ref())?;
        writes.require::<User>(&self.password.uid.to_string(), accounts::USER_GONE)?;
        let changed = "the password was changed in the meantime; log in with the new one";
        writes.replace(self.seen, &self.password, changed)?;
        let what = format!("change the password of {}{besides}", self.user);
        app.store.commit(&caller.author(), &what, writes).await?;
        Ok(tokens)
    }

    /// Sets the password of another user.
    ///
    /// The first transaction only takes rights away, so that it takes effect whatever becomes of the second one: the user
    /// may change the password at the same time, or the log may lose both. The second one ends what was opened between the
    /// two with the old password, or is not committed.
    async fn reset(self, app: &AppRef, caller: &Caller) -> ApiResult<Vec<Value>> {
        let (writes, tokens, besides) = self.ends(app, None)?;
        let what = format!("end the sessions of {}{besides}", self.user);
        app.store.commit(&caller.author(), &what, writes).await?;
        let (mut writes, ..) = self.ends(app, None)?;
        if self.seen.is_none() {
            writes.require::<User>(&self.password.uid.to_string(), accounts::USER_GONE)?;
        }
        writes.replace(self.seen, &self.password, "the password was changed in the meantime; try again")?;
        app.store.commit(&caller.author(), &format!("change the password of {}", self.user), writes).await?;
        Ok(tokens)
    }
}

async fn search_group(State(app): State<AppRef>, Path(uid): Path<i32>) -> ApiResult<Json<i32>> {
    Ok(Json(found(&app.store, uid)?.value.default_gid.unwrap_or(0)))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Group {
    gid: i32,
}

async fn change_search_group(app: &AppRef, caller: &Caller, uid: i32, gid: Option<i32>) -> ApiResult<Json<Value>> {
    repeated(|| store_search_group(app, caller, uid, gid)).await
}

async fn store_search_group(app: &AppRef, caller: &Caller, uid: i32, gid: Option<i32>) -> ApiResult<Json<Value>> {
    let mut record = found(&app.store, uid)?;
    let before = record.value.clone();
    record.value.default_gid = gid;
    let writes = accounts::update_user(&app.store, &before, &record)?;
    let what = format!("set the search group of {}", before.user);
    app.store.commit(&caller.author(), &what, writes).await?;
    Ok(DONE)
}

async fn set_search_group(
    State(app): State<AppRef>,
    caller: Caller,
    Path(uid): Path<i32>,
    Input(Group { gid }): Input<Group>,
) -> ApiResult<Json<Value>> {
    // Administrators may set any group, even one that no longer exists.
    if !caller.person.admin && gid != 0 && !caller.person.groups.contains(&gid) {
        return Err(ApiError::forbidden(format!("only members of group {gid} and administrators may do this")));
    }
    change_search_group(&app, &caller, uid, (gid != 0).then_some(gid)).await
}

async fn unset_search_group(State(app): State<AppRef>, caller: Caller, Path(uid): Path<i32>) -> ApiResult<Json<Value>> {
    change_search_group(&app, &caller, uid, None).await
}

async fn groups_of(State(app): State<AppRef>, Path(uid): Path<i32>) -> ApiResult<Json<Value>> {
    found(&app.store, uid)?;
    let mut body = Vec::new();
    for gid in users::groups_of(&app.store, uid)? {
        if let Some(group) = app.store.valid::<groups::Group>(&gid.to_string())? {
            body.push(group_details(&group));
        }
    }
    Ok(Json(body.into()))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Groups {
    gids: Vec<i32>,
}

async fn join(
    State(app): State<AppRef>,
    caller: Caller,
    Path(uid): Path<i32>,
    Input(Groups { gids }): Input<Groups>,
) -> ApiResult<Json<Value>> {
    names::few("GIDs", &gids, names::GROUPS_MAX)?;
    let user = found(&app.store, uid)?.value;
    for gid in &gids {
        if !app.store.has::<groups::Group>(&gid.to_string())? {
            return Err(ApiError::not_found(format!("group {gid}")));
        }
    }
    let writes = accounts::join_groups(&app.store, uid, &gids)?;
    if !writes.is_empty() {
        let what = format!("add user {} to groups {gids:?}", user.user);
        app.store.commit(&caller.author(), &what, writes).await?;
    }
    Ok(DONE)
}

async fn leave(
    State(app): State<AppRef>,
    caller: Caller,
    Path((uid, gid)): Path<(i32, i32)>,
) -> ApiResult<Json<Value>> {
    let user = found(&app.store, uid)?.value;
    let mut writes = Writes::new();
    writes.delete_unconditionally::<users::Membership>(&format!("{uid}/{gid}"), "it has no value but its existence")?;
    let what = format!("remove user {} from group {gid}", user.user);
    app.store.commit(&caller.author(), &what, writes).await?;
    Ok(DONE)
}
