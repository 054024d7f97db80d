//! The table of routes: their paths, access requirements and descriptions. The router, the authorization middleware and
//! the API description are built from the same rows.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware;

use super::admission::AccessRequirement;
use super::api;
use super::app::AppRef;
use super::assets;
use super::authorization;
use super::body_budget;
use super::connections;
use super::error::ApiError;
use super::route::Route;
use super::stream_limits;

/// Paths with streamed bodies, which their handlers bound.
const STREAMED: [&str; 3] = ["/api/resources/{guid}/raw", "/api/backup", "/api/searchctrl/import"];

/// Maximum size of a body from an unauthenticated client.
const UNAUTHENTICATED_BODY_MAX: usize = 64 << 10;
/// Maximum size of a body from a user, except where a field may be as large as an object.
const USERS_BYTES_MAX: usize = 1 << 20;

pub(super) fn table() -> Vec<Route> {
    let parts = [
        api::login::routes(),
        api::mfa::routes(),
        api::users::routes(),
        api::groups::routes(),
        api::preferences::routes(),
        api::dashboards::routes(),
        api::history::routes(),
        api::searchctrl::routes(),
        api::queries::routes(),
        api::search_socket::routes(),
        api::search_import::routes(),
        api::resources::routes(),
        api::contents::routes(),
        api::tokens::routes(),
        api::capabilities::routes(),
        api::notifications::routes(),
        api::system::routes(),
        api::fleet::routes(),
        api::live::routes(),
        api::rejections::routes(),
        api::invalid::routes(),
        api::export_archive::routes(),
        api::openapi::routes(),
    ];
    parts.into_iter().flatten().collect()
}

pub(super) fn router(app: &AppRef) -> Router {
    let mut router = Router::new();
    let table = table();
    api::openapi::describe(&table);
    for route in table {
        let state = (AppRef::clone(app), route.rule());
        let Route { path, need, handler, has_objects, .. } = route;
        let handler = match need {
            AccessRequirement::Nobody => handler.layer(middleware::from_fn(body_budget::of_strangers)),
            _ if STREAMED.contains(&&*path) => handler.layer(middleware::from_fn(stream_limits::of_users)),
            _ => handler.layer(middleware::from_fn(body_budget::of_users)),
        };
        let handler = handler.layer(middleware::from_fn(connections::note_known));
        let handler = handler.layer(middleware::from_fn_with_state(state, authorization::check));
        let handler = match need {
            AccessRequirement::Nobody => handler.layer(DefaultBodyLimit::max(UNAUTHENTICATED_BODY_MAX)),
            _ if STREAMED.contains(&&*path) => handler.layer(DefaultBodyLimit::disable()),
            _ if has_objects => handler,
            _ => handler.layer(DefaultBodyLimit::max(USERS_BYTES_MAX)),
        };
        router = router.route(&path, handler);
    }
    let wrong_method = || async { ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed for this path") };
    router.fallback(assets::serve).method_not_allowed_fallback(wrong_method).with_state(AppRef::clone(app))
}

#[cfg(test)]
mod tests {
    use axum::http::Method;

    use super::*;

    #[test]
    fn rows_are_unique_and_say_what_they_do() {
        let mut seen = std::collections::HashSet::new();
        for Route { method, path, need, does, is_download, is_change, .. } in table() {
            assert!(!(is_download || is_change) || method == Method::GET, "{method} {path}");
            assert!(seen.insert((method.clone(), path.clone())), "{method} {path} twice");
            assert!(does.ends_with('.') && does.len() > 10, "{method} {path}: {does}");
            let needs_uid = matches!(need, AccessRequirement::SelfOrAdmin(_));
            assert!(!needs_uid || path.contains("{uid}"), "{method} {path}");
            assert!(!matches!(need, AccessRequirement::MemberOrAdmin(_)) || path.contains("{gid}"), "{method} {path}");
        }
    }
}
