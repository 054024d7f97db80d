//! Routes of second factors: codes of an authenticator app, and recovery codes for its loss. Every change requires the
//! password and the current second factor, whatever session the caller has.

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::DONE;
use super::credentials::{Credentials, Known};
use super::login::{NewSession, answer, must_change, start_session};
use super::users::found;
use crate::app::{App, AppRef};
use crate::authorization::{self, AccessRequirement, Right};
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::qr;
use crate::request_input;
use crate::route::{Route, delete, get, post, put};
use gravwell_objects::second_factors::{self, Factor, Installed};
use gravwell_objects::{Store, StoreError, Timestamp, Writes, accounts, totp};

pub(crate) fn routes() -> Vec<Route> {
    use AccessRequirement::{Admin, Nobody, User};
    use Right::Session;
    let setup = "/api/mfa/totp/setup";
    vec![
        get("/api/mfa", User(Session), "Returns the caller's second factor, and whether one is required.", show),
        post(
            setup,
            Nobody,
            "Starts the setup of an authenticator app; requires the password and the current factor.",
            begin,
        ),
        put(setup, Nobody, "Finishes the setup with a code of the app and returns recovery codes.", install),
        post("/api/mfa/totp/clear", User(Session), "Deletes the caller's second factor.", clear),
        post("/api/mfa/clear", User(Session), "Deletes the caller's second factor.", clear),
        post(
            "/api/mfa/recoverycodes/generate",
            User(Session),
            "Creates new recovery codes, which are shown only once.",
            generate,
        ),
        delete(
            "/api/users/{uid}/mfa/clear",
            Admin,
            "Deletes a user's second factor and ends the user's sessions.",
            unset,
        ),
    ]
}

/// Returns a user's second factors as JSON for clients.
pub(super) fn described(store: &Store, uid: i32) -> Result<Value, StoreError> {
    let found = second_factors::summary(store, uid)?;
    Ok(json!({
        "TOTP": { "Enabled": found.is_set },
        "RecoveryCodes": {
            "Enabled": found.codes_left > 0,
            "Remaining": found.codes_left,
            "Generated": found.generated.unwrap_or(Timestamp::NEVER),
        },
    }))
}

async fn show(State(app): State<AppRef>, caller: Caller) -> ApiResult<Json<Value>> {
    let described = described(&app.store, caller.uid())?;
    Ok(Json(json!({ "UserConfig": described, "MFARequired": app.config.mfa_required })))
}

async fn begin(
    State(app): State<AppRef>,
    Extension(authorization::From(from)): Extension<authorization::From>,
    headers: HeaderMap,
    request_input::Raw(body): request_input::Raw,
) -> ApiResult<Json<Value>> {
    let given = Credentials::read(&headers, &body)?;
    let known = Known::by_password(&app, from, &given).await?;
    known.slow_down(&app)?;
    let begin =
        |known: &Known, writes: &mut Writes| Ok(second_factors::begin(known.user.uid, known.factor.as_ref(), writes)?);
    let user = known.user.user.clone();
    let seed = known.commit(&app, given.code()?, "start the setup of a second factor", begin).await?;
    let url = totp::url(&app.config.mfa_issuer, &user, &seed);
    let picture = STANDARD.encode(qr::png(&url)?);
    Ok(Json(json!({ "QRCode": picture, "Seed": totp::seed_text(&seed), "URL": url })))
}

