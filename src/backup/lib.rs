//! Backups of a datastore: content-addressed pieces of its log files, and one manifest for each backup.
//!
//! `log-format.md` describes the files in the section *Backups*. An unchanged segment is not stored again, and of a
//! grown segment only the addition is. So every backup after the first one is incremental, yet each can be restored
//! independently. A manifest is written last, after everything that it references. All data is verified by its hash.

// Both panic if the output cannot be written; see `src/runtime/telemetry/output.rs`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod choice;
mod encrypted_keys;
mod final_deletions;
mod head;
pub mod lock;
pub mod manifest;
pub mod presence;
pub mod repository;
pub mod restore;
mod restored_trust;
pub mod retention;
pub mod s3;
mod soundness;
mod staged;
pub mod store;
