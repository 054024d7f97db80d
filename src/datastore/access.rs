//! What members of each role may ask of the datastore. Everything that is not named here is refused.

use crate::codec::admin::Request;
use crate::codec::message::Open;
use crate::trust::Role;

/// Whether members of a role may open streams of a kind.
pub(super) fn may_open(role: Role, open: Open) -> bool {
    match open {
        Open::Admin | Open::Renew => true,
        Open::Control | Open::Snapshot | Open::StateAndDeletions | Open::WholeState => {
            role.holds_replica() || role == Role::Admin
        }
        Open::Push => role.may_write(),
        Open::Chunks => role.holds_replica(),
        // The datastore opens tails itself, and searches are for other members.
        Open::Tail | Open::Search => false,
    }
}

/// Whether members of a role may make a request. Administrators may make every one. Who holds a replica may see how things
/// stand and the log, of which it is given every entry anyway. Webservers search the audit for administrators, and send what happens at them. A balancer sees who
/// is there.
pub(super) fn may_ask(role: Role, request: &Request) -> bool {
    match role {
        Role::Admin => true,
        Role::Balancer => {
            matches!(request, Request::Status | Request::Presence | Request::Backends | Request::Roots { .. })
        }
        Role::Webserver if matches!(request, Request::Audit { .. } | Request::AuditActs { .. }) => true,
        Role::Webserver | Role::Reader => matches!(
            request,
            Request::Status
                | Request::Presence
                | Request::Collections
                | Request::Tail { .. }
                | Request::History { .. }
                | Request::Generations
                | Request::Proof
                | Request::Escrow { .. }
                | Request::Roots { .. }
        ),
    }
}
