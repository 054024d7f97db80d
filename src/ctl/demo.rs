//! `demo`: the whole system on one machine, with real processes, real QUIC and real data, and a proof at the end.
//!
//! It keeps a model of its own of what the state must be. What it claims it has compared: with the model, and between
//! the members. A claim that does not hold ends it with an error.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::codec::admin::{OutboxItem, Request, Status};
use crate::codec::jsonl::{object_line, txn_line};
use crate::codec::message::Fate;
use crate::model::{Collection, Condition, EntryBody, Key, Op, Seq};

use super::args::Demo;
use super::cable::Cable;
use super::client::{Client, Piece, entries};
use super::demo_table::{self, Table};
use super::fleet::{Draft, Fleet, duration, quantile, submit_all, value_of, wait_for};
use super::{CtlError, CtlResult, datastore};

const PATIENCE: Duration = Duration::from_secs(90);
/// Changes that each replica makes at each stage.
const EDITS: usize = 100;
const DELETIONS: usize = 50;
const PROBES: usize = 40;

/// Runs the demonstration.
pub(super) async fn run(args: Demo) -> CtlResult {
    let table = demo_table::load(args.rows.max(1000))?;
    let mut fleet = Fleet::new(None, "demo")?;
    let result = tokio::select! {
        result = show(&mut fleet, table) => result,
        () = datastore::stop_signal() => Err(CtlError::new("interrupted; everything was stopped and removed")),
    };
    if result.is_ok() && args.keep {
        keep_running(&fleet).await;
    }
    result
}

async fn show(fleet: &mut Fleet, table: Table) -> CtlResult {
    let started = Instant::now();
    let mut stage = start(fleet, table).await?;
    stage.import(fleet).await?;
    stage.measure_propagation().await?;
    stage.change_both("web1 and web2 edit and delete, connected").await?;
    stage.cut_and_rejoin().await?;
    stage.prove(fleet).await?;
    say(&format!("\nAll of it held, in {}.", duration(started.elapsed())));
    Ok(())
}

async fn keep_running(fleet: &Fleet) {
    let dir = |name| fleet.dir(name).display().to_string();
    say("\nEverything keeps running until you interrupt it. In another terminal:");
    say(&format!("  gravwell-logctl --data-dir {} status", dir("datastore")));
    say(&format!("  gravwell-logctl --data-dir {} members", dir("datastore")));
    say(&format!("  gravwell-logctl --data-dir {} tail --follow", dir("datastore")));
    say(&format!("  gravwell-logctl --data-dir {} put notes hello --value '\"world\"'", dir("web1")));
    say(&format!("  gravwell-logctl --data-dir {} get notes hello", dir("web2")));
    datastore::stop_signal().await;
}

fn say(line: &str) {
    // A closed output must not end the demonstration before it has stopped what it started.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn claim(holds: bool, what: &str) -> CtlResult {
    if !holds {
        return Err(CtlError { message: format!("NOT PROVED: {what}"), exit: 3 });
    }
    say(&format!("  proved: {what}"));
    Ok(())
}

/// Members, what they must hold, and the cable that will be cut.
struct Stage {
    datastore: Client,
    web: [Client; 2],
    cable: Cable,
    source: String,
    collection: Collection,
    /// What the state must be.
    model: BTreeMap<(Collection, Key), Bytes>,
    /// Keys that are still untouched, for the changes to come.
    untouched: Vec<Key>,
    deletions: Vec<Key>,
}

async fn start(fleet: &mut Fleet, table: Table) -> Result<Stage, CtlError> {
    say("Starting a datastore and two replicas, each a process of its own, on loopback:");
    let datastore = fleet.start_datastore(&[]).await?;
    let far = fleet.listen().to_owned();
    say(&format!("  datastore listens on {far}/UDP"));
    let cable = Cable::lay(far.parse().map_err(CtlError::new)?).await.map_err(CtlError::new)?;
    fleet.enroll(&datastore, "web1").await?;
    fleet.enroll(&datastore, "web2").await?;
    let near = cable.address().to_string();
    let web = [fleet.start_replica("web1", &far).await?, fleet.start_replica("web2", &near).await?];
    for client in &web {
        wait_for(client, "a replica connects", PATIENCE, |status| status.connected).await?;
    }
    say("  web1 and web2 joined with one-time tokens and are connected (mutual TLS over QUIC)");
    let Table { source, collection, rows } = table;
    let untouched = rows.keys().cloned().collect();
    let model = rows.into_iter().map(|(key, value)| ((collection.clone(), key), value)).collect();
    Ok(Stage { datastore, web, cable, source, collection, model, untouched, deletions: Vec::new() })
}

