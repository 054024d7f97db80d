//! Archived changes of users and groups. Those of one user or group and of its names are applied in one transaction, and
//! only if the names and their owners agree afterwards.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use gravwell_model::codec::message::Row;
use gravwell_model::{Collection, Condition, Key, Op, Seq};
use gravwell_objects::Stored;
use gravwell_objects::claims::{self, Claim, Owner};
use gravwell_objects::groups::Group;
use gravwell_objects::identities::{self, Number};
use gravwell_objects::names;
use gravwell_objects::users::User;
use gravwell_replica::conflict_archive::Change;

use crate::client::Client;
use crate::error::CtlError;

/// An object of the log with its version; `None` if it is absent.
type There = Option<(Seq, Bytes)>;

async fn there(client: &Client, collection: &Collection, key: &Key) -> Result<There, CtlError> {
    Ok(match client.object(collection, key, None).await? {
        Some(Row::Object { version, value, .. }) => Some((version, value)),
        _ => None,
    })
}

/// Groups of changes, each of which is one transaction.
#[derive(Default)]
pub(super) struct Groups {
    /// Those that change users, groups and their names.
    pub of_owners: Vec<Vec<Change>>,
    /// All others.
    pub others: Vec<Vec<Change>>,
}

impl Groups {
    /// Joins the groups that change the same user or group, or its name. An archive has only the last change of each
    /// object: after a rename, the user may have been changed again, while the names have not.
    pub(super) async fn joined(
        client: &Client,
        groups: impl IntoIterator<Item = Vec<Change>>,
    ) -> Result<Groups, CtlError> {
        let (mut units, mut others) = (Units::default(), Vec::new());
        for group in groups {
            let mut numbers = BTreeSet::new();
            for change in &group {
                let (collection, key) = (change.collection.as_str(), change.key.as_str());
                numbers.extend(identities::named(collection, key, change.value.as_deref()));
                if identities::is_claim(collection) {
                    // Whose name it is in the log.
                    let there = there(client, &change.collection, &change.key).await?;
                    let value = there.as_ref().map(|(_, value)| value.as_ref());
                    numbers.extend(identities::named(collection, key, value));
                }
            }
            if numbers.is_empty() { others.push(group) } else { units.add(numbers, group) }
        }
        Ok(Groups { of_owners: units.into_groups(), others })
    }
}

#[derive(Default)]
struct Units {
    /// Place of the unit of each number.
    places: BTreeMap<Number, usize>,
    units: Vec<(Vec<Number>, Vec<Change>)>,
}

impl Units {
    fn add(&mut self, mut numbers: BTreeSet<Number>, group: Vec<Change>) {
        let known: BTreeSet<usize> = numbers.iter().filter_map(|number| self.places.get(number).copied()).collect();
        // The largest one stays where it is.
        let largest = known.iter().copied().max_by_key(|place| self.units[*place].0.len());
        let place = largest.unwrap_or_else(|| {
            self.units.push((Vec::new(), Vec::new()));
            self.units.len() - 1
        });
        for other in known.into_iter().filter(|other| *other != place) {
            let (moved, changes) = std::mem::take(&mut self.units[other]);
            numbers.extend(moved);
            self.units[place].1.extend(changes);
        }
        for number in numbers {
            if self.places.insert(number, place) != Some(place) {
                self.units[place].0.push(number);
            }
        }
        self.units[place].1.extend(group);
    }

    fn into_groups(self) -> Vec<Vec<Change>> {
        self.units.into_iter().map(|(_, changes)| changes).filter(|changes| !changes.is_empty()).collect()
    }
}

/// Returns conditions under which the names and owners that operations change agree afterwards, or why they would not.
pub(super) async fn agree(client: &Client, ops: &[Op]) -> Result<Result<Vec<Condition>, String>, CtlError> {
    let written = ops.iter().map(|op| ((op.collection().clone(), op.key().clone()), op.value().cloned())).collect();
    let mut after = After { client, written, read: BTreeMap::new() };
    let disputes = [after.dispute_of::<User>().await?, after.dispute_of::<Group>().await?];
    if let Some(why) = disputes.into_iter().flatten().next() {
        return Ok(Err(why));
    }
    Ok(Ok(after.unchanged()))
}

/// The log after operations.
struct After<'a> {
    client: &'a Client,
    written: BTreeMap<(Collection, Key), Option<Bytes>>,
    read: BTreeMap<(Collection, Key), There>,
}

