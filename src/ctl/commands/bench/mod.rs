//! `bench`: measures this product on this machine, together with the raw disk and network, in one run.
//!
//! The datastore is a separate process. Writers and subscribers run in this process and connect to it over QUIC.

mod push;
mod raw;
mod resource;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;

use gravwell_model::codec::admin::{Request, Status};
use gravwell_replica::service::MemberConnector;
use gravwell_replica::{Change, Draft, Replica, ReplicaOptions};

use crate::client::Client;
use crate::client::output::{Output, size};
use crate::error::{CtlError, CtlResult};
use crate::process::fleet::{Fleet, duration, quantile, wait_for};
use crate::process::signals::stop_signal;
use push::Pusher;

/// Measure durable pushes, propagation, catch-up and import on this machine.
///
/// Also measures the raw disk and network for comparison.
#[derive(Debug, clap::Args)]
pub struct Bench {
    /// Number of small transactions to import.
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    pub ops: u64,
    /// Also measure an idle datastore with this many connected replicas.
    #[arg(long, value_name = "N")]
    pub idle: Option<usize>,
    /// Only measure the transfer of this many MiB between members via the datastore.
    #[arg(long, value_name = "MIB")]
    pub resource_mb: Option<u64>,
    /// Directory for the data, to measure its disk [default: a temporary directory].
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

const PATIENCE: Duration = Duration::from_secs(600);
const RAW_COUNT: usize = 2000;
const TURNS: usize = 8;
const PUSH_COUNT: usize = 2000;
const PIPELINED_COUNT: usize = 50_000;
/// Observation time for an idle process.
const IDLE_WATCH: Duration = Duration::from_secs(20);

/// Median and 99th percentile of measurements, in microseconds.
#[derive(Clone, Copy, Default, Serialize)]
pub(super) struct Spread {
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
}

impl Spread {
    pub(super) fn of(mut measured: Vec<Duration>) -> Spread {
        let us = |duration: Duration| (duration.as_secs_f64() * 1e7).round() / 10.0;
        Spread { p50_us: us(quantile(&mut measured, 0.5)), p99_us: us(quantile(&mut measured, 0.99)) }
    }

