//! Resources: metadata, and contents that stream in both directions.

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequest, Multipart, Path, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{AppendHeaders, IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{DONE, match_version};
use crate::objects::contents::{self, Content, Reader, Upload};
use crate::objects::resources::{self, Resource};
use crate::objects::sharing::Shared;
use crate::objects::users::User;
use crate::objects::{Moment, Record, Stored, Writes, accounts};
use crate::web::app::AppRef;
use crate::web::caller::Caller;
use crate::web::error::{ApiError, ApiResult};
use crate::web::guard::Need;
use crate::web::input::{Input, Wishes};
use crate::web::routes::{Route, delete, get, post, put};

const READ: Need = Need::User(Some("ResourceRead"));
const WRITE: Need = Need::User(Some("ResourceWrite"));
/// Bytes of a preview unless told otherwise, and the least that can be asked for.
const PREVIEW_BYTES: usize = 512;
const PREVIEW_BYTES_MIN: usize = 128;
const PREVIEW_BYTES_MAX: usize = 512 << 10;

pub(in crate::web) fn routes() -> Vec<Route> {
    vec![
        get("/api/resources", READ, "Lists the resources that the caller may see.", list),
        post("/api/resources", WRITE, "Creates a resource without contents.", create),
        get("/api/resources/{guid}", READ, "Tells about a resource.", show),
        put("/api/resources/{guid}", WRITE, "Changes what is known of a resource.", update),
        delete("/api/resources/{guid}", WRITE, "Deletes a resource and its contents.", remove),
        get("/api/resources/{guid}/raw", READ, "Streams the contents of a resource.", download),
        put("/api/resources/{guid}/raw", WRITE, "Stores new contents: a form with one part called file.", upload),
        get("/api/resources/{guid}/contenttype", READ, "Gives the first bytes and what they look like.", preview),
        post("/api/resources/{guid}/clone", WRITE, "Copies a resource for the caller; its contents are shared.", copy),
        get(
            "/api/resources/lookup/{*name}",
            READ,
            "Gives the GUID of the resource that a name means to the caller.",
            look_up,
        ),
    ]
}

/// A resource as clients know it.
fn shown(record: &Record<Resource>) -> Value {
    let resource = &record.value;
    json!({
        "UID": resource.uid,
        "GUID": resource.guid,
        "Domain": resource.domain,
        "LastModified": resource.last_modified,
        "VersionNumber": resource.version_number,
        "GroupACL": resource.group_acl,
        "Global": resource.global,
        "ResourceName": resource.resource_name,
        "Description": resource.description,
        "Size": resource.size,
        "Hash": resource.hash,
        "Synced": record.is_synced(),
        "Labels": resource.labels,
    })
}

fn answer(record: &Record<Resource>) -> Response {
    ([(header::ETAG, record.tag())], Json(shown(record))).into_response()
}

fn found(app: &AppRef, caller: &Caller, guid: &str) -> ApiResult<Record<Resource>> {
    let record = resources::by_guid(&app.store, guid)?;
    let nowhere = || ApiError::not_found(format!("resource {guid} that you may see"));
    record.filter(|record| record.value.is_readable_by(&caller.person)).ok_or_else(nowhere)
}

fn owned(app: &AppRef, caller: &Caller, guid: &str) -> ApiResult<Record<Resource>> {
    let record = found(app, caller, guid)?;
    if record.value.is_owned_by(&caller.person) {
        return Ok(record);
    }
    Err(ApiError::forbidden("only the owner and administrators may change this resource"))
}

fn stored(app: &AppRef, guid: uuid::Uuid) -> ApiResult<Record<Resource>> {
    app.store.get::<Resource>(&guid.to_string())?.ok_or_else(|| ApiError::not_found(format!("resource {guid}")))
}

async fn list(State(app): State<AppRef>, caller: Caller) -> ApiResult<Json<Value>> {
    let mut records = app.store.list::<Resource>("")?;
    records.retain(|record| caller.all || record.value.is_listed_for(&caller.person));
    Ok(Json(records.iter().map(shown).collect()))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Fields {
    resourcename: Option<String>,
    description: Option<String>,
    groupacl: Option<Vec<i32>>,
    global: Option<bool>,
    labels: Option<Vec<String>>,
    uid: Option<i32>,
}

async fn create(State(app): State<AppRef>, caller: Caller, Input(fields): Input<Fields>) -> ApiResult<Response> {
    let global = fields.global.unwrap_or(false);
    if global && !caller.person.admin {
        return Err(ApiError::forbidden("only administrators may share with everybody"));
    }
    let name = fields.resourcename.filter(|name| !name.trim().is_empty());
    let resource = Resource {
        uid: caller.uid(),
        guid: uuid::Uuid::new_v4(),
        domain: app.config.domain,
        last_modified: Moment::now(),
        version_number: 0,
        group_acl: fields.groupacl.unwrap_or_default(),
        global,
        resource_name: name.ok_or_else(|| ApiError::bad("ResourceName is missing"))?,
        description: fields.description.unwrap_or_default(),
        size: 0,
        hash: String::new(),
        labels: fields.labels.unwrap_or_default(),
        content: String::new(),
    };
    commit_new(&app, &caller, &resource, Writes::new(), "create").await
}

async fn commit_new(
    app: &AppRef,
    caller: &Caller,
    resource: &Resource,
    mut writes: Writes,
    verb: &str,
) -> ApiResult<Response> {
    writes.require::<User>(&resource.uid.to_string(), accounts::USER_GONE)?;
    writes.create(resource, "the resource exists already: try again")?;
    app.store.commit(&caller.author(), &format!("{verb} resource {}", resource.resource_name), writes).await?;
    Ok(answer(&stored(app, resource.guid)?))
}

async fn show(State(app): State<AppRef>, caller: Caller, Path(guid): Path<String>) -> ApiResult<Response> {
    Ok(answer(&found(&app, &caller, &guid)?))
}

async fn update(
    State(app): State<AppRef>,
    caller: Caller,
    Path(guid): Path<String>,
    headers: HeaderMap,
    Input(fields): Input<Fields>,
) -> ApiResult<Response> {
    let mut record = owned(&app, &caller, &guid)?;
    let mut writes = Writes::new();
    match_version(&headers, &record, &mut writes)?;
    let resource = &mut record.value;
    if let Some(name) = fields.resourcename.filter(|name| !name.trim().is_empty()) {
        resource.resource_name = name;
    }
    resource.description = fields.description.unwrap_or(std::mem::take(&mut resource.description));
    resource.labels = fields.labels.unwrap_or(std::mem::take(&mut resource.labels));
    resource.group_acl = fields.groupacl.unwrap_or(std::mem::take(&mut resource.group_acl));
    if caller.person.admin {
        resource.global = fields.global.unwrap_or(resource.global);
        resource.uid = fields.uid.filter(|uid| *uid != 0).unwrap_or(resource.uid);
    } else if fields.global == Some(true) && !resource.global {
        return Err(ApiError::forbidden("only administrators may share with everybody"));
    }
    resource.last_modified = Moment::now();
    writes.update(&record, "the resource was deleted meanwhile")?;
    let what = format!("change resource {}", record.value.resource_name);
    app.store.commit(&caller.author(), &what, writes).await?;
    Ok(answer(&stored(&app, record.value.guid)?))
}

async fn remove(State(app): State<AppRef>, caller: Caller, Path(guid): Path<String>) -> ApiResult<Json<Value>> {
    let resource = owned(&app, &caller, &guid)?.value;
    let mut writes = Writes::new();
    writes.delete::<Resource>(&resource.key())?;
    let what = format!("delete resource {}", resource.resource_name);
    app.store.commit(&caller.author(), &what, writes).await?;
    take_away(&app, &caller, &resource.content).await;
    Ok(DONE)
}

/// Takes away a content that nothing names any more. What fails here is done later by the sweeper.
async fn take_away(app: &AppRef, caller: &Caller, content: &str) {
    if content.is_empty() {
        return;
    }
    let done = async {
        if let Some(writes) = contents::removal(&app.store, content)? {
            app.store.commit(&caller.author(), "take away contents that nothing names", writes).await?;
        }
        Ok::<_, crate::objects::CommitError>(())
    };
    if let Err(error) = done.await {
        tracing::debug!(%error, content, "contents were not taken away yet");
    }
}

fn content_of(app: &AppRef, resource: &Resource) -> ApiResult<Option<Content>> {
    if resource.content.is_empty() {
        return Ok(None);
    }
    let content = app.store.get::<Content>(&resource.content)?;
    let missing = || ApiError::internal(format!("the contents of resource {} are missing", resource.guid));
    content.map(|record| Some(record.value)).ok_or_else(missing)
}

/// Which bytes of a content a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    /// All.
    Whole,
    /// From the first of these to the last.
    Part(u64, u64),
    /// None that there are.
    Outside,
}

/// Reads `Range`. What is not understood, and more than one range, is as if it were not there.
fn extent(range: Option<&str>, size: u64) -> Extent {
    let Some(spec) = range.and_then(|range| range.trim().strip_prefix("bytes=")) else { return Extent::Whole };
    let Some((from, to)) = spec.trim().split_once('-').filter(|(_, to)| !to.contains(',')) else {
        return Extent::Whole;
    };
    match (from.trim().parse::<u64>(), to.trim().parse::<u64>()) {
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

/// What is left of a content, read while the client takes it.
fn stream(reader: Reader) -> Body {
    Body::from_stream(futures_util::stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        match reader.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(reader))),
            Ok(None) => None,
            // The connection breaks off, so that nobody takes a part for the whole.
            Err(error) => {
                tracing::warn!(%error, "contents could not be read to their end");
                Some((Err(std::io::Error::other(error)), None))
            }
        }
    }))
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
    if told(header::IF_NONE_MATCH).is_some_and(|known| known.trim() == "*" || known.contains(&tag)) {
        return Ok((StatusCode::NOT_MODIFIED, same).into_response());
    }
    // A part of another content is of no use to whoever has the rest of this one.
    let range = told(header::RANGE).filter(|_| told(header::IF_RANGE).is_none_or(|known| known.trim() == tag));
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
        stream(Reader::open(contents::kept(&app.store)?, &content, from, length).await?)
    };
    let length = (header::CONTENT_LENGTH, length.to_string());
    let place = place.map(|place| [(header::CONTENT_RANGE, place)]);
    Ok((status, [kind, disposition, length], same, AppendHeaders(place.into_iter().flatten()), body).into_response())
}