impl After<'_> {
    /// Returns the object before and after the operations. What cannot be decoded has no name and no owner.
    async fn object<T: Stored>(&mut self, key: &str) -> Result<[Option<T>; 2], CtlError> {
        let decode = |value: &Bytes| serde_json::from_slice::<T>(value).ok();
        let collection = Collection::new(T::COLLECTION).map_err(CtlError::new)?;
        // A name that is no key has no claim.
        let Ok(key) = Key::new(key) else { return Ok([None, None]) };
        let place = (collection, key);
        if !self.read.contains_key(&place) {
            let there = there(self.client, &place.0, &place.1).await?;
            self.read.insert(place.clone(), there);
        }
        let before = self.read.get(&place).and_then(|there| there.as_ref()).map(|(_, value)| value);
        let after = self.written.get(&place).map_or(before, Option::as_ref);
        Ok([before.and_then(decode), after.and_then(decode)])
    }

    /// Returns a name without the owner that it is claimed for, or an owner without a name.
    async fn dispute_of<O: Owner>(&mut self) -> Result<Option<String>, CtlError> {
        let (mut keys, mut numbers) = (BTreeSet::new(), BTreeSet::new());
        for (collection, key) in self.written.keys() {
            let (collection, key) = (collection.as_str(), key.as_str());
            if collection == O::Claim::COLLECTION {
                keys.insert(key.to_owned());
            } else if collection == O::COLLECTION {
                numbers.insert(key.to_owned());
            }
        }
        for number in &numbers {
            let owners = self.object::<O>(number).await?;
            keys.extend(owners.iter().flatten().flat_map(|owner| names::keys(owner.called())));
        }
        for key in &keys {
            let [before, after] = self.object::<O::Claim>(key).await?;
            numbers.extend(before.iter().map(|claim| claim.owner().to_string()));
            let Some(claim) = after else { continue };
            let number = claim.owner().to_string();
            let [_, owner] = self.object::<O>(&number).await?;
            if !owner.is_some_and(|owner| claims::bears(owner.called(), key)) {
                let what = O::WHAT;
                return Ok(Some(format!("would leave the name {key} with {what} {number}, which is not called so")));
            }
            numbers.insert(number);
        }
        for number in &numbers {
            let [_, Some(owner)] = self.object::<O>(number).await? else { continue };
            let mut is_named = false;
            for key in names::keys(owner.called()) {
                let [_, claim] = self.object::<O::Claim>(&key).await?;
                is_named |= claim.is_some_and(|claim| claim.owner().to_string() == *number);
            }
            if !is_named {
                let (what, name) = (O::WHAT, owner.called());
                return Ok(Some(format!("would leave {what} {number} ({name}) without its name")));
            }
        }
        Ok(None)
    }

    /// Returns conditions that what was read and is not written is unchanged.
    fn unchanged(self) -> Vec<Condition> {
        let After { written, read, .. } = self;
        let kept = read.into_iter().filter(|(place, _)| !written.contains_key(place));
        let condition = |((collection, key), there): ((Collection, Key), There)| match there {
            Some((version, _)) => Condition::Version { collection, key, version },
            None => Condition::Absent { collection, key },
        };
        kept.map(condition).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_one_user_and_of_the_same_name_are_joined() {
        let change = |name: &str| Change {
            seq: None,
            time_ms: None,
            collection: Collection::new("c").expect("name"),
            key: Key::new(name).expect("key"),
            value: None,
            there: None,
            is_seen: false,
        };
        let mut units = Units::default();
        let users = |numbers: &[i32]| numbers.iter().copied().map(Number::User).collect::<BTreeSet<_>>();
        for (numbers, name) in [(&[1][..], "a"), (&[2], "b"), (&[3, 4], "c"), (&[4, 5], "d"), (&[2, 3], "e")] {
            units.add(users(numbers), vec![change(name)]);
        }
        units.add([Number::Group(1)].into(), vec![change("f")]);
        units.add(users(&[5]), vec![change("g")]);
        let names = |changes: Vec<Change>| {
            let mut names: Vec<String> = changes.iter().map(|change| change.key.as_str().to_owned()).collect();
            names.sort();
            names.concat()
        };
        let joined: BTreeSet<String> = units.into_groups().into_iter().map(names).collect();
        assert_eq!(joined, BTreeSet::from(["a", "bcdeg", "f"].map(str::to_owned)));
    }
}
