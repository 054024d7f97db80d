//! Headers of all responses.

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::app::AppRef;
use super::consistency_token;

/// All resources come from this server; nothing is inline.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; font-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; \
     frame-ancestors 'none'";

/// Middleware that adds the common headers to every response.
pub(super) async fn add(State(app): State<AppRef>, request: Request, next: Next) -> Response {
    let is_api = request.uri().path().starts_with("/api/");
    let is_asked_beforehand = app.config.allow_origin.is_some()
        && request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    // A CORS preflight request carries no session.
    let mut response =
        if is_asked_beforehand { StatusCode::NO_CONTENT.into_response() } else { next.run(request).await };
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.entry(name).or_insert(value);
        }
    };
    let policy = app.config.content_security_policy.as_deref().unwrap_or(CONTENT_SECURITY_POLICY);
    set(header::CONTENT_SECURITY_POLICY, policy);
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::REFERRER_POLICY, "no-referrer");
    if !app.config.may_be_framed {
        set(header::X_FRAME_OPTIONS, "deny");
    }
    if !app.config.plain_http {
        set(header::STRICT_TRANSPORT_SECURITY, "max-age=31536000");
    }
    if let Some(origin) = &app.config.allow_origin {
        set(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        set(
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "Authorization, Content-Type, Gravwell-Token, Gravwell-Wait-For, If-Match, If-None-Match, Password",
        );
        set(header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, PUT, PATCH, DELETE");
        set(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            "Content-Disposition, ETag, Gravwell-Invalid, Gravwell-Invalid-Keys, Gravwell-Position, Gravwell-Undecided",
        );
        set(header::ACCESS_CONTROL_MAX_AGE, "600");
    }
    if is_api {
        set(header::CACHE_CONTROL, "no-store");
        consistency_token::tell(&app.store, headers);
    }
    response
}
