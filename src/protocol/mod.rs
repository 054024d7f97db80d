//! The rules of the protocol as pure state machines: no sockets, no files, no clock of their own.
//!
//! Shells feed them messages, completions and the time, and carry out what they answer. The same machines run under
//! the datastore, the replica and a simulator.

pub mod backoff;
pub mod commit_clock;
pub mod fatal;
pub mod feed;
pub mod gate;
pub mod lanes;
pub mod outbox;
pub mod push;
pub mod rebase;
mod recognized;
mod retried;
pub mod sequencer;
pub mod session;
pub mod shares;
pub mod tail;

#[cfg(test)]
mod tests;

/// States are applied in runs that end at multiples of this many sequences, so that the digests of two states can be
/// compared there even while both are moving.
pub const CHECKPOINT_EVERY: u64 = 1024;
