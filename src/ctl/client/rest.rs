//! Client of a webserver's REST API, this product's or the original Gravwell's.

use std::io::{Cursor, Read};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use ureq::http::{HeaderMap, Method, Request, StatusCode, header};

use crate::error::CtlError;

/// Longest wait for one response; contents may be large.
const PATIENCE: Duration = Duration::from_secs(600);
/// Maximum size of a response that is read into memory.
const BODY_BYTES_MAX: u64 = 256 << 20;

/// Webserver API with the credentials of one user.
#[derive(Clone)]
pub(crate) struct Rest {
    agent: ureq::Agent,
    url: String,
    header: (&'static str, String),
}

/// Response of a webserver.
pub(crate) struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Response {
    /// Parses the body as JSON.
    pub(crate) fn json(&self) -> Result<Value, CtlError> {
        serde_json::from_slice(&self.body).map_err(CtlError::new)
    }
}

/// Verification of a webserver's certificate.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trusting<'a> {
    /// Disables verification.
    pub insecure: bool,
    /// File with the CA certificates to trust.
    pub ca: Option<&'a Path>,
}

fn agent(trusting: &Trusting<'_>) -> Result<ureq::Agent, CtlError> {
    let mut tls = ureq::tls::TlsConfig::builder().disable_verification(trusting.insecure);
    if let Some(path) = trusting.ca {
        let named = |what: &dyn std::fmt::Display| CtlError::new(format!("{}: {what}", path.display()));
        let pem = std::fs::read(path).map_err(|error| named(&error))?;
        let found = ureq::tls::parse_pem(&pem).filter_map(|item| match item {
            Ok(ureq::tls::PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        });
        let found: Vec<_> = found.collect();
        if found.is_empty() {
            return Err(named(&"it contains no certificate"));
        }
        tls = tls.root_certs(ureq::tls::RootCerts::new_with_certs(&found));
    }
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(PATIENCE))
        .http_status_as_error(false)
        .tls_config(tls.build())
        .build();
    Ok(config.into())
}

impl Rest {
    /// Uses an API token; grants access to everything that its owner may read.
    pub(crate) fn with_token(url: &str, token: &str, trusting: &Trusting<'_>) -> Result<Rest, CtlError> {
        let header = ("Gravwell-Token", token.trim().to_owned());
        Ok(Rest { agent: agent(trusting)?, url: url.trim_end_matches('/').to_owned(), header })
    }

    /// Logs in with a user name and password.
    pub(crate) fn login(url: &str, user: &str, password: &str, trusting: &Trusting<'_>) -> Result<Rest, CtlError> {
        let mut rest = Rest::with_token(url, "", trusting)?;
        let answer = rest.send("POST", "/api/login", &json!({ "User": user, "Pass": password }))?;
        if answer["MFARequired"] == true {
            return Err(CtlError::new(format!(
                "{url} requires a second factor for {user}, which this command does not support; use an administrator \
                 without one"
            )));
        }
        let jwt = answer["JWT"].as_str().filter(|jwt| !jwt.is_empty());
        let jwt =
            jwt.ok_or_else(|| CtlError::new(format!("{url} rejected the login of {user}: {}", answer["Reason"])))?;
        rest.header = ("Authorization", format!("Bearer {jwt}"));
        Ok(rest)
    }

    /// Returns a session of another user on the same webserver; requires an administrator.
    pub(crate) fn become_user(&self, uid: i64) -> Result<Rest, CtlError> {
        let answer = self.get(&format!("/api/users/su/{uid}"))?;
        let jwt =
            answer["JWT"].as_str().ok_or_else(|| CtlError::new("no session on behalf of another user was returned"))?;
        Ok(Rest { header: ("Authorization", format!("Bearer {jwt}")), ..self.clone() })
    }

