//! Compares archived changes with the current log.

use bytes::Bytes;

use gravwell_model::Seq;
use gravwell_model::codec::message::Row;
use gravwell_replica::conflict_archive::{Change, Set};

use crate::client::Client;
use crate::client::deletions::Deletions;
use crate::error::CtlError;

/// Current state of the object of a change: its version (`None` if absent), and whether it has the value of the change,
/// or is absent as after a deletion.
pub(super) struct Present {
    pub version: Option<Seq>,
    pub value: Option<Bytes>,
    pub is_same: bool,
}

/// Returns the current state of the object of a change.
pub(super) async fn present(client: &Client, change: &Change) -> Result<Present, CtlError> {
    Ok(match client.object(&change.collection, &change.key, None).await? {
        Some(Row::Object { version, value, .. }) => {
            let is_same = change.value.as_ref() == Some(&value);
            Present { version: Some(version), value: Some(value), is_same }
        }
        _ => Present { version: None, value: None, is_same: change.value.is_none() },
    })
}

/// Returns whether the current log has what a change makes. An object may be absent because the log does not have it
/// yet: its creator may still push it, unless the log has the deletion.
pub(super) fn is_made(set: &Set, change: &Change, present: &Present, deletions: &Deletions) -> bool {
    let deleted = || deletions.rows.get(&(change.collection.clone(), change.key.clone())).copied();
    let is_deleted = || deleted().is_some_and(|seq| seq > set.shared_with(&deletions.lineage));
    present.is_same && (change.value.is_some() || is_deleted())
}

/// Returns why a change is skipped unless forced: its author did not see later changes of the object in the
/// current log.
pub(super) fn objection(
    set: &Set,
    change: &Change,
    present: &Present,
    deletions: &Deletions,
    is_connected: bool,
) -> Option<String> {
    // The current log may have diverged from the one that was followed when this set was archived; then less is shared.
    let shared_to = set.shared_with(&deletions.lineage);
    let is_other = change.there.is_some_and(|there| present.version.unwrap_or_default() != there);
    // A deletion of an absent object removes nothing.
    if change.value.is_none() && present.version.is_none() {
        return None;
    }
    // Only what was deleted is there again.
    let is_again = change.is_seen && change.value.is_none() && !is_other;
    if is_again && present.version.is_some_and(|version| set.still_has(version, &deletions.lineage)) {
        return None;
    }
    if present.version.is_some_and(|version| version > shared_to) {
        return Some("was changed since".into());
    }
    if present.version.is_some() {
        return is_other.then(|| "was changed since".into());
    }
    // An absent object has no version to compare: it may have been created and deleted since.
    let deleted = deletions.rows.get(&(change.collection.clone(), change.key.clone()));
    if let Some(seq) = deleted.filter(|seq| **seq > shared_to) {
        return Some(format!("was changed since: it was deleted, at sequence {seq}"));
    }
    if is_other {
        return Some("was changed since: it is absent".into());
    }
    if deletions.complete_after > shared_to {
        let (known, from) = (deletions.complete_after, shared_to);
        return Some(format!(
            "may have been changed since: it is absent, and deletions are known only after sequence {known}, but the \
             histories diverge at {from}"
        ));
    }
    let unknown = "may have been changed since: it is absent, and the datastore, which would know, is unreachable";
    (!is_connected).then(|| unknown.into())
}

#[cfg(test)]
mod tests {
    use gravwell_model::{Collection, Digest, Generation, Key, LineageEntry, LogId};

    use super::*;

