//! Transfer of chunks between the stores of members: queries for missing ones, sending, fetching.
//!
//! Chunks use separate streams, and between a member and its datastore a separate connection, so that operations never
//! queue behind them. Chunks that the receiver has are not sent, so an interrupted transfer resumes where it stopped. A
//! received chunk is verified against its id before it is stored. Memory is limited to a few megabytes per stream.

pub mod check;
pub mod client;
pub mod inventory;
pub mod rate_limiter;
mod resolve;
pub mod serve;

pub use client::{ChunkStream, TransferError};
pub use rate_limiter::RateLimiter;
pub use serve::Server;
