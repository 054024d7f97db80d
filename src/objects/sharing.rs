//! Who may read and change an object that has an owner and may be shared. The only place where that is decided.

use serde::{Deserialize, Serialize};

/// Groups, and everybody, that may do something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audience {
    /// Everybody.
    #[serde(rename = "Global", default)]
    pub global: bool,
    /// Members of these groups.
    #[serde(rename = "GIDs", default, deserialize_with = "super::sharing::null_is_empty")]
    pub groups: Vec<i32>,
}

/// Reads a list for which clients may write `null`.
///
/// # Errors
/// When it is neither a list nor `null`.
pub fn null_is_empty<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Somebody who wants to do something.
#[derive(Clone, Debug, Default)]
pub struct Person {
    /// Number.
    pub uid: i32,
    /// Whether the person is an administrator.
    pub admin: bool,
    /// The person's groups.
    pub groups: Vec<i32>,
}

impl Person {
    /// Whether the person may share something with these groups: those of which one is a member.
    #[must_use]
    pub fn may_share_with(&self, groups: &[i32]) -> bool {
        self.foreign_group(groups, &[]).is_none()
    }

    /// The first of these groups with which the person may not share. Clients send back all that they have read, so groups
    /// that something was shared with `before` stay, also after its owner has left them.
    #[must_use]
    pub fn foreign_group(&self, groups: &[i32], before: &[i32]) -> Option<i32> {
        let is_foreign = |group: &&i32| !self.admin && !self.groups.contains(group) && !before.contains(group);
        groups.iter().find(is_foreign).copied()
    }
}

impl Audience {
    /// Whether the person belongs to it.
    #[must_use]
    pub fn includes(&self, person: &Person) -> bool {
        self.global || self.groups.iter().any(|group| person.groups.contains(group))
    }
}

/// An object with an owner.
pub trait Shared {
    /// The owner.
    fn owner(&self) -> i32;
    /// Who may read it besides.
    fn readers(&self) -> Audience;
    /// Who may change it besides.
    fn writers(&self) -> Audience;

    /// Whether an ordinary list shows it to the person: own, shared with a group, or with everybody.
    fn is_listed_for(&self, person: &Person) -> bool {
        self.owner() == person.uid || self.readers().includes(person) || self.writers().includes(person)
    }

    /// Whether the person may read it: administrators may, by its name.
    fn is_readable_by(&self, person: &Person) -> bool {
        person.admin || self.is_listed_for(person)
    }

    /// Whether the person may change it.
    fn is_writable_by(&self, person: &Person) -> bool {
        person.admin || self.owner() == person.uid || self.writers().includes(person)
    }

    /// Whether the person may delete it, give it away or share it.
    fn is_owned_by(&self, person: &Person) -> bool {
        person.admin || self.owner() == person.uid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Thing(Audience, Audience);

    impl Shared for Thing {
        fn owner(&self) -> i32 {
            5
        }
        fn readers(&self) -> Audience {
            self.0.clone()
        }
        fn writers(&self) -> Audience {
            self.1.clone()
        }
    }

    fn person(uid: i32, admin: bool, groups: &[i32]) -> Person {
        Person { uid, admin, groups: groups.to_vec() }
    }

    #[test]
    fn only_members_share_with_a_group() {
        let (admin, member) = (person(1, true, &[]), person(6, false, &[3, 4]));
        type Row<'a> = (&'a Person, &'a [i32], &'a [i32], Option<i32>);
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

    /// Who may list, read, change, own: one row a case.
    #[test]
    fn the_table_of_sharing() {
        let group = |gid| Audience { global: false, groups: vec![gid] };
        let all = Audience { global: true, groups: Vec::new() };
        let none = Audience::default();
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