fn too_large(app: &AppRef) -> ApiError {
    let limit = app.config.resource_bytes_max;
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("resources may have {limit} bytes (Resource-Max-Size)"))
}

async fn upload(
    State(app): State<AppRef>,
    caller: Caller,
    Path(guid): Path<String>,
    headers: HeaderMap,
    request: Request,
) -> ApiResult<Response> {
    let resource = owned(&app, &caller, &guid)?.value;
    // The form's own bytes are few; what cannot fit is refused before it is read.
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|announced| announced > app.config.resource_bytes_max.saturating_add(64 << 10)) {
        return Err(too_large(&app));
    }
    let form = Multipart::from_request(request, &app).await;
    let mut form = form.map_err(|rejection| ApiError::new(rejection.status(), rejection.body_text()))?;
    let wrong = |error: axum::extract::multipart::MultipartError| ApiError::new(error.status(), error.body_text());
    let mut part = loop {
        match form.next_field().await.map_err(wrong)? {
            Some(field) if field.name() == Some("file") => break field,
            Some(_) => {}
            None => return Err(ApiError::bad("the form has no part called file")),
        }
    };
    let author = caller.author();
    let mut upload = Upload::begin(&app.store, &resource.content)?;
    while let Some(bytes) = part.chunk().await.map_err(wrong)? {
        if upload.size() + bytes.len() as u64 > app.config.resource_bytes_max {
            return Err(too_large(&app));
        }
        upload.write(&bytes).await?;
    }
    drop(part);
    let mut writes = Writes::new();
    let content = upload.finish(&mut writes).await?;
    // The metadata may have been changed while the contents arrived.
    let mut record = stored(&app, resource.guid)?;
    let former = std::mem::replace(&mut record.value.content, content.id);
    record.value.size = content.size;
    record.value.hash = content.md5;
    record.value.version_number += 1;
    record.value.last_modified = Moment::now();
    writes.update(&record, "the resource was deleted meanwhile")?;
    let what = format!("store contents of resource {}", record.value.resource_name);
    app.store.commit(&author, &what, writes).await?;
    take_away(&app, &caller, &former).await;
    Ok(answer(&stored(&app, resource.guid)?))
}

