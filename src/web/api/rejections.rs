//! Routes of locally accepted changes that the datastore rejected, so that no user's work is lost silently.

use axum::Json;
use axum::extract::{Path, State};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::DONE;
use crate::app::AppRef;
use crate::authorization::{AccessRequirement, Right};
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::request_input::{Input, at_most};
use crate::route::{Route, delete, get, post};
use crate::scan_slots;
use gravwell_model::codec::admin::SeenVersion;
use gravwell_model::{Collection, Condition, Key, Origin, OriginCounter, Txn, TxnId};
use gravwell_objects::dashboards::Dashboard;
use gravwell_objects::kinds;
use gravwell_objects::preferences::Preference;
use gravwell_objects::resubmission::{Maker, Refusal};
use gravwell_objects::sharing::Shareable;
use gravwell_objects::store::{Author, StoreError};
use gravwell_objects::{Stored, Writes, identities, rejection_messages, standing};
use gravwell_protocol::outbox::RejectedTxn;
use gravwell_replica::{History, ReadError, Resubmission};
use gravwell_state::StateError;

pub(crate) fn routes() -> Vec<Route> {
    let this = AccessRequirement::User(Right::Session);
    vec![
        get(
            "/api/rejections",
            this,
            "Lists the caller's rejected changes; for administrators, those of all users.",
            list,
        ),
        get("/api/rejections/{id}", this, "Returns a rejected change with the current objects.", show),
        post(
            "/api/rejections/{id}/retry",
            this,
            "Retries a rejected change; with Upon, the result of `GET`, on top of the current objects.",
            retry,
        )
        .with_objects(),
        delete("/api/rejections/{id}", this, "Removes a rejected change from the list.", dismiss),
    ]
}

fn name(id: TxnId) -> String {
    format!("{}-{}", id.origin, id.counter)
}

fn parse(text: &str) -> Option<TxnId> {
    let (origin, counter) = text.rsplit_once('-')?;
    Some(TxnId { origin: origin.parse::<Origin>().ok()?, counter: OriginCounter(counter.parse().ok()?) })
}

/// Returns the rejected changes of the caller; for administrators, all. Changes by another user who had the caller's number
/// at this webserver are not the caller's.
fn for_caller(app: &AppRef, caller: &Caller) -> ApiResult<Vec<(RejectedTxn, Author)>> {
    let all = app.store.replica().rejected().into_iter();
    let authored = all.map(|rejected| {
        let author = Author::of(&rejected.txn.note).unwrap_or_default();
        (rejected, author)
    });
    let mut found = Vec::new();
    for (rejected, author) in authored {
        let is_number = author.uid != 0 && author.uid == caller.uid();
        let is_own = is_number && identities::is_author_there(&app.store, &author, &rejected.txn)?;
        if caller.person.admin || is_own {
            found.push((rejected, author));
        }
    }
    Ok(found)
}

async fn list(State(app): State<AppRef>, caller: Caller) -> ApiResult<Json<Value>> {
    let shown = |(rejected, author): (RejectedTxn, Author)| {
        let ops = rejected.txn.ops.iter().map(|op| {
            let kind = if op.value().is_some() { "put" } else { "delete" };
            json!({ "Op": kind, "Collection": op.collection() })
        });
        json!({
            "ID": name(rejected.txn.id),
            "Seq": rejected.seq,
            "Reason": rejection_messages::rejection_message(&rejected.txn.conditions, &rejected.reason),
            "Detail": rejected.reason.to_string(),
            "What": author.what,
            "UID": author.uid,
            "User": author.user,
            "From": author.from,
            "Webserver": author.via,
            "Made": gravwell_objects::Timestamp::from_ms(rejected.txn.time_ms),
            "Ops": ops.collect::<Vec<Value>>(),
        })
    };
    Ok(Json(for_caller(&app, &caller)?.into_iter().map(shown).collect()))
}

fn found(app: &AppRef, caller: &Caller, id: &str) -> ApiResult<RejectedTxn> {
    let nowhere = || ApiError::not_found(format!("rejected change {id} of yours at this webserver"));
    let id = parse(id).ok_or_else(nowhere)?;
    let mut own = for_caller(app, caller)?.into_iter().map(|(rejected, _)| rejected);
    own.find(|rejected| rejected.txn.id == id).ok_or_else(nowhere)
}

