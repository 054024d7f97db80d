//! Data model: identifiers, operations, transactions, positions, digests and limits, and their encodings ([`codec`]).
//!
//! This crate does no I/O, reads no clock and does not depend on tokio. All other layers build on it.

// Both panic if the output cannot be written; see `src/runtime/telemetry/output.rs`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod address;
pub mod codec;
pub mod deletions;
pub mod digest;
pub mod fault_injection;
pub mod ids;
pub mod limits;
pub mod position;
pub mod printable;
pub mod redaction;
pub mod revocation;
pub mod txn;
pub mod visibility;

pub use deletions::Deletions;
pub use digest::{Digest, DigestSet};
pub use ids::{ChunkId, Generation, LogId, MemberName, Origin, OriginCounter, Seq};
pub use limits::Limits;
pub use position::{Chain, Lineage, LineageEntry, Position, Verdict};
pub use redaction::{Redaction, Withheld};
pub use txn::{Collection, Condition, Entry, EntryBody, Key, Maker, Op, OriginRow, Reason, Txn, TxnId};
