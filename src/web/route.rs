//! Rows of the table of routes. Handlers build them, so this file is below the handlers, and the table is above them.

use std::borrow::Cow;

use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{MethodFilter, MethodRouter, on};

use super::admission::{AccessRequirement, Rule};
use super::app::AppRef;

/// A row of the table.
pub(super) struct Route {
    pub method: Method,
    pub path: Cow<'static, str>,
    pub need: AccessRequirement,
    /// Description for the API documentation.
    pub does: Cow<'static, str>,
    /// Whether the route returns a file: temporary tokens are accepted only for these.
    pub is_download: bool,
    /// Whether the route changes state although its method is a safe one.
    pub is_change: bool,
    /// Whether bodies may hold whole objects.
    pub has_objects: bool,
    pub handler: MethodRouter<AppRef>,
}

impl Route {
    /// Accepts temporary tokens for the route.
    pub(super) fn for_downloads(self) -> Route {
        Route { is_download: true, ..self }
    }

    /// Declares that the route changes state although it is a GET, which existing clients send.
    pub(super) fn that_changes(self) -> Route {
        Route { is_change: true, ..self }
    }

    /// Accepts bodies that hold whole objects.
    pub(super) fn with_objects(self) -> Route {
        Route { has_objects: true, ..self }
    }

    /// Returns the rule by which requests are authorized.
    pub(super) fn rule(&self) -> Rule {
        Rule { need: self.need, is_download: self.is_download, is_change: self.is_change }
    }
}

fn route<H: Handler<T, AppRef>, T: 'static>(
    (method, filter): (Method, MethodFilter),
    path: impl Into<Cow<'static, str>>,
    need: AccessRequirement,
    does: impl Into<Cow<'static, str>>,
    handler: H,
) -> Route {
    Route {
        method,
        path: path.into(),
        need,
        does: does.into(),
        is_download: false,
        is_change: false,
        has_objects: false,
        handler: on(filter, handler),
    }
}

macro_rules! methods {
    ($($name:ident $method:ident),*) => {$(
        pub(super) fn $name<H: Handler<T, AppRef>, T: 'static>(
            path: impl Into<Cow<'static, str>>,
            need: AccessRequirement,
            does: impl Into<Cow<'static, str>>,
            handler: H,
        ) -> Route {
            route((Method::$method, MethodFilter::$method), path, need, does, handler)
        }
    )*};
}

methods!(get GET, post POST, put PUT, patch PATCH, delete DELETE);