impl Stage {
    fn all(&self) -> [(&'static str, &Client); 3] {
        [("datastore", &self.datastore), ("web1", &self.web[0]), ("web2", &self.web[1])]
    }

    async fn positions(&self) -> Result<String, CtlError> {
        let mut text = String::new();
        for (name, client) in self.all() {
            let Status { seq, outbox, .. } = client.item(&Request::Status).await?;
            text += &format!("  {name} at {seq}");
            if outbox > 0 {
                text += &format!(" (outbox {outbox})");
            }
        }
        Ok(text)
    }

    async fn import(&mut self, fleet: &mut Fleet) -> CtlResult {
        say(&format!("\nImporting {}, {} rows, through web1:", self.source, self.model.len()));
        let file = fleet.dir("table.jsonl");
        let mut lines = String::new();
        for ((collection, key), value) in &self.model {
            let op = Op::Put { collection: collection.clone(), key: key.clone(), value: value.clone() };
            lines += &txn_line(&[op], &[]);
            lines.push('\n');
        }
        std::fs::write(&file, lines).map_err(CtlError::new)?;
        let started = Instant::now();
        fleet.begin("web1", "import", &["import", &file.display().to_string()])?;
        while !fleet.has_ended("import")? {
            tokio::time::sleep(Duration::from_millis(250)).await;
            say(&self.positions().await?);
        }
        self.settle().await?;
        let took = started.elapsed();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = self.model.len() as f64 / took.as_secs_f64();
        say(&format!("  committed, durable and applied on all three in {} ({rate:.0} a second)", duration(took)));
        Ok(())
    }

    /// Waits until nothing is on its way any more.
    async fn settle(&self) -> Result<Seq, CtlError> {
        for client in &self.web {
            wait_for(client, "the outbox drains", PATIENCE, |status| status.connected && status.outbox == 0).await?;
        }
        let head = self.datastore.item::<Status>(&Request::Status).await?.head;
        for (name, client) in self.all() {
            wait_for(client, &format!("{name} reaches {head}"), PATIENCE, |status| status.seq >= head).await?;
        }
        Ok(head)
    }

    async fn measure_propagation(&mut self) -> CtlResult {
        say("\nPropagation, from handing a change to one replica to reading it at the other:");
        let probes = Collection::new("probes").map_err(CtlError::new)?;
        for (from, to) in [(0, 1), (1, 0)] {
            let key = Key::new(format!("from-web{}", from + 1)).map_err(CtlError::new)?;
            let mut measured = Vec::with_capacity(PROBES);
            for number in 0..PROBES {
                let value = Bytes::from(number.to_string());
                let op = Op::Put { collection: probes.clone(), key: key.clone(), value: value.clone() };
                let began = Instant::now();
                let (submitting, seen) = tokio::join!(
                    submit(&self.web[from], vec![op], Vec::new(), true),
                    see(&self.web[to], &probes, &key, &value, began)
                );
                submitting?;
                measured.push(seen?);
                self.model.insert((probes.clone(), key.clone()), value);
            }
            let (p50, p99) = (quantile(&mut measured, 0.5), quantile(&mut measured, 0.99));
            let (from, to) = (from + 1, to + 1);
            say(&format!("  web{from} -> datastore -> web{to}: p50 {}, p99 {}", duration(p50), duration(p99)));
        }
        Ok(())
    }

    /// Drafts of edits and deletions of rows that nobody has touched yet; the model takes them in.
    fn draft_changes(&mut self, by: &str) -> Vec<Draft> {
        let mut drafts = Vec::new();
        let total = EDITS + DELETIONS;
        // Spread over the table.
        let step = (self.untouched.len() / (total + 1)).max(1);
        let keys: Vec<Key> = self.untouched.iter().skip(step / 2).step_by(step).take(total).cloned().collect();
        self.untouched.retain(|key| keys.binary_search(key).is_err());
        for (number, key) in keys.into_iter().enumerate() {
            let (collection, at) = (self.collection.clone(), (self.collection.clone(), key.clone()));
            let op = if number % 3 == 2 && self.model.contains_key(&at) {
                self.model.remove(&at);
                self.deletions.push(key.clone());
                Op::Delete { collection, key }
            } else {
                let value = Bytes::from(serde_json::json!({ "corrected_by": by, "number": number }).to_string());
                self.model.insert(at, value.clone());
                Op::Put { collection, key, value }
            };
            drafts.push((vec![op], Vec::new()));
        }
        drafts
    }

    async fn change_both(&mut self, what: &str) -> CtlResult {
        let deleted_before = self.deletions.len();
        let drafts = [self.draft_changes("web1"), self.draft_changes("web2")];
        let wait = true;
        let (first, second) =
            tokio::join!(submit_all(&self.web[0], &drafts[0], wait), submit_all(&self.web[1], &drafts[1], wait));
        let fates = first?.into_iter().chain(second?).collect::<Vec<_>>();
        let committed = fates.iter().filter(|fate| matches!(fate, Fate::Committed(_) | Fate::Decided(_))).count();
        let deleted = self.deletions.len() - deleted_before;
        say(&format!("\n{what}:"));
        say(&format!("  {} edits and {deleted} deletions, {committed} committed", fates.len() - deleted));
        if committed != fates.len() {
            return Err(CtlError::new(format!("{} changes were not committed", fates.len() - committed)));
        }
        let head = self.settle().await?;
        say(&format!("  {} (head {head})", self.positions().await?.trim()));
        Ok(())
    }

    async fn cut_and_rejoin(&mut self) -> CtlResult {
        say("\nCutting web2 off: no datagram passes between it and the datastore any more.");
        self.cable.set_cut(true);
        let cut = Instant::now();
        let drafts = [self.draft_changes("web1"), self.draft_changes("web2 while cut off")];
        let offline = submit_all(&self.web[1], &drafts[1], false).await?;
        submit_all(&self.web[0], &drafts[0], true).await?;
        // Both write one object, and both want to create one that may exist only once.
        let names = Collection::new("names").map_err(CtlError::new)?;
        let shared = Key::new("both-write").map_err(CtlError::new)?;
        let unique = Key::new("only-once").map_err(CtlError::new)?;
        let absent = Condition::Absent { collection: names.clone(), key: unique.clone() };
        for (index, wait) in [(0, true), (1, false)] {
            let value = Bytes::from(format!("\"web{}\"", index + 1));
            let put = |key: &Key| Op::Put { collection: names.clone(), key: key.clone(), value: value.clone() };
            submit(&self.web[index], vec![put(&shared)], Vec::new(), wait).await?;
            submit(&self.web[index], vec![put(&unique)], vec![absent.clone()], wait).await?;
        }
        wait_for(&self.web[1], "web2 notices", PATIENCE, |status| !status.connected).await?;
        let status: Status = self.web[1].item(&Request::Status).await?;
        say(&format!(
            "  web2 noticed within {} and works on: {}",
            duration(cut.elapsed()),
            self.positions().await?.trim()
        ));
        claim(
            offline.iter().all(|fate| matches!(fate, Fate::Queued)) && status.outbox == offline.len() as u64 + 2,
            &format!("{} transactions of web2, deletions included, are durable in its outbox", status.outbox),
        )?;
        let own = value_of(&self.web[1], &names, &shared).await?;
        let others = value_of(&self.web[0], &names, &shared).await?;
        claim(
            own.as_deref() == Some(b"\"web2\"".as_slice()) && others.as_deref() == Some(b"\"web1\"".as_slice()),
            "each side reads its own writes meanwhile",
        )?;
        say("\nMending the cable:");
        self.cable.set_cut(false);
        let mended = Instant::now();
        self.settle().await?;
        say(&format!("  level again after {}: {}", duration(mended.elapsed()), self.positions().await?.trim()));
        // Without a condition the later sequence wins; with one, who came second was refused.
        self.model.insert((names.clone(), shared), Bytes::from_static(b"\"web2\""));
        self.model.insert((names, unique), Bytes::from_static(b"\"web1\""));
        Ok(())
    }

    async fn prove(&self, fleet: &Fleet) -> CtlResult {
        say("\nProof:");
        let mut positions = Vec::new();
        for (_, client) in self.all() {
            let Status { log_id, seq, digest, .. } = client.item(&Request::Status).await?;
            positions.push((log_id, seq, digest));
        }
        let (_, seq, digest) = positions[0];
        let what = format!("all three stand at sequence {seq} with state digest {digest}");
        claim(positions.iter().all(|position| *position == positions[0]), &what)?;

        let expected: String =
            self.model.iter().map(|((collection, key), value)| object_line(collection, key, value) + "\n").collect();
        let mut equal = true;
        for (name, _) in self.all() {
            equal &= fleet.call(name, &["export"])?.stdout == expected.as_bytes();
        }
        let what =
            format!("`export` of all three is byte-identical and is what was put in: {} objects", self.model.len());
        claim(equal, &what)?;

        let (deleted, rejected) = self.read_log().await?;
        let mut wanted = self.deletions.clone();
        wanted.sort();
        claim(deleted == wanted, &format!("`tail` shows each of the {} deletions as an event", wanted.len()))?;
        let outbox: Vec<OutboxItem> = self.web[1].items(&Request::Outbox).await?;
        let reason = outbox.iter().find_map(|item| match item {
            OutboxItem::Rejected(item) => Some(item.reason.clone()),
            OutboxItem::Pending(_) => None,
        });
        let what = format!("one conflict was rejected, and web2 knows why: {}", reason.as_deref().unwrap_or("-"));
        claim(rejected == 1 && outbox.len() == 1 && reason.is_some(), &what)?;
        fleet.call("datastore", &["verify"])?;
        claim(true, "`verify`: every checksum, the chain and the digests recomputed from the log")
    }

    /// Keys deleted according to the log, sorted, and the number of rejections.
    async fn read_log(&self) -> Result<(Vec<Key>, usize), CtlError> {
        let (mut deleted, mut rejected) = (Vec::new(), 0);
        let request = Request::Tail { from: Seq::ZERO, to: None, follow: false };
        self.datastore
            .each(&request, |piece| {
                let Piece::Frames(frames) = piece else { return Ok(()) };
                for entry in entries(&frames)? {
                    match entry.body {
                        EntryBody::Commit(txn) => deleted.extend(txn.ops.into_iter().filter_map(|op| match op {
                            Op::Delete { key, .. } => Some(key),
                            Op::Put { .. } => None,
                        })),
                        EntryBody::Reject { .. } => rejected += 1,
                        EntryBody::Unknown { .. } => {}
                    }
                }
                Ok(())
            })
            .await?;
        deleted.sort();
        Ok((deleted, rejected))
    }
}

async fn submit(client: &Client, ops: Vec<Op>, conditions: Vec<Condition>, wait: bool) -> CtlResult {
    let fates = submit_all(client, &[(ops, conditions)], wait).await?;
    match fates.first() {
        Some(Fate::Rejected(_, reason)) => Err(CtlError::new(format!("rejected: {reason}"))),
        Some(Fate::Deferred(refused)) => Err(CtlError::new(&refused.message)),
        _ => Ok(()),
    }
}

/// Reads until `value` is there; the time since `began`.
async fn see(
    client: &Client,
    collection: &Collection,
    key: &Key,
    value: &Bytes,
    began: Instant,
) -> Result<Duration, CtlError> {
    while began.elapsed() < PATIENCE {
        if value_of(client, collection, key).await?.as_ref() == Some(value) {
            return Ok(began.elapsed());
        }
        tokio::task::yield_now().await;
    }
    Err(CtlError::new(format!("a change of {collection}/{key} did not arrive")))
}
