//! `demo`: the whole system on one machine with real processes, QUIC and data, and a proof at the end.
//!
//! All changes are made through the REST API of two webservers, as users and programs do. The demonstration keeps its
//! own model of the expected contents. Every claim is checked against the model and between the members; a claim that
//! does not hold ends the demonstration with an error.

mod session;
mod table;
mod udp_proxy;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use gravwell_model::codec::admin::{Request, Status};
use gravwell_model::{EntryBody, Op, Seq};
use gravwell_objects::bootstrap::{NAME, WELL_KNOWN};
use gravwell_objects::users::FIRST;

use crate::client::rest::Response;
use crate::client::{Client, Piece, entries};
use crate::error::{CtlError, CtlResult};
use crate::process::fleet::{Fleet, duration, quantile, wait_for};
use crate::process::signals::stop_signal;
use session::Session;
use table::Table;
use udp_proxy::UdpProxy;

/// Run a datastore and two webservers locally and test a disconnect.
#[derive(Debug, clap::Args)]
pub struct Demo {
    /// Keep everything running until interrupted, and print how to inspect it.
    #[arg(long)]
    pub keep: bool,
    /// Number of table rows to use.
    #[arg(long, default_value_t = 2_000, value_name = "N")]
    pub rows: usize,
}

const PATIENCE: Duration = Duration::from_secs(90);
/// Password that replaces the well-known one.
const PASSWORD: &str = "two-webservers-at-play";
/// Number of connections that create dashboards concurrently.
const AT_ONCE: usize = 16;
/// Number of edits and deletions that each webserver makes per stage.
const EDITS: usize = 100;
const DELETIONS: usize = 50;
const PROBES: usize = 40;
/// Number of changes of the disconnected webserver that conflict with the other one.
const REJECTIONS: usize = 2;
/// Number of rows changed by all stages, and one dashboard that both webservers change.
const ROWS_MIN: usize = 4 * (EDITS + DELETIONS) + 1;

/// Runs the demonstration.
pub(super) async fn run(args: Demo) -> CtlResult {
    let table = table::load(args.rows.max(ROWS_MIN))?;
    let mut fleet = Fleet::new(None, "demo")?;
    let result = tokio::select! {
        result = show(&mut fleet, table) => result,
        () = stop_signal() => Err(CtlError::new("interrupted; everything was stopped and removed")),
    };
    // The stage owns the UDP link proxy of the second webserver, which must live as long as the processes.
    let stage = result?;
    if args.keep {
        keep_running(&fleet, stage.web.each_ref().map(|web| web.rest.address())).await;
    }
    Ok(())
}

async fn show(fleet: &mut Fleet, table: Table) -> Result<Stage, CtlError> {
    let started = Instant::now();
    let mut stage = start(fleet, table).await?;
    stage.import().await?;
    stage.measure_propagation().await?;
    stage.change_both().await?;
    stage.cut_and_rejoin().await?;
    stage.prove(fleet).await?;
    say(&format!("\nAll checks passed in {}.", duration(started.elapsed())));
    Ok(stage)
}

async fn keep_running(fleet: &Fleet, [first, second]: [SocketAddr; 2]) {
    let dir = |name| fleet.dir(name).display().to_string();
    say("\nEverything keeps running until interrupted. In a browser, best in two windows next to each other:");
    say(&format!("  http://{first}  and  http://{second}   user {NAME}, password {PASSWORD}"));
    say("In another terminal:");
    say(&format!("  curl -d 'User={NAME}&Pass={PASSWORD}' http://{first}/api/login"));
    say(&format!("  gravwell-logctl --data-dir {} status", dir("datastore")));
    say(&format!("  gravwell-logctl --data-dir {} members", dir("datastore")));
    say(&format!("  gravwell-logctl --data-dir {} tail --follow", dir("datastore")));
    stop_signal().await;
}

fn say(line: &str) {
    // A closed output must not end the demonstration before it has stopped its processes.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn claim(holds: bool, what: &str) -> CtlResult {
    if !holds {
        return Err(CtlError { message: format!("FAILED: {what}"), exit: 3 });
    }
    say(&format!("  passed: {what}"));
    Ok(())
}

/// A webserver with its administration client and its REST client.
struct Web {
    name: &'static str,
    admin: Client,
    rest: Session,
}

