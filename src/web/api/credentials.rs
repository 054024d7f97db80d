//! Authentication without a session: by name and password, and the second factor if there is one. The only place where
//! passwords and codes of logins are verified.

use std::net::IpAddr;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::TRIES;
use crate::app::App;
use crate::audit_acts::Stranger;
use crate::error::{ApiError, ApiResult};
use crate::login_throttle::{Attempt, Refusal};
use crate::request_input;
use gravwell_objects::passwords::Password;
use gravwell_objects::record::AsRead;
use gravwell_objects::restores;
use gravwell_objects::second_factors::{self, Code, Factor, Proved};
use gravwell_objects::store::Author;
use gravwell_objects::users::{self, Admin, FIRST, Lock, User};
use gravwell_objects::{Record, Writes};

/// Kinds of codes in the API.
const KINDS: [&str; 2] = ["TOTP", "RecoveryCodes"];

/// Credentials that a client sends.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Credentials {
    user: String,
    pass: String,
    /// `None`, `TOTP` or `RecoveryCodes`.
    authtype: String,
    authcode: String,
}

#[derive(Deserialize)]
struct Form {
    #[serde(rename = "User", alias = "user", default)]
    user: String,
    #[serde(rename = "Pass", alias = "pass", default)]
    pass: String,
}

impl Credentials {
    /// Parses a form or JSON body.
    pub(super) fn read(headers: &HeaderMap, body: &[u8]) -> ApiResult<Credentials> {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let is_json = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
        if is_json || !kind.starts_with("application/x-www-form-urlencoded") {
            return request_input::read(body);
        }
        let request = Request::builder()
            .method("POST")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(axum::body::Body::from(body.to_vec()))
            .map_err(ApiError::bad)?;
        let form = futures_util::FutureExt::now_or_never(
            <axum::Form<Form> as axum::extract::FromRequest<()>>::from_request(request, &()),
        );
        match form {
            Some(Ok(axum::Form(Form { user, pass }))) => Ok(Credentials { user, pass, ..Credentials::default() }),
            _ => Err(ApiError::bad("invalid form; send User and Pass")),
        }
    }

    /// Returns the code, if there is one.
    pub(super) fn code(&self) -> ApiResult<Option<Code<'_>>> {
        let code = self.authcode.trim();
        match self.authtype.as_str() {
            _ if code.is_empty() => Ok(None),
            "" | "None" => Ok(None),
            "TOTP" => Ok(Some(Code::OfApp(code))),
            "RecoveryCodes" => Ok(Some(Code::Recovery(code))),
            other => Err(ApiError::bad(format!("unknown AuthType {other:?}; use None, TOTP or RecoveryCodes"))),
        }
    }

    /// Returns the code without regard to its kind.
    pub(super) fn bare_code(&self) -> &str {
        self.authcode.trim()
    }
}

/// Builds the response to a rejected login, in the form that clients expect.
fn refused(status: StatusCode, reason: &str) -> ApiError {
    ApiError::new(status, reason)
        .with("LoginStatus", false)
        .with("Reason", reason)
        .with("MFARequired", false)
        .with("MFASetupRequired", false)
}

/// Builds the audit data of a login attempt; the name is looked up whether or not the attempt succeeds.
fn stranger(app: &App, name: &str, from: IpAddr) -> ApiResult<Stranger> {
    let uid = users::by_name(&app.store, name)?;
    let is_admin = uid.map_or(Ok(false), |uid| app.store.has::<Admin>(&uid.to_string()))?;
    Ok(Stranger { name: name.to_owned(), uid, is_admin, from, is_place_refused: false })
}

/// Builds the response to a throttled login.
fn held_back(refusal: Refusal) -> ApiError {
    match refusal {
        Refusal::Busy => refused(StatusCode::TOO_MANY_REQUESTS, refusal.reason()).retry_after(Duration::from_secs(1)),
        Refusal::Name | Refusal::Place => refused(StatusCode::LOCKED, refusal.reason()),
    }
}

/// A user with an unlocked account whose password was verified. Only a wrong second factor makes it a failed login.
pub(super) struct Known {
    pub user: User,
    pub must_change: bool,
    /// Second factor that is required.
    pub factor: Option<Record<Factor>>,
    /// Version of the password record that was compared.
    compared: Option<AsRead>,
    from: IpAddr,
    attempt: Attempt,
}

