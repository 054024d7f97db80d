//! Searches over a WebSocket, as existing clients run them: one socket carries several conversations, named in
//! each frame.

use std::collections::HashMap;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

use super::queries::{self, judged};
use super::searchctrl::{self, info, renderer};
use super::{search_commands, system};
use crate::admission;
use crate::app::{self, AppRef};
use crate::authorization::{AccessRequirement, Right};
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::request_input;
use crate::route::{Route, get};
use crate::search_forwarding::{self, Who};

/// Timeout for the first frame.
const FIRST: Duration = Duration::from_secs(2);
/// Idle timeout of a client.
const SILENCE: Duration = Duration::from_secs(90);
/// Maximum size of a frame from a client.
const FRAME_BYTES_MAX: usize = 1 << 20;
/// Number of consecutive invalid frames after which the socket is closed.
const BAD_FRAMES_MAX: u32 = 3;
/// Interval at which component states are sent.
const STATES_EVERY: Duration = Duration::from_secs(5);
/// Maximum number of searches that one socket may view.
const VIEWS_MAX: usize = 64;

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

pub(crate) fn routes() -> Vec<Route> {
    use Right::Capability;
    vec![
        get(
            "/api/ws/search",
            AccessRequirement::User(Capability("Search")),
            "Runs and shows searches over a web socket.",
            searches,
        ),
        get(
            "/api/ws/attach/{id}",
            AccessRequirement::User(Capability("AttachSearch")),
            "Shows one search over a web socket.",
            one_search,
        ),
        get(
            "/api/ws/stats",
            AccessRequirement::User(Capability("Stats")),
            "Reports over a web socket which parts are reachable.",
            states,
        ),
    ]
}

enum Subject {
    /// Searches, as requested by the client.
    Searches,
    /// One search, attached immediately.
    One(String),
    States,
}

async fn searches(State(app): State<AppRef>, caller: Caller, request: Request) -> ApiResult<Response> {
    upgrade(app, caller, request, Subject::Searches)
}

async fn one_search(
    State(app): State<AppRef>,
    caller: Caller,
    Path(id): Path<String>,
    request: Request,
) -> ApiResult<Response> {
    search_forwarding::found(&app, &Who::from(&caller), &id)?;
    upgrade(app, caller, request, Subject::One(id))
}

async fn states(State(app): State<AppRef>, caller: Caller, request: Request) -> ApiResult<Response> {
    upgrade(app, caller, request, Subject::States)
}

/// Returns whether the origin may use the socket: this webserver's own, or the configured one. Programs send no `Origin`.
fn is_welcome(headers: &HeaderMap, allowed: Option<&str>) -> bool {
    let text = |name| headers.get(name).and_then(|value: &axum::http::HeaderValue| value.to_str().ok());
    let Some(origin) = text(header::ORIGIN) else { return true };
    let host = |text: &str| text.split_once("://").map_or(text, |(_, host)| host).to_ascii_lowercase();
    let own = text(header::HOST).is_some_and(|own| own.eq_ignore_ascii_case(&host(origin)));
    own || allowed.is_some_and(|allowed| allowed == "*" || host(allowed) == host(origin))
}