/// Members, the expected contents, and the UDP link that is disconnected later.
struct Stage {
    datastore: Client,
    web: [Web; 2],
    cable: UdpProxy,
    table: Table,
    /// Expected dashboards by number: name, description, contents.
    model: BTreeMap<u64, (String, String, Value)>,
    /// Dashboards that were not changed yet.
    untouched: Vec<u64>,
    deleted: BTreeSet<u64>,
}

fn free_address() -> Result<SocketAddr, CtlError> {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).map_err(CtlError::new)
}

async fn start_webserver(
    fleet: &mut Fleet,
    name: &'static str,
    datastore: &str,
) -> Result<(Client, SocketAddr), CtlError> {
    let address = free_address()?;
    let admin = fleet.start_webserver(name, &address.to_string(), datastore).await?;
    Ok((admin, address))
}

/// Logs in for the first time and changes the password, as required.
async fn first_login(name: &'static str, (admin, address): (Client, SocketAddr)) -> Result<Web, CtlError> {
    let started = Instant::now();
    let rest = loop {
        match Session::log_in(name, address, NAME, WELL_KNOWN).await {
            Ok(rest) => break rest,
            Err(error) if started.elapsed() > PATIENCE => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let change = json!({ "OrigPass": WELL_KNOWN, "NewPass": PASSWORD });
    rest.call(Method::PUT, &format!("/api/users/{FIRST}/pwd"), &change).await?;
    Ok(Web { name, admin, rest })
}

/// Logs in at another webserver once it has received the first login and the new password.
async fn login_after(first: &Web, name: &'static str, (admin, address): (Client, SocketAddr)) -> Result<Web, CtlError> {
    let started = Instant::now();
    while let Err(error) = first.rest.again(name, address)?.get("/api/groups").await {
        if started.elapsed() > PATIENCE {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(Web { name, admin, rest: Session::log_in(name, address, NAME, PASSWORD).await? })
}

async fn start(fleet: &mut Fleet, table: Table) -> Result<Stage, CtlError> {
    say("Starting a datastore and two webservers as separate processes on loopback:");
    let datastore = fleet.start_datastore(&[]).await?;
    let far = fleet.listen().to_owned();
    say(&format!("  datastore listens on {far}/UDP"));
    let cable = UdpProxy::lay(far.parse().map_err(CtlError::new)?).await.map_err(CtlError::new)?;
    fleet.enroll(&datastore, "web1").await?;
    fleet.enroll(&datastore, "web2").await?;
    let near = cable.address().to_string();
    let first = first_login("web1", start_webserver(fleet, "web1", &far).await?).await?;
    let second = login_after(&first, "web2", start_webserver(fleet, "web2", &near).await?).await?;
    for web in [&first, &second] {
        say(&format!("  {}  http://{}  user {NAME}, password {PASSWORD}", web.name, web.rest.address()));
    }
    say("  both joined with one-time tokens and are connected (mutual TLS over QUIC)");
    let who = first.rest.again("web2", second.rest.address())?.get("/api/info/whoami").await?;
    claim(who["User"] == NAME, "a session created at web1 is valid at web2")?;
    let (model, untouched, deleted) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
    Ok(Stage { datastore, web: [first, second], cable, table, model, untouched, deleted })
}

/// Creates one dashboard and returns its number.
async fn create(rest: &Session, name: &str, data: &Value) -> Result<u64, CtlError> {
    let made = rest.post("/api/dashboards", &json!({ "Name": name, "Data": data })).await?;
    made.as_u64().ok_or_else(|| CtlError::new(format!("invalid dashboard ID {made}")))
}

impl Stage {
    async fn positions(&self) -> Result<String, CtlError> {
        let mut text = String::new();
        for (name, client) in
            [("datastore", &self.datastore), ("web1", &self.web[0].admin), ("web2", &self.web[1].admin)]
        {
            let Status { seq, outbox, .. } = client.item(&Request::Status).await?;
            text += &format!("  {name} at {seq}");
            if outbox > 0 {
                text += &format!(" (outbox {outbox})");
            }
        }
        Ok(text.trim().to_owned())
    }

    async fn import(&mut self) -> CtlResult {
        say(&format!("\nStoring {} as a resource at web1, and its rows as dashboards:", self.table.source));
        let mut contents = Vec::new();
        for (key, value) in &self.table.rows {
            contents.extend(format!("{key},").into_bytes());
            contents.extend(value);
            contents.push(b'\n');
        }
        let (one, other) = (&self.web[0].rest, &self.web[1].rest);
        let made = one.post("/api/resources", &json!({ "ResourceName": self.table.collection })).await?;
        let guid = made["GUID"].as_str().unwrap_or_default().to_owned();
        let stored = one.upload(&guid, contents.clone()).await?;
        let path = format!("/api/resources/{guid}/raw");
        wait_until("the contents arrive at web2", async || {
            let there = other.ask(Method::GET, &path, &Value::Null).await?;
            Ok(there.status == StatusCode::OK && there.body == contents)
        })
        .await?;
        let (size, hash) = (&stored["Size"], stored["Hash"].as_str().unwrap_or_default().to_owned());
        claim(*size == contents.len(), &format!("web2 returns the {size} bytes (MD5 {hash}) uploaded to web1"))?;

        let started = Instant::now();
        let rows: Vec<(String, Value)> = self
            .table
            .rows
            .iter()
            .map(|(key, value)| (key.to_string(), serde_json::from_slice(value).unwrap_or_default()))
            .collect();
        let mut makers = tokio::task::JoinSet::new();
        for part in rows.chunks(rows.len().div_ceil(AT_ONCE)) {
            let (rest, part) = (self.web[0].rest.again("web1", self.web[0].rest.address())?, part.to_vec());
            makers.spawn(async move {
                let mut made = Vec::with_capacity(part.len());
                for (name, data) in part {
                    made.push((create(&rest, &name, &data).await?, (name, String::new(), data)));
                }
                Ok::<_, CtlError>(made)
            });
        }
        while let Some(made) = makers.join_next().await {
            self.model.extend(made.map_err(CtlError::new)??);
        }
        self.settle().await?;
        self.untouched = self.model.keys().copied().collect();
        #[expect(clippy::cast_precision_loss, reason = "a rate for display")]
        let rate = self.model.len() as f64 / started.elapsed().as_secs_f64();
        let took = duration(started.elapsed());
        say(&format!("  {} dashboards, each durable at the datastore, in {took} ({rate:.0} a second)", rows.len()));
        Ok(())
    }

    /// Waits until every outbox is empty and every member has reached the head.
    async fn settle(&self) -> Result<Seq, CtlError> {
        for web in &self.web {
            let is_level = |status: &Status| status.connected && status.outbox == 0;
            wait_for(&web.admin, "the outbox drains", PATIENCE, is_level).await?;
        }
        let head = self.datastore.item::<Status>(&Request::Status).await?.head;
        // The datastore's state follows its log with a delay, too.
        let all = [("the datastore", &self.datastore)].into_iter();
        for (name, client) in all.chain(self.web.iter().map(|web| (web.name, &web.admin))) {
            wait_for(client, &format!("{name} reaches {head}"), PATIENCE, |status| status.seq >= head).await?;
        }
        Ok(head)
    }

    async fn measure_propagation(&mut self) -> CtlResult {
        say("\nPropagation, from sending a change to one webserver to reading it at the other:");
        let id = create(&self.web[0].rest, "probe", &json!({})).await?;
        self.settle().await?;
        let path = format!("/api/dashboards/{id}");
        for (from, to) in [(0, 1), (1, 0)] {
            let reader = self.web[to].rest.again("reader", self.web[to].rest.address())?;
            let mut measured = Vec::with_capacity(PROBES);
            for number in 0..PROBES {
                let text = format!("{from} {number}");
                let change = json!({ "Description": text });
                let began = Instant::now();
                let (written, seen) = tokio::join!(
                    self.web[from].rest.call(Method::PUT, &path, &change),
                    see(&reader, &path, &text, began)
                );
                written?;
                measured.push(seen?);
                self.model.insert(id, ("probe".into(), text, json!({})));
            }
            let (p50, p99) = (quantile(&mut measured, 0.5), quantile(&mut measured, 0.99));
            let (from, to) = (self.web[from].name, self.web[to].name);
            say(&format!("  {from} -> datastore -> {to}: p50 {}, p99 {}", duration(p50), duration(p99)));
        }
        Ok(())
    }

    /// Returns numbers of dashboards that were not changed yet: to edit, and to delete.
    fn choose(&mut self) -> (Vec<u64>, Vec<u64>) {
        let mut chosen = self.untouched.split_off(self.untouched.len().saturating_sub(EDITS + DELETIONS));
        let deletions = chosen.split_off(chosen.len().saturating_sub(DELETIONS));
        (chosen, deletions)
    }

    /// Edits and deletes dashboards at one webserver. Returns the number of pending changes according to its
    /// last response.
    async fn change(&mut self, at: usize, by: &str) -> Result<u64, CtlError> {
        let (edits, deletions) = self.choose();
        let rest = &self.web[at].rest;
        let mut undecided = 0;
        for id in edits {
            let path = format!("/api/dashboards/{id}");
            let answer = rest.call(Method::PUT, &path, &json!({ "Description": by })).await?;
            undecided = undecided_of(&answer);
            if let Some((_, description, _)) = self.model.get_mut(&id) {
                by.clone_into(description);
            }
        }
        for id in deletions {
            let answer = rest.call(Method::DELETE, &format!("/api/dashboards/{id}"), &Value::Null).await?;
            undecided = undecided_of(&answer);
            self.model.remove(&id);
            self.deleted.insert(id);
        }
        Ok(undecided)
    }

    async fn change_both(&mut self) -> CtlResult {
        say(&format!("\nweb1 and web2 each edit {EDITS} dashboards and delete {DELETIONS}, connected:"));
        self.change(0, "changed at web1").await?;
        self.change(1, "changed at web2").await?;
        let head = self.settle().await?;
        say(&format!("  {} (head {head})", self.positions().await?));
        Ok(())
    }

    async fn cut_and_rejoin(&mut self) -> CtlResult {
        say("\nDisconnecting web2: no datagrams pass between it and the datastore.");
        self.cable.set_cut(true);
        let cut = Instant::now();
        wait_for(&self.web[1].admin, "web2 notices", PATIENCE, |status| !status.connected).await?;
        say(&format!("  web2 detected this within {} and continues serving", duration(cut.elapsed())));
        self.change(0, "changed at web1 while web2 is offline").await?;
        let undecided = self.change(1, "changed at web2 while offline").await?;
        // Both change one dashboard and create a user of the same name; web2 creates and deletes another user.
        let both = self.untouched.pop().ok_or_else(|| CtlError::new("no dashboard is left"))?;
        for web in &self.web {
            let change = json!({ "Description": web.name });
            web.rest.call(Method::PUT, &format!("/api/dashboards/{both}"), &change).await?;
            web.rest.post("/api/users", &json!({ "User": "carol", "Pass": "carol's password" })).await?;
        }
        let dora = self.web[1].rest.post("/api/users", &json!({ "User": "dora", "Pass": "dora's password" })).await?;
        self.web[1].rest.call(Method::DELETE, &format!("/api/users/{dora}"), &Value::Null).await?;
        let changes = (EDITS + DELETIONS) as u64;
        let what = format!("{undecided} changes of web2, including deletions, are durable there and pending");
        claim(undecided == changes, &what)?;
        let mut read = Vec::new();
        for web in &self.web {
            read.push(web.rest.get(&format!("/api/dashboards/{both}")).await?["Description"].clone());
        }
        claim(read == ["web1", "web2"], "each side reads its own writes while disconnected")?;
        say(&format!("  {}\n\nReconnecting web2:", self.positions().await?));
        self.cable.set_cut(false);
        let mended = Instant::now();
        self.settle().await?;
        // A webserver that receives a rejection writes a notification, which is a change to be committed in turn.
        let rest = &self.web[1].rest;
        wait_until("the notifications of both rejections arrive", async || {
            let notifications = rest.get("/api/notifications").await?;
            Ok(notifications.as_object().is_some_and(|all| all.len() >= REJECTIONS))
        })
        .await?;
        self.settle().await?;
        say(&format!("  in sync again after {}: {}", duration(mended.elapsed()), self.positions().await?));
        // Of two conflicting changes, the one that was committed first wins.
        if let Some((_, description, _)) = self.model.get_mut(&both) {
            "web1".clone_into(description);
        }
        Ok(())
    }

    async fn prove(&mut self, fleet: &Fleet) -> CtlResult {
        say("\nChecks:");
        let mut positions = Vec::new();
        for client in [&self.datastore, &self.web[0].admin, &self.web[1].admin] {
            let Status { log_id, seq, digest, .. } = client.item(&Request::Status).await?;
            positions.push((log_id, seq, digest));
        }
        let (_, seq, digest) = positions[0];
        let what = format!("all three are at sequence {seq} with state digest {digest}");
        claim(positions.iter().all(|position| *position == positions[0]), &what)?;
        for web in &self.web {
            let mut found = BTreeMap::new();
            for one in web.rest.get("/api/dashboards?admin=true").await?.as_array().into_iter().flatten() {
                let text = |name: &str| one[name].as_str().unwrap_or_default().to_owned();
                found.insert(
                    one["ID"].as_u64().unwrap_or_default(),
                    (text("Name"), text("Description"), one["Data"].clone()),
                );
            }
            let what = format!("{} lists exactly the {} expected dashboards", web.name, self.model.len());
            claim(found == self.model, &what)?;
        }
        let mut absent = 0;
        for web in &self.web {
            for id in &self.deleted {
                let path = format!("/api/dashboards/{id}");
                let answer = web.rest.ask(Method::GET, &path, &Value::Null).await?;
                absent += usize::from(answer.status == StatusCode::NOT_FOUND);
            }
        }
        let deleted = self.deleted.len();
        claim(
            absent == 2 * deleted,
            &format!("none of the {deleted} deleted dashboards reappeared on either webserver"),
        )?;
        let events = self.deletions_in_log().await?;
        claim(events == self.deleted, &format!("the log shows each of the {deleted} deletions as an event"))?;
        self.prove_conflict().await?;
        let export = fleet.call("datastore", &["export"])?.stdout;
        let mut is_equal = !export.is_empty();
        for web in &self.web {
            is_equal &= fleet.call(web.name, &["export"])?.stdout == export;
        }
        claim(is_equal, &format!("`export` of all three is byte-identical: {} bytes", export.len()))?;
        fleet.call("datastore", &["verify"])?;
        claim(true, "`verify`: every checksum, the chain and the digests recomputed from the log")
    }

    async fn prove_conflict(&mut self) -> CtlResult {
        let mut names = Vec::new();
        for web in &self.web {
            let users = web.rest.get("/api/users").await?;
            let users = users.as_array().into_iter().flatten();
            names.push(users.map(|user| user["User"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>());
        }
        claim(names == [["admin", "carol"], ["admin", "carol"]], "there is one user carol, and no user dora")?;
        let refused = self.web[1].rest.get("/api/rejections").await?;
        let refused = refused.as_array().map(Vec::as_slice).unwrap_or_default();
        let text = |one: &Value, name: &str| one[name].as_str().unwrap_or_default().to_owned();
        let user = refused.iter().find(|one| one["What"] == "create user carol");
        let dashboard = refused.iter().find(|one| text(one, "What").contains("dashboard"));
        let (Some(user), Some(dashboard), REJECTIONS) = (user, dashboard, refused.len()) else {
            return claim(false, &format!("web2 lists the two conflicting changes: {refused:?}"));
        };
        claim(true, &format!("web2 reports why its own user carol was rejected: {}", text(user, "Reason")))?;
        claim(
            true,
            &format!(
                "web2 reports why its change of the dashboard that web1 changed was rejected: {}",
                text(dashboard, "Reason")
            ),
        )?;
        let rest = &self.web[1].rest;
        claim(
            rest.get("/api/notifications").await?.to_string().contains("create user carol"),
            "the author has a notification",
        )
    }

    /// Returns the numbers of the dashboards that are deleted according to the log.
    async fn deletions_in_log(&self) -> Result<BTreeSet<u64>, CtlError> {
        let mut deleted = BTreeSet::new();
        let request = Request::Tail { from: Seq::ZERO, to: None, follow: false };
        self.datastore
            .each(&request, |piece| {
                let Piece::Frames(frames) = piece else { return Ok(()) };
                for entry in entries(&frames)? {
                    let EntryBody::Commit(txn) = entry.body else { continue };
                    deleted.extend(txn.ops.into_iter().filter_map(|op| match op {
                        Op::Delete { collection, key } if collection.as_str() == "dashboards" => {
                            key.as_str().parse::<u64>().ok()
                        }
                        _ => None,
                    }));
                }
                Ok(())
            })
            .await?;
        Ok(deleted)
    }
}

fn undecided_of(answer: &Response) -> u64 {
    let header = answer.headers.get("gravwell-undecided").and_then(|value| value.to_str().ok());
    header.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// Reads until the dashboard has the description and returns the time since `began`.
async fn see(rest: &Session, path: &str, description: &str, began: Instant) -> Result<Duration, CtlError> {
    while began.elapsed() < PATIENCE {
        if rest.get(path).await?["Description"] == description {
            return Ok(began.elapsed());
        }
    }
    Err(CtlError::new(format!("a change of {path} did not propagate")))
}

async fn wait_until(what: &str, mut is_so: impl AsyncFnMut() -> Result<bool, CtlError>) -> CtlResult {
    let started = Instant::now();
    while !is_so().await? {
        if started.elapsed() > PATIENCE {
            return Err(CtlError::new(format!("timed out after {PATIENCE:?}: {what}")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
