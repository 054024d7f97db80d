//! The replica: embedded by a webserver to hold a copy of the log's state.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use gravwell::model::{Collection, Key, Op};
//! use gravwell::replica::{Draft, Replica, ReplicaOptions};
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

pub mod acts;
pub mod admin;
mod applier;
mod ask;
pub mod contents;
pub mod directory;
mod disk;
mod evidence;
mod handle;
mod history;
mod leaving;
mod lend;
mod link;
mod mark;
mod opening;
pub mod outbox_loss;
mod outbox_records;
mod outbox_writer;
mod own;
mod proofs;
mod push;
pub mod quarantine;
mod receipts;
mod reconcile;
mod refusal;
mod renewal;
pub mod resync;
mod reverted;
mod role;
mod room;
pub mod service;
mod shared;
pub mod stepped;
mod terms;
mod view;
mod witnesses;

pub use ask::{AskError, Reply};
pub use directory::Access;
pub use handle::{OpenError, OriginError, Replica, ReplicaOptions};
pub use history::History;
pub use link::{ConnectError, Connector, Pending};
pub use mark::Mark;
pub use outbox_writer::{Again, Draft, SubmitError};
pub use receipts::{Receipt, Stage};
pub use refusal::Refusal;
pub use room::Room;
pub use shared::Change;
pub use terms::Terms;
pub use view::{Object, ReadError};
pub use witnesses::Witnesses;

#[cfg(test)]
mod tests;