    pub(super) fn text(self) -> String {
        let text = |us: f64| duration(Duration::from_secs_f64(us / 1e6));
        format!("p50 {}, p99 {}", text(self.p50_us), text(self.p99_us))
    }
}

#[derive(Default, Serialize)]
struct Idle {
    replicas: usize,
    cpu_percent: f64,
    rss_bytes: u64,
}

/// All measurements; serialized as the output of `--json`.
#[derive(Default, Serialize)]
struct Results {
    cpus: usize,
    /// Measured while the processors sleep between writes.
    raw_fdatasync_asleep: Spread,
    /// Measured while one processor is kept awake.
    raw_fdatasync: Spread,
    raw_quic_round_trip: Spread,
    /// One transaction at a time over QUIC, until it is durable at the datastore.
    push: Spread,
    /// `push` p50 over the sum of both raw p50.
    push_over_raw: f64,
    pipelined_per_s: f64,
    /// From the start of a push until the state of a subscriber contains it.
    propagation: Spread,
    /// Write to a replica, until it is durable in the outbox.
    replica_durable: Spread,
    /// Write to a replica, until it is durable at the datastore.
    replica_acknowledged: Spread,
    import_ops: u64,
    import_s: f64,
    import_per_s: f64,
    catch_up_ops: u64,
    catch_up_s: f64,
    catch_up_per_s: f64,
    open_s: f64,
    log_bytes_per_op: f64,
    state_bytes_per_op: f64,
    rss_bytes: u64,
    rss_peak_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle: Option<Idle>,
}

/// Runs the measurements and prints them.
pub(super) async fn run(json: bool, args: Bench) -> CtlResult {
    let parent = args.dir.as_deref();
    if let Some(megabytes) = args.resource_mb {
        return tokio::select! {
            measured = resource::run(json, parent, megabytes.max(1)) => measured,
            () = stop_signal() => Err(CtlError::new("interrupted; everything was stopped and removed")),
        };
    }
    let results = tokio::select! {
        results = measure(parent, &args) => results?,
        () = stop_signal() => return Err(CtlError::new("interrupted; everything was stopped and removed")),
    };
    print(json, &results)
}

pub(super) fn tell(what: &str) {
    let _ = writeln!(std::io::stderr(), "measuring {what} …");
}

#[expect(clippy::cast_precision_loss, reason = "rates and shares for display")]
fn per_second(count: u64, took: Duration) -> f64 {
    (count as f64 / took.as_secs_f64()).round()
}

async fn measure(parent: Option<&Path>, args: &Bench) -> Result<Results, CtlError> {
    let mut fleet = Fleet::new(parent, "bench")?;
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut results = Results { cpus, ..Results::default() };
    tell("raw network");
    results.raw_quic_round_trip = Spread::of(raw::quic_round_trips(&fleet.dir(""), RAW_COUNT).await?);
    if let Some(replicas) = args.idle {
        let mut idle = Fleet::new(parent, "bench-idle")?;
        results.idle = Some(measure_idle(&mut idle, replicas).await?);
    }
    // Keep all history, so that a new replica reads the log instead of a snapshot.
    let history = u64::MAX.to_string();
    let client = fleet.start_datastore(&["--history-ops", &history]).await?;
    measure_pushes(&fleet, &client, &mut results).await?;
    measure_import(&mut fleet, &client, args.ops, &mut results).await?;
    measure_catch_up(&fleet, &client, &mut results).await?;
    tell("time to open");
    fleet.stop("datastore").await?;
    let began = Instant::now();
    fleet.start_datastore(&["--history-ops", &history]).await?;
    results.open_s = began.elapsed().as_secs_f64();
    Ok(results)
}

fn open(dir: &Path, address: &str, cache_bytes: u64) -> Result<Replica, CtlError> {
    let replica = Replica::open(dir, ReplicaOptions { cache_bytes, ..ReplicaOptions::default() });
    let replica = replica.map_err(CtlError::new)?;
    replica.connect(Arc::new(MemberConnector::new(dir, vec![address.to_owned()])));
    Ok(replica)
}

async fn level(replica: &Replica, client: &Client) -> Result<Status, CtlError> {
    let head = client.item::<Status>(&Request::Status).await?.head;
    if !replica.barrier(head, PATIENCE).await {
        return Err(CtlError::new(format!("a replica did not reach {head}: {}", replica.trouble())));
    }
    while !replica.status().connected {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(replica.status())
}

async fn measure_pushes(fleet: &Fleet, client: &Client, results: &mut Results) -> CtlResult {
    tell("durable pushes and propagation");
    for name in ["pusher", "writer", "reader"] {
        fleet.enroll(client, name).await?;
    }
    let address = fleet.listen();
    let mut pusher = Pusher::connect(&fleet.dir("pusher"), address).await?;
    for _ in 0..PUSH_COUNT / 10 {
        pusher.push().await?;
    }
    results.raw_fdatasync_asleep = Spread::of(raw::fdatasync(&fleet.dir(""), RAW_COUNT / TURNS)?);
    let (mut measured, mut raw) = (Vec::with_capacity(PUSH_COUNT), Vec::with_capacity(RAW_COUNT));
    // Alternate between both, because disk performance varies from one second to the next.
    for _ in 0..TURNS {
        let awake = raw::Awake::start();
        raw.extend(raw::fdatasync(&fleet.dir(""), RAW_COUNT / TURNS)?);
        drop(awake);
        for _ in 0..PUSH_COUNT / TURNS {
            measured.push(pusher.push().await?.1);
        }
    }
    results.raw_fdatasync = Spread::of(raw);
    results.push = Spread::of(measured);
    let raw = results.raw_fdatasync.p50_us + results.raw_quic_round_trip.p50_us;
    results.push_over_raw = (results.push.p50_us / raw * 100.0).round() / 100.0;
    let took = pusher.push_many(PIPELINED_COUNT).await?;
    results.pipelined_per_s = per_second(PIPELINED_COUNT as u64, took);

    let reader = open(&fleet.dir("reader"), address, 16 << 20)?;
    level(&reader, client).await?;
    results.propagation = Spread::of(propagation(&mut pusher, &reader).await?);
    let writer = open(&fleet.dir("writer"), address, 16 << 20)?;
    level(&writer, client).await?;
    (results.replica_durable, results.replica_acknowledged) = through_replica(&writer).await?;
    writer.close().await;
    reader.close().await;
    Ok(())
}

async fn propagation(pusher: &mut Pusher, reader: &Replica) -> Result<Vec<Duration>, CtlError> {
    let mut measured = Vec::with_capacity(PUSH_COUNT);
    let mut changes = reader.watch();
    for _ in 0..PUSH_COUNT {
        let began = Instant::now();
        // No other client writes, so the next change is the pushed one.
        let seeing = async {
            loop {
                match changes.recv().await {
                    Ok(Change::Put { seq, .. }) => return Ok((seq, began.elapsed())),
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return Err(CtlError::new("the replica was closed")),
                }
            }
        };
        let (pushed, seen) = tokio::join!(pusher.push(), tokio::time::timeout(PATIENCE, seeing));
        let ((pushed, _), (seen, took)) = (pushed?, seen.map_err(CtlError::new)??);
        if pushed != seen {
            return Err(CtlError::new(format!("pushed {pushed}, but received {seen}")));
        }
        measured.push(took);
    }
    Ok(measured)
}

async fn through_replica(writer: &Replica) -> Result<(Spread, Spread), CtlError> {
    let (mut durable, mut acknowledged) = (Vec::new(), Vec::new());
    let collection = gravwell_model::Collection::new("bench").map_err(CtlError::new)?;
    for number in 0..PUSH_COUNT / 4 {
        let key = gravwell_model::Key::new(format!("written-{number}")).map_err(CtlError::new)?;
        let value = vec![b'1'; raw::PAYLOAD_BYTES - 100].into();
        let op = gravwell_model::Op::Put { collection: collection.clone(), key, value };
        let began = Instant::now();
        let mut receipt = writer.submit(Draft { ops: vec![op], ..Draft::default() }).await.map_err(CtlError::new)?;
        durable.push(began.elapsed());
        receipt.decided(Duration::MAX).await;
        acknowledged.push(began.elapsed());
    }
    Ok((Spread::of(durable), Spread::of(acknowledged)))
}

async fn measure_import(fleet: &mut Fleet, client: &Client, ops: u64, results: &mut Results) -> CtlResult {
    tell(&format!("import of {ops} small transactions"));
    let file = fleet.dir("import.jsonl");
    let written = std::fs::File::create(&file).and_then(|file| {
        let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
        for number in 0..ops {
            writeln!(
                out,
                r#"{{"ops":[{{"put":{{"collection":"import","key":"row-{number:08}","value":{{"number":{number},"text":"a small value"}}}}}}]}}"#
            )?;
        }
        out.flush()
    });
    written.map_err(CtlError::new)?;
    let before: Status = client.item(&Request::Status).await?;
    let state_before = raw::disk_bytes(&fleet.dir("datastore").join("state"));
    let began = Instant::now();
    fleet.begin("datastore", "import", &["import", &file.display().to_string()])?;
    while !fleet.has_ended("import")? {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let took = began.elapsed();
    let _ = std::fs::remove_file(&file);
    let wanted = before.head.0 + ops;
    let after = wait_for(client, "the import is applied", PATIENCE, |status| status.seq.0 >= wanted).await?;
    (results.import_ops, results.import_s) = (ops, took.as_secs_f64());
    results.import_per_s = per_second(ops, took);
    let per_op = |bytes: u64| per_second(bytes * 10, Duration::from_secs(ops.max(1))) / 10.0;
    results.log_bytes_per_op = per_op(after.log_bytes.saturating_sub(before.log_bytes));
    let state = raw::disk_bytes(&fleet.dir("datastore").join("state"));
    results.state_bytes_per_op = per_op(state.saturating_sub(state_before));
    if let Some(pid) = fleet.pid("datastore") {
        (results.rss_bytes, results.rss_peak_bytes) = raw::memory(pid);
    }
    Ok(())
}

async fn measure_catch_up(fleet: &Fleet, client: &Client, results: &mut Results) -> CtlResult {
    tell("catch-up of a fresh replica");
    fleet.enroll(client, "fresh").await?;
    let began = Instant::now();
    let replica = open(&fleet.dir("fresh"), fleet.listen(), 32 << 20)?;
    let status = level(&replica, client).await?;
    let took = began.elapsed();
    (results.catch_up_ops, results.catch_up_s) = (status.seq.0, took.as_secs_f64());
    results.catch_up_per_s = per_second(status.seq.0, took);
    replica.close().await;
    Ok(())
}

async fn measure_idle(fleet: &mut Fleet, count: usize) -> Result<Idle, CtlError> {
    tell(&format!("idle datastore with {count} connected replicas"));
    let client = fleet.start_datastore(&[]).await?;
    let mut replicas = Vec::with_capacity(count);
    for number in 0..count {
        let name = format!("idle{number}");
        fleet.enroll(&client, &name).await?;
        replicas.push(open(&fleet.dir(&name), fleet.listen(), 1 << 20)?);
    }
    for replica in &replicas {
        level(replica, &client).await?;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let pid = fleet.pid("datastore").ok_or_else(|| CtlError::new("the datastore process has exited"))?;
    let (began, before) = (Instant::now(), raw::processor_time(pid));
    tokio::time::sleep(IDLE_WATCH).await;
    let used = raw::processor_time(pid).saturating_sub(before);
    let share = used.as_secs_f64() / began.elapsed().as_secs_f64();
    let (rss_bytes, _) = raw::memory(pid);
    for replica in replicas {
        replica.close().await;
    }
    Ok(Idle { replicas: count, cpu_percent: (share * 10_000.0).round() / 100.0, rss_bytes })
}

fn print(json: bool, results: &Results) -> CtlResult {
    let mut output = Output::new();
    if json {
        output.json(results)?;
        return output.flush();
    }
    let mut line = |name: &str, value: String| output.line(&format!("{name:<46}{value}"));
    let seconds = |seconds: f64| duration(Duration::from_secs_f64(seconds));
    line("processors", results.cpus.to_string())?;
    line("raw: write and fdatasync of 300 B", results.raw_fdatasync.text())?;
    line("  the same with idle processors", results.raw_fdatasync_asleep.text())?;
    line("raw: QUIC round trip of 300 B, loopback", results.raw_quic_round_trip.text())?;
    line("push, one at a time, durable", results.push.text())?;
    line("  relative to the sum of both raw p50", format!("{:.2}", results.push_over_raw))?;
    line("push, pipelined, durable", format!("{:.0} transactions/s", results.pipelined_per_s))?;
    line("propagation, push to subscriber's state", results.propagation.text())?;
    line("write to a replica, durable there", results.replica_durable.text())?;
    line("write to a replica, durable at the datastore", results.replica_acknowledged.text())?;
    let import = format!("{} in {}: {:.0}/s", results.import_ops, seconds(results.import_s), results.import_per_s);
    line("import of small transactions", import)?;
    let catch_up = (results.catch_up_ops, seconds(results.catch_up_s), results.catch_up_per_s);
    line("catch-up of a fresh replica", format!("{} in {}: {:.0}/s", catch_up.0, catch_up.1, catch_up.2))?;
    line("open", seconds(results.open_s))?;
    let (log, state) = (results.log_bytes_per_op, results.state_bytes_per_op);
    line("disk per imported transaction", format!("log {log:.0} B, state {state:.0} B"))?;
    let memory = format!("{}, at most {}", size(results.rss_bytes), size(results.rss_peak_bytes));
    line("memory of the datastore after the import", memory)?;
    if let Some(idle) = &results.idle {
        let text = format!("{} % of one processor, {}", idle.cpu_percent, size(idle.rss_bytes));
        line(&format!("idle datastore, {} connected replicas", idle.replicas), text)?;
    }
    output.flush()
}
