//! Replicated state for fleets of webservers: an append-only, compacted operation log, served over QUIC.
//!
//! The layers, from the top to the bottom; each uses only those below it:
//!
//! ```text
//! commands    ctl                     the commands of gravwell-logctl; the processes
//! webserver   web                     HTTP and the user interface
//!             search                  queries, sources, results
//!             objects, balance        typed objects over the log | load balancers
//! backup      backup                  pack files and manifests in a directory or an S3 bucket, and restoring them
//! services    replica | datastore     a copy that works offline | the sequencer with its log
//! shells      trust, transport, peer  CA, tokens, members | QUIC, streams, local socket | members among themselves
//! machines    protocol                sequencing, tail, feed, outbox, verdicts: no I/O
//! storage     log | state | chunks    segments on disk | the state they add up to, in fjall | large blobs
//! encoding    codec                   frames, payloads, messages, JSON lines
//! base        model, env, config, telemetry
//! ```
//!
//! A webserver embeds [`replica::Replica`]; see its module for an example.

// Both panic if the output cannot be written; see `telemetry::output`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod backup;
#[cfg(feature = "programs")]
pub mod balance;
pub mod chunks;
pub mod codec;
pub mod config;
#[cfg(feature = "programs")]
pub mod ctl;
pub mod datastore;
pub mod env;
pub mod fault_injection;
pub mod fuzzing;
pub mod log;
pub mod model;
#[cfg(feature = "programs")]
pub mod objects;
pub mod peer;
pub mod protocol;
pub mod replica;
#[cfg(feature = "programs")]
pub mod search;
pub mod state;
pub mod telemetry;
pub mod transfer;
pub mod transport;
pub mod trust;
#[cfg(feature = "programs")]
pub mod web;
