//! Members that speak with each other without the datastore between them.
//!
//! Every webserver may listen on a UDP port of its own. Who may connect, and where to, is in the [`Roster`] that the
//! datastore sends and every member keeps on its disk, so that members find and authenticate each other while the
//! datastore is away. A certificate counts only while the last roster names it: when a member is revoked, its
//! connections to others are closed as soon as they hear of it.
//!
//! A stream begins with what it is for ([`Open`]). What serves such streams is registered with [`Peers::serve`]; the other side
//! uses [`Peers::open`], which connects when there is no connection yet, and keeps connections that are in use.
//!
//! [`Roster`]: crate::trust::Roster
//! [`Open`]: crate::codec::message::Open

mod dial;
mod listen;
mod membership;
mod peers;

pub use dial::{PeerError, PeerStream};
pub use listen::{Handler, Peer, Serving};
pub use peers::Peers;
