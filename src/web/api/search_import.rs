//! Import of the results of a search as an archive that a webserver has exported.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use super::contents::FORM_BYTES;
use super::searchctrl::info;
use crate::app::AppRef;
use crate::authorization::{AccessRequirement, Right};
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::form::{self, Form, Part};
use crate::route::{Route, post};
use gravwell_search::searches::{Arriving, Import, SearchError};

/// Maximum size in bytes of a text field of the form.
const TEXT_BYTES_MAX: usize = 4096;

pub(crate) fn routes() -> Vec<Route> {
    let need = AccessRequirement::User(Right::Capability("SaveSearch"));
    vec![post(
        "/api/searchctrl/import",
        need,
        "Imports an archive of results; parts: file, GID, BatchName, BatchInfo.",
        import,
    )]
}

fn too_large(bytes_max: u64) -> ApiError {
    let message = format!("the archive has more than {} MiB (Render-Store-Limit)", bytes_max >> 20);
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
}

async fn keep(mut part: Part<'_>, to: &mut Arriving, bytes_max: u64) -> ApiResult<()> {
    let (mut file, mut length) = (tokio::fs::File::create(&to.path).await?, 0);
    while let Some(bytes) = part.chunk().await? {
        length += bytes.len() as u64;
        if length > bytes_max {
            return Err(too_large(bytes_max));
        }
        to.lease.grow(length).map_err(SearchError::from)?;
        file.write_all(&bytes).await?;
    }
    Ok(file.sync_data().await?)
}

async fn short(mut part: Part<'_>) -> ApiResult<String> {
    let mut text = Vec::new();
    while let Some(bytes) = part.chunk().await? {
        if text.len() + bytes.len() > TEXT_BYTES_MAX {
            return Err(ApiError::bad(format!("a part of the form has more than {TEXT_BYTES_MAX} bytes")));
        }
        text.extend_from_slice(&bytes);
    }
    String::from_utf8(text).map_err(ApiError::bad)
}

async fn import(
    State(app): State<AppRef>,
    caller: Caller,
    headers: HeaderMap,
    mut form: Form,
) -> ApiResult<Json<Value>> {
    // The archive also holds a summary, so it may be larger than the results.
    let bytes_max = app.searches.options().bytes_max.saturating_add(1 << 20);
    if form::announced(&headers).is_some_and(|bytes| bytes.saturating_sub(FORM_BYTES) > bytes_max) {
        return Err(too_large(bytes_max));
    }
    let mut arriving = app.searches.arriving(caller.person.uid)?;
    let (mut wish, mut has_file) = (Import::default(), false);
    while let Some(part) = form.next().await? {
        match part.name().unwrap_or_default() {
            "file" => {
                keep(part, &mut arriving, bytes_max).await?;
                has_file = true;
            }
            "GID" => {
                let gid = short(part).await?;
                let gid: i32 = gid.trim().parse().map_err(|_| ApiError::bad(format!("{gid:?} is not a GID")))?;
                wish.gids.extend((gid != 0).then_some(gid));
            }
            "BatchName" => wish.batch_name = short(part).await?,
            "BatchInfo" => wish.batch_info = short(part).await?,
            _ => part.skip().await?,
        }
    }
    if !has_file {
        return Err(ApiError::bad("the form has no part called file"));
    }
    // The upload may have taken a while.
    let caller = caller.again(&app)?;
    if !wish.gids.is_empty() {
        caller.require("SetSearchGroup")?;
    }
    let search = app.searches.import(&caller.person, &caller.author(), arriving, wish).await?;
    Ok(Json(info(&search)))
}
