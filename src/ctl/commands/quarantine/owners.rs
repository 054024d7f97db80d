//! Users and groups that archived changes are of, or concern.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use gravwell_model::Seq;
use gravwell_objects::Stored;
use gravwell_objects::cleanup::Cleaning;
use gravwell_objects::identities::{self, Number};
use gravwell_replica::conflict_archive::Change;

/// Returns the user or group that a change is of.
fn number_of(change: &Change) -> Option<Number> {
    let is_claim = identities::is_claim(change.collection.as_str());
    identities::named(change.collection.as_str(), change.key.as_str(), None).filter(|_| !is_claim)
}

/// Returns the user or group that a change writes.
pub(super) fn owner_of(change: &Change) -> Option<Number> {
    number_of(change).filter(|_| change.value.is_some())
}

/// Returns the user or group that a change deletes.
pub(super) fn deleted_by(change: &Change) -> Option<Number> {
    number_of(change).filter(|_| change.value.is_none())
}

/// Returns the users and groups that were deleted in the history of an archive. What belongs to them was deleted in later
/// transactions as well; if this member had deleted them itself, the archive may have only the object that recorded that
/// work.
pub(super) fn deleted_owners(changes: &[Change]) -> BTreeSet<Number> {
    let of_cleaning = |change: &Change| {
        let is_of_history = change.key.as_str().starts_with("history/");
        let is_cleaning = change.collection.as_str() == Cleaning::COLLECTION && !is_of_history;
        identities::holders(Cleaning::COLLECTION, change.key.as_str(), None).into_iter().filter(move |_| is_cleaning)
    };
    changes.iter().flat_map(|change| deleted_by(change).into_iter().chain(of_cleaning(change))).collect()
}

/// Returns the users and groups of an archive, with their values.
pub(super) fn archived_owners(changes: &[Change]) -> BTreeMap<Number, Bytes> {
    changes.iter().filter_map(|change| Some((owner_of(change)?, change.value.clone()?))).collect()
}

/// A user or group in the log.
pub(super) enum Owner {
    Absent,
    /// The one that was meant.
    Same,
    /// Another one, or it is unknown whether it is another one.
    Other,
}

impl Owner {
    /// Compares the user or group in the log with the one of an archive. What the archive lacks was the same in the log
    /// when the histories parted; since then, its number can only have become another one's if it was deleted.
    pub(super) fn of(
        number: Number,
        archived: Option<&Bytes>,
        there: Option<(Seq, &Bytes)>,
        deleted: Option<Seq>,
        (complete_after, shared_to): (Seq, Seq),
    ) -> Owner {
        let Some((version, value)) = there else { return Owner::Absent };
        let is_kept =
            version <= shared_to || (deleted.is_none_or(|seq| seq <= shared_to) && complete_after <= shared_to);
        let is_same = archived.map_or(is_kept, |archived| identities::is_same(number, archived, value));
        if is_same { Owner::Same } else { Owner::Other }
    }
}
