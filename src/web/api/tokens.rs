//! Routes of API tokens.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{DONE, invalid, repeated};
use crate::app::AppRef;
use crate::authorization::{AccessRequirement, Right};
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::listing::List;
use crate::request_input::Input;
use crate::route::{Route, delete, get, patch, post, put};
use gravwell_objects::capabilities::{self, ALL};
use gravwell_objects::cleanup::SLICE;
use gravwell_objects::tokens::{self, Known, MAKERS_MAX, TOKENS_MAX, Token};
use gravwell_objects::users::User;
use gravwell_objects::{Record, Stored, Timestamp, Writes, accounts, epochs, names};
use gravwell_runtime::tasks::blocking;

const READ: AccessRequirement = AccessRequirement::User(Right::Capability("TokenRead"));
const WRITE: AccessRequirement = AccessRequirement::User(Right::Capability("TokenWrite"));
/// Maximum length of a description in characters.
const DESCRIPTION_CHARS_MAX: usize = 4096;
/// Capability that is not listed, because older clients reject a list with an unknown name.
const UNKNOWN_TO_OLD_CLIENTS: &str = "LogbotAI";

pub(crate) fn routes() -> Vec<Route> {
    vec![
        get(
            "/api/tokens/capabilities",
            AccessRequirement::User(Right::OfToken("TokenRead")),
            "Lists the capabilities that tokens can have.",
            capabilities,
        ),
        get("/api/tokens", READ, "Lists the caller's tokens.", list),
        post("/api/tokens", WRITE, "Creates a token; its value is shown only once.", create),
        get("/api/tokens/{id}", READ, "Returns a token.", show),
        put("/api/tokens/{id}", WRITE, "Changes a token.", update),
        patch("/api/tokens/{id}", WRITE, "Renews the value and the expiry of a token.", renew),
        delete("/api/tokens/{id}", WRITE, "Deletes a token, which becomes invalid at all webservers.", remove),
    ]
}

async fn capabilities() -> Json<Value> {
    let known = |name: &&str| *name != UNKNOWN_TO_OLD_CLIENTS;
    Json(json!(ALL.iter().map(|capability| capability.name).filter(known).collect::<Vec<_>>()))
}

/// Returns a token as JSON for clients.
pub(super) fn shown(token: &Token) -> Value {
    json!({
        "id": token.id,
        "name": token.name,
        "description": token.description,
        "uid": token.uid,
        "createdAt": token.created,
        "expiresAt": token.expires,
        "capabilities": token.capabilities,
    })
}

