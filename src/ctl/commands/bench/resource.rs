//! `bench --resource-mb`: transfers one large blob from a member via the datastore to another member. Compares it with
//! the raw disk and network, and measures its effect on small operations.
//!
//! The datastore and the receiving member are separate processes; the sending member runs in this process.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Interval, MissedTickBehavior};

use gravwell_model::codec::admin::{BlobInfo, Request};
use gravwell_objects::blobs::Upload;
use gravwell_objects::store::Author;
use gravwell_objects::{Store, Writes};
use gravwell_replica::blobs::BlobOptions;
use gravwell_replica::service::MemberConnector;
use gravwell_replica::{Change, Replica, ReplicaOptions};

use super::push::Pusher;
use super::{Spread, raw, tell};
use crate::client::Client;
use crate::client::output::{Output, size};
use crate::error::{CtlError, CtlResult};
use crate::process::fleet::Fleet;

const PATIENCE: Duration = Duration::from_secs(1800);
/// Interval between small operations; a new one starts only after the previous one has arrived. Short enough to notice
/// an effect, and long enough not to dominate the load.
const PACE: Duration = Duration::from_millis(2);
/// Number of small operations measured before the transfer.
const IDLE_COUNT: usize = 1000;
/// Size of the pieces in which the blob is generated.
const PIECE_BYTES: usize = 1 << 20;

/// All measurements; serialized as the output of `--json`.
#[derive(Default, Serialize)]
struct Results {
    resource_bytes: u64,
    raw_disk_mb_per_s: f64,
    raw_quic_mb_per_s: f64,
    /// From the first byte until the blob is committed, and so stored at the datastore.
    upload_s: f64,
    upload_mb_per_s: f64,
    /// From the first byte until the other member has all chunks.
    total_s: f64,
    total_mb_per_s: f64,
    /// Propagation of small operations: idle, and during the transfer.
    ops_idle: Spread,
    ops_during: Spread,
    ops_measured: usize,
    p99_over_idle: f64,
    rss_peak_datastore_bytes: u64,
    rss_peak_receiver_bytes: u64,
    rss_peak_sender_bytes: u64,
}

/// Runs the measurement and prints it.
pub(super) async fn run(json: bool, parent: Option<&Path>, megabytes: u64) -> CtlResult {
    let results = measure(parent, megabytes << 20).await?;
    let mut output = Output::new();
    if json {
        output.json(&results)?;
        return output.flush();
    }
    let r = &results;
    let peak = [r.rss_peak_datastore_bytes, r.rss_peak_receiver_bytes, r.rss_peak_sender_bytes].map(size);
    output.line(&format!(
        "raw: disk {:.0} MB/s, QUIC on loopback {:.0} MB/s",
        r.raw_disk_mb_per_s, r.raw_quic_mb_per_s
    ))?;
    output.line(&format!(
        "{} committed at the datastore: {:.1} s, {:.0} MB/s",
        size(r.resource_bytes),
        r.upload_s,
        r.upload_mb_per_s
    ))?;
    output.line(&format!("complete at the other member: {:.1} s, {:.0} MB/s", r.total_s, r.total_mb_per_s))?;
    output.line(&format!("small operations, idle: {}", r.ops_idle.text()))?;
    output.line(&format!(
        "small operations, during the transfer: {} ({} measured): p99 is {:.1} times the idle p99",
        r.ops_during.text(),
        r.ops_measured,
        r.p99_over_idle
    ))?;
    output.line(&format!(
        "peak memory: datastore {}, receiver {}, sender with this measurement {}",
        peak[0], peak[1], peak[2]
    ))?;
    output.flush()
}

#[expect(clippy::cast_precision_loss, reason = "rates for display")]
fn rate(bytes: u64, took: Duration) -> f64 {
    (bytes as f64 / 1e6 / took.as_secs_f64()).round()
}

/// Generator of bytes that neither repeat nor compress.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, piece: &mut [u8]) {
        for word in piece.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            let bytes = self.0.to_le_bytes();
            word.copy_from_slice(&bytes[..word.len()]);
        }
    }
}

fn raw_disk(dir: &Path, bytes: u64) -> Result<f64, CtlError> {
    let path = dir.join("raw-disk");
    let (mut noise, mut piece) = (Noise(7), vec![0; PIECE_BYTES]);
    noise.fill(&mut piece);
    let began = Instant::now();
    let mut file = std::fs::File::create(&path).map_err(CtlError::new)?;
    for _ in 0..bytes / PIECE_BYTES as u64 {
        file.write_all(&piece).map_err(CtlError::new)?;
    }
    file.sync_data().map_err(CtlError::new)?;
    let took = began.elapsed();
    std::fs::remove_file(&path).map_err(CtlError::new)?;
    Ok(rate(bytes, took))
}

