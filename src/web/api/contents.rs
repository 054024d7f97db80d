//! Routes of resource contents, which are streamed in both directions and never held in memory as a whole.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequest, Path, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{AppendHeaders, IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::repeated;
use super::resources::{READ, WRITE, answer, content_of, found, owned, take_away};
use crate::admission;
use crate::app::{App, AppRef};
use crate::caller::Caller;
use crate::entity_tags::IfNoneMatch;
use crate::error::{ApiError, ApiResult};
use crate::form::{self, Form};
use crate::request_input::QueryParams;
use crate::route::{Route, get, put};
use crate::scan_slots;
use crate::upload_quota;
use gravwell_objects::blobs::{self, Content, Reader, Upload};
use gravwell_objects::resources::{self, Resource};
use gravwell_objects::searches::Search;
use gravwell_objects::sharing::Shareable;
use gravwell_objects::store::Author;
use gravwell_objects::{CommitProgress, Timestamp, Writes};

/// Default, minimum and maximum number of bytes in a preview.
const PREVIEW_BYTES: usize = 512;
const PREVIEW_BYTES_MIN: usize = 128;
const PREVIEW_BYTES_MAX: usize = 512 << 10;
/// Idle timeout of an upload. Until then its chunks are pinned against garbage collection.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Allowance for the bytes of a form other than those of its file.
pub(crate) const FORM_BYTES: u64 = 64 << 10;

pub(crate) fn routes() -> Vec<Route> {
    vec![
        get("/api/resources/{guid}/raw", READ, "Streams the contents of a resource.", download).for_downloads(),
        put("/api/resources/{guid}/raw", WRITE, "Stores new contents: a form with one part called file.", upload),
        get("/api/resources/{guid}/contenttype", READ, "Returns the first bytes and their media type.", preview),
    ]
}

/// Byte range of a content that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    Whole,
    /// From the first offset to the last, both inclusive.
    Part(u64, u64),
    /// A range outside the content.
    Outside,
}

/// Parses `Range`. Invalid values and multiple ranges are ignored.
fn extent(range: Option<&str>, size: u64) -> Extent {
    let Some((unit, spec)) = range.and_then(|range| range.split_once('=')) else { return Extent::Whole };
    let Some((from, to)) = spec.trim().split_once('-').filter(|(_, to)| !to.contains(',')) else {
        return Extent::Whole;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Extent::Whole;
    }
    match (place(from.trim()), place(to.trim())) {
        (Ok(from), _) if from >= size => Extent::Outside,
        (Ok(from), Ok(to)) if from <= to => Extent::Part(from, to.min(size - 1)),
        (Ok(from), Err(_)) if to.trim().is_empty() => Extent::Part(from, size - 1),
        (Err(_), Ok(last)) if from.trim().is_empty() => match last.min(size) {
            0 => Extent::Outside,
            last => Extent::Part(size - last, size - 1),
        },
        _ => Extent::Whole,
    }
}

/// Parses a byte offset; a number too large for `u64` becomes `u64::MAX`, which is past the end of every content.
fn place(digits: &str) -> Result<u64, std::num::ParseIntError> {
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse::<u64>().or_else(|error| if is_number { Ok(u64::MAX) } else { Err(error) })
}

/// Returns whether the caller may still read a resource; one that was deleted during the download is sent to its end.
fn is_open_to(app: &App, caller: &Caller, guid: &str) -> bool {
    match resources::by_guid(&app.store, guid) {
        Ok(record) => record.is_none_or(|record| record.value.is_readable_by(&caller.person)),
        Err(_) => false,
    }
}

/// Streams the rest of a content until it ends or `lost` completes.
fn stream(reader: Reader, lost: impl Future<Output = ()> + Send + 'static) -> Body {
    let pieces = futures_util::stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        match reader.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(reader))),
            Ok(None) => None,
            // The connection is aborted, so that a partial file is not mistaken for a whole one.
            Err(error) => {
                tracing::warn!(%error, "failed to read a blob to its end");
                Some((Err(std::io::Error::other(error)), None))
            }
        }
    });
    Body::from_stream(admission::until(pieces, lost))
}

