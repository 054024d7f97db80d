//! Who is connected now. Connections of one member are few: a new one takes the place of the oldest, so that a member that was
//! restarted is never kept out by connections that it has lost.

use std::collections::BTreeMap;

use crate::codec::admin::PresenceInfo;
use crate::model::MemberName;
use crate::trust::Role;

/// One connection.
pub(super) type PresenceId = u64;

/// Connections of one member that follows the log, of each kind.
pub(super) const OF_REPLICA: usize = 4;
/// Of one that only makes requests: every command of an administrator is a connection.
const OF_OTHERS: usize = 16;
/// Close code of a connection that gives way to a newer one.
const CLOSE_REPLACED: u32 = 5;

pub(super) struct Present {
    pub info: PresenceInfo,
    pub member: MemberName,
    pub connection: quinn::Connection,
    pub role: Role,
    /// It carries nothing but chunks, and says nothing of its own about who is present.
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
    /// Adds a connection; those of the same member and kind that are too many end, the oldest first.
    pub(super) fn add(&mut self, present: Present) -> PresenceId {
        let is_alike = |other: &Present| other.member == present.member && other.is_bulk == present.is_bulk;
        let alike: Vec<PresenceId> =
            self.present.iter().filter(|(_, other)| is_alike(other)).map(|(id, _)| *id).collect();
        let too_many = (alike.len() + 1).saturating_sub(most(present.role));
        for id in alike.into_iter().take(too_many) {
            if let Some(replaced) = self.present.remove(&id) {
                let reason = format!("{}: a newer connection of this member has taken its place", replaced.member);
                replaced.connection.close(CLOSE_REPLACED.into(), reason.as_bytes());
            }
        }
        let id = self.next;
        self.next += 1;
        self.present.insert(id, present);
        id
    }

    /// Whether a member has connections that a new one would only replace or join.
    pub(super) fn has(&self, member: &MemberName) -> bool {
        self.present.values().any(|present| present.member == *member)
    }

    /// Connections that are not for chunks.
    pub(super) fn count(&self) -> u64 {
        self.present.values().filter(|present| !present.is_bulk).count() as u64
    }
}