async fn install(
    State(app): State<AppRef>,
    Extension(authorization::From(from)): Extension<authorization::From>,
    headers: HeaderMap,
    request_input::Raw(body): request_input::Raw,
) -> ApiResult<Response> {
    let given = Credentials::read(&headers, &body)?;
    let known = Known::by_password(&app, from, &given).await?;
    known.slow_down(&app)?;
    let known = known.may_try(&app)?;
    let uid = known.user.uid;
    let mut is_wrong = false;
    let build = |writes: &mut Writes| {
        // Ends sessions that were started without this factor.
        let epoch = accounts::end_sessions_for_new(&app.store, uid, writes)?;
        let codes = match second_factors::install(&app.store, uid, given.bare_code(), writes)? {
            Installed::Yes(codes) => codes,
            Installed::No => {
                is_wrong = true;
                let reason = "wrong code; check the clock of the device with the app";
                return Err(known.wrong(&app, "wrong code of a second factor that is being set up", reason));
            }
            Installed::NotBegun => {
                return Err(ApiError::conflict(
                    "no setup is in progress, or it has expired; start again with POST /api/mfa/totp/setup",
                ));
            }
        };
        let begun = NewSession { uid, su: String::new(), behind: Vec::new(), second_factor: true, epoch };
        Ok((codes, start_session(&app, begun, from, &headers, writes)?))
    };
    let (codes, claims) = match known.store(&app, "set up a second factor", build).await {
        Ok(done) => done,
        Err(error) => {
            if !is_wrong {
                known.half_way();
            }
            return Err(error);
        }
    };
    let mut besides = must_change(known.must_change);
    besides["RecoveryCodes"] = codes.into();
    known.succeeded(&app);
    answer(&app, &headers, &claims, &besides)
}

/// Verifies name and password of a call with a session; they must be those of the session's user.
async fn own(app: &App, caller: &Caller, given: &Credentials) -> ApiResult<Known> {
    caller.refuse_acting("only the user may change the second factor")?;
    let known = Known::by_password(app, caller.from, given).await?;
    if known.user.uid == caller.uid() {
        return Ok(known);
    }
    known.half_way();
    Err(ApiError::forbidden("the password belongs to a user other than that of the session"))
}

async fn clear(
    State(app): State<AppRef>,
    caller: Caller,
    headers: HeaderMap,
    request_input::Raw(body): request_input::Raw,
) -> ApiResult<Json<Value>> {
    if app.config.mfa_required {
        let message = "a second factor is required here (MFA-Required); replace it by setting up another one";
        return Err(ApiError::forbidden(message));
    }
    let given = Credentials::read(&headers, &body)?;
    let known = own(&app, &caller, &given).await?;
    let clear = |known: &Known, writes: &mut Writes| match &known.factor {
        Some(factor) => Ok(second_factors::clear(known.user.uid, factor.as_read, writes)?),
        None => Ok(()),
    };
    known.commit(&app, given.code()?, "clear the second factor", clear).await?;
    Ok(DONE)
}

async fn generate(
    State(app): State<AppRef>,
    caller: Caller,
    headers: HeaderMap,
    request_input::Raw(body): request_input::Raw,
) -> ApiResult<Json<Value>> {
    let given = Credentials::read(&headers, &body)?;
    let known = own(&app, &caller, &given).await?;
    let generate = |known: &Known, writes: &mut Writes| {
        let none = || ApiError::conflict("there is no second factor; set one up first");
        Ok(second_factors::new_codes(&app.store, known.factor.as_ref().ok_or_else(none)?, writes)?)
    };
    let (kept, shown) = known.commit(&app, given.code()?, "create new recovery codes", generate).await?;
    let (remaining, generated) = (kept.left(), kept.generated);
    Ok(Json(json!({ "Enabled": true, "Codes": shown, "Remaining": remaining, "Generated": generated })))
}

async fn unset(State(app): State<AppRef>, caller: Caller, Path(uid): Path<i32>) -> ApiResult<Response> {
    let user = found(&app.store, uid)?.value;
    // A session alone must not suffice to remove the account's protection, not even while acting as
    // another administrator.
    if caller.is_or_acts_for(uid) && second_factors::summary(&app.store, uid)?.is_set {
        let message = "cannot clear your own second factor without its code; use POST /api/mfa/clear, or ask another \
                       administrator";
        return Err(ApiError::forbidden(message));
    }
    // The factor is read before its sessions are ended, which takes effect whatever becomes of the factor: the user may
    // set up another one at the same time.
    let found = app.store.seen::<Factor>(&uid.to_string())?;
    let writes = accounts::end_sessions(&app.store, uid, None)?;
    app.store.commit(&caller.author(), &format!("end the sessions of {}", user.user), writes).await?;
    if let Some(found) = found {
        let writes = accounts::clear_second_factor(&app.store, uid, found)?;
        app.store.commit(&caller.author(), &format!("clear the second factor of {}", user.user), writes).await?;
    }
    Ok(DONE.into_response())
}
