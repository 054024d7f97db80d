//! Further search features that existing clients use.

use std::net::TcpStream;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Message, client};

use super::ADMIN_PASSWORD;
use super::client::Client;
use super::searches::{ended, launch, numbers, resource};
use super::{Site, Web};
use crate::fleet::Fleet;

#[track_caller]
fn body(client: &Client, path: &str) -> Vec<u8> {
    let answer = client.get(path);
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    answer.body
}

#[test]
fn filters_sent_alongside_a_query_are_part_of_it() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    resource(&admin, "numbers", &numbers(30));
    let query = "tag=resource:numbers | .n";
    let count = |filters: Value| {
        let begun = admin.made("/api/searchctrl/launch", &json!({ "SearchString": query, "Filters": filters }));
        let path = format!("/api/searchctrl/{}", begun["SearchID"].as_str().expect("an id"));
        ended(&admin, &path)["ItemCount"].as_u64().expect("a number")
    };
    let filter =
        |name: &str, op: &str, value: &str| json!({ "Module": "json", "Path": name, "Op": op, "Value": value });
    for (filters, wanted) in [
        (json!(null), 30),
        (json!([filter("n", "==", "7")]), 1),
        (json!([filter("n", "!=", "7")]), 29),
        (json!([filter("n", ">", "7"), filter("n", "<=", "9")]), 2),
        (json!([filter("kind", "~", "^fi")]), 10),
        (json!([filter("kind", "!~", "^fi")]), 20),
        (json!([filter("kind", "==", "a \"b\" | (")]), 0),
        (json!([filter("no.such.thing", ">", "0")]), 0),
    ] {
        assert_eq!(count(filters.clone()), wanted, "{filters}");
    }
    let filters = json!([filter("n", "==", "7")]);
    let judged = admin.post("/api/parse", &json!({ "SearchString": query, "Filters": filters })).json();
    assert_eq!((&judged["GoodQuery"], &judged["RawQuery"]), (&json!(true), &json!(query)));
    let ran = judged["ParsedQuery"].as_str().expect("text");
    assert!(ran.starts_with("tag=resource:numbers | select(") && ran.ends_with(" | .n"), "{ran}");
    let history = admin.ok("GET", "/api/searchhistory?refine=select");
    assert_eq!((&history[0]["UserQuery"], history.as_array().map(Vec::len)), (&json!(query), Some(7)));
    for wrong in [filter("n", "=", "7"), filter("", "==", "7"), json!({ "Tag": "journal", "Path": "n", "Op": "==" })] {
        let asked = json!({ "SearchString": "tag=audit,journal", "Filters": [wrong] });
        assert_eq!(admin.post("/api/searchctrl/launch", &asked).status, 400, "{asked}");
    }
}

#[test]
fn results_are_exported_as_an_archive_and_excluded_from_a_backup_on_request() {
    let site = Site::new();
    let (a, b) = site.admins();
    resource(&a, "numbers", &numbers(3000));
    let path = launch(&a, "tag=resource:numbers fizz | table n kind");
    ended(&a, &path);
    let archive = body(&a, &format!("{path}/download/archive"));
    let brought = b.upload("POST", "/api/searchctrl/import", "file", archive.as_slice());
    assert_eq!(brought.status, 200, "{}", brought.text());
    let brought = brought.json();
    let import = format!("/api/searchctrl/{}", brought["ID"].as_str().expect("an id"));
    assert_eq!((&brought["Import"]["Imported"], &brought["ItemCount"]), (&json!(true), &json!(1000)), "{brought}");
    assert_eq!((&brought["Webserver"], &brought["Columns"]), (&json!("b"), &json!(["n", "kind"])), "{brought}");
    site.converges();
    for format in ["text", "json", "csv", "archive"] {
        let of = |client: &Client, path: &str| body(client, &format!("{path}/download/{format}"));
        assert!(of(&a, &path) == of(&b, &import) && of(&a, &import) == of(&b, &import), "{format}");
    }
    let mut flipped = archive.clone();
    flipped[archive.len() / 2] ^= 1;
    let longer = [&archive[..], b"x"].concat();
    for bad in [&flipped[..], &archive[..archive.len() - 20], &archive[..10], b"", &longer[..]] {
        let refused = b.upload("POST", "/api/searchctrl/import", "file", bad);
        assert!(refused.status == 400 && refused.text().contains("not a search archive"), "{}", refused.text());
    }
    assert_eq!(b.ok("GET", "/api/searchctrl").as_array().map(Vec::len), Some(2), "a rejected import leaves no files");

    assert_eq!(b.call("PATCH", &format!("{path}/save")).status, 200);
    site.converges();
    let saved = body(&a, &format!("{path}/download/text"));
    let (whole, without) = (body(&a, "/api/backup?savedsearch=true"), body(&a, "/api/backup?savedsearch=false"));
    let has = |backup: &[u8]| String::from_utf8_lossy(backup).contains("\"collection\":\"searches\"");
    assert!(has(&whole) && !has(&without) && without.len() < whole.len());
    // A restore leaves objects unchanged that the backup does not contain.
    assert_eq!(a.upload("POST", "/api/backup", "backup", without.as_slice()).status, 200);
    let a = site.a.login("admin", ADMIN_PASSWORD);
    assert!(body(&a, &format!("{path}/download/text")) == saved);
}

