//! Access rules: the streams and requests that each member role may use. Everything not listed here is refused.

use gravwell_model::codec::admin::Request;
use gravwell_model::codec::message::Open;
use gravwell_transport::trust::Role;

/// Returns whether members of `role` may open a stream of this kind.
pub(super) fn may_open(role: Role, open: Open) -> bool {
    match open {
        Open::Admin | Open::Renew => true,
        Open::Control | Open::Snapshot | Open::StateAndDeletions | Open::WholeState => {
            role.holds_replica() || role == Role::Admin
        }
        Open::Push => role.may_write(),
        Open::Chunks => role.holds_replica(),
        // The datastore opens tails itself, and search streams go to other members.
        Open::Tail | Open::Search => false,
    }
}

/// Returns whether members of `role` may make `request`.
/// Administrators may make every request. Members that hold a replica may read status and the log, because they receive
/// every entry anyway. Webservers search the audit for administrators and report acts that happened at them. Balancers
/// may see the connected members.
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

/// Returns whether members may make `request` although they may have been revoked in a later register than the present
/// one: it discloses nothing of the log and the state.
pub(super) fn is_open_to_all(request: &Request) -> bool {
    matches!(
        request,
        Request::Status
            | Request::Upstream
            | Request::Presence
            | Request::Backends
            | Request::Proof
            | Request::Escrow { .. }
            | Request::Roots { .. }
            | Request::AuditActs { .. }
    )
}