async fn list(State(app): State<AppRef>, caller: Caller) -> ApiResult<Response> {
    let prefix = if caller.all { String::new() } else { format!("{}/", caller.uid()) };
    let (known, is_own) = (AppRef::clone(&app), |caller: &Caller, token: &Token| token.uid == caller.uid());
    let counts = move |token: &Token| {
        let epoch = Known::of(&known.store, token.uid);
        epoch.is_ok_and(|epoch| token.is_kept(&known.store, &epoch).unwrap_or_default())
    };
    let is_wanted = move |caller: &Caller, token: &Token| (caller.all || is_own(caller, token)) && counts(token);
    let list = List::new(prefix, is_wanted, |_, record: &Record<Token>| serde_json::to_vec(&shown(&record.value)));
    list.answer(&app, &caller, |token| token.created).await
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Fields {
    name: Option<String>,
    description: Option<String>,
    expiresat: Option<Timestamp>,
    capabilities: Option<Vec<String>>,
}

impl Fields {
    fn check(&self) -> ApiResult<()> {
        names::title("name", self.name.as_deref().unwrap_or_default())?;
        Ok(names::bounded("description", self.description.as_deref().unwrap_or_default(), DESCRIPTION_CHARS_MAX)?)
    }

    fn capabilities(&self, caller: &Caller) -> ApiResult<Vec<String>> {
        let named = self.capabilities.iter().flatten().map(|name| {
            let known = capabilities::named(name).map(|capability| capability.name);
            let known = known.ok_or_else(|| {
                ApiError::bad(format!("unknown capability {name:?}; see GET /api/tokens/capabilities"))
            })?;
            // A token must not create a more powerful one.
            caller.require(known)?;
            Ok(known.to_owned())
        });
        let mut capabilities: Vec<String> = named.collect::<ApiResult<_>>()?;
        // Removes duplicates.
        let mut seen = BTreeSet::new();
        capabilities.retain(|name| seen.insert(name.clone()));
        Ok(capabilities)
    }
}

/// Returns writes that make room for one more token by deleting expired ones. A valid token is never
/// deleted automatically.
fn room(app: &AppRef, uid: i32) -> ApiResult<Writes> {
    let mut writes = Writes::new();
    let prefix = format!("{uid}/");
    if app.store.some_keys::<Token>(&prefix, TOKENS_MAX)?.len() < TOKENS_MAX {
        return Ok(writes);
    }
    let tokens = blocking::run(|| app.store.list::<Token>(&prefix))?;
    let (epoch, now) = (Known::of(&app.store, uid)?, app.store.confirmed_now());
    for token in &tokens {
        let has_ended = token.value.expires.is_past_at(now) || !token.value.is_kept(&app.store, &epoch)?;
        if has_ended && writes.len() < SLICE {
            writes.delete(token, "an expired token was deleted at the same time; try again")?;
        }
    }
    if tokens.len() - writes.len() >= TOKENS_MAX {
        return Err(ApiError::conflict(format!("a user has at most {TOKENS_MAX} tokens; delete one first")));
    }
    Ok(writes)
}

/// Returns the expiry that a caller may assign to a token that it makes or renews. A token may assign none later than its
/// own, so that access through it ends with it.
fn end(caller: &Caller, asked: Option<Timestamp>) -> ApiResult<Timestamp> {
    let asked = asked.unwrap_or_default();
    let own = caller.token.as_ref().map(|token| token.expires).filter(|own| !own.is_never());
    match own {
        Some(own) if !asked.is_never() && asked <= own => Ok(asked),
        Some(own) if asked.is_never() => Ok(own),
        Some(_) => Err(ApiError::forbidden(
            "a token cannot create or renew a token with a later expiry than its own; choose an earlier one, or log in",
        )),
        None => Ok(asked),
    }
}

/// Returns the expiry that a caller may assign to a token that exists. A token may assign none later than that which the
/// other one has: the other one does not depend on it.
fn changed_end(caller: &Caller, asked: Option<Timestamp>, already: Timestamp) -> ApiResult<Timestamp> {
    let asked = asked.unwrap_or_default();
    if caller.token.is_none() || asked == already {
        return Ok(asked);
    }
    match (asked.is_never(), already.is_never()) {
        (true, _) => Ok(already),
        (false, true) => Ok(asked),
        (false, false) if asked <= already => Ok(asked),
        (false, false) => {
            Err(ApiError::forbidden("a token cannot extend the expiry of a token; renew the token (PATCH), or log in"))
        }
    }
}

/// Checks that a caller adds no capability to a token that exists, unless it has a session: the other token would keep
/// it when the caller's has ended.
fn only_less(caller: &Caller, token: &Token, capabilities: &[String]) -> ApiResult<()> {
    let more = capabilities.iter().find(|capability| caller.token.is_some() && !token.allows(capability));
    more.map_or(Ok(()), |more| {
        let message = format!(
            "a token cannot add the capability {more} to another token; create a token with it (POST), or log in"
        );
        Err(ApiError::forbidden(message))
    })
}

/// Returns the tokens on which a token that the caller creates or renews will depend.
fn makers(caller: &Caller, id: uuid::Uuid) -> ApiResult<Vec<uuid::Uuid>> {
    let makers = match &caller.token {
        // A new value of the caller's own token has the same holder as the former one.
        Some(token) if token.id == id => token.makers.clone(),
        Some(token) => token.makers_of(id),
        None => Vec::new(),
    };
    if makers.len() > MAKERS_MAX {
        return Err(ApiError::forbidden(format!(
            "the chain of tokens that created one another has reached {MAKERS_MAX}; log in"
        )));
    }
    Ok(makers)
}

/// Reason for deleting tokens regardless of their current contents.
const TAKEN_AWAY: &str = "revoking a token does not depend on its current name or expiry";

/// Message to an administrator who acts as the user.
const BY_THE_USER: &str = "only the user may create, renew and change tokens";

async fn create(State(app): State<AppRef>, caller: Caller, Input(fields): Input<Fields>) -> ApiResult<Json<Value>> {
    caller.refuse_acting(BY_THE_USER)?;
    fields.check()?;
    let capabilities = fields.capabilities(&caller)?;
    let id = uuid::Uuid::new_v4();
    let (expires, makers) = (end(&caller, fields.expiresat)?, makers(&caller, id)?);
    let (value, hash) = tokens::new_value(caller.uid(), id)?;
    let mut writes = room(&app, caller.uid())?;
    let epoch = epochs::for_new::<Token>(&app.store, caller.uid(), &mut writes)?;
    let token = Token {
        id,
        name: fields.name.unwrap_or_default(),
        description: fields.description.unwrap_or_default(),
        uid: caller.uid(),
        created: Timestamp::now(),
        expires,
        capabilities,
        hash,
        epoch,
        makers,
    };
    writes.require::<User>(&token.uid.to_string(), accounts::USER_GONE)?;
    writes.create(&token, "the token already exists; try again")?;
    app.store.commit(&caller.author(), &format!("create token {}", token.name), writes).await?;
    let mut body = shown(&token);
    body["token"] = value.into();
    Ok(Json(body))
}

fn found(app: &AppRef, caller: &Caller, id: &str) -> ApiResult<Record<Token>> {
    let nowhere = || ApiError::not_found(format!("token {id}"));
    let parsed = uuid::Uuid::parse_str(id).map_err(|_| nowhere())?;
    // Only administrators may see tokens of other users, which requires a scan over all tokens.
    let own = app.store.valid::<Token>(&format!("{}/{parsed}", caller.uid()))?;
    let record = match own {
        None if caller.person.admin => tokens::by_id(&app.store, parsed)?,
        own => own,
    };
    let record = record.filter(|record| caller.is_self_or_admin(record.value.uid)).ok_or_else(nowhere)?;
    let epoch = Known::of(&app.store, record.value.uid)?;
    if record.value.is_kept(&app.store, &epoch)? { Ok(record) } else { Err(nowhere()) }
}

/// Returns a token that the caller may change, which has no capability that the caller lacks. Otherwise the caller could
/// obtain a more powerful token by renewing it, or break the program that uses it by deleting it.
fn changeable(app: &AppRef, caller: &Caller, id: &str) -> ApiResult<Record<Token>> {
    let record = found(app, caller, id)?;
    record.value.capabilities.iter().try_for_each(|capability| caller.require(capability))?;
    Ok(record)
}

async fn show(State(app): State<AppRef>, caller: Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    Ok(Json(shown(&found(&app, &caller, &id)?.value)))
}

async fn commit(app: &AppRef, caller: &Caller, record: &Record<Token>, verb: &str) -> ApiResult<()> {
    let mut writes = Writes::new();
    writes.update(record, "the token was deleted in the meantime")?;
    app.store.commit(&caller.author(), &format!("{verb} token {}", record.value.name), writes).await?;
    Ok(())
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
    caller.refuse_acting(BY_THE_USER)?;
    fields.check()?;
    let mut record = changeable(app, caller, id)?;
    let capabilities = fields.capabilities(caller)?;
    only_less(caller, &record.value, &capabilities)?;
    record.value.capabilities = capabilities;
    record.value.name = fields.name.unwrap_or_default();
    record.value.description = fields.description.unwrap_or_default();
    record.value.expires = changed_end(caller, fields.expiresat, record.value.expires)?;
    commit(app, caller, &record, "change").await?;
    Ok(Json(shown(&record.value)))
}

async fn renew(
    State(app): State<AppRef>,
    caller: Caller,
    Path(id): Path<String>,
    Input(fields): Input<Fields>,
) -> ApiResult<Json<Value>> {
    repeated(|| give_new_value(&app, &caller, &id, fields.clone())).await
}

async fn give_new_value(app: &AppRef, caller: &Caller, id: &str, fields: Fields) -> ApiResult<Json<Value>> {
    caller.refuse_acting(BY_THE_USER)?;
    let mut record = changeable(app, caller, id)?;
    let (value, hash) = tokens::new_value(record.value.uid, record.value.id)?;
    record.value.hash = hash;
    record.value.makers = makers(caller, record.value.id)?;
    record.value.expires = end(caller, fields.expiresat)?;
    commit(app, caller, &record, "renew").await?;
    let mut body = shown(&record.value);
    body["token"] = value.into();
    Ok(Json(body))
}

async fn remove(State(app): State<AppRef>, caller: Caller, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    // No turn: only an administrator's.
    let others = match caller.person.admin {
        true => app.store.keys::<Token>("")?,
        // Only administrators may see invalid tokens, and so delete them.
        false => Vec::new(),
    };
    for key in others.iter().filter(|key| key.ends_with(&format!("/{id}"))) {
        if invalid::discarded(&app, &caller, Token::COLLECTION, key).await? {
            return Ok(DONE);
        }
    }
    // A caller with a session may delete any token of theirs.
    let record = if caller.token.is_some() { changeable } else { found }(&app, &caller, &id)?;
    let mut writes = Writes::new();
    writes.delete_unconditionally::<Token>(&record.value.key(), TAKEN_AWAY)?;
    // Tokens made with this one are invalid without it, except at webservers of earlier versions.
    for made in blocking::run(|| tokens::made_with(&app.store, &record.value))? {
        writes.delete_unconditionally::<Token>(&made.value.key(), TAKEN_AWAY)?;
    }
    app.store.commit(&caller.author(), &format!("delete token {}", record.value.name), writes).await?;
    Ok(DONE)
}
