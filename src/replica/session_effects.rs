//! Effects of the session machine that need only the replica's memory and state. A connection and a simulation carry
//! them out with the same functions.

use gravwell_model::codec::message::{Heartbeat, Welcome};
use gravwell_model::{Position, Verdict};
use gravwell_protocol::session::client::{Compared, Effect, Event, ForkPoint, Leave};
use gravwell_state::{Fork, StateStore};

use super::conflict_archive::Set;
use super::shared::ReplicaState;
use super::{leaving, role};

impl ReplicaState {
    /// Carries out an effect, given the clock of this host, and returns the event that completes it, if there is one.
    ///
    /// # Errors
    /// Returns an effect that needs more than memory and state.
    pub(super) fn carry_out(&self, effect: Effect, own_ms: u64) -> Result<Option<Event>, Effect> {
        match effect {
            Effect::Compare(mine, welcome) => {
                return Ok(Some(Event::Compared(self.compare(mine.as_ref(), &welcome))));
            }
            Effect::Welcomed(welcome, verdict) => self.update_link(|link| {
                link.verdict = Some(verdict);
                (link.head, link.horizon) = (welcome.head, welcome.horizon);
                link.trouble.clear();
            }),
            Effect::ReportVerdict(verdict) => self.set_problem(format!("the datastore is {verdict}")),
            Effect::Accept(welcome, verdict) => self.accept(&welcome, verdict),
            Effect::TakeOver(welcome) => {
                return Ok(Some(match self.take_over(&welcome) {
                    Ok(position) => Event::TakenOver { position, wants_resync: self.wants_resync() },
                    Err(error) => Event::Failed(error),
                }));
            }
            Effect::Connected(..) => self.update_link(|link| link.connected = true),
            Effect::Heartbeat(heartbeat) => self.take_heartbeat(heartbeat, own_ms),
            Effect::Horizon(horizon) => self.update_link(|link| link.horizon = horizon),
            effect => return Err(effect),
        }
        Ok(None)
    }

    fn compare(&self, mine: Option<&Position>, welcome: &Welcome) -> Compared {
        let meta = self.state().meta();
        let present = meta.as_ref().map(|meta| (meta.seq, meta.lineage.clone()));
        let (present, lineage) = present.unwrap_or_default();
        let upon = |shared_to| leaving::is_upon_later(self, shared_to);
        let fork = mine.and_then(|mine| leaving::fork(mine, (present, &lineage), welcome, upon));
        Compared {
            is_lacking: self.is_lacking(welcome),
            wants_resync: self.wants_resync(),
            is_disk_full: self.disk.is_full(),
            fork: fork.map(|fork| ForkPoint {
                shared_to: fork.shared_to,
                theirs: fork.theirs.into_iter().cloned().collect(),
            }),
        }
    }

    fn accept(&self, welcome: &Welcome, verdict: Verdict) {
        self.update_link(|link| link.verdict = Some(verdict));
        if !self.wants_resync() {
            self.set_problem("");
        }
        self.set_forbidden(role::forbidden(&welcome.role));
    }

    fn take_heartbeat(&self, heartbeat: Heartbeat, own_ms: u64) {
        self.datastore.note_clock(heartbeat.time_ms, own_ms);
        self.update_link(|link| {
            link.head = link.head.max(heartbeat.head);
            link.floor = heartbeat.floor;
        });
        self.outbox_mut().drop_below(heartbeat.floor);
    }

    /// Handles the end of a connection, for any reason.
    pub(super) fn note_disconnected(&self) {
        self.update_link(|link| link.disconnect());
        self.gate().handle_disconnected();
        self.datastore.clear_refused();
    }

    /// Describes the archive of a member that leaves its history for a fetched state. `fork` is the reason for which the
    /// state could not just replace the present one, if it was tried.
    pub(super) fn set_for(&self, leave: Leave, state: &StateStore, fork: Option<&Fork>) -> Result<Set, String> {
        match leave {
            Leave::Lineage { mine, left_by, shared_to, is_restore } => {
                let shared_to = leaving::earlier_fork(self, state, shared_to).map_err(|error| error.to_string())?;
                Ok(Set { is_restore, ..leaving::set_of(&mine, left_by, shared_to) })
            }
            Leave::Lost => leaving::set_of_lost(self, state),
            Leave::Forked => leaving::set_of_fork(self, state, fork.ok_or("the state was not compared")?),
        }
    }
}
