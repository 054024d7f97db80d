//! S3-compatible object store. Settings come from the usual environment variables: `AWS_ACCESS_KEY_ID`,
//! `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, and `AWS_ENDPOINT_URL` for stores other than Amazon's.

use std::time::Duration;

use rusty_s3::actions::ListObjectsV2;
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};

use super::store::{Listed, OBJECT_BYTES_MAX, Store, StoreError};

/// Validity of a signed request.
const SIGNED_FOR: Duration = Duration::from_secs(300);
/// Timeout of one request.
const PATIENCE: Duration = Duration::from_secs(120);
/// Attempts before a store counts as unreachable.
const ATTEMPTS: u32 = 5;

/// A bucket, or the objects under a prefix in it.
pub struct S3Store {
    bucket: Bucket,
    credentials: Credentials,
    prefix: String,
    agent: ureq::Agent,
    place: String,
}

struct Answer {
    status: u16,
    body: Vec<u8>,
}

impl S3Store {
    /// Opens the store at `s3://bucket/prefix`.
    ///
    /// # Errors
    /// Returns an error if a setting is missing or the address is invalid.
    pub fn open(place: &str) -> Result<S3Store, StoreError> {
        let wrong = |reason: String| StoreError::Failed { name: place.to_owned(), reason };
        let rest = place.trim_start_matches("s3://").trim_end_matches('/');
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let region = variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION")).unwrap_or("us-east-1".into());
        // Stores other than Amazon's rarely support a host name per bucket.
        let (endpoint, style) = match variable("AWS_ENDPOINT_URL") {
            Some(endpoint) => (endpoint, UrlStyle::Path),
            None => (format!("https://s3.{region}.amazonaws.com"), UrlStyle::VirtualHost),
        };
        let endpoint = endpoint.parse().map_err(|error| wrong(format!("AWS_ENDPOINT_URL: {error}")))?;
        let bucket = Bucket::new(endpoint, style, name.to_owned(), region).map_err(|error| wrong(error.to_string()))?;
        let missing = || wrong("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set".into());
        let credentials = Credentials::from_env().ok_or_else(missing)?;
        let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false);
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(S3Store { bucket, credentials, prefix, agent: config.build().into(), place: place.to_owned() })
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn failed(&self, name: &str, reason: impl std::fmt::Display) -> StoreError {
        StoreError::Failed { name: format!("{}/{name}", self.place), reason: reason.to_string() }
    }

    /// Sends a request. Retries if the connection fails or the store is overloaded or reports an internal error.
    fn ask(&self, name: &str, send: impl Fn() -> Result<Answer, String>) -> Result<Answer, StoreError> {
        let mut pause = Duration::from_millis(200);
        for attempt in 1.. {
            let reason = match send() {
                Ok(answer) if answer.status < 500 && answer.status != 429 => return Ok(answer),
                Ok(answer) => format!("status {}: {}", answer.status, excerpt(&answer.body)),
                Err(error) => error,
            };
            if attempt == ATTEMPTS {
                return Err(self.failed(name, reason));
            }
            tracing::info!(name, reason, "retrying request to the store");
            std::thread::sleep(pause);
            pause *= 2;
        }
        Err(self.failed(name, "no attempt was made"))
    }

    fn check(&self, name: &str, answer: Answer) -> Result<Vec<u8>, StoreError> {
        match answer.status {
            200..=299 => Ok(answer.body),
            404 => Err(StoreError::Missing(format!("{}/{name}", self.place))),
            409 | 412 => Err(StoreError::Exists(format!("{}/{name}", self.place))),
            status => Err(self.failed(name, format!("status {status}: {}", excerpt(&answer.body)))),
        }
    }

    fn send_put(&self, name: &str, bytes: &[u8], is_new: bool) -> Result<(), StoreError> {
        let key = self.key(name);
        let answer = self.ask(name, || {
            let url = self.bucket.put_object(Some(&self.credentials), &key).sign(SIGNED_FOR);
            let mut request = self.agent.put(url.as_str());
            if is_new {
                request = request.header("if-none-match", "*");
            }
            answer_of(request.send(bytes))
        })?;
        self.check(name, answer).map(drop)
    }
}

fn answer_of(result: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Answer, String> {
    let mut response = result.map_err(|error| error.to_string())?;
    let status = response.status().as_u16();
    let body = response.body_mut().with_config().limit(OBJECT_BYTES_MAX).read_to_vec();
    Ok(Answer { status, body: body.map_err(|error| error.to_string())? })
}

fn excerpt(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned()
}

impl Store for S3Store {
    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.send_put(name, bytes, false)
    }

    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        // Not every store supports the condition. The preceding check leaves only a short race.
        match self.get(name) {
            Ok(_) => Err(StoreError::Exists(format!("{}/{name}", self.place))),
            Err(StoreError::Missing(_)) => self.send_put(name, bytes, true),
            Err(error) => Err(error),
        }
    }

    fn get(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        let key = self.key(name);
        let answer = self.ask(name, || {
            let url = self.bucket.get_object(Some(&self.credentials), &key).sign(SIGNED_FOR);
            answer_of(self.agent.get(url.as_str()).call())
        })?;
        self.check(name, answer)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        let key = self.key(prefix);
        let mut found = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let answer = self.ask(prefix, || {
                let mut action = self.bucket.list_objects_v2(Some(&self.credentials));
                action.with_prefix(key.as_str());
                if let Some(token) = &token {
                    action.with_continuation_token(token.as_str());
                }
                answer_of(self.agent.get(action.sign(SIGNED_FOR).as_str()).call())
            })?;
            let body = self.check(prefix, answer)?;
            let text = std::str::from_utf8(&body).map_err(|error| self.failed(prefix, error))?;
            let page = ListObjectsV2::parse_response(text).map_err(|error| self.failed(prefix, error))?;
            for content in page.contents {
                let name = content.key.strip_prefix(&self.prefix).unwrap_or(&content.key).to_owned();
                found.push(Listed { name, bytes: content.size.unwrap_or(0) });
            }
            token = page.next_continuation_token;
            if token.is_none() {
                break;
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        let key = self.key(name);
        let answer = self.ask(name, || {
            let url = self.bucket.delete_object(Some(&self.credentials), &key).sign(SIGNED_FOR);
            answer_of(self.agent.delete(url.as_str()).call())
        })?;
        match self.check(name, answer) {
            Ok(_) | Err(StoreError::Missing(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn place(&self) -> String {
        self.place.clone()
    }
}
