//! What webservers keep in sync, as typed objects over the log: one file per kind.
//!
//! Every object is JSON. A field that this version does not know is carried along when the object is rewritten, so
//! members of different versions can share a log. What must commute between webservers that cannot see each other (a lock,
//! the role of administrator, a membership) is an object of its own rather than a field: two changes made apart never
//! undo each other.

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
