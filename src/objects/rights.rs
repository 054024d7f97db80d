//! Rights that a change needs and that its author can lose: the administrator role for changes that affect all users or
//! objects of another user, and a membership for objects shared with a group. Work on the user's own objects
//! needs neither.

use std::collections::BTreeSet;

use super::blobs::Content;
use super::cleanup::{self, Cleaning, Of};
use super::history::Entry;
use super::kinds::{self, ReadShares};
use super::notifications::Notification;
use super::preferences::Preference;
use super::record::Stored;
use super::sharing::{ShareScope, Shares};
use super::users::Membership;
use super::{Store, StoreError};
use gravwell_model::Op;

/// With more groups, a change by an administrator depends on the role instead.
const GROUPS_OF_ADMIN_MAX: usize = 8;

/// Rights that a change needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rights {
    /// Whether it needs the administrator role.
    pub role: bool,
    /// GIDs of required memberships.
    pub groups: BTreeSet<i32>,
    /// GIDs of the groups with which something is newly shared.
    pub shared: BTreeSet<i32>,
}

/// Present state that affects the required rights.
pub(super) trait There {
    /// Returns the present value of the object that an operation changes.
    fn before(&self, op: &Op) -> Result<Option<bytes::Bytes>, StoreError>;
    /// Returns whether a user is a member of a group.
    fn is_member(&self, uid: i32, gid: i32) -> Result<bool, StoreError>;
}

impl There for Store {
    fn before(&self, op: &Op) -> Result<Option<bytes::Bytes>, StoreError> {
        Ok(self.raw(op.collection(), op.key())?.map(|(value, _)| value))
    }

    fn is_member(&self, uid: i32, gid: i32) -> Result<bool, StoreError> {
        self.has::<Membership>(&Membership { uid, gid }.key())
    }
}

/// Returns the rights that these operations of a user need.
pub(super) fn of<'a>(
    there: &impl There,
    uid: i32,
    is_admin: bool,
    ops: impl IntoIterator<Item = &'a Op>,
) -> Result<Rights, StoreError> {
    let mut needed = Needed { there, uid, rights: Rights::default() };
    for op in ops {
        needed.add(op)?;
    }
    let Rights { role, groups, shared } = needed.rights;
    // The role permits everything, so memberships are irrelevant.
    if is_admin && (role || groups.len() > GROUPS_OF_ADMIN_MAX) {
        return Ok(Rights { role: true, groups: BTreeSet::new(), shared });
    }
    Ok(Rights { role, groups, shared })
}

struct Needed<'a, T> {
    there: &'a T,
    uid: i32,
    rights: Rights,
}

fn understood<T: Stored>(value: &[u8]) -> Option<T> {
    serde_json::from_slice(value).ok()
}