impl Known {
    pub(super) async fn by_password(app: &App, from: IpAddr, given: &Credentials) -> ApiResult<Known> {
        // Until this webserver has the first administrator it cannot know that a name is wrong.
        if !app.store.has::<User>(&FIRST.to_string())? {
            let reason = "this webserver has not received the first administrator yet; try again in a second";
            return Err(refused(StatusCode::SERVICE_UNAVAILABLE, reason).retry_after(Duration::from_secs(1)));
        }
        let Credentials { user, pass, .. } = given;
        let attempt = match app.limiter.admit(user, from).await {
            Ok(attempt) => attempt,
            Err(refusal) => {
                let stranger = Stranger { is_place_refused: refusal == Refusal::Place, ..stranger(app, user, from)? };
                app.recorder.note_login("login-throttled", &stranger, refusal.reason());
                return Err(held_back(refusal));
            }
        };
        let uid = users::by_name(&app.store, user)?;
        let password = match uid {
            Some(uid) => app.store.valid::<Password>(&uid.to_string())?,
            None => None,
        };
        let compared = password.as_ref().map(|record| record.as_read);
        let password = password.map(|record| record.value);
        let must_change = password.as_ref().is_some_and(|password| password.must_change);
        let (attempt, fits) = attempt.compare(pass.clone(), password.map(|password| password.hash)).await?;
        let Some(uid) = uid.filter(|_| fits) else {
            tracing::warn!(%from, "login failed");
            app.recorder.note_login("login-failed", &stranger(app, user, from)?, "wrong user name or password");
            return Err(refused(StatusCode::UNPROCESSABLE_ENTITY, "wrong user name or password"));
        };
        // The lock is disclosed only to a client that knows the password.
        if app.store.has::<Lock>(&uid.to_string())? {
            app.recorder.note_login("login-failed", &stranger(app, user, from)?, "the account is locked");
            attempt.note_half_way();
            return Err(refused(StatusCode::LOCKED, "the account is locked; ask an administrator"));
        }
        if restores::is_unfinished(&app.store)? && !app.store.has::<Admin>(&uid.to_string())? {
            attempt.note_half_way();
            return Err(refused(StatusCode::SERVICE_UNAVAILABLE, restores::SHUT));
        }
        let invalid = || refused(StatusCode::LOCKED, "the stored account is invalid; ask an administrator");
        let user = app.store.valid::<User>(&uid.to_string())?.ok_or_else(invalid)?.value;
        let factor = second_factors::of(&app.store, uid).map_err(|error| match error {
            gravwell_objects::StoreError::Invalid { .. } => invalid(),
            error => error.into(),
        })?;
        Ok(Known { user, must_change, factor, compared, from, attempt })
    }

    fn author(&self) -> Author {
        let (uid, user) = (self.user.uid, self.user.user.clone());
        Author { uid, user, from: self.from.to_string(), ..Author::default() }
    }

    fn stranger(&self, app: &App) -> Stranger {
        let uid = self.user.uid;
        let is_admin = app.store.has::<Admin>(&uid.to_string()).unwrap_or_default();
        let name = self.user.user.clone();
        Stranger { name, uid: Some(uid), is_admin, from: self.from, is_place_refused: false }
    }

    /// Responds that the password is correct but a second factor is required. This does not count as a failure: clients
    /// learn this way which factor to request.
    pub(super) fn asked_for_more(self) -> Response {
        let is_set = self.factor.is_some();
        self.attempt.note_half_way();
        let reason = match is_set {
            true => "a code of the second factor is required; send it to /api/login/mfa",
            false => "a second factor must be set up first; use POST /api/mfa/totp/setup",
        };
        let mut body =
            json!({ "LoginStatus": false, "Reason": reason, "MFARequired": true, "MFASetupRequired": !is_set });
        if is_set {
            body["AcceptedAuthTypes"] = KINDS.into();
        }
        axum::Json(body).into_response()
    }

    /// Like [`Known::asked_for_more`], as an error of calls other than logins.
    fn lacks_code(self) -> ApiError {
        self.attempt.note_half_way();
        let reason = "a code of the second factor is required; send AuthType and AuthCode";
        refused(StatusCode::UNPROCESSABLE_ENTITY, reason).with("MFARequired", true)
    }

