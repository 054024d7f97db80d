//! Searches: a query over sources that runs on one webserver, which keeps the results and announces the search in
//! the log.
//!
//! [`query`] parses the query text. [`source`] produces rows; each kind of source has its own file. [`engine`] runs a
//! query as a chain of iterators that buffer little. [`filter`] runs jq in a separate process, so that a runaway filter
//! can be killed. [`results`] is the file that stores rows, and [`render`] converts them to text, JSON and CSV.
//! [`searches`] manages the searches that run here and the results kept here, and publishes both through the log. Nothing
//! here depends on the HTTP server.

// Both panic if the output cannot be written; see `src/runtime/telemetry/output.rs`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod client_filters;
pub mod control;
pub mod engine;
pub mod filter;
pub mod pick;
pub mod query;
pub mod render;
pub mod results;
pub mod row;
mod sandbox;
pub mod searches;
pub mod source;
pub mod stages;
pub mod worker;