/// Rejects a retry for which the caller no longer has the rights; the change stays on the list.
async fn check_rights(app: &AppRef, caller: &Caller, rejected: &RejectedTxn) -> ApiResult<()> {
    // Contents are looked for in all resources and searches.
    let _turn = scan_slots::turn(caller.uid()).await?;
    let maker = Maker { person: &caller.person, has: &|capability| caller.has(capability), present: &app.store };
    maker.check(&rejected.txn.ops).map_err(|refusal| match refusal {
        Refusal::Right(reason) => ApiError::forbidden(format!("you may not make this change now: {reason}")),
        Refusal::Store(error) => error.into(),
    })
}

/// One object of a rejected change, compared with its current state.
struct Compared {
    seen: SeenVersion,
    present: Bytes,
    mine: Option<Bytes>,
}

impl Compared {
    /// Identifies the current state. It includes a hash of the value, because after a recovery another write may have the
    /// same sequence.
    fn version(&self) -> String {
        format!("{}-{}", self.seen.version, &blake3::hash(&self.present).to_hex()[..16])
    }
}

/// Compares the writes of a rejected change with the current objects. Only for changes that the caller may make by hand
/// now, because applying them again overwrites changes of others.
fn compared(app: &AppRef, caller: &Caller, rejected: &RejectedTxn) -> ApiResult<Vec<Compared>> {
    let txn = &rejected.txn;
    let mut all = Vec::new();
    for op in &txn.ops {
        let (collection, key) = (op.collection().clone(), op.key().clone());
        let Some((present, as_read)) = app.store.raw(&collection, &key)? else {
            return Err(not_there(app, &collection, &key)?);
        };
        let version = as_read.version();
        let version = version.ok_or_else(|| {
            ApiError::conflict("a later change of the object is still pending; wait until it is resolved")
        })?;
        let mine = op.value().cloned();
        check_right(caller, collection.as_str(), key.as_str(), (&present, mine.as_ref()))?;
        all.push(Compared { seen: SeenVersion { collection, key, version }, present, mine });
    }
    // Objects that were read but not written must be unchanged.
    let is_written = |condition: &Condition| {
        txn.ops.iter().any(|op| op.collection() == condition.collection() && op.key() == condition.key())
    };
    let is_of_read = |condition: &&Condition| matches!(condition, Condition::Version { .. }) && !is_written(condition);
    if txn.conditions.iter().any(|condition| is_of_read(&condition)) || all.is_empty() {
        return Err(not_again());
    }
    Ok(all)
}

/// Returns the reason not to apply a change of an object that does not exist: it was deleted, or the log never had it.
fn not_there(app: &AppRef, collection: &Collection, key: &Key) -> ApiResult<ApiError> {
    let state = app.store.replica().state();
    let read = || -> Result<bool, StateError> {
        // An object that the state still has is deleted by a change that waits.
        Ok(state.version(collection, key)?.is_some() || state.snapshot()?.deleted_at(collection, key)?.is_some())
    };
    let what = if read().map_err(|error| StoreError::from(ReadError::from(error)))? {
        "was deleted in the meantime"
    } else {
        "does not exist"
    };
    Ok(ApiError::conflict(format!("the object {what} and a retry does not restore it; create it again")))
}

fn not_again() -> ApiError {
    ApiError::conflict(
        "this kind of change cannot be applied on top of other changes; reload the object and make the change again",
    )
}

/// Checks that the caller may replace `present` by `mine`, or delete it.
fn check_right(
    caller: &Caller,
    collection: &str,
    key: &str,
    (present, mine): (&Bytes, Option<&Bytes>),
) -> ApiResult<()> {
    let person = &caller.person;
    let denied = || ApiError::forbidden("you are no longer allowed to change this");
    if collection == Preference::COLLECTION {
        let is_own = key.split_once('/').is_some_and(|(uid, _)| uid == person.uid.to_string());
        return if is_own || person.admin { Ok(()) } else { Err(denied()) };
    }
    let Some(kind) = kinds::of(collection).filter(|kind| kind.spec.is_some() || collection == Dashboard::COLLECTION)
    else {
        return Err(not_again());
    };
    let read = |bytes: &Bytes| kind.shares_at(key, bytes).ok_or_else(not_again);
    let present = read(present)?;
    let Some(mine) = mine.map(read).transpose()? else {
        return if present.is_owned_by(person) { Ok(()) } else { Err(denied()) };
    };
    if !present.is_writable_by(person) {
        return Err(denied());
    }
    // A share that was withdrawn must not be restored by the old value.
    if mine != present {
        return Err(ApiError::conflict(
            "the share scope differs from that of the current object; reload the object and make the change again",
        ));
    }
    Ok(())
}

