//! Parts that every process has: telemetry, and tasks that are supervised and share threads fairly.

// Both panic if the output cannot be written; see `src/runtime/telemetry/output.rs`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod tasks;
pub mod telemetry;
