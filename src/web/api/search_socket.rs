//! Searches over a web socket, as existing clients run them: one socket, several conversations, each named in its frames.

use std::collections::HashMap;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

use super::queries::{self, judged};
use super::searchctrl::{self, info, renderer};
use crate::objects::Moment;
use crate::objects::searches::{Search, State as Progress};
use crate::search::render::{cells, text_of};
use crate::search::row::Row;
use crate::web::app::AppRef;
use crate::web::caller::{self, Caller};
use crate::web::error::{ApiError, ApiResult};
use crate::web::guard::Need;
use crate::web::input;
use crate::web::routes::{Route, get};
use crate::web::searching::{self, Deed, PAGE_ROWS_MAX, Who};

/// The first frame must come within this.
const FIRST: Duration = Duration::from_secs(2);
/// A client that says nothing for this long is gone.
const SILENCE: Duration = Duration::from_secs(90);
/// Largest frame from a client.
const FRAME_BYTES_MAX: usize = 1 << 20;
/// Frames that are not understood, in a row, after which the socket is closed.
const BAD_FRAMES_MAX: u32 = 3;
/// Searches that one socket may look at.
const VIEWS_MAX: usize = 64;

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

pub(in crate::web) fn routes() -> Vec<Route> {
    vec![get("/api/ws/search", Need::User(Some("Search")), "Runs and shows searches over a web socket.", upgrade)]
}

/// Whether a page may use the socket: one of this webserver's own, or of the configured origin; programs send none.
fn is_welcome(headers: &HeaderMap, allowed: Option<&str>) -> bool {
    let text = |name| headers.get(name).and_then(|value: &axum::http::HeaderValue| value.to_str().ok());
    let Some(origin) = text(header::ORIGIN) else { return true };
    let host = |text: &str| text.split_once("://").map_or(text, |(_, host)| host).to_ascii_lowercase();
    let own = text(header::HOST).is_some_and(|own| own.eq_ignore_ascii_case(&host(origin)));
    own || allowed.is_some_and(|allowed| allowed == "*" || host(allowed) == host(origin))
}

