//! Protocol rules as pure state machines without sockets, files or clocks.
//!
//! The caller passes messages, completions and the time to them, and performs the actions that they return. The
//! datastore, the replica and a simulator use the same state machines.

// Both panic if the output cannot be written; see `src/runtime/telemetry/output.rs`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod backoff;
pub mod blob_gate;
pub mod commit_clock;
pub mod fatal;
pub mod feed;
pub mod lanes;
pub mod outbox;
pub mod push;
pub mod rebase;
mod recognized;
mod retained_txns;
mod retried;
pub mod sequencer;
pub mod session;
pub mod shares;
pub mod tail;

#[cfg(test)]
mod tests;

/// Number of sequences between checkpoints. Entries are applied in batches that end at multiples of it, so that the
/// digests of two states can be compared there even while both advance.
pub const CHECKPOINT_EVERY: u64 = 1024;
