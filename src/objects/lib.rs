//! The data that webservers keep in sync, as typed objects on top of the log: one file per kind.
//!
//! Every object is JSON. A field that is unknown to this version is preserved when the object is rewritten, so members
//! of different versions can share a log. State that must commute between webservers without a connection to each other
//! (a lock, the administrator role, a membership) is a separate object rather than a field: two independent changes
//! never undo each other.

// Both panic if the output cannot be written; see `src/runtime/telemetry/output.rs`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod accounts;
pub mod blobs;
pub mod bootstrap;
pub mod capabilities;
pub mod claims;
pub mod cleanup;
pub mod dashboards;
pub mod epochs;
pub mod export_archive;
pub mod groups;
pub mod history;
pub mod identities;
pub mod ids;
pub mod impersonation;
pub mod invalid;
pub mod kinds;
pub mod names;
pub mod notifications;
pub mod owned;
pub mod owned_kinds;
pub mod passwords;
pub mod preferences;
pub mod quotas;
pub mod record;
pub mod rejection_messages;
pub mod resources;
pub mod restored_names;
pub mod restores;
pub mod resubmission;
mod rights;
pub mod searches;
pub mod second_factors;
pub mod sessions;
pub mod sharing;
pub mod standing;
pub mod store;
pub mod timestamp;
pub mod tokens;
pub mod totp;
pub mod users;
pub mod weak_passwords;
pub mod write_limits;
pub mod write_rate;
pub mod writes;

pub use gravwell_model::codec::{depth, redaction};
pub use record::{AsRead, Record, Stored};
pub use store::{CommitError, CommitProgress, Store, StoreError};
pub use timestamp::Timestamp;
pub use writes::Writes;
