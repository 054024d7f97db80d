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
        api::owned::routes(),
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
    use std::collections::BTreeSet;

    use axum::http::Method;

    use super::*;
    use crate::admission::Right;
    use gravwell_objects::kinds::KINDS;

    #[test]
    fn every_kind_with_a_path_has_routes_that_need_its_capabilities() {
        for kind in KINDS {
            let Some(path) = kind.path else { continue };
            let of = |route: &Route| {
                let rest = route.path.strip_prefix(path);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            let rows: Vec<Route> = table().into_iter().filter(of).collect();
            assert!(!rows.is_empty(), "{}: src/web/api has no route at {path}", kind.collection);
            let (Some(needs), Some(_)) = (kind.capabilities, kind.spec) else { continue };
            let methods: BTreeSet<String> = rows.iter().map(|row| format!("{} {}", row.method, row.path)).collect();
            for wanted in ["GET", "POST"].map(|method| format!("{method} {path}")) {
                assert!(methods.contains(&wanted), "{wanted}");
            }
            for wanted in ["GET", "PUT", "DELETE"].map(|method| format!("{method} {path}/{{id}}")) {
                assert!(methods.contains(&wanted), "{wanted}");
            }
            for row in rows.iter().filter(|row| row.need != AccessRequirement::Admin) {
                let wanted = if row.method == Method::GET { needs.read } else { needs.write };
                assert_eq!(row.need.right(), Some(Right::Capability(wanted)), "{} {}", row.method, row.path);
            }
        }
    }

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
