//! Exports the metrics in the Prometheus text format.

use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Maintenance interval of histograms, which would otherwise grow while they are not scraped.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Upper bounds of the buckets of durations, in seconds: from a write to a fast disk to an excessive delay.
const SECONDS: &[f64] =
    &[0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Upper bounds of the buckets of counts.
const COUNTS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0];

/// The metrics of this process.
#[derive(Clone)]
pub struct Exporter(PrometheusHandle);

impl Exporter {
    /// Returns the current values of all metrics as text.
    #[must_use]
    pub fn text(&self) -> String {
        self.0.render()
    }

    /// Bounds the memory of the histograms until the task is dropped.
    pub async fn keep_up(self) {
        loop {
            tokio::time::sleep(UPKEEP_EVERY).await;
            self.0.run_upkeep();
        }
    }
}

/// Starts recording metrics; call it once per process.
///
/// # Errors
/// If a recorder is already installed.
pub fn start() -> Result<Exporter, BuildError> {
    // Histograms with buckets, unlike summaries, can be aggregated over processes.
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_size".into()), COUNTS)?
        .install_recorder()?;
    gravwell_runtime::telemetry::metrics::describe();
    Ok(Exporter(handle))
}
