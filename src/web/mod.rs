//! The webserver: the REST API of existing clients, and an interface for browsers, over a replica.
//!
//! Every request passes the guard, which identifies the caller and checks that the route's row in the table lets them, and
//! does so again while its answer lasts; what a handler then does with an object that has an owner is decided by
//! [`crate::objects::sharing`]. Nothing else decides.

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
mod searching;
pub mod server;
mod standalone;
mod strangers;
mod streamed;
mod sweeper;
mod tls;
mod turns;
mod uploads;