/// What bytes look like, in the words that clients know from elsewhere.
fn sniff(bytes: &[u8]) -> &'static str {
    if let Some(kind) = infer::get(bytes) {
        return kind.mime_type();
    }
    // The end may cut a character in two.
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
    wishes: Wishes,
) -> ApiResult<Json<Value>> {
    let resource = found(&app, &caller, &guid)?.value;
    let wanted = wishes.bytes.filter(|bytes| *bytes >= PREVIEW_BYTES_MIN).unwrap_or(PREVIEW_BYTES);
    let wanted = wanted.min(PREVIEW_BYTES_MAX);
    let mut body = Vec::new();
    if let Some(content) = content_of(&app, &resource)? {
        let mut reader = Reader::open(contents::kept(&app.store)?, &content, 0, wanted as u64).await?;
        while let Some(bytes) = reader.next().await? {
            body.extend_from_slice(&bytes);
        }
    }
    Ok(Json(json!({ "ContentType": sniff(&body), "Body": STANDARD.encode(&body) })))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct CopyName {
    name: String,
}

async fn copy(
    State(app): State<AppRef>,
    caller: Caller,
    Path(guid): Path<String>,
    Input(CopyName { name }): Input<CopyName>,
) -> ApiResult<Response> {
    let original = found(&app, &caller, &guid)?.value;
    let mut writes = Writes::new();
    if !original.content.is_empty() {
        let head = app.store.get::<Content>(&original.content)?;
        let missing = || ApiError::internal(format!("the contents of resource {guid} are missing"));
        contents::name_again(&head.ok_or_else(missing)?, &mut writes)?;
    }
    let resource = Resource {
        uid: caller.uid(),
        guid: uuid::Uuid::new_v4(),
        domain: app.config.domain,
        last_modified: Moment::now(),
        version_number: 1,
        group_acl: Vec::new(),
        global: false,
        resource_name: if name.trim().is_empty() { original.resource_name.clone() } else { name },
        ..original
    };
    commit_new(&app, &caller, &resource, writes, "clone").await
}

async fn look_up(State(app): State<AppRef>, caller: Caller, Path(name): Path<String>) -> ApiResult<Json<uuid::Uuid>> {
    let record = resources::resolve(&app.store, &caller.person, &name)?;
    record.map(|record| Json(record.value.guid)).ok_or_else(|| ApiError::not_found(format!("resource called {name}")))
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
    fn contents_are_told_apart() {
        assert_eq!(sniff(b"a,b\n1,2\n"), "text/plain; charset=utf-8");
        assert_eq!(sniff("caf\u{e9}".as_bytes().split_last().expect("bytes").1), "text/plain; charset=utf-8");
        assert_eq!(sniff(&[0, 1, 2, 3]), "application/octet-stream");
        assert_eq!(sniff(b"\x89PNG\r\n\x1a\n"), "image/png");
    }
}
