//! The webserver: the REST API of existing clients, and a browser interface, on top of a replica.
//!
//! Every request passes the authorization middleware, which identifies the caller and checks the access requirement of
//! the route, initially and again while the response lasts. Access to objects with an owner is decided by
//! [`gravwell_objects::sharing`]. No other code makes access decisions.

// Both panic if the output cannot be written; see `src/runtime/telemetry/output.rs`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod admission;
mod api;
mod app;
mod assets;
mod audit_acts;
mod authorization;
mod body_budget;
mod body_drain;
mod caller;
mod code_throttle;
mod connections;
mod consistency_token;
mod entity_tags;
mod error;
mod form;
mod headers;
mod host_names;
mod housekeeping;
mod invalid_objects;
mod known_places;
mod lingering_close;
mod listener;
mod listing;
mod login_queue;
mod login_throttle;
mod periodic_tasks;
pub mod process_control;
mod qr;
mod request_input;
mod response_buffer;
mod route;
mod routes;
mod scan_slots;
mod search_forwarding;
pub mod server;
mod standalone;
mod stream_limits;
mod tls;
mod unauthenticated;
mod unknown_memory;
mod upload_quota;