    /// Records a rejected code and builds the error.
    pub(super) fn wrong(&self, app: &App, what: &str, reason: &str) -> ApiError {
        tracing::warn!(from = %self.from, "second factor failed");
        self.attempt.note_wrong();
        app.recorder.note_login("login-failed", &self.stranger(app), what);
        refused(StatusCode::UNPROCESSABLE_ENTITY, reason)
    }

    /// Checks that codes of an authenticator app may be tried; recovery codes always may.
    pub(super) fn may_try(self, app: &App) -> ApiResult<Known> {
        if app.codes.may_try(self.user.uid) {
            return Ok(self);
        }
        let reason = "too many wrong codes; use a recovery code, or try again in a few minutes";
        app.recorder.note_login("login-throttled", &self.stranger(app), reason);
        self.half_way();
        Err(refused(StatusCode::LOCKED, reason))
    }

    /// Rejects changes that exceed the user's write rate; the middleware cannot check it on calls without a session.
    pub(super) fn slow_down(&self, app: &App) -> ApiResult<()> {
        match app.store.allowance() {
            Some(allowance) => Ok(allowance.look(&app.store, &self.author())?),
            None => Ok(()),
        }
    }

    /// Commits the transaction that `build` makes. All transactions for a caller without a session are committed
    /// here: if the password changes before such a transaction is resolved, it must fail.
    pub(super) async fn store<T>(
        &self,
        app: &App,
        what: &str,
        build: impl FnOnce(&mut Writes) -> ApiResult<T>,
    ) -> ApiResult<T> {
        let mut writes = Writes::new();
        let changed = "the password was changed in the meantime; log in with the new one";
        writes.require_as_read::<Password>(&self.user.uid.to_string(), self.compared, changed)?;
        let built = build(&mut writes)?;
        app.store.commit(&self.author(), what, writes).await?;
        Ok(built)
    }

    /// Adds the writes that consume the proof, validated against the current local state.
    fn prove(&self, app: &App, code: Option<Code<'_>>, writes: &mut Writes) -> ApiResult<()> {
        let (Some(factor), Some(code)) = (&self.factor, code) else {
            // A second factor may exist that this webserver does not know yet.
            return Ok(second_factors::require_none(self.user.uid, writes)?);
        };
        match (second_factors::prove(&app.store, factor, code, writes)?, code) {
            (Proved::Yes, _) => Ok(()),
            (Proved::Used, _) => {
                let reason = "the code was already used; wait for the next one";
                Err(self.wrong(app, "the code of the second factor was already used", reason))
            }
            (Proved::No, Code::OfApp(_)) => Err(self.wrong(app, "wrong code of the second factor", "wrong code")),
            (Proved::No, Code::Recovery(_)) => {
                Err(self.wrong(app, "wrong recovery code", "wrong recovery code, or it was already used"))
            }
        }
    }

    /// Commits a change that requires the second factor, if there is one. `change` adds to the transaction, which also
    /// consumes the proof. If a concurrent request invalidates the transaction, it is built again.
    pub(super) async fn commit<T>(
        mut self,
        app: &App,
        code: Option<Code<'_>>,
        what: &str,
        change: impl Fn(&Known, &mut Writes) -> ApiResult<T>,
    ) -> ApiResult<T> {
        if self.factor.is_some() {
            match code {
                None => return Err(self.lacks_code()),
                Some(Code::OfApp(_)) => self = self.may_try(app)?,
                Some(Code::Recovery(_)) => {}
            }
        }
        let mut tries = 0;
        loop {
            tries += 1;
            let mut is_proved = false;
            let build = |writes: &mut Writes| {
                self.prove(app, code, writes)?;
                is_proved = true;
                change(&self, writes)
            };
            match self.store(app, what, build).await {
                Ok(done) => {
                    self.succeeded(app);
                    return Ok(done);
                }
                Err(error) if !is_proved => return Err(error),
                Err(error) if error.is_overtaken() && tries < TRIES => {
                    self.factor = second_factors::of(&app.store, self.user.uid)?;
                }
                Err(error) => {
                    // The credentials were valid; the failure has another cause.
                    app.codes.right(self.user.uid);
                    self.half_way();
                    return Err(error);
                }
            }
        }
    }

    /// Records that all required credentials were valid.
    pub(super) fn succeeded(self, app: &App) {
        app.codes.right(self.user.uid);
        self.attempt.note(true);
    }

    /// Records that the password was valid, with no further consequence.
    pub(super) fn half_way(self) {
        self.attempt.note_half_way();
    }
}
