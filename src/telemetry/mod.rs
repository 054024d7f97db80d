//! Metrics, structured logs, and notifications to the service manager.

pub mod exporter;
pub mod log_rate_limit;
pub mod logging;
pub mod metrics;
pub mod notify;
pub mod output;
pub mod txn_trace;
