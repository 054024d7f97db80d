//! Identities that an abandoned history had accepted, for authors that number their own transactions: imports, and
//! processes that embed a replica.
//!
//! A member that leaves that history archives transactions, or pushes them again under another identity if too many
//! counters before them are missing. The row of the origin in the new log then shows fewer transactions than were
//! accepted, and the author, who submits again what was not answered, would have the rest committed twice. So the outbox
//! and its journal keep the counters.

use std::collections::BTreeMap;

use super::shared::ReplicaState;
use gravwell_model::{Origin, OriginCounter};
use gravwell_protocol::outbox::Outbox;
use gravwell_state::{StateError, StateStore};

/// Records in the future outbox which transactions of this member the present state and the outbox had accepted, and
/// the new state lacks.
pub(super) fn note(shared: &ReplicaState, new: &StateStore, requeued: &mut Outbox) -> Result<(), StateError> {
    let mut accepted: BTreeMap<Origin, OriginCounter> = BTreeMap::new();
    {
        let outbox = shared.outbox();
        let known = outbox.known_origins().into_iter().chain(outbox.accepted_before().map(|(origin, _)| origin));
        accepted.extend(known.map(|origin| (origin, outbox.taken(origin))));
    }
    let old = shared.state().snapshot()?;
    if old.meta().is_some() {
        for row in old.origins() {
            let (origin, row) = row?;
            let is_known = accepted.contains_key(&origin);
            // A row without a known maker is of this member only if its outbox has the origin.
            if is_known || old.maker(origin)?.is_some_and(|maker| shared.is_me(&maker.member)) {
                let counter = accepted.entry(origin).or_default();
                *counter = row.last_counter.max(*counter);
            }
        }
    }
    for (origin, counter) in accepted {
        let there = new.origin(origin)?.map(|row| row.last_counter).unwrap_or_default();
        if counter > there {
            requeued.note_accepted_before(origin, counter);
        }
    }
    Ok(())
}