fn attachment(resource: &Resource) -> String {
    let plain = |c: char| if c.is_ascii_graphic() && c != '"' && c != '\\' { c } else { '_' };
    let name: String = resource.resource_name.chars().map(plain).collect();
    format!("attachment; filename=\"{name}\"")
}

async fn download(
    State(app): State<AppRef>,
    caller: Caller,
    Path(guid): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let resource = found(&app, &caller, &guid)?.value;
    let kind = (header::CONTENT_TYPE, "application/octet-stream".to_owned());
    let disposition = (header::CONTENT_DISPOSITION, attachment(&resource));
    let Some(content) = content_of(&app, &resource)? else {
        return Ok(([kind, disposition], Body::empty()).into_response());
    };
    let tag = format!("\"{}\"", content.blake3);
    let told = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let same = [(header::ETAG, tag.clone()), (header::ACCEPT_RANGES, "bytes".to_owned())];
    if IfNoneMatch::of(&headers).has(&tag) {
        return Ok((StatusCode::NOT_MODIFIED, same).into_response());
    }
    // A client that has part of another version cannot use a range of this one.
    let range = told(header::RANGE)
        .filter(|_| method == Method::GET)
        .filter(|_| told(header::IF_RANGE).is_none_or(|known| known.trim() == tag));
    let (status, from, length, place) = match extent(range, content.size) {
        Extent::Whole => (StatusCode::OK, 0, content.size, None),
        Extent::Part(from, to) => {
            let place = format!("bytes {from}-{to}/{}", content.size);
            (StatusCode::PARTIAL_CONTENT, from, to - from + 1, Some(place))
        }
        Extent::Outside => {
            let place = (header::CONTENT_RANGE, format!("bytes */{}", content.size));
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, same, [place]).into_response());
        }
    };
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        let reader = Reader::open(blobs::kept(&app.store)?, &content, from, length).await?;
        stream(reader, admission::lost(&app, &caller, move |app, caller| is_open_to(app, caller, &guid)))
    };
    let length = (header::CONTENT_LENGTH, length.to_string());
    let place = place.map(|place| [(header::CONTENT_RANGE, place)]);
    Ok((status, [kind, disposition, length], same, AppendHeaders(place.into_iter().flatten()), body).into_response())
}

/// Returns the bytes of all contents that a user keeps, except those of the resource `but`.
async fn kept_by(app: &App, uid: i32, but: Option<uuid::Uuid>) -> ApiResult<u64> {
    let _turn = scan_slots::turn(uid).await?;
    let resources = app.store.select::<Resource>("", |other| other.uid == uid && Some(other.guid) != but)?;
    let saved = app.store.select::<Search>("", |search| search.uid == uid && search.is_saved())?;
    let resources: u64 = resources.iter().map(|record| record.value.size).sum();
    Ok(resources + saved.iter().map(|record| record.value.bytes).sum::<u64>())
}

/// Checks that a user may keep the results of a search as contents.
///
/// # Errors
/// If they exceed the user's quota together with the contents that the user keeps already.
pub(crate) async fn admit_saved(app: &App, uid: i32, bytes: u64) -> ApiResult<()> {
    let quota = app.config.resource_quota_bytes;
    if quota == 0 {
        return Ok(());
    }
    let left = quota.saturating_sub(kept_by(app, uid, None).await?);
    Room { bytes_max: u64::MAX, quota: Some((left, quota)) }.admit(bytes)
}

/// Size limits of new contents of a resource.
struct Room {
    bytes_max: u64,
    /// Bytes left of the owner's quota, and the quota.
    quota: Option<(u64, u64)>,
}