async fn show(State(app): State<AppRef>, caller: Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    let rejected = found(&app, &caller, &id)?;
    check_rights(&app, &caller, &rejected).await?;
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let shown = |one: Compared| {
        json!({
            "Collection": one.seen.collection, "Key": one.seen.key, "Version": one.version(),
            "Present": text(&one.present), "Mine": one.mine.as_ref().map(text),
        })
    };
    let compared: Vec<Value> = compared(&app, &caller, &rejected)?.into_iter().map(shown).collect();
    Ok(Json(json!({ "ID": id, "Upon": compared })))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Given {
    #[serde(deserialize_with = "at_most::<UPON_MAX, _, _>")]
    upon: Vec<Seen>,
}

/// Maximum number of objects of a change.
const UPON_MAX: usize = 10_000;

/// An element of the response to `GET`; its other fields are ignored.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Seen {
    collection: Collection,
    key: Key,
    /// A value of another type matches no version.
    version: Box<RawValue>,
}

impl Seen {
    fn is_version(&self, version: &str) -> bool {
        serde_json::from_str::<&str>(self.version.get()).is_ok_and(|seen| seen == version)
    }
}

async fn retry(
    State(app): State<AppRef>,
    caller: Caller,
    Path(id): Path<String>,
    Input(Given { upon }): Input<Given>,
) -> ApiResult<Json<Value>> {
    let read_in = app.store.replica().history();
    let rejected = found(&app, &caller, &id)?;
    check_rights(&app, &caller, &rejected).await?;
    let now = match upon.is_empty() {
        true => Vec::new(),
        false => {
            let now = compared(&app, &caller, &rejected)?;
            let is_seen = |now: &Compared| {
                let is_place = |seen: &Seen| (&seen.collection, &seen.key) == (&now.seen.collection, &now.seen.key);
                upon.iter().any(|seen| is_place(seen) && seen.is_version(&now.version()))
            };
            if !now.iter().all(is_seen) {
                return Err(ApiError::overtaken("it was changed again in the meantime; reload it"));
            }
            now.into_iter().map(|compared| compared.seen).collect()
        }
    };
    if upon.is_empty() && standing::concern_access(&rejected.txn.ops) {
        return stand_for(&app, &caller, &rejected.txn, read_in).await;
    }
    let spent = app.store.spend(&caller.author(), &rejected.txn.ops)?;
    let again = app.store.again(&made_again_by(&caller, &rejected.txn), &rejected.txn)?;
    app.store.replica().retry_as(rejected.txn.id, Resubmission { upon: now, seen_in: read_in, ..again }).await?;
    if let Some(spent) = spent {
        spent.keep();
    }
    Ok(DONE)
}

/// Returns the author of a retried change: its original author, on whose behalf the caller acts. If an administrator
/// retries it, both are named.
fn made_again_by(caller: &Caller, txn: &Txn) -> Author {
    let author = Author::of(&txn.note).unwrap_or_default();
    let by = caller.author();
    let su = match (author.uid == by.uid, by.su.is_empty()) {
        (true, _) => by.su,
        (false, true) => by.user,
        (false, false) => format!("{} as {}", by.su, by.user),
    };
    Author { from: by.from, su, standing: by.standing, ..author }
}

/// Commits a change to access rights again, on the basis of the caller's current rights instead of its author's.
async fn stand_for(app: &AppRef, caller: &Caller, txn: &Txn, read_in: History) -> ApiResult<Json<Value>> {
    let author = made_again_by(caller, txn);
    let conditions = standing::left_out(&txn.ops, &txn.conditions);
    let writes = Writes::under(txn.ops.clone(), conditions, read_in);
    app.store.commit(&author, &author.what, writes).await?;
    app.store.replica().dismiss(txn.id).await?;
    Ok(DONE)
}

async fn dismiss(State(app): State<AppRef>, caller: Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    let rejected = found(&app, &caller, &id)?;
    app.store.replica().dismiss(rejected.txn.id).await?;
    let author = Author::of(&rejected.txn.note).unwrap_or_default();
    let what = format!("dismiss a rejected change of {}: {}", author.user, author.what);
    app.recorder.note("dismiss", &(&caller).into(), what);
    Ok(DONE)
}
