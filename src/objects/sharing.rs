//! Access rules for objects that have an owner and may be shared. This is the only place that decides them.

use serde::{Deserialize, Serialize};

/// Users with whom an object is shared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareScope {
    /// Includes all users.
    #[serde(rename = "Global", default)]
    pub global: bool,
    /// Includes members of the groups with these GIDs.
    #[serde(rename = "GIDs", default, deserialize_with = "super::sharing::null_is_empty")]
    pub groups: Vec<i32>,
}

/// Decodes a list for which clients may send `null`.
///
/// # Errors
/// If it is neither a list nor `null`.
pub fn null_is_empty<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A user who requests access.
#[derive(Clone, Debug, Default)]
pub struct Principal {
    /// UID of the user.
    pub uid: i32,
    /// Whether the user is an administrator.
    pub admin: bool,
    /// GIDs of the user's groups.
    pub groups: Vec<i32>,
}

impl Principal {
    /// Returns whether the user may share with these groups: administrators may, and members of all of them.
    #[must_use]
    pub fn may_share_with(&self, groups: &[i32]) -> bool {
        self.foreign_group(groups, &[]).is_none()
    }

    /// Returns the first of these groups with which the user may not share. Clients send back all groups that they have
    /// read, so groups with which the object was shared `before` are accepted, even after its owner has left them.
    #[must_use]
    pub fn foreign_group(&self, groups: &[i32], before: &[i32]) -> Option<i32> {
        let is_foreign = |group: &&i32| !self.admin && !self.groups.contains(group) && !before.contains(group);
        groups.iter().find(is_foreign).copied()
    }
}

impl ShareScope {
    /// Returns whether the person is included.
    #[must_use]
    pub fn includes(&self, person: &Principal) -> bool {
        self.global || self.groups.iter().any(|group| person.groups.contains(group))
    }
}

/// An object with an owner.
pub trait Shareable {
    /// Returns the UID of the owner.
    fn owner(&self) -> i32;
    /// Returns the additional users who may read it.
    fn readers(&self) -> ShareScope;
    /// Returns the additional users who may change it.
    fn writers(&self) -> ShareScope;

    /// Returns whether ordinary lists include it: the person's own objects, and those shared with their groups or
    /// all users.
    fn is_listed_for(&self, person: &Principal) -> bool {
        self.owner() == person.uid || self.readers().includes(person) || self.writers().includes(person)
    }

    /// Returns whether the person may read it. Administrators may, by its id.
    fn is_readable_by(&self, person: &Principal) -> bool {
        person.admin || self.is_listed_for(person)
    }

    /// Returns whether the person may change it.
    fn is_writable_by(&self, person: &Principal) -> bool {
        person.admin || self.owner() == person.uid || self.writers().includes(person)
    }

    /// Returns whether the person may delete, transfer or share it.
    fn is_owned_by(&self, person: &Principal) -> bool {
        person.admin || self.owner() == person.uid
    }

    /// Returns how distant it is from a person, for the choice among several objects with one GUID: first the person's
    /// own, then one shared with one of their groups, then one shared with all users; then any other.
    fn distance(&self, person: &Principal) -> u8 {
        let (readers, writers) = (self.readers(), self.writers());
        let is_in = |audience: &ShareScope| audience.groups.iter().any(|group| person.groups.contains(group));
        match () {
            () if self.owner() == person.uid => 0,
            () if is_in(&readers) || is_in(&writers) => 1,
            () if readers.global || writers.global => 2,
            () => 3,
        }
    }
}

/// Owner of an object, and the users with whom it is shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// UID of the owner.
    pub owner: i32,
    /// Additional users who may read it.
    pub readers: ShareScope,
    /// Additional users who may change it.
    pub writers: ShareScope,
}

impl Shares {
    /// Returns the owner and the share scope of an object.
    #[must_use]
    pub fn of(object: &impl Shareable) -> Shares {
        Shares { owner: object.owner(), readers: object.readers(), writers: object.writers() }
    }

    /// Returns whether it is shared with no other user.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.readers == ShareScope::default() && self.writers == ShareScope::default()
    }
}

impl Shareable for Shares {
    fn owner(&self) -> i32 {
        self.owner
    }
    fn readers(&self) -> ShareScope {
        self.readers.clone()
    }
    fn writers(&self) -> ShareScope {
        self.writers.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Thing(ShareScope, ShareScope);

    impl Shareable for Thing {
        fn owner(&self) -> i32 {
            5
        }
        fn readers(&self) -> ShareScope {
            self.0.clone()
        }
        fn writers(&self) -> ShareScope {
            self.1.clone()
        }
    }

    fn person(uid: i32, admin: bool, groups: &[i32]) -> Principal {
        Principal { uid, admin, groups: groups.to_vec() }
    }

    #[test]
    fn only_members_share_with_a_group() {
        let (admin, member) = (person(1, true, &[]), person(6, false, &[3, 4]));
        type Row<'a> = (&'a Principal, &'a [i32], &'a [i32], Option<i32>);
        let table: [Row<'_>; 7] = [
            (&member, &[], &[], None),
            (&member, &[3, 4], &[], None),
            (&member, &[3, 5], &[], Some(5)),
            (&member, &[5, 3], &[5], None),
            (&member, &[5, 6], &[5], Some(6)),
            (&member, &[], &[5], None),
            (&admin, &[5, 6], &[], None),
        ];
        for (person, groups, before, foreign) in table {
            assert_eq!(person.foreign_group(groups, before), foreign, "{person:?} {groups:?} {before:?}");
        }
    }

    /// Rights to list, read, change and own; one row per case.
    #[test]
    fn the_table_of_sharing() {
        let group = |gid| ShareScope { global: false, groups: vec![gid] };
        let all = ShareScope { global: true, groups: Vec::new() };
        let none = ShareScope::default();
        let (owner, admin, member, stranger) =
            (person(5, false, &[]), person(1, true, &[]), person(6, false, &[3]), person(7, false, &[4]));
        let table = [
            (&none, &none, &owner, [true, true, true, true]),
            (&none, &none, &admin, [false, true, true, true]),
            (&none, &none, &member, [false, false, false, false]),
            (&group(3), &none, &member, [true, true, false, false]),
            (&group(3), &none, &stranger, [false, false, false, false]),
            (&group(3), &group(3), &member, [true, true, true, false]),
            (&none, &group(3), &member, [true, true, true, false]),
            (&all, &none, &stranger, [true, true, false, false]),
            (&all, &all, &stranger, [true, true, true, false]),
            (&all, &group(4), &stranger, [true, true, true, false]),
        ];
        for (number, (readers, writers, who, wanted)) in table.into_iter().enumerate() {
            let thing = Thing(readers.clone(), writers.clone());
            let found = [
                thing.is_listed_for(who),
                thing.is_readable_by(who),
                thing.is_writable_by(who),
                thing.is_owned_by(who),
            ];
            assert_eq!(found, wanted, "row {number}");
        }
    }
}