impl Room {
    async fn of(app: &AppRef, resource: &Resource) -> ApiResult<Room> {
        let (bytes_max, quota) = (app.config.resource_bytes_max, app.config.resource_quota_bytes);
        if quota == 0 {
            return Ok(Room { bytes_max, quota: None });
        }
        let used = kept_by(app, resource.uid, Some(resource.guid)).await?;
        Ok(Room { bytes_max, quota: Some((quota.saturating_sub(used), quota)) })
    }

    fn admit(&self, bytes: u64) -> ApiResult<()> {
        let refused = |message| Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message));
        let limit = self.bytes_max;
        if bytes > limit {
            return refused(format!("the resource exceeds {limit} bytes (Resource-Max-Size)"));
        }
        match self.quota {
            Some((left, quota)) if bytes > left => refused(format!(
                "the owner's resources and saved results would exceed {} MiB, of which {left} bytes are left \
                 (Resource-User-Quota-MB); delete or shrink another one",
                quota >> 20
            )),
            _ => Ok(()),
        }
    }
}

/// Waits for the next part of an upload, at most [`IDLE_MAX`].
async fn heard<T>(next: impl Future<Output = T>) -> ApiResult<T> {
    let silent = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "upload timed out: received no data for a minute");
    tokio::time::timeout(IDLE_MAX, next).await.map_err(silent)
}

async fn upload(
    State(app): State<AppRef>,
    caller: Caller,
    Path(guid): Path<String>,
    headers: HeaderMap,
    request: Request,
) -> ApiResult<Response> {
    let resource = owned(&app, &caller, &guid)?.value;
    let kept = blobs::kept(&app.store)?;
    let room = Room::of(&app, &resource).await?;
    // The form itself adds few bytes; a file that cannot fit is rejected before it is read.
    if let Some(announced) = form::announced(&headers) {
        let bytes = announced.saturating_sub(FORM_BYTES);
        room.admit(bytes)?;
        if kept.store().room().is_some_and(|room| bytes > room) {
            let message =
                "the disk of this webserver is too full for the upload; use another webserver, or notify the operator";
            return Err(ApiError::new(StatusCode::INSUFFICIENT_STORAGE, message));
        }
    }
    let mut form = Form::from_request(request, &app).await?;
    let mut part = loop {
        match form.next().await? {
            Some(part) if part.name() == Some("file") => break part,
            Some(other) => other.skip().await?,
            None => return Err(ApiError::bad("the form has no part called file")),
        }
    };
    let author = caller.author();
    let mut upload = Upload::begin(&app.store, &resource.content)?;
    while let Some(bytes) = heard(part.chunk()).await?? {
        room.admit(upload.size() + bytes.len() as u64)?;
        upload_quota::take(&app, &caller.person, bytes.len() as u64)?;
        upload.write(&bytes).await?;
    }
    drop(part);
    let mut writes = Writes::new();
    let content = upload.finish(&mut writes).await?;
    // The metadata and the caller's rights may have changed during the upload.
    let caller = caller.again(&app)?;
    let stored = Complete { content, writes, former: resource.content };
    let committed = repeated(|| stored.name(&app, &caller, &author, &guid)).await?;
    take_away(&app, &caller, committed, &stored.former).await;
    Ok(answer(&found(&app, &caller, &guid)?))
}

struct Complete {
    content: Content,
    writes: Writes,
    /// Contents that the resource had when the upload started.
    former: String,
}

