//! Routes that stream changes as they happen: for pages that show them, and for administrators who inspect the log.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::{Stream, StreamExt};
use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use crate::admission;
use crate::app::{self, AppRef};
use crate::authorization::{AccessRequirement, Right};
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::request_input::QueryParams;
use crate::route::{Route, get};
use gravwell_env::quota::Held;
use gravwell_model::codec::admin::Request;
use gravwell_model::{Collection, Entry, EntryBody, Key, Op, Seq, Txn};
use gravwell_objects::kinds::{KINDS, Visibility, exposure};
use gravwell_objects::store::Author;
use gravwell_objects::{Timestamp, redaction};
use gravwell_replica::{Change, RequestError};

/// Time within which changes are combined into one event.
const GATHER: Duration = Duration::from_millis(10);
/// Interval at which the webserver's state is checked when no change arrives.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Default and maximum number of entries in a response.
const ENTRIES: usize = 100;
const ENTRIES_MAX: usize = 1000;

pub(crate) fn routes() -> Vec<Route> {
    use AccessRequirement::{Admin, User};
    vec![
        get(
            "/api/events",
            User(Right::Session),
            "Streams the names of collections as they change, and the state of the webserver.",
            events,
        ),
        get("/api/log/live", Admin, "Streams the entries of the log as they are applied.", live),
        get("/api/log", Admin, "Returns the latest entries of the log, newest first.", latest),
        get("/api/log/collections", Admin, "Lists the collections with a description.", collections),
        get("/api/log/object/{collection}/{*key}", Admin, "Returns the history of one object, newest first.", object),
    ]
}

/// State of a stream for one reader.
struct Watch<T: Clone> {
    app: AppRef,
    receiver: Receiver<T>,
    told: Value,
    /// Reservation of the stream in the user's limit.
    _place: Held<i32>,
}

fn status(app: &AppRef) -> Value {
    let replica = app.store.replica();
    json!({
        "Connected": replica.is_connected(),
        "Outbox": replica.outbox_depth(),
        "Rejected": replica.rejected().len(),
    })
}

fn collection_of(change: &Change) -> Option<&Collection> {
    match change {
        Change::Put { collection, .. } | Change::Deleted { collection, .. } | Change::Overlay { collection, .. } => {
            Some(collection)
        }
        Change::Replaced { .. } => None,
    }
}

async fn events(
    State(app): State<AppRef>,
    caller: Caller,
) -> ApiResult<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let place = app.stream_of(&caller)?;
    let receiver = app.store.replica().watch();
    let (ending, lost) = (app::ending(&app), admission::ended(&app, &caller));
    let watch = Watch { app, receiver, told: Value::Null, _place: place };
    let stream = futures_util::stream::unfold(watch, |mut watch| async move {
        loop {
            let now = status(&watch.app);
            if now != watch.told {
                watch.told = now.clone();
                return Some((Ok(Event::default().event("status").data(now.to_string())), watch));
            }
            match tokio::time::timeout(LOOK_EVERY, watch.receiver.recv()).await {
                Ok(Err(RecvError::Closed)) => return None,
                Ok(Err(RecvError::Lagged(_))) => return Some((Ok(everything()), watch)),
                Ok(Ok(change)) => return Some((Ok(gathered(change, &mut watch.receiver).await), watch)),
                Err(_) => {}
            }
        }
    });
    Ok(Sse::new(stream.take_until(ending).take_until(lost)).keep_alive(KeepAlive::default()))
}

fn everything() -> Event {
    let all: Vec<&str> = KINDS.iter().map(|kind| kind.collection).collect();
    Event::default().event("changed").data(json!({ "Collections": all }).to_string())
}

async fn gathered(first: Change, receiver: &mut Receiver<Change>) -> Event {
    let mut collections = BTreeSet::new();
    let until = tokio::time::Instant::now() + GATHER;
    let mut next = Some(first);
    while let Some(change) = next {
        match collection_of(&change) {
            Some(collection) => drop(collections.insert(collection.clone())),
            None => return everything(),
        }
        next = match tokio::time::timeout_at(until, receiver.recv()).await {
            Ok(Ok(change)) => Some(change),
            Ok(Err(RecvError::Lagged(_))) => return everything(),
            Ok(Err(RecvError::Closed)) | Err(_) => None,
        };
    }
    let names: Vec<&str> = collections.iter().map(Collection::as_str).collect();
    Event::default().event("changed").data(json!({ "Collections": names }).to_string())
}

fn shown_op(op: &Op) -> Value {
    let kind = if matches!(op, Op::Put { .. }) { "put" } else { "delete" };
    let mut shown =
        json!({ "Op": kind, "Collection": op.collection(), "Key": redaction::key(op.collection(), op.key()) });
    if let Some(value) = op.value() {
        shown["Value"] = match redaction::value(op.collection(), value) {
            // Sent as text, so that the digits of numbers are preserved.
            Some(raw) => json!({ "Bytes": value.len(), "Json": raw.get() }),
            None => json!({ "Bytes": value.len() }),
        };
    }
    shown
}

fn shown_author(txn: &Txn) -> Value {
    match Author::of(&txn.note) {
        Some(author) => json!({
            "UID": author.uid,
            "User": author.user,
            "From": author.from,
            "Via": author.via,
            "What": author.what,
        }),
        None => Value::Null,
    }
}

