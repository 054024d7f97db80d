//! Files of the browser interface, embedded in the program or read from a configured directory.

use std::borrow::Cow;
use std::path::{Component, Path, PathBuf};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use rust_embed::RustEmbed;

use super::app::AppRef;
use super::entity_tags::IfNoneMatch;
use super::error::ApiError;

#[derive(RustEmbed)]
#[folder = "ui/"]
struct Files;

/// File served at the root.
const START: &str = "index.html";

fn kind(path: &str) -> &'static str {
    match path.rsplit_once('.').map(|(_, extension)| extension) {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("json" | "webmanifest") => "application/json",
        Some("txt") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

/// Reads a file of a directory; `None` if the path leads out of it.
async fn read(directory: &Path, path: &str) -> Option<Vec<u8>> {
    let relative = PathBuf::from(path);
    if !relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return None;
    }
    // Symbolic links must not lead out of the directory either.
    let root = tokio::fs::canonicalize(directory).await.ok()?;
    let file = tokio::fs::canonicalize(root.join(relative)).await.ok()?;
    if !file.starts_with(&root) {
        return None;
    }
    tokio::fs::read(file).await.ok()
}

fn answer(path: &str, contents: Cow<'static, [u8]>, headers: &HeaderMap) -> Response {
    let tag = format!("\"{}\"", &blake3::hash(&contents).to_hex()[..32]);
    let fixed = [(header::ETAG, tag.clone()), (header::CACHE_CONTROL, "no-cache".to_owned())];
    if IfNoneMatch::of(headers).has(&tag) {
        return (StatusCode::NOT_MODIFIED, fixed).into_response();
    }
    // Embedded files are sent without copying.
    let body = match contents {
        Cow::Borrowed(contents) => Body::from(contents),
        Cow::Owned(contents) => Body::from(contents),
    };
    (fixed, [(header::CONTENT_TYPE, kind(path))], body).into_response()
}

/// Serves the interface at all paths outside the API.
pub(super) async fn serve(State(app): State<AppRef>, request: Request) -> Response {
    let path = request.uri().path();
    let is_read = [Method::GET, Method::HEAD].contains(request.method());
    if path.starts_with("/api/") || !is_read {
        return ApiError::not_found("such path; see /api/openapi.json").into_response();
    }
    let name = match path.trim_start_matches('/') {
        "" => START,
        name => name,
    };
    let given = match app.config.web_files.as_deref().filter(|directory| directory.join(START).exists()) {
        Some(directory) => read(directory, name).await.map(Cow::Owned),
        None => Files::get(name).map(|file| file.data),
    };
    match given {
        Some(contents) => answer(name, contents, request.headers()),
        None => (StatusCode::NOT_FOUND, "Page not found.").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_the_generic_resource_has_its_page() {
        let rows = String::from_utf8(Files::get("lib/kinds.js").expect("is there").data.to_vec()).expect("text");
        for spec in gravwell_objects::kinds::KINDS.iter().filter_map(|kind| kind.spec) {
            let (plain, quoted) = (format!("  {}: {{", spec.collection), format!("  '{}': {{", spec.collection));
            assert!(rows.contains(&plain) || rows.contains(&quoted), "lib/kinds.js has no row {}", spec.collection);
            assert!(rows.contains(&format!("path: '{}'", spec.path)), "lib/kinds.js: {}", spec.path);
        }
    }

    #[tokio::test]
    async fn nothing_outside_the_directory_is_served() {
        let temp = tempfile::tempdir().expect("temp dir");
        let inside = temp.path().join("www");
        std::fs::create_dir(&inside).expect("creates");
        std::fs::write(inside.join("a.js"), "1").expect("writes");
        std::fs::write(temp.path().join("secret"), "2").expect("writes");
        std::os::unix::fs::symlink(temp.path().join("secret"), inside.join("link")).expect("links");
        assert_eq!(read(&inside, "a.js").await.as_deref(), Some(b"1".as_slice()));
        for path in ["../secret", "/etc/passwd", "a/../../secret", "link", "", "missing"] {
            assert_eq!(read(&inside, path).await, None, "{path}");
        }
    }
}
