//! Moving chunks between the stores of members: which are missing, sending, fetching.
//!
//! Chunks travel on streams of their own, and between a member and its datastore on a connection of their own, so that
//! operations never wait behind them. What is there is not sent, so a transfer that broke off goes on where it was; what
//! arrives is compared with its name before it is kept. Memory is bounded by a few megabytes for each stream.

pub mod check;
pub mod client;
pub mod inventory;
pub mod limiter;
mod resolve;
pub mod serve;

pub use client::{ChunkStream, TransferError};
pub use limiter::Limiter;
pub use serve::Server;