/// Returns an entry as shown on the log page; `None` if no part of it concerns `collection`.
fn shown(entry: &Entry, collection: Option<&str>) -> Option<Value> {
    let head =
        |entry: &Entry| json!({ "Seq": entry.seq, "Time": Timestamp::from_ms(entry.time_ms), "Member": entry.member });
    let mut body = head(entry);
    match &entry.body {
        EntryBody::Commit(txn) => {
            let fits = |op: &&Op| collection.is_none_or(|wanted| op.collection().as_str() == wanted);
            let ops: Vec<Value> = txn.ops.iter().filter(fits).map(shown_op).collect();
            if ops.is_empty() && collection.is_some() {
                return None;
            }
            body["Author"] = shown_author(txn);
            body["Ops"] = ops.into();
        }
        EntryBody::Reject { reason, .. } if collection.is_none() => body["Rejected"] = reason.to_string().into(),
        EntryBody::Unknown { kind, .. } if collection.is_none() => body["Unknown"] = (*kind).into(),
        EntryBody::Reject { .. } | EntryBody::Redacted { .. } | EntryBody::Unknown { .. } => return None,
    }
    Some(body)
}

async fn live(
    State(app): State<AppRef>,
    caller: Caller,
    wishes: QueryParams,
) -> ApiResult<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let place = app.stream_of(&caller)?;
    let receiver = app.store.replica().watch_entries();
    let (ending, lost) = (app::ending(&app), admission::ended(&app, &caller));
    let watch = Watch { app, receiver, told: Value::Null, _place: place };
    let collection = wishes.collection.filter(|name| !name.is_empty());
    let state = (watch, collection, Vec::<Value>::new());
    let stream = futures_util::stream::unfold(state, |(mut watch, collection, mut waiting)| async move {
        loop {
            if let Some(entry) = waiting.pop() {
                let event = Event::default().event("entry").data(entry.to_string());
                return Some((Ok(event), (watch, collection, waiting)));
            }
            match tokio::time::timeout(LOOK_EVERY, watch.receiver.recv()).await {
                Ok(Err(RecvError::Closed)) => return None,
                Ok(Err(RecvError::Lagged(runs))) => {
                    let event = Event::default().event("gap").data(json!({ "Runs": runs }).to_string());
                    return Some((Ok(event), (watch, collection, waiting)));
                }
                Ok(Ok(run)) => {
                    let run: Arc<Vec<Entry>> = run;
                    waiting = run.iter().rev().filter_map(|entry| shown(entry, collection.as_deref())).collect();
                }
                Err(_) => {}
            }
        }
    });
    Ok(Sse::new(stream.take_until(ending).take_until(lost)).keep_alive(KeepAlive::default()))
}

fn unanswered(error: RequestError) -> ApiError {
    match error {
        RequestError::Away | RequestError::Silent(_) => {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, format!("cannot read the log from the datastore: {error}"))
        }
        RequestError::Refused(_) | RequestError::TooLarge => ApiError::conflict(error),
    }
}

async fn latest(State(app): State<AppRef>, wishes: QueryParams) -> ApiResult<Json<Value>> {
    let limit = wishes.limit.unwrap_or(ENTRIES).clamp(1, ENTRIES_MAX);
    let replica = app.store.replica();
    let end = wishes.end.map_or(u64::MAX, |end| end as u64).min(replica.status().head.0);
    let from = Seq(end.saturating_sub(limit as u64));
    let request = Request::Tail { from, to: Some(Seq(end)), follow: false };
    let reply = replica.request_from_datastore(&request).await.map_err(unanswered)?;
    let within = reply.entries.iter().rev().filter(|entry| entry.seq.0 <= end);
    Ok(Json(within.filter_map(|entry| shown(entry, wishes.collection.as_deref())).take(limit).collect()))
}

async fn collections() -> Json<Value> {
    let described = |kind: &gravwell_objects::kinds::Kind| json!({ "Collection": kind.collection, "Holds": kind.holds, "Exposure": format!("{:?}", kind.exposure) });
    Json(KINDS.iter().map(described).collect())
}

async fn object(State(app): State<AppRef>, Path((collection, key)): Path<(String, String)>) -> ApiResult<Json<Value>> {
    if exposure(&collection) != Visibility::Open {
        return Err(ApiError::forbidden(format!("the objects in {collection} are hidden")));
    }
    let request = Request::History {
        collection: Collection::new(collection).map_err(ApiError::bad)?,
        key: Key::new(key).map_err(ApiError::bad)?,
    };
    let reply = app.store.replica().request_from_datastore(&request).await.map_err(unanswered)?;
    Ok(Json(reply.entries.iter().rev().filter_map(|entry| shown(entry, None)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_personal_affairs_are_not_shown() {
        let collection = |name: &str| Collection::new(name).expect("name");
        let op = |name: &str, key: &str| Op::Put {
            collection: collection(name),
            key: Key::new(key).expect("key"),
            value: r#"{"hash":"$argon2id$x","n":9007199254740993}"#.into(),
        };
        let secret = shown_op(&op("sessions", "7/abcdef")).to_string();
        assert!(!secret.contains("abcdef") && !secret.contains("argon2"), "{secret}");
        for name in ["passwords", "tokens", "signing-keys", "preferences", "history", "chunks", "of-a-later-version"] {
            let shown = shown_op(&op(name, "7")).to_string();
            assert!(!shown.contains("argon2"), "{shown}");
        }
        let open = shown_op(&op("dashboards", "7"));
        assert!(open["Value"]["Json"].as_str().expect("text").contains("9007199254740993"));
    }
}
