//! Bytes on disk and wire: total, bounded functions without I/O.

pub mod admin;
pub mod message;
pub mod txn;
