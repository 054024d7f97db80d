//! The datastore: one log, one sequencer, any number of members.
//!
//! There are three threads: one commits (sequences, writes, syncs, fans out), one applies committed entries to the
//! state index, and one compacts. Everything else runs in tasks: each connection has a session with feed, push and
//! administration streams.
//!
//! The order of events for a batch must not change: written, synced, shown to subscribers and acknowledged, applied to
//! the state index, bookmarked.

mod access;
pub mod admin;
mod applier;
pub mod archive;
pub mod audit;
pub mod commit;
mod compaction;
mod contents;
mod copy;
mod feed;
pub mod gather;
pub mod greeting;
pub mod horizon;
mod index;
mod inspect;
pub mod ledger;
mod members;
mod named;
pub mod open;
mod pins;
mod presences;
mod proofs;
mod published;
mod push;
pub mod recover;
pub mod recovery;
mod register;
pub mod register_seen;
mod renewals;
pub mod repair;
mod rotation;
pub mod service;
mod session;
mod shared;
pub mod snapshot;
pub mod unfinished;
pub mod without_log;

pub use open::OpenError;
pub use service::{Datastore, DatastoreError};
