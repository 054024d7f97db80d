//! QUIC endpoints, streams of messages, the join exchange, and the local socket.

pub mod admission;
pub mod answer;
pub mod closed;
pub mod endpoint;
pub mod join;
pub mod local;
pub mod pulse;
pub mod race;
pub mod state_stream;
pub mod window;
pub mod wire;
