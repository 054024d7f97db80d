//! The webserver: the REST API of existing clients, and a browser interface, on top of a replica.
//!
//! Every request passes the authorization middleware, which identifies the caller and checks the access requirement of
//! the route, initially and again while the response lasts. Access to objects with an owner is decided by
//! [`crate::objects::sharing`]. No other code makes access decisions.

mod acts;
mod admission;
mod answers;
mod api;
mod app;
mod assets;
mod bodies;
mod caller;
mod codes;
mod connections;
mod damaged;
mod error;
mod form;
mod guard;
mod headers;
mod housekeeping;
mod input;
mod known_places;
mod leftover;
mod limiter;
mod lingering;
mod listener;
mod listing;
pub mod orders;
mod own_names;
mod position;
mod qr;
mod routes;
mod scans;
mod searching;
pub mod server;
mod standalone;
mod strangers;
mod streamed;
mod sweeper;
mod tls;
mod turns;
mod unknown_memory;
mod uploads;
