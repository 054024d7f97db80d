//! The words of the system: identifiers, operations, transactions, positions, digests and limits.
//!
//! Nothing here does I/O, reads a clock or knows tokio; every other floor builds on it.

pub mod address;
pub mod deletions;
pub mod digest;
pub mod exposure;
pub mod ids;
pub mod limits;
pub mod position;
pub mod printable;
pub mod redaction;
pub mod txn;

pub use deletions::Deletions;
pub use digest::{Digest, DigestSet};
pub use ids::{ChunkId, Generation, LogId, MemberName, Origin, OriginCounter, Seq};
pub use limits::Limits;
pub use position::{Chain, Lineage, LineageEntry, Position, Verdict};
pub use redaction::{Redaction, Withheld};
pub use txn::{Collection, Condition, Entry, EntryBody, Key, Maker, Op, OriginRow, Reason, Txn, TxnId};
