//! Replicated state for fleets of webservers.
pub mod codec;
pub mod config;
pub mod ctl;
pub mod datastore;
pub mod env;
pub mod log;
pub mod model;
pub mod protocol;
pub mod replica;
pub mod state;
pub mod telemetry;
pub mod transport;
pub mod trust;