    /// Returns the same session with other connections, to a webserver that has it as well. Certificates are verified.
    pub(crate) fn again(&self, url: &str) -> Result<Rest, CtlError> {
        Ok(Rest { agent: agent(&Trusting::default())?, url: url.to_owned(), header: self.header.clone() })
    }

    fn failed(&self, path: &str, what: impl std::fmt::Display) -> CtlError {
        CtlError::new(format!("{}{path}: {what}", self.url))
    }

    fn received(
        &self,
        path: &str,
        result: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Response, CtlError> {
        let (head, mut body) = result.map_err(|error| self.failed(path, error))?.into_parts();
        let body = body.with_config().limit(BODY_BYTES_MAX).read_to_vec();
        let body = body.map_err(|error| self.failed(path, error))?;
        Ok(Response { status: head.status, headers: head.headers, body })
    }

    fn json(
        &self,
        path: &str,
        result: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Value, CtlError> {
        let Response { status, body, .. } = self.received(path, result)?;
        if !status.is_success() {
            let text = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
            return Err(self.failed(path, format!("{status}: {text}")));
        }
        Ok(serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    pub(crate) fn get(&self, path: &str) -> Result<Value, CtlError> {
        let (name, value) = &self.header;
        self.json(path, self.agent.get(format!("{}{path}", self.url)).header(*name, value).call())
    }

    /// Returns the items of a list; `null` is an empty list.
    pub(crate) fn list(&self, path: &str) -> Result<Vec<Value>, CtlError> {
        match self.get(path)? {
            Value::Array(items) => Ok(items),
            Value::Null => Ok(Vec::new()),
            _ => Err(self.failed(path, "the response is not a list")),
        }
    }

    pub(crate) fn send(&self, method: &str, path: &str, body: &impl serde::Serialize) -> Result<Value, CtlError> {
        let (name, value) = &self.header;
        let url = format!("{}{path}", self.url);
        let request = if method == "POST" { self.agent.post(url) } else { self.agent.put(url) };
        self.json(path, request.header(*name, value).send_json(body))
    }

    /// Sends a request, with JSON unless `body` is empty, and returns the response, whatever its status.
    pub(crate) fn exchange(&self, method: Method, path: &str, body: &[u8]) -> Result<Response, CtlError> {
        let (name, value) = &self.header;
        let request = Request::builder().method(method).uri(format!("{}{path}", self.url)).header(*name, value);
        let failed = |error: ureq::http::Error| self.failed(path, error);
        let sent = if body.is_empty() {
            self.agent.run(request.body(()).map_err(failed)?)
        } else {
            let request = request.header(header::CONTENT_TYPE, "application/json");
            self.agent.run(request.body(body).map_err(failed)?)
        };
        self.received(path, sent)
    }

    /// Returns the contents of a resource as a stream.
    pub(crate) fn raw(&self, path: &str) -> Result<impl Read + use<>, CtlError> {
        let (name, value) = &self.header;
        let sent = self.agent.get(format!("{}{path}", self.url)).header(*name, value).call();
        let response = sent.map_err(|error| self.failed(path, error))?;
        if !response.status().is_success() {
            return Err(self.failed(path, response.status()));
        }
        Ok(response.into_body().into_with_config().limit(u64::MAX).reader())
    }

    /// Uploads contents as the only part of a multipart form, and returns the response.
    pub(crate) fn put_raw(&self, path: &str, contents: impl Read) -> Result<Value, CtlError> {
        const BOUNDARY: &str = "gravwell-import-5f1c7c9a41b84b0e";
        let head = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"file\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        let tail = format!("\r\n--{BOUNDARY}--\r\n");
        let mut body = Cursor::new(head).chain(contents).chain(Cursor::new(tail));
        let (name, value) = &self.header;
        let request = self.agent.put(format!("{}{path}", self.url)).header(*name, value);
        let request = request.header("Content-Type", format!("multipart/form-data; boundary={BOUNDARY}"));
        self.json(path, request.send(ureq::SendBody::from_reader(&mut body)))
    }
}
