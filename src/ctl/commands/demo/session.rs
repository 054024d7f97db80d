//! Logins of the demonstration at its webservers.

use std::net::SocketAddr;
use std::time::Duration;

use axum::http::Method;
use serde_json::Value;

use crate::client::rest::{Response, Rest, Trusting};
use crate::error::CtlError;

/// Longest wait for a response.
const PATIENCE: Duration = Duration::from_secs(60);

/// Login of one user at a webserver. Its requests run on threads for blocking work, so that several are in progress at
/// once.
pub(super) struct Session {
    name: String,
    address: SocketAddr,
    rest: Rest,
}

impl Session {
    /// Logs in.
    pub(super) async fn log_in(
        name: &str,
        address: SocketAddr,
        user: &str,
        password: &str,
    ) -> Result<Session, CtlError> {
        let (url, user, password) = (format!("http://{address}"), user.to_owned(), password.to_owned());
        let login = tokio::task::spawn_blocking(move || Rest::login(&url, &user, &password, &Trusting::default()));
        let rest = login.await.map_err(CtlError::new)?;
        Ok(Session { name: name.to_owned(), address, rest: rest? })
    }

    /// Returns the same login with another connection, to the same webserver or to another one.
    pub(super) fn again(&self, name: &str, address: SocketAddr) -> Result<Session, CtlError> {
        Ok(Session { name: name.to_owned(), address, rest: self.rest.again(&format!("http://{address}"))? })
    }

    /// Returns the address of the webserver.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    async fn run<T: Send + 'static>(
        &self,
        what: &str,
        request: impl FnOnce(&Rest) -> Result<T, CtlError> + Send + 'static,
    ) -> Result<T, CtlError> {
        let rest = self.rest.clone();
        let answer = tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(move || request(&rest))).await;
        let answer =
            answer.map_err(|_| CtlError::new(format!("{}: {what}: no response within {PATIENCE:?}", self.name)))?;
        answer.map_err(CtlError::new)?
    }

    /// Sends a request and returns the response, whatever its status.
    pub(super) async fn ask(&self, method: Method, path: &str, body: &Value) -> Result<Response, CtlError> {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let (what, path) = (format!("{method} {path}"), path.to_owned());
        self.run(&what, move |rest| rest.exchange(method, &path, text.as_bytes())).await
    }

    /// Sends a request; a status other than success is an error that includes the body.
    pub(super) async fn call(&self, method: Method, path: &str, body: &Value) -> Result<Response, CtlError> {
        let what = format!("{}: {method} {path}", self.name);
        let answer = self.ask(method, path, body).await?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        Err(CtlError::new(format!("{what}: {}: {}", answer.status, String::from_utf8_lossy(&answer.body))))
    }

    /// Sends a GET request.
    pub(super) async fn get(&self, path: &str) -> Result<Value, CtlError> {
        self.call(Method::GET, path, &Value::Null).await?.json()
    }

    /// Sends a POST request.
    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value, CtlError> {
        self.call(Method::POST, path, body).await?.json()
    }

    /// Uploads the contents of a resource.
    pub(super) async fn upload(&self, guid: &str, contents: Vec<u8>) -> Result<Value, CtlError> {
        let path = format!("/api/resources/{guid}/raw");
        self.run(&format!("PUT {path}"), move |rest| rest.put_raw(&path, contents.as_slice())).await
    }
}
