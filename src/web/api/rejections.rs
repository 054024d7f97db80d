//! Changes that the datastore refused after they had been made here: nobody's work disappears without a word.

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::DONE;
use crate::model::{Origin, OriginCounter, TxnId};
use crate::objects::afresh::{Maker, Refusal};
use crate::objects::refusals;
use crate::objects::store::Author;
use crate::protocol::outbox::RejectedTxn;
use crate::web::app::AppRef;
use crate::web::caller::Caller;
use crate::web::error::{ApiError, ApiResult};
use crate::web::guard::{Need, Right};
use crate::web::routes::{Route, delete, get, post};

pub(in crate::web) fn routes() -> Vec<Route> {
    let this = Need::User(Right::Session);
    vec![
        get("/api/rejections", this, "Lists the caller's changes that were refused; to administrators, all.", list),
        post("/api/rejections/{id}/retry", this, "Tries a refused change again.", retry),
        delete("/api/rejections/{id}", this, "Takes a refused change off the list.", dismiss),
    ]
}

fn name(id: TxnId) -> String {
    format!("{}-{}", id.origin, id.counter)
}

fn parse(text: &str) -> Option<TxnId> {
    let (origin, counter) = text.rsplit_once('-')?;
    Some(TxnId { origin: origin.parse::<Origin>().ok()?, counter: OriginCounter(counter.parse().ok()?) })
}

fn for_caller(app: &AppRef, caller: &Caller) -> Vec<(RejectedTxn, Author)> {
    let all = app.store.replica().rejected().into_iter();
    let authored = all.map(|rejected| {
        let author = Author::of(&rejected.txn.note).unwrap_or_default();
        (rejected, author)
    });
    authored.filter(|(_, author)| caller.person.admin || (author.uid != 0 && author.uid == caller.uid())).collect()
}

async fn list(State(app): State<AppRef>, caller: Caller) -> Json<Value> {
    let shown = |(rejected, author): (RejectedTxn, Author)| {
        let ops = rejected.txn.ops.iter().map(|op| {
            let kind = if op.value().is_some() { "put" } else { "delete" };
            json!({ "Op": kind, "Collection": op.collection() })
        });
        json!({
            "ID": name(rejected.txn.id),
            "Seq": rejected.seq,
            "Reason": refusals::explained(&rejected.txn.conditions, &rejected.reason),
            "Detail": rejected.reason.to_string(),
            "What": author.what,
            "UID": author.uid,
            "User": author.user,
            "From": author.from,
            "Webserver": author.via,
            "Made": crate::objects::Moment::from_ms(rejected.txn.time_ms),
            "Ops": ops.collect::<Vec<Value>>(),
        })
    };
    Json(for_caller(&app, &caller).into_iter().map(shown).collect())
}

fn found(app: &AppRef, caller: &Caller, id: &str) -> ApiResult<RejectedTxn> {
    let nowhere = || ApiError::not_found(format!("refused change {id} of yours at this webserver"));
    let id = parse(id).ok_or_else(nowhere)?;
    let mut own = for_caller(app, caller).into_iter().map(|(rejected, _)| rejected);
    own.find(|rejected| rejected.txn.id == id).ok_or_else(nowhere)
}

/// Rights that were taken away since the change was made are not there any more; the change stays on the list.
fn check_rights(app: &AppRef, caller: &Caller, rejected: &RejectedTxn) -> ApiResult<()> {
    let maker = Maker { person: &caller.person, has: &|capability| caller.has(capability), present: &app.store };
    maker.check(&rejected.txn.ops).map_err(|refusal| match refusal {
        Refusal::Right(reason) => ApiError::forbidden(format!("you may not make this change now: {reason}")),
        Refusal::Store(error) => error.into(),
    })
}

async fn retry(State(app): State<AppRef>, caller: Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    let rejected = found(&app, &caller, &id)?;
    check_rights(&app, &caller, &rejected)?;
    let spent = app.store.spend(&caller.author(), &rejected.txn.ops)?;
    app.store.replica().retry(rejected.txn.id).await?;
    if let Some(spent) = spent {
        spent.keep();
    }
    Ok(DONE)
}

async fn dismiss(State(app): State<AppRef>, caller: Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    let rejected = found(&app, &caller, &id)?;
    app.store.replica().dismiss(rejected.txn.id).await?;
    Ok(DONE)
}