    #[test]
    fn p04_what_was_changed_after_a_second_recovery_is_not_overwritten() {
        let lineage = |entries: &[(u64, u64)]| {
            let entry = |(generation, shared_to): &(u64, u64)| LineageEntry {
                generation: Generation(*generation),
                shared_to: Seq(*shared_to),
            };
            entries.iter().map(entry).collect::<Vec<_>>()
        };
        let set = Set {
            log_id: LogId([1; 16]),
            generation: Generation(1),
            left_by: Generation(2),
            lineage: lineage(&[(1, 0), (2, 10)]),
            shared_to: Seq(10),
            seq: Seq(11),
            digest: Digest::ZERO,
            is_restore: false,
            deletions_after: None,
            revoked_ms: None,
        };
        let (collection, key) = (Collection::new("c").expect("name"), Key::new("x").expect("key"));
        let value = Some(Bytes::from_static(b"1"));
        let named = (collection.clone(), key.clone());
        let (seq, there) = (Some(Seq(11)), Some(Seq(9)));
        let change = Change { seq, time_ms: None, collection, key, value, there, is_seen: false };
        let objection = |entries: &[(u64, u64)], version: Option<u64>, deleted: Option<u64>| {
            let rows = deleted.map(|seq| (named.clone(), Seq(seq))).into_iter().collect();
            let deletions = Deletions { lineage: lineage(entries), rows, ..Deletions::default() };
            let present = Present { version: version.map(Seq), value: None, is_same: false };
            objection(&set, &change, &present, &deletions, true)
        };
        assert_eq!(objection(&[(1, 0), (2, 10)], Some(9), None), None, "as it was");
        assert!(objection(&[(1, 0), (2, 10)], Some(11), None).is_some());
        // The followed log was lost as well: the log that replaced it assigns the sequences from 9 on again.
        let second = [(1, 0), (3, 8)];
        assert!(objection(&second, Some(9), None).is_some(), "another write has the sequence");
        assert!(objection(&second, None, Some(9)).is_some_and(|why| why.contains("deleted")));
        assert!(objection(&second, Some(7), None).is_some(), "as it was before that");
    }

    #[test]
    fn p04_an_archived_deletion_is_made_unless_the_log_has_it() {
        let entry =
            |generation, shared_to| LineageEntry { generation: Generation(generation), shared_to: Seq(shared_to) };
        let followed = vec![entry(1, 0), entry(2, 10)];
        let set = Set {
            log_id: LogId([1; 16]),
            generation: Generation(1),
            left_by: Generation(2),
            lineage: followed.clone(),
            shared_to: Seq(10),
            seq: Seq(13),
            digest: Digest::ZERO,
            is_restore: false,
            deletions_after: None,
            revoked_ms: None,
        };
        let (collection, key) = (Collection::new("c").expect("name"), Key::new("x").expect("key"));
        let named = (collection.clone(), key.clone());
        let change = |there: u64, is_seen| {
            let (collection, key) = named.clone();
            Change { seq: Some(Seq(12)), time_ms: None, collection, key, value: None, there: Some(Seq(there)), is_seen }
        };
        // Returns whether it is there already, and whether it is skipped.
        let judged = |change: &Change, version: Option<u64>, deleted: Option<u64>, lineage: &[LineageEntry]| {
            let rows = deleted.map(|seq| (named.clone(), Seq(seq))).into_iter().collect();
            let deletions = Deletions { lineage: lineage.to_vec(), rows, ..Deletions::default() };
            let present = Present { version: version.map(Seq), value: None, is_same: version.is_none() };
            let objection = objection(&set, change, &present, &deletions, false);
            (is_made(&set, change, &present, &deletions), objection.is_some())
        };
        let absent = change(0, false);
        assert_eq!(judged(&absent, None, None, &followed), (false, false), "its author may still push it");
        assert_eq!(judged(&absent, None, Some(9), &followed), (false, false), "it was created after that");
        assert_eq!(judged(&absent, None, Some(11), &followed), (true, false));
        assert_eq!(judged(&absent, Some(12), None, &followed), (false, true), "it was created since");
        assert_eq!(judged(&change(12, false), Some(12), None, &followed), (false, true), "perhaps by another user");
        assert_eq!(judged(&change(9, false), Some(9), None, &followed), (false, false), "as it was");
        let again = change(12, true);
        assert_eq!(judged(&again, Some(12), None, &followed), (false, false), "the deleted object exists again");
        assert_eq!(judged(&again, Some(13), None, &followed), (false, true), "and was changed since");
        let second = [entry(1, 0), entry(2, 10), entry(3, 11)];
        assert_eq!(judged(&again, Some(12), None, &second), (false, true), "another write has the sequence");
    }
}
