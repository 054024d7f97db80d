//! Connections between members without the datastore.
//!
//! Every webserver may listen on a separate UDP port for other members. The [`Roster`], which the datastore sends and
//! every member stores, contains the members and their addresses, so that members find and authenticate each other while
//! the datastore is unreachable. A certificate is valid only while the last roster contains it: when a member is revoked,
//! others close its connections as soon as they are informed.
//!
//! A stream starts with its purpose ([`Open`]). Handlers of such streams are registered with [`Peers::serve`]. The other
//! side uses [`Peers::open`], which connects if there is no connection yet and reuses connections.
//!
//! [`Roster`]: crate::trust::Roster
//! [`Open`]: gravwell_model::codec::message::Open

mod dial;
mod listen;
mod membership;
mod peers;

pub use dial::{PeerError, PeerStream};
pub use listen::{Handler, Peer, Serving};
pub use peers::Peers;