impl Complete {
    /// Assigns the contents to the resource in its current state. Contents that were stored during this upload are not
    /// replaced: their author was informed that they are stored, and this caller receives a conflict.
    async fn name(&self, app: &AppRef, caller: &Caller, author: &Author, guid: &str) -> ApiResult<CommitProgress> {
        let mut record = owned(app, caller, guid)?;
        if record.value.content != self.former {
            let message = "other contents of the resource were stored in the meantime; check them, then upload again";
            return Err(ApiError::conflict(message));
        }
        Room::of(app, &record.value).await?.admit(self.content.size)?;
        record.value.content.clone_from(&self.content.id);
        record.value.size = self.content.size;
        record.value.hash.clone_from(&self.content.md5);
        record.value.version_number += 1;
        record.value.last_modified = Timestamp::now();
        let mut writes = self.writes.clone();
        writes.update(&record, "the resource was deleted in the meantime")?;
        let what = format!("store contents of resource {}", record.value.resource_name);
        Ok(app.store.commit(author, &what, writes).await?)
    }
}

/// Returns the media type of bytes, in the form that clients expect.
fn sniff(bytes: &[u8]) -> &'static str {
    if let Some(kind) = infer::get(bytes) {
        return kind.mime_type();
    }
    // The end may split a character.
    let is_text = match std::str::from_utf8(bytes) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    };
    let is_control = |byte: &u8| *byte < 0x20 && !matches!(*byte, b'\t' | b'\n' | b'\r' | 0x0c | 0x1b);
    if is_text && !bytes.iter().any(is_control) { "text/plain; charset=utf-8" } else { "application/octet-stream" }
}

async fn preview(
    State(app): State<AppRef>,
    caller: Caller,
    Path(guid): Path<String>,
    wishes: QueryParams,
) -> ApiResult<Json<Value>> {
    let resource = found(&app, &caller, &guid)?.value;
    let wanted = wishes.bytes.filter(|bytes| *bytes >= PREVIEW_BYTES_MIN).unwrap_or(PREVIEW_BYTES);
    let wanted = wanted.min(PREVIEW_BYTES_MAX);
    let mut body = Vec::new();
    if let Some(content) = content_of(&app, &resource)? {
        let mut reader = Reader::open(blobs::kept(&app.store)?, &content, 0, wanted as u64).await?;
        while let Some(bytes) = reader.next().await? {
            body.extend_from_slice(&bytes);
        }
    }
    Ok(Json(json!({ "ContentType": sniff(&body), "Body": STANDARD.encode(&body) })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_content() {
        let cases = [
            (None, Extent::Whole),
            (Some("bytes=0-0"), Extent::Part(0, 0)),
            (Some("bytes=10-"), Extent::Part(10, 99)),
            (Some("bytes=10-1000"), Extent::Part(10, 99)),
            (Some("Bytes = 5-6"), Extent::Part(5, 6)),
            (Some("bytes=0-99999999999999999999"), Extent::Part(0, 99)),
            (Some("bytes=99999999999999999999-"), Extent::Outside),
            (Some("bytes=-99999999999999999999"), Extent::Part(0, 99)),
            (Some("bytes=-5"), Extent::Part(95, 99)),
            (Some("bytes=-500"), Extent::Part(0, 99)),
            (Some("bytes=-0"), Extent::Outside),
            (Some("bytes=100-"), Extent::Outside),
            (Some("bytes=7-3"), Extent::Whole),
            (Some("bytes=0-1,5-6"), Extent::Whole),
            (Some("lines=1-2"), Extent::Whole),
            (Some("bytes=x-y"), Extent::Whole),
        ];
        for (range, wanted) in cases {
            assert_eq!(extent(range, 100), wanted, "{range:?}");
        }
        assert_eq!((extent(Some("bytes=0-"), 0), extent(Some("bytes=-1"), 0)), (Extent::Outside, Extent::Outside));
    }

    #[test]
    fn content_types_are_detected() {
        assert_eq!(sniff(b"a,b\n1,2\n"), "text/plain; charset=utf-8");
        assert_eq!(sniff("caf\u{e9}".as_bytes().split_last().expect("bytes").1), "text/plain; charset=utf-8");
        assert_eq!(sniff(&[0, 1, 2, 3]), "application/octet-stream");
        assert_eq!(sniff(b"\x89PNG\r\n\x1a\n"), "image/png");
    }
}
