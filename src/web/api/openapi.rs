//! The OpenAPI description, generated from the table of routes.

use std::sync::OnceLock;

use axum::body::Bytes;
use axum::http::header;
use axum::response::IntoResponse;
use serde_json::{Map, Value, json};

use crate::authorization::{AccessRequirement, Right};
use crate::route::{Route, get};

pub(crate) fn routes() -> Vec<Route> {
    vec![get("/api/openapi.json", AccessRequirement::Nobody, "Returns the description of this API.", description)]
}

/// Cached, because it is the same for all callers and public.
static DOCUMENT: OnceLock<Bytes> = OnceLock::new();

/// Generates the document from the table, before the first request.
pub(crate) fn describe(table: &[Route]) {
    DOCUMENT.get_or_init(|| document(table).to_string().into());
}

async fn description() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.get().cloned().unwrap_or_default())
}

fn names_in(path: &str) -> impl Iterator<Item = &str> {
    path.split('{').skip(1).filter_map(|rest| rest.split('}').next()).map(|name| name.trim_start_matches('*'))
}

fn whom(need: AccessRequirement) -> String {
    let who = match need {
        AccessRequirement::Nobody => return "Requires no authentication.".into(),
        AccessRequirement::User(_) => "For all users.",
        AccessRequirement::Admin => "For administrators.",
        AccessRequirement::SelfOrAdmin(_) => "For the user and administrators.",
        AccessRequirement::MemberOrAdmin(_) => "For members of the group and administrators.",
    };
    let right = need.right().map_or_else(String::new, |right| match right {
        Right::Capability(name) | Right::OfToken(name) => format!(" A token requires the capability {name}."),
        Right::Any => " A token requires any capability.".into(),
        Right::Session => " Not for tokens.".into(),
    });
    format!("{who}{right}")
}

/// Returns the OpenAPI 3.1 document.
fn document(table: &[Route]) -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for Route { method, path, need, does, is_download, .. } in table {
        let parameters: Vec<Value> = names_in(path)
            .map(|name| {
                let kind = if ["uid", "gid"].contains(&name) { "integer" } else { "string" };
                json!({ "name": name, "in": "path", "required": true, "schema": { "type": kind } })
            })
            .collect();
        let mut responses = json!({ "200": { "description": "Success; a JSON value or the requested contents." } });
        if *need != AccessRequirement::Nobody {
            responses["401"] = json!({ "$ref": "#/components/responses/Unknown" });
            responses["403"] = json!({ "$ref": "#/components/responses/Refused" });
        }
        let mut operation = json!({
            "summary": does,
            "description": format!("{}{}", whom(*need), if *is_download { " Accepts temporary tokens." } else { "" }),
            "tags": [path.trim_start_matches("/api/").split('/').next().unwrap_or("api")],
            "parameters": parameters,
            "responses": responses,
        });
        operation["security"] = match need.right() {
            None => json!([]),
            Some(Right::Session) => json!([{ "session": [] }]),
            Some(_) => json!([{ "session": [] }, { "token": [] }]),
        };
        let path = path.replace("{*", "{");
        let entry = paths.entry(path).or_insert_with(|| json!({}));
        entry[method.as_str().to_lowercase()] = operation;
    }
    let error = json!({ "application/json": { "schema": { "$ref": "#/components/schemas/Error" } } });
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Gravwell webserver", "version": env!("CARGO_PKG_VERSION"), "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" } },
        "paths": paths,
        "components": {
            "securitySchemes": {
                "session": { "type": "http", "scheme": "bearer" },
                "token": { "type": "apiKey", "in": "header", "name": "Gravwell-Token" },
            },
            "schemas": {
                "Error": {
                    "type": "object",
                    "required": ["Error"],
                    "properties": { "Error": { "type": "string" }, "Cap": { "type": "string" } },
                },
            },
            "responses": {
                "Unknown": { "description": "The session is missing or has expired.", "content": error },
                "Refused": { "description": "The caller is not allowed to do this.", "content": error },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_described() {
        let table = crate::routes::table();
        let document = document(&table);
        for Route { method, path, .. } in &table {
            let operation = &document["paths"][path.replace("{*", "{")][method.as_str().to_lowercase()];
            assert!(operation["summary"].is_string(), "{method} {path}");
            let named = operation["parameters"].as_array().expect("parameters").len();
            assert_eq!(named, path.matches('{').count(), "{path}");
        }
    }
}
