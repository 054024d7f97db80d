//! The Prometheus endpoint.

use std::net::SocketAddr;

use metrics_exporter_prometheus::{BuildError, PrometheusBuilder};

/// Serves `http://ADDRESS/metrics` from now on. Needs a tokio runtime; once per process.
///
/// # Errors
/// When the address is taken.
pub fn start(address: SocketAddr) -> Result<(), BuildError> {
    PrometheusBuilder::new().with_http_listener(address).install()?;
    super::metrics::describe();
    Ok(())
}
