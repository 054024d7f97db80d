//! Real processes, real QUIC: one file per journey, named by the promises that it shows.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod compaction;
mod convergence;
mod crash;
mod damage;
mod fleet;
mod offline;
mod repair;
mod trust;
mod verdicts;