fn upgrade(app: AppRef, caller: Caller, mut request: Request, subject: Subject) -> ApiResult<Response> {
    let headers = request.headers();
    if !is_welcome(headers, app.config.allow_origin.as_deref()) {
        return Err(ApiError::forbidden("requests from pages of other origins are not allowed"));
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    // Clients abort unless the subprotocol that they requested is returned.
    let protocol = headers.get(header::SEC_WEBSOCKET_PROTOCOL).cloned();
    let upgrading = request.extensions_mut().remove::<OnUpgrade>();
    let needed = || ApiError::new(StatusCode::UPGRADE_REQUIRED, "this path requires a web socket");
    let (key, upgrading) = key.zip(upgrading).ok_or_else(needed)?;
    let place = app.stream_of(&caller)?;
    tokio::spawn(async move {
        let _place = place;
        if let Ok(upgraded) = upgrading.await {
            let config = WebSocketConfig::default()
                .max_message_size(Some(FRAME_BYTES_MAX))
                .max_frame_size(Some(FRAME_BYTES_MAX));
            let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
            Conversation { app, caller, views: HashMap::new(), begun: 0 }.hold(socket, subject).await;
        }
    });
    let head = [
        (header::CONNECTION, "upgrade".to_owned()),
        (header::UPGRADE, "websocket".to_owned()),
        (header::SEC_WEBSOCKET_ACCEPT, key),
    ];
    let mut response = (StatusCode::SWITCHING_PROTOCOLS, head, Body::empty()).into_response();
    if let Some(protocol) = protocol {
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    Ok(response)
}

#[derive(Deserialize)]
struct Frame {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    data: Option<Box<RawValue>>,
}

/// Time allowed for the closing handshake.
const CLOSING: Duration = Duration::from_secs(1);

struct Conversation {
    app: AppRef,
    caller: Caller,
    /// Open views by the name that stands for them in frames.
    views: HashMap<String, View>,
    begun: u64,
}

/// Results that a client views.
#[derive(Clone)]
struct View {
    search: String,
    /// Capability of the frame that opened the view: a client that may run a search may see its results, as
    /// over `/api/search/direct`.
    capability: &'static str,
}

/// Capabilities to run a search, and to attach to an existing one.
const SEARCH: &str = "Search";
const ATTACH: &str = "AttachSearch";

async fn text(socket: &mut Socket, patience: Duration) -> Option<String> {
    loop {
        match tokio::time::timeout(patience, socket.next()).await.ok()??.ok()? {
            Message::Text(text) => return Some(text.to_string()),
            Message::Binary(bytes) => return String::from_utf8(bytes.to_vec()).ok(),
            Message::Close(_) => return None,
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
        }
    }
}

/// Sends a frame; `None` if the client is gone.
async fn say(socket: &mut Socket, kind: &str, data: &Value) -> Option<()> {
    let frame = json!({ "type": kind, "data": data }).to_string();
    socket.send(Message::text(frame)).await.ok()
}

impl Conversation {
    async fn hold(mut self, mut socket: Socket, subject: Subject) {
        let (ending, lost) = (app::ending(&self.app), admission::ended(&self.app, &self.caller));
        tokio::select! {
            () = self.talk(&mut socket, subject) => {}
            () = ending => {}
            () = lost => {}
        }
        let _ = tokio::time::timeout(CLOSING, socket.close(None)).await;
    }

    async fn talk(&mut self, socket: &mut Socket, subject: Subject) {
        let Some(first) = text(socket, FIRST).await else { return };
        let wishes = request_input::read::<Subscriptions>(first.as_bytes()).unwrap_or_default();
        let answer = if wishes.subs.is_empty() { "ERROR" } else { "ACK" };
        let sent = socket.send(Message::text(json!({ "Resp": answer }).to_string())).await;
        if sent.is_ok() && answer == "ACK" {
            let _ = match subject {
                Subject::Searches => self.converse(socket).await,
                Subject::One(id) => {
                    let data = self.attach(&id).await.unwrap_or_else(|error| json!({ "Error": error.message() }));
                    match say(socket, "attach", &data).await {
                        Some(()) => self.converse(socket).await,
                        None => None,
                    }
                }
                Subject::States => self.send_states(socket, &wishes.subs).await,
            };
        }
    }

    async fn converse(&mut self, socket: &mut Socket) -> Option<()> {
        let mut bad = 0;
        while let Some(text) = text(socket, SILENCE).await {
            self.caller = self.caller.again(&self.app).ok()?;
            let Ok(frame) = serde_json::from_str::<Frame>(&text) else {
                bad += 1;
                if bad >= BAD_FRAMES_MAX {
                    break;
                }
                continue;
            };
            bad = 0;
            if let Some(data) = self.answer(&frame).await {
                say(socket, &frame.kind, &data).await?;
            }
        }
        None
    }

    /// Sends component states periodically until the client is gone or loses the right.
    async fn send_states(&self, socket: &mut Socket, subjects: &[String]) -> Option<()> {
        loop {
            if subjects.iter().any(|subject| subject == "ping") {
                say(socket, "ping", &json!({ "States": system::states(&self.app) })).await?;
            }
            let next = tokio::time::Instant::now() + STATES_EVERY;
            // Frames of the client keep the socket open and need no response.
            while let Ok(message) = tokio::time::timeout_at(next, socket.next()).await {
                if matches!(message?.ok()?, Message::Close(_)) {
                    return None;
                }
            }
        }
    }

    async fn answer(&mut self, frame: &Frame) -> Option<Value> {
        let data = frame.data.as_deref().map_or("null", RawValue::get);
        match frame.kind.as_str() {
            "PONG" => Some(json!({})),
            "parse" => {
                let wish =
                    self.caller.require(SEARCH).and_then(|()| request_input::read::<queries::Parse>(data.as_bytes()));
                let judged = match wish {
                    Ok(wish) => judged(&self.app, &self.caller, wish).await,
                    Err(error) => Err(error),
                };
                Some(judged.unwrap_or_else(|error| json!({ "GoodQuery": false, "ParseError": error.message() })))
            }
            // The acknowledgement of a started search needs no response.
            "search" if request_input::read::<Acknowledged>(data.as_bytes()).is_ok_and(|one| one.ok.is_some()) => None,
            "search" => Some(self.begin(data).await.unwrap_or_else(|error| json!({ "Error": error.message() }))),
            "attach" => {
                let id = request_input::read::<Attach>(data.as_bytes()).unwrap_or_default().id;
                Some(self.attach(&id).await.unwrap_or_else(|error| json!({ "Error": error.message() })))
            }
            name => {
                let View { search, capability } = self.views.get(name)?.clone();
                let asked = self.caller.require(capability);
                let asked = asked.and_then(|()| request_input::read::<search_commands::Command>(data.as_bytes()));
                let (command, answer) = match asked {
                    Ok(command) => {
                        (command.id, search_commands::command(&self.app, &self.caller, &search, &command).await)
                    }
                    Err(error) => (search_commands::FAILED, Err(error)),
                };
                if command == search_commands::CLOSE {
                    self.views.remove(name);
                }
                Some(answer.unwrap_or_else(|error| json!({ "ID": search_commands::FAILED, "Error": error.message() })))
            }
        }
    }

    fn view(&mut self, kind: &str, capability: &'static str, id: &str) -> ApiResult<String> {
        if self.views.len() >= VIEWS_MAX {
            return Err(ApiError::conflict("too many searches are attached to this socket; close some"));
        }
        self.begun += 1;
        let name = format!("{kind}{}", self.begun + 1);
        self.views.insert(name.clone(), View { search: id.to_owned(), capability });
        Ok(name)
    }

    async fn begin(&mut self, data: &str) -> ApiResult<Value> {
        self.caller.require(SEARCH)?;
        let launch = request_input::read::<searchctrl::Start>(data.as_bytes())?.launch(&self.caller)?;
        let live = self.app.searches.launch(&self.caller.searcher(), &self.caller.author(), launch).await?;
        let search = live.search();
        let name = self.view("search", SEARCH, &search.id)?;
        let info = info(&search);
        Ok(json!({
            "RawQuery": search.user_query,
            "SearchString": search.user_query,
            "RenderModule": renderer(&search),
            "RenderCmd": renderer(&search),
            "OutputSearchSubproto": name,
            "SearchID": search.id,
            "SearchStartRange": search.start_range,
            "SearchEndRange": search.end_range,
            "Background": search.background,
            "NonTemporal": false,
            "CollapsingIndex": -1,
            "LaunchInfo": info["LaunchInfo"],
            "QueryTimeSpecified": info["QueryTimeSpecified"],
            "TimeZoomDisabled": true,
            "Tags": search.tags,
            "ModuleHints": null,
            "GIDs": search.gids,
            "Global": search.global,
        }))
    }

    async fn attach(&mut self, id: &str) -> ApiResult<Value> {
        self.caller.require(ATTACH)?;
        let search = search_commands::standing(&self.app, &self.caller, id).await?.0;
        let name = self.view("attach", ATTACH, &search.id)?;
        Ok(json!({
            "Subproto": name,
            "RendererMod": renderer(&search),
            "RendererCmd": renderer(&search),
            "Info": info(&search),
        }))
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Subscriptions {
    subs: Vec<String>,
}

/// Acknowledgement of a started search.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Acknowledged {
    ok: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Attach {
    id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_other_sites_are_rejected() {
        let headers = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            pairs
                .iter()
                .map(|(name, value)| (header::HeaderName::from_static(name), value.parse().expect("value")))
                .collect()
        };
        type Pairs<'a> = &'a [(&'a str, &'a str)];
        let cases: [(Pairs<'_>, Option<&str>, bool); 5] = [
            (&[("host", "w:1")], None, true),
            (&[("host", "w:1"), ("origin", "wss://W:1")], None, true),
            (&[("host", "w:1"), ("origin", "https://evil")], None, false),
            (&[("host", "w:1"), ("origin", "https://good")], Some("https://good"), true),
            (&[("host", "w:1"), ("origin", "https://any")], Some("*"), true),
        ];
        for (given, allowed, wanted) in cases {
            assert_eq!(is_welcome(&headers(given), allowed), wanted, "{given:?}");
        }
    }
}
