//! Errors as JSON responses: a status and `{"Error": "..."}`.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use gravwell_chunks::ChunkError;
use gravwell_objects::blobs::UploadError;
use gravwell_objects::names::FieldError;
use gravwell_objects::passwords::HashError;
use gravwell_objects::{CommitError, StoreError};
use gravwell_replica::SubmitError;
use gravwell_replica::blobs::BlobError;

#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    message: String,
    besides: Map<String, Value>,
    /// Seconds after which the client may retry.
    retry_after: Option<u64>,
    is_overtaken: bool,
}

pub(super) type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl std::fmt::Display) -> ApiError {
        let (message, besides) = (message.to_string(), Map::new());
        ApiError { status, message, besides, retry_after: None, is_overtaken: false }
    }

    /// The request is invalid.
    pub(super) fn bad(message: impl std::fmt::Display) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// The caller is not identified. Clients take any other use of 401 for the end of their session.
    pub(super) fn unknown() -> ApiError {
        ApiError::new(StatusCode::UNAUTHORIZED, "the session is missing, unknown or has expired; log in")
    }

    pub(super) fn forbidden(message: impl std::fmt::Display) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, message)
    }

    pub(super) fn not_found(what: impl std::fmt::Display) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, format!("there is no {what}"))
    }

    pub(super) fn conflict(message: impl std::fmt::Display) -> ApiError {
        ApiError::new(StatusCode::CONFLICT, message)
    }

    /// The object was changed by another request since it was read.
    pub(super) fn overtaken(message: impl std::fmt::Display) -> ApiError {
        ApiError { is_overtaken: true, ..ApiError::conflict(message) }
    }

    /// Returns whether the same request may succeed when repeated, because the object was changed since it was read.
    pub(super) fn is_overtaken(&self) -> bool {
        self.is_overtaken
    }

    /// Internal error; its details are only logged.
    pub(super) fn internal(error: impl std::fmt::Display) -> ApiError {
        tracing::error!(%error, "request failed");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error; see the log of the webserver")
    }

    /// Sets the time after which the client may retry.
    pub(super) fn retry_after(mut self, wait: Duration) -> ApiError {
        self.retry_after = Some(wait.as_secs() + u64::from(wait.subsec_nanos() > 0));
        self
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// Adds a sentence to the message.
    pub(super) fn after(mut self, sentence: &str) -> ApiError {
        self.message = format!("{}; {sentence}", self.message);
        self
    }

    /// Adds a member to the JSON body.
    pub(super) fn with(mut self, name: &str, value: impl Into<Value>) -> ApiError {
        self.besides.insert(name.into(), value.into());
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut body = self.besides;
        body.insert("Error".into(), self.message.into());
        let mut response = (self.status, axum::Json(json!(body))).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::BadKey(reason) => ApiError::bad(reason),
            error @ StoreError::Invalid { .. } => ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, error),
            StoreError::Read(error) if error.is_passing() => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error),
            error => ApiError::internal(error),
        }
    }
}

impl From<FieldError> for ApiError {
    fn from(error: FieldError) -> Self {
        ApiError::bad(error)
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Limit(limit) => ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, limit),
            SubmitError::RejectedFill { .. } => ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, error),
            SubmitError::Full { .. }
            | SubmitError::FullBytes { .. }
            | SubmitError::ShareIsFull
            | SubmitError::NotNow(_)
            | SubmitError::Failed
            | SubmitError::Closed => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error),
            SubmitError::Disk(_) | SubmitError::DiskFull => ApiError::new(StatusCode::INSUFFICIENT_STORAGE, error),
            SubmitError::Condition(reason) => ApiError::conflict(reason),
            SubmitError::Forbidden(reason) => ApiError::forbidden(reason),
            error => ApiError::internal(error),
        }
    }
}

impl From<CommitError> for ApiError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Conflict(reason) => ApiError::conflict(reason),
            CommitError::Changed(reason) => ApiError::overtaken(reason),
            error @ CommitError::TooMuch(_) => ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, error),
            error @ CommitError::TooFast(wait) => ApiError::new(StatusCode::TOO_MANY_REQUESTS, error).retry_after(wait),
            error @ CommitError::TooMuchWaits => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error),
            CommitError::Refused(error) => error.into(),
            CommitError::Store(error) => error.into(),
        }
    }
}

impl From<UploadError> for ApiError {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::Chunks(error) => error.into(),
            UploadError::Store(error) => error.into(),
            UploadError::Io(error) => ApiError::internal(error),
            UploadError::None => ApiError::internal(error),
        }
    }
}

impl From<ChunkError> for ApiError {
    fn from(error: ChunkError) -> Self {
        match error {
            ChunkError::Full { .. } => ApiError::new(StatusCode::INSUFFICIENT_STORAGE, error),
            error => ApiError::internal(error),
        }
    }
}

impl From<BlobError> for ApiError {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::Missing(_) | BlobError::Stopping => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error),
            BlobError::Store(error) => error.into(),
            BlobError::Malformed(_) | BlobError::List(_) => ApiError::internal(error),
        }
    }
}

impl From<HashError> for ApiError {
    fn from(error: HashError) -> Self {
        ApiError::internal(error)
    }
}

impl From<std::io::Error> for ApiError {
    fn from(error: std::io::Error) -> Self {
        ApiError::internal(error)
    }
}
