//! Current connections. The number per member is limited: a new connection replaces the oldest, so lost connections
//! cannot keep out a restarted member.

use std::collections::BTreeMap;

use gravwell_model::MemberName;
use gravwell_model::codec::admin::PresenceInfo;
use gravwell_transport::trust::Role;

/// Identifies one connection.
pub(super) type PresenceId = u64;

/// Connections, of each kind, of a member that follows the log.
pub(super) const OF_REPLICA: usize = 4;
/// Connections of a member that only makes requests. Every command of an administrator is a connection.
const OF_OTHERS: usize = 16;
/// Close code of a connection that was replaced by a newer one.
const CLOSE_REPLACED: u32 = 5;

pub(super) struct Present {
    pub info: PresenceInfo,
    pub member: MemberName,
    pub connection: quinn::Connection,
    pub role: Role,
    /// Whether it carries only chunks. Such a connection does not count as presence.
    pub is_bulk: bool,
}

#[derive(Default)]
pub(super) struct Presences {
    next: PresenceId,
    pub present: BTreeMap<PresenceId, Present>,
}

fn most(role: Role) -> usize {
    if role.holds_replica() { OF_REPLICA } else { OF_OTHERS }
}

impl Presences {
    /// Adds a connection. Closes the oldest connections of the same member and kind beyond the limit.
    pub(super) fn add(&mut self, present: Present) -> PresenceId {
        let is_alike = |other: &Present| other.member == present.member && other.is_bulk == present.is_bulk;
        let alike: Vec<PresenceId> =
            self.present.iter().filter(|(_, other)| is_alike(other)).map(|(id, _)| *id).collect();
        let too_many = (alike.len() + 1).saturating_sub(most(present.role));
        for id in alike.into_iter().take(too_many) {
            if let Some(replaced) = self.present.remove(&id) {
                let reason = format!("{}: replaced by a newer connection of this member", replaced.member);
                replaced.connection.close(CLOSE_REPLACED.into(), reason.as_bytes());
            }
        }
        let id = self.next;
        self.next += 1;
        self.present.insert(id, present);
        id
    }

    /// Returns whether a member is connected already.
    pub(super) fn has(&self, member: &MemberName) -> bool {
        self.present.values().any(|present| present.member == *member)
    }

    /// Returns the number of connections that are not for chunks.
    pub(super) fn count(&self) -> u64 {
        self.present.values().filter(|present| !present.is_bulk).count() as u64
    }
}
