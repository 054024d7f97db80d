//! QUIC endpoints, streams of messages, the join exchange, and the local socket; membership ([`trust`]), connections
//! between members ([`peer`]), transfer of chunks ([`transfer`]).

// Both panic if the output cannot be written; see `src/runtime/telemetry/output.rs`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod admission;
pub mod answer;
pub mod close_reason;
pub mod endpoint;
pub mod flow_control;
pub mod join;
pub mod local;
pub mod peer;
pub mod pulse;
pub mod race;
pub mod state_stream;
pub mod transfer;
pub mod trust;
pub mod wire;
