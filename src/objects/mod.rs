//! The data that webservers keep in sync, as typed objects on top of the log: one file per kind.
//!
//! Every object is JSON. A field that is unknown to this version is preserved when the object is rewritten, so members
//! of different versions can share a log. State that must commute between webservers without a connection to each other
//! (a lock, the administrator role, a membership) is a separate object rather than a field: two independent changes
//! never undo each other.

pub mod accounts;
pub mod afresh;
pub mod allowance;
pub mod backup;
pub mod behind;
pub mod capabilities;
pub mod claims;
pub mod cleaning;
pub mod contents;
pub mod dashboards;
pub mod epochs;
pub mod first_start;
pub mod groups;
pub mod history;
pub mod identities;
pub mod ids;
pub mod invalid;
pub mod kinds;
pub mod moment;
pub mod names;
pub mod notifications;
pub mod passwords;
pub mod preferences;
pub mod quotas;
pub mod record;
pub mod refusals;
pub mod resources;
pub mod restored_names;
pub mod restores;
mod rights;
pub mod searches;
pub mod second_factors;
pub mod sessions;
pub mod sharing;
pub mod standing;
pub mod store;
pub mod tokens;
pub mod totp;
pub mod users;
pub mod weak_passwords;
pub mod write_rate;
pub mod writes;

pub use crate::codec::{depth, exposed};
pub use moment::Moment;
pub use record::{AsRead, Record, Stored};
pub use store::{CommitError, Committed, Store, StoreError};
pub use writes::Writes;