fn open(dir: &Path, address: &str, contents: Option<BlobOptions>) -> Result<Replica, CtlError> {
    let options = ReplicaOptions { cache_bytes: 16 << 20, contents, ..ReplicaOptions::default() };
    let replica = Replica::open(dir, options).map_err(CtlError::new)?;
    replica.connect(Arc::new(MemberConnector::new(dir, vec![address.to_owned()])));
    Ok(replica)
}

async fn connected(replica: &Replica) {
    while !replica.is_connected() || replica.position().is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Pushes one small operation at the next tick and waits until a subscriber has it.
async fn one(pusher: &mut Pusher, reader: &Replica, pace: &mut Interval) -> Result<Duration, CtlError> {
    pace.tick().await;
    let mut changes = reader.watch();
    let began = Instant::now();
    let (pushed, _) = pusher.push().await?;
    loop {
        match tokio::time::timeout(PATIENCE, changes.recv()).await.map_err(CtlError::new)? {
            Ok(Change::Put { seq, .. }) if seq >= pushed => return Ok(began.elapsed()),
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return Err(CtlError::new("the replica was closed")),
        }
    }
}

async fn upload(store: &Store, bytes: u64) -> CtlResult {
    let mut upload = Upload::begin(store, "").map_err(CtlError::new)?;
    let (mut noise, mut piece) = (Noise(3), vec![0; PIECE_BYTES]);
    while upload.size() < bytes {
        noise.fill(&mut piece);
        upload.write(&piece).await.map_err(CtlError::new)?;
    }
    let mut writes = Writes::new();
    upload.finish(&mut writes).await.map_err(CtlError::new)?;
    store.commit(&Author::default(), "measure", writes).await.map_err(CtlError::new)?;
    if store.replica().drain(PATIENCE).await { Ok(()) } else { Err(CtlError::new("the contents were not committed")) }
}

async fn whole(client: &Client) -> CtlResult {
    let began = Instant::now();
    loop {
        let infos: Vec<BlobInfo> = client.items(&Request::BlobList).await?;
        if infos.first().is_some_and(|info| info.missing == 0 && info.chunks > 0) {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            return Err(CtlError::new("the other member did not receive the contents"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn measure(parent: Option<&Path>, bytes: u64) -> Result<Results, CtlError> {
    let mut fleet = Fleet::new(parent, "bench-resource")?;
    let mut results = Results { resource_bytes: bytes, ..Results::default() };
    tell("raw disk and network");
    results.raw_disk_mb_per_s = raw_disk(&fleet.dir(""), bytes)?;
    let began = raw::quic_bulk(&fleet.dir(""), bytes).await?;
    results.raw_quic_mb_per_s = rate(bytes, began);
    let client = fleet.start_datastore(&[]).await?;
    for name in ["sender", "receiver", "pusher", "reader"] {
        fleet.enroll(&client, name).await?;
    }
    let address = fleet.listen().to_owned();
    fleet.begin("receiver", "receiver", &["replica", "--resources", "--datastore", &address, "--log-level", "warn"])?;
    let receiver = fleet.answer("receiver").await?;
    let sender = open(&fleet.dir("sender"), &address, Some(BlobOptions::default()))?;
    let reader = open(&fleet.dir("reader"), &address, None)?;
    connected(&sender).await;
    connected(&reader).await;
    let mut pusher = Pusher::connect(&fleet.dir("pusher"), &address).await?;
    tell("small operations");
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut idle = Vec::new();
    for _ in 0..IDLE_COUNT {
        idle.push(one(&mut pusher, &reader, &mut pace).await?);
    }
    tell("the transfer");
    let store = Store::new(sender.clone(), "sender");
    let began = Instant::now();
    let moving = async {
        upload(&store, bytes).await?;
        let uploaded = began.elapsed();
        whole(&receiver).await?;
        Ok::<_, CtlError>((uploaded, began.elapsed()))
    };
    let mut moving = std::pin::pin!(moving);
    let mut during = Vec::new();
    let (uploaded, total) = loop {
        tokio::select! {
            biased;
            moved = &mut moving => break moved?,
            took = one(&mut pusher, &reader, &mut pace) => during.push(took?),
        }
    };
    results.ops_measured = during.len();
    (results.ops_idle, results.ops_during) = (Spread::of(idle), Spread::of(during));
    results.p99_over_idle = (results.ops_during.p99_us / results.ops_idle.p99_us * 10.0).round() / 10.0;
    (results.upload_s, results.total_s) = (uploaded.as_secs_f64(), total.as_secs_f64());
    (results.upload_mb_per_s, results.total_mb_per_s) = (rate(bytes, uploaded), rate(bytes, total));
    let peak = |pid: Option<u32>| pid.map_or(0, |pid| raw::memory(pid).1);
    results.rss_peak_datastore_bytes = peak(fleet.pid("datastore"));
    results.rss_peak_receiver_bytes = peak(fleet.pid("receiver"));
    results.rss_peak_sender_bytes = peak(Some(std::process::id()));
    sender.close().await;
    reader.close().await;
    Ok(results)
}
