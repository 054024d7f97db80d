//! The state that results from a log: objects, rows of origins, and the position they correspond to.
//!
//! Guarantees:
//! - data and position change in one atomic batch, written in one place ([`store`]); after a crash at any point the
//!   state is the complete state at some earlier position;
//! - equal histories give equal digests, however their entries were batched;
//! - the engine's data is not trusted: every row has its own checksum, the digests of all rows are stored with them,
//!   and [`StateStore::check`] compares the two;
//! - a store without [`StateMeta`] is unfinished and must not be used.
//!
//! The whole state can be rebuilt: from the log on a datastore, from the datastore on a replica. So nothing is synced
//! before [`StateStore::persist`] is called; a state may lag behind its log but never contradicts it.
//!
//! Tables (numbers are on disk and never reused): 1 position, 2 collection sums ([`meta`]), 3 origins ([`origins`]), 4
//! objects ([`objects`]), 5 makers (`makers`), 6 recent deletions (`deletions`), 7 objects with withheld values
//! (`withheld`). They share **one** keyspace of the engine; the key of each row starts with the number of its table.
//! Separate keyspaces are flushed separately and before the journal is synced, so a power cut could leave objects that
//! are newer than the position; one keyspace is flushed as a whole.

// Both panic if the output cannot be written; see `src/runtime/telemetry/output.rs`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod aborts;
mod apply;
mod authors;
mod base;
mod deletions;
pub mod descent;
pub mod engine;
mod envelope;
mod error;
mod fjall_engine;
mod fjall_journal;
mod loader;
mod memory_engine;
pub mod meta;
pub mod objects;
pub mod origins;
pub mod rebuild;
mod snapshot;
pub mod store;
mod unavailable_engine;
mod view;
mod withheld;

pub use aborts::is_suspect;
pub use base::{BaseEntries, base_entries, base_entries_left};
pub use descent::Fork;
pub use error::{Remedy, StateError};
pub use loader::{Loader, Target};
pub use meta::StateMeta;
pub use objects::Object;
pub use origins::OriginTable;
pub use rebuild::{Action, LogView, LossReason, RebuildReason};
pub use snapshot::StateSnapshot;
pub use store::{CheckReport, StateDamage, StateStore};
pub use view::duplicate;
pub use withheld::WithheldObject;

#[cfg(test)]
mod tests;
