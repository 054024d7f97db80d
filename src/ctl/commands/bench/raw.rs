//! Raw performance of the machine, measured in the same run as a baseline for all other figures.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gravwell_env::{Clock, Fs, RealFs, SystemClock};
use gravwell_transport::admission::Admission;
use gravwell_transport::endpoint;
use gravwell_transport::trust::{Authorities, tls};

use crate::error::CtlError;

/// Payload of each raw write and round trip in bytes, about that of a small record.
pub(super) const PAYLOAD_BYTES: usize = 300;

/// Writes small records to a preallocated file and syncs each one before the next. Returns the time of each write.
pub(super) fn fdatasync(dir: &Path, count: usize) -> Result<Vec<Duration>, CtlError> {
    let path = dir.join("raw");
    let file = RealFs.create(&path).map_err(CtlError::new)?;
    file.allocate((PAYLOAD_BYTES * (count + 1)) as u64).map_err(CtlError::new)?;
    file.sync_data().map_err(CtlError::new)?;
    let mut measured = Vec::with_capacity(count);
    for number in 0..count {
        let began = Instant::now();
        file.write_at(&[0x5a; PAYLOAD_BYTES], (number * PAYLOAD_BYTES) as u64).map_err(CtlError::new)?;
        file.sync_data().map_err(CtlError::new)?;
        measured.push(began.elapsed());
    }
    RealFs.remove(&path).map_err(CtlError::new)?;
    Ok(measured)
}

/// Keeps one processor from sleeping while it exists.
///
/// If every processor sleeps, as happens while a single thread waits for the disk, some virtual machines deliver the
/// completion of a disk request only at the next clock tick. A busy service does not see this delay, so the baseline
/// for comparisons excludes it.
pub(super) struct Awake {
    is_over: Arc<AtomicBool>,
}

impl Awake {
    /// Starts a thread that spins until the value is dropped.
    pub(super) fn start() -> Awake {
        let is_over = Arc::new(AtomicBool::new(false));
        let watched = Arc::clone(&is_over);
        std::thread::spawn(move || {
            while !watched.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        Awake { is_over }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// Measures round trips of a small message on one QUIC stream over loopback, with the transport settings of
/// this product.
pub(super) async fn quic_round_trips(dir: &Path, count: usize) -> Result<Vec<Duration>, CtlError> {
    let now_ms = SystemClock.now_ms();
    let authorities = Authorities::open_or_create(&dir.join("raw-trust"), now_ms).map_err(CtlError::new)?;
    let server_tls = tls::server_config(&authorities, &[], now_ms).map_err(CtlError::new)?;
    let server = endpoint::server(([127, 0, 0, 1], 0).into(), server_tls, &authorities.current().reset_key())
        .map_err(CtlError::new)?;
    let address = server.local_addr().map_err(CtlError::new)?.to_string();
    let server = Arc::new(server);
    let echoing = tokio::spawn(echo(Arc::clone(&server)));
    let client_tls = tls::join_config(authorities.current().fingerprint()).map_err(CtlError::new)?;
    let client = endpoint::client(client_tls).map_err(CtlError::new)?;
    let connection = client.connect(&address).await.map_err(CtlError::new)?;
    let (mut send, mut receive) = connection.open_bi().await.map_err(CtlError::new)?;
    let mut measured = Vec::with_capacity(count);
    let mut answer = [0; PAYLOAD_BYTES];
    for _ in 0..count {
        let began = Instant::now();
        send.write_all(&[0x5a; PAYLOAD_BYTES]).await.map_err(CtlError::new)?;
        receive.read_exact(&mut answer).await.map_err(CtlError::new)?;
        measured.push(began.elapsed());
    }
    connection.close(0u32.into(), b"");
    echoing.abort();
    server.close(b"");
    Ok(measured)
}

/// Measures the transfer of `bytes` bytes on one QUIC stream over loopback.
pub(super) async fn quic_bulk(dir: &Path, bytes: u64) -> Result<Duration, CtlError> {
    let now_ms = SystemClock.now_ms();
    let authorities = Authorities::open_or_create(&dir.join("raw-trust"), now_ms).map_err(CtlError::new)?;
    let server_tls = tls::server_config(&authorities, &[], now_ms).map_err(CtlError::new)?;
    let server = endpoint::server(([127, 0, 0, 1], 0).into(), server_tls, &authorities.current().reset_key())
        .map_err(CtlError::new)?;
    let address = server.local_addr().map_err(CtlError::new)?.to_string();
    let server = Arc::new(server);
    let taking = tokio::spawn(swallow(Arc::clone(&server)));
    let client_tls = tls::join_config(authorities.current().fingerprint()).map_err(CtlError::new)?;
    let client = endpoint::client(client_tls).map_err(CtlError::new)?;
    let connection = client.connect(&address).await.map_err(CtlError::new)?;
    let mut send = connection.open_uni().await.map_err(CtlError::new)?;
    let piece = vec![0x5a; 1 << 20];
    let began = Instant::now();
    for _ in 0..bytes >> 20 {
        send.write_all(&piece).await.map_err(CtlError::new)?;
    }
    send.finish().map_err(CtlError::new)?;
    let _ = taking.await;
    let took = began.elapsed();
    connection.close(0u32.into(), b"");
    server.close(b"");
    Ok(took)
}

async fn accept(server: &endpoint::ServerEndpoint) -> Option<quinn::Connection> {
    let (connection, _turn) = server.accept(&Admission::default()).await?.handshake().await.ok()?;
    endpoint::trusted(&connection);
    Some(connection)
}

async fn swallow(server: Arc<endpoint::ServerEndpoint>) -> Option<()> {
    let connection = accept(&server).await?;
    let mut receive = connection.accept_uni().await.ok()?;
    while receive.read_chunk(1 << 20, true).await.ok()?.is_some() {}
    Some(())
}

async fn echo(server: Arc<endpoint::ServerEndpoint>) -> Option<()> {
    let connection = accept(&server).await?;
    let (mut send, mut receive) = connection.accept_bi().await.ok()?;
    let mut message = [0; PAYLOAD_BYTES];
    loop {
        receive.read_exact(&mut message).await.ok()?;
        send.write_all(&message).await.ok()?;
    }
}

/// Returns the resident memory of a process in bytes: current and peak.
pub(super) fn memory(pid: u32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
    };
    (field("VmRSS:"), field("VmHWM:"))
}

/// Returns the processor time that a process has used.
pub(super) fn processor_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The process name may contain any character, so fields are counted from its closing parenthesis.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    // Linux reports hundredths of a second, independent of the kernel's tick rate.
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

/// Returns the disk space that a directory uses, in bytes.
pub(super) fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_files_have_size() {
        let (now, highest) = memory(std::process::id());
        assert!(now > 1 << 20 && highest >= now, "{now} {highest}");
        let temp = tempfile::tempdir().expect("temp dir");
        std::fs::create_dir(temp.path().join("below")).expect("directory");
        std::fs::write(temp.path().join("below/file"), vec![1; 100_000]).expect("file");
        assert!(disk_bytes(temp.path()) >= 100_000);
        assert_eq!(fdatasync(temp.path(), 3).expect("written").len(), 3);
    }

    #[tokio::test]
    async fn round_trips_are_measured() {
        let temp = tempfile::tempdir().expect("temp dir");
        assert_eq!(quic_round_trips(temp.path(), 5).await.expect("measured").len(), 5);
    }
}
