//! Encodings for disk and wire: total, bounded functions without I/O.

pub mod admin;
pub mod audit;
pub mod audit_rows;
pub mod authority;
mod blobs;
pub mod block;
pub mod chunks;
pub mod content;
pub mod deletions;
pub mod depth;
pub mod error;
pub mod exposed;
pub mod frame;
pub mod health;
pub mod jsonl;
pub mod message;
pub mod payload;
pub mod redacted;
pub mod reports;
pub mod restore;
pub mod sealed;
pub mod txn;