#[test]
fn statistics_renderers_and_further_sockets() {
    let fleet = Fleet::new();
    let web = Web::start(&fleet, "a", &[]);
    let admin = web.admin(&fleet);
    resource(&admin, "numbers", &numbers(10));
    let path = launch(&admin, "tag=resource:numbers");
    ended(&admin, &path);
    assert_eq!(admin.ok("GET", &format!("{path}/stats")), admin.ok("GET", &format!("{path}/stats/overview")));
    let explored = admin.ok("GET", &format!("{path}/renderer/text/explore?first=8&last=20"));
    assert_eq!(explored["Entries"].as_array().map(Vec::len), Some(2), "{explored}");
    assert_eq!(explored["Explore"][0]["Elements"][0], json!({ "Module": "json", "Name": "kind", "Value": "fizz" }));
    let plain = admin.ok("GET", &format!("{path}/renderer/text?first=0&last=3"));
    assert!(plain["AdditionalEntries"] == true && plain["Explore"].is_null(), "{plain}");
    for format in ["pcap", "lookupdata", "ipexist", "hex"] {
        let refused = admin.get(&format!("{path}/download/{format}"));
        assert!(
            refused.status == 400 && refused.text().contains("text, json, csv, csv-raw, archive"),
            "{}",
            refused.text()
        );
    }

    let open = |path: &str| {
        let mut request = format!("ws://{}{path}", web.address).into_client_request().expect("a request");
        request.headers_mut().insert("Sec-WebSocket-Protocol", admin.token().parse().expect("a value"));
        let stream = TcpStream::connect(web.address).expect("connects");
        client(request, stream).map(|(socket, _)| socket).ok()
    };
    let read = |socket: &mut tokio_tungstenite::tungstenite::WebSocket<TcpStream>| -> Value {
        serde_json::from_str(&socket.read().expect("answers").into_text().expect("text")).expect("JSON")
    };
    let id = path.rsplit('/').next().expect("an id");
    let mut socket = open(&format!("/api/ws/attach/{id}")).expect("a socket");
    socket.send(Message::text(json!({ "Subs": ["attach", "PONG"] }).to_string())).expect("sends");
    assert_eq!(read(&mut socket), json!({ "Resp": "ACK" }));
    let attached = read(&mut socket);
    assert_eq!((&attached["type"], &attached["data"]["Info"]["ItemCount"]), (&json!("attach"), &json!(10)));
    let count = json!({ "type": attached["data"]["Subproto"], "data": { "ID": 3 } });
    socket.send(Message::text(count.to_string())).expect("sends");
    assert_eq!(read(&mut socket)["data"]["EntryCount"], 10);
    let stats =
        json!({ "type": attached["data"]["Subproto"], "data": { "ID": 0x7f00_0003, "Stats": { "SetCount": 90 } } });
    socket.send(Message::text(stats.to_string())).expect("sends");
    let stats = read(&mut socket);
    let sum = |sets: &Value| -> u64 {
        let counts = sets.as_array().expect("a list").iter().map(|set| set["Stats"][0]["OutputCount"].as_u64());
        counts.sum::<Option<u64>>().expect("numbers")
    };
    assert_eq!(sum(&stats["data"]["Stats"]["Set"]), 10, "{stats}");
    assert!(open("/api/ws/attach/12").is_none(), "attaching to a missing search fails");

    let mut socket = open("/api/ws/stats").expect("a socket");
    socket.send(Message::text(json!({ "Subs": ["ping", "sysDesc"] }).to_string())).expect("sends");
    assert_eq!(read(&mut socket), json!({ "Resp": "ACK" }));
    let told = read(&mut socket);
    assert_eq!((&told["type"], &told["data"]["States"]["webserver"]), (&json!("ping"), &json!("OK")), "{told}");
}
