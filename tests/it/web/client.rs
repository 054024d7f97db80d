//! A client of the REST API.

use std::io::Read;
use std::time::Duration;

use serde_json::Value;
use ureq::http::{Request, Response};
use ureq::{Agent, Body, SendBody};

#[derive(Clone)]
pub struct Client {
    base: String,
    headers: Vec<(String, String)>,
    agent: Agent,
}

pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{} {error}: {}", self.status, self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

impl Client {
    pub fn new(base: String) -> Client {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(60)))
            .max_redirects(0)
            .build();
        Client { base, headers: Vec::new(), agent: config.new_agent() }
    }

    /// Returns the same client with one more header.
    pub fn with(&self, name: &str, value: &str) -> Client {
        let mut client = self.clone();
        client.headers.push((name.into(), value.into()));
        client
    }

    pub fn token(&self) -> &str {
        let bearer = self.headers.iter().find(|(name, _)| name == "Authorization").expect("logged in");
        bearer.1.trim_start_matches("Bearer ")
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        kind: Option<&str>,
        body: SendBody<'_>,
    ) -> Result<Response<Body>, ureq::Error> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if let Some(kind) = kind {
            request = request.header("Content-Type", kind);
        }
        let request = request.body(body).expect("a request");
        let request = self.agent.configure_request(request).allow_non_standard_methods(true).build();
        self.agent.run(request)
    }

    #[track_caller]
    fn answer(&self, method: &str, path: &str, kind: Option<&str>, body: SendBody<'_>) -> Answer {
        let response = self.send(method, path, kind, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let status = response.status().as_u16();
        let text = |value: &ureq::http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
        let headers = response.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        let mut body = Vec::new();
        response.into_body().into_reader().read_to_end(&mut body).expect("a body");
        Answer { status, headers, body }
    }

    /// Sends a DELETE request, ignoring errors.
    pub fn try_delete(&self, path: &str) {
        let _ = self.send("DELETE", path, None, SendBody::none());
    }

    /// Returns whether the server responds.
    pub fn answers(&self) -> bool {
        self.send("GET", "/api/version", None, SendBody::none()).is_ok_and(|response| response.status() == 200)
    }

    /// Returns the status of the response, if there is one.
    pub fn try_post(&self, path: &str, body: &Value) -> Option<u16> {
        let text = body.to_string();
        let sent = self.send("POST", path, Some("application/json"), ureq::AsSendBody::as_body(&mut text.as_str()));
        sent.ok().map(|response| response.status().as_u16())
    }

    /// Returns the status and body of the response, or the error.
    pub fn try_get(&self, path: &str) -> Result<(u16, String), String> {
        let response = self.send("GET", path, None, SendBody::none()).map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        Ok((status, response.into_body().read_to_string().map_err(|error| error.to_string())?))
    }

    #[track_caller]
    pub fn call(&self, method: &str, path: &str) -> Answer {
        if ["POST", "PUT", "PATCH"].contains(&method) {
            return self.send_text(method, path, "application/json", "");
        }
        self.answer(method, path, None, SendBody::none())
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.call("GET", path)
    }

    #[track_caller]
    pub fn delete(&self, path: &str) -> Answer {
        self.call("DELETE", path)
    }

    #[track_caller]
    pub fn send_text(&self, method: &str, path: &str, kind: &str, body: &str) -> Answer {
        self.answer(method, path, Some(kind), ureq::AsSendBody::as_body(&mut &*body))
    }

    #[track_caller]
    pub fn send_bytes(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> Answer {
        self.answer(method, path, Some(kind), ureq::AsSendBody::as_body(&mut &*body))
    }

    #[track_caller]
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send_text("POST", path, "application/json", &body.to_string())
    }

    #[track_caller]
    pub fn put(&self, path: &str, body: &Value) -> Answer {
        self.send_text("PUT", path, "application/json", &body.to_string())
    }

    /// Uploads a form with one file.
    #[track_caller]
    pub fn upload(&self, method: &str, path: &str, part: &str, contents: impl Read) -> Answer {
        let head = format!(
            "--boundary\r\nContent-Disposition: form-data; name=\"{part}\"; filename=\"f\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        let mut form = head.as_bytes().chain(contents).chain(b"\r\n--boundary--\r\n".as_slice());
        self.answer(method, path, Some("multipart/form-data; boundary=boundary"), SendBody::from_reader(&mut form))
    }

    /// Sends a request that must succeed; returns the response as JSON.
    #[track_caller]
    pub fn ok(&self, method: &str, path: &str) -> Value {
        let answer = self.call(method, path);
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.text());
        answer.json()
    }

    #[track_caller]
    pub fn made(&self, path: &str, body: &Value) -> Value {
        let answer = self.post(path, body);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    #[track_caller]
    pub fn changed(&self, path: &str, body: &Value) -> Value {
        let answer = self.put(path, body);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }
}
