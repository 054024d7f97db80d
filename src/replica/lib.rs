//! The replica: embedded by a webserver to hold a copy of the log's state.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use gravwell_replica::model::{Collection, Key, Op};
//! use gravwell_replica::{Draft, Replica, ReplicaOptions};
//!
//! let replica = Replica::open("/var/lib/example/replica".as_ref(), ReplicaOptions::default())?;
//! let (collection, key) = (Collection::new("dashboards")?, Key::new("17")?);
//! let op = Op::Put { collection: collection.clone(), key: key.clone(), value: "{}".into() };
//! let mut receipt = replica.submit(Draft { ops: vec![op], ..Draft::default() }).await?;
//! assert!(replica.get(&collection, &key)?.is_some());
//! println!("decided: {:?}", receipt.decided(std::time::Duration::from_secs(10)).await);
//! # Ok(()) }
//! ```
//!
//! Guarantees: reads are local and include the replica's own pending transactions; a transaction is durable on the
//! local disk before [`Replica::submit`] returns; data and position change in one atomic write; nothing is ever deleted
//! here because a datastore does not have it.

// Both panic if the output cannot be written; see `src/runtime/telemetry/output.rs`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod accepted_before;
pub mod admin;
mod applier;
pub mod audit_acts;
pub mod blobs;
pub mod conflict_archive;
mod datastore_notes;
pub mod directory;
mod disk;
mod driver;
mod evidence;
mod handle;
mod high_water_mark;
mod history;
mod leaving;
mod link;
mod local_txns;
mod opening;
pub mod outbox_loss;
mod outbox_quota;
mod outbox_records;
mod outbox_writer;
mod proofs;
mod push;
mod receipts;
mod recovery_donor;
mod refusal;
mod rejoin;
mod renewal;
mod request;
pub mod resync;
mod reverted;
mod role;
pub mod service;
mod session_effects;
mod shared;
#[cfg(any(test, feature = "testing"))]
pub mod stepped;
mod terms;
mod view;
mod witnesses;

/// For programs that embed a replica: they depend on this crate alone.
pub use gravwell_env as env;
pub use gravwell_model as model;
pub use gravwell_state as state;
pub use gravwell_transport as transport;

pub use gravwell_protocol::outbox::RejectedTxn;

pub use directory::Access;
pub use handle::{OpenError, OriginError, Replica, ReplicaOptions};
pub use high_water_mark::Mark;
pub use history::History;
pub use link::{ConnectError, Connector, Pending};
pub use outbox_quota::OutboxQuota;
pub use outbox_writer::{Draft, Resubmission, SubmitError};
pub use receipts::{Receipt, Stage};
pub use refusal::Refusal;
pub use renewal::CaBackupProblem;
pub use request::{Reply, RequestError};
pub use shared::Change;
pub use terms::Terms;
pub use view::{Object, ReadError};
pub use witnesses::Witnesses;

#[cfg(test)]
mod tests;