async fn upgrade(State(app): State<AppRef>, caller: Caller, mut request: Request) -> ApiResult<Response> {
    let headers = request.headers();
    if !is_welcome(headers, app.config.allow_origin.as_deref()) {
        return Err(ApiError::forbidden("pages of other webservers may not use this"));
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    // Clients abort unless what they asked for comes back.
    let protocol = headers.get(header::SEC_WEBSOCKET_PROTOCOL).cloned();
    let upgrading = request.extensions_mut().remove::<OnUpgrade>();
    let needed = || ApiError::new(StatusCode::UPGRADE_REQUIRED, "this path serves web sockets");
    let (key, upgrading) = key.zip(upgrading).ok_or_else(needed)?;
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrading.await {
            let config = WebSocketConfig::default()
                .max_message_size(Some(FRAME_BYTES_MAX))
                .max_frame_size(Some(FRAME_BYTES_MAX));
            let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
            Conversation { app, caller, views: HashMap::new(), begun: 0 }.hold(socket).await;
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
    data: Value,
}

struct Conversation {
    app: AppRef,
    caller: Caller,
    /// Which search a name of results stands for.
    views: HashMap<String, String>,
    begun: u64,
}

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

impl Conversation {
    async fn hold(mut self, mut socket: Socket) {
        let Some(first) = text(&mut socket, FIRST).await else { return };
        let wishes = input::read::<Subscriptions>(first.as_bytes()).unwrap_or_default();
        let answer = if wishes.subs.is_empty() { "ERROR" } else { "ACK" };
        let sent = socket.send(Message::text(json!({ "Resp": answer }).to_string())).await;
        let mut bad = 0;
        if sent.is_ok() && answer == "ACK" {
            while let Some(text) = text(&mut socket, SILENCE).await {
                if !self.may_go_on() {
                    break;
                }
                let Ok(frame) = serde_json::from_str::<Frame>(&text) else {
                    bad += 1;
                    if bad >= BAD_FRAMES_MAX {
                        break;
                    }
                    continue;
                };
                bad = 0;
                let Some(data) = self.answer(&frame).await else { continue };
                let reply = json!({ "type": frame.kind, "data": data }).to_string();
                if socket.send(Message::text(reply)).await.is_err() {
                    break;
                }
            }
        }
        let _ = socket.close(None).await;
    }

    fn may_go_on(&self) -> bool {
        match self.caller.session {
            Some(_) => caller::is_still_known(&self.app.store, &self.caller),
            None => caller::known(&self.app.store, self.caller.uid()).is_ok_and(|known| known.is_some()),
        }
    }

    async fn answer(&mut self, frame: &Frame) -> Option<Value> {
        let data = frame.data.to_string();
        match frame.kind.as_str() {
            "PONG" => Some(json!({})),
            "parse" => Some(match input::read::<queries::Parse>(data.as_bytes()) {
                Ok(wish) => judged(&self.app, &self.caller, wish).await,
                Err(error) => json!({ "GoodQuery": false, "ParseError": error.message() }),
            }),
            // The acknowledgement of a search that has begun needs no answer.
            "search" if frame.data.get("Ok").or(frame.data.get("OK")).is_some() => None,
            "search" => Some(self.begin(&data).await.unwrap_or_else(|error| json!({ "Error": error.message() }))),
            "attach" => Some(self.attach(&data).await.unwrap_or_else(|error| json!({ "Error": error.message() }))),
            name => {
                let id = self.views.get(name)?.clone();
                let asked = input::read::<Command>(data.as_bytes());
                let (command, answer) = match asked {
                    Ok(command) => (command.id, self.command(&id, &command).await),
                    Err(error) => (FAILED, Err(error)),
                };
                if command == CLOSE {
                    self.views.remove(name);
                }
                Some(answer.unwrap_or_else(|error| json!({ "ID": FAILED, "Error": error.message() })))
            }
        }
    }

    fn view(&mut self, kind: &str, id: &str) -> ApiResult<String> {
        if self.views.len() >= VIEWS_MAX {
            return Err(ApiError::conflict("this socket looks at too many searches: close some"));
        }
        self.begun += 1;
        let name = format!("{kind}{}", self.begun + 1);
        self.views.insert(name.clone(), id.to_owned());
        Ok(name)
    }

    async fn begin(&mut self, data: &str) -> ApiResult<Value> {
        let launch = input::read::<searchctrl::Start>(data.as_bytes())?.launch()?;
        let live = self.app.searches.launch(&self.caller.person, &self.caller.author(), launch).await?;
        let search = live.search();
        let name = self.view("search", &search.id)?;
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

    async fn attach(&mut self, data: &str) -> ApiResult<Value> {
        if !self.caller.has("AttachSearch") {
            return Err(ApiError::forbidden("the token does not have the capability AttachSearch"));
        }
        let wish: Attach = input::read(data.as_bytes())?;
        let search = self.standing(&wish.id).await?.0;
        let name = self.view("attach", &search.id)?;
        Ok(json!({
            "Subproto": name,
            "RendererMod": renderer(&search),
            "RendererCmd": renderer(&search),
            "Info": info(&search),
        }))
    }

    async fn standing(&self, id: &str) -> ApiResult<(Search, Vec<u64>)> {
        let told = searching::anywhere(&self.app, &Who::from(&self.caller), id, Deed::Status).await?.value();
        let search = serde_json::from_value(told["Search"].clone()).map_err(ApiError::internal)?;
        Ok((search, serde_json::from_value(told["Histogram"].clone()).unwrap_or_default()))
    }

    /// One command to a search's results, answered in the form of all such answers.
    async fn command(&self, id: &str, command: &Command) -> ApiResult<Value> {
        let (search, histogram) = self.standing(id).await?;
        let mut answer = json!({
            "ID": command.id,
            "Finished": search.state != Progress::Running,
            "EntryCount": search.rows,
            "EntryCountValid": true,
            "AdditionalEntries": false,
            "OverLimit": search.over_limit,
            "LimitDroppedRange": { "StartTS": Moment::NEVER, "EndTS": Moment::NEVER },
            "Warning": search.warnings.join("; "),
            "Addendum": command.addendum,
        });
        match command.id {
            CLOSE | ENTRY_COUNT => {}
            DETAILS => answer["SearchInfo"] = info(&search),
            TAGS => answer["Tags"] = tags(&search),
            ENTRIES | ENTRIES_BETWEEN | RAW_ENTRIES => {
                let range = command.entryrange.as_ref();
                let (rows, total, first) = self.rows(&search, command.id, range).await?;
                answer["AdditionalEntries"] = (first + (rows.len() as u64) < total).into();
                answer["Tags"] = tags(&search);
                answer["EntryRange"] = json!({ "First": first, "Last": first + rows.len() as u64 });
                answer["Entries"] = entries(&search, &rows, command.id == RAW_ENTRIES);
            }
            STATS_FIRST..=STATS_LAST => answer["Stats"] = stats(&search, &histogram),
            METADATA => answer["Metadata"] = json!({}),
            other => return Err(ApiError::bad(format!("command {other:#x} is not known"))),
        }
        if search.state == Progress::Failed {
            answer["Error"] = search.error.into();
        }
        Ok(answer)
    }

    async fn rows(&self, search: &Search, command: u32, range: Option<&EntryRange>) -> ApiResult<(Vec<Row>, u64, u64)> {
        let (first, last) = range.map_or((0, PAGE_ROWS_MAX as u64), |range| (range.first, range.last));
        let between = range.filter(|_| command == ENTRIES_BETWEEN);
        let (since, until) = (between.map(|range| range.startts), between.map(|range| range.endts));
        let count = usize::try_from(last.saturating_sub(first)).unwrap_or(PAGE_ROWS_MAX);
        let deed = Deed::Rows { first, count, since, until };
        let page = searching::anywhere(&self.app, &Who::from(&self.caller), &search.id, deed).await?.value();
        let rows = page["Rows"].as_array().map(Vec::as_slice).unwrap_or_default();
        let row = |row: &Value| {
            let tag = search.tags.iter().position(|tag| row["Tag"] == tag.as_str()).unwrap_or_default();
            let time = row["TS"].as_str().and_then(Moment::parse).unwrap_or_default();
            let data = row["Json"].as_str().unwrap_or("null").to_owned();
            Row { time: time.ns(), tag: u16::try_from(tag).unwrap_or(0), data: data.into() }
        };
        Ok((rows.iter().map(row).collect(), page["Total"].as_u64().unwrap_or(0), first))
    }
}

fn tags(search: &Search) -> Value {
    (0u16..).zip(&search.tags).map(|(number, tag)| (tag.clone(), number.into())).collect::<Map<_, _>>().into()
}

fn entries(search: &Search, rows: &[Row], is_raw: bool) -> Value {
    if let Some(columns) = search.columns.as_ref().filter(|_| !is_raw) {
        let line = |row: &Row| json!({ "TS": Moment::from_ns(row.time), "Row": cells(row, columns) });
        return json!({ "Columns": columns, "Rows": rows.iter().map(line).collect::<Vec<_>>() });
    }
    let entry = |row: &Row| {
        let data = STANDARD.encode(text_of(&row.data));
        json!({ "TS": Moment::from_ns(row.time), "SRC": "", "Tag": row.tag, "Data": data, "Enumerated": [] })
    };
    rows.iter().map(entry).collect()
}

fn stats(search: &Search, histogram: &[u64]) -> Value {
    let (since, until) = (search.start_range.ns(), search.end_range.ns());
    let width = (until - since) / i64::try_from(histogram.len().max(1)).unwrap_or(1);
    let at = |number: i64| Moment::from_ns(since + number * width);
    let set = (0i64..).zip(histogram).map(|(number, count)| json!({ "Count": count, "Bytes": 0, "TS": at(number) }));
    json!({
        "RangeStart": search.start_range,
        "RangeEnd": search.end_range,
        "Current": search.end_range,
        "Size": histogram.len(),
        "Set": [],
        "OverviewSet": set.collect::<Vec<_>>(),
    })
}

const CLOSE: u32 = 0x1;
const ENTRY_COUNT: u32 = 0x3;
const DETAILS: u32 = 0x4;
const TAGS: u32 = 0x5;
const ENTRIES: u32 = 0x10;
const ENTRIES_BETWEEN: u32 = 0x12;
const RAW_ENTRIES: u32 = 0x13;
const STATS_FIRST: u32 = 0x7f00_0001;
const STATS_LAST: u32 = 0x7f00_0007;
const METADATA: u32 = 0x1_0001;
const FAILED: u32 = 0xffff_ffff;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Subscriptions {
    subs: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Attach {
    id: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Command {
    id: u32,
    entryrange: Option<EntryRange>,
    addendum: Value,
}

#[derive(Deserialize)]
struct EntryRange {
    #[serde(rename = "StartTS", default)]
    startts: Moment,
    #[serde(rename = "EndTS", default)]
    endts: Moment,
    #[serde(rename = "First", default)]
    first: u64,
    #[serde(rename = "Last", default)]
    last: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_others_are_turned_away() {
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
