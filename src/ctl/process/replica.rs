//! `replica`: runs a replica without a webserver.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use gravwell_replica::ReplicaOptions;
use gravwell_replica::blobs::BlobOptions;
use gravwell_replica::service::{PeerListening, Service};
use gravwell_runtime::telemetry::notify;

use super::{logging, monitor, signals};
use crate::error::{CtlError, CtlResult};

/// Options of a replica.
#[derive(Debug, clap::Args)]
pub struct ReplicaArgs {
    /// Address of the datastore instead of the one in the token; may be repeated.
    #[arg(long = "datastore", value_name = "HOST:PORT")]
    pub datastores: Vec<String>,
    /// Store the contents of resources as well, as webservers do.
    #[arg(long)]
    pub resources: bool,
    /// Address at which other webservers reach this one, shown by `presence`.
    #[arg(long, value_name = "HOST:PORT")]
    pub external_addr: Option<String>,
    /// Stop accepting writes below this much free disk space, in MiB.
    #[arg(long, default_value_t = 64, value_name = "MIB")]
    pub min_free_mb: u64,
    /// Disk reserve for when the disk is full, in MiB.
    #[arg(long, default_value_t = 16, value_name = "MIB")]
    pub reserve_mb: u64,
    /// Address of the Prometheus endpoint.
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics: Option<SocketAddr>,
    /// Log level: error, warn, info, debug or trace.
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    pub log_level: String,
}

/// Runs a replica until a stop signal arrives.
pub(crate) async fn run(dir: &Path, args: ReplicaArgs) -> CtlResult {
    let _level = logging::start(&args.log_level, logging::LogFormat::Text);
    let contents = args.resources.then(BlobOptions::default);
    let options = ReplicaOptions {
        external_addr: args.external_addr,
        contents,
        free_min_bytes: args.min_free_mb.saturating_mul(1 << 20),
        reserve_bytes: args.reserve_mb.saturating_mul(1 << 20),
        ..ReplicaOptions::default()
    };
    // Without contents, other members have nothing to request from this replica.
    let peers = if args.resources { PeerListening::Outgoing } else { PeerListening::Apart };
    let service = Service::start(dir, args.datastores, options, peers)
        .await
        .map_err(|error| CtlError { exit: if error.is_damage() { 3 } else { 1 }, message: error.to_string() })?;
    let mut monitor = match args.metrics {
        Some(address) => {
            let started = monitor::start(address, None).await;
            Some(started.map_err(|error| CtlError::new(format!("cannot serve metrics on {address}: {error}")))?)
        }
        None => None,
    };
    service.measure();
    notify::ready(&service.summary());
    let period = notify::watchdog_period().unwrap_or(Duration::from_secs(10)).min(Duration::from_secs(10));
    let mut stop = std::pin::pin!(signals::stop_signal());
    loop {
        tokio::select! {
            () = &mut stop => break,
            () = monitor::Monitor::ended(&mut monitor) => return Err(CtlError::new("the metrics listener stopped")),
            () = tokio::time::sleep(period) => {
                notify::watchdog();
                notify::status(&service.summary());
                service.measure();
            }
        }
    }
    service.stop().await;
    Ok(())
}
