//! The datastore: one log, one sequencer, any number of members.
//!
//! Threads: one commits (sequences, writes, syncs, fans out), one applies committed entries to the state index, one
//! compacts. Everything else is tasks: per connection a session with its feed, push and administration streams.
//!
//! Order of events for a batch, which may not be changed: written, synced, then shown to subscribers and
//! acknowledged, then applied to the state index, then bookmarked.

mod access;
pub mod admin;
mod applier;
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
mod register_seen;
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