impl<T: There> Needed<'_, T> {
    fn add(&mut self, op: &Op) -> Result<(), StoreError> {
        let key = op.key().as_str();
        let is_own = key.split('/').next() == Some(self.uid.to_string().as_str());
        if let Some(shares) = kinds::of(op.collection().as_str()).and_then(|kind| kind.shares) {
            return self.add_shared(op, shares);
        }
        match op.collection().as_str() {
            Notification::COLLECTION => self.add_notification(op),
            Preference::COLLECTION => {
                self.rights.role |= !is_own;
                Ok(())
            }
            Entry::COLLECTION => {
                self.rights.role |= !is_own;
                let Some(entry) = op.value().and_then(|value| understood::<Entry>(value)) else { return Ok(()) };
                self.rights.role |= entry.global;
                // Members of the groups can read it.
                let groups = entry.gids.iter().copied().chain(Some(entry.gid).filter(|gid| *gid != 0));
                groups.collect::<BTreeSet<i32>>().into_iter().try_for_each(|gid| self.add_group(gid))
            }
            Cleaning::COLLECTION => {
                let is_own_history =
                    key == cleanup::key(Of::History, self.uid) || key.starts_with(&cleanup::history_prefix(self.uid));
                self.rights.role |= !is_own_history;
                Ok(())
            }
            // The object that references a blob determines the right.
            Content::COLLECTION => Ok(()),
            // Only administrators write to other collections.
            _ => {
                self.rights.role = true;
                Ok(())
            }
        }
    }

    fn add_notification(&mut self, op: &Op) -> Result<(), StoreError> {
        let (before, uid) = (self.there.before(op)?, self.uid);
        let is_own = |value: &bytes::Bytes| {
            understood::<Notification>(value).is_some_and(|it| it.uid == uid && it.gid == 0 && !it.broadcast)
        };
        self.rights.role |= !before.iter().chain(op.value()).all(is_own);
        Ok(())
    }

    fn add_shared(&mut self, op: &Op, shares: ReadShares) -> Result<(), StoreError> {
        let before = self.there.before(op)?;
        let (before, after) = match (before.map(|value| shares(&value)), op.value().map(|value| shares(value))) {
            // The owner of an invalid object is unknown.
            (Some(None), _) | (_, Some(None)) => {
                self.rights.role = true;
                return Ok(());
            }
            (before, after) => (before.flatten(), after.flatten()),
        };
        let none = || [ShareScope::default(), ShareScope::default()];
        let shares = |one: &Shares| [one.readers.clone(), one.writers.clone()];
        match (before, after) {
            (None, None) => Ok(()),
            (Some(before), None) => {
                self.rights.role |= before.owner != self.uid;
                Ok(())
            }
            (None, Some(after)) => {
                self.rights.role |= after.owner != self.uid;
                self.add_audiences(&none(), &shares(&after))
            }
            (Some(before), Some(after)) if before.owner == self.uid => {
                self.rights.role |= after.owner != self.uid;
                self.add_audiences(&shares(&before), &shares(&after))
            }
            (Some(before), Some(after)) => {
                let is_as_before = before.owner == after.owner && shares(&before) == shares(&after);
                self.add_writer(is_as_before, &before.writers)
            }
        }
    }

    /// Adds rights for new shares. Existing shares may stay.
    fn add_audiences(&mut self, before: &[ShareScope; 2], after: &[ShareScope; 2]) -> Result<(), StoreError> {
        for (known, audience) in before.iter().zip(after) {
            self.rights.role |= audience.global && !known.global;
            for gid in audience.groups.iter().filter(|gid| !known.groups.contains(gid)) {
                self.add_group(*gid)?;
            }
        }
        Ok(())
    }

    fn add_group(&mut self, gid: i32) -> Result<(), StoreError> {
        self.rights.shared.insert(gid);
        if self.there.is_member(self.uid, gid)? {
            self.rights.groups.insert(gid);
        } else {
            self.rights.role = true;
        }
        Ok(())
    }

    /// Adds the right to change another user's object: a membership, unless all users may change it.
    fn add_writer(&mut self, is_as_before: bool, writers: &ShareScope) -> Result<(), StoreError> {
        if is_as_before && writers.global {
            return Ok(());
        }
        for gid in writers.groups.iter().filter(|_| is_as_before) {
            if self.there.is_member(self.uid, *gid)? {
                self.rights.groups.insert(*gid);
                return Ok(());
            }
        }
        self.rights.role = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use gravwell_model::{Collection, Key};

    /// One object, and the groups of user 7.
    struct One(Option<Value>, &'static [i32]);

    impl There for One {
        fn before(&self, _: &Op) -> Result<Option<bytes::Bytes>, StoreError> {
            Ok(self.0.as_ref().map(|value| value.to_string().into()))
        }
        fn is_member(&self, uid: i32, gid: i32) -> Result<bool, StoreError> {
            Ok(uid == 7 && self.1.contains(&gid))
        }
    }

    const DATE: &str = "2026-01-01T00:00:00Z";

    fn dashboard(uid: i32, gids: &[i32], global: bool, writers: &[i32]) -> Value {
        json!({ "ID": 5, "Name": "d", "UID": uid, "GIDs": gids, "Global": global, "Created": DATE, "Updated": DATE,
                "Data": {}, "WriteAccess": { "Global": false, "GIDs": writers } })
    }

    fn op(collection: &str, key: &str, value: Option<&Value>) -> Op {
        let (collection, key) = (Collection::new(collection).expect("name"), Key::new(key).expect("key"));
        match value {
            Some(value) => Op::Put { collection, key, value: value.to_string().into() },
            None => Op::Delete { collection, key },
        }
    }

    fn needed(before: Option<Value>, after: Option<Value>) -> (bool, Vec<i32>) {
        let ops = [op("dashboards", "5", after.as_ref())];
        let found = of(&One(before, &[3, 4]), 7, false, &ops).expect("reads");
        (found.role, found.groups.into_iter().collect())
    }

    #[test]
    fn p11_ordinary_work_needs_no_right_that_others_take_away() {
        let own = |gids: &[i32], global| Some(dashboard(7, gids, global, gids));
        for (before, after) in [
            (None, own(&[], false)),
            (own(&[], false), own(&[], false)),
            (own(&[], false), None),
            // Existing shares are kept, even with a group that the user has left, or with all users.
            (own(&[3, 9], true), own(&[3, 9], true)),
            (own(&[3, 9], true), own(&[], false)),
            (None, None),
        ] {
            assert_eq!(needed(before.clone(), after.clone()), (false, vec![]), "{before:?} {after:?}");
        }
        for (collection, key) in
            [("preferences", "7/prefs"), ("history", "7/a"), ("contents", "c"), ("cleanings", "history/7")]
        {
            let found = of(&One(None, &[]), 7, true, &[op(collection, key, None)]).expect("reads");
            assert_eq!(found, Rights::default(), "{collection}");
        }
    }

    #[test]
    fn p11_what_is_shared_with_a_group_needs_the_membership() {
        let of_group = |after| needed(Some(dashboard(7, &[9], false, &[])), after);
        assert_eq!(of_group(Some(dashboard(7, &[9, 3], false, &[4]))), (false, vec![3, 4]));
        assert_eq!(needed(None, Some(dashboard(7, &[3], false, &[]))), (false, vec![3]));
        // Another user's object that the group may change, with unchanged shares.
        let others = |gids: &[i32]| Some(dashboard(66, gids, false, &[8, 4]));
        assert_eq!(needed(others(&[]), others(&[])), (false, vec![4]));
        assert_eq!(needed(others(&[]), others(&[4])), (true, vec![]), "only its owner may share it");
    }

    #[test]
    fn p11_what_belongs_to_others_or_concerns_everybody_needs_the_role() {
        let others = || Some(dashboard(66, &[3], false, &[]));
        for (what, before, after) in [
            ("created for another user", None, others()),
            ("changed", others(), others()),
            ("deleted", others(), None),
            ("transferred", Some(dashboard(7, &[], false, &[])), Some(dashboard(66, &[], false, &[]))),
            ("shared with all users", None, Some(dashboard(7, &[], true, &[]))),
            ("shared with a group of other users", None, Some(dashboard(7, &[9], false, &[]))),
            ("invalid before", Some(json!({})), None),
        ] {
            assert!(needed(before, after).0, "{what}");
        }
        let note = |uid: i32, gid: i32, broadcast: bool| json!({ "ID": 5, "UID": uid, "GID": gid, "Broadcast": broadcast, "Sent": DATE, "Expires": DATE });
        for (before, after, role) in [
            (None, Some(note(7, 0, false)), false),
            (Some(note(7, 0, false)), None, false),
            (None, Some(note(66, 0, false)), true),
            (None, Some(note(0, 3, false)), true),
            (None, Some(note(0, 0, true)), true),
            (Some(note(0, 0, true)), None, true),
        ] {
            let ops = [op("notifications", "5", after.as_ref())];
            let found = of(&One(before.clone(), &[3]), 7, true, &ops).expect("reads");
            assert_eq!(found.role, role, "{before:?} {after:?}");
        }
        let others = [
            ("preferences", "66/prefs"),
            ("history", "66/a"),
            ("cleanings", "history/66"),
            ("of-a-later-version", "7"),
        ];
        for (collection, key) in others {
            let found = of(&One(None, &[]), 7, true, &[op(collection, key, None)]).expect("reads");
            assert!(found.role, "{collection}");
        }
    }

    #[test]
    fn p15_an_administrator_answers_for_many_groups_with_the_role() {
        let groups: &'static [i32] = &[1, 2, 3, 4, 5, 6, 7, 8, 9];
        let ops = [op("dashboards", "5", Some(&dashboard(7, groups, false, &[])))];
        let found = |is_admin| of(&One(None, groups), 7, is_admin, &ops).expect("reads");
        assert_eq!((found(true).role, found(true).groups.len()), (true, 0));
        assert_eq!(found(true).shared.len(), groups.len(), "the existence of the groups must be required");
        assert_eq!(found(false).groups.len(), groups.len(), "other users must be members of each group");
    }
}
