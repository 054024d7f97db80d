//! REST client on loopback, for the demonstration.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{HeaderMap, Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::error::CtlError;

/// Longest wait for a response.
const PATIENCE: Duration = Duration::from_secs(60);
/// Maximum size of a response body.
const ANSWER_BYTES_MAX: usize = 1 << 30;

/// Connection to a webserver with the login of one user.
pub(super) struct Rest {
    name: String,
    address: SocketAddr,
    token: String,
    connection: Option<SendRequest<Body>>,
}

/// HTTP response.
pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// Parses the body as JSON.
    pub(super) fn json(&self) -> Result<Value, CtlError> {
        serde_json::from_slice(&self.body).map_err(CtlError::new)
    }
}

impl Rest {
    /// Logs in.
    pub(super) async fn log_in(name: &str, address: SocketAddr, user: &str, password: &str) -> Result<Rest, CtlError> {
        let mut rest = Rest { name: name.to_owned(), address, token: String::new(), connection: None };
        let answer = rest.post("/api/login", &json!({ "User": user, "Pass": password })).await?;
        let token = answer["JWT"].as_str().ok_or_else(|| CtlError::new(format!("{name}: login failed: {answer}")))?;
        token.clone_into(&mut rest.token);
        Ok(rest)
    }

    /// Returns another connection with the same login, to the same webserver or to another one.
    pub(super) fn again(&self, name: &str, address: SocketAddr) -> Rest {
        Rest { name: name.to_owned(), address, token: self.token.clone(), connection: None }
    }

    /// Returns the address of the webserver.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    async fn connected(&mut self) -> Result<&mut SendRequest<Body>, CtlError> {
        if self.connection.as_ref().is_none_or(SendRequest::is_closed) {
            let stream = TcpStream::connect(self.address).await.map_err(CtlError::new)?;
            stream.set_nodelay(true).map_err(CtlError::new)?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(CtlError::new)?;
            tokio::spawn(connection);
            self.connection = Some(sender);
        }
        self.connection.as_mut().ok_or_else(|| CtlError::new("no connection"))
    }

    async fn send(&mut self, method: Method, path: &str, kind: &str, body: Bytes) -> Result<Answer, CtlError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.address.to_string())
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(header::CONTENT_TYPE, kind)
            .body(Body::from(body))
            .map_err(CtlError::new)?;
        let sender = self.connected().await?;
        sender.ready().await.map_err(CtlError::new)?;
        let response = sender.send_request(request).await.map_err(CtlError::new)?;
        let (head, body) = response.into_parts();
        let body = axum::body::to_bytes(Body::new(body), ANSWER_BYTES_MAX).await.map_err(CtlError::new)?;
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    /// Sends a request and returns the response, whatever its status.
    pub(super) async fn ask(
        &mut self,
        method: Method,
        path: &str,
        kind: &str,
        body: Bytes,
    ) -> Result<Answer, CtlError> {
        let what = format!("{}: {method} {path}", self.name);
        let answer = tokio::time::timeout(PATIENCE, self.send(method, path, kind, body)).await;
        answer.map_err(|_| CtlError::new(format!("{what}: no response within {PATIENCE:?}")))?
    }

    /// Sends a request; a status other than success is an error that includes the body.
    pub(super) async fn call(&mut self, method: Method, path: &str, body: &Value) -> Result<Answer, CtlError> {
        let text = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let what = format!("{}: {method} {path}", self.name);
        let answer = self.ask(method, path, "application/json", text).await?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        Err(CtlError::new(format!("{what}: {}: {}", answer.status, String::from_utf8_lossy(&answer.body))))
    }

    /// Sends a GET request.
    pub(super) async fn get(&mut self, path: &str) -> Result<Value, CtlError> {
        self.call(Method::GET, path, &Value::Null).await?.json()
    }

    /// Sends a POST request.
    pub(super) async fn post(&mut self, path: &str, body: &Value) -> Result<Value, CtlError> {
        self.call(Method::POST, path, body).await?.json()
    }

    /// Uploads the contents of a resource.
    pub(super) async fn upload(&mut self, guid: &str, contents: &[u8]) -> Result<Value, CtlError> {
        const EDGE: &str = "an-edge-that-no-table-holds";
        let mut form = format!("--{EDGE}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"table\"\r\n\r\n");
        form.reserve(contents.len());
        let mut form = form.into_bytes();
        form.extend(contents);
        form.extend(format!("\r\n--{EDGE}--\r\n").into_bytes());
        let (path, kind) = (format!("/api/resources/{guid}/raw"), format!("multipart/form-data; boundary={EDGE}"));
        let answer = self.ask(Method::PUT, &path, &kind, form.into()).await?;
        if answer.status.is_success() {
            return answer.json();
        }
        Err(CtlError::new(format!("{}: {}", answer.status, String::from_utf8_lossy(&answer.body))))
    }
}
