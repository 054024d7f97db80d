//! The metrics in the form that Prometheus reads.

use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Histograms are brought up to date this often, so that they do not grow while nobody reads them.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Upper ends of the buckets of durations: from a write to a fast disk to what nobody waits for.
const SECONDS: &[f64] =
    &[0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Upper ends of the buckets of counts.
const COUNTS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0];

/// The metrics of this process.
#[derive(Clone)]
pub struct Exporter(PrometheusHandle);

impl Exporter {
    /// All metrics as they stand, as text.
    #[must_use]
    pub fn text(&self) -> String {
        self.0.render()
    }

    /// Keeps what is held in bounds, until the task is dropped.
    pub async fn keep_up(self) {
        loop {
            tokio::time::sleep(UPKEEP_EVERY).await;
            self.0.run_upkeep();
        }
    }
}

/// Records metrics from now on; once per process.
///
/// # Errors
/// When metrics are recorded already.
pub fn start() -> Result<Exporter, BuildError> {
    // Buckets, so that what several processes measured can be put together.
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_size".into()), COUNTS)?
        .install_recorder()?;
    super::metrics::describe();
    Ok(Exporter(handle))
}
