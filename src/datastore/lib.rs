//! The datastore: one log, one sequencer, any number of members.
//!
//! There are three threads: one commits (sequences, writes, syncs, fans out), one applies committed entries to the
//! state index, and one compacts. Everything else runs in tasks: each connection has a session with feed, push and
//! administration streams.
//!
//! The order of events for a batch must not change: written, synced, shown to subscribers and acknowledged, applied to
//! the state index, bookmarked.

// Both panic if the output cannot be written; see `src/runtime/telemetry/output.rs`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod access;
pub mod admin;
mod applier;
pub mod archive;
pub mod audit;
mod backup_stream;
mod blobs;
pub mod commit_pipeline;
pub mod commit_thread;
mod compaction;
mod control;
mod feed;
pub mod handshake;
pub mod horizon;
mod index;
mod inspect;
pub mod install_marker;
mod member_registry;
mod members;
pub mod open;
mod pins;
mod presences;
mod proofs;
mod published;
mod push;
pub mod read_only;
pub mod rebuild;
pub mod recovery_collector;
mod referenced_chunks;
mod renewals;
pub mod repair;
mod rotation;
pub mod service;
mod session;
mod shared;
pub mod snapshot;
pub mod stale_registry;
pub mod without_log;

pub use open::OpenError;
pub use service::{Datastore, DatastoreError};
