//! Metrics, structured logs, and what the service manager is told.

pub mod exporter;
pub mod journey;
pub mod logging;
pub mod metrics;
pub mod notify;
pub mod output;
pub mod seldom;
