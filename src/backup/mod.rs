//! Backups of a datastore: content-addressed pieces of its log's files, and one manifest for each moment.
//!
//! `log-format.md` describes the files under *Backups*. A segment that has not changed is not stored again, one that has grown
//! only by what was added, so every backup after the first is an incremental one, and each can be restored by itself. A
//! manifest is written last, when everything that it names is there. Nothing is believed without its hash.

pub mod choice;
mod endings;
mod head;
pub mod lock;
pub mod manifest;
pub mod presence;
pub mod repository;
pub mod restore;
pub mod retention;
pub mod s3;
mod sealed_keys;
mod soundness;
mod staged;
pub mod store;
