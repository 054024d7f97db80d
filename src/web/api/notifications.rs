//! Routes of notifications.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;

use super::{DONE, invalid, repeated};
use crate::app::AppRef;
use crate::authorization::{AccessRequirement, Right};
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::listing::List;
use crate::request_input::{Input, QueryParams};
use crate::route::{Route, delete, get, post, put};
use crate::scan_slots;
use gravwell_objects::notifications::{self, LIFE_S, Notification};
use gravwell_objects::{Record, Stored, Timestamp, Writes, names};

/// Maximum lifetime in seconds of a notification that users send to themselves.
const OWN_LIFE_MAX_S: u64 = 24 * 3600;
/// Maximum length of a message in characters.
const MSG_CHARS_MAX: usize = 16 << 10;
const LEVELS: [&str; 4] = ["info", "warn", "error", "critical"];

pub(crate) fn routes() -> Vec<Route> {
    use AccessRequirement::{Admin, User};
    use Right::Capability;
    let (read, write) = (User(Capability("NotificationRead")), User(Capability("NotificationWrite")));
    vec![
        get("/api/notifications", read, "Returns the caller's notifications by ID.", list),
        get("/api/notifications/{id}", read, "Returns the caller's notifications that are newer than one.", newer),
        get("/api/notifications/all", Admin, "Returns the notifications of all users.", all),
        post("/api/notifications/targeted/self", write, "Sends a notification to the caller.", to_self),
        post("/api/notifications/targeted", Admin, "Sends a notification to a user or a group.", to_others),
        post("/api/notifications/broadcast", Admin, "Sends a notification to all users.", to_all),
        put("/api/notifications/{id}", write, "Changes a notification.", update),
        delete("/api/notifications/{id}", write, "Deletes a notification.", remove),
    ]
}

/// Returns a notification as a member of a JSON object, named by its id.
fn shown(notification: &Notification) -> serde_json::Result<Vec<u8>> {
    let mut shown = serde_json::to_value(notification)?;
    for name in ["Level", "Link"] {
        if shown[name] == "" {
            shown.as_object_mut().map(|shown| shown.remove(name));
        }
    }
    let mut member = serde_json::to_vec(&notification.key())?;
    member.push(b':');
    serde_json::to_writer(&mut member, &shown)?;
    Ok(member)
}

async fn answer(
    app: &AppRef,
    caller: &Caller,
    wanted: impl Fn(&Caller, &Notification) -> bool + Send + 'static,
) -> ApiResult<Response> {
    let list = List::new(String::new(), wanted, |_, record: &Record<Notification>| shown(&record.value));
    list.into_object().answer(app, caller, |notification| notification.sent).await
}

async fn of_caller(app: &AppRef, caller: &Caller, after: Option<Timestamp>) -> ApiResult<Response> {
    let is_later = move |it: &Notification| after.is_none_or(|after| it.sent > after);
    answer(app, caller, move |caller, it| it.is_shown() && is_later(it) && (caller.all || it.is_for(&caller.person)))
        .await
}

async fn list(State(app): State<AppRef>, caller: Caller, wishes: QueryParams) -> ApiResult<Response> {
    let Some(after) = wishes.after else { return of_caller(&app, &caller, None).await };
    // A plus sign in a time zone offset arrives as a blank if the client does not escape it.
    let text = after.replace(' ', "+");
    let after = Timestamp::parse(&text).ok_or_else(|| ApiError::bad(format!("after: {text:?} is not a time")))?;
    of_caller(&app, &caller, Some(after)).await
}

async fn newer(State(app): State<AppRef>, caller: Caller, Path(id): Path<String>) -> ApiResult<Response> {
    let sent = app.store.valid::<Notification>(&id)?.map_or(Timestamp::NEVER, |record| record.value.sent);
    of_caller(&app, &caller, Some(sent)).await
}

