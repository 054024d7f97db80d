//! Metrics, output of log lines, and notifications to the service manager. The programs have the exporter of metrics and
//! the format of logs.

pub mod log_rate_limit;
pub mod metrics;
pub mod notify;
pub mod output;
pub mod txn_trace;
