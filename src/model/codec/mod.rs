//! Encodings for disk and wire: total, bounded functions without I/O.

pub mod admin;
pub mod audit;
pub mod audit_rows;
pub mod authority;
pub mod blob_manifest;
mod blobs;
pub mod block;
pub mod chunks;
pub mod deletions;
pub mod depth;
pub mod error;
pub mod frame;
pub mod health;
pub mod json_lines;
pub mod message;
pub mod payload;
pub mod redacted_frame;
pub mod redaction;
pub mod report_limits;
pub mod restore;
pub mod txn;