async fn all(State(app): State<AppRef>, caller: Caller) -> ApiResult<Response> {
    answer(&app, &caller, |_, _| true).await
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Fields {
    uid: i32,
    gid: i32,
    #[serde(rename = "type")]
    kind: Option<u32>,
    expires: Option<Timestamp>,
    ignoreuntil: Option<Timestamp>,
    msg: Option<String>,
    level: Option<String>,
    link: Option<String>,
}

impl Fields {
    fn level(&self) -> ApiResult<String> {
        names::bounded("Msg", self.msg.as_deref().unwrap_or_default(), MSG_CHARS_MAX)?;
        names::title("Link", self.link.as_deref().unwrap_or_default())?;
        let level = self.level.clone().unwrap_or_default().to_lowercase();
        if level.is_empty() || LEVELS.contains(&level.as_str()) {
            return Ok(level);
        }
        Err(ApiError::bad(format!("unknown level {level:?}; use info, warn, error or critical")))
    }

    fn drafted(self, app: &AppRef, caller: &Caller) -> ApiResult<Notification> {
        let level = self.level()?;
        let msg = self.msg.filter(|msg| !msg.is_empty()).ok_or_else(|| ApiError::bad("Msg is missing"))?;
        let sent = Timestamp::now();
        let expires = self.expires.filter(|expires| !expires.is_never() && !expires.is_past());
        Ok(Notification {
            id: notifications::new_id()?,
            sender: caller.uid(),
            kind: self.kind.unwrap_or(0),
            sent,
            expires: expires.unwrap_or_else(|| sent.plus(LIFE_S)),
            ignore_until: self.ignoreuntil.unwrap_or_default(),
            msg,
            origin: app.uuid,
            level,
            link: self.link.unwrap_or_default(),
            ..Notification::default()
        })
    }
}

async fn send(app: &AppRef, caller: &Caller, notification: &Notification) -> ApiResult<Json<Value>> {
    let turn = scan_slots::turn(caller.uid()).await?;
    let writes = notifications::send(&app.store, notification)?;
    drop(turn);
    app.store.commit(&caller.author(), "send a notification", writes).await?;
    Ok(DONE)
}

async fn to_self(State(app): State<AppRef>, caller: Caller, Input(fields): Input<Fields>) -> ApiResult<Json<Value>> {
    let mut notification = fields.drafted(&app, &caller)?;
    notification.uid = caller.uid();
    if notification.expires > notification.sent.plus(OWN_LIFE_MAX_S) {
        notification.expires = notification.sent.plus(LIFE_S);
    }
    send(&app, &caller, &notification).await
}

async fn to_others(State(app): State<AppRef>, caller: Caller, Input(fields): Input<Fields>) -> ApiResult<Json<Value>> {
    let (uid, gid) = (fields.uid, fields.gid);
    if (uid == 0) == (gid == 0) {
        return Err(ApiError::bad("recipient is missing; set a user (UID) or a group (GID)"));
    }
    let notification = Notification { uid, gid, ..fields.drafted(&app, &caller)? };
    send(&app, &caller, &notification).await
}

async fn to_all(State(app): State<AppRef>, caller: Caller, Input(fields): Input<Fields>) -> ApiResult<Json<Value>> {
    let notification = Notification { broadcast: true, ..fields.drafted(&app, &caller)? };
    send(&app, &caller, &notification).await
}

fn found(app: &AppRef, caller: &Caller, id: &str) -> ApiResult<Record<Notification>> {
    let (store, is_admin) = (&app.store, caller.person.admin);
    let record = if is_admin { store.get::<Notification>(id)? } else { store.valid::<Notification>(id)? };
    let own = record.filter(|record| caller.person.admin || record.value.uid == caller.uid());
    own.ok_or_else(|| ApiError::not_found(format!("notification {id} of yours")))
}

async fn update(
    State(app): State<AppRef>,
    caller: Caller,
    Path(id): Path<String>,
    Input(fields): Input<Fields>,
) -> ApiResult<Json<Value>> {
    repeated(|| change(&app, &caller, &id, fields.clone())).await
}

async fn change(app: &AppRef, caller: &Caller, id: &str, fields: Fields) -> ApiResult<Json<Value>> {
    let mut record = found(app, caller, id)?;
    let level = fields.level()?;
    let notification = &mut record.value;
    if !level.is_empty() {
        notification.level = level;
    }
    notification.msg = fields.msg.unwrap_or(std::mem::take(&mut notification.msg));
    notification.link = fields.link.unwrap_or(std::mem::take(&mut notification.link));
    notification.kind = fields.kind.unwrap_or(notification.kind);
    notification.expires = fields.expires.filter(|expires| !expires.is_never()).unwrap_or(notification.expires);
    notification.ignore_until = fields.ignoreuntil.unwrap_or(notification.ignore_until);
    let mut writes = Writes::new();
    writes.update(&record, "the notification was deleted in the meantime")?;
    app.store.commit(&caller.author(), "change a notification", writes).await?;
    Ok(DONE)
}

async fn remove(State(app): State<AppRef>, caller: Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    if invalid::discarded(&app, &caller, Notification::COLLECTION, &id).await? {
        return Ok(DONE);
    }
    let record = found(&app, &caller, &id)?;
    let mut writes = Writes::new();
    writes.delete_unconditionally::<Notification>(&record.value.key(), "it was read and is no longer needed")?;
    app.store.commit(&caller.author(), "delete a notification", writes).await?;
    Ok(DONE)
}
