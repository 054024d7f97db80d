//! QUIC endpoints, streams of messages, the join exchange, and the local socket.

pub mod admission;
pub mod answer;
pub mod close_reason;
pub mod endpoint;
pub mod flow_control;
pub mod join;
pub mod local;
pub mod pulse;
pub mod race;
pub mod state_stream;
pub mod wire;
